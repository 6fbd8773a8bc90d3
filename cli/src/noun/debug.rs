//! `amphi debug`: a set to be looked into while its programs do nothing, beside it or instead of its members.

use crate::failure::Failure;
use crate::session::{Session, say};
use amphi_api::instance::InstanceState;
use amphi_api::looking::DebugCreate;

#[derive(clap::Args)]
#[command(
    after_help = "The twin is the same set without probes and hooks, one member's command another (default: a shell that \
    waits). Then: amphi exec -it NAME-debug -- sh; amphi instance delete NAME-debug."
)]
pub struct Debug {
    instance: String,
    /// Whose command is another; default: the first member's.
    #[arg(short, long)]
    member: Option<String>,
    /// In the place of the instance's own members, with its address and its volume.
    #[arg(long)]
    instead: bool,
    /// The instance's own members again.
    #[arg(long, conflicts_with_all = ["instead", "member", "name", "command"])]
    end: bool,
    /// Of the instance beside; default: NAME-debug.
    #[arg(long, conflicts_with = "instead")]
    name: Option<String>,
    /// What the member runs.
    #[arg(last = true)]
    command: Vec<String>,
}

impl Debug {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let client = session.client()?;
        let id = client.find_instance(&self.instance).await?.id;
        let (instance, told) = if self.end {
            (client.end_debug(id).await?, "its own members again".to_owned())
        } else {
            let Self { member, command, instead, name, .. } = self;
            let made = client.debug_instance(id, &DebugCreate { member, command, instead, name }).await?;
            (made.instance, format!("its volume: {}", made.volume))
        };
        if let Some(limit) = session.wait() {
            let waiting = session.waiting(format!("instance {}", instance.name));
            // A body that runs still is the one before, until the order has reached its host.
            client
                .wait_instance(
                    instance.id,
                    |now| now.state == InstanceState::Running && now.updated_at >= instance.updated_at,
                    limit,
                    |now| waiting.state(&now.state.to_string()),
                )
                .await?;
        }
        if session.is_json() {
            return session.show(&client.instance(instance.id).await?, |_| String::new());
        }
        say(&format!("{} ({}); {told}", instance.name, instance.id))
    }
}
