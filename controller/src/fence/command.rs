//! A program of the operator's that switches a host off.

use super::{FenceDriver, FenceError};
use async_trait::async_trait;
use std::process::Stdio;

/// Most characters of what the program said that are told.
const TOLD: usize = 200;

pub struct Command {
    pub argv: Vec<String>,
}

#[async_trait]
impl FenceDriver for Command {
    fn name(&self) -> &'static str {
        "command"
    }

    async fn switch_off(&self, host: &str) -> Result<(), FenceError> {
        run("command", &self.argv, host).await.map(drop)
    }
}

/// Runs a program to its end; its standard output. Ends it when the caller gives up.
pub(super) async fn run(device: &'static str, argv: &[String], host: &str) -> Result<String, FenceError> {
    let failed = |message: String| FenceError::Asked { device, host: host.to_owned(), message };
    let mut command = tokio::process::Command::new(&argv[0]);
    command.args(&argv[1..]).env("AMPHI_FENCE_HOST", host).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|e| failed(format!("{}: {e}", argv[0])))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said: String = said.trim().chars().take(TOLD).collect();
    Err(failed(format!("{} ended with {}: {said}", argv[0], output.status)))
}
