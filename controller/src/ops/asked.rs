//! What is asked of placement: of an instance that exists, of a flavor, of a project.

use super::{OpsError, View, scaling_groups, server_groups};
use crate::model::*;
use crate::scheduler::{Request, SchedulerId};
use amphi_api::instance::{BodyKind, FailoverPolicy};
use amphi_api::placement::Qos;
use amphi_api::{NetworkId, ProjectId};

/// The extra spec of a flavor, and the property of a project, that names a scheduler; also a scheduler hint.
pub const SCHEDULER_KEY: &str = "amphi:scheduler";
/// The extra spec of a flavor that names a class of service; also a scheduler hint.
pub const QOS_KEY: &str = "amphi:qos";

/// The extra spec of a flavor that names a failover policy; also a scheduler hint.
pub const FAILOVER_KEY: &str = "amphi:failover";

/// What an instance asks of a host, as it is now: its size, class, present body, ports, volumes, zone and group. Where
/// its volumes are is not in it.
pub fn request_of(view: &View, record: &InstanceRecord) -> Request {
    let ports = record.ports.iter().filter_map(|id| view.ports.get(*id));
    let group = record.server.group.and_then(|id| view.server_groups.get(id));
    Request {
        vcpus: record.vcpus,
        memory_mib: record.memory_mib,
        qos: record.server.qos,
        bodies: vec![record.body],
        guest_kit: wants_kit(&record.bodies),
        network: !record.ports.is_empty(),
        physical: physical(view, ports.map(|port| port.network)),
        volume: record.volumes().next().is_some(),
        reach: view.reach_of(record),
        images: record.body_of(record.body).map(|b| b.images.clone()).unwrap_or_default(),
        zone: record.server.zone.clone(),
        group: group
            .map(|group| server_groups::ask(view, group, Some(record.id)))
            .or_else(|| scaling_groups::ask_of(view, record)),
        extra_specs: record.server.flavor.as_ref().map(|f| f.extra_specs.clone()).unwrap_or_default(),
        // One that is known no more is no reason to stay where it is.
        scheduler: scheduler(view, record.project, record.server.scheduler.as_deref()).unwrap_or_default(),
        ..Request::default()
    }
}

/// Whether one of these bodies is a set that runs as a VM.
pub fn wants_kit(bodies: &[BodyRecord]) -> bool {
    bodies.iter().any(|body| body.kind() == BodyKind::Vm && body.spec.set().is_some())
}

/// The physical networks that these networks are on.
pub fn physical(view: &View, networks: impl Iterator<Item = NetworkId>) -> Vec<String> {
    let mut names: Vec<String> =
        networks.filter_map(|id| view.networks.get(id)?.provider.physical().map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    names
}

/// The scheduler of a request: the one it names, else its project's, else none (the cloud's).
pub fn scheduler(
    view: &View,
    project: ProjectId,
    named: Option<&str>,
) -> Result<Option<SchedulerId>, OpsError> {
    if let Some(name) = named {
        return SchedulerId::named(name).map(Some).map_err(|why| OpsError::field("scheduler", why));
    }
    let of_project =
        view.identity.projects.get(project).and_then(|row| row.extra.get(SCHEDULER_KEY)?.as_str());
    of_project
        .map(SchedulerId::named)
        .transpose()
        .map_err(|why| OpsError::field("scheduler", format!("of the project: {why}")))
}

/// The class of service that a flavor gives.
pub fn qos_of(flavor: &FlavorCopy) -> Result<Qos, OpsError> {
    let named = flavor.extra_specs.get(QOS_KEY).map(|text| text.parse::<Qos>());
    named.transpose().map(Option::unwrap_or_default).map_err(|why| OpsError::field(QOS_KEY, why))
}

/// The failover policy that a flavor gives.
pub fn failover_of(flavor: &FlavorCopy) -> Result<FailoverPolicy, OpsError> {
    let named = flavor.extra_specs.get(FAILOVER_KEY).map(|text| failover_named(text));
    named.transpose().map(Option::unwrap_or_default).map_err(|why| OpsError::field(FAILOVER_KEY, why))
}

pub fn failover_named(text: &str) -> Result<FailoverPolicy, String> {
    match text {
        "never" => Ok(FailoverPolicy::Never),
        "same_kind" => Ok(FailoverPolicy::SameKind),
        "any_kind" => Ok(FailoverPolicy::AnyKind),
        "twin" => Ok(FailoverPolicy::Twin),
        _ => Err("must be never, same_kind, any_kind or twin".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_named_as_the_native_face_spells_them() {
        for text in ["never", "same_kind", "any_kind", "twin"] {
            assert_eq!(serde_json::to_value(failover_named(text).unwrap()).unwrap(), text);
        }
        assert!(failover_named("twins").is_err());
    }
}
