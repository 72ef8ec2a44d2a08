//! A shard's dialects: lending them what they need.

use super::{Shard, Verdict};
use crate::addr::ClientAddr;
use crate::dialect::{Asked, Desk, Dialect, DialectTimer};
use crate::forwarding::SocketIndex;
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
