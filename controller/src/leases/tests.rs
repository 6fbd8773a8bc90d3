//! The book as a table of what is said to it and what it answers. Hosts are numbers; the controller's clock starts at 0.
//! In the crate's own words a step is a renewal with the newest grant echoed, as real hosts do it.

use super::book::{Book, Known, Millis, Verdict};
use amphi_api::HostId;
use amphi_api::lease::LeaseTiming;
use std::collections::BTreeMap;
use uuid::Uuid;

fn host(number: u128) -> HostId {
    HostId(Uuid::from_u128(number))
}

/// A book, and the newest grant of each host.
struct Cloud {
    book: Book,
    grants: BTreeMap<u128, Millis>,
    now: Millis,
}

const T: LeaseTiming = LeaseTiming {
    period: 500,
    answer: 700,
    term: 3_500,
    fence: 800,
    poll: 250,
    evidence: 600,
    margin: 500,
    doubt: 1_250,
};

impl Cloud {
    fn of(count: u128) -> Self {
        let mut cloud = Self { book: Book::new(T, true, 0), grants: BTreeMap::new(), now: 0 };
        cloud.know(count, |_| Known { voter: true, enforces: true, barred: false });
        cloud
    }

    fn know(&mut self, count: u128, of: impl Fn(u128) -> Known) {
        let known = (1..=count).map(|n| (host(n), of(n))).collect();
        self.book.know(&known, self.now);
    }

    /// The host renews, and hears the answer.
    fn renew(&mut self, number: u128) -> super::book::Reply {
        let reply = self.book.renewed(host(number), self.grants.get(&number).copied(), true, self.now);
        let reply = reply.expect("a known host");
        self.grants.insert(number, reply.number);
        reply
    }

    /// Time passes; these hosts renew every period, all others are silent.
    fn pass(&mut self, millis: Millis, renewing: &[u128]) {
        let end = self.now + millis;
        while self.now < end {
            renewing.iter().for_each(|n| drop(self.renew(*n)));
            self.now = (self.now + T.period).min(end);
        }
    }

    fn verdict(&mut self, number: u128) -> Verdict {
        self.book.verdict(host(number), self.now).expect("a known host")
    }

    fn why(&mut self, number: u128) -> String {
        match self.verdict(number) {
            Verdict::HeldBack { why } => why,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_host_that_is_silent_alone_ends_after_its_lease_and_not_before() {
    for (count, others) in [(3, vec![2, 3]), (5, vec![2, 3, 4, 5])] {
        let mut cloud = Cloud::of(count);
        cloud.pass(2_000, &(1..=count).collect::<Vec<_>>());
        let last = cloud.book.renewed_at(host(1)).unwrap();
        let mut ended = None;
        let mut seen = Vec::new();
        while cloud.now < last + 6_000 && ended.is_none() {
            if cloud.now.is_multiple_of(T.period) {
                others.iter().for_each(|n| drop(cloud.renew(*n)));
            }
            let verdict = cloud.verdict(1);
            if seen.last() != Some(&verdict) {
                seen.push(verdict.clone());
            }
            ended = (verdict == Verdict::Ended).then_some(cloud.now - last);
            cloud.now += 10;
        }
        assert_eq!(ended, Some(T.term + T.margin), "{seen:?}");
        assert_eq!(seen, [Verdict::Fresh, Verdict::Late, Verdict::Ended]);
        assert!(others.iter().all(|n| cloud.verdict(*n) == Verdict::Fresh));
    }
}

#[test]
fn most_come_back_one_after_the_other_and_none_is_given_up_for_being_the_last() {
    let mut cloud = Cloud::of(5);
    cloud.pass(5_000, &[1, 2, 3, 4, 5]);
    cloud.pass(20_000, &[4, 5]);
    assert!(cloud.renew(4).given_up.is_empty(), "it is the controller that has lost them");
    // They are back within `doubt` of one another, the last one last.
    cloud.pass(500, &[1, 4, 5]);
    assert!(cloud.renew(1).given_up.is_empty());
    cloud.pass(1_000, &[1, 2, 4, 5]);
    assert!([1, 2, 4, 5].iter().all(|n| cloud.renew(*n).given_up.is_empty()));
    // One that does not return is given up after all, and ends when enough know.
    cloud.pass(2_000, &[1, 2, 4, 5]);
    assert_eq!(cloud.renew(1).given_up, [host(3)].into());
    cloud.pass(2_000, &[1, 2, 4, 5]);
    assert_eq!(cloud.verdict(3), Verdict::Ended);
    // Once seized it is named whoever is missing: nobody may vouch for it.
    assert!(cloud.book.seize(host(3), cloud.now));
    cloud.pass(20_000, &[4]);
    assert_eq!(cloud.renew(4).given_up, [host(3)].into());
}

#[test]
fn nothing_ends_while_most_are_silent() {
    // (hosts, those that still renew, what holds it back)
    let table: [(u128, &[u128], &str); 4] = [
        (3, &[3], "only 1 of 3"),
        (5, &[4, 5], "only 2 of 5"),
        (4, &[4], "only 1 of 4"),
        (3, &[], "only 0 of 3"),
    ];
    for (count, left, why) in table {
        let mut cloud = Cloud::of(count);
        cloud.pass(2_000, &(1..=count).collect::<Vec<_>>());
        cloud.pass(60_000, left);
        assert!(cloud.why(1).contains(why), "{count} {left:?}: {}", cloud.why(1));
        assert!(!cloud.book.clone().seize(host(1), cloud.now));
    }
    let mut cloud = Cloud::of(4);
    cloud.pass(2_000, &[1, 2, 3, 4]);
    cloud.pass(6_000, &[3, 4]);
    assert_eq!(cloud.verdict(1), Verdict::Ended, "half is enough: the other half has no majority either");
}

#[test]
fn those_who_went_one_after_the_other_are_not_taken_for_a_minority() {
    let mut cloud = Cloud::of(5);
    cloud.pass(2_000, &[1, 2, 3, 4, 5]);
    cloud.pass(500, &[2, 3, 4, 5]);
    cloud.pass(500, &[3, 4, 5]);
    cloud.pass(6_000, &[4, 5]);
    for lost in 1..=3 {
        assert!(matches!(cloud.verdict(lost), Verdict::HeldBack { .. }), "{lost}");
    }
}

#[test]
fn it_is_not_enough_that_the_others_are_there_they_must_know() {
    let mut cloud = Cloud::of(3);
    cloud.pass(2_000, &[1, 2, 3]);
    let stale = cloud.grants.clone();
    for _ in 0..20 {
        // Their renewals arrive, but no answer of ours reaches them: they go by old grants.
        cloud.grants = stale.clone();
        cloud.pass(500, &[2, 3]);
    }
    assert!(cloud.why(1).contains("0 hosts know"), "{}", cloud.why(1));
    cloud.pass(500, &[2, 3]);
    assert_eq!(cloud.renew(2).given_up.into_iter().collect::<Vec<_>>(), [host(1)]);
    cloud.renew(3);
    let agreed = cloud.now;
    cloud.now += 20;
    assert_eq!(cloud.verdict(1), Verdict::Late, "what it heard before may still count");
    cloud.pass(agreed + T.settle() + 500 - cloud.now, &[2, 3]);
    assert_eq!(cloud.verdict(1), Verdict::Ended);
}

#[test]
fn a_renewal_takes_all_doubt_back() {
    let mut cloud = Cloud::of(3);
    cloud.pass(2_000, &[1, 2, 3]);
    cloud.pass(3_000, &[2, 3]);
    assert_eq!(cloud.verdict(1), Verdict::Late);
    assert!(!cloud.renew(1).barred);
    assert_eq!(cloud.verdict(1), Verdict::Fresh);
    assert!(cloud.renew(2).given_up.is_empty());
    cloud.pass(1_000, &[2, 3]);
    assert_eq!(cloud.verdict(1), Verdict::Fresh, "the lease begins anew");
}

#[test]
fn what_was_seized_is_granted_nothing_until_it_is_admitted() {
    let mut cloud = Cloud::of(3);
    cloud.pass(2_000, &[1, 2, 3]);
    assert!(!cloud.book.seize(host(1), cloud.now));
    cloud.pass(4_500, &[2, 3]);
    assert!(cloud.book.seize(host(1), cloud.now));
    cloud.pass(2_000, &[1, 2, 3]);
    assert!(cloud.renew(1).barred);
    assert_eq!(cloud.verdict(1), Verdict::Ended, "it renews, and stays ended");
    cloud.book.admit(host(1), cloud.now);
    assert!(!cloud.renew(1).barred);
    assert_eq!(cloud.verdict(1), Verdict::Fresh);
    cloud.book.seize_fenced(host(2));
    assert_eq!(cloud.verdict(2), Verdict::Ended, "a fence device needs no lease to end");
}

#[test]
fn a_controller_that_begins_waits_for_a_whole_lease() {
    let mut cloud = Cloud::of(3);
    cloud.pass(3_500, &[2, 3]);
    assert_eq!(cloud.verdict(1), Verdict::Late, "nobody knows what the controller before has granted");
    cloud.pass(2_000, &[2, 3]);
    assert_eq!(cloud.verdict(1), Verdict::Ended);
    // What was barred in the records stays so.
    let mut cloud = Cloud::of(3);
    cloud.know(3, |n| Known { voter: true, enforces: true, barred: n == 1 });
    assert_eq!(cloud.verdict(1), Verdict::Ended);
    assert!(cloud.renew(1).barred);
}

#[test]
fn an_older_list_of_voters_must_agree_as_well() {
    let mut cloud = Cloud::of(3);
    cloud.pass(2_000, &[1, 2, 3]);
    // Hosts 1 and 2 are cut off together; they may hold out by the list of three.
    cloud.know(7, |_| Known { voter: true, enforces: true, barred: false });
    cloud.pass(10_000, &[3, 4, 5, 6, 7]);
    assert!(cloud.why(1).contains("1 hosts know that it is given up, 2 must"), "{}", cloud.why(1));
    // Had it taken the new list in, the five were enough.
    let mut cloud = Cloud::of(3);
    cloud.pass(2_000, &[1, 2, 3]);
    cloud.know(7, |_| Known { voter: true, enforces: true, barred: false });
    cloud.pass(1_500, &[1, 2, 3, 4, 5, 6, 7]);
    cloud.pass(10_000, &[3, 4, 5, 6, 7]);
    assert_eq!(cloud.verdict(1), Verdict::Ended);
}

#[test]
fn without_enough_voters_nobody_fences_himself() {
    let mut cloud = Cloud::of(2);
    assert!(!cloud.book.is_on());
    cloud.know(2, |_| Known { voter: true, ..Known::default() });
    let mut cloud = Cloud { book: Book::new(T, true, 0), grants: BTreeMap::new(), now: 0 };
    cloud.know(2, |_| Known { voter: true, ..Known::default() });
    let off = |cloud: &mut Cloud, n: u128| {
        let echo = cloud.grants.get(&n).copied();
        let reply = cloud.book.renewed(host(n), echo, false, cloud.now).unwrap();
        cloud.grants.insert(n, reply.number);
        reply.on
    };
    assert!(!off(&mut cloud, 1) && !off(&mut cloud, 2));
    cloud.now += 10_000;
    assert!(cloud.why(1).contains("2 hosts can form no majority"), "{}", cloud.why(1));
    // A third joins; it counts when most take part.
    cloud.know(3, |_| Known { voter: true, ..Known::default() });
    assert!(off(&mut cloud, 1), "two of three take part");
    cloud.now += 500;
    cloud.renew(1);
    assert_eq!(cloud.book.enforcing(), ([host(1)].into(), true));
    assert!(cloud.verdict(1) == Verdict::Fresh);
    cloud.pass(20_000, &[1, 2]);
    assert!(cloud.why(3).contains("lease process"), "{}", cloud.why(3));
    // One leaves: those that fence themselves go on doing so until nothing rests on it.
    cloud.know(2, |_| Known { voter: true, ..Known::default() });
    assert!(!cloud.book.is_on());
    assert!(cloud.renew(1).on);
    cloud.book.free(host(1));
    cloud.now += 500;
    assert!(!off(&mut cloud, 1));
    // Said before it heard that: it does not count.
    let echo = cloud.grants[&1] - 1;
    cloud.book.renewed(host(1), Some(echo), true, cloud.now).unwrap();
    assert!(!cloud.book.enforcing().0.contains(&host(1)));
}

#[test]
fn an_operator_may_switch_it_off() {
    let mut cloud = Cloud { book: Book::new(T, false, 0), grants: BTreeMap::new(), now: 0 };
    cloud.know(3, |_| Known { voter: true, ..Known::default() });
    assert!(!cloud.book.renewed(host(1), None, false, 0).unwrap().on);
    cloud.now = 60_000;
    assert!(cloud.why(1).contains("switched off"));
    assert_eq!(cloud.book.renewed(host(9), None, false, 0), None, "a host that no record knows");
}
