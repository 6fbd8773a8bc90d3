//! A controller made of one function, on a port of its own, that remembers what it was asked.
#![allow(dead_code)] // each test binary uses its part

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{Response, header};
use serde_json::{Value, json};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Asked {
    /// `GET /v1/instances?name=x`
    pub line: String,
    pub token: Option<String>,
    pub length: Option<u64>,
    pub body: Vec<u8>,
}

impl Asked {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{}: {e}", self.line))
    }
}

pub struct Fake {
    pub url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Fake {
    /// Serves until the test ends. `answer` gets the request and how many with the same line came before it.
    pub fn start(answer: impl Fn(&Asked, usize) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let answer = Arc::new(answer);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let app = axum::Router::new().fallback(move |request: Request| {
                    let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                    async move {
                        let asked = read(request).await;
                        let before = {
                            let mut seen: std::sync::MutexGuard<'_, Vec<Asked>> = seen.lock().unwrap();
                            let before = seen.iter().filter(|a| a.line == asked.line).count();
                            seen.push(asked.clone());
                            before
                        };
                        let (status, body) = answer(&asked, before);
                        // The one answer that is in a header.
                        let offset = body["upload-offset"].as_u64().unwrap_or_default();
                        let body = if body.is_null() { String::new() } else { body.to_string() };
                        Response::builder()
                            .status(status)
                            .header("upload-offset", offset)
                            .body(Body::from(body))
                            .unwrap()
                    }
                });
                axum::serve(tokio::net::TcpListener::from_std(listener).unwrap(), app).await.unwrap();
            });
        });
        Self { url, asked }
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    pub fn lines(&self) -> Vec<String> {
        self.asked().into_iter().map(|a| a.line).collect()
    }

    /// Runs `amphi` against this controller.
    pub fn amphi(&self, words: &[&str]) -> Ended {
        amphi(Some(&self.url), words)
    }
}

async fn read(request: Request) -> Asked {
    let (parts, body) = request.into_parts();
    let header = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    Asked {
        line: format!("{} {}", parts.method, parts.uri),
        token: header(header::AUTHORIZATION),
        length: header(header::CONTENT_LENGTH).and_then(|l| l.parse().ok()),
        body: to_bytes(body, usize::MAX).await.unwrap().to_vec(),
    }
}

/// How a run of `amphi` ended.
#[derive(Debug)]
pub struct Ended {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ended {
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:#?}");
        self
    }

    #[track_caller]
    pub fn says(self, text: &str) -> Self {
        assert!(self.err.contains(text), "stderr lacks {text:?}: {self:#?}");
        self
    }

    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.out.contains(text), "stdout lacks {text:?}: {self:#?}");
        self
    }
}

pub fn amphi(url: Option<&str>, words: &[&str]) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_amphi"));
    command.args(words).env_remove("AMPHI_URL").env_remove("AMPHI_TOKEN");
    if let Some(url) = url {
        command.env("AMPHI_URL", url).env("AMPHI_TOKEN", "s3cret");
    }
    let Output { status, stdout, stderr } = command.output().unwrap();
    Ended {
        code: status.code().unwrap_or(-1),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

/// The id that ends in this number.
pub fn id(number: u32) -> String {
    format!("00000000-0000-7000-8000-{number:012}")
}

pub fn refused(code: &str, message: &str, field: Option<&str>) -> Value {
    json!({"error": {"code": code, "message": message, "field": field}})
}

pub fn instance(number: u32, name: &str, state: &str) -> Value {
    json!({
        "id": id(number), "project": id(0), "name": name, "state": state, "body": "set", "power": "on", "epoch": 1,
        "host": id(9), "host_name": "h1", "vcpus": 1, "memory_mib": 256,
        "bodies": [{"set": {"members": [{"index": 0, "image": "busybox"}], "volume_mount": "/data"}}],
        "addresses": [], "security_groups": [], "failover": "any_kind",
        "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z"})
}
