//! The labels that tie containers and networks to instances: written at creation, read at every observation. Owns
//! their names and nothing else; refuses to guess what a label does not say.

use crate::instance::PortAttachment;
use amphi_api::InstanceId;
use amphi_api::set::{Hook, MemberSpec, NextWhen, Probes, RestartPolicy, StopSpec};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

pub const INSTANCE: &str = "amphi.instance";
pub const EPOCH: &str = "amphi.epoch";
/// The member's name, or [`ANCHOR`].
pub const MEMBER: &str = "amphi.member";
/// The member's place in the start order; absent on anchors.
pub const INDEX: &str = "amphi.index";
/// Hash of the rendered spec.
pub const SPEC: &str = "amphi.spec";
/// The number of the description that the container was made for; absent where it is the first.
pub const GENERATION: &str = "amphi.generation";
pub const PROJECT: &str = "amphi.project";
pub const NAME: &str = "amphi.name";
/// [`Life`] as JSON, where a member's is not the default.
pub const LIFE: &str = "amphi.life";
/// Always `set`.
pub const KIND: &str = "amphi.kind";
/// On anchors, the members that belong to the set, and on a rescue's members, those that belong to it: as `INDEX=NAME`
/// separated by commas, so that a member whose container somebody removed is missed.
pub const MEMBERS: &str = "amphi.members";
/// `yes` on members of a rescue's body, which run in the place of the set's own; `no` on all others.
pub const RESCUE: &str = "amphi.rescue";
/// On images that are made of members and on their way out: the Amphi image that they are for.
pub const EXPORT: &str = "amphi.export";
/// On endpoints, as the driver's option: the port's id.
pub const PORT: &str = "amphi.port";
/// On Docker networks: the Amphi network's id.
pub const NETWORK: &str = "amphi.network";

/// The member name that anchors carry; the API refuses it for members.
pub const ANCHOR: &str = "anchor";

/// What a member's description says of its life, so that whoever sees the container knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Life {
    pub restart: RestartPolicy,
    pub next_when: NextWhen,
    pub stop: StopSpec,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<Hook>,
    pub probes: Probes,
}

impl Life {
    pub fn of(member: &MemberSpec) -> Life {
        Life {
            restart: member.restart,
            next_when: member.next_when,
            stop: member.stop.clone(),
            pre_stop: member.hooks.pre_stop.clone(),
            probes: member.probes.clone(),
        }
    }

    /// None: the default.
    pub fn write(&self) -> Option<String> {
        (*self != Life::default()).then(|| serde_json::to_string(self).ok()).flatten()
    }

    /// The next index waits for its probes.
    pub fn gates_by_probe(&self) -> bool {
        self.next_when == NextWhen::Ready && self.probes.tell_ready()
    }
}

/// What a container's labels say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tag {
    pub instance: InstanceId,
    /// 0 where the label is missing or not a number: older than any placement.
    pub epoch: u64,
    pub role: Role,
    pub spec: String,
    /// See [`GENERATION`]; 0 where the label is missing.
    pub generation: u64,
    pub life: Life,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// With the members that belong to it: index and name, in start order.
    Anchor {
        members: Vec<(u32, String)>,
    },
    Member {
        index: u32,
        name: String,
    },
    /// Of a rescue's body, with all that belong to it.
    Rescuer {
        index: u32,
        name: String,
        members: Vec<(u32, String)>,
    },
}

impl Role {
    /// A member's or rescuer's place and name.
    pub fn member(&self) -> Option<(u32, &str)> {
        match self {
            Role::Anchor { .. } => None,
            Role::Member { index, name } | Role::Rescuer { index, name, .. } => Some((*index, name)),
        }
    }
}

impl Tag {
    /// None: not a container of ours.
    pub fn read(labels: &HashMap<String, String>) -> Option<Tag> {
        let get = |key: &str| labels.get(key).map(String::as_str).unwrap_or_default();
        let instance = get(INSTANCE).parse().ok()?;
        let role = match get(MEMBER) {
            "" => return None,
            ANCHOR => Role::Anchor { members: read_members(get(MEMBERS)) },
            name => {
                let (index, name) = (get(INDEX).parse().unwrap_or(0), name.to_owned());
                match get(RESCUE) {
                    "yes" => Role::Rescuer { index, name, members: read_members(get(MEMBERS)) },
                    _ => Role::Member { index, name },
                }
            }
        };
        Some(Tag {
            instance,
            epoch: get(EPOCH).parse().unwrap_or(0),
            role,
            spec: get(SPEC).to_owned(),
            generation: get(GENERATION).parse().unwrap_or(0),
            life: serde_json::from_str(get(LIFE)).unwrap_or_default(),
        })
    }
}

/// Member names hold neither `,` nor `=` (`amphi_api::validate::label`).
pub fn write_members<'a>(members: impl Iterator<Item = (u32, &'a str)>) -> String {
    members.map(|(index, name)| format!("{index}={name}")).collect::<Vec<_>>().join(",")
}

fn read_members(text: &str) -> Vec<(u32, String)> {
    let mut members: Vec<(u32, String)> = text
        .split(',')
        .filter_map(|one| one.split_once('='))
        .filter_map(|(index, name)| Some((index.parse().ok()?, name.to_owned())))
        .collect();
    members.sort();
    members
}

/// The anchor's container name.
pub fn anchor_name(instance: InstanceId) -> String {
    container_name(instance, ANCHOR)
}

/// A member's container name.
pub fn container_name(instance: InstanceId, member: &str) -> String {
    format!("amphi-{instance}-{member}")
}

/// The container name of a member of a later description, beside which an earlier one's may stand; no member's is like it.
pub fn generation_name(instance: InstanceId, member: &str, generation: u64) -> String {
    match generation {
        0 => container_name(instance, member),
        _ => format!("amphi-g{generation}-{instance}-{member}"),
    }
}

/// A rescuer's container name; no member's is like it.
pub fn rescuer_name(instance: InstanceId, member: &str) -> String {
    format!("amphi-rescue-{instance}-{member}")
}

/// The Docker network that stands for an Amphi network, or for one more subnet of it: Docker's networks have one subnet of
/// a family.
pub fn network_name(port: &PortAttachment) -> String {
    match port.segment {
        None => format!("amphi-{}", port.network),
        Some(subnet) => format!("amphi-{}-{}", port.network, subnet.0.simple()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_was_written() {
        let instance = InstanceId::new();
        let id = instance.to_string();
        let labels = |pairs: &[(&str, &str)]| -> HashMap<String, String> {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
        };
        let anchor = Tag::read(&labels(&[
            (INSTANCE, &id),
            (EPOCH, "3"),
            (MEMBER, ANCHOR),
            (MEMBERS, "10=b,2=a"),
            (SPEC, "x"),
        ]));
        let members = vec![(2, "a".to_owned()), (10, "b".to_owned())];
        assert_eq!(
            anchor,
            Some(Tag {
                instance,
                epoch: 3,
                role: Role::Anchor { members },
                spec: "x".to_owned(),
                generation: 0,
                life: Life::default()
            })
        );
        let member =
            Tag::read(&labels(&[(INSTANCE, &id), (MEMBER, "web"), (INDEX, "7"), (EPOCH, "?")])).unwrap();
        assert_eq!((member.epoch, member.role), (0, Role::Member { index: 7, name: "web".to_owned() }));
        let rescuer = Tag::read(&labels(&[
            (INSTANCE, &id),
            (MEMBER, "web"),
            (INDEX, "7"),
            (RESCUE, "yes"),
            (MEMBERS, "7=web"),
        ]));
        let members = vec![(7, "web".to_owned())];
        let role = Role::Rescuer { index: 7, name: "web".to_owned(), members };
        assert_eq!(rescuer.map(|tag| tag.role), Some(role));
        for foreign in [vec![], vec![(INSTANCE, "x"), (MEMBER, "a")], vec![(INSTANCE, id.as_str())]] {
            assert_eq!(Tag::read(&labels(&foreign)), None);
        }
        assert_eq!(read_members(&write_members([(1, "a"), (2, "b-_.")].into_iter())).len(), 2);
    }
}
