//! Groups: fifty instances of one, scaled up and down while the controller dies over and over; and on real engines the life
//! of a service: behind its endpoints, updated under load, healed, scaled by a number.

use amphi_api::client::Client;
use amphi_api::group::{Group, GroupCreate, GroupState, GroupUpdate, MetricPost, RolloutState};
use amphi_api::host::{HostState, JoinTokenCreate};
use amphi_api::instance::InstanceState;
use amphi_api::{InstanceId, ScalingGroupId};
use amphi_integration::alone::agent::{Agent, Home, Size};
use amphi_integration::alone::{Controller, furnish};
use amphi_integration::engines::{EnginePort, HostEngines, Registry};
use amphi_integration::failing::{PATIENCE, Stage, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::run;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);

/// A controller and three hosts in memory.
struct Small {
    client: Client,
    controller: Controller,
    agents: Vec<Agent>,
    engines: Vec<Arc<HostEngines>>,
    registry: Arc<Registry>,
    kills: u32,
}

impl Small {
    async fn raise() -> Result<Self> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
        let folder = program.with_file_name(format!("groups-{}", std::process::id()));
        let settings = "recycle_hours = 0\n[failover]\nautomatic = false\n";
        let programs = program.parent().context("the program has no directory")?;
        let controller = Controller::start_in(programs, folder, settings)?;
        let client = Client::new(controller.url(), &controller.read("admin-token")?)?;
        let registry = Arc::new(Registry::default());
        let (mut agents, mut all) = (Vec::new(), Vec::new());
        for n in 1..=3 {
            let name = format!("h{n}");
            let state = controller.folder().join(&name);
            let size = Size { cpus: 64, memory_mib: 64 << 10 };
            let home = Home { name: name.clone(), run: state.join("run-0"), state, url: None, size };
            let token = client.create_join_token(&JoinTokenCreate::default()).await?.token;
            amphi_hostsrv::join::join(&name, &home.pki(), &token).await?;
            let engines = HostEngines::new(&name, registry.clone(), Duration::from_millis(1));
            agents.push(Agent::start(&home, &EnginePort::Here(engines.clone()))?);
            all.push(engines);
        }
        furnish::furnish(&client, controller.folder(), "net", "10.9.0.0/16").await?;
        let small = Self { client, controller, agents, engines: all, registry, kills: 0 };
        let end = Instant::now() + LIMIT;
        while small.client.hosts().await?.iter().filter(|h| h.state == HostState::Up).count() < 3 {
            ensure!(Instant::now() < end, "the hosts are not up");
            tokio::time::sleep(LOOK).await;
        }
        Ok(small)
    }

    fn kill(&mut self) -> Result<()> {
        self.controller.kill()?;
        self.controller.start_again()?;
        self.kills += 1;
        self.agents.iter_mut().try_for_each(Agent::link)
    }

    /// Until the group is as wanted; the controller dies every so often meanwhile. At no look are there more instances than
    /// the group may have.
    async fn until(
        &mut self,
        id: ScalingGroupId,
        kills: u32,
        most: usize,
        ok: impl Fn(&Group) -> bool,
    ) -> Result<Group> {
        let end = Instant::now() + LIMIT;
        let (mut next, mut left) = (Instant::now() + Duration::from_millis(60), kills);
        loop {
            if left > 0 && Instant::now() >= next {
                left -= 1;
                self.kill()?;
                next = Instant::now() + Duration::from_millis(150 + 70 * u64::from(left));
            }
            let group = match self.client.group(id).await {
                Ok(group) => group,
                Err(error) if error.is_passing() => {
                    ensure!(Instant::now() < end, "the controller does not come back: {error}");
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            ensure!(group.members.len() <= most, "{} members, {most} are allowed", group.members.len());
            let violations = self.registry.violations();
            ensure!(violations.is_empty(), "{}", violations.join("\n"));
            if left == 0 && ok(&group) {
                return Ok(group);
            }
            ensure!(
                Instant::now() < end,
                "not as wanted: {:?} {} of {}, {} leaving, {:?}",
                group.state,
                group.ready,
                group.count,
                group.leaving.len(),
                group.trouble
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Instances are those of the group, each number once.
    async fn exactly(&self, group: &Group) -> Result<()> {
        let instances = self.client.instances().await?;
        let of_group: BTreeSet<InstanceId> = group.members.iter().map(|m| m.instance).collect();
        let there: BTreeSet<InstanceId> = instances.iter().map(|i| i.id).collect();
        ensure!(there == of_group, "{} instances, {} members", there.len(), of_group.len());
        let names: BTreeSet<&str> = instances.iter().map(|i| i.name.as_str()).collect();
        ensure!(names.len() == instances.len(), "two of one name");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_instances_and_a_controller_that_dies_over_and_over() -> Result<()> {
    let mut small = Small::raise().await?;
    let template = json!({"name": "web-{index}", "vcpus": 1, "memory_mib": 64,
        "bodies": [{"set": {"members": [{"index": 0, "image": furnish::ARCHIVE}]}}], "networks": [{"network": "net"}]});
    let wish: GroupCreate = serde_json::from_value(json!({
        "name": "shop", "count": 50, "template": template, "update": {"drain_s": 0, "max_unavailable": 10, "max_surge": 5},
    }))?;
    let group = small.client.create_scaling_group(&wish).await?;
    let began = Instant::now();
    let steady = |count: usize| {
        move |g: &Group| {
            g.state == GroupState::Steady && g.members.len() == count && g.ready as usize == count
        }
    };
    let full = small.until(group.id, 6, 50, steady(50)).await?;
    small.exactly(&full).await?;
    println!("50 made in {:.1} s", began.elapsed().as_secs_f64());
    for (to, kills) in [(7, 4), (33, 4), (50, 3)] {
        let began = Instant::now();
        loop {
            match small.client.scale_group(group.id, to).await {
                Ok(_) => break,
                Err(error) => ensure!(error.is_passing(), "{error}"),
            }
        }
        let now = small.until(group.id, kills, 50, steady(to as usize)).await?;
        small.exactly(&now).await?;
        println!("{to} after {:.1} s", began.elapsed().as_secs_f64());
    }
    let mut next = wish.template.clone();
    next.memory_mib = 128;
    small
        .client
        .update_group(group.id, &GroupUpdate { template: next, percent: None, canary: false })
        .await?;
    let began = Instant::now();
    let updated =
        small.until(group.id, 5, 55, |g| steady(50)(g) && g.rollout.state == RolloutState::Done).await?;
    ensure!(updated.members.iter().all(|m| m.revision == 2));
    small.exactly(&updated).await?;
    println!("50 updated in {:.1} s", began.elapsed().as_secs_f64());
    small.client.delete_group(group.id).await?;
    let end = Instant::now() + LIMIT;
    small.kill()?;
    loop {
        match small.client.groups().await {
            Ok(groups) if groups.is_empty() => break,
            Ok(_) => {}
            Err(error) => ensure!(error.is_passing(), "{error}"),
        }
        ensure!(Instant::now() < end, "the group does not go");
        tokio::time::sleep(LOOK).await;
    }
    let left = small.client.instances().await?;
    ensure!(left.is_empty(), "{left:?}");
    let bodies: Vec<_> = small.engines.iter().flat_map(|e| e.leftovers()).collect();
    ensure!(bodies.is_empty(), "{bodies:?}");
    println!("the controller died {} times", small.kills);
    ensure!(small.kills >= 20);
    Ok(())
}

/// Asks every target that is written down for it, one after the other, and counts. By nc: a busybox without shared libraries
/// may have a wget that dies of a name service that is not there. A few a second: of Open vSwitch 3.1.0 the userspace connection
/// tracking dies now and then (`conn_update_state`) where dozens of connections a second go to a port that is being taken away.
const LOAD: &str = "trap 'exit 0' TERM; touch /tmp/targets; while :; do \
    for t in $(cat /tmp/targets); do \
    if printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 ${t%:*} ${t#*:} | grep -q ' 200 '; then echo $t >>/tmp/ok; else echo $t $(cat /proc/uptime) >>/tmp/bad; fi; done; \
    sleep 0.4; done";

struct Story {
    stage: Stage,
}

impl Story {
    fn group(&self, id: ScalingGroupId) -> Result<Group> {
        self.stage.ask(self.stage.client.group(id))
    }

    fn until(&self, id: ScalingGroupId, what: &str, ok: impl Fn(&Group) -> bool) -> Result<Group> {
        until(what, PATIENCE, || {
            let group = self.group(id)?;
            let told = format!(
                "{:?} {}/{} {:?} {:?}",
                group.state, group.ready, group.count, group.rollout, group.members
            );
            Ok(if ok(&group) { Seen::Enough(group) } else { Seen::Not(told) })
        })
    }

    fn steady(&self, id: ScalingGroupId, count: usize) -> Result<Group> {
        let began = Instant::now();
        let wanted = |g: &Group| {
            g.state == GroupState::Steady && g.members.len() == count && g.ready as usize == count
        };
        let group = self.until(id, &format!("{count} ready members"), wanted)?;
        println!("  {count} ready after {:.1} s", began.elapsed().as_secs_f64());
        Ok(group)
    }

    fn in_member(&self, host: &str, id: InstanceId, script: &str) -> Result<String> {
        // By its labels: a member of a later description has another container's name.
        let find = format!(
            "d='/usr/bin/docker -H unix:///run/docker.sock'; \
             exec $d exec $($d ps -q --filter label=amphi.instance={id} --filter label=amphi.member=only) sh -c \"$0\""
        );
        let argv = ["sh", "-c", &find, script];
        self.stage.lab.run(host, &argv)
    }
}

#[test]
fn a_service_behind_its_endpoints() -> Result<()> {
    let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
    let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("groups-lab"))?;
    let program = Path::new(env!("CARGO_BIN_EXE_amphi-lab"));
    let story = Story { stage: Stage::up(layout, &images, program, 2, |_| {})? };
    let client = &story.stage.client;
    let open = json!({"name": "web", "rules": [{"protocol": "tcp", "port_min": 80, "port_max": 80}]});
    story.stage.ask(client.create_security_group(&serde_json::from_value(open)?))?;

    println!("three sets");
    let serve = |text: &str| {
        format!(
            "mkdir -p /tmp/www; echo {text} >/tmp/www/index.html; trap 'exit 0' TERM; httpd -f -p 80 -h /tmp/www & wait $!"
        )
    };
    let template = |text: &str| {
        json!({"name": "web-{index}", "vcpus": 1, "memory_mib": 64, "networks": [{"network": "blue"}],
            "security_groups": ["blue", "web"],
            "bodies": [{"set": {"members": [{"name": "only", "index": 0, "image": "busybox",
                "command": ["/bin/sh", "-c", serve(text)],
                "probes": {"readiness": {"http": {"port": 80}, "period_s": 1, "failures": 2, "timeout_s": 2}}}]}}]})
    };
    let wish: GroupCreate = serde_json::from_value(json!({
        "name": "shop", "count": 3, "ports": [80], "template": template("one"),
        "update": {"max_unavailable": 0, "max_surge": 1, "drain_s": 4},
        "health": {"replace_after_s": 3},
    }))?;
    let id = story.stage.ask(client.create_scaling_group(&wish))?.id;
    let first = story.steady(id, 3)?;
    let hosts: BTreeSet<_> = first.members.iter().filter_map(|m| m.host_name.clone()).collect();
    ensure!(hosts.len() == 2, "kept apart as far as there are hosts: {hosts:?}");

    println!("behind endpoints that a load follows");
    let mut order = request("load", vec![set()], Some("h1"));
    if let amphi_api::instance::BodySpec::Set(set) = &mut order.bodies[0] {
        set.members[0].command = ["/bin/sh", "-c", LOAD].map(str::to_owned).to_vec();
    }
    let load = story.stage.create(&order)?;
    let over = AtomicBool::new(false);
    let outcome = std::thread::scope(|scope| {
        let follower = scope.spawn(|| follow(&story, id, load.id, &over));
        let told = live(&story, id, load.id, &template);
        over.store(true, Ordering::SeqCst);
        // Wakes whoever waits for a change.
        let _ = story.stage.ask(client.delete_group(id));
        let followed = follower.join().map_err(|_| anyhow::anyhow!("the follower panicked"))?;
        told.and(followed)
    });
    outcome?;

    println!("deleted, with its instances");
    until("no group and no instance of it", PATIENCE, || {
        let groups = story.stage.ask(client.groups())?.len();
        let left = story.stage.ask(client.instances())?.into_iter().filter(|i| i.id != load.id).count();
        Ok(seen(groups + left == 0, || format!("{groups} groups, {left} instances")))
    })?;
    story.stage.delete(load.id)?;
    story.stage.down()
}

/// As a load balancer does: hears of every change, and writes the targets down for the load.
fn follow(story: &Story, id: ScalingGroupId, load: InstanceId, over: &AtomicBool) -> Result<()> {
    // Connections belong to the runtime that made them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = run::client(story.stage.lab.layout())?;
    let mut known: Option<String> = None;
    while !over.load(Ordering::SeqCst) {
        let asked = runtime.block_on(client.group_endpoints(id, known.as_deref()));
        let endpoints = match asked {
            Ok(endpoints) => endpoints,
            Err(_) if over.load(Ordering::SeqCst) => break,
            Err(error) => return Err(error.into()),
        };
        let targets: Vec<String> = endpoints.ready().flat_map(|e| e.targets()).collect();
        story.in_member(
            "h1",
            load,
            &format!("echo '{}' >/tmp/t && mv /tmp/t /tmp/targets", targets.join(" ")),
        )?;
        known = Some(endpoints.version);
    }
    Ok(())
}

fn live(
    story: &Story,
    id: ScalingGroupId,
    load: InstanceId,
    template: &dyn Fn(&str) -> serde_json::Value,
) -> Result<()> {
    let client = &story.stage.client;
    let count = |file: &str| -> Result<usize> {
        let lines = story.in_member("h1", load, &format!("wc -l </tmp/{file} 2>/dev/null || echo 0"))?;
        lines.trim().parse().with_context(|| format!("no number: {lines}"))
    };
    until("the load is answered", PATIENCE, || Ok(seen(count("ok")? > 20, || "nothing yet".into())))?;

    println!("five, and three again");
    story.stage.ask(client.scale_group(id, 5))?;
    story.steady(id, 5)?;
    story.stage.ask(client.scale_group(id, 3))?;
    story.steady(id, 3)?;

    println!("another revision, under load");
    let (ok, bad, began) = (count("ok")?, count("bad")?, Instant::now());
    let order =
        GroupUpdate { template: serde_json::from_value(template("two"))?, percent: None, canary: false };
    story.stage.ask(client.update_group(id, &order))?;
    let done =
        |g: &Group| g.state == GroupState::Steady && g.rollout.state == RolloutState::Done && g.ready == 3;
    let updated = story.until(id, "updated", done)?;
    ensure!(updated.members.iter().all(|m| m.revision == 2), "{:?}", updated.members);
    let (ok, bad) = (count("ok")? - ok, count("bad")? - bad);
    println!("  3 of 3 in {:.1} s: {ok} answers, {bad} errors", began.elapsed().as_secs_f64());
    ensure!(ok > 20, "the load was no load: {ok}");
    // An address that was released rests, and a body that starts announces its own: nobody asks the MAC of a former member.
    let why = story.in_member("h1", load, "cat /tmp/bad 2>/dev/null; true").unwrap_or_default();
    // None of 645 and of 678 at forty a second; one of 316 beside another lab and a compiler on two CPUs.
    ensure!(bad * 100 <= ok, "{bad} errors beside {ok} answers: {why}");

    println!("and another one where they are, under load");
    let policy = json!({"update": {"max_unavailable": 1, "max_surge": 0, "drain_s": 4}});
    story.stage.ask(client.change_group(id, &serde_json::from_value(policy)?))?;
    let (ok, bad, began) = (count("ok")?, count("bad")?, Instant::now());
    let order =
        GroupUpdate { template: serde_json::from_value(template("three"))?, percent: None, canary: false };
    story.stage.ask(client.update_group(id, &order))?;
    let kept = story.until(id, "updated where they are", |g| done(g) && g.rollout.to == 3)?;
    let places = |group: &Group| -> Vec<_> {
        group.members.iter().map(|m| (m.instance, m.addresses.clone())).collect()
    };
    ensure!(places(&kept) == places(&updated), "{:?} instead of {:?}", kept.members, updated.members);
    for member in &kept.members {
        let host = member.host_name.clone().context("it has no host")?;
        let served = story.in_member(&host, member.instance, "cat /tmp/www/index.html")?;
        ensure!(served.trim() == "three", "it serves {served}");
    }
    let (ok, bad) = (count("ok")? - ok, count("bad")? - bad);
    println!("  3 of 3 in {:.1} s: {ok} answers, {bad} errors", began.elapsed().as_secs_f64());
    let why = story.in_member("h1", load, "cat /tmp/bad 2>/dev/null; true").unwrap_or_default();
    ensure!(bad * 100 <= ok && ok > 20, "{bad} errors beside {ok} answers: {why}");

    println!("one that serves nothing any more is replaced");
    let ill = updated.members[0].clone();
    let host = ill.host_name.clone().context("it has no host")?;
    story.in_member(&host, ill.instance, "rm /tmp/www/index.html")?;
    let began = Instant::now();
    story.until(id, "the ill one is replaced", |g| {
        g.ready == 3 && g.members.iter().all(|m| m.instance != ill.instance)
    })?;
    println!("  after {:.1} s", began.elapsed().as_secs_f64());

    println!("a number scales it, and back after the cool-down");
    let policy = json!({"autoscale": {"metric": "queue", "target": 10, "min": 2, "max": 4, "cooldown_up_s": 0, "cooldown_down_s": 6}});
    story.stage.ask(client.change_group(id, &serde_json::from_value(policy)?))?;
    let post = |value| story.stage.ask(client.post_metric(id, &MetricPost { name: "queue".into(), value }));
    post(30.0)?;
    let told = story.stage.ask(client.explain_scaling(id))?;
    println!("  asked: {}", told.why);
    ensure!((told.count, told.desired) == (3, 3), "{told:?}");
    post(38.0)?;
    story.steady(id, 4)?;
    post(12.0)?;
    let told = story.stage.ask(client.explain_scaling(id))?;
    println!("  asked: {}", told.why);
    story.steady(id, 2)?;
    let now = story.group(id)?;
    println!("  {}", now.scaled.clone().unwrap_or_default());
    ensure!(now.members.iter().all(|m| m.state == InstanceState::Running), "{:?}", now.members);

    println!("what it uses reaches the controller");
    let policy = json!({"autoscale": {"metric": "memory", "target": 90, "min": 2, "max": 4}});
    story.stage.ask(client.change_group(id, &serde_json::from_value(policy)?))?;
    until("figures of both members", PATIENCE, || {
        let told = story.stage.ask(client.explain_scaling(id))?;
        Ok(seen(told.figures.len() == 2 && told.value.is_some(), || format!("{told:?}")))
    })
}
