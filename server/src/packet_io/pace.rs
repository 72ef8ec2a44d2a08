//! When a shard sleeps for one datagram and when it waits for company.
//!
//! Waiting pays only under load: a timer is armed per wait, so below a few packets per wait it
//! costs more than it saves. It reads the clock once per turn and only if waiting is allowed.

use std::time::{Duration, Instant};

/// Datagrams worth waiting for.
const WANT: u32 = 8;
/// The rate is measured over at least this long.
const WINDOW: Duration = Duration::from_millis(2);
/// Waiting starts when this many datagrams are expected within the longest wait.
const LEAST_EXPECTED: f64 = 3.0;
const LEAST_WAIT_US: f64 = 5.0;
/// The part of the longest wait that is spent asleep. The rest goes to company: whoever waited is also behind those that
/// are handled before it in its turn, and all of that together must not add more than was allowed.
const ASLEEP: f64 = 0.75;

/// How to wait for the next datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Until the first.
    ForOne,
    /// Until `want` have come, or `min_wait_us` have passed and at least one has come.
    ForMore { want: u32, min_wait_us: u32 },
}

#[derive(Debug)]
pub(crate) struct Pace {
    longest_wait_us: u32,
    window_start: Instant,
    window_datagrams: u64,
    wait: Wait,
}

impl Pace {
    pub(crate) fn new(longest_wait_us: u32) -> Self {
        Self {
            longest_wait_us,
            window_start: Instant::now(),
            window_datagrams: 0,
            wait: Wait::ForOne,
        }
    }

    /// Counts `datagrams` that just arrived and says how to wait for the next ones.
    #[inline]
    pub(crate) fn next_wait(&mut self, datagrams: usize) -> Wait {
        if self.longest_wait_us == 0 {
            return Wait::ForOne;
        }
        self.next_wait_at(Instant::now(), datagrams)
    }

    fn next_wait_at(&mut self, now: Instant, datagrams: usize) -> Wait {
        self.window_datagrams += datagrams as u64;
        let elapsed = now.saturating_duration_since(self.window_start);
        if elapsed >= WINDOW {
            let per_us = self.window_datagrams as f64 / (elapsed.as_nanos() as f64 / 1000.0);
            let longest = f64::from(self.longest_wait_us);
            self.wait = if per_us * longest < LEAST_EXPECTED {
                Wait::ForOne
            } else {
                let wait = (f64::from(WANT) / per_us)
                    .max(LEAST_WAIT_US)
                    .min(longest * ASLEEP);
                Wait::ForMore {
                    want: WANT,
                    min_wait_us: wait as u32,
                }
            };
            self.window_start = now;
            self.window_datagrams = 0;
        }
        self.wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait_at_rate(longest_wait_us: u32, per_second: usize) -> Wait {
        let mut pace = Pace::new(longest_wait_us);
        let later = pace.window_start + Duration::from_secs(1);
        pace.next_wait_at(later, per_second)
    }

    #[test]
    fn a_calm_shard_never_waits() {
        assert_eq!(wait_at_rate(50, 59_000), Wait::ForOne);
        assert_eq!(wait_at_rate(50, 0), Wait::ForOne);
    }

    #[test]
    fn a_busy_shard_waits_for_eight() {
        let busy = |min_wait_us| Wait::ForMore {
            want: 8,
            min_wait_us,
        };
        assert_eq!(wait_at_rate(50, 61_000), busy(37));
        assert_eq!(wait_at_rate(50, 400_000), busy(20));
        assert_eq!(wait_at_rate(50, 8_000_000), busy(5));
        assert_eq!(wait_at_rate(2, 8_000_000), busy(1));
    }

    #[test]
    fn without_permission_it_never_waits() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.next_wait(1_000_000), Wait::ForOne);
    }
}
