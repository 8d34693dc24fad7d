//! The build context for an engine, as one tar stream: what the Dockerfile names and nothing else, times 0, modes made
//! equal, and the models from where they are under the digests of their layers, as `context` stages them for a plain
//! `docker build`. Nothing is written to the disk, and every byte of a model is checked on its way.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use model_lock::Digest;

use crate::dockerfile::FOLDER;
use crate::dockerfile::Rendered;
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::oci::layer::{Layer, Recipe};
use crate::oci::tar;
use crate::plan::ImagePlan;

/// What the ignore file beside the Dockerfile keeps out, wherever it is in a package.
const LEFT_OUT: [&str; 3] = [".git", "target", ".cache"];

/// A build context whose files are known and not yet read.
#[derive(Debug)]
pub struct BuildContext {
    /// Its entries.
    pub recipe: Recipe,
    /// Where the bytes of its files come from, in the order in which the recipe counts them.
    pub sources: Vec<Source>,
}

/// Where the bytes of one file come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// These are they.
    Text(String),
    /// A file.
    File(PathBuf),
    /// A file of a model, and the digest that it must have.
    Model(PathBuf, Digest),
}

impl BuildContext {
    /// Collects what `dockerfile` names. `models` are the plan's model layers with the places of their files.
    pub fn collect(root: &Path, plan: &ImagePlan, dockerfile: &Rendered, models: &[Layer]) -> Result<Self> {
        let mut entries = Entries::new();
        for name in ["Cargo.toml", "Cargo.lock", "models.lock"] {
            add_file(&mut entries, root, name)?;
        }
        for (member, compiled) in &plan.members {
            match (compiled, member.folder.as_str()) {
                (true, "") => {
                    for first in member.targets.iter().filter_map(|(source, _)| source.split('/').next()) {
                        add(&mut entries, root, first)?;
                    }
                }
                (true, folder) => add(&mut entries, root, folder)?,
                (false, "") => {}
                (false, folder) => add_file(&mut entries, root, &format!("{folder}/Cargo.toml"))?,
            }
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

/// Adds the file or folder at `path`, which is relative to `root`.
fn add(entries: &mut Entries, root: &Path, path: &str) -> Result<()> {
    if root.join(path).is_dir() { walk(entries, root, path) } else { add_file(entries, root, path) }
}

#[expect(clippy::disallowed_methods, reason = "the entries are sorted by their paths")]
fn walk(entries: &mut Entries, root: &Path, folder: &str) -> Result<()> {
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
        if LEFT_OUT.contains(&name) {
            continue;
        }
        let path = format!("{folder}/{name}");
        let kind = entry.file_type().or_fail(Kind::Io, fail)?;
        if kind.is_dir() {
            walk(entries, root, &path)?;
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
