//! Live moves on two real hosts: a VM with a root disk of its own and a volume goes over while it runs, keeps its memory
//! and address, and is called off on the way; the controller and the agents are killed in between. At no look does it run
//! on both hosts, and nothing is left where it was.

use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{
    BodyKind, BodySpec, Exchange, ExchangePhase as Phase, Instance, InstanceState, InstanceVolume,
    MoveCreate, VmSpec,
};
use amphi_integration::failing::{PATIENCE, Stage, address, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::story;
use amphi_integration::story::guest::Member;
use amphi_integration::story::ping::Ping;
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Whether the guest runs on the host, as its libvirt says: halted is not running.
fn runs_on(stage: &Stage, host: &str, one: &Instance) -> bool {
    let listed = format!("virsh -q -c qemu:///system list --state-running --uuid | grep {} || true", one.id);
    let told = stage.lab.exec(host, &["sh", "-c", &listed], Duration::from_secs(60)).expect("exec");
    !told.stdout.trim().is_empty()
}

fn live(to: &str) -> MoveCreate {
    let reason = "a test".into();
    MoveCreate { to: Some(to.into()), live: Some(true), reason, ..MoveCreate::default() }
}

fn order(stage: &Stage, one: &Instance, to: &str) -> Exchange {
    stage.ask(stage.client.create_move(one.id, &live(to))).expect("ordered")
}

/// Follows a move to its end; at no look does the guest run on both hosts.
fn follow(stage: &Stage, one: &Instance, order: &Exchange, mut look: impl FnMut(&Exchange)) -> Exchange {
    let journey = order.journey.clone().expect("a move");
    assert!(journey.live);
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The new host is asked first: what runs on the old one after that ran beside it.
        let there = runs_on(stage, &journey.to_name, one);
        let here = runs_on(stage, &journey.from_name, one);
        assert!(!(there && here), "{} runs on both hosts", one.name);
        // A controller that is away for a moment is no end.
        if let Ok(seen) = stage.ask(stage.client.exchange(order.id)) {
            look(&seen);
            if matches!(seen.phase, Phase::Done | Phase::Failed) {
                return seen;
            }
        }
        assert!(Instant::now() < deadline, "{}: its move does not end", one.name);
    }
}

/// How long the guest's kernel has run, as its console tells: it counts once a second, and only while it runs.
fn boots(stage: &Stage, host: &str, one: &Instance) -> usize {
    let script = format!(
        "cat /var/lib/amphi/instances/{}/vm-*/console.log | grep -c 'amphi-vm: boot' || true",
        one.id
    );
    let told = stage.lab.exec(host, &["sh", "-c", &script], Duration::from_secs(60)).expect("exec");
    told.stdout.trim().parse().expect("a number")
}

fn arrived(stage: &Stage, before: &Instance, host: &str) -> Instance {
    let after = stage.runs(before.id).expect("runs");
    assert_eq!((after.host_name.as_deref(), after.body), (Some(host), BodyKind::Vm));
    assert_eq!(after.addresses, before.addresses);
    assert_eq!(after.epoch, before.epoch + 1);
    assert_eq!(boots(stage, host, before), 0, "it has not booted on {host}");
    assert!(runs_on(stage, host, before));
    after
}

#[test]
fn a_vm_goes_over_while_it_runs() {
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("live-lab")).expect("lab directory");
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let stage = Stage::up(layout, &images, program, 2, |_| {}).expect("lab up");
    let create = ImageCreate { name: "disk".into(), format: ImageFormat::Qcow2, cmdline: String::new() };
    let image = stage.ask(stage.client.create_image(&create)).expect("an image");
    let file = images.join("vm-disk.qcow2");
    let upload = stage.client.upload_file(image.id, BlobRole::Disk, &file, Box::new(|_, _| {}));
    stage.ask(upload).expect("uploaded");
    let watcher = stage.create(&request("watcher", vec![set()], Some("h2"))).expect("a watcher");
    let before = ["h1", "h2"].map(|host| story::residue::on(&stage.lab, host).expect("looked"));

    let vm = BodySpec::Vm(VmSpec { image: "disk".into(), root_gib: Some(1), set: None });
    let mut wish = request("mover", vec![vm], Some("h1"));
    wish.memory_mib = 192;
    wish.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
    let vm = stage.create(&wish).expect("a VM");
    let voice = Member::new(&stage.lab, "h2", watcher.id, "only");
    let asked = address(&vm).expect("an address");
    let deadline = Instant::now() + PATIENCE;
    while voice.run(&format!("ping -c 1 -W 1 {asked}")).is_err() {
        assert!(Instant::now() < deadline, "{asked} does not answer");
    }

    println!("to another host, heard all the while");
    let ping = Ping::start(voice.clone(), &asked).expect("a ping");
    ping.hear(20).expect("heard");
    let began = Instant::now();
    let done = follow(&stage, &vm, &order(&stage, &vm, "h2"), |_| ());
    assert_eq!(done.phase, Phase::Done, "{:?}", done.fault);
    let took = began.elapsed();
    ping.hear(40).expect("heard");
    let pinged = ping.stop().expect("counted");
    let vm = arrived(&stage, &vm, "h2");
    println!("  took {took:?}; {pinged:?}, silent for at most {:?}", pinged.outage());
    assert!(pinged.outage() < Duration::from_secs(5), "{pinged:?}");
    stage.buried("h1", vm.id).expect("buried");

    println!("called off on the way");
    let one = order(&stage, &vm, "h1");
    let mut called_off = false;
    let ended = follow(&stage, &vm, &one, |seen| {
        if seen.phase == Phase::Crossing && !called_off {
            called_off = true;
            // It may have gone over just now.
            let _late = stage.ask(stage.client.cancel_exchange(one.id));
        }
    });
    assert!(called_off, "it was never seen going over");
    let mut vm = match ended.phase {
        Phase::Failed => {
            assert_eq!(ended.fault.map(|f| f.code).as_deref(), Some("cancelled"));
            let same = stage.runs(vm.id).expect("runs");
            assert_eq!((same.epoch, same.host_name.as_deref()), (vm.epoch, Some("h2")));
            assert!(voice.run(&format!("ping -c 2 {asked}")).is_ok());
            same
        }
        _ => arrived(&stage, &vm, "h1"),
    };

    for (victim, program) in [("controller", "controller"), ("from", "hostsrv"), ("to", "hostsrv")] {
        println!("{program} ({victim}) is killed on the way");
        let from = vm.host_name.clone().expect("a host");
        let to = if from == "h1" { "h2" } else { "h1" };
        let node = match victim {
            "from" => from.as_str(),
            "to" => to,
            other => other,
        };
        let tried = vm.epoch;
        // What is left of the last move there goes first.
        stage.buried(to, vm.id).expect("buried");
        let deadline = Instant::now() + PATIENCE;
        let one = loop {
            match stage.ask(stage.client.create_move(vm.id, &live(to))) {
                Ok(one) => break one,
                Err(error) => assert!(Instant::now() < deadline, "{error:#}"),
            }
            std::thread::sleep(Duration::from_millis(200));
        };
        let mut killed = false;
        let ended = follow(&stage, &vm, &one, |seen| {
            if seen.phase == Phase::Crossing && !killed {
                killed = true;
                stage.lab.kill(node, program, Signal::SIGKILL).expect("killed");
                stage.lab.start(node, program).expect("started");
            }
        });
        assert!(killed, "it was never seen going over");
        println!("  {:?}: {:?}", ended.phase, ended.fault.map(|f| f.code));
        let after = stage.until(vm.id, "running", |i| i.state == InstanceState::Running && i.fault.is_none());
        let after = after.expect("runs");
        let at = after.host_name.clone().expect("a host");
        assert_eq!(at == to, ended.phase == Phase::Done);
        assert_eq!(after.epoch > tried, at == to);
        assert!(runs_on(&stage, &at, &vm));
        assert!(voice.run(&format!("ping -c 2 {asked}")).is_ok(), "it answers");
        vm = after;
    }

    stage.delete(vm.id).expect("deleted");
    for volume in stage.ask(stage.client.recycle_bin()).expect("the bin") {
        stage.ask(stage.client.purge_volume(volume.id)).expect("purged");
    }
    let left = || -> Vec<String> {
        let looked = ["h1", "h2"].iter().zip(&before);
        let now =
            looked.map(|(host, before)| (story::residue::on(&stage.lab, host).expect("looked"), before));
        now.flat_map(|(now, before)| now.difference(before).cloned().collect::<Vec<_>>()).collect()
    };
    let deadline = Instant::now() + PATIENCE;
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "left: {:?}", left());
        std::thread::sleep(Duration::from_millis(500));
    }
    stage.delete(watcher.id).expect("deleted");
    stage.down().expect("down");
}
