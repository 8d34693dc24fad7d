//! Bytes against the lock. It owns what a disagreement is ([`Finding`]) and how one is found; it does not know where
//! the bytes come from, nor what is done about a finding.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::digest::{Digest, Hasher, read_chunks};
use crate::format::{PREFIX, accident};
use crate::human;
use crate::lock::ModelFile;

/// One disagreement between a lock and what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The model.
    pub model: String,
    /// The file, relative to the model.
    pub path: String,
    /// What disagrees.
    pub kind: FindingKind,
    /// What the lock says; nothing for an extra file.
    pub expected: Option<Content>,
    /// What is there; nothing for a missing file.
    pub found: Option<Content>,
    /// Where it is.
    pub at: PathBuf,
    /// The likely cause, where the content or the surroundings tell it.
    pub cause: Option<String>,
}

/// What can disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum FindingKind {
    /// The lock has it, and it is not there.
    Missing,
    /// It is there, and the lock does not have it.
    Extra,
    /// It has fewer bytes than the lock says.
    Shorter,
    /// It has more bytes than the lock says.
    Longer,
    /// It has the right number of bytes, and they are others.
    Different,
    /// It is a folder, a pipe, a device.
    NotAFile,
}

/// Size in bytes, and digest where every byte was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Content {
    /// Size in bytes.
    pub size: u64,
    /// The digest, unless the size alone was enough to tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.digest {
            Some(digest) => write!(f, "{digest} ({} bytes)", human::grouped(self.size)),
            None => write!(f, "{} bytes", human::grouped(self.size)),
        }
    }
}

impl FindingKind {
    /// What it says of a file, as in "`a.gguf` is missing".
    #[must_use]
    pub fn says(self) -> &'static str {
        match self {
            Self::Missing => "is missing",
            Self::Extra => "is not in models.lock",
            Self::Shorter => "is shorter than models.lock says",
            Self::Longer => "is longer than models.lock says",
            Self::Different => "has other bytes than models.lock says",
            Self::NotAFile => "is not a regular file",
        }
    }
}

/// Why a file could not be confirmed.
#[derive(Debug)]
pub enum Problem {
    /// It disagrees.
    Finding(Box<Finding>),
    /// It could not be told: reading failed.
    Failed(Failure),
}

/// A file that could not be read, so that nothing is known of it.
#[derive(Debug, thiserror::Error)]
#[error("failed to read `{}` of model `{model}`", .at.display())]
pub struct Failure {
    /// The model.
    pub model: String,
    /// Where the file is.
    pub at: PathBuf,
    /// What the system said.
    #[source]
    pub error: io::Error,
}

/// A file of a model and where it is.
#[derive(Debug, Clone)]
pub struct Located<'a> {
    /// What the lock says of it.
    pub file: ModelFile<'a>,
    /// Where it is.
    pub at: PathBuf,
}

/// How much of a file is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Every byte, also of a file of the wrong size, so that its digest can be told.
    Report,
    /// Every byte, unless the size tells already.
    Full,
    /// Only the size.
    Size,
}

impl Located<'_> {
    /// Opens the file once and looks at that descriptor. Every byte that is read goes to `each`, in order; it is
    /// trustworthy once this returns `Ok`. The file comes back rewound.
    pub fn check(&self, depth: Depth, mut each: impl FnMut(&[u8])) -> Result<File, Problem> {
        let mut file = match open_regular(&self.at) {
            Ok(Some(file)) => file,
            Ok(None) => return Err(self.finding(FindingKind::NotAFile, None, Some(not_a_file(&self.at)))),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Err(self.finding(FindingKind::Missing, None, None));
            }
            Err(error) => return Err(self.failure(error)),
        };
        let size = file.metadata().map_err(|error| self.failure(error))?.len();
        let expected = self.file.size;
        let (size, digest) = if depth == Depth::Report || (depth == Depth::Full && size == expected) {
            let mut hasher = Hasher::default();
            let read = read_chunks(&mut file, size, |bytes| {
                hasher.update(bytes);
                each(bytes);
                Ok(())
            });
            (read.map_err(|error| self.failure(error))?, Some(hasher.finish()))
        } else {
            (size, None)
        };
        let kind = match size.cmp(&expected) {
            std::cmp::Ordering::Less => FindingKind::Shorter,
            std::cmp::Ordering::Greater => FindingKind::Longer,
            std::cmp::Ordering::Equal if digest.is_some_and(|digest| digest != self.file.digest) => {
                FindingKind::Different
            }
            std::cmp::Ordering::Equal => {
                file.rewind().map_err(|error| self.failure(error))?;
                return Ok(file);
            }
        };
        let cause = self.accident(&mut file);
        Err(self.finding(kind, Some(Content { size, digest }), cause))
    }

    fn accident(&self, file: &mut File) -> Option<String> {
        let mut prefix = Vec::new();
        file.rewind().ok()?;
        file.take(PREFIX as u64).read_to_end(&mut prefix).ok()?;
        match accident(self.file.path, &prefix) {
            Some(refused) => Some(format!("it {refused}")),
            None if prefix.is_empty() => Some("it is empty".to_owned()),
            None => None,
        }
    }

    fn finding(&self, kind: FindingKind, found: Option<Content>, cause: Option<String>) -> Problem {
        let ModelFile { model, path, size, digest, .. } = self.file;
        Problem::Finding(Box::new(Finding {
            model: model.to_owned(),
            path: path.to_owned(),
            kind,
            expected: Some(Content { size, digest: Some(digest) }),
            found,
            at: self.at.clone(),
            cause,
        }))
    }

    fn failure(&self, error: io::Error) -> Problem {
        Problem::Failed(Failure { model: self.file.model.to_owned(), at: self.at.clone(), error })
    }
}

/// Opens what is a regular file, through symbolic links; `None` for anything else. It looks before it opens, since
/// opening a pipe waits for a writer.
pub fn open_regular(path: &Path) -> io::Result<Option<File>> {
    if !path.metadata()?.is_file() {
        return Ok(None);
    }
    let file = File::open(path)?;
    Ok(file.metadata()?.is_file().then_some(file))
}

fn not_a_file(path: &Path) -> String {
    let what =
        if path.is_dir() { "a directory stands in its place" } else { "a pipe, socket or device stands in its place" };
    what.to_owned()
}

/// Runs `work` on every item on all cores and gives the results in the order of the items.
pub fn parallel<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    if threads <= 1 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let mut results: Vec<(usize, R)> = std::thread::scope(|scope| {
        let worker = || {
            let mut mine = Vec::new();
            while let Some((index, item)) = {
                let index = next.fetch_add(1, Ordering::Relaxed);
                items.get(index).map(|item| (index, item))
            } {
                mine.push((index, work(item)));
            }
            mine
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        // A worker that panics takes the program with it: no file may count as looked at when it was not.
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_disagreement_has_its_kind_and_cause() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let write = |name: &str, bytes: &[u8]| std::fs::write(at(name), bytes).unwrap();
        write("right", b"0123456789");
        write("shorter", b"012345678");
        write("longer", b"0123456789a");
        write("different", b"0123456780");
        write("empty", b"");
        write("pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n");
        std::fs::create_dir(at("folder")).unwrap();
        let digest = Digest::of(b"0123456789");
        let check = |name: &'static str, depth| {
            let file = ModelFile { model: "m", target: "/models/m", path: name, size: 10, digest };
            match (Located { file, at: at(name) }).check(depth, |_| {}) {
                Ok(_) => "ok".to_owned(),
                Err(Problem::Finding(finding)) => {
                    format!("{:?} {}", finding.kind, finding.cause.unwrap_or_default()).trim_end().to_owned()
                }
                Err(Problem::Failed(failure)) => failure.to_string(),
            }
        };
        for (name, full, size) in [
            ("right", "ok", "ok"),
            ("shorter", "Shorter", "Shorter"),
            ("longer", "Longer", "Longer"),
            ("different", "Different", "ok"),
            ("empty", "Shorter it is empty", "Shorter it is empty"),
            (
                "pointer",
                "Longer it is a Git LFS pointer, not the file itself",
                "Longer it is a Git LFS pointer, not the file itself",
            ),
            ("folder", "NotAFile a directory stands in its place", "NotAFile a directory stands in its place"),
            ("gone", "Missing", "Missing"),
            ("right/below-a-file", "Missing", "Missing"),
        ] {
            assert_eq!(check(name, Depth::Full), full, "{name}");
            assert_eq!(check(name, Depth::Report), full, "{name}");
            assert_eq!(check(name, Depth::Size), size, "{name}");
        }
    }

    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(parallel(&items, |item| item * 2), items.iter().map(|item| item * 2).collect::<Vec<_>>());
        assert!(parallel(&[] as &[usize], |item| *item).is_empty());
    }
}
