//! The face of a shard's byte streams (TCP): accepting, receiving and sending, beside the datagrams of
//! [`PacketIo`](super::PacketIo) and in the same turns. Nothing here knows what the bytes mean, frames them or encrypts them,
//! and there are no deadlines here: whoever uses a stream ends it.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::time::Duration;

use super::TurnStamp;

/// Most streams one shard can hold, see [`IoConfig::max_streams`](super::IoConfig::max_streams).
pub const MAX_STREAMS: u32 = 1 << 18;

/// How long a listener rests after the kernel refused to accept for want of something, such as descriptors.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Receive slots that the streams of one shard share; they never take those of the datagrams.
pub(crate) const STREAM_SLOTS: u32 = 256;

/// Bytes of each.
pub(crate) const STREAM_SLOT_BYTES: u32 = 4096;

/// Most bytes that wait for one stream's kernel buffer. A client that does not read what it is sent reaches it, and is then
/// for the caller to drop.
pub const STREAM_QUEUE_BYTES: usize = 64 << 10;

/// One accepted stream: a table index and a generation, so that a stale id never reaches the stream that reused the place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(u32);

impl StreamId {
    const INDEX_BITS: u32 = 20;
    const GENERATIONS: u32 = 1 << (32 - Self::INDEX_BITS);
    /// Places of a table. Streams that are being closed keep theirs for a while, hence more than [`MAX_STREAMS`].
    pub(crate) const PLACES: u32 = 1 << Self::INDEX_BITS;

    pub(crate) const fn new(index: u32, generation: u32) -> Self {
        Self((generation % Self::GENERATIONS) << Self::INDEX_BITS | index)
    }

    /// The id as an opaque number.
    #[must_use]
    pub const fn to_raw(self) -> u32 {
        self.0
    }

    /// The inverse of [`StreamId::to_raw`]. A number that never was an id is a stale id.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    pub(crate) const fn index(self) -> u32 {
        self.0 & (Self::PLACES - 1)
    }

    pub(crate) const fn next_generation(self) -> Self {
        Self::new(self.index(), (self.0 >> Self::INDEX_BITS) + 1)
    }
}

/// One listening socket, numbered from 0 in the order of [`StreamIo::add_listener`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerId(u16);

impl ListenerId {
    pub(crate) const fn new(index: u16) -> Self {
        Self(index)
    }

    pub(crate) const fn index(self) -> u16 {
        self.0
    }
}

/// What happened to streams.
#[derive(Debug)]
pub enum StreamEvent {
    /// Somebody connected.
    Accepted {
        /// Where.
        listener: ListenerId,
        /// The new stream; it is received from already.
        stream: StreamId,
        /// Who.
        peer: SocketAddr,
    },
    /// Bytes came; read them with [`StreamIo::stream_bytes`].
    Received {
        /// On which stream.
        stream: StreamId,
        /// Where they are until the next turn.
        bytes: StreamBytes,
    },
    /// The peer closed its half or the whole, or the connection failed. Nothing more comes; the id stays valid until
    /// [`StreamIo::close_stream`].
    Ended {
        /// Which stream.
        stream: StreamId,
    },
}

/// Received bytes, at least one, in memory of the backend. They are gone with the next turn; asking for them later, or another
/// backend value than the one they came from, is a broken invariant and panics.
#[derive(Debug)]
pub struct StreamBytes {
    stamp: NonZeroU64,
    slot: u32,
    len: u32,
}

impl StreamBytes {
    pub(crate) fn new(stamp: TurnStamp, slot: u32, len: u32) -> Self {
        Self {
            stamp: stamp.0,
            slot,
            len,
        }
    }

    /// Slot and length, after the proof that they belong to the turn of `stamp`.
    pub(crate) fn slot(&self, stamp: TurnStamp) -> (u32, usize) {
        assert!(
            self.stamp == stamp.0,
            "received bytes of a stream were used outside of their turn"
        );
        (self.slot, self.len as usize)
    }
}

/// Why bytes were not taken for sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendRefused {
    /// The stream is closed, or ended by an error.
    Gone,
    /// [`STREAM_QUEUE_BYTES`] wait already; none of the bytes were taken.
    Full,
}

/// One shard's byte streams. The same value also is the shard's [`PacketIo`](super::PacketIo): its `turn` accepts, receives and
/// sends for streams too.
pub trait StreamIo: super::PacketIo {
    /// Takes over a listening socket and starts to accept. Accepted streams have `TCP_NODELAY`. When `IoConfig::max_streams` are open, connections are accepted and closed at once.
    ///
    /// # Errors
    /// What the kernel said, also when it has no memory for the streams' receive slots, which are made with the first listener.
    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId>;

    /// This turn's next event, in order for each stream. At most [`TURN_DATAGRAMS`](super::TURN_DATAGRAMS) a turn; what is
    /// not taken stays for the next turn.
    fn next_stream_event(&mut self) -> Option<StreamEvent>;

    /// Bytes that came in this turn.
    fn stream_bytes<'a>(&'a self, bytes: &'a StreamBytes) -> &'a [u8];

    /// Copies `parts`, one after the other, behind what waits to be sent; they leave with the next turns, in order. All
    /// are taken or none. After [`SendRefused::Full`] the turn in which room comes ends its sleep, so that one can try again.
    ///
    /// # Errors
    /// [`SendRefused`].
    fn send_stream(&mut self, stream: StreamId, parts: &[&[u8]]) -> Result<(), SendRefused>;

    /// Closes a stream, with the next turn or two. With `flush` what waits is still sent, as far as the kernel takes it without
    /// waiting for the peer; without, the connection is reset. No event of this stream comes any more. A stale id does
    /// nothing.
    ///
    /// Bytes that come from the peer after a flush make the kernel reset the connection, and a peer that has not read the
    /// flushed bytes by then may lose them (RFC 1122, section 4.2.2.13).
    fn close_stream(&mut self, stream: StreamId, flush: bool);

    /// Streams that are open.
    fn open_streams(&self) -> usize;
}
