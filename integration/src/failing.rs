//! A lab of three hosts whose instances lose theirs: what the failover stories and their bench share. The third host
//! never fails; from a set on it everything else is watched.

use std::path::Path;
use std::time::Duration;

use amphi_api::client::{Client, Heard};
use amphi_api::failover::{Failover, FailoverPhase, FailoverTerms};
use amphi_api::host::{Host, HostState};
use amphi_api::instance::{BodySpec, Instance, InstanceCreate, InstanceNetwork, InstanceState, VmSpec};
use amphi_api::set::{MemberSpec, SetSpec};
use amphi_api::streams::{ExecSpec, FromBody};
use amphi_api::{FailoverId, InstanceId};
use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::lab::{Lab, Layout, UnitStatus, UpOptions};
use crate::probe::{Probe, uptime_ms};
use crate::wait::{Seen, seen, until};

/// The host from which the others are watched.
pub const PEER: &str = "h3";
/// The set on it, and where it is called.
const WATCHER: &str = "watcher";
const WATCHER_ADDRESS: &str = "10.7.0.250";
const NET: &str = "blue";
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
/// Longer than anything takes that works.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Fails a host over, and starts a set, on a busy machine.
const FAILED_OVER: Duration = Duration::from_secs(90);
/// What one more address adds to that: a VM without hardware's help boots for ten seconds of a CPU.
const EACH: Duration = Duration::from_secs(5);

pub struct Stage {
    pub lab: Lab,
    pub client: Client,
    runtime: Runtime,
}

/// What was measured of one power cut.
#[derive(Clone, Debug)]
pub struct Outage {
    /// When it began, in milliseconds since the machine's boot.
    pub cut: u64,
    /// The same by the clock that records go by.
    pub cut_at: jiff::Timestamp,
    /// Milliseconds from there until each address answered.
    pub answered: Vec<u64>,
    pub failover: Failover,
}

impl Stage {
    /// `images`: where `make images` has put them.
    pub fn up(
        layout: Layout,
        images: &Path,
        program: &Path,
        hosts: u8,
        unit: impl FnMut(&UnitStatus),
    ) -> Result<Self> {
        Self::up_with(&UpOptions::new(layout, program.to_owned(), hosts), images, unit)
    }

    pub fn up_with(options: &UpOptions, images: &Path, unit: impl FnMut(&UnitStatus)) -> Result<Self> {
        let hosts = options.hosts;
        let lab = Lab::up(options, unit)?;
        let client = crate::run::client(&options.layout)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stage = Self { lab, client, runtime };
        for number in 1..=hosts {
            stage.host_in(&format!("h{number}"), |h| h.state == HostState::Up)?;
        }
        stage.prepare(images)?;
        Ok(stage)
    }

    pub fn ask<T>(
        &self,
        answer: impl Future<Output = Result<T, amphi_api::client::ClientError>>,
    ) -> Result<T> {
        Ok(self.runtime.block_on(answer)?)
    }

    /// What a command says in a member; its exit code has to be 0.
    pub fn inside(&self, id: InstanceId, member: &str, script: &str) -> Result<String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let spec = ExecSpec { member: Some(member.to_owned()), command, ..ExecSpec::default() };
        let play = async {
            let (_speaker, mut listener) = self.client.exec(id, &spec).await?.split();
            let mut text = Vec::new();
            loop {
                match listener.next().await? {
                    Some(Heard::Output(_, bytes)) => text.extend_from_slice(&bytes),
                    Some(Heard::Word(FromBody::Opened)) => {}
                    Some(Heard::Word(FromBody::Ended { exit_code, .. })) => return Ok(Ok((text, exit_code))),
                    Some(Heard::Word(FromBody::Failed { code, message })) => {
                        return Ok(Err(format!("{code}: {message}")));
                    }
                    None => return Ok(Err("it was cut off".to_owned())),
                }
            }
        };
        let (text, code) = match self.ask(play)? {
            Ok(done) => done,
            Err(why) => bail!("{script}: {why}"),
        };
        let text = String::from_utf8_lossy(&text).trim().to_owned();
        ensure!(code == Some(0), "{script}: {code:?}: {text}");
        Ok(text)
    }

    /// A page on port 80, as the only member of another instance sees it.
    pub fn serves(&self, peer: InstanceId, address: &str, page: &str) -> Result<()> {
        until(&format!("http://{address}/ answers"), PATIENCE, || {
            // A static busybox's wget is not to be trusted with names, nor with much else.
            let ask = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80 | tail -n 1");
            let said = self.inside(peer, "only", &ask)?;
            Ok(seen(said == page, || said))
        })
    }

    /// A network that lets ping in, and images of both kinds.
    fn prepare(&self, images: &Path) -> Result<()> {
        let network = serde_json::from_value(json!({"name": NET, "subnet": {"cidr": "10.7.0.0/24"}}))?;
        self.ask(self.client.create_network(&network))?;
        let group = serde_json::from_value(json!({"name": NET, "rules": [{"protocol": "icmp"}]}))?;
        self.ask(self.client.create_security_group(&group))?;
        let busybox = json!({"name": "busybox", "format": "docker-archive"});
        self.image(busybox, &[("archive", images.join("busybox.tar"))])?;
        let vm = [("kernel", images.join("vm-kernel")), ("initramfs", images.join("vm-initramfs"))];
        self.image(json!({"name": "vm", "format": "kernel-initramfs"}), &vm)
    }

    /// An image of these files.
    pub fn image(&self, request: serde_json::Value, blobs: &[(&str, std::path::PathBuf)]) -> Result<()> {
        let image = self.ask(self.client.create_image(&serde_json::from_value(request)?))?;
        for (role, path) in blobs {
            let role = serde_json::from_value(json!(role))?;
            self.ask(self.client.upload_file(image.id, role, path, Box::new(|_, _| {})))?;
        }
        Ok(())
    }

    /// Has every host fetch the images: a failover should not measure the way of an image.
    pub fn warm(&self, hosts: &[&str]) -> Result<()> {
        for host in hosts {
            for body in [set(), vm()] {
                let made = self.create(&request("warm", vec![body], Some(host)))?;
                self.delete(made.id)?;
            }
        }
        Ok(())
    }

    /// Without waiting for it to run.
    pub fn order(&self, request: &InstanceCreate) -> Result<Instance> {
        self.ask(self.client.create_instance(request))
    }

    pub fn create(&self, request: &InstanceCreate) -> Result<Instance> {
        let made = self.order(request)?;
        self.runs(made.id)
    }

    pub fn show(&self, id: InstanceId) -> Result<Instance> {
        self.ask(self.client.instance(id))
    }

    pub fn runs(&self, id: InstanceId) -> Result<Instance> {
        self.until(id, "running", |i| i.state == InstanceState::Running && i.fault.is_none())
    }

    pub fn until(&self, id: InstanceId, what: &str, ok: impl Fn(&Instance) -> bool) -> Result<Instance> {
        until(&format!("the instance is {what}"), PATIENCE, || {
            let seen = self.show(id)?;
            Ok(if ok(&seen) { Seen::Enough(seen) } else { Seen::Not(format!("{seen:?}")) })
        })
    }

    pub fn delete(&self, id: InstanceId) -> Result<()> {
        self.ask(self.client.delete_instance(id, true))?;
        let left = self.ask(self.client.wait_instance_gone(id, |_| false, PATIENCE, |_| {}))?;
        ensure!(left.is_none(), "the instance is not gone: {left:?}");
        Ok(())
    }

    pub fn host(&self, name: &str) -> Result<Host> {
        self.ask(self.client.find_host(name))
    }

    pub fn host_in(&self, name: &str, ok: impl Fn(&Host) -> bool) -> Result<Host> {
        until(&format!("{name} is as wanted"), PATIENCE, || {
            let host = self.host(name)?;
            let told = format!("{:?}, barred since {:?}", host.state, host.barred_since);
            Ok(if ok(&host) { Seen::Enough(host) } else { Seen::Not(told) })
        })
    }

    /// Up, and let in.
    pub fn host_is_back(&self, name: &str) -> Result<()> {
        self.host_in(name, |h| h.state == HostState::Up && h.barred_since.is_none()).map(drop)
    }

    /// The newest failover of a host, later than the one given.
    pub fn failover(&self, host: &str, after: Option<FailoverId>) -> Result<Failover> {
        let id = self.host(host)?.id;
        until(&format!("a failover of {host}"), FAILED_OVER, || {
            let all = self.ask(self.client.failovers())?;
            let newest = all.into_iter().find(|f| f.host == id && Some(f.id) != after);
            Ok(newest.map_or_else(|| Seen::Not("none".to_owned()), Seen::Enough))
        })
    }

    pub fn last_failover(&self, host: &str) -> Result<Option<FailoverId>> {
        let id = self.host(host)?.id;
        Ok(self.ask(self.client.failovers())?.into_iter().find(|f| f.host == id).map(|f| f.id))
    }

    /// The failover when everything that it moved runs.
    pub fn failover_done(&self, id: FailoverId) -> Result<Failover> {
        until("the failover is over", FAILED_OVER, || {
            let all = self.ask(self.client.failovers())?;
            let one = all.into_iter().find(|f| f.id == id).context("it is gone")?;
            Ok(if one.phase == FailoverPhase::Done {
                Seen::Enough(one)
            } else {
                Seen::Not(format!("{one:?}"))
            })
        })
    }

    /// A voice on the third host, asking these addresses.
    pub fn watch(&self, addresses: &[String]) -> Result<(Instance, Probe)> {
        let mut order = request(WATCHER, vec![set()], Some(PEER));
        order.networks[0].address = Some(WATCHER_ADDRESS.parse()?);
        let watcher = self.create(&order)?;
        let probe = Probe::start(&self.lab, PEER, watcher.id, "only", addresses)?;
        let all = probe.all_answer(addresses, PATIENCE);
        all.with_context(|| self.last_words(&probe.silent(addresses).unwrap_or_default()))?;
        Ok((watcher, probe))
    }

    /// What the instances at these addresses have said last on their consoles.
    fn last_words(&self, addresses: &[String]) -> String {
        let said = |instance: &Instance| {
            let log = self.ask(self.client.console_log(instance.id, Some(12), None));
            format!("{} on {:?}: {log:?}", instance.name, instance.host_name)
        };
        let instances = self.ask(self.client.instances()).unwrap_or_default();
        let silent = instances.iter().filter(|i| address(i).is_ok_and(|a| addresses.contains(&a)));
        silent.map(said).collect::<Vec<_>>().join("\n")
    }

    /// Breaks a host by `breaking`, and waits until every address answers from elsewhere.
    pub fn fail(
        &self,
        host: &str,
        probe: &Probe,
        addresses: &[String],
        breaking: impl FnOnce() -> Result<()>,
    ) -> Result<Outage> {
        let before = self.last_failover(host)?;
        let (cut, cut_at) = (uptime_ms()?, jiff::Timestamp::now());
        breaking()?;
        let failover = self.failover(host, before)?;
        let limit = FAILED_OVER + EACH * addresses.len() as u32;
        let answered = until("every address answers from elsewhere", limit, || {
            let mut all = Vec::new();
            for address in addresses {
                match probe.answered_after(address, cut)? {
                    Some(at) => all.push(at.saturating_sub(cut)),
                    None => return Ok(Seen::Not(format!("{address} is silent, {} answer", all.len()))),
                }
            }
            Ok(Seen::Enough(all))
        });
        let answered = answered.with_context(|| {
            let silent = self.last_words(&probe.silent(addresses).unwrap_or_default());
            format!("{silent}\n{:?}", self.ask(self.client.failovers()))
        })?;
        Ok(Outage { cut, cut_at, answered, failover: self.failover_done(failover.id)? })
    }

    /// What Docker and libvirt of a host hold of an instance that moved away: nothing, after a while.
    pub fn buried(&self, host: &str, id: InstanceId) -> Result<()> {
        until(&format!("{host} has buried {id}"), PATIENCE, || {
            let docker = [&DOCKER[..], &["ps", "-a", "--format", "{{.Names}}"]].concat();
            let mut held = self.lab.run(host, &docker)?;
            held +=
                &self.lab.run(host, &["virsh", "--connect", "qemu:///system", "list", "--all", "--name"])?;
            Ok(seen(!held.contains(&id.to_string()), || held.clone()))
        })
    }

    /// The guests' processes on a host, each with the time of its start: the same guests give the same text.
    pub fn guests(&self, host: &str) -> Result<String> {
        let script = r#"for p in /proc/[0-9]*; do
            c=$(tr '\0' ' ' <$p/cmdline 2>/dev/null); s=$(cut -d' ' -f22 $p/stat 2>/dev/null)
            case "$c" in /usr/bin/qemu*guest=amphi-*) echo "vm ${p#/proc/} $s";; "/bin/sh -c trap "*) echo "set ${p#/proc/} $s";; esac
        done; true"#;
        self.lab.run(host, &["sh", "-c", script])
    }

    /// What the host's lease process has written down.
    pub fn lease(&self, host: &str) -> Result<serde_json::Value> {
        serde_json::from_str(&self.lab.run(host, &["cat", "/run/amphi/lease"])?).context("a lease")
    }

    pub fn lease_is(&self, host: &str, state: &str, limit: Duration) -> Result<()> {
        until(&format!("the lease of {host} is {state}"), limit, || {
            let lease = self.lease(host)?;
            Ok(seen(lease["state"] == state, || lease.to_string()))
        })
    }

    /// Changes with each power cut and each fence.
    pub fn boot(&self, host: &str) -> Result<String> {
        self.lab.run(host, &["cat", "/run/amphi/boot"])
    }

    pub fn down(self) -> Result<()> {
        let layout = self.lab.layout().clone();
        self.lab.down()?;
        let left = crate::lab::leftovers(&layout);
        ensure!(left.is_empty(), "left behind: {left:?}");
        Ok(())
    }
}

pub fn address(instance: &Instance) -> Result<String> {
    Ok(instance.addresses.first().context("no address")?.address.to_string())
}

/// A set of one member that does nothing.
pub fn set() -> BodySpec {
    member("trap exit TERM; while :; do sleep 1000 & wait $!; done")
}

/// A set that calls the watcher fifty times a second, in a voice that each of its bodies draws anew.
pub fn loud() -> BodySpec {
    let draw = |bytes: u8| format!("$(head -c {bytes} /dev/urandom | od -An -tu{bytes})");
    member(&format!(
        "trap 'kill $!; exit' TERM; s=$((64 + {} % 1300)) t=$((64 + {} % 128)); \
         while :; do ping -q -i 0.02 -s $s -t $t {WATCHER_ADDRESS} & wait $!; done",
        draw(2),
        draw(1)
    ))
}

fn member(script: &str) -> BodySpec {
    let command = ["/bin/sh", "-c", script];
    let member = MemberSpec {
        name: "only".into(),
        index: 0,
        image: "busybox".into(),
        command: command.map(str::to_owned).to_vec(),
        ..MemberSpec::default()
    };
    BodySpec::Set(SetSpec { members: vec![member], volume_mount: "/data".into(), ..SetSpec::default() })
}

pub fn vm() -> BodySpec {
    BodySpec::Vm(VmSpec::new("vm", None))
}

pub fn request(name: &str, bodies: Vec<BodySpec>, host: Option<&str>) -> InstanceCreate {
    InstanceCreate {
        name: name.into(),
        vcpus: 1,
        memory_mib: 128,
        bodies,
        networks: vec![InstanceNetwork {
            network: NET.into(),
            address: None,
            port: None,
            bandwidth: Default::default(),
        }],
        security_groups: vec![NET.into()],
        volume: None,
        user_data: None,
        ssh_keys: Vec::new(),
        metadata: Default::default(),
        failover: Default::default(),
        failover_terms: FailoverTerms::default(),
        qos: Default::default(),
        scheduler: None,
        host: host.map(str::to_owned),
    }
}
