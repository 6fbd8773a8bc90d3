//! A dockerd with a driver beside it, an image that only the cache holds, and what tests ask of them.

use crate::common::engines::{BUSYBOX, DOCKER_SOCKET};
use crate::common::{DEADLINE, PrivateHost, eventually};
use amphi_api::image::{Blob, BlobRole, Image, ImageFormat, ImageState};
use amphi_api::instance::Power;
use amphi_api::set::SetSpec;
use amphi_api::wire::BodyDesired;
use amphi_api::{ImageId, InstanceId, ProjectId};
use amphi_hostsrv::instance::set::{SetDriver, SetLimits, SetOptions};
use amphi_hostsrv::instance::{
    Bell, BodyDriver, BodyPlan, CachedImage, DriverError, ObservedBody, ObservedState,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Prints what a program sees at its first instruction, then stays; ends in order on SIGTERM.
const MEMBER: &str = "echo $NAME net $(readlink /proc/self/ns/net) ipc $(readlink /proc/self/ns/ipc) \
    backlog $(cat /proc/sys/net/core/somaxconn) on $(hostname) \
    eth0 $(ip -o -4 addr show eth0 2>/dev/null | awk '{print $4}') $(cat /sys/class/net/eth0/address 2>/dev/null); \
    echo to stderr >&2; trap 'echo bye; exit 0' TERM; while :; do sleep 1000 & wait; done";

pub struct Stage<'a> {
    pub host: &'a mut PrivateHost,
    pub runtime: Runtime,
    pub bell: Bell,
    pub driver: SetDriver,
    pub image: CachedImage,
}

impl<'a> Stage<'a> {
    pub fn new(host: &'a mut PrivateHost) -> Stage<'a> {
        host.start_docker();
        let archive = host.path("image.tar");
        host.docker(&["save", "-o", &archive.display().to_string(), BUSYBOX]);
        host.docker(&["rmi", BUSYBOX]);
        let runtime = Runtime::new().expect("a runtime");
        let bell = Bell::default();
        let driver = driver(host, &runtime, &bell);
        Stage { host, runtime, bell, driver, image: image(archive) }
    }

    pub fn run<T>(&self, work: impl Future<Output = Result<T, DriverError>>) -> T {
        self.runtime.block_on(work).unwrap_or_else(|error| panic!("{}: {error}", error.code()))
    }

    pub fn refused<T>(&self, work: impl Future<Output = Result<T, DriverError>>) -> DriverError {
        self.runtime.block_on(work).err().expect("this must not work")
    }

    pub fn observe(&self) -> Option<ObservedBody> {
        let mut bodies = self.run(self.driver.observe());
        assert!(bodies.len() <= 1, "{bodies:?}");
        bodies.pop()
    }

    /// Waits for the bell until the body is as wanted: what the reconciler does.
    pub fn rings_until(&self, what: &str, wanted: impl Fn(&ObservedBody) -> bool) -> ObservedBody {
        let end = Instant::now() + DEADLINE;
        loop {
            let body = self.observe().expect("a body");
            if wanted(&body) {
                return body;
            }
            let rang = self.runtime.block_on(async {
                tokio::time::timeout(end.saturating_duration_since(Instant::now()), self.bell.notified())
                    .await
            });
            assert!(rang.is_ok(), "{what}: the bell stays silent; last seen {body:?}");
        }
    }

    pub fn running(&self) -> ObservedBody {
        let body = self.observe().expect("a body");
        assert_eq!((body.state, &body.trouble), (ObservedState::Running, &None), "{body:?}");
        let starts: Vec<i64> = body.members.iter().map(|m| m.started_at_us.expect("started")).collect();
        assert!(body.members.iter().all(|member| member.running), "{body:?}");
        if body.members.iter().all(|member| member.restarts == 0) {
            assert!(starts.is_sorted(), "members start in order of index: {body:?}");
        }
        body
    }

    /// Container ids and start times: the same where nothing was touched.
    pub fn fingerprint(&self) -> String {
        let ids = self.host.docker(&["ps", "-aq", "--no-trunc"]);
        let mut args = vec!["inspect", "-f", "{{.Name}} {{.Id}} {{.State.StartedAt}} {{.State.Status}}"];
        args.extend(ids.lines());
        self.host.docker(&args)
    }

    pub fn container(&self, plan: &BodyPlan, member: &str) -> String {
        format!("amphi-{}-{member}", plan.instance)
    }

    pub fn inspect(&self, plan: &BodyPlan, member: &str, field: &str) -> String {
        self.host.docker(&["inspect", "-f", &format!("{{{{{field}}}}}"), &self.container(plan, member)])
    }

    pub fn plan(&self, set: Value) -> BodyPlan {
        let set: SetSpec = serde_json::from_value(set).expect("a set");
        set.check().expect("a sound set");
        let set = set.normalized();
        let images = set.members.iter().map(|_| self.image.image.clone()).collect();
        BodyPlan {
            members: Default::default(),
            instance: InstanceId::new(),
            project: ProjectId::new(),
            name: "Web 1".to_owned(),
            epoch: 5,
            vcpus: 4,
            memory_mib: 256,
            power: Power::On,
            rescue: None,
            root: 1,
            root_volume: None,
            attachments: Vec::new(),
            body: BodyDesired::Set { set, images },
            ports: Vec::new(),
            volume: None,
            images: BTreeMap::from([(self.image.image.id, self.image.clone())]),
            user_data: None,
            ssh_keys: Vec::new(),
            metadata: BTreeMap::new(),
            twin: false,
        }
    }

    pub fn usual_plan(&self) -> BodyPlan {
        self.plan(json!({
            "anchor": {"sysctls": {"net.core.somaxconn": "777"}},
            "members": [
                {"index": 20, "name": "late", "image": "x", "command": ["/bin/sh", "-c", MEMBER],
                 "env": {"NAME": "late"}, "options": {"cpu": 20, "mem": 25}},
                {"index": 10, "name": "early", "image": "x", "command": ["/bin/sh", "-c", MEMBER],
                 "env": {"NAME": "early"}, "options": {"cpu": 80, "mem": 75}},
            ],
        }))
    }

    /// The anchor and its members are in the same network and IPC namespaces. (The kernel gives a dead namespace's
    /// number to the next, so comparing with an earlier one says nothing.)
    pub fn one_namespace(&self, plan: &BodyPlan) {
        let of = |member| {
            let pid = self.inspect(plan, member, ".State.Pid");
            ["net", "ipc"]
                .map(|kind| std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).expect("a process"))
        };
        let anchor = of("anchor");
        assert_eq!((of("early"), of("late")), (anchor.clone(), anchor));
    }

    /// What the member printed at its last start, as words.
    pub fn first_words(&self, plan: &BodyPlan, member: &str) -> Vec<String> {
        eventually(&format!("{member} prints"), || {
            let log = self.run(self.driver.console_log(plan.instance, Some(member), 100));
            let line = log.lines().rfind(|line| line.starts_with(member)).map(str::to_owned);
            line.map(|line| line.split(' ').map(str::to_owned).collect()).ok_or(log)
        })
    }
}

pub fn driver(host: &PrivateHost, runtime: &Runtime, bell: &Bell) -> SetDriver {
    let _context = runtime.enter();
    let limits =
        SetLimits { ping: Duration::from_secs(2), call: Duration::from_secs(5), ..Default::default() };
    let options = SetOptions { limits, ..SetOptions::default() };
    SetDriver::new(DOCKER_SOCKET, host.path("agent"), bell.clone(), options).expect("a driver")
}

pub fn image(archive: PathBuf) -> CachedImage {
    let bytes = std::fs::read(&archive).expect("an archive");
    let blob = Blob { sha256: format!("{:064x}", bytes.len()), size: bytes.len() as u64 };
    CachedImage {
        image: Image {
            id: ImageId::new(),
            project: ProjectId::new(),
            name: "busybox".to_owned(),
            format: ImageFormat::DockerArchive,
            cmdline: String::new(),
            state: ImageState::Active,
            layers: Vec::new(),
            blobs: BTreeMap::from([(BlobRole::Archive, blob)]),
            created_at: "2026-01-01T00:00:00Z".parse().expect("a time"),
        },
        blobs: BTreeMap::from([(BlobRole::Archive, archive)]),
    }
}
