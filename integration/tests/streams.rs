//! Looking into bodies on a real host: commands, consoles, screens and output, through the controller. Nothing is lost on
//! the way, and nothing is left when somebody leaves.

use amphi_api::client::{BodyStream, Client, ClientError, Heard, Listener};
use amphi_api::host::HostState;
use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{BodySpec, Instance, InstanceCreate, InstanceState, VmSpec};
use amphi_api::streams::{ExecSpec, FromBody, LogsSpec, STDERR, STDOUT, TerminalSize, ToBody};
use amphi_api::{ErrorCode, InstanceId};
use amphi_integration::lab::{Lab, Layout, UpOptions, leftovers};
use amphi_integration::run;
use amphi_integration::story::read_env;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use nix::sys::signal::Signal;
use nix::sys::termios::tcgetattr;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// For whatever has to happen at all, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(120);
const HOST: &str = "h1";
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
/// Through one command, both ways.
const BYTES: usize = 50 << 20;
const PARALLEL: usize = 100;

struct Stage {
    lab: Lab,
    client: Client,
    runtime: tokio::runtime::Runtime,
    amphi: PathBuf,
    variables: Vec<(String, String)>,
}

/// What a command left behind.
#[derive(Debug, Default, PartialEq)]
struct Left {
    out: Vec<u8>,
    err: Vec<u8>,
    code: Option<i64>,
}

fn command(words: &[&str]) -> ExecSpec {
    ExecSpec { command: words.iter().map(|w| (*w).to_owned()).collect(), ..ExecSpec::default() }
}

fn shell(script: &str) -> ExecSpec {
    command(&["/bin/sh", "-c", script])
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Reads until the last word.
async fn rest(listener: &mut Listener) -> Result<Left> {
    let mut left = Left::default();
    loop {
        match listener.next().await? {
            Some(Heard::Output(STDERR, bytes)) => left.err.extend_from_slice(&bytes),
            Some(Heard::Output(_, bytes)) => left.out.extend_from_slice(&bytes),
            Some(Heard::Word(FromBody::Opened)) => {}
            Some(Heard::Word(FromBody::Ended { exit_code, .. })) => {
                left.code = exit_code;
                return Ok(left);
            }
            Some(Heard::Word(FromBody::Failed { code, message })) => bail!("{code}: {message}"),
            None => bail!("it was cut off after {left:?}"),
        }
    }
}

async fn play(client: &Client, id: InstanceId, spec: &ExecSpec) -> Result<Left> {
    let (_speaker, mut listener) = client.exec(id, spec).await?.split();
    tokio::time::timeout(PATIENCE, rest(&mut listener)).await.context("it does not end")?
}

impl Stage {
    fn ask<T>(&self, answer: impl Future<Output = Result<T, ClientError>>) -> Result<T> {
        Ok(self.runtime.block_on(answer)?)
    }

    fn exec(&self, id: InstanceId, spec: &ExecSpec) -> Result<Left> {
        self.runtime.block_on(play(&self.client, id, spec)).with_context(|| format!("{:?}", spec.command))
    }

    fn order(&self, name: &str, body: serde_json::Value, memory_mib: u64) -> Result<Instance> {
        let request: InstanceCreate = serde_json::from_value(json!({
            "name": name, "vcpus": 1, "memory_mib": memory_mib, "bodies": [body], "networks": [{"network": "blue"}],
        }))?;
        self.ask(self.client.create_instance(&request))
    }

    fn runs(&self, id: InstanceId) -> Result<()> {
        let wait = self.client.wait_instance(id, |i| i.state == InstanceState::Running, PATIENCE, |_| {});
        self.ask(wait).map(drop)
    }

    /// Command lines on the host that begin so.
    fn processes(&self, begin: &str) -> Result<Vec<String>> {
        let all = self.lab.run(HOST, &["ps", "-eo", "args", "--no-headers"])?;
        Ok(all.lines().filter(|line| line.starts_with(begin)).map(str::to_owned).collect())
    }

    fn until_processes(&self, begin: &str, count: usize) -> Result<()> {
        until(&format!("{count} processes '{begin}'"), PATIENCE, || {
            let found = self.processes(begin)?;
            Ok(seen(found.len() == count, || format!("{found:?}")))
        })
    }

    fn amphi(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.amphi);
        command.args(words).envs(self.variables.iter().cloned());
        command
    }
}

#[test]
fn bodies_can_be_looked_into() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("streams-lab"))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_amphi-lab"));
    let lab = Lab::up(&UpOptions::new(layout.clone(), program.clone(), 1), |_| {})?;
    let client = run::client(&layout)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let variables = read_env(&layout.env())?;
    let s = Stage { lab, client, runtime, amphi: program.with_file_name("amphi"), variables };
    until("h1 is up", PATIENCE, || {
        let hosts = s.ask(s.client.hosts())?;
        Ok(seen(hosts.iter().any(|h| h.state == HostState::Up), || format!("{hosts:?}")))
    })?;
    prepare(&s, &images)?;
    let vm = s.order(
        "vm",
        serde_json::to_value(BodySpec::Vm(VmSpec { image: "vm".into(), root_gib: None, set: None }))?,
        256,
    )?;
    let idle = "trap exit TERM; while :; do sleep 1000 & wait $!; done";
    let tick =
        "id=$(cat /proc/sys/kernel/random/uuid); n=0; while :; do echo $id $n; n=$((n+1)); sleep 0.2; done";
    let members = json!({"set": {"members": [
        {"name": "box", "index": 0, "image": "busybox", "command": ["/bin/sh", "-c", idle]},
        {"name": "tick", "index": 1, "image": "busybox", "command": ["/bin/sh", "-c", tick]},
    ]}});
    let set = s.order("set", members, 256)?;
    s.runs(set.id)?;
    let step = |what: &str, play: &dyn Fn() -> Result<()>| {
        let began = Instant::now();
        play().with_context(|| what.to_owned())?;
        println!("{what}: {:.1} s", began.elapsed().as_secs_f32());
        anyhow::Ok(())
    };
    step("commands", &|| commands(&s, set.id))?;
    step("bytes", &|| whole(&s, set.id))?;
    step("many at once", &|| many(&s, set.id))?;
    step("a client that is killed", &|| killed_client(&s))?;
    step("a terminal", &|| terminal(&s))?;
    step("output that is followed", &|| logs(&s, set.id))?;
    s.runs(vm.id)?;
    step("a VM", &|| vm_inside(&s, vm.id))?;
    step("OpenStack's consoles", &|| openstack(&s, set.id, vm.id))?;
    step("an agent that is killed", &|| killed_agent(&s, set.id))?;
    for id in [set.id, vm.id] {
        s.ask(s.client.delete_instance(id, true))?;
        ensure!(s.ask(s.client.wait_instance_gone(id, |_| false, PATIENCE, |_| {}))?.is_none());
    }
    s.lab.down()?;
    assert_eq!(leftovers(&layout), Vec::<String>::new());
    Ok(())
}

fn prepare(s: &Stage, images: &Path) -> Result<()> {
    let upload = |name: &str, format, cmdline: &str, blobs: &[(BlobRole, &str)]| -> Result<()> {
        let create = ImageCreate { name: name.into(), format, cmdline: cmdline.into() };
        let image = s.ask(s.client.create_image(&create))?;
        for (role, file) in blobs {
            s.ask(s.client.upload_file(image.id, *role, &images.join(file), Box::new(|_, _| {})))?;
        }
        Ok(())
    };
    upload("busybox", ImageFormat::DockerArchive, "", &[(BlobRole::Archive, "busybox.tar")])?;
    let kernel = [(BlobRole::Kernel, "vm-kernel"), (BlobRole::Initramfs, "vm-initramfs")];
    upload("vm", ImageFormat::KernelInitramfs, "amphi.shell", &kernel)?;
    let network = json!({"name": "blue", "subnet": {"cidr": "10.3.0.0/24"}});
    s.ask(s.client.create_network(&serde_json::from_value(network)?)).map(drop)
}

fn commands(s: &Stage, id: InstanceId) -> Result<()> {
    let left = s.exec(id, &shell("echo out; echo err >&2; exit 7"))?;
    ensure!(left == Left { out: b"out\n".into(), err: b"err\n".into(), code: Some(7) }, "{left:?}");
    let spec = ExecSpec {
        env: vec!["A=b c".into()],
        user: Some("65534:65534".into()),
        directory: Some("/tmp".into()),
        member: Some("tick".into()),
        ..shell("echo $A; id -u; pwd; hostname; cat")
    };
    let left = s.exec(id, &spec)?;
    ensure!(left.out.starts_with(b"b c\n65534\n/tmp\n") && left.code == Some(0), "{left:?}");
    let left = s.exec(id, &ExecSpec { tty: true, ..shell("tty -s && echo yes; echo err >&2") })?;
    ensure!(left.out == b"yes\r\nerr\r\n" && left.err.is_empty(), "{left:?}");
    let left = s.runtime.block_on(async {
        let spec = ExecSpec { tty: true, stdin: true, ..shell("read line; stty size") };
        let (mut speaker, mut listener) = s.client.exec(id, &spec).await?.split();
        speaker.say(&ToBody::Resize(TerminalSize { columns: 101, rows: 37 })).await?;
        speaker.input(b"\n").await?;
        tokio::time::timeout(PATIENCE, rest(&mut listener)).await.context("it does not end")?
    })?;
    ensure!(text_of(&left.out).contains("37 101"), "a terminal's size: {left:?}");
    let left = s.exec(id, &command(&["/no/such/program"]))?;
    ensure!(matches!(left.code, Some(126 | 127)), "{left:?}");
    for (spec, code) in [
        (ExecSpec { member: Some("anchor".into()), ..command(&["sh"]) }, ErrorCode::InvalidField),
        (ExecSpec { member: Some("nobody".into()), ..command(&["sh"]) }, ErrorCode::InvalidField),
        (ExecSpec { user: Some("no-such-user".into()), ..command(&["sh"]) }, ErrorCode::Conflict),
    ] {
        match s.runtime.block_on(s.client.exec(id, &spec)).map(|_| ()) {
            Err(ClientError::Api { detail, .. }) if detail.code == code => {}
            // Docker finds out about users when it starts the command.
            Ok(()) if spec.user.is_some() => ensure!(s.exec(id, &spec)?.code == Some(126)),
            other => bail!("{spec:?}: {other:?}"),
        }
    }
    match s.runtime.block_on(s.client.console(id, Some("anchor"), None)).map(|_| ()) {
        Err(ClientError::Api { detail, .. }) if detail.code == ErrorCode::InvalidField => Ok(()),
        other => bail!("the anchor's console: {other:?}"),
    }
}

/// What goes in comes out.
fn whole(s: &Stage, id: InstanceId) -> Result<()> {
    let mut bytes = vec![0; BYTES];
    // All values, and no short period.
    let mut state = 88_172_645_463_325_252_u64;
    for byte in &mut bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = state as u8;
    }
    let sent = hex::encode(Sha256::digest(&bytes));
    let began = Instant::now();
    let left = s.runtime.block_on(async {
        let stream = s
            .client
            .exec(
                id,
                &ExecSpec {
                    stdin: true,
                    ..shell("tee /dev/fd/2 | sha256sum >/tmp/sum 2>/dev/null; cat /tmp/sum")
                },
            )
            .await?;
        let (mut speaker, mut listener) = stream.split();
        let speak = async {
            speaker.input(&bytes).await?;
            speaker.say(&ToBody::InputEnd).await?;
            anyhow::Ok(())
        };
        let (spoken, left) = tokio::join!(speak, rest(&mut listener));
        spoken?;
        left
    })?;
    let there = String::from_utf8_lossy(&left.out).into_owned();
    let back = hex::encode(Sha256::digest(&left.err));
    ensure!(there.starts_with(&sent) && back == sent, "{} bytes back, {sent} became {there}", left.err.len());
    println!("{} MiB through one command and back in {:.1} s", BYTES >> 20, began.elapsed().as_secs_f32());
    Ok(())
}

fn many(s: &Stage, id: InstanceId) -> Result<()> {
    let began = Instant::now();
    let all = s.runtime.block_on(async {
        let one = |n: usize| {
            let client = s.client.clone();
            tokio::spawn(async move {
                // All are open at once: each waits for its input's end.
                let spec =
                    ExecSpec { stdin: true, ..shell(&format!("cat >/dev/null; echo {n}; exit {}", n % 5)) };
                let (mut speaker, mut listener) = client.exec(id, &spec).await?.split();
                speaker.say(&ToBody::InputEnd).await?;
                anyhow::Ok((n, rest(&mut listener).await?))
            })
        };
        let all: Vec<_> = (0..PARALLEL).map(one).collect();
        futures_util::future::join_all(all).await
    });
    for one in all {
        let (n, left) = one??;
        let expected = Left { out: format!("{n}\n").into(), err: vec![], code: i64::try_from(n % 5).ok() };
        ensure!(left == expected, "{n}: {left:?}");
    }
    let took = began.elapsed();
    println!("{PARALLEL} commands at once in {:.1} s", took.as_secs_f32());
    ensure!(took < PATIENCE, "{took:?}");
    Ok(())
}

fn killed_client(s: &Stage) -> Result<()> {
    for words in [&["exec", "-i", "set", "--"][..], &["exec", "-t", "set", "--"]] {
        let script = "trap '' HUP; (sleep 7701 & sleep 7702) & exec sleep 7703";
        let mut client = s.amphi(&[words, &["sh", "-c", script]].concat());
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::null()).spawn()?;
        s.until_processes("sleep 77", 3)?;
        client.kill()?;
        client.wait()?;
        s.until_processes("sleep 77", 0).with_context(|| format!("{words:?}"))?;
    }
    Ok(())
}

/// The program as a person has it: on a terminal, which is as it was afterwards.
fn terminal(s: &Stage) -> Result<()> {
    let status = s.amphi(&["exec", "set", "--", "sh", "-c", "exit 9"]).status()?;
    ensure!(status.code() == Some(9), "{status}");
    let pair = nix::pty::openpty(None, None)?;
    let before = tcgetattr(&pair.slave)?;
    let mut command = s.amphi(&["exec", "-it", "set", "sh"]);
    let (stdin, stdout) = (pair.slave.try_clone()?, pair.slave.try_clone()?);
    let mut child = command.stdin(stdin).stdout(stdout).spawn()?;
    drop(command);
    let mut master = std::fs::File::from(pair.master);
    master.write_all(b"echo me-$((6 * 7)); tty; exit 5\n")?;
    let mut text = String::new();
    let deadline = Instant::now() + PATIENCE;
    while !text.contains("me-42") {
        ensure!(Instant::now() < deadline, "{text}");
        let mut buffer = [0; 4096];
        let length = master.read(&mut buffer)?;
        text += &String::from_utf8_lossy(&buffer[..length]);
    }
    let status = child.wait()?;
    ensure!(status.code() == Some(5), "{status}: {text}");
    ensure!(tcgetattr(&pair.slave)? == before, "the terminal is not as it was");
    Ok(())
}

fn logs(s: &Stage, id: InstanceId) -> Result<()> {
    let spec = LogsSpec { member: Some("tick".into()), follow: true, tail: Some(1), ..LogsSpec::default() };
    let stream = s.ask(s.client.logs(id, &spec))?;
    let (_speaker, mut listener) = stream.split();
    let mut lines: Vec<String> = Vec::new();
    let mut text = String::new();
    let deadline = Instant::now() + PATIENCE;
    let life = |line: &String| line.split(' ').next().unwrap_or_default().to_owned();
    // It dies twice, each time after some lines.
    for killed in 0..3 {
        let mut count = 0;
        let before: BTreeSet<String> = lines.iter().map(life).collect();
        while count < 5 {
            ensure!(
                Instant::now() < deadline,
                "life {killed}: {} lines, last {:?}",
                lines.len(),
                lines.last()
            );
            match s.ask(listener.next())? {
                Some(Heard::Output(STDOUT, bytes)) => text += &String::from_utf8_lossy(&bytes),
                Some(Heard::Word(FromBody::Opened)) => {}
                other => bail!("{other:?}"),
            }
            while let Some((line, after)) = text.split_once('\n') {
                lines.push(line.to_owned());
                text = after.to_owned();
                count += usize::from(lines.last().is_some_and(|line| !before.contains(&life(line))));
            }
        }
        if killed < 2 {
            let container = format!("amphi-{id}-tick");
            s.lab.run(HOST, &[&DOCKER[..], &["kill", &container]].concat())?;
        }
    }
    let all: BTreeSet<&String> = lines.iter().collect();
    ensure!(all.len() == lines.len(), "lines are told twice: {lines:?}");
    // Of the lives that were seen from their begin, every line is there.
    let lives: Vec<String> = lines.iter().map(life).collect();
    for later in lives.iter().filter(|l| **l != lives[0]).collect::<BTreeSet<_>>() {
        let numbers = lines.iter().filter_map(|line| line.strip_prefix(&format!("{later} ")));
        let numbers: Vec<usize> = numbers.map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers == (0..numbers.len()).collect::<Vec<_>>(), "{later}: {numbers:?}");
    }
    let left = s.amphi(&["logs", "set", "-m", "tick", "--tail", "3"]).output()?;
    ensure!(left.status.success() && left.stdout.iter().filter(|b| **b == b'\n').count() == 3, "{left:?}");
    Ok(())
}

/// Waits for a word in what comes, saying something again and again until it does.
async fn hears(stream: BodyStream, say: &[u8], word: &str) -> Result<()> {
    let (mut speaker, mut listener) = stream.split();
    let mut text = String::new();
    let mut again = tokio::time::interval(Duration::from_secs(3));
    let hear = async {
        loop {
            tokio::select! {
                _ = again.tick() => speaker.input(say).await?,
                heard = listener.next() => match heard? {
                    Some(Heard::Output(_, bytes)) => text += &String::from_utf8_lossy(&bytes),
                    Some(Heard::Word(FromBody::Opened)) => {}
                    other => bail!("{other:?}"),
                },
            }
            if text.contains(word) {
                return Ok(());
            }
        }
    };
    let heard = tokio::time::timeout(PATIENCE, hear).await;
    heard.with_context(|| format!("no {word:?} in {text:?}"))?
}

fn vm_inside(s: &Stage, id: InstanceId) -> Result<()> {
    s.runtime.block_on(async {
        let console = s.client.console(id, None, None).await?;
        hears(console, b"echo me-$((6 * 7))\r", "me-42").await.context("console")?;
        // RFC 6143, 7.1.1: the server speaks first.
        let screen = s.client.screen(id).await?;
        hears(screen, b"", "RFB 003.008\n").await.context("screen")?;
        let logs = s.client.logs(id, &LogsSpec { follow: true, ..LogsSpec::default() }).await?;
        let (_speaker, mut listener) = logs.split();
        let mut text = String::new();
        while !text.contains("me-42") {
            match listener.next().await? {
                Some(Heard::Output(_, bytes)) => text += &String::from_utf8_lossy(&bytes),
                Some(Heard::Word(FromBody::Opened)) => {}
                other => bail!("{other:?}"),
            }
        }
        match s.client.exec(id, &command(&["ls"])).await.map(|_| ()) {
            Err(ClientError::Api { detail, .. }) if detail.code == ErrorCode::Conflict => Ok(()),
            other => bail!("a command in a vm: {other:?}"),
        }
    })
}

/// An address for whoever has it, once.
fn openstack(s: &Stage, set: InstanceId, vm: InstanceId) -> Result<()> {
    let variable = |name: &str| {
        let found =
            s.variables.iter().find(|(key, _)| key == name).map(|(_, value)| value.trim_matches('\''));
        found.with_context(|| format!("no {name}"))
    };
    let http = reqwest::Client::builder().no_proxy().tls_certs_only([]).build()?;
    let login = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": variable("OS_USERNAME")?, "domain": {"id": "default"}, "password": variable("OS_PASSWORD")?,
        }}},
        "scope": {"project": {"name": variable("OS_PROJECT_NAME")?, "domain": {"id": "default"}}},
    }});
    s.runtime.block_on(async {
        let base = s.client.url();
        let answer = http.post(format!("{base}/identity/v3/auth/tokens")).json(&login).send().await?;
        let token = answer.headers().get("x-subject-token").context("no token")?.to_str()?.to_owned();
        let ask = async |id: InstanceId, protocol: &str, kind: &str| {
            let console = json!({"remote_console": {"protocol": protocol, "type": kind}});
            let request = http.post(format!("{base}/compute/v2.1/servers/{id}/remote-consoles"));
            let request =
                request.header("x-auth-token", &token).header("openstack-api-version", "compute 2.31");
            let answer = request.json(&console).send().await?;
            let status = answer.status().as_u16();
            anyhow::Ok((status, answer.json::<serde_json::Value>().await?))
        };
        let (status, refused) = ask(set, "vnc", "novnc").await?;
        ensure!(status == 400 && refused.to_string().contains("Unavailable console type novnc"), "{refused}");
        for (id, protocol, kind, say, word) in [
            (vm, "vnc", "novnc", "", "RFB 003.008"),
            (vm, "serial", "serial", "echo me-$((7 * 8))\r", "me-56"),
            (set, "serial", "serial", "echo me-$((8 * 9))\r", "me-72"),
        ] {
            let (status, console) = ask(id, protocol, kind).await?;
            let console = &console["remote_console"];
            ensure!(status == 200 && console["protocol"] == protocol && console["type"] == kind, "{console}");
            let url = console["url"].as_str().context("no address")?;
            // Where noVNC is installed, its page knows the WebSocket.
            let ticket = url.rsplit_once("console/").context("no ticket")?.1;
            let shown = http.get(format!("{base}/compute/v2.1/os-console-auth-tokens/{ticket}"));
            let shown = shown.header("x-auth-token", &token).header("openstack-api-version", "compute 2.31");
            let shown: serde_json::Value = shown.send().await?.json().await?;
            ensure!(shown["console"]["instance_uuid"] == id.to_string(), "{shown}");
            let socket = format!("{}/console/{ticket}", base.replacen("http", "ws", 1));
            let (mut stream, _) = tokio_tungstenite::connect_async(&socket).await?;
            let mut text = String::new();
            let mut again = tokio::time::interval(Duration::from_secs(3));
            let hear = async {
                while !text.contains(word) {
                    tokio::select! {
                        _ = again.tick() => stream.send(Message::binary(say.as_bytes().to_vec())).await?,
                        heard = stream.next() => match heard.context("it ended")?? {
                            Message::Binary(bytes) => text += &String::from_utf8_lossy(&bytes),
                            Message::Close(frame) => bail!("{frame:?}"),
                            _ => {}
                        },
                    }
                }
                anyhow::Ok(())
            };
            let heard = tokio::time::timeout(PATIENCE, hear).await;
            heard.with_context(|| format!("no {word} in {text:?}"))??;
            ensure!(tokio_tungstenite::connect_async(&socket).await.is_err(), "a ticket is good once");
        }
        Ok(())
    })
}

fn killed_agent(s: &Stage, id: InstanceId) -> Result<()> {
    let stream = s.ask(s.client.exec(id, &shell("sleep 7801 & exec sleep 7802")))?;
    s.until_processes("sleep 78", 2)?;
    let began = Instant::now();
    s.lab.kill(HOST, "hostsrv", Signal::SIGKILL)?;
    let (_speaker, mut listener) = stream.split();
    let end = s.runtime.block_on(rest(&mut listener));
    let error = format!("{:#}", end.err().context("it ended as if all were well")?);
    ensure!(error.contains("host_lost"), "{error}");
    println!("the agent's death was told after {:.1} s", began.elapsed().as_secs_f32());
    s.lab.start(HOST, "hostsrv")?;
    s.until_processes("sleep 78", 0)?;
    until("commands run again", PATIENCE, || {
        let left = s.exec(id, &shell("echo here"))?;
        Ok(seen(left.code == Some(0), || format!("{left:?}")))
    })
}
