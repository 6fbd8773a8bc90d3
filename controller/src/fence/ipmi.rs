//! A baseboard controller by IPMI 2.0, through `ipmitool`. The password goes by a file, never on a command line.

use super::command::run;
use super::{FenceDriver, FenceError, POLL};
use async_trait::async_trait;
use std::path::PathBuf;

pub struct Ipmi {
    pub program: PathBuf,
    pub address: String,
    pub user: String,
    pub password_file: PathBuf,
}

impl Ipmi {
    /// One question a second apart, tried twice: ipmitool's own default waits for a quarter of a minute.
    fn argv(&self, order: &[&str]) -> Vec<String> {
        let program = self.program.to_string_lossy().into_owned();
        let password = self.password_file.to_string_lossy().into_owned();
        let mut argv = vec![program];
        argv.extend(["-I", "lanplus", "-N", "1", "-R", "2"].map(str::to_owned));
        argv.extend([
            "-H".into(),
            self.address.clone(),
            "-U".into(),
            self.user.clone(),
            "-f".into(),
            password,
        ]);
        argv.extend(order.iter().map(|word| (*word).to_owned()));
        argv
    }
}

#[async_trait]
impl FenceDriver for Ipmi {
    fn name(&self) -> &'static str {
        "ipmi"
    }

    async fn switch_off(&self, host: &str) -> Result<(), FenceError> {
        // A controller whose host is off already may refuse the order: what counts is the answer to the question.
        let ordered = run("ipmi", &self.argv(&["chassis", "power", "off"]), host).await;
        let mut asked = ordered.map(drop);
        loop {
            match run("ipmi", &self.argv(&["chassis", "power", "status"]), host).await {
                Ok(said) if said.to_lowercase().contains("power is off") => return Ok(()),
                Ok(_) => asked?,
                Err(error) => return Err(error),
            }
            asked = Ok(());
            tokio::time::sleep(POLL).await;
        }
    }
}
