//! The documents of an image (OCI image-spec 1.1), with the fields that are used here, in a fixed order: equal values
//! give equal bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use model_lock::{Digest, LockedLayer};
use serde::Serialize;

/// manifest.md, "Image Manifest".
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// image-index.md.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// config.md.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// layer.md: a tar stream, not compressed. Weights do not compress, and the digest is then also the `diff_id`.
pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// descriptor.md.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    pub media_type: &'static str,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Notes on it, only in an index.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// What it runs on, only in an index.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Of bytes at hand.
    #[must_use]
    pub fn of(media_type: &'static str, bytes: &[u8]) -> Self {
        Self {
            media_type,
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            platform: None,
        }
    }
}

impl From<LockedLayer> for Descriptor {
    fn from(layer: LockedLayer) -> Self {
        Self { media_type: LAYER, digest: layer.digest, size: layer.size, annotations: BTreeMap::new(), platform: None }
    }
}

/// image-index.md, `platform`: names are those of Go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Platform {
    /// `amd64`, `arm64`, …
    pub architecture: String,
    /// Always `linux`.
    pub os: String,
}

impl Platform {
    /// Linux on this architecture.
    #[must_use]
    pub fn linux(architecture: &str) -> Self {
        Self { architecture: architecture.to_owned(), os: "linux".to_owned() }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some(("linux", arch)) if !arch.is_empty() && arch.bytes().all(|byte| byte.is_ascii_alphanumeric()) => {
                Ok(Self::linux(arch))
            }
            _ => Err(format!("`{}` is not of the form `linux/ARCH`, as in `linux/amd64`", text.escape_debug())),
        }
    }
}

/// manifest.md.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`MANIFEST`].
    pub media_type: &'static str,
    /// The config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// image-index.md.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`INDEX`].
    pub media_type: &'static str,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// config.md.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// RFC 3339.
    pub created: String,
    /// As in [`Platform`].
    pub architecture: String,
    /// As in [`Platform`].
    pub os: String,
    /// How a container is started.
    pub config: Execution,
    /// The layers, by the digest of the uncompressed tar.
    pub rootfs: RootFs,
    /// One entry for each layer.
    pub history: Vec<History>,
}

/// config.md, `config`, and `Healthcheck`, which Docker and Podman read.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Execution {
    /// Numeric `uid:gid`.
    pub user: String,
    /// Keys such as `8080/tcp`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[expect(clippy::zero_sized_map_values, reason = "the document has the keys with `{}` behind them")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its first arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// How to tell whether a running container works.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Where it starts.
    pub working_dir: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// `{}`.
#[derive(Debug, Clone, Serialize)]
pub struct Empty {}

/// docker/image-spec, `HealthcheckConfig`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `CMD`, program, arguments.
    pub test: Vec<String>,
}

/// config.md, `rootfs`.
#[derive(Debug, Clone, Serialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Lowest first.
    pub diff_ids: Vec<Digest>,
}

/// config.md, `history`.
#[derive(Debug, Clone, Serialize)]
pub struct History {
    /// RFC 3339.
    pub created: String,
    /// What made the layer.
    pub created_by: String,
}

/// RFC 3339 in UTC for seconds since 1970, without a clock or a time zone (Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", `civil_from_days`).
#[must_use]
pub fn rfc3339(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        // From `date -u -d @N +%FT%TZ`.
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (68_255_999, "1972-02-29T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_700_000_000, "2023-11-14T22:13:20Z"),
            (4_102_444_799, "2099-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(rfc3339(seconds), text);
        }
    }

    #[test]
    fn platforms() {
        assert_eq!("linux/arm64".parse::<Platform>().unwrap().to_string(), "linux/arm64");
        for bad in ["linux", "windows/amd64", "linux/", "linux/arm/v7", "linux/x\n"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad:?}");
        }
    }
}
