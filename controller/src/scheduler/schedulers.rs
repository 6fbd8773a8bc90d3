//! The schedulers, by name. A further one is a further row of the table: a name and its weights.

use super::{HostSight, Policy, Request, affinity, weights};
use std::fmt;

/// A weight that depends on the host alone.
pub type Standing = fn(&HostSight, &Policy) -> f64;
/// A weight that depends on the request too.
pub type Asked = fn(&HostSight, &Request) -> f64;

/// Weights with their factors. The score is the sum; all but a server group's add up to less than one member of a
/// group weighs.
#[derive(Debug)]
pub struct Scheduler {
    pub name: &'static str,
    pub standing: &'static [(&'static str, f64, Standing)],
    pub asked: &'static [(&'static str, f64, Asked)],
}

/// What an image in the cache is worth: less than a third of an empty host's CPUs, and six starts that wait there.
const IMAGES: f64 = 0.3;

pub const SCHEDULERS: &[Scheduler] = &[
    Scheduler {
        // The emptiest host: most room for bursts, and least lost with a host.
        name: "spread",
        standing: &[
            ("free_cpu", 1.0, weights::free_cpu),
            ("free_memory", 1.0, weights::free_memory),
            ("free_volume", 1.0, weights::free_volume),
            // A failover's hundred go to many hosts, though one alone may have their image: it would start them one
            // after the other.
            ("starting", -1.0, weights::starting),
        ],
        asked: &[("images", IMAGES, weights::images), ("group", 1.0, affinity::together)],
    },
    Scheduler {
        // The fullest host with room: others stay empty, for what is large or to be switched off.
        name: "pack",
        standing: &[
            ("free_cpu", -1.0, weights::free_cpu),
            ("free_memory", -1.0, weights::free_memory),
            ("free_volume", -1.0, weights::free_volume),
        ],
        asked: &[("images", IMAGES, weights::images), ("group", 1.0, affinity::together)],
    },
];

/// Millionths: scores are compared as whole numbers, so that the order does not depend on the order of adding.
pub(super) fn micro(value: f64) -> i64 {
    (value * 1e6).round() as i64
}

impl Scheduler {
    /// The part of the score that stands for the host whatever is asked, in millionths.
    pub(super) fn standing(&self, host: &HostSight, policy: &Policy) -> i64 {
        micro(self.standing.iter().map(|(_, factor, weigh)| factor * weigh(host, policy)).sum())
    }

    /// The part of the score that the request brings, in millionths.
    pub(super) fn asked(&self, host: &HostSight, request: &Request) -> i64 {
        micro(self.asked.iter().map(|(_, factor, weigh)| factor * weigh(host, request)).sum())
    }

    /// Most that images can bring, in millionths.
    pub(super) fn images_most(&self) -> i64 {
        micro(
            self.asked
                .iter()
                .filter(|(name, ..)| *name == "images")
                .map(|(_, factor, _)| factor.max(0.0))
                .sum(),
        )
    }
}

/// A scheduler that exists.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerId(usize);

impl SchedulerId {
    /// By name; else the names that there are.
    pub fn named(name: &str) -> Result<Self, String> {
        SCHEDULERS.iter().position(|s| s.name == name).map(Self).ok_or_else(|| {
            let known: Vec<_> = SCHEDULERS.iter().map(|s| s.name).collect();
            format!("'{name}' is no scheduler; there are {}", known.join(", "))
        })
    }

    pub fn get(self) -> &'static Scheduler {
        &SCHEDULERS[self.0]
    }

    pub(super) fn index(self) -> usize {
        self.0
    }
}

impl fmt::Debug for SchedulerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.get().name)
    }
}
