//! The highest rate at which the bounds hold: doubled until they do not, then halved in between, and all that three times. The bounds
//! are the expectations of `--expect`. Where the generator gives in first it says so: then the rate is a lower bound.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::cli::Plan;
use crate::environment::Environment;
use crate::expect::{Outcome, percent, show_ns};
use crate::failure::Failure;
use crate::report::{EXIT_INVALID, EXIT_UNEXPECTED, Load, Report};
use crate::run::Host;

/// Searches.
const REPEATS: usize = 3;
/// A search ends when what held and what did not are this close.
const CLOSE: f64 = 1.05;
/// Rates tried in one search.
const PROBES_MAX: usize = 24;
/// Version of the JSON.
const VERSION: u32 = 1;

/// What was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// Version of the JSON.
    pub version: u32,
    /// `find_max`.
    pub kind: String,
    /// The exit code.
    pub exit_code: u8,
    /// What had to hold.
    pub bounds: Vec<String>,
    /// The median of the searches, datagrams per second; 0 if not even the lowest rate held.
    pub rate_per_sec: u64,
    /// The least of the searches.
    pub least_per_sec: u64,
    /// The most.
    pub most_per_sec: u64,
    /// Whether the generator was the limit in any search.
    pub limited_by_generator: bool,
    /// The searches.
    pub searches: Vec<Searched>,
    /// The load of the last probe.
    pub load: Load,
    /// What it ran on.
    pub environment: Environment,
}

/// One search.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Searched {
    /// The highest rate that held; 0 if none did.
    pub rate_per_sec: u64,
    /// What was wrong with the lowest that did not hold.
    pub limit: Option<String>,
    /// What was tried.
    pub probes: Vec<Probe>,
}

/// One rate.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Probe {
    /// Offered.
    pub rate_per_sec: u64,
    /// Whether all bounds held.
    pub holds: bool,
    /// Whether the generator was too slow.
    pub is_generator: bool,
    /// Why it does not hold.
    pub why: Option<String>,
    /// p99 of the latency.
    pub p99_ns: u64,
    /// Lost.
    pub lost_percent: f64,
    /// p99 of the generator's lag.
    pub lag_p99_ns: u64,
}

/// A search: which rate to try next.
#[derive(Clone, Copy, Debug)]
struct Search {
    /// The highest that held, 0 at first.
    holds: u64,
    /// The lowest that did not.
    fails: Option<u64>,
    next: u64,
}

impl Search {
    const fn from(first: u64) -> Self {
        Self {
            holds: 0,
            fails: None,
            next: first,
        }
    }

    fn next(&self) -> Option<u64> {
        let is_close = |fails: u64| fails as f64 <= self.holds.max(1) as f64 * CLOSE;
        (self.next > self.holds && !self.fails.is_some_and(is_close)).then_some(self.next)
    }

    fn take(&mut self, holds: bool) {
        if holds {
            self.holds = self.next;
        } else {
            self.fails = Some(self.next);
        }
        self.next = match self.fails {
            None => self.holds * 2,
            // Nothing has held: far down quickly.
            Some(fails) if self.holds == 0 => fails / 4,
            Some(fails) => self.holds + (fails - self.holds) / 2,
        };
    }
}

impl Probe {
    fn new(report: &Report) -> Self {
        let (document, tally) = (&report.document, &report.tally);
        let mut failed = document.expectations.iter();
        let failed = failed.find(|judgement| judgement.outcome != Outcome::Met);
        let why = match (&document.reason, failed) {
            (Some(reason), _) => Some(reason.clone()),
            (None, Some(failed)) => Some(format!("{} ({})", failed.expectation, failed.measured)),
            (None, None) => None,
        };
        Self {
            rate_per_sec: document.load.rate_per_sec,
            holds: why.is_none(),
            is_generator: document.reason.is_some(),
            why,
            p99_ns: document.latency_ns.p99,
            lost_percent: percent(tally.lost(), tally.sent),
            lag_p99_ns: document.generator.lag_ns.p99,
        }
    }
}

/// Searches.
///
/// # Errors
/// [`Failure`] as for a run.
pub fn find(plan: &Plan) -> Result<Found, Failure> {
    let host = Host::open(plan)?;
    let mut searches = Vec::new();
    let mut last = None;
    for n in 1..=REPEATS {
        let mut search = Search::from(plan.rate);
        let mut probes = Vec::new();
        while let Some(rate) = search.next().filter(|_| probes.len() < PROBES_MAX) {
            let report = host.load(&Plan {
                rate,
                ..plan.clone()
            })?;
            let probe = Probe::new(&report);
            eprintln!("search {n}: {}", show_probe(&probe));
            search.take(probe.holds);
            probes.push(probe);
            last = Some(report);
        }
        let limit = probes.iter().filter(|probe| !probe.holds);
        let limit = limit.min_by_key(|probe| probe.rate_per_sec);
        searches.push(Searched {
            rate_per_sec: search.holds,
            limit: limit.and_then(|probe| probe.why.clone()),
            probes,
        });
    }
    host.finish();
    let last = last.ok_or_else(|| Failure::internal("nothing was tried", "raise --rate"))?;
    Ok(sum_up(searches, &last))
}

fn sum_up(searches: Vec<Searched>, last: &Report) -> Found {
    let mut rates: Vec<u64> = searches.iter().map(|search| search.rate_per_sec).collect();
    rates.sort_unstable();
    let rate_per_sec = rates[rates.len() / 2];
    let limited_by_generator = searches.iter().any(|search| {
        let mut failed: Vec<&Probe> = search.probes.iter().filter(|probe| !probe.holds).collect();
        failed.sort_by_key(|probe| probe.rate_per_sec);
        failed.first().is_some_and(|probe| probe.is_generator)
    });
    let document = &last.document;
    let bounds = document.expectations.iter();
    Found {
        version: VERSION,
        kind: "find_max".to_owned(),
        exit_code: match (rate_per_sec, limited_by_generator) {
            (0, true) => EXIT_INVALID,
            (0, false) => EXIT_UNEXPECTED,
            _ => 0,
        },
        bounds: bounds
            .map(|judgement| judgement.expectation.clone())
            .collect(),
        rate_per_sec,
        least_per_sec: rates[0],
        most_per_sec: rates[rates.len() - 1],
        limited_by_generator,
        searches,
        load: document.load.clone(),
        environment: document.environment.clone(),
    }
}

fn show_probe(probe: &Probe) -> String {
    let mut text = format!(
        "{}/s {}: p99 {}, {:.4} % lost, own lag p99 {}",
        probe.rate_per_sec,
        if probe.holds {
            "holds"
        } else {
            "does not hold"
        },
        show_ns(probe.p99_ns),
        probe.lost_percent,
        show_ns(probe.lag_p99_ns),
    );
    if let Some(why) = &probe.why {
        let _ = write!(text, "; {why}");
    }
    text
}

impl Found {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let bounds = self.bounds.join(" and ");
        let _ = if self.rate_per_sec == 0 {
            writeln!(out, "NONE: no rate was found at which {bounds} holds")
        } else {
            let prefix = if self.limited_by_generator {
                "AT LEAST"
            } else {
                "HIGHEST RATE"
            };
            writeln!(
                out,
                "{prefix}: {} datagrams/s with {bounds}; {} searches found {} to {}",
                self.rate_per_sec,
                self.searches.len(),
                self.least_per_sec,
                self.most_per_sec
            )
        };
        if self.limited_by_generator {
            let _ = writeln!(
                out,
                "note       the generator, not the server, was the limit: give it more --threads or another host"
            );
        }
        let load = &self.load;
        let _ = writeln!(
            out,
            "\nload       {} sessions of {}, {} B, {} at {}",
            load.sessions, load.members, load.size_bytes, load.protocol, load.target
        );
        for (n, search) in self.searches.iter().enumerate() {
            let limit = search.limit.as_deref().unwrap_or("no limit was met");
            let _ = writeln!(
                out,
                "search {}   {}/s, beyond that: {limit}",
                n + 1,
                search.rate_per_sec
            );
        }
        let environment = &self.environment;
        let _ = writeln!(
            out,
            "host       {}, {}, {} cores, {} build",
            environment.kernel, environment.cpu, environment.cores, environment.build
        );
        out
    }

    /// For programs.
    ///
    /// # Errors
    /// None that occurs: all keys are text.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{good, report};

    /// What a search finds for a server that carries so much.
    fn found(first: u64, carries: u64) -> (u64, usize) {
        let mut search = Search::from(first);
        let mut probes = 0;
        while let Some(rate) = search.next() {
            search.take(rate <= carries);
            probes += 1;
        }
        (search.holds, probes)
    }

    #[test]
    fn a_search_comes_close_from_below_whatever_it_begins_with() {
        for carries in [50, 1_000, 77_777, 3_000_000] {
            for first in [1, 1_000, 20_000, 10_000_000] {
                let (rate, probes) = found(first, carries);
                assert!(rate <= carries, "{first} {carries}: {rate}");
                assert!(
                    rate as f64 * 1.06 >= carries as f64,
                    "{first} {carries}: {rate}"
                );
                assert!(probes <= 30, "{first} {carries}: {probes}");
            }
        }
        assert_eq!(found(1_000, 0).0, 0, "it ends where nothing holds");
    }

    #[test]
    fn the_median_counts_and_the_generator_is_named() {
        let bounds = ["--expect", "loss<=1%", "--expect", "p99<=1ms"];
        let holding = report(&bounds, good());
        let mut lagging = good();
        (0..100).for_each(|_| lagging.lag.record(2_000_000));
        let saturated = report(&bounds, lagging);
        let search = |rate_per_sec: u64, last: &Report| {
            let probes = vec![Probe::new(&holding), Probe::new(last)];
            let limit = probes[1].why.clone();
            Searched {
                rate_per_sec,
                limit,
                probes,
            }
        };
        let of = |last: &Report| {
            let searches = [300, 100, 200].map(|rate| search(rate, last));
            sum_up(searches.to_vec(), &holding)
        };
        let plain = of(&holding);
        assert_eq!((plain.least_per_sec, plain.rate_per_sec), (100, 200));
        assert!(
            plain
                .text()
                .starts_with("HIGHEST RATE: 200 datagrams/s with loss<=1% and p99<=1ms")
        );
        let limited = of(&saturated);
        assert!(
            limited.text().starts_with("AT LEAST: 200"),
            "{}",
            limited.text()
        );
        assert_eq!(limited.exit_code, 0);
    }
}
