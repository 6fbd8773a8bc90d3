//! The metadata service, on a real host: a VM that looks at no drive learns its key and its user data over the network
//! alone, a set's member asks too; who takes on another's address learns nothing of it; it works while the controller is
//! away and again after the agent was killed; and nothing of it is left when the last instance is gone.

use amphi_api::client::{Client, ClientError};
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{Instance, InstanceState};
use amphi_api::{InstanceId, network};
use amphi_integration::face::Face;
use amphi_integration::lab::{Lab, Layout, Output, UpOptions, leftovers};
use amphi_integration::{run, story};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
const SERVICE: &str = "169.254.169.254";
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMhCfQSLmlPL4eQ7M2Ck8SByQ1Vf1F1Fh0W3dKqUn9Yt one@example.org";

struct Asking {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
}

impl Asking {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Also while the controller is yet to answer.
    fn host_up(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.runtime.block_on(self.client.hosts());
            if seen.as_ref().is_ok_and(|hosts| hosts.iter().any(|h| h.state == HostState::Up)) {
                return;
            }
            assert!(Instant::now() < deadline, "h1 is not up: {seen:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn upload(&self, name: &str, format: ImageFormat, cmdline: &str, blobs: &[(BlobRole, &Path)]) {
        let create = ImageCreate { name: name.into(), format, cmdline: cmdline.into() };
        let image = self.ask(self.client.create_image(&create));
        for (role, path) in blobs {
            self.ask(self.client.upload_file(image.id, *role, path, Box::new(|_, _| {})));
        }
    }

    fn create(&self, name: &str, body: Value, address: Option<&str>, user_data: Option<String>) -> Instance {
        let request = json!({"name": name, "vcpus": 1, "memory_mib": 128, "bodies": [body],
            "networks": [{"network": "blue", "address": address}],
            "user_data": user_data, "ssh_keys": [KEY], "metadata": {"of": name}});
        let request = serde_json::from_value(request).expect("a request");
        let id = self.ask(self.client.create_instance(&request)).id;
        let wait = self.client.wait_instance(id, |i| i.state == InstanceState::Running, PATIENCE, |_| ());
        self.ask(wait)
    }

    /// A VM that reads no drive.
    fn vm(&self, name: &str, address: Option<&str>, script: &str) -> Instance {
        self.create(name, json!({"vm": {"image": "vm"}}), address, Some(format!("#!/bin/sh\n{script}\n")))
    }

    /// Waits until the console has this many lines that begin so; the console.
    fn console(&self, of: InstanceId, words: &str, times: usize) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.ask(self.client.console_log(of, Some(1000), None)).text;
            if text.lines().filter(|line| line.starts_with(words)).count() >= times {
                return text;
            }
            assert!(Instant::now() < deadline, "{words:?} not {times} times on the console:\n{text}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn member(&self, set: &Instance, path: &str) -> Output {
        let request = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {SERVICE} 80");
        let script =
            format!("{request} >/tmp/a; head -n 1 /tmp/a | grep -q ' 200 ' && sed '1,/^\r$/d' /tmp/a");
        let container = format!("amphi-{}-only", set.id);
        let docker = ["/usr/bin/docker", "-H", "unix:///run/docker.sock", "exec", &container];
        let words = [&docker[..], &["/bin/sh", "-c", &script]].concat();
        self.lab.exec("h1", &words, Duration::from_secs(20)).expect("exec")
    }

    fn eventually(&self, what: &str, expected: &str, probe: impl Fn() -> Output) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = probe();
            if seen.ok() && seen.stdout.contains(expected) {
                return println!("  {what}");
            }
            assert!(Instant::now() < deadline, "{what}: last seen {}{}", seen.stdout, seen.stderr);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn guests_ask_about_themselves() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("metadata-lab")).expect("lab directory");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 1);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(&layout).expect("client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let t = Asking { lab, client, runtime };
    t.host_up();
    let before = story::residue::on(&t.lab, "h1").expect("looked");
    let archive = images.join("busybox.tar");
    t.upload("busybox", ImageFormat::DockerArchive, "", &[(BlobRole::Archive, &archive)]);
    let (kernel, initramfs) = (images.join("vm-kernel"), images.join("vm-initramfs"));
    let parts: [(BlobRole, &Path); 2] = [(BlobRole::Kernel, &kernel), (BlobRole::Initramfs, &initramfs)];
    t.upload("vm", ImageFormat::KernelInitramfs, "console=ttyS0 quiet amphi.metadata", &parts);
    let blue = json!({"name": "blue", "subnet": {"cidr": "10.6.0.0/24"}});
    let blue: network::NetworkCreate = serde_json::from_value(blue).expect("a network");
    t.ask(t.client.create_network(&blue));

    let told = "echo \"told $(fetch /latest/meta-data/instance-id) $(fetch /latest/meta-data/local-ipv4)\"";
    let one = t.vm("one", Some("10.6.0.11"), told);
    let console = t.console(one.id, "told ", 1);
    assert!(console.contains(&format!("amphi-vm: key {KEY}")), "{console}");
    assert!(console.contains(&format!("told {} 10.6.0.11", one.id)), "{console}");
    println!("  a VM without a drive has its key and its user data");

    // It says aloud that 10.6.0.11 is its own, and asks from there.
    let steal = format!(
        "{told}\nwhile sleep 1; do\nip addr add 10.6.0.11/32 dev eth0 2>/dev/null\n\
         ip route replace 169.254.169.254/32 dev eth0 src 10.6.0.11\narping -q -U -c 1 -I eth0 10.6.0.11\n\
         arping -q -c 1 -w 1 -s 10.6.0.11 -I eth0 169.254.169.254\n\
         if fetch /latest/user-data; then echo stolen; else echo nothing; fi\ndone"
    );
    let two = t.vm("two", None, &steal);
    let address = two.addresses[0].address.to_string();
    let console = t.console(two.id, "told ", 1);
    assert!(console.contains(&format!("told {} {address}", two.id)), "{console}");
    t.console(two.id, "nothing", 2);
    let loose = json!({"port_security_enabled": false, "security_groups": []});
    let port = two.addresses[0].port.to_string();
    Face::of(&layout).and_then(|face| face.change("port", "ports", &port, loose)).expect("changed");
    let already = t.console(two.id, "nothing", 2).matches("\nnothing").count();
    let console = t.console(two.id, "nothing", already + 6);
    assert!(!console.contains("stolen"), "{console}");
    println!("  a VM that takes on another's address learns nothing, port security or not");

    let member = json!({"index": 0, "name": "only", "image": "busybox",
        "command": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"]});
    let set = t.create("set", json!({"set": {"members": [member]}}), None, None);
    let own = set.id.to_string();
    let id = || t.member(&set, "/latest/meta-data/instance-id");
    t.eventually("a set's member asks", &own, id);
    t.eventually("it hears what the drive says", "\"of\": \"set\"", || {
        t.member(&set, "/openstack/latest/meta_data.json")
    });
    assert!(!t.member(&set, "/openstack/latest/user_data").ok());
    let inside = t.lab.exec("h1", &["ip", "-o", "addr"], Duration::from_secs(10)).expect("exec").stdout;
    assert!(!inside.contains("169.254.169.254"), "the host's own network has the address:\n{inside}");

    t.lab.kill("controller", "controller", Signal::SIGKILL).expect("killed");
    let alone = id();
    assert!(alone.ok() && alone.stdout == own, "without a controller: {}{}", alone.stdout, alone.stderr);
    println!("  it is answered while the controller is away");
    t.lab.kill("h1", "hostsrv", Signal::SIGKILL).expect("killed");
    t.lab.start("h1", "hostsrv").expect("started");
    t.eventually("it is answered again once the agent is back, still without a controller", &own, id);
    t.lab.start("controller", "controller").expect("started");
    t.host_up();

    for instance in [&one, &two, &set] {
        t.ask(t.client.delete_instance(instance.id, true));
    }
    for instance in [&one, &two, &set] {
        let gone = t.client.wait_instance_gone(instance.id, |_| false, PATIENCE, |_| {});
        assert_eq!(t.ask(gone), None);
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let now = story::residue::on(&t.lab, "h1").expect("looked");
        let left: Vec<_> = now.difference(&before).collect();
        if left.is_empty() {
            break;
        }
        assert!(Instant::now() < deadline, "left: {left:?}");
        std::thread::sleep(Duration::from_millis(500));
    }
    t.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
