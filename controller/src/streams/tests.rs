//! The joint between a client and a host, over real sockets.

use super::*;
use amphi_api::streams::{STDIN, STDOUT};
use axum::Router;
use axum::extract::{State, WebSocketUpgrade};
use axum::routing::get;
use futures_util::{SinkExt, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio_tungstenite::tungstenite::Message as Said;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Stage {
    form: Form,
    hosts: Arc<Mutex<mpsc::Receiver<WebSocket>>>,
    hand: mpsc::Sender<WebSocket>,
}

async fn client(State(stage): State<Stage>, upgrade: WebSocketUpgrade) -> axum::response::Response {
    let socket = stage.hosts.lock().await.recv().await.unwrap();
    serve(upgrade, HostStream::begin(socket).await.unwrap(), stage.form)
}

async fn host(State(stage): State<Stage>, upgrade: WebSocketUpgrade) -> axum::response::Response {
    upgrade.on_upgrade(move |socket| async move { stage.hand.send(socket).await.unwrap() })
}

/// A client and a host, joined.
async fn joined(form: Form) -> (Socket, Socket) {
    let (hand, hosts) = mpsc::channel(1);
    let stage = Stage { form, hosts: Arc::new(Mutex::new(hosts)), hand };
    let router = Router::new().route("/client", get(client)).route("/host", get(host)).with_state(stage);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let (mut host, _) = connect_async(format!("ws://{address}/host")).await.unwrap();
    host.send(Said::text(r#"{"type":"opened"}"#)).await.unwrap();
    let (client, _) = connect_async(format!("ws://{address}/client")).await.unwrap();
    (client, host)
}

/// What comes next beside pings.
async fn next(socket: &mut Socket) -> Option<Said> {
    let next = async {
        loop {
            match socket.next().await {
                Some(Ok(Said::Ping(_) | Said::Pong(_))) => {}
                Some(Ok(said)) => return Some(said),
                Some(Err(_)) | None => return None,
            }
        }
    };
    tokio::time::timeout(LIMIT, next).await.expect("something comes in time")
}

#[tokio::test]
async fn bytes_and_words_go_both_ways() {
    let (mut client, mut host) = joined(Form::Framed).await;
    assert_eq!(next(&mut client).await, Some(Said::text(r#"{"type":"opened"}"#)));
    client.send(Said::binary(vec![STDIN, 0, 255])).await.unwrap();
    client.send(Said::text(r#"{"type":"input_end"}"#)).await.unwrap();
    assert_eq!(next(&mut host).await, Some(Said::binary(vec![STDIN, 0, 255])));
    assert_eq!(next(&mut host).await, Some(Said::text(r#"{"type":"input_end"}"#)));
    host.send(Said::binary(vec![STDOUT, 7])).await.unwrap();
    host.send(Said::text(r#"{"type":"ended","exit_code":3,"reason":null}"#)).await.unwrap();
    assert_eq!(next(&mut client).await, Some(Said::binary(vec![STDOUT, 7])));
    assert_eq!(next(&mut client).await, Some(Said::text(r#"{"type":"ended","exit_code":3,"reason":null}"#)));
    assert!(matches!(next(&mut client).await, Some(Said::Close(_))));
    assert!(matches!(next(&mut host).await, Some(Said::Close(_))));
}

#[tokio::test]
async fn raw_clients_see_bytes_alone() {
    let (mut client, mut host) = joined(Form::Raw).await;
    client.send(Said::binary(vec![9])).await.unwrap();
    assert_eq!(next(&mut host).await, Some(Said::binary(vec![STDIN, 9])));
    host.send(Said::binary(vec![STDOUT, 8, 8])).await.unwrap();
    assert_eq!(next(&mut client).await, Some(Said::binary(vec![8, 8])));
    host.send(Said::text(r#"{"type":"failed","code":"x","message":"the guest is gone"}"#)).await.unwrap();
    let Some(Said::Close(Some(frame))) = next(&mut client).await else { panic!("no goodbye") };
    assert_eq!((u16::from(frame.code), frame.reason.as_str()), (1011, "the guest is gone"));
}

#[tokio::test]
async fn the_end_of_one_side_is_told_to_the_other() {
    let (mut client, host) = joined(Form::Framed).await;
    next(&mut client).await;
    drop(host);
    let Some(Said::Text(word)) = next(&mut client).await else { panic!("no last word") };
    assert!(word.contains("host_lost"), "{word}");
    let (client, mut host) = joined(Form::Framed).await;
    drop(client);
    assert!(matches!(next(&mut host).await, Some(Said::Close(_)) | None));
}

#[tokio::test]
async fn what_is_not_taken_is_not_asked_for() {
    let (client, host) = joined(Form::Framed).await;
    let (mut to_client, mut from_host) = host.split();
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    tokio::spawn(async move {
        let piece = vec![STDOUT; 64 << 10];
        while to_client.send(Said::binary(piece.clone())).await.is_ok() {
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    // The client takes nothing: what the host could send comes to a halt, within what two sockets' buffers hold.
    let deadline = tokio::time::Instant::now() + LIMIT;
    let mut last = usize::MAX;
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = sent.load(Ordering::SeqCst);
        if now == last && now > 0 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "{now} bytes and no halt");
        last = now;
    }
    assert!(last < 64 << 20, "{last} bytes are on their way");
    // And the other way is not held up by that.
    let (mut speak, mut hear) = client.split();
    speak.send(Said::binary(vec![STDIN, 1])).await.unwrap();
    let heard = tokio::time::timeout(LIMIT, async {
        loop {
            if let Some(Ok(Said::Binary(bytes))) = from_host.next().await {
                return bytes;
            }
        }
    });
    assert_eq!(&heard.await.unwrap()[..], [STDIN, 1]);
    // It goes on when the client takes again.
    let deadline = tokio::time::Instant::now() + LIMIT;
    while sent.load(Ordering::SeqCst) <= last {
        assert!(tokio::time::Instant::now() < deadline, "it does not go on");
        hear.next().await.unwrap().unwrap();
    }
}
