//! `/v2/NAME/blobs/DIGEST`: whole, or from an offset on.

use super::errors::{Code, Failure};
use super::{Call, DIGEST, bare};
use crate::images::BlobRead;
use crate::model::Digest;
use crate::ops::identity::Act;
use amphi_api::image::Blob;
use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;

const KIND: &str = "application/octet-stream";

/// Which bytes are asked for, of a blob of this size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// First and last, both included.
    From(u64, u64),
    /// None of them are there.
    Outside,
}

/// RFC 9110, 14: one range is answered; several, or another unit, are as none.
fn part(headers: &HeaderMap, size: u64) -> Part {
    let text = headers.get(header::RANGE).and_then(|v| v.to_str().ok());
    let spec = text.and_then(|text| text.trim().strip_prefix("bytes=")).map(str::trim);
    let Some((first, last)) = spec.filter(|s| !s.contains(',')).and_then(|s| s.split_once('-')) else {
        return Part::Whole;
    };
    let number = |text: &str| text.trim().parse::<u64>();
    match (first.trim().is_empty(), last.trim().is_empty()) {
        (true, true) => Part::Whole,
        (true, false) => match number(last) {
            Ok(0) => Part::Outside,
            Ok(_) if size == 0 => Part::Outside,
            Ok(count) => Part::From(size.saturating_sub(count), size - 1),
            Err(_) => Part::Whole,
        },
        (false, open) => {
            let last = if open { Ok(u64::MAX) } else { number(last) };
            match (number(first), last) {
                (Ok(first), Ok(last)) if first > last => Part::Whole,
                (Ok(first), Ok(_)) if first >= size => Part::Outside,
                (Ok(first), Ok(last)) => Part::From(first, last.min(size - 1)),
                _ => Part::Whole,
            }
        }
    }
}

pub async fn read(call: Call, text: &str) -> Result<Response, Failure> {
    let wanted = super::uploads::digest(text)?;
    let place = &call.place;
    if place.mirror.is_some() {
        return mirrored(&call, wanted).await;
    }
    match visible(&call, wanted).await? {
        Some(blob) => local(&call, wanted, blob.size).await,
        None => Err(unknown(wanted)),
    }
}

fn unknown(wanted: Digest) -> Failure {
    Failure::new(Code::BlobUnknown, format!("there is no blob sha256:{wanted} here"))
}

/// The blob, if the visitor may see it: all that the project sees, for those who belong to it; what the repository's
/// manifests name, for everybody else. Whoever may push and asks, may name it in a push afterwards.
async fn visible(call: &Call, wanted: Digest) -> Result<Option<Blob>, Failure> {
    let (ops, place) = (&call.registry.ops, &call.place);
    let (belongs, pushes) = {
        let view = ops.world().read();
        (call.visitor.belongs_to(&view, place.project), call.visitor.is_let(&view, place, Act::Push))
    };
    let text = wanted.to_string();
    Ok(match (belongs, pushes && call.is_head()) {
        (true, true) => ops.wanted_blob(place.project, &text).await?,
        (true, false) => ops.visible_blob(place.project, &text).await?,
        (false, _) => ops.published_blob(place.project, &place.name, wanted),
    })
}

async fn local(call: &Call, wanted: Digest, size: u64) -> Result<Response, Failure> {
    let (status, first, length) = match part(&call.headers, size) {
        Part::Outside => {
            return Err(Failure::new(Code::SizeInvalid, format!("the blob has {size} bytes"))
                .status(StatusCode::RANGE_NOT_SATISFIABLE)
                .with(header::CONTENT_RANGE, &format!("bytes */{size}")));
        }
        Part::Whole => (StatusCode::OK, 0, size),
        Part::From(first, last) => (StatusCode::PARTIAL_CONTENT, first, last - first + 1),
    };
    let mut response = head(status, wanted, length);
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(range) = format!("bytes {first}-{}/{size}", first + length - 1).parse()
    {
        response.headers_mut().insert(header::CONTENT_RANGE, range);
    }
    if !call.is_head() {
        let (read, _) = call.registry.ops.read_blob(&wanted.to_string(), first).await?;
        *response.body_mut() = body(read, length);
    }
    Ok(response)
}

fn body(read: BlobRead, length: u64) -> Body {
    Body::from_stream(read.stream_of(length))
}

fn head(status: StatusCode, digest: Digest, length: u64) -> Response {
    let headers = [
        (header::CONTENT_TYPE, KIND.to_owned()),
        (header::CONTENT_LENGTH, length.to_string()),
        (header::ACCEPT_RANGES, "bytes".to_owned()),
        (header::ETAG, format!("\"sha256:{digest}\"")),
        (DIGEST, format!("sha256:{digest}")),
    ];
    bare(status, headers)
}

/// Of a mirror: what is here, or what is on its way here.
async fn mirrored(call: &Call, wanted: Digest) -> Result<Response, Failure> {
    let (ops, place) = (&call.registry.ops, &call.place);
    let named = ops.published_blob(place.project, &place.name, wanted);
    let here = match &named {
        Some(_) => ops.visible_blob(place.project, &wanted.to_string()).await?,
        None => None,
    };
    match (here, named) {
        (Some(blob), _) => local(call, wanted, blob.size).await,
        (None, Some(blob)) if call.is_head() => Ok(head(StatusCode::OK, wanted, blob.size)),
        (None, None) if call.is_head() => Err(unknown(wanted)),
        (None, _) => {
            let (size, bytes) = call.registry.mirror.blob(place, wanted).await?;
            let mut response = head(StatusCode::OK, wanted, size);
            *response.body_mut() = Body::from_stream(bytes);
            Ok(response)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        use Part::*;
        for (range, size, want) in [
            ("", 10, Whole),
            ("bytes=0-3", 10, From(0, 3)),
            ("bytes=4-", 10, From(4, 9)),
            ("bytes=4-99", 10, From(4, 9)),
            ("bytes=-3", 10, From(7, 9)),
            ("bytes=-30", 10, From(0, 9)),
            ("bytes=9-9", 10, From(9, 9)),
            ("bytes=10-", 10, Outside),
            ("bytes=-0", 10, Outside),
            ("bytes=0-", 0, Outside),
            ("bytes=5-4", 10, Whole),
            ("bytes=a-b", 10, Whole),
            ("bytes=0-1,3-4", 10, Whole),
            ("lines=0-1", 10, Whole),
            ("bytes=-", 10, Whole),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, range.parse().unwrap());
            assert_eq!(part(&headers, size), want, "{range} of {size}");
        }
    }
}
