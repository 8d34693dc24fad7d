//! Files and folders of the workspace as a source: which files a model has, and where they are.

use std::fs;
use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use model_lock::RelPath;

use crate::error::{Failure, Kind, OrFail as _, Result};

/// A file of a source: its path within the model, and where it is.
pub type File = (RelPath, PathBuf);

/// Which files of a folder belong to a model.
#[derive(Debug)]
pub struct Filter {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

impl Filter {
    /// From the globs of a declaration, which were checked there.
    #[must_use]
    pub fn new(include: &[String], exclude: &[String]) -> Self {
        let patterns = |globs: &[String]| globs.iter().filter_map(|glob| Pattern::new(glob).ok()).collect();
        Self { include: patterns(include), exclude: patterns(exclude) }
    }

    /// A glob without `/` is matched against the file's name, one with `/` against its whole path. Files and folders
    /// whose name starts with a dot (`.git`, `.cache`, `.DS_Store`) belong to a model only if `include` says so.
    #[must_use]
    pub fn takes(&self, path: &RelPath) -> bool {
        let options =
            MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: false };
        let matches = |pattern: &Pattern| {
            let name = path.components().last().unwrap_or_default();
            let text = if pattern.as_str().contains('/') { path.as_str() } else { name };
            pattern.matches_with(text, options)
        };
        let hidden = path.components().any(|component| component.starts_with('.'));
        let dotted = |pattern: &Pattern| pattern.as_str().split('/').any(|component| component.starts_with('.'));
        let included = if hidden {
            self.include.iter().any(|pattern| dotted(pattern) && matches(pattern))
        } else {
            self.include.is_empty() || self.include.iter().any(matches)
        };
        included && !self.exclude.iter().any(matches)
    }
}

/// What is at a source.
#[derive(Debug, Default)]
pub struct Listing {
    /// The files that a model can have, sorted.
    pub files: Vec<File>,
    /// What can be part of no model: its name within the source, and why.
    pub refused: Vec<(String, String)>,
}

/// Lists the source; nothing if there is nothing. A source that is a file is a model of this one file.
pub fn list(workspace: &Path, source: &RelPath, filter: &Filter) -> Result<Listing> {
    let top = workspace.join(source.as_str());
    let inside = workspace.canonicalize().or_fail(Kind::Io, || format!("failed to read `{}`", workspace.display()))?;
    let mut listing = Listing::default();
    match top.metadata() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && top.symlink_metadata().is_err() => {}
        Err(error) => return Err(error).or_fail(Kind::Io, || format!("failed to read `{source}`")),
        Ok(metadata) if metadata.is_dir() => {
            if !top.canonicalize().is_ok_and(|real| real.starts_with(&inside)) {
                return Err(Failure::new(Kind::Policy, format!("`{source}` is a symbolic link out of the workspace"))
                    .help("move the folder into the workspace, or declare where it is as a URL"));
            }
            listing.walk(&top, "", &inside, filter)?;
        }
        Ok(_) => listing.take(source.components().last().unwrap_or_default(), &top, &inside),
    }
    listing.files.sort();
    Ok(listing)
}

impl Listing {
    #[expect(clippy::disallowed_methods, reason = "this is the listing that sorts")]
    fn walk(&mut self, folder: &Path, prefix: &str, inside: &Path, filter: &Filter) -> Result<()> {
        let fail = || format!("failed to read the folder `{}`", folder.display());
        let mut entries: Vec<_> =
            fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<_>>).or_fail(Kind::Io, fail)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let at = entry.path();
            let Some(name) = entry.file_name().to_str().map(|name| format!("{prefix}{name}")) else {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                self.refused.push((name, "has a name that is not UTF-8".to_owned()));
                continue;
            };
            if entry.file_type().or_fail(Kind::Io, fail)?.is_dir() {
                self.walk(&at, &format!("{name}/"), inside, filter)?;
            } else if !name.parse::<RelPath>().is_ok_and(|path| !filter.takes(&path)) {
                // A name that can be no path matches no glob either: it is not left out, it is refused.
                self.take(&name, &at, inside);
            }
        }
        Ok(())
    }

    fn take(&mut self, name: &str, at: &Path, inside: &Path) {
        let path = match name.parse::<RelPath>() {
            Ok(path) => path,
            Err(error) => {
                self.refused.push((name.to_owned(), error.reason().to_owned()));
                return;
            }
        };
        let why = match at.metadata() {
            Ok(metadata) if metadata.is_file() => {
                if at.canonicalize().is_ok_and(|real| real.starts_with(inside)) {
                    self.files.push((path, at.to_owned()));
                    return;
                }
                "is a symbolic link out of the workspace".to_owned()
            }
            Ok(metadata) if metadata.is_dir() => "is a symbolic link to a folder".to_owned(),
            Ok(_) => "is a pipe, socket or device".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        self.refused.push((name.to_owned(), why));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_choose_files() {
        let check = |include: &[&str], exclude: &[&str], taken: &[&str]| {
            let owned = |globs: &[&str]| globs.iter().map(|glob| (*glob).to_owned()).collect::<Vec<_>>();
            let filter = Filter::new(&owned(include), &owned(exclude));
            let all = ["a.safetensors", "onnx/b.onnx", "onnx/fp16/c.onnx", ".cache/x", "d/.e"];
            let result: Vec<_> = all.into_iter().filter(|path| filter.takes(&path.parse().unwrap())).collect();
            assert_eq!(result, taken, "{include:?} {exclude:?}");
        };
        check(&[], &[], &["a.safetensors", "onnx/b.onnx", "onnx/fp16/c.onnx"]);
        check(&["*.onnx"], &[], &["onnx/b.onnx", "onnx/fp16/c.onnx"]);
        check(&["onnx/*"], &[], &["onnx/b.onnx"]);
        check(&["onnx/**"], &["c.*"], &["onnx/b.onnx"]);
        check(&["*", ".cache/*"], &[], &["a.safetensors", "onnx/b.onnx", "onnx/fp16/c.onnx", ".cache/x"]);
    }
}
