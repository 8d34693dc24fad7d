//! What the commands share that need an engine: find it, load an image into it, and compare its id with what it must be.

use std::collections::BTreeSet;

use model_lock::{Digest, human};

use crate::console::Console;
use crate::engine::endpoint::{Endpoint, Environment};
use crate::engine::{About, Engine, EngineImage, Store};
use crate::error::{Failure, Kind, Result};
use crate::flags;
use crate::oci::archive;
use crate::oci::assemble::{Image, MADE_BY};
use crate::oci::layer::Layer;
use crate::oci::reference::Reference;
use crate::plan::LOCK_LABEL;
use crate::stamp::Stamps;

/// Finds the engine, connects to it, and says which one it is.
pub(super) fn connect(console: &Console) -> Result<Engine> {
    let endpoint = flags::engine().endpoint()?.ok_or_else(Environment::nowhere)?;
    connect_to(&endpoint, console)
}

/// The same for those who can do without: where no engine answers and the user named none, a warning says why.
pub(super) fn connect_if_any(otherwise: &str, console: &Console) -> Result<Option<Engine>> {
    let failure = match flags::engine().endpoint()? {
        None => Environment::nowhere(),
        Some(endpoint) => match connect_to(&endpoint, console) {
            Ok(engine) => return Ok(Some(engine)),
            Err(failure) if endpoint.chosen => return Err(failure),
            Err(failure) => failure,
        },
    };
    console.warn(&failure.message, Some(otherwise));
    Ok(None)
}

fn connect_to(endpoint: &Endpoint, console: &Console) -> Result<Engine> {
    let engine = Engine::connect(endpoint)?;
    let About { product, version, api: (major, minor), store } = engine.about();
    let store = match store {
        Store::Containerd => "containerd image store",
        Store::GraphDriver => "graph driver",
    };
    console.status("Using", format!("{product} {version} (API {major}.{minor}, {store}) at {}", engine.endpoint()));
    if engine.endpoint().address.is_open() {
        let message =
            format!("{} is reached without TLS: what is sent can be read and changed on its way", engine.endpoint());
        console.warn(&message, Some("use `ssh://user@host`, or DOCKER_TLS_VERIFY=1 with DOCKER_CERT_PATH"));
    }
    Ok(engine)
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
    let name = reference.tagged();
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
        if load_partly(engine, loading, &known, is_it, wrong, console)? {
            engine.tag(&expected.to_string(), reference)?;
            engine.untag(&partial(reference).tagged())?;
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

/// Loads the image without the layers in `known`, under a name of its own: one of them may have gone meanwhile, or be
/// there in another form. Gives whether the engine has the whole image now; if not, it has nothing of it.
fn load_partly<'a>(
    engine: &Engine,
    loading: &Loading<'a>,
    known: &BTreeSet<Digest>,
    is_it: impl Fn(&EngineImage) -> bool,
    wrong: &mut Vec<&'a Layer>,
    console: &Console,
) -> Result<bool> {
    let partial = partial(loading.reference);
    let name = partial.tagged();
    if let Err(failure) = send(engine, loading, &partial, known, wrong, console) {
        if failure.kind != Kind::Engine {
            return Err(failure);
        }
        // An engine that needs what was left out says so and goes on; one that is gone answers no more.
        return engine.untag(&name).map(|()| false).map_err(|_| failure);
    }
    let whole = engine.is_whole(&name)? && engine.image(&name)?.is_some_and(|found| is_it(&found));
    if !whole {
        console.detail("Sending", || format!("all of {name}: the engine has layers of it in another form"));
        engine.untag(&name)?;
    }
    Ok(whole)
}

fn partial(reference: &Reference) -> Reference {
    reference.with_tag("model-lock-partial")
}

/// The layers of `image` that the engine has in images that were made from a lock.
fn known_layers(engine: &Engine, image: &Image) -> Result<BTreeSet<Digest>> {
    let digests: Vec<Digest> = image.layers.iter().map(|layer| layer.digest).collect();
    let mut known = BTreeSet::new();
    // containerd keeps the layers of images that the engine built compressed: they are there in another form.
    let made_by = (engine.about().store == Store::Containerd).then_some(MADE_BY);
    for layers in engine.layers_with(LOCK_LABEL, made_by)? {
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
    let what = format!("{} ({count} to send, {})", loading.reference.tagged(), human::bytes(total));
    let progress = console.progress("Loading", &what, total);
    engine.load(|out| {
        *wrong = archive::write(image, layers, reference, stamps, known, progress.counting(out))?;
        match wrong.first() {
            None => Ok(()),
            Some(layer) => Err(Failure::new(Kind::Integrity, format!("{} has another digest", layer.what))),
        }
    })
}
