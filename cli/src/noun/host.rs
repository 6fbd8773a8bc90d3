//! `amphi host`: what the machines have and are, joining, evacuation.

use crate::failure::Failure;
use crate::noun::instance;
use crate::session::{Session, say};
use crate::table::{age, bytes, mib, moment, or_dash, pairs, rows, word};
use amphi_api::host::{
    Engine, Evacuation, Host, HostChange, HostLease, HostState, JoinTokenCreate, Maintenance,
    MaintenanceCreate,
};
use amphi_api::resize::Isolation;
use clap::Subcommand;
use jiff::Timestamp;
use std::time::Duration;

#[derive(Subcommand)]
pub enum Command {
    /// Hosts with capacity, engines, acceleration and volume activation.
    List,
    /// One host in full.
    Show { host: String },
    /// Make a one-time token for `amphi-hostsrv join`.
    JoinToken {
        /// Only a host of this name may use it.
        #[arg(long)]
        host: Option<String>,
        /// How long it is good, in seconds.
        #[arg(long, value_name = "SECONDS")]
        ttl: Option<u64>,
    },
    /// Bring up the instances of a dead host on the others.
    Evacuate { host: String },
    /// Empty a host: it takes nothing new, and its instances move elsewhere.
    #[command(group = clap::ArgGroup::new("maintenance").required(true))]
    Maintenance {
        host: String,
        /// Why.
        #[arg(long, group = "maintenance")]
        reason: Option<String>,
        /// It takes instances again.
        #[arg(long, group = "maintenance")]
        end: bool,
        /// Most instances that move at one time. Default: 2.
        #[arg(long, value_name = "COUNT")]
        at_a_time: Option<u32>,
    },
    /// Say whether instances of the class best_effort may come to a host.
    BestEffort { host: String, allowed: Allowed },
    /// Forget a host that has nothing left.
    Delete { host: String },
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List => {
                session.list("hosts", &client.hosts().await?, |hosts| list(hosts, Timestamp::now()))
            }
            Self::Show { host } => {
                // By its id it tells what images it has, too.
                let id = client.find_host(&host).await?.id;
                session.show(&client.host(id).await?, |h| detail(h, Timestamp::now()))
            }
            Self::JoinToken { host, ttl } => {
                let token = client.create_join_token(&JoinTokenCreate { host, ttl_seconds: ttl }).await?;
                session.show(&token, |t| {
                    // The token alone on stdout, so that a script can take it.
                    eprintln!(
                        "good until {}; use it with: amphi-hostsrv --config FILE join TOKEN",
                        t.expires_at
                    );
                    format!("{}\n", t.token)
                })
            }
            Self::Evacuate { host } => evacuate(session, &host).await,
            Self::Maintenance { host, end: true, .. } => {
                let host = client.find_host(&host).await?;
                client.end_maintenance(host.id).await?;
                session.note(&format!("{} takes instances again", host.name))
            }
            Self::Maintenance { host, reason, at_a_time, .. } => {
                let request = MaintenanceCreate { reason: reason.unwrap_or_default(), at_a_time };
                maintain(session, &host, &request).await
            }
            Self::BestEffort { host, allowed } => {
                let host = client.find_host(&host).await?;
                let change = HostChange { best_effort: Some(matches!(allowed, Allowed::Yes)) };
                session.show(&client.change_host(host.id, &change).await?, |h| detail(h, Timestamp::now()))
            }
            Self::Delete { host } => {
                let host = client.find_host(&host).await?;
                client.delete_host(host.id).await?;
                session.note(&format!("deleted host {}", host.name))
            }
        }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub enum Allowed {
    Yes,
    No,
}

/// Orders the host empty and waits until it is, or until what is left cannot move.
async fn maintain(session: &Session, name: &str, request: &MaintenanceCreate) -> Result<(), Failure> {
    let client = session.client()?;
    let id = client.find_host(name).await?.id;
    let mut host = client.begin_maintenance(id, request).await?;
    if let Some(deadline) = session.wait() {
        let end = std::time::Instant::now() + deadline;
        let waiting = session.waiting(format!("{}: emptying", host.name));
        let stuck = |m: &Maintenance| m.moving == 0 && m.left as usize == m.held.len();
        while host.maintenance.as_ref().is_some_and(|m| !stuck(m)) {
            if std::time::Instant::now() > end {
                return Err(Failure::new(5, format!("{} is not empty yet", host.name)));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            host = client.host(id).await?;
            waiting.state(&host.maintenance.as_ref().map(progress).unwrap_or_default());
        }
    }
    session.show(&host, |h| h.maintenance.as_ref().map(|m| told(&h.name, m)).unwrap_or_default())?;
    match host.maintenance {
        Some(m) if !m.held.is_empty() && session.wait().is_some() => {
            Err(Failure::new(1, format!("{} instances cannot leave {}", m.held.len(), host.name)))
        }
        _ => Ok(()),
    }
}

fn progress(m: &Maintenance) -> String {
    format!("{} left, {} moving, {} held", m.left, m.moving, m.held.len())
}

fn told(name: &str, m: &Maintenance) -> String {
    let held = m.held.iter().map(|h| format!("  {}: {}\n", h.name, h.reason)).collect::<String>();
    format!("{name}: {} ({})\n{held}", if m.left == 0 { "empty".into() } else { progress(m) }, m.reason)
}

async fn evacuate(session: &Session, name: &str) -> Result<(), Failure> {
    let client = session.client()?;
    let host = client.find_host(name).await?;
    let evacuation = client.evacuate_host(host.id).await?;
    session.show(&evacuation, |e| evacuated(e, &host.name))?;
    let mut failed = None;
    for moved in &evacuation.moved {
        if session.wait().is_some()
            && let Err(failure) = instance::await_running(session, moved.instance, &moved.name).await
        {
            say(&format!("{}: {}", moved.name, failure.what))?;
            failed.get_or_insert(failure);
        }
    }
    match failed {
        Some(failure) => Err(failure),
        None if !evacuation.refused.is_empty() => {
            let text = format!("{} instances of {} have no other host", evacuation.refused.len(), host.name);
            Err(Failure::new(1, text).next("make room or add a host, then evacuate again"))
        }
        None => Ok(()),
    }
}

pub fn list(hosts: &[Host], now: Timestamp) -> String {
    let header = [
        "NAME",
        "STATE",
        "ADDRESS",
        "VCPUS",
        "MEMORY",
        "VOLUMES",
        "INSTANCES",
        "VM",
        "ACTIVATION",
        "SEEN",
        "ENGINES",
    ];
    rows(
        &header,
        hosts.iter().map(|host| {
            let spec = host.spec.as_ref();
            let of =
                |used: String, all: Option<String>| all.map_or("-".to_owned(), |all| format!("{used}/{all}"));
            vec![
                host.name.clone(),
                state(host),
                or_dash(spec.map(|s| &s.address)),
                of(
                    host.claims.vcpus.to_string(),
                    spec.map(|s| s.cpus.saturating_sub(s.reserved_cpus).to_string()),
                ),
                of(
                    mib(host.claims.memory_mib),
                    spec.map(|s| mib(s.memory_mib.saturating_sub(s.reserved_memory_mib))),
                ),
                of(bytes(host.claims.volume_gib << 30), spec.map(|s| bytes(s.volume_group_bytes))),
                host.claims.instances.to_string(),
                or_dash(spec.map(|s| word(s.acceleration))),
                or_dash(spec.map(|s| word(s.activation))),
                host.seen_at.map_or("never".to_owned(), |at| age(at, now)),
                or_dash(spec.map(|s| s.engines.iter().map(engine).collect::<Vec<_>>().join(" "))),
            ]
        }),
    )
}

/// `down/barred`: taken for dead, and shut out of the network until it has buried what moved away.
fn state(host: &Host) -> String {
    let barred = if host.barred_since.is_some() { "/barred" } else { "" };
    format!("{}{barred}", word(host.state))
}

/// `fresh; the host says held, 312 ms ago`.
fn lease(lease: &HostLease) -> String {
    let why = lease.why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    format!("{}{why}; the host says {}, {} ms ago", word(lease.standing), word(lease.said), lease.age_ms)
}

/// `docker=20.10.24`, with `!` where it cannot be used now.
fn engine(engine: &Engine) -> String {
    let trouble = if engine.trouble.is_some() { "!" } else { "" };
    let version = if engine.version.is_empty() { "?" } else { &engine.version };
    format!("{}={version}{trouble}", word(engine.name))
}

fn detail(host: &Host, now: Timestamp) -> String {
    let mut lines = Vec::new();
    if host.state == HostState::Down && host.barred_since.is_none() {
        lines.push(("!", format!("{0} does not answer. If it is dead: amphi host evacuate {0}", host.name)));
    }
    lines.extend([
        ("Name", host.name.clone()),
        ("Id", host.id.to_string()),
        ("State", state(host)),
        ("Seen", host.seen_at.map_or("never".to_owned(), |at| moment(at, now))),
        ("Lease", or_dash(host.lease.as_ref().map(lease))),
        (
            "Promised",
            format!(
                "{} instances: {} vCPU, {}, {} GiB of volumes",
                host.claims.instances,
                host.claims.vcpus,
                mib(host.claims.memory_mib),
                host.claims.volume_gib
            ),
        ),
    ]);
    if let Some(spec) = &host.spec {
        let engines = spec.engines.iter().map(|e| match &e.trouble {
            Some(trouble) => {
                format!("{} {}: TROUBLE: {}", word(e.name), e.version, trouble.replace('\n', " "))
            }
            None => format!("{} {}", word(e.name), e.version),
        });
        lines.extend([
            ("Address", spec.address.clone()),
            ("Chassis", spec.chassis.clone()),
            ("CPUs", format!("{} ({} reserved)", spec.cpus, spec.reserved_cpus)),
            ("Memory", format!("{} ({} reserved)", mib(spec.memory_mib), mib(spec.reserved_memory_mib))),
            (
                "Volumes",
                format!("{} free of {}", bytes(spec.volume_group_free_bytes), bytes(spec.volume_group_bytes)),
            ),
            (
                "Shared groups",
                or_dash((!spec.shared_groups.is_empty()).then(|| {
                    let groups =
                        spec.shared_groups.iter().map(|g| format!("{} ({})", g.name, bytes(g.size_bytes)));
                    groups.collect::<Vec<_>>().join("\n")
                })),
            ),
            ("VMs run by", word(spec.acceleration)),
            ("Activation", word(spec.activation)),
            ("Isolation", or_dash(spec.isolation.as_ref().map(isolation))),
            ("Engines", engines.collect::<Vec<_>>().join("\n")),
            ("Agent", spec.agent_version.clone()),
        ]);
    }
    if !host.images.is_empty() {
        let images =
            host.images.iter().map(|i| format!("{} {}", i.name, &i.digest[..i.digest.len().min(12)]));
        lines.push(("Images", images.collect::<Vec<_>>().join("\n")));
    }
    if !host.strangers.is_empty() {
        lines.push(("Strangers", host.strangers.join("\n")));
    }
    pairs(&lines)
}

/// What its kernel can hold bodies to, and what not.
fn isolation(isolation: &Isolation) -> String {
    let mut lines = vec![format!("control groups version {}", isolation.cgroups)];
    let lacks = [
        (isolation.cpu, "no CPU ceilings"),
        (isolation.memory, "no memory limits"),
        (isolation.pids, "no process limits"),
        (isolation.io, "no rates of devices"),
        (
            isolation.io_buffered || !isolation.io,
            "rates do not count what is written back later from the page cache",
        ),
        (
            isolation.root_device.is_some(),
            "members' root file systems lie on no block device: no rates of them",
        ),
        (isolation.root_quota, "root file systems are watched; the kernel does not bound them"),
    ];
    lines.extend(lacks.iter().filter(|(has, _)| !has).map(|(_, lack)| (*lack).to_owned()));
    lines.join("\n")
}

fn evacuated(evacuation: &Evacuation, host: &str) -> String {
    let moved = evacuation
        .moved
        .iter()
        .map(|m| [m.name.clone(), "moved".into(), format!("to {} (epoch {})", m.to_name, m.epoch)]);
    let waiting = evacuation.waiting.iter().map(|w| {
        let volumes: Vec<_> = w.volumes.iter().map(ToString::to_string).collect();
        [
            w.name.clone(),
            "waiting".into(),
            format!("until {host} returns: volume {} is there", volumes.join(", ")),
        ]
    });
    let refused = evacuation.refused.iter().map(|r| [r.name.clone(), "refused".into(), r.reason.clone()]);
    let all: Vec<Vec<String>> = moved.chain(waiting).chain(refused).map(Vec::from).collect();
    if all.is_empty() {
        return format!("{host} has no instances\n");
    }
    rows(&["INSTANCE", "RESULT", "WHERE, WHY"], all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn host(name: &str, spec: bool) -> Host {
        let mut value = json!({
            "id": "00000000-0000-7000-8000-000000000001", "name": name, "state": if spec { "down" } else { "joined" },
            "claims": {"vcpus": 3, "memory_mib": 768, "volume_gib": 2, "instances": 2}});
        if spec {
            value["seen_at"] = json!("2026-01-02T03:00:00Z");
            value["spec"] = json!({
                "name": name, "chassis": name, "address": "10.99.0.11", "cpus": 5, "memory_mib": 4608,
                "reserved_cpus": 1, "reserved_memory_mib": 512, "volume_group_bytes": 8589934592u64,
                "volume_group_free_bytes": 6442450944u64, "acceleration": "tcg", "activation": "loop",
                "engines": [{"name": "docker", "version": "20.10.24"},
                            {"name": "libvirt", "version": "9.0.0", "trouble": "no answer\nin 5 s"}],
                "agent_version": "0.1.0"});
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn golden_list() {
        let now = "2026-01-02T03:05:00Z".parse().unwrap();
        assert_eq!(
            list(&[host("h1", true), host("h2", false)], now),
            "\
NAME  STATE   ADDRESS     VCPUS  MEMORY         VOLUMES      INSTANCES  VM   ACTIVATION  SEEN   ENGINES
h1    down    10.99.0.11  3/4    768 MiB/4 GiB  2 GiB/8 GiB  2          tcg  loop        5m     docker=20.10.24 libvirt=9.0.0!
h2    joined  -           -      -              -            2          -    -           never  -
"
        );
        let text = detail(&host("h1", true), now);
        assert!(text.contains("amphi host evacuate h1"), "{text}");
        let held = json!({"image": "00000000-0000-7000-8000-00000000000a", "name": "busybox", "digest": "a".repeat(64)});
        let holds = Host { images: vec![serde_json::from_value(held).unwrap()], ..host("h1", true) };
        assert!(detail(&holds, now).contains("busybox aaaaaaaaaaaa\n"), "{}", detail(&holds, now));
        let held_back =
            json!({"standing": "held_back", "why": "2 of 5 are left", "said": "fenced", "age_ms": 4200});
        let told = Host { lease: Some(serde_json::from_value(held_back).unwrap()), ..host("h1", true) };
        let text = detail(&told, now);
        assert!(text.contains("held_back (2 of 5 are left); the host says fenced, 4200 ms ago"), "{text}");
        assert!(text.contains("libvirt 9.0.0: TROUBLE: no answer in 5 s"), "{text}");
    }

    #[test]
    fn an_evacuation_tells_the_three_apart() {
        let id = "00000000-0000-7000-8000-00000000000a";
        let evacuation: Evacuation = serde_json::from_value(json!({"host": id,
            "moved": [{"instance": id, "name": "web", "to": id, "to_name": "h2", "epoch": 4}],
            "waiting": [{"instance": id, "name": "db", "volumes": [id]}],
            "refused": [{"instance": id, "name": "big", "reason": "h2: 1 GiB of 8 GiB"}]}))
        .unwrap();
        assert_eq!(
            evacuated(&evacuation, "h1"),
            "\
INSTANCE  RESULT   WHERE, WHY
web       moved    to h2 (epoch 4)
db        waiting  until h1 returns: volume 00000000-0000-7000-8000-00000000000a is there
big       refused  h2: 1 GiB of 8 GiB
"
        );
    }
}
