//! `cargo xtask run`: the app with its models, in a container as locked down as in production, or by itself on a machine
//! without an engine.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use model_lock::ModelRoot;
use serde_json::json;

use super::engine;
use super::image::Work;
use super::prepare::{Assembled, Dockerfile, Planned, Request, prepare, shown};
use super::volume::fill;
use crate::console::Console;
use crate::declare::Strategy;
use crate::engine::{About, Container, Ended, Engine, Mount, MountSource, Publish};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::flags::{Global, Run as Flags, VolumeModels};
use crate::verify::VerifiedFile;
use crate::write;

/// Runs it.
pub fn run(flags: &Flags, global: &Global, console: &Console) -> Result<()> {
    let request = Request {
        package: flags.package.as_deref(),
        mode: flags.mode.strategy(),
        tag: None,
        platform: None,
        dockerfile: Dockerfile::Leave,
    };
    let planned = prepare(&request, console)?;
    let engine = if flags.volume.is_some() {
        // A volume is an engine's.
        Some(engine::connect(console)?)
    } else {
        engine::connect_if_any("start an engine to run the app in a container; now it runs by itself", console)?
    };
    let assembled = planned.assemble(global, console)?;
    let publish = match flags.publish.as_slice() {
        [] => planned.plan.ports.iter().copied().map(Publish::local).collect(),
        publish => publish.to_vec(),
    };
    match engine {
        Some(engine) => in_container(&engine, &planned, &assembled, publish, flags, console),
        None => by_itself(&planned, &assembled, &publish, flags, console),
    }
}

fn in_container(
    engine: &Engine,
    planned: &Planned,
    assembled: &Assembled,
    publish: Vec<Publish>,
    flags: &Flags,
    console: &Console,
) -> Result<()> {
    let work = Work::begin(planned, console)?;
    let image = work.load(engine, assembled)?;
    let mounts = match &flags.volume {
        Some(name) => from_volume(engine, planned, name, &work, console)?,
        None => work.verified(&[], Strategy::Mount)?.files().iter().map(bind).collect::<Result<_>>()?,
    };
    work.finish()?;
    let of_host = flags.network.as_deref() == Some("host");
    let container = Container {
        image,
        arguments: flags.arguments.clone(),
        env: flags.env.clone(),
        publish: if flags.network.is_some() && flags.publish.is_empty() { Vec::new() } else { publish },
        network: flags.network.clone(),
        mounts,
    };
    let ports = planned.plan.ports.clone();
    let started = |published: &[Publish]| {
        let own = if of_host { ports.iter().copied().map(Publish::local).collect() } else { Vec::new() };
        announce(published.iter().chain(&own), console);
    };
    match engine.run(&container, started, |bytes| console.follow(bytes))? {
        Ended::Exited(0) => Ok(()),
        Ended::Stopped => {
            console.status("Stopped", &planned.plan.package);
            Ok(())
        }
        Ended::Exited(code) => {
            // What the app's own subcommands mean by 1: something is not as it should be.
            let kind = if code == 1 { Kind::Integrity } else { Kind::Program };
            Err(Failure::new(kind, format!("`{}` ended with exit code {code}", planned.plan.package))
                .help("see what it says above"))
        }
    }
}

fn bind(file: &VerifiedFile) -> Result<Mount> {
    let at = file.at.canonicalize().or_fail(Kind::Io, || format!("failed to read `{}`", file.at.display()))?;
    Ok(Mount { source: MountSource::File(at), target: file.in_container.clone() })
}

/// Fills the volume as `volume sync` does, and mounts what the plan wants of it.
fn from_volume(
    engine: &Engine,
    planned: &Planned,
    name: &str,
    work: &Work<'_>,
    console: &Console,
) -> Result<Vec<Mount>> {
    let wanted = planned.plan.volume_mounts();
    let About { product, version, api, .. } = engine.about();
    if wanted.iter().any(|(_, path)| path.is_some()) && *api < (1, 45) {
        return Err(Failure::new(Kind::Engine, format!("{product} {version} cannot mount a part of a volume"))
            .details(["Docker Engine 26.0 (API 1.45) can; before, every mounted model must be below `/models`, and no embedded one".to_owned()])
            .help("choose other targets in Cargo.toml, or leave `--volume` out"));
    }
    let Planned { declaration, lock, .. } = planned;
    let volume = VolumeModels { name: name.to_owned(), models: Vec::new() };
    fill(engine, &volume, declaration, lock, work.stamps(), console)?;
    let mount = |(target, path): (&str, Option<&str>)| Mount {
        source: MountSource::Volume(name.to_owned(), path.map(str::to_owned)),
        target: target.to_owned(),
    };
    Ok(wanted.into_iter().map(mount).collect())
}

/// Where the app is reached.
fn announce<'a>(published: impl Iterator<Item = &'a Publish>, console: &Console) {
    let mut urls: Vec<String> = published
        .map(|publish| {
            let address = match publish.address {
                IpAddr::V4(address) if address.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
                IpAddr::V6(address) if address.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
                address => address,
            };
            format!("http://{}", SocketAddr::new(address, publish.host))
        })
        .collect();
    urls.dedup();
    console.status(
        "Running",
        format!("{}; Ctrl-C ends it", if urls.is_empty() { "the app".into() } else { urls.join(", ") }),
    );
    for url in &urls {
        console.data(url);
    }
    console.json(&json!({ "ok": true, "urls": urls }));
}

/// Becomes the app, whose models are links in a folder that stands in for the container's.
fn by_itself(
    planned: &Planned,
    assembled: &Assembled,
    publish: &[Publish],
    flags: &Flags,
    console: &Console,
) -> Result<()> {
    let work = Work::begin(planned, console)?;
    let mut files = work.verified(&[], Strategy::Embed)?.files().to_vec();
    files.extend(work.verified(&[], Strategy::Mount)?.files().iter().cloned());
    let root = planned.package_dir().join("root");
    link(&root, &files)?;
    work.finish()?;
    console.status("Linked", format!("{} models in {}", planned.models.len(), shown(&planned.declaration.root, &root)));
    let mut command = Command::new(&assembled.binary.at);
    if let Some(publish) = publish.first() {
        let listen = SocketAddr::new(publish.address, free_port(publish)?);
        announce(std::iter::once(&Publish { host: listen.port(), ..*publish }), console);
        command.env("LISTEN", listen.to_string());
    }
    let plan = &planned.plan;
    // Its own program search path is the container's.
    let env = plan.env.iter().filter(|(name, _)| name != "PATH");
    command.envs(env.map(|(name, value)| (name, plan.text(value)))).env("MODEL_ROOT", &root);
    command.envs(flags.env.iter().map(|(name, value)| (name, value))).args(&flags.arguments);
    // This process becomes the app: signals and the exit code are its own.
    let error = command.stdout(std::io::stderr()).exec();
    Err(error).or_fail(Kind::Program, || format!("failed to run `{}`", assembled.binary.at.display()))
}

/// A port that is free now, where any will do.
fn free_port(publish: &Publish) -> Result<u16> {
    if publish.host != 0 {
        return Ok(publish.host);
    }
    let fail = || format!("failed to find a free port on {}", publish.address);
    let listener = TcpListener::bind((publish.address, 0)).or_fail(Kind::Io, fail)?;
    Ok(listener.local_addr().or_fail(Kind::Io, fail)?.port())
}

/// Makes `root` the folder of these files and no others, each a link to where it is.
fn link(root: &Path, files: &[VerifiedFile]) -> Result<()> {
    let fail = || format!("failed to link the models in `{}`", root.display());
    match std::fs::remove_dir_all(root) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).or_fail(Kind::Io, fail),
        _ => {}
    }
    let places = ModelRoot::new(root);
    for file in files {
        let link: PathBuf = places.resolve(&file.in_container);
        if let Some(folder) = link.parent() {
            write::folder(folder)?;
        }
        let at = file.at.canonicalize().or_fail(Kind::Io, fail)?;
        std::os::unix::fs::symlink(at, link).or_fail(Kind::Io, fail)?;
    }
    Ok(())
}
