//! One address of a peer: what has been sent there, and what it has proved. Never decides which address is used.

use super::super::event::{Transmit, Way};
use super::super::ledger::Ledger;
use super::super::request::write_check;
use super::super::strategy::Strategy;
use super::{KEEP_MS, OPENER_TTLS};
use crate::time::Millis;
use crate::wire::native::SeatHandle;
use crate::wire::stun::TransactionId;

/// How long an answer is waited for on a path that was good.
const KEEP_ANSWER_MS: u64 = 500;
/// The same while data go out and nothing comes in.
const ONE_WAY_MS: u64 = 1_000;
/// Checks whose answers are still told apart.
const OUTSTANDING: usize = 16;

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) way: Way,
    /// First bytes of its checks' transaction ids; a counter follows.
    pub(super) prefix: [u8; 8],
    /// What it is to be counted as when it leads to the peer.
    pub(super) strategy: Strategy,
    /// Checks sent.
    pub(super) checks: u32,
    pub(super) sent_at: [Millis; OUTSTANDING],
    pub(super) last_check: Millis,
    pub(super) next: Option<Millis>,
    /// Openers sent; those that need none count as sent.
    pub(super) openers: usize,
    /// A check from there passed integrity, so data from there are the peer's.
    pub(super) heard: bool,
    /// A check to there was answered.
    pub(super) proven: bool,
    /// Unanswered checks in a row since it was proven.
    pub(super) unanswered: u32,
    pub(super) last_in: Millis,
    pub(super) last_out: Millis,
    pub(super) data_out: Millis,
}

impl Candidate {
    pub(super) fn new(way: Way, strategy: Strategy, prefix: [u8; 8], now: Millis) -> Self {
        Self {
            way,
            prefix,
            strategy,
            checks: 0,
            sent_at: [Millis(0); OUTSTANDING],
            last_check: Millis(0),
            next: None,
            openers: OPENER_TTLS.len(),
            heard: false,
            proven: false,
            unanswered: 0,
            last_in: now,
            last_out: now,
            data_out: Millis(0),
        }
    }

    /// Whether a packet may go there; if so, it is noted as sent.
    pub(super) fn may_send(&self, now: Millis, ledger: &mut Ledger) -> bool {
        self.proven || ledger.spend(now, self.way.addr)
    }

    pub(super) fn check_id(&self, number: u32) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.prefix);
        id[8..].copy_from_slice(&number.to_be_bytes());
        TransactionId(id)
    }

    /// When the check with this id was sent, if it is one of the last ones.
    pub(super) fn check_sent_at(&self, id: TransactionId) -> Option<Millis> {
        let (prefix, number) = id.0.split_at(8);
        let number = u32::from_be_bytes(number.try_into().ok()?);
        let age = self.checks.checked_sub(number)?;
        (prefix == self.prefix && age >= 1 && age as usize <= OUTSTANDING)
            .then(|| self.sent_at[number as usize % OUTSTANDING])
    }

    pub(super) fn check(&mut self, now: Millis, key: &[u8; 16], own: SeatHandle) -> Transmit {
        let id = self.check_id(self.checks);
        self.sent_at[self.checks as usize % OUTSTANDING] = now;
        self.checks = self.checks.wrapping_add(1);
        self.last_check = now;
        self.last_out = now;
        self.way.send(write_check(id, own, key))
    }

    /// When the path that is in use wants its next check.
    pub(super) fn keep_at(&self) -> Millis {
        if self.unanswered > 0 {
            return self.last_check + KEEP_ANSWER_MS;
        }
        let idle = self.last_in.min(self.last_out) + KEEP_MS;
        if self.data_out > self.last_in {
            idle.min(self.last_in + ONE_WAY_MS)
        } else {
            idle
        }
    }
}
