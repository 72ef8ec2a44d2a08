//! What a stream between two members needs of the agent: the request that has the own TCP address observed, the introduction
//! for streams, and the greeting that proves who is at the other end. The connecting itself is the owner's.

use super::event::SessionEvent;
use super::failure::Refused;
use super::punch::may_try;
use super::request::{Context, Op, write_check};
use super::strategy::Strategy;
use super::{Agent, NONCE_MAX};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::{Fields, SeatHandle, SeatId, attr, method};
use crate::wire::stun::{Class, Integrity, Message, TransactionId};
use rand::RngExt;

/// Bytes of a greeting: a connectivity check.
pub const GREETING_LEN: usize = 52;

/// Where a member waits for a stream, and from when on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StreamIntroduction {
    /// Addresses that let anybody in, or are on the same network.
    pub reachable: Vec<Addr>,
    /// The address that the server saw, if the two NATs open to each other.
    pub observed: Option<Addr>,
    /// When both begin, on this agent's clock.
    pub start: Millis,
    /// Whether this side decides which of several connections is used.
    pub decides: bool,
    key: [u8; 16],
}

/// What the server said on the connection that is to be observed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Observation {
    /// The address has to be proved with this nonce.
    Nonce(Vec<u8>),
    /// This is the address.
    Seen(Addr),
    /// The server refused, with this code.
    Refused(u16),
    /// Nothing that was asked for.
    Unexpected,
}

/// Where a stream's own end can be reached.
#[derive(Clone, Copy, Debug, Default)]
pub struct StreamEnd<'a> {
    /// Addresses on local interfaces.
    pub locals: &'a [Addr],
    /// A port of the public address that leads to it.
    pub reachable_port: Option<u16>,
}

impl Agent {
    /// Writes the request by which a member's wish for a stream with `peer` is told to the server, over the very connection
    /// whose address is to be told. Without a nonce it asks for one.
    ///
    /// # Errors
    /// [`Refused::NotSeated`], [`Refused::NoMember`], and [`Refused::Hidden`] if this player's addresses are told to nobody.
    pub fn write_observe(
        &mut self,
        peer: SeatId,
        nonce: Option<&[u8]>,
        end: StreamEnd<'_>,
        out: &mut Vec<u8>,
    ) -> Result<TransactionId, Refused> {
        if self.seat.is_none() {
            return Err(Refused::NotSeated);
        }
        if self.roster.get(peer).is_none() {
            return Err(Refused::NoMember);
        }
        if !self.config.policy.allows_direct() {
            return Err(Refused::Hidden);
        }
        let op = Op::Observe {
            peer: Some(peer),
            locals: end.locals.to_vec(),
            reachable_port: end.reachable_port,
        };
        Ok(self.write_observation(&op, nonce, out))
    }

    /// Writes a request to be observed.
    pub(super) fn write_observation(
        &mut self,
        op: &Op,
        nonce: Option<&[u8]>,
        out: &mut Vec<u8>,
    ) -> TransactionId {
        let id = TransactionId(self.rng.random());
        Context {
            config: &self.config,
            nonce,
            seat: self.seat.as_ref(),
            member_data: &[],
            mapping: None,
        }
        .write(op, id, out);
        id
    }

    /// Reads the server's answer to [`Agent::write_observe`].
    #[must_use]
    pub fn read_observed(&self, id: TransactionId, bytes: &[u8]) -> Observation {
        let read = || {
            let message = Message::parse(bytes).ok()?;
            if message.transaction_id() != id || message.method() != method::OBSERVE {
                return None;
            }
            let fields = Fields::read(&message).ok()?;
            if message.class() == Class::Success {
                let token = self.seat.as_ref()?.token;
                let genuine = message.verify_integrity(Integrity::Sha256Truncated, &token);
                return fields.mapped.filter(|_| genuine).map(Observation::Seen);
            }
            let code = message.error_code()?;
            Some(match (code, fields.nonce) {
                (401 | 438, Some(nonce)) if nonce.len() <= NONCE_MAX => {
                    Observation::Nonce(nonce.to_vec())
                }
                _ => Observation::Refused(code),
            })
        };
        read().unwrap_or(Observation::Unexpected)
    }

    /// The last introduction to a member for a stream, once: the next one needs a new wish of both.
    pub fn take_stream_introduction(&mut self, peer: SeatId) -> Option<StreamIntroduction> {
        self.roster.get_mut(peer)?.stream.take().map(|it| *it)
    }

    /// The first bytes that this player sends on a stream that it has got to a member.
    #[must_use]
    pub fn write_greeting(&mut self, introduction: &StreamIntroduction) -> Option<Vec<u8>> {
        let id = TransactionId(self.rng.random());
        let own = self.seat.as_ref()?.handle;
        Some(write_check(id, own, &introduction.key))
    }

    /// Whether these [`GREETING_LEN`] bytes are `peer`'s.
    #[must_use]
    pub fn is_greeting_of(
        &self,
        peer: SeatId,
        introduction: &StreamIntroduction,
        bytes: &[u8],
    ) -> bool {
        let (Some(seat), Ok(message)) = (&self.seat, Message::parse(bytes)) else {
            return false;
        };
        let expected = SeatHandle {
            code: seat.handle.code,
            id: peer,
        };
        let sender = message
            .find(attr::SEAT_HANDLE)
            .and_then(SeatHandle::from_bytes);
        sender == Some(expected)
            && message.verify_integrity(Integrity::Sha256Truncated, &introduction.key)
    }

    pub(super) fn on_stream_introduction(&mut self, now: Millis, id: SeatId, fields: &Fields<'_>) {
        let (Some(key), Some(own), true) = (
            fields.check_key,
            self.seat.as_ref().map(|seat| seat.handle.id),
            self.config.policy.allows_direct(),
        ) else {
            return;
        };
        let wait = fields
            .start_time_ms
            .map_or(0, |start| self.clock.millis_until(now, start))
            .min(super::punch::START_WAIT_MAX_MS);
        let server = self.config.server;
        let chosen = self.config.strategies;
        let usable = |addr: &Addr| may_try(*addr, server) && addr.port() >= 1024;
        let mut reachable: Vec<Addr> = Vec::new();
        if chosen.contains(Strategy::Direct) {
            let told = fields
                .reachable
                .iter()
                .chain(fields.locals.iter().flatten());
            reachable.extend(told.copied().filter(usable));
        }
        let observed = fields
            .tcp_address
            .filter(|addr| chosen.contains(Strategy::TcpPunch) && may_try(*addr, server));
        let introduction = StreamIntroduction {
            reachable,
            observed,
            start: now + wait,
            decides: own.seat < id.seat,
            key,
        };
        let Some(member) = self.roster.get_mut(id) else {
            self.counters.unexpected += 1;
            return;
        };
        member.stream = Some(Box::new(introduction));
        self.tell(SessionEvent::StreamIntroduced(id));
    }
}
