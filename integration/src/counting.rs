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
    let listener = TcpListener::bind((to.ip(), 0)).await?;
    let (address, counted) = (listener.local_addr()?, Arc::new(Counted::default()));
    let count = counted.clone();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let count = count.clone();
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(to).await else { return };
                let ((from_near, to_near), (from_far, to_far)) = (near.into_split(), far.into_split());
                tokio::join!(pass(from_near, to_far, &count.up), pass(from_far, to_near, &count.down));
            });
        }
    });
    Ok((address, counted))
}

async fn pass(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, count: &AtomicU64) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer).await {
        count.fetch_add(read as u64, Ordering::SeqCst);
        if to.write_all(&buffer[..read]).await.is_err() {
            break;
        }
    }
    let _closed = to.shutdown().await;
}
