//! How often a source may be wrong, and how often anybody may be wrong about one session: fixed tables of buckets, so that
//! attackers cannot make them grow. What falls into one bucket shares it. A session that does not exist has its bucket
//! like one that does, so that a refusal does not tell them apart.

use std::hash::Hash;

use ahash::RandomState;

use crate::addr::SourcePrefix;
use crate::time::Millis;

const BUCKETS: usize = 4096;
/// A failure is forgiven after this long.
const FORGIVE_MS: u64 = 6_000;
/// Failures at once before a source must wait.
const BURST: u64 = 10;
/// A failure at one session, or at a code or name without one, is forgiven after this long.
const TARGET_FORGIVE_MS: u64 = 3_000;
/// Failures at one session before only sources without a failure are heard.
const TARGET_BURST: u64 = 20;

/// Failures by source prefix and by what was tried.
pub(crate) struct FailureBuckets {
    hasher: RandomState,
    sources: Box<[Millis]>,
    targets: Box<[Millis]>,
}

impl FailureBuckets {
    pub fn new(hasher: RandomState) -> Self {
        let empty = || vec![Millis(0); BUCKETS].into_boxed_slice();
        Self {
            hasher,
            sources: empty(),
            targets: empty(),
        }
    }

    fn bucket(&self, key: impl Hash) -> usize {
        self.hasher.hash_one(key) as usize % BUCKETS
    }

    /// Whether this source may try `target`. When a target is under attack from many sources, one that has not failed
    /// lately is still heard.
    pub fn may_try(&self, now: Millis, prefix: SourcePrefix, target: impl Hash) -> bool {
        let source = self.sources[self.bucket(prefix)].since(now);
        let target = self.targets[self.bucket(target)].since(now);
        source <= FORGIVE_MS * (BURST - 1)
            && (source == 0 || target <= TARGET_FORGIVE_MS * (TARGET_BURST - 1))
    }

    /// Notes a failure of this source at `target`.
    pub fn note(&mut self, now: Millis, prefix: SourcePrefix, target: impl Hash) {
        let source = self.bucket(prefix);
        let target = self.bucket(target);
        self.sources[source] = self.sources[source].max(now) + FORGIVE_MS;
        self.targets[target] = self.targets[target].max(now) + TARGET_FORGIVE_MS;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets() -> FailureBuckets {
        FailureBuckets::new(RandomState::with_seeds(1, 2, 3, 4))
    }

    #[test]
    fn a_source_may_be_wrong_ten_times_then_waits() {
        let mut buckets = buckets();
        let prefix = SourcePrefix([1; 16]);
        for i in 0..10 {
            assert!(buckets.may_try(Millis(0), prefix, i), "try {i}");
            buckets.note(Millis(0), prefix, i);
        }
        assert!(!buckets.may_try(Millis(0), prefix, 11));
        assert!(buckets.may_try(Millis(FORGIVE_MS), prefix, 11));
        assert!(buckets.may_try(Millis(0), SourcePrefix([2; 16]), 11));
    }

    #[test]
    fn a_session_under_attack_still_hears_new_sources() {
        let mut buckets = buckets();
        let attacker = |i: u8| SourcePrefix([i; 16]);
        for i in 0..30 {
            assert!(buckets.may_try(Millis(0), attacker(i), "target"));
            buckets.note(Millis(0), attacker(i), "target");
        }
        assert!(!buckets.may_try(Millis(0), attacker(1), "target"));
        assert!(buckets.may_try(Millis(0), attacker(1), "another"));
        assert!(buckets.may_try(Millis(0), SourcePrefix([99; 16]), "target"));
    }
}
