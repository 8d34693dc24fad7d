//! Cargo reads configuration from every folder above the workspace and from its home. What stands there belongs to no
//! commit, so it must not change an image in silence: profiles and variables are refused by name, a linker is set aside.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::error::{Failure, Kind, Result};

/// Tables that change what a compiler makes.
const REFUSED: [&str; 2] = ["profile", "env"];

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
