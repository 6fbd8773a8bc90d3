//! What a member may take of its host beside CPU and memory: processes, its root file system, devices. Owns the shapes
//! and their bounds; refuses to know kernels: what one cannot do is its host's to say.

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Least bytes per second: below it a program hangs rather than waits.
const BPS_MIN: u64 = 64 << 10;
const BPS_MAX: u64 = 1 << 40;
const IOPS_MIN: u64 = 10;
const IOPS_MAX: u64 = 100_000_000;
/// The kernel's own bound of process ids (PID_MAX_LIMIT).
const PIDS_MAX: u64 = 4 << 20;

/// What goes to and from one device at most. Who names nothing has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IoLimit {
    /// Bytes read per second: 65,536 to 2^40.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65536)]
    pub read_bps: Option<u64>,
    /// Bytes written per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 65536)]
    pub write_bps: Option<u64>,
    /// Reads per second: 10 to 100,000,000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 100000000)]
    pub read_iops: Option<u64>,
    /// Writes per second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 10, maximum = 100000000)]
    pub write_iops: Option<u64>,
}

/// Limits of the devices that a member writes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MemberIo {
    /// The device under its root file system: the one that Docker keeps containers on.
    #[serde(default, skip_serializing_if = "IoLimit::is_none")]
    pub root: IoLimit,
    /// The set's volume.
    #[serde(default, skip_serializing_if = "IoLimit::is_none")]
    pub volume: IoLimit,
}

impl IoLimit {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Something that is written is limited.
    pub fn of_writes(&self) -> bool {
        self.write_bps.is_some() || self.write_iops.is_some()
    }

    fn check(&self) -> Result<(), FieldError> {
        for (what, rate) in [("read_bps", self.read_bps), ("write_bps", self.write_bps)] {
            validate::within(what, rate.unwrap_or(BPS_MIN), BPS_MIN, BPS_MAX, "bytes per second")?;
        }
        for (what, rate) in [("read_iops", self.read_iops), ("write_iops", self.write_iops)] {
            validate::within(what, rate.unwrap_or(IOPS_MIN), IOPS_MIN, IOPS_MAX, "operations per second")?;
        }
        Ok(())
    }
}

impl MemberIo {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        self.root.check().map_err(|e| e.under("root"))?;
        self.volume.check().map_err(|e| e.under("volume"))
    }
}

/// Of processes and of the root file system.
pub(super) fn check(pids: Option<u64>, root_mib: Option<u64>) -> Result<(), FieldError> {
    validate::within("pids", pids.unwrap_or(8), 8, PIDS_MAX, "processes")?;
    validate::within("root_mib", root_mib.unwrap_or(1), 1, 1 << 24, "MiB")
}
