//! The body of `POST /servers` as a wish: nova's fields by microversion, with the numbers and booleans that clients
//! send as text. Names of flavors, keys and zones are looked up here; all else is the operation's to judge.

use super::super::answers::Refusal;
use super::super::microversion::Microversion;
use super::super::words;
use super::server_filter::last_part;
use super::servers::truthy;
use super::{figure, flag, optional_text, refuse_unknown, text};
use crate::model::{FlavorCopy, KeyPairKey};
use crate::ops::aggregates::zones;
use crate::ops::asked::{FAILOVER_KEY, QOS_KEY, SCHEDULER_KEY, failover_named};
use crate::ops::identity::Caller;
use crate::ops::servers::{COUNT_MAX, DeviceSource, DeviceWish, NicWish, NicsWish, ServerWish};
use crate::ops::{View, flavors};
use crate::scheduler::SchedulerId;
use amphi_api::validate::{self, METADATA_MAX, USER_DATA_MAX};
use amphi_api::{
    ImageId, InstanceId, NetworkId, PortId, ProjectId, ServerGroupId, SnapshotId, UserId, VolumeId,
};
use base64::Engine;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::str::FromStr;
use uuid::Uuid;

/// What a request asks for.
pub(super) struct Asked {
    pub wish: ServerWish,
    /// Told back; nothing sets it: whoever logs in has a key.
    pub admin_pass: String,
    pub reservation_only: bool,
}

/// nova/objects/tag.py, `MAX_TAG_LENGTH`.
pub(super) const TAG_LENGTH_MAX: usize = 60;
/// Most entries of `networks` and of device lists: more could only be a mistake.
const LIST_MAX: usize = 64;

const FIELDS: &[&str] = &[
    "name",
    "imageRef",
    "flavorRef",
    "adminPass",
    "metadata",
    "networks",
    "OS-DCF:diskConfig",
    "accessIPv4",
    "accessIPv6",
    "availability_zone",
    "block_device_mapping",
    "block_device_mapping_v2",
    "config_drive",
    "key_name",
    "min_count",
    "max_count",
    "return_reservation_id",
    "security_groups",
    "user_data",
    "personality",
];

pub(super) fn read(
    view: &View,
    caller: &Caller,
    project: ProjectId,
    version: Microversion,
    body: Value,
) -> Result<Asked, Refusal> {
    let (map, hints) = outer(body)?;
    let mut known = FIELDS.to_vec();
    for (minor, names) in [
        (19, &["description"][..]),
        (52, &["tags"]),
        (63, &["trusted_image_certificates"]),
        (74, &["host", "hypervisor_hostname"]),
        (90, &["hostname"]),
    ] {
        known.extend(names.iter().filter(|_| version.from(minor)));
    }
    refuse_unknown(&map, &known)?;
    if map.get("personality").is_some_and(|p| p.as_array().is_none_or(|files| !files.is_empty())) {
        return Err(Refusal::bad("Files are not injected; use user_data"));
    }
    let mut wish = ServerWish {
        name: name(text(&map, "name")?)?,
        hostname: optional_text(&map, "hostname")?.map(hostname).transpose()?,
        description: optional_text(&map, "description")?.map(description).transpose()?,
        flavor: flavor(view, caller, project, map.get("flavorRef"))?,
        image: image_ref(map.get("imageRef"))?,
        devices: devices(&map)?,
        nics: nics(map.get("networks"), version)?,
        key: key(view, caller.user, &map)?,
        user_data: user_data(&map)?,
        config_drive: truthy(&map, "config_drive")?,
        metadata: metadata(map.get("metadata"))?,
        tags: tags(map.get("tags"))?,
        security_groups: group_names(map.get("security_groups"))?,
        manual_disk: disk_config(&map)?.unwrap_or(false),
        access_v4: access(&map, "accessIPv4")?.flatten(),
        access_v6: access(&map, "accessIPv6")?.flatten(),
        ..ServerWish::default()
    };
    (wish.min_count, wish.max_count) = counts(&map)?;
    place(view, caller, &map, &mut wish)?;
    apply_hints(view, project, &hints, &mut wish)?;
    let admin_pass = match optional_text(&map, "adminPass")? {
        Some(given) => given.to_owned(),
        None => password(),
    };
    Ok(Asked { wish, admin_pass, reservation_only: flag(&map, "return_reservation_id")?.unwrap_or(false) })
}

/// Twelve characters without those that look alike.
pub(super) fn password() -> String {
    let letters = b"abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    Uuid::new_v4()
        .as_bytes()
        .iter()
        .take(12)
        .map(|b| char::from(letters[*b as usize % letters.len()]))
        .collect()
}

/// What an object of a body holds.
type Fields = Map<String, Value>;

/// The server, and the scheduler's hints beside it.
fn outer(body: Value) -> Result<(Fields, Fields), Refusal> {
    let Value::Object(mut outer) = body else {
        return Err(Refusal::bad("Invalid input: an object with the key 'server' is required"));
    };
    let hints = ["os:scheduler_hints", "OS-SCH-HNT:scheduler_hints"].iter().find_map(|k| outer.remove(*k));
    let hints = match hints {
        None | Some(Value::Null) => Map::new(),
        Some(Value::Object(hints)) => hints,
        Some(_) => return Err(Refusal::field("os:scheduler_hints", "it must be an object")),
    };
    match outer.remove("server") {
        Some(Value::Object(server)) => Ok((server, hints)),
        Some(_) => Err(Refusal::field("server", "it must be an object")),
        None => Err(Refusal::bad("Invalid input: 'server' is a required property")),
    }
}

pub(super) fn name(text: &str) -> Result<String, Refusal> {
    let name = text.trim();
    validate::name("name", name)?;
    Ok(name.to_owned())
}

pub(super) fn description(text: &str) -> Result<String, Refusal> {
    if text.chars().count() > 255 || text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return Err(Refusal::field("description", "at most 255 printable characters"));
    }
    Ok(text.to_owned())
}

pub(super) fn hostname(text: &str) -> Result<String, Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    let inside = text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    if (2..=63).contains(&text.len()) && text.chars().all(plain) && inside {
        return Ok(text.to_owned());
    }
    Err(Refusal::field("hostname", format!("'{text}' is no host name")))
}

/// AUTO or MANUAL; true: MANUAL.
pub(super) fn disk_config(map: &Map<String, Value>) -> Result<Option<bool>, Refusal> {
    match optional_text(map, "OS-DCF:diskConfig")? {
        None => Ok(None),
        Some("AUTO") => Ok(Some(false)),
        Some("MANUAL") => Ok(Some(true)),
        Some(other) => {
            Err(Refusal::field("OS-DCF:diskConfig", format!("'{other}' is neither AUTO nor MANUAL")))
        }
    }
}

/// Absent: none; the empty text: no address.
pub(super) fn access<A: FromStr>(map: &Map<String, Value>, key: &str) -> Result<Option<Option<A>>, Refusal> {
    match map.get(key) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(_) => match text(map, key)? {
            "" => Ok(Some(None)),
            given => {
                let address =
                    given.parse().map_err(|_| Refusal::field(key, format!("'{given}' is no address")))?;
                Ok(Some(Some(address)))
            }
        },
    }
}

/// By id or URL, as text or number.
pub(super) fn flavor(
    view: &View,
    caller: &Caller,
    project: ProjectId,
    value: Option<&Value>,
) -> Result<FlavorCopy, Refusal> {
    let id = match value {
        Some(Value::String(text)) if !text.is_empty() => last_part(text).to_owned(),
        Some(Value::Number(number)) => number.to_string(),
        Some(_) => return Err(Refusal::field("flavorRef", "it must be the id of a flavor")),
        None => return Err(Refusal::bad("Invalid input: 'flavorRef' is a required property")),
    };
    let row = flavors::usable(view, project, caller.is_admin(), &id)
        .map_err(|_| Refusal::bad(format!("Flavor {id} could not be found.")))?;
    Ok(FlavorCopy::from(&*row.record))
}

/// By id or URL; the empty text means that it boots from a device.
pub(super) fn image_ref(value: Option<&Value>) -> Result<Option<ImageId>, Refusal> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) => match words::id(last_part(text)) {
            Some(id) => Ok(Some(ImageId(id))),
            None => Err(Refusal::bad("Invalid imageRef provided.")),
        },
        Some(_) => Err(Refusal::bad("Invalid imageRef provided.")),
    }
}

fn id(map: &Map<String, Value>, key: &str) -> Result<Option<Uuid>, Refusal> {
    match optional_text(map, key)? {
        None => Ok(None),
        Some(given) => words::id(given).map(Some).ok_or_else(|| {
            Refusal::bad(format!("Invalid input for field/attribute {key}. Value: {given}. It is no uuid"))
        }),
    }
}

fn objects<'a>(value: Option<&'a Value>, field: &str) -> Result<Vec<&'a Map<String, Value>>, Refusal> {
    let list = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) if list.len() <= LIST_MAX => list,
        Some(Value::Array(_)) => return Err(Refusal::field(field, format!("at most {LIST_MAX} entries"))),
        Some(_) => return Err(Refusal::field(field, "it must be a list")),
    };
    let one = |entry: &'a Value| entry.as_object().ok_or_else(|| Refusal::field(field, "a list of objects"));
    list.iter().map(one).collect()
}

fn nics(value: Option<&Value>, version: Microversion) -> Result<NicsWish, Refusal> {
    match value {
        None if version.from(37) => Err(Refusal::bad("Invalid input: 'networks' is a required property")),
        None => Ok(NicsWish::Unsaid),
        Some(Value::String(word)) if version.from(37) && word == "auto" => Ok(NicsWish::Auto),
        Some(Value::String(word)) if version.from(37) && word == "none" => Ok(NicsWish::None),
        Some(value) => {
            let nics = objects(Some(value), "networks")?;
            if nics.is_empty() {
                return Ok(NicsWish::Unsaid);
            }
            nics.into_iter().map(nic).collect::<Result<_, _>>().map(NicsWish::These)
        }
    }
}

fn nic(map: &Map<String, Value>) -> Result<NicWish, Refusal> {
    refuse_unknown(map, &["uuid", "port", "fixed_ip", "tag"])?;
    Ok(NicWish {
        network: id(map, "uuid")?.map(NetworkId),
        port: id(map, "port")?.map(PortId),
        fixed_ip: ip(map, "fixed_ip")?,
        tag: tag(map)?,
    })
}

pub(super) fn ip(map: &Map<String, Value>, key: &str) -> Result<Option<IpAddr>, Refusal> {
    let read = |text: &str| text.parse().map_err(|_| Refusal::field(key, format!("'{text}' is no address")));
    optional_text(map, key)?.map(read).transpose()
}

pub(super) fn tag(map: &Map<String, Value>) -> Result<Option<String>, Refusal> {
    optional_text(map, "tag")?.map(|text| check_tag(text).map(str::to_owned)).transpose()
}

/// nova refuses what cannot stand in a path.
pub(super) fn check_tag(text: &str) -> Result<&str, Refusal> {
    let length = text.chars().count();
    if length == 0 || length > TAG_LENGTH_MAX || text.contains(['/', ',']) {
        return Err(Refusal::field("tag", format!("1 to {TAG_LENGTH_MAX} characters without '/' and ','")));
    }
    Ok(text)
}

pub(super) fn tags(value: Option<&Value>) -> Result<BTreeSet<String>, Refusal> {
    let list = match value {
        None | Some(Value::Null) => return Ok(BTreeSet::new()),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(Refusal::field("tags", "it must be a list")),
    };
    if list.len() > crate::ops::servers::TAGS_MAX {
        return Err(Refusal::field("tags", "there are too many"));
    }
    let one = |entry: &Value| match entry {
        Value::String(text) => check_tag(text).map(str::to_owned),
        _ => Err(Refusal::field("tags", "a list of texts")),
    };
    list.iter().map(one).collect()
}

pub(super) fn metadata(value: Option<&Value>) -> Result<BTreeMap<String, String>, Refusal> {
    let map = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(Refusal::field("metadata", "it must be an object")),
    };
    map.iter().map(|(key, value)| item(key, value)).collect()
}

/// One pair: nova's lengths, its characters of keys.
pub(super) fn item(key: &str, value: &Value) -> Result<(String, String), Refusal> {
    let long = |text: &str| text.chars().count() > 255;
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_:. ".contains(c);
    if key.trim().is_empty() || long(key) || !key.chars().all(plain) {
        return Err(Refusal::bad(
            "Invalid input for field/attribute metadata: keys have 1 to 255 letters, digits, '-', '_', ':', '.' and spaces",
        ));
    }
    match value {
        Value::String(text) if !long(text) => Ok((key.to_owned(), text.clone())),
        _ => Err(Refusal::bad(format!(
            "Invalid input for field/attribute {key}: values are texts of at most 255 characters"
        ))),
    }
}

fn key(view: &View, user: UserId, map: &Map<String, Value>) -> Result<Option<(String, String)>, Refusal> {
    optional_text(map, "key_name")?.map(|name| key_named(view, user, name)).transpose()
}

pub(super) fn key_named(view: &View, user: UserId, name: &str) -> Result<(String, String), Refusal> {
    let row = view.key_pairs.get(KeyPairKey::of(user, name));
    let row = row.ok_or_else(|| Refusal::bad("Invalid key_name provided."))?;
    Ok((row.name.clone(), row.public_key.clone()))
}

/// Base64 of text.
pub(super) fn user_data(map: &Map<String, Value>) -> Result<Option<String>, Refusal> {
    let Some(encoded) = optional_text(map, "user_data")? else { return Ok(None) };
    if encoded.len() > USER_DATA_MAX {
        return Err(Refusal::field("user_data", format!("at most {USER_DATA_MAX} characters")));
    }
    let packed: String = encoded.chars().filter(|c| !c.is_whitespace()).collect();
    let bytes = base64::engine::general_purpose::STANDARD.decode(packed);
    let bytes = bytes.map_err(|_| Refusal::field("user_data", "it is no base64"))?;
    let text = String::from_utf8(bytes).map_err(|_| Refusal::field("user_data", "it is no text in UTF-8"))?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn group_names(value: Option<&Value>) -> Result<Vec<String>, Refusal> {
    let mut names: Vec<String> = Vec::new();
    for group in objects(value, "security_groups")? {
        let name = text(group, "name")?;
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

fn counts(map: &Map<String, Value>) -> Result<(u32, u32), Refusal> {
    let count = |key: &str| match figure(map, key)? {
        Some(0) => Err(Refusal::field(key, "it must be at least 1")),
        Some(n) => u32::try_from(n)
            .ok()
            .filter(|n| *n <= COUNT_MAX)
            .map(Some)
            .ok_or_else(|| Refusal::field(key, format!("it must be at most {COUNT_MAX}"))),
        None => Ok(None),
    };
    let (min, max) = (count("min_count")?, count("max_count")?);
    let least = min.unwrap_or(1);
    let most = max.unwrap_or(least);
    if least > most {
        return Err(Refusal::bad("min_count must be <= max_count"));
    }
    Ok((least, most))
}

/// `ZONE`, `ZONE:HOST`; from 2.74 on also `host`.
fn place(
    view: &View,
    caller: &Caller,
    map: &Map<String, Value>,
    wish: &mut ServerWish,
) -> Result<(), Refusal> {
    let named = optional_text(map, "host")?.or(optional_text(map, "hypervisor_hostname")?);
    let (zone, host) = match optional_text(map, "availability_zone")?.filter(|zone| !zone.is_empty()) {
        None => (None, named),
        Some(given) => {
            let mut parts = given.splitn(3, ':');
            let zone = parts.next().filter(|zone| !zone.is_empty());
            let host = parts.find(|host| !host.is_empty());
            (zone, host.or(named))
        }
    };
    if host.is_some() && !caller.is_admin() {
        return Err(Refusal::forbidden(
            "Policy doesn't allow os_compute_api:servers:create:forced_host to be performed.",
        ));
    }
    if let Some(host) = host.filter(|host| view.host_named(host).is_none()) {
        return Err(Refusal::bad(format!("Compute host {host} could not be found.")));
    }
    if zone.is_some_and(|zone| !zones(view).contains_key(zone)) {
        return Err(Refusal::bad("The requested availability zone is not available"));
    }
    wish.zone = zone.map(str::to_owned);
    wish.host = host.map(str::to_owned);
    Ok(())
}

fn apply_hints(
    view: &View,
    project: ProjectId,
    hints: &Map<String, Value>,
    wish: &mut ServerWish,
) -> Result<(), Refusal> {
    if let Some(group) = id(hints, "group")? {
        let row = view.server_groups.get(ServerGroupId(group)).filter(|row| row.project == project);
        let row = row.ok_or_else(|| Refusal::bad(format!("Instance group {group} could not be found.")))?;
        wish.group = Some(row.id);
    }
    let servers = |key: &str| -> Result<Vec<InstanceId>, Refusal> {
        let texts: Vec<&Value> = match hints.get(key) {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(list)) if list.len() <= LIST_MAX => list.iter().collect(),
            Some(one) => vec![one],
        };
        let one = |text: &Value| text.as_str().and_then(words::id).map(InstanceId);
        let read = |text: &Value| one(text).ok_or_else(|| Refusal::field(key, "ids of servers"));
        texts.into_iter().map(read).collect()
    };
    if let Some(text) = optional_text(hints, SCHEDULER_KEY)? {
        SchedulerId::named(text).map_err(|why| Refusal::field(SCHEDULER_KEY, why))?;
        wish.scheduler = Some(text.to_owned());
    }
    if let Some(text) = optional_text(hints, QOS_KEY)? {
        wish.qos = Some(text.parse().map_err(|why: String| Refusal::field(QOS_KEY, why))?);
    }
    if let Some(text) = optional_text(hints, FAILOVER_KEY)? {
        wish.failover = Some(failover_named(text).map_err(|why| Refusal::field(FAILOVER_KEY, why))?);
    }
    wish.different_host = servers("different_host")?;
    wish.same_host = servers("same_host")?;
    Ok(())
}

fn devices(map: &Map<String, Value>) -> Result<Vec<DeviceWish>, Refusal> {
    let old = objects(map.get("block_device_mapping"), "block_device_mapping")?;
    let new = objects(map.get("block_device_mapping_v2"), "block_device_mapping_v2")?;
    if !old.is_empty() && !new.is_empty() {
        return Err(Refusal::bad(
            "Using different block_device_mapping syntaxes is not allowed in the same request.",
        ));
    }
    if map.get("metadata").and_then(Value::as_object).is_some_and(|m| m.len() > METADATA_MAX * 8) {
        return Err(Refusal::forbidden("Maximum number of metadata items exceeds the limit"));
    }
    let legacy = old.into_iter().map(legacy_device);
    let wanted = new.into_iter().filter(|d| !d.get("no_device").is_some_and(|v| v == true)).map(device);
    legacy.chain(wanted).collect()
}

fn device(map: &Map<String, Value>) -> Result<DeviceWish, Refusal> {
    const FIELD: &str = "block_device_mapping_v2";
    let uuid = || {
        let given = optional_text(map, "uuid")?.filter(|text| !text.is_empty());
        given.and_then(words::id).ok_or_else(|| {
            Refusal::bad("Block Device Mapping is Invalid: a uuid is needed for this source_type")
        })
    };
    let (source, local) = match text(map, "source_type")? {
        "image" => (DeviceSource::Image(ImageId(uuid()?)), true),
        "volume" => (DeviceSource::Volume(VolumeId(uuid()?)), false),
        "snapshot" => (DeviceSource::Snapshot(SnapshotId(uuid()?)), false),
        "blank" => (DeviceSource::Blank, true),
        other => return Err(Refusal::field(FIELD, format!("'{other}' is no source_type"))),
    };
    let local = match optional_text(map, "destination_type")? {
        None => local,
        Some("local") if matches!(source, DeviceSource::Volume(_) | DeviceSource::Snapshot(_)) => {
            return Err(Refusal::field(FIELD, "a volume's destination_type is 'volume'"));
        }
        Some("local") => true,
        Some("volume") => false,
        Some(other) => return Err(Refusal::field(FIELD, format!("'{other}' is no destination_type"))),
    };
    let boot_index = match map.get("boot_index") {
        None | Some(Value::Null) => None,
        Some(Value::Number(number)) => number.as_i64(),
        Some(Value::String(text)) if text.is_empty() || text == "None" => None,
        Some(Value::String(text)) => {
            Some(text.trim().parse().map_err(|_| Refusal::field(FIELD, "boot_index must be an integer"))?)
        }
        Some(_) => return Err(Refusal::field(FIELD, "boot_index must be an integer")),
    };
    Ok(DeviceWish {
        source,
        local,
        boot_index,
        size_gib: size(map)?,
        delete_on_termination: flag(map, "delete_on_termination")?.unwrap_or(false),
        device: optional_text(map, "device_name")?.map(str::to_owned),
        tag: tag(map)?,
    })
}

/// What nova's first form of the list says.
fn legacy_device(map: &Map<String, Value>) -> Result<DeviceWish, Refusal> {
    let source = match (id(map, "volume_id")?, id(map, "snapshot_id")?) {
        (Some(volume), _) => DeviceSource::Volume(VolumeId(volume)),
        (None, Some(snapshot)) => DeviceSource::Snapshot(SnapshotId(snapshot)),
        (None, None) => DeviceSource::Blank,
    };
    let device = optional_text(map, "device_name")?.map(str::to_owned);
    let boot_index = device.as_deref().is_some_and(|d| matches!(d, "vda" | "/dev/vda")).then_some(0);
    Ok(DeviceWish {
        source,
        local: false,
        boot_index,
        size_gib: size(map)?,
        delete_on_termination: flag(map, "delete_on_termination")?.unwrap_or(false),
        device,
        tag: None,
    })
}

fn size(map: &Map<String, Value>) -> Result<Option<u64>, Refusal> {
    match map.get("volume_size") {
        Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        _ => figure(map, "volume_size"),
    }
}
