//! An OVF descriptor (DMTF DSP0243) as a machine: name, CPUs, memory, cards, disks. Pure. Owns what VMware's and VirtualBox's
//! exports have in common. Refuses document types (and so entities), files elsewhere, sizes that cannot be.

use amphi_api::disk::SIZE_MAX;
use roxmltree::{Document, Node, ParsingOptions};
use std::collections::BTreeMap;

/// Largest descriptor, in bytes.
pub const TEXT_MAX: usize = 4 << 20;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    pub name: String,
    pub vcpus: u32,
    pub memory_mib: u64,
    pub efi: bool,
    pub cards: Vec<Card>,
    /// The first boots.
    pub disks: Vec<Disk>,
    /// Devices that are not carried: what they are.
    pub left: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Card {
    /// The network's name in the descriptor.
    pub network: String,
    pub mac: Option<String>,
    pub model: String,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
    /// The file within the package.
    pub file: String,
    /// In bytes.
    pub capacity: u64,
    /// Declared size of the file, in bytes.
    pub size: Option<u64>,
}

fn attribute<'a>(node: &Node<'a, '_>, name: &str) -> Option<&'a str> {
    node.attributes().find(|a| a.name() == name).map(|a| a.value())
}

fn child<'a, 'i>(node: &Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    node.children().find(|c| c.is_element() && c.tag_name().name() == name)
}

fn words(node: &Node, name: &str) -> Option<String> {
    Some(child(node, name)?.text()?.trim().to_owned()).filter(|t| !t.is_empty())
}

/// A name within the package and nothing else.
pub fn file_name(name: &str) -> Result<&str, String> {
    let plain = !name.is_empty()
        && name.len() <= 255
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(char::is_control)
        && name != "."
        && name != "..";
    if plain {
        Ok(name)
    } else {
        Err(format!("'{name}' is no file of the package: paths and URLs are not followed"))
    }
}

/// `byte`, `byte * 2^20`, `MegaBytes`: how many bytes one unit has. None: not understood.
fn unit(text: &str) -> Option<u64> {
    let text: String = text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase();
    match text.as_str() {
        "" | "byte" | "bytes" => Some(1),
        "kilobytes" => Some(1 << 10),
        "megabytes" | "mb" => Some(1 << 20),
        "gigabytes" | "gb" => Some(1 << 30),
        other => {
            let power = other.strip_prefix("byte*2^")?.parse::<u32>().ok()?;
            (power <= 50).then(|| 1 << power)
        }
    }
}

/// Reads a descriptor. Errors name the element.
pub fn read(text: &str) -> Result<Machine, String> {
    if text.len() > TEXT_MAX {
        return Err(format!("larger than {TEXT_MAX} bytes"));
    }
    // No document type: nothing can be expanded.
    let options = ParsingOptions { allow_dtd: false, nodes_limit: 100_000, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| format!("cannot be read: {e}"))?;
    let root = document.root_element();
    if root.tag_name().name() != "Envelope" {
        return Err(format!("begins with <{}>, not with <Envelope>", root.tag_name().name()));
    }
    let mut systems = root.descendants().filter(|n| n.tag_name().name() == "VirtualSystem");
    let system = systems.next().ok_or("has no VirtualSystem")?;
    if systems.next().is_some() {
        return Err("has several VirtualSystems: import them one by one".to_owned());
    }
    let disks = disks(&root)?;
    let hardware = child(&system, "VirtualHardwareSection").ok_or("has no VirtualHardwareSection")?;
    let id = attribute(&system, "id").unwrap_or("imported");
    let mut machine =
        Machine { name: words(&system, "Name").unwrap_or_else(|| id.to_owned()), ..Machine::default() };
    machine.efi = hardware.descendants().any(|n| {
        let efi = |text: &str| text.eq_ignore_ascii_case("efi");
        let key = attribute(&n, "key").unwrap_or_default();
        (key == "firmware" && attribute(&n, "value").is_some_and(efi))
            || (n.tag_name().name() == "Firmware"
                && attribute(&n, "type").is_some_and(|t| t.to_lowercase().starts_with("efi")))
    });
    let mut placed: Vec<(String, u64, Disk)> = Vec::new();
    let items = hardware
        .children()
        .filter(|n| matches!(n.tag_name().name(), "Item" | "StorageItem" | "EthernetPortItem"));
    for item in items {
        let kind = words(&item, "ResourceType").unwrap_or_default();
        let number = || words(&item, "VirtualQuantity").and_then(|t| t.parse::<u64>().ok());
        let told = words(&item, "ElementName").unwrap_or_else(|| format!("resource of type {kind}"));
        match kind.as_str() {
            "3" => {
                let cpus = number()
                    .filter(|n| (1..=256).contains(n))
                    .ok_or("the number of CPUs is not within 1 to 256")?;
                machine.vcpus = u32::try_from(cpus).unwrap_or(256);
            }
            "4" => {
                let units = words(&item, "AllocationUnits").unwrap_or_else(|| "MegaBytes".to_owned());
                let unit =
                    unit(&units).ok_or_else(|| format!("memory in '{units}', which is not understood"))?;
                let bytes = number()
                    .and_then(|n| n.checked_mul(unit))
                    .ok_or("the memory's size is no number that can be")?;
                machine.memory_mib = bytes >> 20;
            }
            "10" => machine.cards.push(Card {
                network: words(&item, "Connection").unwrap_or_default(),
                mac: words(&item, "Address").map(|m| m.to_ascii_lowercase()),
                model: words(&item, "ResourceSubType").unwrap_or_default(),
            }),
            "17" | "31" => {
                let of = words(&item, "HostResource")
                    .ok_or_else(|| format!("{told}: a disk without HostResource"))?;
                let id = of.rsplit('/').next().unwrap_or_default();
                let disk =
                    disks.get(id).ok_or_else(|| format!("{told}: no disk '{of}' in the DiskSection"))?;
                let at = words(&item, "AddressOnParent").and_then(|t| t.parse().ok()).unwrap_or_default();
                placed.push((words(&item, "Parent").unwrap_or_default(), at, disk.clone()));
            }
            // Controllers and what stands for the machine's board.
            "1" | "5" | "6" | "7" | "8" | "9" | "20" => {}
            _ => machine.left.push(told),
        }
    }
    if machine.vcpus == 0 {
        machine.vcpus = 1;
    }
    if !(16..=4 << 20).contains(&machine.memory_mib) {
        return Err(format!("{} MiB of memory; 16 to {} are possible", machine.memory_mib, 4 << 20));
    }
    placed.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    machine.disks = placed.into_iter().map(|(_, _, disk)| disk).collect();
    match machine.disks.len() {
        0 => Err("has no disk".to_owned()),
        1..=26 => Ok(machine),
        many => Err(format!("has {many} disks; at most 26")),
    }
}

/// The DiskSection's disks by their ids, with the files that References names.
fn disks(root: &Node) -> Result<BTreeMap<String, Disk>, String> {
    let mut files = BTreeMap::new();
    for file in
        child(root, "References").iter().flat_map(Node::children).filter(|n| n.tag_name().name() == "File")
    {
        let href = attribute(&file, "href").ok_or("References: a file without href")?;
        file_name(href).map_err(|why| format!("References: {why}"))?;
        if attribute(&file, "chunkSize").is_some() {
            return Err(format!("References: {href} is split into chunks: export it as one file"));
        }
        if let Some(packed) = attribute(&file, "compression").filter(|c| *c != "identity") {
            return Err(format!("References: {href} is packed with {packed}: unpack it first"));
        }
        let size = attribute(&file, "size").and_then(|t| t.parse().ok());
        files.insert(attribute(&file, "id").unwrap_or_default(), (href.to_owned(), size));
    }
    let mut disks = BTreeMap::new();
    for disk in
        child(root, "DiskSection").iter().flat_map(Node::children).filter(|n| n.tag_name().name() == "Disk")
    {
        let id = attribute(&disk, "diskId").ok_or("DiskSection: a disk without diskId")?;
        if attribute(&disk, "parentRef").is_some() {
            return Err(format!("DiskSection: {id} has a parent: export it flattened"));
        }
        let units = attribute(&disk, "capacityAllocationUnits").unwrap_or_default();
        let unit =
            unit(units).ok_or_else(|| format!("DiskSection: {id}: sizes in '{units}' are not understood"))?;
        let capacity = attribute(&disk, "capacity").and_then(|t| t.parse::<u64>().ok()?.checked_mul(unit));
        let capacity = capacity.filter(|c| (1..=SIZE_MAX).contains(c));
        let capacity = capacity.ok_or_else(|| {
            format!("DiskSection: the capacity of {id} is not within 1 to {SIZE_MAX} bytes")
        })?;
        let Some(reference) = attribute(&disk, "fileRef") else {
            return Err(format!(
                "DiskSection: {id} is an empty disk without a file: make a volume in its place"
            ));
        };
        let (file, size) = files
            .get(reference)
            .cloned()
            .ok_or_else(|| format!("DiskSection: {id}: no file '{reference}' in References"))?;
        disks.insert(id.to_owned(), Disk { file, capacity, size });
    }
    Ok(disks)
}

/// A manifest's lines, `SHA256(disk.vmdk)= 0123…`: file, algorithm in lower case, digest.
pub fn manifest(text: &str) -> Result<Vec<(String, String, String)>, String> {
    let mut all = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let parts = line.split_once('(').and_then(|(algorithm, rest)| {
            let (file, digest) = rest.rsplit_once(')')?;
            Some((
                algorithm.trim().to_lowercase(),
                file.to_owned(),
                digest.trim_start().strip_prefix('=')?.trim().to_lowercase(),
            ))
        });
        let (algorithm, file, digest) =
            parts.ok_or_else(|| format!("the manifest's line '{line}' is not understood"))?;
        let digits = match algorithm.as_str() {
            "sha1" => 40,
            "sha256" => 64,
            "sha512" => 128,
            other => return Err(format!("the manifest's digests are of {other}, which is not known here")),
        };
        if digest.len() != digits || !digest.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(format!("the manifest's digest of {file} is none"));
        }
        all.push((file, algorithm, digest));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As VMware's ovftool writes it.
    pub const VMWARE: &str = include_str!("../examples/vmware.ovf");
    /// As VirtualBox writes it.
    const VIRTUALBOX: &str = include_str!("../examples/virtualbox.ovf");

    #[test]
    fn vmware_s_machines() {
        let machine = read(VMWARE).unwrap();
        assert_eq!((machine.name.as_str(), machine.vcpus, machine.memory_mib), ("shop-web", 2, 2048));
        let disks: Vec<_> = machine.disks.iter().map(|d| (d.file.as_str(), d.capacity)).collect();
        assert_eq!(disks, [("shop-web-disk1.vmdk", 16 << 30), ("shop-web-disk2.vmdk", 4 << 30)]);
        assert_eq!(machine.cards.len(), 1);
        assert_eq!(machine.cards[0].network, "VM Network");
        assert!(machine.left.iter().any(|l| l.contains("Video")), "{:?}", machine.left);
        assert!(!machine.efi);
    }

    #[test]
    fn virtualbox_s_machines() {
        let machine = read(VIRTUALBOX).unwrap();
        assert_eq!((machine.name.as_str(), machine.vcpus, machine.memory_mib), ("debian", 1, 1024));
        assert_eq!(machine.disks[0].file, "debian-disk001.vmdk");
        assert_eq!(machine.cards[0].network, "NAT");
    }

    #[test]
    fn hostile_descriptors() {
        let change = |from: &str, to: &str| {
            assert!(VMWARE.contains(from), "{from}");
            read(&VMWARE.replace(from, to)).unwrap_err()
        };
        let bomb = "<!DOCTYPE x [<!ENTITY a \"aaaa\"><!ENTITY b \"&a;&a;\">]>\n<Envelope";
        assert!(change("<Envelope", bomb).contains("DTD"));
        for path in ["../../etc/passwd", "/etc/passwd", "http://x/disk.vmdk", "a\\b.vmdk", ".."] {
            assert!(
                change("\"shop-web-disk1.vmdk\"", &format!("\"{path}\"")).contains("not followed"),
                "{path}"
            );
        }
        assert!(change("ovf:capacity=\"16\"", "ovf:capacity=\"99999999999999\"").contains("capacity"));
        assert!(change("ovf:capacity=\"16\"", "ovf:capacity=\"0\"").contains("capacity"));
        assert!(change("byte * 2^30", "byte * 2^99").contains("not understood"));
        assert!(change("ovf:fileRef=\"file1\"", "ovf:fileRef=\"nothing\"").contains("no file"));
        assert!(change("ovf:/disk/vmdisk1", "ovf:/disk/other").contains("no disk"));
        assert!(
            change("<rasd:VirtualQuantity>2048<", "<rasd:VirtualQuantity>99999999999999999<")
                .contains("memory")
        );
        assert!(change("<rasd:VirtualQuantity>2<", "<rasd:VirtualQuantity>9000<").contains("CPUs"));
        assert!(change("ovf:id=\"file1\"", "ovf:id=\"file1\" ovf:chunkSize=\"7\"").contains("chunks"));
        assert!(read("<html/>").unwrap_err().contains("Envelope"));
        assert!(read("").unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn descriptors_that_are_cut_off_or_garbled() {
        for at in (0..VMWARE.len()).step_by(37) {
            if let Some(text) = VMWARE.get(..at) {
                assert!(read(text).is_err(), "cut at {at}");
            }
            if let (Some(before), Some(after)) = (VMWARE.get(..at), VMWARE.get(at + 1..)) {
                let _ = read(&format!("{before}9{after}"));
                let _ = read(&format!("{before}-{after}"));
            }
        }
    }

    #[test]
    fn manifests() {
        let sha1 = "da39a3ee5e6b4b0d3255bfef95601890afd80709";
        let text = format!("SHA1(a.ovf)= {sha1}\r\nSHA1(a (1).vmdk)= {sha1}\n\n");
        let all = manifest(&text).unwrap();
        assert_eq!(all[1], ("a (1).vmdk".into(), "sha1".into(), sha1.into()));
        assert!(manifest("MD5(a)= 00").unwrap_err().contains("md5"));
        assert!(manifest("SHA256(a)= 00").unwrap_err().contains("none"));
        assert!(manifest("hello").unwrap_err().contains("not understood"));
    }
}
