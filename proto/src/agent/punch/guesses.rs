//! Guesses of the port that the peer's NAT has given to its flow to us, where nothing foretells it (the birthday method). At most
//! [`GUESSES_PER_MINUTE`] for one IP address, and only of an address that the server has seen the peer at.

use std::collections::VecDeque;

use super::super::event::{Transmit, Way};
use super::super::ledger::{GUESSES_PER_MINUTE, Ledger};
use super::super::request::write_check;
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::SeatHandle;
use crate::wire::stun::TransactionId;

/// Guessing begins so long after the checks, which may do without it. Milliseconds.
const GUESS_AFTER_MS: u64 = 250;
/// Guesses at a time, and between two times. Milliseconds.
const GUESSES_AT_A_TIME: u32 = 16;
const GUESS_GAP_MS: u64 = 20;

/// Checks to ports that the peer's NAT may have given to its flow to us. Each port gets one at most.
#[derive(Clone, Debug)]
pub(super) struct Guesses {
    /// The peer's public address and the port next to which the others are looked for.
    around: Addr,
    /// First bytes of the checks' transaction ids; the port follows.
    prefix: [u8; 8],
    made: u32,
    next: Option<Millis>,
}

impl Guesses {
    /// The port of the guess of this number: ever farther from the middle, on both sides.
    fn port(&self, number: u32) -> Option<u16> {
        let distance = i32::try_from(number / 2 + 1).ok()?;
        let side = if number.is_multiple_of(2) { 1 } else { -1 };
        let port = i32::from(self.around.port()) + side * distance;
        u16::try_from(port).ok().filter(|port| *port >= 1024)
    }

    fn id(&self, port: u16) -> TransactionId {
        let mut id = [0; 12];
        id[..8].copy_from_slice(&self.prefix);
        id[8..10].copy_from_slice(&port.to_be_bytes());
        TransactionId(id)
    }

    /// Guesses of the ports around `around`, the first of them due at `first`.
    pub(super) fn new(around: Addr, prefix: [u8; 8], first: Millis) -> Self {
        Self {
            around,
            prefix,
            made: 0,
            next: Some(first + GUESS_AFTER_MS),
        }
    }

    /// When the next ones are due, if there are more.
    pub(super) const fn next(&self) -> Option<Millis> {
        self.next
    }

    /// The beginning of the transaction ids, if an answer from `from` with this one is to a guess.
    pub(super) fn answered_by(&self, from: Way, id: TransactionId) -> Option<[u8; 8]> {
        let is_to_one = from == Way::of(self.around.with_port(from.addr.port()))
            && self.made > 0
            && id == self.id(from.addr.port());
        is_to_one.then_some(self.prefix)
    }

    /// Sends those that are due, as long as `out` holds fewer than `room` datagrams.
    pub(super) fn send(
        &mut self,
        now: Millis,
        (own, key): (SeatHandle, &[u8; 16]),
        room: usize,
        ledger: &mut Ledger,
        out: &mut VecDeque<Transmit>,
    ) {
        if self.next.is_none_or(|next| next > now) {
            return;
        }
        self.next = Some(now + GUESS_GAP_MS);
        for _ in 0..GUESSES_AT_A_TIME {
            if out.len() >= room {
                return;
            }
            if self.made >= GUESSES_PER_MINUTE || !ledger.guess(now, self.around.ip()) {
                self.next = None;
                return;
            }
            if let Some(port) = self.port(self.made) {
                let check = write_check(self.id(port), own, key);
                out.push_back(Transmit::new(self.around.with_port(port), check));
            }
            self.made += 1;
        }
    }
}
