//! The handle that callers hold: one database on one server, over one connection that a task of
//! its own keeps alive. Clones are cheap and share the connection, which ends with the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value as Json, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::Result;
use crate::endpoint::Endpoint;
use crate::error::Error;
use crate::operation::Operation;
use crate::replica::{Monitored, Replica, Shared};
use crate::schema::Schema;
use crate::session::{CallFailure, Command, Session};
use crate::transact::{Failure, Outcome, read_reply};

#[derive(Clone, Debug)]
pub struct Options {
    /// Bounds every call, the wait for a connection included.
    pub timeout: Duration,
    pub connect_timeout: Duration,
    /// Silence after which an echo is sent; as much silence again ends the connection.
    pub keepalive: Duration,
    /// The first pause between attempts to connect; doubles up to `backoff_limit`.
    pub backoff: Duration,
    pub backoff_limit: Duration,
    /// Bytes of one message from the server.
    pub message_limit: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            keepalive: Duration::from_secs(5),
            backoff: Duration::from_millis(100),
            backoff_limit: Duration::from_secs(3),
            message_limit: 256 << 20,
        }
    }
}

#[derive(Clone, Debug)]
pub struct Status {
    /// Set while connected.
    pub schema: Option<Arc<Schema>>,
    /// Why not, while not connected.
    pub reason: String,
    /// How many connections there have been.
    pub connections: u64,
}

impl Status {
    pub fn is_connected(&self) -> bool {
        self.schema.is_some()
    }
}

/// Calls that may wait for the connection at a time; more wait to be queued.
const QUEUE: usize = 4096;

#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Arc<str>,
    database: Arc<str>,
    timeout: Duration,
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

impl Client {
    /// Starts connecting at once and in the background; a server that is away is no error.
    /// Must be called within a tokio runtime.
    pub fn new(endpoint: &str, database: &str, options: Options) -> Result<Client> {
        let endpoint: Endpoint = endpoint.parse()?;
        Ok(Client::spawn(endpoint, database, options))
    }

    fn spawn(endpoint: Endpoint, database: &str, options: Options) -> Client {
        let (commands, queue) = mpsc::channel(QUEUE);
        let (status_sender, status) =
            watch::channel(Status { schema: None, reason: "connecting".to_owned(), connections: 0 });
        let client = Client {
            endpoint: endpoint.to_string().into(),
            database: database.into(),
            timeout: options.timeout,
            commands,
            status,
        };
        tokio::spawn(Session::new(endpoint, database, options, queue, status_sender).run());
        client
    }

    /// The same connection with another bound for each call.
    pub fn with_timeout(&self, timeout: Duration) -> Client {
        Client { timeout, ..self.clone() }
    }

    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    pub fn database(&self) -> &str {
        &self.database
    }

    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Waits for the connection and gives the server's schema.
    pub async fn schema(&self) -> Result<Arc<Schema>> {
        let mut status = self.status.clone();
        let connected = async { status.wait_for(Status::is_connected).await.ok()?.schema.clone() };
        match timeout(self.timeout, connected).await {
            Ok(Some(schema)) => Ok(schema),
            _ => Err(self.unavailable("get_schema")),
        }
    }

    /// Runs the operations as one transaction, all or nothing; one outcome per operation. Calls in
    /// flight at once are pipelined over the connection in the order of their first poll.
    pub async fn transact(&self, operations: Vec<Operation>) -> Result<Vec<Outcome>> {
        let params = std::iter::once(json!(&*self.database)).chain(operations.iter().map(Operation::to_json));
        let result = self.call("transact", params.collect()).await?;
        read_reply(&operations, &result).map_err(|failure| match failure {
            Failure::Operation(failure) => {
                Error::Operation { database: self.database.to_string(), failure: Box::new(failure) }
            }
            Failure::Protocol(what) => self.protocol("transact", what),
        })
    }

    /// Starts a replica and waits for its first synchronisation.
    pub async fn monitor(&self, monitored: Monitored) -> Result<Replica> {
        let shared = Arc::new(Shared::default());
        let command = Command::Monitor { monitored, shared: Arc::downgrade(&shared) };
        let replica = Replica::new(shared, self.clone());
        let mut changes = replica.changes();
        let first_sync = async {
            self.commands.send(command).await.ok()?;
            let state = changes.wait_for(|state| state.current || state.problem.is_some()).await.ok()?;
            Some(state.problem.clone())
        };
        match timeout(self.timeout, first_sync).await {
            Ok(Some(None)) => Ok(replica),
            Ok(Some(Some(error))) => Err(Error::Refused {
                endpoint: self.endpoint.to_string(),
                method: "monitor".to_owned(),
                error,
            }),
            Ok(None) | Err(_) => Err(self.unavailable("monitor")),
        }
    }

    /// Any method of the protocol; answers its `result`.
    pub async fn call(&self, method: &'static str, params: Json) -> Result<Json> {
        let (reply, answer) = oneshot::channel();
        let sent = Arc::new(AtomicBool::new(false));
        let command = Command::Call { method, params, reply, sent: sent.clone() };
        let exchange = async {
            self.commands.send(command).await.ok()?;
            answer.await.ok()
        };
        let (endpoint, named) = (self.endpoint.to_string(), method.to_owned());
        match timeout(self.timeout, exchange).await {
            Ok(Some(Ok(result))) => Ok(result),
            Ok(Some(Err(CallFailure::Refused(error)))) => {
                Err(Error::Refused { endpoint, method: named, error })
            }
            Ok(Some(Err(CallFailure::Lost(reason)))) => Err(Error::Lost { endpoint, method: named, reason }),
            Err(_) if sent.load(Ordering::Acquire) => {
                Err(Error::Timeout { endpoint, method: named, after: self.timeout })
            }
            Ok(None) | Err(_) => Err(self.unavailable(method)),
        }
    }

    fn unavailable(&self, method: &str) -> Error {
        let status = self.status.borrow();
        let reason = if status.is_connected() { "the server is slow to answer" } else { &status.reason };
        Error::Unavailable {
            endpoint: self.endpoint.to_string(),
            method: method.to_owned(),
            after: self.timeout,
            reason: reason.to_owned(),
        }
    }

    fn protocol(&self, method: &str, what: String) -> Error {
        Error::Protocol { endpoint: self.endpoint.to_string(), method: method.to_owned(), what }
    }
}
