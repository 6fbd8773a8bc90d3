//! Server groups: which instances keep together on one host, and which keep apart. Members are kept in the group, so
//! that two placements that look at the same group conflict and one decides again.

use super::Record;
use amphi_api::{InstanceId, ProjectId, ServerGroupId, UserId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupPolicy {
    Affinity,
    AntiAffinity,
    SoftAffinity,
    SoftAntiAffinity,
}

impl GroupPolicy {
    pub const ALL: [Self; 4] =
        [Self::Affinity, Self::AntiAffinity, Self::SoftAffinity, Self::SoftAntiAffinity];

    /// As nova says it: `soft-anti-affinity`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Affinity => "affinity",
            Self::AntiAffinity => "anti-affinity",
            Self::SoftAffinity => "soft-affinity",
            Self::SoftAntiAffinity => "soft-anti-affinity",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.word() == word)
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerGroupRecord {
    pub id: ServerGroupId,
    pub project: ProjectId,
    pub user: UserId,
    pub name: String,
    pub policy: GroupPolicy,
    /// Members of an anti-affine group that one host may run; nova's default is 1.
    #[serde(default)]
    pub max_server_per_host: Option<u32>,
    #[serde(default)]
    pub members: Vec<InstanceId>,
    pub created_at: Timestamp,
}

impl ServerGroupRecord {
    /// With one member more.
    pub fn with(&self, member: InstanceId) -> Self {
        let mut record = self.clone();
        if !record.members.contains(&member) {
            record.members.push(member);
        }
        record
    }

    /// Without this member.
    pub fn without(&self, member: InstanceId) -> Self {
        let mut record = self.clone();
        record.members.retain(|m| *m != member);
        record
    }
}

impl Record for ServerGroupRecord {
    const PREFIX: &'static str = "/server-group/";
    const NOUN: &'static str = "server group";
    type Id = ServerGroupId;
    fn id(&self) -> ServerGroupId {
        self.id
    }
    fn owner(&self) -> Option<(ProjectId, &str)> {
        Some((self.project, &self.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_what_serde_writes() {
        for policy in GroupPolicy::ALL {
            assert_eq!(serde_json::to_value(policy).unwrap(), policy.word());
            assert_eq!(GroupPolicy::from_word(policy.word()), Some(policy));
        }
        assert_eq!(GroupPolicy::from_word("legacy"), None);
    }
}
