//! What all dialects share: how many sessions and players there may be, how many of one source, and how many bytes a source
//! that nobody has proved may draw.

use ahash::RandomState;

use super::relay::Relays;
use super::{Desk, Dialect, DialectConfig, Seen};
use crate::addr::{Addr, SourcePrefix};
use crate::lobby::FailureBuckets;
use crate::shares::Shares;
use crate::stats::Counter;
use crate::unproven::ReplyBudget;

/// No error is sent that is longer than this many times its request.
const ERROR_FACTOR_MAX: usize = 3;

/// The shared limits.
pub(super) struct House {
    config: DialectConfig,
    budget: ReplyBudget,
    /// Who was wrong about passwords.
    pub failures: FailureBuckets,
    /// Sessions by the prefix of who made them.
    by_source: Shares<SourcePrefix>,
    /// Pairs that are relayed.
    pub relays: Relays,
    sessions: usize,
    players: usize,
    draining: bool,
}

impl House {
    pub fn new(config: DialectConfig, hasher: RandomState) -> Self {
        Self {
            budget: ReplyBudget::new(hasher.clone(), config.bytes_per_sec),
            failures: FailureBuckets::new(hasher.clone()),
            by_source: Shares::with_capacity(0, hasher.clone()),
            relays: Relays::new(config.relay.clone(), config.pairs_max, hasher),
            sessions: 0,
            players: 0,
            draining: false,
            config,
        }
    }

    pub const fn session_count(&self) -> usize {
        self.sessions
    }

    pub const fn player_count(&self) -> usize {
        self.players
    }

    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Makes room for a session of `owner`.
    pub fn add_session(&mut self, desk: &Desk<'_>, owner: Addr) -> Result<(), Counter> {
        let quota = self.config.sessions_per_source;
        let is_full = self.sessions + desk.lobby.0 >= self.config.sessions_max;
        if self.draining || is_full {
            return Err(Counter::DropCapacity);
        }
        let prefix = owner.source_prefix();
        if quota > 0 && self.by_source.of(&prefix) >= quota && !owner.ip().is_loopback() {
            return Err(Counter::DropCapacity);
        }
        self.by_source.take(prefix);
        self.sessions += 1;
        Ok(())
    }

    /// Takes back what [`House::add_session`] gave.
    pub fn remove_session(&mut self, owner: Addr) {
        self.sessions -= 1;
        self.by_source.give_back(&owner.source_prefix());
    }

    /// Makes room for a player.
    pub const fn add_player(&mut self, desk: &Desk<'_>) -> Result<(), Counter> {
        if self.players + desk.lobby.1 >= self.config.players_max {
            return Err(Counter::DropCapacity);
        }
        self.players += 1;
        Ok(())
    }

    /// Takes back what [`House::add_player`] gave.
    pub const fn remove_players(&mut self, count: usize) {
        self.players -= count;
    }

    /// Sends what `write` writes in answer to a request of `asked_len` bytes. What is longer than that draws on the
    /// receiver's budget, and is dropped and counted if there is nothing left.
    pub fn answer(
        &mut self,
        desk: &mut Desk<'_>,
        to: Seen,
        asked_len: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = desk.out.bytes.len();
        write(&mut desk.out.bytes);
        let len = desk.out.bytes.len() - start;
        if len > asked_len && !self.budget.draw(desk.now, to.addr, len) {
            desk.out.bytes.truncate(start);
            desk.counters.count(Counter::DropBudget);
        } else {
            desk.out.transmit(to.socket, to.addr, start);
        }
    }

    /// Answers with an error, unless it would be much longer than the request.
    pub fn error(
        desk: &mut Desk<'_>,
        dialect: Dialect,
        to: Seen,
        asked_len: usize,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = desk.out.bytes.len();
        write(&mut desk.out.bytes);
        if desk.out.bytes.len() - start > ERROR_FACTOR_MAX * asked_len {
            desk.out.bytes.truncate(start);
            desk.counters.count(Counter::DropBudget);
        } else {
            desk.counters.count(dialect.tallies().errors);
            desk.out.transmit(to.socket, to.addr, start);
        }
    }

    /// Asserts that what is counted is what there is.
    pub fn assert_consistent(&self, sessions: usize) {
        assert_eq!(self.sessions, sessions);
        assert!(self.by_source.total() as usize == sessions && self.by_source.is_tight());
        assert!(self.sessions > 0 || self.players == 0);
        self.relays.assert_consistent();
    }
}
