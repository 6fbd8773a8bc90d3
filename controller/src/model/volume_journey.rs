//! A volume's journey: its bytes come from another host. Which step comes next: pure.
//!
//! To the host of the instance that waits for it: ordered → read → shipped → arrived, after which the volume belongs to
//! the other host. Until that commit it is where it was, whole, and nobody writes to it; only then are the bytes it was
//! copied from destroyed. Whatever ends the journey before destroys the copy alone.
//!
//! A new volume, which begins with a snapshot or a volume of another host, takes the same steps, and none of them touches what
//! it is made of.

use super::Intent;
use super::exchange::FAULT_PATIENCE;
use super::volume::VolumeRecord;
use amphi_api::instance::Fault;
use amphi_api::{HostId, ImageId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A host that does not answer for this long ends a journey: longer than one takes to start its agent anew.
pub const DOWN_PATIENCE: SignedDuration = SignedDuration::from_secs(60);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeJourney {
    /// Where the bytes are read.
    pub from: HostId,
    /// Room is claimed there from the order on.
    pub to: HostId,
    pub since: Timestamp,
    /// What carries its bytes, from the order to read them on.
    #[serde(default)]
    pub image: Option<ImageId>,
    /// The other host is told to write them.
    #[serde(default)]
    pub shipped: bool,
    /// The other host has all of them.
    #[serde(default)]
    pub arrived: bool,
    /// Why it has not.
    #[serde(default)]
    pub fault: Option<Fault>,
}

impl VolumeJourney {
    pub fn new(from: HostId, to: HostId, since: Timestamp) -> Self {
        Self { from, to, since, image: None, shipped: false, arrived: false, fault: None }
    }

    /// Whether it is there already that it goes: a new volume is.
    pub fn is_birth(&self, volume: &VolumeRecord) -> bool {
        volume.host == self.to
    }

    /// What hosts hear of it.
    pub(super) fn told(&self) -> (HostId, bool) {
        (self.to, self.shipped)
    }
}

/// What the decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct VolumeJourneySight<'a> {
    pub volume: &'a VolumeRecord,
    pub journey: &'a VolumeJourney,
    /// Where the instance is that waits for it; none: nobody waits any more.
    pub wanted_on: Option<HostId>,
    /// The instance can do without it: it runs, and this is a further volume.
    pub spare: bool,
    /// Since when a host does not answer.
    pub from_down: Option<Timestamp>,
    pub to_down: Option<Timestamp>,
    /// All bytes have been read.
    pub read: bool,
    /// Why they cannot be.
    pub read_fault: Option<&'a Fault>,
    /// Bytes that it left on the other host an earlier time are still being destroyed there.
    pub littered: bool,
    /// Something else is being made of its bytes where they are.
    pub needed: bool,
    pub now: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum VolumeJourneyStep {
    Wait,
    /// Have its bytes read.
    Read,
    /// Have them written on the other host.
    Ship,
    /// The other host is its own from now on; the old bytes go.
    Arrive,
    /// It stays where it is, in whosoever hands it is; a copy goes.
    Stay,
    /// What a new volume is made of cannot be had, so far.
    Tell(Fault),
    /// It stays where it is, in nobody's hands; the copy goes.
    GiveBack(Fault),
}

/// The next step of a volume's journey.
pub fn volume_journey_step(sight: &VolumeJourneySight) -> VolumeJourneyStep {
    let (volume, journey) = (sight.volume, sight.journey);
    if journey.is_birth(volume) {
        return birth_step(sight);
    }
    // Its instance is gone, has given it up, or has itself come to where the volume is.
    if sight.wanted_on.is_none_or(|host| host == volume.host) {
        return VolumeJourneyStep::Stay;
    }
    let ended = if sight.wanted_on != Some(journey.to) {
        Some(fault(sight, "instance_moved", "its instance went to a third host"))
    } else if journey.arrived {
        // The bytes are whole there, whoever is down.
        return if sight.needed { VolumeJourneyStep::Wait } else { VolumeJourneyStep::Arrive };
    } else {
        down(sight, sight.from_down.filter(|_| !sight.read), "the host that the volume is on does not answer")
            .or_else(|| down(sight, sight.to_down, "the host that the volume should go to does not answer"))
            .or_else(|| lasting(sight))
    };
    if let Some(fault) = ended {
        // One that cannot start without it goes on waiting: its owner sees the state and may delete it.
        return if sight.spare { VolumeJourneyStep::GiveBack(fault) } else { VolumeJourneyStep::Wait };
    }
    match journey.image {
        None if volume.made => VolumeJourneyStep::Read,
        Some(_) if sight.read && !journey.shipped && !sight.littered => VolumeJourneyStep::Ship,
        _ => VolumeJourneyStep::Wait,
    }
}

/// A new volume waits for its bytes as long as it is wanted: its owner sees what is wrong and may delete it.
fn birth_step(sight: &VolumeJourneySight) -> VolumeJourneyStep {
    let (volume, journey) = (sight.volume, sight.journey);
    if volume.made || volume.intent == Intent::Deleting {
        return VolumeJourneyStep::Stay;
    }
    if journey.image.is_none() {
        return VolumeJourneyStep::Read;
    }
    if sight.read {
        return if journey.shipped { VolumeJourneyStep::Wait } else { VolumeJourneyStep::Ship };
    }
    let down = down(sight, sight.from_down, "the host that its bytes are on does not answer");
    let told = volume.observed.as_ref().and_then(|seen| seen.fault.as_ref());
    match down.or_else(|| sight.read_fault.cloned()) {
        Some(fault) if told.is_none_or(|told| told.message != fault.message) => {
            VolumeJourneyStep::Tell(fault)
        }
        _ => VolumeJourneyStep::Wait,
    }
}

fn down(sight: &VolumeJourneySight, since: Option<Timestamp>, message: &str) -> Option<Fault> {
    let gone = |at: Timestamp| sight.now.duration_since(at.max(sight.journey.since));
    since.filter(|at| gone(*at) >= DOWN_PATIENCE).map(|_| fault(sight, "host_down", message))
}

fn lasting(sight: &VolumeJourneySight) -> Option<Fault> {
    let own = sight.volume.observed.as_ref().and_then(|seen| seen.fault.as_ref());
    let fault = sight.read_fault.or(sight.journey.fault.as_ref()).or(own)?;
    let lasts = sight.now.duration_since(fault.since.max(sight.journey.since));
    (lasts >= FAULT_PATIENCE).then(|| fault.clone())
}

fn fault(sight: &VolumeJourneySight, code: &str, message: &str) -> Fault {
    Fault { code: code.into(), message: message.into(), since: sight.now }
}

#[cfg(test)]
mod tests {
    use super::VolumeJourneyStep as Step;
    use super::*;
    use crate::model::volume::VolumeObserved;
    use amphi_api::{ProjectId, VolumeId};

    #[test]
    fn steps() {
        let (from, to, third) = (HostId::new(), HostId::new(), HostId::new());
        let start = Timestamp::from_second(1000).unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        let base = VolumeRecord {
            id: VolumeId::new(),
            project: ProjectId::DEFAULT,
            name: String::new(),
            size_gib: 1,
            host: from,
            source: None,
            source_image: None,
            source_volume: None,
            untouched: false,
            instance: None,
            made: true,
            trashed_at: None,
            intent: Intent::Live,
            snapshots: 0,
            observed: None,
            traits: Default::default(),
            journey: None,
            created_at: start,
        };
        let broken = Fault { code: "engine_refused".into(), message: "no".into(), since: start };
        let ordered = VolumeJourney::new(from, to, start);
        let reading = VolumeJourney { image: Some(ImageId::new()), ..ordered.clone() };
        let shipped = VolumeJourney { shipped: true, ..reading.clone() };
        let arrived = VolumeJourney { arrived: true, ..shipped.clone() };
        let faulty = VolumeJourney { fault: Some(broken.clone()), ..shipped.clone() };
        let unmade = VolumeRecord { made: false, ..base.clone() };
        let seen =
            VolumeObserved { size_bytes: 0, present: false, trashed: false, fault: Some(broken.clone()) };
        let unmakable = VolumeRecord { observed: Some(seen), ..unmade.clone() };
        let new = VolumeRecord { host: to, ..unmade.clone() };
        let told = VolumeRecord { host: to, ..unmakable.clone() };
        let born = VolumeRecord { host: to, ..base.clone() };
        let given = |step: &Step| match step {
            Step::GiveBack(fault) => {
                Step::GiveBack(Fault { message: String::new(), since: start, ..fault.clone() })
            }
            other => other.clone(),
        };
        let back =
            |code: &str| Step::GiveBack(Fault { code: code.into(), message: String::new(), since: start });
        let sight = |journey| VolumeJourneySight {
            volume: &base,
            journey,
            wanted_on: Some(to),
            spare: true,
            from_down: None,
            to_down: None,
            read: false,
            read_fault: None,
            littered: false,
            needed: false,
            now: at(1),
        };
        let table = vec![
            ("ordered", sight(&ordered), Step::Read),
            ("not made yet", VolumeJourneySight { volume: &unmade, ..sight(&ordered) }, Step::Wait),
            ("being read", sight(&reading), Step::Wait),
            ("read", VolumeJourneySight { read: true, ..sight(&reading) }, Step::Ship),
            (
                "read, an older copy is in the way",
                VolumeJourneySight { read: true, littered: true, ..sight(&reading) },
                Step::Wait,
            ),
            ("being written", VolumeJourneySight { read: true, ..sight(&shipped) }, Step::Wait),
            ("written", VolumeJourneySight { read: true, ..sight(&arrived) }, Step::Arrive),
            (
                "written, the old host is down for long",
                VolumeJourneySight { read: true, from_down: Some(start), now: at(900), ..sight(&arrived) },
                Step::Arrive,
            ),
            (
                "written, still copied from",
                VolumeJourneySight { needed: true, ..sight(&arrived) },
                Step::Wait,
            ),
            ("nobody waits", VolumeJourneySight { wanted_on: None, ..sight(&arrived) }, Step::Stay),
            ("they meet", VolumeJourneySight { wanted_on: Some(from), ..sight(&shipped) }, Step::Stay),
            (
                "the instance is elsewhere",
                VolumeJourneySight { wanted_on: Some(third), ..sight(&arrived) },
                back("instance_moved"),
            ),
            (
                "the old host is down for a moment",
                VolumeJourneySight { from_down: Some(start), now: at(59), ..sight(&reading) },
                Step::Wait,
            ),
            (
                "the old host is down",
                VolumeJourneySight { from_down: Some(at(-500)), now: at(60), ..sight(&reading) },
                back("host_down"),
            ),
            (
                "the old host is down, all is read",
                VolumeJourneySight { from_down: Some(start), read: true, now: at(60), ..sight(&shipped) },
                Step::Wait,
            ),
            (
                "the new host is down",
                VolumeJourneySight { to_down: Some(start), read: true, now: at(60), ..sight(&shipped) },
                back("host_down"),
            ),
            (
                "it cannot be read, so far",
                VolumeJourneySight { read_fault: Some(&broken), now: at(19), ..sight(&reading) },
                Step::Wait,
            ),
            (
                "it cannot be read",
                VolumeJourneySight { read_fault: Some(&broken), now: at(20), ..sight(&reading) },
                back("engine_refused"),
            ),
            (
                "it cannot be written",
                VolumeJourneySight { read: true, now: at(20), ..sight(&faulty) },
                back("engine_refused"),
            ),
            (
                "it cannot be made",
                VolumeJourneySight { volume: &unmakable, now: at(20), ..sight(&ordered) },
                back("engine_refused"),
            ),
            (
                "a new one is ordered",
                VolumeJourneySight { volume: &new, wanted_on: None, ..sight(&ordered) },
                Step::Read,
            ),
            (
                "a new one's bytes are read",
                VolumeJourneySight { volume: &new, read: true, ..sight(&reading) },
                Step::Ship,
            ),
            (
                "a new one's bytes cannot be read",
                VolumeJourneySight { volume: &new, read_fault: Some(&broken), ..sight(&reading) },
                Step::Tell(broken.clone()),
            ),
            (
                "a new one, told already",
                VolumeJourneySight { volume: &told, read_fault: Some(&broken), ..sight(&reading) },
                Step::Wait,
            ),
            ("a new one is there", VolumeJourneySight { volume: &born, ..sight(&shipped) }, Step::Stay),
            (
                "it cannot be written, and nothing starts without it",
                VolumeJourneySight { read: true, spare: false, now: at(20), ..sight(&faulty) },
                Step::Wait,
            ),
        ];
        for (what, sight, want) in table {
            assert_eq!(given(&volume_journey_step(&sight)), want, "{what}");
        }
    }
}
