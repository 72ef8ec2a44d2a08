//! noray's own metric names, for dashboards that were made for it: on a port of their own, and beside ours on the admin
//! port. They are made of the shards' counters; no command or packet is timed, so all durations are 0 with the right count.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};

use super::metrics::Metrics;

/// Whose rules the text follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Prometheus text 0.0.4, as upstream has it.
    Prometheus,
    /// OpenMetrics, where what only grows must be named `_total` to be called a counter.
    OpenMetrics,
}

const COMMANDS: [&str; 4] = ["register-host", "connect", "connect-relay", "echo"];

/// A family: our series, summed; what kind it is; what upstream calls it and says of it.
const PLAIN: &[(&str, &str, &str, &str)] = &[
    (
        "waypost_dialect_sessions{dialect=\"noray\"}",
        "gauge",
        "noray_active_hosts",
        "Number of currently active hosts",
    ),
    (
        "waypost_noray_connections",
        "gauge",
        "noray_tcp_connections",
        "Number of TCP connections",
    ),
    (
        "waypost_noray_relays",
        "gauge",
        "noray_relay_count",
        "Count of currently active relays",
    ),
    (
        "waypost_noray_registrations_total{outcome=\"success\"}",
        "counter",
        "noray_remote_registrar_success",
        "Addresses registered",
    ),
    (
        "waypost_noray_registrations_total{outcome=\"fail\"}",
        "counter",
        "noray_remote_registrar_fail",
        "Registrations of unknown ids",
    ),
    (
        "waypost_noray_registrations_total{outcome=\"repeat\"}",
        "counter",
        "noray_remote_registrar_repeat",
        "Registrations that were known",
    ),
    (
        "waypost_noray_relay_drops_total",
        "counter",
        "noray_relay_drop_count",
        "Number of relay packets dropped",
    ),
    (
        "waypost_noray_relays_expired_total",
        "counter",
        "noray_relay_expired",
        "Count of expired relays",
    ),
];

/// All of noray's metrics as text, without an end mark.
pub(super) fn render(metrics: &Metrics, form: Form) -> String {
    let totals = metrics.totals();
    let value = |series: &str| totals.get(series).copied().unwrap_or(0);
    let mut text = String::new();
    let head = |text: &mut String, name: &str, kind: &str, help: &str| {
        let kind = match (kind, form) {
            ("counter", Form::OpenMetrics) => "unknown",
            _ => kind,
        };
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    };
    for (series, kind, name, help) in PLAIN {
        head(&mut text, name, kind, help);
        let _ = writeln!(text, "{name} {}", value(series));
    }
    let name = "noray_command_exception";
    head(&mut text, name, "counter", "Number of failed commands");
    for command in COMMANDS {
        let count = value(&format!(
            "waypost_noray_failures_total{{command=\"{command}\"}}"
        ));
        let _ = writeln!(text, "{name}{{command=\"{command}\"}} {count}");
    }
    let name = "noray_command_duration";
    head(&mut text, name, "histogram", "Commands; they are not timed");
    for command in COMMANDS {
        let count = value(&format!(
            "waypost_noray_commands_total{{command=\"{command}\"}}"
        ));
        let label = format!("command=\"{command}\"");
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\",{label}}} {count}");
        let _ = writeln!(
            text,
            "{name}_sum{{{label}}} 0\n{name}_count{{{label}}} {count}"
        );
    }
    let packets = value("waypost_relayed_packets_total{proto=\"noray\"}");
    let bytes = value("waypost_relayed_bytes_total{proto=\"noray\"}");
    let drops = value("waypost_noray_relay_drops_total");
    let sizes = "Size of the packets relayed";
    let times = "Packets relayed or dropped; they are not timed";
    for (name, help, count, sum) in [
        ("noray_relay_size", sizes, packets, bytes),
        ("noray_relay_duration", times, packets + drops, 0),
    ] {
        head(&mut text, name, "histogram", help);
        let _ = writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {count}");
    }
    text
}

/// `/metrics`, and nothing anywhere else.
pub(super) fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(show))
        .fallback(|| async { axum::http::StatusCode::NOT_FOUND })
        .with_state(metrics)
}

async fn show(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    let text = render(&metrics, Form::Prometheus);
    ([(header::CONTENT_TYPE, kind)], text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::counters::{PROTOCOL_COUNTERS, TABLES};
    use waypost_proto::stats::Counter;

    #[test]
    fn every_series_exists_and_is_shown() {
        let metrics = Metrics::new(TABLES, 1);
        let shard = metrics.publisher(0);
        let mut values = vec![0; PROTOCOL_COUNTERS.len()];
        let noray = Counter::NorayPackets as usize;
        for (place, value) in values.iter_mut().enumerate() {
            *value = 1000 + place as u64;
        }
        shard.publish(crate::control::counters::PROTOCOL_TABLE, &values);
        let totals = metrics.totals();
        for (series, ..) in PLAIN {
            assert!(totals.contains_key(*series), "{series}");
        }
        let text = render(&metrics, Form::Prometheus);
        assert!(!text.contains(" 0\n") || text.matches(" 0\n").count() == COMMANDS.len() + 1);
        assert!(text.contains(&format!("noray_relay_size_count {}", 1000 + noray)));
        assert!(text.contains("# TYPE noray_relay_expired counter"));
        let text = render(&metrics, Form::OpenMetrics);
        assert!(text.contains("# TYPE noray_relay_expired unknown"));
    }
}
