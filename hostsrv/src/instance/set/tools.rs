//! Tools beside a member: a container of another image that joins the member's processes, network and memory for one
//! command, and goes with it, whoever of client, controller, agent and member ends first. Refuses the anchor: its processes are
//! nobody's business, and its network and memory are the members' own.
//!
//! On hosts with control groups of version 1 it lives in its member's own group, so that it takes from the member's limits.
//! Version 2 has no place for it there (its "no internal processes" rule); there it has small limits of its own.

use super::ENGINE;
use super::carry_out::remove;
use super::exec::NO_DETACH;
use super::hijack::{divided, hijack, undivided};
use super::labels::anchor_name;
use super::observed::{Part, PartState};
use super::shared::Shared;
use crate::instance::streams::{Inside, Opened};
use crate::instance::{CachedImage, DriverError};
use amphi_api::InstanceId;
use amphi_api::streams::{ExecSpec, TerminalSize};
use async_trait::async_trait;
use bollard::models::{ContainerCreateBody, HostConfig, HostConfigLogConfig};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, ResizeContainerTTYOptionsBuilder,
};
use futures_util::StreamExt;
use serde_json::json;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use uuid::Uuid;

/// Whose tools a container is: the instance's id. Not [`super::labels::INSTANCE`], or it would be taken for a part of the set.
pub const TOOLS: &str = "amphi.tools";
/// Which run of the agent it is of.
const AGENT: &str = "amphi.agent";
static THIS_AGENT: LazyLock<String> = LazyLock::new(|| Uuid::new_v4().to_string());

/// How long its end may take to be seen.
const END: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// Between two tries to find what an earlier agent left.
const SWEEP: Duration = Duration::from_secs(2);
/// Its limits where its member's group takes nobody in: bytes, billionths of a CPU, processes.
const MEMORY: i64 = 64 << 20;
const NANO_CPUS: i64 = 250_000_000;
const PIDS: i64 = 64;
/// CAP_SYS_PTRACE (capabilities(7)).
const SYS_PTRACE: u32 = 19;

pub async fn open(
    shared: &Arc<Shared>,
    instance: InstanceId,
    part: &Part,
    spec: &ExecSpec,
    image: &CachedImage,
) -> Result<Opened, DriverError> {
    let doing = format!("bring tools to container {}", part.id);
    let refused = |message: &str| DriverError::EngineRefused {
        engine: ENGINE,
        doing: doing.clone(),
        message: message.into(),
    };
    if part.is_anchor() {
        return Err(refused("nobody looks into a set's anchor"));
    }
    if part.state != PartState::Running {
        return Err(refused("the member does not run"));
    }
    let image = shared.images.ensure(&shared.engine, image).await?;
    let groups = part.detail.pid.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok());
    let parent = groups.as_deref().and_then(|text| group_of(text, &part.id));
    let body = render(instance, part, spec, &image, parent, may_trace());
    let engine = &shared.engine;
    let options =
        CreateContainerOptionsBuilder::default().name(&format!("amphi-tools-{}", Uuid::new_v4())).build();
    let made = engine
        .call(&doing, engine.limits.start, |docker| async move {
            docker.create_container(Some(options), body).await
        })
        .await?;
    let running = Arc::new(Running { shared: shared.clone(), id: made.id, gone: AtomicBool::new(false) });
    match begin(&running, spec, &doing).await {
        Ok(opened) => Ok(opened),
        Err(error) => {
            running.go().await;
            Err(error)
        }
    }
}

async fn begin(running: &Arc<Running>, spec: &ExecSpec, doing: &str) -> Result<Opened, DriverError> {
    let (engine, id) = (&running.shared.engine, running.id.as_str());
    let keys: String = NO_DETACH.replace('^', "%5E").replace('@', "%40");
    let stdin = u8::from(spec.stdin);
    let path = format!("/containers/{id}/attach?stream=1&stdin={stdin}&stdout=1&stderr=1&detachKeys={keys}");
    let handed = hijack(engine.socket(), doing, engine.limits.start, &path, &json!({})).await?;
    engine
        .call(doing, engine.limits.start, |docker| async move { docker.start_container(id, None).await })
        .await?;
    if let Some(size) = spec.size {
        let _ = running.resize(size).await;
    }
    let broken = {
        let doing = doing.to_owned();
        move |error: std::io::Error| DriverError::Io { doing: doing.clone(), source: error }
    };
    let pieces = if spec.tty { undivided(handed.output) } else { divided(handed.output) };
    let output = pieces.map(move |piece| piece.map_err(&broken)).boxed();
    let input = spec.stdin.then_some(handed.input);
    let inside = Box::new(Session(running.clone()));
    Ok(Opened { input: input.map(|input| Box::pin(input) as _), output, inside })
}

fn render(
    instance: InstanceId,
    part: &Part,
    spec: &ExecSpec,
    image: &str,
    parent: Option<String>,
    traces: bool,
) -> ContainerCreateBody {
    let anchor = format!("container:{}", anchor_name(instance));
    let own = parent.is_none();
    let labels = [(TOOLS, instance.to_string()), (AGENT, THIS_AGENT.clone())];
    ContainerCreateBody {
        image: Some(image.to_owned()),
        // In the place of the image's own words.
        entrypoint: Some(spec.command.clone()),
        cmd: Some(Vec::new()),
        env: Some(spec.env.clone()),
        user: spec.user.clone(),
        working_dir: spec.directory.clone(),
        tty: Some(spec.tty),
        open_stdin: Some(spec.stdin),
        stdin_once: Some(spec.stdin),
        attach_stdin: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        labels: Some(labels.map(|(key, value)| (key.to_owned(), value)).into()),
        host_config: Some(HostConfig {
            network_mode: Some(anchor.clone()),
            ipc_mode: Some(anchor),
            pid_mode: Some(format!("container:{}", part.id)),
            // A debugger, and `/proc/1/root`, want it; it reaches the member's processes alone.
            cap_add: traces.then(|| vec!["SYS_PTRACE".to_owned()]),
            cgroup_parent: parent,
            memory: own.then_some(MEMORY),
            memory_swap: own.then_some(MEMORY),
            nano_cpus: own.then_some(NANO_CPUS),
            pids_limit: own.then_some(PIDS),
            log_config: Some(HostConfigLogConfig { typ: Some("none".to_owned()), config: None }),
            ..HostConfig::default()
        }),
        ..ContainerCreateBody::default()
    }
}

/// The container's own group of version 1, as Docker takes it for a parent: out of `/proc/PID/cgroup` (cgroups(7)).
fn group_of(text: &str, container: &str) -> Option<String> {
    let memory = text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        controllers.split(',').any(|one| one == "memory").then_some(path)
    })?;
    memory.ends_with(&format!("/{container}")).then(|| memory.to_owned())
}

/// Whether this process, which dockerd's is assumed to equal, can hand on CAP_SYS_PTRACE.
fn may_trace() -> bool {
    let bounding = || {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    bounding().is_some_and(|set| set >> SYS_PTRACE & 1 == 1)
}

struct Running {
    shared: Arc<Shared>,
    id: String,
    gone: AtomicBool,
}

impl Running {
    /// Ends whatever runs in it, and takes it away.
    async fn go(&self) {
        if self.gone.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Err(error) = remove(&self.shared, &self.id).await {
            tracing::warn!(%error, "tools stay until the agent starts again");
        }
    }

    async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
        let (engine, id) = (&self.shared.engine, self.id.as_str());
        let options = ResizeContainerTTYOptionsBuilder::default()
            .h(i32::from(size.rows))
            .w(i32::from(size.columns))
            .build();
        engine
            .call("resize a terminal", engine.limits.call, |docker| async move {
                docker.resize_container_tty(id, options).await
            })
            .await
    }

    async fn code(&self) -> Result<Option<i64>, DriverError> {
        let engine = &self.shared.engine;
        let until = tokio::time::Instant::now() + END;
        loop {
            let id = self.id.as_str();
            let seen = engine
                .find("tell how tools ended", engine.limits.call, |docker| async move {
                    docker.inspect_container(id, None).await
                })
                .await?;
            let state = seen.and_then(|seen| seen.state);
            match state {
                Some(state) if state.running == Some(false) => return Ok(state.exit_code),
                Some(_) if tokio::time::Instant::now() < until => tokio::time::sleep(LOOK).await,
                _ => return Ok(None),
            }
        }
    }
}

struct Session(Arc<Running>);

impl Drop for Session {
    fn drop(&mut self) {
        let running = self.0.clone();
        if !running.gone.load(Ordering::Acquire) {
            tokio::spawn(async move { running.go().await });
        }
    }
}

#[async_trait]
impl Inside for Session {
    async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
        self.0.resize(size).await
    }

    async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
        let code = self.0.code().await;
        self.0.go().await;
        code
    }

    async fn end(&self) {
        self.0.go().await;
    }
}

/// Takes away what an agent before this one left. Tries until Docker has answered once.
pub async fn sweep(shared: std::sync::Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        match left(&shared).await {
            Ok(left) => {
                for id in left {
                    tracing::info!(container = id, "taking tools away whose client was lost");
                    if let Err(error) = remove(&shared, &id).await {
                        tracing::warn!(%error, "tools stay");
                    }
                }
                return;
            }
            Err(error) => tracing::debug!(%error, "tools are looked for again"),
        }
        drop(shared);
        tokio::time::sleep(SWEEP).await;
    }
}

async fn left(shared: &Shared) -> Result<Vec<String>, DriverError> {
    let filters = HashMap::from([("label", vec![TOOLS])]);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let engine = &shared.engine;
    let listed = engine
        .call("list tools", engine.limits.call, |docker| async move {
            docker.list_containers(Some(options)).await
        })
        .await?;
    let mut left = Vec::new();
    for one in listed {
        let own = one.labels.is_some_and(|labels| labels.get(AGENT) == Some(&*THIS_AGENT));
        left.extend(one.id.filter(|_| !own));
    }
    Ok(left)
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Role, Tag};
    use super::*;

    #[test]
    fn a_members_group_takes_its_tools_in() {
        let v1 = "12:pids:/docker/abc\n9:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n";
        assert_eq!(group_of(v1, "abc").as_deref(), Some("/docker/abc"));
        assert_eq!(group_of(v1, "other"), None, "another container's");
        assert_eq!(group_of("9:cpu,memory:/x/abc\n", "abc").as_deref(), Some("/x/abc"));
        assert_eq!(group_of("0::/docker/abc\n", "abc"), None, "version 2 takes nobody in");
        assert_eq!(group_of("9:memory:/system.slice/docker-abc.scope\n", "abc"), None, "systemd's");
    }

    #[test]
    fn tools_join_a_member_and_are_no_part_of_its_set() {
        let instance = InstanceId(Uuid::nil());
        let tag = Tag {
            instance,
            epoch: 1,
            role: Role::Member { index: 0, name: "web".to_owned() },
            spec: String::new(),
            generation: 0,
            life: Default::default(),
        };
        let part = Part { id: "abc".into(), tag, state: PartState::Running, detail: Default::default() };
        let spec = ExecSpec { command: vec!["ps".into(), "ax".into()], ..ExecSpec::default() };
        let body = render(instance, &part, &spec, "sha256:1", None, false);
        let host = body.host_config.unwrap();
        assert_eq!(host.pid_mode.as_deref(), Some("container:abc"));
        let anchor = format!("container:{}", anchor_name(instance));
        assert_eq!((host.network_mode, host.ipc_mode), (Some(anchor.clone()), Some(anchor)));
        assert_eq!((host.memory, host.pids_limit, host.cap_add), (Some(MEMORY), Some(PIDS), None));
        assert!(Tag::read(&body.labels.unwrap()).is_none(), "it would be taken for a part of the set");
        assert_eq!(body.entrypoint.unwrap(), ["ps", "ax"]);
        let inside = render(instance, &part, &spec, "sha256:1", Some("/docker/abc".into()), true);
        let host = inside.host_config.unwrap();
        assert_eq!((host.memory, host.cgroup_parent.as_deref()), (None, Some("/docker/abc")));
        assert_eq!(host.cap_add.unwrap(), ["SYS_PTRACE"]);
    }
}
