//! Cold moves whose bytes go over while the body runs, on two real hosts: a writer inside goes on all the while, the
//! controller and both agents are killed in the middle, one move is called off, and in the end the same bytes are there.

use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{
    BodySpec, CopyPass, Exchange, ExchangePhase as Phase, Instance, InstanceState, InstanceVolume,
    MoveCreate, VmSpec,
};
use amphi_api::{ExchangeId, InstanceId};
use amphi_integration::failing::{PATIENCE, Stage, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::story::residue;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// What is written before the move.
const WRITTEN_MIB: u64 = 300;

fn in_member(stage: &Stage, host: &str, id: InstanceId, how: &str, command: &str) -> String {
    let script =
        format!("/usr/bin/docker -H unix:///run/docker.sock exec {how} amphi-{id}-only sh -c '{command}'");
    let done = stage.lab.exec(host, &["sh", "-c", &script], Duration::from_secs(120)).expect("exec");
    assert!(done.ok(), "{command} on {host}: {done:?}");
    done.stdout
}

/// Appends a number, durably, again and again, and overwrites a MiB in the middle of a file.
fn write_on(stage: &Stage, host: &str, id: InstanceId) {
    let script = "n=$(wc -l </data/log 2>/dev/null || echo 0); while true; do n=$((n+1)); echo $n >>/data/log; \
        dd if=/dev/urandom of=/data/live bs=64k count=16 seek=$((n%4*16)) conv=notrunc 2>/dev/null; \
        sync; sleep 0.05; done";
    in_member(stage, host, id, "-d", script);
}

fn order(stage: &Stage, one: &Instance, to: &str, live: Option<bool>) -> Exchange {
    let wish = MoveCreate {
        to: Some(to.into()),
        live,
        ahead: Some(true),
        reason: "a test".into(),
        ..MoveCreate::default()
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        // What is left of the last move there goes first.
        match stage.ask(stage.client.create_move(one.id, &wish)) {
            Ok(exchange) => return exchange,
            Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn follow(stage: &Stage, id: ExchangeId, mut look: impl FnMut(&Exchange)) -> Exchange {
    let deadline = Instant::now() + 3 * PATIENCE;
    loop {
        // A controller that is away for a moment is no end.
        if let Ok(seen) = stage.ask(stage.client.exchange(id)) {
            look(&seen);
            if matches!(seen.phase, Phase::Done | Phase::Failed) {
                return seen;
            }
            assert!(Instant::now() < deadline, "it does not end: {seen:#?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn passes(done: &Exchange) -> Vec<CopyPass> {
    let passes = done.journey.as_ref().and_then(|j| j.copy.clone()).expect("passes").passes;
    for (number, pass) in passes.iter().enumerate() {
        let [read, sent] = [pass.read_bytes, pass.sent_bytes].map(|bytes| bytes >> 20);
        println!("  pass {}: {read} MiB read, {sent} MiB sent in {} ms", number + 1, pass.took_ms);
    }
    println!("  out of reach for {} ms", done.outage_ms.unwrap_or_default());
    assert!(passes.last().is_some_and(|pass| pass.last), "{passes:?}");
    passes
}

/// The log's numbers are 1, 2, 3 … without a gap; how many.
fn counted(stage: &Stage, host: &str, id: InstanceId) -> u64 {
    let check = "awk \"{ if (\\$1 != NR) { print \\\"gap at \\\" NR; exit 1 } } END { print NR }\" /data/log";
    in_member(stage, host, id, "", check).trim().parse().expect("a number")
}

fn runs_at(stage: &Stage, id: InstanceId, host: &str) -> Instance {
    let runs = stage.until(id, "running", |i| i.state == InstanceState::Running && i.fault.is_none());
    let runs = runs.expect("runs");
    assert_eq!(runs.host_name.as_deref(), Some(host));
    runs
}

#[test]
fn bytes_go_ahead_of_a_cold_move() {
    let layout =
        Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("passes-lab")).expect("lab directory");
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout, &images, program, 2, |_| {}).expect("two hosts");
    let before = ["h1", "h2"].map(|host| residue::on(&stage.lab, host).expect("looked"));

    let mut wish = request("disk", vec![set()], Some("h1"));
    wish.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let disk = stage.create(&wish).expect("a set");
    let fill = format!("dd if=/dev/urandom of=/data/bytes bs=1M count={WRITTEN_MIB} 2>/dev/null; sync");
    in_member(&stage, "h1", disk.id, "", &fill);
    let written = in_member(&stage, "h1", disk.id, "", "sha256sum /data/bytes");

    println!("to another host, a writer going on");
    write_on(&stage, "h1", disk.id);
    let mut ran = 0;
    let done = follow(&stage, order(&stage, &disk, "h2", None).id, |seen| {
        ran += u32::from(seen.phase == Phase::CopyingAhead);
    });
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    assert!(ran > 0, "it was never seen being copied while it runs");
    runs_at(&stage, disk.id, "h2");
    let all = passes(&done);
    assert!(all.len() >= 2, "{all:?}");
    let (first, last) = (all[0].sent_bytes, all[all.len() - 1].sent_bytes);
    assert!(first >= WRITTEN_MIB << 20, "the first pass sends what is written: {first}");
    assert!(last * 5 < first, "the stop sends far less: {last} of {first}");
    let (read, whole) = (all[all.len() - 1].read_bytes, all[0].read_bytes);
    assert!(all[0].followed && read * 10 < whole, "the stop reads what was written, not the volume: {all:?}");
    assert_eq!(in_member(&stage, "h2", disk.id, "", "sha256sum /data/bytes"), written, "the same bytes");
    let lines = counted(&stage, "h2", disk.id);
    println!("  {lines} numbers in the log, none missing");
    stage.buried("h1", disk.id).expect("buried");

    println!("called off while it is copied: it never stops");
    write_on(&stage, "h2", disk.id);
    let epoch = stage.show(disk.id).expect("shown").epoch;
    let one = order(&stage, &disk, "h1", None);
    let mut off = false;
    let ended = follow(&stage, one.id, |seen| {
        assert!(!matches!(seen.phase, Phase::Stopping | Phase::Copying) || off, "too late to call it off");
        if seen.phase == Phase::CopyingAhead && !off {
            off = true;
            stage.ask(stage.client.cancel_exchange(one.id)).expect("called off");
        }
    });
    assert_eq!(ended.fault.map(|f| f.code).as_deref(), Some("cancelled"));
    let same = runs_at(&stage, disk.id, "h2");
    assert_eq!(same.epoch, epoch);
    let (then, deadline) = (counted(&stage, "h2", disk.id), Instant::now() + PATIENCE);
    while counted(&stage, "h2", disk.id) == then {
        assert!(Instant::now() < deadline, "the writer has stopped");
    }

    let mut at = "h2";
    for (victim, phase) in [
        ("to", Phase::CopyingAhead),
        ("controller", Phase::CopyingAhead),
        ("from", Phase::CopyingAhead),
        ("from", Phase::Copying),
        ("controller", Phase::Copying),
    ] {
        println!("{victim} is killed in {phase:?}");
        let to = if at == "h1" { "h2" } else { "h1" };
        let (node, program) = match victim {
            "controller" => ("controller", "controller"),
            "from" => (at, "hostsrv"),
            _ => (to, "hostsrv"),
        };
        let mut killed = false;
        let done = follow(&stage, order(&stage, &disk, to, None).id, |seen| {
            if seen.phase == phase && !killed {
                killed = true;
                stage.lab.kill(node, program, Signal::SIGKILL).expect("killed");
                stage.lab.start(node, program).expect("started");
            }
        });
        assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
        if !killed {
            println!("  it was over before it was seen");
        }
        runs_at(&stage, disk.id, to);
        passes(&done);
        assert_eq!(in_member(&stage, to, disk.id, "", "sha256sum /data/bytes"), written, "the same bytes");
        counted(&stage, to, disk.id);
        stage.buried(at, disk.id).expect("buried");
        write_on(&stage, to, disk.id);
        at = to;
    }
    stage.delete(disk.id).expect("deleted");

    println!("a VM that is stopped for it takes its root disk along");
    let create = ImageCreate { name: "disk".into(), format: ImageFormat::Qcow2, cmdline: String::new() };
    let image = stage.ask(stage.client.create_image(&create)).expect("an image");
    let file = images.join("vm-disk.qcow2");
    let upload = stage.client.upload_file(image.id, BlobRole::Disk, &file, Box::new(|_, _| {}));
    stage.ask(upload).expect("uploaded");
    let body = BodySpec::Vm(VmSpec { image: "disk".into(), root_gib: Some(1), set: None });
    let mut wish = request("mover", vec![body], Some("h1"));
    wish.memory_mib = 192;
    let vm = stage.create(&wish).expect("a VM");
    let root = |host: &str, what: &str| {
        let script = format!("cd /var/lib/amphi/instances/{}; {what}", vm.id);
        let told = stage.lab.exec(host, &["sh", "-c", &script], Duration::from_secs(60)).expect("exec");
        assert!(told.ok(), "{told:?}");
        told.stdout
    };
    let done = follow(&stage, order(&stage, &vm, "h2", Some(false)).id, |_| ());
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    runs_at(&stage, vm.id, "h2");
    passes(&done);
    let told = root("h2", "qemu-img info -U root-*.qcow2; ls");
    assert!(told.contains("backing file") && !told.contains(".part"), "{told}");
    stage.delete(vm.id).expect("deleted");

    for volume in stage.ask(stage.client.recycle_bin()).expect("the bin") {
        stage.ask(stage.client.purge_volume(volume.id)).expect("purged");
    }
    let left = || -> Vec<String> {
        let looked = ["h1", "h2"].iter().zip(&before);
        let now = looked.map(|(host, before)| (residue::on(&stage.lab, host).expect("looked"), before));
        now.flat_map(|(now, before)| now.difference(before).cloned().collect::<Vec<_>>()).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", left());
        std::thread::sleep(Duration::from_millis(500));
    }
    stage.down().expect("down");
}
