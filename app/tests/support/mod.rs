//! The built binary as a child process, and an HTTP client of the little that the tests need.
#![allow(dead_code, reason = "each test file uses its part")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use model_lock::{ModelLock, codec};
use tempfile::TempDir;

/// The longest that anything here may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The workspace's models.lock, from which the binary was built.
pub(crate) fn lock() -> ModelLock {
    codec::parse(&fs::read_to_string(workspace().join("models.lock")).unwrap()).unwrap()
}

/// A model root with a copy of every locked file.
pub(crate) fn models() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for model in lock().models() {
        for file in &model.files {
            let to = folder.path().join(model.name.as_str()).join(file.path.as_str());
            fs::create_dir_all(to.parent().unwrap()).unwrap();
            fs::copy(workspace().join("models").join(model.name.as_str()).join(file.path.as_str()), to).unwrap();
        }
    }
    folder
}

/// The binary with one argument and an environment of its own.
pub(crate) fn app(argument: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_app"));
    command.arg(argument).env_clear();
    command
}

/// How a process ended.
#[derive(Debug, PartialEq)]
pub(crate) struct Stopped {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Stopped {
    pub(crate) fn new(code: i32, stdout: &str, stderr: &str) -> Self {
        Self { code, stdout: stdout.to_owned(), stderr: stderr.to_owned() }
    }
}

/// Runs to the end what ends by itself.
pub(crate) fn run(command: &mut Command) -> Stopped {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let code = wait(&mut child);
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Stopped { code, stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The exit code; a process that does not end in time is killed, which fails the test.
fn wait(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        if start.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("still running after {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Sends a signal such as `TERM`.
pub(crate) fn send_signal(child: &Child, name: &str) {
    let sent = Command::new("kill").arg(format!("-{name}")).arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
}

/// A running service, killed when dropped.
pub(crate) struct Service {
    pub(crate) child: Child,
    pub(crate) address: SocketAddr,
    /// The lines up to the one with the address.
    pub(crate) log: Vec<String>,
    /// The lines that follow, as they come.
    lines: Receiver<String>,
    models: TempDir,
}

impl Service {
    /// With a copy of the locked models.
    pub(crate) fn start(environment: &[(&str, &str)]) -> Self {
        Self::start_with(models(), environment)
    }

    pub(crate) fn start_with(models: TempDir, environment: &[(&str, &str)]) -> Self {
        let mut command = app("serve");
        command.env("MODEL_ROOT", models.path()).env("LISTEN", "127.0.0.1:0").envs(environment.iter().copied());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = mpsc::channel();
        // Ends with the child, or with the first line after the receiver is gone.
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).all(|line| sender.send(line).is_ok()));
        let mut log = Vec::new();
        let address = loop {
            let line = lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|cause| panic!("{cause} before it listened: {log:?}"));
            log.push(line);
            if let Some(address) = log.last().unwrap().strip_prefix("listening on http://") {
                break address.parse().unwrap();
            }
        };
        Self { child, address, log, lines, models }
    }

    /// The folder that it takes for `/models`.
    pub(crate) fn models(&self) -> &Path {
        self.models.path()
    }

    /// The next line of the log.
    pub(crate) fn next_line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("another line of the log")
    }

    /// Sends SIGHUP and returns the line that says what came of it.
    pub(crate) fn reload(&self) -> String {
        send_signal(&self.child, "HUP");
        self.next_line()
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.address)
    }

    /// Returns once the port takes no connection any more.
    pub(crate) fn wait_until_refused(&self) {
        let start = Instant::now();
        while TcpStream::connect_timeout(&self.address, PATIENCE).is_ok() {
            assert!(start.elapsed() < PATIENCE, "still listening after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn wait(&mut self) -> i32 {
        wait(&mut self.child)
    }

    /// What a service that has stopped said last.
    pub(crate) fn rest_of_log(&mut self) -> String {
        std::iter::from_fn(|| self.lines.recv_timeout(PATIENCE).ok()).map(|line| line + "\n").collect()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One connection, kept alive.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// An HTTP answer.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        assert!(self.head.contains("content-type: application/json"), "{}", self.head);
        serde_json::from_str(&self.body).unwrap()
    }
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    pub(crate) fn predict(&mut self, body: &str) -> Answer {
        self.request("POST", "/v1/predict", "application/json", body)
    }

    /// Asks the model with this name.
    pub(crate) fn predict_by(&mut self, model: &str, body: &str) -> Answer {
        self.request("POST", "/v1/predict", &format!("application/json\r\nX-Model: {model}"), body)
    }

    /// An empty content type is left out.
    pub(crate) fn request(&mut self, method: &str, path: &str, content_type: &str, body: &str) -> Answer {
        self.send_head(method, path, content_type, body.len());
        self.send(body.as_bytes());
        self.receive()
    }

    pub(crate) fn send_head(&mut self, method: &str, path: &str, content_type: &str, length: usize) {
        let content_type =
            if content_type.is_empty() { String::new() } else { format!("Content-Type: {content_type}\r\n") };
        let head = format!("{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {length}\r\n{content_type}\r\n");
        self.send(head.as_bytes());
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).unwrap();
    }

    pub(crate) fn receive_head(&mut self) -> String {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.stream.read_line(&mut head).unwrap(), 0, "closed after {head:?}");
        }
        head
    }

    pub(crate) fn receive(&mut self) -> Answer {
        let head = self.receive_head();
        let status = head[9..12].parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { status, head, body: String::from_utf8(body).unwrap() }
    }
}
