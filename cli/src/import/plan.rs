//! What an import is going to do, as a file: things to make in their order, each with a mark by which it is found again, and
//! what is mapped, changed or left behind, each with its reason. Refuses to ask anybody anything.

use crate::table::{bytes, rows};
use amphi_api::set::SetSpec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use uuid::Uuid;

/// Of the file's form; another one is refused.
pub const VERSION: u32 = 1;
/// Most things of one plan: more could only be a mistake.
const ITEMS_MAX: usize = 20_000;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub version: u32,
    pub source: Source,
    pub target: Place,
    /// In this order: what is named stands before what names it.
    pub items: Vec<Item>,
    /// What does not come over as it is.
    pub findings: Vec<Finding>,
    /// What runs at the source may be shut down there.
    #[serde(default)]
    pub shutdown: bool,
}

/// Where things come from. No secret stands here: who may read it is said anew by whoever carries the plan out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    Files,
    Libvirt { uri: String },
    Openstack { cloud: String, place: Place },
}

/// A project of a cloud.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Place {
    pub auth_url: String,
    /// The project's id.
    pub project: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// Of this item in this plan, and in the file of what is done: `port/<id at the source>`.
    pub key: String,
    pub name: String,
    /// Written on the thing that is made, and found there again: `openstack:<id at the source>`.
    pub mark: String,
    /// Its id, where an earlier import has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub there: Option<String>,
    pub make: Make,
}

/// Something of the target: made by an item of the plan, or there already.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ref {
    Item(String),
    Id(String),
}

/// What to make. Bodies are as the service takes them, without references.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Make {
    Network {
        body: Map<String, Value>,
    },
    Subnet {
        network: Ref,
        body: Map<String, Value>,
    },
    SecurityGroup {
        description: String,
    },
    Rules {
        group: Ref,
        rules: Vec<Rule>,
    },
    Router {
        body: Map<String, Value>,
        outside: Option<Ref>,
    },
    RouterLeg {
        router: Ref,
        subnet: Ref,
    },
    KeyPair {
        public_key: String,
    },
    Image(ImageMake),
    Volume {
        size_gib: u64,
        description: String,
        image: Option<Ref>,
        bootable: bool,
    },
    Port(PortMake),
    Instance(Box<InstanceMake>),
    Attach {
        instance: Ref,
        volume: Ref,
        device: Option<String>,
    },
    /// Takes away what was only needed on the way.
    Remove {
        image: Ref,
    },
}

/// What a security group's rule says beside the group that it may name.
pub const RULE_FIELDS: [&str; 6] =
    ["direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix"];

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    pub body: Map<String, Value>,
    pub remote_group: Option<Ref>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageMake {
    pub bytes: Bytes,
    /// glance's words for the bytes as they are uploaded: `qcow2` and `bare`.
    pub disk_format: String,
    pub container_format: String,
    #[serde(default)]
    pub min_disk: u64,
    #[serde(default)]
    pub min_ram: u64,
    #[serde(default)]
    pub properties: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortMake {
    pub network: Ref,
    pub mac: Option<String>,
    /// None of them: any free one.
    pub addresses: Vec<Fixed>,
    /// None: the project's own `default`.
    pub groups: Option<Vec<Ref>>,
    #[serde(default)]
    pub body: Map<String, Value>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fixed {
    pub subnet: Option<Ref>,
    pub address: IpAddr,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceMake {
    pub vcpus: u32,
    pub memory_mib: u64,
    pub image: Option<Ref>,
    pub root_gib: Option<u64>,
    /// Networks and ports, eth0's first.
    pub ports: Vec<Connection>,
    pub volume: Option<Ref>,
    pub metadata: BTreeMap<String, String>,
    pub user_data: Option<String>,
    pub ssh_keys: Vec<String>,
    /// A set that it may become later, by `amphi exchange`.
    pub set: Option<SetSpec>,
    /// It was off at the source: it is started once, and then stopped.
    pub stopped: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Connection {
    pub network: Ref,
    pub port: Ref,
}

/// Where an image's bytes are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bytes {
    /// A file of this machine, as it is or by way of `qemu-img`.
    File { path: PathBuf, format: String },
    /// A file within a tar file of this machine; its digest where the manifest tells one.
    Member { archive: PathBuf, name: String, offset: u64, size: u64, digest: Option<Digest>, format: String },
    /// A disk of a libvirt host.
    LibvirtVolume { pool: String, volume: String, format: String, domain: String },
    /// An image of the source.
    Image { id: String },
    /// The root disk of a server of the source, by way of an image that is made there and taken away again.
    ServerDisk { server: String },
    /// A volume of the source, in the same way; the server that it is attached to must be off.
    Volume { id: String, server: Option<String> },
}

/// A digest in lower-case hexadecimal; `algorithm` is `sha1`, `sha256` or `sha512`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Digest {
    pub algorithm: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Something that is there stands in its place.
    Mapped,
    /// It comes over otherwise than it is.
    Changed,
    /// It stays behind.
    Left,
    /// Nothing of this plan can run until it is dealt with.
    Blocked,
}

/// A thing of the source that does not come over as it is, and why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    pub fate: Fate,
    /// `server`, `port`, `device`.
    pub what: String,
    pub name: String,
    pub why: String,
}

impl Finding {
    pub fn new(fate: Fate, what: &str, name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { fate, what: what.to_owned(), name: name.into(), why: why.into() }
    }
}

impl Make {
    /// For the report: what it is.
    pub fn noun(&self) -> &'static str {
        match self {
            Self::Network { .. } => "network",
            Self::Subnet { .. } => "subnet",
            Self::SecurityGroup { .. } => "security group",
            Self::Rules { .. } => "rules",
            Self::Router { .. } => "router",
            Self::RouterLeg { .. } => "router's leg",
            Self::KeyPair { .. } => "key pair",
            Self::Image(_) => "image",
            Self::Volume { .. } => "volume",
            Self::Port(_) => "port",
            Self::Instance(_) => "instance",
            Self::Attach { .. } => "attachment",
            Self::Remove { .. } => "clean-up",
        }
    }

    fn detail(&self) -> String {
        let text =
            |body: &Map<String, Value>, key: &str| body.get(key).and_then(Value::as_str).map(str::to_owned);
        match self {
            Self::Subnet { body, .. } => text(body, "cidr").unwrap_or_default(),
            Self::Rules { rules, .. } => format!("{} rules", rules.len()),
            Self::Image(image) => format!("{} {}", image.disk_format, image.bytes.detail()),
            Self::Volume { size_gib, .. } => bytes(size_gib << 30),
            Self::Port(port) => {
                let all: Vec<_> = port.addresses.iter().map(|a| a.address.to_string()).collect();
                let mac = port.mac.clone().unwrap_or_else(|| "a new MAC".to_owned());
                format!("{mac} {}", if all.is_empty() { "any address".to_owned() } else { all.join(" ") })
            }
            Self::Instance(one) => {
                let later = if one.set.is_some() { ", a set later" } else { "" };
                format!("{} vCPUs, {} MiB{later}", one.vcpus, one.memory_mib)
            }
            Self::Attach { device, .. } => device.clone().unwrap_or_default(),
            _ => String::new(),
        }
    }

    /// What it needs to be there.
    fn needs(&self) -> Vec<&Ref> {
        match self {
            Self::Network { .. } | Self::SecurityGroup { .. } | Self::KeyPair { .. } | Self::Image(_) => {
                Vec::new()
            }
            Self::Subnet { network, .. } => vec![network],
            Self::Rules { group, rules } => {
                std::iter::once(group).chain(rules.iter().filter_map(|r| r.remote_group.as_ref())).collect()
            }
            Self::Router { outside, .. } => outside.iter().collect(),
            Self::RouterLeg { router, subnet } => vec![router, subnet],
            Self::Volume { image, .. } => image.iter().collect(),
            Self::Port(port) => std::iter::once(&port.network)
                .chain(port.addresses.iter().filter_map(|a| a.subnet.as_ref()))
                .chain(port.groups.iter().flatten())
                .collect(),
            Self::Instance(one) => one
                .image
                .iter()
                .chain(&one.volume)
                .chain(one.ports.iter().flat_map(|c| [&c.network, &c.port]))
                .collect(),
            Self::Attach { instance, volume, .. } => vec![instance, volume],
            Self::Remove { image } => vec![image],
        }
    }
}

impl Bytes {
    fn detail(&self) -> String {
        match self {
            Self::File { path, .. } => format!("from {}", path.display()),
            Self::Member { archive, name, size, .. } => {
                format!("from {name} in {}, {}", archive.display(), bytes(*size))
            }
            Self::LibvirtVolume { pool, volume, .. } => format!("from {pool}/{volume}"),
            Self::Image { .. } => "from the image".to_owned(),
            Self::ServerDisk { .. } => "from the server's root disk".to_owned(),
            Self::Volume { .. } => "from the volume".to_owned(),
        }
    }
}

impl Item {
    /// The id that its image gets: the same each time that the same thing comes to the same project.
    pub fn image_id(&self, target: &Place) -> Uuid {
        Uuid::new_v5(
            &Uuid::NAMESPACE_URL,
            format!("amphi-import:{}:{}", target.project, self.mark).as_bytes(),
        )
    }
}

impl Plan {
    /// Whether it can be carried out at all. Errors name the item.
    pub fn check(&self) -> Result<(), String> {
        if self.version != VERSION {
            return Err(format!("version {} of plans; this program knows {VERSION}", self.version));
        }
        if self.items.len() > ITEMS_MAX {
            return Err(format!("{} items; at most {ITEMS_MAX}", self.items.len()));
        }
        let mut before = BTreeSet::new();
        for item in &self.items {
            for need in item.make.needs() {
                if let Ref::Item(key) = need
                    && !before.contains(key.as_str())
                {
                    return Err(format!("{}: needs {key}, which does not stand before it", item.key));
                }
            }
            if !before.insert(item.key.as_str()) {
                return Err(format!("{}: stands there twice", item.key));
            }
        }
        Ok(())
    }

    pub fn blocked(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.fate == Fate::Blocked)
    }

    /// The report for people.
    pub fn report(&self) -> String {
        let item = |item: &Item| {
            let does = if item.there.is_some() { "is there" } else { "is made" };
            vec![does.to_owned(), item.make.noun().to_owned(), item.name.clone(), item.make.detail()]
        };
        let finding = |f: &Finding| {
            let does = match f.fate {
                Fate::Mapped => "is mapped",
                Fate::Changed => "is changed",
                Fate::Left => "stays behind",
                Fate::Blocked => "BLOCKS",
            };
            vec![does.to_owned(), f.what.clone(), f.name.clone(), f.why.clone()]
        };
        let all = self.items.iter().map(item).chain(self.findings.iter().map(finding));
        rows(&["", "WHAT", "NAME", ""], all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(key: &str, make: Make) -> Item {
        Item { key: key.into(), name: key.into(), mark: format!("test:{key}"), there: None, make }
    }

    fn plan(items: Vec<Item>) -> Plan {
        Plan {
            version: VERSION,
            source: Source::Files,
            target: Place { auth_url: "http://c/identity/v3".into(), project: "p".into() },
            items,
            findings: vec![Finding::new(Fate::Left, "floating IP", "1.2.3.4", "the address is the source's")],
            shutdown: false,
        }
    }

    #[test]
    fn order_is_checked_and_files_read_back() {
        let network = || item("network/a", Make::Network { body: Map::new() });
        let subnet = |of: &str| {
            let body = serde_json::from_str(r#"{"cidr": "10.0.0.0/24"}"#).unwrap();
            item("subnet/a", Make::Subnet { network: Ref::Item(of.into()), body })
        };
        let good = plan(vec![network(), subnet("network/a")]);
        assert_eq!(good.check(), Ok(()));
        let text = serde_json::to_string(&good).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), good);
        assert!(good.report().contains("10.0.0.0/24") && good.report().contains("stays behind"));
        assert!(plan(vec![subnet("network/a"), network()]).check().unwrap_err().contains("subnet/a"));
        assert!(plan(vec![network(), network()]).check().unwrap_err().contains("twice"));
        assert!(Plan { version: 2, ..good.clone() }.check().unwrap_err().contains("version 2"));
    }

    #[test]
    fn an_image_s_id_is_of_its_mark_and_project() {
        let one = item("image/a", Make::Network { body: Map::new() });
        let here = Place { auth_url: "x".into(), project: "p".into() };
        let there = Place { project: "q".into(), ..here.clone() };
        assert_eq!(one.image_id(&here), one.image_id(&here));
        assert_ne!(one.image_id(&here), one.image_id(&there));
    }
}
