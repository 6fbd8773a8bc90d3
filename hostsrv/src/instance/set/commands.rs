//! Commands of the host's own in members: hooks and probes. Each is bounded in time and ended with all that it started
//! when the time is over. Refuses input and terminals.

use super::exec;
use super::shared::Shared;
use crate::instance::DriverError;
use amphi_api::set::Hook;
use amphi_api::streams::ExecSpec;
use futures_util::StreamExt;
use std::sync::Arc;
use std::time::Duration;

/// What of a command's output is told, in bytes: its end.
const TOLD_MAX: usize = 400;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ran {
    Well,
    /// With what is told about it: its exit code and the end of its output, or that it took too long.
    Badly(String),
}

/// Runs it in a member's container, by id or name.
pub async fn run(
    shared: &Arc<Shared>,
    container: &str,
    command: &[String],
    limit: Duration,
) -> Result<Ran, DriverError> {
    let spec = ExecSpec { command: command.to_vec(), ..ExecSpec::default() };
    let mut opened = exec::begin(shared, container, &spec).await?;
    let mut told = Vec::new();
    let ended = async {
        while let Some(piece) = opened.output.next().await {
            told.extend_from_slice(&piece?.bytes);
            let over = told.len().saturating_sub(TOLD_MAX);
            told.drain(..over);
        }
        opened.inside.exit_code().await
    };
    let Ok(ended) = tokio::time::timeout(limit, ended).await else {
        opened.inside.end().await;
        return Ok(Ran::Badly(format!("it took longer than {} s", limit.as_secs())));
    };
    let told = String::from_utf8_lossy(&told).trim().to_owned();
    Ok(match ended? {
        Some(0) => Ran::Well,
        Some(code) if told.is_empty() => Ran::Badly(format!("exit code {code}")),
        Some(code) => Ran::Badly(format!("exit code {code}: {told}")),
        None => Ran::Badly("how it ended is not known".to_owned()),
    })
}

pub async fn run_hook(shared: &Arc<Shared>, container: &str, hook: &Hook) -> Result<Ran, DriverError> {
    run(shared, container, &hook.command, Duration::from_secs(hook.timeout_s.into())).await
}
