//! Owns what is known of and done by the guest agents of ordinary VMs (Debian's `qemu-guest-agent`, on the channel that every
//! VM is started with): what a guest says of itself, commands ([`exec`]) and files ([`copy`]). Refuses terminals, which such an
//! agent has not; and to take a word of a guest for more than that.

mod copy;
mod exec;
#[cfg(test)]
mod fake;
mod file;
mod notes;
mod talk;
mod words;

use super::link::Link;
use crate::instance::streams::Opened;
use crate::instance::{Bell, DriverError};
use amphi_api::InstanceId;
use amphi_api::instance::GuestAgent;
use amphi_api::looking::CopySpec;
use amphi_api::streams::ExecSpec;
use notes::Notes;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use talk::{AGENT, Libvirt, TURNS, Talk, Unsaid, nonsense};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use words::Ran;

/// A script of a few words is done by then, or is ended by nobody: a guest that is this slow is told of.
const SCRIPT: Duration = Duration::from_secs(30);
/// How long a guest may be silent in the middle of something: it may be halted for a moment, or moving.
const PATIENCE: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(1);
/// Between two looks at something that goes on: the shortest, right after something was seen, and the longest.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(500);
/// Between two questions for what a guest says of itself: addresses come after the agent, and seldom change.
const FIRST: Duration = Duration::from_secs(5);
const EACH: Duration = Duration::from_secs(60);

/// One guest's agent.
#[derive(Clone)]
pub struct Agent {
    talk: Arc<dyn Talk>,
    notes: Arc<Notes>,
    instance: InstanceId,
}

/// All agents of the host: what they said last, each asked by a task of its own for as long as it is connected.
pub struct Agents {
    turns: Arc<Semaphore>,
    notes: Arc<Notes>,
    known: Mutex<BTreeMap<InstanceId, Known>>,
}

struct Known {
    told: Arc<Mutex<GuestAgent>>,
    task: AbortHandle,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    /// Commands are noted below this directory.
    pub fn new(state_dir: &Path) -> Self {
        let notes = Arc::new(Notes::new(state_dir));
        Self { turns: Arc::new(Semaphore::new(TURNS)), notes, known: Mutex::default() }
    }

    pub fn of(&self, link: &Link, instance: InstanceId) -> Agent {
        let (link, turns) = (link.clone(), self.turns.clone());
        Agent { talk: Arc::new(Libvirt { link, turns, instance }), notes: self.notes.clone(), instance }
    }

    /// Asks these guests, of all that are here, and no others. The bell rings when one says something new.
    pub fn keep(
        &self,
        connected: &BTreeSet<InstanceId>,
        here: impl Fn(InstanceId) -> bool,
        link: &Link,
        bell: &Bell,
    ) {
        self.notes.keep(here);
        let mut known = self.lock();
        known.retain(|instance, _| connected.contains(instance));
        for instance in connected {
            known.entry(*instance).or_insert_with(|| {
                let told = Arc::new(Mutex::new(GuestAgent::default()));
                let asks = ask_on(self.of(link, *instance), told.clone(), bell.clone());
                Known { told, task: tokio::spawn(asks).abort_handle() }
            });
        }
    }

    /// What a running guest said last; one that was never heard does not answer.
    pub fn told(&self, instance: InstanceId) -> GuestAgent {
        let known = self.lock();
        let told =
            known.get(&instance).map(|known| known.told.lock().unwrap_or_else(PoisonError::into_inner));
        told.map(|told| told.clone()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask_on(agent: Agent, told: Arc<Mutex<GuestAgent>>, bell: Bell) {
    let mut pause = FIRST;
    loop {
        agent.end_left().await;
        let now = agent.facts().await;
        let changed = {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *told, now.clone()) != now
        };
        if changed {
            bell.notify_one();
            // More may follow: a guest that boots, or is resumed.
            pause = FIRST;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(EACH);
    }
}

impl Agent {
    pub async fn exec(&self, spec: &ExecSpec) -> Result<Opened, DriverError> {
        exec::open(self, spec).await
    }

    pub async fn copy(&self, spec: &CopySpec) -> Result<Opened, DriverError> {
        copy::open(self, spec).await
    }

    /// What it says of itself; what it keeps to itself is left out.
    async fn facts(&self) -> GuestAgent {
        let mut told = [Value::Null, Value::Null, Value::Null];
        let mut answers = false;
        for (told, command) in told.iter_mut().zip([words::HOST_NAME, words::OS, words::INTERFACES]) {
            match self.talk.say(words::bare(command)).await {
                Ok(answer) => (answers, *told) = (true, answer),
                Err(Unsaid::Refused(_)) => answers = true,
                // Nor would it answer the next one.
                Err(Unsaid::Silent(_) | Unsaid::Broken(_)) => break,
            }
        }
        let [host_name, os, interfaces] = told;
        let (host_name, os) = (words::host_name(&host_name), words::os(&os));
        GuestAgent { answers, host_name, os, addresses: words::addresses(&interfaces) }
    }

    fn refused(&self, message: impl Into<String>) -> DriverError {
        let doing = format!("look into the VM of {}", self.instance);
        DriverError::EngineRefused { engine: AGENT, doing, message: message.into() }
    }

    fn failed(&self, unsaid: Unsaid) -> DriverError {
        match unsaid {
            Unsaid::Silent(why) => self.refused(format!("nobody answers in the guest ({why}); {MISSING}")),
            Unsaid::Refused(why) => self.refused(why),
            Unsaid::Broken(error) => error,
        }
    }

    /// Said once: what cannot be said twice without harm.
    async fn once<T>(&self, command: Value, read: impl Fn(&Value) -> Option<T>) -> Result<T, DriverError> {
        let answer = self.talk.say(command).await.map_err(|unsaid| self.failed(unsaid))?;
        read(&answer).ok_or_else(|| self.failed(nonsense("a part is missing")))
    }

    /// Said again while nobody answers, for as long as a guest may be silent.
    async fn again<T>(&self, command: Value, read: impl Fn(&Value) -> Option<T>) -> Result<T, DriverError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.talk.say(command.clone()).await {
                Err(Unsaid::Silent(_)) if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
                Err(unsaid) => return Err(self.failed(unsaid)),
                Ok(answer) => {
                    return read(&answer).ok_or_else(|| self.failed(nonsense("a part is missing")));
                }
            }
        }
    }

    /// Runs a short script to its end.
    async fn script(&self, script: &str, words: &[&str]) -> Result<Ran, DriverError> {
        let pid = self.once(words::shell(script, words, true), words::pid).await?;
        let deadline = Instant::now() + SCRIPT;
        let mut pause = SOON;
        loop {
            let ran = self.again(words::status(pid), words::ran).await?;
            if ran.exited {
                return Ok(ran);
            }
            if Instant::now() > deadline {
                let doing = format!("run a script in the VM of {}", self.instance);
                return Err(DriverError::EngineTimeout { engine: AGENT, doing, limit: SCRIPT });
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LATER);
        }
    }

    /// Has a script run that nobody waits for; whether the guest was told.
    async fn leave(&self, script: &str, words: &[&str]) -> bool {
        let told = self.once(words::shell(script, words, false), words::pid).await;
        if let Err(error) = &told {
            tracing::debug!(instance = %self.instance, %error, "a guest keeps what is to go");
        }
        told.is_ok()
    }

    /// Ends what an agent before this one, or a guest that was silent, has left running.
    async fn end_left(&self) {
        for place in self.notes.left(self.instance) {
            tracing::info!(instance = %self.instance, place, "a command that nobody looks at is ended");
            let told = self.leave(exec::END, &[&place]).await;
            self.notes.let_go(self.instance, &place, told);
        }
    }
}

/// What to do where no agent answers.
pub const MISSING: &str = "install qemu-guest-agent in the guest and start it, or use its console";

/// A script's words, for people.
fn said(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]);
    text.trim().to_owned()
}
