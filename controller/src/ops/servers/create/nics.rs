//! Which networks an order means.

use super::plan::NicPlan;
use super::{NicWish, NicsWish};
use crate::model::NetworkRecord;
use crate::ops::{FixedIpWish, OpsError, PortTarget, Row, View};
use amphi_api::ProjectId;

pub(super) fn of(view: &View, project: ProjectId, wish: &NicsWish) -> Result<Vec<NicPlan>, OpsError> {
    match wish {
        NicsWish::None => Ok(Vec::new()),
        NicsWish::These(nics) => nics.iter().enumerate().map(|(at, nic)| one(nic, at)).collect(),
        NicsWish::Unsaid | NicsWish::Auto => {
            let mut usable = usable(view, project);
            match (usable.next(), usable.next()) {
                (Some(one), None) => Ok(vec![to(one)]),
                (Some(_), Some(_)) => Err(OpsError::conflict(
                    "Multiple possible networks found, use a Network ID to be more specific.",
                )),
                (None, _) if *wish == NicsWish::Auto => {
                    Err(OpsError::field("networks", "the project has no network that could be taken"))
                }
                (None, _) => Ok(Vec::new()),
            }
        }
    }
}

/// Networks that a project's instances may be put on without being asked twice: its own and shared ones.
fn usable(view: &View, project: ProjectId) -> impl Iterator<Item = &Row<NetworkRecord>> {
    let own = view.networks.of_project(project);
    let shared = view.networks.iter().filter(move |n| n.shared && n.project != project);
    own.chain(shared)
        .filter(move |n| !n.closing && (!n.external || n.shared))
        .filter(|n| view.subnets_of(n.id).next().is_some())
}

fn to(network: &NetworkRecord) -> NicPlan {
    NicPlan {
        target: PortTarget::Network(network.id),
        fixed_ips: None,
        tag: None,
        bandwidth: Default::default(),
        field: "networks[0]".into(),
    }
}

fn one(nic: &NicWish, at: usize) -> Result<NicPlan, OpsError> {
    let field = format!("networks[{at}]");
    let target = match (nic.port, nic.network) {
        (Some(port), _) => PortTarget::Port(port),
        (None, Some(network)) => PortTarget::Network(network),
        (None, None) => return Err(OpsError::field(field, "names neither a network nor a port")),
    };
    let wanted = nic.fixed_ip.map(|address| vec![FixedIpWish { subnet: None, address: Some(address) }]);
    let fixed_ips = wanted.filter(|_| nic.port.is_none());
    Ok(NicPlan { target, fixed_ips, tag: nic.tag.clone(), bandwidth: Default::default(), field })
}
