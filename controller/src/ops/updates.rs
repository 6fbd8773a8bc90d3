//! The orders about a set's description: another one, back to an earlier one, hold on, go on; and what is told of it. An
//! order makes a revision and the record of the update; the steps are the task's (`rollouts`).
//!
//! Refuses what only the anchor could do, since an update never touches it: members would lose their network.

use super::list::find;
use super::servers::Origin;
use super::{Draft, Ops, OpsError, Row, View, resolve};
use crate::model::*;
use amphi_api::instance::{BodyKind, BodySpec, Fault, Instance, Power};
use amphi_api::rollout::{
    MemberPhase, MemberRollout, REVISIONS_KEPT, Revision, RevisionResult, Rollout, RolloutPhase, RolloutUndo,
    SetUpdate,
};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::{FieldError, ImageId, InstanceId, ProjectId};
use jiff::Timestamp;

impl Ops {
    /// Updates an instance's set to this description, member by member; at once where nothing of it runs. What is so
    /// already is no update: the answer is the last one.
    pub async fn update_set(
        &self,
        origin: &Origin,
        id: InstanceId,
        update: &SetUpdate,
    ) -> Result<Rollout, OpsError> {
        update.check()?;
        self.transact(|view| {
            let row = find(&view.instances, origin.project, id)?;
            let body = set_body(row)?;
            refuse_busy(row)?;
            if update.revision.is_some_and(|wanted| wanted != present(view, row, body).0) {
                let (now, _) = present(view, row, body);
                return Err(OpsError::taken("revision", format!("the present description is number {now}")));
            }
            let mut draft = Draft::default();
            let next = next_body(view, row, body, update, &mut draft)?;
            let order = Order { next, what: None, reason: update.reason.clone() };
            order.begin(view, origin, row, body, &mut draft, Timestamp::now())?;
            Ok((draft, ()))
        })
        .await?;
        self.rollout(origin.project, id)
    }

    /// The update under way, or the last one.
    pub fn rollout(&self, scope: ProjectId, id: InstanceId) -> Result<Rollout, OpsError> {
        let view = self.world().read();
        let row = find(&view.instances, scope, id)?;
        let body = set_body(row)?;
        let (present, _) = present(&view, row, body);
        match view.rollouts.get(id) {
            Some(rollout) if rollout.ended() => Ok(Rollout { present, ..rollout.view() }),
            Some(rollout) => Ok(rollout.view()),
            None => Ok(Rollout {
                instance: id,
                revision: present,
                from: present,
                present,
                phase: RolloutPhase::Done,
                paused: false,
                members: Vec::new(),
                fault: None,
                started_at: row.created_at,
                ended_at: Some(row.created_at),
            }),
        }
    }

    /// No further member begins, or they go on.
    pub async fn pause_rollout(
        &self,
        scope: ProjectId,
        id: InstanceId,
        paused: bool,
    ) -> Result<Rollout, OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, scope, id)?;
            set_body(row)?;
            let mut draft = Draft::default();
            let rollout = view.rollouts.get(id).filter(|r| !r.ended() && row.rolling.is_some());
            let rollout = rollout.ok_or_else(|| OpsError::conflict("no update is under way"))?;
            if rollout.phase != RolloutPhase::Updating {
                return Err(OpsError::conflict("the update is being rolled back"));
            }
            if rollout.paused != paused {
                draft.update(rollout, &RolloutRecord { paused, ..(*rollout.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.rollout(scope, id)
    }

    /// Out of the update under way, or back to an earlier description.
    pub async fn undo_rollout(
        &self,
        origin: &Origin,
        id: InstanceId,
        undo: RolloutUndo,
    ) -> Result<Rollout, OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, origin.project, id)?;
            let body = set_body(row)?;
            let (mut draft, now) = (Draft::default(), Timestamp::now());
            if let (Some(rolling), Some(rollout)) = (&row.rolling, view.rollouts.get(id)) {
                if undo.to.is_some_and(|to| to != rollout.from) {
                    return Err(under_way(rolling));
                }
                if rollout.phase == RolloutPhase::Updating {
                    let fault =
                        Fault { code: "cancelled".into(), message: "it was called off".into(), since: now };
                    super::rollouts::roll_back(view, &mut draft, rollout, row, fault, now);
                }
                return Ok((draft, ()));
            }
            refuse_busy(row)?;
            let (present, _) = present(view, row, body);
            let target = earlier(view, row, body, present, undo.to)?;
            if let Some(set) = set_of(&target.body) {
                // Size and volume may be others than they were then.
                let unfit = |e: FieldError| {
                    OpsError::conflict(format!(
                        "revision {} does not fit any more: {}",
                        target.number, e.message
                    ))
                };
                fits(set, row.memory_mib, has_volume(row)).map_err(unfit)?;
            }
            for image in &target.body.images {
                let there = view.images.get(*image).filter(|i| !i.closing && !i.traits.deactivated);
                let there = there.ok_or_else(|| {
                    OpsError::conflict(format!(
                        "image {image} of revision {} is not there any more",
                        target.number
                    ))
                })?;
                draft.guard(there);
            }
            let what = Some(format!("back to {}", target.number));
            let order = Order { next: target.body.clone(), what, reason: None };
            order.begin(view, origin, row, body, &mut draft, now)?;
            Ok((draft, ()))
        })
        .await?;
        self.rollout(origin.project, id)
    }

    /// The newest first, without the descriptions.
    pub fn revisions(&self, scope: ProjectId, id: InstanceId) -> Result<Vec<Revision>, OpsError> {
        let view = self.world().read();
        let row = find(&view.instances, scope, id)?;
        let (present, _) = present(&view, row, set_body(row)?);
        let mut all: Vec<Revision> = view.revisions_of(id).map(|r| told(r, present)).collect();
        all.reverse();
        Ok(all)
    }

    /// One of them, with the description.
    pub fn revision(&self, scope: ProjectId, id: InstanceId, number: u64) -> Result<Revision, OpsError> {
        let view = self.world().read();
        let row = find(&view.instances, scope, id)?;
        let (present, _) = present(&view, row, set_body(row)?);
        let key = RevisionKey { instance: id, number };
        let found = view.revisions.get(key).ok_or_else(|| OpsError::not_found::<RevisionRecord>(number))?;
        Ok(Revision { set: set_of(&found.body).cloned(), ..told(found, present) })
    }

    /// Ends one member and starts it again; its container stays the same.
    pub async fn restart_member(
        &self,
        scope: ProjectId,
        id: InstanceId,
        member: &str,
    ) -> Result<Instance, OpsError> {
        self.transact(|view| {
            let row = find(&view.instances, scope, id)?;
            let set = set_of(set_body(row)?);
            if !set.is_some_and(|set| set.members.iter().any(|m| m.name == member)) {
                return Err(OpsError::NotFound { noun: "member", id: member.to_owned() });
            }
            refuse_busy(row)?;
            if row.body != BodyKind::Set || row.power != Power::On {
                return Err(OpsError::conflict("the set does not run"));
            }
            let mut draft = Draft::default();
            let mut record = InstanceRecord { updated_at: Timestamp::now(), ..(*row.record).clone() };
            *record.member_restarts.entry(member.to_owned()).or_default() += 1;
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await?;
        self.instance(scope, id)
    }
}

/// What is told whoever asks for something else meanwhile.
pub(super) fn under_way(rolling: &Rolling) -> OpsError {
    OpsError::conflict(format!(
        "the update to revision {} is under way: wait for its end, or undo it",
        rolling.revision
    ))
}

/// Whether an update goes to this image, or may have to come back to it.
pub(super) fn uses(view: &View, rollout: &RolloutRecord, image: ImageId) -> bool {
    let of = |number| view.revisions.get(RevisionKey { instance: rollout.instance, number });
    [rollout.revision, rollout.from].into_iter().filter_map(of).any(|r| r.body.images.contains(&image))
}

/// The set among an instance's bodies, whether it is the one that runs or not.
fn set_body(row: &InstanceRecord) -> Result<&BodyRecord, OpsError> {
    let none = || OpsError::NotFound { noun: "set among the bodies of instance", id: row.id.to_string() };
    row.body_of(BodyKind::Set).ok_or_else(none)
}

pub(super) fn set_of(body: &BodyRecord) -> Option<&SetSpec> {
    match &body.spec {
        BodySpec::Set(set) => Some(set),
        BodySpec::Vm(_) => None,
    }
}

fn refuse_busy(row: &InstanceRecord) -> Result<(), OpsError> {
    if row.intent == Intent::Deleting {
        return Err(OpsError::conflict("the instance is being deleted"));
    }
    if let Some(exchange) = row.exchange {
        return Err(OpsError::conflict(format!("exchange {exchange} is in progress; wait for its end")));
    }
    if let Some(rolling) = &row.rolling {
        return Err(under_way(rolling));
    }
    if row.host.is_none() {
        return Err(OpsError::conflict("no host has room for the instance"));
    }
    if row.shelved.is_some() {
        return Err(OpsError::conflict("the instance is shelved; unshelve it"));
    }
    if row.rescue.is_some() {
        return Err(OpsError::conflict("the instance is being rescued; unrescue it"));
    }
    if row.resize.is_some() {
        return Err(OpsError::conflict("its resize waits to be confirmed or reverted"));
    }
    if let Some(pending) = &row.task {
        return Err(OpsError::conflict(format!("it is {}; wait for its end", pending.task.word())));
    }
    match row.power {
        Power::On | Power::Off => Ok(()),
        Power::Paused | Power::Suspended => Err(OpsError::conflict("the instance is halted; start it")),
    }
}

/// The number of the description that the instance has, and whether it is yet to be written down: as long as none was
/// ordered, or where a rebuild has brought another one.
fn present(view: &View, row: &InstanceRecord, body: &BodyRecord) -> (u64, bool) {
    if let (Some(_), Some(rollout)) = (&row.rolling, view.rollouts.get(row.id)) {
        return (rollout.present(), false);
    }
    let known = view.rollouts.get(row.id).map(|r| r.present());
    let at = |number| view.revisions.get(RevisionKey { instance: row.id, number });
    match known.and_then(at).filter(|r| r.body == *body) {
        Some(known) => (known.number, false),
        None => (view.revisions_of(row.id).last().map_or(0, |r| r.number) + 1, true),
    }
}

/// The present revision, where there is one, is the set with the limits that a resize gives it: without that the resize
/// would be a description of its own, and an undo would take it back in place of the update before it.
pub(super) fn redescribe(view: &View, row: &InstanceRecord, resized: &InstanceRecord, draft: &mut Draft) {
    let (before, after) = (row.body_of(BodyKind::Set), resized.body_of(BodyKind::Set));
    let Some((before, after)) = before.zip(after).filter(|(before, after)| before != after) else { return };
    let (number, unwritten) = present(view, row, before);
    let known = view.revisions.get(RevisionKey { instance: row.id, number });
    if let Some(known) = known.filter(|_| !unwritten) {
        draft.update(known, &RevisionRecord { body: after.clone(), ..(*known.record).clone() });
    }
}

/// The description to go back to.
fn earlier<'a>(
    view: &'a View,
    row: &InstanceRecord,
    body: &BodyRecord,
    present: u64,
    to: Option<u64>,
) -> Result<&'a Row<RevisionRecord>, OpsError> {
    if let Some(number) = to {
        let found = view.revisions.get(RevisionKey { instance: row.id, number });
        return found.ok_or_else(|| OpsError::field("to", format!("no revision {number}")));
    }
    let fits =
        |r: &&Row<RevisionRecord>| r.number < present && r.result == RevisionResult::Done && r.body != *body;
    let found = view.revisions_of(row.id).filter(fits).last();
    found.ok_or_else(|| OpsError::conflict("there is no earlier description"))
}

fn told(row: &RevisionRecord, present: u64) -> Revision {
    Revision {
        number: row.number,
        present: row.number == present,
        by: row.by.clone(),
        at: row.at,
        what: row.what.clone(),
        reason: row.reason.clone(),
        result: row.result,
        fault: row.fault.clone(),
        set: None,
    }
}

fn has_volume(row: &InstanceRecord) -> bool {
    row.volume.or(row.root_volume).is_some()
}

/// Whether an instance of this size can have such a set.
fn fits(set: &SetSpec, memory_mib: u64, has_volume: bool) -> Result<(), FieldError> {
    set.check_memory(memory_mib)?;
    let parted = set.members.iter().any(|member| !member.mounts.is_empty());
    if parted && !has_volume {
        let why = "members have parts of a volume ('mounts'), and there is none";
        return Err(FieldError::new("members", why));
    }
    Ok(())
}

/// The body that the order makes of the present one. Images of members that are not named in it stay what they are.
fn next_body(
    view: &View,
    row: &InstanceRecord,
    body: &BodyRecord,
    update: &SetUpdate,
    draft: &mut Draft,
) -> Result<BodyRecord, OpsError> {
    let before = set_of(body).ok_or_else(|| OpsError::conflict("the instance lists no set"))?;
    let set = update.apply(before)?;
    let placed = |e: FieldError| if update.set.is_some() { e.under("set") } else { e };
    fits(&set, row.memory_mib, has_volume(row)).map_err(placed)?;
    let mut images = Vec::new();
    for (at, member) in set.members.iter().enumerate() {
        let named = update.set.is_some()
            || update.members.get(&member.name).is_some_and(|change| change.image.is_some());
        let same = before.members.iter().position(|m| m.name == member.name);
        match same.and_then(|at| body.images.get(at)).filter(|_| !named) {
            Some(image) => images.push(*image),
            None => {
                let field = match update.set {
                    Some(_) => format!("set.members[{at}].image"),
                    None => format!("members.{}.image", member.name),
                };
                let found = resolve::image(view, row.project, &field, &member.image, BodyKind::Set)?;
                draft.guard(found);
                images.push(found.id);
            }
        }
    }
    Ok(BodyRecord { spec: BodySpec::Set(set), images })
}

/// A new description, and how it came about.
struct Order {
    next: BodyRecord,
    /// None: what differs.
    what: Option<String>,
    reason: Option<String>,
}

impl Order {
    /// Answers the new description's number; none: nothing differs.
    fn begin(
        self,
        view: &View,
        origin: &Origin,
        row: &Row<InstanceRecord>,
        body: &BodyRecord,
        draft: &mut Draft,
        now: Timestamp,
    ) -> Result<Option<u64>, OpsError> {
        let (Some(before), Some(after)) = (set_of(body), set_of(&self.next)) else {
            return Err(OpsError::conflict("the instance lists no set"));
        };
        if *body == self.next {
            return Ok(None);
        }
        let made = row.body == BodyKind::Set;
        if made {
            refuse_anchor(before, after)?;
        }
        let differs = differences(row, body, &self.next);
        let runs = made && row.power == Power::On;
        let (from, unwritten) = present(view, row, body);
        let newest = view.revisions_of(row.id).last().map_or(0, |r| r.number);
        let number = newest.max(from) + 1;
        let by = who(view, origin);
        if unwritten {
            draft.create(&RevisionRecord {
                instance: row.id,
                number: from,
                body: body.clone(),
                by: by.clone(),
                at: row.created_at,
                what: "as it was before".into(),
                reason: None,
                result: RevisionResult::Done,
                fault: None,
            });
        }
        let waits = runs && differs.iter().any(|d| d.replaced);
        draft.create(&RevisionRecord {
            instance: row.id,
            number,
            body: self.next.clone(),
            by,
            at: now,
            what: self.what.unwrap_or_else(|| in_words(&differs)),
            reason: self.reason,
            result: if waits { RevisionResult::Updating } else { RevisionResult::Done },
            fault: None,
        });
        let replaced = differs.iter().filter(|d| d.replaced);
        let phase = if waits { MemberPhase::Waiting } else { MemberPhase::Done };
        let members: Vec<MemberRollout> = replaced
            .map(|d| MemberRollout {
                name: d.name.clone(),
                index: d.index,
                phase,
                since: now,
                started_at: None,
                gap_ms: None,
            })
            .collect();
        let record = RolloutRecord {
            instance: row.id,
            revision: number,
            from,
            epoch: row.epoch,
            phase: if waits { RolloutPhase::Updating } else { RolloutPhase::Done },
            phase_since: now,
            paused: false,
            members,
            generations: row.generations.clone(),
            fault: None,
            started_at: now,
            ended_at: (!waits).then_some(now),
        };
        draft.put_record(view.rollouts.get(row.id), &record);
        let mut instance = InstanceRecord { updated_at: now, ..(*row.record).clone() };
        if waits {
            instance.rolling = Some(Rolling { revision: number, ..Rolling::default() });
        } else {
            for member in &record.members {
                instance.generations.insert(member.name.clone(), number);
            }
            put_body(&mut instance, self.next);
        }
        draft.update(row, &instance);
        let kept = REVISIONS_KEPT.saturating_sub(1 + usize::from(unwritten));
        let old: Vec<_> = view.revisions_of(row.id).filter(|r| r.number != from).collect();
        let over = (old.len() + usize::from(!unwritten)).saturating_sub(kept);
        old.into_iter().take(over).for_each(|r| draft.delete(r));
        Ok(Some(number))
    }
}

/// The set has this description from now on, also where the same set is listed as a VM: whichever body comes next is of it.
/// A VM that runs takes it up with its next start.
pub(super) fn put_body(record: &mut InstanceRecord, body: BodyRecord) {
    let as_vm = body.spec.counterpart();
    for held in &mut record.bodies {
        match (&held.spec, &as_vm) {
            (BodySpec::Set(_), _) => *held = body.clone(),
            (BodySpec::Vm(vm), Some(spec)) if vm.set.is_some() => {
                *held = BodyRecord { spec: spec.clone(), images: body.images.clone() };
            }
            (BodySpec::Vm(_), _) => {}
        }
    }
}

fn who(view: &View, origin: &Origin) -> String {
    let name = |id| view.identity.users.get(id).map(|user| user.name.clone());
    origin.user.map_or("admin".into(), |id| name(id).unwrap_or_else(|| id.to_string()))
}

/// What an update cannot do without the anchor, with the reason.
fn refuse_anchor(before: &SetSpec, after: &SetSpec) -> Result<(), OpsError> {
    match needs_new_body(before, after) {
        Some((field, why)) => Err(OpsError::field(field, why)),
        None => Ok(()),
    }
}

/// For a group, in its own transaction: a member's set is brought to this description. Answers the description's number;
/// none: it is so already.
pub(super) fn order_of_group(
    view: &View,
    row: &Row<InstanceRecord>,
    set: &SetSpec,
    group: &str,
    draft: &mut Draft,
    now: Timestamp,
) -> Result<Option<u64>, OpsError> {
    let body = set_body(row)?;
    refuse_busy(row)?;
    let reason = Some(format!("group {group}"));
    let update = SetUpdate { set: Some(set.clone()), reason, ..SetUpdate::default() };
    update.check()?;
    let next = next_body(view, row, body, &update, draft)?;
    let order = Order { next, what: None, reason: update.reason };
    order.begin(view, &Origin::native(row.project), row, body, draft, now)
}

/// One member that is not as before.
struct Difference {
    name: String,
    index: u32,
    /// Names of what differs.
    fields: Vec<String>,
    /// Its container would be another one.
    replaced: bool,
}

/// What differs between two descriptions of the same members, in start order.
fn differences(row: &InstanceRecord, before: &BodyRecord, after: &BodyRecord) -> Vec<Difference> {
    let (Some(old), Some(new)) = (set_of(before), set_of(after)) else { return Vec::new() };
    let (old_limits, new_limits) = (old.memory_limits(row.memory_mib), new.memory_limits(row.memory_mib));
    let shared = has_volume(row);
    let mut all = Vec::new();
    for (at, member) in new.members.iter().enumerate() {
        let was = old.members.iter().position(|m| m.effective_name() == member.effective_name());
        let mut fields = match was {
            Some(was) => fields(&old.members[was], member),
            None => vec!["new".to_owned()],
        };
        let mut note = |field: &str, differs: bool| {
            if differs && !fields.iter().any(|known| known == field) {
                fields.push(field.to_owned());
            }
        };
        let image = was.and_then(|was| before.images.get(was));
        note("image", was.is_some() && image != after.images.get(at));
        note("options", was.is_some_and(|was| old_limits.get(was) != new_limits.get(at)));
        note("timezone", old.anchor.timezone != new.anchor.timezone);
        note("volume_mount", shared && member.mounts.is_empty() && old.volume_mount != new.volume_mount);
        if fields.is_empty() {
            continue;
        }
        // How it gives way is told to whoever swaps, not to the container.
        let replaced = fields.iter().any(|field| field != "update");
        all.push(Difference { name: member.effective_name(), index: member.index, fields, replaced });
    }
    all
}

fn fields(before: &MemberSpec, after: &MemberSpec) -> Vec<String> {
    let object = |member: &MemberSpec| match serde_json::to_value(member) {
        Ok(serde_json::Value::Object(map)) => map,
        _ => serde_json::Map::new(),
    };
    let (before, after) = (object(before), object(after));
    let mut names: Vec<&String> = before.keys().chain(after.keys()).collect();
    names.sort();
    names.dedup();
    names.into_iter().filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

fn in_words(differs: &[Difference]) -> String {
    let one = |d: &Difference| format!("{}: {}", d.name, d.fields.join(", "));
    let mut text = differs.iter().map(one).collect::<Vec<_>>().join("; ");
    if text.is_empty() {
        text.push_str("nothing of any member");
    }
    if text.chars().count() > 255 {
        text = text.chars().take(254).collect::<String>() + "…";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn set(value: serde_json::Value) -> SetSpec {
        serde_json::from_value::<SetSpec>(value).unwrap().normalized()
    }

    #[test]
    fn what_an_instance_cannot_have_does_not_fit() {
        let member = |more: serde_json::Value| {
            let mut member = json!({"index": 1, "name": "web", "image": "i"});
            member.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            set(json!({"members": [member]}))
        };
        let heap = member(json!({"options": {"heap_mib": 200}}));
        let parted = member(json!({"mounts": [{"path": "/srv"}]}));
        for (set, memory_mib, has_volume, field) in [
            (&heap, 512, false, None),
            (&heap, 128, false, Some("members[0].options.heap_mib")),
            (&parted, 128, true, None),
            (&parted, 128, false, Some("members")),
        ] {
            let told = fits(set, memory_mib, has_volume).err().map(|e| e.field);
            assert_eq!(told.as_deref(), field, "{memory_mib} MiB, a volume: {has_volume}");
        }
    }

    #[test]
    fn what_only_the_anchor_can_do_is_refused() {
        let member = |index: u32, name: &str| json!({"index": index, "name": name, "image": "i"});
        let before = set(json!({"members": [member(1, "web")]}));
        let refused = |after: serde_json::Value| match refuse_anchor(&before, &set(after)) {
            Ok(()) => String::new(),
            Err(OpsError::Field(error)) => error.field,
            Err(other) => panic!("{other}"),
        };
        let with = |anchor: serde_json::Value| json!({"members": [member(1, "web")], "anchor": anchor});
        for (after, field) in [
            (json!({"members": [{"index": 1, "name": "web", "image": "other"}]}), ""),
            (json!({"members": [member(1, "web"), member(2, "db")]}), "set.members"),
            (json!({"members": [member(2, "web")]}), "set.members"),
            (json!({"members": [member(1, "www")]}), "set.members"),
            (with(json!({"sysctls": {"net.core.somaxconn": "4096"}})), "set.anchor.sysctls"),
            (with(json!({"dns": {"servers": ["10.0.0.1"]}})), "set.anchor.dns"),
            (with(json!({"hosts": {"a": "10.0.0.1"}})), "set.anchor.hosts"),
            (with(json!({"shm_mib": 64})), "set.anchor.shm_mib"),
            (with(json!({"timezone": "Europe/Berlin"})), ""),
        ] {
            assert_eq!(refused(after.clone()), field, "{after}");
        }
    }
}
