//! A real ovsdb-server in a directory of its own, reachable over a unix socket only.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use amphi_ovsdb::{Client, Options};

pub const VSWITCH: &str = "/usr/share/openvswitch/vswitch.ovsschema";
pub const NORTHBOUND: &str = "/usr/share/ovn/ovn-nb.ovsschema";
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct Server {
    dir: tempfile::TempDir,
    child: Option<Child>,
}

impl Server {
    pub fn start(schema: &str) -> Server {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let database = dir.path().join("db");
        let created = Command::new("ovsdb-tool").arg("create").arg(&database).arg(schema).status();
        assert!(created.expect("ovsdb-tool runs").success());
        let mut server = Server { dir, child: None };
        server.resume();
        server
    }

    pub fn resume(&mut self) {
        let path = |name: &str| self.dir.path().join(name);
        let log = std::fs::File::options().create(true).append(true).open(path("log")).expect("a log file");
        let child = Command::new("ovsdb-server")
            .arg(format!("--remote=punix:{}", path("sock").display()))
            .arg(format!("--unixctl={}", path("ctl").display()))
            .arg(path("db"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("ovsdb-server runs"));
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("killable");
            child.wait().expect("waitable");
        }
    }

    pub fn endpoint(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    pub fn client(&self, database: &str) -> Client {
        Client::new(&self.endpoint(), database, options()).expect("a valid endpoint")
    }

    fn socket(&self) -> PathBuf {
        Path::new(self.dir.path()).join("sock")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

pub fn options() -> Options {
    Options { timeout: DEADLINE, backoff: Duration::from_millis(20), ..Options::default() }
}
