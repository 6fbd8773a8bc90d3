//! Which images are to go where now, and how far each is: orders, what policies ask for, how attempts ended. What is on its way
//! is known in memory, and written down when an attempt ends. Refuses to speak with a region: that is `crate::regions`'
//! business.

use super::regions::region_of;
use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::image::ImageState;
use amphi_api::replica::Replica;
use amphi_api::replication::{Direction, Replication, ReplicationCreate};
use amphi_api::{ImageId, ProjectId, RegionId, ReplicationId};
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is on its way now.
#[derive(Default)]
pub(super) struct Underway(Mutex<HashMap<ReplicationId, Arc<Progress>>>);

/// How far one transfer is, in bytes.
#[derive(Default)]
pub struct Progress {
    /// Of the image.
    pub total: AtomicU64,
    /// That the other side has.
    pub arrived: AtomicU64,
    /// That went over the line.
    pub sent: AtomicU64,
}

/// One transfer to do.
pub struct Work {
    pub id: ReplicationId,
    pub image: ImageId,
    pub peer: PeerRecord,
    pub what: Errand,
    pub progress: Arc<Progress>,
}

pub enum Errand {
    /// What is told of the image, and what stands for it as it is now.
    Push(Box<Replica>, String),
    /// The id of one there, with its tags or without.
    Fetch(bool),
    Delete,
}

/// How a transfer ended.
#[derive(Debug)]
pub enum Outcome {
    /// What was said of the image then.
    Brought(String),
    Deleted,
    Failed(Hitch),
}

impl Underway {
    fn all(&self) -> std::sync::MutexGuard<'_, HashMap<ReplicationId, Arc<Progress>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, id: ReplicationId) -> Option<Arc<Progress>> {
        self.all().get(&id).cloned()
    }
}

/// What stands for an image as it is said of it now.
struct Marks(HashMap<(ProjectId, Digest), Vec<String>>);

impl Marks {
    fn of(view: &View) -> Self {
        let mut names: HashMap<_, Vec<String>> = HashMap::new();
        for tag in view.tags.iter() {
            let Some(repository) = view.repositories.get(tag.repository) else { continue };
            let name = format!("{}:{}", repository.name, tag.name);
            names.entry((repository.project, tag.digest)).or_default().push(name);
        }
        names.values_mut().for_each(|names| names.sort());
        Self(names)
    }

    fn mark(&self, row: &Row<ImageRecord>, tags: bool) -> String {
        let manifest = row.blobs.get(&amphi_api::image::BlobRole::Manifest).filter(|_| tags);
        let digest = manifest.and_then(|blob| blob.sha256.parse().ok());
        let names = digest.and_then(|digest| self.0.get(&(row.project, digest)));
        hex::encode(Sha256::digest(format!("{} {:?}", row.version, names)))
    }
}

/// What follows from images, policies and orders: what to write down, what to forget, what to do now.
#[derive(Default)]
struct Plan {
    write: Vec<ReplicationRecord>,
    forget: Vec<ReplicationId>,
    due: Vec<ReplicationId>,
}

fn plan(view: &View, now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    if view.replications.is_empty() && view.replication_policies.is_empty() {
        return plan;
    }
    let marks = Marks::of(view);
    let mut asked: HashMap<ReplicationId, ReplicationRecord> = HashMap::new();
    for policy in view.replication_policies.iter().filter(|p| view.peers.get(p.region()).is_some()) {
        for image in view.images.iter().filter(|image| policy.means(image)) {
            let id = ReplicationRecord::of(image.id, policy.region(), Direction::Push);
            let row = view.replications.get(id);
            let mut record = match (asked.remove(&id), row) {
                (Some(record), _) => record,
                (None, Some(row)) => (*row.record).clone(),
                (None, None) => {
                    ReplicationRecord::new(image.id, policy.region(), Direction::Push, &image.name, now)
                }
            };
            if record.policy.is_none_or(|id| view.replication_policies.get(id).is_none()) {
                record.policy = Some(policy.id());
            }
            record.tags |= policy.spec.tags;
            if !record.open && record.brought.as_ref() != Some(&marks.mark(image, record.tags)) {
                record.name.clone_from(&image.name);
                record.ask(now);
            }
            asked.insert(id, record);
        }
    }
    plan.write.extend(
        asked
            .into_values()
            .filter(|record| view.replications.get(record.id()).is_none_or(|row| *row.record != *record)),
    );
    for row in view.replications.iter() {
        let id = row.id();
        let policy = row.policy.and_then(|id| view.replication_policies.get(id));
        match view.images.get(row.image) {
            None if row.direction == Direction::Fetch && !row.open => plan.forget.push(id),
            None if row.direction == Direction::Push => {
                if !policy.is_some_and(|p| p.spec.deletes) || row.brought.is_none() {
                    plan.forget.push(id);
                } else if !row.open {
                    let mut record = (*row.record).clone();
                    record.ask(now);
                    plan.write.push(record);
                } else if row.is_due(now) {
                    plan.due.push(id);
                }
            }
            Some(image) if image.closing => {}
            _ if row.is_due(now) => plan.due.push(id),
            _ => {}
        }
    }
    plan
}

impl Ops {
    pub fn replications(&self) -> Vec<Replication> {
        let view = self.world().read();
        let mut all: Vec<_> = view.replications.iter().map(|row| self.replication_view(&view, row)).collect();
        all.sort_by(|a, b| (&a.name, a.image, &a.region).cmp(&(&b.name, b.image, &b.region)));
        all
    }

    pub fn replication(&self, id: ReplicationId) -> Result<Replication, OpsError> {
        let view = self.world().read();
        let row = view.replications.get(id).ok_or_else(|| OpsError::not_found::<ReplicationRecord>(id))?;
        Ok(self.replication_view(&view, row))
    }

    fn replication_view(&self, view: &View, row: &Row<ReplicationRecord>) -> Replication {
        let now = self.underway.of(row.id());
        let live = |counter: fn(&Progress) -> &AtomicU64| {
            now.as_ref().map(|progress| counter(progress).load(Ordering::Relaxed))
        };
        let region = view.peers.get(row.region).map_or_else(|| row.region.to_string(), |p| p.name.clone());
        let policy = row.policy.and_then(|id| view.replication_policies.get(id));
        Replication {
            id: row.id(),
            image: row.image,
            name: row.name.clone(),
            region,
            direction: row.direction,
            state: row.state(now.is_some()),
            policy: policy.map(|policy| policy.spec.name.clone()),
            tags: row.tags,
            bytes_total: live(|p| &p.total).filter(|total| *total > 0).unwrap_or(row.total),
            bytes_arrived: live(|p| &p.arrived).filter(|n| *n > 0).unwrap_or(row.arrived),
            bytes_sent: row.sent + live(|p| &p.sent).unwrap_or(0),
            attempts: row.attempts,
            reason: row.hitch.as_ref().map(|hitch| hitch.reason.clone()),
            next_at: row.next_at.filter(|_| row.open && now.is_none()),
            updated_at: row.updated_at,
        }
    }

    /// Has an image brought to a region, or (told by the region) fetched from it.
    pub async fn order_replication(
        &self,
        order: &ReplicationCreate,
        there: Option<&Replica>,
    ) -> Result<Replication, OpsError> {
        order.check()?;
        let id = self
            .transact(|view| {
                let region = region_of(view, &order.region)?;
                let (image, name) = match (order.direction, there) {
                    (Direction::Fetch, Some(there)) => (there.id, there.name.clone()),
                    _ => own(view, &order.image)?,
                };
                let now = Timestamp::now();
                let id = ReplicationRecord::of(image, region.id(), order.direction);
                let row = view.replications.get(id);
                let fresh = || ReplicationRecord::new(image, region.id(), order.direction, &name, now);
                let mut record = row.map_or_else(fresh, |row| (*row.record).clone());
                record.name.clone_from(&name);
                record.tags |= order.tags;
                record.ask(now);
                let mut draft = Draft::default();
                draft.guard(region);
                draft.put_record(row, &record);
                Ok((draft, id))
            })
            .await?;
        self.replication(id)
    }

    /// Forgets it; what has arrived stays, as much as the other side keeps. One that a policy asks for comes back.
    pub async fn forget_replication(&self, id: ReplicationId) -> Result<(), OpsError> {
        self.transact(|view| {
            let row = view.replications.get(id);
            let row = row.ok_or_else(|| OpsError::not_found::<ReplicationRecord>(id))?;
            let mut draft = Draft::default();
            draft.delete(row);
            Ok((draft, ()))
        })
        .await
    }

    /// Writes down what policies ask for; what is to be done now and is not on its way.
    pub(crate) async fn due_replications(&self) -> Result<Vec<(RegionId, ReplicationId)>, OpsError> {
        let due = self
            .transact(|view| {
                let plan = plan(view, Timestamp::now());
                let mut draft = Draft::default();
                for record in plan.write.iter().take(super::status::CHUNK) {
                    draft.put_record(view.replications.get(record.id()), record);
                }
                let forgotten = plan.forget.iter().filter_map(|id| view.replications.get(*id));
                forgotten.take(super::status::CHUNK).for_each(|row| draft.delete(row));
                Ok((draft, plan.due))
            })
            .await?;
        let view = self.world().read();
        let underway = self.underway.all();
        let waits = due.into_iter().filter(|id| !underway.contains_key(id));
        Ok(waits.filter_map(|id| Some((view.replications.get(id)?.region, id))).collect())
    }

    /// Begins a transfer; none: somebody else has, or it is no longer asked for. It lasts until [`Self::end_replication`].
    pub(crate) fn begin_replication(&self, id: ReplicationId) -> Option<Result<Work, OpsError>> {
        let view = self.world().read();
        let row = view.replications.get(id)?;
        let peer = view.peers.get(row.region)?;
        let progress = Arc::new(Progress::default());
        {
            let mut underway = self.underway.all();
            if underway.contains_key(&id) {
                return None;
            }
            underway.insert(id, progress.clone());
        }
        let work = |what| Work { id, image: row.image, peer: (*peer.record).clone(), what, progress };
        Some(match (row.direction, view.images.get(row.image)) {
            (Direction::Fetch, _) => Ok(work(Errand::Fetch(row.tags))),
            (Direction::Push, None) => Ok(work(Errand::Delete)),
            (Direction::Push, Some(image)) => self.describe(&view, row.image, row.tags).map(|replica| {
                let mark = Marks::of(&view).mark(image, row.tags);
                work(Errand::Push(Box::new(replica), mark))
            }),
        })
    }

    /// Writes down how a transfer ended.
    pub(crate) async fn end_replication(&self, id: ReplicationId, outcome: Outcome) -> Result<(), OpsError> {
        let progress = self.underway.of(id).unwrap_or_default();
        let (total, arrived, sent) = (
            progress.total.load(Ordering::Relaxed),
            progress.arrived.load(Ordering::Relaxed),
            progress.sent.load(Ordering::Relaxed),
        );
        let ended = self.transact(|view| {
            let mut draft = Draft::default();
            let Some(row) = view.replications.get(id) else { return Ok((draft, ())) };
            let (mut record, now) = ((*row.record).clone(), Timestamp::now());
            if total > 0 {
                (record.total, record.arrived) = (total, arrived);
            }
            record.sent += sent;
            match &outcome {
                Outcome::Deleted => {
                    draft.delete(row);
                    return Ok((draft, ()));
                }
                Outcome::Brought(mark) => record.succeed(mark.clone(), now),
                Outcome::Failed(hitch) => record.fail(hitch.clone(), sent > 0, now),
            }
            draft.update(row, &record);
            Ok((draft, ()))
        });
        let ended = ended.await;
        self.underway.all().remove(&id);
        ended
    }
}

/// An image of ours that can go.
fn own(view: &View, text: &str) -> Result<(ImageId, String), OpsError> {
    let row = text.parse().ok().and_then(|id| view.images.get(id)).filter(|row| !row.closing);
    let row =
        row.ok_or_else(|| OpsError::field("image", format!("no image '{text}'; an image's id is wanted")))?;
    if row.state() != ImageState::Active {
        return Err(OpsError::taken("image", "the image has not been uploaded yet"));
    }
    Ok((row.id, row.name.clone()))
}
