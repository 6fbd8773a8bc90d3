//! Whether a member of one template becomes one of another where it is: pure. Only what is inside of a set's members can be
//! carried so; another size, network, volume, kind of body or anchor needs another instance.

use crate::model::rollout::needs_new_body;
use amphi_api::instance::{BodySpec, InstanceCreate};
use amphi_api::set::SetSpec;

/// The set's next description, where the difference can be carried in place.
pub fn in_place<'a>(from: &InstanceCreate, to: &'a InstanceCreate) -> Option<&'a SetSpec> {
    let only_set = |template: &'a InstanceCreate| match template.bodies.as_slice() {
        [BodySpec::Set(set)] => Some(set),
        _ => None,
    };
    let [BodySpec::Set(before)] = from.bodies.as_slice() else { return None };
    let after = only_set(to)?;
    let rest = |template: &InstanceCreate| InstanceCreate { bodies: Vec::new(), ..template.clone() };
    let same = rest(from) == rest(to);
    (same && needs_new_body(&before.normalized(), &after.normalized()).is_none()).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn template(change: &Value) -> InstanceCreate {
        let mut value = json!({"name": "web", "vcpus": 1, "memory_mib": 64, "networks": [{"network": "blue"}],
            "bodies": [{"set": {"members": [{"index": 0, "name": "web", "image": "shop:1"}]}}]});
        if let Some(change) = change.as_object() {
            value.as_object_mut().unwrap().extend(change.clone());
        }
        serde_json::from_value(value).unwrap()
    }

    /// Rows: what differs, whether it is carried in place.
    #[test]
    fn what_a_running_set_can_take_on() {
        let members = |members: Value| json!({"bodies": [{"set": {"members": members}}]});
        let one = |member: Value| members(json!([member]));
        let anchor = |anchor: Value| json!({"bodies": [{"set": {"members": [{"index": 0, "name": "web", "image": "shop:1"}], "anchor": anchor}}]});
        let set = json!({"set": {"members": [{"index": 0, "name": "web", "image": "shop:1"}]}});
        let table = [
            (json!({}), true),
            (one(json!({"index": 0, "name": "web", "image": "shop:2"})), true),
            (one(json!({"index": 0, "name": "web", "image": "shop:1", "env": {"A": "1"}})), true),
            (
                one(json!({"index": 0, "name": "web", "image": "shop:1",
                    "probes": {"readiness": {"tcp": {"port": 80}}}})),
                true,
            ),
            (anchor(json!({"timezone": "Europe/Berlin"})), true),
            (anchor(json!({"dns": {"servers": ["10.0.0.1"]}})), false),
            (one(json!({"index": 1, "name": "web", "image": "shop:1"})), false),
            (one(json!({"index": 0, "name": "www", "image": "shop:1"})), false),
            (
                members(
                    json!([{"index": 0, "name": "web", "image": "shop:1"}, {"index": 1, "name": "b", "image": "b"}]),
                ),
                false,
            ),
            (json!({"memory_mib": 128}), false),
            (json!({"vcpus": 2}), false),
            (json!({"name": "other"}), false),
            (json!({"networks": [{"network": "red"}]}), false),
            (json!({"volume": {"size_gib": 1}}), false),
            (json!({"bodies": [{"vm": {"image": "debian"}}]}), false),
            (json!({"bodies": [set, {"vm": {"image": "debian"}}]}), false),
        ];
        for (change, want) in table {
            let (from, to) = (template(&json!({})), template(&change));
            assert_eq!(in_place(&from, &to).is_some(), want, "{change}");
            assert_eq!(in_place(&to, &from).is_some(), want, "back from {change}");
        }
    }
}
