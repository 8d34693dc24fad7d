//! An OCI image layout on disk (image-spec, image-layout.md), which is also what `docker load` takes once it is in a tar:
//! beside `index.json` it has Docker's `manifest.json`, without which older engines and graph-driver stores refuse it.
//!
//! ```text
//! oci-layout            the first thing written: what marks the folder as a layout
//! index.json            the last thing written: until then the layout is what it was
//! manifest.json         the same image for `docker load`
//! blobs/sha256/<hex>    written as .<hex>.tmp, synced, renamed; read-only
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use model_lock::Digest;
use model_lock::digest::{Hasher, read_chunks};
use serde_json::json;

use super::assemble::{Image, to_bytes};
use super::layer::Layer;
use super::reference::Reference;
use super::spec::{INDEX, Index};
use crate::console::Progress;
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::stamp::Stamps;
use crate::write;

/// A layout that is being written.
#[derive(Debug)]
pub struct Layout {
    folder: PathBuf,
    /// Layouts of the same app that may have the same layers.
    siblings: Vec<PathBuf>,
}

/// Whether a layer has the bytes that it must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// It is in the layout.
    There,
    /// Its files gave another digest; it is not in the layout.
    Mismatch,
}

impl Layout {
    /// Opens or creates the layout in `folder`. A folder that holds something else is refused, because replacing it would
    /// lose that; so is one that holds an image under another name than `only`.
    pub fn open(folder: &Path, only: Option<&Reference>) -> Result<Self> {
        let layout = Self { folder: folder.to_owned(), siblings: Vec::new() };
        let refuse = |why: &str| {
            Err(Failure::new(Kind::Policy, format!("`{}` {why}", folder.display()))
                .help("name a folder that is empty or does not exist, or remove this one"))
        };
        match fs::symlink_metadata(folder) {
            Ok(metadata) if !metadata.is_dir() => return refuse("is not a folder"),
            Ok(_) if folder.join(MARK.0).exists() => {
                let other = |name: &String| only.is_some_and(|only| *name != only.qualified_tagged());
                if let Some(other) = layout.names().into_iter().find(other) {
                    return refuse(&format!("is an OCI layout that holds another image, `{other}`"));
                }
            }
            Ok(_) if only.is_some() && !is_empty(folder) => return refuse("is not empty and not an OCI layout"),
            _ => {}
        }
        write::folder(&layout.blobs())?;
        // First of all: a run that is killed later leaves a layout, which the next run knows for what it is.
        write::generated_bytes(&folder.join(MARK.0), MARK.1)?;
        Ok(layout)
    }

    /// Shares the blobs of these layouts, by hard links, instead of writing its own copy.
    #[must_use]
    pub fn sharing(mut self, siblings: impl IntoIterator<Item = PathBuf>) -> Self {
        self.siblings = siblings.into_iter().filter(|sibling| *sibling != self.folder).collect();
        self
    }

    fn blobs(&self) -> PathBuf {
        self.folder.join(BLOBS)
    }

    /// Takes the blob from a sibling that has it, if its stamp says that it is whole and the file system can link.
    fn link(&self, path: &Path, digest: Digest, stamps: &Stamps) -> bool {
        let at = |sibling: &PathBuf| sibling.join(BLOBS).join(digest.hex());
        let found = self.siblings.iter().map(at).find(|sibling| stamps.trusts(sibling, digest));
        let Some(found) = found.filter(|found| fs::hard_link(found, path).is_ok()) else { return false };
        // The link has changed the change time that both names share.
        stamps.wrote(&found, digest);
        stamps.wrote(path, digest);
        true
    }

    fn blob(&self, digest: Digest) -> PathBuf {
        self.blobs().join(digest.hex())
    }

    /// The names of the images in the index, as far as it can be read.
    fn names(&self) -> Vec<String> {
        let index: Option<serde_json::Value> =
            fs::read(self.folder.join("index.json")).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let manifests = index.as_ref().and_then(|index| index["manifests"].as_array());
        let name = |manifest: &serde_json::Value| {
            manifest["annotations"][CONTAINERD_NAME].as_str().unwrap_or("an image without a name").to_owned()
        };
        manifests.into_iter().flatten().map(name).collect()
    }

    /// Puts a layer in, from its files, unless it is there. A layer that is there is read again only if it looks
    /// different than when it was written.
    pub fn put(&self, layer: &Layer, stamps: &Stamps, progress: &Progress) -> Result<Put> {
        let path = self.blob(layer.locked.digest);
        if stamps.trusts(&path, layer.locked.digest) || Self::is_whole(&path, layer.locked.digest, stamps) {
            progress.add(layer.locked.size);
            return Ok(Put::There);
        }
        // What is there now is not the layer; a link needs the name to be free.
        let _ = fs::remove_file(&path);
        if self.link(&path, layer.locked.digest, stamps) {
            progress.add(layer.locked.size);
            return Ok(Put::There);
        }
        let fail = || format!("failed to write the layer of {} to `{}`", layer.what, path.display());
        let written = write::stream(&path, |file| {
            if !layer.write(progress.counting(&mut *file), stamps).or_fail(Kind::Io, fail)? {
                // An error keeps the file from getting its name.
                return Err(Failure::new(Kind::Integrity, "the layer has another digest"));
            }
            file.set_permissions(fs::Permissions::from_mode(0o444)).or_fail(Kind::Io, fail)
        });
        match written {
            Ok(()) => {}
            Err(failure) if failure.kind == Kind::Integrity => return Ok(Put::Mismatch),
            Err(failure) => return Err(failure),
        }
        stamps.wrote(&path, layer.locked.digest);
        Ok(Put::There)
    }

    fn is_whole(path: &Path, digest: Digest, stamps: &Stamps) -> bool {
        let Ok(file) = File::open(path) else { return false };
        let Ok(reading) = Stamps::before(&file) else { return false };
        let mut hasher = Hasher::default();
        let read = read_chunks(&file, file.metadata().map_or(0, |metadata| metadata.len()), |bytes| {
            hasher.update(bytes);
            Ok(())
        });
        let whole = read.is_ok() && hasher.finish() == digest;
        if whole {
            stamps.after(path, &reading, digest);
        }
        whole
    }

    /// Writes the image's documents, the index last, and removes the blobs that no longer belong to it. Every layer
    /// must be in.
    pub fn finish(&self, image: &Image, reference: &Reference) -> Result<()> {
        for layer in &image.layers {
            let path = self.blob(layer.digest);
            if path.metadata().map_or(0, |metadata| metadata.len()) != layer.size {
                return Err(Failure::new(Kind::Io, format!("the layer `{}` is not in the layout", path.display())));
            }
        }
        write::file(&self.blob(image.config.digest), &image.config_bytes)?;
        write::file(&self.blob(image.manifest.digest), &image.manifest_bytes)?;
        for (name, bytes) in documents(image, reference) {
            write::generated_bytes(&self.folder.join(name), &bytes)?;
        }
        self.sweep(image)
    }

    #[expect(clippy::disallowed_methods, reason = "what is removed does not depend on the order")]
    fn sweep(&self, image: &Image) -> Result<()> {
        let digests = image.layers.iter().map(|layer| layer.digest).chain([image.config.digest, image.manifest.digest]);
        let kept: BTreeSet<String> = digests.map(|digest| digest.hex()).collect();
        let fail = || format!("failed to clean `{}`", self.blobs().display());
        for entry in fs::read_dir(self.blobs()).or_fail(Kind::Io, fail)? {
            let entry = entry.or_fail(Kind::Io, fail)?;
            if !entry.file_name().to_str().is_some_and(|name| kept.contains(name)) {
                fs::remove_file(entry.path()).or_fail(Kind::Io, fail)?;
            }
        }
        Ok(())
    }
}

/// The file that makes a folder a layout (image-layout.md, "oci-layout file").
const MARK: (&str, &[u8]) = ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);

/// The folder of blobs whose digests are SHA-256.
const BLOBS: &str = "blobs/sha256";

const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The documents beside the blobs, in the order in which they must be written.
fn documents(image: &Image, reference: &Reference) -> [(&'static str, Vec<u8>); 3] {
    let mut manifest = image.manifest.clone();
    manifest.annotations = BTreeMap::from([
        (CONTAINERD_NAME.to_owned(), reference.qualified_tagged()),
        // oras and umoci choose by it.
        ("org.opencontainers.image.ref.name".to_owned(), reference.tag().unwrap_or("latest").to_owned()),
    ]);
    let index = Index { schema_version: 2, media_type: INDEX, manifests: vec![manifest] };
    let blob = |digest: Digest| format!("{BLOBS}/{}", digest.hex());
    let docker = json!([{
        "Config": blob(image.config.digest),
        "RepoTags": [reference.tagged()],
        "Layers": image.layers.iter().map(|layer| blob(layer.digest)).collect::<Vec<_>>(),
    }]);
    [(MARK.0, MARK.1.to_vec()), ("manifest.json", to_bytes(&docker)), ("index.json", to_bytes(&index))]
}

/// What an archive of the layout is made of, in its order: the documents as bytes, the layers by their place.
pub(super) fn parts(image: &Image, reference: &Reference) -> Vec<(String, Part)> {
    let blob = |digest: Digest| format!("/{BLOBS}/{}", digest.hex());
    let mut parts: Vec<(String, Part)> =
        documents(image, reference).into_iter().map(|(name, bytes)| (format!("/{name}"), Part::Bytes(bytes))).collect();
    parts.push((blob(image.config.digest), Part::Bytes(image.config_bytes.clone())));
    parts.push((blob(image.manifest.digest), Part::Bytes(image.manifest_bytes.clone())));
    for (index, layer) in image.layers.iter().enumerate() {
        let path = blob(layer.digest);
        if !parts.iter().any(|(known, _)| *known == path) {
            parts.push((path, Part::Layer(index)));
        }
    }
    parts.sort_by(|(a, _), (b, _)| a.split('/').cmp(b.split('/')));
    parts
}

/// A part of an archive.
#[derive(Debug)]
pub(super) enum Part {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The layer at this place.
    Layer(usize),
}

#[expect(clippy::disallowed_methods, reason = "only whether there is an entry matters, not their order")]
fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
