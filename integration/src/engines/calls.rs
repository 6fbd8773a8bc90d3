//! What an agent asks of engines in memory and what they answer, as values that also travel over a socket: an agent in a
//! process of its own can be killed while its engines live on.

use amphi_api::instance::{BodyKind, MemberStatus};
use amphi_api::{InstanceId, NetworkId, PortId, VolumeId};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use uuid::Uuid;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Call {
    Bodies {
        kind: BodyKind,
    },
    Prepare {
        kind: BodyKind,
    },
    /// Made, and not started.
    LayOut(Body),
    Ensure(Body),
    Stop {
        kind: BodyKind,
        instance: InstanceId,
    },
    Remove {
        kind: BodyKind,
        instance: InstanceId,
        epoch: u64,
    },
    Adjust {
        kind: BodyKind,
    },
    Volumes,
    EnsureVolume {
        id: Uuid,
        size_bytes: u64,
        from: Option<Origin>,
    },
    Attach {
        id: Uuid,
        mounted: bool,
    },
    IsMounted {
        id: Uuid,
    },
    Detach {
        id: Uuid,
    },
    Snapshot {
        of: Uuid,
        id: Uuid,
    },
    Read {
        id: Uuid,
    },
    Bin {
        id: Uuid,
        order: Bin,
    },
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Bodies(Vec<Body>),
    Volumes(Vec<Volume>),
    Mounted(bool),
    /// A volume's bytes: the count of the body that last wrote to it.
    Bytes(u64),
    /// The engine says no.
    Refused(String),
    Full,
    Unknown,
    Trashed,
    Busy(String),
    /// The machine has lost its power since it was asked.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    Stopped,
    Running,
    Paused,
    Suspended,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Body {
    pub instance: InstanceId,
    pub kind: BodyKind,
    pub epoch: u64,
    pub state: State,
    pub ports: Vec<PortId>,
    pub addresses: Vec<(NetworkId, IpAddr)>,
    /// Beside the shared one and the root.
    pub extras: Vec<VolumeId>,
    /// All that it writes to.
    pub writes: Vec<VolumeId>,
    pub members: Vec<MemberStatus>,
    pub rescued: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    pub id: Uuid,
    pub snapshot_of: Option<Uuid>,
    pub size_bytes: u64,
    pub trashed_at: Option<i64>,
    pub attached: bool,
    pub mounted: bool,
    /// As in [`Reply::Bytes`].
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Origin {
    Copy(Uuid),
    Bytes(u64),
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Bin {
    Trash { at: i64 },
    Restore,
    Purge,
}

impl Call {
    /// Whether it may change anything.
    pub fn changes(&self) -> bool {
        !matches!(self, Call::Bodies { .. } | Call::Volumes | Call::IsMounted { .. })
    }

    /// Its name, for logs and for the steps that a test has reached.
    pub fn name(&self) -> &'static str {
        match self {
            Call::Bodies { .. } => "bodies",
            Call::Prepare { .. } => "prepare",
            Call::LayOut(_) => "lay out",
            Call::Ensure(_) => "ensure",
            Call::Stop { .. } => "stop",
            Call::Remove { .. } => "remove",
            Call::Adjust { .. } => "adjust",
            Call::Volumes => "volumes",
            Call::EnsureVolume { .. } => "ensure volume",
            Call::Attach { .. } => "attach",
            Call::IsMounted { .. } => "mounted",
            Call::Detach { .. } => "detach",
            Call::Snapshot { .. } => "snapshot",
            Call::Read { .. } => "read",
            Call::Bin { .. } => "bin",
        }
    }
}
