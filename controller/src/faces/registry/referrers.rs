//! `/v2/NAME/referrers/DIGEST`: what in the repository says something of a manifest, as an index.

use super::Call;
use super::errors::{Code, Failure};
use super::uploads::digest;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const FILTERS: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Most lines of one answer: whoever has more artifacts of one image asks by their type.
const REFERRERS_MAX: usize = 1000;

pub async fn list(call: &Call, subject: &str) -> Result<Response, Failure> {
    let subject = digest(subject)?;
    let ops = &call.registry.ops;
    let kind = call.asked("artifactType");
    let mut lines = Vec::new();
    let found = ops.referrers_of(call.place.project, &call.place.name, subject);
    for referrer in
        found.into_iter().filter(|r| kind.is_none_or(|k| k == r.artifact_type)).take(REFERRERS_MAX)
    {
        let mut line = json!({
            "mediaType": referrer.media_type,
            "digest": format!("sha256:{}", referrer.digest),
            "size": referrer.size,
        });
        if !referrer.artifact_type.is_empty() {
            line["artifactType"] = referrer.artifact_type.into();
        }
        let bytes = super::manifests::whole(ops, referrer.digest, referrer.size).await?;
        let manifest: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        if let Some(annotations) = manifest.get("annotations").filter(|a| a.is_object()) {
            line["annotations"] = annotations.clone();
        }
        lines.push(line);
    }
    let body = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": lines});
    let text = serde_json::to_vec(&body).map_err(|e| Failure::new(Code::Unknown, e.to_string()))?;
    let mut response = ([(header::CONTENT_TYPE, INDEX)], text).into_response();
    if kind.is_some() {
        response.headers_mut().insert(FILTERS, HeaderValue::from_static("artifactType"));
    }
    Ok(response)
}
