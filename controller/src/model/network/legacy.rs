//! Records as older versions wrote them, in today's form. Pure: (key, value) → what to write in their place.
//!
//! Until networks had several subnets, a network carried its one subnet inline and a port its one address.

use super::default_pools;
use crate::model::{NetworkRecord, PortRecord, Record, SubnetRecord};
use amphi_api::network::SubnetSpec;
use amphi_api::{NetworkId, SubnetId};
use serde_json::{Value, json};
use uuid::Uuid;

/// The subnet that an older network carried inline gets an id made of the network's.
pub fn subnet_of(network: NetworkId) -> SubnetId {
    SubnetId(Uuid::new_v5(&network.0, b"inline subnet"))
}

/// What stands in the place of an entry of an older store, and beside it; empty where nothing has to change.
pub fn renewed(key: &str, value: &Value) -> Result<Vec<(String, Value)>, serde_json::Error> {
    if key.starts_with(NetworkRecord::PREFIX) && value.get("subnet").is_some() {
        return network(key, value);
    }
    if key.starts_with(PortRecord::PREFIX) && value.get("address").is_some() {
        return port(key, value);
    }
    Ok(Vec::new())
}

fn network(key: &str, value: &Value) -> Result<Vec<(String, Value)>, serde_json::Error> {
    let mut value = value.clone();
    let inline = value.as_object_mut().and_then(|map| map.remove("subnet")).unwrap_or_default();
    let spec: SubnetSpec = serde_json::from_value(inline)?;
    let record: NetworkRecord = serde_json::from_value(value)?;
    let gateway = Some(spec.effective_gateway());
    let subnet = SubnetRecord {
        id: subnet_of(record.id),
        project: record.project,
        network: record.id,
        name: String::new(),
        cidr: spec.cidr.trunc(),
        gateway,
        pools: default_pools(spec.cidr, gateway),
        dns: spec.dns,
        routes: Vec::new(),
        dhcp: spec.dhcp,
        ra_mode: None,
        address_mode: None,
        closing: false,
        notes: Default::default(),
        created_at: record.created_at,
    };
    Ok(vec![(subnet.key(), serde_json::to_value(&subnet)?), (key.to_owned(), serde_json::to_value(&record)?)])
}

fn port(key: &str, value: &Value) -> Result<Vec<(String, Value)>, serde_json::Error> {
    let mut value = value.clone();
    let address = value.as_object_mut().and_then(|map| map.remove("address")).unwrap_or_default();
    let network: NetworkId = serde_json::from_value(value["network"].clone())?;
    value["fixed_ips"] = json!([{"subnet": subnet_of(network), "address": address}]);
    let mut record: PortRecord = serde_json::from_value(value)?;
    record.device_id = record.instance.map(|id| id.to_string()).unwrap_or_default();
    record.device_owner = super::owner::INSTANCE.into();
    Ok(vec![(key.to_owned(), serde_json::to_value(&record)?)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_network_and_port_open_as_todays() {
        let id = "00000000-0000-0000-0000-000000000010";
        let old = json!({
            "id": id, "project": "616d7068-6900-7000-8000-000000000001", "name": "net", "mtu": 1442,
            "subnet": {"cidr": "10.1.0.0/24", "dns": ["10.1.0.2"], "dhcp": true},
            "closing": false, "created_at": "2026-01-01T00:00:00Z"
        });
        let written = renewed(&format!("/network/{id}"), &old).unwrap();
        let subnet: SubnetRecord = serde_json::from_value(written[0].1.clone()).unwrap();
        let network: NetworkRecord = serde_json::from_value(written[1].1.clone()).unwrap();
        assert_eq!((subnet.network, &written[0].0), (network.id, &subnet.key()));
        assert_eq!(subnet.gateway, Some("10.1.0.1".parse().unwrap()));
        assert_eq!(subnet.pools, default_pools("10.1.0.0/24".parse().unwrap(), subnet.gateway));
        assert!(network.admin_up && network.port_security && !network.shared);

        let old = json!({
            "id": "00000000-0000-0000-0000-000000000020", "project": network.project, "network": network.id,
            "instance": "00000000-0000-0000-0000-000000000030", "mac": "fa:16:3e:00:00:01",
            "address": "10.1.0.5", "security_groups": [], "created_at": "2026-01-01T00:00:00Z"
        });
        let written_port = renewed("/port/00000000-0000-0000-0000-000000000020", &old).unwrap();
        let port: PortRecord = serde_json::from_value(written_port[0].1.clone()).unwrap();
        assert_eq!(port.address(), Some("10.1.0.5".parse().unwrap()));
        assert_eq!(port.fixed_ips[0].subnet, subnet.id);
        assert!(port.owned && port.instance.is_some() && !port.egress_by_rule);

        for (key, value) in written.iter().chain(&written_port) {
            assert_eq!(renewed(key, value).unwrap(), [], "{key} is today's");
        }
    }
}
