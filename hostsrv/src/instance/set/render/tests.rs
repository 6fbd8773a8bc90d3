//! Golden tests: the whole body of each container as Docker is sent it.

use super::*;
use crate::instance::VolumeAttachment;
use crate::instance::set::mounts::VOLUMES;
use amphi_api::instance::Power;
use amphi_api::wire::BodyDesired;
use amphi_api::{InstanceId, NetworkId, PortId, ProjectId, VolumeId};
use bollard::models::MountType;
use std::collections::BTreeMap;
use uuid::Uuid;

fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

fn port(n: u128, gateway: Option<&str>) -> PortAttachment {
    PortAttachment {
        id: PortId(id(0x100 + n)),
        network: NetworkId(id(0x200 + n)),
        subnet: "10.0.7.0/24".parse().unwrap(),
        mac: format!("0a:00:00:00:00:0{n}"),
        address: format!("10.0.7.{n}/24").parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
        dns: vec!["10.0.7.1".parse().unwrap()],
        mtu: 1400,
        segment: None,
        further: Vec::new(),
        routes: Vec::new(),
    }
}

fn plan(ports: Vec<PortAttachment>, volume: bool, set: serde_json::Value) -> (BodyPlan, SetSpec) {
    let set: SetSpec = serde_json::from_value(set).unwrap();
    let set = set.normalized();
    let plan = BodyPlan {
        members: Default::default(),
        instance: InstanceId(id(1)),
        project: ProjectId(id(2)),
        name: "Web shop_1".to_owned(),
        epoch: 7,
        vcpus: 4,
        memory_mib: 1024,
        power: Power::On,
        body: BodyDesired::Set { set: set.clone(), images: Vec::new() },
        rescue: None,
        root: 1,
        root_volume: None,
        attachments: Vec::new(),
        ports,
        volume: volume.then(|| VolumeAttachment {
            id: VolumeId(id(3)),
            device: "/dev/x".into(),
            mount: None,
        }),
        images: BTreeMap::new(),
        user_data: None,
        ssh_keys: Vec::new(),
        metadata: BTreeMap::new(),
        twin: false,
    };
    (plan, set)
}

fn facts(members: usize, privileged_anchor: bool) -> Facts {
    Facts {
        anchor_image: "sha256:aa".to_owned(),
        privileged_anchor,
        member_images: (0..members).map(|n| format!("sha256:b{n}")).collect(),
        config_drive: "/s/instances/i/set-7/config-drive".into(),
        authorized_keys: "/s/instances/i/set-7/authorized_keys".into(),
        resolv_conf: "/s/instances/i/set-7/resolv.conf".into(),
        volumes: "/s/attached/i".into(),
        files: "/s/instances/i/set-7/files".into(),
        parts: "/s/parts/i".into(),
    }
}

fn golden(value: impl serde::Serialize) -> Value {
    sorted(serde_json::to_value(value).unwrap())
}

#[test]
fn a_set_with_everything() {
    let (plan, set) = plan(
        vec![port(5, Some("10.0.7.1")), port(6, Some("10.0.7.1"))],
        true,
        serde_json::json!({
            "anchor": {"sysctls": {"net.core.somaxconn": "1024", "net/ipv4/conf/eth0.5/forwarding": "1"}},
            "members": [
                {"index": 20, "image": "x", "options": {"cpu": 20, "mem": 25}},
                {"index": 10, "name": "db", "image": "y", "command": ["/bin/db", "-v", "--all"],
                 "env": {"A": "1", "B": "two words"}, "options": {"cpu": 80, "mem": 75}},
            ],
            "volume_mount": "/srv/data",
        }),
    );
    let rendered = render(&plan, &set, &facts(2, true));
    insta::assert_json_snapshot!("anchor", golden(&rendered.anchor.body));
    insta::assert_json_snapshot!("member", golden(&rendered.members[0].container.body));
    insta::assert_json_snapshot!("connects", golden(&rendered.connects));
    insta::assert_json_snapshot!("network", golden(render_network(&plan.ports[0])));
    let names: Vec<_> = rendered.members.iter().map(|m| (m.index, m.name.as_str())).collect();
    assert_eq!(names, [(10, "db"), (20, "member-20")]);
    assert_eq!(rendered.members[1].container.body.image.as_deref(), Some("sha256:b1"));
}

#[test]
fn a_set_with_nothing() {
    let (plan, set) = plan(Vec::new(), false, serde_json::json!({"members": [{"index": 0, "image": "x"}]}));
    let rendered = render(&plan, &set, &facts(1, false));
    insta::assert_json_snapshot!("bare_anchor", golden(&rendered.anchor.body));
    assert_eq!(rendered.connects, []);
    let member = &rendered.members[0].container.body;
    assert_eq!((&member.cmd, &member.entrypoint), (&None, &None), "the image's own");
}

#[test]
fn keys_are_mounted_where_no_volume_is() {
    for (volume, mount, keys, expected) in [
        (true, "/data", true, true),
        (true, "/data", false, false),
        (true, "/root/data", true, true),
        (true, "/root", true, false),
        (true, "//root/.ssh/", true, false),
        (true, "/root/.ssh/authorized_keys", true, false),
        (false, "/root", true, true),
    ] {
        let set = serde_json::json!({"members": [{"index": 0, "image": "x"}], "volume_mount": mount});
        let (mut plan, set) = plan(Vec::new(), volume, set);
        plan.ssh_keys = if keys { vec!["ssh-ed25519 AAAA a@b".to_owned()] } else { Vec::new() };
        let rendered = render(&plan, &set, &facts(1, false));
        let mounts = rendered.members[0].container.body.host_config.clone().unwrap().mounts.unwrap();
        let bound = mounts.iter().filter(|mount| mount.typ == Some(MountType::BIND));
        let targets: Vec<_> = bound.filter_map(|mount| mount.target.as_deref()).collect();
        assert!(targets.contains(&"/config-drive"), "{targets:?}");
        assert_eq!(targets.contains(&"/root/.ssh/authorized_keys"), expected, "{mount} {keys}");
        // The host's files are; of what is seen below /volumes, each says it for itself.
        let writable = mounts.iter().filter(|m| m.typ == Some(MountType::BIND) && m.read_only != Some(true));
        assert_eq!(writable.filter_map(|m| m.target.as_deref()).collect::<Vec<_>>(), [VOLUMES]);
    }
}

#[test]
fn shares_are_exact_and_never_below_what_docker_takes() {
    for (vcpus, memory_mib, cpu, mem, quota, shares, bytes) in [
        (4, 1000, 80, 50, 320_000, 3276, 500 << 20),
        (1, 16, 1, 1, 1_000, 10, 6 << 20),
        (256, 4 << 20, 100, 100, 25_600_000, 262_144, 4 << 40),
    ] {
        let (mut plan, set) = plan(
            Vec::new(),
            false,
            serde_json::json!({"members": [{"index": 0, "image": "x", "options": {"cpu": cpu, "mem": mem}}]}),
        );
        (plan.vcpus, plan.memory_mib) = (vcpus, memory_mib);
        let rendered = render(&plan, &set, &facts(1, true));
        let host = rendered.members[0].container.body.host_config.clone().unwrap();
        let got = (host.cpu_quota, host.cpu_shares, host.memory, host.memory_swap);
        assert_eq!(got, (Some(quota), Some(shares), Some(bytes), Some(bytes)));
    }
}

#[test]
fn the_spec_hash_follows_the_spec() {
    let bare =
        serde_json::json!({"members": [{"index": 0, "image": "x", "env": {"A": "1", "B": "2", "C": "3"}}]});
    let (plan, set) = plan(Vec::new(), false, bare);
    let hash = |plan: &BodyPlan| render(plan, &set, &facts(1, true)).members[0].container.spec.clone();
    assert_eq!(hash(&plan), hash(&plan.clone()));
    // What a container takes on while it is there does not make it another one.
    let resized = BodyPlan { memory_mib: 2048, vcpus: 7, ..plan.clone() };
    assert_eq!(hash(&plan), hash(&resized));
    let other = BodyPlan { epoch: plan.epoch + 1, ..plan.clone() };
    assert_ne!(hash(&plan), hash(&other));
}

#[test]
fn a_network_without_gateway_and_one_of_ipv6() {
    let request = render_network(&port(5, None));
    assert_eq!(request.options.unwrap().get("amphi.gateway").map(String::as_str), Some("none"));
    let six = PortAttachment {
        subnet: "fd00:7::/64".parse().unwrap(),
        address: "fd00:7::5/64".parse().unwrap(),
        ..port(5, Some("fd00:7::1"))
    };
    assert_eq!(render_network(&six).enable_ipv6, Some(true));
    let endpoint = render_endpoint(&six, true).ipam_config.unwrap();
    assert_eq!((endpoint.ipv4_address, endpoint.ipv6_address.as_deref()), (None, Some("fd00:7::5")));
}

#[test]
fn a_member_with_every_option() {
    let (plan, set) = plan(
        vec![port(5, Some("10.0.7.1"))],
        true,
        serde_json::json!({
            "anchor": {"dns": {"servers": ["10.0.7.53"], "search": ["svc.example"], "options": ["ndots:2"]},
                       "hosts": {"db.example": "10.0.7.9"}, "timezone": "Europe/Berlin", "shm_mib": 128},
            "members": [
                {"index": 1, "name": "db", "image": "x", "args": ["--fast"], "env": {"A": "1"}, "directory": "/srv",
                 "user": "999:999", "options": {"cpu": 50, "heap_mib": 100, "headroom": 50},
                 "ulimits": {"nofile": {"soft": 1024, "hard": 4096}, "core": {"soft": 0, "hard": -1}},
                 "capabilities": {"add": ["CAP_NET_ADMIN", "SYS_NICE"], "drop": ["NET_RAW"]},
                 "read_only": true,
                 "tmpfs": [{"path": "/run", "size_mib": 16, "mode": "0755", "exec": true}, {"path": "/tmp"}],
                 "files": [{"path": "/etc/db.conf", "content": "secret", "mode": "0440", "uid": 999, "gid": 999}],
                 "mounts": [{"path": "/var/lib/db", "sub_path": "db"}, {"path": "/all", "read_only": true}],
                 "log": {"max_size_mib": 50, "max_files": 3},
                 "restart": "on_failure",
                 "hooks": {"pre_stop": {"command": ["/bin/flush"], "timeout_s": 5}},
                 "stop": {"signal": "RTMIN+3", "grace_s": 30},
                 "probes": {"readiness": {"tcp": {"port": 5432}}}},
                {"index": 2, "name": "rest", "image": "y", "env": {"TZ": "UTC"}},
            ],
        }),
    );
    let rendered = render(&plan, &set, &facts(2, false));
    insta::assert_json_snapshot!("every_option_anchor", golden(&rendered.anchor.body));
    let member = golden(&rendered.members[0].container.body);
    assert!(!member.to_string().contains("secret"), "what a file holds is nobody's business in Docker");
    insta::assert_json_snapshot!("every_option_member", member);
    let rest = &rendered.members[1].container.body;
    assert_eq!(rest.env.as_deref(), Some(&["TZ=UTC".to_owned()][..]), "a member's own word counts");
    assert_eq!(
        rest.host_config.as_ref().and_then(|host| host.memory),
        Some(874 << 20),
        "150 of 1024 MiB are the heap's"
    );
}

#[test]
fn a_later_description_has_parts_of_its_own() {
    let members = serde_json::json!({"members": [
        {"index": 0, "name": "db", "image": "x", "mounts": [{"path": "/var/lib/db", "sub_path": "db"}]}]});
    let (mut plan, set) = plan(Vec::new(), true, members);
    let source = |plan: &BodyPlan| {
        let rendered = render(plan, &set, &facts(1, false));
        let mounts = rendered.members[0].container.body.host_config.clone().unwrap().mounts.unwrap();
        let part = mounts.into_iter().find(|mount| mount.target.as_deref() == Some("/var/lib/db"));
        part.unwrap().source.unwrap()
    };
    assert_eq!(source(&plan), "/s/parts/i/db-0");
    let ordered = amphi_api::wire::MemberDesired { generation: 5, ..Default::default() };
    plan.members.insert("db".to_owned(), ordered);
    assert_eq!(source(&plan), "/s/parts/i/db-0-g5");
}
