//! Streams as the protocol sees them: a client that is there until its connection ends, and then with everything that it had
//! here. What comes on them and where it leaves is no different from datagrams.

use std::collections::HashMap;

use ahash::RandomState;

use super::{Shard, Step};
use crate::addr::{Addr, ClientAddr};
use crate::forwarding::SocketIndex;
use crate::lobby::{Mail, StreamSerial};
use crate::time::Millis;
use crate::wire::native::SeatHandle;

/// The streams of this shard that are open.
pub(super) struct OpenStreams {
    serials: HashMap<(SocketIndex, Addr), StreamSerial, RandomState>,
    next: u32,
}

impl OpenStreams {
    pub fn new(seeds: [u64; 4]) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            serials: HashMap::with_hasher(hasher),
            next: 0,
        }
    }

    /// The stream of a source, if it has one.
    pub fn serial(&self, socket: SocketIndex, source: ClientAddr) -> Option<StreamSerial> {
        self.serials.get(&(socket, source.0)).copied()
    }
}

impl Shard {
    /// A stream was accepted: what [`Shard::handle_datagram`] is given of this source comes on it. If there was one before
    /// between the same addresses, it was closed.
    pub fn handle_stream_opened(&mut self, now: Millis, socket: SocketIndex, source: ClientAddr) {
        if self.open_foreign_stream(now, socket, source) {
            return;
        }
        let serial = StreamSerial(self.streams.next);
        self.streams.next = self.streams.next.wrapping_add(1);
        let before = self.streams.serials.insert((socket, source.0), serial);
        debug_assert!(
            before.is_none(),
            "the caller closes one stream before the next"
        );
    }

    /// A stream has ended or is about to be closed. Its allocation is deleted. Its member keeps the seat for as long as a
    /// silent one does, and may come back to it from elsewhere. A later stream between the same addresses inherits nothing.
    pub fn handle_stream_closed(&mut self, now: Millis, socket: SocketIndex, source: ClientAddr) {
        if self.close_foreign_stream(socket, source) {
            return;
        }
        let Some(serial) = self.streams.serials.remove(&(socket, source.0)) else {
            return;
        };
        if let Some(index) = self.forwarding.allocation_of(socket, source) {
            self.turn
                .handle_client_gone(step!(self, now), index, socket, source);
        } else if let Some(owner) = self.forwarding.owner_of_guest(socket, source) {
            self.forwarding.remove_guest(socket, source, owner);
        } else if let Some(handle) = self.forwarding.seat_of(socket, source) {
            self.forwarding.remove_flow(socket, source, handle);
            self.mail_stream_ended(handle, socket, serial);
            self.deliver_own_mail(now);
        }
    }

    /// Tells the owner of a seat that its member is not there any more.
    pub(super) fn mail_stream_ended(
        &mut self,
        handle: SeatHandle,
        socket: SocketIndex,
        stream: StreamSerial,
    ) {
        let owner = handle.code.owner(self.count);
        let mail = Mail::StreamEnded {
            handle,
            socket,
            stream,
        };
        self.outbox.mail.push((owner, mail));
    }

    /// Whether a source has a seat or an allocation, or is somebody in a dialect.
    #[must_use]
    pub fn serves(&self, now: Millis, socket: SocketIndex, source: ClientAddr) -> bool {
        self.forwarding.is_known(socket, source) || self.keeps_foreign(now, socket, source)
    }

    /// Whether clients of RFC 5766's time are served in their way, with more channel numbers.
    #[must_use]
    pub const fn serves_rfc5766(&self) -> bool {
        self.turn.serves_rfc5766()
    }
}
