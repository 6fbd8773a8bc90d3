//! Owns a host for these tests: real daemons in namespaces of their own, with private state below one folder, all of
//! it gone with this value. Refuses to touch the machine's own libvirt and Open vSwitch.

use std::fmt::Debug;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs as the first process of the namespaces. `LAB` is the folder.
const INIT: &str = r#"
set -e
mount -t proc proc /proc
mkdir -p "$LAB/ns/etc/libvirt" "$LAB/sock"
cp -a /etc/libvirt/. "$LAB/ns/etc/libvirt/"
rm -rf "$LAB/ns/etc/libvirt/qemu/networks/autostart"
for d in /run /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt \
         /etc/openvswitch /var/lib/openvswitch /var/log/openvswitch; do
  mkdir -p "$LAB/ns$d" "$d"
  mount --bind "$LAB/ns$d" "$d"
done
# libvirt would probe KVM and hang where it is broken; TCG is what is tested. What hides the device has to be unusable
# even for root: libvirt takes a /dev/null in its place for a KVM that may work by now, and probes QEMU a dozen times
# at each definition, 5 s of it. Its own mount namespaces cannot carry such a file along.
if [ -e /dev/kvm ]; then
  : > /run/no-kvm
  mount --bind /run/no-kvm /dev/kvm
  mount -o remount,bind,ro /dev/kvm
fi
echo 'namespaces = []' >> /etc/libvirt/qemu.conf
# The stage may lie where only root gets in, as a checkout below /root does; the lab's hosts keep Debian's own user.
printf 'user = "root"\ngroup = "root"\n' >> /etc/libvirt/qemu.conf
ip link set lo up
cat >> /etc/libvirt/libvirtd.conf <<CONF
unix_sock_dir = "$LAB/sock"
auth_unix_rw = "none"
log_outputs = "3:file:$LAB/libvirtd.log"
CONF
virtlogd -d
libvirtd -d
touch "$LAB/up"
while :; do sleep 3600 & wait; done
"#;

pub struct Host {
    child: Child,
    folder: tempfile::TempDir,
}

impl Host {
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("vm").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        open_to_pass(folder.path());
        let log = std::fs::File::create(folder.path().join("init.log")).unwrap();
        let child = Command::new("unshare")
            .args([
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
            ])
            .args(["sh", "-c", INIT])
            .env("LAB", folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let host = Self { child, folder };
        let (up, log) = (host.path("up"), host.path("init.log"));
        until("the host's daemons", Duration::from_secs(60), || async {
            if up.exists() { Ok(()) } else { Err(std::fs::read_to_string(&log).unwrap_or_default()) }
        })
        .await;
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.path("sock/libvirt-sock").display())
    }

    /// Runs a shell command inside; its standard output.
    pub fn run(&self, script: &str) -> String {
        let output = self.command(script).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        assert!(output.status.success(), "{script}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    pub fn command(&self, script: &str) -> Command {
        let unshare = self.child.id();
        let children = format!("/proc/{unshare}/task/{unshare}/children");
        let first = std::fs::read_to_string(children).unwrap();
        let mut command = Command::new("nsenter");
        command.args(["-t", first.trim(), "-m", "-p", "-n", "-i", "sh", "-c", script]);
        command.stdin(Stdio::null());
        command
    }

    pub async fn restart_libvirtd(&self) {
        self.run("kill $(cat /run/libvirtd.pid)");
        until("libvirtd's end", Duration::from_secs(20), || async {
            let left = self.run("pgrep -x libvirtd || true");
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
        self.run("libvirtd -d");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // With `unshare` its child dies, and with that first process all others of the namespaces.
        let _ended = self.child.kill().and_then(|()| self.child.wait());
    }
}

/// QEMU's own user has to pass through.
pub fn open_to_pass(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711)).unwrap();
}

/// Waits for an `Ok`; at the deadline panics with what was seen last.
pub async fn until<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if Instant::now() > deadline => {
                panic!("{what}: not within {} s; seen last: {seen:#?}", limit.as_secs())
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A loop device over a file of `bytes`.
pub struct Loop {
    pub device: PathBuf,
    file: PathBuf,
}

impl Loop {
    pub fn new(file: PathBuf, bytes: u64) -> Self {
        std::fs::File::create(&file).unwrap().set_len(bytes).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Self { device: String::from_utf8(output.stdout).unwrap().trim().into(), file }
    }

    pub fn grow(&self, bytes: u64) {
        std::fs::File::options().write(true).open(&self.file).unwrap().set_len(bytes).unwrap();
        let status = Command::new("losetup").arg("--set-capacity").arg(&self.device).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _detached = Command::new("losetup").arg("--detach").arg(&self.device).status();
    }
}
