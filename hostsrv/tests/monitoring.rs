//! Figures of bodies on a real dockerd, and the servers that take them: Prometheus' own, Zabbix' own.

mod common;
#[path = "set_driver/stage.rs"]
#[allow(dead_code)]
mod stage;

use amphi_api::HostId;
use amphi_api::wire::HostDesired;
use amphi_hostsrv::instance::figures::{Figure, Meter, Reading};
use amphi_hostsrv::instance::set::SetMeter;
use amphi_hostsrv::instance::{BodyDriver, BodyPlan};
use amphi_hostsrv::monitoring::Monitoring;
use common::{PrivateHost, eventually, on_private_host, run};
use serde_json::{Value, json};
use stage::Stage;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tokio::sync::watch;

const POSTGRES: &str = "/usr/lib/postgresql/15/bin";
const ZABBIX: &str = "/usr/share/zabbix-server-pgsql";
/// One spins, one holds 32 MiB.
const SPIN: &str = "while :; do :; done";
const HOLD: &str =
    "head -c 33554432 /dev/zero | tail -c 33554432 > /dev/shm/held; while :; do sleep 1000; done";

fn orders(plan: &BodyPlan) -> HostDesired {
    let instance = json!({
        "id": plan.instance, "project": plan.project, "name": "shop", "epoch": plan.epoch, "power": "on",
        "restarts": 0, "vcpus": plan.vcpus, "memory_mib": plan.memory_mib, "body": plan.body, "ports": [],
        "volume": null,
    });
    let desired = json!({
        "host": HostId::new(), "generation": 1, "instances": [instance], "volumes": [], "snapshots": [],
        "tombstones": [],
    });
    serde_json::from_value(desired).expect("orders")
}

#[test]
fn what_members_use_is_measured_and_arrives() {
    on_private_host("what_members_use_is_measured_and_arrives", |host| {
        tracing_subscriber::fmt().with_writer(std::io::stderr).init();
        run("ip", &["link", "set", "lo", "up"]);
        let file = host.path("monitoring.toml");
        let data = host.path("docker");
        start_zabbix(host);
        start_prometheus(host);
        let stage = Stage::new(host);
        let plan = stage.plan(json!({"members": [
            {"index": 1, "name": "spins", "image": "x", "command": ["/bin/sh", "-c", SPIN], "options": {"cpu": 10}},
            {"index": 2, "name": "holds", "image": "x", "command": ["/bin/sh", "-c", HOLD]},
        ]}));
        stage.run(stage.driver.prepare(&plan));
        stage.run(stage.driver.ensure(&plan));

        // The kernel's own figures, without Docker's help.
        stage.host.stop("dockerd");
        let meter = SetMeter::new(&data);
        let read = || stage.run(meter.read());
        let figure = |all: &[Reading], member: &str, figure| {
            let of = |r: &&Reading| r.member.as_deref() == Some(member) && r.figure == figure;
            all.iter().find(of).map(|r| r.value)
        };
        let spent = eventually("the spinner spends CPU, and is held at its ceiling", || {
            let all = read();
            let cpu = figure(&all, "spins", Figure::Cpu).unwrap_or(0.0);
            let held = figure(&all, "spins", Figure::CpuThrottled);
            (cpu > 0.2 && held.is_none_or(|held| held > 0.0)).then_some(cpu).ok_or(format!("{cpu} {held:?}"))
        });
        let all = read();
        assert!(figure(&all, "spins", Figure::Cpu).expect("CPU") >= spent, "it only grows");
        assert!(figure(&all, "holds", Figure::Cpu).expect("CPU") < spent, "{all:?}");
        let held = eventually("32 MiB are held", || {
            let held = figure(&read(), "holds", Figure::Memory).unwrap_or(0.0);
            (held > 32e6).then_some(held).ok_or(held)
        });
        assert!(held < 128e6, "{held}");
        assert_eq!(figure(&all, "holds", Figure::MemoryLimit), Some(f64::from(256 << 20) / 2.0), "{all:?}");
        assert!(figure(&all, "spins", Figure::Processes).is_some_and(|n| n >= 1.0), "{all:?}");
        assert!(all.iter().any(|r| r.member.is_none() && r.figure == Figure::Up), "the anchor's: {all:?}");

        // And now to whoever wants them. The settings are written while it runs.
        let (_desired, orders) = watch::channel(Some(Arc::new(orders(&plan))));
        let monitoring = Monitoring {
            file: file.clone(),
            host: "h1".into(),
            meters: vec![Arc::new(SetMeter::new(&data))],
            orders,
        };
        stage.runtime.spawn(monitoring.run());
        let settings = "interval_seconds = 1\n[[sink]]\nkind = 'prometheus'\nlisten = '127.0.0.1:9177'\n\
                        labels = { site = 'lab' }\n";
        std::fs::write(&file, settings).expect("settings");
        let query = |figure: &str| prometheus(&format!("amphi_{figure}{{member=\"spins\",site=\"lab\"}}"));
        let cpu = eventually("Prometheus has the spinner's CPU", || query("cpu_seconds_total"));
        assert_eq!(cpu["metric"]["name"], "shop", "{cpu}");
        assert_eq!(cpu["metric"]["instance_id"], json!(plan.instance), "{cpu}");

        let fewer = settings.replace("labels", "except = ['memory*']\nlabels");
        let zabbix = "[[sink]]\nkind = 'zabbix'\nserver = '127.0.0.1:20051'\nfigures = ['cpu_s*', 'up']\n";
        std::fs::write(&file, format!("{fewer}{zabbix}")).expect("settings");
        let values = eventually("Zabbix has more than one value of the spinner's CPU", || {
            let values = sql("select value from history where itemid = 90001 order by clock, ns");
            if values.lines().count() > 1 { Ok(values) } else { Err(values) }
        });
        let values: Vec<f64> = values.lines().map(|v| v.trim().parse().expect("a number")).collect();
        assert!(values.is_sorted() && values[0] >= spent, "{values:?} after {spent}");
        // What was turned off is no longer served; what was not still is.
        let page = run("curl", &["-sf", "--max-time", "10", "http://127.0.0.1:9177/metrics"]);
        assert!(page.contains("amphi_cpu_seconds_total{") && !page.contains("amphi_memory"), "{page}");
    });
}

/// The newest value that Prometheus knows.
fn prometheus(query: &str) -> Result<Value, String> {
    let query = format!("query={query}");
    let url = "http://127.0.0.1:9090/api/v1/query";
    let answer =
        Command::new("curl").args(["-sS", "--max-time", "10", "--data-urlencode", &query, url]).output();
    let answer = answer.expect("curl");
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    let body: Value = serde_json::from_str(&text).unwrap_or_default();
    body["data"]["result"].get(0).cloned().ok_or(text)
}

fn start_prometheus(host: &mut PrivateHost) {
    let config = host.path("prometheus.yml");
    let text = "scrape_configs:\n  - job_name: amphi\n    scrape_interval: 1s\n    static_configs:\n      \
                - targets: ['127.0.0.1:9177']\n";
    std::fs::write(&config, text).expect("its configuration");
    let data = host.path("prometheus");
    host.start(
        "prometheus",
        Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", data.display()))
            .arg("--web.listen-address=127.0.0.1:9090"),
    );
}

fn as_postgres(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    command
}

/// What the database answers, a value a line.
fn sql(text: &str) -> String {
    run(
        "psql",
        &["-qtA", "-v", "ON_ERROR_STOP=1", "-h", "/run/zabbix", "-U", "zabbix", "-d", "zabbix", "-c", text],
    )
}

/// A Zabbix server on a database of its own, which knows one host with two trapper items.
fn start_zabbix(host: &mut PrivateHost) {
    let dir = Path::new("/run/zabbix");
    std::fs::create_dir_all(dir).expect("a directory");
    run("chown", &["postgres", "/run/zabbix"]);
    let data = dir.join("data").display().to_string();
    let made = as_postgres(&format!("{POSTGRES}/initdb"))
        .args(["-D", &data, "--auth=trust", "-U", "zabbix", "--no-sync"])
        .output()
        .expect("setpriv");
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    host.start(
        "postgres",
        as_postgres(&format!("{POSTGRES}/postgres")).args([
            "-D",
            &data,
            "-k",
            "/run/zabbix",
            "-c",
            "listen_addresses=",
            "-c",
            "fsync=off",
        ]),
    );
    eventually("PostgreSQL answers", || {
        host.assert_alive("postgres");
        let args = ["-h", "/run/zabbix", "-U", "zabbix", "-d", "postgres", "-c", "create database zabbix"];
        let asked = Command::new("psql").args(args).output().expect("psql");
        if asked.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&asked.stderr).into_owned()) }
    });
    let load = format!(
        "for part in schema images data; do zcat {ZABBIX}/$part.sql.gz; done | \
         psql -q -h /run/zabbix -U zabbix zabbix > /dev/null"
    );
    run("sh", &["-c", &load]);
    sql("insert into hosts (hostid, host, name, status, description) values (90001, 'shop', 'shop', 0, '')");
    for (item, key) in [(90001, "amphi.cpu_seconds_total[spins,]"), (90002, "amphi.up[spins,]")] {
        // Type 2 is a trapper's, value type 0 a float.
        sql(&format!(
            "insert into items (itemid, hostid, name, key_, type, value_type, status, delay, query_fields, posts, \
                 headers, description, params) values ({item}, 90001, '{key}', '{key}', 2, 0, 0, '0', '', '', '', '', '')"
        ));
        // Zabbix loads no item without it; its frontend writes it with the item.
        sql(&format!("insert into item_rtdata (itemid) values ({item})"));
    }
    let config = host.path("zabbix_server.conf");
    let text = "DBHost=/run/zabbix\nDBName=zabbix\nDBUser=zabbix\nListenIP=127.0.0.1\nListenPort=20051\n\
                LogType=console\nPidFile=/run/zabbix/server.pid\nSocketDir=/run/zabbix\nAllowRoot=1\n\
                FpingLocation=/bin/true\nStartTrappers=2\nStartDBSyncers=1\n";
    std::fs::write(&config, text).expect("its configuration");
    std::fs::set_permissions("/run/zabbix", std::fs::Permissions::from_mode(0o777)).expect("permissions");
    host.start("zabbix_server", Command::new("zabbix_server").arg("-f").arg("-c").arg(&config));
}
