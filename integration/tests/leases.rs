//! Leases on real hosts: without the controller every guest runs on; a host that is cut off ends its own in time, and has
//! them back when it is back.

use amphi_api::InstanceId;
use amphi_api::client::Client;
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{BodySpec, FailoverPolicy, Instance, InstanceCreate, InstanceState, VmSpec};
use amphi_api::lease::LeaseTiming;
use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::run;
use nix::sys::signal::Signal;
use serde_json::json;
use std::path::Path;
use std::time::{Duration, Instant};

const HOSTS: [&str; 3] = ["h1", "h2", "h3"];
const CONTROLLER: &str = "controller";
/// Longest wait for what is bound to come.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the controller is away: several leases.
const OUTAGE: Duration = Duration::from_secs(15);
/// Beyond the lease, for a machine that runs other things as well.
const SLACK: Duration = Duration::from_millis(1_500);

struct Stage {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Stage {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, amphi_api::client::ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    fn upload(&self, name: &str, format: ImageFormat, blobs: &[(BlobRole, &Path)]) {
        let image = self.ask(self.client.create_image(&ImageCreate {
            name: name.into(),
            format,
            cmdline: String::new(),
        }));
        for (role, path) in blobs {
            self.ask(self.client.upload_file(image.id, *role, path, Box::new(|_, _| {})));
        }
    }

    /// On this host, and on no other ever.
    fn create(&self, name: &str, host: &str, body: BodySpec) -> InstanceId {
        let request = json!({
            "name": name, "vcpus": 1, "memory_mib": 128, "bodies": [body], "networks": [{"network": "blue"}],
            "host": host, "failover": FailoverPolicy::Never,
        });
        let request: InstanceCreate = serde_json::from_value(request).expect("an instance");
        self.ask(self.client.create_instance(&request)).id
    }

    fn set(&self, name: &str, host: &str) -> InstanceId {
        let command = ["/bin/sh", "-c", "while :; do sleep 1000; done"];
        let member = json!({"name": "only", "index": 0, "image": "busybox", "command": command});
        let set = serde_json::from_value(json!({"members": [member]})).expect("a set");
        self.create(name, host, BodySpec::Set(set))
    }

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

    fn runs(&self, id: InstanceId) {
        self.until(id, "running", |i| i.state == InstanceState::Running && i.fault.is_none());
    }

    /// The guests' processes on a host, each with the time of its start: the same guests give the same text.
    fn guests(&self, host: &str) -> String {
        let script = r#"for p in /proc/[0-9]*; do
            c=$(tr '\0' ' ' <$p/cmdline 2>/dev/null); s=$(cut -d' ' -f22 $p/stat 2>/dev/null)
            case "$c" in /usr/bin/qemu*guest=amphi-*) echo "vm ${p#/proc/} $s";; "/bin/sh -c while :; do sleep 1000"*) echo "set ${p#/proc/} $s";; esac
        done; true"#;
        self.lab.run(host, &["sh", "-c", script]).expect("the host answers")
    }

    fn lease(&self, host: &str) -> serde_json::Value {
        let text = self.lab.run(host, &["cat", "/run/amphi/lease"]).expect("a lease is written down");
        serde_json::from_str(&text).expect("a lease")
    }

    fn boot(&self, host: &str) -> String {
        self.lab.run(host, &["cat", "/run/amphi/boot"]).expect("a boot")
    }

    /// The same guests, and nobody fenced.
    fn unchanged(&self, before: &[(String, String); 3], when: &str) {
        let now = HOSTS.map(|host| (self.guests(host), self.boot(host)));
        assert_eq!(now, *before, "{when}");
    }

    fn in_state(&self, host: &str, state: &str, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let seen = self.lease(host);
            if seen["state"] == state {
                return;
            }
            assert!(Instant::now() < deadline, "{host}: not {state} within {patience:?}: {seen:#}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn stage(layout: &Layout) -> Stage {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), HOSTS.len() as u8);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(layout).expect("client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let stage = Stage { lab, client, runtime };
    let deadline = Instant::now() + PATIENCE;
    while stage.ask(stage.client.hosts()).iter().filter(|h| h.state == HostState::Up).count() < HOSTS.len() {
        assert!(Instant::now() < deadline, "not all hosts are up");
        std::thread::sleep(Duration::from_millis(100));
    }
    stage.upload("busybox", ImageFormat::DockerArchive, &[(BlobRole::Archive, &images.join("busybox.tar"))]);
    let (kernel, initramfs) = (images.join("vm-kernel"), images.join("vm-initramfs"));
    let parts: [(BlobRole, &Path); 2] = [(BlobRole::Kernel, &kernel), (BlobRole::Initramfs, &initramfs)];
    stage.upload("vm", ImageFormat::KernelInitramfs, &parts);
    let subnet = serde_json::from_value(json!({"name": "blue", "subnet": {"cidr": "10.3.0.0/24"}}));
    stage.ask(stage.client.create_network(&subnet.expect("a network")));
    stage
}

#[test]
fn an_outage_of_the_controller_stops_nobody_and_a_lonely_host_stops_itself() {
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("leases-lab")).expect("lab directory");
    let mut stage = stage(&layout);
    let instances = [
        stage.set("one", "h1"),
        stage.create("two", "h1", BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None })),
        stage.set("three", "h2"),
        stage.set("four", "h3"),
    ];
    instances.iter().for_each(|id| stage.runs(*id));
    HOSTS.iter().for_each(|host| stage.in_state(host, "held", PATIENCE));
    let before = HOSTS.map(|host| (stage.guests(host), stage.boot(host)));
    assert_eq!(before[0].0.lines().count(), 2, "{before:?}");

    println!("the controller is away for {OUTAGE:?}");
    stage.lab.kill(CONTROLLER, "controller", Signal::SIGKILL).expect("killed");
    let began = Instant::now();
    HOSTS.iter().for_each(|host| stage.in_state(host, "hold", PATIENCE));
    while began.elapsed() < OUTAGE {
        stage.unchanged(&before, "while the controller is away");
        HOSTS.iter().for_each(|host| assert_eq!(stage.lease(host)["state"], "hold", "{host}"));
        std::thread::sleep(Duration::from_millis(250));
    }
    stage.lab.start(CONTROLLER, "controller").expect("started");
    // The connections of the old client ended with the old controller.
    stage.client = run::client(&layout).expect("client");
    HOSTS.iter().for_each(|host| stage.in_state(host, "held", PATIENCE));
    stage.unchanged(&before, "when the controller is back");

    println!("agent and lease process of h1 are killed and started again");
    stage.lab.kill("h1", "hostsrv", Signal::SIGKILL).expect("killed");
    stage.lab.kill("h1", "lease", Signal::SIGKILL).expect("killed");
    stage.lab.start("h1", "lease").expect("started");
    stage.lab.start("h1", "hostsrv").expect("started");
    stage.in_state("h1", "held", PATIENCE);
    stage.unchanged(&before, "after restarts of both processes");

    println!("h1 is cut off from everybody");
    let others = [CONTROLLER, "h2", "h3"];
    let began = Instant::now();
    others.iter().for_each(|other| stage.lab.cut("h1", other, false).expect("cut"));
    let lease = Duration::from_millis(LeaseTiming::default().term) + SLACK;
    while !stage.guests("h1").is_empty() {
        assert!(began.elapsed() < lease, "after {:?}: {}", began.elapsed(), stage.guests("h1"));
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("  its guests are gone after {:.2} s", began.elapsed().as_secs_f32());
    stage.in_state("h1", "fenced", Duration::ZERO);
    assert_ne!(stage.boot("h1"), before[0].1, "what was ordered before counts no more");
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(stage.guests("h1"), "", "nothing starts while it is fenced");
    for (n, host) in ["h2", "h3"].into_iter().enumerate() {
        assert_eq!((stage.guests(host), stage.boot(host)), before[n + 1], "{host} is not concerned");
    }

    println!("the cut heals");
    others.iter().for_each(|other| stage.lab.heal("h1", other).expect("healed"));
    let began = Instant::now();
    stage.in_state("h1", "held", PATIENCE);
    instances.iter().for_each(|id| stage.runs(*id));
    while stage.guests("h1").lines().count() < 2 {
        assert!(began.elapsed() < PATIENCE, "they are not back: {}", stage.guests("h1"));
        std::thread::sleep(Duration::from_millis(100));
    }
    println!("  its guests are back {:.2} s after the cut has healed", began.elapsed().as_secs_f32());
    assert_ne!(stage.guests("h1"), before[0].0, "they are new bodies");

    instances.iter().for_each(|id| stage.ask(stage.client.delete_instance(*id, true)));
    for id in instances {
        let gone = stage.client.wait_instance_gone(id, |_| false, PATIENCE, |_| {});
        assert_eq!(stage.ask(gone), None);
    }
    stage.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
