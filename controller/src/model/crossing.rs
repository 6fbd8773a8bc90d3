//! The part of a live move in which memory and disks go over: who has the body, decided from what both hosts say. Pure.
//!
//! The body on the new host stays halted until the instance is the new host's by record, so the old host's word decides:
//! - *Land* only when the old host's engine says that the body ended there because it went over, and the new host has it
//!   whole. Then the instance belongs to the new host, at the next epoch, and that host lets it run.
//! - Anything else ends where it was: first the move is *recalled*, and only when the old host has said that nothing is
//!   under way and nothing will be, it *fails*; then the old host lets the body run, or starts it, and the new one buries.
//!
//! Each is one commit of the same record, so there is never both; and between them the instance is halted at both ends
//! at worst. What the old host's disks hold is good for as long as nothing has run on the new one.

use super::exchange::{ExchangeSight, ExchangeStep, FAULT_PATIENCE, lasting};
use super::journey::{JourneySight, fault};
use amphi_api::instance::Fault;

pub(super) fn crossing_step(sight: &ExchangeSight, hosts: &JourneySight) -> ExchangeStep {
    let (exchange, journey, now) = (sight.exchange, hosts.journey, sight.now);
    // A host that is away with the body on it is a failover's business.
    let Some(up) = hosts.from_up_since else { return ExchangeStep::Wait };
    let current = sight.instance.current();
    let told = current.and_then(|o| o.leaving).filter(|l| l.exchange == exchange.id);
    let recall = |fault: Fault| match journey.recalled {
        None => ExchangeStep::Recall(fault),
        Some(_) => ExchangeStep::Wait,
    };
    let since = exchange.phase_since.max(up);
    let long = |since: jiff::Timestamp| now.duration_since(since) >= FAULT_PATIENCE;
    let (Some(told), Some(current)) = (told, current) else {
        let silent = || fault("no_answer", "its host does not say how far it is", now);
        return if long(since) { recall(silent()) } else { ExchangeStep::Wait };
    };
    let to_gone = hosts.to_up_since.is_none() && long(exchange.phase_since.max(hosts.to_since));
    let gone = current.state.is_still() && current.fault.is_none();
    if !told.under_way && gone && told.away && journey.landed {
        return ExchangeStep::Land;
    }
    if told.recalled && !told.under_way {
        let why = journey.recalled.clone();
        return ExchangeStep::Fail(why.unwrap_or_else(|| fault("recalled", "the move was called off", now)));
    }
    if exchange.cancelled {
        return recall(fault("cancelled", "the move was called off", now));
    }
    // Before the guest has gone over, that is: who is halted at the very switch is waited for.
    if let Some(limit) = journey.deadline_s.filter(|_| !(gone && told.away))
        && now.duration_since(exchange.phase_since).as_secs() >= i64::from(limit)
    {
        let why = format!(
            "it had not gone over within {limit} s: its guest writes quicker than the wire takes, perhaps"
        );
        return recall(fault("timeout", &why, now));
    }
    if to_gone {
        return recall(fault("host_down", "the host that it should go to does not answer", now));
    }
    if told.under_way {
        return ExchangeStep::Wait;
    }
    if gone && told.away {
        let lost = || fault("not_landed", "it left, and the new host does not have it", now);
        return if long(since) && hosts.to_up_since.is_some_and(long) {
            recall(lost())
        } else {
            ExchangeStep::Wait
        };
    }
    if gone {
        return recall(fault("not_running", "it ended while it was going over", now));
    }
    match lasting(sight, current.fault.as_ref(), since) {
        Some(fault) => recall(fault),
        None => ExchangeStep::Wait,
    }
}

#[cfg(test)]
#[path = "crossing_tests.rs"]
mod tests;
