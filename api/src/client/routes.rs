//! One method per route, noun by noun. Lists come out of their envelope (`{"instances": […]}`).

use super::{Client, ClientError};
use crate::conversion::{Conversion, ConvertCreate};
use crate::events::EventPage;
use crate::failover::{Failover, FailoverChange};
use crate::host::{Evacuation, Host, HostChange, JoinToken, JoinTokenCreate, MaintenanceCreate};
use crate::image::{
    Image, ImageCreate, ImageDetail, ImageEdit, ImageLimit, ImageUsage, LayerImage, MarketImage,
};
use crate::instance::{ConsoleLog, Exchange, ExchangeCreate, Instance, InstanceCreate, MoveCreate};
use crate::looking::{DebugCreate, Debugging, Usage};
use crate::network::{Network, NetworkCreate, Port, RuleSpec, SecurityGroup, SecurityGroupCreate};
use crate::placement::{PlacementAsk, PlacementExplained, RebalanceAsk, RebalancePlan};
use crate::resize::InstanceResize;
use crate::set::SetSpec;
use crate::volume::{Snapshot, SnapshotCreate, Volume, VolumeCreate, VolumeExtend};
use crate::{
    ExchangeId, HostId, ImageId, InstanceId, NetworkId, ProjectId, RuleId, SecurityGroupId, SnapshotId,
    VolumeId,
};
use reqwest::Method;
use serde::{Serialize, de::DeserializeOwned};
use std::time::Duration;

type Result<T> = std::result::Result<T, ClientError>;

/// An evacuation decides for every instance of a host before it answers.
const EVACUATE_TIMEOUT: Duration = Duration::from_secs(120);

impl Client {
    pub(super) async fn get<T: DeserializeOwned>(&self, what: &str, path: &str) -> Result<T> {
        self.call(format!("read {what}"), Method::GET, path).read().await
    }

    pub(super) async fn list<T: DeserializeOwned>(&self, key: &'static str, path: &str) -> Result<Vec<T>> {
        let operation = format!("list {}", key.replace('_', " "));
        let mut envelope: serde_json::Map<String, serde_json::Value> =
            self.call(operation.clone(), Method::GET, path).read().await?;
        let Some(items) = envelope.remove(key) else {
            return Err(ClientError::Protocol { operation, message: format!("the answer has no `{key}`") });
        };
        serde_json::from_value(items)
            .map_err(|e| ClientError::Protocol { operation, message: format!("`{key}` cannot be read: {e}") })
    }

    pub(super) async fn post<T: DeserializeOwned>(
        &self,
        what: String,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T> {
        self.call(what, Method::POST, path).json(body).read().await
    }

    pub(super) async fn order<T: DeserializeOwned>(&self, what: String, path: &str) -> Result<T> {
        self.call(what, Method::POST, path).read().await
    }

    pub(super) async fn delete(&self, what: String, path: &str) -> Result<()> {
        self.call(what, Method::DELETE, path).done().await
    }
}

/// Hosts.
impl Client {
    pub async fn hosts(&self) -> Result<Vec<Host>> {
        self.list("hosts", "/hosts").await
    }

    pub async fn host(&self, id: HostId) -> Result<Host> {
        self.get("host", &format!("/hosts/{id}")).await
    }

    /// Forgets a host that has nothing left.
    pub async fn delete_host(&self, id: HostId) -> Result<()> {
        self.delete(format!("delete host {id}"), &format!("/hosts/{id}")).await
    }

    /// Gives the instances of a host that is down to other hosts. The answer says what became of each.
    pub async fn evacuate_host(&self, id: HostId) -> Result<Evacuation> {
        self.call(format!("evacuate host {id}"), Method::POST, &format!("/hosts/{id}/evacuate"))
            .limit(EVACUATE_TIMEOUT)
            .read()
            .await
    }

    /// Says of a host whether instances of the class `best_effort` may come to it.
    pub async fn change_host(&self, id: HostId, change: &HostChange) -> Result<Host> {
        self.call(format!("change host {id}"), Method::PATCH, &format!("/hosts/{id}"))
            .json(change)
            .read()
            .await
    }

    /// Empties a host, so many instances at a time.
    pub async fn begin_maintenance(&self, id: HostId, request: &MaintenanceCreate) -> Result<Host> {
        self.post(format!("empty host {id}"), &format!("/hosts/{id}/maintenance"), request).await
    }

    pub async fn end_maintenance(&self, id: HostId) -> Result<()> {
        self.delete(format!("end maintenance of host {id}"), &format!("/hosts/{id}/maintenance")).await
    }

    /// Moves that would level the hosts' load, at most so many. Nothing moves by this.
    pub async fn plan_rebalance(&self, most: u32) -> Result<RebalancePlan> {
        self.post("plan a rebalancing".to_owned(), "/placements/rebalance", &RebalanceAsk { most }).await
    }

    /// What placement thinks of every host. Claims nothing.
    pub async fn explain_placement(&self, ask: &PlacementAsk) -> Result<PlacementExplained> {
        self.post("explain placement".to_owned(), "/placements/explain", ask).await
    }

    /// The newest first.
    pub async fn failovers(&self) -> Result<Vec<Failover>> {
        self.list("failovers", "/failovers").await
    }

    pub async fn create_join_token(&self, request: &JoinTokenCreate) -> Result<JoinToken> {
        self.post("create join token".to_owned(), "/join-tokens", request).await
    }
}

/// Networks, security groups, ports.
impl Client {
    pub async fn networks(&self) -> Result<Vec<Network>> {
        self.list("networks", "/networks").await
    }

    pub async fn network(&self, id: NetworkId) -> Result<Network> {
        self.get("network", &format!("/networks/{id}")).await
    }

    pub async fn create_network(&self, request: &NetworkCreate) -> Result<Network> {
        self.post(format!("create network {}", request.name), "/networks", request).await
    }

    pub async fn delete_network(&self, id: NetworkId) -> Result<()> {
        self.delete(format!("delete network {id}"), &format!("/networks/{id}")).await
    }

    pub async fn security_groups(&self) -> Result<Vec<SecurityGroup>> {
        self.list("security_groups", "/security-groups").await
    }

    pub async fn security_group(&self, id: SecurityGroupId) -> Result<SecurityGroup> {
        self.get("security group", &format!("/security-groups/{id}")).await
    }

    pub async fn create_security_group(&self, request: &SecurityGroupCreate) -> Result<SecurityGroup> {
        self.post(format!("create security group {}", request.name), "/security-groups", request).await
    }

    pub async fn delete_security_group(&self, id: SecurityGroupId) -> Result<()> {
        self.delete(format!("delete security group {id}"), &format!("/security-groups/{id}")).await
    }

    /// Adds one rule; the group as it is now.
    pub async fn add_rule(&self, id: SecurityGroupId, rule: &RuleSpec) -> Result<SecurityGroup> {
        self.call(
            format!("add rule to security group {id}"),
            Method::POST,
            &format!("/security-groups/{id}/rules"),
        )
        .json(rule)
        .done()
        .await?;
        self.security_group(id).await
    }

    pub async fn remove_rule(&self, id: SecurityGroupId, rule: RuleId) -> Result<()> {
        let path = format!("/security-groups/{id}/rules/{rule}");
        self.delete(format!("remove rule {rule} of security group {id}"), &path).await
    }

    pub async fn ports(&self) -> Result<Vec<Port>> {
        self.list("ports", "/ports").await
    }
}

/// Images. Their bytes: see `upload_file` and `upload_blob`.
impl Client {
    pub async fn images(&self) -> Result<Vec<Image>> {
        self.list("images", "/images").await
    }

    pub async fn image(&self, id: ImageId) -> Result<Image> {
        self.get("image", &format!("/images/{id}")).await
    }

    pub async fn image_detail(&self, id: ImageId) -> Result<ImageDetail> {
        self.get("image", &format!("/images/{id}")).await
    }

    /// Says something else of an image; what is not named stays.
    pub async fn edit_image(&self, id: ImageId, edit: &ImageEdit) -> Result<ImageDetail> {
        self.call(format!("change image {id}"), Method::PATCH, &format!("/images/{id}"))
            .json(edit)
            .read()
            .await
    }

    /// A container image's layers as images, the lowest first.
    pub async fn image_layers(&self, id: ImageId) -> Result<Vec<LayerImage>> {
        self.list("layers", &format!("/images/{id}/layers")).await
    }

    /// The layers of all container images of the project, each once.
    pub async fn all_layers(&self) -> Result<Vec<LayerImage>> {
        self.list("layers", "/images?layers=true").await
    }

    /// Images that everybody may start from; `query` as the route has it.
    pub async fn market(&self, query: &[(&str, String)]) -> Result<Vec<MarketImage>> {
        #[derive(serde::Deserialize)]
        struct Market {
            images: Vec<MarketImage>,
        }
        let call = self.call("look at the market", Method::GET, "/market").query(query);
        Ok(call.read::<Market>().await?.images)
    }

    pub async fn image_usage(&self) -> Result<ImageUsage> {
        self.get("the image store's usage", "/image-usage").await
    }

    pub async fn limit_images(&self, project: ProjectId, limit: ImageLimit) -> Result<ImageUsage> {
        self.call("limit a project's images", Method::PUT, &format!("/projects/{project}/image-usage"))
            .json(&limit)
            .read()
            .await
    }

    pub async fn create_image(&self, request: &ImageCreate) -> Result<Image> {
        self.post(format!("create image {}", request.name), "/images", request).await
    }

    pub async fn delete_image(&self, id: ImageId) -> Result<()> {
        self.delete(format!("delete image {id}"), &format!("/images/{id}")).await
    }

    /// Orders the conversion of an image; the answer names the one that comes out.
    pub async fn convert_image(&self, id: ImageId, request: &ConvertCreate) -> Result<Conversion> {
        self.post(format!("convert image {id}"), &format!("/images/{id}/convert"), request).await
    }

    /// The conversion that an image comes from.
    pub async fn conversion(&self, id: ImageId) -> Result<Conversion> {
        self.get("conversion to image", &format!("/images/{id}/conversion")).await
    }
}

/// Instances and their exchanges.
impl Client {
    pub async fn instances(&self) -> Result<Vec<Instance>> {
        self.list("instances", "/instances").await
    }

    pub async fn instance(&self, id: InstanceId) -> Result<Instance> {
        self.get("instance", &format!("/instances/{id}")).await
    }

    /// Orders an instance; it is `building` when this returns.
    pub async fn create_instance(&self, request: &InstanceCreate) -> Result<Instance> {
        self.post(format!("create instance {}", request.name), "/instances", request).await
    }

    /// Orders an instance gone; with `volume`, its volume goes to the recycle bin.
    pub async fn delete_instance(&self, id: InstanceId, volume: bool) -> Result<()> {
        let call = self.call(format!("delete instance {id}"), Method::DELETE, &format!("/instances/{id}"));
        if volume { call.query(&[("volume", "delete")]).done().await } else { call.done().await }
    }

    pub async fn start_instance(&self, id: InstanceId) -> Result<Instance> {
        self.order(format!("start instance {id}"), &format!("/instances/{id}/start")).await
    }

    pub async fn stop_instance(&self, id: InstanceId) -> Result<Instance> {
        self.order(format!("stop instance {id}"), &format!("/instances/{id}/stop")).await
    }

    /// What it says from now on of the loss of its host; all of it.
    pub async fn change_failover(&self, id: InstanceId, change: &FailoverChange) -> Result<Instance> {
        let path = format!("/instances/{id}/failover");
        self.call(format!("change the failover of instance {id}"), Method::PUT, &path)
            .json(change)
            .read()
            .await
    }

    pub async fn restart_instance(&self, id: InstanceId) -> Result<Instance> {
        self.order(format!("restart instance {id}"), &format!("/instances/{id}/restart")).await
    }

    /// Orders another size, which a running body takes on as it is.
    pub async fn resize_instance(&self, id: InstanceId, request: &InstanceResize) -> Result<Instance> {
        self.post(format!("resize instance {id}"), &format!("/instances/{id}/resize"), request).await
    }

    /// The last `lines` of a VM's serial console, or of a set member's output.
    pub async fn console_log(
        &self,
        id: InstanceId,
        lines: Option<u32>,
        member: Option<&str>,
    ) -> Result<ConsoleLog> {
        let lines = lines.map(|n| n.to_string());
        let query: Vec<(&str, &str)> = [("lines", lines.as_deref()), ("member", member)]
            .into_iter()
            .filter_map(|(k, v)| Some((k, v?)))
            .collect();
        self.call(format!("read console log of {id}"), Method::GET, &format!("/instances/{id}/console-log"))
            .query(&query)
            .read()
            .await
    }

    /// Orders the other body; the exchange is `preparing` when this returns.
    pub async fn create_exchange(&self, id: InstanceId, request: &ExchangeCreate) -> Result<Exchange> {
        let what = format!("exchange the body of instance {id} to {}", request.to);
        self.post(what, &format!("/instances/{id}/exchanges"), request).await
    }

    pub async fn exchanges(&self, id: InstanceId) -> Result<Vec<Exchange>> {
        self.list("exchanges", &format!("/instances/{id}/exchanges")).await
    }

    /// The exchanges of every instance.
    pub async fn all_exchanges(&self) -> Result<Vec<Exchange>> {
        self.list("exchanges", "/exchanges").await
    }

    pub async fn exchange(&self, id: ExchangeId) -> Result<Exchange> {
        self.get("exchange", &format!("/exchanges/{id}")).await
    }

    /// Orders an instance to another host; the move is `preparing` when this returns.
    pub async fn create_move(&self, id: InstanceId, request: &MoveCreate) -> Result<Exchange> {
        self.post(format!("move instance {id}"), &format!("/instances/{id}/moves"), request).await
    }

    /// Calls a move or an exchange off: it ends as failed, with the old body where it was.
    pub async fn cancel_exchange(&self, id: ExchangeId) -> Result<Exchange> {
        self.order(format!("cancel exchange {id}"), &format!("/exchanges/{id}/cancel")).await
    }

    /// What members of sets and VMs use now; of one instance, or on one host, by name or id.
    pub async fn use_now(&self, instance: Option<InstanceId>, host: Option<&str>) -> Result<Usage> {
        let instance = instance.map(|id| id.to_string());
        let query: Vec<(&str, &str)> = [("instance", instance.as_deref()), ("host", host)]
            .into_iter()
            .filter_map(|(k, v)| Some((k, v?)))
            .collect();
        self.call("read what is used", Method::GET, "/use").query(&query).read().await
    }

    /// Orders a set to be looked into: a twin beside it, or its members in another way.
    pub async fn debug_instance(&self, id: InstanceId, request: &DebugCreate) -> Result<Debugging> {
        self.post(format!("debug instance {id}"), &format!("/instances/{id}/debug"), request).await
    }

    /// Gives an instance its own members back.
    pub async fn end_debug(&self, id: InstanceId) -> Result<Instance> {
        let what = format!("end debugging instance {id}");
        self.call(what, Method::DELETE, &format!("/instances/{id}/debug")).read().await
    }

    /// What has happened. `query`: `after`, `since`, `instance`, `host`, `kind`, `limit`, `wait`, as the face has them.
    pub async fn events(&self, query: &[(&str, String)]) -> Result<EventPage> {
        self.call("read events", Method::GET, "/events").query(query).read().await
    }

    /// Checks a set description by the server's rules; the set as it would be kept.
    pub async fn check_set(&self, set: &SetSpec) -> Result<SetSpec> {
        self.post("check set".to_owned(), "/sets/check", set).await
    }
}

/// Volumes, snapshots, the recycle bin.
impl Client {
    pub async fn volumes(&self) -> Result<Vec<Volume>> {
        self.list("volumes", "/volumes").await
    }

    pub async fn volume(&self, id: VolumeId) -> Result<Volume> {
        self.get("volume", &format!("/volumes/{id}")).await
    }

    pub async fn create_volume(&self, request: &VolumeCreate) -> Result<Volume> {
        self.post(format!("create volume {}", request.name), "/volumes", request).await
    }

    /// Puts a volume into the recycle bin.
    pub async fn delete_volume(&self, id: VolumeId) -> Result<()> {
        self.delete(format!("delete volume {id}"), &format!("/volumes/{id}")).await
    }

    pub async fn extend_volume(&self, id: VolumeId, size_gib: u64) -> Result<Volume> {
        self.post(format!("extend volume {id}"), &format!("/volumes/{id}/extend"), &VolumeExtend { size_gib })
            .await
    }

    pub async fn create_snapshot(&self, id: VolumeId, request: &SnapshotCreate) -> Result<Snapshot> {
        self.post(format!("take snapshot of volume {id}"), &format!("/volumes/{id}/snapshots"), request).await
    }

    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        self.list("snapshots", "/snapshots").await
    }

    pub async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot> {
        self.get("snapshot", &format!("/snapshots/{id}")).await
    }

    pub async fn delete_snapshot(&self, id: SnapshotId) -> Result<()> {
        self.delete(format!("delete snapshot {id}"), &format!("/snapshots/{id}")).await
    }

    pub async fn recycle_bin(&self) -> Result<Vec<Volume>> {
        self.list("volumes", "/recycle-bin").await
    }

    pub async fn restore_volume(&self, id: VolumeId) -> Result<Volume> {
        self.order(format!("restore volume {id}"), &format!("/recycle-bin/{id}/restore")).await
    }

    /// Destroys a volume of the recycle bin for good.
    pub async fn purge_volume(&self, id: VolumeId) -> Result<()> {
        self.delete(format!("purge volume {id}"), &format!("/recycle-bin/{id}")).await
    }
}

/// The API's description of itself (OpenAPI 3.1).
impl Client {
    pub async fn openapi(&self) -> Result<serde_json::Value> {
        self.get("openapi.json", "/openapi.json").await
    }
}
