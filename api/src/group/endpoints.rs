//! Where a service answers: the addresses of instances and whether they can take work.

use crate::InstanceId;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;
use utoipa::ToSchema;

/// One address of one instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Endpoint {
    pub instance: InstanceId,
    pub name: String,
    #[schema(value_type = String)]
    pub address: IpAddr,
    pub ports: Vec<u16>,
    pub ready: bool,
    /// Why it is not ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Of a scaling group: its name, and the member's number and revision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<u32>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct Endpoints {
    /// Another one whenever the endpoints are others: give it as `watch` to hear of the next change.
    pub version: String,
    pub endpoints: Vec<Endpoint>,
}

/// Prometheus' `http_sd` (prometheus.io/docs/prometheus/latest/http_sd): targets with the labels they share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ToSchema)]
pub struct HttpSdGroup {
    pub targets: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

impl Endpoint {
    /// `10.0.0.3:80` and its like, one for each port; the address alone where none is said.
    pub fn targets(&self) -> Vec<String> {
        let address = match self.address {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        match self.ports.is_empty() {
            true => vec![address],
            false => self.ports.iter().map(|port| format!("{address}:{port}")).collect(),
        }
    }
}

impl Endpoints {
    /// Those that can take work.
    pub fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints.iter().filter(|endpoint| endpoint.ready)
    }

    pub fn http_sd(&self) -> Vec<HttpSdGroup> {
        let labels = |e: &Endpoint| {
            let mut labels = BTreeMap::from([
                ("__meta_instance_id".to_owned(), e.instance.to_string()),
                ("__meta_instance_name".to_owned(), e.name.clone()),
            ]);
            labels.extend(e.group.clone().map(|g| ("__meta_group".to_owned(), g)));
            labels.extend(e.revision.map(|r| ("__meta_revision".to_owned(), r.to_string())));
            labels
        };
        self.ready().map(|e| HttpSdGroup { targets: e.targets(), labels: labels(e) }).collect()
    }

    /// One target a line, its instance's name behind it.
    pub fn lines(&self) -> String {
        let lines =
            self.ready().flat_map(|e| e.targets().into_iter().map(move |t| format!("{t} {}\n", e.name)));
        lines.collect()
    }
}
