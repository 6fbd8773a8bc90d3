use super::*;
use crate::instance::{ObservedState, Remains};
use crate::storage::VolumeKind;
use amphi_api::image::{Image, ImageFormat, ImageState};
use amphi_api::instance::Power;
use amphi_api::wire::{
    AttachmentDesired, BodyDesired, HostDesired, InstanceDesired, LeavingDesired, SnapshotDesired, Tombstone,
    VolumeDesired, VolumeSource,
};
use amphi_api::{HostId, ImageId, ProjectId};
use std::path::PathBuf;

fn body_of(kind: BodyKind) -> BodyDesired {
    let image = Image {
        id: ImageId(uuid::Uuid::nil()),
        project: ProjectId::DEFAULT,
        name: "i".into(),
        format: ImageFormat::KernelInitramfs,
        cmdline: String::new(),
        state: ImageState::Active,
        layers: Vec::new(),
        blobs: Default::default(),
        created_at: jiff::Timestamp::UNIX_EPOCH,
    };
    match kind {
        BodyKind::Set => BodyDesired::Set { set: Default::default(), images: vec![image] },
        BodyKind::Vm => BodyDesired::Vm { image, root_gib: None, probes: Default::default() },
    }
}

/// A world with one instance at epoch 5 that should be a set with a volume of 10 bytes.
struct World {
    desired: InstanceDesired,
    volume: VolumeDesired,
    bodies: Vec<ObservedBody>,
    answered: BTreeSet<BodyKind>,
    volumes: BTreeMap<uuid::Uuid, ObservedVolume>,
    memory: Remembered,
    confirmed: bool,
}

fn world() -> World {
    let volume =
        VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: true, source: None, trashed_at: None };
    World {
        desired: InstanceDesired {
            id: InstanceId::new(),
            project: ProjectId::DEFAULT,
            name: "web".into(),
            epoch: 5,
            power: Power::On,
            restarts: 0,
            resizes: 0,
            vcpus: 1,
            memory_mib: 64,
            body: body_of(BodyKind::Set),
            next_body: None,
            ports: vec![],
            volume: Some(volume.id),
            root_volume: None,
            attachments: Vec::new(),
            root: 0,
            rescue: None,
            user_data: None,
            ssh_keys: vec![],
            metadata: BTreeMap::new(),
            leaving: None,
            arriving_from: None,
            copying: None,
            copied_from: None,
            twin: false,
            members: BTreeMap::new(),
        },
        volumes: BTreeMap::from([(volume.id.0, observed_volume(&volume))]),
        volume,
        bodies: vec![],
        answered: [BodyKind::Set, BodyKind::Vm].into(),
        memory: Remembered::default(),
        confirmed: true,
    }
}

fn observed_volume(volume: &VolumeDesired) -> ObservedVolume {
    ObservedVolume {
        id: volume.id.0,
        kind: VolumeKind::Volume,
        size_bytes: volume.size_bytes,
        fs: None,
        complete: true,
        trashed_at: None,
        device: Some(PathBuf::from("/dev/x")),
        mounted: None,
        tags: vec![],
        shared: None,
    }
}

impl World {
    fn with(mut self, kind: BodyKind, epoch: u64, state: ObservedState) -> Self {
        let instance = self.desired.id;
        self.bodies.push(ObservedBody {
            instance,
            kind,
            epoch,
            state,
            ports: vec![],
            volumes: vec![],
            rescued: false,
            members: vec![],
            agent: None,
            held: Default::default(),
            away: false,
            trouble: None,
        });
        self
    }

    fn and(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    fn seen(&self) -> Observed<'_> {
        Observed { bodies: &self.bodies, answered: &self.answered, volumes: Some(&self.volumes) }
    }

    /// The plan's steps by name, which is what the tables speak of.
    fn plan(&self) -> Vec<String> {
        instance(&self.desired, &[&self.volume], &self.seen(), &self.memory, self.confirmed)
            .iter()
            .map(name)
            .collect()
    }
}

fn name(step: &Step) -> String {
    let text = match step {
        Step::Stop { kind, .. } => return format!("stop {kind}"),
        Step::Remove { kind, epoch, remains: Remains::Roots } => return format!("remove {kind} {epoch}"),
        Step::Remove { kind, epoch, .. } => return format!("bury {kind} {epoch}"),
        Step::TellGrown { kind, .. } => return format!("tell {kind}"),
        Step::PrepareExpected => "prepare what comes",
        Step::PrepareNext => "prepare next",
        Step::PrepareUpdate => "prepare update",
        Step::RestartMember { member } => return format!("restart {member}"),
        Step::NoteMemberRestarts { .. } => "note members",
        Step::Depart => "depart",
        Step::PrepareDesired => "prepare",
        Step::EnsureVolume { .. } => "volume",
        Step::DetachVolume { .. } => "detach",
        Step::Ensure => "ensure",
        Step::EnsureWith { .. } => "ensure with volume",
        Step::Resize => "resize",
        Step::NoteRestarts { .. } => "note",
        Step::Trash { .. } => "trash",
        Step::Restore { .. } => "restore",
        Step::Purge { .. } => "purge",
        Step::TakeSnapshot => "snapshot",
        Step::Export => "export",
        Step::SendBytes => "send bytes",
    };
    text.to_owned()
}

#[test]
fn a_body_that_leaves_is_sent_while_it_runs_and_nothing_else_is_done() {
    let leaves = |recalled| {
        move |w: &mut World| {
            w.desired.body = body_of(Vm);
            w.desired.leaving = Some(LeavingDesired {
                exchange: amphi_api::ExchangeId::new(),
                to: HostId::new(),
                address: "10.0.0.2:7445".parse().unwrap(),
                epoch: 6,
                recalled,
            });
        }
    };
    for (state, steps) in [
        (Some(Running), vec!["depart"]),
        (Some(Degraded), vec![]),
        (Some(Paused), vec![]),
        (Some(Stopped), vec![]),
        (None, vec![]),
    ] {
        let there = |w: World| state.into_iter().fold(w, |w, state| w.with(Vm, 5, state));
        assert_eq!(there(world()).and(leaves(false)).plan(), steps, "{state:?}");
        assert!(there(world()).and(leaves(true)).plan().is_empty(), "{state:?}, recalled");
        assert!(there(world()).and(leaves(false)).and(|w| w.confirmed = false).plan().is_empty());
    }
}

use BodyKind::{Set, Vm};
use ObservedState::{Degraded, Paused, Running, Stopped, Suspended};

/// A member of the set, and what it is held to.
fn held_to(memory_mib: u64) -> impl Fn(&mut World) {
    move |w: &mut World| {
        let member = amphi_api::set::MemberSpec { name: "a".into(), ..Default::default() };
        let BodyDesired::Set { set, .. } = &mut w.desired.body else { panic!("a set") };
        set.members = vec![member];
        let held =
            crate::instance::limits::Held { memory_bytes: Some(memory_mib << 20), ..Default::default() };
        w.bodies[0].held = BTreeMap::from([("a".to_owned(), held)]);
    }
}

/// The member's container is made for this description, and shall be for that one.
fn described(now: u64, ordered: u64) -> impl Fn(&mut World) {
    use amphi_api::instance::MemberStatus;
    use amphi_api::wire::MemberDesired;
    move |w: &mut World| {
        let member = MemberStatus { name: "a".into(), running: true, generation: now, ..Default::default() };
        w.bodies[0].members = vec![member];
        let ordered = MemberDesired { generation: ordered, ..MemberDesired::default() };
        w.desired.members.insert("a".into(), ordered);
    }
}

#[test]
fn a_body_takes_on_its_size_as_it_is() {
    let off = |w: &mut World| w.desired.power = Power::Off;
    let refused = |w: &mut World| w.memory.keeps_size = true;
    let rescued = |w: &mut World| w.bodies[0].rescued = true;
    let one = |state| world().with(Set, 5, state);
    let table: Vec<(&str, World, &[&str])> = vec![
        ("as ordered", one(Running).and(held_to(64)), &[]),
        ("larger", one(Running).and(held_to(32)), &["resize"]),
        ("smaller", one(Running).and(held_to(128)), &["resize"]),
        ("refused a moment ago", one(Running).and(held_to(128)).and(refused), &[]),
        ("a member is down", one(Degraded).and(held_to(32)), &["volume", "resize", "ensure"]),
        ("stopped, to be started", one(Stopped).and(held_to(32)), &["volume", "resize", "ensure"]),
        (
            "limits of its next container",
            one(Running).and(held_to(32)).and(described(0, 2)),
            &["prepare update", "ensure"],
        ),
        (
            "limits of its next container, which is there",
            one(Running).and(held_to(32)).and(described(2, 2)),
            &["resize"],
        ),
        ("stopped, to stay so", one(Stopped).and(held_to(32)).and(off), &["detach"]),
        ("running, to be stopped", one(Running).and(held_to(32)).and(off), &["stop set", "detach"]),
        (
            "a rescue's members have limits of their own",
            one(Running).and(held_to(32)).and(rescued),
            &["stop set", "ensure"],
        ),
    ];
    for (what, world, steps) in table {
        assert_eq!(world.plan(), steps, "{what}");
    }
}

#[test]
fn instances() {
    let off = |w: &mut World| w.desired.power = Power::Off;
    let table: Vec<(&str, World, &[&str])> = vec![
        ("absent", world(), &["volume", "ensure"]),
        ("running", world().with(Set, 5, Running), &[]),
        ("a member is down", world().with(Set, 5, Degraded), &["volume", "ensure"]),
        ("stopped", world().with(Set, 5, Stopped), &["volume", "ensure"]),
        ("should be off", world().with(Set, 5, Running).and(off), &["stop set", "detach"]),
        ("is off, volume still attached", world().with(Set, 5, Stopped).and(off), &["detach"]),
        (
            "exchange",
            world().with(Vm, 4, Running),
            &["prepare", "stop vm", "remove vm 4", "detach", "volume", "ensure"],
        ),
        (
            "exchange cut short after the stop",
            world().with(Vm, 4, Stopped),
            &["prepare", "remove vm 4", "detach", "volume", "ensure"],
        ),
        (
            "exchange of one that is off",
            world().with(Vm, 4, Stopped).and(off),
            &["remove vm 4", "detach", "detach"],
        ),
        ("a newer body than ordered stays", world().with(Set, 6, Running), &[]),
        ("after a reboot nothing is started", world().and(|w| w.confirmed = false), &[]),
        (
            "after a reboot a zombie is not replaced before the controller spoke",
            world().with(Set, 4, Stopped).and(|w| w.confirmed = false),
            &[],
        ),
        (
            "restart ordered",
            world().with(Set, 5, Running).and(|w| w.desired.restarts = 1),
            &["stop set", "note", "ensure"],
        ),
        (
            "restart done",
            world().with(Set, 5, Running).and(|w| {
                w.desired.restarts = 1;
                w.memory.begun.restarts = 1;
            }),
            &[],
        ),
        (
            "volume grows",
            world().with(Set, 5, Running).and(|w| w.volume.size_bytes = 11),
            &["volume", "tell set"],
        ),
        (
            "next body",
            world().with(Set, 5, Running).and(|w| w.desired.next_body = Some(body_of(Vm))),
            &["prepare next"],
        ),
        (
            "next body is ready",
            world().with(Set, 5, Running).and(|w| {
                w.desired.next_body = Some(body_of(Vm));
                w.memory.prepared = Some((Vm, 5));
            }),
            &[],
        ),
        (
            "the volume comes straight from the bin",
            world().and(|w| w.volumes.values_mut().for_each(|v| v.trashed_at = Some(1))),
            &["restore", "volume", "ensure"],
        ),
        ("engine silent", world().and(|w| w.answered.retain(|k| *k != Set)), &[]),
        (
            "the other engine silent, nothing begun there",
            world().and(|w| w.answered.retain(|k| *k != Vm)),
            &["volume", "ensure"],
        ),
        (
            "the other engine silent, something begun there",
            world().and(|w| {
                w.answered.remove(&Vm);
                w.memory.begun.kinds = vec![Vm];
            }),
            &[],
        ),
        (
            "the other kind failed before it had a body",
            world().with(Set, 5, Running).and(|w| w.memory.begun.kinds = vec![Vm, Set]),
            &["remove vm 5"],
        ),
        (
            "the same, with something more urgent to do",
            world().and(|w| w.memory.begun.kinds = vec![Vm, Set]),
            &["volume", "ensure"],
        ),
    ];
    for (what, world, steps) in table {
        assert_eq!(world.plan(), steps, "{what}");
    }
}

#[test]
fn powers() {
    use Power::{Off, On};
    let halted = Power::Paused;
    let saved = Power::Suspended;
    let table: Vec<(Power, BodyKind, ObservedState, &[&str])> = vec![
        (halted, Set, Running, &["ensure"]),
        (halted, Set, Paused, &[]),
        (halted, Set, Stopped, &["volume", "ensure"]),
        (halted, Set, Degraded, &["volume", "ensure"]),
        (halted, Vm, Suspended, &["ensure"]),
        (saved, Vm, Running, &["ensure"]),
        (saved, Vm, Paused, &["ensure"]),
        (saved, Vm, Suspended, &[]),
        // A set's memory stays where it is.
        (saved, Set, Paused, &[]),
        (saved, Set, Running, &["ensure"]),
        (On, Set, Paused, &["ensure"]),
        (On, Vm, Suspended, &["ensure"]),
        (Off, Vm, Suspended, &["stop vm", "detach"]),
        (Off, Set, Paused, &["stop set", "detach"]),
    ];
    for (power, kind, state, steps) in table {
        let world = world().with(kind, 5, state).and(|w| {
            w.desired.power = power;
            w.desired.body = body_of(kind);
        });
        assert_eq!(world.plan(), steps, "{kind} {state:?} should be {power:?}");
    }
    let restart = world().with(Set, 5, Paused).and(|w| w.desired.restarts = 1);
    assert_eq!(restart.plan(), ["stop set", "note", "ensure"]);
}

#[test]
fn plugs_and_rescues() {
    let extra = VolumeId::new();
    let attach = move |w: &mut World| {
        w.desired.attachments.push(AttachmentDesired {
            volume: extra,
            device: "vdb".into(),
            read_only: false,
        });
    };
    let has = move |w: &mut World| w.bodies[0].volumes.push(extra);
    let other = |w: &mut World| {
        let body = ObservedBody { instance: InstanceId::new(), ..w.bodies[0].clone() };
        w.bodies.push(body);
    };
    let running = || world().with(Set, 5, Running);
    let table: Vec<(&str, World, &[&str])> = vec![
        ("a volume joins", running().and(attach), &["ensure"]),
        ("it has joined", running().and(attach).and(has), &[]),
        ("it leaves", running().and(has), &["ensure"]),
        (
            "its own volume is no further one",
            running().and(|w| {
                let own = w.volume.id;
                w.bodies[0].volumes.push(own);
            }),
            &[],
        ),
        (
            "what is on disk takes part in nothing",
            {
                let halted = |w: &mut World| {
                    w.desired.power = Power::Suspended;
                    w.desired.body = body_of(Vm);
                };
                world().with(Vm, 5, Suspended).and(attach).and(halted)
            },
            &[],
        ),
        (
            "a stopped set still holds it",
            { world().with(Set, 5, Stopped).and(has).and(|w| w.desired.power = Power::Off) },
            &["stop set", "detach"],
        ),
        (
            "a rescue begins",
            running().and(|w| w.desired.rescue = Some(body_of(Set))),
            &["stop set", "ensure"],
        ),
        (
            "a rescue runs",
            running().and(|w| {
                w.desired.rescue = Some(body_of(Set));
                w.bodies[0].rescued = true;
            }),
            &[],
        ),
        ("a rescue ends", running().and(|w| w.bodies[0].rescued = true), &["stop set", "ensure"]),
    ];
    for (what, world, steps) in table {
        assert_eq!(world.plan(), steps, "{what}");
    }
    // Another instance's body has not let go of it yet.
    let mut waits = running().and(attach).and(other);
    waits.bodies[1].volumes = vec![extra];
    assert_eq!(waits.plan(), Vec::<String>::new());
    waits.bodies[0].state = Stopped;
    assert_eq!(waits.plan(), Vec::<String>::new());
    waits.bodies[1].volumes.clear();
    assert_eq!(waits.plan(), ["volume", "ensure"]);
}

#[test]
fn a_blank_volume_is_made_while_the_containers_are() {
    let gone = |w: &mut World| {
        w.volume.made = false;
        w.volumes.clear();
    };
    let vm = |w: &mut World| w.desired.body = body_of(Vm);
    let copy = |w: &mut World| w.volume.source = Some(VolumeSource::Volume(VolumeId::new()));
    let on_root = |w: &mut World| w.desired.root_volume = Some(VolumeId::new());
    let missed = |w: &mut World| w.volume.made = true;
    let unfinished = |w: &mut World| {
        let half = ObservedVolume { complete: false, ..observed_volume(&w.volume) };
        w.volumes.insert(w.volume.id.0, half);
    };
    for (what, world, steps) in [
        ("blank and absent", world().and(gone), vec!["ensure with volume"]),
        ("of a VM, which has it from its start on", world().and(gone).and(vm), vec!["volume", "ensure"]),
        ("a copy takes long", world().and(gone).and(copy), vec!["volume", "ensure"]),
        ("beside a root volume", world().and(gone).and(on_root), vec!["volume", "ensure"]),
        ("it was there once", world().and(gone).and(missed), vec!["volume", "ensure"]),
        ("half made", world().and(gone).and(unfinished), vec!["volume", "ensure"]),
    ] {
        assert_eq!(world.plan(), steps, "{what}");
    }
}

#[test]
fn volumes_and_snapshots() {
    let mut ordered =
        VolumeDesired { id: VolumeId::new(), size_bytes: 10, made: false, source: None, trashed_at: None };
    let plan = |ordered: &VolumeDesired, seen: Option<&ObservedVolume>, used| -> Vec<String> {
        volume(ordered, seen, used).iter().map(name).collect()
    };
    let mut seen = observed_volume(&ordered);
    seen.device = None;
    assert_eq!(plan(&ordered, None, false), ["volume"]);
    assert!(plan(&ordered, Some(&seen), false).is_empty());
    seen.device = Some("/dev/x".into());
    assert_eq!(plan(&ordered, Some(&seen), false), ["detach"]);
    assert!(plan(&ordered, Some(&seen), true).is_empty(), "a body that is on its way out still holds it");
    ordered.trashed_at = Some(jiff::Timestamp::UNIX_EPOCH);
    assert_eq!(plan(&ordered, Some(&seen), false), ["trash"]);
    assert!(plan(&ordered, None, false).is_empty());
    seen.trashed_at = Some(0);
    assert!(plan(&ordered, Some(&seen), false).is_empty());
    ordered.trashed_at = None;
    seen.device = None;
    assert_eq!(plan(&ordered, Some(&seen), false), ["restore"]);

    let mut order = SnapshotDesired { id: SnapshotId::new(), volume: ordered.id, made: false };
    assert_eq!(snapshot(&order, None), [Step::TakeSnapshot]);
    order.made = true;
    assert!(snapshot(&order, None).is_empty(), "a lost snapshot is not taken anew of later bytes");
}

#[test]
fn only_tombstones_bury_and_only_when_every_engine_has_answered() {
    let w = world().with(Set, 4, Running);
    let id = w.desired.id;
    let mut seen = Observed { bodies: &w.bodies, answered: &w.answered, volumes: None };
    let begun = Begun { kinds: vec![Set], ..Begun::default() };
    let steps = |epoch, seen: &Observed<'_>, begun: &Begun| -> Vec<_> {
        burial(id, epoch, seen, begun).iter().map(name).collect()
    };
    assert_eq!(steps(4, &seen, &begun), ["stop set", "bury set 4"]);
    assert!(steps(3, &seen, &begun).is_empty(), "a tombstone for an older epoch spares the newer body");
    let both = Begun { kinds: vec![Set, Vm], ..Begun::default() };
    let left = ["stop set", "bury set 4", "bury vm 4"];
    assert_eq!(steps(4, &seen, &both), left, "a kind that never had a body may have left files");

    let volume = Tombstone::Volume { id: w.volume.id };
    let desired = HostDesired {
        tombstones: vec![Tombstone::Instance { id, epoch: 4 }, Tombstone::Instance { id, epoch: 3 }, volume],
        ..HostDesired::empty(HostId::new())
    };
    let begun = |_| begun.clone();
    let idle = BTreeSet::new();
    assert_eq!(buried(&desired, &seen, &idle, begun), [Tombstone::Instance { id, epoch: 3 }]);
    let neither = Observed { bodies: &[], answered: &w.answered, volumes: None };
    assert!(buried(&desired, &neither, &idle, begun).is_empty(), "its files have not been looked after");
    let both = [Tombstone::Instance { id, epoch: 4 }, Tombstone::Instance { id, epoch: 3 }];
    assert_eq!(buried(&desired, &neither, &idle, |_| Begun::default()), both);
    let silent = BTreeSet::from([Vm]);
    seen.answered = &silent;
    assert!(buried(&desired, &seen, &idle, begun).is_empty(), "a silent engine may still hold it");
    let nothing = BTreeMap::new();
    seen.volumes = Some(&nothing);
    assert_eq!(buried(&desired, &seen, &idle, begun), [volume]);
    seen = Observed { bodies: &[], answered: &w.answered, volumes: Some(&nothing) };
    let never = |_| Begun::default();
    assert_eq!(buried(&desired, &seen, &idle, never), desired.tombstones);
    let making = BTreeSet::from([Item::Instance(id), Item::Volume(w.volume.id)]);
    assert!(buried(&desired, &seen, &making, never).is_empty(), "what is under way may yet bring it about");
}

#[test]
fn what_comes_here_is_made_ready_once_and_never_started() {
    let w = world();
    let coming = w.desired.clone();
    let nothing = Observed { bodies: &[], answered: &w.answered, volumes: None };
    let memory = |prepared| Remembered { prepared, ..Remembered::default() };
    assert_eq!(expected(&coming, &nothing, &memory(None), true), [Step::PrepareExpected]);
    let ready = memory(Some((coming.body.kind(), coming.epoch)));
    assert!(expected(&coming, &nothing, &ready, true).is_empty());
    let older = memory(Some((coming.body.kind(), coming.epoch - 1)));
    assert_eq!(expected(&coming, &nothing, &older, true), [Step::PrepareExpected]);
    assert!(
        expected(&coming, &nothing, &memory(None), false).is_empty(),
        "not before the controller has spoken"
    );
    let silent = BTreeSet::new();
    let unknown = Observed { answered: &silent, ..nothing };
    assert!(expected(&coming, &unknown, &memory(None), true).is_empty());
}

#[test]
fn the_last_pass_finds_nothing_running_and_keeps_the_volumes() {
    let copies = |last| {
        move |w: &mut World| {
            w.desired.power = if last { Power::Off } else { Power::On };
            w.desired.copying = Some(amphi_api::wire::CopyingDesired {
                exchange: amphi_api::ExchangeId::new(),
                to: HostId::new(),
                address: "10.0.0.2:7445".parse().unwrap(),
                epoch: 6,
                pass: 1,
                last,
                volumes: vec![w.volume.id],
                root: false,
                over: false,
            });
        }
    };
    let bytes = |w: &World| !super::bytes(&w.desired, &w.seen(), false).is_empty();
    let running = world().with(Set, 5, Running);
    assert!(bytes(&running.and(copies(false))), "while it runs");
    let halting = world().with(Set, 5, Running).and(copies(true));
    assert!(!bytes(&halting), "not the last one");
    assert_eq!(halting.plan()[0], "stop set");
    let still = world().with(Set, 5, Stopped).and(copies(true));
    assert!(bytes(&still));
    assert!(still.plan().is_empty(), "and nobody detaches under it: {:?}", still.plan());
    assert!(super::bytes(&still.desired, &still.seen(), true).is_empty(), "once");
}

#[test]
fn a_twin_is_made_whole_and_kept() {
    use BodyKind::{Set, Vm};
    use ObservedState::{Running, Stopped};
    let made = |prepared| Remembered { prepared, ..Remembered::default() };
    let says = |w: &World, memory: &Remembered| -> Vec<String> {
        let twin = InstanceDesired { twin: true, ..w.desired.clone() };
        let seen = Observed { bodies: &w.bodies, answered: &w.answered, volumes: None };
        expected(&twin, &seen, memory, true).iter().map(name).collect()
    };
    let (never, ready) = (made(None), made(Some((Set, 5))));
    let table: Vec<(&str, World, &Remembered, &[&str])> = vec![
        ("nothing is there", world(), &never, &["prepare what comes"]),
        ("it is there", world().with(Set, 5, Stopped), &ready, &[]),
        ("the agent has begun anew", world().with(Set, 5, Stopped), &never, &["prepare what comes"]),
        ("somebody removed it", world(), &ready, &["prepare what comes"]),
        ("of an older epoch", world().with(Set, 4, Stopped), &never, &["remove set 4", "prepare what comes"]),
        ("of the other kind", world().with(Vm, 5, Stopped), &never, &["remove vm 5", "prepare what comes"]),
        ("a body runs: somebody else's business", world().with(Set, 4, Running), &never, &[]),
        ("of a newer epoch", world().with(Set, 6, Stopped), &never, &[]),
    ];
    for (what, w, memory, steps) in table {
        assert_eq!(says(&w, memory), steps, "{what}");
    }
    // What comes by a move does not touch what stands there of an older epoch.
    let w = world().with(Set, 4, Stopped);
    let seen = Observed { bodies: &w.bodies, answered: &w.answered, volumes: None };
    assert!(expected(&w.desired, &seen, &never, true).is_empty());
}

#[test]
fn members_of_another_description_are_prepared_and_then_swapped() {
    use amphi_api::instance::{ComingMember, MemberStatus};
    use amphi_api::wire::MemberDesired;
    let sees = |change: fn(&mut MemberStatus)| {
        move |w: &mut World| {
            let mut web = MemberStatus { name: "web".into(), running: true, ..MemberStatus::default() };
            change(&mut web);
            w.bodies[0].members = vec![web];
            let ordered = MemberDesired { generation: 2, former: Some(1), restarts: 0 };
            w.desired.members.insert("web".into(), ordered);
        }
    };
    let running = || world().with(BodyKind::Set, 5, ObservedState::Running);
    let table: Vec<(&str, Vec<String>, Vec<&str>)> = vec![
        ("as ordered", running().and(sees(|m| m.generation = 2)).plan(), vec![]),
        (
            "as ordered, the former one kept",
            running().and(sees(|m| (m.generation, m.former) = (2, Some(1)))).plan(),
            vec![],
        ),
        ("another one", running().and(sees(|m| m.generation = 1)).plan(), vec!["prepare update", "ensure"]),
        (
            "one that nobody keeps",
            running().and(sees(|m| (m.generation, m.former) = (2, Some(0)))).plan(),
            vec!["prepare update", "ensure"],
        ),
        (
            "one beside it",
            running()
                .and(sees(|m| {
                    (m.generation, m.coming) =
                        (2, Some(ComingMember { generation: 3, ..Default::default() }));
                }))
                .plan(),
            vec!["prepare update", "ensure"],
        ),
        (
            "a rescue has members of its own",
            running()
                .and(sees(|m| m.generation = 0))
                .and(|w| {
                    w.bodies[0].rescued = true;
                    w.desired.rescue = Some(w.desired.body.clone());
                })
                .plan(),
            vec![],
        ),
    ];
    for (what, plan, wanted) in table {
        assert_eq!(plan, wanted, "{what}");
    }
}

#[test]
fn a_member_is_restarted_once() {
    use amphi_api::instance::MemberStatus;
    use amphi_api::wire::MemberDesired;
    let status = |name: &str, started_at_us: Option<i64>| MemberStatus {
        name: name.into(),
        started_at_us,
        running: started_at_us.is_some(),
        ..MemberStatus::default()
    };
    let ordered = |web: Option<u64>, db: u64, state: Option<ObservedState>, runs: &[&str]| {
        let order = |restarts| MemberDesired { restarts, ..MemberDesired::default() };
        let seen = ["db", "web"].map(|name| status(name, runs.contains(&name).then_some(1)));
        let world = state.into_iter().fold(world(), |w, state| w.with(Set, 5, state));
        world.and(|w| {
            w.bodies.iter_mut().for_each(|b| b.members = seen.to_vec());
            w.desired.members = BTreeMap::from([("web".into(), order(2)), ("db".into(), order(db))]);
            w.memory.begun.members = web.map(|n| ("web".to_owned(), n)).into_iter().collect();
        })
    };
    let both: &[&str] = &["web", "db"];
    let one = ["restart web", "note members", "ensure"];
    let made = ["volume", "note members", "ensure"];
    assert_eq!(ordered(None, 0, Some(Running), both).plan(), one);
    assert_eq!(ordered(Some(1), 0, Some(Running), both).plan(), one);
    assert_eq!(ordered(Some(1), 0, Some(Degraded), both).plan(), one);
    assert!(ordered(Some(2), 0, Some(Running), both).plan().is_empty());
    assert_eq!(ordered(Some(2), 0, Some(Degraded), both).plan(), ["volume", "ensure"], "its start failed");
    assert_eq!(ordered(Some(1), 0, Some(Stopped), both).plan(), made, "a start is one");
    assert_eq!(ordered(None, 3, None, &[]).plan(), made, "on a host that has no counts");
    assert_eq!(ordered(None, 3, Some(Degraded), &[]).plan(), made, "nobody has run yet");
    assert_eq!(ordered(None, 3, Some(Degraded), &["web"]).plan(), one, "db has not run yet");
    assert_eq!(
        ordered(None, 3, Some(Running), both).plan(),
        ["restart db", "note members", "restart web", "note members", "ensure"]
    );
    let begun = |world: World| {
        let steps = instance(&world.desired, &[&world.volume], &world.seen(), &world.memory, true);
        let noted = steps.into_iter().filter_map(|step| match step {
            Step::NoteMemberRestarts { members } => Some(members),
            _ => None,
        });
        noted.collect::<Vec<_>>()
    };
    let counts = |all: &[(&str, u64)]| -> BTreeMap<String, u64> {
        all.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect()
    };
    assert_eq!(
        begun(ordered(Some(1), 3, Some(Running), both)),
        [counts(&[("db", 3), ("web", 1)]), counts(&[("db", 3), ("web", 2)])],
        "only who was ended is written down"
    );
    let whole = ordered(None, 0, Some(Running), both).and(|w| w.desired.restarts = 1);
    assert_eq!(whole.plan(), ["stop set", "note members", "note", "ensure"], "of all of it");
}
