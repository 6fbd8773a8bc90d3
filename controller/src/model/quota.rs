//! Quotas: what one project, one of its users, or everybody by default may have. A limit of -1 is none.
//!
//! Only what differs from the defaults is kept. Usage is no record: it is counted in memory, from the things themselves.

use super::Record;
use amphi_api::{ProjectId, UserId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Unlimited.
pub const NO_LIMIT: i64 = -1;

/// Whose limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum QuotaKey {
    /// The class `default` of nova and cinder: what projects have that are given nothing else.
    Default,
    Project(ProjectId),
    /// Of one user within a project: nova alone has these.
    User(ProjectId, UserId),
}

impl fmt::Display for QuotaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Project(project) => write!(f, "{project}"),
            Self::User(project, user) => write!(f, "{project}.{user}"),
        }
    }
}

impl FromStr for QuotaKey {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('.') {
            _ if text == "default" => Ok(Self::Default),
            Some((project, user)) => Ok(Self::User(project.parse()?, user.parse()?)),
            None => text.parse().map(Self::Project),
        }
    }
}

impl From<QuotaKey> for String {
    fn from(key: QuotaKey) -> String {
        key.to_string()
    }
}

impl TryFrom<String> for QuotaKey {
    type Error = uuid::Error;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuotaRecord {
    pub of: QuotaKey,
    /// By resource as [`Resource`] words it; those of volume types have the type's name behind them (`volumes_fast`).
    #[serde(default)]
    pub limits: BTreeMap<String, i64>,
}

impl Record for QuotaRecord {
    const PREFIX: &'static str = "/quota/";
    const NOUN: &'static str = "quota";
    type Id = QuotaKey;
    fn id(&self) -> QuotaKey {
        self.of
    }
}

macro_rules! resources {
    ($($(#[$doc:meta])* $name:ident $word:literal $service:ident $default:literal,)*) => {
        /// What is limited.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Resource { $($(#[$doc])* $name,)* }

        impl Resource {
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The service's own word for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            pub fn service(self) -> QuotaService {
                match self { $(Self::$name => QuotaService::$service,)* }
            }

            /// What a project may have that is given nothing else.
            pub fn default_limit(self) -> i64 {
                match self { $(Self::$name => $default,)* }
            }
        }
    };
}

/// Whose API sets and shows a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaService {
    Compute,
    Volume,
    Network,
    Image,
}

// Defaults: nova/conf/quota.py (nova-network's own in nova/quota.py `_get_network_quotas`-era values that the API still
// shows below microversion 2.36), cinder/quota.py `quota_opts`, neutron/conf/quota.py and the extensions' `quota_*`.
resources! {
    Instances "instances" Compute 10,
    Cores "cores" Compute 20,
    /// MiB.
    Ram "ram" Compute 51_200,
    MetadataItems "metadata_items" Compute 128,
    InjectedFiles "injected_files" Compute 5,
    InjectedFileContentBytes "injected_file_content_bytes" Compute 10_240,
    InjectedFilePathBytes "injected_file_path_bytes" Compute 255,
    /// Of one user.
    KeyPairs "key_pairs" Compute 100,
    ServerGroups "server_groups" Compute 10,
    /// Of one group.
    ServerGroupMembers "server_group_members" Compute 10,
    /// nova-network's, shown and set only below 2.36; nothing is counted.
    FixedIps "fixed_ips" Compute -1,
    /// nova-network's.
    NovaFloatingIps "floating_ips" Compute 10,
    /// nova-network's.
    NovaSecurityGroups "security_groups" Compute 10,
    /// nova-network's.
    NovaSecurityGroupRules "security_group_rules" Compute 20,

    Volumes "volumes" Volume 10,
    Gigabytes "gigabytes" Volume 1000,
    Snapshots "snapshots" Volume 10,
    /// The size of one volume.
    PerVolumeGigabytes "per_volume_gigabytes" Volume -1,
    Backups "backups" Volume 10,
    BackupGigabytes "backup_gigabytes" Volume 1000,
    VolumeGroups "groups" Volume 10,

    Networks "network" Network 100,
    Subnets "subnet" Network 100,
    SubnetPools "subnetpool" Network -1,
    Ports "port" Network 500,
    Routers "router" Network 10,
    FloatingIps "floatingip" Network 50,
    SecurityGroups "security_group" Network 10,
    SecurityGroupRules "security_group_rule" Network 100,
    RbacPolicies "rbac_policy" Network 10,

    /// MiB of the image store, each blob once (glance's unified limit of this name).
    ImageSizeTotal "image_size_total" Image -1,
}

impl Resource {
    pub fn of(service: QuotaService) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |resource| resource.service() == service)
    }

    pub fn from_word(service: QuotaService, word: &str) -> Option<Self> {
        Self::of(service).find(|resource| resource.word() == word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn words_are_unique_and_keys_return() {
        let words: BTreeSet<_> = Resource::ALL.iter().map(|r| r.word()).collect();
        assert_eq!(words.len(), Resource::ALL.len(), "one map holds the limits of all services");
        let (project, user) = (ProjectId::new(), UserId::new());
        for key in [QuotaKey::Default, QuotaKey::Project(project), QuotaKey::User(project, user)] {
            assert_eq!(key.to_string().parse(), Ok(key));
        }
        assert!("nonsense".parse::<QuotaKey>().is_err());
    }
}
