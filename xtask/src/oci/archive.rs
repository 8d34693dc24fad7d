//! The same layout as one tar stream, for `docker load`, `podman load` and `skopeo copy oci-archive:`. Layers are streamed
//! from the models into it and never stand on disk beside it.

use std::collections::BTreeSet;
use std::io::Write;

use model_lock::Digest;

use super::assemble::Image;
use super::layer::Layer;
use super::layout::{Part, parts};
use super::reference::Reference;
use super::tar::{self, Kind as Entry};
use crate::error::{Kind, OrFail as _, Result};
use crate::stamp::Stamps;

/// Writes the archive to `out`, without the layers in `known`, which the reader has. Gives the layers whose files gave
/// another digest; then the archive is to be thrown away.
pub fn write<'a>(
    image: &Image,
    layers: &'a [Layer],
    reference: &Reference,
    stamps: &Stamps,
    known: &BTreeSet<Digest>,
    mut out: impl Write,
) -> Result<Vec<&'a Layer>> {
    let fail = || "failed to write the archive".to_owned();
    let mut wrong = Vec::new();
    for folder in ["/blobs", "/blobs/sha256"] {
        out.write_all(&tar::header(folder, Entry::Folder)).or_fail(Kind::Io, fail)?;
    }
    let is_known = |part: &Part| matches!(part, Part::Layer(index) if known.contains(&image.layers[*index].digest));
    for (path, part) in parts(image, reference).into_iter().filter(|(_, part)| !is_known(part)) {
        let size = match &part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::Layer(index) => image.layers[*index].size,
        };
        out.write_all(&tar::header(&path, Entry::File(size))).or_fail(Kind::Io, fail)?;
        match part {
            Part::Bytes(bytes) => out.write_all(&bytes).or_fail(Kind::Io, fail)?,
            Part::Layer(index) => {
                let layer = &layers[index];
                let matches = layer
                    .write(&mut out, stamps)
                    .or_fail(Kind::Io, || format!("failed to write the layer of {}", layer.what))?;
                if !matches {
                    wrong.push(layer);
                    return Ok(wrong);
                }
            }
        }
        out.write_all(tar::padding(size)).or_fail(Kind::Io, fail)?;
    }
    out.write_all(&tar::END).or_fail(Kind::Io, fail)?;
    Ok(wrong)
}
