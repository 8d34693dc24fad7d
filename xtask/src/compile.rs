//! The app, compiled the same way everywhere: locked dependencies, an explicit target, static, no path of this machine
//! in it, and no variable of the environment that could change a byte.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use cargo_metadata::Message;
use model_lock::{LockedLayer, human};
use xshell::{Shell, cmd};

use crate::cargo_config;
use crate::console::{Console, Steps};
use crate::declare::{Declaration, DeclaredImage};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::oci::layer::Recipe;
use crate::oci::spec::Platform;
use crate::oci::tar;
use crate::plan::AppPlan;

/// The compiled program.
#[derive(Debug, Clone)]
pub struct AppBinary {
    /// Where it is.
    pub at: PathBuf,
    /// Its size in bytes.
    pub size: u64,
}

/// Cargo and its flags for the network.
#[derive(Debug, Clone, Default)]
pub struct Cargo {
    /// The program to call.
    pub program: PathBuf,
    /// The environment of this process: [`compile`] hands on only what compiling needs.
    pub environment: BTreeMap<OsString, OsString>,
    /// Whether Cargo may use the network.
    pub offline: bool,
}

/// Variables that compiling needs and that reach no byte: where tools and registries are and how they are reached. A
/// linker for another target belongs into the workspace's .cargo/config.toml, where it is part of the commit.
fn hands_on(name: &str) -> bool {
    const NAMES: [&str; 17] = [
        "PATH",
        "HOME",
        "USER",
        "TMPDIR",
        "TERM",
        "CARGO_HOME",
        "RUSTUP_HOME",
        "RUSTUP_TOOLCHAIN",
        "RUSTUP_AUTO_INSTALL",
        "LD_LIBRARY_PATH",
        "SSH_AUTH_SOCK",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "CARGO_BUILD_JOBS",
        "NUM_JOBS",
        "HTTP_TIMEOUT",
        "GIT_SSH_COMMAND",
    ];
    const PREFIXES: [&str; 5] = ["CARGO_REGISTR", "CARGO_NET_", "CARGO_HTTP_", "CARGO_SOURCE_", "RUSTUP_DIST"];
    NAMES.contains(&name)
        || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || name.to_ascii_lowercase().ends_with("_proxy")
}

/// The target triple for `platform`: the declared one, else musl where its standard library is installed, else GNU.
pub fn target(declared: Option<&str>, platform: &Platform) -> Result<String> {
    let Some((_, arch)) = ARCHITECTURES.iter().find(|(oci, _)| *oci == platform.architecture) else {
        let known: Vec<_> = ARCHITECTURES.iter().map(|(oci, _)| format!("linux/{oci}")).collect();
        return Err(Failure::new(Kind::Usage, format!("no target is known for the platform `{platform}`"))
            .help(format!("known are {}", known.join(", "))));
    };
    if let Some(declared) = declared {
        if declared.split('-').next() != Some(arch) {
            return Err(Failure::new(
                Kind::Usage,
                format!("the declared target `{declared}` is not for the platform `{platform}`"),
            )
            .help("remove `target` from `[package.metadata.image]`, or choose the platform with `--platform`"));
        }
        return Ok(declared.to_owned());
    }
    let musl = format!("{arch}-unknown-linux-musl");
    Ok(if is_installed(&musl) { musl } else { format!("{arch}-unknown-linux-gnu") })
}

/// OCI's names (Go's GOARCH) and Rust's.
const ARCHITECTURES: [(&str, &str); 5] = [
    ("amd64", "x86_64"),
    ("arm64", "aarch64"),
    ("riscv64", "riscv64gc"),
    ("ppc64le", "powerpc64le"),
    ("s390x", "s390x"),
];

/// The platform of this machine, with Linux for an operating system.
#[must_use]
pub fn host_platform() -> Platform {
    let arch = std::env::consts::ARCH;
    let known = ARCHITECTURES.iter().find(|(_, rust)| rust.trim_end_matches("gc") == arch);
    Platform::linux(known.map_or(arch, |(oci, _)| oci))
}

fn is_installed(target: &str) -> bool {
    let Ok(shell) = Shell::new() else { return false };
    let folder = cmd!(shell, "rustc --print target-libdir --target {target}").quiet().ignore_stderr().read();
    folder.is_ok_and(|folder| Path::new(folder.trim()).is_dir())
}

/// Compiles the app of `image` for `target`. What Cargo says goes to stderr.
pub fn compile(
    declaration: &Declaration,
    image: &DeclaredImage,
    target: &str,
    cargo: &Cargo,
    console: &Console,
) -> Result<AppBinary> {
    let (package, bin) = (&image.package, &image.bin);
    let what = format!("{package} ({target})");
    let shell = Shell::new().or_fail(Kind::Program, || "failed to prepare a call of `cargo`".to_owned())?;
    shell.change_dir(&declaration.root);
    // A folder of its own: other flags than those of everyday builds would make the two undo each other.
    let folder = declaration.image_dir().join("cargo");
    let program = &cargo.program;
    let offline = cargo.offline.then_some("--offline");
    let quiet = (!console.is_verbose()).then_some("--quiet");
    let (color, messages) =
        if console.has_colors() { ("always", "json-diagnostic-rendered-ansi") } else { ("never", "json") };
    let mut command = cmd!(
        shell,
        "{program} build {quiet...} --color {color} --message-format {messages} --locked {offline...} --release --package {package} --bin {bin} --target {target} --target-dir {folder}"
    );
    command = command.env_clear().quiet();
    for (name, value) in &cargo.environment {
        if name.to_str().is_some_and(hands_on) {
            command = command.env(name, value);
        }
    }
    command = command.env("CARGO_ENCODED_RUSTFLAGS", flags(declaration, image, cargo, &folder)?.join("\x1f"));
    if let Some(linker) = cargo_config::linker(&declaration.root, &home(cargo), target)? {
        command = command.env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), linker);
    }
    command = command.env("CARGO_INCREMENTAL", "0").env("LC_ALL", "C").env("TZ", "UTC");
    // On a terminal this line counts the seconds and the crates: a first build takes minutes.
    let steps = console.steps("Compiling", &what, 0);
    if follow(command, &what, &steps)? {
        let at = folder.join(target).join("release").join(bin);
        let metadata = at.metadata().or_fail(Kind::Io, || format!("failed to read `{}`", at.display()))?;
        return Ok(AppBinary { at, size: metadata.len() });
    }
    Err(Failure::new(Kind::Program, format!("failed to compile `{package}` for `{target}`"))
        .help(format!("see what Cargo says above; is the target there? `rustup target add {target}`")))
}

/// Static, and the places that compilers write into programs under names that are the same everywhere; then what is
/// declared. The last remapping that fits wins, so the target folder, which is mostly inside the workspace, comes last.
fn flags(declaration: &Declaration, image: &DeclaredImage, cargo: &Cargo, folder: &Path) -> Result<Vec<String>> {
    let home = home(cargo);
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if home.is_absolute() {
        flags.push(remap(&home, "/cargo"));
    }
    // Where the component rust-src is installed, the standard library's own paths are those of this machine.
    let (sysroot, commit) = toolchain(&declaration.root)?;
    flags.push(remap(&sysroot.join("lib/rustlib/src/rust"), &format!("/rustc/{commit}")));
    flags.push(remap(&declaration.root, "/src"));
    flags.push(remap(folder, "/target"));
    flags.extend(image.rustflags.iter().flatten().cloned());
    Ok(flags)
}

/// Cargo's home.
fn home(cargo: &Cargo) -> PathBuf {
    let variable = |name: &str| cargo.environment.get(std::ffi::OsStr::new(name)).map(PathBuf::from);
    variable("CARGO_HOME").or_else(|| variable("HOME").map(|home| home.join(".cargo"))).unwrap_or_default()
}

/// The compiler's folder and the commit that it was built from.
fn toolchain(root: &Path) -> Result<(PathBuf, String)> {
    let ask = |arguments: &[&str]| {
        let shell = Shell::new()?;
        shell.change_dir(root);
        cmd!(shell, "rustc {arguments...}").quiet().ignore_stderr().read()
    };
    let fail = || "failed to ask `rustc` for its version".to_owned();
    let sysroot = ask(&["--print", "sysroot"]).or_fail(Kind::Program, fail)?;
    let version = ask(&["-vV"]).or_fail(Kind::Program, fail)?;
    let commit = version.lines().find_map(|line| line.strip_prefix("commit-hash: ")).unwrap_or("unknown");
    Ok((PathBuf::from(sysroot), commit.to_owned()))
}

/// Runs Cargo and hands on what it and the compiler say. Gives whether it succeeded.
fn follow(command: xshell::Cmd<'_>, what: &str, steps: &Steps) -> Result<bool> {
    let name = command.to_string();
    let fail = || format!("failed to run `{name}`");
    let (reader, mut writer) = io::pipe().or_fail(Kind::Io, fail)?;
    let stderr = writer.try_clone().or_fail(Kind::Io, fail)?;
    let mut command: Command = command.into();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(stderr);
    let mut cargo = command.spawn().or_fail(Kind::Program, fail)?;
    let stdout = cargo.stdout.take();
    let status = thread::scope(|scope| {
        scope.spawn(|| hand_on(reader, steps));
        let mut count = 0;
        let messages = stdout.into_iter().flat_map(|stdout| Message::parse_stream(BufReader::new(stdout)));
        for message in messages.map_while(io::Result::ok) {
            match message {
                Message::CompilerArtifact(artifact) => {
                    count += 1;
                    steps.newest(&format!("{what}: {}, last {}", human::count(count, "crate"), artifact.target.name));
                }
                Message::CompilerMessage(message) => {
                    steps.follow(message.message.rendered.unwrap_or_default().as_bytes());
                }
                Message::BuildFinished(_) => break,
                _ => {}
            }
        }
        let status = cargo.wait();
        writer.write_all(END)?;
        status
    });
    Ok(status.or_fail(Kind::Program, fail)?.success())
}

/// The last line of Cargo's stderr, written when Cargo has ended: an ssh that it started may hold the pipe open for hours.
const END: &[u8] = b"\0\n";

fn hand_on(stderr: io::PipeReader, steps: &Steps) {
    let mut stderr = BufReader::new(stderr);
    let mut line = Vec::new();
    while stderr.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        let text = line.strip_suffix(END);
        steps.follow(text.unwrap_or(&line));
        if text.is_some() {
            return;
        }
        line.clear();
    }
}

/// The app's layer: the program, and the targets of all models as folders, so that a mount finds its place in an image
/// that cannot be written to. It is the same whether models are embedded or mounted.
#[must_use]
pub fn app_recipe(app: &AppPlan, binary: &AppBinary) -> Recipe {
    Recipe::new(&[(app.path.clone(), tar::Kind::Program(binary.size))], &app.folders)
}

/// Digest and size of the app's layer.
pub fn app_layer(app: &AppPlan, binary: &AppBinary) -> Result<LockedLayer> {
    app_recipe(app, binary)
        .stream(|_| std::fs::File::open(&binary.at), std::io::sink())
        .or_fail(Kind::Io, || format!("failed to read `{}`", binary.at.display()))
}
