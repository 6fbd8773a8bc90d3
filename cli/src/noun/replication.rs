//! `amphi replication`, `amphi image replicate` and `amphi image fetch`: images that go to other regions and come from them.

use super::image::Visibility;
use crate::failure::Failure;
use crate::session::Session;
use crate::table::{bytes, moment, or_dash, pairs, rows, word};
use amphi_api::ImageId;
use amphi_api::client::Client;
use amphi_api::image::ImageVisibility;
use amphi_api::replication::{
    Direction, Replication, ReplicationCreate, ReplicationPolicy, ReplicationPolicySpec, ReplicationState,
};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Subcommand)]
pub enum Command {
    /// Images per region: how far each is, and why not further.
    List {
        /// Of this region alone.
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
    },
    /// One image's way to every region, or one replication by its id.
    Show { image: String },
    /// Call replications of an image off, or forget them. What a policy asks for comes back.
    Cancel {
        image: String,
        /// To this region or from it alone.
        #[arg(long, value_name = "REGION")]
        region: Option<String>,
    },
    /// Which images go to regions by themselves.
    #[command(subcommand)]
    Policy(Policy),
}

#[derive(Subcommand)]
pub enum Policy {
    /// Policies and how many images go by each.
    List,
    /// Have images go to a region by themselves: those that are here, and those that come.
    Create(Create),
    /// End a policy. What has gone by it stays where it is.
    Delete { policy: String },
}

#[derive(Args)]
pub struct Create {
    policy: String,
    #[arg(long, value_name = "REGION")]
    to: String,
    /// Images with such names: 'web-*'.
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Images of this project.
    #[arg(long)]
    project: Option<String>,
    /// Images that are seen so.
    #[arg(long, value_enum)]
    visibility: Option<Visibility>,
    /// Images with this property; may be given again.
    #[arg(long = "property", value_name = "KEY=VALUE")]
    properties: Vec<String>,
    /// With the tags that name them in repositories.
    #[arg(long)]
    tags: bool,
    /// Delete a replica when its image is deleted here.
    #[arg(long)]
    deletes: bool,
}

/// `amphi image replicate`.
#[derive(Args)]
pub struct Replicate {
    image: String,
    #[arg(long, value_name = "REGION")]
    to: String,
    /// With the tags that name it in repositories.
    #[arg(long)]
    tags: bool,
}

/// `amphi image fetch`.
#[derive(Args)]
pub struct Fetch {
    /// Its name or id there.
    image: String,
    #[arg(long, value_name = "REGION")]
    from: String,
    /// With the tags that name it in repositories.
    #[arg(long)]
    tags: bool,
}

impl Replicate {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let image = match self.image.parse::<ImageId>() {
            Ok(id) => id,
            Err(_) => client.find_image(&self.image).await?.id,
        };
        let direction = Direction::Push;
        let order =
            ReplicationCreate { image: image.to_string(), region: self.to, direction, tags: self.tags };
        follow(session, client, client.replicate(&order).await?).await
    }
}

impl Fetch {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let direction = Direction::Fetch;
        let order = ReplicationCreate { image: self.image, region: self.from, direction, tags: self.tags };
        follow(session, client, client.replicate(&order).await?).await
    }
}

/// Waits until the image is there, or somebody refuses it.
async fn follow(session: &Session, client: &Client, mut now: Replication) -> Result<(), Failure> {
    if let Some(deadline) = session.wait() {
        let end = Instant::now() + deadline;
        let waiting = session.waiting(format!("{} {}", now.name, way(&now)));
        while matches!(now.state, ReplicationState::Waiting | ReplicationState::Sending) {
            waiting.state(&progress(&now));
            if Instant::now() > end {
                let text = format!("{} is not there yet: {}", now.name, progress(&now));
                let next = format!("it goes on by itself; look: amphi replication show {}", now.id);
                return Err(Failure::new(5, text).next(next));
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            now = client.replication(now.id).await?;
        }
    }
    session.show(&now, detail)?;
    match (now.state, now.reason) {
        (ReplicationState::Failed, reason) => {
            let next = format!(
                "it is tried again by itself; at once: order it again; look: amphi replication show {}",
                now.id
            );
            Err(Failure::new(1, reason.unwrap_or_else(|| "it failed".into())).next(next))
        }
        _ => Ok(()),
    }
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List { region } => {
                let mut all = client.replications().await?;
                all.retain(|one| region.as_ref().is_none_or(|region| *region == one.region));
                session.list("replications", &all, list)
            }
            Self::Show { image } => {
                let found = of(client, &image, None).await?;
                match &found[..] {
                    [one] => session.show(one, detail),
                    many => session.list("replications", many, |all| {
                        all.iter().map(detail).collect::<Vec<_>>().join("\n")
                    }),
                }
            }
            Self::Cancel { image, region } => {
                for one in of(client, &image, region.as_deref()).await? {
                    client.forget_replication(one.id).await?;
                    session.note(&format!("{} {}: called off", one.name, way(&one)))?;
                }
                Ok(())
            }
            Self::Policy(Policy::List) => {
                session.list("policies", &client.replication_policies().await?, policies)
            }
            Self::Policy(Policy::Create(create)) => {
                let spec = create.spec()?;
                spec.check()?;
                session.show(&client.create_replication_policy(&spec).await?, |one| {
                    policies(std::slice::from_ref(one))
                })
            }
            Self::Policy(Policy::Delete { policy }) => {
                client.delete_replication_policy(&policy).await?;
                session.note(&format!("ended policy {policy}; what has gone by it stays where it is"))
            }
        }
    }
}

/// Those of an image (by name or id), or the one of this id.
async fn of(client: &Client, text: &str, region: Option<&str>) -> Result<Vec<Replication>, Failure> {
    let mut all = client.replications().await?;
    all.retain(|one| one.name == text || one.image.to_string() == text || one.id.to_string() == text);
    all.retain(|one| region.is_none_or(|region| region == one.region));
    match all.is_empty() {
        true => Err(Failure::new(3, format!("no replication of '{text}'")).next("amphi replication list")),
        false => Ok(all),
    }
}

impl Create {
    fn spec(self) -> Result<ReplicationPolicySpec, Failure> {
        let mut properties = BTreeMap::new();
        for pair in &self.properties {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Failure::new(2, format!("--property {pair}: must be KEY=VALUE")))?;
            properties.insert(key.to_owned(), value.to_owned());
        }
        let visibility = self.visibility.map(ImageVisibility::from);
        Ok(ReplicationPolicySpec {
            name: self.policy,
            region: self.to,
            image: self.name,
            project: self.project,
            visibility,
            properties,
            tags: self.tags,
            deletes: self.deletes,
        })
    }
}

fn way(one: &Replication) -> String {
    match one.direction {
        Direction::Push => format!("to {}", one.region),
        Direction::Fetch => format!("from {}", one.region),
    }
}

/// `sending 12 MiB of 24 MiB`, `waiting: region 'north': …`.
fn progress(one: &Replication) -> String {
    let state = word(one.state);
    match (one.state, &one.reason) {
        (ReplicationState::Sending, _) => {
            format!("{state} {} of {}", bytes(one.bytes_arrived), bytes(one.bytes_total))
        }
        (_, Some(reason)) => format!("{state}: {reason}"),
        (_, None) => state,
    }
}

fn list(all: &[Replication]) -> String {
    rows(
        &["IMAGE", "REGION", "STATE", "THERE", "SENT", "BY", "ID", "REASON"],
        all.iter().map(|one| {
            vec![
                one.name.clone(),
                way(one),
                word(one.state),
                format!("{} of {}", bytes(one.bytes_arrived), bytes(one.bytes_total)),
                bytes(one.bytes_sent),
                one.policy.clone().unwrap_or_else(|| "order".into()),
                one.id.to_string(),
                or_dash(one.reason.as_ref()),
            ]
        }),
    )
}

fn detail(one: &Replication) -> String {
    let now = Timestamp::now();
    let mut lines = vec![
        ("Image", format!("{} ({})", one.name, one.image)),
        ("Region", way(one)),
        ("State", word(one.state)),
        ("There", format!("{} of {}", bytes(one.bytes_arrived), bytes(one.bytes_total))),
        ("Sent", bytes(one.bytes_sent)),
        ("By", one.policy.as_ref().map_or_else(|| "order".into(), |policy| format!("policy {policy}"))),
        ("Tags", if one.tags { "with it" } else { "-" }.into()),
        ("Id", one.id.to_string()),
    ];
    if let Some(reason) = &one.reason {
        lines.push(("Reason", reason.clone()));
        lines.push(("Attempts", one.attempts.to_string()));
    }
    lines.extend(one.next_at.map(|at| ("Next", at.to_string())));
    lines.push(("Since", moment(one.updated_at, now)));
    pairs(&lines)
}

fn policies(all: &[ReplicationPolicy]) -> String {
    rows(
        &["NAME", "TO", "WHICH", "TAGS", "DELETES", "IMAGES"],
        all.iter().map(|one| {
            let spec = &one.spec;
            let mut which: Vec<String> = spec.image.iter().cloned().collect();
            which.extend(spec.project.iter().map(|project| format!("project={project}")));
            which.extend(spec.visibility.map(|visibility| format!("visibility={}", word(visibility))));
            which.extend(spec.properties.iter().map(|(key, value)| format!("{key}={value}")));
            let yes = |yes: bool| if yes { "yes" } else { "-" }.to_owned();
            vec![
                spec.name.clone(),
                spec.region.clone(),
                if which.is_empty() { "all".into() } else { which.join(" ") },
                yes(spec.tags),
                yes(spec.deletes),
                one.images.to_string(),
            ]
        }),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn golden_tables() {
        let id = "00000000-0000-7000-8000-00000000000a";
        let one = |change: serde_json::Value| -> Replication {
            let mut all = json!({"id": id, "image": id, "name": "web", "region": "north", "direction": "push",
                "state": "done", "tags": false, "bytes_total": 4096, "bytes_arrived": 4096, "bytes_sent": 1024,
                "attempts": 0, "updated_at": "1970-01-01T00:00:00Z"});
            all.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            serde_json::from_value(all).unwrap()
        };
        let sending =
            one(json!({"direction": "fetch", "state": "sending", "bytes_arrived": 2048, "policy": "p"}));
        let failed = one(json!({"state": "failed", "reason": "no room"}));
        assert_eq!(
            list(&[one(json!({})), sending.clone(), failed.clone()]),
            format!(
                "\
IMAGE  REGION      STATE    THERE           SENT   BY     ID                                    REASON
web    to north    done     4 KiB of 4 KiB  1 KiB  order  {id}  -
web    from north  sending  2 KiB of 4 KiB  1 KiB  p      {id}  -
web    to north    failed   4 KiB of 4 KiB  1 KiB  order  {id}  no room
"
            )
        );
        assert_eq!(progress(&sending), "sending 2 KiB of 4 KiB");
        assert_eq!(progress(&failed), "failed: no room");
        let policy: ReplicationPolicy =
            serde_json::from_value(json!({"id": id, "name": "p", "region": "north",
            "image": "web-*", "visibility": "public", "properties": {"a": "b"}, "tags": true, "images": 3,
            "created_at": "1970-01-01T00:00:00Z"}))
            .unwrap();
        assert_eq!(
            policies(&[policy]),
            "\
NAME  TO     WHICH                        TAGS  DELETES  IMAGES
p     north  web-* visibility=public a=b  yes   -        3
"
        );
    }
}
