//! Planned moves on two real hosts: both kinds, across kinds, called off, and with the controller killed on the way; and a
//! host that is emptied. At no look do both hosts have a live body, and nothing is left where it was.

use amphi_api::client::{Client, ClientError};
use amphi_api::host::{HostState, MaintenanceCreate};
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{
    BodyKind, BodySpec, Exchange, ExchangePhase as Phase, Instance, InstanceCreate, InstanceNetwork,
    InstanceState, InstanceVolume, MoveCreate, VmSpec,
};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::{InstanceId, network};
use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::{run, story};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const DOCKER: &str =
    "/usr/bin/docker -H unix:///run/docker.sock ps -q --filter status=running --filter label=amphi.instance=";

struct Cloud {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Cloud {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    fn upload(&self, name: &str, format: ImageFormat, blobs: &[(BlobRole, &Path)]) {
        let create = ImageCreate { name: name.into(), format, cmdline: String::new() };
        let image = self.ask(self.client.create_image(&create));
        for (role, path) in blobs {
            self.ask(self.client.upload_file(image.id, *role, path, Box::new(|_, _| {})));
        }
    }

    /// Made on h1, and running there.
    fn instance(&self, name: &str, bodies: Vec<BodySpec>, volume_gib: Option<u64>) -> Instance {
        let request = InstanceCreate {
            name: name.into(),
            vcpus: 1,
            memory_mib: 128,
            bodies,
            networks: vec![InstanceNetwork { network: "blue".into(), address: None }],
            host: Some("h1".into()),
            volume: volume_gib.map(|gib| InstanceVolume { size_gib: Some(gib), name: None, id: None }),
            ..InstanceCreate::default()
        };
        let made = self.ask(self.client.create_instance(&request));
        self.until(made.id, "running", |i| i.state == InstanceState::Running && i.fault.is_none())
    }

    /// Looks until the instance is as wanted. A controller that is away for a moment is no end.
    fn until(&self, id: InstanceId, what: &str, ok: impl Fn(&Instance) -> bool) -> Instance {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.runtime.block_on(self.client.instance(id));
            if let Ok(seen) = &seen
                && ok(seen)
            {
                return seen.clone();
            }
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}, last seen {seen:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Whether the host has a live body of the instance, as its engines say.
    fn lives(&self, host: &str, id: InstanceId) -> bool {
        let sets = format!("{DOCKER}{id}");
        let vms = format!("virsh -q -c qemu:///system list --state-running --uuid | grep {id} || true");
        [sets, vms].iter().any(|command| {
            let told = self.lab.exec(host, &["sh", "-c", command], Duration::from_secs(30)).expect("exec");
            !told.stdout.trim().is_empty()
        })
    }

    /// What a command in the set's only member prints.
    fn in_member(&self, host: &str, id: InstanceId, command: &str) -> String {
        let docker = "/usr/bin/docker -H unix:///run/docker.sock";
        let script = format!("{docker} exec amphi-{id}-only sh -c '{command}'");
        let done = self.lab.exec(host, &["sh", "-c", &script], Duration::from_secs(60)).expect("exec");
        assert!(done.ok(), "{command}: {}{}", done.stdout, done.stderr);
        done.stdout
    }

    fn order(&self, one: &Instance, to: &str, kind: Option<BodyKind>) -> Exchange {
        let request = MoveCreate { to: Some(to.into()), kind, reason: "a test".into() };
        self.ask(self.client.create_move(one.id, &request))
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
            if let Ok(seen) = self.runtime.block_on(self.client.exchange(order.id)) {
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
        self.ask(self.client.delete_instance(id, true));
        assert_eq!(self.ask(self.client.wait_instance_gone(id, |_| false, PATIENCE, |_| {})), None);
    }

    fn restart_controller(&self) {
        self.lab.kill("controller", "controller", Signal::SIGKILL).expect("killed");
        self.lab.start("controller", "controller").expect("started");
    }
}

fn set() -> BodySpec {
    let member = MemberSpec {
        name: "only".into(),
        index: 0,
        image: "busybox".into(),
        command: ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"]
            .map(str::to_owned)
            .to_vec(),
        env: Default::default(),
        options: Default::default(),
    };
    BodySpec::Set(SetSpec { members: vec![member], volume_mount: "/data".into(), ..SetSpec::default() })
}

fn vm() -> BodySpec {
    BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None })
}

#[test]
fn instances_move_and_a_host_is_emptied() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("moves-lab")).expect("lab directory");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 2);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(&layout).expect("client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let c = Cloud { lab, client, runtime };
    let deadline = Instant::now() + PATIENCE;
    while c.ask(c.client.hosts()).iter().filter(|h| h.state == HostState::Up).count() < 2 {
        assert!(Instant::now() < deadline, "the hosts are not up");
        std::thread::sleep(Duration::from_millis(100));
    }
    let residue = |host: &str| story::residue::on(&c.lab, host).expect("looked");
    let before = ["h1", "h2"].map(residue);
    c.upload("busybox", ImageFormat::DockerArchive, &[(BlobRole::Archive, &images.join("busybox.tar"))]);
    let (kernel, initramfs) = (images.join("vm-kernel"), images.join("vm-initramfs"));
    let parts: [(BlobRole, &Path); 2] = [(BlobRole::Kernel, &kernel), (BlobRole::Initramfs, &initramfs)];
    c.upload("vm", ImageFormat::KernelInitramfs, &parts);
    let subnet = serde_json::json!({"name": "blue", "subnet": {"cidr": "10.3.0.0/24"}});
    let subnet: network::NetworkCreate = serde_json::from_value(subnet).expect("a network");
    c.ask(c.client.create_network(&subnet));

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

    println!("called off while the new host cannot answer");
    c.lab.pause("h1/dockerd").expect("paused");
    let order = c.order(&web, "h1", None);
    c.ask(c.client.cancel_exchange(order.id));
    let ended = c.ask(c.client.wait_exchange(order.id, PATIENCE, |_| {}));
    assert_eq!(ended.fault.map(|f| f.code).as_deref(), Some("cancelled"));
    c.lab.resume("h1/dockerd").expect("resumed");
    let same = c.until(web.id, "running where it was", |i| i.state == InstanceState::Running);
    assert_eq!((same.epoch, same.host_name.as_deref()), (web.epoch, Some("h2")));

    println!("a host is emptied, one at a time, and takes nothing new");
    let h2 = c.ask(c.client.find_host("h2")).id;
    let request = MaintenanceCreate { reason: "new fans".into(), at_a_time: Some(1) };
    c.ask(c.client.begin_maintenance(h2, &request));
    let refused = c.runtime.block_on(c.client.create_instance(&InstanceCreate {
        name: "late".into(),
        vcpus: 1,
        memory_mib: 64,
        bodies: vec![set()],
        host: Some("h2".into()),
        ..InstanceCreate::default()
    }));
    assert!(refused.is_err(), "h2 takes something new");
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = c.ask(c.client.host(h2)).maintenance.expect("in maintenance");
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
    c.ask(c.client.end_maintenance(h2));

    c.delete(disk.id);
    c.delete(web.id);
    c.delete(db.id);
    // Leftovers on the switch go after two sweeps.
    let deadline = Instant::now() + PATIENCE;
    for volume in c.ask(c.client.recycle_bin()) {
        c.ask(c.client.purge_volume(volume.id));
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
    c.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
