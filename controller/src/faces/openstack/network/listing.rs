//! Lists as neutron gives them: filtered by any attribute, sorted, in pages with links, cut down to fields.

use super::sight::{Seen, find, visible};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::page::{Page, next_url, sort_keys};
use crate::faces::openstack::query::{Query, boolean};
use crate::faces::openstack::words;
use crate::model::network::Noted;
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

/// A thing as it is shown.
pub type Shown = Map<String, Value>;

/// Largest page that is handed out.
const PAGE_MAX: usize = 10_000;

/// Parameters that are no filters.
const RESERVED: [&str; 7] =
    ["fields", "limit", "marker", "page_reverse", "sort_key", "sort_dir", "validate_filters"];

/// What every resource shows beside its own matter.
pub fn standard<R: Noted>(row: &Row<R>, created: Timestamp, mut own: Value) -> Shown {
    let notes = row.notes();
    let Some(map) = own.as_object_mut() else { return Shown::new() };
    map.insert("description".into(), json!(notes.description));
    map.insert("tags".into(), json!(notes.tags));
    map.insert("created_at".into(), json!(words::time(created)));
    map.insert("updated_at".into(), json!(words::time(notes.updated_at.unwrap_or(created))));
    map.insert("revision_number".into(), json!(row.version.saturating_sub(1)));
    std::mem::take(map)
}

/// `project_id` and `tenant_id`; nobody's is empty.
pub fn owner(shown: &mut Shown, project: ProjectId) {
    let text = if project.0.is_nil() { String::new() } else { words::hex(project.0) };
    shown.insert("project_id".into(), json!(text));
    shown.insert("tenant_id".into(), json!(text));
}

/// Every record of a kind that the caller sees, as it is shown.
pub fn all<'a, R: Seen>(
    view: &'a View,
    caller: &'a Caller,
    show: impl Fn(&View, &Caller, &Row<R>) -> Shown + 'a,
) -> Vec<Shown> {
    let rows = R::table(view).iter().filter(|row| visible(view, caller, &*row.record));
    rows.map(|row| show(view, caller, row)).collect()
}

/// A resource whose list and whose rows are asked for in the common way.
pub trait Resource: Seen {
    /// What a body calls one: `network`.
    const ONE: &'static str;
    /// What a body calls many: `networks`.
    const MANY: &'static str;
    /// Of the list, from the root.
    const PATH: &'static str;

    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown;
}

pub async fn list<R: Resource>(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    let shown = all(&state.ops.world().read(), &caller, R::shown);
    answer(R::MANY, R::PATH, &base, &query, shown)
}

pub async fn show<R: Resource>(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path(id): Path<String>,
) -> Result<Response, Refusal> {
    let view = state.ops.world().read();
    let row = find::<R>(&view, &caller, &id)?;
    Ok(one(R::ONE, StatusCode::OK, &query, R::shown(&view, &caller, row)))
}

/// The answer to a list.
pub fn answer(
    many: &str,
    path: &str,
    base: &Base,
    query: &Query,
    all: Vec<Shown>,
) -> Result<Response, Refusal> {
    let mut kept: Vec<Shown> = all.into_iter().filter(|shown| fits(shown, query)).collect();
    let keys = sort_keys(query)?;
    for (key, _) in &keys {
        if kept.first().is_some_and(|one| !one.contains_key(key)) {
            return Err(Refusal::bad(format!("'{key}' is an invalid attribute for sort key")));
        }
    }
    if !keys.is_empty() {
        kept.sort_by(|a, b| {
            let one = |(key, direction): &(String, crate::faces::openstack::page::Direction)| {
                direction.apply(compare(a.get(key), b.get(key)))
            };
            keys.iter().map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
        });
    }
    let backwards = query.flag("page_reverse")?.unwrap_or(false);
    if backwards {
        kept.reverse();
    }
    let id = |shown: &Shown| shown.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let page = Page::of(query, PAGE_MAX)?;
    let limited = page.limit.filter(|limit| *limit > 0).is_some();
    let page = Page { limit: page.limit.filter(|limit| *limit > 0), ..page };
    let mut slice = page.cut(kept, PAGE_MAX, id)?;
    if backwards {
        slice.items.reverse();
    }
    let mut links = Vec::new();
    let mut link = |rel: &str, reverse: bool, marker: &Shown| {
        let mut turned = query.clone();
        turned.0.retain(|(name, _)| name != "page_reverse");
        if reverse {
            turned.0.push(("page_reverse".into(), "True".into()));
        }
        links.push(json!({"rel": rel, "href": next_url(&base.0, path, &turned, &id(marker))}));
    };
    if let (true, Some(first), Some(last)) = (limited, slice.items.first(), slice.items.last()) {
        if if backwards { page.marker.is_some() } else { slice.more } {
            link("next", false, last);
        }
        if if backwards { slice.more } else { page.marker.is_some() } {
            link("previous", true, first);
        }
    }
    let items: Vec<Shown> = slice.items.into_iter().map(|shown| fields(shown, query)).collect();
    let mut body = json!({ many: items });
    if !links.is_empty() {
        body[format!("{many}_links")] = json!(links);
    }
    Ok(Json(body).into_response())
}

/// One thing, cut down to the fields that are asked for.
pub fn one(name: &str, status: StatusCode, query: &Query, shown: Shown) -> Response {
    (status, Json(json!({ name: fields(shown, query) }))).into_response()
}

/// New things: one, or as many as were asked for.
pub fn made(one: &str, many: &str, bulk: bool, mut shown: Vec<Shown>) -> Response {
    let body = if bulk { json!({ many: shown }) } else { json!({ one: shown.pop() }) };
    (StatusCode::CREATED, Json(body)).into_response()
}

fn fields(shown: Shown, query: &Query) -> Shown {
    let wanted: Vec<&str> = query.all("fields").filter(|field| !field.is_empty()).collect();
    if wanted.is_empty() {
        return shown;
    }
    shown.into_iter().filter(|(key, _)| wanted.contains(&key.as_str())).collect()
}

/// Whether a thing passes the filters. A parameter that is no attribute of it filters nothing; several values of one
/// parameter are alternatives.
fn fits(shown: &Shown, query: &Query) -> bool {
    let mut names: Vec<&str> = query.0.iter().map(|(name, _)| name.as_str()).collect();
    names.dedup();
    names.into_iter().filter(|name| !RESERVED.contains(name)).all(|name| {
        let values: Vec<&str> = query.all(name).collect();
        match name {
            "tags" | "tags-any" | "not-tags" | "not-tags-any" => tagged(shown, name, &values),
            "fixed_ips" => values.iter().all(|value| has_ip(shown, value)) || any_ip(shown, &values),
            _ => match shown.get(name) {
                None => true,
                Some(value) => values.iter().any(|wanted| is(name, value, wanted)),
            },
        }
    })
}

fn tagged(shown: &Shown, name: &str, values: &[&str]) -> bool {
    let tags = shown.get("tags").and_then(Value::as_array);
    let has = |tag: &str| tags.is_some_and(|tags| tags.iter().any(|t| t == tag));
    let mut wanted = values.iter().flat_map(|value| value.split(','));
    match name {
        "tags" => wanted.all(has),
        "tags-any" => wanted.any(has),
        "not-tags" => !wanted.all(has),
        _ => !wanted.any(has),
    }
}

/// `ip_address=10.0.0.1`, `subnet_id=…`, `ip_address_substr=10.0.`.
fn has_ip(shown: &Shown, filter: &str) -> bool {
    let Some((key, wanted)) = filter.split_once('=') else { return false };
    let ips = shown.get("fixed_ips").and_then(Value::as_array);
    ips.is_some_and(|ips| {
        ips.iter().any(|ip| match key {
            "ip_address_substr" => ip["ip_address"].as_str().is_some_and(|a| a.contains(wanted)),
            "ip_address" | "subnet_id" => is(key, &ip[key], wanted),
            _ => false,
        })
    })
}

/// Several addresses, or several subnets, are alternatives too.
fn any_ip(shown: &Shown, values: &[&str]) -> bool {
    let key = |value: &&&str| value.split('=').next().unwrap_or_default().to_owned();
    let keys: std::collections::BTreeSet<String> = values.iter().map(|v| key(&v)).collect();
    keys.iter().all(|k| values.iter().filter(|v| key(v) == *k).any(|v| has_ip(shown, v)))
}

fn is(name: &str, value: &Value, wanted: &str) -> bool {
    match value {
        Value::Null => wanted.is_empty() || wanted == "null" || wanted == "None",
        Value::Bool(flag) => boolean(wanted) == Some(*flag),
        Value::Number(number) => number.to_string() == wanted.trim(),
        Value::String(text) if name == "project_id" || name == "tenant_id" => {
            words::id(text).is_some_and(|id| words::id(wanted) == Some(id)) || text == wanted
        }
        Value::String(text) if name.ends_with("ip_address") || name.ends_with("_ip") => {
            let address = |text: &str| text.parse::<std::net::IpAddr>().ok();
            text == wanted || address(text).is_some_and(|a| address(wanted) == Some(a))
        }
        Value::String(text) => text == wanted,
        Value::Array(list) => list.iter().any(|one| is(name, one, wanted)),
        Value::Object(_) => false,
    }
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (Some(Value::Number(a)), Some(Value::Number(b))) => {
            a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)
        }
        (Some(Value::Bool(a)), Some(Value::Bool(b))) => a.cmp(b),
        (a, b) => a.map(ToString::to_string).cmp(&b.map(ToString::to_string)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(change: Value) -> Shown {
        let mut map = json!({
            "id": "a", "name": "one", "shared": false, "mtu": 1442, "port_id": null, "tags": ["red", "blue"],
            "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.5"}],
            "project_id": "0198a1b2c3d47e5f8a9b0c1d2e3f4a5b", "router:external": true
        });
        for (key, value) in change.as_object().unwrap() {
            map[key] = value.clone();
        }
        map.as_object().unwrap().clone()
    }

    #[test]
    fn filters() {
        let table = [
            ("", true),
            ("name=one", true),
            ("name=two", false),
            ("name=two&name=one", true),
            ("shared=False&mtu=1442", true),
            ("router:external=True", true),
            ("router:external=0", false),
            ("unknown=x", true),
            ("port_id=", true),
            ("port_id=b", false),
            ("tags=red,blue", true),
            ("tags=red,green", false),
            ("tags-any=green,red", true),
            ("not-tags=red,blue", false),
            ("not-tags-any=green", true),
            ("fixed_ips=ip_address%3D10.0.0.5", true),
            ("fixed_ips=ip_address%3D10.0.0.6", false),
            ("fixed_ips=ip_address%3D10.0.0.6&fixed_ips=ip_address%3D10.0.0.5", true),
            ("fixed_ips=ip_address_substr%3D10.0", true),
            ("project_id=0198a1b2-c3d4-7e5f-8a9b-0c1d2e3f4a5b", true),
            ("fields=id&limit=3", true),
        ];
        for (query, want) in table {
            assert_eq!(fits(&shown(json!({})), &Query::parse(query)), want, "{query}");
        }
    }

    async fn page(query: &str) -> Value {
        let all = ["a", "b", "c", "d"].map(|id| shown(json!({"id": id}))).to_vec();
        let base = Base("http://c".into());
        let response = answer("things", "/p", &base, &Query::parse(query), all).unwrap();
        let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&bytes).unwrap()
    }

    #[tokio::test]
    async fn pages_have_links_to_both_sides() {
        let ids = |body: &Value| -> Vec<String> {
            body["things"].as_array().unwrap().iter().map(|t| t["id"].as_str().unwrap().to_owned()).collect()
        };
        let first = page("limit=2&fields=id").await;
        assert_eq!(first["things"][0], json!({"id": "a"}));
        assert_eq!(
            first["things_links"],
            json!([{"rel": "next", "href": "http://c/p?limit=2&fields=id&marker=b"}])
        );
        let last = page("limit=2&marker=b").await;
        assert_eq!(ids(&last), ["c", "d"]);
        assert_eq!(
            last["things_links"],
            json!([{"rel": "previous", "href": "http://c/p?limit=2&page_reverse=True&marker=c"}])
        );
        let back = page("limit=2&page_reverse=True&marker=c").await;
        assert_eq!(ids(&back), ["a", "b"]);
        assert_eq!(ids(&page("sort_key=id&sort_dir=desc").await), ["d", "c", "b", "a"]);
        assert!(page("").await.get("things_links").is_none());
    }
}
