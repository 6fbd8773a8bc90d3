//! Zabbix's sender protocol (zabbix.com, Manual, appendix "Sender protocol"; header: appendix "Header and data length"):
//! values for items of type "Zabbix trapper" on hosts that Zabbix knows.

use super::super::sample::Round;
use super::super::settings::{SinkSettings, To};
use super::Sink;
use anyhow::{Context, bail, ensure};
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Values in one message; zabbix_sender sends 250.
const BATCH: usize = 250;
/// An answer is one short line of JSON.
const ANSWER_MAX: u64 = 64 * 1024;
const HEADER: &[u8] = b"ZBXD\x01";

/// Between two discoveries of the same, rounds.
const DISCOVERY_ROUNDS: u64 = 30;

#[derive(Default)]
pub struct Zabbix {
    rounds: u64,
    /// What was last sent to the discovery rules.
    found: Option<Vec<Value>>,
}

#[async_trait]
impl Sink for Zabbix {
    async fn deliver(&mut self, settings: &SinkSettings, round: &Round) -> anyhow::Result<()> {
        let To::Zabbix { server, host, key, discovery } = &settings.to else { return Ok(()) };
        let mut values = values(settings, round, host, key);
        if let Some(rule) = discovery {
            let found = found(settings, round, host, rule);
            // Sent when it changes, and now and then, since Zabbix may not have had the host yet.
            if self.found.as_ref() != Some(&found) || self.rounds.is_multiple_of(DISCOVERY_ROUNDS) {
                values.extend(found.iter().map(|one| stamped(one, round)));
            }
            self.found = Some(found);
        }
        self.rounds += 1;
        let mut refused = Vec::new();
        for batch in values.chunks(BATCH) {
            let info = send(server, &message(batch, round)).await.with_context(|| server.clone())?;
            if failed(&info) > 0 {
                refused.push(info);
            }
        }
        match refused.first() {
            None => Ok(()),
            Some(info) => bail!(
                "{server} does not know the host or the trapper item of some figures, or does not take them from here \
                 ({info}); the template in docs/monitoring.md says which"
            ),
        }
    }
}

fn values(settings: &SinkSettings, round: &Round, host: &str, key: &str) -> Vec<Value> {
    let clock = round.at.as_second();
    let ns = round.at.subsec_nanosecond();
    let value = |sample: &super::super::sample::Sample| {
        json!({
            "host": sample.fill(host, &round.host),
            "key": sample.fill(key, &round.host),
            "value": sample.value.to_string(),
            "clock": clock,
            "ns": ns,
        })
    };
    round.for_sink(settings).map(value).collect()
}

/// One value for the discovery rule of each host: what there is to have items for.
fn found(settings: &SinkSettings, round: &Round, host: &str, rule: &str) -> Vec<Value> {
    let mut hosts: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for sample in round.for_sink(settings) {
        hosts.entry(sample.fill(host, &round.host)).or_default().push(json!({
            "{#FIGURE}": sample.figure.name(),
            "{#MEMBER}": sample.member,
            "{#DEVICE}": sample.device,
        }));
    }
    let value = |(host, all): (String, Vec<Value>)| json!({"host": host, "key": rule, "value": Value::Array(all).to_string()});
    hosts.into_iter().map(value).collect()
}

/// Its moment comes last: what is found is compared without it.
fn stamped(value: &Value, round: &Round) -> Value {
    let mut value = value.clone();
    value["clock"] = round.at.as_second().into();
    value["ns"] = 0.into();
    value
}

fn message(values: &[Value], round: &Round) -> Vec<u8> {
    let body = json!({"request": "sender data", "data": values, "clock": round.at.as_second()}).to_string();
    let mut message = HEADER.to_vec();
    message.extend((body.len() as u64).to_le_bytes());
    message.extend(body.bytes());
    message
}

async fn send(server: &str, message: &[u8]) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct Answer {
        response: String,
        #[serde(default)]
        info: String,
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(message).await?;
    let mut header = [0; 13];
    stream.read_exact(&mut header).await.context("no answer")?;
    ensure!(header.starts_with(HEADER), "this is no Zabbix server");
    let length = u64::from(u32::from_le_bytes([header[5], header[6], header[7], header[8]]));
    ensure!(length <= ANSWER_MAX, "an answer of {length} bytes");
    let mut body = Vec::new();
    stream.take(length).read_to_end(&mut body).await?;
    let answer: Answer = serde_json::from_slice(&body).context("an answer that is no JSON")?;
    ensure!(answer.response == "success", "refused: {}", answer.info);
    Ok(answer.info)
}

/// `processed: 1; failed: 2; total: 3; seconds spent: 0.000060`.
fn failed(info: &str) -> u64 {
    let part = info.split(';').find_map(|part| part.trim().strip_prefix("failed: "));
    part.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::tests::round;
    use super::super::super::settings::Settings;
    use super::*;

    fn settings(server: &str) -> SinkSettings {
        let text = format!("[[sink]]\nkind = 'zabbix'\nserver = '{server}'\nfigures = ['cpu_s*']");
        Settings::parse(&text).expect("settings").sinks.remove(0)
    }

    #[test]
    fn the_message() {
        let (settings, round) = (settings("z:10051"), round());
        let values = values(&settings, &round, "{name}", "amphi.{figure}[{member},{device}]");
        let message = message(&values, &round);
        assert_eq!(&message[..5], HEADER);
        assert_eq!(message[5..13], (message.len() as u64 - 13).to_le_bytes());
        insta::assert_snapshot!(String::from_utf8_lossy(&message[13..]));
    }

    #[test]
    fn discovery_says_what_there_is_once_a_host() {
        let (settings, round) = (settings("z:10051"), round());
        let all = found(&settings, &round, "{name}", "amphi.discovery");
        assert_eq!(all.len(), 1);
        assert_eq!((&all[0]["host"], &all[0]["key"]), (&json!("shop \"1\""), &json!("amphi.discovery")));
        let value: Value = serde_json::from_str(all[0]["value"].as_str().expect("text")).expect("JSON");
        assert_eq!(
            value[0],
            json!({"{#FIGURE}": "cpu_seconds_total", "{#MEMBER}": "web", "{#DEVICE}": ""}),
            "{value}"
        );
        assert_eq!(value.as_array().map(Vec::len), Some(2));
        let later = Round { at: round.at + jiff::SignedDuration::from_secs(10), ..round };
        assert_eq!(found(&settings, &later, "{name}", "amphi.discovery"), all, "nothing came or went");
        assert_eq!(stamped(&all[0], &later)["clock"], json!(later.at.as_second()));
    }

    #[tokio::test]
    async fn what_the_server_does_not_know_is_said() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a listener");
        let address = listener.local_addr().expect("an address").to_string();
        let answers = [
            ("success", "processed: 2; failed: 0"),
            ("success", "processed: 1; failed: 1"),
            ("failed", "no"),
        ];
        let server = async {
            for (response, info) in answers {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut header = [0; 13];
                stream.read_exact(&mut header).await.expect("a header");
                let length = u64::from_le_bytes(header[5..].try_into().expect("8 bytes"));
                let mut body = vec![0; length as usize];
                stream.read_exact(&mut body).await.expect("a body");
                let answer = json!({"response": response, "info": info}).to_string();
                let mut out = HEADER.to_vec();
                out.extend((answer.len() as u64).to_le_bytes());
                out.extend(answer.bytes());
                stream.write_all(&out).await.expect("an answer");
            }
        };
        let (settings, round) = (settings(&address), round());
        let mut sink = Zabbix::default();
        let client = async {
            sink.deliver(&settings, &round).await.expect("taken");
            let error = sink.deliver(&settings, &round).await.expect_err("one failed");
            assert!(format!("{error:#}").contains("does not know"), "{error:#}");
            let error = sink.deliver(&settings, &round).await.expect_err("refused");
            assert!(format!("{error:#}").contains("refused: no"), "{error:#}");
        };
        tokio::join!(server, client);
    }
}
