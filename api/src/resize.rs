//! Another size for an instance that is there, and how far its body has taken it on. Owns the order, its rules and the
//! words that pass between controller and host; refuses to know how an engine holds anything to anything.

use crate::set::MemberOptions;
use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;

/// The code of a condition: the host keeps the old limits, and `message` has the figures.
pub const REFUSED: &str = "limits_refused";
/// The code of a condition: what is ordered holds from the body's next start on.
pub const NEXT_START: &str = "next_start";
/// The code of a condition: a VM's guest has not taken the memory that it may have, or keeps some that it is to give back.
pub const UP_TO_GUEST: &str = "up_to_guest";
/// The code of a condition: this host's kernel cannot hold a limit, or not all of it.
pub const NOT_HERE: &str = "not_on_this_host";

/// What passes a connection at most. Each in kbit/s, 64 to 4,000,000,000; who names none has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Towards the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 4000000000i64)]
    pub ingress_kbps: Option<u32>,
    /// From the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 64, maximum = 4000000000i64)]
    pub egress_kbps: Option<u32>,
}

impl Bandwidth {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// OVN's meters count in kbit/s up to 2^32 - 1; less than 64 would not pass one packet in a tenth of a second.
    pub fn check(&self) -> Result<(), FieldError> {
        for (what, rate) in [("ingress_kbps", self.ingress_kbps), ("egress_kbps", self.egress_kbps)] {
            validate::within(what, rate.unwrap_or(64).into(), 64, 4_000_000_000, "kbit/s")?;
        }
        Ok(())
    }
}

/// The bandwidth of one of the instance's connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkBandwidth {
    /// Name or id.
    #[schema(min_length = 1, max_length = 255)]
    pub network: String,
    /// In place of the present one.
    pub bandwidth: Bandwidth,
}

/// The order to change an instance's size. What is not named stays. A set that runs takes it on as it is; a VM as far as
/// libvirt and the guest can, else at its next start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InstanceResize {
    /// Virtual CPUs, 1 to 256.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 256)]
    pub vcpus: Option<u32>,
    /// Memory, 16 to 4,194,304 MiB. Less than what is used is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 16, maximum = 4_194_304)]
    pub memory_mib: Option<u64>,
    /// Size of the instance's own volume, in GiB. It only grows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 65_536)]
    pub volume_gib: Option<u64>,
    /// Members of the set by name: these options in place of the present ones.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, MemberOptions>,
    /// At most 8.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(max_items = 8)]
    pub networks: Vec<NetworkBandwidth>,
}

impl InstanceResize {
    /// Checks what can be known without records. The first wrong field is named.
    pub fn check(&self) -> Result<(), FieldError> {
        if *self == Self::default() {
            return Err(FieldError::new("vcpus", "nothing is asked for: name what is to change"));
        }
        validate::within("vcpus", self.vcpus.unwrap_or(1).into(), 1, 256, "")?;
        validate::within("memory_mib", self.memory_mib.unwrap_or(16), 16, 4 << 20, "MiB")?;
        validate::within("volume_gib", self.volume_gib.unwrap_or(1), 1, validate::VOLUME_GIB_MAX, "GiB")?;
        for (name, options) in &self.members {
            options.check().map_err(|e| e.under(&format!("members.{name}")))?;
        }
        validate::within("networks", self.networks.len() as u64, 0, 8, "networks")?;
        for (at, one) in self.networks.iter().enumerate() {
            validate::name(&format!("networks[{at}].network"), &one.network)?;
            one.bandwidth.check().map_err(|e| e.under(&format!("networks[{at}].bandwidth")))?;
        }
        Ok(())
    }
}

/// Something that is ordered and not so, while the body is well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Condition {
    /// A stable word for machines: `limits_refused`, `next_start`, `up_to_guest`, `not_on_this_host`, `needs_newer_agent`.
    pub code: String,
    pub message: String,
}

impl Condition {
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into() }
    }
}

/// How far a body has taken on its size.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeStatus {
    /// The ordered changes that it has taken on, or will when it next starts.
    #[serde(default)]
    pub resizes: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Of a VM that runs; none: an agent of before there was such a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryRange>,
}

/// The memory of a VM that runs, in MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRange {
    /// What its guest has, or may take at any moment.
    pub has_mib: u64,
    /// What it was started with and keeps, and the most that it can have until it starts anew.
    pub least_mib: u64,
    pub most_mib: u64,
}

/// What a member uses now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberUsage {
    pub name: String,
    /// What cannot be had back without harm.
    pub memory_bytes: u64,
    /// Processes and threads.
    #[serde(default)]
    pub pids: u64,
    /// Written into its root file system; none: nobody looks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_bytes: Option<u64>,
}

/// What is used more of than there would be, with the figures.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The option of the member that says how much there is.
    pub option: &'static str,
    pub why: String,
}

/// Bytes as the MiB that hold them.
fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

impl MemberUsage {
    /// What of these limits is less than what it uses. 0: no limit.
    pub fn beyond(&self, memory_bytes: u64, pids: u64, root_mib: u64) -> Option<Beyond> {
        let name = &self.name;
        let beyond = |option, why| Some(Beyond { option, why });
        if self.memory_bytes > memory_bytes {
            let (used, limit) = (mib(self.memory_bytes), memory_bytes >> 20);
            return beyond("mem", format!("member {name} uses {used} MiB of memory, more than {limit} MiB"));
        }
        if pids > 0 && self.pids > pids {
            let why = format!("member {name} has {} processes and threads, more than {pids}", self.pids);
            return beyond("pids", why);
        }
        match self.root_bytes.map(mib) {
            Some(used) if root_mib > 0 && used > root_mib => beyond(
                "root_mib",
                format!("member {name} has {used} MiB in its root file system, more than {root_mib} MiB"),
            ),
            _ => None,
        }
    }
}

/// What a host can hold its bodies to, found out by looking at its kernel once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Isolation {
    /// The control groups' version, 1 or 2; 0: none were found.
    pub cgroups: u8,
    /// CPU ceilings, memory limits and process limits can be had.
    pub cpu: bool,
    pub memory: bool,
    pub pids: bool,
    /// Rates of devices can be had.
    pub io: bool,
    /// They count what is written through the page cache too. Else writes past it and reads alone.
    pub io_buffered: bool,
    /// The device under members' root file systems; none: they lie on no block device, and have no rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_device: Option<String>,
    /// A full root file system is refused by the kernel. Else it is watched, and the member is ended.
    pub root_quota: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::set::{IoLimit, MemberIo};

    #[test]
    fn refusals_name_their_field() {
        let member = |options| InstanceResize {
            members: BTreeMap::from([("web".to_owned(), options)]),
            ..InstanceResize::default()
        };
        let network = |network: &str, ingress_kbps| InstanceResize {
            networks: vec![NetworkBandwidth {
                network: network.into(),
                bandwidth: Bandwidth { ingress_kbps, egress_kbps: None },
            }],
            ..InstanceResize::default()
        };
        let root =
            |root| MemberOptions { io: MemberIo { root, ..MemberIo::default() }, ..MemberOptions::default() };
        let table = [
            (InstanceResize::default(), "vcpus"),
            (InstanceResize { vcpus: Some(0), ..InstanceResize::default() }, "vcpus"),
            (InstanceResize { vcpus: Some(257), ..InstanceResize::default() }, "vcpus"),
            (InstanceResize { memory_mib: Some(15), ..InstanceResize::default() }, "memory_mib"),
            (InstanceResize { volume_gib: Some(0), ..InstanceResize::default() }, "volume_gib"),
            (member(MemberOptions { cpu: Some(101), ..MemberOptions::default() }), "members.web.cpu"),
            (member(MemberOptions { pids: Some(7), ..MemberOptions::default() }), "members.web.pids"),
            (member(MemberOptions { root_mib: Some(0), ..MemberOptions::default() }), "members.web.root_mib"),
            (
                member(root(IoLimit { read_bps: Some(1), ..IoLimit::default() })),
                "members.web.io.root.read_bps",
            ),
            (
                member(root(IoLimit { write_iops: Some(9), ..IoLimit::default() })),
                "members.web.io.root.write_iops",
            ),
            (network("", None), "networks[0].network"),
            (network("lan", Some(63)), "networks[0].bandwidth.ingress_kbps"),
        ];
        for (order, field) in table {
            assert_eq!(order.check().expect_err(field).field, field);
        }
        let all = InstanceResize {
            vcpus: Some(4),
            ..member(MemberOptions { pids: Some(64), ..MemberOptions::default() })
        };
        assert_eq!(all.check(), Ok(()));
    }

    #[test]
    fn what_is_used_is_not_taken_away() {
        let usage =
            MemberUsage { name: "web".into(), memory_bytes: 130 << 20, pids: 12, root_bytes: Some(9 << 20) };
        for (memory, pids, root, beyond) in [
            (131, 0, 0, None),
            (131, 12, 9, None),
            (129, 0, 0, Some(("mem", "uses 130 MiB of memory, more than 129 MiB"))),
            (131, 11, 0, Some(("pids", "has 12 processes and threads, more than 11"))),
            (131, 0, 8, Some(("root_mib", "has 9 MiB in its root file system, more than 8 MiB"))),
        ] {
            let told = usage.beyond(memory << 20, pids, root);
            let same = match (&told, beyond) {
                (Some(told), Some((option, why))) => told.option == option && told.why.contains(why),
                (told, beyond) => told.is_none() && beyond.is_none(),
            };
            assert!(same, "{told:?}");
        }
    }
}
