//! Names and paths that come from outside, parsed into types that cannot hold what must never reach a file system, a
//! tar header, a Dockerfile or a shell: `..`, empty components, control characters, whiteout names.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a path or a name. The text stands in it escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} `{text}` {reason}")]
pub struct ParsePathError {
    what: &'static str,
    text: String,
    reason: &'static str,
}

impl ParsePathError {
    /// Why, without what: `has an empty component`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    fn new(what: &'static str, text: &str, reason: &'static str) -> Self {
        Self { what, text: text.chars().take(300).flat_map(char::escape_debug).collect(), reason }
    }
}

/// Longest component, in bytes, that common file systems can hold.
const MAX_COMPONENT: usize = 255;
/// Longest path, in bytes, that Linux opens (`PATH_MAX` less the root it is joined to).
const MAX_PATH: usize = 3072;

/// Why `component` can be no part of a path, if it cannot.
fn refused_component(component: &str) -> Option<&'static str> {
    match component {
        "" => return Some("has an empty component"),
        "." | ".." => return Some("has a `.` or `..` component"),
        _ => {}
    }
    if component.len() > MAX_COMPONENT {
        Some("has a component of more than 255 bytes")
    } else if component.chars().any(char::is_control) {
        Some("has a control character")
    } else if component.contains('\\') {
        Some("has a backslash: separate components by `/`")
    } else if component.starts_with(".wh.") {
        Some("has a component that starts with `.wh.`, which deletes files in an image layer")
    } else if matches!(component.as_bytes(), [letter, b':'] if letter.is_ascii_alphabetic()) {
        Some("has a component that is a drive letter")
    } else {
        None
    }
}

/// The path of a file within its model: relative, UTF-8, components separated by `/`.
///
/// Paths order by component, as a directory walk meets them: `a/b` before `a-b` before `a.txt`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelPath(String);

impl RelPath {
    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components, first to last.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl FromStr for RelPath {
    type Err = ParsePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| Err(ParsePathError::new("path", text, reason));
        if text.is_empty() {
            return refuse("is empty");
        }
        if text.starts_with('/') {
            return refuse("is absolute: a path within a model is relative");
        }
        if text.len() > MAX_PATH {
            return refuse("has more than 3072 bytes");
        }
        match text.split('/').find_map(refused_component) {
            Some(reason) => refuse(reason),
            None => Ok(Self(text.to_owned())),
        }
    }
}

impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.components().cmp(other.components())
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Where a model stands in the container: an absolute path of printable ASCII, never `/` itself, never inside a folder
/// that the kernel or the container runtime owns.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetPath(String);

/// Folders that a mount or a layer would break.
const RESERVED: [&str; 5] = ["/proc", "/sys", "/dev", "/etc", "/run"];

impl TargetPath {
    /// The folder below which models stand unless they are declared elsewhere.
    pub const DEFAULT_ROOT: &str = "/models";

    /// The default target of the model `name`: `/models/<name>`.
    #[must_use]
    pub fn default_for(name: &ModelName) -> Self {
        Self(format!("{}/{name}", Self::DEFAULT_ROOT))
    }

    /// The path as text, with the leading `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path of `file` below this target, as text with the leading `/`.
    #[must_use]
    pub fn join(&self, file: &RelPath) -> String {
        format!("{}/{}", self.0, file.0)
    }

    /// Whether `self` is `other` or lies inside it, letter case aside (layers are unpacked on file systems that fold it).
    #[must_use]
    pub fn is_inside(&self, other: &Self) -> bool {
        let (inner, outer) = (self.0.to_ascii_lowercase(), other.0.to_ascii_lowercase());
        inner.strip_prefix(&outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

impl FromStr for TargetPath {
    type Err = ParsePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = |reason| Err(ParsePathError::new("target", text, reason));
        let Some(rest) = text.strip_prefix('/') else {
            return refuse("is not absolute: start it with `/`, as in `/models/NAME`");
        };
        if rest.is_empty() {
            return refuse("is the root folder: name a folder below it, as in `/models/NAME`");
        }
        if !text.is_ascii() {
            return refuse("has a character that is not ASCII");
        }
        if text.len() > MAX_PATH {
            return refuse("has more than 3072 bytes");
        }
        if let Some(reason) = rest.split('/').find_map(refused_component) {
            return refuse(reason);
        }
        let parsed = Self(text.to_owned());
        if RESERVED.iter().any(|reserved| parsed.is_inside(&Self((*reserved).to_owned()))) {
            return refuse("lies in a folder that the container runtime owns");
        }
        Ok(parsed)
    }
}

/// The name of a model: 1 to 100 ASCII letters, digits, `-`, `_` and `.`, beginning and ending with a letter or digit.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(String);

impl ModelName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModelName {
    type Err = ParsePathError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = text.as_bytes();
        if !ends(bytes.first()) || !ends(bytes.last()) || !bytes.iter().copied().all(inner) || bytes.len() > 100 {
            return Err(ParsePathError::new(
                "model name",
                text,
                "is not 1 to 100 of `A-Z a-z 0-9 - _ .`, beginning and ending with a letter or digit",
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

macro_rules! text_type {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

text_type!(RelPath TargetPath ModelName);

/// Where models are on the machine that runs the app. It stands in for `/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRoot(Option<PathBuf>);

impl ModelRoot {
    /// Models below `/models` are looked up below `root` instead: `/models/digits/a.gguf` at `<root>/digits/a.gguf`.
    /// A target elsewhere keeps its whole path below `root`: `/srv/a.gguf` at `<root>/srv/a.gguf`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self((root != Path::new(TargetPath::DEFAULT_ROOT)).then_some(root))
    }

    /// Where the file or folder with this path in a container (absolute, below some [`TargetPath`]) is here.
    #[must_use]
    pub fn resolve(&self, in_container: &str) -> PathBuf {
        let Some(root) = &self.0 else {
            return PathBuf::from(in_container);
        };
        root.join(in_root(in_container))
    }
}

/// The path, within what stands for `/models`, of the file or folder with this path in a container: relative to `/models`
/// if it is below, else its whole path without the leading slash.
#[must_use]
pub fn in_root(in_container: &str) -> &str {
    let below = in_container.strip_prefix(TargetPath::DEFAULT_ROOT).filter(|rest| rest.starts_with('/'));
    below.unwrap_or(in_container).trim_start_matches('/')
}

impl Default for ModelRoot {
    /// `/models`, as in a container: every target is where it says.
    fn default() -> Self {
        Self(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_within_a_model() {
        for good in ["a", "a/b.c", "-x", "a b", "é/ü", "a:b", "$x", "'", "\"", "#", "..a", "a..", ".hidden", "wh.x"] {
            assert_eq!(good.parse::<RelPath>().unwrap().as_str(), good);
        }
        let long = "x".repeat(256);
        for (bad, reason) in [
            ("", "is empty"),
            ("/a", "is absolute"),
            ("a/", "empty component"),
            ("a//b", "empty component"),
            ("./a", "`.` or `..`"),
            ("a/../b", "`.` or `..`"),
            ("a\nb", "control character"),
            ("a\0", "control character"),
            ("a\u{9b}", "control character"),
            ("a\\b", "backslash"),
            ("C:", "drive letter"),
            (".wh.a", ".wh."),
            ("a/.wh..wh..opq", ".wh."),
            (&long, "255"),
            (&"a/".repeat(2000), "3072"),
        ] {
            let error = bad.parse::<RelPath>().unwrap_err().to_string();
            assert!(error.contains(reason), "{bad:?}: {error}");
            assert!(!error.chars().any(char::is_control), "{error:?}");
        }
    }

    #[test]
    fn targets() {
        for good in ["/models/a", "/a", "/srv/with space/$x", "/etcetera", "/models.d"] {
            assert_eq!(good.parse::<TargetPath>().unwrap().as_str(), good);
        }
        for bad in
            ["", "/", "a", "models/a", "/a/", "//a", "/a/../b", "/a\n", "/é", "/etc", "/proc/x", "/ETC/x", "/a/.wh.b"]
        {
            assert!(bad.parse::<TargetPath>().is_err(), "{bad:?}");
        }
        let target = |text: &str| text.parse::<TargetPath>().unwrap();
        assert!(target("/a/b").is_inside(&target("/a")));
        assert!(target("/A/b").is_inside(&target("/a/B")));
        assert!(!target("/ab").is_inside(&target("/a")));
        assert!(!target("/a").is_inside(&target("/a/b")));
    }

    #[test]
    fn names() {
        for good in ["digits", "yes", "0777", "1e3", "a.b-c_d", "A"] {
            assert_eq!(good.parse::<ModelName>().unwrap().as_str(), good);
        }
        for bad in ["", "-a", "a-", ".a", "a b", "a/b", "é", "a\n", &"a".repeat(101)] {
            assert!(bad.parse::<ModelName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn order_is_that_of_a_directory_walk() {
        let mut paths: Vec<RelPath> =
            ["a.txt", "a/b", "é.txt", "B", "a-b"].iter().map(|path| path.parse().unwrap()).collect();
        paths.sort();
        let sorted: Vec<_> = paths.iter().map(RelPath::as_str).collect();
        assert_eq!(sorted, ["B", "a/b", "a-b", "a.txt", "é.txt"]);
    }

    #[test]
    fn a_root_stands_in_for_models() {
        let check = |root: ModelRoot, path: &str, expect: &str| assert_eq!(root.resolve(path), Path::new(expect));
        check(ModelRoot::default(), "/models/a/b", "/models/a/b");
        check(ModelRoot::new("/models"), "/srv/b", "/srv/b");
        check(ModelRoot::new("m"), "/models/a/b", "m/a/b");
        check(ModelRoot::new("m"), "/modelsx/b", "m/modelsx/b");
        check(ModelRoot::new("/x"), "/srv/b", "/x/srv/b");
    }
}
