//! StatsD lines by UDP (github.com/statsd/statsd, docs/metric_types.md). Its counters are differences, so what was last
//! sent is remembered; after a start the first round says gauges only.

use super::super::sample::{Round, Sample};
use super::super::settings::{SinkSettings, To};
use super::Sink;
use crate::instance::figures::{Figure, Shape};
use amphi_api::InstanceId;
use anyhow::Context;
use async_trait::async_trait;
use std::collections::HashMap;
use tokio::net::UdpSocket;

/// Fits every path that carries 1,500 bytes (statsd's own advice for Ethernet is 1,432).
const PACKET: usize = 1432;

type Key = (InstanceId, String, String, Figure);

#[derive(Default)]
pub struct Statsd {
    last: HashMap<Key, f64>,
}

#[async_trait]
impl Sink for Statsd {
    async fn deliver(&mut self, settings: &SinkSettings, round: &Round) -> anyhow::Result<()> {
        let To::Statsd { server, prefix, tags } = &settings.to else { return Ok(()) };
        let lines = self.lines(settings, round, prefix, *tags);
        let mut addresses = tokio::net::lookup_host(server).await.with_context(|| server.clone())?;
        let address = addresses.next().with_context(|| format!("{server} has no address"))?;
        let here = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(here).await?;
        for packet in packets(&lines) {
            socket.send_to(packet.as_bytes(), address).await.with_context(|| server.clone())?;
        }
        Ok(())
    }
}

impl Statsd {
    fn lines(&mut self, settings: &SinkSettings, round: &Round, prefix: &str, tags: bool) -> Vec<String> {
        let mut now = HashMap::new();
        let mut lines = Vec::new();
        for sample in round.for_sink(settings) {
            let said = match sample.figure.shape() {
                Shape::Gauge => Some((sample.value, "g")),
                Shape::Counter => {
                    let key = (
                        sample.subject.instance,
                        sample.member.clone(),
                        sample.device.clone(),
                        sample.figure,
                    );
                    let before = self.last.get(&key).copied();
                    now.insert(key, sample.value);
                    // A body that was started anew counts from nothing.
                    let grown = |before: f64| {
                        if sample.value < before { sample.value } else { sample.value - before }
                    };
                    before.map(|before| (grown(before), "c"))
                }
            };
            if let Some((value, kind)) = said {
                lines.push(line(sample, settings, round, prefix, tags, &format!("{value}|{kind}")));
            }
        }
        self.last = now;
        lines
    }
}

fn line(
    sample: &Sample,
    settings: &SinkSettings,
    round: &Round,
    prefix: &str,
    tags: bool,
    said: &str,
) -> String {
    let figure = sample.figure.name();
    if tags {
        let plain = |text: &str| text.replace([',', '|', '\n', '#'], "_");
        let labels = sample.labels(&round.host, &settings.common.labels);
        let labels: Vec<String> = labels.map(|(label, value)| format!("{label}:{}", plain(&value))).collect();
        return format!("{prefix}.{figure}:{said}|#{}", labels.join(","));
    }
    let plain = |text: &str| -> String {
        text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect()
    };
    let parts = [&sample.subject.name, &sample.member, &sample.device];
    let place: Vec<String> =
        parts.into_iter().filter(|part| !part.is_empty()).map(|part| plain(part)).collect();
    format!("{prefix}.{}.{figure}:{said}", place.join("."))
}

/// As many lines as fit, one packet after the other. A line that is longer than a packet goes alone.
fn packets(lines: &[String]) -> Vec<String> {
    let mut packets: Vec<String> = Vec::new();
    for line in lines {
        match packets.last_mut() {
            Some(packet) if packet.len() + 1 + line.len() <= PACKET => {
                packet.push('\n');
                packet.push_str(line);
            }
            _ => packets.push(line.clone()),
        }
    }
    packets
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::tests::round;
    use super::super::super::settings::Settings;
    use super::*;

    #[test]
    fn counters_are_differences() {
        let text = "[[sink]]\nkind = 'statsd'\nserver = 'x:8125'";
        let settings = Settings::parse(text).expect("settings").sinks.remove(0);
        let mut statsd = Statsd::default();
        let mut round = round();
        assert_eq!(
            statsd.lines(&settings, &round, "amphi", false),
            ["amphi.shop__1_.web.memory_working_set_bytes:4096|g"]
        );
        round.samples[0].value = 2.0;
        round.samples[1].value = 0.125;
        assert_eq!(
            statsd.lines(&settings, &round, "amphi", false),
            [
                "amphi.shop__1_.web.cpu_seconds_total:0.5|c",
                "amphi.shop__1_.log.cpu_seconds_total:0.125|c",
                "amphi.shop__1_.web.memory_working_set_bytes:4096|g",
                "amphi.shop__1_.eth0.network_transmit_bytes_total:0|c",
            ]
        );
        let tagged = statsd.lines(&settings, &round, "a", true);
        assert!(tagged[0].starts_with("a.cpu_seconds_total:0|c|#host:h1,instance_id:"), "{}", tagged[0]);
        assert!(tagged[0].ends_with(",kind:set,member:web"), "{}", tagged[0]);
    }

    #[test]
    fn packets_are_filled_and_not_overfilled() {
        let lines: Vec<String> = (0..100).map(|n| format!("{n:0>40}")).collect();
        let packets = packets(&lines);
        assert!(packets.iter().all(|packet| packet.len() <= PACKET));
        assert_eq!(packets.join("\n"), lines.join("\n"));
        assert_eq!(packets.len(), 3);
    }
}
