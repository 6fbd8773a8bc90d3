//! What may be changed of an image, and when: pure.

use super::{ImageMember, ImageRecord, MemberStatus, StagedBlob, Visibility, format_of};
use amphi_api::ProjectId;
use amphi_api::image::ImageState;
use jiff::Timestamp;

/// Most tags and most properties of one image (glance's `image_tag_quota` and `image_property_quota`).
const TAGS_MAX: usize = 128;
const PROPERTIES_MAX: usize = 128;
const MEMBERS_MAX: usize = 128;

#[derive(Clone, Debug, PartialEq)]
pub enum ImageChange {
    Name(String),
    Visibility(Visibility),
    Protected(bool),
    Hidden(bool),
    /// In GiB.
    MinDisk(u32),
    /// In MiB.
    MinRam(u32),
    /// Only while there are no bytes.
    DiskFormat(Option<String>),
    /// Only while there are no bytes.
    ContainerFormat(Option<String>),
    Tags(Vec<String>),
    AddTag(String),
    RemoveTag(String),
    SetProperty(String, String),
    RemoveProperty(String),
    AddMember(ProjectId),
    MemberStatus(ProjectId, MemberStatus),
    RemoveMember(ProjectId),
    Deactivate,
    Reactivate,
    Stage(StagedBlob),
}

/// Why a change cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Absent(String),
    #[error("{0}")]
    Limit(String),
}

/// Applies one change.
pub fn change_image(
    record: &mut ImageRecord,
    change: &ImageChange,
    now: Timestamp,
) -> Result<(), ChangeRefused> {
    let traits = &mut record.traits;
    match change {
        ImageChange::Name(name) => record.name.clone_from(name),
        ImageChange::Visibility(visibility) => traits.visibility = *visibility,
        ImageChange::Protected(protected) => traits.protected = *protected,
        ImageChange::Hidden(hidden) => traits.hidden = *hidden,
        ImageChange::MinDisk(gib) => traits.min_disk = *gib,
        ImageChange::MinRam(mib) => traits.min_ram = *mib,
        ImageChange::DiskFormat(_) | ImageChange::ContainerFormat(_) if !record.blobs.is_empty() => {
            return Err(ChangeRefused::State("the formats cannot change once there are bytes".into()));
        }
        ImageChange::DiskFormat(format) => {
            traits.disk_format.clone_from(format);
            record.format = format_of(traits.container_format.as_deref(), traits.disk_format.as_deref());
        }
        ImageChange::ContainerFormat(format) => {
            traits.container_format.clone_from(format);
            record.format = format_of(traits.container_format.as_deref(), traits.disk_format.as_deref());
        }
        ImageChange::Tags(tags) => traits.tags = tags.iter().cloned().collect(),
        ImageChange::AddTag(tag) => drop(traits.tags.insert(tag.clone())),
        ImageChange::RemoveTag(tag) => {
            if !traits.tags.remove(tag) {
                return Err(ChangeRefused::Absent(format!("tag '{tag}' is not on the image")));
            }
        }
        ImageChange::SetProperty(key, value) => drop(traits.properties.insert(key.clone(), value.clone())),
        ImageChange::RemoveProperty(key) => {
            if traits.properties.remove(key).is_none() {
                return Err(ChangeRefused::State(format!("property {key} does not exist")));
            }
        }
        ImageChange::AddMember(_) if traits.visibility != Visibility::Shared => {
            return Err(ChangeRefused::State("only shared images have members".into()));
        }
        ImageChange::AddMember(project) if traits.members.contains_key(project) => {
            return Err(ChangeRefused::State("the project is a member already".into()));
        }
        ImageChange::AddMember(project) => {
            let member = ImageMember { status: MemberStatus::Pending, created_at: now, updated_at: now };
            traits.members.insert(*project, member);
        }
        ImageChange::MemberStatus(project, status) => {
            let member = traits.members.get_mut(project);
            let member = member.ok_or_else(|| ChangeRefused::Absent("the project is no member".into()))?;
            member.status = *status;
            member.updated_at = now;
        }
        ImageChange::RemoveMember(project) => {
            if traits.members.remove(project).is_none() {
                return Err(ChangeRefused::Absent("the project is no member".into()));
            }
        }
        ImageChange::Deactivate | ImageChange::Reactivate if record.state() != ImageState::Active => {
            return Err(ChangeRefused::State("the image has no bytes yet".into()));
        }
        ImageChange::Deactivate => record.traits.deactivated = true,
        ImageChange::Reactivate => record.traits.deactivated = false,
        ImageChange::Stage(_) if record.state() == ImageState::Active => {
            return Err(ChangeRefused::State("the image has its bytes already".into()));
        }
        ImageChange::Stage(staged) => record.traits.staged = Some(staged.clone()),
    }
    let traits = &mut record.traits;
    for (what, count, most) in [
        ("tags", traits.tags.len(), TAGS_MAX),
        ("properties", traits.properties.len(), PROPERTIES_MAX),
        ("members", traits.members.len(), MEMBERS_MAX),
    ] {
        if count > most {
            return Err(ChangeRefused::Limit(format!("an image has at most {most} {what}")));
        }
    }
    traits.updated_at = Some(now);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::ImageId;
    use amphi_api::image::{Blob, BlobRole, ImageFormat};

    fn record() -> ImageRecord {
        ImageRecord {
            id: ImageId::new(),
            project: ProjectId::DEFAULT,
            name: "i".into(),
            format: ImageFormat::Other,
            cmdline: String::new(),
            blobs: Default::default(),
            layers: Vec::new(),
            traits: Default::default(),
            export: None,
            closing: false,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_may_change_when() {
        let now = Timestamp::UNIX_EPOCH;
        let mut image = record();
        let mut change = |c: ImageChange| change_image(&mut image, &c, now);
        let other = ProjectId(uuid::Uuid::from_u128(7));
        assert!(change(ImageChange::AddMember(other)).is_err(), "private");
        change(ImageChange::Visibility(Visibility::Shared)).unwrap();
        change(ImageChange::AddMember(other)).unwrap();
        assert!(change(ImageChange::AddMember(other)).is_err(), "twice");
        change(ImageChange::MemberStatus(other, MemberStatus::Accepted)).unwrap();
        change(ImageChange::RemoveMember(other)).unwrap();
        assert!(matches!(change(ImageChange::RemoveMember(other)), Err(ChangeRefused::Absent(_))));
        assert!(matches!(change(ImageChange::RemoveTag("t".into())), Err(ChangeRefused::Absent(_))));
        assert!(change(ImageChange::Deactivate).is_err(), "no bytes");
        change(ImageChange::ContainerFormat(Some("bare".into()))).unwrap();
        change(ImageChange::DiskFormat(Some("qcow2".into()))).unwrap();
        let tags = (0..=TAGS_MAX).map(|n| n.to_string()).collect();
        assert!(matches!(change(ImageChange::Tags(tags)), Err(ChangeRefused::Limit(_))));

        let mut image = record();
        change_image(&mut image, &ImageChange::DiskFormat(Some("raw".into())), now).unwrap();
        assert_eq!(image.format, ImageFormat::Raw);
        image.blobs.insert(BlobRole::Disk, Blob { sha256: "0".repeat(64), size: 1 });
        assert!(change_image(&mut image, &ImageChange::DiskFormat(None), now).is_err(), "bytes are there");
        change_image(&mut image, &ImageChange::Deactivate, now).unwrap();
        assert!(image.traits.deactivated);
    }
}
