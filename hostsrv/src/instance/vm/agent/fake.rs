//! A guest agent for tests: this machine is the guest. It runs what it is told and keeps files open, and loses an answer where a
//! test says so, after it has done what was asked.

use super::notes::Notes;
use super::talk::{Talk, Unsaid};
use super::{Agent, SOON};
use amphi_api::InstanceId;
use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub const LIMIT: Duration = Duration::from_secs(60);

struct State {
    /// The host's.
    folder: tempfile::TempDir,
    files: BTreeMap<i64, File>,
    children: BTreeMap<i64, (Child, bool)>,
    handles: i64,
    /// Whose answer is lost, and which of them.
    lose: Option<(String, u32)>,
    lost: u32,
    places: Vec<String>,
    silent: bool,
}

impl Default for State {
    fn default() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            files: BTreeMap::new(),
            children: BTreeMap::new(),
            handles: 0,
            lose: None,
            lost: 0,
            places: Vec::new(),
            silent: false,
        }
    }
}

#[derive(Clone, Default)]
pub struct Fake(Arc<Mutex<State>>);

impl Fake {
    pub fn agent() -> (Agent, Self) {
        let fake = Self::default();
        let folder = fake.0.lock().unwrap().folder.path().to_owned();
        let notes = Arc::new(Notes::new(&folder));
        (Agent { talk: Arc::new(fake.clone()), notes, instance: InstanceId::new() }, fake)
    }

    /// The answer to the `nth` of these commands from now on is lost.
    pub fn lose(&self, command: &str, nth: u32) {
        self.0.lock().unwrap().lose = Some((command.to_owned(), nth));
    }

    pub fn lost(&self) -> u32 {
        self.0.lock().unwrap().lost
    }

    /// Another agent for the same guest, as one that has started anew.
    pub fn again(&self, agent: &Agent) -> Agent {
        let notes = Arc::new(Notes::new(self.0.lock().unwrap().folder.path()));
        Agent { notes, ..agent.clone() }
    }

    /// Nobody answers any more.
    pub fn fall_silent(&self) {
        self.0.lock().unwrap().silent = true;
    }

    /// Until no file is open, and no folder of a command is left.
    pub async fn nothing_stays(&self) {
        let waits = async {
            loop {
                let left = {
                    let state = self.0.lock().unwrap();
                    let places = state.places.iter().filter(|place| std::path::Path::new(place).exists());
                    (state.files.len(), places.cloned().collect::<Vec<_>>())
                };
                if left == (0, Vec::new()) {
                    return;
                }
                tokio::time::sleep(SOON).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, waits).await.is_ok(), "files or folders are left");
    }
}

impl State {
    fn run(&mut self, arguments: &Value) -> io::Result<Value> {
        let captured = arguments["capture-output"].as_bool().unwrap();
        let to = || if captured { Stdio::piped() } else { Stdio::null() };
        let words: Vec<&str> =
            arguments["arg"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
        let mut command = Command::new(arguments["path"].as_str().unwrap());
        let child = command.args(words).stdin(Stdio::null()).stdout(to()).stderr(to()).spawn()?;
        let pid = i64::from(child.id());
        self.children.insert(pid, (child, captured));
        Ok(json!({ "pid": pid }))
    }

    fn status(&mut self, pid: i64) -> io::Result<Value> {
        let (child, captured) = self.children.get_mut(&pid).ok_or(io::ErrorKind::NotFound)?;
        let Some(status) = child.try_wait()? else { return Ok(json!({ "exited": false })) };
        let mut answer = json!({ "exited": true });
        match (status.code(), status.signal()) {
            (Some(code), _) => answer["exitcode"] = code.into(),
            (None, signal) => answer["signal"] = signal.into(),
        }
        if *captured {
            let mut out = Vec::new();
            child.stdout.take().unwrap().read_to_end(&mut out)?;
            let text = String::from_utf8_lossy(&out).trim().to_owned();
            if text.contains("/amphi-") && text.starts_with('/') {
                self.places.push(text);
            }
            answer["out-data"] = STANDARD.encode(out).into();
        }
        self.children.remove(&pid);
        Ok(answer)
    }

    fn carry_out(&mut self, command: &str, arguments: &Value) -> io::Result<Value> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let handle = arguments["handle"].as_i64().unwrap_or_default();
        let file = self.files.get_mut(&handle).ok_or_else(missing);
        match command {
            "guest-exec" => self.run(arguments),
            "guest-exec-status" => self.status(arguments["pid"].as_i64().unwrap()),
            "guest-file-open" => {
                let path = arguments["path"].as_str().unwrap();
                let file = match arguments["mode"].as_str() {
                    Some("rb") => File::open(path)?,
                    _ => File::create(path)?,
                };
                self.handles += 1;
                self.files.insert(self.handles, file);
                Ok(self.handles.into())
            }
            "guest-file-close" => self.files.remove(&handle).map(|_| json!({})).ok_or_else(missing),
            "guest-file-flush" => file?.flush().map(|()| json!({})),
            "guest-file-read" => {
                let mut bytes = vec![0; arguments["count"].as_u64().unwrap() as usize];
                let length = file?.read(&mut bytes)?;
                Ok(
                    json!({ "count": length, "buf-b64": STANDARD.encode(&bytes[..length]), "eof": length == 0 }),
                )
            }
            "guest-file-write" => {
                let bytes = STANDARD.decode(arguments["buf-b64"].as_str().unwrap()).unwrap();
                file?.write_all(&bytes)?;
                Ok(json!({ "count": bytes.len(), "eof": false }))
            }
            "guest-file-seek" => {
                let offset = arguments["offset"].as_u64().unwrap();
                let to = match arguments["whence"].as_str() {
                    Some("set") => SeekFrom::Start(offset),
                    _ => SeekFrom::End(offset as i64),
                };
                Ok(json!({ "position": file?.seek(to)?, "eof": false }))
            }
            "guest-get-host-name" => Ok(json!({ "host-name": "guest" })),
            "guest-get-osinfo" => Err(io::Error::other("it has been disabled for this instance")),
            "guest-network-get-interfaces" => {
                Ok(json!([{ "name": "eth0", "ip-addresses": [{ "ip-address": "10.1.0.5" }] }]))
            }
            other => panic!("{other}"),
        }
    }
}

#[async_trait]
impl Talk for Fake {
    async fn say(&self, command: Value) -> Result<Value, Unsaid> {
        let mut state = self.0.lock().unwrap();
        if state.silent {
            return Err(Unsaid::Silent("QEMU guest agent is not connected".to_owned()));
        }
        let name = command["execute"].as_str().unwrap();
        let answer = state.carry_out(name, &command["arguments"]);
        let gone = match &mut state.lose {
            Some((which, nth)) if which == name => {
                *nth -= 1;
                *nth == 0
            }
            _ => false,
        };
        if gone {
            state.lose = None;
            state.lost += 1;
            return Err(Unsaid::Silent("guest agent didn't respond to command".to_owned()));
        }
        answer.map_err(|error| Unsaid::Refused(error.to_string()))
    }
}
