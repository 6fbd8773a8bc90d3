//! `/v2.0/security-groups`. Whoever looks at them has a group `default`.

use super::given::{Given, bodies, body};
use super::listing::{self, Resource, Shown, made, one, owner, standard};
use super::rules::show_rule;
use super::sight::{find, own, reach, told};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::query::Query;
use crate::model::SecurityGroupRecord;
use crate::ops::identity::Caller;
use crate::ops::{Reach, Row, View};
use amphi_api::{ProjectId, SecurityGroupId};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

pub fn show_group(_: &View, _: &Caller, row: &Row<SecurityGroupRecord>) -> Shown {
    let rules: Vec<Shown> = row.rules.iter().map(|rule| show_rule(row, rule)).collect();
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "stateful": row.stateful,
            "shared": false,
            "security_group_rules": rules,
        }),
    );
    owner(&mut shown, row.project);
    shown
}

#[derive(Default)]
struct Wanted {
    name: Option<String>,
    description: Option<String>,
    stateful: Option<bool>,
}

impl Wanted {
    fn take(given: &mut Given) -> Result<Self, Refusal> {
        Ok(Self {
            name: given.text("name")?,
            description: given.text("description")?,
            stateful: given.flag("stateful")?,
        })
    }

    fn apply(&self, group: &mut SecurityGroupRecord) {
        if let Some(name) = &self.name {
            group.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            group.notes.description.clone_from(description);
        }
        group.stateful = self.stateful.unwrap_or(group.stateful);
    }
}

fn read(mut given: Given, caller: &Caller) -> Result<(ProjectId, Wanted), Refusal> {
    let project = given.project(caller)?;
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    if wanted.name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case("default")) {
        return Err(Refusal::conflict("Default security group already exists.")
            .kind("SecurityGroupDefaultAlreadyExists"));
    }
    Ok((project, wanted))
}

/// The group `default` of the caller's project is there before it is looked for.
pub async fn ensure_default(state: &OpenStack, caller: &Caller) -> Result<(), Refusal> {
    if let Some(project) = caller.project {
        state.ops.ensure_default_group(project).await?;
    }
    Ok(())
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let (given, bulk) = bodies("security_group", "security_groups", sent)?;
    let orders: Vec<_> = given.into_iter().map(|g| read(g, &caller)).collect::<Result<_, _>>()?;
    let mut ids = Vec::new();
    for (project, wanted) in orders {
        state.ops.ensure_default_group(project).await?;
        let reach = Reach { project, admin: caller.is_admin() };
        let mut record =
            SecurityGroupRecord::new(SecurityGroupId::new(), project, String::new(), Timestamp::now());
        wanted.apply(&mut record);
        state.ops.put_group(reach, record.clone()).await.map_err(told::<SecurityGroupRecord>)?;
        ids.push(record.id);
    }
    let view = state.ops.world().read();
    let rows = ids.iter().filter_map(|id| view.groups.get(*id));
    let shown = rows.map(|row| show_group(&view, &caller, row)).collect();
    Ok(made("security_group", "security_groups", bulk, shown))
}

impl Resource for SecurityGroupRecord {
    const ONE: &'static str = "security_group";
    const MANY: &'static str = "security_groups";
    const PATH: &'static str = "/network/v2.0/security-groups";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_group(view, caller, row)
    }
}

pub async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
) -> Result<Response, Refusal> {
    ensure_default(&state, &caller).await?;
    listing::list::<SecurityGroupRecord>(State(state), caller, base, query).await
}

pub async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    id: Path<String>,
) -> Result<Response, Refusal> {
    ensure_default(&state, &caller).await?;
    listing::show::<SecurityGroupRecord>(State(state), caller, query, id).await
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("security_group", sent)?;
    let id = own::<SecurityGroupRecord>(&state.ops.world().read(), &caller, &id)?;
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    let changed = state.ops.update_group(reach(&caller)?, id, |group| wanted.apply(group)).await;
    changed.map_err(told::<SecurityGroupRecord>)?;
    let view = state.ops.world().read();
    let row = find::<SecurityGroupRecord>(&view, &caller, &id.to_string())?;
    Ok(one("security_group", StatusCode::OK, &Query::default(), show_group(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = own::<SecurityGroupRecord>(&state.ops.world().read(), &caller, &id)?;
    state.ops.delete_group_of(reach(&caller)?, id).await.map_err(told::<SecurityGroupRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}
