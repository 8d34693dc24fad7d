//! Where an engine is: sockets, contexts, TLS, ssh, Podman.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::engines::{engine, image_cleanup, inspect, variable, xtask};
use crate::support::{self, Workspace};

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
fn contexts_are_read() {
    let workspace = Workspace::committed();
    let config = tempfile::tempdir().unwrap();
    let host = engine();
    let docker = |arguments: &[&str]| {
        let made = Command::new("docker").args(arguments).env("DOCKER_CONFIG", config.path()).output().unwrap();
        assert!(made.status.success(), "{made:?}");
    };
    docker(&["context", "create", "lab", "--docker", &format!("host={host}")]);
    let tag = "model-lock-test/context:a";
    let _cleanup = image_cleanup(&[&host], tag);
    let loaded = workspace.run_with(&["image", "--embed", "--load", "--tag", tag], |command| {
        command.env("DOCKER_CONFIG", config.path()).env("DOCKER_CONTEXT", "lab");
    });
    loaded.expect(0).says(&[&format!("at {host} (the context `lab`)")]);
    // An engine that somebody chose and that is not there is no reason to run without one.
    docker(&["context", "create", "gone", "--docker", "host=unix:///nowhere.sock"]);
    docker(&["context", "use", "gone"]);
    let ran = workspace.run_with(&["run", "--embed"], |command| {
        command.env("DOCKER_CONFIG", config.path());
    });
    ran.expect(2).says(&["error: no engine is there: unix:///nowhere.sock (the context `gone`)"]);
}

/// A program that other people wrote.
fn tool(name: &str) -> Command {
    let mut command = Command::new(variable("MODEL_LOCK_TEST_TOOLS"));
    command.arg(name).stdin(Stdio::null());
    command
}

/// Runs a script where these programs are.
fn script(folder: &Path, text: &str) {
    let output = tool("sh").args(["-euc", text]).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A program that serves until it is dropped, and what it started.
struct Service(Child);

impl Service {
    /// Starts it and waits until it is `ready`.
    fn start(command: &mut Command, folder: &Path, ready: impl Fn() -> bool) -> Self {
        let log = folder.join("log");
        let file = fs::File::create(&log).unwrap();
        let command = command.stdout(file.try_clone().unwrap()).stderr(file).current_dir(folder).process_group(0);
        let mut service = Self(command.spawn().unwrap());
        let start = Instant::now();
        while !ready() {
            let ended = service.0.try_wait().unwrap();
            let waited = start.elapsed() > Duration::from_mins(1);
            assert!(ended.is_none() && !waited, "{ended:?}: {}", fs::read_to_string(&log).unwrap());
            thread::sleep(Duration::from_millis(50));
        }
        service
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let group = format!("-{}", self.0.id());
        Command::new("kill").args(["-TERM", "--", &group]).status().unwrap();
        self.0.wait().unwrap();
    }
}

/// A port of this machine that nobody uses now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn answers(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).is_ok()
}

#[test]
fn an_engine_on_another_machine_is_reached_through_ssh() {
    let workspace = Workspace::committed();
    let host = engine();
    let tag = "model-lock-test/ssh:a";
    let _cleanup = image_cleanup(&[&host], tag);
    let folder = tempfile::tempdir().unwrap();
    let (at, port) = (folder.path().display(), free_port());
    script(
        folder.path(),
        "ssh-keygen -q -t ed25519 -N '' -f host; ssh-keygen -q -t ed25519 -N '' -f key; mkdir -p /run/sshd",
    );
    let server = format!(
        "Port {port}\nListenAddress 127.0.0.1\nHostKey {at}/host\nAuthorizedKeysFile {at}/key.pub\nPidFile none\n\
         StrictModes no\nUsePAM no\n"
    );
    fs::write(folder.path().join("sshd_config"), server).unwrap();
    let arguments = ["-c", "exec \"$(command -v sshd)\" -D -e -f sshd_config"];
    let _server = Service::start(tool("sh").args(arguments), folder.path(), || answers(port));
    // The user's own ssh, with another configuration than the user's.
    let (path, bin) = (support::inherited("PATH").unwrap(), folder.path().join("bin"));
    let path = path.to_string_lossy();
    let client = format!(
        "Host elsewhere\nHostName 127.0.0.1\nPort {port}\nUser root\nIdentityFile {at}/key\nIdentitiesOnly yes\n\
         UserKnownHostsFile {at}/known_hosts\nBatchMode yes\nStrictHostKeyChecking accept-new\n"
    );
    fs::write(folder.path().join("ssh_config"), client).unwrap();
    fs::create_dir(&bin).unwrap();
    let program = format!("#!/bin/sh\necho $$ \"$*\" >{at}/call\nPATH='{path}' exec ssh -F {at}/ssh_config \"$@\"\n");
    fs::write(bin.join("ssh"), program).unwrap();
    fs::set_permissions(bin.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{path}", bin.display());
    let socket = host.strip_prefix("unix://").unwrap();
    let run = |address: &str| {
        workspace.run_with(&["image", "--embed", "--load", "--tag", tag], |command| {
            command.env("DOCKER_HOST", address).env("PATH", &path);
        })
    };
    let address = format!("ssh://elsewhere{socket}");
    let loaded = run(&address).expect(0).says(&[&format!("at {address} (DOCKER_HOST)")]);
    assert_eq!(Value::from(loaded.digest()), inspect(&host, tag)["Id"]);
    // Neither the program nor its socket is left behind.
    let call = fs::read_to_string(folder.path().join("call")).unwrap();
    let (id, arguments) = call.split_once(' ').unwrap();
    assert!(!Path::new("/proc").join(id).exists(), "{call}");
    let socket = arguments.split("-L ").nth(1).unwrap().split(':').next().unwrap();
    assert!(!Path::new(socket).parent().unwrap().exists(), "{call}");
    // What ssh says is told.
    run(&format!("ssh://elsewhere:{}", free_port()))
        .expect(2)
        .says(&["Connection refused", "help: try `ssh elsewhere"]);
    run("ssh://elsewhere/nowhere.sock").expect(2).says(&["ssh://elsewhere/nowhere.sock"]);
}

#[test]
fn an_engine_that_wants_tls_gets_it() {
    let workspace = Workspace::committed();
    let folder = tempfile::tempdir().unwrap();
    script(
        folder.path(),
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=ca -keyout ca-key.pem -out ca.pem
         for who in server client; do
             openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who-key.pem -out $who.csr
             printf 'subjectAltName=IP:127.0.0.1\\nextendedKeyUsage=%sAuth\\n' $who >$who.ext
             openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca-key.pem -CAcreateserial -days 2 -extfile $who.ext -out $who.pem
         done
         openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=other -keyout other-key.pem -out other.pem
         mkdir mine stranger imposter
         cp ca.pem mine; cp client.pem mine/cert.pem; cp client-key.pem mine/key.pem
         cp ca.pem stranger; cp other.pem stranger/cert.pem; cp other-key.pem stranger/key.pem
         cp other.pem imposter/ca.pem; cp client.pem imposter/cert.pem; cp client-key.pem imposter/key.pem
         echo '{}' >daemon.json",
    );
    // With a network of its own: without a bridge, an engine removes that of the engine beside it.
    let mut daemon = tool("unshare");
    daemon.args(["--net", "sh", "-euc", "echo $$ >own.pid; ip link set lo up; exec dockerd \"$@\"", "sh"]);
    daemon.args(["--config-file", "daemon.json", "--storage-driver", "vfs", "--bridge", "none", "--iptables=false"]);
    daemon.args(["--tlsverify", "--tlscacert", "ca.pem", "--tlscert", "server.pem", "--tlskey", "server-key.pem"]);
    for (flag, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
        daemon.arg(flag).arg(folder.path().join(name));
    }
    let host = "tcp://127.0.0.1:2376";
    let listens = || fs::read_to_string(folder.path().join("log")).unwrap().contains("API listen on");
    let daemon = Service::start(daemon.args(["-H", host]), folder.path(), listens);
    let id = fs::read_to_string(folder.path().join("own.pid")).unwrap();
    let run = |certificates: Option<&str>| {
        let mut command = support::command("nsenter", workspace.root());
        command.arg(format!("--net=/proc/{}/ns/net", id.trim())).arg(env!("CARGO_BIN_EXE_xtask"));
        command.args(["image", "--embed", "--load"]).env("DOCKER_HOST", host);
        if let Some(name) = certificates {
            command.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", folder.path().join(name));
        }
        support::output(&mut command, workspace.root())
    };
    run(Some("mine")).expect(0).says(&[&format!("at {host} (DOCKER_HOST)"), "Loading"]);
    run(Some("mine")).expect(0).never_says(&["Loading"]);
    run(None).expect(2).says(&["the engine wants TLS", "help: set DOCKER_TLS_VERIFY=1"]);
    for (certificates, says) in [("stranger", "alert"), ("imposter", "UnknownIssuer")] {
        run(Some(certificates)).expect(2).says(&["does not trust", says, "DOCKER_CERT_PATH"]);
    }
    run(Some("none")).expect(2).says(&["none/ca.pem", "DOCKER_CERT_PATH"]);
    drop(daemon);
}

#[test]
fn podman_answers_as_an_engine_does() {
    let workspace = Workspace::committed();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("podman.sock");
    let host = format!("unix://{}", socket.display());
    let mut podman = tool("podman");
    for (flag, name) in [("--root", "root"), ("--runroot", "runroot")] {
        podman.arg(flag).arg(folder.path().join(name));
    }
    podman.args(["--storage-driver", "vfs", "system", "service", "--time=0", &host]);
    let podman = Service::start(&mut podman, folder.path(), || UnixStream::connect(&socket).is_ok());
    let run = |arguments: &[&str]| xtask(&workspace, &host, arguments);
    run(&["image", "--embed", "--load"]).expect(0).says(&["Using Podman", "to send"]);
    run(&["image", "--embed", "--load"]).expect(0).never_says(&["Loading"]);
    run(&["volume", "sync", "models"]).expect(0).says(&["3 files sent"]);
    run(&["volume", "verify", "models"]).expect(0);
    workspace.write("models/words.txt", "six\nten\n");
    workspace.run(&["lock"]).expect(0);
    run(&["volume", "verify", "models"]).expect(1).says(&["words/words.txt has other bytes"]);
    run(&["volume", "sync", "models"]).expect(0).says(&["1 file sent"]);
    run(&["volume", "rm", "models"]).expect(0);
    run(&["image", "--embed", "--builder", "docker"]).expect(2).says(&["it has no BuildKit", "help: leave"]);
    drop(podman);
}
