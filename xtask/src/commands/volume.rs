//! `cargo xtask volume`: a volume of the engine that holds the models as models.lock pins them, for containers that mount
//! it at /models. A stamp in it says what it holds; it is written last, and taken back before anything is changed, so a
//! volume that a run left half filled says so.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use model_lock::digest::Hasher;
use model_lock::verify::{Content, Finding, FindingKind};
use model_lock::{Digest, LockedModel, ModelLock, ModelRoot, human};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::engine;
use super::upload::send;
use crate::build_context::Source;
use crate::compile::host_platform;
use crate::console::Console;
use crate::declare::{Declaration, DeclaredModel, declare};
use crate::engine::{Engine, Entry, Helper};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::flags::{Volume as Flags, VolumeAction, VolumeModels};
use crate::lockfile;
use crate::oci::assemble::Image;
use crate::oci::layer::{Layer, Recipe};
use crate::oci::reference::Reference;
use crate::oci::spec::{CONFIG, Config, Descriptor, Execution, History, MANIFEST, Manifest, RootFs, rfc3339};
use crate::oci::tar;
use crate::stamp::Stamps;
use crate::verify::verify;

/// The label of a volume that this program made.
const LABEL: &str = "io.github.model-lock.volume";

/// The stamp, in the volume's top folder.
const STAMP: &str = ".model-lock.json";

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

/// A file that the volume is to hold.
struct Wanted {
    model: String,
    /// Its path in the model.
    file: String,
    size: u64,
    digest: Digest,
    /// Where it is on this machine.
    at: PathBuf,
}

/// What a volume says of itself.
#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct Stamp {
    version: u32,
    complete: bool,
    lock: Digest,
    files: BTreeMap<String, StampedFile>,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq)]
struct StampedFile {
    model: String,
    size: u64,
    digest: Digest,
}

/// What is in a volume.
#[derive(Default)]
struct InVolume {
    /// The stamp's bytes.
    stamp: Option<Vec<u8>>,
    /// Files by their paths in the volume; no digest for what is no file.
    files: BTreeMap<String, (u64, Option<Digest>)>,
}

/// The models that are meant, declared and locked.
fn chosen<'a>(
    flags: &VolumeModels,
    declaration: &'a Declaration,
    lock: &'a ModelLock,
) -> Result<Vec<(&'a DeclaredModel, &'a LockedModel)>> {
    for name in &flags.models {
        declaration.model(name)?;
    }
    let chosen = |name: &str| flags.models.is_empty() || flags.models.iter().any(|wanted| wanted == name);
    let models = declaration.models.iter().filter(|model| chosen(model.name.as_str()));
    Ok(models.filter_map(|model| Some((model, lock.model(model.name.as_str())?))).collect())
}

/// The files of `models` by their paths in the volume: what stands below /models in a container, and the whole path of
/// what stands elsewhere, as `MODEL_ROOT` has it.
fn wanted(
    models: &[(&DeclaredModel, &LockedModel)],
    places: &BTreeMap<String, PathBuf>,
) -> Result<BTreeMap<String, Wanted>> {
    let top = std::path::Path::new("/volume");
    let root = ModelRoot::new(top);
    let mut wanted: BTreeMap<String, Wanted> = BTreeMap::new();
    for (_, locked) in models {
        for file in locked.model_files() {
            let in_container = file.in_container();
            let path = root.resolve(&in_container);
            let path = path.strip_prefix(top).unwrap_or(&path).to_string_lossy().into_owned();
            let entry = Wanted {
                model: locked.name.to_string(),
                file: file.path.to_owned(),
                size: file.size,
                digest: file.digest,
                at: places.get(&in_container).cloned().unwrap_or_default(),
            };
            if let Some(other) = wanted.insert(path.clone(), entry) {
                let message =
                    format!("models `{}` and `{}` both want `{path}` in the volume", other.model, locked.name);
                return Err(Failure::new(Kind::Policy, message).help("choose another `target` for one of them"));
            }
        }
    }
    Ok(wanted)
}

fn sync(flags: &VolumeModels, console: &Console) -> Result<()> {
    let name = &flags.name;
    let declaration = declare(None)?;
    let lock = lockfile::read_fresh(&declaration)?;
    let models = chosen(flags, &declaration, &lock)?;
    let engine = engine::connect(console)?;
    let stamps = Stamps::load(declaration.target_dir.join("image").join("stamps.json"));
    let verified = verify(&declaration.root, &models, Some(&stamps), console)?;
    stamps.save()?;
    let verified = verified.map_err(crate::verify::Report::into_failure)?;
    let places = verified.files().iter().map(|file| (file.in_container.clone(), file.at.clone())).collect();
    let wanted = wanted(&models, &places)?;
    let helper_image = helper_image(&engine, &stamps, console)?;
    let existing = owned(&engine, name)?;
    if !existing {
        engine.create_volume(name, &[(LABEL, "1")])?;
    }
    let mut helper = engine.helper(&helper_image, name)?;
    let mut found = if existing { read(&helper, name, &wanted, console)? } else { InVolume::default() };
    let stamp = Stamp {
        version: 1,
        complete: true,
        lock: lock.digest(),
        files: wanted.iter().map(|(path, file)| (path.clone(), stamped(file))).collect(),
    };
    let is_right = |path: &str, found: &InVolume| {
        let file = &wanted[path];
        found.files.get(path) == Some(&(file.size, Some(file.digest)))
    };
    if found.files.keys().any(|path| !wanted.contains_key(path)) {
        // An engine can write into a volume and not delete from it.
        console.status("Removing", format!("the volume {name}: it holds files that models.lock does not have"));
        drop(helper);
        engine.remove_volume(name)?;
        engine.create_volume(name, &[(LABEL, "1")])?;
        helper = engine.helper(&helper_image, name)?;
        found = InVolume::default();
    }
    let missing: BTreeMap<&String, &Wanted> = wanted.iter().filter(|(path, _)| !is_right(path, &found)).collect();
    let stamp_text = to_text(&stamp);
    let changed = !missing.is_empty() || found.stamp.as_deref() != Some(stamp_text.as_bytes());
    if changed {
        if found.stamp.is_some() {
            put_stamp(&helper, to_text(&Stamp { complete: false, ..stamp }))?;
        }
        fill(&helper, name, &missing, console)?;
        put_stamp(&helper, stamp_text)?;
    }
    let size = human::bytes(wanted.values().map(|file| file.size).sum());
    let (sent, count) = (human::count(missing.len(), "file"), human::count(wanted.len(), "file"));
    let verb = if changed { "Filled" } else { "Unchanged" };
    console.status(verb, format!("the volume {name} ({count}, {size}; {sent} sent)"));
    console.data(&lock.digest().to_string());
    console.json(&json!({
        "ok": true, "volume": name, "lock": lock.digest(), "changed": changed, "files": wanted.len(), "sent": missing.len(),
    }));
    Ok(())
}

fn stamped(file: &Wanted) -> StampedFile {
    StampedFile { model: file.model.clone(), size: file.size, digest: file.digest }
}

/// Our own struct of texts and numbers always serialises.
fn to_text(stamp: &Stamp) -> String {
    serde_json::to_string_pretty(stamp).unwrap_or_default() + "\n"
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
fn fill(helper: &Helper<'_>, name: &str, files: &BTreeMap<&String, &Wanted>, console: &Console) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let named: Vec<_> = files.iter().map(|(path, file)| (format!("/{path}"), tar::Kind::File(file.size))).collect();
    let sources: Vec<_> = files.values().map(|file| Source::Model(file.at.clone(), file.digest)).collect();
    let total = files.values().map(|file| file.size).sum();
    let what = format!("the volume {name} ({}, {})", human::count(files.len(), "file"), human::bytes(total));
    let progress = console.progress("Filling", &what, total);
    helper.upload(|out| send(&Recipe::new(&named, &[]), &sources, out, |bytes| progress.add(bytes)))
}

fn put_stamp(helper: &Helper<'_>, text: String) -> Result<()> {
    let recipe = Recipe::new(&[(format!("/{STAMP}"), tar::Kind::File(text.len() as u64))], &[]);
    let sources = [Source::Text(text)];
    helper.upload(|out| send(&recipe, &sources, out, |_| {}))
}

/// Reads everything that is in the volume.
fn read(helper: &Helper<'_>, name: &str, wanted: &BTreeMap<String, Wanted>, console: &Console) -> Result<InVolume> {
    let total = wanted.values().map(|file| file.size).sum();
    let progress = console.progress("Reading", &format!("the volume {name}"), total);
    let mut found = InVolume::default();
    helper.files(|path, entry, bytes| {
        let fail = || format!("failed to read `{path}`");
        match entry {
            Entry::Folder => {}
            Entry::File(_) if path == STAMP => {
                let mut stamp = Vec::new();
                bytes.take(64 << 20).read_to_end(&mut stamp).or_fail(Kind::Engine, fail)?;
                found.stamp = Some(stamp);
            }
            Entry::File(size) => {
                let mut hasher = Hasher::default();
                let mut buffer = vec![0; 256 << 10];
                loop {
                    match bytes.read(&mut buffer).or_fail(Kind::Engine, fail)? {
                        0 => break,
                        count => {
                            hasher.update(&buffer[..count]);
                            progress.add(count as u64);
                        }
                    }
                }
                found.files.insert(path.to_owned(), (size, Some(hasher.finish())));
            }
            Entry::Other => {
                found.files.insert(path.to_owned(), (0, None));
            }
        }
        Ok(())
    })?;
    Ok(found)
}

fn verify_volume(flags: &VolumeModels, console: &Console) -> Result<()> {
    let name = &flags.name;
    let declaration = declare(None)?;
    let lock = lockfile::read_fresh(&declaration)?;
    let models = chosen(flags, &declaration, &lock)?;
    let wanted = wanted(&models, &BTreeMap::new())?;
    let engine = engine::connect(console)?;
    let help = format!("run `cargo xtask volume sync {name}`");
    if !owned(&engine, name)? {
        return Err(Failure::new(Kind::Engine, format!("the engine has no volume `{name}`")).help(help));
    }
    let stamps = Stamps::load(declaration.target_dir.join("image").join("stamps.json"));
    let helper = engine.helper(&helper_image(&engine, &stamps, console)?, name)?;
    let found = read(&helper, name, &wanted, console)?;
    let findings = findings(name, &wanted, &found);
    let stamp: Option<Stamp> = found.stamp.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
    let complete = stamp.is_some_and(|stamp| stamp.complete);
    let ok = findings.is_empty() && complete;
    let document = json!({
        "ok": ok, "volume": name, "lock": lock.digest(), "complete": complete, "findings": findings,
    });
    if ok {
        let size = human::bytes(wanted.values().map(|file| file.size).sum());
        let count = human::count(wanted.len(), "file");
        console.status("Verified", format!("the volume {name} ({count}, {size}): as in models.lock"));
        console.data(&lock.digest().to_string());
        console.json(&document);
        return Ok(());
    }
    let mut details = Vec::new();
    for finding in &findings {
        details.push(format!("{}/{} {}", finding.model, finding.path, finding.kind.says()));
        details.extend(finding.expected.map(|content| format!("  expected {content}")));
        details.extend(finding.found.map(|content| format!("  found    {content}")));
    }
    let message = match (findings.len(), complete) {
        (0, _) => format!("the volume `{name}` has no stamp that says it is complete: filling it was broken off"),
        (1, _) => format!("1 file of the volume `{name}` does not match models.lock"),
        (count, _) => format!("{count} files of the volume `{name}` do not match models.lock"),
    };
    Err(Failure::new(Kind::Integrity, message).details(details).help(help).document(document))
}

fn findings(name: &str, wanted: &BTreeMap<String, Wanted>, found: &InVolume) -> Vec<Finding> {
    let at = |path: &str| PathBuf::from(format!("{name}:{path}"));
    let mut findings = Vec::new();
    for (path, file) in wanted {
        let expected = Some(Content { size: file.size, digest: Some(file.digest) });
        let (kind, found) = match found.files.get(path) {
            None => (FindingKind::Missing, None),
            Some((_, None)) => (FindingKind::NotAFile, None),
            Some((size, digest)) => {
                let kind = match size.cmp(&file.size) {
                    std::cmp::Ordering::Less => FindingKind::Shorter,
                    std::cmp::Ordering::Greater => FindingKind::Longer,
                    std::cmp::Ordering::Equal if *digest == Some(file.digest) => continue,
                    std::cmp::Ordering::Equal => FindingKind::Different,
                };
                (kind, Some(Content { size: *size, digest: *digest }))
            }
        };
        let (model, path, at) = (file.model.clone(), file.file.clone(), at(path));
        findings.push(Finding { model, path, kind, expected, found, at, cause: None });
    }
    for (path, (size, digest)) in found.files.iter().filter(|(path, _)| !wanted.contains_key(*path)) {
        findings.push(Finding {
            model: name.to_owned(),
            path: path.clone(),
            kind: FindingKind::Extra,
            expected: None,
            found: Some(Content { size: *size, digest: *digest }),
            at: at(path),
            cause: None,
        });
    }
    findings
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
    let locked = recipe.stream(|_| Ok(io::empty()), io::sink()).or_fail(Kind::Io, fail)?;
    let platform = host_platform();
    let config = Config {
        created: rfc3339(0),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        config: Execution {
            user: "65532:65532".to_owned(),
            exposed_ports: [].into(),
            env: Vec::new(),
            entrypoint: Vec::new(),
            healthcheck: None,
            working_dir: "/".to_owned(),
            labels: [("org.opencontainers.image.title".to_owned(), "volume helper".to_owned())].into(),
        },
        rootfs: RootFs { kind: "layers", diff_ids: vec![locked.digest] },
        history: vec![History { created: rfc3339(0), created_by: "model-lock: volume helper".to_owned() }],
    };
    let config_bytes = serde_json::to_vec(&config).or_fail(Kind::Io, fail)?;
    let config = Descriptor::of(CONFIG, &config_bytes);
    let manifest =
        Manifest { schema_version: 2, media_type: MANIFEST, config: config.clone(), layers: vec![locked.into()] };
    let manifest_bytes = serde_json::to_vec(&manifest).or_fail(Kind::Io, fail)?;
    let mut manifest = Descriptor::of(MANIFEST, &manifest_bytes);
    manifest.platform = Some(platform);
    let image = Image { manifest, manifest_bytes, config, config_bytes, layers: vec![locked] };
    let layers = [Layer { locked, recipe, files: Vec::new(), digests: Vec::new(), what: "the helper".to_owned() }];
    let reference: Reference = HELPER.parse().or_fail(Kind::Usage, fail)?;
    let loading = engine::Loading { image: &image, layers: &layers, reference: &reference, stamps, proof: &|| Ok(()) };
    engine::load(engine, &loading, &mut Vec::new(), console)
}
