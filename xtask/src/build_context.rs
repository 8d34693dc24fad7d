//! The build context for an engine, as one tar stream: what the Dockerfile names and nothing else, times 0, modes made
//! equal, and the models from where they are under the digests of their layers, as `context` stages them for a plain
//! `docker build`. Nothing is written to the disk, and every byte of a model is checked on its way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::dockerfile::{FOLDER, LEFT_OUT, Rendered, copied};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::oci::layer::{Layer, Recipe};
use crate::oci::tar;
use crate::plan::ImagePlan;
use crate::upload::Source;

/// A build context whose files are known and not yet read.
#[derive(Debug)]
pub struct BuildContext {
    /// Its entries.
    pub recipe: Recipe,
    /// Where the bytes of its files come from, in the order in which the recipe counts them.
    pub sources: Vec<Source>,
}

impl BuildContext {
    /// Collects what `dockerfile` names. `models` are the plan's model layers with the places of their files.
    pub fn collect(root: &Path, plan: &ImagePlan, dockerfile: &Rendered, models: &[Layer]) -> Result<Self> {
        let mut entries = Entries::new();
        for path in copied(plan) {
            add(&mut entries, root, &path, &LEFT_OUT)?;
        }
        for path in plan.cargo.paths() {
            add(&mut entries, root, path.as_str(), &[])?;
        }
        let text = dockerfile.text.clone();
        entries.insert(dockerfile.name.clone(), (tar::Kind::File(text.len() as u64), Source::Text(text)));
        for (planned, layer) in plan.model_layers.iter().zip(models) {
            for (file, at) in planned.files.iter().zip(&layer.files) {
                let path = format!("{FOLDER}/{}{}", planned.layer.digest.hex(), planned.target.join(&file.path));
                entries.insert(path, (tar::Kind::File(file.size), Source::Model(at.clone(), file.digest)));
            }
        }
        let named: Vec<_> = entries.iter().map(|(path, (kind, _))| (format!("/{path}"), *kind)).collect();
        let sources = entries.into_values().map(|(_, source)| source).collect();
        Ok(Self { recipe: Recipe::new(&named, &[]), sources })
    }
}

type Entries = BTreeMap<String, (tar::Kind, Source)>;

/// Adds the file or folder at `path`, which is relative to `root`, without what has one of these names in it.
fn add(entries: &mut Entries, root: &Path, path: &str, without: &[&str]) -> Result<()> {
    if root.join(path).is_dir() { walk(entries, root, path, without) } else { add_file(entries, root, path) }
}

#[expect(clippy::disallowed_methods, reason = "the entries are sorted by their paths")]
fn walk(entries: &mut Entries, root: &Path, folder: &str, without: &[&str]) -> Result<()> {
    let fail = || format!("failed to read the folder `{folder}`");
    for entry in fs::read_dir(root.join(folder)).or_fail(Kind::Io, fail)? {
        let entry = entry.or_fail(Kind::Io, fail)?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(Failure::new(
                Kind::Policy,
                format!("`{folder}/{}` has a name that is not UTF-8", name.to_string_lossy()),
            )
            .help("rename it: a build context cannot hold it"));
        };
        if without.contains(&name) {
            continue;
        }
        let path = format!("{folder}/{name}");
        let kind = entry.file_type().or_fail(Kind::Io, fail)?;
        if kind.is_dir() {
            walk(entries, root, &path, without)?;
        } else if kind.is_file() || (kind.is_symlink() && root.join(&path).is_file()) {
            add_file(entries, root, &path)?;
        }
        // Sockets, pipes, and links to nothing or to folders: nothing that compiles is there.
    }
    Ok(())
}

fn add_file(entries: &mut Entries, root: &Path, path: &str) -> Result<()> {
    let at = root.join(path);
    let metadata = at.metadata().or_fail(Kind::Io, || format!("failed to read `{path}`"))?;
    let size = metadata.len();
    let is_program = metadata.permissions().mode() & 0o100 != 0;
    let kind = if is_program { tar::Kind::Program(size) } else { tar::Kind::File(size) };
    entries.insert(path.to_owned(), (kind, Source::File(at)));
    Ok(())
}
