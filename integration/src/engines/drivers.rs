//! The agent's driver traits over engines in memory. Bounded in time, as the real drivers are.

use super::calls::{Bin, Body, Call, Origin, Reply, State, Volume};
use super::port::EnginePort;
use amphi_api::InstanceId;
use amphi_api::image::ImageFormat;
use amphi_api::instance::{BodyKind, MemberStatus, Power};
use amphi_api::streams::StreamTarget;
use amphi_api::wire::BodyDesired;
use amphi_hostsrv::instance::moves::BodyMoves;
use amphi_hostsrv::instance::sizing::BodySizing;
use amphi_hostsrv::instance::streams::{BodyStreams, Opened};
use amphi_hostsrv::instance::{
    Adjustment, BodyDriver, BodyExport, BodyPlan, DriverError, EngineFacts, ExportPlan, ObservedBody,
    ObservedState, Remains,
};
use amphi_hostsrv::qemu_img::DiskFormat;
use amphi_hostsrv::storage::{
    Activation, Attach, Attached, BinOrder, Filesystem, ObservedVolume, Quiesce, Source, StorageError,
    StorageFacts, VolumeDriver, VolumeKind, VolumeSpec,
};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// Of every call.
const LIMIT: Duration = Duration::from_secs(3);
/// How long the engine of sets waits for a volume's mount, and how often it looks.
const MOUNT: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(5));
const ENGINE: &str = "memory";
/// Of a volume group, in bytes.
const GROUP: u64 = 1 << 50;

/// Bodies of one kind.
pub struct MemoryBodies {
    pub kind: BodyKind,
    pub port: EnginePort,
}

impl MemoryBodies {
    async fn ask(&self, call: Call) -> Result<Reply, DriverError> {
        let doing = format!("{} ({})", call.name(), self.kind);
        let refused =
            |message: String| DriverError::EngineRefused { engine: ENGINE, doing: doing.clone(), message };
        match tokio::time::timeout(LIMIT, self.port.call(call)).await {
            Err(_) => Err(DriverError::EngineTimeout { engine: ENGINE, doing, limit: LIMIT }),
            Ok(Err(source)) => Err(DriverError::EngineDown { engine: ENGINE, doing, source }),
            Ok(Ok(Reply::Refused(message))) => Err(refused(message)),
            Ok(Ok(Reply::Gone)) => {
                Err(DriverError::EngineDown { engine: ENGINE, doing, source: anyhow::anyhow!("no power") })
            }
            Ok(Ok(reply)) => Ok(reply),
        }
    }

    /// Docker asks the volume driver when a container starts, which waits for the mount that is under way.
    async fn mounted(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        let named = plan.volume.iter().chain(&plan.root_volume);
        let Some(late) = named.into_iter().find(|v| v.device.as_os_str().is_empty()) else { return Ok(()) };
        let wait = async {
            loop {
                if let Reply::Mounted(true) = self.ask(Call::IsMounted { id: late.id.0 }).await? {
                    return Ok(());
                }
                tokio::time::sleep(MOUNT.1).await;
            }
        };
        let doing = || format!("wait for the mount of volume {}", late.id);
        let late = |_| DriverError::EngineTimeout { engine: ENGINE, doing: doing(), limit: MOUNT.0 };
        tokio::time::timeout(MOUNT.0, wait).await.map_err(late)?
    }
}

fn body(kind: BodyKind, plan: &BodyPlan) -> Body {
    let state = match plan.power {
        Power::On | Power::Off => State::Running,
        Power::Suspended if kind == BodyKind::Vm => State::Suspended,
        Power::Paused | Power::Suspended => State::Paused,
    };
    let member = |name: &str, index| MemberStatus {
        name: name.to_owned(),
        index,
        running: state == State::Running,
        generation: plan.generation_of(name),
        ..MemberStatus::default()
    };
    let members = match plan.runs() {
        BodyDesired::Set { set, .. } | BodyDesired::SetVm { set, .. } => {
            set.members.iter().map(|m| member(&m.name, m.index)).collect()
        }
        BodyDesired::Vm { .. } => Vec::new(),
    };
    let extras: Vec<_> = plan.attachments.iter().map(|extra| extra.volume.id).collect();
    let own = plan.volume.iter().chain(&plan.root_volume).map(|volume| volume.id);
    let address = |port: &amphi_hostsrv::instance::PortAttachment| {
        port.addresses().map(|(net, _)| (port.network, net.addr())).collect::<Vec<_>>()
    };
    Body {
        instance: plan.instance,
        kind,
        epoch: plan.epoch,
        state,
        ports: plan.ports.iter().map(|port| port.id).collect(),
        addresses: plan.ports.iter().flat_map(address).collect(),
        writes: own.chain(extras.iter().copied()).collect(),
        extras,
        members,
        rescued: plan.rescue.is_some(),
    }
}

fn observed(body: Body) -> ObservedBody {
    let live = body.state != State::Stopped;
    ObservedBody {
        instance: body.instance,
        kind: body.kind,
        epoch: body.epoch,
        state: match body.state {
            State::Stopped => ObservedState::Stopped,
            State::Running => ObservedState::Running,
            State::Paused => ObservedState::Paused,
            State::Suspended => ObservedState::Suspended,
        },
        ports: if live { body.ports } else { Vec::new() },
        volumes: if live { body.extras } else { Vec::new() },
        rescued: body.rescued,
        away: false,
        held: Default::default(),
        agent: None,
        members: body.members.into_iter().map(|m| MemberStatus { running: live, ..m }).collect(),
        trouble: None,
    }
}

/// These engines stop a body for a move, as sets do.
impl BodyMoves for MemoryBodies {}

/// Nor do they limit anything.
impl BodySizing for MemoryBodies {}

#[async_trait]
impl BodyDriver for MemoryBodies {
    async fn probe(&self) -> Result<EngineFacts, DriverError> {
        Ok(EngineFacts { version: ENGINE.to_owned() })
    }

    async fn observe(&self) -> Result<Vec<ObservedBody>, DriverError> {
        match self.ask(Call::Bodies { kind: self.kind }).await? {
            Reply::Bodies(bodies) => Ok(bodies.into_iter().map(observed).collect()),
            _ => Ok(Vec::new()),
        }
    }

    async fn prepare(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        if plan.twin {
            let made = Body { state: State::Stopped, ..body(self.kind, plan) };
            return self.ask(Call::LayOut(made)).await.map(drop);
        }
        self.ask(Call::Prepare { kind: self.kind }).await.map(drop)
    }

    async fn ensure(&self, plan: &BodyPlan) -> Result<(), DriverError> {
        self.mounted(plan).await?;
        self.ask(Call::Ensure(body(self.kind, plan))).await.map(drop)
    }

    async fn stop(&self, instance: InstanceId, _: Duration) -> Result<(), DriverError> {
        self.ask(Call::Stop { kind: self.kind, instance }).await.map(drop)
    }

    async fn remove(&self, instance: InstanceId, epoch: u64, _: Remains) -> Result<(), DriverError> {
        self.ask(Call::Remove { kind: self.kind, instance, epoch }).await.map(drop)
    }

    async fn console_log(&self, _: InstanceId, _: Option<&str>, _: u32) -> Result<String, DriverError> {
        Ok("a body in memory\n".to_owned())
    }

    async fn adjust(&self, _: InstanceId, _: Adjustment) -> Result<(), DriverError> {
        self.ask(Call::Adjust { kind: self.kind }).await.map(drop)
    }
}

#[async_trait]
impl BodyExport for MemoryBodies {
    async fn export(&self, plan: &ExportPlan) -> Result<(), DriverError> {
        let head = if plan.format == ImageFormat::Qcow2 { &QCOW2[..] } else { &[] };
        std::fs::write(&plan.to, [head, b"a body in memory"].concat())
            .map_err(|source| DriverError::Io { doing: "write an export".to_owned(), source })
    }
}

#[async_trait]
impl BodyStreams for MemoryBodies {
    async fn open(&self, _: InstanceId, _: &StreamTarget) -> Result<Opened, DriverError> {
        let (doing, message) = ("open a stream".to_owned(), "nothing runs in memory".to_owned());
        Err(DriverError::EngineRefused { engine: ENGINE, doing, message })
    }
}

pub struct MemoryVolumes {
    pub port: EnginePort,
}

impl MemoryVolumes {
    async fn ask(&self, id: Uuid, call: Call) -> Result<Reply, StorageError> {
        let (operation, object) = (call.name(), id.to_string());
        let lvm = |detail: String| StorageError::Lvm { operation, object: object.clone(), detail };
        match tokio::time::timeout(LIMIT, self.port.call(call)).await {
            Err(_) => Err(StorageError::Timeout { operation, object, seconds: LIMIT.as_secs() }),
            Ok(Err(error)) => Err(lvm(format!("{error:#}"))),
            Ok(Ok(Reply::Gone)) => Err(lvm("no power".to_owned())),
            Ok(Ok(Reply::Refused(detail))) => Err(lvm(detail)),
            Ok(Ok(Reply::Full)) => {
                Err(StorageError::Full { group: ENGINE.to_owned(), needed: 1 << 30, free: 0 })
            }
            Ok(Ok(Reply::Unknown)) => Err(StorageError::Unknown { id }),
            Ok(Ok(Reply::Trashed)) => Err(StorageError::Trashed { id, since: 0 }),
            Ok(Ok(Reply::Busy(holders))) => Err(StorageError::Busy { id, holders }),
            Ok(Ok(reply)) => Ok(reply),
        }
    }
}

fn device(id: Uuid) -> PathBuf {
    PathBuf::from(format!("/dev/memory/{id}"))
}

fn mount(id: Uuid) -> PathBuf {
    PathBuf::from(format!("/mnt/memory/{id}"))
}

fn seen(volume: Volume) -> ObservedVolume {
    ObservedVolume {
        id: volume.id,
        kind: volume.snapshot_of.map_or(VolumeKind::Volume, |of| VolumeKind::Snapshot { of }),
        size_bytes: volume.size_bytes,
        fs: Some(Filesystem::Xfs),
        complete: true,
        trashed_at: volume.trashed_at,
        device: volume.attached.then(|| device(volume.id)),
        mounted: volume.mounted.then(|| mount(volume.id)),
        tags: Vec::new(),
        shared: None,
    }
}

/// A qcow2 image, version 3, of one empty table, as far as agents and the controller look at it; what is kept follows as text.
const QCOW2: [u8; 1536] = {
    let mut image = [0; 1536];
    (image[0], image[1], image[2], image[3], image[7]) = (b'Q', b'F', b'I', 0xfb, 3);
    // Clusters of 2^9 bytes; a disk of 32 KiB, which one entry of the first table maps.
    (image[23], image[30], image[39]) = (9, 0x80, 1);
    // The table in the second cluster, the reference counts' in the third; a header of 104 bytes.
    (image[46], image[54], image[59], image[99], image[103]) = (2, 4, 1, 4, 104);
    image
};

/// A volume's bytes in a file: the count as text, behind a header where the format has one.
fn write_bytes(file: &Path, format: DiskFormat, bytes: u64) -> std::io::Result<()> {
    let mut all = if format == DiskFormat::Qcow2 { QCOW2.to_vec() } else { Vec::new() };
    all.extend(bytes.to_string().into_bytes());
    std::fs::write(file, all)
}

fn read_bytes(file: &Path) -> Result<u64, StorageError> {
    let io = |source| StorageError::Io { operation: "read", object: file.display().to_string(), source };
    let all = std::fs::read(file).map_err(io)?;
    let count = all.strip_prefix(QCOW2.as_slice()).unwrap_or(&all);
    // Not written by an engine in memory: an uploaded image, say.
    Ok(std::str::from_utf8(count).ok().and_then(|text| text.trim().parse().ok()).unwrap_or_default())
}

#[async_trait]
impl VolumeDriver for MemoryVolumes {
    async fn probe(&self) -> Result<StorageFacts, StorageError> {
        Ok(StorageFacts {
            volume_group: ENGINE.to_owned(),
            size_bytes: GROUP,
            free_bytes: GROUP,
            extent_bytes: 1,
            activation: Activation::Dm,
            lvm_version: ENGINE.to_owned(),
            shared: Vec::new(),
        })
    }

    async fn observe(&self) -> Result<Vec<ObservedVolume>, StorageError> {
        match self.ask(Uuid::nil(), Call::Volumes).await? {
            Reply::Volumes(volumes) => Ok(volumes.into_iter().map(seen).collect()),
            _ => Ok(Vec::new()),
        }
    }

    async fn ensure(&self, spec: &VolumeSpec) -> Result<(), StorageError> {
        let from = match &spec.source {
            None => None,
            Some(Source::Copy { of, .. }) => Some(Origin::Copy(*of)),
            Some(Source::Disk { file, .. } | Source::Moved { file, .. }) => {
                Some(Origin::Bytes(read_bytes(file)?))
            }
        };
        let call = Call::EnsureVolume { id: spec.id, size_bytes: spec.size_bytes, from };
        self.ask(spec.id, call).await.map(drop)
    }

    async fn attach(&self, id: Uuid, how: Attach) -> Result<Attached, StorageError> {
        let mounted = how == Attach::Mounted;
        self.ask(id, Call::Attach { id, mounted }).await?;
        Ok(Attached { device: device(id), mount: mounted.then(|| mount(id)) })
    }

    async fn mounted(&self, id: Uuid) -> Result<Option<PathBuf>, StorageError> {
        let reply = self.ask(id, Call::IsMounted { id }).await?;
        Ok(matches!(reply, Reply::Mounted(true)).then(|| mount(id)))
    }

    async fn detach(&self, id: Uuid) -> Result<(), StorageError> {
        self.ask(id, Call::Detach { id }).await.map(drop)
    }

    async fn snapshot(&self, id: Uuid, snapshot: Uuid, _: &Quiesce) -> Result<(), StorageError> {
        self.ask(id, Call::Snapshot { of: id, id: snapshot }).await.map(drop)
    }

    async fn export(&self, id: Uuid, to: &Path, format: DiskFormat, _: &Quiesce) -> Result<(), StorageError> {
        let Reply::Bytes(bytes) = self.ask(id, Call::Read { id }).await? else {
            return Err(StorageError::Unknown { id });
        };
        let io = |source| StorageError::Io { operation: "write", object: to.display().to_string(), source };
        write_bytes(to, format, bytes).map_err(io)
    }

    async fn set_filesystem(&self, _: Uuid, _: Option<Filesystem>) -> Result<(), StorageError> {
        Ok(())
    }

    async fn set_bin(&self, id: Uuid, order: BinOrder) -> Result<(), StorageError> {
        let order = match order {
            BinOrder::Trash { at } => Bin::Trash { at },
            BinOrder::Restore => Bin::Restore,
            BinOrder::Purge => Bin::Purge,
        };
        self.ask(id, Call::Bin { id, order }).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_travel_in_either_format() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("bytes");
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            write_bytes(&file, format, 42).unwrap();
            assert_eq!(read_bytes(&file).unwrap(), 42, "{format:?}");
        }
        std::fs::write(&file, [0; 4096]).unwrap();
        assert_eq!(read_bytes(&file).unwrap(), 0, "somebody else's");
    }
}
