//! What a member does from its seat, and how seats and sessions end.

use super::session::{Introduction, Member, StreamWish};
use super::{
    Asked, Lobby, Mail, Origin, Outcome, Reject, StreamSerial, TimerKey, Turn, answer_error,
    answer_seated, seating, transaction_digest,
};
use crate::addr::{Addr, ProvenAddr};
use crate::forwarding::SocketIndex;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::native::{
    EventKind, Fields, LeaveReason, SeatHandle, SeatId, code, method, password_key, session_flags,
};
use crate::wire::stun::Integrity;

/// Time from the decision to introduce two members until they begin: long enough for one lost event to be repeated.
const INTRODUCTION_LEAD_MS: u64 = 400;
/// How long a member's wish for a stream waits for the other's. A connection without a seat lives no longer.
const STREAM_WISH_MS: u64 = 60_000;
/// Requests that others hear of cost this much time each.
const CHANGE_MS: u64 = 50;
/// So many of them may come at once. Who makes more could fill the session's log before others have read it, which would cost
/// them their seats.
const CHANGES_BURST: u64 = 40;
/// How long a removed member is told so before it is forgotten.
const DEPARTURE_MS: u64 = 5_000;

impl Lobby {
    /// A request from a seat: finds the seat, checks integrity, follows the member to a new address, and repeats the
    /// answer to a repeated request.
    pub(super) fn handle_seated(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let handle = asked.fields.handle.ok_or(Reject(code::BAD_REQUEST))?;
        let member = self
            .find_member(handle)
            .filter(|&member| {
                let token = &self.members[member].token;
                asked
                    .message
                    .verify_integrity(Integrity::Sha256Truncated, token)
            })
            .ok_or_else(|| {
                turn.counters.count(Counter::SeatFailures);
                Reject(code::SEAT_GONE)
            })?;
        if asked.message.method() == method::OBSERVE {
            self.observe(turn, member, asked)?;
            answer_seated(turn, asked, &self.members[member].token);
            let session = self.members[member].session;
            self.pump_all(turn, session);
            return Ok(());
        }
        self.rebind(turn, asked.origin, member);
        let entry = &mut self.members[member];
        entry.last_heard = turn.now;
        let token = entry.token;
        let digest = transaction_digest(asked.message);
        if entry.last_request == digest {
            match entry.last_outcome {
                0 => answer_seated(turn, asked, &token),
                error => answer_error(turn, asked, error),
            }
            return Ok(());
        }
        let uid = entry.uid;
        // A keepalive does no harm twice, and must not make the member's last deed forgotten.
        let remembered = asked.message.method() != method::KEEPALIVE;
        let outcome = self.obey(turn, member, asked.message.method(), asked.fields);
        if let Some(entry) = self
            .members
            .get_mut(member)
            .filter(|entry| remembered && entry.uid == uid)
        {
            entry.last_request = digest;
            entry.last_outcome = outcome.err().map_or(0, |Reject(error)| error);
        }
        if outcome.is_ok() {
            answer_seated(turn, asked, &token);
        }
        outcome
    }

    fn find_member(&self, handle: SeatHandle) -> Option<u32> {
        let session = *self.by_code.get(&handle.code)?;
        self.sessions[session]
            .occupant(handle.id.seat)
            .filter(|&member| self.members[member].handle == handle)
    }

    fn obey(
        &mut self,
        turn: &mut Turn<'_>,
        member: u32,
        request: u16,
        fields: &Fields<'_>,
    ) -> Outcome {
        if matches!(
            request,
            method::UPDATE | method::TRANSFER | method::INTRODUCE
        ) {
            self.pay_for_change(turn, member)?;
        }
        let session = self.members[member].session;
        // Whoever waits for a match longest is not yet the host of those who wait with it.
        let is_host = self.members[member].handle.id.seat == self.sessions[session].host
            && self.sessions[session].forming.is_none();
        let host_only = || {
            if is_host {
                Ok(())
            } else {
                Err(Reject(code::NOT_HOST))
            }
        };
        match request {
            method::KEEPALIVE => {
                let entry = &self.members[member];
                let port = fields.reachable_port.and_then(seating::may_be_reachable);
                let has_other = port.is_some() && port != entry.reachable_port && !entry.relay_only;
                if has_other {
                    self.pay_for_change(turn, member)?;
                }
                seating::take_member_part(&mut self.members[member], fields);
                if has_other {
                    self.introduce_anew(turn, member);
                    self.pump_all(turn, session);
                }
                Ok(())
            }
            method::LEAVE => {
                self.remove_member(turn, member, LeaveReason::Left);
                Ok(())
            }
            method::KICK => {
                host_only()?;
                let target = self.target(session, fields.target)?;
                self.kick(turn, session, target);
                Ok(())
            }
            method::UPDATE => self.update(turn, member, is_host, fields),
            method::TRANSFER => {
                host_only()?;
                let target = self.target(session, fields.target)?;
                let id = self.members[target].handle.id;
                self.sessions[session].host = id.seat;
                self.log(session, EventKind::HostChanged, 0, id);
                self.pump_all(turn, session);
                Ok(())
            }
            method::CLOSE => {
                host_only()?;
                self.close_session(turn, session, LeaveReason::Closed);
                Ok(())
            }
            method::INTRODUCE => {
                match (fields.target, fields.other) {
                    (None, None) => {
                        host_only()?;
                        self.introduce_all(turn, session);
                    }
                    (Some(_), None) => {
                        let target = self.target(session, fields.target)?;
                        self.introduce(turn, member, target);
                    }
                    (target, other) => {
                        host_only()?;
                        let target = self.target(session, target)?;
                        let other = self.target(session, other)?;
                        self.introduce(turn, target, other);
                    }
                }
                self.pump_all(turn, session);
                Ok(())
            }
            _ => Err(Reject(code::BAD_REQUEST)),
        }
    }

    fn pay_for_change(&mut self, turn: &mut Turn<'_>, member: u32) -> Outcome {
        let made_good_at = &mut self.members[member].changes_made_good_at;
        if made_good_at.since(turn.now) > CHANGE_MS * (CHANGES_BURST - 1) {
            turn.counters.count(Counter::RateLimited);
            return Err(Reject(code::TOO_MANY_ATTEMPTS));
        }
        *made_good_at = turn.now.max(*made_good_at) + CHANGE_MS;
        Ok(())
    }

    /// Notes an address on a TURN server at which a member was seen, and has it introduced anew if that goes by itself.
    fn observe_relayed(&mut self, turn: &mut Turn<'_>, member: u32, seen: Addr) -> Outcome {
        let entry = &self.members[member];
        if entry.relay_only || entry.source.addr() == seen {
            return Err(Reject(code::BAD_REQUEST));
        }
        if entry.relayed == Some(seen) {
            return Ok(());
        }
        self.pay_for_change(turn, member)?;
        self.members[member].relayed = Some(seen);
        self.introduce_anew(turn, member);
        Ok(())
    }

    /// Tells the others of a member's addresses again, if introductions go by themselves in its session.
    fn introduce_anew(&mut self, turn: &mut Turn<'_>, member: u32) {
        let session = &self.sessions[self.members[member].session];
        let introduces = session.flags & session_flags::AUTO_INTRODUCE != 0;
        if introduces && session.forming.is_none() {
            self.introduce_to_all(turn, member);
        }
    }

    /// Notes where a member's connection was seen. When the other of the two has done the same, both are told to connect.
    fn observe(&mut self, turn: &mut Turn<'_>, member: u32, asked: Asked<'_>) -> Outcome {
        if asked.origin.stream.is_none() && asked.fields.target.is_none() {
            return self.observe_relayed(turn, member, asked.origin.addr.addr());
        }
        let session = self.members[member].session;
        let target = self.target(session, asked.fields.target)?;
        let entry = &self.members[member];
        if asked.origin.stream.is_none() || entry.relay_only || target == member {
            return Err(Reject(code::BAD_REQUEST));
        }
        self.pay_for_change(turn, member)?;
        let (own, peer) = (
            self.members[member].handle.id,
            self.members[target].handle.id,
        );
        let seen = asked.origin.addr.addr();
        let locals = asked.fields.locals.iter().flatten().copied();
        let mut wish = StreamWish {
            peer,
            seen,
            locals: locals.filter(|local| local.may_be_local_to(seen)).collect(),
            reachable_port: asked
                .fields
                .reachable_port
                .and_then(seating::may_be_reachable),
            since: turn.now,
        };
        let is_fresh = |wish: &StreamWish| turn.now.since(wish.since) < STREAM_WISH_MS;
        let theirs = &mut self.members[target].stream_wishes;
        theirs.retain(is_fresh);
        let other = theirs.iter().position(|other| other.peer == own);
        let ours = &mut self.members[member].stream_wishes;
        ours.retain(|old| is_fresh(old) && old.peer != peer);
        let Some(other) = other else {
            ours.push(wish);
            return Ok(());
        };
        let mut other = self.members[target].stream_wishes.swap_remove(other);
        if other.seen.ip() != wish.seen.ip() {
            (wish.locals, other.locals) = (Box::default(), Box::default());
        }
        turn.counters.count(Counter::Introductions);
        let start_ms = turn.wall.unix_ms(turn.now) + INTRODUCTION_LEAD_MS;
        for (index, peer, wish) in [(member, peer, other), (target, own, wish)] {
            let queue = &mut self.members[index].introductions;
            queue.retain(|old| old.stream.is_none() || old.peer.seat != peer.seat);
            queue.push(Introduction {
                peer,
                start_ms,
                stream: Some(Box::new(wish)),
            });
        }
        Ok(())
    }

    fn target(&self, session: u32, target: Option<SeatId>) -> Result<u32, Reject> {
        let id = target.ok_or(Reject(code::BAD_REQUEST))?;
        self.occupant_as(&self.sessions[session], id)
            .ok_or(Reject(code::NO_MEMBER))
    }

    /// Removes a member for the session's life: its address prefix may not join again, its ticket is void.
    fn kick(&mut self, turn: &mut Turn<'_>, session: u32, target: u32) {
        let prefix = self.members[target].source.addr().source_prefix();
        let id = self.members[target].handle.id;
        let entry = &mut self.sessions[session];
        entry.reserved.retain(|reserved| *reserved != id);
        // A session brought back by tickets lets their bearers in; not any more, lest the kicked one uses its own.
        entry.restored = false;
        if !entry.banned.contains(&prefix) {
            entry.banned.push(prefix);
        }
        self.remove_member(turn, target, LeaveReason::Kicked);
    }

    fn update(
        &mut self,
        turn: &mut Turn<'_>,
        member: u32,
        is_host: bool,
        fields: &Fields<'_>,
    ) -> Outcome {
        let session = self.members[member].session;
        let id = self.members[member].handle.id;
        let changes_session = fields.metadata.is_some()
            || fields.password_key.is_some()
            || fields.max_members.is_some()
            || fields.session_flags.is_some();
        if changes_session {
            if !is_host {
                return Err(Reject(code::NOT_HOST));
            }
            let entry = &mut self.sessions[session];
            if let Some(max) = fields.max_members {
                if entry.occupants().count() > 0
                    && entry.seats.iter().rposition(Option::is_some) >= Some(usize::from(max))
                {
                    return Err(Reject(code::BAD_REQUEST));
                }
                entry.max_members = max;
            }
            if let Some(metadata) = fields.metadata {
                entry.metadata = metadata.into();
            }
            if let Some(key) = fields.password_key {
                entry.has_password = key != password_key(&entry.application, "");
                entry.password_key = key;
            }
            if let Some(flags) = fields.session_flags {
                entry.flags = flags & session_flags::SETTABLE;
            }
            self.log(session, EventKind::SessionChanged, 0, id);
        }
        if let Some(data) = fields.member_data {
            self.members[member].data = data.into();
            self.log(session, EventKind::MemberChanged, 0, id);
        }
        self.pump_all(turn, session);
        Ok(())
    }

    /// Follows a member to the address its request came from.
    pub(super) fn rebind(&mut self, turn: &mut Turn<'_>, origin: Origin, member: u32) {
        let entry = &mut self.members[member];
        if entry.is_at(origin) && entry.home == origin.home && !entry.is_unplugged {
            return;
        }
        turn.counters.count(Counter::Rebinds);
        let handle = entry.handle;
        turn.out.mail.push((
            entry.home,
            Mail::RemoveFlow {
                socket: entry.socket,
                source: entry.source,
                handle,
            },
        ));
        entry.source = origin.addr;
        entry.socket = origin.socket;
        entry.home = origin.home;
        entry.stream = origin.stream;
        entry.is_unplugged = false;
        turn.out.mail.push((
            origin.home,
            Mail::AddFlow {
                socket: origin.socket,
                source: origin.addr,
                stream: origin.stream,
                handle,
            },
        ));
        if self.sessions[self.members[member].session]
            .forming
            .is_none()
        {
            self.announce_routes(turn, member);
        }
        // What waited for an acknowledgement while nobody could be reached is due again.
        self.set_member_timer(turn, member);
    }

    /// The stream of a member has ended: as if it had gone silent, nothing leads to it any more, and its seat is held.
    pub(crate) fn handle_stream_ended(
        &mut self,
        turn: &mut Turn<'_>,
        handle: SeatHandle,
        socket: SocketIndex,
        stream: StreamSerial,
    ) {
        let departing = self.departing.get(&handle).copied();
        let Some(index) = departing.or_else(|| self.find_member(handle)) else {
            return;
        };
        let member = &mut self.members[index];
        if member.stream != Some(stream) || member.socket != socket || member.is_unplugged {
            return;
        }
        member.is_unplugged = true;
        if !member.departing {
            let session = member.session;
            for home in self.homes(session) {
                let route = seating::set_route(&self.members[index], None);
                turn.out.mail.push((home, route));
            }
        }
        self.set_member_timer(turn, index);
    }

    /// A five-tuple holds one seat: whoever held this one before loses its own, unless it has moved on.
    pub(crate) fn handle_displaced(
        &mut self,
        turn: &mut Turn<'_>,
        handle: SeatHandle,
        socket: SocketIndex,
        source: ProvenAddr,
    ) {
        if let Some(member) = self.find_member(handle)
            && self.members[member].source == source
            && self.members[member].socket == socket
        {
            self.remove_member(turn, member, LeaveReason::TimedOut);
        }
    }

    /// Introduces every pair of a session.
    pub(super) fn introduce_all(&mut self, turn: &mut Turn<'_>, session: u32) {
        let members: Vec<u32> = self.sessions[session].occupants().collect();
        for (i, &a) in members.iter().enumerate() {
            for &b in &members[i + 1..] {
                self.introduce(turn, a, b);
            }
        }
    }

    /// Introduces one member to all others.
    pub(super) fn introduce_to_all(&mut self, turn: &mut Turn<'_>, member: u32) {
        let members: Vec<u32> = self.sessions[self.members[member].session]
            .occupants()
            .collect();
        for other in members {
            self.introduce(turn, member, other);
        }
    }

    /// Queues the introduction of two members to each other; they hear of it with their next batch of events.
    fn introduce(&mut self, turn: &mut Turn<'_>, a: u32, b: u32) {
        if a == b {
            return;
        }
        turn.counters.count(Counter::Introductions);
        let start_ms = turn.wall.unix_ms(turn.now) + INTRODUCTION_LEAD_MS;
        for (member, peer) in [(a, b), (b, a)] {
            let peer = self.members[peer].handle.id;
            let queue = &mut self.members[member].introductions;
            queue.retain(|old| old.stream.is_some() || old.peer.seat != peer.seat);
            queue.push(Introduction {
                peer,
                start_ms,
                stream: None,
            });
        }
    }

    /// Frees a seat. The others are told; so is the member itself, unless it left of its own will.
    pub(super) fn remove_member(&mut self, turn: &mut Turn<'_>, member: u32, reason: LeaveReason) {
        let session = self.members[member].session;
        let id = self.members[member].handle.id;
        self.unseat(turn, member, reason);
        let entry = &mut self.sessions[session];
        if entry.member_count() == 0 {
            if entry.reserved.is_empty() {
                self.drop_session(session);
            } else {
                entry.host = 0;
                self.wait_unseated(turn, session);
            }
            return;
        }
        let new_host = (entry.host == id.seat)
            .then(|| entry.occupants().next())
            .flatten();
        if entry.forming.is_none() {
            self.log(session, EventKind::MemberLeft, reason as u8, id);
        }
        if let Some(host) = new_host {
            let host_id = self.members[host].handle.id;
            self.sessions[session].host = host_id.seat;
            if self.sessions[session].forming.is_none() {
                self.log(session, EventKind::HostChanged, 0, host_id);
            }
        }
        self.pump_all(turn, session);
    }

    /// Takes a member out of its session and the forwarding tables.
    fn unseat(&mut self, turn: &mut Turn<'_>, index: u32, reason: LeaveReason) {
        let member = &self.members[index];
        let (handle, home, socket, source) =
            (member.handle, member.home, member.socket, member.source);
        let session = member.session;
        for shard in self.homes(session) {
            let route = seating::set_route(&self.members[index], None);
            turn.out.mail.push((shard, route));
        }
        turn.out.mail.push((
            home,
            Mail::RemoveFlow {
                socket,
                source,
                handle,
            },
        ));
        self.sessions[session].set_occupant(handle.id.seat, None);
        if reason == LeaveReason::TimedOut {
            turn.counters.count(Counter::SeatsTimedOut);
        }
        if reason == LeaveReason::Left {
            self.members.remove(index);
        } else {
            self.depart(turn, index, reason);
        }
        self.trim_log(session);
    }

    /// Tells a removed member what happened, for a while.
    fn depart(&mut self, turn: &mut Turn<'_>, index: u32, reason: LeaveReason) {
        let member = &mut self.members[index];
        member.departing = true;
        member.roster = Vec::new();
        member.introductions = Vec::new();
        // The time until which it is told, kept as if it had been heard until then.
        member.last_heard = turn.now;
        self.departing.insert(member.handle, index);
        if member.in_flight.is_some() {
            member.departure = Some(reason);
            self.set_member_timer(turn, index);
        } else {
            self.send_departure(turn, index, reason);
        }
    }

    /// Ends a session; every member is told.
    pub(super) fn close_session(&mut self, turn: &mut Turn<'_>, session: u32, reason: LeaveReason) {
        let members: Vec<u32> = self.sessions[session].occupants().collect();
        for member in members {
            self.unseat(turn, member, reason);
        }
        self.drop_session(session);
    }

    /// Forgets a session that has no members.
    pub(super) fn drop_session(&mut self, session: u32) {
        let entry = self.sessions.remove(session);
        debug_assert_eq!(entry.member_count(), 0, "members are unseated first");
        self.by_code.remove(&entry.code);
        if let Some(name) = &entry.name {
            self.by_name
                .remove(&seating::name_key(&entry.application, name));
        }
        if let Some(key) = &entry.forming {
            self.forming.remove(key);
        }
    }

    pub(super) fn handle_session_timer(&mut self, turn: &mut Turn<'_>, index: u32, uid: u32) {
        let Some(session) = self.sessions.get(index).filter(|entry| entry.uid == uid) else {
            return;
        };
        if session.member_count() > 0 {
            return;
        }
        let until = session.unseated_until;
        if until <= turn.now {
            self.drop_session(index);
        } else {
            turn.wheel.schedule(until, TimerKey::Session(index, uid));
        }
    }

    /// Keeps a session without members for a while, for those who hold tickets.
    pub(super) fn wait_unseated(&mut self, turn: &mut Turn<'_>, index: u32) {
        let entry = &mut self.sessions[index];
        let timer_is_set = entry.unseated_until > turn.now;
        let until = turn.now.plus_secs(self.config.unseated_hold_secs);
        entry.unseated_until = until.min(entry.expires_at).max(turn.now);
        if !timer_is_set {
            let key = TimerKey::Session(index, entry.uid);
            turn.wheel.schedule(entry.unseated_until, key);
        }
    }

    pub(super) fn handle_member_timer(&mut self, turn: &mut Turn<'_>, index: u32, uid: u32) {
        let Some(member) = self.members.get_mut(index).filter(|entry| entry.uid == uid) else {
            return;
        };
        if member.timer_at > turn.now {
            return;
        }
        member.timer_at = Millis(u64::MAX);
        if self.session_ends(index) <= turn.now {
            let session = self.members[index].session;
            self.close_session(turn, session, LeaveReason::Expired);
            return;
        }
        let is_excused = turn.now < self.excused_until && !self.members[index].departing;
        if self.members[index].silence_ends(self.config.seat_hold_secs) <= turn.now && !is_excused {
            if self.members[index].departing {
                self.forget_departed(index);
            } else {
                self.remove_member(turn, index, LeaveReason::TimedOut);
            }
            return;
        }
        self.resend(turn, index);
        self.set_member_timer(turn, index);
    }

    /// Forgets a removed member that has acknowledged, or has been told for long enough.
    pub(super) fn forget_departed(&mut self, index: u32) {
        let member = self.members.remove(index);
        self.departing.remove(&member.handle);
    }

    /// When the session of this member ends; a departing member has none.
    fn session_ends(&self, index: u32) -> Millis {
        let member = &self.members[index];
        if member.departing {
            Millis(u64::MAX)
        } else {
            self.sessions[member.session].expires_at
        }
    }

    /// Makes sure that a timer fires at the next thing this member waits for.
    pub(super) fn set_member_timer(&mut self, turn: &mut Turn<'_>, index: u32) {
        let hold_secs = self.config.seat_hold_secs;
        let ends = self.session_ends(index);
        let member = &mut self.members[index];
        let mut silence = member.silence_ends(hold_secs);
        if silence <= turn.now {
            silence = silence.max(self.excused_until);
        }
        let silence = silence.min(ends);
        let at = member
            .in_flight
            .as_ref()
            .filter(|_| !member.is_unplugged)
            .map_or(silence, |batch| batch.resend_at.min(silence));
        if at < member.timer_at {
            member.timer_at = at;
            turn.wheel.schedule(at, TimerKey::Member(index, member.uid));
        }
    }
}

impl Member {
    fn silence_ends(&self, hold_secs: u32) -> Millis {
        if self.departing {
            self.last_heard + DEPARTURE_MS
        } else {
            self.last_heard.plus_secs(hold_secs)
        }
    }
}
