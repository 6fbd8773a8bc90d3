//! The faces: each translates between its protocol and `ops`, and decides nothing.

pub mod console;
pub mod hosts;
pub mod native;
pub mod openstack;
pub mod side;

use axum::Router;

/// The faces of one listener: the native one, and OpenStack's beside it.
pub fn of_one_listener(native: native::Native, token: &str, public_url: Option<&str>) -> Router {
    let openstack = openstack::OpenStack {
        public_url: public_url.map(Into::into),
        ..openstack::OpenStack::new(native.ops.clone())
    };
    let console = console::router(native.ops.clone());
    native::router(native, token).merge(openstack::router(&openstack)).merge(console)
}
