//! Where the engine listens: what the environment and Docker's own files say, in the order in which the `docker` command
//! asks them, then Podman's socket. Nothing is connected here.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use model_lock::Digest;
use serde_json::Value;

use crate::error::{Failure, Kind, OrFail as _, Result};

/// What the environment says of the engine.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    /// `DOCKER_HOST`.
    pub host: Option<String>,
    /// `DOCKER_CONTEXT`.
    pub context: Option<String>,
    /// `DOCKER_CONFIG`, or `.docker` in the home folder.
    pub config: Option<PathBuf>,
    /// Whether `DOCKER_TLS_VERIFY` is set.
    pub tls: bool,
    /// `DOCKER_CERT_PATH`.
    pub certificates: Option<PathBuf>,
    /// `XDG_RUNTIME_DIR`.
    pub runtime: Option<PathBuf>,
}

/// Where an engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: Address,
    /// What named it, for messages.
    pub named_by: String,
    /// Whether the user named it, in contrast to one that was looked for.
    pub chosen: bool,
}

/// An address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of this machine.
    Unix(PathBuf),
    /// Host and port.
    Tcp(String, Option<Tls>),
    /// A socket of another machine.
    Ssh(Ssh),
}

/// The folder with the certificates for TLS: `ca.pem`, `cert.pem`, `key.pem`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls(pub PathBuf);

/// `ssh://[user@]host[:port][/socket]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ssh {
    /// `[user@]host`.
    pub destination: String,
    /// The port, unless ssh's configuration decides it.
    pub port: Option<u16>,
    /// The socket on that machine.
    pub socket: String,
}

/// Docker's own socket.
const DEFAULT: &str = "/var/run/docker.sock";

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(authority, _) => write!(f, "tcp://{authority}"),
            Self::Ssh(Ssh { destination, port, socket }) => {
                write!(f, "ssh://{destination}")?;
                port.iter().try_for_each(|port| write!(f, ":{port}"))?;
                if socket == DEFAULT { Ok(()) } else { f.write_str(socket) }
            }
        }
    }
}

impl Address {
    /// Whether bytes go over a network as they are.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let Self::Tcp(authority, None) = self else { return false };
        let host = authority.rsplit_once(':').map_or(authority.as_str(), |(host, _)| host);
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.address, self.named_by)
    }
}

impl Environment {
    /// `DOCKER_HOST`, the context, Docker's socket, Podman's socket: the first that there is. A socket that was looked for
    /// and not found is no failure; what the user named and cannot be read is one.
    pub fn endpoint(&self) -> Result<Option<Endpoint>> {
        if let Some(host) = &self.host {
            return self.named(host, "DOCKER_HOST".to_owned(), None).map(Some);
        }
        if let Some(context) = self.context()?.filter(|context| context != "default") {
            return self.of_context(&context).map(Some);
        }
        let podman = self.runtime.as_ref().map(|runtime| runtime.join("podman/podman.sock"));
        let found = [Some((PathBuf::from(DEFAULT), "Docker's socket")), podman.map(|path| (path, "Podman's socket"))];
        let found = found.into_iter().flatten().find(|(path, _)| path.exists());
        Ok(found.map(|(path, named_by)| Endpoint {
            address: Address::Unix(path),
            named_by: named_by.to_owned(),
            chosen: false,
        }))
    }

    /// That there is nothing to connect to.
    #[must_use]
    pub fn nowhere() -> Failure {
        Failure::new(Kind::Engine, format!("no engine is there: `{DEFAULT}` does not exist"))
            .help("start Docker, or name an engine with DOCKER_HOST; the built-in builder (`--builder oci`) needs none")
    }

    /// The context's name: `DOCKER_CONTEXT`, or what `docker context use` wrote.
    fn context(&self) -> Result<Option<String>> {
        if self.context.is_some() {
            return Ok(self.context.clone());
        }
        let Some(path) = self.config.as_ref().map(|config| config.join("config.json")) else { return Ok(None) };
        let Some(config) = read_json(&path)? else { return Ok(None) };
        Ok(config["currentContext"].as_str().filter(|name| !name.is_empty()).map(str::to_owned))
    }

    fn of_context(&self, name: &str) -> Result<Endpoint> {
        let folder = self.config.clone().unwrap_or_default().join("contexts");
        // docker/cli, cli/context/store: the folder's name is the digest of the context's.
        let id = Digest::of(name.as_bytes()).hex();
        let path = folder.join("meta").join(&id).join("meta.json");
        let shown: String = name.escape_debug().collect();
        let refuse = |what: &str| {
            Failure::new(Kind::Engine, format!("the Docker context `{shown}` {what}"))
                .help("choose another one with `docker context use`, or name the engine with DOCKER_HOST")
        };
        let meta = read_json(&path)?.ok_or_else(|| refuse("does not exist"))?;
        let docker = &meta["Endpoints"]["docker"];
        let host = docker["Host"].as_str().ok_or_else(|| refuse("names no engine"))?;
        if docker["SkipTLSVerify"].as_bool() == Some(true) {
            return Err(refuse("says `SkipTLSVerify`, and an engine that anyone could stand in for is not used"));
        }
        let tls = folder.join("tls").join(&id).join("docker");
        self.named(host, format!("the context `{shown}`"), tls.join("ca.pem").exists().then_some(Tls(tls)))
    }

    fn named(&self, host: &str, named_by: String, tls: Option<Tls>) -> Result<Endpoint> {
        let refuse = |what: &str| {
            // There may be a password in it.
            let shown = host.rsplit_once('@').map_or(host.to_owned(), |(before, after)| {
                format!(
                    "{}…@{after}",
                    before.split_once("://").map_or(String::new(), |(scheme, _)| format!("{scheme}://"))
                )
            });
            Failure::new(Kind::Usage, format!("`{}` ({named_by}) {what}", shown.escape_debug()))
                .help("name it as `unix:///path`, `tcp://host:port` or `ssh://user@host`")
        };
        let (scheme, rest) = host.split_once("://").unwrap_or(("", host));
        let rest = rest.trim_end_matches('/');
        if rest.is_empty() || rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(refuse("is not the address of an engine"));
        }
        let address = match scheme {
            "unix" => Address::Unix(PathBuf::from(rest)),
            "tcp" | "http" | "https" => {
                if rest.contains(['/', '@', '?', '#']) {
                    return Err(refuse("has more than a host and a port"));
                }
                let folder = || self.certificates.clone().or_else(|| self.config.clone());
                let tls = tls.or_else(|| (self.tls || scheme == "https").then(folder).flatten().map(Tls));
                let has_port = rest.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
                let port = if tls.is_some() { 2376 } else { 2375 };
                Address::Tcp(if has_port { rest.to_owned() } else { format!("{rest}:{port}") }, tls)
            }
            "ssh" => Address::Ssh(ssh(rest).ok_or_else(|| refuse("is not `ssh://[user@]host[:port]`"))?),
            _ => return Err(refuse("has a scheme that is not known")),
        };
        Ok(Endpoint { address, named_by, chosen: true })
    }
}

fn ssh(rest: &str) -> Option<Ssh> {
    let (authority, socket) =
        rest.split_once('/').map_or((rest, DEFAULT.to_owned()), |(a, path)| (a, format!("/{path}")));
    let (destination, port) = match authority.rsplit_once(':') {
        Some((destination, port)) if !port.contains(']') => (destination, Some(port.parse().ok()?)),
        _ => (authority, None),
    };
    // A password in a URL would end up in process lists; a leading dash would be an option.
    let fits = !destination.is_empty() && !destination.starts_with('-') && !destination.contains([':', '?', '#']);
    fits.then(|| Ssh { destination: destination.to_owned(), port, socket })
}

fn read_json(path: &Path) -> Result<Option<Value>> {
    let Some(bytes) = crate::write::read(path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).or_fail(Kind::Engine, || format!("failed to read `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_host(host: &str) -> Environment {
        Environment { host: Some(host.to_owned()), config: Some("/config".into()), ..Environment::default() }
    }

    #[test]
    fn hosts() {
        for (host, address) in [
            ("unix:///run/x.sock", "unix:///run/x.sock"),
            ("tcp://10.0.0.1:1234", "tcp://10.0.0.1:1234"),
            ("tcp://[::1]", "tcp://[::1]:2375"),
            ("https://engine", "tcp://engine:2376"),
            ("ssh://me@engine:2222", "ssh://me@engine:2222"),
            ("ssh://engine/run/user/1/docker.sock", "ssh://engine/run/user/1/docker.sock"),
        ] {
            let endpoint = with_host(host).endpoint().unwrap().unwrap();
            assert_eq!(endpoint.to_string(), format!("{address} (DOCKER_HOST)"));
            assert!(endpoint.chosen);
        }
        for bad in [
            "",
            "engine",
            "ftp://engine",
            "tcp://",
            "tcp://a/b",
            "tcp://u:p@a",
            "ssh://-oProxyCommand=x",
            "ssh://u:p@a",
        ] {
            assert!(with_host(bad).endpoint().is_err(), "{bad}");
        }
        for host in ["tcp://me:secret@engine", "ssh://me:secret@engine", "me:secret@engine", "ssh://me:se@cret@engine"]
        {
            let said = with_host(host).endpoint().unwrap_err().to_string();
            assert!(!said.contains("cret") && said.contains("…@engine"), "{said}");
        }
        for (host, open) in [
            ("tcp://10.0.0.1:1234", true),
            ("tcp://engine", true),
            ("tcp://[2001:db8::1]", true),
            ("tcp://localhost:1234", false),
            ("tcp://127.0.0.2", false),
            ("tcp://[::1]:1234", false),
            ("https://engine", false),
            ("unix:///run/x.sock", false),
            ("ssh://engine", false),
        ] {
            assert_eq!(with_host(host).endpoint().unwrap().unwrap().address.is_open(), open, "{host}");
        }
        let tls = Environment { tls: true, ..with_host("tcp://engine") };
        let expect = Address::Tcp("engine:2376".to_owned(), Some(Tls("/config".into())));
        assert_eq!(tls.endpoint().unwrap().unwrap().address, expect);
    }

    #[test]
    fn contexts() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().to_owned();
        let environment = Environment { config: Some(config.clone()), ..Environment::default() };
        std::fs::write(config.join("config.json"), r#"{"currentContext":"lab"}"#).unwrap();
        assert!(environment.endpoint().unwrap_err().to_string().contains("context `lab` does not exist"));
        // From `docker context create lab --docker host=unix:///run/lab.sock`, and `printf lab | sha256sum`.
        let meta =
            config.join("contexts/meta").join("a51146d38077ff992eba84cf1d5e9b249073503eb74868699016153b031a38f7");
        std::fs::create_dir_all(&meta).unwrap();
        let text = r#"{"Name":"lab","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/lab.sock","SkipTLSVerify":false}}}"#;
        std::fs::write(meta.join("meta.json"), text).unwrap();
        assert_eq!(environment.endpoint().unwrap().unwrap().to_string(), "unix:///run/lab.sock (the context `lab`)");
        std::fs::write(meta.join("meta.json"), text.replace("false", "true")).unwrap();
        assert!(environment.endpoint().unwrap_err().to_string().contains("SkipTLSVerify"));
        let other = Environment { context: Some("other".to_owned()), ..environment.clone() };
        assert!(other.endpoint().unwrap_err().to_string().contains("context `other`"));
        std::fs::write(config.join("config.json"), "{").unwrap();
        assert!(environment.endpoint().unwrap_err().to_string().contains("config.json"));
    }
}
