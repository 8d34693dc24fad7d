//! For build scripts: models.lock as typed constants. It hashes nothing: it reads the lock, never a model.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use crate::codec::{self, ParseLockError};
use crate::lock::{LockedModel, ModelLock};

/// Writes `$OUT_DIR/models.rs` from the lock at `lock` (relative to the package's folder) and tells Cargo to run the
/// build script again when it changes. A model that the lock no longer has is then a compile error where it is used.
///
/// ```no_run
/// // build.rs
/// model_lock::build::constants("../models.lock");
/// ```
///
/// ```text
/// // src/models.rs
/// include!(concat!(env!("OUT_DIR"), "/models.rs"));
/// ```
///
/// The file defines `LOCK: Digest`, for every model a `Model` such as `DIGITS` and a module such as `digits` with a
/// `ModelFile` for each of its files, such as `digits::MODEL_SAFETENSORS`, and `ALL: &[Model]`.
///
/// # Panics
///
/// If the lock cannot be read or parsed, or the file cannot be written: a build script has no other way to fail.
#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "this is how Cargo talks with build scripts")]
pub fn constants(lock: &str) {
    println!("cargo::rerun-if-changed={lock}");
    let text = std::fs::read_to_string(lock).unwrap_or_else(|error| {
        panic!("failed to read `{lock}`: {error}; help: run `cargo xtask lock`");
    });
    let code =
        code(&text).unwrap_or_else(|error| panic!("failed to read `{lock}`: {error}; help: run `cargo xtask lock`"));
    let out = std::env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR for build scripts");
    let file = Path::new(&out).join("models.rs");
    std::fs::write(&file, code).unwrap_or_else(|error| panic!("failed to write `{}`: {error}", file.display()));
}

/// The Rust code for the lock with this text.
pub fn code(lock: &str) -> Result<String, ParseLockError> {
    let lock = codec::parse(lock)?;
    let mut code = String::new();
    // Writing to a String cannot fail.
    let _ = write_code(&mut code, &lock);
    Ok(code)
}

fn write_code(code: &mut String, lock: &ModelLock) -> std::fmt::Result {
    let models: Vec<_> = lock.models().iter().collect();
    let names = identifiers(models.iter().map(|model| model.name.as_str()));
    writeln!(code, "// @generated from models.lock by its build script.")?;
    writeln!(code, "/// The digest of models.lock.")?;
    writeln!(code, "pub const LOCK: ::model_lock::Digest = {};", digest(lock.digest()))?;
    for (model, name) in models.iter().zip(&names) {
        write_model(code, model, name)?;
    }
    writeln!(code, "/// Every model of models.lock, sorted by name.")?;
    writeln!(code, "pub const ALL: &[::model_lock::runtime::Model<'static>] = &[{}];", names.join(", "))
}

fn write_model(code: &mut String, model: &LockedModel, name: &str) -> std::fmt::Result {
    let LockedModel { name: locked, source, revision, target, license, files, .. } = model;
    let module = module(name);
    let file_names = identifiers(files.iter().map(|file| file.path.as_str()));
    writeln!(code, "/// The model `{locked}`.")?;
    writeln!(code, "pub const {name}: ::model_lock::runtime::Model<'static> = ::model_lock::runtime::Model {{")?;
    writeln!(code, "    name: {:?}, source: {source:?}, revision: {revision:?},", locked.as_str())?;
    writeln!(code, "    target: {:?}, license: {license:?},", target.as_str())?;
    let constants: Vec<_> = file_names.iter().map(|file| format!("{module}::{file}")).collect();
    writeln!(code, "    files: &[{}],\n}};", constants.join(", "))?;
    writeln!(
        code,
        "/// The files of the model `{locked}`.\n#[allow(dead_code, reason = \"an app need not name every file\")]\npub mod {module} {{"
    )?;
    for (file, constant) in files.iter().zip(&file_names) {
        let path = file.path.as_str();
        writeln!(code, "    /// `{}`, {} bytes.", path.replace('`', "'"), file.size)?;
        writeln!(
            code,
            "    pub const {constant}: ::model_lock::runtime::ModelFile<'static> = ::model_lock::runtime::ModelFile {{"
        )?;
        writeln!(code, "        model: {:?}, target: {:?}, path: {path:?},", locked.as_str(), target.as_str())?;
        writeln!(code, "        size: {}, digest: {},\n    }};", file.size, digest(file.digest))?;
    }
    writeln!(code, "}}")
}

fn digest(digest: crate::Digest) -> String {
    format!("::model_lock::Digest::from_bytes({:?})", digest.as_bytes())
}

/// Names of constants for `texts`: upper case, everything else an underscore. Two texts that would share a name get
/// the place in the sorted list behind it, so that adding neither renames the other silently to the wrong file: the
/// shared name itself is given to none of them.
fn identifiers<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<String> {
    let plain: Vec<String> = texts.map(identifier).collect();
    let mut uses = BTreeMap::new();
    for name in &plain {
        *uses.entry(name.clone()).or_insert(0) += 1;
    }
    let mut next: BTreeMap<&str, usize> = BTreeMap::new();
    plain
        .iter()
        .map(|name| {
            if uses[name] == 1 {
                return name.clone();
            }
            let number = next.entry(name).or_default();
            loop {
                *number += 1;
                let numbered = format!("{name}_{number}");
                if !uses.contains_key(&numbered) {
                    return numbered;
                }
            }
        })
        .collect()
}

/// `bge-small.v2` becomes `BGE_SMALL_V2`, `3d/x.gguf` becomes `_3D_X_GGUF`. The names that the file defines itself get
/// an underscore.
fn identifier(text: &str) -> String {
    let mut name: String =
        text.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' }).collect();
    if name.starts_with(|c: char| c.is_ascii_digit()) {
        name.insert(0, '_');
    }
    if matches!(name.as_str(), "LOCK" | "ALL") || name.chars().all(|c| c == '_') {
        name.push('_');
    }
    if name.chars().all(|c| c == '_') {
        name.push('X');
    }
    name
}

/// The module beside the constant: the same name in lower case, raw or with an underscore where it is a keyword.
fn module(constant: &str) -> String {
    const KEYWORDS: [&str; 49] = [
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn", "else", "enum",
        "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
        "move", "mut", "override", "priv", "pub", "ref", "return", "static", "struct", "trait", "true", "try", "type",
        "typeof", "unsafe", "unsized", "use", "virtual", "where", "while", "yield", "union",
    ];
    let name = constant.to_ascii_lowercase();
    match name.as_str() {
        "self" | "super" | "crate" => format!("{name}_"),
        keyword if KEYWORDS.contains(&keyword) => format!("r#{name}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lock::tests::model;

    #[test]
    fn names() {
        let check = |texts: &[&str], expect: &[&str]| assert_eq!(identifiers(texts.iter().copied()), expect);
        check(&["digits", "bge-small.v2"], &["DIGITS", "BGE_SMALL_V2"]);
        check(&["3d", "all", "lock", "é"], &["_3D", "ALL_", "LOCK_", "__X"]);
        check(&["a-b", "a.b", "a_b_1"], &["A_B_2", "A_B_3", "A_B_1"]);
        assert_eq!(module("DIGITS"), "digits");
        assert_eq!(module("TYPE"), "r#type");
        assert_eq!(module("SELF"), "self_");
    }

    #[test]
    fn the_code_has_a_constant_for_every_model_and_file() {
        let lock =
            ModelLock::new(vec![model("digits", "/models/digits", &["w.safetensors", "a\"b`\u{202e}"])]).unwrap();
        let code = code(&codec::emit(&lock)).unwrap();
        for expect in [
            "pub const DIGITS: ::model_lock::runtime::Model<'static>",
            "pub mod digits {",
            "pub const W_SAFETENSORS: ::model_lock::runtime::ModelFile<'static>",
            r#"path: "a\"b`\u{202e}""#,
            "pub const ALL: &[::model_lock::runtime::Model<'static>] = &[DIGITS];",
        ] {
            assert!(code.contains(expect), "expected {expect} in\n{code}");
        }
    }
}
