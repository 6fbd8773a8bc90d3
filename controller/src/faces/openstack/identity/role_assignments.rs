//! `/v3/role_assignments`: who has which role where, as granted or as it amounts to.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::query::{Query, boolean};
use super::super::routes::{Need, Routes};
use super::super::words::hex;
use super::ROOT;
use crate::model::identity::{Actor, DomainId, Target};
use crate::ops::identity::{Assignment, AssignmentFilter, Identity};
use axum::Json;
use axum::extract::State;
use serde_json::{Value, json};
use std::str::FromStr;

pub fn routes(routes: Routes) -> Routes {
    routes.get("/v3/role_assignments", Need::Admin, index)
}

/// Keystone's way: there without a value, or with any but a false one.
fn switch(query: &Query, name: &str) -> bool {
    query.one(name).is_some_and(|text| boolean(text).unwrap_or(true))
}

/// None: the filter is given, but names nothing.
fn filter(query: &Query) -> Result<Option<AssignmentFilter>, Refusal> {
    fn wanted<T: FromStr>(query: &Query, name: &str) -> Result<Option<T>, ()> {
        query.one(name).map(|text| text.parse().map_err(drop)).transpose()
    }
    if query.has("scope.project.id") && query.has("scope.domain.id") {
        return Err(Refusal::bad("Specify a domain or a project as the scope, not both."));
    }
    if query.has("user.id") && query.has("group.id") {
        return Err(Refusal::bad("Specify a user or a group, not both."));
    }
    let effective = switch(query, "effective");
    if effective && query.has("group.id") {
        return Err(Refusal::bad(
            "Combining effective and group filter will always result in an empty list.",
        ));
    }
    let read = || -> Result<AssignmentFilter, ()> {
        Ok(AssignmentFilter {
            user: wanted(query, "user.id")?,
            group: wanted(query, "group.id")?,
            role: wanted(query, "role.id")?,
            project: wanted(query, "scope.project.id")?,
            subtree: switch(query, "include_subtree"),
            domain: wanted(query, "scope.domain.id")?,
            system: query.has("scope.system"),
            inherited: query.one("scope.OS-INHERIT:inherited_to") == Some("projects"),
            effective,
        })
    };
    Ok(read().ok())
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let names = switch(&query, "include_names");
    let view = state.ops.world().read();
    let identity = &view.identity;
    let found = filter(&query)?.map(|filter| identity.assignments(&filter)).unwrap_or_default();
    let items: Vec<Value> = found.iter().map(|a| render(identity, &base, a, names)).collect();
    let own = format!("{}{ROOT}/role_assignments", base.0);
    Ok(Json(json!({"role_assignments": items, "links": {"self": own, "next": null, "previous": null}})))
}

fn domain(identity: &Identity, id: DomainId, names: bool) -> Value {
    let mut value = json!({"id": id.to_string()});
    if names {
        value["name"] = json!(identity.domains.get(id).map(|d| d.name.clone()));
    }
    value
}

fn render(identity: &Identity, base: &Base, a: &Assignment, names: bool) -> Value {
    let mut links = json!({});
    let mut value = json!({});
    let mut role = json!({"id": a.role.to_string()});
    if names && let Some(row) = identity.roles.get(a.role) {
        role["name"] = json!(row.name);
        if let Some(of) = row.domain {
            role["domain"] = domain(identity, of, true);
        }
    }
    value["role"] = role;
    let granted_to = match a.actor {
        Actor::User(id) => {
            let mut user = json!({"id": hex(id.0)});
            if names && let Some(row) = identity.users.get(id) {
                user["name"] = json!(row.name);
                user["domain"] = domain(identity, row.domain, true);
            }
            value["user"] = user;
            a.membership.map_or(format!("users/{}", hex(id.0)), |group| {
                let member = format!("{}{ROOT}/groups/{group}/users/{}", base.0, hex(id.0));
                links["membership"] = json!(member);
                format!("groups/{group}")
            })
        }
        Actor::Group(id) => {
            let mut group = json!({"id": id.to_string()});
            if names && let Some(row) = identity.groups.get(id) {
                group["name"] = json!(row.name);
                group["domain"] = domain(identity, row.domain, true);
            }
            value["group"] = group;
            format!("groups/{id}")
        }
    };
    value["scope"] = match a.target {
        Target::System => json!({"system": {"all": true}}),
        Target::Domain(id) => json!({"domain": domain(identity, id, names)}),
        Target::Project(id) => {
            let mut project = json!({"id": hex(id.0)});
            if names && let Some(row) = identity.projects.get(id) {
                project["name"] = json!(row.name);
                project["domain"] = domain(identity, row.domain, true);
            }
            json!({"project": project})
        }
    };
    let through = a.inherited || a.granted_on != a.target;
    if through {
        value["scope"]["OS-INHERIT:inherited_to"] = json!("projects");
    }
    let role = a.prior_role.unwrap_or(a.role);
    let place = match a.granted_on {
        Target::System => "system".to_owned(),
        Target::Domain(id) => format!("domains/{id}"),
        Target::Project(id) => format!("projects/{}", hex(id.0)),
    };
    let (before, after) = if through { ("OS-INHERIT/", "/inherited_to_projects") } else { ("", "") };
    links["assignment"] = json!(format!("{}{ROOT}/{before}{place}/{granted_to}/roles/{role}{after}", base.0));
    if let Some(prior) = a.prior_role {
        links["prior_role"] = json!(format!("{}{ROOT}/prior_role/{prior}/implies/{}", base.0, a.role));
    }
    value["links"] = links;
    value
}
