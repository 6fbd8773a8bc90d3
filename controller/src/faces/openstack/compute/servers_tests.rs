//! Servers as clients meet them: requests and answers written down, for both kinds of body.

use super::super::talk::{Talk, caller};
use crate::ops::identity::Caller;
use crate::ops::tests::P;
use amphi_api::image::ImageFormat;
use amphi_api::{HostId, ProjectId};
use serde_json::{Value, json};
use uuid::Uuid;

const V: &str = "/compute/v2.1";
const NONE: Value = Value::Null;

fn member() -> Caller {
    caller("member", P, 1)
}

fn admin() -> Caller {
    caller("admin", P, 2)
}

fn stranger() -> Caller {
    caller("member", ProjectId(Uuid::from_u128(77)), 3)
}

struct Stage {
    talk: Talk,
    image: String,
}

impl Stage {
    /// A cloud with one flavor `1` and the larger `2`, an image, and hosts that do as they are told when asked.
    async fn new(format: ImageFormat) -> Self {
        let talk = Talk::new().await;
        let image = talk.cloud.image("plain", format).await.to_string();
        for (id, ram) in [("1", 128), ("2", 256)] {
            let flavor =
                json!({"flavor": {"name": format!("m{id}"), "id": id, "ram": ram, "vcpus": 1, "disk": 1}});
            let (status, _, body) = talk.ask(&admin(), "2.1", &format!("POST {V}/flavors"), &flavor).await;
            assert_eq!(status, 200, "{body}");
        }
        Self { talk, image }
    }

    async fn settle(&self) {
        let hosts: Vec<HostId> = self.talk.cloud.ops.world().read().hosts.iter().map(|h| h.id).collect();
        for host in hosts {
            self.talk.cloud.obey(host).await;
        }
    }

    /// A server that runs; not written down.
    async fn server(&self, name: &str) -> String {
        let body = json!({"server": {"name": name, "imageRef": self.image, "flavorRef": "1"}});
        let (status, _, answer) = self.talk.ask(&member(), "2.1", &format!("POST {V}/servers"), &body).await;
        assert_eq!(status, 202, "{answer}");
        self.settle().await;
        answer["server"]["id"].as_str().unwrap().to_owned()
    }

    async fn say(&mut self, version: &str, line: &str, body: Value) -> Value {
        self.talk.say(&member(), version, line, body).await
    }

    async fn ask(&self, version: &str, line: &str, body: Value) -> (u16, Value) {
        let (status, _, answer) = self.talk.ask(&member(), version, line, &body).await;
        (status, answer)
    }
}

/// Without what differs each time, beside ids and times.
fn scrubbed(text: &str) -> String {
    let mut text = text.to_owned();
    for (pattern, word) in [
        (r#""hostId": "[^"]+""#, r#""hostId": "[host]""#),
        (r"fa:16:3e:[0-9a-f:]{8}", "[mac]"),
        (r#""r-[0-9a-z]{8}""#, r#""[reservation]""#),
        (r#""id": \d{13}"#, r#""id": "[number]""#),
    ] {
        text = regex::Regex::new(pattern).unwrap().replace_all(&text, word).into_owned();
    }
    text
}

/// Every version at which an answer changes its form.
const VERSIONS: &[&str] =
    &["2.1", "2.3", "2.9", "2.16", "2.19", "2.26", "2.47", "2.63", "2.71", "2.73", "2.75", "2.90", "2.96"];

#[tokio::test]
async fn a_server_in_every_version() {
    let mut stage = Stage::new(ImageFormat::Qcow2).await;
    let create = json!({"server": {
        "name": "vm", "imageRef": stage.image, "flavorRef": "1", "metadata": {"a": "b"},
        "min_count": "1", "config_drive": "true", "user_data": "IyEvYmluL3NoCg==", "adminPass": "secret",
        "block_device_mapping_v2": [{"uuid": stage.image, "boot_index": 0, "source_type": "image",
            "destination_type": "local", "delete_on_termination": true}],
    }});
    let made = stage.say("2.1", &format!("POST {V}/servers"), create).await;
    let id = made["server"]["id"].as_str().unwrap().to_owned();
    stage.say("2.1", &format!("GET {V}/servers/{id}"), NONE).await;
    stage.settle().await;
    for version in VERSIONS {
        stage.talk.say(&admin(), version, &format!("GET {V}/servers/{id}"), NONE).await;
        stage.talk.say(&member(), version, &format!("GET {V}/servers/detail"), NONE).await;
        let update = json!({"server": {"name": "vm"}});
        stage.talk.say(&member(), version, &format!("PUT {V}/servers/{id}"), update).await;
    }
    for version in ["2.1", "2.54", "2.57", "2.63", "2.75", "2.96"] {
        let rebuild = json!({"rebuild": {"imageRef": stage.image, "adminPass": "secret"}});
        stage.say(version, &format!("POST {V}/servers/{id}/action"), rebuild).await;
        stage.settle().await;
    }
    stage.say("2.1", &format!("GET {V}/servers"), NONE).await;
    stage.say("2.1", &format!("DELETE {V}/servers/{id}"), NONE).await;
    stage.say("2.1", &format!("GET {V}/servers/{id}"), NONE).await;
    stage.settle().await;
    stage.say("2.1", &format!("GET {V}/servers/{id}"), NONE).await;
    insta::assert_snapshot!(scrubbed(&stage.talk.text));
}

#[tokio::test]
async fn actions_of_both_kinds() {
    for format in [ImageFormat::Qcow2, ImageFormat::DockerArchive] {
        let stage = Stage::new(format).await;
        let id = stage.server("one").await;
        let act = format!("POST {V}/servers/{id}/action");
        // What is ordered, its status, and the server's status afterwards.
        let table = [
            (json!({"os-stop": null}), 202, "SHUTOFF"),
            (json!({"os-stop": null}), 409, "SHUTOFF"),
            (json!({"os-start": null}), 202, "ACTIVE"),
            (json!({"reboot": {"type": "HARD"}}), 202, "ACTIVE"),
            (json!({"reboot": {"type": "x"}}), 400, "ACTIVE"),
            (json!({"pause": null}), 202, "PAUSED"),
            (json!({"unpause": null}), 202, "ACTIVE"),
            (json!({"suspend": null}), 202, "SUSPENDED"),
            (json!({"resume": null}), 202, "ACTIVE"),
            (json!({"lock": null}), 202, "ACTIVE"),
            (json!({"unlock": null}), 202, "ACTIVE"),
            (json!({"rescue": {}}), 200, "RESCUE"),
            (json!({"unrescue": null}), 202, "ACTIVE"),
            (json!({"resize": {"flavorRef": "2"}}), 202, "VERIFY_RESIZE"),
            (json!({"revertResize": null}), 202, "ACTIVE"),
            (json!({"resize": {"flavorRef": "2"}}), 202, "VERIFY_RESIZE"),
            (json!({"confirmResize": null}), 204, "ACTIVE"),
            (json!({"resize": {"flavorRef": "99"}}), 400, "ACTIVE"),
            (json!({"shelve": null}), 202, "SHELVED_OFFLOADED"),
            (json!({"unshelve": null}), 202, "ACTIVE"),
            (json!({"createImage": {"name": "snap"}}), 202, "ACTIVE"),
            (json!({"os-getConsoleOutput": {"length": 10}}), 200, "ACTIVE"),
            (json!({"os-getConsoleOutput": {}}), 200, "ACTIVE"),
            (json!({"os-migrateLive": {}}), 403, "ACTIVE"),
            (json!({"dance": null}), 400, "ACTIVE"),
        ];
        for (body, status, after) in table {
            let (got, answer) = stage.ask("2.1", &act, body.clone()).await;
            assert_eq!(got, status, "{body}: {answer}");
            stage.settle().await;
            let (_, server) = stage.ask("2.1", &format!("GET {V}/servers/{id}"), NONE).await;
            assert_eq!(server["server"]["status"], after, "{body}");
            assert_eq!(server["server"]["OS-EXT-STS:task_state"], NONE, "{body}");
        }
        let actions = format!("GET {V}/servers/{id}/os-instance-actions");
        let (_, all) = stage.ask("2.58", &actions, NONE).await;
        assert_eq!(all["instanceActions"].as_array().unwrap().len(), 19);
        stage.ask("2.1", &format!("POST {V}/servers/{id}/action"), json!({"forceDelete": null})).await;
        stage.settle().await;
        assert_eq!(stage.ask("2.1", &format!("GET {V}/servers/{id}"), NONE).await.0, 404);
        assert_eq!(stage.ask("2.1", &actions, NONE).await.0, 404);
        assert_eq!(stage.ask("2.21", &actions, NONE).await.0, 200, "its actions outlive it");
    }
}

#[tokio::test]
async fn what_hangs_on_a_server() {
    let mut stage = Stage::new(ImageFormat::DockerArchive).await;
    let id = stage.server("set").await;
    let server = format!("{V}/servers/{id}");
    // Metadata.
    stage.say("2.1", &format!("POST {server}/metadata"), json!({"metadata": {"k": "v"}})).await;
    stage.say("2.1", &format!("PUT {server}/metadata"), json!({"metadata": {"a": "1", "b": "2"}})).await;
    stage.say("2.1", &format!("GET {server}/metadata"), NONE).await;
    stage.say("2.1", &format!("PUT {server}/metadata/a"), json!({"meta": {"a": "3"}})).await;
    stage.say("2.1", &format!("PUT {server}/metadata/a"), json!({"meta": {"b": "3"}})).await;
    stage.say("2.1", &format!("GET {server}/metadata/a"), NONE).await;
    stage.say("2.1", &format!("DELETE {server}/metadata/a"), NONE).await;
    stage.say("2.1", &format!("GET {server}/metadata/a"), NONE).await;
    stage.say("2.1", &format!("POST {server}/metadata"), json!({"metadata": {"": "v"}})).await;
    stage.say("2.1", &format!("POST {server}/metadata"), json!({"meta1": "v"})).await;
    // Tags.
    stage.say("2.26", &format!("PUT {server}/tags"), json!({"tags": ["x", "y"]})).await;
    stage.say("2.26", &format!("PUT {server}/tags/z"), NONE).await;
    stage.say("2.26", &format!("GET {server}/tags/z"), NONE).await;
    stage.say("2.26", &format!("DELETE {server}/tags/x"), NONE).await;
    stage.say("2.26", &format!("GET {server}/tags"), NONE).await;
    stage.say("2.25", &format!("GET {server}/tags"), NONE).await;
    // Addresses and interfaces.
    stage.say("2.1", &format!("GET {server}/ips"), NONE).await;
    stage.say("2.1", &format!("GET {server}/ips/net"), NONE).await;
    stage.say("2.1", &format!("GET {server}/ips/other"), NONE).await;
    stage.say("2.1", &format!("GET {server}/os-interface"), NONE).await;
    let second = stage.talk.cloud.network("second", "10.9.0.0/24").await;
    let wish = json!({"interfaceAttachment": {"net_id": second.id.to_string(), "tag": "nic"}});
    let made = stage.say("2.70", &format!("POST {server}/os-interface"), wish).await;
    let port = made["interfaceAttachment"]["port_id"].as_str().unwrap().to_owned();
    stage.say("2.70", &format!("GET {server}/os-interface/{port}"), NONE).await;
    stage.say("2.1", &format!("DELETE {server}/os-interface/{port}"), NONE).await;
    // Volumes.
    let home = { stage.talk.cloud.ops.world().read().instances.iter().next().unwrap().host.unwrap() };
    let spec = serde_json::from_value(json!({"name": "v", "size_gib": 1, "host": home.to_string()})).unwrap();
    let volume = stage.talk.cloud.ops.create_volume(P, &spec).await.unwrap().id.to_string();
    stage.settle().await;
    let list = format!("{server}/os-volume_attachments");
    let wish = json!({"volumeAttachment": {"volumeId": volume, "device": "/dev/vdb"}});
    stage.say("2.1", &format!("POST {list}"), wish.clone()).await;
    stage.say("2.1", &format!("POST {list}"), wish).await;
    for version in ["2.1", "2.70", "2.79", "2.89"] {
        stage.say(version, &format!("GET {list}"), NONE).await;
        stage.say(version, &format!("GET {list}/{volume}"), NONE).await;
    }
    let keep = json!({"volumeAttachment": {"volumeId": volume, "delete_on_termination": true}});
    stage.say("2.85", &format!("PUT {list}/{volume}"), keep).await;
    stage.say("2.1", &format!("DELETE {list}/{volume}"), NONE).await;
    stage.say("2.1", &format!("DELETE {list}/{volume}"), NONE).await;
    // Security groups, consoles, the rest.
    let act = format!("POST {server}/action");
    stage.say("2.1", &act, json!({"addSecurityGroup": {"name": "web"}})).await;
    stage.say("2.1", &format!("GET {server}/os-security-groups"), NONE).await;
    stage.say("2.1", &act, json!({"removeSecurityGroup": {"name": "none"}})).await;
    let console = json!({"remote_console": {"protocol": "vnc", "type": "novnc"}});
    stage.say("2.6", &format!("POST {server}/remote-consoles"), console).await;
    stage.say("2.1", &format!("GET {server}/os-server-password"), NONE).await;
    stage.talk.say(&admin(), "2.48", &format!("GET {server}/diagnostics"), NONE).await;
    for version in ["2.1", "2.58", "2.84"] {
        let all = stage.say(version, &format!("GET {server}/os-instance-actions"), NONE).await;
        let request = all["instanceActions"][0]["request_id"].as_str().unwrap().to_owned();
        let one = format!("GET {server}/os-instance-actions/{request}");
        let (status, answer) = stage.ask(version, &one, NONE).await;
        assert_eq!((status, &answer["instanceAction"]["request_id"]), (200, &json!(request)));
    }
    stage.say("2.1", &act, json!({"resize": {"flavorRef": "2"}})).await;
    for version in ["2.1", "2.23", "2.59", "2.80"] {
        stage.talk.say(&admin(), version, &format!("GET {V}/os-migrations"), NONE).await;
    }
    insta::assert_snapshot!(scrubbed(&stage.talk.text));
}

#[tokio::test]
async fn lists() {
    let stage = Stage::new(ImageFormat::DockerArchive).await;
    let mut ids = Vec::new();
    for name in ["web-1", "web-2", "db-1"] {
        ids.push(stage.server(name).await);
    }
    let (_, one) = stage.ask("2.1", &format!("GET {V}/servers/{}", ids[2]), NONE).await;
    let address = one["server"]["addresses"]["net"][0]["addr"].as_str().unwrap().to_owned();
    stage.ask("2.26", &format!("PUT {V}/servers/{}/tags", ids[0]), json!({"tags": ["red", "blue"]})).await;
    stage.ask("2.1", &format!("POST {V}/servers/{}/action", ids[1]), json!({"os-stop": null})).await;
    stage.settle().await;
    let names = async |query: &str, version: &str| {
        let (status, answer) = stage.ask(version, &format!("GET {V}/servers?{query}"), NONE).await;
        let all = answer["servers"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names: Vec<String> = all.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect();
        (status, names.join(" "))
    };
    let table = [
        ("", "2.1", 200, "db-1 web-2 web-1"),
        ("name=web", "2.1", 200, "web-2 web-1"),
        ("name=%5Eweb-%5B0-9%5D%2B%24", "2.1", 200, "web-2 web-1"),
        ("name=%28", "2.1", 400, ""),
        ("status=shutoff", "2.1", 200, "web-2"),
        ("status=ACTIVE", "2.1", 200, "db-1 web-1"),
        ("status=nonsense", "2.1", 200, ""),
        ("status=nonsense", "2.38", 400, ""),
        ("flavor=1", "2.1", 200, "db-1 web-2 web-1"),
        ("flavor=none", "2.1", 200, ""),
        ("image=none", "2.1", 200, ""),
        (&format!("ip={}%24", address.replace('.', "%5C.")), "2.1", 200, "db-1"),
        ("tags=red,blue", "2.26", 200, "web-1"),
        ("tags-any=red,green", "2.26", 200, "web-1"),
        ("not-tags-any=red", "2.26", 200, "db-1 web-2"),
        ("limit=1", "2.1", 200, "db-1"),
        ("limit=0", "2.1", 200, ""),
        ("limit=-1", "2.1", 400, ""),
        ("limit=x", "2.1", 400, ""),
        (&format!("limit=1&marker={}", ids[2]), "2.1", 200, "web-2"),
        ("marker=none", "2.1", 400, ""),
        ("sort_key=display_name&sort_dir=asc", "2.1", 200, "db-1 web-1 web-2"),
        ("sort_key=nonsense", "2.1", 400, ""),
        ("changes-since=2051-01-01T00:00:00Z", "2.1", 200, ""),
        ("changes-since=2011/01/01", "2.1", 400, ""),
        ("all_tenants=1", "2.1", 403, ""),
        ("host=h1", "2.1", 200, "db-1 web-2 web-1"),
        ("unknown=1", "2.1", 200, "db-1 web-2 web-1"),
    ];
    for (query, version, status, want) in table {
        assert_eq!(names(query, version).await, (status, want.to_owned()), "{query}");
    }
    let (_, first) = stage.ask("2.1", &format!("GET {V}/servers?limit=1"), NONE).await;
    let next = first["servers_links"][0]["href"].as_str().unwrap();
    assert_eq!(next, format!("http://cloud{V}/servers?limit=1&marker={}", ids[2]));
}

#[tokio::test]
async fn refused() {
    let stage = Stage::new(ImageFormat::DockerArchive).await;
    let id = stage.server("mine").await;
    let create = |change: Value| {
        let mut server = json!({"name": "x", "imageRef": stage.image, "flavorRef": "1"});
        for (key, value) in change.as_object().unwrap() {
            server[key] = value.clone();
        }
        json!({"server": server})
    };
    let long = "a".repeat(256);
    for change in [
        json!({"name": ""}),
        json!({"name": 12345}),
        json!({"name": long}),
        json!({"imageRef": -1}),
        json!({"imageRef": "x"}),
        json!({"imageRef": Uuid::nil().to_string()}),
        json!({"imageRef": ""}),
        json!({"flavorRef": -1}),
        json!({"accessIPv4": "1.1.1.1.1.1"}),
        json!({"accessIPv6": "notvalid"}),
        json!({"networks": [{"uuid": "a-b-c", "fixed_ip": "10.0.1.1"}]}),
        json!({"networks": [{"uuid": Uuid::nil().to_string()}]}),
        json!({"networks": 5}),
        json!({"key_name": "none"}),
        json!({"security_groups": [{"name": "none"}]}),
        json!({"metadata": {"": "v"}}),
        json!({"metadata": {"a": "b".repeat(260)}}),
        json!({"metadata": {long.clone(): "v"}}),
        json!({"metadata": {"a": 5}}),
        json!({"user_data": "***"}),
        json!({"min_count": 3, "max_count": 2}),
        json!({"availability_zone": "nowhere"}),
        json!({"unknown": 1}),
        json!({"block_device_mapping_v2": [{"source_type": "volume", "uuid": id, "destination_type": "invalid"}]}),
        json!({"personality": [{"path": "/x", "contents": "x"}]}),
    ] {
        let (status, answer) = stage.ask("2.1", &format!("POST {V}/servers"), create(change.clone())).await;
        assert_eq!((status, answer["badRequest"]["code"].as_u64()), (400, Some(400)), "{change}: {answer}");
    }
    let (status, _) =
        stage.ask("2.1", &format!("POST {V}/servers"), create(json!({"availability_zone": "nova:h1"}))).await;
    assert_eq!(status, 403);
    assert_eq!(stage.ask("2.37", &format!("POST {V}/servers"), create(json!({}))).await.0, 400);
    // Nobody else's.
    let server = format!("{V}/servers/{id}");
    for (line, body) in [
        (format!("GET {server}"), NONE),
        (format!("PUT {server}"), json!({"server": {"name": "theirs"}})),
        (format!("DELETE {server}"), NONE),
        (format!("POST {server}/action"), json!({"os-stop": null})),
        (format!("POST {server}/action"), json!({"rebuild": {"imageRef": stage.image}})),
        (format!("GET {server}/metadata"), NONE),
        (format!("PUT {server}/tags/x"), NONE),
        (format!("GET {server}/os-interface"), NONE),
        (format!("GET {server}/os-volume_attachments"), NONE),
        (format!("GET {server}/os-instance-actions"), NONE),
    ] {
        let (status, _, answer) = stage.talk.ask(&stranger(), "2.26", &line, &body).await;
        assert_eq!(status, 404, "{line}: {answer}");
    }
    for bad in ["-1", "9223372036854775808", "x"] {
        assert_eq!(stage.ask("2.1", &format!("DELETE {V}/servers/{bad}"), NONE).await.0, 404);
    }
    let many: serde_json::Map<_, _> = (0..200).map(|n| (format!("k{n}"), json!("v"))).collect();
    let (status, _, answer) = stage
        .talk
        .ask(&stranger(), "2.1", &format!("POST {V}/servers"), &create(json!({"metadata": many})))
        .await;
    assert!(status == 400 || status == 403, "{answer}");
}
