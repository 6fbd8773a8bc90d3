//! Renders a set and its images into what a guest starts from. Pure. Where image and description both say
//! something it goes as Docker has it, so that both bodies of a set are the same to its programs.

use super::{refused, serial};
use crate::instance::vm::disks::volume_serial;
use crate::instance::{BodyPlan, DriverError, PortAttachment, limits};
use amphi_api::ImageId;
use amphi_api::image::Image;
use amphi_api::network::METADATA_ADDRESS;
use amphi_api::set::{MemberSpec, NextWhen, Probe, RestartPolicy, SetSpec, permissions};
use amphi_api::validate::hostname;
use amphi_guest::VERSION;
use amphi_guest::config::{
    self, Ask, Command, Disk, File, Guest, Interface, Member, Next, Part, Restart, Route, Tmpfs,
};
use amphi_guest::conversion::Start;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

/// What a set's members have together for their orderly end: less than the plan gives a body (`reconcile::plan`), so that
/// the guest has switched itself off before its plug is pulled.
const GRACE_S: u32 = 17;
/// Docker's default size of `/dev/shm`, in MiB.
const SHM_MIB: u64 = 64;
/// Where sshd looks for root's keys unless its configuration says otherwise.
const AUTHORIZED_KEYS: &str = "/root/.ssh/authorized_keys";

/// Capabilities by number (linux/capability.h); `true`: Docker gives it unasked.
const CAPABILITIES: [(&str, u8, bool); 21] = [
    ("CHOWN", 0, true),
    ("DAC_OVERRIDE", 1, true),
    ("FOWNER", 3, true),
    ("FSETID", 4, true),
    ("KILL", 5, true),
    ("SETGID", 6, true),
    ("SETUID", 7, true),
    ("SETPCAP", 8, true),
    ("NET_BIND_SERVICE", 10, true),
    ("NET_BROADCAST", 11, false),
    ("NET_ADMIN", 12, false),
    ("NET_RAW", 13, true),
    ("IPC_LOCK", 14, false),
    ("IPC_OWNER", 15, false),
    ("SYS_CHROOT", 18, true),
    ("SYS_PTRACE", 19, false),
    ("SYS_NICE", 23, false),
    ("MKNOD", 27, true),
    ("LEASE", 28, false),
    ("AUDIT_WRITE", 29, true),
    ("SETFCAP", 31, true),
];

/// Signals by number (signal(7), x86).
const SIGNALS: [&str; 31] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
    "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
    "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
];

/// What an image's configuration says of its programs.
#[derive(Clone, Debug, Default, Deserialize)]
struct Config {
    #[serde(default)]
    config: Option<Programs>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Programs {
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
}

/// The whole guest. `images` is parallel to the set's members, which are in start order; `configs` holds each image's
/// configuration.
pub fn guest(
    plan: &BodyPlan,
    set: &SetSpec,
    images: &[Image],
    configs: &BTreeMap<ImageId, &[u8]>,
) -> Result<Guest, DriverError> {
    let anchor = &set.anchor;
    let name = hostname(&plan.name);
    let own = plan.ports.first().map_or(IpAddr::from([127, 0, 0, 1]), |port| port.address.addr());
    let hosts = anchor.hosts.iter().map(|(name, address)| (name.clone(), *address));
    // As Docker has them for every container: low ports and pings are anybody's in a network of one's own.
    let mut sysctls = BTreeMap::from([
        ("net.ipv4.ip_unprivileged_port_start".to_owned(), "0".to_owned()),
        ("net.ipv4.ping_group_range".to_owned(), "0 2147483647".to_owned()),
    ]);
    sysctls.extend(anchor.sysctls.iter().map(|(key, value)| (key.replace('/', "."), value.clone())));
    let shared = plan.root_volume.as_ref().or(plan.volume.as_ref());
    let beside = plan.volume.as_ref().filter(|_| plan.root_volume.is_some());
    let disk = |volume, read_only| Disk { serial: volume_serial(volume), read_only };
    let further = beside.map(|volume| ("vdb".to_owned(), disk(volume.id, false)));
    let extra = plan.attachments.iter().map(|e| (e.device.clone(), disk(e.volume.id, e.read_only)));
    let all_limits = limits::of_set(set, plan.vcpus, plan.memory_mib);
    let mut members = Vec::new();
    for (spec, image) in set.members.iter().zip(images) {
        let broken = |message: String| DriverError::ImageBroken { image: image.id, message };
        let config =
            configs.get(&image.id).ok_or_else(|| refused(plan, format!("image {} is not here", image.id)))?;
        let config: Config =
            serde_json::from_slice(config).map_err(|error| broken(format!("its configuration: {error}")))?;
        let limits = all_limits.get(&spec.effective_name()).copied().unwrap_or_default();
        members.push(member(plan, set, spec, image.id, config.config.unwrap_or_default(), limits)?);
    }
    Ok(Guest {
        version: VERSION,
        hostname: name.clone(),
        interfaces: plan.ports.iter().enumerate().map(|(at, port)| interface(port, at == 0)).collect(),
        dns: plan.name_servers(set),
        dns_search: anchor.dns.search.clone(),
        dns_options: anchor.dns.options.clone(),
        hosts: std::iter::once((name, own)).chain(hosts).collect(),
        sysctls,
        shm_mib: anchor.shm_mib.unwrap_or(SHM_MIB),
        volume: shared.map(|volume| disk(volume.id, false)),
        volume_mount: set.volume_mount.clone(),
        further: further.into_iter().chain(extra).collect(),
        config_drive: "config-2".to_owned(),
        members,
        grace_s: GRACE_S,
    })
}

/// How a disk starts that is made of an image with this configuration: as Docker starts a container of it. What machines call
/// their init is the machine's first process.
pub fn start(config: &[u8]) -> Result<Start, String> {
    const INITS: [&str; 5] =
        ["/sbin/init", "/usr/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init"];
    let config: Config =
        serde_json::from_slice(config).map_err(|error| format!("its configuration: {error}"))?;
    let config = config.config.unwrap_or_default();
    let argv = [config.entrypoint.unwrap_or_default(), config.cmd.unwrap_or_default()].concat();
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        return Err("it names no program to start".to_owned());
    };
    Ok(Start {
        init: Some(program.clone()).filter(|program| argv.len() == 1 && INITS.contains(&program.as_str())),
        argv,
        env: config.env.unwrap_or_default(),
        directory: config.working_dir.unwrap_or_default(),
        user: config.user.unwrap_or_default(),
        stop_signal: number(&config.stop_signal.unwrap_or_default()).unwrap_or(15),
    })
}

/// Only the first has a default route, and the metadata service for a neighbour, as DHCP tells a VM.
fn interface(port: &PortAttachment, first: bool) -> Interface {
    let mut routes: Vec<Route> = port
        .routes
        .iter()
        .map(|route| Route { to: route.to.addr(), prefix: route.to.prefix_len(), via: Some(route.via) })
        .collect();
    let service = IpAddr::V4(METADATA_ADDRESS);
    if first && port.address.addr().is_ipv4() && routes.iter().all(|route| route.to != service) {
        routes.push(Route { to: service, prefix: 32, via: None });
    }
    let mut gateways: Vec<IpAddr> = Vec::new();
    for (_, gateway) in port.addresses().filter(|_| first) {
        if let Some(gateway) = gateway.filter(|g| gateways.iter().all(|other| other.is_ipv4() != g.is_ipv4()))
        {
            gateways.push(gateway);
        }
    }
    Interface {
        mac: port.mac.to_ascii_lowercase(),
        mtu: port.mtu,
        addresses: port.addresses().map(|(net, _)| (net.addr(), net.prefix_len())).collect(),
        gateways,
        routes,
    }
}

fn member(
    plan: &BodyPlan,
    set: &SetSpec,
    spec: &MemberSpec,
    image: ImageId,
    config: Programs,
    limits: limits::Limits,
) -> Result<Member, DriverError> {
    let entry = config.entrypoint.unwrap_or_default();
    let argv = match (spec.command.is_empty(), spec.args.is_empty()) {
        (false, _) => spec.command.clone(),
        (true, false) => [entry, spec.args.clone()].concat(),
        (true, true) => [entry, config.cmd.unwrap_or_default()].concat(),
    };
    if argv.first().is_none_or(String::is_empty) {
        let message = "it names no program, and neither does the member's description ('command')".to_owned();
        return Err(DriverError::ImageBroken { image, message });
    }
    let timezone = set.anchor.timezone.as_ref();
    let zone = timezone.filter(|_| !spec.env.contains_key("TZ")).map(|zone| format!("TZ={zone}"));
    let own = spec.env.iter().map(|(key, value)| format!("{key}={value}"));
    let signal = spec.stop.signal.clone().or(config.stop_signal).unwrap_or_default();
    let text = |own: &Option<String>, image: Option<String>| own.clone().or(image).unwrap_or_default();
    Ok(Member {
        name: spec.effective_name(),
        index: spec.index,
        root: serial(image),
        argv,
        env: config.env.unwrap_or_default().into_iter().chain(own).chain(zone).collect(),
        directory: text(&spec.directory, config.working_dir),
        user: text(&spec.user, config.user),
        ulimits: spec.ulimits.iter().map(|(name, limit)| (name.clone(), (limit.soft, limit.hard))).collect(),
        capabilities: capabilities(&spec.capabilities.add, &spec.capabilities.drop),
        read_only: spec.read_only,
        tmpfs: spec
            .tmpfs
            .iter()
            .map(|t| Tmpfs { path: t.path.clone(), size_mib: t.size_mib, mode: t.mode.clone(), exec: t.exec })
            .collect(),
        files: files(plan, set, spec),
        mounts: spec
            .mounts
            .iter()
            .map(|m| Part { path: m.path.clone(), sub_path: m.sub_path.clone(), read_only: m.read_only })
            .collect(),
        log_bytes: u64::from(spec.log.max_size_mib) << 20,
        log_files: spec.log.max_files,
        restart: match spec.restart {
            RestartPolicy::Always => Restart::Always,
            RestartPolicy::OnFailure => Restart::OnFailure,
            RestartPolicy::Never => Restart::Never,
        },
        next: match spec.next_when {
            NextWhen::Ready => Next::Ready,
            NextWhen::Started => Next::Started,
            NextWhen::Finished => Next::Finished,
        },
        post_start: spec.hooks.post_start.as_ref().map(hook),
        pre_stop: spec.hooks.pre_stop.as_ref().map(hook),
        stop_signal: number(&signal).unwrap_or(15),
        grace_s: spec.stop.grace_s,
        startup: spec.probes.startup.as_ref().and_then(probe),
        readiness: spec.probes.readiness.as_ref().and_then(probe),
        liveness: spec.probes.liveness.as_ref().and_then(probe),
        cpu_centi: limits.cpu_centi,
        memory_bytes: limits.memory_bytes,
        pids: limits.pids,
    })
}

fn files(plan: &BodyPlan, set: &SetSpec, spec: &MemberSpec) -> Vec<File> {
    let mut all: Vec<File> = spec
        .files
        .iter()
        .map(|file| File {
            path: file.path.clone(),
            content: file.content.clone(),
            mode: permissions(&file.mode),
            uid: file.uid,
            gid: file.gid,
            only_into_directory: false,
        })
        .collect();
    let has_volume = plan.volume.is_some() || plan.root_volume.is_some();
    let at_keys = |mount: &str| {
        let (volume, keys) = (Path::new(mount), Path::new(AUTHORIZED_KEYS));
        keys.starts_with(volume) || keys.parent().is_some_and(|folder| volume.starts_with(folder))
    };
    // Where the volume lies over the place of the keys they are its own affair.
    let hidden = match spec.mounts.as_slice() {
        [] => has_volume && at_keys(&set.volume_mount),
        parts => parts.iter().any(|part| at_keys(&part.path)),
    };
    if !plan.ssh_keys.is_empty() && !hidden {
        let content = plan.ssh_keys.join("\n") + "\n";
        let path = AUTHORIZED_KEYS.to_owned();
        all.push(File { path, content, mode: 0o600, uid: 0, gid: 0, only_into_directory: false });
    }
    all
}

fn hook(hook: &amphi_api::set::Hook) -> Command {
    Command { argv: hook.command.clone(), timeout_s: hook.timeout_s }
}

/// A probe that asks nothing is none: the description's own rules have seen to it that there is no such.
fn probe(probe: &Probe) -> Option<config::Probe> {
    let own = |address: Option<IpAddr>| address.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let ask = match (&probe.exec, &probe.http, &probe.tcp) {
        (Some(argv), _, _) => Ask::Exec(argv.clone()),
        (_, Some(http), _) => {
            Ask::Http { address: own(http.address), port: http.port, path: http.path.clone() }
        }
        (_, _, Some(tcp)) => Ask::Tcp { address: own(tcp.address), port: tcp.port },
        (None, None, None) => return None,
    };
    Some(config::Probe {
        ask,
        initial_delay_s: probe.initial_delay_s,
        period_s: probe.period_s,
        timeout_s: probe.timeout_s,
        failures: probe.failures,
        successes: probe.successes,
    })
}

/// Docker's own set with what is added, without what is dropped; `ALL` drops every one that is not added.
fn capabilities(add: &[String], drop: &[String]) -> Vec<u8> {
    let names =
        |list: &[String], name: &str| list.iter().any(|own| own.strip_prefix("CAP_").unwrap_or(own) == name);
    let has = |(name, _, usual): &(&str, u8, bool)| {
        names(add, name) || (*usual && !names(drop, name) && !names(drop, "ALL"))
    };
    CAPABILITIES.iter().filter(|capability| has(capability)).map(|(_, number, _)| *number).collect()
}

/// `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`.
fn number(signal: &str) -> Option<i32> {
    let name = signal.strip_prefix("SIG").unwrap_or(signal);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        // glibc keeps the first two for itself: its SIGRTMIN is 34.
        let more =
            if rest.is_empty() { Some(0) } else { rest.strip_prefix('+').and_then(|n| n.parse().ok()) };
        return more.filter(|n| (0..=30).contains(n)).map(|n: i32| 34 + n);
    }
    let known = SIGNALS.iter().position(|known| *known == name).map(|at| at as i32 + 1);
    known.or_else(|| name.parse().ok().filter(|n| (1..=64).contains(n)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::vm::sample;
    use amphi_api::image::ImageFormat;
    use serde_json::json;

    fn set(value: serde_json::Value) -> SetSpec {
        let set: SetSpec = serde_json::from_value(value).unwrap();
        set.check().unwrap();
        set.normalized()
    }

    fn rendered(set: &SetSpec, config: serde_json::Value) -> Result<Guest, DriverError> {
        let plan = sample::plan(ImageFormat::DockerArchive);
        let image = plan.body.images()[0].clone();
        let text = config.to_string();
        let configs = BTreeMap::from([(image.id, text.as_bytes())]);
        guest(&plan, set, &vec![image; set.members.len()], &configs)
    }

    #[test]
    fn a_set_with_everything() {
        let set = set(json!({
        "anchor": {"sysctls": {"net.core.somaxconn": "1024"}, "dns": {"search": ["example.org"]},
            "hosts": {"db": "10.1.0.9"}, "timezone": "Europe/Berlin"},
        "volume_mount": "/srv",
        "members": [
            {"name": "web", "index": 2, "image": "x", "args": ["-v"], "env": {"A": "2"}, "user": "app",
                "options": {"cpu": 75, "mem": 50, "pids": 100}, "ulimits": {"nofile": {"soft": 1, "hard": -1}},
                "capabilities": {"add": ["CAP_NET_ADMIN"], "drop": ["ALL"]}, "read_only": true,
                "tmpfs": [{"path": "/t"}], "files": [{"path": "/etc/x", "content": "secret", "mode": "0640"}],
                "mounts": [{"path": "/part", "sub_path": "a/b"}], "restart": "on_failure",
                "hooks": {"post_start": {"command": ["/up"]}}, "stop": {"signal": "RTMIN+3", "grace_s": 3},
                "probes": {"readiness": {"http": {"port": 80}}, "liveness": {"exec": ["/ok"]}}},
            {"name": "first", "index": 1, "image": "x", "command": ["/own", "program"], "next_when": "started"}
        ]}));
        let config = json!({"config": {"Env": ["PATH=/bin", "A=1"], "Entrypoint": ["/entry"], "Cmd": ["cmd"],
            "User": "7", "WorkingDir": "/w", "StopSignal": "SIGQUIT"}});
        let guest = rendered(&set, config).unwrap();
        assert_eq!((guest.version, guest.volume_mount.as_str(), guest.shm_mib), (VERSION, "/srv", 64));
        assert_eq!(guest.sysctls.get("net.core.somaxconn").map(String::as_str), Some("1024"));
        assert_eq!(
            (guest.dns_search, guest.dns),
            (vec!["example.org".to_owned()], vec!["10.1.0.2".parse::<IpAddr>().unwrap()])
        );
        let eth0 = &guest.interfaces[0];
        assert_eq!((eth0.mac.as_str(), eth0.mtu), ("fa:16:3e:00:00:01", 1442));
        assert_eq!(eth0.addresses, vec![("10.1.0.5".parse::<IpAddr>().unwrap(), 24_u8)]);
        assert_eq!(eth0.gateways, ["10.1.0.1".parse::<IpAddr>().unwrap()]);
        let service = Route { to: IpAddr::V4(METADATA_ADDRESS), prefix: 32, via: None };
        assert_eq!(eth0.routes, [service]);
        let [first, web] = guest.members.as_slice() else { panic!("{:?}", guest.members) };
        assert_eq!(
            (first.name.as_str(), first.argv.join(" "), first.next),
            ("first", "/own program".to_owned(), Next::Started)
        );
        assert_eq!((first.user.as_str(), first.directory.as_str(), first.stop_signal), ("7", "/w", 3));
        assert_eq!(web.argv, ["/entry", "-v"]);
        assert_eq!(web.env, ["PATH=/bin", "A=1", "A=2", "TZ=Europe/Berlin"]);
        assert_eq!((web.user.as_str(), web.stop_signal, web.grace_s), ("app", 37, Some(3)));
        // Of 2 vCPU and 128 MiB.
        assert_eq!((web.cpu_centi, web.memory_bytes, web.pids), (150, 64 << 20, 100));
        assert_eq!(
            (web.capabilities.as_slice(), web.read_only, web.restart),
            ([12].as_slice(), true, Restart::OnFailure)
        );
        assert_eq!(web.ulimits.get("nofile"), Some(&(1, -1)));
        assert_eq!((web.files[0].path.as_str(), web.files[0].mode), ("/etc/x", 0o640));
        assert_eq!(web.files[1].path, AUTHORIZED_KEYS);
        assert_eq!((web.mounts[0].path.as_str(), web.mounts[0].sub_path.as_str()), ("/part", "a/b"));
        assert!(
            matches!(&web.readiness.as_ref().unwrap().ask, Ask::Http { port: 80, .. }),
            "{:?}",
            web.readiness
        );
        assert!(web.startup.is_none() && web.liveness.is_some() && web.post_start.is_some());
    }

    #[test]
    fn programs_are_found_as_docker_finds_them() {
        let argv = |member: serde_json::Value, config: serde_json::Value| {
            let mut all = json!({"index": 0, "image": "x"});
            for (key, value) in member.as_object().unwrap() {
                all[key] = value.clone();
            }
            let set = set(json!({"members": [all]}));
            rendered(&set, json!({"config": config})).map(|guest| guest.members[0].argv.join(" "))
        };
        let both = || json!({"Entrypoint": ["e"], "Cmd": ["c"]});
        for (member, config, expected) in [
            (json!({}), both(), "e c"),
            (json!({"args": ["a"]}), both(), "e a"),
            (json!({"command": ["x", "y"]}), both(), "x y"),
            (json!({}), json!({"Cmd": ["c", "d"]}), "c d"),
            (json!({"args": ["a"]}), json!({"Cmd": ["c"]}), "a"),
            (json!({}), json!({"Entrypoint": ["e"], "Cmd": null}), "e"),
        ] {
            assert_eq!(argv(member.clone(), config).unwrap(), expected, "{member}");
        }
        let none = argv(json!({}), json!({})).unwrap_err();
        assert_eq!(none.code(), "image_broken");
        assert!(none.to_string().contains("names no program"), "{none}");
        assert!(argv(json!({"command": ["x"]}), json!(null)).is_ok());
    }

    #[test]
    fn what_a_disk_starts_with() {
        let of = |config: serde_json::Value| start(json!({ "config": config }).to_string().as_bytes());
        let web = of(
            json!({"Entrypoint": ["/web"], "Cmd": ["-v"], "Env": ["A=1"], "User": "www", "StopSignal": "SIGQUIT"}),
        );
        let web = web.unwrap();
        assert_eq!((web.init, web.argv.join(" "), web.stop_signal), (None, "/web -v".into(), 3));
        assert_eq!((web.env.join(" "), web.user.as_str()), ("A=1".into(), "www"));
        assert_eq!(of(json!({"Cmd": ["/sbin/init"]})).unwrap().init.as_deref(), Some("/sbin/init"));
        assert_eq!(of(json!({"Cmd": ["/sbin/init", "3"]})).unwrap().init, None);
        assert!(of(json!({})).is_err() && start(b"x").is_err());
    }

    #[test]
    fn signals_and_capabilities() {
        for (name, expected) in [
            ("SIGTERM", Some(15)),
            ("INT", Some(2)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMIN+31", None),
            ("", None),
            ("99", None),
        ] {
            assert_eq!(number(name), expected, "{name:?}");
        }
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        assert_eq!(capabilities(&[], &[]), [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31]);
        assert_eq!(capabilities(&words(&["NET_ADMIN"]), &words(&["ALL"])), [12]);
        assert!(!capabilities(&[], &words(&["CAP_NET_RAW"])).contains(&13));
    }
}
