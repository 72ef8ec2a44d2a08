//! Time as this crate sees it: milliseconds on a monotonic clock that the caller reads, once per batch.

use std::ops::Add;
use std::time::Duration;

/// Milliseconds since an arbitrary start, never going back.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// Milliseconds from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// `self` plus whole seconds.
    #[must_use]
    pub const fn plus_secs(self, secs: u32) -> Self {
        Self(self.0 + secs as u64 * 1000)
    }
}

impl Add<u64> for Millis {
    type Output = Self;

    fn add(self, millis: u64) -> Self {
        Self(self.0 + millis)
    }
}

impl Add<Duration> for Millis {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)),
        )
    }
}

/// The monotonic clock's relation to the wall clock, taken once at start. Everything that must mean the same after a
/// restart (nonces, tickets, server time) is derived from it, so a wall clock that jumps later changes nothing.
#[derive(Clone, Copy, Debug)]
pub struct WallClock {
    /// Unix time in milliseconds at `Millis(0)`.
    pub unix_ms_at_zero: u64,
}

impl WallClock {
    /// Unix time in milliseconds at `now`.
    #[must_use]
    pub const fn unix_ms(self, now: Millis) -> u64 {
        self.unix_ms_at_zero + now.0
    }

    /// Unix time in seconds at `now`.
    #[must_use]
    pub const fn unix_secs(self, now: Millis) -> u64 {
        self.unix_ms(now) / 1000
    }
}
