//! The server's clock seen from here: an offset out of SERVER-TIME and the round trip of the request that asked, as in
//! RFC 5905 section 8. Never adjusts anything but this one number.

use crate::time::Millis;

/// After this long a worse sample replaces a better one, because clocks drift. Milliseconds.
const SAMPLE_AGE_MAX_MS: u64 = 300_000;

/// The best sample so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ServerClock {
    best: Option<Sample>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Server's Unix milliseconds at local time zero, wrapping.
    offset: u64,
    round_trip_ms: u64,
    at: Millis,
}

impl ServerClock {
    /// Takes a SERVER-TIME that came at `now` in the answer to a request sent at `sent`.
    pub(super) fn sample(&mut self, now: Millis, sent: Millis, server_unix_ms: u64) {
        let round_trip_ms = now.since(sent);
        let better = self.best.is_none_or(|best| {
            round_trip_ms <= best.round_trip_ms || now.since(best.at) > SAMPLE_AGE_MAX_MS
        });
        if better {
            let middle = sent.0 + round_trip_ms / 2;
            self.best = Some(Sample {
                offset: server_unix_ms.wrapping_sub(middle),
                round_trip_ms,
                at: now,
            });
        }
    }

    /// The server's Unix time in milliseconds at `now`.
    pub(super) fn server_unix_ms(&self, now: Millis) -> Option<u64> {
        self.best.map(|best| now.0.wrapping_add(best.offset))
    }

    /// How long from `now` until the server's clock shows `server_unix_ms`; 0 if that is past, or nothing is known.
    pub(super) fn millis_until(&self, now: Millis, server_unix_ms: u64) -> u64 {
        self.server_unix_ms(now)
            .map_or(0, |at| server_unix_ms.saturating_sub(at))
    }

    /// The round trip of the best sample, milliseconds.
    pub(super) fn round_trip_ms(&self) -> Option<u64> {
        self.best.map(|best| best.round_trip_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quickest_answer_counts_until_it_is_old() {
        let mut clock = ServerClock::default();
        assert_eq!(clock.millis_until(Millis(5), 1_000), 0);
        clock.sample(Millis(1_200), Millis(1_000), 50_100);
        assert_eq!(clock.server_unix_ms(Millis(1_100)), Some(50_100));
        clock.sample(Millis(2_900), Millis(2_000), 99_000);
        assert_eq!(clock.server_unix_ms(Millis(1_100)), Some(50_100));
        assert_eq!(clock.millis_until(Millis(1_100), 50_150), 50);
        assert_eq!(clock.round_trip_ms(), Some(200));
        clock.sample(Millis(400_000), Millis(399_000), 1_000_000);
        assert_eq!(clock.server_unix_ms(Millis(399_500)), Some(1_000_000));
        // A hostile server's clock does not make it panic.
        clock.sample(Millis(400_001), Millis(400_001), u64::MAX);
        assert_eq!(
            clock.millis_until(Millis(500_000), u64::MAX - 5),
            u64::MAX - 5 - 99_998
        );
    }
}
