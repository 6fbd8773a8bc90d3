//! `amphi volume`.

use crate::failure::Failure;
use crate::noun::instance::GRACE;
use crate::noun::snapshot;
use crate::session::Session;
use crate::table::{age, bytes, moment, or_dash, pairs, rows, word};
use amphi_api::volume::{SnapshotCreate, SnapshotState, Volume, VolumeCreate, VolumeState};
use amphi_api::{SnapshotId, VolumeId};
use clap::Subcommand;
use jiff::Timestamp;
use std::time::Instant;

#[derive(Subcommand)]
pub enum Command {
    /// Volumes, where they are and who uses them.
    List,
    /// One volume in full.
    Show { volume: String },
    /// Make a volume.
    Create {
        name: String,
        /// Size in GiB.
        #[arg(long, value_name = "GIB", required_unless_present = "snapshot")]
        size_gib: Option<u64>,
        /// Begin with this snapshot's bytes (id).
        #[arg(long)]
        snapshot: Option<SnapshotId>,
        /// Name or id of the host to make it on.
        #[arg(long)]
        host: Option<String>,
        /// Name or id of a shared volume group to make it in: any host that sees the group can have it.
        #[arg(long, conflicts_with_all = ["host", "snapshot"])]
        group: Option<String>,
    },
    /// Make a volume larger, while it is used too.
    Extend {
        volume: String,
        /// The new size in GiB.
        #[arg(long, value_name = "GIB")]
        size_gib: u64,
    },
    /// Put a volume into the recycle bin.
    Delete { volume: String },
    /// Take a snapshot.
    Snapshot {
        volume: String,
        /// The snapshot's name.
        #[arg(long)]
        name: String,
    },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::List => {
                session.list("volumes", &session.client()?.volumes().await?, |v| list(v, Timestamp::now()))
            }
            Self::Show { volume } => session.show(&session.client()?.find_volume(&volume).await?, detail),
            Self::Create { name, size_gib, snapshot, host, group } => {
                let request = VolumeCreate { name, size_gib, snapshot, host, group };
                request.check()?;
                let volume = session.client()?.create_volume(&request).await?;
                session.show(&await_ready(session, volume).await?, detail)
            }
            Self::Extend { volume, size_gib } => {
                let client = session.client()?;
                let volume = client.find_volume(&volume).await?;
                let volume = client.extend_volume(volume.id, size_gib).await?;
                session.show(&await_ready(session, volume).await?, detail)
            }
            Self::Delete { volume } => delete(session, &volume).await,
            Self::Snapshot { volume, name } => take_snapshot(session, &volume, name).await,
        }
    }
}

/// Waits until the volume can be used, unless told not to.
pub async fn await_ready(session: &Session, volume: Volume) -> Result<Volume, Failure> {
    let Some(deadline) = session.wait() else { return Ok(volume) };
    let waiting = session.waiting(format!("volume {}", volume.name));
    let settled = |v: Option<&Volume>| {
        v.is_none_or(|v| {
            use VolumeState::{Creating, Extending, Restoring, Trashed};
            !matches!(v.state, Creating | Extending | Restoring | Trashed)
        })
    };
    let client = session.client()?;
    let seen = client.wait_volume(volume.id, settled, deadline, |v| waiting.state(&word(v.state))).await?;
    drop(waiting);
    match seen {
        Some(seen) if matches!(seen.state, VolumeState::Available | VolumeState::InUse) => Ok(seen),
        Some(seen) => Err(failed(&seen)),
        None => Err(Failure::new(1, format!("volume {} disappeared meanwhile", volume.name))),
    }
}

fn failed(volume: &Volume) -> Failure {
    let why = volume.fault.as_ref().map(|f| format!(": {f}")).unwrap_or_default();
    Failure::new(1, format!("volume {} is {}{why}", volume.name, word(volume.state)))
        .next(format!("amphi volume show {}", volume.id))
}

/// Waits until the volume is gone, or `enough` says so.
pub async fn await_gone(
    session: &Session,
    id: VolumeId,
    name: &str,
    enough: impl Fn(&Volume) -> bool,
) -> Result<(), Failure> {
    let Some(deadline) = session.wait() else { return Ok(()) };
    let waiting = session.waiting(format!("volume {name}"));
    // What is ordered gone and has a fault waits for something: its host, most often.
    let stuck =
        |v: &Volume| v.state == VolumeState::Error || (v.state == VolumeState::Purging && v.fault.is_some());
    let mut stuck_since: Option<Instant> = None;
    let ended = |v: Option<&Volume>| {
        let since = v.filter(|v| stuck(v)).map(|_| *stuck_since.get_or_insert_with(Instant::now));
        if since.is_none() {
            stuck_since = None;
        }
        v.is_none_or(&enough) || since.is_some_and(|since| since.elapsed() >= GRACE)
    };
    let client = session.client()?;
    let seen = client.wait_volume(id, ended, deadline, |v| waiting.state(&word(v.state))).await?;
    match seen {
        Some(seen) if !enough(&seen) => Err(failed(&seen)),
        _ => Ok(()),
    }
}

async fn delete(session: &Session, text: &str) -> Result<(), Failure> {
    let client = session.client()?;
    let volume = client.find_volume(text).await?;
    client.delete_volume(volume.id).await?;
    await_gone(session, volume.id, &volume.name, |v| v.state == VolumeState::Trashed).await?;
    session.note(&format!(
        "volume {} is in the recycle bin; bring it back with: amphi recycle-bin restore {}",
        volume.name, volume.id
    ))
}

async fn take_snapshot(session: &Session, text: &str, name: String) -> Result<(), Failure> {
    let client = session.client()?;
    let volume = client.find_volume(text).await?;
    let mut taken = client.create_snapshot(volume.id, &SnapshotCreate { name }).await?;
    if let Some(deadline) = session.wait() {
        let waiting = session.waiting(format!("snapshot {}", taken.name));
        let made = client
            .wait_snapshot(
                taken.id,
                |s| s.is_none_or(|s| s.state != SnapshotState::Creating),
                deadline,
                |s| waiting.state(&word(s.state)),
            )
            .await?;
        match made {
            Some(made) if made.state == SnapshotState::Available => taken = made,
            Some(made) => {
                let why = made.fault.as_deref().unwrap_or("no reason given");
                return Err(Failure::new(
                    1,
                    format!("snapshot {} is {}: {why}", made.name, word(made.state)),
                ));
            }
            None => return Err(Failure::new(1, format!("snapshot {} disappeared meanwhile", taken.name))),
        }
    }
    session.show(&taken, snapshot::detail)
}

fn list(volumes: &[Volume], now: Timestamp) -> String {
    rows(
        &["NAME", "STATE", "SIZE", "HOST", "GROUP", "INSTANCE", "AGE", "ID"],
        volumes.iter().map(|v| {
            vec![
                v.name.clone(),
                word(v.state),
                format!("{} GiB", v.size_gib),
                v.host_name.clone(),
                or_dash(v.group_name.clone()),
                or_dash(v.instance),
                age(v.created_at, now),
                v.id.to_string(),
            ]
        }),
    )
}

fn detail(v: &Volume) -> String {
    let now = Timestamp::now();
    let mut lines = Vec::new();
    if v.state == VolumeState::Unreachable {
        lines.push((
            "!",
            format!(
                "host {} does not answer: the bytes are there, out of reach until it returns",
                v.host_name
            ),
        ));
    }
    if let Some(fault) = &v.fault {
        lines.push(("Fault", fault.clone()));
    }
    lines.extend([
        ("Name", v.name.clone()),
        ("Id", v.id.to_string()),
        ("State", word(v.state)),
        ("Size", format!("{} GiB ordered, {} made", v.size_gib, or_dash(v.size_bytes.map(bytes)))),
        ("Host", v.host_name.clone()),
        (
            "Group",
            v.group_name.as_ref().map_or("the host's own".to_owned(), |name| format!("{name} (shared)")),
        ),
        ("Instance", or_dash(v.instance)),
        ("Created", moment(v.created_at, now)),
    ]);
    if let Some(at) = v.trashed_at {
        lines.push(("Trashed", moment(at, now)));
    }
    pairs(&lines)
}
