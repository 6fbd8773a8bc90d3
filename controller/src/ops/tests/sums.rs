use super::*;
use amphi_api::host::Claims;
use amphi_api::instance::MoveCreate;

/// Splitmix64, so that a seed that fails fails again.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % end) as usize
    }
}

/// What is there of each host, open moves on both of theirs.
fn sums(cloud: &Cloud, hosts: &[HostId]) -> Vec<(Claims, Claims)> {
    let view = cloud.ops.world().read();
    let there = |host: HostId| {
        let mut sum = Claims::default();
        let mut add = |at: Option<HostId>, claims: Claims| {
            if at == Some(host) {
                sum = sum.plus(claims);
            }
        };
        for row in view.instances.iter() {
            let own = crate::ops::orders::instance_claims(row);
            add(row.host, own);
            let Some(open) = row.exchange.and_then(|id| view.exchanges.get(id)) else { continue };
            let Some(journey) = &open.journey else { continue };
            let other = |at: Option<HostId>| if at == Some(journey.from) { journey.to } else { journey.from };
            add(Some(other(row.host)), own);
            for one in &journey.volumes {
                let at = view.volumes.get(one.volume).map(|v| v.host);
                add(Some(other(at)), crate::ops::volumes::room(one.size_gib));
            }
        }
        for place in view.twins.iter().filter_map(|twin| twin.place.as_ref()) {
            add(Some(place.host), place.claims);
        }
        view.volumes.iter().for_each(|row| add(Some(row.host), crate::ops::volumes::room(row.size_gib)));
        sum
    };
    hosts.iter().map(|host| (view.claims_of(*host), there(*host))).collect()
}

/// Whatever is ordered, lost and found again, in whatever order: what is claimed of each host is what is there.
#[tokio::test]
async fn claims_add_up() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let (cloud, h1, h2) = Cloud::furnished().await;
        let (hosts, names) = ([h1, h2, cloud.host("h3").await], ["h1", "h2", "h3"]);
        let mut told = Vec::new();
        for n in 0..80 {
            let (at, pick) = (dice.below(3), dice.below(64));
            let one = {
                let view = cloud.ops.world().read();
                let all: Vec<_> = view.instances.iter().map(|row| row.id).collect();
                (!all.is_empty()).then(|| all[pick % all.len()])
            };
            // Refusals are as good as orders here.
            let what = match (dice.below(15), one) {
                (0..=1, _) | (_, None) => {
                    let mut wish = json!({"name": format!("i{n}"), "memory_mib": 64});
                    if pick % 2 == 0 {
                        wish["volume"] = json!({"size_gib": 1});
                    }
                    if pick % 4 == 0 {
                        wish["failover_terms"] = json!({"local_volume": "fresh"});
                    }
                    if pick % 3 == 0 {
                        wish["failover"] = "twin".into();
                    }
                    format!("create {:?}", cloud.create(wish).await.map(|i| i.id).is_ok())
                }
                (2, Some(one)) => {
                    format!("delete {:?}", cloud.ops.delete_instance(P, one, VolumeFate::Trash).await)
                }
                (3..=5, Some(one)) => {
                    let wish = MoveCreate {
                        to: None,
                        kind: None,
                        live: None,
                        reason: "why not".into(),
                        ..MoveCreate::default()
                    };
                    format!("move {:?}", cloud.ops.create_move(P, one, &wish).await.map(|e| e.id))
                }
                (6, Some(_)) => {
                    let open = {
                        let view = cloud.ops.world().read();
                        view.exchanges.iter().find(|e| e.ended_at.is_none()).map(|e| e.id)
                    };
                    match open {
                        Some(id) => format!("cancel {:?}", cloud.ops.cancel_exchange(P, id).await.is_ok()),
                        None => "nothing".into(),
                    }
                }
                (7, _) => {
                    cloud.down(hosts[at]).await;
                    format!("down {}", names[at])
                }
                (8, _) => {
                    cloud.down(hosts[at]).await;
                    format!("evacuate {} {:?}", names[at], cloud.ops.evacuate(hosts[at]).await)
                }
                (9, _) => {
                    cloud.up(hosts[at], names[at]).await;
                    format!("up {} {:?}", names[at], cloud.ops.let_in(hosts[at]).await)
                }
                (10, _) => format!("twins {:?}", cloud.ops.step_twins(true).await),
                (11..=12, _) => format!("step {:?}", cloud.ops.step_exchanges().await),
                _ => {
                    cloud.obey(hosts[at]).await;
                    format!("obey {}", names[at])
                }
            };
            told.push(what);
            for (claimed, there) in sums(&cloud, &hosts) {
                assert_eq!(claimed, there, "seed {seed}: {told:#?}");
            }
        }
    }
}
