//! A private workspace for each test, the built binary run in it, and what it said. Digests and layers that tests
//! expect come from `sha256sum` and GNU tar, never from the code under test.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

const WORKSPACE: &str = "[workspace]\nresolver = \"3\"\nmembers = [\"app\"]\n";

/// The package of the app, up to where `[package.metadata.image]` continues.
const PACKAGE: &str = "[package]\nname = \"app\"\nversion = \"1.2.3\"\nedition = \"2024\"\nlicense = \"Apache-2.0\"\n\
                       repository = \"https://example.com/app\"\n\n";

const CARGO_LOCK: &str = "version = 4\n\n[[package]]\nname = \"app\"\nversion = \"1.2.3\"\n";

/// A folder of two files that goes to the default place, and a single file that goes elsewhere.
pub(crate) const TWO_MODELS: &str = "\
[workspace.metadata.models.digits]
source = \"models/digits\"
license = \"MIT\"

[workspace.metadata.models.words]
source = \"models/words.txt\"
target = \"/srv/words\"
";

/// 2024-02-29T12:34:56Z, the time of every commit.
pub(crate) const COMMIT_TIME: &str = "1709210096";

/// A Cargo workspace in a folder of its own.
pub(crate) struct Workspace {
    root: PathBuf,
    _temp: Option<TempDir>,
}

impl Workspace {
    /// One app, and this declaration of models, without their files.
    pub(crate) fn new(models: &str) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().canonicalize().unwrap();
        let workspace = Self { root, _temp: Some(temp) };
        workspace.declare(models);
        workspace.image("");
        workspace.write("app/src/main.rs", "fn main() {\n    println!(\"hello\");\n}\n");
        workspace.write("Cargo.lock", CARGO_LOCK);
        workspace.write(".gitignore", "/target/\n/.context/\n");
        workspace
    }

    /// [`TWO_MODELS`] with their files.
    pub(crate) fn two_models() -> Self {
        let workspace = Self::new(TWO_MODELS);
        workspace.write("models/digits/model.safetensors", safetensors(&[1, 2, 3, 4, 5, 6, 7, 8]));
        workspace.write("models/digits/config.json", "{\"a\": 1}\n");
        workspace.write("models/words.txt", "one\ntwo\n");
        workspace
    }

    /// [`TWO_MODELS`], locked.
    pub(crate) fn locked() -> Self {
        let workspace = Self::two_models();
        workspace.run(&["lock"]).expect(0);
        workspace
    }

    /// [`TWO_MODELS`], locked, with its Dockerfile, and all of it committed.
    pub(crate) fn committed() -> Self {
        let workspace = Self::locked();
        workspace.commit_with_dockerfile();
        workspace
    }

    /// A workspace that is there already.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.canonicalize().unwrap(), _temp: None }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.root.join(path)
    }

    /// Declares these models, and no others.
    pub(crate) fn declare(&self, models: &str) {
        self.write("Cargo.toml", format!("{WORKSPACE}\n{models}"));
    }

    /// Gives the app this `[package.metadata.image]`.
    pub(crate) fn image(&self, keys: &str) {
        self.write("app/Cargo.toml", format!("{PACKAGE}[package.metadata.image]\n{keys}\n"));
    }

    /// Gives the app a dependency that the workspace holds itself, and configures Cargo to take it from there.
    pub(crate) fn vendor(&self) {
        let manifest = "[package]\nname = \"tiny\"\nversion = \"1.0.0\"\nedition = \"2024\"\n";
        let files = [
            ("Cargo.toml", manifest),
            ("src/lib.rs", "pub mod target;\n"),
            ("src/target/mod.rs", "pub const WORD: &str = \"vendored\";\n"),
        ];
        let mut digests = serde_json::Map::new();
        for (name, text) in files {
            self.write(format!("third party/tiny/{name}"), text);
            let digest = sha256(text.as_bytes());
            digests.insert(name.to_owned(), digest.trim_start_matches("sha256:").into());
        }
        // A registry says the digest of the crate's archive, which nobody looks at here.
        let package = "0".repeat(64);
        let checksum = serde_json::json!({ "files": digests, "package": package });
        self.write("third party/tiny/.cargo-checksum.json", checksum.to_string());
        self.write(
            ".cargo/config.toml",
            "[source.crates-io]\nreplace-with = \"here\"\n[source.here]\ndirectory = \"third party\"\n",
        );
        let text = self.text("app/Cargo.toml");
        self.write("app/Cargo.toml", format!("{text}[dependencies]\ntiny = \"1\"\n"));
        self.write("app/src/main.rs", "fn main() {\n    println!(\"{}\", tiny::target::WORD);\n}\n");
        let registry = "registry+https://github.com/rust-lang/crates.io-index";
        let lock = self.text("Cargo.lock");
        self.write(
            "Cargo.lock",
            format!(
                "{}dependencies = [\n \"tiny\",\n]\n\n[[package]]\nname = \"tiny\"\nversion = \"1.0.0\"\nsource = \
                 \"{registry}\"\nchecksum = \"{package}\"\n",
                lock.trim_end().to_owned() + "\n"
            ),
        );
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, bytes: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[track_caller]
    pub(crate) fn read(&self, path: impl AsRef<Path>) -> Vec<u8> {
        let path = self.path(path);
        fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    #[track_caller]
    pub(crate) fn text(&self, path: impl AsRef<Path>) -> String {
        String::from_utf8(self.read(path)).unwrap()
    }

    #[track_caller]
    pub(crate) fn remove(&self, path: impl AsRef<Path>) {
        let path = self.path(path);
        if path.is_dir() { fs::remove_dir_all(path).unwrap() } else { fs::remove_file(path).unwrap() }
    }

    /// Replaces a text that must be there once.
    #[track_caller]
    pub(crate) fn replace(&self, path: &str, from: &str, to: &str) {
        let text = self.text(path);
        assert_eq!(text.matches(from).count(), 1, "{from:?} in {text}");
        self.write(path, text.replace(from, to));
    }

    /// Changes one bit in the middle of a file and sets its modification time back.
    #[track_caller]
    pub(crate) fn flip(&self, path: &str) {
        let mut bytes = self.read(path);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let modified = self.path(path).metadata().unwrap().modified().unwrap();
        self.write(path, bytes);
        fs::File::options().write(true).open(self.path(path)).unwrap().set_modified(modified).unwrap();
    }

    #[track_caller]
    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        let mut command = command("git", &self.root);
        command.args(arguments);
        for (name, value) in [
            ("GIT_AUTHOR_NAME", "a"),
            ("GIT_AUTHOR_EMAIL", "a@example.com"),
            ("GIT_COMMITTER_NAME", "a"),
            ("GIT_COMMITTER_EMAIL", "a@example.com"),
            ("GIT_AUTHOR_DATE", "2024-02-29T12:34:56Z"),
            ("GIT_COMMITTER_DATE", "2024-02-29T12:34:56Z"),
        ] {
            command.env(name, value);
        }
        output(&mut command, &self.root).expect(0).stdout.trim_end().to_owned()
    }

    /// Commits everything and gives the commit's id.
    pub(crate) fn commit(&self) -> String {
        if !self.path(".git").exists() {
            self.git(&["init", "--quiet", "--initial-branch=main"]);
        }
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "--message", "a commit"]);
        self.git(&["rev-parse", "HEAD"])
    }

    /// Renders the Dockerfile, as building an image does, and commits everything.
    pub(crate) fn commit_with_dockerfile(&self) -> String {
        self.run(&["image", "--embed"]).expect(0);
        self.commit()
    }

    /// Runs `cargo xtask ARGUMENTS` in the workspace.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.run_with(arguments, |_| {})
    }

    /// The same, with something changed about the call.
    pub(crate) fn run_with(&self, arguments: &[&str], change: impl FnOnce(&mut Command)) -> Output {
        let mut command = self.command();
        command.args(arguments);
        change(&mut command);
        output(&mut command, &self.root)
    }

    /// Runs it through `sh -c "SCRIPT"`, where `"$@"` is the call.
    pub(crate) fn run_through(&self, script: &str, arguments: &[&str]) -> Output {
        let mut shell = command("sh", &self.root);
        shell.args(["-c", script, "sh", env!("CARGO_BIN_EXE_xtask")]).args(arguments);
        output(&mut shell, &self.root)
    }

    pub(crate) fn command(&self) -> Command {
        command(env!("CARGO_BIN_EXE_xtask"), &self.root)
    }

    /// Every file below `folder` that is not a folder, relative to it, sorted.
    pub(crate) fn files(&self, folder: &str) -> Vec<String> {
        let mut found = Vec::new();
        let top = self.path(folder);
        let mut folders = vec![top.clone()];
        while let Some(next) = folders.pop() {
            #[expect(clippy::disallowed_methods, reason = "it is sorted below")]
            for entry in fs::read_dir(&next).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    folders.push(path);
                } else {
                    found.push(path.strip_prefix(&top).unwrap().to_string_lossy().into_owned());
                }
            }
        }
        found.sort();
        found
    }
}

/// A variable of the environment that the tests themselves were started with.
#[expect(clippy::disallowed_methods, reason = "what finds Cargo for the tests finds it for the binary")]
pub(crate) fn inherited(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// A program in `folder` with an environment that is the same everywhere, but for where Cargo is.
pub(crate) fn command(program: impl AsRef<OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir(folder).stdin(Stdio::null());
    for name in ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "CARGO"] {
        if let Some(value) = inherited(name) {
            command.env(name, value);
        }
    }
    // Neither this user's git configuration nor that of the machine.
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_CONFIG_NOSYSTEM", "1");
    command
}

/// Runs a command to its end; `root` becomes `[ROOT]` in what it said.
pub(crate) fn output(command: &mut Command, root: &Path) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: Vec<u8>| {
        String::from_utf8(bytes).expect("what is printed is UTF-8").replace(&*root.to_string_lossy(), "[ROOT]")
    };
    Output {
        call: format!("{command:?}"),
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

/// What a call said and how it ended; -1 for a signal.
#[derive(Debug)]
pub(crate) struct Output {
    call: String,
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// It ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        let Self { call, code: found, stdout, stderr } = &self;
        assert_eq!(*found, code, "{call}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
        self
    }

    /// Each of these is in what it said on stderr.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "expected {part:?}\n--- stderr of {}\n{}", self.call, self.stderr);
        }
        self
    }

    /// None of these is anywhere in what it said.
    #[track_caller]
    pub(crate) fn never_says(self, parts: &[&str]) -> Self {
        for part in parts {
            let said = format!("{}{}", self.stdout, self.stderr);
            assert!(!said.contains(part), "{part:?} in what {} said\n{said}", self.call);
        }
        self
    }

    /// This is all that it said on stderr.
    #[track_caller]
    pub(crate) fn says_exactly(self, text: &str) -> Self {
        assert_eq!(self.stderr, text, "{}", self.call);
        self
    }

    /// stdout is one line with a digest, which it gives.
    #[track_caller]
    pub(crate) fn digest(&self) -> String {
        let line = self.stdout.strip_suffix('\n').unwrap_or_else(|| panic!("no line end: {:?}", self.stdout));
        let hex = line.strip_prefix("sha256:").unwrap_or_else(|| panic!("not one digest: {:?}", self.stdout));
        let digits = hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        assert!(digits, "not one digest: {:?}", self.stdout);
        line.to_owned()
    }

    /// stdout is one JSON document, which it gives.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", self.stdout))
    }
}

/// A safetensors file with one tensor of these bytes.
pub(crate) fn safetensors(bytes: &[u8]) -> Vec<u8> {
    let header =
        format!("{{\"w\":{{\"dtype\":\"U8\",\"shape\":[{0}],\"data_offsets\":[0,{0}]}}}}", bytes.len()).into_bytes();
    [&(header.len() as u64).to_le_bytes(), &header[..], bytes].concat()
}

/// Bytes that neither compress nor repeat, the same for the same seed.
pub(crate) fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect()
}

/// `sha256:<hex>` by `sha256sum`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    let mut child =
        Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("coreutils are there");
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let said = child.wait_with_output().unwrap().stdout;
    format!("sha256:{}", std::str::from_utf8(&said[..64]).unwrap())
}

/// The tar of these files (absolute path in the container, bytes) by GNU tar: explicit folders 0755, files 0644, owner
/// 0:0 without names, mtime 0, two zero blocks at the end.
pub(crate) fn gnu_tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let temp = tempfile::tempdir().unwrap();
    let mut paths: Vec<&str> = Vec::new();
    for (path, bytes) in files {
        let path = path.trim_start_matches('/');
        let parents = path.match_indices('/').map(|(at, _)| &path[..at]);
        paths.extend(parents.chain([path]));
        let at = temp.path().join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, bytes).unwrap();
    }
    paths.sort_by(|a, b| a.split('/').cmp(b.split('/')));
    paths.dedup();
    for path in &paths {
        let at = temp.path().join(path);
        let mode = if at.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(at, fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut command = Command::new("tar");
    command.args(["--create", "--file=-", "--format=ustar", "--blocking-factor=1", "--owner=0", "--group=0"]);
    command.args(["--numeric-owner", "--mtime=@0", "--no-recursion", "--"]).args(paths).current_dir(temp.path());
    let output = command.output().expect("GNU tar is there");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// The permission bits of a file or folder.
pub(crate) fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

/// The target that the app is compiled for on this machine: musl where its standard library is installed.
pub(crate) fn triple() -> String {
    let arch = std::env::consts::ARCH;
    let musl = format!("{arch}-unknown-linux-musl");
    let mut rustc = command("rustc", Path::new("/"));
    let output = rustc.args(["--print", "target-libdir", "--target", &musl]).output().unwrap();
    let there = Path::new(std::str::from_utf8(&output.stdout).unwrap().trim()).is_dir();
    if there { musl } else { format!("{arch}-unknown-linux-gnu") }
}

/// OCI's name for this machine's processor.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
