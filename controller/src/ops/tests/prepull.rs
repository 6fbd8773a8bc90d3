//! Images on hosts beforehand: orders that end, policies that do not, hosts that join, and placement that goes where an image
//! is.

use super::*;
use amphi_api::ErrorCode;
use amphi_api::prepull::{HostImages, ImageFetch, ImageOnHosts, PrepullCreate, PrepullPolicy, PrepullState};

/// The digest of every image of the furnished cloud.
fn digest() -> String {
    "ab".repeat(32)
}

fn to(value: serde_json::Value) -> PrepullCreate {
    serde_json::from_value(value).unwrap()
}

fn states(told: &ImageOnHosts) -> Vec<(String, PrepullState)> {
    told.hosts.iter().map(|host| (host.name.clone(), host.state)).collect()
}

fn fetched(image: ImageId, percent: u8, held: bool) -> HostImages {
    let blobs = if held { [digest()].into() } else { Default::default() };
    let fetches = vec![ImageFetch { image, percent, held, fault: None }];
    HostImages { blobs, fetches, ..HostImages::default() }
}

#[tokio::test]
async fn an_order_ends_when_its_host_has_the_image() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let image = cloud.image("cirros", ImageFormat::Raw).await;
    let generation = cloud.ops.desired(h1).generation;
    let told = cloud.ops.prepull_image(image, &to(json!({"hosts": [h1]}))).await.unwrap();
    assert_eq!(states(&told), [("h1".into(), PrepullState::Waiting), ("h2".into(), PrepullState::Absent)]);
    let desired = cloud.ops.desired(h1);
    assert!(desired.generation > generation, "the host is woken");
    assert_eq!(desired.images.iter().map(|i| (i.image.id, i.kept)).collect::<Vec<_>>(), [(image, false)]);
    assert!(cloud.ops.desired(h2).images.is_empty());
    assert!(cloud.ops.blob_allowed(h1, &digest()) && !cloud.ops.blob_allowed(h2, &digest()));

    cloud.ops.take_images(h1, &fetched(image, 40, false)).await.unwrap();
    let told = cloud.ops.image_on_hosts(image).unwrap();
    assert_eq!((told.hosts[0].state, told.hosts[0].percent), (PrepullState::Fetching, Some(40)));
    cloud.ops.take_images(h1, &fetched(image, 100, true)).await.unwrap();
    let told = cloud.ops.image_on_hosts(image).unwrap();
    assert_eq!((told.hosts[0].state, told.hosts[0].ordered), (PrepullState::Held, false));
    assert!(cloud.ops.desired(h1).images.is_empty(), "it is free to evict it");
    assert_eq!(cloud.ops.world().read().prepulls.len(), 0);
    // Evicted: nobody asks for it again.
    cloud.ops.take_images(h1, &HostImages::default()).await.unwrap();
    assert_eq!(cloud.ops.image_on_hosts(image).unwrap().hosts[0].state, PrepullState::Absent);

    cloud.ops.prepull_image(image, &to(json!({"all": true}))).await.unwrap();
    assert!([h1, h2].iter().all(|host| cloud.ops.desired(*host).images.len() == 1));
    cloud.ops.cancel_prepull(image).await.unwrap();
    assert!([h1, h2].iter().all(|host| cloud.ops.desired(*host).images.is_empty()));
}

#[tokio::test]
async fn a_policy_holds_for_hosts_that_join_and_ends_with_its_image() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let image = cloud.image("cirros", ImageFormat::Raw).await;
    let all = PrepullPolicy { all: true, zones: Default::default() };
    cloud.ops.set_prepull_policy(image, &all).await.unwrap();
    assert!(cloud.ops.desired(h1).images[0].kept);
    cloud.ops.take_images(h1, &fetched(image, 100, true)).await.unwrap();
    assert!(cloud.ops.desired(h1).images[0].kept, "it stays there");
    let h3 = cloud.host("h3").await;
    assert_eq!(cloud.ops.desired(h3).images.len(), 1);
    // A restart forgets nothing.
    let other = cloud.another().await;
    let told = other.ops.image_on_hosts(image).unwrap();
    assert_eq!(told.policy, Some(all));
    assert_eq!(
        told.hosts.iter().map(|h| h.state).collect::<Vec<_>>(),
        [PrepullState::Held, PrepullState::Waiting, PrepullState::Waiting]
    );
    let generation = cloud.ops.desired(h3).generation;
    cloud.ops.delete_image(P, image).await.unwrap();
    let desired = cloud.ops.desired(h3);
    assert!(desired.images.is_empty() && desired.generation > generation);
    assert_eq!(cloud.ops.world().read().prepulls.len(), 0);
}

#[tokio::test]
async fn a_policy_may_mean_zones() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let image = cloud.image("cirros", ImageFormat::Raw).await;
    let east = PrepullPolicy { all: false, zones: ["east".to_owned()].into() };
    cloud.ops.set_prepull_policy(image, &east).await.unwrap();
    assert!([h1, h2].iter().all(|host| cloud.ops.desired(*host).images.is_empty()));
    let aggregate = cloud.ops.create_aggregate("east", Some("east")).await.unwrap();
    let generation = cloud.ops.desired(h2).generation;
    cloud.ops.add_aggregate_host(aggregate.id, "h2").await.unwrap();
    assert!(cloud.ops.desired(h1).images.is_empty());
    let desired = cloud.ops.desired(h2);
    assert!(desired.images.len() == 1 && desired.generation > generation, "the host is told of its zone's");
    let nowhere = cloud.ops.prepull_image(image, &to(json!({"zones": ["west"]}))).await.unwrap_err();
    assert_eq!(nowhere.code(), ErrorCode::InvalidField);
    let ordered = cloud.ops.prepull_image(image, &to(json!({"zones": ["east"]}))).await.unwrap();
    assert_eq!(ordered.hosts.iter().map(|h| h.ordered).collect::<Vec<_>>(), [false, true]);
}

/// Of two hosts that are alike otherwise, the one that has the image takes it, whoever came first.
#[tokio::test]
async fn placement_goes_where_the_image_is() {
    let (cloud, _, h2) = Cloud::furnished().await;
    let image = cloud.image("cirros", ImageFormat::Raw).await;
    let vm = json!({"bodies": [{"vm": {"image": "cirros"}}]});
    cloud.ops.take_images(h2, &fetched(image, 100, true)).await.unwrap();
    let host = |made: &Instance| cloud.show(made).host.unwrap();
    assert_eq!(host(&cloud.create(vm.clone()).await.unwrap()), h2);
    // Seen by who reads the records anew, too; and gone when it is evicted.
    let other = cloud.another().await;
    let sights = |cloud: &Cloud| {
        let view = cloud.ops.world().read();
        view.fleet.sights().filter(|s| s.images.is_some_and(|held| held.contains_key(&image))).count()
    };
    assert_eq!((sights(&cloud), sights(&other)), (1, 1));
    let again = cloud.image("same bytes", ImageFormat::Raw).await;
    let view = cloud.ops.world().read();
    let held: Vec<_> = view
        .fleet
        .sights()
        .filter(|s| s.images.is_some_and(|i| i.contains_key(&again)))
        .map(|s| s.id)
        .collect();
    assert_eq!(held, [h2], "another image of the same bytes is there as well");
    assert_eq!(super::super::prepull::held(&view, h2).len(), 4, "all images of these bytes");
}

#[tokio::test]
async fn an_agent_that_is_too_old_is_not_ordered_to() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let image = cloud.image("cirros", ImageFormat::Raw).await;
    cloud.ops.hello(h1, &HostSpec { wire: 1, ..spec("h1") }).await.unwrap();
    let refused = cloud.ops.prepull_image(image, &to(json!({"hosts": [h1]}))).await.unwrap_err();
    assert!(refused.to_string().contains("upgrade"), "{refused}");
    let told = cloud.ops.prepull_image(image, &to(json!({"all": true}))).await.unwrap();
    assert_eq!(told.hosts[0].state, PrepullState::Failed);
    assert_eq!(told.hosts[1].state, PrepullState::Waiting);
    let queued = empty(&cloud).await;
    let refused = cloud.ops.prepull_image(queued, &to(json!({"all": true}))).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::Conflict, "{refused}");
}

/// An image without bytes.
async fn empty(cloud: &Cloud) -> ImageId {
    let request = serde_json::from_value(json!({"name": "empty", "format": "raw"})).unwrap();
    cloud.ops.create_image(P, &request).await.unwrap().id
}
