//! "I drive it with the tools I have": the unmodified `openstack` program and openstacksdk, on real hosts, for both kinds
//! of body. The commands are the same for both; only the image differs.

use std::path::Path;
use std::time::Duration;

use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::tools::Tools;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A body kind with the image that makes it.
struct Kind {
    name: &'static str,
    file: &'static str,
    disk_format: &'static str,
    container_format: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { name: "set", file: "web.tar", disk_format: "raw", container_format: "docker" },
    Kind { name: "vm", file: "vm-disk.qcow2", disk_format: "qcow2", container_format: "bare" },
];

fn text<'a>(value: &'a Value, key: &str) -> Result<&'a str> {
    value[key].as_str().with_context(|| format!("no text '{key}' in {value}"))
}

/// Images, a flavor, a network with a router to the outside, a group: what both kinds share.
fn prepare(tools: &Tools, images: &Path) -> Result<()> {
    let token = tools.json(&["token", "issue"])?;
    ensure!(text(&token, "id")?.len() > 30, "{token}");
    let services: Vec<Value> = serde_json::from_value(tools.json(&["catalog", "list"])?)?;
    for wanted in ["compute", "identity", "image", "network", "block-storage", "placement"] {
        ensure!(services.iter().any(|s| s["Type"] == wanted), "no {wanted} in {services:?}");
    }
    for kind in &KINDS {
        let file = images.join(kind.file);
        let file = file.to_str().context("a path that is no text")?;
        let (disk, container) = (kind.disk_format, kind.container_format);
        let made = tools.json(&[
            "image",
            "create",
            kind.name,
            "--file",
            file,
            "--disk-format",
            disk,
            "--container-format",
            container,
            "--public",
        ])?;
        ensure!(made["status"] == "active" || made["status"] == "queued", "{made}");
        let shown = tools.json(&["image", "show", kind.name])?;
        ensure!(shown["status"] == "active" && shown["checksum"].is_string(), "{shown}");
    }
    tools.openstack(&["flavor", "create", "small", "--vcpus", "1", "--ram", "256", "--disk", "1"])?;
    tools.openstack(&["flavor", "create", "large", "--vcpus", "1", "--ram", "320", "--disk", "1"])?;
    tools.openstack(&[
        "network",
        "create",
        "outside",
        "--external",
        "--provider-network-type",
        "flat",
        "--provider-physical-network",
        "external",
    ])?;
    tools.openstack(&[
        "subnet",
        "create",
        "outside4",
        "--network",
        "outside",
        "--subnet-range",
        "172.24.4.0/24",
        "--no-dhcp",
    ])?;
    tools.openstack(&["network", "create", "tools"])?;
    let subnet = tools.json(&[
        "subnet",
        "create",
        "tools4",
        "--network",
        "tools",
        "--subnet-range",
        "10.77.0.0/24",
    ])?;
    ensure!(subnet["gateway_ip"] == "10.77.0.1" && subnet["enable_dhcp"] == true, "{subnet}");
    tools.openstack(&["router", "create", "door"])?;
    tools.openstack(&["router", "set", "door", "--external-gateway", "outside"])?;
    tools.openstack(&["router", "add", "subnet", "door", "tools4"])?;
    tools.openstack(&["security", "group", "create", "web"])?;
    tools.openstack(&["security", "group", "rule", "create", "web", "--protocol", "icmp"])?;
    tools.openstack(&[
        "security",
        "group",
        "rule",
        "create",
        "web",
        "--protocol",
        "tcp",
        "--dst-port",
        "80",
    ])?;
    Ok(())
}

/// The life of a server, told by `openstack`.
fn life(tools: &Tools, kind: &str) -> Result<()> {
    let made = tools.json(&[
        "server",
        "create",
        kind,
        "--image",
        kind,
        "--flavor",
        "small",
        "--network",
        "tools",
        "--security-group",
        "web",
        "--property",
        "who=cli",
        "--wait",
    ])?;
    ensure!(made["status"] == "ACTIVE", "{made}");
    let shown = || tools.json(&["server", "show", kind]);
    let status_is = |wanted: &str| -> Result<()> {
        wait(&format!("{kind} is {wanted}"), || {
            let now = shown()?;
            Ok((now["status"] == wanted && now["OS-EXT-STS:task_state"].is_null()).then_some(()).ok_or(now))
        })
    };
    let address =
        text(&made["addresses"]["tools"], "0").map(str::to_owned).or_else(|_| -> Result<String> {
            let first =
                made["addresses"]["tools"][0].as_str().context("no address on the network 'tools'")?;
            Ok(first.to_owned())
        })?;
    ensure!(address.starts_with("10.77.0."), "{address}");

    for (order, then) in [
        ("pause", "PAUSED"),
        ("unpause", "ACTIVE"),
        ("suspend", "SUSPENDED"),
        ("resume", "ACTIVE"),
        ("stop", "SHUTOFF"),
        ("start", "ACTIVE"),
    ] {
        tools.openstack(&["server", order, kind])?;
        status_is(then)?;
    }
    tools.openstack(&["server", "reboot", kind, "--hard", "--wait"])?;
    status_is("ACTIVE")?;
    tools.openstack(&["server", "lock", kind])?;
    tools.openstack(&["server", "unlock", kind])?;

    let volume = format!("{kind}-data");
    tools.openstack(&["volume", "create", &volume, "--size", "1"])?;
    wait("the volume is available", || {
        let now = tools.json(&["volume", "show", &volume])?;
        Ok((now["status"] == "available").then_some(()).ok_or(now))
    })?;
    let attached = tools.json(&["server", "add", "volume", kind, &volume])?;
    ensure!(attached["Device"].as_str().is_some_and(|d| d.starts_with("/dev/vd")), "{attached}");
    wait("the volume is in use", || {
        let now = tools.json(&["volume", "show", &volume])?;
        Ok((now["status"] == "in-use").then_some(()).ok_or(now))
    })?;
    tools.openstack(&["server", "remove", "volume", kind, &volume])?;
    wait("the volume is available again", || {
        let now = tools.json(&["volume", "show", &volume])?;
        Ok((now["status"] == "available").then_some(()).ok_or(now))
    })?;
    tools.openstack(&["volume", "delete", &volume])?;

    let floating = tools.json(&["floating", "ip", "create", "outside"])?;
    let public = text(&floating, "floating_ip_address")?.to_owned();
    tools.openstack(&["server", "add", "floating", "ip", kind, &public])?;
    ensure!(
        shown()?["addresses"].to_string().contains(&public),
        "no {public} among the addresses of {}",
        shown()?
    );
    tools.openstack(&["server", "remove", "floating", "ip", kind, &public])?;
    tools.openstack(&["floating", "ip", "delete", &public])?;

    // A member that says nothing leaves an empty log; a VM's BIOS always speaks.
    wait("its console says something", || {
        let log = tools.openstack(&["console", "log", "show", kind])?;
        Ok((kind != "vm" || !log.trim().is_empty()).then_some(()).ok_or(Value::String(log)))
    })?;
    tools.openstack(&["server", "resize", kind, "--flavor", "large", "--wait"])?;
    status_is("VERIFY_RESIZE")?;
    tools.openstack(&["server", "resize", "confirm", kind])?;
    status_is("ACTIVE")?;
    ensure!(shown()?["flavor"].to_string().contains("large"), "{}", shown()?);
    tools.openstack(&["server", "rebuild", kind, "--image", kind, "--wait"])?;
    status_is("ACTIVE")?;
    ensure!(
        shown()?["addresses"].to_string().contains(&address),
        "another address after all that: {}",
        shown()?
    );

    tools.openstack(&["server", "delete", kind, "--wait"])?;
    let refusal = tools.fails(&[], &["server", "show", kind])?;
    ensure!(
        refusal.contains("No server with a name or ID") || refusal.contains("No Server found"),
        "{refusal}"
    );
    Ok(())
}

/// Somebody of another project sees nothing of it, and cannot change it.
fn strangers(tools: &Tools) -> Result<()> {
    tools.openstack(&["project", "create", "others"])?;
    tools.openstack(&["user", "create", "stranger", "--password", "away-from-home"])?;
    tools.openstack(&["role", "add", "member", "--user", "stranger", "--project", "others"])?;
    let stranger =
        [("OS_USERNAME", "stranger"), ("OS_PASSWORD", "away-from-home"), ("OS_PROJECT_NAME", "others")];
    let network = tools.json(&["network", "show", "tools"])?;
    let seen = tools.openstack_as(&stranger, &["network", "list", "-f", "value", "-c", "Name"])?;
    ensure!(
        !seen.lines().any(|name| name == "tools") && seen.lines().any(|name| name == "outside"),
        "{seen}"
    );
    let refusal = tools.fails(&stranger, &["network", "delete", text(&network, "id")?])?;
    ensure!(!refusal.is_empty());
    let refusal = tools
        .fails(&stranger, &["flavor", "create", "mine", "--vcpus", "1", "--ram", "64", "--disk", "1"])?;
    ensure!(refusal.contains("403"), "{refusal}");
    let wrong = [("OS_PASSWORD", "not it")];
    let refusal = tools.fails(&wrong, &["token", "issue"])?;
    ensure!(refusal.contains("401"), "{refusal}");
    tools.json(&["network", "show", "tools"]).map(drop)
}

fn wait(what: &str, mut look: impl FnMut() -> Result<Result<(), Value>>) -> Result<()> {
    let end = std::time::Instant::now() + Duration::from_secs(120);
    loop {
        match look()? {
            Ok(()) => return Ok(()),
            Err(seen) => {
                ensure!(std::time::Instant::now() < end, "expected within 120 s: {what}; saw {seen:#}")
            }
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn play(layout: &Layout, images: &Path) -> Result<()> {
    let tools = Tools::new(layout)?;
    prepare(&tools, images)?;
    for kind in &KINDS {
        life(&tools, kind.name).with_context(|| format!("openstack drives a {}", kind.name))?;
    }
    let story = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/sdk_story.py");
    let story = story.to_str().context("a path that is no text")?;
    for kind in &KINDS {
        let said = tools.python(&[story, kind.name, kind.name, "small", "tools"])?;
        ensure!(said.ends_with(&format!("sdk: ok {}\n", kind.name)), "{said}");
    }
    strangers(&tools)
}

#[test]
fn the_tools_that_people_have_drive_both_kinds() {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    assert!(
        images.join("vm-disk.qcow2").exists(),
        "no images in {}: run scripts/make-images.sh",
        images.display()
    );
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("tools-lab")).expect("lab directory");
    let options = UpOptions::new(layout.clone(), env!("CARGO_BIN_EXE_amphi-lab").into(), 2);
    let lab = Lab::up(&options, |_| {}).expect("lab up");
    let outcome = play(&layout, &images);
    lab.down().expect("lab down");
    outcome.unwrap_or_else(|error| panic!("{error:#}"));
    assert_eq!(leftovers(&layout), Vec::<String>::new());
}
