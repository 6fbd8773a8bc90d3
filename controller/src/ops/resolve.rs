//! Names and ids in requests become records of the caller's project; what cannot be found names its field.

use super::view::{Row, Table};
use super::{OpsError, View};
use crate::model::{BodyRecord, HostRecord, ImageRecord, Record};
use amphi_api::ProjectId;
use amphi_api::image::ImageState;
use amphi_api::instance::{BodyKind, BodySpec};

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

/// A body with its images, which must fit the kind of body and have their bytes. `field` is the body's place in the
/// request: `bodies[0]`. The images come back for the transaction to guard.
pub(super) fn body<'a>(
    view: &'a View,
    scope: ProjectId,
    field: &str,
    spec: &BodySpec,
) -> Result<(BodyRecord, Vec<&'a Row<ImageRecord>>), OpsError> {
    let image = |place: String, text: &str, kind: BodyKind| {
        let row = named(&view.images, scope, &place, text)?;
        let wanted = if kind == BodyKind::Set { "a container image" } else { "a disk or kernel image" };
        if row.format.is_container() != (kind == BodyKind::Set) {
            return Err(OpsError::field(place, format!("image '{text}' is not {wanted}")));
        }
        if row.closing {
            return Err(OpsError::field(place, format!("image '{text}' is being deleted")));
        }
        if row.state() != ImageState::Active {
            return Err(OpsError::field(
                place,
                format!("image '{text}' has not all its bytes yet; upload them"),
            ));
        }
        Ok(row)
    };
    match spec {
        BodySpec::Vm(vm) => {
            let row = image(format!("{field}.vm.image"), &vm.image, BodyKind::Vm)?;
            Ok((BodyRecord { spec: spec.clone(), images: vec![row.id] }, vec![row]))
        }
        BodySpec::Set(set) => {
            let mut members = Vec::new();
            for (at, member) in set.members.iter().enumerate() {
                let place = format!("{field}.set.members[{at}].image");
                members.push((member.index, image(place, &member.image, BodyKind::Set)?));
            }
            // Normalizing sorts the members by index: their images go with them.
            members.sort_by_key(|(index, _)| *index);
            let rows: Vec<_> = members.into_iter().map(|(_, row)| row).collect();
            let images = rows.iter().map(|row| row.id).collect();
            Ok((BodyRecord { spec: BodySpec::Set(set.normalized()), images }, rows))
        }
    }
}
