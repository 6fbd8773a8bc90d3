//! Containers of ours that run on while Docker has lost them: its state directory was lost, and containerd's shims keep their
//! processes. Which containers are ours is written down for that case alone; whether one runs is seen by the control groups
//! of processes. Refuses to end anything that Docker still knows.

use super::ENGINE;
use super::observed::Part;
use super::shared::Shared;
use crate::instance::{DriverError, ObservedBody, ObservedState, folders};
use amphi_api::InstanceId;
use amphi_api::instance::BodyKind;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the kernel has to take processes that were killed.
const KILL: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(50);
/// Where Docker keeps the names of its network namespaces, and containerd its tasks.
const NAMESPACES: &str = "/run/docker/netns";
const TASKS: &str = "/run/containerd/io.containerd.runtime.v2.task/moby";

/// Every container of ours that was made or seen here, by id.
pub struct Orphans {
    folder: PathBuf,
    known: Mutex<BTreeMap<String, Whose>>,
    /// How many ran when all were last looked for.
    running: AtomicUsize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Whose {
    instance: InstanceId,
    epoch: u64,
}

/// A container that runs and that Docker does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Orphan {
    pub id: String,
    pub instance: InstanceId,
    pub epoch: u64,
    pids: BTreeSet<i32>,
}

impl Whose {
    fn read(text: &str) -> Option<Self> {
        let (instance, epoch) = text.trim().split_once(' ')?;
        Some(Self { instance: instance.parse().ok()?, epoch: epoch.parse().ok()? })
    }
}

impl Orphans {
    pub fn open(state_dir: &Path) -> Self {
        let folder = state_dir.join("containers");
        let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let known = entries.filter_map(|entry| {
            let id = entry.file_name().into_string().ok()?;
            Some((id, Whose::read(&std::fs::read_to_string(entry.path()).ok()?)?))
        });
        Self { known: Mutex::new(known.collect()), folder, running: AtomicUsize::new(0) }
    }

    /// Writes down that a container is ours.
    pub fn note(&self, id: &str, instance: InstanceId, epoch: u64) {
        let whose = Whose { instance, epoch };
        if self.with(|known| known.insert(id.to_owned(), whose)) == Some(whose) {
            return;
        }
        let written = std::fs::create_dir_all(&self.folder)
            .and_then(|()| std::fs::write(self.folder.join(id), format!("{instance} {epoch}\n")));
        if let Err(error) = written {
            tracing::warn!(%error, id, "a container cannot be written down; if Docker loses it, so do we");
        }
    }

    /// What the host says of its Docker while containers run that it has lost.
    pub fn trouble(&self) -> Option<String> {
        match self.running.load(Ordering::Relaxed) {
            0 => None,
            count => {
                Some(format!("{count} containers run that it has lost; they end before they are made anew"))
            }
        }
    }

    fn forget(&self, id: &str) {
        self.with(|known| known.remove(id));
        let _ = std::fs::remove_file(self.folder.join(id));
    }

    fn with<T>(&self, work: impl FnOnce(&mut BTreeMap<String, Whose>) -> T) -> T {
        work(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Those of one instance, or of all, that Docker has not listed.
    fn missing(&self, instance: Option<InstanceId>, listed: &[Part]) -> BTreeMap<String, Whose> {
        let listed: BTreeSet<&str> = listed.iter().map(|part| part.id.as_str()).collect();
        let wanted = |whose: &Whose| instance.is_none_or(|instance| whose.instance == instance);
        self.with(|known| {
            let all = known.iter().filter(|(id, whose)| wanted(whose) && !listed.contains(id.as_str()));
            all.map(|(id, whose)| (id.clone(), *whose)).collect()
        })
    }
}

/// Those of one instance, or of all. `listed`: what Docker has of them. What is neither known to Docker nor running is
/// forgotten.
pub async fn find(
    shared: &Shared,
    instance: Option<InstanceId>,
    listed: &[Part],
) -> Result<Vec<Orphan>, DriverError> {
    for part in listed {
        shared.orphans.note(&part.id, part.tag.instance, part.tag.epoch);
    }
    let missing = shared.orphans.missing(instance, listed);
    if missing.is_empty() {
        if instance.is_none() {
            shared.orphans.running.store(0, Ordering::Relaxed);
        }
        return Ok(Vec::new());
    }
    let ids: Vec<String> = missing.keys().cloned().collect();
    let mut running =
        folders::blocking("look for containers that Docker has lost", move || Ok(running(&ids))).await?;
    let mut orphans = Vec::new();
    for (id, whose) in missing {
        let Some(pids) = running.remove(&id) else {
            shared.orphans.forget(&id);
            continue;
        };
        // It may have been made since Docker was asked for its list.
        let doing = format!("inspect container {id}");
        let engine = &shared.engine;
        let asked = id.as_str();
        let found =
            engine
                .find(&doing, engine.limits.call, |docker| async move {
                    docker.inspect_container(asked, None).await
                })
                .await?;
        if found.is_none() {
            orphans.push(Orphan { id, instance: whose.instance, epoch: whose.epoch, pids });
        }
    }
    if instance.is_none() {
        shared.orphans.running.store(orphans.len(), Ordering::Relaxed);
    }
    Ok(orphans)
}

/// Ends what Docker has lost of an instance: nothing of it may run beside what is made anew.
pub async fn end(shared: &Shared, instance: InstanceId, listed: &[Part]) -> Result<(), DriverError> {
    for orphan in find(shared, Some(instance), listed).await? {
        tracing::warn!(%instance, container = orphan.id, "ending a container that Docker has lost");
        let id = orphan.id.clone();
        let left =
            folders::blocking("end a container that Docker has lost", move || Ok(finish(&orphan))).await?;
        if left > 0 {
            return Err(DriverError::EngineRefused {
                engine: ENGINE,
                doing: format!("end container {id}, which it has lost"),
                message: format!("{left} of its processes do not end"),
            });
        }
        shared.orphans.forget(&id);
    }
    Ok(())
}

/// The bodies as they are with what Docker has lost of them: never stopped, and in trouble.
pub fn show(bodies: &mut Vec<ObservedBody>, orphans: &[Orphan]) {
    for orphan in orphans {
        let at =
            bodies.iter().position(|body| body.instance == orphan.instance && body.epoch == orphan.epoch);
        let at = at.unwrap_or_else(|| {
            bodies.push(ObservedBody {
                instance: orphan.instance,
                kind: BodyKind::Set,
                epoch: orphan.epoch,
                state: ObservedState::Degraded,
                ports: Vec::new(),
                volumes: Vec::new(),
                rescued: false,
                members: Vec::new(),
                agent: None,
                held: Default::default(),
                away: false,
                trouble: None,
            });
            bodies.len() - 1
        });
        let body = &mut bodies[at];
        body.state = ObservedState::Degraded;
        let short = orphan.id.get(..12).unwrap_or(&orphan.id);
        let told = format!("container {short} runs on, and Docker has lost it");
        body.trouble = Some(match body.trouble.take() {
            Some(before) => format!("{before}; {told}"),
            None => told,
        });
    }
}

/// The processes in each container's control groups, of those that have any.
fn running(ids: &[String]) -> BTreeMap<String, BTreeSet<i32>> {
    let mut found: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
    for pid in processes() {
        let Ok(groups) = std::fs::read_to_string(format!("/proc/{pid}/cgroup")) else { continue };
        for id in ids.iter().filter(|id| is_in(&groups, id)) {
            found.entry(id.clone()).or_default().insert(pid);
        }
    }
    found
}

/// Docker's groups are named by the container: `/docker/ID`, or `docker-ID.scope` where systemd makes them; tools of a
/// member lie below its own.
fn is_in(groups: &str, id: &str) -> bool {
    let scope = format!("docker-{id}.scope");
    groups.lines().any(|line| line.split('/').any(|name| name == id || name == scope))
}

fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Kills its processes, its shim, and frees what they held; how many processes are left.
fn finish(orphan: &Orphan) -> usize {
    let ids = [orphan.id.clone()];
    let inode = |pid: &i32| std::fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|ns| ns.ino());
    let namespaces: BTreeSet<u64> = orphan.pids.iter().filter_map(inode).collect();
    let own = std::fs::metadata("/proc/self/ns/net").ok().map(|ns| ns.ino());
    let root = root_of(&orphan.id);
    let until = Instant::now() + KILL;
    let left = loop {
        let alive: BTreeSet<i32> = running(&ids).remove(&orphan.id).unwrap_or_default();
        let alive: Vec<i32> = alive.into_iter().filter(|pid| !is_zombie(*pid)).collect();
        if alive.is_empty() || Instant::now() > until {
            break alive.len();
        }
        for pid in alive {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(LOOK);
    };
    // containerd takes away what is left of a task whose shim has died.
    for pid in processes().filter(|pid| is_shim_of(*pid, &orphan.id)) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    // A namespace that has a name outlives its processes, and holds the port's device.
    for entry in std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let seen = entry.metadata().ok().map(|named| named.ino());
        // What shares the host's is not ours to free.
        if seen.is_some_and(|seen| namespaces.contains(&seen) && Some(seen) != own) {
            release(&entry.path());
            let _ = std::fs::remove_file(entry.path());
        }
    }
    root.iter().for_each(|root| release(root));
    left
}

fn release(path: &Path) {
    let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
}

fn is_zombie(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_none_or(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
}

/// `containerd-shim-runc-v2 -namespace moby -id ID …`
fn is_shim_of(pid: i32, id: &str) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
    let program = words.first().and_then(|word| word.rsplit(|byte| *byte == b'/').next());
    program.is_some_and(|program| program.starts_with(b"containerd-shim"))
        && words.windows(2).any(|pair| pair[0] == b"-id" && pair[1] == id.as_bytes())
}

/// Where its root file system is mounted (OCI runtime specification, `root.path`).
fn root_of(id: &str) -> Option<PathBuf> {
    let text = std::fs::read(Path::new(TASKS).join(id).join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let root = PathBuf::from(config["root"]["path"].as_str()?);
    root.is_absolute().then_some(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::set::labels::{Role, Tag};
    use crate::instance::set::observed::PartState;

    #[test]
    fn groups_name_their_container() {
        let id = "0123456789abcdef";
        for (groups, inside) in [
            ("9:memory:/docker/0123456789abcdef\n0::/\n", true),
            ("0::/system.slice/docker-0123456789abcdef.scope\n", true),
            ("9:memory:/docker/0123456789abcdef/fedcba\n", true),
            ("9:memory:/docker/0123456789abcdef0\n", false),
            ("9:memory:/\n", false),
        ] {
            assert_eq!(is_in(groups, id), inside, "{groups}");
        }
    }

    #[test]
    fn what_is_ours_is_known_to_the_next_agent() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (InstanceId::new(), InstanceId::new());
        let orphans = Orphans::open(dir.path());
        orphans.note("c1", a, 1);
        orphans.note("c2", a, 2);
        orphans.note("c3", b, 1);
        let again = Orphans::open(dir.path());
        let part = |id: &str| Part {
            id: id.to_owned(),
            tag: Tag {
                instance: a,
                epoch: 1,
                role: Role::Anchor { members: Vec::new() },
                spec: String::new(),
                generation: 0,
                life: Default::default(),
            },
            state: PartState::Running,
            detail: Default::default(),
        };
        let ids = |missing: BTreeMap<String, Whose>| missing.into_keys().collect::<Vec<_>>();
        assert_eq!(ids(again.missing(None, &[part("c1")])), ["c2", "c3"]);
        assert_eq!(ids(again.missing(Some(a), &[part("c1")])), ["c2"]);
        again.forget("c2");
        assert_eq!(ids(Orphans::open(dir.path()).missing(Some(a), &[])), ["c1"]);
        std::fs::write(dir.path().join("containers/c9"), "garbage").unwrap();
        assert!(Orphans::open(dir.path()).missing(None, &[]).keys().all(|id| id != "c9"));
    }

    #[test]
    fn a_lost_container_is_a_body_that_is_not_stopped() {
        let orphan = |instance, epoch| Orphan {
            id: "0123456789abcdef".into(),
            instance,
            epoch,
            pids: BTreeSet::from([1]),
        };
        let (a, b) = (InstanceId::new(), InstanceId::new());
        let mut bodies = Vec::new();
        show(&mut bodies, &[orphan(a, 3)]);
        bodies[0].state = ObservedState::Stopped;
        show(&mut bodies, &[orphan(a, 3), orphan(b, 1)]);
        assert_eq!(bodies.len(), 2);
        assert!(bodies.iter().all(|body| body.state == ObservedState::Degraded && body.trouble.is_some()));
        assert_eq!((bodies[1].instance, bodies[1].epoch), (b, 1));
    }
}
