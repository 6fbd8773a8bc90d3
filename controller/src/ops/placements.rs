//! Why a host is chosen or not: placement asked without placing. Claims nothing.

use super::asked::{physical, request_of, scheduler};
use super::list::find;
use super::moves::movable;
use super::{Ops, OpsError, View, networks, resolve};
use crate::scheduler::{Movable, Request, Verdict, explain, level};
use amphi_api::instance::BodyKind;
use amphi_api::placement::{
    PlacementAsk, PlacementChosen, PlacementExplained, PlacementReason, PlacementVerdict, RebalanceMove,
    RebalancePlan,
};
use amphi_api::{ProjectId, validate};

impl Ops {
    /// Every host with every reason against it, or with its weights.
    pub fn explain_placement(
        &self,
        scope: ProjectId,
        ask: &PlacementAsk,
    ) -> Result<PlacementExplained, OpsError> {
        ask.check()?;
        let view = self.world().read();
        let request = request(&view, scope, ask)?;
        let policy = view.fleet.policy();
        let body = |verdict: &Verdict| verdict.body.and_then(|at| request.bodies.get(at).copied());
        let verdicts = explain(view.fleet.sights(), &request, policy);
        let chosen = verdicts.first().filter(|v| v.body.is_some()).map(|v| PlacementChosen {
            host: v.host,
            host_name: v.name.clone(),
            body: body(v),
        });
        let hosts = verdicts.iter().map(|v| PlacementVerdict {
            host: v.host,
            name: v.name.clone(),
            reasons: v
                .reasons
                .iter()
                .map(|(filter, why)| PlacementReason { filter: (*filter).to_owned(), why: why.clone() })
                .collect(),
            body: body(v),
            weights: v.weights.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            score: v.score.map(|micro| micro as f64 / 1e6),
        });
        Ok(PlacementExplained {
            scheduler: policy.scheduler_of(&request).name.to_owned(),
            chosen,
            hosts: hosts.collect(),
        })
    }
}

impl Ops {
    /// Moves that would level the hosts' load. Nothing moves by this.
    pub fn plan_rebalance(&self, most: u32) -> Result<RebalancePlan, OpsError> {
        validate::within("most", most.into(), 1, 1000, "moves")?;
        let view = self.world().read();
        let movable = view.instances.iter().filter_map(|row| {
            let host = movable(&view, row).ok()?;
            Some(Movable { id: row.id, host, request: request_of(&view, row) })
        });
        let policy = view.fleet.policy();
        let plan = level(view.fleet.sights().collect(), movable.collect(), policy, most as usize);
        let name = |host| view.host_name(host).unwrap_or_default();
        let moves = plan.moves.into_iter().map(|(id, from, to)| RebalanceMove {
            instance: id,
            name: view.instances.get(id).map(|row| row.name.clone()).unwrap_or_default(),
            from,
            from_name: name(from),
            to,
            to_name: name(to),
        });
        Ok(RebalancePlan { moves: moves.collect(), spread_before: plan.before, spread_after: plan.after })
    }
}

fn request(view: &View, scope: ProjectId, ask: &PlacementAsk) -> Result<Request, OpsError> {
    let pinned = ask.host.as_deref().map(|text| resolve::host(view, "host", text)).transpose()?.map(|h| h.id);
    if let Some(text) = &ask.instance {
        let row = match text.parse() {
            Ok(id) => find(&view.instances, scope, id)?,
            Err(_) => resolve::named(&view.instances, scope, "instance", text)?,
        };
        let request = Request { pinned, excluded: row.host.into_iter().collect(), ..request_of(view, row) };
        return Ok(match &ask.scheduler {
            Some(name) => Request { scheduler: scheduler(view, scope, Some(name))?, ..request },
            None => request,
        });
    }
    let bodies = if ask.bodies.is_empty() { vec![BodyKind::Set, BodyKind::Vm] } else { ask.bodies.clone() };
    let mut on = Vec::new();
    for (at, text) in ask.networks.iter().enumerate() {
        on.push(networks::named(view, scope, &format!("networks[{at}]"), text)?.id);
    }
    let image = |text: &String| resolve::named(&view.images, scope, "image", text).map(|row| row.id);
    Ok(Request {
        vcpus: ask.vcpus,
        memory_mib: ask.memory_mib,
        qos: ask.qos,
        volume_gib: ask.volume_gib,
        volume: ask.volume_gib > 0,
        bodies,
        network: !on.is_empty(),
        physical: physical(view, on.into_iter()),
        images: ask.image.as_ref().map(image).transpose()?.into_iter().collect(),
        pinned,
        zone: ask.zone.clone(),
        scheduler: scheduler(view, scope, ask.scheduler.as_deref())?,
        ..Request::default()
    })
}
