//! The end on the host that a guest goes to. Refuses every host but the one that the instance is expected from. Hosts that
//! want a blob of an image knock here too.

use super::{Answer, CONNECT, Door, Knock, LINE_MAX, ONLY_CHANGES, folder_of, make_folder, watch};
use crate::images::peers;
use crate::lease::tls::PeerPapers;
use crate::peer_wire::{greet, read, take, write};
use crate::reconcile::Reconciler;
use amphi_api::{HostId, InstanceId};
use anyhow::Context;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::time::timeout;

/// Connections at once; more wait. A guest takes a handful.
const CONNECTIONS: usize = 256;

/// The first line on a connection.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum First {
    Blob(peers::Ask),
    Knock(Box<Knock>),
}

/// What a gate needs to know of its host.
pub struct Host {
    pub run_dir: PathBuf,
    /// libvirtd's socket.
    pub engine: PathBuf,
}

/// Takes guests until the process ends.
pub async fn serve(listener: TcpListener, papers: PeerPapers, host: Host, reconciler: Arc<Reconciler>) {
    let acceptor = match papers.server() {
        Ok(tls) => tokio_rustls::TlsAcceptor::from(tls),
        Err(error) => return tracing::error!("no guests can come: {error:#}"),
    };
    let host = Arc::new(host);
    take(listener, CONNECTIONS, |tcp| {
        let (acceptor, host, reconciler) = (acceptor.clone(), host.clone(), reconciler.clone());
        async move {
            if let Err(error) = pass(tcp, acceptor, &host, &reconciler).await {
                tracing::info!("a way from another host has ended: {error:#}");
            }
        }
    })
    .await
}

async fn pass(
    tcp: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    host: &Host,
    reconciler: &Reconciler,
) -> anyhow::Result<()> {
    watch(&tcp)?;
    let (mut stream, from) = greet(tcp, &acceptor, CONNECT).await?;
    let first = timeout(CONNECT, read(&mut stream, LINE_MAX)).await.context("it says nothing")??;
    let knock = match first {
        First::Blob(ask) => return peers::serve(&mut stream, &ask, reconciler.images()).await,
        First::Knock(knock) => knock,
    };
    if knock.to == Door::Bytes {
        let Some(what) = &knock.pass else { anyhow::bail!("it does not say which bytes") };
        let take = reconciler.take_bytes(knock.instance, knock.epoch, from, what);
        return match take.await {
            Ok(place) => {
                let how = if place.builds_on() { ONLY_CHANGES } else { "" };
                write(&mut stream, &Answer::Ok(how.into())).await?;
                place.fill(reconciler, &mut stream).await
            }
            Err(refusal) => write(&mut stream, &Answer::Err(refusal)).await,
        };
    }
    match open(&knock, from, host, reconciler).await {
        Ok((definition, Some(mut engine))) => {
            write(&mut stream, &Answer::Ok(definition)).await?;
            copy_bidirectional(&mut stream, &mut engine).await?;
            Ok(())
        }
        Ok((definition, None)) => write(&mut stream, &Answer::Ok(definition)).await,
        Err(refusal) => write(&mut stream, &Answer::Err(refusal)).await,
    }
}

async fn open(
    knock: &Knock,
    from: HostId,
    host: &Host,
    reconciler: &Reconciler,
) -> Result<(String, Option<UnixStream>), String> {
    reconciler.expects(knock.instance, knock.epoch, from)?;
    let folder = folder_of(&host.run_dir, knock.instance);
    if knock.folder != folder {
        return Err(format!(
            "both hosts must have the same run_dir; this one's is {}",
            host.run_dir.display()
        ));
    }
    if knock.to == Door::Receive {
        let (run_dir, stay, made) = (host.run_dir.clone(), reconciler.crossing(), folder.clone());
        let make = move || {
            sweep(&run_dir, &stay);
            make_folder(&made)
        };
        let made =
            tokio::task::spawn_blocking(make).await.map_err(std::io::Error::other).and_then(|made| made);
        made.map_err(|error| format!("cannot make {}: {error}", folder.display()))?;
        return reconciler.receive(knock.instance, knock.epoch).await.map(|definition| (definition, None));
    }
    let path = match knock.to {
        Door::Engine | Door::Receive | Door::Bytes => host.engine.clone(),
        door => folder.join(door.file()),
    };
    match timeout(CONNECT, UnixStream::connect(&path)).await {
        Ok(Ok(stream)) => Ok((String::new(), Some(stream))),
        Ok(Err(error)) => Err(format!("cannot connect to {}: {error}", path.display())),
        Err(_) => Err(format!("cannot connect to {} in time", path.display())),
    }
}

/// Removes the folders of guests that are here or elsewhere by now.
fn sweep(run_dir: &Path, stay: &BTreeSet<InstanceId>) {
    let Ok(entries) = std::fs::read_dir(run_dir.join("crossing")) else { return };
    for entry in entries.flatten() {
        let id = entry.file_name().to_str().and_then(|name| name.parse::<InstanceId>().ok());
        if id.is_some_and(|id| !stay.contains(&id)) {
            // What stays is looked at again when the next one comes.
            let _gone = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// libvirtd's socket by its URI: the one that it names, else the first of the usual ones that is there.
pub fn engine_socket(uri: &str) -> PathBuf {
    if let Some((_, rest)) = uri.split_once("socket=") {
        return rest.split('&').next().unwrap_or(rest).into();
    }
    let usual = ["/run/libvirt/virtqemud-sock", "/run/libvirt/libvirt-sock"];
    let found = usual.iter().find(|path| Path::new(path).exists());
    found.unwrap_or(&usual[1]).into()
}
