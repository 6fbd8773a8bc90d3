//! What the lease process leaves for others: `run_dir/lease` for the agent and for the process that takes its place, both
//! on a tmpfs; `run_dir/boot`, which changes when guests were ended here; and `state_dir/leased`, by which a host that was
//! switched off knows that it must not start anything before a lease is held again. Owns those files' form. Refuses to
//! decide.

use super::rule::{Millis, Rule};
use amphi_api::lease::{LeaseState, Voter};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// `run_dir/lease`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memo {
    pub state: LeaseState,
    /// Bodies may be started until then, by [`super::clock`]. 0: not at all; without a meaning when off.
    pub until: Millis,
    pub rule: Rule,
    /// The voters with their addresses.
    pub voters: Vec<Voter>,
}

/// Where the files lie.
#[derive(Clone, Debug)]
pub struct Files {
    pub run_dir: PathBuf,
    pub state_dir: PathBuf,
}

impl Files {
    pub fn new(run_dir: &Path, state_dir: &Path) -> Self {
        Self { run_dir: run_dir.to_owned(), state_dir: state_dir.to_owned() }
    }

    fn memo(&self) -> PathBuf {
        self.run_dir.join("lease")
    }

    fn mark(&self) -> PathBuf {
        self.state_dir.join("leased")
    }

    /// None: there is none, or none that can be read.
    pub fn read(&self) -> Option<Memo> {
        serde_json::from_slice(&std::fs::read(self.memo()).ok()?).ok()
    }

    pub fn write(&self, memo: &Memo) -> io::Result<()> {
        replace(&self.memo(), &serde_json::to_vec(memo)?)
    }

    pub fn boot(&self) -> Option<Uuid> {
        Uuid::parse_str(std::fs::read_to_string(self.run_dir.join("boot")).ok()?.trim()).ok()
    }

    /// From now on it is as if the host had been switched off: nothing that was ordered before counts.
    pub fn renew_boot(&self) -> io::Result<Uuid> {
        let boot = Uuid::new_v4();
        replace(&self.run_dir.join("boot"), boot.to_string().as_bytes())?;
        Ok(boot)
    }

    /// Whether this host takes part in leases, also when it has just been switched on.
    pub fn is_marked(&self) -> bool {
        self.mark().exists()
    }

    /// Durable when it returns: the one file on a disk, written when leases are switched on or off.
    pub fn set_mark(&self, on: bool) -> io::Result<()> {
        std::fs::create_dir_all(&self.state_dir)?;
        match (on, self.is_marked()) {
            (true, false) => std::fs::File::create(self.mark())?.sync_all()?,
            (false, true) => std::fs::remove_file(self.mark())?,
            _ => return Ok(()),
        }
        std::fs::File::open(&self.state_dir)?.sync_all()
    }

    /// Whether a body may be started now, or why not.
    pub fn may_start(&self, now: Millis) -> Result<(), String> {
        match self.read() {
            None if self.is_marked() => Err("no lease yet since this host was switched on".into()),
            None => Ok(()),
            Some(memo) => match memo.state {
                LeaseState::Off => Ok(()),
                LeaseState::Held | LeaseState::Hold if now < memo.until => Ok(()),
                LeaseState::Held | LeaseState::Hold => {
                    Err(format!("the lease ran out {} ms ago and nobody has renewed it", now - memo.until))
                }
                LeaseState::Fenced => Err("this host has fenced itself".into()),
            },
        }
    }
}

/// Whole or not at all. No sync: a tmpfs has nothing to sync to.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let next = path.with_added_extension("next");
    std::fs::write(&next, bytes)?;
    std::fs::rename(&next, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::HostId;

    #[test]
    fn bodies_start_only_under_a_lease() {
        let (run, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let files = Files::new(run.path(), state.path());
        assert_eq!(files.may_start(5), Ok(()), "a host without a lease process");
        files.set_mark(true).unwrap();
        assert!(files.may_start(5).unwrap_err().contains("switched on"));
        let memo = |state, until| Memo { state, until, rule: Rule::new(HostId::new()), voters: vec![] };
        for (state, until, ok) in [
            (LeaseState::Off, 0, true),
            (LeaseState::Held, 6, true),
            (LeaseState::Held, 5, false),
            (LeaseState::Hold, 6, true),
            (LeaseState::Hold, 5, false),
            (LeaseState::Fenced, 9, false),
        ] {
            files.write(&memo(state, until)).unwrap();
            assert_eq!(files.may_start(5).is_ok(), ok, "{state:?} until {until}");
        }
        files.set_mark(false).unwrap();
        assert!(!files.is_marked());
        let boot = files.renew_boot().unwrap();
        assert_eq!(files.boot(), Some(boot));
        assert_ne!(files.renew_boot().unwrap(), boot);
    }
}
