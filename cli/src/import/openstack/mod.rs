//! An OpenStack project as a source: what there is, read once. The rest is `plan`'s, which asks nobody.

mod network;
mod plan;
mod server;
#[cfg(test)]
mod tests;

pub use plan::{PASSING, Wishes, plan};

use super::cloud::{Cloud, Service};
use crate::failure::Failure;
use serde_json::Value;
use std::collections::BTreeMap;

/// All of a project that could come over, as the services show it.
#[derive(Default)]
pub struct Project {
    pub id: String,
    /// The project's own, and those that it only sees.
    pub networks: Vec<Value>,
    pub subnets: Vec<Value>,
    pub ports: Vec<Value>,
    pub groups: Vec<Value>,
    pub routers: Vec<Value>,
    pub floating_ips: Vec<Value>,
    pub key_pairs: Vec<Value>,
    pub images: Vec<Value>,
    pub volumes: Vec<Value>,
    pub servers: Vec<Value>,
    /// Of each server, in the order of their devices.
    pub attachments: BTreeMap<String, Vec<Value>>,
}

/// Reads the project that the cloud was entered for.
pub async fn read(cloud: &Cloud) -> Result<Project, Failure> {
    use Service::*;
    let id = cloud.project();
    let own = |path: &str| format!("{path}?project_id={id}");
    let (groups, routers) = (own("/security-groups"), own("/routers"));
    let key_pairs = cloud.list(Compute, "/os-keypairs", "keypairs").await?;
    let mut project = Project {
        networks: cloud.list(Network, "/networks", "networks").await?,
        subnets: cloud.list(Network, "/subnets", "subnets").await?,
        ports: cloud.list(Network, &own("/ports"), "ports").await?,
        groups: cloud.list(Network, &groups, "security_groups").await?,
        routers: cloud.list(Network, &routers, "routers").await?,
        floating_ips: cloud.list(Network, &own("/floatingips"), "floatingips").await?,
        key_pairs: key_pairs.into_iter().filter_map(|mut k| Some(k.get_mut("keypair")?.take())).collect(),
        images: cloud.list(Image, &format!("/images?owner={id}&limit=200"), "images").await?,
        volumes: cloud.list(Volume, "/volumes/detail", "volumes").await?,
        servers: cloud.list(Compute, "/servers/detail", "servers").await?,
        attachments: BTreeMap::new(),
        id,
    };
    for server in &project.servers {
        let server = text(server, "id").to_owned();
        let path = format!("/servers/{server}/os-volume_attachments");
        let mut all = cloud.list(Compute, &path, "volumeAttachments").await?;
        all.sort_by(|a, b| text(a, "device").cmp(text(b, "device")));
        project.attachments.insert(server, all);
    }
    Ok(project)
}

/// A text field, empty where there is none.
fn text<'a>(of: &'a Value, key: &str) -> &'a str {
    of.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn flag(of: &Value, key: &str) -> Option<bool> {
    of.get(key).and_then(Value::as_bool)
}

fn list<'a>(of: &'a Value, key: &str) -> &'a [Value] {
    of.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The name, or the beginning of the id where it has none.
fn called(of: &Value) -> String {
    match text(of, "name") {
        "" => text(of, "id").chars().take(8).collect(),
        name => name.to_owned(),
    }
}
