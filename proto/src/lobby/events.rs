//! Telling members what happened: in order, in numbered batches, each repeated until it is acknowledged.
//!
//! A member is told first of the others who were there when it came, then of what the session's log holds, then of its
//! introductions. One batch is under way at a time; its bytes are kept only until it is acknowledged.

use rand::RngExt;

use super::seating::told_flags;
use super::session::{InFlight, LogEntry, Session, StreamWish};
use super::{Lobby, Turn};
use crate::stats::Counter;
use crate::wire::native::{
    EventHead, EventKind, Fields, LeaveReason, MESSAGE_MAX, SeatId, attr, member_flags, method,
};
use crate::wire::stun::{
    self, AttributeWriter, Class, Integrity, Message, MessageWriter, TransactionId,
};

/// First repetitions of a batch come this far apart.
const RESEND_MS: u64 = 150;
/// For this long; then once a second.
const RESEND_FAST_FOR_MS: u64 = 5_000;
const RESEND_SLOW_MS: u64 = 1_000;
/// A member that lags this many events behind is as good as gone.
const LOG_MAX: usize = 1024;
/// Bytes that a batch keeps free for the integrity attribute.
const INTEGRITY_LEN: usize = 20;

impl Lobby {
    /// Notes an event that every member is to be told.
    pub(super) fn log(&mut self, session: u32, kind: EventKind, reason: u8, seat: SeatId) {
        let entry = &mut self.sessions[session];
        entry.log.push_back(LogEntry { kind, reason, seat });
        if entry.log.len() > LOG_MAX {
            entry.log.pop_front();
            entry.log_base += 1;
        }
    }

    /// Drops what everybody has been told from the log.
    pub(super) fn trim_log(&mut self, session: u32) {
        let Some(entry) = self.sessions.get(session) else {
            return;
        };
        if entry.log.is_empty() {
            return;
        }
        let told = entry
            .occupants()
            .map(|member| self.members[member].cursor)
            .min()
            .unwrap_or(entry.log_end());
        let entry = &mut self.sessions[session];
        while entry.log_base < told && entry.log.pop_front().is_some() {
            entry.log_base += 1;
        }
        if entry.log.is_empty() {
            entry.log.shrink_to_fit();
        }
    }

    /// Sends every member of a session what it has not been told, unless it still owes an acknowledgement.
    pub(super) fn pump_all(&mut self, turn: &mut Turn<'_>, session: u32) {
        for seat in 0..=u8::MAX {
            let Some(entry) = self.sessions.get(session) else {
                return;
            };
            if usize::from(seat) >= entry.seats.len() {
                return;
            }
            if let Some(member) = entry.occupant(seat) {
                self.pump(turn, member);
            }
        }
    }

    /// Sends one member its next batch, if there is something to tell and none is under way.
    pub(super) fn pump(&mut self, turn: &mut Turn<'_>, index: u32) {
        let member = &self.members[index];
        if member.in_flight.is_some() || member.departing {
            return;
        }
        let session = &self.sessions[member.session];
        if member.cursor < session.log_base {
            // It lags further behind than the log reaches: what it missed cannot be told any more.
            self.remove_member(turn, index, LeaveReason::TimedOut);
            return;
        }
        if session.forming.is_some()
            || (member.roster.is_empty()
                && member.cursor == session.log_end()
                && member.introductions.is_empty())
        {
            return;
        }
        let start = turn.out.bytes.len();
        let wrote_any = self.write_batch(turn, index);
        if !wrote_any {
            turn.out.bytes.truncate(start);
            let session = self.members[index].session;
            self.trim_log(session);
            return;
        }
        turn.counters.count(Counter::EventBatches);
        self.launch(turn, index, start);
        let session = self.members[index].session;
        self.trim_log(session);
    }

    /// Sends what was written since `start` and keeps it until it is acknowledged.
    fn launch(&mut self, turn: &mut Turn<'_>, index: u32, start: usize) {
        let member = &mut self.members[index];
        member.in_flight = Some(Box::new(InFlight {
            bytes: turn.out.bytes[start..].into(),
            first_sent: turn.now,
            resend_at: turn.now + RESEND_MS,
        }));
        if member.is_unplugged {
            turn.out.bytes.truncate(start);
        } else {
            turn.out
                .transmit(member.socket, member.source.addr(), start);
        }
        self.set_member_timer(turn, index);
    }

    /// Writes as many events as fit into one message; returns whether there was any.
    fn write_batch(&mut self, turn: &mut Turn<'_>, index: u32) -> bool {
        let member = &self.members[index];
        let session = &self.sessions[member.session];
        let id = TransactionId(turn.rng.random());
        let start = turn.out.bytes.len();
        begin_batch(turn, id, member.handle.to_bytes(), member.next_sequence);
        let mut roster_told = 0;
        let mut cursor = member.cursor;
        let mut introductions_told = 0;
        let mut wrote_any = false;
        let mut fits = |out: &mut Vec<u8>, write: &dyn Fn(&mut AttributeWriter<'_>) -> bool| {
            let before = out.len();
            let wrote = write(&mut AttributeWriter::new(out));
            if out.len() - start + INTEGRITY_LEN > MESSAGE_MAX {
                out.truncate(before);
                return false;
            }
            wrote_any |= wrote;
            true
        };
        let out = &mut turn.out.bytes;
        'full: {
            for &id in &member.roster {
                let wrote = fits(out, &|w| {
                    self.occupant_as(session, id).is_some_and(|other| {
                        self.write_joined(w, session, other);
                        true
                    })
                });
                if !wrote {
                    break 'full;
                }
                roster_told += 1;
            }
            let skipped = usize::try_from(cursor - session.log_base).unwrap_or(usize::MAX);
            for entry in session.log.iter().skip(skipped) {
                if !fits(out, &|w| self.write_logged(w, session, *entry)) {
                    break 'full;
                }
                cursor += 1;
            }
            for introduction in &member.introductions {
                let wrote = fits(out, &|w| {
                    self.write_introduction(w, turn.sealer, id, index, introduction)
                });
                if !wrote {
                    break 'full;
                }
                introductions_told += 1;
            }
        }
        let member = &mut self.members[index];
        member.roster.drain(..roster_told);
        if member.roster.is_empty() {
            member.roster = Vec::new();
        }
        member.cursor = cursor;
        member.introductions.drain(..introductions_told);
        if member.introductions.is_empty() {
            member.introductions = Vec::new();
        }
        end_batch(turn, start, &member.token);
        wrote_any
    }

    /// The member in a seat, if it is the one that is meant and not a later one.
    pub(super) fn occupant_as(&self, session: &Session, id: SeatId) -> Option<u32> {
        session
            .occupant(id.seat)
            .filter(|&member| self.members[member].handle.id == id)
    }

    fn write_joined(&self, out: &mut AttributeWriter<'_>, session: &Session, member: u32) {
        let member = &self.members[member];
        let seat = member.handle.id;
        let mut flags = 0;
        if member.is_relay_only() {
            flags |= member_flags::RELAY_ONLY;
        }
        if seat.seat == session.host {
            flags |= member_flags::HOST;
        }
        event(out, EventKind::MemberJoined, 0, seat, |out| {
            out.attribute(attr::MEMBER_DATA, &member.data)
                .u32(attr::MEMBER_FLAGS, flags);
        });
    }

    /// Writes a log entry as things are now; false if it is about somebody who has left since, whose leaving follows.
    fn write_logged(
        &self,
        out: &mut AttributeWriter<'_>,
        session: &Session,
        entry: LogEntry,
    ) -> bool {
        let occupant = self.occupant_as(session, entry.seat);
        match entry.kind {
            EventKind::MemberJoined => match occupant {
                Some(member) => self.write_joined(out, session, member),
                None => return false,
            },
            EventKind::MemberChanged => match occupant {
                Some(member) => event(out, entry.kind, 0, entry.seat, |out| {
                    out.attribute(attr::MEMBER_DATA, &self.members[member].data);
                }),
                None => return false,
            },
            EventKind::SessionChanged => event(out, entry.kind, 0, entry.seat, |out| {
                out.attribute(attr::METADATA, &session.metadata)
                    .u32(attr::MAX_MEMBERS, u32::from(session.max_members))
                    .u32(attr::SESSION_FLAGS, told_flags(session));
            }),
            kind => event(out, kind, entry.reason, entry.seat, |_| ()),
        }
        true
    }

    /// Writes an introduction; false if the peer has left since. No address of a relay-only member is told, nor to one.
    fn write_introduction(
        &self,
        out: &mut AttributeWriter<'_>,
        sealer: &crate::ticket::Sealer,
        id: TransactionId,
        index: u32,
        introduction: &super::session::Introduction,
    ) -> bool {
        let member = &self.members[index];
        let session = &self.sessions[member.session];
        let Some(peer) = self.occupant_as(session, introduction.peer) else {
            return false;
        };
        let peer = &self.members[peer];
        let key = sealer.check_key(
            session.code,
            [member.handle.id, peer.handle.id],
            introduction.start_ms,
        );
        if let Some(wish) = &introduction.stream {
            let kind = EventKind::StreamIntroduction;
            event(out, kind, 0, introduction.peer, |out| {
                if !member.relay_only && !peer.relay_only {
                    write_stream_addresses(out, wish, id);
                }
                out.attribute(attr::CHECK_KEY, &key)
                    .attribute(attr::START_TIME, &introduction.start_ms.to_be_bytes());
            });
            return true;
        }
        event(out, EventKind::Introduction, 0, introduction.peer, |out| {
            if !member.is_relay_only() && !peer.is_relay_only() {
                let mapped = peer.source.addr();
                out.xor_addr(stun::attr::XOR_MAPPED_ADDRESS, mapped, id);
                if mapped.ip() == member.source.addr().ip() {
                    for local in &peer.locals {
                        out.xor_addr(attr::LOCAL_ADDRESS, *local, id);
                    }
                }
                if let Some(port) = peer.reachable_port {
                    out.xor_addr(attr::REACHABLE_ADDRESS, mapped.with_port(port), id);
                }
                if let Some(relayed) = peer.relayed {
                    out.xor_addr(attr::RELAYED_ADDRESS, relayed, id);
                }
                if let Some(nat) = peer.nat.filter(|nat| nat.random || nat.step != 0) {
                    out.attribute(attr::NAT_MAPPING, &nat.to_bytes());
                }
                for port in peer.nat.iter().flat_map(|nat| nat.predicted_ports()) {
                    out.xor_addr(attr::PREDICTED_ADDRESS, mapped.with_port(port), id);
                }
            }
            out.attribute(attr::CHECK_KEY, &key)
                .attribute(attr::START_TIME, &introduction.start_ms.to_be_bytes());
        });
        true
    }

    /// Tells a removed member that it was.
    pub(super) fn send_departure(&mut self, turn: &mut Turn<'_>, index: u32, reason: LeaveReason) {
        let member = &self.members[index];
        let id = TransactionId(turn.rng.random());
        let start = turn.out.bytes.len();
        begin_batch(turn, id, member.handle.to_bytes(), member.next_sequence);
        let seat = member.handle.id;
        event(
            &mut AttributeWriter::new(&mut turn.out.bytes),
            EventKind::Removed,
            reason as u8,
            seat,
            |_| (),
        );
        end_batch(turn, start, &member.token);
        self.launch(turn, index, start);
    }

    /// Repeats the batch under way if it is time.
    pub(super) fn resend(&mut self, turn: &mut Turn<'_>, index: u32) {
        let member = &mut self.members[index];
        let Some(batch) = member
            .in_flight
            .as_mut()
            .filter(|batch| batch.resend_at <= turn.now && !member.is_unplugged)
        else {
            return;
        };
        turn.counters.count(Counter::EventRepeats);
        let pause = if turn.now.since(batch.first_sent) < RESEND_FAST_FOR_MS {
            RESEND_MS
        } else {
            RESEND_SLOW_MS
        };
        batch.resend_at = turn.now + pause;
        let start = turn.out.bytes.len();
        turn.out.bytes.extend_from_slice(&batch.bytes);
        turn.out
            .transmit(member.socket, member.source.addr(), start);
    }

    /// An acknowledgement: the next batch may go. Needs no nonce, because only the member knows token and transaction id.
    pub(crate) fn handle_acknowledgement(&mut self, turn: &mut Turn<'_>, message: &Message<'_>) {
        let Some(index) = self.acknowledged_member(message) else {
            turn.counters.count(Counter::DropStale);
            return;
        };
        let member = &mut self.members[index];
        member.in_flight = None;
        member.next_sequence += 1;
        if let Some(reason) = member.departure.take() {
            self.send_departure(turn, index, reason);
        } else if member.departing {
            self.forget_departed(index);
        } else {
            member.last_heard = turn.now;
            self.pump(turn, index);
        }
    }

    fn acknowledged_member(&self, message: &Message<'_>) -> Option<u32> {
        let handle = Fields::read(message).ok()?.handle?;
        let index = match self.departing.get(&handle) {
            Some(&index) => index,
            None => {
                let session = *self.by_code.get(&handle.code)?;
                self.sessions[session].occupant(handle.id.seat)?
            }
        };
        let member = &self.members[index];
        let batch = member.in_flight.as_ref()?;
        (member.handle == handle
            && batch.bytes[8..stun::HEADER_LEN] == message.transaction_id().0
            && message.verify_integrity(Integrity::Sha256Truncated, &member.token))
        .then_some(index)
    }
}

fn write_stream_addresses(out: &mut AttributeWriter<'_>, wish: &StreamWish, id: TransactionId) {
    out.xor_addr(attr::TCP_ADDRESS, wish.seen, id);
    for local in &wish.locals {
        out.xor_addr(attr::LOCAL_ADDRESS, *local, id);
    }
    if let Some(port) = wish.reachable_port {
        out.xor_addr(attr::REACHABLE_ADDRESS, wish.seen.with_port(port), id);
    }
}

fn begin_batch(turn: &mut Turn<'_>, id: TransactionId, handle: [u8; 8], sequence: u32) {
    let server_time = turn.wall.unix_ms(turn.now);
    MessageWriter::new(&mut turn.out.bytes, method::EVENT, Class::Request, id)
        .attribute(attr::SEAT_HANDLE, &handle)
        .u32(attr::EVENT_SEQUENCE, sequence)
        .u64(attr::SERVER_TIME, server_time);
}

fn end_batch(turn: &mut Turn<'_>, start: usize, token: &[u8; 16]) {
    MessageWriter::resume(&mut turn.out.bytes, start)
        .integrity(Integrity::Sha256Truncated, token)
        .finish();
}

fn event(
    out: &mut AttributeWriter<'_>,
    kind: EventKind,
    reason: u8,
    seat: SeatId,
    nested: impl FnOnce(&mut AttributeWriter<'_>),
) {
    out.list(attr::EVENT, |out| {
        EventHead { kind, reason, seat }.write(out);
        nested(out);
    });
}
