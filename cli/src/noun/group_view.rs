//! A group as text. Pure.

use crate::table::{age, moment, or_dash, pairs, rows, word};
use amphi_api::group::{Endpoints, Group, Rollout, ScalingExplained};
use jiff::Timestamp;

pub fn list(groups: &[Group]) -> String {
    rows(
        &["ID", "NAME", "STATE", "READY", "REVISION", "ROLLOUT"],
        groups.iter().map(|g| {
            vec![
                g.id.to_string(),
                g.name.clone(),
                word(g.state),
                format!("{}/{}", g.ready, g.count),
                g.rollout.to.to_string(),
                word(g.rollout.state),
            ]
        }),
    )
}

pub fn detail(group: &Group, now: Timestamp) -> String {
    let mut told = vec![
        ("Id", group.id.to_string()),
        ("Name", group.name.clone()),
        ("State", word(group.state)),
        ("Ready", format!("{} of {}", group.ready, group.count)),
        ("Affinity", word(group.affinity)),
    ];
    if !group.ports.is_empty() {
        told.push(("Ports", group.ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")));
    }
    told.push(("Rollout", rollout_line(&group.rollout)));
    if let Some(reason) = &group.rollout.reason {
        told.push(("", reason.clone()));
    }
    if let Some(policy) = &group.autoscale {
        let text = format!("{} at {}, {} to {}", policy.metric, policy.target, policy.min, policy.max);
        told.push(("Scales by", text));
    }
    if let Some(scaled) = &group.scaled {
        told.push(("Scaled", scaled.clone()));
    }
    if let Some(trouble) = &group.trouble {
        told.push(("Trouble", format!("{}: {}", trouble.code, trouble.message)));
        told.push(("Since", moment(trouble.since, now)));
    }
    if !group.leaving.is_empty() {
        told.push(("Leaving", format!("{} instances", group.leaving.len())));
    }
    told.push(("Created", moment(group.created_at, now)));
    let members = rows(
        &["INDEX", "NAME", "REVISION", "STATE", "READY", "HOST", "ADDRESSES", "WHY"],
        group.members.iter().map(|m| {
            vec![
                m.index.to_string(),
                m.name.clone(),
                m.revision.to_string(),
                word(m.state),
                if m.ready { "yes".into() } else { "no".into() },
                or_dash(m.host_name.as_ref()),
                m.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
                or_dash(m.reason.as_ref()),
            ]
        }),
    );
    format!("{}\n{members}", pairs(&told))
}

fn rollout_line(rollout: &Rollout) -> String {
    let Rollout { to, from, wanted, updated, ready, .. } = rollout;
    let way = if to == from { format!("revision {to}") } else { format!("revision {from} to {to}") };
    format!("{} ({way}): {updated} of {wanted} made, {ready} ready", word(rollout.state))
}

pub fn rollout(rollout: &Rollout, group: &Group, now: Timestamp) -> String {
    let mut text = format!("{}, for {}\n", rollout_line(rollout), age(rollout.since, now));
    if let Some(reason) = &rollout.reason {
        text += &format!("{reason}\n");
    }
    for member in &group.members {
        let ready = if member.ready { "ready" } else { "not ready" };
        text += &format!("  {} revision {} {ready}\n", member.name, member.revision);
    }
    text
}

pub fn explained(told: &ScalingExplained) -> String {
    let mut lines = vec![
        ("Count", told.count.to_string()),
        ("Desired", told.desired.to_string()),
        ("Why", told.why.clone()),
    ];
    if let (Some(min), Some(max)) = (told.min, told.max) {
        lines.push(("Bounds", format!("{min} to {max}")));
    }
    if let (Some(metric), Some(target)) = (&told.metric, told.target) {
        lines.push(("Metric", format!("{metric}: {} (target {target})", or_dash(told.value))));
    }
    for figure in &told.figures {
        lines.push(("", format!("member {}: {} %, {} s ago", figure.index, figure.value, figure.age_s)));
    }
    pairs(&lines)
}

pub fn endpoints(endpoints: &Endpoints) -> String {
    rows(
        &["TARGET", "NAME", "READY", "WHY"],
        endpoints.endpoints.iter().flat_map(|e| {
            e.targets().into_iter().map(|target| {
                let ready = if e.ready { "yes" } else { "no" };
                vec![target, e.name.clone(), ready.into(), or_dash(e.reason.as_ref())]
            })
        }),
    )
}
