//! Step 1: the hosts joined with tokens over mutual TLS, and what each says of itself holds against the host itself.

use amphi_api::host::{Acceleration, EngineName, Host, HostState, JoinToken, VolumeActivation};
use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use serde::Deserialize;

use super::residue;
use super::stage::{AWAY, CONTROLLER, HOME, SOON, Stage, same};
use crate::lab::AGENT_CONFIG;
use crate::wait::{seen, until};

#[derive(Deserialize)]
struct Hosts {
    hosts: Vec<Host>,
}

pub fn play(stage: &Stage) -> Result<()> {
    join(stage)?;
    stage.check("both hosts are up", || {
        until("h1 and h2 up", SOON, || {
            let hosts = stage.ask(stage.client.hosts())?;
            let up = |name: &str| {
                hosts.iter().any(|h| h.name == name && h.state == HostState::Up && h.spec.is_some())
            };
            let states: Vec<_> = hosts.iter().map(|h| format!("{} {:?}", h.name, h.state)).collect();
            Ok(seen(up(HOME) && up(AWAY), || states.join(", ")))
        })
    })?;
    stage
        .check("each has its own certificate by the controller's CA; without one nothing is said", || {
            mutual_tls(stage)
        })?;
    stage.check("`amphi host list` shows capacity, engines, VM acceleration, volume activation", || {
        let listed: Hosts = stage.amphi.json(&["host", "list"])?;
        for name in [HOME, AWAY] {
            let host = listed.hosts.iter().find(|h| h.name == name);
            facts_hold(stage, host.with_context(|| format!("{name} is not listed"))?)?;
        }
        let table = stage.amphi.run(&["host", "list"])?;
        for word in ["ENGINES", "ACTIVATION", HOME, AWAY, "docker="] {
            ensure!(table.contains(word), "expected {word} in the table, saw:\n{table}");
        }
        stage.note(table.trim_end());
        Ok(())
    })?;
    let mut before = Vec::new();
    for party in [CONTROLLER, HOME, AWAY] {
        before.push((party.to_owned(), residue::on(stage.lab, party)?));
    }
    stage.notes.borrow_mut().before = before;
    Ok(())
}

/// `amphi host join-token` on the cloud's side, `amphi-hostsrv join` on the host's. A token is good once, and not for ever.
/// A lab that was up before the story has its hosts already: then only the tokens that must fail are tried.
fn join(stage: &Stage) -> Result<()> {
    for host in [HOME, AWAY] {
        if !stage.lab.awaits_join(host)? {
            continue;
        }
        stage.check(&format!("{host} joins with a token of its own, which is good once"), || {
            let known: Hosts = stage.amphi.json(&["host", "list"])?;
            ensure!(known.hosts.iter().all(|h| h.name != host), "{host} is listed before it joined");
            let token = stage.amphi.run(&["host", "join-token", "--host", host])?;
            stage.lab.join(host, token.trim())?;
            refused(stage, host, token.trim(), "used already")
        })?;
    }
    stage.check("an expired token is refused", || {
        let token: JoinToken = stage.amphi.json(&["host", "join-token", "--host", HOME, "--ttl", "1"])?;
        until("the token's time to pass", SOON, || {
            Ok(seen(Timestamp::now() > token.expires_at, || token.expires_at.to_string()))
        })?;
        refused(stage, HOME, &token.token, "expired")
    })
}

/// A second agent on the host, with settings and keys of its own, does not get in with this token.
fn refused(stage: &Stage, host: &str, token: &str, why: &str) -> Result<()> {
    const DIRECTORY: &str = "/run/amphi-stranger";
    let settings = format!("{DIRECTORY}/hostsrv.toml");
    let state = format!("s|^state_dir = .*|state_dir = \"{DIRECTORY}\"|");
    stage.lab.run(host, &["mkdir", "--parents", DIRECTORY])?;
    stage.lab.run(host, &["sed", "-e", &state, "-e", &format!("w {settings}"), AGENT_CONFIG])?;
    let agent = stage.amphi.sibling("amphi-hostsrv");
    let output = stage.lab.exec(host, &[&agent, "--config", &settings, "join", token], SOON)?;
    let kept = stage.lab.exec(host, &["find", DIRECTORY, "-name", "host.pem"], SOON)?.stdout;
    stage.lab.run(host, &["rm", "--recursive", DIRECTORY])?;
    ensure!(!output.ok() && kept.is_empty(), "{host}: a second agent joined: {}{kept}", output.stdout);
    ensure!(output.stderr.contains(why), "{host}: expected {why:?}, saw: {}", output.stderr);
    Ok(())
}

/// The host's certificate is signed by the controller's CA and kept well; with it the hosts' face speaks about blobs,
/// without it the face says nothing.
fn mutual_tls(stage: &Stage) -> Result<()> {
    const CA: &str = "/var/lib/amphi/pki/ca.pem";
    const CERTIFICATE: &str = "/var/lib/amphi/pki/host.pem";
    const KEY: &str = "/var/lib/amphi/pki/host.key";
    for host in [HOME, AWAY] {
        let verified = stage.lab.run(host, &["openssl", "verify", "-CAfile", CA, CERTIFICATE])?;
        ensure!(verified.contains("OK"), "{host}: {verified}");
        let mode = stage.lab.run(host, &["stat", "--format=%a", KEY])?;
        same(&format!("{host}: mode of its key"), &"600", &mode.trim())?;
        // A blob that nobody has: 404 to whom the face knows.
        let url = stage.lab.run(host, &["cat", "/var/lib/amphi/pki/url"])?;
        let url = format!("{}/hosts/v1/blobs/{}", url.trim(), "0".repeat(64));
        let base = ["curl", "--silent", "--max-time", "10", "--output", "/dev/null", "--cacert", CA];
        let ask = |more: &[&str]| {
            let argv = [base.as_slice(), &["--write-out", "%{http_code}"], more, &[url.as_str()]].concat();
            stage.lab.exec(host, &argv, SOON).map(|o| o.stdout.trim().to_owned())
        };
        same(
            &format!("{host}: answer with its certificate"),
            &"404".to_owned(),
            &ask(&["--cert", CERTIFICATE, "--key", KEY])?,
        )?;
        let stranger = ask(&[])?;
        ensure!(
            ["401", "403", "000"].contains(&stranger.as_str()),
            "{host}: the hosts' face answered {stranger} to a caller without a certificate"
        );
    }
    Ok(())
}

/// What the agent says of its machine, against the machine.
fn facts_hold(stage: &Stage, host: &Host) -> Result<()> {
    let name = host.name.as_str();
    let spec = host.spec.as_ref().with_context(|| format!("{name} has said nothing of itself"))?;
    let run = |argv: &[&str]| stage.lab.run(name, argv).map(|t| t.trim().to_owned());
    same("CPUs", &run(&["nproc", "--all"])?, &spec.cpus.to_string())?;
    let total: u64 =
        run(&["sh", "-c", "sed -n 's/^MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo"])?.parse()?;
    ensure!(
        spec.memory_mib.abs_diff(total / 1024) <= 1,
        "memory: expected {} MiB, saw {}",
        total / 1024,
        spec.memory_mib
    );
    let size = run(&[
        "vgs",
        "--driverloaded",
        "n",
        "--noheadings",
        "--nosuffix",
        "--units",
        "b",
        "-o",
        "vg_size",
        "amphi",
    ])?;
    same("bytes of the volume group", &size, &spec.volume_group_bytes.to_string())?;
    same(
        "chassis",
        &run(&["ovs-vsctl", "--timeout=10", "get", "Open_vSwitch", ".", "external_ids:system-id"])?
            .trim_matches('"')
            .to_owned(),
        &spec.chassis,
    )?;
    for engine in [
        EngineName::Docker,
        EngineName::Libvirt,
        EngineName::Qemu,
        EngineName::Ovs,
        EngineName::Ovn,
        EngineName::Lvm,
    ] {
        let said = spec.engines.iter().find(|e| e.name == engine);
        let said = said.with_context(|| format!("{name} does not speak of {engine:?}"))?;
        ensure!(
            said.trouble.is_none() && !said.version.is_empty(),
            "{name}: {engine:?} has trouble: {said:?}"
        );
    }
    let docker = run(&[
        "/usr/bin/docker",
        "-H",
        "unix:///run/docker.sock",
        "version",
        "--format",
        "{{.Server.Version}}",
    ])?;
    ensure!(
        spec.engines.iter().any(|e| e.name == EngineName::Docker && docker.starts_with(&e.version)),
        "{name}: Docker's version: expected {docker}, saw {:?}",
        spec.engines
    );
    // The lab hides /dev/kvm from its hosts: what was probed by running something can only be this.
    same("VM acceleration", &Acceleration::Tcg, &spec.acceleration)?;
    let mapper =
        stage.lab.exec(name, &["grep", "-q", "device-mapper", "/proc/devices", "/proc/misc"], SOON)?;
    let expected = if mapper.ok() { VolumeActivation::Dm } else { VolumeActivation::Loop };
    same("volume activation", &expected, &spec.activation)
}
