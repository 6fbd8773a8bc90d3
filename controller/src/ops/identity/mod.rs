//! Who may ask, and everything that hangs on it: one file per noun. Roles are looked up when a token is used, never
//! written into it, so that what an administrator takes away is gone at once.
//!
//! Refuses to decide who may call what here: the faces' table says so.

mod app_credentials;
mod assignments;
mod bootstrap;
mod caller;
mod catalog;
mod clear;
mod domains;
mod door;
mod grants;
mod groups;
mod guesses;
mod login;
mod names;
mod pass;
mod projects;
mod regions;
mod roles;
mod roles_at;
#[cfg(test)]
mod tests;
mod tokens;
mod users;
mod view;

pub use app_credentials::AppCredentialWish;
pub use assignments::{Assignment, AssignmentFilter};
pub use caller::Caller;
pub use catalog::{EndpointChange, ServiceChange};
pub use domains::DomainChange;
pub use door::Door;
pub use groups::GroupChange;
pub use guesses::Knock;
pub use login::{DomainRef, Login, ProjectRef, Proof, ScopeWish, UserRef};
pub use pass::{Access, Act, MIRROR, PASS_LIFETIME, Place, Visitor};
pub use projects::{ProjectChange, ProjectParent};
pub use regions::RegionChange;
pub use roles::RoleChange;
pub use tokens::TOKEN_LIFETIME;
pub use users::UserChange;
pub use view::Identity;
