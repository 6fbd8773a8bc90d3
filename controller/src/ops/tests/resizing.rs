//! Another size for what is there: records, claims and orders together, and every refusal with its figures.

use super::*;
use crate::ops::servers::{Origin, ServerOrder};
use amphi_api::ErrorCode;
use amphi_api::resize::{Condition, InstanceResize, MemoryRange, REFUSED};

fn order(order: serde_json::Value) -> InstanceResize {
    serde_json::from_value(order).unwrap()
}

impl Cloud {
    async fn resize(&self, of: &Instance, wish: serde_json::Value) -> Result<Instance, OpsError> {
        self.ops.resize_instance(P, of.id, &order(wish)).await
    }

    async fn refused(&self, of: &Instance, wish: serde_json::Value) -> String {
        let before = self.ops.world().read().revision();
        let error = self.resize(of, wish).await.unwrap_err();
        assert_eq!(self.ops.world().read().revision(), before, "a refusal changes nothing: {error}");
        match error {
            OpsError::Conflict { field: Some(field), message } => format!("{field}: {message}"),
            error => error.to_string(),
        }
    }
}

fn set() -> serde_json::Value {
    json!([{"set": {"members": [
        {"index": 0, "name": "a", "image": "busybox"}, {"index": 1, "name": "b", "image": "busybox"}]}}])
}

#[tokio::test]
async fn size_claims_and_orders_change_together() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let change =
        json!({"host": "h1", "vcpus": 1, "memory_mib": 256, "bodies": set(), "volume": {"size_gib": 1}});
    let made = cloud.create(change).await.unwrap();
    cloud.obey(h1).await;
    let claims = || cloud.ops.host(h1).unwrap().claims;
    let before = claims();
    let generation = cloud.ops.desired(h1).generation;

    let wish =
        json!({"vcpus": 2, "memory_mib": 512, "volume_gib": 3, "members": {"a": {"pids": 64, "cpu": 20}}});
    let ordered = cloud.resize(&made, wish).await.unwrap();
    assert!(ordered.resizing && ordered.epoch == made.epoch, "{ordered:?}");
    let now = claims();
    assert_eq!(
        (now.vcpus - before.vcpus, now.memory_mib - before.memory_mib, now.volume_gib - before.volume_gib),
        (1, 256, 2)
    );
    assert_eq!(now.instances, before.instances);
    let desired = cloud.ops.desired(h1);
    let told = &desired.instances[0];
    assert!(desired.generation > generation);
    assert_eq!((told.vcpus, told.memory_mib, told.resizes, told.restarts), (2, 512, 1, 0));
    let amphi_api::wire::BodyDesired::Set { set, .. } = &told.body else { panic!("a set") };
    let options: Vec<_> =
        set.members.iter().map(|m| (m.options.cpu, m.options.mem, m.options.pids)).collect();
    assert_eq!(options, [(Some(20), Some(50), Some(64)), (Some(50), Some(50), None)]);
    assert_eq!(desired.volumes[0].size_bytes, 3 * GIB);
    cloud.obey(h1).await;
    let seen = cloud.show(&made);
    assert!(!seen.resizing && seen.conditions.is_empty(), "{seen:?}");

    // The same again is no order.
    let generation = cloud.ops.desired(h1).generation;
    assert!(!cloud.resize(&made, json!({"vcpus": 2, "volume_gib": 3})).await.unwrap().resizing);
    assert_eq!(cloud.ops.desired(h1).generation, generation);

    // What the host could not do is told, and the instance runs.
    cloud.resize(&made, json!({"memory_mib": 384})).await.unwrap();
    assert_eq!(claims().memory_mib, before.memory_mib + 128);
    let mut status = cloud.obedient(h1);
    status.instances[0].size.resizes = 1;
    status.instances[0].size.conditions = vec![Condition::new(REFUSED, "member a uses 300 MiB")];
    cloud.ops.status(h1, status).await.unwrap();
    let seen = cloud.show(&made);
    assert!(seen.resizing && seen.conditions[0].message.contains("300 MiB"), "{seen:?}");
    assert_eq!(seen.state, amphi_api::instance::InstanceState::Running);
}

#[tokio::test]
async fn what_cannot_be_is_refused_with_the_figures() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let change =
        json!({"host": "h1", "vcpus": 1, "memory_mib": 256, "bodies": set(), "volume": {"size_gib": 2}});
    let made = cloud.create(change).await.unwrap();
    cloud.obey(h1).await;
    let told = cloud.refused(&made, json!({"memory_mib": 4096})).await;
    assert!(told.contains("0 of 3584 MiB are taken, 4096 are asked"), "{told}");
    let told = cloud.refused(&made, json!({"vcpus": 8})).await;
    assert!(told.contains("has 4 CPUs, 8 are asked"), "{told}");
    let told = cloud.refused(&made, json!({"volume_gib": 1})).await;
    assert!(told.contains("has 2 GiB, and XFS"), "{told}");
    let told = cloud.refused(&made, json!({"volume_gib": 40})).await;
    assert!(told.contains("38 are asked"), "{told}");
    let told = cloud.refused(&made, json!({"members": {"c": {}}})).await;
    assert!(told.contains("there are a, b"), "{told}");
    let told = cloud.refused(&made, json!({"members": {"a": {"cpu": 60}, "b": {"cpu": 60}}})).await;
    assert!(told.contains("120 %"), "{told}");
    let told = cloud.refused(&made, json!({"members": {"a": {"heap_mib": 512}}})).await;
    assert!(told.contains("the set has 256 MiB"), "{told}");
    let told = cloud.refused(&made, json!({"networks": [{"network": "nowhere", "bandwidth": {}}]})).await;
    assert!(told.contains("nowhere"), "{told}");

    // Less than is used: its host is asked.
    let usage = |name: &str, mib: u64, pids| MemberUsage {
        name: name.into(),
        memory_bytes: mib << 20,
        pids,
        root_bytes: None,
    };
    *cloud.links.used.lock().unwrap() = vec![usage("a", 20, 5), usage("b", 100, 50)];
    let told = cloud.refused(&made, json!({"memory_mib": 128})).await;
    assert!(told.starts_with("memory_mib: member b uses 100 MiB of memory, more than 64 MiB"), "{told}");
    let told = cloud.refused(&made, json!({"members": {"b": {"pids": 40}}})).await;
    assert!(
        told.starts_with("members.b.pids: member b has 50 processes and threads, more than 40"),
        "{told}"
    );
    let told = cloud.refused(&made, json!({"members": {"b": {"mem": 25}}})).await;
    assert!(told.starts_with("members.b.mem: member b uses 100 MiB"), "{told}");
    cloud.resize(&made, json!({"memory_mib": 200})).await.unwrap();
    // A first limit of the root file system takes something away too.
    let root = MemberUsage { root_bytes: Some(9 << 20), ..usage("b", 20, 5) };
    *cloud.links.used.lock().unwrap() = vec![root];
    let told = cloud.refused(&made, json!({"members": {"b": {"root_mib": 8}}})).await;
    assert!(told.starts_with("members.b.root_mib: member b has 9 MiB in its root file system"), "{told}");
    cloud.down(h1).await;
    let error = cloud.resize(&made, json!({"memory_mib": 192})).await.unwrap_err();
    assert_eq!(error.code(), ErrorCode::Unavailable, "{error}");
    let told = cloud.refused(&made, json!({"memory_mib": 300})).await;
    assert!(told.contains("is down"), "{told}");
}

#[tokio::test]
async fn another_order_comes_to_its_end_first() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    cloud.ops.order_server(&Origin::native(P), made.id, ServerOrder::Stop).await.unwrap();
    let told = cloud.refused(&made, json!({"memory_mib": 256})).await;
    assert!(told.contains("it is powering-off"), "{told}");
    cloud.obey(h1).await;
    cloud.resize(&made, json!({"memory_mib": 256})).await.unwrap();
}

#[tokio::test]
async fn bandwidth_belongs_to_the_port() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = cloud.create(json!({"host": "h1"})).await.unwrap();
    cloud.obey(h1).await;
    let name = &made.addresses[0].network_name;
    let limit = json!({"network": name, "bandwidth": {"ingress_kbps": 10_000, "egress_kbps": 5_000}});
    let ordered = cloud.resize(&made, json!({"networks": [limit.clone()]})).await.unwrap();
    assert_eq!(ordered.addresses[0].bandwidth.egress_kbps, Some(5_000));
    assert!(!ordered.resizing, "no host has a part in it");
    let told = cloud.refused(&made, json!({"networks": [limit.clone(), limit]})).await;
    assert!(told.contains("named twice"), "{told}");
}

/// A VM that runs, of 128 MiB with room for as much again, as its host tells.
async fn machine(cloud: &Cloud, h1: HostId) -> Instance {
    let vm = json!([{"vm": {"image": "vm"}}]);
    let made = cloud.create(json!({"host": "h1", "memory_mib": 128, "bodies": vm})).await.unwrap();
    has(cloud, h1, 128).await;
    made
}

async fn has(cloud: &Cloud, host: HostId, has_mib: u64) {
    let mut status = cloud.obedient(host);
    status.instances[0].size.memory = Some(MemoryRange { has_mib, least_mib: 128, most_mib: 256 });
    cloud.ops.status(host, status).await.unwrap();
}

#[tokio::test]
async fn what_a_guest_has_not_given_back_stays_claimed() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = machine(&cloud, h1).await;
    let claimed = || cloud.ops.host(h1).unwrap().claims.memory_mib;
    assert_eq!(claimed(), 128);
    cloud.resize(&made, json!({"memory_mib": 256})).await.unwrap();
    assert_eq!(claimed(), 256, "at once: its guest may take it at any moment");
    has(&cloud, h1, 256).await;

    let stale = cloud.obedient(h1);
    cloud.resize(&made, json!({"memory_mib": 160})).await.unwrap();
    assert_eq!(claimed(), 256, "its guest still has them");
    // A word of before the order counts for nothing.
    cloud.ops.status(h1, stale).await.unwrap();
    assert_eq!(claimed(), 256);
    for (has_mib, expected) in [(256, 256), (200, 200), (250, 200), (160, 160), (200, 160)] {
        has(&cloud, h1, has_mib).await;
        assert_eq!(claimed(), expected, "the guest has {has_mib}");
    }
    let shown = cloud.show(&made);
    assert_eq!((shown.memory_mib, shown.resizing), (160, false));

    // One that keeps it to its end, and then starts with what is ordered.
    cloud.resize(&made, json!({"memory_mib": 130})).await.unwrap();
    has(&cloud, h1, 160).await;
    assert_eq!(claimed(), 160);
    cloud.ops.order_server(&Origin::native(P), made.id, ServerOrder::Stop).await.unwrap();
    cloud.obey(h1).await;
    assert_eq!(claimed(), 130);
}

#[tokio::test]
async fn less_than_a_vm_was_started_with_is_refused() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let made = machine(&cloud, h1).await;
    let told = cloud.refused(&made, json!({"memory_mib": 120})).await;
    assert!(
        told.starts_with("memory_mib: it was started with 128 MiB, and keeps them while it runs"),
        "{told}"
    );
    cloud.resize(&made, json!({"memory_mib": 192})).await.unwrap();
    // An agent that says nothing of it cannot take it back either.
    cloud.obey(h1).await;
    let told = cloud.refused(&made, json!({"memory_mib": 128})).await;
    assert!(told.starts_with("memory_mib: a VM that runs keeps its 192 MiB here"), "{told}");
}
