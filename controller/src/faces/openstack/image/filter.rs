//! Which images a list holds, in which order. Pure.

use super::view;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::page::{Direction, sort_keys};
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words::{self, parse_time};
use crate::model::{ImageRecord, MemberStatus, Visibility};
use crate::ops::identity::Caller;
use jiff::Timestamp;
use std::cmp::Ordering;

/// Parameters that are no filters.
const OTHERS: [&str; 7] = ["limit", "marker", "sort", "sort_key", "sort_dir", "member_status", "visibility"];

/// Whether an image belongs into the caller's list, before any filter: its own, the public ones, and those shared
/// with it in the state that it asks for. Others' community images only when they are asked for.
pub fn listed(record: &ImageRecord, caller: &Caller, query: &Query) -> Result<bool, Refusal> {
    let wanted = match query.one("visibility") {
        None | Some("all") => None,
        Some(text) => {
            let visibility = Visibility::parse(text);
            Some(visibility.ok_or_else(|| Refusal::bad(format!("Invalid visibility value: {text}")))?)
        }
    };
    if wanted.is_some_and(|wanted| wanted != record.traits.visibility) {
        return Ok(false);
    }
    let all = query.one("visibility") == Some("all");
    let status = query.one("member_status").unwrap_or("accepted");
    let status = match status {
        "all" => None,
        text => Some(MemberStatus::parse(text).ok_or_else(|| {
            Refusal::bad(format!("Invalid status: {text}; one of pending, accepted, rejected, all"))
        })?),
    };
    let Some(project) = caller.project else { return Ok(caller.is_admin()) };
    if record.project == project {
        return Ok(true);
    }
    Ok(match record.traits.visibility {
        Visibility::Public => true,
        Visibility::Community => all || wanted.is_some() || caller.is_admin(),
        Visibility::Shared => match record.traits.members.get(&project) {
            Some(member) => status.is_none_or(|status| member.status == status),
            None => caller.is_admin(),
        },
        Visibility::Private => caller.is_admin(),
    })
}

/// The filters of a request, read once.
pub struct Filter(Vec<(String, Test)>);

enum Test {
    Is(String),
    OneOf(Vec<String>),
    Time(fn(&ImageRecord) -> Timestamp, Ordering, bool, Timestamp),
    AtLeast(u64),
    AtMost(u64),
}

impl Filter {
    pub fn of(query: &Query) -> Result<Self, Refusal> {
        let mut tests = Vec::new();
        let mut hidden = "false".to_owned();
        for (name, value) in &query.0 {
            let bad = |what: &str| Refusal::bad(format!("Invalid value for the filter {name}: {what}"));
            let number = || value.parse::<u64>().map_err(|_| bad("not a number of at least 0"));
            let flag = || {
                let flag = crate::faces::openstack::query::boolean(value).ok_or_else(|| bad("not a boolean"));
                flag.map(|f| f.to_string())
            };
            match name.as_str() {
                other if OTHERS.contains(&other) => {}
                "os_hidden" => hidden = flag()?,
                "protected" => tests.push((name.clone(), Test::Is(flag()?))),
                "size_min" => tests.push(("size".into(), Test::AtLeast(number()?))),
                "size_max" => tests.push(("size".into(), Test::AtMost(number()?))),
                "min_ram" | "min_disk" | "size" => {
                    tests.push((name.clone(), Test::Is(number()?.to_string())))
                }
                "owner" => {
                    // Either form of an id; anything else belongs to nobody.
                    let owner = words::id(value).map_or_else(|| value.clone(), words::hex);
                    tests.push((name.clone(), Test::Is(owner)));
                }
                "created_at" | "updated_at" => tests.push((name.clone(), time_test(name, value)?)),
                "id" | "name" | "status" | "container_format" | "disk_format" => {
                    let test = match value.strip_prefix("in:") {
                        Some(list) => Test::OneOf(values(list)),
                        None => Test::Is(value.clone()),
                    };
                    tests.push((name.clone(), test));
                }
                _ => tests.push((name.clone(), Test::Is(value.clone()))),
            }
        }
        tests.push(("os_hidden".into(), Test::Is(hidden)));
        Ok(Self(tests))
    }

    pub fn fits(&self, record: &ImageRecord) -> bool {
        self.0.iter().all(|(name, test)| match test {
            Test::Is(value) if name == "tag" => record.traits.tags.contains(value),
            Test::Is(value) => attribute(record, name).is_some_and(|found| found == *value),
            Test::OneOf(list) => attribute(record, name).is_some_and(|found| list.contains(&found)),
            Test::Time(at, order, or_equal, than) => {
                let found = at(record).cmp(than);
                found == *order || (*or_equal && found == Ordering::Equal)
            }
            Test::AtLeast(least) => view::size(record).is_some_and(|size| size >= *least),
            Test::AtMost(most) => view::size(record).is_some_and(|size| size <= *most),
        })
    }
}

/// `gte:2026-11-21T00:00:00Z`; without an operator: equal.
fn time_test(name: &str, value: &str) -> Result<Test, Refusal> {
    // Clients see whole seconds.
    let at: fn(&ImageRecord) -> Timestamp = match name {
        "created_at" => |r| seconds(r.created_at),
        _ => |r| seconds(r.traits.updated_at.unwrap_or(r.created_at)),
    };
    let known = ["gt", "gte", "lt", "lte", "eq", "neq"];
    let (operator, text) = match value.split_once(':') {
        Some((operator, text)) if known.contains(&operator) => (operator, text),
        _ => ("eq", value),
    };
    let than = parse_time(text)
        .map(seconds)
        .ok_or_else(|| Refusal::bad(format!("{name}: '{text}' is not a time")))?;
    let (order, or_equal) = match operator {
        "gt" => (Ordering::Greater, false),
        "gte" => (Ordering::Greater, true),
        "lt" => (Ordering::Less, false),
        "lte" => (Ordering::Less, true),
        "neq" => return Err(Refusal::bad(format!("{name}: the operator neq is not supported"))),
        _ => (Ordering::Equal, true),
    };
    Ok(Test::Time(at, order, or_equal, than))
}

fn seconds(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// `a,"b, c",d`: values with commas are quoted.
fn values(list: &str) -> Vec<String> {
    let (mut found, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in list.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => found.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    found.push(word);
    found
}

/// An attribute as text, as filters and orders compare it.
fn attribute(record: &ImageRecord, name: &str) -> Option<String> {
    match view::image(record).get(name)? {
        serde_json::Value::Null => None,
        serde_json::Value::String(text) => Some(text.clone()),
        value => Some(value.to_string()),
    }
}

/// Sorts as asked for; then, as glance does, by time of creation and id, newest first.
pub fn sort(images: &mut [&ImageRecord], query: &Query) -> Result<(), Refusal> {
    const KEYS: [&str; 9] = [
        "name",
        "status",
        "container_format",
        "disk_format",
        "size",
        "id",
        "created_at",
        "updated_at",
        "min_ram",
    ];
    let mut keys = sort_keys(query)?;
    let explicit = query.has("sort") || query.has("sort_dir");
    for (key, direction) in &mut keys {
        if !KEYS.contains(&key.as_str())
            && !["min_disk", "virtual_size", "checksum", "owner"].contains(&key.as_str())
        {
            return Err(Refusal::bad(format!("Invalid sort key: {key}; supported are {}", KEYS.join(", "))));
        }
        if !explicit {
            *direction = Direction::Descending;
        }
    }
    images.sort_by(|a, b| {
        let by_keys = keys.iter().map(|(key, direction)| direction.apply(compare(a, b, key)));
        let asked = by_keys.fold(Ordering::Equal, Ordering::then);
        asked.then_with(|| b.created_at.cmp(&a.created_at)).then_with(|| b.id.cmp(&a.id))
    });
    Ok(())
}

fn compare(a: &ImageRecord, b: &ImageRecord, key: &str) -> Ordering {
    match key {
        "size" => view::size(a).cmp(&view::size(b)),
        "min_ram" => a.traits.min_ram.cmp(&b.traits.min_ram),
        "min_disk" => a.traits.min_disk.cmp(&b.traits.min_disk),
        "virtual_size" => a.traits.virtual_size.cmp(&b.traits.virtual_size),
        "name" => a.name.cmp(&b.name),
        "created_at" => a.created_at.cmp(&b.created_at),
        key => attribute(a, key).cmp(&attribute(b, key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_values() {
        assert_eq!(values(r#"a,"b, c",d"#), ["a", "b, c", "d"]);
        assert_eq!(values("a"), ["a"]);
    }

    #[test]
    fn wrong_filters_are_refused_by_name() {
        for (query, word) in [
            ("size_min=x", "size_min"),
            ("os_hidden=maybe", "os_hidden"),
            ("created_at=gt:soon", "created_at"),
        ] {
            let refusal = Filter::of(&Query::parse(query)).err().unwrap();
            assert!(refusal.status == 400 && refusal.message.contains(word), "{query}: {}", refusal.message);
        }
    }
}
