//! What a datagram means: data of a member, an answer, a check. Believes nothing that did not come from whom
//! it could come from.

use super::event::{Delivery, Event, ListedSession, SessionEvent, Way};
use super::failure::{Failure, Rejected};
use super::request::{Op, Request};
use super::roster::Seat;
use super::transaction::Repetition;
use super::{Agent, NONCE_MAX, Probing, TRANSMITS_MAX};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::channel_data;
use crate::wire::native::{self, Fields, LeaveReason, SeatId, attr, code, member_flags};
use crate::wire::stun::{self, Attributes, Class, Integrity, Message, TransactionId};
use crate::wire::{self, Kind};
use rand::RngExt;

/// After so many new nonces a request has failed.
const RENEWALS_MAX: u8 = 8;
/// Between two tries to get the seat back from a server that is full, milliseconds.
const RECOVERY_PAUSE_MS: u64 = 4_000;

impl Agent {
    /// Takes a datagram that came from `from`. Data for the owner stay where they are in `bytes`.
    pub fn handle_datagram(&mut self, now: Millis, from: Addr, bytes: &[u8]) -> Option<Delivery> {
        self.handle(now, Way::of(from), bytes)
    }

    /// As [`Agent::handle_datagram`], of one that came through the owner's TURN server ([`super::Config::has_turn`]).
    pub fn handle_turn_datagram(
        &mut self,
        now: Millis,
        from: Addr,
        bytes: &[u8],
    ) -> Option<Delivery> {
        if from == self.config.server {
            self.on_turn_offer_answer(now, bytes);
            return None;
        }
        self.handle(now, Way::through_turn(from), bytes)
    }

    fn handle(&mut self, now: Millis, from: Way, bytes: &[u8]) -> Option<Delivery> {
        match wire::kind(bytes) {
            Kind::ChannelData => self.on_channel_data(now, from, bytes),
            Kind::Stun => {
                match Message::parse(bytes) {
                    Ok(message) if message.has_magic_cookie() => {
                        self.on_message(now, from, &message);
                    }
                    _ => self.counters.malformed += 1,
                }
                None
            }
            // A peer's opener that lived longer than it should is nothing to count.
            Kind::Other if bytes == [0xff] => None,
            Kind::Other => {
                self.counters.malformed += 1;
                None
            }
        }
    }

    fn on_channel_data(&mut self, now: Millis, from: Way, bytes: &[u8]) -> Option<Delivery> {
        let Some(frame) = channel_data::parse(bytes) else {
            self.counters.malformed += 1;
            return None;
        };
        let relayed = from == Way::of(self.config.server);
        let direct_allowed = self.allows_direct();
        let member = frame
            .channel
            .seat()
            .and_then(|seat| self.roster.in_seat(seat));
        let Some(member) = member else {
            self.counters.refused_data += 1;
            return None;
        };
        let mut proven = || {
            let punch = member.punch.as_mut()?;
            (direct_allowed && punch.accepts_data(now, from)).then_some(())
        };
        if !relayed && proven().is_none() {
            self.counters.refused_data += 1;
            return None;
        }
        let id = member.id;
        if relayed {
            self.counters.relayed_in += 1;
            self.relay_active = true;
            self.on_heard(now);
        } else {
            self.counters.direct_in += 1;
        }
        Some(Delivery {
            from: id,
            direct: !relayed,
            range: channel_data::HEADER_LEN..channel_data::HEADER_LEN + frame.data.len(),
        })
    }

    fn on_message(&mut self, now: Millis, from: Way, message: &Message<'_>) {
        let of_server = from == Way::of(self.config.server);
        match (message.method(), message.class()) {
            (stun::method::BINDING, Class::Request) if !of_server => {
                self.on_check(now, from, message);
            }
            (stun::method::BINDING, Class::Success) => {
                let mapped = message.find_xor_addr(stun::attr::XOR_MAPPED_ADDRESS);
                if let Some(mapped) = mapped
                    && let Some(probe) = &mut self.probe
                    && !from.through_turn
                    && probe.on_answer(from.addr, message.transaction_id(), mapped)
                {
                    if of_server {
                        self.on_heard(now);
                    }
                    self.handle_timeout(now);
                } else if !of_server {
                    self.on_check_answer(now, from, message);
                }
            }
            (native::method::EVENT, Class::Request) if of_server => self.on_events(now, message),
            (_, Class::Success | Class::Error) if of_server => self.on_answer(now, message),
            _ => self.counters.unexpected += 1,
        }
    }

    pub(super) fn on_heard(&mut self, now: Millis) {
        self.heard = now;
        if self.silent {
            self.silent = false;
            self.tell(SessionEvent::ServerBack);
            self.tell_all_paths();
        }
    }

    fn on_check(&mut self, now: Millis, from: Way, message: &Message<'_>) {
        let sender = message
            .find(attr::SEAT_HANDLE)
            .and_then(native::SeatHandle::from_bytes);
        let (Some(sender), Some(seat)) = (sender, &self.seat) else {
            self.counters.unexpected += 1;
            return;
        };
        let same_session = sender.code == seat.handle.code;
        let punch = self
            .roster
            .get_mut(sender.id)
            .and_then(|member| member.punch.as_mut());
        match punch {
            Some(punch) if same_session && punch.verifies(message) => {
                let id = message.transaction_id();
                let Self { rng, ledger, .. } = self;
                let answer = punch.on_check(now, from, id, self.config.server, ledger, rng);
                if self.out.len() < TRANSMITS_MAX {
                    self.out.extend(answer);
                }
                if message.find(attr::LEAVES_SERVER).is_some()
                    && let Some(member) = self.roster.get_mut(sender.id)
                {
                    member.leaves_server = true;
                }
                self.tell_path(sender.id);
            }
            _ => self.counters.unexpected += 1,
        }
    }

    fn on_check_answer(&mut self, now: Millis, from: Way, message: &Message<'_>) {
        if self.on_notice_answer(now, message) {
            return;
        }
        let proven = self.roster.iter_mut().find_map(|member| {
            let punch = member.punch.as_mut()?;
            punch.on_answer(now, from, message).then_some(member.id)
        });
        match proven {
            Some(id) => self.hold_to_path(now, id),
            None => self.counters.unexpected += 1,
        }
    }

    fn on_answer(&mut self, now: Millis, message: &Message<'_>) {
        let at = self.requests.iter().position(|request| {
            request.transaction == message.transaction_id()
                && request.op.method() == message.method()
                && !request.parked
        });
        let (Some(at), Ok(fields)) = (at, Fields::read(message)) else {
            self.counters.unexpected += 1;
            return;
        };
        if message.class() == Class::Error {
            match message.error_code() {
                Some(code) => {
                    self.on_heard(now);
                    self.on_error(now, at, code, fields.nonce);
                }
                None => self.counters.malformed += 1,
            }
            return;
        }
        let request = &self.requests[at];
        let genuine = !native::method::is_seated(request.op.method())
            || self.seat.as_ref().is_some_and(|seat| {
                message.verify_integrity(Integrity::Sha256Truncated, &seat.token)
            });
        if !genuine {
            self.counters.unexpected += 1;
            return;
        }
        if request.op.seats() && (fields.handle.is_none() || fields.token.is_none()) {
            self.counters.malformed += 1;
            return;
        }
        self.on_heard(now);
        let request = self.requests.remove(at);
        if let Some(server_time) = fields.server_time_ms {
            let repetition = &request.repetition;
            let sent = repetition.only_sent().unwrap_or(repetition.started());
            self.clock.sample(now, sent, server_time);
        }
        self.on_success(now, request, message, &fields);
    }

    fn on_success(
        &mut self,
        now: Millis,
        request: Request,
        message: &Message<'_>,
        fields: &Fields<'_>,
    ) {
        if request.op.seats() {
            self.on_seated(now, request, fields);
            return;
        }
        match request.op {
            Op::List { .. } => {
                let sessions = message
                    .attributes()
                    .filter(|attribute| attribute.kind == attr::LIST_ENTRY)
                    .filter_map(|attribute| listed(attribute.value, message.transaction_id()))
                    .collect();
                if let Some(request) = request.id {
                    self.tell(Event::Listed {
                        request,
                        sessions,
                        next: fields.list_cursor,
                    });
                }
                return;
            }
            Op::Leave if self.departure.is_some() => self.left_server(now),
            Op::Leave | Op::Close => self.unseat(),
            Op::UpdateSession(update) => {
                if let Some(hosted) = &mut self.hosted {
                    remember(hosted, update);
                }
            }
            Op::UpdateMember(data) => self.member_data = data,
            Op::Keepalive => {
                if self.mapping.is_some() && self.mapping_told.is_none() {
                    self.mapping_told = Some(now);
                }
                self.schedule_keepalive(now);
                if let (Some(seat), Some(mapped)) = (&mut self.seat, fields.mapped)
                    && seat.mapped != Some(mapped)
                {
                    seat.mapped = Some(mapped);
                    self.tell(SessionEvent::AddressChanged(mapped));
                }
            }
            _ => {}
        }
        if let Some(request) = request.id {
            self.tell(Event::Done { request });
        }
    }

    fn schedule_keepalive(&mut self, now: Millis) {
        let Some(seat) = &self.seat else { return };
        let interval = u64::from(seat.keepalive_secs) * 1000;
        // Clients that a restart of the server has brought into step drift apart again.
        let early = self.rng.random_range(0..=interval / 10);
        self.keepalive_at = now + (interval - early);
    }

    fn on_seated(&mut self, now: Millis, request: Request, fields: &Fields<'_>) {
        let ticket = match &request.op {
            Op::Resume { ticket, .. } => Some(ticket.as_slice()),
            _ => None,
        };
        let Some(mut seat) = Seat::read(fields, ticket) else {
            return;
        };
        // An answer to a repetition is younger than the seat, which is not older than the first request.
        let asked_for_ms = now.since(request.began);
        let server_time = fields.server_time_ms.unwrap_or(0);
        seat.events_since_ms = server_time.saturating_sub(asked_for_ms);
        let own = seat.handle.id;
        let old = self.seat.replace(seat);
        let recovered = self.recovering && matches!(request.op, Op::Resume { .. });
        if recovered {
            self.keep_members_for_now(now);
        } else {
            let members: Vec<SeatId> = self.roster.iter().map(|member| member.id).collect();
            self.roster.clear();
            for member in members {
                self.tell(SessionEvent::MemberLeft(member, LeaveReason::TimedOut));
            }
            self.session = super::SessionInfo::default();
        }
        self.session.update(fields);
        if let Op::Host(host) = request.op {
            self.session.host = Some(own);
            self.session.name.clone_from(&host.name);
            self.session.metadata.clone_from(&host.metadata);
            if fields.max_members.is_none() {
                self.session.max_members = host.max_members;
            }
            if fields.session_flags.is_none() {
                self.session.flags = host.flags();
            }
            self.hosted = Some(host);
        }
        if fields
            .member_flags
            .is_some_and(|flags| flags & member_flags::HOST != 0)
        {
            self.session.host = Some(own);
        }
        self.mapping_told = self.mapping.map(|_| now);
        self.schedule_keepalive(now);
        if self.recovering {
            self.recovering = false;
            let (was, is) = (
                old.map(|seat| seat.code()),
                self.seat.as_ref().map(Seat::code),
            );
            match (was, is) {
                (Some(old), Some(new)) if old != new => {
                    self.tell(SessionEvent::CodeChanged { old, new })
                }
                _ => self.tell(SessionEvent::Resumed),
            }
            self.unpark(now);
        }
        if let Some(request) = request.id {
            self.tell(Event::Done { request });
        }
        self.offer_turn(now);
        if self.config.probing != Probing::Off
            && self.config.policy.allows_direct()
            && let Some(port) = self.seat.as_ref().and_then(|seat| seat.probe_port)
        {
            self.begin_probe(now, port);
            self.handle_timeout(now);
        }
    }

    fn on_error(&mut self, now: Millis, at: usize, error: u16, nonce: Option<&[u8]>) {
        let request = &mut self.requests[at];
        let renewable = match error {
            code::STALE_NONCE => true,
            // With a nonce already in the request the credential is what is wrong.
            code::UNAUTHENTICATED => !had_nonce(&request.bytes),
            _ => false,
        };
        if renewable
            && let Some(nonce) = nonce.filter(|nonce| nonce.len() <= NONCE_MAX)
            && request.renewals < RENEWALS_MAX
        {
            request.renewals += 1;
            self.nonce = Some(nonce.to_vec());
            self.write_request(now, at);
            self.send_requests(now);
            return;
        }
        if self.recovering
            && request.op.seats()
            && matches!(error, code::CAPACITY | code::TOO_MANY_ATTEMPTS)
        {
            // A server that has just come up, and everybody with it: worth another try.
            self.write_request(now, at);
            self.requests[at].repetition = Repetition::new(now + RECOVERY_PAUSE_MS);
            return;
        }
        let seated = native::method::is_seated(request.op.method());
        let leaving = self.departure.is_some();
        if seated
            && error == code::SEAT_GONE
            && !leaving
            && !matches!(request.op, Op::Leave | Op::Close)
        {
            self.recover(now);
            return;
        }
        let request = self.requests.remove(at);
        match (request.id, &request.op) {
            (Some(id), op) => {
                let gone = matches!(op, Op::Leave | Op::Close) && error == code::SEAT_GONE;
                if gone {
                    self.unseat();
                    self.tell(Event::Done { request: id });
                } else {
                    self.tell(Event::Failed {
                        request: id,
                        failure: Failure::Rejected(Rejected { code: error }),
                    });
                }
            }
            (None, Op::Resume { .. }) if self.recovering && error == code::KICKED => {
                self.unseat();
                self.tell(SessionEvent::Removed(LeaveReason::Kicked));
            }
            (None, Op::Resume { .. }) if self.recovering => self.host_again(now),
            (None, Op::Host(_)) if self.recovering => self.lose_seat(),
            (None, Op::Keepalive) => self.schedule_keepalive(now),
            (None, Op::Leave) => self.left_server(now),
            (None, _) => {}
        }
    }
}

fn had_nonce(request: &[u8]) -> bool {
    Message::parse(request).is_ok_and(|message| message.find(stun::attr::NONCE).is_some())
}

/// The session is made again as it was last, not as it was first.
fn remember(hosted: &mut super::HostConfig, update: super::SessionUpdate) {
    if let Some(metadata) = update.metadata {
        hosted.metadata = metadata;
    }
    if let Some(password) = update.password {
        hosted.password = password;
    }
    if let Some(max_members) = update.max_members {
        hosted.max_members = max_members;
    }
    if let Some(flags) = update.flags {
        hosted.listed = flags & native::session_flags::LISTED != 0;
        hosted.locked = flags & native::session_flags::LOCKED != 0;
        hosted.introduce = flags & native::session_flags::AUTO_INTRODUCE != 0;
    }
}

fn listed(value: &[u8], id: TransactionId) -> Option<ListedSession> {
    let fields = Fields::read_list(Attributes::nested(value), id).ok()?;
    Some(ListedSession {
        code: fields.code?,
        name: fields.name.map(str::to_owned),
        max_members: fields.max_members?,
        members: fields.member_count.unwrap_or(0),
        flags: fields.session_flags.unwrap_or(0),
        metadata: fields.metadata.unwrap_or_default().to_vec(),
    })
}
