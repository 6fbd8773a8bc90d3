//! Renders what a set's containers have mounted: the shared volume, the place of further volumes, the config drive and the
//! keys. Pure. Refuses to mount anything: Docker does, and for further volumes `volumes`.

use super::files;
use super::member::ZONES;
use super::render::{DRIVER, Facts};
use crate::instance::{BodyPlan, VolumeAttachment};
use amphi_api::set::{MemberSpec, SetSpec};
use bollard::models::{
    Mount, MountBindOptions, MountBindOptionsPropagationEnum, MountType, MountVolumeOptions,
    MountVolumeOptionsDriverConfig,
};
use std::path::{Path, PathBuf};

/// Where members find the config drive: of the places in which cloud-init's ConfigDrive source looks for a directory,
/// the one outside of cloud-init's own state (`DataSourceConfigDrive.py`; the other is below /var/lib/cloud/seed).
pub const CONFIG_DRIVE: &str = "/config-drive";
/// Where sshd looks for root's keys unless its configuration says otherwise. The file takes the place of an image's own.
pub const AUTHORIZED_KEYS: &str = "/root/.ssh/authorized_keys";

/// Where further volumes are seen, each below its device's name.
pub const VOLUMES: &str = "/volumes";

/// Where C libraries read whom to ask for names (resolv.conf(5)).
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The anchor keeps the volumes as long as the set is there, whatever its members do. Containers that join its network
/// have its resolv.conf too: one of ours, since Docker's own leads to a name server inside dockerd, which answers nobody
/// while dockerd hangs or is gone, and which asks the host's servers, from the host, where a network has none.
pub fn of_anchor(plan: &BodyPlan, set: &SetSpec, facts: &Facts) -> Vec<Mount> {
    shared_volume(plan)
        .map(|volume| volume_at(volume, &set.volume_mount, false))
        .into_iter()
        .chain([further(&facts.volumes), bound(&facts.resolv_conf, RESOLV_CONF, false)])
        .collect()
}

/// `name`: the member's, never empty. `timezone`: the set's.
pub fn of_member(
    plan: &BodyPlan,
    set: &SetSpec,
    member: &MemberSpec,
    name: &str,
    timezone: Option<&str>,
    facts: &Facts,
) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = Vec::new();
    if let Some(volume) = shared_volume(plan) {
        if member.mounts.is_empty() {
            mounts.push(volume_at(volume, &set.volume_mount, false));
        }
        for (at, mount) in member.mounts.iter().enumerate() {
            mounts.push(match mount.sub_path.as_str() {
                "" => volume_at(volume, &mount.path, mount.read_only),
                _ => {
                    let point = part(&facts.parts, name, at, plan.generation_of(name));
                    bound(&point, &mount.path, mount.read_only)
                }
            });
        }
    }
    let hidden = mounts.iter().filter_map(|mount| mount.target.as_deref()).any(is_at_keys);
    mounts.push(further(&facts.volumes));
    mounts.push(read_only(&facts.config_drive, CONFIG_DRIVE));
    if !plan.ssh_keys.is_empty() && !hidden {
        mounts.push(read_only(&facts.authorized_keys, AUTHORIZED_KEYS));
    }
    for (at, file) in member.files.iter().enumerate() {
        let folder = files::of_member(&facts.files, name, plan.generation_of(name));
        mounts.push(read_only(&folder.join(at.to_string()), &file.path));
    }
    if let Some(zone) = timezone {
        let rules = format!("{ZONES}/{zone}");
        mounts.push(read_only(Path::new(&rules), &rules));
    }
    mounts
}

/// Where a directory of the volume is mounted on the host for a member's `at`th mount. A later description's has a place of
/// its own: the container of an earlier one may have to start again.
pub fn part(parts: &Path, name: &str, at: usize, generation: u64) -> PathBuf {
    match generation {
        0 => parts.join(format!("{name}-{at}")),
        _ => parts.join(format!("{name}-{at}-g{generation}")),
    }
}

/// Whose it is, by the name of the place that [`part`] gave it: the member and its description's number.
pub fn part_of(place: &str) -> Option<(&str, u64)> {
    let later = place.rsplit_once("-g").and_then(|(rest, n)| Some((rest, n.parse().ok()?)));
    let (rest, generation) = later.unwrap_or((place, 0));
    let (name, at) = rest.rsplit_once('-')?;
    at.parse::<usize>().ok().map(|_| (name, generation))
}

/// The one volume that all members have at `volume_mount`: a set starts from no disk, so the volume that a VM would
/// start from takes that place.
pub fn shared_volume(plan: &BodyPlan) -> Option<&VolumeAttachment> {
    plan.root_volume.as_ref().or(plan.volume.as_ref())
}

/// The volumes below [`VOLUMES`]: device name, volume, read-only. Beside a root volume the instance's own volume is the
/// first of them, under the name that it has in a VM.
pub fn further_volumes(plan: &BodyPlan) -> Vec<(&str, &VolumeAttachment, bool)> {
    let own =
        plan.volume.as_ref().filter(|_| plan.root_volume.is_some()).map(|volume| ("vdb", volume, false));
    let extra = plan.attachments.iter().map(|extra| (extra.device.as_str(), &extra.volume, extra.read_only));
    own.into_iter().chain(extra).collect()
}

/// What is mounted below it on the host later is seen in the container too.
fn further(source: &Path) -> Mount {
    Mount {
        target: Some(VOLUMES.to_owned()),
        source: Some(source.display().to_string()),
        typ: Some(MountType::BIND),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RSLAVE),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn volume_at(volume: &VolumeAttachment, target: &str, read_only: bool) -> Mount {
    Mount {
        target: Some(target.to_owned()),
        source: Some(volume.id.to_string()),
        typ: Some(MountType::VOLUME),
        read_only: read_only.then_some(true),
        volume_options: Some(MountVolumeOptions {
            // The volume's bytes are the instance's; an image must not fill an empty one.
            no_copy: Some(true),
            driver_config: Some(MountVolumeOptionsDriverConfig {
                name: Some(DRIVER.to_owned()),
                options: None,
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn read_only(source: &Path, target: &str) -> Mount {
    bound(source, target, true)
}

fn bound(source: &Path, target: &str, read_only: bool) -> Mount {
    Mount {
        target: Some(target.to_owned()),
        source: Some(source.display().to_string()),
        typ: Some(MountType::BIND),
        read_only: read_only.then_some(true),
        ..Default::default()
    }
}

/// Whether the volume lies over the place of the keys or inside it: then the keys are the volume's own affair.
fn is_at_keys(volume_mount: &str) -> bool {
    let volume = Path::new(volume_mount);
    let keys = Path::new(AUTHORIZED_KEYS);
    keys.starts_with(volume) || keys.parent().is_some_and(|folder| volume.starts_with(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_parts_say_whose_they_are() {
        for (name, at, generation, place) in [
            ("db", 0, 0, "db-0"),
            ("db", 12, 7, "db-12-g7"),
            ("db-1", 0, 7, "db-1-0-g7"),
            ("db-g7", 1, 0, "db-g7-1"),
            ("db-0-g7", 1, 8, "db-0-g7-1-g8"),
        ] {
            assert_eq!(part(Path::new("/p"), name, at, generation), Path::new("/p").join(place));
            assert_eq!(part_of(place), Some((name, generation)), "{place}");
        }
        for other in ["db", "db-g7", "lost+found", "db-x-g7"] {
            assert_eq!(part_of(other), None, "{other}");
        }
    }
}
