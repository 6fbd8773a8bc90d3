//! The faces: each translates between its protocol and `ops`, and decides nothing.

pub mod hosts;
pub mod native;
pub mod openstack;
pub mod side;

use axum::Router;
use tower::Layer;
use tower_http::normalize_path::{NormalizePath, NormalizePathLayer};

/// The faces of one listener: the native one, and OpenStack's beside it. A slash at a path's end means nothing.
pub fn of_one_listener(native: native::Native, token: &str) -> NormalizePath<Router> {
    let openstack = openstack::OpenStack { ops: native.ops.clone() };
    let router = native::router(native, token).merge(openstack::router(&openstack));
    NormalizePathLayer::trim_trailing_slash().layer(router)
}
