//! Extra specs of flavors against metadata of aggregates, with nova's operators (nova/scheduler/filters,
//! `extra_specs_ops.py` and `aggregate_instance_extra_specs.py`). Only keys with the scope are asked: keys without one
//! mean something to others.

use super::{HostSight, Policy, Request};

const SCOPE: &str = "aggregate_instance_extra_specs:";

pub(super) fn aggregates(host: &HostSight, request: &Request, _: &Policy) -> Result<(), String> {
    for (key, wanted) in &request.extra_specs {
        let Some(key) = key.strip_prefix(SCOPE) else { continue };
        let mut values = host.metadata.iter().filter(|(k, _)| k == key).map(|(_, value)| value).peekable();
        if values.peek().is_none() {
            return Err(format!("is in no aggregate with {key}"));
        }
        if !values.any(|value| matches(value, wanted)) {
            return Err(format!("is in no aggregate whose {key} is {wanted}"));
        }
    }
    Ok(())
}

/// Whether a value is what is wanted: `OPERATOR OPERAND…`, or the value itself.
pub fn matches(value: &str, wanted: &str) -> bool {
    let mut words = wanted.split_whitespace();
    let operator = words.next().unwrap_or_default();
    let rest: Vec<&str> = words.collect();
    let operand = rest.first().copied();
    let numbers = || Some((value.trim().parse::<f64>().ok()?, operand?.parse::<f64>().ok()?));
    let compared = |holds: fn(f64, f64) -> bool| numbers().is_some_and(|(a, b)| holds(a, b));
    let texts = |holds: fn(&str, &str) -> bool| operand.is_some_and(|operand| holds(value, operand));
    match operator {
        "=" | ">=" => compared(|a, b| a >= b),
        "==" => compared(|a, b| a == b),
        "!=" => compared(|a, b| a != b),
        "<=" => compared(|a, b| a <= b),
        "<in>" => texts(|a, b| a.contains(b)),
        "<all-in>" => !rest.is_empty() && rest.iter().all(|word| value.contains(word)),
        "<or>" => rest.iter().step_by(2).any(|word| *word == value),
        "s==" => texts(|a, b| a == b),
        "s!=" => texts(|a, b| a != b),
        "s<" => texts(|a, b| a < b),
        "s<=" => texts(|a, b| a <= b),
        "s>" => texts(|a, b| a > b),
        "s>=" => texts(|a, b| a >= b),
        _ => value == wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::spec;
    use super::*;
    use amphi_api::HostId;
    use amphi_api::host::{Claims, HostState};

    /// Rows as in nova's own tests (`test_extra_specs_ops.py`).
    #[test]
    fn operators() {
        let table = [
            ("1", "1", true),
            ("", "1", false),
            ("3", "1", false),
            ("222", "= 222", true),
            ("4", "= 3", true),
            ("2", "= 3", false),
            ("x", "= 3", false),
            ("123", "s== 123", true),
            ("1234", "s== 123", false),
            ("1234", "s!= 123", true),
            ("1000", "s>= 234", false),
            ("1000", "s< 234", true),
            ("12311321", "<in> 11", true),
            ("12310321", "<in> 11", false),
            ("aes mmx aux", "<all-in> aes mmx", true),
            ("aes mmx", "<all-in> txt aes", false),
            ("12", "<or> 11 <or> 12", true),
            ("13", "<or> 11 <or> 12", false),
            ("2", "<= 10", true),
            ("3", "<= 2", false),
            ("2", ">= 3", false),
            ("123", "<or>", false),
            ("x", "s==", false),
        ];
        for (value, wanted, want) in table {
            assert_eq!(matches(value, wanted), want, "{value} against {wanted}");
        }
    }

    #[test]
    fn aggregates_are_asked_for_scoped_keys_only() {
        let facts = spec(4, 4096, 10);
        let metadata = [("disk", "ssd"), ("disk", "hdd"), ("gpu", "2")].map(|(k, v)| (k.into(), v.into()));
        let host = HostSight {
            id: HostId::new(),
            name: "h",
            state: HostState::Up,
            spec: Some(&facts),
            claims: Claims::default(),
            disabled: None,
            best_effort: false,
            zone: "nova",
            metadata: &metadata,
            images: None,
            starting: 0,
        };
        type Row = (&'static [(&'static str, &'static str)], Option<&'static str>);
        let table: &[Row] = &[
            (&[], None),
            (&[("hw:cpu_policy", "dedicated"), ("disk", "tape")], None),
            (&[("aggregate_instance_extra_specs:disk", "hdd")], None),
            (
                &[("aggregate_instance_extra_specs:disk", "tape")],
                Some("is in no aggregate whose disk is tape"),
            ),
            (&[("aggregate_instance_extra_specs:gpu", ">= 2")], None),
            (&[("aggregate_instance_extra_specs:fpga", "1")], Some("is in no aggregate with fpga")),
        ];
        for (specs, want) in table {
            let extra_specs = specs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let request = Request { extra_specs, ..Request::default() };
            let found = aggregates(&host, &request, &Policy::default());
            assert_eq!(found.err().as_deref(), *want, "{specs:?}");
        }
    }
}
