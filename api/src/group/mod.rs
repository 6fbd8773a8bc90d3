//! Scaling groups: so many instances made of one template, kept so. Owns the requests, their rules and the view; refuses
//! to know where instances go. A server group only says who keeps apart; a scaling group makes its instances itself.

mod endpoints;
mod scaling;

pub use endpoints::{Endpoint, Endpoints, HttpSdGroup};
pub use scaling::{
    Autoscale, InstanceFigures, MetricPost, NumberOf, ScaleFigure, ScaleWindow, ScalingExplained, clock,
};

use crate::instance::{Fault, InstanceCreate, InstanceState};
use crate::{FieldError, InstanceId, ProjectId, ScalingGroupId, validate};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use utoipa::ToSchema;

/// Most instances of one group.
pub const COUNT_MAX: u32 = 1000;
/// In a template's name it stands for the instance's number in the group.
pub const INDEX: &str = "{index}";

/// How a group's instances lie to each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Affinity {
    None,
    /// All on one host.
    Affinity,
    /// Each on a host of its own.
    AntiAffinity,
    SoftAffinity,
    /// Each on a host of its own as long as there are so many.
    #[default]
    SoftAntiAffinity,
}

/// How members are exchanged for those of another revision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdatePolicy {
    /// That many of `count` may be missing because of an update: 0 to 1,000. Default 1.
    #[schema(minimum = 0, maximum = 1000)]
    pub max_unavailable: u32,
    /// That many more than `count` may be there meanwhile, made before old ones go: 0 to 1,000. Default 0.
    #[schema(minimum = 0, maximum = 1000)]
    pub max_surge: u32,
    /// Seconds between leaving the endpoints and being deleted: 0 to 3,600. Default 5.
    #[schema(minimum = 0, maximum = 3600)]
    pub drain_s: u32,
    /// What an update does whose new members do not get ready.
    pub on_failure: OnFailure,
    /// Sets are updated where they are, where the difference allows it and one may be missing; otherwise, and always when
    /// this is false, another instance takes the place of each. Default true.
    pub in_place: bool,
}

impl Default for UpdatePolicy {
    fn default() -> Self {
        Self {
            max_unavailable: 1,
            max_surge: 0,
            drain_s: 5,
            on_failure: OnFailure::default(),
            in_place: true,
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// The revision before comes back.
    #[default]
    Undo,
    /// It stays as it is, until somebody decides.
    Pause,
}

/// When a member is given up and made anew.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthPolicy {
    /// Seconds that a new member has for getting ready: 1 to 86,400. Default 300.
    #[schema(minimum = 1, maximum = 86400)]
    pub ready_within_s: u32,
    /// Seconds for which one that was ready may be out of readiness: 1 to 86,400; 0: it is never replaced. Default 300.
    #[schema(minimum = 0, maximum = 86400)]
    pub replace_after_s: u32,
}

impl Default for HealthPolicy {
    fn default() -> Self {
        Self { ready_within_s: 300, replace_after_s: 300 }
    }
}

/// A scaling group to make.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupCreate {
    #[schema(min_length = 1, max_length = 255)]
    pub name: String,
    /// Instances to have: 0 to 1,000. Default 1.
    #[serde(default = "one")]
    #[schema(minimum = 0, maximum = 1000)]
    pub count: u32,
    /// What each is made of. In its name `{index}` stands for the member's number; without it, `-NUMBER` is appended.
    pub template: InstanceCreate,
    #[serde(default)]
    pub affinity: Affinity,
    /// Ports of the service, as the endpoints tell them. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub ports: Vec<u16>,
    #[serde(default)]
    pub update: UpdatePolicy,
    #[serde(default)]
    pub health: HealthPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
}

fn one() -> u32 {
    1
}

/// What can be changed of a group beside its size and its template. What is not said stays.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 16)]
    pub ports: Option<Vec<u16>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdatePolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<HealthPolicy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    /// The group scales by itself no longer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_autoscale: bool,
}

/// The order to have another number of instances.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupScale {
    #[schema(minimum = 0, maximum = 1000)]
    pub to: u32,
}

/// The order to make members of another template: a new revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupUpdate {
    pub template: InstanceCreate,
    /// Only so many of a hundred, rounded up: 1 to 100. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub percent: Option<u8>,
    /// Only one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub canary: bool,
}

/// What becomes of an update under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutVerb {
    Pause,
    Resume,
    /// Back to the revision before.
    Undo,
    /// On to the share of `percent`; to all when none is said.
    Promote,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RolloutOrder {
    pub verb: RolloutVerb,
    /// Only of `promote`: 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub percent: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    /// Every member is of the revision.
    Done,
    Progressing,
    /// The share that was ordered is there; `promote` goes on.
    Waiting,
    Paused,
}

/// How far the members are of the revision that is ordered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[schemars(rename = "GroupRollout")]
#[schema(as = GroupRollout)]
pub struct Rollout {
    pub state: RolloutState,
    /// The revision that is ordered.
    pub to: u32,
    /// The one that the others keep.
    pub from: u32,
    /// Members that are to be of `to`.
    pub wanted: u32,
    /// Members of `to`, and those of them that are ready.
    pub updated: u32,
    pub ready: u32,
    /// Why it was paused or undone by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub since: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum GroupState {
    /// As many ready members as are wanted, all of the revision that is wanted.
    Steady,
    /// Members are made, awaited or taken away.
    Changing,
    /// Members cannot be made now; `trouble` says why. It is tried again.
    Short,
    Deleting,
}

/// One instance of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct GroupMember {
    pub index: u32,
    pub instance: InstanceId,
    pub name: String,
    pub revision: u32,
    pub state: InstanceState,
    pub ready: bool,
    /// It has left the endpoints and is about to be deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    #[schema(value_type = Vec<String>)]
    pub addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_name: Option<String>,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A scaling group as clients see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Group {
    pub id: ScalingGroupId,
    pub project: ProjectId,
    pub name: String,
    pub state: GroupState,
    /// Members wanted.
    pub count: u32,
    /// Members ready.
    pub ready: u32,
    /// The template of `rollout.to`.
    pub template: InstanceCreate,
    pub affinity: Affinity,
    pub ports: Vec<u16>,
    pub update: UpdatePolicy,
    pub health: HealthPolicy,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscale: Option<Autoscale>,
    pub rollout: Rollout,
    pub members: Vec<GroupMember>,
    /// Deleted members of which a host still has something.
    pub leaving: Vec<InstanceId>,
    /// Why no member could be made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<Fault>,
    /// Why it scaled last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scaled: Option<String>,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub created_at: Timestamp,
    #[schemars(with = "String")]
    #[schema(value_type = String)]
    pub updated_at: Timestamp,
}

/// The name of one member.
pub fn member_name(pattern: &str, index: u32) -> String {
    match pattern.contains(INDEX) {
        true => pattern.replace(INDEX, &index.to_string()),
        false => format!("{pattern}-{index}"),
    }
}

/// A template is an instance that can be had several times.
pub fn check_template(template: &InstanceCreate) -> Result<(), FieldError> {
    let under = |e: FieldError| e.under("template");
    let named = InstanceCreate { name: member_name(&template.name, COUNT_MAX), ..template.clone() };
    named.check().map_err(under)?;
    if let Some(at) = template.networks.iter().position(|n| n.address.is_some()) {
        let why = "an address of one's own cannot be several instances'";
        return Err(FieldError::new(format!("template.networks[{at}].address"), why));
    }
    if template.volume.as_ref().is_some_and(|v| v.id.is_some()) {
        let why = "one volume cannot be several instances': give size_gib";
        return Err(FieldError::new("template.volume.id", why));
    }
    Ok(())
}

pub fn check_ports(ports: &[u16]) -> Result<(), FieldError> {
    validate::within("ports", ports.len() as u64, 0, 16, "ports")?;
    match ports.iter().position(|port| *port == 0) {
        Some(at) => Err(FieldError::new(format!("ports[{at}]"), "must be 1 to 65535, is 0")),
        None => Ok(()),
    }
}

impl UpdatePolicy {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::within("max_unavailable", self.max_unavailable.into(), 0, COUNT_MAX.into(), "")?;
        validate::within("max_surge", self.max_surge.into(), 0, COUNT_MAX.into(), "")?;
        validate::within("drain_s", self.drain_s.into(), 0, 3600, "seconds")?;
        if self.max_unavailable == 0 && self.max_surge == 0 {
            let why = "with neither max_unavailable nor max_surge nothing could be exchanged";
            return Err(FieldError::new("max_surge", why));
        }
        Ok(())
    }
}

impl HealthPolicy {
    pub fn check(&self) -> Result<(), FieldError> {
        validate::within("ready_within_s", self.ready_within_s.into(), 1, 86_400, "seconds")?;
        validate::within("replace_after_s", self.replace_after_s.into(), 0, 86_400, "seconds")
    }
}

impl GroupCreate {
    /// Checks all that can be known without records. The first wrong field is named.
    pub fn check(&self) -> Result<(), FieldError> {
        validate::name("name", &self.name)?;
        validate::within("count", self.count.into(), 0, COUNT_MAX.into(), "instances")?;
        check_template(&self.template)?;
        check_ports(&self.ports)?;
        self.update.check().map_err(|e| e.under("update"))?;
        self.health.check().map_err(|e| e.under("health"))?;
        match &self.autoscale {
            Some(policy) => policy.check().map_err(|e| e.under("autoscale")),
            None => Ok(()),
        }
    }
}

impl GroupChange {
    pub fn check(&self) -> Result<(), FieldError> {
        check_ports(self.ports.as_deref().unwrap_or_default())?;
        if let Some(update) = &self.update {
            update.check().map_err(|e| e.under("update"))?;
        }
        if let Some(health) = &self.health {
            health.check().map_err(|e| e.under("health"))?;
        }
        if self.autoscale.is_some() && self.no_autoscale {
            return Err(FieldError::new("no_autoscale", "either a policy or none"));
        }
        match &self.autoscale {
            Some(policy) => policy.check().map_err(|e| e.under("autoscale")),
            None => Ok(()),
        }
    }
}

impl GroupUpdate {
    pub fn check(&self) -> Result<(), FieldError> {
        check_template(&self.template)?;
        if self.canary && self.percent.is_some() {
            return Err(FieldError::new("canary", "either a share in percent or a single one"));
        }
        validate::within("percent", self.percent.unwrap_or(100).into(), 1, 100, "%")
    }
}

impl RolloutOrder {
    pub fn check(&self) -> Result<(), FieldError> {
        if self.percent.is_some() && self.verb != RolloutVerb::Promote {
            return Err(FieldError::new("percent", "only 'promote' takes a share"));
        }
        validate::within("percent", self.percent.unwrap_or(100).into(), 1, 100, "%")
    }
}

#[cfg(test)]
mod tests;
