//! Sockets that answer as a broken engine does.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::engines::{engine, image_cleanup, xtask};
use crate::support::Workspace;

/// What a broken engine does after it has said who it is.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// Says something that is not HTTP.
    Garbage,
    /// Answers every request with 403.
    Forbids,
    /// Takes everything, answers 200, and then says what went wrong.
    ErrorInStream,
    /// Takes everything, answers 200, and hangs up in the middle of the stream.
    EndsEarly,
    /// Takes everything, answers 200, and says nothing.
    SaysNothing,
    /// Hangs up while it is being sent to.
    HangsUp,
    /// Refuses without reading.
    Refuses,
}

/// A socket that answers every connection so, for as long as the test runs.
fn socket(folder: &Path, name: &str, answer: impl Fn(UnixStream) -> io::Result<()> + Send + Sync + 'static) -> String {
    let socket = folder.join(format!("{name}.sock"));
    let (listener, answer) = (UnixListener::bind(&socket).unwrap(), Arc::new(answer));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let answer = Arc::clone(&answer);
            // A client that hangs up first is not this thread's affair.
            thread::spawn(move || answer(stream.unwrap()).ok());
        }
    });
    format!("unix://{}", socket.display())
}

fn json(stream: &mut UnixStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )
}

/// Answers like an engine with this fault.
fn answer(mut stream: UnixStream, fault: Fault) -> io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let line = head.lines().next().unwrap_or_default().to_owned();
    match fault {
        Fault::Garbage => return stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n"),
        Fault::Forbids => {
            return json(&mut stream, "403 Forbidden", "{\"message\":\"authorization denied by plugin\"}");
        }
        _ => {}
    }
    if line.contains("/version") {
        return json(&mut stream, "200 OK", "{\"Version\":\"28.5.2\",\"ApiVersion\":\"1.51\"}");
    }
    if line.contains("/info") {
        return json(&mut stream, "200 OK", "{\"Driver\":\"overlay2\"}");
    }
    if line.contains("/images/json") {
        return json(&mut stream, "200 OK", "[]");
    }
    if !line.contains("/images/load") && !line.contains("/build") {
        return json(&mut stream, "404 Not Found", "{\"message\":\"no such thing\"}");
    }
    match fault {
        Fault::Refuses => {
            return json(
                &mut stream,
                "500 Internal Server Error",
                "{\"message\":\"write /data/x: no space left on device\"}",
            );
        }
        Fault::HangsUp => {
            reader.read_exact(&mut [0; 1000])?;
            return Ok(());
        }
        _ => {}
    }
    // To the end of the chunked body.
    let mut tail = Vec::new();
    let mut buffer = vec![0; 65536];
    while !tail.ends_with(b"0\r\n\r\n") {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        tail.extend_from_slice(&buffer[..count]);
        tail.drain(..tail.len().saturating_sub(5));
    }
    write!(stream, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")?;
    let mut chunk = |text: &str| write!(stream, "{:x}\r\n{text}\r\n", text.len());
    match fault {
        Fault::ErrorInStream => {
            chunk("{\"stream\":\"working\"}\n")?;
            chunk("{\"errorDetail\":{\"message\":\"write /data/blob: no space left on device\"},\"error\":\"x\"}\n")?;
            stream.write_all(b"0\r\n\r\n")
        }
        Fault::EndsEarly => chunk("{\"stream\":\"working\"}\n"),
        _ => stream.write_all(b"0\r\n\r\n"),
    }
}

#[test]
fn a_broken_engine_is_a_clear_error() {
    let workspace = Workspace::committed();
    let sockets = tempfile::tempdir().unwrap();
    let load: &[&str] = &["image", "--embed", "--load"];
    let build: &[&str] = &["image", "--embed", "--builder", "docker"];
    let cases = [
        (Fault::Garbage, [load, build], vec!["what answers there is not an engine", "--builder oci"]),
        (Fault::Forbids, [load, build], vec!["the engine refuses", "authorization denied by plugin"]),
        (Fault::ErrorInStream, [load, build], vec!["no space left on device", "docker system df"]),
        (Fault::EndsEarly, [load, build], vec!["hung up"]),
        (Fault::SaysNothing, [load, build], vec!["help: "]),
        (Fault::HangsUp, [load, build], vec!["hung up"]),
        (Fault::Refuses, [load, build], vec!["help: "]),
    ];
    for (fault, calls, says) in cases {
        let host = socket(sockets.path(), &format!("{fault:?}"), move |stream| answer(stream, fault));
        for call in calls {
            let start = Instant::now();
            let failed = xtask(&workspace, &host, call);
            assert_eq!(failed.code, 2, "{fault:?} {call:?}: {}", failed.stderr);
            assert!(start.elapsed() < Duration::from_secs(30), "{fault:?} {call:?}");
            let failed = failed.says(&says).says(&["error: "]).never_says(&["panicked"]);
            assert_eq!(failed.stdout, "", "{fault:?}");
        }
    }
}

/// Answers the first three lists of images with 404, as the engine does when an image is removed meanwhile, counts the
/// lists, and leaves everything else to the engine. A connection has one request.
fn forget(mut client: UnixStream, lists: &AtomicUsize) -> io::Result<()> {
    let mut head = vec![0; 4096];
    let count = client.read(&mut head)?;
    head.truncate(count);
    let is_list = head.starts_with(b"GET ") && String::from_utf8_lossy(&head).contains("/images/json");
    if is_list && lists.fetch_add(1, Ordering::Relaxed) < 3 {
        return json(&mut client, "404 Not Found", "{\"message\":\"content digest sha256:0: not found\"}");
    }
    let mut engine = UnixStream::connect(engine().trim_start_matches("unix://"))?;
    engine.write_all(&head)?;
    let (mut from, mut to) = (client.try_clone()?, engine.try_clone()?);
    thread::spawn(move || io::copy(&mut from, &mut to));
    io::copy(&mut engine, &mut client)?;
    client.shutdown(Shutdown::Both)
}

#[test]
fn a_list_that_fails_because_an_image_is_removed_is_asked_for_again() {
    let workspace = Workspace::committed();
    let sockets = tempfile::tempdir().unwrap();
    let lists = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&lists);
    let host = socket(sockets.path(), "forgetful", move |stream| forget(stream, &counted));
    let tag = "model-lock-test/forgetful:a";
    let _cleanup = image_cleanup(&[&engine()], tag);
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
    assert!(lists.load(Ordering::Relaxed) > 3);
}
