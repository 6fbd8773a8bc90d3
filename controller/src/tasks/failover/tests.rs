use super::*;
use crate::fence::FenceConfig;
use crate::network::{BarError, Barred};
use crate::ops::tests::{Cloud, P};
use amphi_api::failover::{FailoverFate, FailoverPhase};
use amphi_api::host::HostState;
use amphi_api::instance::{Instance, InstanceState};
use serde_json::json;
use std::collections::BTreeSet;
use tokio::sync::Semaphore;

/// Leases that say what the test says.
#[derive(Default)]
struct Played {
    verdicts: Mutex<BTreeMap<HostId, Verdict>>,
    calls: Mutex<Vec<(&'static str, HostId)>>,
}

impl Played {
    fn say(&self, host: HostId, verdict: Verdict) {
        self.verdicts.lock().unwrap().insert(host, verdict);
    }
}

impl Verdicts for Played {
    fn verdicts(&self) -> BTreeMap<HostId, Verdict> {
        self.verdicts.lock().unwrap().clone()
    }
    fn seize(&self, host: HostId) -> bool {
        self.calls.lock().unwrap().push(("seize", host));
        true
    }
    fn seize_fenced(&self, host: HostId) {
        self.calls.lock().unwrap().push(("fenced", host));
    }
    fn admit(&self, host: HostId) {
        self.calls.lock().unwrap().push(("admit", host));
    }
}

/// A network that shuts out what it is told to, if it works.
#[derive(Default)]
struct Wire {
    out: Mutex<BTreeSet<HostId>>,
    broken: Mutex<bool>,
    /// Where it is there, each try waits for a permit of its own.
    gate: Mutex<Option<Arc<Semaphore>>>,
}

#[async_trait]
impl NetworkBar for Wire {
    async fn shut_out(&self, barred: &BTreeSet<Barred>) -> Result<(), BarError> {
        if *self.broken.lock().unwrap() {
            return Err(BarError::played());
        }
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        *self.out.lock().unwrap() = barred.iter().map(|b| b.host).collect();
        Ok(())
    }
}

struct Stage {
    cloud: Cloud,
    hosts: [HostId; 3],
    leases: Arc<Played>,
    wire: Arc<Wire>,
    task: Failover,
}

impl Stage {
    async fn new(fences: BTreeMap<String, Fence>) -> Self {
        let (cloud, h1, h2) = Cloud::furnished().await;
        let h3 = cloud.host("h3").await;
        let (leases, wire) = (Arc::<Played>::default(), Arc::<Wire>::default());
        [h1, h2, h3].into_iter().for_each(|host| leases.say(host, Verdict::Fresh));
        let task = Failover::new(cloud.ops.clone(), leases.clone(), wire.clone(), fences);
        Self { cloud, hosts: [h1, h2, h3], leases, wire, task }
    }

    async fn on_h1(&self, change: serde_json::Value) -> Instance {
        let mut change = change;
        change["host"] = "h1".into();
        self.cloud.create(change).await.unwrap()
    }

    fn told(&self) -> amphi_api::failover::Failover {
        self.cloud.ops.failovers(Some(self.hosts[0])).remove(0)
    }
}

fn names(failover: &amphi_api::failover::Failover, what: fn(&FailoverFate) -> bool) -> Vec<&str> {
    failover.instances.iter().filter(|i| what(&i.fate)).map(|i| i.name.as_str()).collect()
}

#[tokio::test]
async fn a_host_ends_and_its_instances_live_elsewhere_until_it_has_buried_them() {
    let stage = Stage::new(BTreeMap::new()).await;
    let Stage { cloud, hosts: [h1, h2, h3], leases, wire, task } = &stage;
    let terms = |priority: u32| json!({"priority": priority});
    let last = stage.on_h1(json!({"name": "last", "failover_terms": terms(200)})).await;
    let first = stage.on_h1(json!({"name": "first", "failover_terms": terms(1)})).await;
    let bound = stage.on_h1(json!({"name": "bound", "volume": {"size_gib": 1}})).await;
    let fresh =
        json!({"name": "fresh", "volume": {"size_gib": 1}, "failover_terms": {"local_volume": "fresh"}});
    let fresh = stage.on_h1(fresh).await;
    stage.on_h1(json!({"name": "never", "failover": "never"})).await;
    cloud.obey(*h1).await;

    for held in [Verdict::Fresh, Verdict::Late, Verdict::HeldBack { why: "two of five".into() }] {
        leases.say(*h1, held);
        task.look().await.unwrap();
        assert!(cloud.ops.failovers(None).is_empty());
    }
    // Nothing moves while the network cannot shut it out.
    let held = cloud.ops.desired(*h1);
    leases.say(*h1, Verdict::Ended);
    *wire.broken.lock().unwrap() = true;
    task.look().await.unwrap_err();
    assert_eq!(stage.told().phase, FailoverPhase::Barring);
    assert_eq!(cloud.show(&first).host, Some(*h1));
    let host = cloud.ops.host(*h1).unwrap();
    assert!(host.state == HostState::Down && host.barred_since.is_some());
    let condemned = cloud.ops.desired(*h1);
    assert!(condemned.shut_out && !held.shut_out && condemned.generation > held.generation);
    // A word that was still on its way raises nobody from the dead, and nobody is sent there.
    cloud.ops.heartbeat(*h1, &[], 1).await.unwrap();
    assert_eq!(cloud.ops.host(*h1).unwrap().state, HostState::Down);
    assert!(cloud.create(json!({"name": "late", "host": "h1"})).await.is_err());

    *wire.broken.lock().unwrap() = false;
    task.look().await.unwrap();
    assert_eq!(*wire.out.lock().unwrap(), [*h1].into());
    let told = stage.told();
    assert_eq!(told.phase, FailoverPhase::Starting);
    assert!(told.barred_at.is_some() && told.moved_at >= told.barred_at);
    assert_eq!(
        names(&told, |f| matches!(f, FailoverFate::Moved { .. })),
        ["first", "fresh", "last"],
        "by priority"
    );
    assert_eq!(names(&told, |f| matches!(f, FailoverFate::Waiting { .. })), ["bound"]);
    assert_eq!(names(&told, |f| matches!(f, FailoverFate::Refused { .. })), ["never"]);
    assert_eq!(cloud.show(&bound).state, InstanceState::Stranded);
    let (a, b) = (cloud.show(&first), cloud.show(&last));
    assert_eq!((a.epoch, a.addresses), (2, first.addresses.clone()));
    assert_eq!((b.epoch, b.addresses), (2, last.addresses.clone()));
    assert_ne!(a.host, cloud.show(&fresh).host, "spread");
    // The fresh one has a blank volume, and the record says so.
    let now = cloud.show(&fresh);
    assert!(now.volume.is_some() && now.volume != fresh.volume);
    let item = told.instances.iter().find(|i| i.instance == fresh.id).unwrap();
    let FailoverFate::Moved { fresh_volume: Some(pair), .. } = &item.fate else { panic!("{item:?}") };
    assert_eq!((Some(pair.old), Some(pair.new)), (fresh.volume, now.volume));
    assert_eq!(cloud.ops.volume(P, pair.old).unwrap().instance, None);
    assert_eq!(cloud.ops.world().read().actions_of(first.id).last().unwrap().action, "evacuate");

    // Over when all that moved runs.
    cloud.obey(*h2).await;
    cloud.obey(*h3).await;
    task.look().await.unwrap();
    let told = stage.told();
    assert_eq!(told.phase, FailoverPhase::Done);
    assert!(told.ended_at.is_some() && told.returned_at.is_none());

    // It comes back: shut out until it has buried what moved.
    cloud.up(*h1, "h1").await;
    task.look().await.unwrap();
    assert_eq!(*wire.out.lock().unwrap(), [*h1].into());
    assert!(cloud.ops.host(*h1).unwrap().barred_since.is_some());
    assert!(cloud.ops.desired(*h1).shut_out, "it may start nothing yet");
    cloud.obey(*h1).await;
    task.look().await.unwrap();
    assert!(cloud.ops.host(*h1).unwrap().barred_since.is_none() && !cloud.ops.desired(*h1).shut_out);
    leases.say(*h1, Verdict::Fresh);
    task.look().await.unwrap();
    assert!(wire.out.lock().unwrap().is_empty());
    assert_eq!(*leases.calls.lock().unwrap(), [("seize", *h1), ("admit", *h1)]);
    assert!(stage.told().returned_at.is_some());
    cloud.obey(*h1).await;
    assert_eq!(cloud.show(&bound).state, InstanceState::Running);
    assert_eq!(cloud.show(&first).state, InstanceState::Running);
}

#[tokio::test]
async fn a_controller_that_dies_between_two_steps_is_followed_by_one_that_goes_on() {
    let stage = Stage::new(BTreeMap::new()).await;
    let h1 = stage.hosts[0];
    for n in 0..40 {
        stage.on_h1(json!({"name": format!("i{n}"), "memory_mib": 16, "vcpus": 1})).await;
    }
    stage.leases.say(h1, Verdict::Ended);
    *stage.wire.broken.lock().unwrap() = true;
    stage.task.look().await.unwrap_err();
    *stage.wire.broken.lock().unwrap() = false;
    // The next controller has new leases, which say nothing of the host yet.
    let next = stage.cloud.another().await;
    let task = Failover::new(next.ops.clone(), Arc::<Played>::default(), stage.wire.clone(), BTreeMap::new());
    task.look().await.unwrap();
    let told = next.ops.failovers(None);
    assert_eq!((told.len(), told[0].phase), (1, FailoverPhase::Starting));
    let moved = names(&told[0], |f| matches!(f, FailoverFate::Moved { .. })).len();
    let refused = names(&told[0], |f| matches!(f, FailoverFate::Refused { .. })).len();
    assert_eq!(moved + refused, 40);
    // Three CPUs, four promised for each: two hosts take 24.
    assert!(moved >= 24, "{moved}");
    if refused == 0 {
        return;
    }
    // Room comes.
    let h4 = next.host("h4").await;
    tokio::time::timeout(Duration::from_secs(10), async {
        while next.ops.world().read().instances_on(h4).next().is_none() {
            task.look().await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("tried again when there is room");
}

#[tokio::test]
async fn a_fence_device_is_reason_enough_and_a_failed_one_is_not() {
    let fence = |code: u32| {
        let argv = vec!["/bin/sh".into(), "-c".into(), format!("exit {code}")];
        FenceConfig::Command { argv, timeout_seconds: 5 }.open().unwrap()
    };
    let stage = Stage::new([("h1".into(), fence(0)), ("h2".into(), fence(1))].into()).await;
    let Stage { cloud, hosts: [h1, h2, h3], leases, wire, task } = &stage;
    let moved = stage.on_h1(json!({"name": "moved"})).await;
    let stays = cloud.create(json!({"name": "stays", "host": "h2"})).await.unwrap();
    // Known to be off: nothing waits for the network.
    *wire.broken.lock().unwrap() = true;
    leases.say(*h1, Verdict::Late);
    let until = |wanted: fn(&Stage) -> bool| {
        let stage = &stage;
        async move {
            let looks = async {
                while !wanted(stage) {
                    let _ = task.look().await;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::time::timeout(Duration::from_secs(10), looks).await.expect("in time");
        }
    };
    until(|s| s.cloud.ops.failovers(None).first().is_some_and(|f| f.moved_at.is_some())).await;
    assert_eq!(cloud.show(&moved).epoch, 2);
    let told = stage.told();
    assert_eq!((told.cause, told.fence.as_ref().map(|f| f.success)), (FailoverCause::Fenced, Some(true)));
    assert_eq!(*leases.calls.lock().unwrap(), [("fenced", *h1)]);
    *wire.broken.lock().unwrap() = false;
    cloud.up(*h1, "h1").await;
    cloud.obey(*h1).await;
    leases.say(*h1, Verdict::Fresh);
    until(|s| s.cloud.ops.host(s.hosts[0]).unwrap().barred_since.is_none()).await;

    leases.say(*h2, Verdict::Late);
    until(|s| s.task.fencing.report(s.hosts[1]).is_some()).await;
    task.look().await.unwrap();
    assert_eq!(cloud.show(&stays).host, Some(*h2), "a device that failed says nothing");
    leases.say(*h2, Verdict::Ended);
    task.look().await.unwrap();
    assert_eq!(cloud.ops.failovers(Some(*h2))[0].cause, FailoverCause::LeaseEnded);
    assert!(cloud.ops.failovers(Some(*h2))[0].fence.as_ref().is_some_and(|f| !f.success));
    let _ = h3;
}

async fn eventually(what: &str, ok: impl Fn() -> bool) {
    let waits = async {
        while !ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waits).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// The first host was switched off and is let in again, while the try to shut it out has not ended yet.
async fn overtaken() -> (Stage, Arc<Semaphore>) {
    let argv = vec!["/bin/sh".into(), "-c".into(), "exit 0".into()];
    let fence = FenceConfig::Command { argv, timeout_seconds: 5 }.open().unwrap();
    let stage = Stage::new([("h1".into(), fence)].into()).await;
    let h1 = stage.hosts[0];
    stage.on_h1(json!({"name": "first"})).await;
    stage.task.look().await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    *stage.wire.gate.lock().unwrap() = Some(gate.clone());
    stage.leases.say(h1, Verdict::Late);
    let looks = async {
        while stage.cloud.ops.failovers(None).first().is_none_or(|f| f.moved_at.is_none()) {
            stage.task.look().await.unwrap();
        }
        stage.cloud.up(h1, "h1").await;
        stage.cloud.obey(h1).await;
        stage.leases.say(h1, Verdict::Fresh);
        while stage.cloud.ops.host(h1).unwrap().barred_since.is_some() {
            stage.task.look().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(10), looks).await.expect("let in");
    (stage, gate)
}

#[tokio::test]
async fn a_late_try_does_not_keep_out_who_was_let_in() {
    let (stage, gate) = overtaken().await;
    gate.add_permits(1);
    eventually("the late try", || !stage.wire.out.lock().unwrap().is_empty()).await;
    gate.add_permits(8);
    for _ in 0..3 {
        stage.task.look().await.unwrap();
    }
    assert!(stage.wire.out.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_late_try_is_no_proof_for_the_next_time() {
    let (stage, gate) = overtaken().await;
    stage.on_h1(json!({"name": "second"})).await;
    stage.leases.say(stage.hosts[0], Verdict::Ended);
    stage.task.look().await.unwrap();
    assert_eq!((stage.told().cause, stage.told().phase), (FailoverCause::LeaseEnded, FailoverPhase::Barring));
    gate.add_permits(1);
    eventually("the late try", || !stage.wire.out.lock().unwrap().is_empty()).await;
    stage.task.look().await.unwrap();
    assert_eq!(stage.told().phase, FailoverPhase::Barring, "the same host, another time");
    gate.add_permits(8);
    for _ in 0..3 {
        stage.task.look().await.unwrap();
    }
    assert!(stage.told().barred_at.is_some(), "{:?}", stage.told());
}
