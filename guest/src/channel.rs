//! Owns the guest's end of the serial port: lines in, lines out, and which streams are open. What the host does not
//! take holds up those who tell it, and nothing else.

use crate::members::Members;
use crate::streams::{self, Stream};
use amphi_guest::words::{FromGuest, Lines, Open, ToGuest, line};
use amphi_guest::{PORT, VERSION};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long the port may take to appear.
const APPEAR: Duration = Duration::from_secs(20);
/// A port whose other end nobody holds is looked at again after so long.
const ALONE: Duration = Duration::from_millis(100);
/// Most streams at once.
const STREAMS_MAX: usize = 64;

pub struct Channel {
    port: Mutex<File>,
    streams: Mutex<BTreeMap<u32, Arc<Stream>>>,
}

pub fn find() -> io::Result<File> {
    let deadline = Instant::now() + APPEAR;
    loop {
        for entry in fs::read_dir("/sys/class/virtio-ports").into_iter().flatten().flatten() {
            if fs::read_to_string(entry.path().join("name")).unwrap_or_default().trim() == PORT {
                let path = std::path::Path::new("/dev").join(entry.file_name());
                return File::options().read(true).write(true).open(path);
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::other(format!("there is no port {PORT}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Channel {
    /// Begins to listen, and to tell whatever changes.
    pub fn open(members: &Arc<Members>) -> io::Result<Arc<Self>> {
        let port = find()?;
        let reader = port.try_clone()?;
        let channel = Arc::new(Self { port: Mutex::new(port), streams: Mutex::default() });
        let (listens, of) = (channel.clone(), members.clone());
        std::thread::spawn(move || listens.listen(reader, &of));
        let (tells, of) = (channel.clone(), members.clone());
        std::thread::spawn(move || {
            let mut told = 0;
            loop {
                of.wait(None, |table| table.changes != told);
                told = of.look().changes;
                tells.tell_members(&of);
            }
        });
        Ok(channel)
    }

    /// One line. Waits until the host takes it.
    pub fn tell(&self, word: &FromGuest) {
        let text = line(word);
        let mut port = self.port.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = port.write_all(&text) {
            crate::say(&format!("the host is not told: {error}"));
        }
    }

    fn tell_members(&self, members: &Members) {
        let (states, trouble) = {
            let table = members.look();
            (table.members.iter().map(|row| row.state.clone()).collect(), table.trouble.clone())
        };
        self.tell(&FromGuest::Members { members: states, trouble });
    }

    fn listen(self: &Arc<Self>, mut port: File, members: &Arc<Members>) {
        let mut lines = Lines::default();
        let mut piece = vec![0; 32 << 10];
        loop {
            match port.read(&mut piece) {
                Ok(length @ 1..) => {
                    for line in lines.take(&piece[..length]) {
                        match serde_json::from_slice(&line) {
                            Ok(word) => self.obey(word, members),
                            Err(error) => crate::say(&format!("a line that means nothing here: {error}")),
                        }
                    }
                }
                _ => std::thread::sleep(ALONE),
            }
        }
    }

    fn obey(self: &Arc<Self>, word: ToGuest, members: &Arc<Members>) {
        match word {
            ToGuest::Hello { number, .. } => {
                let all = std::mem::take(&mut *self.streams());
                for stream in all.into_values() {
                    stream.close();
                }
                self.tell(&FromGuest::Hello { number, version: VERSION });
                members.change(|_| ());
            }
            ToGuest::Open { stream, what } => self.start(stream, what, members),
            ToGuest::Input { stream, data } => self.with(stream, |stream| stream.input(data.0)),
            ToGuest::InputEnd { stream } => self.with(stream, Stream::end_input),
            ToGuest::Resize { stream, columns, rows } => self.with(stream, |s| s.resize(columns, rows)),
            ToGuest::Taken { stream, bytes } => self.with(stream, |stream| stream.taken(bytes)),
            ToGuest::Close { stream } => {
                let open = self.streams().remove(&stream);
                if let Some(stream) = open {
                    stream.close();
                }
            }
            ToGuest::Restart { member } => {
                if let Ok(at) = members.find(Some(&member)) {
                    let members = members.clone();
                    std::thread::spawn(move || members.restart(at));
                }
            }
            ToGuest::Limits { members: all } => {
                for one in all.iter().filter(|one| members.find(Some(&one.name)).is_ok()) {
                    if let Err(error) = crate::cgroup::hold(&one.name, one.cpu_centi, one.memory_bytes) {
                        crate::say(&format!("member {} keeps its limits: {error}", one.name));
                    }
                }
            }
            ToGuest::Grown { serial } => {
                let target = match &members.guest.volume {
                    Some(volume) if volume.serial == serial => Some("/volume".to_owned()),
                    _ => {
                        let further = members.guest.further.iter().find(|(_, disk)| disk.serial == serial);
                        further.map(|(name, _)| format!("/further/{name}"))
                    }
                };
                if let Some(Err(error)) = target.map(|target| crate::boot::grow(&serial, &target)) {
                    crate::say(&format!("volume {serial} does not grow: {error}"));
                }
            }
        }
    }

    fn start(self: &Arc<Self>, number: u32, what: Open, members: &Arc<Members>) {
        let stream = Arc::new(Stream::default());
        {
            let mut streams = self.streams();
            if streams.len() >= STREAMS_MAX || streams.contains_key(&number) {
                drop(streams);
                let message = format!("at most {STREAMS_MAX} streams at once");
                return self.tell(&FromGuest::Refused { stream: number, message });
            }
            streams.insert(number, stream.clone());
        }
        let (channel, members) = (self.clone(), members.clone());
        std::thread::spawn(move || {
            let ended = match what {
                Open::Exec(exec) => streams::exec(&channel, &members, number, &stream, &exec),
                Open::Logs(logs) => streams::logs(&channel, &members, number, &stream, &logs),
            };
            // Somebody else may have the number by now, if this one was closed.
            let mut open = channel.streams();
            if open.get(&number).is_some_and(|s| Arc::ptr_eq(s, &stream)) {
                open.remove(&number);
                drop(open);
                channel.tell(&match ended {
                    Ok(exit_code) => FromGuest::Ended { stream: number, exit_code },
                    Err(message) => FromGuest::Refused { stream: number, message },
                });
            }
        });
    }

    fn with(&self, number: u32, work: impl FnOnce(&Stream)) {
        let stream = self.streams().get(&number).cloned();
        if let Some(stream) = stream {
            work(&stream);
        }
    }

    fn streams(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, Arc<Stream>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
