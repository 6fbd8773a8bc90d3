//! The real `amphi` program, run as a newcomer runs it: another process, its environment, its exit code.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;

use crate::lab::{Background, Lab, Output, own_program};

/// Longest any command may take; those that wait have limits of their own below it.
const LIMIT: Duration = Duration::from_secs(320);

/// The CLI's exit code for what did not come true.
pub const FAILED: i32 = 1;
/// The CLI's exit code for what does not exist.
pub const NO_SUCH: i32 = 3;
/// The CLI's exit code for an order that is refused and changed nothing.
pub const REFUSED: i32 = 4;

pub struct Cli {
    program: PathBuf,
    variables: Vec<(String, String)>,
}

impl Cli {
    /// The `amphi` that was built with this program, with the lab's `env` for its environment.
    pub fn beside_this_program(lab: &Lab) -> Result<Self> {
        let own = own_program()?;
        let mut directory = own.parent().context("own program has no directory")?;
        // A test's program lies one deeper.
        if directory.file_name().is_some_and(|name| name == "deps") {
            directory = directory.parent().unwrap_or(directory);
        }
        let program = directory.join("amphi");
        ensure!(program.exists(), "{} is not built", program.display());
        Ok(Self { program, variables: read_env(&lab.layout().env())? })
    }

    /// Another program that was built with it.
    pub fn sibling(&self, name: &str) -> String {
        self.program.with_file_name(name).to_string_lossy().into_owned()
    }

    /// Runs it to its end, whatever that is.
    pub fn call(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.program);
        command.args(words).envs(self.variables.iter().cloned()).stdin(Stdio::null());
        Background::start(command)?.finish(LIMIT).with_context(|| line(words))
    }

    /// What it prints; it must succeed.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.call(words)?;
        ensure!(
            output.ok(),
            "{}: exit code {:?}: {}{}",
            line(words),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// What it prints with `--json`.
    pub fn json<T: DeserializeOwned>(&self, words: &[&str]) -> Result<T> {
        let words = [words, &["--json"]].concat();
        let text = self.run(&words)?;
        serde_json::from_str(&text).with_context(|| format!("{}: prints no such JSON: {text}", line(&words)))
    }

    /// It must fail with this exit code; what it complains.
    pub fn fails(&self, words: &[&str], code: i32) -> Result<String> {
        let output = self.call(words)?;
        ensure!(
            output.code == Some(code),
            "{}: expected exit code {code}, saw {:?}: {}{}",
            line(words),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stderr)
    }
}

fn line(words: &[&str]) -> String {
    format!("`amphi {}`", words.join(" "))
}

/// The variables of a file of `export NAME=VALUE` lines.
pub fn read_env(path: &Path) -> Result<Vec<(String, String)>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let pairs = text.lines().filter_map(|l| l.trim_start_matches("export ").split_once('='));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}
