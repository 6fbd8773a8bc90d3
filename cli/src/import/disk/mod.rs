//! Files of this machine as sources: a disk, or an OVA with its descriptor, disks and manifest. Owns the reading of the
//! archive and the runs of `qemu-img`. Refuses whatever leads out of the file.

pub mod ovf;

use super::bytes::{Flow, Meter, PIECE, part};
use super::machine::{Card, Disk, Machine};
use super::plan::{Bytes, Digest, Fate, Finding};
use crate::failure::Failure;
use amphi_api::disk::{self, DiskFormat, Ends};
use ring::digest::{SHA256, digest};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Of one conversion.
const CONVERT_LIMIT: Duration = Duration::from_secs(6 * 3600);
/// Most files of an OVA.
const FILES_MAX: usize = 64;
const MANIFEST_MAX: u64 = 1 << 20;

fn refused(path: &Path, why: impl std::fmt::Display) -> Failure {
    Failure::new(4, format!("{}: {why}", path.display()))
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> Failure + '_ {
    move |e| Failure::new(2, format!("{}: cannot be read: {e}", path.display()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A disk's file: its format as said or as it begins, and its size.
pub fn disk(path: &Path, format: Option<&str>) -> Result<Disk, Failure> {
    let full = std::fs::canonicalize(path).map_err(unreadable(path))?;
    let mut file = File::open(&full).map_err(unreadable(path))?;
    let metadata = file.metadata().map_err(unreadable(path))?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Err(refused(path, "is no file, or empty"));
    }
    let format = match format {
        Some(said) => said.to_owned(),
        None => sniff(&mut file, 0, metadata.len()).map_err(unreadable(path))?.ok_or_else(|| {
            refused(path, "does not begin as a disk does")
                .next("say what it is: --format raw|qcow2|vmdk|vhd|vhdx|vdi")
        })?,
    };
    let capacity = look(&format, &mut file, 0, metadata.len()).map_err(unreadable(path))?;
    let capacity = capacity.map_err(|why| refused(path, why))?;
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Disk { name, bytes: Bytes::File { path: full, format: format.clone() }, format, capacity })
}

/// What the first of `size` bytes from `at` on tell, or the last: a fixed vhd begins as its guest likes.
fn sniff(file: &mut File, at: u64, size: u64) -> std::io::Result<Option<String>> {
    let ends = Ends::read(DiskFormat::Vhd, file, at, size)?;
    let fixed = disk::look(DiskFormat::Vhd, &ends).ok().map(|_| "vhd");
    Ok(disk::sniff(&ends.head).or(fixed).map(str::to_owned))
}

/// The size of the disk in `size` bytes from `at` on; 0 where it is known only when it has been converted: the image's own
/// size is the disk's then. The inner error says why it is not taken.
fn look(format: &str, file: &mut File, at: u64, size: u64) -> std::io::Result<Result<u64, String>> {
    let of = DiskFormat::named(format);
    let ends = Ends::read(of.unwrap_or(DiskFormat::Raw), file, at, size)?;
    Ok(check(format, &ends))
}

/// Whether bytes may be taken as a disk of this format, and how large it is. Anything may stand in a raw disk, but what looks
/// like another format would be taken for it by somebody.
pub fn check(format: &str, ends: &Ends) -> Result<u64, String> {
    match (DiskFormat::named(format), disk::sniff(&ends.head)) {
        (Some(DiskFormat::Raw), Some(other)) if other != "vhd" => {
            Err(format!("it is said to be raw, and begins as {other} does"))
        }
        (Some(format), _) => disk::look(format, ends),
        (None, _) => Ok(0),
    }
}

/// What lies where in an OVA: offset and size.
type Members = BTreeMap<String, (u64, u64)>;

fn members(path: &Path) -> Result<(Members, String), Failure> {
    let file = File::open(path).map_err(unreadable(path))?;
    let whole = file.metadata().map_err(unreadable(path))?.len();
    let mut archive = tar::Archive::new(file);
    let (mut all, mut first) = (Members::new(), None);
    for entry in archive.entries_with_seek().map_err(unreadable(path))? {
        let entry = entry.map_err(|e| refused(path, format!("is no tar archive: {e}")))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if entry.header().entry_type().is_dir() {
            continue;
        }
        if !entry.header().entry_type().is_file() {
            return Err(refused(path, format!("{name} in it is no plain file")));
        }
        ovf::file_name(&name).map_err(|why| refused(path, why))?;
        let (at, size) = (entry.raw_file_position(), entry.size());
        if at.checked_add(size).is_none_or(|end| end > whole) {
            return Err(refused(path, format!("is cut off within {name}")));
        }
        first.get_or_insert_with(|| name.clone());
        if all.insert(name.clone(), (at, size)).is_some() {
            return Err(refused(path, format!("has {name} twice")));
        }
        if all.len() > FILES_MAX {
            return Err(refused(path, format!("has more than {FILES_MAX} files")));
        }
    }
    Ok((all, first.unwrap_or_default()))
}

fn small(path: &Path, (at, size): (u64, u64), most: u64) -> Result<Vec<u8>, Failure> {
    if size > most {
        return Err(refused(path, format!("a part of {size} bytes where at most {most} are expected")));
    }
    let mut file = File::open(path).map_err(unreadable(path))?;
    file.seek(SeekFrom::Start(at)).map_err(unreadable(path))?;
    let mut bytes = Vec::new();
    file.take(size).read_to_end(&mut bytes).map_err(unreadable(path))?;
    Ok(bytes)
}

/// An OVA's machine.
pub fn ova(path: &Path) -> Result<Machine, Failure> {
    let full = std::fs::canonicalize(path).map_err(unreadable(path))?;
    let (members, first) = members(&full)?;
    let ends = |name: &str, ending: &str| name.to_lowercase().ends_with(ending);
    let descriptors: Vec<_> = members.keys().filter(|n| ends(n, ".ovf")).collect();
    let [descriptor] = descriptors[..] else {
        return Err(refused(path, format!("has {} descriptors (.ovf); one is expected", descriptors.len())));
    };
    let bytes = small(&full, members[descriptor], ovf::TEXT_MAX as u64)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|_| refused(path, format!("{descriptor} is not UTF-8")))?;
    let read = ovf::read(text).map_err(|why| refused(path, format!("{descriptor}: {why}")))?;
    let mut findings = Vec::new();
    if first != *descriptor {
        findings.push(Finding::new(
            Fate::Changed,
            "archive",
            descriptor,
            "is not the first file, as the standard wants it",
        ));
    }
    let digests = manifest(&full, &members)?;
    if digests.is_empty() {
        findings.push(Finding::new(
            Fate::Changed,
            "archive",
            "manifest",
            "there is none: the disks' bytes are taken unproven",
        ));
    } else if let Some(of) = digests.get(descriptor) {
        let meter = Meter::new(Some(of));
        meter.take(&bytes);
        meter.passed().check(of).map_err(|why| refused(path, format!("{descriptor}: {why}")))?;
    }
    for name in members.keys() {
        let known = name == descriptor || ends(name, ".mf") || ends(name, ".cert");
        if !known && !read.disks.iter().any(|d| d.file == *name) {
            // NVRAM, ISO images: nothing of the machine's disks.
            findings.push(Finding::new(Fate::Left, "file", name, "no disk of the machine"));
        }
    }
    let mut disks = Vec::new();
    for disk in &read.disks {
        let place = members.get(&disk.file).copied();
        let (offset, size) = place.ok_or_else(|| refused(path, format!("{} is missing in it", disk.file)))?;
        if disk.size.is_some_and(|told| told != size) {
            let told = disk.size.unwrap_or_default();
            return Err(refused(
                path,
                format!("{} has {size} bytes, and the descriptor says {told}", disk.file),
            ));
        }
        let digest = digests.get(&disk.file).cloned();
        if digest.is_none() && !digests.is_empty() {
            return Err(refused(path, format!("{} is missing in the manifest", disk.file)));
        }
        let mut file = File::open(&full).map_err(unreadable(path))?;
        let format = sniff(&mut file, offset, size).map_err(unreadable(path))?;
        let format = format.unwrap_or_else(|| "raw".to_owned());
        let seen = look(&format, &mut file, offset, size).map_err(unreadable(path))?;
        let seen = seen.map_err(|why| refused(path, format!("{}: {why}", disk.file)))?;
        if seen > disk.capacity.saturating_add(1 << 20) {
            let why =
                format!("{} says {seen} bytes of itself, and the descriptor {}", disk.file, disk.capacity);
            return Err(refused(path, why));
        }
        let bytes = Bytes::Member {
            archive: full.clone(),
            name: disk.file.clone(),
            offset,
            size,
            digest,
            format: format.clone(),
        };
        disks.push(Disk { name: disk.file.clone(), bytes, format, capacity: disk.capacity });
    }
    if read.efi {
        let why = "boots by UEFI, and VMs here have a BIOS: it would not come up";
        findings.push(Finding::new(Fate::Blocked, "machine", &read.name, why));
    }
    for left in &read.left {
        findings.push(Finding::new(Fate::Left, "device", left, "has no counterpart"));
    }
    for card in read.cards.iter().filter(|c| !c.model.to_lowercase().contains("virtio")) {
        let why = "becomes a virtio card: the guest needs its driver (Linux has it)";
        findings.push(Finding::new(
            Fate::Changed,
            "card",
            format!("{} on {}", card.model, card.network),
            why,
        ));
    }
    let cards = read.cards.iter().map(|c| Card {
        network: c.network.clone(),
        mac: c.mac.clone(),
        addresses: Vec::new(),
    });
    Ok(Machine {
        name: read.name.clone(),
        mark: format!("ova:{}", &hex(digest(&SHA256, &bytes).as_ref())[..32]),
        vcpus: read.vcpus,
        memory_mib: read.memory_mib,
        disks,
        cards: cards.collect(),
        stopped: false,
        findings,
    })
}

fn manifest(path: &Path, members: &Members) -> Result<BTreeMap<String, Digest>, Failure> {
    let Some((name, place)) = members.iter().find(|(n, _)| n.to_lowercase().ends_with(".mf")) else {
        return Ok(BTreeMap::new());
    };
    let text = String::from_utf8(small(path, *place, MANIFEST_MAX)?);
    let text = text.map_err(|_| refused(path, format!("{name} is not UTF-8")))?;
    let lines = ovf::manifest(&text).map_err(|why| refused(path, why))?;
    for (file, _, _) in &lines {
        if !members.contains_key(file) {
            return Err(refused(path, format!("the manifest names {file}, which is missing")));
        }
    }
    Ok(lines.into_iter().map(|(file, algorithm, value)| (file, Digest { algorithm, value })).collect())
}

/// A disk's bytes as they are sent: as they lie, or converted into `work` first.
pub async fn flow(bytes: &Bytes, work: &Path) -> Result<Flow, Failure> {
    match bytes {
        Bytes::File { path, format } if super::machine::sent_as(format) == format => {
            part(path, 0, None).await
        }
        Bytes::File { path, format } => {
            disk(path, Some(format))?;
            let node = json!({ "driver": "file", "filename": path });
            converted(&json!({ "driver": driver(format), "file": node }), work).await
        }
        Bytes::Member { archive, offset, size, digest, format, .. }
            if super::machine::sent_as(format) == format =>
        {
            let flow = part(archive, *offset, Some(*size)).await?;
            Ok(Flow { expected: digest.clone(), ..flow })
        }
        Bytes::Member { archive, name, offset, size, digest, format } => {
            if let Some(digest) = digest {
                let (path, from, size, of) = (archive.clone(), *offset, *size, digest.clone());
                let read = tokio::task::spawn_blocking(move || pass(&path, from, size, &of)).await;
                let meter = read.map_err(|e| Failure::new(1, e.to_string()))??;
                meter.passed().check(digest).map_err(|why| refused(archive, format!("{name}: {why}")))?;
            }
            let mut file = File::open(archive).map_err(unreadable(archive))?;
            let looked = look(format, &mut file, *offset, *size).map_err(unreadable(archive))?;
            looked.map_err(|why| refused(archive, format!("{name}: {why}")))?;
            let file = json!({ "driver": "file", "filename": archive });
            let part = json!({ "driver": "raw", "offset": offset, "size": size, "file": file });
            converted(&json!({ "driver": driver(format), "file": part }), work).await
        }
        other => Err(Failure::new(1, format!("{other:?} is no file of this machine"))),
    }
}

fn pass(path: &Path, from: u64, size: u64, of: &Digest) -> Result<Meter, Failure> {
    let mut file = File::open(path).map_err(unreadable(path))?;
    file.seek(SeekFrom::Start(from)).map_err(unreadable(path))?;
    let (mut file, meter, mut piece) = (file.take(size), Meter::new(Some(of)), vec![0; PIECE]);
    loop {
        match file.read(&mut piece).map_err(unreadable(path))? {
            0 => return Ok(meter),
            got => meter.take(&piece[..got]),
        }
    }
}

/// QEMU's word for a format.
fn driver(format: &str) -> &str {
    DiskFormat::named(format).map_or(format, |of| of.driver())
}

/// `qemu-img convert`, told what it reads: nothing is probed, and what was looked at before leads nowhere else.
async fn converted(node: &serde_json::Value, work: &Path) -> Result<Flow, Failure> {
    let to: PathBuf = work.join("converted.qcow2");
    let failed = |why: String| {
        Failure::new(2, format!("qemu-img convert: {why}"))
            .next("install qemu-utils, or convert the disk to qcow2 yourself")
    };
    std::fs::create_dir_all(work).map_err(unreadable(work))?;
    let child = Command::new("qemu-img")
        .args(["convert", "-O", "qcow2"])
        .arg(format!("json:{node}"))
        .arg(&to)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let ended = tokio::time::timeout(CONVERT_LIMIT, child.wait_with_output()).await;
    let ended = ended.map_err(|_| failed(format!("not within {} s", CONVERT_LIMIT.as_secs())))?;
    let ended = ended.map_err(|e| failed(e.to_string()))?;
    if !ended.status.success() {
        let said = String::from_utf8_lossy(&ended.stderr);
        return Err(failed(said.lines().last().unwrap_or("it failed without a word").to_owned()));
    }
    part(&to, 0, None).await
}

#[cfg(test)]
mod tests {
    use super::*;

    const OVF: &str = include_str!("../examples/virtualbox.ovf");

    fn vmdk() -> Vec<u8> {
        let mut head = vec![0; 4096];
        head[..5].copy_from_slice(b"KDMV\x03");
        head[12..20].copy_from_slice(&((8u64 << 30) / 512).to_le_bytes());
        head[20..28].copy_from_slice(&128u64.to_le_bytes());
        head[28] = 1;
        head[36] = 2;
        let text = b"# Disk DescriptorFile\nparentCID=ffffffff\ncreateType=\"monolithicSparse\"\nRW 16777216 SPARSE \"d\"\n";
        head[512..512 + text.len()].copy_from_slice(text);
        head[44..48].copy_from_slice(&512u32.to_le_bytes());
        head
    }

    fn archive(files: &[(&str, &[u8])]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut tar = tar::Builder::new(file.reopen().unwrap());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append(&header, *bytes).unwrap();
        }
        tar.finish().unwrap();
        file
    }

    fn sha256(bytes: &[u8]) -> String {
        hex(digest(&SHA256, bytes).as_ref())
    }

    #[test]
    fn an_ova_with_its_manifest() {
        let disk = vmdk();
        let lines = format!(
            "SHA256(debian.ovf)= {}\nSHA256(debian-disk001.vmdk)= {}\n",
            sha256(OVF.as_bytes()),
            sha256(&disk)
        );
        let file = archive(&[
            ("debian.ovf", OVF.as_bytes()),
            ("debian.mf", lines.as_bytes()),
            ("debian-disk001.vmdk", &disk),
        ]);
        let machine = ova(file.path()).unwrap();
        assert_eq!((machine.disks.len(), machine.disks[0].format.as_str()), (1, "vmdk"));
        let Bytes::Member { digest: Some(_), size: 4096, .. } = &machine.disks[0].bytes else {
            panic!("{machine:?}")
        };
        assert!(!machine.findings.iter().any(|f| f.name == "manifest"));
    }

    #[test]
    fn hostile_archives() {
        let disk = vmdk();
        let whole = |more: &[(&'static str, &[u8])]| {
            let mut all: Vec<(&str, &[u8])> =
                vec![("debian.ovf", OVF.as_bytes()), ("debian-disk001.vmdk", &disk)];
            all.extend(more.iter().map(|(n, b)| (*n, *b)));
            ova(archive(&all).path()).map(drop).map_err(|f| f.what)
        };
        assert_eq!(whole(&[]), Ok(()));
        assert!(whole(&[("../../etc/cron.d/x", b"x")]).unwrap_err().contains("not followed"));
        assert!(whole(&[("/etc/x", b"x")]).unwrap_err().contains("not followed"));
        assert!(whole(&[("debian.ovf", b"x")]).unwrap_err().contains("twice"));
        assert!(whole(&[("other.ovf", b"x")]).unwrap_err().contains("2 descriptors"));
        let wrong = format!("SHA256(debian.ovf)= {}\n", sha256(b"other"));
        assert!(whole(&[("debian.mf", wrong.as_bytes())]).unwrap_err().contains("was told"));
        let gone = format!("SHA256(gone.vmdk)= {}\n", sha256(b"other"));
        assert!(whole(&[("debian.mf", gone.as_bytes())]).unwrap_err().contains("missing"));
        let lacks = ova(archive(&[("debian.ovf", OVF.as_bytes())]).path()).unwrap_err().what;
        assert!(lacks.contains("debian-disk001.vmdk is missing"), "{lacks}");
        let mut bomb = vmdk();
        bomb[12..20].copy_from_slice(&(1u64 << 40).to_le_bytes());
        let bomb = archive(&[("debian.ovf", OVF.as_bytes()), ("debian-disk001.vmdk", &bomb)]);
        assert!(ova(bomb.path()).unwrap_err().what.contains("at most"));
        let none = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(none.path(), vec![7; 2048]).unwrap();
        assert!(ova(none.path()).unwrap_err().what.contains("tar"));
    }

    #[test]
    fn disks_by_their_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.img");
        std::fs::write(&path, vec![0; 8192]).unwrap();
        assert!(disk(&path, None).unwrap_err().next.unwrap().contains("--format"));
        assert_eq!(disk(&path, Some("raw")).unwrap().capacity, 8192);
        assert!(disk(&path, Some("qcow2")).unwrap_err().what.contains("no qcow2"));
        std::fs::write(&path, vmdk()).unwrap();
        assert_eq!(disk(&path, None).unwrap().format, "vmdk");
        assert!(disk(&path, Some("raw")).unwrap_err().what.contains("begins as vmdk"));
    }
}
