//! `amphi` as a process against a server that is told what to answer: requests, output, exit codes.

mod fake;

use fake::{Fake, amphi, id, instance, refused};
use serde_json::{Value, json};
use std::path::PathBuf;

fn file(name: &str, text: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    (directory, path)
}

#[test]
fn without_a_controller() {
    amphi(None, &["instance", "list"]).with(2).says("AMPHI_URL is not set").says("target/lab/env");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", closed.local_addr().unwrap());
    drop(closed);
    amphi(Some(&url), &["instance", "list"]).with(5).says("does not answer").says("next:  check AMPHI_URL");
    amphi(None, &["instance", "dance"]).with(2);
    amphi(None, &["--help"]).with(0).prints("Exit codes:");
    amphi(None, &["version"]).with(0).prints("amphi 0.");
    for shell in ["bash", "zsh", "fish"] {
        amphi(None, &["completion", shell]).with(0).prints("recycle-bin");
    }
}

#[test]
fn set_create_sends_the_request_and_waits_until_it_runs() {
    let server = Fake::start(|asked, before| match (asked.line.as_str(), before) {
        ("POST /v1/instances", _) => (202, instance(1, "web", "building")),
        (_, 0) => (200, instance(1, "web", "building")),
        _ => (200, instance(1, "web", "running")),
    });
    let (_kept, path) = file("set.json", br#"{"members": [{"index": 0, "image": "busybox"}]}"#);
    let words = [
        "set",
        "create",
        "web",
        "--file",
        path.to_str().unwrap(),
        "--network",
        "blue",
        "--address",
        "10.1.0.5",
        "--vcpus",
        "2",
        "--memory",
        "1GiB",
        "--volume-gib",
        "1",
        "--security-group",
        "web",
        "--metadata",
        "a=b=c",
    ];
    let ended = server.amphi(&words).with(0).says("instance web: building on h1").says("running on h1");
    assert!(ended.out.starts_with("Name       web\n"), "{}", ended.out);
    assert_eq!(
        server.asked()[0].json(),
        json!({
            "name": "web", "vcpus": 2, "memory_mib": 1024,
            "bodies": [{"set": {"members": [{"name": "", "index": 0, "image": "busybox", "options": {}}], "volume_mount": "/data"}}],
            "networks": [{"network": "blue", "address": "10.1.0.5"}], "security_groups": ["web"],
            "volume": {"size_gib": 1}, "metadata": {"a": "b=c"}, "failover": "any_kind"})
    );

    let ended = server.amphi(&[&words[..], &["--no-wait", "--json"]].concat()).with(0);
    let printed: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(printed["state"], "building");
    assert_eq!(ended.err, "");

    // What can be known here is refused here.
    let asked = server.lines().len();
    server.amphi(&[&words[..], &["--vcpus-of-nobody", "1"]].concat()).with(2);
    server.amphi(&["set", "create", "a\u{7}b", "--file", path.to_str().unwrap()]).with(4).says("field: name");
    assert_eq!(server.lines().len(), asked);
}

#[test]
fn refusals_and_faults() {
    let server = Fake::start(|asked, _| match asked.line.as_str() {
        "POST /v1/instances" if asked.json()["name"] == "taken" => {
            (409, refused("conflict", "10.1.0.5 is taken by db", Some("networks[0].address")))
        }
        "POST /v1/instances" if asked.json()["name"] == "big" => {
            (409, refused("no_room", "h1: 1 GiB free", None))
        }
        "POST /v1/instances" => (202, instance(1, "web", "building")),
        "GET /v1/instances" => (200, json!({"instances": []})),
        _ => {
            let mut broken = instance(1, "web", "error");
            broken["fault"] =
                json!({"code": "image_broken", "message": "no manifest", "since": "2026-01-02T03:04:05Z"});
            (200, broken)
        }
    });
    let create = |name| server.amphi(&["vm", "create", name, "--image", "tiny"]);
    create("taken").with(4).says("10.1.0.5 is taken by db").says("field: networks[0].address");
    create("big").with(1).says("h1: 1 GiB free");
    create("web").with(1).says("image_broken: no manifest").says("tried again by itself");
    server
        .amphi(&["instance", "show", "nobody"])
        .with(3)
        .says("no instance 'nobody'")
        .says("amphi instance list");
    server.amphi(&["instance", "list", "--json"]).with(0).prints("\"instances\": []");
    server.amphi(&["instance", "list"]).with(0).prints("NAME  STATE  BODY");
}

#[test]
fn exchange_tells_phases_and_outage() {
    let exchange = |phase: &str| {
        let mut value = json!({"id": id(7), "instance": id(1), "from": "set", "to": "vm", "phase": phase,
                               "started_at": "2026-01-02T03:04:05Z"});
        match phase {
            "done" => value["outage_ms"] = json!(1234),
            "failed" => {
                value["fault"] =
                    json!({"code": "engine_refused", "message": "bad XML", "since": "2026-01-02T03:04:05Z"});
            }
            _ => {}
        }
        value
    };
    let phases = |last: &'static str| {
        Fake::start(move |asked, before| match (asked.line.split(' ').next(), before) {
            (Some("POST"), _) => (202, exchange("preparing")),
            _ if asked.line.ends_with("/instances") => {
                (200, json!({"instances": [instance(1, "web", "running")]}))
            }
            (_, 0) => (200, exchange("preparing")),
            (_, 1) => (200, exchange("switching")),
            _ => (200, exchange(last)),
        })
    };
    let server = phases("done");
    let ended = server.amphi(&["exchange", "web", "--to", "vm", "--image", "tiny"]).with(0);
    let ended = ended.says("web: set to vm: preparing").says("switching").prints("Outage    1.234 s");
    assert!(ended.out.contains("Phase     done"), "{}", ended.out);
    assert_eq!(server.asked()[1].json(), json!({"to": "vm", "body": {"vm": {"image": "tiny"}}}));
    phases("failed")
        .amphi(&["exchange", "web", "--to", "vm"])
        .with(1)
        .says("web keeps its set: engine_refused: bad XML");
    server.amphi(&["exchange", "web", "--to", "set", "--image", "tiny"]).with(2);
}

#[test]
fn an_image_whose_upload_fails_leaves_no_record() {
    let image = json!({"id": id(5), "project": id(0), "name": "busybox", "format": "docker-archive",
                       "state": "queued", "blobs": {}, "created_at": "2026-01-02T03:04:05Z"});
    let server = Fake::start(move |asked, _| match asked.line.split(' ').next() {
        Some("POST") => (201, image.clone()),
        Some("PUT") => (400, refused("invalid_field", "not what docker save writes", Some("archive"))),
        _ => (204, Value::Null),
    });
    let (_kept, path) = file("busybox.tar", b"no tar");
    let path = path.to_str().unwrap();
    server.amphi(&["image", "create", "busybox", path]).with(2).says("--format docker-archive|qcow2|raw");
    assert_eq!(server.lines(), [""; 0]);
    server
        .amphi(&["image", "create", "busybox", "--format", "docker-archive", path])
        .with(4)
        .says("not what docker save writes");
    let lines = server.lines();
    assert_eq!(lines[0], "POST /v1/images");
    assert_eq!(lines[2], format!("DELETE /v1/images/{}", id(5)));
    server.amphi(&["image", "create", "x", "--kernel", path]).with(2);
    server.amphi(&["image", "create", "x"]).with(2);
}

#[test]
fn a_join_token_stands_alone_on_stdout() {
    let server = Fake::start(|_, _| (201, json!({"token": "abc.def", "expires_at": "2026-01-02T03:04:05Z"})));
    let ended =
        server.amphi(&["host", "join-token", "--host", "h1", "--ttl", "60"]).with(0).says("good until");
    assert_eq!(ended.out, "abc.def\n");
    assert_eq!(server.asked()[0].json(), json!({"host": "h1", "ttl_seconds": 60}));
}

#[test]
fn rules_in_their_short_form() {
    let group = json!({"id": id(3), "project": id(0), "name": "web", "created_at": "2026-01-02T03:04:05Z",
        "rules": [{"id": id(4), "direction": "ingress", "protocol": "tcp", "port_min": 80, "port_max": 80}]});
    let server = Fake::start(move |asked, _| match asked.line.as_str() {
        "GET /v1/security-groups" => (200, json!({"security_groups": [group]})),
        line if line.starts_with("DELETE") => (204, Value::Null),
        _ => (200, group.clone()),
    });
    server
        .amphi(&["security-group", "create", "web", "--allow", "icmp", "--allow", "tcp:22@10.0.0.0/8"])
        .with(0)
        .prints("ingress    tcp:80");
    assert_eq!(
        server.asked()[0].json(),
        json!({"name": "web", "rules": [
            {"direction": "ingress", "protocol": "icmp"},
            {"direction": "ingress", "protocol": "tcp", "port_min": 22, "port_max": 22, "remote": "10.0.0.0/8"}]})
    );
    server.amphi(&["security-group", "remove-rule", "web", "tcp:80"]).with(0);
    assert!(server.lines().contains(&format!("DELETE /v1/security-groups/{}/rules/{}", id(3), id(4))));
    server.amphi(&["security-group", "remove-rule", "web", "tcp:81"]).with(3);
    server.amphi(&["security-group", "create", "web", "--allow", "tcp:0"]).with(2).says("1 to 65535");
}

fn volume(state: &str) -> Value {
    json!({"id": id(6), "project": id(0), "name": "data", "size_gib": 1, "state": state, "host": id(9),
           "host_name": "h1", "trashed_at": "2026-01-02T03:04:05Z", "created_at": "2026-01-02T03:04:05Z"})
}

#[test]
fn a_restore_waits_for_the_host() {
    let server = Fake::start(move |asked, before| match (asked.line.as_str(), before) {
        ("GET /v1/recycle-bin", _) => (200, json!({"volumes": [volume("trashed")]})),
        (line, _) if line.starts_with("POST") => (202, volume("restoring")),
        (_, 0 | 1) => (200, volume("restoring")),
        _ => (200, volume("available")),
    });
    server
        .amphi(&["recycle-bin", "restore", "data"])
        .with(0)
        .says("volume data: restoring")
        .says("available")
        .prints("restored volume data");
    assert_eq!(server.lines().iter().filter(|l| **l == format!("GET /v1/volumes/{}", id(6))).count(), 3);
}

#[test]
fn a_deletion_on_a_dead_host_says_what_it_waits_for() {
    let server = Fake::start(|asked, _| match asked.line.split(' ').next() {
        Some("DELETE") => (202, Value::Null),
        _ if asked.line.ends_with("/instances") => {
            (200, json!({"instances": [instance(1, "web", "unknown")]}))
        }
        _ => {
            let mut waits = instance(1, "web", "deleting");
            waits["fault"] = json!({"code": "host_down", "message": "host 'h1' does not answer: later",
                                    "since": "2026-01-02T03:04:05Z"});
            (200, waits)
        }
    });
    server
        .amphi(&["instance", "delete", "web"])
        .with(1)
        .says("deleting on h1: host_down: host 'h1' does not answer: later")
        .says("next:  the order stands; if h1 is dead for good: amphi host evacuate h1");
    let looks = server.lines().iter().filter(|l| **l == format!("GET /v1/instances/{}", id(1))).count();
    assert_eq!(looks, 1, "at once");
    server.amphi(&["instance", "delete", "web", "--no-wait"]).with(0).prints("web is being deleted");
}

#[test]
fn a_purge_that_waits_for_its_host_gives_up() {
    let server = Fake::start(move |asked, _| match asked.line.split(' ').next() {
        Some("DELETE") => (202, Value::Null),
        _ if asked.line.ends_with("/recycle-bin") => (200, json!({"volumes": [volume("trashed")]})),
        _ => {
            let mut waits = volume("purging");
            waits["fault"] = json!("its host does not answer");
            (200, waits)
        }
    });
    server
        .amphi(&["recycle-bin", "purge", "data"])
        .with(1)
        .says("volume data is purging: its host does not answer");
}

#[test]
fn a_purge_waits_until_the_volume_is_gone() {
    let server = Fake::start(move |asked, before| match (asked.line.as_str(), before) {
        ("GET /v1/recycle-bin", _) => (200, json!({"volumes": [volume("trashed")]})),
        (line, _) if line.starts_with("DELETE") => (202, Value::Null),
        (_, 0) => (200, volume("purging")),
        _ => (404, refused("not_found", "no volume", None)),
    });
    server
        .amphi(&["recycle-bin", "purge", "data"])
        .with(0)
        .says("volume data: purging")
        .prints("purged volume data");
    assert_eq!(server.lines().len(), 4);
    server.amphi(&["recycle-bin", "list"]).with(0).prints("data  trashed  1 GiB  h1");
}
