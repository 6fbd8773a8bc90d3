//! The first start of a large image on a host that has nothing of it, beside `docker load` of an archive of the same size on the
//! same dockerd. They take turns; each image is new, so nothing of it is in any cache but the controller's own.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use amphi_api::instance::{BodySpec, InstanceCreate};
use amphi_api::set::SetSpec;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{Bench, Figure, HOST, bare, median, runs, set};

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
    let (mut loads, mut starts) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (archive, id) = archive(&folder, &format!("load-{round}"))?;
        loads.push(loaded(bench, &archive)?);
        docker(bench, &["rmi", "-f", &id])?;
        std::fs::remove_file(&archive)?;
        let name = format!("start-{round}");
        let (archive, id) = self::archive(&folder, &name)?;
        bench.image(json!({ "name": name, "format": "docker-archive" }), &[("archive", archive.clone())])?;
        starts.push(started(bench, &wish(&name, &name)?)?);
        docker(bench, &["rmi", "-f", &id])?;
        std::fs::remove_file(&archive)?;
    }
    std::fs::remove_dir_all(&folder)?;
    let (load, start) = (median(&loads), median(&starts));
    Ok(vec![
        Figure { name: "docker_load_200_mib_ms", value: load, goal: "" },
        Figure { name: "first_start_200_mib_ms", value: start, goal: "" },
        Figure { name: "first_start_to_docker_load_ratio", value: start / load.max(1.0), goal: "<= 1.3" },
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

fn docker(bench: &Bench, arguments: &[&str]) -> Result<()> {
    let output = bench.lab.exec(HOST, &[&DOCKER, arguments].concat(), LIMIT)?;
    ensure!(output.ok(), "docker {arguments:?}: {output:?}");
    Ok(())
}

/// An archive as `docker save` writes it, of layers that nobody has seen; and the image's id.
fn archive(folder: &Path, seed: &str) -> Result<(PathBuf, String)> {
    let busybox = std::fs::read("/bin/busybox").context("busybox-static is installed")?;
    let mut layers =
        vec![layer(&[("bin/busybox", &busybox)], &[("bin/sh", "busybox"), ("bin/sleep", "busybox")])?];
    for (number, mib) in LAYERS.into_iter().enumerate() {
        let bytes = noise(&format!("{seed}-{number}"), mib << 20);
        layers.push(layer(&[(&format!("bytes-{number}"), &bytes)], &[])?);
    }
    let digest = |bytes: &[u8]| hex::encode(Sha256::digest(bytes));
    let diff_ids: Vec<String> = layers.iter().map(|tar| format!("sha256:{}", digest(tar))).collect();
    let config = json!({ "architecture": "amd64", "os": "linux", "config": { "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids } })
    .to_string();
    let (id, names) = (digest(config.as_bytes()), (0..layers.len()).map(|n| format!("{n}.tar")));
    let names: Vec<String> = names.collect();
    let manifest =
        json!([{ "Config": format!("{id}.json"), "RepoTags": null, "Layers": names.clone() }]).to_string();
    let path = folder.join(format!("{seed}.tar"));
    let mut tar = tar::Builder::new(File::create(&path)?);
    for (name, bytes) in names.iter().zip(&layers) {
        tar.append_data(&mut header(tar::EntryType::Regular, bytes.len(), 0o644), name, bytes.as_slice())?;
    }
    for (name, text) in [(format!("{id}.json"), config), ("manifest.json".to_owned(), manifest)] {
        tar.append_data(&mut header(tar::EntryType::Regular, text.len(), 0o644), name, text.as_bytes())?;
    }
    tar.into_inner()?;
    Ok((path, format!("sha256:{id}")))
}

fn layer(files: &[(&str, &[u8])], links: &[(&str, &str)]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        tar.append_data(&mut header(tar::EntryType::Regular, bytes.len(), 0o755), name, *bytes)?;
    }
    for (name, to) in links {
        tar.append_link(&mut header(tar::EntryType::Symlink, 0, 0o777), name, to)?;
    }
    Ok(tar.into_inner()?)
}

fn header(kind: tar::EntryType, size: usize, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size as u64);
    header.set_mode(mode);
    header
}

/// Bytes that nothing makes small, and that are the same at each run.
fn noise(seed: &str, size: usize) -> Vec<u8> {
    let mut state =
        Sha256::digest(seed).iter().fold(1_u64, |n, byte| n.rotate_left(8) ^ u64::from(*byte)) | 1;
    let words = std::iter::repeat_with(|| {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.flatten().take(size).collect()
}
