//! `/v2/NAME/manifests/REFERENCE`: by tag or by digest.

use super::errors::{Code, Failure};
use super::{Call, DIGEST, bare};
use crate::mirror::Freshness;
use crate::model::Digest;
use crate::ops::Ops;
use crate::ops::registry::{Found, MANIFEST_MAX, Reference};
use axum::body::Body;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const WARNING: HeaderName = HeaderName::from_static("warning");
/// RFC 7234, 5.5.1.
const STALE: &str = "110 amphi \"Response is Stale\"";

fn reference(text: &str) -> Result<Reference, Failure> {
    let unknown = || Failure::new(Code::ManifestUnknown, format!("'{text}' is neither a tag nor a digest"));
    if text.contains(':') && !text.starts_with("sha256:") {
        return Err(Failure::new(
            Code::DigestInvalid,
            "digests are sha256 and 64 lower-case hexadecimal digits",
        ));
    }
    Reference::read(text).ok_or_else(unknown)
}

pub async fn read(call: Call, text: &str) -> Result<Response, Failure> {
    let (ops, place) = (&call.registry.ops, &call.place);
    let reference = reference(text)?;
    let (found, freshness) = match &place.mirror {
        Some(_) => call.registry.mirror.manifest(place, &reference).await?,
        None => (ops.find_manifest(place.project, &place.name, &reference)?, Freshness::Fresh),
    };
    let bytes = match call.is_head() {
        true => Bytes::new(),
        false => {
            ops.note_pull(place.project, &place.name, &reference);
            whole(ops, found.digest, found.size).await?
        }
    };
    let Found { digest, media_type, size } = found;
    let mut headers = vec![
        (header::CONTENT_TYPE, media_type),
        (header::CONTENT_LENGTH, size.to_string()),
        (header::ETAG, format!("\"sha256:{digest}\"")),
        (DIGEST, format!("sha256:{digest}")),
    ];
    if freshness == Freshness::Stale {
        headers.push((WARNING, STALE.to_owned()));
    }
    let mut response = bare(StatusCode::OK, headers);
    *response.body_mut() = bytes.into();
    Ok(response)
}

/// A manifest's bytes: few, and read before the answer begins, so that what cannot be read has a status.
pub async fn whole(ops: &Ops, digest: Digest, size: u64) -> Result<Bytes, Failure> {
    let (read, _) = ops.read_blob(&digest.to_string(), 0).await?;
    let mut bytes = Vec::new();
    let got = read.take(MANIFEST_MAX as u64).read_to_end(&mut bytes).await;
    match got {
        Ok(got) if got as u64 == size => Ok(bytes.into()),
        Ok(got) => {
            Err(Failure::new(Code::Unavailable, format!("manifest {digest} has {got} bytes, not {size}")))
        }
        Err(error) => Err(Failure::new(Code::Unavailable, format!("manifest {digest}: {error}"))),
    }
}

pub async fn put(call: Call, body: Body, text: &str) -> Result<Response, Failure> {
    let reference = match text.starts_with("sha256:") {
        true => Reference::Digest(super::uploads::digest(text)?),
        false => {
            reference(text).map_err(|_| Failure::new(Code::ManifestInvalid, format!("'{text}' is no tag")))?
        }
    };
    let Call { registry, place, headers, .. } = call;
    let media_type = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
    let media_type = media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
    let body = axum::body::to_bytes(body, MANIFEST_MAX).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        match source.is_some_and(|s| s.is::<http_body_util::LengthLimitError>()) {
            true => Failure::new(Code::SizeInvalid, format!("a manifest has at most {MANIFEST_MAX} bytes"))
                .status(StatusCode::PAYLOAD_TOO_LARGE),
            false => Failure::new(Code::ManifestInvalid, format!("the body broke off: {error}")),
        }
    })?;
    let pushed = registry.ops.push_manifest(place.project, &place.name, &reference, &media_type, body).await;
    let pushed = pushed.map_err(Failure::about(Code::ManifestInvalid))?;
    let mut headers = vec![
        (header::LOCATION, format!("/v2/{}/manifests/sha256:{}", place.full, pushed.digest)),
        (DIGEST, format!("sha256:{}", pushed.digest)),
        (header::CONTENT_LENGTH, "0".to_owned()),
    ];
    headers.extend(pushed.subject.map(|subject| (SUBJECT, format!("sha256:{subject}"))));
    Ok(bare(StatusCode::CREATED, headers))
}

pub async fn delete(call: Call, text: &str) -> Result<Response, Failure> {
    let (ops, place) = (&call.registry.ops, &call.place);
    match reference(text)? {
        Reference::Tag(tag) => ops.untag(place.project, &place.name, &tag).await?,
        Reference::Digest(digest) => ops.delete_manifest(place.project, &place.name, digest).await?,
    }
    Ok(StatusCode::ACCEPTED.into_response())
}
