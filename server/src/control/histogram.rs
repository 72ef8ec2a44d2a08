//! A histogram of durations with the bounds that Prometheus clients have by default. One thread writes it, others read it; there is no
//! lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds, in seconds; behind the last one is the rest.
pub const BOUNDS_SECS: [f64; 11] = [
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Durations.
#[derive(Debug, Default)]
pub struct Histogram {
    /// How many were between the bound before and this one.
    buckets: [AtomicU64; BOUNDS_SECS.len() + 1],
    sum_ns: AtomicU64,
}

impl Histogram {
    /// Adds `count` of this duration each. For one thread only.
    pub fn observe(&self, each: Duration, count: u64) {
        let secs = each.as_secs_f64();
        let place = BOUNDS_SECS.partition_point(|bound| *bound < secs);
        let add = |cell: &AtomicU64, n: u64| cell.store(cell.load(Relaxed) + n, Relaxed);
        add(&self.buckets[place], count);
        let ns = u64::try_from(each.as_nanos()).unwrap_or(u64::MAX);
        add(&self.sum_ns, ns.saturating_mul(count));
    }

    /// How many were at most as long as each bound, then all; and the sum in seconds.
    pub fn read(&self) -> ([u64; BOUNDS_SECS.len() + 1], f64) {
        let mut so_far = 0;
        let at_most = self.buckets.each_ref().map(|bucket| {
            so_far += bucket.load(Relaxed);
            so_far
        });
        (at_most, self.sum_ns.load(Relaxed) as f64 / 1e9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_part_of_its_bucket() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_millis(5), 3);
        histogram.observe(Duration::from_micros(5001), 1);
        histogram.observe(Duration::from_secs(11), 2);
        let (at_most, sum) = histogram.read();
        assert_eq!(at_most[..2], [3, 4]);
        assert_eq!(at_most[10..], [4, 6]);
        assert!((sum - 22.020_001).abs() < 1e-9, "{sum}");
    }
}
