//! A tar stream made from files where they are, on its way to an engine. What is locked is checked as it goes by; a file
//! that is not as it must be breaks the stream off, so nobody takes it for whole.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use model_lock::Digest;
use model_lock::digest::Hasher;
use model_lock::verify::open_regular;

use crate::error::{Failure, Kind, Result};
use crate::oci::layer::{Piece, Recipe};

/// Where the bytes of one file come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// These are they.
    Text(String),
    /// A file.
    File(PathBuf),
    /// A file of a model, and the digest that it must have.
    Model(PathBuf, Digest),
}

impl Source {
    fn open(&self) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(match self {
            Self::Text(text) => Box::new(text.as_bytes()),
            Self::File(at) => Box::new(File::open(at)?),
            Self::Model(at, _) => {
                let file = open_regular(at)?;
                Box::new(file.ok_or_else(|| io::Error::other("it is not a regular file"))?)
            }
        })
    }

    fn name(&self) -> String {
        match self {
            Self::Text(_) => "a generated file".to_owned(),
            Self::File(at) | Self::Model(at, _) => at.display().to_string(),
        }
    }
}

/// Writes `recipe`, whose files are `sources`. A model with other bytes than it must have is a failure of the kind
/// [`Kind::Integrity`].
pub fn send(recipe: &Recipe, sources: &[Source], mut out: impl Write, each: impl Fn(u64)) -> Result<()> {
    let mut hasher: Option<Hasher> = None;
    let mut last = 0;
    let mut differs = false;
    let open = |index: usize| sources[index].open();
    let written = recipe.write(open, |piece| {
        match piece {
            Piece::File(index, bytes) => {
                last = index;
                if matches!(sources[index], Source::Model(..)) {
                    hasher.get_or_insert_default().update(bytes);
                }
            }
            // Headers and padding: the file before is at its end.
            Piece::Frame(_) => {
                if let Some(hasher) = hasher.take()
                    && let Source::Model(_, digest) = &sources[last]
                    && hasher.finish() != *digest
                {
                    differs = true;
                    return Err(io::Error::other("it has other bytes"));
                }
            }
        }
        let bytes = piece.bytes();
        out.write_all(bytes)?;
        each(bytes.len() as u64);
        Ok(())
    });
    written.map_err(|error| {
        let name = sources.get(last).map(Source::name).unwrap_or_default();
        let is_model = matches!(sources.get(last), Some(Source::Model(..)));
        if differs || (is_model && error.kind() == io::ErrorKind::InvalidData) {
            return Failure::new(Kind::Integrity, format!("`{name}` has other bytes than models.lock says"))
                .help("was it written to meanwhile? run `cargo xtask verify-models`");
        }
        Failure::new(Kind::Io, format!("failed to send `{name}`")).because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tar;

    #[test]
    fn what_is_locked_is_checked_on_its_way() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("model");
        std::fs::write(&at, "0123456789").unwrap();
        let recipe = Recipe::new(&[("/m".to_owned(), tar::Kind::File(10)), ("/t".to_owned(), tar::Kind::File(1))], &[]);
        let send_as = |digest: Digest| {
            let mut bytes = Vec::new();
            let sources = [Source::Model(at.clone(), digest), Source::Text("x".to_owned())];
            send(&recipe, &sources, &mut bytes, |_| {}).map(|()| bytes)
        };
        assert_eq!(send_as(Digest::of(b"0123456789")).unwrap().len() as u64, recipe.size());
        assert_eq!(send_as(Digest::of(b"other")).unwrap_err().kind, Kind::Integrity);
        std::fs::write(&at, "short").unwrap();
        assert_eq!(send_as(Digest::of(b"short")).unwrap_err().kind, Kind::Integrity);
        std::fs::remove_file(&at).unwrap();
        assert_eq!(send_as(Digest::of(b"0123456789")).unwrap_err().kind, Kind::Io);
    }
}
