//! What `image` and `run` share: from the declaration to an image whose every digest is known, with the places of its
//! bytes. Where the image goes is not decided here.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use model_lock::{LockedModel, ModelLock};
use serde_json::json;

use crate::compile::{AppBinary, app_layer, app_recipe, compile, host_platform, target};
use crate::console::Console;
use crate::declare::{Declaration, DeclaredImage, DeclaredModel, Strategy, declare};
use crate::dockerfile::{self, Rendered};
use crate::error::{Kind, OrFail as _, Result};
use crate::flags::{self, Global};
use crate::oci::assemble::{Image, assemble};
use crate::oci::layer::{Layer, Recipe};
use crate::oci::reference::Reference;
use crate::oci::spec::Platform;
use crate::plan::{ImagePlan, Input, ModelLayer, is_embedded, plan};
use crate::stamp::Stamps;
use crate::verify::locate;
use crate::{cargo_config, git, lockfile, write};

/// Which image is wanted.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// The package; the only one if none is named.
    pub package: Option<&'a str>,
    /// How models that state no strategy reach the container.
    pub mode: Strategy,
    /// The image's name; `PKG:embed` or `PKG:mount` if none is given.
    pub tag: Option<&'a Reference>,
    /// What it runs on; this machine's processor if nothing is given.
    pub platform: Option<&'a Platform>,
    /// What becomes of the Dockerfile.
    pub dockerfile: Dockerfile,
}

/// What becomes of the Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dockerfile {
    /// It is written, unless it is there as it should be.
    Write,
    /// It stays as it is.
    Leave,
}

/// An image that is planned, and nothing done for it but its Dockerfile.
#[derive(Debug)]
pub struct Planned {
    /// The workspace.
    pub declaration: Declaration,
    /// Its lock, which fits it.
    pub lock: ModelLock,
    /// The image's declaration.
    pub declared: DeclaredImage,
    /// The app's models, sorted by name.
    pub models: Vec<(DeclaredModel, LockedModel)>,
    /// The plan.
    pub plan: ImagePlan,
    /// The image's name.
    pub reference: Reference,
    /// The Dockerfile, as it should be.
    pub rendered: Rendered,
    /// The folder of the Dockerfile.
    pub folder: PathBuf,
}

/// Plans the image.
pub fn prepare(request: &Request<'_>, console: &Console) -> Result<Planned> {
    let declaration = declare(None)?;
    let declared = declaration.image(request.package)?.clone();
    let lock = lockfile::read_fresh(&declaration)?;
    let used = declaration.models.iter().filter(|model| declared.models.contains(&model.name));
    let models: Vec<_> =
        used.filter_map(|model| Some((model.clone(), lock.model(model.name.as_str())?.clone()))).collect();
    let borrowed: Vec<_> = models.iter().map(|(model, locked)| (model, locked)).collect();
    let platform = request.platform.cloned().unwrap_or_else(host_platform);
    let cargo = cargo_config::own(&declaration.root);
    if declared.rustflags.is_none() && !cargo.rustflags.is_empty() {
        let message =
            format!("images are compiled without `{}` of Cargo's configuration", cargo.rustflags.join("`, `"));
        let help =
            "declare what they need as `rustflags` in `[package.metadata.image]`, or `rustflags = []` for nothing";
        console.warn(&message, Some(help));
    }
    let input = Input {
        image: &declared,
        models: &borrowed,
        lock: lock.digest(),
        mode: request.mode,
        platform: &platform,
        commit: None,
        epoch: flags::source_date_epoch()?,
        members: &declaration.members,
        cargo: &cargo,
    };
    // The Dockerfile does not depend on the commit, and writing it can make the working copy dirty.
    let rendered = dockerfile::render(&plan(input)?);
    let folder = dockerfile_folder(&declaration, &declared);
    if request.dockerfile == Dockerfile::Write {
        for (name, text) in rendered.files() {
            if write::generated(&folder.join(name), text)? == write::Outcome::Written {
                console.status("Rendered", name);
            }
        }
    }
    let commit = git::commit(&declaration.root)?;
    let plan = plan(Input { commit: commit.as_ref(), ..input })?;
    let reference = match request.tag {
        Some(reference) => reference.clone(),
        None => format!("{}:{}", plan.package.to_lowercase(), plan.mode.as_str())
            .parse()
            .or_fail(Kind::Usage, || format!("failed to name the image after the package `{}`", plan.package))
            .map_err(|failure| failure.help("name it with `--tag`"))?,
    };
    Ok(Planned { declaration, lock, declared, models, plan, reference, rendered, folder })
}

/// Beside the workspace's Cargo.toml, or beside the package's where there are several images.
fn dockerfile_folder(declaration: &Declaration, image: &DeclaredImage) -> PathBuf {
    let member = declaration.members.iter().find(|member| member.name == image.package);
    match member {
        Some(member) if declaration.images.len() > 1 => declaration.root.join(&member.folder),
        _ => declaration.root.clone(),
    }
}

/// An image whose every digest is known.
#[derive(Debug)]
pub struct Assembled {
    /// Its documents.
    pub image: Image,
    /// Its layers with the places of their bytes: those of models, then the app's.
    pub layers: Vec<Layer>,
    /// The app.
    pub binary: AppBinary,
}

impl Planned {
    /// Compiles the app and assembles the image. No model is read.
    pub fn assemble(&self, global: &Global, console: &Console) -> Result<Assembled> {
        let triple = target(self.declared.target.as_deref(), &self.plan.platform)?;
        let binary = compile(&self.declaration, &self.declared, &triple, &global.cargo(), console)?;
        let app = app_layer(&self.plan.app, &binary)?;
        let mut layers = self.layers(&self.plan.model_layers)?;
        layers.push(Layer {
            locked: app,
            recipe: app_recipe(&self.plan.app, &binary),
            files: vec![binary.at.clone()],
            digests: Vec::new(),
            what: format!("the app `{}`", self.plan.package),
        });
        Ok(Assembled { image: assemble(&self.plan, app), layers, binary })
    }

    /// Where the files of the app's models are, by their paths in a container.
    pub fn places(&self) -> Result<BTreeMap<String, PathBuf>> {
        let mut places = BTreeMap::new();
        for (model, locked) in &self.models {
            for file in locate(&self.declaration.root, model, locked)?.0 {
                places.insert(file.file.in_container(), file.at);
            }
        }
        Ok(places)
    }

    /// These layers with the places of their files.
    pub fn layers(&self, planned: &[ModelLayer]) -> Result<Vec<Layer>> {
        let places = self.places()?;
        let layer = |layer: &ModelLayer| {
            let named: Vec<_> = layer.files.iter().map(|file| (&file.path, file.size)).collect();
            let place = |file: &model_lock::LockedFile| places.get(&layer.target.join(&file.path)).cloned();
            Layer {
                locked: layer.layer,
                recipe: Recipe::of_model(&layer.target, &named),
                files: layer.files.iter().filter_map(place).collect(),
                digests: layer.files.iter().map(|file| file.digest).collect(),
                what: format!("model `{}`", layer.model),
            }
        };
        Ok(planned.iter().map(layer).collect())
    }

    /// The models that are embedded, or those that are mounted, declared and locked.
    #[must_use]
    pub fn models_by(&self, strategy: Strategy) -> Vec<(&DeclaredModel, &LockedModel)> {
        let embedded = strategy == Strategy::Embed;
        let models = self.models.iter().map(|(model, locked)| (model, locked));
        models.filter(|(model, _)| is_embedded(model, self.plan.mode) == embedded).collect()
    }

    /// The folder for all images of this package: `target/image/PKG`.
    #[must_use]
    pub fn package_dir(&self) -> PathBuf {
        self.declaration.image_dir().join(&self.plan.package)
    }

    /// The folder for what is made for this image: `target/image/PKG/MODE`.
    #[must_use]
    pub fn output(&self) -> PathBuf {
        self.package_dir().join(self.plan.mode.as_str())
    }

    /// The plan as JSON, for `--dry-run`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let plan = &self.plan;
        let labels: BTreeMap<_, _> = plan.labels.iter().map(|(key, value)| (key, plan.text(value))).collect();
        let env: Vec<_> = plan.env.iter().map(|(name, value)| format!("{name}={}", plan.text(value))).collect();
        let layers: Vec<_> = plan
            .model_layers
            .iter()
            .map(|layer| {
                let files: Vec<_> = layer.files.iter().map(|file| layer.target.join(&file.path)).collect();
                json!({ "model": layer.model, "digest": layer.layer.digest, "size": layer.layer.size, "files": files })
            })
            .collect();
        let mounted: Vec<_> =
            plan.mounted.iter().map(|model| json!({ "model": model.name, "target": model.target })).collect();
        json!({
            "package": plan.package, "mode": plan.mode.as_str(), "reference": self.reference.to_string(),
            "platform": plan.platform.to_string(),
            "base": plan.base.as_ref().map_or("scratch".to_owned(), ToString::to_string),
            "model-layers": layers, "mounts": mounted,
            "app": { "path": plan.app.path, "folders": plan.app.folders },
            "user": plan.user, "env": env, "entrypoint": plan.entrypoint, "ports": plan.ports, "labels": labels,
            "revision": plan.revision, "created": plan.created,
        })
    }
}

/// What is known of files that were read before.
#[must_use]
pub fn stamps(declaration: &Declaration) -> Stamps {
    Stamps::load(declaration.image_dir().join("stamps.json"))
}

/// `path` for people: relative to the workspace where it is inside.
#[must_use]
pub fn shown(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).display().to_string()
}
