//! Engines that fail halfway, on a real host: the instance says what is wrong, by a stable word; it converges when the
//! engine is well again; and nothing is left of it afterwards.

use amphi_api::client::Client;
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{BodySpec, Instance, InstanceCreate, InstanceState, InstanceVolume, VmSpec};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::{InstanceId, network};
use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::{run, story};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

/// Longer than the longest bound of an engine's call and the longest pause between two tries.
const PATIENCE: Duration = Duration::from_secs(120);

struct Trouble {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Trouble {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, amphi_api::client::ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    fn upload(&self, name: &str, format: ImageFormat, blobs: &[(BlobRole, &Path)]) {
        let create = ImageCreate { name: name.into(), format, cmdline: String::new() };
        let image = self.ask(self.client.create_image(&create));
        for (role, path) in blobs {
            self.ask(self.client.upload_file(image.id, *role, path, Box::new(|_, _| {})));
        }
    }

    fn set(&self, name: &str, image: &str, volume_gib: Option<u64>) -> Instance {
        let member = MemberSpec {
            name: "only".into(),
            index: 0,
            image: image.into(),
            command: ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"]
                .map(str::to_owned)
                .to_vec(),
            env: Default::default(),
            options: Default::default(),
        };
        let set = SetSpec { members: vec![member], volume_mount: "/data".into(), ..SetSpec::default() };
        self.create(name, BodySpec::Set(set), volume_gib)
    }

    fn create(&self, name: &str, body: BodySpec, volume_gib: Option<u64>) -> Instance {
        let request = InstanceCreate {
            name: name.into(),
            vcpus: 1,
            memory_mib: 128,
            bodies: vec![body],
            networks: vec![amphi_api::instance::InstanceNetwork { network: "blue".into(), address: None }],
            security_groups: vec![],
            volume: volume_gib.map(|gib| InstanceVolume { size_gib: Some(gib), name: None, id: None }),
            user_data: None,
            ssh_keys: vec![],
            metadata: Default::default(),
            failover: Default::default(),
            failover_terms: Default::default(),
            host: None,
            ..InstanceCreate::default()
        };
        self.ask(self.client.create_instance(&request))
    }

    /// Waits for an instance as wanted; panics with the last that was seen.
    fn until(&self, id: InstanceId, what: &str, ok: impl Fn(&Instance) -> bool) -> Instance {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.ask(self.client.instance(id));
            if ok(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}, last seen {seen:#?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn fault(&self, id: InstanceId, codes: &[&str]) {
        let wanted = |i: &Instance| i.fault.as_ref().is_some_and(|f| codes.contains(&f.code.as_str()));
        let seen = self.until(id, &format!("a fault out of {codes:?}"), wanted);
        let fault = seen.fault.expect("seen above");
        assert_eq!(seen.state, InstanceState::Error, "{fault:?}");
        println!("  {}: {}", fault.code, fault.message);
    }

    fn runs(&self, id: InstanceId) {
        self.until(id, "running without a fault", |i| i.state == InstanceState::Running && i.fault.is_none());
    }

    fn delete(&self, id: InstanceId) {
        self.ask(self.client.delete_instance(id, true));
        let gone = self.client.wait_instance_gone(id, |_| false, PATIENCE, |_| {});
        assert_eq!(self.ask(gone), None);
    }

    fn on_host(&self, command: &[&str]) {
        let done = self.lab.exec("h1", command, Duration::from_secs(30)).expect("the host answers");
        assert!(done.ok(), "{command:?}: {}{}", done.stdout, done.stderr);
    }
}

#[test]
fn engines_that_fail_halfway_are_named_and_forgiven() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("trouble-lab")).expect("lab directory");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 1);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(&layout).expect("client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let t = Trouble { lab, client, runtime };
    let deadline = Instant::now() + PATIENCE;
    while !t.ask(t.client.hosts()).iter().any(|h| h.state == HostState::Up) {
        assert!(Instant::now() < deadline, "h1 is not up");
        std::thread::sleep(Duration::from_millis(100));
    }
    let before = story::residue::on(&t.lab, "h1").expect("looked");
    let garbage = layout.images().with_file_name("garbage");
    std::fs::write(&garbage, b"this is no archive").expect("written");
    t.upload("busybox", ImageFormat::DockerArchive, &[(BlobRole::Archive, &images.join("busybox.tar"))]);
    t.upload("garbage", ImageFormat::DockerArchive, &[(BlobRole::Archive, &garbage)]);
    let (kernel, initramfs) = (images.join("vm-kernel"), images.join("vm-initramfs"));
    let parts: [(BlobRole, &Path); 2] = [(BlobRole::Kernel, &kernel), (BlobRole::Initramfs, &initramfs)];
    t.upload("vm", ImageFormat::KernelInitramfs, &parts);
    let subnet = serde_json::json!({"name": "blue", "subnet": {"cidr": "10.3.0.0/24"}});
    let subnet: network::NetworkCreate = serde_json::from_value(subnet).expect("a network");
    t.ask(t.client.create_network(&subnet));

    println!("an image that is none");
    let broken = t.set("broken", "garbage", Some(1));
    t.fault(broken.id, &["image_broken"]);
    t.delete(broken.id);

    println!("a volume group that somebody filled");
    let filler =
        ["lvcreate", "--driverloaded", "n", "-an", "-Zn", "-Wn", "-l", "100%FREE", "-n", "filler", "amphi"];
    t.on_host(&filler);
    let full = t.set("full", "busybox", Some(1));
    t.fault(full.id, &["volume_group_full"]);
    t.on_host(&["lvremove", "--driverloaded", "n", "-y", "amphi/filler"]);
    t.runs(full.id);
    t.delete(full.id);

    println!("a dockerd that hangs");
    t.lab.pause("h1/dockerd").expect("paused");
    let hung = t.set("hung", "busybox", None);
    t.fault(hung.id, &["engine_timeout", "engine_down"]);
    t.lab.resume("h1/dockerd").expect("resumed");
    t.runs(hung.id);
    t.delete(hung.id);

    println!("a libvirtd that hangs");
    t.lab.pause("h1/libvirtd").expect("paused");
    let vm = t.create("vm", BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None }), Some(1));
    t.fault(vm.id, &["engine_timeout", "engine_down"]);
    t.lab.resume("h1/libvirtd").expect("resumed");
    t.runs(vm.id);
    t.delete(vm.id);

    println!("a switch whose database is down");
    t.lab.kill("h1", "ovsdb-server", Signal::SIGKILL).expect("killed");
    let cut = t.set("cut", "busybox", None);
    // The host's own uplink is a port of that switch, so the controller may lose the host before it hears of the fault.
    let dark = |i: &Instance| matches!(i.state, InstanceState::Error | InstanceState::Unknown);
    t.until(cut.id, "in error, or unknown", dark);
    t.lab.start("h1", "ovsdb-server").expect("started");
    t.runs(cut.id);
    t.delete(cut.id);

    let left = |t: &Trouble| -> BTreeSet<String> {
        let now = story::residue::on(&t.lab, "h1").expect("looked");
        now.difference(&before).cloned().collect()
    };
    // Leftovers on the switch go after two sweeps.
    let deadline = Instant::now() + PATIENCE;
    while !t.ask(t.client.recycle_bin()).is_empty() || !left(&t).is_empty() {
        for volume in t.ask(t.client.recycle_bin()) {
            // One that is being purged already refuses a second order.
            let _ = t.runtime.block_on(t.client.purge_volume(volume.id));
        }
        assert!(Instant::now() < deadline, "left: {:?}", left(&t));
        std::thread::sleep(Duration::from_millis(500));
    }
    t.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
