//! `GET /console/{ticket}`: a console or screen for whoever has its address, as bytes over a WebSocket (websockify's way:
//! subprotocol `binary`). The ticket is the whole of the permission, good once and for ten minutes. Beside it, where
//! noVNC is installed on this machine, its files below `/console/novnc/`, so that a screen opens in a browser.

use crate::ops::{Ops, OpsError};
use crate::streams::{Form, serve};
use amphi_api::streams::RAW_SUBPROTOCOL;
use axum::Router;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{Path, State};
use axum::http::header::{CONTENT_TYPE, HeaderName, REFERRER_POLICY};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::path::Path as File;
use std::sync::Arc;

/// Where Debian's package `novnc` puts its files.
const NOVNC: &str = "/usr/share/novnc";
/// Its page with a screen and nothing else.
const PAGE: &str = "vnc_lite.html";

pub fn router(ops: Arc<Ops>) -> Router {
    Router::new()
        .route("/console/{ticket}", get(open))
        .route("/console/novnc/{*path}", get(file))
        .with_state(ops)
}

/// The address by which a ticket's screen opens: noVNC's page where it is installed, else the WebSocket.
pub fn screen_url(base: &str, ticket: &str) -> String {
    match File::new(NOVNC).join(PAGE).is_file() {
        true => page_url(base, ticket),
        false => socket_url(base, ticket),
    }
}

/// noVNC's page is told the WebSocket's path from the root of its own host.
fn page_url(base: &str, ticket: &str) -> String {
    let below = base.split_once("://").and_then(|(_, rest)| rest.split_once('/'));
    let below = below.map(|(_, path)| format!("{path}/")).unwrap_or_default();
    format!("{base}/console/novnc/{PAGE}?path={below}console/{ticket}")
}

/// The WebSocket's address: `ws://…`, or `wss://…` where the base is HTTPS.
pub fn socket_url(base: &str, ticket: &str) -> String {
    let rest = base.strip_prefix("http").unwrap_or(base);
    format!("ws{rest}/console/{ticket}")
}

async fn open(
    State(ops): State<Arc<Ops>>,
    Path(ticket): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Response {
    match ops.open_by_ticket(&ticket).await {
        Ok(stream) => serve(upgrade.protocols([RAW_SUBPROTOCOL]), stream, Form::Raw),
        Err(error) => {
            let status = match &error {
                // Nobody learns whether there was such a ticket.
                OpsError::Unauthenticated(_) => StatusCode::NOT_FOUND,
                error => StatusCode::from_u16(error.code().status()).unwrap_or(StatusCode::NOT_FOUND),
            };
            let text = if matches!(error, OpsError::Internal(_)) { String::new() } else { error.to_string() };
            (status, text).into_response()
        }
    }
}

async fn file(Path(path): Path<String>) -> Response {
    let Some(kind) = kind(&path) else { return StatusCode::NOT_FOUND.into_response() };
    match tokio::fs::read(File::new(NOVNC).join(path)).await {
        Ok(bytes) => {
            // The page's address has the ticket in it: it goes nowhere else.
            let headers: [(HeaderName, HeaderValue); 2] = [
                (CONTENT_TYPE, HeaderValue::from_static(kind)),
                (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            ];
            (headers, bytes).into_response()
        }
        Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// The content type of a file that may be asked for; none: it may not.
fn kind(path: &str) -> Option<&'static str> {
    let plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    if !path.split('/').all(plain) {
        return None;
    }
    match path.rsplit_once('.')?.1 {
        "html" => Some("text/html; charset=utf-8"),
        "js" => Some("text/javascript"),
        "css" => Some("text/css"),
        "json" => Some("application/json"),
        "svg" => Some("image/svg+xml"),
        "png" => Some("image/png"),
        "ico" => Some("image/x-icon"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_addresses() {
        for (path, known) in [
            ("vnc_lite.html", true),
            ("core/rfb.js", true),
            ("../passwd.html", false),
            ("core/../../x.js", false),
            ("/etc/x.js", false),
            ("core//rfb.js", false),
            (".git/x.js", false),
            ("README", false),
            ("x.sh", false),
        ] {
            assert_eq!(kind(path).is_some(), known, "{path}");
        }
        assert_eq!(socket_url("http://a:1", "t"), "ws://a:1/console/t");
        assert_eq!(socket_url("https://a/b", "t"), "wss://a/b/console/t");
        assert_eq!(page_url("http://a:1", "t"), "http://a:1/console/novnc/vnc_lite.html?path=console/t");
        assert_eq!(page_url("https://a/b", "t"), "https://a/b/console/novnc/vnc_lite.html?path=b/console/t");
    }
}
