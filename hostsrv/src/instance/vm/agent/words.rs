//! The guest agent's words that are used here, as JSON (QEMU's `qga/qapi-schema.json`). Pure: what is said, and what an answer
//! means. An answer comes out of a guest and is not trusted.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::net::IpAddr;

/// Longest name that is kept of what a guest says of itself, in characters.
const NAME_MAX: usize = 200;
/// Most addresses that are kept.
const ADDRESSES_MAX: usize = 32;

pub const HOST_NAME: &str = "guest-get-host-name";
pub const OS: &str = "guest-get-osinfo";
pub const INTERFACES: &str = "guest-network-get-interfaces";

/// Where a position is counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    Begin,
    End,
}

pub fn bare(command: &str) -> Value {
    json!({ "execute": command })
}

/// A shell's script with its words; its output is kept only where it is captured.
pub fn shell(script: &str, words: &[&str], captured: bool) -> Value {
    let arguments: Vec<&str> = ["-c", script, "amphi"].into_iter().chain(words.iter().copied()).collect();
    json!({ "execute": "guest-exec", "arguments": { "path": "/bin/sh", "arg": arguments, "capture-output": captured } })
}

pub fn status(pid: i64) -> Value {
    json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } })
}

pub fn open(path: &str, mode: &str) -> Value {
    json!({ "execute": "guest-file-open", "arguments": { "path": path, "mode": mode } })
}

pub fn close(handle: i64) -> Value {
    json!({ "execute": "guest-file-close", "arguments": { "handle": handle } })
}

pub fn flush(handle: i64) -> Value {
    json!({ "execute": "guest-file-flush", "arguments": { "handle": handle } })
}

pub fn read(handle: i64, count: usize) -> Value {
    json!({ "execute": "guest-file-read", "arguments": { "handle": handle, "count": count } })
}

pub fn write(handle: i64, bytes: &[u8]) -> Value {
    let text = STANDARD.encode(bytes);
    json!({ "execute": "guest-file-write", "arguments": { "handle": handle, "buf-b64": text } })
}

pub fn seek(handle: i64, offset: u64, whence: Whence) -> Value {
    let whence = match whence {
        Whence::Begin => "set",
        Whence::End => "end",
    };
    json!({ "execute": "guest-file-seek", "arguments": { "handle": handle, "offset": offset, "whence": whence } })
}

/// How it stands with a command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    pub exited: bool,
    /// As shells count: 128 and the number of the signal that ended it.
    pub code: Option<i64>,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

fn bytes(answer: &Value, name: &str) -> Option<Vec<u8>> {
    match &answer[name] {
        Value::Null => Some(Vec::new()),
        Value::String(text) => STANDARD.decode(text).ok(),
        _ => None,
    }
}

pub fn ran(answer: &Value) -> Option<Ran> {
    let signal = answer["signal"].as_i64().map(|signal| 128 + signal);
    Some(Ran {
        exited: answer["exited"].as_bool()?,
        code: answer["exitcode"].as_i64().or(signal),
        out: bytes(answer, "out-data")?,
        err: bytes(answer, "err-data")?,
    })
}

pub fn pid(answer: &Value) -> Option<i64> {
    answer["pid"].as_i64()
}

/// What was read, where it is as long as the guest says.
pub fn piece(answer: &Value) -> Option<Vec<u8>> {
    let bytes = bytes(answer, "buf-b64")?;
    (answer["count"].as_u64()? == bytes.len() as u64).then_some(bytes)
}

pub fn written(answer: &Value) -> Option<usize> {
    answer["count"].as_u64().and_then(|count| usize::try_from(count).ok())
}

pub fn position(answer: &Value) -> Option<u64> {
    answer["position"].as_u64()
}

/// A name as a guest gives it: one line of it, no more than is read.
fn name(text: &str) -> Option<String> {
    let kept: String = text.trim().chars().filter(|c| !c.is_control()).take(NAME_MAX).collect();
    (!kept.is_empty()).then_some(kept)
}

pub fn host_name(answer: &Value) -> Option<String> {
    name(answer["host-name"].as_str()?)
}

/// `Debian GNU/Linux 12 (bookworm)`; where a guest has no such name, its kernel's release.
pub fn os(answer: &Value) -> Option<String> {
    ["pretty-name", "name", "kernel-release"].iter().find_map(|field| name(answer[*field].as_str()?))
}

/// Those that others can reach it at, as it says.
pub fn addresses(answer: &Value) -> Vec<IpAddr> {
    let interfaces = answer.as_array().map(Vec::as_slice).unwrap_or_default();
    let listed = interfaces.iter().flat_map(|one| one["ip-addresses"].as_array().into_iter().flatten());
    let parsed = listed.filter_map(|one| one["ip-address"].as_str()?.parse::<IpAddr>().ok());
    let mut all: Vec<IpAddr> = parsed.filter(reaches).take(ADDRESSES_MAX).collect();
    all.sort();
    all.dedup();
    all
}

fn reaches(address: &IpAddr) -> bool {
    !address.is_loopback()
        && match address {
            IpAddr::V4(address) => !address.is_link_local(),
            IpAddr::V6(address) => !address.is_unicast_link_local(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said() {
        let table = [
            (
                shell("echo \"$1\"", &["a b"], true),
                r#"{"execute":"guest-exec","arguments":{"path":"/bin/sh","arg":["-c","echo \"$1\"","amphi","a b"],"capture-output":true}}"#,
            ),
            (
                write(7, &[0, 255, 10]),
                r#"{"execute":"guest-file-write","arguments":{"handle":7,"buf-b64":"AP8K"}}"#,
            ),
            (
                seek(7, 3, Whence::Begin),
                r#"{"execute":"guest-file-seek","arguments":{"handle":7,"offset":3,"whence":"set"}}"#,
            ),
            (bare(OS), r#"{"execute":"guest-get-osinfo"}"#),
        ];
        for (said, wanted) in table {
            assert_eq!(said, serde_json::from_str::<Value>(wanted).unwrap());
        }
    }

    #[test]
    fn what_answers_mean() {
        let done = json!({"exited": true, "exitcode": 3, "out-data": "AP8K"});
        assert_eq!(
            ran(&done),
            Some(Ran { exited: true, code: Some(3), out: vec![0, 255, 10], err: Vec::new() })
        );
        assert_eq!(ran(&json!({"exited": true, "signal": 9})).unwrap().code, Some(137));
        assert!(!ran(&json!({"exited": false})).unwrap().exited);
        assert_eq!(ran(&json!({"exited": true, "out-data": "%"})), None);
        assert_eq!(piece(&json!({"count": 3, "buf-b64": "AP8K", "eof": false})), Some(vec![0, 255, 10]));
        assert_eq!(piece(&json!({"count": 0, "eof": true})), Some(Vec::new()));
        assert_eq!(piece(&json!({"count": 4, "buf-b64": "AP8K"})), None, "shorter than it says");
    }

    #[test]
    fn what_a_guest_says_of_itself_is_bounded() {
        assert_eq!(host_name(&json!({"host-name": " web\u{1b}[31m\n"})).as_deref(), Some("web[31m"));
        assert_eq!(host_name(&json!({"host-name": "\n"})), None);
        assert_eq!(host_name(&json!({"host-name": "x".repeat(5000)})).unwrap().len(), NAME_MAX);
        let debian = json!({"pretty-name": "Debian GNU/Linux 12 (bookworm)", "kernel-release": "6.1.0"});
        assert_eq!(os(&debian).as_deref(), Some("Debian GNU/Linux 12 (bookworm)"));
        assert_eq!(os(&json!({"kernel-release": "6.1.0"})).as_deref(), Some("6.1.0"));
        let interfaces = json!([
            {"name": "lo", "ip-addresses": [{"ip-address": "127.0.0.1"}, {"ip-address": "::1"}]},
            {"name": "eth0", "ip-addresses": [{"ip-address": "10.1.0.5"}, {"ip-address": "fe80::1"}, {"ip-address": "10.1.0.5"}]},
            {"name": "eth1"}, {"ip-addresses": [{"ip-address": "nonsense"}, {"ip-address": "2001:db8::5"}]},
        ]);
        let wanted: Vec<IpAddr> = vec!["10.1.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()];
        assert_eq!(addresses(&interfaces), wanted);
        assert_eq!(addresses(&json!({})), Vec::<IpAddr>::new());
    }
}
