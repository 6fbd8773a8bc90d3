//! The paths under which grants are found: somebody, at some place, perhaps inherited.

use super::super::answers::Refusal;
use super::{id, missing};
use crate::model::identity::{Actor, GrantRecord, RoleId, Target};
use crate::ops::identity::Identity;
use std::collections::BTreeMap;

/// A list of roles and one role in it, as paths below `/identity`, and whether what is granted there is inherited.
pub const PLACES: [(&str, &str, bool); 10] = [
    ("/v3/projects/{project}/users/{user}/roles", "/v3/projects/{project}/users/{user}/roles/{role}", false),
    (
        "/v3/projects/{project}/groups/{group}/roles",
        "/v3/projects/{project}/groups/{group}/roles/{role}",
        false,
    ),
    ("/v3/domains/{domain}/users/{user}/roles", "/v3/domains/{domain}/users/{user}/roles/{role}", false),
    ("/v3/domains/{domain}/groups/{group}/roles", "/v3/domains/{domain}/groups/{group}/roles/{role}", false),
    ("/v3/system/users/{user}/roles", "/v3/system/users/{user}/roles/{role}", false),
    ("/v3/system/groups/{group}/roles", "/v3/system/groups/{group}/roles/{role}", false),
    (
        "/v3/OS-INHERIT/projects/{project}/users/{user}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/projects/{project}/users/{user}/roles/{role}/inherited_to_projects",
        true,
    ),
    (
        "/v3/OS-INHERIT/projects/{project}/groups/{group}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/projects/{project}/groups/{group}/roles/{role}/inherited_to_projects",
        true,
    ),
    (
        "/v3/OS-INHERIT/domains/{domain}/users/{user}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/domains/{domain}/users/{user}/roles/{role}/inherited_to_projects",
        true,
    ),
    (
        "/v3/OS-INHERIT/domains/{domain}/groups/{group}/roles/inherited_to_projects",
        "/v3/OS-INHERIT/domains/{domain}/groups/{group}/roles/{role}/inherited_to_projects",
        true,
    ),
];

pub type Words = BTreeMap<String, String>;

/// Who, and where: 404 of what does not exist. A domain may also be named as a project.
pub fn place(identity: &Identity, words: &Words) -> Result<(Actor, Target), Refusal> {
    let actor = match (words.get("user"), words.get("group")) {
        (Some(text), _) => {
            let user = id("user", text)?;
            identity.users.get(user).ok_or_else(|| missing("user", text))?;
            Actor::User(user)
        }
        (None, Some(text)) => {
            let group = id("group", text)?;
            identity.groups.get(group).ok_or_else(|| missing("group", text))?;
            Actor::Group(group)
        }
        (None, None) => return Err(missing("user", "")),
    };
    let target = match (words.get("project"), words.get("domain")) {
        (Some(text), _) => {
            let project = id("project", text)?;
            identity.projects.get(project).ok_or_else(|| missing("project", text))?;
            Target::Project(project)
        }
        (None, Some(text)) => {
            let domain = id("domain", text)?;
            identity.domains.get(domain).ok_or_else(|| missing("domain", text))?;
            Target::Domain(domain)
        }
        (None, None) => Target::System,
    };
    Ok((actor, target))
}

pub fn grant(identity: &Identity, words: &Words, inherited: bool) -> Result<GrantRecord, Refusal> {
    let (actor, target) = place(identity, words)?;
    let text = words.get("role").map(String::as_str).unwrap_or_default();
    let role: RoleId = id("role", text)?;
    identity.roles.get(role).ok_or_else(|| missing("role", text))?;
    Ok(GrantRecord { actor, target, role, inherited })
}
