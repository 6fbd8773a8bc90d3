//! Which resource of the registry a path means. Names of repositories have slashes, so a path is read from its end.

/// What a path below `/v2` means. Digests, references and ids are as they stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Base,
    Token,
    Catalog,
    Tags { name: String },
    Manifest { name: String, reference: String },
    Blob { name: String, digest: String },
    Uploads { name: String },
    Upload { name: String, id: String },
    Referrers { name: String, digest: String },
}

/// A path with its `%XX` read; none: it is no text.
pub fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let pair = [rest.next()?, rest.next()?];
        bytes.extend(hex::decode(pair).ok()?);
    }
    String::from_utf8(bytes).ok()
}

pub fn read(path: &str) -> Option<Target> {
    let below = path.strip_prefix("/v2")?;
    let below = match below.strip_prefix('/') {
        Some(below) => below,
        None if below.is_empty() => below,
        None => return None,
    };
    match below {
        "" => return Some(Target::Base),
        "token" => return Some(Target::Token),
        "_catalog" => return Some(Target::Catalog),
        _ => {}
    }
    if let Some(name) = below.strip_suffix("/tags/list") {
        return Some(Target::Tags { name: name.to_owned() });
    }
    let uploads = below.strip_suffix('/').unwrap_or(below);
    if let Some(name) = uploads.strip_suffix("/blobs/uploads") {
        return Some(Target::Uploads { name: name.to_owned() });
    }
    let (head, last) = below.rsplit_once('/')?;
    let (head, last) = (head.to_owned(), last.to_owned());
    let cut = |suffix: &str| head.strip_suffix(suffix).filter(|name| !name.is_empty()).map(str::to_owned);
    if let Some(name) = cut("/blobs/uploads") {
        return Some(Target::Upload { name, id: last });
    }
    if let Some(name) = cut("/blobs") {
        return Some(Target::Blob { name, digest: last });
    }
    if let Some(name) = cut("/manifests") {
        return Some(Target::Manifest { name, reference: last });
    }
    cut("/referrers").map(|name| Target::Referrers { name, digest: last })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let name = || "shop/web".to_owned();
        for (path, want) in [
            ("/v2", Some(Target::Base)),
            ("/v2/", Some(Target::Base)),
            ("/v2/token", Some(Target::Token)),
            ("/v2/_catalog", Some(Target::Catalog)),
            ("/v2/shop/web/tags/list", Some(Target::Tags { name: name() })),
            ("/v2/shop/web/manifests/v1", Some(Target::Manifest { name: name(), reference: "v1".into() })),
            ("/v2/shop/web/blobs/sha256:x", Some(Target::Blob { name: name(), digest: "sha256:x".into() })),
            ("/v2/shop/web/blobs/uploads/", Some(Target::Uploads { name: name() })),
            ("/v2/shop/web/blobs/uploads", Some(Target::Uploads { name: name() })),
            ("/v2/shop/web/blobs/uploads/7", Some(Target::Upload { name: name(), id: "7".into() })),
            ("/v2/shop/web/referrers/d", Some(Target::Referrers { name: name(), digest: "d".into() })),
            (
                "/v2/a/manifests/manifests/v1",
                Some(Target::Manifest { name: "a/manifests".into(), reference: "v1".into() }),
            ),
            ("/v2/shop/web", None),
            ("/v2/shop", None),
            ("/v3/shop/web/tags/list", None),
            ("/v2x", None),
            ("/v2//manifests/v1", None),
        ] {
            assert_eq!(read(path), want, "{path}");
        }
        assert_eq!(decoded("/v2/a/blobs/sha256%3Aab").as_deref(), Some("/v2/a/blobs/sha256:ab"));
        assert_eq!(decoded("/%ff"), None);
        assert_eq!(decoded("/%4"), None);
    }
}
