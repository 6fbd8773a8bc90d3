//! The text format that Prometheus scrapes (prometheus.io/docs/instrumenting/exposition_formats), served by the agent.

use super::super::Rounds;
use super::super::sample::Round;
use super::super::settings::SinkSettings;
use crate::instance::figures::Shape;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

const TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Between two tries to listen.
const RETRY: Duration = Duration::from_secs(5);

pub async fn serve(listen: SocketAddr, settings: &SinkSettings, rounds: Rounds) {
    let mut said = false;
    let listener = loop {
        match tokio::net::TcpListener::bind(listen).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !said {
                    tracing::warn!(sink = settings.common.name, "cannot listen on {listen}: {error}");
                    said = true;
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let state = Arc::new((settings.clone(), rounds));
    let app = axum::Router::new().route("/metrics", axum::routing::get(metrics)).with_state(state);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::warn!(sink = settings.common.name, "{listen} is served no longer: {error}");
    }
}

async fn metrics(State(state): State<Arc<(SinkSettings, Rounds)>>) -> impl IntoResponse {
    let (settings, rounds) = &*state;
    let round = rounds.borrow().clone();
    ([(header::CONTENT_TYPE, TYPE)], round.map(|round| render(settings, &round)).unwrap_or_default())
}

fn render(settings: &SinkSettings, round: &Round) -> String {
    let mut text = String::with_capacity(round.samples.len() * 200 + 128);
    // Writing into a string cannot fail.
    let _ = writeln!(
        text,
        "# HELP amphi_measured_timestamp_seconds When these figures were read.\n\
         # TYPE amphi_measured_timestamp_seconds gauge\n\
         amphi_measured_timestamp_seconds{{host=\"{}\"}} {}",
        escaped(&round.host),
        round.at.as_millisecond() as f64 / 1000.0
    );
    let mut last = None;
    for sample in round.for_sink(settings) {
        let name = sample.figure.name();
        if last.replace(sample.figure) != Some(sample.figure) {
            let word = match sample.figure.shape() {
                Shape::Counter => "counter",
                Shape::Gauge => "gauge",
            };
            let _ =
                writeln!(text, "# HELP amphi_{name} {}\n# TYPE amphi_{name} {word}", sample.figure.help());
        }
        let _ = write!(text, "amphi_{name}{{");
        for (at, (label, value)) in sample.labels(&round.host, &settings.common.labels).enumerate() {
            let comma = if at > 0 { "," } else { "" };
            let _ = write!(text, "{comma}{label}=\"{}\"", escaped(&value));
        }
        let _ = writeln!(text, "}} {}", sample.value);
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::super::sample::tests::round;
    use super::super::super::settings::Settings;

    #[test]
    fn the_text_format() {
        let text = "[[sink]]\nkind = 'prometheus'\nlisten = '127.0.0.1:9177'\nexcept = ['memory*']\nlabels = { site = 'a\\b' }";
        let settings = Settings::parse(text).expect("settings");
        insta::assert_snapshot!(super::render(&settings.sinks[0], &round()));
    }
}
