//! The controller's settings, from one TOML file. An unknown key is refused by name: a misspelt setting that is quietly
//! left out is a setting that somebody believes in.

use crate::fence::{Fence, FenceConfig};
use crate::images::shelf::s3::S3Config;
use crate::mirror::MirrorConfig;
use crate::ops::BlobTerms;
use crate::scheduler::{CPU_OVERCOMMIT, MEMORY_OVERCOMMIT_PERCENT, Policy, SchedulerId};
use anyhow::{Context, ensure};
use jiff::SignedDuration;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Holds `store/`, `images/`, `ca/`, `admin-token` and `admin-password`.
    pub state_dir: PathBuf,
    /// The native face: plain HTTP. With `LISTEN_FDS=1` descriptor 3 is taken instead.
    pub listen: SocketAddr,
    /// The hosts' face: mutual TLS.
    pub hosts_listen: SocketAddr,
    /// The hosts' face as join tokens carry it.
    pub hosts_url: String,
    /// OVN's northbound database: `unix:PATH` or `tcp:HOST:PORT`.
    pub ovn_nb: String,
    /// OVN's southbound database, as hosts reach it.
    pub ovn_sb: String,
    /// A file that holds the API token. Default: `state_dir/admin-token`, made at the first start.
    #[serde(default)]
    pub admin_token: Option<PathBuf>,
    /// A file that holds the password of the user `admin`, read at the first start only. Default:
    /// `state_dir/admin-password`, made then.
    #[serde(default)]
    pub admin_password_file: Option<PathBuf>,
    /// Where clients reach this face, in links and in the catalogue: `https://cloud.example/amphi`, for a proxy that sends
    /// no `X-Forwarded-…` or adds a path. Default: what each request says.
    #[serde(default)]
    pub public_url: Option<String>,
    /// vCPUs promised per CPU of a host.
    #[serde(default = "cpu_overcommit")]
    pub cpu_overcommit: u32,
    /// Memory promised, in percent of what a host has.
    #[serde(default = "memory_overcommit")]
    pub memory_overcommit_percent: u32,
    /// The scheduler of whoever names none: `spread` or `pack`. Default: `spread`.
    #[serde(default)]
    pub scheduler: Option<String>,
    /// What switches hosts off from outside, by host name. None: a host's own lease is what counts.
    #[serde(default)]
    pub fence: BTreeMap<String, FenceConfig>,
    /// How long a deleted volume stays in the recycle bin, in hours.
    #[serde(default = "recycle_hours")]
    pub recycle_hours: u32,
    #[serde(default)]
    pub failover: FailoverConfig,
    #[serde(default)]
    pub images: ImagesConfig,
    /// What this cloud calls itself to the regions that its images go to. Default: `hosts_url`'s host.
    #[serde(default)]
    pub region: Option<String>,
    /// Outside registries whose images are to be had as `mirror/NAME/…`.
    #[serde(default)]
    pub mirror: BTreeMap<String, MirrorConfig>,
}

/// `[failover]`.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct FailoverConfig {
    /// Hosts keep leases, and instances of one whose lease has ended start elsewhere by their policy. It takes three hosts
    /// or witnesses; with fewer nobody fences himself, whatever this says.
    pub automatic: bool,
}

impl Default for FailoverConfig {
    fn default() -> Self {
        Self { automatic: true }
    }
}

/// `[images]`: where blobs lie, and how long those stay that nothing names.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ImagesConfig {
    /// A blob that a project has pushed or asked for stays for it, in seconds: longer than any push takes, since what it has
    /// brought first must be there when it ends.
    pub push_seconds: u32,
    /// A blob that nothing names goes after so long, in seconds.
    pub grace_seconds: u32,
    /// An upload to which nothing comes goes after so long, in seconds.
    pub upload_seconds: u32,
    /// Between two looks at all blobs, in seconds.
    pub sweep_seconds: u32,
    /// A bucket for the blobs in place of `state_dir/images/blobs`.
    pub s3: Option<S3Config>,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        let day = 24 * 3600;
        Self { push_seconds: day, grace_seconds: 600, upload_seconds: day, sweep_seconds: 60, s3: None }
    }
}

impl ImagesConfig {
    fn check(&self) -> anyhow::Result<()> {
        let all = [
            ("push_seconds", self.push_seconds),
            ("grace_seconds", self.grace_seconds),
            ("upload_seconds", self.upload_seconds),
            ("sweep_seconds", self.sweep_seconds),
        ];
        for (name, seconds) in all {
            ensure!((1..=30 * 24 * 3600).contains(&seconds), "images.{name} must be 1 to 2592000");
        }
        Ok(())
    }

    pub fn terms(&self) -> BlobTerms {
        let (usual, lent) = (BlobTerms::default(), SignedDuration::from_secs(self.push_seconds.into()));
        BlobTerms {
            lent,
            brief: usual.brief.min(lent),
            grace: Duration::from_secs(self.grace_seconds.into()),
            upload: Duration::from_secs(self.upload_seconds.into()),
        }
    }

    pub fn sweep(&self) -> Duration {
        Duration::from_secs(self.sweep_seconds.into())
    }
}

fn cpu_overcommit() -> u32 {
    CPU_OVERCOMMIT
}

fn memory_overcommit() -> u32 {
    MEMORY_OVERCOMMIT_PERCENT
}

/// Seven days.
fn recycle_hours() -> u32 {
    7 * 24
}

impl Config {
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let config: Self = toml::from_str(text)?;
        ensure!((1..=256).contains(&config.cpu_overcommit), "cpu_overcommit must be 1 to 256");
        ensure!(
            (50..=400).contains(&config.memory_overcommit_percent),
            "memory_overcommit_percent must be 50 to 400"
        );
        config.scheduler_id()?;
        config.images.check()?;
        if let Some(region) = &config.region {
            amphi_api::validate::label("region", region).map_err(|e| anyhow::anyhow!("{e}"))?;
        }
        ensure!(config.hosts_url.starts_with("https://"), "hosts_url must begin with https://");
        if let Some(url) = &config.public_url {
            let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:[]/~".contains(&b);
            let sound = rest.is_some_and(|r| !r.is_empty() && !r.starts_with('/') && r.bytes().all(plain));
            ensure!(
                sound && !url.ends_with('/'),
                "public_url must be http(s)://HOST[/PATH] without a slash at its end"
            );
        }
        Ok(config)
    }

    fn scheduler_id(&self) -> anyhow::Result<SchedulerId> {
        let named = self.scheduler.as_deref().map(SchedulerId::named).transpose();
        Ok(named.map_err(|why| anyhow::anyhow!("scheduler: {why}"))?.unwrap_or_default())
    }

    /// The fence devices, ready to be asked.
    pub fn fences(&self) -> anyhow::Result<BTreeMap<String, Fence>> {
        let open = |(host, config): (&String, &FenceConfig)| {
            let fence = config.open().with_context(|| format!("in [fence.{host}]"))?;
            Ok((host.clone(), fence))
        };
        self.fence.iter().map(open).collect()
    }

    pub fn policy(&self) -> Policy {
        Policy {
            // Checked when the settings were read.
            scheduler: self.scheduler_id().unwrap_or_default(),
            cpu_overcommit: self.cpu_overcommit,
            memory_overcommit_percent: self.memory_overcommit_percent,
        }
    }

    /// What this cloud calls itself.
    pub fn region(&self) -> String {
        let host = || self.hosts_names().pop().unwrap_or_default();
        self.region.clone().unwrap_or_else(host)
    }

    /// The names that the hosts' face answers to: its address, and the host part of its URL.
    pub fn hosts_names(&self) -> Vec<String> {
        let mut names = vec![self.hosts_listen.ip().to_string()];
        let authority = self.hosts_url.trim_start_matches("https://").split('/').next().unwrap_or_default();
        let host = match authority.strip_prefix('[') {
            Some(v6) => v6.split(']').next().unwrap_or_default(),
            None => authority.split(':').next().unwrap_or_default(),
        };
        if !host.is_empty() && !names.iter().any(|n| n == host) {
            names.push(host.to_owned());
        }
        names
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        state_dir = "/tmp/c"
        listen = "127.0.0.1:8774"
        hosts_listen = "10.99.0.1:7443"
        hosts_url = "https://cloud.example:7443"
        ovn_nb = "tcp:10.99.0.1:6641"
        ovn_sb = "tcp:10.99.0.1:6642"
    "#;

    #[test]
    fn settings() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.hosts_names(), ["10.99.0.1", "cloud.example"]);
        assert_eq!(config.recycle_hours, 168);
        assert_eq!(config.region(), "cloud.example");
        assert_eq!(Config::parse(&format!("region = \"north\"\n{GOOD}")).unwrap().region(), "north");
        assert!(config.failover.automatic);
        assert!(
            !Config::parse(&format!("{GOOD}\n[failover]\nautomatic = false")).unwrap().failover.automatic
        );
        assert_eq!(config.images.terms().grace, BlobTerms::default().grace);
        let images = Config::parse(&format!("{GOOD}\n[images]\ngrace_seconds = 5")).unwrap().images;
        assert_eq!(images.terms().grace.as_secs(), 5);
        let bucket = "[images.s3]\nendpoint = \"https://s3\"\nbucket = \"b\"\ncredentials_file = \"/c\"";
        let images = Config::parse(&format!("{GOOD}\n{bucket}")).unwrap().images;
        assert_eq!(images.s3.unwrap().region, "us-east-1");
        for (bad, word) in [
            (format!("{GOOD}\n{bucket}\nsecret = \"x\""), "secret"),
            (format!("{GOOD}\n[images]\nsweep_seconds = 0"), "images.sweep_seconds"),
            (format!("region = \"a b\"\n{GOOD}"), "region"),
            (format!("{GOOD}\ncolour = 1"), "colour"),
            (GOOD.replace("ovn_sb", "ovn_sp"), "ovn_sp"),
            (GOOD.replace("https://", "http://"), "hosts_url"),
            (format!("{GOOD}\ncpu_overcommit = 0"), "cpu_overcommit"),
            (format!("{GOOD}\nscheduler = \"gold\""), "spread, pack"),
        ] {
            let error = format!("{:#}", Config::parse(&bad).unwrap_err());
            assert!(error.contains(word), "{error} does not name {word}");
        }
    }
}
