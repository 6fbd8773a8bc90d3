//! One operation per volume at a time, across tasks and processes (the agent and its Docker plug-in).
//!
//! A volume is one byte of a lock file; the kernel frees it when the holder's file is closed, even by a crash.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use uuid::Uuid;

use super::StorageError;

const PATIENCE: Duration = Duration::from_secs(30);

pub struct VolumeLocks {
    path: PathBuf,
}

/// Holds its volumes until dropped.
#[derive(Debug)]
pub struct VolumeLock {
    _file: File,
}

impl VolumeLocks {
    /// `path`: the lock file, best on a tmpfs.
    pub fn new(path: PathBuf) -> Self {
        VolumeLocks { path }
    }

    fn file(&self) -> Result<File, StorageError> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&self.path)
            .map_err(StorageError::io("opening the lock file", self.path.display()))
    }

    /// The lock of `id`, or nothing while somebody has it.
    pub fn try_lock(&self, id: Uuid) -> Result<Option<VolumeLock>, StorageError> {
        let file = self.file()?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(byte_of(id)))) {
            Ok(_) => Ok(Some(VolumeLock { _file: file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(StorageError::io("locking", id)(error.into())),
        }
    }

    /// Waits for all of `ids`; half a minute at most.
    pub async fn lock(&self, ids: &[Uuid]) -> Result<VolumeLock, StorageError> {
        let mut bytes: Vec<i64> = ids.iter().map(|id| byte_of(*id)).collect();
        // In one order everywhere, so that two who want the same pair never wait for each other.
        bytes.sort_unstable();
        let object = ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(" and ");
        let file = self.file()?;
        let deadline = Instant::now() + PATIENCE;
        for byte in bytes {
            let mut pause = Duration::from_millis(1);
            loop {
                match fcntl(&file, FcntlArg::F_OFD_SETLK(&range(byte))) {
                    Ok(_) => break,
                    Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() < deadline => {
                        tokio::time::sleep(pause).await;
                        pause = (pause * 2).min(Duration::from_millis(20));
                    }
                    Err(Errno::EAGAIN | Errno::EACCES) => {
                        let operation = "waiting for another operation";
                        return Err(StorageError::Timeout { operation, object, seconds: PATIENCE.as_secs() });
                    }
                    Err(error) => return Err(StorageError::io("locking", object)(error.into())),
                }
            }
        }
        Ok(VolumeLock { _file: file })
    }
}

fn byte_of(id: Uuid) -> i64 {
    // Two volumes that share a byte merely wait for each other.
    (id.as_u64_pair().1 >> 2) as i64
}

fn range(byte: i64) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as _,
        l_whence: libc::SEEK_SET as _,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_at_a_time_and_others_beside_it() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let locks = VolumeLocks::new(dir.path().join("lock"));
        let (a, b) = (Uuid::from_u128(4), Uuid::from_u128(8));
        let held = locks.lock(&[a]).await.expect("first");
        locks.lock(&[b]).await.expect("another volume is free");
        let both = [b, a];
        let second = locks.lock(&both);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err());
        assert!(locks.try_lock(a).expect("asks").is_none() && locks.try_lock(b).expect("asks").is_some());
        drop(held);
        second.await.expect("free again");
    }
}
