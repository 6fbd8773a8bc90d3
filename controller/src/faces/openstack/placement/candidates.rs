//! `/allocation_candidates`: hosts with room for what is asked. An estimate for whoever asks: it claims nothing.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::providers::{member, stock, suits};
use super::words::{required, resources, since, traits_of};
use axum::Json;
use axum::extract::State;
use serde_json::{Map, Value, json};

/// Most candidates of one answer, whatever is asked for.
const MOST: u64 = 1000;

pub(super) fn routes(routes: Routes) -> Routes {
    routes.get("/allocation_candidates", Need::Admin, list)
}

async fn list(
    State(state): State<OpenStack>,
    version: Microversion,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    since(version, 10)?;
    let text = query
        .one("resources")
        .ok_or_else(|| Refusal::bad("Invalid query string parameters: 'resources' is a required property"))?;
    let asked = resources(text)?;
    let (wanted, barred) = required(query.one("required").unwrap_or_default());
    let limit = query.number("limit")?.unwrap_or(MOST).min(MOST);
    let view = state.ops.world().read();
    let hosts = view
        .hosts
        .iter()
        .filter(|host| host.is_up() && !host.forced_down && !host.disabled)
        .filter(|host| suits(host, &wanted, &barred))
        .filter(|host| query.all("member_of").all(|groups| member(&view, host.id, groups)));
    let (mut requests, mut summaries) = (Vec::new(), Map::new());
    for host in hosts {
        let stock = stock(&view, host, state.ops.policy());
        if !asked.iter().all(|(class, more)| stock.get(class).is_some_and(|stock| stock.fits(*more))) {
            continue;
        }
        if requests.len() as u64 >= limit {
            break;
        }
        let id = host.id.to_string();
        let request = if version.from(12) {
            json!({"allocations": { &id: {"resources": asked} }})
        } else {
            json!({"allocations": [{"resource_provider": {"uuid": id}, "resources": asked}]})
        };
        let mut request = request;
        if version.from(34) {
            request["mappings"] = json!({"": [id]});
        }
        requests.push(request);
        let shown = stock.iter().filter(|(class, _)| version.from(27) || asked.contains_key(*class));
        let figures: Map<String, Value> = shown
            .map(|(class, stock)| {
                ((*class).to_owned(), json!({"capacity": stock.capacity(), "used": stock.used}))
            })
            .collect();
        let mut summary = json!({ "resources": figures });
        if version.from(17) {
            summary["traits"] = json!(traits_of(host.spec.as_ref(), host.disabled));
        }
        if version.from(29) {
            summary["root_provider_uuid"] = json!(id);
            summary["parent_provider_uuid"] = Value::Null;
        }
        summaries.insert(id, summary);
    }
    Ok(Json(json!({"allocation_requests": requests, "provider_summaries": summaries})))
}
