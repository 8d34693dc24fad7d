//! `cargo xtask image`: render the Dockerfile, build the image, print its digest.

use std::path::{Path, PathBuf};

use model_lock::human;
use model_lock::verify::parallel;
use serde_json::json;

use super::build::build;
use super::engine;
use super::manifest::{model_reference, write_mounts};
use super::prepare::{Assembled, Dockerfile, Planned, Request, prepare, shown, stamps};
use crate::console::{Console, Progress};
use crate::context;
use crate::declare::{DeclaredModel, Strategy};
use crate::dockerfile;
use crate::engine::Engine;
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::flags::{Builder, Global, Image as Flags};
use crate::mounts::ImagePlace;
use crate::oci::archive;
use crate::oci::assemble::{Image, assemble_models};
use crate::oci::layer::Layer;
use crate::oci::layout::{Layout, Put};
use crate::oci::reference::Reference;
use crate::plan::{ModelLayer, layers_of};
use crate::stamp::Stamps;
use crate::verify::{VerifiedModels, verify};
use crate::write;

/// Runs it.
pub fn run(flags: &Flags, global: &Global, console: &Console) -> Result<()> {
    let write_dockerfile = !(flags.check || flags.dry_run || flags.print_digest);
    let planned = prepare(
        &Request {
            package: flags.package.as_deref(),
            mode: flags.mode.strategy(),
            tag: flags.tag.as_ref(),
            platform: flags.platform.as_ref(),
            dockerfile: if write_dockerfile { Dockerfile::Write } else { Dockerfile::Leave },
        },
        console,
    )?;
    if flags.check {
        return check(&planned, console);
    }
    if flags.dry_run {
        console.out(&serde_json::to_string_pretty(&planned.to_json()).unwrap_or_default());
        return Ok(());
    }
    if flags.builder == Builder::Docker {
        return build(&planned, flags, console);
    }
    if !flags.build_args.is_empty() || flags.network.is_some() {
        return Err(Failure::new(
            Kind::Usage,
            "`--build-arg` and `--network` are for the engine, which builds the Dockerfile",
        )
        .help("add `--builder docker`, or leave them out"));
    }
    let engine = if flags.load { Some(engine::connect(console)?) } else { None };
    let assembled = planned.assemble(global, console)?;
    let place = if flags.print_digest {
        None
    } else {
        Work::begin(&planned, console)?.write(&assembled, flags, engine.as_ref())?
    };
    report(&planned, &assembled.image, place.as_deref(), console);
    Ok(())
}

/// Compares the generated files with what they should be.
fn check(planned: &Planned, console: &Console) -> Result<()> {
    let command = dockerfile::command(&planned.plan);
    for (name, text) in planned.rendered.files() {
        write::check(&planned.folder.join(name), name, text, &command)?;
    }
    let names = planned.rendered.files().map(|(name, _)| name);
    console.status("Checked", format!("{}: up to date", names.join(" and ")));
    console.json(&json!({ "ok": true, "files": names }));
    Ok(())
}

/// An image on its way to the disk.
pub(super) struct Work<'a> {
    planned: &'a Planned,
    console: &'a Console,
    stamps: Stamps,
    /// Held while this run writes: two at a time would remove each other's temporary files.
    _guard: std::fs::File,
}

impl<'a> Work<'a> {
    pub(super) fn begin(planned: &'a Planned, console: &'a Console) -> Result<Self> {
        if planned.plan.base.is_some() {
            let name = &planned.rendered.name;
            return Err(Failure::new(Kind::Usage, "the built-in builder makes images on `scratch` only, so far")
                .help(format!("build `{name}` with `docker buildx build`, or set `base = \"scratch\"`")));
        }
        let folder = planned.declaration.image_dir();
        write::folder(&folder)?;
        let fail = || format!("failed to lock `{}`", folder.display());
        let guard = std::fs::File::create(folder.join(".lock")).or_fail(Kind::Io, fail)?;
        if guard.try_lock().is_err() {
            console.status("Blocking", format!("waiting for another run to leave `{}`", folder.display()));
            guard.lock().or_fail(Kind::Io, fail)?;
        }
        Ok(Self { planned, console, stamps: stamps(&planned.declaration), _guard: guard })
    }

    /// Writes the image where it is wanted, which may be an engine only, and says where that is.
    fn write(&self, assembled: &Assembled, flags: &Flags, engine: Option<&Engine>) -> Result<Option<PathBuf>> {
        let output = flags.output.as_deref();
        let result = match output.filter(|path| path.extension().is_some_and(|extension| extension == "tar")) {
            Some(archive) => self.write_archive(assembled, archive).map(Some),
            None if engine.is_some() && output.is_none() => Ok(None),
            None => self.write_layout(assembled, output).map(Some),
        };
        // Also after a failure: what was read once need not be read again.
        self.stamps.save()?;
        let place = result?;
        if let Some(engine) = engine {
            self.load(engine, assembled)?;
        }
        if output.is_none() && !self.planned.plan.mounted.is_empty() {
            if flags.model_image {
                self.write_model_image()?;
            }
            let place = if engine.is_some() { ImagePlace::Engine } else { ImagePlace::Layout };
            let digest = assembled.image.manifest.digest;
            write_mounts(self.planned, digest, place, flags.kubernetes, self.console)?;
        }
        self.stamps.save()?;
        Ok(place)
    }

    fn write_layout(&self, assembled: &Assembled, output: Option<&Path>) -> Result<PathBuf> {
        let default = self.planned.output().join("oci");
        let folder = output.unwrap_or(&default);
        // The default folder is this program's own: an image under another tag is replaced.
        let layout = Layout::open(folder, output.map(|_| &self.planned.reference))?.sharing(self.siblings());
        let verified = self.put_all(&layout, &self.planned.reference, &assembled.layers, Strategy::Embed)?;
        layout.finish(&assembled.image, &self.planned.reference)?;
        if output.is_none() && !self.planned.plan.model_layers.is_empty() {
            let Planned { declaration, plan, lock, .. } = self.planned;
            let copied = context::stage(&declaration.root, plan, lock, &verified, &self.stamps)?;
            if copied > 0 {
                let size = human::bytes(copied);
                self.console.status("Staged", format!("{size} in {} for `docker build`", dockerfile::FOLDER));
            }
        }
        Ok(folder.to_owned())
    }

    /// Every layout of this package: embedded, mounted and model images have layers in common.
    fn siblings(&self) -> Vec<PathBuf> {
        let folder = self.planned.package_dir();
        let modes = [Strategy::Embed, Strategy::Mount].map(|mode| folder.join(mode.as_str()));
        modes.iter().flat_map(|mode| [mode.join("oci"), mode.join("models-oci")]).collect()
    }

    /// Puts every layer into the layout and gives the proof that the models of `strategy` are those of the lock.
    fn put_all(
        &self,
        layout: &Layout,
        reference: &Reference,
        layers: &[Layer],
        strategy: Strategy,
    ) -> Result<VerifiedModels> {
        let total = layers.iter().map(|layer| layer.locked.size).sum();
        let what = format!("{reference} ({}, {})", human::count(layers.len(), "layer"), human::bytes(total));
        let progress = self.console.progress("Assembling", &what, total);
        let puts = parallel(layers, |layer| self.put(layout, layer, &progress));
        drop(progress);
        let mut wrong = Vec::new();
        for (layer, put) in layers.iter().zip(puts) {
            if put? == Put::Mismatch {
                wrong.push(layer);
            }
        }
        self.verified(&wrong, strategy)
    }

    fn put(&self, layout: &Layout, layer: &Layer, progress: &Progress) -> Result<Put> {
        match layout.put(layer, &self.stamps, progress) {
            // A model file that is missing or no file is a finding for `verify` to tell, with all the others.
            Err(failure)
                if failure.kind == Kind::Io
                    && !layer.digests.is_empty()
                    && layer.files.iter().any(|file| !file.is_file()) =>
            {
                Ok(Put::Mismatch)
            }
            other => other,
        }
    }

    /// The proof that the models of `strategy` are those of the lock. Files that were just written into a layer that
    /// came out right are known to be; the others are read.
    pub(super) fn verified(&self, wrong: &[&Layer], strategy: Strategy) -> Result<VerifiedModels> {
        let models: Vec<(&DeclaredModel, _)> = self.planned.models_by(strategy);
        match verify(&self.planned.declaration.root, &models, Some(&self.stamps), self.console)? {
            Err(report) => Err(report.into_failure()),
            Ok(verified) => match wrong.first() {
                None => Ok(verified),
                Some(layer) => Err(Failure::new(
                    Kind::Integrity,
                    format!("the layer of {} does not have the digest that it must have", layer.what),
                )
                .details([format!("expected {} ({} bytes)", layer.locked.digest, human::grouped(layer.locked.size))])
                .help("was a file written to meanwhile? run the command again; if it stays so, `cargo xtask lock --check`")),
            },
        }
    }

    /// What is known of files that were read.
    pub(super) fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    /// Keeps what is known of the files that were read, and lets another run begin.
    pub(super) fn finish(self) -> Result<()> {
        self.stamps.save()
    }

    /// Streams the image into the engine and gives its id there.
    pub(super) fn load(&self, engine: &Engine, assembled: &Assembled) -> Result<String> {
        let (mut wrong, Assembled { image, layers, .. }) = (Vec::new(), assembled);
        let reference = &self.planned.reference;
        let proof = &|| self.verified(&[], Strategy::Embed).map(|_| ());
        let loading = engine::Loading { image, layers, reference, stamps: &self.stamps, proof };
        let loaded = engine::load(engine, &loading, &mut wrong, self.console);
        if !wrong.is_empty() || loaded.as_ref().is_err_and(|failure| failure.kind == Kind::Io) {
            // Findings of all models rather than the first byte that is not as it must be.
            self.verified(&wrong, Strategy::Embed)?;
        }
        loaded
    }

    fn write_archive(&self, assembled: &Assembled, path: &Path) -> Result<PathBuf> {
        let reference = &self.planned.reference;
        self.console.status("Assembling", format!("{reference} in {}", path.display()));
        let mut wrong = Vec::new();
        let written = write::stream(path, |file| {
            let file = std::io::BufWriter::with_capacity(1 << 20, file);
            wrong = archive::write(&assembled.image, &assembled.layers, reference, &self.stamps, &[].into(), file)?;
            if wrong.is_empty() { Ok(()) } else { Err(Failure::new(Kind::Integrity, "a layer has another digest")) }
        });
        self.verified(&wrong, Strategy::Embed)?;
        written?;
        Ok(path.to_owned())
    }

    /// Writes the image of the mounted models.
    fn write_model_image(&self) -> Result<()> {
        let Planned { plan, .. } = self.planned;
        let reference = model_reference(self.planned)?;
        let planned: Vec<ModelLayer> = plan.mounted.iter().flat_map(layers_of).collect();
        let layers = self.planned.layers(&planned)?;
        let layout = Layout::open(&self.planned.output().join("models-oci"), None)?.sharing(self.siblings());
        self.put_all(&layout, &reference, &layers, Strategy::Mount)?;
        layout.finish(&assemble_models(plan), &reference)
    }
}

fn report(planned: &Planned, image: &Image, place: Option<&Path>, console: &Console) {
    let Planned { plan, reference, declaration, .. } = planned;
    let digest = image.manifest.digest;
    if let Some(place) = place {
        console.status("Finished", format!("{reference} at {}", shown(&declaration.root, place)));
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
