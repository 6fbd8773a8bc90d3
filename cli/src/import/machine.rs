//! One machine out of files or of a libvirt host, as a plan: its first disk is the instance's, the others become volumes, its
//! cards become ports on the target's networks that are named for them. Pure.

use super::plan::*;
use amphi_api::set::SetSpec;
use serde_json::Map;
use std::collections::BTreeMap;
use std::net::IpAddr;

const GIB: u64 = 1 << 30;

/// A machine as it was found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub name: String,
    /// What tells it from every other: `ova:<digest>`.
    pub mark: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The first boots.
    pub disks: Vec<Disk>,
    pub cards: Vec<Card>,
    /// It was off, and is to be off here.
    pub stopped: bool,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    pub name: String,
    pub bytes: Bytes,
    pub format: String,
    /// Of the disk as the guest sees it, in bytes; 0: not known.
    pub capacity: u64,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    /// The network's name at the source.
    pub network: String,
    pub mac: Option<String>,
    pub addresses: Vec<IpAddr>,
}

/// What whoever imports has said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wishes {
    /// Of the target, id and name; one for each card, in their order.
    pub networks: Vec<(String, String)>,
    pub addresses: Vec<IpAddr>,
    pub macs: Vec<String>,
    pub set: Option<SetSpec>,
    pub ssh_keys: Vec<String>,
    pub shutdown: bool,
}

/// `qcow2` and `raw` are uploaded as they are, all else is converted on the way.
pub fn sent_as(format: &str) -> &str {
    if format == "raw" { "raw" } else { "qcow2" }
}

pub fn plan(machine: Machine, wishes: Wishes, source: Source, target: Place) -> Plan {
    let mut plan = Plan {
        version: VERSION,
        source,
        target,
        items: Vec::new(),
        findings: machine.findings.clone(),
        shutdown: wishes.shutdown,
    };
    // Marks stand in metadata, of at most 255 characters, and are words.
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '.' { c } else { '-' };
    let name = match machine.name.chars().all(|c| plain(c) == c) && machine.name.len() <= 60 {
        true => machine.name.clone(),
        false => uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, machine.name.as_bytes()).to_string(),
    };
    let mark = |part: &str| format!("{}:{name}:{part}", machine.mark);
    let mut put = |key: String, name: String, make: Make| {
        plan.items.push(Item { mark: mark(&key), key: key.clone(), name, there: None, make });
        Ref::Item(key)
    };
    let image = |disk: &Disk| {
        Make::Image(ImageMake {
            bytes: disk.bytes.clone(),
            disk_format: sent_as(&disk.format).to_owned(),
            container_format: "bare".into(),
            min_disk: 0,
            min_ram: 0,
            properties: BTreeMap::new(),
        })
    };
    let (mut root, mut volumes, mut ways) = (None, Vec::new(), Vec::new());
    for (at, disk) in machine.disks.iter().enumerate() {
        let gib = disk.capacity.div_ceil(GIB).max(1);
        if disk.format != sent_as(&disk.format) {
            let why = format!(
                "{} is converted to {} by qemu-img on this machine",
                disk.format,
                sent_as(&disk.format)
            );
            plan.findings.push(Finding::new(Fate::Changed, "disk", &disk.name, why));
        }
        if at == 0 {
            root = Some((put(format!("disk/{at}"), format!("{}-disk", machine.name), image(disk)), gib));
            continue;
        }
        let way = put(format!("way/{at}"), format!("amphi-import {}", disk.name), image(disk));
        let make = Make::Volume {
            size_gib: gib,
            description: String::new(),
            image: Some(way.clone()),
            bootable: false,
        };
        volumes.push(put(format!("volume/{at}"), format!("{}-{at}", machine.name), make));
        ways.push((at, disk.name.clone(), way));
    }
    let mut ports = Vec::new();
    let cards = wishes.networks.len().max(machine.cards.len());
    for at in 0..cards {
        let card = machine.cards.get(at).cloned().unwrap_or_default();
        let mac = wishes.macs.get(at).cloned().or(card.mac.clone());
        let told = mac.clone().unwrap_or_else(|| format!("card {}", at + 1));
        let Some((id, name)) = wishes.networks.get(at) else {
            let why = format!("was on '{}': say which network stands for it, --network NAME", card.network);
            plan.findings.push(Finding::new(Fate::Left, "card", told, why));
            continue;
        };
        let network = Ref::Id(id.clone());
        let named = wishes.addresses.get(at).copied();
        let addresses = named.map(|a| vec![a]).unwrap_or_else(|| card.addresses.clone());
        if !card.network.is_empty() {
            let why = format!("was on '{}', comes to network {name}", card.network);
            plan.findings.push(Finding::new(Fate::Mapped, "card", told, why));
        }
        if addresses.is_empty() {
            let why = "its address is not known: any free one is taken; say it with --ip ADDRESS";
            plan.findings.push(Finding::new(Fate::Changed, "card", mac.clone().unwrap_or_default(), why));
        }
        let addresses = addresses.into_iter().map(|address| Fixed { subnet: None, address }).collect();
        let make = PortMake { network: network.clone(), mac, addresses, groups: None, body: Map::new() };
        let key = format!("port/{at}");
        plan.items.push(Item {
            mark: mark(&key),
            key: key.clone(),
            name: format!("{}-{at}", machine.name),
            there: None,
            make: Make::Port(make),
        });
        ports.push(Connection { network, port: Ref::Item(key) });
    }
    if wishes.set.is_some() && !volumes.is_empty() {
        let why =
            "a set cannot mount volumes that were made of a disk's bytes: as a set it has to do without them";
        plan.findings.push(Finding::new(Fate::Changed, "instance", &machine.name, why));
    }
    let (image, root_gib) = root.unzip();
    let root_gib = root_gib.filter(|_| machine.disks.first().is_some_and(|disk| disk.capacity > 0));
    let make = InstanceMake {
        vcpus: machine.vcpus,
        memory_mib: machine.memory_mib,
        image,
        root_gib,
        ports,
        volume: volumes.first().cloned(),
        metadata: BTreeMap::new(),
        user_data: None,
        ssh_keys: wishes.ssh_keys,
        set: wishes.set,
        stopped: machine.stopped,
    };
    let item =
        |key: String, name: String, make: Make| Item { mark: mark(&key), key, name, there: None, make };
    plan.items.push(item("instance".into(), machine.name.clone(), Make::Instance(Box::new(make))));
    for (at, volume) in volumes.iter().enumerate().skip(1) {
        let make =
            Make::Attach { instance: Ref::Item("instance".into()), volume: volume.clone(), device: None };
        plan.items.push(item(format!("attach/{at}"), format!("{}-{at}", machine.name), make));
    }
    // Not before the instance has the volumes: until then they may be made anew on its host.
    for (at, name, way) in ways {
        plan.items.push(item(format!("clear/{at}"), name, Make::Remove { image: way }));
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        let disk = |name: &str, format: &str, gib: u64| Disk {
            name: name.into(),
            bytes: Bytes::File { path: name.into(), format: format.into() },
            format: format.into(),
            capacity: gib << 30,
        };
        Machine {
            name: "web".into(),
            mark: "ova:0af1".into(),
            vcpus: 2,
            memory_mib: 512,
            disks: vec![disk("a.vmdk", "vmdk", 3), disk("b.qcow2", "qcow2", 1), disk("c.raw", "raw", 2)],
            cards: vec![
                Card {
                    network: "VM Network".into(),
                    mac: Some("52:54:00:00:00:01".into()),
                    ..Card::default()
                };
                2
            ],
            ..Machine::default()
        }
    }

    #[test]
    fn disks_cards_and_order() {
        let wishes = Wishes {
            networks: vec![("n1".into(), "blue".into())],
            addresses: vec!["10.0.0.7".parse().unwrap()],
            ..Wishes::default()
        };
        let plan = plan(machine(), wishes, Source::Files, Place::default());
        assert_eq!(plan.check(), Ok(()));
        let keys: Vec<_> = plan.items.iter().map(|i| i.key.as_str()).collect();
        assert_eq!(
            keys,
            [
                "disk/0", "way/1", "volume/1", "way/2", "volume/2", "port/0", "instance", "attach/1",
                "clear/1", "clear/2"
            ]
        );
        let Make::Instance(one) = &plan.items[6].make else { panic!("{:?}", plan.items[6]) };
        assert_eq!((one.root_gib, one.ports.len()), (Some(3), 1));
        let Make::Port(port) = &plan.items[5].make else { panic!() };
        assert_eq!((port.mac.as_deref(), port.addresses.len()), (Some("52:54:00:00:00:01"), 1));
        let said: Vec<_> = plan.findings.iter().map(|f| (f.fate, f.what.as_str())).collect();
        assert!(said.contains(&(Fate::Left, "card")) && said.contains(&(Fate::Changed, "disk")), "{said:?}");
    }
}
