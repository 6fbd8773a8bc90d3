//! An ordinary VM with Debian's qemu-guest-agent in it, on a real host: it tells of itself, runs commands, takes files and gives
//! them, byte by byte; and one without says what to do. Nothing of it stays in the guest.

use amphi_api::instance::{BodySpec, Instance, VmSpec};
use amphi_integration::failing::{PATIENCE, Stage, request, vm};
use amphi_integration::lab::Layout;
use amphi_integration::program::{Amphi, text};
use amphi_integration::story::read_env;
use amphi_integration::wait::{seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

const HOST: &str = "h1";

struct Story {
    stage: Stage,
    amphi: Amphi,
}

impl Story {
    fn inside(&self, script: &str) -> Result<String> {
        Ok(text(&self.amphi.well(&["exec", "guest", "--", "sh", "-c", script])?))
    }

    fn nothing_stays(&self) -> Result<()> {
        until("nothing of a command stays in the guest", PATIENCE, || {
            // The folder of this very command is there.
            let left = self
                .inside("ls -d /tmp/amphi-* /var/tmp/amphi-* 2>/dev/null; ps | grep 'sleep 765[4]'; true")?;
            Ok(seen(left.lines().count() <= 1, || left))
        })
    }

    fn answers(&self, vm: &Instance) -> Result<Instance> {
        self.stage.until(vm.id, "one whose agent answers", |i| {
            let told = i.agent.clone().unwrap_or_default();
            let named = told.host_name.as_deref() == Some("amphi-vm");
            told.answers && named && told.addresses.contains(&i.addresses[0].address)
        })
    }
}

#[test]
fn a_vm_with_a_guest_agent_is_looked_into() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest-agent-lab"))?;
    let program = PathBuf::from(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout.clone(), &images, &program, 1, |_| {})?;
    let blobs = [("kernel", images.join("vm-kernel")), ("initramfs", images.join("vm-agent-initramfs"))];
    stage.image(json!({"name": "vm-agent", "format": "kernel-initramfs"}), &blobs)?;
    let variables = read_env(&layout.env())?;
    let s = Story { stage, amphi: Amphi { program: program.with_file_name("amphi"), variables } };

    let body = BodySpec::Vm(VmSpec::new("vm-agent", None));
    let guest = s.stage.create(&request("guest", vec![body], Some(HOST)))?;
    let began = Instant::now();
    let told = s.answers(&guest)?;
    println!("it answers {:.1} s after it runs: {:?}", began.elapsed().as_secs_f32(), told.agent);
    let plain = s.stage.create(&request("plain", vec![vm()], Some(HOST)))?;

    let step = |what: &str, play: &dyn Fn() -> Result<()>| {
        let began = Instant::now();
        play().with_context(|| what.to_owned())?;
        println!("{what}: {:.1} s", began.elapsed().as_secs_f32());
        anyhow::Ok(())
    };
    step("what it says", &|| shown(&s, &told))?;
    step("commands", &|| commands(&s))?;
    step("files", &|| files(&s))?;
    step("agents that end", &|| ends(&s, &guest))?;
    step("one without", &|| without(&s, &plain))?;
    s.stage.delete(plain.id)?;
    s.stage.delete(guest.id)?;
    s.stage.down()
}

fn shown(s: &Story, told: &Instance) -> Result<()> {
    let agent = told.agent.clone().context("no agent")?;
    ensure!(agent.host_name.as_deref() == Some("amphi-vm") && agent.os.is_some(), "{agent:?}");
    let page = text(&s.amphi.well(&["instance", "show", "guest"])?);
    ensure!(
        page.lines().any(|line| line.starts_with("VM agent") && line.contains("answers: amphi-vm")),
        "{page}"
    );
    let events = text(&s.amphi.well(&["events", "--kind", "guest_agent"])?);
    ensure!(events.contains("guest_agent") && events.contains("it answers"), "{events}");
    // What it writes on its console needs no agent.
    ensure!(text(&s.amphi.well(&["logs", "guest"])?).contains("amphi-vm: init"));
    Ok(())
}

fn commands(s: &Story) -> Result<()> {
    let began = Instant::now();
    let told = s.amphi.run(&[
        "exec",
        "guest",
        "-e",
        "A=1 2",
        "-w",
        "/tmp",
        "--",
        "sh",
        "-c",
        "echo $A $PWD; echo bad >&2; exit 3",
    ])?;
    println!("  a command takes {:.2} s", began.elapsed().as_secs_f32());
    ensure!(told.status.code() == Some(3), "{told:?}");
    ensure!(told.stdout == b"1 2 /tmp\n" && told.stderr == b"bad\n", "{told:?}");
    ensure!(s.inside("id -u; uname -s")? == "0\nLinux\n");
    // Binary-clean both ways, more than an answer of the agent holds.
    let bytes: Vec<u8> = (0..5_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let began = Instant::now();
    let mut child = s
        .amphi
        .command(&["exec", "-i", "guest", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut input = child.stdin.take().context("no input")?;
    let sent = bytes.clone();
    let feed = std::thread::spawn(move || input.write_all(&sent));
    let told = child.wait_with_output()?;
    feed.join().map_err(|_| anyhow::anyhow!("the feed died"))??;
    ensure!(told.status.success() && told.stdout == bytes, "{}: {} bytes", told.status, told.stdout.len());
    println!("  {} bytes through cat: {:.1} s", bytes.len(), began.elapsed().as_secs_f32());
    // What it writes comes while it runs; whoever leaves ends it.
    let mut child = s
        .amphi
        .command(&["exec", "guest", "--", "sh", "-c", "echo begun; sleep 7654"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut first = [0; 6];
    child.stdout.take().context("no output")?.read_exact(&mut first)?;
    ensure!(&first == b"begun\n" && s.inside("ps")?.contains("sleep 7654"));
    child.kill()?;
    child.wait()?;
    s.nothing_stays()?;
    s.amphi.refused(&["exec", "guest", "--", "no-such-program"], 127, "")?;
    s.amphi.refused(&["exec", "-it", "guest", "--", "sh"], 4, "amphi console")?;
    s.amphi.refused(&["exec", "-u", "nobody", "guest", "--", "id"], 4, "user")
}

fn files(s: &Story) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let from = dir.path().join("from");
    std::fs::create_dir_all(from.join("sub"))?;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    std::fs::write(from.join("sub/bytes"), &bytes)?;
    std::os::unix::fs::chown(from.join("sub/bytes"), Some(1234), Some(5678))?;
    std::fs::set_permissions(from.join("sub/bytes"), PermissionsExt::from_mode(0o4640))?;
    std::os::unix::fs::symlink("sub/bytes", from.join("link"))?;
    let local = |path: &Path| path.to_str().map(str::to_owned).context("a name");
    let began = Instant::now();
    s.amphi.well(&["cp", &local(&from)?, "guest:/tmp/in"])?;
    println!("  3 MB in: {:.1} s", began.elapsed().as_secs_f32());
    let told = s.inside("stat -c '%a %u %g %s' /tmp/in/sub/bytes; readlink /tmp/in/link")?;
    ensure!(told == "4640 1234 5678 3000000\nsub/bytes\n", "{told}");
    let began = Instant::now();
    let back = dir.path().join("back");
    s.amphi.well(&["cp", "guest:/tmp/in", &local(&back)?])?;
    println!("  3 MB in a folder out: {:.1} s", began.elapsed().as_secs_f32());
    let same = |path: &Path| -> Result<()> {
        ensure!(std::fs::read(path)? == bytes, "other bytes");
        let seen = std::fs::metadata(path)?;
        ensure!((seen.mode() & 0o7777, seen.uid(), seen.gid()) == (0o4640, 1234, 5678), "{seen:?}");
        Ok(())
    };
    same(&back.join("sub/bytes"))?;
    ensure!(std::fs::read_link(back.join("link"))? == Path::new("sub/bytes"));
    let one = dir.path().join("one");
    s.amphi.well(&["cp", "guest:/tmp/in/sub/bytes", &local(&one)?])?;
    same(&one)?;
    // One file into a folder, and by another name; one of the guest's own.
    s.amphi.well(&["cp", &local(&one)?, "guest:/tmp"])?;
    s.amphi.well(&["cp", &local(&one)?, "guest:/tmp/other name"])?;
    ensure!(s.inside("cmp /tmp/one '/tmp/other name' && rm -r /tmp/one /tmp/other* /tmp/in")?.is_empty());
    let init = s.amphi.well(&["cp", "guest:/init", "-"])?;
    ensure!(init.len() % 512 == 0 && text(&init).contains("amphi-vm: init"));
    s.amphi.refused(&["cp", "guest:/no/such", "-"], 4, "no such file")?;
    s.amphi.refused(&["cp", &local(&one)?, "guest:/no/such/place"], 4, "no such directory")?;
    s.nothing_stays()
}

fn ends(s: &Story, guest: &Instance) -> Result<()> {
    // The host's agent starts anew, and asks the guest's.
    let mut left = s
        .amphi
        .command(&["exec", "guest", "--", "sh", "-c", "echo begun; sleep 7654"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let mut first = [0; 6];
    left.stdout.take().context("no output")?.read_exact(&mut first)?;
    s.stage.lab.kill(HOST, "hostsrv", Signal::SIGKILL)?;
    ensure!(!left.wait()?.success(), "its stream ended well");
    s.stage.lab.start(HOST, "hostsrv")?;
    until("a command runs again", PATIENCE, || {
        let told = s.amphi.run(&["exec", "guest", "--", "true"])?;
        Ok(seen(told.status.success(), || text(&told.stderr)))
    })?;
    s.answers(guest)?;
    // What the former one has left in the guest is ended by this one.
    s.nothing_stays()?;
    // The guest's agent ends, and is back: commands that run are its children no more, new ones work.
    let _cut = s.amphi.run(&["exec", "guest", "--", "sh", "-c", "kill $(pidof qemu-ga)"])?;
    until("the guest's agent is back", PATIENCE, || {
        let told = s.amphi.run(&["exec", "guest", "--", "echo", "here"])?;
        Ok(seen(told.stdout == b"here\n", || text(&told.stderr)))
    })
}

fn without(s: &Story, plain: &Instance) -> Result<()> {
    s.amphi.refused(&["exec", "plain", "--", "true"], 4, "install qemu-guest-agent")?;
    s.amphi.refused(&["cp", "plain:/init", "-"], 4, "install qemu-guest-agent")?;
    let shown = s.stage.show(plain.id)?;
    ensure!(shown.agent.as_ref().is_some_and(|agent| !agent.answers), "{:?}", shown.agent);
    let page = text(&s.amphi.well(&["instance", "show", "plain"])?);
    ensure!(page.contains("VM agent   does not answer"), "{page}");
    Ok(())
}
