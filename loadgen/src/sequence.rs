//! The order of one flow's arrivals: what is new, late or there already. Never counts losses: what is missing may still come.

/// Arrivals of one flow, the newest [`Arrivals::WINDOW`] of them one by one.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// One more than the highest number that has arrived.
    next: u64,
    /// Which of the numbers below `next` have arrived, by number modulo the window.
    arrived: [u64; Self::WORDS],
}

/// How a datagram arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arrival {
    /// After all that had arrived before.
    InOrder,
    /// After one that was sent later. That includes what is so late that nobody knows whether it had arrived before.
    Late,
    /// For the second time.
    Duplicate,
}

impl Arrivals {
    const WORDS: usize = 8;
    /// How far back a second arrival is told from a late one.
    pub const WINDOW: u64 = Self::WORDS as u64 * 64;

    /// Takes note of the datagram with that number.
    pub fn note(&mut self, sequence: u64) -> Arrival {
        if sequence >= self.next {
            let skipped = (sequence - self.next).min(Self::WINDOW);
            for missing in sequence - skipped..sequence {
                *self.word(missing) &= !Self::bit(missing);
            }
            *self.word(sequence) |= Self::bit(sequence);
            self.next = sequence.saturating_add(1);
            return Arrival::InOrder;
        }
        if self.next - sequence > Self::WINDOW {
            return Arrival::Late;
        }
        let bit = Self::bit(sequence);
        let word = self.word(sequence);
        if *word & bit != 0 {
            return Arrival::Duplicate;
        }
        *word |= bit;
        Arrival::Late
    }

    fn word(&mut self, sequence: u64) -> &mut u64 {
        &mut self.arrived[(sequence / 64) as usize % Self::WORDS]
    }

    const fn bit(sequence: u64) -> u64 {
        1 << (sequence % 64)
    }
}

#[cfg(test)]
mod tests {
    use super::Arrival::{Duplicate, InOrder, Late};
    use super::*;

    fn noted(sequences: &[u64]) -> Vec<Arrival> {
        let mut arrivals = Arrivals::default();
        sequences.iter().map(|&s| arrivals.note(s)).collect()
    }

    #[test]
    fn gaps_are_filled_late_and_only_once() {
        assert_eq!(
            noted(&[0, 1, 4, 2, 4, 2, 3, 5]),
            [
                InOrder, InOrder, InOrder, Late, Duplicate, Duplicate, Late, InOrder
            ]
        );
    }

    #[test]
    fn the_first_may_be_any() {
        assert_eq!(noted(&[900, 899, 900]), [InOrder, Late, Duplicate]);
    }

    #[test]
    fn a_window_that_has_come_round_forgets_what_was_there() {
        let w = Arrivals::WINDOW;
        let mut all: Vec<u64> = (0..w).collect();
        all.extend([3 * w, 3 * w - 1, 2 * w + 1, 2 * w, 3 * w - 1]);
        let noted = noted(&all);
        assert_eq!(
            noted[w as usize..],
            [InOrder, Late, Late, Late, Duplicate],
            "the window's end is counted from the newest"
        );
    }

    #[test]
    fn long_runs_in_order_have_no_duplicates() {
        let mut arrivals = Arrivals::default();
        assert!((0..10 * Arrivals::WINDOW).all(|s| arrivals.note(s) == InOrder));
        assert!(
            (9 * Arrivals::WINDOW..10 * Arrivals::WINDOW).all(|s| arrivals.note(s) == Duplicate)
        );
    }
}
