//! Paths → texts, out of the config drive's files: OpenStack's tree as it lies there, EC2's by walking its one document.
//! Pure. Refuses to know anything that the drive does not say.

use crate::instance::config_drive::{self, Guest};
use amphi_api::NetworkId;
use amphi_api::wire::{HostDesired, InstanceDesired};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

/// The versions that nova lists, all of one content here.
const EC2_VERSIONS: [&str; 11] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2016-09-02",
    "latest",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub media_type: &'static str,
    pub bytes: Vec<u8>,
}

/// The instance that has this address on this network.
pub fn who(desired: &HostDesired, network: NetworkId, address: Ipv4Addr) -> Option<&InstanceDesired> {
    let address = IpAddr::V4(address);
    desired.instances.iter().find(|instance| {
        let mut ports = instance.ports.iter().filter(|port| port.network == network);
        ports.any(|port| {
            port.address.addr() == address
                || port.further.iter().any(|further| further.address.addr() == address)
        })
    })
}

/// What stands at a path, for this instance. None: nothing.
pub fn answer(instance: &InstanceDesired, path: &str) -> Option<Answer> {
    let files = config_drive::files(Guest::from(instance));
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        [] => Some(lines(EC2_VERSIONS)),
        ["openstack", ..] => below(&files, &parts.join("/")),
        [version, rest @ ..] if EC2_VERSIONS.contains(version) => ec2(&files, rest),
        _ => None,
    }
}

fn text(text: impl Into<Vec<u8>>) -> Answer {
    Answer { media_type: "text/plain; charset=utf-8", bytes: text.into() }
}

fn lines<T: AsRef<str>>(lines: impl IntoIterator<Item = T>) -> Answer {
    let all: Vec<String> = lines.into_iter().map(|line| line.as_ref().to_owned()).collect();
    text(all.join("\n"))
}

/// A file, or a directory's names.
fn below(files: &[(String, Vec<u8>)], path: &str) -> Option<Answer> {
    if let Some((name, bytes)) = files.iter().find(|(name, _)| name == path) {
        let media_type =
            if name.ends_with(".json") { "application/json" } else { "application/octet-stream" };
        return Some(Answer { media_type, bytes: bytes.clone() });
    }
    let within = files.iter().filter_map(|(name, _)| name.strip_prefix(path)?.strip_prefix('/'));
    let names: BTreeSet<&str> = within.filter_map(|rest| rest.split('/').next()).collect();
    (!names.is_empty()).then(|| lines(names))
}

fn ec2(files: &[(String, Vec<u8>)], path: &[&str]) -> Option<Answer> {
    let file = |name: &str| files.iter().find(|(path, _)| path == name).map(|(_, bytes)| bytes);
    let user_data = file("ec2/latest/user-data");
    match path {
        [] => Some(lines(std::iter::once("meta-data/").chain(user_data.map(|_| "user-data")))),
        ["user-data"] => {
            user_data.map(|bytes| Answer { media_type: "application/octet-stream", bytes: bytes.clone() })
        }
        ["meta-data", keys @ ..] => {
            let document: Value = serde_json::from_slice(file("ec2/latest/meta-data.json")?).ok()?;
            let found = keys.iter().try_fold(&document, |at, key| at.get(key))?;
            written(found)
        }
        _ => None,
    }
}

/// As nova's `format_metadata_item` writes it: a directory by its names in order, `NAME/` where more is below, `_name` where one
/// is given.
fn written(value: &Value) -> Option<Answer> {
    match value {
        Value::Null => None,
        Value::String(found) => Some(text(found.as_str())),
        Value::Object(map) => {
            let of = |(key, value): (&String, &Value)| match value {
                Value::Null => None,
                _ if key == "_name" => None,
                Value::Object(under) => match under.get("_name").and_then(Value::as_str) {
                    Some(name) => Some(name.to_owned()),
                    None => Some(format!("{key}/")),
                },
                _ => Some(key.clone()),
            };
            Some(lines(map.iter().filter_map(of).collect::<BTreeSet<_>>()))
        }
        other => Some(text(other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::vm::sample;
    use amphi_api::image::ImageFormat;
    use amphi_api::instance::Power;
    use amphi_api::wire::{AddressDesired, PortDesired};
    use amphi_api::{HostId, PortId};
    use uuid::Uuid;

    const NETWORK: NetworkId = NetworkId(Uuid::from_u128(4));

    fn instance(name: &str, address: &str, further: Option<&str>) -> InstanceDesired {
        let plan = sample::plan(ImageFormat::KernelInitramfs);
        let subnet: ipnet::IpNet = "10.1.0.0/24".parse().unwrap();
        InstanceDesired {
            id: amphi_api::InstanceId::new(),
            project: plan.project,
            name: name.to_owned(),
            epoch: 1,
            power: Power::On,
            restarts: 0,
            resizes: 0,
            vcpus: 1,
            memory_mib: 128,
            body: plan.body,
            next_body: None,
            ports: vec![PortDesired {
                id: PortId::new(),
                network: NETWORK,
                subnet,
                mac: "fa:16:3e:00:00:01".into(),
                address: address.parse().unwrap(),
                gateway: None,
                dns: Vec::new(),
                mtu: 1442,
                segment: None,
                further: further
                    .map(|address| AddressDesired {
                        subnet,
                        address: address.parse().unwrap(),
                        gateway: None,
                    })
                    .into_iter()
                    .collect(),
                routes: Vec::new(),
            }],
            volume: None,
            root_volume: None,
            attachments: Vec::new(),
            root: 1,
            rescue: None,
            user_data: Some("#!/bin/sh\necho hi\n".into()),
            ssh_keys: vec!["ssh-ed25519 AAAA one".into(), "ssh-ed25519 BBBB two".into()],
            metadata: plan.metadata,
            leaving: None,
            arriving_from: None,
            copying: None,
            copied_from: None,
            twin: false,
            members: Default::default(),
        }
    }

    fn get(of: &InstanceDesired, path: &str) -> Option<String> {
        answer(of, path).map(|answer| String::from_utf8(answer.bytes).unwrap())
    }

    #[test]
    fn paths_as_clients_walk_them() {
        let it = instance("web 1", "10.1.0.5/24", None);
        let id = it.id.to_string();
        for (path, expected) in [
            ("/openstack", Some("2015-10-15\nlatest")),
            ("/openstack/", Some("2015-10-15\nlatest")),
            ("/openstack/latest/", Some("meta_data.json\nnetwork_data.json\nuser_data\nvendor_data.json")),
            ("/openstack/latest/user_data", Some("#!/bin/sh\necho hi\n")),
            ("/openstack/latest/vendor_data.json", Some("{}\n")),
            ("/openstack/2012-08-10/meta_data.json", None),
            ("/openstack/latest/password", None),
            ("/openstack/../ec2/latest/meta-data.json", None),
            ("/latest", Some("meta-data/\nuser-data")),
            ("/latest/user-data", Some("#!/bin/sh\necho hi\n")),
            (
                "/2009-04-04/meta-data/",
                Some("hostname\ninstance-id\nlocal-hostname\nlocal-ipv4\npublic-keys/"),
            ),
            ("/latest/meta-data/instance-id", Some(id.as_str())),
            ("/latest/meta-data/local-ipv4", Some("10.1.0.5")),
            ("/latest/meta-data/hostname", Some("web-1")),
            ("/latest/meta-data/public-keys/", Some("0=key-0\n1=key-1")),
            ("/latest/meta-data/public-keys/0", Some("openssh-key")),
            ("/latest/meta-data/public-keys/1/openssh-key", Some("ssh-ed25519 BBBB two")),
            ("/latest/meta-data/public-keys/2/openssh-key", None),
            ("/latest/meta-data/nothing", None),
            ("/3000-01-01/meta-data", None),
        ] {
            assert_eq!(get(&it, path).as_deref(), expected, "{path}");
        }
        assert!(get(&it, "/").unwrap().ends_with("\n2009-04-04\n2016-09-02\nlatest"));
        let mut plain = it.clone();
        plain.user_data = None;
        assert_eq!(get(&plain, "/latest/user-data"), None);
        assert_eq!(get(&plain, "/openstack/latest/user_data"), None);
        assert_eq!(get(&plain, "/latest"), Some("meta-data/".to_owned()));
    }

    #[test]
    fn the_service_and_the_drive_say_the_same() {
        let it = instance("web", "10.1.0.5/24", None);
        for (path, bytes) in config_drive::files(Guest::from(&it)) {
            if path.starts_with("openstack/") {
                assert_eq!(answer(&it, &format!("/{path}")).unwrap().bytes, bytes, "{path}");
            }
        }
    }

    #[test]
    fn nobody_is_taken_for_another() {
        let one = instance("one", "10.1.0.5/24", Some("10.1.0.7/24"));
        let two = instance("two", "10.1.0.6/24", None);
        let mut elsewhere = instance("elsewhere", "10.1.0.8/24", None);
        elsewhere.ports[0].network = NetworkId(Uuid::from_u128(5));
        let desired =
            HostDesired { instances: vec![one, two, elsewhere], ..HostDesired::empty(HostId::new()) };
        for (address, name) in [
            ("10.1.0.5", Some("one")),
            ("10.1.0.7", Some("one")),
            ("10.1.0.6", Some("two")),
            // The same address on another network.
            ("10.1.0.8", None),
            ("10.1.0.9", None),
        ] {
            let found = who(&desired, NETWORK, address.parse().unwrap());
            assert_eq!(found.map(|instance| instance.name.as_str()), name, "{address}");
        }
    }
}
