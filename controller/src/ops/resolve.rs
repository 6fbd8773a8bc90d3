//! Names and ids in requests become records of the caller's project; what cannot be found names its field.

use super::view::{Row, Table};
use super::{OpsError, View};
use crate::model::{BodyRecord, GIB, HostRecord, ImageRecord, Record};
use amphi_api::image::{ImageFormat, ImageState};
use amphi_api::instance::{BodyKind, BodySpec, VmSpec};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::{ImageId, ProjectId};

/// The one record that is meant by a name or an id.
pub(super) fn named<'a, R: Record>(
    table: &'a Table<R>,
    scope: ProjectId,
    field: &str,
    text: &str,
) -> Result<&'a Row<R>, OpsError> {
    let by_id = text.parse::<R::Id>().ok().and_then(|id| table.get(id));
    if let Some(row) = by_id.filter(|row| row.owner().is_some_and(|(project, _)| project == scope)) {
        return Ok(row);
    }
    match table.named(scope, text).as_slice() {
        [] => Err(OpsError::field(field, format!("no {} '{text}'", R::NOUN))),
        [one] => Ok(one),
        many => Err(OpsError::taken(
            field,
            format!("{} {}s are named '{text}'; give the id", many.len(), R::NOUN),
        )),
    }
}

pub(super) fn host<'a>(view: &'a View, field: &str, text: &str) -> Result<&'a Row<HostRecord>, OpsError> {
    let by_id = text.parse().ok().and_then(|id| view.hosts.get(id));
    by_id.or_else(|| view.host_named(text)).ok_or_else(|| OpsError::field(field, format!("no host '{text}'")))
}

/// An image by name or id that makes this kind of body and has its bytes.
pub(super) fn image<'a>(
    view: &'a View,
    scope: ProjectId,
    place: &str,
    text: &str,
    kind: BodyKind,
) -> Result<&'a Row<ImageRecord>, OpsError> {
    let row = visible_image(view, scope, place, text)?;
    let wanted = if kind == BodyKind::Set { "a container image" } else { "a disk or kernel image" };
    let fits = match kind {
        BodyKind::Set => row.format.is_container(),
        BodyKind::Vm => row.format.is_disk() || row.format == ImageFormat::KernelInitramfs,
    };
    if !fits {
        return Err(OpsError::field(place, format!("image '{text}' is not {wanted}")));
    }
    if row.closing {
        return Err(OpsError::field(place, format!("image '{text}' is being deleted")));
    }
    if row.state() != ImageState::Active {
        return Err(OpsError::field(place, format!("image '{text}' has not all its bytes yet; upload them")));
    }
    if row.traits.deactivated {
        return Err(OpsError::field(place, format!("image '{text}' is deactivated")));
    }
    Ok(row)
}

/// The project's own image of this name or id, or one that it is let see.
fn visible_image<'a>(
    view: &'a View,
    scope: ProjectId,
    place: &str,
    text: &str,
) -> Result<&'a Row<ImageRecord>, OpsError> {
    let by_id = text.parse().ok().and_then(|id| view.images.get(id));
    if let Some(row) = by_id.filter(|row| may_start_from(view, row, scope)) {
        return Ok(row);
    }
    let own = named(&view.images, scope, place, text);
    // `web:v1` and `shop/web:v1` mean what the tag names now. Images that were pushed are named as their repository: of
    // several, `web` is the one of `latest`.
    if let Some(tagged) = view.tagged(scope, text) {
        return match &own {
            Ok(other) if other.id != tagged.id => Err(OpsError::taken(
                place,
                format!("'{text}' is the name of an image and a tag that names another; give the id"),
            )),
            _ => Ok(tagged),
        };
    }
    if own.is_ok() {
        return own;
    }
    let mut others = view.images.iter().filter(|i| i.name == text && may_start_from(view, i, scope));
    match (others.next(), others.next()) {
        (Some(one), None) => Ok(one),
        _ => own,
    }
}

fn may_start_from(view: &View, image: &ImageRecord, scope: ProjectId) -> bool {
    image.open_to(scope) || view.published(image)
}

/// An image that a project's instances may be made of, in the words of nova where it cannot be.
pub(super) fn any_image<'a>(
    view: &'a View,
    scope: ProjectId,
    field: &str,
    id: ImageId,
) -> Result<&'a Row<ImageRecord>, OpsError> {
    let row = visible_image(view, scope, field, &id.to_string())
        .map_err(|_| OpsError::field(field, "Can not find requested image"))?;
    if row.closing || row.state() != ImageState::Active || row.traits.deactivated {
        return Err(OpsError::field(field, format!("Image {id} is not active.")));
    }
    if row.format == ImageFormat::Other {
        return Err(OpsError::field(
            field,
            format!("Image {id} is unacceptable: nothing starts from its format"),
        ));
    }
    Ok(row)
}

/// Whether what a flavor gives is enough for an image that a body starts from. A disk of 0 GiB is as large as the
/// image.
pub(super) fn enough_for(row: &ImageRecord, memory_mib: u64, disk_gib: Option<u64>) -> Result<(), OpsError> {
    let traits = &row.traits;
    if memory_mib < u64::from(traits.min_ram) {
        return Err(OpsError::field(
            "flavorRef",
            format!(
                "Flavor's memory is too small for requested image: it has {memory_mib} MiB, the image wants {}",
                traits.min_ram
            ),
        ));
    }
    let least = traits.virtual_size.unwrap_or(0).div_ceil(GIB).max(traits.min_disk.into());
    match disk_gib {
        Some(gib) if gib > 0 && gib < least => Err(OpsError::field(
            "flavorRef",
            format!(
                "Flavor's disk is too small for requested image: it has {gib} GiB, the image wants {least}"
            ),
        )),
        _ => Ok(()),
    }
}

/// The body that one image makes: a VM of a disk, a set of one member of a container image, a whole set of a
/// description, which the caller has read. `root_gib`: the size of a VM's root disk; none: the image's own.
pub(super) fn body_of_image<'a>(
    view: &'a View,
    scope: ProjectId,
    id: ImageId,
    root_gib: Option<u64>,
    described: Option<&SetSpec>,
) -> Result<(BodyRecord, Vec<&'a Row<ImageRecord>>), OpsError> {
    let row = any_image(view, scope, "imageRef", id)?;
    if let (ImageFormat::SetDescription, Some(set)) = (row.format, described) {
        let (body, mut images) = body(view, scope, "imageRef", &BodySpec::Set(set.clone()))?;
        images.push(row);
        return Ok((body, images));
    }
    let text = id.to_string();
    let spec = if row.format.is_container() {
        let member = MemberSpec { image: text, ..MemberSpec::default() };
        let set = SetSpec { members: vec![member], volume_mount: "/data".into(), ..SetSpec::default() };
        BodySpec::Set(set.normalized())
    } else {
        let root_gib = root_gib.filter(|_| row.format != ImageFormat::KernelInitramfs);
        BodySpec::Vm(VmSpec::new(text, root_gib))
    };
    Ok((BodyRecord { spec, images: vec![row.id] }, vec![row]))
}

/// A body with its images, which must fit the kind of body and have their bytes. `field` is the body's place in the
/// request: `bodies[0]`. The images come back for the transaction to guard.
pub(super) fn body<'a>(
    view: &'a View,
    scope: ProjectId,
    field: &str,
    spec: &BodySpec,
) -> Result<(BodyRecord, Vec<&'a Row<ImageRecord>>), OpsError> {
    let image = |place: String, text: &str, kind: BodyKind| self::image(view, scope, &place, text, kind);
    let whole = |set: &SetSpec| {
        let set = set.normalized();
        match spec {
            BodySpec::Vm(_) => BodySpec::Vm(VmSpec { set: Some(set), ..VmSpec::default() }),
            BodySpec::Set(_) => BodySpec::Set(set),
        }
    };
    match spec {
        BodySpec::Vm(vm) if vm.set.is_none() => {
            let row = image(format!("{field}.vm.image"), &vm.image, BodyKind::Vm)?;
            Ok((BodyRecord { spec: spec.clone(), images: vec![row.id] }, vec![row]))
        }
        BodySpec::Set(_) | BodySpec::Vm(_) => {
            // A VM without an image of its own runs a set.
            let (set, at_set) =
                spec.set().ok_or_else(|| OpsError::field(field, "is neither an image nor a set"))?;
            let mut members = Vec::new();
            for (at, member) in set.members.iter().enumerate() {
                let place = format!("{field}.{at_set}.members[{at}].image");
                members.push((member.index, image(place, &member.image, BodyKind::Set)?));
            }
            // Normalizing sorts the members by index: their images go with them.
            members.sort_by_key(|(index, _)| *index);
            let rows: Vec<_> = members.into_iter().map(|(_, row)| row).collect();
            let images = rows.iter().map(|row| row.id).collect();
            Ok((BodyRecord { spec: whole(set), images }, rows))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ImageTraits;

    #[test]
    fn what_an_image_wants_of_a_flavor() {
        let traits =
            ImageTraits { min_ram: 512, min_disk: 2, virtual_size: Some(3 * GIB), ..Default::default() };
        let image = ImageRecord {
            id: ImageId::new(),
            project: ProjectId::DEFAULT,
            name: "i".into(),
            format: ImageFormat::Raw,
            cmdline: String::new(),
            blobs: Default::default(),
            layers: Vec::new(),
            traits,
            export: None,
            closing: false,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let table = [
            (511, Some(9), false),
            (512, Some(9), true),
            (512, Some(3), true),
            (512, Some(2), false),
            (512, Some(0), true),
            (512, None, true),
        ];
        for (memory, disk, fits) in table {
            assert_eq!(enough_for(&image, memory, disk).is_ok(), fits, "{memory} MiB, {disk:?} GiB");
        }
    }
}
