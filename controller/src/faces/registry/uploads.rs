//! `/v2/NAME/blobs/uploads/`: blobs on their way in, whole, in pieces, or lent by another repository. An upload is its
//! project's and outlives the controller; it goes on where its bytes end.

use super::errors::{Code, Failure};
use super::{Call, DIGEST, bare};
use crate::faces::upload::bytes_of;
use crate::model::Digest;
use crate::ops::BlobStream;
use crate::ops::blobs::UploadId;
use crate::ops::identity::Act;
use axum::body::Body;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::Response;
use futures_util::StreamExt;

const UPLOAD_ID: HeaderName = HeaderName::from_static("docker-upload-uuid");

/// What of an upload is here, as a range. One without bytes is told as distribution tells it.
pub fn range(received: u64) -> String {
    format!("0-{}", received.saturating_sub(1))
}

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(text: &str) -> Result<Digest, Failure> {
    let read = text.strip_prefix("sha256:").and_then(|hex| hex.parse().ok());
    read.ok_or_else(|| {
        Failure::new(
            Code::DigestInvalid,
            format!("'{text}' is no digest: sha256 and 64 lower-case hexadecimal digits"),
        )
    })
}

fn nothing() -> BlobStream {
    futures_util::stream::empty().boxed()
}

fn upload_id(text: &str) -> Result<UploadId, Failure> {
    let unknown = || Failure::new(Code::BlobUploadUnknown, "there is no such upload; begin anew");
    text.parse().map_err(|_| unknown())
}

fn on_its_way(call: &Call, id: UploadId, received: u64, status: StatusCode) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{}/blobs/uploads/{id}", call.place.full)),
        (header::RANGE, range(received)),
        (UPLOAD_ID, id.to_string()),
        (header::CONTENT_LENGTH, "0".to_owned()),
    ];
    bare(status, headers)
}

fn here(call: &Call, digest: Digest) -> Response {
    let headers = [
        (header::LOCATION, format!("/v2/{}/blobs/sha256:{digest}", call.place.full)),
        (DIGEST, format!("sha256:{digest}")),
        (header::CONTENT_LENGTH, "0".to_owned()),
    ];
    bare(StatusCode::CREATED, headers)
}

fn refuse_mirror(call: &Call) -> Result<(), Failure> {
    match call.place.mirror {
        Some(_) => Err(Failure::new(Code::Denied, "nobody pushes to a mirror")),
        None => Ok(()),
    }
}

pub async fn begin(call: Call, body: Body) -> Result<Response, Failure> {
    refuse_mirror(&call)?;
    let (ops, project) = (call.registry.ops.clone(), call.place.project);
    if let Some(wanted) = call.asked("mount").map(str::to_owned) {
        // What cannot be lent is sent: no refusal.
        if let Ok(wanted) = digest(&wanted)
            && lent(&call, wanted).await?
        {
            return Ok(here(&call, wanted));
        }
    } else if let Some(whole) = call.asked("digest").map(str::to_owned) {
        let whole = digest(&whole)?;
        let id = ops.begin_upload(project).await?;
        let bytes = bytes_of(body);
        ops.finish_upload(project, id, bytes, &whole.to_string()).await?;
        return Ok(here(&call, whole));
    }
    let id = ops.begin_upload(project).await?;
    Ok(on_its_way(&call, id, 0, StatusCode::ACCEPTED))
}

/// Whether the project has a blob now that another repository has. Without a name of one: that the project sees itself.
async fn lent(call: &Call, wanted: Digest) -> Result<bool, Failure> {
    let (ops, project) = (&call.registry.ops, call.place.project);
    let Some(from) = call.asked("from") else {
        return Ok(ops.wanted_blob(project, &wanted.to_string()).await?.is_some());
    };
    let source = {
        let view = ops.world().read();
        let place = call.visitor.place(&view, from);
        let readable = place.filter(|place| call.visitor.is_let(&view, place, Act::Pull));
        readable.map(|place| (call.visitor.belongs_to(&view, place.project), place))
    };
    let Some((belongs, place)) = source else { return Ok(false) };
    // Of a repository that is merely open to everybody, what it shows; of an own project, all that is there.
    if !belongs && ops.published_blob(place.project, &place.name, wanted).is_none() {
        return Ok(false);
    }
    Ok(ops.mount_blob(project, &wanted.to_string(), place.project).await?)
}

pub async fn show(call: Call, id: &str) -> Result<Response, Failure> {
    let id = upload_id(id)?;
    let received = call.registry.ops.upload(call.place.project, id).await?;
    Ok(on_its_way(&call, id, received, StatusCode::NO_CONTENT))
}

/// Where a piece begins and how long it says it is: `0-1023`, of `Content-Range` with or without a unit before it.
fn piece(call: &Call) -> Result<Option<(u64, u64)>, Failure> {
    let Some(value) = call.headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let read = || {
        let text = value.to_str().ok()?;
        let text = text.strip_prefix("bytes").map_or(text, |rest| rest.trim_start_matches([' ', '=']));
        let (first, last) = text.split('/').next()?.split_once('-')?;
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some((first, last.checked_sub(first)?.checked_add(1)?))
    };
    let wrong = || {
        Failure::new(Code::BlobUploadInvalid, "Content-Range is to be FIRST-LAST, both included")
            .status(StatusCode::RANGE_NOT_SATISFIABLE)
    };
    read().map(Some).ok_or_else(wrong)
}

/// The offset that the piece says it begins at, if it says one and its length is what it says.
fn offset(call: &Call) -> Result<Option<u64>, Failure> {
    let Some((at, length)) = piece(call)? else { return Ok(None) };
    let announced = call.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok());
    match announced.and_then(|text| text.parse::<u64>().ok()) {
        Some(announced) if announced != length => Err(Failure::new(
            Code::SizeInvalid,
            format!("Content-Range tells of {length} bytes, Content-Length of {announced}"),
        )),
        _ => Ok(Some(at)),
    }
}

pub async fn append(call: Call, body: Body, id: &str) -> Result<Response, Failure> {
    let (id, at) = (upload_id(id)?, offset(&call)?);
    let (ops, project) = (call.registry.ops.clone(), call.place.project);
    let bytes = bytes_of(body);
    let received = ops.append_upload(project, id, at, bytes).await?;
    Ok(on_its_way(&call, id, received, StatusCode::ACCEPTED))
}

pub async fn finish(call: Call, body: Body, id: &str) -> Result<Response, Failure> {
    let missing = || Failure::new(Code::DigestInvalid, "the query is to say digest=sha256:…");
    let whole = digest(call.asked("digest").ok_or_else(missing)?)?;
    let (id, at) = (upload_id(id)?, offset(&call)?);
    let (ops, project) = (call.registry.ops.clone(), call.place.project);
    let mut bytes = bytes_of(body);
    if at.is_some() {
        ops.append_upload(project, id, at, bytes).await?;
        bytes = nothing();
    }
    ops.finish_upload(project, id, bytes, &whole.to_string()).await?;
    Ok(here(&call, whole))
}

pub async fn cancel(call: Call, id: &str) -> Result<Response, Failure> {
    call.registry.ops.cancel_upload(call.place.project, upload_id(id)?).await?;
    Ok(bare(StatusCode::NO_CONTENT, []))
}
