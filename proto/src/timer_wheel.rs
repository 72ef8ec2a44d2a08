//! A hierarchical timer wheel: four levels of 64 slots with a tick of 16 ms, so that setting a timer and passing time
//! cost the same whether ten or a million are set. Timers are not cancelled: their owner ignores one it no longer
//! expects.

use crate::time::Millis;

const TICK_MS: u64 = 16;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 4;

/// Timers that carry a key. A timer fires at its time or up to one tick (16 ms) after it, never before.
pub struct TimerWheel<K> {
    /// The tick that was processed last.
    tick: u64,
    slots: [[Vec<(u64, K)>; SLOTS]; LEVELS],
    /// One bit per slot that is not empty.
    occupied: [u64; LEVELS],
    /// The next tick at which something fires or moves down a level; [`NEVER`] if no timer is set. Kept, because a shard asks
    /// for it each time it wakes.
    next_busy: u64,
    len: usize,
}

const NEVER: u64 = u64::MAX;

impl<K: Copy> TimerWheel<K> {
    /// An empty wheel that starts at `now`.
    #[must_use]
    pub fn new(now: Millis) -> Self {
        Self {
            tick: now.0 / TICK_MS,
            slots: std::array::from_fn(|_| std::array::from_fn(|_| Vec::new())),
            occupied: [0; LEVELS],
            next_busy: NEVER,
            len: 0,
        }
    }

    /// Timers that are set.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether no timer is set.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Sets a timer. One in the past fires at the next [`TimerWheel::advance`] that passes a tick.
    pub fn schedule(&mut self, at: Millis, key: K) {
        self.len += 1;
        self.place(at.0.div_ceil(TICK_MS).max(self.tick + 1), key);
    }

    fn place(&mut self, due: u64, key: K) {
        // What is further off than the wheel reaches waits in the last slot of the top level and is placed again.
        let reach = due - self.tick;
        let level = (0..LEVELS)
            .find(|&level| reach >> (SLOT_BITS * (level as u32 + 1)) == 0)
            .unwrap_or(LEVELS - 1);
        let furthest = self.tick + ((1u64 << (SLOT_BITS * LEVELS as u32)) - 1);
        let shift = SLOT_BITS * level as u32;
        let place = due.min(furthest) >> shift;
        let slot = place & (SLOTS as u64 - 1);
        self.slots[level][slot as usize].push((due, key));
        self.occupied[level] |= 1 << slot;
        self.next_busy = self.next_busy.min(place << shift);
    }

    /// Lets time pass until `now` and appends the keys of the timers that fired to `fired`.
    pub fn advance(&mut self, now: Millis, fired: &mut Vec<K>) {
        let target = now.0 / TICK_MS;
        while self.tick < target {
            self.tick = self.next_busy.min(target);
            if self.tick < self.next_busy {
                return;
            }
            for level in (1..LEVELS).rev() {
                let shift = SLOT_BITS * level as u32;
                if self.tick & ((1 << shift) - 1) == 0 {
                    let slot = (self.tick >> shift) as usize & (SLOTS - 1);
                    self.cascade(level, slot);
                }
            }
            let slot = self.tick as usize & (SLOTS - 1);
            if self.occupied[0] & 1 << slot != 0 {
                self.occupied[0] &= !(1 << slot);
                self.len -= self.slots[0][slot].len();
                fired.extend(self.slots[0][slot].drain(..).map(|(_, key)| key));
            }
            self.next_busy = self.find_next_busy();
        }
    }

    fn cascade(&mut self, level: usize, slot: usize) {
        if self.occupied[level] & 1 << slot == 0 {
            return;
        }
        self.occupied[level] &= !(1 << slot);
        let mut moved = std::mem::take(&mut self.slots[level][slot]);
        for &(due, key) in &moved {
            // A timer that is due at this very tick belongs to the level-0 slot about to be drained.
            self.place(due.max(self.tick), key);
        }
        moved.clear();
        if self.slots[level][slot].is_empty() {
            self.slots[level][slot] = moved;
        }
    }

    fn find_next_busy(&self) -> u64 {
        (0..LEVELS)
            .filter_map(|level| {
                let shift = SLOT_BITS * level as u32;
                let current = self.tick >> shift;
                let from = (current + 1) & (SLOTS as u64 - 1);
                let ahead = self.occupied[level].rotate_right(from as u32);
                (ahead != 0).then(|| (current + 1 + u64::from(ahead.trailing_zeros())) << shift)
            })
            .min()
            .unwrap_or(NEVER)
    }

    /// When [`TimerWheel::advance`] next has something to do; `None` if no timer is set.
    #[inline]
    #[must_use]
    pub const fn next_timeout(&self) -> Option<Millis> {
        match self.next_busy {
            NEVER => None,
            tick => Some(Millis(tick * TICK_MS)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        // Against the obvious model: a sorted list.
        #[test]
        fn fires_everything_once_and_on_time(
            start in 0u64..1_000_000,
            delays in proptest::collection::vec(0u64..400_000_000, 1..60),
            steps in proptest::collection::vec(1u64..30_000_000, 1..40),
        ) {
            let mut wheel = TimerWheel::new(Millis(start));
            let dues: Vec<u64> = delays.iter().map(|delay| start + delay).collect();
            for (i, due) in dues.iter().enumerate() {
                wheel.schedule(Millis(*due), i);
            }
            let mut now = start;
            let mut fired_at = vec![None; dues.len()];
            let mut fired = Vec::new();
            for step in steps.into_iter().chain([500_000_000]) {
                let last = now;
                now += step;
                wheel.advance(Millis(now), &mut fired);
                for i in fired.drain(..) {
                    prop_assert!(fired_at[i].is_none(), "fired twice");
                    prop_assert!(dues[i] <= now, "fired early");
                    prop_assert!(dues[i] + 2 * TICK_MS > last, "fired late");
                    fired_at[i] = Some(now);
                }
            }
            prop_assert!(fired_at.iter().all(Option::is_some));
            prop_assert!(wheel.is_empty());
        }

        #[test]
        fn following_next_timeout_misses_nothing(delays in proptest::collection::vec(0u64..10_000_000, 1..30)) {
            let mut wheel = TimerWheel::new(Millis(0));
            for delay in &delays {
                wheel.schedule(Millis(*delay), *delay);
            }
            let mut fired = Vec::new();
            let mut count = 0;
            while let Some(at) = wheel.next_timeout() {
                wheel.advance(at, &mut fired);
                for due in fired.drain(..) {
                    count += 1;
                    prop_assert!(due <= at.0 && at.0 < due + 2 * TICK_MS, "due {due} at {at:?}");
                }
            }
            prop_assert_eq!(count, delays.len());
        }
    }
}
