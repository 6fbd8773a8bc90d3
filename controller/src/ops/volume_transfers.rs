//! Volumes on their way to another project. The key that takes one is told once, when it is offered.

use super::list::find;
use super::volume_edit::doings;
use super::{Draft, Ops, OpsError, volume_create, volume_types};
use crate::model::*;
use amphi_api::{ProjectId, UserId, VolumeId, VolumeTransferId};
use jiff::Timestamp;
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Bytes of a key, before they become hexadecimal digits (cinder's `volume_transfer_key_length` is 16 characters).
const KEY_BYTES: usize = 16;

fn digest(id: VolumeTransferId, key: &str) -> String {
    hex::encode(Sha256::new().chain_update(id.0).chain_update(key).finalize())
}

impl Ops {
    /// The record, and the key.
    pub async fn offer_volume(
        &self,
        scope: ProjectId,
        volume: VolumeId,
        name: &str,
        no_snapshots: bool,
    ) -> Result<(VolumeTransferRecord, String), OpsError> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| OpsError::Internal("the operating system has no random bits".into()))?;
        let key = hex::encode(bytes);
        let id = VolumeTransferId::new();
        let record = VolumeTransferRecord {
            id,
            project: scope,
            name: name.to_owned(),
            volume,
            key_sha256: digest(id, &key),
            no_snapshots,
            created_at: Timestamp::now(),
        };
        self.transact(|view| {
            let row = find(&view.volumes, scope, volume)?;
            let word = row.word(doings(view, row));
            if word != "available" {
                return Err(OpsError::conflict(format!(
                    "Invalid volume: status must be available, is {word}"
                )));
            }
            let mut draft = Draft::default();
            // Two offers at once would both succeed.
            draft.touch(row);
            draft.create(&record);
            Ok((draft, ()))
        })
        .await?;
        Ok((record, key))
    }

    pub async fn withdraw_volume(&self, scope: ProjectId, id: VolumeTransferId) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            draft.delete(find(&view.volume_transfers, scope, id)?);
            Ok((draft, ()))
        })
        .await
    }

    /// The volume becomes the project's, with its snapshots if they are part of the offer.
    pub async fn accept_volume(
        &self,
        scope: ProjectId,
        user: Option<UserId>,
        id: VolumeTransferId,
        key: &str,
    ) -> Result<VolumeTransferRecord, OpsError> {
        self.transact_room(|view| {
            let gone = || OpsError::not_found::<VolumeTransferRecord>(id);
            let offer = view.volume_transfers.get(id).ok_or_else(gone)?;
            let given = digest(id, key);
            if !bool::from(given.as_bytes().ct_eq(offer.key_sha256.as_bytes())) {
                return Err(OpsError::field("auth_key", "Invalid auth key: it does not fit the transfer."));
            }
            let row = view.volumes.get(offer.volume).filter(|row| row.seen()).ok_or_else(gone)?;
            if row.instance.is_some() || row.traits.hold.is_some() || row.journey.is_some() {
                return Err(OpsError::conflict("Invalid volume: it is attached"));
            }
            let kind = volume_types::get(view, row.traits.volume_type.unwrap_or(VolumeTypeRecord::DEFAULT));
            let kind = kind.unwrap_or_else(VolumeTypeRecord::default_type);
            if scope != row.project {
                volume_create::room_for(view, scope, row.size_gib, &kind)?;
            }
            let snapshots: Vec<_> =
                view.snapshots.iter().filter(|s| s.volume == row.id && !offer.no_snapshots).collect();
            if scope != row.project && !snapshots.is_empty() {
                let gib = snapshots.iter().map(|s| s.size_gib).sum();
                let asked = [(Resource::Snapshots, snapshots.len() as u64), (Resource::Gigabytes, gib)];
                super::quotas::check(view, scope, &asked)?;
            }
            let mut draft = Draft::default();
            let mut record = VolumeRecord { project: scope, ..(*row.record).clone() };
            record.traits.user = user;
            record.traits.updated_at = Some(Timestamp::now());
            draft.update(row, &record);
            for snapshot in snapshots {
                draft.update(snapshot, &SnapshotRecord { project: scope, ..(*snapshot.record).clone() });
            }
            draft.delete(offer);
            Ok((draft, (*offer.record).clone()))
        })
        .await
    }
}
