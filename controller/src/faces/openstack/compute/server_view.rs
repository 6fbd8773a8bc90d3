//! A server as each microversion shows it. Pure: (view, record) → JSON, field by field straight into the text that goes
//! out: a thousand servers of a list as values would be a hundred thousand small pieces of memory. Boundaries: nova's API
//! history and the response schemas of Tempest (`tempest/lib/api_schema/response/compute`).

use super::super::gate::Base;
use super::super::microversion::Microversion;
use super::super::words;
use super::links;
use crate::model::{FlavorCopy, InstanceRecord, ServerState, VmState, server_fault};
use crate::ops::aggregates::zone_of;
use crate::ops::{View, servers};
use amphi_api::host::HostState;
use amphi_api::{NetworkId, VolumeId};
use base64::Engine;
use jiff::Timestamp;
use serde::ser::{Serialize, SerializeMap, Serializer};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha224};

/// Which of nova's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    Show,
    /// One of a list.
    Detail,
    Update,
    Rebuild,
}

/// All that showing needs beside the record.
#[derive(Clone, Copy)]
pub(super) struct Sight<'a> {
    pub view: &'a View,
    pub version: Microversion,
    pub admin: bool,
    pub base: &'a Base,
    pub now: Timestamp,
}

/// Statuses that come with a `progress` (nova/api/openstack/compute/views/servers.py).
const PROGRESS: &[&str] = &["ACTIVE", "BUILD", "REBUILD", "RESIZE", "VERIFY_RESIZE", "MIGRATING"];

impl Sight<'_> {
    pub fn state(&self, record: &InstanceRecord) -> ServerState {
        servers::state(self.view, record, self.now)
    }

    /// Id, links and name.
    pub fn brief(&self, record: &InstanceRecord) -> Value {
        let id = record.id.to_string();
        json!({"links": links(self.base, "servers", &id), "id": id, "name": record.name})
    }

    pub fn server<'s>(&'s self, record: &'s InstanceRecord, form: Form) -> Shown<'s> {
        Shown { sight: self, record, form }
    }

    /// `""` for a server that boots from a volume.
    fn image(&self, record: &InstanceRecord) -> Value {
        let made_of = record.body_of(record.body).and_then(|body| body.images.first().copied());
        let image = record.server.image.or(made_of.filter(|_| record.server.flavor.is_none()));
        match image.filter(|_| record.root_volume.is_none()) {
            Some(id) => {
                let id = id.to_string();
                let href = format!("{}/compute/images/{id}", self.base.0);
                json!({"links": [{"rel": "bookmark", "href": href}], "id": id})
            }
            None => "".into(),
        }
    }

    fn flavor(&self, record: &InstanceRecord) -> Value {
        let native;
        let flavor = match &record.server.flavor {
            Some(flavor) => flavor,
            None => {
                native = FlavorCopy {
                    id: "native".into(),
                    name: "native".into(),
                    vcpus: record.vcpus,
                    ram_mib: record.memory_mib,
                    ..FlavorCopy::default()
                };
                &native
            }
        };
        if self.version.from(47) {
            return json!({
                "vcpus": flavor.vcpus, "ram": flavor.ram_mib, "disk": flavor.disk_gib,
                "ephemeral": flavor.ephemeral_gib, "swap": flavor.swap_mib,
                "original_name": flavor.name, "extra_specs": flavor.extra_specs,
            });
        }
        let bookmark = &links(self.base, "flavors", &flavor.id)[1];
        json!({"id": flavor.id, "links": [bookmark]})
    }

    /// By network's name.
    pub fn addresses(&self, record: &InstanceRecord, extended: bool) -> Value {
        let mut all = Map::new();
        for port in record.ports.iter().filter_map(|id| self.view.ports.get(*id)) {
            let name = network_name(self.view, port.network);
            let list = all.entry(name).or_insert_with(|| json!([]));
            let Value::Array(list) = list else { continue };
            let entry = |address: std::net::IpAddr, kind: &str| {
                let mut entry = json!({"version": if address.is_ipv4() { 4 } else { 6 }, "addr": address});
                if extended {
                    entry["OS-EXT-IPS:type"] = kind.into();
                    entry["OS-EXT-IPS-MAC:mac_addr"] = port.mac.as_str().into();
                }
                entry
            };
            list.extend(port.addresses().map(|address| entry(address, "fixed")));
            let floating = self.view.floating_ips_of(port.id);
            list.extend(floating.map(|floating| entry(floating.address, "floating")));
        }
        Value::Object(all)
    }

    fn volumes(&self, record: &InstanceRecord) -> Value {
        let one = |(id, ends): (VolumeId, bool)| {
            let mut volume = json!({"id": id.to_string()});
            if self.version.from(3) {
                volume["delete_on_termination"] = ends.into();
            }
            volume
        };
        let root = record.root_volume.map(|id| (id, record.server.root_ends_with_it));
        let own = record.volume.map(|id| (id, record.trash_volume));
        let further = record.attachments.iter().map(|a| (a.volume, a.delete_on_termination));
        root.into_iter().chain(own).chain(further).map(one).collect()
    }

    /// nova/objects/fields.py, `HostStatus`.
    fn host_status(&self, record: &InstanceRecord) -> &'static str {
        let Some(host) = record.host.and_then(|id| self.view.hosts.get(id)) else { return "" };
        match host.state {
            _ if host.forced_down => "DOWN",
            HostState::Up if host.disabled => "MAINTENANCE",
            HostState::Up => "UP",
            HostState::Joined | HostState::Down => "UNKNOWN",
        }
    }
}

/// A server in one of its forms, to be written.
pub(super) struct Shown<'a> {
    sight: &'a Sight<'a>,
    record: &'a InstanceRecord,
    form: Form,
}

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        // From 2.75 on, changes answer with all that is shown.
        let full = matches!(self.form, Form::Show | Form::Detail) || self.sight.version.from(75);
        let state = self.sight.state(self.record);
        let mut out = to.serialize_map(None)?;
        self.basics(state, full, &mut out)?;
        if full {
            self.rest(state, &mut out)?;
        }
        self.later(full, &mut out)?;
        out.end()
    }
}

impl Shown<'_> {
    fn basics<M: SerializeMap>(&self, state: ServerState, full: bool, out: &mut M) -> Result<(), M::Error> {
        let Shown { sight, record, .. } = *self;
        let server = &record.server;
        let id = record.id.to_string();
        out.serialize_entry("links", &links(sight.base, "servers", &id))?;
        out.serialize_entry("id", &id)?;
        out.serialize_entry("name", &record.name)?;
        out.serialize_entry("status", &state.status)?;
        out.serialize_entry("tenant_id", &words::hex(record.project))?;
        out.serialize_entry("user_id", &server.user.map(words::hex).unwrap_or_default())?;
        out.serialize_entry("metadata", &record.metadata)?;
        out.serialize_entry("hostId", &host_id(record))?;
        out.serialize_entry("image", &sight.image(record))?;
        out.serialize_entry("flavor", &sight.flavor(record))?;
        out.serialize_entry("created", &words::time(record.created_at))?;
        out.serialize_entry("updated", &words::time(record.updated_at))?;
        out.serialize_entry("addresses", &sight.addresses(record, full))?;
        out.serialize_entry("accessIPv4", &server.access_v4.map(|ip| ip.to_string()).unwrap_or_default())?;
        out.serialize_entry("accessIPv6", &server.access_v6.map(|ip| ip.to_string()).unwrap_or_default())?;
        out.serialize_entry("OS-DCF:diskConfig", &if server.manual_disk { "MANUAL" } else { "AUTO" })?;
        if PROGRESS.contains(&state.status) {
            let there = !matches!(state.status, "BUILD" | "REBUILD" | "RESIZE");
            out.serialize_entry("progress", &if there { 100 } else { 0 })?;
        }
        if let Some(fault) = server_fault(record, sight.now).filter(|_| state.vm == VmState::Error) {
            let mut told = json!({
                "code": 500, "created": words::time(fault.since), "message": brief_of(&fault.message),
            });
            if sight.admin {
                told["details"] = fault.message.as_str().into();
            }
            out.serialize_entry("fault", &told)?;
        }
        Ok(())
    }

    /// What showing has and, before 2.75, changing has not.
    fn rest<M: SerializeMap>(&self, state: ServerState, out: &mut M) -> Result<(), M::Error> {
        let Shown { sight, record, form } = *self;
        let server = &record.server;
        out.serialize_entry("key_name", &server.key_name)?;
        out.serialize_entry("config_drive", &if server.config_drive { "True" } else { "" })?;
        let groups = record.security_groups.iter().filter_map(|id| sight.view.groups.get(*id));
        let groups: Vec<Value> = groups.map(|group| json!({"name": group.name})).collect();
        if !groups.is_empty() {
            out.serialize_entry("security_groups", &groups)?;
        }
        let zone = record.host.map(|host| zone_of(sight.view, host));
        out.serialize_entry(
            "OS-EXT-AZ:availability_zone",
            &zone.or_else(|| server.zone.clone()).unwrap_or_default(),
        )?;
        out.serialize_entry("OS-SRV-USG:launched_at", &server.launched_at.map(words::cinder_time))?;
        out.serialize_entry("OS-SRV-USG:terminated_at", &Value::Null)?;
        out.serialize_entry("OS-EXT-STS:task_state", &state.task)?;
        out.serialize_entry("OS-EXT-STS:vm_state", &state.vm.word())?;
        out.serialize_entry("OS-EXT-STS:power_state", &state.power)?;
        out.serialize_entry("os-extended-volumes:volumes_attached", &sight.volumes(record))?;
        if sight.admin {
            let host = record.host.and_then(|host| sight.view.host_name(host));
            out.serialize_entry("OS-EXT-SRV-ATTR:host", &host)?;
            out.serialize_entry("OS-EXT-SRV-ATTR:hypervisor_hostname", &host)?;
            out.serialize_entry("OS-EXT-SRV-ATTR:instance_name", &format!("amphi-{}", record.id))?;
        }
        if sight.admin && sight.version.from(3) {
            out.serialize_entry("OS-EXT-SRV-ATTR:reservation_id", &server.reservation)?;
            out.serialize_entry("OS-EXT-SRV-ATTR:launch_index", &server.launch_index)?;
            out.serialize_entry("OS-EXT-SRV-ATTR:kernel_id", &"")?;
            out.serialize_entry("OS-EXT-SRV-ATTR:ramdisk_id", &"")?;
            out.serialize_entry("OS-EXT-SRV-ATTR:root_device_name", &"/dev/vda")?;
            if form != Form::Rebuild {
                out.serialize_entry("OS-EXT-SRV-ATTR:user_data", &user_data(record))?;
            }
        }
        if (sight.admin && sight.version.from(3)) || sight.version.from(90) {
            out.serialize_entry("OS-EXT-SRV-ATTR:hostname", &hostname(record))?;
        }
        if sight.admin && sight.version.from(16) {
            out.serialize_entry("host_status", &sight.host_status(record))?;
        }
        Ok(())
    }

    /// What later microversions brought to all forms.
    fn later<M: SerializeMap>(&self, full: bool, out: &mut M) -> Result<(), M::Error> {
        let Shown { sight, record, form } = *self;
        let (server, from) = (&record.server, |minor| sight.version.from(minor));
        if from(9) {
            out.serialize_entry("locked", &server.locked.is_some())?;
        }
        if from(19) {
            out.serialize_entry("description", &server.description)?;
        }
        if from(26) {
            out.serialize_entry("tags", &server.tags)?;
        }
        if form == Form::Rebuild && from(54) && !full {
            out.serialize_entry("key_name", &server.key_name)?;
        }
        if form == Form::Rebuild && from(57) {
            out.serialize_entry("user_data", &user_data(record))?;
        }
        if from(63) {
            out.serialize_entry("trusted_image_certificates", &Value::Null)?;
        }
        if from(71) && form != Form::Detail {
            let group = server.group.filter(|id| sight.view.server_groups.get(*id).is_some());
            out.serialize_entry("server_groups", &group.iter().map(|id| id.to_string()).collect::<Vec<_>>())?;
        }
        if from(73) {
            out.serialize_entry(
                "locked_reason",
                &server.locked.as_ref().and_then(|lock| lock.reason.as_ref()),
            )?;
        }
        if from(96) {
            out.serialize_entry("pinned_availability_zone", &server.zone)?;
        }
        Ok(())
    }
}

pub(super) fn network_name(view: &View, id: NetworkId) -> String {
    let name = view.networks.get(id).map(|n| n.name.clone()).unwrap_or_default();
    if name.is_empty() { id.to_string() } else { name }
}

/// nova's `hostId`: the same for two servers of a project on one host, and telling nothing else.
pub(super) fn host_id(record: &InstanceRecord) -> String {
    let Some(host) = record.host else { return String::new() };
    hex::encode(Sha224::digest(format!("{}{host}", record.project)))
}

fn user_data(record: &InstanceRecord) -> Value {
    let encode = |text: &String| base64::engine::general_purpose::STANDARD.encode(text);
    record.user_data.as_ref().map(encode).into()
}

/// The name as a host name (nova/utils.py, `sanitize_hostname`), where none was given.
pub(super) fn hostname(record: &InstanceRecord) -> String {
    if let Some(name) = &record.server.hostname {
        return name.clone();
    }
    let spaced = record.name.replace([' ', '_'], "-");
    let kept: String =
        spaced.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')).collect();
    let name = kept.to_ascii_lowercase().trim_matches(['.', '-']).chars().take(63).collect::<String>();
    if name.is_empty() { format!("server-{}", record.id) } else { name }
}

/// The first sentence: nova's `message` beside its `details`.
fn brief_of(message: &str) -> &str {
    let end = message.char_indices().nth(255).map_or(message.len(), |(at, _)| at);
    let message = &message[..end];
    message.split_once(". ").map_or(message, |(first, _)| first)
}
