//! The IPAM driver: a mirror. Addresses are the controller's; what Docker asks for it gets back,
//! so that networks with the same subnet coexist on one host. Refuses to choose a port's address.

use axum::body::Bytes;
use axum::routing::post;
use axum::{Json, Router};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Refusal, parse};

/// libnetwork's netlabel for "this address is to be the network's gateway".
const ADDRESS_TYPE: &str = "RequestAddressType";
const GATEWAY: &str = "com.docker.network.gateway";

pub fn ipam_router() -> Router {
    Router::new()
        .route("/IpamDriver.GetCapabilities", post(|| async { Json(json!({"RequiresMACAddress": false})) }))
        .route(
            "/IpamDriver.GetDefaultAddressSpaces",
            post(|| async {
                Json(
                    json!({"LocalDefaultAddressSpace": "amphi", "GlobalDefaultAddressSpace": "amphi-global"}),
                )
            }),
        )
        .route("/IpamDriver.RequestPool", post(|body: Bytes| async move { request_pool(parse(&body)?) }))
        .route("/IpamDriver.ReleasePool", post(|| async { Json(json!({})) }))
        .route(
            "/IpamDriver.RequestAddress",
            post(|body: Bytes| async move { request_address(parse(&body)?) }),
        )
        .route("/IpamDriver.ReleaseAddress", post(|| async { Json(json!({})) }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct PoolRequest {
    pool: String,
    options: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct AddressRequest {
    #[serde(rename = "PoolID")]
    pool_id: String,
    #[serde(rename = "Address")]
    address: String,
    #[serde(rename = "Options")]
    options: Option<BTreeMap<String, String>>,
}

/// The pool's id is its CIDR, and after a `#` the network's name where `--ipam-opt amphi.network=`
/// gave one.
fn request_pool(request: PoolRequest) -> Result<Json<Value>, Refusal> {
    if request.pool.is_empty() {
        return Err(Refusal("this network needs its subnet: docker network create --subnet CIDR".to_owned()));
    }
    let subnet: IpNet = request
        .pool
        .parse()
        .map_err(|_| Refusal(format!("`{}` is no subnet in CIDR notation", request.pool)))?;
    let subnet = subnet.trunc();
    let network = request.options.as_ref().and_then(|options| options.get("amphi.network"));
    let id = network.map_or_else(|| subnet.to_string(), |network| format!("{subnet}#{network}"));
    Ok(Json(json!({"PoolID": id, "Pool": subnet, "Data": {}})))
}

fn request_address(request: AddressRequest) -> Result<Json<Value>, Refusal> {
    let subnet: IpNet = request
        .pool_id
        .split('#')
        .next()
        .and_then(|cidr| cidr.parse().ok())
        .ok_or_else(|| Refusal(format!("`{}` is no pool of this driver", request.pool_id)))?;
    let is_gateway = request
        .options
        .as_ref()
        .and_then(|options| options.get(ADDRESS_TYPE))
        .is_some_and(|kind| kind == GATEWAY);
    let address: IpAddr = match (request.address.split('/').next().unwrap_or_default(), is_gateway) {
        // Docker wants a gateway for every network; whether ports get one is said by their options.
        ("", true) => subnet.hosts().next().unwrap_or_else(|| subnet.addr()),
        ("", false) => {
            return Err(Refusal(
                "this network's addresses belong to ports: pass the port's own with --ip".to_owned(),
            ));
        }
        (text, _) => text.parse().map_err(|_| Refusal(format!("`{text}` is no address")))?,
    };
    if !subnet.contains(&address) {
        return Err(Refusal(format!("{address} is outside of the network's subnet {subnet}")));
    }
    Ok(Json(json!({"Address": format!("{address}/{}", subnet.prefix_len()), "Data": {}})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(pool: &str, address: &str, gateway: bool) -> Result<String, String> {
        let options = gateway.then(|| BTreeMap::from([(ADDRESS_TYPE.to_owned(), GATEWAY.to_owned())]));
        let request = AddressRequest { pool_id: pool.to_owned(), address: address.to_owned(), options };
        request_address(request)
            .map(|Json(body)| body["Address"].as_str().unwrap_or_default().to_owned())
            .map_err(|refusal| refusal.0)
    }

    #[test]
    fn addresses_are_echoed_gateways_filled_in() {
        assert_eq!(address("10.0.0.0/24", "10.0.0.7", false).as_deref(), Ok("10.0.0.7/24"));
        assert_eq!(address("10.0.0.0/24#net-1", "10.0.0.7", false).as_deref(), Ok("10.0.0.7/24"));
        assert_eq!(address("10.0.0.0/24", "", true).as_deref(), Ok("10.0.0.1/24"));
        assert_eq!(address("10.0.0.0/24", "10.0.0.254", true).as_deref(), Ok("10.0.0.254/24"));
        assert_eq!(address("fd00::/64", "fd00::7", false).as_deref(), Ok("fd00::7/64"));
        assert!(address("10.0.0.0/24", "", false).unwrap_err().contains("--ip"));
        assert!(address("10.0.0.0/24", "10.0.1.7", false).unwrap_err().contains("outside"));
        assert!(address("nonsense", "10.0.1.7", false).is_err());
    }

    #[test]
    fn pools_are_echoed() {
        let pool = |pool: &str, network: Option<&str>| {
            let options =
                network.map(|network| BTreeMap::from([("amphi.network".to_owned(), network.to_owned())]));
            request_pool(PoolRequest { pool: pool.to_owned(), options }).map(|Json(body)| body)
        };
        assert_eq!(pool("10.0.0.0/24", None).unwrap()["PoolID"], "10.0.0.0/24");
        assert_eq!(
            pool("10.0.0.5/24", Some("n")).unwrap(),
            json!({"PoolID": "10.0.0.0/24#n", "Pool": "10.0.0.0/24", "Data": {}})
        );
        assert!(pool("", None).unwrap_err().0.contains("--subnet"));
        assert!(pool("10.0.0.0", None).is_err());
    }
}
