//! What the engines of a host really hold, asked of themselves. Only looks.

use std::time::Duration;

use amphi_api::InstanceId;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::guest::DOCKER;
use super::stage::CONTROLLER;
use crate::lab::Lab;

const LIMIT: Duration = Duration::from_secs(20);

/// The engines of one host.
#[derive(Clone)]
pub struct Engines<'a> {
    pub lab: &'a Lab,
    pub host: String,
}

/// A logical volume.
#[derive(Clone, Debug)]
pub struct Lv {
    pub name: String,
    pub bytes: u64,
    pub tags: Vec<String>,
}

impl<'a> Engines<'a> {
    pub fn of(lab: &'a Lab, host: &str) -> Self {
        Self { lab, host: host.to_owned() }
    }

    fn run(&self, argv: &[&str]) -> Result<String> {
        let output = self.lab.exec(&self.host, argv, LIMIT)?;
        ensure!(
            output.ok(),
            "{}: {}: exit code {:?}: {}",
            self.host,
            argv.join(" "),
            output.code,
            output.stderr
        );
        Ok(output.stdout)
    }

    fn docker(&self, words: &[&str]) -> Result<String> {
        self.run(&[DOCKER.as_slice(), words].concat())
    }

    /// Names of the instance's containers; with `all`, those that do not run too.
    pub fn containers(&self, instance: InstanceId, all: bool) -> Result<Vec<String>> {
        let filter = format!("name=amphi-{instance}-");
        let words = ["ps", "--no-trunc", "--format", "{{.Names}}", "--filter", &filter];
        let text = self.docker(&[&words[..], if all { &["--all"] } else { &[] }].concat())?;
        Ok(lines(&text))
    }

    pub fn inspect(&self, container: &str) -> Result<Value> {
        let text = self.docker(&["inspect", container])?;
        let mut all: Vec<Value> = serde_json::from_str(&text).context("decode docker inspect")?;
        all.pop().with_context(|| format!("docker inspect {container} is empty"))
    }

    /// The container's first process, by the host's numbers.
    pub fn pid(&self, instance: InstanceId, member: &str) -> Result<i64> {
        let pid = self.inspect(&format!("amphi-{instance}-{member}"))?["State"]["Pid"].as_i64();
        pid.filter(|pid| *pid > 0).with_context(|| format!("member {member} of {instance} does not run"))
    }

    /// A kernel namespace of a process: `ipc:[4026532000]`.
    pub fn namespace(&self, pid: i64, kind: &str) -> Result<String> {
        Ok(self.run(&["readlink", &format!("/proc/{pid}/ns/{kind}")])?.trim().to_owned())
    }

    pub fn kill_9(&self, pid: i64) -> Result<()> {
        self.run(&["kill", "-9", &pid.to_string()]).map(drop)
    }

    /// Names of domains; with `all`, those that do not run too.
    pub fn domains(&self, all: bool) -> Result<Vec<String>> {
        let words = ["virsh", "--quiet", "--connect", "qemu:///system", "list", "--name"];
        Ok(lines(&self.run(&[&words[..], if all { &["--all"] } else { &[] }].concat())?))
    }

    /// The domain's QEMU process.
    pub fn qemu_pid(&self, instance: InstanceId) -> Result<i64> {
        let text = self.run(&["cat", &format!("/run/libvirt/qemu/amphi-{instance}.pid")])?;
        text.trim().parse().context("QEMU's pid")
    }

    /// The size of a disk as the domain has it, in bytes.
    pub fn disk_bytes(&self, instance: InstanceId, target: &str) -> Result<u64> {
        let domain = format!("amphi-{instance}");
        let words = ["virsh", "--quiet", "--connect", "qemu:///system", "domblkinfo", &domain, target];
        let text = self.run(&words)?;
        let line = text.lines().find_map(|l| l.strip_prefix("Capacity:"));
        line.and_then(|l| l.trim().parse().ok()).with_context(|| format!("no capacity: {text}"))
    }

    /// The target (`vdb`) of the domain's largest writable disk: the data volume.
    pub fn data_disk(&self, instance: InstanceId) -> Result<String> {
        let domain = format!("amphi-{instance}");
        let words = ["virsh", "--quiet", "--connect", "qemu:///system", "domblklist", &domain];
        let text = self.run(&words)?;
        let mut best = None;
        for target in text.lines().filter_map(|l| l.split_whitespace().next()) {
            let bytes = self.disk_bytes(instance, target)?;
            if best.as_ref().is_none_or(|(most, _)| bytes > *most) {
                best = Some((bytes, target.to_owned()));
            }
        }
        best.map(|(_, target)| target).with_context(|| format!("no disk: {text}"))
    }

    /// The logical volumes of the host's group.
    pub fn lvs(&self) -> Result<Vec<Lv>> {
        let text = self.run(&[
            "lvs",
            "--driverloaded",
            "n",
            "--noheadings",
            "--units",
            "b",
            "--nosuffix",
            "--separator",
            "|",
            "-o",
            "lv_name,lv_size,lv_tags",
            "amphi",
        ])?;
        text.lines()
            .filter(|l| !l.trim().is_empty())
            .map(|line| {
                let mut columns = line.trim().split('|');
                let mut next = || columns.next().unwrap_or_default().to_owned();
                let (name, bytes, tags) = (next(), next(), next());
                let bytes = bytes.parse().with_context(|| format!("size of {name}"))?;
                let tags = tags.split(',').filter(|t| !t.is_empty()).map(str::to_owned).collect();
                Ok(Lv { name, bytes, tags })
            })
            .collect()
    }

    pub fn lv(&self, name: &str) -> Result<Lv> {
        let lvs = self.lvs()?;
        let names: Vec<&str> = lvs.iter().map(|lv| lv.name.as_str()).collect();
        let text = format!("no LV {name} on {}, only {}", self.host, names.join(", "));
        lvs.into_iter().find(|lv| lv.name == name).context(text)
    }

    /// The logical ports that are plugged in here.
    pub fn plugged(&self) -> Result<Vec<String>> {
        let text = self.run(&[
            "ovs-vsctl",
            "--timeout=10",
            "--bare",
            "--columns=external_ids",
            "list",
            "Interface",
        ])?;
        let words = text.split_whitespace().filter_map(|w| w.strip_prefix("iface-id="));
        Ok(words.map(|w| w.trim_matches(['"', ',']).to_owned()).collect())
    }

    /// Free bytes of the file system that holds the agent's and Docker's files.
    pub fn disk_free(&self) -> Result<u64> {
        let text = self.run(&["df", "--block-size=1", "--output=avail", "/var/lib/amphi"])?;
        text.lines().last().and_then(|l| l.trim().parse().ok()).with_context(|| format!("df says: {text}"))
    }
}

/// The chassis on which OVN has a logical port, by name; empty when none.
pub fn chassis_of(lab: &Lab, port: &str) -> Result<String> {
    let ask = |words: &[&str]| {
        let argv = [&["ovn-sbctl", "--timeout=10", "--no-leader-only", "--bare"], words].concat();
        lab.run(CONTROLLER, &argv).map(|text| text.trim().trim_matches('"').to_owned())
    };
    let chassis = ask(&["--columns=chassis", "find", "Port_Binding", &format!("logical_port={port}")])?;
    if chassis.is_empty() {
        return Ok(chassis);
    }
    ask(&["get", "Chassis", &chassis, "name"])
}

pub fn lines(text: &str) -> Vec<String> {
    text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_owned).collect()
}
