//! Models that are exchanged while they are served. [`Live`] loads a set of models and hands it out as one value;
//! [`Live::reload`] verifies and loads another set beside it and puts that in its place at once, or leaves everything as
//! it was. When to reload (a signal, a request of an operator) is the app's decision.
//!
//! # What may be served
//!
//! [`Policy::Pinned`]: the bytes that the program was compiled with, by digest, and nothing else.
//!
//! [`Policy::Locked`]: also what a mounted lock pins, the file `models.lock` in the model root. One rule says which
//! locks are taken ([`RULE`]): it has the models that the program was compiled with, all of them and no other, each with
//! the same target and the same file names. Sizes, digests, revision, source, mirrors and licence may differ. Whatever
//! breaks the rule is refused with one line for each reason. Without a mounted lock, the compiled one holds.
//!
//! Why this rule and not a rule about commits: that the program's commit is an ancestor of the one that the mounted lock
//! comes from would be the better question, but a container has no git history to answer it with. What the program
//! relies on can be told from the lock alone: where its files are and what they are called. Whether the bytes suit the
//! program is the loader's to say; a set that it refuses is not served either.
//!
//! The mounted lock itself is trusted as the operator's: whoever can write it decides which models are served, so mount
//! it read-only. Digests protect the models, which are then verified in full against it.
//!
//! # What a reader sees
//!
//! [`Live::current`] never waits for a reload, and what it returns never changes. A request that takes it once is
//! answered by one set of models from beginning to end, even if that is no longer the current one by the time it ends.
//! Every set is pinned by one lock text, and every file is verified against it as it is loaded: files that are written
//! meanwhile end in a refusal, not in a mixture. While a reload runs there is memory for both sets, except for models
//! that stay as they are: those are verified again and kept.
//!
//! ```no_run
//! # use model_lock::{Digest, ModelRoot, live::{Live, Policy, Setup}, runtime::Verify};
//! # let (lock, models): (Digest, &'static [model_lock::runtime::Model<'static>]) = (Digest::of(b""), &[]);
//! let setup = Setup { lock, models, root: ModelRoot::default(), policy: Policy::Locked };
//! let live = Live::load(setup, Verify::Full, |files| files.read("model.safetensors")).unwrap();
//! let snapshot = live.current(); // once per request
//! match live.reload() {
//!     Ok(change) => println!("{change}"),
//!     Err(refused) => println!("still serving {snapshot}: {}", refused[0]),
//! }
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::codec;
use crate::digest::Digest;
use crate::human::count;
use crate::lock::{LockedModel, Model, ModelFile, ModelLock};
use crate::path::{ModelRoot, TargetPath};
use crate::runtime::{Refusal, Verify, this_user};
use crate::verify::{FindingKind, open_regular, parallel};

/// What a mounted lock may change, in the words that refusals end with.
pub const RULE: &str = "a mounted models.lock may change what is in the models that this program was built with, not \
                        their names, targets or file names";

/// What may be served; see [the module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Only what the program was compiled with.
    #[default]
    Pinned,
    /// Also what a mounted lock pins.
    Locked,
}

impl FromStr for Policy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "pinned" => Ok(Self::Pinned),
            "locked" => Ok(Self::Locked),
            _ => Err(format!("`{}` is not one of `pinned`, `locked`", text.escape_debug())),
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pinned => "pinned",
            Self::Locked => "locked",
        })
    }
}

/// Why models are not served: one line each.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// A file of a model is not what the lock says.
    #[error(transparent)]
    File(#[from] Refusal),
    /// No file of a model can be had, and all for the same reason: a mount is missing, not a file.
    #[error("model `{model}`: none of its {files} files {what}: {why}")]
    Model {
        /// The model.
        model: String,
        /// How many files it has.
        files: usize,
        /// What they are not.
        what: &'static str,
        /// The likely cause.
        why: String,
    },
    /// The bytes are those of the lock, and the loader can do nothing with them.
    #[error("model `{model}`: `{at}` cannot be used: {why}", at = .at.display())]
    Content {
        /// The model.
        model: String,
        /// Where the file is.
        at: PathBuf,
        /// What the loader said.
        why: String,
    },
    /// The mounted lock cannot be read, or is none.
    #[error("`{at}` is refused: {why}", at = .at.display())]
    Lock {
        /// Where it is.
        at: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The mounted lock breaks the [`RULE`].
    #[error("`{at}` is refused: {why}; {RULE}", at = .at.display())]
    Rule {
        /// Where it is.
        at: PathBuf,
        /// In what it differs.
        why: String,
    },
}

/// What a program starts from: the lock it was compiled with, where its models are, and what it may serve.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The digest of the lock that the program was compiled with: the constant `LOCK` of [`crate::build`].
    pub lock: Digest,
    /// The models that the program was compiled with: the constant `ALL` of [`crate::build`].
    pub models: &'static [Model<'static>],
    /// Where the models are on this machine.
    pub root: ModelRoot,
    /// What may be served.
    pub policy: Policy,
}

impl Setup {
    /// Where a mounted lock is looked for: `/models/models.lock` in a container.
    #[must_use]
    pub fn mounted_lock(&self) -> PathBuf {
        self.root.resolve(&format!("{}/{}", TargetPath::DEFAULT_ROOT, codec::FILE_NAME))
    }

    /// What the policy says is to be served now. It reads the mounted lock at most, no model.
    pub fn pins(&self) -> Result<Pins, Vec<Refused>> {
        if self.policy == Policy::Locked {
            let at = self.mounted_lock();
            let lock = read_lock(&at).map_err(|why| vec![Refused::Lock { at: at.clone(), why }])?;
            if let Some(lock) = lock {
                let broken = differences(self.models, &lock);
                if !broken.is_empty() {
                    return Err(broken.into_iter().map(|why| Refused::Rule { at: at.clone(), why }).collect());
                }
                let models = lock.models().iter().cloned().map(|model| Pin::Mounted(Box::new(model))).collect();
                return Ok(Pins { lock: lock.digest(), mounted: Some(at), models });
            }
        }
        Ok(Pins { lock: self.lock, mounted: None, models: self.models.iter().map(Pin::Compiled).collect() })
    }

    /// Verifies every byte of what would be served now, and loads nothing.
    pub fn verify(&self) -> Result<Pins, Vec<Refused>> {
        let pins = self.pins()?;
        let load = |_: &Files<'_>| Ok(());
        set(&self.root, &pins, Verify::Full, &load, None)?;
        Ok(pins)
    }
}

/// The lock at `at`, if there is one.
fn read_lock(at: &Path) -> Result<Option<ModelLock>, String> {
    let file = match open_regular(at) {
        Ok(Some(file)) => file,
        Ok(None) if at.is_dir() => {
            return Err("it is a directory, which is what `docker run -v` makes of a missing source".to_owned());
        }
        Ok(None) => return Err("it is not a regular file".to_owned()),
        // A link that leads nowhere was meant to be a lock.
        Err(error) if error.kind() == io::ErrorKind::NotFound && at.symlink_metadata().is_err() => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(format!("{error}; it is not readable for {}", this_user()));
        }
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    // One more than is accepted, so that parsing can tell that it is too much.
    file.take(codec::MAX_SIZE + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    codec::parse(&text).map(Some).map_err(|error| one_line(&error.to_string()))
}

/// The first and the last line of `text`, without the excerpt that TOML errors have in between. A lock is not from here,
/// and what it says must not steer a terminal.
fn one_line(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let line = lines.next_back().map_or_else(|| first.to_owned(), |last| format!("{first}: {last}"));
    line.chars().flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] }).collect()
}

/// In what `lock` breaks the [`RULE`].
fn differences(compiled: &[Model<'_>], lock: &ModelLock) -> Vec<String> {
    let mut reasons = Vec::new();
    for model in lock.models() {
        let name = &model.name;
        let Some(built) = compiled.iter().find(|built| built.name == name.as_str()) else {
            reasons.push(format!("model `{name}` is not one of this program"));
            continue;
        };
        if built.target != model.target.as_str() {
            reasons.push(format!("model `{name}` has target `{}`, expected `{}`", model.target, built.target));
        }
        let expected: BTreeSet<&str> = built.files.iter().map(|file| file.path).collect();
        let found: BTreeSet<&str> = model.files.iter().map(|file| file.path.as_str()).collect();
        // The first of each kind tells what happened; a renamed folder of shards is not a thousand reasons.
        if let Some(path) = found.difference(&expected).next() {
            reasons.push(format!("model `{name}` has a file `{path}` that this program does not know"));
        }
        if let Some(path) = expected.difference(&found).next() {
            reasons.push(format!("model `{name}` has no file `{path}`"));
        }
    }
    let missing = compiled.iter().filter(|built| lock.model(built.name).is_none());
    reasons.extend(missing.map(|built| format!("model `{}` is not in it", built.name)));
    reasons
}

/// What says which bytes a model has: a constant of the program, or an entry of a mounted lock.
#[derive(Debug, Clone)]
pub enum Pin {
    /// The program was compiled with it.
    Compiled(&'static Model<'static>),
    /// A mounted lock says so.
    Mounted(Box<LockedModel>),
}

impl Pin {
    /// The model's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Compiled(model) => model.name,
            Self::Mounted(model) => model.name.as_str(),
        }
    }

    /// Where it comes from, as declared.
    #[must_use]
    pub fn source(&self) -> &str {
        match self {
            Self::Compiled(model) => model.source,
            Self::Mounted(model) => &model.source,
        }
    }

    /// The immutable revision that the source resolved to.
    #[must_use]
    pub fn revision(&self) -> &str {
        match self {
            Self::Compiled(model) => model.revision,
            Self::Mounted(model) => &model.revision,
        }
    }

    /// The folder in the container that holds its files.
    #[must_use]
    pub fn target(&self) -> &str {
        match self {
            Self::Compiled(model) => model.target,
            Self::Mounted(model) => model.target.as_str(),
        }
    }

    /// SPDX expression, as declared.
    #[must_use]
    pub fn license(&self) -> Option<&str> {
        match self {
            Self::Compiled(model) => model.license,
            Self::Mounted(model) => model.license.as_deref(),
        }
    }

    /// Its files, sorted by path.
    #[must_use]
    pub fn files(&self) -> Vec<ModelFile<'_>> {
        match self {
            Self::Compiled(model) => model.files.to_vec(),
            Self::Mounted(model) => model.model_files().collect(),
        }
    }
}

/// The models to serve, and the lock that pins them.
#[derive(Debug, Clone)]
pub struct Pins {
    /// The digest of that lock.
    pub lock: Digest,
    /// Where that lock is mounted, unless it is the one that the program was compiled with.
    pub mounted: Option<PathBuf>,
    /// The models, sorted by name.
    pub models: Vec<Pin>,
}

/// The files of one model, for a loader. Each is verified as it is read; those that the loader leaves alone are
/// verified after it, so a loader need not care for them.
pub struct Files<'a> {
    root: &'a ModelRoot,
    pin: &'a Pin,
    verify: Verify,
    verified: Mutex<BTreeSet<String>>,
}

impl Files<'_> {
    /// The model whose files they are.
    #[must_use]
    pub fn model(&self) -> &Pin {
        self.pin
    }

    /// What the lock says of the file with this path.
    pub fn file(&self, path: &str) -> Result<ModelFile<'_>, Refused> {
        let found = self.pin.files().into_iter().find(|file| file.path == path);
        found.ok_or_else(|| self.refuse(path, "the lock has no such file"))
    }

    /// Reads a file in one pass: the bytes that were verified are the bytes that come back.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, Refused> {
        self.confirmed(path, self.root.read(&self.file(path)?, self.verify))
    }

    /// Opens a file and verifies that descriptor; see [`ModelRoot::open`].
    pub fn open(&self, path: &str) -> Result<File, Refused> {
        self.confirmed(path, self.root.open(&self.file(path)?, self.verify))
    }

    /// The refusal of a loader that can do nothing with a file.
    #[must_use]
    pub fn refuse(&self, path: &str, why: impl fmt::Display) -> Refused {
        let at = self.root.resolve(&format!("{}/{path}", self.pin.target()));
        Refused::Content { model: self.pin.name().to_owned(), at, why: why.to_string() }
    }

    /// Notes what is in order. What is not is looked at again after the loader, which therefore cannot overlook it.
    fn confirmed<V>(&self, path: &str, result: Result<V, Refusal>) -> Result<V, Refused> {
        let value = result?;
        self.verified.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned());
        Ok(value)
    }
}

/// Turns the files of a model into what the app serves.
type Load<T> = dyn Fn(&Files<'_>) -> Result<T, Refused> + Send + Sync;

/// One set of models, as a reader sees it. Never empty unless the program was compiled without models.
#[derive(Debug)]
pub struct Loaded<T> {
    /// The digest of the lock that pins every model of the set.
    pub lock: Digest,
    /// Where that lock is mounted, unless it is the one that the program was compiled with.
    pub mounted: Option<PathBuf>,
    /// The models, sorted by name. A set that takes its place has the same names.
    pub models: Vec<LoadedModel<T>>,
}

/// One model of a set.
#[derive(Debug)]
pub struct LoadedModel<T> {
    /// What the lock says of it.
    pub pin: Pin,
    /// What was made of its files.
    pub value: Arc<T>,
    /// How its files were verified.
    verified: Verify,
}

impl<T> Loaded<T> {
    /// The model with this name.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&LoadedModel<T>> {
        self.models.iter().find(|model| model.pin.name() == name)
    }
}

/// `digits sha256:9bd1b3c3d815, digits-b sha256:83c6d5106eef`: each model with the digest of its largest file.
impl<T> fmt::Display for Loaded<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, model) in self.models.iter().enumerate() {
            f.write_str(if index == 0 { "" } else { ", " })?;
            f.write_str(model.pin.name())?;
            if let Some(largest) = model.pin.files().iter().max_by_key(|file| file.size) {
                write!(f, " {}", largest.digest.short())?;
            }
        }
        Ok(())
    }
}

/// Models that can be exchanged while they are served; see [the module](self).
pub struct Live<T> {
    setup: Setup,
    load: Box<Load<T>>,
    current: RwLock<Arc<Loaded<T>>>,
    /// One reload at a time, so that the set that was read last is the one that stays.
    reloading: Mutex<()>,
}

impl<T: Send + Sync> Live<T> {
    /// Loads what `setup` says, and gives everything that is wrong, not the first. `load` is called once for each model,
    /// here and in every reload, on any thread.
    pub fn load(
        setup: Setup,
        verify: Verify,
        load: impl Fn(&Files<'_>) -> Result<T, Refused> + Send + Sync + 'static,
    ) -> Result<Self, Vec<Refused>> {
        let first = set(&setup.root, &setup.pins()?, verify, &load, None)?;
        let current = RwLock::new(Arc::new(first));
        Ok(Self { setup, load: Box::new(load), current, reloading: Mutex::new(()) })
    }

    /// What it was loaded from.
    #[must_use]
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The set that is served now. Take it once for each request.
    #[must_use]
    pub fn current(&self) -> Arc<Loaded<T>> {
        // Nothing panics while it holds this lock, so a poisoned one is as good as any.
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the mounted lock again, verifies every byte, loads what is new beside what is served, and exchanges the
    /// two at once. On any refusal everything stays as it is. How the first set was verified makes no difference: what
    /// takes a model's place is verified in full. Two calls at a time follow each other.
    pub fn reload(&self) -> Result<Change, Vec<Refused>> {
        let _alone = self.reloading.lock().unwrap_or_else(PoisonError::into_inner);
        // Kept to the end: freeing the old models takes a while, and readers need not wait for it.
        let before = self.current();
        let after = Arc::new(set(&self.setup.root, &self.setup.pins()?, Verify::Full, &*self.load, Some(&before))?);
        let change = Change::between(&before, &after);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = after;
        Ok(change)
    }
}

/// Verifies and loads every model of `pins`. Models that are in `before` with the same files, which were verified in
/// full as they were loaded, are verified where they are and not loaded again.
fn set<T: Send + Sync>(
    root: &ModelRoot,
    pins: &Pins,
    verify: Verify,
    load: &Load<T>,
    before: Option<&Loaded<T>>,
) -> Result<Loaded<T>, Vec<Refused>> {
    let loaded = parallel(&pins.models, |pin| {
        let same = before.and_then(|before| before.model(pin.name()));
        if let Some(same) = same.filter(|same| same.verified == Verify::Full && same.pin.files() == pin.files()) {
            return (Ok(Arc::clone(&same.value)), BTreeSet::new());
        }
        let files = Files { root, pin, verify, verified: Mutex::default() };
        let value = load(&files).map(Arc::new);
        (value, files.verified.into_inner().unwrap_or_else(PoisonError::into_inner))
    });
    // All that is left in one go, so that the shards of one model keep all cores busy.
    let rest: Vec<_> = (pins.models.iter().zip(&loaded).enumerate())
        .flat_map(|(index, (pin, (_, verified)))| {
            pin.files().into_iter().filter(|file| !verified.contains(file.path)).map(move |file| (index, file))
        })
        .collect();
    let looked = parallel(&rest, |(index, file)| root.open(file, verify).err().map(|refusal| (*index, refusal)));
    let mut refusals: Vec<Vec<Refusal>> = pins.models.iter().map(|_| Vec::new()).collect();
    for (index, refusal) in looked.into_iter().flatten() {
        refusals[index].push(refusal);
    }

    let (mut models, mut refused) = (Vec::new(), Vec::new());
    for ((pin, (value, _)), refusals) in pins.models.iter().zip(loaded).zip(refusals) {
        let of_loader = match value {
            Ok(value) => {
                models.push(LoadedModel { pin: pin.clone(), value, verified: verify });
                None
            }
            // Of a file that was looked at twice, one line is enough.
            Err(by_loader) => {
                let line = by_loader.to_string();
                (!refusals.iter().any(|refusal| refusal.to_string() == line)).then_some(by_loader)
            }
        };
        refused.extend(of_loader);
        refused.extend(summed_up(pin, refusals));
    }
    if refused.is_empty() {
        Ok(Loaded { lock: pins.lock, mounted: pins.mounted.clone(), models })
    } else {
        Err(refused)
    }
}

/// One refusal instead of many where no file can be had: it is the mount then, and one line says so.
fn summed_up(pin: &Pin, refusals: Vec<Refusal>) -> Vec<Refused> {
    let files = pin.files().len();
    let all = |test: &dyn Fn(&Refusal) -> bool| files > 1 && refusals.len() == files && refusals.iter().all(test);
    let one = |what, why| vec![Refused::Model { model: pin.name().to_owned(), files, what, why }];
    if all(&|refusal| refusal.finding().is_some_and(|finding| finding.kind == FindingKind::Missing)) {
        let why = refusals[0].finding().and_then(|finding| finding.cause.clone()).unwrap_or_default();
        return one("is there", why);
    }
    if all(&|refusal| refusal.failure().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)) {
        return one("is readable", format!("{} may not: `chmod a+rX` the source of the mount", this_user()));
    }
    refusals.into_iter().map(Refused::File).collect()
}

/// What a reload changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The digest of the lock before and after.
    pub lock: (Digest, Digest),
    /// The models with other bytes than before.
    pub models: Vec<ModelChange>,
}

/// A model that has other bytes than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelChange {
    /// Its name.
    pub name: String,
    /// The largest file that changed: the weights, as a rule.
    pub path: String,
    /// The digest of that file before and after.
    pub digest: (Digest, Digest),
    /// How many other files changed.
    pub others: usize,
}

impl Change {
    fn between<T>(before: &Loaded<T>, after: &Loaded<T>) -> Self {
        let changed = |model: &LoadedModel<T>| {
            let old = before.model(model.pin.name())?.pin.files();
            let old = |path: &str| old.iter().find(|file| file.path == path).map(|file| file.digest);
            let files = model.pin.files();
            let changed: Vec<_> = (files.iter())
                .filter_map(|file| Some((file, old(file.path).filter(|digest| *digest != file.digest)?)))
                .collect();
            let (largest, digest) = changed.iter().max_by_key(|(file, _)| file.size)?;
            Some(ModelChange {
                name: model.pin.name().to_owned(),
                path: largest.path.to_owned(),
                digest: (*digest, largest.digest),
                others: changed.len() - 1,
            })
        };
        Self { lock: (before.lock, after.lock), models: after.models.iter().filter_map(changed).collect() }
    }

    /// Whether everything is as before.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.models.is_empty() && self.lock.0 == self.lock.1
    }
}

/// `digits: sha256:9bd1b3c3d815 -> sha256:83c6d5106eef (model.safetensors and 1 other file)`, and the lock.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.models.is_empty() {
            f.write_str("no model changed")?;
        }
        for (index, ModelChange { name, path, digest, others }) in self.models.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{name}: {} -> {} ({path}", digest.0.short(), digest.1.short())?;
            if *others > 0 {
                write!(f, " and {}", count(*others, "other file"))?;
            }
            f.write_str(")")?;
        }
        if self.lock.0 != self.lock.1 {
            write!(f, "; models.lock: {} -> {}", self.lock.0.short(), self.lock.1.short())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::lock::tests::model_of;

    /// The longest that anything here may take.
    const PATIENCE: Duration = Duration::from_secs(30);
    const CARD: &[u8] = b"# a model";
    const OLD: &[u8] = b"old weights";
    const NEW: &[u8] = b"new weights!";

    /// Models `a` and `b` of a card and weights, as a lock.
    fn lock(a: &[u8], b: &[u8]) -> ModelLock {
        let model = |name: &str, weights: &[u8]| LockedModel {
            license: None,
            ..model_of(name, &format!("/models/{name}"), &[("README.md", CARD), ("w", weights)])
        };
        ModelLock::new(vec![model("a", a), model("b", b)]).unwrap()
    }

    /// The constants that a program built with this lock would have.
    fn compiled(lock: ModelLock) -> &'static [Model<'static>] {
        let lock: &'static ModelLock = Box::leak(Box::new(lock));
        let constant = |model: &'static LockedModel| Model {
            name: model.name.as_str(),
            source: &model.source,
            revision: &model.revision,
            target: model.target.as_str(),
            license: None,
            files: Box::leak(model.model_files().collect()),
        };
        Box::leak(lock.models().iter().map(constant).collect())
    }

    fn put(root: &Path, path: &str, bytes: &[u8]) {
        let at = root.join(path);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::write(at, bytes).unwrap();
    }

    /// A model root with `a` and `b`, both of the old weights, and what a program built with them starts from.
    fn start(policy: Policy) -> (tempfile::TempDir, Setup) {
        let folder = tempfile::tempdir().unwrap();
        for path in ["a/README.md", "b/README.md"] {
            put(folder.path(), path, CARD);
        }
        for path in ["a/w", "b/w"] {
            put(folder.path(), path, OLD);
        }
        let lock = lock(OLD, OLD);
        let root = ModelRoot::new(folder.path());
        (folder, Setup { lock: lock.digest(), models: compiled(lock), root, policy })
    }

    fn mount(root: &Path, lock: &ModelLock) {
        put(root, codec::FILE_NAME, codec::emit(lock).as_bytes());
    }

    fn weights(files: &Files<'_>) -> Result<Vec<u8>, Refused> {
        let bytes = files.read("w")?;
        if bytes.starts_with(b"no ") { Err(files.refuse("w", "no weights")) } else { Ok(bytes) }
    }

    fn lines(refused: &[Refused]) -> String {
        refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn a_policy_has_two_words() {
        for policy in [Policy::Pinned, Policy::Locked] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        assert_eq!("Any\n".parse::<Policy>().unwrap_err(), "`Any\\n` is not one of `pinned`, `locked`");
        assert_eq!(Policy::default(), Policy::Pinned);
    }

    #[test]
    fn a_reload_exchanges_what_changed_and_a_snapshot_does_not() {
        let (folder, setup) = start(Policy::Locked);
        let live = Live::load(setup, Verify::Full, weights).unwrap();
        let before = live.current();
        assert!(live.reload().unwrap().is_none());

        put(folder.path(), "a/w", NEW);
        let new = lock(NEW, OLD);
        mount(folder.path(), &new);
        let change = live.reload().unwrap();
        let (from, to) = (Digest::of(OLD), Digest::of(NEW));
        assert_eq!(change.models.len(), 1);
        assert_eq!(
            change.to_string(),
            format!(
                "a: {} -> {} (w); models.lock: {} -> {}",
                from.short(),
                to.short(),
                before.lock.short(),
                new.digest().short()
            )
        );
        let after = live.current();
        let value = |set: &Loaded<Vec<u8>>, name: &str| set.model(name).unwrap().value.to_vec();
        assert_eq!((value(&before, "a"), value(&after, "a"), value(&after, "b")), (OLD.into(), NEW.into(), OLD.into()));
        assert_eq!((after.lock, after.mounted.as_deref()), (new.digest(), Some(&*folder.path().join("models.lock"))));
        assert_eq!(after.to_string(), format!("a {}, b {}", to.short(), from.short()));
        // What has not changed was verified, and is not there twice.
        assert!(Arc::ptr_eq(&before.model("b").unwrap().value, &after.model("b").unwrap().value));

        // Without the mounted lock, the compiled one holds again.
        fs::remove_file(folder.path().join("models.lock")).unwrap();
        assert!(lines(&live.reload().unwrap_err()).contains("is longer than models.lock says"));
        assert!(Arc::ptr_eq(&after, &live.current()));
        put(folder.path(), "a/w", OLD);
        assert_eq!(live.reload().unwrap().models[0].digest, (to, from));
        assert_eq!(live.current().mounted, None);
    }

    #[test]
    fn pinned_looks_at_no_mounted_lock() {
        let (folder, setup) = start(Policy::Pinned);
        put(folder.path(), codec::FILE_NAME, b"not even a lock");
        assert!(setup.verify().is_ok());
        let live = Live::load(setup, Verify::Full, weights).unwrap();
        mount(folder.path(), &lock(NEW, OLD));
        assert!(live.reload().unwrap().is_none());
        put(folder.path(), "a/w", NEW);
        assert_eq!(live.reload().unwrap_err().len(), 1);
        assert_eq!(*live.current().model("a").unwrap().value, OLD);
    }

    #[test]
    fn every_difference_that_the_rule_forbids_has_a_line() {
        let (folder, setup) = start(Policy::Locked);
        let check = |change: fn(&mut Vec<LockedModel>), expect: &[&str]| {
            let mut models = lock(OLD, OLD).models().to_vec();
            change(&mut models);
            mount(folder.path(), &ModelLock::new(models).unwrap());
            let found = match setup.pins() {
                Ok(_) => Vec::new(),
                Err(refused) => refused.iter().map(ToString::to_string).collect(),
            };
            let at = folder.path().join("models.lock");
            let expect: Vec<_> =
                expect.iter().map(|reason| format!("`{}` is refused: {reason}; {RULE}", at.display())).collect();
            assert_eq!(found, expect);
        };
        check(|_| (), &[]);
        check(
            |models| {
                models[0].source = "hf://org/a@main".to_owned();
                models[0].revision = "0123456".to_owned();
                models[0].license = Some("MIT".to_owned());
                (models[0].files[1].size, models[0].files[1].digest) = (7, Digest::of(NEW));
            },
            &[],
        );
        check(Vec::clear, &["model `a` is not in it", "model `b` is not in it"]);
        check(
            |models| models[1].name = "c".parse().unwrap(),
            &["model `c` is not one of this program", "model `b` is not in it"],
        );
        check(
            |models| models[0].target = "/models/A".parse().unwrap(),
            &["model `a` has target `/models/A`, expected `/models/a`"],
        );
        check(
            |models| models[0].files[1].path = "v".parse().unwrap(),
            &["model `a` has a file `v` that this program does not know", "model `a` has no file `w`"],
        );
        check(|models| drop(models[0].files.pop()), &["model `a` has no file `w`"]);
    }

    #[test]
    fn what_is_no_lock_is_refused_in_one_line() {
        let (folder, setup) = start(Policy::Locked);
        let at = folder.path().join("models.lock");
        let check = |expect: &str| {
            let line = lines(&setup.pins().unwrap_err());
            assert!(line.starts_with(&format!("`{}` is refused: ", at.display())), "{line}");
            assert!(line.contains(expect) && line.lines().count() == 1, "expected {expect:?} in {line:?}");
        };
        fs::write(&at, "").unwrap();
        check("`version` is missing");
        fs::write(&at, "version = 2").unwrap();
        check("unsupported version 2: this program reads version 1");
        fs::write(&at, "version = 1\n=======\n").unwrap();
        check("line 2: a merge conflict is not resolved");
        fs::write(&at, "version = 1\n\n\"\\u001b[2J\" = 1\n").unwrap();
        check("line 3, column 1: unknown field `\\u{1b}[2J`");
        fs::write(&at, b"\xff").unwrap();
        check("valid UTF-8");
        let huge = fs::File::create(&at).unwrap();
        huge.set_len(codec::MAX_SIZE * 2).unwrap();
        check(&format!("has {} bytes: more than {} are not read", codec::MAX_SIZE + 1, codec::MAX_SIZE));
        fs::remove_file(&at).unwrap();
        std::os::unix::fs::symlink(folder.path().join("gone"), &at).unwrap();
        check("No such file or directory");
        fs::remove_file(&at).unwrap();
        fs::create_dir(&at).unwrap();
        check("it is a directory, which is what `docker run -v` makes of a missing source");
        fs::remove_dir(&at).unwrap();
        assert!(setup.pins().unwrap().mounted.is_none());
        // A link to a lock is how Kubernetes mounts one.
        mount(folder.path(), &lock(OLD, OLD));
        fs::rename(&at, folder.path().join("..data")).unwrap();
        std::os::unix::fs::symlink("..data", &at).unwrap();
        assert!(setup.pins().unwrap().mounted.is_some());
    }

    #[test]
    fn every_refusal_is_given_and_nothing_changes() {
        let (folder, setup) = start(Policy::Locked);
        let live = Live::load(setup, Verify::Full, weights).unwrap();
        let before = live.current();
        let refused = |expect: &[&str]| {
            let refused = live.reload().unwrap_err();
            let found: Vec<_> = refused.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expect.len(), "{found:?}");
            for (line, expect) in found.iter().zip(expect) {
                assert!(line.contains(expect) && !line.contains('\n'), "expected {expect:?} in {line:?}");
            }
            assert!(Arc::ptr_eq(&before, &live.current()));
        };
        // A file that the loader never asks for counts like any other.
        put(folder.path(), "b/README.md", b"# another");
        refused(&["model `b`: "]);
        put(folder.path(), "a/w", b"half");
        refused(&["a/w` is shorter than models.lock says", "b/README.md` has other bytes than models.lock says"]);
        fs::remove_dir_all(folder.path().join("b")).unwrap();
        refused(&["a/w` is shorter", "model `b`: none of its 2 files is there: "]);
        put(folder.path(), "b/README.md", CARD);
        put(folder.path(), "b/w", OLD);
        // The bytes of the lock, of which the loader can make nothing.
        put(folder.path(), "a/w", b"no weights");
        mount(folder.path(), &lock(b"no weights", OLD));
        refused(&["a/w` cannot be used: no weights"]);
        // A size that no file has takes no memory.
        let mut models = lock(OLD, OLD).models().to_vec();
        models[0].files[1].size = i64::MAX.unsigned_abs();
        mount(folder.path(), &ModelLock::new(models).unwrap());
        refused(&["a/w` is shorter than models.lock says"]);
    }

    /// The loader of `a` writes what the loaders did not read yet: another program that writes during a reload.
    #[test]
    fn files_that_are_written_during_a_reload_are_refused() {
        let (folder, setup) = start(Policy::Locked);
        let root = folder.path().to_owned();
        let meddle = move |files: &Files<'_>| {
            let bytes = files.read("w")?;
            if files.model().name() == "a" && bytes == NEW {
                put(&root, "a/README.md", b"# in the meantime");
                mount(&root, &lock(OLD, NEW));
            }
            Ok(bytes)
        };
        let live = Live::load(setup, Verify::Full, meddle).unwrap();
        put(folder.path(), "a/w", NEW);
        mount(folder.path(), &lock(NEW, OLD));
        let refused = lines(&live.reload().unwrap_err());
        assert!(refused.contains("a/README.md` is longer than models.lock says"), "{refused}");
        assert_eq!(refused.lines().count(), 1, "{refused}");
        assert_eq!(*live.current().model("a").unwrap().value, OLD);
    }

    #[test]
    fn a_loader_cannot_overlook_a_refusal() {
        let (folder, setup) = start(Policy::Pinned);
        put(folder.path(), "a/w", NEW);
        let careless = |files: &Files<'_>| Ok(files.read("w").unwrap_or_default());
        let refused = Live::load(setup.clone(), Verify::Full, careless).err().expect("a refusal");
        assert_eq!(refused.len(), 1);
        let unknown = |files: &Files<'_>| files.open("v").map(drop);
        let refused = Live::load(setup, Verify::Full, unknown).err().expect("a refusal");
        assert!(lines(&refused).contains("a/v` cannot be used: the lock has no such file"));
    }

    /// What was accepted unverified is no reason to believe that it is still the same.
    #[test]
    fn what_was_not_verified_at_the_start_is_loaded_again() {
        for verify in [Verify::Size, Verify::Off] {
            let (folder, setup) = start(Policy::Pinned);
            put(folder.path(), "a/w", b"OLD WEIGHTS");
            let live = Live::load(setup, verify, weights).unwrap();
            assert_eq!(*live.current().model("a").unwrap().value, b"OLD WEIGHTS");
            assert!(lines(&live.reload().unwrap_err()).contains("a/w` has other bytes than models.lock says"));
            put(folder.path(), "a/w", OLD);
            assert!(live.reload().unwrap().is_none());
            assert_eq!(*live.current().model("a").unwrap().value, OLD);
        }
    }

    #[test]
    fn readers_do_not_wait_for_a_reload_and_reloads_follow_each_other() {
        let (folder, setup) = start(Policy::Locked);
        let (entered, inside) = mpsc::sync_channel(2);
        let (go_on, wait) = mpsc::channel();
        let (wait, running) = (Mutex::new(wait), AtomicUsize::new(0));
        let live = Live::load(setup, Verify::Full, move |files| {
            let bytes = files.read("w")?;
            if bytes == NEW {
                assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one reload at a time");
                entered.send(()).unwrap();
                wait.lock().unwrap().recv_timeout(PATIENCE).unwrap();
                running.fetch_sub(1, Ordering::SeqCst);
            }
            Ok(bytes)
        })
        .unwrap();
        put(folder.path(), "a/w", NEW);
        mount(folder.path(), &lock(NEW, OLD));
        std::thread::scope(|scope| {
            let reloads = [(); 2].map(|()| scope.spawn(|| live.reload().unwrap().is_none()));
            inside.recv_timeout(PATIENCE).unwrap();
            // In the middle of a reload: the old set, at once.
            assert_eq!(*live.current().model("a").unwrap().value, OLD);
            go_on.send(()).unwrap();
            let mut nothing_changed = reloads.map(|reload| reload.join().unwrap());
            nothing_changed.sort_unstable();
            assert_eq!(nothing_changed, [false, true], "the second finds all done");
        });
        assert_eq!(*live.current().model("a").unwrap().value, NEW);
    }

    #[test]
    fn a_loader_that_panics_spoils_nothing() {
        let (folder, setup) = start(Policy::Locked);
        let live = Live::load(setup, Verify::Full, |files| {
            let bytes = files.read("w")?;
            assert_ne!(bytes, NEW, "a defect of the loader");
            Ok(bytes)
        })
        .unwrap();
        put(folder.path(), "a/w", NEW);
        mount(folder.path(), &lock(NEW, OLD));
        let reload = std::panic::AssertUnwindSafe(|| live.reload().is_ok());
        assert!(std::panic::catch_unwind(reload).is_err());
        assert_eq!(*live.current().model("a").unwrap().value, OLD);
        put(folder.path(), "a/w", b"better");
        mount(folder.path(), &lock(b"better", OLD));
        assert_eq!(live.reload().unwrap().models.len(), 1);
        assert_eq!(*live.current().model("a").unwrap().value, b"better");
    }
}
