//! Measures sets without asking Docker: which containers there are, whose they are and which process is theirs says
//! Docker's own file of each, read again only when it has changed; the figures come from control groups and /proc.

use super::cgroup::{Groups, interfaces};
use super::labels::{Role, Tag};
use crate::instance::figures::{Figure, Meter, Reading};
use crate::instance::{DriverError, folders};
use amphi_api::InstanceId;
use async_trait::async_trait;
use serde::Deserialize;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

/// Docker's own file of a container.
const FILE: &str = "config.v2.json";

/// Finds containers and reads what they use.
pub struct SetMeter {
    containers: PathBuf,
    known: Arc<Mutex<HashMap<String, Known>>>,
}

/// What a container's file said when it was last read.
struct Known {
    written: SystemTime,
    /// None: not ours, or not running.
    runs: Option<Running>,
}

#[derive(Clone, Debug, PartialEq)]
struct Running {
    instance: InstanceId,
    /// None: the anchor.
    member: Option<String>,
    pid: i32,
    /// Where the set's shared volume appears in it.
    volume: Option<String>,
}

impl Running {
    fn tells(&self, device: Option<String>, (figure, value): (Figure, f64)) -> Reading {
        Reading { instance: self.instance, member: self.member.clone(), device, figure, value }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct File {
    state: State,
    config: Config,
    #[serde(default)]
    mount_points: HashMap<String, MountPoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct State {
    running: bool,
    pid: i32,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Config {
    #[serde(default)]
    labels: Option<HashMap<String, String>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct MountPoint {
    #[serde(default)]
    driver: String,
    destination: String,
}

impl SetMeter {
    /// `docker_root`: Docker's data root.
    pub fn new(docker_root: &Path) -> Self {
        Self { containers: docker_root.join("containers"), known: Arc::default() }
    }
}

#[async_trait]
impl Meter for SetMeter {
    async fn read(&self) -> Result<Vec<Reading>, DriverError> {
        let (containers, known) = (self.containers.clone(), self.known.clone());
        let read = move || {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            look(&containers, &mut known)?;
            Ok(known.values().filter_map(|k| k.runs.as_ref()).flat_map(measure).collect())
        };
        folders::blocking("measure sets", read).await
    }
}

/// Brings what is known up to date with the files.
fn look(containers: &Path, known: &mut HashMap<String, Known>) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(containers) {
        Ok(entries) => entries,
        // Docker has made no container yet.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            known.clear();
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let mut seen = HashSet::new();
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        let file = entry.path().join(FILE);
        // It may go while it is looked at.
        let Ok(written) = file.metadata().and_then(|m| m.modified()) else { continue };
        if known.get(&id).is_none_or(|k| k.written != written) {
            let runs = std::fs::read(&file).ok().and_then(|bytes| running(&bytes));
            known.insert(id.clone(), Known { written, runs });
        }
        seen.insert(id);
    }
    known.retain(|id, _| seen.contains(id));
    Ok(())
}

fn running(bytes: &[u8]) -> Option<Running> {
    let file: File = serde_json::from_slice(bytes).ok()?;
    let tag = Tag::read(&file.config.labels?)?;
    let member = match tag.role {
        Role::Anchor { .. } => None,
        Role::Member { name, .. } | Role::Rescuer { name, .. } => Some(name),
    };
    let volume = file.mount_points.into_values().find(|m| m.driver == super::render::DRIVER);
    let volume = volume.map(|m| m.destination);
    (file.state.running && file.state.pid > 0).then_some(Running {
        instance: tag.instance,
        member,
        pid: file.state.pid,
        volume,
    })
}

fn measure(of: &Running) -> Vec<Reading> {
    let proc = PathBuf::from(format!("/proc/{}", of.pid));
    let Some(_) = of.member else { return anchor(of, &proc) };
    let groups = std::fs::read_to_string(proc.join("cgroup")).ok();
    let groups = groups.and_then(|text| Groups::parse(&text, Path::new("/sys/fs/cgroup")));
    // A process that is gone has no groups; its container's file will say so soon.
    let Some(groups) = groups else { return Vec::new() };
    std::iter::once((Figure::Up, 1.0)).chain(groups.read()).map(|reading| of.tells(None, reading)).collect()
}

/// What is the set's as a whole: its network and its volume.
fn anchor(of: &Running, proc: &Path) -> Vec<Reading> {
    let Ok(network) = std::fs::read_to_string(proc.join("net/dev")) else { return Vec::new() };
    let mut all = vec![of.tells(None, (Figure::Up, 1.0))];
    for (name, figures) in interfaces(&network) {
        all.extend(figures.map(|reading| of.tells(Some(name.clone()), reading)));
    }
    if let Some(destination) = &of.volume {
        let at = proc.join("root").join(destination.trim_start_matches('/'));
        if let Ok(stat) = nix::sys::statvfs::statvfs(&at) {
            let block = stat.fragment_size() as f64;
            let (size, free) = (stat.blocks() as f64 * block, stat.blocks_free() as f64 * block);
            all.push(of.tells(None, (Figure::Volume, size)));
            all.push(of.tells(None, (Figure::VolumeUsed, size - free)));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(running: bool, pid: i32, labels: &str) -> String {
        format!(
            r#"{{"ID":"x","State":{{"Running":{running},"Paused":false,"Pid":{pid}}},
                "Config":{{"Hostname":"h","Labels":{labels}}},
                "MountPoints":{{"/data":{{"Driver":"amphi","Destination":"/data","Type":"volume"}},
                                "/x":{{"Destination":"/x","Type":"bind"}}}}}}"#
        )
    }

    #[test]
    fn docker_s_file_says_who_runs() {
        let id = InstanceId::new();
        let labels = |member: &str| {
            format!(
                r#"{{"amphi.instance":"{id}","amphi.member":"{member}","amphi.index":"0","amphi.epoch":"1"}}"#
            )
        };
        let web = running(file(true, 42, &labels("web")).as_bytes()).expect("a member");
        assert_eq!((web.instance, web.member.as_deref(), web.pid), (id, Some("web"), 42));
        let anchor = running(file(true, 43, &labels("anchor")).as_bytes()).expect("an anchor");
        assert_eq!((anchor.member, anchor.volume.as_deref()), (None, Some("/data")));
        for other in [
            file(false, 0, &labels("web")),
            file(true, 0, &labels("web")),
            file(true, 42, "{}"),
            file(true, 42, "null"),
            "{".into(),
        ] {
            assert_eq!(running(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let id = InstanceId::new();
        let labels = format!(r#"{{"amphi.instance":"{id}","amphi.member":"web","amphi.index":"0"}}"#);
        let mut known = HashMap::new();
        look(&dir.path().join("none"), &mut known).expect("no container yet");
        let path = dir.path().join("c1");
        std::fs::create_dir(&path).expect("a container");
        let write = |pid: i32, at: u64| {
            std::fs::write(path.join(FILE), file(true, pid, &labels)).expect("written");
            let handle = std::fs::File::options().write(true).open(path.join(FILE)).expect("a file");
            handle.set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(at)).expect("a time");
        };
        let pid = |known: &HashMap<String, Known>| known["c1"].runs.as_ref().map(|r| r.pid);
        write(1, 10);
        look(dir.path(), &mut known).expect("looked");
        assert_eq!(pid(&known), Some(1));
        write(2, 10);
        look(dir.path(), &mut known).expect("looked");
        assert_eq!(pid(&known), Some(1), "unchanged files are not read");
        write(3, 11);
        look(dir.path(), &mut known).expect("looked");
        assert_eq!(pid(&known), Some(3));
        std::fs::remove_dir_all(&path).expect("gone");
        look(dir.path(), &mut known).expect("looked");
        assert!(known.is_empty());
    }
}
