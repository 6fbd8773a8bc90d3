//! Lists: filters by attribute, `limit` and `marker`, keystone's links.

use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::page::{Page, next_url};
use super::super::query::{Query, boolean};
use super::ROOT;
use axum::Json;
use serde_json::{Value, json};

/// Most entries of one page; what is beyond has a next link.
const MOST: usize = 10_000;

/// Attributes that any list may be filtered by, where its entries have them.
const FILTERS: [&str; 11] = [
    "name",
    "domain_id",
    "enabled",
    "parent_id",
    "type",
    "service_id",
    "interface",
    "region_id",
    "parent_region_id",
    "unique_id",
    "description",
];

/// What a list answers. `path` is below `/identity/v3`.
pub fn list(
    base: &Base,
    path: &str,
    query: &Query,
    key: &str,
    items: Vec<Value>,
) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = items.into_iter().filter(|item| fits(query, item)).collect();
    let whole = format!("{ROOT}{path}");
    let id_of = |item: &Value| item["id"].as_str().unwrap_or_default().to_owned();
    let slice = Page::of(query, MOST)?.cut(items, MOST, id_of)?;
    let next = slice.items.last().filter(|_| slice.more).map(id_of);
    let next = next.map(|marker| next_url(&base.0, &whole, query, &marker));
    let own = match query.0.is_empty() {
        true => format!("{}{whole}", base.0),
        false => {
            let mut out = form_urlencoded::Serializer::new(String::new());
            query.0.iter().for_each(|(name, value)| {
                out.append_pair(name, value);
            });
            format!("{}{whole}?{}", base.0, out.finish())
        }
    };
    let mut answer = json!({ key: slice.items, "links": {"self": own, "next": next, "previous": null} });
    if slice.more {
        answer["truncated"] = json!(true);
    }
    Ok(Json(answer))
}

fn fits(query: &Query, item: &Value) -> bool {
    query.0.iter().all(|(name, wanted)| {
        let (attribute, how) = name.split_once("__").unwrap_or((name, "equals"));
        if !FILTERS.contains(&attribute) || item.get(attribute).is_none() {
            return true;
        }
        match &item[attribute] {
            // As keystone reads it: everything but these is true.
            Value::Bool(value) => *value == boolean(wanted).unwrap_or(wanted != "0"),
            Value::String(text) => compare(text, how, wanted),
            Value::Null => wanted.is_empty() || wanted == "null" || wanted == "None",
            _ => true,
        }
    })
}

/// Keystone's inexact filters (`name__icontains=…`).
fn compare(text: &str, how: &str, wanted: &str) -> bool {
    let (lower, wish) = (text.to_lowercase(), wanted.to_lowercase());
    match how {
        "equals" => text == wanted,
        "iequals" | "iexact" => lower == wish,
        "contains" => text.contains(wanted),
        "icontains" => lower.contains(&wish),
        "startswith" => text.starts_with(wanted),
        "istartswith" => lower.starts_with(&wish),
        "endswith" => text.ends_with(wanted),
        "iendswith" => lower.ends_with(&wish),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_and_links() {
        let items = || {
            vec![
                json!({"id": "1", "name": "web", "enabled": true, "parent_region_id": null}),
                json!({"id": "2", "name": "db", "enabled": false, "parent_region_id": "1"}),
                json!({"id": "3", "name": "Web2", "enabled": true, "parent_region_id": "1"}),
            ]
        };
        let ask =
            |query: &str| list(&Base("http://c".into()), "/users", &Query::parse(query), "users", items());
        let ids = |query: &str| {
            let answer = ask(query).unwrap().0;
            answer["users"]
                .as_array()
                .unwrap()
                .iter()
                .map(|i| i["id"].as_str().unwrap().to_owned())
                .collect::<String>()
        };
        for (query, wanted) in [
            ("", "123"),
            ("name=web", "1"),
            ("name=nobody", ""),
            ("enabled=False", "2"),
            ("enabled", "13"),
            ("name__icontains=WEB", "13"),
            ("name__startswith=W", "3"),
            ("parent_region_id=1", "23"),
            ("colour=red", "123"),
            ("limit=2", "12"),
            ("limit=2&marker=2", "3"),
        ] {
            assert_eq!(ids(query), wanted, "{query}");
        }
        let page = ask("limit=1&enabled=true").unwrap().0;
        assert_eq!(page["truncated"], true);
        assert_eq!(page["links"]["next"], "http://c/identity/v3/users?limit=1&enabled=true&marker=1");
        let whole = ask("").unwrap().0;
        assert_eq!(
            whole["links"],
            json!({"self": "http://c/identity/v3/users", "next": null, "previous": null})
        );
        assert!(whole.get("truncated").is_none());
        assert_eq!(ask("marker=9").unwrap_err().status, 400);
    }
}
