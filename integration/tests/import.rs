//! Imports, by the program itself. A project of one Amphi, by its OpenStack face, comes to another one, hosts in memory on
//! both: the importer is killed over and over and goes on, and nothing is there twice. An OVA as VMware's tools write it.

use amphi_api::host::{HostState, JoinTokenCreate};
use amphi_integration::alone::Controller;
use amphi_integration::alone::agent::{Agent, Home, Size};
use amphi_integration::engines::{EnginePort, HostEngines, Registry};
use amphi_integration::face::Face;
use amphi_integration::lab::{Lab, Layout, UpOptions};
use amphi_integration::wait::{seen, until};
use amphi_integration::{run, story};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(50);
/// How often the importer is killed.
const KILLS: u32 = 12;

/// A controller with two hosts in memory, and its administrator at the OpenStack face.
struct Amphi {
    controller: Controller,
    _agents: Vec<Agent>,
    http: reqwest::Client,
    token: String,
    project: String,
}

impl Amphi {
    async fn raise(purpose: &str) -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
        let folder = program.with_file_name(format!("import-{purpose}-{}", std::process::id()));
        let programs = program.parent().context("the program has no directory")?;
        let controller = Controller::start_in(programs, folder, "[failover]\nautomatic = false\n")?;
        let admin = amphi_api::client::Client::new(controller.url(), &controller.read("admin-token")?)?;
        let registry = Arc::new(Registry::default());
        let mut agents = Vec::new();
        for n in 1..=2 {
            let name = format!("h{n}");
            let state = controller.folder().join(&name);
            let size = Size { cpus: 64, memory_mib: 64 << 10 };
            let home = Home { name: name.clone(), run: state.join("run-0"), state, url: None, size };
            let token = admin.create_join_token(&JoinTokenCreate::default()).await?.token;
            amphi_hostsrv::join::join(&name, &home.pki(), &token).await?;
            let engines = HostEngines::new(&name, registry.clone(), Duration::from_millis(1));
            agents.push(Agent::start(&home, &EnginePort::Here(engines))?);
        }
        let end = Instant::now() + LIMIT;
        while admin.hosts().await?.iter().filter(|h| h.state == HostState::Up).count() < 2 {
            ensure!(Instant::now() < end, "the hosts are not up");
            tokio::time::sleep(LOOK).await;
        }
        let (http, domain) = (reqwest::Client::new(), json!({ "id": "default" }));
        let user =
            json!({ "name": "admin", "domain": domain, "password": controller.read("admin-password")? });
        let auth = json!({ "auth": { "identity": { "methods": ["password"], "password": { "user": user } },
            "scope": { "project": { "name": "admin", "domain": domain } } } });
        let answer =
            http.post(format!("{}/identity/v3/auth/tokens", controller.url())).json(&auth).send().await?;
        let token = answer.headers().get("x-subject-token").context("no token")?.to_str()?.to_owned();
        let body: Value = answer.json().await?;
        let project = body["token"]["project"]["id"].as_str().context("no project")?.to_owned();
        Ok(Self { controller, _agents: agents, http, token, project })
    }

    async fn ask(&self, method: &str, path: &str, body: Option<Value>) -> Result<Value> {
        let path = path.replace("PROJECT", &self.project);
        let mut request = self.http.request(method.parse()?, format!("{}/{path}", self.controller.url()));
        request = request.header("x-auth-token", &self.token).header("openstack-api-version", "compute 2.47");
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
        let (status, text) = (answer.status(), answer.text().await?);
        ensure!(status.is_success(), "{method} {path}: {status} {text}");
        let value: Value = serde_json::from_str(&text).unwrap_or_default();
        let only =
            value.as_object().filter(|map| map.len() == 1).and_then(|map| map.values().next().cloned());
        Ok(only.unwrap_or(value))
    }

    async fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, None).await
    }

    async fn make(&self, path: &str, one: &str, fields: Value) -> Result<String> {
        let made = self.ask("POST", path, Some(json!({ one: fields }))).await?;
        Ok(made["id"].as_str().with_context(|| format!("no id: {made}"))?.to_owned())
    }

    async fn until(&self, path: &str, status: &str) -> Result<()> {
        let end = Instant::now() + LIMIT;
        loop {
            let seen = self.get(path).await?;
            if seen["status"] == status {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{path} is not {status}: {seen}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Things of the project in a list.
    async fn all(&self, path: &str) -> Result<Vec<Value>> {
        let body = self.get(path).await?;
        // glance's lists have more than the list.
        let list = body.as_array().or_else(|| body["images"].as_array());
        Ok(list.with_context(|| format!("{path}: {body}"))?.clone())
    }

    async fn ports(&self) -> Result<BTreeMap<String, String>> {
        let all = self.all("network/v2.0/ports").await?;
        let servers =
            all.iter().filter(|p| p["device_owner"].as_str().is_some_and(|o| o.starts_with("compute:")));
        let text = |p: &Value, at: &str| p.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(servers.map(|p| (text(p, "/mac_address"), text(p, "/fixed_ips/0/ip_address"))).collect())
    }
}

/// What a shop has: a network, a router's leg, a group, two servers that are off with addresses of their own, a volume.
async fn furnish(source: &Amphi) -> Result<()> {
    let network =
        source.make("network/v2.0/networks", "network", json!({ "name": "shop", "mtu": 1400 })).await?;
    let subnet = json!({ "network_id": network, "name": "shop-v4", "cidr": "10.40.0.0/24", "ip_version": 4,
        "gateway_ip": "10.40.0.254", "dns_nameservers": ["10.40.0.2"],
        "allocation_pools": [{ "start": "10.40.0.100", "end": "10.40.0.200" }] });
    let subnet = source.make("network/v2.0/subnets", "subnet", subnet).await?;
    let router = source.make("network/v2.0/routers", "router", json!({ "name": "edge" })).await?;
    let leg = json!({ "subnet_id": subnet });
    source.ask("PUT", &format!("network/v2.0/routers/{router}/add_router_interface"), Some(leg)).await?;
    let group =
        source.make("network/v2.0/security-groups", "security_group", json!({ "name": "web" })).await?;
    for rule in [
        json!({ "security_group_id": group, "direction": "ingress", "protocol": "tcp",
            "port_range_min": 80, "port_range_max": 80, "remote_ip_prefix": "10.0.0.0/8" }),
        json!({ "security_group_id": group, "direction": "ingress", "protocol": "icmp", "remote_group_id": group }),
    ] {
        source.make("network/v2.0/security-group-rules", "security_group_rule", rule).await?;
    }
    let image =
        json!({ "name": "base", "disk_format": "raw", "container_format": "bare", "os_distro": "debian" });
    let image =
        source.ask("POST", "image/v2/images", Some(image)).await?["id"].as_str().context("id")?.to_owned();
    let url = format!("{}/image/v2/images/{image}/file", source.controller.url());
    let put = source.http.put(url).header("x-auth-token", &source.token);
    let put = put.header("content-type", "application/octet-stream").body(vec![7u8; 3 << 20]).send().await?;
    ensure!(put.status().is_success(), "{}", put.status());
    let volume = json!({ "name": "orders", "size": 2, "description": "what was bought" });
    let volume = source.make("volume/v3/PROJECT/volumes", "volume", volume).await?;
    source.until(&format!("volume/v3/PROJECT/volumes/{volume}"), "available").await?;
    for (name, address, mac) in
        [("web", "10.40.0.11", "02:00:00:00:40:11"), ("db", "10.40.0.12", "02:00:00:00:40:12")]
    {
        let port = json!({ "network_id": network, "mac_address": mac, "security_groups": [group],
            "fixed_ips": [{ "subnet_id": subnet, "ip_address": address }] });
        let port = source.make("network/v2.0/ports", "port", port).await?;
        let server = json!({ "name": name, "imageRef": image, "flavorRef": "42", "networks": [{ "port": port }],
            "metadata": { "tier": name } });
        let server = source.make("compute/v2.1/servers", "server", server).await?;
        let path = format!("compute/v2.1/servers/{server}");
        source.until(&path, "ACTIVE").await?;
        if name == "db" {
            let attach = json!({ "volumeAttachment": { "volumeId": volume } });
            source.ask("POST", &format!("{path}/os-volume_attachments"), Some(attach)).await?;
            source.until(&format!("volume/v3/PROJECT/volumes/{volume}"), "in-use").await?;
        }
        source.ask("POST", &format!("{path}/action"), Some(json!({ "os-stop": null }))).await?;
        source.until(&path, "SHUTOFF").await?;
    }
    Ok(())
}

fn clouds(folder: &Path, all: &[(&str, &Amphi)]) -> Result<PathBuf> {
    let cloud = |(name, amphi): &(&str, &Amphi)| -> Result<(String, Value)> {
        let auth = json!({ "auth_url": format!("{}/identity", amphi.controller.url()), "username": "admin",
            "password": amphi.controller.read("admin-password")?, "project_name": "admin" });
        Ok(((*name).to_owned(), json!({ "auth": auth })))
    };
    let all: serde_json::Map<String, Value> = all.iter().map(cloud).collect::<Result<_>>()?;
    let path = folder.join("clouds.yaml");
    // JSON is YAML.
    std::fs::write(&path, json!({ "clouds": all }).to_string())?;
    Ok(path)
}

fn amphi(clouds: &Path, words: &[&str]) -> tokio::process::Command {
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab")).with_file_name("amphi");
    let mut command = tokio::process::Command::new(program);
    command.arg("import").args(words).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("OS_CLIENT_CONFIG_FILE", clouds).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

/// To its end: its output.
async fn done(clouds: &Path, words: &[&str]) -> Result<String> {
    let ended = tokio::time::timeout(LIMIT, amphi(clouds, words).output()).await??;
    let (out, err) = (String::from_utf8_lossy(&ended.stdout), String::from_utf8_lossy(&ended.stderr));
    ensure!(ended.status.success(), "amphi import {}: {}\n{out}\n{err}", words.join(" "), ended.status);
    Ok(out.into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_project_comes_over_once_however_often_the_importer_dies() -> Result<()> {
    let (source, target) = (Amphi::raise("source").await?, Amphi::raise("target").await?);
    furnish(&source).await?;
    let folder = source.controller.folder().to_owned();
    let clouds = clouds(&folder, &[("old", &source), ("new", &target)])?;
    let plan = folder.join("plan.json");
    let plan = plan.to_str().context("a path")?;
    let told = done(&clouds, &["openstack", "--from", "old", "--to", "new", "--report", plan]).await?;
    println!("{told}");
    for word in
        ["02:00:00:00:40:11 10.40.0.11", "10.40.0.0/24", "orders", "default-imported", "nothing was made yet"]
    {
        ensure!(told.contains(word), "the report lacks '{word}'");
    }
    ensure!(target.all("network/v2.0/networks").await?.is_empty(), "a plan makes nothing");

    // Killed at moments that grow, so that it gets a little further each time.
    let run = ["run", plan, "--to", "new"];
    let mut killed = 0;
    for n in 0..KILLS {
        let mut child = amphi(&clouds, &run).spawn()?;
        let moment = Duration::from_millis(120 + 97 * u64::from(n % 7) + 20 * u64::from(n));
        if let Ok(ended) = tokio::time::timeout(moment, child.wait()).await {
            ensure!(ended?.success(), "the import failed");
            break;
        }
        child.kill().await?;
        killed += 1;
    }
    println!("killed {killed} times");
    ensure!(killed > 3, "it was too quick to be killed");
    println!("{}", done(&clouds, &run).await?);

    once(&source, &target).await?;
    // Both again: the plan that is done, and a new plan of the same project.
    done(&clouds, &run).await?;
    let again =
        done(&clouds, &["openstack", "--from", "old", "--to", "new", "--report", plan, "--yes"]).await?;
    ensure!(again.contains("is there") && !again.contains("is made  network"), "{again}");
    once(&source, &target).await
}

/// All is there, once, with the addresses that it had; and nothing is left of what was made on the way.
async fn once(source: &Amphi, target: &Amphi) -> Result<()> {
    let names = |all: Vec<Value>| {
        let mut names: Vec<String> =
            all.iter().filter_map(|v| Some(v["name"].as_str()?.to_owned())).collect();
        names.sort();
        names
    };
    ensure!(names(target.all("network/v2.0/networks").await?) == ["shop"]);
    let subnets = target.all("network/v2.0/subnets").await?;
    ensure!(subnets.len() == 1 && subnets[0]["cidr"] == "10.40.0.0/24", "{subnets:?}");
    ensure!(subnets[0]["gateway_ip"] == "10.40.0.254" && subnets[0]["dns_nameservers"][0] == "10.40.0.2");
    ensure!(subnets[0]["allocation_pools"][0]["start"] == "10.40.0.100", "{subnets:?}");
    ensure!(names(target.all("network/v2.0/routers").await?) == ["edge"]);
    let groups = target.all("network/v2.0/security-groups").await?;
    let web: Vec<_> = groups.iter().filter(|g| g["name"] == "web").collect();
    ensure!(web.len() == 1 && web[0]["security_group_rules"].as_array().map(Vec::len) == Some(4), "{web:?}");
    let theirs = target.ports().await?;
    ensure!(theirs == source.ports().await? && theirs.len() == 2, "{theirs:?}");
    let servers = target.all("compute/v2.1/servers/detail").await?;
    ensure!(names(servers.clone()) == ["db", "web"], "{servers:?}");
    for server in &servers {
        ensure!(server["status"] == "SHUTOFF", "as at the source: {server}");
        ensure!(server["flavor"]["vcpus"] == 1 && server["flavor"]["ram"] == 192, "{server}");
        ensure!(server["metadata"]["tier"] == server["name"], "{server}");
    }
    let volumes = target.all("volume/v3/PROJECT/volumes/detail").await?;
    ensure!(names(volumes.clone()) == ["orders"] && volumes[0]["size"] == 2, "{volumes:?}");
    ensure!(volumes[0]["status"] == "in-use", "{volumes:?}");
    let images = target.all("image/v2/images?limit=100").await?;
    ensure!(names(images.clone()) == ["base", "db-disk", "web-disk"], "{images:?}");
    let before = source.all("image/v2/images?limit=100").await?;
    ensure!(names(before.clone()) == ["base"], "left at the source: {before:?}");
    let base = images.iter().find(|i| i["name"] == "base").context("base")?;
    ensure!(base["os_hash_value"] == before[0]["os_hash_value"] && base["os_distro"] == "debian", "{base}");
    Ok(())
}

/// An OVA of this disk, of so many bytes, as VirtualBox exports it; its machine has 256 MiB.
fn ova(folder: &Path, from: &Path, format: &str, bytes: u64) -> Result<PathBuf> {
    let disk = folder.join("debian-disk001.vmdk");
    let made = std::process::Command::new("qemu-img")
        .args(["convert", "-f", format, "-O", "vmdk", "-o", "subformat=streamOptimized"])
        .args([from, &disk])
        .status()?;
    ensure!(made.success(), "qemu-img convert");
    let descriptor = include_str!("../../cli/src/import/examples/virtualbox.ovf");
    let descriptor = descriptor.replace("8589934592", &bytes.to_string());
    let descriptor = descriptor.replace("<rasd:VirtualQuantity>1024<", "<rasd:VirtualQuantity>256<");
    let sha = |bytes: &[u8]| {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest(bytes))
    };
    let bytes = std::fs::read(&disk)?;
    let manifest = format!(
        "SHA256(debian.ovf)= {}\nSHA256(debian-disk001.vmdk)= {}\n",
        sha(descriptor.as_bytes()),
        sha(&bytes)
    );
    let path = folder.join("debian.ova");
    let mut tar = tar::Builder::new(std::fs::File::create(&path)?);
    let parts: [(&str, &[u8]); 3] = [
        ("debian.ovf", descriptor.as_bytes()),
        ("debian.mf", manifest.as_bytes()),
        ("debian-disk001.vmdk", &bytes),
    ];
    for (name, bytes) in parts {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, bytes)?;
    }
    tar.finish()?;
    Ok(path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ova_becomes_an_instance_with_the_address_that_is_asked_for() -> Result<()> {
    let target = Amphi::raise("ova").await?;
    let network = target.make("network/v2.0/networks", "network", json!({ "name": "blue" })).await?;
    let subnet = json!({ "network_id": network, "cidr": "10.41.0.0/24", "ip_version": 4 });
    target.make("network/v2.0/subnets", "subnet", subnet).await?;
    let folder = target.controller.folder().to_owned();
    let clouds = clouds(&folder, &[("new", &target)])?;
    let raw = folder.join("disk.raw");
    std::fs::write(&raw, (0..4 << 20).map(|n: u32| (n % 251) as u8).collect::<Vec<_>>())?;
    let (file, plan) = (ova(&folder, &raw, "raw", 4 << 20)?, folder.join("ova.json"));
    let (file, plan) = (file.to_str().context("path")?, plan.to_str().context("path")?);
    let words = [
        "ova",
        file,
        "--to",
        "new",
        "--name",
        "shop",
        "--network",
        "blue",
        "--ip",
        "10.41.0.9",
        "--mac",
        "08:00:27:aa:bb:cc",
        "--report",
        plan,
        "--yes",
    ];
    let told = done(&clouds, &words).await?;
    println!("{told}");
    ensure!(told.contains("virtio") && told.contains("qemu-img"), "{told}");
    let ports = target.ports().await?;
    ensure!(ports == BTreeMap::from([("08:00:27:aa:bb:cc".to_owned(), "10.41.0.9".to_owned())]), "{ports:?}");
    let images = target.all("image/v2/images").await?;
    ensure!(images.len() == 1 && images[0]["disk_format"] == "qcow2", "{images:?}");
    // The bytes that went in come out: the disk is the one that the archive had.
    let url = format!(
        "{}/image/v2/images/{}/file",
        target.controller.url(),
        images[0]["id"].as_str().context("id")?
    );
    let bytes = target.http.get(url).header("x-auth-token", &target.token).send().await?.bytes().await?;
    let back = folder.join("back.qcow2");
    std::fs::write(&back, &bytes)?;
    let same = std::process::Command::new("qemu-img")
        .args(["compare", "-f", "raw", "-F", "qcow2"])
        .args([folder.join("disk.raw"), back])
        .output()?;
    ensure!(same.status.success(), "{}", String::from_utf8_lossy(&same.stdout));
    let servers = target.all("compute/v2.1/servers/detail").await?;
    ensure!(servers.len() == 1 && servers[0]["status"] == "ACTIVE", "{servers:?}");

    // libvirt's own test driver: a domain that runs, whose disk lies in no pool.
    let words = [
        "libvirt",
        "test",
        "--uri",
        "test:///default",
        "--to",
        "new",
        "--network",
        "blue",
        "--report",
        plan,
        "--yes",
    ];
    let Err(refused) = done(&clouds, &words).await else { bail!("a domain that runs was read") };
    for word in ["say --shutdown", "lies in no pool", "aa:bb:cc:dd:ee:ff", "nothing was made"] {
        ensure!(refused.to_string().contains(word), "{word}: {refused}");
    }

    // One byte of the disk changed: the manifest says so, and nothing is made.
    let mut broken = std::fs::read(file)?;
    let at = broken.len() - 4096;
    broken[at] ^= 1;
    let other = folder.join("broken.ova");
    std::fs::write(&other, broken)?;
    let words =
        ["ova", other.to_str().context("path")?, "--to", "new", "--name", "two", "--report", plan, "--yes"];
    let Err(refused) = done(&clouds, &words).await else { bail!("a flipped bit went through") };
    ensure!(refused.to_string().contains("was told"), "{refused}");
    ensure!(target.all("compute/v2.1/servers/detail").await?.len() == 1);
    Ok(())
}

/// On a real host: the lab's disk in an OVA becomes a VM that boots, and has the address and the MAC that were asked for.
#[test]
fn an_ova_boots_on_a_real_host() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("import-lab"))?;
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 1);
    let _lab = Lab::up(&options, |_| {})?;
    let client = run::client(&layout)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    until("a host", LIMIT, || {
        let up = runtime.block_on(client.hosts())?.iter().any(|h| h.state == HostState::Up);
        Ok(seen(up, || "none".to_owned()))
    })?;
    let face = Face::of(&layout)?;
    let network = face.make("network", "networks", json!({ "name": "blue" }))?;
    let subnet = json!({ "network_id": network, "cidr": "10.41.0.0/24", "ip_version": 4 });
    face.make("subnet", "subnets", subnet)?;
    let folder = tempfile::tempdir()?;
    let disk = images.join("vm-disk.qcow2");
    let file = ova(folder.path(), &disk, "qcow2", 64 << 20)?;
    let plan = folder.path().join("plan.json");
    let (mac, address) = ("08:00:27:00:41:09", "10.41.0.9");
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab")).with_file_name("amphi");
    let ended = std::process::Command::new(program)
        .args(["import", "ova"])
        .arg(&file)
        .args(["--name", "shop", "--network", "blue", "--ip", address, "--mac", mac, "--yes", "--report"])
        .arg(&plan)
        .envs(story::read_env(&layout.env())?)
        .output()?;
    let told = String::from_utf8_lossy(&ended.stdout);
    println!("{told}");
    ensure!(ended.status.success(), "{told}\n{}", String::from_utf8_lossy(&ended.stderr));
    let all = runtime.block_on(client.instances())?;
    let shop = all.iter().find(|i| i.name == "shop").context("no instance")?;
    ensure!(shop.addresses[0].mac == mac && shop.addresses[0].address.to_string() == address, "{shop:?}");
    until("the guest's own word of its address", Duration::from_secs(120), || {
        let text = runtime.block_on(client.console_log(shop.id, Some(400), None))?.text;
        Ok(seen(text.contains(&format!("amphi-vm: ready {address}")), || text))
    })
}

/// A domain as virt-manager makes it, with this disk.
fn domain_of(disk: &str, mac: &str) -> String {
    format!(
        "<domain type='qemu'><name>shop</name><memory unit='MiB'>192</memory><vcpu>1</vcpu>
        <os><type arch='x86_64' machine='pc'>hvm</type><boot dev='hd'/></os><features><acpi/></features>
        <on_poweroff>destroy</on_poweroff><devices>
        <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/><target dev='vda' bus='virtio'/></disk>
        <interface type='user'><mac address='{mac}'/><model type='virtio'/></interface>
        <serial type='file'><source path='/var/lib/libvirt/images/console'/><target port='0'/></serial>
        <memballoon model='none'/></devices></domain>"
    )
}

/// From a real libvirt, asked over its socket by virsh: a domain that runs is shut down in an orderly way, its disk is read out of a
/// pool, and the instance boots from just those bytes, with the domain's MAC and the address that was asked for.
#[test]
fn a_domain_of_a_real_libvirt_comes_over_and_starts() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-lab"))?;
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 1);
    let lab = Lab::up(&options, |_| {})?;
    let client = run::client(&layout)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    until("a host", LIMIT, || {
        let up = runtime.block_on(client.hosts())?.iter().any(|h| h.state == HostState::Up);
        Ok(seen(up, || "none".to_owned()))
    })?;
    let face = Face::of(&layout)?;
    let network = face.make("network", "networks", json!({ "name": "blue" }))?;
    let subnet = json!({ "network_id": network, "cidr": "10.41.0.0/24", "ip_version": 4 });
    face.make("subnet", "subnets", subnet)?;

    // The source: a domain with a disk of its own, in a folder that is a pool.
    let (host, mac, address) = ("h1", "52:54:00:00:41:17", "10.41.0.17");
    let folder = Path::new("/var/lib/libvirt/images");
    let there = lab.file(host, folder)?;
    std::fs::create_dir_all(&there)?;
    std::fs::copy(images.join("vm-disk.qcow2"), there.join("shop.qcow2"))?;
    std::fs::write(there.join("shop.xml"), domain_of("/var/lib/libvirt/images/shop.qcow2", mac))?;
    let virsh = |words: &[&str]| lab.run(host, &[&["virsh", "--connect", "qemu:///system"], words].concat());
    virsh(&["pool-create-as", "here", "dir", "--target", "/var/lib/libvirt/images"])?;
    virsh(&["define", "/var/lib/libvirt/images/shop.xml"])?;
    virsh(&["start", "shop"])?;
    let booted = "amphi-vm: boot 1 of";
    until("the domain has booted", Duration::from_secs(120), || {
        let text = std::fs::read_to_string(there.join("console")).unwrap_or_default();
        Ok(seen(text.contains(booted) && text.contains("amphi-vm: ready"), || text.clone()))
    })?;

    let socket = lab.file(host, Path::new("/run/libvirt/libvirt-sock"))?;
    let uri = format!("qemu+unix:///system?socket={}", socket.display());
    let beside = tempfile::tempdir()?;
    let plan = beside.path().join("plan.json");
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab")).with_file_name("amphi");
    let import = |further: &[&str]| -> Result<std::process::Output> {
        let mut command = std::process::Command::new(&program);
        command.args(["import", "libvirt", "shop", "--uri", &uri, "--network", "blue", "--ip", address]);
        command.args(further).args(["--yes", "--report"]).arg(&plan);
        Ok(command.envs(story::read_env(&layout.env())?).output()?)
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let refused = import(&[])?;
    ensure!(!refused.status.success(), "a domain that runs was read: {}", text(&refused.stdout));
    let said = text(&refused.stdout) + &text(&refused.stderr);
    ensure!(said.contains("say --shutdown"), "{said}");
    ensure!(virsh(&["domstate", "shop"])?.trim() == "running", "a refused import does nothing");

    let began = Instant::now();
    let ended = import(&["--shutdown"])?;
    println!("{}", text(&ended.stdout));
    ensure!(ended.status.success(), "{}\n{}", text(&ended.stdout), text(&ended.stderr));
    println!("imported after {:.1} s", began.elapsed().as_secs_f32());
    ensure!(virsh(&["domstate", "shop"])?.trim() == "shut off", "the source is off");
    let console = std::fs::read_to_string(there.join("console"))?;
    ensure!(console.contains("amphi-vm: power button") && console.contains("amphi-vm: down"), "{console}");
    let all = runtime.block_on(client.instances())?;
    let shop = all.iter().find(|i| i.name == "shop").context("no instance")?;
    ensure!(shop.addresses[0].mac == mac && shop.addresses[0].address.to_string() == address, "{shop:?}");
    ensure!(shop.memory_mib == 192 && shop.vcpus == 1, "{shop:?}");
    // What the source wrote before it went down is there: the same disk boots for the second time.
    until("the guest's own word", Duration::from_secs(120), || {
        let text = runtime.block_on(client.console_log(shop.id, Some(400), None))?.text;
        let good =
            text.contains(&format!("amphi-vm: ready {address}")) && text.contains("amphi-vm: boot 2 of");
        Ok(seen(good, || text))
    })?;
    lab.down()
}
