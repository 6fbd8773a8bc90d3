//! Requests and answers as written down, per resource; and who may not.

use super::super::talk::{Talk, caller};
use crate::ops::identity::Caller;
use crate::ops::tests::P;
use amphi_api::ProjectId;
use serde_json::{Value, json};
use uuid::Uuid;

const V: &str = "/compute/v2.1";
const NONE: Value = Value::Null;

fn admin() -> Caller {
    caller("admin", P, 1)
}

/// A member of another project than the cloud's first.
fn member() -> Caller {
    caller("member", ProjectId(Uuid::from_u128(77)), 2)
}

fn reader() -> Caller {
    caller("reader", ProjectId(Uuid::from_u128(77)), 3)
}

#[tokio::test]
async fn discovery() {
    let mut talk = Talk::new().await;
    for path in ["/compute", "/compute/", "/compute/v2.1", "/compute/v2.1/", "/compute/v2/"] {
        talk.say(&reader(), "2.1", &format!("GET {path}"), NONE).await;
    }
    talk.say(&reader(), "2.1", &format!("GET {V}/extensions/os-consoles"), NONE).await;
    talk.say(&reader(), "2.1", &format!("GET {V}/extensions/none"), NONE).await;
    insta::assert_snapshot!(talk.text);
    let (_, _, all) = talk.ask(&reader(), "2.1", &format!("GET {V}/extensions"), &NONE).await;
    assert!(all["extensions"].as_array().unwrap().iter().any(|e| e["name"] == "Hosts"));
}

#[tokio::test]
async fn paths_that_name_the_project() {
    let talk = Talk::new().await;
    let own = Uuid::from_u128(77).simple().to_string();
    for (path, status) in [
        (format!("{V}/{own}/servers/detail"), 200),
        (format!("{V}/{own}/limits?reserved=1"), 200),
        (format!("{V}/{own}/servers/{own}"), 404),
        (format!("{V}/{}/servers", P.0.simple()), 404),
        (format!("{V}/{own}"), 200),
    ] {
        let (seen, ..) = talk.ask(&reader(), "2.1", &format!("GET {path}"), &NONE).await;
        assert_eq!(seen, status, "{path}");
    }
}

#[tokio::test]
async fn flavors() {
    let mut talk = Talk::new().await;
    let flavors = format!("{V}/flavors");
    let a = admin();
    let small = json!({"flavor": {"name": "small", "id": "7", "ram": "512", "vcpus": 1, "disk": 10,
        "swap": 0, "os-flavor-access:is_public": "True"}});
    talk.say(&a, "2.1", &format!("POST {flavors}"), small.clone()).await;
    talk.say(&a, "2.1", &format!("POST {flavors}"), small.clone()).await;
    talk.say(&member(), "2.1", &format!("POST {flavors}"), small.clone()).await;
    let hidden = json!({"flavor": {"name": "hidden", "id": null, "ram": 1024, "vcpus": 2, "disk": 0,
        "OS-FLV-EXT-DATA:ephemeral": 1, "swap": 64, "rxtx_factor": "2.0",
        "os-flavor-access:is_public": false, "description": "ours"}});
    let made = talk.say(&a, "2.75", &format!("POST {flavors}"), hidden.clone()).await;
    talk.say(&a, "2.54", &format!("POST {flavors}"), hidden).await;
    let id = made["flavor"]["id"].as_str().unwrap().to_owned();
    talk.say(&a, "2.60", &format!("PUT {flavors}/{id}"), json!({"flavor": {"description": null}})).await;
    talk.say(&reader(), "2.1", &format!("GET {flavors}"), NONE).await;
    talk.say(&a, "2.55", &format!("GET {flavors}?is_public=None&limit=1&sort_key=name"), NONE).await;
    talk.say(&a, "2.1", &format!("GET {flavors}/detail?minRam=600&is_public=None"), NONE).await;
    talk.say(&a, "2.1", &format!("GET {flavors}?marker=none"), NONE).await;
    talk.say(&reader(), "2.61", &format!("GET {flavors}/7"), NONE).await;
    talk.say(&reader(), "2.61", &format!("GET {flavors}/small"), NONE).await;
    talk.say(&reader(), "2.61", &format!("GET {flavors}/{id}"), NONE).await;
    // Access.
    let project = Uuid::from_u128(77).simple().to_string();
    let action = format!("POST {flavors}/{id}/action");
    let path = format!("GET {flavors}/{id}/os-flavor-access");
    talk.say(&a, "2.1", &action, json!({"addTenantAccess": {"tenant": project}})).await;
    let known = caller("admin", ProjectId(Uuid::from_u128(77)), 1);
    talk.say(&known, "2.1", &action, json!({"addTenantAccess": {"tenant": project}})).await;
    talk.say(&known, "2.1", &action, json!({"addTenantAccess": {"tenant": project}})).await;
    talk.say(&a, "2.1", &path, NONE).await;
    talk.say(&a, "2.1", &format!("GET {flavors}/7/os-flavor-access"), NONE).await;
    talk.say(&reader(), "2.1", &format!("GET {flavors}/{id}"), NONE).await;
    talk.say(&a, "2.1", &action, json!({"removeTenantAccess": {"tenant": project}})).await;
    talk.say(&a, "2.1", &action, json!({"removeTenantAccess": {"tenant": project}})).await;
    // Extra specs.
    let specs = format!("{flavors}/7/os-extra_specs");
    let two = json!({"extra_specs": {"hw:cpu_policy": "shared", "n": 2}});
    talk.say(&a, "2.1", &format!("POST {specs}"), two.clone()).await;
    talk.say(&member(), "2.1", &format!("POST {specs}"), two).await;
    talk.say(&reader(), "2.1", &format!("GET {specs}/n"), NONE).await;
    talk.say(&reader(), "2.1", &format!("GET {specs}/m"), NONE).await;
    talk.say(&a, "2.1", &format!("PUT {specs}/n"), json!({"n": "3"})).await;
    talk.say(&a, "2.1", &format!("PUT {specs}/n"), json!({"m": "3"})).await;
    talk.say(&a, "2.1", &format!("DELETE {specs}/n"), NONE).await;
    talk.say(&a, "2.1", &format!("DELETE {specs}/n"), NONE).await;
    talk.say(&reader(), "2.1", &format!("GET {specs}"), NONE).await;
    talk.say(&a, "2.1", &format!("DELETE {flavors}/7"), NONE).await;
    talk.say(&a, "2.1", &format!("DELETE {flavors}/7"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn key_pairs() {
    const KEY: &str = include_str!("../../../ops/testdata/ssh-keys.txt");
    let key =
        KEY.lines().find_map(|l| l.split_once(' ').filter(|(_, k)| k.starts_with("ssh-rsa"))).unwrap().1;
    let mut talk = Talk::new().await;
    let m = member();
    let keys = format!("{V}/os-keypairs");
    let import = |name: &str| json!({"keypair": {"name": name, "public_key": key}});
    talk.say(&m, "2.1", &format!("POST {keys}"), import("one")).await;
    talk.say(&m, "2.2", &format!("POST {keys}"), import("two words")).await;
    talk.say(&m, "2.2", &format!("POST {keys}"), import("one")).await;
    talk.say(&m, "2.2", &format!("POST {keys}"), import("a@b")).await;
    talk.say(&m, "2.92", &format!("POST {keys}"), import("a@b")).await;
    talk.say(&m, "2.92", &format!("POST {keys}"), json!({"keypair": {"name": "made"}})).await;
    talk.say(&reader(), "2.2", &format!("POST {keys}"), import("x")).await;
    let bad = json!({"keypair": {"name": "bad", "public_key": "ssh-rsa JUNK"}});
    talk.say(&m, "2.2", &format!("POST {keys}"), bad).await;
    talk.say(&m, "2.1", &format!("GET {keys}"), NONE).await;
    talk.say(&m, "2.35", &format!("GET {keys}?limit=1"), NONE).await;
    talk.say(&m, "2.35", &format!("GET {keys}?limit=5&marker=one"), NONE).await;
    talk.say(&m, "2.2", &format!("GET {keys}/two%20words"), NONE).await;
    talk.say(&m, "2.2", &format!("GET {keys}/three"), NONE).await;
    let other = format!("user_id={}", Uuid::from_u128(3).simple());
    talk.say(&m, "2.10", &format!("GET {keys}?{other}"), NONE).await;
    talk.say(&admin(), "2.10", &format!("GET {keys}?{other}"), NONE).await;
    talk.say(&m, "2.1", &format!("DELETE {keys}/one"), NONE).await;
    talk.say(&m, "2.2", &format!("DELETE {keys}/one"), NONE).await;
    talk.say(&m, "2.2", &format!("DELETE {keys}/two%20words"), NONE).await;
    insta::assert_snapshot!(talk.text);
    for kind in ["ssh", "x509"] {
        let made = json!({"keypair": {"name": kind, "type": kind}});
        let (status, _, answer) = talk.ask(&m, "2.2", &format!("POST {keys}"), &made).await;
        assert_eq!(status, 201, "{answer}");
        assert!(answer["keypair"]["private_key"].as_str().unwrap().contains("PRIVATE KEY"));
        assert_eq!(answer["keypair"]["type"], kind);
        let (_, _, shown) = talk.ask(&m, "2.2", &format!("GET {keys}/{kind}"), &NONE).await;
        assert!(shown["keypair"].get("private_key").is_none());
    }
    let limit = json!({"quota_set": {"key_pairs": 3}});
    let project = Uuid::from_u128(77).simple();
    let owner = caller("admin", ProjectId(Uuid::from_u128(77)), 9);
    let (status, ..) = talk.ask(&owner, "2.1", &format!("PUT {V}/os-quota-sets/{project}"), &limit).await;
    assert_eq!(status, 200);
    let (status, _, answer) = talk.ask(&m, "2.1", &format!("POST {keys}"), &import("more")).await;
    assert_eq!(
        (status, &answer["forbidden"]["message"]),
        (403, &json!("Quota exceeded, too many key pairs."))
    );
}

#[tokio::test]
async fn server_groups() {
    let mut talk = Talk::new().await;
    let m = member();
    let groups = format!("{V}/os-server-groups");
    let old = |policy: &str| json!({"server_group": {"name": "g", "policies": [policy]}});
    let made = talk.say(&m, "2.1", &format!("POST {groups}"), old("anti-affinity")).await;
    talk.say(&m, "2.1", &format!("POST {groups}"), old("soft-affinity")).await;
    talk.say(&m, "2.15", &format!("POST {groups}"), old("soft-affinity")).await;
    let new = json!({"server_group": {"name": "h", "policy": "anti-affinity",
        "rules": {"max_server_per_host": "3"}}});
    talk.say(&m, "2.64", &format!("POST {groups}"), new.clone()).await;
    talk.say(&reader(), "2.64", &format!("POST {groups}"), new).await;
    let wrong =
        json!({"server_group": {"name": "h", "policy": "affinity", "rules": {"max_server_per_host": 3}}});
    talk.say(&m, "2.64", &format!("POST {groups}"), wrong).await;
    talk.say(&reader(), "2.64", &format!("GET {groups}?limit=1&offset=1"), NONE).await;
    talk.say(&admin(), "2.13", &format!("GET {groups}?all_projects=true"), NONE).await;
    talk.say(&admin(), "2.1", &format!("GET {groups}"), NONE).await;
    let id = made["server_group"]["id"].as_str().unwrap().to_owned();
    talk.say(&m, "2.1", &format!("GET {groups}/{id}"), NONE).await;
    let stranger = caller("member", P, 5);
    talk.say(&stranger, "2.1", &format!("GET {groups}/{id}"), NONE).await;
    talk.say(&stranger, "2.1", &format!("DELETE {groups}/{id}"), NONE).await;
    talk.say(&m, "2.1", &format!("DELETE {groups}/{id}"), NONE).await;
    talk.say(&m, "2.1", &format!("DELETE {groups}/{id}"), NONE).await;
    talk.say(&m, "2.1", &format!("GET {groups}/name"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

/// Ids of aggregates are revisions: they are taken from the answers.
#[tokio::test]
async fn aggregates_and_zones() {
    let mut talk = Talk::new().await;
    let a = admin();
    let all = format!("{V}/os-aggregates");
    let east = json!({"aggregate": {"name": "east", "availability_zone": "east"}});
    let (status, _, made) = talk.ask(&a, "2.41", &format!("POST {all}"), &east).await;
    assert_eq!(status, 200);
    let made = &made["aggregate"];
    let id = made["id"].as_u64().unwrap();
    let keys: Vec<_> = made.as_object().unwrap().keys().cloned().collect();
    let want =
        ["availability_zone", "created_at", "deleted", "deleted_at", "id", "name", "updated_at", "uuid"];
    assert_eq!(keys.len(), want.len(), "{keys:?}");
    assert!(want.iter().all(|key| keys.iter().any(|k| k == key)), "{keys:?}");
    let path = format!("{all}/{id}");
    let table = [
        ("POST", all.clone(), east, 409),
        ("POST", format!("{path}/action"), json!({"add_host": {"host": "h1"}}), 200),
        ("POST", format!("{path}/action"), json!({"add_host": {"host": "h1"}}), 409),
        ("POST", format!("{path}/action"), json!({"add_host": {"host": "h9"}}), 404),
        ("POST", format!("{path}/action"), json!({"add_host": {}}), 400),
        ("POST", format!("{path}/action"), json!({"dance": {}}), 400),
        ("POST", format!("{path}/action"), json!({"set_metadata": {"metadata": {"k": "v", "n": null}}}), 200),
        ("POST", format!("{path}/action"), json!({"set_metadata": {"metadata": {"k": 1}}}), 400),
        ("PUT", path.clone(), json!({"aggregate": {"name": "eastern"}}), 200),
        ("PUT", path.clone(), json!({"aggregate": {}}), 400),
        ("PUT", format!("{all}/999999"), json!({"aggregate": {"name": "x"}}), 404),
        ("GET", format!("{all}/eastern"), NONE, 404),
        ("DELETE", path.clone(), NONE, 400),
    ];
    for (at, (method, path, body, want)) in table.into_iter().enumerate() {
        let (status, _, answer) = talk.ask(&a, "2.1", &format!("{method} {path}"), &body).await;
        assert_eq!(status, want, "row {at}: {answer}");
    }
    let (_, _, shown) = talk.ask(&a, "2.1", &format!("GET {path}"), &NONE).await;
    assert_eq!(shown["aggregate"]["hosts"], json!(["h1"]));
    assert_eq!(shown["aggregate"]["metadata"], json!({"availability_zone": "east", "k": "v"}));
    assert!(shown["aggregate"].get("uuid").is_none());
    assert_eq!(talk.ask(&member(), "2.1", &format!("GET {all}"), &NONE).await.0, 403);

    talk.say(&reader(), "2.1", &format!("GET {V}/os-availability-zone"), NONE).await;
    talk.say(&a, "2.1", &format!("GET {V}/os-availability-zone/detail"), NONE).await;
    talk.say(&member(), "2.1", &format!("GET {V}/os-availability-zone/detail"), NONE).await;
    insta::assert_snapshot!(talk.text);
    let gone = json!({"remove_host": {"host": "h1"}});
    assert_eq!(talk.ask(&a, "2.1", &format!("POST {path}/action"), &gone).await.0, 200);
    assert_eq!(talk.ask(&a, "2.1", &format!("POST {path}/action"), &gone).await.0, 404);
    assert_eq!(talk.ask(&a, "2.1", &format!("DELETE {path}"), &NONE).await.0, 200);
}

#[tokio::test]
async fn hypervisors_and_services() {
    let mut talk = Talk::new().await;
    let a = admin();
    talk.cloud.create(json!({"name": "i1", "host": "h1"})).await.unwrap();
    let (all, services) = (format!("{V}/os-hypervisors"), format!("{V}/os-services"));
    let list = talk.say(&a, "2.53", &format!("GET {all}?with_servers=true"), NONE).await;
    let id = list["hypervisors"][0]["id"].as_str().unwrap().to_owned();
    talk.say(&a, "2.33", &format!("GET {all}/statistics"), NONE).await;
    talk.say(&a, "2.53", &format!("GET {all}?hypervisor_hostname_pattern=h2"), NONE).await;
    talk.say(&a, "2.53", &format!("GET {all}?hypervisor_hostname_pattern=x"), NONE).await;
    talk.say(&a, "2.75", &format!("GET {all}/{id}?with_servers=1"), NONE).await;
    talk.say(&a, "2.88", &format!("GET {all}/statistics"), NONE).await;
    talk.say(&a, "2.53", &format!("GET {all}/name"), NONE).await;
    talk.say(&member(), "2.53", &format!("GET {all}"), NONE).await;
    talk.say(&a, "2.53", &format!("GET {services}"), NONE).await;
    let path = format!("PUT {services}/{id}");
    talk.say(&a, "2.53", &path, json!({"status": "disabled", "disabled_reason": "disk"})).await;
    talk.say(&a, "2.53", &path, json!({"status": "enabled", "disabled_reason": "x"})).await;
    talk.say(&a, "2.53", &path, json!({"forced_down": "true"})).await;
    talk.say(&a, "2.53", &path, json!({})).await;
    talk.say(&a, "2.53", &format!("GET {services}?host=h1"), NONE).await;
    talk.say(&a, "2.53", &format!("DELETE {services}/{id}"), NONE).await;
    let named = json!({"host": "h1", "binary": "nova-compute"});
    talk.say(&a, "2.1", &format!("PUT {services}/enable"), named.clone()).await;
    talk.say(&a, "2.1", &format!("PUT {services}/force-down"), named.clone()).await;
    let down = json!({"host": "h1", "binary": "nova-compute", "forced_down": false});
    talk.say(&a, "2.11", &format!("PUT {services}/force-down"), down).await;
    let why = json!({"host": "h1", "binary": "nova-compute", "disabled_reason": "why"});
    talk.say(&a, "2.1", &format!("PUT {services}/disable-log-reason"), why).await;
    talk.say(&a, "2.1", &format!("PUT {services}/dance"), named).await;
    let wrong = json!({"host": "h1", "binary": "nova-scheduler"});
    talk.say(&a, "2.1", &format!("PUT {services}/disable"), wrong).await;
    insta::assert_snapshot!(talk.text);

    // Before 2.53 ids are numbers, and some routes are there that are gone later.
    let (_, _, list) = talk.ask(&a, "2.1", &format!("GET {all}/detail"), &NONE).await;
    let one = &list["hypervisors"][0];
    let number = one["id"].as_u64().unwrap();
    assert_eq!(
        (&one["cpu_info"], &one["running_vms"], &one["vcpus_used"]),
        (&json!(""), &json!(1), &json!(1))
    );
    let (status, _, shown) = talk.ask(&a, "2.28", &format!("GET {all}/{number}"), &NONE).await;
    assert_eq!((status, &shown["hypervisor"]["cpu_info"]), (200, &json!({})));
    let (status, _, up) = talk.ask(&a, "2.1", &format!("GET {all}/{number}/uptime"), &NONE).await;
    assert_eq!(status, 200);
    assert!(up["hypervisor"]["uptime"].as_str().unwrap().contains(" up 0 days"), "{up}");
    let (_, _, found) = talk.ask(&a, "2.1", &format!("GET {all}/h1/servers"), &NONE).await;
    assert_eq!(found["hypervisors"][0]["servers"][0]["name"], "i1");
    let (_, _, found) = talk.ask(&a, "2.1", &format!("GET {all}/h/search"), &NONE).await;
    assert_eq!(found["hypervisors"].as_array().unwrap().len(), 2);
    assert_eq!(talk.ask(&a, "2.53", &format!("GET {all}/h/search"), &NONE).await.0, 404);
    let (_, _, full) = talk.ask(&a, "2.88", &format!("GET {all}/detail"), &NONE).await;
    assert!(full["hypervisors"][0].get("vcpus").is_none() && full["hypervisors"][0].get("uptime").is_some());
}

#[tokio::test]
async fn quotas_and_limits() {
    let mut talk = Talk::new().await;
    let project = Uuid::from_u128(77).simple().to_string();
    let a = caller("admin", ProjectId(Uuid::from_u128(77)), 1);
    let sets = format!("{V}/os-quota-sets/{project}");
    talk.say(&reader(), "2.1", &format!("GET {sets}"), NONE).await;
    talk.say(&reader(), "2.57", &format!("GET {sets}/detail"), NONE).await;
    talk.say(&reader(), "2.36", &format!("GET {sets}/defaults"), NONE).await;
    talk.say(&caller("member", P, 5), "2.36", &format!("GET {sets}"), NONE).await;
    talk.say(&a, "2.57", &format!("PUT {sets}"), json!({"quota_set": {"ram": "5120", "cores": -1}})).await;
    talk.say(&member(), "2.57", &format!("PUT {sets}"), json!({"quota_set": {"ram": 1}})).await;
    let user = format!("user_id={}", Uuid::from_u128(2).simple());
    talk.say(&a, "2.57", &format!("PUT {sets}?{user}"), json!({"quota_set": {"ram": 9999}})).await;
    talk.say(&a, "2.57", &format!("PUT {sets}?{user}"), json!({"quota_set": {"ram": 2048}})).await;
    talk.say(&a, "2.57", &format!("PUT {sets}"), json!({"quota_set": {"injected_files": 1}})).await;
    talk.say(&a, "2.57", &format!("PUT {sets}"), json!({"quota_set": {"ram": -2}})).await;
    talk.say(&a, "2.57", &format!("GET {V}/os-quota-sets/{}", Uuid::from_u128(99)), NONE).await;
    talk.say(&reader(), "2.1", &format!("GET {V}/limits"), NONE).await;
    talk.say(&reader(), "2.57", &format!("GET {V}/limits?reserved=1"), NONE).await;
    talk.say(&reader(), "2.57", &format!("GET {V}/limits?tenant_id={}", P.0.simple()), NONE).await;
    talk.say(&a, "2.57", &format!("DELETE {sets}"), NONE).await;
    talk.say(&a, "2.57", &format!("GET {sets}?{user}"), NONE).await;
    let class = format!("{V}/os-quota-class-sets/default");
    talk.say(&a, "2.1", &format!("PUT {class}"), json!({"quota_class_set": {"cores": 40}})).await;
    talk.say(&a, "2.57", &format!("GET {class}"), NONE).await;
    talk.say(&member(), "2.57", &format!("GET {class}"), NONE).await;
    insta::assert_snapshot!(talk.text);
}

#[tokio::test]
async fn usage_of_the_past_and_the_present() {
    let talk = Talk::new().await;
    let cloud = talk.cloud.clone();
    let kept = cloud.create(json!({"name": "kept", "host": "h1"})).await.unwrap();
    let gone = cloud.create(json!({"name": "gone", "host": "h1"})).await.unwrap();
    cloud.ops.delete_instance(P, gone.id, crate::ops::VolumeFate::Keep).await.unwrap();
    cloud.obey(kept.host.unwrap()).await;
    let all = format!("{V}/os-simple-tenant-usage");
    let period = "start=2020-01-01T00:00:00.000000&end=2100-01-01T00:00:00.000000";
    let a = admin();
    let (status, _, answer) = talk.ask(&a, "2.1", &format!("GET {all}?{period}&detailed=1"), &NONE).await;
    assert_eq!(status, 200);
    let one = &answer["tenant_usages"][0];
    assert_eq!(one.as_object().unwrap().len(), 8, "{one}");
    let states: Vec<_> = one["server_usages"].as_array().unwrap().iter().map(|u| &u["state"]).collect();
    assert_eq!(states, ["active", "terminated"]);
    assert_eq!(one["server_usages"][0].as_object().unwrap().len(), 12);
    let mine = format!("GET {all}/{}?{period}", P.0.simple());
    let (_, _, answer) = talk.ask(&caller("reader", P, 3), "2.40", &format!("{mine}&limit=1"), &NONE).await;
    assert_eq!(answer["tenant_usage"]["server_usages"].as_array().unwrap().len(), 1);
    assert!(answer["tenant_usage_links"][0]["href"].as_str().unwrap().contains("marker="));
    assert_eq!(talk.ask(&member(), "2.1", &mine, &NONE).await.0, 403);
    assert_eq!(talk.ask(&member(), "2.1", &format!("GET {all}"), &NONE).await.0, 403);
    for bad in ["start=x", "start=2100-01-01T00:00:00&end=2000-01-01T00:00:00"] {
        assert_eq!(talk.ask(&a, "2.1", &format!("GET {all}?{bad}"), &NONE).await.0, 400, "{bad}");
    }
    let (_, _, none) =
        talk.ask(&a, "2.1", &format!("GET {all}/{}?{period}", Uuid::from_u128(5)), &NONE).await;
    assert_eq!(none, json!({"tenant_usage": {}}));
}

/// Every route with bodies of every wrong shape: refused, never a fault of ours.
#[tokio::test]
async fn nonsense_is_refused() {
    let talk = Talk::new().await;
    let wrong = [
        json!(null),
        json!([]),
        json!(5),
        json!({}),
        json!({"x": 1}),
        json!({"flavor": 1}),
        json!({"flavor": {"name": 5, "ram": [], "vcpus": {}, "disk": -1}}),
        json!({"flavor": {"name": "x".repeat(5000), "ram": 1e30, "vcpus": 1, "disk": 1}}),
        json!({"keypair": {"name": null}}),
        json!({"keypair": {"name": "a", "type": [], "public_key": {}}}),
        json!({"server_group": {"name": "a", "policies": []}}),
        json!({"server_group": {"name": "a", "policies": ["a", "b"]}}),
        json!({"aggregate": {"name": ""}}),
        json!({"quota_set": {"cores": "x"}}),
        json!({"quota_set": {"cores": 1e99}}),
        json!({"extra_specs": {"a": []}}),
        json!({"addTenantAccess": null}),
        json!({"add_host": []}),
        json!({"status": 5}),
    ];
    for route in super::routes().table().into_iter().chain(super::super::placement::routes().table()) {
        for value in ["1", "x%00y", "%F0%9F%92%A9", &Uuid::from_u128(7).to_string()] {
            let mut path = route.path.to_owned();
            while let (Some(from), Some(to)) = (path.find('{'), path.find('}')) {
                path.replace_range(from..=to, value);
            }
            let line = format!("{} {}{path}", route.method, route.service.root());
            for body in &wrong {
                let version = if route.service == super::Service::Compute { "2.53" } else { "1.39" };
                let (status, _, answer) = talk.ask(&admin(), version, &line, body).await;
                assert!(status < 500, "{line} {body}: {status} {answer}");
                if route.method == axum::http::Method::POST {
                    assert!(status >= 400, "{line} {body}: {status} {answer}");
                }
            }
        }
    }
    let view = talk.cloud.ops.world().read();
    assert_eq!((view.flavors.len(), view.aggregates.len(), view.server_groups.len()), (0, 0, 0));
}
