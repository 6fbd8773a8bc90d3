//! `amphi region`: other controllers that images go to and come from.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{age, bytes, moment, or_dash, pairs, rows};
use amphi_api::replication::{Region, RegionChange, RegionCreate, RegionCredential, Secret};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub enum Command {
    /// Regions that are known.
    List,
    /// One region. Its token is not shown.
    Show { region: String },
    /// Make another controller known.
    Create {
        region: String,
        /// What AMPHI_URL is there.
        #[arg(long)]
        url: String,
        #[command(flatten)]
        secret: SecretFile,
        #[command(flatten)]
        line: Line,
    },
    /// Change a region; what is not named stays.
    Set {
        region: String,
        #[arg(long)]
        url: Option<String>,
        #[command(flatten)]
        secret: SecretFile,
        #[command(flatten)]
        line: Line,
    },
    /// Forget a region. What has gone there stays there.
    Delete { region: String },
}

/// What opens the door there: its own token, or an application credential.
#[derive(Args)]
pub struct SecretFile {
    /// Holds its API token and nothing else; '-': read from standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["credential", "secret_file"])]
    token_file: Option<PathBuf>,
    /// The id of an application credential there.
    #[arg(long, value_name = "ID", requires = "secret_file")]
    credential: Option<String>,
    /// Holds the credential's secret and nothing else; '-': read from standard input.
    #[arg(long, value_name = "FILE", requires = "credential")]
    secret_file: Option<PathBuf>,
}

impl SecretFile {
    fn read(self) -> Result<(Option<Secret>, Option<RegionCredential>), Failure> {
        let token = self.token_file.as_deref().map(token).transpose()?;
        let secret = self.secret_file.as_deref().map(self::token).transpose()?;
        Ok((token, self.credential.zip(secret).map(|(id, secret)| RegionCredential { id, secret })))
    }
}

#[derive(Args)]
pub struct Line {
    /// Certificates (PEM) to trust in place of the usual ones.
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// To it and from it, in KiB per second; 0: no limit.
    #[arg(long, value_name = "KIB")]
    rate: Option<u64>,
}

impl Line {
    fn read(self) -> Result<(Option<String>, Option<u64>), Failure> {
        let ca = self.ca_file.as_deref().map(text).transpose()?;
        Ok((ca, self.rate.map(|kib| kib.saturating_mul(1024))))
    }
}

fn text(path: &Path) -> Result<String, Failure> {
    let read = match path.as_os_str() == "-" {
        true => std::io::read_to_string(std::io::stdin()),
        false => std::fs::read_to_string(path),
    };
    read.map_err(|e| Failure::new(2, format!("{}: cannot be read: {e}", path.display())))
}

fn token(path: &Path) -> Result<Secret, Failure> {
    Ok(Secret(text(path)?.trim().to_owned()))
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List => session.list("regions", &client.regions().await?, |r| list(r, Timestamp::now())),
            Self::Show { region } => session.show(&client.region(&region).await?, detail),
            Self::Create { region, url, secret, line } => {
                let (token, credential) = secret.read()?;
                let (ca, bytes_per_second) = line.read()?;
                let create = RegionCreate { name: region, url, token, credential, ca, bytes_per_second };
                create.check()?;
                session.show(&client.create_region(&create).await?, detail)
            }
            Self::Set { region, url, secret, line } => {
                let (token, credential) = secret.read()?;
                let (ca, bytes_per_second) = line.read()?;
                let change = RegionChange { url, token, credential, ca, bytes_per_second };
                change.check()?;
                session.show(&client.change_region(&region, &change).await?, detail)
            }
            Self::Delete { region } => {
                client.delete_region(&region).await?;
                session.note(&format!("forgot region {region}; what has gone there stays there"))
            }
        }
    }
}

fn rate(region: &Region) -> Option<String> {
    region.bytes_per_second.map(|rate| format!("{}/s", bytes(rate)))
}

fn list(regions: &[Region], now: Timestamp) -> String {
    rows(
        &["NAME", "URL", "RATE", "AGE"],
        regions.iter().map(|region| {
            vec![region.name.clone(), region.url.clone(), or_dash(rate(region)), age(region.created_at, now)]
        }),
    )
}

fn detail(region: &Region) -> String {
    pairs(&[
        ("Name", region.name.clone()),
        ("Url", region.url.clone()),
        ("Trusts", if region.ca { "certificates of its own" } else { "the usual certificates" }.into()),
        ("Rate", or_dash(rate(region))),
        ("Created", moment(region.created_at, Timestamp::now())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_table() {
        let region = |name: &str, rate: Option<u64>| -> Region {
            let id = "00000000-0000-7000-8000-00000000000a";
            let json = json!({"id": id, "name": name, "url": "https://h:8774", "ca": false,
                "bytes_per_second": rate, "created_at": "1970-01-01T00:00:00Z"});
            serde_json::from_value(json).unwrap()
        };
        assert_eq!(
            list(&[region("north", Some(1 << 20)), region("s", None)], Timestamp::from_second(60).unwrap()),
            "\
NAME   URL             RATE     AGE
north  https://h:8774  1 MiB/s  60s
s      https://h:8774  -        60s
"
        );
    }
}
