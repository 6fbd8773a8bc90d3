//! `amphi repository`: what `docker push` has made, and the policy over it.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::{age, bytes, moment, or_dash, pairs, rows, word};
use amphi_api::repository::{Repository, RepositoryChange, RepositoryVisibility, Retention, Tag};
use clap::{Args, Subcommand, ValueEnum};
use jiff::Timestamp;

#[derive(Subcommand)]
pub enum Command {
    /// Repositories, their tags and sizes.
    List,
    /// One repository with its policy.
    Show { repository: String },
    /// Change a repository's policy; what is not named stays.
    Policy(Policy),
    /// A repository's tags and what they name.
    Tags { repository: String },
    /// Take a tag away; the image stays.
    Untag { repository: String, tag: String },
    /// Forget a repository that nothing is in.
    Delete { repository: String },
}

#[derive(Args)]
pub struct Policy {
    repository: String,
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Who may pull: the project, or everybody.
    #[arg(long, value_enum)]
    visibility: Option<Visibility>,
    /// Tags that fit never change and never go: 'v*'. Again for each; '' for none.
    #[arg(long, value_name = "PATTERN")]
    immutable: Vec<String>,
    /// So many tags stay, those pushed last; 0: any number.
    #[arg(long, value_name = "N")]
    keep_last: Option<u32>,
    /// Tags stay that were pushed or pulled in the last so many days; 0: however old.
    #[arg(long, value_name = "DAYS")]
    keep_days: Option<u32>,
    /// Images without a tag go after so many days; -1: never.
    #[arg(long, value_name = "DAYS", allow_negative_numbers = true)]
    untagged_days: Option<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Visibility {
    Private,
    Public,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        match self {
            Self::List => {
                session.list("repositories", &client.repositories().await?, |r| list(r, Timestamp::now()))
            }
            Self::Show { repository } => session.show(&client.find_repository(&repository).await?, detail),
            Self::Policy(policy) => {
                let repository = client.find_repository(&policy.repository).await?;
                let change = policy.change(repository.retention)?;
                change.check()?;
                session.show(&client.change_repository(repository.id, &change).await?, detail)
            }
            Self::Tags { repository } => {
                let repository = client.find_repository(&repository).await?;
                session.list("tags", &client.tags(repository.id).await?, |t| tags(t, Timestamp::now()))
            }
            Self::Untag { repository, tag } => {
                let repository = client.find_repository(&repository).await?;
                client.untag(repository.id, &tag).await?;
                session.note(&format!("took tag {tag} from {}; the image stays", repository.name))
            }
            Self::Delete { repository } => {
                let repository = client.find_repository(&repository).await?;
                client.delete_repository(repository.id).await?;
                session.note(&format!("deleted repository {}", repository.name))
            }
        }
    }
}

impl Policy {
    fn change(self, now: Retention) -> Result<RepositoryChange, Failure> {
        let count = |given: Option<u32>, now: Option<u32>| match given {
            None => now,
            Some(0) => None,
            more => more,
        };
        let untagged_days = match self.untagged_days {
            None => now.untagged_days,
            Some(-1) => None,
            Some(days) => Some(
                u32::try_from(days)
                    .map_err(|_| Failure::new(2, "--untagged-days: -1 for never, or 0 and more"))?,
            ),
        };
        let retention = Retention {
            keep_last: count(self.keep_last, now.keep_last),
            keep_days: count(self.keep_days, now.keep_days),
            untagged_days,
        };
        let none = self.immutable.iter().all(String::is_empty);
        let immutable = match (self.immutable.is_empty(), none) {
            (true, _) => None,
            (false, true) => Some(Vec::new()),
            (false, false) => Some(self.immutable),
        };
        let visibility = self.visibility.map(|v| match v {
            Visibility::Private => RepositoryVisibility::Private,
            Visibility::Public => RepositoryVisibility::Public,
        });
        Ok(RepositoryChange {
            description: self.description,
            visibility,
            immutable,
            retention: (retention != now).then_some(retention),
        })
    }
}

fn list(repositories: &[Repository], now: Timestamp) -> String {
    rows(
        &["NAME", "VISIBILITY", "TAGS", "SIZE", "AGE", "ID"],
        repositories.iter().map(|r| {
            vec![
                r.name.clone(),
                word(r.visibility),
                r.tags.to_string(),
                bytes(r.size),
                age(r.created_at, now),
                r.id.to_string(),
            ]
        }),
    )
}

fn tags(tags: &[Tag], now: Timestamp) -> String {
    rows(
        &["TAG", "IMAGE", "SIZE", "PUSHED", "PULLED", "DIGEST"],
        tags.iter().map(|t| {
            vec![
                if t.immutable { format!("{} (immutable)", t.name) } else { t.name.clone() },
                or_dash(t.image.map(|id| id.to_string())),
                bytes(t.size),
                age(t.pushed_at, now),
                or_dash(t.pulled_at.map(|at| age(at, now))),
                t.digest.clone(),
            ]
        }),
    )
}

fn detail(repository: &Repository) -> String {
    let retention = &repository.retention;
    let mut keeps = Vec::new();
    keeps.extend(retention.keep_last.map(|n| format!("the last {n} tags")));
    keeps.extend(retention.keep_days.map(|n| format!("tags used in the last {n} days")));
    let keeps = if keeps.is_empty() { "all tags".to_owned() } else { keeps.join(", ") };
    let untagged = match retention.untagged_days {
        Some(days) => format!("go after {days} days"),
        None => "stay".to_owned(),
    };
    let mut lines = vec![
        ("Name", repository.name.clone()),
        ("Id", repository.id.to_string()),
        ("Visibility", word(repository.visibility)),
        ("Tags", repository.tags.to_string()),
        ("Manifests", repository.manifests.to_string()),
        ("Size", bytes(repository.size)),
        ("Immutable", or_dash((!repository.immutable.is_empty()).then(|| repository.immutable.join(" ")))),
        ("Keeps", keeps),
        ("Untagged", untagged),
    ];
    if let Some(upstream) = &repository.mirror {
        lines.push(("Mirror of", upstream.clone()));
    }
    if !repository.description.is_empty() {
        lines.push(("Description", repository.description.clone()));
    }
    lines.push(("Created", moment(repository.created_at, Timestamp::now())));
    pairs(&lines)
}
