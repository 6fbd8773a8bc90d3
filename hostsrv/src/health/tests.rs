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

struct Silent;

#[async_trait]
impl Subject for Silent {
    async fn ask(&self, _: &Probe) -> Asked {
        std::future::pending().await
    }

    fn turned(&self) {}

    async fn end(&self, _: &str) {}
}

#[tokio::test]
async fn who_has_come_up_is_up_when_the_agent_starts_anew() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("up");
    let probe = json!({"tcp": {"port": 1}, "period_s": 1, "failures": 2});
    let probes: Probes = serde_json::from_value(json!({"startup": probe, "readiness": probe})).unwrap();
    let agent = || {
        let health = Arc::new(Health::default());
        health.remember(file.clone());
        health
    };
    let (shop, other) = (("shop".to_owned(), 7), ("other".to_owned(), 7));
    let ready = |health: &Arc<Health>, run: &Run| {
        health.watch(run, Duration::ZERO, &probes, || Arc::new(Silent));
        health.outlook(run).ready
    };
    let health = agent();
    for run in [&shop, &other] {
        assert_eq!(ready(&health, run), Some(false), "nobody has been asked yet");
    }
    let told = |ready| Outlook { ready: Some(ready), reason: None };
    assert!(health.note(&shop, told(true), true));
    assert!(!health.note(&other, told(false), false), "it is not up");
    let health = agent();
    assert_eq!((ready(&health, &shop), ready(&health, &other)), (Some(true), Some(false)));
    assert_eq!(ready(&agent(), &("shop".to_owned(), 8)), Some(false), "it has started again since");
    // One that was not ready is not; one that does not run is forgotten, and so is one that was ended.
    health.note(&shop, told(false), true);
    assert_eq!(ready(&agent(), &shop), Some(false));
    health.note(&shop, told(true), true);
    agent().note_end("shop", "its liveness probe failed");
    assert_eq!(ready(&agent(), &shop), Some(false));
    let health = agent();
    ready(&health, &shop);
    health.note(&shop, told(true), true);
    agent().keep(|_| false, |_| true);
    assert_eq!(ready(&agent(), &shop), Some(false));
    std::fs::write(&file, "{").unwrap();
    assert_eq!(ready(&agent(), &shop), Some(false), "half a file");
}

#[test]
fn one_that_was_ready_stays_so_until_it_fails_as_often_as_it_may() {
    let probe = json!({"tcp": {"port": 1}, "failures": 2});
    let probes: Probes = serde_json::from_value(json!({"startup": probe, "readiness": probe})).unwrap();
    let mut watch = Watch::resumed(probes, true);
    assert!(watch.is_up() && watch.ready() == Some(true));
    watch.take(Kind::Readiness, Unknown);
    watch.take(Kind::Readiness, Fails("no".to_owned()));
    assert_eq!(watch.ready(), Some(true));
    watch.take(Kind::Readiness, Fails("no".to_owned()));
    assert_eq!(watch.ready(), Some(false));
}
