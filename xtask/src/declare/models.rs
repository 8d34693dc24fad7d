//! `[workspace.metadata.models.*]`.

use model_lock::lock::colliding_targets;
use model_lock::{ModelName, TargetPath};
use serde_json::Value;

use super::table::{Problems, Table, kind_of};
use super::{DeclaredModel, Strategy};
use crate::source::Source;

const MODEL_KEYS: [&str; 8] =
    ["source", "target", "license", "include", "exclude", "mirrors", "strategy", "allow-unsafe-format"];

pub(super) fn models(metadata: &Value, problems: &mut Problems) -> Vec<DeclaredModel> {
    let Some(declared) = metadata.get("models") else { return Vec::new() };
    let name = "workspace.metadata.models".to_owned();
    let Value::Object(tables) = declared else {
        problems.0.push(format!("`Cargo.toml`: `{name}` is {}, expected a table of models", kind_of(declared)));
        return Vec::new();
    };
    let mut models = Vec::new();
    for (key, value) in tables {
        let Some(table) = Table::new("Cargo.toml", format!("{name}.{key}"), value, &MODEL_KEYS, problems) else {
            continue;
        };
        let name = match key.parse::<ModelName>() {
            Ok(name) => name,
            Err(error) => {
                problems.0.push(format!("`Cargo.toml`: `{}` is refused: {error}", table.name));
                continue;
            }
        };
        let strategy = table.string("strategy", problems).and_then(|text| match text {
            "embed" => Some(Strategy::Embed),
            "mount" => Some(Strategy::Mount),
            _ => {
                problems.push(&table, "strategy", format!("is `{text}`, expected `embed` or `mount`"));
                None
            }
        });
        if !table.values.contains_key("source") {
            problems.push(&table, "source", "is missing: name a file or folder of the workspace, or a URL");
        }
        let target = table.parsed("target", problems);
        let mut globs = |key: &str| {
            let globs = table.strings(key, problems).unwrap_or_default();
            for glob in &globs {
                if let Err(error) = glob::Pattern::new(glob) {
                    problems.push(&table, key, format!("has the glob `{glob}`, which is refused: {error}"));
                }
            }
            globs
        };
        let (include, exclude) = (globs("include"), globs("exclude"));
        let license = table.string("license", problems).map(str::to_owned);
        let mirrors = table.strings("mirrors", problems).unwrap_or_default();
        let allow_unsafe_format = table.boolean("allow-unsafe-format", problems);
        let Some(source) = table.parsed::<Source>("source", problems) else { continue };
        let target = target.unwrap_or_else(|| TargetPath::default_for(&name));
        models.push(DeclaredModel {
            name,
            source,
            target,
            license,
            include,
            exclude,
            mirrors,
            strategy,
            allow_unsafe_format,
        });
    }
    for collision in colliding_targets(models.iter().map(|model| (&model.name, &model.target))) {
        problems.0.push(format!("`Cargo.toml`: {collision}"));
    }
    models.sort_by(|a, b| a.name.cmp(&b.name));
    models
}
