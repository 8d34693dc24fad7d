//! A reference to an image: `[host/]path[:tag][@digest]`, parsed once (distribution-spec, "Pulling manifests").

use std::fmt;
use std::str::FromStr;

use model_lock::Digest;

/// A reference to an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image reference: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: String,
}

/// The tag of a reference that names none.
const LATEST: &str = "latest";

impl Reference {
    /// Parses a reference that must have a digest, because a tag can mean another image tomorrow.
    pub fn pinned(text: &str) -> Result<Self, ParseReferenceError> {
        let reference: Self = text.parse()?;
        if reference.digest.is_none() {
            let reason = "it names no digest, and a tag can mean another image tomorrow: append `@sha256:…`, which \
                          `docker buildx imagetools inspect` and `crane digest` print"
                .to_owned();
            return Err(ParseReferenceError { text: text.to_owned(), reason });
        }
        Ok(reference)
    }

    /// Host and path, without tag and digest.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The tag; `latest` where neither tag nor digest is given.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref().or_else(|| self.digest.is_none().then_some(LATEST))
    }

    /// The same name with this tag and no digest.
    #[must_use]
    pub fn with_tag(&self, tag: &str) -> Self {
        Self { name: self.name.clone(), tag: Some(tag.to_owned()), digest: None }
    }

    /// Name and tag: what an engine calls an image. Names there have no digest.
    #[must_use]
    pub fn tagged(&self) -> String {
        format!("{}:{}", self.name, self.tag().unwrap_or(LATEST))
    }

    /// The same with host and path spelled out.
    #[must_use]
    pub fn qualified_tagged(&self) -> String {
        format!("{}:{}", self.qualified_name(), self.tag().unwrap_or(LATEST))
    }

    /// The name with the registry's host and Docker Hub's `library/` spelled out, as containerd wants it.
    #[must_use]
    pub fn qualified_name(&self) -> String {
        match self.name.split_once('/') {
            Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => self.name.clone(),
            Some(_) => format!("docker.io/{}", self.name),
            None => format!("docker.io/library/{}", self.name),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason: String| {
            Err(ParseReferenceError { text: text.chars().take(300).flat_map(char::escape_debug).collect(), reason })
        };
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => match digest.parse::<Digest>() {
                Ok(digest) => (rest, Some(digest)),
                Err(error) => return refuse(error.to_string()),
            },
        };
        // A colon after the last slash starts the tag; one before it belongs to the host's port.
        let last = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[last..].split_once(':') {
            None => (rest, None),
            Some((end, tag)) => (&rest[..last + end.len()], Some(tag)),
        };
        if let Some(tag) = tag {
            let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            if !first
                || tag.len() > 128
                || !tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
            {
                return refuse(format!("its tag `{}` is not 1 to 128 of `A-Z a-z 0-9 _ . -`", tag.escape_debug()));
            }
        }
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), path),
            _ => (None, name),
        };
        let host_fits = |host: &str| host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-:[]".contains(&byte));
        if host.is_some_and(|host| !host_fits(host)) {
            return refuse("its host has other characters than letters, digits, `.`, `-` and `:`".to_owned());
        }
        let component_fits = |part: &str| {
            let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
            ends(part.bytes().next())
                && ends(part.bytes().last())
                && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte))
        };
        if name.len() > 255 || !path.split('/').all(component_fits) {
            return refuse("its path is not lower-case letters, digits, `.`, `_`, `-`, separated by `/`".to_owned());
        }
        Ok(Self { name: name.to_owned(), tag: tag.map(str::to_owned), digest })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = Digest::of(b"").to_string();
        for (text, name, tag, qualified) in [
            ("app".to_owned(), "app", Some("latest"), "docker.io/library/app"),
            ("app:v1".to_owned(), "app", Some("v1"), "docker.io/library/app"),
            ("team/app:v1".to_owned(), "team/app", Some("v1"), "docker.io/team/app"),
            ("localhost:5000/app".to_owned(), "localhost:5000/app", Some("latest"), "localhost:5000/app"),
            (format!("ghcr.io/a/b@{digest}"), "ghcr.io/a/b", None, "ghcr.io/a/b"),
            (format!("rust:1.95-alpine@{digest}"), "rust", Some("1.95-alpine"), "docker.io/library/rust"),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!((reference.name(), reference.tag()), (name, tag), "{text}");
            assert_eq!(reference.qualified_name(), qualified, "{text}");
            assert_eq!(reference.to_string(), text);
        }
        for bad in [
            "",
            "App",
            "a b",
            "a\nRUN x",
            "a:",
            "a:-x",
            "a@sha256:00",
            "a@md5:x",
            "/a",
            "a/",
            "a//b",
            "ho st.x/a",
            "-a",
        ] {
            let error = bad.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains("is not an image reference") && !error.contains('\n'), "{bad:?}: {error}");
        }
        let error = Reference::pinned("rust:1.95").unwrap_err().to_string();
        assert!(error.contains("names no digest"), "{error}");
    }
}
