//! Changing the description of a set that runs: the order, how far it has got, and the descriptions that there were. Owns
//! these words and their rules; refuses to know which members a change replaces (the controller) and how (the host).

use crate::instance::Fault;
use crate::set::{MemberSpec, SetSpec};
use crate::{FieldError, InstanceId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// Descriptions kept of an instance.
pub const REVISIONS_KEPT: usize = 10;

/// A set's new description: the whole, or what differs member by member. Members whose containers would be the same stay
/// untouched.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetUpdate {
    /// In place of the present one. Either this or `members`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetSpec>,
    /// By the members' names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, MemberChange>,
    /// Refused unless this is the number of the present description.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// Why: at most 255 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 255)]
    pub reason: Option<String>,
}

/// What changes of a member. What is not named stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberChange {
    /// Name or id of a container image. A name is looked up anew: it may mean another image by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 255)]
    pub image: Option<String>,
    /// In place of the present one; empty: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 512)]
    pub command: Option<Vec<String>>,
    /// In place of the present ones; empty: the image's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 512)]
    pub args: Option<Vec<String>>,
    /// Variables to set; null takes one away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, Option<String>>,
}

impl MemberChange {
    /// The member as it is then.
    pub fn apply(&self, member: &MemberSpec) -> MemberSpec {
        let mut next = member.clone();
        if let Some(image) = &self.image {
            next.image = image.clone();
        }
        if let Some(command) = &self.command {
            next.command = command.clone();
            if !command.is_empty() {
                next.args.clear();
            }
        }
        if let Some(args) = &self.args {
            next.args = args.clone();
        }
        for (name, value) in &self.env {
            match value {
                Some(value) => drop(next.env.insert(name.clone(), value.clone())),
                None => drop(next.env.remove(name)),
            }
        }
        next
    }
}

impl SetUpdate {
    /// Checks what can be known without the present description.
    pub fn check(&self) -> Result<(), FieldError> {
        match (&self.set, self.members.is_empty()) {
            (Some(_), false) => {
                return Err(FieldError::new("members", "give either 'set' or 'members'"));
            }
            (None, true) => {
                return Err(FieldError::new("set", "is missing: give the whole description, or 'members'"));
            }
            (Some(set), true) => set.check().map_err(|e| e.under("set"))?,
            (None, false) => {}
        }
        for (name, change) in &self.members {
            if *change == MemberChange::default() {
                return Err(FieldError::new(format!("members.{name}"), "nothing is to change"));
            }
        }
        match &self.reason {
            Some(reason) => validate::name("reason", reason),
            None => Ok(()),
        }
    }

    /// The description that comes of the present one, checked but for memory and images.
    pub fn apply(&self, present: &SetSpec) -> Result<SetSpec, FieldError> {
        if let Some(set) = &self.set {
            return Ok(set.normalized());
        }
        let mut next = present.clone();
        for (name, change) in &self.members {
            let Some(member) = next.members.iter_mut().find(|m| m.effective_name() == *name) else {
                let known: Vec<String> = present.members.iter().map(MemberSpec::effective_name).collect();
                let why = format!("no such member; there are {}", known.join(", "));
                return Err(FieldError::new(format!("members.{name}"), why));
            };
            *member = change.apply(member);
        }
        next.check()?;
        Ok(next.normalized())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutPhase {
    /// Members give way to their next ones, in order of index.
    Updating,
    /// A new member failed, or the update was called off: the former ones come back.
    RollingBack,
    Done,
    /// The former description holds; `fault` says why.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberPhase {
    /// Its turn has not come.
    Waiting,
    /// The image is fetched and the container made, beside the old one, which runs.
    Preparing,
    /// The new one has been started and is not ready.
    Starting,
    /// It is ready, and has to stay so for a while.
    Ready,
    Done,
}

/// One member of an update.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct MemberRollout {
    pub name: String,
    pub index: u32,
    pub phase: MemberPhase,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub since: Timestamp,
    /// When the new one was first seen started; its deadline counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub started_at: Option<Timestamp>,
    /// From the end of the old one to the start of the new one, in milliseconds on the host's clock; 0 where they overlapped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
}

/// The last update of an instance, or the one under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Rollout {
    pub instance: InstanceId,
    /// The description that it leads to, by number.
    pub revision: u64,
    /// The one before.
    pub from: u64,
    /// The one that holds now, or held before the update under way.
    pub present: u64,
    pub phase: RolloutPhase,
    /// No further member begins.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Those that are replaced, in order.
    pub members: Vec<MemberRollout>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub started_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    #[schema(value_type = Option<String>)]
    pub ended_at: Option<Timestamp>,
}

impl Rollout {
    pub fn ended(&self) -> bool {
        matches!(self.phase, RolloutPhase::Done | RolloutPhase::Failed)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RevisionResult {
    /// The update to it is under way.
    Updating,
    Done,
    /// It never came to hold.
    Failed,
}

/// One of an instance's descriptions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Revision {
    pub number: u64,
    /// It holds now.
    pub present: bool,
    /// Who ordered it.
    pub by: String,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub at: Timestamp,
    /// What differs from the one before, member by member.
    pub what: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub result: RevisionResult,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Only where one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<SetSpec>,
}

/// The order to go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutUndo {
    /// To this description. Default: while an update is under way, the one that it came from; else the last one that held
    /// before the present one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn present() -> SetSpec {
        let set = json!({"members": [{"index": 1, "name": "web", "image": "a", "args": ["x"], "env": {"A": "1", "B": "2"}},
            {"index": 2, "name": "db", "image": "b"}]});
        serde_json::from_value::<SetSpec>(set).unwrap().normalized()
    }

    fn update(value: Value) -> SetUpdate {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_not_named_stays() {
        let change = json!({"members": {"web": {"image": "a2", "env": {"A": "3", "B": null, "C": "4"}}}});
        let next = update(change).apply(&present()).unwrap();
        let web = &next.members[0];
        assert_eq!((web.image.as_str(), web.args.len()), ("a2", 1));
        assert_eq!(web.env, BTreeMap::from([("A".into(), "3".into()), ("C".into(), "4".into())]));
        assert_eq!(next.members[1], present().members[1]);
        let change = json!({"members": {"web": {"command": ["/bin/x"]}}});
        let next = update(change).apply(&present()).unwrap();
        assert_eq!((next.members[0].command.len(), next.members[0].args.len()), (1, 0));
    }

    #[test]
    fn refusals_name_their_field() {
        let table = [
            (json!({}), "set"),
            (json!({"members": {"web": {}}}), "members.web"),
            (json!({"set": {"members": []}}), "set.members"),
            (
                json!({"set": {"members": [{"index": 0, "image": "a"}]}, "members": {"web": {"image": "b"}}}),
                "members",
            ),
            (json!({"members": {"web": {"image": "b"}}, "reason": ""}), "reason"),
            (json!({"members": {"cache": {"image": "b"}}}), "members.cache"),
            (json!({"members": {"web": {"image": ""}}}), "members[0].image"),
            (json!({"members": {"web": {"env": {"=": "b"}}}}), "members[0].env.="),
            (json!({"members": {"web": {"command": ["/x"], "args": ["b"]}}}), "members[0].args"),
        ];
        for (order, field) in table {
            let order = update(order);
            let refused = order.check().and_then(|()| order.apply(&present()).map(drop)).unwrap_err();
            assert_eq!(refused.field, field, "{refused}");
        }
    }
}
