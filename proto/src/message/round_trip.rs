//! The round trip to a peer and what follows from it for repetitions: the estimator of RFC 6298 with bounds for games. Never
//! reads a clock.

/// Before anything is measured, milliseconds.
const TIMEOUT_INITIAL_MS: u64 = 250;
/// Repetitions come no faster than this, milliseconds.
const TIMEOUT_MIN_MS: u64 = 50;
/// Nor slower, however often they were in vain.
const TIMEOUT_MAX_MS: u64 = 2_000;
/// A sample longer than this is taken for this, milliseconds.
const SAMPLE_MAX_MS: u64 = 10_000;

/// Smoothed round trip and its variation.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RoundTrip {
    /// In eighths and quarters of a millisecond, as RFC 6298's gains are.
    estimate: Option<(u64, u64)>,
}

impl RoundTrip {
    /// Takes a measured round trip.
    pub(super) fn sample(&mut self, round_trip_ms: u64) {
        let sample = round_trip_ms.min(SAMPLE_MAX_MS);
        self.estimate = Some(match self.estimate {
            None => (sample * 8, sample * 2),
            Some((smoothed, variation)) => {
                let deviation = (smoothed / 8).abs_diff(sample);
                (
                    smoothed - smoothed / 8 + sample,
                    variation - variation / 4 + deviation,
                )
            }
        });
    }

    /// The smoothed round trip, milliseconds.
    pub(super) fn smoothed_ms(self) -> Option<u64> {
        self.estimate.map(|(smoothed, _)| smoothed / 8)
    }

    /// How long to wait for the acknowledgement of something sent for the `sends`th time, milliseconds.
    pub(super) fn timeout_ms(self, sends: u32) -> u64 {
        let first = self
            .estimate
            .map_or(TIMEOUT_INITIAL_MS, |(smoothed, variation)| {
                smoothed / 8 + variation.max(10) + super::ACKNOWLEDGE_MS
            });
        (first.max(TIMEOUT_MIN_MS) << sends.saturating_sub(1).min(5)).min(TIMEOUT_MAX_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_settles_on_what_is_measured() {
        let mut round_trip = RoundTrip::default();
        assert_eq!(round_trip.smoothed_ms(), None);
        assert_eq!(round_trip.timeout_ms(1), TIMEOUT_INITIAL_MS);
        for _ in 0..100 {
            round_trip.sample(80);
        }
        assert!((79..=81).contains(&round_trip.smoothed_ms().unwrap()));
        assert!((85..=110).contains(&round_trip.timeout_ms(1)));
        assert!(round_trip.timeout_ms(2) > round_trip.timeout_ms(1));
        round_trip.sample(u64::MAX);
        assert_eq!(round_trip.timeout_ms(u32::MAX), TIMEOUT_MAX_MS);
    }
}
