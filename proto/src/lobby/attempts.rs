//! How often a source may be wrong: a fixed table of buckets, so that attackers cannot make it grow. Two prefixes that fall
//! into one bucket share it.

use ahash::RandomState;

use crate::addr::SourcePrefix;
use crate::time::Millis;

const BUCKETS: usize = 4096;
/// A failure is forgiven after this long.
const FORGIVE_MS: u64 = 6_000;
/// Failures at once before a source must wait.
const BURST: u64 = 10;
/// A wrong password at a session is forgiven after this long.
const SESSION_FORGIVE_MS: u64 = 3_000;
/// Wrong passwords at a session before only sources without a failure are heard.
const SESSION_BURST: u64 = 20;

/// Failures by source prefix.
pub(super) struct FailureBuckets {
    hasher: RandomState,
    forgiven_at: Box<[Millis]>,
}

impl FailureBuckets {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            hasher,
            forgiven_at: vec![Millis(0); BUCKETS].into_boxed_slice(),
        }
    }

    fn bucket(&mut self, prefix: SourcePrefix) -> &mut Millis {
        let index = self.hasher.hash_one(prefix) as usize % BUCKETS;
        &mut self.forgiven_at[index]
    }

    /// Whether this source may try at a session whose own failures are forgiven at `session_forgiven_at`. When a session
    /// is under attack from many sources, one that has not failed lately is still heard.
    pub fn may_try(
        &mut self,
        now: Millis,
        prefix: SourcePrefix,
        session_forgiven_at: Option<Millis>,
    ) -> bool {
        let own = self.bucket(prefix).since(now);
        let session = session_forgiven_at.map_or(0, |at| at.since(now));
        own <= FORGIVE_MS * (BURST - 1)
            && (own == 0 || session <= SESSION_FORGIVE_MS * (SESSION_BURST - 1))
    }

    /// Notes a failure of this source, and at this session if it exists.
    pub fn note(&mut self, now: Millis, prefix: SourcePrefix, session: Option<&mut Millis>) {
        let own = self.bucket(prefix);
        *own = (*own).max(now) + FORGIVE_MS;
        if let Some(at) = session {
            *at = (*at).max(now) + SESSION_FORGIVE_MS;
        }
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
            assert!(buckets.may_try(Millis(0), prefix, None), "try {i}");
            buckets.note(Millis(0), prefix, None);
        }
        assert!(!buckets.may_try(Millis(0), prefix, None));
        assert!(buckets.may_try(Millis(FORGIVE_MS), prefix, None));
        assert!(buckets.may_try(Millis(0), SourcePrefix([2; 16]), None));
    }

    #[test]
    fn a_session_under_attack_still_hears_new_sources() {
        let mut buckets = buckets();
        let mut session = Millis(0);
        let attacker = |i: u8| SourcePrefix([i; 16]);
        for i in 0..30 {
            assert!(buckets.may_try(Millis(0), attacker(i), Some(session)));
            buckets.note(Millis(0), attacker(i), Some(&mut session));
        }
        assert!(!buckets.may_try(Millis(0), attacker(1), Some(session)));
        assert!(buckets.may_try(Millis(0), SourcePrefix([99; 16]), Some(session)));
    }
}
