//! What a description says of members comes true on a real dockerd, field by field; who waits for whom; what probes,
//! hooks and policies do.

use crate::common::engines::DOCKER_SOCKET;
use crate::common::{DEADLINE, PrivateHost, eventually, exists, on_private_host};
use crate::drivers::{port, serve_plugin};
use crate::stage::Stage;
use amphi_api::instance::MemberStatus;
use amphi_api::streams::{ExecSpec, StreamTarget};
use amphi_api::{NetworkId, VolumeId};
use amphi_hostsrv::instance::set::{SetDriver, SetOptions};
use amphi_hostsrv::instance::streams::BodyStreams;
use amphi_hostsrv::instance::{BodyDriver, BodyPlan, ObservedBody, ObservedState, Remains, VolumeAttachment};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// Stays, and ends in order.
const STAY: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done";

/// A stage whose volumes lie where the agent looks for them.
pub fn stage(host: &mut PrivateHost) -> (Stage<'_>, Runtime) {
    host.start_switch();
    let dir = host.dir.clone();
    let plugin_runtime = Runtime::new().expect("a runtime");
    serve_plugin(&plugin_runtime, &dir);
    let mut stage = Stage::new(host);
    let driver = {
        let _context = stage.runtime.enter();
        SetDriver::new(DOCKER_SOCKET, &dir, stage.bell.clone(), SetOptions::default()).expect("a driver")
    };
    stage.driver = driver;
    (stage, plugin_runtime)
}

/// Ensures at every ring until it is as wanted: what the reconciler does.
fn settles(
    stage: &Stage,
    plan: &BodyPlan,
    what: &str,
    wanted: impl Fn(&ObservedBody) -> bool,
) -> ObservedBody {
    let end = Instant::now() + DEADLINE;
    loop {
        let ensured = stage.runtime.block_on(stage.driver.ensure(plan));
        let body = stage.observe().expect("a body");
        if wanted(&body) {
            return body;
        }
        let left = end.saturating_duration_since(Instant::now());
        let rang = stage.runtime.block_on(async { tokio::time::timeout(left, stage.bell.notified()).await });
        assert!(rang.is_ok(), "{what}: the bell stays silent; last seen {body:?}, {ensured:?}");
    }
}

fn runs(body: &ObservedBody) -> bool {
    body.state == ObservedState::Running
}

fn member<'a>(body: &'a ObservedBody, name: &str) -> &'a MemberStatus {
    body.members.iter().find(|member| member.name == name).expect("the member")
}

pub fn says(stage: &Stage, plan: &BodyPlan, member: &str, command: &str) -> String {
    stage.host.docker(&["exec", &stage.container(plan, member), "/bin/sh", "-c", command])
}

fn stays(name: &str, index: u32, more: Value) -> Value {
    let mut member = json!({"index": index, "name": name, "image": "x", "command": ["/bin/sh", "-c", STAY]});
    for (key, value) in more.as_object().expect("an object") {
        member[key] = value.clone();
    }
    member
}

#[test]
fn a_member_gets_what_its_description_says() {
    on_private_host("described::a_member_gets_what_its_description_says", |host| {
        let dir = host.dir.clone();
        let (stage, _plugin) = stage(host);
        let mut plan = stage.plan(json!({
            "anchor": {"dns": {"servers": ["10.7.0.53"], "search": ["svc.example", "example"], "options": ["ndots:2"]},
                       "hosts": {"db.example": "10.7.0.99"}, "timezone": "Asia/Tokyo", "shm_mib": 24},
            "members": [
                stays("db", 10, json!({
                    "user": "999:998", "directory": "/srv", "options": {"cpu": 50, "heap_mib": 50},
                    "ulimits": {"nofile": {"soft": 1234, "hard": 2345}},
                    "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
                    "read_only": true,
                    "tmpfs": [{"path": "/run", "size_mib": 3, "mode": "0777"}],
                    "files": [{"path": "/etc/db/db.conf", "content": "a = 1\n", "mode": "0440", "uid": 999, "gid": 998}],
                    "mounts": [{"path": "/var/lib/db", "sub_path": "db/data"}],
                    "log": {"max_size_mib": 3, "max_files": 4},
                    "hooks": {"post_start": {"command": ["/bin/sh", "-c", "echo post > /var/lib/db/post"]},
                              "pre_stop": {"command": ["/bin/sh", "-c", "echo pre > /var/lib/db/pre"]}},
                    "stop": {"signal": "SIGINT", "grace_s": 30},
                    "command": ["/bin/sh", "-c",
                        "trap 'echo int > /var/lib/db/int; exit 0' INT; while :; do sleep 1000 & wait; done"]})),
                {"index": 20, "name": "rest", "image": "x", "args": ["/bin/sh", "-c", STAY], "env": {"TZ": "UTC"},
                 "mounts": [{"path": "/all", "read_only": true}]},
            ],
        }));
        plan.ports = vec![port(NetworkId::new(), 5, true)];
        let volume = VolumeId::new();
        plan.volume = Some(VolumeAttachment { id: volume, device: PathBuf::new(), mount: None });
        stage.run(stage.driver.ensure(&plan));
        stage.running();

        let db = |command: &str| says(&stage, &plan, "db", command);
        let rest = |command: &str| says(&stage, &plan, "rest", command);
        assert_eq!(db("id -u; id -g; pwd"), "999\n998\n/srv");
        // Of the member's own process: in a command that is run in it, runc's runtime now and then raises the soft one again.
        assert_eq!(db("awk '/open files/ {print $4, $5}' /proc/1/limits"), "1234 2345");
        let container = stage.container(&plan, "db");
        let caps = stage.host.docker(&["exec", "-u", "0", &container, "grep", "CapEff", "/proc/self/status"]);
        assert_eq!(caps.split_whitespace().last(), Some("0000000000001000"), "CAP_NET_ADMIN alone");
        assert!(stage.host.docker_refused(&["exec", &container, "touch", "/srv/x"]).contains("Read-only"));
        assert_eq!(db("touch /run/x && df -k /run | awk 'END {print $2}'"), "3072");
        assert_eq!(db("stat -c '%a %u:%g' /etc/db/db.conf; cat /etc/db/db.conf"), "440 999:998\na = 1");
        assert!(
            stage
                .host
                .docker_refused(&["exec", "-u", "0", &container, "sh", "-c", "echo > /etc/db/db.conf"])
                .contains("Read-only")
        );
        let limits = "{{.HostConfig.Memory}} {{index .HostConfig.LogConfig.Config \"max-size\"}} {{index .HostConfig.LogConfig.Config \"max-file\"}} {{.HostConfig.RestartPolicy.Name}}";
        let limits = stage.host.docker(&["inspect", "-f", limits, &container]);
        assert_eq!(limits, format!("{} 3m 4 no", 60 << 20), "50 MiB of heap and 20 %");
        assert_eq!(
            stage.inspect(&plan, "rest", ".HostConfig.Memory"),
            (196 << 20).to_string(),
            "what is left"
        );

        // The anchor's, seen by all.
        assert_eq!(db("date +%Z%z"), "JST+0900");
        assert_eq!(rest("date +%Z%z"), "UTC+0000", "a member's own word counts");
        let resolv = "nameserver 10.7.0.53\nsearch svc.example example\noptions ndots:2";
        assert_eq!(rest("cat /etc/resolv.conf").trim_end(), resolv, "nobody inside dockerd is asked");
        assert_eq!(rest("grep -c '10.7.0.99.*db.example' /etc/hosts"), "1");
        assert_eq!(rest("df -k /dev/shm | awk 'END {print $2}'"), (24 << 10).to_string());

        // One part of the volume, which the other sees in the whole and cannot write.
        assert_eq!(db("echo kept > /var/lib/db/file; stat -c %u /var/lib/db"), "999");
        let data = dir.join("volumes").join(volume.to_string()).join("db/data");
        assert_eq!(std::fs::read_to_string(data.join("file")).expect("written"), "kept\n");
        assert_eq!(rest("cat /all/db/data/file"), "kept");
        assert!(
            stage
                .host
                .docker_refused(&["exec", &stage.container(&plan, "rest"), "touch", "/all/x"])
                .contains("Read-only")
        );
        assert!(data.join("post").exists() && !data.join("pre").exists());

        // Nobody logs in to the anchor.
        for member in ["anchor", "ANCHOR", ""] {
            let exec = ExecSpec {
                member: Some(member.to_owned()),
                command: vec!["sh".to_owned()],
                ..ExecSpec::default()
            };
            for target in [
                StreamTarget::Exec(exec),
                StreamTarget::Console { member: Some(member.to_owned()), size: None },
            ] {
                let refused = stage.runtime.block_on(stage.driver.open(plan.instance, &target)).err();
                assert!(refused.is_some_and(|e| e.to_string().contains("no such container")), "{member}");
            }
        }

        // Its own signal, after what runs before it; and what was mounted goes with the volume.
        stage.run(stage.driver.stop(plan.instance, Duration::from_secs(2)));
        for file in ["pre", "int"] {
            assert!(data.join(file).exists(), "{file}");
        }
        assert!(!dir.join("parts").join(plan.instance.to_string()).exists());
        stage.run(stage.driver.ensure(&plan));
        assert_eq!(says(&stage, &plan, "db", "cat /var/lib/db/file"), "kept");
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        assert!(data.join("file").exists(), "removing a set takes nothing from its volume");

        // A way out of the volume is no way.
        let mut evil = stage.plan(
            json!({"members": [stays("a", 0, json!({"mounts": [{"path": "/x", "sub_path": "out"}]}))]}),
        );
        evil.volume = plan.volume.clone();
        std::os::unix::fs::symlink("/etc", dir.join("volumes").join(volume.to_string()).join("out"))
            .expect("a link");
        let refused = stage.refused(stage.driver.ensure(&evil));
        assert!(refused.to_string().contains("is a link or a file"), "{refused}");
        stage.run(stage.driver.remove(evil.instance, 5, Remains::Nothing));
        // What the host does not have is said.
        let zone = stage
            .plan(json!({"anchor": {"timezone": "Mars/Olympus"}, "members": [stays("a", 0, json!({}))]}));
        let refused = stage.refused(stage.driver.ensure(&zone));
        assert!(refused.to_string().contains("no time zone 'Mars/Olympus'"), "{refused}");
    });
}

#[test]
fn members_wait_for_each_other_and_are_asked() {
    on_private_host("described::members_wait_for_each_other_and_are_asked", |host| {
        let dir = host.dir.clone();
        let (stage, _plugin) = stage(host);
        let volume = VolumeId::new();
        let on_volume = |name: &str| dir.join("volumes").join(volume.to_string()).join(name);
        let job = json!({"index": 10, "name": "job", "image": "x", "restart": "on_failure", "next_when": "finished",
            "command": ["/bin/sh", "-c", "[ -e /data/go ] || { touch /data/tried; exit 3; }"]});
        let served = "while [ ! -e /data/serve ]; do sleep 0.1; done; mkdir -p /www; echo ok > /www/up; exec httpd -f -p 8080 -h /www";
        let http = json!({"readiness": {"http": {"port": 8080, "path": "/up"}, "period_s": 1},
            "liveness": {"exec": ["/bin/sh", "-c", "test ! -e /data/sick"], "period_s": 1, "timeout_s": 10, "failures": 2}});
        let tcp = json!({"startup": {"tcp": {"port": 9090}, "period_s": 1, "failures": 60}});
        let mut plan = stage.plan(json!({"members": [
            job,
            stays("web", 20, json!({"command": ["/bin/sh", "-c", served], "probes": http})),
            stays("port", 30, json!({"command": ["/bin/sh", "-c", "while :; do nc -l -p 9090 </dev/null; done"], "probes": tcp})),
            stays("last", 40, json!({"restart": "never"})),
        ]}));
        plan.volume = Some(VolumeAttachment { id: volume, device: PathBuf::new(), mount: None });

        let body =
            settles(&stage, &plan, "the job has failed", |body| member(body, "job").exit_code == Some(3));
        assert!(
            body.trouble.as_deref().is_some_and(|t| t.contains("member web waits for job to finish")),
            "{body:?}"
        );
        assert!(exists(on_volume("tried")).is_ok());
        std::fs::write(on_volume("go"), "").expect("written");
        let body = settles(&stage, &plan, "the job is done", |body| member(body, "web").running);
        let done = member(&body, "job");
        assert_eq!((done.finished, done.running, done.exit_code), (true, false, Some(0)), "{body:?}");
        // It starts again a second after it has failed, and on a busy machine a second time before it is let.
        let tries = done.restarts;
        assert!(tries >= 1, "{body:?}");
        assert_eq!(member(&body, "web").ready, Some(false), "{body:?}");
        let waits = "member port waits for web to be ready";
        assert!(body.trouble.as_deref().is_some_and(|t| t.contains(waits)), "{body:?}");
        let asked = settles(&stage, &plan, "web is asked", |body| member(body, "web").reason.is_some());
        assert!(
            member(&asked, "web").reason.as_deref().is_some_and(|r| r.contains("127.0.0.1:8080")),
            "{asked:?}"
        );

        std::fs::write(on_volume("serve"), "").expect("written");
        let body = settles(&stage, &plan, "all of it", runs);
        assert_eq!(
            (member(&body, "web").ready, member(&body, "port").ready, member(&body, "last").ready),
            (Some(true), Some(true), None)
        );
        let starts: Vec<i64> = body.members.iter().map(|m| m.started_at_us.expect("started")).collect();
        assert!(starts.is_sorted(), "{body:?}");
        let before = stage.fingerprint();
        stage.run(stage.driver.ensure(&plan));
        assert_eq!(stage.fingerprint(), before, "nothing is started twice");

        // What fails is ended and starts again; nobody else is touched.
        std::fs::write(on_volume("sick"), "").expect("written");
        let body = settles(&stage, &plan, "web is ended", |body| {
            member(body, "web").reason.as_deref().is_some_and(|r| r.contains("liveness probe failed 2 times"))
        });
        assert_eq!(member(&body, "last").restarts, 0);
        std::fs::remove_file(on_volume("sick")).expect("removed");
        let body = settles(&stage, &plan, "web is back", |body| {
            runs(body) && member(body, "web").ready == Some(true)
        });
        assert!(member(&body, "web").restarts >= 1, "{body:?}");
        assert_eq!((member(&body, "port").restarts, member(&body, "job").restarts), (0, tries));

        // One that is never started again stays so, and is told.
        stage.host.docker(&["kill", &stage.container(&plan, "last")]);
        let body = settles(&stage, &plan, "last has ended", |body| member(body, "last").finished);
        assert_eq!(
            body.trouble.as_deref(),
            Some("member last ended with exit code 137 and is not to start again")
        );
        // A set that is stopped and started runs all of it again, the job first.
        std::fs::remove_file(on_volume("tried")).expect("removed");
        stage.run(stage.driver.stop(plan.instance, Duration::from_secs(5)));
        settles(&stage, &plan, "all of it again", runs);

        // A hook that fails is told, and the member has failed.
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
        let hooked = stage.plan(json!({"members": [
            stays("a", 0, json!({"hooks": {"post_start": {"command": ["/bin/sh", "-c", "echo no such table; exit 4"]}}}))]}));
        let refused = stage.refused(stage.driver.ensure(&hooked));
        assert!(refused.to_string().contains("post_start failed: exit code 4: no such table"), "{refused}");
        eventually("the member is ended", || match stage.observe() {
            Some(body) if !body.members[0].running => Ok(()),
            other => Err(format!("{other:?}")),
        });
    });
}
