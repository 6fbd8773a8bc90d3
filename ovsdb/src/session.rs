//! The task behind a client: connects, connects again, and while connected moves bytes both ways.
//!
//! States: connecting -> asking for the schema -> serving -> (lost) waiting -> connecting. Commands
//! stay queued until serving. On loss every call in flight fails, replicas are marked stale, and
//! after the next connection they catch up from the last transaction they saw, where the server
//! remembers it.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{Options, Status};
use crate::codec::Decoder;
use crate::endpoint::{Endpoint, Reader, Writer};
use crate::jsonrpc::{self, Message};
use crate::monitor::Monitor;
use crate::replica::{Monitored, Shared};
use crate::schema::Schema;

/// Unsent bytes above which no further command is taken.
const HIGH_WATER: usize = 4 << 20;
const READ_SPACE: usize = 64 << 10;

#[derive(Debug)]
pub(crate) enum CallFailure {
    Refused(String),
    Lost(String),
}

pub(crate) enum Command {
    Call {
        method: &'static str,
        params: Json,
        reply: oneshot::Sender<Result<Json, CallFailure>>,
        /// Set before the first byte may reach the server.
        sent: Arc<AtomicBool>,
    },
    Monitor {
        monitored: Monitored,
        shared: Weak<Shared>,
    },
}

enum Pending {
    Schema,
    Echo,
    Call(oneshot::Sender<Result<Json, CallFailure>>),
    /// Index into the session's monitors.
    Monitor(usize),
    Ignored,
}

/// Why serving ended.
enum End {
    /// Nobody holds the client any more.
    Abandoned,
    Lost(String),
}

pub(crate) struct Session {
    endpoint: Endpoint,
    database: String,
    options: Options,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<Status>,
    monitors: Vec<Monitor>,
    /// Grows over reconnects too, so that no late reply is taken for another's.
    next_id: u64,
    pending: HashMap<u64, Pending>,
    outgoing: VecDeque<u8>,
    schema: Option<Arc<Schema>>,
}

impl Session {
    pub fn new(
        endpoint: Endpoint,
        database: &str,
        options: Options,
        commands: mpsc::Receiver<Command>,
        status: watch::Sender<Status>,
    ) -> Session {
        Session {
            endpoint,
            database: database.to_owned(),
            options,
            commands,
            status,
            monitors: Vec::new(),
            next_id: 0,
            pending: HashMap::new(),
            outgoing: VecDeque::new(),
            schema: None,
        }
    }

    pub async fn run(mut self) {
        let mut pause = self.options.backoff;
        while !self.commands.is_closed() {
            let reason = match timeout(self.options.connect_timeout, self.endpoint.connect()).await {
                Ok(Ok((reader, writer))) => match self.serve(reader, writer).await {
                    End::Abandoned => return,
                    End::Lost(reason) => reason,
                },
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no connection within {:?}", self.options.connect_timeout),
            };
            if self.schema.take().is_some() {
                tracing::warn!(endpoint = %self.endpoint, reason, "OVSDB connection lost");
                pause = self.options.backoff;
            }
            self.give_up_in_flight(&reason);
            sleep(pause).await;
            pause = (pause * 2).min(self.options.backoff_limit);
        }
    }

    fn give_up_in_flight(&mut self, reason: &str) {
        self.outgoing.clear();
        for (_, pending) in self.pending.drain() {
            if let Pending::Call(reply) = pending {
                // A caller that has given up needs no answer.
                let _ = reply.send(Err(CallFailure::Lost(reason.to_owned())));
            }
        }
        self.monitors.retain(|monitor| monitor.mark_stale());
        self.status.send_modify(|status| {
            status.schema = None;
            status.reason = reason.to_owned();
        });
    }

    async fn serve(&mut self, mut reader: Reader, mut writer: Writer) -> End {
        let mut decoder = Decoder::new(self.options.message_limit);
        let mut heard = Instant::now();
        let mut probing = false;
        self.send("get_schema", &json!([self.database]), Pending::Schema);
        loop {
            let silence = self.options.keepalive * if probing { 2 } else { 1 };
            decoder.buffer().reserve(READ_SPACE);
            let takes_commands = self.schema.is_some() && self.outgoing.len() < HIGH_WATER;
            tokio::select! {
                read = reader.read_buf(decoder.buffer()) => {
                    match read {
                        Ok(0) => return End::Lost("closed by the server".to_owned()),
                        Ok(_) => (heard, probing) = (Instant::now(), false),
                        Err(error) => return End::Lost(format!("read: {error}")),
                    }
                    if let Err(what) = self.take_in(&mut decoder) {
                        return End::Lost(what);
                    }
                }
                written = writer.write_buf(&mut self.outgoing), if !self.outgoing.is_empty() => {
                    match written {
                        Ok(0) => return End::Lost("closed by the server".to_owned()),
                        Ok(_) => {}
                        Err(error) => return End::Lost(format!("write: {error}")),
                    }
                }
                command = self.commands.recv(), if takes_commands => match command {
                    Some(command) => self.obey(command),
                    None => return End::Abandoned,
                },
                () = sleep_until(heard + silence) => {
                    if probing {
                        return End::Lost(format!("silent for {silence:?}"));
                    }
                    probing = true;
                    self.send("echo", &json!([]), Pending::Echo);
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            // The caller has given up already: nothing may happen any more.
            Command::Call { reply, .. } if reply.is_closed() => {}
            Command::Call { method, params, reply, sent } => {
                sent.store(true, Ordering::Release);
                self.send(method, &params, Pending::Call(reply));
            }
            Command::Monitor { monitored, shared } => {
                self.monitors.push(Monitor::new(monitored, shared));
                self.start_monitor(self.monitors.len() - 1);
            }
        }
    }

    fn send(&mut self, method: &str, params: &Json, pending: Pending) {
        self.next_id += 1;
        self.pending.insert(self.next_id, pending);
        self.queue(&jsonrpc::request(self.next_id, method, params));
    }

    fn queue(&mut self, message: &Json) {
        self.outgoing.extend(message.to_string().into_bytes());
    }

    fn take_in(&mut self, decoder: &mut Decoder) -> Result<(), String> {
        while let Some(json) = decoder.decode().map_err(|error| error.to_string())? {
            match Message::parse(json)? {
                Message::Request { id, method, params } if method == "echo" => {
                    self.queue(&jsonrpc::reply(id, params));
                }
                Message::Request { method, .. } => tracing::debug!(method, "ignored request from the server"),
                Message::Notification { method, params } => self.notified(&method, &params)?,
                Message::Reply { id, result, error } => {
                    let pending = id.as_u64().and_then(|id| self.pending.remove(&id));
                    self.replied(pending, result, error)?;
                }
            }
        }
        Ok(())
    }

    fn replied(&mut self, pending: Option<Pending>, result: Json, error: Json) -> Result<(), String> {
        match pending {
            Some(Pending::Schema) if error.is_null() => self.begin(&result)?,
            Some(Pending::Schema) => return Err(format!("get_schema: {}", jsonrpc::error_text(&error))),
            Some(Pending::Call(reply)) => {
                let answer = if error.is_null() {
                    Ok(result)
                } else {
                    Err(CallFailure::Refused(jsonrpc::error_text(&error)))
                };
                // A caller that has given up needs no answer.
                let _ = reply.send(answer);
            }
            Some(Pending::Monitor(index)) => self.monitor_replied(index, &result, &error)?,
            Some(Pending::Echo | Pending::Ignored) => {}
            None => tracing::debug!("ignored a reply to nothing that was asked"),
        }
        Ok(())
    }

    fn begin(&mut self, schema: &Json) -> Result<(), String> {
        let schema = Arc::new(Schema::from_json(schema).ok_or("a malformed schema")?);
        self.schema = Some(schema.clone());
        self.monitors.iter_mut().for_each(Monitor::reconnected);
        (0..self.monitors.len()).for_each(|index| self.start_monitor(index));
        self.status.send_modify(|status| {
            status.schema = Some(schema);
            status.reason.clear();
            status.connections += 1;
        });
        Ok(())
    }

    fn start_monitor(&mut self, index: usize) {
        let Some(schema) = self.schema.clone() else { return };
        match self.monitors[index].request(&self.database, &schema) {
            Ok((method, params)) => self.send(method, &params, Pending::Monitor(index)),
            Err(problem) => self.monitors[index].refuse(problem),
        }
    }

    fn monitor_replied(&mut self, index: usize, result: &Json, error: &Json) -> Result<(), String> {
        let Some(schema) = self.schema.clone() else { return Ok(()) };
        let monitor = &mut self.monitors[index];
        if error.is_null() {
            return monitor.started(&schema, result);
        }
        let text = jsonrpc::error_text(error);
        if text.starts_with("unknown method") && monitor.fall_back() {
            self.start_monitor(index);
        } else {
            monitor.refuse(text);
        }
        Ok(())
    }

    fn notified(&mut self, method: &str, params: &Json) -> Result<(), String> {
        let Some(schema) = self.schema.clone() else { return Ok(()) };
        let Some(monitor) = self.monitors.iter_mut().find(|monitor| monitor.is_addressed(params)) else {
            return Ok(());
        };
        if monitor.updated(method, &schema, params)? {
            return Ok(());
        }
        let id = monitor.id();
        self.send("monitor_cancel", &json!([id]), Pending::Ignored);
        Ok(())
    }
}
