//! What the members of a set share: kernel parameters, names, time. Owns its shape and its rules; refuses anything that
//! reaches beyond the set's own namespaces.

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use utoipa::ToSchema;

/// Most entries of `hosts`.
pub const HOSTS_MAX: usize = 256;
/// What a C library's resolver reads, and all that Docker's own asks (`maxExtDNS` of libnetwork).
pub const DNS_SERVERS_MAX: usize = 3;
/// What a C library's resolver reads (resolv.conf(5)).
pub const DNS_SEARCH_MAX: usize = 6;

/// What the set shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnchorSpec {
    /// Kernel parameters of the set's network and IPC namespaces, as `sysctl` spells them: `net.core.somaxconn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "DnsSpec::is_default")]
    pub dns: DnsSpec,
    /// Further lines of `/etc/hosts`: name to address. At most 256.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schema(value_type = BTreeMap<String, String>)]
    pub hosts: BTreeMap<String, IpAddr>,
    /// The local time of every member, by its name in the IANA database: `Europe/Berlin`. Default: the images' own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Size of the `/dev/shm` that the members share, in MiB: 1 to 1,048,576. Default: the engine's, 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 1048576)]
    pub shm_mib: Option<u64>,
}

/// How names are resolved in the set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DnsSpec {
    /// Asked in place of the networks' own servers. At most 3.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<String>, max_items = 3)]
    pub servers: Vec<IpAddr>,
    /// Domains that short names are looked for in. At most 6.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 6)]
    pub search: Vec<String>,
    /// As in resolv.conf(5): `ndots:2`. At most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 16)]
    pub options: Vec<String>,
}

impl DnsSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn check(&self) -> Result<(), FieldError> {
        let counts = [
            ("servers", self.servers.len(), DNS_SERVERS_MAX),
            ("search", self.search.len(), DNS_SEARCH_MAX),
            ("options", self.options.len(), 16),
        ];
        for (what, count, most) in counts {
            if count > most {
                return Err(FieldError::new(what, format!("at most {most}, has {count}")));
            }
        }
        for (at, address) in self.servers.iter().enumerate() {
            if address.is_unspecified() || address.is_multicast() {
                return Err(FieldError::new(format!("servers[{at}]"), "no host has this address"));
            }
        }
        for (at, domain) in self.search.iter().enumerate() {
            domain_name(&format!("search[{at}]"), domain)?;
        }
        for (at, option) in self.options.iter().enumerate() {
            let plain = option.chars().all(|c| c.is_ascii_alphanumeric() || "-:_".contains(c));
            if option.is_empty() || option.len() > 64 || !plain {
                return Err(FieldError::new(
                    format!("options[{at}]"),
                    "must be 1 to 64 of letters, digits, '-', '_' and ':', as in resolv.conf(5)",
                ));
            }
        }
        Ok(())
    }
}

impl AnchorSpec {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        for (key, value) in &self.sysctls {
            sysctl(&format!("sysctls.{key}"), key, value)?;
        }
        self.dns.check().map_err(|e| e.under("dns"))?;
        if self.hosts.len() > HOSTS_MAX {
            return Err(FieldError::new("hosts", format!("at most {HOSTS_MAX}, has {}", self.hosts.len())));
        }
        for name in self.hosts.keys() {
            domain_name(&format!("hosts.{name}"), name)?;
        }
        if let Some(zone) = &self.timezone {
            timezone("timezone", zone)?;
        }
        self.shm_mib.map_or(Ok(()), |size| validate::within("shm_mib", size, 1, 1 << 20, "MiB"))
    }
}

fn sysctl(field: &str, key: &str, value: &str) -> Result<(), FieldError> {
    let namespaced = key.starts_with("net.")
        || key.starts_with("kernel.msg")
        || key.starts_with("kernel.shm")
        || key.starts_with("fs.mqueue.")
        || key == "kernel.sem";
    let plain = key.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) && !key.contains("..");
    if !namespaced || !plain {
        return Err(FieldError::new(
            field,
            "only parameters of the set's own namespaces can be set: net.*, kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*",
        ));
    }
    if value.is_empty() || value.len() > 256 || value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(FieldError::new(field, "must have 1 to 256 characters, no control characters"));
    }
    Ok(())
}

/// Labels of letters, digits, `-` and `_`, joined by dots, at most 253 characters (RFC 1035; `_` as services use it).
fn domain_name(field: &str, name: &str) -> Result<(), FieldError> {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c))
    };
    if name.len() <= 253 && name.trim_end_matches('.').split('.').all(label) {
        return Ok(());
    }
    Err(FieldError::new(field, "must be a host or domain name, at most 253 characters"))
}

/// Only the shape: which zones there are is known by the host's own database.
fn timezone(field: &str, zone: &str) -> Result<(), FieldError> {
    let part = |part: &str| {
        part.chars().next().is_some_and(|c| c.is_ascii_alphabetic())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_+".contains(c))
    };
    if zone.len() <= 64 && zone.split('/').all(part) {
        return Ok(());
    }
    Err(FieldError::new(field, "must be a name of the IANA database, as 'Europe/Berlin' or 'UTC'"))
}
