//! A trap at the writer's commits, for tests of what a death between any two of them leaves: debug builds only, and only
//! where `AMPHI_TRAP` names a file. While that file says `N before` or `N after`, the process aborts at the N-th batch
//! since it was there, before the batch is written or after, and says which keys were in it, and their phases. With
//! `KIND` or `KIND=PHASE` in the number's place it is the first batch with such a record: `exchange=switching after`.

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
        if when == "before" && self.is_at(&at, &keys) {
            spring("before", &keys);
        }
        keys
    }

    /// It has been written, and nobody knows yet.
    pub fn after(&self, keys: Vec<String>) {
        let Some((at, when)) = self.armed().filter(|_| self.seen > 0) else { return };
        if when == "after" && self.is_at(&at, &keys) {
            spring("after", &keys);
        }
    }

    fn armed(&self) -> Option<(String, String)> {
        let text = std::fs::read_to_string(self.file.as_ref()?).ok()?;
        let (at, when) = text.trim().split_once(' ')?;
        Some((at.to_owned(), when.to_owned()))
    }

    fn is_at(&self, at: &str, keys: &[String]) -> bool {
        if let Ok(number) = at.parse::<u64>() {
            return number == self.seen;
        }
        let (kind, phase) = at.split_once('=').map_or((at, None), |(kind, phase)| (kind, Some(phase)));
        keys.iter().any(|key| {
            let (record, of) = key.split_once('=').map_or((key.as_str(), None), |(r, p)| (r, Some(p)));
            record.split('/').nth(1) == Some(kind) && (phase.is_none() || of == phase)
        })
    }
}

fn spring(when: &str, keys: &[String]) -> ! {
    eprintln!("trap: {when} {}", keys.join(" "));
    std::process::abort()
}
