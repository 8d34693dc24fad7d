//! Stamps: what a file looked like (device, inode, size, mtime, ctime) when its digest was last computed. A file that
//! still looks so need not be read again by `image`. They are never data, only time saved: without them, or with
//! other ones, the result is the same. `verify-models` does not use them.

use std::collections::BTreeMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use model_lock::Digest;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::write;

/// What a file looks like without reading it. The change time catches a write whose modification time was set back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Stamp {
    look: Look,
    digest: Digest,
    /// Whether it was old enough when it was read that a later write must show in its change time.
    #[serde(skip, default = "settled")]
    settled: bool,
}

fn settled() -> bool {
    true
}

/// A write within this time of the last one may leave the change time as it was (the coarsest file systems tick every
/// two seconds).
const TICK: Duration = Duration::from_secs(2);

/// The stamps of a workspace.
#[derive(Debug)]
pub struct Stamps {
    file: PathBuf,
    known: Mutex<BTreeMap<String, Stamp>>,
}

/// A file that is about to be read.
#[derive(Debug)]
pub struct Reading {
    look: Look,
    settled: bool,
}

impl Stamps {
    /// Reads the stamps; none where the file is missing or unreadable.
    #[must_use]
    pub fn load(file: PathBuf) -> Self {
        let known = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Self { file, known: Mutex::new(known) }
    }

    /// Whether the file at `path` looks as it did when it had this digest.
    #[must_use]
    pub fn trusts(&self, path: &Path, digest: Digest) -> bool {
        let Ok(metadata) = path.metadata() else { return false };
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(&key(path)).is_some_and(|stamp| stamp.digest == digest && stamp.look == Look::of(&metadata))
    }

    /// To be called with the open file before its first byte is read.
    #[expect(clippy::disallowed_methods, reason = "tells whether a later write must show; reaches no output")]
    pub fn before(file: &File) -> io::Result<Reading> {
        let look = Look::of(&file.metadata()?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::from_secs(u64::try_from(look.changed.0).unwrap_or(u64::MAX));
        Ok(Reading { look, settled: changed.checked_add(TICK).is_some_and(|settled| settled < now) })
    }

    /// To be called after its last byte was read and the digest was found. A file that changed meanwhile gets no stamp.
    pub fn after(&self, path: &Path, reading: &Reading, digest: Digest) {
        if path.metadata().is_ok_and(|metadata| Look::of(&metadata) == reading.look) {
            let stamp = Stamp { look: reading.look, digest, settled: reading.settled };
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key(path), stamp);
        }
    }

    /// To be called for a file that this program has just written, with this digest, under a name of its own.
    pub fn wrote(&self, path: &Path, digest: Digest) {
        if let Ok(metadata) = path.metadata() {
            let stamp = Stamp { look: Look::of(&metadata), digest, settled: true };
            self.known.lock().unwrap_or_else(PoisonError::into_inner).insert(key(path), stamp);
        }
    }

    /// Writes the stamps that hold beyond this run.
    pub fn save(&self) -> Result<()> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let lasting: BTreeMap<_, _> =
            known.iter().filter(|(path, stamp)| stamp.settled && Path::new(path).exists()).collect();
        write::file(&self.file, &serde_json::to_vec_pretty(&lasting).unwrap_or_default())
    }
}

fn key(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_holds_until_the_file_looks_different() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let stamps = Stamps::load(folder.path().join("stamps.json"));
        let digest = Digest::of(b"one");
        assert!(!stamps.trusts(&path, digest));
        let reading = Stamps::before(&File::open(&path).unwrap()).unwrap();
        stamps.after(&path, &reading, digest);
        assert!(stamps.trusts(&path, digest));
        assert!(!stamps.trusts(&path, Digest::of(b"two")));
        // Within one tick of the last write nothing is kept for another run.
        stamps.save().unwrap();
        assert!(!Stamps::load(folder.path().join("stamps.json")).trusts(&path, digest));
        // Same size, modification time set back: the change time tells.
        let modified = path.metadata().unwrap().modified().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&path, "two").unwrap();
        File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        assert!(!stamps.trusts(&path, digest));
        // A file that changes while it is read gets no stamp.
        let reading = Stamps::before(&File::open(&path).unwrap()).unwrap();
        std::fs::write(&path, "longer").unwrap();
        stamps.after(&path, &reading, Digest::of(b"longer"));
        assert!(!stamps.trusts(&path, Digest::of(b"longer")));
    }
}
