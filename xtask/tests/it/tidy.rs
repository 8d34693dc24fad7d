//! The architecture, as tests over the source text: what each file may import, touch and print, and that generated
//! files are fresh. A new file has to say here where it stands.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::{Workspace, command, output};

/// The folder of the whole project.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn is_rust(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "rs")
}

/// Every Rust file below these folders, relative to the project, with its text.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    let project = Workspace::at(&root());
    let mut sources = Vec::new();
    for folder in folders {
        for path in project.files(folder).iter().filter(|path| is_rust(path)) {
            let path = format!("{folder}/{path}");
            let text = project.text(&path);
            sources.push((path, text));
        }
    }
    assert!(sources.len() > 5 * folders.len(), "the folders moved");
    sources
}

/// The text without comments and without what stands behind the first `#[cfg(test)]`.
fn code(text: &str) -> String {
    let text = text.split("\n#[cfg(test)]\n").next().unwrap();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.flat_map(|line| [line, "\n"]).collect()
}

/// Fails with every line of `problems`.
#[track_caller]
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut problems = Vec::new();
    let files = sources(&["xtask/src", "xtask/tests", "model-lock/src"]);
    let app = Workspace::at(&root()).files("app").into_iter();
    let app = app.filter(|path| is_rust(path) && !path.starts_with("target/"));
    let app = app.map(|path| (format!("app/{path}"), Workspace::at(&root()).text(format!("app/{path}"))));
    for (path, text) in files.into_iter().chain(app) {
        if !text.starts_with("//! ") {
            problems.push(format!("{path} does not open with `//! `"));
        }
    }
    none(&problems);
}

/// Files that are functions from values to values.
const PURE: [&str; 10] = [
    "xtask/src/plan.rs",
    "xtask/src/dockerfile.rs",
    "xtask/src/oci/tar.rs",
    "xtask/src/oci/spec.rs",
    "xtask/src/oci/reference.rs",
    "xtask/src/oci/assemble.rs",
    "model-lock/src/digest.rs",
    "model-lock/src/path.rs",
    "model-lock/src/lock.rs",
    "model-lock/src/codec.rs",
];

#[test]
fn pure_files_touch_no_file_clock_environment_or_network() {
    let touching = [
        "std::fs",
        "std::env",
        "std::net",
        "std::process",
        "std::os",
        "std::{",
        "SystemTime",
        "Instant",
        "fs::",
        "env::",
        "File::",
        "Command::",
        ".exists()",
        ".metadata()",
        ".is_file()",
        ".is_dir()",
        ".canonicalize()",
        "read_dir",
        "xshell",
    ];
    let mut problems = Vec::new();
    let files = sources(&["xtask/src", "model-lock/src"]);
    for pure in PURE {
        assert!(files.iter().any(|(path, _)| path == pure), "{pure} moved");
    }
    for (path, text) in &files {
        if !PURE.contains(&path.as_str()) && !path.starts_with("xtask/src/mounts") {
            continue;
        }
        let code = code(text);
        problems.extend(touching.iter().filter(|word| code.contains(*word)).map(|word| format!("{path} has `{word}`")));
    }
    none(&problems);
}

#[test]
fn only_one_file_prints() {
    let printing = ["println!", "print!(", "eprintln!", "eprint!(", "dbg!(", "io::stdout()"];
    let mut problems = Vec::new();
    for (path, text) in sources(&["xtask/src", "model-lock/src"]) {
        let code = code(&text);
        let allowed = match path.as_str() {
            "xtask/src/console.rs" => continue,
            // How build scripts talk with Cargo.
            "model-lock/src/build.rs" => vec!["println!(\"cargo::rerun-if-changed={lock}\");"],
            _ => Vec::new(),
        };
        let code = allowed.iter().fold(code, |code, line| code.replace(line, ""));
        problems.extend(printing.iter().filter(|word| code.contains(*word)).map(|word| format!("{path} has `{word}`")));
    }
    none(&problems);
}

#[test]
fn the_environment_is_read_where_flags_are_read() {
    let reading = ["env::var", "env::args", "env::current_dir", "env::temp_dir", "env::home_dir", "std::env"];
    let mut problems = Vec::new();
    for (path, text) in sources(&["xtask/src", "model-lock/src"]) {
        let code = match path.as_str() {
            "xtask/src/flags.rs" | "model-lock/src/build.rs" => continue,
            // A constant of the compiler, not of the environment.
            "xtask/src/compile.rs" => code(&text).replace("std::env::consts::ARCH", ""),
            _ => code(&text),
        };
        problems.extend(reading.iter().filter(|word| code.contains(*word)).map(|word| format!("{path} has `{word}`")));
    }
    none(&problems);
}

#[test]
fn the_engine_has_one_file_and_nothing_has_a_random_order() {
    let mut problems = Vec::new();
    for (path, text) in sources(&["xtask/src", "model-lock/src"]) {
        let code = code(&text);
        if code.contains("bollard") && !path.starts_with("xtask/src/engine/") {
            problems.push(format!("{path} names `bollard`, which is the engine's"));
        }
        for word in ["HashMap", "HashSet"] {
            if code.contains(word) {
                problems.push(format!("{path} has `{word}`, whose order is random per process"));
            }
        }
        if code.contains("unsafe {") || code.contains("#[allow(") {
            problems.push(format!("{path} has `unsafe` or an `allow` where an `expect` with its reason belongs"));
        }
    }
    // The text of generated code, which cannot expect what an app may well use.
    problems.retain(|problem| !problem.starts_with("model-lock/src/build.rs has `unsafe`"));
    none(&problems);
}

/// What each module may import, in the order of the flow: a stage names what lies before it, and helpers name no stage.
/// `commands`, `flags` and the crate itself may name everything; nothing may name `commands`.
const IMPORTS: [(&str, &[&str]); 29] = [
    // Helpers.
    ("error", &[]),
    ("console", &["error"]),
    ("git", &["error"]),
    ("quote", &[]),
    ("write", &["error"]),
    ("stamp", &["error", "write"]),
    ("oci", &[]),
    ("oci::tar", &[]),
    ("oci::spec", &[]),
    ("oci::reference", &[]),
    ("oci::layer", &["oci::tar", "stamp"]),
    ("source", &["console", "error", "source", "write"]),
    // Stages.
    ("declare", &["error", "oci::reference", "source", "write"]),
    ("resolve", &["console", "declare", "error", "oci::layer", "source"]),
    ("lockfile", &["declare", "error", "resolve", "write"]),
    ("verify", &["console", "declare", "error", "quote", "source", "stamp"]),
    ("plan", &["cargo_config", "declare", "error", "git", "oci::reference", "oci::spec"]),
    ("dockerfile", &["declare", "plan", "quote"]),
    ("cargo_config", &["error"]),
    ("compile", &["cargo_config", "console", "declare", "error", "oci::layer", "oci::spec", "oci::tar", "plan"]),
    ("oci::assemble", &["oci::spec", "plan"]),
    (
        "oci::layout",
        &["console", "error", "oci::assemble", "oci::layer", "oci::reference", "oci::spec", "stamp", "write"],
    ),
    ("oci::archive", &["error", "oci::assemble", "oci::layer", "oci::layout", "oci::reference", "oci::tar", "stamp"]),
    ("context", &["dockerfile", "error", "plan", "stamp", "verify", "write"]),
    ("upload", &["error", "oci::layer"]),
    ("build_context", &["dockerfile", "error", "oci::layer", "oci::tar", "plan", "upload"]),
    ("volume", &["error"]),
    ("engine", &["console", "engine", "error", "oci::reference", "write"]),
    ("mounts", &["declare", "error", "mounts", "oci::reference", "oci::spec", "plan", "quote"]),
];

/// The module of a file of the tool.
fn module(path: &str) -> String {
    let path = path.trim_start_matches("xtask/src/").trim_end_matches(".rs").trim_end_matches("/mod");
    match path.split_once('/') {
        Some(("oci", file)) => format!("oci::{file}"),
        Some((folder, _)) => folder.to_owned(),
        None => path.to_owned(),
    }
}

/// The modules that the code of `module` names.
fn imports(module: &str, code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut name = |path: &str| {
        let path = path.split(' ').next().unwrap_or_default();
        let mut parts = path.split("::").map(|part| part.trim_matches(|c: char| !(c.is_alphanumeric() || c == '_')));
        let first = parts.next().unwrap_or_default();
        let starts_lower = |part: &str| part.starts_with(|c: char| c.is_ascii_lowercase());
        match parts.next().filter(|_| first == "oci") {
            Some(file) if starts_lower(file) => {
                found.insert(format!("oci::{file}"));
            }
            _ if starts_lower(first) => {
                found.insert(first.to_owned());
            }
            _ => {}
        }
    };
    let inside = if module.starts_with("oci::") { "oci::" } else { "" };
    for (mark, prefix) in [("crate::", ""), ("super::", inside)] {
        if mark == "super::" && prefix.is_empty() {
            continue;
        }
        for (at, _) in code.match_indices(mark) {
            // `$crate::` and paths that only end like this are others.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + mark.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                for path in group.split('}').next().unwrap().split(',') {
                    name(&format!("{prefix}{}", path.trim()));
                }
            } else {
                let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
                name(&format!("{prefix}{}", &rest[..end]));
            }
        }
    }
    found
}

#[test]
fn imports_are_found() {
    let check = |module: &str, code: &str, expect: &[&str]| {
        assert_eq!(imports(module, code).iter().map(String::as_str).collect::<Vec<_>>(), expect, "{code}");
    };
    check("plan", "use crate::declare::{Member, Strategy};", &["declare"]);
    check("plan", "use crate::{git, lockfile as l, write::file};", &["git", "lockfile", "write"]);
    check("plan", "let x = crate::dockerfile::shell(y); crate::Digest", &["dockerfile"]);
    check("plan", "use crate::oci::layer::{Layer, Recipe};", &["oci::layer"]);
    check(
        "oci::layout",
        "use super::assemble::{Image, to_bytes}; use super::{tar, spec::Index};",
        &["oci::assemble", "oci::spec", "oci::tar"],
    );
    check("commands", "use super::prepare::x; use mycrate::plan;", &[]);
}

#[test]
fn no_stage_imports_a_later_one() {
    let mut problems = Vec::new();
    for (path, text) in sources(&["xtask/src"]) {
        let module = module(&path);
        let named = imports(&module, &code(&text));
        if ["commands", "flags", "lib", "main"].contains(&module.as_str()) {
            if module == "flags" && named.contains("commands") {
                problems.push(format!("{path} imports `commands`"));
            }
            continue;
        }
        match IMPORTS.iter().find(|(known, _)| *known == module) {
            None => problems.push(format!("{path}: say in `IMPORTS` what `{module}` may import")),
            Some((_, allowed)) => {
                let foreign = named.iter().filter(|name| **name != module && !allowed.contains(&name.as_str()));
                problems.extend(foreign.map(|name| format!("{path} imports `{name}`, which lies behind it")));
            }
        }
    }
    none(&problems);
}

#[test]
fn the_table_of_imports_has_no_circle() {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    let mut left: Vec<_> = IMPORTS.to_vec();
    while !left.is_empty() {
        let count = left.len();
        left.retain(|(module, imports)| {
            let ready = imports.iter().all(|import| import == module || known.contains(import));
            if ready {
                known.insert(module);
            }
            !ready
        });
        assert!(left.len() < count, "a circle among {left:?}");
    }
}

#[test]
fn generated_files_of_this_repository_are_fresh() {
    let check = |arguments: &[&str]| {
        let mut call = command(env!("CARGO_BIN_EXE_xtask"), &root());
        output(call.args(arguments), &root()).expect(0);
    };
    assert!(root().join("models.lock").exists());
    check(&["lock", "--check"]);
    check(&["verify-models"]);
    for mode in ["embed", "mount"] {
        if mode == "embed" || root().join("Dockerfile.mount").exists() {
            check(&["image", &format!("--{mode}"), "--check"]);
        }
    }
}
