//! What placement has words for: resource classes and traits; and how requests write them.

use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use amphi_api::host::{Acceleration, EngineName, HostSpec};
use axum::Json;
use axum::extract::Path;
use axum::http::StatusCode;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The classes that hosts have, of os-resource-classes' standard ones.
pub(super) const CLASSES: [&str; 3] = ["VCPU", "MEMORY_MB", "DISK_GB"];

/// A host that runs VMs, with acceleration or without, and one that runs sets: placement's way to say it.
pub(super) const TRAITS: [&str; 4] =
    ["COMPUTE_STATUS_DISABLED", "CUSTOM_AMPHI_SET", "CUSTOM_AMPHI_VM", "CUSTOM_AMPHI_VM_KVM"];

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/resource_classes", Need::Admin, classes)
        .get("/resource_classes/{name}", Need::Admin, class)
        .get("/traits", Need::Admin, traits)
        .get("/traits/{name}", Need::Admin, one_trait)
}

/// The traits that a host has now.
pub(super) fn traits_of(spec: Option<&HostSpec>, disabled: bool) -> BTreeSet<&'static str> {
    let mut traits = BTreeSet::new();
    if disabled {
        traits.insert(TRAITS[0]);
    }
    let Some(spec) = spec else { return traits };
    let works = |name| spec.engines.iter().any(|engine| engine.name == name && engine.trouble.is_none());
    if works(EngineName::Docker) {
        traits.insert(TRAITS[1]);
    }
    if works(EngineName::Libvirt) {
        traits.insert(TRAITS[2]);
        if spec.acceleration == Acceleration::Kvm {
            traits.insert(TRAITS[3]);
        }
    }
    traits
}

async fn classes() -> Json<Value> {
    let link = |name: &str| json!([{"rel": "self", "href": format!("/placement/resource_classes/{name}")}]);
    let all: Vec<_> = CLASSES.iter().map(|name| json!({"name": name, "links": link(name)})).collect();
    Json(json!({"resource_classes": all}))
}

async fn class(Path(name): Path<String>) -> Result<Json<Value>, Refusal> {
    if !CLASSES.contains(&name.as_str()) {
        return Err(Refusal::new(StatusCode::NOT_FOUND, format!("No such resource class {name}.")));
    }
    let href = format!("/placement/resource_classes/{name}");
    Ok(Json(json!({"name": name, "links": [{"rel": "self", "href": href}]})))
}

async fn traits(version: Microversion, query: Query) -> Result<Json<Value>, Refusal> {
    since(version, 6)?;
    let wanted = query.one("name").unwrap_or_default();
    let keep = |name: &&&str| match wanted.split_once(':') {
        Some(("startswith", prefix)) => name.starts_with(prefix),
        Some(("in", names)) => names.split(',').any(|one| one == **name),
        _ => true,
    };
    Ok(Json(json!({"traits": TRAITS.iter().filter(keep).collect::<Vec<_>>()})))
}

/// 204: it is there.
async fn one_trait(version: Microversion, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    since(version, 6)?;
    match TRAITS.contains(&name.as_str()) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(Refusal::new(StatusCode::NOT_FOUND, format!("No such trait(s): {name}."))),
    }
}

/// What an earlier microversion has not.
pub(super) fn since(version: Microversion, minor: u16) -> Result<(), Refusal> {
    match version.from(minor) {
        true => Ok(()),
        false => Err(Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found.")),
    }
}

/// `VCPU:2,MEMORY_MB:512`.
pub(super) fn resources(text: &str) -> Result<BTreeMap<&'static str, u64>, Refusal> {
    let mut asked = BTreeMap::new();
    for part in text.split(',') {
        let (name, amount) = part.split_once(':').unwrap_or((part, ""));
        let class = CLASSES.into_iter().find(|class| *class == name.trim());
        let class = class.ok_or_else(|| {
            Refusal::bad(format!(
                "Invalid resource class in resources parameter: No such resource class {name}."
            ))
        })?;
        let amount = amount.trim().parse::<u64>().ok().filter(|amount| *amount > 0);
        let amount = amount.ok_or_else(|| {
            Refusal::bad(format!("Badly formed resources parameter. Expected resources query string parameter in form: ?resources=VCPU:2,MEMORY_MB:1024. Got: {text}."))
        })?;
        asked.insert(class, amount);
    }
    Ok(asked)
}

/// `TRAIT,!OTHER`: those that must be there, those that must not.
pub(super) fn required(text: &str) -> (Vec<String>, Vec<String>) {
    let (forbidden, wanted): (Vec<&str>, Vec<&str>) = text
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .partition(|part| part.starts_with('!'));
    let owned = |parts: Vec<&str>| parts.iter().map(|part| part.trim_start_matches('!').to_owned()).collect();
    (owned(wanted), owned(forbidden))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_and_traits() {
        assert_eq!(resources("VCPU:2,MEMORY_MB:512"), Ok([("VCPU", 2), ("MEMORY_MB", 512)].into()));
        for bad in ["", "VCPU", "VCPU:", "VCPU:0", "VCPU:-1", "GOLD:1", "VCPU:1,,"] {
            assert_eq!(resources(bad).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(required("A,!B, C"), (vec!["A".into(), "C".into()], vec!["B".into()]));
    }
}
