//! Plugs the anchor's ports: what its endpoints lack and what they have too many, and the calls that change it, whether
//! the anchor runs or not. Members share its network: an interface that comes or goes is theirs at once. Refuses to touch
//! networks that carry no port of ours.

use super::observed::Endpoint;
use super::render::render_connect;
use super::shared::Shared;
use crate::instance::{BodyPlan, DriverError, PortAttachment};
use bollard::models::NetworkDisconnectRequest;

/// The network of a container that has none: it must be left before another can be joined.
const NONE: &str = "none";

/// What makes an anchor's endpoints as wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Difference {
    /// Networks to leave, by name.
    pub leave: Vec<String>,
    /// Places in the plan's ports.
    pub join: Vec<usize>,
}

impl Difference {
    pub fn is_empty(&self) -> bool {
        self.leave.is_empty() && self.join.is_empty()
    }
}

pub fn differ(endpoints: &[Endpoint], wanted: &[PortAttachment]) -> Difference {
    let join: Vec<usize> = (0..wanted.len())
        .filter(|at| !endpoints.iter().any(|endpoint| endpoint.port == Some(wanted[*at].id)))
        .collect();
    let over = |endpoint: &&Endpoint| match endpoint.port {
        Some(port) => !wanted.iter().any(|wanted| wanted.id == port),
        None => endpoint.network == NONE && !join.is_empty(),
    };
    Difference { leave: endpoints.iter().filter(over).map(|e| e.network.clone()).collect(), join }
}

/// The networks of what is to be joined are there. `anchor`: the container's id.
pub async fn change(
    shared: &Shared,
    plan: &BodyPlan,
    anchor: &str,
    difference: &Difference,
) -> Result<(), DriverError> {
    let limit = shared.engine.limits.start;
    for network in &difference.leave {
        let doing = format!("take {anchor} out of {network}");
        let request = NetworkDisconnectRequest { container: anchor.to_owned(), force: Some(false) };
        let left = shared
            .engine
            .find(&doing, limit, |docker| async move { docker.disconnect_network(network, request).await })
            .await;
        shared.sightings.doubt(anchor);
        left?;
    }
    for at in &difference.join {
        let (network, mut request) = render_connect(plan, &plan.ports[*at], *at == 0);
        request.container = anchor.to_owned();
        let doing = format!("connect {anchor} to {network}");
        let joined = shared
            .engine
            .call(&doing, limit, |docker| async move { docker.connect_network(&network, request).await })
            .await;
        shared.sightings.doubt(anchor);
        joined?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::{NetworkId, PortId};

    #[test]
    fn ports_come_and_go() {
        let ids = [PortId::new(), PortId::new()];
        let port = |at: usize| PortAttachment {
            id: ids[at],
            network: NetworkId::new(),
            subnet: "10.0.0.0/24".parse().unwrap(),
            mac: String::new(),
            address: "10.0.0.5/24".parse().unwrap(),
            gateway: None,
            dns: Vec::new(),
            mtu: 1400,
            segment: None,
            further: Vec::new(),
            routes: Vec::new(),
        };
        let both = [port(0), port(1)];
        let on = |at: usize| Endpoint { network: format!("n{at}"), port: Some(ids[at]) };
        let bare = |name: &str| Endpoint { network: name.to_owned(), port: None };
        for (endpoints, wanted, leave, join) in [
            (vec![on(0), on(1)], &both[..], &[][..], &[][..]),
            (vec![on(0)], &both[..], &[], &[1]),
            (vec![on(0), on(1)], &both[..1], &["n1"], &[]),
            (vec![on(1)], &both[..1], &["n1"], &[0]),
            (vec![bare("none")], &[], &[], &[]),
            (vec![bare("none")], &both[..1], &["none"], &[0]),
            (vec![on(0), bare("somebody's")], &both[..1], &[], &[]),
        ] {
            let found = differ(&endpoints, wanted);
            assert_eq!(
                (found.leave.iter().map(String::as_str).collect::<Vec<_>>(), found.join),
                (leave.to_vec(), join.to_vec()),
                "{endpoints:?}"
            );
        }
    }
}
