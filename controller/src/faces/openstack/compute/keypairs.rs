//! `/os-keypairs`. Microversions: 2.2 (type; 201 and 204), 2.10 (another user's, for administrators), 2.35 (paging),
//! 2.92 (nothing is generated any more; names may have `@` and `.`).

use super::super::OpenStack;
use super::super::answers::Refusal;
use super::super::body::Body;
use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::page::Page;
use super::super::query::Query;
use super::super::routes::{Need, Routes};
use super::super::words;
use super::{PAGE_MAX, next_link, only, text};
use crate::model::{KeyKind, KeyPairKey, KeyPairRecord};
use crate::ops::identity::Caller;
use crate::ops::key_pairs::KeyPairSpec;
use crate::ops::{OpsError, Row};
use amphi_api::{ProjectId, UserId};
use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use serde_json::{Value, json};

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .get("/v2.1/os-keypairs", Need::Reader, list)
        .post("/v2.1/os-keypairs", Need::Member, create)
        .get("/v2.1/os-keypairs/{name}", Need::Reader, show)
        .delete("/v2.1/os-keypairs/{name}", Need::Member, delete)
}

/// Whose key pairs are meant.
fn owner(caller: &Caller, version: Microversion, wanted: Option<&str>) -> Result<UserId, Refusal> {
    let Some(text) = wanted.filter(|_| version.from(10)) else { return Ok(caller.user) };
    let user = words::id(text).map(UserId);
    if user == Some(caller.user) {
        return Ok(caller.user);
    }
    if !caller.is_admin() {
        return Err(Refusal::forbidden("Policy doesn't allow this to be performed for another user."));
    }
    // Nobody of another form of id has any.
    Ok(user.unwrap_or(UserId(uuid::Uuid::nil())))
}

fn body(key: &KeyPairRecord, version: Microversion) -> Value {
    let mut body = json!({"name": key.name, "public_key": key.public_key, "fingerprint": key.fingerprint});
    if version.from(2) {
        body["type"] = json!(key.kind.word());
    }
    body
}

async fn list(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    base: Base,
    query: Query,
) -> Result<Json<Value>, Refusal> {
    let user = owner(&caller, version, query.one("user_id"))?;
    let view = state.ops.world().read();
    let mut rows: Vec<&Row<KeyPairRecord>> = view.key_pairs.of_project(ProjectId(user.0)).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    let page = if version.from(35) { Page::of(&query, PAGE_MAX)? } else { Page::default() };
    let most = if version.from(35) { PAGE_MAX } else { usize::MAX };
    let slice = page.cut(rows, most, |row| row.name.clone())?;
    let shown = |row: &&Row<KeyPairRecord>| json!({"keypair": body(row, version)});
    let mut answer = json!({"keypairs": slice.items.iter().map(shown).collect::<Vec<_>>()});
    if let Some(last) = slice.items.last().filter(|_| slice.more && version.from(35)) {
        answer["keypairs_links"] = next_link(&base, "/os-keypairs", &query, &last.name);
    }
    Ok(Json(answer))
}

async fn create(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    Body(request): Body<Value>,
) -> Result<(StatusCode, Json<Value>), Refusal> {
    let known = ["name", "public_key", "type", "user_id"];
    let known = if version.from(10) { &known[..] } else { &known[..if version.from(2) { 3 } else { 2 }] };
    let map = only(request, "keypair", known)?;
    let name = text(&map, "name")?;
    let fits =
        |c: char| c.is_ascii_alphanumeric() || "_- ".contains(c) || (version.from(92) && "@.".contains(c));
    if name.is_empty() || name.len() > 255 || name.trim() != name || !name.chars().all(fits) {
        return Err(Refusal::field("name", "1 to 255 letters, digits, '-', '_' and spaces within"));
    }
    let kind = match map.get("type").map(|value| value.as_str()) {
        None | Some(Some("ssh")) => KeyKind::Ssh,
        Some(Some("x509")) => KeyKind::X509,
        Some(_) => return Err(Refusal::field("type", "it is neither 'ssh' nor 'x509'")),
    };
    let public_key = match map.get("public_key") {
        None if version.from(92) => {
            return Err(Refusal::bad("Invalid input: 'public_key' is a required property"));
        }
        None => None,
        Some(_) => Some(text(&map, "public_key")?.to_owned()),
    };
    let wanted = map.get("user_id").map(|_| text(&map, "user_id")).transpose()?;
    let user = owner(&caller, version, wanted)?;
    let spec = KeyPairSpec { name: name.to_owned(), kind, public_key };
    let (record, private_key) = match state.ops.create_key_pair(caller.project()?, user, &spec).await {
        // nova's own words for this limit.
        Err(OpsError::Quota(_)) => {
            return Err(Refusal::forbidden("Quota exceeded, too many key pairs."));
        }
        made => made?,
    };
    let mut answer = body(&record, version);
    answer["user_id"] = json!(words::hex(user.0));
    if let Some(private_key) = private_key {
        answer["private_key"] = json!(private_key);
    }
    let status = if version.from(2) { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({"keypair": answer}))))
}

async fn show(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let user = owner(&caller, version, query.one("user_id"))?;
    let view = state.ops.world().read();
    let row = view.key_pairs.get(KeyPairKey::of(user, &name)).ok_or_else(|| absent(user, &name))?;
    let mut answer = body(row, version);
    answer["user_id"] = json!(words::hex(user.0));
    answer["id"] = json!(KeyPairKey::of(user, &name).number());
    answer["created_at"] = json!(words::cinder_time(row.created_at));
    answer["updated_at"] = Value::Null;
    answer["deleted"] = json!(false);
    answer["deleted_at"] = Value::Null;
    Ok(Json(json!({"keypair": answer})))
}

fn absent(user: UserId, name: &str) -> Refusal {
    let user = words::hex(user.0);
    Refusal::new(StatusCode::NOT_FOUND, format!("Keypair {name} not found for user {user}"))
}

async fn delete(
    State(state): State<OpenStack>,
    caller: Caller,
    version: Microversion,
    query: Query,
    Path(name): Path<String>,
) -> Result<StatusCode, Refusal> {
    let user = owner(&caller, version, query.one("user_id"))?;
    match state.ops.delete_key_pair(user, &name).await {
        Ok(()) if version.from(2) => Ok(StatusCode::NO_CONTENT),
        Ok(()) => Ok(StatusCode::ACCEPTED),
        Err(OpsError::NotFound { .. }) => Err(absent(user, &name)),
        Err(error) => Err(error.into()),
    }
}
