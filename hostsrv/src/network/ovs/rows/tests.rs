use super::*;
use serde_json::{Value as Json, json};

const PORT: Uuid = Uuid::from_u128(0x7a1c0f3e_6d2a_4f4e_9d5c_0123456789ab);

fn id(number: u128) -> Uuid {
    Uuid::from_u128(number)
}

fn outcome(rows: Vec<Row>) -> Outcome {
    Outcome { rows, ..Outcome::default() }
}

fn bridge_row(ports: &[u128]) -> Row {
    Row::new()
        .with("_uuid", id(1))
        .with("name", "br-int")
        .with("ports", Value::set(ports.iter().map(|&port| id(port))))
        .with("datapath_type", "netdev")
        .with("fail_mode", "secure")
}

fn port_row(number: u128, interface: u128) -> Row {
    Row::new().with("_uuid", id(number)).with("interfaces", id(interface))
}

fn interface_row(number: u128, name: &str, ofport: i64, ids: &[(&str, &str)]) -> Row {
    Row::new()
        .with("_uuid", id(number))
        .with("name", name)
        .with("ofport", ofport)
        .with("external_ids", Value::map(ids.iter().copied()))
}

fn wire(operations: &[Operation]) -> Vec<Json> {
    operations.iter().map(Operation::to_json).collect()
}

fn sample() -> Plug {
    Plug {
        port: PORT,
        device: "va7a1c0f3e6d2".to_owned(),
        mac: "0a:00:27:00:00:01".to_owned(),
        labels: BTreeMap::from([("amphi-endpoint".to_owned(), "e1".to_owned())]),
    }
}

#[test]
fn a_new_port_is_inserted_behind_guards() {
    let reads = [outcome(vec![]), outcome(vec![])];
    let operations = plug("br-int", &bridge_row(&[]), &reads, &sample()).unwrap();
    assert_eq!(
        wire(&operations),
        [
            json!({"op": "wait", "table": "Interface", "columns": ["_uuid"], "until": "==", "rows": [], "timeout": 0,
                   "where": [["external_ids", "includes", ["map", [["iface-id", PORT]]]]]}),
            json!({"op": "wait", "table": "Interface", "columns": ["_uuid"], "until": "==", "rows": [], "timeout": 0,
                   "where": [["name", "==", "va7a1c0f3e6d2"]]}),
            json!({"op": "insert", "table": "Interface", "uuid-name": "interface", "row": {
                "name": "va7a1c0f3e6d2",
                "external_ids": ["map", [["amphi-endpoint", "e1"], ["attached-mac", "0a:00:27:00:00:01"],
                                         ["iface-id", PORT], ["iface-status", "active"]]]}}),
            json!({"op": "insert", "table": "Port", "uuid-name": "port",
                   "row": {"name": "va7a1c0f3e6d2", "interfaces": ["named-uuid", "interface"]}}),
            json!({"op": "mutate", "table": "Bridge", "where": [["name", "==", "br-int"]],
                   "mutations": [["ports", "insert", ["named-uuid", "port"]]]}),
        ]
    );
}

#[test]
fn an_earlier_row_is_corrected_and_a_right_one_left_alone() {
    let port = PORT.to_string();
    let old =
        [("iface-id", port.as_str()), ("attached-mac", "0a:00:27:00:00:99"), ("iface-status", "active")];
    let reads = [outcome(vec![port_row(10, 20)]), outcome(vec![interface_row(20, "va7a1c0f3e6d2", 3, &old)])];
    let operations = plug("br-int", &bridge_row(&[10]), &reads, &sample()).unwrap();
    assert_eq!(
        wire(&operations)[1],
        json!({"op": "mutate", "table": "Interface", "where": [["_uuid", "==", ["uuid", id(20)]]], "mutations": [
            ["external_ids", "delete", ["set", ["amphi-endpoint", "attached-mac"]]],
            ["external_ids", "insert", ["map", [["amphi-endpoint", "e1"], ["attached-mac", "0a:00:27:00:00:01"]]]]]})
    );
    let right = [
        ("iface-id", port.as_str()),
        ("attached-mac", "0a:00:27:00:00:01"),
        ("iface-status", "active"),
        ("amphi-endpoint", "e1"),
    ];
    let reads =
        [outcome(vec![port_row(10, 20)]), outcome(vec![interface_row(20, "va7a1c0f3e6d2", 3, &right)])];
    assert_eq!(plug("br-int", &bridge_row(&[10]), &reads, &sample()).unwrap(), []);
}

#[test]
fn a_live_holder_of_the_port_is_refused_and_a_dead_one_replaced() {
    let port = PORT.to_string();
    let ids = [("iface-id", port.as_str())];
    let reads =
        |ofport| [outcome(vec![port_row(10, 20)]), outcome(vec![interface_row(20, "vnet0", ofport, &ids)])];
    let refused = plug("br-int", &bridge_row(&[10]), &reads(4), &sample());
    assert!(matches!(refused, Err(NetworkError::Occupied { device, .. }) if device == "vnet0"));
    let operations = plug("br-int", &bridge_row(&[10]), &reads(-1), &sample()).unwrap();
    assert_eq!(operations[1], remove_port("br-int", id(10)));
    assert_eq!(operations.len(), 6);
}

#[test]
fn a_device_on_another_bridge_is_refused() {
    let reads = [outcome(vec![port_row(10, 20)]), outcome(vec![interface_row(20, "va7a1c0f3e6d2", 1, &[])])];
    let refused = plug("br-int", &bridge_row(&[]), &reads, &sample());
    assert!(matches!(refused, Err(NetworkError::Elsewhere { .. })));
}

#[test]
fn observes_only_ports_on_the_bridge() {
    let port = PORT.to_string();
    let ids = [("iface-id", port.as_str()), ("ovn-installed", "true")];
    let foreign = [("iface-id", "not-a-uuid")];
    let reads = [
        outcome(vec![port_row(10, 20), port_row(11, 21), port_row(12, 22), port_row(13, 23)]),
        outcome(vec![
            interface_row(20, "vnet0", 4, &ids),
            interface_row(21, "patch", 5, &[]),
            interface_row(22, "other", 6, &ids),
            interface_row(23, "vnet1", 7, &foreign),
        ]),
    ];
    let found = attached(&bridge_row(&[10, 11, 13]), &reads);
    assert_eq!(found.len(), 1);
    assert!(found[0].device == "vnet0" && found[0].port == PORT && found[0].installed && !found[0].is_dead());
    assert_eq!(port_of(&bridge_row(&[10]), &reads, "vnet0"), Some(id(10)));
    assert_eq!(port_of(&bridge_row(&[11]), &reads, "vnet0"), None);
}

#[test]
fn the_bridge_is_made_corrected_or_left() {
    let root = Row::new().with("_uuid", id(9));
    assert_eq!(ensure_bridge("br-int", "netdev", &root, None).len(), 5);
    assert_eq!(ensure_bridge("br-int", "netdev", &root, Some(&bridge_row(&[]))), []);
    let changed = ensure_bridge("br-int", "system", &root, Some(&bridge_row(&[])));
    assert_eq!(changed[1].to_json()["row"], json!({"datapath_type": "system", "fail_mode": "secure"}));
}

#[test]
fn chassis_settings_are_written_only_when_they_differ() {
    let chassis = Chassis {
        name: "h1".to_owned(),
        remote: "tcp:10.99.0.1:6642".to_owned(),
        encap_ip: "10.99.0.11".parse().unwrap(),
        datapath: super::super::Datapath::Userspace,
    };
    let pairs = [
        ("system-id", "h1"),
        ("ovn-remote", "tcp:10.99.0.1:6642"),
        ("ovn-encap-type", "geneve"),
        ("ovn-encap-ip", "10.99.0.11"),
        ("ovn-bridge", "br-int"),
        ("ovn-bridge-datapath-type", "netdev"),
        ("somebody-elses", "kept"),
    ];
    let root = Row::new().with("_uuid", id(9)).with("external_ids", Value::map(pairs));
    assert_eq!(ensure_chassis(&root, "br-int", &chassis), []);
    let moved = Chassis { encap_ip: "10.99.0.12".parse().unwrap(), ..chassis };
    assert_eq!(
        ensure_chassis(&root, "br-int", &moved)[1].to_json()["mutations"],
        json!([
            ["external_ids", "delete", ["set", ["ovn-encap-ip"]]],
            ["external_ids", "insert", ["map", [["ovn-encap-ip", "10.99.0.12"]]]]
        ])
    );
}

#[test]
fn physical_networks_are_the_mappings_names() {
    assert_eq!(physical_networks(Some("lan:br-ex, dmz:br-dmz")), ["lan", "dmz"]);
    assert!(physical_networks(None).is_empty() && physical_networks(Some("nonsense")).is_empty());
}
