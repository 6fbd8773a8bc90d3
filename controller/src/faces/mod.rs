//! The faces: each translates between its protocol and `ops`, and decides nothing.

pub mod console;
pub mod hosts;
pub mod native;
pub mod openstack;
pub mod registry;
pub mod side;
mod upload;

use crate::mirror::Mirror;
use axum::Router;
use std::sync::Arc;

/// The faces of one listener: the native one, OpenStack's and the registry's beside it.
pub fn of_one_listener(
    native: native::Native,
    mirror: Arc<Mirror>,
    token: &str,
    public_url: Option<&str>,
) -> Router {
    let openstack = openstack::OpenStack {
        public_url: public_url.map(Into::into),
        ..openstack::OpenStack::new(native.ops.clone())
    };
    let registry =
        registry::Registry { ops: native.ops.clone(), mirror, public_url: public_url.map(Into::into) };
    let console = console::router(native.ops.clone());
    native::router(native, token)
        .merge(openstack::router(&openstack))
        .merge(registry::router(registry))
        .merge(console)
}
