//! TLS of the face, behind its [`door`]: a client certificate is optional (a host that joins has none yet) but, once shown, must be of our
//! CA. Who it is reaches the handlers as [`Peer`]. A slow handshake holds up nobody else.

use super::door::{self, Caller};
use super::{Refusal, State, router};
use amphi_api::{ErrorCode, HostId};
use axum::extract::connect_info::Connected;
use axum::serve::{IncomingStream, Listener};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::server::{StartHandshake, TlsStream};
use tokio_util::sync::CancellationToken;

/// A handshake takes at most this long.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at once; more connections wait at the door.
const HANDSHAKES: usize = 256;

/// How long transfers under way may go on once the face ends.
const DRAIN: Duration = Duration::from_secs(3);

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// From the certificate. None: it showed none.
    pub certified: Option<HostId>,
}

impl Peer {
    pub(super) fn of(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Self {
        let chain = stream.get_ref().1.peer_certificates();
        let certified = chain.and_then(|c| c.first()).and_then(|c| crate::pki::host_of(c));
        Self { address, certified }
    }

    pub fn host(&self) -> Result<HostId, Refusal> {
        self.certified
            .ok_or_else(|| Refusal::new(ErrorCode::Unauthenticated, "a host's certificate is needed here"))
    }
}

impl Connected<IncomingStream<'_, Accepted>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Accepted>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Connections with their handshake done.
pub struct Accepted {
    done: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>,
    local: SocketAddr,
}

impl Accepted {
    pub fn new(done: mpsc::Receiver<(TlsStream<TcpStream>, Peer)>, local: SocketAddr) -> Self {
        Self { done, local }
    }
}

impl Listener for Accepted {
    type Io = TlsStream<TcpStream>;
    type Addr = Peer;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.done.recv().await {
            Some(accepted) => accepted,
            // The accepting task has ended with the runtime: nothing will ever come.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(Peer { address: self.local, certified: None })
    }
}

/// Serves the face until `until` is done; then links end, and transfers have a few seconds to.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    state: State,
    until: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let local = listener.local_addr()?;
    let closing = CancellationToken::new();
    // However this ends, the door closes.
    let _closes = closing.clone().drop_guard();
    let (callers, closed) = door::open(listener.into_std()?, &tls, state.clone(), closing.clone())?;
    let (sender, done) = mpsc::channel(64);
    let shaking = tokio::spawn(shake_hands(callers, tls, sender));
    let links = state.links.clone();
    let service = router(state).into_make_service_with_connect_info::<Peer>();
    let ending = CancellationToken::new();
    let ended = {
        let ending = ending.clone();
        async move {
            until.await;
            links.shutdown();
            ending.cancel();
        }
    };
    let served = axum::serve(Accepted::new(done, local), service).with_graceful_shutdown(ended);
    let served = tokio::select! {
        served = served.into_future() => served,
        () = async { ending.cancelled().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    };
    shaking.abort();
    closing.cancel();
    let _ = closed.await;
    served
}

/// What a handshake comes to; none, and told, where it fails or takes too long.
pub(super) async fn in_time<T>(
    address: SocketAddr,
    shaken: impl Future<Output = std::io::Result<T>>,
) -> Option<T> {
    match tokio::time::timeout(HANDSHAKE, shaken).await {
        Ok(Ok(done)) => return Some(done),
        Ok(Err(error)) => tracing::debug!(%address, %error, "TLS handshake failed"),
        Err(_) => tracing::debug!(%address, "TLS handshake took too long"),
    }
    None
}

async fn shake_hands(
    mut callers: mpsc::Receiver<Caller>,
    tls: Arc<rustls::ServerConfig>,
    done: mpsc::Sender<(TlsStream<TcpStream>, Peer)>,
) {
    let room = Arc::new(tokio::sync::Semaphore::new(HANDSHAKES));
    while let Some(Caller { said, tcp, address }) = callers.recv().await {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        let (tls, done) = (tls.clone(), done.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let shaken = async {
                let tcp = TcpStream::from_std(tcp)?;
                StartHandshake::from_parts(said, tcp).into_stream(tls).await
            };
            if let Some(stream) = in_time(address, shaken).await {
                let peer = Peer::of(&stream, address);
                let _ = done.send((stream, peer)).await;
            }
        });
    }
}
