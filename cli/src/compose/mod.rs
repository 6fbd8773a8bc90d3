//! Docker Compose files as set descriptions. Owns what of a file is carried over, and says of everything else why it is
//! not. Pure but for the files that a description takes in, which are read by the caller. Refuses to guess: what has no
//! word in a set is listed, never bent.

mod deploy;
mod health;
mod places;
mod service;
mod text;
mod words;

#[cfg(test)]
mod tests;

use amphi_api::set::{NextWhen, RestartPolicy, SetSpec};
use service::{Condition, Service};
use std::collections::{BTreeMap, BTreeSet};
use text::entries;

/// Something of the file that is not in the description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Where it stands: `services.web.ports`.
    pub place: String,
    pub why: String,
}

#[derive(Debug)]
pub struct Imported {
    pub set: SetSpec,
    /// In the file's order.
    pub left: Vec<Left>,
}

/// The size of the set that shares are reckoned in.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub vcpus: u32,
    pub memory_mib: u64,
}

/// What the file refers to.
pub struct Around<'a> {
    /// A variable of the environment.
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// A text file beside the Compose file. None: it is no text, too large or not there.
    pub file: &'a dyn Fn(&str) -> Option<String>,
}

/// What is gathered on the way.
#[derive(Default)]
struct Import {
    set: SetSpec,
    left: Vec<Left>,
}

impl Import {
    fn leave(&mut self, place: impl Into<String>, why: impl Into<String>) {
        self.left.push(Left { place: place.into(), why: why.into() });
    }
}

/// The set that the file describes. Errors are whole sentences.
pub fn import(source: &str, size: Size, around: &Around<'_>) -> Result<Imported, String> {
    let tree = text::read(source, around.variable)?;
    let mut import = Import::default();
    for (key, _) in entries(&tree) {
        match key.as_str() {
            "services" | "version" | "volumes" | "configs" | "secrets" | "name" => {}
            "networks" => import.leave("networks", "a set is on the networks of its instance: --network"),
            key if key.starts_with("x-") => {}
            key => import.leave(key, "has no word in a set"),
        }
    }
    let shared = places::Shared::read(&tree, around, &mut import);
    let mut services = Vec::new();
    for (name, service) in entries(&tree["services"]) {
        if !service["profiles"].is_badvalue() {
            import.leave(
                format!("services.{name}"),
                "is in a profile, so Compose does not start it by itself either",
            );
            continue;
        }
        services.push(Service::read(&name, service, size, &shared, &mut import)?);
    }
    if services.is_empty() {
        return Err("the file has no services".to_owned());
    }
    let order = order(&services)?;
    gate(&mut services, &mut import);
    reach(&services, &mut import);
    for (at, name) in order.iter().enumerate() {
        let Some(service) = services.iter_mut().find(|service| service.member.name == *name) else {
            continue;
        };
        service.member.index = u32::try_from(at + 1).unwrap_or(u32::MAX).saturating_mul(10);
        import.set.members.push(service.member.clone());
    }
    import.set.volume_mount = "/data".to_owned();
    let Import { set, left } = import;
    set.check().map_err(|error| format!("what came of it is refused: {error}"))?;
    Ok(Imported { set, left })
}

/// Names in start order: who depends comes after, else the file's order.
fn order(services: &[Service]) -> Result<Vec<String>, String> {
    let mut rest: Vec<&Service> = services.iter().collect();
    let mut done: Vec<String> = Vec::new();
    let known: BTreeSet<&str> = services.iter().map(|service| service.member.name.as_str()).collect();
    while !rest.is_empty() {
        let free = rest.iter().position(|service| {
            service.after.keys().all(|name| done.contains(name) || !known.contains(name.as_str()))
        });
        let Some(free) = free else {
            let names: Vec<&str> = rest.iter().map(|service| service.member.name.as_str()).collect();
            return Err(format!("the services {} depend on each other in a circle", names.join(", ")));
        };
        done.push(rest.remove(free).member.name.clone());
    }
    Ok(done)
}

/// What the next index waits for is said by who waits.
fn gate(services: &mut [Service], import: &mut Import) {
    let mut wanted: BTreeMap<String, BTreeSet<Condition>> = BTreeMap::new();
    for service in services.iter() {
        for (name, condition) in &service.after {
            wanted.entry(name.clone()).or_default().insert(*condition);
            if !services.iter().any(|other| other.member.name == *name) {
                let place = format!("services.{}.depends_on.{name}", service.member.name);
                import.leave(place, "there is no such service in the set");
            }
        }
    }
    for service in services.iter_mut() {
        let wanted = wanted.remove(&service.member.name).unwrap_or_default();
        let member = &mut service.member;
        let place = format!("services.{}", member.name);
        if wanted.contains(&Condition::Finished) {
            member.next_when = NextWhen::Finished;
            if member.restart == RestartPolicy::Always {
                member.restart = RestartPolicy::OnFailure;
            }
        } else if wanted.contains(&Condition::Healthy) {
            if member.probes.readiness.is_none() {
                import.leave(
                    format!("{place}.healthcheck"),
                    "another service waits until it is healthy, and it has none: what its image may bring is not asked; \
                     the next index starts as soon as it runs",
                );
            }
        } else if member.probes.readiness.is_some() {
            member.next_when = NextWhen::Started;
        }
        if !service.said_restart && member.restart == RestartPolicy::Always {
            import.leave(
                format!("{place}.restart"),
                "not said: Compose would leave it ended, a set starts it again; say restart: \"no\" to have the former",
            );
        }
    }
}

/// Services of a set are neighbours on one address: names lead to it, and a port is taken once.
fn reach(services: &[Service], import: &mut Import) {
    let local = std::net::IpAddr::from([127, 0, 0, 1]);
    if services.len() > 1 {
        for name in services.iter().flat_map(|service| &service.names) {
            import.set.anchor.hosts.entry(name.clone()).or_insert(local);
        }
    }
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for service in services {
        for port in &service.ports {
            if let Some(first) = taken.insert(port, &service.member.name)
                && first != service.member.name
            {
                import.leave(
                    format!("services.{}", service.member.name),
                    format!(
                        "listens on {port} as {first} does: members of a set share one address, so one of them needs another port"
                    ),
                );
            }
        }
    }
}
