//! Reads what Docker's requests say about a network and an endpoint. Pure.
//!
//! Driver options of an endpoint (`--network name=NET,driver-opt=KEY=VALUE`, or DriverOpts in the
//! API): `amphi.port` (the port's uuid, required), `amphi.mac` (where Docker passes no MAC),
//! `amphi.mtu`, `amphi.gateway` (addresses with commas, or `none`), `amphi.address6` (CIDR), `amphi.routes`
//! (`CIDR via ADDRESS` or `CIDR`, separated by semicolons).
//! Options of a network (`docker network create -o`): `amphi.mtu`, `amphi.gateway`.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

use super::super::{PortSpec, parse_mac};

/// Geneve over an underlay of 1500: 1500 - 58 (OVN's default for tenant networks).
pub const DEFAULT_MTU: u32 = 1442;

/// RFC 791's least and the largest that a veth takes.
const MTUS: std::ops::RangeInclusive<u32> = 68..=65_535;

/// libnetwork's netlabel that holds a network's `-o` options.
const GENERIC: &str = "com.docker.network.generic";

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error(
        "this network's endpoints belong to ports: pass the port's uuid as the endpoint's driver option amphi.port, \
         for example docker run --network name=NETWORK,driver-opt=amphi.port=UUID,ip=ADDRESS --mac-address MAC"
    )]
    NoPort,
    #[error("the endpoint has no MAC address: pass the port's own with --mac-address or as amphi.mac")]
    NoMac,
    #[error("the endpoint has no address: pass the port's own with --ip")]
    NoAddress,
    #[error("the MAC address {docker} is not the amphi.mac {option}")]
    TwoMacs { docker: String, option: String },
    #[error("{key}: `{value}` is no {want}")]
    Malformed { key: &'static str, value: String, want: &'static str },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkRecord {
    pub gateways: Vec<IpAddr>,
    pub mtu: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    pub to: IpNet,
    /// None: reached on the link itself.
    pub via: Option<IpAddr>,
}

/// What an endpoint is, from its creation to its deletion.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointRecord {
    pub network: String,
    pub spec: PortSpec,
    pub gateway6: Option<IpAddr>,
    pub routes: Vec<Route>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct IpamData {
    /// `ADDRESS/PREFIX`.
    #[serde(rename = "Gateway")]
    pub gateway: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Interface {
    #[serde(rename = "Address")]
    pub address: String,
    #[serde(rename = "AddressIPv6")]
    pub address6: String,
    #[serde(rename = "MacAddress")]
    pub mac: String,
}

type Options = Map<String, Value>;

/// Docker puts an endpoint's options at the top, a network's below `GENERIC`.
fn text<'a>(options: &'a Options, key: &str) -> Option<&'a str> {
    let below = || options.get(GENERIC).and_then(|generic| generic.get(key));
    options.get(key).or_else(below).and_then(Value::as_str).map(str::trim).filter(|text| !text.is_empty())
}

fn malformed(key: &'static str, value: &str, want: &'static str) -> OptionError {
    OptionError::Malformed { key, value: value.to_owned(), want }
}

fn mtu(options: &Options) -> Result<Option<u32>, OptionError> {
    let Some(value) = text(options, "amphi.mtu") else { return Ok(None) };
    match value.parse() {
        Ok(mtu) if MTUS.contains(&mtu) => Ok(Some(mtu)),
        _ => Err(malformed("amphi.mtu", value, "MTU in bytes")),
    }
}

/// None: not said. An empty list: said to be none.
fn gateways(options: &Options) -> Result<Option<Vec<IpAddr>>, OptionError> {
    match text(options, "amphi.gateway") {
        None => Ok(None),
        Some("none") => Ok(Some(Vec::new())),
        Some(value) => value
            .split(',')
            .map(|one| one.trim().parse().map_err(|_| malformed("amphi.gateway", one, "address")))
            .collect::<Result<_, _>>()
            .map(Some),
    }
}

pub fn read_network(options: &Options, ipam: &[IpamData]) -> Result<NetworkRecord, OptionError> {
    let from_ipam = || {
        let given = ipam.iter().filter(|data| !data.gateway.is_empty());
        given
            .map(|data| {
                let address = data.gateway.split('/').next().unwrap_or_default();
                address.parse().map_err(|_| malformed("Gateway", &data.gateway, "address"))
            })
            .collect()
    };
    Ok(NetworkRecord { gateways: gateways(options)?.map_or_else(from_ipam, Ok)?, mtu: mtu(options)? })
}

pub fn read_endpoint(
    network_id: &str,
    network: &NetworkRecord,
    options: &Options,
    interface: &Interface,
) -> Result<EndpointRecord, OptionError> {
    let port = text(options, "amphi.port").ok_or(OptionError::NoPort)?;
    let port: Uuid = port.parse().map_err(|_| malformed("amphi.port", port, "uuid"))?;
    let gateways = gateways(options)?.unwrap_or_else(|| network.gateways.clone());
    let mut addresses: Vec<IpNet> = [&interface.address, &interface.address6]
        .into_iter()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse().map_err(|_| malformed("Address", text, "address with prefix")))
        .collect::<Result<_, _>>()?;
    if let Some(own) = own_address6(options)?.filter(|_| interface.address6.is_empty()) {
        addresses.push(own);
    }
    if addresses.is_empty() {
        return Err(OptionError::NoAddress);
    }
    Ok(EndpointRecord {
        network: network_id.to_owned(),
        spec: PortSpec {
            port,
            mac: mac(options, &interface.mac)?,
            addresses,
            gateway: gateways.iter().find(|gateway| gateway.is_ipv4()).copied(),
            mtu: mtu(options)?.or(network.mtu).unwrap_or(DEFAULT_MTU),
        },
        gateway6: gateways.iter().find(|gateway| gateway.is_ipv6()).copied(),
        routes: routes(options)?,
    })
}

/// The IPv6 address that the endpoint itself names, on a network that Docker knows no IPv6 subnet of.
fn own_address6(options: &Options) -> Result<Option<IpNet>, OptionError> {
    let Some(value) = text(options, "amphi.address6") else { return Ok(None) };
    let address = value.parse().ok().filter(|address: &IpNet| address.addr().is_ipv6());
    address.map(Some).ok_or_else(|| malformed("amphi.address6", value, "IPv6 address with prefix"))
}

fn mac(options: &Options, docker: &str) -> Result<String, OptionError> {
    let (docker, option) = (docker.to_lowercase(), text(options, "amphi.mac").map(str::to_lowercase));
    let mac = match (docker.is_empty(), option) {
        (true, None) => return Err(OptionError::NoMac),
        (false, Some(option)) if option != docker => return Err(OptionError::TwoMacs { docker, option }),
        (true, Some(option)) => option,
        (false, _) => docker,
    };
    match parse_mac(&mac) {
        // The lowest bit of the first byte marks a group address (IEEE 802).
        Some(bytes) if bytes[0] & 1 == 0 => Ok(mac),
        _ => Err(malformed("amphi.mac", &mac, "MAC address of one device")),
    }
}

fn routes(options: &Options) -> Result<Vec<Route>, OptionError> {
    let Some(value) = text(options, "amphi.routes") else { return Ok(Vec::new()) };
    let wrong = |text: &str| malformed("amphi.routes", text, "route (CIDR or CIDR via ADDRESS)");
    let each = value.split(';').map(str::trim).filter(|text| !text.is_empty());
    each.map(|text| {
        let (to, via) = match text.split_once(" via ") {
            Some((to, via)) => (to, Some(via.trim().parse().map_err(|_| wrong(text))?)),
            None => (text, None),
        };
        Ok(Route { to: to.trim().parse().map_err(|_| wrong(text))?, via })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const PORT: &str = "7a1c0f3e-6d2a-4f4e-9d5c-0123456789ab";
    const MAC: &str = "0a:00:27:00:00:01";

    fn options(json: Value) -> Options {
        json.as_object().cloned().unwrap_or_default()
    }

    fn interface(mac: &str) -> Interface {
        Interface { address: "10.0.0.7/24".to_owned(), address6: String::new(), mac: mac.to_owned() }
    }

    fn endpoint(given: Value, mac: &str) -> Result<EndpointRecord, OptionError> {
        let network = NetworkRecord { gateways: vec!["10.0.0.1".parse().unwrap()], mtu: Some(1400) };
        read_endpoint("n1", &network, &options(given), &interface(mac))
    }

    #[test]
    fn an_endpoint_is_its_port_with_the_networks_defaults() {
        let record = endpoint(json!({"amphi.port": PORT, "com.docker.network.portmap": []}), MAC).unwrap();
        assert_eq!(record.spec.port.to_string(), PORT);
        assert_eq!((record.spec.mac.as_str(), record.spec.mtu), (MAC, 1400));
        assert_eq!(record.spec.gateway, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(record.spec.addresses, ["10.0.0.7/24".parse::<IpNet>().unwrap()]);
    }

    #[test]
    fn its_own_options_come_first() {
        let given = json!({"amphi.port": PORT, "amphi.mac": "0A:00:27:00:00:01", "amphi.mtu": "9000",
            "amphi.gateway": "none", "amphi.routes": "10.1.0.0/16 via 10.0.0.254; 10.2.0.0/16"});
        let record = endpoint(given, "").unwrap();
        assert_eq!((record.spec.mac.as_str(), record.spec.mtu, record.spec.gateway), (MAC, 9000, None));
        let routes = [
            Route { to: "10.1.0.0/16".parse().unwrap(), via: Some("10.0.0.254".parse().unwrap()) },
            Route { to: "10.2.0.0/16".parse().unwrap(), via: None },
        ];
        assert_eq!(record.routes, routes);
    }

    #[test]
    fn an_endpoint_brings_an_address_of_the_other_family() {
        let given =
            json!({"amphi.port": PORT, "amphi.address6": "fd00::7/64", "amphi.gateway": "10.0.0.1,fd00::1"});
        let record = endpoint(given, MAC).unwrap();
        let addresses: Vec<String> = record.spec.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.7/24", "fd00::7/64"]);
        assert_eq!(record.gateway6, Some("fd00::1".parse().unwrap()));
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        assert_eq!(endpoint(json!({}), MAC), Err(OptionError::NoPort));
        assert!(OptionError::NoPort.to_string().contains("driver-opt=amphi.port=UUID"));
        assert_eq!(endpoint(json!({"amphi.port": PORT}), ""), Err(OptionError::NoMac));
        let two = endpoint(json!({"amphi.port": PORT, "amphi.mac": "0a:00:27:00:00:02"}), MAC);
        assert!(matches!(two, Err(OptionError::TwoMacs { .. })));
        for (key, value) in [
            ("amphi.port", "seven"),
            ("amphi.mtu", "0"),
            ("amphi.mtu", "70000"),
            ("amphi.gateway", "10.0.0"),
            ("amphi.address6", "10.0.0.1/24"),
            ("amphi.routes", "10.1.0.0/16 via nowhere"),
        ] {
            let mut given = options(json!({"amphi.port": PORT}));
            given.insert(key.to_owned(), json!(value));
            let refused = endpoint(Value::Object(given), MAC);
            assert!(
                matches!(refused, Err(OptionError::Malformed { key: named, .. }) if named == key),
                "{key}"
            );
        }
        let group = endpoint(json!({"amphi.port": PORT}), "01:00:5e:00:00:01");
        assert!(matches!(group, Err(OptionError::Malformed { key: "amphi.mac", .. })));
    }

    #[test]
    fn a_network_keeps_its_gateway_and_mtu() {
        let ipam =
            [IpamData { gateway: "10.0.0.1/24".to_owned() }, IpamData { gateway: "fd00::1/64".to_owned() }];
        let record = read_network(&options(json!({GENERIC: {"amphi.mtu": "1300"}})), &ipam).unwrap();
        assert_eq!(record.gateways.len(), 2);
        assert_eq!(record.mtu, Some(1300));
        let none = read_network(&options(json!({GENERIC: {"amphi.gateway": "none"}})), &ipam).unwrap();
        assert_eq!(none, NetworkRecord::default());
    }
}
