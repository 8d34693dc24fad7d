//! The runtime manifest: what to mount where, with which digest, and the same as the files that each runtime reads.
//! PURE: a plan, the images' digests and the places of the files in, texts out. All files are made from one value, so
//! they cannot disagree.
//!
//! Every text goes through the grammar of the file that it ends in: JSON and YAML by a library, the shell, the CSV of
//! `--mount`, Compose's `$`, systemd's `%` and quotes by the functions here. What a grammar cannot say is refused.

mod compose;
mod devcontainer;
mod docker;
mod kubernetes;
mod quadlet;

use model_lock::{Digest, LockedModel, RelPath, TargetPath};
use serde::Serialize;

use crate::error::{Failure, Kind, Result};
use crate::oci::reference::Reference;
use crate::plan::ImagePlan;

/// The version of models.json that is written; `schema/models-v1.schema.json` describes it.
pub const VERSION: u32 = 1;

/// Everything that a container of the lean image needs from outside.
#[derive(Debug, Clone)]
pub struct RuntimeManifest<'a> {
    /// The plan of the lean image.
    pub plan: &'a ImagePlan,
    /// The lean image.
    pub image: Pinned,
    /// Where the lean image is.
    pub place: ImagePlace,
    /// The image that holds the mounted models' layers.
    pub model_image: Pinned,
    /// The digest of models.lock.
    pub lock: Digest,
    /// The mounted models with the places of their files on this machine, in the order of the lock.
    pub models: Vec<(&'a LockedModel, Vec<String>)>,
}

/// Where an image was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImagePlace {
    /// In the layout `oci`, beside the runtime manifest.
    Layout,
    /// In the engine.
    Engine,
}

/// A reference and the digest that it stands for.
#[derive(Debug, Clone, Serialize)]
pub struct Pinned {
    /// Its name, with the tag.
    #[serde(serialize_with = "as_text")]
    pub reference: Reference,
    /// The digest of its manifest.
    pub digest: Digest,
}

fn as_text<S: serde::Serializer>(reference: &Reference, serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(reference)
}

impl Pinned {
    /// Registry, path and digest: what a cluster pulls, whatever happens to the tag.
    #[must_use]
    pub fn by_digest(&self) -> String {
        format!("{}@{}", self.reference.qualified_name(), self.digest)
    }
}

/// How Kubernetes gets the models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum KubernetesVolume {
    /// The model image, as an image volume.
    #[default]
    ImageVolume,
    /// A claim, which something else fills and an init container verifies.
    Pvc,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct WireManifest<'a> {
    version: u32,
    image: &'a Pinned,
    model_image: &'a Pinned,
    lock: Digest,
    revision: &'a str,
    models: Vec<WireModel<'a>>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct WireModel<'a> {
    name: &'a str,
    target: &'a TargetPath,
    read_only: bool,
    revision: &'a str,
    sources: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    license: Option<&'a str>,
    files: Vec<WireFile<'a>>,
}

#[derive(Serialize)]
struct WireFile<'a> {
    path: &'a RelPath,
    size: u64,
    digest: Digest,
    layer: Digest,
}

impl RuntimeManifest<'_> {
    /// models.json. It names no place of this machine.
    #[must_use]
    pub fn to_json(&self) -> String {
        let models = self.models.iter().map(|(model, _)| WireModel {
            name: model.name.as_str(),
            target: &model.target,
            read_only: true,
            revision: &model.revision,
            sources: std::iter::once(&model.source).chain(&model.mirrors).map(String::as_str).collect(),
            license: model.license.as_deref(),
            files: model
                .files
                .iter()
                .map(|file| WireFile {
                    path: &file.path,
                    size: file.size,
                    digest: file.digest,
                    layer: file.layer.digest,
                })
                .collect(),
        });
        let wire = WireManifest {
            version: VERSION,
            image: &self.image,
            model_image: &self.model_image,
            lock: self.lock,
            revision: &self.plan.revision,
            models: models.collect(),
        };
        // Our own structs of texts and numbers always serialise.
        serde_json::to_string_pretty(&wire).unwrap_or_default() + "\n"
    }

    /// Every file with its name: models.json, and one for each runtime.
    pub fn files(&self, volume: KubernetesVolume) -> Result<Vec<(String, String)>> {
        for (source, target) in self.binds() {
            // systemd's quoting and devcontainer.json's variables leave no way to write these.
            let refused = |path: &str| path.contains("${") || path.chars().any(|c| c.is_control() || c == '\\');
            if refused(source) || refused(&target) {
                return Err(Failure::new(
                    Kind::Policy,
                    format!("`{}` cannot be mounted at `{target}`", source.escape_debug()),
                )
                .details(["a path has `${`, a backslash or a control character".to_owned()])
                .help("rename the file, or move the workspace to another folder"));
            }
        }
        Ok(vec![
            ("models.json".to_owned(), self.to_json()),
            ("run.sh".to_owned(), docker::render(self)),
            ("compose.yaml".to_owned(), compose::render(self)?),
            ("kubernetes.yaml".to_owned(), kubernetes::render(self, volume)?),
            (format!("{}.container", self.name()), quadlet::render(self)),
            ("devcontainer.json".to_owned(), devcontainer::render(self)),
        ])
    }

    /// Every file to be mounted: where it is and where it goes.
    fn binds(&self) -> impl Iterator<Item = (&str, String)> {
        self.models.iter().flat_map(|(model, places)| {
            places.iter().zip(&model.files).map(|(at, file)| (at.as_str(), model.target.join(&file.path)))
        })
    }

    /// The package's name as names of objects are allowed to be: RFC 1123, lower case.
    fn name(&self) -> String {
        let name: String = self
            .plan
            .package
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
            .collect();
        name.trim_matches('-').to_owned()
    }
}

/// One argument of `--mount`: fields of CSV (Go's `encoding/csv`, RFC 4180), quoted where they hold a comma or a quote.
fn mount_argument(fields: &[String]) -> String {
    let quoted = fields.iter().map(|field| {
        if field.contains([',', '"']) { format!("\"{}\"", field.replace('"', "\"\"")) } else { field.clone() }
    });
    quoted.collect::<Vec<_>>().join(",")
}

/// The long form of a bind: an error where the source is missing, never a new folder.
fn bind_argument(source: &str, target: &str) -> String {
    mount_argument(&[
        "type=bind".to_owned(),
        format!("source={source}"),
        format!("target={target}"),
        "readonly".to_owned(),
    ])
}

fn to_yaml(document: &impl Serialize, file: &str) -> Result<String> {
    // One line a value: a digest folded into a block of its own is hard to read and to search for.
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(document, options)
        .map_err(|error| Failure::new(Kind::Policy, format!("failed to write `{file}`")).because(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_a_mount_are_csv() {
        let check = |source: &str, expect: &str| assert_eq!(bind_argument(source, "/models/a/b"), expect);
        check("/a b", "type=bind,source=/a b,target=/models/a/b,readonly");
        check("/a,b", "type=bind,\"source=/a,b\",target=/models/a/b,readonly");
        check("/a\"b", "type=bind,\"source=/a\"\"b\",target=/models/a/b,readonly");
    }
}
