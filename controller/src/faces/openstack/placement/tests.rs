//! Requests and answers as written down.

use super::super::talk::{Talk, caller};
use crate::ops::tests::P;
use serde_json::{Value, json};

const NONE: Value = Value::Null;

#[tokio::test]
async fn hosts_are_providers() {
    let mut talk = Talk::new().await;
    let a = caller("admin", P, 1);
    talk.cloud.create(json!({"name": "i1", "host": "h1"})).await.unwrap();
    talk.say(&a, "1.0", "GET /placement", NONE).await;
    let list = talk.say(&a, "1.14", "GET /placement/resource_providers?name=h1", NONE).await;
    let id = list["resource_providers"][0]["uuid"].as_str().unwrap().to_owned();
    let path = format!("GET /placement/resource_providers/{id}");
    for part in ["", "/inventories", "/inventories/VCPU", "/usages", "/aggregates", "/traits", "/allocations"]
    {
        talk.say(&a, "1.20", &format!("{path}{part}"), NONE).await;
    }
    talk.say(&a, "1.5", &format!("{path}/traits"), NONE).await;
    talk.say(&a, "1.5", "GET /placement/resource_providers/h1", NONE).await;
    talk.say(&a, "1.29", "GET /placement/allocation_candidates?resources=VCPU:1,MEMORY_MB:3500", NONE).await;
    talk.say(&a, "1.29", "GET /placement/allocation_candidates?resources=VCPU:99", NONE).await;
    talk.say(&a, "1.29", "GET /placement/allocation_candidates?resources=GOLD:1", NONE).await;
    talk.say(&a, "1.10", "GET /placement/resource_classes", NONE).await;
    talk.say(&a, "1.10", "GET /placement/traits?name=startswith:CUSTOM_", NONE).await;
    talk.say(&a, "1.9", &format!("GET /placement/usages?project_id={}", P.0.simple()), NONE).await;
    let consumer = talk.cloud.ops.world().read().instances.iter().next().unwrap().id;
    talk.say(&a, "1.38", &format!("GET /placement/allocations/{consumer}"), NONE).await;
    talk.say(&caller("member", P, 2), "1.0", "GET /placement/resource_providers", NONE).await;
    insta::assert_snapshot!(talk.text);
}
