//! Ends every guest of this host without asking any engine: what hangs or is being restarted must not keep a guest alive.
//! Guests are found through /proc: VMs by the name that libvirt gives to QEMU, containers by Docker's id in their control
//! group and the name in Docker's own file of it. Devices go down first, so that nothing is heard from a guest that takes
//! its time to end.
//!
//! Refuses to touch what is not ours, where it can tell. A container whose name cannot be read in time counts as ours: on a
//! host that fences itself, a stranger's container is the smaller loss.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the disk may take to say whose a container is.
const READ: Duration = Duration::from_millis(150);
/// Between two looks at what is left.
const LOOK: Duration = Duration::from_millis(15);

/// A process of a guest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guest {
    /// `amphi-<uuid>`.
    Vm(String),
    /// Docker's id.
    Container(String),
}

/// What a fence did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub devices: usize,
    pub processes: usize,
    /// Until the devices were down, and until the last process was gone, in milliseconds from the beginning.
    pub devices_ms: u64,
    pub gone_ms: u64,
    /// Processes that are still there.
    pub left: usize,
}

/// Finds and ends guests.
pub struct Fence {
    proc: PathBuf,
    containers: PathBuf,
    /// Whose the containers are that were ever looked up: read while all is well, not when it matters.
    ours: Arc<Mutex<BTreeMap<String, bool>>>,
}

impl Fence {
    /// `docker_root`: Docker's data root.
    pub fn new(docker_root: &Path) -> Self {
        Self { proc: "/proc".into(), containers: docker_root.join("containers"), ours: Arc::default() }
    }

    /// Looks up whose the running containers are. May block on the disk.
    pub fn learn(&self) {
        let seen = self.processes();
        let ids: BTreeSet<&String> = seen.iter().filter_map(|(_, guest)| container(guest)).collect();
        let known = |id: &str| self.ours().contains_key(id);
        for id in ids.iter().filter(|id| !known(id)) {
            if let Some(ours) = is_ours(&self.containers, id) {
                self.ours().insert((*id).clone(), ours);
            }
        }
        self.ours().retain(|id, _| ids.contains(id));
    }

    // A panic while it is held leaves plain data behind.
    fn ours(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, bool>> {
        self.ours.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends all guests; tries until none is left, or until `bound`. `switch_off` sets the guests' devices down and says how
    /// many there were.
    pub fn carry_out(&self, bound: Duration, switch_off: impl FnOnce() -> usize) -> Report {
        let began = Instant::now();
        let ms = |began: Instant| began.elapsed().as_millis() as u64;
        let devices = switch_off();
        let devices_ms = ms(began);
        let mut killed = BTreeSet::new();
        loop {
            let left = self.sweep();
            killed.extend(left.iter().copied());
            if left.is_empty() || began.elapsed() > bound {
                let (processes, left) = (killed.len(), left.len());
                return Report { devices, processes, devices_ms, gone_ms: ms(began), left };
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Kills every process of our guests that is there now; answers which.
    pub fn sweep(&self) -> Vec<i32> {
        let seen = self.processes();
        self.look_up(&seen);
        let ours = |guest: &Guest| match guest {
            Guest::Vm(_) => true,
            Guest::Container(id) => self.ours().get(id).copied().unwrap_or(true),
        };
        let pids: Vec<i32> = seen.into_iter().filter(|(_, guest)| ours(guest)).map(|(pid, _)| pid).collect();
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // What is frozen dies when it thaws, before it does anything else.
        pids.iter().for_each(|pid| self.thaw(*pid));
        pids
    }

    /// Asks the disk about containers that are new, for a moment only.
    fn look_up(&self, seen: &[(i32, Guest)]) {
        let new: BTreeSet<String> = {
            let ours = self.ours();
            let ids = seen.iter().filter_map(|(_, guest)| container(guest));
            ids.filter(|id| !ours.contains_key(*id)).cloned().collect()
        };
        if new.is_empty() {
            return;
        }
        let (done, finished) = mpsc::channel();
        let (dir, ours) = (self.containers.clone(), self.ours.clone());
        std::thread::spawn(move || {
            for id in new {
                if let Some(is) = is_ours(&dir, &id) {
                    ours.lock().unwrap_or_else(PoisonError::into_inner).insert(id, is);
                }
            }
            let _ = done.send(());
        });
        let _ = finished.recv_timeout(READ);
    }

    fn processes(&self) -> Vec<(i32, Guest)> {
        let entries = std::fs::read_dir(&self.proc).into_iter().flatten().flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter_map(|pid| {
            let read = |name: &str| std::fs::read(self.proc.join(pid.to_string()).join(name)).ok();
            if gone(&read("stat")?) {
                return None;
            }
            let guest = vm_of(&read("cmdline")?).or_else(|| container_of(&read("cgroup")?))?;
            Some((pid, guest))
        })
        .collect()
    }

    fn thaw(&self, pid: i32) {
        let Ok(groups) = std::fs::read_to_string(self.proc.join(pid.to_string()).join("cgroup")) else {
            return;
        };
        for path in groups.lines().filter_map(freezer_of) {
            let file = Path::new("/sys/fs/cgroup/freezer").join(path).join("freezer.state");
            if std::fs::read_to_string(&file).is_ok_and(|state| state.trim() != "THAWED") {
                let _ = std::fs::write(&file, "THAWED");
            }
        }
    }
}

fn container(guest: &Guest) -> Option<&String> {
    match guest {
        Guest::Container(id) => Some(id),
        Guest::Vm(_) => None,
    }
}

/// A process that has ended and waits for its parent (proc(5), the state after the last bracket).
fn gone(stat: &[u8]) -> bool {
    let end = stat.iter().rposition(|b| *b == b')').map_or(0, |at| at + 2);
    matches!(stat.get(end), Some(b'Z' | b'X' | b'x'))
}

/// libvirt starts QEMU with `-name guest=<domain>,…`; ours are called `amphi-<uuid>`.
fn vm_of(cmdline: &[u8]) -> Option<Guest> {
    let mut arguments = cmdline.split(|b| *b == 0);
    let program = arguments.next()?;
    program.windows(4).any(|w| w == b"qemu").then_some(())?;
    arguments.find(|argument| *argument == b"-name")?;
    let name = std::str::from_utf8(arguments.next()?).ok()?;
    let name = name.split(',').find_map(|part| part.strip_prefix("guest="))?;
    name.starts_with("amphi-").then(|| Guest::Vm(name.to_owned()))
}

/// Docker puts a container into `…/docker/<id>` (driver cgroupfs) or `…/docker-<id>.scope` (driver systemd).
fn container_of(cgroup: &[u8]) -> Option<Guest> {
    let text = std::str::from_utf8(cgroup).ok()?;
    let id = |part: &str| {
        let id = part.strip_prefix("docker-").map_or(part, |scope| scope.trim_end_matches(".scope"));
        (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| Guest::Container(id.to_owned()))
    };
    text.lines().filter(|line| line.contains("docker")).find_map(|line| line.split('/').find_map(id))
}

/// Version 1's freezer: `7:freezer:/docker/<id>`.
fn freezer_of(line: &str) -> Option<&str> {
    let mut parts = line.splitn(3, ':');
    let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
    controllers.split(',').any(|c| c == "freezer").then(|| path.trim_start_matches('/'))
}

/// By the name in Docker's own file of the container. None: it cannot be read.
fn is_ours(containers: &Path, id: &str) -> Option<bool> {
    #[derive(serde::Deserialize)]
    struct Config {
        #[serde(rename = "Name")]
        name: String,
    }
    let bytes = std::fs::read(containers.join(id).join("config.v2.json")).ok()?;
    let config: Config = serde_json::from_slice(&bytes).ok()?;
    Some(config.name.trim_start_matches('/').starts_with("amphi-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f2b0d8c6a1e4f2b0d8c6a1e4f2b0d8c6a1e4f2b0d8c6a1e4f2b0d8c6a1e4f2b";

    #[test]
    fn guests_are_told_from_all_else() {
        let vm = b"/usr/bin/qemu-system-x86_64\0-name\0guest=amphi-0198,debug-threads=on\0-S\0";
        assert_eq!(vm_of(vm), Some(Guest::Vm("amphi-0198".into())));
        for other in [
            b"/usr/bin/qemu-system-x86_64\0-name\0guest=other,debug-threads=on\0".as_slice(),
            b"/usr/bin/vim\0-name\0guest=amphi-0198\0",
            b"/usr/bin/qemu-img\0convert\0amphi-0198\0",
            b"",
        ] {
            assert_eq!(vm_of(other), None, "{}", String::from_utf8_lossy(other));
        }
        let in_container = Some(Guest::Container(ID.into()));
        for line in [format!("5:cpu:/docker/{ID}\n"), format!("0::/system.slice/docker-{ID}.scope\n")] {
            assert_eq!(container_of(line.as_bytes()), in_container, "{line}");
        }
        for line in
            ["0::/user.slice\n".to_owned(), "3:cpu:/docker/buildx\n".into(), format!("1:cpu:/lxc/{ID}\n")]
        {
            assert_eq!(container_of(line.as_bytes()), None, "{line}");
        }
        assert_eq!(freezer_of("7:freezer:/docker/ab"), Some("docker/ab"));
        assert_eq!(freezer_of("7:cpu,cpuacct:/docker/ab"), None);
        assert!(gone(b"12 (a) b) Z 1 2") && !gone(b"12 (Z) S 1 2"));
    }

    #[test]
    fn docker_s_own_file_says_whose_a_container_is() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| {
            std::fs::create_dir_all(dir.path().join(ID)).unwrap();
            let text = format!("{{\"ID\":\"{ID}\",\"Name\":\"{name}\",\"Driver\":\"overlay2\"}}");
            std::fs::write(dir.path().join(ID).join("config.v2.json"), text).unwrap();
        };
        assert_eq!(is_ours(dir.path(), ID), None);
        write("/amphi-0198-anchor");
        assert_eq!(is_ours(dir.path(), ID), Some(true));
        write("/web");
        assert_eq!(is_ours(dir.path(), ID), Some(false));
    }

    #[test]
    fn a_process_that_is_called_like_a_guest_is_ended_and_seen_to_be() {
        // A shell that calls itself what libvirt calls QEMU.
        let mut guest = std::process::Command::new("sh");
        std::os::unix::process::CommandExt::arg0(&mut guest, "qemu-system-test");
        guest.args(["-c", "read forever", "-name", "guest=amphi-fence-test"]);
        let mut guest = guest.stdin(std::process::Stdio::piped()).spawn().unwrap();
        let fence = Fence::new(Path::new("/nonexistent"));
        let mine = |all: Vec<(i32, Guest)>| all.into_iter().any(|(pid, _)| pid == guest.id() as i32);
        let deadline = Instant::now() + Duration::from_secs(10);
        while !mine(fence.processes()) {
            assert!(Instant::now() < deadline, "the guest is not seen");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(mine(fence.processes()), "looking is harmless");
        let _ = kill(Pid::from_raw(guest.id() as i32), Signal::SIGKILL);
        while mine(fence.processes()) {
            assert!(Instant::now() < deadline, "a dead process still counts");
            std::thread::sleep(Duration::from_millis(5));
        }
        guest.wait().unwrap();
    }
}
