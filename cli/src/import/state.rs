//! What of a plan is done, in a file beside it, so that whoever was killed goes on. An intent is written before each order
//! and the thing's id after it. Refuses two runs of one plan at once, and another plan's file.

use super::plan::Plan;
use crate::failure::Failure;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use uuid::Uuid;

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Of the plan: its text's.
    plan: Uuid,
    /// Ids at the target, by the items' keys.
    done: BTreeMap<String, String>,
    /// An order for this item may have been sent; how it ended is not known.
    begun: Option<String>,
}

/// The state's file beside a plan's, and the lock that keeps others from it for as long as it lives.
fn lock(plan_file: &Path) -> Result<(PathBuf, File), Failure> {
    let beside = |ending: &str| {
        let mut name = plan_file.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    };
    let (path, lock) = (beside(".state"), beside(".lock"));
    let file = File::options().create(true).truncate(false).write(true).open(&lock);
    let file = file.map_err(|e| failed(&lock, e))?;
    file.try_lock().map_err(|_| {
        let what = format!("{}: this plan is being carried out already", plan_file.display());
        Failure::new(4, what).next("wait for the other `amphi import` to end")
    })?;
    Ok((path, file))
}

fn failed(what: &Path, error: std::io::Error) -> Failure {
    Failure::new(2, format!("{}: {error}", what.display()))
}

/// Writes a new plan in the place of an older one. What that one's runs have noted goes: all of it is found again by its marks.
pub fn put(plan_file: &Path, text: &[u8]) -> Result<(), Failure> {
    let (path, _lock) = lock(plan_file)?;
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, e)),
        _ => {}
    }
    std::fs::write(plan_file, text).map_err(|e| failed(plan_file, e))
}

pub struct State {
    path: PathBuf,
    record: Record,
    /// Held for as long as this lives.
    _lock: File,
}

impl State {
    /// Opens the file beside the plan's, or begins it.
    pub fn open(plan_file: &Path, plan: &Plan) -> Result<Self, Failure> {
        let (path, lock) = lock(plan_file)?;
        let text = serde_json::to_string(plan)
            .map_err(|e| Failure::new(1, format!("the plan cannot be written: {e}")))?;
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes());
        let record = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Record>(&bytes).map_err(|e| {
                let what = format!("{}: no state of an import: {e}", path.display());
                Failure::new(4, what).next("remove it: what is made is found again by its marks")
            })?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Record { plan: id, ..Record::default() },
            Err(e) => return Err(failed(&path, e)),
        };
        if record.plan != id {
            let what = format!("{}: belongs to another plan of this name", path.display());
            return Err(Failure::new(4, what).next("remove it: what is made is found again by its marks"));
        }
        Ok(Self { path, record, _lock: lock })
    }

    /// The id of what this item has made.
    pub fn done(&self, key: &str) -> Option<&str> {
        self.record.done.get(key).map(String::as_str)
    }

    /// Whether somebody was killed between ordering this and hearing of it.
    pub fn was_begun(&self, key: &str) -> bool {
        self.record.begun.as_deref() == Some(key)
    }

    pub fn begin(&mut self, key: &str) -> Result<(), Failure> {
        self.record.begun = Some(key.to_owned());
        self.write()
    }

    pub fn finish(&mut self, key: &str, id: &str) -> Result<(), Failure> {
        self.record.done.insert(key.to_owned(), id.to_owned());
        self.record.begun = None;
        self.write()
    }

    /// All of it or what was there before, durably.
    fn write(&self) -> Result<(), Failure> {
        let next = self.path.with_extension("state.next");
        let write = || -> std::io::Result<()> {
            let mut file = File::create(&next)?;
            file.write_all(&serde_json::to_vec_pretty(&self.record)?)?;
            file.sync_all()?;
            std::fs::rename(&next, &self.path)
        };
        write().map_err(|e| Failure::new(2, format!("{}: {e}", self.path.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::super::plan::{Place, Source, VERSION};
    use super::*;

    fn plan(project: &str) -> Plan {
        let target = Place { auth_url: "u".into(), project: project.into() };
        Plan {
            version: VERSION,
            source: Source::Files,
            target,
            items: Vec::new(),
            findings: Vec::new(),
            shutdown: false,
        }
    }

    #[test]
    fn what_is_done_is_known_to_the_next_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("plan.json");
        let mut state = State::open(&file, &plan("p")).unwrap();
        state.begin("a").unwrap();
        state.finish("a", "id-a").unwrap();
        state.begin("b").unwrap();
        assert_eq!(State::open(&file, &plan("p")).err().map(|f| f.code), Some(4), "two at once");
        drop(state);
        let state = State::open(&file, &plan("p")).unwrap();
        assert_eq!((state.done("a"), state.done("b")), (Some("id-a"), None));
        assert!(state.was_begun("b") && !state.was_begun("a"));
        drop(state);
        assert!(State::open(&file, &plan("q")).err().unwrap().what.contains("another plan"));
        put(&file, b"{}").unwrap();
        assert_eq!(State::open(&file, &plan("q")).unwrap().done("a"), None);
        std::fs::write(folder.path().join("plan.json.state"), "half").unwrap();
        assert!(State::open(&file, &plan("p")).err().unwrap().what.contains("no state"));
    }
}
