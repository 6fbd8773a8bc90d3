//! What passes a port, on two real hosts: IPv6 addresses that a VM makes itself of what its router says, a VLAN of the
//! physical network, address pairs and port security, and bandwidth limits by the clock. Everything is ordered through the
//! OpenStack face.

use amphi_api::client::{Client, ClientError};
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{Instance, InstanceState};
use amphi_integration::face::Face;
use amphi_integration::lab::{Lab, Layout, Output, UpOptions, leftovers};
use amphi_integration::run;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(120);
/// What the limited port may send, in kbit/s; and what is sent through it, in KiB.
const LIMIT_KBPS: u64 = 2000;
const SENT_KIB: u64 = 1024;

struct Wires {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
    face: Face,
}

impl Wires {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    fn make(&self, one: &str, collection: &str, fields: Value) -> String {
        self.face.make(one, collection, fields).expect(one)
    }

    fn change_port(&self, of: &Instance, fields: Value) {
        let port = of.addresses[0].port.to_string();
        self.face.change("port", "ports", &port, fields).expect("a changed port");
    }

    fn upload(&self, name: &str, format: ImageFormat, cmdline: &str, blobs: &[(BlobRole, &Path)]) {
        let create = ImageCreate { name: name.into(), format, cmdline: cmdline.into() };
        let image = self.ask(self.client.create_image(&create));
        for (role, path) in blobs {
            self.ask(self.client.upload_file(image.id, *role, path, Box::new(|_, _| {})));
        }
    }

    fn create(
        &self,
        name: &str,
        host: &str,
        network: &str,
        body: Value,
        user_data: Option<&str>,
    ) -> Instance {
        let request = json!({"name": name, "vcpus": 1, "memory_mib": 128, "host": host, "bodies": [body],
            "networks": [{"network": network}], "security_groups": ["open"], "user_data": user_data});
        let request = serde_json::from_value(request).expect("a request");
        let id = self.ask(self.client.create_instance(&request)).id;
        let wait = self.client.wait_instance(id, |i| i.state == InstanceState::Running, PATIENCE, |_| ());
        self.ask(wait)
    }

    fn set(&self, name: &str, host: &str, network: &str) -> Instance {
        let member = json!({"index": 0, "name": "only", "image": "busybox",
            "command": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"]});
        self.create(name, host, network, json!({"set": {"members": [member]}}), None)
    }

    /// A script in the network of a set, with the host's own rights: members have none over their addresses.
    fn within(&self, set: &Instance, script: &str) -> Output {
        let container = format!("amphi-{}-anchor", set.id);
        let docker = "/usr/bin/docker -H unix:///run/docker.sock";
        let find = format!("{docker} inspect --format '{{{{.State.Pid}}}}' {container}");
        let whole = format!("nsenter --net --target $({find}) -- sh -c '{script}'");
        let host = set.host_name.as_deref().expect("a host");
        self.lab.exec(host, &["bash", "-c", &whole], Duration::from_secs(60)).expect("exec")
    }

    fn eventually(&self, what: &str, probe: impl Fn() -> Output) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = probe();
            if seen.ok() {
                return println!("  {what}");
            }
            assert!(Instant::now() < deadline, "{what}: last seen {}{}", seen.stdout, seen.stderr);
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn pings(&self, from: &Instance, to: &str) -> Output {
        self.within(from, &format!("busybox ping -c 1 -W 1 {to}"))
    }

    /// Whether nothing comes back, three times in a row, while what comes back otherwise is known to.
    fn silent(&self, from: &Instance, to: &str) -> bool {
        (0..3).all(|_| !self.pings(from, to).ok())
    }

    /// How long it takes to send what is sent, from one set to another. The receiver's input never ends: else it would
    /// close its half at once, and the sender go.
    fn send(&self, from: &Instance, to: &Instance) -> Duration {
        let address = to.addresses[0].address;
        let bytes = SENT_KIB * 1024;
        std::thread::scope(|scope| {
            let receiver = scope.spawn(|| {
                self.within(
                    to,
                    "rm -f /tmp/w; mkfifo /tmp/w; timeout 50 busybox nc -l -p 7000 <>/tmp/w | busybox wc -c",
                )
            });
            self.eventually("it listens", || self.within(to, "ss -ltn | grep -q :7000"));
            let began = Instant::now();
            let script = format!("busybox head -c {bytes} /dev/zero | timeout 50 busybox nc {address} 7000");
            let sent = self.within(from, &script);
            let received = receiver.join().expect("a receiver");
            let took = began.elapsed();
            assert_eq!(received.stdout.trim(), bytes.to_string(), "{}{}", sent.stderr, received.stderr);
            took
        })
    }
}

#[test]
fn what_passes_a_port() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("wires-lab")).expect("lab directory");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 2);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let client = run::client(&layout).expect("client");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let t = Wires { lab, client, runtime, face: Face::of(&layout).expect("a face") };
    let deadline = Instant::now() + PATIENCE;
    while t.ask(t.client.hosts()).iter().filter(|h| h.state == HostState::Up).count() < 2 {
        assert!(Instant::now() < deadline, "two hosts are not up");
        std::thread::sleep(Duration::from_millis(100));
    }
    t.upload("busybox", ImageFormat::DockerArchive, "", &[(BlobRole::Archive, &images.join("busybox.tar"))]);
    let (kernel, initramfs) = (images.join("vm-kernel"), images.join("vm-initramfs"));
    let parts: [(BlobRole, &Path); 2] = [(BlobRole::Kernel, &kernel), (BlobRole::Initramfs, &initramfs)];
    t.upload("vm", ImageFormat::KernelInitramfs, "", &parts);
    let open = t.make("security_group", "security-groups", json!({"name": "open"}));
    for ethertype in ["IPv4", "IPv6"] {
        let all = json!({"security_group_id": open, "direction": "ingress", "ethertype": ethertype});
        t.make("security_group_rule", "security-group-rules", all);
    }
    let network = |name: &str, provider: Option<u16>| {
        let mut fields = json!({"name": name});
        if let Some(vlan) = provider {
            fields["provider:network_type"] = json!("vlan");
            fields["provider:physical_network"] = json!("external");
            fields["provider:segmentation_id"] = json!(vlan);
        }
        let id = t.make("network", "networks", fields);
        let four = json!({"network_id": id, "cidr": "10.7.0.0/24", "ip_version": 4});
        t.make("subnet", "subnets", four);
        id
    };

    println!("addresses that a VM makes itself");
    let blue = network("blue", None);
    let six = t.make(
        "subnet",
        "subnets",
        json!({"network_id": blue, "cidr": "fd00:7::/64", "ip_version": 6, "ipv6_ra_mode": "slaac",
            "ipv6_address_mode": "slaac"}),
    );
    let router = t.make("router", "routers", json!({"name": "inner"}));
    let interface = format!("network/v2.0/routers/{router}/add_router_interface");
    t.face.order("PUT", &interface, &json!({"subnet_id": six})).expect("an interface");
    let (a, b) = (t.set("a", "h1", "blue"), t.set("b", "h2", "blue"));
    let script = "#!/bin/sh\nwhile sleep 1; do echo \"six $(ip -6 addr show dev eth0 scope global | grep -o 'fd00:7:[^/]*')\"; done\n";
    let vm = t.create("vm", "h1", "blue", json!({"vm": {"image": "vm"}}), Some(script));
    let port = t.face.order("GET", &format!("network/v2.0/ports/{}", vm.addresses[0].port), &Value::Null);
    let port = port.expect("a port");
    let fixed =
        port["fixed_ips"].as_array().expect("addresses").iter().filter_map(|ip| ip["ip_address"].as_str());
    let own = fixed.into_iter().find(|ip| ip.contains(':')).expect("an IPv6 address").to_owned();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = t.ask(t.client.console_log(vm.id, Some(400), None)).text;
        if text.lines().any(|line| line.trim() == format!("six {own}")) {
            break;
        }
        assert!(Instant::now() < deadline, "the VM does not give itself {own}:\n{text}");
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("  the VM has {own} of its router's word");
    t.eventually("a set on the same host reaches it by IPv6", || t.pings(&a, &own));
    t.eventually("a set on the other host too", || t.pings(&b, &own));

    println!("address pairs and port security");
    let spare = "10.7.0.200";
    t.eventually("b reaches a", || t.pings(&b, &a.addresses[0].address.to_string()));
    assert!(t.within(&a, &format!("ip addr add {spare}/32 dev eth0")).ok());
    let from_spare =
        || t.within(&a, &format!("busybox ping -c 1 -W 1 -I {spare} {}", b.addresses[0].address));
    assert!((0..3).all(|_| !from_spare().ok()), "a sends from an address that is not its own");
    assert!(t.silent(&b, spare), "a answers at an address that is not its own");
    t.change_port(&a, json!({"allowed_address_pairs": [{"ip_address": spare}]}));
    t.eventually("with a pair a is reached at the further address", || t.pings(&b, spare));
    t.eventually("and sends from it", from_spare);
    t.change_port(&a, json!({"allowed_address_pairs": []}));
    t.eventually("without it no more", || {
        let mut seen = from_spare();
        seen.code = Some(i32::from(seen.ok()));
        seen
    });
    t.change_port(&a, json!({"port_security_enabled": false, "security_groups": []}));
    t.eventually("without port security it sends what it likes", from_spare);

    println!("a limit, by the clock");
    let free = t.send(&b, &a);
    let policy = t.face.order("POST", "network/v2.0/qos/policies", &json!({"policy": {"name": "slow"}}));
    let policy = policy.expect("a policy")["id"].as_str().expect("an id").to_owned();
    let rule = json!({"bandwidth_limit_rule": {"max_kbps": LIMIT_KBPS, "max_burst_kbps": 200, "direction": "egress"}});
    let rules = format!("network/v2.0/qos/policies/{policy}/bandwidth_limit_rules");
    t.face.order("POST", &rules, &rule).expect("a rule");
    t.change_port(&b, json!({"qos_policy_id": policy}));
    let least = Duration::from_millis(SENT_KIB * 8 * 1024 / LIMIT_KBPS * 7 / 10);
    let deadline = Instant::now() + PATIENCE;
    let limited = loop {
        let took = t.send(&b, &a);
        if took >= least {
            break took;
        }
        assert!(
            Instant::now() < deadline,
            "{SENT_KIB} KiB passed in {took:?}, {LIMIT_KBPS} kbit/s would take {least:?}"
        );
    };
    println!("  {SENT_KIB} KiB take {free:.1?} without a limit, {limited:.1?} with {LIMIT_KBPS} kbit/s");
    assert!(free < least, "{free:?} without a limit");
    assert!(limited < 5 * least, "{limited:?} for {SENT_KIB} KiB: the limit is not what was ordered");

    println!("a VLAN of the physical network");
    network("vlan12", Some(12));
    network("vlan13", Some(13));
    let (c, d) = (t.set("c", "h1", "vlan12"), t.set("d", "h2", "vlan12"));
    let e = t.set("e", "h2", "vlan13");
    t.eventually("the other host is reached on it", || t.pings(&c, &d.addresses[0].address.to_string()));
    assert_ne!(e.addresses[0].address, d.addresses[0].address);
    assert!(t.silent(&e, &d.addresses[0].address.to_string()), "VLAN 12 is heard on VLAN 13");
    t.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
