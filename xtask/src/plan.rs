//! An image as a value, before anything is built: which layers in which order, and everything that stands in its
//! config. PURE: no file, clock, environment or network. The Dockerfile and the OCI image are both made from this one
//! value, so they cannot disagree.

use std::collections::BTreeMap;

use model_lock::path::in_root;
use model_lock::{Digest, LockedFile, LockedLayer, LockedModel, ModelName, TargetPath};

use crate::cargo_config::Own;
use crate::declare::{DeclaredImage, DeclaredModel, Member, Strategy};
use crate::error::{Failure, Kind, Result};
use crate::git::Commit;
use crate::oci::reference::Reference;
use crate::oci::spec::Platform;

/// Engines stack no more layers than this (overlayfs; moby `layer.MaxLayerDepth` is 128 with the container's own).
pub const MAX_LAYERS: usize = 127;

/// The label that holds the digest of models.lock.
pub const LOCK_LABEL: &str = "io.github.model-lock.lock-digest";

/// The environment variable that tells the app which commit its image was made from.
pub const REVISION_VARIABLE: &str = "IMAGE_REVISION";

/// What Docker gives an image without a PATH. It is written down because not every runtime does.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The folder of the program.
const BIN: &str = "/usr/local/bin";

/// An image to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlan {
    /// The package of the app.
    pub package: String,
    /// How models that state no strategy reach the container.
    pub mode: Strategy,
    /// What it runs on.
    pub platform: Platform,
    /// The image below; nothing for `scratch`.
    pub base: Option<Reference>,
    /// The image that compiles the app in a Dockerfile.
    pub builder: Reference,
    /// The layers of embedded models, lowest first. They lie below the code, which changes more often.
    pub model_layers: Vec<ModelLayer>,
    /// The models that stay outside, sorted by name.
    pub mounted: Vec<LockedModel>,
    /// The layer with the program.
    pub app: AppPlan,
    /// Numeric `uid:gid`.
    pub user: String,
    /// Environment variables: `PATH` first, as engines do, then by name.
    pub env: Vec<(String, Text)>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// The program with the arguments that check a running container.
    pub healthcheck: Option<Vec<String>>,
    /// TCP ports, sorted.
    pub ports: Vec<u16>,
    /// Labels.
    pub labels: BTreeMap<String, Text>,
    /// The commit, with `-dirty` where the working copy differs; empty outside git.
    pub revision: String,
    /// Seconds since 1970.
    pub created: u64,
    /// The members of the workspace, and whether the app depends on them.
    pub members: Vec<(Member, bool)>,
    /// The workspace's configuration of Cargo.
    pub cargo: Own,
    /// Flags for the compiler, beside those that make images reproducible.
    pub rustflags: Vec<String>,
}

/// A canonical layer of an embedded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelLayer {
    /// The model.
    pub model: ModelName,
    /// Where it stands.
    pub target: TargetPath,
    /// Digest and size, from models.lock.
    pub layer: LockedLayer,
    /// The files that it holds.
    pub files: Vec<LockedFile>,
}

/// The layer with the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppPlan {
    /// The binary's name, as Cargo has it.
    pub bin: String,
    /// Its absolute path in the container.
    pub path: String,
    /// The targets of all models, as empty folders.
    pub folders: Vec<String>,
}

/// A value of a label or variable. The commit is apart: a Dockerfile is committed and cannot name its own commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// This text.
    Literal(String),
    /// The plan's revision.
    Revision,
}

/// What a plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// The image's declaration.
    pub image: &'a DeclaredImage,
    /// The app's models, declared and locked, sorted by name.
    pub models: &'a [(&'a DeclaredModel, &'a LockedModel)],
    /// The digest of models.lock.
    pub lock: Digest,
    /// How models that state no strategy reach the container.
    pub mode: Strategy,
    /// What it runs on.
    pub platform: &'a Platform,
    /// The commit.
    pub commit: Option<&'a Commit>,
    /// Seconds since 1970, instead of the commit's time.
    pub epoch: Option<u64>,
    /// Every member of the workspace.
    pub members: &'a [Member],
    /// The workspace's configuration of Cargo.
    pub cargo: &'a Own,
}

/// Whether `model` becomes layers when the rest goes the way of `mode`.
#[must_use]
pub fn is_embedded(model: &DeclaredModel, mode: Strategy) -> bool {
    model.strategy.unwrap_or(mode) == Strategy::Embed
}

/// Makes the plan.
pub fn plan(input: Input<'_>) -> Result<ImagePlan> {
    let Input { image, models, lock, mode, platform, commit, epoch, members, cargo } = input;
    let mut model_layers = Vec::new();
    let mut mounted = Vec::new();
    for (model, locked) in models {
        if is_embedded(model, mode) {
            model_layers.extend(layers_of(locked));
        } else {
            mounted.push((*locked).clone());
        }
    }
    let count = model_layers.len() + 1;
    if count > MAX_LAYERS {
        return Err(Failure::new(
            Kind::Policy,
            format!("the image would have {count} layers, and engines stack no more than {MAX_LAYERS}"),
        )
        .help("give some models `strategy = \"mount\"`, or leave files out with `exclude`"));
    }
    let path = format!("{BIN}/{}", image.bin);
    for (model, _) in models {
        let target = model.target.as_str();
        let within = |inner: &str, outer: &str| inner == outer || inner.starts_with(&format!("{outer}/"));
        if within(&path, target) || within(target, &path) {
            return Err(Failure::new(
                Kind::Policy,
                format!("model `{}`: target `{target}` would hide the program `{path}`", model.name),
            )
            .help("choose another `target` in Cargo.toml, as in `/models/NAME`"));
        }
    }
    let literal = |text: &str| Text::Literal(text.to_owned());
    let mut env: BTreeMap<String, Text> =
        image.env.iter().map(|(name, value)| (name.clone(), literal(value))).collect();
    env.insert(REVISION_VARIABLE.to_owned(), Text::Revision);
    let env = std::iter::once(("PATH".to_owned(), literal(PATH))).chain(env).collect();
    let compiled = depended_on(&image.package, members);
    Ok(ImagePlan {
        package: image.package.clone(),
        mode,
        platform: platform.clone(),
        base: image.base.clone(),
        builder: image.builder.clone(),
        labels: labels(image, models, lock, mode),
        app: AppPlan {
            bin: image.bin.clone(),
            folders: models.iter().map(|(model, _)| model.target.to_string()).collect(),
            path: path.clone(),
        },
        model_layers,
        mounted,
        user: image.user.clone(),
        env,
        healthcheck: image
            .healthcheck
            .as_ref()
            .map(|arguments| std::iter::once(&path).chain(arguments).cloned().collect()),
        entrypoint: vec![path],
        ports: image.ports.clone(),
        revision: commit.map(Commit::revision).unwrap_or_default(),
        created: epoch.or(commit.map(|commit| commit.time)).unwrap_or(0),
        members: members.iter().map(|member| (member.clone(), compiled.contains(&member.name.as_str()))).collect(),
        cargo: cargo.clone(),
        rustflags: image.rustflags.clone().unwrap_or_default(),
    })
}

/// The layers of a model.
#[must_use]
pub fn layers_of(locked: &LockedModel) -> Vec<ModelLayer> {
    let layer = |(layer, files): (LockedLayer, Vec<&LockedFile>)| ModelLayer {
        model: locked.name.clone(),
        target: locked.target.clone(),
        layer,
        files: files.into_iter().cloned().collect(),
    };
    locked.layers().into_iter().map(layer).collect()
}

/// The package and the members that it depends on, directly or not.
fn depended_on<'a>(package: &'a str, members: &'a [Member]) -> Vec<&'a str> {
    let mut found = vec![package];
    let mut next = 0;
    while let Some(name) = found.get(next).copied() {
        for dependency in members.iter().filter(|member| member.name == name).flat_map(|member| &member.depends_on) {
            if !found.contains(&dependency.as_str()) {
                found.push(dependency);
            }
        }
        next += 1;
    }
    found
}

/// image-spec, annotations.md, "Pre-Defined Annotation Keys", as labels.
fn labels(
    image: &DeclaredImage,
    models: &[(&DeclaredModel, &LockedModel)],
    lock: Digest,
    mode: Strategy,
) -> BTreeMap<String, Text> {
    let mut labels = BTreeMap::new();
    let mut set = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            labels.insert(key.to_owned(), Text::Literal(value));
        }
    };
    // The licences of everything that is inside: an SPDX expression of them all.
    let embedded =
        models.iter().filter(|(model, _)| is_embedded(model, mode)).map(|(_, locked)| locked.license.as_ref());
    let mut licenses: Vec<&String> = Vec::new();
    for license in std::iter::once(image.license.as_ref()).chain(embedded).flatten() {
        if !licenses.contains(&license) {
            licenses.push(license);
        }
    }
    let expression = match licenses.as_slice() {
        [] => None,
        [only] => Some((*only).clone()),
        many => {
            let bracketed = many
                .iter()
                .map(|license| if license.contains(' ') { format!("({license})") } else { (*license).clone() });
            Some(bracketed.collect::<Vec<_>>().join(" AND "))
        }
    };
    set("org.opencontainers.image.title", Some(image.package.clone()));
    set("org.opencontainers.image.version", Some(image.version.clone()));
    set("org.opencontainers.image.licenses", expression);
    set("org.opencontainers.image.source", image.repository.clone());
    set(LOCK_LABEL, Some(lock.to_string()));
    labels.insert("org.opencontainers.image.revision".to_owned(), Text::Revision);
    labels
}

impl ImagePlan {
    /// The text itself.
    #[must_use]
    pub fn text<'a>(&'a self, text: &'a Text) -> &'a str {
        match text {
            Text::Literal(text) => text,
            Text::Revision => &self.revision,
        }
    }

    /// The targets of the mounted models, each with its path in a volume that stands for `/models`: a target elsewhere
    /// has its whole path there.
    #[must_use]
    pub fn targets(&self) -> Vec<(&str, &str)> {
        self.mounted.iter().map(|model| (model.target.as_str(), in_root(model.target.as_str()))).collect()
    }

    /// What such a volume is mounted at: once at `/models` if all mounted models are below it and no embedded one is,
    /// which it would hide; or once for each model, with its path in the volume.
    #[must_use]
    pub fn volume_mounts(&self) -> Vec<(&str, Option<&str>)> {
        let below = |target: &TargetPath| target.as_str().starts_with(&format!("{}/", TargetPath::DEFAULT_ROOT));
        if self.mounted.iter().all(|model| below(&model.target))
            && !self.model_layers.iter().any(|layer| below(&layer.target))
        {
            return vec![(TargetPath::DEFAULT_ROOT, None)];
        }
        self.targets().into_iter().map(|(target, path)| (target, Some(path))).collect()
    }
}
