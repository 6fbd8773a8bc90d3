use super::*;
use crate::model::{FlavorCopy, ServerState, VmState, server_state};
use crate::ops::servers::*;
use amphi_api::ErrorCode;
use amphi_api::InstanceId;
use amphi_api::instance::BodyKind;
use amphi_api::volume::{VolumeCreate, VolumeState};
use amphi_api::wire::VolumeSource;
use std::collections::BTreeMap;

pub(super) fn origin() -> Origin {
    Origin { project: P, user: None, admin: false, request: "req-1".into() }
}

pub(super) fn flavor(id: &str, vcpus: u32, ram_mib: u64) -> FlavorCopy {
    FlavorCopy { id: id.into(), name: format!("f{id}"), vcpus, ram_mib, disk_gib: 1, ..Default::default() }
}

impl Cloud {
    pub(super) async fn server(&self, change: impl FnOnce(&mut ServerWish)) -> InstanceId {
        self.try_server(change).await.unwrap()
    }

    pub(super) async fn try_server(
        &self,
        change: impl FnOnce(&mut ServerWish),
    ) -> Result<InstanceId, OpsError> {
        let image = self.image_named("busybox");
        let mut wish = ServerWish {
            name: "web".into(),
            flavor: flavor("1", 1, 128),
            image: Some(image),
            ..ServerWish::default()
        };
        change(&mut wish);
        Ok(self.ops.create_server(&origin(), &wish).await?.servers[0])
    }

    pub(super) fn image_named(&self, name: &str) -> ImageId {
        self.ops.images(P, &ListQuery::default()).unwrap().iter().find(|i| i.name == name).unwrap().id
    }

    fn state(&self, id: InstanceId) -> ServerState {
        let view = self.ops.world().read();
        server_state(view.instances.get(id).unwrap(), true, Timestamp::now())
    }

    pub(super) fn status(&self, id: InstanceId) -> &'static str {
        self.state(id).status
    }

    pub(super) fn record(&self, id: InstanceId) -> crate::model::InstanceRecord {
        (*self.ops.world().read().instances.get(id).unwrap().record).clone()
    }

    async fn order(&self, id: InstanceId, order: ServerOrder) -> Result<(), OpsError> {
        self.ops.order_server(&origin(), id, order).await
    }

    /// All hosts do what they are told.
    pub(super) async fn settle(&self) {
        let hosts: Vec<HostId> = self.ops.world().read().hosts.iter().map(|h| h.id).collect();
        for host in hosts {
            self.obey(host).await;
        }
    }

    /// The volume has been in nobody's hands.
    pub(super) async fn untouched(&self, id: amphi_api::VolumeId) {
        let changed = self.ops.transact(|view| {
            let row = view.volumes.get(id).unwrap();
            let mut draft = Draft::default();
            draft.update(row, &crate::model::VolumeRecord { untouched: true, ..(*row.record).clone() });
            Ok((draft, ()))
        });
        changed.await.unwrap();
    }

    /// Claimed memory on all hosts together, in MiB.
    fn claimed(&self) -> u64 {
        self.ops.world().read().claims.iter().map(|c| c.claims.memory_mib).sum()
    }

    pub(super) fn actions(&self, id: InstanceId) -> Vec<(String, Option<bool>)> {
        let view = self.ops.world().read();
        view.actions_of(id).map(|a| (a.action.clone(), a.events[0].success)).collect()
    }
}

/// Orders, the status while each is under way, and the one after.
#[tokio::test]
async fn from_active_to_active_through_every_state() {
    use ServerOrder as O;
    let (cloud, ..) = Cloud::furnished().await;
    for image in ["busybox", "vm"] {
        let image = cloud.image_named(image);
        let id = cloud.server(|w| w.image = Some(image)).await;
        assert_eq!((cloud.status(id), cloud.state(id).task), ("BUILD", Some("spawning")));
        assert_eq!(cloud.order(id, O::Stop).await.unwrap_err().code(), ErrorCode::Conflict);
        cloud.settle().await;
        assert_eq!((cloud.status(id), cloud.state(id).task), ("ACTIVE", None));
        assert!(cloud.record(id).server.launched_at.is_some());
        let table = [
            (O::Stop, "ACTIVE", "powering-off", "SHUTOFF"),
            (O::Start, "SHUTOFF", "powering-on", "ACTIVE"),
            (O::Reboot { hard: false }, "REBOOT", "rebooting", "ACTIVE"),
            (O::Pause, "ACTIVE", "pausing", "PAUSED"),
            (O::Unpause, "PAUSED", "unpausing", "ACTIVE"),
            (O::Suspend, "ACTIVE", "suspending", "SUSPENDED"),
            (O::Reboot { hard: true }, "HARD_REBOOT", "rebooting_hard", "ACTIVE"),
            (O::Suspend, "ACTIVE", "suspending", "SUSPENDED"),
            (O::Resume, "SUSPENDED", "resuming", "ACTIVE"),
            (O::Rescue { image: None }, "ACTIVE", "rescuing", "RESCUE"),
            (O::Unrescue, "RESCUE", "unrescuing", "ACTIVE"),
            (O::Shelve, "ACTIVE", "shelving", "SHELVED_OFFLOADED"),
            (O::Unshelve, "SHELVED_OFFLOADED", "unshelving", "ACTIVE"),
        ];
        for (order, during, task, after) in table {
            cloud.order(id, order.clone()).await.unwrap();
            assert_eq!((cloud.status(id), cloud.state(id).task), (during, Some(task)), "{order:?}");
            cloud.settle().await;
            assert_eq!((cloud.status(id), cloud.state(id).task), (after, None), "{order:?}");
            if after == "SHELVED_OFFLOADED" {
                assert_eq!(cloud.claimed(), 0, "its room is free for others");
            }
        }
        let error = cloud.order(id, O::Start).await.unwrap_err().to_string();
        assert_eq!(error, format!("Cannot 'start' instance {id} while it is in vm_state active"));
        assert_eq!(cloud.actions(id).len(), 14);
        assert!(
            cloud.actions(id).iter().all(|(_, success)| *success == Some(true)),
            "{:?}",
            cloud.actions(id)
        );
        cloud.ops.delete_server(&origin(), id, VolumeFate::Keep).await.unwrap();
        assert_eq!(cloud.state(id).task, Some("deleting"));
        cloud.settle().await;
        cloud.assert_empty();
        assert_eq!(cloud.actions(id).last(), Some(&("delete".into(), Some(true))), "actions outlive it");
    }
}

#[tokio::test]
async fn a_resize_claims_both_until_somebody_says_which() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let larger = ResizeWish { flavor: Some(flavor("2", 2, 256)), host: None };
    for word in [ServerOrder::RevertResize, ServerOrder::ConfirmResize] {
        cloud.ops.resize_server(&origin(), id, &larger).await.unwrap();
        assert_eq!((cloud.status(id), cloud.claimed()), ("RESIZE", 128 + 256));
        cloud.settle().await;
        assert_eq!((cloud.status(id), cloud.state(id).task), ("VERIFY_RESIZE", None));
        let error = cloud.order(id, ServerOrder::Stop).await.unwrap_err();
        assert!(error.to_string().ends_with("while it is in vm_state resized"), "{error}");
        cloud.order(id, word.clone()).await.unwrap();
        if word == ServerOrder::RevertResize {
            assert_eq!(cloud.status(id), "REVERT_RESIZE");
        }
        cloud.settle().await;
        let (want, left) = if word == ServerOrder::RevertResize { ("1", 128) } else { ("2", 256) };
        assert_eq!((cloud.status(id), cloud.claimed()), ("ACTIVE", left));
        assert_eq!(cloud.record(id).server.flavor.unwrap().id, want);
    }
    let told: Vec<String> = {
        let view = cloud.ops.world().read();
        view.migrations.iter().map(|m| m.status.clone()).collect()
    };
    assert_eq!(told, ["reverted", "confirmed"]);
    let same = cloud.ops.resize_server(&origin(), id, &larger).await.unwrap_err();
    assert!(matches!(&same, OpsError::Field(e) if e.field == "flavorRef"), "{same:?}");
    // Deleted while it waits: nothing stays claimed.
    let small = ResizeWish { flavor: Some(flavor("1", 1, 128)), host: None };
    cloud.ops.resize_server(&origin(), id, &small).await.unwrap();
    cloud.settle().await;
    cloud.ops.delete_server(&origin(), id, VolumeFate::Keep).await.unwrap();
    cloud.settle().await;
    cloud.assert_empty();
}

#[tokio::test]
async fn what_holds_nothing_on_its_host_migrates() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let before = cloud.record(id).host.unwrap();
    cloud.ops.resize_server(&origin(), id, &ResizeWish::default()).await.unwrap();
    let other = if before == h1 { h2 } else { h1 };
    assert_eq!(cloud.record(id).host, Some(other));
    cloud.settle().await;
    cloud.order(id, ServerOrder::RevertResize).await.unwrap();
    cloud.settle().await;
    assert_eq!((cloud.record(id).host, cloud.status(id), cloud.claimed()), (Some(before), "ACTIVE", 128));

    let volume: VolumeCreate = serde_json::from_value(json!({"name": "v", "size_gib": 1})).unwrap();
    let volume = cloud.ops.create_volume(P, &volume).await.unwrap().id;
    cloud.untouched(volume).await;
    let wish = AttachWish { volume: Some(volume), ..AttachWish::default() };
    cloud.ops.attach_volume(&origin(), id, &wish).await.unwrap();
    let error = cloud.ops.resize_server(&origin(), id, &ResizeWish::default()).await.unwrap_err();
    assert!(error.to_string().contains("cannot leave its host: volume"), "{error}");
}

#[tokio::test]
async fn a_rebuild_keeps_identity_and_changes_the_body() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let before = cloud.record(id);
    cloud.order(id, ServerOrder::Stop).await.unwrap();
    cloud.settle().await;
    let wish = RebuildWish {
        image: Some(cloud.image_named("vm")),
        name: Some("new".into()),
        metadata: Some(BTreeMap::from([("a".into(), "b".into())])),
        ..RebuildWish::default()
    };
    cloud.ops.rebuild_server(&origin(), id, &wish).await.unwrap();
    assert_eq!(cloud.status(id), "REBUILD");
    cloud.settle().await;
    let after = cloud.record(id);
    assert_eq!((cloud.status(id), after.body, after.name.as_str()), ("SHUTOFF", BodyKind::Vm, "new"));
    assert_eq!((after.ports, after.epoch, after.root), (before.ports, before.epoch + 1, before.root + 1));
}

#[tokio::test]
async fn a_volume_follows_its_first_instance_and_is_free_when_the_host_lets_go() {
    let (cloud, h1, _) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let home = cloud.record(id).host.unwrap();
    let away = if home == h1 { "h2" } else { "h1" };
    let volume: VolumeCreate =
        serde_json::from_value(json!({"name": "v", "size_gib": 1, "host": away})).unwrap();
    let volume = cloud.ops.create_volume(P, &volume).await.unwrap().id;
    cloud.settle().await;
    cloud.untouched(volume).await;
    let wish = AttachWish { volume: Some(volume), device: Some("/dev/vdf".into()), ..AttachWish::default() };
    let attachment = cloud.ops.attach_volume(&origin(), id, &wish).await.unwrap();
    assert_eq!(attachment.device, "vdf");
    let error = cloud.ops.attach_volume(&origin(), id, &wish).await.unwrap_err();
    assert!(error.to_string().contains("current status is in-use"), "{error}");
    cloud.settle().await;
    let seen = cloud.ops.volume(P, volume).unwrap();
    assert_eq!((seen.host, seen.state), (home, VolumeState::InUse));
    assert_eq!(cloud.ops.desired(home).instances[0].attachments[0].device, "vdf");

    cloud.ops.detach_volume(&origin(), id, volume).await.unwrap();
    assert_eq!(cloud.ops.desired(home).instances[0].attachments, []);
    assert_eq!(cloud.ops.volume(P, volume).unwrap().state, VolumeState::InUse, "the body still holds it");
    cloud.settle().await;
    assert_eq!(cloud.ops.volume(P, volume).unwrap().state, VolumeState::Available);
}

#[tokio::test]
async fn interfaces_come_and_go() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let second = cloud.network("second", "10.9.0.0/24").await;
    let wish = NicWish { network: Some(second.id), ..NicWish::default() };
    let port = cloud.ops.attach_interface(&origin(), id, &wish).await.unwrap();
    cloud.settle().await;
    assert_eq!(cloud.record(id).ports.len(), 2);
    let twice = cloud.ops.attach_interface(&origin(), id, &wish).await.unwrap_err();
    assert_eq!(twice.code(), ErrorCode::Conflict);
    cloud.ops.detach_interface(&origin(), id, port).await.unwrap();
    assert!(cloud.ops.port(P, port).is_ok(), "nobody else gets its address before the body has let go");
    cloud.settle().await;
    assert!(cloud.ops.port(P, port).is_err());
    let none = cloud.try_server(|_| ()).await.unwrap_err();
    assert!(none.to_string().starts_with("Multiple possible networks found"), "{none}");
}

#[tokio::test]
async fn a_server_without_room_is_there_and_says_so() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|w| w.flavor = flavor("9", 1, 1 << 20)).await;
    assert_eq!((cloud.status(id), cloud.record(id).host), ("ERROR", None));
    let fault = cloud.record(id).server.failure.unwrap();
    assert!(fault.message.starts_with("No valid host was found."), "{fault:?}");
    assert_eq!(cloud.order(id, ServerOrder::Start).await.unwrap_err().code(), ErrorCode::Conflict);
    cloud.ops.delete_server(&origin(), id, VolumeFate::Keep).await.unwrap();
    cloud.assert_empty();
}

#[tokio::test]
async fn locks_hold_against_members() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let operator = Origin { admin: true, ..origin() };
    cloud.ops.order_server(&operator, id, ServerOrder::Lock { reason: Some("why".into()) }).await.unwrap();
    for order in [ServerOrder::Stop, ServerOrder::Unlock] {
        let error = cloud.order(id, order).await.unwrap_err();
        assert_eq!(error.to_string(), format!("Instance {id} is locked"));
    }
    assert!(cloud.ops.delete_server(&origin(), id, VolumeFate::Keep).await.is_err());
    cloud.ops.order_server(&operator, id, ServerOrder::Stop).await.unwrap();
    cloud.settle().await;
    cloud.ops.order_server(&operator, id, ServerOrder::Unlock).await.unwrap();
    cloud.order(id, ServerOrder::Start).await.unwrap();
}

#[tokio::test]
async fn an_image_of_a_server_gets_its_bytes_from_the_host() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let image = cloud.ops.create_server_image(&origin(), id, "snap", &BTreeMap::new()).await.unwrap();
    assert_eq!(cloud.state(id).task, Some("image_uploading"));
    let home = cloud.record(id).host.unwrap();
    assert_eq!(cloud.ops.desired(home).exports[0].image, image);
    cloud.settle().await;
    assert_eq!(cloud.state(id).task, None);
    assert_eq!(cloud.ops.desired(home).exports, []);
    assert_eq!(cloud.ops.image(P, image).unwrap().state, amphi_api::image::ImageState::Active);
}

#[tokio::test]
async fn members_are_devices_and_a_root_may_be_a_volume() {
    let (cloud, ..) = Cloud::furnished().await;
    let busybox = cloud.image_named("busybox");
    let disk = cloud.image("disk", ImageFormat::Qcow2).await;
    let device = |source, index, local| DeviceWish {
        source,
        local,
        boot_index: Some(index),
        size_gib: None,
        delete_on_termination: true,
        device: None,
        tag: None,
    };
    let image = DeviceSource::Image;
    let id = cloud
        .server(|w| {
            // As the CLI has it: the image is named twice.
            w.devices = vec![device(image(busybox), 0, true), device(image(busybox), 3, true)];
        })
        .await;
    let record = cloud.record(id);
    assert_eq!(record.bodies[0].images, [busybox, busybox]);
    assert_eq!(record.body, BodyKind::Set);

    let id = cloud
        .server(|w| {
            w.image = None;
            w.devices = vec![
                device(image(disk), 0, false),
                DeviceWish { size_gib: Some(2), ..device(DeviceSource::Blank, -1, false) },
            ];
        })
        .await;
    let record = cloud.record(id);
    assert!(record.root_volume.is_some() && record.server.image.is_none());
    assert_eq!((record.attachments.len(), record.attachments[0].device.as_str()), (1, "vdb"));
    cloud.settle().await;
    assert_eq!(cloud.status(id), "ACTIVE");
    assert_eq!(
        cloud.ops.detach_volume(&origin(), id, record.root_volume.unwrap()).await.unwrap_err().code(),
        ErrorCode::Forbidden
    );

    let both = cloud
        .server(|w| {
            w.image = Some(disk);
            w.devices = vec![device(image(busybox), 0, true)];
            w.metadata.insert("amphi:bodies".into(), "set,vm".into());
        })
        .await;
    let kinds: Vec<BodyKind> = cloud.record(both).bodies.iter().map(|b| b.kind()).collect();
    assert_eq!(kinds, [BodyKind::Set, BodyKind::Vm]);
    let wrong = cloud.try_server(|w| drop(w.metadata.insert("amphi:bodies".into(), "vm".into()))).await;
    assert_eq!(wrong.unwrap_err().code(), ErrorCode::InvalidField);
}

#[tokio::test]
async fn a_reset_state_and_a_building_server() {
    let (cloud, ..) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    let operator = Origin { admin: true, ..origin() };
    cloud.ops.order_server(&operator, id, ServerOrder::ResetState { error: true }).await.unwrap();
    assert_eq!(cloud.state(id).vm, VmState::Error);
    cloud.ops.order_server(&operator, id, ServerOrder::ResetState { error: false }).await.unwrap();
    cloud.settle().await;
    assert_eq!(cloud.status(id), "ACTIVE");
}

/// Creates at once: none waits for another's commit, no two take the same room or address, and a quota holds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_take_what_there_is_and_no_more() {
    let (cloud, ..) = Cloud::furnished().await;
    let image = cloud.image_named("busybox");
    let limits = BTreeMap::from([("instances".to_owned(), 30)]);
    cloud.ops.set_quotas(crate::model::QuotaKey::Project(P), &limits, true).await.unwrap();
    // 7,168 MiB may be promised: 28 of them.
    let wish = ServerWish {
        name: "w".into(),
        flavor: flavor("1", 1, 256),
        image: Some(image),
        ..ServerWish::default()
    };
    let mut at_once = tokio::task::JoinSet::new();
    for _ in 0..40 {
        let (ops, wish) = (cloud.ops.clone(), wish.clone());
        at_once.spawn(async move { ops.create_server(&origin(), &wish).await });
    }
    let made = at_once.join_all().await;
    assert_eq!(made.iter().filter(|m| m.is_ok()).count(), 30, "{made:?}");
    let over = made.iter().find_map(|m| m.as_ref().err()).unwrap();
    assert!(matches!(over, OpsError::Quota(_)), "{over:?}");
    let view = cloud.ops.world().read();
    assert_eq!(view.instances.iter().filter(|i| i.host.is_some()).count(), 28);
    assert_eq!(view.instances.iter().filter(|i| i.server.failure.is_some()).count(), 2);
    for claim in view.claims.iter() {
        assert_eq!(claim.claims.memory_mib, view.instances_on(claim.host).map(|i| i.memory_mib).sum::<u64>());
    }
    let addresses: HashSet<_> = view.ports.iter().flat_map(|p| p.addresses().collect::<Vec<_>>()).collect();
    assert_eq!(addresses.len(), 28);
}

#[tokio::test]
async fn an_image_stays_until_the_volume_is_made_that_begins_with_it() {
    let (cloud, h1, h2) = Cloud::furnished().await;
    let id = cloud.server(|_| ()).await;
    cloud.settle().await;
    let home = cloud.record(id).host.unwrap();
    let (away, far) = if home == h1 { ("h2", h2) } else { ("h1", h1) };
    let image = cloud.image("disk", ImageFormat::Vmdk).await;
    let wish = VolumeWish {
        name: "v".into(),
        origin: VolumeOrigin::Image(image),
        host: Some(away.into()),
        movable: true,
        ..VolumeWish::default()
    };
    let volume = cloud.ops.make_volume(P, &wish).await.unwrap();
    let begins =
        |host: HostId| cloud.ops.desired(host).volumes.iter().find(|v| v.id == volume)?.source.clone();
    assert!(matches!(begins(far), Some(VolumeSource::Image(of)) if of.id == image), "{:?}", begins(far));
    // An agent that does not know of such disks could not read its order: it is not told.
    let older = HostSpec { wire: 1, ..spec(away) };
    cloud.ops.hello(far, &older).await.unwrap();
    assert_eq!(begins(far), None);
    cloud.ops.hello(far, &spec(away)).await.unwrap();
    assert!(begins(far).is_some(), "the newer one is");
    let error = cloud.ops.delete_image(P, image).await.unwrap_err();
    assert!(error.to_string().contains("is being made of it"), "{error}");
    assert!(!cloud.ops.world().read().images.get(image).unwrap().closing, "and may be used as before");
    cloud.settle().await;
    cloud.ops.delete_image(P, image).await.unwrap();

    // It could be made again on another host as long as there was an image: now its bytes travel.
    let attach = AttachWish { volume: Some(volume), ..AttachWish::default() };
    cloud.ops.attach_volume(&origin(), id, &attach).await.unwrap();
    let record = cloud.ops.world().read().volumes.get(volume).unwrap().record.clone();
    assert!(record.journey.is_some() && record.made, "made anew, of nothing: {record:?}");
}
