//! The embedded engine: the conformance suite, a model, a broken database, and a second process.

use amphi_controller::store::conformance::{self, Factory};
use amphi_controller::store::{Compare, Entry, Op, Revision, SledStore, Store, StoreError, Txn};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;

struct InDirectory<'a>(&'a Path);

impl Factory for InDirectory<'_> {
    type Engine = SledStore;
    async fn open(&self) -> SledStore {
        SledStore::open(self.0).unwrap()
    }
}

#[tokio::test]
async fn it_does_what_every_engine_must() {
    let dir = tempfile::tempdir().unwrap();
    conformance::all(&InDirectory(dir.path())).await;
}

#[tokio::test]
async fn a_second_opening_is_refused_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path()).unwrap();
    let put = Op::Put { key: "/a".into(), value: 1.into(), lease: None };
    store.commit(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
    assert!(matches!(SledStore::open(dir.path()), Err(StoreError::Unavailable { .. })));
    assert!(store.get("/a").await.unwrap().is_some());
}

async fn filled(dir: &Path) -> (Vec<Entry>, Revision) {
    let store = SledStore::open(dir).unwrap();
    let lease = store.lease_grant(std::time::Duration::from_secs(600)).await.unwrap();
    for n in 0..50 {
        let put = Op::Put { key: format!("/k/{n}"), value: n.into(), lease: (n == 0).then_some(lease) };
        store.commit(Txn { compares: vec![], ops: vec![put] }).await.unwrap();
    }
    store.range("/").await.unwrap()
}

#[tokio::test]
async fn a_broken_database_is_kept_aside_and_made_again_from_the_export() {
    for files in [&["db/conf", "db/db"][..], &["db/conf"], &["db/db"]] {
        let dir = tempfile::tempdir().unwrap();
        let (entries, revision) = filled(dir.path()).await;
        for file in files {
            std::fs::write(dir.path().join(file), "this is no database").unwrap();
        }
        let (found, leapt) = SledStore::open(dir.path()).unwrap().range("/").await.unwrap();
        assert_eq!(found, entries, "{files:?}");
        assert!(leapt > revision + 1_000_000, "a revision that was given out must not come again: {leapt}");
        let names =
            std::fs::read_dir(dir.path()).unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
        assert_eq!(names.filter(|name| name.starts_with("db.broken-")).count(), 1, "{files:?}");
    }
}

#[tokio::test]
async fn a_database_that_is_gone_is_no_new_cloud() {
    let dir = tempfile::tempdir().unwrap();
    let (entries, _) = filled(dir.path()).await;
    std::fs::remove_dir_all(dir.path().join("db")).unwrap();
    assert_eq!(SledStore::open(dir.path()).unwrap().range("/").await.unwrap().0, entries);
}

#[tokio::test]
async fn a_broken_database_without_an_export_is_no_new_cloud() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).await;
    std::fs::remove_file(dir.path().join("export.jsonl")).unwrap();
    std::fs::write(dir.path().join("db/db"), "this is no database").unwrap();
    for _ in 0..2 {
        let error = SledStore::open(dir.path()).err().expect("refused");
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    }
}

#[derive(Clone, Debug)]
enum Action {
    Put(u8, u32),
    Delete(u8),
    /// Put if the version is the one named.
    Swap(u8, u64, u32),
    Reopen,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => (0..6u8, any::<u32>()).prop_map(|(k, v)| Action::Put(k, v)),
        2 => (0..6u8).prop_map(Action::Delete),
        4 => (0..6u8, 0..4u64, any::<u32>()).prop_map(|(k, n, v)| Action::Swap(k, n, v)),
        1 => Just(Action::Reopen),
    ];
    prop::collection::vec(action, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]
    #[test]
    fn it_agrees_with_a_map(actions in actions()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let mut store = SledStore::open(dir.path()).unwrap();
            let mut model: BTreeMap<String, (u64, u32)> = BTreeMap::new();
            for action in actions {
                let key = |k: u8| format!("/k/{k}");
                let put = |k: u8, v: u32| vec![Op::Put { key: key(k), value: v.into(), lease: None }];
                match action {
                    Action::Put(k, v) => {
                        store.commit(Txn { compares: vec![], ops: put(k, v) }).await.unwrap();
                        let held = model.entry(key(k)).or_default();
                        *held = (held.0 + 1, v);
                    }
                    Action::Delete(k) => {
                        store.commit(Txn { compares: vec![], ops: vec![Op::Delete { key: key(k) }] }).await.unwrap();
                        model.remove(&key(k));
                    }
                    Action::Swap(k, version, v) => {
                        let compares = vec![Compare { key: key(k), version }];
                        let answer = store.commit(Txn { compares, ops: put(k, v) }).await;
                        let present = model.get(&key(k)).map_or(0, |(n, _)| *n);
                        prop_assert_eq!(answer.is_ok(), present == version);
                        if answer.is_ok() {
                            model.insert(key(k), (version + 1, v));
                        }
                    }
                    Action::Reopen => {
                        drop(store);
                        store = SledStore::open(dir.path()).unwrap();
                    }
                }
                let held = store.range("/").await.unwrap().0.into_iter();
                let held: BTreeMap<_, _> = held.map(|e| (e.key, (e.version, e.value.as_u64().unwrap() as u32))).collect();
                prop_assert_eq!(&held, &model);
            }
            Ok(())
        })?;
    }
}
