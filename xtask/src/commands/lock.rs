//! `cargo xtask lock`: the only command that writes models.lock.

use model_lock::codec::{self, FILE_NAME, ParseLockError};
use model_lock::{ModelLock, human};
use serde_json::json;

use crate::console::Console;
use crate::declare::{Declaration, declare};
use crate::error::{Failure, Kind, Result};
use crate::flags::{Global, Lock};
use crate::resolve::resolve;
use crate::{lockfile, write};

/// Runs it.
pub fn run(flags: &Lock, global: &Global, console: &Console) -> Result<()> {
    let declaration = declare(None)?;
    let old = lockfile::bytes(&declaration)?;
    let parsed = old.as_deref().map(lockfile::parse);
    let old = old.map(|bytes| String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
    if let Some(Err(error @ (ParseLockError::Version(_) | ParseLockError::TooLarge(_)))) = parsed {
        // Somebody else's work that this program does not understand: not to be replaced.
        return Err(lockfile::unreadable(error));
    }
    let lock = resolve(&declaration, console)?;
    let text = codec::emit(&lock);
    let changed = old.as_ref() != Some(&text);
    if changed && (flags.check || global.locked().is_some()) {
        return Err(refuse(old.as_deref(), &text, global.locked().filter(|_| !flags.check)));
    }
    if changed {
        write::file(&lockfile::path(&declaration), text.as_bytes())?;
        let before = parsed.and_then(std::result::Result::ok).unwrap_or_default();
        for (verb, what) in changes(&before, &lock) {
            console.status(verb, what);
        }
    }
    let verb = if changed { "Locked" } else { "Unchanged" };
    console.status(verb, format!("{} in {FILE_NAME}", human::count(lock.models().len(), "model")));
    warn_of_missing_licences(&declaration, console);
    console.data(&lock.digest().to_string());
    console.json(&json!({ "ok": true, "lock": lock.digest(), "changed": changed, "models": lock.models().len() }));
    Ok(())
}

fn refuse(old: Option<&str>, new: &str, flag: Option<&str>) -> Failure {
    let because = flag.map_or(String::new(), |flag| format!(", but `{flag}` was passed"));
    match old {
        Some(old) => Failure::new(Kind::Lock, format!("models.lock is out of date{because}"))
            .details([write::diff(FILE_NAME, old, new)])
            .help("run `cargo xtask lock` and commit models.lock"),
        None => Failure::new(Kind::Lock, format!("models.lock does not exist{because}"))
            .help("run `cargo xtask lock` and commit models.lock"),
    }
}

/// What is new, gone or different, by model.
fn changes(old: &ModelLock, new: &ModelLock) -> Vec<(&'static str, String)> {
    let mut changes = Vec::new();
    for model in new.models() {
        let size = human::bytes(model.size());
        match old.model(model.name.as_str()) {
            None => changes
                .push(("Adding", format!("{} ({}, {size})", model.name, human::count(model.files.len(), "file")))),
            Some(before) if before != model => {
                let layers = model.layers();
                let kept = before.layers();
                let fresh = layers.iter().filter(|(layer, _)| !kept.iter().any(|(known, _)| known == layer)).count();
                changes.push((
                    "Updating",
                    format!("{} ({} of {} new)", model.name, fresh, human::count(layers.len(), "layer")),
                ));
            }
            Some(_) => {}
        }
    }
    for model in old.models().iter().filter(|model| new.model(model.name.as_str()).is_none()) {
        changes.push(("Removing", model.name.to_string()));
    }
    changes
}

fn warn_of_missing_licences(declaration: &Declaration, console: &Console) {
    for model in declaration.models.iter().filter(|model| model.license.is_none()) {
        console.detail("Note", || format!("model `{}` declares no license", model.name));
    }
}
