//! A container from its creation to its removal, followed all the time.

use std::net::{IpAddr, Ipv4Addr};

use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, MountVolumeOptions, PortBinding};
use bollard::query_parameters::{LogsOptions, StartContainerOptions, StopContainerOptions, WaitContainerOptions};
use futures_util::StreamExt as _;
use futures_util::future::{Either, select};
use tokio::signal::unix::{SignalKind, signal};

use super::client::Engine;
use super::{Container, Ended, MountSource, Publish};
use crate::error::{Failure, Kind, OrFail as _, Result};

impl Engine {
    /// Creates and starts a container that can write nowhere and become nobody else, follows what it prints, and removes
    /// it when it ends or Ctrl-C (SIGINT, SIGTERM) ends it. `started` gets the published ports with the port outside.
    pub fn run(&self, container: &Container, started: impl FnOnce(&[Publish]), print: impl Fn(&[u8])) -> Result<Ended> {
        let created = self.runtime.block_on(self.docker.create_container(None, body(container)));
        let id = created.map_err(|error| self.failed("failed to create the container", &error))?.id;
        let ended = self.runtime.block_on(self.follow(&id, started, print));
        let removed = self.remove_container(&id);
        let ended = ended?;
        removed.map(|()| ended)
    }

    async fn follow(&self, id: &str, started: impl FnOnce(&[Publish]), print: impl Fn(&[u8])) -> Result<Ended> {
        // From here on a signal ends the container, not this program.
        let signals = || "failed to wait for signals".to_owned();
        let mut interrupt = signal(SignalKind::interrupt()).or_fail(Kind::Io, signals)?;
        let mut terminate = signal(SignalKind::terminate()).or_fail(Kind::Io, signals)?;
        let start = self.docker.start_container(id, None::<StartContainerOptions>).await;
        start.map_err(|error| self.failed("failed to start the container", &error))?;
        started(&self.published(id).await?);
        let options =
            LogsOptions { follow: true, stdout: true, stderr: true, tail: "all".to_owned(), ..LogsOptions::default() };
        let print_all = async {
            let mut lines = std::pin::pin!(self.docker.logs(id, Some(options)));
            while let Some(Ok(line)) = lines.next().await {
                match line {
                    LogOutput::StdErr { message } | LogOutput::StdOut { message } | LogOutput::Console { message } => {
                        print(&message);
                    }
                    LogOutput::StdIn { .. } => {}
                }
            }
            self.exit_code(id).await
        };
        let signalled = async {
            let (interrupt, terminate) = (std::pin::pin!(interrupt.recv()), std::pin::pin!(terminate.recv()));
            select(interrupt, terminate).await;
        };
        match select(std::pin::pin!(print_all), std::pin::pin!(signalled)).await {
            Either::Left((code, _)) => code.map(Ended::Exited),
            Either::Right(((), print_all)) => {
                let stop = StopContainerOptions { t: Some(10), ..StopContainerOptions::default() };
                let stopped = self.docker.stop_container(id, Some(stop)).await;
                stopped.map_err(|error| self.failed("failed to stop the container", &error))?;
                // What it says on its way out.
                print_all.await?;
                Ok(Ended::Stopped)
            }
        }
    }

    async fn exit_code(&self, id: &str) -> Result<i64> {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let mut waited = std::pin::pin!(self.docker.wait_container(id, Some(options)));
        match waited.next().await {
            Some(Ok(answer)) => Ok(answer.status_code),
            Some(Err(Error::DockerContainerWaitError { code, error })) if error.is_empty() => Ok(code),
            Some(Err(error)) => Err(self.failed("failed to wait for the container", &error)),
            None => Err(Failure::new(Kind::Engine, "the engine does not say how the container ended")),
        }
    }

    async fn published(&self, id: &str) -> Result<Vec<Publish>> {
        let inspected = self.docker.inspect_container(id, None).await;
        let inspected = inspected.map_err(|error| self.failed("failed to inspect the container", &error))?;
        let ports = inspected.network_settings.and_then(|settings| settings.ports).unwrap_or_default();
        let mut published = Vec::new();
        for (inside, bindings) in ports {
            let container = inside.split('/').next().and_then(|port| port.parse().ok());
            for binding in bindings.into_iter().flatten() {
                let host = binding.host_port.and_then(|port| port.parse().ok());
                let address: Option<IpAddr> = binding.host_ip.and_then(|address| address.parse().ok());
                if let (Some(container), Some(host)) = (container, host) {
                    published.push(Publish {
                        address: address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
                        host,
                        container,
                    });
                }
            }
        }
        published.sort_by_key(|publish| (publish.container, publish.address, publish.host));
        Ok(published)
    }
}

fn body(container: &Container) -> ContainerCreateBody {
    let ports = || container.publish.iter().map(|publish| format!("{}/tcp", publish.container));
    let bindings = ports().zip(&container.publish).map(|(port, publish)| {
        let binding =
            PortBinding { host_ip: Some(publish.address.to_string()), host_port: Some(publish.host.to_string()) };
        (port, Some(vec![binding]))
    });
    let mount = |mount: &super::Mount| {
        let (source, typ, volume_options) = match &mount.source {
            MountSource::File(path) => (path.to_string_lossy().into_owned(), MountType::BIND, None),
            MountSource::Volume(name, subpath) => {
                let options = MountVolumeOptions {
                    no_copy: Some(true),
                    subpath: subpath.clone(),
                    ..MountVolumeOptions::default()
                };
                (name.clone(), MountType::VOLUME, Some(options))
            }
        };
        Mount {
            target: Some(mount.target.clone()),
            source: Some(source),
            typ: Some(typ),
            read_only: Some(true),
            volume_options,
            ..Mount::default()
        }
    };
    ContainerCreateBody {
        image: Some(container.image.clone()),
        cmd: (!container.arguments.is_empty()).then(|| container.arguments.clone()),
        env: Some(container.env.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        exposed_ports: Some(ports().collect()),
        host_config: Some(HostConfig {
            port_bindings: Some(bindings.collect()),
            network_mode: container.network.clone(),
            mounts: Some(container.mounts.iter().map(mount).collect()),
            readonly_rootfs: Some(true),
            cap_drop: Some(vec!["ALL".to_owned()]),
            security_opt: Some(vec!["no-new-privileges".to_owned()]),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}
