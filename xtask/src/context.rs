//! The build context for a plain `docker build`: one folder for each model layer, named by the layer's digest, with the
//! folders 0755, the files 0644 and every mtime 0, so that `COPY --link FOLDER/ /` gives the canonical layer. The digest in
//! the path keeps a builder's cache from taking new bytes for old ones (it compares path, size and mtime only).
//! BuildKit never compares the times of folders, though: where it was sent a folder with a wrong file and then with the
//! right one, the folder has the time of that change, and the layer another `diff_id` with the right bytes in it. That is
//! the builder's memory, which nothing here can heal; `docker buildx prune` does.
//! Where the file system can share blocks (btrfs, xfs, APFS), no second copy is made.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use model_lock::{Digest, ModelLock};

use crate::dockerfile::FOLDER;
use crate::error::{Kind, OrFail as _, Result};
use crate::plan::{ImagePlan, ModelLayer};
use crate::stamp::Stamps;
use crate::verify::VerifiedModels;
use crate::write;

/// Stages the plan's model layers and removes those that `lock` no longer has. Gives the number of bytes copied.
pub fn stage(root: &Path, plan: &ImagePlan, lock: &ModelLock, models: &VerifiedModels, stamps: &Stamps) -> Result<u64> {
    let folder = root.join(FOLDER);
    write::folder(&folder)?;
    let mut copied = 0;
    for layer in &plan.model_layers {
        let place = folder.join(layer.layer.digest.hex());
        if is_staged(&place, layer, stamps) {
            continue;
        }
        let temporary = folder.join(format!(".{}.tmp", layer.layer.digest.hex()));
        remove(&temporary)?;
        for file in &layer.files {
            let in_container = layer.target.join(&file.path);
            let Some(source) = models.files().iter().find(|known| known.in_container == in_container) else { continue };
            let at = temporary.join(in_container.trim_start_matches('/'));
            copy(&source.at, &at).or_fail(Kind::Io, || format!("failed to stage `{}`", source.at.display()))?;
            copied += file.size;
        }
        normalise(&temporary).or_fail(Kind::Io, || format!("failed to stage `{}`", temporary.display()))?;
        remove(&place)?;
        fs::rename(&temporary, &place).or_fail(Kind::Io, || format!("failed to stage `{}`", place.display()))?;
        for file in &layer.files {
            stamps.wrote(&place.join(layer.target.join(&file.path).trim_start_matches('/')), file.digest);
        }
    }
    prune(&folder, lock)?;
    Ok(copied)
}

/// Whether the folder holds the layer's files, as they were staged, and nothing else: the builder copies all of it.
fn is_staged(place: &Path, layer: &ModelLayer, stamps: &Stamps) -> bool {
    let at = |file: &model_lock::LockedFile| place.join(layer.target.join(&file.path).trim_start_matches('/'));
    let expected: BTreeSet<PathBuf> = layer.files.iter().map(at).collect();
    let mut found = BTreeSet::new();
    list(place, &mut found).is_ok()
        && found == expected
        && layer.files.iter().all(|file| stamps.trusts(&at(file), file.digest))
}

/// Everything below `folder` that is no folder, and every folder with nothing in it.
#[expect(clippy::disallowed_methods, reason = "the set is sorted")]
fn list(folder: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.peekable();
    if entries.peek().is_none() {
        found.insert(folder.to_owned());
    }
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), found)?;
        } else {
            found.insert(entry.path());
        }
    }
    Ok(())
}

/// `fs::copy` shares blocks where the file system can.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to)?;
    fs::set_permissions(to, Permissions::from_mode(0o644))?;
    File::options().write(true).open(to)?.set_times(FileTimes::new().set_modified(UNIX_EPOCH).set_accessed(UNIX_EPOCH))
}

/// Folders to mode 0755 and mtime 0, from the inside out: writing into a folder changes its mtime.
#[expect(clippy::disallowed_methods, reason = "the result does not depend on the order")]
fn normalise(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            normalise(&entry.path())?;
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    File::open(folder)?.set_times(FileTimes::new().set_modified(UNIX_EPOCH).set_accessed(UNIX_EPOCH))
}

#[expect(clippy::disallowed_methods, reason = "what is removed does not depend on the order")]
fn prune(folder: &Path, lock: &ModelLock) -> Result<()> {
    let files = lock.models().iter().flat_map(|model| &model.files);
    let wanted: BTreeSet<Digest> = files.map(|file| file.layer.digest).collect();
    let fail = || format!("failed to clean `{}`", folder.display());
    for entry in fs::read_dir(folder).or_fail(Kind::Io, fail)? {
        let entry = entry.or_fail(Kind::Io, fail)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        // Only what this file has put there: a digest, or its temporary name.
        let staged = Digest::from_hex(name.trim_start_matches('.').trim_end_matches(".tmp"));
        if staged.is_ok_and(|digest| name.starts_with('.') || !wanted.contains(&digest)) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).or_fail(Kind::Io, || format!("failed to remove `{}`", folder.display()))
        }
        _ => Ok(()),
    }
}
