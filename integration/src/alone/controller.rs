//! The controller's process: started with settings and a directory of its own, ended and swept away with its owner.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// For closing its store; then it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// A controller of our own; ends, and its records with it, when this is dropped.
pub struct Controller {
    child: Child,
    folder: PathBuf,
    url: String,
}

impl Controller {
    /// Starts the `amphi-controller` that lies in `programs`, in a new directory beside that one named after `purpose`.
    pub fn start(programs: &Path, purpose: &str) -> Result<Self> {
        let folder = programs.with_file_name(format!("{purpose}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
        let (listen, hosts) = (free_port()?, free_port()?);
        let state = folder.join("state");
        // Nobody listens at OVN's addresses: what waits for it is tried again and holds up nothing else.
        let nobody = folder.join("nobody.sock");
        let mut text = String::new();
        writeln!(text, "state_dir = {state:?}\nlisten = \"127.0.0.1:{listen}\"")?;
        writeln!(text, "hosts_listen = \"127.0.0.1:{hosts}\"\nhosts_url = \"https://127.0.0.1:{hosts}\"")?;
        writeln!(text, "ovn_nb = \"unix:{0}\"\novn_sb = \"unix:{0}\"", nobody.display())?;
        let config = folder.join("controller.toml");
        std::fs::write(&config, text).context("write the settings")?;
        let log = std::fs::File::create(folder.join("log")).context("make the log")?;
        let child = Command::new(programs.join("amphi-controller"))
            .arg("--config")
            .arg(&config)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("start amphi-controller")?;
        let mut own = Self { child, folder, url: format!("http://127.0.0.1:{listen}") };
        let mut line = String::new();
        let stdout = own.child.stdout.take().context("the controller's output")?;
        BufReader::new(stdout).read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the controller did not start: {}", own.log()?);
        }
        Ok(own)
    }

    /// Of its native and its OpenStack faces.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where its records lie; for further files of the same purpose too.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A file of its state: `admin-token`, `admin-password`, `ca/ca.pem`.
    pub fn read(&self, name: &str) -> Result<String> {
        let path = self.folder.join("state").join(name);
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim().to_owned())
    }

    /// Warnings and worse.
    pub fn log(&self) -> Result<String> {
        std::fs::read_to_string(self.folder.join("log")).context("read the controller's log")
    }

    /// Whether its process still runs.
    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Resident, in MiB.
    pub fn resident_mib(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .context("the controller's figures")?;
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
        Ok(kib.context("no VmRSS")?.parse::<f64>().context("VmRSS")? / 1024.0)
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
        }
        let end = std::time::Instant::now() + GRACE;
        while self.runs() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0").context("find a free port")?.local_addr()?.port())
}
