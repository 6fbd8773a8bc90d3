//! Identity, version 3 (keystone's): a file per resource. Translates only; what may be asked is in the table, what may
//! be done in `ops`.

mod app_credentials;
mod auth;
mod domains;
mod endpoints;
mod fields;
mod grants;
mod groups;
mod lists;
mod places;
mod projects;
mod regions;
mod role_assignments;
mod roles;
mod services;
#[cfg(test)]
mod tests;
mod token_body;
mod users;
mod versions;

use super::Service;
use super::answers::Refusal;
use super::routes::Routes;
use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::fmt::Display;
use std::str::FromStr;

/// Below the base URL.
const ROOT: &str = "/identity/v3";

pub fn routes() -> Routes {
    let parts: [fn(Routes) -> Routes; 13] = [
        versions::routes,
        auth::routes,
        domains::routes,
        projects::routes,
        users::routes,
        groups::routes,
        roles::routes,
        grants::routes,
        role_assignments::routes,
        services::routes,
        endpoints::routes,
        regions::routes,
        app_credentials::routes,
    ];
    parts.into_iter().fold(Routes::new(Service::Identity), |routes, part| part(routes))
}

/// The id in a path. One that is none belongs to nothing.
fn id<T: FromStr>(noun: &str, text: &str) -> Result<T, Refusal> {
    text.parse().map_err(|_| missing(noun, text))
}

/// 404 in keystone's words.
fn missing(noun: &str, id: impl Display) -> Refusal {
    Refusal::new(axum::http::StatusCode::NOT_FOUND, format!("Could not find {noun}: {id}."))
}

fn forbidden() -> Refusal {
    Refusal::forbidden("You are not authorized to perform the requested action.")
}

/// `{"user": {…}}`
fn one(key: &str, value: Value) -> Json<Value> {
    Json(json!({ key: value }))
}

/// An answer with a status of its own.
fn with(status: u16, body: impl IntoResponse) -> Response {
    let status = axum::http::StatusCode::from_u16(status).unwrap_or(axum::http::StatusCode::OK);
    (status, body).into_response()
}
