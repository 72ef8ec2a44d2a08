//! The report for people: the verdict first, the expectations next, then the figures.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

use super::document::{Document, Load};
use crate::expect::{Outcome, percent, show_ns};
use crate::tally::Tally;
use crate::times::Times;

/// The text.
pub fn render(document: &Document, tally: &Tally) -> String {
    let mut out = String::new();
    write_verdict(&mut out, document, tally);
    write_sessions(&mut out, document, tally);
    write_load(&mut out, document, tally);
    let generator = &document.generator;
    let _ = writeln!(
        out,
        "generator  lag {}; {} slots missed, {} idle, {} refused by the kernel; {} thread(s) busy {:.0} %, kept waiting for a core {:.0} %, {}",
        three(&tally.lag),
        tally.missed,
        tally.idle,
        tally.kernel_refused,
        document.load.threads,
        generator.busy_percent,
        generator.waited_percent,
        document.load.io,
    );
    write_notes(&mut out, &document.load, tally);
    if tally.lost() > 0 && document.receive_buffer_errors > 0 {
        let _ = writeln!(
            out,
            "note       sockets of this host, perhaps the generator's, had no room for {} datagrams: not all losses need be the server's",
            document.receive_buffer_errors
        );
    }
    write_server(&mut out, document);
    let environment = &document.environment;
    let _ = writeln!(
        out,
        "host       {}, {}, {} cores, {} build; {} datagrams found a full receive buffer",
        environment.kernel,
        environment.cpu,
        environment.cores,
        environment.build,
        document.receive_buffer_errors,
    );
    let _ = writeln!(out, "seed       {}", document.seed);
    out
}

fn write_verdict(out: &mut String, document: &Document, tally: &Tally) {
    let _ = match &document.reason {
        Some(why) => writeln!(out, "INVALID: {why}"),
        None => writeln!(out, "VALID: the generator kept its schedule"),
    };
    if tally.misdelivered + tally.corrupted + tally.duplicated > 0 {
        let _ = writeln!(
            out,
            "FAULTY: datagrams were misdelivered, corrupted or duplicated"
        );
    }
    for judgement in &document.expectations {
        let (mark, note) = match judgement.outcome {
            Outcome::Met => ("✓", ""),
            Outcome::Failed => ("✗", ""),
            Outcome::NotJudged => ("?", ", not judged"),
        };
        let _ = writeln!(
            out,
            "{mark} {}   ({}{note})",
            judgement.expectation, judgement.measured
        );
    }
}

fn write_sessions(out: &mut String, document: &Document, tally: &Tally) {
    let load = &document.load;
    let _ = writeln!(
        out,
        "\nsessions   {} set up with {} members each in {}, {} failed, {} replaced; {} at {}",
        tally.opened,
        load.members,
        show_ns(tally.filling_ns),
        tally.failed,
        tally.replaced,
        load.protocol,
        load.target
    );
    for (reason, times) in &tally.reasons {
        let _ = writeln!(out, "           {times} x {reason}");
    }
    for (name, times) in [
        ("host", &tally.host),
        ("join", &tally.join),
        ("all know each other", &tally.meet),
    ] {
        let _ = writeln!(out, "           {name}: {}", three(times));
    }
}

fn write_load(out: &mut String, document: &Document, tally: &Tally) {
    let load = &document.load;
    if let Some(storm) = &load.storm {
        let per_sec = tally.opened as f64 * 1e9 / (tally.filling_ns.max(1) as f64);
        let _ = writeln!(out, "storm      {storm}: {per_sec:.0} sessions/s");
    } else {
        let secs = load.duration_secs;
        let per_sec = |count: u64| (count as f64 / secs).round();
        let _ = writeln!(
            out,
            "load       {} at {}/s for {secs} s: {} sent ({}/s), {} received ({}/s)",
            show_sizes(load),
            show_rate(load),
            tally.sent,
            per_sec(tally.sent),
            tally.received,
            per_sec(tally.received),
        );
    }
    let _ = writeln!(
        out,
        "faults     {} lost ({:.4} %), {} reordered, {} duplicated, {} corrupted, {} misdelivered, {} refused by clients",
        tally.lost(),
        percent(tally.lost(), tally.sent),
        tally.reordered,
        tally.duplicated,
        tally.corrupted,
        tally.misdelivered,
        tally.refused,
    );
    let flood = &tally.flood;
    if flood.sent > 0 {
        let _ = writeln!(
            out,
            "flood      {} first requests of strangers ({} B), {} answered ({} B, {:.2} times as many)",
            flood.sent,
            flood.bytes_sent,
            flood.answered,
            flood.bytes_answered,
            flood.bytes_answered as f64 / flood.bytes_sent.max(1) as f64,
        );
    }
    if load.storm.is_none() {
        write_latency(out, tally);
    }
}

/// Says so if no data could be sent, or members send more than the server relays of them.
fn write_notes(out: &mut String, load: &Load, tally: &Tally) {
    if tally.sent == 0 && tally.idle > 0 {
        let _ = writeln!(
            out,
            "note       no data were sent: no session was open, or the server relays nothing in this protocol"
        );
    }
    let (packets, bytes) = load.member_limits;
    let members = u64::from(load.sessions) * u64::from(load.members);
    let offered = load.rate_per_sec as f64 / members as f64;
    let offered_bytes = offered * load.size_bytes.max(load.host_size_bytes) as f64;
    if (packets != 0 && offered > f64::from(packets))
        || (bytes != 0 && offered_bytes > f64::from(bytes))
    {
        let _ = writeln!(
            out,
            "note       each member sends {offered:.0} datagrams and {offered_bytes:.0} bytes per second; the server relays {packets} and {bytes} of them"
        );
    }
}

fn write_server(out: &mut String, document: &Document) {
    let Some(server) = &document.server else {
        return;
    };
    let _ = writeln!(
        out,
        "server     in this process, {}, {} shard(s)",
        server.io, server.shards
    );
    let told = [
        "waypost_relayed_packets_total",
        "waypost_dropped_total",
        "waypost_sessions_created_total",
        "waypost_seats_taken_total",
        "waypost_introductions_total",
        "waypost_rate_limited_total",
        "waypost_kernel",
        "waypost_ring_",
        "waypost_send_errors",
    ];
    for (name, value) in &server.counters {
        if *value > 0 && told.iter().any(|prefix| name.starts_with(prefix)) {
            let _ = writeln!(out, "           {name} {value}");
        }
    }
}

/// The sizes of payloads.
pub fn show_sizes(load: &Load) -> String {
    if load.host_size_bytes == load.size_bytes {
        format!("{} B", load.size_bytes)
    } else {
        format!(
            "{} B (the host's: {} B)",
            load.size_bytes, load.host_size_bytes
        )
    }
}

/// The offered rate.
pub fn show_rate(load: &Load) -> String {
    match load.ramp_from_per_sec {
        Some(from) => format!("{from} to {}", load.rate_per_sec),
        None => load.rate_per_sec.to_string(),
    }
}

/// A figure of a histogram.
type Figure = fn(&Histogram<u64>) -> u64;

/// The rows of a table of latencies.
pub const LATENCY_ROWS: [(&str, Figure); 6] = [
    ("p50", |times| times.value_at_quantile(0.5)),
    ("p90", |times| times.value_at_quantile(0.9)),
    ("p99", |times| times.value_at_quantile(0.99)),
    ("p99.9", |times| times.value_at_quantile(0.999)),
    ("p99.99", |times| times.value_at_quantile(0.9999)),
    ("max", |times| times.max()),
];

fn write_latency(out: &mut String, tally: &Tally) {
    let _ = writeln!(
        out,
        "latency         from the intended send time   from the real one"
    );
    let times = [&tally.latency, &tally.uncorrected].map(Times::histogram);
    for (name, value) in LATENCY_ROWS {
        let [intended, real] = times.map(|times| {
            if times.is_empty() {
                "-".to_owned()
            } else {
                show_ns(value(times))
            }
        });
        let _ = writeln!(out, "           {name:<6} {intended:>25} {real:>19}");
    }
}

/// Median, 99th percentile and maximum.
pub fn three(times: &Times) -> String {
    let times = times.histogram();
    if times.is_empty() {
        return "never".into();
    }
    format!(
        "p50 {}, p99 {}, max {}",
        show_ns(times.value_at_quantile(0.5)),
        show_ns(times.value_at_quantile(0.99)),
        show_ns(times.max())
    )
}
