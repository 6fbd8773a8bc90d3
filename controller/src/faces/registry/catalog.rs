//! `/v2/_catalog`: the repositories of the projects in which the visitor has a role.

use super::errors::Failure;
use super::{Registry, page};
use crate::ops::identity::Visitor;
use axum::Json;
use axum::response::{AppendHeaders, IntoResponse, Response};
use serde_json::json;

pub fn list(registry: &Registry, visitor: &Visitor, query: &[(String, String)]) -> Result<Response, Failure> {
    let mut names: Vec<String> = {
        let view = registry.ops.world().read();
        let mut names = Vec::new();
        for project in visitor.projects(&view) {
            let word = registry.ops.registry_word(&view, project);
            names.extend(view.repositories.of_project(project).map(|row| match row.mirror {
                Some(_) => row.name.clone(),
                None => format!("{word}/{}", row.name),
            }));
        }
        names
    };
    names.sort();
    let (repositories, next) = page::cut(names, query, "/v2/_catalog")?;
    Ok((AppendHeaders(next), Json(json!({"repositories": repositories}))).into_response())
}
