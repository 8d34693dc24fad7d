//! What the workspace declares: `[workspace.metadata.models.*]` and each package's `[package.metadata.image]`, as Cargo
//! tells them. Everything is checked here, all problems are told at once, and what comes out are types.
//!
//! ```text
//! table    a table of a Cargo.toml: values of a type, and what is wrong with them
//! models   [workspace.metadata.models.*]
//! image    [package.metadata.image]
//! member   a package, as a Dockerfile needs it
//! ```

mod image;
mod member;
mod models;
mod table;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::MetadataCommand;
use model_lock::{ModelName, TargetPath};

use crate::error::{Failure, Kind, Result};
use crate::oci::reference::Reference;
use crate::source::Source;
use table::Problems;
pub use table::nearest;

/// Everything a workspace declares.
#[derive(Debug, Clone)]
pub struct Declaration {
    /// The workspace's folder.
    pub root: PathBuf,
    /// Cargo's target folder.
    pub target_dir: PathBuf,
    /// The models, sorted by name.
    pub models: Vec<DeclaredModel>,
    /// The packages that can become an image, sorted by name.
    pub images: Vec<DeclaredImage>,
    /// Every member of the workspace: what a Dockerfile copies to compile one of them.
    pub members: Vec<Member>,
}

/// `[workspace.metadata.models.NAME]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredModel {
    /// NAME.
    pub name: ModelName,
    /// Where it comes from.
    pub source: Source,
    /// Where it stands in a container.
    pub target: TargetPath,
    /// SPDX expression.
    pub license: Option<String>,
    /// Globs that choose files; none means all.
    pub include: Vec<String>,
    /// Globs that leave files out.
    pub exclude: Vec<String>,
    /// Other places with the same bytes.
    pub mirrors: Vec<String>,
    /// How it reaches a container, whatever the command line says for the rest.
    pub strategy: Option<Strategy>,
    /// Whether formats that can run code are accepted.
    pub allow_unsafe_format: bool,
}

/// How a model reaches a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Strategy {
    /// As layers of the image.
    Embed,
    /// As a mount, which the runtime manifest describes.
    Mount,
}

impl Strategy {
    /// The word for it, in declarations and file names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Embed => "embed",
            Self::Mount => "mount",
        }
    }
}

/// `[package.metadata.image]` and what an image takes from the package itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeclaredImage {
    /// The package's name.
    pub package: String,
    /// The package's version.
    pub version: String,
    /// The package's licence.
    pub license: Option<String>,
    /// The package's repository.
    pub repository: Option<String>,
    /// The binary that becomes the entrypoint.
    pub bin: String,
    /// The models that the app uses, sorted by name.
    pub models: Vec<ModelName>,
    /// The image below it; nothing for `scratch`.
    pub base: Option<Reference>,
    /// The image that compiles it in the Dockerfile.
    pub builder: Reference,
    /// TCP ports that it listens on.
    pub ports: Vec<u16>,
    /// Arguments with which the entrypoint checks a running container.
    pub healthcheck: Option<Vec<String>>,
    /// Environment variables of the image.
    pub env: BTreeMap<String, String>,
    /// Numeric `uid:gid` that it runs as.
    pub user: String,
    /// The target triple to compile for, if it is to be a certain one.
    pub target: Option<String>,
    /// Flags for the compiler, beside those that make images reproducible; nothing where none are declared.
    pub rustflags: Option<Vec<String>>,
}

/// A member of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// The package's name.
    pub name: String,
    /// Its folder, relative to the workspace; empty for the root package.
    pub folder: String,
    /// The source files of its library, binaries and build script, relative to the workspace, and which are programs.
    pub targets: Vec<(String, bool)>,
    /// The members it depends on, directly.
    pub depends_on: Vec<String>,
}

/// Nobody in particular: the user id that distroless images call `nonroot`.
pub const DEFAULT_USER: &str = "65532:65532";

/// Asks Cargo for the workspace around `folder` (or the current folder) and reads its declarations.
pub fn declare(folder: Option<&Path>) -> Result<Declaration> {
    let mut command = MetadataCommand::new();
    command.no_deps();
    if let Some(folder) = folder {
        command.current_dir(folder);
    }
    let metadata = command.exec().map_err(|error| {
        let cause = match error {
            cargo_metadata::Error::CargoMetadata { stderr } => stderr.trim().trim_start_matches("error: ").to_owned(),
            other => other.to_string(),
        };
        Failure::new(Kind::Usage, "failed to read the workspace with `cargo metadata`").because(cause)
    })?;
    let root = metadata.workspace_root.clone().into_std_path_buf();
    let mut problems = Problems::default();
    let models = models::models(&metadata.workspace_metadata, &mut problems);
    let mut images = Vec::new();
    let mut members = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = relative(&root, package.manifest_path.as_std_path());
        if let Some(image) = image::image(package, &manifest, &models, &mut problems) {
            images.push(image);
        }
        members.push(member::member(package, &root, &manifest, &metadata, &mut problems));
    }
    images.sort_by(|a, b| a.package.cmp(&b.package));
    members.sort_by(|a, b| a.name.cmp(&b.name));
    problems.into_result()?;
    Ok(Declaration { root, target_dir: metadata.target_directory.into_std_path_buf(), models, images, members })
}

impl Declaration {
    /// The folder for all that is made for images: `target/image`.
    #[must_use]
    pub fn image_dir(&self) -> PathBuf {
        self.target_dir.join("image")
    }

    /// The model with this name.
    pub fn model(&self, name: &str) -> Result<&DeclaredModel> {
        self.models.iter().find(|model| model.name.as_str() == name).ok_or_else(|| {
            let names: Vec<_> = self.models.iter().map(|model| model.name.as_str()).collect();
            let failure = Failure::new(Kind::Usage, format!("no model `{name}` is declared"));
            failure.help(match nearest(name, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => "declare it under `[workspace.metadata.models]` in Cargo.toml".to_owned(),
                None => format!("declared are: {}", names.join(", ")),
            })
        })
    }

    /// The image of `package`, or the only one there is.
    pub fn image(&self, package: Option<&str>) -> Result<&DeclaredImage> {
        let names: Vec<_> = self.images.iter().map(|image| image.package.as_str()).collect();
        match package {
            Some(name) => self.images.iter().find(|image| image.package == name).ok_or_else(|| {
                let failure = Failure::new(Kind::Usage, format!("package `{name}` declares no image"));
                failure.help(match nearest(name, names.iter().copied()) {
                    Some(near) => format!("did you mean `-p {near}`?"),
                    None => format!("add `[package.metadata.image]` to the Cargo.toml of `{name}`"),
                })
            }),
            None => match self.images.as_slice() {
                [only] => Ok(only),
                [] => Err(Failure::new(Kind::Usage, "no package of this workspace declares an image")
                    .help("add `[package.metadata.image]` to the Cargo.toml of the app")),
                _ => Err(Failure::new(Kind::Usage, format!("{} packages declare an image", names.len()))
                    .help(format!("choose one with `-p`: {}", names.join(", ")))),
            },
        }
    }
}

/// The path below `root` with `/` between components, or the whole path where it is not below.
fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().into_owned()
}
