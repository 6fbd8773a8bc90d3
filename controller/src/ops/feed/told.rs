//! What the difference between two states of a record says has happened. Pure.

use crate::model::*;
use amphi_api::events::EventKind;
use amphi_api::failover::{FailoverFate, FailoverPhase};
use amphi_api::host::HostState;
use amphi_api::instance::MemberStatus;
use amphi_api::{HostId, InstanceId, ProjectId};
use serde::Serialize;

/// One thing that has happened, and whose it is.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub kind: EventKind,
    /// None: the operator's.
    pub project: Option<ProjectId>,
    pub instance: Option<InstanceId>,
    pub host: Option<HostId>,
    pub name: String,
    pub member: Option<String>,
    pub message: String,
}

fn of_host(kind: EventKind, host: &HostRecord, message: String) -> Told {
    let name = host.name.clone();
    Told { kind, project: None, instance: None, host: Some(host.id), name, member: None, message }
}

fn of_instance(kind: EventKind, row: &InstanceRecord, message: impl Into<String>) -> Told {
    Told {
        kind,
        project: Some(row.project),
        instance: Some(row.id),
        host: row.host,
        name: row.name.clone(),
        member: None,
        message: message.into(),
    }
}

/// An enum's value as JSON spells it.
fn word(value: impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(text)) => text,
        _ => String::new(),
    }
}

pub fn instance(
    before: Option<&InstanceRecord>,
    now: Option<&InstanceRecord>,
    host: &impl Fn(HostId) -> String,
) -> Vec<Told> {
    use EventKind as K;
    let (before, now) = match (before, now) {
        (None, None) => return Vec::new(),
        (None, Some(now)) => return vec![of_instance(K::Created, now, format!("a {}", now.body))],
        (Some(before), None) => return vec![of_instance(K::Deleted, before, "nothing is left of it")],
        (Some(before), Some(now)) => (before, now),
    };
    let mut told = Vec::new();
    if before.host != now.host {
        let to = now.host.map_or_else(|| "no host".to_owned(), host);
        told.push(of_instance(K::Placed, now, format!("on {to}, epoch {}", now.epoch)));
    }
    let state = |row: &InstanceRecord| row.current().map(|o| o.state);
    if let Some(state) = state(now).filter(|now| state(before) != Some(*now)) {
        told.push(of_instance(K::State, now, word(state)));
    }
    let fault = |row: &InstanceRecord| {
        row.current().and_then(|o| o.fault.as_ref()).map(|f| (f.code.clone(), f.message.clone()))
    };
    match (fault(before), fault(now)) {
        (was, Some(is)) if was.as_ref() != Some(&is) => {
            told.push(of_instance(K::Fault, now, format!("{}: {}", is.0, is.1)));
        }
        (Some(was), None) => told.push(of_instance(K::FaultOver, now, was.0)),
        _ => {}
    }
    // One that has just started is yet to answer: that is nothing that has happened.
    let answers = |row: &InstanceRecord| row.current().and_then(|o| o.agent.as_ref()).map(|a| a.answers);
    match (answers(before), answers(now)) {
        (was, Some(true)) if was != Some(true) => told.push(of_instance(K::GuestAgent, now, "it answers")),
        (Some(true), Some(false)) => {
            told.push(of_instance(K::GuestAgent, now, "it does not answer any more"))
        }
        _ => {}
    }
    let members = |row: &InstanceRecord| row.current().map(|o| o.members.clone()).unwrap_or_default();
    let earlier = members(before);
    for member in members(now) {
        let was = earlier.iter().find(|was| was.name == member.name);
        told.extend(changed(was, &member).into_iter().map(|(kind, message)| Told {
            member: Some(member.name.clone()),
            ..of_instance(kind, now, message)
        }));
    }
    told
}

fn changed(was: Option<&MemberStatus>, is: &MemberStatus) -> Vec<(EventKind, String)> {
    use EventKind as K;
    let mut told = Vec::new();
    let because = is.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    let code = is.exit_code.map(|code| format!("exit code {code}")).unwrap_or_default();
    let restarts = was.map_or(0, |was| was.restarts);
    let ended_anew = is.restarts > restarts || is.exit_code != was.and_then(|was| was.exit_code);
    if is.out_of_memory && (ended_anew || !was.is_some_and(|was| was.out_of_memory)) {
        told.push((K::OutOfMemory, format!("it asked for more memory than there was{because}")));
    }
    let ran = was.is_some_and(|was| was.running);
    if is.restarts > restarts {
        told.push((K::MemberRestarted, format!("restart {}, {code}{because}", is.restarts)));
    } else if is.running && !ran {
        told.push((K::MemberStarted, String::new()));
    } else if !is.running && ran {
        let how = if is.finished { "it has done its work" } else { "it ended" };
        told.push((K::MemberEnded, format!("{how}, {code}{because}")));
    }
    match (was.and_then(|was| was.ready), is.ready) {
        (Some(true), Some(false)) => told.push((K::NotReady, is.reason.clone().unwrap_or_default())),
        (Some(false) | None, Some(true)) => told.push((K::Ready, String::new())),
        _ => {}
    }
    told
}

/// `name`: the instance's, empty where it is gone.
pub fn action(before: Option<&ActionRecord>, now: &ActionRecord, name: String) -> Vec<Told> {
    let told = |kind, message: String| Told {
        kind,
        project: Some(now.project),
        instance: Some(now.instance),
        host: now.events.iter().rev().find_map(|e| e.host),
        name: name.clone(),
        member: None,
        message,
    };
    let mut all = Vec::new();
    if before.is_none() {
        all.push(told(EventKind::Ordered, now.action.clone()));
    }
    if !now.is_open() && before.is_none_or(ActionRecord::is_open) {
        let failed = now.events.iter().find(|e| e.success == Some(false));
        let how = match failed {
            Some(event) => {
                format!("{} failed: {}", now.action, event.details.as_deref().unwrap_or("no reason given"))
            }
            None => format!("{} is done", now.action),
        };
        all.push(told(EventKind::Concluded, how));
    }
    all
}

pub fn exchange(
    before: Option<&ExchangeRecord>,
    now: &ExchangeRecord,
    name: String,
    host: &impl Fn(HostId) -> String,
) -> Vec<Told> {
    if before.is_some_and(|before| before.phase == now.phase) {
        return Vec::new();
    }
    let what = match &now.journey {
        Some(journey) => format!("move from {} to {}", host(journey.from), host(journey.to)),
        None => format!("exchange of {} for {}", now.from, now.to),
    };
    let fault = now.fault.as_ref().map(|f| format!(": {}: {}", f.code, f.message)).unwrap_or_default();
    vec![Told {
        kind: EventKind::Exchange,
        project: Some(now.project),
        instance: Some(now.instance),
        host: now.journey.as_ref().map(|journey| journey.to),
        name,
        member: None,
        message: format!("{what}, {}{fault}", word(now.phase)),
    }]
}

pub fn host(before: Option<&HostRecord>, now: Option<&HostRecord>) -> Vec<Told> {
    use EventKind as K;
    let Some(now) = now else { return Vec::new() };
    let mut told = Vec::new();
    let state = before.map(|before| before.state);
    match now.state {
        HostState::Up if state != Some(HostState::Up) => {
            told.push(of_host(K::HostUp, now, "it is linked".into()))
        }
        HostState::Down if state != Some(HostState::Down) => {
            told.push(of_host(K::HostDown, now, "its link is gone".into()));
        }
        _ => {}
    }
    let engines = |host: &HostRecord| host.spec.as_ref().map(|s| s.engines.clone()).unwrap_or_default();
    let earlier = before.map(engines).unwrap_or_default();
    for engine in engines(now) {
        let was = earlier.iter().find(|was| was.name == engine.name).and_then(|was| was.trouble.clone());
        let name = word(engine.name);
        match (was, engine.trouble) {
            (was, Some(is)) if was.as_ref() != Some(&is) => {
                told.push(of_host(K::Engine, now, format!("{name} is in trouble: {is}")));
            }
            (Some(_), None) => told.push(of_host(K::Engine, now, format!("{name} is well again"))),
            _ => {}
        }
    }
    told
}

pub fn failover(before: Option<&FailoverRecord>, now: &FailoverRecord) -> Vec<Told> {
    let told = |message: String| Told {
        kind: EventKind::Failover,
        project: None,
        instance: None,
        host: Some(now.host),
        name: now.host_name.clone(),
        member: None,
        message,
    };
    let mut all = Vec::new();
    if before.is_none_or(|before| before.phase != now.phase) {
        let moved = now.instances.iter().filter(|i| matches!(i.fate, FailoverFate::Moved { .. })).count();
        let counts = match now.phase {
            FailoverPhase::Barring => String::new(),
            _ => format!(", {moved} of {} instances moved", now.instances.len()),
        };
        all.push(told(format!("{} ({}){counts}", word(now.phase), word(now.cause))));
    }
    if now.returned_at.is_some() && before.is_some_and(|before| before.returned_at.is_none()) {
        all.push(told("the host is let in again".into()));
    }
    all
}
