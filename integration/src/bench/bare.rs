//! The yardstick: the same three containers, created and started by plain calls to the same dockerd, with nothing of
//! ours: no network of ours, no volume, no records. Many at once are measured without any network, and with Docker's own.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bollard::Docker;
use bollard::models::{ContainerCreateBody, HostConfig, NetworkCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder, StartContainerOptions,
};

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::lab::Lab;

/// What every member runs.
pub const COMMAND: &str = "trap 'exit 0' TERM INT; while :; do sleep 1000000 & wait $!; done";

/// Docker's own network, of its `bridge` driver.
const NETWORK: &str = "bare";

/// What the anchors of many at once are plugged into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plug {
    Nothing,
    /// A network that Docker makes itself: interface pair, bridge, address, and the name server that it starts in each
    /// namespace of a network that is not its default one.
    Docker,
}

pub struct Bare {
    docker: Docker,
    /// As the engine knows the image that our members run from.
    image: String,
}

impl Bare {
    /// Finds the image in a member of a running set.
    pub async fn beside(lab: &Lab, host: &str, member: &str) -> Result<Self> {
        let socket = lab.file(host, Path::new("/run/docker.sock"))?;
        let socket = socket.to_str().context("socket path")?;
        let docker = Docker::connect_with_unix(socket, 60, bollard::API_DEFAULT_VERSION)
            .context("connect to dockerd")?
            .negotiate_version()
            .await
            .context("agree with dockerd on a version")?;
        let member = docker.inspect_container(member, None).await.context("inspect a member")?;
        Ok(Self { docker, image: member.image.context("the member's image")? })
    }

    /// Anchor and two members, each created and started; how long that took. They are removed afterwards.
    pub async fn create(&self) -> Result<Duration> {
        let began = Instant::now();
        self.start(
            "bare-anchor",
            HostConfig {
                network_mode: Some("none".to_owned()),
                ipc_mode: Some("shareable".to_owned()),
                ..limits()
            },
        )
        .await?;
        for name in ["bare-one", "bare-two"] {
            let anchor = Some("container:bare-anchor".to_owned());
            self.start(name, HostConfig { network_mode: anchor.clone(), ipc_mode: anchor, ..limits() })
                .await?;
        }
        let took = began.elapsed();
        for name in ["bare-two", "bare-one", "bare-anchor"] {
            self.remove(name).await?;
        }
        Ok(took)
    }

    /// Creates and starts so many times the anchor and one member, so many times side by side; when each ran, counted from
    /// the beginning, the first one first. They are removed afterwards.
    pub async fn at_once(
        &self,
        sets: usize,
        members: usize,
        abreast: usize,
        plug: Plug,
    ) -> Result<Vec<Duration>> {
        let network = match plug {
            Plug::Nothing => "none",
            Plug::Docker => {
                let body = NetworkCreateRequest { name: NETWORK.to_owned(), ..Default::default() };
                self.docker.create_network(body).await.context("create Docker's own network")?;
                NETWORK
            }
        };
        let began = Instant::now();
        let one = |set: usize| async move {
            let anchor = format!("bare-{set}-anchor");
            let network_mode = Some(network.to_owned());
            let ipc_mode = Some("shareable".to_owned());
            self.start(&anchor, HostConfig { network_mode, ipc_mode, ..limits() }).await?;
            let beside = Some(format!("container:{anchor}"));
            for member in 0..members {
                let host = HostConfig { network_mode: beside.clone(), ipc_mode: beside.clone(), ..limits() };
                self.start(&format!("bare-{set}-{member}"), host).await?;
            }
            Ok::<_, anyhow::Error>(began.elapsed())
        };
        let took = stream::iter((0..sets).map(one)).buffer_unordered(abreast).try_collect().await?;
        for set in 0..sets {
            let names = (0..members).map(|member| format!("bare-{set}-{member}"));
            for name in names.chain([format!("bare-{set}-anchor")]) {
                self.remove(&name).await?;
            }
        }
        if plug == Plug::Docker {
            self.docker.remove_network(NETWORK).await.context("remove Docker's own network")?;
        }
        Ok(took)
    }

    async fn remove(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::new().force(true).build();
        self.docker.remove_container(name, Some(options)).await.with_context(|| format!("remove {name}"))
    }

    async fn start(&self, name: &str, host: HostConfig) -> Result<()> {
        let body = ContainerCreateBody {
            image: Some(self.image.clone()),
            entrypoint: Some(vec!["/bin/sh".to_owned()]),
            cmd: Some(vec!["-c".to_owned(), COMMAND.to_owned()]),
            host_config: Some(host),
            ..Default::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(name).build();
        self.docker.create_container(Some(options), body).await.with_context(|| format!("create {name}"))?;
        self.docker
            .start_container(name, None::<StartContainerOptions>)
            .await
            .with_context(|| format!("start {name}"))
    }
}

fn limits() -> HostConfig {
    HostConfig {
        cpu_period: Some(100_000),
        cpu_quota: Some(50_000),
        memory: Some(32 << 20),
        memory_swap: Some(32 << 20),
        ..Default::default()
    }
}
