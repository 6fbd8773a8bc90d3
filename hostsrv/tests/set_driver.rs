//! Sets on a real dockerd.

mod common;
#[path = "set_driver/described.rs"]
mod described;
#[path = "set_driver/drivers.rs"]
mod drivers;
#[path = "set_driver/fat.rs"]
mod fat;
#[path = "set_driver/pulls.rs"]
mod pulls;
#[path = "set_driver/stage.rs"]
mod stage;
#[path = "set_driver/verbs.rs"]
mod verbs;

use amphi_api::image::BlobRole;
use amphi_api::wire::BodyDesired;
use amphi_api::{NetworkId, PortId, VolumeId};
use amphi_hostsrv::instance::set::render::{Facts, render};
use amphi_hostsrv::instance::set::{SetDriver, SetOptions};
use amphi_hostsrv::instance::{
    Adjustment, Bell, BodyDriver, BodyPlan, DriverError, ObservedState, PortAttachment, PortGate, Remains,
    VolumeAttachment,
};
use bollard::query_parameters::{CreateContainerOptionsBuilder, ListImagesOptions};
use common::engines::DOCKER_SOCKET;
use common::plugin::wiring;
use common::{DEADLINE, eventually, on_private_host, run};
use drivers::{port, serve_plugin};
use serde_json::json;
use stage::{Stage, driver};
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;

#[test]
fn a_set_lives_and_dies() {
    on_private_host("a_set_lives_and_dies", |host| {
        let stage = Stage::new(host);
        let plan = stage.usual_plan();
        assert_eq!(stage.run(stage.driver.probe()).version.split('.').next(), Some("20"));
        stage.run(stage.driver.prepare(&plan));
        assert_eq!(stage.observe(), None, "preparing makes no body");
        stage.run(stage.driver.ensure(&plan));
        let body = stage.running();
        let members: Vec<_> = body.members.iter().map(|m| (m.name.as_str(), m.index)).collect();
        assert_eq!((body.epoch, members), (5, vec![("early", 10), ("late", 20)]));

        // One network, one IPC namespace, the anchor's sysctls, from the first instruction; shares as ordered.
        let (early, late) = (stage.first_words(&plan, "early"), stage.first_words(&plan, "late"));
        assert_eq!(early[1..], late[1..]);
        assert_eq!(early[5..9], ["backlog", "777", "on", "web-1"]);
        let limits = ".HostConfig.CpuQuota}} {{.HostConfig.Memory}} {{.HostConfig.MemorySwap";
        assert_eq!(stage.inspect(&plan, "early", limits), format!("320000 {0} {0}", 192 << 20));
        for member in ["anchor", "early", "late"] {
            assert_eq!(stage.inspect(&plan, member, ".HostConfig.RestartPolicy.Name"), "no");
        }

        // Ordering what is there changes nothing, and a fresh process sees the same.
        let before = stage.fingerprint();
        stage.run(stage.driver.ensure(&plan));
        assert_eq!(stage.fingerprint(), before);
        let fresh = driver(stage.host, &stage.runtime, &Bell::default());
        assert_eq!(stage.run(fresh.observe()), [body]);
        stage.run(fresh.ensure(&plan));
        assert_eq!(stage.fingerprint(), before);
        drop(fresh);

        let log = stage.run(stage.driver.console_log(plan.instance, None, 10));
        // The two streams have no order between them.
        assert!(log.lines().any(|l| l.starts_with("early net")) && log.contains("to stderr"), "{log}");
        let last = stage.run(stage.driver.console_log(plan.instance, Some("late"), 1));
        assert_eq!(last.lines().count(), 1, "{last}");
        let unknown = stage.refused(stage.driver.console_log(plan.instance, Some("nobody"), 1));
        assert!(unknown.to_string().contains("nobody"), "{unknown}");

        members_come_back(&stage, &plan);
        the_anchor_comes_back(&stage, &plan);
        pauses_and_stops(&stage, &plan);

        // Another epoch is neither disturbed nor mixed with this one.
        let next = BodyPlan { epoch: 6, ..plan.clone() };
        let refused = stage.refused(stage.driver.ensure(&next));
        assert!(refused.to_string().contains("epoch 5 are still there"), "{refused}");
        stage.run(stage.driver.remove(plan.instance, 4, Remains::Nothing));
        stage.running();
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        assert_eq!((stage.observe(), stage.host.docker(&["ps", "-aq"]).as_str()), (None, ""));
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        stage.run(stage.driver.ensure(&next));
        assert_eq!(stage.running().epoch, 6);
        stage.run(stage.driver.remove(plan.instance, 9, Remains::Nothing));
        assert_eq!(stage.host.docker(&["ps", "-aq"]), "");
        assert!(stage.host.docker(&["image", "ls"]).contains("amphi-anchor"));
    });
}

fn members_come_back(stage: &Stage, plan: &BodyPlan) {
    stage.host.docker(&["kill", &stage.container(plan, "late")]);
    let body = stage.rings_until("a killed member", |body| body.state == ObservedState::Degraded);
    assert_eq!((body.members[1].running, body.members[1].exit_code), (false, Some(137)));
    let trouble = body.trouble.unwrap_or_default();
    assert!(trouble.contains("member late ended with exit code 137"), "{trouble}");
    stage.run(stage.driver.ensure(plan));
    assert_eq!(stage.running().members[1].restarts, 1);
    stage.one_namespace(plan);

    // Again at once: now it has to wait, ordering it does not block, and the bell says when.
    stage.host.docker(&["kill", &stage.container(plan, "late")]);
    let killed = Instant::now();
    stage.rings_until("a member killed again", |body| body.state == ObservedState::Degraded);
    stage.run(stage.driver.ensure(plan));
    let body = stage.observe().expect("a body");
    assert_eq!(body.state, ObservedState::Degraded, "{body:?}");
    assert!(body.trouble.is_some_and(|text| text.contains("after 1 restarts; it is to start again at")));
    let due = stage.rings_until("the member's time", |body| {
        body.trouble.as_deref().is_some_and(|text| text.ends_with("start again now"))
    });
    assert!(killed.elapsed() > Duration::from_millis(900), "{due:?}");
    stage.run(stage.driver.ensure(plan));
    assert_eq!(stage.running().members[1].restarts, 2);

    // Somebody removed one.
    stage.host.docker(&["rm", "-f", &stage.container(plan, "early")]);
    let body = stage.rings_until("a removed member", |body| body.state == ObservedState::Degraded);
    assert_eq!(body.trouble.as_deref(), Some("member early is missing"));
    stage.run(stage.driver.ensure(plan));
    stage.running();
}

fn the_anchor_comes_back(stage: &Stage, plan: &BodyPlan) {
    stage.host.docker(&["kill", &stage.container(plan, "anchor")]);
    stage.rings_until("a killed anchor", |body| body.state == ObservedState::Stopped);
    stage.run(stage.driver.ensure(plan));
    let body = stage.running();
    let starts: Vec<_> = body.members.iter().map(|member| member.started_at_us).collect();
    assert!(starts.is_sorted(), "{body:?}");
    stage.one_namespace(plan);

    // Somebody restarted it behind the driver's back: its members keep dead namespaces and must follow.
    stage.host.docker(&["restart", "-t", "0", &stage.container(plan, "anchor")]);
    let body = stage.rings_until("a restarted anchor", |body| body.state == ObservedState::Degraded);
    assert!(body.trouble.is_some_and(|text| text.contains("without the network")));
    stage.run(stage.driver.ensure(plan));
    stage.running();
    stage.one_namespace(plan);

    // Gone for good.
    stage.host.docker(&["rm", "-f", &stage.container(plan, "anchor")]);
    stage.rings_until("a removed anchor", |body| body.state == ObservedState::Stopped);
    stage.run(stage.driver.ensure(plan));
    stage.running();
}

fn pauses_and_stops(stage: &Stage, plan: &BodyPlan) {
    stage.run(
        stage.driver.adjust(plan.instance, Adjustment::VolumeGrown { volume: VolumeId::new(), bytes: 1 }),
    );
    stage.run(stage.driver.adjust(plan.instance, Adjustment::Pause));
    stage.run(stage.driver.adjust(plan.instance, Adjustment::Pause));
    assert_eq!(stage.inspect(plan, "late", ".State.Status"), "paused");
    let body = stage.observe().expect("a body");
    assert_eq!((body.state, body.trouble), (ObservedState::Paused, None));
    stage.run(stage.driver.adjust(plan.instance, Adjustment::Resume));
    stage.running();
    stage.run(stage.driver.adjust(plan.instance, Adjustment::Pause));
    stage.run(stage.driver.ensure(plan));
    stage.running();

    let before = Instant::now();
    stage.run(stage.driver.stop(plan.instance, Duration::from_secs(20)));
    assert!(before.elapsed() < Duration::from_secs(15), "an orderly stop needs no force");
    let body = stage.observe().expect("it stays defined");
    assert_eq!(body.state, ObservedState::Stopped);
    let codes: Vec<_> = body.members.iter().map(|member| member.exit_code).collect();
    assert_eq!(codes, [Some(0), Some(0)], "they ended by themselves");
    let end = |member| stage.inspect(plan, member, ".State.FinishedAt");
    let ends = [end("late"), end("early"), end("anchor")];
    assert!(ends.is_sorted(), "reverse order: {ends:?}");
    stage.run(stage.driver.stop(plan.instance, Duration::ZERO));
    stage.run(stage.driver.ensure(plan));
    stage.running();
}

#[test]
fn broken_images_and_members_are_named() {
    on_private_host("broken_images_and_members_are_named", |host| {
        let stage = Stage::new(host);
        let whole = std::fs::read(stage.host.path("image.tar")).expect("an archive");
        // A flipped byte in the middle, which the load itself has to find.
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 0xff;
        for (name, bytes) in [
            ("garbage", b"garbage".repeat(1000)),
            ("half", whole[..whole.len() / 2].to_vec()),
            ("flipped", flipped),
        ] {
            let path = stage.host.path(name);
            std::fs::write(&path, bytes).expect("a file");
            let mut cached = stage.image.clone();
            cached.blobs.insert(BlobRole::Archive, path);
            cached.image.blobs.clear();
            let mut plan = stage.usual_plan();
            plan.images.insert(cached.image.id, cached);
            for error in
                [stage.refused(stage.driver.prepare(&plan)), stage.refused(stage.driver.ensure(&plan))]
            {
                assert!(matches!(error, DriverError::ImageBroken { .. }), "{name}: {error:?}");
            }
            assert_eq!(stage.observe(), None, "{name}");
        }

        // A member whose program does not exist: the reason is told, and a better plan goes ahead.
        let wrong = stage.plan(json!({"members": [
            {"index": 0, "image": "x", "command": ["/bin/sleep", "1000"]},
            {"index": 1, "image": "x", "command": ["/bin/absent"]}]}));
        for _ in 0..2 {
            let refused = stage.refused(stage.driver.ensure(&wrong));
            assert_eq!(refused.code(), "engine_refused");
            assert!(refused.to_string().contains("/bin/absent"), "{refused}");
            assert_eq!(stage.observe().map(|body| body.state), Some(ObservedState::Degraded));
        }
        // A sysctl that the kernel does not have: no member ever runs.
        let sysctl = stage.plan(json!({"anchor": {"sysctls": {"net.core.absent": "1"}},
            "members": [{"index": 0, "image": "x", "command": ["/bin/sleep", "1000"]}]}));
        stage.run(stage.driver.remove(wrong.instance, 5, Remains::Nothing));
        let refused = stage.refused(stage.driver.ensure(&sysctl));
        assert!(refused.to_string().contains("net/core/absent"), "{refused}");
        assert_eq!(stage.observe().map(|body| body.state), Some(ObservedState::Stopped));
        stage.run(stage.driver.remove(sysctl.instance, 5, Remains::Nothing));

        // Images vanish behind the driver's back.
        let plan = stage.usual_plan();
        stage.run(stage.driver.prepare(&plan));
        stage.host.docker(&["image", "prune", "-af"]);
        stage.run(stage.driver.ensure(&plan));
        stage.running();
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
    });
}

#[test]
fn a_hung_and_a_dead_dockerd_are_told_apart() {
    on_private_host("a_hung_and_a_dead_dockerd_are_told_apart", |host| {
        let stage = Stage::new(host);
        let plan = stage.usual_plan();
        stage.run(stage.driver.ensure(&plan));
        let body = stage.running();
        let pid = std::fs::read_to_string("/run/docker.pid").expect("a pid");
        run("kill", &["-STOP", pid.trim()]);
        for (limit, error) in [
            (2, stage.refused(stage.driver.probe())),
            (5, stage.refused(stage.driver.observe())),
            (5, stage.refused(stage.driver.ensure(&plan))),
            (5, stage.refused(stage.driver.stop(plan.instance, Duration::ZERO))),
        ] {
            let DriverError::EngineTimeout { limit: told, .. } = error else { panic!("{error:?}") };
            assert_eq!(told, Duration::from_secs(limit));
        }
        run("kill", &["-CONT", pid.trim()]);
        assert_eq!(stage.observe(), Some(body.clone()));

        // Its containers live on without it, and are known again when it is back: the bell says so.
        stage.host.stop("dockerd");
        assert_eq!(stage.refused(stage.driver.observe()).code(), "engine_down");
        assert_eq!(stage.refused(stage.driver.probe()).code(), "engine_down");
        let silent = stage.runtime.block_on(async {
            // What rang before belongs to the past.
            let _ = tokio::time::timeout(Duration::from_millis(1), stage.bell.notified()).await;
            tokio::time::timeout(Duration::from_millis(1), stage.bell.notified()).await
        });
        assert!(silent.is_err());
        stage.host.start_dockerd();
        let rang =
            stage.runtime.block_on(async { tokio::time::timeout(DEADLINE, stage.bell.notified()).await });
        assert!(rang.is_ok(), "the bell rings when the engine is back");
        assert_eq!(stage.observe(), Some(body));
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
    });
}

/// Opens when told to.
#[derive(Debug)]
struct Held {
    asked: Mutex<Vec<PortId>>,
    announced: Mutex<Vec<PortId>>,
    open: Semaphore,
}

#[async_trait::async_trait]
impl PortGate for Held {
    async fn opened(&self, port: PortId) -> bool {
        self.asked.lock().expect("asked").push(port);
        self.open.acquire().await.expect("never closed").forget();
        true
    }

    fn announce(&self, port: &PortAttachment) {
        self.announced.lock().expect("announced").push(port.id);
    }
}

#[test]
fn members_start_once_their_network_passes() {
    on_private_host("members_start_once_their_network_passes", |host| {
        host.start_switch();
        let dir = host.dir.clone();
        let plugin_runtime = Runtime::new().expect("a runtime");
        serve_plugin(&plugin_runtime, &dir);
        let stage = Stage::new(host);
        let mut plan = stage.usual_plan();
        plan.ports = vec![port(NetworkId::new(), 5, true)];
        let gate =
            Arc::new(Held { asked: Mutex::default(), announced: Mutex::default(), open: Semaphore::new(0) });
        let gated = {
            let _context = stage.runtime.enter();
            let options = SetOptions { gate: Some(gate.clone()), ..SetOptions::default() };
            SetDriver::new(DOCKER_SOCKET, &dir, Bell::default(), options).expect("a driver")
        };
        let ensured = stage.runtime.spawn({
            let plan = plan.clone();
            async move { gated.ensure(&plan).await }
        });
        eventually("the gate is asked, and the members are made", || {
            let asked = gate.asked.lock().expect("asked").clone();
            let made = stage.host.docker(&["ps", "-aq"]).lines().count();
            if asked == [plan.ports[0].id] && made == 3 { Ok(()) } else { Err((asked, made)) }
        });
        let runs = stage.host.docker(&["ps", "--format", "{{.Names}}"]);
        assert_eq!(runs, stage.container(&plan, "anchor"), "only the anchor runs before the network passes");
        gate.open.add_permits(1);
        stage.run(async { ensured.await.expect("no panic") });
        assert_eq!(*gate.announced.lock().expect("announced"), [plan.ports[0].id]);
        stage.running();
    });
}

#[test]
fn a_set_keeps_its_ports_and_its_volume() {
    on_private_host("a_set_keeps_its_ports_and_its_volume", |host| {
        host.start_switch();
        let dir = host.dir.clone();
        let plugin_runtime = Runtime::new().expect("a runtime");
        serve_plugin(&plugin_runtime, &dir);
        let stage = Stage::new(host);
        let (front, back) = (NetworkId::new(), NetworkId::new());
        let mut plan = stage.usual_plan();
        let second = PortAttachment {
            subnet: "10.8.0.0/24".parse().expect("a subnet"),
            address: "10.8.0.6/24".parse().expect("an address"),
            gateway: Some("10.8.0.1".parse().expect("an address")),
            ..port(back, 6, true)
        };
        plan.ports = vec![port(front, 5, true), second];
        let volume = VolumeId::new();
        plan.volume = Some(VolumeAttachment { id: volume, device: PathBuf::new(), mount: None });
        let mut peer = stage.usual_plan();
        peer.ports = vec![port(front, 7, false)];

        stage.run(stage.driver.prepare(&plan));
        stage.run(stage.driver.ensure(&plan));
        stage.running();
        let words = stage.first_words(&plan, "early");
        assert_eq!(words[9..], ["eth0", "10.7.0.5/24", "0a:00:27:00:00:05"]);
        assert_eq!(stage.first_words(&plan, "late")[9..], words[9..]);
        let early = stage.container(&plan, "early");
        let sees = |command: &str| stage.host.docker(&["exec", &early, "/bin/sh", "-c", command]);
        assert_eq!(sees("cat /sys/class/net/eth1/address"), "0a:00:27:00:00:06");
        let mut twice = stage.usual_plan();
        twice.ports = vec![port(front, 9, true), port(front, 10, true)];
        let refused = stage.refused(stage.driver.prepare(&twice));
        assert!(refused.to_string().contains("10.7.0.0/24"), "{refused}");
        assert_eq!(sees("ip route | grep default"), "default via 10.7.0.1 dev eth0");
        own_name(&sees);
        sees("echo kept > /data/file");
        let late = stage.container(&plan, "late");
        assert_eq!(stage.host.docker(&["exec", &late, "cat", "/data/file"]), "kept");
        assert!(dir.join("volumes").join(volume.to_string()).join("file").exists());

        // Two sets share a network; each start anew keeps the address.
        stage.run(stage.driver.ensure(&peer));
        run("ovs-ofctl", &["add-flow", "br-int", "actions=NORMAL"]);
        sees("ping -c 1 -w 20 10.7.0.7");
        stage.host.docker(&["kill", &stage.container(&plan, "anchor")]);
        eventually("the set is seen to be stopped", || {
            let bodies = stage.run(stage.driver.observe());
            let body = bodies.into_iter().find(|body| body.instance == plan.instance).expect("a body");
            if body.state == ObservedState::Stopped { Ok(()) } else { Err(format!("{body:?}")) }
        });
        stage.run(stage.driver.ensure(&plan));
        own_name(&sees);
        eventually("the second start has the same address", || {
            let log = stage.run(stage.driver.console_log(plan.instance, Some("late"), 100));
            let lines: Vec<_> =
                log.lines().filter(|line| line.contains("10.7.0.5/24 0a:00:27:00:00:05")).collect();
            if lines.len() == 2 { Ok(()) } else { Err(log) }
        });

        // The switch's database goes away: the set's trouble has the network's name, and ends with it.
        stage.run(stage.driver.remove(peer.instance, 5, Remains::Nothing));
        stage.host.docker(&["network", "inspect", &format!("amphi-{front}")]);
        let mut third = stage.usual_plan();
        // The same subnet and address in another network.
        third.ports = vec![port(NetworkId::new(), 5, true)];
        let bodies = |instance| {
            stage.run(stage.driver.observe()).into_iter().filter(|body| body.instance == instance).count()
        };
        run("pkill", &["-STOP", "-F", "/run/openvswitch/ovsdb-server.pid"]);
        let down = stage.refused(stage.driver.ensure(&third));
        assert_eq!(down.code(), "network_down", "{down}");
        run("pkill", &["-CONT", "-F", "/run/openvswitch/ovsdb-server.pid"]);
        stage.run(stage.driver.ensure(&third));
        assert_eq!(bodies(third.instance), 1);
        stage.run(stage.driver.remove(third.instance, 5, Remains::Nothing));

        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        assert_eq!(stage.host.docker(&["ps", "-aq"]), "");
        assert_eq!(stage.host.docker(&["network", "ls", "-q", "--filter", "driver=amphi"]), "");
        let attached = stage.runtime.block_on(async { wiring().switch.observe().await });
        assert_eq!(attached.expect("observable"), []);
    });
}

/// Docker writes a name's addresses on several networks in no fixed order; eth0's has to be found first all the same.
fn own_name(sees: &impl Fn(&str) -> String) {
    let own = sees("awk '/web-1/ {print $1}' /etc/hosts");
    let (first, others) = own.split_once('\n').expect("several addresses");
    assert_eq!(first, "10.7.0.5", "{own}");
    assert!(others.lines().any(|address| address == "10.8.0.6"), "{own}");
    assert_eq!(sees("ping -c 1 -w 5 web-1 | head -1"), "PING web-1 (10.7.0.5): 56 data bytes");
}

#[test]
fn members_are_offered_config_drive_and_keys() {
    on_private_host("members_are_offered_config_drive_and_keys", |host| {
        let stage = Stage::new(host);
        let mut plan = stage.usual_plan();
        plan.user_data = Some("#!/bin/sh\necho größe\n".to_owned());
        plan.ssh_keys = vec!["ssh-ed25519 AAAA a@b".to_owned(), "ssh-rsa BBBB".to_owned()];
        plan.metadata = BTreeMap::from([("tier".to_owned(), "front".to_owned())]);
        stage.run(stage.driver.ensure(&plan));
        stage.running();
        let sees = |member: &str, command: &str| {
            stage.host.docker(&["exec", &stage.container(&plan, member), "/bin/sh", "-c", command])
        };
        let meta_data = |member: &str| -> serde_json::Value {
            let text = sees(member, "cat /config-drive/openstack/latest/meta_data.json");
            serde_json::from_str(&text).expect("JSON")
        };
        for member in ["early", "late"] {
            let told = meta_data(member);
            assert_eq!((&told["uuid"], &told["meta"]["tier"]), (&json!(plan.instance), &json!("front")));
            assert_eq!(told["public_keys"]["key-1"], "ssh-rsa BBBB");
            assert_eq!(sees(member, "sh /config-drive/openstack/latest/user_data"), "größe");
            // What cloud-init's ds-identify looks for.
            sees(member, "test -f /config-drive/openstack/2???-??-??/meta_data.json");
            sees(member, "cmp /config-drive/ec2/latest/user-data /config-drive/openstack/latest/user_data");
            assert_eq!(sees(member, "cat /root/.ssh/authorized_keys"), "ssh-ed25519 AAAA a@b\nssh-rsa BBBB");
            // Nobody but root writes on the way, as sshd wants it.
            for line in sees(member, "stat -c '%u %A %n' / /root /root/.ssh").lines() {
                assert!(line.starts_with("0 ") && &line[7..8] == "-" && &line[10..11] == "-", "{line}");
            }
            assert_eq!(sees(member, "stat -c '%u %g %a' /root/.ssh/authorized_keys"), "0 0 600");
            for path in
                ["/config-drive/x", "/config-drive/openstack/latest/user_data", "/root/.ssh/authorized_keys"]
            {
                let said = sees(member, &format!("echo x 2>&1 >>{path} || true"));
                assert!(said.contains("Read-only file system"), "{path}: {said}");
            }
        }
        let folder = stage.host.path(&format!("agent/instances/{}/set-5", plan.instance));
        let mode = std::fs::metadata(&folder).expect("the body's folder").permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "user data is nobody else's on the host");

        // The next start finds what is ordered then.
        stage.run(stage.driver.stop(plan.instance, Duration::from_secs(5)));
        plan.metadata.insert("tier".to_owned(), "back".to_owned());
        plan.user_data = None;
        stage.run(stage.driver.ensure(&plan));
        stage.running();
        let sees = |command: &str| {
            stage.host.docker(&["exec", &stage.container(&plan, "late"), "/bin/sh", "-c", command])
        };
        assert!(sees("cat /config-drive/openstack/latest/meta_data.json").contains("back"));
        assert_eq!(sees("ls /config-drive/ec2/latest"), "meta-data.json");

        // Without keys, the image's own home stays as it is.
        let keyless = BodyPlan { ssh_keys: Vec::new(), epoch: 6, ..plan.clone() };
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        assert!(!folder.exists());
        stage.run(stage.driver.ensure(&keyless));
        assert_eq!(sees("ls /root/.ssh 2>&1 || true"), "ls: /root/.ssh: No such file or directory");
        stage.run(stage.driver.remove(plan.instance, 6, Remains::Nothing));
        assert_eq!(std::fs::read_dir(stage.host.path("agent/instances")).expect("a folder").count(), 0);
    });
}

#[test]
fn a_set_starts_about_as_fast_as_its_containers_would() {
    on_private_host("a_set_starts_about_as_fast_as_its_containers_would", |host| {
        host.start_switch();
        let dir = host.dir.clone();
        let plugin_runtime = Runtime::new().expect("a runtime");
        serve_plugin(&plugin_runtime, &dir);
        let stage = Stage::new(host);
        // Keeps network and images, so that both find the same.
        let mut warm = stage.usual_plan();
        let network = NetworkId::new();
        warm.ports = vec![port(network, 4, true)];
        stage.run(stage.driver.ensure(&warm));
        let (mut sets, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..9 {
            let mut plan = stage.usual_plan();
            plan.ports = vec![port(network, 5, true)];
            plan.volume = Some(VolumeAttachment { id: VolumeId::new(), device: PathBuf::new(), mount: None });
            let start = Instant::now();
            stage.run(stage.driver.ensure(&plan));
            sets.push(start.elapsed());
            stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
            bare.push(stage.runtime.block_on(bare_containers(&plan, stage.host.path("drive"))));
            stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        }
        sets.sort();
        bare.sort();
        let (set, bare) = (sets[sets.len() / 2], bare[bare.len() / 2]);
        let ratio = set.as_secs_f64() / bare.as_secs_f64();
        println!("set {set:?}, bare {bare:?}, ratio {ratio:.2}");
        assert!(ratio < 1.3, "set {set:?}, three bare containers {bare:?}: {ratio:.2} times");
    });
}

/// The same three containers by plain calls, one after the other.
async fn bare_containers(plan: &BodyPlan, config_drive: PathBuf) -> Duration {
    amphi_hostsrv::storage::filesystem::share(&config_drive).expect("a shared mount");
    let docker = bollard::Docker::connect_with_unix(DOCKER_SOCKET, 60, bollard::API_DEFAULT_VERSION)
        .expect("a client");
    let BodyDesired::Set { set, .. } = &plan.body else { panic!("a set") };
    let images = docker.list_images(None::<ListImagesOptions>).await.expect("images");
    let id = |tag: &str| {
        let found = images.iter().find(|image| image.repo_tags.iter().any(|found| found.starts_with(tag)));
        found.expect("a loaded image").id.clone()
    };
    let resolv_conf = config_drive.with_file_name("resolv.conf");
    std::fs::write(&resolv_conf, "").expect("a file");
    let facts = Facts {
        anchor_image: id("amphi-anchor"),
        privileged_anchor: SetOptions::default().privileged_anchor,
        member_images: vec![id("busybox"); 2],
        authorized_keys: config_drive.clone(),
        resolv_conf,
        volumes: config_drive.clone(),
        files: config_drive.clone(),
        parts: config_drive.clone(),
        config_drive,
    };
    let rendered = render(plan, set, &facts);
    let start = Instant::now();
    for container in [&rendered.anchor, &rendered.members[0].container, &rendered.members[1].container] {
        let options = CreateContainerOptionsBuilder::default().name(&container.name).build();
        docker.create_container(Some(options), container.body.clone()).await.expect("created");
        docker.start_container(&container.name, None).await.expect("started");
    }
    start.elapsed()
}
