//! An image that runs an init with ssh, an agent and tools works in a member as a machine does.

use crate::common::{eventually, on_private_host, run};
use crate::described::{says, stage};
use crate::drivers::port;
use crate::stage::image;
use amphi_api::NetworkId;
use amphi_api::wire::BodyDesired;
use amphi_hostsrv::instance::{BodyDriver, Remains};
use serde_json::json;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

#[test]
fn an_init_with_ssh_lives_as_in_a_machine() {
    // Outside, where packages can be had; inside it is only a look.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let archive = root.join("target/lab-cache/fat.tar.test");
    let made =
        Command::new(root.join("scripts/make-fat-image.sh")).arg(&archive).output().expect("the script");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));

    on_private_host("fat::an_init_with_ssh_lives_as_in_a_machine", |host| {
        let (stage, _plugin) = stage(host);
        let mut plan = stage.plan(json!({"members": [
            {"index": 0, "name": "machine", "image": "fat", "stop": {"grace_s": 60},
             "tmpfs": [{"path": "/run", "size_mib": 16, "mode": "0755", "exec": true}],
             "probes": {"readiness": {"tcp": {"port": 22}, "period_s": 1}}}]}));
        let fat = image(archive.clone());
        if let BodyDesired::Set { images, .. } = &mut plan.body {
            *images = vec![fat.image.clone()];
        }
        plan.images = [(fat.image.id, fat)].into();
        plan.ports = vec![port(NetworkId::new(), 5, true)];
        let key = stage.host.path("key");
        let key = key.to_str().expect("a path");
        run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", key]);
        plan.ssh_keys = vec![std::fs::read_to_string(format!("{key}.pub")).expect("a key").trim().to_owned()];
        stage.run(stage.driver.ensure(&plan));
        stage.rings_until("ssh is served", |body| body.members[0].ready == Some(true));

        // By the key that was injected, at the instance's address, from inside its network.
        let namespace = format!("--net=/proc/{}/ns/net", stage.inspect(&plan, "anchor", ".State.Pid"));
        let ssh = |command: &str| {
            let none = [
                "-o",
                "StrictHostKeyChecking=no",
                "-o",
                "UserKnownHostsFile=/dev/null",
                "-o",
                "BatchMode=yes",
            ];
            let mut args = vec![namespace.as_str(), "ssh", "-q", "-F", "/dev/null", "-i", key];
            args.extend(none);
            args.extend(["root@10.7.0.5", command]);
            run("nsenter", &args)
        };
        assert_eq!(ssh("hostname").trim(), "web-1");
        assert_eq!(
            ssh("cat /proc/1/comm; id -u; ip -o -4 addr show eth0 | awk '{print $4}'").trim(),
            "init\n0\n10.7.0.5/24"
        );
        assert_eq!(ssh("mount | grep -c 'on /run type tmpfs'").trim(), "1");

        // Its agent is kept up, and what loses its parent leaves no zombie.
        eventually("the agent runs", || match ssh("cat /run/agent 2>/dev/null; true").trim() {
            "agent of web-1" => Ok(()),
            other => Err(other.to_owned()),
        });
        ssh("sv -w 10 kill /run/service/agent");
        eventually("the agent is started again", || match ssh("grep -c agent /run/agent").trim() {
            "1" => Err(says(&stage, &plan, "machine", "ps")),
            _ => Ok(()),
        });
        ssh("for n in 1 2 3 4 5; do sh -c 'sleep 0 & exit 0'; done");
        let zombies = "cat /proc/[0-9]*/stat 2>/dev/null | awk '$3 == \"Z\"' | wc -l";
        eventually("no zombie stays", || match says(&stage, &plan, "machine", zombies).trim() {
            "0" => Ok(()),
            other => Err(other.to_owned()),
        });

        // Its image's own signal takes it down in order.
        stage.run(stage.driver.stop(plan.instance, Duration::from_secs(2)));
        let log = stage.run(stage.driver.console_log(plan.instance, Some("machine"), 100));
        assert!(log.contains("agent ended") && log.contains("all down"), "{log}");
        assert_eq!(stage.inspect(&plan, "machine", ".State.ExitCode"), "0");
        stage.run(stage.driver.remove(plan.instance, 5, Remains::Nothing));
    });
}
