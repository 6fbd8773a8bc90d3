//! Owns the memory of commands that are under way in guests: the folders in which they have their files, each noted on disk
//! before its command begins. What an agent leaves when it dies, the next one ends; and so does this one what a guest was too
//! silent to be told. Refuses to end what is still looked at.

use amphi_api::InstanceId;
use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub struct Notes {
    folder: PathBuf,
    /// Of this process, and looked at.
    held: Mutex<BTreeSet<(InstanceId, String)>>,
}

impl Notes {
    pub fn new(state_dir: &Path) -> Self {
        Self { folder: state_dir.join("guest-commands"), held: Mutex::default() }
    }

    fn file(&self, instance: InstanceId, place: &str) -> PathBuf {
        let name = place.rsplit('/').next().unwrap_or_default();
        self.folder.join(instance.to_string()).join(name)
    }

    /// Before the command begins.
    pub fn hold(&self, instance: InstanceId, place: &str) -> io::Result<()> {
        let file = self.file(instance, place);
        self.held().insert((instance, place.to_owned()));
        std::fs::create_dir_all(file.parent().unwrap_or(&self.folder))?;
        std::fs::write(file, place)
    }

    /// Nobody looks any more. `ended`: the guest was told to end it, and to clear it away.
    pub fn let_go(&self, instance: InstanceId, place: &str, ended: bool) {
        self.held().remove(&(instance, place.to_owned()));
        if ended {
            let file = self.file(instance, place);
            let gone = std::fs::remove_file(&file);
            // The last one takes the folder with it.
            let _others = file.parent().map(std::fs::remove_dir);
            if let Err(error) = gone {
                tracing::debug!(%error, file = %file.display(), "a command's note stays");
            }
        }
    }

    /// What is noted and not looked at.
    pub fn left(&self, instance: InstanceId) -> Vec<String> {
        let entries = std::fs::read_dir(self.folder.join(instance.to_string())).into_iter().flatten();
        let places = entries.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
        let held = self.held();
        places.filter(|place| !place.is_empty() && !held.contains(&(instance, place.clone()))).collect()
    }

    /// Of instances that are not here any more nothing is left to end.
    pub fn keep(&self, here: impl Fn(InstanceId) -> bool) {
        for entry in std::fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            let instance = entry.file_name().to_str().and_then(|name| name.parse().ok());
            if instance.is_some_and(|instance| !here(instance)) {
                let _gone = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeSet<(InstanceId, String)>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_agent_leaves_the_next_one_finds() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other) = (InstanceId::new(), InstanceId::new());
        let notes = Notes::new(dir.path());
        for place in ["/tmp/amphi-a", "/tmp/amphi-b", "/tmp/amphi-c"] {
            notes.hold(one, place).unwrap();
        }
        assert_eq!(notes.left(one), Vec::<String>::new(), "all are looked at");
        notes.let_go(one, "/tmp/amphi-a", true);
        notes.let_go(one, "/tmp/amphi-b", false);
        assert_eq!(notes.left(one), ["/tmp/amphi-b"]);
        let mut left = Notes::new(dir.path()).left(one);
        left.sort();
        assert_eq!(left, ["/tmp/amphi-b", "/tmp/amphi-c"]);
        assert_eq!(notes.left(other), Vec::<String>::new());
        notes.keep(|instance| instance == one);
        assert_eq!(notes.left(one).len(), 1);
        notes.keep(|instance| instance == other);
        assert_eq!(notes.left(one), Vec::<String>::new());
    }
}
