//! Files of the workspace, read whole and written safely. They are written beside their place, synced, and renamed into
//! it: whoever reads sees the old file or the new one, whenever the writer is killed. A temporary file that was left
//! behind is overwritten by the next run.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Failure, Kind, OrFail as _, Result};

/// Replaces the file at `path` by `bytes`, with mode 0644 less the umask.
pub fn file(path: &Path, bytes: &[u8]) -> Result<()> {
    stream(path, |out| out.write_all(bytes).or_fail(Kind::Io, || format!("failed to write `{}`", path.display())))
}

/// Replaces the file at `path` by what `fill` writes. Where `fill` fails, the old file stays.
pub fn stream<T>(path: &Path, fill: impl FnOnce(&mut File) -> Result<T>) -> Result<T> {
    let fail = || format!("failed to write `{}`", path.display());
    let temporary = temporary(path)?;
    let filled = File::create(&temporary).or_fail(Kind::Io, fail).and_then(|mut out| {
        let value = fill(&mut out)?;
        out.sync_all().or_fail(Kind::Io, fail)?;
        Ok(value)
    });
    let renamed = filled.and_then(|value| {
        fs::rename(&temporary, path).or_fail(Kind::Io, fail)?;
        sync_folder(path)?;
        Ok(value)
    });
    if renamed.is_err() {
        // The first failure is the one to tell; a leftover is harmless.
        let _ = fs::remove_file(&temporary);
    }
    renamed
}

/// Makes a rename within the folder of `path` survive a power loss.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .or_fail(Kind::Io, || format!("failed to sync `{}`", folder.display()))
}

/// `.NAME.tmp` beside NAME.
fn temporary(path: &Path) -> Result<PathBuf> {
    let name =
        path.file_name().ok_or_else(|| Failure::new(Kind::Io, format!("`{}` is not a file name", path.display())))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".tmp");
    Ok(path.with_file_name(hidden))
}

/// The bytes of the file at `path`, if there is one.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).or_fail(Kind::Io, || format!("failed to read `{}`", path.display())),
    }
}

/// Creates the folder and its parents.
pub fn folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).or_fail(Kind::Io, || format!("failed to create the folder `{}`", path.display()))
}

/// What became of a generated file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It had this text already and was not touched.
    Unchanged,
    /// It was written.
    Written,
}

/// Writes a generated text file unless it has this text already.
pub fn generated(path: &Path, text: &str) -> Result<Outcome> {
    generated_bytes(path, text.as_bytes())
}

/// Writes a generated file unless it has these bytes already.
pub fn generated_bytes(path: &Path, bytes: &[u8]) -> Result<Outcome> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(Outcome::Unchanged);
    }
    file(path, bytes)?;
    Ok(Outcome::Written)
}

/// Compares a generated text file with what it should be; line ends may be CRLF. `command` is what writes it.
pub fn check(path: &Path, name: &str, text: &str, command: &str) -> Result<()> {
    let Some(old) = read(path)? else {
        return Err(Failure::new(Kind::Lock, format!("`{name}` does not exist"))
            .help(format!("run `{command}` and commit {name}")));
    };
    let old = String::from_utf8_lossy(&old).replace("\r\n", "\n");
    if old == text {
        return Ok(());
    }
    Err(Failure::new(Kind::Lock, format!("`{name}` is out of date"))
        .details([diff(name, &old, text)])
        .help(format!("run `{command}` and commit {name}")))
}

/// A unified diff from `old` to `new`.
#[must_use]
pub fn diff(name: &str, old: &str, new: &str) -> String {
    let diff = similar::TextDiff::from_lines(old, new);
    diff.unified_diff().context_radius(1).header(name, "expected").to_string()
}
