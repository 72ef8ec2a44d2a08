//! The list of what shards count: name, help and labels of every number, in the order in which
//! a shard publishes them. It counts nothing itself.

use waypost_proto::stats::{Counter, CounterKind};

use super::metrics::{CounterSpec, counter, gauge};
use crate::packet_io::IoStats;
use crate::streams::STREAM_COUNTERS;

/// Index of [`IO_COUNTERS`] in [`TABLES`].
pub const IO_TABLE: usize = 0;
/// Index of [`PROTOCOL_COUNTERS`] in [`TABLES`].
pub const PROTOCOL_TABLE: usize = 1;
/// Index of [`STREAM_COUNTERS`] in [`TABLES`].
pub const STREAM_TABLE: usize = 2;
/// Everything a shard publishes.
pub const TABLES: &[&[CounterSpec]] = &[IO_COUNTERS, PROTOCOL_COUNTERS, STREAM_COUNTERS];

/// The gauges that a drain watches: they have to be in one of the tables.
pub const DRAINED: [&str; 2] = ["waypost_sessions", "waypost_allocations"];

const PACKETS: &str = "waypost_packets_total";
const BYTES: &str = "waypost_bytes_total";
const DROPPED: &str = "waypost_dropped_total";
const PACKETS_HELP: &str = "Datagrams received and sent";
const BYTES_HELP: &str = "Payload bytes received and sent";
const DROPPED_HELP: &str = "Packets dropped, by reason";
const IN: &[(&str, &str)] = &[("dir", "in"), ("proto", "udp")];
const OUT: &[(&str, &str)] = &[("dir", "out"), ("proto", "udp")];
const TCP_IN: &[(&str, &str)] = &[("dir", "in"), ("proto", "tcp")];
const TCP_OUT: &[(&str, &str)] = &[("dir", "out"), ("proto", "tcp")];

const fn dropped(reason: &'static [(&'static str, &'static str)]) -> CounterSpec {
    counter(DROPPED, DROPPED_HELP, reason)
}

/// What the packet backend counts.
pub const IO_COUNTERS: &[CounterSpec] = &[
    counter("waypost_turns_total", "Turns of the event loops", &[]),
    counter(
        "waypost_io_syscalls_total",
        "System calls made for packets",
        &[],
    ),
    counter(
        "waypost_doorbells_total",
        "Sleeps that another shard ended",
        &[],
    ),
    counter(PACKETS, PACKETS_HELP, IN).per_shard(),
    counter(BYTES, BYTES_HELP, IN).per_shard(),
    counter(PACKETS, PACKETS_HELP, OUT).per_shard(),
    counter(BYTES, BYTES_HELP, OUT).per_shard(),
    counter(
        "waypost_gso_trains_total",
        "UDP segmentation trains sent",
        &[],
    ),
    counter(
        "waypost_gso_segments_total",
        "Datagrams that left in trains",
        &[],
    ),
    counter("waypost_gro_trains_total", "UDP trains received", &[]),
    counter(
        "waypost_gro_segments_total",
        "Datagrams that came in trains",
        &[],
    ),
    counter(
        "waypost_gso_refused_total",
        "Trains that the kernel refused",
        &[],
    ),
    counter(
        "waypost_gso_disabled_sockets_total",
        "Sockets on which segmentation was switched off",
        &[],
    ),
    dropped(&[("reason", "queue_full")]),
    counter(
        "waypost_send_too_large_retries_total",
        "Datagrams larger than the path that were sent again with fragmentation allowed",
        &[],
    ),
    dropped(&[("reason", "send_error")]),
    dropped(&[("reason", "stale")]),
    dropped(&[("reason", "truncated")]),
    counter(
        "waypost_ring_enobufs_total",
        "Times the kernel found no free receive slot",
        &[],
    ),
    counter(
        "waypost_ring_rearm_total",
        "Receive requests that had to be issued again",
        &[],
    ),
    counter(
        "waypost_receive_errors_total",
        "Errors that the kernel reported on receiving",
        &[],
    ),
    counter(
        "waypost_ring_cq_overflow_total",
        "Overflows of a completion queue",
        &[],
    ),
    counter(
        "waypost_streams_accepted_total",
        "TCP connections accepted",
        &[],
    ),
    counter(
        "waypost_streams_refused_total",
        "TCP connections closed at once because too many were open",
        &[],
    ),
    counter(
        "waypost_streams_closed_total",
        "TCP connections that the server closed, ended ones included",
        &[],
    ),
    counter(
        "waypost_stream_accept_errors_total",
        "Errors that the kernel reported on accepting",
        &[],
    ),
    counter(BYTES, BYTES_HELP, TCP_IN).per_shard(),
    counter(BYTES, BYTES_HELP, TCP_OUT).per_shard(),
    counter(
        "waypost_stream_queue_full_total",
        "Sends refused because the peer of a TCP connection does not read",
        &[],
    ),
    counter(
        "waypost_stream_enobufs_total",
        "Times a TCP connection found no free receive slot",
        &[],
    ),
];

/// What the protocol counts: the protocol room's own list.
pub const PROTOCOL_COUNTERS: &[CounterSpec] = &{
    let specs = Counter::ALL;
    let mut table = [counter("", "", &[]); Counter::ALL.len()];
    let mut i = 0;
    while i < specs.len() {
        let spec = &specs[i];
        table[i] = match spec.kind {
            CounterKind::Total => counter(spec.metric, spec.help, spec.labels),
            CounterKind::Gauge => gauge(spec.metric, spec.help, spec.labels),
        };
        i += 1;
    }
    table
};

/// The values of [`IO_COUNTERS`].
#[must_use]
pub fn io_values(stats: &IoStats) -> [u64; IO_COUNTERS.len()] {
    [
        stats.turns,
        stats.enters,
        stats.doorbells,
        stats.datagrams_received,
        stats.bytes_received,
        stats.datagrams_sent,
        stats.bytes_sent,
        stats.gso_trains,
        stats.gso_segments,
        stats.gro_trains,
        stats.gro_segments,
        stats.gso_refused,
        stats.gso_disabled_sockets,
        stats.send_eagain,
        stats.send_emsgsize_retries,
        stats.send_errors,
        stats.stale_sends,
        stats.truncated_dropped,
        stats.enobufs,
        stats.rearms,
        stats.receive_errors,
        stats.cq_overflows,
        stats.streams_accepted,
        stats.streams_refused,
        stats.streams_closed,
        stats.stream_accept_errors,
        stats.stream_bytes_received,
        stats.stream_bytes_sent,
        stats.stream_sends_refused,
        stats.stream_enobufs,
    ]
}
