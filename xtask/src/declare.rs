//! What the workspace declares: `[workspace.metadata.models.*]` and each package's `[package.metadata.image]`, as Cargo
//! tells them. Everything is checked here, all problems are told at once, and what comes out are types.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cargo_metadata::{MetadataCommand, TargetKind};
use model_lock::lock::colliding_targets;
use model_lock::{ModelName, TargetPath};
use serde_json::{Map, Value};

use crate::error::{Failure, Kind, Result};
use crate::oci::reference::Reference;
use crate::source::Source;

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

/// The image that compiles an app unless another one is declared: the official Rust image.
const DEFAULT_BUILDER: &str =
    "docker.io/library/rust:1.95.0-alpine3.22@sha256:064dfc925d68d1a63f4fd2871bd7dc6e6ea56692989a487185855d62885d90aa";

/// Nobody in particular: the user id that distroless images call `nonroot`.
const DEFAULT_USER: &str = "65532:65532";

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
    let models = models(&metadata.workspace_metadata, &mut problems);
    let mut images = Vec::new();
    let mut members = Vec::new();
    for package in metadata.workspace_packages() {
        let manifest = relative(&root, package.manifest_path.as_std_path());
        if let Some(image) = image(package, &manifest, &models, &mut problems) {
            images.push(image);
        }
        members.push(member(package, &root, &manifest, &metadata, &mut problems));
    }
    images.sort_by(|a, b| a.package.cmp(&b.package));
    members.sort_by(|a, b| a.name.cmp(&b.name));
    problems.into_result()?;
    Ok(Declaration { root, target_dir: metadata.target_directory.into_std_path_buf(), models, images, members })
}

impl Declaration {
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

/// The known word that is closest to `word`, if any is close.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// What is wrong in the declarations, in the order it was met.
#[derive(Debug, Default)]
struct Problems(Vec<String>);

impl Problems {
    fn push(&mut self, table: &Table<'_>, key: &str, problem: impl std::fmt::Display) {
        self.0.push(format!("`{}`: `{}.{key}` {problem}", table.file, table.name));
    }

    fn into_result(self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(Failure::new(Kind::Policy, "the declaration has an error").details(self.0)),
            count => Err(Failure::new(Kind::Policy, format!("the declaration has {count} errors")).details(self.0)),
        }
    }
}

/// One table of a Cargo.toml, with what is needed to talk about it.
struct Table<'a> {
    file: &'a str,
    name: String,
    values: &'a Map<String, Value>,
}

impl<'a> Table<'a> {
    /// The value as a table with these keys only.
    fn new(file: &'a str, name: String, value: &'a Value, keys: &[&str], problems: &mut Problems) -> Option<Self> {
        let Value::Object(values) = value else {
            problems.0.push(format!("`{file}`: `{name}` is {}, expected a table", kind_of(value)));
            return None;
        };
        let table = Self { file, name, values };
        for key in values.keys().filter(|key| !keys.contains(&key.as_str())) {
            match nearest(key, keys.iter().copied()) {
                Some(near) => problems.push(&table, key, format!("is not a known key; did you mean `{near}`?")),
                None => problems.push(&table, key, format!("is not a known key; known are {}", keys.join(", "))),
            }
        }
        Some(table)
    }

    fn string(&self, key: &str, problems: &mut Problems) -> Option<&'a str> {
        match self.values.get(key)? {
            Value::String(text) if text.is_empty() => problems.push(self, key, "is empty"),
            Value::String(text) if text.chars().any(char::is_control) => {
                problems.push(self, key, format!("has a control character: `{}`", text.escape_debug()));
            }
            Value::String(text) => return Some(text),
            other => problems.push(self, key, format!("is {}, expected a string", kind_of(other))),
        }
        None
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self, key: &str, problems: &mut Problems) -> Option<T> {
        // Types that parse say themselves what they make of a control character.
        let text = match self.values.get(key)? {
            Value::String(text) => text,
            other => {
                problems.push(self, key, format!("is {}, expected a string", kind_of(other)));
                return None;
            }
        };
        text.parse().map_err(|error| problems.push(self, key, format!("is refused: {error}"))).ok()
    }

    fn strings(&self, key: &str, problems: &mut Problems) -> Option<Vec<String>> {
        let Value::Array(values) = self.values.get(key)? else {
            problems.push(self, key, format!("is {}, expected a list of strings", kind_of(&self.values[key])));
            return None;
        };
        let mut texts = Vec::new();
        for value in values {
            match value {
                Value::String(text) if !text.is_empty() && !text.chars().any(char::is_control) => {
                    texts.push(text.clone());
                }
                other => problems.push(
                    self,
                    key,
                    format!("has the item `{other}`, expected strings without control characters"),
                ),
            }
        }
        Some(texts)
    }

    fn boolean(&self, key: &str, problems: &mut Problems) -> bool {
        match self.values.get(key) {
            None => false,
            Some(Value::Bool(value)) => *value,
            Some(other) => {
                problems.push(self, key, format!("is {}, expected `true` or `false`", kind_of(other)));
                false
            }
        }
    }
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("the boolean `{value}`"),
        Value::Number(value) => format!("the number `{value}`"),
        Value::String(value) => format!("the string `{}`", value.escape_debug()),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a table".to_owned(),
    }
}

const MODEL_KEYS: [&str; 8] =
    ["source", "target", "license", "include", "exclude", "mirrors", "strategy", "allow-unsafe-format"];

fn models(metadata: &Value, problems: &mut Problems) -> Vec<DeclaredModel> {
    let Some(declared) = metadata.get("models") else { return Vec::new() };
    let name = "workspace.metadata.models".to_owned();
    let Value::Object(tables) = declared else {
        problems.0.push(format!("`Cargo.toml`: `{name}` is {}, expected a table of models", kind_of(declared)));
        return Vec::new();
    };
    let mut models = Vec::new();
    for (key, value) in tables {
        let Some(table) = Table::new("Cargo.toml", format!("{name}.{key}"), value, &MODEL_KEYS, problems) else {
            continue;
        };
        let name = match key.parse::<ModelName>() {
            Ok(name) => name,
            Err(error) => {
                problems.0.push(format!("`Cargo.toml`: `{}` is refused: {error}", table.name));
                continue;
            }
        };
        let strategy = table.string("strategy", problems).and_then(|text| match text {
            "embed" => Some(Strategy::Embed),
            "mount" => Some(Strategy::Mount),
            _ => {
                problems.push(&table, "strategy", format!("is `{text}`, expected `embed` or `mount`"));
                None
            }
        });
        if !table.values.contains_key("source") {
            problems.push(&table, "source", "is missing: name a file or folder of the workspace, or a URL");
        }
        let target = table.parsed("target", problems);
        let mut globs = |key: &str| {
            let globs = table.strings(key, problems).unwrap_or_default();
            for glob in &globs {
                if let Err(error) = glob::Pattern::new(glob) {
                    problems.push(&table, key, format!("has the glob `{glob}`, which is refused: {error}"));
                }
            }
            globs
        };
        let (include, exclude) = (globs("include"), globs("exclude"));
        let license = table.string("license", problems).map(str::to_owned);
        let mirrors = table.strings("mirrors", problems).unwrap_or_default();
        let allow_unsafe_format = table.boolean("allow-unsafe-format", problems);
        let Some(source) = table.parsed::<Source>("source", problems) else { continue };
        let target = target.unwrap_or_else(|| TargetPath::default_for(&name));
        models.push(DeclaredModel {
            name,
            source,
            target,
            license,
            include,
            exclude,
            mirrors,
            strategy,
            allow_unsafe_format,
        });
    }
    for collision in colliding_targets(models.iter().map(|model| (&model.name, &model.target))) {
        problems.0.push(format!("`Cargo.toml`: {collision}"));
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}

const IMAGE_KEYS: [&str; 9] = ["models", "base", "builder", "ports", "bin", "env", "healthcheck", "target", "user"];

fn image(
    package: &cargo_metadata::Package,
    manifest: &str,
    declared: &[DeclaredModel],
    problems: &mut Problems,
) -> Option<DeclaredImage> {
    let value = package.metadata.get("image")?;
    let table = Table::new(manifest, "package.metadata.image".to_owned(), value, &IMAGE_KEYS, problems)?;
    let known = || declared.iter().map(|model| model.name.as_str());
    let models = match table.strings("models", problems) {
        None => declared.iter().map(|model| model.name.clone()).collect(),
        Some(names) => {
            let mut models = Vec::new();
            for name in names {
                if let Some(model) = declared.iter().find(|model| model.name.as_str() == name) {
                    models.push(model.name.clone());
                } else {
                    let near =
                        nearest(&name, known()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    problems.push(
                        &table,
                        "models",
                        format!("names `{name}`, which is not declared in `Cargo.toml`{near}"),
                    );
                }
            }
            models.sort();
            models.dedup();
            models
        }
    };
    let base = match table.string("base", problems) {
        None | Some("scratch") => None,
        Some(text) => Reference::pinned(text).map_err(|error| problems.push(&table, "base", error)).ok(),
    };
    let builder = table.string("builder", problems).unwrap_or(DEFAULT_BUILDER);
    let builder = Reference::pinned(builder).map_err(|error| problems.push(&table, "builder", error)).ok();
    let ports = ports(&table, problems);
    let healthcheck = table.strings("healthcheck", problems);
    let env = environment(&table, problems);
    let user = table.string("user", problems).unwrap_or(DEFAULT_USER);
    let numeric = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
    if !user.split_once(':').is_some_and(|(uid, gid)| numeric(uid) && numeric(gid)) {
        problems.push(
            &table,
            "user",
            format!("is `{user}`, expected a numeric `UID:GID` other than root, as in `{DEFAULT_USER}`"),
        );
    }
    let target = table.string("target", problems).map(str::to_owned);
    if let Some(target) = target.as_deref().filter(|target| !target.contains("-linux-")) {
        problems.push(
            &table,
            "target",
            format!("is `{target}`, expected a triple for Linux, as in `x86_64-unknown-linux-musl`"),
        );
    }
    for (key, value) in [("license", &package.license), ("repository", &package.repository)] {
        if let Some(text) = value.as_ref().filter(|text| text.chars().any(char::is_control)) {
            let text = text.escape_debug();
            problems.0.push(format!("`{manifest}`: `package.{key}` has a control character: `{text}`"));
        }
    }
    let bin = bin(package, &table, problems);
    Some(DeclaredImage {
        package: package.name.to_string(),
        version: package.version.to_string(),
        license: package.license.clone(),
        repository: package.repository.clone(),
        bin: bin?,
        models,
        base,
        builder: builder?,
        ports,
        healthcheck,
        env,
        user: user.to_owned(),
        target,
    })
}

fn bin(package: &cargo_metadata::Package, table: &Table<'_>, problems: &mut Problems) -> Option<String> {
    let bins: Vec<&str> = package
        .targets
        .iter()
        .filter(|target| target.is_kind(TargetKind::Bin))
        .map(|target| target.name.as_str())
        .collect();
    match (table.string("bin", problems), bins.as_slice()) {
        (Some(name), _) if bins.contains(&name) => return Some(name.to_owned()),
        (Some(name), _) => {
            problems.push(table, "bin", format!("is `{name}`, which is no binary of `{}`", package.name));
        }
        (None, [only]) => return Some((*only).to_owned()),
        (None, []) => problems.push(table, "bin", format!("has nothing to name: `{}` has no binary", package.name)),
        (None, _) => match package.default_run.as_deref().filter(|name| bins.contains(name)) {
            Some(name) => return Some(name.to_owned()),
            None => problems.push(table, "bin", format!("is missing: choose one of {}", bins.join(", "))),
        },
    }
    None
}

fn ports(table: &Table<'_>, problems: &mut Problems) -> Vec<u16> {
    let Some(value) = table.values.get("ports") else { return Vec::new() };
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let ports: Option<Vec<u16>> = value.as_array().and_then(|ports| ports.iter().map(number).collect());
    let Some(mut ports) = ports else {
        problems.push(table, "ports", format!("is `{value}`, expected a list of numbers from 1 to 65535"));
        return Vec::new();
    };
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Environment variables that the image sets itself.
const OWN_ENV: [&str; 2] = ["PATH", "IMAGE_REVISION"];

fn environment(table: &Table<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let Some(value) = table.values.get("env") else { return environment };
    let Value::Object(values) = value else {
        problems.push(table, "env", format!("is {}, expected a table", kind_of(value)));
        return environment;
    };
    for (name, value) in values {
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        let key = format!("env.{name}");
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            problems.push(table, &key, "is not a name for an environment variable");
        } else if OWN_ENV.contains(&name.as_str()) {
            problems.push(table, &key, "is set by the image itself");
        } else {
            match value {
                Value::String(text) if !text.chars().any(char::is_control) => {
                    environment.insert(name.clone(), text.clone());
                }
                other => problems.push(
                    table,
                    &key,
                    format!("is {}, expected a string without control characters", kind_of(other)),
                ),
            }
        }
    }
    environment
}

fn member(
    package: &cargo_metadata::Package,
    root: &Path,
    manifest: &str,
    metadata: &cargo_metadata::Metadata,
    problems: &mut Problems,
) -> Member {
    let wanted = [
        TargetKind::Bin,
        TargetKind::Lib,
        TargetKind::ProcMacro,
        TargetKind::CustomBuild,
        TargetKind::CDyLib,
        TargetKind::RLib,
    ];
    let mut targets: Vec<(String, bool)> = package
        .targets
        .iter()
        .filter(|target| target.kind.iter().any(|kind| wanted.contains(kind)))
        .map(|target| {
            let program = target.is_kind(TargetKind::Bin) || target.is_kind(TargetKind::CustomBuild);
            (relative(root, target.src_path.as_std_path()), program)
        })
        .collect();
    targets.sort();
    let mut depends_on = Vec::new();
    for dependency in package.dependencies.iter().filter(|dependency| dependency.path.is_some()) {
        if metadata.workspace_packages().iter().any(|member| member.name.as_str() == dependency.name) {
            depends_on.push(dependency.name.clone());
        } else if let Some(path) = &dependency.path {
            problems.0.push(format!(
                "`{manifest}`: dependency `{}` at `{path}` is not a member of the workspace, so no image can be built from the workspace alone",
                dependency.name
            ));
        }
    }
    depends_on.sort();
    depends_on.dedup();
    let folder = manifest.strip_suffix("Cargo.toml").unwrap_or(manifest).trim_end_matches('/').to_owned();
    Member { name: package.name.to_string(), folder, targets, depends_on }
}
