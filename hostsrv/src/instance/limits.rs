//! What a body is held to: wanted, out of its description and size; held, as its engine and the kernel say. Pure. What
//! nobody can tell or hold here is not compared, and said as a condition; refuses to change anything.

use super::{ObservedBody, ObservedState};
use amphi_api::instance::BodyKind;
use amphi_api::resize::{Condition, MemoryRange, NEXT_START, NOT_HERE, UP_TO_GUEST};
use amphi_api::set::{IoLimit, MemberIo, SetSpec};
use amphi_api::wire::{BodyDesired, InstanceDesired};
use std::collections::BTreeMap;

/// The name under which a VM's own limits are.
pub const WHOLE: &str = "";

/// What one member, or a VM, is to be held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Hundredths of a CPU.
    pub cpu_centi: u64,
    pub memory_bytes: u64,
    /// 0: no limit.
    pub pids: u64,
    /// 0: no limit.
    pub root_mib: u64,
    pub io: MemberIo,
}

/// What one member, or a VM, is held to now. None: not told, or not to be had here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub cpu_centi: Option<u64>,
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
    pub root_mib: Option<u64>,
    pub io_root: Option<IoLimit>,
    pub io_volume: Option<IoLimit>,
    /// Rates count what is written through the page cache too.
    pub io_buffered: bool,
    /// The most that it can take on while it runs; none: as much as the host has.
    pub cpu_most: Option<u64>,
    pub memory_most: Option<u64>,
    /// The least memory that it keeps while it runs; none: as little as is ordered.
    pub memory_least: Option<u64>,
    /// Memory that its guest has of what it was given; none: there is no guest that would have to take it.
    pub memory_taken: Option<u64>,
    /// It runs: what is not told is not to be had.
    pub running: bool,
}

/// What a VM's memory comes and goes by while it runs.
pub const STEP_MIB: u64 = 2;

impl Held {
    /// How much memory it can be held to while it runs, where so much is wanted; none: it has to start anew.
    pub fn memory_within(&self, wanted: u64) -> Option<u64> {
        let Some(least) = self.memory_least else { return Some(wanted) };
        let most = self.memory_most.unwrap_or(u64::MAX);
        let within = (least..=most).contains(&wanted);
        within.then(|| least + ((wanted - least) >> 20) / STEP_MIB * (STEP_MIB << 20))
    }
}

impl Limits {
    /// Whether all that can be had while it is as it is now is so.
    pub fn is_held(&self, held: &Held) -> bool {
        fn same<T: PartialEq>(wanted: T, held: Option<T>) -> bool {
            held.is_none_or(|held| held == wanted)
        }
        let within = |wanted: u64, most: Option<u64>| most.is_none_or(|most| wanted <= most);
        (same(self.cpu_centi, held.cpu_centi) || !within(self.cpu_centi, held.cpu_most))
            && held.memory_within(self.memory_bytes).is_none_or(|memory| same(memory, held.memory_bytes))
            && same(self.pids, held.pids)
            && same(self.root_mib, held.root_mib)
            && same(self.io.root, held.io_root)
            && same(self.io.volume, held.io_volume)
    }

    /// It is at most so large now, and shall be larger in nothing.
    pub fn shrinks(&self, held: &Held) -> bool {
        held.memory_bytes.is_some_and(|held| self.memory_bytes < held)
            || held.pids.is_some_and(|held| self.pids > 0 && (held == 0 || self.pids < held))
            || held.root_mib.is_some_and(|held| self.root_mib > 0 && (held == 0 || self.root_mib < held))
    }

    /// What of it this host cannot do, in words. `name`: the member's.
    fn not_here(&self, held: &Held, name: &str) -> Vec<Condition> {
        if !held.running {
            return Vec::new();
        }
        let mut all = Vec::new();
        let mut tell = |what: String| all.push(Condition::new(NOT_HERE, format!("member {name}: {what}")));
        let places =
            [("root file system", self.io.root, held.io_root), ("volume", self.io.volume, held.io_volume)];
        for (place, wanted, held) in places {
            if !wanted.is_none() && held.is_none() {
                tell(format!("this host cannot limit the rates of the device under its {place}"));
            }
        }
        let told = (self.io.root.of_writes() && held.io_root.is_some())
            || (self.io.volume.of_writes() && held.io_volume.is_some());
        if told && !held.io_buffered {
            tell(
                "write rates hold for what it writes past the page cache or flushes itself: this kernel does not \
                 know whose pages it writes back later"
                    .to_owned(),
            );
        }
        if self.pids > 0 && held.pids.is_none() {
            tell("this host cannot limit processes".to_owned());
        }
        all
    }
}

/// Every member of a set of this size, by name.
pub fn of_set(set: &SetSpec, vcpus: u32, memory_mib: u64) -> BTreeMap<String, Limits> {
    let memory = set.memory_limits(memory_mib);
    let members = set.members.iter().zip(memory);
    members
        .map(|(member, memory_bytes)| {
            let options = &member.options;
            let limits = Limits {
                cpu_centi: u64::from(vcpus) * u64::from(options.cpu.unwrap_or(100)),
                memory_bytes,
                pids: options.pids.unwrap_or(0),
                root_mib: options.root_mib.unwrap_or(0),
                io: options.io,
            };
            (member.effective_name(), limits)
        })
        .collect()
}

/// What a body is to be held to.
pub fn wanted(desired: &InstanceDesired) -> BTreeMap<String, Limits> {
    match &desired.body {
        BodyDesired::Set { set, .. } => of_set(set, desired.vcpus, desired.memory_mib),
        BodyDesired::Vm { .. } | BodyDesired::SetVm { .. } => {
            let whole = Limits {
                cpu_centi: u64::from(desired.vcpus) * 100,
                memory_bytes: desired.memory_mib << 20,
                ..Limits::default()
            };
            BTreeMap::from([(WHOLE.to_owned(), whole)])
        }
    }
}

/// Whether a member's container is the one that the limits are for. Until the next one takes its place, a former one keeps
/// those that it was made with.
fn is_ordered(desired: &InstanceDesired, body: &ObservedBody, name: &str) -> bool {
    let member = body.members.iter().find(|member| member.name == name);
    member.is_none_or(|member| member.generation == desired.generation_of(name))
}

/// Whether something of the body is held to other limits than it can and should be. A rescue's members have their own.
pub fn differ(desired: &InstanceDesired, body: &ObservedBody) -> bool {
    if body.rescued || desired.rescue.is_some() || body.kind != desired.body.kind() {
        return false;
    }
    let wanted = wanted(desired);
    let differs = |name: &str, held: &Held| wanted.get(name).is_some_and(|wanted| !wanted.is_held(held));
    body.held.iter().any(|(name, held)| differs(name, held) && is_ordered(desired, body, name))
}

/// What is ordered of the body's limits and not so, although nothing more can be done now.
pub fn conditions(desired: &InstanceDesired, body: &ObservedBody) -> Vec<Condition> {
    let mut all = Vec::new();
    for (name, wanted) in wanted(desired) {
        let told = !body.rescued && is_ordered(desired, body, &name);
        let Some(held) = body.held.get(&name).filter(|_| told) else { continue };
        if body.kind == BodyKind::Set {
            all.extend(wanted.not_here(held, &name));
        } else if body.state != ObservedState::Stopped {
            all.extend(at_next_start(&wanted, held));
            all.extend(up_to_its_guest(held));
        }
    }
    all
}

/// The memory of a VM that runs.
pub fn memory_range(body: &ObservedBody) -> Option<MemoryRange> {
    let held =
        body.held.get(WHOLE).filter(|_| body.kind == BodyKind::Vm && body.state != ObservedState::Stopped)?;
    // Asked for or taken, whichever is more: the guest may have it at any moment.
    let has = held.memory_bytes?.max(held.memory_taken?);
    Some(MemoryRange {
        has_mib: has.div_ceil(1 << 20),
        least_mib: held.memory_least?.div_ceil(1 << 20),
        most_mib: held.memory_most? >> 20,
    })
}

/// What of a VM's size waits for its next start.
fn at_next_start(wanted: &Limits, held: &Held) -> Option<Condition> {
    let waits = |wanted: u64, held: Option<u64>, most: Option<u64>| {
        held.is_some_and(|held| held != wanted) && most.is_some_and(|most| wanted > most)
    };
    let cpu = waits(wanted.cpu_centi, held.cpu_centi, held.cpu_most);
    // It has as much as it can have, or all that is ordered waits.
    let now = held.memory_within(wanted.memory_bytes).or(held.memory_bytes);
    let memory = held.memory_least.is_some() && now.is_some_and(|now| now != wanted.memory_bytes);
    let mut what = Vec::new();
    if cpu {
        let (now, most) = (held.cpu_centi.unwrap_or(0) / 100, held.cpu_most.unwrap_or(0) / 100);
        what.push(format!(
            "{} vCPUs (it has {now}, and was started with room for {most})",
            wanted.cpu_centi / 100
        ));
    }
    if memory {
        let [now, least, most] = [now, held.memory_least, held.memory_most].map(|b| b.unwrap_or(0) >> 20);
        let room = match (least, most) {
            (least, most) if least == most => "was started without room for other sizes".to_owned(),
            (least, most) => format!("was started for {least} to {most} MiB"),
        };
        what.push(format!("{} MiB of memory (it has {now} MiB, and {room})", wanted.memory_bytes >> 20));
    }
    let what = (!what.is_empty()).then(|| what.join(", "))?;
    Some(Condition::new(NEXT_START, format!("takes effect at the next start: {what}")))
}

/// What its guest has not taken, or not given back.
fn up_to_its_guest(held: &Held) -> Option<Condition> {
    let (asked, taken) = (held.memory_bytes?, held.memory_taken?);
    let (asked_mib, taken_mib) = (asked >> 20, taken >> 20);
    let why = match taken.cmp(&asked) {
        std::cmp::Ordering::Equal => return None,
        std::cmp::Ordering::Less => format!(
            "it may have {asked_mib} MiB of memory, and its guest has taken {taken_mib} MiB: its kernel takes the rest by \
             virtio_mem"
        ),
        std::cmp::Ordering::Greater => format!(
            "it is to have {asked_mib} MiB of memory, and its guest keeps {taken_mib} MiB, which it uses: its host counts \
             them until the guest gives them back"
        ),
    };
    Some(Condition::new(UP_TO_GUEST, why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LIMITS: Limits = Limits {
        cpu_centi: 160,
        memory_bytes: 64 << 20,
        pids: 40,
        root_mib: 0,
        io: MemberIo {
            root: IoLimit { read_bps: None, write_bps: Some(1 << 20), read_iops: None, write_iops: None },
            volume: IoLimit { read_bps: None, write_bps: None, read_iops: None, write_iops: None },
        },
    };

    fn held() -> Held {
        Held {
            cpu_centi: Some(160),
            memory_bytes: Some(64 << 20),
            pids: Some(40),
            root_mib: Some(0),
            io_root: Some(LIMITS.io.root),
            io_volume: Some(IoLimit::default()),
            io_buffered: true,
            running: true,
            ..Held::default()
        }
    }

    #[test]
    fn ceilings_add_up_within_the_set() {
        let set: SetSpec = serde_json::from_value(json!({"members": [
            {"index": 1, "name": "a", "image": "x", "options": {"cpu": 80, "pids": 64}},
            {"index": 2, "name": "b", "image": "x", "options": {"heap_mib": 100, "root_mib": 8}},
            {"index": 3, "image": "x"}]}))
        .unwrap();
        let all = of_set(&set.normalized(), 4, 512);
        let cpu: u64 = all.values().map(|l| l.cpu_centi).sum();
        let memory: u64 = all.values().map(|l| l.memory_bytes).sum();
        assert_eq!((cpu, memory >> 20), (400, 512), "{all:?}");
        let told: Vec<_> = all
            .iter()
            .map(|(n, l)| (n.as_str(), l.cpu_centi, l.memory_bytes >> 20, l.pids, l.root_mib))
            .collect();
        assert_eq!(told, [("a", 320, 196, 64, 0), ("b", 40, 120, 0, 8), ("member-3", 40, 196, 0, 0)]);
    }

    #[test]
    fn only_what_can_be_held_is_compared() {
        let table = [
            ("as wanted", held(), true),
            ("less CPU", Held { cpu_centi: Some(100), ..held() }, false),
            ("less memory", Held { memory_bytes: Some(1), ..held() }, false),
            ("no pids limit", Held { pids: Some(0), ..held() }, false),
            ("a root limit", Held { root_mib: Some(5), ..held() }, false),
            ("another rate", Held { io_root: Some(IoLimit::default()), ..held() }, false),
            ("no rates here", Held { io_root: None, io_volume: None, ..held() }, true),
            ("nothing told", Held::default(), true),
            ("no room for it", Held { cpu_centi: Some(100), cpu_most: Some(120), ..held() }, true),
            ("room for it", Held { cpu_centi: Some(100), cpu_most: Some(200), ..held() }, false),
        ];
        for (what, held, is_held) in table {
            assert_eq!(LIMITS.is_held(&held), is_held, "{what}");
        }
    }

    #[test]
    fn what_shrinks() {
        for (what, held, shrinks) in [
            ("nothing", held(), false),
            ("memory", Held { memory_bytes: Some(65 << 20), ..held() }, true),
            ("memory grows", Held { memory_bytes: Some(63 << 20), ..held() }, false),
            ("a first pids limit", Held { pids: Some(0), ..held() }, true),
            ("more pids", Held { pids: Some(39), ..held() }, false),
            ("not told", Held::default(), false),
        ] {
            assert_eq!(LIMITS.shrinks(&held), shrinks, "{what}");
        }
    }

    #[test]
    fn what_cannot_be_is_told() {
        let told = |held: Held| -> Vec<String> {
            LIMITS.not_here(&held, "web").into_iter().map(|c| c.message).collect()
        };
        assert!(told(held()).is_empty());
        assert!(told(Held { io_buffered: false, ..held() })[0].contains("page cache"));
        assert!(told(Held { io_root: None, ..held() })[0].contains("root file system"));
        assert!(told(Held { pids: None, ..held() })[0].contains("processes"));
        assert!(told(Held { running: false, io_root: None, pids: None, ..held() }).is_empty());
        let vm = Limits { cpu_centi: 400, memory_bytes: 512 << 20, ..Limits::default() };
        let small = Held {
            cpu_centi: Some(100),
            cpu_most: Some(200),
            memory_bytes: Some(256 << 20),
            memory_least: Some(256 << 20),
            memory_most: Some(256 << 20),
            ..Held::default()
        };
        let message = at_next_start(&vm, &small).expect("a condition").message;
        assert_eq!(
            message,
            "takes effect at the next start: 4 vCPUs (it has 1, and was started with room for 2), 512 MiB of memory \
             (it has 256 MiB, and was started without room for other sizes)"
        );
        let room = Held { cpu_most: Some(400), memory_most: Some(512 << 20), ..small };
        assert!(at_next_start(&vm, &room).is_none());
        let odd = Limits { memory_bytes: 259 << 20, ..vm };
        let message = at_next_start(&odd, &Held { memory_bytes: Some(258 << 20), ..room })
            .expect("a condition")
            .message;
        assert!(
            message.ends_with("259 MiB of memory (it has 258 MiB, and was started for 256 to 512 MiB)"),
            "{message}"
        );
    }

    #[test]
    fn memory_comes_in_steps_within_what_it_was_started_for() {
        let started = Held {
            memory_bytes: Some(128 << 20),
            memory_least: Some(128 << 20),
            memory_most: Some(256 << 20),
            memory_taken: Some(128 << 20),
            running: true,
            ..Held::default()
        };
        for (wanted, within) in
            [(128, Some(128)), (129, Some(128)), (130, Some(130)), (256, Some(256)), (257, None), (127, None)]
        {
            assert_eq!(started.memory_within(wanted << 20).map(|b| b >> 20), within, "{wanted}");
            let limits = Limits { memory_bytes: wanted << 20, ..Limits::default() };
            assert_eq!(limits.is_held(&started), within != Some(130) && within != Some(256), "{wanted}");
        }
        assert_eq!(Held::default().memory_within(5), Some(5), "a set is held to whatever is ordered");
        assert!(up_to_its_guest(&started).is_none());
        let told = |asked: u64, taken: u64| {
            let held = Held { memory_bytes: Some(asked << 20), memory_taken: Some(taken << 20), ..started };
            up_to_its_guest(&held).expect("a condition").message
        };
        assert!(told(192, 128).contains("may have 192 MiB of memory, and its guest has taken 128 MiB"));
        assert!(told(128, 160).contains("to have 128 MiB of memory, and its guest keeps 160 MiB"));
    }
}
