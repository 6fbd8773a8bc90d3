//! Runs one external program to its end: bounded in time, in a process group of its own, never left behind.

use std::ffi::OsString;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::Command;

use super::StorageError;

/// One run of a program. `operation` and `object` are for errors.
pub struct Run<'a> {
    pub operation: &'static str,
    pub object: &'a str,
    pub program: &'static str,
    pub args: Vec<String>,
    pub env: &'a [(OsString, OsString)],
    pub limit: Duration,
}

impl Run<'_> {
    /// The program's output whatever its exit code; an error only when it could not run to its end.
    pub async fn output(self) -> Result<Output, StorageError> {
        let mut child = Command::new(self.program)
            .args(&self.args)
            .env("LC_ALL", "C")
            .env("LVM_SUPPRESS_FD_WARNINGS", "1")
            .envs(self.env.iter().map(|(key, value)| (key, value)))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(StorageError::io(
                self.operation,
                format!("{} (starting {})", self.object, self.program),
            ))?;
        let group = child.id().map(|pid| Pid::from_raw(pid as i32));
        // Taken out of the child so that a grandchild which keeps a pipe open falls under the limit too.
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let work = async {
            let (stdout, stderr, status) =
                tokio::join!(read_all(&mut stdout), read_all(&mut stderr), child.wait());
            Ok::<_, std::io::Error>(Output { status: status?, stdout: stdout?, stderr: stderr? })
        };
        match tokio::time::timeout(self.limit, work).await {
            Ok(output) => output.map_err(StorageError::io(self.operation, self.object)),
            Err(_) => {
                if let Some(group) = group {
                    // It may have ended this instant, which is just as well.
                    let _ = killpg(group, Signal::SIGKILL);
                }
                Err(StorageError::Timeout {
                    operation: self.operation,
                    object: self.object.to_owned(),
                    seconds: self.limit.as_secs(),
                })
            }
        }
    }
}

async fn read_all<R: tokio::io::AsyncRead + Unpin>(pipe: &mut Option<R>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        tokio::io::AsyncReadExt::read_to_end(pipe, &mut bytes).await?;
    }
    Ok(bytes)
}

/// What a program complained about, on one line, without its warnings unless there is nothing else.
pub fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = || text.lines().map(str::trim).filter(|line| !line.is_empty());
    let mut said: Vec<&str> = lines().filter(|line| !line.starts_with("WARNING:")).collect();
    if said.is_empty() {
        said = lines().collect();
    }
    if said.is_empty() {
        output.status.to_string()
    } else {
        format!("{} ({})", said.join("; "), output.status)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(script: &str, limit: Duration) -> Run<'_> {
        let args = vec!["-c".to_owned(), script.to_owned()];
        Run { operation: "test", object: script, program: "sh", args, env: &[], limit }
    }

    #[tokio::test]
    async fn tells_what_the_program_said() {
        let output = run("echo WARNING: x >&2; echo no room >&2; exit 5", Duration::from_secs(10));
        let output = output.output().await.expect("ran");
        assert_eq!(complaint(&output), "no room (exit status: 5)");
    }

    #[tokio::test]
    async fn a_grandchild_that_holds_the_pipe_does_not_block() {
        let started = std::time::Instant::now();
        let error = run("sleep 60 & sleep 60", Duration::from_millis(200)).output().await;
        assert!(matches!(error, Err(StorageError::Timeout { .. })), "{error:?}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }
}
