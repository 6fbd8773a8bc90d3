//! The local Open vSwitch, through its database. Owns the integration bridge's row, the host's OVN
//! settings, and the interfaces on the bridge that carry an `iface-id` of ours; leaves every other
//! row alone. Each change is one guarded transaction: read, decide (`rows`), write if nothing moved.

mod physical;
mod rows;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use amphi_ovsdb::{Client, Condition, Monitored, Mutation, Operation, Options, Outcome, Replica};
use uuid::Uuid;

use super::openflow::Session;
use super::{NetworkError, announce};
pub use physical::{Ways, ways};
pub use rows::Attached;

/// Rounds of read-decide-write before a call gives up.
const ATTEMPTS: u32 = 5;

/// Which datapath carries the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// The kernel's openvswitch module.
    Kernel,
    /// ovs-vswitchd itself, DPDK included.
    Userspace,
}

impl Datapath {
    /// As in Bridge.datapath_type.
    pub fn as_str(self) -> &'static str {
        match self {
            Datapath::Kernel => "system",
            Datapath::Userspace => "netdev",
        }
    }

    /// The kernel's where its module is loaded (ovs-ctl loads it where it exists).
    pub fn probe() -> Datapath {
        if std::path::Path::new("/sys/module/openvswitch").exists() {
            Datapath::Kernel
        } else {
            Datapath::Userspace
        }
    }
}

/// What the switch says about itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    pub ovs_version: Option<String>,
    /// The chassis name in OVN.
    pub system_id: Option<String>,
    pub encap_ip: Option<String>,
    /// Physical networks with a bridge here.
    pub physical_networks: Vec<String>,
    /// Types this ovs-vswitchd offers: `system`, `netdev`.
    pub datapath_types: Vec<String>,
    pub dpdk: bool,
    /// The integration bridge's, None without a bridge.
    pub bridge_datapath: Option<String>,
}

/// The host as OVN's chassis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chassis {
    pub name: String,
    /// The southbound database, such as `tcp:10.99.0.1:6642`.
    pub remote: String,
    pub encap_ip: std::net::IpAddr,
    pub datapath: Datapath,
}

/// An interface to put on the bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    pub port: Uuid,
    pub device: String,
    pub mac: String,
    /// More external_ids, for whoever has to find the interface again.
    pub labels: BTreeMap<String, String>,
}

/// How long ovs-vswitchd may take to send what it is handed.
const HAND_OVER: Duration = Duration::from_secs(5);

#[derive(Clone, Debug)]
pub struct Switch {
    client: Client,
    bridge: String,
    /// Of ovs-vswitchd, beside its database's socket; none: the database is elsewhere.
    run_dir: Option<PathBuf>,
}

impl Switch {
    /// Connects in the background; a switch that is away is reported by the calls.
    pub fn open(endpoint: &str, bridge: &str) -> Result<Switch, NetworkError> {
        // Docker gives a plug-in's call a few seconds; fail with a reason before it gives up.
        let options = Options {
            timeout: Duration::from_secs(5),
            backoff_limit: Duration::from_millis(500),
            ..Options::default()
        };
        let client = Client::new(endpoint, "Open_vSwitch", options).map_err(|source| {
            NetworkError::Switch { doing: "open the switch's database".to_owned(), source }
        })?;
        let socket = endpoint.strip_prefix("unix:").map(Path::new);
        let run_dir = socket.and_then(Path::parent).map(Path::to_owned);
        Ok(Switch { client, bridge: bridge.to_owned(), run_dir })
    }

    pub fn bridge(&self) -> &str {
        &self.bridge
    }

    /// Where a bridge takes OpenFlow; none: the switch is not on this machine.
    pub fn management(&self, bridge: &str) -> Option<PathBuf> {
        Some(self.run_dir.as_ref()?.join(format!("{bridge}.mgmt")))
    }

    /// Makes or corrects the integration bridge. `secure`: without a controller nothing passes.
    pub async fn ensure_bridge(&self, datapath: Datapath) -> Result<(), NetworkError> {
        let doing = format!("ensure bridge {}", self.bridge);
        self.decide(&doing, &[], |reads| {
            let root =
                rows::root(reads).ok_or_else(|| NetworkError::Uninitialised { doing: doing.clone() })?;
            Ok(rows::ensure_bridge(&self.bridge, datapath.as_str(), root, rows::bridge(reads)))
        })
        .await
    }

    pub async fn facts(&self) -> Result<Facts, NetworkError> {
        let doing = "read the switch's facts";
        let reads = self.read(doing, &[]).await?;
        let root =
            rows::root(&reads).ok_or_else(|| NetworkError::Uninitialised { doing: doing.to_owned() })?;
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Facts {
            ovs_version: owned(root.str("ovs_version")),
            system_id: owned(root.entry("external_ids", "system-id")),
            encap_ip: owned(root.entry("external_ids", "ovn-encap-ip")),
            physical_networks: rows::physical_networks(root.entry("external_ids", "ovn-bridge-mappings")),
            datapath_types: root.strings("datapath_types").into_iter().map(str::to_owned).collect(),
            dpdk: root.boolean("dpdk_initialized").unwrap_or(false),
            bridge_datapath: rows::bridge(&reads)
                .map(|row| row.str("datapath_type").unwrap_or("system").to_owned()),
        })
    }

    /// Tells ovn-controller who this host is and where to connect; writes only what differs.
    pub async fn ensure_chassis(&self, chassis: &Chassis) -> Result<(), NetworkError> {
        let doing = format!("set up chassis {}", chassis.name);
        self.decide(&doing, &[], |reads| {
            let root =
                rows::root(reads).ok_or_else(|| NetworkError::Uninitialised { doing: doing.clone() })?;
            Ok(rows::ensure_chassis(root, &self.bridge, chassis))
        })
        .await
    }

    /// Puts a device on the bridge under a port's id, or corrects what is there. Rows of the same
    /// port whose device is dead go in the same transaction; a live one is refused as `Occupied`.
    /// With `settle` it returns only when ovs-vswitchd has really made the port, and says why not.
    pub async fn plug(&self, plug: &Plug, settle: Option<Duration>) -> Result<(), NetworkError> {
        let doing = format!("plug {} as port {}", plug.device, plug.port);
        self.decide(&doing, &rows::interfaces(), |reads| {
            let bridge = rows::bridge(reads).ok_or_else(|| NetworkError::NoBridge {
                doing: doing.clone(),
                bridge: self.bridge.clone(),
            })?;
            rows::plug(&self.bridge, bridge, &reads[rows::READS..], plug)
        })
        .await?;
        match settle {
            Some(within) => self.settle(&plug.device, within).await,
            None => Ok(()),
        }
    }

    /// Takes a device off the bridge; answers whether it was there.
    pub async fn unplug(&self, device: &str) -> Result<bool, NetworkError> {
        let doing = format!("unplug {device}");
        let mut found = false;
        self.decide(&doing, &rows::interfaces(), |reads| {
            let port =
                rows::bridge(reads).and_then(|bridge| rows::port_of(bridge, &reads[rows::READS..], device));
            found = port.is_some();
            Ok(port.map(|port| rows::remove_port(&self.bridge, port)).into_iter().collect())
        })
        .await?;
        Ok(found)
    }

    /// Every interface on the bridge whose `iface-id` is a port's id, VMs' taps included.
    pub async fn observe(&self) -> Result<Vec<Attached>, NetworkError> {
        let reads = self.read("observe the bridge", &rows::interfaces()).await?;
        Ok(rows::bridge(&reads)
            .map(|bridge| rows::attached(bridge, &reads[rows::READS..]))
            .unwrap_or_default())
    }

    /// Removes rows of this port whose device the switch cannot open, as a power cut leaves them,
    /// so that the port can be plugged by somebody else (libvirt, for a VM).
    pub async fn forget_dead(&self, port: Uuid) -> Result<(), NetworkError> {
        for dead in self.observe().await?.into_iter().filter(|found| found.port == port && found.is_dead()) {
            self.unplug(&dead.device).await?;
        }
        Ok(())
    }

    /// Waits until ovn-controller has installed the port's flows.
    pub async fn wait_installed(&self, device: &str, within: Duration) -> Result<(), NetworkError> {
        let doing = format!("wait for OVN to install {device}");
        let installed = vec![
            Condition::eq("name", device),
            Condition::includes("external_ids", amphi_ovsdb::Value::map([("ovn-installed", "true")])),
        ];
        let wait = Operation::wait_present("Interface", installed).within_ms(millis(within));
        self.patient(within)
            .transact(vec![wait])
            .await
            .map(drop)
            .map_err(|source| NetworkError::Switch { doing, source })
    }

    /// Waits until ovn-controller has installed a port's flows, whatever its device is, and tells the port's neighbours
    /// where its addresses are now. Nothing where the switch's sockets are out of reach.
    pub async fn announce(
        &self,
        port: Uuid,
        mac: [u8; 6],
        addresses: &[IpAddr],
        within: Duration,
    ) -> Result<(), NetworkError> {
        let Some(socket) = self.management(&self.bridge) else { return Ok(()) };
        let doing = format!("wait for OVN to install port {port}");
        let id = port.to_string();
        let of_port = |more: &[(&'static str, &str)]| {
            let ids = std::iter::once(("iface-id", id.as_str())).chain(more.iter().copied());
            vec![Condition::includes("external_ids", amphi_ovsdb::Value::map(ids))]
        };
        let wait = Operation::wait_present("Interface", of_port(&[("ovn-installed", "true")]));
        let look = Operation::select("Interface", of_port(&[]), &["ofport"]);
        let outcomes = self
            .patient(within)
            .transact(vec![wait.within_ms(millis(within)), look])
            .await
            .map_err(|source| NetworkError::Switch { doing, source })?;
        // Rows without a device have no number, or -1.
        let numbers = outcomes[1].rows.iter().filter_map(|row| u32::try_from(row.integer("ofport")?).ok());
        let Some(ofport) = numbers.max() else { return Ok(()) };
        let frames = announce::frames(mac, addresses);
        let sent = async { Session::open(&socket).await?.hand_in(ofport, &frames).await };
        let sent = tokio::time::timeout(HAND_OVER, sent).await;
        sent.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
            .map_err(|source| NetworkError::Unannounced { port, source })
    }

    /// A replica of the bridges, ports and interfaces, for whoever wants to be woken by changes.
    pub async fn watch(&self) -> Result<Replica, NetworkError> {
        let monitored = Monitored::new()
            .table("Open_vSwitch", &["cur_cfg", "ovs_version", "external_ids"])
            .table("Bridge", &["name", "ports"])
            .table("Port", &["name", "interfaces"])
            .table("Interface", &["name", "external_ids", "ofport", "error"]);
        self.client
            .monitor(monitored)
            .await
            .map_err(|source| NetworkError::Switch { doing: "watch the switch".to_owned(), source })
    }

    /// Returns when ovs-vswitchd has really made a port of the device, and says why not.
    async fn settle(&self, device: &str, within: Duration) -> Result<(), NetworkError> {
        let look = Operation::select("Interface", vec![Condition::eq("name", device)], &["ofport", "error"]);
        let outcome = self.caught_up(&format!("wait for the switch to take {device}"), look, within).await?;
        let row = outcome.rows.first();
        let error = match row {
            None => Some("its row is gone".to_owned()),
            Some(row) if row.integer("ofport").is_none_or(|number| number < 0) => {
                Some(row.str("error").unwrap_or("it got no port number").to_owned())
            }
            Some(_) => None,
        };
        error.map_or(Ok(()), |error| Err(NetworkError::Unusable { device: device.to_owned(), error }))
    }

    /// Takes a device off the bridge, whether its row is there or not, and returns when ovs-vswitchd has let go of it.
    /// Only then may another device of the same name be plugged: the userspace datapath would go on with the old one.
    pub async fn let_go(&self, device: &str, within: Duration) -> Result<(), NetworkError> {
        self.unplug(device).await?;
        let look = Operation::select("Interface", vec![Condition::eq("name", device)], &["ofport"]);
        self.caught_up(&format!("wait for the switch to let go of {device}"), look, within).await.map(drop)
    }

    /// What `look` sees once everything that was committed before is in force: ovs-vswitchd copies next_cfg to cur_cfg
    /// then (ovs-vswitchd.conf.db(5)); the server holds the wait open meanwhile.
    async fn caught_up(
        &self,
        doing: &str,
        look: Operation,
        within: Duration,
    ) -> Result<Outcome, NetworkError> {
        let failed = |source| NetworkError::Switch { doing: doing.to_owned(), source };
        let bump = Operation::mutate("Open_vSwitch", Vec::new(), [Mutation::add("next_cfg", 1i64)]);
        let read = Operation::select("Open_vSwitch", Vec::new(), &["next_cfg"]);
        let outcomes = self.client.transact(vec![bump, read]).await.map_err(failed)?;
        let next = outcomes[1].rows.first().and_then(|row| row.integer("next_cfg")).unwrap_or_default();
        let taken = Operation::wait_present("Open_vSwitch", vec![Condition::at_least("cur_cfg", next)]);
        let mut outcomes = self
            .patient(within)
            .transact(vec![taken.within_ms(millis(within)), look])
            .await
            .map_err(failed)?;
        Ok(outcomes.swap_remove(1))
    }

    /// For calls that the server holds open: the reply may come as late as the wait's end.
    fn patient(&self, within: Duration) -> Client {
        self.client.with_timeout(within + Duration::from_secs(2))
    }

    async fn read(&self, doing: &str, more: &[Operation]) -> Result<Vec<Outcome>, NetworkError> {
        let operations = rows::base(&self.bridge).into_iter().chain(more.iter().cloned()).collect();
        self.client
            .transact(operations)
            .await
            .map_err(|source| NetworkError::Switch { doing: doing.to_owned(), source })
    }

    /// Reads, lets `plan` make operations and their guards of it, commits; starts again when a
    /// guard did not hold. Guards name no more than the decision rests on, so that calls for
    /// different ports do not get in each other's way.
    async fn decide(
        &self,
        doing: &str,
        more: &[Operation],
        mut plan: impl FnMut(&[Outcome]) -> Result<Vec<Operation>, NetworkError>,
    ) -> Result<(), NetworkError> {
        for _ in 0..ATTEMPTS {
            let reads = self.read(doing, more).await?;
            let mut operations = plan(&reads)?;
            if operations.is_empty() {
                return Ok(());
            }
            operations.push(Operation::comment(&format!("amphi: {doing}")));
            match self.client.transact(operations).await {
                Ok(_) => return Ok(()),
                Err(error) if error.is_guard() => {}
                Err(source) => return Err(NetworkError::Switch { doing: doing.to_owned(), source }),
            }
        }
        Err(NetworkError::Contended { doing: doing.to_owned(), attempts: ATTEMPTS })
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}
