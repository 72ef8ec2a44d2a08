//! The face of a shard's packet input and output, and the types both backends share.
//!
//! A shard owns one value that implements [`PacketIo`]: [`crate::ring::Ring`] (io_uring) or
//! [`crate::mmsg::Mmsg`] (recvmmsg and sendmmsg). The event loop is generic over it, so there is no
//! dynamic dispatch per packet. Nothing here knows what the bytes mean: it never parses a payload,
//! never decides where a packet goes and never logs.

mod bind;
mod failure;
mod pace;
mod peer_error;
mod send_queue;
mod socket_table;
mod stream_events;
mod stream_table;
mod streams;
mod train;
mod wire_addr;

pub use crate::mmsg::error_queue::report_peer_errors;
use std::fs::File;
use std::io::{self, Write as _};
use std::net::{SocketAddr, UdpSocket};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub use bind::{TcpOptions, UdpOptions, bind_tcp_listener, bind_udp};
pub(crate) use failure::{SendFailure, classify_single, classify_train, kernel_corrupts_trains};
pub(crate) use pace::{Pace, Wait, thread_cpu_time};
pub use peer_error::PeerError;
pub(crate) use peer_error::PeerErrors;
pub(crate) use send_queue::SpareBuffers;
pub(crate) use socket_table::{SocketEntry, SocketTable};
pub(crate) use stream_events::StreamEvents;
pub(crate) use stream_table::{StreamEntry, StreamTable};
pub(crate) use streams::{ACCEPT_PAUSE, STREAM_SLOT_BYTES, STREAM_SLOTS};
pub use streams::{
    ListenerId, MAX_STREAMS, STREAM_QUEUE_BYTES, SendRefused, StreamBytes, StreamEvent, StreamId,
    StreamIo,
};
pub(crate) use train::{Segment, Train, Trains};
pub(crate) use wire_addr::WireAddr;

/// Bytes that may be written in front of a received payload without a copy, in bytes.
///
/// It is also exactly the prefix that a multishot `recvmsg` puts before the payload in its slot:
/// 16 bytes of `io_uring_recvmsg_out` and 32 bytes of room for the sender's address.
pub const HEADROOM: usize = 48;

/// Most sockets one shard can hold: the index part of a [`SocketId`] has 20 bits.
pub const MAX_SOCKETS: u32 = 1 << SocketId::INDEX_BITS;

/// Most datagrams one [`PacketIo::turn`] hands out; what is left waits for the next turn.
pub const TURN_DATAGRAMS: usize = 512;

/// One of a shard's sockets: a table index and a generation, so that a stale id never reaches the
/// socket that reused the place.
///
/// Places rest before they are reused, oldest first: a generation comes round only after 4096 reuses of each of a
/// thousand places, or of every free one in a table that is full.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketId(u32);

impl SocketId {
    const INDEX_BITS: u32 = 20;
    const GENERATIONS: u32 = 1 << (32 - Self::INDEX_BITS);

    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Self((generation % Self::GENERATIONS) << Self::INDEX_BITS | index)
    }

    /// The id as an opaque number, for code that must not know about sockets.
    #[must_use]
    pub const fn to_raw(self) -> u32 {
        self.0
    }

    /// The inverse of [`SocketId::to_raw`]. A number that never was an id is a stale id: sends
    /// through it are counted in [`IoStats::stale_sends`] and go nowhere.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    pub(crate) const fn index(self) -> u32 {
        self.0 & (MAX_SOCKETS - 1)
    }
}

/// A received datagram in its slot.
///
/// It can be forwarded once, and only in the turn that received it: the slots of a turn go home at
/// the next turn, whether they were forwarded or not. Using it later, or with another backend
/// value than the one it came from, is a broken invariant and panics.
#[derive(Debug)]
pub struct RecvBuf {
    stamp: NonZeroU64,
    slot: u32,
    len: u32,
}

impl RecvBuf {
    pub(crate) fn new(stamp: TurnStamp, slot: u32, len: u32) -> Self {
        Self {
            stamp: stamp.0,
            slot,
            len,
        }
    }

    /// Length of the payload in bytes; zero is a legal datagram.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the datagram has no payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn set_len(&mut self, len: usize) {
        self.len = u32::try_from(len).expect("a slot is far smaller");
    }

    /// The slot, after the proof that it belongs to the turn of `stamp`.
    #[inline]
    pub(crate) fn slot(&self, stamp: TurnStamp) -> u32 {
        assert!(
            self.stamp == stamp.0,
            "a received buffer was used outside of its turn"
        );
        self.slot
    }
}

/// Identifies one turn of one backend value, process-wide.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TurnStamp(NonZeroU64);

impl TurnStamp {
    const TURN_BITS: u32 = 44;

    /// The stamp before the first turn of a new backend value.
    pub(crate) fn of_new_backend() -> Self {
        static BACKENDS: AtomicU64 = AtomicU64::new(1);
        let backend = BACKENDS.fetch_add(1, Ordering::Relaxed) % (1 << (64 - Self::TURN_BITS));
        Self(NonZeroU64::MIN.saturating_add(backend << Self::TURN_BITS))
    }

    /// Moves on to the next turn: every earlier [`RecvBuf`] is stale from here on.
    pub(crate) fn advance(&mut self) {
        self.0 = self.0.saturating_add(1);
    }
}

/// One received datagram.
#[derive(Debug)]
pub struct Received {
    /// The socket it arrived on.
    pub socket: SocketId,
    /// Its source address.
    pub from: SocketAddr,
    /// Its payload; read it with [`PacketIo::payload`].
    pub buf: RecvBuf,
}

/// One shard's packet input and output.
///
/// One thread owns the value from creation to drop. The life of a datagram: [`PacketIo::turn`]
/// receives it, [`PacketIo::next`] hands it out, [`PacketIo::forward`] (or nobody) consumes it, and
/// the following `turn` sends it and gives its slot back.
///
/// Sends are staged and leave with the next `turn`, in the order in which they were staged for each
/// pair of socket and destination; between different pairs the order is free. Like any datagram
/// a send may be lost: it is never queued, a full socket drops it and a counter says so.
pub trait PacketIo {
    /// Takes over `socket` and starts to receive from it. The socket becomes non-blocking.
    ///
    /// # Errors
    ///
    /// `StorageFull` when [`IoConfig::max_sockets`] sockets are in use, else what the kernel said.
    fn add_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId>;

    /// As [`PacketIo::add_socket`], for a socket that receives in slots of [`IoConfig::wide_slot_bytes`].
    ///
    /// # Errors
    ///
    /// As there, and `Unsupported` if there are no such slots.
    fn add_wide_socket(&mut self, socket: UdpSocket) -> io::Result<SocketId>;

    /// Stops receiving from a socket. Nothing that it received is delivered any more; what was
    /// staged before still leaves. Its port is free when a later [`PacketIo::turn`] has run (with
    /// io_uring that takes a turn to cancel and a turn to see the end). A stale id does nothing.
    fn remove_socket(&mut self, id: SocketId);

    /// Sends everything that is staged, gives the last turn's slots back, waits until there is a
    /// datagram, a doorbell or `timeout` has passed (`None`: no limit), and collects the datagrams
    /// that arrived, at most [`TURN_DATAGRAMS`]. It may return early with nothing.
    ///
    /// # Errors
    ///
    /// Only failures that leave the backend unusable; everything per packet is a counter.
    fn turn(&mut self, timeout: Option<Duration>) -> io::Result<()>;

    /// This turn's next datagram, in order of arrival per socket. Datagrams that are not taken
    /// stay for the next turn.
    fn next(&mut self) -> Option<Received>;

    /// The next ICMP error about what a socket sent, for sockets of which [`report_peer_errors`] asked that. Errors are few: what
    /// nobody takes is dropped.
    fn next_error(&mut self) -> Option<PeerError>;

    /// The payload of a datagram of this turn.
    fn payload<'a>(&'a self, buf: &'a RecvBuf) -> &'a [u8];

    /// The payload of a datagram of this turn, to change in place.
    fn payload_mut<'a>(&'a mut self, buf: &'a mut RecvBuf) -> &'a mut [u8];

    /// Cuts a payload of this turn, or lengthens it by zero bytes.
    ///
    /// # Panics
    ///
    /// If the slot has no room for `len` bytes. It always has for a length rounded up to a multiple of 16.
    fn resize(&mut self, buf: &mut RecvBuf, len: usize);

    /// Stages a received payload to be sent on without a copy: its first `strip` bytes are dropped
    /// and `header` is written in place before the rest.
    ///
    /// # Panics
    ///
    /// If `header` is longer than [`HEADROOM`], `strip` longer than the payload, or `buf` is of
    /// another turn.
    fn forward(
        &mut self,
        buf: RecvBuf,
        strip: usize,
        header: &[u8],
        socket: SocketId,
        to: SocketAddr,
    );

    /// As [`PacketIo::forward`], but never in fragments: what is too large for the path is dropped and counted in
    /// [`IoStats::send_errors`].
    ///
    /// # Panics
    ///
    /// As [`PacketIo::forward`].
    fn forward_whole(
        &mut self,
        buf: RecvBuf,
        strip: usize,
        header: &[u8],
        socket: SocketId,
        to: SocketAddr,
    );

    /// Stages a datagram of our own; the bytes are copied into a per-turn arena.
    fn send(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]);

    /// As [`PacketIo::send`], but never in fragments, as with [`PacketIo::forward_whole`].
    fn send_whole(&mut self, socket: SocketId, to: SocketAddr, bytes: &[u8]);

    /// A handle by which another thread ends this shard's sleep.
    fn doorbell(&self) -> Doorbell;

    /// Counters since creation.
    fn stats(&self) -> &IoStats;

    /// The socket behind an id, for options and addresses; `None` when the id is stale. Never
    /// receive from it.
    fn socket(&self, id: SocketId) -> Option<&UdpSocket>;

    /// Name of the backend, for logs and metrics.
    fn backend(&self) -> &'static str;
}

/// Wakes a shard that sleeps in [`PacketIo::turn`].
///
/// A ring costs a system call (about 1 us), so callers ring only when the target sleeps. Rings
/// before the target wakes are merged into one. A ring is never lost: if the target is not
/// asleep, its next turn does not wait.
#[derive(Clone, Debug)]
pub struct Doorbell(Arc<File>);

impl Doorbell {
    pub(crate) fn new(eventfd: Arc<File>) -> Self {
        Self(eventfd)
    }

    /// Wakes the shard.
    pub fn ring(&self) {
        // It can fail only when the counter is full (eventfd(2)), and then the target has been rung.
        let _ = (&*self.0).write(&1u64.to_ne_bytes());
    }
}

/// Counters of one backend value; they only grow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IoStats {
    /// Calls of [`PacketIo::turn`].
    pub turns: u64,
    /// System calls made for packets: `io_uring_enter`, or `epoll_wait`, `recvmmsg` and `sendmmsg`.
    pub enters: u64,
    /// Times a doorbell ended or shortened a wait.
    pub doorbells: u64,
    /// Datagrams handed out by [`PacketIo::next`].
    pub datagrams_received: u64,
    /// Their payload bytes.
    pub bytes_received: u64,
    /// Datagrams given to the kernel, minus those that it refused.
    pub datagrams_sent: u64,
    /// Their payload bytes, in-place headers included.
    pub bytes_sent: u64,
    /// UDP_SEGMENT trains sent.
    pub gso_trains: u64,
    /// Datagrams that left in those trains.
    pub gso_segments: u64,
    /// UDP_GRO trains received.
    pub gro_trains: u64,
    /// Datagrams that came in those trains.
    pub gro_segments: u64,
    /// Trains that the kernel refused and that were sent again one by one.
    pub gso_refused: u64,
    /// Sockets for which segmentation was switched off after a refusal.
    pub gso_disabled_sockets: u64,
    /// Datagrams dropped because the socket's send buffer was full (EAGAIN) or the device queue
    /// was (ENOBUFS).
    pub send_eagain: u64,
    /// Datagrams too large for the path that were sent again with fragmentation allowed.
    pub send_emsgsize_retries: u64,
    /// Datagrams that could not be sent for any other reason.
    pub send_errors: u64,
    /// Datagrams staged for a socket that no longer exists.
    pub stale_sends: u64,
    /// Datagrams dropped because their slot was too small for them.
    pub truncated_dropped: u64,
    /// Times the kernel found no free receive slot. The datagrams wait in the socket.
    pub enobufs: u64,
    /// Receive requests that had to be issued again.
    pub rearms: u64,
    /// Receive errors, for instance an ICMP error that the kernel reports on the socket.
    pub receive_errors: u64,
    /// Times the completion queue overflowed: a bug alarm.
    pub cq_overflows: u64,
    /// Streams accepted and handed out.
    pub streams_accepted: u64,
    /// Connections accepted and closed at once, because [`IoConfig::max_streams`] were open.
    pub streams_refused: u64,
    /// Streams closed by [`StreamIo::close_stream`].
    pub streams_closed: u64,
    /// Errors that the kernel reported on accepting, for instance for want of descriptors.
    pub stream_accept_errors: u64,
    /// Bytes handed out by [`StreamIo::next_stream_event`].
    pub stream_bytes_received: u64,
    /// Bytes that the kernel took from streams' queues.
    pub stream_bytes_sent: u64,
    /// Sends refused with [`SendRefused::Full`].
    pub stream_sends_refused: u64,
    /// Times a stream's bytes found no free receive slot. They wait in the socket.
    pub stream_enobufs: u64,
}

/// Sizes of one backend value.
#[derive(Clone, Debug)]
pub struct IoConfig {
    /// Receive slots; rounded up to a power of two, at most 32768.
    pub slots: u32,
    /// Bytes per slot; [`HEADROOM`] of them come off the largest datagram that can be received.
    /// Rounded up to a multiple of 64.
    pub slot_bytes: u32,
    /// Bytes per slot of the sockets that are added by [`PacketIo::add_wide_socket`], which get as many slots again; rounded
    /// likewise. 0: none, and no such sockets.
    pub wide_slot_bytes: u32,
    /// Most sockets at a time, at most [`MAX_SOCKETS`] and (with io_uring) the process's limit of
    /// open files.
    pub max_sockets: u32,
    /// Longest time in microseconds that a busy shard waits for company of a datagram; 0: never.
    /// A datagram that arrives at an idle shard never waits. If not 0, the timers of the thread
    /// that makes the backend are set to fire on time (`PR_SET_TIMERSLACK`, prctl(2)).
    pub coalesce_us: u32,
    /// Most streams that are open at a time, at most [`MAX_STREAMS`]. Each takes a descriptor of the process, and up to twice
    /// [`STREAM_QUEUE_BYTES`] of memory if its peer does not read.
    pub max_streams: u32,
}

impl Default for IoConfig {
    /// 2048 slots of 2 KiB, no wide ones, 4096 sockets, 4096 streams, no waiting.
    fn default() -> Self {
        Self {
            slots: 2048,
            slot_bytes: 2048,
            wide_slot_bytes: 0,
            max_sockets: 4096,
            coalesce_us: 0,
            max_streams: 4096,
        }
    }
}

impl IoConfig {
    /// The same with the roundings applied.
    pub(crate) fn checked(&self) -> Result<Self, SetupError> {
        let ranges = [
            ("slots", self.slots, 1, 32768),
            ("slot_bytes", self.slot_bytes, 128, 65_600),
            ("wide_slot_bytes", self.wide_slot_bytes, 0, 65_600),
            ("max_sockets", self.max_sockets, 1, MAX_SOCKETS),
            ("coalesce_us", self.coalesce_us, 0, 10_000),
            ("max_streams", self.max_streams, 1, MAX_STREAMS),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                return Err(SetupError::Config {
                    name,
                    value,
                    least,
                    most,
                });
            }
        }
        Ok(Self {
            slots: self.slots.next_power_of_two(),
            slot_bytes: self.slot_bytes.next_multiple_of(64),
            wide_slot_bytes: self.wide_slot_bytes.next_multiple_of(64),
            ..*self
        })
    }
}

/// Why a backend could not be set up.
#[derive(Debug)]
pub enum SetupError {
    /// The kernel does not have it or does not allow it: another backend may do.
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine would do it but a limit of this process or container is too low.
    Limit {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
        /// What to change.
        remedy: &'static str,
    },
    /// A size of [`IoConfig`] is out of range.
    Config {
        /// The field.
        name: &'static str,
        /// Its value.
        value: u32,
        /// The least allowed value.
        least: u32,
        /// The greatest allowed value.
        most: u32,
    },
}

impl std::fmt::Display for SetupError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unavailable { what, source } => write!(f, "{what} is not available: {source}"),
            Self::Limit {
                what,
                source,
                remedy,
            } => write!(f, "{what} failed: {source}; {remedy}"),
            Self::Config {
                name,
                value,
                least,
                most,
            } => {
                write!(
                    f,
                    "{name} is {value} but must be between {least} and {most}"
                )
            }
        }
    }
}

impl std::error::Error for SetupError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Unavailable { source, .. } | Self::Limit { source, .. } => Some(source),
            Self::Config { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_id_survives_the_trip_as_a_number() {
        let id = SocketId::new(MAX_SOCKETS - 1, 4095);
        assert_eq!(SocketId::from_raw(id.to_raw()), id);
        assert_eq!(id.index(), MAX_SOCKETS - 1);
        assert_eq!(SocketId::new(7, 4096), SocketId::new(7, 0));
    }

    #[test]
    fn sizes_out_of_range_are_named() {
        let config = IoConfig {
            slots: 0,
            ..IoConfig::default()
        };
        let error = config.checked().unwrap_err();
        assert_eq!(
            error.to_string(),
            "slots is 0 but must be between 1 and 32768"
        );
        assert_eq!(
            IoConfig {
                slots: 9,
                ..IoConfig::default()
            }
            .checked()
            .unwrap()
            .slots,
            16
        );
    }
}
