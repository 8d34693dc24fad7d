//! `[package.metadata.image]`, and what an image takes from the package itself.

use std::collections::BTreeMap;

use cargo_metadata::TargetKind;
use serde_json::Value;

use super::table::{Problems, Table, kind_of, nearest};
use super::{DEFAULT_USER, DeclaredImage, DeclaredModel};
use crate::oci::reference::Reference;

/// The image that compiles an app unless another one is declared: the official Rust image.
const DEFAULT_BUILDER: &str =
    "docker.io/library/rust:1.95.0-alpine3.22@sha256:064dfc925d68d1a63f4fd2871bd7dc6e6ea56692989a487185855d62885d90aa";

const IMAGE_KEYS: [&str; 10] =
    ["models", "base", "builder", "ports", "bin", "env", "healthcheck", "rustflags", "target", "user"];

pub(super) fn image(
    package: &cargo_metadata::Package,
    manifest: &str,
    declared: &[DeclaredModel],
    problems: &mut Problems,
) -> Option<DeclaredImage> {
    let value = package.metadata.get("image")?;
    let table = Table::new(manifest, "package.metadata.image".to_owned(), value, &IMAGE_KEYS, problems)?;
    let known = || declared.iter().map(|model| model.name.as_str());
    let models = match table.strings("models", problems) {
        None => declared.iter().map(|model| model.name.clone()).collect(),
        Some(names) => {
            let mut models = Vec::new();
            for name in names {
                if let Some(model) = declared.iter().find(|model| model.name.as_str() == name) {
                    models.push(model.name.clone());
                } else {
                    let near =
                        nearest(&name, known()).map_or(String::new(), |near| format!("; did you mean `{near}`?"));
                    problems.push(
                        &table,
                        "models",
                        format!("names `{name}`, which is not declared in `Cargo.toml`{near}"),
                    );
                }
            }
            models.sort();
            models.dedup();
            models
        }
    };
    let base = match table.string("base", problems) {
        None | Some("scratch") => None,
        Some(text) => Reference::pinned(text).map_err(|error| problems.push(&table, "base", error)).ok(),
    };
    let builder = table.string("builder", problems).unwrap_or(DEFAULT_BUILDER);
    let builder = Reference::pinned(builder).map_err(|error| problems.push(&table, "builder", error)).ok();
    let ports = ports(&table, problems);
    let healthcheck = table.strings("healthcheck", problems);
    let env = environment(&table, problems);
    let user = table.string("user", problems).unwrap_or(DEFAULT_USER);
    let numeric = |id: &str| id.parse::<u32>().is_ok_and(|id| id > 0);
    if !user.split_once(':').is_some_and(|(uid, gid)| numeric(uid) && numeric(gid)) {
        problems.push(
            &table,
            "user",
            format!("is `{user}`, expected a numeric `UID:GID` other than root, as in `{DEFAULT_USER}`"),
        );
    }
    let rustflags = rustflags(&table, problems);
    let target = table.string("target", problems).map(str::to_owned);
    if let Some(target) = target.as_deref().filter(|target| !target.contains("-linux-")) {
        problems.push(
            &table,
            "target",
            format!("is `{target}`, expected a triple for Linux, as in `x86_64-unknown-linux-musl`"),
        );
    }
    for (key, value) in [("license", &package.license), ("repository", &package.repository)] {
        if let Some(text) = value.as_ref().filter(|text| text.chars().any(char::is_control)) {
            let text = text.escape_debug();
            problems.0.push(format!("`{manifest}`: `package.{key}` has a control character: `{text}`"));
        }
    }
    let bin = bin(package, &table, problems);
    Some(DeclaredImage {
        package: package.name.to_string(),
        version: package.version.to_string(),
        license: package.license.clone(),
        repository: package.repository.clone(),
        bin: bin?,
        models,
        base,
        builder: builder?,
        ports,
        healthcheck,
        env,
        user: user.to_owned(),
        target,
        rustflags,
    })
}

fn bin(package: &cargo_metadata::Package, table: &Table<'_>, problems: &mut Problems) -> Option<String> {
    let bins: Vec<&str> = package
        .targets
        .iter()
        .filter(|target| target.is_kind(TargetKind::Bin))
        .map(|target| target.name.as_str())
        .collect();
    match (table.string("bin", problems), bins.as_slice()) {
        (Some(name), _) if bins.contains(&name) => return Some(name.to_owned()),
        (Some(name), _) => {
            problems.push(table, "bin", format!("is `{name}`, which is no binary of `{}`", package.name));
        }
        (None, [only]) => return Some((*only).to_owned()),
        (None, []) => problems.push(table, "bin", format!("has nothing to name: `{}` has no binary", package.name)),
        (None, _) => match package.default_run.as_deref().filter(|name| bins.contains(name)) {
            Some(name) => return Some(name.to_owned()),
            None => problems.push(table, "bin", format!("is missing: choose one of {}", bins.join(", "))),
        },
    }
    None
}

fn ports(table: &Table<'_>, problems: &mut Problems) -> Vec<u16> {
    let Some(value) = table.values.get("ports") else { return Vec::new() };
    let number = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port > 0);
    let ports: Option<Vec<u16>> = value.as_array().and_then(|ports| ports.iter().map(number).collect());
    let Some(mut ports) = ports else {
        problems.push(table, "ports", format!("is `{value}`, expected a list of numbers from 1 to 65535"));
        return Vec::new();
    };
    ports.sort_unstable();
    ports.dedup();
    ports
}

/// Environment variables that the image sets itself.
const OWN_ENV: [&str; 2] = ["PATH", "IMAGE_REVISION"];

fn environment(table: &Table<'_>, problems: &mut Problems) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    let Some(value) = table.values.get("env") else { return environment };
    let Value::Object(values) = value else {
        problems.push(table, "env", format!("is {}, expected a table", kind_of(value)));
        return environment;
    };
    for (name, value) in values {
        let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        let key = format!("env.{name}");
        if !first || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            problems.push(table, &key, "is not a name for an environment variable");
        } else if OWN_ENV.contains(&name.as_str()) {
            problems.push(table, &key, "is set by the image itself");
        } else {
            match value {
                Value::String(text) if !text.chars().any(char::is_control) => {
                    environment.insert(name.clone(), text.clone());
                }
                other => problems.push(
                    table,
                    &key,
                    format!("is {}, expected a string without control characters", kind_of(other)),
                ),
            }
        }
    }
    environment
}

fn rustflags(table: &Table<'_>, problems: &mut Problems) -> Option<Vec<String>> {
    let flags = table.strings("rustflags", problems)?;
    for flag in &flags {
        // They stand in a Dockerfile's variable, separated by spaces.
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | '\\' | '$' | '`' | '#');
        if !flag.chars().all(plain) {
            let what = format!(
                "has the item `{}`, expected one flag without spaces, quotes, `$`, `#`, as in `-Ctarget-cpu=x86-64-v3`",
                flag.escape_debug()
            );
            problems.push(table, "rustflags", what);
        } else if flag.ends_with("target-cpu=native") {
            let what = format!(
                "has the item `{flag}`, which means another processor on every machine; name one, as in `-Ctarget-cpu=x86-64-v3`"
            );
            problems.push(table, "rustflags", what);
        }
    }
    Some(flags)
}
