//! A host's engines in memory: what Docker, libvirt and LVM are to an agent, without any of them. They stand below the
//! agent's driver traits, outlive it as real ones do, and can be made to fail, to hang and to lose power. All hosts of a
//! cloud share one [`Registry`], which sees every body start and end, in order, and writes down what must never be.
//!
//! Refuses to decide anything: what is asked is done, even when it is wrong. That is what the registry is for.

mod calls;
mod drivers;
mod host;
mod port;
mod registry;

pub use drivers::{MemoryBodies, MemoryVolumes};
pub use host::{Engine, HostEngines, Trap};
pub use port::{EnginePort, serve};
pub use registry::Registry;
