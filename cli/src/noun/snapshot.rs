//! `amphi snapshot`. They are taken by `amphi volume snapshot`.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{age, moment, pairs, rows, word};
use amphi_api::volume::{Snapshot, SnapshotState};
use clap::Subcommand;
use jiff::Timestamp;

#[derive(Subcommand)]
pub enum Command {
    /// Snapshots and their volumes.
    List,
    /// One snapshot in full.
    Show { snapshot: String },
    /// Delete a snapshot, for good.
    Delete { snapshot: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List => {
                session.list("snapshots", &client.snapshots().await?, |s| list(s, Timestamp::now()))
            }
            Self::Show { snapshot } => session.show(&client.find_snapshot(&snapshot).await?, detail),
            Self::Delete { snapshot } => {
                let snapshot = client.find_snapshot(&snapshot).await?;
                client.delete_snapshot(snapshot.id).await?;
                if let Some(deadline) = session.wait() {
                    let waiting = session.waiting(format!("snapshot {}", snapshot.name));
                    let ended = |s: Option<&Snapshot>| s.is_none_or(|s| s.state == SnapshotState::Error);
                    let left = client
                        .wait_snapshot(snapshot.id, ended, deadline, |s| waiting.state(&word(s.state)))
                        .await?;
                    if let Some(left) = left {
                        let why = left.fault.as_deref().unwrap_or("no reason given");
                        return Err(Failure::new(1, format!("snapshot {} is not gone: {why}", left.name)));
                    }
                }
                session.note(&format!("deleted snapshot {}", snapshot.name))
            }
        }
    }
}

fn list(snapshots: &[Snapshot], now: Timestamp) -> String {
    rows(
        &["NAME", "STATE", "SIZE", "VOLUME", "AGE", "ID"],
        snapshots.iter().map(|s| {
            vec![
                s.name.clone(),
                word(s.state),
                format!("{} GiB", s.size_gib),
                s.volume.to_string(),
                age(s.created_at, now),
                s.id.to_string(),
            ]
        }),
    )
}

pub fn detail(s: &Snapshot) -> String {
    let mut lines = vec![
        ("Name", s.name.clone()),
        ("Id", s.id.to_string()),
        ("State", word(s.state)),
        ("Volume", s.volume.to_string()),
        ("Size", format!("{} GiB", s.size_gib)),
        ("Created", moment(s.created_at, Timestamp::now())),
    ];
    if let Some(fault) = &s.fault {
        lines.insert(0, ("Fault", fault.clone()));
    }
    pairs(&lines)
}
