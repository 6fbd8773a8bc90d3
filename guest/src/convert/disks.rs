//! Finds a machine's root file system on its disk: on it, on partitions (which this machine's kernel knows), in LVM's
//! volumes; and what its fstab adds to it. Everything is mounted read-only, over a layer that is thrown away, so that
//! journals can be played back.

use super::lvm::{self, Volume};
use super::probe::{self, Content};
use super::{Ended, within};
use crate::boot;
use crate::calls;
use amphi_guest::conversion::{Report, SOURCE_SERIAL};
use nix::mount::{MntFlags, MsFlags, umount2};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Volumes of a disk that are looked at.
const DEVICES_MAX: usize = 256;
/// What holds no files of the machine's own.
const PSEUDO: [&str; 14] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "tmpfs",
    "cgroup",
    "cgroup2",
    "debugfs",
    "tracefs",
    "securityfs",
    "configfs",
    "efivarfs",
    "mqueue",
    "hugetlbfs",
];
/// Where the root of a btrfs may be, beside its default.
const SUBVOLUMES: [&str; 4] = ["", "subvol=@", "subvol=@rootfs", "subvol=root"];

/// A file system.
struct Found {
    device: PathBuf,
    /// As people know it: `vda2`, `machine/root`.
    name: String,
    kind: &'static str,
    uuid: String,
    label: String,
}

/// Where the root file system with all that belongs to it is mounted.
pub fn find(report: &mut Report) -> Result<PathBuf, Ended> {
    let source = boot::disk(SOURCE_SERIAL)?;
    let all = file_systems(&source, report)?;
    let mut best: Option<(u32, usize, &str)> = None;
    let scratch = Path::new("/disk");
    fs::create_dir_all(scratch)?;
    for (at, one) in all.iter().enumerate().filter(|(_, one)| one.kind != "vfat") {
        let subvolumes = if one.kind == "btrfs" { &SUBVOLUMES[..] } else { &SUBVOLUMES[..1] };
        for sub in subvolumes {
            if let Err(error) = mount(one, scratch, sub) {
                if sub.is_empty() {
                    report.note("unread", &one.name, &error.to_string());
                }
                continue;
            }
            let score = score(scratch);
            umount2(scratch, MntFlags::MNT_DETACH).map_err(io::Error::from)?;
            if score >= 3 && best.is_none_or(|(before, ..)| before < score) {
                best = Some((score, at, sub));
            }
        }
    }
    let Some((_, at, sub)) = best else {
        let seen: Vec<_> = all.iter().map(|one| format!("{} ({})", one.name, one.kind)).collect();
        let seen = if seen.is_empty() { "no file system".to_owned() } else { seen.join(", ") };
        let closed: Vec<_> = report.notes.iter().map(|note| format!("{}: {}", note.what, note.why)).collect();
        return Err(Ended::Refused(
            format!(
                "no root file system is on it (one with /etc/os-release or an init); found: {seen} {}",
                closed.join("; ")
            )
            .trim_end()
            .to_owned(),
        ));
    };
    mount(&all[at], scratch, sub)?;
    report.root = format!("{} ({})", all[at].name, all[at].kind);
    if !sub.is_empty() {
        report.root.push_str(&format!(" {sub}"));
    }
    further(scratch, &all, (&all[at].name, sub), report);
    Ok(scratch.to_owned())
}

/// How much of a system's root it is.
fn score(root: &Path) -> u32 {
    let there = |path: &str| within::resolve(root, path).is_some();
    let inits = ["sbin/init", "usr/lib/systemd/systemd", "lib/systemd/systemd", "bin/init"];
    2 * u32::from(there("etc/os-release") || there("usr/lib/os-release"))
        + 2 * u32::from(inits.iter().any(|path| there(path)))
        + u32::from(there("etc/passwd"))
        + u32::from(there("bin/sh"))
}

fn mount(one: &Found, target: &Path, sub: &str) -> io::Result<()> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    // The first plays the journal back; one that cannot be is passed over.
    let tries: &[&str] = match one.kind {
        "ext4" => &["", "noload"],
        "xfs" => &["nouuid", "nouuid,norecovery"],
        "btrfs" => &["", "rescue=nologreplay"],
        _ => &[""],
    };
    let mut last = None;
    for options in tries {
        let both: Vec<&str> = [*options, sub].into_iter().filter(|text| !text.is_empty()).collect();
        match boot::mount(
            &one.device.to_string_lossy(),
            &target.to_string_lossy(),
            one.kind,
            flags,
            &both.join(","),
        ) {
            Ok(()) => return Ok(()),
            Err(error) => last = last.or(Some(error)),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("it is not mounted")))
}

fn head(device: &Path, bytes: usize) -> io::Result<Vec<u8>> {
    let mut head = Vec::new();
    File::open(device)?.take(bytes as u64).read_to_end(&mut head)?;
    Ok(head)
}

/// All file systems of the disk, LVM's volumes included. What cannot be read is noted.
fn file_systems(source: &Path, report: &mut Report) -> io::Result<Vec<Found>> {
    let mut devices: Vec<(String, PathBuf)> = partitions(source)?;
    let (mut all, mut physical, mut texts) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut next = 0;
    let mut opened = false;
    loop {
        while let Some((name, device)) = devices.get(next).cloned() {
            next += 1;
            let content = head(&device, probe::HEAD).map(|head| probe::content(&head));
            match content {
                Ok(Some(Content::Files { kind, uuid, label })) => {
                    all.push(Found { device, name, kind, uuid, label });
                }
                Ok(Some(Content::Lvm)) => match head(&device, lvm::HEAD).map(|head| lvm::metadata(&head)) {
                    Ok(Ok((id, text))) => {
                        physical.insert(id, device);
                        texts.insert(text, name);
                    }
                    Ok(Err(why)) => report.note("unread", &name, &format!("a physical volume of LVM: {why}")),
                    Err(error) => report.note("unread", &name, &error.to_string()),
                },
                Ok(Some(Content::Swap)) => report.note("swap", &name, "a container uses its host's"),
                Ok(Some(Content::Closed(why))) => report.note("unread", &name, why),
                Ok(None) => {}
                Err(error) => report.note("unread", &name, &error.to_string()),
            }
        }
        if opened || texts.is_empty() {
            return Ok(all);
        }
        opened = true;
        let mut seen = std::collections::BTreeSet::new();
        for (text, on) in &texts {
            let volumes = match lvm::volumes(text) {
                Ok(volumes) => volumes,
                Err(why) => {
                    report.note("unread", on, &format!("LVM's metadata: {why}"));
                    continue;
                }
            };
            for volume in volumes {
                let name = format!("{}/{}", volume.group, volume.name);
                if devices.len() >= DEVICES_MAX || !seen.insert(name.clone()) {
                    continue;
                }
                match activate(&volume, &physical, devices.len()) {
                    Ok(device) => devices.push((name, device)),
                    Err(why) => report.note("unread", &name, &why),
                }
            }
        }
    }
}

/// The disk, and its partitions by their numbers.
fn partitions(source: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let disk = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut parts = Vec::new();
    for entry in fs::read_dir(format!("/sys/block/{disk}"))?.flatten() {
        let number = fs::read_to_string(entry.path().join("partition")).unwrap_or_default();
        if let Ok(number) = number.trim().parse::<u32>() {
            parts.push((number, entry.file_name().to_string_lossy().into_owned()));
        }
    }
    parts.sort();
    parts.truncate(DEVICES_MAX / 2);
    let mut all = vec![("the disk".to_owned(), source.to_owned())];
    all.extend(
        parts.into_iter().map(|(number, name)| (format!("partition {number}"), Path::new("/dev").join(name))),
    );
    Ok(all)
}

/// `DM_DEV_CREATE`, `DM_DEV_SUSPEND` (which also resumes), `DM_TABLE_LOAD`; `DM_READONLY_FLAG` is not set, for journals.
const CREATE: u64 = 3;
const SUSPEND: u64 = 6;
const LOAD: u64 = 9;

/// A volume's device.
fn activate(volume: &Volume, physical: &BTreeMap<String, PathBuf>, number: usize) -> Result<PathBuf, String> {
    let segments = volume.segments.as_ref().map_err(Clone::clone)?;
    let mut data = Vec::new();
    for segment in segments {
        let mut stripes = String::new();
        for (id, at) in &segment.stripes {
            let device = physical.get(id).ok_or("a part of it is on another disk")?;
            stripes.push_str(&format!(" {} {at}", device.display()));
        }
        let (kind, words) = match segment.chunk {
            0 => ("linear", stripes.trim_start().to_owned()),
            chunk => ("striped", format!("{} {chunk}{stripes}", segment.stripes.len())),
        };
        // struct dm_target_spec: start, length, status, where the next one is, kind; then its words.
        let length = (40 + words.len() + 1).next_multiple_of(8);
        let begin = data.len();
        data.extend_from_slice(&segment.start.to_le_bytes());
        data.extend_from_slice(&segment.length.to_le_bytes());
        data.extend_from_slice(&0_u32.to_le_bytes());
        data.extend_from_slice(&(length as u32).to_le_bytes());
        let mut name = [0; 16];
        name[..kind.len()].copy_from_slice(kind.as_bytes());
        data.extend_from_slice(&name);
        data.extend_from_slice(words.as_bytes());
        data.resize(begin + length, 0);
    }
    let told = |error: io::Error| format!("device-mapper does not take it: {error}");
    let control = File::options().read(true).write(true).open("/dev/mapper/control").map_err(told)?;
    let name = format!("volume{number}");
    let device = calls::device_mapper(&control, CREATE, &name, 0, 0, &[]).map_err(told)?;
    calls::device_mapper(&control, LOAD, &name, 0, segments.len() as u32, &data).map_err(told)?;
    calls::device_mapper(&control, SUSPEND, &name, 0, 0, &[]).map_err(told)?;
    // The kernel's own packing of a device number: the minor's low byte, the major, the minor's rest.
    Ok(PathBuf::from(format!("/dev/dm-{}", (device & 0xff) | (device >> 12 & 0xf_ff00))))
}

/// What the fstab mounts below the root. The kernel's part of it is not in the image; what is elsewhere is noted.
/// `own`: where the root itself is from, and its subvolume.
fn further(root: &Path, all: &[Found], own: (&str, &str), report: &mut Report) {
    let mut wanted: Vec<Vec<String>> = within::lines(root, "etc/fstab")
        .into_iter()
        .map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .filter(|fields| fields.len() >= 3)
        .take(64)
        .collect();
    wanted.sort_by_key(|fields| fields[1].matches('/').count());
    for fields in wanted {
        let (spec, at, kind) = (&fields[0], &fields[1], &fields[2]);
        if kind == "swap" {
            report.note("swap", spec, "a container uses its host's");
            continue;
        }
        if at == "/" || PSEUDO.contains(&kind.as_str()) || at.starts_with("/boot") {
            continue;
        }
        let Some((one, sub)) = meant(all, own, spec, fields.get(3).map_or("", String::as_str)) else {
            report.note(
                "mount",
                &format!("{spec} on {at} ({kind})"),
                "it is not on this disk: give the set a volume for it, or leave it",
            );
            continue;
        };
        let mounted = within::resolve(root, at)
            .filter(|target| target.is_dir())
            .ok_or_else(|| io::Error::other("there is no such directory"))
            .and_then(|target| mount(one, &target, sub));
        match mounted {
            Ok(()) => report.mounted.push((amphi_guest::conversion::text(at), one.name.clone())),
            Err(error) => report.note("unread", &format!("{} on {at}", one.name), &error.to_string()),
        }
    }
}

/// What a line of an fstab means: another file system of this disk, or another subvolume of the root's own; with the option
/// that names its subvolume.
fn meant<'a>(
    all: &'a [Found],
    own: (&str, &str),
    spec: &str,
    options: &'a str,
) -> Option<(&'a Found, &'a str)> {
    let one = all.iter().find(|one| is_called(one, spec))?;
    let mut options = options.split(',');
    if options.clone().any(|option| option == "bind" || option == "rbind") {
        return None;
    }
    let sub = options.find(|option| option.starts_with("subvol=") || option.starts_with("subvolid="));
    let sub = sub.filter(|_| one.kind == "btrfs").unwrap_or_default();
    // As "subvol=/@" is "subvol=@".
    let plain = |sub: &str| sub.replacen("=/", "=", 1);
    let same = one.name == own.0 && (sub.is_empty() || plain(sub) == own.1);
    (!same).then_some((one, sub))
}

/// Whether an fstab means this one.
fn is_called(one: &Found, spec: &str) -> bool {
    let is = |own: &str, said: &str| !own.is_empty() && own.eq_ignore_ascii_case(said.trim_matches('"'));
    if let Some(uuid) = spec.strip_prefix("UUID=").or_else(|| spec.strip_prefix("/dev/disk/by-uuid/")) {
        return is(&one.uuid, uuid);
    }
    if let Some(label) = spec.strip_prefix("LABEL=").or_else(|| spec.strip_prefix("/dev/disk/by-label/")) {
        return is(&one.label, label);
    }
    if let Some((group, volume)) = one.name.split_once('/') {
        // In one name a volume's dashes are doubled.
        let joined = format!("/dev/mapper/{}-{}", group.replace('-', "--"), volume.replace('-', "--"));
        return spec == joined || spec == format!("/dev/{group}/{volume}");
    }
    // The first disk's partition of this number, whatever the machine's controller called it.
    let number = one.name.strip_prefix("partition ");
    let disks = ["/dev/sda", "/dev/vda", "/dev/hda", "/dev/xvda", "/dev/nvme0n1p", "/dev/mmcblk0p"];
    number.is_some_and(|number| disks.iter().any(|disk| spec.strip_prefix(disk) == Some(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, kind: &'static str, uuid: &str) -> Found {
        let (device, label) = ("/dev/vda1".into(), String::new());
        Found { device, name: name.to_owned(), kind, uuid: uuid.to_owned(), label }
    }

    #[test]
    fn a_line_means_another_file_system_or_another_subvolume() {
        let all = [found("partition 2", "btrfs", "r"), found("partition 3", "ext4", "d")];
        for (sub, spec, options, want) in [
            ("subvol=@", "UUID=r", "defaults,subvol=@home", Some(("partition 2", "subvol=@home"))),
            ("subvol=@", "UUID=r", "subvol=/@/srv,compress=zstd", Some(("partition 2", "subvol=/@/srv"))),
            ("", "UUID=r", "subvolid=257", Some(("partition 2", "subvolid=257"))),
            ("subvol=@", "UUID=r", "subvol=/@", None),
            ("subvol=@", "UUID=r", "defaults", None),
            ("subvol=@", "UUID=r", "bind,subvol=@home", None),
            ("", "UUID=d", "defaults", Some(("partition 3", ""))),
            ("", "UUID=d", "subvol=@home", Some(("partition 3", ""))),
            ("", "UUID=x", "defaults", None),
        ] {
            let meant = meant(&all, ("partition 2", sub), spec, options);
            assert_eq!(meant.map(|(one, sub)| (one.name.as_str(), sub)), want, "{spec} {options}");
        }
    }

    #[test]
    fn an_fstab_calls_devices_by_many_names() {
        let (part, lv) = (found("partition 2", "ext4", "0a-b"), found("my-vg/root", "ext4", "0a-b"));
        for (spec, of_part, of_lv) in [
            ("UUID=0A-B", true, true),
            ("UUID=\"0a-b\"", true, true),
            ("UUID=", false, false),
            ("LABEL=", false, false),
            ("/dev/sda2", true, false),
            ("/dev/vda2", true, false),
            ("/dev/nvme0n1p2", true, false),
            ("/dev/sda1", false, false),
            ("/dev/sdb2", false, false),
            ("/dev/mapper/my--vg-root", false, true),
            ("/dev/my-vg/root", false, true),
            ("/dev/mapper/my-vg-root", false, false),
        ] {
            assert_eq!((is_called(&part, spec), is_called(&lv, spec)), (of_part, of_lv), "{spec}");
        }
    }
}
