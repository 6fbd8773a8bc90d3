//! Who may ask for what: domains, projects, users, groups, roles, grants, the service catalogue, and what tokens hang
//! on. Pure records; who may do what with them is said in `ops`.

mod catalog;
mod grant;
mod ids;
mod project;
mod token;
mod user;

pub use catalog::{EndpointRecord, Interface, RegionRecord, ServiceRecord};
pub use grant::{Actor, GrantRecord, InferenceRecord, RoleRecord, Target};
pub use ids::*;
pub use project::{DomainRecord, ProjectRecord};
pub use token::{RevocationRecord, Scope, TokenKeyRecord};
pub use user::{AppCredentialRecord, Digest, GroupRecord, MembershipRecord, UserRecord};

/// Attributes beyond the known ones, which clients may set and read back, as keystone has it.
pub type Extra = std::collections::BTreeMap<String, serde_json::Value>;
