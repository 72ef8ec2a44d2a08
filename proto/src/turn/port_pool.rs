//! The ports of one relay address that one shard may use: which are taken, and a random free one. It binds nothing: that a
//! stranger has a port shows when it is opened.

use std::ops::RangeInclusive;

use rand::RngExt;
use rand::rngs::StdRng;

/// Random tries before the search goes on in order.
const RANDOM_TRIES: usize = 8;

/// What is wanted of a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parity {
    /// Nothing.
    Any,
    /// Even (EVEN-PORT, RFC 8656 section 18.7).
    Even,
    /// Even, and the next one too.
    EvenPair,
}

/// Where the slice of shard `index` begins, and the one before ends.
fn edge(range: &RangeInclusive<u16>, index: u16, count: u16) -> u32 {
    let (low, end) = (u32::from(*range.start()), u32::from(*range.end()) + 1);
    let len = end.saturating_sub(low);
    let edge = low + len * u32::from(index) / u32::from(count);
    if index == 0 || index == count {
        edge
    } else {
        (edge & !1).max(low)
    }
}

/// The shard that has `port`, which is in `range`, in its slice.
pub fn port_owner(range: &RangeInclusive<u16>, port: u16, count: u16) -> u16 {
    let begins_before = |index: &u16| edge(range, *index, count) <= u32::from(port);
    (0..count).rev().find(begins_before).unwrap_or(0)
}

/// A slice of ports, one bit each.
#[derive(Debug)]
pub struct PortPool {
    first: u16,
    count: u32,
    taken: Vec<u64>,
    taken_count: u32,
}

impl PortPool {
    /// The slice of `range` that shard `index` of `count` has. Slices are disjoint, and begin at even ports.
    #[must_use]
    pub fn of_shard(range: RangeInclusive<u16>, index: u16, count: u16) -> Self {
        let [first, end] = [index, index + 1].map(|index| edge(&range, index, count));
        let count = end.saturating_sub(first);
        Self {
            first: u16::try_from(first).unwrap_or(u16::MAX),
            count,
            taken: vec![0; (count as usize).div_ceil(64)],
            taken_count: 0,
        }
    }

    /// Ports that are taken.
    #[must_use]
    pub const fn taken_count(&self) -> u32 {
        self.taken_count
    }

    /// Whether a port is of this slice.
    pub fn contains(&self, port: u16) -> bool {
        let offset = port.checked_sub(self.first);
        offset.is_some_and(|offset| u32::from(offset) < self.count)
    }

    fn is_free(&self, offset: u32) -> bool {
        offset < self.count && self.taken[offset as usize / 64] & 1 << (offset % 64) == 0
    }

    fn fits(&self, offset: u32, parity: Parity) -> bool {
        let is_even = (u32::from(self.first) + offset).is_multiple_of(2);
        self.is_free(offset)
            && match parity {
                Parity::Any => true,
                Parity::Even => is_even,
                Parity::EvenPair => is_even && self.is_free(offset + 1),
            }
    }

    /// Takes a random free port; of a pair only the first.
    pub fn take(&mut self, parity: Parity, rng: &mut StdRng) -> Option<u16> {
        if self.count == 0 {
            return None;
        }
        let mut start = 0;
        for _ in 0..RANDOM_TRIES {
            start = rng.random_range(0..self.count);
            if self.fits(start, parity) {
                break;
            }
        }
        let offset = (start..self.count)
            .chain(0..start)
            .find(|&offset| self.fits(offset, parity))?;
        let port = u16::try_from(u32::from(self.first) + offset).expect("inside the range");
        self.mark(port);
        Some(port)
    }

    /// Takes a random free port out of those that are whole multiples of `spacing` above the first one.
    pub fn take_spaced(&mut self, spacing: u16, rng: &mut StdRng) -> Option<u16> {
        let spacing = u32::from(spacing);
        let places = self.count.div_ceil(spacing);
        if places == 0 {
            return None;
        }
        let start = rng.random_range(0..places);
        let offset = (start..places)
            .chain(0..start)
            .map(|place| place * spacing)
            .find(|&offset| self.is_free(offset))?;
        let port = u16::try_from(u32::from(self.first) + offset).expect("inside the range");
        self.mark(port);
        Some(port)
    }

    /// Takes this very port, which is free.
    pub fn mark(&mut self, port: u16) {
        let offset = u32::from(port - self.first);
        debug_assert!(self.is_free(offset), "a port is taken once");
        self.taken[offset as usize / 64] |= 1 << (offset % 64);
        self.taken_count += 1;
    }

    /// Gives this port to nobody, if it is of this slice.
    pub fn withhold(&mut self, port: u16) {
        if self.contains(port) && self.is_free(u32::from(port - self.first)) {
            self.mark(port);
            self.taken_count -= 1;
        }
    }

    /// Gives a port back.
    pub fn give_back(&mut self, port: u16) {
        let offset = u32::from(port - self.first);
        debug_assert!(!self.is_free(offset), "only what was taken comes back");
        self.taken[offset as usize / 64] &= !(1 << (offset % 64));
        self.taken_count -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use std::collections::BTreeSet;

    #[test]
    fn shards_share_no_port_and_waste_none() {
        let mut rng = StdRng::seed_from_u64(1);
        for (low, high) in [(50_000, 50_099), (1, 1), (65_000, u16::MAX), (7, 20)] {
            for count in [1, 2, 3, 7] {
                let mut all = BTreeSet::new();
                for index in 0..count {
                    let mut pool = PortPool::of_shard(low..=high, index, count);
                    while let Some(port) = pool.take(Parity::Any, &mut rng) {
                        assert!(all.insert(port), "{port} twice");
                        assert_eq!(port_owner(&(low..=high), port, count), index);
                    }
                }
                assert_eq!(all, (low..=high).collect());
            }
        }
    }

    #[test]
    fn spaced_ports_keep_their_distance() {
        let mut rng = StdRng::seed_from_u64(3);
        let mut pool = PortPool::of_shard(50_000..=50_099, 0, 1);
        let mut taken: Vec<_> = std::iter::from_fn(|| pool.take_spaced(18, &mut rng)).collect();
        taken.sort_unstable();
        assert_eq!(taken, [50_000, 50_018, 50_036, 50_054, 50_072, 50_090]);
        assert!(pool.take_spaced(1, &mut rng).is_some());
        assert_eq!(pool.taken_count(), 7);
    }

    #[test]
    fn withheld_ports_are_nobodys() {
        let mut rng = StdRng::seed_from_u64(4);
        let mut pool = PortPool::of_shard(50_000..=50_003, 0, 1);
        for port in [50_001, 50_001, 50_003, 60_000] {
            pool.withhold(port);
        }
        assert_eq!(pool.taken_count(), 0);
        assert_eq!(pool.take(Parity::EvenPair, &mut rng), None);
        let taken = std::iter::from_fn(|| pool.take(Parity::Any, &mut rng));
        assert_eq!(taken.count(), 2);
    }

    #[test]
    fn pairs_and_returns() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut pool = PortPool::of_shard(50_001..=50_008, 0, 1);
        let mut evens = Vec::new();
        while let Some(port) = pool.take(Parity::EvenPair, &mut rng) {
            assert!(port.is_multiple_of(2));
            pool.mark(port + 1);
            evens.push(port);
        }
        assert_eq!(evens.len(), 3);
        assert_eq!(pool.take(Parity::Even, &mut rng), Some(50_008));
        assert_eq!(pool.take(Parity::Any, &mut rng), Some(50_001));
        assert_eq!(pool.take(Parity::Any, &mut rng), None);
        pool.give_back(50_004);
        assert_eq!(pool.take(Parity::Any, &mut rng), Some(50_004));
        assert_eq!(pool.taken_count(), 8);
    }
}
