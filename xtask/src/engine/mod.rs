//! Docker Engine and what answers as it does. The only folder that names bollard and tokio: values go in, values come
//! out, and nothing asynchronous leaves it. It knows neither plans nor models; what an image must be is told by whoever
//! asks for it.
//!
//! ```text
//! endpoint   environment, contexts -> where the engine listens
//! ssh        a socket of another machine as one of this machine
//! client     connect, ask, tag
//! body       bytes that are written here and read there, a few MiB at a time
//! transfer   load an archive, fill and read volumes
//! build      a Dockerfile and its context -> an image, with BuildKit's steps
//! container  create, start, follow, stop, remove
//! absent     all of that, refused: what remains without the cargo feature `docker`
//! ```

pub mod endpoint;

#[cfg(feature = "docker")]
mod body;
#[cfg(feature = "docker")]
mod build;
#[cfg(not(feature = "docker"))]
#[path = "absent.rs"]
mod client;
#[cfg(feature = "docker")]
mod client;
#[cfg(feature = "docker")]
mod container;
#[cfg(feature = "docker")]
mod ssh;
#[cfg(feature = "docker")]
mod transfer;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

pub use client::{Engine, Helper};

/// Where an engine keeps its images, which decides what it calls an image's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    /// containerd: the id is the manifest's digest.
    Containerd,
    /// A graph driver: the id is the config's digest.
    GraphDriver,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct About {
    /// `Docker Engine` or `Podman`.
    pub product: &'static str,
    /// Its version.
    pub version: String,
    /// The newest version of the API that it speaks, major and minor.
    pub api: (u32, u32),
    /// Where it keeps images.
    pub store: Store,
}

/// An image as the engine has it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EngineImage {
    /// `sha256:…`; what it is the digest of depends on [`Store`].
    pub id: String,
    /// The `diff_id`s of its layers, lowest first.
    pub layers: Vec<String>,
    /// `uid:gid`.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// The program and its first arguments.
    pub entrypoint: Vec<String>,
    /// `CMD`, program, arguments.
    pub healthcheck: Vec<String>,
    /// Keys such as `8080/tcp`, sorted.
    pub ports: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// `linux/amd64`.
    pub platform: String,
}

/// What a build is made with, beside its context.
#[derive(Debug, Clone, Default)]
pub struct Build {
    /// The path of the Dockerfile in the context.
    pub dockerfile: String,
    /// Build arguments.
    pub arguments: BTreeMap<String, String>,
    /// The network of `RUN` steps, as in `host`.
    pub network: Option<String>,
    /// `linux/amd64`.
    pub platform: String,
}

/// A container that is run once and removed.
#[derive(Debug, Clone, Default)]
pub struct Container {
    /// The id of its image.
    pub image: String,
    /// Arguments to its program.
    pub arguments: Vec<String>,
    /// Variables beside those of the image.
    pub env: Vec<(String, String)>,
    /// Ports that are to be reached from outside.
    pub publish: Vec<Publish>,
    /// The network, as in `host`; the engine's own choice if none is named.
    pub network: Option<String>,
    /// What is mounted, read-only.
    pub mounts: Vec<Mount>,
}

/// Something that a container sees at a place of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// What it is.
    pub source: MountSource,
    /// Where it stands in the container.
    pub target: String,
}

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A file of the engine's machine.
    File(PathBuf),
    /// A volume, or a folder in it.
    Volume(String, Option<String>),
}

/// What is in a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// A file of this many bytes.
    File(u64),
    /// A folder.
    Folder,
    /// A link or something else.
    Other,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code.
    Exited(i64),
    /// Because it was asked to, by Ctrl-C.
    Stopped,
}

/// A port of a container and where it is reached: `[[IP:]HOST:]CONTAINER`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// The address; this machine only unless another one is given.
    pub address: IpAddr,
    /// The port outside; 0 takes a free one.
    pub host: u16,
    /// The port inside.
    pub container: u16,
}

impl Publish {
    /// The same port outside as inside, on this machine only.
    #[must_use]
    pub fn local(port: u16) -> Self {
        Self { address: IpAddr::from([127, 0, 0, 1]), host: port, container: port }
    }
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || {
            let text = text.escape_debug();
            format!("`{text}` is not `[[IP:]HOST:]CONTAINER`, as in `8080`, `80:8080` or `0.0.0.0:80:8080`")
        };
        let (rest, container) = text.rsplit_once(':').map_or((None, text), |(rest, last)| (Some(rest), last));
        let container: u16 = container.parse().map_err(|_| refuse())?;
        let Some(rest) = rest else { return Ok(Self::local(container)) };
        let (address, host) = match rest.rsplit_once(':') {
            Some((address, host)) => {
                (address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| refuse())?, host)
            }
            None => (Self::local(0).address, rest),
        };
        Ok(Self { address, host: host.parse().map_err(|_| refuse())?, container })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports() {
        for (text, address, host, container) in [
            ("8080", "127.0.0.1", 8080, 8080),
            ("80:8080", "127.0.0.1", 80, 8080),
            ("0:8080", "127.0.0.1", 0, 8080),
            ("0.0.0.0:80:8080", "0.0.0.0", 80, 8080),
            ("[::]:80:8080", "::", 80, 8080),
        ] {
            let expect = Publish { address: address.parse().unwrap(), host, container };
            assert_eq!(text.parse(), Ok(expect), "{text}");
        }
        for bad in ["", "x", "80:", ":80", "80:8080/udp", "65536", "host:80:80", "1:2:3"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
