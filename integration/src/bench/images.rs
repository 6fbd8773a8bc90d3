//! The first start of a large image on a host that has nothing of it, beside `docker load` of an archive of the same size on the
//! same dockerd, alone and with a container started of it: for the first container Docker waits until the whole image is on the
//! disk. They take turns; each image is new, so nothing of it is in any cache but the controller's own.

use std::path::Path;
use std::time::{Duration, Instant};

use amphi_api::instance::{BodySpec, InstanceCreate};
use amphi_api::set::SetSpec;
use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Bench, Figure, HOST, bare, median, runs, set};
use crate::archive::archive;

/// Of each layer, in MiB; with busybox below them, some 200 in all.
const LAYERS: [usize; 4] = [80, 60, 40, 20];
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);
const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];

pub(super) fn measure(bench: &Bench) -> Result<Vec<Figure>> {
    let folder = bench.lab.layout().root().join("bench-images");
    std::fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    // The anchor's image is made once per host, with the first set.
    started(bench, &wish("first", "busybox")?)?;
    let (mut loads, mut runs, mut starts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (archive, id) = archive(&folder, &format!("load-{round}"), &LAYERS)?;
        let load = loaded(bench, &archive)?;
        loads.push(load);
        runs.push(load + ran(bench, &id)?);
        docker(bench, &["rmi", "-f", &id])?;
        std::fs::remove_file(&archive)?;
        let name = format!("start-{round}");
        let (archive, id) = self::archive(&folder, &name, &LAYERS)?;
        bench.image(json!({ "name": name, "format": "docker-archive" }), &[("archive", archive.clone())])?;
        starts.push(started(bench, &wish(&name, &name)?)?);
        docker(bench, &["rmi", "-f", &id])?;
        std::fs::remove_file(&archive)?;
    }
    std::fs::remove_dir_all(&folder)?;
    let (load, run, start) = (median(&loads), median(&runs), median(&starts));
    Ok(vec![
        Figure { name: "docker_load_200_mib_ms", value: load, goal: "" },
        Figure { name: "docker_load_and_run_200_mib_ms", value: run, goal: "" },
        Figure { name: "first_start_200_mib_ms", value: start, goal: "" },
        Figure { name: "first_start_to_docker_load_ratio", value: start / load.max(1.0), goal: "<= 1.3" },
        Figure { name: "first_start_to_docker_load_and_run_ratio", value: start / run.max(1.0), goal: "" },
    ])
}

/// Milliseconds from the order until the member runs; it is deleted then.
fn started(bench: &Bench, wish: &InstanceCreate) -> Result<f64> {
    let began = Instant::now();
    bench.runtime.block_on(async {
        let ordered = bench.client.create_instance(wish).await?;
        bench.client.wait_instance(ordered.id, runs, LIMIT, |_| ()).await.context("the set should run")
    })?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    bench.delete(&wish.name, false)?;
    Ok(took)
}

fn wish(name: &str, image: &str) -> Result<InstanceCreate> {
    let command = ["/bin/sh", "-c", bare::COMMAND];
    let members = json!({ "members": [{ "name": "one", "index": 1, "image": image, "command": command }] });
    let members: SetSpec = serde_json::from_value(members).context("set")?;
    Ok(InstanceCreate { bodies: vec![BodySpec::Set(members)], ..set(name, false, 256)? })
}

fn loaded(bench: &Bench, archive: &Path) -> Result<f64> {
    let archive = archive.to_str().context("the archive's path")?;
    let began = Instant::now();
    docker(bench, &["load", "-q", "-i", archive])?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Milliseconds until a container of it runs; it is removed then.
fn ran(bench: &Bench, image: &str) -> Result<f64> {
    const NAME: &str = "bare-first";
    let began = Instant::now();
    let script = ["run", "-d", "--network", "none", "--name", NAME, "--entrypoint", "/bin/sh", image, "-c"];
    docker(bench, &[&script[..], &[bare::COMMAND]].concat())?;
    let took = began.elapsed().as_secs_f64() * 1e3;
    docker(bench, &["rm", "-f", NAME])?;
    Ok(took)
}

fn docker(bench: &Bench, arguments: &[&str]) -> Result<()> {
    let output = bench.lab.exec(HOST, &[&DOCKER, arguments].concat(), LIMIT)?;
    ensure!(output.ok(), "docker {arguments:?}: {output:?}");
    Ok(())
}
