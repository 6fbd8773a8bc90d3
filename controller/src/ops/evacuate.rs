//! Evacuation of a dead host, by order: a failover that waits for nothing. Each instance moves as in any other; one whose
//! volume is on the dead host stays, and its record says what is out of reach since when.
//!
//! The order itself is the fence: whoever gives it says that the host is dead. While its link stands it is refused. The
//! network bars the host from then on, as after any failover, until it has come back and buried what left it.

use super::exodus::Exodus;
use super::failover::condemn;
use super::{Draft, Ops, OpsError, View};
use crate::model::*;
use amphi_api::failover::{FailoverCause, FailoverFate, FailoverPhase};
use amphi_api::host::{Evacuation, EvacuationMoved, EvacuationRefused, EvacuationWaiting, HostState};
use amphi_api::{HostId, InstanceId};
use jiff::Timestamp;

impl Ops {
    pub async fn evacuate(&self, host: HostId) -> Result<Evacuation, OpsError> {
        let heard_at = self.heard_at(host);
        let begun = Timestamp::now();
        let id = self
            .transact(|view| {
                self.refuse_alive(view, host)?;
                let row = view.hosts.get(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
                let mut draft = Draft::default();
                let open = view.failovers.iter().find(|f| f.host == host && f.returned_at.is_none());
                let Some(open) = open.filter(|_| row.barred_since.is_some()) else {
                    let id = condemn(view, &mut draft, row, FailoverCause::Ordered, None, heard_at, begun);
                    return Ok((draft, id));
                };
                if open.phase == FailoverPhase::Barring {
                    let mut record = (*open.record).clone();
                    record.0.phase = FailoverPhase::Moving;
                    draft.update(open, &record);
                }
                Ok((draft, open.id))
            })
            .await?;
        self.move_away(id, true).await?;
        let mut answer = Evacuation { host, moved: Vec::new(), waiting: Vec::new(), refused: Vec::new() };
        for told in self.failover(id)?.instances {
            let (instance, name) = (told.instance, told.name);
            match told.fate {
                FailoverFate::Moved { to, to_name, epoch, at, .. } if at >= begun => {
                    answer.moved.push(EvacuationMoved { instance, name, to, to_name, epoch });
                }
                FailoverFate::Waiting { volumes } => {
                    answer.waiting.push(EvacuationWaiting { instance, name, volumes });
                }
                FailoverFate::Refused { reason } => {
                    answer.refused.push(EvacuationRefused { instance, name, reason });
                }
                FailoverFate::Moved { .. } | FailoverFate::Gone => {}
            }
        }
        Ok(answer)
    }

    /// One instance of a dead host alone. The host is not barred: it may hold others that live.
    pub async fn evacuate_instance(&self, host: HostId, id: InstanceId) -> Result<(), OpsError> {
        let fate = self
            .transact_room(|view| {
                self.refuse_alive(view, host)?;
                let mut exodus = Exodus::new(view, self.policy(), host, Timestamp::now());
                let row = view.instances.get(id).filter(|row| row.host == Some(host));
                let fate = row.map_or(FailoverFate::Gone, |row| exodus.take(row).fate);
                Ok((exodus.draft, fate))
            })
            .await?;
        match fate {
            FailoverFate::Moved { .. } | FailoverFate::Gone => Ok(()),
            FailoverFate::Waiting { volumes } => Err(OpsError::conflict(format!(
                "volume {} is out of reach until the host returns",
                volumes.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
            ))),
            FailoverFate::Refused { reason } => Err(OpsError::conflict(reason)),
        }
    }

    fn refuse_alive(&self, view: &View, host: HostId) -> Result<(), OpsError> {
        let row = view.hosts.get(host).ok_or_else(|| OpsError::not_found::<HostRecord>(host))?;
        if row.state == HostState::Up || self.links.is_linked(host) {
            return Err(OpsError::conflict(format!("host '{}' is connected; it is not dead", row.name)));
        }
        Ok(())
    }
}
