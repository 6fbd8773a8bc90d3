//! A libvirt domain's XML as a machine (libvirt.org/formatdomain). Pure. Owns what of it has a counterpart and what has
//! none. Refuses document types, disks that are not whole files of one format.

use super::super::machine::Card;
use super::super::plan::{Fate, Finding};
use roxmltree::{Document, Node, ParsingOptions};

/// Largest description, in bytes.
pub const TEXT_MAX: usize = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Domain {
    pub name: String,
    pub uuid: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    /// The one that boots first.
    pub disks: Vec<Disk>,
    pub cards: Vec<Card>,
    pub findings: Vec<Finding>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    /// `vda`.
    pub target: String,
    pub format: String,
    pub place: Place,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Place {
    #[default]
    Nowhere,
    Path(String),
    Volume {
        pool: String,
        volume: String,
    },
}

fn child<'a, 'i>(node: &Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.has_tag_name(name))
}

fn at<'a>(node: &Node<'a, '_>, part: &str, name: &str) -> Option<&'a str> {
    child(node, part)?.attribute(name)
}

fn words(node: &Node, name: &str) -> Option<String> {
    Some(child(node, name)?.text()?.trim().to_owned())
}

/// A document without a type of its own, of a bounded number of nodes.
pub fn document(text: &str) -> Result<Document<'_>, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("larger than {TEXT_MAX} bytes"));
    }
    let options = ParsingOptions { allow_dtd: false, nodes_limit: 100_000, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|e| format!("cannot be read: {e}"))
}

/// `<memory unit='KiB'>`: libvirt's units.
fn bytes(node: &Node) -> Option<u64> {
    let number: u64 = node.text()?.trim().parse().ok()?;
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Reads `virsh dumpxml --inactive`.
pub fn read(text: &str) -> Result<Domain, String> {
    let document = document(text)?;
    let root = document.root_element();
    if !root.has_tag_name("domain") {
        return Err(format!("begins with <{}>, not with <domain>", root.tag_name().name()));
    }
    let mut domain = Domain {
        name: words(&root, "name").unwrap_or_default(),
        uuid: words(&root, "uuid").unwrap_or_default(),
        vcpus: words(&root, "vcpu").and_then(|t| t.parse().ok()).unwrap_or(1),
        memory_mib: child(&root, "memory").and_then(|n| bytes(&n)).unwrap_or_default() >> 20,
        ..Domain::default()
    };
    if !(1..=256).contains(&domain.vcpus) || !(16..=4 << 20).contains(&domain.memory_mib) {
        return Err(format!("{} vCPUs and {} MiB are not possible here", domain.vcpus, domain.memory_mib));
    }
    let name = domain.name.clone();
    let mut say =
        |fate: Fate, what: &str, of: &str, why: &str| domain.findings.push(Finding::new(fate, what, of, why));
    if let Some(os) = child(&root, "os") {
        let loader = child(&os, "loader").is_some_and(|l| l.attribute("type") == Some("pflash"));
        if os.attribute("firmware") == Some("efi") || loader {
            say(
                Fate::Blocked,
                "domain",
                &name,
                "boots by UEFI, and VMs here have a BIOS: it would not come up",
            );
        }
        if child(&os, "kernel").is_some() {
            say(Fate::Changed, "domain", &name, "its kernel lies on its host: here it boots from its disk");
        }
        let kind = child(&os, "type");
        let arch = kind.and_then(|t| t.attribute("arch")).unwrap_or("x86_64");
        if !matches!(arch, "x86_64" | "i686") {
            say(Fate::Blocked, "domain", &name, "is of another architecture than x86_64");
        }
        if kind.and_then(|t| t.text()) != Some("hvm") {
            say(Fate::Changed, "domain", &name, "is no fully virtual machine at its host");
        }
    }
    let devices = child(&root, "devices");
    let devices = devices.iter().flat_map(Node::children).filter(Node::is_element);
    let (mut disks, mut cards): (Vec<(u32, Disk)>, Vec<Card>) = Default::default();
    for device in devices {
        let kind = device.tag_name().name();
        match kind {
            "disk" => {
                let target = at(&device, "target", "dev").unwrap_or("?").to_owned();
                if matches!(device.attribute("device"), Some("cdrom" | "floppy")) {
                    say(Fate::Left, "disk", &target, "removable media");
                    continue;
                }
                if at(&device, "backingStore", "type").is_some() {
                    let why = "has a backing chain: flatten it first (virsh blockpull, or qemu-img convert)";
                    say(Fate::Blocked, "disk", &target, why);
                    continue;
                }
                if child(&device, "encryption").is_some() {
                    say(Fate::Blocked, "disk", &target, "is encrypted by its host");
                    continue;
                }
                let source = child(&device, "source");
                let of = |name: &str| source.and_then(|s| s.attribute(name)).map(str::to_owned);
                let place = match (of("pool"), of("volume"), of("file").or(of("dev"))) {
                    (Some(pool), Some(volume), _) => Place::Volume { pool, volume },
                    (_, _, Some(path)) => Place::Path(path),
                    _ => {
                        say(
                            Fate::Blocked,
                            "disk",
                            &target,
                            "lies neither in a file nor on a device of its host",
                        );
                        continue;
                    }
                };
                let format = at(&device, "driver", "type").unwrap_or("raw").to_owned();
                if !matches!(format.as_str(), "raw" | "qcow2") {
                    let why =
                        format!("is {format}: raw and qcow2 are read; convert it first (qemu-img convert)");
                    say(Fate::Blocked, "disk", &target, &why);
                    continue;
                }
                if at(&device, "target", "bus") != Some("virtio") {
                    let bus = at(&device, "target", "bus").unwrap_or("another");
                    say(
                        Fate::Changed,
                        "disk",
                        &target,
                        &format!("moves from the {bus} bus to virtio: the guest needs its driver"),
                    );
                }
                let order = at(&device, "boot", "order").and_then(|t| t.parse().ok()).unwrap_or(u32::MAX);
                disks.push((order, Disk { target, format, place }));
            }
            "interface" => {
                let source = child(&device, "source");
                let names = ["network", "bridge", "dev", "portgroup"];
                let network = names.iter().find_map(|n| source?.attribute(*n)).unwrap_or_default().to_owned();
                let mac = at(&device, "mac", "address").map(str::to_ascii_lowercase);
                let model = at(&device, "model", "type").unwrap_or("rtl8139");
                if model != "virtio" {
                    let why =
                        format!("becomes a virtio card in the place of {model}: the guest needs its driver");
                    say(Fate::Changed, "card", mac.as_deref().unwrap_or("?"), &why);
                }
                cards.push(Card { network, mac, addresses: Vec::new() });
            }
            // What every VM has here too, or what is its host's own business.
            "emulator" | "controller" | "serial" | "console" | "input" | "graphics" | "video"
            | "memballoon" | "rng" | "panic" | "audio" | "channel" => {}
            "tpm" | "hostdev" | "filesystem" | "shmem" | "nvram" | "smartcard" | "redirdev" | "watchdog"
            | "sound" | "parallel" | "vsock" | "iommu" | "memory" | "hub" | "lease" => {
                say(Fate::Left, "device", kind, "has no counterpart");
            }
            other => say(Fate::Left, "device", other, "is not known"),
        }
    }
    disks.sort_by_key(|(order, _)| *order);
    if disks.is_empty() {
        say(Fate::Blocked, "domain", &name, "has no disk that can be read");
    }
    domain.disks = disks.into_iter().map(|(_, disk)| disk).collect();
    domain.cards = cards;
    Ok(domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = include_str!("../examples/domain.xml");

    #[test]
    fn a_domain_as_virt_manager_makes_it() {
        let domain = read(SHOP).unwrap();
        assert_eq!((domain.name.as_str(), domain.vcpus, domain.memory_mib), ("shop", 2, 2048));
        let places: Vec<_> =
            domain.disks.iter().map(|d| (d.target.as_str(), d.format.as_str(), d.place.clone())).collect();
        let data = Place::Volume { pool: "default".into(), volume: "shop-data.img".into() };
        assert_eq!(
            places,
            [
                ("vda", "qcow2", Place::Path("/var/lib/libvirt/images/shop.qcow2".into())),
                ("vdb", "raw", data)
            ]
        );
        assert_eq!(domain.cards.len(), 2);
        assert_eq!(domain.cards[0].mac.as_deref(), Some("52:54:00:6b:3c:58"));
        assert_eq!(domain.cards[1].network, "br0");
        let said: Vec<_> = domain.findings.iter().map(|f| (f.fate, f.name.as_str())).collect();
        assert!(said.contains(&(Fate::Left, "sda")) && said.contains(&(Fate::Left, "tpm")), "{said:?}");
        assert!(said.contains(&(Fate::Changed, "52:54:00:aa:bb:cc")), "{said:?}");
        assert!(!said.iter().any(|(fate, _)| *fate == Fate::Blocked), "{said:?}");
    }

    #[test]
    fn what_blocks() {
        let change = |from: &str, to: &str| {
            assert!(SHOP.contains(from), "{from}");
            let findings = read(&SHOP.replace(from, to)).unwrap().findings;
            findings
                .into_iter()
                .filter(|f| f.fate == Fate::Blocked)
                .map(|f| f.why)
                .collect::<Vec<_>>()
                .join("; ")
        };
        assert!(change("<os>", "<os firmware='efi'>").contains("UEFI"));
        assert!(
            change("<backingStore/>", "<backingStore type='file'><source file='/base'/></backingStore>")
                .contains("chain")
        );
        assert!(change("type='qcow2'", "type='vmdk'").contains("vmdk"));
        assert!(change("arch='x86_64'", "arch='aarch64'").contains("architecture"));
        assert!(read("<!DOCTYPE d [<!ENTITY a 'b'>]><domain/>").unwrap_err().contains("DTD"));
        assert!(read("<network/>").unwrap_err().contains("<domain>"));
        assert!(
            read(&SHOP.replace("<vcpu placement='static'>2<", "<vcpu>9999<")).unwrap_err().contains("9999")
        );
        assert!(read(&SHOP.replace("'KiB'>2097152<", "'TiB'>99999999999<")).unwrap_err().contains("MiB"));
    }
}
