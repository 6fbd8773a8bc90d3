//! Hosts ask each other one thing: "am I given up, by what the controller last told you?" One JSON line there, one back,
//! over a connection that stays open, so that in an outage nobody has to shake hands first. Owns both ends of it. Refuses
//! to answer for anybody but the host that the certificate names.

use super::clock;
use super::rule::Rule;
use super::shared::Shared;
use super::tls::PeerPapers;
use crate::peer_wire::{greet, read, take, write};
use amphi_api::HostId;
use amphi_api::lease::{PeerAnswer, PeerQuestion, Voter};
use anyhow::{Context, ensure};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::BufReader;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Making a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// While all is well the connection is used this often, so that it is known to be good.
const IDLE: Duration = Duration::from_secs(2);
/// An answer takes at most this long: in doubt, one that is later would be of little worth.
const ANSWER: Duration = Duration::from_millis(350);
/// A connection on which nothing is asked ends.
const SILENCE: Duration = Duration::from_secs(30);
/// Connections answered at once; more wait.
const CONNECTIONS: usize = 2_048;
/// The longest line, in bytes.
const LINE_MAX: u64 = 1_024;

/// Answers other hosts until the process ends.
pub async fn answer(listener: TcpListener, tls: Arc<rustls::ServerConfig>, shared: Arc<Shared>) {
    let acceptor = tokio_rustls::TlsAcceptor::from(tls);
    take(listener, CONNECTIONS, |tcp| {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        async move {
            if let Err(error) = answer_one(tcp, acceptor, &shared).await {
                tracing::debug!("a host that asked: {error:#}");
            }
        }
    })
    .await
}

async fn answer_one(
    tcp: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    shared: &Shared,
) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let (mut stream, asker) = greet(tcp, &acceptor, CONNECT).await?;
    loop {
        let question: PeerQuestion = timeout(SILENCE, read(&mut stream, LINE_MAX)).await??;
        let (word, age) = shared.rule(|rule| (rule.word_on(asker), rule.age(clock::now())));
        timeout(CONNECT, write(&mut stream, &PeerAnswer { number: question.number, word, age })).await??;
    }
}

/// Keeps one connection to every other voter, and asks: now and then, and in doubt all the time.
pub async fn ask_all(papers: PeerPapers, shared: Arc<Shared>) {
    let mut tasks: BTreeMap<HostId, (SocketAddr, JoinHandle<()>)> = BTreeMap::new();
    let mut voters = shared.voters();
    loop {
        let wanted: Vec<Voter> = voters.borrow_and_update().clone();
        let wanted: BTreeMap<HostId, SocketAddr> = wanted
            .into_iter()
            .filter(|voter| voter.id != shared.me)
            .filter_map(|voter| Some((voter.id, voter.address?)))
            .collect();
        tasks.retain(|id, (address, task)| {
            let keep = wanted.get(id) == Some(address);
            if !keep {
                task.abort();
            }
            keep
        });
        for (id, address) in wanted {
            tasks.entry(id).or_insert_with(|| {
                let (tls, shared) = (papers.client(id), shared.clone());
                let task = tokio::spawn(async move {
                    match tls {
                        Ok(tls) => ask_one(id, address, tls, shared).await,
                        Err(error) => tracing::error!("no connection to {id} can be made: {error:#}"),
                    }
                });
                (address, task)
            });
        }
        if voters.changed().await.is_err() {
            return;
        }
    }
}

async fn ask_one(id: HostId, address: SocketAddr, tls: Arc<rustls::ClientConfig>, shared: Arc<Shared>) {
    let mut reached = true;
    loop {
        let ended = session(id, address, tls.clone(), &shared, &mut reached).await;
        if let Err(error) = ended
            && std::mem::replace(&mut reached, false)
        {
            tracing::info!(voter = %id, %address, "cannot be asked: {error:#}");
        }
        tokio::time::sleep(poll(&shared)).await;
    }
}

fn poll(shared: &Shared) -> Duration {
    Duration::from_millis(shared.rule(|rule: &mut Rule| rule.timing().poll))
}

async fn session(
    id: HostId,
    address: SocketAddr,
    tls: Arc<rustls::ClientConfig>,
    shared: &Shared,
    reached: &mut bool,
) -> anyhow::Result<()> {
    let stream = timeout(CONNECT, async {
        let tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        let name = rustls::pki_types::ServerName::from(address.ip());
        anyhow::Ok(tokio_rustls::TlsConnector::from(tls).connect(name, tcp).await?)
    })
    .await
    .context("no connection in time")??;
    let mut stream = BufReader::new(stream);
    let mut doubt = shared.doubt();
    for number in 0.. {
        let asked = clock::now();
        write(&mut stream, &PeerQuestion { number }).await?;
        let answer: PeerAnswer =
            timeout(ANSWER, read(&mut stream, LINE_MAX)).await.context("no answer in time")??;
        ensure!(answer.number == number, "an answer to another question");
        if !std::mem::replace(reached, true) {
            tracing::info!(voter = %id, %address, "can be asked again");
        }
        shared.heard(id, asked, answer.word);
        let in_doubt = *doubt.borrow_and_update();
        let pause = if in_doubt { poll(shared) } else { IDLE };
        let pause = pause.saturating_sub(Duration::from_millis(clock::now().saturating_sub(asked)));
        // The beginning of doubt ends the pause.
        let _ = timeout(pause, async { doubt.wait_for(|now| *now && !in_doubt).await.map(drop) }).await;
    }
    Ok(())
}
