//! A process's wall clock, which can be set: libfaketime is loaded into it (faketime(1)) and reads from a file how far off
//! the clock is. Clocks that only go forward are left alone, as they are by a wrong date; the process knows nothing of it.

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's libfaketime lies, below the directory of the machine's architecture.
const LIBRARY: &str = "faketime/libfaketimeMT.so.1";

#[derive(Clone, Debug)]
pub struct Clock {
    library: PathBuf,
    file: PathBuf,
}

impl Clock {
    /// Right at first. `file` is the clock's own.
    pub fn at(file: PathBuf) -> Result<Self> {
        let folders = std::fs::read_dir("/usr/lib").context("look for libraries")?;
        let mut found = folders.flatten().map(|folder| folder.path().join(LIBRARY));
        let library =
            found.find(|path| path.exists()).context("no libfaketime: scripts/install.sh installs it")?;
        let own = Self { library, file };
        own.set(0)?;
        Ok(own)
    }

    /// So many seconds off from now on, or a second later: the library reads the file once a second.
    pub fn set(&self, seconds: i64) -> Result<()> {
        let next = self.file.with_extension("next");
        std::fs::write(&next, format!("{seconds:+}")).context("set a clock")?;
        std::fs::rename(&next, &self.file).context("set a clock")
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Has the command's process go by this clock.
    pub fn give(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", &self.library)
            .env("FAKETIME_TIMESTAMP_FILE", &self.file)
            .env("FAKETIME_CACHE_DURATION", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env("NO_FAKE_STAT", "1");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_date_changes_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Clock::at(dir.path().join("clock")).unwrap();
        let read = |seconds: i64| {
            clock.set(seconds).unwrap();
            let mut command = Command::new("python3");
            command.arg("-c").arg(
                "import time; print(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())",
            );
            clock.give(&mut command);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let times: Vec<f64> = text.split_whitespace().map(|t| t.parse().unwrap()).collect();
            assert_eq!(times.len(), 3, "{}", String::from_utf8_lossy(&output.stderr));
            times
        };
        let (right, early) = (read(0), read(-86_400));
        assert!((right[0] - early[0] - 86_400.0).abs() < 60.0, "{right:?} {early:?}");
        assert!((0.0..60.0).contains(&(early[1] - right[1])), "{right:?} {early:?}");
        assert!((0.0..60.0).contains(&(early[2] - right[2])), "{right:?} {early:?}");
    }
}
