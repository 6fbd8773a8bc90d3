//! A command in a guest. The agent keeps no output but in its own memory until the command has ended, and no more than an answer
//! holds: so the command writes into files in the guest, which are read as they grow, and its input is a file that was written
//! before. The command has a session of its own; whoever leaves ends it. Refuses terminals and other users.

use super::file::{GuestFile, PIECE};
use super::{AGAIN, Agent, LATER, SOON, said, words};
use crate::instance::DriverError;
use crate::instance::streams::{Fed, Inside, Opened, Piece, input};
use amphi_api::streams::{ExecSpec, STDERR, STDOUT};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use std::io;
use std::sync::{Arc, OnceLock};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;

/// Most of a command's input, and of its output: they lie on the guest's disk for as long as it runs.
const MOST: u64 = 256 << 20;
/// Input that waits, in bytes; pieces that wait on either way.
const AHEAD: usize = 64 << 10;
const PIECES: usize = 2;
/// Pieces of one file that are read before the other one is looked at.
const ROUND: usize = 16;

/// A folder of its own, with the three files in it.
const PLACE: &str = r#"umask 077
d=$(mktemp -d /var/tmp/amphi-XXXXXX 2>/dev/null || mktemp -d /tmp/amphi-XXXXXX) || exit 1
: >"$d/in" && : >"$d/out" && : >"$d/err" && echo "$d""#;
/// The folder, where it runs, and the command. Who it is, and since which start of the guest, is written down first.
const RUN: &str = r#"echo $$ >"$1/pid" && cat /proc/sys/kernel/random/boot_id >"$1/boot" || exit 1
exec <"$1/in" >"$1/out" 2>"$1/err"
cd -- "$2" || exit 126
shift 2
command -v setsid >/dev/null && exec setsid "$@"
exec "$@""#;
/// The folder, and the process where it is known: a hang-up, then by force, and the folder goes. A command without a session is
/// ended alone; one of before the guest's last start is nobody.
pub const END: &str = r#"p=${2:-$(cat "$1/pid" 2>/dev/null)}
if [ -n "$p" ] && [ "$(cat "$1/boot" 2>/dev/null)" = "$(cat /proc/sys/kernel/random/boot_id)" ]; then
  kill -HUP -"$p" 2>/dev/null || kill -HUP "$p"
  sleep 1
  kill -KILL -"$p" 2>/dev/null || kill -KILL "$p"
fi
rm -rf -- "$1""#;
const CLEAR: &str = r#"rm -rf -- "$1""#;

/// A command as the machinery here takes it.
pub struct Command {
    pub words: Vec<String>,
    pub directory: String,
    /// None: its input is empty. An error: the client has left in the middle.
    pub input: Option<mpsc::Receiver<io::Result<Bytes>>>,
    /// Most bytes of its input, and of its output.
    pub most: u64,
}

/// A command that runs: what it writes, and its exit code when that has ended.
pub struct Running {
    pub output: mpsc::Receiver<Result<Piece, DriverError>>,
    pub code: Arc<OnceLock<i64>>,
}

pub async fn open(agent: &Agent, spec: &ExecSpec) -> Result<Opened, DriverError> {
    if spec.tty {
        return Err(agent.refused("it gives no terminal; use the VM's console, or exec without one"));
    }
    if spec.user.is_some() {
        return Err(agent.refused("it runs commands as root alone; su(1) in the guest changes that"));
    }
    let mut words = spec.command.clone();
    if !spec.env.is_empty() {
        words = [vec!["env".to_owned()], spec.env.clone(), words].concat();
    }
    let directory = spec.directory.clone().unwrap_or_else(|| "/".to_owned());
    let (input, fed) = input(AHEAD);
    let waiting = spec.stdin.then(|| taken(fed));
    let running = start(agent, Command { words, directory, input: waiting, most: MOST }).await?;
    let output = futures_util::stream::unfold(running.output, async |mut output| {
        let piece = output.recv().await?;
        Some((piece, output))
    });
    Ok(Opened {
        input: spec.stdin.then(|| Box::pin(input) as _),
        output: output.boxed(),
        inside: Box::new(Code(running.code)),
    })
}

struct Code(Arc<OnceLock<i64>>);

#[async_trait]
impl Inside for Code {
    async fn exit_code(&self) -> Result<Option<i64>, DriverError> {
        Ok(self.0.get().copied())
    }
}

/// A client's input in pieces; an end that was not said is an error.
fn taken(mut fed: Fed) -> mpsc::Receiver<io::Result<Bytes>> {
    let (to, pieces) = mpsc::channel(PIECES);
    tokio::spawn(async move {
        let mut buffer = vec![0; AHEAD];
        loop {
            let piece = match fed.pipe.read(&mut buffer).await {
                Ok(0) if fed.is_whole() => return,
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(length) => Ok(Bytes::copy_from_slice(&buffer[..length])),
                Err(error) => Err(error),
            };
            let over = piece.is_err();
            if to.send(piece).await.is_err() || over {
                return;
            }
        }
    });
    pieces
}

/// Begins a command: its input is taken first. It is ended when nobody holds its output any more.
pub async fn start(agent: &Agent, command: Command) -> Result<Running, DriverError> {
    let made = agent.script(PLACE, &[]).await?;
    let place = said(&made.out);
    if made.code != Some(0) || !place.starts_with('/') {
        return Err(agent.refused(format!("there is no room for a command's output: {}", said(&made.err))));
    }
    if let Err(error) = agent.notes.hold(agent.instance, &place) {
        agent.notes.let_go(agent.instance, &place, agent.leave(CLEAR, &[&place]).await);
        return Err(agent.refused(format!("the command cannot be noted down: {error}")));
    }
    let (pieces, output) = mpsc::channel(PIECES);
    let code = Arc::new(OnceLock::new());
    let play = Play { agent: agent.clone(), place, pieces, most: command.most, pid: None, files: Vec::new() };
    tokio::spawn(play.run(command, code.clone()));
    Ok(Running { output, code })
}

struct Play {
    agent: Agent,
    place: String,
    pieces: mpsc::Sender<Result<Piece, DriverError>>,
    most: u64,
    /// Of a command that runs, or may run.
    pid: Option<i64>,
    files: Vec<(u8, GuestFile)>,
}

/// Why a command was not followed to its end.
enum Ended {
    /// Nobody wants its output any more.
    Left,
    Failed(DriverError),
}

impl From<DriverError> for Ended {
    fn from(error: DriverError) -> Self {
        Self::Failed(error)
    }
}

impl Play {
    async fn run(mut self, mut command: Command, code: Arc<OnceLock<i64>>) {
        match self.play(&mut command).await {
            Ok(ended) => {
                if let Some(ended) = ended {
                    let _first = code.set(ended);
                }
            }
            Err(Ended::Left) => {}
            Err(Ended::Failed(error)) => {
                let _left = self.pieces.send(Err(error)).await;
            }
        }
        // Only now nothing more comes: the exit code is known, and what is told is told.
        let Self { agent, place, pieces, pid, files, .. } = self;
        drop(pieces);
        for (_, file) in files {
            file.close(&agent).await;
        }
        let told = match pid {
            Some(pid) => agent.leave(END, &[&place, &pid.to_string()]).await,
            None => agent.leave(CLEAR, &[&place]).await,
        };
        agent.notes.let_go(agent.instance, &place, told);
    }

    async fn play(&mut self, command: &mut Command) -> Result<Option<i64>, Ended> {
        if let Some(input) = command.input.take() {
            self.feed(input).await?;
        }
        for (channel, name) in [(STDOUT, "out"), (STDERR, "err")] {
            let file = GuestFile::open(&self.agent, &format!("{}/{name}", self.place), "rb").await?;
            self.files.push((channel, file));
        }
        if self.pieces.is_closed() {
            return Err(Ended::Left);
        }
        let words: Vec<&str> = [self.place.as_str(), command.directory.as_str()]
            .into_iter()
            .chain(command.words.iter().map(String::as_str))
            .collect();
        // To its end whoever leaves meanwhile: what runs has to be known to be ended.
        let pid = self.agent.once(words::shell(RUN, &words, false), words::pid).await?;
        self.pid = Some(pid);
        let ended = self.follow(pid).await?;
        self.pid = None;
        Ok(ended)
    }

    /// Writes the input into its file.
    async fn feed(&mut self, mut input: mpsc::Receiver<io::Result<Bytes>>) -> Result<(), Ended> {
        let mut file = GuestFile::open(&self.agent, &format!("{}/in", self.place), "wb").await?;
        let mut held = Vec::new();
        let fed = loop {
            let piece = tokio::select! {
                piece = input.recv() => piece,
                () = self.pieces.closed() => break Err(Ended::Left),
            };
            let over = piece.is_none();
            match piece {
                Some(Ok(piece)) => held.extend_from_slice(&piece),
                Some(Err(error)) => break Err(self.agent.refused(error.to_string()).into()),
                None => {}
            }
            if over || held.len() >= PIECE {
                if file.at + held.len() as u64 > self.most {
                    let why =
                        format!("its input is longer than {} MiB: copy a file into it", self.most >> 20);
                    break Err(self.agent.refused(why).into());
                }
                if let Err(error) = file.write(&self.agent, &held).await {
                    break Err(error.into());
                }
                held.clear();
            }
            if over {
                break file.flush(&self.agent).await.map_err(Ended::from);
            }
        };
        file.close(&self.agent).await;
        fed
    }

    /// Hands on what the command writes, until it has ended and all of that was read; its exit code.
    async fn follow(&mut self, pid: i64) -> Result<Option<i64>, Ended> {
        let mut pause = SOON;
        let mut ended = None;
        loop {
            if ended.is_none() {
                let ran = self.agent.again(words::status(pid), words::ran).await?;
                ended = ran.exited.then_some(ran.code);
            }
            let mut files = std::mem::take(&mut self.files);
            let moved = self.read(&mut files).await;
            self.files = files;
            match (moved?, ended) {
                (false, Some(code)) => return Ok(code),
                (false, None) => pause = (pause * 2).min(LATER),
                (true, _) => pause = SOON,
            }
            if ended.is_none() {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.pieces.closed() => return Err(Ended::Left),
                }
            }
        }
    }

    /// A round of both files; whether there was anything.
    async fn read(&self, files: &mut [(u8, GuestFile)]) -> Result<bool, Ended> {
        let mut moved = false;
        for (channel, file) in files {
            for _ in 0..ROUND {
                let bytes = file.read(&self.agent, PIECE).await?;
                if bytes.is_empty() {
                    break;
                }
                moved = true;
                self.hand_on(Piece { channel: *channel, bytes: bytes.into() }, file).await?;
                self.bounded(file.at)?;
            }
        }
        Ok(moved)
    }

    /// Waits for whoever reads; what the command writes meanwhile is bounded too.
    async fn hand_on(&self, piece: Piece, file: &mut GuestFile) -> Result<(), Ended> {
        loop {
            match tokio::time::timeout(AGAIN, self.pieces.reserve()).await {
                Ok(Ok(place)) => {
                    place.send(Ok(piece));
                    return Ok(());
                }
                Ok(Err(_)) => return Err(Ended::Left),
                Err(_) => self.bounded(file.length(&self.agent).await?)?,
            }
        }
    }

    fn bounded(&self, length: u64) -> Result<(), Ended> {
        if length <= self.most {
            return Ok(());
        }
        let why = format!(
            "its output is longer than {} MiB: have it write a file, and copy that (amphi cp)",
            self.most >> 20
        );
        Err(self.agent.refused(why).into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{Fake, LIMIT};
    use super::*;
    use tokio::io::AsyncWriteExt;

    fn run(script: &str) -> ExecSpec {
        ExecSpec { command: ["sh", "-c", script].map(str::to_owned).to_vec(), ..ExecSpec::default() }
    }

    /// Output, error output, and the exit code.
    async fn played(
        agent: &Agent,
        spec: &ExecSpec,
        bytes: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>, Option<i64>), String> {
        let Opened { input, mut output, inside } = agent.exec(spec).await.map_err(|e| e.to_string())?;
        let feed = async {
            if let Some(mut input) = input {
                input.write_all(bytes).await.unwrap();
                input.shutdown().await.unwrap();
            }
        };
        let read = async {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            while let Some(piece) = output.next().await {
                let Piece { channel, bytes } = piece.map_err(|error| error.to_string())?;
                if channel == STDERR { &mut err } else { &mut out }.extend_from_slice(&bytes);
            }
            Ok((out, err, inside.exit_code().await.unwrap()))
        };
        tokio::time::timeout(LIMIT, async { tokio::join!(feed, read).1 }).await.unwrap()
    }

    #[tokio::test]
    async fn a_command_has_its_input_its_outputs_and_its_exit_code() {
        let (agent, fake) = Fake::agent();
        let spec = ExecSpec {
            env: vec!["A=1 2".to_owned()],
            directory: Some("/tmp".to_owned()),
            ..run("echo \"$A $PWD\"; echo bad >&2; exit 3")
        };
        let told = played(&agent, &spec, b"").await.unwrap();
        assert_eq!(told, (b"1 2 /tmp\n".to_vec(), b"bad\n".to_vec(), Some(3)));
        let bytes: Vec<u8> =
            (0..1_500_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        fake.lose("guest-file-read", 3);
        let echo = ExecSpec { stdin: true, ..run("cat") };
        let (out, err, code) = played(&agent, &echo, &bytes).await.unwrap();
        assert!(out == bytes && err.is_empty() && code == Some(0), "{} bytes, {code:?}", out.len());
        assert_eq!(fake.lost(), 1);
        // A session of its own: whoever asks for its process sees the leader of one.
        let (out, ..) = played(&agent, &run("ps -o pid=,sid= -p $$"), b"").await.unwrap();
        let numbers: Vec<&str> = std::str::from_utf8(&out).unwrap().split_whitespace().collect();
        assert!(numbers.len() == 2 && numbers[0] == numbers[1], "{numbers:?}");
        let ended = played(&agent, &run("kill -9 $$"), b"").await.unwrap();
        assert_eq!(ended.2, Some(137));
        let none = ExecSpec { command: vec!["no-such-program".to_owned()], ..ExecSpec::default() };
        assert_eq!(played(&agent, &none, b"").await.unwrap().2, Some(127));
        for spec in [
            ExecSpec { tty: true, ..run("true") },
            ExecSpec { user: Some("nobody".to_owned()), ..run("true") },
        ] {
            assert!(played(&agent, &spec, b"").await.is_err());
        }
        fake.nothing_stays().await;
        fake.fall_silent();
        let told = played(&agent, &run("true"), b"").await.unwrap_err();
        assert!(told.contains("install qemu-guest-agent"), "{told}");
    }

    #[tokio::test]
    async fn a_client_that_leaves_ends_its_command() {
        let (agent, fake) = Fake::agent();
        let mut opened = agent.exec(&run("echo $$; sleep 7654 & wait")).await.unwrap();
        let first = tokio::time::timeout(LIMIT, opened.output.next()).await.unwrap().unwrap().unwrap();
        let pid: i32 = std::str::from_utf8(&first.bytes).unwrap().trim().parse().unwrap();
        let group = nix::unistd::Pid::from_raw(-pid);
        assert_eq!(nix::sys::signal::kill(group, None), Ok(()), "its session runs");
        drop(opened);
        fake.nothing_stays().await;
        let waits = async {
            // The leader is a child of this process that is waited for here, or nobody's.
            while nix::sys::signal::kill(group, None).is_ok() {
                let _ = nix::sys::wait::waitpid(
                    nix::unistd::Pid::from_raw(pid),
                    Some(nix::sys::wait::WaitPidFlag::WNOHANG),
                );
                tokio::time::sleep(SOON).await;
            }
        };
        assert!(tokio::time::timeout(LIMIT, waits).await.is_ok(), "it still runs");
    }

    #[tokio::test]
    async fn what_an_agent_leaves_the_next_one_ends() {
        let (agent, fake) = Fake::agent();
        let mut opened = agent.exec(&run("echo $$; sleep 7654")).await.unwrap();
        let first = tokio::time::timeout(LIMIT, opened.output.next()).await.unwrap().unwrap().unwrap();
        let pid: i32 = std::str::from_utf8(&first.bytes).unwrap().trim().parse().unwrap();
        agent.end_left().await;
        let runs = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None);
        assert_eq!((runs, agent.notes.left(agent.instance)), (Ok(()), Vec::new()), "it is looked at");
        fake.again(&agent).end_left().await;
        // The first one sees it end, by a hang-up.
        let waits = async { while opened.output.next().await.is_some_and(|piece| piece.is_ok()) {} };
        tokio::time::timeout(LIMIT, waits).await.unwrap();
        assert_eq!(opened.inside.exit_code().await.unwrap(), Some(129));
        fake.nothing_stays().await;
    }

    #[tokio::test]
    async fn too_much_is_refused_and_ended() {
        let (agent, fake) = Fake::agent();
        let command = |words: &[&str], input| Command {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".to_owned(),
            input,
            most: 1 << 20,
        };
        let mut running =
            start(&agent, command(&["head", "-c", "3000000", "/dev/zero"], None)).await.unwrap();
        let mut told = String::new();
        while let Some(piece) = tokio::time::timeout(LIMIT, running.output.recv()).await.unwrap() {
            told = piece.map_or_else(|error| error.to_string(), |_| told);
        }
        assert!(told.contains("longer than 1 MiB"), "{told}");
        let (to, input) = mpsc::channel(1);
        let feed =
            tokio::spawn(async move { while to.send(Ok(Bytes::from(vec![0; 100_000]))).await.is_ok() {} });
        let mut running = start(&agent, command(&["cat"], Some(input))).await.unwrap();
        let piece = tokio::time::timeout(LIMIT, running.output.recv()).await.unwrap().unwrap();
        assert!(piece.unwrap_err().to_string().contains("input is longer"), "the input is bounded too");
        tokio::time::timeout(LIMIT, feed).await.unwrap().unwrap();
        fake.nothing_stays().await;
    }

    #[tokio::test]
    async fn what_a_guest_says_of_itself() {
        let (agent, fake) = Fake::agent();
        let told = agent.facts().await;
        assert!(told.answers && told.os.is_none(), "{told:?}");
        assert_eq!((told.host_name.as_deref(), told.addresses.len()), (Some("guest"), 1));
        fake.fall_silent();
        assert_eq!(agent.facts().await, Default::default());
    }
}
