//! A shard's dialects: lending them what they need.

use super::{Shard, SocketRole, Verdict};
use crate::addr::ClientAddr;
use crate::dialect::{Asked, Desk, Dialect, DialectTimer};
use crate::forwarding::{NotRelayed, SocketIndex};
use crate::stats::Counter;
use crate::time::Millis;
use crate::turn::RelayRefusal;

/// Lends the dialects everything of the shard that they need.
macro_rules! desk {
    ($shard:ident, $now:expr) => {
        &mut Desk {
            now: $now,
            lobby: ($shard.lobby.session_count(), $shard.lobby.member_count()),
            out: &mut $shard.outbox,
            wheel: &mut $shard.wheel,
            rng: &mut $shard.rng,
            counters: &mut $shard.counters,
            forwarding: &mut $shard.forwarding,
            ports: &mut $shard.turn,
        }
    };
}

impl Shard {
    /// A datagram that came to a dialect's listener.
    pub(super) fn handle_foreign(
        &mut self,
        now: Millis,
        dialect: Dialect,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> Verdict {
        let asked = Asked {
            socket,
            source: source.0,
            datagram,
        };
        let dialects = &mut self.dialects;
        match dialects.handle(desk!(self, now), dialect, asked) {
            Ok(()) => Verdict::Handled,
            Err(reason) => self.drop(reason),
        }
    }

    /// A packet that came to the relay port of a player and has no way on.
    #[cold]
    pub(super) fn handle_stray(
        &mut self,
        now: Millis,
        target: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
        refusal: NotRelayed,
    ) -> Verdict {
        let outcome = if refusal == NotRelayed::NoSender {
            let dialects = &mut self.dialects;
            dialects.handle_stray(desk!(self, now), target, source.0, datagram)
        } else {
            Err(Counter::DropLimit)
        };
        match outcome {
            Ok(()) => Verdict::Handled,
            Err(reason) => {
                self.counters.count(Counter::NorayRelayDrops);
                self.drop(reason)
            }
        }
    }

    /// Whether a socket accepts streams of a dialect.
    fn is_foreign_stream(&self, socket: SocketIndex) -> bool {
        let role = self.sockets.get(usize::from(socket.0));
        matches!(role, Some(SocketRole::DialectStream { .. }))
    }

    /// A stream of a dialect was accepted. False if it is none.
    pub(super) fn open_foreign_stream(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
    ) -> bool {
        let is_foreign = self.is_foreign_stream(socket);
        if is_foreign {
            let dialects = &mut self.dialects;
            dialects.handle_stream_opened(desk!(self, now), source.0);
        }
        is_foreign
    }

    /// A stream of a dialect is gone. False if it is none.
    pub(super) fn close_foreign_stream(&mut self, socket: SocketIndex, source: ClientAddr) -> bool {
        let is_foreign = self.is_foreign_stream(socket);
        if is_foreign {
            self.dialects.handle_stream_closed(source.0);
        }
        is_foreign
    }

    /// The client of a dialect's stream sends nothing more, and may still read: what it sent last is served. The caller
    /// closes the stream when what came of that has left.
    pub fn handle_stream_ended(&mut self, now: Millis, socket: SocketIndex, source: ClientAddr) {
        if self.is_foreign_stream(socket) {
            let dialects = &mut self.dialects;
            dialects.handle_stream_ended(desk!(self, now), source.0);
        }
    }

    /// Whether a silent client of a dialect's stream is to be kept.
    pub(super) fn keeps_foreign(
        &self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
    ) -> bool {
        self.is_foreign_stream(socket) && self.dialects.serves(now, source.0)
    }

    pub(super) fn handle_foreign_timer(&mut self, now: Millis, timer: DialectTimer) {
        self.dialects.handle_timer(desk!(self, now), timer);
    }

    pub(super) fn handle_foreign_opened(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        let dialects = &mut self.dialects;
        dialects.handle_opened(desk!(self, now), socket, outcome);
    }

    /// Sessions of the lobby and of dialects.
    pub(super) fn session_count(&self) -> usize {
        self.lobby.session_count() + self.dialects.session_count()
    }

    /// Members of the lobby's sessions and players of dialects.
    pub(super) fn member_count(&self) -> usize {
        self.lobby.member_count() + self.dialects.player_count()
    }
}
