//! Reads the reply to a transaction. A failed transaction arrives inside a successful reply: the
//! results up to the failing operation, its error object, nulls for the rest; or all results and
//! one error object more when the commit failed (RFC 7047, 4.1.3).

use serde_json::Value as Json;
use uuid::Uuid;

use crate::error::OperationFailure;
use crate::operation::Operation;
use crate::row::Row;

/// What one operation did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Of an insert: the new row.
    pub uuid: Option<Uuid>,
    /// Of update, mutate and delete: rows matched.
    pub count: Option<u64>,
    /// Of a select.
    pub rows: Vec<Row>,
}

#[derive(Debug, PartialEq)]
pub(crate) enum Failure {
    Operation(OperationFailure),
    Protocol(String),
}

pub(crate) fn read_reply(operations: &[Operation], result: &Json) -> Result<Vec<Outcome>, Failure> {
    let results =
        result.as_array().ok_or_else(|| Failure::Protocol("a result that is no array".to_owned()))?;
    let mut outcomes = Vec::with_capacity(operations.len());
    for (index, result) in results.iter().enumerate() {
        if let Some(error) = result.get("error").and_then(Json::as_str) {
            let operation = operations.get(index);
            return Err(Failure::Operation(OperationFailure {
                index: operation.map(|_| index),
                op: operation.map_or("commit", Operation::op).to_owned(),
                table: operation.map_or("", Operation::table).to_owned(),
                error: error.to_owned(),
                details: result.get("details").and_then(Json::as_str).unwrap_or_default().to_owned(),
            }));
        }
        outcomes.push(outcome(result).ok_or_else(|| Failure::Protocol(format!("result {index}: {result}")))?);
    }
    if outcomes.len() != operations.len() {
        return Err(Failure::Protocol(format!(
            "{} results for {} operations",
            outcomes.len(),
            operations.len()
        )));
    }
    Ok(outcomes)
}

fn outcome(result: &Json) -> Option<Outcome> {
    let fields = result.as_object()?;
    let uuid = match fields.get("uuid") {
        Some(json) => Some(json.as_array()?.get(1)?.as_str()?.parse().ok()?),
        None => None,
    };
    let rows = match fields.get("rows") {
        Some(rows) => {
            rows.as_array()?.iter().map(|row| Row::from_json(row.as_object()?)).collect::<Option<_>>()?
        }
        None => Vec::new(),
    };
    Some(Outcome { uuid, count: fields.get("count").and_then(Json::as_u64), rows })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn operations() -> Vec<Operation> {
        vec![
            Operation::wait_absent("Bridge", Vec::new()),
            Operation::insert("Bridge", Row::new()),
            Operation::select("Bridge", Vec::new(), &[]),
        ]
    }

    #[test]
    fn results_become_outcomes() {
        let id = Uuid::from_u128(9);
        let outcomes =
            read_reply(&operations(), &json!([{}, {"uuid": ["uuid", id]}, {"rows": [{"name": "br0"}]}]))
                .unwrap();
        assert_eq!(outcomes[1].uuid, Some(id));
        assert_eq!(outcomes[2].rows, vec![Row::new().with("name", "br0")]);
    }

    #[test]
    fn an_error_names_its_operation() {
        let reply = json!([{}, {"error": "constraint violation", "details": "no"}, null]);
        let Err(Failure::Operation(failure)) = read_reply(&operations(), &reply) else { panic!("must fail") };
        assert_eq!((failure.index, failure.table.as_str()), (Some(1), "Bridge"));
        assert_eq!(failure.to_string(), "operation 1 (insert Bridge): constraint violation: no");
    }

    #[test]
    fn an_error_after_all_results_is_the_commits() {
        let reply = json!([{}, {}, {}, {"error": "referential integrity violation"}]);
        let Err(Failure::Operation(failure)) = read_reply(&operations(), &reply) else { panic!("must fail") };
        assert_eq!((failure.index, failure.op.as_str()), (None, "commit"));
    }

    #[test]
    fn short_or_strange_replies_are_refused() {
        for reply in [json!([{}]), json!({}), json!([{}, {"uuid": 3}, {}]), json!([{}, null, {}])] {
            assert!(matches!(read_reply(&operations(), &reply), Err(Failure::Protocol(_))), "{reply}");
        }
    }
}
