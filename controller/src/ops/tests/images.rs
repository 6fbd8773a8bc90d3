//! Images' bytes: uploads that meet, archives in their parts, what goes when nobody names it any more, and pushes.

use super::*;
use crate::images::make_tar as make;
use crate::images::oci::media;
use crate::model::{Digest, ManifestKind};
use crate::ops::BlobStream;
use crate::ops::ByteRange;
use crate::ops::blobs::PushRefused;
use amphi_api::image::{Compression, ImageCreate};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::Digest as _;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt;
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

pub fn whole(bytes: &[u8]) -> BlobStream {
    futures_util::stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()
}

fn sha(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}

async fn image(cloud: &Cloud, format: &str) -> ImageId {
    let request: ImageCreate = serde_json::from_value(json!({"name": "i", "format": format})).unwrap();
    cloud.ops.create_image(P, &request).await.unwrap().id
}

/// The blobs' files on the disk, by digest.
async fn files(cloud: &Cloud) -> Vec<String> {
    cloud.ops.blobs.list().await.unwrap().into_iter().map(|found| found.digest.to_string()).collect()
}

/// Sweeps until just these blobs' files are there.
async fn await_files(cloud: &Cloud, want: &[&str]) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        cloud.ops.sweep_blobs().await.unwrap();
        let seen = files(cloud).await;
        if seen == want {
            return;
        }
        assert!(Instant::now() < end, "expected {want:?}, saw {seen:?}");
    }
}

async fn put(cloud: &Cloud, image: ImageId, bytes: BlobStream) -> Result<String, OpsError> {
    let seen = cloud.ops.put_blob(P, image, BlobRole::Disk, bytes, None).await?;
    Ok(seen.blobs[&BlobRole::Disk].sha256.clone())
}

async fn read(cloud: &Cloud, sha256: &str) -> Vec<u8> {
    let (mut read, size) = cloud.ops.read_blob(sha256, 0).await.unwrap();
    let mut bytes = Vec::new();
    read.read_to_end(&mut bytes).await.unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

#[tokio::test]
async fn the_same_bytes_twice_at_once() {
    let cloud = Cloud::new().await;
    let (one, two, meet) =
        (image(&cloud, "raw").await, image(&cloud, "raw").await, Arc::new(Barrier::new(3)));
    let (a, b, c) = tokio::join!(
        put(&cloud, one, halves("hello", &meet)),
        put(&cloud, one, halves("hello", &meet)),
        put(&cloud, two, halves("hello", &meet)),
    );
    let digest = a.unwrap();
    assert_eq!((b.unwrap(), c.unwrap()), (digest.clone(), digest.clone()));
    assert_eq!(files(&cloud).await, std::slice::from_ref(&digest));
    // They are the other image's still.
    cloud.ops.delete_image(P, one).await.unwrap();
    for _ in 0..3 {
        await_files(&cloud, &[&digest]).await;
    }
    cloud.ops.delete_image(P, two).await.unwrap();
    await_files(&cloud, &[]).await;
}

#[tokio::test]
async fn of_two_contents_one_becomes_the_images() {
    let cloud = Cloud::new().await;
    let (image, meet) = (image(&cloud, "raw").await, Arc::new(Barrier::new(2)));
    let (a, b) =
        tokio::join!(put(&cloud, image, halves("hello", &meet)), put(&cloud, image, halves("other", &meet)),);
    let (kept, refused) = match (a, b) {
        (Ok(kept), Err(refused)) | (Err(refused), Ok(kept)) => (kept, refused),
        both => panic!("one of them, not {both:?}"),
    };
    assert_eq!(refused.code(), amphi_api::ErrorCode::Conflict);
    assert!(refused.to_string().contains(&kept), "{refused}");
    await_files(&cloud, &[&kept]).await;
    assert_eq!(cloud.ops.image(P, image).unwrap().blobs[&BlobRole::Disk].sha256, kept);
}

#[tokio::test]
async fn bytes_from_before_blobs_had_records_stay_until_nobody_names_them() {
    let cloud = Cloud::new().await;
    let image = image(&cloud, "raw").await;
    let digest = put(&cloud, image, whole(b"old")).await.unwrap();
    // As an older version left it: the plain name, and no record.
    let dir = cloud.dir.path().join("images/blobs").join(&digest[..2]);
    let file = std::fs::read_dir(&dir).unwrap().next().unwrap().unwrap().path();
    std::fs::rename(file, dir.join(&digest)).unwrap();
    let key = format!("/blob/{digest}");
    let gone = Txn { compares: vec![], ops: vec![Op::Delete { key }] };
    let revision = cloud.store.commit(gone).await.unwrap();
    assert!(cloud.ops.world().reached(revision).await);
    assert_eq!(read(&cloud, &digest).await, b"old");
    await_files(&cloud, &[&digest]).await;
    await_files(&cloud, &[&digest]).await;
    assert_eq!(read(&cloud, &digest).await, b"old");
    cloud.ops.delete_image(P, image).await.unwrap();
    await_files(&cloud, &[]).await;
}

pub fn layer(name: &str) -> Vec<u8> {
    [make::file(name, &[7; 1000]), make::end()].concat()
}

fn config_of(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", sha(layer))).collect();
    json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}})
        .to_string()
        .into_bytes()
}

/// As `docker save` writes it.
pub fn archive(layers: &[&[u8]]) -> Vec<u8> {
    let config = config_of(layers);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let list = json!([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": names}]).to_string();
    let mut all: Vec<u8> =
        layers.iter().zip(&names).flat_map(|(layer, name)| make::file(name, layer)).collect();
    all.extend(make::file("c.json", &config));
    all.extend(make::file("manifest.json", list.as_bytes()));
    all.extend(make::end());
    all
}

#[tokio::test]
async fn an_archive_lies_in_its_parts_and_shares_layers() {
    let cloud = Cloud::new().await;
    let (one, two, three) = (layer("a"), layer("b"), layer("c"));
    let put = async |layers: &[&[u8]]| {
        let id = image(&cloud, "docker-archive").await;
        let bytes = archive(layers);
        let seen = cloud.ops.put_blob(P, id, BlobRole::Archive, whole(&bytes), None).await.unwrap();
        let sha256 = &seen.blobs[&BlobRole::Archive].sha256;
        assert_eq!((sha256, read(&cloud, sha256).await), (&sha(&bytes).to_string(), bytes));
        assert_eq!(seen.blobs[&BlobRole::Config].sha256, sha(&config_of(layers)).to_string());
        assert!(seen.blobs.contains_key(&BlobRole::Manifest));
        (id, seen.layers.iter().map(|layer| layer.sha256.clone()).collect::<Vec<_>>())
    };
    let (first, layers) = put(&[&one, &two]).await;
    assert_eq!(layers, [sha(&one).to_string(), sha(&two).to_string()]);
    let before = files(&cloud).await.len();
    assert_eq!(before, 5, "two layers, the configuration, the manifest, the recipe");
    let (second, _) = put(&[&one, &three]).await;
    assert_eq!(files(&cloud).await.len(), 9, "the layer that both have lies once");
    let bytes: u64 = files(&cloud)
        .await
        .iter()
        .map(|d| cloud.ops.world().read().blobs.get(d.parse().unwrap()).unwrap().size)
        .sum();
    assert_eq!(crate::ops::image_bytes::used(&cloud.ops.world().read(), P), bytes, "each once");
    cloud.ops.delete_image(P, first).await.unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while files(&cloud).await.len() != 5 {
        assert!(Instant::now() < end, "saw {:?}", files(&cloud).await);
        cloud.ops.sweep_blobs().await.unwrap();
    }
    let whole = cloud.ops.image(P, second).unwrap().blobs[&BlobRole::Archive].sha256.clone();
    assert_eq!(read(&cloud, &whole).await, archive(&[&one, &three]));
    cloud.ops.delete_image(P, second).await.unwrap();
    await_files(&cloud, &[]).await;
    assert_eq!(cloud.ops.world().read().blobs.len(), 0);
}

#[tokio::test]
async fn what_is_no_image_is_refused_at_upload_and_leaves_nothing() {
    let cloud = Cloud::new().await;
    for (format, role, bytes, want) in [
        (
            "docker-archive",
            BlobRole::Archive,
            b"this is no archive".to_vec(),
            "archive: the archive cannot be taken",
        ),
        ("qcow2", BlobRole::Disk, b"hello".to_vec(), "disk: it is no qcow2 file"),
        ("oci", BlobRole::Manifest, b"{}".to_vec(), "manifest.manifest"),
    ] {
        let id = image(&cloud, format).await;
        let told = cloud.ops.put_blob(P, id, role, whole(&bytes), None).await.unwrap_err();
        assert_eq!(told.code(), amphi_api::ErrorCode::InvalidField);
        assert!(told.to_string().contains(want), "{told} / {want}");
        assert_eq!(cloud.ops.image(P, id).unwrap().blobs.len(), 0);
        assert!(files(&cloud).await.is_empty(), "{format}");
    }
}

#[tokio::test]
async fn staged_archives_are_taken_apart_too() {
    let cloud = Cloud::new().await;
    let id = image(&cloud, "docker-archive").await;
    let one = layer("a");
    let bytes = archive(&[&one]);
    cloud.ops.stage_image(P, id, whole(&bytes)).await.unwrap();
    for _ in 0..3 {
        cloud.ops.sweep_blobs().await.unwrap();
    }
    cloud.ops.import_staged(P, id).await.unwrap();
    let seen = cloud.ops.image(P, id).unwrap();
    assert_eq!((seen.layers.len(), seen.layers[0].compression), (1, Compression::None));
    assert_eq!(read(&cloud, &seen.blobs[&BlobRole::Archive].sha256).await, bytes);
}

#[tokio::test]
async fn a_checksum_that_was_not_taken_on_the_way_comes_afterwards() {
    let cloud = Cloud::new().await;
    let send = async |bytes: &[u8]| {
        let (id, total) = (image(&cloud, "raw").await, bytes.len() as u64);
        let (one, two) = bytes.split_at(bytes.len() / 2);
        for (from, part) in [(0, one), (one.len() as u64, two)] {
            let range = ByteRange { from, total };
            cloud.ops.append_blob(P, id, BlobRole::Disk, range, whole(part), None).await.unwrap();
        }
        id
    };
    let bytes = vec![b'a'; 700_000];
    let (sent, lost, at_once) = (send(&bytes).await, send(b"lost").await, image(&cloud, "raw").await);
    put(&cloud, at_once, whole(b"hello")).await.unwrap();
    let md5 = |id| cloud.ops.world().read().images.get(id).unwrap().traits.md5.clone();
    assert_eq!((md5(sent), md5(lost)), (None, None));
    assert_eq!(md5(at_once).as_deref(), Some("5d41402abc4b2a76b9719d911017c592"));

    // One that cannot be read keeps none of the others from theirs.
    let place = cloud.ops.world().read().blobs.get(sha(b"lost")).unwrap().place.clone();
    cloud.ops.blobs.remove(sha(b"lost"), &place).await.unwrap();
    assert!(cloud.ops.fill_checksums().await.is_err());
    assert_eq!((md5(sent), md5(lost)), (Some(hex::encode(md5::Md5::digest(&bytes))), None));
}

/// Pushes a blob as a registry's client does: asks, then sends in two parts.
async fn push(cloud: &Cloud, project: ProjectId, bytes: &[u8]) -> Result<String, PushRefused> {
    let sha256 = sha(bytes).to_string();
    if cloud.ops.wanted_blob(project, &sha256).await?.is_some() {
        return Ok(sha256);
    }
    let id = cloud.ops.begin_upload(project).await?;
    let (one, two) = bytes.split_at(bytes.len() / 2);
    assert_eq!(cloud.ops.append_upload(project, id, Some(0), whole(one)).await?, one.len() as u64);
    assert_eq!(cloud.ops.upload(project, id).await?, one.len() as u64);
    cloud.ops.finish_upload(project, id, whole(two), &sha256).await?;
    Ok(sha256)
}

fn manifest(config: &[u8], layers: &[&[u8]]) -> Bytes {
    let blob = |t: &str, bytes: &[u8]| json!({"mediaType": t, "digest": format!("sha256:{}", sha(bytes)), "size": bytes.len()});
    let layers: Vec<_> =
        layers.iter().map(|layer| blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = json!({"schemaVersion": 2, "mediaType": media::OCI_MANIFEST,
        "config": blob(media::OCI_CONFIG, config), "layers": layers});
    manifest.to_string().into()
}

#[tokio::test]
async fn a_push_from_its_blobs_to_an_image() {
    let cloud = Cloud::new().await;
    let (one, two) = (layer("a"), layer("b"));
    let config = config_of(&[&one, &two]);
    let manifest = manifest(&config, &[&one, &two]);
    let ops = &cloud.ops;
    let put = async || ops.put_container(P, "app", media::OCI_MANIFEST, manifest.clone()).await;
    match put().await {
        Err(PushRefused::BlobsMissing(missing)) => assert_eq!(missing.len(), 3),
        other => panic!("{other:?}"),
    }
    for blob in [&config, &one, &two] {
        push(&cloud, P, blob).await.unwrap();
    }
    let made = put().await.unwrap();
    assert_eq!((made.kind, made.digest), (ManifestKind::Image, sha(&manifest)));
    assert_eq!(put().await.unwrap(), made, "the same manifest is the same image");
    let image = cloud.ops.image(P, made.image.unwrap()).unwrap();
    assert_eq!((image.format, image.state), (ImageFormat::Oci, amphi_api::image::ImageState::Active));
    assert_eq!((image.name.as_str(), image.layers.len()), ("app", 2));
    assert_eq!(image.layers[1].diff_id, sha(&two).to_string());

    // Another project sees none of it, unless it is lent.
    let other = ProjectId::new();
    let digest = sha(&one).to_string();
    assert_eq!(ops.visible_blob(other, &digest).await.unwrap(), None);
    assert!(!ops.mount_blob(P, &sha(b"x").to_string(), other).await.unwrap());
    assert!(ops.mount_blob(other, &digest, P).await.unwrap());
    assert!(ops.visible_blob(other, &digest).await.unwrap().is_some());

    // An index of it.
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": [{"mediaType": media::OCI_MANIFEST,
        "digest": format!("sha256:{}", made.digest), "size": manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}}]});
    let index = Bytes::from(index.to_string());
    let listed = ops.put_container(P, "app", media::OCI_INDEX, index.clone()).await.unwrap();
    assert_eq!((listed.kind, listed.image), (ManifestKind::Index, made.image));
    assert!(matches!(
        ops.put_container(other, "app", media::OCI_INDEX, index).await,
        Err(PushRefused::BlobsMissing(_))
    ));

    ops.delete_container(P, made.digest).await.unwrap();
    assert_eq!(ops.image(P, made.image.unwrap()).unwrap_err().code(), amphi_api::ErrorCode::NotFound);
    let view = ops.world().read();
    assert!(view.manifest(P, made.digest).is_none());
    assert_eq!(view.manifest(P, listed.digest).unwrap().image, None, "the index stays, without it");
}

#[tokio::test]
async fn manifests_that_lie() {
    let cloud = Cloud::new().await;
    let (one, two) = (layer("a"), layer("b"));
    let wrong_order = config_of(&[&two, &one]);
    let short = config_of(&[&one]);
    for blob in [&one, &two, &wrong_order, &short] {
        push(&cloud, P, blob).await.unwrap();
    }
    let mut size: serde_json::Value = serde_json::from_slice(&manifest(&short, &[&one])).unwrap();
    size["layers"][0]["size"] = json!(1);
    for (manifest, field, want) in [
        (manifest(&wrong_order, &[&one, &two]), "layers[0]", "unpacks to"),
        (manifest(&short, &[&one, &two]), "config.rootfs.diff_ids", "2 layers"),
        (manifest(&one, &[&one]), "config", ""),
        (size.to_string().into(), "size", "not 1"),
    ] {
        match cloud.ops.put_container(P, "app", media::OCI_MANIFEST, manifest).await {
            Err(PushRefused::Manifest { field: seen, message }) => {
                assert_eq!(seen, field, "{message}");
                assert!(message.contains(want), "{message}");
            }
            other => panic!("{other:?} / {field}"),
        }
    }
    let wrong = cloud.ops.begin_upload(P).await.unwrap();
    let refused = cloud.ops.finish_upload(P, wrong, whole(b"x"), &sha(b"y").to_string()).await;
    assert!(matches!(refused, Err(PushRefused::Blob(_))), "{refused:?}");
    assert!(matches!(cloud.ops.upload(P, wrong).await, Err(PushRefused::NoUpload(_))), "it is gone");
}

#[tokio::test]
async fn a_project_brings_no_more_than_its_quota() {
    let cloud = Cloud::new().await;
    let limits = std::collections::BTreeMap::from([("image_size_total".to_owned(), 1)]);
    cloud.ops.set_quotas(crate::model::QuotaKey::Project(P), &limits, false).await.unwrap();
    let one = image(&cloud, "raw").await;
    put(&cloud, one, whole(&[1; 600 << 10])).await.unwrap();
    let two = image(&cloud, "raw").await;
    let refused = put(&cloud, two, whole(&[2; 600 << 10])).await.unwrap_err();
    assert!(matches!(refused, OpsError::Quota(_)), "{refused:?}");
    assert_eq!(files(&cloud).await.len(), 1, "nothing of it was kept");
    put(&cloud, two, whole(&[2; 100 << 10])).await.unwrap();
}

/// Pushes and sweeps side by side for some seconds, with nearly no time between doom and removal, on two controllers: what
/// was acknowledged is whole at any time, and what nobody names is gone in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_and_sweeps_disturb_nothing() {
    let cloud = Cloud::new().await;
    let other = cloud.another().await;
    let stop = Instant::now() + Duration::from_secs(4);
    let sweeping = |cloud: &Cloud| {
        let ops = cloud.ops.clone();
        tokio::spawn(async move {
            let mut swept = 0;
            while Instant::now() < stop {
                ops.sweep_blobs().await.unwrap();
                swept += 1;
                tokio::task::yield_now().await;
            }
            swept
        })
    };
    let sweeps = [sweeping(&cloud), sweeping(&other)];
    let pushing = |ops: Arc<Ops>, who: u8| {
        tokio::spawn(async move {
            let project = ProjectId(uuid::Uuid::from_u128(u128::from(who)));
            let (mut done, mut again) = (0u32, 0u32);
            while Instant::now() < stop {
                // Layers that others push and let go at the same time.
                let (one, two) = (layer(&format!("l{}", done % 3)), layer("common"));
                let id = {
                    let request =
                        serde_json::from_value(json!({"name": "i", "format": "docker-archive"})).unwrap();
                    ops.create_image(project, &request).await.unwrap().id
                };
                let bytes = archive(&[&one, &two]);
                match ops.put_blob(project, id, BlobRole::Archive, whole(&bytes), None).await {
                    Ok(seen) => {
                        let (mut read, _) =
                            ops.read_blob(&seen.blobs[&BlobRole::Archive].sha256, 0).await.unwrap();
                        let mut back = Vec::new();
                        read.read_to_end(&mut back).await.unwrap();
                        assert!(back == bytes, "what was acknowledged is there");
                        done += 1;
                    }
                    // The sweep was between the bytes and their name: said, and nothing half made.
                    Err(OpsError::Unavailable(_)) => again += 1,
                    Err(error) => panic!("{error:?}"),
                }
                ops.delete_image(project, id).await.unwrap();
            }
            (done, again)
        })
    };
    let pushes =
        [pushing(cloud.ops.clone(), 1), pushing(other.ops.clone(), 2), pushing(cloud.ops.clone(), 3)];
    let mut total = (0, 0);
    for push in pushes {
        let (done, again) = push.await.unwrap();
        total = (total.0 + done, total.1 + again);
    }
    let mut swept = 0;
    for sweep in sweeps {
        swept += sweep.await.unwrap();
    }
    println!("{} uploads, {} to be sent again, {swept} sweeps", total.0, total.1);
    assert!(total.0 > 10 && swept > 10, "{total:?}, {swept} sweeps");
    await_files(&cloud, &[]).await;
}
