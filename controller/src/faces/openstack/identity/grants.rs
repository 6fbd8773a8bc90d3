//! Grants of roles to users and groups, on projects, domains and the system; inherited ones below `OS-INHERIT`.

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::gate::Base;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::lists::list;
use super::places::{PLACES, Words, grant, place};
use super::{missing, roles};
use axum::Json;
use axum::extract::{OriginalUri, Path, State};
use axum::http::StatusCode;
use serde_json::Value;

pub fn routes(routes: Routes) -> Routes {
    PLACES.into_iter().fold(routes, |routes, (all, one, inherited)| {
        routes
            .get(all, Need::Admin, async move |state, words, base, query, uri| {
                index(state, words, base, query, uri, inherited).await
            })
            .get(one, Need::Admin, async move |state, words| check(state, words, inherited).await)
            .put(one, Need::Admin, async move |state, words| give(state, words, inherited).await)
            .delete(one, Need::Admin, async move |state, words| take(state, words, inherited).await)
    })
}

async fn index(
    State(state): State<OpenStack>,
    Path(words): Path<Words>,
    base: Base,
    query: Query,
    OriginalUri(uri): OriginalUri,
    inherited: bool,
) -> Result<Json<Value>, Refusal> {
    let items: Vec<Value> = {
        let view = state.ops.world().read();
        let identity = &view.identity;
        let (actor, target) = place(identity, &words)?;
        let grants = identity.grants_of(actor).filter(|g| g.target == target && g.inherited == inherited);
        grants.filter_map(|g| identity.roles.get(g.role)).map(|row| roles::render(&base, row)).collect()
    };
    let path = uri.path().strip_prefix(super::ROOT).unwrap_or_default();
    list(&base, path, &query, "roles", items)
}

async fn check(
    State(state): State<OpenStack>,
    Path(words): Path<Words>,
    inherited: bool,
) -> Result<StatusCode, Refusal> {
    let grant = grant(&state.ops.world().read().identity, &words, inherited)?;
    if state.ops.granted_exactly(&grant) {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(missing("role assignment with role", grant.role))
    }
}

async fn give(
    State(state): State<OpenStack>,
    Path(words): Path<Words>,
    inherited: bool,
) -> Result<StatusCode, Refusal> {
    let grant = grant(&state.ops.world().read().identity, &words, inherited)?;
    state.ops.grant(&grant).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn take(
    State(state): State<OpenStack>,
    Path(words): Path<Words>,
    inherited: bool,
) -> Result<StatusCode, Refusal> {
    let grant = grant(&state.ops.world().read().identity, &words, inherited)?;
    state.ops.revoke(&grant).await?;
    Ok(StatusCode::NO_CONTENT)
}
