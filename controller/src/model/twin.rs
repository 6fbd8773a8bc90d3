//! The twin of an instance: a body that waits on another host, made as far as a start is all that it lacks. What is to be
//! done about it next: pure.
//!
//! nowhere → placed (room is claimed, the host makes it) → ready → gone with a failover that starts it, or dropped by
//! tombstone. It carries the epoch that the instance would have there: when the instance's own epoch grows, the twin is
//! made anew at the next one. A twin is expected by its host, never desired: no host starts what it only expects.

use super::Record;
use amphi_api::host::Claims;
use amphi_api::instance::{BodyKind, Fault};
use amphi_api::{HostId, InstanceId, ProjectId, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TwinRecord {
    pub instance: InstanceId,
    pub project: ProjectId,
    #[serde(default)]
    pub place: Option<TwinPlace>,
    /// Why it has no place.
    #[serde(default)]
    pub why: Option<String>,
}

/// Where it waits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TwinPlace {
    pub host: HostId,
    pub body: BodyKind,
    /// The one that the instance will have there.
    pub epoch: u64,
    /// The room that is kept for it, its volume's apart.
    pub claims: Claims,
    /// A blank volume, in the place of one that it cannot reach, and its size in GiB.
    #[serde(default)]
    pub volume: Option<(VolumeId, u64)>,
    #[serde(default)]
    pub ready: bool,
    #[serde(default)]
    pub fault: Option<Fault>,
    pub since: Timestamp,
}

impl TwinRecord {
    pub fn placed_on(&self, host: HostId) -> Option<&TwinPlace> {
        self.place.as_ref().filter(|place| place.host == host)
    }

    /// Whether a host's desired state differs between the two: all but what was observed.
    pub fn matters(&self, before: &Self) -> bool {
        let told = |twin: &Self| twin.place.as_ref().map(|p| (p.host, p.body, p.epoch, p.volume));
        told(self) != told(before)
    }
}

impl Record for TwinRecord {
    const PREFIX: &'static str = "/twin/";
    const NOUN: &'static str = "twin";
    type Id = InstanceId;
    fn id(&self) -> InstanceId {
        self.instance
    }
}

/// What the instance asks of a twin now.
#[derive(Clone, Debug, PartialEq)]
pub enum TwinWish {
    /// There is no such instance, or its policy is another one.
    None,
    /// Nothing is decided: the instance is on its way, or about to be failed over.
    Later,
    /// There cannot be one now.
    Unfit(String),
    /// One of these bodies, the best first, with a blank volume of so many GiB.
    One { bodies: Vec<BodyKind>, fresh_gib: Option<u64> },
}

/// All that the decision looks at.
#[derive(Clone, Debug)]
pub struct TwinSight<'a> {
    pub twin: Option<&'a TwinRecord>,
    pub wish: TwinWish,
    /// The instance's own host.
    pub own: Option<HostId>,
    /// The epoch that the instance would have elsewhere, and the room that it takes.
    pub epoch: u64,
    pub claims: Claims,
    /// Whether the twin's host can be counted on.
    pub fit: bool,
    /// Whether what found no room before is tried again.
    pub again: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum TwinStep {
    Wait,
    /// The record goes, and what it stands for.
    Forget,
    /// What waits goes; the record says why.
    Drop(Option<String>),
    /// Made anew where it is, at this epoch.
    Renew(u64),
    /// A host is looked for.
    Place,
    /// The record says why there is none.
    Say(String),
}

pub fn twin_step(sight: &TwinSight) -> TwinStep {
    let place = sight.twin.and_then(|twin| twin.place.as_ref());
    let (bodies, fresh_gib) = match (&sight.wish, sight.twin) {
        (TwinWish::None, None) | (TwinWish::Later, _) => return TwinStep::Wait,
        (TwinWish::None, Some(_)) => return TwinStep::Forget,
        (TwinWish::Unfit(why), _) if place.is_some() => return TwinStep::Drop(Some(why.clone())),
        (TwinWish::Unfit(why), twin) => {
            let said = twin.and_then(|t| t.why.as_ref()) == Some(why);
            return if said { TwinStep::Wait } else { TwinStep::Say(why.clone()) };
        }
        (TwinWish::One { bodies, fresh_gib }, _) => (bodies, *fresh_gib),
    };
    let Some(place) = place else {
        let tried = sight.twin.is_some_and(|twin| twin.why.is_some());
        return if tried && !sight.again { TwinStep::Wait } else { TwinStep::Place };
    };
    let another = place.claims != sight.claims || place.volume.map(|(_, gib)| gib) != fresh_gib;
    // A lower epoch than what is made there would need a tombstone first.
    let ahead = place.epoch > sight.epoch;
    if !sight.fit || sight.own == Some(place.host) || another || ahead || !bodies.contains(&place.body) {
        return TwinStep::Drop(None);
    }
    if place.epoch < sight.epoch { TwinStep::Renew(sight.epoch) } else { TwinStep::Wait }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        let (own, other) = (HostId::new(), HostId::new());
        let claims = Claims::default();
        let twin = TwinRecord {
            instance: InstanceId::new(),
            project: ProjectId::DEFAULT,
            place: Some(TwinPlace {
                host: other,
                body: BodyKind::Set,
                epoch: 3,
                claims,
                volume: None,
                ready: true,
                fault: None,
                since: Timestamp::UNIX_EPOCH,
            }),
            why: None,
        };
        let nowhere = TwinRecord { place: None, why: Some("no room".into()), ..twin.clone() };
        let blank = TwinRecord { place: None, ..twin.clone() };
        let either = || TwinWish::One { bodies: vec![BodyKind::Set, BodyKind::Vm], fresh_gib: None };
        let only = |kind| TwinWish::One { bodies: vec![kind], fresh_gib: None };
        let fresh = || TwinWish::One { bodies: vec![BodyKind::Set], fresh_gib: Some(1) };
        let unfit = || TwinWish::Unfit("no room".into());
        let full = Claims { memory_mib: 1, ..claims };
        type Row<'a> =
            (&'a str, Option<&'a TwinRecord>, TwinWish, Option<HostId>, u64, Claims, bool, TwinStep);
        let table: Vec<Row> = vec![
            ("as it should be", Some(&twin), either(), Some(own), 3, claims, true, TwinStep::Wait),
            ("no twin is asked for", None, TwinWish::None, Some(own), 3, claims, false, TwinStep::Wait),
            (
                "none is asked for any more",
                Some(&twin),
                TwinWish::None,
                None,
                3,
                claims,
                true,
                TwinStep::Forget,
            ),
            ("the first", None, either(), Some(own), 3, claims, false, TwinStep::Place),
            ("again after a failover", Some(&blank), either(), Some(own), 3, claims, false, TwinStep::Place),
            ("no room so far", Some(&nowhere), either(), Some(own), 3, claims, false, TwinStep::Wait),
            ("on its way", Some(&twin), TwinWish::Later, Some(own), 9, claims, false, TwinStep::Wait),
            ("its host is lost", Some(&twin), either(), Some(own), 3, claims, false, TwinStep::Drop(None)),
            (
                "the instance came to it",
                Some(&twin),
                either(),
                Some(other),
                3,
                claims,
                true,
                TwinStep::Drop(None),
            ),
            (
                "another kind is wanted",
                Some(&twin),
                only(BodyKind::Vm),
                Some(own),
                3,
                claims,
                true,
                TwinStep::Drop(None),
            ),
            ("it has grown", Some(&twin), either(), Some(own), 3, full, true, TwinStep::Drop(None)),
            ("it has a volume now", Some(&twin), fresh(), Some(own), 3, claims, true, TwinStep::Drop(None)),
            (
                "the instance has a new body",
                Some(&twin),
                either(),
                Some(own),
                4,
                claims,
                true,
                TwinStep::Renew(4),
            ),
            (
                "what was promised was not kept",
                Some(&twin),
                either(),
                Some(own),
                2,
                claims,
                true,
                TwinStep::Drop(None),
            ),
            (
                "it cannot be any more",
                Some(&twin),
                unfit(),
                Some(own),
                3,
                claims,
                true,
                TwinStep::Drop(Some("no room".into())),
            ),
            ("it cannot be", None, unfit(), Some(own), 3, claims, false, TwinStep::Say("no room".into())),
            ("as was said", Some(&nowhere), unfit(), Some(own), 3, claims, false, TwinStep::Wait),
        ];
        for (what, twin, wish, own, epoch, claims, fit, step) in table {
            let sight = TwinSight { twin, wish, own, epoch, claims, fit, again: false };
            assert_eq!(twin_step(&sight), step, "{what}");
        }
        let sight = TwinSight {
            twin: Some(&nowhere),
            wish: either(),
            own: Some(own),
            epoch: 3,
            claims,
            fit: false,
            again: true,
        };
        assert_eq!(twin_step(&sight), TwinStep::Place, "room may have come");
    }
}
