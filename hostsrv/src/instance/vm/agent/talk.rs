//! Owns the way to a guest's agent: libvirt has its end of the channel for itself, so everything is said through libvirt. One
//! thing at a time to each guest, and to few guests at once: a guest that hangs costs two of libvirt's calls and no more.

use super::super::domain::lookup;
use super::super::link::Link;
use crate::instance::DriverError;
use amphi_api::InstanceId;
use async_trait::async_trait;
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

pub const AGENT: &str = "the guest agent";
/// How long a guest has for one answer, in seconds: its processor is shared, perhaps emulated.
const ANSWER_SECONDS: i32 = 10;
/// The same altogether: libvirt waits for its turn with the guest (30 s) and for a sign of life (5 s) before.
const LIMIT: Duration = Duration::from_secs(50);
/// Longest thing that is said, in bytes: what does not fit into the socket to QEMU at once, libvirt begins anew in the middle
/// (its qemuAgentIOWrite takes a write that is short for none), and the guest's agent hears nonsense.
pub const SAID_MAX: usize = 128 << 10;
/// Guests that are spoken with at once: libvirt's calls are for others, too.
pub const TURNS: usize = 2;

/// Why nothing was answered.
#[derive(Debug)]
pub enum Unsaid {
    /// Nobody answers in the guest, or not in time: what was said may have been heard.
    Silent(String),
    /// It said no.
    Refused(String),
    /// Something on the way is broken.
    Broken(DriverError),
}

#[async_trait]
pub trait Talk: Send + Sync {
    /// Says one thing and hears its answer. Bounded in time. Never said twice.
    async fn say(&self, command: Value) -> Result<Value, Unsaid>;
}

pub struct Libvirt {
    pub link: Link,
    pub turns: Arc<Semaphore>,
    pub instance: InstanceId,
}

#[async_trait]
impl Talk for Libvirt {
    async fn say(&self, command: Value) -> Result<Value, Unsaid> {
        let instance = self.instance;
        let doing = format!("speak with the guest agent of {instance}");
        let text = command.to_string();
        if text.len() > SAID_MAX {
            let why =
                format!("{} bytes are too long for a guest's agent, which takes {SAID_MAX}", text.len());
            return Err(Unsaid::Refused(why));
        }
        // Never closed: it lives as long as somebody speaks.
        let _turn = self.turns.acquire().await.map_err(|error| Unsaid::Silent(error.to_string()))?;
        let say = move |c: &Connect| {
            let Some(domain) = lookup(c, instance)? else {
                return Ok(Err(Unsaid::Refused("it is not here any more".to_owned())));
            };
            match domain.qemu_agent_command(&text, ANSWER_SECONDS, 0) {
                Ok(answer) => Ok(Ok(answer)),
                Err(error) => unsaid(&error).map(Err).ok_or(error),
            }
        };
        let answer = self.link.call_once(&doing, LIMIT, say).await.map_err(Unsaid::Broken)??;
        let answer: Value = serde_json::from_str(&answer).map_err(|error| nonsense(&error.to_string()))?;
        match answer.get("return") {
            Some(answer) => Ok(answer.clone()),
            None => Err(nonsense("no answer in it")),
        }
    }
}

pub fn nonsense(what: &str) -> Unsaid {
    Unsaid::Refused(format!("it answers what means nothing: {what}"))
}

/// libvirt's no, where it is the guest's.
fn unsaid(error: &Error) -> Option<Unsaid> {
    let message = error.message();
    match error.code() {
        ErrorNumber::AgentUnresponsive | ErrorNumber::AgentUnsynced => {
            Some(Unsaid::Silent(message.to_owned()))
        }
        // There is no code for it (src/qemu/qemu_agent.c, qemuAgentCheckError).
        ErrorNumber::InternalError => {
            let (_, told) = message.split_once("execute QEMU agent command '")?;
            Some(Unsaid::Refused(told.split_once("': ").map_or(told, |(_, why)| why).to_owned()))
        }
        _ => None,
    }
}
