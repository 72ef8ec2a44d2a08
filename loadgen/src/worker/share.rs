//! What one generator thread has to do. Reads nothing and decides nothing.

use std::sync::Arc;
use std::time::Duration;

use crate::protocol::Kit;
use crate::schedule::{Rate, Shape};
use crate::sockets::Sources;

/// What one thread has to do.
#[derive(Clone)]
pub struct Share {
    /// Number of the thread.
    pub thread: usize,
    /// Numbers of its sessions.
    pub places: std::ops::Range<u32>,
    /// Members of each.
    pub members: u8,
    /// Datagrams of this thread.
    pub rate: Rate,
    /// How they are spread over time.
    pub shape: Shape,
    /// Bytes of each that the host sends, and of each that another member sends.
    pub sizes: Sizes,
    /// Sessions of this thread asked for in a second, whatever becomes of them; `None`: so many at a time.
    pub setup: Option<Rate>,
    /// Sessions that may be set up or closed at the same time.
    pub window: usize,
    /// First requests of strangers.
    pub flood: Rate,
    /// Sessions that this thread replaces: as many per second.
    pub churn: f64,
    /// What sessions are made from.
    pub kit: Kit,
    /// Who sends to whom in each session.
    pub directions: Arc<[(u8, u8)]>,
    /// What the members' sockets are bound to.
    pub sources: Sources,
    /// Tells runs apart.
    pub run: u32,
    /// Where choices come from.
    pub seed: u64,
    /// Load before the measured time.
    pub warm_up: Duration,
    /// The measured time.
    pub duration: Duration,
    /// The verdict's limit of the lag.
    pub lag_limit: Duration,
}

/// Bytes of payloads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sizes {
    /// Of the host's.
    pub host: usize,
    /// Of everybody else's.
    pub others: usize,
}

impl Sizes {
    /// Those of member `from`.
    pub const fn of(self, from: usize) -> usize {
        if from == 0 { self.host } else { self.others }
    }
}
