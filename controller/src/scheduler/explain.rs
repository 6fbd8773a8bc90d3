//! What placement thinks of every host: for people who ask why.

use super::{HostSight, Policy, Reasons, Request, body_for};
use amphi_api::HostId;
use std::cmp::Reverse;

/// One host, weighed or refused.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    pub host: HostId,
    pub name: String,
    /// The filters that object, with their words; none: it is fit.
    pub reasons: Reasons,
    /// Index into `Request::bodies`, of a host that is fit.
    pub body: Option<usize>,
    /// Of a host that is fit: each weight with its factor in it.
    pub weights: Vec<(&'static str, f64)>,
    /// Their sum in millionths.
    pub score: Option<i64>,
}

/// Every host, the chosen one first, those that are not fit last, in order of name.
pub fn explain<'a>(
    hosts: impl IntoIterator<Item = HostSight<'a>>,
    request: &Request,
    policy: &Policy,
) -> Vec<Verdict> {
    let scheduler = policy.scheduler_of(request);
    let judge = |host: HostSight| {
        let (name, id) = (host.name.to_owned(), host.id);
        match body_for(&host, request, policy) {
            Err(reasons) => Verdict { host: id, name, reasons, body: None, weights: Vec::new(), score: None },
            Ok(body) => {
                let standing =
                    scheduler.standing.iter().map(|(name, by, weigh)| (*name, by * weigh(&host, policy)));
                let asked =
                    scheduler.asked.iter().map(|(name, by, weigh)| (*name, by * weigh(&host, request)));
                let score = scheduler.standing(&host, policy) + scheduler.asked(&host, request);
                let weights = standing.chain(asked).collect();
                Verdict { host: id, name, reasons: Vec::new(), body: Some(body), weights, score: Some(score) }
            }
        }
    };
    let mut verdicts: Vec<Verdict> = hosts.into_iter().map(judge).collect();
    verdicts.sort_by(|a, b| {
        let rank = |v: &Verdict| (v.body.is_none(), v.body, Reverse(v.score));
        let last = |v: &Verdict| {
            if v.body.is_some() {
                (v.host.to_string(), String::new())
            } else {
                (String::new(), v.name.clone())
            }
        };
        rank(a).cmp(&rank(b)).then_with(|| last(a).cmp(&last(b)))
    });
    verdicts
}
