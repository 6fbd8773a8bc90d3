//! A set to be looked into while its programs do nothing: the same description without probes and hooks, one member's command
//! another. Beside the instance it is an instance of its own, with an address and an empty volume of its own: a volume has
//! one writer. Instead of the instance's own members it is a rescue's: they wait, and come back at its end.

use super::journal::Started;
use super::{Origin, ServerOrder, allowed};
use crate::model::*;
use crate::ops::list::find;
use crate::ops::{Ops, OpsError, View, resolve};
use amphi_api::InstanceId;
use amphi_api::instance::{BodyKind, BodySpec, Instance, InstanceCreate, InstanceNetwork, InstanceVolume};
use amphi_api::looking::{DebugCreate, Debugging};
use amphi_api::set::{Hooks, NextWhen, Probes, RestartPolicy, SetSpec};
use jiff::Timestamp;

/// A shell that waits, and ends when it is told to.
const IDLE: [&str; 3] = ["/bin/sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"];
/// The metadata key that names whose twin an instance is.
const OF: &str = "amphi.debug.of";
/// Longest name of an instance.
const NAME_MAX: usize = 255;

impl Ops {
    pub async fn debug_instance(
        &self,
        origin: &Origin,
        id: InstanceId,
        wish: &DebugCreate,
    ) -> Result<Debugging, OpsError> {
        if wish.instead && wish.name.is_some() {
            return Err(OpsError::field("name", "is of an instance beside, and this is instead"));
        }
        if !wish.instead {
            let (request, volume) = beside(&self.world().read(), origin, id, wish)?;
            let instance = self.create_instance(origin.project, &request).await?;
            return Ok(Debugging { instance, volume });
        }
        let volume = self
            .transact_room(|view| {
                let now = Timestamp::now();
                let states = &[VmState::Active, VmState::Stopped, VmState::Error];
                let row = allowed(view, origin, id, "debug", states, now)?;
                let body = described(row, wish)?;
                let mut draft = crate::ops::Draft::default();
                for image in &body.images {
                    let text = image.to_string();
                    draft.guard(resolve::image(view, row.project, "image", &text, BodyKind::Set)?);
                }
                let mut record = (*row.record).clone();
                record.rescue = Some(body);
                record.power = amphi_api::instance::Power::On;
                record.restarts += 1;
                let started = Started { view, origin, before: &row.record, now };
                started.task(&mut draft, &mut record, Task::Rescue, "debug");
                draft.update(row, &record);
                let volume = match row.volume {
                    Some(_) => "its own, mounted as before",
                    None => "it has none",
                };
                Ok((draft, volume.to_owned()))
            })
            .await?;
        Ok(Debugging { instance: self.instance(origin.project, id)?, volume })
    }

    /// The instance's own members again.
    pub async fn end_debug(&self, origin: &Origin, id: InstanceId) -> Result<Instance, OpsError> {
        if find(&self.world().read().instances, origin.project, id)?.rescue.is_none() {
            return Err(OpsError::conflict("nothing runs instead of the instance's own members"));
        }
        self.order_server(origin, id, ServerOrder::Unrescue).await?;
        self.instance(origin.project, id)
    }
}

/// The set's own body in the other way, its images by id: names may mean others by now.
fn described(row: &InstanceRecord, wish: &DebugCreate) -> Result<BodyRecord, OpsError> {
    let body = row.body_of(BodyKind::Set).filter(|_| row.body == BodyKind::Set);
    let (Some(body), Some(BodySpec::Set(set))) = (body, body.map(|body| &body.spec)) else {
        return Err(OpsError::conflict("only sets are debugged so; of a vm, use its console or a rescue"));
    };
    let mut set = in_another_way(set, wish)?;
    for (member, image) in set.members.iter_mut().zip(&body.images) {
        member.image = image.to_string();
    }
    set.check()?;
    Ok(BodyRecord { spec: BodySpec::Set(set), images: body.images.clone() })
}

fn in_another_way(set: &SetSpec, wish: &DebugCreate) -> Result<SetSpec, OpsError> {
    let mut set = set.clone();
    let at = match &wish.member {
        None => {
            let first = set.members.iter().enumerate().min_by_key(|(_, member)| member.index);
            first.map(|(at, _)| at)
        }
        Some(name) => set.members.iter().position(|member| member.effective_name() == *name),
    };
    let Some(at) = at else {
        let name = wish.member.as_deref().unwrap_or_default();
        return Err(OpsError::field("member", format!("no member '{name}'")));
    };
    for member in &mut set.members {
        member.probes = Probes::default();
        member.hooks = Hooks::default();
        member.next_when = NextWhen::Started;
    }
    let member = &mut set.members[at];
    member.command = match wish.command.as_slice() {
        [] => IDLE.map(str::to_owned).to_vec(),
        words => words.to_vec(),
    };
    member.args = Vec::new();
    member.restart = RestartPolicy::Always;
    Ok(set)
}

/// The order for an instance beside, and what it has of the volume.
fn beside(
    view: &View,
    origin: &Origin,
    id: InstanceId,
    wish: &DebugCreate,
) -> Result<(InstanceCreate, String), OpsError> {
    let row = find(&view.instances, origin.project, id)?;
    let body = described(row, wish)?;
    let name = wish.name.clone().unwrap_or_else(|| {
        let most = row.name.floor_char_boundary(NAME_MAX - "-debug".len());
        format!("{}-debug", &row.name[..most])
    });
    let ports = row.ports.iter().filter_map(|port| view.ports.get(*port));
    let networks = ports.map(|port| InstanceNetwork {
        network: port.network.to_string(),
        address: None,
        port: None,
        bandwidth: port.bandwidth,
    });
    let size = row.volume.and_then(|volume| view.volumes.get(volume)).map(|volume| volume.size_gib);
    let volume = size.map(|size| InstanceVolume { size_gib: Some(size), name: None, id: None });
    let told = match size {
        Some(size) => {
            format!("an empty one of {size} GiB: the instance's own has one writer, and stays with it")
        }
        None => "none, as the instance".to_owned(),
    };
    let mut metadata = row.metadata.clone();
    metadata.insert(OF.to_owned(), row.id.to_string());
    let request = InstanceCreate {
        name,
        vcpus: row.vcpus,
        memory_mib: row.memory_mib,
        bodies: vec![body.spec],
        networks: networks.collect(),
        security_groups: row.security_groups.iter().map(ToString::to_string).collect(),
        volume,
        user_data: row.user_data.clone(),
        ssh_keys: row.ssh_keys.clone(),
        metadata,
        failover: amphi_api::instance::FailoverPolicy::Never,
        failover_terms: Default::default(),
        host: None,
        qos: row.server.qos,
        scheduler: None,
    };
    Ok((request, told))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{Cloud, P};
    use amphi_api::ErrorCode;
    use serde_json::json;

    fn set() -> serde_json::Value {
        json!({"set": {"members": [
            {"name": "db", "index": 0, "image": "busybox", "args": ["x"],
             "probes": {"readiness": {"tcp": {"port": 80}}}, "hooks": {"pre_stop": {"command": ["bye"]}}},
            {"name": "web", "index": 1, "image": "busybox", "restart": "never"},
        ]}})
    }

    #[tokio::test]
    async fn a_twin_beside_has_all_of_its_own() {
        let (cloud, h1, _) = Cloud::furnished().await;
        let order = json!({"host": "h1", "bodies": [set()], "volume": {"size_gib": 2}});
        let made = cloud.create(order).await.unwrap();
        cloud.obey(h1).await;
        let origin = Origin::native(P);
        let wish = DebugCreate {
            member: Some("web".into()),
            command: vec!["sleep".into(), "9".into()],
            ..Default::default()
        };
        let twin = cloud.ops.debug_instance(&origin, made.id, &wish).await.unwrap();
        assert_eq!(twin.instance.name, format!("{}-debug", made.name));
        assert!(twin.volume.contains("2 GiB"), "{}", twin.volume);
        assert!(twin.instance.volume.is_some() && twin.instance.volume != made.volume);
        assert_ne!(twin.instance.addresses[0].address, made.addresses[0].address);
        let BodySpec::Set(described) = &twin.instance.bodies[0] else { panic!("a vm") };
        let (db, web) = (&described.members[0], &described.members[1]);
        assert_eq!((web.command.as_slice(), web.restart), (&wish.command[..], RestartPolicy::Always));
        assert!(db.probes == Probes::default() && db.hooks == Hooks::default() && db.args == ["x"]);
        assert_eq!(twin.instance.metadata[OF], made.id.to_string());
        let none = DebugCreate { member: Some("anchor".into()), ..Default::default() };
        let refused = cloud.ops.debug_instance(&origin, made.id, &none).await.unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidField);
    }

    #[tokio::test]
    async fn instead_is_a_rescue_and_ends() {
        let (cloud, h1, _) = Cloud::furnished().await;
        let made = cloud.create(json!({"host": "h1", "bodies": [set()]})).await.unwrap();
        let vm = cloud
            .create(json!({"name": "vm", "host": "h1", "bodies": [{"vm": {"image": "vm"}}]}))
            .await
            .unwrap();
        cloud.obey(h1).await;
        let origin = Origin::native(P);
        let wish = DebugCreate { instead: true, ..Default::default() };
        assert_eq!(cloud.ops.end_debug(&origin, made.id).await.unwrap_err().code(), ErrorCode::Conflict);
        cloud.ops.debug_instance(&origin, made.id, &wish).await.unwrap();
        {
            let view = cloud.ops.world().read();
            let rescue = view.instances.get(made.id).unwrap().rescue.clone().unwrap();
            let BodySpec::Set(set) = rescue.spec else { panic!("a vm") };
            assert_eq!(set.members.len(), 2);
            assert_eq!((set.members[0].command[0].as_str(), set.members[0].args.len()), (IDLE[0], 0));
        }
        cloud.obey(h1).await;
        let again = cloud.ops.debug_instance(&origin, made.id, &wish).await.unwrap_err();
        assert_eq!(again.code(), ErrorCode::Conflict);
        cloud.ops.end_debug(&origin, made.id).await.unwrap();
        cloud.obey(h1).await;
        assert!(cloud.ops.world().read().instances.get(made.id).unwrap().rescue.is_none());
        for wish in [wish.clone(), DebugCreate::default()] {
            assert_eq!(
                cloud.ops.debug_instance(&origin, vm.id, &wish).await.unwrap_err().code(),
                ErrorCode::Conflict
            );
        }
        let named = DebugCreate { name: Some("x".into()), ..wish };
        assert_eq!(
            cloud.ops.debug_instance(&origin, made.id, &named).await.unwrap_err().code(),
            ErrorCode::InvalidField
        );
    }
}
