//! What models.lock says, as values that are right by construction: sorted, without duplicates, without targets that
//! collide. How it is written is `codec`'s; where the bytes are is nobody's business here.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::path::{ModelName, RelPath, TargetPath};

/// Every model of a workspace, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ModelLock {
    models: Vec<LockedModel>,
}

/// One model: what was declared, what it resolved to, and its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedModel {
    /// Its name, the key under `[workspace.metadata.models]`.
    pub name: ModelName,
    /// Where it comes from, as declared.
    pub source: String,
    /// The immutable revision that the source resolved to. For files of the workspace this is [`revision_of`].
    pub revision: String,
    /// Other places that hold the same bytes, as declared.
    pub mirrors: Vec<String>,
    /// Globs that choose files of the source; empty means all.
    pub include: Vec<String>,
    /// Globs that leave files of the source out.
    pub exclude: Vec<String>,
    /// The folder in the container that holds its files.
    pub target: TargetPath,
    /// SPDX expression, as declared.
    pub license: Option<String>,
    /// Its files, sorted by path; never empty.
    pub files: Vec<LockedFile>,
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockedFile {
    /// Its path below the model's target.
    pub path: RelPath,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its bytes.
    pub digest: Digest,
    /// The canonical layer that holds it, alone or with other files of its model.
    pub layer: LockedLayer,
}

/// Digest and size in bytes of an uncompressed canonical layer. The digest is also its `diff_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedLayer {
    /// The digest of the tar stream.
    pub digest: Digest,
    /// The size of the tar stream in bytes.
    pub size: u64,
}

/// What contradicts itself in a lock or a declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Two models with one name.
    #[error("model `{0}` is there twice")]
    DuplicateModel(ModelName),
    /// Two models with one target, or one target inside the other.
    #[error("models `{0}` and `{1}` collide: target `{2}` is or contains target `{3}`")]
    Targets(ModelName, ModelName, TargetPath, TargetPath),
    /// A model without files.
    #[error("model `{0}` has no files")]
    NoFiles(ModelName),
    /// One path is there twice, or is a file and a folder at once.
    #[error("model `{0}`: `{1}` collides with `{2}`")]
    Paths(ModelName, RelPath, RelPath),
    /// Two files claim one layer and disagree about its size, or two models claim one layer.
    #[error("model `{0}`: layer `{1}` of `{2}` contradicts another entry")]
    Layers(ModelName, Digest, RelPath),
}

impl ModelLock {
    /// Sorts `models` and their files, and refuses what contradicts itself: the first contradiction of every kind is
    /// enough, since a lock is generated and never edited.
    pub fn new(mut models: Vec<LockedModel>) -> Result<Self, LockError> {
        models.sort_by(|a, b| a.name.cmp(&b.name));
        for pair in models.windows(2) {
            if pair[0].name == pair[1].name {
                return Err(LockError::DuplicateModel(pair[0].name.clone()));
            }
        }
        if let Some(collision) =
            colliding_targets(models.iter().map(|model| (&model.name, &model.target))).into_iter().next()
        {
            return Err(collision);
        }
        let mut owners: BTreeMap<Digest, (usize, u64)> = BTreeMap::new();
        for (index, model) in models.iter_mut().enumerate() {
            model.files.sort_by(|a, b| a.path.cmp(&b.path));
            check_paths(model)?;
            for file in &model.files {
                let claim = (index, file.layer.size);
                if *owners.entry(file.layer.digest).or_insert(claim) != claim {
                    return Err(LockError::Layers(model.name.clone(), file.layer.digest, file.path.clone()));
                }
            }
        }
        Ok(Self { models })
    }

    /// The models, sorted by name.
    #[must_use]
    pub fn models(&self) -> &[LockedModel] {
        &self.models
    }

    /// The model with this name.
    #[must_use]
    pub fn model(&self, name: &str) -> Option<&LockedModel> {
        self.models.iter().find(|model| model.name.as_str() == name)
    }
}

/// Every pair of targets that are equal or of which one contains the other.
pub fn colliding_targets<'a>(targets: impl Iterator<Item = (&'a ModelName, &'a TargetPath)>) -> Vec<LockError> {
    let mut sorted: Vec<_> = targets.collect();
    // `/` sorts before every other character that could follow a common prefix, so a target is followed by what lies
    // inside it.
    sorted.sort_by_key(|(_, target)| target.as_str().to_ascii_lowercase().replace('/', "\0"));
    let mut collisions = Vec::new();
    let mut outer: Option<(&ModelName, &TargetPath)> = None;
    for (name, target) in sorted {
        match outer {
            Some((outer_name, outer_target)) if target.is_inside(outer_target) => collisions.push(LockError::Targets(
                outer_name.clone(),
                name.clone(),
                outer_target.clone(),
                target.clone(),
            )),
            _ => outer = Some((name, target)),
        }
    }
    collisions
}

fn check_paths(model: &LockedModel) -> Result<(), LockError> {
    if model.files.is_empty() {
        return Err(LockError::NoFiles(model.name.clone()));
    }
    for pair in model.files.windows(2) {
        let (first, second) = (&pair[0].path, &pair[1].path);
        let inside =
            second.as_str().strip_prefix(first.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if inside {
            return Err(LockError::Paths(model.name.clone(), first.clone(), second.clone()));
        }
    }
    Ok(())
}

impl LockedModel {
    /// The model's layers in the order of their first files, each with its files.
    #[must_use]
    pub fn layers(&self) -> Vec<(LockedLayer, Vec<&LockedFile>)> {
        let mut layers: Vec<(LockedLayer, Vec<&LockedFile>)> = Vec::new();
        let mut positions = BTreeMap::new();
        for file in &self.files {
            let position = *positions.entry(file.layer.digest).or_insert(layers.len());
            if position == layers.len() {
                layers.push((file.layer, Vec::new()));
            }
            layers[position].1.push(file);
        }
        layers
    }

    /// The sum of the sizes of its files, in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }
}

/// One model as a value that borrows everything, so that it can be a constant of a program (see [`crate::build`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Model<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where it comes from, as declared.
    pub source: &'a str,
    /// The immutable revision that the source resolved to.
    pub revision: &'a str,
    /// The folder in the container that holds its files.
    pub target: &'a str,
    /// SPDX expression, as declared.
    pub license: Option<&'a str>,
    /// Its files, sorted by path.
    pub files: &'a [ModelFile<'a>],
}

/// One file of a model, as a value that borrows everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelFile<'a> {
    /// The name of its model.
    pub model: &'a str,
    /// Its model's target.
    pub target: &'a str,
    /// Its path below the target.
    pub path: &'a str,
    /// Its size in bytes.
    pub size: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

impl ModelFile<'_> {
    /// Its absolute path in a container.
    #[must_use]
    pub fn in_container(&self) -> String {
        format!("{}/{}", self.target, self.path)
    }
}

impl LockedModel {
    /// Its files, as what verification and the app work with.
    pub fn model_files(&self) -> impl Iterator<Item = ModelFile<'_>> {
        self.files.iter().map(|file| ModelFile {
            model: self.name.as_str(),
            target: self.target.as_str(),
            path: file.path.as_str(),
            size: file.size,
            digest: file.digest,
        })
    }
}

/// The revision of a model that has no revision of its own: the digest of the lines `<hex digest>  <path>` in the order
/// of the paths, so that `sha256sum FILES | sha256sum` gives the same.
pub fn revision_of<'a>(files: impl IntoIterator<Item = (&'a RelPath, Digest)>) -> String {
    let mut lines = String::new();
    for (path, digest) in files {
        lines.extend([&digest.hex(), "  ", path.as_str(), "\n"]);
    }
    Digest::of(lines.as_bytes()).to_string()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A model whose files hold their own names.
    pub(crate) fn model(name: &str, target: &str, files: &[&str]) -> LockedModel {
        model_of(name, target, &files.iter().map(|path| (*path, path.as_bytes())).collect::<Vec<_>>())
    }

    /// A model with these files.
    pub(crate) fn model_of(name: &str, target: &str, files: &[(&str, &[u8])]) -> LockedModel {
        let files: Vec<_> = files
            .iter()
            .map(|(path, bytes)| LockedFile {
                path: path.parse().unwrap(),
                size: bytes.len() as u64,
                digest: Digest::of(bytes),
                layer: LockedLayer { digest: Digest::of(format!("{target}/{path}").as_bytes()), size: 2048 },
            })
            .collect();
        LockedModel {
            name: name.parse().unwrap(),
            source: format!("models/{name}"),
            revision: revision_of(files.iter().map(|file| (&file.path, file.digest))),
            mirrors: Vec::new(),
            include: Vec::new(),
            exclude: Vec::new(),
            target: target.parse().unwrap(),
            license: Some("MIT".to_owned()),
            files,
        }
    }

    #[test]
    fn contradictions_are_refused() {
        let check = |models: Vec<LockedModel>, expect: &str| {
            assert_eq!(ModelLock::new(models).unwrap_err().to_string(), expect);
        };
        check(vec![model("a", "/m/a", &["f"]), model("a", "/m/b", &["f"])], "model `a` is there twice");
        check(
            vec![model("a", "/m", &["f"]), model("b", "/m-b", &["f"]), model("c", "/M/c", &["f"])],
            "models `a` and `c` collide: target `/m` is or contains target `/M/c`",
        );
        check(vec![model("a", "/m/a", &[])], "model `a` has no files");
        check(vec![model("a", "/m/a", &["f", "f"])], "model `a`: `f` collides with `f`");
        check(vec![model("a", "/m/a", &["f/g", "f", "f-"])], "model `a`: `f` collides with `f/g`");
        let mut twice = model("b", "/m/b", &["f"]);
        twice.files[0].layer = model("a", "/m/a", &["f"]).files[0].layer;
        let error = ModelLock::new(vec![model("a", "/m/a", &["f"]), twice]).unwrap_err();
        assert!(matches!(error, LockError::Layers(..)), "{error}");
    }

    #[test]
    fn models_and_files_are_sorted_and_layers_keep_that_order() {
        let mut b = model("b", "/m/b", &["z", "a/x", "a"]);
        b.files.pop();
        let shared = b.files[0].layer;
        b.files[1].layer = shared;
        let lock = ModelLock::new(vec![b, model("a", "/m/a", &["2", "1"])]).unwrap();
        let names: Vec<_> = lock.models().iter().map(|model| model.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(lock.models()[0].layers().len(), 2);
        assert_eq!(lock.models()[1].layers().len(), 1);
        assert_eq!(lock.model("a").unwrap().files[0].path.as_str(), "1");
    }
}
