//! `amphi failovers`: what became of hosts that were taken for dead, and how long each step took.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{age, or_dash, pairs, rows, word};
use amphi_api::FailoverId;
use amphi_api::failover::{Failover, FailoverFate, FailoverInstance};
use clap::Args;
use jiff::Timestamp;

#[derive(Args)]
pub struct Arguments {
    /// One failover in full, by its id; or those of one host, by its name or id. Default: all, the newest first.
    which: Option<String>,
}

impl Arguments {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let mut failovers = client.failovers().await?;
        if let Some(which) = &self.which {
            if let Ok(id) = which.parse::<FailoverId>()
                && let Some(one) = failovers.iter().find(|f| f.id == id)
            {
                return session.show(one, detail);
            }
            let host = client.find_host(which).await?;
            failovers.retain(|f| f.host == host.id);
        }
        session.list("failovers", &failovers, |f| list(f, Timestamp::now()))
    }
}

/// Milliseconds between two moments, as seconds.
fn between(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<String> {
    let millis = to?.duration_since(from?).as_millis();
    Some(format!("{}.{:03} s", millis / 1000, millis % 1000))
}

fn running_at(instance: &FailoverInstance) -> Option<Timestamp> {
    match instance.fate {
        FailoverFate::Moved { running_at, .. } => running_at,
        _ => None,
    }
}

fn list(failovers: &[Failover], now: Timestamp) -> String {
    let count = |f: &Failover, what: fn(&FailoverFate) -> bool| {
        f.instances.iter().filter(|i| what(&i.fate)).count().to_string()
    };
    rows(
        &[
            "DECIDED",
            "HOST",
            "CAUSE",
            "PHASE",
            "MOVED",
            "WAITING",
            "REFUSED",
            "LAST RUNS AFTER",
            "RETURNED",
            "ID",
        ],
        failovers.iter().map(|f| {
            let last = f.instances.iter().filter_map(running_at).max();
            vec![
                format!("{} ago", age(f.decided_at, now)),
                f.host_name.clone(),
                word(f.cause),
                word(f.phase),
                count(f, |fate| matches!(fate, FailoverFate::Moved { .. })),
                count(f, |fate| matches!(fate, FailoverFate::Waiting { .. })),
                count(f, |fate| matches!(fate, FailoverFate::Refused { .. })),
                or_dash(between(Some(f.decided_at), last)),
                or_dash(f.returned_at.map(|at| format!("{} ago", age(at, now)))),
                f.id.to_string(),
            ]
        }),
    )
}

fn detail(failover: &Failover) -> String {
    let f = failover;
    let mut lines = vec![
        ("Id", f.id.to_string()),
        ("Host", f.host_name.clone()),
        ("Cause", word(f.cause)),
        ("Phase", word(f.phase)),
        ("Heard", or_dash(f.heard_at)),
        ("Decided", f.decided_at.to_string()),
    ];
    if let Some(fence) = &f.fence {
        let outcome = if fence.success { "the host is off".to_owned() } else { fence.message.clone() };
        lines.push(("Fence", format!("{}: {outcome}", fence.driver)));
    }
    let after =
        |at: Option<Timestamp>| or_dash(between(Some(f.decided_at), at).map(|s| format!("after {s}")));
    lines.extend([
        ("Barred", after(f.barred_at)),
        ("Moved", after(f.moved_at)),
        ("Ended", after(f.ended_at)),
        ("Returned", or_dash(f.returned_at)),
    ]);
    let table = rows(
        &["INSTANCE", "PRIORITY", "RESULT", "RUNS AFTER", "WHERE, WHY"],
        f.instances.iter().map(|i| {
            let (result, why) = told(i, &f.host_name);
            let runs = or_dash(between(Some(f.decided_at), running_at(i)));
            vec![i.name.clone(), i.priority.to_string(), result.to_owned(), runs, why]
        }),
    );
    format!("{}\n{table}", pairs(&lines))
}

fn told(instance: &FailoverInstance, host: &str) -> (&'static str, String) {
    match &instance.fate {
        FailoverFate::Moved { to_name, body, epoch, fresh_volume, taken_over, twin, .. } => {
            let kind = if *body == instance.from { String::new() } else { format!(" as {body}") };
            let blank = fresh_volume
                .map(|v| format!("; BLANK volume {} in place of {}", v.new, v.old))
                .unwrap_or_default();
            let over: Vec<_> = taken_over.iter().map(ToString::to_string).collect();
            let over = if over.is_empty() {
                String::new()
            } else {
                format!("; volume {} taken over", over.join(", "))
            };
            let twin = if *twin { "; its twin was ready" } else { "" };
            ("moved", format!("to {to_name}{kind} (epoch {epoch}){twin}{blank}{over}"))
        }
        FailoverFate::Waiting { volumes } => {
            let volumes: Vec<_> = volumes.iter().map(ToString::to_string).collect();
            ("waiting", format!("until {host} returns: volume {} is there", volumes.join(", ")))
        }
        FailoverFate::Refused { reason } => ("refused", reason.clone()),
        FailoverFate::Gone => ("gone", "it was being deleted".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden() {
        let id = "00000000-0000-7000-8000-000000000001";
        let failover: Failover = serde_json::from_value(json!({
            "id": id, "host": id, "host_name": "h1", "cause": "lease_ended", "phase": "done",
            "heard_at": "2026-01-02T03:04:01Z", "decided_at": "2026-01-02T03:04:05Z",
            "barred_at": "2026-01-02T03:04:05.03Z", "moved_at": "2026-01-02T03:04:05.08Z",
            "ended_at": "2026-01-02T03:04:06.5Z",
            "instances": [
                {"instance": id, "name": "web", "priority": 1, "from": "set", "result": "moved", "to": id,
                 "to_name": "h2", "body": "vm", "epoch": 3, "at": "2026-01-02T03:04:05.08Z",
                 "running_at": "2026-01-02T03:04:06.25Z"},
                {"instance": id, "name": "db", "priority": 100, "from": "vm", "result": "waiting", "volumes": [id]},
                {"instance": id, "name": "big", "priority": 100, "from": "vm", "result": "refused",
                 "reason": "no host is fit"}]}))
        .unwrap();
        let now = "2026-01-02T03:05:05Z".parse().unwrap();
        assert_eq!(
            list(std::slice::from_ref(&failover), now),
            format!(
                "\
DECIDED  HOST  CAUSE        PHASE  MOVED  WAITING  REFUSED  LAST RUNS AFTER  RETURNED  ID
60s ago  h1    lease_ended  done   1      1        1        1.250 s          -         {id}
"
            )
        );
        let text = detail(&failover);
        assert!(text.contains("Barred    after 0.030 s"), "{text}");
        assert!(text.contains("to h2 as vm (epoch 3)"), "{text}");
        assert!(text.contains("until h1 returns"), "{text}");
    }
}
