//! When a shard sleeps for one datagram and when it waits for company.
//!
//! Whether waiting saves CPU time is a question to the host: on some a timer costs more than the wake-ups that it saves. So
//! under load both ways are tried for a moment, the cheaper one is kept, and the trial is repeated later and later while it
//! ends the same way. It reads the clock once per turn, and only if waiting is allowed at all; it never sleeps itself.

use std::time::{Duration, Instant};

/// Datagrams worth waiting for.
const WANT: u32 = 8;
/// The rate, and what it costs, is measured over at least this long.
const WINDOW: Duration = Duration::from_millis(10);
/// Waiting is considered when this many datagrams are expected within the longest wait.
const LEAST_EXPECTED: f64 = 1.5;
const LEAST_WAIT_US: f64 = 5.0;
/// The part of the longest wait that is spent asleep. The rest goes to company: whoever waited is also behind those that
/// are handled before it in its turn, and all of that together must not add more than was allowed.
const ASLEEP: f64 = 0.75;
/// Windows of each way in a trial. The cheapest of each counts: disturbances only ever make a window dearer.
const TRIAL_WINDOWS: usize = 3;
/// Waiting costs latency, so it must save at least this part of the CPU time.
const LEAST_SAVING: f64 = 0.05;
/// Windows until the next trial, after the first one and at most.
const HOLD_WINDOWS: (u32, u32) = (50, 1600);
/// A rate that changes by this factor is another load, which has its own trial.
const OTHER_LOAD: f64 = 1.5;

/// How to wait for the next datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wait {
    /// Until the first.
    ForOne,
    /// Until `want` have come, or `min_wait_us` have passed and at least one has come.
    ForMore { want: u32, min_wait_us: u32 },
}

/// What is under way besides the plain way.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Phase {
    /// Too few datagrams to wait for company.
    Calm,
    /// Both ways by turns, the plain one first; the CPU time per datagram of the cheapest window of each.
    Trial { windows: usize, cheapest: [f64; 2] },
    /// What the last trial said, for so many windows yet, at about this rate.
    Hold {
        waiting: bool,
        windows: u32,
        rate: f64,
    },
}

const NEW_TRIAL: Phase = Phase::Trial {
    windows: 0,
    cheapest: [f64::INFINITY; 2],
};

#[derive(Debug)]
pub(crate) struct Pace {
    longest_wait_us: u32,
    window_start: Instant,
    /// The thread's CPU time when the window began.
    window_start_cpu: Duration,
    window_datagrams: u64,
    phase: Phase,
    /// What the last trial said, and how long that is kept.
    verdict: bool,
    hold_windows: u32,
    wait: Wait,
}

impl Pace {
    pub(crate) fn new(longest_wait_us: u32) -> Self {
        Self {
            longest_wait_us,
            window_start: Instant::now(),
            window_start_cpu: thread_cpu_time(),
            window_datagrams: 0,
            phase: Phase::Calm,
            verdict: false,
            hold_windows: HOLD_WINDOWS.0,
            wait: Wait::ForOne,
        }
    }

    /// Counts `datagrams` that just arrived and says how to wait for the next ones.
    #[inline]
    pub(crate) fn next_wait(&mut self, datagrams: usize) -> Wait {
        if self.longest_wait_us == 0 {
            return Wait::ForOne;
        }
        self.next_wait_at(Instant::now(), datagrams, thread_cpu_time)
    }

    #[inline]
    fn next_wait_at(
        &mut self,
        now: Instant,
        datagrams: usize,
        cpu_time: impl FnOnce() -> Duration,
    ) -> Wait {
        self.window_datagrams += datagrams as u64;
        let elapsed = now.saturating_duration_since(self.window_start);
        if elapsed >= WINDOW {
            let cpu = cpu_time();
            let spent = cpu.saturating_sub(self.window_start_cpu);
            self.end_window(elapsed, spent);
            self.window_start = now;
            self.window_start_cpu = cpu;
            self.window_datagrams = 0;
        }
        self.wait
    }

    fn end_window(&mut self, elapsed: Duration, spent: Duration) {
        let datagrams = self.window_datagrams as f64;
        let rate = datagrams / elapsed.as_secs_f64();
        let per_wait = rate * f64::from(self.longest_wait_us) / 1e6;
        self.phase = if per_wait < LEAST_EXPECTED {
            Phase::Calm
        } else {
            self.next_phase(rate, spent.as_secs_f64() / datagrams)
        };
        let waiting = match self.phase {
            Phase::Calm => false,
            Phase::Trial { windows, .. } => windows % 2 == 1,
            Phase::Hold { waiting, .. } => waiting,
        };
        self.wait = if waiting {
            let longest = f64::from(self.longest_wait_us) * ASLEEP;
            let wait = (f64::from(WANT) / rate * 1e6)
                .max(LEAST_WAIT_US)
                .min(longest);
            Wait::ForMore {
                want: WANT,
                min_wait_us: wait as u32,
            }
        } else {
            Wait::ForOne
        };
    }

    /// The phase after a window with this many datagrams per second and this CPU time per datagram.
    fn next_phase(&mut self, rate: f64, cost: f64) -> Phase {
        match self.phase {
            Phase::Calm => NEW_TRIAL,
            Phase::Trial {
                windows,
                mut cheapest,
            } => {
                let way = &mut cheapest[windows % 2];
                *way = way.min(cost);
                let windows = windows + 1;
                if windows < 2 * TRIAL_WINDOWS {
                    return Phase::Trial { windows, cheapest };
                }
                let waiting = cheapest[1] < cheapest[0] * (1.0 - LEAST_SAVING);
                self.hold_windows = if waiting == self.verdict {
                    (self.hold_windows * 2).min(HOLD_WINDOWS.1)
                } else {
                    HOLD_WINDOWS.0
                };
                self.verdict = waiting;
                Phase::Hold {
                    waiting,
                    windows: self.hold_windows,
                    rate,
                }
            }
            Phase::Hold {
                waiting,
                windows,
                rate: held,
            } => {
                let is_other_load = rate > held * OTHER_LOAD || rate < held / OTHER_LOAD;
                if windows == 0 || is_other_load {
                    return NEW_TRIAL;
                }
                Phase::Hold {
                    waiting,
                    windows: windows - 1,
                    rate: held,
                }
            }
        }
    }
}

/// CPU time of this thread.
pub(crate) fn thread_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host on which a datagram costs so much CPU time, in nanoseconds: the plain way, and waiting.
    struct Host {
        pace: Pace,
        costs_ns: [u64; 2],
        now: Instant,
        cpu: Duration,
    }

    impl Host {
        fn new(longest_wait_us: u32, costs_ns: [u64; 2]) -> Self {
            let pace = Pace::new(longest_wait_us);
            Self {
                now: pace.window_start,
                cpu: pace.window_start_cpu,
                pace,
                costs_ns,
            }
        }

        /// How the shard waits after each of `windows` windows at a rate.
        fn run(&mut self, windows: usize, per_second: u64) -> Vec<Wait> {
            let mut waits = Vec::new();
            for _ in 0..windows {
                let datagrams = per_second / 100;
                let cost = self.costs_ns[usize::from(self.pace.wait != Wait::ForOne)];
                self.now += WINDOW;
                self.cpu += Duration::from_nanos(datagrams * cost);
                let cpu = self.cpu;
                let wait = self.pace.next_wait_at(self.now, datagrams as usize, || cpu);
                waits.push(wait);
            }
            waits
        }
    }

    const fn busy(min_wait_us: u32) -> Wait {
        Wait::ForMore {
            want: 8,
            min_wait_us,
        }
    }

    #[test]
    fn a_calm_shard_never_waits() {
        for per_second in [0, 29_000] {
            let mut host = Host::new(50, [10_000, 1]);
            assert_eq!(host.run(100, per_second), [Wait::ForOne; 100]);
        }
    }

    #[test]
    fn a_busy_shard_tries_both_ways_and_waits_where_that_is_cheaper() {
        let mut host = Host::new(50, [7000, 5000]);
        let waits = host.run(7, 60_000);
        let (one, more) = (Wait::ForOne, busy(37));
        assert_eq!(waits, [one, more, one, more, one, more, more]);
        assert!(host.run(50, 60_000).iter().all(|&wait| wait == more));
        // The next trial.
        assert_eq!(host.run(3, 60_000), [one, more, one]);
    }

    #[test]
    fn it_does_not_wait_where_that_saves_nothing() {
        for waiting_ns in [5000, 4800, 7000] {
            let mut host = Host::new(50, [5000, waiting_ns]);
            host.run(7, 60_000);
            assert_eq!(host.run(100, 60_000), [Wait::ForOne; 100]);
        }
    }

    #[test]
    fn trials_become_rare() {
        let mut host = Host::new(50, [5000, 7000]);
        let waits = host.run(10_000, 60_000);
        let waited = waits.iter().filter(|&&wait| wait != Wait::ForOne).count();
        // After 100, 200, 400, 800, and then 1600 windows each; three windows of a trial wait.
        assert_eq!(waited, 3 * 10);
    }

    #[test]
    fn another_load_has_its_own_trial() {
        let mut host = Host::new(50, [5000, 7000]);
        host.run(7, 60_000);
        host.costs_ns = [5000, 3000];
        assert_eq!(host.run(20, 80_000), [Wait::ForOne; 20]);
        host.run(7, 200_000);
        assert_eq!(host.run(2, 200_000), [busy(37); 2]);
        assert_eq!(host.run(1, 20_000), [Wait::ForOne]);
    }

    #[test]
    fn a_wait_ends_when_its_company_is_expected() {
        for (longest_us, per_second, expected_us) in
            [(50, 400_000, 20), (50, 8_000_000, 5), (2, 8_000_000, 1)]
        {
            let mut host = Host::new(longest_us, [2, 1]);
            assert_eq!(host.run(7, per_second)[6], busy(expected_us));
        }
    }

    #[test]
    fn without_permission_it_never_waits() {
        let mut pace = Pace::new(0);
        assert_eq!(pace.next_wait(1_000_000), Wait::ForOne);
    }
}
