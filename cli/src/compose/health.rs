//! A health check as a readiness probe.

use super::Import;
use super::text::{Tree, entries, list, str_of};
use super::words::seconds;
use amphi_api::set::Probe;

/// None: there is none, or it is switched off. Compose's own defaults count where nothing is said.
pub fn read(place: &str, tree: &Tree, import: &mut Import) -> Option<Probe> {
    if tree.is_badvalue() || tree["disable"].as_bool() == Some(true) {
        return None;
    }
    let test = match &tree["test"] {
        Tree::Array(_) => {
            let words = list(&tree["test"]);
            match words.split_first() {
                Some((first, rest)) if first == "CMD" => rest.to_vec(),
                Some((first, rest)) if first == "CMD-SHELL" => shell(rest.join(" ")),
                _ => return None,
            }
        }
        one => shell(str_of(one)?),
    };
    let mut probe = Probe {
        exec: Some(test),
        period_s: 30,
        timeout_s: 30,
        failures: 3,
        successes: 1,
        ..Probe::default()
    };
    for (key, value) in entries(tree) {
        let place = format!("{place}.healthcheck.{key}");
        let time = || str_of(value).as_deref().and_then(seconds);
        match key.as_str() {
            "test" | "disable" => {}
            "interval" => probe.period_s = time().unwrap_or(30).clamp(1, 3600),
            "timeout" => probe.timeout_s = time().unwrap_or(30).clamp(1, 600),
            "retries" => {
                let retries = value.as_i64().and_then(|n| u32::try_from(n).ok());
                probe.failures = retries.unwrap_or(3).clamp(1, 1000);
            }
            // Before a readiness probe holds for the first time its failures have no effect anyhow.
            "start_period" => {}
            "start_interval" => import.leave(place, "a probe has one period"),
            _ => import.leave(place, "has no word in a set"),
        }
    }
    Some(probe)
}

fn shell(line: String) -> Vec<String> {
    vec!["/bin/sh".to_owned(), "-c".to_owned(), line]
}
