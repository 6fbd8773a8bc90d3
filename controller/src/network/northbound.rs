//! The connection to OVN's northbound database, and bringing it in line. Owns one replica of our tables.

use super::difference::{is_ours, operations};
use super::render::{Rows, Table};
use super::{Topology, render};
use amphi_ovsdb::{Client, Monitored, Operation, Options, Replica};
use std::time::Duration;

/// How long a look at the database or a write to it may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// OVN could not be brought in line; the next look tries again.
#[derive(Debug, thiserror::Error)]
#[error("OVN's northbound database cannot be {doing}: {source}")]
pub struct ProjectionError {
    doing: &'static str,
    source: amphi_ovsdb::Error,
}

fn failed(doing: &'static str) -> impl FnOnce(amphi_ovsdb::Error) -> ProjectionError {
    move |source| ProjectionError { doing, source }
}

/// The northbound database. It may be away: calls fail at their deadline, and the connection comes back by itself.
pub struct Northbound {
    client: Client,
    replica: tokio::sync::OnceCell<Replica>,
}

impl Northbound {
    /// `unix:PATH` or `tcp:HOST:PORT`. Does not wait for the connection.
    pub fn open(endpoint: &str) -> Result<Self, ProjectionError> {
        let client = Client::new(endpoint, "OVN_Northbound", Options::default()).map_err(failed("opened"))?;
        Ok(Self { client, replica: tokio::sync::OnceCell::new() })
    }

    /// Signals changes by others, so that they are looked at and, where they touch our rows, undone.
    pub async fn changes(
        &self,
    ) -> Result<tokio::sync::watch::Receiver<amphi_ovsdb::ReplicaState>, ProjectionError> {
        Ok(self.replica().await?.changes())
    }

    async fn replica(&self) -> Result<&Replica, ProjectionError> {
        self.replica
            .get_or_try_init(|| async {
                let mut monitored = Monitored::new();
                for table in Table::ALL {
                    monitored = monitored.table(table.name(), table.columns());
                }
                self.client.monitor(monitored).await.map_err(failed("watched"))
            })
            .await
    }

    /// Makes the database say what the topology says; answers how many operations that took. All or nothing.
    pub async fn project(&self, topology: &Topology) -> Result<usize, ProjectionError> {
        let wanted = render(topology);
        let there = self.ours().await?;
        let mut changes = operations(&wanted, &there);
        let count = changes.len();
        if count > 0 {
            // The server tells its monitors of a commit before it answers the one who made it, so the next comparison
            // sees this write (kept by the test against a real server).
            changes.push(Operation::comment("amphi: projection of the records"));
            self.client.transact(changes).await.map_err(failed("written"))?;
        }
        Ok(count)
    }

    async fn ours(&self) -> Result<Rows, ProjectionError> {
        let replica = self.replica().await?;
        let all = replica.until(DEADLINE, |tables| {
            let rows = Table::ALL.into_iter().flat_map(|table| {
                tables
                    .rows(table.name())
                    .filter(|(_, row)| is_ours(row))
                    .map(move |(id, row)| ((table, id), row.clone()))
            });
            Some(rows.collect::<Rows>())
        });
        all.await.map_err(failed("read"))
    }
}
