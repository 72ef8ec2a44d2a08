//! When to send: an open-loop schedule. At a constant rate it has equally spaced ticks, each with the same number of slots; the
//! other shapes have one slot after the other. Slots never move because one was late. It reads no clock and sends nothing.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

/// Ticks are at least this far apart: more of them would measure how fast the generator wakes up.
const TICKS_PER_SEC_MAX: u64 = 10_000;

/// Slots from one moment to another.
#[derive(Debug)]
pub struct Schedule {
    next: Slot,
    pace: Pace,
    end_ns: u64,
    give_up_ns: u64,
}

/// How slots follow each other.
#[derive(Debug)]
enum Pace {
    Even(Even),
    Uneven(Box<Uneven>),
}

/// A constant rate, without an error that adds up.
#[derive(Debug)]
struct Even {
    /// Slots of one tick, and those of the present tick that are left.
    burst: u64,
    left: u64,
    /// Ticks are `step_ns + step_rest / per` nanoseconds apart.
    step_ns: u64,
    step_rest: u64,
    per: u64,
    /// What the whole nanoseconds leave over, in units of `1 / per`.
    rest: u64,
}

/// A rate that grows or falls linearly, random arrivals, or both. The expected number of slots until a moment is a function of
/// it; slots stand where that reaches the next whole number, or where a Poisson process of rate 1 has an arrival.
#[derive(Debug)]
struct Uneven {
    start_ns: u64,
    /// Expected slots per nanosecond at the start, and what that grows by in each.
    from: f64,
    slope: f64,
    /// Expected slots until the next one.
    expected: f64,
    /// For random arrivals.
    rng: Option<StdRng>,
}

/// What a load looks like over time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Whether arrivals are a Poisson process, from which seed.
    pub poisson: Option<u64>,
    /// The rate at the start, if it is not that of the end.
    pub ramp_from: Option<Rate>,
}

impl Shape {
    /// Evenly spaced at one rate.
    pub const EVEN: Self = Self {
        poisson: None,
        ramp_from: None,
    };
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

impl Rate {
    fn per_ns(self) -> f64 {
        self.slots as f64 / (self.seconds.max(1) as f64 * 1e9)
    }
}

impl Schedule {
    /// Slots of `rate` from `start_ns` (the first) to `end_ns` (exclusive). A slot later than `give_up_ns` is missed.
    pub fn new(rate: Rate, start_ns: u64, end_ns: u64, give_up_ns: u64) -> Self {
        Self::shaped(Shape::EVEN, rate, start_ns, end_ns, give_up_ns)
    }

    /// As [`Schedule::new`], but `shape` says how slots follow each other; `rate` is that of the end.
    pub fn shaped(shape: Shape, rate: Rate, start_ns: u64, end_ns: u64, give_up_ns: u64) -> Self {
        let first_ns = if rate.slots == 0 { u64::MAX } else { start_ns };
        let mut schedule = Self {
            next: Slot {
                number: 0,
                intended_ns: first_ns,
            },
            pace: Pace::Even(Even::new(rate)),
            end_ns,
            give_up_ns,
        };
        if shape != Shape::EVEN && rate.slots > 0 {
            let mut uneven = Uneven::new(shape, rate, start_ns, end_ns);
            if uneven.rng.is_some() {
                schedule.next.intended_ns = uneven.step();
            }
            schedule.pace = Pace::Uneven(Box::new(uneven));
        }
        schedule
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
        self.next.intended_ns = match &mut self.pace {
            Pace::Even(even) => slot.intended_ns.saturating_add(even.step()),
            Pace::Uneven(uneven) => uneven.step(),
        };
        if now_ns - slot.intended_ns > self.give_up_ns {
            Some(Due::Missed(slot))
        } else {
            Some(Due::Send(slot))
        }
    }
}

impl Even {
    fn new(rate: Rate) -> Self {
        let burst = (rate.slots / rate.seconds.max(1))
            .div_ceil(TICKS_PER_SEC_MAX)
            .max(1);
        let spacing = u128::from(rate.seconds) * 1_000_000_000 * u128::from(burst);
        let per = rate.slots.max(1);
        Self {
            burst,
            left: burst,
            step_ns: u64::try_from(spacing / u128::from(per)).unwrap_or(u64::MAX),
            step_rest: u64::try_from(spacing % u128::from(per)).unwrap_or(0),
            per,
            rest: 0,
        }
    }

    /// From a slot to the next one, nanoseconds.
    fn step(&mut self) -> u64 {
        self.left -= 1;
        if self.left > 0 {
            return 0;
        }
        self.left = self.burst;
        self.rest += self.step_rest;
        if self.rest < self.per {
            return self.step_ns;
        }
        self.rest -= self.per;
        self.step_ns + 1
    }
}

impl Uneven {
    fn new(shape: Shape, rate: Rate, start_ns: u64, end_ns: u64) -> Self {
        let from = shape.ramp_from.unwrap_or(rate).per_ns();
        let long = end_ns.saturating_sub(start_ns).max(1) as f64;
        Self {
            start_ns,
            from,
            slope: (rate.per_ns() - from) / long,
            expected: 0.0,
            rng: shape.poisson.map(StdRng::seed_from_u64),
        }
    }

    /// The time of the next slot.
    fn step(&mut self) -> u64 {
        self.expected += match &mut self.rng {
            // The distance of a Poisson process' arrivals is exponential; 1 - [0, 1) is never 0.
            Some(rng) => -(1.0 - rng.random::<f64>()).ln(),
            None => 1.0,
        };
        // from * t + slope * t^2 / 2 = expected, in the form that does not divide by a slope near 0.
        let under_root = self.from * self.from + 2.0 * self.slope * self.expected;
        let t = 2.0 * self.expected / (self.from + under_root.sqrt());
        if t.is_finite() {
            self.start_ns.saturating_add(t as u64)
        } else {
            u64::MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn rate(slots: u64, seconds: u64) -> Rate {
        Rate { slots, seconds }
    }

    fn burst_of(schedule: &Schedule) -> u64 {
        match &schedule.pace {
            Pace::Even(even) => even.burst,
            Pace::Uneven(_) => 1,
        }
    }

    fn times(shape: Shape, slots: u64, end_ns: u64) -> Vec<u64> {
        let mut schedule = Schedule::shaped(shape, rate(slots, 1), 0, end_ns, u64::MAX);
        let mut times = Vec::new();
        while let Some(Due::Send(slot)) = schedule.take(u64::MAX) {
            times.push(slot.intended_ns);
        }
        times
    }

    #[test]
    fn a_ramp_has_as_many_slots_as_its_mean_rate_and_more_towards_its_end() {
        for (from, to) in [(0, 2000), (2000, 1), (500, 1500), (1000, 1000)] {
            let shape = Shape {
                ramp_from: Some(rate(from, 1)),
                ..Shape::EVEN
            };
            let times = times(shape, to, 10 * SECOND);
            let expected = (from + to) * 5;
            let count = times.len() as u64;
            assert!(count.abs_diff(expected) <= 10, "{from} to {to}: {count}");
            assert!(times.is_sorted());
            let first_half = times.iter().filter(|at| **at < 5 * SECOND).count() as u64;
            // Half of the time at a mean of three parts of the first rate and one of the last.
            let in_first_half = (3 * from + to) * 5 / 4;
            assert!(first_half.abs_diff(in_first_half) <= 10, "{first_half}");
        }
    }

    #[test]
    fn random_arrivals_have_the_rate_and_the_spread_of_a_poisson_process() {
        let shape = Shape {
            poisson: Some(7),
            ramp_from: None,
        };
        let times = times(shape, 1000, 100 * SECOND);
        // The standard deviation of the number is its root, 316.
        assert!(times.len().abs_diff(100_000) < 5 * 316, "{}", times.len());
        let mut in_second = vec![0f64; 100];
        times
            .iter()
            .for_each(|at| in_second[(at / SECOND) as usize] += 1.0);
        let mean = in_second.iter().sum::<f64>() / 100.0;
        let variance = in_second.iter().map(|n| (n - mean).powi(2)).sum::<f64>() / 100.0;
        assert!((0.5..2.0).contains(&(variance / mean)), "{variance} {mean}");
        assert!(times.is_sorted());
    }

    #[test]
    fn slots_do_not_drift_at_rates_that_do_not_divide_a_second() {
        for (slots, seconds) in [(3, 1), (7, 3), (40_000, 1), (999_983, 7), (1, 1)] {
            let end = 100 * seconds * SECOND + 5;
            let mut schedule = Schedule::new(rate(slots, seconds), 5, end, u64::MAX);
            let mut count = 0;
            while let Some(Due::Send(slot)) = schedule.take(u64::MAX) {
                let burst = burst_of(&schedule);
                let first_of_tick = slot.number / burst * burst;
                let exact = u128::from(first_of_tick) * u128::from(seconds * SECOND)
                    / u128::from(slots)
                    + 5;
                assert_eq!(u128::from(slot.intended_ns), exact, "{slots}/{seconds}");
                count += 1;
            }
            assert_eq!(count, (100 * slots).next_multiple_of(burst_of(&schedule)));
        }
    }

    #[test]
    fn many_slots_share_ticks_and_few_do_not() {
        let burst = |slots, seconds| burst_of(&Schedule::new(rate(slots, seconds), 0, SECOND, 0));
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
