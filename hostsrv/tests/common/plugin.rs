//! Docker's drivers, served in the test's own process at the place where dockerd looks for them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use amphi_hostsrv::network::plugin::{
    NetworkDriver, Records, activation_router, bind, ipam_router, network_router, serve,
};
use amphi_hostsrv::network::{Links, Switch, Wiring};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::engines::SWITCH_ENDPOINT;

const SOCKET: &str = "/run/docker/plugins/amphi.sock";

/// The plug-in as its process would run it: everything in it is fresh at each start.
pub struct Plugin<'a> {
    runtime: &'a Runtime,
    dir: PathBuf,
    server: JoinHandle<()>,
}

impl<'a> Plugin<'a> {
    pub fn start(runtime: &'a Runtime, dir: &Path) -> Plugin<'a> {
        Plugin { runtime, dir: dir.to_owned(), server: Plugin::spawn(runtime, dir) }
    }

    fn spawn(runtime: &Runtime, dir: &Path) -> JoinHandle<()> {
        let _context = runtime.enter();
        let records = Records::open(&dir.join("state"), &dir.join("run")).expect("directories");
        let router = activation_router(&["NetworkDriver", "IpamDriver"])
            .merge(network_router(Arc::new(NetworkDriver { wiring: wiring(), records })))
            .merge(ipam_router());
        let listener = runtime.block_on(bind(Path::new(SOCKET))).expect("a free socket");
        tokio::spawn(async move { serve(listener, router).await.expect("serves") })
    }

    pub fn restart(&mut self) {
        self.server.abort();
        let ended = self.runtime.block_on(&mut self.server);
        assert!(ended.is_err_and(|error| error.is_cancelled()));
        self.server = Plugin::spawn(self.runtime, &self.dir);
    }
}

pub fn wiring() -> Wiring {
    Wiring {
        links: Links::open().expect("netlink"),
        switch: Switch::open(SWITCH_ENDPOINT, "br-int").expect("an endpoint"),
    }
}
