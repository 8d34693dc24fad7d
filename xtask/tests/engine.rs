//! The built binary against real engines, and against a socket that answers as a broken one does. Run by
//! `cargo test -p xtask --features engine-tests --test engine`; an engine that is not there is a failure, not a skip.
//!
//! ```text
//! MODEL_LOCK_TEST_ENGINE      a current Docker Engine, such as unix:///run/docker.sock
//! MODEL_LOCK_TEST_OLD_ENGINE  Docker Engine 20.10
//! MODEL_LOCK_TEST_BUILDER     an image with Rust that the engine can pull, by digest
//! ```
//!
//! `long_…` moves 9 GiB and is run by name: `--ignored long_`.

#[path = "it/support.rs"]
#[expect(dead_code, reason = "what the other tests need beside these")]
mod support;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Output, Workspace, noise, safetensors};

#[track_caller]
fn variable(name: &str) -> String {
    let value =
        support::inherited(name).unwrap_or_else(|| panic!("{name} is not set: see the head of tests/engine.rs"));
    value.into_string().unwrap()
}

fn engine() -> String {
    variable("MODEL_LOCK_TEST_ENGINE")
}

fn old_engine() -> String {
    variable("MODEL_LOCK_TEST_OLD_ENGINE")
}

/// Runs `cargo xtask ARGUMENTS` with this engine.
fn xtask(workspace: &Workspace, host: &str, arguments: &[&str]) -> Output {
    workspace.run_with(arguments, |command| {
        command.env("DOCKER_HOST", host);
    })
}

/// The arguments of `image --builder docker` with the builder of these tests.
fn build_arguments(tag: &str) -> Vec<String> {
    let builder = format!("BUILDER={}", variable("MODEL_LOCK_TEST_BUILDER"));
    let fixed = ["image", "--embed", "--builder", "docker", "--network", "host", "--build-arg", &builder, "--tag", tag];
    fixed.map(str::to_owned).to_vec()
}

fn docker_build(workspace: &Workspace, tag: &str) -> Output {
    let arguments = build_arguments(tag);
    xtask(workspace, &engine(), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Asks the engine itself, by an HTTP request of our own: what it says is not to come through the code under test.
fn ask(host: &str, method: &str, path: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(host.strip_prefix("unix://").unwrap()).unwrap();
    write!(stream, "{method} {path} HTTP/1.0\r\nHost: engine\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap_or(Value::Null))
}

fn inspect(host: &str, image: &str) -> Value {
    let (status, image) = ask(host, "GET", &format!("/images/{image}/json"));
    assert_eq!(status, 200, "{image}");
    image
}

/// Removes an image or a volume when a test ends.
struct Cleanup(Vec<(String, String)>);

impl Cleanup {
    fn of(paths: &[(&str, String)]) -> Self {
        Self(paths.iter().map(|(host, path)| ((*host).to_owned(), path.clone())).collect())
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        for (host, path) in &self.0 {
            ask(host, "DELETE", path);
        }
    }
}

fn image_cleanup(hosts: &[&str], tag: &str) -> Cleanup {
    Cleanup::of(&hosts.iter().map(|host| (*host, format!("/images/{tag}?force=1"))).collect::<Vec<_>>())
}

/// The digests of the layers that models.lock names, in the order in which an image has them.
fn locked_layers(workspace: &Workspace) -> Vec<String> {
    let mut layers: Vec<String> = Vec::new();
    let text = workspace.text("models.lock");
    for (at, _) in text.match_indices("layer = \"") {
        let digest = text[at + "layer = \"".len()..].split('"').next().unwrap().to_owned();
        if !layers.contains(&digest) {
            layers.push(digest);
        }
    }
    layers
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn a_loaded_image_has_the_id_that_it_must_have() {
    let workspace = Workspace::committed();
    let (new, old) = (engine(), old_engine());
    let tag = "model-lock-test/load:a";
    let _cleanup = image_cleanup(&[&new, &old], tag);
    let built = workspace.run(&["image", "--embed", "--tag", tag, "--format", "json"]).expect(0).json();
    for (host, id) in [(&new, &built["digest"]), (&old, &built["config"])] {
        let loaded = xtask(&workspace, host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        assert_eq!(Value::from(loaded.digest()), built["digest"]);
        let image = inspect(host, tag);
        assert_eq!(&image["Id"], id, "{host}");
        let layers: Vec<_> = built["layers"].as_array().unwrap().iter().map(|layer| layer["digest"].clone()).collect();
        assert_eq!(image["RootFS"]["Layers"].as_array().unwrap(), &layers);
        // Nothing is sent twice.
        let again = xtask(&workspace, host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        assert!(!again.stderr.contains("Loading"), "{}", again.stderr);
    }
    // No layout is written beside it.
    let fresh = Workspace::locked();
    xtask(&fresh, &new, &["image", "--embed", "--load", "--tag", tag]).expect(0);
    assert!(!fresh.path("target/image/app/embed/oci").exists());
}

#[test]
fn code_that_changed_is_loaded_without_the_models() {
    let workspace = Workspace::locked();
    let big = noise(1, 3 << 20);
    workspace.write("models/digits/model.safetensors", safetensors(&big));
    workspace.run(&["lock"]).expect(0);
    let tag = "model-lock-test/again:a";
    let _cleanup = image_cleanup(&[&engine(), &old_engine()], tag);
    // Programs that no engine has seen yet.
    let run = std::process::id();
    let prints = |word: &str| format!("fn main() {{\n    println!(\"{word} {run}\");\n}}\n");
    for host in [engine(), old_engine()] {
        workspace.write("app/src/main.rs", prints("hello"));
        xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag])
            .expect(0)
            .says(&["3 layers", "to send"]);
        workspace.write("app/src/main.rs", prints("changed"));
        let changed = xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
        let changed = changed.says(&["1 of 3 layers to send"]);
        assert_eq!(
            texts(&inspect(&host, tag)["RootFS"]["Layers"])[..2],
            locked_layers(&workspace),
            "{}",
            changed.stderr
        );
        let ran = xtask(&workspace, &host, &["run", "--embed", "--network", "none"]).expect(0);
        assert!(ran.stderr.contains(&format!("changed {run}\n")), "{}", ran.stderr);
    }
}

#[test]
fn wrong_bytes_move_no_name() {
    let workspace = Workspace::committed();
    let host = engine();
    let tag = "model-lock-test/wrong:a";
    let _cleanup = image_cleanup(&[&host], tag);
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", tag]).expect(0);
    let before = inspect(&host, tag)["Id"].clone();
    workspace.write("app/src/main.rs", "fn main() {}\n");
    workspace.flip("models/digits/model.safetensors");
    for arguments in
        [vec!["image".to_owned(), "--embed".into(), "--load".into(), "--tag".into(), tag.into()], build_arguments(tag)]
    {
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let refused = xtask(&workspace, &host, &arguments).expect(1);
        refused.says(&["digits/model.safetensors has other bytes than models.lock says", "expected sha256:"]);
        assert_eq!(inspect(&host, tag)["Id"], before);
    }
}

#[test]
fn two_builders_make_one_result() {
    let workspace = Workspace::committed();
    workspace.image("ports = [8080]\nhealthcheck = [\"check\"]\nenv = { GREETING = \"a \\\"b\\\" $c\" }");
    workspace.commit_with_dockerfile();
    let host = engine();
    let (ours, theirs) = ("model-lock-test/builders:oci", "model-lock-test/builders:docker");
    let _cleanup = (image_cleanup(&[&host], ours), image_cleanup(&[&host], theirs));
    xtask(&workspace, &host, &["image", "--embed", "--load", "--tag", ours]).expect(0);
    let built = docker_build(&workspace, theirs).expect(0).says(&["COPY --link .context/"]);
    let (ours, theirs) = (inspect(&host, ours), inspect(&host, theirs));
    assert_eq!(Value::from(built.digest()), theirs["Id"]);
    let models = locked_layers(&workspace);
    assert_eq!(models.len(), 2);
    assert_eq!(texts(&theirs["RootFS"]["Layers"])[..2], models);
    assert_eq!(texts(&ours["RootFS"]["Layers"])[..2], models);
    for key in ["Labels", "Env", "User", "Entrypoint", "ExposedPorts", "Healthcheck", "WorkingDir"] {
        assert_eq!(theirs["Config"][key], ours["Config"][key], "{key}");
    }
    assert!(theirs["Config"]["Labels"]["org.opencontainers.image.revision"].as_str().unwrap().len() >= 40);
    // The same commit again: the same image.
    assert_eq!(docker_build(&workspace, "model-lock-test/builders:docker").expect(0).digest(), built.digest());
}

#[test]
fn a_model_of_the_same_size_and_time_comes_out_new() {
    let workspace = Workspace::committed();
    let host = engine();
    let tag = "model-lock-test/stale:a";
    let _cleanup = image_cleanup(&[&host], tag);
    let at = workspace.path("models/words.txt");
    let modified = at.metadata().unwrap().modified().unwrap();
    for round in 0..10 {
        workspace.write("models/words.txt", format!("round {round}\n"));
        File::options().write(true).open(&at).unwrap().set_modified(modified).unwrap();
        workspace.run(&["lock"]).expect(0);
        docker_build(&workspace, tag).expect(0);
        assert_eq!(texts(&inspect(&host, tag)["RootFS"]["Layers"])[..2], locked_layers(&workspace), "round {round}");
    }
}

#[test]
fn a_step_that_fails_is_told_with_its_last_lines() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", "fn main() {\n    this_does_not_exist();\n}\n");
    let tag = "model-lock-test/fails:a";
    let failed = docker_build(&workspace, tag).expect(2);
    failed.says(&[
        "failed to build the image at the step `[build",
        "| error[E0425]: cannot find function `this_does_not_exist`",
        "the step ended with exit code: 101",
        "help: ",
    ]);
    assert_eq!(ask(&engine(), "GET", &format!("/images/{tag}/json")).0, 404);
}

#[test]
fn an_engine_that_cannot_build_it_is_told_before_anything_is_sent() {
    let workspace = Workspace::committed();
    let refused = xtask(&workspace, &old_engine(), &["image", "--embed", "--builder", "docker"]).expect(2);
    refused.says(&["Docker Engine 20.10", "`COPY --link` needs Docker Engine 23.0", "--builder docker", "--load"]);
}

const LOCKED_DOWN: &str = r#"
use std::fs;
fn main() {
    let words = fs::read_to_string("/srv/words/words.txt").unwrap();
    eprintln!("words {words:?}");
    eprintln!("root {:?}", fs::write("/x", "").unwrap_err().kind());
    eprintln!("model {:?}", fs::write("/srv/words/words.txt", "").unwrap_err().kind());
    let status = fs::read_to_string("/proc/self/status").unwrap();
    for line in status.lines().filter(|line| ["CapBnd", "NoNewPrivs", "Uid"].iter().any(|key| line.starts_with(key))) {
        eprintln!("{}", line.split_whitespace().take(2).collect::<Vec<_>>().join(" "));
    }
}
"#;

#[test]
fn an_app_runs_locked_down_with_its_models() {
    let workspace = Workspace::committed();
    workspace.write("app/src/main.rs", LOCKED_DOWN);
    for host in [engine(), old_engine()] {
        for mode in ["--embed", "--mount"] {
            let ran = xtask(&workspace, &host, &["run", mode, "--network", "none"]).expect(0);
            ran.says(&[
                "words \"one\\ntwo\\n\"",
                "root ReadOnlyFilesystem",
                "model ReadOnlyFilesystem",
                "CapBnd: 0000000000000000",
                "NoNewPrivs: 1",
                "Uid: 65532",
            ]);
        }
    }
}

#[test]
fn an_app_that_fails_fails_the_command() {
    let workspace = Workspace::committed();
    let host = old_engine();
    for (code, expected) in [(1, 1), (3, 2), (101, 2)] {
        workspace.write("app/src/main.rs", format!("fn main() {{ std::process::exit({code}) }}\n"));
        let failed = xtask(&workspace, &host, &["run", "--embed", "--network", "none"]).expect(expected);
        failed.says(&[&format!("`app` ended with exit code {code}")]);
    }
    workspace.remove("models/words.txt");
    xtask(&workspace, &host, &["run", "--mount", "--network", "none"]).expect(1).says(&["words/words.txt is missing"]);
}

#[test]
fn a_signal_stops_and_removes_the_container() {
    let workspace = Workspace::committed();
    let sleeping = "fn main() {\n    println!(\"up\");\n    loop {\n        std::thread::park();\n    }\n}\n";
    workspace.write("app/src/main.rs", sleeping);
    for host in [engine(), old_engine()] {
        let mut command = workspace.command();
        command.args(["run", "--embed", "--network", "none"]).env("DOCKER_HOST", &host).stderr(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line == "up"));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let rest: Vec<String> = lines.collect();
        assert!(child.wait().unwrap().success(), "{rest:?}");
        assert!(rest.iter().any(|line| line.contains("Stopped app")), "{rest:?}");
        let (_, left) =
            ask(&host, "GET", "/containers/json?all=1&filters=%7B%22ancestor%22%3A%5B%22app%3Aembed%22%5D%7D");
        assert_eq!(left.as_array().map(Vec::len), Some(0), "{left}");
    }
}

#[test]
fn without_an_engine_the_app_runs_by_itself() {
    let workspace = Workspace::committed();
    let prints = "fn main() {\n    let root = std::env::var(\"MODEL_ROOT\").unwrap();\n    let words = \
                  std::fs::read_to_string(format!(\"{root}/srv/words/words.txt\")).unwrap();\n    println!(\"{words:?} \
                  {:?}\", std::env::var(\"LISTEN\"));\n}\n";
    workspace.write("app/src/main.rs", prints);
    let config = workspace.path("no-docker");
    // In a mount namespace without the sockets of this machine.
    let script =
        "exec unshare --user --map-root-user --mount sh -c 'mount -t tmpfs none /run && exec \"$@\"' sh \"$@\"";
    let mut shell = support::command("sh", workspace.root());
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_xtask"), "run", "--mount", "--publish", "8099:8080"]);
    let ran = support::output(shell.env("DOCKER_CONFIG", config), workspace.root()).expect(0);
    assert_eq!(ran.stdout, "http://127.0.0.1:8099\n");
    ran.says(&["no engine is there", "\"one\\ntwo\\n\" Ok(\"127.0.0.1:8099\")"]);
}

#[test]
fn a_volume_is_filled_verified_repaired_and_removed() {
    for (host, name) in [(engine(), "model-lock-test-a"), (old_engine(), "model-lock-test-a")] {
        let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
        let workspace = Workspace::committed();
        let run = |arguments: &[&str]| xtask(&workspace, &host, arguments);
        run(&["volume", "rm", name]).expect(0);
        run(&["volume", "verify", name]).expect(2).says(&["the engine has no volume", "volume sync"]);
        run(&["volume", "sync", name]).expect(0).says(&["3 files, ", "3 files sent"]);
        run(&["volume", "sync", name]).expect(0).says(&["Unchanged", "0 files sent"]);
        run(&["volume", "verify", name]).expect(0).says(&["as in models.lock"]);
        // Another model: the old one is a finding, and only it is sent.
        workspace.write("models/words.txt", "six\nten\n");
        run(&["volume", "sync", name]).expect(1).says(&["words/words.txt has other bytes"]);
        workspace.run(&["lock"]).expect(0);
        let differs = run(&["volume", "verify", name, "--format", "json"]).expect(1);
        let differs =
            differs.says(&["words/words.txt has other bytes than models.lock says", "expected", "found"]).json();
        assert_eq!(differs["findings"][0]["kind"], "different");
        run(&["volume", "sync", name]).expect(0).says(&["1 file sent"]);
        run(&["volume", "verify", name]).expect(0);
        // A model less: what it left behind goes.
        workspace.declare("[workspace.metadata.models.digits]\nsource = \"models/digits\"\n");
        workspace.run(&["lock"]).expect(0);
        run(&["volume", "verify", name]).expect(1).says(&["srv/words/words.txt is not in models.lock"]);
        run(&["volume", "sync", name]).expect(0).says(&["Removing"]);
        run(&["volume", "verify", name]).expect(0);
        run(&["volume", "rm", name]).expect(0);
        assert_eq!(ask(&host, "GET", &format!("/volumes/{name}")).0, 404);
    }
}

#[test]
fn a_volume_that_somebody_else_made_is_left_alone() {
    let workspace = Workspace::committed();
    let (host, name) = (old_engine(), "model-lock-test-other");
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
    let made = Command::new("docker").args(["-H", &host, "volume", "create", name]).output().unwrap();
    assert!(made.status.success());
    for action in ["sync", "verify", "rm"] {
        let refused = xtask(&workspace, &host, &["volume", action, name]).expect(2);
        refused.says(&["was not made by this program"]);
    }
}

#[test]
fn a_volume_whose_filling_was_broken_off_says_so() {
    let workspace = Workspace::committed();
    let (host, name) = (old_engine(), "model-lock-test-killed");
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{name}?force=1"))]);
    let run = |arguments: &[&str]| xtask(&workspace, &host, arguments);
    // Complete, then a larger model on its way when the process is killed.
    run(&["volume", "sync", name]).expect(0);
    let at = workspace.path("models/digits/model.safetensors");
    sparse(&at, 1 << 30);
    workspace.run(&["lock"]).expect(0);
    let mut broken = 0;
    for wait in [50, 100, 200, 400] {
        let mut command = workspace.command();
        command.args(["volume", "sync", name]).env("DOCKER_HOST", &host).stderr(Stdio::piped()).stdout(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.any(|line| line.contains("Filling")));
        thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        if !child.wait().unwrap().success() {
            broken += 1;
            run(&["volume", "verify", name]).expect(1).says(&["digits/model.safetensors"]);
        }
    }
    assert!(broken > 0);
    run(&["volume", "sync", name]).expect(0);
    run(&["volume", "verify", name]).expect(0);
    run(&["volume", "rm", name]).expect(0);
}

/// A safetensors file of this size that takes no place on the disk.
fn sparse(at: &Path, size: u64) {
    let header = safetensors(&[]);
    let file = File::create(at).unwrap();
    let data = size - 200;
    let text = format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{data}],\"data_offsets\":[0,{data}]}}}}");
    assert!(header.len() < 200 && text.len() <= 192);
    let text = format!("{text:192}");
    file.set_len(size).unwrap();
    file.write_all_at(&(text.len() as u64).to_le_bytes(), 0).unwrap();
    file.write_all_at(text.as_bytes(), 8).unwrap();
}

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

/// A socket that answers like an engine with this fault, for as long as the test runs.
fn broken_engine(folder: &Path, fault: Fault) -> String {
    let socket = folder.join(format!("{fault:?}.sock"));
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // A client that hangs up first is not this thread's affair.
            thread::spawn(move || answer(stream.unwrap(), fault).ok());
        }
    });
    format!("unix://{}", socket.display())
}

fn answer(mut stream: UnixStream, fault: Fault) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let line = head.lines().next().unwrap_or_default().to_owned();
    let json = |stream: &mut UnixStream, status: &str, body: &str| {
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        )
    };
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
        let host = broken_engine(sockets.path(), fault);
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

#[test]
fn an_engine_that_cannot_be_reached_is_a_clear_error() {
    let workspace = Workspace::committed();
    let sockets = tempfile::tempdir().unwrap();
    let load = ["image", "--embed", "--load"];
    let at = |name: &str| -> (PathBuf, String) {
        let path = sockets.path().join(name);
        let host = format!("unix://{}", path.display());
        (path, host)
    };
    let (_, missing) = at("missing");
    xtask(&workspace, &missing, &load).expect(2).says(&[
        "no engine is there",
        &missing,
        "(DOCKER_HOST)",
        "--builder oci",
    ]);
    let (path, dead) = at("dead");
    drop(UnixListener::bind(&path).unwrap());
    xtask(&workspace, &dead, &load).expect(2).says(&["no engine is running", "--builder oci"]);
    let (path, closed) = at("closed");
    let _listener = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o0)).unwrap();
    // Root may do everything but what was taken from it.
    let script = "if [ \"$(id -u)\" = 0 ]; then exec setpriv --bounding-set=-dac_override,-dac_read_search -- \"$@\"; fi; exec \"$@\"";
    let mut shell = support::command("sh", workspace.root());
    shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_xtask")]).args(load).env("DOCKER_HOST", closed);
    let refused = support::output(&mut shell, workspace.root()).expect(2);
    refused.says(&["this user may not use the engine", "docker", "--builder oci"]);
    xtask(&workspace, "tcp://127.0.0.1:1", &load).expect(2).says(&["no engine is running", "tcp://127.0.0.1:1"]);
    xtask(&workspace, "ftp://engine", &load).expect(2).says(&["has a scheme that is not known"]);
    xtask(&workspace, "ssh://nobody@localhost:1", &load).expect(2).says(&["ssh"]);
}

#[test]
fn what_the_engine_cannot_do_is_refused_before_it_is_asked() {
    let workspace = Workspace::committed();
    let nowhere = "unix:///nowhere";
    for flag in [&["--print-digest"][..], &["--output", "x"]] {
        let arguments = [&["image", "--embed", "--builder", "docker"], flag].concat();
        xtask(&workspace, nowhere, &arguments).expect(2).says(&["in the engine, and nowhere else", "--builder docker"]);
    }
    let arguments = ["image", "--embed", "--build-arg", "A=b"];
    xtask(&workspace, nowhere, &arguments).expect(2).says(&["`--build-arg` and `--network` are for the engine"]);
    let arguments = ["image", "--embed", "--builder", "docker", "--build-arg", "1=b"];
    xtask(&workspace, nowhere, &arguments).expect(2).says(&["it is not `NAME=VALUE`"]);
}

#[test]
fn contexts_are_read() {
    let workspace = Workspace::committed();
    let config = tempfile::tempdir().unwrap();
    let host = engine();
    let made = Command::new("docker")
        .args(["context", "create", "lab", "--docker", &format!("host={host}")])
        .env("DOCKER_CONFIG", config.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let tag = "model-lock-test/context:a";
    let _cleanup = image_cleanup(&[&host], tag);
    let loaded = workspace.run_with(&["image", "--embed", "--load", "--tag", tag], |command| {
        command.env("DOCKER_CONFIG", config.path()).env("DOCKER_CONTEXT", "lab");
    });
    loaded.expect(0).says(&[&format!("at {host} (the context `lab`)")]);
}

/// Runs the call and gives the most memory that it had, in MiB.
fn peak_memory(workspace: &Workspace, host: &str, arguments: &[&str]) -> u64 {
    let mut command = workspace.command();
    let mut child = command.args(arguments).env("DOCKER_HOST", host).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let code = loop {
        if let Ok(text) = fs::read_to_string(&status)
            && let Some(line) = text.lines().find(|line| line.starts_with("VmHWM:"))
        {
            peak = line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024;
        }
        if let Some(code) = child.try_wait().unwrap() {
            break code;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(code.success(), "{arguments:?}");
    peak
}

#[test]
#[ignore = "moves 9 GiB several times and needs 50 GB of disk"]
fn long_nine_gibibytes_pass_through_little_memory() {
    let workspace = Workspace::committed();
    sparse(&workspace.path("models/digits/model.safetensors"), 9 << 30);
    workspace.run(&["lock"]).expect(0);
    let host = engine();
    let (loaded, built, volume) = ("model-lock-test/nine:load", "model-lock-test/nine:build", "model-lock-test-nine");
    let _cleanup = (image_cleanup(&[&host], loaded), image_cleanup(&[&host], built));
    let load = peak_memory(&workspace, &host, &["image", "--embed", "--load", "--tag", loaded]);
    // The disk has no place for all of it at once.
    ask(&host, "DELETE", &format!("/images/{loaded}?force=1"));
    let arguments = build_arguments(built);
    let made = peak_memory(&workspace, &host, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(texts(&inspect(&host, built)["RootFS"]["Layers"])[..3], locked_layers(&workspace));
    ask(&host, "DELETE", &format!("/images/{built}?force=1"));
    ask(&host, "POST", "/build/prune?all=1");
    let _cleanup = Cleanup::of(&[(&host, format!("/volumes/{volume}?force=1"))]);
    let sync = peak_memory(&workspace, &host, &["volume", "sync", volume]);
    let verify = peak_memory(&workspace, &host, &["volume", "verify", volume]);
    let told = format!("MiB at most: --load {load}, --builder docker {made}, volume sync {sync}, verify {verify}");
    assert!([load, made, sync, verify].iter().all(|peak| *peak < 256), "{told}");
    std::io::stdout().write_all(format!("{told}\n").as_bytes()).unwrap();
}
