//! What one thread counts, and the sum over threads. Recording allocates nothing. Never judges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::series::Series;
use crate::times::Times;

/// Different reasons of failed sessions that are kept apart.
const REASONS_MAX: usize = 16;

/// Counters and times. Only datagrams that were to be sent within the measured time count as sent, received or missed and
/// enter the histograms; faults count from the first datagram on.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Datagrams sent.
    pub sent: u64,
    /// Slots that were given up because they were too late.
    pub missed: u64,
    /// Slots whose session was being replaced, or had failed.
    pub idle: u64,
    /// Datagrams that arrived, each once.
    pub received: u64,
    /// Datagrams that arrived after one that was sent later.
    pub reordered: u64,
    /// Datagrams that arrived again.
    pub duplicated: u64,
    /// Datagrams that were not as they were sent.
    pub corrupted: u64,
    /// Datagrams for somebody else.
    pub misdelivered: u64,
    /// Data that the client's own agent refused, because it knew no member whom they could be from.
    pub refused: u64,
    /// Sessions set up.
    pub opened: u64,
    /// Sessions closed to be replaced.
    pub replaced: u64,
    /// Sessions that could not be set up, broke or did not close.
    pub failed: u64,
    /// Why, and how often.
    pub reasons: BTreeMap<String, u64>,
    /// From the intended send time to the arrival.
    pub latency: Times,
    /// From the real send time to the arrival: it hides what a late sender has waited.
    pub uncorrected: Times,
    /// From the intended send time to the real one.
    pub lag: Times,
    /// From asking for a session to having it.
    pub host: Times,
    /// From asking for a seat to having it.
    pub join: Times,
    /// From asking for a session until all its members know each other.
    pub meet: Times,
    /// CPU time of the generator's threads while the load ran, nanoseconds.
    pub cpu_ns: u64,
    /// How long these threads could have run but had no core, nanoseconds.
    pub waited_ns: u64,
    /// Datagrams that the kernel did not take.
    pub kernel_refused: u64,
    /// From the start of the thread until all its sessions were tried, nanoseconds; the longest of all threads.
    pub filling_ns: u64,
    /// First requests of strangers.
    pub flood: FloodTally,
    /// The measured time, interval by interval.
    pub series: Series,
    /// What the server relays of one member, packets and bytes per second; 0 if it did not say.
    pub limits: (u32, u32),
}

/// What became of the first requests of strangers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FloodTally {
    /// Requests.
    pub sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Answers.
    pub answered: u64,
    /// Their bytes.
    pub bytes_answered: u64,
}

impl Tally {
    /// Datagrams that were sent and did not arrive.
    pub const fn lost(&self) -> u64 {
        self.sent.saturating_sub(self.received)
    }

    /// A session that failed.
    pub fn fail(&mut self, reason: String) {
        self.failed += 1;
        self.note_reason(reason, 1);
    }

    fn note_reason(&mut self, reason: String, times: u64) {
        let full = self.reasons.len() >= REASONS_MAX && !self.reasons.contains_key(&reason);
        let reason = if full { "other reasons".into() } else { reason };
        *self.reasons.entry(reason).or_default() += times;
    }

    /// Adds what another thread counted.
    pub fn merge(&mut self, other: Self) {
        self.sent += other.sent;
        self.missed += other.missed;
        self.idle += other.idle;
        self.received += other.received;
        self.reordered += other.reordered;
        self.duplicated += other.duplicated;
        self.corrupted += other.corrupted;
        self.misdelivered += other.misdelivered;
        self.refused += other.refused;
        self.opened += other.opened;
        self.replaced += other.replaced;
        self.failed += other.failed;
        for (reason, times) in other.reasons {
            self.note_reason(reason, times);
        }
        self.latency.merge(&other.latency);
        self.uncorrected.merge(&other.uncorrected);
        self.lag.merge(&other.lag);
        self.host.merge(&other.host);
        self.join.merge(&other.join);
        self.meet.merge(&other.meet);
        self.cpu_ns += other.cpu_ns;
        self.waited_ns += other.waited_ns;
        self.kernel_refused += other.kernel_refused;
        self.series.merge(&other.series);
        self.filling_ns = self.filling_ns.max(other.filling_ns);
        self.flood.sent += other.flood.sent;
        self.flood.bytes_sent += other.flood.bytes_sent;
        self.flood.answered += other.flood.answered;
        self.flood.bytes_answered += other.flood.bytes_answered;
        if other.limits != (0, 0) {
            self.limits = other.limits;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_everything() {
        let mut one = Tally {
            sent: 5,
            received: 3,
            ..Tally::default()
        };
        one.latency.record(1_000);
        let mut other = one.clone();
        other.fail("why".into());
        other.latency.record(3_000_000);
        one.merge(other);
        assert_eq!((one.sent, one.received, one.lost()), (10, 6, 4));
        assert_eq!((one.failed, one.reasons["why"]), (1, 1));
        assert_eq!(one.latency.histogram().len(), 3);
    }

    #[test]
    fn reasons_are_bounded() {
        let mut tally = Tally::default();
        for i in 0..1000 {
            tally.fail(format!("reason {i}"));
        }
        assert_eq!(tally.reasons.len(), REASONS_MAX + 1);
        assert_eq!(tally.reasons["other reasons"], 1000 - REASONS_MAX as u64);
    }
}
