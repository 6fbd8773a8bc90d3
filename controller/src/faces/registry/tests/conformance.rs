//! What the OCI distribution specification 1.1 demands of a registry, by its sections: pull, push, content discovery,
//! content management.

use super::*;

/// One requirement: what it is, the request, headers, body, the status and the error's code (empty: none).
type Row<'a> = (&'a str, String, Vec<(&'a str, String)>, Vec<u8>, u16, &'a str);

async fn walk(desk: &Desk, rows: Vec<Row<'_>>) {
    for (what, request, headers, body, status, code) in rows {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let answer = desk.ask("alice", &request, &headers, &body).await;
        let text = String::from_utf8_lossy(&answer.body).into_owned();
        assert_eq!(answer.status, status, "{what}: {request}: {text}");
        if !code.is_empty() && !request.starts_with("HEAD") {
            assert_eq!(answer.code(), code, "{what}: {request}");
        }
    }
}

fn row<'a>(what: &'a str, request: impl Into<String>, status: u16, code: &'a str) -> Row<'a> {
    (what, request.into(), vec![], vec![], status, code)
}

const NOT_THERE: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test]
async fn pull() {
    let desk = Desk::new().await;
    let manifest = desk.image("alice", "shop/web", "hello").await;
    let named = desk.push("alice", "shop/web", "v1", "hello").await;
    let layer = digest(&tar("hello"));
    let length = tar("hello").len();
    walk(
        &desk,
        vec![
            row("the API's own resource", "GET /v2/", 200, ""),
            row("a manifest by tag", "GET /v2/shop/web/manifests/v1", 200, ""),
            row("a manifest by digest", format!("GET /v2/shop/web/manifests/{named}"), 200, ""),
            row("HEAD of a manifest", "HEAD /v2/shop/web/manifests/v1", 200, ""),
            row("a manifest that is not there", "GET /v2/shop/web/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            row("HEAD of one that is not there", "HEAD /v2/shop/web/manifests/v2", 404, ""),
            row(
                "what is no reference",
                "GET /v2/shop/web/manifests/.INVALID_MANIFEST_NAME",
                404,
                "MANIFEST_UNKNOWN",
            ),
            row(
                "a digest that is not there",
                format!("GET /v2/shop/web/manifests/{NOT_THERE}"),
                404,
                "MANIFEST_UNKNOWN",
            ),
            row("a blob", format!("GET /v2/shop/web/blobs/{layer}"), 200, ""),
            row("HEAD of a blob", format!("HEAD /v2/shop/web/blobs/{layer}"), 200, ""),
            row(
                "a blob that is not there",
                format!("GET /v2/shop/web/blobs/{NOT_THERE}"),
                404,
                "BLOB_UNKNOWN",
            ),
            row("what is no digest", "GET /v2/shop/web/blobs/sha256:xyz", 400, "DIGEST_INVALID"),
            row(
                "another algorithm",
                "GET /v2/shop/web/blobs/md5:d41d8cd98f00b204e9800998ecf8427e",
                400,
                "DIGEST_INVALID",
            ),
            row("what is no name", "GET /v2/shop/We%20b/manifests/v1", 400, "NAME_INVALID"),
            row("a name without a project", "GET /v2/web/manifests/v1", 400, "NAME_INVALID"),
            row("an escaped colon", format!("GET /v2/shop/web/blobs/{}", layer.replace(':', "%3A")), 200, ""),
            row("no such resource", "GET /v2/shop/web/nothing", 404, "NAME_UNKNOWN"),
        ],
    )
    .await;
    for request in ["GET /v2/shop/web/manifests/v1", "HEAD /v2/shop/web/manifests/v1"] {
        let answer = desk.ask("rita", request, &[("accept", OCI)], b"").await;
        assert_eq!(answer.header("docker-content-digest"), named, "{request}");
        assert_eq!(answer.header("content-type"), OCI);
        assert_eq!(answer.header("content-length"), manifest.len().to_string());
        assert_eq!(answer.body, if request.starts_with("GET") { manifest.clone() } else { vec![] });
    }
    // Range: RFC 9110, which the specification's "Pulling blobs" names.
    let path = format!("GET /v2/shop/web/blobs/{layer}");
    for (range, status, want) in [
        ("bytes=0-511", 206, Some(0..512)),
        ("bytes=512-", 206, Some(512..length)),
        ("bytes=-1024", 206, Some(length - 1024..length)),
        ("bytes=99999-", 416, None),
        ("bytes=0-1,5-6", 200, Some(0..length)),
    ] {
        let answer = desk.ask("rita", &path, &[("range", range)], b"").await;
        assert_eq!(answer.status, status, "{range}");
        let Some(want) = want else {
            assert_eq!(answer.header("content-range"), format!("bytes */{length}"));
            continue;
        };
        assert_eq!(answer.body, tar("hello")[want.clone()], "{range}");
        assert_eq!(answer.header("content-length"), want.len().to_string());
        if status == 206 {
            assert_eq!(
                answer.header("content-range"),
                format!("bytes {}-{}/{length}", want.start, want.end - 1)
            );
        }
    }
}

#[tokio::test]
async fn push() {
    let desk = Desk::new().await;
    let hello = digest(b"hello");
    let begun = desk.ask("alice", "POST /v2/shop/web/blobs/uploads/", &[], b"").await;
    assert_eq!((begun.status, begun.header("range")), (202, "0-0"));
    let place = begun.header("location").to_owned();
    assert!(place.starts_with("/v2/shop/web/blobs/uploads/"), "{place}");
    assert!(!begun.header("docker-upload-uuid").is_empty());
    let chunk = |at: u64, text: &str| {
        let last = at + text.len() as u64 - 1;
        vec![("content-range", format!("{at}-{last}")), ("content-length", text.len().to_string())]
    };
    let patch = format!("PATCH {place}");
    walk(
        &desk,
        vec![
            ("a chunk", patch.clone(), chunk(0, "hel"), b"hel".to_vec(), 202, ""),
            (
                "a chunk that comes again",
                patch.clone(),
                chunk(0, "hel"),
                b"hel".to_vec(),
                416,
                "BLOB_UPLOAD_INVALID",
            ),
            (
                "a chunk out of order",
                patch.clone(),
                chunk(9, "lo"),
                b"lo".to_vec(),
                416,
                "BLOB_UPLOAD_INVALID",
            ),
            (
                "a range that is none",
                patch.clone(),
                vec![("content-range", "lots".into())],
                b"lo".to_vec(),
                416,
                "BLOB_UPLOAD_INVALID",
            ),
            ("how far it is", format!("GET {place}"), vec![], vec![], 204, ""),
        ],
    )
    .await;
    let seen = desk.ask("alice", &format!("GET {place}"), &[], b"").await;
    assert_eq!((seen.header("range"), seen.header("location")), ("0-2", place.as_str()), "where to go on");
    walk(
        &desk,
        vec![
            ("the next chunk", patch, chunk(3, "lo"), b"lo".to_vec(), 202, ""),
            row("the end without a digest", format!("PUT {place}"), 400, "DIGEST_INVALID"),
            row("the end", format!("PUT {place}?digest={hello}"), 201, ""),
            row("it is over", format!("GET {place}"), 404, "BLOB_UPLOAD_UNKNOWN"),
            row("the blob is there", format!("HEAD /v2/shop/web/blobs/{hello}"), 200, ""),
            (
                "whole in one POST",
                format!("POST /v2/shop/web/blobs/uploads/?digest={}", digest(b"one")),
                vec![],
                b"one".to_vec(),
                201,
                "",
            ),
            (
                "one POST, wrong digest",
                format!("POST /v2/shop/web/blobs/uploads/?digest={hello}"),
                vec![],
                b"two".to_vec(),
                400,
                "DIGEST_INVALID",
            ),
            row("no such upload", "PATCH /v2/shop/web/blobs/uploads/7", 404, "BLOB_UPLOAD_UNKNOWN"),
            row(
                "nor that",
                "PUT /v2/shop/web/blobs/uploads/00000000-0000-4000-8000-000000000000?digest=sha256:0",
                400,
                "DIGEST_INVALID",
            ),
            row("nothing of a mirror", "POST /v2/mirror/hub/web/blobs/uploads/", 401, "UNAUTHORIZED"),
        ],
    )
    .await;
    let begun = desk.ask("alice", "POST /v2/shop/web/blobs/uploads/", &[], b"").await;
    let place = begun.header("location").to_owned();
    let whole = desk.ask("alice", &format!("PUT {place}?digest={}", digest(b"whole")), &[], b"whole").await;
    assert_eq!(whole.status, 201, "POST, then PUT with all of it");
    assert_eq!(whole.header("location"), format!("/v2/shop/web/blobs/{}", digest(b"whole")));
    assert_eq!(whole.header("docker-content-digest"), digest(b"whole"));
    let begun = desk.ask("alice", "POST /v2/shop/web/blobs/uploads/", &[], b"").await;
    let place = begun.header("location").to_owned();
    walk(
        &desk,
        vec![(
            "wrong bytes at the end",
            format!("PUT {place}?digest={NOT_THERE}"),
            vec![],
            b"x".to_vec(),
            400,
            "DIGEST_INVALID",
        )],
    )
    .await;
    let begun = desk.ask("alice", "POST /v2/shop/web/blobs/uploads/", &[], b"").await;
    let place = begun.header("location").to_owned();
    walk(
        &desk,
        vec![
            row("given up", format!("DELETE {place}"), 204, ""),
            row("gone", format!("GET {place}"), 404, "BLOB_UPLOAD_UNKNOWN"),
            row(
                "a mount from the same project",
                format!("POST /v2/shop/more/blobs/uploads/?mount={hello}&from=shop/web"),
                201,
                "",
            ),
            row(
                "a mount of what is not there",
                format!("POST /v2/shop/more/blobs/uploads/?mount={NOT_THERE}&from=shop/web"),
                202,
                "",
            ),
            row(
                "a mount from nowhere",
                format!("POST /v2/shop/more/blobs/uploads/?mount={NOT_THERE}&from=none/such"),
                202,
                "",
            ),
        ],
    )
    .await;

    let manifest = desk.image("alice", "shop/web", "hello").await;
    let put = desk.put("alice", "shop/web", "v1", &manifest).await;
    assert_eq!(put.status, 201);
    assert_eq!(put.header("location"), format!("/v2/shop/web/manifests/{}", digest(&manifest)));
    let typed = vec![("content-type", OCI.to_owned())];
    let lacking = String::from_utf8(manifest.clone()).unwrap().replace(&digest(&tar("hello")), NOT_THERE);
    let put = |reference: &str| format!("PUT /v2/shop/web/manifests/{reference}");
    walk(
        &desk,
        vec![
            ("by digest", put(&digest(&manifest)), typed.clone(), manifest.clone(), 201, ""),
            ("by another's digest", put(NOT_THERE), typed.clone(), manifest.clone(), 400, "DIGEST_INVALID"),
            ("a bad tag", put(".x"), typed.clone(), manifest.clone(), 400, "MANIFEST_INVALID"),
            ("no manifest", put("v2"), typed.clone(), b"hello".to_vec(), 400, "MANIFEST_INVALID"),
            (
                "another media type",
                put("v2"),
                vec![("content-type", INDEX.into())],
                manifest.clone(),
                400,
                "MANIFEST_INVALID",
            ),
            (
                "without what it names",
                put("v2"),
                typed.clone(),
                lacking.into_bytes(),
                404,
                "MANIFEST_BLOB_UNKNOWN",
            ),
            ("too large", put("v2"), typed, vec![b' '; (4 << 20) + 1], 413, "SIZE_INVALID"),
            row("none of them was tagged", "GET /v2/shop/web/manifests/v2", 404, "MANIFEST_UNKNOWN"),
        ],
    )
    .await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [{"mediaType": OCI,
        "digest": digest(&manifest), "size": manifest.len(),
        "platform": {"architecture": "amd64", "os": "linux"}}]});
    let index = index.to_string().into_bytes();
    let put = desk.put("alice", "shop/web", "all", &index).await;
    assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
    let got = desk.ask("rita", "GET /v2/shop/web/manifests/all", &[], b"").await;
    assert_eq!((got.body, got.headers["content-type"].to_str().unwrap()), (index, INDEX));
}

#[tokio::test]
async fn content_discovery() {
    let desk = Desk::new().await;
    let v1 = desk.push("alice", "shop/web", "v1", "hello").await;
    for tag in ["v2", "latest", "a"] {
        desk.push("alice", "shop/web", tag, "hello").await;
    }
    let list = |query: &str| format!("GET /v2/shop/web/tags/list{query}");
    for (query, want, link) in [
        ("", json!(["a", "latest", "v1", "v2"]), ""),
        ("?n=2", json!(["a", "latest"]), "</v2/shop/web/tags/list?n=2&last=latest>; rel=\"next\""),
        ("?n=2&last=latest", json!(["v1", "v2"]), ""),
        ("?n=0", json!([]), ""),
        ("?last=v1", json!(["v2"]), ""),
    ] {
        let answer = desk.ask("rita", &list(query), &[], b"").await;
        assert_eq!(answer.json(), json!({"name": "shop/web", "tags": want}), "{query}");
        assert_eq!(answer.header("link"), link, "{query}");
    }
    walk(
        &desk,
        vec![
            row("a page of no number", list("?n=x"), 400, "PAGINATION_NUMBER_INVALID"),
            row("of no repository", "GET /v2/shop/none/tags/list", 404, "NAME_UNKNOWN"),
        ],
    )
    .await;
    desk.push("alice", "shop/api", "v1", "hello").await;
    let catalog = desk.ask("rita", "GET /v2/_catalog?n=1", &[], b"").await;
    assert_eq!(catalog.json(), json!({"repositories": ["shop/api"]}));
    assert_eq!(catalog.header("link"), "</v2/_catalog?n=1&last=shop%2Fapi>; rel=\"next\"");

    // Referrers: a manifest that says something of another, also of one that is not there yet.
    let empty = desk.blob("alice", "shop/web", b"{}").await;
    let note = |kind: &str, subject: &str| {
        let part = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": empty, "size": 2});
        json!({"schemaVersion": 2, "mediaType": OCI, "artifactType": kind, "config": part, "layers": [part],
            "subject": {"mediaType": OCI, "digest": subject, "size": 7}, "annotations": {"by": kind}})
        .to_string()
        .into_bytes()
    };
    for (kind, subject) in [("text/a", v1.as_str()), ("text/b", &v1), ("text/a", NOT_THERE)] {
        let bytes = note(kind, subject);
        let put = desk.put("alice", "shop/web", &digest(&bytes), &bytes).await;
        assert_eq!(put.status, 201, "{}", String::from_utf8_lossy(&put.body));
        assert_eq!(put.header("oci-subject"), subject);
    }
    let kinds = |answer: &Answer| {
        assert_eq!((answer.status, answer.header("content-type")), (200, INDEX));
        let body = answer.json();
        assert_eq!((&body["schemaVersion"], &body["mediaType"]), (&json!(2), &json!(INDEX)));
        let lines = body["manifests"].as_array().unwrap().clone();
        let mut kinds: Vec<String> =
            lines.iter().map(|l| format!("{} {}", l["artifactType"], l["annotations"]["by"])).collect();
        kinds.sort();
        kinds
    };
    let of = |subject: &str, query: &str| format!("GET /v2/shop/web/referrers/{subject}{query}");
    let all = desk.ask("rita", &of(&v1, ""), &[], b"").await;
    assert_eq!(kinds(&all), ["\"text/a\" \"text/a\"", "\"text/b\" \"text/b\""]);
    let some = desk.ask("rita", &of(&v1, "?artifactType=text/b"), &[], b"").await;
    assert_eq!(kinds(&some), ["\"text/b\" \"text/b\""]);
    assert_eq!(some.header("oci-filters-applied"), "artifactType");
    assert_eq!(kinds(&desk.ask("rita", &of(NOT_THERE, ""), &[], b"").await).len(), 1);
    assert!(kinds(&desk.ask("rita", &of(&digest(b"nobody"), ""), &[], b"").await).is_empty());
    walk(&desk, vec![row("of no digest", of("v1", ""), 400, "DIGEST_INVALID")]).await;
}

#[tokio::test]
async fn content_management() {
    let desk = Desk::new().await;
    let v1 = desk.push("alice", "shop/web", "v1", "hello").await;
    desk.push("alice", "shop/web", "v2", "hello").await;
    let other = desk.push("alice", "shop/web", "v3", "other").await;
    let layer = digest(&tar("hello"));
    walk(
        &desk,
        vec![
            row("a tag", "DELETE /v2/shop/web/manifests/v2", 202, ""),
            row("it is gone", "GET /v2/shop/web/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            row("twice", "DELETE /v2/shop/web/manifests/v2", 404, "MANIFEST_UNKNOWN"),
            row("the last tag", "DELETE /v2/shop/web/manifests/v1", 202, ""),
            row("the manifest stays", format!("GET /v2/shop/web/manifests/{v1}"), 200, ""),
            row("the manifest", format!("DELETE /v2/shop/web/manifests/{v1}"), 202, ""),
            row("it is gone", format!("GET /v2/shop/web/manifests/{v1}"), 404, "MANIFEST_UNKNOWN"),
            row("twice", format!("DELETE /v2/shop/web/manifests/{v1}"), 404, "MANIFEST_UNKNOWN"),
            row("a manifest with a tag", format!("DELETE /v2/shop/web/manifests/{other}"), 202, ""),
            row("its tag went with it", "GET /v2/shop/web/manifests/v3", 404, "MANIFEST_UNKNOWN"),
            row("blobs go by themselves", format!("DELETE /v2/shop/web/blobs/{layer}"), 405, "UNSUPPORTED"),
            row("no such method", "POST /v2/shop/web/tags/list", 405, "UNSUPPORTED"),
        ],
    )
    .await;
    // What was pushed may be pushed again.
    assert_eq!(desk.push("alice", "shop/web", "v1", "hello").await, v1);
    let again = desk.ask("alice", "GET /v2/shop/web/tags/list", &[], b"").await;
    assert_eq!(again.json()["tags"], json!(["v1"]));
}
