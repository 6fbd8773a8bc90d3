//! What the daemons take while 50 sets are at rest: CPU over a minute, and resident memory.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};

use super::{Bench, Figure, HOST, runs, set};
use crate::lab::Lab;

const SETS: usize = 50;
/// How long the rest is watched.
const REST: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(600);
const CONTROLLER: &str = "controller";
const CONFIG: &str = "/etc/amphi/controller.toml";

/// Lets one host of few CPUs promise enough of them for [`SETS`].
pub fn widen(lab: &Lab) -> Result<()> {
    let path = lab.file(CONTROLLER, Path::new(CONFIG))?;
    let text = std::fs::read_to_string(&path).context("read the controller's settings")?;
    std::fs::write(&path, format!("{text}cpu_overcommit = 128\n"))
        .context("write the controller's settings")?;
    lab.kill(CONTROLLER, "controller", Signal::SIGKILL)?;
    lab.start(CONTROLLER, "controller")
}

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let began = Instant::now();
    bench.runtime.block_on(async {
        let mut ordered = Vec::new();
        for at in 0..SETS {
            ordered.push(bench.client.create_instance(&set(&format!("rest-{at}"), false, 32)?).await?.id);
        }
        for id in ordered {
            let left = LIMIT.saturating_sub(began.elapsed());
            bench.client.wait_instance(id, runs, left, |_| ()).await.context("a set at rest should run")?;
        }
        anyhow::Ok(())
    })?;
    let all = began.elapsed();
    println!("  {SETS} sets run after {:.1} s", all.as_secs_f32());
    let (agent, controller) =
        (Process::of(bench.lab, HOST, "hostsrv")?, Process::of(bench.lab, CONTROLLER, "controller")?);
    // The dust of the last starts settles within a look of every loop.
    let quiet = Instant::now() + Duration::from_secs(15);
    while Instant::now() < quiet {
        std::thread::sleep(Duration::from_secs(1));
    }
    let (before, start) = (agent.cpu()?, Instant::now());
    while start.elapsed() < REST {
        std::thread::sleep(Duration::from_secs(1));
    }
    let percent = (agent.cpu()? - before) / start.elapsed().as_secs_f64() * 100.0;
    Ok(vec![
        Figure { name: "sets_50_seconds", value: all.as_secs_f64(), goal: "" },
        Figure { name: "hostsrv_rest_cpu_percent", value: percent, goal: "below 1" },
        Figure { name: "hostsrv_rest_rss_mb", value: agent.memory_mb("VmRSS:")?, goal: "below 40" },
        Figure { name: "hostsrv_rest_rss_anon_mb", value: agent.memory_mb("RssAnon:")?, goal: "" },
        Figure { name: "controller_rss_mb", value: controller.memory_mb("VmRSS:")?, goal: "below 60" },
    ])
}

/// A daemon of the lab.
pub(super) struct Process<'a> {
    lab: &'a Lab,
    node: &'static str,
    pid: i32,
}

impl<'a> Process<'a> {
    pub(super) fn of(lab: &'a Lab, node: &'static str, daemon: &str) -> Result<Self> {
        let status = lab.status(node)?;
        let unit = status.units.iter().find(|u| u.name == daemon);
        let pid = unit.and_then(|u| u.pid).with_context(|| format!("{daemon} does not run on {node}"))?;
        Ok(Self { lab, node, pid })
    }

    fn read(&self, file: &str) -> Result<String> {
        self.lab.run(self.node, &["cat", &format!("/proc/{}/{file}", self.pid)])
    }

    /// Seconds of CPU so far, its own and the kernel's for it, with those of ended children.
    pub(super) fn cpu(&self) -> Result<f64> {
        let per_second = sysconf(SysconfVar::CLK_TCK).context("clock ticks")?.context("clock ticks")?;
        Ok(ticks(&self.read("stat")?)? as f64 / per_second as f64)
    }

    /// A line of /proc/PID/status (proc(5)), in millions of bytes.
    fn memory_mb(&self, line: &'static str) -> Result<f64> {
        let status = self.read("status")?;
        let value = status.lines().find_map(|l| l.strip_prefix(line)).context(line)?;
        let kib: f64 = value.trim().trim_end_matches(" kB").parse().context(line)?;
        Ok(kib * 1024.0 / 1e6)
    }
}

/// utime, stime, cutime and cstime of a line of /proc/PID/stat (proc(5)).
fn ticks(stat: &str) -> Result<u64> {
    // The name in brackets may hold spaces.
    let (_, rest) = stat.rsplit_once(") ").context("no name in stat")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    ensure!(fields.len() > 14, "too few fields in stat: {stat}");
    fields[11..15].iter().map(|f| f.parse::<u64>().context("ticks")).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_stat() {
        let stat = "42 (a b) c) S 1 42 42 0 -1 4194304 100 0 0 0 7 5 3 1 20 0 4 0 100 0 0";
        assert_eq!(ticks(stat).unwrap(), 16);
        assert!(ticks("42 (x) S 1").is_err());
    }
}
