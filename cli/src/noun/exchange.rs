//! `amphi exchange`: the other body for an instance, and what became of earlier exchanges.

use crate::failure::Failure;
use crate::json_file::JsonFile;
use crate::session::Session;
use crate::table::{age, or_dash, pairs, rows, word};
use amphi_api::instance::{BodyKind, BodySpec, Exchange, ExchangeCreate, ExchangePhase, Instance, VmSpec};
use amphi_api::set::SetSpec;
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use std::path::{Path, PathBuf};

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    /// Name or id. An instance that is named like a verb below is reached by its id.
    #[arg(required = true)]
    instance: Option<String>,
    /// The kind of body to take.
    #[arg(long, value_enum, required = true)]
    to: Option<Kind>,
    /// Image of the VM, if it shall not be the set itself that runs as one.
    #[arg(long, conflicts_with = "file")]
    image: Option<String>,
    /// The body, if the instance does not list such a body yet: a set description, or `{"set": …}`, `{"vm": …}`.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// The exchanges of an instance, or of all.
    List { instance: Option<String> },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Vm,
    Set,
}

impl Arguments {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        if let Some(Command::List { instance }) = self.command {
            let exchanges = match instance {
                Some(name) => client.exchanges(client.find_instance(&name).await?.id).await?,
                None => client.all_exchanges().await?,
            };
            return session.list("exchanges", &exchanges, |e| list(e, Timestamp::now()));
        }
        let (Some(name), Some(to)) = (self.instance, self.to) else {
            return Err(Failure::new(2, "give an instance and --to"));
        };
        let to = match to {
            Kind::Vm => BodyKind::Vm,
            Kind::Set => BodyKind::Set,
        };
        let body = match (self.image, &self.file) {
            (Some(_), _) if to == BodyKind::Set => {
                return Err(Failure::new(2, "--image is for VMs; give a set as --file"));
            }
            (Some(image), _) => Some(BodySpec::Vm(VmSpec::new(image, None))),
            (None, Some(path)) => Some(load(path, to)?),
            (None, None) => None,
        };
        let request = ExchangeCreate { to, body };
        request.check()?;
        let instance = client.find_instance(&name).await?;
        let exchange = client.create_exchange(instance.id, &request).await?;
        let exchange = match session.wait() {
            None => exchange,
            Some(deadline) => {
                let waiting =
                    session.waiting(format!("{}: {} to {}", instance.name, exchange.from, exchange.to));
                client.wait_exchange(exchange.id, deadline, |e| waiting.state(&word(e.phase))).await?
            }
        };
        session.show(&exchange, |e| summary(e, &instance))?;
        if exchange.phase == ExchangePhase::Failed {
            let why =
                exchange.fault.map_or("no reason given".to_owned(), |f| format!("{}: {}", f.code, f.message));
            return Err(Failure::new(1, format!("{} keeps its {}: {why}", instance.name, exchange.from))
                .next(format!("amphi instance show {}", instance.name)));
        }
        Ok(())
    }
}

/// A body: `{"set": …}` or `{"vm": …}`, or the set description alone.
fn load(path: &Path, to: BodyKind) -> Result<BodySpec, Failure> {
    let file = JsonFile::read(path)?;
    let value: serde_json::Value = file.parse()?;
    if value.get("set").is_some() || value.get("vm").is_some() || to == BodyKind::Vm {
        return file.parse();
    }
    let set: SetSpec = file.parse()?;
    set.check().map_err(|e| file.refused(e))?;
    Ok(BodySpec::Set(set))
}

fn summary(exchange: &Exchange, instance: &Instance) -> String {
    let mut lines = vec![
        ("Instance", instance.name.clone()),
        ("Exchange", exchange.id.to_string()),
        ("Body", format!("{} to {}", exchange.from, exchange.to)),
        ("Phase", word(exchange.phase)),
    ];
    if let Some(outage) = exchange.outage_ms {
        lines.push(("Outage", milliseconds(outage)));
    }
    pairs(&lines)
}

pub fn milliseconds(count: u64) -> String {
    format!("{}.{:03} s", count / 1000, count % 1000)
}

fn list(exchanges: &[Exchange], now: Timestamp) -> String {
    rows(
        &["STARTED", "FROM", "TO", "PHASE", "OUTAGE", "FAULT", "INSTANCE"],
        exchanges.iter().map(|e| {
            vec![
                format!("{} ago", age(e.started_at, now)),
                e.from.to_string(),
                e.to.to_string(),
                word(e.phase),
                or_dash(e.outage_ms.map(milliseconds)),
                or_dash(e.fault.as_ref().map(|f| format!("{}: {}", f.code, f.message))),
                e.instance.to_string(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_list() {
        let id = "00000000-0000-7000-8000-000000000001";
        let exchanges: Vec<Exchange> = serde_json::from_value(json!([
            {"id": id, "instance": id, "from": "set", "to": "vm", "phase": "done", "outage_ms": 2045,
             "started_at": "2026-01-02T03:04:05Z"},
            {"id": id, "instance": id, "from": "vm", "to": "set", "phase": "failed",
             "fault": {"code": "image_broken", "message": "no manifest", "since": "2026-01-02T03:04:05Z"},
             "started_at": "2026-01-02T03:03:05Z"}]))
        .unwrap();
        assert_eq!(
            list(&exchanges, "2026-01-02T03:05:05Z".parse().unwrap()),
            format!(
                "\
STARTED  FROM  TO   PHASE   OUTAGE   FAULT                      INSTANCE
60s ago  set   vm   done    2.045 s  -                          {id}
2m ago   vm    set  failed  -        image_broken: no manifest  {id}
"
            )
        );
    }
}
