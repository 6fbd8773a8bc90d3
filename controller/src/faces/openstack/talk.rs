//! For tests: requests to a service as a caller of some roles, and the talk written down so that it can be a golden
//! file: ids and times, which differ each time, as numbers in the order they came.

use super::OpenStack;
use crate::ops::identity::Caller;
use crate::ops::tests::Cloud;
use amphi_api::{ProjectId, UserId};
use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;
use tower::ServiceExt;
use uuid::Uuid;

/// A caller of one role, with those that it implies.
pub fn caller(role: &str, project: ProjectId, user: u128) -> Caller {
    let all = ["reader", "member", "admin"];
    let most = all.iter().position(|known| *known == role).unwrap();
    Caller {
        user: UserId(Uuid::from_u128(user)),
        user_name: "somebody".into(),
        project: Some(project),
        roles: all[..=most].iter().map(|role| (*role).to_owned()).collect(),
        ..Caller::operator()
    }
}

pub struct Talk {
    pub cloud: Arc<Cloud>,
    router: Router,
    pub text: String,
    seen: Vec<Uuid>,
}

impl Talk {
    pub async fn new() -> Self {
        let (cloud, _, _) = Cloud::furnished().await;
        Self::with(Arc::new(cloud))
    }

    pub fn with(cloud: Arc<Cloud>) -> Self {
        let router = super::router(&OpenStack::new(cloud.ops.clone()));
        Self { cloud, router, text: String::new(), seen: Vec::new() }
    }

    /// One request; `line` is `POST /compute/v2.1/flavors`. The version goes to all services that have versions.
    pub async fn ask(
        &self,
        caller: &Caller,
        version: &str,
        line: &str,
        body: &Value,
    ) -> (u16, HeaderMap, Value) {
        let (method, path) = line.split_once(' ').unwrap();
        let bytes = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "cloud")
            .header(
                "openstack-api-version",
                format!("compute {version}, placement {version}, volume {version}"),
            )
            .extension(caller.clone())
            .body(Body::from(bytes))
            .unwrap();
        let (parts, body) = self.router.clone().oneshot(request).await.unwrap().into_parts();
        let bytes = axum::body::to_bytes(body, 1 << 22).await.unwrap();
        let body = match bytes.is_empty() {
            true => Value::Null,
            false => serde_json::from_slice(&bytes).unwrap_or_else(|e| panic!("{line}: {e}: {bytes:?}")),
        };
        (parts.status.as_u16(), parts.headers, body)
    }

    /// [`Self::ask`], written down.
    pub async fn say(&mut self, caller: &Caller, version: &str, line: &str, body: Value) -> Value {
        let (status, _, answer) = self.ask(caller, version, line, &body).await;
        let sent = if body.is_null() { String::new() } else { format!("\n{}", pretty(&body)) };
        let got = if answer.is_null() { String::new() } else { format!("\n{}", pretty(&answer)) };
        let entry = format!("> {version} {line}{sent}\n< {status}{got}\n\n");
        let entry = self.settled(&entry);
        let _ = write!(self.text, "{entry}");
        answer
    }

    /// The text with ids as `<1>` and times as `<time>`.
    fn settled(&mut self, text: &str) -> String {
        let mut out = String::new();
        let mut at = 0;
        while at < text.len() {
            let window = |length: usize| text.get(at..at + length);
            let uuid = [36, 32].into_iter().find_map(|length| {
                let found =
                    window(length).filter(|w| w.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))?;
                Some((length, Uuid::try_parse(found).ok()?))
            });
            let digits = |w: &str| {
                w.bytes().zip(b"dddd-dd-ddTdd:dd:dd").all(|(b, want)| match want {
                    b'd' => b.is_ascii_digit(),
                    _ => b == *want,
                })
            };
            if let Some((length, id)) = uuid {
                let number = self.seen.iter().position(|known| *known == id).unwrap_or_else(|| {
                    self.seen.push(id);
                    self.seen.len() - 1
                });
                let _ = write!(out, "<{}>", number + 1);
                at += length;
            } else if window(19).is_some_and(digits) {
                at += 19;
                let rest = text[at..].bytes().take_while(|b| b.is_ascii_digit() || *b == b'.' || *b == b'Z');
                at += rest.count();
                out.push_str("<time>");
            } else {
                let next = text[at..].chars().next().unwrap();
                out.push(next);
                at += next.len_utf8();
            }
        }
        out
    }
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap()
}
