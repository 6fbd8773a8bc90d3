//! Which figures go where: one TOML file, read again when it changes. Owns its form and its rules; a file that cannot be
//! used changes nothing, and the error names the key.

use crate::instance::figures::Figure;
use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

/// The whole file. Without one, nothing is measured.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Between two rounds, seconds, 1 to 3,600. Default 10.
    pub interval_seconds: u64,
    pub sinks: Vec<SinkSettings>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { interval_seconds: interval(), sinks: Vec::new() }
    }
}

fn interval() -> u64 {
    10
}

/// The file before its sinks are looked at.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default = "interval")]
    interval_seconds: u64,
    #[serde(default)]
    sink: Vec<toml::Table>,
}

/// One `[[sink]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SinkSettings {
    pub common: Common,
    pub to: To,
    /// The file's `interval_seconds`.
    pub step: u64,
}

/// What every kind of sink may say.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Common {
    /// For logs. Default: its kind and place.
    #[serde(default)]
    pub name: String,
    /// Figures that go there, by name; `*` stands for any text. Default: all.
    #[serde(default)]
    pub figures: Vec<String>,
    /// And those that do not.
    #[serde(default)]
    pub except: Vec<String>,
    /// Only instances of these projects, by id. Default: all.
    #[serde(default)]
    pub projects: BTreeSet<uuid::Uuid>,
    /// Said with every figure beside its own labels: `{ site = "north" }`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// The keys of [`Common`].
const COMMON: &[&str] = &["name", "figures", "except", "projects", "labels"];

/// What takes them.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum To {
    /// Serves `GET /metrics` to whoever comes; keep the address inside.
    Prometheus {
        #[serde(deserialize_with = "listen")]
        listen: SocketAddr,
    },
    /// A Zabbix server's or proxy's trapper port (10051).
    Zabbix {
        /// `host:port`.
        server: String,
        /// The Zabbix host that an instance's figures belong to. Default `{name}`.
        #[serde(default = "by_name")]
        host: String,
        /// The item's key. Default `amphi.{figure}[{member},{device}]`.
        #[serde(default = "zabbix_key")]
        key: String,
        /// Key of a low-level discovery rule that is sent which figures there are, so that Zabbix makes their items.
        /// Default: none is sent.
        #[serde(default)]
        discovery: Option<String>,
    },
    /// Open-Falcon's agent or transfer: `http://127.0.0.1:1988/v1/push`.
    Falcon {
        url: String,
        /// Default `{name}`.
        #[serde(default = "by_name")]
        endpoint: String,
    },
    Statsd {
        /// `host:port`, UDP.
        server: String,
        #[serde(default = "statsd_prefix")]
        prefix: String,
        /// Labels as tags behind `#`, as DogStatsD and Telegraf take them; else they are parts of the name.
        #[serde(default)]
        tags: bool,
    },
    /// An OpenTelemetry collector's HTTP port: `http://127.0.0.1:4318/v1/metrics`.
    Otlp {
        url: String,
        /// A file with a token that is sent as `Authorization: Bearer`.
        bearer_file: Option<PathBuf>,
    },
}

fn listen<'de, D: Deserializer<'de>>(from: D) -> Result<SocketAddr, D::Error> {
    let text = String::deserialize(from)?;
    let error = |_| serde::de::Error::custom(format!("listen: must be ADDRESS:PORT, is '{text}'"));
    text.parse().map_err(error)
}
fn by_name() -> String {
    "{name}".into()
}
fn zabbix_key() -> String {
    "amphi.{figure}[{member},{device}]".into()
}
fn statsd_prefix() -> String {
    "amphi".into()
}

/// The words that templates may have.
const PLACES: &[&str] = &["name", "instance", "project", "kind", "member", "device", "figure", "host"];

impl Settings {
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text)?;
        let seconds = file.interval_seconds;
        ensure!((1..=3600).contains(&seconds), "interval_seconds: must be 1 to 3600, is {seconds}");
        let mut names = BTreeSet::new();
        let mut listens = BTreeSet::new();
        let mut sinks = Vec::new();
        for (at, table) in file.sink.into_iter().enumerate() {
            let sink = SinkSettings::read(table, at, seconds).with_context(|| format!("sink[{at}]"))?;
            let name = &sink.common.name;
            ensure!(names.insert(name.clone()), "sink[{at}].name: '{name}' is taken");
            if let To::Prometheus { listen } = &sink.to {
                ensure!(listens.insert(*listen), "sink[{at}].listen: {listen} is taken by another sink");
            }
            sinks.push(sink);
        }
        Ok(Self { interval_seconds: seconds, sinks })
    }
}

impl SinkSettings {
    /// Its kind's keys are told from the common ones here, so that a key that neither knows is refused.
    fn read(table: toml::Table, at: usize, step: u64) -> anyhow::Result<Self> {
        let (common, own): (toml::Table, toml::Table) =
            table.into_iter().partition(|(key, _)| COMMON.contains(&key.as_str()));
        let (mut common, to) = (Common::deserialize(common)?, To::deserialize(own)?);
        if common.name.is_empty() {
            common.name = format!("{}-{at}", to.word());
        }
        let sink = Self { common, to, step };
        sink.check()?;
        Ok(sink)
    }

    fn check(&self) -> anyhow::Result<()> {
        for (key, patterns) in [("figures", &self.common.figures), ("except", &self.common.except)] {
            for pattern in patterns {
                let known = Figure::ALL.iter().any(|figure| matches(pattern, figure.name()));
                ensure!(known, "{key}: no figure is called '{pattern}'; docs/monitoring.md lists them");
            }
        }
        for label in self.common.labels.keys() {
            let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
            let begins = label.bytes().next().is_some_and(|b| !b.is_ascii_digit());
            ensure!(plain && begins, "labels: '{label}' must be letters, digits and '_', no digit first");
            ensure!(!super::sample::LABELS.contains(&label.as_str()), "labels: '{label}' is Amphi's own");
        }
        match &self.to {
            To::Zabbix { server, host, key, .. } => {
                address("server", server)?;
                template("host", host)?;
                template("key", key)
            }
            To::Falcon { url, endpoint } => {
                web("url", url)?;
                template("endpoint", endpoint)
            }
            To::Statsd { server, prefix, .. } => {
                address("server", server)?;
                let plain = prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
                ensure!(plain, "prefix: may have letters, digits, '.', '_' and '-'");
                Ok(())
            }
            To::Otlp { url, .. } => web("url", url),
            To::Prometheus { .. } => Ok(()),
        }
    }

    /// Whether a figure of an instance of this project goes here.
    pub fn takes(&self, figure: Figure, project: uuid::Uuid) -> bool {
        let any = |patterns: &[String]| patterns.iter().any(|p| matches(p, figure.name()));
        let Common { figures, except, projects, .. } = &self.common;
        (figures.is_empty() || any(figures))
            && !any(except)
            && (projects.is_empty() || projects.contains(&project))
    }
}

impl To {
    pub fn word(&self) -> &'static str {
        match self {
            Self::Prometheus { .. } => "prometheus",
            Self::Zabbix { .. } => "zabbix",
            Self::Falcon { .. } => "falcon",
            Self::Statsd { .. } => "statsd",
            Self::Otlp { .. } => "otlp",
        }
    }
}

fn address(field: &str, text: &str) -> anyhow::Result<()> {
    let port = text.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
    ensure!(port.is_some_and(|port| port.parse::<u16>().is_ok()), "{field}: must be host:port, is '{text}'");
    Ok(())
}

fn web(field: &str, text: &str) -> anyhow::Result<()> {
    let url = reqwest::Url::parse(text).with_context(|| format!("{field}: '{text}'"))?;
    ensure!(matches!(url.scheme(), "http" | "https"), "{field}: must begin with http:// or https://");
    Ok(())
}

fn template(field: &str, text: &str) -> anyhow::Result<()> {
    ensure!(!text.is_empty(), "{field}: must not be empty");
    for part in text.split('{').skip(1) {
        let word = part.split_once('}').map(|(word, _)| word);
        match word {
            Some(word) if PLACES.contains(&word) => {}
            _ => bail!("{field}: '{{' must be followed by one of {} and '}}'", PLACES.join(", ")),
        }
    }
    Ok(())
}

/// `*` stands for any text, also for none.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((before, rest)) => text.strip_prefix(before).is_some_and(|tail| {
            (0..=tail.len()).any(|at| tail.is_char_boundary(at) && matches(rest, &tail[at..]))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_refusal() {
        for (text, words) in [
            ("interval_seconds = 0", "interval_seconds: must be 1 to 3600"),
            ("intervall_seconds = 1", "intervall_seconds"),
            ("[[sink]]\nkind = 'carbon'", "carbon"),
            ("[[sink]]\nkind = 'prometheus'\nlisten = 'here'", "listen"),
            (
                "[[sink]]\nkind = 'prometheus'\nlisten = '[::1]:1'\nfigures = ['cpu']",
                "sink[0]: figures: no figure",
            ),
            (
                "[[sink]]\nkind = 'prometheus'\nlisten = '[::1]:1'\nlabels = { member = 'x' }",
                "labels: 'member'",
            ),
            ("[[sink]]\nkind = 'prometheus'\nlisten = '[::1]:1'\nlabels = { '1x' = 'x' }", "labels: '1x'"),
            ("[[sink]]\nkind = 'zabbix'\nserver = 'zbx'", "server: must be host:port"),
            ("[[sink]]\nkind = 'zabbix'\nserver = 'zbx:1'\nhost = '{nmae}'", "host: '{'"),
            ("[[sink]]\nkind = 'zabbix'\nserver = 'zbx:1'\nkey = ''", "key: must not be empty"),
            ("[[sink]]\nkind = 'falcon'\nurl = 'x'", "url"),
            ("[[sink]]\nkind = 'otlp'\nurl = 'ftp://x'", "url: must begin"),
            ("[[sink]]\nkind = 'otlp'\nurl = 'http://x'\nurll = 'y'", "urll"),
            ("[[sink]]\nkind = 'otlp'\nurl = 'http://x'\nprojects = ['mine']", "sink[0]"),
            ("[[sink]]\nkind = 'statsd'\nserver = 'x:1'\nprefix = 'a b'", "prefix"),
            ("[[sink]]\nkind = 'otlp'", "url"),
            (
                "[[sink]]\nkind = 'statsd'\nserver = 'x:1'\nname='a'\n[[sink]]\nkind = 'statsd'\nserver = 'x:1'\nname='a'",
                "sink[1].name: 'a' is taken",
            ),
        ] {
            let error = format!("{:#}", Settings::parse(text).expect_err(text));
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn figures_and_projects_are_chosen() {
        let project = uuid::Uuid::from_u128(7);
        let text = format!(
            "[[sink]]\nkind = 'statsd'\nserver = 'x:1'\nfigures = ['cpu_*', 'memory_*bytes']\nexcept = ['*cache*']\n\
             projects = ['{project}']"
        );
        let settings = Settings::parse(&text).expect("settings");
        let sink = &settings.sinks[0];
        assert_eq!((settings.interval_seconds, sink.common.name.as_str()), (10, "statsd-0"));
        for (figure, of, takes) in [
            (Figure::Cpu, project, true),
            (Figure::Memory, project, true),
            (Figure::MemoryCache, project, false),
            (Figure::Up, project, false),
            (Figure::Cpu, uuid::Uuid::nil(), false),
        ] {
            assert_eq!(sink.takes(figure, of), takes, "{figure:?} of {of}");
        }
    }
}
