//! The client against a peer that behaves in ways a healthy ovsdb-server does not.

use std::time::Duration;

use amphi_ovsdb::{Client, Decoder, Error, Monitored, Options, Row};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

const ID: &str = "7a1c0f3e-6d2a-4f4e-9d5c-0123456789ab";

struct Peer {
    stream: UnixStream,
    decoder: Decoder,
}

impl Peer {
    async fn accept(listener: &UnixListener) -> Peer {
        Peer { stream: listener.accept().await.unwrap().0, decoder: Decoder::new(1 << 20) }
    }

    /// The next message, None when the client has hung up.
    async fn hear(&mut self) -> Option<Json> {
        loop {
            if let Some(message) = self.decoder.decode().unwrap() {
                return Some(message);
            }
            if self.stream.read_buf(self.decoder.buffer()).await.unwrap() == 0 {
                return None;
            }
        }
    }

    async fn hear_call(&mut self, method: &str) -> Json {
        let message = self.hear().await.unwrap();
        assert_eq!(message["method"], method, "{message}");
        message
    }

    async fn say(&mut self, message: Json) {
        // In small pieces, as a slow network would.
        for piece in message.to_string().as_bytes().chunks(7) {
            self.stream.write_all(piece).await.unwrap();
            self.stream.flush().await.unwrap();
        }
    }

    async fn welcome(&mut self) {
        let call = self.hear_call("get_schema").await;
        let schema =
            json!({"name": "D", "version": "1", "tables": {"T": {"columns": {"name": {"type": "string"}}}}});
        self.say(json!({"id": call["id"], "result": schema, "error": null})).await;
    }
}

fn listen() -> (tempfile::TempDir, UnixListener, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    (dir, UnixListener::bind(&path).unwrap(), format!("unix:{}", path.display()))
}

fn options(keepalive: Duration) -> Options {
    Options {
        keepalive,
        backoff: Duration::from_millis(10),
        timeout: Duration::from_secs(20),
        ..Options::default()
    }
}

#[tokio::test]
async fn an_old_server_gets_the_old_monitor() {
    let (_dir, listener, endpoint) = listen();
    let client = Client::new(&endpoint, "D", options(Duration::from_secs(60))).unwrap();
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.welcome().await;
        for method in ["monitor_cond_since", "monitor_cond"] {
            let call = peer.hear_call(method).await;
            peer.say(json!({"id": call["id"], "result": null, "error": {"error": "unknown method", "details": "no"}})).await;
        }
        let call = peer.hear_call("monitor").await;
        assert_eq!(call["params"][2], json!({"T": [{"columns": ["name"]}]}));
        peer.say(json!({"id": call["id"], "result": {"T": {ID: {"new": {"name": "a"}}}}, "error": null}))
            .await;
        let update = json!({"T": {ID: {"old": {"name": "a"}, "new": {"name": "b"}}}});
        peer.say(json!({"id": null, "method": "update", "params": [call["params"][1], update]})).await;
        peer
    });
    let replica = client.monitor(Monitored::new().table("T", &["name"])).await.unwrap();
    let row = replica
        .until(Duration::from_secs(20), |tables| tables.find("T", "name", "b").map(|(_, row)| row.clone()));
    assert_eq!(row.await.unwrap(), Row::new().with("name", "b"));
    drop(server.await.unwrap());
}

#[tokio::test]
async fn echoes_are_answered_and_silence_ends_the_connection() {
    let (_dir, listener, endpoint) = listen();
    let client = Client::new(&endpoint, "D", options(Duration::from_millis(200))).unwrap();
    let mut peer = Peer::accept(&listener).await;
    peer.welcome().await;
    peer.say(json!({"id": "probe", "method": "echo", "params": ["x"]})).await;
    assert_eq!(peer.hear().await, Some(json!({"id": "probe", "result": ["x"], "error": null})));
    peer.hear_call("echo").await;
    let in_flight = client.call("list_dbs", json!([]));
    let (failed, ended) = tokio::join!(in_flight, async {
        peer.hear_call("list_dbs").await;
        peer.hear().await
    });
    assert_eq!(ended, None, "a peer that answers nothing is given up");
    assert!(matches!(&failed, Err(Error::Lost { reason, .. }) if reason.contains("silent")), "{failed:?}");
    let mut next = Peer::accept(&listener).await;
    next.welcome().await;
    client.schema().await.unwrap();
}

#[tokio::test]
async fn nonsense_and_strange_updates_start_afresh() {
    let (_dir, listener, endpoint) = listen();
    let client = Client::new(&endpoint, "D", options(Duration::from_secs(60))).unwrap();
    let server = tokio::spawn(async move {
        let mut peer = Peer::accept(&listener).await;
        peer.stream.write_all(b"220 mail.example ready\r\n").await.unwrap();
        let mut peer = Peer::accept(&listener).await;
        peer.welcome().await;
        let call = peer.hear_call("monitor_cond_since").await;
        let seen = "11111111-6d2a-4f4e-9d5c-0123456789ab";
        peer.say(json!({"id": call["id"], "result": [false, seen, {}], "error": null})).await;
        let strange = json!({"T": {ID: {"modify": {"name": "b"}}}});
        peer.say(json!({"id": null, "method": "update3", "params": [call["params"][1], seen, strange]}))
            .await;
        let mut peer = Peer::accept(&listener).await;
        peer.welcome().await;
        let call = peer.hear_call("monitor_cond_since").await;
        assert_eq!(
            call["params"][3], "00000000-0000-0000-0000-000000000000",
            "nothing is built on a broken picture"
        );
        let whole = json!([false, seen, {"T": {ID: {"initial": {"name": "c"}}}}]);
        peer.say(json!({"id": call["id"], "result": whole, "error": null})).await;
        peer
    });
    let replica = client.monitor(Monitored::new().table("T", &[])).await.unwrap();
    replica.until(Duration::from_secs(20), |tables| tables.find("T", "name", "c").map(|_| ())).await.unwrap();
    drop(server.await.unwrap());
}
