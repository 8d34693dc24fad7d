//! What the app does with its models: find them below the model root, verify them, open them. The app passes the
//! constants that `build` wrote, or the files of a lock; nothing here reads the environment.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;
use std::str::FromStr;

pub use crate::lock::{Model, ModelFile};
pub use crate::path::ModelRoot;
use crate::verify::{Depth, Failure, Finding, FindingKind, Located, Problem, parallel};

/// How much of a model is verified before it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verify {
    /// Every byte.
    #[default]
    Full,
    /// That every file is there and has its size.
    Size,
    /// Nothing: files are opened as they are.
    Off,
}

impl FromStr for Verify {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "full" => Ok(Self::Full),
            "size" => Ok(Self::Size),
            "off" => Ok(Self::Off),
            _ => Err(format!("`{}` is not one of `full`, `size`, `off`", text.escape_debug())),
        }
    }
}

/// Why a file of a model is not used: one line that names model, path, what was expected and found, and the likely cause.
#[derive(Debug)]
pub struct Refusal(Problem);

impl Refusal {
    /// Whether the file is there and disagrees, in contrast to one that could not be read.
    #[must_use]
    pub fn finding(&self) -> Option<&Finding> {
        match &self.0 {
            Problem::Finding(finding) => Some(finding),
            Problem::Failed(_) => None,
        }
    }

    /// What the system said, for a file that could not be read.
    #[must_use]
    pub fn failure(&self) -> Option<&io::Error> {
        match &self.0 {
            Problem::Finding(_) => None,
            Problem::Failed(failure) => Some(&failure.error),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Problem::Finding(finding) => {
                write!(f, "model `{}`: `{}` {}", finding.model, finding.at.display(), finding.kind.says())?;
                match (&finding.expected, &finding.found) {
                    (Some(expected), Some(found)) => write!(f, ": expected {expected}, found {found}")?,
                    (Some(expected), None) => write!(f, ": expected {expected}")?,
                    (None, _) => {}
                }
                finding.cause.iter().try_for_each(|cause| write!(f, "; {cause}"))
            }
            Problem::Failed(Failure { model, at, error }) => {
                write!(f, "model `{model}`: failed to read `{}`: {error}", at.display())?;
                if error.kind() == io::ErrorKind::PermissionDenied {
                    write!(f, "; it is not readable for {}: `chmod a+rX` the source of the mount", this_user())?;
                }
                Ok(())
            }
        }
    }
}

impl std::error::Error for Refusal {}

impl ModelRoot {
    /// Where `file` is on this machine.
    #[must_use]
    pub fn path(&self, file: &ModelFile<'_>) -> std::path::PathBuf {
        self.resolve(&file.in_container())
    }

    /// Opens `file` once and verifies that descriptor, which comes back rewound. For models that are mapped or too
    /// large to hold; whoever can write to the file can still change it afterwards, which [`ModelRoot::read`] rules out.
    pub fn open(&self, file: &ModelFile<'_>, verify: Verify) -> Result<File, Refusal> {
        self.look(file, verify, |_| {})
    }

    /// Reads `file` in one pass: the bytes that were verified are the bytes that come back.
    pub fn read(&self, file: &ModelFile<'_>, verify: Verify) -> Result<Vec<u8>, Refusal> {
        let failed = |error: io::Error| {
            Refusal(Problem::Failed(Failure { model: file.model.to_owned(), at: self.path(file), error }))
        };
        // Memory is asked for when a file of that size is there, not when a lock says so; and it is asked for politely:
        // a model that does not fit is no reason to end a process that serves another one.
        let size = usize::try_from(file.size).unwrap_or(usize::MAX);
        let mut bytes = Vec::new();
        let mut room = Ok(());
        let mut opened = self.look(file, verify, |chunk| {
            if bytes.is_empty() && room.is_ok() {
                room = bytes.try_reserve_exact(size);
            }
            // A file that grows while it is read is refused at its end, and takes no more memory until then.
            if room.is_ok() && chunk.len() <= size - bytes.len() {
                bytes.extend_from_slice(chunk);
            }
        })?;
        room.map_err(|error| failed(io::Error::new(io::ErrorKind::OutOfMemory, error)))?;
        if verify != Verify::Full {
            io::Read::read_to_end(&mut opened, &mut bytes).map_err(failed)?;
        }
        Ok(bytes)
    }

    /// Verifies every file of `models` on all cores and gives every refusal, not the first.
    pub fn verify(&self, models: &[Model<'_>], verify: Verify) -> Result<(), Vec<Refusal>> {
        let files: Vec<_> = models.iter().flat_map(|model| model.files).copied().collect();
        let refusals = self.verify_files(&files, verify);
        if refusals.is_empty() { Ok(()) } else { Err(refusals) }
    }

    /// Verifies `files` on all cores and gives every refusal, in the order of the files.
    #[must_use]
    pub fn verify_files(&self, files: &[ModelFile<'_>], verify: Verify) -> Vec<Refusal> {
        parallel(files, |file| self.open(file, verify).err()).into_iter().flatten().collect()
    }

    fn look(&self, file: &ModelFile<'_>, verify: Verify, each: impl FnMut(&[u8])) -> Result<File, Refusal> {
        let at = self.path(file);
        let depth = match verify {
            Verify::Full => Depth::Full,
            Verify::Size => Depth::Size,
            Verify::Off => {
                return File::open(&at)
                    .map_err(|error| Refusal(Problem::Failed(Failure { model: file.model.to_owned(), at, error })));
            }
        };
        Located { file: *file, at }.check(depth, each).map_err(|mut problem| {
            if let Problem::Finding(finding) = &mut problem {
                finding.cause = match finding.kind {
                    FindingKind::Missing => Some(why_missing(&self.resolve(file.target))),
                    FindingKind::NotAFile if finding.at.is_dir() => Some(
                        "a directory stands in its place, which is what `docker run -v` makes of a missing source"
                            .to_owned(),
                    ),
                    _ => finding.cause.take(),
                };
            }
            Refusal(problem)
        })
    }
}

/// What the surroundings of a missing file tell.
fn why_missing(target: &Path) -> String {
    let shown = target.display();
    match target.metadata() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("`{shown}` is not accessible for {}", this_user())
        }
        Err(_) => format!("`{shown}` does not exist: nothing is mounted there, or MODEL_ROOT is wrong"),
        Ok(metadata) if !metadata.is_dir() => format!("`{shown}` is not a directory"),
        Ok(_) => {
            #[expect(clippy::disallowed_methods, reason = "only whether there is an entry matters, not their order")]
            let entries = std::fs::read_dir(target);
            match entries.map(|mut entries| entries.next().is_none()) {
                Ok(true) => format!("`{shown}` is empty: the mount has no files, or is missing"),
                Ok(false) => {
                    format!("`{shown}` has other files: another model, or another version of it, is mounted there")
                }
                Err(_) => format!("`{shown}` cannot be listed by {}", this_user()),
            }
        }
    }
}

/// `user 65532`, where the system tells without a call that needs `unsafe`.
pub(crate) fn this_user() -> String {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").map_or_else(|_| "this user".to_owned(), |me| format!("user {}", me.uid()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_refusal_is_one_line_with_the_likely_cause() {
        let folder = tempfile::tempdir().unwrap();
        let root = ModelRoot::new(folder.path());
        let digest = Digest::of(b"0123456789");
        let file = ModelFile { model: "m", target: "/models/m", path: "w.gguf", size: 10, digest };
        let target = folder.path().join("m");
        let expect = |text: &str| {
            for refusal in [root.open(&file, Verify::Full).unwrap_err(), root.read(&file, Verify::Full).unwrap_err()] {
                let line = refusal.to_string();
                assert!(line.contains(text), "expected {text:?} in {line:?}");
                assert!(line.starts_with("model `m`: ") && !line.contains('\n'), "{line:?}");
            }
        };
        expect("does not exist: nothing is mounted there");
        std::fs::create_dir(&target).unwrap();
        expect("is empty: the mount has no files");
        std::fs::write(target.join("other"), "").unwrap();
        expect("has other files");
        std::fs::create_dir(target.join("w.gguf")).unwrap();
        expect("which is what `docker run -v` makes of a missing source");
        std::fs::remove_dir(target.join("w.gguf")).unwrap();
        std::fs::write(target.join("w.gguf"), "012345678x").unwrap();
        expect(&format!("expected {digest} (10 bytes), found {} (10 bytes)", Digest::of(b"012345678x")));
        assert_eq!(root.read(&file, Verify::Size).unwrap(), b"012345678x");
        std::fs::write(target.join("w.gguf"), "0123456789").unwrap();
        assert_eq!(root.read(&file, Verify::Full).unwrap(), b"0123456789");
        assert_eq!(root.read(&file, Verify::Off).unwrap(), b"0123456789");
        let model = Model { name: "m", source: "", revision: "", target: "/models/m", license: None, files: &[file] };
        assert!(root.verify(&[model], Verify::Full).is_ok());
    }

    #[test]
    fn verification_has_three_words() {
        assert_eq!("full".parse(), Ok(Verify::Full));
        assert_eq!("FULL".parse::<Verify>().unwrap_err(), "`FULL` is not one of `full`, `size`, `off`");
    }
}
