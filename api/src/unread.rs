//! What an agent reads of a controller that is newer than itself. Owns the rule: a word that is not known costs the instance
//! that it belongs to, never the host's whole order. Such an instance stays as it was ordered before, and is said to need a
//! newer agent; nothing of it is touched, since it is not known what is wanted.
//!
//! New optional fields need no more than this where the type refuses unknown ones (a set's description). Where it does not,
//! an older agent would pass over them in silence: then the controller says so, by [`HostSpec::wire`](crate::host::HostSpec).

use crate::wire::{InstanceDesired, PrepullDesired, ToHost};
use crate::{FieldError, InstanceId};
use serde::Deserialize;
use serde_json::Value;

/// The code of the fault, and of the controller's condition.
pub const NEEDS_NEWER_AGENT: &str = "needs_newer_agent";

/// An instance whose order could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub id: InstanceId,
    /// As ordered; 0: not even that was found.
    pub epoch: u64,
    /// What was not understood.
    pub why: FieldError,
}

/// A message to the host; of a desired state those instances, on their own, that could not be read.
pub fn to_host(text: &str) -> Result<(ToHost, Vec<Unread>), serde_json::Error> {
    let error = match serde_json::from_str(text) {
        Ok(message) => return Ok((message, Vec::new())),
        Err(error) => error,
    };
    let mut value: Value = serde_json::from_str(text)?;
    if value["type"] != "desired" {
        return Err(error);
    }
    let mut unread = Vec::new();
    for list in ["instances", "expected"] {
        let Some(Value::Array(all)) = value.get_mut(list) else { continue };
        all.retain(|one| match (InstanceDesired::deserialize(one), one["id"].as_str().map(str::parse)) {
            (Err(error), Some(Ok(id))) => {
                let why = FieldError::new(list, error.to_string());
                unread.push(Unread { id, epoch: one["epoch"].as_u64().unwrap_or(0), why });
                false
            }
            // One without a name is nobody's: the whole is refused below.
            _ => true,
        });
    }
    // What this agent could not use is not fetched.
    if let Some(Value::Array(all)) = value.get_mut("images") {
        all.retain(|one| PrepullDesired::deserialize(one).is_ok());
    }
    Ok((serde_json::from_value(value)?, unread))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn kept(name: &str) -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/wire").join(name);
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    /// What a controller of November 2026 says and an agent of then; read once, read always.
    #[test]
    fn kept_messages_are_read() {
        let (message, unread) = to_host(&kept("2026-11-desired.json").to_string()).unwrap();
        let ToHost::Desired(desired) = message else { panic!("{message:?}") };
        assert_eq!((desired.instances.len(), desired.tombstones.len(), unread), (2, 1, Vec::new()));
        let written = serde_json::to_value(ToHost::Desired(desired.clone())).unwrap();
        let again: ToHost = serde_json::from_value(written).unwrap();
        assert_eq!(again, ToHost::Desired(desired));
        for name in ["2026-11-hello.json", "2026-11-status.json"] {
            serde_json::from_value::<crate::wire::FromHost>(kept(name))
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }

    /// Words of a later version, at every depth.
    #[test]
    fn a_word_of_tomorrow_costs_one_instance() {
        let table = [
            ("/instances/0/body/set/set/members/0/teleport", true),
            ("/instances/0/body/set/set/members/0/probes/readiness/grpc", true),
            ("/instances/0/body/set/set/teleport", true),
            ("/instances/0/teleport", false),
            ("/instances/1/body/vm/teleport", false),
            ("/volumes/0/teleport", false),
            ("/teleport", false),
        ];
        for (place, costs) in table {
            let mut value = kept("2026-11-desired.json");
            let (holder, word) = place.rsplit_once('/').unwrap();
            let holder = value.pointer_mut(holder).unwrap_or_else(|| panic!("{place}"));
            holder.as_object_mut().unwrap().insert(word.into(), true.into());
            let (message, unread) = to_host(&value.to_string()).unwrap();
            let ToHost::Desired(desired) = message else { panic!("{message:?}") };
            assert_eq!(
                (desired.instances.len(), unread.len()),
                if costs { (1, 1) } else { (2, 0) },
                "{place}"
            );
            if let [one] = unread.as_slice() {
                assert_eq!(
                    (one.id.to_string(), one.epoch),
                    (value["instances"][0]["id"].as_str().unwrap().into(), 3)
                );
                assert!(one.why.message.contains(word), "{}", one.why.message);
            }
        }
        let mut images = kept("2026-11-desired.json");
        images["images"] = serde_json::json!([{"image": {"format": "holograph"}}]);
        let (message, unread) = to_host(&images.to_string()).unwrap();
        let ToHost::Desired(desired) = message else { panic!("{message:?}") };
        assert!(desired.images.is_empty() && unread.is_empty() && desired.instances.len() == 2);
        let mut body = kept("2026-11-desired.json");
        body["instances"][1]["body"] = serde_json::json!({"unikernel": {}});
        assert_eq!(to_host(&body.to_string()).unwrap().1.len(), 1, "a kind of body of tomorrow");
        assert!(to_host("{\"type\": \"tomorrow\"}").is_err());
    }
}
