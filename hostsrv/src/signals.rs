//! The order to end.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when this process is told to end.
pub async fn end_signal() -> anyhow::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
