//! What every command has at hand: the connection, made when first asked for, and the way to speak.

use crate::failure::Failure;
use crate::progress::Waiting;
use amphi_api::client::Client;
use serde::Serialize;
use std::cell::OnceCell;
use std::io::{ErrorKind, Write};
use std::time::Duration;

pub struct Session {
    client: OnceCell<Client>,
    json: bool,
    wait: Option<Duration>,
}

impl Session {
    pub fn new(json: bool, wait: Option<Duration>) -> Self {
        Self { client: OnceCell::new(), json, wait }
    }

    pub fn client(&self) -> Result<&Client, Failure> {
        if self.client.get().is_none() {
            // Set once, on one thread: a second value cannot be refused here.
            let _ = self.client.set(Client::from_env()?);
        }
        self.client.get().ok_or_else(|| Failure::new(1, "no client"))
    }

    pub fn is_json(&self) -> bool {
        self.json
    }

    /// How long to wait for an order; `None` means not at all.
    pub fn wait(&self) -> Option<Duration> {
        self.wait
    }

    /// A line of progress on stderr about `what`.
    pub fn waiting(&self, what: impl Into<String>) -> Waiting {
        Waiting::new(what.into())
    }

    /// One thing: as JSON or as the text that `render` makes.
    pub fn show<T: Serialize>(&self, thing: &T, render: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        if !self.json {
            return write_out(render(thing).as_bytes());
        }
        let text = serde_json::to_string_pretty(thing)
            .map_err(|e| Failure::new(1, format!("the answer cannot be printed as JSON: {e}")))?;
        say(&text)
    }

    /// A list: as the API's envelope (`{"hosts": […]}`) or as the text that `render` makes.
    pub fn list<T: Serialize>(
        &self,
        key: &str,
        things: &[T],
        render: impl FnOnce(&[T]) -> String,
    ) -> Result<(), Failure> {
        if self.json {
            return self.show(&serde_json::json!({ key: things }), |_| String::new());
        }
        write_out(render(things).as_bytes())
    }

    /// A sentence for people; nothing with `--json`, where the API says nothing.
    pub fn note(&self, text: &str) -> Result<(), Failure> {
        if self.json { Ok(()) } else { say(text) }
    }
}

/// A line on stdout.
pub fn say(text: &str) -> Result<(), Failure> {
    write_out(format!("{text}\n").as_bytes())
}

/// Bytes on stdout. A reader that has left (`amphi … | head`) has what it wanted.
pub fn write_out(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(1, format!("stdout: {error}")))
        }
        _ => Ok(()),
    }
}
