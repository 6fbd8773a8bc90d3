//! A token as clients see it, and the catalogue in it.

use super::super::gate::Base;
use super::super::words::{hex, keystone_time};
use crate::model::identity::{DomainId, Scope};
use crate::ops::identity::Caller;
use crate::ops::identity::Identity;
use crate::tokens::audit_word;
use amphi_api::ProjectId;
use serde_json::{Value, json};

fn domain(identity: &Identity, id: DomainId) -> Value {
    json!({"id": id.to_string(), "name": identity.domains.get(id).map(|d| d.name.clone())})
}

/// What stands below `token`.
pub fn token(identity: &Identity, base: &Base, caller: &Caller, with_catalog: bool) -> Value {
    let mut audits = vec![audit_word(caller.audit_id)];
    audits.extend(caller.parent_audit_id.map(audit_word));
    let mut token = json!({
        "methods": caller.methods.iter().map(|m| m.word()).collect::<Vec<_>>(),
        "user": {
            "id": hex(caller.user.0),
            "name": caller.user_name,
            "domain": domain(identity, caller.user_domain),
            "password_expires_at": null,
        },
        "audit_ids": audits,
        "expires_at": keystone_time(caller.expires_at),
        "issued_at": keystone_time(caller.issued_at),
    });
    match caller.scope() {
        Scope::Unscoped => return token,
        Scope::System => token["system"] = json!({"all": true}),
        Scope::Domain(id) => token["domain"] = domain(identity, id),
        Scope::Project(id) => {
            if let Some(project) = identity.projects.get(id) {
                token["project"] = json!({
                    "id": hex(id.0),
                    "name": project.name,
                    "domain": domain(identity, project.domain),
                });
                token["is_domain"] = json!(false);
            }
        }
    }
    let roles = caller.roles.iter().filter_map(|name| identity.role_named(name));
    token["roles"] = roles.map(|role| json!({"id": role.id.to_string(), "name": role.name})).collect();
    if with_catalog {
        token["catalog"] = catalog(identity, base, caller.project);
    }
    if let Some(credential) = caller.app_credential.and_then(|id| identity.app_credentials.get(id)) {
        token["application_credential"] = json!({
            "id": credential.id.to_string(),
            "name": credential.name,
            "restricted": !credential.unrestricted,
        });
    }
    token
}

/// The enabled services with their enabled endpoints. One whose address needs a project is left out where there is none.
pub fn catalog(identity: &Identity, base: &Base, project: Option<ProjectId>) -> Value {
    let endpoints = |service: &crate::model::identity::ServiceRecord| -> Vec<Value> {
        let rows = identity.endpoints.of_project(ProjectId(service.id.0)).filter(|e| e.enabled);
        rows.filter_map(|e| {
            Some(json!({
                "id": e.id.to_string(),
                "interface": interface(e.interface),
                "region": e.region,
                "region_id": e.region,
                "url": filled_in(&e.url, base, project)?,
            }))
        })
        .collect()
    };
    let services = identity.services.iter().filter(|s| s.enabled);
    services
        .map(|s| (s, endpoints(s)))
        .filter(|(_, endpoints)| !endpoints.is_empty())
        .map(|(s, endpoints)| {
            json!({"id": s.id.to_string(), "type": s.kind, "name": s.name, "endpoints": endpoints})
        })
        .collect()
}

pub fn interface(interface: crate::model::identity::Interface) -> &'static str {
    use crate::model::identity::Interface::*;
    match interface {
        Public => "public",
        Internal => "internal",
        Admin => "admin",
    }
}

/// The URL for this client; keystone's two spellings of a placeholder are read.
fn filled_in(url: &str, base: &Base, project: Option<ProjectId>) -> Option<String> {
    let url = url.replace("$(base)s", &base.0);
    let words = ["$(project_id)s", "%(project_id)s", "$(tenant_id)s", "%(tenant_id)s"];
    if !words.iter().any(|word| url.contains(word)) {
        return Some(url);
    }
    let project = hex(project?.0);
    Some(words.iter().fold(url, |url, word| url.replace(word, &project)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_filled_in() {
        let base = Base("http://c:1".into());
        let project = Some(ProjectId(uuid::Uuid::from_u128(0xa)));
        let fill = |url: &str, project| filled_in(url, &base, project);
        assert_eq!(fill("$(base)s/compute/v2.1", None).as_deref(), Some("http://c:1/compute/v2.1"));
        assert_eq!(fill("$(base)s/volume/v3/$(project_id)s", None), None);
        assert_eq!(
            fill("https://v/%(tenant_id)s", project).as_deref(),
            Some("https://v/0000000000000000000000000000000a")
        );
    }
}
