//! Device-mapper activation, and how it is detected. LVM does the work; paths are `/dev/<group>/<lv>`.

use std::path::PathBuf;
use std::time::Duration;

use crate::storage::command::Run;
use crate::storage::{Activation, StorageError};

/// Asks the kernel's device-mapper for its version; whoever answers can activate.
pub async fn detect() -> Result<Activation, StorageError> {
    let run = Run {
        operation: "probe",
        object: "device-mapper",
        program: "dmsetup",
        args: vec!["version".to_owned()],
        env: &[],
        limit: Duration::from_secs(10),
    };
    let output = run.output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    let driver = text.lines().find_map(|line| line.trim().strip_prefix("Driver version:"));
    let answers = driver.is_some_and(|version| version.trim().starts_with(|c: char| c.is_ascii_digit()));
    Ok(if output.status.success() && answers { Activation::Dm } else { Activation::Loop })
}

pub fn path(group: &str, lv: &str) -> PathBuf {
    PathBuf::from(format!("/dev/{group}/{lv}"))
}
