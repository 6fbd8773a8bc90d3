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
    // A set that runs as a VM has members to look into, and a machine's console and screen.
    let set = row.body_of(row.body).is_some_and(|body| body.spec.set().is_some());
    let machine = row.body == BodyKind::Vm;
    let vm = machine && !set;
    let member = match what {
        StreamTarget::Exec(spec) if vm && spec.tty => {
            return Err(OpsError::conflict(
                "a vm's guest agent gives no terminal: use its console (amphi console), or run it without one",
            ));
        }
        StreamTarget::Exec(spec) if vm && spec.user.is_some() => {
            return Err(OpsError::field(
                "user",
                "a vm's guest agent runs commands as root alone; use su in it",
            ));
        }
        StreamTarget::Exec(spec) => {
            spec.check()?;
            &spec.member
        }
        StreamTarget::Screen if !machine => {
            return Err(OpsError::conflict("a set has no screen; its console is a shell"));
        }
        StreamTarget::Screen => &None,
        StreamTarget::Console { member, .. } => member,
        StreamTarget::Logs(spec) if vm && (spec.since.is_some() || spec.timestamps) => {
            let field = if spec.timestamps { "timestamps" } else { "since" };
            return Err(OpsError::field(field, "a vm's console has no times"));
        }
        StreamTarget::Logs(spec) => &spec.member,
        StreamTarget::Copy(_) if machine && !vm => {
            return Err(OpsError::conflict(
                "a set that runs as a vm takes no files: use exec with tar, or a volume",
            ));
        }
        StreamTarget::Copy(spec) => {
            spec.check()?;
            &spec.member
        }
        StreamTarget::Tools(_) if machine => {
            return Err(OpsError::conflict("tools join members of sets; a vm has none"));
        }
        StreamTarget::Tools(spec) => {
            spec.exec.check()?;
            &spec.exec.member
        }
    };
    if let Some(name) = member {
        refuse_no_member(row, name)?;
    }
    row.host.ok_or_else(|| OpsError::conflict("no host has room for the instance: it has no body"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{Cloud, P};
    use amphi_api::ErrorCode;
    use amphi_api::instance::Instance;
    use amphi_api::looking::{CopySpec, CopyWay};
    use amphi_api::streams::{ExecSpec, LogsSpec};
    use serde_json::json;

    async fn stage() -> (Cloud, Instance, Instance, HostId) {
        let (cloud, h1, _) = Cloud::furnished().await;
        let set = cloud.create(json!({"host": "h1"})).await.unwrap();
        let vm = cloud.create(json!({"name": "vm", "host": "h1", "bodies": [{"vm": {"image": "vm"}}]}));
        let vm = vm.await.unwrap();
        cloud.obey(h1).await;
        (cloud, set, vm, h1)
    }

    fn exec(member: Option<&str>) -> StreamTarget {
        let command = vec!["ls".to_owned()];
        StreamTarget::Exec(ExecSpec { member: member.map(str::to_owned), command, ..ExecSpec::default() })
    }

    fn as_other(user: Option<&str>, tty: bool) -> StreamTarget {
        let command = vec!["ls".to_owned()];
        StreamTarget::Exec(ExecSpec { user: user.map(str::to_owned), tty, command, ..ExecSpec::default() })
    }

    fn files() -> StreamTarget {
        StreamTarget::Copy(CopySpec { member: None, path: "/etc".into(), way: CopyWay::Out })
    }

    fn console(member: Option<&str>) -> StreamTarget {
        StreamTarget::Console { member: member.map(str::to_owned), size: None }
    }

    /// Rows: what is asked of whom, and why not; none: it gets as far as the host.
    #[tokio::test]
    async fn what_a_body_does_not_have_is_refused_here() {
        let (cloud, set, vm, h1) = stage().await;
        let logs = |member: &str| {
            StreamTarget::Logs(LogsSpec { member: Some(member.into()), ..LogsSpec::default() })
        };
        for (what, id, refused) in [
            (exec(None), set.id, None),
            (exec(Some("anchor")), set.id, Some(ErrorCode::InvalidField)),
            (console(Some("anchor")), set.id, Some(ErrorCode::InvalidField)),
            (logs("anchor"), set.id, Some(ErrorCode::InvalidField)),
            (StreamTarget::Screen, set.id, Some(ErrorCode::Conflict)),
            (StreamTarget::Exec(ExecSpec::default()), set.id, Some(ErrorCode::InvalidField)),
            (exec(None), vm.id, None),
            (exec(Some("x")), vm.id, Some(ErrorCode::InvalidField)),
            (as_other(None, true), vm.id, Some(ErrorCode::Conflict)),
            (as_other(Some("nobody"), false), vm.id, Some(ErrorCode::InvalidField)),
            (files(), vm.id, None),
            (files(), set.id, None),
            (console(None), vm.id, None),
            (console(Some("x")), vm.id, Some(ErrorCode::InvalidField)),
            (StreamTarget::Screen, vm.id, None),
            (exec(None), InstanceId::new(), Some(ErrorCode::NotFound)),
        ] {
            let error = cloud.ops.open_stream(P, id, what.clone()).await.unwrap_err();
            match refused {
                Some(code) => assert_eq!(error.code(), code, "{what:?}: {error}"),
                None => assert!(error.to_string().contains("told to open"), "{what:?}: {error}"),
            }
        }
        let other = ProjectId::new();
        let error = cloud.ops.open_stream(other, set.id, exec(None)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::NotFound, "another project's");
        cloud.down(h1).await;
        let error = cloud.ops.open_stream(P, set.id, exec(None)).await.unwrap_err();
        assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    }

    #[tokio::test]
    async fn a_ticket_is_good_once_and_for_nothing_else() {
        let (cloud, set, vm, _) = stage().await;
        let ops = &cloud.ops;
        let refused = ops.console_ticket(P, set.id, ConsoleKind::Screen).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::Conflict);
        let text = ops.console_ticket(P, vm.id, ConsoleKind::Screen).await.unwrap();
        let ticket = ops.read_ticket(&text).unwrap();
        assert_eq!((ticket.instance, ticket.kind), (vm.id, ConsoleKind::Screen));
        assert!(ops.authenticate(&text).is_err(), "it is no token");
        let opened = ops.open_by_ticket(&text).await.unwrap_err();
        assert!(opened.to_string().contains("told to open Screen"), "{opened}");
        let again = ops.open_by_ticket(&text).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::Unauthenticated, "{again}");
        // Another controller opens what this one sealed.
        let other = cloud.another().await;
        assert_eq!(other.ops.read_ticket(&text).unwrap(), ticket);
        // One that has ended, and one for what is gone.
        let key = ops.sealing_key().await.unwrap();
        for ticket in
            [Ticket { expires: 1, ..ticket.clone() }, Ticket { instance: InstanceId::new(), ..ticket }]
        {
            let text = tokens::seal_for(&key, PURPOSE, &ticket).unwrap();
            assert_eq!(ops.read_ticket(&text).unwrap_err().code(), ErrorCode::Unauthenticated);
            let text = tokens::seal_for(&key, b"", &ticket).unwrap();
            assert_eq!(ops.read_ticket(&text).unwrap_err().code(), ErrorCode::Unauthenticated);
        }
    }
}
