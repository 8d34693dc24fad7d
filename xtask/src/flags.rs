//! The command line and the environment: the only file that reads either.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::compile::Cargo;
use crate::console::{Color, Console, Format};
use crate::declare::Strategy;
use crate::engine::Publish;
use crate::engine::endpoint::Environment;
use crate::error::{Kind, OrFail as _, Result};
use crate::mounts::KubernetesVolume;
use crate::oci::reference::Reference;
use crate::oci::spec::Platform;

/// Reproducible ML images from a Cargo workspace.
///
/// Models are declared in Cargo.toml and pinned in models.lock. They reach a container as layers of its image (embed) or
/// as a mount, without a change to the app.
///
/// Exit codes: 0 yes; 1 a check found a disagreement (bytes, drift, a stale lock); 2 it could not be told or done.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
pub struct Flags {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags are")]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Fail if models.lock or Cargo.lock would change
    #[arg(long, global = true)]
    locked: bool,
    /// Do not use the network
    #[arg(long, global = true)]
    offline: bool,
    /// Both `--locked` and `--offline`
    #[arg(long, global = true)]
    frozen: bool,
    /// What goes to stdout
    #[arg(long, global = true, value_enum, default_value_t)]
    format: Format,
    /// Print no status lines
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Print details
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    verbose: bool,
    /// Colours on stderr
    #[arg(long, global = true, value_enum, default_value_t)]
    color: Color,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Resolve and hash what is declared, and write models.lock
    Lock(Lock),
    /// Read every byte of every model and compare it with models.lock
    VerifyModels(VerifyModels),
    /// Render the Dockerfile, build the image and print its digest
    Image(Image),
    /// Build the app, and run it with its models: in the engine, or by itself where there is none
    Run(Run),
    /// Fill a volume of the engine with the models, or compare it with models.lock
    Volume(Volume),
}

/// `cargo xtask lock`.
#[derive(Debug, Args)]
pub struct Lock {
    /// Only compare: exit 1 if models.lock would change
    #[arg(long)]
    pub check: bool,
}

/// `cargo xtask verify-models`.
#[derive(Debug, Args)]
pub struct VerifyModels {
    /// Only these models [default: all]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
}

/// `cargo xtask image`.
#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "flags are")]
pub struct Image {
    /// How models reach the container.
    #[command(flatten)]
    pub mode: Mode,
    /// The package to make an image of [default: the one that declares an image]
    #[arg(short, long, value_name = "PKG")]
    pub package: Option<String>,
    /// Only compare the Dockerfile with what would be rendered
    #[arg(long, conflicts_with_all = ["dry_run", "print_digest", "output"])]
    pub check: bool,
    /// Print the plan and build nothing
    #[arg(long, conflicts_with_all = ["print_digest", "output"])]
    pub dry_run: bool,
    /// Print the digest that the image would have, without a model byte and without writing anything but the app
    #[arg(long, conflicts_with = "output")]
    pub print_digest: bool,
    /// What makes the image: this program, or the engine from the Dockerfile
    #[arg(long, value_name = "BUILDER", value_enum, default_value_t)]
    pub builder: Builder,
    /// Load the image into the engine, and write it nowhere else unless `--output` says so
    #[arg(long, conflicts_with_all = ["check", "dry_run", "print_digest"])]
    pub load: bool,
    /// An argument of the Dockerfile, as in `BUILDER=name@sha256:…` (with `--builder docker`)
    #[arg(long = "build-arg", value_name = "NAME=VALUE", value_parser = variable)]
    pub build_args: Vec<(String, String)>,
    /// The network of the Dockerfile's RUN steps, as in `host` (with `--builder docker`)
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// The image's name [default: PKG:embed or PKG:mount]
    #[arg(long, value_name = "REF")]
    pub tag: Option<Reference>,
    /// Write the image there instead: a folder, or an archive if the name ends with `.tar`
    #[arg(long, value_name = "PATH")]
    pub output: Option<PathBuf>,
    /// Also write the model image: the mounted models' layers, for image volumes and `--mount type=image`
    #[arg(long, conflicts_with = "output")]
    pub model_image: bool,
    /// Where kubernetes.yaml takes mounted models from
    #[arg(long, value_name = "VOLUME", value_enum, default_value_t)]
    pub kubernetes: KubernetesVolume,
    /// What the image runs on, as in `linux/arm64` [default: Linux on this machine's processor]
    #[arg(long)]
    pub platform: Option<Platform>,
}

/// `cargo xtask run`.
#[derive(Debug, Args)]
pub struct Run {
    /// How models reach the container.
    #[command(flatten)]
    pub mode: Mode,
    /// The package to run [default: the one that declares an image]
    #[arg(short, long, value_name = "PKG")]
    pub package: Option<String>,
    /// A port to be reached from outside [default: the image's ports, from this machine only]
    #[arg(long, value_name = "[[IP:]HOST:]CONTAINER")]
    pub publish: Vec<Publish>,
    /// Fill this volume with the models and mount it, for an engine that does not see this machine's files
    #[arg(long, value_name = "NAME", value_parser = volume_name, conflicts_with = "embed")]
    pub volume: Option<String>,
    /// The container's network, as in `host` or `none` [default: the engine's]
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// A variable of the app's environment
    #[arg(long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<(String, String)>,
    /// Arguments to the app
    #[arg(last = true)]
    pub arguments: Vec<String>,
}

/// `cargo xtask volume`.
#[derive(Debug, Args)]
pub struct Volume {
    /// What to do.
    #[command(subcommand)]
    pub action: VolumeAction,
}

/// What to do with a volume.
#[derive(Debug, Subcommand)]
pub enum VolumeAction {
    /// Bring the verified models into the volume, so that a container finds them with the volume at /models
    Sync(VolumeModels),
    /// Read every byte in the volume and compare it with models.lock
    Verify(VolumeModels),
    /// Remove the volume
    Rm {
        /// The volume
        #[arg(value_name = "NAME", value_parser = volume_name)]
        name: String,
    },
}

/// A volume and the models that it holds.
#[derive(Debug, Args)]
pub struct VolumeModels {
    /// The volume
    #[arg(value_name = "NAME", value_parser = volume_name)]
    pub name: String,
    /// Only these models [default: all]
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
}

/// moby, volume/names: what a path or a URL cannot be.
fn volume_name(text: &str) -> std::result::Result<String, String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && (2..=255).contains(&text.len()) && text.bytes().all(inner) {
        return Ok(text.to_owned());
    }
    Err("it is not 2 or more of `A-Z a-z 0-9 _ . -`, beginning with a letter or digit".to_owned())
}

/// What makes an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Builder {
    /// This program. It needs no engine.
    #[default]
    Oci,
    /// Docker Engine, from the Dockerfile.
    Docker,
}

fn variable(text: &str) -> std::result::Result<(String, String), String> {
    let first = |name: &str| name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let fits = |name: &str| first(name) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match text.split_once('=').filter(|(name, _)| fits(name)) {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("it is not `NAME=VALUE`".to_owned()),
    }
}

/// How models that state no strategy reach the container.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct Mode {
    /// Models become layers of the image
    #[arg(long)]
    embed: bool,
    /// Models stay outside; the image has the code only
    #[arg(long)]
    mount: bool,
}

impl Mode {
    /// The strategy.
    #[must_use]
    pub fn strategy(&self) -> Strategy {
        if self.embed { Strategy::Embed } else { Strategy::Mount }
    }
}

impl Global {
    /// Whether nothing that is locked may change.
    #[must_use]
    pub fn locked(&self) -> Option<&'static str> {
        match (self.locked, self.frozen) {
            (true, _) => Some("--locked"),
            (_, true) => Some("--frozen"),
            _ => None,
        }
    }

    /// How things are printed.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is where flags are read")]
    pub fn console(&self) -> Console {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Console::new(self.format, self.quiet, self.verbose, self.color, no_color)
    }

    /// The Cargo that runs this program, and the environment to compile in.
    #[must_use]
    pub fn cargo(&self) -> Cargo {
        let environment: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
        let program = environment.get(std::ffi::OsStr::new("CARGO")).map_or_else(|| "cargo".into(), PathBuf::from);
        Cargo { program, environment, offline: self.offline || self.frozen }
    }
}

/// `SOURCE_DATE_EPOCH` (<https://reproducible-builds.org/specs/source-date-epoch/>): whole seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "this is where flags are read")]
pub fn source_date_epoch() -> Result<Option<u64>> {
    let Some(value) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|value| !value.is_empty()) else { return Ok(None) };
    let text = value.to_string_lossy();
    let seconds = text.parse::<u64>().ok().filter(|seconds| *seconds < 253_402_300_800);
    seconds
        .map(Some)
        .ok_or("it is not a whole number of seconds since 1970")
        .or_fail(Kind::Usage, || format!("failed to read `SOURCE_DATE_EPOCH={}`", text.escape_debug()))
}

/// What the environment says of the engine.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is where flags are read")]
pub fn engine() -> Environment {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".docker"));
    Environment {
        host: text("DOCKER_HOST"),
        context: text("DOCKER_CONTEXT"),
        config: variable("DOCKER_CONFIG").map(PathBuf::from).or_else(home),
        tls: variable("DOCKER_TLS_VERIFY").is_some(),
        certificates: variable("DOCKER_CERT_PATH").map(PathBuf::from),
        runtime: variable("XDG_RUNTIME_DIR").map(PathBuf::from),
    }
}
