//! The tools that people have, outside of any lab: commands that succeed or are refused, and a dockerd of a test's own with its
//! client. What goes wrong ends the test with what was said.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(60);

/// What a command leaves behind.
pub fn output(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

/// What a command prints, when it succeeds.
pub fn done(command: &mut Command) -> String {
    let out = output(command);
    let (said, wrong) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{command:?}: {}\n{said}{wrong}", out.status);
    said.trim().to_owned()
}

/// What a command says when it is refused.
pub fn refused(command: &mut Command) -> String {
    let out = output(command);
    assert!(!out.status.success(), "{command:?} was to be refused");
    String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout)
}

/// A dockerd of the test's own: without a bridge, and nothing of the machine's.
pub struct Docker {
    daemon: Child,
    dir: PathBuf,
}

impl Docker {
    pub fn start() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        // Short: a socket lies there.
        let dir = PathBuf::from(format!("/tmp/docker-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let at = |name: &str| dir.join(name).display().to_string();
        let log = std::fs::File::create(dir.join("log")).expect("a log");
        std::fs::write(dir.join("daemon.json"), "{}").expect("a file");
        let daemon = Command::new("/usr/sbin/dockerd")
            .args(["-H", &format!("unix://{}", at("docker.sock")), "--bridge=none", "--iptables=false"])
            .args(["--data-root", &at("data"), "--exec-root", &at("exec"), "--pidfile", &at("pid")])
            .args(["--config-file", &at("daemon.json")])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        let docker = Self { daemon: daemon.expect("dockerd starts"), dir };
        let end = Instant::now() + PATIENCE;
        while !output(&mut docker.run(&["version"])).status.success() {
            let log = std::fs::read_to_string(docker.dir.join("log")).unwrap_or_default();
            assert!(Instant::now() < end, "dockerd does not answer: {log}");
            std::thread::sleep(Duration::from_millis(100));
        }
        docker
    }

    /// A command of its client.
    pub fn run(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("--config").arg(self.dir.join("client"));
        command.args(["-H", &format!("unix://{}/docker.sock", self.dir.display())]).args(args);
        command
    }

    /// `registry`: its address.
    pub fn login(&self, registry: &str, password: &str) -> Command {
        let mut command = Command::new("sh");
        let client = self.dir.join("client").display().to_string();
        let line = "printf %s \"$1\" | docker --config \"$2\" login -u admin --password-stdin \"$3\"";
        command.args(["-c", line, "sh", password, &client, registry]);
        command.env("DOCKER_HOST", format!("unix://{}/docker.sock", self.dir.display()));
        command
    }

    /// The id of the image that an archive holds.
    pub fn load(&self, archive: &Path) -> String {
        let said = done(self.run(&["load", "-i"]).arg(archive));
        let id = said.lines().find_map(|line| line.strip_prefix("Loaded image ID: "));
        id.unwrap_or_else(|| panic!("docker load: {said}")).to_owned()
    }

    pub fn image_id(&self, image: &str) -> String {
        done(&mut self.run(&["image", "inspect", "--format", "{{.Id}}", image]))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.daemon.id()).unwrap_or(i32::MAX));
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(20);
        while matches!(self.daemon.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
