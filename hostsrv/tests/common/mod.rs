//! A private host for tests against real engines: mount, network, process and name namespaces of
//! its own, without an uplink, on private directories. The test binary runs itself again inside;
//! its end takes every daemon and container with it.
//!
//! ```ignore
//! #[test]
//! fn a_story() {
//!     common::on_private_host("a_story", |host| {
//!         host.start_switch();
//!         host.start_docker();
//!         host.docker(&["info"]);
//!     });
//! }
//! ```

#![allow(dead_code)] // Each test binary uses its own part.

pub mod engines;
pub mod namespace;
pub mod plugin;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

pub use namespace::on_private_host;

/// For what a healthy but busy machine does in a second or two.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// The host as seen from inside its namespaces.
pub struct PrivateHost {
    /// A real file system; gone with the test.
    pub dir: PathBuf,
    /// Of this host's containers; the caller outside removes what is left of it.
    cgroup: String,
    daemons: Vec<(&'static str, Child)>,
}

impl PrivateHost {
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Starts a program that stays; its output goes to NAME.log, shown when the test fails.
    pub fn start(&mut self, name: &'static str, command: &mut Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{name}.log")));
        let log = log.expect("a log file");
        let child = command
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        self.daemons.push((name, child));
    }

    /// SIGKILL.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.take(name);
        child.kill().expect("killable");
        child.wait().expect("waitable");
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, name: &str) {
        let mut child = self.take(name);
        let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("killable");
        eventually(&format!("{name} ends"), || child.try_wait().expect("waitable").ok_or("still running"));
    }

    fn take(&mut self, name: &str) -> Child {
        let position = self.daemons.iter().position(|(daemon, _)| *daemon == name).expect("a running daemon");
        self.daemons.remove(position).1
    }

    /// Fails at once when the daemon has ended, instead of at the deadline.
    pub fn assert_alive(&mut self, name: &str) {
        let (_, child) =
            self.daemons.iter_mut().find(|(daemon, _)| *daemon == name).expect("a started daemon");
        if let Some(status) = child.try_wait().expect("waitable") {
            panic!("{name} has ended: {status}");
        }
    }
}

/// Runs a program to its end; answers its standard output, panics with everything on failure.
pub fn run(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(output.status.success(), "{program} {args:?}: {}\n{}", output.status, both(&output));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Runs a program that must fail; answers what it said.
pub fn run_refused(program: &str, args: &[&str]) -> String {
    let output = output(program, args);
    assert!(!output.status.success(), "{program} {args:?} should have failed:\n{}", both(&output));
    both(&output)
}

fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program}: {error}"))
}

fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Polls until `look` answers Ok; panics at the deadline with what it saw last.
pub fn eventually<T, S: Debug>(what: &str, mut look: impl FnMut() -> Result<T, S>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(seen) if Instant::now() > end => panic!("{what}: not within {DEADLINE:?}; saw {seen:?}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

pub fn exists(path: impl AsRef<Path>) -> Result<(), String> {
    if path.as_ref().exists() { Ok(()) } else { Err(format!("no {}", path.as_ref().display())) }
}
