//! Cargo reads configuration from the workspace, every folder above it, and its home. What the workspace has is part of the
//! commit, and goes where the build goes. What stands elsewhere belongs to no commit, so it must not change an image in
//! silence: profiles and variables are refused by name, a linker is set aside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use model_lock::RelPath;
use toml::{Table, Value};

use crate::error::{Failure, Kind, Result};

/// Tables that change what a compiler makes.
const REFUSED: [&str; 2] = ["profile", "env"];

/// The configuration of a workspace: what a build elsewhere needs of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// The file, relative to the workspace.
    pub file: Option<RelPath>,
    /// The folders in the workspace that it takes crates from instead of a registry, sorted.
    pub vendored: Vec<RelPath>,
    /// The keys with flags for the compiler, such as `build.rustflags`.
    pub rustflags: Vec<String>,
}

impl Own {
    /// What goes along: the file, and the folders of crates.
    pub fn paths(&self) -> impl Iterator<Item = &RelPath> {
        self.file.iter().chain(&self.vendored)
    }
}

/// Reads the configuration of the workspace at `root`. A folder outside the workspace is not named: a build elsewhere
/// does not have it.
#[must_use]
pub fn own(root: &Path) -> Own {
    let Some((path, table)) = read(&root.join(".cargo")) else { return Own::default() };
    let relative = |path: &Path| path.strip_prefix(root).ok()?.to_str()?.parse().ok();
    let sources = table.get("source").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let folder = |source: &Value| {
        let named = ["directory", "local-registry"].iter().find_map(|key| source.get(*key)?.as_str())?;
        // The Cargo Book, "Configuration", "Config-relative paths": from the folder that holds `.cargo`.
        relative(&root.join(named).components().collect::<PathBuf>())
    };
    let vendored: BTreeSet<RelPath> = sources.filter_map(folder).collect();
    let targets = table.get("target").and_then(Value::as_table).into_iter().flatten();
    let targets = targets.map(|(name, value)| (format!("target.{name}.rustflags"), value));
    let build = table.get("build").map(|value| ("build.rustflags".to_owned(), value));
    let flags = build.into_iter().chain(targets).filter(|(_, value)| value.get("rustflags").is_some());
    Own {
        file: relative(&path),
        vendored: vendored.into_iter().collect(),
        rustflags: flags.map(|(key, _)| key).collect(),
    }
}

/// Looks through the configurations outside the workspace at `root`. Gives the linker that has to be named for `target`
/// so that one from outside does not count; nothing where none is from outside.
pub fn linker(root: &Path, home: &Path, target: &str) -> Result<Option<&'static str>> {
    let above = root.ancestors().skip(1).map(|folder| folder.join(".cargo"));
    let folders: BTreeSet<PathBuf> = above.chain([home.to_owned()]).collect();
    let mut details = Vec::new();
    let mut foreign = false;
    for (path, table) in folders.iter().filter_map(|folder| read(folder)) {
        for key in REFUSED.iter().filter(|key| table.contains_key(**key)) {
            details.push(format!("`{}`: `{key}`", path.display()));
        }
        foreign |= linker_of(&table, target).is_some();
    }
    if !details.is_empty() {
        let message = "Cargo's configuration outside the workspace would change what is compiled";
        return Err(Failure::new(Kind::Policy, message)
            .details(details)
            .help("move it into the workspace's Cargo.toml or .cargo/config.toml, so that it is part of the commit"));
    }
    let own = read(&root.join(".cargo")).and_then(|(_, table)| linker_of(&table, target).cloned());
    Ok((foreign && own.is_none()).then_some("cc"))
}

/// The configuration in a folder, under either of its names. One that is no TOML is left for Cargo to complain about.
fn read(folder: &Path) -> Option<(PathBuf, Table)> {
    let path = ["config", "config.toml"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file())?;
    let table = std::fs::read_to_string(&path).ok()?.parse().ok()?;
    Some((path, table))
}

fn linker_of<'a>(table: &'a Table, target: &str) -> Option<&'a Value> {
    table.get("target")?.get(target)?.get("linker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_workspace_has_goes_along() {
        let temporary = tempfile::tempdir().unwrap();
        let root = temporary.path();
        assert_eq!(own(root), Own::default());
        std::fs::create_dir(root.join(".cargo")).unwrap();
        let text = format!(
            "[source.crates-io]\nreplace-with = \"a\"\n[source.a]\ndirectory = \"./third party/b/\"\n\
             [source.c]\nlocal-registry = \"a\"\n[source.d]\ndirectory = \"../outside\"\n\
             [source.e]\ndirectory = \"/outside\"\n[source.f]\ndirectory = \"{}/z\"\n",
            root.display()
        );
        std::fs::write(root.join(".cargo/config.toml"), text).unwrap();
        let Own { file, vendored, rustflags } = own(root);
        assert!(rustflags.is_empty());
        assert_eq!(file.unwrap().as_str(), ".cargo/config.toml");
        assert_eq!(vendored.iter().map(RelPath::as_str).collect::<Vec<_>>(), ["a", "third party/b", "z"]);
        let text =
            "[build]\nrustflags = [\"-Cx\"]\n[target.'cfg(unix)']\nrustflags = \"-Cy\"\n[target.z]\nlinker = \"l\"\n";
        std::fs::write(root.join(".cargo/config.toml"), text).unwrap();
        assert_eq!(own(root).rustflags, ["build.rustflags", "target.cfg(unix).rustflags"]);
    }

    #[test]
    fn what_stands_outside_is_refused_or_set_aside() {
        let temporary = tempfile::tempdir().unwrap();
        let top = temporary.path().canonicalize().unwrap();
        let (root, home) = (top.join("workspace"), top.join("home"));
        let write = |folder: &Path, text: &str| {
            std::fs::create_dir_all(folder).unwrap();
            std::fs::write(folder.join("config.toml"), text).unwrap();
        };
        let check = || linker(&root, &home, "x-linux-y").map_err(|failure| failure.details.join("\n"));
        let table = "[target.x-linux-y]\nlinker = \"mold\"\n";
        assert_eq!(check(), Ok(None));
        write(&home, "[net]\noffline = true\n");
        assert_eq!(check(), Ok(None));
        write(&home, table);
        assert_eq!(check(), Ok(Some("cc")));
        write(&root.join(".cargo"), table);
        assert_eq!(check(), Ok(None), "the workspace's own linker is part of the commit");
        write(&root.join(".cargo"), "[profile.release]\ndebug = true\n");
        assert_eq!(check(), Ok(Some("cc")));
        write(&top.join(".cargo"), "[profile.release]\ndebug = true\n[env]\nA = \"b\"\n");
        let path = top.join(".cargo/config.toml");
        assert_eq!(check(), Err(format!("`{0}`: `profile`\n`{0}`: `env`", path.display())));
    }
}
