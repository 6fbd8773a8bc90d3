//! What a set says where a VM's firmware and kernel speak: one text that tells what was put together, before the first
//! member's own output. Clients that read a server's console find out from it why a service does not answer, in both
//! kinds of body. Refuses environments and user data: they may hold secrets.

use amphi_api::instance::{BodySpec, Instance, MemberStatus};
use amphi_api::set::{MemberSpec, SetSpec};
use jiff::Timestamp;
use std::fmt::Write;

/// The lines, each ended. Empty for a VM: its console has its own.
pub(super) fn boot_log(instance: &Instance) -> String {
    let set = instance.bodies.iter().find_map(|body| match body {
        BodySpec::Set(set) => Some(set),
        BodySpec::Vm(_) => None,
    });
    match set.filter(|_| instance.body == amphi_api::instance::BodyKind::Set) {
        Some(set) => told(instance, set),
        None => String::new(),
    }
}

fn told(instance: &Instance, set: &SetSpec) -> String {
    let mut text = String::new();
    let mut say = |line: String| {
        let _ = writeln!(text, "amphi: {line}");
    };
    say(format!("instance {} '{}', a set, epoch {}", instance.id, instance.name, instance.epoch));
    say(format!("host {}", instance.host_name.as_deref().unwrap_or("none")));
    say(format!("{} vCPU, {} MiB of memory", instance.vcpus, instance.memory_mib));
    for (at, address) in instance.addresses.iter().enumerate() {
        say(format!("eth{at}: {} {} on {}", address.mac, address.address, address.network_name));
    }
    match &instance.volume {
        Some(volume) => say(format!("volume {volume}")),
        None => say("no volume of its own".to_owned()),
    }
    say(format!("anchor ready, {} to start", count(set.members.len(), "member")));
    let mut members: Vec<&MemberSpec> = set.members.iter().collect();
    members.sort_by_key(|member| member.index);
    for member in members {
        let name = member.effective_name();
        let mut says = |what: String| say(format!("[{}] {name}: {what}", member.index));
        says(format!("image {}", member.image));
        says(match member.command.is_empty() {
            true => "command of the image".to_owned(),
            false => format!("command {}", member.command.join(" ")),
        });
        let share = |percent: Option<u32>| percent.map_or("a share".to_owned(), |p| format!("{p} %"));
        says(format!(
            "{} of the CPUs, {} of the memory",
            share(member.options.cpu),
            share(member.options.mem)
        ));
        match instance.members.iter().find(|status| status.name == name) {
            Some(status) => says(state(status)),
            None => says("not made yet".to_owned()),
        }
    }
    text
}

fn state(status: &MemberStatus) -> String {
    let since = status.started_at_us.and_then(|us| Timestamp::from_microsecond(us).ok());
    let since = since.map(|at| format!(" since {at:.0}")).unwrap_or_default();
    let again = count(status.restarts as usize, "restart");
    match (status.running, status.exit_code) {
        (true, _) => format!("running{since}, {again}"),
        (false, Some(code)) => format!("ended with exit code {code}, {again}"),
        (false, None) => format!("not running, {again}"),
    }
}

fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_set_tells_what_it_is_made_of_and_a_vm_is_silent() {
        let id = "01990000-0000-7000-8000-000000000002";
        let mut instance: Instance = serde_json::from_value(json!({
            "id": id, "project": id, "name": "web", "state": "running", "body": "set", "power": "on", "epoch": 3,
            "host_name": "h1", "vcpus": 2, "memory_mib": 256,
            "bodies": [{"set": {"members": [
                {"name": "app", "index": 1, "image": "app", "command": ["serve", "--all"], "options": {"cpu": 80}},
                {"name": "db", "index": 0, "image": "db", "env": {"PASSWORD": "hidden"}}
            ]}}],
            "addresses": [{"port": id, "network": id, "network_name": "blue", "mac": "fa:16:3e:00:00:01",
                "address": "10.0.0.5"}],
            "security_groups": [],
            "members": [{"name": "db", "index": 0, "running": true, "restarts": 1, "started_at_us": 1_760_000_000_000_000i64},
                {"name": "app", "index": 1, "running": false, "restarts": 0, "exit_code": 3}],
            "failover": "never", "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"
        }))
        .unwrap();
        insta::assert_snapshot!(boot_log(&instance), @r"
        amphi: instance 01990000-0000-7000-8000-000000000002 'web', a set, epoch 3
        amphi: host h1
        amphi: 2 vCPU, 256 MiB of memory
        amphi: eth0: fa:16:3e:00:00:01 10.0.0.5 on blue
        amphi: no volume of its own
        amphi: anchor ready, 2 members to start
        amphi: [0] db: image db
        amphi: [0] db: command of the image
        amphi: [0] db: a share of the CPUs, a share of the memory
        amphi: [0] db: running since 2025-10-09T08:53:20Z, 1 restart
        amphi: [1] app: image app
        amphi: [1] app: command serve --all
        amphi: [1] app: 80 % of the CPUs, a share of the memory
        amphi: [1] app: ended with exit code 3, 0 restarts
        ");
        instance.body = amphi_api::instance::BodyKind::Vm;
        assert_eq!(boot_log(&instance), "");
    }
}
