//! A connection to an engine: made, asked who it is, and what every other file here uses to talk to it.

use std::future::Future;
use std::io::{self, Write};
use std::time::Duration;

use bollard::Docker;
use bollard::errors::Error;
use bollard::models::ImageSummary;
use bollard::query_parameters::{ListImagesOptions, RemoveImageOptions, TagImageOptions};
use futures_util::future::{Either, select};
use tokio::runtime::{Builder, Runtime};

use super::body::{Body, Writer, pipe};
use super::endpoint::{Address, Endpoint, Tls};
use super::ssh::Tunnel;
pub use super::transfer::Helper;
use super::{About, EngineImage, Store};
use crate::error::{Failure, Kind, OrFail as _, Result};
use crate::oci::reference::Reference;

/// What an engine answers at once is answered within this many seconds.
const PATIENCE: u64 = 120;

/// Uploads and builds take as long as they take; [`Body::stalled`] sees to those that stop.
const LONG: Duration = Duration::from_hours(7 * 24);

/// An engine that answers.
pub struct Engine {
    pub(super) runtime: Runtime,
    pub(super) docker: Docker,
    endpoint: Endpoint,
    about: About,
    /// Held as long as the engine is talked to.
    _tunnel: Option<Tunnel>,
}

impl Engine {
    /// Connects to the engine and asks what it is.
    pub fn connect(endpoint: &Endpoint) -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .or_fail(Kind::Io, || "failed to prepare a connection".to_owned())?;
        let (docker, tunnel) = open(endpoint)?;
        let about = runtime.block_on(about(&docker)).map_err(|error| unreachable(endpoint, &error))?;
        Ok(Self { runtime, docker, endpoint: endpoint.clone(), about, _tunnel: tunnel })
    }

    /// Where it listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What it is.
    #[must_use]
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The image with this reference or id, if the engine has it.
    pub fn image(&self, name: &str) -> Result<Option<EngineImage>> {
        let inspected = match self.runtime.block_on(self.docker.inspect_image(name)) {
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            other => other.map_err(|error| self.failed(format!("failed to inspect the image `{name}`"), &error))?,
        };
        let config = inspected.config.unwrap_or_default();
        let mut ports = config.exposed_ports.unwrap_or_default();
        ports.sort();
        Ok(Some(EngineImage {
            id: inspected.id.unwrap_or_default(),
            layers: inspected.root_fs.and_then(|root| root.layers).unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            healthcheck: config.healthcheck.and_then(|check| check.test).unwrap_or_default(),
            ports,
            labels: config.labels.unwrap_or_default().into_iter().collect(),
            platform: format!("{}/{}", inspected.os.unwrap_or_default(), inspected.architecture.unwrap_or_default()),
        }))
    }

    /// The layers of every image with this label, lowest first; where `made_by` is given, only of images whose history has
    /// it before everything.
    pub fn layers_with(&self, label: &str, made_by: Option<&str>) -> Result<Vec<Vec<String>>> {
        let mut found = Vec::new();
        for summary in self.list("label", label, false)? {
            if made_by.is_none_or(|maker| self.is_made_by(&summary.id, maker)) {
                found.push(self.image(&summary.id)?.unwrap_or_default().layers);
            }
        }
        Ok(found)
    }

    /// An image that is gone meanwhile, or whose history the engine cannot tell, was made by nobody.
    fn is_made_by(&self, id: &str, maker: &str) -> bool {
        let history = self.runtime.block_on(self.docker.image_history(id)).unwrap_or_default();
        !history.is_empty() && history.iter().all(|entry| entry.created_by.starts_with(maker))
    }

    /// Whether the engine has every byte of the image with this name. A graph driver has no images that lack some.
    pub fn is_whole(&self, name: &str) -> Result<bool> {
        if self.about.store == Store::GraphDriver {
            return Ok(true);
        }
        let images = self.list("reference", name, true)?;
        let mut manifests = images.iter().flat_map(|image| image.manifests.iter().flatten()).peekable();
        Ok(manifests.peek().is_some() && manifests.all(|manifest| manifest.available))
    }

    fn list(&self, filter: &str, value: &str, manifests: bool) -> Result<Vec<ImageSummary>> {
        let filters = Some([(filter.to_owned(), vec![value.to_owned()])].into());
        let options = ListImagesOptions { filters, manifests, ..ListImagesOptions::default() };
        let mut attempts = 0;
        loop {
            match self.runtime.block_on(self.docker.list_images(Some(options.clone()))) {
                // An image that is removed while containerd's are listed fails the whole list.
                Err(Error::DockerResponseServerError { status_code: 404, .. }) if attempts < 20 => attempts += 1,
                images => return images.map_err(|error| self.failed("failed to list the images", &error)),
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Takes a name away from an image, and removes the image if it has no other one.
    pub fn untag(&self, name: &str) -> Result<()> {
        let removed = self.docker.remove_image(name, None::<RemoveImageOptions>, None);
        match self.runtime.block_on(removed) {
            Ok(_) | Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(()),
            Err(error) => Err(self.failed(format!("failed to remove the name `{name}`"), &error)),
        }
    }

    /// Gives the image with this id a name. What had that name before loses it.
    pub fn tag(&self, id: &str, reference: &Reference) -> Result<()> {
        let options =
            TagImageOptions { repo: Some(reference.name().to_owned()), tag: reference.tag().map(str::to_owned) };
        let tagged = self.runtime.block_on(self.docker.tag_image(id, Some(options)));
        tagged.map_err(|error| self.failed(format!("failed to tag `{id}` as `{reference}`"), &error))
    }

    /// Refuses an engine that cannot build a Dockerfile with `COPY --link`, before anything is sent to it.
    pub fn require_link(&self) -> Result<()> {
        let About { product, version, api, .. } = &self.about;
        if *product == "Docker Engine" && *api >= (1, 42) {
            return Ok(());
        }
        let why = if *product == "Docker Engine" {
            format!(
                "`COPY --link` needs Docker Engine 23.0 or newer (API 1.42), and this one speaks API {}.{}",
                api.0, api.1
            )
        } else {
            "it has no BuildKit, and other builders make other layers of the same models".to_owned()
        };
        Err(Failure::new(Kind::Engine, format!("{product} {version} cannot build the Dockerfile"))
            .details([why, format!("the engine is at {}", self.endpoint)])
            .help(
                "leave `--builder docker` out: the built-in builder needs no engine, and `--load` works with this one",
            ))
    }

    /// A failure of this engine.
    pub(super) fn failed(&self, message: impl Into<String>, error: &Error) -> Failure {
        let cause = innermost(error);
        let failure = Failure::new(Kind::Engine, message);
        match help_for(&cause) {
            Some(help) => failure.because(cause).help(help),
            None => failure.because(format!("{cause} (the engine at {})", self.endpoint)),
        }
    }

    /// Runs a request whose body `write` fills, on a thread of its own. Where both fail, the one that came first is told:
    /// an engine that hangs up makes writing fail, and bytes that are wrong make the request fail.
    pub(super) fn stream<T, F: Future<Output = Result<T>>>(
        &self,
        write: impl FnOnce(&mut Writer) -> Result<()> + Send,
        request: impl FnOnce(Docker, Body) -> F,
    ) -> Result<T> {
        let (mut writer, body) = pipe();
        let docker = self.docker.clone().with_timeout(LONG);
        std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let written = write(&mut writer)
                    .and_then(|()| writer.flush().or_fail(Kind::Engine, || "failed to send the last bytes".to_owned()));
                if written.is_err() {
                    writer.abort();
                }
                written
            });
            let answer = self.runtime.block_on(async {
                let request = std::pin::pin!(request(docker, body.clone()));
                let stalled = std::pin::pin!(body.stalled());
                match select(request, stalled).await {
                    Either::Left((answer, _)) => answer,
                    Either::Right(_) => Err(Failure::new(Kind::Engine, "the engine has taken no byte for ten minutes")
                        .help("see its log; then run the command again")),
                }
            });
            body.close();
            let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            match written {
                // An engine that has what it wants need not take the rest.
                Err(failure) if !is_hang_up(&failure) => Err(failure),
                _ => answer,
            }
        })
    }
}

fn is_hang_up(failure: &Failure) -> bool {
    let mut next = failure.cause.as_deref().map(|cause| cause as &dyn std::error::Error);
    while let Some(cause) = next {
        if cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = cause.source();
    }
    false
}

fn open(endpoint: &Endpoint) -> Result<(Docker, Option<Tunnel>)> {
    let newest = bollard::API_DEFAULT_VERSION;
    match &endpoint.address {
        Address::Unix(path) => socket(endpoint, path).map(|docker| (docker, None)),
        Address::Ssh(ssh) => {
            let tunnel = Tunnel::open(ssh)?;
            let docker = socket(endpoint, &tunnel.socket())?;
            Ok((docker, Some(tunnel)))
        }
        Address::Tcp(authority, None) => Docker::connect_with_http(authority, PATIENCE, newest)
            .map(|docker| (docker, None))
            .map_err(|error| unreachable(endpoint, &error)),
        Address::Tcp(authority, Some(Tls(folder))) => {
            let [ca, cert, key] = ["ca.pem", "cert.pem", "key.pem"].map(|name| folder.join(name));
            for file in [&ca, &cert, &key] {
                std::fs::File::open(file)
                    .or_fail(Kind::Engine, || format!("failed to read `{}` for {endpoint}", file.display()))
                    .map_err(|failure| {
                        failure.help("DOCKER_CERT_PATH names the folder with ca.pem, cert.pem, key.pem")
                    })?;
            }
            Docker::connect_with_ssl(authority, &key, &cert, &ca, PATIENCE, newest)
                .map(|docker| (docker, None))
                .map_err(|error| unreachable(endpoint, &error))
        }
    }
}

fn socket(endpoint: &Endpoint, path: &std::path::Path) -> Result<Docker> {
    let path = path.to_str().ok_or_else(|| Failure::new(Kind::Engine, format!("{endpoint} is not UTF-8")))?;
    Docker::connect_with_unix(path, PATIENCE, bollard::API_DEFAULT_VERSION)
        .map_err(|error| unreachable(endpoint, &error))
}

async fn about(docker: &Docker) -> std::result::Result<About, Error> {
    let version = docker.version().await?;
    let info = docker.info().await?;
    let podman = version.components.iter().flatten().any(|component| component.name.contains("Podman"));
    let spoken = version.api_version.unwrap_or_default();
    let (major, minor) = spoken.split_once('.').unwrap_or_default();
    let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { return Err(Error::APIVersionParseError {}) };
    // moby: with the containerd store, `info` names its kind of snapshotter.
    let snapshotter = |pair: &Vec<String>| pair.iter().any(|text| text.contains("containerd.snapshotter"));
    let containerd = info.driver_status.iter().flatten().any(snapshotter);
    Ok(About {
        product: if podman { "Podman" } else { "Docker Engine" },
        version: version.version.unwrap_or_default(),
        api: (major, minor),
        store: if containerd { Store::Containerd } else { Store::GraphDriver },
    })
}

/// The words of the error that everything else goes back to.
pub(super) fn innermost(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { status_code, message } if message.trim().is_empty() => {
            format!("it answered with status {status_code}")
        }
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        Error::JsonDataError { message, .. } => format!("it answered with what is not an answer: {message}"),
        Error::RequestTimeoutError => format!("no answer within {PATIENCE} seconds"),
        Error::APIVersionParseError {} => "it does not say which version of the API it speaks".to_owned(),
        other => {
            let mut inner: &dyn std::error::Error = other;
            while let Some(source) = inner.source() {
                inner = source;
            }
            inner.to_string()
        }
    }
}

/// Whether this is the end of a stream: bollard holds back the `\r` of a line end that comes in a packet of its own, and
/// finds it left over. A message that was cut says the same; what the stream was to bring is looked at in any case.
pub(super) fn is_end(error: &Error) -> bool {
    matches!(error, Error::IOError { err } if err.to_string().contains("bytes remaining on stream"))
}

fn help_for(cause: &str) -> Option<&'static str> {
    let cause = cause.to_ascii_lowercase();
    if cause.contains("no space left on device") || cause.contains("disk quota exceeded") {
        return Some("free space where the engine keeps its data: `docker system df`, `docker builder prune`");
    }
    if cause.contains("port is already allocated") || cause.contains("address already in use") {
        return Some("choose another port, as in `--publish 8081:8080`, or `--publish 0:8080` for any that is free");
    }
    if cause.contains("bind source path does not exist") {
        return Some(
            "the engine does not see this machine's files: add `--volume NAME`, which brings the models to it",
        );
    }
    let cut = [
        "connection closed",
        "error reading a body",
        "unexpected eof",
        "unexpected end of file",
        "connection reset",
        "broken pipe",
    ];
    if cut.iter().any(|words| cause.contains(words)) {
        return Some("the engine hung up: was it stopped? see its log, then run the command again");
    }
    None
}

/// The failure of an engine that cannot be talked to, with what to do about it.
fn unreachable(endpoint: &Endpoint, error: &Error) -> Failure {
    let mut kind = None;
    let mut next: Option<&dyn std::error::Error> = Some(error);
    let mut is_http = true;
    while let Some(cause) = next {
        kind = cause.downcast_ref::<io::Error>().map(io::Error::kind).or(kind);
        is_http &= !cause.to_string().contains("invalid HTTP");
        next = cause.source();
    }
    let cause = innermost(error);
    let failure = |message: &str| Failure::new(Kind::Engine, format!("{message}: {endpoint}"));
    let without = "`--builder oci`, which is the default, needs no engine";
    let failure = match (error, kind) {
        (Error::SocketNotFoundError(_), _) | (_, Some(io::ErrorKind::NotFound)) => {
            return failure("no engine is there").because("the socket does not exist").help(format!("start it; {without}"));
        }
        (_, Some(io::ErrorKind::PermissionDenied)) => failure("this user may not use the engine").help(format!(
            "join the socket's group (`sudo usermod -aG docker $USER`, then log in again), or use a rootless engine; {without}"
        )),
        (_, Some(io::ErrorKind::ConnectionRefused)) => {
            failure("no engine is running").help(format!("start it; {without}"))
        }
        (Error::DockerResponseServerError { message, .. }, _) if message.contains("HTTP request to an HTTPS") => {
            failure("the engine wants TLS").help("set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder with ca.pem, cert.pem, key.pem")
        }
        _ if ["Certificate", "certificate", "UnknownCA"].iter().any(|words| cause.contains(words)) => failure("one side does not trust the other's certificate")
            .help("DOCKER_CERT_PATH names a folder with ca.pem, which signed the engine's certificate, and cert.pem and key.pem, which the engine knows"),
        (Error::DockerResponseServerError { .. }, _) => failure("the engine refuses").help(format!("see its log; {without}")),
        (Error::JsonDataError { .. } | Error::JsonSerdeError { .. } | Error::APIVersionParseError {}, _) => {
            failure("what answers there is not an engine").help(format!("check the address; {without}"))
        }
        _ if !is_http => failure("what answers there is not an engine").help(format!("check the address; {without}")),
        _ => failure("failed to reach the engine").help(format!("check the address and that it is running; {without}")),
    };
    failure.because(cause)
}
