//! What is promised of one host. Written in the transaction that records the instance or volume, and compared by
//! version there, so that two requests never take the same room.

use super::Record;
use amphi_api::HostId;
use amphi_api::host::Claims;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClaimRecord {
    pub host: HostId,
    pub claims: Claims,
}

impl Record for ClaimRecord {
    const PREFIX: &'static str = "/claim/";
    const NOUN: &'static str = "claim";
    type Id = HostId;
    fn id(&self) -> HostId {
        self.host
    }
}
