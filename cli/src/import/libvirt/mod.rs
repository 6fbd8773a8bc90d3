//! A libvirt host as a source, asked by `virsh`: descriptions, leases, volumes' bytes. Owns the runs of `virsh`, bounded.
//! Refuses to read the disks of a domain that runs.

mod domain;

use super::bytes::{Flow, pieces};
use super::machine::{Disk, Machine};
use super::plan::{Bytes, Fate, Finding};
use crate::failure::Failure;
use domain::Place;
use std::net::IpAddr;
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::{Child, Command};

/// Of one question.
const LIMIT: Duration = Duration::from_secs(60);
/// From the order to shut down until a guest is off.
const SHUTDOWN: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(500);

/// A connection's URI, asked anew each time.
pub struct Virsh {
    uri: String,
}

impl Virsh {
    pub fn new(uri: &str) -> Result<Self, Failure> {
        let plain =
            !uri.is_empty() && !uri.starts_with('-') && !uri.chars().any(|c| c.is_control() || c == ' ');
        if !plain {
            return Err(Failure::new(2, format!("'{uri}' is no libvirt URI: qemu+ssh://root@HOST/system")));
        }
        Ok(Self { uri: uri.to_owned() })
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &self.uri]).args(words);
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command
    }

    fn spawn(&self, words: &[&str]) -> Result<Child, Failure> {
        self.command(words)
            .spawn()
            .map_err(|e| Failure::new(2, format!("virsh: {e}")).next("install libvirt-clients"))
    }

    async fn ask(&self, words: &[&str]) -> Result<String, Failure> {
        let what = format!("virsh {}", words.join(" "));
        let ended = tokio::time::timeout(LIMIT, self.spawn(words)?.wait_with_output()).await;
        let ended =
            ended.map_err(|_| Failure::new(5, format!("{what}: no answer within {} s", LIMIT.as_secs())))?;
        let ended = ended.map_err(|e| Failure::new(1, format!("{what}: {e}")))?;
        if !ended.status.success() {
            let said = String::from_utf8_lossy(&ended.stderr);
            return Err(Failure::new(1, format!("{what}: {}", said.trim().trim_start_matches("error: "))));
        }
        Ok(String::from_utf8_lossy(&ended.stdout).into_owned())
    }

    async fn is_off(&self, domain: &str) -> Result<bool, Failure> {
        Ok(self.ask(&["domstate", "--domain", domain]).await?.trim() == "shut off")
    }

    /// What of the domain can come over.
    pub async fn machine(&self, name: &str, shutdown: bool) -> Result<Machine, Failure> {
        let text = self.ask(&["dumpxml", "--inactive", "--domain", name]).await?;
        let read = domain::read(&text).map_err(|why| Failure::new(4, format!("domain {name}: {why}")))?;
        let off = self.is_off(name).await?;
        let mut findings = read.findings.clone();
        if !off {
            let (fate, why) = match shutdown {
                true => (Fate::Changed, "runs: it is shut down at the source before its disks are read"),
                false => (
                    Fate::Blocked,
                    "runs: its disks hold still only when it is off; shut it down, or say --shutdown",
                ),
            };
            findings.push(Finding::new(fate, "domain", name, why));
        }
        let mut disks = Vec::new();
        for disk in &read.disks {
            match self.disk(name, disk).await? {
                Ok(found) => disks.push(found),
                Err(why) => findings.push(Finding::new(Fate::Blocked, "disk", &disk.target, why)),
            }
        }
        let mut cards = read.cards.clone();
        let told = if off { Vec::new() } else { self.addresses(name).await };
        for card in &mut cards {
            let own = told.iter().filter(|(mac, _)| card.mac.as_ref() == Some(mac));
            card.addresses = own.map(|(_, address)| *address).take(1).collect();
        }
        Ok(Machine {
            name: read.name,
            mark: format!("libvirt:{}", read.uuid),
            vcpus: read.vcpus,
            memory_mib: read.memory_mib,
            disks,
            cards,
            stopped: off,
            findings,
        })
    }

    /// The volume behind a disk, or why it cannot be read.
    async fn disk(&self, domain: &str, disk: &domain::Disk) -> Result<Result<Disk, String>, Failure> {
        let (pool, volume) = match &disk.place {
            Place::Volume { pool, volume } => (pool.clone(), volume.clone()),
            Place::Path(path) => {
                let lies = |e: Failure| {
                    format!(
                        "{path} lies in no pool of the host ({}): make a pool over its directory, virsh pool-create-as",
                        e.what
                    )
                };
                let pool = match self.ask(&["vol-pool", "--vol", path]).await {
                    Ok(pool) => pool.trim().to_owned(),
                    Err(error) => return Ok(Err(lies(error))),
                };
                match self.ask(&["vol-name", "--vol", path]).await {
                    Ok(volume) => (pool, volume.trim().to_owned()),
                    Err(error) => return Ok(Err(lies(error))),
                }
            }
            Place::Nowhere => return Ok(Err("lies nowhere".to_owned())),
        };
        let text = self.ask(&["vol-dumpxml", "--pool", &pool, "--vol", &volume]).await?;
        let document =
            domain::document(&text).map_err(|why| Failure::new(4, format!("volume {volume}: {why}")))?;
        let of = |name: &str| document.root_element().descendants().find(|n| n.has_tag_name(name));
        if of("backingStore").is_some_and(|b| b.children().any(|c| c.is_element())) {
            let why = "has a backing file: flatten it first (virsh blockpull, or qemu-img convert)";
            return Ok(Err(why.to_owned()));
        }
        let capacity = of("capacity").and_then(|n| n.text()?.trim().parse().ok()).unwrap_or_default();
        let seen = of("format").and_then(|n| n.attribute("type")).unwrap_or("raw");
        // Where the host takes a qcow2 file for raw, the guest sees the file's own bytes: nobody means that.
        if matches!(seen, "raw" | "qcow2" | "vmdk" | "vdi") && seen != disk.format {
            return Ok(Err(format!("is {} to its domain and {seen} to its pool", disk.format)));
        }
        let bytes =
            Bytes::LibvirtVolume { pool, volume, format: disk.format.clone(), domain: domain.to_owned() };
        Ok(Ok(Disk {
            name: format!("{domain}-{}", disk.target),
            bytes,
            format: disk.format.clone(),
            capacity,
        }))
    }

    /// MACs and addresses as the host's leases tell, then its neighbours; none where nobody knows.
    async fn addresses(&self, domain: &str) -> Vec<(String, IpAddr)> {
        for source in ["agent", "lease", "arp"] {
            let told = self.ask(&["domifaddr", "--domain", domain, "--source", source]).await;
            let known = leases(&told.unwrap_or_default());
            if !known.is_empty() {
                return known;
            }
        }
        Vec::new()
    }

    /// Shuts the domain down where it runs and that was wished for.
    pub async fn hold_still(&self, domain: &str, shutdown: bool) -> Result<(), Failure> {
        if self.is_off(domain).await? {
            return Ok(());
        }
        if !shutdown {
            let what = format!("domain {domain} runs: its disks hold still only when it is off");
            return Err(Failure::new(4, what).next("shut it down, or plan anew with --shutdown"));
        }
        self.ask(&["shutdown", "--domain", domain]).await?;
        let end = Instant::now() + SHUTDOWN;
        while !self.is_off(domain).await? {
            if Instant::now() > end {
                let what = format!("domain {domain} is not off within {} s of the order", SHUTDOWN.as_secs());
                return Err(Failure::new(5, what).next("look at its console, and run the plan again"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// A volume's bytes as they come.
    pub async fn flow(&self, pool: &str, volume: &str) -> Result<Flow, Failure> {
        let words = ["vol-download", "--pool", pool, "--vol", volume, "--file", "/dev/stdout"];
        let mut child = self.spawn(&words)?;
        let none = || Failure::new(1, "virsh: no output");
        let (stdout, mut stderr) =
            (child.stdout.take().ok_or_else(none)?, child.stderr.take().ok_or_else(none)?);
        let bytes = pieces(stdout, u64::MAX);
        // Its end is part of its bytes: one that failed has not said all.
        let end = futures_util::stream::once(async move {
            let mut said = String::new();
            let read = tokio::io::AsyncReadExt::read_to_string(&mut stderr, &mut said).await;
            let status = child.wait().await?;
            match (status.success(), read) {
                (true, _) => Ok(bytes::Bytes::new()),
                (false, _) => Err(std::io::Error::other(format!("virsh vol-download: {}", said.trim()))),
            }
        });
        Ok(Flow {
            pieces: Box::pin(futures_util::StreamExt::chain(bytes, end)),
            length: None,
            expected: None,
        })
    }
}

/// `vnet0  52:54:00:6b:3c:58  ipv4  192.168.122.17/24`, one line each.
fn leases(text: &str) -> Vec<(String, IpAddr)> {
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (mac, _, net) = (words.next()?, words.next()?, words.next()?);
        let address: IpAddr = net.split('/').next()?.parse().ok()?;
        (mac.len() == 17 && !address.is_loopback()).then(|| (mac.to_ascii_lowercase(), address))
    };
    text.lines().filter_map(line).filter(|(_, address)| address.is_ipv4()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_as_virsh_tells_them() {
        let text = "\
 lo         00:00:00:00:00:00    ipv4         127.0.0.1/8
 vnet0      52:54:00:6B:3C:58    ipv4         192.168.122.17/24
 -          -                    ipv6         fe80::5054:ff:fe6b:3c58/64
";
        assert_eq!(leases(text), [("52:54:00:6b:3c:58".to_owned(), "192.168.122.17".parse().unwrap())]);
        assert!(Virsh::new("--help").is_err() && Virsh::new("test:///default").is_ok());
    }
}
