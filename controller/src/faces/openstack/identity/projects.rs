//! `/v3/projects`, and their tags. A domain is a project too, as keystone has it: `is_domain`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words::hex;
use super::fields::{Fields, tags};
use super::lists::list;
use super::{ROOT, forbidden, id, missing, one, with};
use crate::model::identity::{DomainId, DomainRecord, ProjectRecord};
use crate::ops::identity::Caller;
use crate::ops::identity::{DomainChange, Identity, ProjectChange, ProjectParent};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::{Method, StatusCode};
use axum::response::Response;
use serde_json::{Value, json};
use std::collections::BTreeSet;

pub fn routes(routes: Routes) -> Routes {
    routes
        .get("/v3/projects", Need::Admin, index)
        .post("/v3/projects", Need::Admin, create)
        .get("/v3/projects/{id}", Need::Token, show)
        .patch("/v3/projects/{id}", Need::Admin, update)
        .delete("/v3/projects/{id}", Need::Admin, delete)
        .get("/v3/projects/{id}/tags", Need::Token, show_tags)
        .put("/v3/projects/{id}/tags", Need::Admin, put_tags)
        .delete("/v3/projects/{id}/tags", Need::Admin, delete_tags)
        .get("/v3/projects/{id}/tags/{tag}", Need::Token, check_tag)
        .on(Method::PUT, "/v3/projects/{id}/tags/{tag}", Need::Admin, put_tag)
        .delete("/v3/projects/{id}/tags/{tag}", Need::Admin, delete_tag)
}

pub fn render(base: &Base, project: &ProjectRecord) -> Value {
    let own = hex(project.id.0);
    let domain = project.domain.to_string();
    let mut value = json!({
        "id": own,
        "name": project.name,
        "domain_id": domain,
        "parent_id": project.parent.map_or(domain, |parent| hex(parent.0)),
        "description": project.description,
        "enabled": project.enabled,
        "is_domain": false,
        "tags": project.tags,
        "options": project.options,
        "links": {"self": format!("{}{ROOT}/projects/{own}", base.0)},
    });
    project.extra.iter().for_each(|(name, extra)| value[name] = extra.clone());
    value
}

fn render_domain(base: &Base, domain: &DomainRecord) -> Value {
    let mut value = super::domains::render(base, domain);
    value["domain_id"] = Value::Null;
    value["parent_id"] = Value::Null;
    value["is_domain"] = json!(true);
    value["links"] = json!({"self": format!("{}{ROOT}/projects/{}", base.0, domain.id)});
    value
}

/// The project or domain of an id.
enum Found {
    Project(ProjectRecord),
    Domain(DomainRecord),
}

impl Found {
    fn by(identity: &Identity, text: &str) -> Result<Self, Refusal> {
        let domain = text.parse::<DomainId>().ok().and_then(|id| identity.domains.get(id));
        if let Some(domain) = domain {
            return Ok(Self::Domain((*domain.record).clone()));
        }
        let project = identity.projects.get(id("project", text)?);
        project.map(|row| Self::Project((*row.record).clone())).ok_or_else(|| missing("project", text))
    }

    fn render(&self, base: &Base) -> Value {
        match self {
            Self::Project(record) => render(base, record),
            Self::Domain(record) => render_domain(base, record),
        }
    }

    fn tags(&self) -> &BTreeSet<String> {
        match self {
            Self::Project(record) => &record.tags,
            Self::Domain(record) => &record.tags,
        }
    }
}

fn find(state: &OpenStack, text: &str) -> Result<Found, Refusal> {
    Found::by(&state.ops.world().read().identity, text)
}

async fn index(State(state): State<OpenStack>, base: Base, query: Query) -> Result<Json<Value>, Refusal> {
    let domains = query.flag("is_domain")?.unwrap_or(false);
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        if domains {
            identity.domains.iter().map(|row| render_domain(&base, row)).collect()
        } else {
            let rows = identity.projects.iter().filter(|row| tags_fit(&query, &row.tags));
            rows.map(|row| render(&base, row)).collect()
        }
    };
    list(&base, "/projects", &query, "projects", items)
}

fn tags_fit(query: &Query, tags: &BTreeSet<String>) -> bool {
    let wanted =
        |name| query.one(name).map(|text| text.split(',').map(str::to_owned).collect::<BTreeSet<_>>());
    wanted("tags").is_none_or(|all| all.is_subset(tags))
        && wanted("tags-any").is_none_or(|any| !any.is_disjoint(tags))
        && wanted("not-tags").is_none_or(|all| !all.is_subset(tags))
        && wanted("not-tags-any").is_none_or(|any| any.is_disjoint(tags))
}

fn change(identity: &Identity, fields: &mut Fields) -> Result<ProjectChange, Refusal> {
    let parent = match fields.nullable("parent_id")?.flatten() {
        None => None,
        Some(text) => Some(match Found::by(identity, &text) {
            Ok(Found::Domain(domain)) => ProjectParent::Domain(domain.id),
            Ok(Found::Project(project)) => ProjectParent::Project(project.id),
            Err(_) => return Err(missing("project", text)),
        }),
    };
    Ok(ProjectChange {
        name: fields.text("name")?,
        description: fields.nullable("description")?.map(Option::unwrap_or_default),
        enabled: fields.flag("enabled")?,
        tags: fields.tags("tags")?,
        options: fields.object("options")?,
        domain: fields.id("domain_id")?,
        parent,
        extra: Default::default(),
    })
}

/// The same words for a project that is a domain.
fn as_domain(change: ProjectChange) -> DomainChange {
    DomainChange {
        name: change.name,
        description: change.description,
        enabled: change.enabled,
        tags: change.tags,
        options: change.options,
        extra: change.extra,
        id: None,
    }
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Body(body): Body<Value>,
) -> Result<Response, Refusal> {
    let mut fields = Fields::of("project", body)?;
    let is_domain = fields.flag("is_domain")?.unwrap_or(false);
    let mut change = change(&state.ops.world().read().identity, &mut fields)?;
    change.extra = fields.rest()?;
    let value = if is_domain {
        if change.domain.is_some() || change.parent.is_some() {
            return Err(Refusal::bad("A project that is a domain has neither domain_id nor parent_id."));
        }
        render_domain(&base, &state.ops.create_domain(&as_domain(change)).await?)
    } else {
        let usual = caller.domain.unwrap_or(caller.user_domain);
        render(&base, &state.ops.create_project(usual, &change).await?)
    };
    Ok(with(201, one("project", value)))
}

/// An administrator sees each, others those on which they have a role.
fn may_see(state: &OpenStack, caller: &Caller, text: &str) -> Result<Found, Refusal> {
    if !caller.is_admin() {
        let wanted: ProjectId = id("project", text)?;
        let view = state.ops.world().read();
        if caller.project != Some(wanted) && !view.identity.projects_of(caller.user).contains(&wanted) {
            return Err(forbidden());
        }
    }
    find(state, text)
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let found = may_see(&state, &caller, &text)?;
    let mut value = found.render(&base);
    if let Found::Project(project) = &found {
        let view = state.ops.world().read();
        let identity = &view.identity;
        let whole = |ids: Vec<ProjectId>| -> Vec<Value> {
            let rows = ids.into_iter().filter_map(|id| identity.projects.get(id));
            rows.map(|row| json!({"project": render(&base, row)})).collect()
        };
        let parents: Vec<ProjectId> = identity.parents_of(project.id).iter().map(|row| row.id).collect();
        if query.has("parents_as_list") {
            value["parents"] = json!(whole(parents.clone()));
        }
        if query.has("parents_as_ids") {
            let top = json!({ project.domain.to_string(): null });
            value["parents"] = parents.iter().rev().fold(top, |tree, id| json!({ hex(id.0): tree }));
        }
        if query.has("subtree_as_list") {
            value["subtree"] = json!(whole(identity.below(project.id)));
        }
        if query.has("subtree_as_ids") {
            value["subtree"] = subtree(identity, project.id);
        }
    }
    Ok(one("project", value))
}

fn subtree(identity: &Identity, above: ProjectId) -> Value {
    let below = identity.below(above);
    let children =
        below.iter().filter(|id| identity.projects.get(**id).is_some_and(|p| p.parent == Some(above)));
    let tree: serde_json::Map<String, Value> =
        children.map(|id| (hex(id.0), subtree(identity, *id))).collect();
    if tree.is_empty() { Value::Null } else { Value::Object(tree) }
}

async fn update(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let mut fields = Fields::of("project", body)?;
    let found = find(&state, &text)?;
    if fields.flag("is_domain")?.is_some_and(|wanted| wanted != matches!(found, Found::Domain(_))) {
        return Err(Refusal::bad("is_domain cannot be changed."));
    }
    let mut change = change(&state.ops.world().read().identity, &mut fields)?;
    change.extra = fields.rest()?;
    Ok(one("project", apply(&state, found, change).await?.render(&base)))
}

async fn apply(state: &OpenStack, found: Found, change: ProjectChange) -> Result<Found, Refusal> {
    Ok(match found {
        Found::Project(project) => Found::Project(state.ops.update_project(project.id, &change).await?),
        Found::Domain(domain) => Found::Domain(state.ops.update_domain(domain.id, &as_domain(change)).await?),
    })
}

async fn delete(State(state): State<OpenStack>, Path(text): Path<String>) -> Result<StatusCode, Refusal> {
    match find(&state, &text)? {
        Found::Project(project) => state.ops.delete_project(project.id).await?,
        Found::Domain(domain) => state.ops.delete_domain(domain.id).await?,
    }
    Ok(StatusCode::NO_CONTENT)
}

fn tags_body(base: &Base, text: &str, found: &Found) -> Json<Value> {
    let own = format!("{}{ROOT}/projects/{text}/tags", base.0);
    Json(json!({"tags": found.tags(), "links": {"self": own, "next": null, "previous": null}}))
}

async fn show_tags(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    Path(text): Path<String>,
) -> Result<Json<Value>, Refusal> {
    Ok(tags_body(&base, &text, &may_see(&state, &caller, &text)?))
}

async fn set_tags(state: &OpenStack, text: &str, tags: BTreeSet<String>) -> Result<Found, Refusal> {
    let found = find(state, text)?;
    apply(state, found, ProjectChange { tags: Some(tags), ..Default::default() }).await
}

async fn put_tags(
    State(state): State<OpenStack>,
    base: Base,
    Path(text): Path<String>,
    Body(body): Body<Value>,
) -> Result<Json<Value>, Refusal> {
    let wanted = tags("tags", body.get("tags").unwrap_or(&Value::Null))?;
    Ok(tags_body(&base, &text, &set_tags(&state, &text, wanted).await?))
}

async fn delete_tags(
    State(state): State<OpenStack>,
    Path(text): Path<String>,
) -> Result<StatusCode, Refusal> {
    set_tags(&state, &text, BTreeSet::new()).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn check_tag(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((text, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let found = may_see(&state, &caller, &text)?;
    if found.tags().contains(&tag) { Ok(StatusCode::NO_CONTENT) } else { Err(missing("project tag", tag)) }
}

async fn put_tag(
    State(state): State<OpenStack>,
    Path((text, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let mut tags = find(&state, &text)?.tags().clone();
    tags.insert(tag);
    set_tags(&state, &text, tags).await?;
    Ok(StatusCode::CREATED)
}

async fn delete_tag(
    State(state): State<OpenStack>,
    Path((text, tag)): Path<(String, String)>,
) -> Result<StatusCode, Refusal> {
    let mut tags = find(&state, &text)?.tags().clone();
    if !tags.remove(&tag) {
        return Err(missing("project tag", tag));
    }
    set_tags(&state, &text, tags).await?;
    Ok(StatusCode::NO_CONTENT)
}
