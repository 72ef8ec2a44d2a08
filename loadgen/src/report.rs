//! What a run came to: the verdict, the expectations and the figures, as text and as JSON. Measures nothing.

use std::fmt::Write as _;
use std::net::SocketAddr;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cli::Plan;
use crate::environment::Environment;
use crate::expect::{Judgement, Outcome, percent, show_ns};
use crate::self_host::ServerReport;
use crate::tally::{FloodTally, Tally, Times};

/// Version of the JSON: it changes when a field changes its name or meaning or goes away.
const JSON_VERSION: u32 = 1;
/// The generator was too slow, or there was nothing to measure.
const EXIT_INVALID: u8 = 98;
/// An expectation failed.
const EXIT_UNEXPECTED: u8 = 99;
/// More slots missed than this and a run is invalid, percent.
const MISSED_MAX_PERCENT: f64 = 0.1;

/// From this on the cores' other work is to blame for a saturated generator, percent.
const WAITED_MUCH_PERCENT: f64 = 5.0;

/// Everything that is known after a run.
pub struct Run {
    /// What was asked for.
    pub plan: Plan,
    /// What was counted.
    pub tally: Tally,
    /// The server's address.
    pub target: SocketAddr,
    /// `uring` or `mmsg`.
    pub backend: &'static str,
    /// What it ran on.
    pub environment: Environment,
    /// The server, if this process hosted it.
    pub server: Option<ServerReport>,
    /// Datagrams that sockets of this host had no room for meanwhile, those of other processes included.
    pub receive_buffer_errors: u64,
}

/// A run and what it means.
pub struct Report {
    run: Run,
    /// Why the figures mean nothing, if so.
    invalid: Option<String>,
    judgements: Vec<Judgement>,
}

impl Report {
    /// Judges a run.
    pub fn new(run: Run) -> Self {
        let invalid = why_invalid(&run);
        let judge = |expectation: &crate::expect::Expectation| {
            expectation.judge(&run.tally, invalid.is_none())
        };
        Self {
            judgements: run.plan.expectations.iter().map(judge).collect(),
            invalid,
            run,
        }
    }

    /// The exit code: an expectation that failed outweighs a generator that was too slow, because by then only counts are
    /// judged.
    pub fn exit_code(&self) -> u8 {
        let failed = |judgement: &Judgement| judgement.outcome == Outcome::Failed;
        if self.judgements.iter().any(failed) {
            EXIT_UNEXPECTED
        } else if self.invalid.is_some() {
            EXIT_INVALID
        } else {
            0
        }
    }

    /// The percentiles for a plotter.
    pub fn hgrm(&self) -> String {
        crate::hgrm::render(self.run.tally.latency.histogram())
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let Run {
            plan,
            tally,
            environment,
            ..
        } = &self.run;
        let mut out = String::new();
        self.write_verdict(&mut out);
        let _ = writeln!(
            out,
            "\nsessions   {} set up with {} members each in {}, {} failed, {} replaced; {} at {}",
            tally.opened,
            plan.members,
            show_ns(tally.filling_ns),
            tally.failed,
            tally.replaced,
            plan.protocol.name(),
            self.run.target
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
        let secs = plan.duration.as_secs_f64();
        let per_sec = |count: u64| (count as f64 / secs).round();
        let _ = writeln!(
            out,
            "load       {} at {}/s for {secs} s: {} sent ({}/s), {} received ({}/s)",
            show_sizes(plan.sizes),
            plan.rate,
            tally.sent,
            per_sec(tally.sent),
            tally.received,
            per_sec(tally.received),
        );
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
        write_latency(&mut out, tally);
        let _ = writeln!(
            out,
            "generator  lag {}; {} slots missed, {} idle, {} refused by the kernel; {} thread(s) busy {:.0} %, kept waiting for a core {:.0} %, {}",
            three(&tally.lag),
            tally.missed,
            tally.idle,
            tally.kernel_refused,
            plan.threads,
            percent_of_threads(plan, tally.cpu_ns),
            percent_of_threads(plan, tally.waited_ns),
            self.run.backend,
        );
        self.write_limits(&mut out);
        self.write_server(&mut out);
        let _ = writeln!(
            out,
            "host       {}, {}, {} cores, {} build; {} datagrams found a full receive buffer",
            environment.kernel,
            environment.cpu,
            environment.cores,
            environment.build,
            self.run.receive_buffer_errors,
        );
        let _ = writeln!(out, "seed       {}", plan.seed);
        out
    }

    fn write_verdict(&self, out: &mut String) {
        let tally = &self.run.tally;
        match &self.invalid {
            Some(why) => {
                let _ = writeln!(out, "INVALID: {why}");
            }
            None => {
                let _ = writeln!(out, "VALID: the generator kept its schedule");
            }
        }
        let wrong = tally.misdelivered + tally.corrupted + tally.duplicated;
        if wrong > 0 {
            let _ = writeln!(
                out,
                "FAULTY: datagrams were misdelivered, corrupted or duplicated"
            );
        }
        for judgement in &self.judgements {
            let mark = match judgement.outcome {
                Outcome::Met => "✓",
                Outcome::Failed => "✗",
                Outcome::NotJudged => "?",
            };
            let note = match judgement.outcome {
                Outcome::NotJudged => ", not judged",
                _ => "",
            };
            let _ = writeln!(
                out,
                "{mark} {}   ({}{note})",
                judgement.expectation, judgement.measured
            );
        }
    }

    /// Says so if members send more than the server relays of them.
    fn write_limits(&self, out: &mut String) {
        if self.run.tally.sent == 0 && self.run.tally.idle > 0 {
            let _ = writeln!(
                out,
                "note       no data were sent: no session was open, or the server relays nothing in this protocol"
            );
        }
        let (plan, (packets, bytes)) = (&self.run.plan, self.run.tally.limits);
        let members = u64::from(plan.sessions) * u64::from(plan.members);
        let offered = plan.rate as f64 / members as f64;
        let offered_bytes = offered * plan.sizes.others.max(plan.sizes.host) as f64;
        if (packets != 0 && offered > f64::from(packets))
            || (bytes != 0 && offered_bytes > f64::from(bytes))
        {
            let _ = writeln!(
                out,
                "note       each member sends {offered:.0} datagrams and {offered_bytes:.0} bytes per second; the server relays {packets} and {bytes} of them"
            );
        }
    }

    fn write_server(&self, out: &mut String) {
        let Some(server) = &self.run.server else {
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

    /// The report for programs.
    ///
    /// # Errors
    /// None that occurs: all keys are text.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        let Run {
            plan,
            tally,
            environment,
            server,
            ..
        } = &self.run;
        let document = Document {
            version: JSON_VERSION,
            verdict: if self.invalid.is_some() {
                "invalid"
            } else {
                "valid"
            },
            reason: self.invalid.as_deref(),
            exit_code: self.exit_code(),
            expectations: &self.judgements,
            seed: plan.seed,
            load: LoadFigures {
                target: self.run.target.to_string(),
                protocol: plan.protocol.name(),
                sessions: plan.sessions,
                members: plan.members,
                rate_per_sec: plan.rate,
                size_bytes: plan.sizes.others,
                host_size_bytes: plan.sizes.host,
                warm_up_secs: plan.warm_up.as_secs_f64(),
                duration_secs: plan.duration.as_secs_f64(),
                churn_per_sec: plan.churn,
                threads: plan.threads,
                io: self.run.backend,
            },
            sessions: SessionFigures {
                set_up: tally.opened,
                failed: tally.failed,
                set_up_secs: tally.filling_ns as f64 / 1e9,
                replaced: tally.replaced,
                reasons: &tally.reasons,
                host_ns: (&tally.host).into(),
                join_ns: (&tally.join).into(),
                meet_ns: (&tally.meet).into(),
            },
            datagrams: DatagramFigures {
                sent: tally.sent,
                received: tally.received,
                lost: tally.lost(),
                reordered: tally.reordered,
                duplicated: tally.duplicated,
                corrupted: tally.corrupted,
                misdelivered: tally.misdelivered,
                refused: tally.refused,
            },
            latency_ns: (&tally.latency).into(),
            uncorrected_latency_ns: (&tally.uncorrected).into(),
            flood: tally.flood,
            generator: GeneratorFigures {
                lag_ns: (&tally.lag).into(),
                lag_limit_ns: plan.lag_limit.as_nanos(),
                slots_missed: tally.missed,
                slots_idle: tally.idle,
                kernel_refused: tally.kernel_refused,
                busy_percent: percent_of_threads(plan, tally.cpu_ns),
                waited_percent: percent_of_threads(plan, tally.waited_ns),
            },
            server: server.as_ref(),
            receive_buffer_errors: self.run.receive_buffer_errors,
            environment,
        };
        serde_json::to_string_pretty(&document).map(|text| text + "\n")
    }
}

/// A time that the generator's threads spent together, as a share of all they had.
fn percent_of_threads(plan: &Plan, ns: u64) -> f64 {
    let wall_ns = (plan.warm_up + plan.duration).as_nanos() * plan.threads as u128;
    ns as f64 * 100.0 / wall_ns.max(1) as f64
}

/// Why the figures of a run mean nothing.
fn why_invalid(run: &Run) -> Option<String> {
    let tally = &run.tally;
    if tally.opened == 0 {
        return Some("no session could be set up".into());
    }
    let lag_ns = tally.lag.histogram().value_at_quantile(0.99);
    if u128::from(lag_ns) > run.plan.lag_limit.as_nanos() {
        return Some(format!(
            "generator saturated, its own lag has a p99 of {} (limit {}); {}",
            show_ns(lag_ns),
            show_ns(u64::try_from(run.plan.lag_limit.as_nanos()).unwrap_or(u64::MAX)),
            remedy(run),
        ));
    }
    let missed = tally.missed + tally.kernel_refused;
    let missed_percent = percent(missed, tally.sent + tally.missed);
    if missed_percent > MISSED_MAX_PERCENT {
        return Some(format!(
            "generator saturated, it missed {missed_percent:.2} % of its slots; {}",
            remedy(run)
        ));
    }
    None
}

fn show_sizes(sizes: crate::worker::Sizes) -> String {
    if sizes.host == sizes.others {
        format!("{} B", sizes.others)
    } else {
        format!("{} B (the host's: {} B)", sizes.others, sizes.host)
    }
}

/// What to do about a saturated generator.
fn remedy(run: &Run) -> String {
    let waited = percent_of_threads(&run.plan, run.tally.waited_ns);
    if waited >= WAITED_MUCH_PERCENT {
        format!(
            "other work kept it waiting for a core {waited:.0} % of the time: stop that, or run elsewhere"
        )
    } else {
        "lower --rate or give it more --threads".into()
    }
}

fn write_latency(out: &mut String, tally: &Tally) {
    let _ = writeln!(
        out,
        "latency         from the intended send time   from the real one"
    );
    let times = [&tally.latency, &tally.uncorrected].map(Times::histogram);
    let mut row = |name: &str, value: fn(&Histogram<u64>) -> u64| {
        let [intended, real] = times.map(|times| {
            if times.is_empty() {
                "-".to_owned()
            } else {
                show_ns(value(times))
            }
        });
        let _ = writeln!(out, "           {name:<6} {intended:>25} {real:>19}");
    };
    row("p50", |times| times.value_at_quantile(0.5));
    row("p90", |times| times.value_at_quantile(0.9));
    row("p99", |times| times.value_at_quantile(0.99));
    row("p99.9", |times| times.value_at_quantile(0.999));
    row("p99.99", |times| times.value_at_quantile(0.9999));
    row("max", |times| times.max());
}

/// Median, 99th percentile and maximum.
fn three(times: &Times) -> String {
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

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    verdict: &'static str,
    reason: Option<&'a str>,
    exit_code: u8,
    expectations: &'a [Judgement],
    seed: u64,
    load: LoadFigures,
    sessions: SessionFigures<'a>,
    datagrams: DatagramFigures,
    latency_ns: TimeFigures,
    uncorrected_latency_ns: TimeFigures,
    flood: FloodTally,
    generator: GeneratorFigures,
    server: Option<&'a ServerReport>,
    receive_buffer_errors: u64,
    environment: &'a Environment,
}

#[derive(Serialize)]
struct LoadFigures {
    target: String,
    protocol: &'static str,
    sessions: u32,
    members: u8,
    rate_per_sec: u64,
    size_bytes: usize,
    host_size_bytes: usize,
    warm_up_secs: f64,
    duration_secs: f64,
    churn_per_sec: f64,
    threads: usize,
    io: &'static str,
}

#[derive(Serialize)]
struct SessionFigures<'a> {
    set_up: u64,
    failed: u64,
    set_up_secs: f64,
    replaced: u64,
    reasons: &'a std::collections::BTreeMap<String, u64>,
    host_ns: TimeFigures,
    join_ns: TimeFigures,
    meet_ns: TimeFigures,
}

#[derive(Serialize)]
struct DatagramFigures {
    sent: u64,
    received: u64,
    lost: u64,
    reordered: u64,
    duplicated: u64,
    corrupted: u64,
    misdelivered: u64,
    refused: u64,
}

#[derive(Serialize)]
struct GeneratorFigures {
    lag_ns: TimeFigures,
    lag_limit_ns: u128,
    slots_missed: u64,
    slots_idle: u64,
    kernel_refused: u64,
    busy_percent: f64,
    waited_percent: f64,
}

#[derive(Serialize)]
struct TimeFigures {
    count: u64,
    min: u64,
    mean: f64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    p9999: u64,
    max: u64,
}

impl From<&Times> for TimeFigures {
    fn from(times: &Times) -> Self {
        let times = times.histogram();
        Self {
            count: times.len(),
            min: if times.is_empty() { 0 } else { times.min() },
            mean: times.mean(),
            p50: times.value_at_quantile(0.5),
            p90: times.value_at_quantile(0.9),
            p99: times.value_at_quantile(0.99),
            p999: times.value_at_quantile(0.999),
            p9999: times.value_at_quantile(0.9999),
            max: times.max(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Asked, read};

    fn report(options: &[&str], tally: Tally) -> Report {
        let arguments = ["waypost-loadgen", "--seed", "7"]
            .iter()
            .chain(options)
            .map(|&text| text.to_owned())
            .collect();
        let Ok(Asked::Run(plan)) = read(arguments, 2) else {
            panic!("a plan");
        };
        Report::new(Run {
            environment: Environment::detect(2, plan.command_line.clone()),
            server: None,
            backend: "mmsg",
            target: "127.0.0.1:9".parse().unwrap(),
            receive_buffer_errors: 0,
            tally,
            plan: *plan,
        })
    }

    fn good() -> Tally {
        let mut tally = Tally {
            opened: 1000,
            sent: 1000,
            received: 998,
            ..Tally::default()
        };
        for _ in 0..998 {
            tally.latency.record(250_000);
            tally.lag.record(10_000);
        }
        tally
    }

    #[test]
    fn the_verdict_comes_first_and_the_expectations_next() {
        let report = report(&["--expect", "loss<1%", "--expect", "loss==0"], good());
        let text = report.text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("VALID"), "{text}");
        assert!(lines[1].starts_with("✓ loss<1%"), "{text}");
        assert!(lines[2].starts_with("✗ loss==0   (2)"), "{text}");
        assert_eq!(report.exit_code(), 99);
    }

    #[test]
    fn a_saturated_generator_invalidates_times_but_not_counts() {
        let mut lagging = good();
        (0..100).for_each(|_| lagging.lag.record(2_000_000));
        let with = |options: &[&str], tally: &Tally| report(options, tally.clone());
        let plain = with(&[], &lagging);
        assert!(
            plain.text().starts_with("INVALID: generator saturated"),
            "{}",
            plain.text()
        );
        assert!(plain.text().contains("lower --rate"));
        assert_eq!(plain.exit_code(), 98);
        lagging.waited_ns = 600_000_000;
        let crowded = with(&[], &lagging).text();
        assert!(
            crowded.contains("kept it waiting for a core 10 % of the time"),
            "{crowded}"
        );
        let time = with(&["--expect", "p99<1us"], &lagging);
        assert!(time.text().contains("? p99<1us"));
        assert_eq!(time.exit_code(), 98);
        assert_eq!(with(&["--expect", "loss==0"], &lagging).exit_code(), 99);
        assert_eq!(with(&["--lag-limit", "5ms"], &lagging).exit_code(), 0);
    }

    #[test]
    fn missed_slots_invalidate() {
        let missed = |missed, kernel_refused| Tally {
            missed,
            kernel_refused,
            ..good()
        };
        assert_eq!(report(&[], missed(1, 0)).exit_code(), 0);
        assert_eq!(report(&[], missed(2, 0)).exit_code(), 98);
        assert_eq!(report(&[], missed(0, 2)).exit_code(), 98);
    }

    #[test]
    fn without_a_session_nothing_is_valid() {
        let mut tally = Tally::default();
        tally.fail("the server does not answer".into());
        let report = report(&[], tally);
        assert_eq!(report.exit_code(), 98);
        assert!(report.text().contains("1 x the server does not answer"));
    }

    #[test]
    fn the_json_has_version_verdict_figures_and_environment() {
        let report = report(&["--user=1:a:c2VjcmV0", "--expect", "p99<1ms"], good());
        let text = report.json().unwrap();
        assert!(!text.contains("c2VjcmV0"));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["version"], 1);
        assert_eq!(json["verdict"], "valid");
        assert_eq!(json["exit_code"], 0);
        assert_eq!(json["seed"], 7);
        assert_eq!(json["expectations"][0]["outcome"], "met");
        assert_eq!(json["datagrams"]["lost"], 2);
        assert_eq!(json["load"]["sessions"], 1000);
        let p99 = json["latency_ns"]["p99"].as_u64().unwrap();
        assert!((250_000..251_000).contains(&p99));
        for field in ["kernel", "cpu", "cores", "flags", "build"] {
            assert!(!json["environment"][field].is_null(), "{field}");
        }
    }

    #[test]
    fn members_that_send_more_than_is_relayed_are_told() {
        let rate = ["--rate", "40000"];
        let mut tally = good();
        tally.limits = (10, 0);
        assert!(report(&rate, tally.clone()).text().contains("relays 10"));
        tally.limits = (20, 1_000_000);
        assert!(!report(&rate, tally).text().contains("\nnote "));
    }
}
