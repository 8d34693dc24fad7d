//! The runtime manifest of an image and the files of each runtime, beside each other in the package's folder.

use model_lock::Digest;

use super::prepare::{Planned, shown};
use crate::console::Console;
use crate::error::{Kind, OrFail as _, Result};
use crate::mounts::{ImagePlace, KubernetesVolume, Pinned, RuntimeManifest};
use crate::oci::assemble::assemble_models;
use crate::oci::reference::Reference;
use crate::write;

/// The name of the image of the mounted models: that of the image, with a tag of its own.
pub(super) fn model_reference(planned: &Planned) -> Result<Reference> {
    let Planned { plan, reference, .. } = planned;
    let tag = format!("{}-models", reference.tag().unwrap_or(plan.mode.as_str()));
    format!("{}:{tag}", reference.name())
        .parse()
        .or_fail(Kind::Usage, || format!("failed to name the model image after `{reference}`"))
}

/// Writes the runtime manifest of the image with this digest, and the files of each runtime.
pub(super) fn write_mounts(
    planned: &Planned,
    digest: Digest,
    place: ImagePlace,
    volume: KubernetesVolume,
    console: &Console,
) -> Result<()> {
    let Planned { plan, reference, lock, declaration, .. } = planned;
    let places = planned.places()?;
    let manifest = RuntimeManifest {
        plan,
        image: Pinned { reference: reference.clone(), digest },
        place,
        model_image: Pinned { reference: model_reference(planned)?, digest: assemble_models(plan).manifest.digest },
        lock: lock.digest(),
        models: plan
            .mounted
            .iter()
            .map(|model| {
                let place = |path: String| places.get(&path).map(|at| at.to_string_lossy().into_owned());
                (model, model.files.iter().filter_map(|file| place(model.target.join(&file.path))).collect())
            })
            .collect(),
    };
    let folder = planned.output();
    write::folder(&folder)?;
    let files = manifest.files(volume)?;
    for (name, text) in &files {
        let path = folder.join(name);
        write::generated(&path, text)?;
        if name == "run.sh" {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                .or_fail(Kind::Io, || format!("failed to make `{}` executable", path.display()))?;
        }
    }
    let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
    console.status("Wrote", format!("{} in {}", names.join(", "), shown(&declaration.root, &folder)));
    Ok(())
}
