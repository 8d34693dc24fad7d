//! What the environment decides. The only file that reads it.

use std::env;
use std::ffi::OsString;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use model_lock::live::Policy;
use model_lock::runtime::{ModelRoot, Verify};

/// The settings of one process.
pub(crate) struct Config {
    /// `LISTEN`: where to serve. Port 0 takes a free one.
    pub(crate) listen: SocketAddr,
    /// `MODEL_ROOT`: the folder under which the models lie.
    pub(crate) root: ModelRoot,
    /// `MODEL_VERIFY`: how much of a model is checked before the port opens.
    pub(crate) verify: Verify,
    /// `MODEL_POLICY`: whether a mounted models.lock may exchange the models.
    pub(crate) policy: Policy,
    /// `IMAGE_REVISION`: the git commit of code and models, as the image states it.
    pub(crate) revision: Option<String>,
}

impl Config {
    /// Reads the process environment.
    ///
    /// # Errors
    ///
    /// One line that names the variable, its value and what was expected.
    #[expect(clippy::disallowed_methods, reason = "this is where the environment is read")]
    pub(crate) fn from_env() -> Result<Self, String> {
        Self::read(|name| env::var_os(name))
    }

    /// An empty variable counts as unset: that is how compose files pass on what the host does not set.
    fn read(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self, String> {
        let set = |name| variable(name).filter(|value| !value.is_empty());
        let text = |name| match set(name).map(OsString::into_string) {
            Some(Err(value)) => Err(format!("{name} is `{}`, which is not UTF-8", value.to_string_lossy())),
            Some(Ok(value)) => Ok(Some(value)),
            None => Ok(None),
        };
        Ok(Self {
            listen: match text("LISTEN")? {
                Some(value) => value.parse().map_err(|_| {
                    format!("LISTEN is `{value}`, expected an address and a port such as `0.0.0.0:8080` or `[::]:8080`")
                })?,
                None => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8080)),
            },
            root: set("MODEL_ROOT").map_or_else(ModelRoot::default, |path| ModelRoot::new(PathBuf::from(path))),
            verify: text("MODEL_VERIFY")?.map_or(Ok(Verify::Full), |value| parse("MODEL_VERIFY", &value))?,
            policy: text("MODEL_POLICY")?.map_or(Ok(Policy::Pinned), |value| parse("MODEL_POLICY", &value))?,
            revision: text("IMAGE_REVISION")?,
        })
    }

    /// Where a process on the same machine reaches the service: loopback, unless it listens on one address only.
    pub(crate) fn reachable(&self) -> SocketAddr {
        let ip = match self.listen.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.listen.port())
    }
}

fn parse<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| format!("{name}: {error}"))
}
