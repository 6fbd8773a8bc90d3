//! OpenTelemetry's protocol over HTTP with JSON (opentelemetry.io/docs/specs/otlp, "OTLP/HTTP", "JSON Protobuf Encoding").

use super::super::sample::{Round, Sample};
use super::super::settings::{SinkSettings, To};
use super::Sink;
use crate::instance::figures::Shape;
use anyhow::{Context, ensure};
use async_trait::async_trait;
use serde_json::{Value, json};

/// AGGREGATION_TEMPORALITY_CUMULATIVE (opentelemetry/proto/metrics/v1/metrics.proto).
const CUMULATIVE: u32 = 2;

pub struct Otlp(pub reqwest::Client);

#[async_trait]
impl Sink for Otlp {
    async fn deliver(&mut self, settings: &SinkSettings, round: &Round) -> anyhow::Result<()> {
        let To::Otlp { url, bearer_file } = &settings.to else { return Ok(()) };
        let mut request = self.0.post(url).json(&body(settings, round));
        if let Some(file) = bearer_file {
            let token = tokio::fs::read_to_string(file).await.with_context(|| file.display().to_string())?;
            request = request.bearer_auth(token.trim());
        }
        let answer = request.send().await.context("OTLP")?;
        let status = answer.status();
        ensure!(status.is_success(), "{url} answers {status}");
        Ok(())
    }
}

fn body(settings: &SinkSettings, round: &Round) -> Value {
    let samples: Vec<&Sample> = round.for_sink(settings).collect();
    let metrics: Vec<Value> =
        samples.chunk_by(|a, b| a.figure == b.figure).map(|of| metric(of, settings, round)).collect();
    json!({"resourceMetrics": [{
        "resource": {"attributes": [attribute("service.name", "amphi"), attribute("host.name", &round.host)]},
        "scopeMetrics": [{
            "scope": {"name": "amphi-hostsrv", "version": env!("CARGO_PKG_VERSION")},
            "metrics": metrics,
        }],
    }]})
}

/// One figure with all its points; `samples` is not empty.
fn metric(samples: &[&Sample], settings: &SinkSettings, round: &Round) -> Value {
    let figure = samples[0].figure;
    let points: Vec<Value> = samples
        .iter()
        .map(|sample| {
            let labels = sample.labels(&round.host, &settings.common.labels);
            let attributes: Vec<Value> = labels.map(|(label, value)| attribute(label, &value)).collect();
            json!({
                // 64-bit integers are texts in this encoding.
                "timeUnixNano": round.at.as_nanosecond().to_string(),
                "asDouble": sample.value,
                "attributes": attributes,
            })
        })
        .collect();
    let mut metric = json!({
        "name": format!("amphi_{}", figure.name()), "unit": figure.unit(), "description": figure.help(),
    });
    match figure.shape() {
        Shape::Gauge => metric["gauge"] = json!({"dataPoints": points}),
        Shape::Counter => {
            metric["sum"] =
                json!({"dataPoints": points, "aggregationTemporality": CUMULATIVE, "isMonotonic": true});
        }
    }
    metric
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::tests::round;
    use super::super::super::settings::Settings;

    #[test]
    fn the_body() {
        let text = "[[sink]]\nkind = 'otlp'\nurl = 'http://127.0.0.1:4318/v1/metrics'\nfigures = ['cpu_s*', 'memory_w*']";
        let settings = Settings::parse(text).expect("settings");
        let body = super::body(&settings.sinks[0], &round());
        insta::assert_snapshot!(serde_json::to_string_pretty(&body).expect("JSON"));
    }
}
