//! From what is declared to what is locked: list the files of every source, look at their formats, and compute every
//! digest in one pass over the bytes. It also tells, without reading a model, whether a lock still fits a declaration.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use model_lock::format::recognise;
use model_lock::human;
use model_lock::lock::revision_of;
use model_lock::verify::{open_regular, parallel};
use model_lock::{LockedFile, LockedModel, ModelLock};

use crate::console::Console;
use crate::declare::{Declaration, DeclaredModel};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::oci::layer::{Recipe, group};
use crate::source::local::{self, Filter};
use crate::source::{Source, redacted};

/// Resolves every declared model.
pub fn resolve(declaration: &Declaration, console: &Console) -> Result<ModelLock> {
    let mut listed = Vec::new();
    let mut refused = Vec::new();
    for model in &declaration.models {
        match list(&declaration.root, model) {
            Ok(files) => {
                refused.extend(refusals(model, &files)?);
                listed.push((model, files));
            }
            Err(failure) if failure.kind == Kind::Policy => {
                refused.push((failure.message.clone(), failure.details, failure.help));
            }
            Err(failure) => return Err(failure),
        }
    }
    match refused.len() {
        0 => lock(&listed, console),
        1 => {
            let (message, details, help) = refused.remove(0);
            let failure = Failure::new(Kind::Policy, message).details(details);
            Err(match help {
                Some(help) => failure.help(help),
                None => failure,
            })
        }
        count => {
            let details = refused.iter().flat_map(|(message, details, help)| {
                let lines = details.iter().map(|line| format!("  {line}"));
                std::iter::once(message.clone()).chain(lines).chain(help.iter().map(|help| format!("  help: {help}")))
            });
            let details: Vec<_> = details.collect();
            Err(Failure::new(Kind::Policy, format!("{count} files cannot be locked")).details(details))
        }
    }
}

/// A file of a model with its size when it was listed.
struct Listed {
    path: model_lock::RelPath,
    at: PathBuf,
    size: u64,
}

fn list(root: &Path, model: &DeclaredModel) -> Result<Vec<Listed>> {
    let name = &model.name;
    let path = match &model.source {
        Source::Local(path) => path,
        Source::Remote(url) => {
            let url = redacted(url);
            return Err(Failure::new(
                Kind::Usage,
                format!("model `{name}`: sources such as `{url}` are not supported yet"),
            )
            .help("download the files into the workspace and name their folder as the source"));
        }
    };
    let listing = local::list(root, path, &Filter::new(&model.include, &model.exclude)).map_err(|mut failure| {
        failure.message = format!("model `{name}`: {}", failure.message);
        failure
    })?;
    if !listing.refused.is_empty() {
        let lines = listing.refused.iter().map(|(name, why)| format!("`{}` {why}", name.escape_debug()));
        let message = format!("model `{name}`: `{path}` has files that cannot be part of a model");
        return Err(Failure::new(Kind::Policy, message)
            .details(lines)
            .help("remove or rename them, or leave them out with `exclude` in Cargo.toml"));
    }
    let files = listing.files;
    if files.is_empty() {
        let there = root.join(path.as_str()).exists();
        let message =
            format!("model `{name}`: {}", if there { "no file is left to lock" } else { "its source does not exist" });
        let help = if there {
            "check `include` and `exclude`"
        } else {
            "put the model there, or correct `source` in Cargo.toml"
        };
        return Err(Failure::new(Kind::Policy, message).details([format!("source: `{path}`")]).help(help));
    }
    files
        .into_iter()
        .map(|(path, at)| {
            let size = at.metadata().or_fail(Kind::Io, || format!("failed to read `{}`", at.display()))?.len();
            Ok(Listed { path, at, size })
        })
        .collect()
}

type Refusal = (String, Vec<String>, Option<String>);

fn refusals(model: &DeclaredModel, files: &[Listed]) -> Result<Vec<Refusal>> {
    let mut refused = Vec::new();
    for Listed { path, at, size } in files {
        let found = open(at)
            .and_then(|file| recognise(path.as_str(), *size, file))
            .or_fail(Kind::Io, || format!("failed to read `{}`", at.display()))?;
        if let Err(why) = found {
            if matches!(why, model_lock::format::Refused::Unsafe(_)) && model.allow_unsafe_format {
                continue;
            }
            let shown = match &model.source {
                Source::Local(source) if at.ends_with(source.as_str()) => source.to_string(),
                source => format!("{source}/{path}"),
            };
            refused.push((format!("model `{}`: `{shown}` {why}", model.name), Vec::new(), Some(why.help(&shown))));
        }
    }
    Ok(refused)
}

fn open(at: &Path) -> io::Result<File> {
    open_regular(at)?.ok_or_else(|| io::Error::other("it is not a regular file any more"))
}

/// The files of one layer, and the model they belong to.
struct Job<'a> {
    model: usize,
    files: Vec<(usize, &'a Listed)>,
    recipe: Recipe,
}

fn lock(listed: &[(&DeclaredModel, Vec<Listed>)], console: &Console) -> Result<ModelLock> {
    let mut jobs = Vec::new();
    for (index, (model, files)) in listed.iter().enumerate() {
        let sizes: Vec<u64> = files.iter().map(|file| file.size).collect();
        for members in group(&sizes) {
            let files: Vec<_> = members.into_iter().map(|member| (member, &files[member])).collect();
            let named: Vec<_> = files.iter().map(|(_, file)| (&file.path, file.size)).collect();
            let recipe = Recipe::of_model(&model.target, &named);
            jobs.push(Job { model: index, files, recipe });
        }
    }
    let files = || listed.iter().flat_map(|(_, files)| files);
    let total = files().map(|file| file.size).sum();
    let (models, count) = (human::count(listed.len(), "model"), human::count(files().count(), "file"));
    let progress = console.progress("Locking", &format!("{models} ({count}, {})", human::bytes(total)), total);
    let digests =
        parallel(&jobs, |job| job.recipe.digests(|file| open(&job.files[file].1.at), |bytes| progress.add(bytes)));
    drop(progress);

    let mut locked: Vec<Vec<Option<LockedFile>>> =
        listed.iter().map(|(_, files)| files.iter().map(|_| None).collect()).collect();
    for (job, result) in jobs.iter().zip(digests) {
        let model = listed[job.model].0;
        let (layer, digests) =
            result.or_fail(Kind::Io, || format!("failed to read the files of model `{}`", model.name))?;
        for ((index, file), digest) in job.files.iter().zip(digests) {
            let file = LockedFile { path: file.path.clone(), size: file.size, digest, layer };
            locked[job.model][*index] = Some(file);
        }
    }
    let models = listed.iter().zip(locked).map(|((model, _), files)| {
        let files: Vec<LockedFile> = files.into_iter().flatten().collect();
        LockedModel {
            name: model.name.clone(),
            source: model.source.to_string(),
            revision: revision_of(files.iter().map(|file| (&file.path, file.digest))),
            mirrors: model.mirrors.clone(),
            include: model.include.clone(),
            exclude: model.exclude.clone(),
            target: model.target.clone(),
            license: model.license.clone(),
            files,
        }
    });
    ModelLock::new(models.collect()).or_fail(Kind::Policy, || "the models contradict each other".to_owned())
}

/// Where `lock` does not fit `declaration`, told without reading a model: one line for each model.
#[must_use]
pub fn stale(declaration: &Declaration, lock: &ModelLock) -> Vec<String> {
    let mut lines = Vec::new();
    for model in &declaration.models {
        let Some(locked) = lock.model(model.name.as_str()) else {
            lines.push(format!("`{}`: declared in Cargo.toml, not locked", model.name));
            continue;
        };
        let mut compare = |what: &str, declared: String, locked: String| {
            if declared != locked {
                lines.push(format!("`{}`: {what} `{declared}` in Cargo.toml, `{locked}` locked", model.name));
            }
        };
        compare("source", redacted(&model.source.to_string()), redacted(&locked.source));
        compare("target", model.target.to_string(), locked.target.to_string());
        compare("license", model.license.clone().unwrap_or_default(), locked.license.clone().unwrap_or_default());
        compare("include", model.include.join(", "), locked.include.join(", "));
        compare("exclude", model.exclude.join(", "), locked.exclude.join(", "));
        let plain = |urls: &[String]| urls.iter().map(|url| redacted(url)).collect::<Vec<_>>().join(", ");
        compare("mirrors", plain(&model.mirrors), plain(&locked.mirrors));
    }
    for locked in lock.models() {
        if !declaration.models.iter().any(|model| model.name == locked.name) {
            lines.push(format!("`{}`: locked, no longer declared in Cargo.toml", locked.name));
        }
    }
    lines
}
