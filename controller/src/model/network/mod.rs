//! Networks and what lives on them: subnets, ports, security groups, routers, floating IPs, QoS policies.

mod floating_ip;
mod group;
pub mod legacy;
mod port;
mod qos;
mod record;
mod router;
mod subnet;

pub use floating_ip::{FloatingIpRecord, Target};
pub use group::{ANY_PROTOCOL, RuleRecord, SecurityGroupRecord, protocol_number};
pub use port::{AddressPair, DhcpOption, FixedIp, PortRecord, mac_of, owner};
pub use qos::{QosKind, QosPolicyRecord, QosRule};
pub use record::{NetworkRecord, Provider};
pub use router::{Gateway, RouterRecord};
pub use subnet::{HostRoute, Pool, SubnetRecord, default_pools, eui64};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What every resource of the network service carries beside its own matter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Notes {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tags: BTreeSet<String>,
    /// None: not since it was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_at: Option<Timestamp>,
}

/// A record with notes.
pub trait Noted: super::Record {
    fn notes(&self) -> &Notes;
    fn notes_mut(&mut self) -> &mut Notes;
}

macro_rules! noted {
    ($($record:ty),*) => { $(
        impl Noted for $record {
            fn notes(&self) -> &Notes {
                &self.notes
            }
            fn notes_mut(&mut self) -> &mut Notes {
                &mut self.notes
            }
        }
    )* };
}

noted!(
    NetworkRecord,
    SubnetRecord,
    PortRecord,
    SecurityGroupRecord,
    RouterRecord,
    FloatingIpRecord,
    QosPolicyRecord
);

fn yes() -> bool {
    true
}

/// For serde: leaves `true` out.
fn is_yes(value: &bool) -> bool {
    *value
}

/// For serde: leaves `false` out.
fn is_no(value: &bool) -> bool {
    !*value
}
