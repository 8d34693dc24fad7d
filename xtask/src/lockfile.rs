//! models.lock on disk: read it, and refuse one that does not fit the declaration.

use std::path::PathBuf;

use model_lock::ModelLock;
use model_lock::codec::{self, FILE_NAME, ParseLockError};

use crate::declare::Declaration;
use crate::error::{Failure, Kind, Result};
use crate::resolve::stale;
use crate::write;

/// Where models.lock is.
#[must_use]
pub fn path(declaration: &Declaration) -> PathBuf {
    declaration.root.join(FILE_NAME)
}

/// The bytes of models.lock, if there is one.
pub fn bytes(declaration: &Declaration) -> Result<Option<Vec<u8>>> {
    write::read(&path(declaration))
}

/// The lock with these bytes.
pub fn parse(bytes: &[u8]) -> std::result::Result<ModelLock, ParseLockError> {
    match std::str::from_utf8(bytes) {
        Ok(text) => codec::parse(text),
        Err(error) => {
            let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
            Err(ParseLockError::Toml(format!("line {line}: is not UTF-8")))
        }
    }
}

/// The lock, whether or not it fits the declaration; an empty one where nothing is declared and there is no file.
pub fn read(declaration: &Declaration) -> Result<ModelLock> {
    match bytes(declaration)? {
        Some(bytes) => parse(&bytes).map_err(unreadable),
        None if declaration.models.is_empty() => Ok(ModelLock::default()),
        None => Err(Failure::new(Kind::Lock, "models.lock does not exist")
            .help("run `cargo xtask lock` and commit models.lock")),
    }
}

/// The lock, which fits the declaration.
pub fn read_fresh(declaration: &Declaration) -> Result<ModelLock> {
    let lock = read(declaration)?;
    let lines = stale(declaration, &lock);
    if lines.is_empty() {
        return Ok(lock);
    }
    Err(out_of_date().details(lines))
}

/// The failure for a lock that does not fit, without its details.
#[must_use]
pub fn out_of_date() -> Failure {
    Failure::new(Kind::Lock, "models.lock is out of date").help("run `cargo xtask lock` and commit models.lock")
}

/// The failure for a lock that cannot be read.
#[must_use]
pub fn unreadable(error: ParseLockError) -> Failure {
    let help = match error {
        ParseLockError::Version(_) => "update the xtask of this workspace to a version that knows this lock",
        _ => "run `cargo xtask lock` to write it anew, and compare with `git diff models.lock`",
    };
    Failure::new(Kind::Lock, "failed to read `models.lock`").because(error).help(help)
}
