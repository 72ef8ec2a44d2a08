//! How many allocations each user and each source has, over all shards together: a share is taken with an allocation and given back when
//! it is gone, not before. The only thing of TURN that shards share, behind a lock that is taken for nothing but that, and not at
//! all where there is no quota.

use std::sync::{Arc, Mutex, PoisonError};

use ahash::RandomState;

use crate::shares::Shares;

/// What all shards of a server count together. Keys are keyed hashes, which are the same on every shard.
#[derive(Debug)]
pub struct AllocationShares {
    counts: Mutex<Counts>,
}

#[derive(Debug)]
struct Counts {
    by_person: Shares<u64>,
    by_source: Shares<u64>,
}

impl Default for AllocationShares {
    /// Nobody has any.
    fn default() -> Self {
        // The keys are hashes under a secret already.
        let shares = || Shares::with_capacity(0, RandomState::with_seeds(1, 2, 3, 4));
        Self {
            counts: Mutex::new(Counts {
                by_person: shares(),
                by_source: shares(),
            }),
        }
    }
}

/// Most allocations; 0 is no limit.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quotas {
    pub per_person: u32,
    pub per_source: u32,
}

/// What one allocation counts against. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Share {
    of: Arc<AllocationShares>,
    person: u64,
    source: u64,
}

/// An allocation more would be too many.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct OverQuota;

impl Quotas {
    /// Takes a share of one allocation, if that is within the quotas; nothing where there are none.
    pub fn take(
        self,
        of: &Arc<AllocationShares>,
        person: u64,
        source: u64,
    ) -> Result<Option<Share>, OverQuota> {
        if self.per_person == 0 && self.per_source == 0 {
            return Ok(None);
        }
        let below = |used: u32, most: u32| most == 0 || used < most;
        let mut counts = of.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if !below(counts.by_person.of(&person), self.per_person)
            || !below(counts.by_source.of(&source), self.per_source)
        {
            return Err(OverQuota);
        }
        counts.by_person.take(person);
        counts.by_source.take(source);
        let of = Arc::clone(of);
        Ok(Some(Share { of, person, source }))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self
            .of
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.by_person.give_back(&self.person);
        counts.by_source.give_back(&self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_given_back_when_it_is_dropped() {
        let shares = Arc::new(AllocationShares::default());
        let quotas = Quotas {
            per_person: 2,
            per_source: 3,
        };
        let take = |person, source| quotas.take(&shares, person, source);
        let held: Vec<_> = (0..2).map(|_| take(1, 9).unwrap()).collect();
        assert!(take(1, 8).is_err(), "two are one person's");
        let third = take(2, 9).unwrap();
        assert!(take(3, 9).is_err(), "three are one source's");
        drop(held);
        assert!(take(3, 9).is_ok() && take(1, 8).is_ok());
        drop(third);
        let counts = shares.counts.lock().unwrap();
        assert_eq!((counts.by_person.total(), counts.by_source.total()), (0, 0));
    }

    #[test]
    fn without_quotas_nothing_is_counted() {
        let shares = Arc::new(AllocationShares::default());
        let quotas = Quotas {
            per_person: 0,
            per_source: 0,
        };
        assert!(quotas.take(&shares, 1, 1).unwrap().is_none());
    }
}
