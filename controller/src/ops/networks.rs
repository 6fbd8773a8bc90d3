//! Networks. Two networks may have overlapping subnets; an address is unique within one.
//!
//! Deletion is two commits: first the network takes no more ports, then, when none is left in a view that knows of
//! every port made before, it goes, and its subnets with it. A creation that raced with the first commit is seen by
//! the second look.

use super::list::find;
use super::{Draft, ListQuery, Ops, OpsError, Reach, View, quotas, subnets};
use crate::model::network::{Notes, Provider, SubnetRecord};
use crate::model::{FloatingIpRecord, NetworkRecord, PortRecord, Record, Resource};
use amphi_api::network::{DEFAULT_MTU, Network, NetworkCreate, SubnetSpec};
use amphi_api::{NetworkId, ProjectId, validate};
use jiff::Timestamp;

/// MTU of a network whose frames are carried as they are, in bytes.
const PHYSICAL_MTU: u32 = 1500;

/// Seven operations each, in a transaction of [`crate::store::TXN_OPS_MAX`].
const SPARE_MAX: usize = 16;

/// What is asked of how a network's frames are carried. All empty: a tunnel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProviderWish {
    /// `geneve`, `flat` or `vlan`.
    pub kind: Option<String>,
    pub physical: Option<String>,
    pub segment: Option<u32>,
}

impl NetworkRecord {
    /// A tunnelled network of a project.
    pub fn new(project: ProjectId, name: String, now: Timestamp) -> Self {
        Self {
            id: NetworkId::new(),
            project,
            name,
            mtu: 0,
            closing: false,
            shared: false,
            external: false,
            admin_up: true,
            port_security: true,
            provider: Provider::default(),
            qos: None,
            is_default: false,
            notes: Notes::default(),
            created_at: now,
        }
    }
}

impl Ops {
    /// A network with one subnet.
    pub async fn create_network(
        &self,
        scope: ProjectId,
        request: &NetworkCreate,
    ) -> Result<Network, OpsError> {
        request.check()?;
        let mut record = NetworkRecord::new(scope, request.name.clone(), Timestamp::now());
        record.mtu = request.mtu.unwrap_or_default();
        let subnet = subnets::of_spec(&record, &request.subnet);
        let wish = ProviderWish::default();
        self.put_network(Reach::of(scope), &record, &wish, Some(&subnet)).await?;
        self.network(scope, record.id)
    }

    /// A network as it is given, but for its provider, which is chosen, and its MTU, which is chosen where it is 0.
    pub async fn put_network(
        &self,
        reach: Reach,
        record: &NetworkRecord,
        wish: &ProviderWish,
        subnet: Option<&SubnetRecord>,
    ) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            let mut record = record.clone();
            quotas::check(view, record.project, &[(Resource::Networks, 1)])?;
            record.provider = provider(view, wish)?;
            if record.mtu == 0 {
                let tunnelled = record.provider.physical().is_none();
                record.mtu = if tunnelled { DEFAULT_MTU } else { PHYSICAL_MTU };
            }
            check(view, reach, &record, &mut draft)?;
            if let Some(key) = record.provider.segment_key() {
                draft.reserve(key, record.id);
            }
            draft.create(&record);
            if let Some(subnet) = subnet {
                draft.create(subnet);
            }
            Ok((draft, ()))
        })
        .await
    }

    pub async fn update_network(
        &self,
        reach: Reach,
        id: NetworkId,
        edit: impl Fn(&mut NetworkRecord),
    ) -> Result<(), OpsError> {
        let edited = |view: &View, network: &mut NetworkRecord, draft: &mut Draft| {
            let before = network.clone();
            edit(network);
            check(view, reach, network, draft)?;
            if before.shared && !network.shared {
                let other = |p: &&super::Row<PortRecord>| p.project != network.project && !p.is_of_network();
                if let Some(port) = view.ports_on(id).find(other) {
                    return Err(OpsError::conflict(format!("port {} of another project is on it", port.id)));
                }
            }
            if before.external && !network.external {
                let used = view.ports_on(id).any(|p| p.is_of_network())
                    || view.routers.iter().any(|r| r.gateway.as_ref().is_some_and(|g| g.network == id));
                if used {
                    return Err(OpsError::conflict("routers or floating IPs use the external network"));
                }
            }
            Ok(())
        };
        self.amend(reach, |view| &view.networks, id, edited).await
    }

    pub fn network(&self, scope: ProjectId, id: NetworkId) -> Result<Network, OpsError> {
        let view = self.world().read();
        Ok(network_view(&view, find(&view.networks, scope, id)?))
    }

    pub fn networks(&self, scope: ProjectId, query: &ListQuery) -> Result<Vec<Network>, OpsError> {
        let view = self.world().read();
        let rows = query.rows(&view.networks, scope, |_| true)?;
        Ok(rows.into_iter().map(|row| network_view(&view, row)).collect())
    }

    pub async fn delete_network(&self, scope: ProjectId, id: NetworkId) -> Result<(), OpsError> {
        self.delete_network_of(Reach::of(scope), id).await
    }

    pub async fn delete_network_of(&self, reach: Reach, id: NetworkId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = reach.find(&view.networks, id)?;
            let mut draft = Draft::default();
            let spare = spare_floating_ips(view, id);
            refuse_used(view, id, spare.len())?;
            for ip in spare {
                if let Some(holder) = view.ports.get(ip.holder) {
                    super::ports::remove(view, &mut draft, holder);
                }
                draft.delete(ip);
            }
            if !row.closing {
                draft.update(row, &NetworkRecord { closing: true, ..(*row.record).clone() });
            }
            Ok((draft, ()))
        })
        .await?;
        self.transact(|view| {
            let row = reach.find(&view.networks, id)?;
            let mut draft = Draft::default();
            let used = refuse_used(view, id, 0);
            match &used {
                Ok(()) => {
                    view.subnets_of(id).for_each(|subnet| draft.delete(subnet));
                    if let Some(key) = row.provider.segment_key() {
                        draft.release(key);
                    }
                    draft.delete(row);
                }
                Err(_) => draft.update(row, &NetworkRecord { closing: false, ..(*row.record).clone() }),
            }
            Ok((draft, used))
        })
        .await?
    }
}

/// Floating IPs that stand for nothing: they go with their network. No more than fit into one transaction.
fn spare_floating_ips(view: &View, id: NetworkId) -> Vec<&super::Row<FloatingIpRecord>> {
    let spare = |ip: &&super::Row<FloatingIpRecord>| ip.network == id && ip.target.is_none();
    view.floating_ips.iter().filter(spare).take(SPARE_MAX).collect()
}

/// `leaving`: ports that go in the same transaction.
fn refuse_used(view: &View, id: NetworkId, leaving: usize) -> Result<(), OpsError> {
    match view.ports_on(id).count().saturating_sub(leaving) {
        0 => Ok(()),
        count => Err(OpsError::conflict(format!("{count} ports are on the network"))),
    }
}

fn check(view: &View, reach: Reach, network: &NetworkRecord, draft: &mut Draft) -> Result<(), OpsError> {
    // RFC 791's least MTU, and what jumbo frames reach.
    validate::within("mtu", u64::from(network.mtu), 68, 9216, "bytes")?;
    if network.mtu < 1280 && view.subnets_of(network.id).any(|s| !s.is_v4()) {
        return Err(OpsError::field("mtu", "IPv6 needs 1280 bytes at least"));
    }
    if let Some(policy) = network.qos {
        draft.guard(reach.policy(view, policy)?);
    }
    Ok(())
}

fn provider(view: &View, wish: &ProviderWish) -> Result<Provider, OpsError> {
    let physical = || match wish.physical.as_deref() {
        Some(name) if validate::label("provider:physical_network", name).is_ok() => Ok(name.to_owned()),
        Some(name) => Err(OpsError::field("provider:physical_network", format!("'{name}' is no name"))),
        None => Err(OpsError::field("provider:physical_network", "is missing")),
    };
    let provider = match wish.kind.as_deref() {
        None if wish.physical.is_some() || wish.segment.is_some() => {
            return Err(OpsError::field("provider:network_type", "is missing"));
        }
        None | Some("geneve") if wish.physical.is_none() => {
            if wish.segment.is_some_and(|n| n == 0 || n >= 1 << 24) {
                return Err(OpsError::field("provider:segmentation_id", "must be 1 to 16777215"));
            }
            Provider::Geneve { segment: Some(wish.segment.unwrap_or_else(|| free_tunnel(view))) }
        }
        Some("geneve") | None => {
            return Err(OpsError::field("provider:physical_network", "does not go with geneve"));
        }
        Some("flat") if wish.segment.is_none() => Provider::Flat { physical: physical()? },
        Some("flat") => return Err(OpsError::field("provider:segmentation_id", "does not go with flat")),
        Some("vlan") => {
            let physical = physical()?;
            let taken = |n: u16| {
                let one = Provider::Vlan { physical: physical.clone(), segment: n };
                view.networks.iter().any(|row| row.provider == one)
            };
            let segment = match wish.segment {
                Some(n @ 1..=4094) => n as u16,
                Some(_) => return Err(OpsError::field("provider:segmentation_id", "must be 1 to 4094")),
                None => (1..=4094)
                    .find(|n| !taken(*n))
                    .ok_or_else(|| OpsError::conflict(format!("no VLAN of '{physical}' is free")))?,
            };
            Provider::Vlan { physical, segment }
        }
        Some(other) => {
            return Err(OpsError::field("provider:network_type", format!("no network type '{other}'")));
        }
    };
    let key = provider.segment_key();
    match view.networks.iter().find(|row| row.provider.segment_key() == key) {
        Some(row) => Err(OpsError::conflict(format!("network {} has this segment", row.id))),
        None => Ok(provider),
    }
}

/// A tunnel key that no network has: the last three bytes of a fresh id, which are random.
fn free_tunnel(view: &View) -> u32 {
    loop {
        let bytes = NetworkId::new().0.into_bytes();
        let segment = u32::from_be_bytes([0, bytes[13], bytes[14], bytes[15]]);
        let wanted = Provider::Geneve { segment: Some(segment) };
        if segment > 0 && view.networks.iter().all(|row| row.provider != wanted) {
            return segment;
        }
    }
}

fn network_view(view: &View, record: &NetworkRecord) -> Network {
    let rows: Vec<_> = view.subnets_of(record.id).collect();
    let gateways = rows.iter().filter_map(|s| s.gateway);
    let taken = view.addresses(record.id).map(|book| book.taken());
    let bare = gateways.filter(|g| taken.is_none_or(|t| !t.contains_key(g))).count();
    let spec =
        |s: &SubnetRecord| SubnetSpec { cidr: s.cidr, gateway: s.gateway, dns: s.dns.clone(), dhcp: s.dhcp };
    let (v4, v6): (Vec<_>, Vec<_>) = rows.into_iter().partition(|s| s.is_v4());
    let mut specs = v4.into_iter().chain(v6).map(|s| spec(s));
    Network {
        id: record.id,
        project: record.project,
        name: record.name.clone(),
        subnet: specs.next(),
        further_subnets: specs.collect(),
        mtu: record.mtu,
        addresses_used: (bare + taken.map_or(0, |t| t.len())) as u64,
        created_at: record.created_at,
    }
}

/// A network's record by name or id, of the project's own or of those that it may use.
pub(super) fn named<'a>(
    view: &'a View,
    scope: ProjectId,
    field: &str,
    text: &str,
) -> Result<&'a super::Row<NetworkRecord>, OpsError> {
    let own = super::resolve::named(&view.networks, scope, field, text);
    if own.is_ok() {
        return own;
    }
    let mut shared =
        view.networks.iter().filter(|n| n.shared && (n.name == text || n.id().to_string() == text));
    match (shared.next(), shared.next()) {
        (Some(one), None) => Ok(one),
        _ => own,
    }
}
