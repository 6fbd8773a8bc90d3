//! Hosts: join tokens, joining, hello and goodbye, list, show, delete.
//!
//! A host's record says up from its hello until its link ends. When it was last heard is kept in memory only: a
//! heartbeat writes nothing unless it says something new.

use super::{Draft, Ops, OpsError, View};
use crate::leases::{Standing, Verdict};
use crate::model::*;
use crate::pki;
use amphi_api::host::{
    Engine, Host, HostLease, HostSpec, HostState, JoinToken, JoinTokenCreate, LeaseStanding,
};
use amphi_api::wire::JoinTicket;
use amphi_api::{HostId, validate};
use jiff::{SignedDuration, Timestamp};
use std::time::Instant;

const TOKEN_TTL: u64 = 3_600;
const TOKEN_TTL_MAX: u64 = 604_800;

impl Ops {
    pub async fn create_join_token(&self, request: &JoinTokenCreate) -> Result<JoinToken, OpsError> {
        if let Some(host) = &request.host {
            validate::label("host", host)?;
        }
        let ttl = request.ttl_seconds.unwrap_or(TOKEN_TTL);
        validate::within("ttl_seconds", ttl, 1, TOKEN_TTL_MAX, "seconds")?;
        let secret = pki::new_join_secret();
        let expires_at = Timestamp::now() + SignedDuration::from_secs(ttl as i64);
        let record =
            JoinRecord { digest: digest_of(&secret.digest)?, host: request.host.clone(), expires_at };
        self.transact(|view| {
            let mut draft = Draft::default();
            draft.create(&record);
            // Old permissions go when new ones are made; few enough at a time for one transaction.
            view.joins
                .iter()
                .filter(|j| j.expires_at < Timestamp::now())
                .take(32)
                .for_each(|old| draft.delete(old));
            Ok((draft, ()))
        })
        .await?;
        let ticket = JoinTicket {
            url: self.settings.hosts_url.clone(),
            ca_sha256: self.settings.ca_sha256.clone(),
            secret: secret.secret,
        };
        Ok(JoinToken { token: pki::join_token(&ticket), expires_at })
    }

    /// Spends a join secret; answers the host's id. A host of a known name joins again under its old id, if its link
    /// does not stand: its volumes and bodies are still its own.
    pub async fn join(&self, secret: &str, name: &str) -> Result<HostId, OpsError> {
        validate::label("name", name)?;
        let digest = digest_of(&pki::join_digest(secret))?;
        self.transact(|view| {
            let now = Timestamp::now();
            let permission = view.joins.get(digest).ok_or(OpsError::BadToken("unknown, or used already"))?;
            if permission.expires_at < now {
                return Err(OpsError::BadToken("expired"));
            }
            if permission.host.as_deref().is_some_and(|only| only != name) {
                return Err(OpsError::BadToken("it is for a host of another name"));
            }
            let mut draft = Draft::default();
            draft.delete(permission);
            let id = match view.host_named(name) {
                Some(host) if host.is_up() => {
                    return Err(OpsError::conflict(format!("host '{name}' is connected already")));
                }
                Some(host) => {
                    draft.guard(host);
                    host.id
                }
                None => {
                    let record = HostRecord {
                        id: HostId::new(),
                        name: name.to_owned(),
                        state: HostState::Joined,
                        spec: None,
                        state_since: now,
                        hellos: 0,
                        strangers: Vec::new(),
                        disabled: false,
                        disabled_reason: None,
                        forced_down: false,
                        leased: false,
                        best_effort: false,
                        maintenance: None,
                        barred_since: None,
                        joined_at: now,
                    };
                    draft.create(&record);
                    draft.reserve(name_key(name), record.id);
                    record.id
                }
            };
            Ok((draft, id))
        })
        .await
    }

    /// A host has connected: its facts are recorded, it is up, and what was out of reach is in reach again.
    pub async fn hello(&self, host: HostId, spec: &HostSpec) -> Result<(), OpsError> {
        self.hear(host);
        self.transact(|view| {
            let row = view.hosts.get(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
            if spec.name != row.name {
                let (said, known) = (&spec.name, &row.name);
                return Err(OpsError::conflict(format!("this host joined as '{known}' and says '{said}'")));
            }
            let now = Timestamp::now();
            let since = if row.is_up() { row.state_since } else { now };
            let record = HostRecord {
                state: HostState::Up,
                state_since: since,
                spec: Some(spec.clone()),
                hellos: row.hellos + 1,
                ..(*row.record).clone()
            };
            let mut draft = Draft::default();
            draft.update(row, &record);
            super::volume_groups::learn(view, &mut draft, spec, now);
            Ok((draft, ()))
        })
        .await?;
        self.keep_groups().await?;
        self.find_again(host).await
    }

    /// Clears `lost` of instances whose volume is on this host: they have stayed there with it.
    async fn find_again(&self, host: HostId) -> Result<(), OpsError> {
        loop {
            let cleared = self
                .transact(|view| {
                    let mut draft = Draft::default();
                    let mut count = 0;
                    let lost = view.instances_on(host).filter(|i| i.lost.iter().any(|l| l.host == host));
                    for row in lost.take(super::status::CHUNK) {
                        let mut record = (*row.record).clone();
                        record.lost.retain(|l| l.host != host);
                        record.updated_at = Timestamp::now();
                        draft.update(row, &record);
                        count += 1;
                    }
                    Ok((draft, count))
                })
                .await?;
            if cleared == 0 {
                return Ok(());
            }
        }
    }

    /// Writes only what is new.
    pub async fn heartbeat(&self, host: HostId, engines: &[Engine], free_bytes: u64) -> Result<(), OpsError> {
        self.hear(host);
        // One that was taken for dead is up again by a hello alone: a word of before may still be on its way.
        let news = |row: &HostRecord| {
            let spec = row.spec.as_ref();
            (!row.is_up() && row.barred_since.is_none())
                || spec.is_none_or(|s| s.engines != engines || s.volume_group_free_bytes != free_bytes)
        };
        if !self.world().read().hosts.get(host).is_some_and(|row| news(row)) {
            return Ok(());
        }
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(row) = view.hosts.get(host).filter(|row| row.spec.is_some() && news(row)) {
                let mut record = (*row.record).clone();
                if let Some(spec) = &mut record.spec {
                    spec.engines = engines.to_vec();
                    spec.volume_group_free_bytes = free_bytes;
                }
                if !record.is_up() && record.barred_since.is_none() {
                    record.state = HostState::Up;
                    record.state_since = Timestamp::now();
                }
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// The host's link has ended.
    pub async fn gone(&self, host: HostId) -> Result<(), OpsError> {
        self.transact(|view| {
            let mut draft = Draft::default();
            if let Some(row) = view.hosts.get(host).filter(|row| row.is_up()) {
                let now = Timestamp::now();
                let record = HostRecord { state: HostState::Down, state_since: now, ..(*row.record).clone() };
                draft.update(row, &record);
            }
            Ok((draft, ()))
        })
        .await
    }

    /// Hosts that the records call up and whose link does not stand here.
    pub fn unlinked_hosts(&self) -> Vec<HostId> {
        let view = self.world().read();
        let up = view.hosts.iter().filter(|h| h.is_up() && !self.links.is_linked(h.id));
        up.map(|h| h.id).collect()
    }

    pub fn host(&self, id: HostId) -> Result<Host, OpsError> {
        let view = self.world().read();
        let row = view.hosts.get(id).ok_or_else(|| OpsError::not_found::<HostRecord>(id))?;
        Ok(Host { images: super::prepull::held(&view, id), ..self.host_view(&view, row) })
    }

    /// All hosts, or the one of this name.
    pub fn hosts(&self, name: Option<&str>) -> Vec<Host> {
        let view = self.world().read();
        let rows = view.hosts.iter().filter(|h| name.is_none_or(|n| h.name == n));
        rows.map(|row| self.host_view(&view, row)).collect()
    }

    /// Forgets a host. Only one that is not connected and holds nothing; its certificate is worthless from then on.
    pub async fn delete_host(&self, id: HostId) -> Result<(), OpsError> {
        self.transact_room(|view| {
            let row = view.hosts.get(id).ok_or_else(|| OpsError::not_found::<HostRecord>(id))?;
            if row.is_up() || self.links.is_linked(id) {
                return Err(OpsError::conflict("the host is connected; stop its agent first"));
            }
            let (instances, volumes) = (view.instances_on(id).count(), view.volumes_on(id).count());
            let snapshots = view.snapshots_on(id).count();
            if instances + volumes + snapshots > 0 {
                return Err(OpsError::conflict(format!(
                    "{instances} instances, {volumes} volumes and {snapshots} snapshots are on the host"
                )));
            }
            let mut draft = Draft::default();
            draft.delete(row);
            draft.release(name_key(&row.name));
            if let Some(claim) = view.claims.get(id) {
                draft.delete(claim);
            }
            if let Some(images) = view.host_images.get(id) {
                draft.delete(images);
            }
            super::twins::forget_host(view, &mut draft, id, super::status::CHUNK / 2);
            // Nobody is left to carry them out.
            view.tombstones_on(id).take(super::status::CHUNK).for_each(|t| draft.delete(t));
            Ok((draft, ()))
        })
        .await
    }

    fn host_view(&self, view: &View, record: &HostRecord) -> Host {
        Host {
            id: record.id,
            name: record.name.clone(),
            state: record.state,
            spec: record.spec.clone(),
            claims: view.claims_of(record.id),
            barred_since: record.barred_since,
            lease: self.leases().standing(record.id, Instant::now()).and_then(told),
            seen_at: self
                .heard_at(record.id)
                .or_else(|| (record.state == HostState::Down).then_some(record.state_since)),
            strangers: record.strangers.clone(),
            images: Vec::new(),
            best_effort: record.best_effort,
            maintenance: super::maintenance::progress(view, record),
        }
    }
}

/// A lease as clients see it; none of a host that has never renewed here.
fn told(standing: Standing) -> Option<HostLease> {
    let (word, why) = match standing.verdict {
        Verdict::Fresh => (LeaseStanding::Fresh, None),
        Verdict::Late => (LeaseStanding::Late, None),
        Verdict::HeldBack { why } => (LeaseStanding::HeldBack, Some(why)),
        Verdict::Ended => (LeaseStanding::Ended, None),
    };
    Some(HostLease { standing: word, why, said: standing.said?, age_ms: standing.age? })
}

fn name_key(name: &str) -> String {
    format!("/host-name/{name}")
}

fn digest_of(text: &str) -> Result<JoinDigest, OpsError> {
    text.parse().map_err(|_| OpsError::Internal("a digest that is none".into()))
}
