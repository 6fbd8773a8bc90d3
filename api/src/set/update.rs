//! How a running member gives way to the next one. Owns the words and their rules; refuses to know how it is done.

use crate::{FieldError, validate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How long a new member has for becoming ready where its description says nothing.
pub const UPDATE_DEADLINE_S: u32 = 180;
/// How long a member without a startup or readiness probe has to run before it counts as good.
pub const MIN_READY_S: u32 = 5;

/// How a running member gives way to the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateSpec {
    /// The new one starts beside the old one, in the same network, and the old one ends when the new one is ready. Its
    /// listeners have to allow that (SO_REUSEPORT, the same user), and both have the member's memory for so long.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub overlap: bool,
    /// So many seconds the new one has to be ready, or to run where it has neither a startup nor a readiness probe: 0 to
    /// 3,600. Default: 0 with such a probe, 5 without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0, maximum = 3600)]
    pub min_ready_s: Option<u32>,
    /// After so many seconds from its start one that is not ready is given up: 1 to 86,400. Default 180.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 86400)]
    pub deadline_s: Option<u32>,
}

impl UpdateSpec {
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// `probed`: there is a startup or a readiness probe.
    pub fn min_ready_s(&self, probed: bool) -> u32 {
        self.min_ready_s.unwrap_or(if probed { 0 } else { MIN_READY_S })
    }

    pub fn deadline_s(&self) -> u32 {
        self.deadline_s.unwrap_or(UPDATE_DEADLINE_S)
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        let (least, most) = (self.min_ready_s.unwrap_or(0), self.deadline_s());
        validate::within("min_ready_s", least.into(), 0, 3600, "seconds")?;
        validate::within("deadline_s", most.into(), 1, 86_400, "seconds")
    }
}
