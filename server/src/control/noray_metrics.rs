//! noray's own metric names, for dashboards that were made for it: on a port of their own, and beside ours on the admin
//! port. They are made of the shards' counters and of what the shard that serves noray measures. Buckets are those of upstream, which
//! are for seconds: of sizes all but the smallest are in the last one.

use std::fmt::Write as _;
use std::sync::Arc;

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use waypost_proto::stats::Counter;

use super::histogram::BOUNDS_SECS;
use super::metrics::Metrics;
use super::process_metrics;

/// Whose rules the text follows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Prometheus text 0.0.4, as upstream has it.
    Prometheus,
    /// OpenMetrics, where what only grows must be named `_total` to be called a counter.
    OpenMetrics,
}

/// What is timed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Timed {
    /// `register-host`.
    Register,
    /// `connect`.
    Connect,
    /// `connect-relay`.
    ConnectRelay,
    /// `echo`.
    Echo,
    /// A packet that was relayed or dropped.
    Packet,
}

impl Timed {
    /// How many there are.
    pub const COUNT: usize = Self::Packet as usize + 1;
    /// The commands.
    pub const COMMANDS: [Self; 4] = [
        Self::Register,
        Self::Connect,
        Self::ConnectRelay,
        Self::Echo,
    ];

    /// What counts it.
    pub const fn counter(self) -> Counter {
        match self {
            Self::Register => Counter::NorayRegisters,
            Self::Connect => Counter::NorayConnects,
            Self::ConnectRelay => Counter::NorayRelayConnects,
            Self::Echo => Counter::NorayEchoes,
            Self::Packet => Counter::NorayPackets,
        }
    }

    /// A command as clients write it, which is the label of its counter.
    fn command(self) -> &'static str {
        Counter::ALL[self.counter() as usize].labels[0].1
    }
}

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
    for command in Timed::COMMANDS.map(Timed::command) {
        let count = value(&format!(
            "waypost_noray_failures_total{{command=\"{command}\"}}"
        ));
        let _ = writeln!(text, "{name}{{command=\"{command}\"}} {count}");
    }
    let name = "noray_command_duration";
    head(&mut text, name, "histogram", "Duration of each command");
    for command in Timed::COMMANDS {
        let (at_most, sum) = metrics.noray_times(command).read();
        let label = format!("command=\"{}\"", command.command());
        show_histogram(&mut text, name, &label, at_most, sum);
    }
    let name = "noray_relay_duration";
    head(
        &mut text,
        name,
        "histogram",
        "Time it takes to relay a packet",
    );
    let (at_most, sum) = metrics.noray_times(Timed::Packet).read();
    show_histogram(&mut text, name, "", at_most, sum);
    let name = "noray_relay_size";
    head(&mut text, name, "histogram", "Size of the packets relayed");
    let small = |most: &str| {
        value(&format!(
            "waypost_noray_small_packets_total{{bytes=\"{most}\"}}"
        ))
    };
    let mut so_far = 0;
    let mut at_most = BOUNDS_SECS.map(|bound| {
        so_far += match bound {
            0.005 => small("0"),
            1.0 => small("1"),
            2.5 => small("2"),
            5.0 => small("5"),
            10.0 => small("10"),
            _ => 0,
        };
        so_far
    });
    // The counters are read one after another while the shard counts on.
    let packets = value("waypost_relayed_packets_total{proto=\"noray\"}").max(so_far);
    let sum = value("waypost_relayed_bytes_total{proto=\"noray\"}") as f64;
    let mut all = [packets; BOUNDS_SECS.len() + 1];
    all[..BOUNDS_SECS.len()].swap_with_slice(&mut at_most);
    show_histogram(&mut text, name, "", all, sum);
    text
}

/// One histogram's series: how many were at most at each bound, then all of them. `label` is empty or one label.
fn show_histogram(
    text: &mut String,
    name: &str,
    label: &str,
    at_most: [u64; BOUNDS_SECS.len() + 1],
    sum: f64,
) {
    let comma = if label.is_empty() { "" } else { "," };
    let bounds = BOUNDS_SECS.iter().map(ToString::to_string);
    let bounds = bounds.chain(["+Inf".to_owned()]);
    for (bound, count) in bounds.zip(at_most) {
        let _ = writeln!(
            text,
            "{name}_bucket{{le=\"{bound}\"{comma}{label}}} {count}"
        );
    }
    let labels = if label.is_empty() {
        String::new()
    } else {
        format!("{{{label}}}")
    };
    let count = at_most[BOUNDS_SECS.len()];
    let _ = writeln!(
        text,
        "{name}_sum{labels} {sum}\n{name}_count{labels} {count}"
    );
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
    let mut text = render(&metrics, Form::Prometheus);
    process_metrics::render(&mut text, metrics.start_unix_secs());
    ([(header::CONTENT_TYPE, kind)], text)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::counters::{PROTOCOL_COUNTERS, TABLES};

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
        shard.time_noray(Timed::Connect, Duration::from_millis(7), 2);
        shard.time_noray(Timed::Packet, Duration::from_micros(4), 1000);
        let totals = metrics.totals();
        for (series, ..) in PLAIN {
            assert!(totals.contains_key(*series), "{series}");
        }
        let text = render(&metrics, Form::Prometheus);
        let all = (1000 + noray).max(5 * 1000 + 5 * (Counter::NoraySmall0 as usize) + 10);
        assert!(text.contains(&format!("noray_relay_size_count {all}\n")));
        let small = Counter::NoraySmall0 as usize;
        for line in [
            "# TYPE noray_relay_expired counter".to_owned(),
            format!("noray_relay_size_bucket{{le=\"0.5\"}} {}", 1000 + small),
            format!("noray_relay_size_bucket{{le=\"1\"}} {}", 2001 + 2 * small),
            "noray_command_duration_bucket{le=\"0.005\",command=\"connect\"} 0".to_owned(),
            "noray_command_duration_bucket{le=\"0.01\",command=\"connect\"} 2".to_owned(),
            "noray_command_duration_sum{command=\"connect\"} 0.014".to_owned(),
            "noray_command_duration_count{command=\"echo\"} 0".to_owned(),
            "noray_relay_duration_bucket{le=\"0.005\"} 1000".to_owned(),
            "noray_relay_duration_sum 0.004".to_owned(),
            "noray_relay_duration_count 1000".to_owned(),
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} in {text}");
        }
        let text = render(&metrics, Form::OpenMetrics);
        assert!(text.contains("# TYPE noray_relay_expired unknown"));
    }
}
