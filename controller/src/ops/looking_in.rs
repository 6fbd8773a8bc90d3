//! Looking into a body: commands, consoles, screens, output; and the tickets by which a console is opened later, by
//! somebody who has nothing but its address.
//!
//! A ticket is sealed as tokens are, so that any controller opens it; each controller lets one in once.

use super::list::find;
use super::orders::refuse_no_member;
use super::{AskError, Ops, OpsError};
use crate::model::{InstanceRecord, Intent};
use crate::streams::HostStream;
use crate::tokens;
use amphi_api::instance::BodyKind;
use amphi_api::streams::StreamTarget;
use amphi_api::{HostId, InstanceId, ProjectId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// How long a ticket is good: nova's default (`[consoleauth] token_ttl`).
const TICKET_LIFETIME: SignedDuration = SignedDuration::from_mins(10);
/// What tickets are sealed for: a token is no ticket, and a ticket no token.
const PURPOSE: &[u8] = b"console";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConsoleKind {
    /// A VM's serial line, or a shell in a set's first member.
    Console,
    /// A VM's screen.
    Screen,
}

/// What a ticket says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    #[serde(rename = "i")]
    pub instance: InstanceId,
    #[serde(rename = "p")]
    pub project: ProjectId,
    #[serde(rename = "k")]
    pub kind: ConsoleKind,
    /// Microseconds since the epoch.
    #[serde(rename = "e")]
    expires: i64,
    /// No two tickets are alike.
    #[serde(rename = "n")]
    nonce: String,
}

/// Tickets that were used here, until they have ended anyway.
#[derive(Default)]
pub(super) struct Spent(Mutex<BTreeMap<String, i64>>);

impl Spent {
    /// True the first time.
    fn spend(&self, ticket: &Ticket, now: i64) -> bool {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.retain(|_, expires| *expires > now);
        spent.insert(ticket.nonce.clone(), ticket.expires).is_none()
    }
}

impl Ops {
    /// Opens something in an instance's body, where it is now.
    pub async fn open_stream(
        &self,
        scope: ProjectId,
        id: InstanceId,
        what: StreamTarget,
    ) -> Result<HostStream, OpsError> {
        let host = {
            let view = self.world().read();
            place(find(&view.instances, scope, id)?, &what)?
        };
        self.links.stream(host, id, what).await.map_err(|error| match error {
            AskError::Fault(fault) if matches!(fault.code.as_str(), "engine_down" | "engine_timeout") => {
                OpsError::Unavailable(fault.message)
            }
            AskError::Fault(fault) => OpsError::conflict(fault.message),
            error @ (AskError::NoLink | AskError::Timeout) => OpsError::Unavailable(error.to_string()),
        })
    }

    /// A ticket for an instance's console or screen, and when it ends.
    pub async fn console_ticket(
        &self,
        scope: ProjectId,
        id: InstanceId,
        kind: ConsoleKind,
    ) -> Result<String, OpsError> {
        {
            let view = self.world().read();
            place(find(&view.instances, scope, id)?, &target(kind))?;
        }
        let expires = (Timestamp::now() + TICKET_LIFETIME).as_microsecond();
        let ticket =
            Ticket { instance: id, project: scope, kind, expires, nonce: tokens::new_secret()[..32].into() };
        let key = self.sealing_key().await?;
        tokens::seal_for(&key, PURPOSE, &ticket).map_err(|e| OpsError::Internal(e.to_string()))
    }

    /// What a ticket is good for, if it is good. Looking at it does not spend it.
    pub fn read_ticket(&self, text: &str) -> Result<Ticket, OpsError> {
        let refused = || OpsError::Unauthenticated("the ticket is not known, or no longer".into());
        let view = self.world().read();
        let keys = &view.identity.token_keys;
        let ticket: Ticket = tokens::open_for(text, PURPOSE, |id| keys.get(id).map(|row| &*row.record))
            .map_err(|_| refused())?;
        if ticket.expires <= Timestamp::now().as_microsecond() {
            return Err(refused());
        }
        find(&view.instances, ticket.project, ticket.instance).map_err(|_| refused())?;
        Ok(ticket)
    }

    /// Lets a ticket in, once.
    pub async fn open_by_ticket(&self, text: &str) -> Result<HostStream, OpsError> {
        let ticket = self.read_ticket(text)?;
        if !self.tickets.spend(&ticket, Timestamp::now().as_microsecond()) {
            return Err(OpsError::Unauthenticated("the ticket was used".into()));
        }
        self.open_stream(ticket.project, ticket.instance, target(ticket.kind)).await
    }
}

fn target(kind: ConsoleKind) -> StreamTarget {
    match kind {
        ConsoleKind::Console => StreamTarget::Console { member: None, size: None },
        ConsoleKind::Screen => StreamTarget::Screen,
    }
}

/// The host whose business it is, unless the body has no such thing.
fn place(row: &InstanceRecord, what: &StreamTarget) -> Result<HostId, OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the instance is being deleted"));
    }
    let vm = row.body == BodyKind::Vm;
    let member = match what {
        StreamTarget::Exec(_) if vm => {
            return Err(OpsError::conflict(
                "commands are run in sets: a vm has no agent inside; use its console, or ssh",
            ));
        }
        StreamTarget::Exec(spec) => {
            spec.check()?;
            &spec.member
        }
        StreamTarget::Screen if !vm => {
            return Err(OpsError::conflict("a set has no screen; its console is a shell"));
        }
        StreamTarget::Screen => &None,
        StreamTarget::Console { member, .. } => member,
        StreamTarget::Logs(spec) => &spec.member,
    };
    if let Some(name) = member {
        refuse_no_member(row, name)?;
    }
    row.host.ok_or_else(|| OpsError::conflict("no host has room for the instance: it has no body"))
}
