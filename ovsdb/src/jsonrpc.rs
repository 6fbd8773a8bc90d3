//! JSON-RPC 1.0 messages as OVSDB uses them: requests and notifications go both ways.

use serde_json::{Value as Json, json};

#[derive(Debug, PartialEq)]
pub(crate) enum Message {
    Request {
        id: Json,
        method: String,
        params: Json,
    },
    Notification {
        method: String,
        params: Json,
    },
    /// `error` is null when the call succeeded.
    Reply {
        id: Json,
        result: Json,
        error: Json,
    },
}

impl Message {
    pub fn parse(json: Json) -> Result<Message, String> {
        let Json::Object(mut fields) = json else { return Err("a message that is no object".to_owned()) };
        let id = fields.remove("id").unwrap_or(Json::Null);
        if let Some(method) = fields.remove("method") {
            let Json::String(method) = method else { return Err("a method that is no string".to_owned()) };
            let params = fields.remove("params").unwrap_or(Json::Null);
            return Ok(if id.is_null() {
                Message::Notification { method, params }
            } else {
                Message::Request { id, method, params }
            });
        }
        match (fields.remove("result"), fields.remove("error")) {
            (None, None) => Err("a message without method, result and error".to_owned()),
            (result, error) => Ok(Message::Reply {
                id,
                result: result.unwrap_or_default(),
                error: error.unwrap_or_default(),
            }),
        }
    }
}

pub(crate) fn request(id: u64, method: &str, params: &Json) -> Json {
    json!({"id": id, "method": method, "params": params})
}

pub(crate) fn reply(id: Json, result: Json) -> Json {
    json!({"id": id, "result": result, "error": null})
}

/// RFC 7047's error object, or whatever else came, as one line.
pub(crate) fn error_text(error: &Json) -> String {
    let word = error.get("error").and_then(Json::as_str);
    let details = error.get("details").and_then(Json::as_str);
    match (word, details, error.as_str()) {
        (Some(word), Some(details), _) => format!("{word}: {details}"),
        (Some(word), None, _) => word.to_owned(),
        (None, _, Some(text)) => text.to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_the_three_kinds_apart() {
        let parse = |json| Message::parse(json);
        assert_eq!(
            parse(json!({"id": "echo", "method": "echo", "params": []})),
            Ok(Message::Request { id: json!("echo"), method: "echo".to_owned(), params: json!([]) })
        );
        assert_eq!(
            parse(json!({"id": null, "method": "update3", "params": [1]})),
            Ok(Message::Notification { method: "update3".to_owned(), params: json!([1]) })
        );
        assert_eq!(
            parse(json!({"id": 3, "result": [], "error": null})),
            Ok(Message::Reply { id: json!(3), result: json!([]), error: Json::Null })
        );
        for bad in [json!([]), json!({"id": 1}), json!({"id": 1, "method": 2})] {
            assert!(parse(bad.clone()).is_err(), "{bad}");
        }
    }
}
