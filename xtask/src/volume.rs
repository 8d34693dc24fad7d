//! The models of a lock as the files of a volume: which file stands where, the stamp that says that a volume is whole, and
//! what is wrong with what a volume holds. How bytes come into and out of a volume is not known here.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::PathBuf;

use model_lock::digest::Hasher;
use model_lock::path::in_root;
use model_lock::verify::{Content, Finding, FindingKind};
use model_lock::{Digest, LockedModel};
use serde::{Deserialize, Serialize};

use crate::error::{Failure, Kind, Result};

/// The stamp, in the volume's top folder. It is written last, and taken back before anything is changed.
pub const STAMP: &str = ".model-lock.json";

/// The version of the stamp that is written and read.
const VERSION: u32 = 1;

/// A file that a volume is to hold.
#[derive(Debug)]
pub struct Wanted {
    model: String,
    /// Its path in the model.
    file: String,
    /// Its path in a container.
    pub in_container: String,
    /// Its size in bytes.
    pub size: u64,
    /// Its digest.
    pub digest: Digest,
}

/// The files that a volume is to hold, by their paths in it.
pub type Files = BTreeMap<String, Wanted>;

/// What the volume is to hold of `models`: what stands below /models in a container at its top, and what stands elsewhere
/// by its whole path, as `MODEL_ROOT` has it.
pub fn files<'a>(models: impl IntoIterator<Item = &'a LockedModel>) -> Result<Files> {
    let mut files = Files::new();
    for locked in models {
        for file in locked.model_files() {
            let in_container = file.in_container();
            let path = in_root(&in_container).to_owned();
            let (size, digest) = (file.size, file.digest);
            let wanted =
                Wanted { model: locked.name.to_string(), file: file.path.to_owned(), in_container, size, digest };
            if let Some(other) = files.insert(path.clone(), wanted) {
                let message =
                    format!("models `{}` and `{}` both want `{path}` in the volume", other.model, locked.name);
                return Err(Failure::new(Kind::Policy, message).help("choose another `target` for one of them"));
            }
        }
    }
    Ok(files)
}

/// What a volume says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    version: u32,
    complete: bool,
    lock: Digest,
    files: BTreeMap<String, Stamped>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Stamped {
    model: String,
    size: u64,
    digest: Digest,
}

/// The stamp of a volume that holds `files`, or that is about to.
#[must_use]
pub fn stamp(files: &Files, lock: Digest, complete: bool) -> String {
    let stamped = |file: &Wanted| Stamped { model: file.model.clone(), size: file.size, digest: file.digest };
    let files = files.iter().map(|(path, file)| (path.clone(), stamped(file))).collect();
    // Our own struct of texts and numbers always serialises.
    serde_json::to_string_pretty(&Stamp { version: VERSION, complete, lock, files }).unwrap_or_default() + "\n"
}

/// What a volume holds.
#[derive(Debug, Default)]
pub struct Held {
    stamp: Option<Vec<u8>>,
    /// Files by their paths in the volume; no digest for what is no file.
    files: BTreeMap<String, (u64, Option<Digest>)>,
}

impl Held {
    /// Reads a file of the volume; `each` gets the number of bytes as they are read.
    pub fn file(&mut self, path: &str, size: u64, bytes: &mut dyn Read, each: impl Fn(u64)) -> io::Result<()> {
        if path == STAMP {
            let mut stamp = Vec::new();
            bytes.take(64 << 20).read_to_end(&mut stamp)?;
            self.stamp = Some(stamp);
            return Ok(());
        }
        let mut hasher = Hasher::default();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match bytes.read(&mut buffer)? {
                0 => break,
                count => {
                    hasher.update(&buffer[..count]);
                    each(count as u64);
                }
            }
        }
        self.files.insert(path.to_owned(), (size, Some(hasher.finish())));
        Ok(())
    }

    /// Takes note of a link, a device or the like.
    pub fn other(&mut self, path: &str) {
        self.files.insert(path.to_owned(), (0, None));
    }

    /// Whether the volume has a stamp, which may be that of a volume that is not whole.
    #[must_use]
    pub fn is_stamped(&self) -> bool {
        self.stamp.is_some()
    }

    /// Whether the stamp is this one.
    #[must_use]
    pub fn has_stamp(&self, text: &str) -> bool {
        self.stamp.as_deref() == Some(text.as_bytes())
    }

    /// Whether the stamp says that the volume is whole.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let stamp: Option<Stamp> = self.stamp.as_deref().and_then(|bytes| serde_json::from_slice(bytes).ok());
        stamp.is_some_and(|stamp| stamp.version == VERSION && stamp.complete)
    }

    /// Whether there is something that no model has.
    #[must_use]
    pub fn has_extra(&self, wanted: &Files) -> bool {
        self.files.keys().any(|path| !wanted.contains_key(path))
    }

    /// Those of `wanted` that are not there as they must be.
    #[must_use]
    pub fn missing<'a>(&self, wanted: &'a Files) -> Vec<(&'a str, &'a Wanted)> {
        let is_right = |path: &str, file: &Wanted| self.files.get(path) == Some(&(file.size, Some(file.digest)));
        let missing = wanted.iter().filter(|(path, file)| !is_right(path, file));
        missing.map(|(path, file)| (path.as_str(), file)).collect()
    }

    /// Every difference between what the volume `name` is to hold and what it holds.
    #[must_use]
    pub fn findings(&self, name: &str, wanted: &Files) -> Vec<Finding> {
        let at = |path: &str| PathBuf::from(format!("{name}:{path}"));
        let mut findings = Vec::new();
        for (path, file) in self.missing(wanted) {
            let (kind, found) = match self.files.get(path) {
                None => (FindingKind::Missing, None),
                Some((_, None)) => (FindingKind::NotAFile, None),
                Some((size, digest)) => {
                    let kind = match size.cmp(&file.size) {
                        std::cmp::Ordering::Less => FindingKind::Shorter,
                        std::cmp::Ordering::Greater => FindingKind::Longer,
                        std::cmp::Ordering::Equal => FindingKind::Different,
                    };
                    (kind, Some(Content { size: *size, digest: *digest }))
                }
            };
            findings.push(Finding {
                model: file.model.clone(),
                path: file.file.clone(),
                kind,
                expected: Some(Content { size: file.size, digest: Some(file.digest) }),
                found,
                at: at(path),
                cause: None,
            });
        }
        for (path, (size, digest)) in self.files.iter().filter(|(path, _)| !wanted.contains_key(*path)) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Files {
        let file = |name: &&str| {
            let (model, in_container) = ("m".to_owned(), format!("/models/m/{name}"));
            let digest = Digest::of(name.as_bytes());
            (format!("m/{name}"), Wanted { model, file: (*name).to_owned(), in_container, size: 1, digest })
        };
        names.iter().map(file).collect()
    }

    #[test]
    fn what_is_held_is_compared_with_what_is_wanted() {
        let wanted = wanted(&["a", "b", "c", "d", "e"]);
        let mut held = Held::default();
        for (path, bytes) in [("m/a", "a"), ("m/b", "x"), ("m/c", ""), ("m/x", "x")] {
            held.file(path, bytes.len() as u64, &mut bytes.as_bytes(), |_| {}).unwrap();
        }
        held.other("m/d");
        let kinds: Vec<_> =
            held.findings("v", &wanted).into_iter().map(|finding| (finding.path, finding.kind)).collect();
        let expect = [
            ("b", FindingKind::Different),
            ("c", FindingKind::Shorter),
            ("d", FindingKind::NotAFile),
            ("e", FindingKind::Missing),
            ("m/x", FindingKind::Extra),
        ];
        assert_eq!(kinds, expect.map(|(path, kind)| (path.to_owned(), kind)));
        assert_eq!(held.missing(&wanted).len(), 4);
        assert!(held.has_extra(&wanted));
    }

    #[test]
    fn only_a_stamp_that_says_so_makes_a_volume_complete() {
        let (wanted, lock) = (wanted(&["a"]), Digest::of(b"lock"));
        let held = |text: &str| {
            let mut held = Held::default();
            held.file(STAMP, text.len() as u64, &mut text.as_bytes(), |_| {}).unwrap();
            held
        };
        let whole = stamp(&wanted, lock, true);
        assert!(held(&whole).is_complete() && held(&whole).has_stamp(&whole));
        for text in [stamp(&wanted, lock, false), String::new(), whole[..whole.len() / 2].to_owned()] {
            assert!(!held(&text).is_complete() && held(&text).is_stamped(), "{text}");
        }
        assert!(!Held::default().is_complete() && !Held::default().is_stamped());
    }
}
