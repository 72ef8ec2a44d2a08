//! What a run came to: the verdict, the expectations and the figures, in all the forms in which a report is wanted. Measures
//! nothing.

pub mod compare;
pub mod csv;
mod document;
pub mod hlog;
mod html;
pub mod merge;
mod text;

use std::path::Path;

use self::document::{Datagrams, Generator, Histograms, Sessions};
pub use self::document::{Document, Load, Verdict};
use crate::environment::Environment;
use crate::expect::{Expectation, Judgement, Outcome, percent, show_ns};
use crate::failure::Failure;
use crate::self_host::ServerReport;
use crate::tally::Tally;

/// The generator was too slow, or there was nothing to measure.
pub const EXIT_INVALID: u8 = 98;
/// An expectation failed.
pub const EXIT_UNEXPECTED: u8 = 99;
/// More slots missed than this and a run is invalid, percent.
const MISSED_MAX_PERCENT: f64 = 0.1;
/// From this on the cores' other work is to blame for a saturated generator, percent.
const WAITED_MUCH_PERCENT: f64 = 5.0;

/// Everything that is known after a run.
pub struct Run {
    /// What was asked for.
    pub load: Load,
    /// What was to be met.
    pub expectations: Vec<Expectation>,
    /// p99 of the own lag beyond which nothing is valid, nanoseconds.
    pub lag_limit_ns: u64,
    /// Repeats the choices.
    pub seed: u64,
    /// Generators that took part.
    pub processes: u32,
    /// What was counted.
    pub tally: Tally,
    /// What it ran on.
    pub environment: Environment,
    /// The server, if this process hosted it.
    pub server: Option<ServerReport>,
    /// Datagrams that sockets of this host had no room for meanwhile, those of other processes included.
    pub receive_buffer_errors: u64,
}

/// A run and what it means.
#[derive(Clone)]
pub struct Report {
    /// As it is written.
    pub document: Document,
    /// What was counted.
    pub tally: Tally,
}

impl Report {
    /// Judges a run.
    pub fn new(run: Run) -> Self {
        let tally = run.tally;
        let generator = Generator::new(&tally, &run.load, run.lag_limit_ns);
        let reason = why_invalid(&tally, &generator);
        let judge = |expectation: &Expectation| expectation.judge(&tally, reason.is_none());
        let expectations: Vec<Judgement> = run.expectations.iter().map(judge).collect();
        let document = Document {
            version: document::VERSION,
            verdict: match reason {
                Some(_) => Verdict::Invalid,
                None => Verdict::Valid,
            },
            exit_code: exit_code(&expectations, reason.is_none()),
            reason,
            expectations,
            seed: run.seed,
            processes: run.processes,
            sessions: Sessions::from(&tally),
            datagrams: Datagrams::from(&tally),
            latency_ns: (&tally.latency).into(),
            uncorrected_latency_ns: (&tally.uncorrected).into(),
            flood: tally.flood,
            generator,
            series: tally.series.clone(),
            histograms: Histograms::from(&tally),
            server: run.server,
            receive_buffer_errors: run.receive_buffer_errors,
            environment: run.environment,
            load: run.load,
        };
        Self { document, tally }
    }

    /// Reads a report that was written with `--json`.
    ///
    /// # Errors
    /// [`Failure`] if that is none, or of another version.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::configuration(
                format!("{}: {error}", path.display()),
                "name a report that waypost-loadgen --json has written",
            )
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        let document: Document = serde_json::from_str(&text).map_err(|error| wrong(&error))?;
        if document.version != document::VERSION {
            return Err(wrong(&format!("it has version {}", document.version)));
        }
        Ok(Self {
            tally: document.tally(),
            document,
        })
    }

    /// The exit code.
    pub const fn exit_code(&self) -> u8 {
        self.document.exit_code
    }

    /// The percentiles for a plotter.
    pub fn hgrm(&self) -> String {
        crate::hgrm::render(self.tally.latency.histogram())
    }

    /// The report for people.
    pub fn text(&self) -> String {
        text::render(&self.document, &self.tally)
    }

    /// The report for people, as a page that needs nothing else.
    pub fn html(&self) -> String {
        html::render(&self.document, &self.tally)
    }

    /// The report for programs.
    ///
    /// # Errors
    /// None that occurs: all keys are text.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(&self.document).map(|text| text + "\n")
    }
}

/// The exit code: an expectation that failed outweighs a generator that was too slow, because by then only counts are judged.
fn exit_code(expectations: &[Judgement], is_valid: bool) -> u8 {
    let failed = |judgement: &Judgement| judgement.outcome == Outcome::Failed;
    if expectations.iter().any(failed) {
        EXIT_UNEXPECTED
    } else if is_valid {
        0
    } else {
        EXIT_INVALID
    }
}

/// Why the figures of a run mean nothing.
fn why_invalid(tally: &Tally, generator: &Generator) -> Option<String> {
    if tally.opened == 0 {
        return Some("no session could be set up".into());
    }
    let lag_ns = generator.lag_ns.p99;
    if lag_ns > generator.lag_limit_ns {
        return Some(format!(
            "generator saturated, its own lag has a p99 of {} (limit {}); {}",
            show_ns(lag_ns),
            show_ns(generator.lag_limit_ns),
            remedy(generator),
        ));
    }
    let missed = tally.missed + tally.kernel_refused;
    let missed_percent = percent(missed, tally.sent + tally.missed);
    if missed_percent > MISSED_MAX_PERCENT {
        return Some(format!(
            "generator saturated, it missed {missed_percent:.2} % of its slots; {}",
            remedy(generator)
        ));
    }
    None
}

/// What to do about a saturated generator.
fn remedy(generator: &Generator) -> String {
    let waited = generator.waited_percent;
    if waited >= WAITED_MUCH_PERCENT {
        format!(
            "other work kept it waiting for a core {waited:.0} % of the time: stop that, or run elsewhere"
        )
    } else {
        "lower --rate or give it more --threads".into()
    }
}

#[cfg(test)]
pub mod tests;
