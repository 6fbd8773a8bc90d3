//! How a member or a VM is asked whether it works. Owns the shape of a probe and its rules; refuses to know how it is
//! carried out.

use super::member::arguments;
use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use utoipa::ToSchema;

/// What a member is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Probes {
    /// Asked first and until it holds once; the others begin after it. One that never holds starts the member again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// Whether it can take work. The next index waits for it (`next_when`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// Whether it is worth keeping: one that fails starts the member again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

/// One question; exactly one of `exec`, `http` and `tcp`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Runs inside the member; exit code 0 holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 512)]
    pub exec: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// Not asked before the member has run that many seconds: 0 to 3,600. Default 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schema(minimum = 0, maximum = 3600)]
    pub initial_delay_s: u32,
    /// Seconds between two questions: 1 to 3,600. Default 10.
    #[serde(default = "period")]
    #[schema(minimum = 1, maximum = 3600)]
    pub period_s: u32,
    /// No answer after that many seconds is a failure: 1 to 600. Default 1.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 600)]
    pub timeout_s: u32,
    /// That many in a row and it holds no more: 1 to 1,000. Default 3.
    #[serde(default = "failures")]
    #[schema(minimum = 1, maximum = 1000)]
    pub failures: u32,
    /// That many in a row and it holds: 1 to 1,000. Default 1.
    #[serde(default = "one")]
    #[schema(minimum = 1, maximum = 1000)]
    pub successes: u32,
}

/// A GET whose answer's status is 200 to 399.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Default `/`.
    #[serde(default = "slash")]
    pub path: String,
    /// Asked from within the set's network. Default 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

/// A connection that is accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    #[schema(minimum = 1, maximum = 65535)]
    pub port: u16,
    /// Asked from within the set's network. Default 127.0.0.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub address: Option<IpAddr>,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            exec: None,
            http: None,
            tcp: None,
            initial_delay_s: 0,
            period_s: period(),
            timeout_s: 1,
            failures: failures(),
            successes: 1,
        }
    }
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

fn one() -> u32 {
    1
}

fn period() -> u32 {
    10
}

fn failures() -> u32 {
    3
}

fn slash() -> String {
    "/".to_owned()
}

impl Probes {
    /// Whether something says that it can take work.
    pub fn tell_ready(&self) -> bool {
        self.startup.is_some() || self.readiness.is_some()
    }

    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn all(&self) -> impl Iterator<Item = (&'static str, &Probe)> {
        let all = [("startup", &self.startup), ("readiness", &self.readiness), ("liveness", &self.liveness)];
        all.into_iter().filter_map(|(name, probe)| Some((name, probe.as_ref()?)))
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        self.all().try_for_each(|(name, probe)| probe.check().map_err(|e| e.under(name)))
    }

    /// A VM is asked from outside, at its own address.
    pub(crate) fn check_of_vm(&self) -> Result<(), FieldError> {
        self.check()?;
        for (name, probe) in self.all() {
            let refused = [
                ("exec", probe.exec.is_some(), "nothing inside a VM takes commands; ask by 'http' or 'tcp'"),
                (
                    "http.address",
                    probe.http.as_ref().is_some_and(|http| http.address.is_some()),
                    "a VM is asked at its first IPv4 address",
                ),
                (
                    "tcp.address",
                    probe.tcp.as_ref().is_some_and(|tcp| tcp.address.is_some()),
                    "a VM is asked at its first IPv4 address",
                ),
            ];
            if let Some((field, _, why)) = refused.into_iter().find(|(_, is, _)| *is) {
                return Err(FieldError::new(format!("{name}.{field}"), why));
            }
        }
        Ok(())
    }

    /// The TCP ports that are asked.
    pub fn tcp_ports(&self) -> BTreeSet<u16> {
        let port = |probe: &Probe| {
            probe.http.as_ref().map(|http| http.port).or(probe.tcp.as_ref().map(|tcp| tcp.port))
        };
        self.all().filter_map(|(_, probe)| port(probe)).collect()
    }
}

impl Probe {
    fn check(&self) -> Result<(), FieldError> {
        let kinds = [self.exec.is_some(), self.http.is_some(), self.tcp.is_some()];
        if kinds.into_iter().filter(|kind| *kind).count() != 1 {
            return Err(FieldError::new("exec", "exactly one of 'exec', 'http' and 'tcp' has to be given"));
        }
        if let Some(command) = &self.exec {
            arguments("exec", command, true)?;
        }
        if let Some(http) = &self.http {
            validate::within("http.port", http.port.into(), 1, 65_535, "")?;
            let plain = http.path.chars().all(|c| c.is_ascii_graphic());
            if !http.path.starts_with('/') || http.path.len() > 2048 || !plain {
                return Err(FieldError::new(
                    "http.path",
                    "must begin with '/' and have at most 2048 characters, printable ASCII without spaces",
                ));
            }
        }
        if let Some(tcp) = &self.tcp {
            validate::within("tcp.port", tcp.port.into(), 1, 65_535, "")?;
        }
        for (field, value, least, most, unit) in [
            ("initial_delay_s", self.initial_delay_s, 0, 3600, "seconds"),
            ("period_s", self.period_s, 1, 3600, "seconds"),
            ("timeout_s", self.timeout_s, 1, 600, "seconds"),
            ("failures", self.failures, 1, 1000, ""),
            ("successes", self.successes, 1, 1000, ""),
        ] {
            validate::within(field, value.into(), least, most, unit)?;
        }
        Ok(())
    }
}
