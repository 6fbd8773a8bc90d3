//! Deleting what hangs on something that goes: grants, memberships, application credentials, in transactions of a
//! bounded size. One that is made at the same moment may stay behind: it stands for nothing, since ids are never used
//! twice, and lists leave it out.

use super::Identity;
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError, Row, View};

/// Deletions in one transaction: each is a compare and an operation of the 128 that a store takes.
const AT_ONCE: usize = 50;

/// What goes with something else.
pub enum Hanging {
    Grant(Row<GrantRecord>),
    Membership(Row<MembershipRecord>),
    AppCredential(Row<AppCredentialRecord>),
    Inference(Row<InferenceRecord>),
    Endpoint(Row<EndpointRecord>),
}

impl Hanging {
    pub fn delete(&self, draft: &mut Draft) {
        match self {
            Self::Grant(row) => draft.delete(row),
            Self::Membership(row) => draft.delete(row),
            Self::Inference(row) => draft.delete(row),
            Self::Endpoint(row) => draft.delete(row),
            Self::AppCredential(row) => {
                draft.delete(row);
                draft.release(super::names::name_key(AppCredentialRecord::NOUN, row.user, &row.name));
            }
        }
    }
}

impl Ops {
    /// Deletes until `find` finds nothing more.
    pub(super) async fn clear(&self, find: impl Fn(&View) -> Vec<Hanging>) -> Result<(), OpsError> {
        loop {
            let left = self
                .transact(|view| {
                    let mut draft = Draft::default();
                    let found = find(view);
                    // A credential takes two operations.
                    found.iter().take(AT_ONCE / 2).for_each(|hanging| hanging.delete(&mut draft));
                    Ok((draft, found.len().saturating_sub(AT_ONCE / 2)))
                })
                .await?;
            if left == 0 {
                return Ok(());
            }
        }
    }
}

impl Identity {
    pub(super) fn hanging_on_user(&self, user: UserId) -> Vec<Hanging> {
        let grants = self.grants_of(Actor::User(user)).cloned().map(Hanging::Grant);
        let memberships = self.memberships_of(user).cloned().map(Hanging::Membership);
        let credentials = self.app_credentials_of(user).cloned().map(Hanging::AppCredential);
        grants.chain(memberships).chain(credentials).collect()
    }

    pub(super) fn hanging_on_group(&self, group: GroupId) -> Vec<Hanging> {
        let grants = self.grants_of(Actor::Group(group)).cloned().map(Hanging::Grant);
        let memberships = self.memberships.iter().filter(|m| m.group == group).cloned();
        grants.chain(memberships.map(Hanging::Membership)).collect()
    }

    pub(super) fn hanging_on_target(&self, target: Target) -> Vec<Hanging> {
        let grants = self.grants_on(target).cloned().map(Hanging::Grant);
        let of = |c: &&Row<AppCredentialRecord>| target == Target::Project(c.project);
        grants.chain(self.app_credentials.iter().filter(of).cloned().map(Hanging::AppCredential)).collect()
    }

    pub(super) fn hanging_on_role(&self, role: RoleId) -> Vec<Hanging> {
        let grants = self.grants.iter().filter(|g| g.role == role).cloned().map(Hanging::Grant);
        let inferences = self.inferences.iter().filter(|i| i.prior == role || i.implied == role);
        grants.chain(inferences.cloned().map(Hanging::Inference)).collect()
    }

    pub(super) fn hanging_on_service(&self, service: ServiceId) -> Vec<Hanging> {
        self.endpoints.iter().filter(|e| e.service == service).cloned().map(Hanging::Endpoint).collect()
    }
}
