//! Which volumes or snapshots a list holds, in which order, and which slice of it. Pure.

use super::path;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::microversion::Microversion;
use crate::faces::openstack::page::{Direction, Page, next_url, sort_keys};
use crate::faces::openstack::query::{Query, boolean};
use crate::faces::openstack::words::{self, parse_time};
use crate::ops::identity::Caller;
use amphi_api::ProjectId;
use serde_json::{Map, Value, json};
use std::cmp::Ordering;

/// cinder's `osapi_max_limit`.
const LIMIT_MAX: usize = 1000;

/// Parameters that are no filters.
const OTHERS: [&str; 10] = [
    "limit",
    "marker",
    "offset",
    "sort",
    "sort_key",
    "sort_dir",
    "all_tenants",
    "with_count",
    "project_id",
    "tenant_id",
];

/// What may be filtered and sorted by, of one kind of thing.
pub struct Kind {
    pub noun: &'static str,
    pub filters: &'static [&'static str],
    pub sorts: &'static [&'static str],
}

pub const VOLUME: Kind = Kind {
    noun: "volume",
    filters: &[
        "id",
        "name",
        "status",
        "size",
        "metadata",
        "bootable",
        "migration_status",
        "availability_zone",
        "group_id",
        "consistencygroup_id",
        "volume_type",
        "volume_type_id",
        "user_id",
        "host",
        "description",
        "multiattach",
        "glance_metadata",
        "image_metadata",
        "snapshot_id",
        "source_volid",
        "replication_status",
        "created_at",
        "updated_at",
    ],
    sorts: &[
        "id",
        "name",
        "status",
        "size",
        "availability_zone",
        "bootable",
        "created_at",
        "updated_at",
        "volume_type",
        "host",
    ],
};

pub const SNAPSHOT: Kind = Kind {
    noun: "snapshot",
    filters: &[
        "id",
        "name",
        "status",
        "volume_id",
        "metadata",
        "availability_zone",
        "user_id",
        "description",
        "size",
        "volume_size",
        "created_at",
        "updated_at",
        "consumes_quota",
        "host",
    ],
    sorts: &["id", "name", "status", "volume_id", "size", "created_at", "updated_at"],
};

/// Whose things a list holds: the caller's project's; of an admin who asks for it, all or another's.
pub fn whose(caller: &Caller, query: &Query) -> Result<Option<ProjectId>, Refusal> {
    let all = query.one("all_tenants").is_some_and(|text| text.is_empty() || boolean(text) != Some(false));
    if !caller.is_admin() || !all {
        return Ok(Some(caller.project()?));
    }
    let named = query.one("project_id").or(query.one("tenant_id"));
    // A project that nobody has has nothing.
    Ok(named.map(|text| ProjectId(words::id(text).unwrap_or_default())))
}

/// Keeps of the shown things (each with all its fields, and `host` where filters need it) those that are asked for, sorts
/// them and cuts the page: the slice, the links, the number of all that fit.
pub fn select(
    kind: &Kind,
    mut rows: Vec<Map<String, Value>>,
    query: &Query,
    version: Microversion,
) -> Result<Selected, Refusal> {
    for (name, value) in &query.0 {
        if OTHERS.contains(&name.as_str()) || name.is_empty() {
            continue;
        }
        // From 3.34: `name~` is a part of the name.
        let (plain, part) = match name.strip_suffix('~') {
            Some(plain) if version.from(34) => (plain, true),
            _ => (name.as_str(), false),
        };
        let plain = match plain {
            "display_name" => "name",
            "display_description" => "description",
            "volume_size" => "size",
            "glance_metadata" | "image_metadata" => "volume_image_metadata",
            plain => plain,
        };
        if !kind.filters.contains(&plain) && plain != "volume_image_metadata" {
            if version.from(31) {
                return Err(Refusal::bad(format!("Invalid filters {plain} are found in query options.")));
            }
            continue;
        }
        if matches!(plain, "metadata" | "volume_image_metadata") {
            let pairs = pairs(value).ok_or_else(|| Refusal::field(plain, "must be a dictionary of text"))?;
            rows.retain(|row| {
                let found = row.get(plain).and_then(Value::as_object);
                pairs.iter().all(|(k, v)| {
                    found.and_then(|found| found.get(k)).and_then(Value::as_str) == Some(v.as_str())
                })
            });
        } else if matches!(plain, "created_at" | "updated_at") {
            let fits = time_test(plain, value)?;
            rows.retain(|row| row.get(plain).and_then(Value::as_str).and_then(parse_time).is_some_and(&fits));
        } else {
            let wanted = value.trim_matches('"');
            rows.retain(|row| fits(row.get(plain).unwrap_or(&Value::Null), wanted, part));
        }
    }
    let count = rows.len();
    sort(kind, &mut rows, query)?;
    let page = Page::of(query, LIMIT_MAX)?;
    let offset = usize::try_from(query.number("offset")?.unwrap_or(0)).unwrap_or(usize::MAX);
    if let Some(marker) = &page.marker
        && !rows.iter().any(|row| row.get("id").and_then(Value::as_str) == Some(marker))
    {
        return Err(Refusal::not_found(kind.noun, marker));
    }
    let id = |row: &Map<String, Value>| row.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
    let wide = Page { limit: None, marker: page.marker };
    let rows: Vec<_> = wide.cut(rows, usize::MAX, id)?.items.into_iter().skip(offset).collect();
    let limit = page.limit.unwrap_or(LIMIT_MAX);
    let rows: Vec<_> = rows.into_iter().take(limit).collect();
    // As cinder has it: a full page has a next one, which may be empty.
    let next = (limit > 0 && rows.len() == limit).then(|| rows.last().map(id)).flatten();
    Ok(Selected { rows, next, count })
}

pub struct Selected {
    pub rows: Vec<Map<String, Value>>,
    /// The marker of the next page.
    pub next: Option<String>,
    pub count: usize,
}

impl Selected {
    /// `{"volumes": […], "volumes_links": […], "count": n}`.
    pub fn answer(
        self,
        noun: &str,
        rest: &str,
        base: &Base,
        caller: &Caller,
        query: &Query,
        version: Microversion,
    ) -> Result<Value, Refusal> {
        let mut answer = json!({ noun: self.rows });
        if let Some(marker) = self.next {
            let href = next_url(&base.0, &path(caller, rest), query, &marker);
            answer[format!("{noun}_links")] = json!([{"rel": "next", "href": href}]);
        }
        if version.from(45) && query.flag("with_count")?.unwrap_or(false) {
            answer["count"] = json!(self.count);
        }
        Ok(answer)
    }
}

fn fits(found: &Value, wanted: &str, part: bool) -> bool {
    match found {
        Value::String(text) if part => text.contains(wanted),
        Value::String(text) => {
            text == wanted
                || (matches!(text.as_str(), "true" | "false")
                    && boolean(wanted).map(|b| b.to_string()).as_ref() == Some(text))
        }
        Value::Null => matches!(wanted, "" | "None" | "null"),
        Value::Bool(value) => boolean(wanted) == Some(*value),
        Value::Number(number) => number.to_string() == wanted,
        Value::Array(_) | Value::Object(_) => false,
    }
}

type TimeTest = Box<dyn Fn(jiff::Timestamp) -> bool>;

/// `gt:2026-11-21T00:00:00,lt:…` (from 3.60); without an operator: equal.
fn time_test(name: &str, value: &str) -> Result<TimeTest, Refusal> {
    let mut tests = Vec::new();
    for part in value.split(',') {
        let (operator, text) = match part.split_once(':') {
            Some((operator, text)) if ["gt", "gte", "eq", "neq", "lt", "lte"].contains(&operator) => {
                (operator.to_owned(), text)
            }
            _ => ("eq".to_owned(), part),
        };
        let than = parse_time(text).ok_or_else(|| Refusal::field(name, format!("'{text}' is not a time")))?;
        tests.push((operator, than));
    }
    Ok(Box::new(move |at| {
        tests.iter().all(|(operator, than)| match operator.as_str() {
            "gt" => at > *than,
            "gte" => at >= *than,
            "lt" => at < *than,
            "lte" => at <= *than,
            "neq" => at != *than,
            _ => at == *than,
        })
    }))
}

fn sort(kind: &Kind, rows: &mut [Map<String, Value>], query: &Query) -> Result<(), Refusal> {
    if query.has("sort") && (query.has("sort_key") || query.has("sort_dir")) {
        return Err(Refusal::bad(
            "The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with the 'sort' parameter.",
        ));
    }
    let mut keys = sort_keys(query)?;
    if keys.is_empty() {
        keys = vec![("created_at".into(), Direction::Descending), ("id".into(), Direction::Descending)];
        if query.one("sort_dir") == Some("asc") {
            keys.iter_mut().for_each(|(_, direction)| *direction = Direction::Ascending);
        }
    } else if !query.has("sort") && !query.has("sort_dir") {
        keys.iter_mut().for_each(|(_, direction)| *direction = Direction::Descending);
    }
    for (key, _) in &mut keys {
        if key == "display_name" {
            *key = "name".into();
        }
        if !kind.sorts.contains(&key.as_str()) {
            return Err(Refusal::bad(format!(
                "Invalid sort key: {key}; supported are {}",
                kind.sorts.join(", ")
            )));
        }
    }
    rows.sort_by(|a, b| {
        let by_keys = keys.iter().map(|(key, direction)| direction.apply(compare(a.get(key), b.get(key))));
        by_keys.fold(Ordering::Equal, Ordering::then)
    });
    Ok(())
}

fn compare(a: Option<&Value>, b: Option<&Value>) -> Ordering {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a.as_i64().cmp(&b.as_i64()),
        (Some(Value::String(a)), Some(Value::String(b))) => a.cmp(b),
        (a, b) => a.is_some_and(|v| !v.is_null()).cmp(&b.is_some_and(|v| !v.is_null())),
    }
}

/// A dictionary of text, as Python or JSON writes one: `{'key': 'value'}`.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    if let Ok(Value::Object(map)) = serde_json::from_str(text) {
        return map.into_iter().map(|(k, v)| Some((k, v.as_str()?.to_owned()))).collect();
    }
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let (key, after) = literal(rest)?;
        let (value, after) = literal(after.trim_start().strip_prefix(':')?.trim_start())?;
        found.push((key, value));
        rest = match after.trim_start().strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.trim().is_empty() => "",
            None => return None,
        };
    }
    Some(found)
}

/// A string literal of Python at the text's begin, and what follows.
fn literal(text: &str) -> Option<(String, &str)> {
    let text = text.strip_prefix('u').unwrap_or(text);
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => value.push(chars.next()?.1),
            c if c == quote => return Some((value, &text[at + 1..])),
            c => value.push(c),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dictionaries() {
        let one = |k: &str, v: &str| Some(vec![(k.to_owned(), v.to_owned())]);
        assert_eq!(pairs("{'Type': 'work'}"), one("Type", "work"));
        assert_eq!(pairs(r#"{"Type": "wo'rk"}"#), one("Type", "wo'rk"));
        assert_eq!(pairs(r#"{u'a': "b\"c"}"#), one("a", "b\"c"));
        assert_eq!(pairs("{}"), Some(vec![]));
        assert_eq!(pairs("{'a': 'b', 'c': 'd'}").map(|p| p.len()), Some(2));
        for bad in ["", "a", "{'a'}", "{'a': }", "{'a': 'b'", "{'a': 'b' 'c': 'd'}", "{'a': 1}"] {
            assert_eq!(pairs(bad), None, "{bad}");
        }
    }

    fn rows(names: &[&str]) -> Vec<Map<String, Value>> {
        let row = |(n, name): (usize, &&str)| {
            let row = json!({
                "id": n.to_string(), "name": name, "status": "available", "size": n,
                "metadata": {"n": n.to_string()}, "created_at": format!("2026-11-21T00:00:0{n}.000000"),
            });
            row.as_object().unwrap().clone()
        };
        names.iter().enumerate().map(row).collect()
    }

    #[test]
    fn filters_orders_and_pages() {
        let ask = |query: &str, minor| {
            let found =
                select(&VOLUME, rows(&["b", "a", "c"]), &Query::parse(query), Microversion::new(3, minor));
            found.map(|s| {
                let names: Vec<_> = s.rows.iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect();
                (names.join(""), s.next, s.count)
            })
        };
        let is = |names: &str, next: Option<&str>, count| Ok((names.into(), next.map(str::to_owned), count));
        assert_eq!(ask("", 0), is("cab", None, 3));
        assert_eq!(ask("sort=name:asc", 0), is("abc", None, 3));
        assert_eq!(ask("sort_key=size&sort_dir=asc", 0), is("bac", None, 3));
        assert_eq!(ask("sort_key=size", 0), is("cab", None, 3));
        assert_eq!(ask("limit=2", 0), is("ca", Some("1"), 3));
        assert_eq!(ask("limit=2&marker=1", 0), is("b", None, 3));
        assert_eq!(ask("limit=3", 0), is("cab", Some("0"), 3));
        assert_eq!(ask("limit=0", 0), is("", None, 3));
        assert_eq!(ask("offset=1&limit=1", 0), is("a", Some("1"), 3));
        assert_eq!(ask("name=a", 0), is("a", None, 1));
        assert_eq!(ask("metadata={'n': '2'}", 0), is("c", None, 1));
        assert_eq!(ask("created_at=gt:2026-11-21T00:00:00,lt:2026-11-21T00:00:02", 60), is("a", None, 1));
        assert_eq!(ask("nonsense=1", 0), is("cab", None, 3));
        for (query, minor, status) in [
            ("nonsense=1", 31, 400),
            ("marker=9", 0, 404),
            ("limit=x", 0, 400),
            ("limit=-1", 0, 400),
            ("sort_key=nonsense", 0, 400),
            ("sort=id&sort_key=id", 0, 400),
            ("metadata=x", 0, 400),
            ("created_at=soon", 0, 400),
        ] {
            assert_eq!(ask(query, minor).unwrap_err().status, status, "{query}");
        }
    }
}
