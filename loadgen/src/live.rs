//! What a run shows of itself while it runs. Estimates: the report has the figures.

use crate::series::Short;

/// How often a thread tells, milliseconds.
pub const TELL_MS: u64 = 500;

/// What a thread has done since it told the last time.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// How long that took, nanoseconds; summed over threads.
    pub span_ns: u64,
    /// Datagrams sent.
    pub sent: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// From the intended send time to the arrival.
    pub latency: Short,
    /// From the intended send time to the real one.
    pub lag: Short,
}

impl Live {
    /// Adds what another thread has done.
    pub fn merge(&mut self, other: &Self) {
        self.span_ns += other.span_ns;
        self.sent += other.sent;
        self.received += other.received;
        self.latency.merge(&other.latency);
        self.lag.merge(&other.lag);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.span_ns = 0;
        self.sent = 0;
        self.received = 0;
        self.latency.clear();
        self.lag.clear();
    }
}
