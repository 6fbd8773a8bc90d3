//! The lease of a host, in words: what its lease process says to the controller and hears, what it asks other hosts, and
//! the times that both sides keep to. All durations are milliseconds on clocks that only go forward and do not stop while
//! the machine sleeps; no clock is ever compared with another machine's. `docs/lease.md` says why this is enough.

use crate::HostId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use utoipa::ToSchema;
use uuid::Uuid;

/// Where a host answers other hosts, unless its configuration says otherwise.
pub const LEASE_PORT: u16 = 7444;
/// What a lease process says it wants of the controller's hosts' port (ALPN, RFC 7301): renewals and nothing else, over
/// HTTP/1.1. A controller that knows the word serves them apart; one that does not leaves it unanswered, as RFC 7301 lets it.
pub const LEASE_ALPN: &[u8] = b"amphi-lease/1";
/// Fewer voters than this can form no majority that outlives the loss of one: nobody fences itself.
pub const VOTERS_MIN: usize = 3;
/// At most so many hosts vote: a host in doubt asks them all, several times a second.
pub const VOTERS_MAX: usize = 31;

/// The times of a lease, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseTiming {
    /// From one renewal to the next.
    pub period: u64,
    /// An answer that comes later than this after its question was sent is dropped.
    pub answer: u64,
    /// The lease, which a host counts from the sending of the renewal that was answered.
    pub term: u64,
    /// From a host's decision to fence itself until its guests are gone.
    pub fence: u64,
    /// A host in doubt asks every voter this often.
    pub poll: u64,
    /// A voter's word counts this long, from when it was asked.
    pub evidence: u64,
    /// The controller lets a lease end this much later than the host does: drift of clocks, and a host that is slow.
    pub margin: u64,
    /// After this long without a renewal the controller tells all others that the host is given up.
    pub doubt: u64,
}

impl Default for LeaseTiming {
    fn default() -> Self {
        Self {
            period: 500,
            answer: 700,
            term: 3_500,
            fence: 800,
            poll: 250,
            evidence: 600,
            margin: 500,
            doubt: 1_250,
        }
    }
}

/// How much faster or slower than real time a clock may run, in percent.
pub const DRIFT_PERCENT: u64 = 1;

impl LeaseTiming {
    /// From the moment when enough voters know that a host is given up until it can hold nothing any more: the last word
    /// of theirs that it may have heard before has lost its worth, and it has fenced itself. Both clocks may drift.
    pub fn settle(&self) -> u64 {
        let wait = self.evidence + self.fence;
        wait + (wait * 2 * DRIFT_PERCENT).div_ceil(100)
    }

    /// Times that make no sense together are refused, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let rules = [
            (self.term > self.fence + 2 * self.period, "a lease must outlast fencing and two renewals"),
            (
                self.margin * 100 >= self.term * 2 * DRIFT_PERCENT,
                "the margin must cover the drift of two clocks",
            ),
            (self.evidence >= 2 * self.poll, "a voter's word must outlast two rounds of asking"),
            (self.doubt > 2 * self.period, "one lost renewal is no reason for doubt"),
        ];
        rules.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, why)| Err(why))
    }
}

/// What a host's lease lets it do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// The cloud has no leases (too few voters, or switched off): the host runs on, whatever happens.
    #[default]
    Off,
    /// The controller has renewed it.
    Held,
    /// The controller is silent, and most voters say that this host is not given up: it runs on.
    Hold,
    /// The host has ended its guests, and starts none.
    Fenced,
}

/// `POST /hosts/v1/lease`: a host says that it is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRenewal {
    /// Counts the host's renewals.
    pub sequence: u64,
    /// The newest grant that the host goes by.
    pub echo: Option<LeaseEcho>,
    /// Where other hosts can ask this one.
    pub address: SocketAddr,
    pub state: LeaseState,
    /// The host's mark of its boot; a fence changes it.
    pub boot: Option<Uuid>,
    /// It runs no bodies; it only votes.
    #[serde(default)]
    pub witness: bool,
}

/// Names a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LeaseEcho {
    /// The running controller that gave it; another after each start.
    pub controller: Uuid,
    pub number: u64,
    /// The list of voters that came with it or before it.
    pub list: u64,
}

/// The controller's answer to a renewal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseGrant {
    /// The renewal's.
    pub sequence: u64,
    pub controller: Uuid,
    /// Grows with time. A grant names all hosts that were given up when it was numbered.
    pub number: u64,
    /// Whether the host must fence itself when it can neither renew nor see a majority.
    pub on: bool,
    /// The host is shut out: its instances are being started elsewhere. It must be fenced, and stay so.
    pub barred: bool,
    pub timing: LeaseTiming,
    /// Names the list of voters.
    pub list: u64,
    /// All voters; absent when the host has this list already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub voters: Option<Vec<Voter>>,
    /// Hosts whose renewals have stopped coming.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub given_up: Vec<HostId>,
}

/// A host whose word counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    /// What its certificate must say.
    pub id: HostId,
    pub name: String,
    /// Where it answers; absent until it has said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
}

/// What a host asks another one, one JSON line per question; who asks is in the certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerQuestion {
    pub number: u64,
}

/// The other host's answer, one JSON line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerAnswer {
    pub number: u64,
    pub word: Word,
    /// How long ago the answering host sent the last renewal of its own that was answered, in milliseconds.
    pub age: Option<u64>,
}

/// What a voter knows of another host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// No controller has spoken to the voter since it was switched on.
    Unknown,
    /// Not given up by the newest grant that the voter goes by.
    Clear,
    GivenUp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_must_fit_each_other() {
        let usual = LeaseTiming::default();
        assert_eq!(usual.check(), Ok(()));
        for (bad, word) in [
            (LeaseTiming { term: 1_700, ..usual }, "outlast fencing"),
            (LeaseTiming { margin: 10, ..usual }, "drift"),
            (LeaseTiming { evidence: 300, ..usual }, "two rounds"),
            (LeaseTiming { doubt: 900, ..usual }, "doubt"),
        ] {
            assert!(bad.check().unwrap_err().contains(word), "{bad:?}");
        }
        assert_eq!(usual.settle(), 1_428);
    }
}
