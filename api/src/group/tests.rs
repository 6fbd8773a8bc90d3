use super::*;
use serde_json::{Value, json};

fn group(change: impl FnOnce(&mut Value)) -> Result<GroupCreate, String> {
    let mut value = json!({
        "name": "web", "count": 3, "ports": [80],
        "template": {"name": "web-{index}", "vcpus": 1, "memory_mib": 64,
            "bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}]}}], "networks": [{"network": "net"}]},
        "autoscale": {"metric": "cpu", "target": 50.0, "min": 1, "max": 5,
            "schedule": [{"days": ["mon"], "from": "08:00", "to": "20:00", "min": 2, "max": 9}]},
    });
    change(&mut value);
    let group: GroupCreate = serde_json::from_value(value).map_err(|e| e.to_string())?;
    group.check().map_err(|e| e.field)?;
    Ok(group)
}

#[test]
fn every_field_has_its_refusal() {
    let read = group(|_| ()).unwrap();
    assert_eq!(read, serde_json::from_value(serde_json::to_value(&read).unwrap()).unwrap());
    let table: Vec<(&str, Value, &str)> = vec![
        ("/name", json!(""), "name"),
        ("/count", json!(1001), "count"),
        ("/template/name", json!(""), ""),
        ("/template/vcpus", json!(0), "template.vcpus"),
        (
            "/template/networks/0",
            json!({"network": "net", "address": "10.0.0.1"}),
            "template.networks[0].address",
        ),
        ("/template/volume", json!({"id": crate::VolumeId::new()}), "template.volume.id"),
        ("/ports", json!([0]), "ports[0]"),
        ("/update", json!({"max_unavailable": 0}), "update.max_surge"),
        ("/update", json!({"drain_s": 3601}), "update.drain_s"),
        ("/health", json!({"ready_within_s": 0}), "health.ready_within_s"),
        ("/health", json!({"replace_after_s": 90_000}), "health.replace_after_s"),
        ("/autoscale/metric", json!("a b"), "autoscale.metric"),
        ("/autoscale/target", json!(0), "autoscale.target"),
        ("/autoscale/min", json!(6), "autoscale.min"),
        ("/autoscale/max", json!(1001), "autoscale.max"),
        ("/autoscale/cooldown_up_s", json!(90_000), "autoscale.cooldown_up_s"),
        ("/autoscale/stale_s", json!(0), "autoscale.stale_s"),
        ("/autoscale/time_zone", json!(""), "autoscale.time_zone"),
        ("/autoscale/schedule/0/days", json!(["monday"]), "autoscale.schedule[0].days[0]"),
        ("/autoscale/schedule/0/from", json!("8:00"), "autoscale.schedule[0].from"),
        ("/autoscale/schedule/0/to", json!("24:00"), "autoscale.schedule[0].to"),
        ("/autoscale/schedule/0/min", json!(10), "autoscale.schedule[0].min"),
    ];
    for (place, wrong, field) in table {
        let refused = group(|value| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            match value.pointer_mut(place) {
                Some(there) => *there = wrong.clone(),
                None => value.pointer_mut(parent).unwrap()[key] = wrong.clone(),
            }
        });
        // A pattern without a name still makes names: `-0`.
        if field.is_empty() {
            assert!(refused.is_ok());
            continue;
        }
        assert_eq!(refused.unwrap_err(), field, "{place}");
    }
}

#[test]
fn names_of_members() {
    assert_eq!(member_name("web-{index}.a", 7), "web-7.a");
    assert_eq!(member_name("web", 0), "web-0");
}

#[test]
fn windows() {
    let window = |days: &[&str], from: &str, to: &str| ScaleWindow {
        days: days.iter().map(|d| (*d).to_owned()).collect(),
        from: from.into(),
        to: to.into(),
        min: 1,
        max: 2,
    };
    // 23 November 2026 is a Monday.
    let at = |text: &str| format!("2026-11-{text}[UTC]").parse::<jiff::Zoned>().unwrap();
    for (window, time, want) in [
        (window(&[], "08:00", "20:00"), "23T08:00:00", true),
        (window(&[], "08:00", "20:00"), "23T19:59:59", true),
        (window(&[], "08:00", "20:00"), "23T20:00:00", false),
        (window(&["mon"], "08:00", "20:00"), "23T12:00:00", true),
        (window(&["tue"], "08:00", "20:00"), "23T12:00:00", false),
        (window(&["mon"], "22:00", "06:00"), "23T23:00:00", true),
        (window(&["mon"], "22:00", "06:00"), "24T05:59:00", true),
        (window(&["mon"], "22:00", "06:00"), "24T23:00:00", false),
        (window(&["sun"], "22:00", "06:00"), "23T05:00:00", true),
        (window(&[], "00:00", "00:00"), "23T05:00:00", true),
    ] {
        assert_eq!(window.holds(&at(time)), want, "{window:?} at {time}");
    }
}

#[test]
fn consumers_get_their_forms() {
    let endpoint = |name: &str, address: &str, ready: bool| Endpoint {
        instance: InstanceId(uuid::Uuid::nil()),
        name: name.into(),
        address: address.parse().unwrap(),
        ports: vec![80, 443],
        ready,
        reason: None,
        group: Some("web".into()),
        index: Some(0),
        revision: Some(1),
        metadata: Default::default(),
    };
    let all = Endpoints {
        version: "1".into(),
        endpoints: vec![
            endpoint("a", "10.0.0.1", true),
            endpoint("b", "10.0.0.2", false),
            endpoint("c", "fd00::1", true),
        ],
    };
    assert_eq!(all.lines(), "10.0.0.1:80 a\n10.0.0.1:443 a\n[fd00::1]:80 c\n[fd00::1]:443 c\n");
    let sd = all.http_sd();
    assert_eq!(sd.len(), 2);
    assert_eq!(sd[0].targets, ["10.0.0.1:80", "10.0.0.1:443"]);
    assert_eq!(sd[0].labels["__meta_group"], "web");
}
