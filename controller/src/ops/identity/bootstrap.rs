//! What there is before anyone has made anything: a domain, an administrator with a project, the three roles, and the
//! catalogue. Made in one transaction at the first start; what is deleted or changed later stays so.

use super::Caller;
use super::names::name_key;
use super::roles::role_owner;
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use crate::tokens;
use amphi_api::ProjectId;
use jiff::Timestamp;

/// The region of the first catalogue.
pub const REGION: &str = "RegionOne";

/// The three roles, greatest first: each implies the next.
const ROLES: [&str; 3] = ["admin", "member", "reader"];

/// Type, name and path below the base URL of each service. Block storage is published under both names that clients
/// look for.
const SERVICES: [(&str, &str, &str); 7] = [
    ("identity", "keystone", "/identity"),
    ("compute", "nova", "/compute/v2.1"),
    ("image", "glance", "/image"),
    ("network", "neutron", "/network"),
    ("block-storage", "cinder", "/volume/v3/$(project_id)s"),
    ("volumev3", "cinderv3", "/volume/v3/$(project_id)s"),
    ("placement", "placement", "/placement"),
];

impl Ops {
    /// Whether identity's first records are there.
    pub fn identity_ready(&self) -> bool {
        self.world().read().identity.domains.get(DomainId::DEFAULT).is_some()
    }

    /// Makes the first records, with this password for the user `admin`, unless they are there.
    pub async fn bootstrap_identity(&self, password: &str) -> Result<(), OpsError> {
        if self.identity_ready() {
            return Ok(());
        }
        let digest = self.digest(password).await?;
        let now = Timestamp::now();
        self.transact(|view| {
            let mut draft = Draft::default();
            if view.identity.domains.get(DomainId::DEFAULT).is_some() {
                return Ok((draft, ()));
            }
            domain_and_projects(&mut draft, now);
            administrator(&mut draft, digest.clone(), now);
            catalogue(&mut draft, now);
            draft.create(&TokenKeyRecord {
                id: TokenKeyId::new(),
                secret: tokens::new_secret(),
                created_at: now,
            });
            Ok((draft, ()))
        })
        .await
    }
}

fn domain_and_projects(draft: &mut Draft, now: Timestamp) {
    let domain = DomainRecord {
        id: DomainId::DEFAULT,
        name: "Default".into(),
        description: "The default domain".into(),
        enabled: true,
        tags: Default::default(),
        options: Extra::new(),
        extra: Extra::new(),
        tokens_since: None,
        created_at: now,
    };
    draft.create(&domain);
    draft.reserve(name_key(DomainRecord::NOUN, "", &domain.name), domain.id);
    for (id, name, description) in [
        (ProjectId::DEFAULT, "admin", "The administrators' project"),
        (ProjectId::new(), "service", "The services' project"),
    ] {
        let project = ProjectRecord {
            id,
            domain: DomainId::DEFAULT,
            parent: None,
            name: name.into(),
            description: description.into(),
            enabled: true,
            tags: Default::default(),
            options: Extra::new(),
            extra: Extra::new(),
            tokens_since: None,
            created_at: now,
        };
        draft.create(&project);
        draft.reserve(name_key(ProjectRecord::NOUN, DomainId::DEFAULT, name), id);
    }
}

fn administrator(draft: &mut Draft, password: Digest, now: Timestamp) {
    let user = UserRecord {
        id: Caller::ADMIN,
        domain: DomainId::DEFAULT,
        name: "admin".into(),
        password: Some(password),
        password_expires_at: None,
        enabled: true,
        default_project: None,
        options: Extra::new(),
        extra: Extra::new(),
        tokens_since: None,
        created_at: now,
    };
    draft.create(&user);
    draft.reserve(name_key(UserRecord::NOUN, DomainId::DEFAULT, &user.name), user.id);
    let roles = ROLES.map(|name| RoleRecord {
        id: RoleId::of(name),
        name: name.into(),
        domain: None,
        description: None,
        options: [("immutable".to_owned(), true.into())].into(),
        extra: Extra::new(),
        created_at: now,
    });
    for role in &roles {
        draft.create(role);
        draft.reserve(name_key(RoleRecord::NOUN, role_owner(None), &role.name), role.id);
    }
    for pair in roles.windows(2) {
        draft.create(&InferenceRecord { prior: pair[0].id, implied: pair[1].id });
    }
    for target in [Target::Project(ProjectId::DEFAULT), Target::System] {
        let actor = Actor::User(user.id);
        draft.create(&GrantRecord { actor, target, role: roles[0].id, inherited: false });
    }
}

fn catalogue(draft: &mut Draft, now: Timestamp) {
    draft.create(&RegionRecord {
        name: REGION.into(),
        description: String::new(),
        parent: None,
        extra: Extra::new(),
    });
    for (kind, name, path) in SERVICES {
        let service = ServiceRecord {
            id: ServiceId::new(),
            kind: kind.into(),
            name: Some(name.into()),
            description: None,
            enabled: true,
            extra: Extra::new(),
            created_at: now,
        };
        draft.create(&service);
        for interface in [Interface::Public, Interface::Internal, Interface::Admin] {
            draft.create(&EndpointRecord {
                id: EndpointId::new(),
                service: service.id,
                interface,
                url: format!("$(base)s{path}"),
                region: Some(REGION.into()),
                name: None,
                enabled: true,
                extra: Extra::new(),
                created_at: now,
            });
        }
    }
}
