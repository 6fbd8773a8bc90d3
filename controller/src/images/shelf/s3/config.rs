//! `[images.s3]`: which bucket, and the file with the credentials. Refuses to show them: neither settings nor errors hold any.

use anyhow::{Context, ensure};
use serde::Deserialize;
use std::path::PathBuf;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// `https://HOST[:PORT]`.
    pub endpoint: String,
    pub bucket: String,
    #[serde(default = "region")]
    pub region: String,
    /// What stands before all names in the bucket.
    #[serde(default)]
    pub prefix: String,
    /// A TOML file with `access_key_id` and `secret_access_key`.
    pub credentials_file: PathBuf,
    /// The bucket is a part of the host's name, and not of the path.
    #[serde(default)]
    pub virtual_hosted: bool,
    /// Certificates in PEM that the endpoint's may be signed by, beside those of the machine.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

fn region() -> String {
    "us-east-1".into()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Credentials {
    access_key_id: String,
    secret_access_key: String,
    #[serde(default)]
    session_token: Option<String>,
}

impl S3Config {
    pub(super) fn bucket(&self) -> anyhow::Result<rusty_s3::Bucket> {
        let Self { endpoint, bucket, .. } = self;
        ensure!(
            endpoint.starts_with("http://") || endpoint.starts_with("https://"),
            "endpoint must begin with https:// (or http:// where nobody listens in)"
        );
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_');
        ensure!(
            (1..=255).contains(&bucket.len()) && bucket.bytes().all(|b| plain(b.to_ascii_lowercase())),
            "bucket must have letters, digits, -, . and _ only"
        );
        ensure!(
            self.prefix.bytes().all(|b| b == b'/' || plain(b.to_ascii_lowercase()))
                && self.prefix.split('/').all(|part| !matches!(part, "." | "..")),
            "prefix must have letters, digits, -, ., _ and / only"
        );
        let style = match self.virtual_hosted {
            true => rusty_s3::UrlStyle::VirtualHost,
            false => rusty_s3::UrlStyle::Path,
        };
        let url: reqwest::Url = endpoint.parse().context("endpoint")?;
        ensure!(url.username().is_empty() && url.password().is_none(), "endpoint must hold no credentials");
        rusty_s3::Bucket::new(url, style, bucket.clone(), self.region.clone())
            .map_err(|e| anyhow::anyhow!("endpoint and bucket make no address: {e}"))
    }

    pub(super) fn credentials(&self) -> anyhow::Result<rusty_s3::Credentials> {
        let path = self.credentials_file.display();
        let text = std::fs::read_to_string(&self.credentials_file)
            .with_context(|| format!("credentials_file: cannot read {path}"))?;
        // What a parser says of a line may hold the line.
        let read: Credentials = toml::from_str(&text).map_err(|_| {
            anyhow::anyhow!("{path} must have access_key_id and secret_access_key, each a string, in TOML")
        })?;
        Ok(match read.session_token {
            Some(token) => {
                rusty_s3::Credentials::new_with_token(read.access_key_id, read.secret_access_key, token)
            }
            None => rusty_s3::Credentials::new(read.access_key_id, read.secret_access_key),
        })
    }

    pub(super) fn client(&self) -> anyhow::Result<reqwest::Client> {
        let mut client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(super::call::CONNECT)
            .read_timeout(super::call::STALL);
        if let Some(path) = &self.ca_file {
            let pem =
                std::fs::read(path).with_context(|| format!("ca_file: cannot read {}", path.display()))?;
            client = client.add_root_certificate(reqwest::Certificate::from_pem(&pem).context("ca_file")?);
        }
        Ok(client.build()?)
    }
}
