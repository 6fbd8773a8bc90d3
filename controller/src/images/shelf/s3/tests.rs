//! Settings, and a store that nobody has started; what a real one does is told in integration/tests/s3.rs.

use super::*;
use std::fs;

fn config(file: &Path, port: u16) -> S3Config {
    S3Config {
        endpoint: format!("http://127.0.0.1:{port}"),
        bucket: "b".into(),
        region: "us-east-1".into(),
        prefix: "/amphi/".into(),
        credentials_file: file.to_owned(),
        virtual_hosted: false,
        ca_file: None,
    }
}

fn ready() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[test]
fn settings_that_cannot_be_are_refused_without_the_secret() {
    ready();
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = |change: &dyn Fn(&mut S3Config)| {
        let mut config = config(file.path(), 1);
        change(&mut config);
        S3::open(&config).map(|s3| s3.key(Digest([7; 32]), "p")).map_err(|e| format!("{e:#}"))
    };
    fs::write(file.path(), "access_key_id = \"id\"\nsecret_access_key = \"hush").unwrap();
    let told = open(&|_| ()).unwrap_err();
    assert!(told.contains("must have access_key_id") && !told.contains("hush"), "{told}");
    fs::write(file.path(), "access_key_id = \"id\"\nsecret_access_key = \"hush\"\n").unwrap();
    let digest = "07".repeat(32);
    assert_eq!(open(&|_| ()), Ok(format!("amphi/07/{digest}.p")));
    assert_eq!(open(&|c| c.prefix = String::new()), Ok(format!("07/{digest}.p")));
    for (change, word) in [
        (&(|c: &mut S3Config| c.endpoint = "127.0.0.1".into()) as &dyn Fn(&mut S3Config), "https://"),
        (&|c| c.endpoint = "https://id:hush@s3".into(), "no credentials"),
        (&|c| c.bucket = "a/b".into(), "bucket"),
        (&|c| c.prefix = "a/../b".into(), "prefix"),
        (&|c| c.virtual_hosted = true, "address"),
        (&|c| c.credentials_file = "/no/such".into(), "credentials_file: cannot read /no/such"),
        (&|c| c.ca_file = Some("/no/ca".into()), "ca_file: cannot read /no/ca"),
    ] {
        let told = open(change).unwrap_err();
        assert!(told.contains(word) && !told.contains("hush"), "{told}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_is_said_to_be() {
    ready();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "access_key_id = \"id\"\nsecret_access_key = \"hush\"\n").unwrap();
    // Nobody listens at a port that was free just now.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let s3 = S3::open(&config(file.path(), port)).unwrap();
    let (size, read) = (s3.size(Digest([7; 32]), ""), s3.read(Digest([7; 32]), "", 0));
    let (keep, remove) = (s3.keep(file.path(), 1, Digest([7; 32]), ""), s3.remove(Digest([7; 32]), ""));
    let (size, read, keep, remove, list) = tokio::join!(size, read, keep, remove, s3.list());
    for error in [
        size.unwrap_err(),
        read.map(|_| ()).unwrap_err(),
        keep.unwrap_err(),
        remove.unwrap_err(),
        list.unwrap_err(),
    ] {
        let text = error.to_string();
        assert!(matches!(error, BlobError::Away { .. }), "{text}");
        assert!(text.contains("b at http://127.0.0.1") && text.contains("tried 5 times"), "{text}");
        assert!(!text.contains("hush") && !text.contains("X-Amz"), "{text}");
    }
}
