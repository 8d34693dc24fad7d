//! Bytes into and out of an engine: archives of images, the files of volumes.

use std::collections::BTreeMap;
use std::io::{Read, Write};

use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, VolumeCreateRequest};
use bollard::query_parameters::{
    DownloadFromContainerOptions, ImportImageOptions, ListContainersOptions, RemoveContainerOptions,
    RemoveVolumeOptions, UploadToContainerOptions,
};
use futures_util::StreamExt as _;

use super::Entry;
use super::body::{Reader, download};
use super::client::{Engine, is_end};
use crate::error::{Failure, Kind, OrFail as _, Result};

/// The label of helper containers; its value is the volume that they hold.
const HELPER: &str = "io.github.model-lock.helper";

/// Where a helper container has its volume.
const PLACE: &str = "/models";

impl Engine {
    /// Loads the archive that `write` writes.
    pub fn load(&self, write: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<()> {
        self.stream(
            |writer| write(writer),
            |docker, body| async move {
                let answers = docker.import_image(ImportImageOptions::default(), bollard::body_try_stream(body), None);
                let mut answers = std::pin::pin!(answers);
                while let Some(answer) = answers.next().await {
                    let answer = match answer {
                        Err(error) if is_end(&error) => break,
                        other => other.map_err(|error| self.failed("failed to load the image", &error))?,
                    };
                    if let Some(detail) = answer.error_detail {
                        let error = Error::DockerStreamError { error: detail.message.unwrap_or_default() };
                        return Err(self.failed("failed to load the image", &error));
                    }
                }
                Ok(())
            },
        )
    }

    /// The labels of a volume, if there is one of this name.
    pub fn volume(&self, name: &str) -> Result<Option<BTreeMap<String, String>>> {
        match self.runtime.block_on(self.docker.inspect_volume(name)) {
            Ok(volume) => Ok(Some(volume.labels.into_iter().collect())),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => Err(self.failed(format!("failed to inspect the volume `{name}`"), &error)),
        }
    }

    /// Creates a volume with these labels.
    pub fn create_volume(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()),
            ..VolumeCreateRequest::default()
        };
        let created = self.runtime.block_on(self.docker.create_volume(request));
        created.map(|_| ()).map_err(|error| self.failed(format!("failed to create the volume `{name}`"), &error))
    }

    /// Removes a volume. One that a container holds stays, and that is a failure.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        self.remove_helpers(name)?;
        match self.runtime.block_on(self.docker.remove_volume(name, None::<RemoveVolumeOptions>)) {
            Ok(()) => Ok(()),
            Err(error) => {
                let in_use = matches!(error, Error::DockerResponseServerError { status_code: 409, .. });
                let failure = self.failed(format!("failed to remove the volume `{name}`"), &error);
                let help = format!("remove the containers that use it: `docker ps -a --filter volume={name}`");
                Err(if in_use { failure.help(help) } else { failure })
            }
        }
    }

    /// Removes what a run that was killed left behind.
    fn remove_helpers(&self, volume: &str) -> Result<()> {
        let options = ListContainersOptions {
            all: true,
            filters: Some([("label".to_owned(), vec![format!("{HELPER}={volume}")])].into()),
            ..ListContainersOptions::default()
        };
        let listed = self.runtime.block_on(self.docker.list_containers(Some(options)));
        for container in listed.map_err(|error| self.failed("failed to list the containers", &error))? {
            self.remove_container(&container.id.unwrap_or_default())?;
        }
        Ok(())
    }

    /// Removes a container, whatever it does; one that is gone is removed.
    pub(super) fn remove_container(&self, id: &str) -> Result<()> {
        let options = RemoveContainerOptions { force: true, v: true, ..RemoveContainerOptions::default() };
        match self.runtime.block_on(self.docker.remove_container(id, Some(options))) {
            Ok(()) | Err(Error::DockerResponseServerError { status_code: 404 | 409, .. }) => Ok(()),
            Err(error) => Err(self.failed(format!("failed to remove the container `{id}`"), &error)),
        }
    }

    /// A container of `image` that holds a volume and is never started. It is removed when it is dropped.
    pub fn helper(&self, image: &str, volume: &str) -> Result<Helper<'_>> {
        self.remove_helpers(volume)?;
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            // An engine wants to know what would be started.
            cmd: Some(vec!["never-started".to_owned()]),
            labels: Some([(HELPER.to_owned(), volume.to_owned())].into()),
            network_disabled: Some(true),
            host_config: Some(HostConfig {
                mounts: Some(vec![Mount {
                    target: Some(PLACE.to_owned()),
                    source: Some(volume.to_owned()),
                    typ: Some(MountType::VOLUME),
                    ..Mount::default()
                }]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        let created = self.runtime.block_on(self.docker.create_container(None, body));
        let created = created.map_err(|error| self.failed(format!("failed to open the volume `{volume}`"), &error))?;
        Ok(Helper { engine: self, container: created.id, volume: volume.to_owned() })
    }
}

/// A container that is there only to reach a volume.
pub struct Helper<'a> {
    engine: &'a Engine,
    container: String,
    volume: String,
}

impl Helper<'_> {
    /// Unpacks the tar stream that `write` writes into the volume.
    pub fn upload(&self, write: impl FnOnce(&mut dyn Write) -> Result<()> + Send) -> Result<()> {
        let options = UploadToContainerOptions { path: PLACE.to_owned(), ..UploadToContainerOptions::default() };
        self.engine.stream(
            |writer| write(writer),
            |docker, body| async move {
                let body = bollard::body_try_stream(body);
                docker.upload_to_container(&self.container, Some(options), body).await.map_err(|error| {
                    self.engine.failed(format!("failed to write to the volume `{}`", self.volume), &error)
                })
            },
        )
    }

    /// Hands everything that is in the volume to `each`: its path in the volume, what it is, and its bytes.
    pub fn files(&self, each: impl FnMut(&str, Entry, &mut dyn Read) -> Result<()> + Send) -> Result<()> {
        // With the dot it is what is in the folder: without, engines differ on whether paths begin with its name.
        let options = DownloadFromContainerOptions { path: format!("{PLACE}/.") };
        let (sender, mut reader) = download();
        let fail = || format!("failed to read the volume `{}`", self.volume);
        std::thread::scope(|scope| {
            let reading = scope.spawn(move || {
                let value = unpack(&mut reader, each).map_err(|mut failure| {
                    failure.message = format!("{}: {}", fail(), failure.message);
                    failure
                });
                // What nobody wants to read any more, so that the engine can finish.
                let _ = std::io::copy(&mut reader, &mut std::io::sink());
                value
            });
            let fetched = self.engine.runtime.block_on(async {
                let docker = self.engine.docker.clone();
                let mut chunks = std::pin::pin!(docker.download_from_container(&self.container, Some(options)));
                while let Some(chunk) = chunks.next().await {
                    if sender.send(chunk.map_err(|error| self.engine.failed(fail(), &error))?).is_err() {
                        return Err(Failure::new(Kind::Engine, fail()));
                    }
                }
                Ok(())
            });
            drop(sender);
            let read = reading.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            fetched.and(read)
        })
    }
}

/// Reads a tar stream of a folder.
fn unpack(reader: &mut Reader, mut each: impl FnMut(&str, Entry, &mut dyn Read) -> Result<()>) -> Result<()> {
    let fail = || "what the engine sent is not a tar stream".to_owned();
    for entry in tar::Archive::new(reader).entries().or_fail(Kind::Engine, fail)? {
        let mut entry = entry.or_fail(Kind::Engine, fail)?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let path = path.trim_start_matches("./").trim_matches('/');
        if matches!(path, "" | ".") {
            continue;
        }
        let kind = match entry.header().entry_type() {
            kind if kind.is_file() => Entry::File(entry.size()),
            tar::EntryType::Directory => Entry::Folder,
            _ => Entry::Other,
        };
        each(path, kind, &mut entry)?;
    }
    Ok(())
}

impl Drop for Helper<'_> {
    fn drop(&mut self) {
        // The next run for this volume removes it if this one cannot.
        let _ = self.engine.remove_container(&self.container);
    }
}
