//! `/v2.0/qos/policies` and their rules.

use super::given::{Given, body, invalid};
use super::listing::{Resource, Shown, answer, made, one, owner, standard};
use super::sight::{find, own, reach, told};
use crate::faces::openstack::OpenStack;
use crate::faces::openstack::answers::Refusal;
use crate::faces::openstack::body::Body;
use crate::faces::openstack::gate::Base;
use crate::faces::openstack::query::Query;
use crate::faces::openstack::words;
use crate::model::QosPolicyRecord;
use crate::model::network::{QosKind, QosRule};
use crate::ops::identity::Caller;
use crate::ops::{Row, View};
use amphi_api::QosRuleId;
use amphi_api::network::Direction;
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use jiff::Timestamp;
use serde_json::{Value, json};

/// A kind of rule: its collection and its member.
#[derive(Clone, Copy, PartialEq)]
struct Kind {
    collection: &'static str,
    member: &'static str,
    name: &'static str,
}

const KINDS: [Kind; 2] = [
    Kind { collection: "bandwidth_limit_rules", member: "bandwidth_limit_rule", name: "bandwidth_limit" },
    Kind { collection: "dscp_marking_rules", member: "dscp_marking_rule", name: "dscp_marking" },
];

fn kind(collection: &str) -> Result<Kind, Refusal> {
    let found = KINDS.into_iter().find(|kind| kind.collection == collection);
    found.ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "The resource could not be found."))
}

fn kind_of(rule: &QosRule) -> Kind {
    match rule.kind {
        QosKind::BandwidthLimit { .. } => KINDS[0],
        QosKind::DscpMarking { .. } => KINDS[1],
    }
}

fn show_rule_of(rule: &QosRule) -> Shown {
    let shown = match rule.kind {
        QosKind::BandwidthLimit { max_kbps, max_burst_kbps, direction } => json!({
            "id": rule.id,
            "max_kbps": max_kbps,
            "max_burst_kbps": max_burst_kbps,
            "direction": match direction { Direction::Ingress => "ingress", Direction::Egress => "egress" },
        }),
        QosKind::DscpMarking { dscp_mark } => json!({"id": rule.id, "dscp_mark": dscp_mark}),
    };
    shown.as_object().cloned().unwrap_or_default()
}

pub fn show_policy(_: &View, _: &Caller, row: &Row<QosPolicyRecord>) -> Shown {
    let rules = row.rules.iter().map(|rule| {
        let mut shown = show_rule_of(rule);
        shown.insert("type".into(), json!(kind_of(rule).name));
        shown.insert("qos_policy_id".into(), json!(row.id));
        shown
    });
    let rules: Vec<Shown> = rules.collect();
    let mut shown = standard(
        row,
        row.created_at,
        json!({
            "id": row.id,
            "name": row.name,
            "shared": row.shared,
            "is_default": row.is_default,
            "rules": rules,
        }),
    );
    owner(&mut shown, row.project);
    shown
}

#[derive(Default)]
struct Wanted {
    name: Option<String>,
    description: Option<String>,
    shared: Option<bool>,
    is_default: Option<bool>,
}

impl Wanted {
    fn take(given: &mut Given) -> Result<Self, Refusal> {
        Ok(Self {
            name: given.text("name")?,
            description: given.text("description")?,
            shared: given.flag("shared")?,
            is_default: given.flag("is_default")?,
        })
    }

    fn apply(&self, policy: &mut QosPolicyRecord) {
        if let Some(name) = &self.name {
            policy.name.clone_from(name);
        }
        if let Some(description) = &self.description {
            policy.notes.description.clone_from(description);
        }
        policy.shared = self.shared.unwrap_or(policy.shared);
        policy.is_default = self.is_default.unwrap_or(policy.is_default);
    }
}

pub async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("policy", sent)?;
    let project = given.project(&caller)?;
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    if wanted.name.is_none() {
        return Err(Refusal::bad("Failed to parse request. Required attribute 'name' not specified"));
    }
    let mut record = QosPolicyRecord::new(project, String::new(), Timestamp::now());
    wanted.apply(&mut record);
    state.ops.put_qos_policy(&record).await.map_err(told::<QosPolicyRecord>)?;
    let view = state.ops.world().read();
    let rows = view.qos_policies.get(record.id).into_iter();
    Ok(made("policy", "policies", false, rows.map(|row| show_policy(&view, &caller, row)).collect()))
}

impl Resource for QosPolicyRecord {
    const ONE: &'static str = "policy";
    const MANY: &'static str = "policies";
    const PATH: &'static str = "/network/v2.0/qos/policies";
    fn shown(view: &View, caller: &Caller, row: &Row<Self>) -> Shown {
        show_policy(view, caller, row)
    }
}

pub async fn update(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let mut given = body("policy", sent)?;
    let id = own::<QosPolicyRecord>(&state.ops.world().read(), &caller, &id)?;
    let wanted = Wanted::take(&mut given)?;
    given.end()?;
    let changed = state.ops.update_qos_policy(reach(&caller)?, id, |policy| wanted.apply(policy)).await;
    changed.map_err(told::<QosPolicyRecord>)?;
    let view = state.ops.world().read();
    let row = find::<QosPolicyRecord>(&view, &caller, &id.to_string())?;
    Ok(one("policy", StatusCode::OK, &Query::default(), show_policy(&view, &caller, row)))
}

pub async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode, Refusal> {
    let id = own::<QosPolicyRecord>(&state.ops.world().read(), &caller, &id)?;
    state.ops.delete_qos_policy(reach(&caller)?, id).await.map_err(told::<QosPolicyRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn list_rules(
    State(state): State<OpenStack>,
    caller: Caller,
    base: Base,
    query: Query,
    Path((id, collection)): Path<(String, String)>,
) -> Result<Response, Refusal> {
    let kind = kind(&collection)?;
    let shown = {
        let view = state.ops.world().read();
        let row = find::<QosPolicyRecord>(&view, &caller, &id)?;
        row.rules.iter().filter(|rule| kind_of(rule) == kind).map(show_rule_of).collect()
    };
    let path = format!("/network/v2.0/qos/policies/{id}/{collection}");
    answer(kind.collection, &path, &base, &query, shown)
}

fn find_rule(view: &View, caller: &Caller, id: &str, kind: Kind, rule: &str) -> Result<QosRule, Refusal> {
    let row = find::<QosPolicyRecord>(view, caller, id)?;
    let wanted = words::id(rule).map(QosRuleId);
    let found = row.rules.iter().find(|r| Some(r.id) == wanted && kind_of(r) == kind);
    found.cloned().ok_or_else(|| {
        Refusal::new(StatusCode::NOT_FOUND, format!("QoS rule {rule} for policy {id} could not be found."))
            .kind("QosRuleNotFound")
    })
}

pub async fn show_rule(
    State(state): State<OpenStack>,
    caller: Caller,
    query: Query,
    Path((id, collection, rule)): Path<(String, String, String)>,
) -> Result<Response, Refusal> {
    let kind = kind(&collection)?;
    let rule = find_rule(&state.ops.world().read(), &caller, &id, kind, &rule)?;
    Ok(one(kind.member, StatusCode::OK, &query, show_rule_of(&rule)))
}

/// The rule that is given; what is not said is as before.
fn read(kind: Kind, mut given: Given, before: Option<QosKind>) -> Result<QosKind, Refusal> {
    for key in ["tenant_id", "project_id"] {
        given.take(key);
    }
    let number = |key: &str, given: &mut Given| -> Result<Option<u32>, Refusal> {
        let Some(n) = given.integer(key)? else { return Ok(None) };
        let narrow = u32::try_from(n).ok().filter(|n| *n <= i32::MAX as u32);
        narrow.map(Some).ok_or_else(|| invalid(key, &json!(n), "is out of range"))
    };
    let missing = |key: &str| {
        Refusal::bad(format!("Failed to parse request. Required attribute '{key}' not specified"))
    };
    let wanted = if kind == KINDS[0] {
        let (rate, burst, towards) = match before {
            Some(QosKind::BandwidthLimit { max_kbps, max_burst_kbps, direction }) => {
                (Some(max_kbps), max_burst_kbps, direction)
            }
            _ => (None, 0, Direction::Egress),
        };
        let direction = match given.text("direction")?.as_deref() {
            None => towards,
            Some("egress") => Direction::Egress,
            Some("ingress") => Direction::Ingress,
            Some(other) => {
                return Err(invalid("direction", &json!(other), "is not in ['egress', 'ingress']"));
            }
        };
        QosKind::BandwidthLimit {
            max_kbps: number("max_kbps", &mut given)?.or(rate).ok_or_else(|| missing("max_kbps"))?,
            max_burst_kbps: number("max_burst_kbps", &mut given)?.unwrap_or(burst),
            direction,
        }
    } else {
        let mark = match before {
            Some(QosKind::DscpMarking { dscp_mark }) => Some(u32::from(dscp_mark)),
            _ => None,
        };
        let mark = number("dscp_mark", &mut given)?.or(mark).ok_or_else(|| missing("dscp_mark"))?;
        let mark = u8::try_from(mark).map_err(|_| invalid("dscp_mark", &json!(mark), "is no valid mark"))?;
        QosKind::DscpMarking { dscp_mark: mark }
    };
    given.end()?;
    Ok(wanted)
}

pub async fn create_rule(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, collection)): Path<(String, String)>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let kind = kind(&collection)?;
    let given = body(kind.member, sent)?;
    let id = own::<QosPolicyRecord>(&state.ops.world().read(), &caller, &id)?;
    let rule = QosRule { id: QosRuleId::new(), kind: read(kind, given, None)? };
    state.ops.put_qos_rule(reach(&caller)?, id, &rule).await.map_err(told::<QosPolicyRecord>)?;
    Ok(one(kind.member, StatusCode::CREATED, &Query::default(), show_rule_of(&rule)))
}

pub async fn update_rule(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, collection, rule)): Path<(String, String, String)>,
    Body(sent): Body<Value>,
) -> Result<Response, Refusal> {
    let kind = kind(&collection)?;
    let given = body(kind.member, sent)?;
    let (policy, before) = {
        let view = state.ops.world().read();
        (own::<QosPolicyRecord>(&view, &caller, &id)?, find_rule(&view, &caller, &id, kind, &rule)?)
    };
    let rule = QosRule { id: before.id, kind: read(kind, given, Some(before.kind))? };
    state.ops.put_qos_rule(reach(&caller)?, policy, &rule).await.map_err(told::<QosPolicyRecord>)?;
    Ok(one(kind.member, StatusCode::OK, &Query::default(), show_rule_of(&rule)))
}

pub async fn delete_rule(
    State(state): State<OpenStack>,
    caller: Caller,
    Path((id, collection, rule)): Path<(String, String, String)>,
) -> Result<StatusCode, Refusal> {
    let kind = kind(&collection)?;
    let (policy, rule) = {
        let view = state.ops.world().read();
        (own::<QosPolicyRecord>(&view, &caller, &id)?, find_rule(&view, &caller, &id, kind, &rule)?.id)
    };
    state.ops.remove_qos_rule(reach(&caller)?, policy, rule).await.map_err(told::<QosPolicyRecord>)?;
    Ok(StatusCode::NO_CONTENT)
}

pub async fn rule_types() -> Json<Value> {
    Json(json!({"rule_types": KINDS.map(|kind| json!({"type": kind.name}))}))
}

pub async fn rule_type(Path(id): Path<String>) -> Result<Json<Value>, Refusal> {
    let found = KINDS.into_iter().find(|kind| kind.name == id);
    let kind = found.ok_or_else(|| Refusal::not_found("rule type", id).kind("QosRuleTypeNotFound"))?;
    Ok(Json(json!({"rule_type": {"type": kind.name, "drivers": []}})))
}
