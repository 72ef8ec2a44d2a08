//! A run over time: what was to be sent in each interval of the measured time, and what became of it. Recording allocates nothing.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use crate::times::{from_text, to_text};

/// Lengths of intervals to choose from, milliseconds.
const LENGTHS_MS: [u64; 9] = [
    100, 200, 500, 1_000, 2_000, 5_000, 30_000, 300_000, 3_600_000,
];
/// The shortest one is taken that makes no more intervals than this.
const INTERVALS_MAX: u64 = 120;
/// Bounds of the times of an interval, nanoseconds, in two significant digits.
const SHORTEST_NS: u64 = 1_000;
const LONGEST_NS: u64 = 60_000_000_000;

/// All intervals.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Series {
    /// Length of each, milliseconds; 0 if there are none.
    pub interval_ms: u64,
    /// One after the other, from the first that was measured.
    pub intervals: Vec<Interval>,
}

/// Times of one interval.
#[derive(Clone, Debug)]
pub struct Short(Histogram<u32>);

impl Default for Short {
    fn default() -> Self {
        let bounds = Histogram::new_with_bounds(SHORTEST_NS, LONGEST_NS, 2);
        Self(bounds.expect("these bounds are legal"))
    }
}

impl Short {
    /// Adds one.
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// A quantile, nanoseconds; 0 of nothing.
    pub fn quantile(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// All of them.
    pub const fn histogram(&self) -> &Histogram<u32> {
        &self.0
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.0.len()
    }

    /// Adds those of another.
    pub fn merge(&mut self, other: &Self) {
        self.0.add(&other.0).expect("equal bounds");
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.0.reset();
    }
}

/// Datagrams that were to be sent in one interval.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "IntervalFigures", into = "IntervalFigures")]
pub struct Interval {
    /// Sent.
    pub sent: u64,
    /// Arrived, whenever that was.
    pub received: u64,
    /// Given up, because they were too late.
    pub missed: u64,
    /// From the intended send time to the arrival.
    pub latency: Short,
    /// From the intended send time to the real one.
    pub lag: Short,
}

/// An interval in a report. The quantiles are for readers; the histograms say all.
#[derive(Clone, Serialize, Deserialize)]
struct IntervalFigures {
    sent: u64,
    received: u64,
    missed: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p999: u64,
    max: u64,
    lag_p99: u64,
    latency: String,
    lag: String,
}

impl From<Interval> for IntervalFigures {
    fn from(interval: Interval) -> Self {
        let quantile = |q| interval.latency.quantile(q);
        Self {
            sent: interval.sent,
            received: interval.received,
            missed: interval.missed,
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
            lag_p99: interval.lag.quantile(0.99),
            latency: to_text(&interval.latency.0),
            lag: to_text(&interval.lag.0),
        }
    }
}

impl From<IntervalFigures> for Interval {
    /// A histogram that cannot be read counts as an empty one.
    fn from(figures: IntervalFigures) -> Self {
        let short = |text: &str| {
            let mut short = Short::default();
            if let Some(read) = from_text::<u32>(text) {
                let _ = short.0.add(&read);
            }
            short
        };
        Self {
            sent: figures.sent,
            received: figures.received,
            missed: figures.missed,
            latency: short(&figures.latency),
            lag: short(&figures.lag),
        }
    }
}

impl Series {
    /// Empty intervals for so long.
    pub fn new(duration: Duration) -> Self {
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let fits = |length: &u64| duration_ms.div_ceil(*length) <= INTERVALS_MAX;
        let interval_ms = LENGTHS_MS.into_iter().find(fits);
        let interval_ms = interval_ms.unwrap_or(LENGTHS_MS[LENGTHS_MS.len() - 1]);
        let count = usize::try_from(duration_ms.div_ceil(interval_ms)).unwrap_or(0);
        Self {
            interval_ms,
            intervals: vec![Interval::default(); count],
        }
    }

    /// The interval of something that was to happen so long after the first.
    pub fn at(&mut self, ns: u64) -> Option<&mut Interval> {
        let index = ns / (self.interval_ms * 1_000_000).max(1);
        self.intervals.get_mut(usize::try_from(index).ok()?)
    }

    /// The end of interval `index`, seconds.
    pub fn end_secs(&self, index: usize) -> f64 {
        ((index + 1) as u64 * self.interval_ms) as f64 / 1000.0
    }

    /// Length of an interval, seconds.
    pub fn interval_secs(&self) -> f64 {
        self.interval_ms as f64 / 1000.0
    }

    /// Adds another run of the same time, interval by interval.
    pub fn merge(&mut self, other: &Self) {
        if self.intervals.is_empty() {
            self.clone_from(other);
            return;
        }
        for (one, other) in self.intervals.iter_mut().zip(&other.intervals) {
            one.sent += other.sent;
            one.received += other.received;
            one.missed += other.missed;
            one.latency.merge(&other.latency);
            one.lag.merge(&other.lag);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_as_short_as_their_number_allows() {
        let of = |secs: f64| {
            let series = Series::new(Duration::from_secs_f64(secs));
            (series.interval_ms, series.intervals.len())
        };
        assert_eq!(of(5.0), (100, 50));
        assert_eq!(of(60.0), (500, 120));
        assert_eq!(of(60.1), (1_000, 61));
        assert_eq!(of(86_400.0), (3_600_000, 24));
        assert_eq!(of(0.0), (100, 0));
    }

    #[test]
    fn what_is_written_is_read_and_merged() {
        let mut series = Series::new(Duration::from_millis(250));
        for ns in [0, 99_999_999, 100_000_000, 249_999_999] {
            let interval = series.at(ns).unwrap();
            interval.sent += 1;
            interval.latency.record(ns / 100);
        }
        assert!(series.at(300_000_000).is_none());
        let text = serde_json::to_string(&series).unwrap();
        let mut read: Series = serde_json::from_str(&text).unwrap();
        read.merge(&series);
        let sent: Vec<u64> = read.intervals.iter().map(|i| i.sent).collect();
        assert_eq!(sent, [4, 2, 2]);
        assert_eq!(read.intervals[0].latency.count(), 4);
        assert_eq!(series.end_secs(2), 0.3);
    }
}
