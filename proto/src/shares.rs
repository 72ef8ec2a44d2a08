//! How many of something each key has: what quotas per user or source are counted with. A key that has none takes no room. It
//! sets no limit itself.

use std::collections::HashMap;
use std::hash::Hash;

use ahash::RandomState;

/// Counts by key, none of them zero.
#[derive(Debug)]
pub struct Shares<K> {
    by_key: HashMap<K, u32, RandomState>,
}

impl<K: Hash + Eq> Shares<K> {
    /// Nobody has any; there is room for `capacity` keys before more is allocated.
    #[must_use]
    pub fn with_capacity(capacity: usize, hasher: RandomState) -> Self {
        Self {
            by_key: HashMap::with_capacity_and_hasher(capacity, hasher),
        }
    }

    /// How many a key has.
    #[must_use]
    pub fn of(&self, key: &K) -> u32 {
        self.by_key.get(key).copied().unwrap_or(0)
    }

    /// A key has one more.
    pub fn take(&mut self, key: K) {
        *self.by_key.entry(key).or_insert(0) += 1;
    }

    /// A key has one less.
    ///
    /// # Panics
    /// If it has none.
    pub fn give_back(&mut self, key: &K) {
        let count = self.by_key.get_mut(key);
        let count = count.expect("what is given back was taken");
        *count -= 1;
        if *count == 0 {
            self.by_key.remove(key);
        }
    }

    /// Whether every key that takes room has some. For tests.
    #[must_use]
    pub fn is_tight(&self) -> bool {
        self.by_key.values().all(|&count| count > 0)
    }

    /// What all keys have together.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.by_key.values().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_has_none_takes_no_room() {
        let mut shares = Shares::with_capacity(0, RandomState::with_seeds(1, 2, 3, 4));
        shares.take("ann");
        shares.take("ann");
        shares.take("bob");
        assert_eq!(
            (shares.of(&"ann"), shares.of(&"eve"), shares.total()),
            (2, 0, 3)
        );
        shares.give_back(&"bob");
        shares.give_back(&"ann");
        assert_eq!((shares.of(&"ann"), shares.by_key.len()), (1, 1));
        assert!(shares.is_tight());
    }
}
