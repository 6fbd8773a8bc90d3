//! Server groups: who keeps together, who apart. A host's share of the group is how many members run on it.

use super::{HostSight, Policy, Request};
use crate::model::GroupPolicy;
use amphi_api::HostId;
use std::collections::BTreeMap;

/// How much one member of a softly bound group weighs: more than all other weights together, which differ by less
/// than 4.4, so that a soft rule gives way to nothing but to a lack of room.
const MEMBER_WEIGHT: f64 = 5.0;

/// A server group as placement sees it; the instance that is being placed is not counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupAsk {
    pub policy: GroupPolicy,
    /// Members on each host.
    pub members: BTreeMap<HostId, u32>,
    /// Members that one host may run, where they keep apart. nova: 1 where nothing is said.
    pub max_per_host: u32,
}

impl GroupAsk {
    fn on(&self, host: HostId) -> u32 {
        self.members.get(&host).copied().unwrap_or(0)
    }
}

/// nova's ServerGroupAffinityFilter and ServerGroupAntiAffinityFilter.
pub(super) fn group(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    let Some(group) = &request.group else { return Ok(()) };
    let here = group.on(host.id);
    match group.policy {
        GroupPolicy::Affinity if here == 0 && !group.members.is_empty() => {
            Err("runs no member of the server group, which keeps together".into())
        }
        GroupPolicy::AntiAffinity if here >= group.max_per_host => Err(format!(
            "runs {here} of the server group, which keeps apart; {} are allowed on a host",
            group.max_per_host
        )),
        _ => Ok(()),
    }
}

/// nova's ServerGroupSoftAffinityWeigher and its opposite.
pub(super) fn together(host: &HostSight, request: &Request) -> f64 {
    let Some(group) = &request.group else { return 0.0 };
    let weight = f64::from(group.on(host.id)) * MEMBER_WEIGHT;
    match group.policy {
        GroupPolicy::SoftAffinity => weight,
        GroupPolicy::SoftAntiAffinity => -weight,
        GroupPolicy::Affinity | GroupPolicy::AntiAffinity => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::super::place;
    use super::super::tests::spec;
    use super::*;
    use amphi_api::host::{Claims, HostState};
    use amphi_api::instance::BodyKind;
    use uuid::Uuid;

    fn id(number: u128) -> HostId {
        HostId(Uuid::from_u128(number))
    }

    /// Host 1 is nearly full, host 2 is empty, host 3 is full. Rows: policy, members on hosts 1 to 3, how many a host
    /// may run, the host that is chosen.
    #[test]
    fn groups_keep_together_and_apart() {
        use GroupPolicy::*;
        let facts = spec(4, 4096, 10);
        let claims = [(40, 2000), (0, 0), (48, 3584)].map(|(vcpus, memory_mib)| Claims {
            vcpus,
            memory_mib,
            ..Claims::default()
        });
        let sights = [1, 2, 3].map(|n| HostSight {
            id: id(n as u128),
            name: "h",
            state: HostState::Up,
            spec: Some(&facts),
            claims: claims[n - 1],
            disabled: None,
            best_effort: false,
            zone: "nova",
            metadata: &[],
            images: None,
            starting: 0,
        });
        let table: &[(GroupPolicy, [u32; 3], u32, Option<u128>)] = &[
            (Affinity, [0, 0, 0], 1, Some(2)),
            (Affinity, [1, 0, 0], 1, Some(1)),
            (Affinity, [0, 0, 1], 1, None),
            (AntiAffinity, [0, 0, 0], 1, Some(2)),
            (AntiAffinity, [0, 1, 0], 1, Some(1)),
            (AntiAffinity, [0, 1, 0], 2, Some(2)),
            (AntiAffinity, [1, 1, 0], 1, None),
            (SoftAffinity, [1, 0, 0], 1, Some(1)),
            (SoftAffinity, [1, 2, 0], 1, Some(2)),
            (SoftAffinity, [0, 0, 5], 1, Some(2)),
            (SoftAntiAffinity, [0, 1, 0], 1, Some(1)),
            (SoftAntiAffinity, [2, 1, 0], 1, Some(2)),
            (SoftAntiAffinity, [7, 9, 0], 1, Some(1)),
        ];
        for (at, (policy, members, max_per_host, want)) in table.iter().enumerate() {
            let members = (1..).zip(members).filter(|(_, n)| **n > 0).map(|(host, n)| (id(host), *n));
            let request = Request {
                vcpus: 1,
                memory_mib: 256,
                bodies: vec![BodyKind::Set],
                group: Some(GroupAsk {
                    policy: *policy,
                    members: members.collect(),
                    max_per_host: *max_per_host,
                }),
                ..Request::default()
            };
            let found = place(&sights, &request, &Policy::default());
            assert_eq!(found.as_ref().ok().map(|p| p.host), want.map(id), "row {at}: {found:?}");
        }
    }
}
