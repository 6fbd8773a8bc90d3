//! A round of measuring: figures with the words that say whose they are. Plain values, made once and shared by all sinks.

use super::settings::SinkSettings;
use crate::instance::figures::{Figure, Reading};
use amphi_api::InstanceId;
use amphi_api::wire::InstanceDesired;
use jiff::Timestamp;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Names that no setting may give another meaning.
pub const LABELS: &[&str] = &["host", "instance_id", "name", "project", "kind", "member", "device"];

/// Whose a figure is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    pub instance: InstanceId,
    pub name: String,
    pub project: uuid::Uuid,
    /// `set` or `vm`.
    pub kind: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub subject: Arc<Subject>,
    /// Empty: the whole body's.
    pub member: String,
    /// Empty: of no single device.
    pub device: String,
    pub figure: Figure,
    pub value: f64,
}

/// All that was measured at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The host's name.
    pub host: Arc<str>,
    pub at: Timestamp,
    pub samples: Vec<Sample>,
}

impl Round {
    /// Readings of bodies that the host was ordered to run; a stranger's are left out.
    pub fn of(host: Arc<str>, at: Timestamp, desired: &[InstanceDesired], readings: Vec<Reading>) -> Self {
        let subject = |i: &InstanceDesired| Subject {
            instance: i.id,
            name: i.name.clone(),
            project: i.project.0,
            kind: i.body.kind().to_string(),
        };
        let subjects: HashMap<_, _> = desired.iter().map(|i| (i.id, Arc::new(subject(i)))).collect();
        let mut samples: Vec<Sample> = readings
            .into_iter()
            .filter_map(|reading| {
                Some(Sample {
                    subject: subjects.get(&reading.instance)?.clone(),
                    member: reading.member.unwrap_or_default(),
                    device: reading.device.unwrap_or_default(),
                    figure: reading.figure,
                    value: reading.value,
                })
            })
            .collect();
        // Prometheus wants a figure's samples together.
        samples.sort_by(|a, b| {
            let key = |s: &Sample| (s.figure, s.subject.instance);
            key(a).cmp(&key(b)).then_with(|| (&a.member, &a.device).cmp(&(&b.member, &b.device)))
        });
        Self { host, at, samples }
    }

    /// What goes to one sink.
    pub fn for_sink<'a>(&'a self, sink: &'a SinkSettings) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(|s| sink.takes(s.figure, s.subject.project))
    }
}

impl Sample {
    /// Label and value, Amphi's own first, empty ones left out.
    pub fn labels<'a>(
        &'a self,
        host: &'a str,
        further: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = (&'a str, std::borrow::Cow<'a, str>)> {
        let own = [
            ("host", host.into()),
            ("instance_id", self.subject.instance.to_string().into()),
            ("name", self.subject.name.as_str().into()),
            ("project", self.subject.project.to_string().into()),
            ("kind", self.subject.kind.as_str().into()),
            ("member", self.member.as_str().into()),
            ("device", self.device.as_str().into()),
        ];
        let own = own.into_iter().filter(|(_, value): &(&str, std::borrow::Cow<str>)| !value.is_empty());
        own.chain(further.iter().map(|(key, value)| (key.as_str(), value.as_str().into())))
    }

    /// A template with its words put in.
    pub fn fill(&self, template: &str, host: &str) -> String {
        let mut text = String::with_capacity(template.len() + 32);
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let Some((word, tail)) = after.split_once('}') else { break };
            match word {
                "name" => text.push_str(&self.subject.name),
                "instance" => text.push_str(&self.subject.instance.to_string()),
                "project" => text.push_str(&self.subject.project.to_string()),
                "kind" => text.push_str(&self.subject.kind),
                "member" => text.push_str(&self.member),
                "device" => text.push_str(&self.device),
                "figure" => text.push_str(self.figure.name()),
                "host" => text.push_str(host),
                _ => {}
            }
            rest = tail;
        }
        text.push_str(rest);
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn round() -> Round {
        let subject = Arc::new(Subject {
            instance: InstanceId(uuid::Uuid::from_u128(1)),
            name: "shop \"1\"".into(),
            project: uuid::Uuid::from_u128(2),
            kind: "set".into(),
        });
        let sample = |figure, member: &str, device: &str, value| Sample {
            subject: subject.clone(),
            member: member.into(),
            device: device.into(),
            figure,
            value,
        };
        Round {
            host: "h1".into(),
            at: Timestamp::from_second(1_700_000_000).expect("a time"),
            samples: vec![
                sample(Figure::Cpu, "web", "", 1.5),
                sample(Figure::Cpu, "log", "", 0.25),
                sample(Figure::Memory, "web", "", 4096.0),
                sample(Figure::NetSent, "", "eth0", 10.0),
            ],
        }
    }

    #[test]
    fn templates_are_filled() {
        let round = round();
        let cpu = &round.samples[0];
        assert_eq!(cpu.fill("amphi.{figure}[{member},{device}]", "h1"), "amphi.cpu_seconds_total[web,]");
        assert_eq!(cpu.fill("{host}/{kind}", "h1"), "h1/set");
        assert_eq!(cpu.fill("plain", "h1"), "plain");
    }
}
