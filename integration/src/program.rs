//! The program `amphi` as a person runs it: words in, an exit code and text out. Refuses to know what the words mean.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};

/// The program, and what its environment says of a cloud.
pub struct Amphi {
    pub program: PathBuf,
    pub variables: Vec<(String, String)>,
}

impl Amphi {
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(words).envs(self.variables.iter().cloned());
        command
    }

    /// Without input.
    pub fn run(&self, words: &[&str]) -> Result<Output> {
        self.command(words).stdin(Stdio::null()).output().context("amphi")
    }

    /// What it says when all went well.
    pub fn well(&self, words: &[&str]) -> Result<Vec<u8>> {
        let output = self.run(words)?;
        ensure!(output.status.success(), "{words:?}: {}: {}", output.status, text(&output.stderr));
        Ok(output.stdout)
    }

    /// It ends with this code, and says this in its error.
    pub fn refused(&self, words: &[&str], code: i32, says: &str) -> Result<()> {
        let output = self.run(words)?;
        let told = text(&output.stderr);
        let same = output.status.code() == Some(code) && told.contains(says);
        ensure!(same, "{words:?}: {}: {told}", output.status);
        Ok(())
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
