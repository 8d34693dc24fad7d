//! What the commands share that need an engine: find it, load an image into it, build with it, and compare what it has
//! with what it must have.

use std::collections::BTreeSet;

use model_lock::{Digest, human};
use serde_json::json;

use super::prepare::{Planned, shown};
use super::upload;
use crate::build_context::BuildContext;
use crate::console::Console;
use crate::engine::{About, Build, Engine, EngineImage, Store};
use crate::error::{Failure, Kind, Result};
use crate::flags::{self, Image as Flags};
use crate::oci::archive;
use crate::oci::assemble::Image;
use crate::oci::layer::Layer;
use crate::oci::reference::Reference;
use crate::plan::{ImagePlan, LOCK_LABEL};
use crate::stamp::Stamps;
use crate::verify::verify;

/// Finds the engine, connects to it, and says which one it is.
pub(super) fn connect(console: &Console) -> Result<Engine> {
    let engine = Engine::connect(&flags::engine().endpoint()?)?;
    let About { product, version, api: (major, minor), store } = engine.about();
    let store = match store {
        Store::Containerd => "containerd image store",
        Store::GraphDriver => "graph driver",
    };
    console.status("Using", format!("{product} {version} (API {major}.{minor}, {store}) at {}", engine.endpoint()));
    Ok(engine)
}

/// The name that an image gets in an engine: names there have a tag and no digest.
pub(super) fn name(reference: &Reference) -> String {
    format!("{}:{}", reference.name(), reference.tag().unwrap_or("latest"))
}

/// An image that is to be loaded.
pub(super) struct Loading<'a> {
    /// Its documents.
    pub(super) image: &'a Image,
    /// Its layers with the places of their bytes.
    pub(super) layers: &'a [Layer],
    /// Its name.
    pub(super) reference: &'a Reference,
    /// Of the files that are read.
    pub(super) stamps: &'a Stamps,
    /// Fails unless the files of layers that are not sent are as they must be.
    pub(super) proof: &'a dyn Fn() -> Result<()>,
}

/// Loads the image under its name and gives its id, which is compared with what it must be. An image that the engine has
/// already is not sent, and nothing is said; nor is a layer sent that it has. A layer that comes out wrong is put into
/// `wrong`, and the engine keeps what it had.
pub(super) fn load<'a>(
    engine: &Engine,
    loading: &Loading<'a>,
    wrong: &mut Vec<&'a Layer>,
    console: &Console,
) -> Result<String> {
    let Loading { image, reference, .. } = loading;
    let name = name(reference);
    let expected = match engine.about().store {
        Store::Containerd => image.manifest.digest,
        Store::GraphDriver => image.config.digest,
    };
    let diff_ids: Vec<String> = image.layers.iter().map(|layer| layer.digest.to_string()).collect();
    let is_it = |found: &EngineImage| found.id == expected.to_string() && found.layers == diff_ids;
    if engine.image(&name)?.is_some_and(|found| is_it(&found)) {
        (loading.proof)()?;
        console.detail("Unchanged", || format!("{name}: the engine has it"));
        return Ok(expected.to_string());
    }
    let known = known_layers(engine, image)?;
    if !known.is_empty() {
        (loading.proof)()?;
        // Under a name of its own until it is known to be whole: a layer that was left out may have gone meanwhile, or
        // be there in another form.
        let partial = reference.with_tag("model-lock-partial");
        let loaded = send(engine, loading, &partial, &known, wrong, console);
        let partial = self::name(&partial);
        let whole = match loaded {
            Ok(()) => engine.is_whole(&partial)? && engine.image(&partial)?.is_some_and(|found| is_it(&found)),
            Err(failure) if failure.kind != Kind::Engine => return Err(failure),
            Err(_) => false,
        };
        if whole {
            engine.tag(&expected.to_string(), reference)?;
        }
        engine.untag(&partial)?;
        if whole {
            return Ok(expected.to_string());
        }
    }
    send(engine, loading, reference, &[].into(), wrong, console)?;
    match engine.image(&name)? {
        Some(found) if is_it(&found) => Ok(found.id),
        Some(found) => Err(Failure::new(Kind::Integrity, format!("the engine made another image of `{name}`"))
            .details([format!("expected {expected}"), format!("found    {}", found.id)])
            .help("remove it with `docker image rm` and load it again; if it stays so, see the engine's log")),
        None => Err(Failure::new(Kind::Engine, format!("the engine took `{name}` and does not have it"))
            .help("see the engine's log, then run the command again")),
    }
}

/// The layers of `image` that the engine has in images that were made from a lock.
fn known_layers(engine: &Engine, image: &Image) -> Result<BTreeSet<Digest>> {
    let digests: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let mut known = BTreeSet::new();
    for layers in engine.layers_with(LOCK_LABEL)? {
        let is_there = |digest: &&Digest| layers.contains(&digest.to_string());
        match engine.about().store {
            Store::Containerd => known.extend(digests.iter().filter(is_there)),
            // A layer is known by all that is below it, too.
            Store::GraphDriver => {
                let pairs = digests.iter().zip(&layers);
                known.extend(
                    pairs.take_while(|(digest, layer)| digest.to_string() == **layer).map(|(digest, _)| *digest),
                );
            }
        }
    }
    Ok(known)
}

/// Streams the image under the name `reference` without the layers in `known`.
fn send<'a>(
    engine: &Engine,
    loading: &Loading<'a>,
    reference: &Reference,
    known: &BTreeSet<Digest>,
    wrong: &mut Vec<&'a Layer>,
    console: &Console,
) -> Result<()> {
    let Loading { image, layers, stamps, .. } = *loading;
    let sent: Vec<_> = layers.iter().filter(|layer| !known.contains(&layer.locked.digest)).collect();
    let total = sent.iter().map(|layer| layer.locked.size).sum();
    let count = human::count(layers.len(), "layer");
    let count = if known.is_empty() { count } else { format!("{} of {count}", sent.len()) };
    let what = format!("{} ({count} to send, {})", name(loading.reference), human::bytes(total));
    let progress = console.progress("Loading", &what, total);
    engine.load(|out| {
        let out = Counted { out, each: |bytes| progress.add(bytes) };
        *wrong = archive::write(image, layers, reference, stamps, known, out)?;
        match wrong.first() {
            None => Ok(()),
            Some(layer) => Err(Failure::new(Kind::Integrity, format!("{} has another digest", layer.what))),
        }
    })
}

/// A writer that tells how much was written.
struct Counted<W, F> {
    out: W,
    each: F,
}

impl<W: std::io::Write, F: Fn(u64)> std::io::Write for Counted<W, F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.out.write(bytes)?;
        (self.each)(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

/// Builds the plan's Dockerfile with the engine, compares the image with the plan, and gives it its name.
pub(super) fn build(planned: &Planned, flags: &Flags, console: &Console) -> Result<()> {
    let Planned { plan, declaration, reference, rendered, .. } = planned;
    if flags.print_digest || flags.model_image || flags.output.is_some() {
        return Err(Failure::new(Kind::Usage, "an image that the engine builds is in the engine, and nowhere else")
            .help("leave `--builder docker` out for `--print-digest`, `--model-image` and `--output`"));
    }
    let engine = connect(console)?;
    engine.require_link()?;
    let layers = planned.layers(&plan.model_layers)?;
    let context = BuildContext::collect(&declaration.root, plan, rendered, &layers)
        .map_err(|failure| report(planned, failure, console))?;
    let mut arguments: std::collections::BTreeMap<_, _> =
        [("REVISION".to_owned(), plan.revision.clone()), ("SOURCE_DATE_EPOCH".to_owned(), plan.created.to_string())]
            .into();
    arguments.extend(flags.build_args.iter().cloned());
    let build = Build {
        dockerfile: rendered.name.clone(),
        arguments,
        network: flags.network.clone(),
        platform: plan.platform.to_string(),
    };
    let dockerfile = shown(&declaration.root, &planned.folder.join(&rendered.name));
    let size = format!("{}, {}", human::count(context.sources.len(), "file"), human::bytes(context.recipe.size()));
    let steps = console.steps("Building", &format!("{dockerfile} ({size})"), context.recipe.size());
    let outcome = engine
        .build(&build, &steps, |out| upload::send(&context.recipe, &context.sources, out, |bytes| steps.add(bytes)));
    drop(steps);
    let id = outcome.map_err(|failure| report(planned, failure, console))?;
    let image = engine.image(&id)?.ok_or_else(|| {
        Failure::new(Kind::Engine, format!("the engine built `{id}` and does not have it"))
            .help("see the engine's log, then run the command again")
    })?;
    let differences = differences(plan, &image);
    if !differences.is_empty() {
        return Err(Failure::new(Kind::Integrity, "the engine built another image than was planned")
            .details(differences)
            .help(format!(
                "the name `{reference}` stays as it was; `--builder oci` makes the image without the engine"
            )));
    }
    engine.tag(&id, reference)?;
    console.status("Finished", format!("{} in the engine", name(reference)));
    console.data(&id);
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            let model = plan.model_layers.iter().find(|planned| planned.layer.digest.to_string() == *layer);
            json!({ "digest": layer, "model": model.map(|planned| planned.model.as_str()) })
        })
        .collect();
    console.json(&json!({
        "ok": true, "digest": id, "reference": reference.to_string(), "platform": plan.platform.to_string(),
        "mode": plan.mode.as_str(), "revision": plan.revision, "layers": layers,
    }));
    Ok(())
}

/// The findings of all models in place of the first wrong byte.
fn report(planned: &Planned, failure: Failure, console: &Console) -> Failure {
    if failure.kind != Kind::Integrity && failure.kind != Kind::Io {
        return failure;
    }
    match verify(&planned.declaration.root, &planned.models_by(crate::declare::Strategy::Embed), None, console) {
        Ok(Err(report)) => report.into_failure(),
        Ok(Ok(_)) | Err(_) => failure,
    }
}

/// Where an image that an engine built is not what was planned.
fn differences(plan: &ImagePlan, image: &EngineImage) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |what: &str, expected: String, found: String| {
        if expected != found {
            lines.extend([what.to_owned(), format!("  expected {expected}"), format!("  found    {found}")]);
        }
    };
    // Above the base's layers and below the program's.
    let models: Vec<String> = plan.model_layers.iter().map(|layer| layer.layer.digest.to_string()).collect();
    let below = image.layers.len().saturating_sub(1);
    let base = below.saturating_sub(models.len());
    compare("the layers of the models", models.join(", "), image.layers[base..below].join(", "));
    if plan.base.is_none() {
        compare("the number of layers", (models.len() + 1).to_string(), image.layers.len().to_string());
    }
    compare("the user", plan.user.clone(), image.user.clone());
    compare("the entrypoint", format!("{:?}", plan.entrypoint), format!("{:?}", image.entrypoint));
    compare("the platform", plan.platform.to_string(), image.platform.clone());
    let command =
        plan.healthcheck.iter().flat_map(|command| std::iter::once("CMD").chain(command.iter().map(String::as_str)));
    // A base may have a health check, variables, labels and ports of its own.
    let own = plan.base.is_none();
    if own || plan.healthcheck.is_some() {
        compare("the health check", format!("{:?}", command.collect::<Vec<_>>()), format!("{:?}", image.healthcheck));
    }
    for (name, value) in &plan.env {
        let prefix = format!("{name}=");
        let found = image.env.iter().find_map(|line| line.strip_prefix(&prefix));
        compare(&format!("the variable `{name}`"), plan.text(value).to_owned(), found.unwrap_or("nothing").to_owned());
    }
    for (key, value) in &plan.labels {
        let found = image.labels.get(key).map_or("nothing", String::as_str);
        compare(&format!("the label `{key}`"), plan.text(value).to_owned(), found.to_owned());
    }
    for port in &plan.ports {
        let port = format!("{port}/tcp");
        let found = if image.ports.contains(&port) { port.clone() } else { "nothing".to_owned() };
        compare("a port", port, found);
    }
    if own {
        compare("the number of variables", plan.env.len().to_string(), image.env.len().to_string());
        compare("the number of labels", plan.labels.len().to_string(), image.labels.len().to_string());
        compare("the number of ports", plan.ports.len().to_string(), image.ports.len().to_string());
    }
    lines
}
