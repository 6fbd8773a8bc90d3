//! From what a project has to what is made of it: images, volumes, key pairs here; networks and servers in the neighbours.
//! Pure. The order is that of need.

use super::super::plan::*;
use super::{Project, called, flag, list, network, server, text};
use amphi_api::set::SetSpec;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What whoever imports has said.
#[derive(Default)]
pub struct Wishes {
    /// Networks of the source, by name or id, and the target's in their place, by id.
    pub networks: BTreeMap<String, String>,
    /// Servers by name or id; none: all of them, and everything else of the project.
    pub servers: BTreeSet<String>,
    /// Servers that run are shut down at the source.
    pub shutdown: bool,
    /// What the servers may become later.
    pub set: Option<SetSpec>,
    /// Images that servers do not need come too.
    pub images: bool,
}

/// The draft that the parts of a plan are written into.
pub(super) struct Draft<'a> {
    pub project: &'a Project,
    pub wishes: &'a Wishes,
    pub items: Vec<Item>,
    pub findings: Vec<Finding>,
    /// What stands for things of the source, by their ids.
    pub refs: BTreeMap<String, Ref>,
    /// By volume: what takes its image away. Not before an instance has the volume: until then it may be made anew elsewhere.
    pub clears: BTreeMap<String, Item>,
}

impl Draft<'_> {
    pub fn item(&mut self, noun: &str, id: &str, name: String, make: Make) -> Ref {
        let key = format!("{noun}/{id}");
        self.items.push(Item { key: key.clone(), name, mark: format!("openstack:{id}"), there: None, make });
        self.refs.insert(id.to_owned(), Ref::Item(key.clone()));
        Ref::Item(key)
    }

    pub fn found(&mut self, fate: Fate, what: &str, name: &str, why: impl Into<String>) {
        self.findings.push(Finding::new(fate, what, name, why));
    }

    pub fn of(&self, id: &str) -> Option<Ref> {
        self.refs.get(id).cloned()
    }
}

/// The plan of a project. `cloud` is how the source is called where it is entered.
pub fn plan(project: &Project, wishes: &Wishes, cloud: &str, place: Place, target: Place) -> Plan {
    let mut draft = Draft {
        project,
        wishes,
        items: Vec::new(),
        findings: Vec::new(),
        refs: BTreeMap::new(),
        clears: BTreeMap::new(),
    };
    let named =
        |s: &Value| wishes.servers.contains(text(s, "id")) || wishes.servers.contains(text(s, "name"));
    let servers: Vec<&Value> =
        project.servers.iter().filter(|s| wishes.servers.is_empty() || named(s)).collect();
    for wish in &wishes.servers {
        if !project.servers.iter().any(|s| text(s, "id") == wish || text(s, "name") == wish) {
            draft.found(Fate::Blocked, "server", wish, "the project has no such server");
        }
    }
    let whole = wishes.servers.is_empty();
    network::networks(&mut draft, &servers, whole);
    network::groups(&mut draft, &servers, whole);
    network::routers(&mut draft, whole);
    key_pairs(&mut draft, &servers, whole);
    if whole && wishes.images {
        images(&mut draft);
    }
    let roots: BTreeSet<String> = servers.iter().filter_map(|s| server::root_volume(project, s)).collect();
    let theirs: BTreeSet<&str> = servers
        .iter()
        .flat_map(|s| project.attachments.get(text(s, "id")).into_iter().flatten())
        .map(|a| text(a, "volumeId"))
        .collect();
    for volume in &project.volumes {
        let id = text(volume, "id");
        if !roots.contains(id) && (whole || theirs.contains(id)) {
            self::volume(&mut draft, volume);
        }
    }
    for server in &servers {
        server::server(&mut draft, server);
    }
    for (_, clear) in std::mem::take(&mut draft.clears) {
        let why = format!(
            "no instance has it: the image {PASSING}{} stays until one has had it, then delete it",
            clear.name
        );
        draft.found(Fate::Changed, "volume", &clear.name, why);
    }
    if whole {
        for ip in &project.floating_ips {
            let address = text(ip, "floating_ip_address");
            draft.found(
                Fate::Left,
                "floating IP",
                address,
                "the address belongs to the source's outside; order a new one",
            );
        }
    }
    let source = Source::Openstack { cloud: cloud.to_owned(), place };
    let shutdown = wishes.shutdown;
    Plan { version: VERSION, source, target, items: draft.items, findings: draft.findings, shutdown }
}

fn key_pairs(draft: &mut Draft, servers: &[&Value], whole: bool) {
    for pair in &draft.project.key_pairs {
        let name = text(pair, "name");
        if !whole && !servers.iter().any(|s| text(s, "key_name") == name) {
            continue;
        }
        let public_key = text(pair, "public_key").trim().to_owned();
        if public_key.starts_with("ssh-") || public_key.starts_with("ecdsa-") {
            draft.item("keypair", name, name.to_owned(), Make::KeyPair { public_key });
        } else {
            draft.found(Fate::Left, "key pair", name, "no SSH key");
        }
    }
}

/// Marks of what an import makes at the source for a while: not to be carried themselves.
pub const PASSING: &str = "amphi-import ";

fn images(draft: &mut Draft) {
    for image in &draft.project.images {
        let (id, name) = (text(image, "id"), called(image));
        if name.starts_with(PASSING) {
            continue;
        }
        if text(image, "status") != "active" {
            draft.found(Fate::Left, "image", &name, format!("is {}", text(image, "status")));
            continue;
        }
        let (disk, container) = (text(image, "disk_format"), text(image, "container_format"));
        if image.get("size").and_then(Value::as_u64).unwrap_or_default() == 0 {
            draft.found(
                Fate::Left,
                "image",
                &name,
                "has no bytes of its own: it stands for snapshots of volumes",
            );
            continue;
        }
        let starts = matches!(
            (container, disk),
            ("bare", "raw" | "qcow2" | "vmdk" | "vhd" | "vhdx") | ("docker", _) | ("amphi-set", _)
        );
        if !starts {
            let why = format!("{container}/{disk}: it is kept and handed out, nothing starts from it");
            draft.found(Fate::Changed, "image", &name, why);
        }
        let figure = |key: &str| image.get(key).and_then(Value::as_u64).unwrap_or_default();
        let make = ImageMake {
            bytes: Bytes::Image { id: id.to_owned() },
            disk_format: disk.to_owned(),
            container_format: container.to_owned(),
            min_disk: figure("min_disk"),
            min_ram: figure("min_ram"),
            properties: properties(image),
        };
        draft.item("image", id, name, Make::Image(make));
    }
}

/// What the owner has written on an image; the services' own words stay behind.
fn properties(image: &Value) -> BTreeMap<String, String> {
    let own = ["os_type", "os_distro", "os_version", "architecture", "os_admin_user"];
    own.iter().filter_map(|key| Some(((*key).to_owned(), image.get(*key)?.as_str()?.to_owned()))).collect()
}

/// The server that a volume is attached to.
fn server_of(volume: &Value) -> Option<String> {
    let server = list(volume, "attachments").first().map(|a| text(a, "server_id").to_owned());
    server.filter(|id| !id.is_empty())
}

fn volume(draft: &mut Draft, volume: &Value) {
    let (id, name) = (text(volume, "id"), called(volume));
    if !matches!(text(volume, "status"), "available" | "in-use") {
        return draft.found(Fate::Left, "volume", &name, format!("is {}", text(volume, "status")));
    }
    let size_gib = volume.get("size").and_then(Value::as_u64).unwrap_or_default();
    if size_gib == 0 || size_gib > amphi_api::validate::VOLUME_GIB_MAX {
        return draft.found(Fate::Left, "volume", &name, format!("has {size_gib} GiB"));
    }
    if flag(volume, "encrypted") == Some(true) {
        return draft.found(Fate::Left, "volume", &name, "is encrypted: its bytes cannot be read out");
    }
    if flag(volume, "multiattach") == Some(true) || list(volume, "attachments").len() > 1 {
        draft.found(Fate::Changed, "volume", &name, "belongs to one instance at a time here");
    }
    let way = ImageMake {
        bytes: Bytes::Volume { id: id.to_owned(), server: server_of(volume) },
        disk_format: "qcow2".into(),
        container_format: "bare".into(),
        min_disk: 0,
        min_ram: 0,
        properties: BTreeMap::new(),
    };
    let key = format!("way/{id}");
    let mark = format!("openstack:way:{id}");
    draft.items.push(Item {
        key: key.clone(),
        name: format!("{PASSING}{name}"),
        mark,
        there: None,
        make: Make::Image(way),
    });
    let image = Ref::Item(key);
    let make = Make::Volume {
        size_gib,
        description: text(volume, "description").to_owned(),
        image: Some(image.clone()),
        bootable: text(volume, "bootable") == "true",
    };
    draft.item("volume", id, name.clone(), make);
    let clear = Item {
        key: format!("clear/{id}"),
        name,
        mark: format!("openstack:clear:{id}"),
        there: None,
        make: Make::Remove { image },
    };
    draft.clears.insert(id.to_owned(), clear);
}
