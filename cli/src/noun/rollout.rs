//! `amphi set update`, `rollout` and `restart`: a set's description, changed while it runs; one member, started again.

use crate::failure::Failure;
use crate::noun::exchange::milliseconds;
use crate::noun::instance_view::detail;
use crate::noun::set::load;
use crate::session::Session;
use crate::table::{age, or_dash, pairs, rows, word};
use amphi_api::InstanceId;
use amphi_api::instance::{Instance, MemberStatus};
use amphi_api::rollout::{
    MemberChange, MemberPhase, MemberRollout, Revision, Rollout, RolloutPhase, RolloutUndo, SetUpdate,
};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(Args)]
pub struct Update {
    /// Name or id.
    set: String,
    /// The member to change.
    #[arg(long, required_unless_present = "file", conflicts_with = "file")]
    member: Option<String>,
    /// Its image, by name or id.
    #[arg(long, requires = "member")]
    image: Option<String>,
    /// A variable to set; `NAME` alone takes it away. Again for more.
    #[arg(long, value_name = "NAME=VALUE", requires = "member")]
    env: Vec<String>,
    /// The whole description in place of the present one: JSON, or YAML by its name.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Refuse unless this is the present revision.
    #[arg(long, value_name = "N")]
    revision: Option<u64>,
    /// Why, for the history.
    #[arg(long)]
    reason: Option<String>,
    /// Its command, in place of the image's own; last on the line, all words after it are its.
    #[arg(long, num_args = 1.., allow_hyphen_values = true, value_name = "WORD", requires = "member")]
    command: Vec<String>,
}

#[derive(Subcommand)]
pub enum Command {
    /// The update under way, to its end; or how the last one ended. Fails where the update did.
    Status {
        /// Name or id.
        set: String,
    },
    /// Begin no further member.
    Pause { set: String },
    /// Go on.
    Resume { set: String },
    /// Out of the update under way, or back to an earlier revision.
    Undo {
        set: String,
        /// Default: the one before.
        #[arg(long, value_name = "N")]
        to: Option<u64>,
    },
    /// The revisions that are kept, the newest first.
    History {
        set: String,
        /// One of them, as it is described.
        #[arg(long, value_name = "N")]
        revision: Option<u64>,
    },
}

#[derive(Args)]
pub struct Restart {
    /// Name or id.
    set: String,
    #[arg(long)]
    member: String,
}

impl Update {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let set = self.file.as_deref().map(load).transpose()?;
        let mut env = BTreeMap::new();
        for one in &self.env {
            match one.split_once('=') {
                Some((name, value)) => env.insert(name.to_owned(), Some(value.to_owned())),
                None => env.insert(one.clone(), None),
            };
        }
        let command = Some(self.command).filter(|words| !words.is_empty());
        let change = MemberChange { image: self.image, command, args: None, env };
        let members = self.member.into_iter().map(|name| (name, change.clone())).collect();
        let update = SetUpdate { set, members, revision: self.revision, reason: self.reason };
        update.check()?;
        let client = session.client()?;
        let instance = client.find_instance(&self.set).await?;
        let rollout = client.update_set(instance.id, &update).await?;
        finish(session, &instance, rollout).await
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::Status { set } => {
                let instance = client.find_instance(&set).await?;
                let rollout = client.rollout(instance.id).await?;
                finish(session, &instance, rollout).await
            }
            Self::Pause { set } => {
                let instance = client.find_instance(&set).await?;
                let rollout = client.pause_rollout(instance.id).await?;
                session.show(&rollout, |r| summary(r, &instance))
            }
            Self::Resume { set } => {
                let instance = client.find_instance(&set).await?;
                let rollout = client.resume_rollout(instance.id).await?;
                finish(session, &instance, rollout).await
            }
            Self::Undo { set, to } => {
                let instance = client.find_instance(&set).await?;
                let before = client.rollout(instance.id).await?;
                let rollout = client.undo_rollout(instance.id, &RolloutUndo { to }).await?;
                let (rollout, shown) = follow(session, &instance, rollout).await?;
                session.show(&rollout, |r| summary(r, &instance))?;
                // Called off: the way back is what was wanted.
                let called_off = !before.ended() && rollout.phase == RolloutPhase::Failed;
                if called_off { Ok(()) } else { shown }
            }
            Self::History { set, revision: None } => {
                let instance = client.find_instance(&set).await?;
                let revisions = client.revisions(instance.id).await?;
                session.list("revisions", &revisions, |r| history(r, Timestamp::now()))
            }
            Self::History { set, revision: Some(number) } => {
                let instance = client.find_instance(&set).await?;
                let revision = client.revision(instance.id, number).await?;
                session.show(&revision, |r| {
                    serde_json::to_string_pretty(&r.set).map(|text| text + "\n").unwrap_or_default()
                })
            }
        }
    }
}

impl Restart {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let instance = client.find_instance(&self.set).await?;
        let before = member(&instance, &self.member).and_then(|m| m.started_at_us);
        let ordered = client.restart_member(instance.id, &self.member).await?;
        let Some(deadline) = session.wait() else {
            return session.show(&ordered, |i| detail(i, Timestamp::now()));
        };
        let waiting = session.waiting(format!("{}: member {}", instance.name, self.member));
        let again = |i: &Instance| {
            let now = member(i, &self.member);
            now.is_some_and(|m| m.running && m.ready != Some(false) && m.started_at_us != before)
        };
        let state = |i: &Instance| {
            member(i, &self.member).map_or("gone", |m| if m.running { "running" } else { "down" })
        };
        let seen = client.wait_instance(instance.id, again, deadline, |i| waiting.state(state(i))).await?;
        drop(waiting);
        session.show(&seen, |i| detail(i, Timestamp::now()))
    }
}

fn member<'a>(instance: &'a Instance, name: &str) -> Option<&'a MemberStatus> {
    instance.members.iter().find(|m| m.name == name)
}

async fn finish(session: &Session, instance: &Instance, rollout: Rollout) -> Result<(), Failure> {
    let (rollout, outcome) = follow(session, instance, rollout).await?;
    session.show(&rollout, |r| summary(r, instance))?;
    outcome
}

/// Follows the update to its end or its pause, if told to wait.
async fn follow(
    session: &Session,
    instance: &Instance,
    rollout: Rollout,
) -> Result<(Rollout, Result<(), Failure>), Failure> {
    let rollout = match session.wait() {
        Some(deadline) if !rollout.ended() => {
            let waiting = session.waiting(format!("{}: revision {}", instance.name, rollout.revision));
            let client = session.client()?;
            client.wait_rollout(instance.id, rests, deadline, |r| waiting.state(&progress(r))).await?
        }
        _ => rollout,
    };
    let outcome = match (&rollout.fault, rollout.phase) {
        (fault, RolloutPhase::Failed) => {
            let why =
                fault.as_ref().map_or("no reason given".into(), |f| format!("{}: {}", f.code, f.message));
            let what = format!("{} keeps revision {}: {why}", instance.name, rollout.present);
            Err(Failure::new(1, what).next(format!("amphi set rollout history {}", instance.name)))
        }
        _ => Ok(()),
    };
    Ok((rollout, outcome))
}

/// Paused, and nothing of it goes on.
fn rests(rollout: &Rollout) -> bool {
    let moves = |m: &MemberRollout| !matches!(m.phase, MemberPhase::Waiting | MemberPhase::Done);
    rollout.paused && rollout.phase == RolloutPhase::Updating && !rollout.members.iter().any(moves)
}

fn progress(rollout: &Rollout) -> String {
    let one = |m: &MemberRollout| match m.phase {
        MemberPhase::Waiting => None,
        phase => Some(format!("{} {}", m.name, word(phase))),
    };
    let members: Vec<String> = rollout.members.iter().filter_map(one).collect();
    let paused = if rollout.paused { ", paused" } else { "" };
    format!("{}{paused}: {}", word(rollout.phase).replace('_', " "), members.join(", "))
}

fn summary(rollout: &Rollout, instance: &Instance) -> String {
    let id: InstanceId = rollout.instance;
    let mut lines = vec![
        ("Set", format!("{} ({id})", instance.name)),
        ("Revision", format!("{} from {}; {} holds", rollout.revision, rollout.from, rollout.present)),
        ("Phase", format!("{}{}", word(rollout.phase), if rollout.paused { ", paused" } else { "" })),
    ];
    if let Some(fault) = &rollout.fault {
        lines.push(("Fault", format!("{}: {}", fault.code, fault.message)));
    }
    let mut text = pairs(&lines);
    if !rollout.members.is_empty() {
        text += "\n";
        text += &rows(
            &["INDEX", "MEMBER", "PHASE", "GAP"],
            rollout.members.iter().map(|m| {
                vec![m.index.to_string(), m.name.clone(), word(m.phase), or_dash(m.gap_ms.map(milliseconds))]
            }),
        );
    }
    text
}

fn history(revisions: &[Revision], now: Timestamp) -> String {
    rows(
        &["REVISION", "WHEN", "BY", "RESULT", "WHAT", "REASON", "FAULT"],
        revisions.iter().map(|r| {
            vec![
                format!("{}{}", r.number, if r.present { " *" } else { "" }),
                format!("{} ago", age(r.at, now)),
                r.by.clone(),
                word(r.result),
                r.what.clone(),
                or_dash(r.reason.clone()),
                or_dash(r.fault.clone()),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_history_and_progress() {
        let at = "2026-01-02T03:04:05Z";
        let revisions: Vec<Revision> = serde_json::from_value(json!([
            {"number": 3, "present": false, "by": "ann", "at": at, "what": "web: image", "result": "failed",
             "fault": "member web ended with exit code 1"},
            {"number": 2, "present": true, "by": "ann", "at": at, "what": "web: env", "reason": "ticket 7",
             "result": "done"}]))
        .unwrap();
        assert_eq!(
            history(&revisions, "2026-01-02T03:05:05Z".parse().unwrap()),
            "\
REVISION  WHEN     BY   RESULT  WHAT        REASON    FAULT
3         60s ago  ann  failed  web: image  -         member web ended with exit code 1
2 *       60s ago  ann  done    web: env    ticket 7  -
"
        );
        let rollout: Rollout = serde_json::from_value(json!({
            "instance": "00000000-0000-7000-8000-000000000001", "revision": 3, "from": 2, "present": 2,
            "phase": "updating", "paused": true, "started_at": at,
            "members": [{"name": "web", "index": 1, "phase": "done", "since": at, "gap_ms": 310},
                {"name": "db", "index": 2, "phase": "waiting", "since": at}]}))
        .unwrap();
        assert_eq!(progress(&rollout), "updating, paused: web done");
        assert!(rests(&rollout));
    }
}
