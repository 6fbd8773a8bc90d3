//! Owns what is looked at over the port: a command's input, output and end, and a member's output. Each has a window of
//! its own; what was not taken is not read.

use crate::channel::Channel;
use crate::members::{Members, end_exec, forget_exec};
use crate::{calls, processes::Started};
use amphi_guest::words::{Bytes, Exec, FromGuest, Logs, PIECE_MAX, WINDOW};
use nix::pty::openpty;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

pub struct Stream {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Bytes that the host has made room for.
    room: u64,
    closed: bool,
    input: VecDeque<u8>,
    input_ended: bool,
    terminal: Option<File>,
}

impl Default for Stream {
    fn default() -> Self {
        let state =
            State { room: WINDOW, closed: false, input: VecDeque::new(), input_ended: false, terminal: None };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl Stream {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    pub fn close(&self) {
        self.change(|state| state.closed = true);
    }

    pub fn taken(&self, bytes: u64) {
        self.change(|state| state.room = state.room.saturating_add(bytes).min(WINDOW));
    }

    /// More than the window is no word of ours: the rest is left out.
    pub fn input(&self, data: Vec<u8>) {
        self.change(|state| {
            let room = (WINDOW as usize).saturating_sub(state.input.len());
            state.input.extend(data.into_iter().take(room));
        });
    }

    pub fn end_input(&self) {
        self.change(|state| state.input_ended = true);
    }

    pub fn resize(&self, columns: u16, rows: u16) {
        if let Some(terminal) = &self.state().terminal {
            // One that is gone has no size.
            let _gone = calls::resize_terminal(terminal, columns, rows);
        }
    }

    /// Waits for room. How much of so many bytes may go; 0: nobody looks any more.
    fn take_room(&self, most: usize) -> usize {
        let mut state = self.state();
        while state.room == 0 && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let room = if state.closed { 0 } else { (most as u64).min(state.room) };
        state.room -= room;
        room as usize
    }

    fn closed(&self) -> bool {
        self.state().closed
    }

    /// The next input; none: it has ended.
    fn next_input(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        loop {
            if state.closed {
                return None;
            }
            if !state.input.is_empty() {
                let length = state.input.len().min(PIECE_MAX);
                return Some(state.input.drain(..length).collect());
            }
            if state.input_ended {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Tells bytes, piece by piece as there is room. False: nobody looks any more.
fn tell(channel: &Channel, number: u32, stream: &Stream, from: u8, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let length = stream.take_room(bytes.len().min(PIECE_MAX));
        if length == 0 {
            return false;
        }
        let (piece, rest) = bytes.split_at(length);
        channel.tell(&FromGuest::Output { stream: number, channel: from, data: Bytes(piece.to_vec()) });
        bytes = rest;
    }
    true
}

/// Reads until its end and tells all of it.
fn pump(
    channel: &Arc<Channel>,
    number: u32,
    stream: &Arc<Stream>,
    from: u8,
    mut pipe: File,
) -> JoinHandle<()> {
    let (channel, stream) = (channel.clone(), stream.clone());
    std::thread::spawn(move || {
        let mut piece = vec![0; PIECE_MAX];
        // EIO is how a terminal says that nobody holds its other end.
        while let Ok(length @ 1..) = pipe.read(&mut piece) {
            if !tell(&channel, number, &stream, from, &piece[..length]) {
                return;
            }
        }
    })
}

/// Gives the command its input, until that has ended.
fn feed(channel: &Arc<Channel>, number: u32, stream: &Arc<Stream>, mut pipe: File, terminal: bool) {
    let (channel, stream) = (channel.clone(), stream.clone());
    std::thread::spawn(move || {
        while let Some(bytes) = stream.next_input() {
            if pipe.write_all(&bytes).is_err() {
                return;
            }
            channel.tell(&FromGuest::Taken { stream: number, bytes: bytes.len() as u64 });
        }
        if terminal && !stream.closed() {
            // Control-D: the end of input as a terminal has it.
            let _gone = pipe.write_all(&[4]);
        }
    });
}

/// A member's output. No exit code.
pub fn logs(
    channel: &Arc<Channel>,
    members: &Members,
    number: u32,
    stream: &Arc<Stream>,
    what: &Logs,
) -> Result<Option<i64>, String> {
    let at = members.find(what.member.as_deref())?;
    channel.tell(&FromGuest::Opened { stream: number });
    let told = |from: u8, bytes: Vec<u8>| !stream.closed() && tell(channel, number, stream, from, &bytes);
    members.logs[at].read(what, told).map_err(|error| error.to_string())?;
    Ok(None)
}

struct Ends {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
    input: Option<File>,
    outputs: Vec<(u8, File)>,
}

fn pipes(exec: &Exec) -> io::Result<Ends> {
    let file = |end: OwnedFd| File::from(end);
    let (out, stdout) = io::pipe()?;
    let (err, stderr) = io::pipe()?;
    let (stdin, input) = if exec.stdin {
        let (stdin, input) = io::pipe()?;
        (stdin.into(), Some(file(input.into())))
    } else {
        (Stdio::null(), None)
    };
    let outputs = vec![(1, file(out.into())), (2, file(err.into()))];
    Ok(Ends { stdin, stdout: stdout.into(), stderr: stderr.into(), input, outputs })
}

fn terminal(stream: &Stream, columns: u16, rows: u16) -> io::Result<Ends> {
    let pair = openpty(None, None)?;
    let master = File::from(pair.master);
    calls::resize_terminal(&master, columns, rows)?;
    let (input, output) = (master.try_clone()?, master.try_clone()?);
    stream.change(|state| state.terminal = Some(master));
    let end = || pair.slave.try_clone().map(Stdio::from);
    Ok(Ends { stdin: end()?, stdout: end()?, stderr: end()?, input: Some(input), outputs: vec![(1, output)] })
}

/// A command in a member, to its end or until nobody looks any more.
pub fn exec(
    channel: &Arc<Channel>,
    members: &Members,
    number: u32,
    stream: &Arc<Stream>,
    exec: &Exec,
) -> Result<Option<i64>, String> {
    let at = members.find(exec.member.as_deref())?;
    let ends = match exec.terminal {
        Some((columns, rows)) => terminal(stream, columns, rows),
        None => pipes(exec),
    };
    let ends = ends.map_err(|error| error.to_string())?;
    let (id, started) = members
        .start_in(at, exec, ends.stdin, ends.stdout, ends.stderr)
        .map_err(|error| error.to_string())?;
    channel.tell(&FromGuest::Opened { stream: number });
    let pumps: Vec<JoinHandle<()>> =
        ends.outputs.into_iter().map(|(from, pipe)| pump(channel, number, stream, from, pipe)).collect();
    if let Some(input) = ends.input {
        feed(channel, number, stream, input, exec.terminal.is_some());
    }
    let code = until_ended(stream, &started, &id);
    if code.is_some() {
        for pump in pumps {
            // One that panicked has nothing more to tell.
            let _told = pump.join();
        }
    }
    // Its input's thread waits for more: there is none.
    stream.change(|state| {
        state.closed = true;
        state.terminal = None;
    });
    forget_exec(&id);
    Ok(code)
}

/// None: nobody looks any more, and it was ended.
fn until_ended(stream: &Stream, started: &Started, id: &str) -> Option<i64> {
    loop {
        if let Some(code) = started.wait(Some(std::time::Duration::from_millis(100))) {
            return Some(code);
        }
        if stream.closed() {
            end_exec(id, started);
            return None;
        }
    }
}
