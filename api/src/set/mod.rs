//! The set description: an anchor and its members, the container counterpart of a VM. Owns its shape and its rules
//! (`check`, `check_memory`); refuses to know images, hosts or engines.
//!
//! A description that was accepted once stays accepted: fields are added with defaults, rules are never tightened
//! (`api/testdata/sets` keeps what was).

mod anchor;
mod container;
mod lifecycle;
mod limits;
mod member;
mod probe;
mod update;

pub use anchor::{AnchorSpec, DnsSpec};
pub use container::{Capabilities, ConfigFile, LogSpec, MountSpec, TmpfsSpec, Ulimit, permissions};
pub use lifecycle::{Hook, Hooks, NextWhen, RestartPolicy, StopSpec};
pub use limits::{IoLimit, MemberIo};
pub use member::{MemberOptions, MemberSpec};
pub use probe::{HttpProbe, Probe, Probes, TcpProbe};
pub use update::{MIN_READY_S, UPDATE_DEADLINE_S, UpdateSpec};

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use utoipa::ToSchema;

/// Most members of one set.
pub const MEMBERS_MAX: usize = 64;
/// Most environment variables or arguments of one member.
pub const LIST_MAX: usize = 512;
/// What a managed heap's program gets beside it, percent of the heap.
pub const HEADROOM_DEFAULT: u32 = 20;
/// The least memory of a container, in bytes: Docker refuses less than 6 MiB.
pub const MEMORY_MIN: u64 = 6 << 20;

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
        // Beside a heap, what is left is only known with the set's size: `memory_limits`.
        if set.members.iter().all(|member| member.options.heap_mib.is_none()) {
            share_out(&mut set.members, |o| &mut o.mem);
        }
        set
    }

    /// What each member may take of so much memory, in bytes, parallel to the members of a normalized description: heaps
    /// with their headroom, then percents of the whole; who named neither divides what is left. Never less than a
    /// container needs.
    pub fn memory_limits(&self, memory_mib: u64) -> Vec<u64> {
        let whole = memory_mib << 20;
        let named = |options: &MemberOptions| {
            options.heap_limit().or_else(|| options.mem.map(|share| whole * u64::from(share) / 100))
        };
        let taken: u64 = self.members.iter().filter_map(|member| named(&member.options)).sum();
        let open = self.members.iter().filter(|member| named(&member.options).is_none()).count() as u64;
        let each = whole.saturating_sub(taken).checked_div(open).unwrap_or(0);
        self.members.iter().map(|member| named(&member.options).unwrap_or(each).max(MEMORY_MIN)).collect()
    }

    /// Checks that heaps fit into a set of so much memory, with what the other members take.
    pub fn check_memory(&self, memory_mib: u64) -> Result<(), FieldError> {
        let heap = |member: &MemberSpec| member.options.heap_mib.is_some();
        let Some(at) = self.members.iter().rposition(heap) else { return Ok(()) };
        let wanted: u64 = self.normalized().memory_limits(memory_mib).iter().sum();
        if wanted <= memory_mib << 20 {
            return Ok(());
        }
        Err(FieldError::new(
            format!("members[{at}].options.heap_mib"),
            format!(
                "the heaps with their headroom and the other members' shares need {} MiB, the set has {memory_mib} MiB",
                wanted.div_ceil(1 << 20)
            ),
        ))
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

#[cfg(test)]
mod tests;
