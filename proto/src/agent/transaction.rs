//! When a request is sent again: every 150 ms for 5 s, then at doubling intervals up to 4 s. Never looks at what is in it.

use crate::time::Millis;

/// Between two repetitions at first, milliseconds.
const STEADY_GAP_MS: u64 = 150;
/// How long the steady repetition goes on, milliseconds.
const STEADY_MS: u64 = 5_000;
/// The longest interval, milliseconds.
const GAP_MAX_MS: u64 = 4_000;

/// The schedule of one request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Repetition {
    started: Millis,
    last_sent: Millis,
    next: Millis,
    gap_ms: u64,
    sent: u32,
}

impl Repetition {
    /// A request that is due at once.
    pub(super) const fn new(now: Millis) -> Self {
        Self {
            started: now,
            last_sent: now,
            next: now,
            gap_ms: STEADY_GAP_MS,
            sent: 0,
        }
    }

    pub(super) const fn started(&self) -> Millis {
        self.started
    }

    pub(super) const fn next(&self) -> Millis {
        self.next
    }

    pub(super) const fn is_unsent(&self) -> bool {
        self.sent == 0
    }

    /// The time of the only transmission; `None` if there were more, and an answer could belong to any of them.
    pub(super) const fn only_sent(&self) -> Option<Millis> {
        if self.sent == 1 {
            Some(self.last_sent)
        } else {
            None
        }
    }

    /// Notes a transmission and computes the next.
    pub(super) fn sent(&mut self, now: Millis) {
        self.sent += 1;
        self.last_sent = now;
        if now.since(self.started) >= STEADY_MS {
            self.gap_ms = (self.gap_ms * 2).min(GAP_MAX_MS);
        }
        self.next = now + self.gap_ms;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steady_for_five_seconds_then_doubling_to_four() {
        let mut repetition = Repetition::new(Millis(1000));
        let mut at = Vec::new();
        for _ in 0..42 {
            let now = repetition.next();
            repetition.sent(now);
            at.push(now.since(Millis(1000)));
        }
        assert!(
            at.windows(2)
                .take_while(|w| w[1] < 5_000)
                .all(|w| w[1] - w[0] == 150)
        );
        let gaps: Vec<u64> = at
            .windows(2)
            .filter(|w| w[0] >= 5_000)
            .map(|w| w[1] - w[0])
            .collect();
        assert_eq!(gaps, [300, 600, 1200, 2400, 4000, 4000, 4000][..gaps.len()]);
        assert!(gaps.len() >= 5);
    }
}
