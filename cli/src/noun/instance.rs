//! `amphi instance`: both kinds. Waiting for an order to come true is here, for `set`, `vm` and `host` too.

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::noun::instance_view::{detail, list};
use crate::session::Session;
use crate::table::word;
use amphi_api::InstanceId;
use amphi_api::instance::{Instance, InstanceCreate, InstanceState};
use clap::Subcommand;
use jiff::Timestamp;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long an instance may stay in a bad state before a wait gives up: the fault shown may still be the one from
/// before the order, and an engine that restarts is back within this.
pub const GRACE: Duration = Duration::from_secs(5);

#[derive(Subcommand)]
pub enum Command {
    /// Instances with state, body, host and address.
    List,
    /// One instance in full: members, fault, and what is out of reach.
    Show {
        instance: String,
    },
    /// Make an instance of a whole request as JSON (`set create` and `vm create` take flags).
    Create {
        /// A file, or `-` for standard input.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Delete an instance. Its volume stays, unless told otherwise.
    Delete {
        instance: String,
        /// Put its volume into the recycle bin too.
        #[arg(long)]
        with_volume: bool,
    },
    Start {
        instance: String,
    },
    Stop {
        instance: String,
    },
    Restart {
        instance: String,
    },
    /// Change what may happen when its host is lost: the policy, its terms. A body that waits (`twin`) is made, or goes.
    Failover(crate::noun::failover_policy::Arguments),
    /// The last lines of a VM's console, or of a set member's output.
    ConsoleLog {
        instance: String,
        #[arg(long)]
        lines: Option<u32>,
        /// The member of a set.
        #[arg(long)]
        member: Option<String>,
    },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List => session
                .list("instances", &session.client()?.instances().await?, |i| list(i, Timestamp::now())),
            Self::Show { instance } => {
                let instance = session.client()?.find_instance(&instance).await?;
                session.show(&instance, |i| detail(i, Timestamp::now()))
            }
            Self::Create { file } => {
                let file = JsonFile::read(&file)?;
                let request: InstanceCreate = file.parse()?;
                request.check().map_err(|e| file.refused(e))?;
                create(session, request).await
            }
            Self::Delete { instance, with_volume } => delete(session, &instance, with_volume).await,
            Self::Start { instance } => {
                let client = session.client()?;
                let instance = client.find_instance(&instance).await?;
                let ordered = client.start_instance(instance.id).await?;
                finish(session, ordered, InstanceState::Running).await
            }
            Self::Stop { instance } => {
                let client = session.client()?;
                let instance = client.find_instance(&instance).await?;
                let ordered = client.stop_instance(instance.id).await?;
                finish(session, ordered, InstanceState::Stopped).await
            }
            Self::Restart { instance } => {
                let client = session.client()?;
                let instance = client.find_instance(&instance).await?;
                let ordered = client.restart_instance(instance.id).await?;
                finish(session, ordered, InstanceState::Running).await
            }
            Self::Failover(arguments) => arguments.run(session).await,
            Self::ConsoleLog { instance, lines, member } => {
                let client = session.client()?;
                let instance = client.find_instance(&instance).await?;
                let log = client.console_log(instance.id, lines, member.as_deref()).await?;
                session.show(&log, |log| terminal_safe(&log.text, std::io::stdout().is_terminal()))
            }
        }
    }
}

/// Orders the instance and waits until it runs.
pub async fn create(session: &Session, request: InstanceCreate) -> Result<(), Failure> {
    request.check()?;
    let ordered = session.client()?.create_instance(&request).await?;
    finish(session, ordered, InstanceState::Running).await
}

/// Waits for the state if told to, and shows the instance.
async fn finish(session: &Session, ordered: Instance, goal: InstanceState) -> Result<(), Failure> {
    let instance = match session.wait() {
        None => ordered,
        Some(_) => await_state(session, ordered.id, &ordered.name, goal).await?,
    };
    session.show(&instance, |i| detail(i, Timestamp::now()))
}

/// Waits until an instance runs. Returns at once if told not to wait.
pub async fn await_running(session: &Session, id: InstanceId, name: &str) -> Result<(), Failure> {
    await_state(session, id, name, InstanceState::Running).await.map(drop)
}

async fn await_state(
    session: &Session,
    id: InstanceId,
    name: &str,
    goal: InstanceState,
) -> Result<Instance, Failure> {
    let deadline = session.wait().unwrap_or_default();
    let waiting = session.waiting(format!("instance {name}"));
    let mut bad_since: Option<Instant> = None;
    let ended = |i: &Instance| {
        let bad = matches!(i.state, InstanceState::Error | InstanceState::Stranded | InstanceState::Unknown);
        if bad {
            bad_since.get_or_insert_with(Instant::now);
        } else {
            bad_since = None;
        }
        i.state == goal || bad_since.is_some_and(|since| since.elapsed() >= GRACE)
    };
    let seen = session.client()?.wait_instance(id, ended, deadline, |i| waiting.state(&progress(i))).await?;
    drop(waiting);
    if seen.state == goal { Ok(seen) } else { Err(failed(&seen)) }
}

/// `building on h1`, and the fault where there is one.
fn progress(instance: &Instance) -> String {
    let mut text = word(instance.state);
    if let Some(host) = &instance.host_name {
        text += &format!(" on {host}");
    }
    if let Some(fault) = &instance.fault {
        text += &format!(": {}: {}", fault.code, fault.message);
    }
    text
}

/// Ordered gone, and there is no host to carry it out.
fn awaits_host(instance: &Instance) -> bool {
    instance.state == InstanceState::Deleting
        && instance.fault.as_ref().is_some_and(|fault| fault.code == "host_down")
}

fn failed(instance: &Instance) -> Failure {
    let (id, host) = (instance.id, instance.host_name.as_deref().unwrap_or_default());
    let next = match instance.state {
        InstanceState::Error => format!("it is tried again by itself; see: amphi instance show {id}"),
        InstanceState::Deleting => {
            format!("the order stands; if {host} is dead for good: amphi host evacuate {host}")
        }
        _ => format!("if {host} is dead: amphi host evacuate {host}; see: amphi instance show {id}"),
    };
    Failure::new(1, format!("instance {} is {}", instance.name, progress(instance))).next(next)
}

async fn delete(session: &Session, text: &str, with_volume: bool) -> Result<(), Failure> {
    let client = session.client()?;
    let instance = client.find_instance(text).await?;
    client.delete_instance(instance.id, with_volume).await?;
    if let Some(deadline) = session.wait() {
        let waiting = session.waiting(format!("instance {}", instance.name));
        let stuck = |i: &Instance| i.state == InstanceState::Error || awaits_host(i);
        let left =
            client.wait_instance_gone(instance.id, stuck, deadline, |i| waiting.state(&progress(i))).await?;
        drop(waiting);
        if let Some(left) = left {
            return Err(failed(&left));
        }
    } else {
        return session.note(&format!("instance {} is being deleted", instance.name));
    }
    let volume = match instance.volume {
        Some(_) if with_volume => "; its volume is in the recycle bin".to_owned(),
        Some(volume) => format!("; its volume {volume} stays"),
        None => String::new(),
    };
    session.note(&format!("deleted instance {}{volume}", instance.name))
}

/// A guest's output. On a terminal nothing of it may act on the terminal.
fn terminal_safe(text: &str, terminal: bool) -> String {
    let mut text = if terminal { crate::table::clean(&text.replace('\r', "")) } else { text.to_owned() };
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
