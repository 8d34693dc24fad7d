//! `cargo xtask image`: from the declaration to an image and its digest.

use std::path::{Path, PathBuf};

use model_lock::verify::parallel;
use model_lock::{LockedModel, ModelLock, human};
use serde_json::json;

use crate::compile::{app_layer, app_recipe, compile, host_platform, target};
use crate::console::{Console, Progress};
use crate::context;
use crate::declare::{Declaration, DeclaredImage, DeclaredModel, declare};
use crate::dockerfile::{self, Rendered};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::flags::{self, Global, Image as Flags};
use crate::oci::archive;
use crate::oci::assemble::{Image, assemble};
use crate::oci::layer::{Layer, Recipe};
use crate::oci::layout::{Layout, Put};
use crate::oci::reference::Reference;
use crate::plan::{ImagePlan, Input, is_embedded, plan};
use crate::stamp::Stamps;
use crate::verify::{VerifiedModels, verify};
use crate::{git, lockfile, write};

/// The models of an app, declared and locked.
type Models<'a> = Vec<(&'a DeclaredModel, &'a LockedModel)>;

/// Runs it.
pub fn run(flags: &Flags, global: &Global, console: &Console) -> Result<()> {
    let declaration = declare(None)?;
    let image = declaration.image(flags.package.as_deref())?;
    let mode = flags.mode.strategy();
    let lock = lockfile::read_fresh(&declaration)?;
    let models = models_of(image, &declaration, &lock);
    let platform = flags.platform.clone().unwrap_or_else(host_platform);
    let epoch = flags::source_date_epoch()?;
    let input = Input {
        image,
        models: &models,
        lock: lock.digest(),
        mode,
        platform: &platform,
        commit: None,
        epoch,
        members: &declaration.members,
    };
    // The Dockerfile does not depend on the commit, and writing it can make the working copy dirty.
    let rendered = dockerfile::render(&plan(input)?);
    let folder = dockerfile_folder(&declaration, image);
    if flags.check {
        return check(&folder, &rendered, &dockerfile::command(&plan(input)?), console);
    }
    if !flags.dry_run && !flags.print_digest {
        render(&folder, &rendered, console)?;
    }
    let commit = git::commit(&declaration.root)?;
    let plan = plan(Input { commit: commit.as_ref(), ..input })?;
    let reference = match &flags.tag {
        Some(reference) => reference.clone(),
        None => format!("{}:{}", plan.package.to_lowercase(), mode.as_str())
            .parse()
            .or_fail(Kind::Usage, || format!("failed to name the image after the package `{}`", plan.package))
            .map_err(|failure| failure.help("name it with `--tag`"))?,
    };
    if flags.dry_run {
        dry_run(&plan, &reference, console);
        return Ok(());
    }
    let triple = target(image.target.as_deref(), &platform)?;
    let binary = compile(&declaration, image, &triple, &global.cargo(), console)?;
    let app = app_layer(&plan.app, &binary)?;
    let assembled = assemble(&plan, app);
    let mut place = None;
    if !flags.print_digest {
        let mut layers = model_layers(&declaration, &plan, &models)?;
        layers.push(Layer {
            locked: app,
            recipe: app_recipe(&plan.app, &binary),
            files: vec![binary.at.clone()],
            what: format!("the app `{}`", plan.package),
        });
        let work = Work { declaration: &declaration, plan: &plan, models: &models, lock: &lock, console };
        place = Some(work.write(&assembled, &layers, &reference, flags.output.as_deref())?);
    }
    report(&plan, &assembled, &reference, place.as_deref(), console);
    Ok(())
}

fn models_of<'a>(image: &DeclaredImage, declaration: &'a Declaration, lock: &'a ModelLock) -> Models<'a> {
    let used = declaration.models.iter().filter(|model| image.models.contains(&model.name));
    used.filter_map(|model| Some((model, lock.model(model.name.as_str())?))).collect()
}

/// Beside the workspace's Cargo.toml, or beside the package's where there are several images.
fn dockerfile_folder(declaration: &Declaration, image: &DeclaredImage) -> PathBuf {
    let member = declaration.members.iter().find(|member| member.name == image.package);
    match member {
        Some(member) if declaration.images.len() > 1 => declaration.root.join(&member.folder),
        _ => declaration.root.clone(),
    }
}

fn render(folder: &Path, rendered: &Rendered, console: &Console) -> Result<()> {
    for (name, text) in [(&rendered.name, &rendered.text), (&rendered.ignore_name, &rendered.ignore_text)] {
        if write::generated(&folder.join(name), text)? == write::Outcome::Written {
            console.status("Rendered", name);
        }
    }
    Ok(())
}

fn check(folder: &Path, rendered: &Rendered, command: &str, console: &Console) -> Result<()> {
    for (name, text) in [(&rendered.name, &rendered.text), (&rendered.ignore_name, &rendered.ignore_text)] {
        write::check(&folder.join(name), name, text, command)?;
    }
    console.status("Checked", format!("{} and {}: up to date", rendered.name, rendered.ignore_name));
    console.json(&json!({ "ok": true, "files": [rendered.name, rendered.ignore_name] }));
    Ok(())
}

fn dry_run(plan: &ImagePlan, reference: &Reference, console: &Console) {
    let labels: std::collections::BTreeMap<_, _> =
        plan.labels.iter().map(|(key, value)| (key, plan.text(value))).collect();
    let env: Vec<_> = plan.env.iter().map(|(name, value)| format!("{name}={}", plan.text(value))).collect();
    let layers: Vec<_> = plan
        .model_layers
        .iter()
        .map(|layer| {
            let files: Vec<_> = layer.files.iter().map(|file| layer.target.join(&file.path)).collect();
            json!({ "model": layer.model, "digest": layer.layer.digest, "size": layer.layer.size, "files": files })
        })
        .collect();
    let document = json!({
        "package": plan.package, "mode": plan.mode.as_str(), "reference": reference.to_string(),
        "platform": plan.platform.to_string(), "base": plan.base.as_ref().map_or("scratch".to_owned(), ToString::to_string),
        "model-layers": layers, "app": { "path": plan.app.path, "folders": plan.app.folders },
        "user": plan.user, "env": env, "entrypoint": plan.entrypoint, "ports": plan.ports, "labels": labels,
        "revision": plan.revision, "created": plan.created,
    });
    console.out(&serde_json::to_string_pretty(&document).unwrap_or_default());
}

/// The layers of embedded models with the places of their files.
fn model_layers(declaration: &Declaration, plan: &ImagePlan, models: &Models<'_>) -> Result<Vec<Layer>> {
    let mut places = std::collections::BTreeMap::new();
    for (model, locked) in models {
        for file in crate::verify::locate(&declaration.root, model, locked)?.0 {
            places.insert(file.file.in_container(), file.at);
        }
    }
    let layer = |layer: &crate::plan::ModelLayer| {
        let named: Vec<_> = layer.files.iter().map(|file| (&file.path, file.size)).collect();
        Layer {
            locked: layer.layer,
            recipe: Recipe::of_model(&layer.target, &named),
            files: layer.files.iter().filter_map(|file| places.get(&layer.target.join(&file.path)).cloned()).collect(),
            what: format!("model `{}`", layer.model),
        }
    };
    Ok(plan.model_layers.iter().map(layer).collect())
}

/// What writing an image needs to know.
struct Work<'a> {
    declaration: &'a Declaration,
    plan: &'a ImagePlan,
    models: &'a Models<'a>,
    lock: &'a ModelLock,
    console: &'a Console,
}

impl Work<'_> {
    /// Writes the image where it is wanted and says where that is.
    fn write(&self, image: &Image, layers: &[Layer], reference: &Reference, output: Option<&Path>) -> Result<PathBuf> {
        if self.plan.base.is_some() {
            return Err(Failure::new(Kind::Usage, "the built-in builder makes images on `scratch` only, so far").help(
                format!(
                    "build `{}` with `docker buildx build`, or set `base = \"scratch\"`",
                    dockerfile::name(self.plan.mode)
                ),
            ));
        }
        let work = self.declaration.target_dir.join("image");
        write::folder(&work)?;
        // One run at a time: two would remove each other's temporary files.
        let guard = std::fs::File::create(work.join(".lock"))
            .or_fail(Kind::Io, || format!("failed to lock `{}`", work.display()))?;
        guard.lock().or_fail(Kind::Io, || format!("failed to lock `{}`", work.display()))?;
        let stamps = Stamps::load(work.join("stamps.json"));
        if let Some(archive) = output.filter(|path| path.extension().is_some_and(|extension| extension == "tar")) {
            self.write_archive(image, layers, reference, archive, &stamps)?;
            return Ok(archive.to_owned());
        }
        let default = work.join(&self.plan.package).join(self.plan.mode.as_str()).join("oci");
        if output.is_none() {
            // The default folder is this program's own: an image under another tag is replaced.
            write::folder(&default)?;
        }
        let folder = output.unwrap_or(&default);
        let layout = Layout::open(folder, output.map(|_| reference))?;
        let total = layers.iter().map(|layer| layer.locked.size).sum();
        let what = format!("{} ({}, {})", reference, human::count(layers.len(), "layer"), human::bytes(total));
        let progress = self.console.progress("Assembling", &what, total);
        let puts = parallel(layers, |layer| self.put(&layout, layer, &stamps, &progress));
        drop(progress);
        let mut wrong = Vec::new();
        for (layer, put) in layers.iter().zip(puts) {
            if put? == Put::Mismatch {
                wrong.push(layer);
            }
        }
        let verified = self.verified(&wrong, &stamps);
        stamps.save()?;
        let verified = verified?;
        layout.finish(image, reference)?;
        if output.is_none() && !self.plan.model_layers.is_empty() {
            let copied = context::stage(&self.declaration.root, self.plan, self.lock, &verified, &stamps)?;
            if copied > 0 {
                self.console
                    .status("Staged", format!("{} in {} for `docker build`", human::bytes(copied), context::FOLDER));
            }
            stamps.save()?;
        }
        Ok(folder.to_owned())
    }

    fn put(&self, layout: &Layout, layer: &Layer, stamps: &Stamps, progress: &Progress) -> Result<Put> {
        let planned = self.plan.model_layers.iter().find(|planned| planned.layer == layer.locked);
        let digests: Vec<_> = planned.into_iter().flat_map(|planned| &planned.files).map(|file| file.digest).collect();
        match layout.put(layer, &digests, stamps, progress) {
            // What is missing or unreadable is a finding for `verify` to tell, with all the others.
            Err(failure)
                if planned.is_some() && failure.kind == Kind::Io && layer.files.iter().any(|file| !file.is_file()) =>
            {
                Ok(Put::Mismatch)
            }
            other => other,
        }
    }

    /// The proof that the embedded models are those of the lock. Files that were just written into a layer that came
    /// out right are known to be; the others are read.
    fn verified(&self, wrong: &[&Layer], stamps: &Stamps) -> Result<VerifiedModels> {
        let embedded: Models<'_> =
            self.models.iter().filter(|(model, _)| is_embedded(model, self.plan.mode)).copied().collect();
        match verify(&self.declaration.root, &embedded, Some(stamps), self.console)? {
            Err(report) => Err(report.into_failure()),
            Ok(verified) => match wrong.first() {
                None => Ok(verified),
                Some(layer) => Err(Failure::new(Kind::Integrity, format!("the layer of {} does not have the digest that it must have", layer.what))
                    .details([format!("expected {} ({} bytes)", layer.locked.digest, human::grouped(layer.locked.size))])
                    .help("was a file written to meanwhile? run the command again; if it stays so, `cargo xtask lock --check`")),
            },
        }
    }

    fn write_archive(
        &self,
        image: &Image,
        layers: &[Layer],
        reference: &Reference,
        path: &Path,
        stamps: &Stamps,
    ) -> Result<()> {
        self.console.status("Assembling", format!("{reference} in {}", path.display()));
        let mut wrong = Vec::new();
        let written = write::stream(path, |file| {
            wrong = archive::write(image, layers, reference, std::io::BufWriter::with_capacity(1 << 20, file))?;
            if wrong.is_empty() { Ok(()) } else { Err(Failure::new(Kind::Integrity, "a layer has another digest")) }
        });
        let verified = self.verified(&wrong, stamps);
        stamps.save()?;
        verified?;
        written
    }
}

fn report(plan: &ImagePlan, image: &Image, reference: &Reference, place: Option<&Path>, console: &Console) {
    let digest = image.manifest.digest;
    if let Some(place) = place {
        console.status("Finished", format!("{reference} at {}", place.display()));
    }
    console.data(&digest.to_string());
    let models = plan.model_layers.iter().map(|layer| (layer.layer, Some(layer.model.as_str())));
    let apps = image.layers.iter().skip(plan.model_layers.len()).map(|layer| (*layer, None));
    let layers: Vec<_> = models
        .chain(apps)
        .map(|(layer, model)| json!({ "digest": layer.digest, "size": layer.size, "model": model }))
        .collect();
    console.json(&json!({
        "ok": true, "digest": digest, "config": image.config.digest, "reference": reference.to_string(),
        "platform": plan.platform.to_string(), "mode": plan.mode.as_str(), "revision": plan.revision, "layers": layers,
        "path": place,
    }));
}
