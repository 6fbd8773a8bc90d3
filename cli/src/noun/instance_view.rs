//! How an instance looks: the list's columns, and the page that must be read at three in the morning: trouble first,
//! in whole sentences, then the rest. Pure.

use crate::table::{age, mib, moment, or_dash, pairs, rows, word};
use amphi_api::instance::{BodySpec, GuestAgent, Instance, InstanceState, MemberStatus};
use amphi_api::resize::Bandwidth;
use jiff::Timestamp;

pub fn list(instances: &[Instance], now: Timestamp) -> String {
    rows(
        &["NAME", "STATE", "BODY", "HOST", "ADDRESS", "VCPUS", "MEMORY", "AGE", "ID"],
        instances.iter().map(|i| {
            let addresses: Vec<_> = i.addresses.iter().map(|a| a.address.to_string()).collect();
            vec![
                i.name.clone(),
                word(i.state),
                i.body.to_string(),
                or_dash(i.host_name.as_ref()),
                if addresses.is_empty() { "-".to_owned() } else { addresses.join(",") },
                i.vcpus.to_string(),
                mib(i.memory_mib),
                age(i.created_at, now),
                i.id.to_string(),
            ]
        }),
    )
}

pub fn detail(i: &Instance, now: Timestamp) -> String {
    let mut text = trouble(i, now);
    if !text.is_empty() {
        text.push('\n');
    }
    let bodies: Vec<_> = i.bodies.iter().map(|b| b.kind().to_string()).collect();
    let addresses: Vec<_> = i
        .addresses
        .iter()
        .map(|a| format!("{} on {} ({}){}", a.address, a.network_name, a.mac, rates(&a.bandwidth)))
        .collect();
    let groups: Vec<_> = i.security_groups.iter().map(ToString::to_string).collect();
    let metadata: Vec<_> = i.metadata.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let lines = |list: Vec<String>| if list.is_empty() { "-".to_owned() } else { list.join("\n") };
    text += &pairs(&[
        ("Name", i.name.clone()),
        ("Id", i.id.to_string()),
        ("State", format!("{} (ordered: {})", i.state, word(i.power))),
        ("Body", format!("{} (accepts {})", i.body, bodies.join(", "))),
        ("Host", or_dash(i.host_name.as_ref())),
        ("Epoch", i.epoch.to_string()),
        ("Size", format!("{} vCPU, {}", i.vcpus, mib(i.memory_mib))),
        ("Addresses", lines(addresses)),
        ("Groups", lines(groups)),
        ("Volume", or_dash(i.volume)),
        ("Failover", failover(i)),
        ("Created", moment(i.created_at, now)),
        ("Changed", moment(i.updated_at, now)),
    ]);
    if !metadata.is_empty() {
        text += &pairs(&[("Metadata ", lines(metadata))]);
    }
    for body in &i.bodies {
        if let BodySpec::Vm(vm) = body {
            text += &pairs(&[("VM image ", vm.image.clone())]);
            if let Some(ready) = i.ready {
                let reason = i.reason.as_deref().map(crate::table::clean);
                let why = reason.map(|why| format!(" ({why})")).unwrap_or_default();
                text += &pairs(&[("VM ready ", format!("{}{why}", if ready { "yes" } else { "no" }))]);
            }
            if let Some(agent) = &i.agent {
                text += &pairs(&[("VM agent ", guest_agent(agent))]);
            }
        }
    }
    if !i.members.is_empty() {
        text += "\nMembers, in start order:\n";
        text += &members(&i.members);
        for member in &i.members {
            if let Some(reason) = &member.reason {
                text += &format!("{}: {}\n", member.name, crate::table::clean(reason));
            }
        }
    }
    text
}

/// What the guest says of itself, through its agent.
fn guest_agent(agent: &GuestAgent) -> String {
    if !agent.answers {
        return "does not answer (qemu-guest-agent in the guest)".to_owned();
    }
    let addresses = agent.addresses.iter().map(ToString::to_string);
    let told: Vec<_> = agent.host_name.iter().chain(&agent.os).cloned().chain(addresses).collect();
    crate::table::clean(&format!("answers: {}", told.join(", "))).trim_end_matches([':', ' ']).to_owned()
}

/// `, at most 10000 kbit/s in, 5000 kbit/s out`.
fn rates(bandwidth: &Bandwidth) -> String {
    let both = [(bandwidth.ingress_kbps, "in"), (bandwidth.egress_kbps, "out")];
    let told: Vec<_> =
        both.iter().filter_map(|(rate, way)| Some(format!("{} kbit/s {way}", (*rate)?))).collect();
    if told.is_empty() { String::new() } else { format!(", at most {}", told.join(", ")) }
}

/// The policy, and where its twin stands.
fn failover(i: &Instance) -> String {
    let policy = word(i.failover);
    let Some(twin) = &i.twin else { return policy };
    let place = match (&twin.host_name, twin.body) {
        (Some(host), Some(body)) => {
            format!("a {body} on {host}, {}", if twin.ready { "ready" } else { "not ready yet" })
        }
        _ => "none".to_owned(),
    };
    let trouble = twin.fault.as_ref().map(|f| f.message.as_str()).or(twin.why.as_deref());
    format!(
        "{policy}: {place}{}",
        trouble.map(|why| format!(" ({})", crate::table::clean(why))).unwrap_or_default()
    )
}

fn members(members: &[MemberStatus]) -> String {
    let mut members: Vec<_> = members.iter().collect();
    members.sort_by_key(|m| m.index);
    rows(
        &["INDEX", "NAME", "STATE", "READY", "RESTARTS", "LAST EXIT", "STARTED"],
        members.iter().map(|m| {
            let started = m.started_at_us.and_then(|us| Timestamp::from_microsecond(us).ok());
            vec![
                m.index.to_string(),
                m.name.clone(),
                match (m.running, m.finished) {
                    (true, _) => "running",
                    (false, true) => "finished",
                    (false, false) => "not running",
                }
                .to_owned(),
                or_dash(m.ready.map(|ready| if ready { "yes" } else { "no" })),
                m.restarts.to_string(),
                match (m.exit_code, m.out_of_memory) {
                    (Some(code), true) => format!("{code}, out of memory"),
                    (code, _) => or_dash(code),
                },
                or_dash(started),
            ]
        }),
    )
}

/// What is wrong, in sentences; empty when nothing is.
fn trouble(i: &Instance, now: Timestamp) -> String {
    let mut lines = Vec::new();
    if let Some(fault) = &i.fault {
        lines.push(format!("FAULT since {}: {}", moment(fault.since, now), fault.code));
        lines.extend(fault.message.lines().map(|line| format!("  {line}")));
        if i.state == InstanceState::Error {
            lines.push("  It is tried again by itself; nothing needs to be ordered anew.".to_owned());
        }
    }
    if i.resizing && i.fault.is_none() {
        lines.push("RESIZING: it is not held to its present size yet.".to_owned());
    }
    for condition in &i.conditions {
        lines.push(format!("{}: {}", condition.code.to_uppercase().replace('_', " "), condition.message));
    }
    for lost in &i.lost {
        lines.push(format!("LOST since {}: volume {}", moment(lost.since, now), lost.volume));
        lines.push(format!("  Its bytes are on host {}, which does not answer.", lost.host_name));
        lines.push(format!(
            "  They are back when {} is; until then the instance cannot run elsewhere.",
            lost.host_name
        ));
    }
    match i.state {
        InstanceState::Unknown => {
            let host = i.host_name.as_deref().unwrap_or("?");
            lines.push(format!(
                "UNKNOWN: host {host} does not answer; the instance may or may not run there."
            ));
            lines.push(format!("  If the host is dead for sure: amphi host evacuate {host}"));
        }
        InstanceState::Stranded if i.lost.is_empty() => {
            lines.push("STRANDED: its host does not answer and no other host can take it.".to_owned());
        }
        _ => {}
    }
    let down: Vec<_> =
        i.members.iter().filter(|m| !m.running && !m.finished).map(|m| m.name.as_str()).collect();
    if i.state == InstanceState::Running && !down.is_empty() {
        lines.push(format!("NOT RUNNING: member {}", down.join(", ")));
    }
    lines.iter().map(|line| format!("{}\n", crate::table::clean(line))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ID: &str = "00000000-0000-7000-8000-000000000001";

    fn instance(patch: serde_json::Value) -> Instance {
        let mut value = json!({
            "id": ID, "project": ID, "name": "web", "state": "running", "body": "set", "power": "on", "epoch": 3,
            "host": ID, "host_name": "h1", "vcpus": 2, "memory_mib": 512,
            "bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}]}}, {"vm": {"image": "tiny"}}],
            "addresses": [{"port": ID, "network": ID, "network_name": "blue", "mac": "02:00:00:00:00:05", "address": "10.1.0.5"}],
            "security_groups": [], "volume": ID, "failover": "any_kind",
            "members": [
                {"name": "app", "index": 2, "running": true, "restarts": 1, "exit_code": 137, "started_at_us": 1767323046000000i64},
                {"name": "db", "index": 1, "running": true, "restarts": 0, "started_at_us": 1767323045000000i64}],
            "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"});
        for (key, patch) in patch.as_object().unwrap() {
            value[key] = patch.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    fn now() -> Timestamp {
        "2026-01-02T03:14:05Z".parse().unwrap()
    }

    #[test]
    fn golden_list() {
        let bare =
            instance(json!({"name": "database", "state": "error", "host_name": null, "addresses": []}));
        assert_eq!(
            list(&[instance(json!({})), bare], now()),
            format!(
                "\
NAME      STATE    BODY  HOST  ADDRESS   VCPUS  MEMORY   AGE  ID
web       running  set   h1    10.1.0.5  2      512 MiB  10m  {ID}
database  error    set   -     -         2      512 MiB  10m  {ID}
"
            )
        );
    }

    #[test]
    fn golden_detail() {
        assert_eq!(
            detail(&instance(json!({})), now()),
            format!(
                "\
Name       web
Id         {ID}
State      running (ordered: on)
Body       set (accepts set, vm)
Host       h1
Epoch      3
Size       2 vCPU, 512 MiB
Addresses  10.1.0.5 on blue (02:00:00:00:00:05)
Groups     -
Volume     {ID}
Failover   any_kind
Created    2026-01-02T03:04:05Z (10m ago)
Changed    2026-01-02T03:04:05Z (10m ago)
VM image   tiny

Members, in start order:
INDEX  NAME  STATE    READY  RESTARTS  LAST EXIT  STARTED
1      db    running  -      0         -          2026-01-02T03:04:05Z
2      app   running  -      1         137        2026-01-02T03:04:06Z
"
            )
        );
    }

    #[test]
    fn a_guest_that_answers_is_told_of() {
        let told = |agent: serde_json::Value| {
            let shown = detail(&instance(json!({"body": "vm", "members": [], "agent": agent})), now());
            shown.lines().find(|line| line.starts_with("VM agent")).map(str::to_owned)
        };
        assert_eq!(
            told(json!({"answers": true, "host_name": "web", "os": "Debian", "addresses": ["10.1.0.5"]}))
                .as_deref(),
            Some("VM agent   answers: web, Debian, 10.1.0.5")
        );
        assert_eq!(told(json!({"answers": true})).as_deref(), Some("VM agent   answers"));
        assert!(told(json!({"answers": false})).unwrap().contains("qemu-guest-agent"));
        assert_eq!(told(json!(null)), None);
    }

    #[test]
    fn trouble_comes_first() {
        let lost = instance(json!({"state": "stranded", "members": [],
            "fault": {"code": "engine_down", "message": "docker: no answer\u{1b}[31m\nin 5 s", "since": "2026-01-02T03:04:05Z"},
            "lost": [{"volume": ID, "host": ID, "host_name": "h1", "since": "2026-01-02T03:10:05Z"}]}));
        assert_eq!(
            trouble(&lost, now()),
            format!(
                "\
FAULT since 2026-01-02T03:04:05Z (10m ago): engine_down
  docker: no answer?[31m
  in 5 s
LOST since 2026-01-02T03:10:05Z (4m ago): volume {ID}
  Its bytes are on host h1, which does not answer.
  They are back when h1 is; until then the instance cannot run elsewhere.
"
            )
        );
        assert_eq!(trouble(&instance(json!({})), now()), "");
        assert!(detail(&lost, now()).starts_with("FAULT"));
        assert!(trouble(&instance(json!({"state": "unknown"})), now()).contains("amphi host evacuate h1"));
    }
}
