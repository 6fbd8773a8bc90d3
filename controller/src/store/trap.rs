//! A trap at the writer's commits, for tests of what a death between any two of them leaves: debug builds only, and only
//! where `AMPHI_TRAP` names a file. While that file says `N before` or `N after`, the process aborts at the N-th batch
//! since it was there, before the batch is written or after, and says which keys were in it, and their phases.

use super::disk::Batch;
use std::path::PathBuf;

#[derive(Default)]
pub struct Trap {
    file: Option<PathBuf>,
    /// Batches since the file was there.
    seen: u64,
}

impl Trap {
    pub fn from_env() -> Self {
        Self { file: std::env::var_os("AMPHI_TRAP").map(PathBuf::from), seen: 0 }
    }

    /// A batch is about to be written. The answer, its keys, is for [`Trap::after`].
    pub fn before(&mut self, batch: &Batch) -> Vec<String> {
        let Some((at, when)) = self.armed() else {
            self.seen = 0;
            return Vec::new();
        };
        self.seen += 1;
        let keys: Vec<_> = batch.phases().collect();
        if self.seen == at && when == "before" {
            spring("before", &keys);
        }
        keys
    }

    /// It has been written, and nobody knows yet.
    pub fn after(&self, keys: Vec<String>) {
        if self.seen > 0 && self.armed().is_some_and(|(at, when)| at == self.seen && when == "after") {
            spring("after", &keys);
        }
    }

    fn armed(&self) -> Option<(u64, String)> {
        let text = std::fs::read_to_string(self.file.as_ref()?).ok()?;
        let (at, when) = text.trim().split_once(' ')?;
        Some((at.parse().ok()?, when.to_owned()))
    }
}

fn spring(when: &str, keys: &[String]) -> ! {
    eprintln!("trap: {when} {}", keys.join(" "));
    std::process::abort()
}
