//! A set that waits: its networks, files and containers are made and none of them is started, so that it sends nothing, and
//! its start is all that a failover costs. Docker starts no container of ours by itself. Refuses to touch a set that has
//! ever run.

use super::ENGINE;
use super::carry_out::{connect, create, remove};
use super::observed::{Part, PartState};
use super::render::{RenderedSet, render};
use super::shared::Shared;
use crate::instance::{BodyPlan, DriverError};
use amphi_api::set::SetSpec;
use futures_util::future::{join_all, try_join};

/// Whether the parts are the whole set, as it would be made now, and none of it ever ran. Members are made last: where all of
/// them are, so is all that their anchor needs.
pub fn is_whole(parts: &[Part], rendered: &RenderedSet) -> bool {
    let made = |spec: &str, member: Option<&str>| {
        parts.iter().any(|part| {
            part.tag.spec == spec
                && !part.is_rescuer()
                && part.tag.role.member().map(|(_, name)| name) == member
        })
    };
    parts.len() == 1 + rendered.members.len()
        && parts.iter().all(|part| part.state == PartState::Created)
        && made(&rendered.anchor.spec, None)
        && rendered.members.iter().all(|member| made(&member.container.spec, Some(&member.name)))
}

/// Makes all of the set and starts nothing. What was made of it in another way is made anew.
pub async fn lay_out(shared: &Shared, plan: &BodyPlan, set: &SetSpec) -> Result<(), DriverError> {
    let parts = shared.collect(Some(plan.instance)).await?;
    if let Some(other) =
        parts.iter().find(|part| part.tag.epoch != plan.epoch || part.state != PartState::Created)
    {
        return Err(DriverError::EngineRefused {
            engine: ENGINE,
            doing: format!("make instance {} ready at epoch {}", plan.instance, plan.epoch),
            message: format!("containers of its epoch {} are there, {:?}", other.tag.epoch, other.state),
        });
    }
    let networks = shared.networks.ensure(&shared.engine, &plan.ports);
    let (_held, facts) = try_join(networks, shared.facts(plan, set)).await?;
    let mut rendered = render(plan, set, &facts);
    if set.members.iter().any(|member| !member.mounts.is_empty()) {
        // A member that has a part of the volume cannot be made before the anchor has mounted that, which is its start.
        rendered.members.clear();
    }
    if is_whole(&parts, &rendered) {
        return Ok(());
    }
    let (anchors, members): (Vec<&Part>, Vec<&Part>) = parts.iter().partition(|part| part.is_anchor());
    for part in members.into_iter().chain(anchors) {
        remove(shared, &part.id).await?;
    }
    // The anchor is refused while a file that is mounted in it is missing.
    try_join(shared.files(plan).ensure(plan, set), shared.places.sync(plan)).await?;
    create(shared, &rendered.anchor).await?;
    connect(shared, &rendered.connects).await?;
    let made = join_all(rendered.members.iter().map(|member| create(shared, &member.container))).await;
    made.into_iter().try_for_each(|made| made.map(drop))
}

#[cfg(test)]
mod tests {
    use super::super::labels::{Role, Tag};
    use super::super::render::{Rendered, RenderedMember};
    use super::*;
    use amphi_api::InstanceId;

    fn part(role: Role, spec: &str, state: PartState) -> Part {
        let tag = Tag {
            instance: InstanceId(uuid::Uuid::nil()),
            epoch: 3,
            role,
            spec: spec.to_owned(),
            generation: 0,
            life: Default::default(),
        };
        Part { id: spec.to_owned(), tag, state, detail: Default::default() }
    }

    #[test]
    fn whole_is_all_of_it_as_ordered_and_never_run() {
        use PartState::{Created, Ended};
        let rendered = |spec: &str| Rendered { spec: spec.to_owned(), ..Rendered::default() };
        let member = |name: &str, spec: &str| RenderedMember {
            name: name.to_owned(),
            index: 0,
            container: rendered(spec),
        };
        let wanted = RenderedSet {
            anchor: rendered("anchor"),
            connects: Vec::new(),
            members: vec![member("a", "1"), member("b", "2")],
        };
        let anchor = |spec, state| part(Role::Anchor { members: Vec::new() }, spec, state);
        let made =
            |name: &str, spec, state| part(Role::Member { index: 0, name: name.to_owned() }, spec, state);
        let a = || made("a", "1", Created);
        let b = || made("b", "2", Created);
        let table = [
            ("all of it", vec![anchor("anchor", Created), a(), b()], true),
            ("a member is missing", vec![anchor("anchor", Created), a()], false),
            ("no anchor", vec![a(), b()], false),
            ("the anchor has run", vec![anchor("anchor", Ended), a(), b()], false),
            (
                "a member of another order",
                vec![anchor("anchor", Created), a(), made("b", "3", Created)],
                false,
            ),
            ("an anchor of another order", vec![anchor("other", Created), a(), b()], false),
            ("one more", vec![anchor("anchor", Created), a(), b(), made("c", "3", Created)], false),
            ("one that ran", vec![anchor("anchor", Created), a(), made("b", "2", Ended)], false),
            ("nothing", vec![], false),
        ];
        for (what, parts, whole) in table {
            assert_eq!(is_whole(&parts, &wanted), whole, "{what}");
        }
    }
}
