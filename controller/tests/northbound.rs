//! The projection against a real ovsdb-server with OVN's own schema: what it refuses, we must not render.

use amphi_api::network::{Direction, Family};
use amphi_api::{FloatingIpId, NetworkId, PortId, QosRuleId, RouterId, RuleId, SecurityGroupId, SubnetId};
use amphi_controller::network::{
    FloatingSpec, GroupSpec, LegSpec, LimitSpec, NetworkSpec, Northbound, PortKind, PortSpec, RouterSpec,
    RuleSpec, SubnetSpec, Topology,
};
use std::path::Path;
use std::process::{Child, Command, Stdio};

struct Server(Child);

impl Server {
    fn start(dir: &Path) -> Self {
        let database = dir.join("db");
        if !database.exists() {
            let made = Command::new("ovsdb-tool")
                .arg("create")
                .arg(&database)
                .arg("/usr/share/ovn/ovn-nb.ovsschema")
                .status();
            assert!(made.expect("ovsdb-tool is installed").success());
        }
        let server = Command::new("ovsdb-server")
            .arg(format!("--remote=punix:{}", dir.join("sock").display()))
            .arg(format!("--unixctl={}", dir.join("ctl").display()))
            .arg(database)
            .stderr(Stdio::null())
            .spawn();
        Self(server.expect("ovsdb-server is installed"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every table and column that we write, in a shape that OVN's schema must take.
fn topology(ports: u8) -> Topology {
    let (network, outer) = (NetworkId::new(), NetworkId::new());
    let (subnet, subnet6) = (SubnetId::new(), SubnetId::new());
    let group = SecurityGroupId::new();
    let rule = |direction, protocol, min, max| RuleSpec {
        id: RuleId::new(),
        direction,
        family: Family::Ipv4,
        protocol,
        min,
        max,
        remote: Some("10.0.0.0/8".parse().unwrap()),
        remote_group: None,
    };
    let dhcp = |id, cidr: &str, gateway: &str| SubnetSpec {
        id,
        cidr: cidr.parse().unwrap(),
        gateway: Some(gateway.parse().unwrap()),
        dns: vec!["10.1.0.2".parse().unwrap()],
        routes: vec![],
        dhcp: true,
        stateless: false,
        mtu: 1442,
    };
    let limit = |direction, dscp: Option<u8>| LimitSpec {
        id: QosRuleId::new(),
        direction,
        bandwidth: dscp.is_none().then_some((1000, 100)),
        dscp,
    };
    let guest = |n: u8| PortSpec {
        id: PortId::new(),
        network,
        mac: format!("fa:16:3e:00:00:{n:02x}"),
        addresses: vec![(subnet, [10, 1, 0, 10 + n].into())],
        chassis: Some("h1".into()),
        groups: vec![group],
        limits: if n == 0 {
            vec![limit(Direction::Ingress, None), limit(Direction::Egress, Some(10))]
        } else {
            vec![]
        },
        ..PortSpec::default()
    };
    let leg = |network, subnet, mac: &str, address: &str| PortSpec {
        id: PortId::new(),
        network,
        mac: mac.into(),
        addresses: vec![(subnet, address.parse().unwrap())],
        kind: PortKind::Router,
        ..PortSpec::default()
    };
    let inside = leg(network, subnet, "fa:16:3e:00:01:00", "10.1.0.1");
    let outside = leg(outer, SubnetId::new(), "fa:16:3e:00:01:01", "172.24.4.2");
    let leg = |port: &PortSpec, addresses: &[&str], chassis: &[&str]| LegSpec {
        port: port.id,
        mac: port.mac.clone(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        chassis: chassis.iter().map(|c| (*c).to_owned()).collect(),
        advertise: chassis.is_empty().then(|| "slaac".to_owned()),
        mtu: 1442,
    };
    Topology {
        networks: vec![
            NetworkSpec {
                id: network,
                name: "net".into(),
                tunnel_key: Some(99),
                physical: None,
                metadata: true,
            },
            NetworkSpec {
                id: outer,
                name: "outer".into(),
                tunnel_key: None,
                physical: Some(("lan".into(), Some(7))),
                metadata: false,
            },
        ],
        subnets: vec![dhcp(subnet, "10.1.0.0/24", "10.1.0.1"), dhcp(subnet6, "fd00::/64", "fd00::1")],
        groups: vec![GroupSpec {
            id: group,
            free_egress: true,
            stateful: true,
            rules: vec![
                rule(Direction::Ingress, Some(1), None, None),
                rule(Direction::Ingress, Some(6), Some(80), Some(90)),
                rule(Direction::Egress, None, None, None),
            ],
        }],
        routers: vec![RouterSpec {
            id: RouterId::new(),
            name: "edge".into(),
            up: true,
            legs: vec![
                leg(&inside, &["10.1.0.1/24", "fd00::1/64"], &[]),
                leg(&outside, &["172.24.4.2/24"], &["h1", "h2"]),
            ],
            routes: vec![("0.0.0.0/0".parse().unwrap(), "172.24.4.1".parse().unwrap())],
            snat: vec![("10.1.0.0/24".parse().unwrap(), "172.24.4.2".parse().unwrap())],
            floating: vec![FloatingSpec {
                id: FloatingIpId::new(),
                outside: "172.24.4.9".parse().unwrap(),
                inside: "10.1.0.10".parse().unwrap(),
            }],
        }],
        ports: (0..ports).map(guest).chain([inside, outside]).collect(),
    }
}

#[tokio::test]
async fn what_is_wanted_is_written_once_kept_and_taken_away() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let endpoint = format!("unix:{}", dir.path().join("sock").display());
    let ovn = Northbound::open(&endpoint).unwrap();

    let mut wanted = topology(20);
    assert!(ovn.project(&wanted).await.unwrap() > 25);
    assert_eq!(ovn.project(&wanted).await.unwrap(), 0, "its own write comes back before the next comparison");

    wanted.ports[3].chassis = Some("h2".into());
    assert_eq!(ovn.project(&wanted).await.unwrap(), 1);

    // Somebody's hand in the database, and somebody's own row.
    let nbctl = |arguments: &[&str]| {
        let mut command = Command::new("ovn-nbctl");
        command.arg(format!("--db={endpoint}")).arg("--no-leader-only").args(arguments);
        let output = command.output().expect("ovn-nbctl is installed");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    nbctl(&["lsp-set-options", &wanted.ports[3].id.to_string(), "requested-chassis=evil"]);
    nbctl(&["ls-add", "foreign"]);
    let mut changes = ovn.changes().await.unwrap();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    while ovn.project(&wanted).await.unwrap() == 0 {
        tokio::time::timeout_at(deadline, changes.changed()).await.expect("the change is seen").unwrap();
    }
    assert!(nbctl(&["lsp-get-options", &wanted.ports[3].id.to_string()]).contains("h2"));

    // The server dies and returns with its file.
    drop(server);
    let _server = Server::start(dir.path());
    wanted.ports.truncate(1);
    wanted.routers.clear();
    // A write may meet the dead connection; the next look writes again.
    while let Err(error) = ovn.project(&wanted).await {
        assert!(tokio::time::Instant::now() < deadline, "{error}");
    }
    ovn.project(&Topology::default()).await.unwrap();
    let rest = nbctl(&["ls-list"]);
    assert!(rest.contains("foreign") && !rest.contains("amphi-"), "{rest}");
    assert_eq!(
        nbctl(&["--bare", "--columns=name", "find", "Port_Group", "name!=amphi_x"]).matches("amphi_").count(),
        3
    );
}
