//! Where models come from. One file a kind of source; what a source is, is decided here, once.

pub mod local;

use std::fmt;
use std::str::FromStr;

use model_lock::RelPath;

/// A source, as declared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A file or folder of the workspace.
    Local(RelPath),
    /// Something that must be fetched.
    Remote(String),
}

const SCHEMES: [&str; 6] = ["hf", "https", "s3", "gs", "az", "oci"];

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((scheme, rest)) = text.split_once("://") {
            if !SCHEMES.contains(&scheme)
                || rest.is_empty()
                || text.chars().any(|c| c.is_control() || c.is_whitespace())
            {
                let schemes = SCHEMES.map(|scheme| format!("{scheme}://…")).join(", ");
                return Err(format!("`{}` is not one of {schemes}", redacted(text).escape_debug()));
            }
            return Ok(Self::Remote(text.to_owned()));
        }
        text.strip_prefix("./")
            .unwrap_or(text)
            .trim_end_matches('/')
            .parse()
            .map(Self::Local)
            .map_err(|error| format!("{error}; name a file or folder below the workspace's Cargo.toml, or a URL"))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(path) => path.fmt(f),
            Self::Remote(url) => f.write_str(url),
        }
    }
}

/// Scheme, host and path of a URL: neither user information nor query may reach a message.
#[must_use]
pub fn redacted(url: &str) -> String {
    let plain = url.split(['?', '#']).next().unwrap_or_default();
    match plain.split_once("://") {
        Some((scheme, rest)) => {
            let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
            format!("{scheme}://{}{path}", host.rsplit('@').next().unwrap_or_default())
        }
        None => plain.to_owned(),
    }
}
