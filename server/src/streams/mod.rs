//! A shard's TCP and TLS clients between their bytes ([`crate::packet_io::StreamIo`]) and their messages (`waypost_proto`): who
//! is connected, how long one may be silent, what becomes of one that does not read. What messages mean is not known here.
//!
//! A stream is closed when its client closes either half, when what it sends is not a message or not TLS, when no whole
//! message has come [`StreamTimes::first_message_ms`] after it was accepted, when none has come for [`StreamTimes::idle_ms`]
//! and it has neither seat nor allocation, and when it does not read what it is sent. Streams of dialects are passed on
//! uncut, and live as long as the protocol wants them.

mod connection;
mod counters;
mod quota;
mod staged;

use std::collections::HashMap;
use std::sync::Arc;

use ahash::RandomState;
use rustls::{ServerConfig, ServerConnection};
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::shard::SocketRole;
use waypost_proto::time::Millis;
use waypost_proto::timer_wheel::TimerWheel;
use waypost_proto::wire::stream::Framer;

pub use self::connection::Connection;
pub use self::counters::{STREAM_COUNTERS, StreamCounters};
pub use self::quota::StreamQuota;
pub use self::staged::Staged;
use crate::packet_io::{ListenerId, SendRefused, StreamId, StreamIo};

/// How soon bytes are offered again to a stream whose queue was full, in milliseconds.
const RETRY_MS: u64 = 20;

/// How patient a server is with streams.
#[derive(Clone, Copy, Debug)]
pub struct StreamTimes {
    /// From accepting to the first whole message, a TLS handshake included, in milliseconds.
    pub first_message_ms: u64,
    /// Without a whole message, for a client that has neither seat nor allocation, in milliseconds.
    pub idle_ms: u64,
    /// For how long the queue of one that does not read may stay full, in milliseconds.
    pub full_ms: u64,
}

impl Default for StreamTimes {
    fn default() -> Self {
        Self {
            first_message_ms: 5_000,
            idle_ms: 60_000,
            full_ms: 10_000,
        }
    }
}

/// Why a stream ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The client closed one half or both, or the connection failed.
    Peer,
    /// What it sent is neither STUN nor ChannelData.
    BadFrame,
    /// The handshake failed, or a record was wrong.
    Tls,
    /// No whole message came in time after it was accepted.
    FirstMessage,
    /// Nothing came for long, and it has nothing here.
    Idle,
    /// It does not read what it is sent.
    NotReading,
}

impl End {
    /// Whether what waits to be sent may still leave: an alert of TLS, answers to one that only closed its half.
    const fn flushes(self) -> bool {
        matches!(self, Self::Peer | Self::Tls)
    }
}

/// What is sent to a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Urgency {
    /// A relayed packet, which may be dropped like any datagram.
    Relayed,
    /// An answer or event: a stream that does not take it is of no use to its client any more.
    Control,
}

/// Where streams come from.
#[derive(Clone, Copy, Debug)]
pub struct StreamListener {
    /// What the backend calls it.
    pub id: ListenerId,
    /// What the protocol calls it.
    pub socket: SocketIndex,
    /// Whether its clients speak TLS.
    pub is_tls: bool,
    /// Whether what comes is passed on as it comes: the protocol cuts it into messages itself.
    pub is_raw: bool,
}

/// What [`Streams`] is made with.
#[derive(Debug)]
pub struct StreamsConfig {
    /// The role of each listener by its index, as in the protocol.
    pub roles: Vec<SocketRole>,
    /// The listeners of this shard.
    pub listeners: Vec<StreamListener>,
    /// How many streams a source may have, the same for all shards.
    pub quota: StreamQuota,
    /// How patient to be.
    pub times: StreamTimes,
    /// Whether channel numbers beyond those of RFC 8656 are served.
    pub serves_rfc5766: bool,
    /// Certificate and key, if there are TLS listeners.
    pub tls: Option<Arc<ServerConfig>>,
}

#[derive(Clone, Copy, Debug)]
enum StreamTimer {
    /// A deadline of its client may have passed.
    Deadline(StreamId),
    /// Bytes wait for room.
    Retry(StreamId),
}

/// The streams of one shard.
pub struct Streams {
    config: StreamsConfig,
    connections: HashMap<StreamId, Connection, RandomState>,
    by_peer: HashMap<(SocketIndex, Addr), StreamId, RandomState>,
    wheel: TimerWheel<StreamTimer>,
    fired: Vec<StreamTimer>,
    /// Streams that are to be closed.
    doomed: Vec<(StreamId, End)>,
    /// Streams that are to be closed when what waits for them has been sent.
    heard: Vec<StreamId>,
    counters: StreamCounters,
}

impl Streams {
    /// Without any stream.
    #[must_use]
    pub fn new(config: StreamsConfig, now: Millis) -> Self {
        let hasher = RandomState::new();
        Self {
            config,
            connections: HashMap::with_hasher(hasher.clone()),
            by_peer: HashMap::with_hasher(hasher),
            wheel: TimerWheel::new(now),
            fired: Vec::new(),
            doomed: Vec::new(),
            heard: Vec::new(),
            counters: StreamCounters::default(),
        }
    }

    /// Serves new TLS clients with another certificate.
    pub fn set_tls(&mut self, tls: Option<Arc<ServerConfig>>) {
        self.config.tls = tls;
    }

    /// What was counted.
    pub fn counters(&mut self) -> &mut StreamCounters {
        self.counters.open = self.connections.len() as u64;
        &mut self.counters
    }

    /// The shard whose streams this socket accepts; `None` if it is a socket of datagrams.
    #[must_use]
    pub fn owner(&self, socket: SocketIndex) -> Option<u16> {
        match self.config.roles.get(usize::from(socket.0)) {
            Some(&(SocketRole::Stream { shard, .. } | SocketRole::DialectStream { shard, .. })) => {
                Some(shard)
            }
            _ => None,
        }
    }

    /// The socket of a listener.
    ///
    /// # Panics
    /// If this shard has no such listener.
    #[must_use]
    pub fn socket_of(&self, listener: ListenerId) -> SocketIndex {
        self.listener(listener).socket
    }

    fn listener(&self, id: ListenerId) -> &StreamListener {
        let found = self.config.listeners.iter().find(|other| other.id == id);
        found.expect("streams come from listeners that were added")
    }

    /// The stream of a client.
    #[must_use]
    pub fn at(&self, socket: SocketIndex, peer: Addr) -> Option<StreamId> {
        self.by_peer.get(&(socket, peer)).copied()
    }

    /// A stream that is open.
    pub fn get(&mut self, stream: StreamId) -> Option<&mut Connection> {
        self.connections.get_mut(&stream)
    }

    /// Takes an accepted stream in, unless its source has too many; then the caller closes it.
    pub fn accept(
        &mut self,
        now: Millis,
        listener: ListenerId,
        stream: StreamId,
        peer: ClientAddr,
    ) -> bool {
        let &StreamListener {
            socket,
            is_tls,
            is_raw,
            ..
        } = self.listener(listener);
        let Some(share) = self.config.quota.take(peer.0.source_prefix()) else {
            self.counters.over_source_limit += 1;
            return false;
        };
        let session = match (is_tls, &self.config.tls) {
            (false, _) => None,
            (true, Some(tls)) => match ServerConnection::new(Arc::clone(tls)) {
                Ok(session) => Some(session),
                Err(_) => return false,
            },
            (true, None) => return false,
        };
        let accepted = if is_tls {
            &mut self.counters.accepted_tls
        } else {
            &mut self.counters.accepted_tcp
        };
        *accepted += 1;
        self.by_peer.insert((socket, peer.0), stream);
        let serves_rfc5766 = self.config.serves_rfc5766;
        let framer = (!is_raw).then(|| Framer::new(serves_rfc5766));
        let connection = Connection::new(socket, peer, share, session, framer);
        self.connections.insert(stream, connection);
        let deadline = if is_raw {
            now + self.config.times.idle_ms
        } else {
            now + self.config.times.first_message_ms
        };
        self.wheel.schedule(deadline, StreamTimer::Deadline(stream));
        true
    }

    /// Forgets a stream, which the caller closes: with what waits to be sent if `Some((_, _, true))`. A stream that is
    /// not open any more does nothing.
    pub fn remove(
        &mut self,
        stream: StreamId,
        end: End,
    ) -> Option<(SocketIndex, ClientAddr, bool)> {
        let connection = self.connections.remove(&stream)?;
        let (socket, peer) = (connection.socket(), connection.peer());
        self.by_peer.remove(&(socket, peer.0));
        let ended = match end {
            End::Tls if connection.is_handshaking() => &mut self.counters.handshake_failures,
            other => self.counters.ended(other),
        };
        *ended += 1;
        Some((socket, peer, end.flushes()))
    }

    /// Sends a whole frame, padding included, to the client of a stream of this shard.
    pub fn send<P: StreamIo>(
        &mut self,
        now: Millis,
        io: &mut P,
        (socket, peer): (SocketIndex, Addr),
        frame: &[u8],
        urgency: Urgency,
    ) {
        let Some(stream) = self.at(socket, peer) else {
            self.counters.dropped_gone += 1;
            return;
        };
        let connection = self.connections.get_mut(&stream);
        let connection = connection.expect("a stream that is found by its peer is there");
        match connection.send(io, stream, frame, urgency) {
            Ok(()) if connection.has_pending() => self.wait_for_room(now, stream),
            Ok(()) => connection.full_since = None,
            Err(SendRefused::Gone) => self.counters.dropped_gone += 1,
            Err(SendRefused::Full) => {
                self.counters.dropped_full += 1;
                let since = *connection.full_since.get_or_insert(now);
                let is_stuck = now.since(since) >= self.config.times.full_ms;
                if urgency == Urgency::Control || is_stuck {
                    self.doomed.push((stream, End::NotReading));
                }
            }
        }
    }

    /// If bytes of a stream found no room, they are offered again soon.
    pub fn wait_for_room(&mut self, now: Millis, stream: StreamId) {
        if let Some(connection) = self.connections.get_mut(&stream)
            && connection.has_pending()
            && !connection.waits_for_room
        {
            connection.waits_for_room = true;
            connection.full_since.get_or_insert(now);
            let at = now + RETRY_MS;
            self.wheel.schedule(at, StreamTimer::Retry(stream));
        }
    }

    /// Counts relayed packets that no datagram can carry.
    pub const fn count_too_large(&mut self, packets: u64) {
        self.counters.dropped_too_large += packets;
    }

    /// Counts a relayed packet for a stream of another shard, whose mailbox was full.
    pub const fn count_mailbox_full(&mut self) {
        self.counters.dropped_mailbox += 1;
    }

    /// Lets time pass. `serves` says whether a client has a seat or an allocation.
    pub fn handle_timeout<P: StreamIo>(
        &mut self,
        now: Millis,
        io: &mut P,
        serves: impl Fn(SocketIndex, ClientAddr) -> bool,
    ) {
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        for timer in fired.drain(..) {
            match timer {
                StreamTimer::Deadline(stream) => self.check_deadline(now, stream, &serves),
                StreamTimer::Retry(stream) => self.retry(now, io, stream),
            }
        }
        self.fired = fired;
    }

    fn check_deadline(
        &mut self,
        now: Millis,
        stream: StreamId,
        serves: &impl Fn(SocketIndex, ClientAddr) -> bool,
    ) {
        let Some(connection) = self.connections.get(&stream) else {
            return;
        };
        let idle_at = match connection.heard_at {
            Some(heard_at) => heard_at + self.config.times.idle_ms,
            None if connection.is_raw() => now,
            None => {
                self.doomed.push((stream, End::FirstMessage));
                return;
            }
        };
        let next = if idle_at > now {
            idle_at
        } else if serves(connection.socket(), connection.peer()) {
            now + self.config.times.idle_ms
        } else {
            self.doomed.push((stream, End::Idle));
            return;
        };
        self.wheel.schedule(next, StreamTimer::Deadline(stream));
    }

    fn retry<P: StreamIo>(&mut self, now: Millis, io: &mut P, stream: StreamId) {
        let Some(connection) = self.connections.get_mut(&stream) else {
            return;
        };
        connection.waits_for_room = false;
        match connection.flush(io, stream) {
            Ok(()) => connection.full_since = None,
            Err(SendRefused::Gone) => {}
            Err(SendRefused::Full) => {
                let since = *connection.full_since.get_or_insert(now);
                if now.since(since) >= self.config.times.full_ms {
                    self.doomed.push((stream, End::NotReading));
                } else {
                    self.wait_for_room(now, stream);
                }
            }
        }
    }

    /// A client sends nothing more; its stream is to be closed when it was sent what it waits for.
    pub fn end_after_flush(&mut self, stream: StreamId) {
        self.heard.push(stream);
    }

    /// A stream whose client sends nothing more, if there is one.
    pub fn take_heard(&mut self) -> Option<StreamId> {
        self.heard.pop()
    }

    /// A stream that is to be closed, if there is one.
    pub fn take_doomed(&mut self) -> Option<(StreamId, End)> {
        self.doomed.pop()
    }

    /// When [`Streams::handle_timeout`] has something to do next; `now` if there are streams to be closed.
    #[must_use]
    pub fn poll_timeout(&self, now: Millis) -> Option<Millis> {
        if self.doomed.is_empty() {
            self.wheel.next_timeout()
        } else {
            Some(now)
        }
    }
}
