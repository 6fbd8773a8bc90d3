//! The way of a guest from host to host: connections over mutual TLS, one per socket that the engines open. On the host
//! that it leaves, local sockets lead into them (`passage`); on the host that it goes to, they end at the engine's own
//! sockets (`gate`). Both sides show the papers of their joining; a gate opens only for an instance that its desired state
//! says is coming from just that host, for as long as it says so. Refuses to know what passes.

mod bytes;
mod changes;
mod gate;
mod medium;
mod passage;

pub use bytes::{BLOCK, Part, Pass, PassError, Progress, take as take_pass};
pub use changes::{Blocks, Changes};
pub use gate::{Host, engine_socket, serve};
pub use medium::Medium;
pub use passage::{Passage, Passages, Road, Sockets};

use amphi_api::InstanceId;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where an agent takes guests, unless its configuration says otherwise.
pub const PORT: u16 = 7445;
/// Making a connection, and the words at its beginning.
const CONNECT: Duration = Duration::from_secs(10);
/// The new host may have to attach volumes first.
const RECEIVE: Duration = Duration::from_secs(120);
/// The longest line, in bytes: a definition.
const LINE_MAX: u64 = 1 << 20;

/// The first line on a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Knock {
    instance: InstanceId,
    /// The body's epoch on the host that it goes to.
    epoch: u64,
    /// Where the engines' sockets lie: on both hosts at the same path, since one address names them for both engines.
    folder: PathBuf,
    to: Door,
    /// Through the door for bytes.
    #[serde(default)]
    pass: Option<Pass>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Door {
    /// Make ready; the answer is the definition.
    Receive,
    /// The engine itself.
    Engine,
    Memory,
    Disks,
    /// No engine's: the bytes of what it has on disk, in passes.
    Bytes,
}

impl Door {
    fn file(self) -> &'static str {
        match self {
            Self::Receive | Self::Engine => "engine",
            Self::Memory => "memory",
            Self::Disks => "disks",
            Self::Bytes => "bytes",
        }
    }
}

/// The answer to a pass that builds on an earlier one, where that is the last thing that has happened to the bytes here. Else,
/// and from an agent that knows nothing of it, it is empty: everything is compared.
const ONLY_CHANGES: &str = "only changes";

/// The line back. After `Ok` on all doors but `Receive` bytes follow both ways.
type Answer = Result<String, String>;

/// `RUN_DIR/crossing/INSTANCE`.
fn folder_of(run_dir: &Path, instance: InstanceId) -> PathBuf {
    run_dir.join("crossing").join(instance.to_string())
}

/// A new and empty folder in which the engine's user may make sockets; nobody can list the one above it.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    std::fs::create_dir_all(folder)?;
    let mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
    if let Some(above) = folder.parent() {
        mode(above, 0o711)?;
        if let Some(top) = above.parent() {
            let found = std::fs::metadata(top)?.permissions().mode();
            mode(top, found | 0o111)?;
        }
    }
    mode(folder, 0o777)
}

/// A host that has died says nothing: what waits for it ends by itself after some 15 s.
pub(crate) fn watch(tcp: &tokio::net::TcpStream) -> std::io::Result<()> {
    use nix::sys::socket::{setsockopt, sockopt};
    tcp.set_nodelay(true)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &5)?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &3)?;
    setsockopt(tcp, sockopt::TcpKeepCount, &3)?;
    // In milliseconds; bytes under way are no silence to the keepalive (tcp(7)).
    Ok(setsockopt(tcp, sockopt::TcpUserTimeout, &15_000)?)
}

#[cfg(test)]
mod tests;
