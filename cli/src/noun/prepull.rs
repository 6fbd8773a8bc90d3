//! `amphi image prepull`: images on hosts before anything starts from them, once by order, or at all times by policy.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{or_dash, rows, word};
use amphi_api::ImageId;
use amphi_api::client::Client;
use amphi_api::prepull::{ImageOnHost, ImageOnHosts, PrepullCreate, PrepullPolicy, PrepullState};
use clap::Args;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

#[derive(Args)]
pub struct Prepull {
    image: String,
    /// On this host; may be given again.
    #[arg(long = "host", value_name = "HOST", conflicts_with_all = ["all", "zones"])]
    hosts: Vec<String>,
    /// On all hosts.
    #[arg(long, conflicts_with = "zones")]
    all: bool,
    /// On all hosts of this availability zone; may be given again.
    #[arg(long = "zone", value_name = "ZONE")]
    zones: Vec<String>,
    /// At all times, on hosts that join later too; the image is then never evicted there.
    #[arg(long, conflicts_with = "hosts")]
    policy: bool,
    /// Call off the orders that are not over.
    #[arg(long, conflicts_with_all = ["hosts", "all", "zones", "policy", "end_policy"])]
    cancel: bool,
    /// End the policy. What is there stays as long as there is room.
    #[arg(long, conflicts_with_all = ["hosts", "all", "zones", "policy"])]
    end_policy: bool,
}

impl Prepull {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let image = match self.image.parse::<ImageId>() {
            Ok(id) => id,
            Err(_) => client.find_image(&self.image).await?.id,
        };
        if self.cancel {
            client.cancel_prepull(image).await?;
            return session.note(&format!("nothing more of {} is fetched by order", self.image));
        }
        if self.end_policy {
            client.end_prepull_policy(image).await?;
            return session.note(&format!("no host has to keep {} any more", self.image));
        }
        let zones: BTreeSet<String> = self.zones.iter().cloned().collect();
        let asked = self.all || !zones.is_empty() || !self.hosts.is_empty();
        let told = match (self.policy, asked) {
            (true, _) => client.set_prepull_policy(image, &PrepullPolicy { zones, all: self.all }).await?,
            (false, false) => client.image_on_hosts(image).await?,
            (false, true) => {
                let mut hosts = BTreeSet::new();
                for host in &self.hosts {
                    hosts.insert(client.find_host(host).await?.id);
                }
                client.prepull_image(image, &PrepullCreate { hosts, zones, all: self.all }).await?
            }
        };
        let told = match asked {
            true => self.follow(session, client, told).await?,
            false => told,
        };
        session.show(&told, table)?;
        let failed = told.hosts.iter().filter(|host| asked && host.state == PrepullState::Failed).count();
        match failed {
            0 => Ok(()),
            failed => Err(Failure::new(1, format!("{failed} hosts do not have {}", self.image))
                .next(format!("they try again every half minute: amphi image prepull {}", self.image))),
        }
    }

    /// Waits until every host that is to have it has it, or says why not.
    async fn follow(
        &self,
        session: &Session,
        client: &Client,
        mut told: ImageOnHosts,
    ) -> Result<ImageOnHosts, Failure> {
        let Some(deadline) = session.wait() else { return Ok(told) };
        let end = Instant::now() + deadline;
        let waiting = session.waiting(format!("{}: fetched", self.image));
        // What was not ordered before may have been there already; its host says so when it has looked.
        let open = |host: &ImageOnHost| {
            let comes = host.ordered || (host.kept && host.state != PrepullState::Held);
            comes && host.state != PrepullState::Failed && host.reason.is_none()
        };
        while told.hosts.iter().any(open) {
            if Instant::now() > end {
                let text = format!("{} is not on all hosts yet", self.image);
                return Err(Failure::new(5, text).next(format!("look: amphi image prepull {}", self.image)));
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            told = client.image_on_hosts(told.image).await?;
            waiting.state(&progress(&told));
        }
        Ok(told)
    }
}

/// `3 of 10 hosts have it, 2 fetch it (40 %, 70 %)`.
fn progress(told: &ImageOnHosts) -> String {
    let of = |state| told.hosts.iter().filter(move |host| host.state == state);
    let percents: Vec<_> =
        of(PrepullState::Fetching).filter_map(|h| h.percent).map(|p| format!("{p} %")).collect();
    let held = of(PrepullState::Held).count();
    format!(
        "{held} of {} hosts have it, {} fetch it ({})",
        told.hosts.len(),
        percents.len(),
        percents.join(", ")
    )
}

/// For `amphi image show`.
pub fn summary(told: Option<&ImageOnHosts>) -> String {
    let Some(told) = told else { return String::new() };
    let held = told.hosts.iter().filter(|host| host.state == PrepullState::Held);
    let names: Vec<_> = held.map(|host| host.name.as_str()).collect();
    let names = if names.is_empty() { "-".to_owned() } else { names.join(" ") };
    let kept = told.policy.as_ref().map(|p| format!(" (kept on {})", policy(p))).unwrap_or_default();
    format!("On hosts: {names}{kept}\n")
}

fn policy(policy: &PrepullPolicy) -> String {
    match policy.all {
        true => "all hosts".to_owned(),
        false => format!("zones {}", policy.zones.iter().cloned().collect::<Vec<_>>().join(", ")),
    }
}

fn table(told: &ImageOnHosts) -> String {
    let rows = rows(
        &["HOST", "STATE", "WHY", "COME", "REASON"],
        told.hosts.iter().map(|host| {
            let why = match (host.kept, host.ordered) {
                (true, _) => "policy",
                (false, true) => "order",
                (false, false) => "-",
            };
            vec![
                host.name.clone(),
                word(host.state),
                why.to_owned(),
                or_dash(host.percent.map(|percent| format!("{percent} %"))),
                or_dash(host.reason.as_ref()),
            ]
        }),
    );
    let kept = told.policy.as_ref().map(|p| format!("kept on {}\n", policy(p))).unwrap_or_default();
    kept + &rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_table() {
        let id = "00000000-0000-7000-8000-00000000000a";
        let told: ImageOnHosts = serde_json::from_value(json!({"image": id, "policy": {"zones": ["east"]},
            "hosts": [
                {"host": id, "name": "h1", "state": "held", "ordered": false, "kept": true},
                {"host": id, "name": "h2", "state": "fetching", "ordered": true, "kept": false, "percent": 40},
                {"host": id, "name": "h3", "state": "failed", "ordered": true, "kept": false, "reason": "no room"},
                {"host": id, "name": "h4", "state": "absent", "ordered": false, "kept": false}]}))
        .unwrap();
        assert_eq!(
            table(&told),
            "\
kept on zones east
HOST  STATE     WHY     COME  REASON
h1    held      policy  -     -
h2    fetching  order   40 %  -
h3    failed    order   -     no room
h4    absent    -       -     -
"
        );
        assert_eq!(summary(Some(&told)), "On hosts: h1 (kept on zones east)\n");
        assert_eq!(progress(&told), "1 of 4 hosts have it, 1 fetch it (40 %)");
    }
}
