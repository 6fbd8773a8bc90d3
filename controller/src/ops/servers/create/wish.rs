//! What a cloud's user asks for, and how it becomes a plan.

use super::plan::{NoRoomIs, Plan, launch};
use super::{bodies, nics, volumes};
use crate::model::*;
use crate::ops::asked::{SCHEDULER_KEY, failover_of, qos_of};
use crate::ops::servers::Origin;
use crate::ops::{Draft, OpsError, View, groups, quotas, resolve};
use crate::scheduler::{Policy, Request};
use amphi_api::instance::FailoverPolicy;
use amphi_api::placement::Qos;
use amphi_api::set::SetSpec;
use amphi_api::{
    ImageId, InstanceId, NetworkId, PortId, SecurityGroupId, ServerGroupId, SnapshotId, VolumeId,
};
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One instance, or several alike. Ids are those of the request; what they name is looked up at the decision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerWish {
    pub name: String,
    pub hostname: Option<String>,
    pub description: Option<String>,
    pub flavor: FlavorCopy,
    /// A disk image for a VM, a container image for a set of one member.
    pub image: Option<ImageId>,
    /// nova's block_device_mapping_v2. Container images in it are members.
    pub devices: Vec<DeviceWish>,
    pub nics: NicsWish,
    /// Name and public key.
    pub key: Option<(String, String)>,
    /// Decoded.
    pub user_data: Option<String>,
    pub config_drive: bool,
    pub metadata: BTreeMap<String, String>,
    pub tags: BTreeSet<String>,
    /// Names or ids; none: `default`.
    pub security_groups: Vec<String>,
    pub min_count: u32,
    pub max_count: u32,
    pub zone: Option<String>,
    /// The one host, by name or id; for operators.
    pub host: Option<String>,
    pub group: Option<ServerGroupId>,
    pub different_host: Vec<InstanceId>,
    pub same_host: Vec<InstanceId>,
    pub access_v4: Option<Ipv4Addr>,
    pub access_v6: Option<Ipv6Addr>,
    pub manual_disk: bool,
    /// By scheduler hint, in the place of the flavor's.
    pub scheduler: Option<String>,
    pub qos: Option<Qos>,
    pub failover: Option<FailoverPolicy>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct DeviceWish {
    pub source: DeviceSource,
    /// A disk of the body's own rather than a volume.
    pub local: bool,
    /// 0: the root; a member's index; negative or none: it does not boot.
    pub boot_index: Option<i64>,
    pub size_gib: Option<u64>,
    pub delete_on_termination: bool,
    /// `/dev/vdb`.
    pub device: Option<String>,
    pub tag: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceSource {
    Image(ImageId),
    Volume(VolumeId),
    Snapshot(SnapshotId),
    Blank,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub enum NicsWish {
    /// The project's only network, if it has one.
    #[default]
    Unsaid,
    Auto,
    None,
    These(Vec<NicWish>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NicWish {
    pub network: Option<NetworkId>,
    pub port: Option<PortId>,
    pub fixed_ip: Option<IpAddr>,
    pub tag: Option<String>,
}

/// The transaction of one instance, the `index`th of `count`.
#[allow(clippy::too_many_arguments)]
pub(super) fn decide(
    view: &View,
    origin: &Origin,
    wish: &ServerWish,
    described: Option<&SetSpec>,
    (index, count): (u32, u32),
    reservation: &str,
    policy: &Policy,
    now: Timestamp,
) -> Result<(Draft, InstanceId), OpsError> {
    let mut draft = Draft::default();
    let project = origin.project;
    // The first asks for all: a request that is too large makes nothing.
    let left = u64::from(count - index);
    let asked_quota = [
        (Resource::Instances, left),
        (Resource::Cores, left * u64::from(wish.flavor.vcpus)),
        (Resource::Ram, left * wish.flavor.ram_mib),
    ];
    quotas::check_within(view, project, Resource::MetadataItems, 0, wish.metadata.len() as u64)?;
    quotas::check_for(view, project, origin.user, &asked_quota)?;
    let made = bodies::of(view, project, wish, described, &mut draft)?;
    let (root, further) = volumes::of(view, project, wish, made.root_image, &mut draft)?;
    let nics = nics::of(view, project, &wish.nics)?;
    let groups = security_groups(view, origin, &wish.security_groups, &mut draft)?;
    // nova's names for several of one request.
    let name = if count > 1 { format!("{}-{}", wish.name, index + 1) } else { wish.name.clone() };
    let plan = Plan {
        project,
        name,
        vcpus: wish.flavor.vcpus,
        memory_mib: wish.flavor.ram_mib,
        bodies: made.bodies,
        nics,
        groups,
        egress_by_rule: true,
        own: None,
        root,
        further,
        user_data: wish.user_data.clone(),
        ssh_keys: wish.key.iter().map(|(_, public)| public.trim().to_owned()).collect(),
        metadata: wish.metadata.clone(),
        failover: wish.failover.map_or_else(|| failover_of(&wish.flavor), Ok)?,
        failover_terms: Default::default(),
        asked: asked(view, origin, wish)?,
        server: traits(
            origin,
            wish,
            made.image,
            index,
            reservation,
            wish.qos.map_or_else(|| qos_of(&wish.flavor), Ok)?,
        ),
        no_room: NoRoomIs::Told,
    };
    let id = launch(view, origin, plan, policy, now, &mut draft)?;
    Ok((draft, id))
}

fn traits(
    origin: &Origin,
    wish: &ServerWish,
    image: Option<ImageId>,
    index: u32,
    reservation: &str,
    qos: Qos,
) -> ServerTraits {
    ServerTraits {
        flavor: Some(wish.flavor.clone()),
        user: origin.user,
        image,
        key_name: wish.key.as_ref().map(|(name, _)| name.clone()),
        description: wish.description.clone(),
        hostname: wish.hostname.clone(),
        tags: wish.tags.clone(),
        zone: wish.zone.clone(),
        group: wish.group,
        config_drive: wish.config_drive,
        manual_disk: wish.manual_disk,
        access_v4: wish.access_v4,
        access_v6: wish.access_v6,
        reservation: Some(reservation.to_owned()),
        launch_index: index,
        qos,
        scheduler: wish.scheduler.clone().or_else(|| wish.flavor.extra_specs.get(SCHEDULER_KEY).cloned()),
        ..ServerTraits::default()
    }
}

fn security_groups(
    view: &View,
    origin: &Origin,
    names: &[String],
    draft: &mut Draft,
) -> Result<Vec<SecurityGroupId>, OpsError> {
    let mut found: Vec<SecurityGroupId> = Vec::new();
    for text in names {
        let id = if text == "default" {
            groups::default_of(view, origin.project, draft)
        } else {
            let row = resolve::named(&view.groups, origin.project, "security_groups", text)?;
            if row.closing {
                return Err(OpsError::field("security_groups", format!("'{text}' is being deleted")));
            }
            draft.guard(row);
            row.id
        };
        if !found.contains(&id) {
            found.push(id);
        }
    }
    if found.is_empty() {
        found.push(groups::default_of(view, origin.project, draft));
    }
    Ok(found)
}

/// What placement is asked beside the sizes.
fn asked(view: &View, origin: &Origin, wish: &ServerWish) -> Result<Request, OpsError> {
    let pinned = match &wish.host {
        Some(text) if origin.admin => Some(resolve::host(view, "host", text)?.id),
        Some(_) => return Err(OpsError::Forbidden("only operators choose hosts".into())),
        None => None,
    };
    let host_of = |id: &InstanceId| view.instances.get(*id).and_then(|i| i.host);
    Ok(Request {
        pinned,
        excluded: wish.different_host.iter().filter_map(host_of).collect(),
        zone: wish.zone.clone(),
        among: (!wish.same_host.is_empty()).then(|| wish.same_host.iter().filter_map(host_of).collect()),
        extra_specs: wish.flavor.extra_specs.clone(),
        ..Request::default()
    })
}
