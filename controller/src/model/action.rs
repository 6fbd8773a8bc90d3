//! What was done to an instance: one record per order, with its events; and its moves between hosts and sizes. Both
//! outlive the instance.

use super::Record;
use amphi_api::{HostId, InstanceId, ProjectId, UserId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

/// How long actions of an instance that is gone are kept.
pub const ACTIONS_KEPT: SignedDuration = SignedDuration::from_hours(48);

/// `INSTANCE/ACTION`: an instance's actions stand together, in order of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ActionKey {
    pub instance: InstanceId,
    pub id: Uuid,
}

impl ActionKey {
    /// Below every key of the instance.
    pub fn first(instance: InstanceId) -> Self {
        Self { instance, id: Uuid::nil() }
    }
}

impl fmt::Display for ActionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.instance, self.id)
    }
}

impl FromStr for ActionKey {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        let (instance, id) = text.split_once('/').unwrap_or((text, ""));
        Ok(Self { instance: instance.parse()?, id: id.parse()? })
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionRecord {
    pub instance: InstanceId,
    pub id: Uuid,
    pub project: ProjectId,
    #[serde(default)]
    pub user: Option<UserId>,
    /// nova's word: `create`, `stop`, `reboot` …
    pub action: String,
    /// `req-UUID`.
    pub request: String,
    #[serde(default)]
    pub message: Option<String>,
    pub started_at: Timestamp,
    pub updated_at: Timestamp,
    pub events: Vec<ActionEvent>,
}

/// One step of an action. nova names them after functions of its compute service.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActionEvent {
    pub event: String,
    pub started_at: Timestamp,
    #[serde(default)]
    pub finished_at: Option<Timestamp>,
    /// None while it goes on; else whether it came out well.
    #[serde(default)]
    pub success: Option<bool>,
    #[serde(default)]
    pub host: Option<HostId>,
    /// Why it failed.
    #[serde(default)]
    pub details: Option<String>,
}

impl ActionRecord {
    /// The record with all that is open ended now.
    pub fn ended(&self, error: Option<&str>, now: Timestamp) -> Self {
        let mut record = self.clone();
        record.updated_at = now;
        if error.is_some() {
            record.message = Some("Error".into());
        }
        for event in record.events.iter_mut().filter(|e| e.finished_at.is_none()) {
            event.finished_at = Some(now);
            event.success = Some(error.is_none());
            event.details = error.map(str::to_owned);
        }
        record
    }

    pub fn is_open(&self) -> bool {
        self.events.iter().any(|e| e.finished_at.is_none())
    }
}

impl Record for ActionRecord {
    const PREFIX: &'static str = "/action/";
    const NOUN: &'static str = "action";
    type Id = ActionKey;
    fn id(&self) -> ActionKey {
        ActionKey { instance: self.instance, id: self.id }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationKind {
    Resize,
    Migration,
    LiveMigration,
    Evacuation,
}

impl MigrationKind {
    pub fn word(self) -> &'static str {
        match self {
            Self::Resize => "resize",
            Self::Migration => "migration",
            Self::LiveMigration => "live-migration",
            Self::Evacuation => "evacuation",
        }
    }
}

/// A move of an instance to another size or host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MigrationRecord {
    pub id: Uuid,
    pub instance: InstanceId,
    pub project: ProjectId,
    #[serde(default)]
    pub user: Option<UserId>,
    pub kind: MigrationKind,
    /// nova's word: `migrating`, `finished`, `confirmed`, `reverted`, `done`, `error`; of a live one
    /// `preparing`, `running`, `completed`, `cancelled`, `error`.
    pub status: String,
    #[serde(default)]
    pub from: Option<HostId>,
    #[serde(default)]
    pub to: Option<HostId>,
    /// Ids of flavors.
    #[serde(default)]
    pub old_flavor: Option<String>,
    #[serde(default)]
    pub new_flavor: Option<String>,
    pub created_at: Timestamp,
    pub updated_at: Timestamp,
}

impl MigrationRecord {
    /// A number for clients that want one: the milliseconds of its creation, below 2^53.
    pub fn number(&self) -> i64 {
        self.created_at.as_millisecond()
    }

    pub fn now_is(&self, status: &str, now: Timestamp) -> Self {
        Self { status: status.into(), updated_at: now, ..self.clone() }
    }
}

impl Record for MigrationRecord {
    const PREFIX: &'static str = "/migration/";
    const NOUN: &'static str = "migration";
    type Id = Uuid;
    fn id(&self) -> Uuid {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back() {
        let key = ActionKey { instance: InstanceId::new(), id: Uuid::now_v7() };
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!(ActionKey::first(key.instance) <= key);
        assert!("x".parse::<ActionKey>().is_err());
    }
}
