//! Renews the lease with the controller, over a connection of its own. An answer that comes too late is dropped with its
//! connection. Refuses to judge what an answer means.

use super::clock;
use super::memo::Files;
use super::shared::Shared;
use crate::link::Papers;
use amphi_api::lease::{LEASE_ALPN, LeaseGrant, LeaseRenewal, LeaseState};
use anyhow::{Context, bail};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

pub struct Renewer {
    pub shared: Arc<Shared>,
    pub files: Files,
    pub address: SocketAddr,
    pub witness: bool,
}

impl Renewer {
    /// Renews until the process ends.
    pub async fn run(self, papers: &Papers) -> anyhow::Result<()> {
        let url = format!("{}/hosts/v1/lease", papers.url);
        let mut tls = (*papers.tls).clone();
        tls.alpn_protocols = vec![LEASE_ALPN.to_vec()];
        let http = reqwest::Client::builder().tls_backend_preconfigured(tls).build()?;
        let mut well = true;
        let mut marked = self.files.is_marked();
        for sequence in 1.. {
            let began = Instant::now();
            let timing = self.shared.rule(|rule| *rule.timing());
            match self.renew(&http, &url, sequence, marked, Duration::from_millis(timing.answer)).await {
                Ok(on) => {
                    if !std::mem::replace(&mut well, true) {
                        tracing::info!("the controller answers again");
                    }
                    if on != marked {
                        let files = self.files.clone();
                        let set = tokio::task::spawn_blocking(move || files.set_mark(on)).await?;
                        set.context("cannot note on disk whether this host takes part in leases")?;
                        marked = on;
                    }
                }
                Err(error) if std::mem::replace(&mut well, false) => {
                    tracing::warn!("the lease is not renewed: {error:#}");
                }
                Err(error) => tracing::debug!("the lease is not renewed: {error:#}"),
            }
            tokio::time::sleep_until(began + Duration::from_millis(timing.period)).await;
        }
        Ok(())
    }

    /// One renewal; whether leases are on.
    async fn renew(
        &self,
        http: &reqwest::Client,
        url: &str,
        sequence: u64,
        marked: bool,
        bound: Duration,
    ) -> anyhow::Result<bool> {
        let echo = self.shared.rule(|rule| rule.echo());
        // Until it is on disk that this host takes part, nobody may rely on it.
        let state = if marked { self.shared.state() } else { LeaseState::Off };
        let (address, witness) = (self.address, self.witness);
        let renewal = LeaseRenewal { sequence, echo, address, state, boot: self.files.boot(), witness };
        let sent = clock::now();
        let answer = async {
            let answer = http.post(url).json(&renewal).send().await.context("no answer")?;
            let status = answer.status();
            let body = answer.bytes().await.context("no whole answer")?;
            if !status.is_success() {
                let said = serde_json::from_slice::<amphi_api::ErrorBody>(&body).map(|b| b.error.message);
                bail!("the controller refused: {}", said.unwrap_or_else(|_| status.to_string()));
            }
            serde_json::from_slice::<LeaseGrant>(&body).context("an answer that cannot be read")
        };
        let grant = tokio::time::timeout(bound, answer).await.context("no answer in time")??;
        // Timers may be late; the clock that counts is looked at.
        if grant.sequence != sequence || clock::now() > sent + bound.as_millis() as u64 {
            bail!("the answer came too late");
        }
        if let Err(why) = grant.timing.check() {
            bail!("the controller's times make no sense: {why}");
        }
        self.shared.granted(sent, &grant);
        Ok(grant.on)
    }
}
