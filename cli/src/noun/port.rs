//! `amphi port`: which address belongs to which instance.

use crate::failure::Failure;
use crate::session::Session;
use crate::table::rows;
use amphi_api::network::Port;
use clap::Subcommand;

#[derive(Subcommand)]
pub enum Command {
    /// All ports.
    List,
}

impl Command {
    pub async fn run(self, session: &Session) -> Result<(), Failure> {
        let Self::List = self;
        session.list("ports", &session.client()?.ports().await?, list)
    }
}

fn list(ports: &[Port]) -> String {
    rows(
        &["ADDRESS", "MAC", "INSTANCE", "NETWORK", "ID"],
        ports.iter().map(|p| {
            vec![
                p.address.map_or_else(|| "-".to_owned(), |a| a.to_string()),
                p.mac.clone(),
                p.instance.map_or_else(|| "-".to_owned(), |i| i.to_string()),
                p.network.to_string(),
                p.id.to_string(),
            ]
        }),
    )
}
