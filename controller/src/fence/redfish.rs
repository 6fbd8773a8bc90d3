//! A baseboard controller by Redfish (DMTF DSP0266): `ForceOff` of a ComputerSystem, then its `PowerState`.

use super::{FenceDriver, FenceError, POLL};
use anyhow::Context;
use async_trait::async_trait;
use reqwest::{Client, Url};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

pub struct Redfish {
    client: Client,
    system: Url,
    user: String,
    password_file: PathBuf,
}

impl Redfish {
    pub fn open(url: &str, user: &str, password_file: &Path, ca: Option<&Path>) -> anyhow::Result<Self> {
        // No redirects: the password goes where the settings say, and nowhere else.
        let mut client = Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy();
        if let Some(path) = ca {
            let pem = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            client = client.add_root_certificate(reqwest::Certificate::from_pem(&pem)?);
        }
        Ok(Self {
            client: client.build()?,
            system: url.parse().with_context(|| format!("url = {url:?}"))?,
            user: user.to_owned(),
            password_file: password_file.to_owned(),
        })
    }

    async fn state(&self, password: &str) -> Result<Value, String> {
        let request = self.client.get(self.system.clone()).basic_auth(&self.user, Some(password));
        let answer = request.send().await.map_err(told)?.error_for_status().map_err(told)?;
        answer.json().await.map_err(told)
    }

    async fn off(&self) -> Result<(), String> {
        let password = tokio::fs::read_to_string(&self.password_file)
            .await
            .map_err(|e| format!("{}: {e}", self.password_file.display()))?;
        let password = password.trim();
        let system = self.state(password).await?;
        if is_off(&system) {
            return Ok(());
        }
        let target = system["Actions"]["#ComputerSystem.Reset"]["target"].as_str();
        let target = target.ok_or("the system has no action ComputerSystem.Reset")?;
        let target = self.system.join(target).map_err(|e| format!("{target}: {e}"))?;
        if target.origin() != self.system.origin() {
            return Err(format!("the action is on another server: {target}"));
        }
        let order = self.client.post(target).basic_auth(&self.user, Some(password));
        let order = order.json(&json!({"ResetType": "ForceOff"}));
        order.send().await.map_err(told)?.error_for_status().map_err(told)?;
        loop {
            if is_off(&self.state(password).await?) {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn is_off(system: &Value) -> bool {
    system["PowerState"] == "Off"
}

/// The URL may hold what is nobody's business.
fn told(error: reqwest::Error) -> String {
    error.without_url().to_string()
}

#[async_trait]
impl FenceDriver for Redfish {
    fn name(&self) -> &'static str {
        "redfish"
    }

    async fn switch_off(&self, host: &str) -> Result<(), FenceError> {
        let failed = |message| FenceError::Asked { device: "redfish", host: host.to_owned(), message };
        self.off().await.map_err(failed)
    }
}
