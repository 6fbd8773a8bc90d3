//! Updates of sets: the order, how far it has got, the descriptions that there were.

use super::{Client, ClientError};
use crate::InstanceId;
use crate::instance::Instance;
use crate::rollout::{Revision, Rollout, RolloutUndo, SetUpdate};

type Result<T> = std::result::Result<T, ClientError>;

impl Client {
    /// Orders a new description; members that differ are replaced one after another.
    pub async fn update_set(&self, id: InstanceId, update: &SetUpdate) -> Result<Rollout> {
        self.post(format!("update set {id}"), &format!("/instances/{id}/rollout"), update).await
    }

    /// The update under way, or the last one.
    pub async fn rollout(&self, id: InstanceId) -> Result<Rollout> {
        self.get("rollout", &format!("/instances/{id}/rollout")).await
    }

    /// No further member begins.
    pub async fn pause_rollout(&self, id: InstanceId) -> Result<Rollout> {
        self.order(format!("pause the update of {id}"), &format!("/instances/{id}/rollout/pause")).await
    }

    pub async fn resume_rollout(&self, id: InstanceId) -> Result<Rollout> {
        self.order(format!("resume the update of {id}"), &format!("/instances/{id}/rollout/resume")).await
    }

    /// Back to an earlier description, or out of the update under way.
    pub async fn undo_rollout(&self, id: InstanceId, undo: &RolloutUndo) -> Result<Rollout> {
        self.post(format!("undo the update of {id}"), &format!("/instances/{id}/rollout/undo"), undo).await
    }

    /// The newest first, without the descriptions themselves.
    pub async fn revisions(&self, id: InstanceId) -> Result<Vec<Revision>> {
        self.list("revisions", &format!("/instances/{id}/revisions")).await
    }

    /// One of them, with the description.
    pub async fn revision(&self, id: InstanceId, number: u64) -> Result<Revision> {
        self.get("revision", &format!("/instances/{id}/revisions/{number}")).await
    }

    /// Ends one member of a set and starts it again.
    pub async fn restart_member(&self, id: InstanceId, member: &str) -> Result<Instance> {
        let what = format!("restart member {member} of {id}");
        self.order(what, &format!("/instances/{id}/members/{member}/restart")).await
    }
}
