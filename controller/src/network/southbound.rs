//! Bars in OVN's southbound database: what keeps a host out of the overlay although its own ovn-controller wants in.
//!
//! A barred host's `Chassis` row is replaced, in one transaction, by a placeholder that owns the same tunnel end. Peers
//! close their tunnels at once, since the row is gone and the placeholder is in a transport zone that nobody else is in
//! (ovn-controller's encaps.c, `chassis_tzones_overlap`). The host's ovn-controller makes its row anew when it wakes, but
//! with an `Encap` of the same type and address, and the database refuses that: (type, ip) is an index (ovn-sb.ovsschema).
//! It tries again with every change of the database, and every five seconds; when the placeholder goes, it is back at once.
//!
//! Owns rows whose external_ids say `amphi-barred`, and no others. Refuses to know why a host is barred.

use amphi_api::HostId;
use amphi_ovsdb::{Client, Condition, Monitored, Operation, Options, Replica, Row, Tables, Value};
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use uuid::Uuid;

/// How long a look at the database or a write to it may take. A failover waits for it and tries again.
const DEADLINE: Duration = Duration::from_secs(2);
/// Marks a placeholder; its value is the chassis that it stands for.
const MARK: &str = "amphi-barred";
const TABLES: [(&str, &[&str]); 3] = [
    ("Chassis", &["name", "encaps", "external_ids"]),
    ("Encap", &["type", "ip"]),
    ("Chassis_Private", &["name"]),
];

/// A host that the network has to shut out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Barred {
    pub host: HostId,
    /// Its OVN chassis.
    pub chassis: String,
    /// Where its tunnels end.
    pub address: String,
}

/// The hosts' bars could not be brought in line; the next look tries again.
#[derive(Debug, thiserror::Error)]
#[error("OVN's southbound database cannot be {doing}: {source}")]
pub struct BarError {
    doing: &'static str,
    source: amphi_ovsdb::Error,
}

#[cfg(test)]
impl BarError {
    /// What a test's network says that does not work.
    pub fn played() -> Self {
        Self { doing: "written", source: amphi_ovsdb::Error::Endpoint("played".into()) }
    }
}

/// Shuts hosts out of the network.
#[async_trait]
pub trait NetworkBar: Send + Sync + 'static {
    /// Shuts out exactly these; all of them are out when it returns.
    async fn shut_out(&self, barred: &BTreeSet<Barred>) -> Result<(), BarError>;
}

/// The southbound database. It may be away: calls fail at their deadline, and the connection comes back by itself.
pub struct Southbound {
    client: Client,
    replica: tokio::sync::OnceCell<Replica>,
}

impl Southbound {
    /// `unix:PATH` or `tcp:HOST:PORT`. Does not wait for the connection.
    pub fn open(endpoint: &str) -> Result<Self, BarError> {
        let client = Client::new(endpoint, "OVN_Southbound", Options::default())
            .map_err(|source| BarError { doing: "opened", source })?
            .with_timeout(DEADLINE);
        Ok(Self { client, replica: tokio::sync::OnceCell::new() })
    }

    async fn replica(&self) -> Result<&Replica, BarError> {
        let watched = self.replica.get_or_try_init(|| async {
            let monitored =
                TABLES.iter().fold(Monitored::new(), |m, (table, columns)| m.table(table, columns));
            self.client.monitor(monitored).await
        });
        watched.await.map_err(|source| BarError { doing: "watched", source })
    }
}

#[async_trait]
impl NetworkBar for Southbound {
    async fn shut_out(&self, barred: &BTreeSet<Barred>) -> Result<(), BarError> {
        let replica = self.replica().await?;
        let look = replica.until(DEADLINE, |tables| Some(operations(barred, &Present::of(tables))));
        let changes = look.await.map_err(|source| BarError { doing: "read", source })?;
        if changes.is_empty() {
            return Ok(());
        }
        self.client.transact(changes).await.map_err(|source| BarError { doing: "written", source })?;
        Ok(())
    }
}

/// What of the database matters here.
#[derive(Debug, Default)]
struct Present {
    /// By name: its row, and for a placeholder the tunnel ends that it owns.
    chassis: BTreeMap<String, Uuid>,
    /// The addresses that a placeholder owns, by the chassis that it stands for.
    placeholders: BTreeMap<String, (Uuid, BTreeSet<String>)>,
    /// Who owns an address, by type.
    ends: BTreeMap<(String, String), Uuid>,
    private: BTreeSet<String>,
}

impl Present {
    fn of(tables: &Tables) -> Self {
        let mut present = Self::default();
        for (id, row) in tables.rows("Chassis") {
            let name = row.str("name").unwrap_or_default().to_owned();
            let ends = row.uuids("encaps").into_iter().filter_map(|end| tables.row("Encap", end));
            let ends: Vec<(String, String)> = ends
                .map(|end| {
                    (end.str("type").unwrap_or_default().into(), end.str("ip").unwrap_or_default().into())
                })
                .collect();
            match row.entry("external_ids", MARK) {
                Some(of) => {
                    let addresses = ends.iter().map(|(_, ip)| ip.clone()).collect();
                    present.placeholders.insert(of.to_owned(), (id, addresses));
                }
                None => {
                    present.chassis.insert(name, id);
                }
            }
            present.ends.extend(ends.into_iter().map(|end| (end, id)));
        }
        present.private = tables
            .rows("Chassis_Private")
            .filter_map(|(_, row)| row.str("name").map(str::to_owned))
            .collect();
        present
    }
}

/// The operations that shut out exactly these; empty when it is so already. Pure.
fn operations(barred: &BTreeSet<Barred>, present: &Present) -> Vec<Operation> {
    let delete = |table, id| Operation::delete(table, vec![Condition::id(id)]);
    let mut operations = Vec::new();
    for (chassis, (id, addresses)) in &present.placeholders {
        let stays = |b: &Barred| b.chassis == *chassis && addresses.contains(&b.address);
        if !barred.iter().any(stays) {
            operations.push(delete("Chassis", *id));
        }
    }
    for (number, host) in barred.iter().enumerate() {
        if let Some(id) = present.chassis.get(&host.chassis) {
            operations.push(delete("Chassis", *id));
        }
        if present.private.contains(&host.chassis) {
            let named = vec![Condition::eq("name", host.chassis.as_str())];
            operations.push(Operation::delete("Chassis_Private", named));
        }
        if present.placeholders.get(&host.chassis).is_some_and(|(_, ends)| ends.contains(&host.address)) {
            continue;
        }
        // Whoever else has the address, under an older name of the host: the index lets only one have it.
        let geneve = ("geneve".to_owned(), host.address.clone());
        if let Some(other) = present.ends.get(&geneve)
            && present.chassis.get(&host.chassis) != Some(other)
            && !present.placeholders.values().any(|(id, _)| id == other)
        {
            operations.push(delete("Chassis", *other));
        }
        let name = format!("{MARK}-{}", host.chassis);
        let end = format!("end{number}");
        operations.push(
            Operation::insert(
                "Encap",
                Row::new()
                    .with("type", "geneve")
                    .with("ip", host.address.as_str())
                    .with("chassis_name", name.as_str()),
            )
            .named(&end),
        );
        operations.push(Operation::insert(
            "Chassis",
            Row::new()
                .with("name", name.as_str())
                .with("hostname", host.chassis.as_str())
                .with("encaps", Value::named(end))
                .with("transport_zones", name.as_str())
                .with("external_ids", Value::map([(MARK, host.chassis.as_str())])),
        ));
    }
    if !operations.is_empty() {
        operations.push(Operation::comment("amphi: hosts that are barred"));
    }
    operations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn barred(name: &str, address: &str) -> Barred {
        Barred { host: HostId::new(), chassis: name.into(), address: address.into() }
    }

    fn told(barred: &[Barred], present: &Present) -> Vec<String> {
        let operations = operations(&barred.iter().cloned().collect(), present);
        operations.iter().map(|o| o.to_json().to_string()).collect()
    }

    #[test]
    fn one_transaction_takes_the_row_and_puts_a_placeholder() {
        let (row, end) = (Uuid::new_v4(), ("geneve".to_owned(), "10.0.0.1".to_owned()));
        let present = Present {
            chassis: [("h1".to_owned(), row)].into(),
            ends: [(end.clone(), row)].into(),
            private: ["h1".to_owned()].into(),
            ..Present::default()
        };
        let out = told(&[barred("h1", "10.0.0.1")], &present);
        assert_eq!(out.len(), 5, "{out:?}");
        assert!(out[0].contains("delete") && out[0].contains(&row.to_string()), "{out:?}");
        assert!(out[1].contains("Chassis_Private"), "{out:?}");
        assert!(out[2].contains(r#""ip":"10.0.0.1""#) && out[2].contains("end0"), "{out:?}");
        assert!(out[3].contains(r#""transport_zones":"amphi-barred-h1""#), "{out:?}");

        let placeholder = Uuid::new_v4();
        let done = Present {
            placeholders: [("h1".to_owned(), (placeholder, ["10.0.0.1".to_owned()].into()))].into(),
            ends: [(end.clone(), placeholder)].into(),
            ..Present::default()
        };
        assert!(told(&[barred("h1", "10.0.0.1")], &done).is_empty());
        let freed = told(&[], &done);
        assert!(freed[0].contains(&placeholder.to_string()) && freed.len() == 2, "{freed:?}");
        let moved = told(&[barred("h1", "10.0.0.9")], &done);
        assert!(moved[0].contains(&placeholder.to_string()) && moved.len() == 4, "{moved:?}");
        // The host came back under another name before it was barred.
        let renamed = Present {
            chassis: [("other".to_owned(), row)].into(),
            ends: [(end, row)].into(),
            ..Present::default()
        };
        let out = told(&[barred("h1", "10.0.0.1")], &renamed);
        assert!(out[0].contains(&row.to_string()) && out.len() == 4, "{out:?}");
    }
}
