//! `amphi recycle-bin`: deleted volumes come back with their bytes until they are purged.

use crate::failure::Failure;
use crate::noun::volume::{await_gone, await_ready};
use crate::session::Session;
use crate::table::{age, rows, word};
use amphi_api::volume::Volume;
use clap::Subcommand;
use jiff::Timestamp;

#[derive(Subcommand)]
pub enum Command {
    /// What lies in the bin.
    List,
    /// Bring a volume back with its bytes.
    Restore { volume: String },
    /// Destroy a volume of the bin, for good.
    Purge { volume: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List => {
                session.list("volumes", &client.recycle_bin().await?, |v| list(v, Timestamp::now()))
            }
            Self::Restore { volume } => {
                let volume = client.find_trashed(&volume).await?;
                let volume = await_ready(session, client.restore_volume(volume.id).await?).await?;
                session.show(&volume, |v| format!("restored volume {} ({})\n", v.name, v.id))
            }
            Self::Purge { volume } => {
                let volume = client.find_trashed(&volume).await?;
                client.purge_volume(volume.id).await?;
                await_gone(session, volume.id, &volume.name, |_| false).await?;
                session.note(&format!("purged volume {}", volume.name))
            }
        }
    }
}

fn list(volumes: &[Volume], now: Timestamp) -> String {
    rows(
        &["NAME", "STATE", "SIZE", "HOST", "DELETED", "ID"],
        volumes.iter().map(|v| {
            vec![
                v.name.clone(),
                word(v.state),
                format!("{} GiB", v.size_gib),
                v.host_name.clone(),
                v.trashed_at.map_or("-".to_owned(), |at| format!("{} ago", age(at, now))),
                v.id.to_string(),
            ]
        }),
    )
}
