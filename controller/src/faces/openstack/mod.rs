//! The OpenStack faces: identity, compute, image, network, volume and placement below one base URL, a folder each.
//! They translate between OpenStack's words and `ops`, and decide nothing: what may be done is said there, who may ask
//! for it in the table that `routes` keeps.

pub mod answers;
pub mod body;
mod compute;
pub mod gate;
pub mod identity;
mod image;
pub mod microversion;
pub mod network;
pub mod page;
mod placement;
pub mod query;
pub mod routes;
#[cfg(test)]
mod talk;
#[cfg(test)]
mod tests;
mod volume;
pub mod words;

use crate::ops::Ops;
use axum::Router;
use routes::{Route, Routes};
use std::sync::Arc;

/// Shared by the handlers of all services.
#[derive(Clone)]
pub struct OpenStack {
    pub ops: Arc<Ops>,
    /// Stands in links in place of what the request says; without a slash at its end.
    pub public_url: Option<Arc<str>>,
}

impl OpenStack {
    pub fn new(ops: Arc<Ops>) -> Self {
        Self { ops, public_url: None }
    }
}

/// The services, as the catalogue has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Service {
    Identity,
    Compute,
    Image,
    Network,
    Volume,
    Placement,
}

impl Service {
    pub const ALL: [Self; 6] =
        [Self::Identity, Self::Compute, Self::Image, Self::Network, Self::Volume, Self::Placement];

    /// The first part of its paths, below the base URL.
    pub fn root(self) -> &'static str {
        match self {
            Self::Identity => "/identity",
            Self::Compute => "/compute",
            Self::Image => "/image",
            Self::Network => "/network",
            Self::Volume => "/volume",
            Self::Placement => "/placement",
        }
    }
}

/// Every route of every service. Each service adds its own here, and nowhere else.
fn services() -> Vec<Routes> {
    vec![
        compute::routes(),
        identity::routes(),
        image::routes(),
        network::routes(),
        placement::routes(),
        volume::routes(),
    ]
}

/// The table of all routes with what each needs: the policy, as the router enforces it.
pub fn policy() -> Vec<Route> {
    services().into_iter().flat_map(|routes| routes.table()).collect()
}

/// All services, each below its root.
pub fn router(state: &OpenStack) -> Router {
    services().into_iter().fold(Router::new(), |router, routes| {
        let root = routes.service().root();
        router.nest_service(root, routes.into_service(state.clone()))
    })
}
