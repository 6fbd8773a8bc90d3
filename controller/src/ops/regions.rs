//! Regions and policies as records: made, changed, forgotten. What goes where now is [`super::replications`]' business.

use super::{Draft, Ops, OpsError, Row, View};
use crate::model::*;
use amphi_api::replication::{Region, RegionChange, RegionCreate, ReplicationPolicy, ReplicationPolicySpec};
use amphi_api::{ProjectId, RegionId, ReplicationPolicyId};
use jiff::Timestamp;

impl Ops {
    pub fn peers(&self) -> Vec<Region> {
        let mut all: Vec<_> = self.world().read().peers.iter().map(|row| row.view()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    pub fn peer_view(&self, name: &str) -> Result<Region, OpsError> {
        Ok(self.peer(name)?.view())
    }

    /// As it is reached. Its secret is for the one that speaks with it alone.
    pub(crate) fn peer(&self, name: &str) -> Result<PeerRecord, OpsError> {
        let view = self.world().read();
        let row = view.peers.get(RegionId::of(name));
        row.map(|row| (*row.record).clone())
            .ok_or_else(|| OpsError::not_found::<PeerRecord>(format!("'{name}'")))
    }

    pub async fn create_peer(&self, create: &RegionCreate) -> Result<Region, OpsError> {
        create.check()?;
        let record = PeerRecord {
            name: create.name.clone(),
            url: create.url.trim_end_matches('/').to_owned(),
            token: create.token.clone(),
            credential: create.credential.clone(),
            ca: create.ca.clone().filter(|ca| !ca.is_empty()),
            bytes_per_second: create.bytes_per_second.filter(|rate| *rate > 0),
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            if view.peers.get(record.id()).is_some() {
                return Err(OpsError::taken("name", format!("region '{}' is known", record.name)));
            }
            let mut draft = Draft::default();
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok(record.view())
    }

    pub async fn change_peer(&self, name: &str, change: &RegionChange) -> Result<Region, OpsError> {
        change.check()?;
        self.transact(|view| {
            let row = view.peers.get(RegionId::of(name));
            let row = row.ok_or_else(|| OpsError::not_found::<PeerRecord>(format!("'{name}'")))?;
            let mut record = (*row.record).clone();
            if let Some(url) = &change.url {
                record.url = url.trim_end_matches('/').to_owned();
            }
            if let Some(token) = &change.token {
                (record.token, record.credential) = (Some(token.clone()), None);
            }
            if let Some(credential) = &change.credential {
                (record.token, record.credential) = (None, Some(credential.clone()));
            }
            if let Some(ca) = &change.ca {
                record.ca = Some(ca.clone()).filter(|ca| !ca.is_empty());
            }
            if let Some(rate) = change.bytes_per_second {
                record.bytes_per_second = Some(rate).filter(|rate| *rate > 0);
            }
            let mut draft = Draft::default();
            draft.update(row, &record);
            Ok((draft, ()))
        })
        .await?;
        self.peer_view(name)
    }

    /// Refused while a policy sends images there; what has gone there stays there.
    pub async fn delete_peer(&self, name: &str) -> Result<(), OpsError> {
        let id = RegionId::of(name);
        loop {
            let more = self.transact(|view| {
                let row = view.peers.get(id);
                let row = row.ok_or_else(|| OpsError::not_found::<PeerRecord>(format!("'{name}'")))?;
                if let Some(policy) = view.replication_policies.iter().find(|p| p.region() == id) {
                    let text = format!("policy '{}' sends images there; end it first", policy.spec.name);
                    return Err(OpsError::conflict(text));
                }
                let mut draft = Draft::default();
                let all: Vec<_> = view.replications.iter().filter(|r| r.region == id).collect();
                all.iter().take(super::status::CHUNK).for_each(|row| draft.delete(row));
                let more = all.len() > super::status::CHUNK;
                if !more {
                    draft.delete(row);
                }
                Ok((draft, more))
            });
            if !more.await? {
                return Ok(());
            }
        }
    }

    pub fn replication_policies(&self) -> Vec<ReplicationPolicy> {
        let view = self.world().read();
        let mut all: Vec<_> = view.replication_policies.iter().map(|row| policy_view(&view, row)).collect();
        all.sort_by(|a, b| a.spec.name.cmp(&b.spec.name));
        all
    }

    pub async fn create_replication_policy(
        &self,
        spec: &ReplicationPolicySpec,
    ) -> Result<ReplicationPolicy, OpsError> {
        spec.check()?;
        let id = ReplicationPolicyId::of(&spec.name);
        self.transact(|view| {
            let region = region_of(view, &spec.region)?;
            if view.replication_policies.get(id).is_some() {
                return Err(OpsError::taken("name", format!("policy '{}' exists", spec.name)));
            }
            let project = match &spec.project {
                None => None,
                Some(text) => Some(
                    Ops::project_beside(view, ProjectId::DEFAULT, text)
                        .ok_or_else(|| OpsError::field("project", format!("no project '{text}'")))?,
                ),
            };
            let mut draft = Draft::default();
            draft.guard(region);
            let created_at = Timestamp::now();
            draft.create(&ReplicationPolicyRecord { spec: spec.clone(), project, created_at });
            Ok((draft, ()))
        })
        .await?;
        let view = self.world().read();
        let row = view.replication_policies.get(id);
        row.map(|row| policy_view(&view, row))
            .ok_or_else(|| OpsError::not_found::<ReplicationPolicyRecord>(&spec.name))
    }

    /// What has gone by it stays where it is; what has not gone yet does not go.
    pub async fn delete_replication_policy(&self, name: &str) -> Result<(), OpsError> {
        let id = ReplicationPolicyId::of(name);
        loop {
            let more = self.transact(|view| {
                let row = view.replication_policies.get(id);
                let row =
                    row.ok_or_else(|| OpsError::not_found::<ReplicationPolicyRecord>(format!("'{name}'")))?;
                let mut draft = Draft::default();
                let open: Vec<_> =
                    view.replications.iter().filter(|r| r.policy == Some(id) && r.open).collect();
                open.iter().take(super::status::CHUNK).for_each(|row| draft.delete(row));
                // With the last of them, so that none is asked for anew in between; others find it gone and try again.
                let more = open.len() > super::status::CHUNK;
                if !more {
                    draft.delete(row);
                }
                Ok((draft, more))
            });
            if !more.await? {
                return Ok(());
            }
        }
    }
}

impl PeerRecord {
    fn view(&self) -> Region {
        Region {
            id: self.id(),
            name: self.name.clone(),
            url: self.url.clone(),
            ca: self.ca.is_some(),
            bytes_per_second: self.bytes_per_second,
            created_at: self.created_at,
        }
    }
}

fn policy_view(view: &View, row: &ReplicationPolicyRecord) -> ReplicationPolicy {
    let images = view.replications.iter().filter(|r| r.policy == Some(row.id())).count();
    ReplicationPolicy {
        id: row.id(),
        spec: row.spec.clone(),
        images: images as u64,
        created_at: row.created_at,
    }
}

pub(super) fn region_of<'a>(view: &'a View, name: &str) -> Result<&'a Row<PeerRecord>, OpsError> {
    view.peers.get(RegionId::of(name)).ok_or_else(|| {
        let mut known: Vec<_> = view.peers.iter().map(|peer| peer.name.as_str()).collect();
        known.sort_unstable();
        let known =
            if known.is_empty() { "none is known".into() } else { format!("known: {}", known.join(", ")) };
        OpsError::field("region", format!("no region '{name}'; {known}"))
    })
}
