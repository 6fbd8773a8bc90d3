//! Speaking with other regions: an image is told there as a whole, the answer says which bytes are missing, they go by digest,
//! and the image is told again. Fetching is the same the other way round. An attempt that breaks off leaves what has come; the
//! next one asks where to go on. Refuses to remember anything: records say what is to be done, and the other side what it has.

mod pace;

use crate::model::{Hitch, PeerRecord};
use crate::ops::{ByteRange, Errand, Ops, OpsError, Outcome, Progress, Work};
use amphi_api::client::{Client, ClientError};
use amphi_api::replica::{MissingBlob, Replica, ReplicaAnswer, ReplicaState};
use amphi_api::replication::{Direction, Replication, ReplicationCreate};
use amphi_api::{ErrorCode, ProjectId, RegionId, ReplicationId};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use pace::Pace;
use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Transfers to and from one region at a time.
const AT_ONCE: usize = 2;
/// So often is an image told before the attempt counts as failed: bytes that were sent are missing still.
const ROUNDS: usize = 8;
/// Bytes that go in one piece at a limited pace: never so many that a line looks dead.
const PIECE: usize = 64 << 10;

pub struct Regions {
    ops: Arc<Ops>,
    paces: Mutex<HashMap<RegionId, Arc<Pace>>>,
    /// How many transfers each region has now.
    busy: Mutex<HashMap<RegionId, usize>>,
    /// Blobs on their way: images that share one wait for each other.
    blobs: Mutex<HashMap<(RegionId, String), Weak<tokio::sync::Mutex<()>>>>,
}

/// One transfer of a region is over when this is dropped.
struct Turn {
    regions: Arc<Regions>,
    region: RegionId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut busy = self.regions.busy.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = busy.get_mut(&self.region) {
            *count = count.saturating_sub(1);
        }
    }
}

/// What a region says when it refuses, or why it is not heard.
fn hitch(peer: &PeerRecord, error: ClientError) -> Hitch {
    let name = &peer.name;
    let (refused, reason) = match &error {
        ClientError::Api { status: 401 | 403, .. } => {
            let next = format!("give it one that may: amphi region set {name} --token-file FILE");
            (true, format!("region '{name}' refuses the token ({error}); {next}"))
        }
        ClientError::Api { detail, .. } => (
            !matches!(detail.code, ErrorCode::Unavailable | ErrorCode::Internal),
            format!("region '{name}': {error}"),
        ),
        ClientError::Setup { .. } => (true, format!("region '{name}': {error}")),
        _ => (false, format!("region '{name}': {error}")),
    };
    Hitch { refused, reason }
}

/// What is wrong on this side.
fn here(error: OpsError) -> Hitch {
    let refused = !matches!(error.code(), ErrorCode::Unavailable | ErrorCode::Internal);
    let field = match &error {
        OpsError::Conflict { field: Some(field), .. } => format!("{field}: "),
        OpsError::Field(e) if !e.field.is_empty() && !error.to_string().contains(&e.field) => {
            format!("{}: ", e.field)
        }
        _ => String::new(),
    };
    Hitch { refused, reason: format!("here: {field}{error}") }
}

impl Regions {
    pub fn new(ops: Arc<Ops>) -> Arc<Self> {
        Arc::new(Self { ops, paces: Mutex::default(), busy: Mutex::default(), blobs: Mutex::default() })
    }

    async fn client(peer: &PeerRecord) -> Result<Client, Hitch> {
        let ca = peer.ca.as_deref();
        let client = match (&peer.credential, &peer.token) {
            (Some(credential), _) => {
                Client::by_credential(&peer.url, &credential.id, &credential.secret.0, ca).await
            }
            (None, Some(token)) => Client::trusting(&peer.url, &token.0, ca),
            (None, None) => {
                Err(ClientError::Setup { what: "neither a token nor a credential is known".into() })
            }
        };
        client.map_err(|error| hitch(peer, error))
    }

    fn pace(&self, region: RegionId) -> Arc<Pace> {
        let mut paces = self.paces.lock().unwrap_or_else(PoisonError::into_inner);
        paces.entry(region).or_default().clone()
    }

    /// Leave to move a blob; none, after a while: another image's transfer has moved it, or has failed to.
    async fn alone(&self, work: &Work, sha256: &str) -> Option<tokio::sync::OwnedMutexGuard<()>> {
        let key = (RegionId::of(&work.peer.name), sha256.to_owned());
        let blob = {
            let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            blobs.retain(|_, blob| blob.strong_count() > 0);
            let known = blobs.get(&key).and_then(Weak::upgrade);
            let blob = known.unwrap_or_default();
            blobs.insert(key, Arc::downgrade(&blob));
            blob
        };
        match blob.clone().try_lock_owned() {
            Ok(guard) => Some(guard),
            Err(_) => {
                drop(blob.lock().await);
                None
            }
        }
    }

    fn turn(self: &Arc<Self>, region: RegionId) -> Option<Turn> {
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let count = busy.entry(region).or_default();
        if *count >= AT_ONCE {
            return None;
        }
        *count += 1;
        Some(Turn { regions: self.clone(), region })
    }

    /// Takes an order. What is to be fetched is looked for there first, by id or name.
    pub async fn order(&self, order: &ReplicationCreate) -> Result<Replication, OpsError> {
        order.check()?;
        if order.direction == Direction::Push {
            return self.ops.order_replication(order, None).await;
        }
        let unknown = |e: OpsError| OpsError::field("region", e.to_string());
        let peer = self.ops.peer(&order.region).map_err(unknown)?;
        let said = |hitch: Hitch| match hitch.refused {
            true => OpsError::taken("region", hitch.reason),
            false => OpsError::Unavailable(hitch.reason),
        };
        let client = Self::client(&peer).await.map_err(said)?;
        let found = client.replicas(&order.image, order.tags).await.map_err(|e| said(hitch(&peer, e)))?;
        match &found[..] {
            [one] => self.ops.order_replication(order, Some(one)).await,
            [] => Err(OpsError::field(
                "image",
                format!("region '{}' has no image '{}'", peer.name, order.image),
            )),
            many => {
                let ids: Vec<_> = many.iter().map(|one| one.id.to_string()).collect();
                let text = format!("{} images there are named so; use an id: {}", many.len(), ids.join(", "));
                Err(OpsError::field("image", text))
            }
        }
    }

    /// Begins what is due, as much at once as may be; returns before any of it has ended.
    pub async fn begin(self: &Arc<Self>) -> Result<(), OpsError> {
        for (region, id) in self.ops.due_replications().await? {
            let Some(turn) = self.turn(region) else { continue };
            let Some(work) = self.ops.begin_replication(id) else { continue };
            let regions = self.clone();
            tokio::spawn(async move {
                let outcome = match work {
                    Err(error) => Outcome::Failed(here(error)),
                    Ok(work) => match regions.transfer(&work).await {
                        Ok(outcome) => outcome,
                        Err(hitch) => {
                            tracing::warn!(image = %work.image, region = work.peer.name, reason = hitch.reason,
                                "an image is not replicated; it is tried again");
                            Outcome::Failed(hitch)
                        }
                    },
                };
                // Before the record says that it is over, so that whoever looks then finds room for the next.
                drop(turn);
                regions.end(id, outcome).await;
            });
        }
        Ok(())
    }

    async fn end(&self, id: ReplicationId, outcome: Outcome) {
        if let Err(error) = self.ops.end_replication(id, outcome).await {
            tracing::warn!(replication = %id, %error, "how a replication ended is not written down; it is done again");
        }
    }

    async fn transfer(&self, work: &Work) -> Result<Outcome, Hitch> {
        let client = Self::client(&work.peer).await?;
        let wrong = |error| hitch(&work.peer, error);
        match &work.what {
            Errand::Push(replica, mark) => {
                self.push(work, &client, replica).await?;
                Ok(Outcome::Brought(mark.clone()))
            }
            Errand::Fetch(tags) => {
                let found = client.replicas(&work.image.to_string(), *tags).await.map_err(wrong)?;
                let gone = || Hitch {
                    refused: true,
                    reason: format!("region '{}' has the image no more", work.peer.name),
                };
                let replica = found.into_iter().next().ok_or_else(gone)?;
                self.fetch(work, &client, &replica).await?;
                Ok(Outcome::Brought(String::new()))
            }
            Errand::Delete => match client.delete_replica(work.image, self.ops.cloud()).await {
                Err(error) if !error.is_not_found() => Err(wrong(error)),
                _ => Ok(Outcome::Deleted),
            },
        }
    }

    async fn push(&self, work: &Work, client: &Client, replica: &Replica) -> Result<(), Hitch> {
        for _ in 0..ROUNDS {
            let answer = client.put_replica(replica).await.map_err(|error| hitch(&work.peer, error))?;
            let Some(project) = open(&work.progress, replica, &answer) else { return Ok(()) };
            for missing in &answer.missing {
                self.send(work, client, project, missing).await?;
            }
        }
        Err(never_whole(&work.peer))
    }

    async fn send(
        &self,
        work: &Work,
        client: &Client,
        project: ProjectId,
        missing: &MissingBlob,
    ) -> Result<(), Hitch> {
        let blob = &missing.blob;
        // Whether it is there then is asked in the next round.
        let Some(_alone) = self.alone(work, &blob.sha256).await else { return Ok(()) };
        let (bytes, size) = self.ops.read_blob(&blob.sha256, missing.received).await.map_err(here)?;
        if size != blob.size {
            let reason = format!("here: blob {} has {size} bytes, not {}", blob.sha256, blob.size);
            return Err(Hitch { refused: true, reason });
        }
        let bytes = self.paced(work, bytes.stream());
        let sent =
            client.send_replica_blob(project, blob, missing.received, bytes, Box::new(|_, _| {})).await;
        sent.map_err(|error| match &error {
            // Another cloud brings the same one: what has come of it by then stays.
            ClientError::Api { status: 409, .. } => Hitch { refused: false, ..hitch(&work.peer, error) },
            _ => hitch(&work.peer, error),
        })
    }

    async fn fetch(&self, work: &Work, client: &Client, replica: &Replica) -> Result<(), Hitch> {
        for _ in 0..ROUNDS {
            let answer = self.ops.take_replica(replica).await.map_err(here)?;
            let Some(project) = open(&work.progress, replica, &answer) else { return Ok(()) };
            for MissingBlob { blob, received } in &answer.missing {
                let Some(_alone) = self.alone(work, &blob.sha256).await else { continue };
                let bytes = client.read_replica_blob(blob, *received).await;
                let bytes = bytes.map_err(|error| hitch(&work.peer, error))?;
                let range = ByteRange { from: *received, total: blob.size };
                let bytes = self.paced(work, bytes).boxed();
                let taken = self.ops.take_replica_blob(project, &blob.sha256, range, bytes).await;
                match taken {
                    // What is missing still is asked for in the next round.
                    Ok(Ok(_) | Err(_)) => {}
                    // A line that breaks off is no refusal of ours: what has come stays.
                    Err(OpsError::Conflict { message, .. }) => {
                        let reason = format!("region '{}': {message}", work.peer.name);
                        return Err(Hitch { refused: false, reason });
                    }
                    Err(error) => return Err(here(error)),
                }
            }
        }
        Err(never_whole(&work.peer))
    }

    /// The same bytes, counted, no faster than the region's pace.
    fn paced<S>(
        &self,
        work: &Work,
        bytes: S,
    ) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static + use<S>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let (rate, progress) = (work.peer.bytes_per_second, work.progress.clone());
        let pace = self.pace(RegionId::of(&work.peer.name));
        let pieces = bytes.flat_map(move |part| {
            let most = if rate.is_some() { PIECE } else { usize::MAX };
            futures_util::stream::iter(pieces(part, most))
        });
        pieces.then(move |part| {
            let (pace, progress) = (pace.clone(), progress.clone());
            async move {
                if let Ok(part) = &part {
                    pace.take(part.len(), rate).await;
                    progress.sent.fetch_add(part.len() as u64, Ordering::Relaxed);
                    progress.arrived.fetch_add(part.len() as u64, Ordering::Relaxed);
                }
                part
            }
        })
    }
}

fn pieces(part: io::Result<Bytes>, most: usize) -> Vec<io::Result<Bytes>> {
    let mut part = match part {
        Ok(part) => part,
        Err(error) => return vec![Err(error)],
    };
    let mut pieces = Vec::new();
    while part.len() > most {
        pieces.push(Ok(part.split_to(most)));
    }
    pieces.push(Ok(part));
    pieces
}

/// The project that bytes are missing of; none: the replica is there. What the answer says of the way is noted.
fn open(progress: &Progress, replica: &Replica, answer: &ReplicaAnswer) -> Option<ProjectId> {
    let total = replica.size();
    let open: u64 = answer.missing.iter().map(|m| m.blob.size.saturating_sub(m.received)).sum();
    progress.total.store(total, Ordering::Relaxed);
    progress.arrived.store(total.saturating_sub(open), Ordering::Relaxed);
    answer.project.filter(|_| answer.state == ReplicaState::Waiting)
}

fn never_whole(peer: &PeerRecord) -> Hitch {
    let reason =
        format!("region '{}': bytes that were sent are missing still; are they swept too soon?", peer.name);
    Hitch { refused: false, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::error::ErrorDetail;
    use amphi_api::replication::Secret;
    use jiff::Timestamp;

    fn peer() -> PeerRecord {
        PeerRecord {
            name: "south".into(),
            url: "http://127.0.0.1:1".into(),
            token: Some(Secret("hush-hush-hush".into())),
            credential: None,
            ca: None,
            bytes_per_second: None,
            created_at: Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn what_passes_and_what_was_refused() {
        let api = |code: ErrorCode| ClientError::Api {
            operation: "tell".into(),
            status: code.status(),
            detail: ErrorDetail { code, message: "m".into(), field: Some("project".into()) },
        };
        for (error, refused) in [
            (api(ErrorCode::Unauthenticated), true),
            (api(ErrorCode::Forbidden), true),
            (api(ErrorCode::Conflict), true),
            (api(ErrorCode::StorageFull), true),
            (api(ErrorCode::InvalidField), true),
            (api(ErrorCode::Unavailable), false),
            (
                ClientError::Unreachable { operation: "t".into(), url: String::new(), reason: "r".into() },
                false,
            ),
        ] {
            let hitch = hitch(&peer(), error);
            assert_eq!(hitch.refused, refused, "{hitch:?}");
            assert!(hitch.reason.contains("south") && !hitch.reason.contains("hush"), "{hitch:?}");
        }
        let token = hitch(&peer(), api(ErrorCode::Unauthenticated)).reason;
        assert!(token.contains("amphi region set south --token-file"), "{token}");
        assert!(!format!("{:?}", peer()).contains("hush"));
    }

    #[test]
    fn pieces_are_the_same_bytes() {
        let bytes = Bytes::from_iter(0..=250u8);
        let cut: Vec<Bytes> = pieces(Ok(bytes.clone()), 100).into_iter().map(Result::unwrap).collect();
        assert_eq!(cut.iter().map(Bytes::len).collect::<Vec<_>>(), [100, 100, 51]);
        assert_eq!(cut.concat(), bytes);
    }
}
