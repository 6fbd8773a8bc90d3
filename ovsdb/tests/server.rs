//! The client against a real ovsdb-server with the real schemas.

mod common;

use std::time::{Duration, Instant};

use amphi_ovsdb::{Client, Condition, Error, Monitored, Mutation, Operation, Row, Status, Value};
use common::{DEADLINE, NORTHBOUND, Server, VSWITCH, options};
use uuid::Uuid;

fn switch(name: &str) -> Operation {
    Operation::insert("Logical_Switch", Row::new().with("name", name))
}

fn named(name: &str) -> Vec<Condition> {
    vec![Condition::eq("name", name)]
}

#[tokio::test]
async fn a_transaction_inserts_mutates_selects_and_deletes() {
    let server = Server::start(NORTHBOUND);
    let client = server.client("OVN_Northbound");
    let chosen = Uuid::new_v4();
    let outcomes = client
        .transact(vec![
            Operation::wait_absent("Logical_Switch", named("net")),
            Operation::insert(
                "Logical_Switch_Port",
                Row::new().with("name", "p1").with("addresses", Value::set(["dynamic"])),
            )
            .with_id(chosen),
            Operation::insert(
                "Logical_Switch",
                Row::new().with("name", "net").with("ports", Value::set([chosen])),
            ),
            Operation::mutate(
                "Logical_Switch",
                named("net"),
                Mutation::put("other_config", [("subnet", "10.0.0.0/24")]),
            ),
            Operation::comment("a \"quoted\" remark with a brace }"),
            Operation::commit_durable(),
        ])
        .await
        .unwrap();
    assert_eq!((outcomes[1].uuid, outcomes[3].count), (Some(chosen), Some(1)));

    // `put` replaces what was there.
    let change = Mutation::put("other_config", [("subnet", "10.0.1.0/24"), ("mcast", "{\"a\": \"\\\"\"}")]);
    let outcomes = client
        .transact(vec![
            Operation::mutate("Logical_Switch", named("net"), change),
            Operation::select("Logical_Switch", named("net"), &["name", "ports", "other_config"]),
            Operation::delete("Logical_Switch", named("net")),
        ])
        .await
        .unwrap();
    let row = &outcomes[1].rows[0];
    assert_eq!(row.entry("other_config", "subnet"), Some("10.0.1.0/24"));
    assert_eq!(row.entry("other_config", "mcast"), Some("{\"a\": \"\\\"\"}"));
    assert_eq!(row.uuids("ports"), vec![chosen]);
    assert_eq!(outcomes[2].count, Some(1));
    let left =
        client.transact(vec![Operation::select("Logical_Switch_Port", Vec::new(), &[])]).await.unwrap();
    assert_eq!(left[0].rows, Vec::new(), "the port goes with its switch");
}

#[tokio::test]
async fn failures_name_operation_and_table() {
    let server = Server::start(NORTHBOUND);
    let client = server.client("OVN_Northbound");

    let bad_acl =
        Operation::insert("ACL", Row::new().with("priority", 99_999i64).with("direction", "to-lport"));
    let error = client.transact(vec![switch("kept-out"), bad_acl]).await.unwrap_err();
    let failure = error.failure().expect("an operation's failure");
    assert_eq!(
        (failure.index, failure.op.as_str(), failure.table.as_str()),
        (Some(1), "insert", "ACL"),
        "{error}"
    );
    assert!(error.is_constraint(), "{error}");

    let dangling =
        Operation::insert("Logical_Switch", Row::new().with("ports", Value::set([Uuid::new_v4()])));
    let error = client.transact(vec![dangling]).await.unwrap_err();
    assert_eq!(error.failure().map(|failure| failure.index), Some(None), "{error}");
    assert!(error.is_constraint(), "{error}");

    let error = client.transact(vec![Operation::insert("No_Such_Table", Row::new())]).await.unwrap_err();
    assert_eq!(error.failure().and_then(|failure| failure.index), Some(0), "{error}");

    let rows = client.transact(vec![Operation::select("Logical_Switch", Vec::new(), &[])]).await.unwrap();
    assert_eq!(rows[0].rows, Vec::new(), "a failed transaction leaves nothing");
}

#[tokio::test]
async fn a_guard_that_does_not_hold_stops_the_transaction() {
    let server = Server::start(NORTHBOUND);
    let client = server.client("OVN_Northbound");
    let create = || vec![Operation::wait_absent("Logical_Switch", named("net")), switch("net")];
    client.transact(create()).await.unwrap();
    let error = client.transact(create()).await.unwrap_err();
    assert!(error.is_guard() && !error.is_constraint(), "{error}");
    assert_eq!(error.failure().and_then(|failure| failure.index), Some(0));

    let expected = Row::new().with("name", "net").with("external_ids", Value::map([("epoch", "1")]));
    let guard = Operation::wait_equal(
        "Logical_Switch",
        named("net"),
        &["name", "external_ids"],
        vec![expected.clone()],
    );
    let set = Operation::update("Logical_Switch", named("net"), expected);
    assert!(client.transact(vec![guard.clone()]).await.unwrap_err().is_guard());
    client.transact(vec![set, guard]).await.unwrap();

    // Held open, a guard passes as soon as another client makes it true.
    let held = Operation::wait_present("Logical_Switch", named("later")).within_ms(20_000);
    let (waited, made) = tokio::join!(client.transact(vec![held]), async {
        server.client("OVN_Northbound").transact(vec![switch("later")]).await
    });
    made.unwrap();
    waited.unwrap();
}

#[tokio::test]
async fn a_replica_follows_inserts_changes_and_deletes() {
    let server = Server::start(NORTHBOUND);
    let (writer, reader) = (server.client("OVN_Northbound"), server.client("OVN_Northbound"));
    writer.transact(vec![switch("before")]).await.unwrap();
    let monitored = Monitored::new()
        .table("Logical_Switch", &["name", "other_config", "no_such_column"])
        .table("Port_Group", &[]);
    let replica = reader.monitor(monitored).await.unwrap();
    assert!(replica.read(|tables| tables.find("Logical_Switch", "name", "before").is_some()));

    let put = |value: &str| Mutation::put("other_config", [("subnet", value), ("other", "same")]);
    writer.transact(vec![switch("net")]).await.unwrap();
    for value in ["10.0.0.0/24", "10.0.1.0/24"] {
        writer.transact(vec![Operation::mutate("Logical_Switch", named("net"), put(value))]).await.unwrap();
        let seen = replica.until(DEADLINE, |tables| {
            let (_, row) = tables.find("Logical_Switch", "name", "net")?;
            (row.entry("other_config", "subnet") == Some(value)).then(|| row.entries("other_config"))
        });
        assert_eq!(seen.await.unwrap().get("other").map(String::as_str), Some("same"));
    }
    let keys = Value::Set(["other".into()].into());
    let forget = Operation::mutate("Logical_Switch", named("net"), [Mutation::delete("other_config", keys)]);
    writer.transact(vec![forget]).await.unwrap();
    let gone = |tables: &amphi_ovsdb::Tables| {
        let (_, row) = tables.find("Logical_Switch", "name", "net")?;
        (row.entries("other_config").len() == 1).then_some(())
    };
    replica.until(DEADLINE, gone).await.unwrap();
    writer.transact(vec![Operation::delete("Logical_Switch", named("net"))]).await.unwrap();
    replica.until(DEADLINE, |tables| (tables.len("Logical_Switch") == 1).then_some(())).await.unwrap();

    // One's own writes are in the replica by the time the reply is.
    for number in 0..50 {
        let name = format!("own-{number}");
        reader.transact(vec![switch(&name)]).await.unwrap();
        assert!(replica.read(|tables| tables.find("Logical_Switch", "name", &name).is_some()), "{name}");
    }

    let refused = reader.monitor(Monitored::new().table("No_Such_Table", &[])).await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
}

async fn until_connected(client: &Client, wanted: impl FnMut(&Status) -> bool) {
    let mut status = client.status();
    let reached = tokio::time::timeout(DEADLINE, status.wait_for(wanted)).await.map(|state| state.is_ok());
    assert_eq!(reached, Ok(true), "{:?}", client.status().borrow());
}

#[tokio::test]
async fn a_killed_server_is_noticed_and_everything_resumes() {
    let mut server = Server::start(NORTHBOUND);
    let client = server.client("OVN_Northbound");
    let replica = client.monitor(Monitored::new().table("Logical_Switch", &["name"])).await.unwrap();
    client.transact(vec![switch("one"), switch("two"), Operation::commit_durable()]).await.unwrap();

    server.kill();
    until_connected(&client, |status| !status.is_connected()).await;
    assert!(!replica.state().current);
    assert_eq!(replica.read(|tables| tables.len("Logical_Switch")), 2, "the last picture stays");
    let impatient = client.with_timeout(Duration::from_millis(100));
    let error = impatient.transact(vec![switch("never")]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");

    server.resume();
    // A change that the replica has not seen, made before it can have caught up for sure.
    let other = server.client("OVN_Northbound");
    other.transact(vec![Operation::delete("Logical_Switch", named("one")), switch("three")]).await.unwrap();
    let names = replica.until(DEADLINE, |tables| {
        let names: Vec<String> =
            tables.rows("Logical_Switch").filter_map(|(_, row)| row.str("name")).map(str::to_owned).collect();
        names.contains(&"three".to_owned()).then_some(names)
    });
    let mut names = names.await.unwrap();
    names.sort();
    assert_eq!(names, ["three", "two"], "nothing lost, nothing stale, and what timed out was never sent");
    client.transact(vec![switch("four")]).await.unwrap();
    replica
        .until(DEADLINE, |tables| tables.find("Logical_Switch", "name", "four").map(|_| ()))
        .await
        .unwrap();
    assert!(client.status().borrow().connections >= 2);
}

#[tokio::test]
async fn calls_wait_for_a_server_that_comes_later() {
    let mut server = Server::start(VSWITCH);
    server.kill();
    let client = server.client("Open_vSwitch");
    let call = client.transact(vec![Operation::insert("Open_vSwitch", Row::new())]);
    let (outcome, ()) = tokio::join!(call, async { server.resume() });
    assert!(outcome.unwrap()[0].uuid.is_some());
}

#[tokio::test]
async fn a_thousand_updates_are_pipelined() {
    let server = Server::start(VSWITCH);
    let client = server.client("Open_vSwitch");
    let root =
        client.transact(vec![Operation::insert("Open_vSwitch", Row::new())]).await.unwrap()[0].uuid.unwrap();
    let replica = client.monitor(Monitored::new().table("Open_vSwitch", &["next_cfg"])).await.unwrap();
    let started = Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..1_000 {
        let client = client.clone();
        let bump =
            Operation::mutate("Open_vSwitch", vec![Condition::id(root)], [Mutation::add("next_cfg", 1i64)]);
        calls.spawn(async move { client.transact(vec![bump]).await });
    }
    for outcome in calls.join_all().await {
        assert_eq!(outcome.unwrap()[0].count, Some(1));
    }
    println!("1,000 pipelined updates in {:?}", started.elapsed());
    let counted = replica.until(DEADLINE, |tables| {
        let value = tables.row("Open_vSwitch", root)?.integer("next_cfg")?;
        (value == 1_000).then_some(value)
    });
    counted.await.unwrap();
}

#[tokio::test]
async fn an_unknown_database_is_a_clear_error() {
    let server = Server::start(VSWITCH);
    let client =
        Client::new(&server.endpoint(), "Nonsense", options()).unwrap().with_timeout(Duration::from_secs(1));
    let error = client.transact(Vec::new()).await.unwrap_err();
    assert!(error.to_string().contains("unknown database"), "{error}");
}
