//! The files of the workspace against models.lock. It owns [`VerifiedModels`], the proof that later stages ask for, and
//! collects every finding; reading and comparing one file is `model_lock::verify`'s.

use std::path::{Path, PathBuf};

use model_lock::human;
use model_lock::verify::{
    Content, Depth, Failure as Unread, Finding, FindingKind, Located, Problem, open_regular, parallel,
};
use model_lock::{Digest, LockedModel, RelPath};

use crate::console::Console;
use crate::declare::DeclaredModel;
use crate::error::{Failure, Kind, Result};
use crate::source::Source;
use crate::source::local::{self, Filter};
use crate::stamp::Stamps;

/// Files that have the bytes that models.lock says. Only [`verify`] makes it.
#[derive(Debug, Clone)]
pub struct VerifiedModels(Vec<VerifiedFile>);

/// One of them.
#[derive(Debug, Clone)]
pub struct VerifiedFile {
    /// Its absolute path in a container.
    pub in_container: String,
    /// Where it is.
    pub at: PathBuf,
    /// Its digest.
    pub digest: Digest,
}

impl VerifiedModels {
    /// The files, in the order of the lock.
    #[must_use]
    pub fn files(&self) -> &[VerifiedFile] {
        &self.0
    }
}

/// Everything that keeps models from being verified.
#[derive(Debug, Default)]
pub struct Report {
    /// What disagrees.
    pub findings: Vec<Finding>,
    /// What could not be read.
    pub unread: Vec<Unread>,
    /// How many files the lock has.
    pub files: usize,
    /// The workspace's folder, which messages leave out.
    pub root: PathBuf,
}

/// Where the files of `locked` are, and the files that are there without being locked.
pub fn locate<'a>(
    root: &Path,
    model: &DeclaredModel,
    locked: &'a LockedModel,
) -> Result<(Vec<Located<'a>>, Vec<Finding>)> {
    let Source::Local(source) = &model.source else {
        return Err(Failure::new(
            Kind::Usage,
            format!("model `{}`: only sources in the workspace are supported yet", model.name),
        ));
    };
    let top = root.join(source.as_str());
    // A source that is a file: the model's one file has the source's name, and is not below it.
    let is_file = matches!(locked.files.as_slice(), [only]
        if Some(only.path.as_str()) == source.components().last() && top.join(only.path.as_str()).symlink_metadata().is_err());
    let at = |path: &RelPath| if is_file { top.clone() } else { top.join(path.as_str()) };
    let located =
        locked.model_files().zip(&locked.files).map(|(file, locked)| Located { file, at: at(&locked.path) }).collect();
    let mut extra = Vec::new();
    if !is_file {
        let listing = local::list(root, source, &Filter::new(&model.include, &model.exclude))?;
        let files = listing.files.into_iter().map(|(path, at)| (path.to_string(), at, None));
        // What stands in the place of a locked file is judged there.
        let refused =
            listing.refused.into_iter().map(|(name, why)| (name.clone(), top.join(name), Some(format!("it {why}"))));
        for (path, at, cause) in files.chain(refused) {
            if !locked.files.iter().any(|file| file.path.as_str() == path) {
                let found = at.metadata().ok().filter(std::fs::Metadata::is_file);
                let found = found.map(|metadata| Content { size: metadata.len(), digest: None });
                let (model, kind) = (locked.name.to_string(), FindingKind::Extra);
                extra.push(Finding { model, path, kind, expected: None, found, at, cause });
            }
        }
    }
    Ok((located, extra))
}

/// Verifies `models` on all cores. With `stamps`, a file that looks as it did when it was last verified is not read.
pub fn verify(
    root: &Path,
    models: &[(&DeclaredModel, &LockedModel)],
    stamps: Option<&Stamps>,
    console: &Console,
) -> Result<std::result::Result<VerifiedModels, Report>> {
    let mut located = Vec::new();
    let mut report = Report { root: root.to_owned(), ..Report::default() };
    for (model, locked) in models {
        match locate(root, model, locked) {
            Ok((files, extra)) => {
                located.extend(files);
                report.findings.extend(extra);
            }
            Err(failure) => return Err(failure),
        }
    }
    report.files = located.len();
    let to_read = |file: &&Located<'_>| !stamps.is_some_and(|stamps| stamps.trusts(&file.at, file.file.digest));
    let unknown: Vec<&Located<'_>> = located.iter().filter(to_read).collect();
    if !unknown.is_empty() {
        let total = unknown.iter().map(|file| file.file.size).sum();
        let names: Vec<_> = models.iter().map(|(model, _)| model.name.as_str()).collect();
        let what = format!("{} ({}, {})", names.join(", "), human::count(unknown.len(), "file"), human::bytes(total));
        let progress = console.progress("Verifying", &what, total);
        let problems = parallel(&unknown, |file| {
            let reading = open_regular(&file.at).ok().flatten().and_then(|file| Stamps::before(&file).ok());
            let checked = file.check(Depth::Report, |bytes| progress.add(bytes.len() as u64));
            if let (Ok(_), Some(stamps), Some(reading)) = (&checked, stamps, reading) {
                stamps.after(&file.at, &reading, file.file.digest);
            }
            checked.err()
        });
        for problem in problems.into_iter().flatten() {
            match problem {
                Problem::Finding(finding) => report.findings.push(*finding),
                Problem::Failed(failure) => report.unread.push(failure),
            }
        }
    }
    if !report.findings.is_empty() || !report.unread.is_empty() {
        report.findings.sort_by(|a, b| (&a.model, &a.path).cmp(&(&b.model, &b.path)));
        return Ok(Err(report));
    }
    let verified = located.into_iter().map(|file| VerifiedFile {
        in_container: file.file.in_container(),
        at: file.at,
        digest: file.file.digest,
    });
    Ok(Ok(VerifiedModels(verified.collect())))
}

impl Report {
    /// The report as a failure: 1 if something disagrees, 2 if nothing does and something could not be read.
    #[must_use]
    pub fn into_failure(self) -> Failure {
        let mut details = Vec::new();
        for finding in &self.findings {
            details.extend(lines(finding));
        }
        details.extend(self.unread.iter().map(|unread| format!("{unread}: {}", unread.error)));
        let files = human::count(self.files, "file");
        if self.findings.is_empty() {
            let unread = self.unread.len();
            return Failure::new(Kind::Io, format!("failed to read {unread} of {files}"))
                .details(details)
                .help("check the permissions and the disk, then run `cargo xtask verify-models` again");
        }
        let bad = self.findings.iter().filter(|finding| finding.kind != FindingKind::Extra).count();
        let extra = self.findings.len() - bad;
        let message = match (bad, extra) {
            (0, extra) => format!("{} not in models.lock", plural(extra, "file is", "files are")),
            (bad, 0) => format!("{bad} of {files} {} not match models.lock", if bad == 1 { "does" } else { "do" }),
            (bad, extra) => format!(
                "{bad} of {files} {} not match models.lock, and {} not in it",
                if bad == 1 { "does" } else { "do" },
                plural(extra, "file is", "files are")
            ),
        };
        let folder = self.findings.iter().find_map(|finding| finding.at.parent());
        let place = folder.map(|folder| folder.strip_prefix(&self.root).unwrap_or(folder).display().to_string());
        let place = crate::quote::shell(&place.unwrap_or_default());
        Failure::new(Kind::Integrity, message).details(details).help(format!(
            "restore what is locked (`git checkout -- {place}`), or run `cargo xtask lock` if the change is meant"
        ))
    }
}

/// A finding for people: what it is about, what was expected and found, and why.
pub fn lines(finding: &Finding) -> impl Iterator<Item = String> {
    let first = format!("{}/{} {}", finding.model, finding.path, finding.kind.says());
    let expected = finding.expected.map(|content| format!("  expected {content}"));
    let found = finding.found.map(|content| format!("  found    {content}"));
    let cause = finding.cause.as_ref().map(|cause| format!("  {cause}"));
    std::iter::once(first).chain(expected).chain(found).chain(cause)
}

fn plural(count: usize, one: &str, many: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { many })
}
