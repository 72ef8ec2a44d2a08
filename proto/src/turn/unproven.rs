//! How many bytes a source may draw from this server before it has proved its address: a fixed table of budgets by source
//! prefix, so that a forged source is no worthwhile victim and no attacker can make the table grow. Prefixes that fall
//! into one place share its budget.

use ahash::RandomState;

use crate::addr::Addr;
use crate::time::Millis;

const PLACES: usize = 8192;
/// What may be drawn at once: this many milliseconds' worth.
const BURST_MS: u64 = 8000;
/// Bytes of IPv4 and UDP headers, which the victim's line carries too.
const PACKET_OVERHEAD: u64 = 28;

/// The budgets of all sources.
pub(crate) struct ReplyBudget {
    hasher: RandomState,
    /// Bytes per second; 0 is no limit.
    bytes_per_sec: u32,
    /// When what was drawn so far will have been earned, in milliseconds.
    earned_at: Box<[u64]>,
}

impl ReplyBudget {
    pub fn new(hasher: RandomState, bytes_per_sec: u32) -> Self {
        Self {
            hasher,
            bytes_per_sec,
            earned_at: vec![0; PLACES].into_boxed_slice(),
        }
    }

    /// Draws a reply of `len` bytes for `source`; false if it must not be sent. Loopback sources cannot be forged from
    /// outside and have no budget.
    pub fn draw(&mut self, now: Millis, source: Addr, len: usize) -> bool {
        if self.bytes_per_sec == 0 || source.ip().is_loopback() {
            return true;
        }
        let place = self.hasher.hash_one(source.source_prefix()) as usize % PLACES;
        let earned_at = &mut self.earned_at[place];
        if *earned_at > now.0 + BURST_MS {
            return false;
        }
        let cost = (len as u64 + PACKET_OVERHEAD) * 1000 / u64::from(self.bytes_per_sec);
        *earned_at = (*earned_at).max(now.0) + cost;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_draws_its_rate_and_loopback_all() {
        let hasher = RandomState::with_seeds(1, 2, 3, 4);
        let mut budget = ReplyBudget::new(hasher, 1000);
        let source = |text: &str| Addr::new(text.parse().unwrap());
        let mut drawn = |from: u64, to: u64, prefix: &str| {
            (from..to)
                .filter(|ms| {
                    let port = 1000 + ms % 60_000;
                    budget.draw(Millis(*ms), source(&format!("{prefix}:{port}")), 72)
                })
                .count()
        };
        assert_eq!(drawn(0, 60_000, "198.51.100.1"), 10 * 60 + 80);
        assert_eq!(drawn(0, 50, "198.51.100.2"), 50);
        assert_eq!(drawn(0, 1000, "127.0.0.1"), 1000);
        assert_eq!(drawn(0, 1000, "[::1]"), 1000);
    }
}
