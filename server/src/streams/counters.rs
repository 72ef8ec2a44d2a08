//! What a shard counts of its streams, and how that appears among an operator's metrics.

use super::End;
use crate::control::metrics::{CounterSpec, counter, gauge};

const ENDED: &str = "waypost_streams_ended_total";
const ENDED_HELP: &str = "TCP and TLS connections that ended, by cause";
const SERVED: &str = "waypost_streams_served_total";
const SERVED_HELP: &str = "Connections taken in, by what they carry";
const DROPPED: &str = "waypost_dropped_total";
const DROPPED_HELP: &str = "Packets dropped, by reason";

const fn ended(cause: &'static [(&'static str, &'static str)]) -> CounterSpec {
    counter(ENDED, ENDED_HELP, cause)
}

/// The metrics, in the order of [`StreamCounters::values`].
pub const STREAM_COUNTERS: &[CounterSpec] = &[
    gauge(
        "waypost_streams",
        "TCP and TLS connections that are open",
        &[],
    ),
    counter(SERVED, SERVED_HELP, &[("proto", "tcp")]),
    counter(SERVED, SERVED_HELP, &[("proto", "tls")]),
    counter(
        "waypost_streams_over_source_limit_total",
        "Connections closed at once because their source has too many",
        &[],
    ),
    ended(&[("cause", "peer")]),
    ended(&[("cause", "bad_frame")]),
    ended(&[("cause", "tls_handshake")]),
    ended(&[("cause", "tls_record")]),
    ended(&[("cause", "no_first_message")]),
    ended(&[("cause", "idle")]),
    ended(&[("cause", "not_reading")]),
    counter(DROPPED, DROPPED_HELP, &[("reason", "stream_full")]),
    counter(DROPPED, DROPPED_HELP, &[("reason", "stream_gone")]),
    counter(DROPPED, DROPPED_HELP, &[("reason", "stream_mailbox")]),
    counter(DROPPED, DROPPED_HELP, &[("reason", "too_large")]),
];

/// The numbers of one shard.
#[derive(Clone, Debug, Default)]
pub struct StreamCounters {
    pub(super) open: u64,
    pub(super) accepted_tcp: u64,
    pub(super) accepted_tls: u64,
    pub(super) over_source_limit: u64,
    ended_by_peer: u64,
    bad_frames: u64,
    pub(super) handshake_failures: u64,
    record_failures: u64,
    no_first_message: u64,
    idle: u64,
    not_reading: u64,
    pub(super) dropped_full: u64,
    pub(super) dropped_gone: u64,
    pub(super) dropped_mailbox: u64,
    pub(super) dropped_too_large: u64,
}

impl StreamCounters {
    pub(super) const fn ended(&mut self, end: End) -> &mut u64 {
        match end {
            End::Peer => &mut self.ended_by_peer,
            End::BadFrame => &mut self.bad_frames,
            End::Tls => &mut self.record_failures,
            End::FirstMessage => &mut self.no_first_message,
            End::Idle => &mut self.idle,
            End::NotReading => &mut self.not_reading,
        }
    }

    /// The values of [`STREAM_COUNTERS`].
    #[must_use]
    pub const fn values(&self) -> [u64; STREAM_COUNTERS.len()] {
        [
            self.open,
            self.accepted_tcp,
            self.accepted_tls,
            self.over_source_limit,
            self.ended_by_peer,
            self.bad_frames,
            self.handshake_failures,
            self.record_failures,
            self.no_first_message,
            self.idle,
            self.not_reading,
            self.dropped_full,
            self.dropped_gone,
            self.dropped_mailbox,
            self.dropped_too_large,
        ]
    }
}
