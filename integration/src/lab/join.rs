//! Asking the controller for a host's join token: the one request the lab itself makes to the API. Refuses to be a client.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// `POST /v1/join-tokens` with the host's name; returns the token's text.
pub fn token(url: &str, bearer: &str, host: &str) -> Result<String> {
    let address = url.strip_prefix("http://").context("the API's URL")?;
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {url}"))?;
    stream.set_read_timeout(Some(Duration::from_secs(10))).context("set timeout")?;
    let body = serde_json::json!({ "host": host }).to_string();
    write!(
        stream,
        "POST /v1/join-tokens HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {bearer}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .context("ask for a join token")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the join token")?;
    parse(&answer).with_context(|| format!("join token for {host}"))
}

fn parse(answer: &str) -> Result<String> {
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.split(' ').nth(1).unwrap_or_default();
    if !status.starts_with('2') {
        bail!("{}: {body}", head.lines().next().unwrap_or_default());
    }
    // A short body comes whole or in one chunk; the JSON object is what lies between its braces either way.
    let (from, to) = (body.find('{').context("no JSON")?, body.rfind('}').context("no JSON")?);
    let value: serde_json::Value = serde_json::from_str(&body[from..=to]).context("decode")?;
    Ok(value["token"].as_str().context("no token in the answer")?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_plain_and_chunked() {
        assert_eq!(parse("HTTP/1.1 201 Created\r\n\r\n{\"token\":\"amphi-1\"}").unwrap(), "amphi-1");
        assert_eq!(parse("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n13\r\n{\"token\":\"amphi-2\"}\r\n0\r\n\r\n").unwrap(), "amphi-2");
        assert!(parse("HTTP/1.1 401 Unauthorized\r\n\r\n{}").unwrap_err().to_string().contains("401"));
    }
}
