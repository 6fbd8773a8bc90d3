//! Who sees what: neutron's rules of visibility, over the tables of records.

use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::words;
use crate::model::network::{FloatingIpRecord, QosPolicyRecord, RouterRecord, SecurityGroupRecord};
use crate::model::{NetworkRecord, PortRecord, Record, SubnetRecord};
use crate::ops::identity::Caller;
use crate::ops::{OpsError, Reach, Row, Table, View};
use amphi_api::ProjectId;
use uuid::Uuid;

/// A record of the network service, as far as it can be seen.
pub trait Seen: Record {
    /// Its name in neutron's errors: `Network` of `NetworkNotFound`.
    const WORD: &'static str;
    /// `NetworkNotFound`.
    const ABSENT: &'static str;
    /// `NetworkInUse`, or whatever a conflict over it is called.
    const BUSY: &'static str;

    fn table(view: &View) -> &Table<Self>;

    /// Whether the caller sees it without owning it.
    fn open(&self, _view: &View, _caller: &Caller) -> bool {
        false
    }

    fn id_of(id: Uuid) -> Self::Id;
}

macro_rules! seen {
    ($record:ty, $table:ident, $id:ty, $word:literal, $absent:literal, $busy:literal $(, $open:expr)?) => {
        impl Seen for $record {
            const WORD: &'static str = $word;
            const ABSENT: &'static str = $absent;
            const BUSY: &'static str = $busy;
            fn table(view: &View) -> &Table<Self> {
                &view.$table
            }
            $(fn open(&self, view: &View, caller: &Caller) -> bool {
                let open: fn(&Self, &View, &Caller) -> bool = $open;
                open(self, view, caller)
            })?
            fn id_of(id: Uuid) -> Self::Id {
                <$id>::from(Identity(id))
            }
        }
        impl From<Identity> for $id {
            fn from(id: Identity) -> Self {
                Self(id.0)
            }
        }
    };
}

/// A UUID of a kind that is about to be named.
pub struct Identity(Uuid);

seen!(
    NetworkRecord,
    networks,
    amphi_api::NetworkId,
    "Network",
    "NetworkNotFound",
    "NetworkInUse",
    |network, _, _| { network.shared || network.external }
);
seen!(
    SubnetRecord,
    subnets,
    amphi_api::SubnetId,
    "Subnet",
    "SubnetNotFound",
    "SubnetInUse",
    |subnet, view, _| { view.networks.get(subnet.network).is_some_and(|n| n.shared) }
);
seen!(PortRecord, ports, amphi_api::PortId, "Port", "PortNotFound", "PortInUse", |port, view, caller| {
    view.networks.get(port.network).is_some_and(|n| Some(n.project) == caller.project)
});
seen!(RouterRecord, routers, amphi_api::RouterId, "Router", "RouterNotFound", "RouterInUse");
seen!(
    FloatingIpRecord,
    floating_ips,
    amphi_api::FloatingIpId,
    "Floating IP",
    "FloatingIPNotFound",
    "FloatingIPPortAlreadyAssociated"
);
seen!(
    SecurityGroupRecord,
    groups,
    amphi_api::SecurityGroupId,
    "Security group",
    "SecurityGroupNotFound",
    "SecurityGroupInUse"
);
seen!(
    QosPolicyRecord,
    qos_policies,
    amphi_api::QosPolicyId,
    "QoS policy",
    "QosPolicyNotFound",
    "QosPolicyInUse",
    |policy, _, _| policy.shared
);

/// What the caller may change: its project's, or everything.
pub fn reach(caller: &Caller) -> Result<Reach, Refusal> {
    if caller.is_admin() {
        // An admin's own token may have no project: nothing is then its own, and all is in reach.
        return Ok(Reach { project: caller.project.unwrap_or(ProjectId(Uuid::nil())), admin: true });
    }
    Ok(Reach::of(caller.project()?))
}

pub fn visible<R: Seen>(view: &View, caller: &Caller, record: &R) -> bool {
    let owns = caller.is_admin() || record.owner().is_some_and(|(p, _)| Some(p) == caller.project);
    owns || record.open(view, caller)
}

/// The row of a path's id, if it is seen.
pub fn find<'a, R: Seen>(view: &'a View, caller: &Caller, id: &str) -> Result<&'a Row<R>, Refusal> {
    let row = words::id(id).and_then(|id| R::table(view).get(R::id_of(id)));
    row.filter(|row| visible(view, caller, &*row.record)).ok_or_else(|| absent::<R>(id))
}

/// The id of a path, of a row that is seen. What may only be seen may not be changed: 403, as neutron's policy has it.
pub fn own<R: Seen>(view: &View, caller: &Caller, id: &str) -> Result<R::Id, Refusal> {
    let row = find::<R>(view, caller, id)?;
    if reach(caller)?.owns(&*row.record) {
        return Ok(row.id());
    }
    Err(not_yours(&format!("to change {} {id}", R::WORD)))
}

pub fn absent<R: Seen>(id: &str) -> Refusal {
    Refusal::not_found(R::WORD, id).kind(R::ABSENT)
}

/// 403 in neutron's words.
pub fn not_yours(what: &str) -> Refusal {
    Refusal::forbidden(format!("The policy doesn't allow {what}.")).kind("PolicyNotAuthorized")
}

/// A refusal of ops in the words of the resource that was asked for.
pub fn told<R: Seen>(error: OpsError) -> Refusal {
    if let OpsError::Quota(over) = &error {
        return Refusal::conflict(format!("Quota exceeded for resources: ['{}'].", over.resource))
            .kind("OverQuota");
    }
    let kind = match &error {
        OpsError::NotFound { noun, .. } => match *noun {
            "network" => "NetworkNotFound",
            "subnet" => "SubnetNotFound",
            "port" => "PortNotFound",
            "router" => "RouterNotFound",
            "security group" => "SecurityGroupNotFound",
            "rule" => "SecurityGroupRuleNotFound",
            "QoS policy" => "QosPolicyNotFound",
            "QoS rule" => "QosRuleNotFound",
            "router interface" => "RouterInterfaceNotFoundForSubnet",
            noun if noun.starts_with("external gateway") => "ExternalGatewayForFloatingIPNotFound",
            _ => R::ABSENT,
        },
        OpsError::Conflict { field: Some(field), .. } if field.ends_with(".network") => {
            "IpAddressGenerationFailure"
        }
        OpsError::Conflict { field: Some(field), .. } if field.ends_with(".address") => "IpAddressInUse",
        OpsError::Conflict { field: Some(field), .. } if field == "mac_address" => "MacAddressInUse",
        OpsError::Conflict { .. } => R::BUSY,
        OpsError::Field(_) => "InvalidInput",
        _ => "",
    };
    Refusal::from(error).kind(kind)
}
