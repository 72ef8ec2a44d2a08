//! What the threads of a run share: when the load begins, whether all must stop, and how far they are. Never waits.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

/// When the load runs, nanoseconds of the run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Period {
    /// The first datagram.
    pub start_ns: u64,
    /// The first datagram that is measured.
    pub measured_ns: u64,
    /// The end of the load.
    pub end_ns: u64,
}

impl Period {
    /// Whether a datagram that was to be sent then is measured.
    pub const fn measures(&self, intended_ns: u64) -> bool {
        intended_ns >= self.measured_ns && intended_ns < self.end_ns
    }
}

/// Shared by the threads of a run.
#[derive(Debug, Default)]
pub struct Gate {
    start_ns: AtomicU64,
    stopped: AtomicBool,
    /// Sessions set up.
    pub opened: AtomicU64,
}

impl Gate {
    /// Lets the load begin at `start_ns`, which is not 0.
    pub fn open(&self, start_ns: u64) {
        self.start_ns.store(start_ns, Relaxed);
    }

    /// When the load begins, once that is known.
    pub fn start_ns(&self) -> Option<u64> {
        Some(self.start_ns.load(Relaxed)).filter(|ns| *ns != 0)
    }

    /// Makes all threads end.
    pub fn stop(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Whether all must end.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Relaxed)
    }
}
