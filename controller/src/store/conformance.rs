//! What every engine must do. Run by the tests of each engine on a factory of its own; panics name what broke.

use super::{Compare, Entry, Event, Op, Store, StoreError, TXN_OPS_MAX, Txn, VALUE_MAX, Watch};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

/// Opens one and the same store again and again.
pub trait Factory {
    type Engine: Store;
    /// Opens the store with all that was committed before.
    fn open(&self) -> impl Future<Output = Self::Engine> + Send;
}

fn put(key: &str, value: impl Into<serde_json::Value>) -> Op {
    Op::Put { key: key.into(), value: value.into(), lease: None }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

fn txn(compares: &[(&str, u64)], ops: Vec<Op>) -> Txn {
    let compares =
        compares.iter().map(|(key, version)| Compare { key: (*key).into(), version: *version }).collect();
    Txn { compares, ops }
}

async fn next(watch: &mut Watch) -> super::Change {
    let change = tokio::time::timeout(Duration::from_secs(10), watch.recv()).await.expect("a change in time");
    change.expect("the watch goes on").expect("nothing was compacted")
}

/// Everything below, one after the other on one store.
pub async fn all(factory: &impl Factory) {
    versions_and_revisions(&factory.open().await).await;
    compares(&factory.open().await).await;
    refusals(&factory.open().await).await;
    ranges(&factory.open().await).await;
    watches(&factory.open().await).await;
    slow_watches(Arc::new(factory.open().await)).await;
    leases(&factory.open().await).await;
    lease_races(&factory.open().await).await;
    concurrent_counts(Arc::new(factory.open().await)).await;
    whole_or_not_at_all(Arc::new(factory.open().await)).await;
    reopened(factory).await;
}

async fn versions_and_revisions(store: &impl Store) {
    let first = store.commit(txn(&[], vec![put("/v/a", 1), put("/v/b", 1)])).await.unwrap();
    let second = store.commit(txn(&[], vec![put("/v/a", 2)])).await.unwrap();
    assert_eq!(second, first + 1, "one commit, one revision");
    let a = store.get("/v/a").await.unwrap().expect("put");
    assert_eq!(a, Entry { key: "/v/a".into(), value: json!(2), version: 2, modified: second });
    assert_eq!(store.get("/v/b").await.unwrap().expect("put").modified, first);
    store.commit(txn(&[], vec![delete("/v/a")])).await.unwrap();
    assert_eq!(store.get("/v/a").await.unwrap(), None);
    store.commit(txn(&[], vec![put("/v/a", 3)])).await.unwrap();
    assert_eq!(store.get("/v/a").await.unwrap().expect("put").version, 1, "a key made anew counts anew");
    let (_, before) = store.range("/v/").await.unwrap();
    assert_eq!(store.commit(Txn::default()).await.unwrap(), before, "nothing to do is no commit");
}

async fn compares(store: &impl Store) {
    store.commit(txn(&[("/c/a", 0)], vec![put("/c/a", 1)])).await.unwrap();
    let twice = store.commit(txn(&[("/c/a", 0)], vec![put("/c/a", 2), put("/c/b", 2)])).await;
    assert_eq!(twice, Err(StoreError::Conflict { key: "/c/a".into(), expected: 0, found: 1 }));
    assert_eq!(store.get("/c/b").await.unwrap(), None, "all or nothing");
    let two = store.commit(txn(&[("/c/a", 1), ("/c/x", 4), ("/c/y", 5)], vec![put("/c/b", 1)])).await;
    assert!(
        matches!(two, Err(StoreError::Conflict { key, .. }) if key == "/c/x"),
        "the first that fails is named"
    );
    store.commit(txn(&[("/c/a", 1)], vec![delete("/c/a"), put("/c/b", 1)])).await.unwrap();
    assert_eq!(store.get("/c/a").await.unwrap(), None);
}

async fn refusals(store: &impl Store) {
    let many = (0..=TXN_OPS_MAX).map(|n| put(&format!("/r/{n}"), 1)).collect();
    let table = [
        txn(&[], vec![put("/r/a", 1), delete("/r/a")]),
        txn(&[], many),
        txn(&[], vec![put("no-slash", 1)]),
        txn(&[], vec![put("/r/big", "x".repeat(VALUE_MAX))]),
    ];
    for bad in table {
        let answer = store.commit(bad).await;
        assert!(matches!(answer, Err(StoreError::Invalid(_))), "{answer:?}");
    }
    assert_eq!(store.range("/r/").await.unwrap().0, []);
}

async fn ranges(store: &impl Store) {
    let keys = ["/n/b", "/n/a", "/n/aa", "/nn/a", "/n"];
    store.commit(txn(&[], keys.iter().map(|key| put(key, *key)).collect())).await.unwrap();
    let found: Vec<_> = store.range("/n/").await.unwrap().0.into_iter().map(|e| e.key).collect();
    assert_eq!(found, ["/n/a", "/n/aa", "/n/b"]);
}

async fn watches(store: &impl Store) {
    let start = store.commit(txn(&[], vec![put("/w/0", 0)])).await.unwrap();
    let mut live = store.watch("/w/", start).await.unwrap();
    store.commit(txn(&[], vec![put("/w/1", 1), put("/other/1", 1)])).await.unwrap();
    store.commit(txn(&[], vec![put("/other/2", 1)])).await.unwrap();
    store.commit(txn(&[], vec![delete("/w/0"), delete("/w/none")])).await.unwrap();
    let mut late = store.watch("/w/", start).await.unwrap();
    for watch in [&mut live, &mut late] {
        let first = next(watch).await;
        assert_eq!(first.revision, start + 1);
        assert!(matches!(&first.events[..], [Event::Put(e)] if e.key == "/w/1"), "{first:?}");
        let second = next(watch).await;
        assert_eq!(
            (second.revision, &second.events[..]),
            (start + 3, &[Event::Deleted { key: "/w/0".into() }][..])
        );
    }
    for n in 0..100 {
        store.commit(txn(&[], vec![put("/w/n", n)])).await.unwrap();
        let change = next(&mut live).await;
        assert!(
            matches!(&change.events[..], [Event::Put(e)] if e.value == json!(n)),
            "in order, no gap: {change:?}"
        );
    }
}

/// Who does not read gets what was kept, without a gap, and then everything or the word that something is missing.
async fn slow_watches(store: Arc<impl Store>) {
    const COMMITS: u64 = 3_000;
    let start = store.commit(txn(&[], vec![put("/s/n", 0)])).await.unwrap();
    let slow = store.watch("/s/", start).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..COMMITS {
        let store = store.clone();
        tasks.spawn(async move { store.commit(txn(&[], vec![put("/s/n", n)])).await });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no task fails").unwrap();
    }
    let late = store.watch("/s/", start).await;
    let mut read = Vec::new();
    for mut watch in [Some(slow), late.ok()].into_iter().flatten() {
        let mut revision = start;
        while revision < start + COMMITS {
            let next = tokio::time::timeout(Duration::from_secs(10), watch.recv()).await;
            match next.expect("a change in time").expect("a watch says why it ends") {
                Ok(change) => {
                    assert_eq!(change.revision, revision + 1, "no gap");
                    revision = change.revision;
                }
                Err(error) => {
                    assert!(matches!(error, StoreError::Compacted(_)), "{error}");
                    assert!(watch.recv().await.is_none(), "nothing follows");
                    break;
                }
            }
        }
        read.push(revision - start);
    }
    assert!(read[0] > 0, "a slow watch still gets the first changes");
}

async fn leases(store: &impl Store) {
    let lease = store.lease_grant(Duration::from_secs(1)).await.unwrap();
    let keep = store.lease_grant(Duration::from_secs(600)).await.unwrap();
    let leased = |key: &str, lease| Op::Put { key: key.into(), value: json!(1), lease: Some(lease) };
    let before =
        store.commit(txn(&[], vec![leased("/l/short", lease), leased("/l/long", keep)])).await.unwrap();
    store.commit(txn(&[], vec![leased("/l/moved", lease)])).await.unwrap();
    store.commit(txn(&[], vec![put("/l/moved", 2)])).await.unwrap();
    let mut watch = store.watch("/l/", before + 2).await.unwrap();
    assert_eq!(next(&mut watch).await.events, [Event::Deleted { key: "/l/short".into() }]);
    assert!(store.get("/l/moved").await.unwrap().is_some(), "a put without the lease frees the key of it");
    assert_eq!(store.lease_keep_alive(lease).await, Err(StoreError::NoLease(lease)));
    let dead = store.commit(txn(&[], vec![leased("/l/x", lease)])).await;
    assert_eq!(dead, Err(StoreError::NoLease(lease)));
    store.lease_keep_alive(keep).await.unwrap();
    store.lease_revoke(keep).await.unwrap();
    assert_eq!(store.get("/l/long").await.unwrap(), None);
    assert_eq!(store.lease_revoke(keep).await, Err(StoreError::NoLease(keep)));
}

/// Puts under a lease while it is revoked, many times at once: afterwards no key of it is left.
async fn lease_races(store: &impl Store) {
    assert!(matches!(store.lease_grant(Duration::ZERO).await, Err(StoreError::Invalid(_))));
    for round in 0..50 {
        let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
        let key = |n: usize| format!("/lr/{round}/{n}");
        let leased = |n| Op::Put { key: key(n), value: json!(1), lease: Some(lease) };
        store.commit(txn(&[], vec![leased(9)])).await.unwrap();
        let (a, b, freed, revoked, c) = tokio::join!(
            store.commit(txn(&[], vec![leased(1)])),
            store.commit(txn(&[], vec![leased(2)])),
            store.commit(txn(&[], vec![put(&key(9), 2)])),
            store.lease_revoke(lease),
            store.commit(txn(&[], vec![leased(3)])),
        );
        revoked.unwrap();
        freed.unwrap();
        for put in [a, b, c] {
            assert!(matches!(put, Ok(_) | Err(StoreError::NoLease(_))), "{put:?}");
        }
        let (left, _) = store.range(&format!("/lr/{round}/")).await.unwrap();
        let left: Vec<_> = left.into_iter().map(|e| (e.key, e.value)).collect();
        assert_eq!(left, [(key(9), json!(2))], "what was put without the lease stays, the rest goes");
    }
}

/// Two keys written together are equal in every read, whoever else writes.
async fn whole_or_not_at_all(store: Arc<impl Store>) {
    let both = |n: u64| txn(&[], vec![put("/pair/a", n), put("/pair/b", n)]);
    store.commit(both(0)).await.unwrap();
    let writing = store.clone();
    let writer = tokio::spawn(async move {
        for n in 1..200 {
            writing.commit(both(n)).await.unwrap();
        }
    });
    let mut reads = 0;
    while !writer.is_finished() || reads == 0 {
        let (pair, _) = store.range("/pair/").await.unwrap();
        assert_eq!(pair[0].value, pair[1].value);
        assert_eq!(pair[0].modified, pair[1].modified);
        reads += 1;
        tokio::task::yield_now().await;
    }
    writer.await.expect("the writer ends well");
}

async fn concurrent_counts(store: Arc<impl Store>) {
    const TASKS: u64 = 64;
    const EACH: u64 = 5;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..TASKS {
        let store = store.clone();
        tasks.spawn(async move {
            let mut done = 0;
            while done < EACH {
                let entry = store.get("/count").await.unwrap();
                let (version, n) = entry.map_or((0, 0), |e| (e.version, e.value.as_u64().expect("a number")));
                match store.commit(txn(&[("/count", version)], vec![put("/count", n + 1)])).await {
                    Ok(_) => done += 1,
                    Err(StoreError::Conflict { .. }) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        });
    }
    while let Some(task) = tasks.join_next().await {
        task.expect("no task fails");
    }
    assert_eq!(store.get("/count").await.unwrap().expect("counted").value, json!(TASKS * EACH));
}

async fn reopened(factory: &impl Factory) {
    let (lease, all, revision) = {
        let store = factory.open().await;
        let lease = store.lease_grant(Duration::from_secs(600)).await.unwrap();
        let op = Op::Put { key: "/o/leased".into(), value: json!(1), lease: Some(lease) };
        store.commit(txn(&[], vec![put("/o/kept", json!({"a": [1, null, "ü"]})), op])).await.unwrap();
        let (all, revision) = store.range("/").await.unwrap();
        (lease, all, revision)
    };
    let store = factory.open().await;
    assert_eq!(store.range("/").await.unwrap(), (all, revision), "everything is as it was left");
    assert_eq!(store.commit(txn(&[], vec![put("/o/next", 1)])).await.unwrap(), revision + 1);
    store.lease_revoke(lease).await.unwrap();
    assert_eq!(store.get("/o/leased").await.unwrap(), None, "the lease still knows its keys");
}
