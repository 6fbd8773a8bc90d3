//! A door in front of a server, at its own address: passes everything, and counts what goes in and what comes out.

use anyhow::Result;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes so far.
#[derive(Default)]
pub struct Counted {
    up: AtomicU64,
    down: AtomicU64,
}

impl Counted {
    /// To the server.
    pub fn up(&self) -> u64 {
        self.up.load(Ordering::SeqCst)
    }

    /// Out of the server.
    pub fn down(&self) -> u64 {
        self.down.load(Ordering::SeqCst)
    }
}

/// The door's address. It is open as long as the runtime lives.
pub async fn counting(to: SocketAddr) -> Result<(SocketAddr, Arc<Counted>)> {
    let counted = Arc::new(Counted::default());
    let (into, out) = (counted.clone(), counted.clone());
    let up = move |bytes: &mut [u8]| {
        into.up.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    };
    let down = move |bytes: &mut [u8]| {
        out.down.fetch_add(bytes.len() as u64, Ordering::SeqCst);
    };
    Ok((door(to, up, down).await?, counted))
}

/// The same that shows what goes in and what comes out before it is passed, so that it can be changed.
pub async fn door<U, D>(to: SocketAddr, up: U, down: D) -> Result<SocketAddr>
where
    U: Fn(&mut [u8]) + Clone + Send + 'static,
    D: Fn(&mut [u8]) + Clone + Send + 'static,
{
    let listener = TcpListener::bind((to.ip(), 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let (up, down) = (up.clone(), down.clone());
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::join!(pass(from_near, to_far, up), pass(from_far, to_near, down));
            });
        }
    });
    Ok(address)
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, show: impl Fn(&mut [u8])) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        show(&mut buffer[..read]);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _closed = to.shutdown().await;
}
