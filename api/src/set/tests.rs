//! Refusals by field, kept descriptions, shares.

use super::*;

fn parse(json: serde_json::Value) -> SetSpec {
    serde_json::from_value(json).unwrap()
}

fn two(a: serde_json::Value, b: serde_json::Value) -> SetSpec {
    let mut set = serde_json::json!({"members": [
        {"index": 0, "image": "busybox", "options": {"cpu": 50, "mem": 50}},
        {"index": 1, "image": "busybox", "options": {"cpu": 50, "mem": 50}}]});
    for (at, patch) in [a, b].into_iter().enumerate() {
        for (key, value) in patch.as_object().unwrap() {
            set["members"][at][key] = value.clone();
        }
    }
    parse(set)
}

#[test]
fn refusals_name_their_field() {
    use serde_json::json;
    let table = [
        (two(json!({}), json!({"index": 0})), "members[1].index"),
        (two(json!({}), json!({"options": {"cpu": 51, "mem": 50}})), "members[1].options.cpu"),
        (two(json!({}), json!({"options": {"cpu": 50, "mem": 51}})), "members[1].options.mem"),
        (two(json!({"options": {"cpu": 0, "mem": 50}}), json!({})), "members[0].options.cpu"),
        (two(json!({"options": {"cpu": 101, "mem": 50}}), json!({})), "members[0].options.cpu"),
        (two(json!({"name": "a"}), json!({"name": "a"})), "members[1].name"),
        (two(json!({"name": "member-1"}), json!({})), "members[1].name"),
        (two(json!({"name": "anchor"}), json!({})), "members[0].name"),
        (two(json!({"name": "a\n"}), json!({})), "members[0].name"),
        (two(json!({"image": ""}), json!({})), "members[0].image"),
        (two(json!({"command": [""]}), json!({})), "members[0].command[0]"),
        (two(json!({"env": {"a=b": "c"}}), json!({})), "members[0].env.a=b"),
        (parse(json!({"members": []})), "members"),
        (parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "data"})), "volume_mount"),
        (
            parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "//config-drive/x"})),
            "volume_mount",
        ),
        (parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "/volumes"})), "volume_mount"),
        (
            parse(
                json!({"members": [{"index": 0, "image": "x"}], "anchor": {"sysctls": {"vm.swappiness": "1"}}}),
            ),
            "anchor.sysctls.vm.swappiness",
        ),
    ];
    for (set, field) in table {
        assert_eq!(set.check().unwrap_err().field, field);
    }
    assert_eq!(two(json!({}), json!({})).check(), Ok(()));
}

#[test]
fn unknown_fields_and_missing_index_are_refused() {
    for bad in [
        serde_json::json!({"members": [{"image": "x"}]}),
        serde_json::json!({"members": [{"index": 0, "image": "x", "colour": 1}]}),
        serde_json::json!({"members": [], "x": 1}),
        serde_json::json!({"members": [{"index": -1, "image": "x"}]}),
    ] {
        assert!(serde_json::from_value::<SetSpec>(bad.clone()).is_err(), "{bad}");
    }
}

#[test]
fn open_shares_divide_what_is_left() {
    let set = parse(serde_json::json!({"members": [
        {"index": 5, "image": "x"}, {"index": 2, "image": "x", "options": {"cpu": 40, "mem": 60}}, {"index": 9, "image": "x"}]}))
    .normalized();
    let got: Vec<_> = set
        .members
        .iter()
        .map(|m| (m.name.as_str(), m.options.cpu.unwrap(), m.options.mem.unwrap()))
        .collect();
    assert_eq!(got, [("member-2", 40, 60), ("member-5", 30, 20), ("member-9", 30, 20)]);
    assert_eq!(set.normalized(), set);
}

/// Every field that a member or the anchor has beyond the first ones: what is wrong, and what is told.
#[test]
fn every_field_has_its_refusal() {
    use serde_json::json;
    let long = "x".repeat(65_537);
    let table = [
        (json!({"args": ["a\u{0}"]}), "args"),
        (json!({"args": ["a"], "command": ["b"]}), "args"),
        (json!({"directory": "srv"}), "directory"),
        (json!({"user": "a b"}), "user"),
        (json!({"user": "1:2:3"}), "user"),
        (json!({"user": "99999999999"}), "user"),
        (json!({"options": {"mem": 10, "heap_mib": 10}}), "options.heap_mib"),
        (json!({"options": {"heap_mib": 0}}), "options.heap_mib"),
        (json!({"options": {"heap_mib": 9, "headroom": 401}}), "options.headroom"),
        (json!({"options": {"headroom": 20}}), "options.headroom"),
        (json!({"options": {"pids": 7}}), "options.pids"),
        (json!({"options": {"root_mib": 0}}), "options.root_mib"),
        (json!({"options": {"io": {"root": {"read_bps": 65_535}}}}), "options.io.root.read_bps"),
        (json!({"options": {"io": {"root": {"write_bps": 0}}}}), "options.io.root.write_bps"),
        (json!({"options": {"io": {"volume": {"read_iops": 9}}}}), "options.io.volume.read_iops"),
        (json!({"options": {"io": {"volume": {"write_iops": 100_000_001}}}}), "options.io.volume.write_iops"),
        (json!({"ulimits": {"files": {"soft": 1, "hard": 1}}}), "ulimits.files"),
        (json!({"ulimits": {"nofile": {"soft": 2, "hard": 1}}}), "ulimits.nofile"),
        (json!({"ulimits": {"nofile": {"soft": -1, "hard": 1}}}), "ulimits.nofile"),
        (json!({"ulimits": {"nofile": {"soft": -2, "hard": -2}}}), "ulimits.nofile"),
        (json!({"capabilities": {"add": ["SYS_ADMIN"]}}), "capabilities.add[0]"),
        (json!({"capabilities": {"add": ["CAP_NET_ADMIN", "ALL"]}}), "capabilities.add[1]"),
        (json!({"capabilities": {"drop": ["net_raw"]}}), "capabilities.drop[0]"),
        (json!({"tmpfs": [{"path": "run"}]}), "tmpfs[0].path"),
        (json!({"tmpfs": [{"path": "/proc/x"}]}), "tmpfs[0].path"),
        (json!({"tmpfs": [{"path": "/run"}, {"path": "//run/"}]}), "tmpfs[1].path"),
        (json!({"tmpfs": [{"path": "/run", "size_mib": 0}]}), "tmpfs[0].size_mib"),
        (json!({"tmpfs": [{"path": "/run", "mode": "rwx"}]}), "tmpfs[0].mode"),
        (json!({"tmpfs": [{"path": "/run", "mode": "4755"}]}), "tmpfs[0].mode"),
        (json!({"files": [{"path": "/volumes/x", "content": ""}]}), "files[0].path"),
        (json!({"files": [{"path": "/root/.ssh/authorized_keys", "content": ""}]}), "files[0].path"),
        (json!({"files": [{"path": "/a", "content": long}]}), "files[0].content"),
        (json!({"files": [{"path": "/a", "content": "", "mode": "4755"}]}), "files[0].mode"),
        (json!({"files": [{"path": "/a", "content": "", "mode": "0888"}]}), "files[0].mode"),
        (json!({"files": [{"path": "/a", "content": "", "uid": 4_000_000_000_u32}]}), "files[0].uid"),
        (json!({"files": [{"path": "/a", "content": "", "gid": 4_000_000_000_u32}]}), "files[0].gid"),
        (json!({"files": [{"path": "/a", "content": ""}], "mounts": [{"path": "/a"}]}), "mounts[0].path"),
        (json!({"mounts": [{"path": "/config-drive"}]}), "mounts[0].path"),
        (json!({"mounts": [{"path": "/a", "sub_path": "/b"}]}), "mounts[0].sub_path"),
        (json!({"mounts": [{"path": "/a", "sub_path": "b/../c"}]}), "mounts[0].sub_path"),
        (json!({"log": {"max_size_mib": 0}}), "log.max_size_mib"),
        (json!({"log": {"max_files": 17}}), "log.max_files"),
        (json!({"next_when": "finished"}), "next_when"),
        (json!({"hooks": {"post_start": {"command": []}}}), "hooks.post_start.command"),
        (json!({"hooks": {"pre_stop": {"command": ["a"], "timeout_s": 0}}}), "hooks.pre_stop.timeout_s"),
        (json!({"stop": {"signal": "TERMINATE"}}), "stop.signal"),
        (json!({"stop": {"signal": "SIGRTMIN+31"}}), "stop.signal"),
        (json!({"stop": {"grace_s": 601}}), "stop.grace_s"),
        (json!({"probes": {"readiness": {}}}), "probes.readiness.exec"),
        (json!({"update": {"min_ready_s": 3601}}), "update.min_ready_s"),
        (json!({"update": {"deadline_s": 0}}), "update.deadline_s"),
        (json!({"update": {"deadline_s": 86401}}), "update.deadline_s"),
        (json!({"probes": {"startup": {"exec": ["a"], "tcp": {"port": 1}}}}), "probes.startup.exec"),
        (json!({"probes": {"liveness": {"exec": []}}}), "probes.liveness.exec"),
        (json!({"probes": {"liveness": {"tcp": {"port": 0}}}}), "probes.liveness.tcp.port"),
        (json!({"probes": {"liveness": {"http": {"port": 0}}}}), "probes.liveness.http.port"),
        (json!({"probes": {"liveness": {"http": {"port": 1, "path": "x"}}}}), "probes.liveness.http.path"),
        (json!({"probes": {"liveness": {"http": {"port": 1, "path": "/a b"}}}}), "probes.liveness.http.path"),
        (json!({"probes": {"liveness": {"tcp": {"port": 1}, "period_s": 0}}}), "probes.liveness.period_s"),
        (json!({"probes": {"liveness": {"tcp": {"port": 1}, "timeout_s": 0}}}), "probes.liveness.timeout_s"),
        (json!({"probes": {"liveness": {"tcp": {"port": 1}, "failures": 0}}}), "probes.liveness.failures"),
        (json!({"probes": {"liveness": {"tcp": {"port": 1}, "successes": 0}}}), "probes.liveness.successes"),
        (
            json!({"probes": {"liveness": {"tcp": {"port": 1}, "initial_delay_s": 3601}}}),
            "probes.liveness.initial_delay_s",
        ),
    ];
    for (patch, field) in table {
        let mut member = json!({"index": 0, "image": "x"});
        for (key, value) in patch.as_object().unwrap() {
            member[key] = value.clone();
        }
        let refused = parse(json!({"members": [member]})).check().expect_err(&patch.to_string());
        assert_eq!(refused.field, format!("members[0].{field}"), "{patch}");
    }
    let many: serde_json::Map<_, _> = (0..257).map(|n| (format!("h{n}"), json!("10.0.0.1"))).collect();
    let anchors = [
        (json!({"dns": {"servers": ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"]}}), "dns.servers"),
        (json!({"dns": {"servers": ["0.0.0.0"]}}), "dns.servers[0]"),
        (json!({"dns": {"search": ["a..b"]}}), "dns.search[0]"),
        (json!({"dns": {"search": ["a", "b", "c", "d", "e", "f", "g"]}}), "dns.search"),
        (json!({"dns": {"options": ["ndots 2"]}}), "dns.options[0]"),
        (json!({"hosts": {"a b": "10.0.0.1"}}), "hosts.a b"),
        (json!({"hosts": many}), "hosts"),
        (json!({"timezone": "../etc/passwd"}), "timezone"),
        (json!({"timezone": "/UTC"}), "timezone"),
        (json!({"shm_mib": 0}), "shm_mib"),
        (json!({"sysctls": {"net.core.somaxconn": ""}}), "sysctls.net.core.somaxconn"),
    ];
    for (anchor, field) in anchors {
        let set = parse(json!({"anchor": anchor, "members": [{"index": 0, "image": "x"}]}));
        let refused = set.check().expect_err(&anchor.to_string());
        assert_eq!(refused.field, format!("anchor.{field}"), "{anchor}");
    }
}

#[test]
fn words_that_are_none_are_refused_where_they_are_read() {
    use serde_json::json;
    for patch in [
        json!({"restart": "sometimes"}),
        json!({"next_when": "later"}),
        json!({"hooks": {"pre_start": {"command": ["a"]}}}),
        json!({"probes": {"readiness": {"grpc": {}}}}),
        json!({"ulimits": {"nofile": 5}}),
        json!({"options": {"io": {"swap": {}}}}),
        json!({"files": [{"path": "/a"}]}),
    ] {
        let mut member = json!({"index": 0, "image": "x"});
        for (key, value) in patch.as_object().unwrap() {
            member[key] = value.clone();
        }
        let read = serde_json::from_value::<SetSpec>(json!({"members": [member]}));
        assert!(read.is_err(), "{patch}");
    }
}

#[test]
fn heaps_with_headroom_come_before_what_is_left() {
    let set = |members: serde_json::Value| parse(serde_json::json!({"members": members})).normalized();
    let mib = |set: &SetSpec, memory| -> Vec<u64> {
        set.memory_limits(memory).iter().map(|bytes| bytes >> 20).collect()
    };
    let mixed = set(serde_json::json!([
        {"index": 0, "image": "x", "options": {"heap_mib": 500}},
        {"index": 1, "image": "x", "options": {"mem": 10}},
        {"index": 2, "image": "x"}, {"index": 3, "image": "x"}]));
    assert_eq!(mib(&mixed, 1000), [600, 100, 150, 150]);
    assert_eq!(mixed.normalized(), mixed);
    assert_eq!(mixed.check_memory(1000), Ok(()));
    let refused = mixed.check_memory(670).unwrap_err();
    assert_eq!(refused.field, "members[0].options.heap_mib");
    assert!(refused.to_string().contains("679 MiB, the set has 670 MiB"), "{refused}");
    let roomy =
        set(serde_json::json!([{"index": 0, "image": "x", "options": {"heap_mib": 100, "headroom": 50}}]));
    assert_eq!(mib(&roomy, 1000), [150]);
    let plain = set(serde_json::json!([{"index": 0, "image": "x"}, {"index": 1, "image": "x"}]));
    assert_eq!((mib(&plain, 1000), plain.check_memory(1)), (vec![500, 500], Ok(())));
}

/// What was accepted once is accepted, and means the same: a file is added here with every version, none is changed.
#[test]
fn kept_descriptions_stay_accepted() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/sets");
    let mut seen = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let set: SetSpec = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        set.check().unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let kept = set.normalized();
        let again: SetSpec = serde_json::from_str(&serde_json::to_string(&kept).unwrap()).unwrap();
        assert_eq!(again, kept, "{}", path.display());
        seen += 1;
    }
    assert!(seen >= 8, "only {seen} descriptions in {}", folder.display());
}

/// The examples of the documentation are what they claim to be.
#[test]
fn the_examples_of_the_documentation_are_accepted() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/sets.md");
    let text = std::fs::read_to_string(page).unwrap();
    let examples: Vec<&str> =
        text.split("```json\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert!(examples.len() >= 4, "{} examples", examples.len());
    for example in examples {
        let set: SetSpec = serde_json::from_str(example).unwrap_or_else(|e| panic!("{e}\n{example}"));
        set.check().unwrap_or_else(|e| panic!("{e}\n{example}"));
    }
}

#[test]
fn an_instance_must_hold_what_its_set_asks_for() {
    let create = |volume: bool, memory: u64, member: serde_json::Value| {
        let mut request = serde_json::json!({"name": "i", "vcpus": 1, "memory_mib": memory, "bodies": [{"set": {"members": [member]}}]});
        if volume {
            request["volume"] = serde_json::json!({"size_gib": 1});
        }
        let request: crate::instance::InstanceCreate = serde_json::from_value(request).unwrap();
        request.check().map_err(|e| e.field)
    };
    let parted = serde_json::json!({"index": 0, "image": "x", "mounts": [{"path": "/a", "sub_path": "b"}]});
    assert_eq!(create(true, 64, parted.clone()), Ok(()));
    assert_eq!(create(false, 64, parted), Err("volume".to_owned()));
    let heap = serde_json::json!({"index": 0, "image": "x", "options": {"heap_mib": 100}});
    assert_eq!(create(false, 120, heap.clone()), Ok(()));
    assert_eq!(create(false, 119, heap), Err("bodies[0].set.members[0].options.heap_mib".to_owned()));
}
