//! The wire between one host and the controller, as a relay that can go dead in either direction. What is sent into a dead
//! direction waits, as TCP holds it back and sends it again; an end that is closed is not heard of.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Read at once, in bytes.
const PIECE: usize = 64 << 10;

pub struct Wire {
    address: SocketAddr,
    /// From the host to the controller, and back.
    up: watch::Sender<bool>,
    down: watch::Sender<bool>,
    relay: JoinHandle<()>,
}

impl Wire {
    /// Listens at an address of its own for what is meant for `target`.
    pub async fn lay(target: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("listen for a host")?;
        let address = listener.local_addr()?;
        let (up, down) = (watch::Sender::new(true), watch::Sender::new(true));
        let (ups, downs) = (up.subscribe(), down.subscribe());
        let relay = tokio::spawn(async move {
            while let Ok((host, _)) = listener.accept().await {
                let (ups, downs) = (ups.clone(), downs.clone());
                tokio::spawn(async move {
                    let Ok(controller) = TcpStream::connect(target).await else { return };
                    let _ = (host.set_nodelay(true), controller.set_nodelay(true));
                    let (mut from_host, mut to_host) = host.into_split();
                    let (mut from_controller, mut to_controller) = controller.into_split();
                    // One that ends ends the other: half a connection is of no use to either.
                    tokio::select! {
                        () = carry(&mut from_host, &mut to_controller, ups) => {}
                        () = carry(&mut from_controller, &mut to_host, downs) => {}
                    }
                });
            }
        });
        Ok(Self { address, up, down, relay })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether each direction carries anything.
    pub fn set(&self, up: bool, down: bool) {
        self.up.send_replace(up);
        self.down.send_replace(down);
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.relay.abort();
    }
}

async fn carry(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut open: watch::Receiver<bool>,
) {
    let mut piece = vec![0; PIECE];
    loop {
        if open.wait_for(|open| *open).await.is_err() {
            return;
        }
        let read = tokio::select! {
            read = from.read(&mut piece) => read,
            // Dead from now on: what comes stays with its sender.
            _ = open.wait_for(|open| !open) => continue,
        };
        let Ok(count @ 1..) = read else { return };
        // Read just before it went dead: lost on the way, and sent again later.
        if open.wait_for(|open| *open).await.is_err() || to.write_all(&piece[..count]).await.is_err() {
            return;
        }
    }
}
