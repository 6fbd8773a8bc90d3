//! `/os-simple-tenant-usage`: hours of instances, by project. Microversion 2.40 pages over instances.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::{PAGE_MAX, next_link, seen_project};
use crate::ops::identity::Caller;
use crate::ops::usage::{InstanceUsage, of_project, projects};
use amphi_api::ProjectId;
use axum::Json;
use axum::extract::{Path, State};
use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes.get("/v2.1/os-simple-tenant-usage", Need::Admin, list).get(
        "/v2.1/os-simple-tenant-usage/{id}",
        Need::Reader,
        show,
    )
}

#[derive(Clone, Copy)]
struct Period {
    start: Timestamp,
    end: Timestamp,
    now: Timestamp,
}

impl Period {
    fn of(query: &Query) -> Result<Self, Refusal> {
        let now = Timestamp::now();
        let time = |name: &str| match query.one(name).filter(|text| !text.is_empty()) {
            None => Ok(now),
            Some(text) => words::parse_time(text)
                .ok_or_else(|| Refusal::bad(format!("Invalid datetime string in '{name}': {text}"))),
        };
        let (start, end) = (time("start")?, time("end")?);
        if start > end {
            return Err(Refusal::bad("Invalid start time. The start time cannot occur after the end time."));
        }
        Ok(Self { start, end, now })
    }
}

fn one(usage: &InstanceUsage, now: Timestamp) -> Value {
    let instance = &usage.instance;
    let uptime = usage.ended.unwrap_or(now).duration_since(instance.created_at).as_secs().max(0);
    json!({
        "instance_id": instance.id.to_string(),
        "name": instance.name,
        "tenant_id": words::hex(instance.project.0),
        "flavor": instance.flavor,
        "vcpus": instance.vcpus,
        "memory_mb": instance.memory_mib,
        "local_gb": instance.disk_gib,
        "hours": usage.hours,
        "started_at": words::cinder_time(instance.created_at),
        "ended_at": usage.ended.map(words::cinder_time),
        "state": if usage.ended.is_some() { "terminated" } else { "active" },
        "uptime": uptime,
    })
}

/// A project's sums; none where it has nothing in the period.
fn summary(project: ProjectId, usages: &[InstanceUsage], period: Period, detailed: bool) -> Option<Value> {
    if usages.is_empty() {
        return None;
    }
    let sum = |part: fn(&InstanceUsage) -> f64| usages.iter().map(|usage| part(usage) * usage.hours).sum();
    let (disk, vcpus, memory, hours): (f64, f64, f64, f64) = (
        sum(|u| u.instance.disk_gib as f64),
        sum(|u| u.instance.vcpus.into()),
        sum(|u| u.instance.memory_mib as f64),
        sum(|_| 1.0),
    );
    let mut body = json!({
        "tenant_id": words::hex(project.0),
        "start": words::cinder_time(period.start),
        "stop": words::cinder_time(period.end),
        "total_hours": hours,
        "total_local_gb_usage": disk,
        "total_vcpus_usage": vcpus,
        "total_memory_mb_usage": memory,
    });
    if detailed {
        body["server_usages"] = usages.iter().map(|usage| one(usage, period.now)).collect();
    }
    Some(body)
}

async fn list(
    State(state): State<OpenStack>,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let period = Period::of(&query)?;
    let detailed = query.one("detailed") == Some("1");
    let view = state.ops.world().read();
    let all: Vec<InstanceUsage> = projects(&view)
        .into_iter()
        .flat_map(|project| of_project(&view, project, period.start, period.end, period.now))
        .collect();
    let page = if version.from(40) { Page::of(&query, PAGE_MAX)? } else { Page::default() };
    let most = if version.from(40) { PAGE_MAX } else { usize::MAX };
    let slice = page.cut(all, most, |usage| usage.instance.id.to_string())?;
    let groups = slice.items.chunk_by(|a, b| a.instance.project == b.instance.project);
    let shown = groups.filter_map(|group| summary(group[0].instance.project, group, period, detailed));
    let mut answer = json!({"tenant_usages": shown.collect::<Vec<_>>()});
    if let Some(last) = slice.items.last().filter(|_| slice.more && version.from(40)) {
        let marker = last.instance.id.to_string();
        answer["tenant_usages_links"] = next_link(&base, "/os-simple-tenant-usage", &query, &marker);
    }
    Ok(Json(answer))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
    Path(id): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let project = seen_project(&caller, &id)?;
    let period = Period::of(&query)?;
    let view = state.ops.world().read();
    let all = of_project(&view, project, period.start, period.end, period.now);
    let page = if version.from(40) { Page::of(&query, PAGE_MAX)? } else { Page::default() };
    let most = if version.from(40) { PAGE_MAX } else { usize::MAX };
    let slice = page.cut(all, most, |usage| usage.instance.id.to_string())?;
    let body = summary(project, &slice.items, period, true).unwrap_or_else(|| json!({}));
    let mut answer = json!({"tenant_usage": body});
    if let Some(last) = slice.items.last().filter(|_| slice.more && version.from(40)) {
        let (path, marker) = (format!("/os-simple-tenant-usage/{id}"), last.instance.id.to_string());
        answer["tenant_usage_links"] = next_link(&base, &path, &query, &marker);
    }
    Ok(Json(answer))
}
