//! What the server tells of the session: each batch once and in order, and what each event changes here. Never asks the
//! server for anything.

use super::departure::Departure;
use super::event::{SessionEvent, Transmit};
use super::punch::{Introduced, Punch};
use super::request::Op;
use super::roster::Member;
use super::{Agent, EVENTS_MAX, EVENTS_PER_MESSAGE, TRANSMITS_MAX};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::native::{
    self, EventHead, EventKind, Fields, LeaveReason, SeatId, attr, member_flags,
};
use crate::wire::stun::{Attributes, Class, Integrity, Message, MessageWriter, TransactionId};

impl Agent {
    pub(super) fn on_events(&mut self, now: Millis, message: &Message<'_>) {
        let (Some(seat), Ok(fields)) = (&mut self.seat, Fields::read(message)) else {
            self.counters.unexpected += 1;
            return;
        };
        let genuine = fields.handle == Some(seat.handle)
            && message.verify_integrity(Integrity::Sha256Truncated, &seat.token);
        let (true, Some(sequence)) = (genuine, fields.event_sequence) else {
            self.counters.unexpected += 1;
            return;
        };
        let events = || {
            message
                .attributes()
                .filter(|attribute| attribute.kind == attr::EVENT)
                .filter_map(|attribute| EventHead::parse(attribute.value))
        };
        // The last word, whatever was under way: its number may be that of a batch that is handled already.
        let removal = events().find(|(head, _)| head.kind == EventKind::Removed);
        // What is of before the resumption has numbers of before, whatever they are.
        let stale = fields
            .server_time_ms
            .is_some_and(|sent| sent < seat.events_since_ms);
        let without_server = matches!(self.departure, Some(Departure::Gone));
        // Whoever makes the session anew has given up the seat that the word is about, and waits for another.
        let hosts_anew = self.recovering
            && self
                .requests
                .iter()
                .any(|r| r.id.is_none() && matches!(r.op, Op::Host(_)));
        if stale || hosts_anew || without_server {
            self.counters.unexpected += 1;
            return;
        }
        // While a resumption is under way the numbers may have begun again, which its answer tells.
        if self.recovering && removal.is_none() {
            self.counters.unexpected += 1;
            return;
        }
        if self.events.len() + EVENTS_PER_MESSAGE > EVENTS_MAX || self.out.len() >= TRANSMITS_MAX {
            self.counters.events_deferred += 1;
            return;
        }
        let mut answer = Vec::with_capacity(52);
        MessageWriter::answer(&mut answer, message, Class::Success)
            .attribute(attr::SEAT_HANDLE, &seat.handle.to_bytes())
            .integrity(Integrity::Sha256Truncated, &seat.token)
            .finish();
        self.out
            .push_back(Transmit::new(self.config.server, answer));
        let is_next = !self.recovering && sequence == seat.last_event.wrapping_add(1);
        if is_next {
            seat.last_event = sequence;
        }
        self.on_heard(now);
        if is_next {
            for (head, nested) in events() {
                self.on_event(now, head, nested, message.transaction_id());
            }
        } else if let Some((head, nested)) = removal {
            self.on_event(now, head, nested, message.transaction_id());
        }
    }

    fn on_event(
        &mut self,
        now: Millis,
        head: EventHead,
        nested: Attributes<'_>,
        id: TransactionId,
    ) {
        let Ok(fields) = Fields::read_list(nested, id) else {
            self.counters.malformed += 1;
            return;
        };
        let reason = LeaveReason::from_byte(head.reason);
        match head.kind {
            EventKind::MemberJoined => self.on_member_joined(head.seat, &fields),
            EventKind::MemberLeft if self.keeps(now, head.seat, reason) => {}
            EventKind::MemberLeft => {
                if self.roster.remove(head.seat).is_some() {
                    let reason = reason.unwrap_or(LeaveReason::Left);
                    self.tell(SessionEvent::MemberLeft(head.seat, reason));
                }
            }
            EventKind::HostChanged => {
                self.session.host = Some(head.seat);
                self.tell(SessionEvent::HostChanged(head.seat));
            }
            EventKind::SessionChanged => {
                self.session.update(&fields);
                self.tell(SessionEvent::SessionChanged);
            }
            EventKind::MemberChanged => {
                if let Some(member) = self.roster.get_mut(head.seat) {
                    member.data = fields.member_data.unwrap_or_default().to_vec();
                    self.tell(SessionEvent::MemberChanged(head.seat));
                }
            }
            EventKind::Introduction => self.on_introduction(now, head.seat, &fields),
            EventKind::StreamIntroduction => self.on_stream_introduction(now, head.seat, &fields),
            EventKind::Removed => {
                self.unseat();
                self.tell(SessionEvent::Removed(reason.unwrap_or(LeaveReason::Closed)));
            }
            EventKind::Formed => {
                self.session.host = Some(head.seat);
                self.session.flags &= !native::session_flags::FORMING;
                self.tell(SessionEvent::Formed);
            }
        }
    }

    fn on_member_joined(&mut self, id: SeatId, fields: &Fields<'_>) {
        // After being removed in the same batch, nothing of it is of interest.
        if self.seat.as_ref().is_none_or(|seat| seat.handle.id == id) {
            return;
        }
        let flags = fields.member_flags.unwrap_or(0);
        let data = fields.member_data.unwrap_or_default();
        if flags & member_flags::HOST != 0 {
            self.session.host = Some(id);
        }
        if let Some(member) = self.roster.get_mut(id) {
            member.flags = flags;
            data.clone_into(&mut member.data);
            member.unconfirmed_until = None;
            return;
        }
        let mut member = Member::new(id);
        member.flags = flags;
        data.clone_into(&mut member.data);
        if let Some(previous) = self.roster.insert(member) {
            self.tell(SessionEvent::MemberLeft(previous.id, LeaveReason::TimedOut));
        }
        self.tell(SessionEvent::MemberJoined(id));
        self.tell_path(id);
    }

    fn on_introduction(&mut self, now: Millis, id: SeatId, fields: &Fields<'_>) {
        let listed = |slots: &[Option<Addr>]| slots.iter().copied().flatten().collect::<Vec<_>>();
        let mut reachable = listed(&fields.locals);
        reachable.extend(fields.reachable);
        let (Some(key), true) = (
            fields.check_key,
            fields.mapped.is_some() && self.allows_direct(),
        ) else {
            return;
        };
        let start_in_ms = fields
            .start_time_ms
            .map_or(0, |start| self.clock.millis_until(now, start));
        let introduced = Introduced {
            observed: fields.mapped,
            predicted: listed(&fields.predicted),
            reachable,
            relayed: fields.relayed,
            own_turn: self.config.has_turn,
            guess_from: self.guess_from(fields),
            key,
            start_in_ms,
        };
        let server = self.config.server;
        let chosen = self.config.strategies;
        let Some(member) = self.roster.get_mut(id) else {
            self.counters.unexpected += 1;
            return;
        };
        let previous = member.punch.take().map(|punch| *punch);
        let punch = Punch::new(now, &introduced, chosen, server, previous, &mut self.rng);
        member.punch = Some(Box::new(punch));
        self.tell_path(id);
        self.handle_timeout(now);
    }

    /// The port near which to guess the peer's, if that is wanted, its NAT gives each flow another one, and the own does not. What
    /// looks like a step may be chance in a small range.
    fn guess_from(&self, fields: &Fields<'_>) -> Option<u16> {
        let own_is_known = self.mapping.is_some_and(|own| !own.random && own.step == 0);
        fields
            .nat_mapping
            .filter(|peer| {
                (peer.random || peer.step != 0) && own_is_known && self.config.guesses_ports
            })
            .map(|peer| peer.last_port)
    }
}
