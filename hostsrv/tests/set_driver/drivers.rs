//! Docker's drivers for these tests: the real network and IPAM drivers, and volumes that are directories.

use crate::common::plugin::wiring;
use amphi_api::{NetworkId, PortId};
use amphi_hostsrv::instance::PortAttachment;
use amphi_hostsrv::network::ovs::{Chassis, Datapath};
use amphi_hostsrv::network::plugin::{
    NetworkDriver, Records, activation_router, bind, ipam_router, network_router, serve,
};
use axum::body::Bytes;
use axum::routing::post;
use axum::{Json, Router};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::runtime::Runtime;

/// A volume driver whose volumes are directories.
pub fn directories(root: PathBuf) -> Router {
    let reply = move |body: Bytes| {
        let root = root.clone();
        async move {
            let request: Value = serde_json::from_slice(&body).unwrap_or_default();
            let name = request["Name"].as_str().unwrap_or_default().to_owned();
            let path = root.join(&name);
            std::fs::create_dir_all(&path).expect("a directory");
            Json(json!({"Err": "", "Mountpoint": path, "Volume": {"Name": name, "Mountpoint": path},
                "Volumes": [], "Capabilities": {"Scope": "local"}}))
        }
    };
    let mut router = Router::new();
    for call in ["Create", "Remove", "Mount", "Unmount", "Path", "Get", "List", "Capabilities"] {
        router = router.route(&format!("/VolumeDriver.{call}"), post(reply.clone()));
    }
    router
}

pub fn serve_plugin(runtime: &Runtime, dir: &Path) {
    let chassis = Chassis {
        name: "h1".to_owned(),
        remote: "tcp:127.0.0.1:6642".to_owned(),
        encap_ip: "127.0.0.1".parse().expect("an address"),
        datapath: Datapath::Userspace,
    };
    let listener = runtime.block_on(async {
        let wiring = wiring();
        wiring.switch.ensure_bridge(Datapath::Userspace).await.expect("a bridge");
        wiring.switch.ensure_chassis(&chassis).await.expect("a chassis");
        bind(Path::new("/run/docker/plugins/amphi.sock")).await.expect("a free socket")
    });
    let _context = runtime.enter();
    let records = Records::open(&dir.join("state"), &dir.join("run")).expect("directories");
    let network = Arc::new(NetworkDriver { wiring: wiring(), records });
    let router = activation_router(&["NetworkDriver", "IpamDriver", "VolumeDriver"])
        .merge(network_router(network))
        .merge(ipam_router())
        .merge(directories(dir.join("volumes")));
    tokio::spawn(async move { serve(listener, router).await.expect("serves") });
}

pub fn port(network: NetworkId, last: u8, gateway: bool) -> PortAttachment {
    PortAttachment {
        id: PortId::new(),
        network,
        subnet: "10.7.0.0/24".parse().expect("a subnet"),
        mac: format!("0a:00:27:00:00:{last:02x}"),
        address: format!("10.7.0.{last}/24").parse().expect("an address"),
        gateway: gateway.then(|| "10.7.0.1".parse().expect("an address")),
        dns: vec!["10.7.0.1".parse().expect("an address")],
        mtu: 1400,
        segment: None,
        further: Vec::new(),
        routes: Vec::new(),
    }
}
