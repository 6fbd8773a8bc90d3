//! Commands in members. One whose client leaves is ended with all that it started; which ones run is written down, so that
//! an agent that starts again ends those of the one before it. Refuses the anchor: nobody logs in there.

use super::ENGINE;
use super::hijack::{divided, hijack, undivided};
use super::observed::Part;
use super::processes::Leader;
use super::shared::Shared;
use crate::instance::DriverError;
use crate::instance::streams::{Inside, Opened};
use amphi_api::streams::{ExecSpec, TerminalSize};
use async_trait::async_trait;
use bollard::exec::{CreateExecOptions, ResizeExecOptions};
use futures_util::StreamExt;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long a command that was started has to show up in Docker's tables, and one that ended to leave them.
const SHOW: Duration = Duration::from_secs(10);
/// Between two looks: doubling between these.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_millis(200);
/// With a terminal, Docker swallows a sequence of keys on which it lets go, and holds back what may be its beginning:
/// Ctrl-P by default. It cannot be none; this one nobody types.
pub(super) const NO_DETACH: &str = "ctrl-^,ctrl-@,ctrl-_,ctrl-@,ctrl-^,ctrl-_,ctrl-@";
/// A login shell: bash where the image has it.
const SHELL: [&str; 3] =
    ["/bin/sh", "-c", "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi"];

/// A shell in a member.
pub fn shell(member: Option<String>, size: Option<TerminalSize>) -> ExecSpec {
    ExecSpec {
        member,
        command: SHELL.map(str::to_owned).to_vec(),
        env: vec!["TERM=xterm-256color".to_owned()],
        tty: true,
        stdin: true,
        size,
        ..ExecSpec::default()
    }
}

pub async fn open(shared: &Arc<Shared>, part: &Part, spec: &ExecSpec) -> Result<Opened, DriverError> {
    if part.is_anchor() {
        let doing = doing(&part.id, spec);
        let message = "nobody logs in to a set's anchor".to_owned();
        return Err(DriverError::EngineRefused { engine: ENGINE, doing, message });
    }
    begin(shared, &part.id, spec).await
}

fn doing(container: &str, spec: &ExecSpec) -> String {
    format!("run {} in container {container}", spec.command.first().map_or("", String::as_str))
}

/// In a member's container, by id or name.
pub(super) async fn begin(
    shared: &Arc<Shared>,
    container: &str,
    spec: &ExecSpec,
) -> Result<Opened, DriverError> {
    let doing = doing(container, spec);
    let engine = &shared.engine;
    let options = CreateExecOptions {
        attach_stdin: Some(spec.stdin),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(spec.tty),
        env: Some(spec.env.clone()),
        cmd: Some(spec.command.clone()),
        user: spec.user.clone(),
        working_dir: spec.directory.clone(),
        detach_keys: Some(NO_DETACH.to_owned()),
        ..CreateExecOptions::default()
    };
    let made = engine
        .call(
            &doing,
            engine.limits.call,
            |docker| async move { docker.create_exec(container, options).await },
        )
        .await?;
    let body = json!({"Detach": false, "Tty": spec.tty});
    let path = format!("/exec/{}/start", made.id);
    let running = Arc::new(Running::new(shared, made.id));
    // Before there is a process: an agent that dies at any moment from here on leaves word of it.
    running.note("");
    let handed = hijack(engine.socket(), &doing, engine.limits.start, &path, &body).await?;
    // Known as early as can be: who ends it later must find it.
    tokio::spawn({
        let running = running.clone();
        let size = spec.size;
        async move {
            running.leader().await;
            if let Some(size) = size {
                let _ = running.resize(size).await;
            }
        }
    });
    let broken = move |error: std::io::Error| DriverError::Io { doing: doing.clone(), source: error };
    let pieces = if spec.tty { undivided(handed.output) } else { divided(handed.output) };
    let output = pieces.map(move |piece| piece.map_err(&broken)).boxed();
    let input = spec.stdin.then_some(handed.input);
    Ok(Opened { input: input.map(|input| Box::pin(input) as _), output, inside: Box::new(Inner(running)) })
}

/// A command that was started.
struct Running {
    shared: Arc<Shared>,
    id: String,
    /// Where it is written down, by its id for the engine; its process in it as soon as that is known.
    note: PathBuf,
    /// None: it ended before it was seen, or was never there.
    leader: OnceCell<Option<Leader>>,
}

struct Inner(Arc<Running>);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.note);
    }
}

impl Running {
    fn new(shared: &Arc<Shared>, id: String) -> Self {
        let note = folder(&shared.state_dir).join(&id);
        Self { shared: shared.clone(), id, note, leader: OnceCell::new() }
    }

    fn note(&self, text: &str) {
        if let Err(error) = write(&self.note, text) {
            tracing::warn!(%error, "a command cannot be written down; it may outlive this agent");
        }
    }

    async fn leader(&self) -> Option<Leader> {
        *self.leader.get_or_init(|| self.find()).await
    }

    async fn find(&self) -> Option<Leader> {
        let pid = self.look(|seen| match (seen.pid, seen.running) {
            (Some(pid), _) if pid > 0 => Some(i32::try_from(pid).ok()),
            (_, Some(false)) if seen.exit_code.is_some() => Some(None),
            _ => None,
        });
        let leader = Leader::of(pid.await.flatten()?)?;
        self.note(&leader.write());
        Some(leader)
    }

    async fn look<T>(
        &self,
        wanted: impl Fn(&bollard::models::ExecInspectResponse) -> Option<T>,
    ) -> Option<T> {
        let engine = &self.shared.engine;
        let doing = format!("look at command {}", self.id);
        let until = tokio::time::Instant::now() + SHOW;
        let mut pause = LOOK_MIN;
        while tokio::time::Instant::now() < until {
            let id = self.id.as_str();
            let seen = engine
                .find(&doing, engine.limits.call, |docker| async move { docker.inspect_exec(id).await })
                .await;
            match seen {
                Ok(Some(seen)) => {
                    if let Some(found) = wanted(&seen) {
                        return Some(found);
                    }
                }
                // Docker has forgotten it.
                Ok(None) => return None,
                Err(error) => tracing::debug!(%error, "a command is looked for again"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_MAX);
        }
        None
    }

    async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
        let engine = &self.shared.engine;
        let (id, options) = (self.id.as_str(), ResizeExecOptions { height: size.rows, width: size.columns });
        engine
            .call("resize a terminal", engine.limits.call, |docker| async move {
                docker.resize_exec(id, options).await
            })
            .await
    }
}

#[async_trait]
impl Inside for Inner {
    async fn resize(&self, size: TerminalSize) -> Result<(), DriverError> {
        self.0.leader().await;
        self.0.resize(size).await
    }

    async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
        let ended = |seen: &bollard::models::ExecInspectResponse| {
            (seen.running == Some(false)).then_some(seen.exit_code).flatten()
        };
        match self.0.look(ended).await {
            Some(code) => Ok(Some(code)),
            // Its output has ended and it has not; or dockerd has been restarted.
            None => Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("tell how command {} ended", self.0.id),
                message: "it is not known any more".to_owned(),
            }),
        }
    }

    async fn end(&self) {
        if let Some(leader) = self.0.leader().await {
            leader.end_session().await;
        }
    }
}

fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("commands")
}

fn write(note: &Path, text: &str) -> std::io::Result<()> {
    std::fs::create_dir_all(note.parent().unwrap_or(note))?;
    std::fs::write(note, text)
}

/// Ends what an agent before this one left running.
pub async fn sweep(shared: Weak<Shared>) {
    let Some(state_dir) = shared.upgrade().map(|shared| shared.state_dir.clone()) else { return };
    let Ok(notes) = std::fs::read_dir(folder(&state_dir)) else { return };
    // Those that are there now: this agent writes down its own soon.
    let notes: Vec<PathBuf> = notes.flatten().map(|entry| entry.path()).collect();
    for note in notes {
        let text = std::fs::read_to_string(&note).unwrap_or_default();
        // Its process was not known yet when the agent died: the engine tells it, unless it has forgotten the command.
        let leader =
            match (text.is_empty(), note.file_name().and_then(|name| name.to_str()), shared.upgrade()) {
                (true, Some(id), Some(shared)) => Running::new(&shared, id.to_owned()).leader().await,
                _ => Leader::read(&text),
            };
        if let Some(leader) = leader {
            tracing::info!(pid = leader.pid, "ending a command whose client was lost");
            leader.end_session().await;
        }
        let _ = std::fs::remove_file(note);
    }
}
