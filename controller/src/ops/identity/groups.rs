//! Groups of users.

use super::names::{self, NAME_MAX, name_key};
use crate::model::Record;
use crate::model::identity::*;
use crate::ops::{Draft, Ops, OpsError};
use jiff::Timestamp;

/// What a new group is to be, or what is to change.
#[derive(Clone, Debug, Default)]
pub struct GroupChange {
    pub name: Option<String>,
    pub domain: Option<DomainId>,
    pub description: Option<String>,
    pub extra: Extra,
}

const WITHIN: &str = "the same domain";

impl Ops {
    pub async fn create_identity_group(
        &self,
        default_domain: DomainId,
        change: &GroupChange,
    ) -> Result<GroupRecord, OpsError> {
        let name = change.name.clone().ok_or_else(|| OpsError::field("name", "is a required property"))?;
        names::check(&name, NAME_MAX)?;
        let record = GroupRecord {
            id: GroupId::new(),
            domain: change.domain.unwrap_or(default_domain),
            name,
            description: change.description.clone().unwrap_or_default(),
            extra: change.extra.clone(),
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let identity = &view.identity;
            if identity.group_named(record.domain, &record.name).is_some() {
                return Err(names::taken("group", &record.name, WITHIN));
            }
            let domain = identity.domains.get(record.domain);
            let mut draft = Draft::default();
            draft.guard(domain.ok_or_else(|| OpsError::not_found::<DomainRecord>(record.domain))?);
            draft.create(&record);
            draft.reserve(name_key(GroupRecord::NOUN, record.domain, &record.name), record.id);
            Ok((draft, ()))
        })
        .await?;
        Ok(record)
    }

    pub async fn update_identity_group(
        &self,
        id: GroupId,
        change: &GroupChange,
    ) -> Result<GroupRecord, OpsError> {
        if let Some(name) = &change.name {
            names::check(name, NAME_MAX)?;
        }
        self.transact(|view| {
            let identity = &view.identity;
            let row = identity.groups.get(id).ok_or_else(|| OpsError::not_found::<GroupRecord>(id))?;
            if change.domain.is_some_and(|named| named != row.domain) {
                return Err(OpsError::field("domain_id", "cannot be changed"));
            }
            let mut record = (*row.record).clone();
            let mut draft = Draft::default();
            if let Some(name) = change.name.as_ref().filter(|name| **name != row.name) {
                if identity.group_named(row.domain, name).is_some() {
                    return Err(names::taken("group", name, WITHIN));
                }
                names::rename(&mut draft, GroupRecord::NOUN, row.domain, &row.name, name, id);
                record.name = name.clone();
            }
            if let Some(description) = &change.description {
                record.description = description.clone();
            }
            names::overlay(&mut record.extra, &change.extra);
            draft.update(row, &record);
            Ok((draft, record))
        })
        .await
    }

    pub async fn delete_identity_group(&self, id: GroupId) -> Result<(), OpsError> {
        let missing = || OpsError::not_found::<GroupRecord>(id);
        self.world().read().identity.groups.get(id).ok_or_else(missing)?;
        self.clear(|view| view.identity.hanging_on_group(id)).await?;
        self.transact(|view| {
            let row = view.identity.groups.get(id).ok_or_else(missing)?;
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(GroupRecord::NOUN, row.domain, &row.name));
            Ok((draft, ()))
        })
        .await
    }

    /// No error when the user is in the group already.
    pub async fn add_to_group(&self, group: GroupId, user: UserId) -> Result<(), OpsError> {
        self.transact(|view| {
            let identity = &view.identity;
            let row = identity.groups.get(group).ok_or_else(|| OpsError::not_found::<GroupRecord>(group))?;
            let user_row = identity.users.get(user);
            let user_row = user_row.ok_or_else(|| OpsError::not_found::<UserRecord>(user.0.simple()))?;
            let mut draft = Draft::default();
            if identity.memberships.get(MembershipRecord::id_of(user, group)).is_none() {
                draft.guard(row);
                draft.guard(user_row);
                draft.create(&MembershipRecord { user, group });
            }
            Ok((draft, ()))
        })
        .await
    }

    pub async fn remove_from_group(&self, group: GroupId, user: UserId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.identity.memberships.get(MembershipRecord::id_of(user, group));
            let row = row.ok_or_else(|| OpsError::not_found::<MembershipRecord>(user.0.simple()))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }
}
