//! The update of a running set, on real engines and under load: three servers at one address, one of them updated. The others
//! lose no request and keep their processes; the gap of the updated one is measured; one whose listener may overlap loses
//! nothing either. What fails comes back by itself, and a dead agent changes nothing of it.

use amphi_api::image::{BlobRole, ImageCreate, ImageFormat};
use amphi_api::instance::{BodySpec, Instance, InstanceState, InstanceVolume};
use amphi_api::network::RuleSpec;
use amphi_api::rollout::{MemberPhase, Rollout, RolloutPhase, RolloutUndo, SetUpdate};
use amphi_integration::failing::{PATIENCE, Stage, address, request, set};
use amphi_integration::lab::Layout;
use amphi_integration::load::{Load, Tally};
use amphi_integration::probe::uptime_ms;
use amphi_integration::story::Cli;
use amphi_integration::wait::{Seen, seen, until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

const H1: &str = "h1";
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];

/// A server whose listener allows another one beside it. Told to end, it answers whoever is in its queue, and ends.
const SERVER: &str = r#"
#include <arpa/inet.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
static volatile int over;
static void end(int s) { over = 1; }
int main(int n, char **words) {
  static const char answer[] = "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
  struct sigaction action = {.sa_handler = end};
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1]))};
  int yes = 1, s = socket(AF_INET, SOCK_STREAM, 0);
  char request[4096];
  sigaction(SIGTERM, &action, 0);
  signal(SIGPIPE, SIG_IGN);
  setsockopt(s, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  setsockopt(s, SOL_SOCKET, SO_REUSEPORT, &yes, sizeof yes);
  if (bind(s, (void *)&at, sizeof at) || listen(s, 128)) return 1;
  for (;;) {
    if (over) fcntl(s, F_SETFL, O_NONBLOCK);
    int c = accept(s, 0, 0);
    if (c < 0) { if (over) return 0; continue; }
    fcntl(c, F_SETFL, 0);
    read(c, request, sizeof request);
    write(c, answer, sizeof answer - 1);
    shutdown(c, SHUT_WR);
    read(c, request, sizeof request);
    close(c);
  }
}
"#;

struct Rollouts {
    stage: Stage,
    cli: Cli,
    shop: Instance,
    load: Load,
    address: String,
}

/// What the test's members are told to do.
fn httpd(port: u16) -> Vec<String> {
    let script = format!(
        "mkdir -p /www && echo $VERSION >/www/index.html && httpd -f -p {port} -h /www & trap 'kill $!; exit 0' TERM; wait $!"
    );
    vec!["/bin/sh".into(), "-c".into(), script]
}

fn description() -> Value {
    let probe = |port: u16| json!({"readiness": {"http": {"port": port}, "period_s": 1}});
    json!({
    // A connection that waits in the queue of a listener that closes goes to the one beside it.
    "anchor": {"sysctls": {"net.ipv4.tcp_migrate_req": "1"}},
    "members": [
        {"index": 1, "name": "web", "image": "busybox", "env": {"VERSION": "one"}, "command": httpd(80),
         "probes": probe(80), "update": {"deadline_s": 8}},
        {"index": 2, "name": "api", "image": "busybox", "env": {"VERSION": "one"}, "command": httpd(81),
         "probes": probe(81)},
        {"index": 3, "name": "even", "image": "busybox", "env": {"VERSION": "one"}, "update": {"overlap": true, "min_ready_s": 1},
         "command": ["/bin/sh", "-c", "while [ ! -x /data/serve ]; do sleep 0.1; done; exec /data/serve 82"]}
    ]})
}

/// The server, built here.
fn server(layout: &Layout) -> Result<PathBuf> {
    let (source, program) = (layout.root().join("serve.c"), layout.root().join("serve"));
    std::fs::write(&source, SERVER)?;
    let built =
        Command::new("cc").args(["-static", "-O1", "-w", "-o"]).arg(&program).arg(&source).output()?;
    ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    Ok(program)
}

impl Rollouts {
    fn up() -> Result<Self> {
        let images = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab/images");
        ensure!(images.exists(), "{} is missing: make images", images.display());
        let layout = Layout::at(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("rollout-lab"))?;
        let stage =
            Stage::up(layout.clone(), &images, Path::new(env!("CARGO_BIN_EXE_amphi-lab")), 1, |_| {})?;
        let create =
            ImageCreate { name: "v2".into(), format: ImageFormat::DockerArchive, cmdline: String::new() };
        let v2 = stage.ask(stage.client.create_image(&create))?;
        let path = images.join("web.tar");
        stage.ask(stage.client.upload_file(v2.id, BlobRole::Archive, &path, Box::new(|_, _| {})))?;
        let group = stage.ask(stage.client.security_groups())?.into_iter().find(|g| g.name == "blue");
        let rule: RuleSpec = serde_json::from_value(json!({"protocol": "tcp"}))?;
        stage.ask(stage.client.add_rule(group.context("no group")?.id, &rule))?;
        let mut order =
            request("shop", vec![BodySpec::Set(serde_json::from_value(description())?)], Some(H1));
        order.volume = Some(InstanceVolume { size_gib: Some(1), name: None, id: None });
        let shop = stage.order(&order)?;
        let program = server(&layout)?;
        let caller = stage.create(&request("caller", vec![set()], Some(H1)))?;
        let shop = stage.runs(shop.id)?;
        let into = format!("amphi-{}-even:/data/serve", shop.id);
        let program = program.to_str().context("a path that is no text")?;
        stage.lab.run(H1, &[&DOCKER[..], &["cp", program, &into]].concat())?;
        let cli = Cli::beside_this_program(&stage.lab)?;
        let address = address(&shop)?;
        let of = |name: &str| {
            stage.lab.run(H1, &[&DOCKER[..], &["inspect", "-f", "{{.State.Pid}}", name]].concat())
        };
        let pid = of(&format!("amphi-{}-only", caller.id))?.trim().parse()?;
        let servers = [80, 81, 82].map(|port| format!("{address}:{port}"));
        let load = Load::start(&stage.lab, H1, caller.id, pid, &servers)?;
        Ok(Self { stage, cli, shop, load, address })
    }

    fn tally(&self, port: u16, since: u64) -> Result<Tally> {
        self.load.tally(&format!("{}:{port}", self.address), since)
    }

    /// Processes of the set's containers, by member: the anchor's too.
    fn pids(&self) -> Result<BTreeMap<String, String>> {
        let filter = format!("label=amphi.instance={}", self.shop.id);
        let ids = self.stage.lab.run(H1, &[&DOCKER[..], &["ps", "-q", "--filter", &filter]].concat())?;
        let ids: Vec<&str> = ids.split_whitespace().collect();
        let format = r#"{{index .Config.Labels "amphi.member"}} {{.State.Pid}}"#;
        let text = self.stage.lab.run(H1, &[&DOCKER[..], &["inspect", "-f", format], &ids].concat())?;
        let pair = |line: &str| line.split_once(' ').map(|(name, pid)| (name.to_owned(), pid.to_owned()));
        Ok(text.lines().filter_map(pair).collect())
    }

    /// All its containers, whether they run or not.
    fn containers(&self) -> Result<usize> {
        let filter = format!("label=amphi.instance={}", self.shop.id);
        let all = self.stage.lab.run(H1, &[&DOCKER[..], &["ps", "-aq", "--filter", &filter]].concat())?;
        Ok(all.lines().count())
    }

    fn order(&self, members: Value) -> Result<Rollout> {
        let update: SetUpdate = serde_json::from_value(json!({"members": members}))?;
        self.stage.ask(self.stage.client.update_set(self.shop.id, &update))
    }

    fn ended(&self) -> Result<Rollout> {
        let client = &self.stage.client;
        let rollout = self.stage.ask(client.wait_rollout(self.shop.id, |_| false, PATIENCE, |_| {}))?;
        // Containers that were kept for a way back go when it is over.
        until("one container of each", PATIENCE, || {
            let count = self.containers()?;
            Ok(seen(count == 4, || format!("{count} containers")))
        })?;
        let now = self.stage.until(self.shop.id, "running", |i| {
            i.state == InstanceState::Running
                && i.members.iter().all(|m| m.coming.is_none() && m.former.is_none())
        })?;
        ensure!(now.epoch == self.shop.epoch, "the epoch is as it was: {now:?}");
        Ok(rollout)
    }

    /// Requests go through again.
    fn answers(&self, port: u16) -> Result<()> {
        let since = uptime_ms()?;
        until(&format!("port {port} answers"), PATIENCE, || {
            let tally = self.tally(port, since)?;
            Ok(if tally.good > 5 { Seen::Enough(()) } else { Seen::Not(format!("{tally:?}")) })
        })
    }

    /// Nothing was lost by those that were not updated, and their processes are the same.
    fn others(&self, updated: &[&str], since: u64, before: &BTreeMap<String, String>) -> Result<()> {
        let now = self.pids()?;
        for (member, port) in [("anchor", None), ("web", Some(80)), ("api", Some(81)), ("even", Some(82))] {
            if updated.contains(&member) {
                continue;
            }
            ensure!(
                before.get(member) == now.get(member),
                "{member} is another process: {before:?}, {now:?}"
            );
            let Some(port) = port else { continue };
            let tally = self.tally(port, since)?;
            ensure!(tally.bad == 0 && tally.good > 20, "{member} lost requests: {tally:?}");
        }
        Ok(())
    }

    /// An update that fails: why, and that all is as before.
    fn fails(&self, members: Value, code: &str, told: &str) -> Result<()> {
        let (since, before) = (uptime_ms()?, self.pids()?);
        let present = self.order(members)?.present;
        let rollout = self.ended()?;
        let fault = rollout.fault.clone().context("no fault")?;
        ensure!(rollout.phase == RolloutPhase::Failed && fault.code == code, "{rollout:?}");
        ensure!(fault.message.contains(told), "{fault:?}");
        ensure!(rollout.present == present, "{rollout:?}");
        self.answers(80)?;
        self.others(&["web"], since, &before)?;
        println!("  {}; web did not answer for {} ms", fault.message, self.tally(80, since)?.gap_ms);
        Ok(())
    }
}

#[test]
fn a_running_set_is_updated_under_load() -> Result<()> {
    let t = Rollouts::up()?;

    // What begins to listen only now refuses, and that is no update's fault.
    for port in [80, 81, 82] {
        t.answers(port)?;
    }
    println!("another image for one of three");
    let (since, before) = (uptime_ms()?, t.pids()?);
    let told: Rollout =
        t.cli.json(&["set", "update", "shop", "--member", "web", "--image", "v2", "--env", "VERSION=two"])?;
    ensure!(told.phase == RolloutPhase::Done && told.members.len() == 1, "{told:?}");
    t.ended()?;
    t.answers(80)?;
    t.others(&["web"], since, &before)?;
    let tally = t.tally(80, since)?;
    let host = told.members[0].gap_ms.context("no gap was measured")?;
    println!(
        "  gap: {} ms for a client, {host} ms between end and start; {} of {} requests failed",
        tally.gap_ms,
        tally.bad,
        tally.good + tally.bad
    );
    ensure!(tally.bad > 0 && tally.gap_ms < 5000, "{tally:?}");
    ensure!(t.pids()?["web"] != before["web"], "it is the same process");
    println!("{}", t.cli.run(&["set", "rollout", "history", "shop"])?);

    println!("a listener that overlaps");
    let (since, before) = (uptime_ms()?, t.pids()?);
    t.order(json!({"even": {"env": {"VERSION": "two"}}}))?;
    let told = t.ended()?;
    ensure!(told.phase == RolloutPhase::Done && told.members[0].gap_ms == Some(0), "{told:?}");
    ensure!(t.pids()?["even"] != before["even"], "it is the same process");
    t.others(&["even"], since, &before)?;
    let tally = t.tally(82, since)?;
    println!("  {} requests, {} failed", tally.good + tally.bad, tally.bad);
    ensure!(tally.bad == 0 && tally.good > 100, "{tally:?}");

    println!("members that are no good");
    t.fails(json!({"web": {"command": ["/bin/sh", "-c", "exit 7"]}}), "member_failed", "exit code 7")?;
    t.fails(json!({"web": {"command": ["/bin/none"]}}), "member_failed", "cannot be started")?;
    t.fails(json!({"web": {"command": ["/bin/sleep", "1000"]}}), "not_ready", "was not ready within 8 s")?;
    let refused = t.cli.fails(&["set", "update", "shop", "--member", "web", "--image", "none"], 4)?;
    ensure!(refused.contains("none"), "{refused}");

    println!("back to what was before");
    t.stage.ask(t.stage.client.undo_rollout(t.shop.id, &RolloutUndo::default()))?;
    let back = t.ended()?;
    ensure!(back.phase == RolloutPhase::Done, "{back:?}");

    println!("the agent dies in the middle of two");
    let (since, before) = (uptime_ms()?, t.pids()?);
    t.order(json!({"web": {"env": {"VERSION": "three"}}, "api": {"env": {"VERSION": "three"}}}))?;
    until("the first is under way", PATIENCE, || {
        let now = t.stage.ask(t.stage.client.rollout(t.shop.id))?;
        let begun = now.members.iter().any(|m| m.phase != MemberPhase::Waiting);
        Ok(seen(begun, || format!("{now:?}")))
    })?;
    t.stage.lab.kill(H1, "hostsrv", Signal::SIGKILL)?;
    t.stage.lab.start(H1, "hostsrv")?;
    let done = t.ended()?;
    ensure!(done.phase == RolloutPhase::Done, "{done:?}");
    t.answers(80)?;
    t.answers(81)?;
    t.others(&["web", "api"], since, &before)?;

    println!("one member is started again");
    let (since, before) = (uptime_ms()?, t.pids()?);
    t.cli.run(&["set", "restart", "shop", "--member", "api"])?;
    t.answers(81)?;
    ensure!(t.pids()?["api"] != before["api"], "it is the same process");
    t.others(&["api"], since, &before)?;

    let strangers = t.stage.host(H1)?.strangers;
    ensure!(strangers.is_empty(), "{strangers:?}");
    t.stage.delete(t.shop.id)?;
    t.stage.down()
}
