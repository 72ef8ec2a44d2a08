//! The time of a run: nanoseconds on the monotonic clock since its start, the same for all threads. Never the wall clock.

use std::time::Instant;

use waypost_proto::time::Millis;

/// What the times of a run are counted from.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    epoch: Instant,
}

/// A moment of the run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Now {
    /// Nanoseconds since the start.
    pub ns: u64,
}

impl Clock {
    /// Time begins.
    pub fn start() -> Self {
        Self {
            epoch: Instant::now(),
        }
    }

    /// Reads the clock.
    pub fn now(&self) -> Now {
        Now {
            ns: u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX),
        }
    }
}

impl Now {
    /// The same for the protocol, which counts in milliseconds.
    pub const fn millis(self) -> Millis {
        Millis(self.ns / 1_000_000)
    }
}
