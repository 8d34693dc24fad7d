//! `cargo xtask volume`: a volume of the engine that holds the models as models.lock pins them, for containers that mount
//! it at /models. A stamp in it says what it holds; it is written last, and taken back before anything is changed, so a
//! volume that a run left half filled says so.

use std::collections::BTreeMap;
use std::path::PathBuf;

use model_lock::{LockedModel, ModelLock, human};
use serde_json::json;

use super::engine;
use super::prepare::stamps;
use crate::compile::host_platform;
use crate::console::Console;
use crate::declare::{DEFAULT_USER, Declaration, DeclaredModel, declare};
use crate::engine::{Engine, Entry, Helper};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::flags::{Volume as Flags, VolumeAction, VolumeModels};
use crate::lockfile;
use crate::oci::assemble::assemble_folder;
use crate::oci::layer::{Layer, Recipe};
use crate::oci::reference::Reference;
use crate::oci::tar;
use crate::stamp::Stamps;
use crate::upload::{Source, send};
use crate::verify::{self, Report, verify};
use crate::volume::{self, Files, Held, Wanted};

/// The label of a volume that this program made.
const LABEL: &str = "io.github.model-lock.volume";

/// The image of the container that reaches the volume. It is never started.
const HELPER: &str = "model-lock/volume:1";

/// Runs it.
pub fn run(flags: &Flags, console: &Console) -> Result<()> {
    match &flags.action {
        VolumeAction::Sync(volume) => sync(volume, console),
        VolumeAction::Verify(volume) => verify_volume(volume, console),
        VolumeAction::Rm { name } => remove(name, console),
    }
}

/// Models, declared and locked.
type Models<'a> = Vec<(&'a DeclaredModel, &'a LockedModel)>;

/// Those of `names`, or all.
fn models<'a>(names: &[String], declaration: &'a Declaration, lock: &'a ModelLock) -> Result<Models<'a>> {
    for name in names {
        declaration.model(name)?;
    }
    let chosen = |name: &str| names.is_empty() || names.iter().any(|wanted| wanted == name);
    let models = declaration.models.iter().filter(|model| chosen(model.name.as_str()));
    Ok(models.filter_map(|model| Some((model, lock.model(model.name.as_str())?))).collect())
}

fn sync(flags: &VolumeModels, console: &Console) -> Result<()> {
    let declaration = declare(None)?;
    let lock = lockfile::read_fresh(&declaration)?;
    let engine = engine::connect(console)?;
    let filled = fill(&engine, flags, &declaration, &lock, &stamps(&declaration), console)?;
    console.data(&lock.digest().to_string());
    console.json(&json!({
        "ok": true, "volume": flags.name, "lock": lock.digest(), "changed": filled.changed, "files": filled.files,
        "sent": filled.sent,
    }));
    Ok(())
}

/// What filling a volume came to.
pub(super) struct Filled {
    changed: bool,
    files: usize,
    sent: usize,
}

/// Verifies the models and makes the volume hold them and nothing else. What it holds as it must be is not sent.
pub(super) fn fill(
    engine: &Engine,
    volume: &VolumeModels,
    declaration: &Declaration,
    lock: &ModelLock,
    stamps: &Stamps,
    console: &Console,
) -> Result<Filled> {
    let name = &volume.name;
    let models = models(&volume.models, declaration, lock)?;
    let verified = verify(&declaration.root, &models, Some(stamps), console)?;
    stamps.save()?;
    let verified = verified.map_err(Report::into_failure)?;
    let places = verified.files().iter().map(|file| (file.in_container.as_str(), file.at.clone())).collect();
    let wanted = volume::files(models.iter().map(|(_, locked)| *locked))?;
    let helper_image = helper_image(engine, stamps, console)?;
    let existing = owned(engine, name)?;
    if !existing {
        engine.create_volume(name, &[(LABEL, "1")])?;
    }
    let mut helper = engine.helper(&helper_image, name)?;
    let mut held = if existing { read(&helper, name, &wanted, console)? } else { Held::default() };
    if held.has_extra(&wanted) {
        // An engine can write into a volume and not delete from it.
        console.status("Removing", format!("the volume {name}: it holds files that models.lock does not have"));
        drop(helper);
        engine.remove_volume(name)?;
        engine.create_volume(name, &[(LABEL, "1")])?;
        helper = engine.helper(&helper_image, name)?;
        held = Held::default();
    }
    let missing = held.missing(&wanted);
    let stamp = volume::stamp(&wanted, lock.digest(), true);
    let changed = !missing.is_empty() || !held.has_stamp(&stamp);
    if changed {
        if held.is_stamped() {
            put_stamp(&helper, volume::stamp(&wanted, lock.digest(), false))?;
        }
        put(&helper, name, &missing, &places, console)?;
        put_stamp(&helper, stamp)?;
    }
    let verb = if changed { "Filled" } else { "Unchanged" };
    let sent = human::count(missing.len(), "file");
    console.status(verb, format!("the volume {name} ({}; {sent} sent)", size(&wanted)));
    Ok(Filled { changed, files: wanted.len(), sent: missing.len() })
}

/// How many files, and how large they are together.
fn size(files: &Files) -> String {
    let bytes = files.values().map(|file| file.size).sum();
    format!("{}, {}", human::count(files.len(), "file"), human::bytes(bytes))
}

/// Whether there is a volume of this name. One that this program did not make is refused: it holds somebody's data.
fn owned(engine: &Engine, name: &str) -> Result<bool> {
    match engine.volume(name)? {
        None => Ok(false),
        Some(labels) if labels.contains_key(LABEL) => Ok(true),
        Some(_) => Err(Failure::new(Kind::Policy, format!("the volume `{name}` was not made by this program"))
            .help("choose another name, or remove the volume with `docker volume rm` if nobody needs it")),
    }
}

/// Sends these files, each checked on its way.
fn put(
    helper: &Helper<'_>,
    name: &str,
    files: &[(&str, &Wanted)],
    places: &BTreeMap<&str, PathBuf>,
    console: &Console,
) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = files.iter().map(|(path, file)| (format!("/{path}"), tar::Kind::File(file.size))).collect();
    let place = |file: &Wanted| places.get(file.in_container.as_str()).cloned().unwrap_or_default();
    let sources: Vec<_> = files.iter().map(|(_, file)| Source::Model(place(file), file.digest)).collect();
    let total = files.iter().map(|(_, file)| file.size).sum();
    let what = format!("the volume {name} ({}, {})", human::count(files.len(), "file"), human::bytes(total));
    let progress = console.progress("Filling", &what, total);
    helper.upload(|out| send(&Recipe::new(&named, &[]), &sources, out, |bytes| progress.add(bytes)))
}

fn put_stamp(helper: &Helper<'_>, text: String) -> Result<()> {
    let recipe = Recipe::new(&[(format!("/{}", volume::STAMP), tar::Kind::File(text.len() as u64))], &[]);
    let sources = [Source::Text(text)];
    helper.upload(|out| send(&recipe, &sources, out, |_| {}))
}

/// Reads everything that is in the volume.
fn read(helper: &Helper<'_>, name: &str, wanted: &Files, console: &Console) -> Result<Held> {
    let total = wanted.values().map(|file| file.size).sum();
    let progress = console.progress("Reading", &format!("the volume {name}"), total);
    let mut held = Held::default();
    helper.files(|path, entry, bytes| {
        match entry {
            Entry::Folder => {}
            Entry::File(size) => held
                .file(path, size, bytes, |count| progress.add(count))
                .or_fail(Kind::Engine, || format!("failed to read `{path}`"))?,
            Entry::Other => held.other(path),
        }
        Ok(())
    })?;
    Ok(held)
}

fn verify_volume(flags: &VolumeModels, console: &Console) -> Result<()> {
    let name = &flags.name;
    let declaration = declare(None)?;
    let lock = lockfile::read_fresh(&declaration)?;
    let models = models(&flags.models, &declaration, &lock)?;
    let wanted = volume::files(models.iter().map(|(_, locked)| *locked))?;
    let engine = engine::connect(console)?;
    let next = format!("run `cargo xtask volume sync {name}`");
    if !owned(&engine, name)? {
        return Err(Failure::new(Kind::Engine, format!("the engine has no volume `{name}`")).help(next));
    }
    let helper = engine.helper(&helper_image(&engine, &stamps(&declaration), console)?, name)?;
    let held = read(&helper, name, &wanted, console)?;
    let findings = held.findings(name, &wanted);
    let complete = held.is_complete();
    let ok = findings.is_empty() && complete;
    let document = json!({
        "ok": ok, "volume": name, "lock": lock.digest(), "complete": complete, "findings": findings,
    });
    if ok {
        console.status("Verified", format!("the volume {name} ({}): as in models.lock", size(&wanted)));
        console.data(&lock.digest().to_string());
        console.json(&document);
        return Ok(());
    }
    let message = match findings.len() {
        0 => format!("the volume `{name}` has no stamp that says it is complete: filling it was broken off"),
        1 => format!("1 file of the volume `{name}` does not match models.lock"),
        count => format!("{count} files of the volume `{name}` do not match models.lock"),
    };
    Err(Failure::new(Kind::Integrity, message)
        .details(findings.iter().flat_map(verify::lines))
        .help(next)
        .document(document))
}

fn remove(name: &str, console: &Console) -> Result<()> {
    let engine = engine::connect(console)?;
    let existing = owned(&engine, name)?;
    if existing {
        engine.remove_volume(name)?;
        console.status("Removed", format!("the volume {name}"));
    } else {
        console.status("Unchanged", format!("there is no volume {name}"));
    }
    console.json(&json!({ "ok": true, "volume": name, "removed": existing }));
    Ok(())
}

/// Loads the image of the helper: one layer with nothing but the folder in which the volume is mounted.
fn helper_image(engine: &Engine, stamps: &Stamps, console: &Console) -> Result<String> {
    let recipe = Recipe::new(&[], &["/models".to_owned()]);
    let fail = || "failed to make the image of the helper".to_owned();
    let locked = recipe.stream(|_| Ok(std::io::empty()), std::io::sink()).or_fail(Kind::Io, fail)?;
    let image = assemble_folder("volume helper", DEFAULT_USER, &host_platform(), locked);
    let layers = [Layer { locked, recipe, files: Vec::new(), digests: Vec::new(), what: "the helper".to_owned() }];
    let reference: Reference = HELPER.parse().or_fail(Kind::Usage, fail)?;
    let loading = engine::Loading { image: &image, layers: &layers, reference: &reference, stamps, proof: &|| Ok(()) };
    engine::load(engine, &loading, &mut Vec::new(), console)
}
