//! The one way to Docker: every call bounded in time, every failure put into the driver's words. Connects when first
//! used and refuses nothing at construction, so that the agent starts with the engine down.

use super::ENGINE;
use crate::instance::DriverError;
use bollard::Docker;
use bollard::errors::Error;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Bollard's own bound, in seconds: above every limit of ours, which are the ones that count.
const BOLLARD_TIMEOUT: u64 = 3600;

/// Upper bounds of calls.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Of the ping in a probe.
    pub ping: Duration,
    /// Of lists, inspects, creations and removals.
    pub call: Duration,
    /// Of a start, which asks the network and volume drivers.
    pub start: Duration,
    /// Of loading an image.
    pub load: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            ping: Duration::from_secs(3),
            call: Duration::from_secs(20),
            start: Duration::from_secs(60),
            load: Duration::from_secs(600),
        }
    }
}

pub struct Engine {
    socket: String,
    pub limits: Limits,
    client: Mutex<Option<Docker>>,
}

impl Engine {
    /// `socket`: `unix:///run/docker.sock` or the path alone.
    pub fn new(socket: &str, limits: Limits) -> Engine {
        let socket = socket.strip_prefix("unix://").unwrap_or(socket).to_owned();
        Engine { socket, limits, client: Mutex::new(None) }
    }

    /// The path of its socket.
    pub fn socket(&self) -> &str {
        &self.socket
    }

    /// The client. It holds no connection: each call makes its own, so a restarted dockerd needs no care.
    pub fn client(&self, doing: &str) -> Result<Docker, DriverError> {
        let mut client = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &*client {
            return Ok(client.clone());
        }
        let made = Docker::connect_with_unix(&self.socket, BOLLARD_TIMEOUT, bollard::API_DEFAULT_VERSION)
            .map_err(|error| refusal(doing, error))?;
        Ok(client.insert(made).clone())
    }

    /// One call, within `limit`.
    pub async fn call<T, F>(
        &self,
        doing: &str,
        limit: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<T, DriverError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let client = self.client(doing)?;
        let begin = Instant::now();
        let answer = tokio::time::timeout(limit, call(client)).await;
        tracing::debug!(doing, took = ?begin.elapsed(), "Docker call");
        match answer {
            Ok(answer) => answer.map_err(|error| refusal(doing, error)),
            Err(_) => Err(DriverError::EngineTimeout { engine: ENGINE, doing: doing.to_owned(), limit }),
        }
    }

    /// As [`call`](Self::call); None where Docker answers 404.
    pub async fn find<T, F>(
        &self,
        doing: &str,
        limit: Duration,
        call: impl FnOnce(Docker) -> F,
    ) -> Result<Option<T>, DriverError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        self.call(doing, limit, |client| async {
            match call(client).await {
                Ok(found) => Ok(Some(found)),
                Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// What a failed call means.
pub fn refusal(doing: &str, error: Error) -> DriverError {
    let doing = doing.to_owned();
    match error {
        Error::DockerResponseServerError { message, .. } | Error::DockerStreamError { error: message } => {
            if is_network(&message) {
                DriverError::NetworkDown { doing, message }
            } else {
                DriverError::EngineRefused { engine: ENGINE, doing, message }
            }
        }
        other => DriverError::EngineDown { engine: ENGINE, doing, source: other.into() },
    }
}

/// Whether Docker passes on a failure of the network's drivers. Its answers carry a driver's errors as text: libnetwork
/// prefixes them with the plug-in's method or with what it was doing to the endpoint.
fn is_network(message: &str) -> bool {
    const MARKS: &[&str] = &[
        "NetworkDriver.",
        "IpamDriver.",
        "failed to create endpoint",
        "failed to set up container networking",
        "to sandbox: ",
        "error creating external connectivity network",
    ];
    // The socket is one for all drivers; without it, Docker waits 15 s and names the plug-in alone.
    let plugin = message.contains("plugin \"amphi\" not found") && !message.contains("volume");
    plugin || MARKS.iter().any(|mark| message.contains(mark))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn failures_have_their_codes() {
        let table = [
            (server(400, "Minimum memory limit allowed is 6MB"), "engine_refused"),
            (server(404, "No such image: sha256:00"), "engine_refused"),
            (server(404, "plugin \"amphi\" not found"), "network_down"),
            (
                server(400, "error looking up volume plugin amphi: plugin \"amphi\" not found"),
                "engine_refused",
            ),
            (server(500, "NetworkDriver.Join: no switch"), "network_down"),
            (server(500, "failed to create endpoint a on network b: x"), "network_down"),
            (server(500, "OCI: failed to add interface vc0 to sandbox: no such link"), "network_down"),
            (server(500, "error while mounting volume '': VolumeDriver.Mount: x"), "engine_refused"),
            (Error::DockerStreamError { error: "unexpected EOF".to_owned() }, "engine_refused"),
            (Error::SocketNotFoundError("/x".to_owned()), "engine_down"),
            (Error::IOError { err: std::io::ErrorKind::ConnectionRefused.into() }, "engine_down"),
        ];
        for (error, code) in table {
            let text = error.to_string();
            assert_eq!(refusal("start it", error).code(), code, "{text}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_an_engine_that_is_down() {
        let engine = Engine::new("unix:///nonexistent/docker.sock", Limits::default());
        let answer =
            engine.call("ask", Duration::from_secs(1), |docker| async move { docker.version().await }).await;
        assert_eq!(answer.unwrap_err().code(), "engine_down");
    }
}
