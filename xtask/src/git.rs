//! The commit that an image is made from, asked from git.

use std::path::Path;

use xshell::{Shell, cmd};

use crate::error::{Failure, Kind, OrFail as _, Result};

/// A commit and whether the working copy differs from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Commit {
    /// 40 or 64 hex digits.
    pub id: String,
    /// Whether a tracked file differs or an untracked one is there, within the workspace.
    pub dirty: bool,
    /// Seconds since 1970 of the committer's date.
    pub time: u64,
}

impl Commit {
    /// The id, with `-dirty` behind it where the working copy differs.
    #[must_use]
    pub fn revision(&self) -> String {
        format!("{}{}", self.id, if self.dirty { "-dirty" } else { "" })
    }
}

/// The commit of the workspace at `root`; nothing where there is no git, no repository or no commit.
pub fn commit(root: &Path) -> Result<Option<Commit>> {
    let shell = Shell::new().or_fail(Kind::Program, || "failed to prepare a call of `git`".to_owned())?;
    shell.change_dir(root);
    shell.set_var("LC_ALL", "C");
    // A lock file for refreshing the index would be a write to the repository.
    shell.set_var("GIT_OPTIONAL_LOCKS", "0");
    let Ok(log) = cmd!(shell, "git log -1 --format=%H/%ct").quiet().ignore_status().output() else {
        return Ok(None);
    };
    if !log.status.success() {
        let said = String::from_utf8_lossy(&log.stderr).trim().to_owned();
        if said.contains("not a git repository") || said.contains("does not have any commits yet") {
            return Ok(None);
        }
        return Err(Failure::new(Kind::Program, "failed to ask git for the commit").because(said));
    }
    let text = String::from_utf8_lossy(&log.stdout).trim().to_owned();
    let (id, time) = text.split_once('/').unwrap_or((&text, ""));
    let time = time.parse().or_fail(Kind::Program, || format!("failed to read the commit's time from `{text}`"))?;
    let status = cmd!(shell, "git status --porcelain --untracked-files=normal --ignore-submodules=none -- .")
        .quiet()
        .ignore_stderr()
        .read()
        .or_fail(Kind::Program, || "failed to ask git for the state of the working copy".to_owned())?;
    Ok(Some(Commit { id: id.to_owned(), dirty: !status.is_empty(), time }))
}
