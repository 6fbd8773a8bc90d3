//! `amphi move` and `amphi rebalance`: instances to other hosts.

use crate::failure::Failure;
use crate::noun::exchange::milliseconds;
use crate::session::{Session, say};
use crate::table::{age, or_dash, pairs, rows, word};
use amphi_api::client::Client;
use amphi_api::instance::{BodyKind, Exchange, ExchangePhase, MoveCreate};
use amphi_api::placement::{RebalanceMove, RebalancePlan};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;
use std::time::Duration;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Arguments {
    /// Name or id. An instance that is named like a verb below is reached by its id.
    #[arg(required = true)]
    instance: Option<String>,
    /// Name or id of the host to go to. Default: placement chooses.
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
    /// The kind of body to have there. Default: the present one.
    #[arg(long, value_enum)]
    kind: Option<Kind>,
    /// While it runs, or not at all. Default: a VM that runs moves so where it cannot move otherwise.
    #[arg(long, conflicts_with = "cold")]
    live: bool,
    /// Stop it for the move.
    #[arg(long)]
    cold: bool,
    /// Copy its bytes only while it is stopped, through the controller. Default: while it runs, and then what has changed.
    #[arg(long, conflicts_with = "live")]
    stopped: bool,
    /// The most seconds for bytes to go over while it runs; a move that takes longer is called off.
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=604_800))]
    deadline: Option<u32>,
    /// Why.
    #[arg(long, required = true)]
    reason: Option<String>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
pub enum Command {
    /// The moves of an instance, or of all.
    List { instance: Option<String> },
    /// Call off the move (or exchange) that an instance is in: it ends where it was.
    Cancel { instance: String },
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Vm,
    Set,
}

#[derive(Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub struct Rebalance {
    /// Show the moves that would level the load; nothing moves.
    #[arg(long, group = "what")]
    plan: bool,
    /// Show them and carry them out.
    #[arg(long, group = "what")]
    apply: bool,
    /// Most moves in all.
    #[arg(long, value_name = "MOVES", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    most: u32,
    /// Most moves at one time.
    #[arg(long, value_name = "MOVES", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    at_a_time: u32,
}

impl Arguments {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self.command {
            Some(Command::List { instance }) => {
                let mut all = match instance {
                    Some(name) => client.exchanges(client.find_instance(&name).await?.id).await?,
                    None => client.all_exchanges().await?,
                };
                all.retain(|e| e.journey.is_some());
                return session.list("exchanges", &all, |e| list(e, Timestamp::now()));
            }
            Some(Command::Cancel { instance }) => {
                let instance = client.find_instance(&instance).await?;
                let open = client.exchanges(instance.id).await?.into_iter().find(|e| e.ended_at.is_none());
                let Some(open) = open else {
                    return Err(Failure::new(4, format!("{} is in no move", instance.name)));
                };
                let mut ended = client.cancel_exchange(open.id).await?;
                if let Some(deadline) = session.wait() {
                    let waiting = session.waiting(format!("{}: cancel", instance.name));
                    ended =
                        client.wait_exchange(open.id, deadline, |e| waiting.state(&word(e.phase))).await?;
                }
                return session.show(&ended, |e| summary(e, &instance.name));
            }
            None => {}
        }
        let (Some(name), Some(reason)) = (self.instance, self.reason) else {
            return Err(Failure::new(2, "give an instance and --reason"));
        };
        let kind = self.kind.map(|kind| match kind {
            Kind::Vm => BodyKind::Vm,
            Kind::Set => BodyKind::Set,
        });
        let live = (self.live || self.cold).then_some(self.live);
        let ahead = self.stopped.then_some(false);
        let request = MoveCreate { to: self.to, kind, live, ahead, deadline_s: self.deadline, reason };
        request.check()?;
        let instance = client.find_instance(&name).await?;
        let mut one = client.create_move(instance.id, &request).await?;
        if let Some(deadline) = session.wait() {
            let to = one.journey.as_ref().map(|j| j.to_name.clone()).unwrap_or_default();
            let waiting = session.waiting(format!("{}: to {to}", instance.name));
            one = client.wait_exchange(one.id, deadline, |e| waiting.state(&progress(e))).await?;
        }
        session.show(&one, |e| summary(e, &instance.name))?;
        failed(&one, &instance.name)
    }
}

/// The phase, and how far the bytes are.
fn progress(one: &Exchange) -> String {
    let copy = one.journey.as_ref().and_then(|j| j.copy.as_ref());
    let Some(now) = copy.and_then(|copy| copy.now.as_ref()) else { return word(one.phase) };
    let stop =
        copy.and_then(|c| c.estimated_stop_ms).map(|ms| format!(", stop of about {}", milliseconds(ms)));
    format!(
        "{}, pass {}: {} of {} MiB read, {} sent{}",
        word(one.phase),
        now.pass,
        now.read_bytes >> 20,
        now.all_bytes >> 20,
        now.sent_bytes >> 20,
        stop.unwrap_or_default()
    )
}

/// What became of a move that has ended.
fn failed(one: &Exchange, name: &str) -> Result<(), Failure> {
    if one.phase != ExchangePhase::Failed {
        return Ok(());
    }
    let why =
        one.fault.as_ref().map_or("no reason given".to_owned(), |f| format!("{}: {}", f.code, f.message));
    Err(Failure::new(1, format!("{name} stays where it was: {why}"))
        .next(format!("amphi instance show {name}")))
}

fn summary(one: &Exchange, name: &str) -> String {
    let mut lines = vec![("Instance", name.to_owned()), ("Move", one.id.to_string())];
    if let Some(journey) = &one.journey {
        lines.push(("Hosts", format!("{} to {}", journey.from_name, journey.to_name)));
        lines.push(("How", if journey.live { "while it runs" } else { "stopped" }.to_owned()));
        lines.push(("Reason", journey.reason.clone()));
    }
    if one.from != one.to {
        lines.push(("Body", format!("{} to {}", one.from, one.to)));
    }
    lines.push(("Phase", word(one.phase)));
    let copy = one.journey.as_ref().and_then(|j| j.copy.as_ref());
    for (number, pass) in copy.into_iter().flat_map(|copy| &copy.passes).enumerate() {
        let when = if pass.last { "stopped" } else { "running" };
        let (read, sent) = (pass.read_bytes >> 20, pass.sent_bytes >> 20);
        let took = milliseconds(pass.took_ms);
        lines.push(("Pass", format!("{}, {when}: {read} MiB read, {sent} MiB sent in {took}", number + 1)));
    }
    if let Some(outage) = one.outage_ms {
        lines.push(("Outage", milliseconds(outage)));
    }
    pairs(&lines)
}

fn list(moves: &[Exchange], now: Timestamp) -> String {
    rows(
        &["STARTED", "FROM", "TO", "BODY", "PHASE", "OUTAGE", "REASON", "FAULT", "INSTANCE"],
        moves.iter().filter_map(|e| {
            let journey = e.journey.as_ref()?;
            Some(vec![
                format!("{} ago", age(e.started_at, now)),
                journey.from_name.clone(),
                journey.to_name.clone(),
                if e.from == e.to { e.to.to_string() } else { format!("{} to {}", e.from, e.to) },
                word(e.phase),
                or_dash(e.outage_ms.map(milliseconds)),
                journey.reason.clone(),
                or_dash(e.fault.as_ref().map(|f| format!("{}: {}", f.code, f.message))),
                e.instance.to_string(),
            ])
        }),
    )
}

impl Rebalance {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let plan = client.plan_rebalance(self.most).await?;
        session.show(&plan, planned)?;
        if !self.apply {
            return Ok(());
        }
        let deadline = session.wait().unwrap_or(Duration::from_secs(300));
        let mut trouble = None;
        // So many at a time: the next ones begin when these have ended.
        for some in plan.moves.chunks(self.at_a_time as usize) {
            let mut under_way = Vec::new();
            for one in some {
                match order(client, one).await {
                    Ok(exchange) => under_way.push((one, exchange)),
                    Err(failure) => {
                        say(&format!("{}: {}", one.name, failure.what))?;
                        trouble.get_or_insert(failure);
                    }
                }
            }
            for (one, exchange) in under_way {
                let waiting = session.waiting(format!("{}: to {}", one.name, one.to_name));
                let ended =
                    client.wait_exchange(exchange.id, deadline, |e| waiting.state(&word(e.phase))).await?;
                drop(waiting);
                session.note(&format!("{}: {}", one.name, word(ended.phase)))?;
                if let Err(failure) = failed(&ended, &one.name) {
                    trouble.get_or_insert(failure);
                }
            }
        }
        trouble.map_or(Ok(()), Err)
    }
}

async fn order(client: &Client, one: &RebalanceMove) -> Result<Exchange, Failure> {
    let request = MoveCreate {
        to: Some(one.to.to_string()),
        kind: None,
        live: None,
        reason: "rebalancing".to_owned(),
        ..MoveCreate::default()
    };
    Ok(client.create_move(one.instance, &request).await?)
}

fn planned(plan: &RebalancePlan) -> String {
    let table = rows(
        &["INSTANCE", "FROM", "TO"],
        plan.moves.iter().map(|m| vec![m.name.clone(), m.from_name.clone(), m.to_name.clone()]),
    );
    let spread = format!(
        "fullest less emptiest host: {:.0} % now, {:.0} % after\n",
        plan.spread_before * 100.0,
        plan.spread_after * 100.0
    );
    if plan.moves.is_empty() { format!("nothing to move; {spread}") } else { format!("{table}{spread}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_tables() {
        let id = "00000000-0000-7000-8000-000000000001";
        let moves: Vec<Exchange> = serde_json::from_value(json!([
            {"id": id, "instance": id, "from": "set", "to": "set", "phase": "done", "outage_ms": 2045,
             "journey": {"from": id, "from_name": "h1", "to": id, "to_name": "h2", "reason": "fans", "cause": "order"},
             "started_at": "2026-01-02T03:04:05Z"},
            {"id": id, "instance": id, "from": "set", "to": "vm", "phase": "done", "started_at": "2026-01-02T03:04:05Z"}]))
        .unwrap();
        assert_eq!(
            list(&moves, "2026-01-02T03:05:05Z".parse().unwrap()),
            format!(
                "\
STARTED  FROM  TO  BODY  PHASE  OUTAGE   REASON  FAULT  INSTANCE
60s ago  h1    h2  set   done   2.045 s  fans    -      {id}
"
            )
        );
        let plan: RebalancePlan = serde_json::from_value(json!({"moves": [
            {"instance": id, "name": "web", "from": id, "from_name": "h1", "to": id, "to_name": "h2"}],
            "spread_before": 0.5, "spread_after": 0.1}))
        .unwrap();
        assert_eq!(
            planned(&plan),
            "\
INSTANCE  FROM  TO
web       h1    h2
fullest less emptiest host: 50 % now, 10 % after
"
        );
    }
}
