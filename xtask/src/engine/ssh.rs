//! The engine's socket on another machine as a socket of this one, by the `ssh` program: it knows the user's keys,
//! agents, jump hosts and configuration.

use std::fs::DirBuilder;
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::endpoint::Ssh;
use crate::error::{Failure, Kind, OrFail as _, Result};

/// A forwarded socket, until it is dropped.
pub(super) struct Tunnel {
    child: Child,
    folder: PathBuf,
}

/// How long ssh may take, which includes what it asks the user.
const PATIENCE: Duration = Duration::from_mins(2);

impl Tunnel {
    /// Starts `ssh` and waits until the socket is there.
    pub(super) fn open(ssh: &Ssh) -> Result<Self> {
        let fail = || format!("failed to reach the engine through `ssh {}`", ssh.destination);
        let folder = private_folder().or_fail(Kind::Engine, fail)?;
        let socket = folder.join("engine");
        let mut command = Command::new("ssh");
        command.args(["-N", "-T", "-o", "ExitOnForwardFailure=yes", "-o", "ControlPath=none"]);
        command.arg("-L").arg(format!("{}:{}", socket.display(), ssh.socket));
        if let Some(port) = ssh.port {
            command.arg("-p").arg(port.to_string());
        }
        command.arg("--").arg(&ssh.destination).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().or_fail(Kind::Program, fail).inspect_err(|_| {
            // It is empty; what it would have been for failed, and that is what is told.
            let _ = std::fs::remove_dir(&folder);
        })?;
        let mut tunnel = Self { child, folder };
        let start = Instant::now();
        while !socket.exists() {
            let ended = tunnel.child.try_wait().or_fail(Kind::Program, fail)?.is_some();
            if ended || start.elapsed() > PATIENCE {
                let mut said = String::new();
                if ended && let Some(stderr) = &mut tunnel.child.stderr {
                    let _ = stderr.read_to_string(&mut said);
                }
                let cause = if ended { said.trim() } else { "no connection within two minutes" };
                return Err(Failure::new(Kind::Engine, fail())
                    .because(if cause.is_empty() { "ssh ended without a word" } else { cause })
                    .help(format!("try `ssh {} docker version`", ssh.destination)));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(tunnel)
    }

    /// The socket on this machine.
    pub(super) fn socket(&self) -> PathBuf {
        self.folder.join("engine")
    }
}

/// A new folder that nobody else can look into.
fn private_folder() -> io::Result<PathBuf> {
    let mut attempt = 0;
    loop {
        // Not the temporary folder of the environment: a socket's path has at most 108 bytes.
        let folder = PathBuf::from(format!("/tmp/model-lock-{}-{attempt}", std::process::id()));
        match DirBuilder::new().mode(0o700).create(&folder) {
            // What a run that was killed left behind, when the process's id comes round again.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempt < 100 => attempt += 1,
            made => return made.map(|()| folder),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        // There is no one left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(Path::new(&self.folder));
    }
}
