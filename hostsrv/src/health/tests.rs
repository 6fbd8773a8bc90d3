use super::*;
use Asked::{Fails, Holds, Unknown};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

fn watch(probes: Value) -> Watch {
    Watch::new(serde_json::from_value(probes).unwrap())
}

/// Feeds `+`, `-` and `?` to one probe; answers what is ready after each, `.` for not, `R` for ready, `E` for an end.
fn says(probes: Value, kind: Kind, answers: &str) -> String {
    let mut watch = watch(probes);
    answers
        .chars()
        .map(|c| match c {
            '+' => Holds,
            '-' => Fails("no".to_owned()),
            _ => Unknown,
        })
        .map(|answer| match watch.take(kind, answer) {
            Verdict::End(_) => 'E',
            Verdict::Go if watch.ready() == Some(true) => 'R',
            Verdict::Go => '.',
        })
        .collect()
}

#[test]
fn thresholds() {
    let readiness = json!({"readiness": {"tcp": {"port": 1}, "failures": 2, "successes": 2}});
    assert_eq!(says(readiness, Kind::Readiness, "-+-++-+--+?+"), "....RRRR...R");
    let liveness = json!({"liveness": {"tcp": {"port": 1}, "failures": 3}});
    assert_eq!(says(liveness, Kind::Liveness, "--+--?-"), "......E");
    let startup = json!({"startup": {"tcp": {"port": 1}, "failures": 2}});
    assert_eq!(says(startup.clone(), Kind::Startup, "-+"), ".R");
    assert_eq!(says(startup, Kind::Startup, "--"), ".E");
}

#[test]
fn startup_comes_before_the_others() {
    let probe = |delay: u32| json!({"tcp": {"port": 1}, "initial_delay_s": delay, "period_s": 5});
    let mut all = watch(json!({"startup": probe(2), "readiness": probe(0), "liveness": probe(30)}));
    let second = Duration::from_secs;
    let never = |_| None;
    assert_eq!(all.next(never, second(0)), Some((Kind::Startup, second(2))));
    assert_eq!(
        all.next(never, second(9)),
        Some((Kind::Startup, second(9))),
        "an agent that comes late asks at once"
    );
    assert_eq!(all.next(|_| Some(second(4)), second(0)), Some((Kind::Startup, second(9))));
    assert_eq!(all.ready(), Some(false));
    all.take(Kind::Startup, Holds);
    assert_eq!((all.next(never, second(0)), all.ready()), (Some((Kind::Readiness, second(0))), Some(false)));
    let readiness = |kind| (kind == Kind::Readiness).then_some(second(28));
    assert_eq!(all.next(readiness, second(0)), Some((Kind::Liveness, second(30))));
    all.take(Kind::Readiness, Fails("refused".to_owned()));
    assert_eq!(all.reason().as_deref(), Some("its readiness probe fails: refused"));
    all.take(Kind::Readiness, Holds);
    assert_eq!((all.ready(), all.reason()), (Some(true), None));
    assert_eq!(watch(json!({"liveness": probe(0)})).ready(), None);
}

struct Scripted {
    asked: AtomicUsize,
    ended: tokio::sync::Notify,
}

#[async_trait]
impl Subject for Scripted {
    async fn ask(&self, _: &Probe) -> Asked {
        match self.asked.fetch_add(1, Ordering::SeqCst) {
            0 => Holds,
            _ => Fails("gone".to_owned()),
        }
    }

    fn turned(&self) {}

    async fn end(&self, _: &str) {
        self.ended.notify_one();
    }
}

#[tokio::test]
async fn what_fails_is_ended_and_the_reason_outlives_it() {
    let health = Arc::new(Health::default());
    let subject = Arc::new(Scripted { asked: AtomicUsize::new(0), ended: tokio::sync::Notify::new() });
    let probes: Probes =
        serde_json::from_value(json!({"liveness": {"tcp": {"port": 1}, "period_s": 1, "failures": 2}}))
            .unwrap();
    let run = ("c".to_owned(), 7);
    for _ in 0..2 {
        health.watch(&run, Duration::ZERO, &probes, || subject.clone());
    }
    let ended = tokio::time::timeout(Duration::from_secs(60), subject.ended.notified()).await;
    assert!(ended.is_ok(), "asked {} times and not ended", subject.asked.load(Ordering::SeqCst));
    assert_eq!(subject.asked.load(Ordering::SeqCst), 3, "one task asks");
    health.keep(|_| false, |_| true);
    let reason = health.outlook(&("c".to_owned(), 8)).reason;
    assert_eq!(reason.as_deref(), Some("its liveness probe failed 2 times in a row: gone"));
    health.keep(|_| false, |_| false);
    assert_eq!(health.outlook(&run), Outlook::default());
}
