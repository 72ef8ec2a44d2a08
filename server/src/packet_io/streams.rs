//! The face of a shard's byte streams (TCP): accepting, receiving and sending, beside the datagrams of
//! [`PacketIo`](super::PacketIo) and in the same turns. Nothing here knows what the bytes mean, frames them or encrypts them,
//! and there are no deadlines here: whoever uses a stream ends it.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Most bytes that wait for one stream's kernel buffer. A client that does not read what it is sent reaches it, and is then
/// for the caller to drop.
pub const STREAM_QUEUE_BYTES: usize = 64 << 10;

/// One accepted stream: a table index and a generation, so that a stale id never reaches the stream that reused the place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct StreamId(u32);

/// One listening socket, numbered from 0 in the order of [`StreamIo::add_listener`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ListenerId(u16);

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

/// Received bytes, at least one, in memory of the backend. They are gone with the next turn.
#[derive(Debug)]
pub struct StreamBytes {
    slot: u32,
    len: u32,
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
    /// Takes over a listening socket and starts to accept. The sockets of accepted streams are non-blocking, with
    /// `TCP_NODELAY`. When `IoConfig::max_streams` are open, connections are accepted and closed at once.
    ///
    /// # Errors
    /// What the kernel said.
    fn add_listener(&mut self, listener: TcpListener) -> io::Result<ListenerId>;

    /// This turn's next event, in order for each stream. At most [`TURN_DATAGRAMS`](super::TURN_DATAGRAMS) a turn; what is
    /// not taken stays for the next turn.
    fn next_stream_event(&mut self) -> Option<StreamEvent>;

    /// Bytes that came in this turn.
    fn stream_bytes<'a>(&'a self, bytes: &'a StreamBytes) -> &'a [u8];

    /// Copies `parts`, one after the other, behind what waits to be sent; they leave with the next turns, in order. All
    /// are taken or none.
    ///
    /// # Errors
    /// [`SendRefused`].
    fn send_stream(&mut self, stream: StreamId, parts: &[&[u8]]) -> Result<(), SendRefused>;

    /// Closes a stream. With `flush` what waits is still sent, as far as the kernel takes it without waiting for the peer;
    /// without, the connection is reset. No event of this stream comes any more. A stale id does nothing.
    fn close_stream(&mut self, stream: StreamId, flush: bool);

    /// Streams that are open.
    fn open_streams(&self) -> usize;
}
