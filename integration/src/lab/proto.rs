//! The words between client, supervisor and nodes: one JSON line each way on a unix socket. Refuses nothing; each server refuses
//! the requests that are not its own.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::socket::{getsockopt, sockopt};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case")]
pub enum Request {
    // To the supervisor.
    /// Keeps the lab alive exactly as long as this connection, until a line `detach` is sent on it.
    Hold,
    Parties,
    PowerCut {
        host: String,
    },
    Return {
        host: String,
    },
    Cut {
        from: String,
        to: String,
    },
    Heal {
        from: String,
        to: String,
    },
    PauseNode {
        node: String,
    },
    ResumeNode {
        node: String,
    },
    Down,
    // To a node.
    /// Streams one [`UnitStatus`] per line as units change, until all of them are up or one has failed.
    Follow,
    Status,
    Start {
        daemon: String,
    },
    Kill {
        daemon: String,
        signal: i32,
    },
    DiskFull,
    DiskFree,
}

/// What a server answers to everything but `Follow`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    Done,
    Node(NodeStatus),
    Parties(Vec<Party>),
    Failed(String),
}

/// One party of the lab as the supervisor sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Party {
    pub name: String,
    /// False after a power cut.
    pub powered: bool,
}

/// One daemon or one-off step of a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnitStatus {
    pub node: String,
    pub name: String,
    /// waiting, starting, ready, done, failed, exited
    pub state: String,
    /// How long the start took, in seconds.
    pub seconds: f64,
    /// Process id inside the node, when it runs.
    pub pid: Option<i32>,
    /// Why it failed or how it ended.
    pub detail: String,
}

/// All units of a node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: String,
    pub units: Vec<UnitStatus>,
}

/// The way to a socket whose path may be longer than the 107 bytes that sockaddr_un holds.
fn short_path(path: &Path) -> Result<(std::fs::File, std::path::PathBuf)> {
    use std::os::fd::AsRawFd;
    let parent = path.parent().with_context(|| format!("socket {} has no directory", path.display()))?;
    let name = path.file_name().with_context(|| format!("socket {} has no name", path.display()))?;
    let dir = std::fs::File::open(parent).with_context(|| format!("open {}", parent.display()))?;
    let short = Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name);
    Ok((dir, short))
}

pub fn listen(path: &Path) -> Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let (_dir, short) = short_path(path)?;
    UnixListener::bind(&short).with_context(|| format!("listen on {}", path.display()))
}

pub fn connect(path: &Path) -> Result<UnixStream> {
    let (_dir, short) = short_path(path)?;
    UnixStream::connect(&short).with_context(|| format!("connect to {}", path.display()))
}

/// The process that listens on `path`, in the caller's own pid namespace: the kernel translates it.
pub fn listener_pid(path: &Path) -> Result<i32> {
    let stream = connect(path)?;
    let credentials = getsockopt(&stream, sockopt::PeerCredentials).context("ask who listens")?;
    Ok(credentials.pid())
}

pub fn send(stream: &mut UnixStream, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message).context("encode message")?;
    line.push(b'\n');
    stream.write_all(&line).context("send message")
}

/// One request, one reply.
pub fn call(path: &Path, request: &Request, timeout: Duration) -> Result<Reply> {
    let mut stream = connect(path)?;
    stream.set_read_timeout(Some(timeout)).context("set timeout")?;
    send(&mut stream, request)?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .with_context(|| format!("answer to {request:?} within {timeout:?}"))?;
    if line.is_empty() {
        bail!("{request:?}: connection closed without an answer");
    }
    match serde_json::from_str(&line).with_context(|| format!("decode {line:?}"))? {
        Reply::Failed(why) => Err(anyhow!(why)),
        reply => Ok(reply),
    }
}

/// Connects as soon as somebody listens, within `timeout`; `alive` may end the wait early with the reason.
pub fn connect_when_up(
    path: &Path,
    timeout: Duration,
    mut alive: impl FnMut() -> Result<()>,
) -> Result<UnixStream> {
    let deadline = Instant::now() + timeout;
    loop {
        match connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => alive()?,
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Accepts for ever, one thread per connection; `serve` gets the first line decoded.
pub fn serve(
    listener: UnixListener,
    serve: impl Fn(Request, UnixStream, BufReader<UnixStream>) + Send + Sync + 'static,
) {
    let serve = std::sync::Arc::new(serve);
    for stream in listener.incoming().flatten() {
        let serve = serve.clone();
        std::thread::spawn(move || {
            let Ok(reading) = stream.try_clone() else { return };
            let mut reader = BufReader::new(reading);
            let mut line = String::new();
            let mut stream = stream;
            if reader.read_line(&mut line).is_err() || line.is_empty() {
                return;
            }
            match serde_json::from_str(&line) {
                Ok(request) => serve(request, stream, reader),
                Err(error) => {
                    drop(send(&mut stream, &Reply::Failed(format!("bad request {line:?}: {error}"))))
                }
            }
        });
    }
}
