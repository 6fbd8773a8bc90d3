//! OpenStack's own clients, as they come from PyPI: the virtual environment they live in, and calls of the `openstack`
//! program. Refuses to know what is done with them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::lab::{Background, Layout, Output};
use crate::story::read_env;

/// Longest any call may take, `--wait` included.
const LIMIT: Duration = Duration::from_secs(300);

/// The clients, pointed at a lab.
pub struct Tools {
    venv: PathBuf,
    variables: Vec<(String, String)>,
}

impl Tools {
    /// Makes the environment when it is not there, which asks PyPI.
    pub fn new(layout: &Layout) -> Result<Self> {
        let root =
            Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no directory")?;
        let venv = root.join("target/clients");
        let status = Command::new(root.join("scripts/clients.sh"))
            .args([&venv, &root.join("integration/clients/requirements.txt")])
            .stdin(Stdio::null())
            .status()
            .context("run scripts/clients.sh")?;
        ensure!(status.success(), "scripts/clients.sh ended with {status}");
        Ok(Self { venv, variables: read_env(&layout.env())? })
    }

    fn call(&self, program: &str, words: &[&str], variables: &[(&str, &str)]) -> Result<Output> {
        let mut command = Command::new(self.venv.join("bin").join(program));
        command.args(words).envs(self.variables.iter().cloned()).envs(variables.iter().copied());
        command.stdin(Stdio::null());
        Background::start(command)?.finish(LIMIT).with_context(|| line(program, words))
    }

    /// What `openstack` prints; it must succeed.
    pub fn openstack(&self, words: &[&str]) -> Result<String> {
        self.openstack_as(&[], words)
    }

    /// [`Self::openstack`] with other variables, as another user.
    pub fn openstack_as(&self, variables: &[(&str, &str)], words: &[&str]) -> Result<String> {
        let output = self.call("openstack", words, variables)?;
        let (code, said) = (output.code, format!("{}{}", output.stdout, output.stderr));
        ensure!(output.ok(), "{}: exit code {code:?}: {said}", line("openstack", words));
        Ok(output.stdout)
    }

    /// What `openstack … -f json` prints.
    pub fn json(&self, words: &[&str]) -> Result<Value> {
        let words = [words, &["-f", "json"]].concat();
        let text = self.openstack(&words)?;
        serde_json::from_str(&text)
            .with_context(|| format!("{}: prints no JSON: {text}", line("openstack", &words)))
    }

    /// What `openstack` complains of; it must fail.
    pub fn fails(&self, variables: &[(&str, &str)], words: &[&str]) -> Result<String> {
        let output = self.call("openstack", words, variables)?;
        ensure!(!output.ok(), "{}: should have failed: {}", line("openstack", words), output.stdout);
        Ok(output.stderr)
    }

    /// A Python program among the clients; it must succeed.
    pub fn python(&self, words: &[&str]) -> Result<String> {
        let output = self.call("python", words, &[])?;
        ensure!(output.ok(), "{}: {}{}", line("python", words), output.stdout, output.stderr);
        Ok(output.stdout)
    }
}

fn line(program: &str, words: &[&str]) -> String {
    format!("`{program} {}`", words.join(" "))
}
