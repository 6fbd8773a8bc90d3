//! The registry as an engine sees it, over real sockets: who gets in, what is served, and what is told of a layer that
//! does not reach its end.

use super::*;
use crate::images::{BlobFetcher, Incoming};
use amphi_api::image::{Compression, Image, ImageFormat, ImageState, Layer};
use async_trait::async_trait;
use serde_json::json;
use std::collections::HashMap;

/// Blobs by their digests.
#[derive(Default)]
struct Source {
    blobs: Mutex<HashMap<String, Vec<u8>>>,
    asked: Mutex<Vec<String>>,
}

impl Source {
    fn put(&self, bytes: &[u8]) -> Blob {
        let blob = Blob { sha256: hex::encode(Sha256::digest(bytes)), size: bytes.len() as u64 };
        self.blobs.lock().unwrap().insert(blob.sha256.clone(), bytes.to_vec());
        blob
    }
}

#[async_trait]
impl BlobFetcher for Source {
    async fn fetch(&self, blob: &Blob, from: u64) -> anyhow::Result<Incoming> {
        self.asked.lock().unwrap().push(blob.sha256.clone());
        let bytes = self.blobs.lock().unwrap().get(&blob.sha256).cloned();
        let bytes = bytes.ok_or_else(|| anyhow::anyhow!("no such blob"))?.split_off(from as usize);
        let pieces: Vec<_> = bytes.chunks(100_000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
        Ok(Incoming { bytes: futures_util::stream::iter(pieces).boxed(), peer: None })
    }
}

struct Stage {
    source: Arc<Source>,
    registry: Arc<Registry>,
    image: Image,
    http: reqwest::Client,
    folder: tempfile::TempDir,
}

impl Stage {
    async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let source = Arc::new(Source::default());
        let layer = source.put(&vec![7; 700_000]);
        let diff_id = layer.sha256.clone();
        let config =
            source.put(json!({"rootfs": {"diff_ids": [format!("sha256:{diff_id}")]}}).to_string().as_bytes());
        let manifest = json!({"schemaVersion": 2,
            "config": {"digest": format!("sha256:{}", config.sha256), "size": config.size},
            "layers": [{"digest": format!("sha256:{}", layer.sha256), "size": layer.size}]});
        let manifest = source.put(manifest.to_string().as_bytes());
        let folder = tempfile::tempdir().unwrap();
        let cache = Arc::new(ImageCache::new(folder.path(), source.clone()));
        let image = Image {
            id: ImageId::new(),
            project: amphi_api::ProjectId::DEFAULT,
            name: "web".into(),
            format: ImageFormat::Oci,
            cmdline: String::new(),
            state: ImageState::Active,
            layers: vec![Layer {
                sha256: layer.sha256,
                size: layer.size,
                compression: Compression::None,
                diff_id,
            }],
            blobs: BTreeMap::from([(BlobRole::Manifest, manifest), (BlobRole::Config, config)]),
            created_at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let registry = Registry::serve(cache, (std::net::Ipv4Addr::LOCALHOST, 0).into()).await.unwrap();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { source, registry, image, http, folder }
    }

    async fn ask(&self, method: reqwest::Method, path: &str) -> reqwest::Response {
        let url = format!("http://{}{path}", self.registry.address());
        let request = self.http.request(method, url).basic_auth(USER, Some(self.registry.password()));
        request.send().await.unwrap()
    }

    async fn get(&self, path: &str) -> reqwest::Response {
        self.ask(reqwest::Method::GET, path).await
    }

    async fn offer(&self) -> Offer {
        let cached = self.registry.cache().ensure(&self.image).await.unwrap();
        self.registry.offer(&cached).await.unwrap()
    }

    fn manifest(&self) -> String {
        format!("/v2/amphi/manifests/sha256:{}", self.image.blobs[&BlobRole::Manifest].sha256)
    }

    fn layer(&self) -> String {
        format!("/v2/amphi/blobs/sha256:{}", self.image.layers[0].sha256)
    }
}

#[tokio::test]
async fn only_who_was_told_the_password_gets_in() {
    let stage = Stage::new().await;
    let _offer = stage.offer().await;
    for path in
        ["/v2/".to_owned(), stage.manifest(), stage.layer(), "/".to_owned(), "/v2/_catalog".to_owned()]
    {
        let url = format!("http://{}{path}", stage.registry.address());
        let bare = stage.http.get(&url).send().await.unwrap();
        assert_eq!(bare.status(), 401, "{path}");
        assert!(bare.headers()["www-authenticate"].to_str().unwrap().starts_with("Basic"));
        for (user, password) in [(USER, "x"), ("x", stage.registry.password()), (USER, "")] {
            let wrong = stage.http.get(&url).basic_auth(user, Some(password)).send().await.unwrap();
            assert_eq!(wrong.status(), 401, "{path}");
        }
    }
    assert_eq!(stage.get("/v2/").await.status(), 200);
    let next = Stage::new().await;
    assert_ne!(next.registry.password(), stage.registry.password());
}

#[tokio::test]
async fn an_image_is_served_as_long_as_it_is_offered_and_nothing_else_is() {
    let stage = Stage::new().await;
    assert_eq!(stage.get(&stage.manifest()).await.status(), 404, "nobody offers it");
    let offer = stage.offer().await;
    let again = stage.offer().await;
    assert_eq!(format!("/v2/amphi/manifests/{}", offer.reference()), stage.manifest());
    drop(again);
    let manifest = stage.get(&stage.manifest()).await;
    assert_eq!(manifest.headers()["content-type"], manifest::OCI);
    assert_eq!(manifest.headers()["docker-content-digest"], offer.reference());
    let digest = hex::encode(Sha256::digest(manifest.bytes().await.unwrap()));
    assert_eq!(format!("sha256:{digest}"), offer.reference());
    let config = format!("/v2/amphi/blobs/sha256:{}", stage.image.blobs[&BlobRole::Config].sha256);
    assert!(stage.get(&config).await.text().await.unwrap().contains("rootfs"));

    let head = stage.ask(reqwest::Method::HEAD, &stage.layer()).await;
    assert_eq!(
        (head.status(), &head.headers()["content-length"]),
        (StatusCode::OK, &"700000".parse().unwrap())
    );
    let layer = &stage.image.layers[0].sha256;
    assert!(!stage.source.asked.lock().unwrap().contains(layer), "a look costs no bytes");
    assert!(stage.get(&stage.layer()).await.bytes().await.unwrap() == vec![7; 700_000]);
    assert!(stage.get(&stage.layer()).await.bytes().await.unwrap() == vec![7; 700_000]);
    assert_eq!(stage.source.asked.lock().unwrap().iter().filter(|asked| *asked == layer).count(), 1);

    for path in [
        "/v2/amphi/manifests/latest",
        "/v2/amphi/tags/list",
        "/v2/_catalog",
        &stage.manifest().replace("amphi", "other"),
        &stage.layer().replace("amphi", "other"),
        &format!("/v2/amphi/blobs/sha256:{}", "0".repeat(64)),
        "/v2/amphi/blobs/..%2f..%2fetc%2fpasswd",
    ] {
        assert_eq!(stage.get(path).await.status(), 404, "{path}");
    }
    assert_eq!(stage.ask(reqwest::Method::PUT, &stage.manifest()).await.status(), 405);
    drop(offer);
    assert_eq!(stage.get(&stage.layer()).await.status(), 404);
}

#[tokio::test]
async fn a_layer_that_does_not_come_is_told() {
    let stage = Stage::new().await;
    let offer = stage.offer().await;
    stage.source.blobs.lock().unwrap().remove(&stage.image.layers[0].sha256);
    assert_eq!(stage.get(&stage.layer()).await.status(), 503);
    let trouble = offer.trouble().await;
    assert!(
        matches!(&trouble, Trouble::Down { message, .. } if message.contains("no such blob")),
        "{trouble:?}"
    );

    // Flipped on the wire: it ends before its last byte.
    let offer = stage.offer().await;
    let mut bytes = vec![7; 700_000];
    bytes[650_000] = 6;
    stage.source.blobs.lock().unwrap().insert(stage.image.layers[0].sha256.clone(), bytes);
    let answer = stage.get(&stage.layer()).await;
    assert!(answer.status() == 503 || answer.bytes().await.is_err(), "all of it went to the engine");
    let trouble = offer.trouble().await;
    assert!(matches!(trouble, Trouble::Broken(_)), "{trouble:?}");

    // Flipped on the disk, later.
    stage.source.put(&vec![7; 700_000]);
    let offer = stage.offer().await;
    assert!(stage.get(&stage.layer()).await.bytes().await.is_ok());
    assert!(offer.had_trouble().is_none());
    // In its place a moment after its last byte was handed on.
    stage.registry.cache().ensure_layers(&stage.image).await.unwrap();
    let path = stage.folder.path().join(&stage.image.layers[0].sha256);
    let modified = std::fs::metadata(&path).unwrap().modified().unwrap();
    let mut bytes = vec![7; 700_000];
    bytes[0] = 6;
    std::fs::write(&path, bytes).unwrap();
    std::fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
    assert!(stage.get(&stage.layer()).await.bytes().await.is_err());
    let trouble = offer.trouble().await;
    assert!(matches!(trouble, Trouble::Changed(_)), "{trouble:?}");
    assert!(stage.get(&stage.layer()).await.bytes().await.is_ok(), "it has come anew");
}

#[tokio::test]
async fn manifests_are_looked_at_before_they_are_offered() {
    let mut stage = Stage::new().await;
    let cached = stage.registry.cache().ensure(&stage.image).await.unwrap();
    stage.image.layers[0].size += 1;
    let other = CachedImage { image: stage.image.clone(), blobs: cached.blobs.clone() };
    let refused = stage.registry.offer(&other).await.err().unwrap();
    assert!(matches!(&refused, Trouble::Broken(why) if why.contains("layers")), "{refused:?}");
    stage.image.layers[0].size -= 1;
    std::fs::write(&cached.blobs[&BlobRole::Manifest], b"{}").unwrap();
    let changed = stage.registry.offer(&cached).await.err().unwrap();
    assert!(matches!(changed, Trouble::Changed(_)), "{changed:?}");
    let cached = stage.registry.cache().ensure(&stage.image).await.unwrap();
    assert!(stage.registry.offer(&cached).await.is_ok());
}
