//! A registry on loopback, for this host's own engine and nobody else: it serves the images that the engine is being asked to
//! pull at this moment, by digest, to whoever knows the password that was made at this start. Layers pass through while they
//! come. Refuses everything else: names, tags, lists, pushes, and images that nobody has offered.
//!
//! Speaks the pulling half of the OCI distribution specification (v1.1, "Pull"), over plain HTTP: engines take
//! registries at 127.0.0.0/8 so without being told to.

use super::manifest::{self, DOCUMENT_MAX};
use super::{Bytestream, ImageCache, Trouble};
use crate::instance::CachedImage;
use amphi_api::ImageId;
use amphi_api::image::{Blob, BlobRole};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The one repository; images are told apart by their digests.
pub const REPOSITORY: &str = "amphi";
/// The user's name; the password is what counts.
pub const USER: &str = "amphi";

/// The registry of one agent.
pub struct Registry {
    cache: Arc<ImageCache>,
    address: SocketAddr,
    password: String,
    /// SHA-256 of the header that opens: comparing digests tells nothing by the time that it takes.
    key: [u8; 32],
    offers: Mutex<Vec<Arc<Offered>>>,
    served: Mutex<Option<AbortHandle>>,
}

/// An image that may be pulled.
struct Offered {
    image: ImageId,
    manifest: (String, &'static str, Bytes),
    config: (String, Bytes),
    layers: BTreeMap<String, Blob>,
    trouble: watch::Sender<Option<Trouble>>,
}

/// An image may be pulled as long as this lives.
pub struct Offer {
    registry: Arc<Registry>,
    offered: Arc<Offered>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.registry.offers().retain(|other| !Arc::ptr_eq(other, &self.offered));
    }
}

impl Offer {
    /// The manifest's digest, with its algorithm.
    pub fn reference(&self) -> &str {
        &self.offered.manifest.0
    }

    /// What went wrong on the way to the engine, which itself only sees a connection end: waits for it.
    pub async fn trouble(&self) -> Trouble {
        let mut trouble = self.offered.trouble.subscribe();
        match trouble.wait_for(Option::is_some).await.map(|found| found.clone()) {
            Ok(Some(trouble)) => trouble,
            _ => std::future::pending().await,
        }
    }

    pub fn had_trouble(&self) -> Option<Trouble> {
        self.offered.trouble.borrow().clone()
    }
}

impl Registry {
    /// Listens at an address on loopback, port 0 for any, until this is dropped.
    pub async fn serve(cache: Arc<ImageCache>, listen: SocketAddr) -> io::Result<Arc<Self>> {
        let listener = tokio::net::TcpListener::bind(listen).await?;
        let password = format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple());
        let header = format!("Basic {}", STANDARD.encode(format!("{USER}:{password}")));
        let registry = Arc::new(Self {
            cache,
            address: listener.local_addr()?,
            password,
            key: Sha256::digest(header).into(),
            offers: Mutex::default(),
            served: Mutex::default(),
        });
        let state = Arc::downgrade(&registry);
        let router = Router::new()
            .route("/v2/", get(async || StatusCode::OK))
            .route("/v2/{repository}/manifests/{reference}", get(document))
            .route("/v2/{repository}/blobs/{reference}", get(blob).head(blob_head))
            .fallback(async || {
                refusal(StatusCode::NOT_FOUND, "UNSUPPORTED", "only pulls by digest are served here")
            })
            .layer(from_fn_with_state(state.clone(), admit))
            .with_state(state);
        let served = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!("the registry for this host's engine has ended: {error}");
            }
        });
        *registry.served.lock().unwrap_or_else(PoisonError::into_inner) = Some(served.abort_handle());
        Ok(registry)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn password(&self) -> &str {
        &self.password
    }

    pub fn cache(&self) -> &Arc<ImageCache> {
        &self.cache
    }

    /// Offers an image, whose manifest and configuration are read and checked now.
    pub async fn offer(self: &Arc<Self>, cached: &CachedImage) -> Result<Offer, Trouble> {
        let image = &cached.image;
        let (manifest, manifest_digest) = self.document(cached, BlobRole::Manifest).await?;
        let (config, config_digest) = self.document(cached, BlobRole::Config).await?;
        let media_type = manifest::check(image, &manifest, &config).map_err(Trouble::Broken)?;
        let layers = image.layers.iter();
        let offered = Arc::new(Offered {
            image: image.id,
            manifest: (manifest_digest, media_type, manifest),
            config: (config_digest, config),
            layers: layers
                .map(|l| (format!("sha256:{}", l.sha256), Blob { sha256: l.sha256.clone(), size: l.size }))
                .collect(),
            trouble: watch::Sender::new(None),
        });
        self.offers().push(offered.clone());
        Ok(Offer { registry: self.clone(), offered })
    }

    /// A small blob, read whole, with its digest as references have it.
    async fn document(&self, cached: &CachedImage, role: BlobRole) -> Result<(Bytes, String), Trouble> {
        let (Some(path), Some(blob)) = (cached.blobs.get(&role), cached.image.blobs.get(&role)) else {
            return Err(Trouble::Broken(format!("it has no {role:?}")));
        };
        if blob.size > DOCUMENT_MAX {
            let message = format!("its {role:?} has {} bytes, more than {DOCUMENT_MAX}", blob.size);
            return Err(Trouble::Broken(message));
        }
        let bytes = tokio::fs::read(path).await.map_err(Trouble::io("read a manifest or configuration"))?;
        let digest = hex::encode(Sha256::digest(&bytes));
        if digest != blob.sha256 {
            return Err(self.cache.discard(&blob.sha256, &format!("its digest is {digest}")));
        }
        Ok((bytes.into(), format!("sha256:{digest}")))
    }

    fn offers(&self) -> std::sync::MutexGuard<'_, Vec<Arc<Offered>>> {
        self.offers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find<T>(&self, look: impl Fn(&Arc<Offered>) -> Option<T>) -> Option<T> {
        self.offers().iter().find_map(look)
    }
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Registry({})", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        if let Some(served) = self.served.lock().unwrap_or_else(PoisonError::into_inner).take() {
            served.abort();
        }
    }
}

type Weak = std::sync::Weak<Registry>;

async fn admit(State(registry): State<Weak>, headers: HeaderMap, request: Request, next: Next) -> Response {
    let shown = headers.get(AUTHORIZATION).map(|shown| <[u8; 32]>::from(Sha256::digest(shown.as_bytes())));
    if registry.upgrade().is_some_and(|registry| shown == Some(registry.key)) {
        return next.run(request).await;
    }
    let mut answer =
        refusal(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "only this host's agent hands out pulls");
    let realm = HeaderValue::from_static("Basic realm=\"amphi\"");
    answer.headers_mut().insert(WWW_AUTHENTICATE, realm);
    answer
}

async fn document(
    State(registry): State<Weak>,
    Path((repository, reference)): Path<(String, String)>,
) -> Response {
    let look = |offered: &Arc<Offered>| {
        let (digest, media_type, bytes) = &offered.manifest;
        (repository == REPOSITORY && *digest == reference).then(|| (*media_type, bytes.clone()))
    };
    match registry.upgrade().and_then(|registry| registry.find(look)) {
        Some((media_type, bytes)) => whole(&reference, media_type, bytes),
        None => refusal(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", "no such image is being pulled"),
    }
}

const BYTES: &str = "application/octet-stream";

async fn blob(
    State(registry): State<Weak>,
    Path((repository, reference)): Path<(String, String)>,
) -> Response {
    let unknown = || refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "no such blob is being pulled");
    let Some(registry) = registry.upgrade().filter(|_| repository == REPOSITORY) else { return unknown() };
    let config = |offered: &Arc<Offered>| (offered.config.0 == reference).then(|| offered.config.1.clone());
    if let Some(config) = registry.find(config) {
        return whole(&reference, BYTES, config);
    }
    let layer = |offered: &Arc<Offered>| Some((offered.clone(), offered.layers.get(&reference)?.clone()));
    let Some((_, layer)) = registry.find(layer) else { return unknown() };
    match begun(registry.cache.open(&layer).await).await {
        Ok(bytes) => {
            let (state, of) = (Arc::downgrade(&registry), reference.clone());
            // Whatever is wrong, the engine only sees that the bytes end; who asked it to pull is told why.
            let bytes = bytes.inspect(move |piece| {
                if let (Err(trouble), Some(registry)) = (piece, state.upgrade()) {
                    tell(&registry, &of, trouble);
                }
            });
            let bytes = bytes.map(|piece| piece.map_err(|trouble| io::Error::other(format!("{trouble:?}"))));
            (headers(&reference, BYTES, layer.size), Body::from_stream(bytes)).into_response()
        }
        Err(trouble) => {
            tell(&registry, &reference, &trouble);
            refusal(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", "the layer cannot be had now")
        }
    }
}

/// Waits for the first piece: an answer whose body fails at once has no head either, since that goes out with the first
/// bytes, and the engine would be left with a closed connection where a status can be told.
async fn begun(opened: Result<Bytestream, Trouble>) -> Result<Bytestream, Trouble> {
    let mut bytes = opened?;
    match bytes.next().await {
        None => Ok(bytes),
        Some(first) => {
            let first = first?;
            Ok(futures_util::stream::iter([Ok(first)]).chain(bytes).boxed())
        }
    }
}

/// Told to all images that have this layer and are being pulled.
fn tell(registry: &Registry, reference: &str, trouble: &Trouble) {
    let offers = registry.offers();
    for offered in offers.iter().filter(|offered| offered.layers.contains_key(reference)) {
        tracing::warn!(image = %offered.image, layer = reference, ?trouble, "a layer did not reach the engine");
        offered.trouble.send_if_modified(|known| known.is_none() && known.replace(trouble.clone()).is_none());
    }
}

/// The size of a layer is known without a byte of it.
async fn blob_head(
    State(registry): State<Weak>,
    Path((repository, reference)): Path<(String, String)>,
) -> Response {
    let look = |offered: &Arc<Offered>| match offered.config.0 == reference {
        true => Some(offered.config.1.len() as u64),
        false => offered.layers.get(&reference).map(|layer| layer.size),
    };
    match registry.upgrade().filter(|_| repository == REPOSITORY).and_then(|registry| registry.find(look)) {
        Some(size) => headers(&reference, BYTES, size).into_response(),
        None => refusal(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", "no such blob is being pulled"),
    }
}

fn whole(digest: &str, media_type: &str, bytes: Bytes) -> Response {
    (headers(digest, media_type, bytes.len() as u64), bytes).into_response()
}

fn headers(digest: &str, media_type: &str, size: u64) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_LENGTH, size.into());
    // Digests and media types of ours are plain ASCII.
    for (name, value) in [(CONTENT_TYPE.as_str(), media_type), ("docker-content-digest", digest)] {
        if let (Ok(name), Ok(value)) = (name.parse::<axum::http::HeaderName>(), HeaderValue::from_str(value))
        {
            headers.insert(name, value);
        }
    }
    headers
}

fn refusal(status: StatusCode, code: &str, message: &str) -> Response {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
    (status, [(CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
