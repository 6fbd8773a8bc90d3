//! The hosts' door: a thread of its own, in real time where the kernel grants it, that accepts all connections of the face. It
//! keeps those that only renew leases (they say so by ALPN, [`LEASE_ALPN`]) and serves them itself: an answer that comes after
//! 0.7 s is none, and a controller that starts fifty instances has no worker free that soon. All others go on to the face,
//! their handshake not yet done. Refuses everything that waits for a disk, a record or a host.

use super::tls::{Accepted, Peer, in_time};
use super::{LEASE_MAX, State, lease};
use amphi_api::lease::LEASE_ALPN;
use amphi_api::urgency;
use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::routing::post;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::{StartHandshake, TlsStream};
use tokio_util::sync::CancellationToken;

/// Connections that have not said yet what they are for, or that the face has no time for; more wait in the kernel's queue.
const WAITING: usize = 4096;

/// A connection that has said its first word and belongs to the face.
pub struct Caller {
    pub said: rustls::server::Accepted,
    pub tcp: std::net::TcpStream,
    pub address: SocketAddr,
}

/// A connection of a lease process, its handshake done.
type Renewing = mpsc::Sender<(TlsStream<TcpStream>, Peer)>;

/// Opens it until `closing` is cancelled. Callers come out of the first channel; the second tells that the port is free again.
pub fn open(
    listener: TcpListener,
    tls: &rustls::ServerConfig,
    state: State,
    closing: CancellationToken,
) -> std::io::Result<(mpsc::Receiver<Caller>, oneshot::Receiver<()>)> {
    let local = listener.local_addr()?;
    let mut tls = tls.clone();
    tls.alpn_protocols = vec![LEASE_ALPN.to_vec()];
    let (callers, called) = mpsc::channel(256);
    let (closed, is_closed) = oneshot::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("leases".into()).spawn(move || {
        if let Err(why) = urgency::real_time() {
            tracing::warn!("leases may be renewed late while this machine is busy: {why}");
        }
        runtime.block_on(async {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return tracing::error!(%error, "the hosts' face cannot listen"),
            };
            let (renewing, renew) = mpsc::channel(64);
            let service = routes(state).into_make_service_with_connect_info::<Peer>();
            tokio::select! {
                () = accept_all(listener, Arc::new(tls), callers, renewing) => {}
                _ = axum::serve(Accepted::new(renew, local), service).into_future() => {}
                () = closing.cancelled() => {}
            }
        });
        // Connections end with the runtime, and with them the last that holds the port.
        drop(runtime);
        let _ = closed.send(());
    })?;
    Ok((called, is_closed))
}

/// What is served here. The face has it too, for lease processes of before.
pub fn routes(state: State) -> Router {
    Router::new()
        .route("/hosts/v1/lease", post(lease::renew).layer(DefaultBodyLimit::max(LEASE_MAX)))
        .with_state(state)
}

async fn accept_all(
    listener: tokio::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
    callers: mpsc::Sender<Caller>,
    renewing: Renewing,
) {
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (tcp, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, mostly: waiting is all that helps.
                tracing::warn!(%error, "the hosts' face cannot accept");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (tls, callers, renewing) = (tls.clone(), callers.clone(), renewing.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = tcp.set_nodelay(true);
            in_time(address, admit(tcp, address, tls, callers, renewing)).await;
        });
    }
}

async fn admit(
    tcp: TcpStream,
    address: SocketAddr,
    tls: Arc<rustls::ServerConfig>,
    callers: mpsc::Sender<Caller>,
    renewing: Renewing,
) -> std::io::Result<()> {
    let hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
    let renews = hello.client_hello().alpn().is_some_and(|mut words| words.any(|word| word == LEASE_ALPN));
    if renews {
        let stream = hello.into_stream(tls).await?;
        let peer = Peer::of(&stream, address);
        let _ = renewing.send((stream, peer)).await;
    } else {
        let StartHandshake { accepted: said, io, .. } = hello;
        let _ = callers.send(Caller { said, tcp: io.into_std()?, address }).await;
    }
    Ok(())
}
