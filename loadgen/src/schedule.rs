//! When to send: an open-loop schedule of equally spaced ticks, each with the same number of slots. A slot's time follows
//! from its number alone, so what was late never moves what comes after. It reads no clock and sends nothing.

/// Ticks are at least this far apart: more of them would measure how fast the generator wakes up.
const TICKS_PER_SEC_MAX: u64 = 10_000;

/// Slots at a constant rate from one moment to another.
#[derive(Clone, Debug)]
pub struct Schedule {
    next: Slot,
    /// Slots of one tick, and those of the present tick that are left.
    burst: u64,
    left: u64,
    /// Ticks are `step_ns + step_rest / per` nanoseconds apart.
    step_ns: u64,
    step_rest: u64,
    per: u64,
    /// What the whole nanoseconds leave over, in units of `1 / per`.
    rest: u64,
    end_ns: u64,
    give_up_ns: u64,
}

/// A time to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Counted from 0.
    pub number: u64,
    /// When it is to be sent, nanoseconds.
    pub intended_ns: u64,
}

/// What became of a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// It is to be sent now.
    Send(Slot),
    /// It is so late that it is given up.
    Missed(Slot),
}

/// A rate as a fraction, so that a share of a rate is exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rate {
    /// So many slots,
    pub slots: u64,
    /// in so many seconds.
    pub seconds: u64,
}

impl Schedule {
    /// Slots of `rate` from `start_ns` (the first) to `end_ns` (exclusive). A slot later than `give_up_ns` is missed.
    pub fn new(rate: Rate, start_ns: u64, end_ns: u64, give_up_ns: u64) -> Self {
        let burst = (rate.slots / rate.seconds.max(1))
            .div_ceil(TICKS_PER_SEC_MAX)
            .max(1);
        let spacing = u128::from(rate.seconds) * 1_000_000_000 * u128::from(burst);
        let per = rate.slots.max(1);
        let step_ns = u64::try_from(spacing / u128::from(per)).unwrap_or(u64::MAX);
        let step_rest = u64::try_from(spacing % u128::from(per)).unwrap_or(0);
        Self {
            next: Slot {
                number: 0,
                intended_ns: if rate.slots == 0 { u64::MAX } else { start_ns },
            },
            burst,
            left: burst,
            step_ns,
            step_rest,
            per,
            rest: 0,
            end_ns,
            give_up_ns,
        }
    }

    /// The time of the next slot; `None` when there is no more.
    pub fn next_ns(&self) -> Option<u64> {
        let at = self.next.intended_ns;
        (at < self.end_ns).then_some(at)
    }

    /// Takes the next slot if its time has come.
    pub fn take(&mut self, now_ns: u64) -> Option<Due> {
        let slot = self.next;
        if self.next_ns()? > now_ns {
            return None;
        }
        self.next.number += 1;
        self.left -= 1;
        if self.left == 0 {
            self.next_tick();
        }
        if now_ns - slot.intended_ns > self.give_up_ns {
            Some(Due::Missed(slot))
        } else {
            Some(Due::Send(slot))
        }
    }

    fn next_tick(&mut self) {
        self.left = self.burst;
        let mut step_ns = self.step_ns;
        self.rest += self.step_rest;
        if self.rest >= self.per {
            self.rest -= self.per;
            step_ns += 1;
        }
        self.next.intended_ns = self.next.intended_ns.saturating_add(step_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(slots: u64, seconds: u64) -> Rate {
        Rate { slots, seconds }
    }

    #[test]
    fn slots_do_not_drift_at_rates_that_do_not_divide_a_second() {
        for (slots, seconds) in [(3, 1), (7, 3), (40_000, 1), (999_983, 7), (1, 1)] {
            let end = 100 * seconds * SECOND + 5;
            let mut schedule = Schedule::new(rate(slots, seconds), 5, end, u64::MAX);
            let mut count = 0;
            while let Some(Due::Send(slot)) = schedule.take(u64::MAX) {
                let first_of_tick = slot.number / schedule.burst * schedule.burst;
                let exact = u128::from(first_of_tick) * u128::from(seconds * SECOND)
                    / u128::from(slots)
                    + 5;
                assert_eq!(u128::from(slot.intended_ns), exact, "{slots}/{seconds}");
                count += 1;
            }
            assert_eq!(count, (100 * slots).next_multiple_of(schedule.burst));
        }
    }

    #[test]
    fn many_slots_share_ticks_and_few_do_not() {
        let burst = |slots, seconds| Schedule::new(rate(slots, seconds), 0, SECOND, 0).burst;
        assert_eq!(
            [
                burst(1, 1),
                burst(10_000, 1),
                burst(10_001, 1),
                burst(40_000, 1)
            ],
            [1, 1, 2, 4]
        );
        assert_eq!(burst(40_000, 4), 1);
    }

    #[test]
    fn a_late_taker_changes_no_slot() {
        let taken = |times: &[u64]| {
            let mut schedule = Schedule::new(rate(1000, 1), 0, SECOND / 100, u64::MAX);
            let mut slots = Vec::new();
            for &now in times {
                while let Some(due) = schedule.take(now) {
                    slots.push(due);
                }
            }
            slots
        };
        let punctual: Vec<u64> = (0..10).map(|i| i * 1_000_000).collect();
        assert_eq!(taken(&punctual), taken(&[500, 7_300_000, 99_000_000]));
    }

    #[test]
    fn nothing_is_due_early_and_nothing_after_the_end() {
        let mut schedule = Schedule::new(rate(10, 1), 50, SECOND + 50, u64::MAX);
        assert_eq!((schedule.next_ns(), schedule.take(49)), (Some(50), None));
        while schedule.take(u64::MAX).is_some() {}
        assert_eq!(schedule.next_ns(), None);
        assert_eq!(
            Schedule::new(rate(0, 1), 0, SECOND, 0).take(SECOND),
            None,
            "no rate, no slot"
        );
    }

    #[test]
    fn what_is_too_late_is_missed() {
        let mut schedule = Schedule::new(rate(1000, 1), 0, SECOND, 2_500_000);
        let mut missed = 0;
        let mut sent = Vec::new();
        while let Some(due) = schedule.take(5_000_000) {
            match due {
                Due::Missed(_) => missed += 1,
                Due::Send(slot) => sent.push(slot.number),
            }
        }
        assert_eq!((missed, sent), (3, vec![3, 4, 5]));
    }
}
