//! Renders what a member's description adds to its container: environment, limits of processes, capabilities, tmpfs,
//! output kept. Pure. Refuses to know the set around it.

use super::render::{pairs, signed};
use amphi_api::set::{LogSpec, MemberSpec};
use bollard::models::{HostConfigLogConfig, ResourcesUlimits};
use std::collections::HashMap;

/// Where C libraries look for a zone's rules by its name.
pub const ZONES: &str = "/usr/share/zoneinfo";

/// The member's own words, and the set's time zone where it has none of its own.
pub fn env(member: &MemberSpec, timezone: Option<&str>) -> Vec<String> {
    let zone = timezone.filter(|_| !member.env.contains_key("TZ")).map(|zone| format!("TZ={zone}"));
    member.env.iter().map(|(key, value)| format!("{key}={value}")).chain(zone).collect()
}

/// Docker takes signals with `SIG` before them, and real-time ones only so.
pub fn signal(name: &str) -> String {
    format!("SIG{}", name.strip_prefix("SIG").unwrap_or(name))
}

pub fn ulimits(member: &MemberSpec) -> Option<Vec<ResourcesUlimits>> {
    let all = member.ulimits.iter().map(|(name, limit)| ResourcesUlimits {
        name: Some(name.clone()),
        soft: Some(limit.soft),
        hard: Some(limit.hard),
    });
    Some(all.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

pub fn capabilities(names: &[String]) -> Option<Vec<String>> {
    let plain = names.iter().map(|name| name.strip_prefix("CAP_").unwrap_or(name).to_owned());
    Some(plain.collect()).filter(|all: &Vec<_>| !all.is_empty())
}

pub fn tmpfs(member: &MemberSpec) -> Option<HashMap<String, String>> {
    let all = member.tmpfs.iter().map(|one| {
        let exec = if one.exec { "exec" } else { "noexec" };
        let options = format!("rw,nosuid,nodev,{exec},size={}m,mode={}", one.size_mib, one.mode);
        (one.path.clone(), options)
    });
    Some(all.collect()).filter(|all: &HashMap<_, _>| !all.is_empty())
}

/// Bounded, so that a talkative member does not fill the host's disk; json-file can be tailed.
pub fn log_config(log: &LogSpec) -> HostConfigLogConfig {
    let config = pairs([
        ("max-size", format!("{}m", log.max_size_mib)),
        ("max-file", signed(log.max_files.into()).to_string()),
    ]);
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(config) }
}
