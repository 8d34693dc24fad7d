//! `cargo xtask image --builder docker`: the plan's Dockerfile, built by the engine, and the image compared with the plan.

use std::collections::BTreeMap;

use model_lock::human;
use serde_json::json;

use super::engine::connect;
use super::manifest::write_mounts;
use super::prepare::{Planned, shown};
use crate::build_context::BuildContext;
use crate::console::Console;
use crate::declare::Strategy;
use crate::engine::{Build, EngineImage, Store};
use crate::error::{Failure, Kind, Result};
use crate::flags::Image as Flags;
use crate::mounts::ImagePlace;
use crate::plan::ImagePlan;
use crate::upload;
use crate::verify::verify;

/// Builds the plan's Dockerfile with the engine, compares the image with the plan, and gives it its name.
pub(super) fn build(planned: &Planned, flags: &Flags, console: &Console) -> Result<()> {
    let Planned { plan, declaration, reference, rendered, .. } = planned;
    if flags.print_digest || flags.model_image || flags.output.is_some() {
        return Err(Failure::new(Kind::Usage, "an image that the engine builds is in the engine, and nowhere else")
            .help("leave `--builder docker` out for `--print-digest`, `--model-image` and `--output`"));
    }
    let engine = connect(console)?;
    engine.require_link()?;
    let layers = planned.layers(&plan.model_layers)?;
    let context = BuildContext::collect(&declaration.root, plan, rendered, &layers)
        .map_err(|failure| report(planned, failure, console))?;
    let mut arguments: BTreeMap<_, _> =
        [("REVISION".to_owned(), plan.revision.clone()), ("SOURCE_DATE_EPOCH".to_owned(), plan.created.to_string())]
            .into();
    arguments.extend(flags.build_args.iter().cloned());
    let build = Build {
        dockerfile: rendered.name.clone(),
        arguments,
        network: flags.network.clone(),
        platform: plan.platform.to_string(),
    };
    let dockerfile = shown(&declaration.root, &planned.folder.join(&rendered.name));
    let size = format!("{}, {}", human::count(context.sources.len(), "file"), human::bytes(context.recipe.size()));
    let steps = console.steps("Building", &format!("{dockerfile} ({size})"), context.recipe.size());
    let outcome = engine
        .build(&build, &steps, |out| upload::send(&context.recipe, &context.sources, out, |bytes| steps.add(bytes)));
    drop(steps);
    let id = outcome.map_err(|failure| report(planned, failure, console))?;
    let image = engine.image(&id)?.ok_or_else(|| {
        Failure::new(Kind::Engine, format!("the engine built `{id}` and does not have it"))
            .help("see the engine's log, then run the command again")
    })?;
    let differences = differences(plan, &image);
    if !differences.is_empty() {
        return Err(Failure::new(Kind::Integrity, "the engine built another image than was planned")
            .details(differences)
            .help(format!(
                "the name `{reference}` stays as it was; `docker buildx prune` drops what the engine kept of earlier \
                 builds, and `--builder oci` makes the image without the engine"
            )));
    }
    engine.tag(&id, reference)?;
    if !plan.mounted.is_empty() {
        match (engine.about().store, id.parse()) {
            (Store::Containerd, Ok(digest)) => {
                write_mounts(planned, digest, ImagePlace::Engine, flags.kubernetes, console)?;
            }
            _ => console.warn(
                "the runtime manifest is not written: this engine does not know the image's digest before it is pushed",
                Some("leave `--builder docker` out, or let the engine use the containerd image store"),
            ),
        }
    }
    console.status("Finished", format!("{} in the engine", reference.tagged()));
    console.data(&id);
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            let model = plan.model_layers.iter().find(|planned| planned.layer.digest.to_string() == *layer);
            json!({ "digest": layer, "model": model.map(|planned| planned.model.as_str()) })
        })
        .collect();
    console.json(&json!({
        "ok": true, "digest": id, "reference": reference.to_string(), "platform": plan.platform.to_string(),
        "mode": plan.mode.as_str(), "revision": plan.revision, "layers": layers,
    }));
    Ok(())
}

/// The findings of all models in place of the first wrong byte.
fn report(planned: &Planned, failure: Failure, console: &Console) -> Failure {
    if failure.kind != Kind::Integrity && failure.kind != Kind::Io {
        return failure;
    }
    match verify(&planned.declaration.root, &planned.models_by(Strategy::Embed), None, console) {
        Ok(Err(report)) => report.into_failure(),
        Ok(Ok(_)) | Err(_) => failure,
    }
}

/// Where an image that an engine built is not what was planned.
fn differences(plan: &ImagePlan, image: &EngineImage) -> Vec<String> {
    let mut lines = Vec::new();
    let mut compare = |what: &str, expected: String, found: String| {
        if expected != found {
            lines.extend([what.to_owned(), format!("  expected {expected}"), format!("  found    {found}")]);
        }
    };
    // Above the base's layers and below the program's.
    let models: Vec<String> = plan.model_layers.iter().map(|layer| layer.layer.digest.to_string()).collect();
    let below = image.layers.len().saturating_sub(1);
    let base = below.saturating_sub(models.len());
    compare("the layers of the models", models.join(", "), image.layers[base..below].join(", "));
    if plan.base.is_none() {
        compare("the number of layers", (models.len() + 1).to_string(), image.layers.len().to_string());
    }
    compare("the user", plan.user.clone(), image.user.clone());
    compare("the entrypoint", format!("{:?}", plan.entrypoint), format!("{:?}", image.entrypoint));
    compare("the platform", plan.platform.to_string(), image.platform.clone());
    let command =
        plan.healthcheck.iter().flat_map(|command| std::iter::once("CMD").chain(command.iter().map(String::as_str)));
    // A base may have a health check, variables, labels and ports of its own.
    let own = plan.base.is_none();
    if own || plan.healthcheck.is_some() {
        compare("the health check", format!("{:?}", command.collect::<Vec<_>>()), format!("{:?}", image.healthcheck));
    }
    for (name, value) in &plan.env {
        let prefix = format!("{name}=");
        let found = image.env.iter().find_map(|line| line.strip_prefix(&prefix));
        compare(&format!("the variable `{name}`"), plan.text(value).to_owned(), found.unwrap_or("nothing").to_owned());
    }
    for (key, value) in &plan.labels {
        let found = image.labels.get(key).map_or("nothing", String::as_str);
        compare(&format!("the label `{key}`"), plan.text(value).to_owned(), found.to_owned());
    }
    for port in &plan.ports {
        let port = format!("{port}/tcp");
        let found = if image.ports.contains(&port) { port.clone() } else { "nothing".to_owned() };
        compare("a port", port, found);
    }
    if own {
        compare("the number of variables", plan.env.len().to_string(), image.env.len().to_string());
        compare("the number of labels", plan.labels.len().to_string(), image.labels.len().to_string());
        compare("the number of ports", plan.ports.len().to_string(), image.ports.len().to_string());
    }
    lines
}
