//! The store on a real file system: blobs, uploads that go on, archives in their parts.

use super::tar::make;
use super::*;
use crate::digest::Digest;
use amphi_api::ProjectId;
use amphi_api::image::Compression;
use amphi_api::recipe::{Piece, Recipe};
use serde_json::json;
use sha2::Digest as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;

fn parts(parts: &[&'static str]) -> impl Stream<Item = Result<Bytes, String>> + use<> {
    let parts: Vec<_> = parts.iter().map(|p| Ok(Bytes::from_static(p.as_bytes()))).collect();
    futures_util::stream::iter(parts)
}

fn chunks(bytes: &[u8], size: usize) -> impl Stream<Item = Result<Bytes, String>> + use<> {
    let parts: Vec<_> = bytes.chunks(size).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
    futures_util::stream::iter(parts)
}

fn sha(bytes: &[u8]) -> Digest {
    Digest(sha2::Sha256::digest(bytes).into())
}

/// SHA-256 of "hello", as sha256sum prints it.
const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

fn left(dir: &Path) -> usize {
    std::fs::read_dir(dir.join("uploads")).unwrap().count()
}

#[tokio::test]
async fn bytes_are_kept_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).await.unwrap();
    let put = store.put(parts(&["hel", "lo"]), None).await.unwrap();
    assert_eq!((put.digest.to_string().as_str(), put.size), (HELLO, 5));
    assert_eq!(put.md5.as_deref(), Some("5d41402abc4b2a76b9719d911017c592"));
    let again = store.put(parts(&["hello"]), Some(HELLO)).await.unwrap();
    assert_ne!(put.place, again.place, "each has a file of its own");
    assert_eq!(store.list().await.unwrap().len(), 2);
    store.remove(again.digest, &again.place).await.unwrap();
    let (mut read, size) = store.read(put.digest, &put.place, 1).await.unwrap();
    let mut text = String::new();
    read.read_to_string(&mut text).await.unwrap();
    assert_eq!((text.as_str(), size), ("ello", 5));

    let wrong = store.put(parts(&["other"]), Some(HELLO)).await;
    assert!(matches!(wrong, Err(BlobError::WrongDigest { .. })), "{wrong:?}");
    let broken = futures_util::stream::iter([Ok(Bytes::from_static(b"x")), Err("the line broke")]);
    let broken = store.put(broken, None).await;
    assert!(matches!(broken, Err(BlobError::Interrupted { received: 1, .. })), "{broken:?}");
    let small = BlobStore::open(dir.path()).await.unwrap().with_limit(5);
    let large = small.put(parts(&["hello", "!"]), None).await;
    assert!(matches!(large, Err(BlobError::TooLarge { limit: 5 })), "{large:?}");
    assert_eq!(small.put(parts(&["hello"]), None).await.unwrap().size, 5, "not a byte too many");
    assert_eq!(left(dir.path()), 0, "nothing is left of them");

    store.remove(put.digest, &put.place).await.unwrap();
    store.remove(put.digest, &put.place).await.unwrap();
    assert!(matches!(store.read(put.digest, &put.place, 0).await, Err(BlobError::Unknown { .. })));
}

fn owner() -> Owner {
    Owner { project: ProjectId::DEFAULT, purpose: String::new() }
}

#[tokio::test]
async fn an_upload_goes_on_where_it_stopped() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).await.unwrap();
    let id = UploadId(uuid::Uuid::new_v4());
    assert!(matches!(store.received(id, &owner()).await, Err(SessionError::Unknown)));
    store.begin(id, &owner()).await.unwrap();
    let cut = futures_util::stream::iter([Ok(Bytes::from_static(b"he")), Err("the line broke")]);
    let cut = store.append(id, &owner(), Some(0), cut).await;
    assert!(matches!(cut, Err(SessionError::Cut { received: 2, .. })), "{cut:?}");
    let wrong = store.append(id, &owner(), Some(1), parts(&["x"])).await;
    assert!(matches!(wrong, Err(SessionError::WrongOffset { received: 2 })), "{wrong:?}");
    let other = Owner { project: ProjectId::new(), ..owner() };
    assert!(matches!(store.append(id, &other, None, parts(&["x"])).await, Err(SessionError::Unknown)));
    assert_eq!(store.append(id, &owner(), Some(2), parts(&["l"])).await.unwrap(), 3);

    // The controller dies; the next one knows of it only what lies on the disk.
    let store = BlobStore::open(dir.path()).await.unwrap();
    assert_eq!(store.received(id, &owner()).await.unwrap(), 3);
    assert_eq!(store.append(id, &owner(), None, parts(&["lo"])).await.unwrap(), 5);
    let spooled = store.conclude(id, &owner()).await.unwrap();
    assert_eq!(spooled.digest.to_string(), HELLO);
    let kept = store.keep(spooled).await.unwrap();
    assert_eq!(store.has(kept.digest, &kept.place).await.unwrap(), Some(5));
    assert!(matches!(store.received(id, &owner()).await, Err(SessionError::Unknown)), "it is concluded");
    assert_eq!(left(dir.path()), 0);
}

#[tokio::test]
async fn a_newer_request_ends_one_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(BlobStore::open(dir.path()).await.unwrap());
    let id = UploadId(uuid::Uuid::new_v4());
    store.begin(id, &owner()).await.unwrap();
    let hangs = parts(&["he"]).chain(futures_util::stream::pending());
    let hangs = tokio::spawn({
        let store = store.clone();
        async move { store.append(id, &owner(), Some(0), hangs).await }
    });
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while store.received(id, &owner()).await.unwrap() < 2 {
        assert!(std::time::Instant::now() < end, "the first bytes have not come");
        tokio::task::yield_now().await;
    }
    assert_eq!(store.append(id, &owner(), None, parts(&["llo"])).await.unwrap(), 5);
    let hung = hangs.await.unwrap();
    assert!(matches!(hung, Err(SessionError::Superseded { .. })), "{hung:?}");
    assert_eq!(store.conclude(id, &owner()).await.unwrap().digest.to_string(), HELLO);
}

#[tokio::test]
async fn uploads_that_nobody_goes_on_with_expire() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).await.unwrap();
    let id = UploadId(uuid::Uuid::new_v4());
    store.begin(id, &owner()).await.unwrap();
    std::fs::write(dir.path().join("uploads/left.part"), b"x").unwrap();
    store.expire(Duration::from_secs(3600)).await.unwrap();
    assert_eq!(left(dir.path()), 2);
    store.expire(Duration::ZERO).await.unwrap();
    assert_eq!(left(dir.path()), 0);
    let small = BlobStore::open(dir.path()).await.unwrap().with_limit(3);
    small.begin(id, &owner()).await.unwrap();
    let large = small.append(id, &owner(), None, parts(&["hell"])).await;
    assert!(matches!(large, Err(SessionError::Blob(BlobError::TooLarge { limit: 3 }))), "{large:?}");
    assert_eq!(left(dir.path()), 0);
}

/// A layer's tar with one file of so many bytes.
fn layer(name: &str, size: usize) -> Vec<u8> {
    [make::file(name, &vec![7; size]), make::end()].concat()
}

fn config_of(diff_ids: &[Digest]) -> Vec<u8> {
    let diff_ids: Vec<_> = diff_ids.iter().map(|d| format!("sha256:{d}")).collect();
    let config =
        json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    config.to_string().into_bytes()
}

/// As docker 20.10 saves it: the third layer is the first one again, as a link; the manifest comes at the end.
fn saved() -> (Vec<u8>, Vec<u8>, Vec<u8>) {
    let (one, two) = (layer("a", 100_000), layer("b", 10));
    let config = config_of(&[sha(&one), sha(&two), sha(&one)]);
    let name = format!("{}.json", sha(&config));
    let list = json!([{"Config": name, "RepoTags": ["x:1"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"]}]);
    let archive = [
        make::header("1/", b'5', 0, ""),
        make::file("1/VERSION", b"1.0"),
        make::file("1/layer.tar", &one),
        make::file("2/layer.tar", &two),
        make::header("3/layer.tar", b'2', 0, "../1/layer.tar"),
        make::file(&name, &config),
        make::file("manifest.json", list.to_string().as_bytes()),
        make::file("repositories", b"{}"),
        make::end(),
        vec![0; 4096],
    ];
    (archive.concat(), one, two)
}

async fn put_together(store: &Arc<BlobStore>, apart: Apart) -> Vec<u8> {
    let mut places = std::collections::HashMap::new();
    for (file, _) in apart.files {
        let stored = store.keep(file).await.unwrap();
        places.insert(stored.digest, stored.place);
    }
    let placed = |recipe: Recipe| {
        recipe.pieces.into_iter().map(|piece| match piece {
            Piece::Bytes(bytes) => Placed::Bytes(bytes.into()),
            Piece::Blob { sha256, size } => {
                let digest: Digest = sha256.parse().unwrap();
                Placed::Blob { digest, place: places[&digest].clone(), size }
            }
        })
    };
    let mut whole = Vec::new();
    store.read_parts(placed(apart.recipe.clone()).collect(), 0).read_to_end(&mut whole).await.unwrap();
    for from in [1, 1500, whole.len() / 2, whole.len() - 1, whole.len()] {
        let mut rest = Vec::new();
        let placed = placed(apart.recipe.clone()).collect();
        store.read_parts(placed, from as u64).read_to_end(&mut rest).await.unwrap();
        assert!(rest == whole[from..], "from byte {from}");
    }
    whole
}

#[tokio::test]
async fn a_saved_archive_in_its_parts_and_whole_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(BlobStore::open(dir.path()).await.unwrap());
    let (archive, one, two) = saved();
    for size in [100, 511, 70_000, 1 << 20] {
        let apart =
            take_apart(&store, chunks(&archive, size), Some(&sha(&archive).to_string())).await.unwrap();
        let layers: Vec<_> = apart.layers.iter().map(|l| (l.sha256.clone(), l.compression)).collect();
        let (one, two) = (sha(&one).to_string(), sha(&two).to_string());
        assert_eq!(
            layers,
            [(one.clone(), Compression::None), (two, Compression::None), (one, Compression::None)]
        );
        assert_eq!((apart.files.len(), apart.size), (2, archive.len() as u64), "equal layers lie once");
        assert!(apart.recipe.literals() < 20_000, "{}", apart.recipe.literals());
        let read = oci::parse(&apart.manifest, oci::media::OCI_MANIFEST).unwrap();
        assert!(matches!(read.manifest, oci::Manifest::Image { layers, .. } if layers.len() == 3));
        assert!(put_together(&store, apart).await == archive, "byte for byte");
    }
    assert_eq!(left(dir.path()), 0);
}

/// An OCI layout with a gzip'd layer, an index in the index, an attestation beside, and no manifest.json.
fn oci_layout(other_platform: bool, change: impl Fn(&mut Vec<u8>)) -> (Vec<u8>, Digest) {
    use std::io::Write;
    let tar = layer("a", 100_000);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&tar).unwrap();
    let mut packed = gz.finish().unwrap();
    let config = config_of(&[sha(&tar)]);
    let blob = |t: &str, bytes: &[u8]| json!({"mediaType": t, "digest": format!("sha256:{}", sha(bytes)), "size": bytes.len()});
    let of = |config: &[u8], layer: &[u8], t: &str| {
        json!({"schemaVersion": 2, "mediaType": oci::media::OCI_MANIFEST,
            "config": blob(oci::media::OCI_CONFIG, config), "layers": [blob(t, layer)]})
        .to_string()
        .into_bytes()
    };
    let manifest = of(&config, &packed, "application/vnd.oci.image.layer.v1.tar+gzip");
    let attestation = of(b"{}", b"{}", "application/vnd.in-toto+json");
    let with = |mut value: serde_json::Value, os: &str, architecture: &str| {
        value["platform"] = json!({"os": os, "architecture": architecture});
        value
    };
    let architecture = if other_platform { "arm64" } else { "amd64" };
    let inner = json!({"schemaVersion": 2, "mediaType": oci::media::OCI_INDEX, "manifests": [
        with(blob(oci::media::OCI_MANIFEST, &manifest), "linux", architecture),
        with(blob(oci::media::OCI_MANIFEST, &attestation), "unknown", "unknown"),
    ]})
    .to_string()
    .into_bytes();
    let index = json!({"schemaVersion": 2, "manifests": [blob(oci::media::OCI_INDEX, &inner)]});
    let digest = sha(&manifest);
    let path = |bytes: &[u8]| format!("./blobs/sha256/{}", sha(bytes));
    let packed_at = path(&packed);
    change(&mut packed);
    let archive = [
        make::file("./oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#),
        make::file("./index.json", index.to_string().as_bytes()),
        make::file(&path(&inner), &inner),
        make::file(&path(&manifest), &manifest),
        make::file(&path(&attestation), &attestation),
        make::file(&path(&config), &config),
        make::file(&packed_at, &packed),
        make::end(),
    ];
    (archive.concat(), digest)
}

#[tokio::test]
async fn an_oci_layout_keeps_its_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(BlobStore::open(dir.path()).await.unwrap());
    let (archive, manifest) = oci_layout(false, |_| {});
    let apart = take_apart(&store, chunks(&archive, 1000), None).await.unwrap();
    assert_eq!((sha(&apart.manifest), apart.layers.len()), (manifest, 1));
    assert_eq!(apart.layers[0].compression, Compression::Gzip);
    assert_ne!(apart.layers[0].sha256, apart.layers[0].diff_id);
    assert!(put_together(&store, apart).await == archive, "byte for byte");
}

#[tokio::test]
async fn what_no_archive_may_be() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open(dir.path()).await.unwrap();
    let one = layer("a", 10);
    let of = |files: &[(&str, &[u8])]| {
        let mut all: Vec<u8> = files.iter().flat_map(|(name, bytes)| make::file(name, bytes)).collect();
        all.extend(make::end());
        all
    };
    let list = |config: &str, layers: &[&str]| json!([{"Config": config, "Layers": layers}]).to_string();
    let good = config_of(&[sha(&one)]);
    let other = config_of(&[Digest([1; 32])]);
    let named = list("c", &["l"]);
    let named = named.as_bytes();
    let arm = br#"{"architecture": "arm64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
    let two = json!([{"Config": "c"}, {"Config": "c"}]).to_string();
    let large = vec![1; 17 << 20];
    let link =
        [make::header("l", b'2', 0, "../../../etc/passwd"), of(&[("c", &good), ("manifest.json", named)])]
            .concat();
    for (archive, want) in [
        (b"this is no archive".to_vec(), "no tar archive"),
        (vec![0x1f, 0x8b, 8, 0, 0], "decompress it"),
        (of(&[("x", b"y")]), "no container image's"),
        (of(&[("manifest.json", b"{}")]), "manifest.json"),
        (of(&[("manifest.json", two.as_bytes())]), "2 images"),
        (of(&[("manifest.json", named), ("l", &one)]), "names c"),
        (of(&[("manifest.json", named), ("c", &good)]), "names l"),
        (link, "names l"),
        (of(&[("manifest.json", named), ("c", &other), ("l", &one)]), "unpacks to"),
        (of(&[("manifest.json", named), ("c", &good), ("l", b"no tar")]), "no tar archive"),
        (of(&[("manifest.json", list("c", &[]).as_bytes()), ("c", &good)]), "has 0 layers"),
        (of(&[("manifest.json", list("c", &[]).as_bytes()), ("c", arm)]), "arm64"),
        (of(&[("manifest.json", named), ("c", &good), ("l", &one), ("l", &one)]), "twice"),
        (of(&[("manifest.json", named), ("c", &good), ("l", &one), ("big", &large)]), "does not name"),
        (of(&[("manifest.json", named), ("c", &good), ("l", &one)])[..1500].to_vec(), "cut off"),
        (oci_layout(true, |_| {}).0, "linux/arm64"),
        (oci_layout(false, |layer| layer[100] ^= 1).0, "not what its name"),
    ] {
        let told = match take_apart(&store, chunks(&archive, 4000), None).await {
            Err(BlobError::Broken(told)) => told,
            Err(other) => panic!("{other:?} / {want}"),
            Ok(_) => panic!("taken / {want}"),
        };
        assert!(told.contains(want), "{told} / {want}");
        assert_eq!(left(dir.path()), 0, "{want}");
    }
    let (archive, ..) = saved();
    let wrong = take_apart(&store, chunks(&archive, 4000), Some(HELLO)).await.err();
    assert!(matches!(wrong, Some(BlobError::WrongDigest { .. })), "{wrong:?}");
    assert_eq!(left(dir.path()), 0);
}
