//! A VM under its probes, on a real host: asked over HTTP from the metadata service's place though no security group lets anybody
//! in; in and out of its group's endpoints as it says; stopped and started again when it is not worth keeping.

use amphi_api::group::{Group, GroupCreate};
use amphi_api::host::HostState;
use amphi_api::instance::{Instance, InstanceState};
use amphi_integration::failing::{PATIENCE, Stage, address, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::story::guest::CGI;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::Path;
use std::time::Instant;

const H1: &str = "h1";

/// Serves what the probes ask on port 80, as its init does, and takes orders on another port.
fn user_data() -> String {
    let cgi = "mkdir -p /data/cgi-bin\ncat >/data/cgi-bin/run <<'END'";
    format!(
        "#!/bin/sh\n{cgi}\n{CGI}END\nchmod 755 /data/cgi-bin/run\n: >/data/live\nhttpd -p 8081 -h /data\n"
    )
}

struct Story {
    stage: Stage,
    peer: Instance,
}

impl Story {
    fn in_peer(&self, script: &str) -> Result<String> {
        let container = format!("amphi-{}-only", self.peer.id);
        let docker = ["/usr/bin/docker", "-H", "unix:///run/docker.sock", "exec", &container];
        self.stage.lab.run(H1, &[&docker[..], &["sh", "-c", script]].concat())
    }

    /// Runs a script in the guest; what it prints.
    fn in_guest(&self, at: &str, script: &str) -> Result<String> {
        let head = format!("POST /cgi-bin/run HTTP/1.0\\r\\nContent-Length: {}\\r\\n\\r\\n", script.len());
        let answer =
            self.in_peer(&format!("{{ printf '{head}'; printf %s '{script}'; }} | nc -w 20 {at} 8081"))?;
        let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no answer: {answer}"))?;
        ensure!(head.contains(" 200 "), "{answer}");
        Ok(body.trim().to_owned())
    }

    fn ready(&self, group: &Group, wanted: bool, why: &str) -> Result<Instance> {
        let began = Instant::now();
        let client = &self.stage.client;
        let shown = until(&format!("ready: {wanted}"), PATIENCE, || {
            let group = self.stage.ask(client.group(group.id))?;
            let Some(member) = group.members.first() else { return Ok(Seen::Not("no member".into())) };
            let shown = self.stage.show(member.instance)?;
            let endpoints = self.stage.ask(client.group_endpoints(group.id, None))?;
            let all = [
                shown.ready == Some(wanted),
                member.ready == wanted,
                (endpoints.ready().count() == 1) == wanted,
            ];
            let reason = shown.reason.clone().unwrap_or_default();
            let told = format!("{:?} {all:?} {reason:?} {:?}", shown.state, member.reason);
            let runs = shown.state == InstanceState::Running;
            Ok(match runs && all == [true; 3] && reason.contains(why) {
                true => Seen::Enough(shown),
                false => Seen::Not(told),
            })
        })?;
        println!("  ready: {wanted} after {:.1} s {:?}", began.elapsed().as_secs_f64(), shown.reason);
        Ok(shown)
    }
}

#[test]
fn a_vm_says_whether_it_works() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("vm-probes-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout, &images, program, 1, |_| {})?;
    let control =
        json!({"name": "control", "rules": [{"protocol": "tcp", "port_min": 8081, "port_max": 8081}]});
    stage.ask(stage.client.create_security_group(&serde_json::from_value(control)?))?;
    let peer = stage.create(&request("peer", vec![set()], Some(H1)))?;
    let story = Story { stage, peer };

    println!("asked before it has started");
    let probe = |path: &str, failures: u32| json!({"http": {"port": 80, "path": path}, "period_s": 1, "timeout_s": 2, "failures": failures});
    let wish: GroupCreate = serde_json::from_value(json!({
        "name": "shop", "count": 1, "ports": [80], "health": {"replace_after_s": 0},
        "template": {"name": "vm", "vcpus": 1, "memory_mib": 128, "networks": [{"network": "blue"}],
            "security_groups": ["control"], "user_data": user_data(),
            "bodies": [{"vm": {"image": "vm", "probes":
                {"startup": probe("/live", 100), "readiness": probe("/ready", 2), "liveness": probe("/live", 3)}}}]},
    }))?;
    let group = story.stage.ask(story.stage.client.create_scaling_group(&wish))?;
    let vm = story.ready(&group, false, "readiness probe fails: GET /ready answers 404")?;
    let at = address(&vm)?;

    println!("nobody else gets through to the probed port");
    let knock = |port: u16| {
        story.in_peer(&format!("nc -w 3 {at} {port} </dev/null >/dev/null 2>&1 && echo open || echo shut"))
    };
    ensure!(knock(8081)?.trim() == "open", "the control port is shut");
    ensure!(knock(80)?.trim() == "shut", "the probed port is open to others");

    println!("in and out of the endpoints");
    story.in_guest(&at, ": >/data/ready")?;
    story.ready(&group, true, "")?;
    story.in_guest(&at, "rm /data/ready")?;
    story.ready(&group, false, "GET /ready answers 404")?;
    story.in_guest(&at, ": >/data/ready")?;
    story.ready(&group, true, "")?;

    println!("not worth keeping");
    let boot = |at: &str| story.in_guest(at, "cat /proc/sys/kernel/random/boot_id");
    let before = boot(&at)?;
    // An agent that starts anew asks on, and ends nobody for its own absence.
    story.stage.lab.kill(H1, "hostsrv", nix::sys::signal::Signal::SIGKILL)?;
    story.stage.host_in(H1, |h| h.state == HostState::Down)?;
    story.stage.lab.start(H1, "hostsrv")?;
    // Nor does it leave the endpoints for that, while the agent has yet to ask it, and when it has.
    let mut back = None;
    until("the agent has been back for five periods of its probes", PATIENCE, || {
        let shown = story.stage.show(vm.id)?;
        ensure!(shown.ready == Some(true), "it is out of the endpoints: {shown:?}");
        if story.stage.host(H1)?.state == HostState::Up {
            back.get_or_insert_with(Instant::now);
        }
        Ok(seen(back.is_some_and(|back| back.elapsed().as_secs() >= 5), || format!("{back:?}")))
    })?;
    // What it says now is its own word, and the startup probe is behind it.
    story.in_guest(&at, "rm /data/ready")?;
    story.ready(&group, false, "GET /ready answers 404")?;
    story.in_guest(&at, ": >/data/ready")?;
    story.ready(&group, true, "")?;
    ensure!(boot(&at)? == before, "it was started again for nothing");
    story.in_guest(&at, "rm /data/live")?;
    let began = Instant::now();
    until("it has started again", PATIENCE, || {
        let now = boot(&at).unwrap_or_else(|error| format!("{error:#}"));
        let again = now.len() == before.len() && now != before;
        Ok(seen(again, || now.clone()))
    })?;
    println!("  started again after {:.1} s", began.elapsed().as_secs_f64());
    let again = story.ready(&group, false, "GET /ready answers 404")?;
    ensure!(again.id == vm.id, "the group has replaced it");
    story.in_guest(&at, ": >/data/ready")?;
    let told = story.ready(&group, true, "its liveness probe failed 3 times in a row")?;
    ensure!(told.fault.is_none(), "{told:?}");

    story.stage.ask(story.stage.client.delete_group(group.id))?;
    until("no group", PATIENCE, || {
        let left = story.stage.ask(story.stage.client.groups())?.len();
        Ok(seen(left == 0, || left.to_string()))
    })?;
    story.stage.delete(story.peer.id)?;
    story.stage.down()
}
