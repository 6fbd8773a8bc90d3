//! Uploads that meet: of one image, or of one content.

use super::*;
use crate::ops::BlobStream;
use amphi_api::image::ImageCreate;
use bytes::Bytes;
use futures_util::StreamExt;
use std::time::{Duration, Instant};
use tokio::sync::Barrier;

/// Bytes whose second half comes when as many uploads as the barrier wants have sent their first.
fn halves(text: &'static str, meet: &Arc<Barrier>) -> BlobStream {
    let (first, second) = text.split_at(text.len() / 2);
    let meet = meet.clone();
    let second = futures_util::stream::once(async move {
        meet.wait().await;
        Ok(Bytes::from(second))
    });
    futures_util::stream::iter([Ok(Bytes::from(first))]).chain(second).boxed()
}

async fn image(cloud: &Cloud) -> ImageId {
    let request: ImageCreate = serde_json::from_value(json!({"name": "disk", "format": "raw"})).unwrap();
    cloud.ops.create_image(P, &request).await.unwrap().id
}

/// The blobs on the disk.
fn blobs(cloud: &Cloud) -> Vec<String> {
    let names = |dir: std::path::PathBuf| {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    let blobs = cloud.dir.path().join("images/blobs");
    names(blobs.clone()).into_iter().flat_map(|dir| names(blobs.join(dir))).collect()
}

/// Waits until just these blobs are there.
async fn await_blobs(cloud: &Cloud, want: &[&str]) {
    let end = Instant::now() + Duration::from_secs(10);
    while blobs(cloud) != want {
        assert!(Instant::now() < end, "expected {want:?}, saw {:?}", blobs(cloud));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn put(cloud: &Cloud, image: ImageId, bytes: BlobStream) -> Result<String, OpsError> {
    let seen = cloud.ops.put_blob(P, image, BlobRole::Disk, bytes, None).await?;
    Ok(seen.blobs[&BlobRole::Disk].sha256.clone())
}

#[tokio::test]
async fn the_same_bytes_twice_at_once() {
    let cloud = Cloud::new().await;
    let (one, two, meet) = (image(&cloud).await, image(&cloud).await, Arc::new(Barrier::new(3)));
    let (a, b, c) = tokio::join!(
        put(&cloud, one, halves("hello", &meet)),
        put(&cloud, one, halves("hello", &meet)),
        put(&cloud, two, halves("hello", &meet)),
    );
    let digest = a.unwrap();
    assert_eq!((b.unwrap(), c.unwrap()), (digest.clone(), digest.clone()));
    assert_eq!(blobs(&cloud), std::slice::from_ref(&digest));
    // They are the other image's still.
    cloud.ops.delete_image(P, one).await.unwrap();
    await_blobs(&cloud, &[&digest]).await;
    cloud.ops.delete_image(P, two).await.unwrap();
    await_blobs(&cloud, &[]).await;
}

#[tokio::test]
async fn of_two_contents_one_becomes_the_images() {
    let cloud = Cloud::new().await;
    let (image, meet) = (image(&cloud).await, Arc::new(Barrier::new(2)));
    let (a, b) =
        tokio::join!(put(&cloud, image, halves("hello", &meet)), put(&cloud, image, halves("other", &meet)),);
    let (kept, refused) = match (a, b) {
        (Ok(kept), Err(refused)) | (Err(refused), Ok(kept)) => (kept, refused),
        both => panic!("one of them, not {both:?}"),
    };
    assert_eq!(refused.code(), amphi_api::ErrorCode::Conflict);
    assert!(refused.to_string().contains(&kept), "{refused}");
    await_blobs(&cloud, &[&kept]).await;
    assert_eq!(cloud.ops.image(P, image).unwrap().blobs[&BlobRole::Disk].sha256, kept);
}
