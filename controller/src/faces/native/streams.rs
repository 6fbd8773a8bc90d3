//! `/v1/instances/{id}/exec`, `console`, `screen` and `logs`: WebSockets into a body. What cannot be opened is refused before
//! the upgrade, as any request is; the messages are described in `amphi_api::streams`.

use super::Native;
use super::answers::{Failure, ReadRefusals, WriteRefusals};
use super::extract::{Id, Params};
use super::guard::Scope;
use crate::streams::{Form, HostStream, serve};
use amphi_api::streams::{
    ExecSpec, LogsSpec, RAW_SUBPROTOCOL, SUBPROTOCOL, StreamTarget, TerminalSize, member,
};
use amphi_api::{ErrorCode, InstanceId};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::header::SEC_WEBSOCKET_PROTOCOL;
use axum::http::request::Parts;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::IntoParams;

/// A request that wants to become a WebSocket.
pub struct Upgrade(WebSocketUpgrade, Form);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let offered = parts.headers.get(SEC_WEBSOCKET_PROTOCOL).and_then(|v| v.to_str().ok());
        let form = match offered {
            None => Form::Framed,
            Some(list) if list.split(',').any(|one| one.trim() == SUBPROTOCOL) => Form::Framed,
            Some(list) if list.split(',').any(|one| one.trim() == RAW_SUBPROTOCOL) => Form::Raw,
            Some(_) => {
                let message = format!("the subprotocols here are {SUBPROTOCOL} and {RAW_SUBPROTOCOL}");
                return Err(Failure::new(ErrorCode::InvalidField, message).at("Sec-WebSocket-Protocol"));
            }
        };
        match WebSocketUpgrade::from_request_parts(parts, state).await {
            Ok(upgrade) => Ok(Self(upgrade.protocols([SUBPROTOCOL, RAW_SUBPROTOCOL]), form)),
            Err(_) => Err(Failure::new(
                ErrorCode::InvalidField,
                "this is a stream: ask for an upgrade to a WebSocket (RFC 6455)",
            )
            .at("Upgrade")),
        }
    }
}

impl Upgrade {
    pub(super) async fn open(
        self,
        native: &Native,
        scope: Scope,
        id: InstanceId,
        what: StreamTarget,
    ) -> Result<Response, Failure> {
        let stream = native.ops.open_stream(scope.0, id, what).await?;
        Ok(self.serve(stream))
    }

    pub(super) fn serve(self, stream: HostStream) -> Response {
        let Self(upgrade, form) = self;
        serve(upgrade, stream, form)
    }
}

/// The repeated parts of a query have no place in a struct: `command=ls&command=-l`.
pub(super) fn exec_spec(query: &str) -> Result<ExecSpec, Failure> {
    let bad =
        |name: &str, what: &str| Failure::new(ErrorCode::InvalidField, what.to_owned()).at(name.to_owned());
    let flag = |name: &str, value: &str| value.parse().map_err(|_| bad(name, "must be true or false"));
    let figure = |name: &str, value: &str| value.parse().map_err(|_| bad(name, "must be 0 to 65535"));
    let mut spec = ExecSpec::default();
    let mut size = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        match &*name {
            "member" => spec.member = Some(value.into_owned()),
            "command" => spec.command.push(value.into_owned()),
            "env" => spec.env.push(value.into_owned()),
            "user" => spec.user = Some(value.into_owned()),
            "directory" => spec.directory = Some(value.into_owned()),
            "tty" => spec.tty = flag("tty", &value)?,
            "stdin" => spec.stdin = flag("stdin", &value)?,
            "columns" => size.0 = Some(figure("columns", &value)?),
            "rows" => size.1 = Some(figure("rows", &value)?),
            other => return Err(bad(other, "there is no such parameter")),
        }
    }
    spec.size = size.0.zip(size.1).map(|(columns, rows)| TerminalSize { columns, rows });
    spec.check()?;
    Ok(spec)
}

/// Run a command in a set's member or a VM: a WebSocket.
///
/// In a VM its guest agent (qemu-guest-agent) runs it, as root and without a terminal, once its whole input is there; without
/// one it is refused (409).
/// Subprotocol `amphi.stream.v1`. Binary messages carry bytes: the first one is the channel (0 input, 1 output, 2 error
/// output), the rest is theirs. Text messages carry JSON: from the client `{"type":"resize","columns":80,"rows":24}` and
/// `{"type":"input_end"}`, to it `{"type":"opened"}` first and one of `{"type":"ended","exit_code":0,"reason":null}` and
/// `{"type":"failed","code":"…","message":"…"}` last. Messages have at most 1 MiB. Neither side sends faster than the other
/// takes. When the client goes, the command is ended with all it started. A client that stops reading must send pings: one
/// from which nothing is heard for 30 s is gone.
#[utoipa::path(get, path = "/instances/{id}/exec", tag = "streams", params(
    ("id" = Uuid, Path),
    ("command" = Vec<String>, Query, description = "The program and its arguments, once for each word"),
    ("member" = Option<String>, Query, description = "Default: the set's first"),
    ("env" = Option<Vec<String>>, Query, description = "`NAME=VALUE`, any number of times"),
    ("user" = Option<String>, Query, description = "`user`, `user:group` or ids"),
    ("directory" = Option<String>, Query, description = "Where it runs, absolute"),
    ("tty" = Option<bool>, Query, description = "With a terminal; error output then comes with the output"),
    ("stdin" = Option<bool>, Query, description = "With input; else the command reads an end at once"),
    ("columns" = Option<u16>, Query, description = "Of the terminal at its begin, with `rows`"),
    ("rows" = Option<u16>, Query)),
    responses((status = 101, description = "Open"), WriteRefusals))]
pub async fn exec(
    State(native): State<Native>,
    scope: Scope,
    Id(id): Id<InstanceId>,
    RawQuery(query): RawQuery,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let spec = exec_spec(query.as_deref().unwrap_or_default())?;
    upgrade.open(&native, scope, id, StreamTarget::Exec(spec)).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ConsoleParams {
    /// A set's member. Default: its first.
    member: Option<String>,
    /// Of the terminal at its begin, with `rows`.
    columns: Option<u16>,
    rows: Option<u16>,
}

/// A VM's serial console, or a shell in a set's member: a WebSocket, spoken as `exec` is.
///
/// With the subprotocol `binary` it carries bytes alone. A VM's console has any number of readers and writers; what a
/// reader is too slow for is left out, and told so, rather than hold up the guest.
#[utoipa::path(get, path = "/instances/{id}/console", tag = "streams",
    params(("id" = Uuid, Path), ConsoleParams),
    responses((status = 101, description = "Open"), WriteRefusals))]
pub async fn console(
    State(native): State<Native>,
    scope: Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<ConsoleParams>,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let ConsoleParams { member: name, columns, rows } = params;
    member(name.as_deref())?;
    let size = columns.zip(rows).map(|(columns, rows)| TerminalSize { columns, rows });
    upgrade.open(&native, scope, id, StreamTarget::Console { member: name, size }).await
}

/// A VM's screen, keyboard and mouse: RFB (RFC 6143) over a WebSocket, best with the subprotocol `binary`.
#[utoipa::path(get, path = "/instances/{id}/screen", tag = "streams", params(("id" = Uuid, Path)),
    responses((status = 101, description = "Open"), WriteRefusals))]
pub async fn screen(
    State(native): State<Native>,
    scope: Scope,
    Id(id): Id<InstanceId>,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    upgrade.open(&native, scope, id, StreamTarget::Screen).await
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsParams {
    /// A set's member. Default: its first.
    member: Option<String>,
    /// Go on with what is written from now on, over restarts.
    #[serde(default)]
    follow: bool,
    /// Only what was written from then on, RFC 3339. A VM's console has no times.
    #[param(value_type = Option<String>)]
    since: Option<Timestamp>,
    /// Begin with the last so many lines. Default: all that is kept.
    tail: Option<u32>,
    /// Each line begins with its time, RFC 3339. A VM's console has none.
    #[serde(default)]
    timestamps: bool,
}

/// A member's output, or what a VM wrote on its console: a WebSocket, spoken as `exec` is, without input.
#[utoipa::path(get, path = "/instances/{id}/logs", tag = "streams", params(("id" = Uuid, Path), LogsParams),
    responses((status = 101, description = "Open"), ReadRefusals))]
pub async fn logs(
    State(native): State<Native>,
    scope: Scope,
    Id(id): Id<InstanceId>,
    Params(params): Params<LogsParams>,
    upgrade: Upgrade,
) -> Result<Response, Failure> {
    let LogsParams { member: name, follow, since, tail, timestamps } = params;
    member(name.as_deref())?;
    let spec = LogsSpec { member: name, follow, since, tail, timestamps };
    upgrade.open(&native, scope, id, StreamTarget::Logs(spec)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_out_of_queries() {
        let spec = exec_spec(
            "command=sh&command=-c&command=a%20%26+b&env=A%3D1&env=B%3D&tty=true&member=web&columns=80&rows=24",
        );
        let spec = spec.unwrap();
        assert_eq!(spec.command, ["sh", "-c", "a & b"]);
        assert_eq!(spec.env, ["A=1", "B="]);
        assert_eq!((spec.tty, spec.stdin, spec.member.as_deref()), (true, false, Some("web")));
        assert_eq!(spec.size, Some(TerminalSize { columns: 80, rows: 24 }));
        for query in ["", "command=", "command=ls&tty=yes", "command=ls&rows=70000", "command=ls&x=1"] {
            assert!(exec_spec(query).is_err(), "{query}");
        }
    }
}
