//! Compute v2.1 as nova speaks it, below `/compute`: one file per resource. An answer has exactly the fields of the
//! microversion that was asked for: clients' schemas refuse any other.

mod actions;
mod aggregates;
mod availability_zones;
mod extensions;
mod flavors;
mod hypervisors;
mod instance_actions;
mod interfaces;
mod keypairs;
mod limits;
mod metadata;
mod migrations;
mod quota_sets;
mod remote_consoles;
mod server_create;
mod server_filter;
mod server_groups;
mod server_tags;
mod server_view;
mod servers;
#[cfg(test)]
mod servers_tests;
mod services;
#[cfg(test)]
mod tests;
mod usage;
mod versions;
mod volume_attachments;

use super::Service;
use super::answers::Refusal;
use super::gate::Base;
use super::page::next_url;
use super::query::Query;
use super::routes::Routes;
use super::words;
use crate::ops::View;
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Most entries of one page: nova's `max_limit`.
pub(super) const PAGE_MAX: usize = 1000;

pub fn routes() -> Routes {
    [
        versions::routes,
        extensions::routes,
        flavors::routes,
        keypairs::routes,
        server_groups::routes,
        aggregates::routes,
        availability_zones::routes,
        hypervisors::routes,
        services::routes,
        limits::routes,
        quota_sets::routes,
        usage::routes,
        servers::routes,
        actions::routes,
        metadata::routes,
        server_tags::routes,
        interfaces::routes,
        volume_attachments::routes,
        instance_actions::routes,
        migrations::routes,
        remote_consoles::routes,
    ]
    .into_iter()
    .fold(Routes::new(Service::Compute), |routes, add| add(routes))
    .rewrite(without_project)
}

/// `/v2.1/PROJECT/servers` is `/v2.1/servers`: older clients name the project first.
fn without_project(path: &str) -> Option<String> {
    let rest = path.strip_prefix("/v2.1/")?;
    let (project, rest) = rest.split_once('/').unwrap_or((rest, ""));
    words::id(project).map(|_| format!("/v2.1/{rest}"))
}

/// `self` and `bookmark`, as nova's things have them.
pub(super) fn links(base: &Base, collection: &str, id: &str) -> Value {
    let id = escaped(id);
    json!([
        {"rel": "self", "href": format!("{}/compute/v2.1/{collection}/{id}", base.0)},
        {"rel": "bookmark", "href": format!("{}/compute/{collection}/{id}", base.0)},
    ])
}

/// Ids and names that are not UUIDs may hold spaces.
fn escaped(id: &str) -> Cow<'_, str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.~:@".contains(&b);
    if id.bytes().all(plain) {
        return id.into();
    }
    id.bytes().map(|b| if plain(b) { char::from(b).to_string() } else { format!("%{b:02X}") }).collect()
}

/// `<resource>_links` of a page with more behind it.
pub(super) fn next_link(base: &Base, path: &str, query: &Query, marker: &str) -> Value {
    json!([{"rel": "next", "href": next_url(&base.0, &format!("/compute/v2.1{path}"), query, marker)}])
}

/// A body's object below its only key, in which only these keys may be.
pub(super) fn only(body: Value, envelope: &str, known: &[&str]) -> Result<Map<String, Value>, Refusal> {
    let Value::Object(mut outer) = body else {
        return Err(Refusal::bad(format!("Invalid input: an object with the key '{envelope}' is required")));
    };
    let part = outer.remove(envelope);
    if let Some(key) = outer.keys().next() {
        return Err(unexpected(key));
    }
    match part {
        Some(Value::Object(map)) => {
            refuse_unknown(&map, known)?;
            Ok(map)
        }
        Some(_) => Err(Refusal::field(envelope, "it must be an object")),
        None => Err(Refusal::bad(format!("Invalid input: '{envelope}' is a required property"))),
    }
}

pub(super) fn refuse_unknown(map: &Map<String, Value>, known: &[&str]) -> Result<(), Refusal> {
    match map.keys().find(|key| !known.contains(&key.as_str())) {
        Some(key) => Err(unexpected(key)),
        None => Ok(()),
    }
}

fn unexpected(key: &str) -> Refusal {
    Refusal::bad(format!("Additional properties are not allowed ('{key}' was unexpected)"))
}

/// A text that must be there.
pub(super) fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<&'a str, Refusal> {
    match map.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(Refusal::field(key, "it must be a string")),
        None => Err(Refusal::bad(format!("Invalid input: '{key}' is a required property"))),
    }
}

/// A text that may be absent or null.
pub(super) fn optional_text<'a>(map: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, Refusal> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(_) => text(map, key).map(Some),
    }
}

/// An integer of at least zero, or its digits as text; none where it is absent.
pub(super) fn figure(map: &Map<String, Value>, key: &str) -> Result<Option<u64>, Refusal> {
    let found = match map.get(key) {
        None => return Ok(None),
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(digits)) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
    };
    found.map(Some).ok_or_else(|| Refusal::field(key, "it must be an integer of at least 0"))
}

/// A boolean in any spelling; none where it is absent.
pub(super) fn flag(map: &Map<String, Value>, key: &str) -> Result<Option<bool>, Refusal> {
    let found = match map.get(key) {
        None => return Ok(None),
        Some(Value::Bool(flag)) => Some(*flag),
        Some(Value::String(text)) => super::query::boolean(text),
        Some(Value::Number(number)) => super::query::boolean(&number.to_string()),
        Some(_) => None,
    };
    found.map(Some).ok_or_else(|| Refusal::field(key, "it must be a boolean"))
}

/// The project that a path or body names; 400 where there is none, as nova has it after asking keystone.
pub(super) fn known_project(view: &View, caller: &Caller, text: &str) -> Result<ProjectId, Refusal> {
    let id = words::id(text).map(ProjectId);
    id.filter(|id| caller.project == Some(*id) || view.identity.projects.get(*id).is_some())
        .ok_or_else(|| Refusal::bad(format!("Project ID {text} is not a valid project.")))
}

/// The project that a path names, if the caller may look at it.
pub(super) fn seen_project(caller: &Caller, text: &str) -> Result<ProjectId, Refusal> {
    let id = words::id(text).map(ProjectId);
    id.filter(|id| caller.may_see(*id))
        .ok_or_else(|| Refusal::forbidden("Policy doesn't allow this to be performed on another project."))
}
