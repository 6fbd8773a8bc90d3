//! Regions and what goes to them; and, between two controllers, replicas and their bytes.

use super::{Client, ClientError};
use crate::image::Blob;
use crate::replica::{Replica, ReplicaAnswer};
use crate::replication::{
    Region, RegionChange, RegionCreate, Replication, ReplicationCreate, ReplicationPolicy,
    ReplicationPolicySpec,
};
use crate::{ImageId, ReplicationId};
use bytes::Bytes;
use futures_util::Stream;
use reqwest::{Method, header};
use std::io;

type Result<T> = std::result::Result<T, ClientError>;

/// Regions, replications, policies.
impl Client {
    pub async fn regions(&self) -> Result<Vec<Region>> {
        self.list("regions", "/regions").await
    }

    pub async fn region(&self, name: &str) -> Result<Region> {
        self.get("region", &format!("/regions/{name}")).await
    }

    pub async fn create_region(&self, region: &RegionCreate) -> Result<Region> {
        self.post(format!("make region {} known", region.name), "/regions", region).await
    }

    pub async fn change_region(&self, name: &str, change: &RegionChange) -> Result<Region> {
        let call = self.call(format!("change region {name}"), Method::PATCH, &format!("/regions/{name}"));
        call.json(change).read().await
    }

    pub async fn delete_region(&self, name: &str) -> Result<()> {
        self.delete(format!("forget region {name}"), &format!("/regions/{name}")).await
    }

    pub async fn replications(&self) -> Result<Vec<Replication>> {
        self.list("replications", "/replications").await
    }

    pub async fn replication(&self, id: ReplicationId) -> Result<Replication> {
        self.get("replication", &format!("/replications/{id}")).await
    }

    pub async fn replicate(&self, order: &ReplicationCreate) -> Result<Replication> {
        self.post(format!("replicate image {}", order.image), "/replications", order).await
    }

    pub async fn forget_replication(&self, id: ReplicationId) -> Result<()> {
        self.delete(format!("call off replication {id}"), &format!("/replications/{id}")).await
    }

    pub async fn replication_policies(&self) -> Result<Vec<ReplicationPolicy>> {
        self.list("policies", "/replication-policies").await
    }

    pub async fn create_replication_policy(&self, spec: &ReplicationPolicySpec) -> Result<ReplicationPolicy> {
        self.post(format!("make replication policy {}", spec.name), "/replication-policies", spec).await
    }

    pub async fn delete_replication_policy(&self, name: &str) -> Result<()> {
        let what = format!("end replication policy {name}");
        self.delete(what, &format!("/replication-policies/{name}")).await
    }
}

/// Between two controllers.
impl Client {
    /// Images by id or name, as another region is told of them.
    pub async fn replicas(&self, image: &str, tags: bool) -> Result<Vec<Replica>> {
        let call = self.call(format!("look for image {image}"), Method::GET, "/replicas");
        let mut answer: serde_json::Map<String, serde_json::Value> =
            call.query(&[("image", image), ("tags", if tags { "true" } else { "false" })]).read().await?;
        serde_json::from_value(answer.remove("replicas").unwrap_or_default()).map_err(|e| {
            ClientError::Protocol {
                operation: format!("look for image {image}"),
                message: format!("the answer is not what this version knows: {e}"),
            }
        })
    }

    /// Tells of an image; what is missing of it there.
    pub async fn put_replica(&self, replica: &Replica) -> Result<ReplicaAnswer> {
        // What is whole is put together and looked at before the answer, at no less than 10 MiB/s.
        let limit = super::CALL_TIMEOUT + std::time::Duration::from_secs(replica.size() / (10 << 20));
        let path = format!("/replicas/{}", replica.id);
        self.call(format!("tell of image {}", replica.id), Method::PUT, &path)
            .json(replica)
            .limit(limit)
            .read()
            .await
    }

    /// Deletes the replica of an image of this cloud.
    pub async fn delete_replica(&self, id: ImageId, cloud: &str) -> Result<()> {
        let call = self.call(
            format!("delete the replica of image {id}"),
            Method::DELETE,
            &format!("/replicas/{id}"),
        );
        call.query(&[("cloud", cloud)]).done().await
    }

    /// The bytes of a blob, from one on.
    pub async fn read_replica_blob(
        &self,
        blob: &Blob,
        from: u64,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + 'static> {
        self.call(
            format!("fetch blob {}", blob.sha256),
            Method::GET,
            &format!("/replica-blobs/{}", blob.sha256),
        )
        .map(|request| request.header(header::RANGE, format!("bytes={from}-")))
        .stream()
        .await
    }
}
