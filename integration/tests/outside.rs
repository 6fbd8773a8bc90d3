//! The way out, on three real hosts (leases want three): a router with its gateway on a physical network. A peer outside reaches a set by its
//! floating IP, the set reaches the peer from its router's address; groups filter by remote group, in both directions.
//! A host whose lease process stands still falls silent out there, though nobody can fence it. Everything is ordered through
//! the OpenStack face.

use amphi_api::client::Client;
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{Instance, InstanceCreate, InstanceState};
use amphi_integration::lab::{Lab, Layout, Output, UpOptions, leftovers};
use amphi_integration::{run, story};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};

const HOSTS: u8 = 3;
const PATIENCE: Duration = Duration::from_secs(120);
/// A host's lease, and what it takes to look (docs/lease.md).
const LEASE: Duration = Duration::from_millis(4_000);
/// The peer's address on the physical network, and the name by which hosts know that network.
const PEER: &str = "172.24.4.1";
const PHYSICAL: &str = "external";

struct Outside {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    url: String,
    token: String,
}

impl Outside {
    fn up(layout: &Layout) -> Self {
        let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), HOSTS);
        let lab = Lab::up(&options, |_| {}).expect("lab up");
        let client = run::client(layout).expect("client");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let env = story::read_env(&layout.env()).expect("env");
        let value = |name: &str| env.iter().find(|(key, _)| key == name).expect(name).1.clone();
        let (url, password) = (value("AMPHI_URL"), value("OS_PASSWORD"));
        let http = reqwest::Client::new();
        let project = json!({"name": "admin", "domain": {"id": "default"}});
        let user = json!({"name": "admin", "domain": {"id": "default"}, "password": password});
        let auth = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": project}}});
        let token = runtime.block_on(async {
            let answer =
                http.post(format!("{url}/identity/v3/auth/tokens")).json(&auth).send().await.expect("login");
            answer.headers()["x-subject-token"].to_str().expect("a token").to_owned()
        });
        Self { lab, client, runtime, http, url, token }
    }

    fn ask<T>(&self, answer: impl Future<Output = Result<T, amphi_api::client::ClientError>>) -> T {
        self.runtime.block_on(answer).unwrap_or_else(|error| panic!("{error}"))
    }

    /// An order to the network service; its answer's only part.
    fn network(&self, method: &str, path: &str, body: Value) -> Value {
        let url = format!("{}/network/v2.0/{path}", self.url);
        let request = self.http.request(method.parse().expect("a method"), url);
        let request = request.header("x-auth-token", &self.token).json(&body);
        self.runtime.block_on(async {
            let answer = request.send().await.expect("an answer");
            let status = answer.status();
            let text = answer.text().await.expect("a body");
            assert!(status.is_success(), "{method} {path}: {status} {text}");
            let Ok(Value::Object(map)) = serde_json::from_str(&text) else { return Value::Null };
            if map.len() == 1 { map.into_values().next().unwrap_or_default() } else { Value::Object(map) }
        })
    }

    fn make(&self, one: &str, path: &str, fields: Value) -> String {
        self.network("POST", path, json!({ one: fields }))["id"].as_str().expect("an id").to_owned()
    }

    fn set(&self, name: &str, host: &str, group: &str) -> Instance {
        self.set_on("blue", name, host, group)
    }

    /// It stays where it is, whatever becomes of its host.
    fn set_on(&self, network: &str, name: &str, host: &str, group: &str) -> Instance {
        let request: InstanceCreate = serde_json::from_value(json!({
            "name": name, "vcpus": 1, "memory_mib": 128, "host": host,
            "bodies": [{"set": {"members": [{"index": 0, "name": "only", "image": "busybox",
                "command": ["/bin/sh", "-c", "trap exit TERM; while :; do sleep 1000 & wait $!; done"]}]}}],
            "networks": [{"network": network}], "security_groups": [group], "failover": "never"}))
        .expect("a request");
        let id = self.ask(self.client.create_instance(&request)).id;
        let wait = self.client.wait_instance(id, |i| i.state == InstanceState::Running, PATIENCE, |_| ());
        self.ask(wait)
    }

    fn within(&self, instance: &Instance, words: &[&str]) -> Output {
        let container = format!("amphi-{}-only", instance.id);
        let docker = ["/usr/bin/docker", "-H", "unix:///run/docker.sock", "exec", &container];
        let host = instance.host_name.as_deref().expect("a host");
        self.lab.exec(host, &[&docker[..], words].concat(), Duration::from_secs(20)).expect("exec")
    }

    fn eventually(&self, what: &str, probe: impl Fn() -> Output) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let seen = probe();
            if seen.ok() {
                return println!("  {what}");
            }
            assert!(Instant::now() < deadline, "{what}: last seen {}{}", seen.stdout, seen.stderr);
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn ping(to: &str) -> [&str; 7] {
    ["busybox", "ping", "-c", "1", "-W", "1", to]
}

#[test]
fn a_peer_outside_and_a_set_reach_each_other() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("outside-lab")).expect("lab directory");
    let t = Outside::up(&layout);
    let deadline = Instant::now() + PATIENCE;
    while t.ask(t.client.hosts()).iter().filter(|h| h.state == HostState::Up).count() < usize::from(HOSTS) {
        assert!(Instant::now() < deadline, "{HOSTS} hosts are not up");
        std::thread::sleep(Duration::from_millis(100));
    }
    let create =
        ImageCreate { name: "busybox".into(), format: ImageFormat::DockerArchive, cmdline: String::new() };
    let image = t.ask(t.client.create_image(&create));
    let archive = images.join("busybox.tar");
    t.ask(t.client.upload_file(image.id, BlobRole::Archive, &archive, Box::new(|_, _| {})));

    let outer = t.make(
        "network",
        "networks",
        json!({"name": "world", "router:external": true, "provider:network_type": "flat",
            "provider:physical_network": PHYSICAL}),
    );
    let outer_subnet =
        json!({"network_id": outer, "cidr": "172.24.4.0/24", "ip_version": 4, "enable_dhcp": false});
    t.make("subnet", "subnets", outer_subnet);
    let inner = t.make("network", "networks", json!({"name": "blue"}));
    let subnet =
        t.make("subnet", "subnets", json!({"network_id": inner, "cidr": "10.5.0.0/24", "ip_version": 4}));
    let router =
        t.make("router", "routers", json!({"name": "edge", "external_gateway_info": {"network_id": outer}}));
    t.network("PUT", &format!("routers/{router}/add_router_interface"), json!({"subnet_id": subnet}));
    let open = t.make("security_group", "security-groups", json!({"name": "open"}));
    let ping_in = json!({"security_group_id": open, "direction": "ingress", "protocol": "icmp"});
    t.make("security_group_rule", "security-group-rules", ping_in);
    t.make("security_group", "security-groups", json!({"name": "friends"}));

    // The peer stands on the wire that every host's bridge is on.
    t.lab.run("h1", &["ip", "addr", "add", &format!("{PEER}/24"), "dev", "br-ex"]).expect("a peer");
    let one = t.set("one", "h1", "open");
    let two = t.set("two", "h2", "open");
    for (set, number) in [(&one, 1), (&two, 2)] {
        t.eventually(&format!("set {number} reaches the peer, translated"), || t.within(set, &ping(PEER)));
        let port = set.addresses[0].port;
        let floating = t.network(
            "POST",
            "floatingips",
            json!({"floatingip": {"floating_network_id": outer, "port_id": port}}),
        );
        let address = floating["floating_ip_address"].as_str().expect("an address").to_owned();
        let peer = || t.lab.exec("h1", &ping(&address), Duration::from_secs(10)).expect("exec");
        t.eventually(&format!("the peer reaches set {number} at {address}"), peer);
    }

    // A remote group: only who is in it gets in; and once the rule that lets all out is gone, nobody gets out.
    let friends = t.network("GET", "security-groups?name=friends", Value::Null)[0].clone();
    let from_friends = json!({"security_group_id": friends["id"], "direction": "ingress", "protocol": "icmp",
        "remote_group_id": friends["id"]});
    t.make("security_group_rule", "security-group-rules", from_friends);
    let (a, b) = (t.set("a", "h1", "friends"), t.set("b", "h2", "friends"));
    let to = b.addresses[0].address.to_string();
    t.eventually("a friend reaches a friend", || t.within(&a, &ping(&to)));
    assert!(!t.within(&one, &ping(&to)).ok(), "a stranger reaches a friend");
    let rules = friends["security_group_rules"].as_array().expect("rules").clone();
    for rule in rules.iter().filter(|rule| rule["direction"] == "egress") {
        let id = rule["id"].as_str().expect("an id");
        t.network("DELETE", &format!("security-group-rules/{id}"), Value::Null);
    }
    t.eventually("without a rule for it nothing goes out", || {
        let mut seen = t.within(&a, &ping(&to));
        seen.code = if seen.ok() { Some(1) } else { Some(0) };
        seen
    });
    // One directly on the physical network, on a host whose lease process stands still: nothing ends the guest, and yet
    // nobody out there hears it any more when its lease is over.
    let direct = t.set_on("world", "direct", "h2", "open");
    let to = direct.addresses[0].address.to_string();
    let asks = || t.lab.exec("h1", &ping(&to), Duration::from_secs(10)).expect("exec");
    t.eventually("the peer reaches a set on its own network", asks);
    let dump = ["ovs-ofctl", "-O", "OpenFlow13", "--no-stats", "dump-flows", "br-ex"];
    let flows = || t.lab.exec("h2", &dump, Duration::from_secs(10)).expect("exec").stdout;
    t.eventually("its frames pass by a flow that the switch will forget", || Output {
        code: Some(i32::from(!flows().contains("hard_timeout="))),
        ..asks()
    });
    let guest = || t.within(&direct, &["echo", "alive"]);
    t.lab.kill("h2", "lease", Signal::SIGSTOP).expect("the lease process stands still");
    let stopped = Instant::now();
    while flows().contains("hard_timeout=") {
        assert!(stopped.elapsed() < LEASE, "after {:?}: {}", stopped.elapsed(), flows());
    }
    println!("  forgotten {:.1} s after its lease process stood still", stopped.elapsed().as_secs_f32());
    assert!(guest().ok(), "nobody has ended it");
    assert!(!asks().ok(), "heard after its lease: {}", flows());
    t.lab.kill("h2", "lease", Signal::SIGCONT).expect("the lease process goes on");
    t.eventually("it is back, and the peer reaches it again", asks);
    t.lab.down().expect("lab down");
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
