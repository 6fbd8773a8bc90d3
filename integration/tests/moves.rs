//! Planned moves on two real hosts: both kinds, across kinds, called off, and with the controller killed on the way; and a
//! host that is emptied. At no look do both hosts have a live body, and nothing is left where it was.

use amphi_api::VolumeId;
use amphi_api::client::{Client, ClientError};
use amphi_api::host::MaintenanceCreate;
use amphi_api::instance::{
    BodyKind, BodySpec, Exchange, ExchangePhase as Phase, Instance, InstanceCreate, InstanceState,
    InstanceVolume, MoveCreate,
};
use amphi_api::{InstanceId, volume};
use amphi_integration::face::Face;
use amphi_integration::failing::{PATIENCE, Stage, request, set, vm};
use amphi_integration::lab::{Lab, Layout};
use amphi_integration::story;
use nix::sys::signal::Signal;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

const DOCKER: &str =
    "/usr/bin/docker -H unix:///run/docker.sock ps -q --filter status=running --filter label=amphi.instance=";

struct Cloud {
    stage: Stage,
}

impl Cloud {
    fn lab(&self) -> &Lab {
        &self.stage.lab
    }

    fn client(&self) -> &Client {
        &self.stage.client
    }

    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> T {
        self.stage.ask(answer).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Made on h1, and running there.
    fn instance(&self, name: &str, bodies: Vec<BodySpec>, volume_gib: Option<u64>) -> Instance {
        self.with_volume(name, bodies, "h1", volume_gib.map(|gib| json!({"size_gib": gib})))
    }

    fn with_volume(
        &self,
        name: &str,
        bodies: Vec<BodySpec>,
        host: &str,
        volume: Option<serde_json::Value>,
    ) -> Instance {
        let volume: Option<InstanceVolume> =
            volume.map(|v| serde_json::from_value(v).expect("an instance's volume"));
        let order = InstanceCreate { volume, ..request(name, bodies, Some(host)) };
        self.stage.create(&order).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Looks until the instance is as wanted. A controller that is away for a moment is no end.
    fn until(&self, id: InstanceId, what: &str, ok: impl Fn(&Instance) -> bool) -> Instance {
        self.stage.until(id, what, ok).unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Looks until the volume is as wanted.
    fn volume(&self, id: VolumeId, what: &str, ok: impl Fn(&volume::Volume) -> bool) -> volume::Volume {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.stage.ask(self.client().volume(id));
            if let Ok(seen) = &seen
                && ok(seen)
            {
                return seen.clone();
            }
            assert!(Instant::now() < deadline, "{what}: last seen {seen:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether the host has a live body of the instance, as its engines say.
    fn lives(&self, host: &str, id: InstanceId) -> bool {
        let sets = format!("{DOCKER}{id}");
        let vms = format!("virsh -q -c qemu:///system list --state-running --uuid | grep {id} || true");
        [sets, vms].iter().any(|command| {
            let told = self.lab().exec(host, &["sh", "-c", command], Duration::from_secs(30)).expect("exec");
            !told.stdout.trim().is_empty()
        })
    }

    /// What a command in the set's only member prints; none: it fails.
    fn try_in_member(&self, host: &str, id: InstanceId, command: &str) -> Option<String> {
        let docker = "/usr/bin/docker -H unix:///run/docker.sock";
        let script = format!("{docker} exec amphi-{id}-only sh -c '{command}'");
        let done = self.lab().exec(host, &["sh", "-c", &script], Duration::from_secs(60)).expect("exec");
        done.ok().then_some(done.stdout)
    }

    fn in_member(&self, host: &str, id: InstanceId, command: &str) -> String {
        self.try_in_member(host, id, command).unwrap_or_else(|| panic!("{command} fails on {host}"))
    }

    fn order(&self, one: &Instance, to: &str, kind: Option<BodyKind>) -> Exchange {
        let request = MoveCreate {
            to: Some(to.into()),
            kind,
            live: None,
            reason: "a test".into(),
            ..MoveCreate::default()
        };
        self.ask(self.client().create_move(one.id, &request))
    }

    /// Follows a move to its end; at no look are there two live bodies. `look` is called with each view.
    fn follow(&self, one: &Instance, order: &Exchange, mut look: impl FnMut(&Exchange)) -> Exchange {
        let journey = order.journey.clone().expect("a move");
        let deadline = Instant::now() + PATIENCE;
        loop {
            // The new host is asked first: what lives on the old one after that lived beside it.
            let there = self.lives(&journey.to_name, one.id);
            let here = self.lives(&journey.from_name, one.id);
            assert!(!(there && here), "{} lives on both hosts", one.name);
            if let Ok(seen) = self.stage.ask(self.client().exchange(order.id)) {
                look(&seen);
                if matches!(seen.phase, Phase::Done | Phase::Failed) {
                    return seen;
                }
            }
            assert!(Instant::now() < deadline, "{}: its move does not end", one.name);
        }
    }

    /// It has arrived, with all that makes it what it is.
    fn arrived(&self, before: &Instance, host: &str, kind: BodyKind) -> Instance {
        let after =
            self.until(before.id, "running", |i| i.state == InstanceState::Running && i.fault.is_none());
        assert_eq!((after.host_name.as_deref(), after.body), (Some(host), kind), "{}", before.name);
        assert_eq!(after.addresses, before.addresses, "{}", before.name);
        assert!(after.epoch > before.epoch);
        assert!(self.lives(host, before.id), "{} lives on {host}", before.name);
        after
    }

    fn delete(&self, id: InstanceId) {
        self.stage.delete(id).unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn restart_controller(&self) {
        self.lab().kill("controller", "controller", Signal::SIGKILL).expect("killed");
        self.lab().start("controller", "controller").expect("started");
    }
}

/// A volume whose bytes are on the other host is attached by an OpenStack client, which knows of no hosts.
fn attached_from_afar(c: &Cloud, server: &Instance) {
    println!("a volume is attached to a server on another host, the controller killed on the way");
    let writer = c.instance("writer", vec![set()], Some(1));
    let id = writer.volume.expect("its volume");
    let write = "dd if=/dev/urandom of=/data/bytes bs=1M count=20 2>/dev/null; sync; sha256sum </data/bytes";
    let written = c.in_member("h1", writer.id, write);
    c.ask(c.client().delete_instance(writer.id, false));
    assert_eq!(c.ask(c.client().wait_instance_gone(writer.id, |_| false, PATIENCE, |_| {})), None);
    // The controller's restart breaks the connection: each order has one of its own.
    let order = |method: &str, path: &str, body: serde_json::Value| {
        let face = Face::of(c.lab().layout()).expect("logged in");
        face.order(method, path, &body).unwrap_or_else(|error| panic!("{error:#}"))
    };
    let path = format!("compute/v2.1/servers/{}/os-volume_attachments", server.id);
    let began = Instant::now();
    let made = order("POST", &path, json!({"volumeAttachment": {"volumeId": id}}));
    let device = made["device"].as_str().expect("a device").trim_start_matches("/dev/").to_owned();
    let status = || order("GET", &format!("volume/v3/volumes/{id}"), json!({}))["status"].clone();
    assert_eq!(status(), "attaching");
    c.restart_controller();
    c.volume(id, "on the server's host", |v| v.host_name == "h2" && v.state == volume::VolumeState::InUse);
    let (seen, deadline) = (format!("sha256sum </volumes/{device}/bytes"), Instant::now() + PATIENCE);
    while c.try_in_member("h2", server.id, &seen).as_ref() != Some(&written) {
        assert!(Instant::now() < deadline, "the member does not see the bytes");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(status(), "in-use");
    println!("  the member has its bytes after {:.1} s", began.elapsed().as_secs_f64());
    order("DELETE", &format!("{path}/{id}"), json!({}));
    c.volume(id, "free", |v| v.state == volume::VolumeState::Available);

    println!("a set is made on h1 of the volume on h2: it starts when the bytes are there");
    let reader = c.with_volume("reader", vec![set()], "h1", Some(json!({"id": id})));
    assert_eq!(c.in_member("h1", reader.id, "sha256sum </data/bytes"), written, "the same bytes");

    println!("and one on h2 of a snapshot on h1");
    let order = serde_json::from_value(json!({"name": "then"})).expect("a snapshot");
    let then = c.ask(c.client().create_snapshot(id, &order)).id;
    let deadline = Instant::now() + PATIENCE;
    while c.ask(c.client().snapshot(then)).state != volume::SnapshotState::Available {
        assert!(Instant::now() < deadline, "no snapshot");
        std::thread::sleep(Duration::from_millis(100));
    }
    let order = json!({"name": "copy", "snapshot": then, "host": "h2", "size_gib": 2});
    let copy = c.ask(c.client().create_volume(&serde_json::from_value(order).expect("a volume"))).id;
    c.volume(copy, "made", |v| v.state == volume::VolumeState::Available);
    let copied = c.with_volume("copied", vec![set()], "h2", Some(json!({"id": copy})));
    assert_eq!(c.in_member("h2", copied.id, "sha256sum </data/bytes"), written, "the same bytes");
    let room = c.in_member("h2", copied.id, "df -Pm /data | tail -n 1");
    let mib = room.split_whitespace().nth(1).and_then(|mib| mib.parse::<u64>().ok());
    assert!(mib.is_some_and(|mib| mib > 1500), "as large as it was ordered: {room}");
    c.ask(c.client().delete_snapshot(then));
    c.delete(copied.id);
    c.delete(reader.id);
}

#[test]
fn instances_move_and_a_host_is_emptied() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("moves-lab")).expect("lab directory");
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout, &images, program, 2, |_| {}).expect("two hosts");
    let c = Cloud { stage };
    let residue = |host: &str| story::residue::on(c.lab(), host).expect("looked");
    let before = ["h1", "h2"].map(residue);

    println!("a set and a VM to another host");
    let web = c.instance("web", vec![set(), vm()], None);
    let db = c.instance("db", vec![vm()], None);
    for (one, kind) in [(&web, BodyKind::Set), (&db, BodyKind::Vm)] {
        let done = c.follow(one, &c.order(one, "h2", None), |_| ());
        assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
        c.arrived(one, "h2", kind);
        println!("  {}: nothing ran for {} ms", one.name, done.outage_ms.unwrap_or_default());
    }

    println!("back, as the other kind");
    let done = c.follow(&web, &c.order(&web, "h1", Some(BodyKind::Vm)), |_| ());
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    let web = c.arrived(&web, "h1", BodyKind::Vm);

    println!("the controller is killed while it prepares, and while the body leaves");
    let order = c.order(&web, "h2", Some(BodyKind::Set));
    c.restart_controller();
    let mut killed = BTreeSet::new();
    let done = c.follow(&web, &order, |seen| {
        if seen.phase == Phase::Leaving && killed.insert("leaving") {
            c.restart_controller();
        }
    });
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    let web = c.arrived(&web, "h2", BodyKind::Set);
    println!("  killed while preparing {}", if killed.is_empty() { "only" } else { "and while leaving" });

    println!("a volume goes along");
    let disk = c.instance("disk", vec![set()], Some(1));
    let written = c.in_member(
        "h1",
        disk.id,
        "dd if=/dev/urandom of=/data/bytes bs=1M count=20 2>/dev/null; sync; sha256sum /data/bytes",
    );
    let order = c.order(&disk, "h2", None);
    let done = c.follow(&disk, &order, |seen| {
        if seen.phase == Phase::Copying && killed.insert("copying") {
            c.restart_controller();
        }
    });
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    let disk = c.arrived(&disk, "h2", BodyKind::Set);
    assert_eq!(c.in_member("h2", disk.id, "sha256sum /data/bytes"), written, "the same bytes");
    println!("  nothing ran for {} ms", done.outage_ms.unwrap_or_default());

    let goes_along = disk.id;
    attached_from_afar(&c, &web);

    println!("called off while the new host cannot answer");
    c.lab().pause("h1/dockerd").expect("paused");
    let order = c.order(&web, "h1", None);
    c.ask(c.client().cancel_exchange(order.id));
    let ended = c.ask(c.client().wait_exchange(order.id, PATIENCE, |_| {}));
    assert_eq!(ended.fault.map(|f| f.code).as_deref(), Some("cancelled"));
    c.lab().resume("h1/dockerd").expect("resumed");
    let same = c.until(web.id, "running where it was", |i| i.state == InstanceState::Running);
    assert_eq!((same.epoch, same.host_name.as_deref()), (web.epoch, Some("h2")));

    println!("a host is emptied, one at a time, and takes nothing new");
    let h2 = c.ask(c.client().find_host("h2")).id;
    let fans = MaintenanceCreate { reason: "new fans".into(), at_a_time: Some(1) };
    c.ask(c.client().begin_maintenance(h2, &fans));
    let refused = c.stage.order(&request("late", vec![set()], Some("h2")));
    assert!(refused.is_err(), "h2 takes something new");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = c.ask(c.client().host(h2)).maintenance.expect("in maintenance");
        assert!(now.moving <= 1, "{now:?}");
        if now.left == 0 && now.moving == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "not empty: {now:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    c.arrived(&web, "h1", BodyKind::Set);
    c.until(db.id, "running on h1", |i| {
        i.state == InstanceState::Running && i.host_name.as_deref() == Some("h1")
    });
    assert!(!c.lives("h2", web.id) && !c.lives("h2", db.id));
    c.ask(c.client().end_maintenance(h2));

    c.delete(goes_along);
    c.delete(web.id);
    c.delete(db.id);
    // Leftovers on the switch go after two sweeps.
    let deadline = Instant::now() + PATIENCE;
    for volume in c.ask(c.client().recycle_bin()) {
        c.ask(c.client().purge_volume(volume.id));
    }
    let left = || -> Vec<String> {
        let hosts = ["h1", "h2"].iter().zip(&before);
        hosts
            .flat_map(|(host, before)| residue(host).difference(before).cloned().collect::<Vec<_>>())
            .collect()
    };
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", left());
        std::thread::sleep(Duration::from_millis(500));
    }
    c.stage.down().expect("lab down");
}
