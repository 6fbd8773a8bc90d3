//! A server: its root disk, its ports, its size, what hangs on it. Pure.

use super::super::plan::*;
use super::plan::Draft;
use super::{Project, called, network, text};
use serde_json::Value;
use std::collections::BTreeMap;

/// The volume that a server boots from, where it boots from one.
pub fn root_volume(project: &Project, server: &Value) -> Option<String> {
    // nova: `image` is "" for a server that boots from a volume.
    if server.get("image").is_some_and(|image| image.is_object()) {
        return None;
    }
    let root = text(server, "OS-EXT-SRV-ATTR:root_device_name");
    let all = project.attachments.get(text(server, "id"))?;
    let named = all.iter().find(|a| !root.is_empty() && text(a, "device") == root);
    let first = || {
        all.iter().find(|a| ["/dev/vda", "/dev/sda", "/dev/xvda", "/dev/hda"].contains(&text(a, "device")))
    };
    let id = text(named.or_else(first).or(all.first())?, "volumeId");
    Some(id.to_owned())
}

/// What the server is made of, in order: root disk's image, ports, the instance, further volumes.
pub fn server(draft: &mut Draft, server: &Value) {
    let (id, name) = (text(server, "id"), called(server));
    let status = text(server, "status");
    match status {
        "SHUTOFF" => {}
        "ACTIVE" if draft.wishes.shutdown => {
            draft.found(
                Fate::Changed,
                "server",
                &name,
                "runs: it is shut down at the source when its turn comes",
            );
        }
        "ACTIVE" | "PAUSED" | "SUSPENDED" => {
            let why = format!(
                "is {status}: its disks hold still only when it is shut off; stop it, or say --shutdown"
            );
            return draft.found(Fate::Blocked, "server", &name, why);
        }
        other => return draft.found(Fate::Left, "server", &name, format!("is {other}")),
    }
    let flavor = |key: &str| server.pointer(&format!("/flavor/{key}")).and_then(Value::as_u64);
    let (Some(vcpus), Some(memory_mib)) = (flavor("vcpus"), flavor("ram")) else {
        let why = "its flavor's figures are not told: the compute service is older than microversion 2.47";
        return draft.found(Fate::Blocked, "server", &name, why);
    };
    let Some(vcpus) = u32::try_from(vcpus).ok().filter(|n| (1..=256).contains(n)) else {
        return draft.found(Fate::Left, "server", &name, format!("has {vcpus} vCPUs; 1 to 256 are possible"));
    };
    let memory_mib = memory_mib.max(16);
    let root = root_volume(draft.project, server);
    let (bytes, root_gib) = match &root {
        Some(volume) => {
            let found = draft.project.volumes.iter().find(|v| text(v, "id") == volume);
            let Some(size) = found.and_then(|v| v.get("size")?.as_u64()) else {
                return draft.found(
                    Fate::Left,
                    "server",
                    &name,
                    format!("its root volume {volume} is not the project's"),
                );
            };
            let why = "boots from a volume: here its root disk is the instance's own";
            draft.found(Fate::Changed, "server", &name, why);
            (Bytes::Volume { id: volume.clone(), server: Some(id.to_owned()) }, size)
        }
        None => (Bytes::ServerDisk { server: id.to_owned() }, flavor("disk").unwrap_or_default()),
    };
    let image = server.pointer("/image/id").and_then(Value::as_str);
    let image = draft.project.images.iter().find(|i| Some(text(i, "id")) == image);
    if image.is_some_and(|i| text(i, "hw_firmware_type") == "uefi") {
        let why = "boots by UEFI, and VMs here have a BIOS: it would not come up";
        return draft.found(Fate::Blocked, "server", &name, why);
    }
    if let Some(extra) = server.pointer("/flavor/extra_specs").and_then(Value::as_object)
        && !extra.is_empty()
    {
        let keys: Vec<_> = extra.keys().map(String::as_str).collect();
        draft.found(Fate::Left, "server", &name, format!("its flavor's extra specs: {}", keys.join(", ")));
    }
    if root_gib > 2048 {
        return draft.found(
            Fate::Left,
            "server",
            &name,
            format!("a root disk of {root_gib} GiB; at most 2048"),
        );
    }
    let image = ImageMake {
        bytes,
        disk_format: "qcow2".into(),
        container_format: "bare".into(),
        min_disk: 0,
        min_ram: 0,
        properties: BTreeMap::new(),
    };
    let key = format!("disk/{id}");
    let mark = format!("openstack:disk:{id}");
    draft.items.push(Item {
        key: key.clone(),
        name: format!("{name}-disk"),
        mark,
        there: None,
        make: Make::Image(image),
    });
    let mut ports = Vec::new();
    let mut networks = Vec::new();
    for port in network::ports_of(draft, server) {
        if networks.contains(&text(port, "network_id")) {
            let mac = text(port, "mac_address");
            draft.found(Fate::Left, "port", &format!("{name} {mac}"), "a second one on the same network");
            continue;
        }
        networks.push(text(port, "network_id"));
        ports.extend(network::port(draft, &name, port));
    }
    if ports.len() > 8 {
        draft.found(Fate::Left, "server", &name, format!("{} ports; the first 8 come", ports.len()));
        ports.truncate(8);
    }
    let attached = draft.project.attachments.get(id).map(Vec::as_slice).unwrap_or_default();
    let further: Vec<(Ref, &str)> = attached
        .iter()
        .filter(|a| root.as_deref() != Some(text(a, "volumeId")))
        .filter_map(|a| Some((draft.of(text(a, "volumeId"))?, text(a, "device"))))
        .collect();
    if draft.wishes.set.is_some() && !further.is_empty() {
        let why =
            "a set cannot mount volumes that were made of a disk's bytes: as a set it has to do without them";
        draft.found(Fate::Changed, "server", &name, why);
    }
    let make = InstanceMake {
        vcpus,
        memory_mib,
        image: Some(Ref::Item(key)),
        root_gib: Some(root_gib).filter(|gib| *gib > 0),
        ports,
        volume: further.first().map(|(volume, _)| volume.clone()),
        metadata: metadata(draft, server, &name),
        user_data: user_data(server),
        ssh_keys: ssh_keys(draft, server),
        set: draft.wishes.set.clone(),
        stopped: status == "SHUTOFF" && !draft.wishes.shutdown,
    };
    draft.found(
        Fate::Changed,
        "server",
        &name,
        "its instance id is a new one: cloud-init treats the first boot as that of a new machine",
    );
    let made = draft.item("server", id, name.clone(), Make::Instance(Box::new(make)));
    for (volume, device) in further.iter().skip(1) {
        let Ref::Item(of) = volume else { continue };
        let item = Item {
            key: format!("attach/{id}/{of}"),
            name: format!("{name} {device}"),
            mark: format!("openstack:attach:{id}:{of}"),
            there: None,
            make: Make::Attach {
                instance: made.clone(),
                volume: volume.clone(),
                device: Some((*device).to_owned()).filter(|d| d.starts_with("/dev/vd")),
            },
        };
        draft.items.push(item);
    }
    for attachment in attached {
        let clear = draft.clears.remove(text(attachment, "volumeId"));
        draft.items.extend(clear);
    }
}

fn metadata(draft: &mut Draft, server: &Value, name: &str) -> BTreeMap<String, String> {
    let Some(all) = server.get("metadata").and_then(Value::as_object) else { return BTreeMap::new() };
    // One pair is the mark's.
    if all.len() > 127 {
        draft.found(Fate::Left, "server", name, "more than 127 pairs of metadata: the first ones come");
    }
    all.iter().take(127).filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect()
}

/// nova tells it to administrators only, as base64; text alone can be carried.
fn user_data(server: &Value) -> Option<String> {
    use base64::Engine;
    let coded = text(server, "OS-EXT-SRV-ATTR:user_data");
    let bytes = base64::engine::general_purpose::STANDARD.decode(coded).ok().filter(|b| !b.is_empty())?;
    String::from_utf8(bytes).ok()
}

fn ssh_keys(draft: &Draft, server: &Value) -> Vec<String> {
    let name = text(server, "key_name");
    let pair = draft.project.key_pairs.iter().find(|k| !name.is_empty() && text(k, "name") == name);
    pair.map(|k| text(k, "public_key").trim().to_owned()).filter(|k| !k.is_empty()).into_iter().collect()
}
