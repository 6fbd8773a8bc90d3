//! What a project's bodies use now: their hosts are asked, all at once, and answer out of the kernel and libvirt. Nothing is
//! kept here.

use super::{Ops, OpsError};
use amphi_api::looking::{InstanceUse, SilentHost, Usage};
use amphi_api::wire::{Answer, Ask};
use amphi_api::{HostId, InstanceId, ProjectId};
use futures_util::future::join_all;
use std::collections::{BTreeMap, BTreeSet};

/// Whose use is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UseQuery {
    pub instance: Option<InstanceId>,
    /// A host's name or id.
    pub host: Option<String>,
}

impl Ops {
    pub async fn use_now(&self, scope: ProjectId, query: &UseQuery) -> Result<Usage, OpsError> {
        struct Whose {
            name: String,
            kind: String,
            host: HostId,
        }
        let (whose, hosts) = {
            let view = self.world().read();
            if let Some(id) = query.instance {
                super::list::find(&view.instances, scope, id)?;
            }
            let host = match &query.host {
                Some(text) => Some(super::resolve::host(&view, "host", text)?.id),
                None => None,
            };
            let rows = view.instances.of_project(scope);
            let rows = rows.filter(|row| query.instance.is_none_or(|id| id == row.id));
            let whose: BTreeMap<InstanceId, Whose> = rows
                .filter_map(|row| {
                    let on = row.host.filter(|on| host.is_none_or(|host| host == *on))?;
                    Some((row.id, Whose { name: row.name.clone(), kind: row.body.to_string(), host: on }))
                })
                .collect();
            let hosts: BTreeSet<HostId> = whose.values().map(|whose| whose.host).collect();
            let named = |id: HostId| {
                let name = view.hosts.get(id).map_or_else(|| id.to_string(), |row| row.name.clone());
                (id, name)
            };
            (whose, hosts.into_iter().map(named).collect::<Vec<_>>())
        };
        let asked = hosts.into_iter().map(async |(id, name)| {
            let answer = self.links.ask(id, Ask::Figures).await;
            (id, name, answer)
        });
        let mut usage = Usage::default();
        for (id, name, answer) in join_all(asked).await {
            let rows = match answer {
                Ok(Answer::Figures { rows }) => rows,
                Ok(_) => {
                    usage.silent.push(SilentHost { host: name, why: "it answered another question".into() });
                    continue;
                }
                Err(error) => {
                    usage.silent.push(SilentHost { host: name, why: error.to_string() });
                    continue;
                }
            };
            for row in rows {
                // A host may have more than this project's.
                let Some(whose) = whose.get(&row.instance).filter(|whose| whose.host == id) else { continue };
                usage.rows.push(InstanceUse {
                    instance: row.instance,
                    name: whose.name.clone(),
                    kind: whose.kind.clone(),
                    host: name.clone(),
                    member: row.member,
                    at: row.at,
                    used: row.used,
                });
            }
        }
        usage.rows.sort_by(|a, b| (&a.name, a.instance, &a.member).cmp(&(&b.name, b.instance, &b.member)));
        Ok(usage)
    }
}
