//! A new instance in one transaction: record, ports, addresses, volumes, claims. Native creates and those of clouds'
//! users differ in how they ask; both end in a [`Plan`], which is carried out alike.

mod bodies;
mod nics;
mod plan;
mod volumes;
mod wish;

pub(in crate::ops) use plan::{NicPlan, NoRoomIs, Plan, VolumePlan, VolumeStart, launch};
pub use wish::{DeviceSource, DeviceWish, NicWish, NicsWish, ServerWish};

use super::Origin;
use crate::ops::{Ops, OpsError};
use amphi_api::InstanceId;
use jiff::Timestamp;
use uuid::Uuid;

/// Most instances of one request.
pub const COUNT_MAX: u32 = 100;

/// What a request made.
#[derive(Clone, Debug, PartialEq)]
pub struct Created {
    /// In order of their names.
    pub servers: Vec<InstanceId>,
    /// `r-xxxxxxxx`.
    pub reservation: String,
}

impl Ops {
    /// One instance, or several alike. Where no host has room, the instance is there without one, in ERROR.
    pub async fn create_server(&self, origin: &Origin, wish: &ServerWish) -> Result<Created, OpsError> {
        let count = wish.max_count.max(1);
        if count > COUNT_MAX {
            return Err(OpsError::field("max_count", format!("must be 1 to {COUNT_MAX}")));
        }
        let (_, low) = Uuid::new_v4().as_u64_pair();
        let reservation = format!("r-{}", base36(low, 8));
        let described = match wish.image {
            Some(image) => self.described_set(image).await?,
            None => None,
        };
        let described = described.as_ref();
        let mut servers = Vec::new();
        for index in 0..count {
            let made = self
                .transact_room(|view| {
                    wish::decide(
                        view,
                        origin,
                        wish,
                        described,
                        (index, count),
                        &reservation,
                        self.policy(),
                        Timestamp::now(),
                    )
                })
                .await;
            match made {
                Ok(id) => servers.push(id),
                // The least that was asked for is there.
                Err(_) if index >= wish.min_count.max(1) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(Created { servers, reservation })
    }
}

fn base36(mut number: u64, digits: usize) -> String {
    let mut text = String::new();
    for _ in 0..digits {
        text.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    text
}
