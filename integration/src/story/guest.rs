//! Probing from inside guests: a set's member through its host's Docker, a VM over the network from such a member.
//! Owns the little scripts and what their output means; everything in them is busybox.

use std::time::Duration;

use amphi_api::InstanceId;
use anyhow::{Context, Result, bail, ensure};

use super::ping::Ping;
use super::stage::SOON;
use crate::lab::{Lab, Output};
use crate::wait::{seen, until};

/// Docker on a host of the lab.
pub const DOCKER: [&str; 3] = ["/usr/bin/docker", "-H", "unix:///run/docker.sock"];
/// How long a script in a guest may take.
const LIMIT: Duration = Duration::from_secs(90);
/// The CGI script that lets a peer run commands in a VM of the story.
pub const CGI: &str = "#!/bin/sh\nprintf 'Content-Type: text/plain\\r\\n\\r\\n'\nexec sh -s 2>&1\n";
/// Marks the end of a remote script's output, with its exit code.
const END: &str = "amphi-story-end";

/// What became of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tcp {
    Open,
    /// Somebody answered that nobody listens: the packet got through.
    Refused,
    /// No answer at all.
    Silent,
}

/// A container of a set.
#[derive(Clone)]
pub struct Member<'a> {
    pub lab: &'a Lab,
    pub host: String,
    pub container: String,
}

impl<'a> Member<'a> {
    pub fn new(lab: &'a Lab, host: &str, instance: InstanceId, member: &str) -> Self {
        Self { lab, host: host.to_owned(), container: format!("amphi-{instance}-{member}") }
    }

    /// Runs a shell script in it.
    pub fn sh(&self, script: &str) -> Result<Output> {
        let argv = [DOCKER.as_slice(), &["exec", &self.container, "/bin/sh", "-c", script]].concat();
        self.lab.exec(&self.host, &argv, LIMIT)
    }

    /// Runs a shell script that must succeed; what it prints.
    pub fn run(&self, script: &str) -> Result<String> {
        let output = self.sh(script)?;
        ensure!(
            output.ok(),
            "{} in {} on {}: exit code {:?}: {}{}",
            script,
            self.container,
            self.host,
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout)
    }

    /// Pings until an answer comes.
    pub fn reaches(&self, address: &str) -> Result<()> {
        until(&format!("{} reaches {address} by ping", self.container), SOON, || {
            let output = self.sh(&format!("ping -c 1 -W 1 {address}"))?;
            Ok(seen(output.ok(), || output.stdout.trim().to_owned()))
        })
    }

    /// Pings every 50 ms until told to stop.
    pub fn ping(&self, address: &str) -> Result<Ping<'a>> {
        Ping::start(self.clone(), address)
    }

    pub fn tcp(&self, address: &str, port: u16) -> Result<Tcp> {
        tcp_of(&self.sh(&tcp_script(address, port)).map(|o| o.stdout + &o.stderr)?)
    }

    /// The body of an HTTP answer on port 80.
    pub fn get(&self, address: &str, path: &str) -> Result<String> {
        let script = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 5 {address} 80");
        body_of(&self.run(&script)?).with_context(|| format!("GET http://{address}{path}"))
    }

    /// SHA-256 of the `size` bytes behind an HTTP path, computed here.
    pub fn sha256_over_http(&self, address: &str, path: &str, size: u64) -> Result<String> {
        let fetch = format!("printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' | nc -w 30 {address} 80");
        first_word(&self.run(&format!("{fetch} | tail -c {size} | sha256sum"))?)
    }

    pub fn sha256(&self, path: &str) -> Result<String> {
        first_word(&self.run(&format!("sha256sum {path}"))?)
    }
}

/// A VM that serves [`CGI`] as `/cgi-bin/run`, seen from a peer.
pub struct Vm<'a> {
    pub address: String,
    pub from: Member<'a>,
}

impl Vm<'_> {
    /// Runs a shell script in the VM; what it prints, standard error included. Any exit code is fine.
    pub fn sh(&self, script: &str) -> Result<String> {
        let script = format!("{script}\necho {END} $?");
        let length = script.len();
        let quoted = script.replace('\'', r"'\''");
        let request = format!(
            "{{ printf 'POST /cgi-bin/run HTTP/1.0\\r\\nContent-Length: {length}\\r\\n\\r\\n'; printf %s '{quoted}'; }} | nc -w 60 {} 80",
            self.address
        );
        let body = body_of(&self.from.run(&request)?).with_context(|| format!("run in {}", self.address))?;
        let (output, _) = body
            .rsplit_once(END)
            .with_context(|| format!("the script in {} did not end: {body}", self.address))?;
        Ok(output.to_owned())
    }

    /// Waits until it serves.
    pub fn answers(&self, limit: Duration) -> Result<()> {
        until(&format!("the VM at {} runs a command over HTTP", self.address), limit, || {
            let saw = self.sh("echo here")?;
            Ok(seen(saw.trim() == "here", || saw))
        })
    }

    pub fn tcp(&self, address: &str, port: u16) -> Result<Tcp> {
        tcp_of(&self.sh(&tcp_script(address, port))?)
    }

    pub fn sha256(&self, path: &str) -> Result<String> {
        first_word(&self.sh(&format!("sha256sum {path}"))?)
    }
}

fn tcp_script(address: &str, port: u16) -> String {
    format!("nc -w 2 {address} {port} </dev/null >/dev/null && echo open")
}

fn tcp_of(output: &str) -> Result<Tcp> {
    Ok(match output {
        text if text.contains("refused") => Tcp::Refused,
        text if text.contains("timed out") => Tcp::Silent,
        text if text.contains("open") => Tcp::Open,
        text => bail!("nc says neither open, refused nor timed out: {text}"),
    })
}

fn body_of(answer: &str) -> Result<String> {
    let (head, body) =
        answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    ensure!(status == "200", "HTTP status {status}: {body}");
    Ok(body.to_owned())
}

fn first_word(text: &str) -> Result<String> {
    let word = text.split_whitespace().next().unwrap_or_default();
    ensure!(word.len() == 64 && word.chars().all(|c| c.is_ascii_hexdigit()), "no checksum: {text}");
    Ok(word.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nc_says() {
        assert_eq!(tcp_of("open\n").unwrap(), Tcp::Open);
        let refused = "nc: can't connect to remote host (10.8.0.1): Connection refused\n";
        assert_eq!(tcp_of(refused).unwrap(), Tcp::Refused);
        assert_eq!(tcp_of("nc: timed out\n").unwrap(), Tcp::Silent);
        assert!(tcp_of("sh: nc: not found").is_err());
    }

    #[test]
    fn http_answers() {
        assert_eq!(body_of("HTTP/1.1 200 OK\r\nA: b\r\n\r\nx\ny\n").unwrap(), "x\ny\n");
        assert!(body_of("HTTP/1.0 404 Not Found\r\n\r\n").unwrap_err().to_string().contains("404"));
        assert!(body_of("").is_err());
        assert!(first_word("sha256sum: /x: No such file").is_err());
    }
}
