//! Volume groups on disks that several hosts see, and their keepers.
//!
//! One host at a time, the keeper, changes a group's metadata; each new one has a higher term. The keeper changes only when
//! the one before it is gone for sure (as in any failover), or has confirmed an order that no longer names it keeper.
//!
//! Where a volume lies, a record names a host or such a group ([`VolumeGroupId::place`]): orders, room and tombstones of a
//! group's volumes are the group's, and the keeper carries them out. So neither a new keeper nor a new holder changes a
//! volume's record.

use super::Record;
use amphi_api::{HostId, VolumeGroupId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeGroupRecord {
    pub id: VolumeGroupId,
    /// LVM's name, as the host said it that was the first to see the group.
    pub name: String,
    pub size_bytes: u64,
    #[serde(default)]
    pub keeper: Option<HostId>,
    /// Grows with every keeper.
    #[serde(default)]
    pub term: u64,
    /// The keeper is no longer told that it is one; the next one waits until it has confirmed that.
    #[serde(default)]
    pub retiring: bool,
    pub created_at: Timestamp,
}

/// What is known of the keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeeperSight {
    /// It may be at work, whether it answers or not.
    Fit,
    /// It is there, and another one would do better: it sees the group no more, or is being emptied.
    Unfit,
    /// Its host is shut out, or no record knows it.
    Gone,
}

impl VolumeGroupRecord {
    /// The record with the next step taken; the same if there is none. `fit`: the host that would be the next keeper.
    pub fn kept(&self, keeper: KeeperSight, fit: Option<HostId>) -> Self {
        let next = || Self {
            keeper: fit,
            term: self.term + u64::from(fit.is_some()),
            retiring: false,
            ..self.clone()
        };
        match (self.keeper, keeper) {
            (None, _) if fit.is_some() => next(),
            (Some(_), KeeperSight::Gone) => next(),
            (Some(_), KeeperSight::Unfit) if fit.is_some() => Self { retiring: true, ..self.clone() },
            _ => self.clone(),
        }
    }

    /// The keeper has confirmed an order that does not name it keeper.
    pub fn released(&self) -> Self {
        Self { keeper: None, retiring: false, ..self.clone() }
    }

    /// Whether this host is told that it keeps the group.
    pub fn is_kept_by(&self, host: HostId) -> bool {
        self.keeper == Some(host) && !self.retiring
    }
}

impl Record for VolumeGroupRecord {
    const PREFIX: &'static str = "/volume-group/";
    const NOUN: &'static str = "shared volume group";
    type Id = VolumeGroupId;
    fn id(&self) -> VolumeGroupId {
        self.id
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_followed_only_when_it_is_gone_or_has_let_go() {
        let (h1, h2) = (HostId::new(), HostId::new());
        let id = VolumeGroupId::of("x");
        let none = VolumeGroupRecord {
            id,
            name: "san".into(),
            size_bytes: 1,
            keeper: None,
            term: 0,
            retiring: false,
            created_at: Timestamp::UNIX_EPOCH,
        };
        let first = none.kept(KeeperSight::Gone, Some(h1));
        assert_eq!((first.keeper, first.term), (Some(h1), 1));
        assert_eq!(none.kept(KeeperSight::Gone, None), none, "nobody sees it");
        assert_eq!(first.kept(KeeperSight::Fit, Some(h2)), first, "one that is silent may be at work");
        let second = first.kept(KeeperSight::Gone, Some(h2));
        assert_eq!((second.keeper, second.term), (Some(h2), 2));
        let orphan = first.kept(KeeperSight::Gone, None);
        assert_eq!((orphan.keeper, orphan.term), (None, 1));
        let retiring = first.kept(KeeperSight::Unfit, Some(h2));
        assert!(retiring.retiring && retiring.keeper == Some(h1) && !retiring.is_kept_by(h1));
        assert_eq!(retiring.kept(KeeperSight::Unfit, Some(h2)), retiring, "it has not said so yet");
        let next = retiring.released().kept(KeeperSight::Fit, Some(h2));
        assert_eq!((next.keeper, next.term, next.retiring), (Some(h2), 2, false));
        assert_eq!(first.kept(KeeperSight::Unfit, None), first, "better it than none");
    }
}
