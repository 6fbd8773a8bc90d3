//! One service as a member.

use super::text::{Tree, entries, list, pairs, str_of};
use super::words::{bytes, seconds, split};
use super::{Import, Size, deploy, health, places};
use amphi_api::set::{Capabilities, LogSpec, MemberSpec, RestartPolicy, StopSpec, Ulimit};
use std::collections::{BTreeMap, BTreeSet};

/// What another service waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Started,
    Healthy,
    Finished,
}

pub struct Service {
    /// Its index is not decided yet.
    pub member: MemberSpec,
    pub after: BTreeMap<String, Condition>,
    /// The names under which others reach it.
    pub names: BTreeSet<String>,
    /// What it listens on, as far as the file says: `80/tcp`.
    pub ports: BTreeSet<String>,
    pub said_restart: bool,
}

/// What a set has no word for, and why not.
const NO_WORD: [(&str, &str); 26] = [
    ("build", "images are made elsewhere; the catalogue needs one of this name"),
    ("container_name", "members are named by the service"),
    ("env_file", "variables are taken from 'environment' alone"),
    ("extends", "write the service out"),
    ("hostname", "the whole set has one host name: the instance's"),
    ("domainname", "the whole set has one host name: the instance's"),
    ("networks", "a set is on the networks of its instance: --network"),
    ("network_mode", "a set has a network of its own"),
    ("mac_address", "addresses are the instance's"),
    ("privileged", "no member reaches beyond its set"),
    ("devices", "no member reaches beyond its set"),
    ("device_cgroup_rules", "no member reaches beyond its set"),
    ("security_opt", "no member reaches beyond its set"),
    ("pid", "every member has its own processes"),
    ("ipc", "members of a set share one IPC namespace"),
    ("uts", "the whole set has one host name"),
    ("userns_mode", "has no word in a set"),
    ("cgroup_parent", "limits are shares of the set"),
    ("init", "an init is the image's own affair"),
    ("tty", "members have no terminal; 'amphi exec -it' gives one"),
    ("stdin_open", "members have no input; 'amphi exec -i' gives it"),
    ("labels", "a set has metadata as a whole: --metadata"),
    ("pids_limit", "has no word in a set"),
    ("memswap_limit", "members do not swap"),
    ("mem_reservation", "a set's resources are the instance's own"),
    ("cpu_shares", "say 'cpus': shares are percent of the set"),
];

impl Service {
    pub fn read(
        name: &str,
        tree: &Tree,
        size: Size,
        shared: &places::Shared<'_>,
        import: &mut Import,
    ) -> Result<Service, String> {
        let place = format!("services.{name}");
        let mut service = Service {
            member: MemberSpec { name: name.to_owned(), ..MemberSpec::default() },
            after: BTreeMap::new(),
            names: BTreeSet::from([name.to_owned()]),
            ports: BTreeSet::new(),
            said_restart: false,
        };
        service.member.image = str_of(&tree["image"]).unwrap_or_else(|| name.to_owned());
        service.member.options = deploy::shares(&place, tree, size, import)?;
        service.commands(&place, tree)?;
        service.member.probes.readiness = health::read(&place, &tree["healthcheck"], import);
        places::read(&place, tree, shared, &mut service.member, import);
        for (key, value) in entries(tree) {
            service.take(&key, value, &format!("{place}.{key}"), import)?;
        }
        Ok(service)
    }

    fn commands(&mut self, place: &str, tree: &Tree) -> Result<(), String> {
        let words = |key: &str| match &tree[key] {
            Tree::Array(_) => Ok(list(&tree[key])),
            one => split(&str_of(one).unwrap_or_default()).map_err(|why| format!("{place}.{key}: {why}")),
        };
        let (entrypoint, command) = (words("entrypoint")?, words("command")?);
        match entrypoint.is_empty() {
            true => self.member.args = command,
            false => self.member.command = entrypoint.into_iter().chain(command).collect(),
        }
        Ok(())
    }

    fn take(&mut self, key: &str, value: &Tree, place: &str, import: &mut Import) -> Result<(), String> {
        let member = &mut self.member;
        match key {
            "image" | "command" | "entrypoint" | "healthcheck" | "volumes" | "configs" | "secrets"
            | "tmpfs" | "cpus" | "mem_limit" => {}
            "environment" => {
                for (name, value) in pairs(value) {
                    match value {
                        Some(value) => drop(member.env.insert(name, value)),
                        None => import.leave(format!("{place}.{name}"), "no value is given"),
                    }
                }
            }
            "working_dir" => member.directory = str_of(value),
            "user" => member.user = str_of(value),
            "read_only" => member.read_only = value.as_bool().unwrap_or(false),
            "stop_signal" => member.stop.signal = str_of(value),
            "stop_grace_period" => {
                let grace = str_of(value).as_deref().and_then(seconds).map(|s| s.min(600));
                member.stop = StopSpec { grace_s: grace, ..member.stop.clone() };
            }
            "restart" => {
                let said = str_of(value).unwrap_or_default();
                self.said_restart = true;
                member.restart = match said.split(':').next().unwrap_or_default() {
                    "no" | "false" => RestartPolicy::Never,
                    "on-failure" => RestartPolicy::OnFailure,
                    _ => RestartPolicy::Always,
                };
                if said.contains(':') {
                    import.leave(place, "it is tried without end, ever more slowly, up to once a minute");
                }
            }
            "cap_add" | "cap_drop" => {
                for name in list(value) {
                    match (key, Capabilities::may_be_added(&name)) {
                        ("cap_drop", _) => member.capabilities.drop.push(name),
                        (_, true) => member.capabilities.add.push(name),
                        (_, false) => {
                            import.leave(format!("{place}.{name}"), "it reaches beyond the set");
                        }
                    }
                }
            }
            "ulimits" => {
                for (name, limit) in entries(value) {
                    let both = limit.as_i64().map(|n| (n, n));
                    let pair = limit["soft"].as_i64().zip(limit["hard"].as_i64());
                    match both.or(pair) {
                        Some((soft, hard)) => drop(member.ulimits.insert(name, Ulimit { soft, hard })),
                        None => import.leave(format!("{place}.{name}"), "needs numbers, soft and hard"),
                    }
                }
            }
            "logging" => log(value, place, member, import),
            "depends_on" | "links" => self.depends(key, value),
            "ports" | "expose" => self.listens(key, value, place, import),
            "deploy" => {
                if let Some(policy) = deploy::restart(value) {
                    (self.said_restart, self.member.restart) = (true, policy);
                }
                for (inside, _) in entries(value) {
                    match inside.as_str() {
                        "resources" | "restart_policy" => {}
                        "replicas" if value["replicas"].as_i64() == Some(1) => {}
                        "replicas" => import.leave(format!("{place}.replicas"), ONE),
                        other => import.leave(format!("{place}.{other}"), "has no word in a set"),
                    }
                }
            }
            "scale" if value.as_i64() != Some(1) => import.leave(place, ONE),
            "scale" => {}
            "dns" | "dns_search" | "dns_opt" | "extra_hosts" | "sysctls" | "shm_size" => {
                set_wide(key, value, place, import);
            }
            key if key.starts_with("x-") => {}
            key => {
                let why = NO_WORD.iter().find(|(word, _)| *word == key).map(|(_, why)| *why);
                import.leave(place, why.unwrap_or("has no word in a set"));
            }
        }
        Ok(())
    }

    fn depends(&mut self, key: &str, value: &Tree) {
        for name in list(value) {
            let (name, alias) = name.split_once(':').unwrap_or((&name, ""));
            if !alias.is_empty() {
                self.names.insert(alias.to_owned());
            }
            self.after.entry(name.to_owned()).or_insert(Condition::Started);
        }
        if key == "depends_on" {
            for (name, how) in entries(value) {
                let condition = match str_of(&how["condition"]).as_deref() {
                    Some("service_healthy") => Condition::Healthy,
                    Some("service_completed_successfully") => Condition::Finished,
                    _ => Condition::Started,
                };
                self.after.insert(name, condition);
            }
        }
    }

    fn listens(&mut self, key: &str, value: &Tree, place: &str, import: &mut Import) {
        for one in value.as_vec().into_iter().flatten() {
            let said = str_of(one).or_else(|| str_of(&one["target"])).unwrap_or_default();
            let (port, protocol) = said.split_once('/').unwrap_or((&said, "tcp"));
            let port = port.rsplit(':').next().unwrap_or(port);
            self.ports.insert(format!("{port}/{protocol}"));
            if key == "ports" {
                let why = format!(
                    "is not published: the set has an address of its own, and {port}/{protocol} is reached there as its security groups allow"
                );
                import.leave(format!("{place}.{said}"), why);
            }
        }
    }
}

const ONE: &str = "a set has one of each member; several are several sets";

/// Docker's own file driver has the same two numbers.
fn log(value: &Tree, place: &str, member: &mut MemberSpec, import: &mut Import) {
    let driver = str_of(&value["driver"]).unwrap_or_else(|| "json-file".to_owned());
    if driver != "json-file" && driver != "local" {
        import.leave(place, format!("output is kept on the host, not given to '{driver}'"));
        return;
    }
    let mut log = LogSpec::default();
    for (key, value) in entries(&value["options"]) {
        let text = str_of(value).unwrap_or_default();
        match (key.as_str(), bytes(&text), text.parse::<u32>()) {
            ("max-size", Some(size), _) => {
                log.max_size_mib = u32::try_from(size.div_ceil(1 << 20)).unwrap_or(u32::MAX).clamp(1, 1024);
            }
            ("max-file", _, Ok(files)) => log.max_files = files.clamp(1, 16),
            _ => import.leave(format!("{place}.options.{key}"), "has no word in a set"),
        }
    }
    member.log = log;
}

/// What one service says and all members get.
fn set_wide(key: &str, value: &Tree, place: &str, import: &mut Import) {
    let anchor = &mut import.set.anchor;
    let mut left = Vec::new();
    let add = |all: &mut Vec<String>, more: Vec<String>| {
        for one in more {
            if !all.contains(&one) {
                all.push(one);
            }
        }
    };
    match key {
        "dns" => {
            for one in list(value) {
                match one.parse() {
                    Ok(address) if !anchor.dns.servers.contains(&address) => anchor.dns.servers.push(address),
                    Ok(_) => {}
                    Err(_) => left.push((one, "is no address")),
                }
            }
        }
        "dns_search" => add(&mut anchor.dns.search, list(value)),
        "dns_opt" => add(&mut anchor.dns.options, list(value)),
        "shm_size" => {
            let size = str_of(value).as_deref().and_then(bytes).map(|bytes| bytes.div_ceil(1 << 20).max(1));
            anchor.shm_mib = anchor.shm_mib.max(size);
        }
        "extra_hosts" => {
            let listed = list(value).into_iter().filter_map(|one| {
                let (name, address) = one.split_once(['=', ':'])?;
                Some((name.to_owned(), address.to_owned()))
            });
            let mapped = entries(value).into_iter().filter_map(|(name, one)| Some((name, str_of(one)?)));
            for (name, address) in listed.chain(mapped).collect::<Vec<_>>() {
                match address.trim_matches(['[', ']']).parse() {
                    Ok(address) => drop(anchor.hosts.insert(name, address)),
                    Err(_) => left.push((name, "is no address, and a set knows no 'host-gateway'")),
                }
            }
        }
        _ => {
            for (name, value) in pairs(value) {
                let Some(value) = value else { continue };
                match anchor.sysctls.get(&name) {
                    Some(other) if *other != value => left.push((name, "another service says otherwise")),
                    _ => drop(anchor.sysctls.insert(name, value)),
                }
            }
        }
    }
    for (what, why) in left {
        import.leave(format!("{place}.{what}"), why);
    }
}
