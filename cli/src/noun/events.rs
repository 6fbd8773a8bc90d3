//! `amphi events`: what has happened, one line each.

use super::looking_in::since;
use crate::failure::Failure;
use crate::session::{Session, say};
use crate::table;
use amphi_api::events::Event;
use jiff::Timestamp;

/// How long one question waits for an answer, in seconds.
const WAIT: u64 = 20;

#[derive(clap::Args)]
#[command(
    after_help = "Without -f: what is kept. With -f: what comes from now on, or from --since or --after on."
)]
pub struct Events {
    /// Go on with what comes.
    #[arg(short, long)]
    follow: bool,
    /// Only of this instance.
    instance: Option<String>,
    /// Only on this host.
    #[arg(long)]
    host: Option<String>,
    /// Only of these kinds: `fault`, `out_of_memory`, `member_restarted`, `state`, `ordered`, `concluded`, `host_down` …
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// Only what is younger than this (`90s`, `10m`, `2h`), or than a time (RFC 3339).
    #[arg(long, value_parser = since)]
    since: Option<Timestamp>,
    /// Only what comes after this cursor (`--json` shows them).
    #[arg(long, value_name = "CURSOR", conflicts_with = "since")]
    after: Option<String>,
}

impl Events {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let instance = match &self.instance {
            Some(name) => Some(client.find_instance(name).await?.id.to_string()),
            None => None,
        };
        let kind = (!self.kind.is_empty()).then(|| self.kind.join(","));
        let fixed: Vec<(&str, String)> = [("instance", instance), ("host", self.host), ("kind", kind)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)))
            .collect();
        let mut after =
            self.after.or_else(|| (self.follow && self.since.is_none()).then(|| "now".to_owned()));
        let mut since = self.since;
        let mut wait = 0;
        loop {
            let mut query = fixed.clone();
            query.extend(after.take().map(|cursor| ("after", cursor)));
            query.extend(since.take().map(|time| ("since", time.to_string())));
            query.push(("wait", wait.to_string()));
            let page = client.events(&query).await?;
            if page.lost {
                eprintln!("some events before these were not kept");
            }
            for event in &page.events {
                session.show_line(event, line)?;
            }
            // A full page has more behind it.
            if !self.follow && page.events.is_empty() {
                return Ok(());
            }
            wait = if self.follow { WAIT } else { 0 };
            after = Some(page.next);
        }
    }
}

fn line(event: &Event) -> String {
    let member = event.member.as_ref().map(|name| format!("/{name}")).unwrap_or_default();
    let name = match (&event.name, event.instance) {
        (name, Some(id)) if name.is_empty() => id.to_string(),
        (name, _) => name.clone(),
    };
    table::clean(&format!("{} {:<16} {name}{member} {}", event.at, table::word(event.kind), event.message))
        .trim_end()
        .replace('\n', " ")
}

impl Session {
    /// One line of many: JSON or text.
    fn show_line(&self, event: &Event, render: impl FnOnce(&Event) -> String) -> Result<(), Failure> {
        if !self.is_json() {
            return say(&render(event));
        }
        let text = serde_json::to_string(event)
            .map_err(|e| Failure::new(1, format!("the answer cannot be printed as JSON: {e}")))?;
        say(&text)
    }
}
