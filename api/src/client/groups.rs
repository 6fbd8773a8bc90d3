//! Scaling groups and endpoints.

use super::{Client, ClientError};
use crate::group::{
    Endpoints, Group, GroupChange, GroupCreate, GroupScale, GroupUpdate, MetricPost, RolloutOrder,
    ScalingExplained,
};
use crate::{InstanceId, ScalingGroupId};
use reqwest::Method;
use std::time::Duration;

type Result<T> = std::result::Result<T, ClientError>;

/// The longest that the controller holds back what is followed, and some seconds more.
const FOLLOW_TIMEOUT: Duration = Duration::from_secs(75);

impl Client {
    pub async fn groups(&self) -> Result<Vec<Group>> {
        self.list("groups", "/groups").await
    }

    pub async fn group(&self, id: ScalingGroupId) -> Result<Group> {
        self.get("group", &format!("/groups/{id}")).await
    }

    pub async fn create_scaling_group(&self, request: &GroupCreate) -> Result<Group> {
        self.post(format!("create group {}", request.name), "/groups", request).await
    }

    pub async fn change_group(&self, id: ScalingGroupId, change: &GroupChange) -> Result<Group> {
        let call = self.call(format!("change group {id}"), Method::PATCH, &format!("/groups/{id}"));
        call.json(change).read().await
    }

    /// Its instances go with it.
    pub async fn delete_group(&self, id: ScalingGroupId) -> Result<()> {
        self.delete(format!("delete group {id}"), &format!("/groups/{id}")).await
    }

    pub async fn scale_group(&self, id: ScalingGroupId, to: u32) -> Result<Group> {
        self.post(format!("scale group {id}"), &format!("/groups/{id}/scale"), &GroupScale { to }).await
    }

    pub async fn explain_scaling(&self, id: ScalingGroupId) -> Result<ScalingExplained> {
        self.get("what a group would do", &format!("/groups/{id}/scale")).await
    }

    pub async fn update_group(&self, id: ScalingGroupId, order: &GroupUpdate) -> Result<Group> {
        self.post(format!("update group {id}"), &format!("/groups/{id}/update"), order).await
    }

    pub async fn order_rollout(&self, id: ScalingGroupId, order: &RolloutOrder) -> Result<Group> {
        self.post(format!("order the rollout of group {id}"), &format!("/groups/{id}/rollout"), order).await
    }

    pub async fn post_metric(&self, id: ScalingGroupId, post: &MetricPost) -> Result<()> {
        let call =
            self.call(format!("tell group {id} a number"), Method::POST, &format!("/groups/{id}/metrics"));
        call.json(post).done().await
    }

    /// `watch`: the version that is known; the answer comes when there is another one, or after half a minute.
    pub async fn group_endpoints(&self, id: ScalingGroupId, watch: Option<&str>) -> Result<Endpoints> {
        let call = self.call("read endpoints", Method::GET, &format!("/groups/{id}/endpoints"));
        let watch: Vec<(&str, &str)> = watch.map(|version| ("watch", version)).into_iter().collect();
        call.query(&watch).limit(FOLLOW_TIMEOUT).read().await
    }

    pub async fn instance_endpoints(&self, id: InstanceId) -> Result<Endpoints> {
        self.get("endpoints", &format!("/instances/{id}/endpoints")).await
    }
}
