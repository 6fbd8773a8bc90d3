//! `amphi-lab bench`: the figures that Amphi promises, measured on a lab of its own. Speeds are ratios within one run:
//! ours and plain Docker take turns on the same dockerd. Refuses to judge: it prints figure and goal side by side.

mod bare;
mod create;
mod exchange;
pub mod failover;
mod figures;
mod images;
mod moves;
mod rest;
pub mod services;
mod transfers;

pub use rest::widen;

use std::path::Path;

use amphi_api::client::Client;
use amphi_api::instance::{BodySpec, InstanceCreate, InstanceNetwork, InstanceState, InstanceVolume};
use amphi_api::network::{NetworkCreate, RuleSpec, SecurityGroupCreate, SubnetSpec};
use amphi_api::set::SetSpec;
use anyhow::{Context, Result};
use serde_json::json;
use tokio::runtime::Runtime;

use crate::lab::{Lab, Layout, UnitStatus, UpOptions};

/// The host that everything is measured on.
const HOST: &str = "h1";
const NAME: &str = "bench";

/// What can be measured by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Creating a set, beside plain containers.
    Create,
    /// Exchanging a body, there and back.
    Exchange,
    /// Images in and out beside plain copies, a second image of which one layer is new, and the first start of a large image on
    /// a host that has nothing of it, beside `docker load`.
    Images,
    /// What the daemons take while nothing happens.
    Rest,
    /// What collecting the figures of 200 containers takes, and whether dockerd is asked for it.
    Figures,
    /// A power cut of a host: until each of its instances answers from elsewhere.
    Failover,
    /// A move to another host with a volume, copied while it is stopped and ahead of that.
    Move,
}

/// One number, with what was promised of it.
pub struct Figure {
    pub name: &'static str,
    pub value: f64,
    pub goal: &'static str,
}

/// What the measurements share.
struct Bench<'a> {
    lab: &'a Lab,
    client: &'a Client,
    runtime: &'a Runtime,
}

/// Brings a lab up, measures `only` these parts (none: all), prints, takes it down.
pub fn run(
    layout: Layout,
    program: &Path,
    rounds: usize,
    only: &[Part],
    mut unit: impl FnMut(&UnitStatus),
) -> Result<()> {
    let wanted = |part: Part| only.is_empty() || only.contains(&part);
    let before = load();
    let mut figures = Vec::new();
    if [Part::Create, Part::Exchange, Part::Images, Part::Rest, Part::Figures].into_iter().any(wanted) {
        figures.extend(on_one_host(layout.clone(), program, rounds, wanted, &mut unit)?);
    }
    if wanted(Part::Move) {
        figures.extend(moves::measure(layout.clone(), program, &mut unit)?);
    }
    if wanted(Part::Failover) {
        figures.extend(failover::measure(layout, program, unit)?);
    }
    print(&figures, &before);
    Ok(())
}

fn on_one_host(
    layout: Layout,
    program: &Path,
    rounds: usize,
    wanted: impl Fn(Part) -> bool,
    mut unit: impl FnMut(&UnitStatus),
) -> Result<Vec<Figure>> {
    let lab = Lab::up(&UpOptions::new(layout.clone(), program.to_owned(), 1), |u| unit(u))?;
    let client = crate::run::client(&layout)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("start a runtime")?;
    let bench = Bench { lab: &lab, client: &client, runtime: &runtime };
    let figures = bench.figures(rounds, wanted)?;
    lab.down()?;
    Ok(figures)
}

impl Bench<'_> {
    fn figures(&self, rounds: usize, wanted: impl Fn(Part) -> bool) -> Result<Vec<Figure>> {
        rest::widen(self.lab)?;
        self.prepare()?;
        let mut figures = Vec::new();
        if wanted(Part::Create) {
            figures.extend(create::measure(self, rounds)?);
        }
        if wanted(Part::Exchange) {
            figures.extend(exchange::measure(self)?);
        }
        if wanted(Part::Images) {
            figures.extend(transfers::measure(self)?);
            figures.extend(images::measure(self)?);
        }
        if wanted(Part::Rest) {
            figures.extend(rest::measure(self)?);
        }
        // The last one: it puts a socket of its own before dockerd.
        if wanted(Part::Figures) {
            figures.extend(figures::measure(self)?);
        }
        Ok(figures)
    }

    /// Network, group, images.
    fn prepare(&self) -> Result<()> {
        let subnet = SubnetSpec {
            cidr: "10.9.0.0/24".parse().context("subnet")?,
            gateway: None,
            dns: Vec::new(),
            dhcp: true,
        };
        let rules: Vec<RuleSpec> =
            serde_json::from_value(json!([{ "protocol": "icmp" }])).context("rules")?;
        self.runtime.block_on(async {
            let network = NetworkCreate { name: NAME.to_owned(), subnet, mtu: None };
            self.client.create_network(&network).await?;
            self.client.create_security_group(&SecurityGroupCreate { name: NAME.to_owned(), rules }).await
        })?;
        let images = self.lab.layout().images();
        self.image(
            json!({ "name": "busybox", "format": "docker-archive" }),
            &[("archive", images.join("busybox.tar"))],
        )?;
        let vm = [("kernel", images.join("vm-kernel")), ("initramfs", images.join("vm-initramfs"))];
        self.image(json!({ "name": "vm", "format": "kernel-initramfs" }), &vm)
    }

    fn image(&self, request: serde_json::Value, blobs: &[(&str, std::path::PathBuf)]) -> Result<()> {
        let request = serde_json::from_value(request).context("image")?;
        self.runtime.block_on(async {
            let image = self.client.create_image(&request).await?;
            for (role, path) in blobs {
                let role = serde_json::from_value(json!(role)).context("role")?;
                self.client.upload_file(image.id, role, path, Box::new(|_, _| {})).await?;
            }
            Ok(())
        })
    }

    /// Waits until nothing of this name is left.
    fn delete(&self, name: &str, volume: bool) -> Result<()> {
        self.runtime.block_on(async {
            let instance = self.client.find_instance(name).await?;
            self.client.delete_instance(instance.id, volume).await?;
            let limit = std::time::Duration::from_secs(120);
            self.client.wait_instance_gone(instance.id, |_| false, limit, |_| ()).await?;
            for trashed in self.client.recycle_bin().await? {
                self.client.purge_volume(trashed.id).await?;
            }
            Ok(())
        })
    }
}

/// Anchor and two members, as the story's set; with a network, and a volume where wanted.
fn set(name: &str, volume: bool, memory_mib: u64) -> Result<InstanceCreate> {
    let command = ["/bin/sh", "-c", bare::COMMAND];
    let set: SetSpec = serde_json::from_value(json!({ "members": [
        { "name": "one", "index": 1, "image": "busybox", "command": command, "options": { "cpu": 50, "mem": 50 } },
        { "name": "two", "index": 2, "image": "busybox", "command": command, "options": { "cpu": 50, "mem": 50 } },
    ] }))
    .context("set")?;
    Ok(InstanceCreate {
        name: name.to_owned(),
        vcpus: 1,
        memory_mib,
        bodies: vec![BodySpec::Set(set)],
        networks: vec![InstanceNetwork {
            network: NAME.to_owned(),
            address: None,
            port: None,
            bandwidth: Default::default(),
        }],
        security_groups: vec![NAME.to_owned()],
        volume: volume.then_some(InstanceVolume { size_gib: Some(1), name: None, id: None }),
        user_data: None,
        ssh_keys: Vec::new(),
        metadata: Default::default(),
        failover: Default::default(),
        failover_terms: Default::default(),
        host: Some(HOST.to_owned()),
        ..InstanceCreate::default()
    })
}

/// Runs, and so do all its members.
fn runs(instance: &amphi_api::instance::Instance) -> bool {
    instance.state == InstanceState::Running && instance.members.iter().all(|m| m.running)
}

/// The middle one; of an even count the lower of the two.
fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn load() -> String {
    std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim().to_owned()
}

fn print(figures: &[Figure], before: &str) {
    println!("\n{:<34} {:>10}   GOAL", "FIGURE", "VALUE");
    for figure in figures {
        println!("{:<34} {:>10.2}   {}", figure.name, figure.value, figure.goal);
    }
    println!("\nload average before: {before}; after: {}\n", load());
    for figure in figures {
        println!("{}: {:.2}", figure.name, figure.value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.0);
        assert!(median(&[]).is_nan());
        set("a", true, 64).unwrap().check().unwrap();
    }
}
