//! The projection against a real ovsdb-server with OVN's own schema: what it refuses, we must not render.

use amphi_api::network::{Direction, Protocol, RuleSpec};
use amphi_api::{NetworkId, PortId, RuleId, SecurityGroupId};
use amphi_controller::network::{GroupSpec, NetworkSpec, Northbound, PortSpec, Topology};
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

fn topology(ports: u8) -> Topology {
    let network = NetworkId::new();
    let group = SecurityGroupId::new();
    let rule = |direction, protocol, port_min, port_max| RuleSpec {
        direction,
        protocol,
        port_min,
        port_max,
        remote: Some("10.0.0.0/8".parse().unwrap()),
    };
    Topology {
        networks: vec![NetworkSpec {
            id: network,
            name: "net".into(),
            subnet: "10.1.0.0/24".parse().unwrap(),
            gateway: "10.1.0.1".parse().unwrap(),
            dns: vec![],
            dhcp: true,
            mtu: 1442,
        }],
        ports: (0..ports)
            .map(|n| PortSpec {
                id: PortId::new(),
                network,
                mac: format!("fa:16:3e:00:00:{n:02x}"),
                address: [10, 1, 0, 10 + n].into(),
                chassis: Some("h1".into()),
                groups: vec![group],
            })
            .collect(),
        groups: vec![GroupSpec {
            id: group,
            rules: vec![
                (RuleId::new(), rule(Direction::Ingress, Protocol::Icmp, None, None)),
                (RuleId::new(), rule(Direction::Ingress, Protocol::Tcp, Some(80), Some(90))),
                (RuleId::new(), rule(Direction::Egress, Protocol::Any, None, None)),
            ],
        }],
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
