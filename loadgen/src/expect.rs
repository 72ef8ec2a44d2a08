//! Expectations on the command line, `p99<500us`: reading them and holding a tally against them. Never prints.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::tally::Tally;

/// A condition that a run has to meet.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    text: String,
    operator: Operator,
    condition: Condition,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Condition {
    Time { what: Time, bound_ns: u64 },
    Count { what: Count, bound: f64 },
    Share { what: Count, bound_percent: f64 },
}

/// A figure of one of the histograms.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Time {
    of: Kind,
    statistic: Statistic,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Latency,
    Uncorrected,
    Lag,
    Host,
    Join,
    Meet,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Statistic {
    Quantile(f64),
    Max,
    Mean,
}

/// The kinds by prefix.
const KINDS: [(&str, Kind); 6] = [
    ("", Kind::Latency),
    ("uncorrected_", Kind::Uncorrected),
    ("lag_", Kind::Lag),
    ("host_", Kind::Host),
    ("join_", Kind::Join),
    ("meet_", Kind::Meet),
];

const STATISTICS: [(&str, Statistic); 8] = [
    ("p50", Statistic::Quantile(0.5)),
    ("p90", Statistic::Quantile(0.9)),
    ("p95", Statistic::Quantile(0.95)),
    ("p99", Statistic::Quantile(0.99)),
    ("p999", Statistic::Quantile(0.999)),
    ("p9999", Statistic::Quantile(0.9999)),
    ("max", Statistic::Max),
    ("mean", Statistic::Mean),
];

/// Something counted, and what it is a share of.
#[derive(Clone, Copy)]
struct Count {
    name: &'static str,
    value: fn(&Tally) -> u64,
    of: fn(&Tally) -> u64,
}

impl PartialEq for Count {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl fmt::Debug for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

const COUNTS: [Count; 11] = [
    Count {
        name: "loss",
        value: Tally::lost,
        of: |t| t.sent,
    },
    Count {
        name: "duplicated",
        value: |t| t.duplicated,
        of: |t| t.received,
    },
    Count {
        name: "corrupted",
        value: |t| t.corrupted,
        of: |t| t.received,
    },
    Count {
        name: "misdelivered",
        value: |t| t.misdelivered,
        of: |t| t.received,
    },
    Count {
        name: "reordered",
        value: |t| t.reordered,
        of: |t| t.received,
    },
    Count {
        name: "refused",
        value: |t| t.refused,
        of: |t| t.received,
    },
    Count {
        name: "failed_sessions",
        value: |t| t.failed,
        of: |t| t.opened + t.failed,
    },
    Count {
        name: "sessions",
        value: |t| t.opened,
        of: |t| t.opened + t.failed,
    },
    Count {
        name: "sent",
        value: |t| t.sent,
        of: |t| t.sent + t.missed,
    },
    Count {
        name: "received",
        value: |t| t.received,
        of: |t| t.sent,
    },
    Count {
        name: "missed",
        value: |t| t.missed,
        of: |t| t.sent + t.missed,
    },
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    Equal,
}

/// Two-letter operators first, because the others begin them.
const OPERATORS: [(&str, Operator); 5] = [
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("==", Operator::Equal),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

impl Operator {
    fn holds<T: PartialOrd>(self, value: &T, bound: &T) -> bool {
        match self {
            Self::Less => value < bound,
            Self::LessOrEqual => value <= bound,
            Self::Greater => value > bound,
            Self::GreaterOrEqual => value >= bound,
            Self::Equal => value == bound,
        }
    }
}

/// What an expectation came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It is met.
    Met,
    /// It is not.
    Failed,
    /// It is about time, and the generator was too slow to know.
    NotJudged,
}

/// An expectation, held against a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judgement {
    /// As it was written.
    pub expectation: String,
    /// What was measured.
    pub measured: String,
    /// The outcome.
    pub outcome: Outcome,
}

impl Expectation {
    /// Reads `METRIC OPERATOR BOUND`.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let at = text
            .find(['<', '>', '='])
            .ok_or("there is no operator; write one of < <= > >= == as in p99<500us")?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let (operator, bound) = OPERATORS
            .iter()
            .find_map(|(sign, operator)| Some((*operator, rest.strip_prefix(sign)?.trim())))
            .ok_or("the operator is none of < <= > >= ==")?;
        let condition = if let Some(what) = time(name) {
            let bound_ns = u64::try_from(parse_duration(bound)?.as_nanos())
                .map_err(|_| "the bound is too long")?;
            Condition::Time { what, bound_ns }
        } else if let Some(what) = COUNTS.into_iter().find(|count| count.name == name) {
            let number = |text: &str| {
                text.trim()
                    .parse::<f64>()
                    .ok()
                    .filter(|number| number.is_finite() && *number >= 0.0)
                    .ok_or_else(|| format!("`{bound}` is no count like 0 and no share like 0.1%"))
            };
            match bound.strip_suffix('%') {
                Some(percent) => Condition::Share {
                    what,
                    bound_percent: number(percent)?,
                },
                None => Condition::Count {
                    what,
                    bound: number(bound)?,
                },
            }
        } else {
            return Err(format!(
                "there is no metric `{name}`; there are {}",
                metric_names()
            ));
        };
        Ok(Self {
            text: text.trim().to_owned(),
            operator,
            condition,
        })
    }

    /// Holds it against a run. `times_mean_something` is false when the generator was saturated.
    pub fn judge(&self, tally: &Tally, times_mean_something: bool) -> Judgement {
        let (measured, met) = match self.condition {
            Condition::Time { what, bound_ns } => match what.measure(tally) {
                Some(ns) => (
                    show_ns(ns),
                    times_mean_something.then(|| self.operator.holds(&ns, &bound_ns)),
                ),
                None => ("nothing".to_owned(), Some(false)),
            },
            Condition::Count { what, bound } => {
                let value = (what.value)(tally);
                let met = self.operator.holds(&(value as f64), &bound);
                (value.to_string(), Some(met))
            }
            Condition::Share {
                what,
                bound_percent,
            } => {
                let percent = percent((what.value)(tally), (what.of)(tally));
                let met = self.operator.holds(&percent, &bound_percent);
                (format!("{percent:.4} %"), Some(met))
            }
        };
        Judgement {
            expectation: self.text.clone(),
            measured,
            outcome: match met {
                Some(true) => Outcome::Met,
                Some(false) => Outcome::Failed,
                None => Outcome::NotJudged,
            },
        }
    }
}

/// So many of so many, in percent; 0 of nothing are 0 %.
pub fn percent(part: u64, of: u64) -> f64 {
    if part == 0 {
        0.0
    } else {
        part as f64 * 100.0 / of.max(1) as f64
    }
}

fn time(name: &str) -> Option<Time> {
    KINDS.iter().find_map(|(prefix, kind)| {
        let rest = name.strip_prefix(prefix)?;
        let (_, statistic) = STATISTICS.iter().find(|(name, _)| *name == rest)?;
        Some(Time {
            of: *kind,
            statistic: *statistic,
        })
    })
}

impl Time {
    /// In nanoseconds; `None` if nothing was recorded.
    fn measure(self, tally: &Tally) -> Option<u64> {
        let times: &Histogram<u64> = match self.of {
            Kind::Latency => &tally.latency,
            Kind::Uncorrected => &tally.uncorrected,
            Kind::Lag => &tally.lag,
            Kind::Host => &tally.host,
            Kind::Join => &tally.join,
            Kind::Meet => &tally.meet,
        }
        .histogram();
        (!times.is_empty()).then(|| match self.statistic {
            Statistic::Quantile(q) => times.value_at_quantile(q),
            Statistic::Max => times.max(),
            Statistic::Mean => times.mean() as u64,
        })
    }
}

/// The names that an expectation may begin with.
fn metric_names() -> String {
    let counts: Vec<_> = COUNTS.iter().map(|count| count.name).collect();
    let times: Vec<_> = STATISTICS.iter().map(|(name, _)| *name).collect();
    let kinds: Vec<_> = KINDS[1..].iter().map(|(prefix, _)| *prefix).collect();
    format!(
        "{} (also with {}) and {}",
        times.join(" "),
        kinds.join(" "),
        counts.join(" ")
    )
}

/// Reads a time with its unit, `500us`.
///
/// # Errors
/// What would be right.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let wrong = || format!("`{text}` is no time; write a number and ns, us, ms or s, as in 500us");
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .ok_or_else(wrong)?;
    let (number, unit) = text.split_at(digits);
    let scale = match unit.trim() {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        _ => return Err(wrong()),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())
}

/// A time in the unit that suits it.
pub fn show_ns(ns: u64) -> String {
    let ns = ns as f64;
    if ns < 1e3 {
        format!("{ns:.0} ns")
    } else if ns < 1e6 {
        format!("{:.1} us", ns / 1e3)
    } else if ns < 1e9 {
        format!("{:.2} ms", ns / 1e6)
    } else {
        format!("{:.2} s", ns / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally() -> Tally {
        let mut tally = Tally {
            sent: 1000,
            received: 999,
            opened: 10,
            ..Tally::default()
        };
        for us in 1..=100 {
            tally.latency.record(us * 1000);
        }
        tally
    }

    fn outcome(text: &str) -> Outcome {
        Expectation::parse(text)
            .unwrap()
            .judge(&tally(), true)
            .outcome
    }

    #[test]
    fn met_and_failed_by_every_operator_and_unit() {
        for text in [
            "p99<500us",
            "p99 <= 0.1 ms",
            "p50>49us",
            "max>=100us",
            "mean<1s",
            "loss==1",
            "loss<=0.1%",
            "loss<2",
            "misdelivered==0",
            "received>=99%",
            "failed_sessions==0%",
            " sessions == 10 ",
        ] {
            assert_eq!(outcome(text), Outcome::Met, "{text}");
        }
        for text in [
            "p99<50us",
            "p50>50.5us",
            "loss==0",
            "loss<0.01%",
            "received==1000",
            "sessions>10",
        ] {
            assert_eq!(outcome(text), Outcome::Failed, "{text}");
        }
    }

    #[test]
    fn a_time_that_nobody_measured_is_not_met() {
        assert_eq!(outcome("join_p99<1s"), Outcome::Failed);
        assert_eq!(outcome("lag_max<1s"), Outcome::Failed);
    }

    #[test]
    fn times_of_a_saturated_generator_are_not_judged_and_counts_are() {
        let judge = |text: &str| {
            Expectation::parse(text)
                .unwrap()
                .judge(&tally(), false)
                .outcome
        };
        assert_eq!(judge("p99<50us"), Outcome::NotJudged);
        assert_eq!(judge("loss==0"), Outcome::Failed);
        assert_eq!(judge("misdelivered==0"), Outcome::Met);
    }

    #[test]
    fn what_cannot_be_read_says_what_would_be_right() {
        for (text, hint) in [
            ("p99", "operator"),
            ("p99=500us", "< <= > >= =="),
            ("p98<500us", "no metric `p98`"),
            ("lag_loss<1", "no metric"),
            ("p99<500", "ns, us, ms or s"),
            ("p99<5%", "ns, us, ms or s"),
            ("p99<us", "ns, us, ms or s"),
            ("p99<1.2.3us", "ns, us, ms or s"),
            ("p99<99999999999999999999s", "ns, us, ms or s"),
            ("loss<1ms", "no count"),
            ("loss<-1", "no count"),
            ("loss<NaN", "no count"),
            ("<5", "no metric ``"),
        ] {
            let error = Expectation::parse(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn every_metric_named_can_be_used() {
        for (prefix, _) in KINDS {
            for (name, _) in STATISTICS {
                assert!(Expectation::parse(&format!("{prefix}{name}<1us")).is_ok());
            }
        }
        for count in COUNTS {
            assert!(Expectation::parse(&format!("{}==0", count.name)).is_ok());
        }
    }

    #[test]
    fn times_are_shown_in_a_unit_that_suits_them() {
        assert_eq!(
            [999, 1_500, 2_345_678, 61_000_000_000].map(show_ns),
            ["999 ns", "1.5 us", "2.35 ms", "61.00 s"]
        );
    }
}
