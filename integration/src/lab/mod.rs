//! Several hosts on one machine, each with its own kernel namespaces, cgroups, disks and real engines.
//!
//! ```text
//! amphi-lab supervise        guardian: on the machine; owns the lock, the API's listening socket, loop devices, cgroups
//!  └ amphi-lab underlay      first process of the lab's namespaces; the bridge, the cuts, and the life of each node
//!     ├ amphi-lab node controller    first process of its own namespaces; OVN central and the controller
//!     ├ amphi-lab node h1            ditto; Open vSwitch, OVN, Docker, libvirt, LVM and hostsrv
//!     └ amphi-lab node h2
//! ```
//!
//! Every arrow dies with the process above it, so no part outlives the guardian, and what the kernel does not take back with a
//! process (loop devices, cgroup directories) is swept by the guardian, or by the next `up` when it was killed itself.
//! The lab's network namespaces have no way out; the one door is the API's socket, opened on 127.0.0.1 by the guardian and inherited.

mod cgroup;
mod clean;
mod client;
mod controller;
mod disk;
mod environment;
mod exec;
mod guardian;
mod host;
mod join;
mod layout;
mod mounts;
mod node;
mod processes;
mod program;
mod proto;
mod underlay;
mod unit;

pub use cgroup::processes;
pub use clean::{leftovers, sweep};
pub use client::{Lab, UpOptions, end, supervisor_pid};
pub use disk::{SHARED_GROUP, Sizes};
pub use exec::{Background, Output};
pub use guardian::guard;
pub use host::CONFIG as AGENT_CONFIG;
pub use layout::Layout;
pub use node::run_node;
pub use program::own_program;
pub use proto::{NodeStatus, Party, UnitStatus};
pub use underlay::run_underlay;
