//! The controller alone: its real process with its records on disk, over real HTTP, and hosts in memory that speak the
//! real link. Needs no engine, no namespace, no root. Refuses to know what is asked of it.

pub mod agent;
mod clock;
mod controller;
pub mod furnish;
mod host;
mod hosts;
mod wire;

pub use clock::Clock;
pub use controller::{Controller, free_port};
pub use host::Host;
pub use hosts::MemoryHost;
pub use wire::Wire;

use amphi_api::client::Client;
use amphi_api::host::JoinTokenCreate;
use anyhow::Result;

/// So many hosts, joined and connected; they live as long as what is returned.
pub async fn join(controller: &Controller, hosts: usize) -> Result<Vec<MemoryHost>> {
    // It fails only if one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let admin = Client::new(controller.url(), &controller.read("admin-token")?)?;
    let ca = controller.read("ca/ca.pem")?;
    let mut joined = Vec::with_capacity(hosts);
    for n in 1..=hosts {
        let token = admin.create_join_token(&JoinTokenCreate::default()).await?.token;
        joined.push(MemoryHost::join(&format!("memory-{n}"), &token, &ca).await?);
    }
    Ok(joined)
}
