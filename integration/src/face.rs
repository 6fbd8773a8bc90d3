//! The lab's OpenStack face as its administrator uses it: a token, and orders with their answers. Owns no resource of it.

use anyhow::{Context, Result, ensure};
use reqwest::header::HeaderValue;
use serde_json::{Value, json};

use crate::lab::Layout;
use crate::story::read_env;

pub struct Face {
    http: reqwest::Client,
    url: String,
    token: HeaderValue,
    runtime: tokio::runtime::Runtime,
}

impl Face {
    /// Logs in with what the lab's `env` file says.
    pub fn of(layout: &Layout) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let env = read_env(&layout.env())?;
        let value = |name: &str| {
            let found = env.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
            found.with_context(|| format!("no {name} in {}", layout.env().display()))
        };
        let (url, http, domain) = (value("AMPHI_URL")?, reqwest::Client::new(), json!({"id": "default"}));
        let user = json!({"name": "admin", "domain": domain, "password": value("OS_PASSWORD")?});
        let auth = json!({"auth": {"identity": {"methods": ["password"], "password": {"user": user}},
            "scope": {"project": {"name": "admin", "domain": domain}}}});
        let login = http.post(format!("{url}/identity/v3/auth/tokens")).json(&auth);
        let answer = runtime.block_on(login.send()).context("log in")?;
        let token = answer.headers().get("x-subject-token").cloned();
        let token = token.with_context(|| format!("no token: {}", answer.status()))?;
        Ok(Self { http, url, token, runtime })
    }

    /// `path` is below the base URL: `network/v2.0/ports`. The answer's only part, or all of it.
    pub fn order(&self, method: &str, path: &str, body: &Value) -> Result<Value> {
        let request = self.http.request(method.parse()?, format!("{}/{path}", self.url));
        let request = request.header("x-auth-token", &self.token).json(body);
        self.runtime.block_on(async {
            let answer = request.send().await.with_context(|| format!("{method} {path}"))?;
            let status = answer.status();
            let text = answer.text().await?;
            ensure!(status.is_success(), "{method} {path}: {status} {text}");
            let Ok(Value::Object(map)) = serde_json::from_str(&text) else { return Ok(Value::Null) };
            Ok(if map.len() == 1 { map.into_values().next().unwrap_or_default() } else { Value::Object(map) })
        })
    }

    /// What another client needs to fetch this: the URL and the token.
    pub fn at(&self, path: &str) -> Result<(String, &str)> {
        Ok((format!("{}/{path}", self.url), self.token.to_str().context("the token")?))
    }

    /// Makes one thing of the network service; its id.
    pub fn make(&self, one: &str, collection: &str, fields: Value) -> Result<String> {
        let made = self.order("POST", &format!("network/v2.0/{collection}"), &json!({ one: fields }))?;
        let id = made["id"].as_str().with_context(|| format!("no id: {made}"))?;
        Ok(id.to_owned())
    }

    /// Changes one thing of the network service.
    pub fn change(&self, one: &str, collection: &str, id: &str, fields: Value) -> Result<Value> {
        self.order("PUT", &format!("network/v2.0/{collection}/{id}"), &json!({ one: fields }))
    }
}
