//! Asking over TCP and HTTP as a neighbour inside a network namespace does: the socket is made in there by a thread of
//! its own and used from here, so that no packet of the host's own network is needed. Refuses redirects, TLS, and to
//! read more of an answer than its first line.

use amphi_api::set::{HttpProbe, Probe};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longest first line of an answer, in bytes.
const LINE_MAX: u64 = 1024;
/// Longest wait for a socket in the namespace, which asks nobody.
const SOCKET_MAX: Duration = Duration::from_secs(10);

/// What came of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    Holds,
    /// With what is told about it.
    Fails(String),
    /// It could not be asked: nothing follows.
    Unknown,
}

/// Asks over the network. `namespace`: the path of a network namespace. None: the probe is not of that kind.
pub async fn over_network(namespace: &Path, probe: &Probe) -> Option<Asked> {
    let limit = Duration::from_secs(probe.timeout_s.into());
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let (target, http) = match (&probe.http, &probe.tcp) {
        (Some(http), _) => (SocketAddr::new(http.address.unwrap_or(local), http.port), Some(http)),
        (None, Some(tcp)) => (SocketAddr::new(tcp.address.unwrap_or(local), tcp.port), None),
        (None, None) => return None,
    };
    let socket = match timeout(SOCKET_MAX, socket_in(namespace.to_owned(), target)).await {
        Ok(Ok(socket)) => socket,
        // The namespace is gone: so is what was asked.
        Ok(Err(error)) => {
            tracing::debug!(%error, namespace = %namespace.display(), "a probe has no socket");
            return Some(Asked::Unknown);
        }
        Err(_) => return Some(Asked::Unknown),
    };
    let asked = async {
        let stream = socket.connect(target).await.map_err(|error| format!("{target}: {error}"))?;
        match http {
            None => Ok(()),
            Some(http) => get(stream, target, http).await,
        }
    };
    Some(match timeout(limit, asked).await {
        Ok(Ok(())) => Asked::Holds,
        Ok(Err(why)) => Asked::Fails(why),
        Err(_) => Asked::Fails(format!("{target}: no answer within {} s", limit.as_secs())),
    })
}

async fn get(mut stream: TcpStream, target: SocketAddr, http: &HttpProbe) -> Result<(), String> {
    let broken = |error: io::Error| format!("{target}: {error}");
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: amphi-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        http.path
    );
    stream.write_all(request.as_bytes()).await.map_err(broken)?;
    let mut line = String::new();
    let mut answer = BufReader::new(tokio::io::AsyncReadExt::take(stream, LINE_MAX));
    answer.read_line(&mut line).await.map_err(broken)?;
    match status(&line) {
        Some(200..=399) => Ok(()),
        Some(status) => Err(format!("GET {} answers {status}", http.path)),
        None => Err(format!("{target} does not speak HTTP")),
    }
}

/// Of a status line: `HTTP/1.1 204 No Content`.
fn status(line: &str) -> Option<u16> {
    let mut words = line.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok()
}

/// A socket that lives in the namespace, whoever holds it. The thread that went there for it ends with that.
async fn socket_in(namespace: PathBuf, target: SocketAddr) -> io::Result<TcpSocket> {
    let (give, take) = tokio::sync::oneshot::channel();
    std::thread::Builder::new().name("probe".to_owned()).spawn(move || {
        let made = File::open(&namespace).and_then(|namespace| {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
        });
        // Who asked has given up: the socket is closed.
        let _ = give.send(made);
    })?;
    take.await.map_err(|_| io::Error::other("the thread of a probe panicked"))?
}

#[cfg(test)]
mod tests {
    use super::status;

    #[test]
    fn status_lines() {
        for (line, expected) in [
            ("HTTP/1.1 200 OK\r\n", Some(200)),
            ("HTTP/1.0 503\r\n", Some(503)),
            ("SSH-2.0-OpenSSH_9.2\r\n", None),
            ("HTTP/1.1\r\n", None),
            ("", None),
        ] {
            assert_eq!(status(line), expected, "{line}");
        }
    }
}
