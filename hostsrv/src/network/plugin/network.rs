//! The network driver (libnetwork's remote driver protocol). Docker's order for a container's
//! start is CreateEndpoint, Join; for its end Leave, DeleteEndpoint. Every call may come twice.
//!
//! CreateEndpoint only checks and records; Join makes the veth pair and plugs it, so that Docker
//! moves a plugged device into the container before its first instruction. It does not wait for
//! OVN's flows: whoever starts the container does (`network::gate`), beside its own work.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::options::{Interface, IpamData, read_endpoint, read_network};
use super::records::RecordError;
use super::{Records, Refusal, parse};
use crate::network::{NetworkError, Wiring, host_device, link};

/// The external_ids key by which an interface names its Docker endpoint.
const ENDPOINT: &str = "amphi-endpoint";

#[derive(Debug)]
pub struct NetworkDriver {
    pub wiring: Wiring,
    pub records: Records,
}

type Answer = Result<Json<Value>, Refusal>;
type Driver = State<Arc<NetworkDriver>>;

pub fn network_router(driver: Arc<NetworkDriver>) -> Router {
    let nothing = || post(|| async { Json(json!({})) });
    Router::new()
        .route(
            "/NetworkDriver.GetCapabilities",
            post(|| async { Json(json!({"Scope": "local", "ConnectivityScope": "local"})) }),
        )
        .route("/NetworkDriver.CreateNetwork", post(create_network))
        .route("/NetworkDriver.DeleteNetwork", post(delete_network))
        .route("/NetworkDriver.CreateEndpoint", post(create_endpoint))
        .route("/NetworkDriver.EndpointOperInfo", post(|| async { Json(json!({"Value": {}})) }))
        .route("/NetworkDriver.DeleteEndpoint", post(delete_endpoint))
        .route("/NetworkDriver.Join", post(join))
        .route("/NetworkDriver.Leave", post(leave))
        .route("/NetworkDriver.AllocateNetwork", post(|| async { Json(json!({"Options": {}})) }))
        .route("/NetworkDriver.FreeNetwork", nothing())
        .route("/NetworkDriver.DiscoverNew", nothing())
        .route("/NetworkDriver.DiscoverDelete", nothing())
        .route("/NetworkDriver.ProgramExternalConnectivity", nothing())
        .route("/NetworkDriver.RevokeExternalConnectivity", nothing())
        .with_state(driver)
}

#[derive(Deserialize)]
struct NetworkRequest {
    #[serde(rename = "NetworkID")]
    network: String,
    #[serde(rename = "Options", default)]
    options: Option<Map<String, Value>>,
    #[serde(rename = "IPv4Data", default)]
    ipv4: Option<Vec<IpamData>>,
    #[serde(rename = "IPv6Data", default)]
    ipv6: Option<Vec<IpamData>>,
}

#[derive(Deserialize)]
struct EndpointRequest {
    #[serde(rename = "NetworkID")]
    network: String,
    #[serde(rename = "EndpointID")]
    endpoint: String,
    #[serde(rename = "Options", default)]
    options: Option<Map<String, Value>>,
    #[serde(rename = "Interface", default)]
    interface: Option<Interface>,
}

async fn create_network(State(driver): Driver, body: Bytes) -> Answer {
    let request: NetworkRequest = parse(&body)?;
    let ipam: Vec<IpamData> =
        request.ipv4.unwrap_or_default().into_iter().chain(request.ipv6.unwrap_or_default()).collect();
    let record = read_network(&request.options.unwrap_or_default(), &ipam)?;
    driver.records.put_network(&request.network, &record)?;
    Ok(Json(json!({})))
}

async fn delete_network(State(driver): Driver, body: Bytes) -> Answer {
    let request: NetworkRequest = parse(&body)?;
    driver.records.forget_network(&request.network)?;
    Ok(Json(json!({})))
}

async fn create_endpoint(State(driver): Driver, body: Bytes) -> Answer {
    let request: EndpointRequest = parse(&body)?;
    let network = driver.records.network(&request.network)?.unwrap_or_default();
    let interface = request.interface.unwrap_or_default();
    let record = read_endpoint(&request.network, &network, &request.options.unwrap_or_default(), &interface)?;
    let port = record.spec.port;
    // A record without a device is a crash's leftover and may be taken over.
    if let Some(rival) = driver.records.rival(&request.endpoint, port)? {
        if link::exists(&host_device(port)) {
            return Err(Refusal(format!(
                "port {port} is in use by another container, through endpoint {rival}"
            )));
        }
        driver.records.forget_endpoint(&rival)?;
    }
    driver.records.put_endpoint(&request.endpoint, &record)?;
    // Docker refuses an answer that repeats what it gave.
    let mut chosen = json!({});
    if interface.mac.is_empty() {
        chosen["MacAddress"] = json!(record.spec.mac);
    }
    let own = record.spec.addresses.iter().find(|address| address.addr().is_ipv6());
    if let Some(own) = own.filter(|_| interface.address6.is_empty()) {
        chosen["AddressIPv6"] = json!(own);
    }
    Ok(Json(json!({"Interface": chosen})))
}

async fn join(State(driver): Driver, body: Bytes) -> Answer {
    let request: EndpointRequest = parse(&body)?;
    let record = driver
        .records
        .endpoint(&request.endpoint)?
        .ok_or_else(|| Refusal(format!("endpoint {} was never created", request.endpoint)))?;
    let labels = BTreeMap::from([
        (ENDPOINT.to_owned(), request.endpoint.clone()),
        ("amphi-docker-network".to_owned(), request.network.clone()),
    ]);
    let guest = driver.wiring.attach(&record.spec, labels).await?;
    let routes: Vec<Value> = record
        .routes
        .iter()
        .map(|route| match route.via {
            // libnetwork's RouteType: 0 next hop, 1 connected.
            Some(via) => json!({"Destination": route.to, "RouteType": 0, "NextHop": via}),
            None => json!({"Destination": route.to, "RouteType": 1}),
        })
        .collect();
    let address = |address: Option<std::net::IpAddr>| address.map(|a| a.to_string()).unwrap_or_default();
    Ok(Json(json!({
        "InterfaceName": {"SrcName": guest, "DstPrefix": "eth"},
        "Gateway": address(record.spec.gateway),
        "GatewayIPv6": address(record.gateway6),
        "StaticRoutes": routes,
        // Else Docker adds a second interface on a bridge of its own where there is no gateway.
        "DisableGatewayService": true,
    })))
}

async fn leave(State(driver): Driver, body: Bytes) -> Answer {
    let request: EndpointRequest = parse(&body)?;
    detach(&driver, &request.endpoint).await?;
    Ok(Json(json!({})))
}

async fn delete_endpoint(State(driver): Driver, body: Bytes) -> Answer {
    let request: EndpointRequest = parse(&body)?;
    detach(&driver, &request.endpoint).await?;
    driver.records.forget_endpoint(&request.endpoint)?;
    Ok(Json(json!({})))
}

/// A switch that is away must not keep a container from ending: its device is gone by then, and
/// what is left of it in the switch's database has no device and is swept later.
async fn detach(driver: &NetworkDriver, endpoint: &str) -> Result<(), Refusal> {
    let detached = match find_port(driver, endpoint).await {
        Ok(Some(port)) => driver.wiring.detach(port).await.map_err(Cause::Network),
        Ok(None) => Ok(()),
        Err(cause) => Err(cause),
    };
    match detached {
        Err(Cause::Network(error)) if error.is_transient() => {
            tracing::warn!(%error, endpoint, "the endpoint ends while the switch is away");
            Ok(())
        }
        other => other.map_err(|cause| match cause {
            Cause::Network(error) => error.into(),
            Cause::Record(error) => error.into(),
        }),
    }
}

enum Cause {
    Network(NetworkError),
    Record(RecordError),
}

/// By the record, or after a power cut (when the run directory is empty) by the switch's rows,
/// unless the port belongs to a younger endpoint by now.
async fn find_port(driver: &NetworkDriver, endpoint: &str) -> Result<Option<Uuid>, Cause> {
    if let Some(record) = driver.records.endpoint(endpoint).map_err(Cause::Record)? {
        return Ok(Some(record.spec.port));
    }
    let attached = driver.wiring.switch.observe().await.map_err(Cause::Network)?;
    let ours = |ids: &BTreeMap<String, String>| ids.get(ENDPOINT).is_some_and(|label| label == endpoint);
    Ok(attached.into_iter().find(|found| ours(&found.external_ids)).map(|found| found.port))
}
