//! `amphi place`: where an order would go, and why not elsewhere. Claims nothing.

use crate::failure::Failure;
use crate::flags::memory;
use crate::session::Session;
use crate::table::{or_dash, rows};
use amphi_api::instance::BodyKind;
use amphi_api::placement::{PlacementAsk, PlacementExplained, PlacementVerdict, Qos};
use clap::{Args, ValueEnum};

#[derive(Args)]
pub struct Arguments {
    /// Say of every host why, or why not.
    #[arg(long)]
    explain: bool,
    /// Name or id of an instance that exists: what it is says what is asked, its own host is left out.
    #[arg(long, conflicts_with_all = ["vcpus", "memory", "volume_gib", "body", "network", "image", "zone", "qos"])]
    instance: Option<String>,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Memory: `512`, `512MiB`, `4GiB`.
    #[arg(long, value_name = "SIZE", default_value = "256MiB", value_parser = memory)]
    memory: u64,
    /// Room for new volumes, in GiB.
    #[arg(long, value_name = "GIB", default_value_t = 0)]
    volume_gib: u64,
    /// Acceptable bodies, the preferred first. Default: a set, else a VM.
    #[arg(long, value_enum)]
    body: Vec<Kind>,
    /// Name or id of a network; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Name or id of the image.
    #[arg(long)]
    image: Option<String>,
    /// Name or id of the one host.
    #[arg(long)]
    host: Option<String>,
    #[arg(long)]
    zone: Option<String>,
    /// What stands behind its vCPUs and memory.
    #[arg(long, value_name = "CLASS", default_value_t = Qos::Standard)]
    qos: Qos,
    /// The scheduler: spread, pack. Default: the project's, else the cloud's.
    #[arg(long, value_name = "NAME")]
    scheduler: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Vm,
    Set,
}

impl Arguments {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let bodies = self.body.iter().map(|kind| match kind {
            Kind::Vm => BodyKind::Vm,
            Kind::Set => BodyKind::Set,
        });
        let ask = match self.instance {
            Some(_) => PlacementAsk {
                instance: self.instance,
                host: self.host,
                scheduler: self.scheduler,
                ..PlacementAsk::default()
            },
            None => PlacementAsk {
                instance: None,
                vcpus: self.vcpus,
                memory_mib: self.memory,
                volume_gib: self.volume_gib,
                bodies: bodies.collect(),
                networks: self.network,
                image: self.image,
                host: self.host,
                zone: self.zone,
                qos: self.qos,
                scheduler: self.scheduler,
            },
        };
        let told = session.client()?.explain_placement(&ask).await?;
        session.show(&told, |told| if self.explain { table(told) } else { line(told) })?;
        match told.chosen {
            Some(_) => Ok(()),
            None => Err(Failure::new(1, "no host is fit").next("amphi place --explain")),
        }
    }
}

fn line(told: &PlacementExplained) -> String {
    match &told.chosen {
        Some(chosen) => match chosen.body {
            Some(body) => format!("{} as {body}\n", chosen.host_name),
            None => format!("{}\n", chosen.host_name),
        },
        None => String::new(),
    }
}

fn table(told: &PlacementExplained) -> String {
    let why = |v: &PlacementVerdict| {
        if v.reasons.is_empty() {
            let weights = v.weights.iter().filter(|(_, value)| **value != 0.0);
            weights.map(|(name, value)| format!("{name} {value:.3}")).collect::<Vec<_>>().join(", ")
        } else {
            v.reasons.iter().map(|r| format!("{}: {}", r.filter, r.why)).collect::<Vec<_>>().join("; ")
        }
    };
    let table = rows(
        &["HOST", "FIT", "BODY", "SCORE", "WHY"],
        told.hosts.iter().map(|v| {
            vec![
                v.name.clone(),
                if v.reasons.is_empty() { "yes" } else { "no" }.to_owned(),
                or_dash(v.body),
                or_dash(v.score.map(|score| format!("{score:.3}"))),
                why(v),
            ]
        }),
    );
    format!("scheduler: {}\n{table}", told.scheduler)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_table() {
        let id = "00000000-0000-7000-8000-000000000001";
        let told: PlacementExplained = serde_json::from_value(json!({
            "scheduler": "spread",
            "chosen": {"host": id, "host_name": "h1", "body": "set"},
            "hosts": [
                {"host": id, "name": "h1", "body": "set", "weights": {"free_cpu": 0.5, "group": 0.0}, "score": 0.5},
                {"host": id, "name": "h2", "reasons": [
                    {"filter": "state", "why": "is down"}, {"filter": "cpu", "why": "has 2 CPUs, 4 are asked"}]}]}))
        .unwrap();
        assert_eq!(
            table(&told),
            "\
scheduler: spread
HOST  FIT  BODY  SCORE  WHY
h1    yes  set   0.500  free_cpu 0.500
h2    no   -     -      state: is down; cpu: has 2 CPUs, 4 are asked
"
        );
        assert_eq!(line(&told), "h1 as set\n");
    }
}
