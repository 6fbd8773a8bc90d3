//! What can be done, whoever asks: one file per noun, each step validate → record → wake. Every change is a pure
//! decision over the world that yields one transaction; when somebody else was faster it is decided anew.
//!
//! Refuses HTTP terms, and to touch an engine: hosts are told what they should hold and say what they hold.

mod address_book;
mod addresses;
pub mod aggregates;
mod ahead;
pub mod asked;
pub mod blobs;
mod boot_log;
mod bringing;
mod checksums;
pub mod container_images;
mod conversions;
pub mod desired;
mod draft;
mod error;
pub mod evacuate;
pub mod exchanges;
mod exodus;
mod failover;
mod failover_terms;
pub mod feed;
pub mod flavors;
pub mod floating_ips;
mod groups;
mod held;
mod hosts;
pub mod identity;
pub mod image_bytes;
mod image_sweep;
mod images;
mod instances;
pub mod key_pairs;
mod leases;
mod lent;
mod list;
mod looking_in;
mod maintenance;
mod market;
mod move_ends;
mod move_volumes;
mod moves;
mod named;
mod networks;
mod orders;
pub mod placements;
pub mod ports;
mod prepull;
mod qos;
pub mod quotas;
mod reach;
mod regions;
pub mod registry;
mod replicas;
mod replications;
mod repositories;
mod resizing;
mod resolve;
mod resuming;
mod rollouts;
pub mod routers;
mod scaling_groups;
mod sent_blobs;
pub mod server_groups;
pub mod servers;
mod snapshots;
pub mod status;
mod subnets;
#[cfg(test)]
pub(crate) mod tests;
mod twins;
mod updates;
pub mod usage;
mod use_now;
pub mod view;
mod volume_create;
pub mod volume_edit;
pub mod volume_groups;
mod volume_journeys;
mod volume_transfers;
pub mod volume_types;
mod volume_upload;
mod volumes;
pub mod world;

pub use addresses::FixedIpWish;
pub use blobs::{BlobTerms, PushRefused, UploadId};
pub use container_images::ContainerPut;
pub use draft::Draft;
use draft::guard_promises;
pub use error::{OpsError, OverQuota};
pub use feed::FeedQuery;
pub use images::{BlobStream, DIGEST_HEADER};
pub use list::ListQuery;
pub use looking_in::{ConsoleKind, Ticket};
pub use market::MarketQuery;
pub use networks::ProviderWish;
pub use orders::{LOG_LINES_MAX, VolumeFate};
pub use ports::{PortChange, PortTarget, PortWish};
pub use reach::Reach;
pub use replications::{Errand, Outcome, Progress, Work};
pub use resuming::{Appended, ByteRange};
pub use scaling_groups::EndpointQuery;
pub use snapshots::SnapshotWish;
pub use use_now::UseQuery;
pub use view::{Row, Table, View};
pub use volume_create::{VolumeOrigin, VolumeWish};
pub use volume_edit::SnapshotChange;
pub use volume_types::{VolumeTypeChange, VolumeTypeSpec};
pub use volume_upload::UploadWish;
pub use world::{World, WorldError};

use crate::images::BlobStore;
use crate::leases::Leases;
use crate::scheduler::{HostSight, Policy};
use crate::store::{Store, StoreError, Txn};
use crate::streams::HostStream;
use amphi_api::instance::Fault;
use amphi_api::lease::LeaseTiming;
use amphi_api::streams::StreamTarget;
use amphi_api::wire::{Answer, Ask, HostStatus};
use amphi_api::{HostId, InstanceId};
use async_trait::async_trait;
use futures_util::FutureExt;
use jiff::Timestamp;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often a change is decided anew when others were faster.
const ATTEMPTS: u32 = 16;

/// Asks a connected host something that it answers at once, or has it open a stream.
#[async_trait]
pub trait HostLinks: Send + Sync + 'static {
    async fn ask(&self, host: HostId, ask: Ask) -> Result<Answer, AskError>;
    /// Has it open something in a body; the stream once that is open.
    async fn stream(
        &self,
        host: HostId,
        instance: InstanceId,
        what: StreamTarget,
    ) -> Result<HostStream, AskError>;
    /// Whether a link to the host stands here now.
    fn is_linked(&self, host: HostId) -> bool;
    /// Ends the link that stands, if one does: the host has to say hello again.
    fn end(&self, host: HostId);
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    #[error("the host is not connected")]
    NoLink,
    #[error("the host did not answer in time")]
    Timeout,
    #[error("{}", .0.message)]
    Fault(Fault),
}

/// What ops needs to know beside the records.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The hosts' face, as join tokens carry it.
    pub hosts_url: String,
    /// Lower-case hexadecimal SHA-256 of the CA certificate (DER).
    pub ca_sha256: String,
    pub policy: Policy,
    /// Whether hosts keep leases, and instances fail over when one has ended.
    pub automatic_failover: bool,
    pub blobs: BlobTerms,
    /// What this cloud calls itself to other regions.
    pub region: String,
}

pub struct Ops {
    store: Arc<dyn Store>,
    world: Arc<World>,
    links: Arc<dyn HostLinks>,
    blobs: Arc<BlobStore>,
    settings: Settings,
    sweeps: image_sweep::Sweeps,
    /// Held while room is claimed, until the commit is queued: requests of one controller need not find out by conflict
    /// that they race.
    placing: Mutex<()>,
    /// When each host was last heard by this controller.
    heard: Mutex<HashMap<HostId, Timestamp>>,
    /// The newest status of each host that is not wholly in the records yet.
    unrecorded: Mutex<HashMap<HostId, Arc<HostStatus>>>,
    /// Where passwords are checked.
    door: identity::Door,
    leases: Arc<Leases>,
    tickets: looking_in::Spent,
    lent: lent::Lent,
    /// What is on its way to other regions or from them.
    underway: replications::Underway,
    /// What was measured of instances, and posted of groups.
    figures: scaling_groups::Figures,
}

impl Ops {
    pub fn new(
        store: Arc<dyn Store>,
        world: Arc<World>,
        links: Arc<dyn HostLinks>,
        blobs: Arc<BlobStore>,
        settings: Settings,
    ) -> Arc<Self> {
        world.set_policy(settings.policy);
        Arc::new(Self {
            store,
            world,
            links,
            blobs,
            leases: Arc::new(Leases::new(LeaseTiming::default(), settings.automatic_failover)),
            settings,
            sweeps: image_sweep::Sweeps::default(),
            placing: Mutex::new(()),
            heard: Mutex::default(),
            unrecorded: Mutex::default(),
            door: identity::Door::default(),
            tickets: looking_in::Spent::default(),
            lent: lent::Lent::default(),
            underway: replications::Underway::default(),
            figures: scaling_groups::Figures::default(),
        })
    }

    pub fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    pub fn world(&self) -> &Arc<World> {
        &self.world
    }

    /// Decides, commits, and waits until the world shows it; decides again when a compare did not hold. What turns out to
    /// claim or free room is decided in its turn, by [`Self::transact_room`].
    pub(crate) async fn transact<T>(
        &self,
        mut decide: impl FnMut(&View) -> Result<(Draft, T), OpsError>,
    ) -> Result<T, OpsError> {
        for _ in 0..ATTEMPTS {
            let decided = {
                let view = self.world.read();
                let (draft, answer) = decide(&view)?;
                (!draft.claims_room()).then(|| (draft.into_txn(&view), answer))
            };
            let Some((draft, answer)) = decided else { return self.transact_room(decide).await };
            if draft.ops.is_empty() {
                return Ok(answer);
            }
            match self.store.commit(draft).await {
                Ok(revision) => {
                    self.reach(revision).await?;
                    return Ok(answer);
                }
                Err(StoreError::Conflict { .. }) => {
                    // Decide on what the faster one wrote.
                    let present = self.store.commit(Txn::default()).await?;
                    self.reach(present).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(OpsError::Unavailable("too many changes of the same thing at once; try again".into()))
    }

    /// [`Self::transact`] for what claims or frees room, or must stay within a quota: decided one after the other, each
    /// seeing those that are still on their way, so that many share one durable commit. Nothing else may write claims: one
    /// whose predecessor failed would take another's write of the same version for it, and keep a claim of nobody's.
    pub(crate) async fn transact_room<T>(
        &self,
        mut decide: impl FnMut(&View) -> Result<(Draft, T), OpsError>,
    ) -> Result<T, OpsError> {
        for _ in 0..ATTEMPTS {
            let (mut commit, early, staged, answer) = {
                let _turn = self.placing.lock().unwrap_or_else(PoisonError::into_inner);
                let (txn, answer) = {
                    let view = self.world.read();
                    match decide(&view) {
                        Ok((draft, answer)) => (draft.into_txn(&view), Ok(answer)),
                        // Said only once what it rests on is durable: another's claim may come to nothing.
                        Err(error @ OpsError::NoRoom(_)) if view.awaits_promises() => {
                            let mut draft = Draft::default();
                            guard_promises(&view, &mut draft);
                            (draft.into_txn(&view), Err(error))
                        }
                        Err(error) => return Err(error),
                    }
                };
                if txn.ops.is_empty() && answer.is_ok() {
                    return answer;
                }
                let staged = self.world.stage(&txn);
                let mut commit = self.store.commit(txn);
                // The first poll queues it: in the order of the decisions, or the compares would not hold.
                let early = (&mut commit).now_or_never();
                (commit, early, staged, answer)
            };
            let outcome = match early {
                Some(outcome) => outcome,
                None => commit.as_mut().await,
            };
            match outcome {
                Ok(revision) => {
                    self.reach(revision).await?;
                    return answer;
                }
                Err(StoreError::Conflict { .. }) => {
                    drop(staged);
                    let present = self.store.commit(Txn::default()).await?;
                    self.reach(present).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(OpsError::Unavailable("too many changes of the same thing at once; try again".into()))
    }

    async fn reach(&self, revision: u64) -> Result<(), OpsError> {
        if self.world.reached(revision).await {
            return Ok(());
        }
        Err(OpsError::Internal(format!("the watch did not deliver revision {revision} in time")))
    }

    pub(crate) fn hear(&self, host: HostId) {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).insert(host, Timestamp::now());
    }

    fn unrecorded(&self) -> MutexGuard<'_, HashMap<HostId, Arc<HostStatus>>> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn heard_at(&self, host: HostId) -> Option<Timestamp> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).get(&host).copied()
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.settings.policy
    }
}

/// The hosts as placement sees them.
pub(crate) fn sights(view: &View) -> Vec<HostSight<'_>> {
    view.fleet.sights().collect()
}
