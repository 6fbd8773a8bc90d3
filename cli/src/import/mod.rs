//! `amphi import`: brings workloads in from files, libvirt hosts and OpenStack projects. First a plan and its report, always;
//! then, by `--yes` or `run`, what the plan says, as often as it takes. Refuses to change a source, but for a shutdown that
//! was asked for and images that it makes there and takes away again.

mod bytes;
mod cloud;
mod disk;
mod libvirt;
mod machine;
mod openstack;
mod plan;
mod run;
mod state;
mod target;

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::noun::set;
use crate::session::Session;
use clap::{Args, Subcommand};
use cloud::{Cloud, Service, Settings};
use libvirt::Virsh;
use machine::Machine;
use plan::{Fate, Plan, Source};
use run::{Origin, Run};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use target::Target;

/// Where nothing says how long things may take to be made.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Subcommand)]
pub enum Command {
    /// A disk's file becomes an instance.
    Disk(OfDisk),
    /// An OVA file becomes an instance.
    Ova(OfOva),
    /// A domain of a libvirt host becomes an instance.
    Libvirt(OfLibvirt),
    /// A project of an OpenStack cloud: networks, groups, volumes, servers with their addresses.
    Openstack(OfOpenstack),
    /// Carry out a plan; run it again where it was cut off.
    Run(RunPlan),
}

#[derive(Args)]
pub struct To {
    /// The entry of clouds.yaml for Amphi, the target. Default: what the OS_* variables name.
    #[arg(long, value_name = "CLOUD")]
    to: Option<String>,
}

#[derive(Args)]
pub struct Planning {
    #[command(flatten)]
    to: To,
    /// Where the plan is written; what is done is kept beside it.
    #[arg(long, value_name = "FILE", default_value = "amphi-import.json")]
    report: PathBuf,
    /// Carry the plan out at once.
    #[arg(long)]
    yes: bool,
    /// What the instance may become later, by `amphi exchange`, beside a VM.
    #[arg(long, value_name = "KIND", value_parser = ["set"], requires = "set_file")]
    accept: Option<String>,
    /// The set's description, JSON or YAML.
    #[arg(long, value_name = "FILE", requires = "accept")]
    set_file: Option<PathBuf>,
    /// What runs at the source is shut down there when its disks are read.
    #[arg(long)]
    shutdown: bool,
}

#[derive(Args)]
pub struct OfMachine {
    /// The instance's name. Default: the source's.
    #[arg(long)]
    name: Option<String>,
    /// A network of the target, for each card in their order; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// The address on each network, in their order.
    #[arg(long, value_name = "ADDRESS")]
    ip: Vec<IpAddr>,
    /// The MAC of each card, in their order. Default: the source's.
    #[arg(long, value_name = "MAC")]
    mac: Vec<String>,
    /// Public keys for the guest; may be repeated.
    #[arg(long, value_name = "KEY")]
    ssh_key: Vec<String>,
    #[command(flatten)]
    planning: Planning,
}

#[derive(Args)]
pub struct OfDisk {
    file: PathBuf,
    /// What the file is. Default: as its first bytes say.
    #[arg(long, value_parser = ["raw", "qcow2", "vmdk", "vhd", "vhdx", "vdi"])]
    format: Option<String>,
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// With a unit or in MiB: `512`, `4GiB`.
    #[arg(long, value_parser = crate::flags::memory, default_value = "1GiB")]
    memory: u64,
    /// A further disk; may be repeated.
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    machine: OfMachine,
}

#[derive(Args)]
pub struct OfOva {
    file: PathBuf,
    #[command(flatten)]
    machine: OfMachine,
}

#[derive(Args)]
pub struct OfLibvirt {
    /// The host: `qemu+ssh://root@HOST/system`.
    #[arg(long, value_name = "URI")]
    uri: String,
    domain: String,
    #[command(flatten)]
    machine: OfMachine,
}

#[derive(Args)]
pub struct OfOpenstack {
    /// The entry of clouds.yaml for the source.
    #[arg(long, value_name = "CLOUD")]
    from: String,
    /// Only this server, and what it needs; may be repeated.
    #[arg(long, value_name = "SERVER")]
    server: Vec<String>,
    /// A network of the source, and the target's that stands in its place; may be repeated.
    #[arg(long, value_name = "SOURCE=TARGET", value_parser = pair)]
    network: Vec<(String, String)>,
    /// Leave out images that no server needs.
    #[arg(long)]
    no_images: bool,
    #[command(flatten)]
    planning: Planning,
}

#[derive(Args)]
pub struct RunPlan {
    plan: PathBuf,
    #[command(flatten)]
    to: To,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("not SOURCE=TARGET")?;
    Ok((from.to_owned(), to.to_owned()))
}

impl To {
    async fn enter(&self, session: &Session) -> Result<Target, Failure> {
        let settings = match &self.to {
            Some(name) => Settings::named(name)?,
            None => Settings::of_environment()?,
        };
        Ok(Target::new(Cloud::enter(settings).await?, session.wait().unwrap_or(PATIENCE)))
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        match self {
            Self::Disk(of) => {
                let mut disks = vec![disk::disk(&of.file, of.format.as_deref())?];
                for data in &of.data {
                    disks.push(disk::disk(data, None)?);
                }
                let stem = of.file.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
                let machine = Machine {
                    name: stem,
                    mark: format!(
                        "disk:{}",
                        uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, path_of(&of.file).as_bytes())
                    ),
                    vcpus: of.vcpus,
                    memory_mib: of.memory,
                    disks,
                    ..Machine::default()
                };
                one(session, machine, of.machine, Source::Files, Origin::Files).await
            }
            Self::Ova(of) => {
                one(session, disk::ova(&of.file)?, of.machine, Source::Files, Origin::Files).await
            }
            Self::Libvirt(of) => {
                let virsh = Virsh::new(&of.uri)?;
                let machine = virsh.machine(&of.domain, of.machine.planning.shutdown).await?;
                one(session, machine, of.machine, Source::Libvirt { uri: of.uri }, Origin::Libvirt(virsh))
                    .await
            }
            Self::Openstack(of) => of.run(session).await,
            Self::Run(of) => {
                let plan: Plan = read(&of.plan)?;
                let target = of.to.enter(session).await?;
                let origin = match &plan.source {
                    Source::Files => Origin::Files,
                    Source::Libvirt { uri } => Origin::Libvirt(Virsh::new(uri)?),
                    Source::Openstack { cloud, place } => {
                        let source = Cloud::enter(Settings::named(cloud)?).await?;
                        if source.project() != place.project {
                            let what = format!(
                                "cloud '{cloud}' is another project than the plan's, {}",
                                place.project
                            );
                            return Err(Failure::new(4, what).next("plan anew"));
                        }
                        Origin::Openstack(source)
                    }
                };
                Run { session, plan: &plan, target, origin, file: of.plan }.go().await
            }
        }
    }
}

fn path_of(path: &std::path::Path) -> String {
    std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()).display().to_string()
}

/// A plan out of its file. Larger than a request's JSON: a project may have thousands of things.
fn read(path: &std::path::Path) -> Result<Plan, Failure> {
    let unreadable = |e: std::io::Error| Failure::new(2, format!("{}: cannot be read: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    JsonFile::of(&path.display().to_string(), text).parse()
}

/// One machine: planned, told, and brought over where that is wished for.
async fn one(
    session: &Session,
    mut machine: Machine,
    of: OfMachine,
    source: Source,
    origin: Origin,
) -> Result<(), Failure> {
    if of.ip.len() > of.network.len() || of.mac.len() > of.network.len() {
        return Err(Failure::new(2, "more --ip or --mac than --network"));
    }
    if let Some(name) = of.name {
        machine.name = name;
    }
    let target = of.planning.to.enter(session).await?;
    let networks = target.cloud.list(Service::Network, "/networks", "networks").await?;
    let networks = of.network.iter().map(|name| named(&networks, name)).collect::<Result<Vec<_>, _>>()?;
    let wishes = machine::Wishes {
        networks,
        addresses: of.ip,
        macs: of.mac.into_iter().map(|m| m.to_ascii_lowercase()).collect(),
        set: set_of(&of.planning)?,
        ssh_keys: of.ssh_key,
        shutdown: of.planning.shutdown,
    };
    let plan = machine::plan(machine, wishes, source, target.cloud.place());
    finish(session, plan, target, origin, of.planning).await
}

/// A network of the target by id or name: its id and name.
fn named(networks: &[Value], name: &str) -> Result<(String, String), Failure> {
    let text = |n: &Value, key: &str| n.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let found: Vec<_> =
        networks.iter().filter(|n| text(n, "id") == name || text(n, "name") == name).collect();
    match found[..] {
        [one] => Ok((text(one, "id"), text(one, "name"))),
        [] => Err(Failure::new(3, format!("no network '{name}' at the target")).next("amphi network list")),
        _ => Err(Failure::new(4, format!("{} networks are named '{name}'; use an id", found.len()))),
    }
}

fn set_of(planning: &Planning) -> Result<Option<amphi_api::set::SetSpec>, Failure> {
    planning.set_file.as_deref().map(set::load).transpose()
}

impl OfOpenstack {
    async fn run(self, session: &Session) -> Result<(), Failure> {
        let source = Cloud::enter(Settings::named(&self.from)?).await?;
        let target = self.planning.to.enter(session).await?;
        if source.place() == target.cloud.place() {
            return Err(Failure::new(2, "source and target are one project"));
        }
        let there = target.cloud.list(Service::Network, "/networks", "networks").await?;
        let mut networks = BTreeMap::new();
        for (from, to) in &self.network {
            networks.insert(from.clone(), named(&there, to)?.0);
        }
        let wishes = openstack::Wishes {
            networks,
            servers: self.server.iter().cloned().collect(),
            shutdown: self.planning.shutdown,
            set: set_of(&self.planning)?,
            images: !self.no_images,
        };
        let waiting = session.waiting("reading the project");
        let project = openstack::read(&source).await?;
        drop(waiting);
        let plan = openstack::plan(&project, &wishes, &self.from, source.place(), target.cloud.place());
        finish(session, plan, target, Origin::Openstack(source), self.planning).await
    }
}

/// Compares with the target, writes the plan, tells it; carries it out where that is wished for.
async fn finish(
    session: &Session,
    mut plan: Plan,
    target: Target,
    origin: Origin,
    planning: Planning,
) -> Result<(), Failure> {
    for item in &mut plan.items {
        item.there = match item.make {
            plan::Make::Attach { .. } | plan::Make::RouterLeg { .. } => None,
            _ => target.find(item, &|_| None).await?,
        };
    }
    plan.check().map_err(|why| Failure::new(1, format!("the plan: {why}")))?;
    let file = planning.report;
    let text = serde_json::to_vec_pretty(&plan).map_err(|e| Failure::new(1, format!("the plan: {e}")))?;
    state::put(&file, &text)?;
    // As JSON there is one thing to tell: the plan, or what became of it.
    if !(session.is_json() && planning.yes) {
        session.show(&plan, Plan::report)?;
    }
    let blocked = plan.findings.iter().filter(|f| f.fate == Fate::Blocked).count();
    if blocked > 0 {
        let what = format!("{blocked} things are in the way; nothing was made");
        return Err(Failure::new(4, what).next("mend them, and plan anew"));
    }
    if !planning.yes {
        return session.note(&format!("nothing was made yet; to do so: amphi import run {}", file.display()));
    }
    Run { session, plan: &plan, target, origin, file }.go().await
}
