//! `amphi top`: what members and VMs use, as rates between two answers. Owns the reckoning and the order of the lines.

use crate::failure::Failure;
use crate::session::{Session, write_out};
use crate::table;
use amphi_api::looking::{InstanceUse, Usage, Use};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

#[derive(clap::Args)]
pub struct Top {
    /// Only this instance, member by member; default: the project's.
    instance: Option<String>,
    /// Only what is on this host.
    #[arg(long)]
    host: Option<String>,
    /// Member by member.
    #[arg(short, long)]
    members: bool,
    /// Once, over one interval.
    #[arg(long)]
    once: bool,
    /// Between two looks, in seconds.
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    #[arg(long, value_enum, default_value_t = Sort::Cpu)]
    sort: Sort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Sort {
    Name,
    Cpu,
    Memory,
    Io,
    Net,
    Pids,
}

/// One line of the table. Rates are none for what was not there before, or has started anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Line {
    instance: String,
    name: String,
    kind: String,
    host: String,
    /// None: all of the instance.
    member: Option<String>,
    /// Of one CPU.
    cpu_percent: Option<f64>,
    throttled_percent: Option<f64>,
    memory_bytes: f64,
    memory_limit_bytes: Option<f64>,
    disk_read_per_second: Option<f64>,
    disk_written_per_second: Option<f64>,
    net_received_per_second: Option<f64>,
    net_sent_per_second: Option<f64>,
    processes: Option<f64>,
    oom_kills: f64,
}

impl Top {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let instance = match &self.instance {
            Some(name) => Some(client.find_instance(name).await?.id),
            None => None,
        };
        let members = self.members || instance.is_some();
        let interval = Duration::from_secs(if self.once { 1 } else { self.interval });
        let mut before = client.use_now(instance, self.host.as_deref()).await?;
        loop {
            tokio::time::sleep(interval).await;
            let now = client.use_now(instance, self.host.as_deref()).await?;
            let lines = lines(&before, &now, members, self.sort);
            let clear = !self.once && std::io::stdout().is_terminal();
            if clear {
                write_out(b"\x1b[H\x1b[2J")?;
            }
            session.list("lines", &lines, render)?;
            for silent in &now.silent {
                eprintln!("host {}: {}", table::clean(&silent.host), table::clean(&silent.why));
            }
            if self.once {
                return Ok(());
            }
            before = now;
        }
    }
}

/// What grew between two answers, by the host's own clock; none where it shrank: it has started anew.
fn rate(before: &InstanceUse, now: &InstanceUse, figure: impl Fn(&Use) -> f64) -> Option<f64> {
    let seconds = now.at.duration_since(before.at).as_secs_f64();
    let grown = figure(&now.used) - figure(&before.used);
    (seconds > 0.0 && grown >= 0.0).then(|| grown / seconds)
}

fn line(before: Option<&InstanceUse>, now: &InstanceUse) -> Line {
    let rate = |figure: fn(&Use) -> f64| before.and_then(|before| rate(before, now, figure));
    Line {
        instance: now.instance.to_string(),
        name: now.name.clone(),
        kind: now.kind.clone(),
        host: now.host.clone(),
        member: now.member.clone(),
        cpu_percent: rate(|u| u.cpu_seconds * 100.0),
        throttled_percent: rate(|u| u.throttled_seconds * 100.0),
        memory_bytes: now.used.memory_bytes,
        memory_limit_bytes: now.used.memory_limit_bytes,
        disk_read_per_second: rate(|u| u.disk_read_bytes),
        disk_written_per_second: rate(|u| u.disk_written_bytes),
        net_received_per_second: rate(|u| u.net_received_bytes),
        net_sent_per_second: rate(|u| u.net_sent_bytes),
        processes: now.used.processes,
        oom_kills: now.used.oom_kills,
    }
}

fn add(sum: &mut Option<f64>, more: Option<f64>) {
    if let Some(more) = more {
        *sum.get_or_insert(0.0) += more;
    }
}

/// Instances in order, the one that uses most first; below each its members, where they are asked for.
fn lines(before: &Usage, now: &Usage, members: bool, sort: Sort) -> Vec<Line> {
    let earlier: BTreeMap<_, _> = before.rows.iter().map(|row| ((row.instance, &row.member), row)).collect();
    let mut instances: BTreeMap<_, (Line, Vec<Line>)> = BTreeMap::new();
    for row in &now.rows {
        let line = line(earlier.get(&(row.instance, &row.member)).copied(), row);
        let (sum, parts) = instances.entry(row.instance).or_default();
        for (sum, more) in [
            (&mut sum.cpu_percent, line.cpu_percent),
            (&mut sum.throttled_percent, line.throttled_percent),
            (&mut sum.memory_limit_bytes, line.memory_limit_bytes),
            (&mut sum.disk_read_per_second, line.disk_read_per_second),
            (&mut sum.disk_written_per_second, line.disk_written_per_second),
            (&mut sum.net_received_per_second, line.net_received_per_second),
            (&mut sum.net_sent_per_second, line.net_sent_per_second),
            (&mut sum.processes, line.processes),
        ] {
            add(sum, more);
        }
        sum.memory_bytes += line.memory_bytes;
        sum.oom_kills += line.oom_kills;
        let Line { instance, name, kind, host, .. } = line.clone();
        (sum.instance, sum.name, sum.kind, sum.host) = (instance, name, kind, host);
        parts.extend(Some(line).filter(|line| line.member.is_some()));
    }
    let weight = |line: &Line| match sort {
        Sort::Name => 0.0,
        Sort::Cpu => line.cpu_percent.unwrap_or(0.0),
        Sort::Memory => line.memory_bytes,
        Sort::Io => line.disk_read_per_second.unwrap_or(0.0) + line.disk_written_per_second.unwrap_or(0.0),
        Sort::Net => line.net_received_per_second.unwrap_or(0.0) + line.net_sent_per_second.unwrap_or(0.0),
        Sort::Pids => line.processes.unwrap_or(0.0),
    };
    let order = |a: &Line, b: &Line| {
        weight(b).total_cmp(&weight(a)).then_with(|| (&a.name, &a.member).cmp(&(&b.name, &b.member)))
    };
    let mut all: Vec<_> = instances.into_values().collect();
    all.sort_by(|a, b| order(&a.0, &b.0));
    let mut lines = Vec::new();
    for (sum, mut parts) in all {
        lines.push(sum);
        if members {
            parts.sort_by(order);
            lines.append(&mut parts);
        }
    }
    lines
}

fn render(lines: &[Line]) -> String {
    let percent = |value: Option<f64>| table::or_dash(value.map(|value| format!("{value:.1}")));
    let bytes = |value: Option<f64>| table::or_dash(value.map(|value| table::bytes(value as u64)));
    let header = [
        "NAME", "HOST", "CPU%", "HELD%", "MEMORY", "LIMIT", "READ/S", "WRITE/S", "IN/S", "OUT/S", "PIDS",
        "OOM",
    ];
    table::rows(
        &header,
        lines.iter().map(|line| {
            let name = match &line.member {
                Some(member) => format!("  {member}"),
                None => line.name.clone(),
            };
            vec![
                name,
                line.host.clone(),
                percent(line.cpu_percent),
                percent(line.throttled_percent),
                bytes(Some(line.memory_bytes)),
                bytes(line.memory_limit_bytes),
                bytes(line.disk_read_per_second),
                bytes(line.disk_written_per_second),
                bytes(line.net_received_per_second),
                bytes(line.net_sent_per_second),
                table::or_dash(line.processes.map(|count| format!("{count:.0}"))),
                format!("{:.0}", line.oom_kills),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use amphi_api::InstanceId;
    use jiff::Timestamp;

    #[test]
    fn rates_sums_and_the_order_of_lines() {
        let ids = [InstanceId::new(), InstanceId::new()];
        let row = |at: usize, member: Option<&str>, second: i64, cpu: f64, sent: f64| InstanceUse {
            instance: ids[at],
            name: ["shop", "mail"][at].into(),
            kind: "set".into(),
            host: "h1".into(),
            member: member.map(str::to_owned),
            at: Timestamp::from_second(second).unwrap(),
            used: Use { cpu_seconds: cpu, net_sent_bytes: sent, memory_bytes: 10.0, ..Use::default() },
        };
        let before = Usage {
            rows: vec![
                row(0, Some("web"), 10, 1.0, 0.0),
                row(0, None, 10, 0.0, 50.0),
                row(1, Some("mx"), 10, 9.0, 0.0),
            ],
            silent: Vec::new(),
        };
        let now = Usage {
            rows: vec![
                row(0, Some("web"), 12, 2.0, 0.0),
                row(0, Some("new"), 12, 5.0, 0.0),
                row(0, None, 12, 0.0, 150.0),
                // It has started anew.
                row(1, Some("mx"), 12, 0.5, 0.0),
            ],
            silent: Vec::new(),
        };
        let told = lines(&before, &now, true, Sort::Cpu);
        let names: Vec<_> = told.iter().map(|line| (line.name.as_str(), line.member.as_deref())).collect();
        assert_eq!(
            names,
            [
                ("shop", None),
                ("shop", Some("web")),
                ("shop", Some("new")),
                ("mail", None),
                ("mail", Some("mx"))
            ]
        );
        assert_eq!((told[0].cpu_percent, told[0].net_sent_per_second), (Some(50.0), Some(50.0)));
        assert_eq!((told[2].cpu_percent, told[4].cpu_percent), (None, None));
        assert_eq!(told[0].memory_bytes, 30.0);
        let by_name = lines(&before, &now, false, Sort::Name);
        assert_eq!(by_name.iter().map(|line| line.name.as_str()).collect::<Vec<_>>(), ["mail", "shop"]);
        let text = render(&told);
        assert!(text.contains("CPU%") && text.contains("\n  web"), "{text}");
    }
}
