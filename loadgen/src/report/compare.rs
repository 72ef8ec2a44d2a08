//! Two reports beside each other: what has changed, and whether that is more than the runs themselves vary. The range of a change is
//! a bootstrap over the runs' intervals, with a fixed seed: the same files have the same answer.

use std::fmt::Write as _;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use super::document::Load;
use super::{EXIT_UNEXPECTED, Report};
use crate::expect::{percent, show_ns};
use crate::series::Interval;

const RESAMPLES: usize = 2_000;
/// With fewer intervals nobody can tell how much a run varies.
const INTERVALS_MIN: usize = 8;

/// What two reports come to.
pub struct Comparison {
    /// For people.
    pub text: String,
    /// Whether a latency is worse by more than was allowed, beyond doubt.
    pub is_worse: bool,
}

impl Comparison {
    /// The exit code.
    pub const fn exit_code(&self) -> u8 {
        if self.is_worse { EXIT_UNEXPECTED } else { 0 }
    }
}

/// What is compared interval by interval.
const LATENCIES: [(&str, f64); 4] = [
    ("latency p50", 0.5),
    ("latency p90", 0.9),
    ("latency p99", 0.99),
    ("latency p99.9", 0.999),
];

/// Compares `after` with `before`. A latency that is certainly more than `tolerance_percent` worse makes it worse.
pub fn compare(before: &Report, after: &Report, tolerance_percent: f64) -> Comparison {
    let mut text = String::new();
    let mut is_worse = false;
    write_warnings(&mut text, before, after);
    let _ = writeln!(
        text,
        "{:<22} {:>12} {:>12} {:>9}  {:<20} ",
        "", "before", "after", "change", "95 % range"
    );
    for (name, quantile) in LATENCIES {
        let [one, other] = [before, after].map(|report| {
            let times = report.tally.latency.histogram();
            times.value_at_quantile(quantile)
        });
        let range = change_range(before, after, quantile);
        let (range, judgement) = match range {
            None => ("".to_owned(), "too short to tell"),
            Some((low, high)) => {
                let shown = format!("{low:+.1} to {high:+.1} %");
                let judgement = if low > tolerance_percent {
                    is_worse = true;
                    "slower"
                } else if high < -tolerance_percent {
                    "faster"
                } else if low > 0.0 {
                    "slower, within tolerance"
                } else {
                    "no certain change"
                };
                (shown, judgement)
            }
        };
        write_row(
            &mut text,
            name,
            [show_ns(one), show_ns(other)],
            change(one, other),
            &range,
            judgement,
        );
    }
    for (name, value) in TIMES {
        let [one, other] = [before, after].map(value);
        if one > 0 || other > 0 {
            write_row(
                &mut text,
                name,
                [show_ns(one), show_ns(other)],
                change(one, other),
                "",
                "",
            );
        }
    }
    let [one, other] = [before, after].map(|r| percent(r.tally.lost(), r.tally.sent));
    let lost = [one, other].map(|lost| format!("{lost:.4} %"));
    write_row(&mut text, "lost", lost, None, "", "");
    let [one, other] =
        [before, after].map(|r| r.tally.received as f64 / r.document.load.duration_secs.max(1e-9));
    let arrived = [one, other].map(|rate| format!("{rate:.0}/s"));
    write_row(
        &mut text,
        "arrived",
        arrived,
        change(one as u64, other as u64),
        "",
        "",
    );
    let sessions = [before, after].map(|r| r.tally.failed.to_string());
    write_row(&mut text, "failed sessions", sessions, None, "", "");
    Comparison { text, is_worse }
}

type Value = fn(&Report) -> u64;

/// What has one value in each run.
const TIMES: [(&str, Value); 6] = [
    ("latency max", |r| r.document.latency_ns.max),
    ("uncorrected p99", |r| r.document.uncorrected_latency_ns.p99),
    ("hosting p99", |r| r.document.sessions.host_ns.p99),
    ("joining p99", |r| r.document.sessions.join_ns.p99),
    ("all met p99", |r| r.document.sessions.meet_ns.p99),
    ("generator's lag p99", |r| r.document.generator.lag_ns.p99),
];

fn change(before: u64, after: u64) -> Option<f64> {
    (before > 0).then(|| (after as f64 / before as f64 - 1.0) * 100.0)
}

fn write_row(
    text: &mut String,
    name: &str,
    [before, after]: [String; 2],
    change: Option<f64>,
    range: &str,
    judgement: &str,
) {
    let change = change.map_or_else(String::new, |change| format!("{change:+.1} %"));
    let line = format!("{name:<22} {before:>12} {after:>12} {change:>9}  {range:<20} {judgement}");
    let _ = writeln!(text, "{}", line.trim_end());
}

fn write_warnings(text: &mut String, before: &Report, after: &Report) {
    for (name, report) in [("before", before), ("after", after)] {
        if let Some(reason) = &report.document.reason {
            let _ = writeln!(text, "WARNING: {name} is invalid: {reason}");
        }
    }
    let without_target = |load: &Load| Load {
        target: String::new(),
        member_limits: (0, 0),
        ..load.clone()
    };
    let [one, other] = [before, after].map(|r| without_target(&r.document.load));
    if one != other {
        let _ = writeln!(text, "WARNING: these are not the same load");
    }
    let host = |report: &Report| {
        let environment = &report.document.environment;
        let host = (environment.kernel.clone(), environment.cpu.clone());
        (host, environment.cores, environment.build.clone())
    };
    if host(before) != host(after) {
        let _ = writeln!(
            text,
            "WARNING: these ran on different hosts, kernels or builds"
        );
    }
}

/// The range in which the change of a quantile's median over the intervals lies with 95 %, percent.
fn change_range(before: &Report, after: &Report, quantile: f64) -> Option<(f64, f64)> {
    let values = |report: &Report| -> Vec<f64> {
        let intervals = report.document.series.intervals.iter();
        let with_data = intervals.filter(|interval: &&Interval| interval.latency.count() > 0);
        with_data
            .map(|interval| interval.latency.quantile(quantile) as f64)
            .collect()
    };
    let [before, after] = [values(before), values(after)];
    if before.len().min(after.len()) < INTERVALS_MIN {
        return None;
    }
    let mut rng = StdRng::seed_from_u64(0);
    let mut median_of_resample = |values: &[f64]| {
        let mut drawn: Vec<f64> = (0..values.len())
            .map(|_| values[rng.random_range(0..values.len())])
            .collect();
        drawn.sort_unstable_by(f64::total_cmp);
        drawn[drawn.len() / 2]
    };
    let mut changes: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let [one, other] = [&before, &after].map(|values| median_of_resample(values));
            (other / one.max(1.0) - 1.0) * 100.0
        })
        .collect();
    changes.sort_unstable_by(f64::total_cmp);
    let at = |share: f64| changes[(share * (RESAMPLES - 1) as f64) as usize];
    Some((at(0.025), at(0.975)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{good, report};
    use crate::tally::Tally;

    /// Latencies that vary a little around so many microseconds.
    fn around(us: u64) -> Report {
        let mut tally: Tally = good();
        tally.series = crate::series::Series::new(std::time::Duration::from_secs(1));
        for n in 0..1_000 {
            let interval = tally.series.at(n * 1_000_000).unwrap();
            interval.latency.record((us + n % 13) * 1_000);
        }
        report(&[], tally)
    }

    #[test]
    fn a_certain_change_is_told_from_noise() {
        let same = compare(&around(200), &around(200), 0.0);
        assert!(same.text.contains("no certain change"), "{}", same.text);
        assert_eq!(same.exit_code(), 0);
        let slower = compare(&around(200), &around(300), 5.0);
        assert!(slower.text.contains("slower"), "{}", slower.text);
        assert_eq!(slower.exit_code(), 99);
        let faster = compare(&around(300), &around(200), 5.0);
        assert!(faster.text.contains("faster"), "{}", faster.text);
        assert_eq!(faster.exit_code(), 0);
        let tolerated = compare(&around(200), &around(300), 80.0);
        assert!(tolerated.text.contains("within tolerance"));
        assert!(!tolerated.is_worse && !same.text.contains("WARNING"));
    }

    #[test]
    fn what_cannot_be_compared_is_said() {
        let short = report(&["--duration", "0.2"], Tally::default());
        let text = compare(&around(200), &short, 5.0).text;
        for said in ["too short to tell", "not the same load", "after is invalid"] {
            assert!(text.contains(said), "{said}: {text}");
        }
    }
}
