//! From a plan and the digest of the app's layer to the image's documents. PURE: model layers come in by the digests of
//! models.lock, so no model byte is needed here.

use model_lock::{Digest, LockedLayer};

use super::spec::{
    CONFIG, Config, Descriptor, Empty, Execution, Healthcheck, History, MANIFEST, Manifest, Platform, RootFs, rfc3339,
};
use crate::plan::{ImagePlan, layers_of};

/// What every entry of an image's history begins with.
pub const MADE_BY: &str = "model-lock: ";

/// An image: its documents as bytes, and the descriptors that name everything.
#[derive(Debug, Clone)]
pub struct Image {
    /// The manifest's descriptor; its digest is the image's.
    pub manifest: Descriptor,
    /// The manifest.
    pub manifest_bytes: Vec<u8>,
    /// The config's descriptor.
    pub config: Descriptor,
    /// The config.
    pub config_bytes: Vec<u8>,
    /// The layers, lowest first: those of models, then the app's.
    pub layers: Vec<LockedLayer>,
}

/// Assembles the image.
#[must_use]
pub fn assemble(plan: &ImagePlan, app: LockedLayer) -> Image {
    let models = plan.model_layers.iter().map(|layer| (layer.layer, format!("model {}", layer.model)));
    let layers: Vec<_> = models.chain([(app, format!("app {}", plan.package))]).collect();
    build(&plan.platform, plan.created, execution(plan), layers)
}

/// Assembles the image that holds nothing but the layers of the plan's mounted models, the same ones that an embedded
/// image has. It serves `--mount type=image`, image volumes and modelcars, and stays as it is until a model changes:
/// neither the commit nor its time is in it.
#[must_use]
pub fn assemble_models(plan: &ImagePlan) -> Image {
    let layers = plan.mounted.iter().flat_map(layers_of).map(|layer| (layer.layer, format!("model {}", layer.model)));
    let title = format!("{}-models", plan.package);
    build(&plan.platform, 0, nothing_to_run(&title, &plan.user), layers.collect())
}

/// Assembles an image of one layer, with nothing to run: it is there for what is mounted into it.
#[must_use]
pub fn assemble_folder(title: &str, user: &str, platform: &Platform, layer: LockedLayer) -> Image {
    build(platform, 0, nothing_to_run(title, user), vec![(layer, title.to_owned())])
}

fn nothing_to_run(title: &str, user: &str) -> Execution {
    Execution {
        user: user.to_owned(),
        exposed_ports: [].into(),
        env: Vec::new(),
        entrypoint: Vec::new(),
        healthcheck: None,
        working_dir: "/".to_owned(),
        labels: [("org.opencontainers.image.title".to_owned(), title.to_owned())].into(),
    }
}

fn build(platform: &Platform, created: u64, execution: Execution, layers: Vec<(LockedLayer, String)>) -> Image {
    let created = rfc3339(created);
    let config = Config {
        created: created.clone(),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        config: execution,
        rootfs: RootFs {
            kind: "layers",
            diff_ids: layers.iter().map(|(layer, _)| layer.digest).collect::<Vec<Digest>>(),
        },
        history: layers
            .iter()
            .map(|(_, what)| History { created: created.clone(), created_by: format!("{MADE_BY}{what}") })
            .collect(),
    };
    let config_bytes = to_bytes(&config);
    let config = Descriptor::of(CONFIG, &config_bytes);
    let layers: Vec<LockedLayer> = layers.into_iter().map(|(layer, _)| layer).collect();
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST,
        config: config.clone(),
        layers: layers.iter().copied().map(Descriptor::from).collect(),
    };
    let manifest_bytes = to_bytes(&manifest);
    let mut manifest = Descriptor::of(MANIFEST, &manifest_bytes);
    manifest.platform = Some(platform.clone());
    Image { manifest, manifest_bytes, config, config_bytes, layers }
}

fn execution(plan: &ImagePlan) -> Execution {
    Execution {
        user: plan.user.clone(),
        exposed_ports: plan.ports.iter().map(|port| (format!("{port}/tcp"), Empty {})).collect(),
        env: plan.env.iter().map(|(name, value)| format!("{name}={}", plan.text(value))).collect(),
        entrypoint: plan.entrypoint.clone(),
        healthcheck: plan.healthcheck.as_ref().map(|command| Healthcheck {
            test: std::iter::once("CMD".to_owned()).chain(command.iter().cloned()).collect(),
        }),
        working_dir: "/".to_owned(),
        labels: plan.labels.iter().map(|(key, value)| (key.clone(), plan.text(value).to_owned())).collect(),
    }
}

/// The documents are our own structs of texts and numbers, which always serialise.
pub(super) fn to_bytes(document: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(document).unwrap_or_default()
}
