//! `cargo xtask verify-models`: every byte of every model, against models.lock.

use model_lock::human;
use serde_json::json;

use crate::console::Console;
use crate::declare::declare;
use crate::error::Result;
use crate::flags::VerifyModels;
use crate::lockfile;
use crate::verify::{Report, verify};

/// Runs it.
pub fn run(flags: &VerifyModels, console: &Console) -> Result<()> {
    let declaration = declare(None)?;
    for name in &flags.models {
        declaration.model(name)?;
    }
    let lock = lockfile::read_fresh(&declaration)?;
    let chosen = |name: &str| flags.models.is_empty() || flags.models.iter().any(|wanted| wanted == name);
    let models: Vec<_> = declaration
        .models
        .iter()
        .filter(|model| chosen(model.name.as_str()))
        .filter_map(|model| Some((model, lock.model(model.name.as_str())?)))
        .collect();
    if models.is_empty() {
        console.warn("no models are declared", Some("declare one under `[workspace.metadata.models]` in Cargo.toml"));
    }
    let result = verify(&declaration.root, &models, None, console)?;
    let listed: Vec<_> = models
        .iter()
        .map(|(_, locked)| json!({ "name": locked.name, "files": locked.files.len(), "size": locked.size() }))
        .collect();
    let none = Report::default();
    let report = result.as_ref().err().unwrap_or(&none);
    let unread: Vec<_> = report
        .unread
        .iter()
        .map(|unread| json!({ "model": unread.model, "at": unread.at, "error": unread.error.to_string() }))
        .collect();
    let document = json!({
        "ok": result.is_ok(), "lock": lock.digest(), "models": listed, "findings": report.findings, "unread": unread,
    });
    match result {
        Ok(verified) => {
            let size = models.iter().map(|(_, locked)| locked.size()).sum();
            let (count, files) = (human::count(models.len(), "model"), human::count(verified.files().len(), "file"));
            console.status("Verified", format!("{count} ({files}, {}): as in models.lock", human::bytes(size)));
            console.data(&lock.digest().to_string());
            console.json(&document);
            Ok(())
        }
        Err(report) => Err(report.into_failure().document(document)),
    }
}
