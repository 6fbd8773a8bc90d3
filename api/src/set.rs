//! The set description: an anchor and its members, the container counterpart of a VM. Owns its shape and its rules
//! (`check`); refuses to know images, hosts or engines.

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use utoipa::ToSchema;

/// Most members of one set.
pub const MEMBERS_MAX: usize = 64;
/// Most environment variables or arguments of one member.
pub const LIST_MAX: usize = 512;

/// A group of containers that live and die as one instance.
///
/// The anchor holds the network, the IPC namespace and the volume; the members join them, start in order of
/// `index`, and take shares of the instance's CPU and memory in percent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SetSpec {
    #[serde(default, skip_serializing_if = "AnchorSpec::is_default")]
    pub anchor: AnchorSpec,
    /// 1 to 64 members. Their names and their indexes are each unique.
    #[schema(min_items = 1, max_items = 64)]
    pub members: Vec<MemberSpec>,
    /// Where the instance's volume appears in every member. Default `/data`.
    #[serde(default = "default_mount")]
    pub volume_mount: String,
}

/// What the set shares.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AnchorSpec {
    /// Kernel parameters of the set's network and IPC namespaces, as `sysctl` spells them: `net.core.somaxconn`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
}

impl AnchorSpec {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// One container of a set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberSpec {
    /// Unique in the set; letters, digits, `-`, `_`, `.`; at most 63. Default: `member-INDEX`.
    #[serde(default)]
    pub name: String,
    /// Start order: lower starts first. Unique in the set.
    pub index: u32,
    /// Name or id of a container image in the catalogue.
    #[schema(min_length = 1, max_length = 255)]
    pub image: String,
    /// Replaces the image's entry point and command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 512)]
    pub command: Vec<String>,
    /// Environment variables beside the image's own.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub options: MemberOptions,
}

/// A member's share of its set. What nobody names is divided among those that named nothing
/// (see [`SetSpec::normalized`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberOptions {
    /// CPU, percent of the set's: 80 in a set of 4 vCPU is 3.2 cores. 1 to 100; all members together at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub cpu: Option<u32>,
    /// Memory, percent of the set's. 1 to 100; all members together at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 100)]
    pub mem: Option<u32>,
}

fn default_mount() -> String {
    "/data".to_owned()
}

impl SetSpec {
    /// Checks everything that can be known without a catalogue. The first wrong field is named.
    pub fn check(&self) -> Result<(), FieldError> {
        validate::within("members", self.members.len() as u64, 1, MEMBERS_MAX as u64, "members")?;
        validate::guest_path("volume_mount", &self.volume_mount)?;
        if Path::new(&self.volume_mount).starts_with("/config-drive") {
            return Err(FieldError::new(
                "volume_mount",
                "/config-drive is where members find the config drive",
            ));
        }
        if Path::new(&self.volume_mount).starts_with("/volumes") {
            return Err(FieldError::new("volume_mount", "/volumes is where members find further volumes"));
        }
        self.anchor.check().map_err(|e| e.under("anchor"))?;
        let mut names = BTreeSet::new();
        let mut indexes = BTreeSet::new();
        let (mut cpu, mut mem) = (0u64, 0u64);
        for (at, member) in self.members.iter().enumerate() {
            let place = format!("members[{at}]");
            member.check().map_err(|e| e.under(&place))?;
            if !indexes.insert(member.index) {
                return Err(FieldError::new(
                    format!("{place}.index"),
                    format!("{} is taken by another member", member.index),
                ));
            }
            let name = member.effective_name();
            if !names.insert(name.clone()) {
                return Err(FieldError::new(
                    format!("{place}.name"),
                    format!("'{name}' is taken by another member"),
                ));
            }
            cpu += u64::from(member.options.cpu.unwrap_or(0));
            mem += u64::from(member.options.mem.unwrap_or(0));
            for (what, sum) in [("cpu", cpu), ("mem", mem)] {
                if sum > 100 {
                    return Err(FieldError::new(
                        format!("{place}.options.{what}"),
                        format!("the members' {what} shares add up to {sum} %, more than 100 %"),
                    ));
                }
            }
        }
        Ok(())
    }

    /// The description with nothing left open: names filled in, members in start order, and every share decided.
    /// Members that name no share divide equally what the others left over, at least 1 % each.
    pub fn normalized(&self) -> SetSpec {
        let mut set = self.clone();
        set.members.sort_by_key(|m| m.index);
        let names: Vec<String> = set.members.iter().map(MemberSpec::effective_name).collect();
        for (member, name) in set.members.iter_mut().zip(names) {
            member.name = name;
        }
        share_out(&mut set.members, |o| &mut o.cpu);
        share_out(&mut set.members, |o| &mut o.mem);
        set
    }
}

fn share_out(members: &mut [MemberSpec], field: impl Fn(&mut MemberOptions) -> &mut Option<u32>) {
    let given: u32 = members.iter_mut().filter_map(|m| *field(&mut m.options)).sum();
    let open = members.iter_mut().map(|m| u32::from(field(&mut m.options).is_none())).sum::<u32>();
    let each = 100u32.saturating_sub(given).checked_div(open).unwrap_or(0).max(1);
    for member in members {
        field(&mut member.options).get_or_insert(each);
    }
}

impl AnchorSpec {
    fn check(&self) -> Result<(), FieldError> {
        for (key, value) in &self.sysctls {
            let field = format!("sysctls.{key}");
            let namespaced = key.starts_with("net.")
                || key.starts_with("kernel.msg")
                || key.starts_with("kernel.shm")
                || key.starts_with("fs.mqueue.")
                || key == "kernel.sem";
            let plain =
                key.chars().all(|c| c.is_ascii_alphanumeric() || "._-/".contains(c)) && !key.contains("..");
            if !namespaced || !plain {
                return Err(FieldError::new(
                    field,
                    "only parameters of the set's own namespaces can be set: net.*, kernel.msg*, kernel.sem, kernel.shm*, fs.mqueue.*",
                ));
            }
            if value.is_empty() || value.len() > 256 || value.chars().any(|c| c.is_control() && c != '\t') {
                return Err(FieldError::new(field, "must have 1 to 256 characters, no control characters"));
            }
        }
        Ok(())
    }
}

impl MemberSpec {
    /// The name given, or `member-INDEX`.
    pub fn effective_name(&self) -> String {
        if self.name.is_empty() { format!("member-{}", self.index) } else { self.name.clone() }
    }

    fn check(&self) -> Result<(), FieldError> {
        if !self.name.is_empty() {
            validate::label("name", &self.name)?;
            if self.name == "anchor" {
                return Err(FieldError::new("name", "'anchor' is the set's own"));
            }
        }
        validate::name("image", &self.image)?;
        for (what, share) in [("cpu", self.options.cpu), ("mem", self.options.mem)] {
            if let Some(share) = share {
                validate::within(&format!("options.{what}"), u64::from(share), 1, 100, "percent")?;
            }
        }
        if self.command.len() > LIST_MAX || self.command.iter().any(|a| a.contains('\0') || a.len() > 65_536)
        {
            return Err(FieldError::new(
                "command",
                format!("at most {LIST_MAX} arguments of 64 KiB, without NUL"),
            ));
        }
        if self.command.first().is_some_and(String::is_empty) {
            return Err(FieldError::new("command[0]", "must name a program"));
        }
        if self.env.len() > LIST_MAX {
            return Err(FieldError::new("env", format!("at most {LIST_MAX} variables")));
        }
        for (key, value) in &self.env {
            if key.is_empty()
                || key.contains('=')
                || key.chars().any(char::is_control)
                || value.contains('\0')
            {
                return Err(FieldError::new(
                    format!("env.{key}"),
                    "names need one character or more, no '='; no NUL",
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> SetSpec {
        serde_json::from_value(json).unwrap()
    }

    fn two(a: serde_json::Value, b: serde_json::Value) -> SetSpec {
        let mut set = serde_json::json!({"members": [
            {"index": 0, "image": "busybox", "options": {"cpu": 50, "mem": 50}},
            {"index": 1, "image": "busybox", "options": {"cpu": 50, "mem": 50}}]});
        for (at, patch) in [a, b].into_iter().enumerate() {
            for (key, value) in patch.as_object().unwrap() {
                set["members"][at][key] = value.clone();
            }
        }
        parse(set)
    }

    #[test]
    fn refusals_name_their_field() {
        use serde_json::json;
        let table = [
            (two(json!({}), json!({"index": 0})), "members[1].index"),
            (two(json!({}), json!({"options": {"cpu": 51, "mem": 50}})), "members[1].options.cpu"),
            (two(json!({}), json!({"options": {"cpu": 50, "mem": 51}})), "members[1].options.mem"),
            (two(json!({"options": {"cpu": 0, "mem": 50}}), json!({})), "members[0].options.cpu"),
            (two(json!({"options": {"cpu": 101, "mem": 50}}), json!({})), "members[0].options.cpu"),
            (two(json!({"name": "a"}), json!({"name": "a"})), "members[1].name"),
            (two(json!({"name": "member-1"}), json!({})), "members[1].name"),
            (two(json!({"name": "anchor"}), json!({})), "members[0].name"),
            (two(json!({"name": "a\n"}), json!({})), "members[0].name"),
            (two(json!({"image": ""}), json!({})), "members[0].image"),
            (two(json!({"command": [""]}), json!({})), "members[0].command[0]"),
            (two(json!({"env": {"a=b": "c"}}), json!({})), "members[0].env.a=b"),
            (parse(json!({"members": []})), "members"),
            (parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "data"})), "volume_mount"),
            (
                parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "//config-drive/x"})),
                "volume_mount",
            ),
            (
                parse(json!({"members": [{"index": 0, "image": "x"}], "volume_mount": "/volumes"})),
                "volume_mount",
            ),
            (
                parse(
                    json!({"members": [{"index": 0, "image": "x"}], "anchor": {"sysctls": {"vm.swappiness": "1"}}}),
                ),
                "anchor.sysctls.vm.swappiness",
            ),
        ];
        for (set, field) in table {
            assert_eq!(set.check().unwrap_err().field, field);
        }
        assert_eq!(two(json!({}), json!({})).check(), Ok(()));
    }

    #[test]
    fn unknown_fields_and_missing_index_are_refused() {
        for bad in [
            serde_json::json!({"members": [{"image": "x"}]}),
            serde_json::json!({"members": [{"index": 0, "image": "x", "colour": 1}]}),
            serde_json::json!({"members": [], "x": 1}),
            serde_json::json!({"members": [{"index": -1, "image": "x"}]}),
        ] {
            assert!(serde_json::from_value::<SetSpec>(bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn open_shares_divide_what_is_left() {
        let set = parse(serde_json::json!({"members": [
            {"index": 5, "image": "x"}, {"index": 2, "image": "x", "options": {"cpu": 40, "mem": 60}}, {"index": 9, "image": "x"}]}))
        .normalized();
        let got: Vec<_> = set
            .members
            .iter()
            .map(|m| (m.name.as_str(), m.options.cpu.unwrap(), m.options.mem.unwrap()))
            .collect();
        assert_eq!(got, [("member-2", 40, 60), ("member-5", 30, 20), ("member-9", 30, 20)]);
        assert_eq!(set.normalized(), set);
    }
}
