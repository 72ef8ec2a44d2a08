//! Taking a seat: HOST, JOIN, MATCH, RESUME, and what all of them share.

use rand::RngExt;
use subtle::ConstantTimeEq;

use super::session::{InFlight, Member, Session};
use super::{Asked, Lobby, Mail, NO_PASSWORD_FITS, Outcome, Reject, Turn, transaction_digest};
use crate::stats::Counter;
use crate::ticket::Ticket;
use crate::time::Millis;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{
    EventKind, Fields, SeatHandle, SeatId, attr, code, member_flags, method, password_key,
    password_proof, session_flags,
};
use crate::wire::stun::{self, Class, MessageWriter};

/// Two strings as one key: neither can contain the separator.
pub(super) fn name_key(application: &str, name: &str) -> Box<[u8]> {
    [application.as_bytes(), b"\0", name.as_bytes()]
        .concat()
        .into_boxed_slice()
}

fn match_key(application: &str, players: u8, key: &[u8]) -> Box<[u8]> {
    [application.as_bytes(), &[0, players], key]
        .concat()
        .into_boxed_slice()
}

/// What a session is made with.
pub(super) struct NewSession<'a> {
    pub application: &'a str,
    pub name: Option<&'a str>,
    pub password_key: Option<[u8; 16]>,
    pub metadata: &'a [u8],
    pub max_members: u8,
    pub flags: u32,
    pub forming: Option<Box<[u8]>>,
    /// The code that a ticket brings back.
    pub code: Option<JoinCode>,
}

impl Lobby {
    pub(super) fn handle_host(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let application = asked.fields.application.ok_or(Reject(code::BAD_REQUEST))?;
        let max_members = asked.fields.max_members.ok_or(Reject(code::BAD_REQUEST))?;
        if let Some(name) = asked.fields.name
            && let Some(&session) = self.by_name.get(&name_key(application, name))
        {
            return match self.seated_by(session, asked) {
                Some(member) => {
                    self.answer_seat(turn, asked, member, false);
                    Ok(())
                }
                None => Err(Reject(code::NAME_TAKEN)),
            };
        }
        let session = self.create_session(
            turn,
            &NewSession {
                application,
                name: asked.fields.name,
                password_key: asked.fields.password_key,
                metadata: asked.fields.metadata.unwrap_or_default(),
                max_members,
                flags: asked.fields.session_flags.unwrap_or(0),
                forming: None,
                code: None,
            },
        )?;
        let seated = self.add_member(turn, asked, session, None);
        self.answer_or_undo(turn, asked, session, seated, false)
    }

    pub(super) fn handle_join(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let application = asked.fields.application.ok_or(Reject(code::BAD_REQUEST))?;
        let proof = asked
            .fields
            .password_proof
            .ok_or(Reject(code::BAD_REQUEST))?;
        let nonce = asked.fields.nonce.ok_or(Reject(code::BAD_REQUEST))?;
        let found = match (asked.fields.code, asked.fields.name) {
            (Some(code), _) => self.by_code.get(&code),
            (None, Some(name)) => self.by_name.get(&name_key(application, name)),
            (None, None) => return Err(Reject(code::BAD_REQUEST)),
        };
        let session = found.copied().filter(|&session| {
            let session = &self.sessions[session];
            *session.application == *application && session.forming.is_none()
        });
        if let Some(session) = session
            && let Some(member) = self.seated_by(session, asked)
        {
            self.answer_seat(turn, asked, member, true);
            return Ok(());
        }
        let prefix = asked.origin.addr.addr().source_prefix();
        let target = session.map_or((asked.fields.code, asked.fields.name), |session| {
            (Some(self.sessions[session].code), None)
        });
        if !self.failures.may_try(turn.now, prefix, target) {
            turn.counters.count(Counter::RateLimited);
            return Err(Reject(code::TOO_MANY_ATTEMPTS));
        }
        // A session that does not exist costs the same check as one that does, and fails the same way.
        let key = session.map_or(NO_PASSWORD_FITS, |session| {
            self.sessions[session].password_key
        });
        turn.counters.count(Counter::PasswordChecks);
        let expected = password_proof(&key, nonce, asked.message.transaction_id());
        let fits = bool::from(expected.ct_eq(&proof));
        let Some(session) = session.filter(|_| fits) else {
            turn.counters.count(Counter::JoinFailures);
            self.failures.note(turn.now, prefix, target);
            return Err(Reject(code::NO_SESSION));
        };
        let entry = &self.sessions[session];
        if entry.banned.contains(&prefix) {
            return Err(Reject(code::KICKED));
        }
        if entry.flags & session_flags::LOCKED != 0 {
            return Err(Reject(code::LOCKED));
        }
        let member = self.add_member(turn, asked, session, None)?;
        self.answer_seat(turn, asked, member, true);
        self.welcome(turn, member);
        Ok(())
    }

    pub(super) fn handle_match(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let application = asked.fields.application.ok_or(Reject(code::BAD_REQUEST))?;
        let players = asked.fields.max_members.ok_or(Reject(code::BAD_REQUEST))?;
        let key = asked.fields.match_key.ok_or(Reject(code::BAD_REQUEST))?;
        let key = match_key(application, players, key);
        let last_formed = self.last_formed.and_then(|code| self.by_code.get(&code));
        if let Some(&session) = last_formed
            && let Some(member) = self.seated_by(session, asked)
        {
            self.answer_seat(turn, asked, member, true);
            return Ok(());
        }
        let session = match self.forming.get(&key) {
            Some(&session) => session,
            None => self.create_session(
                turn,
                &NewSession {
                    application,
                    name: None,
                    password_key: None,
                    metadata: &[],
                    max_members: players,
                    flags: session_flags::AUTO_INTRODUCE,
                    forming: Some(key),
                    code: None,
                },
            )?,
        };
        if let Some(member) = self.seated_by(session, asked) {
            self.answer_seat(turn, asked, member, true);
            return Ok(());
        }
        let seated = self.add_member(turn, asked, session, None);
        self.answer_or_undo(turn, asked, session, seated, true)?;
        if self.sessions[session].member_count() == usize::from(players) {
            self.complete_match(turn, session);
        }
        Ok(())
    }

    /// The last player has come: everybody is told of everybody.
    fn complete_match(&mut self, turn: &mut Turn<'_>, session: u32) {
        let entry = &mut self.sessions[session];
        if let Some(key) = entry.forming.take() {
            self.forming.remove(&key);
        }
        self.last_formed = Some(entry.code);
        let host = entry.host;
        let members: Vec<u32> = entry.occupants().collect();
        let host_id = entry
            .occupant(host)
            .map(|member| self.members[member].handle.id);
        for &member in &members {
            self.members[member].roster = self.others(session, member);
        }
        if let Some(seat) = host_id {
            self.log(session, EventKind::Formed, 0, seat);
        }
        self.introduce_all(turn, session);
        for member in members {
            self.announce_routes(turn, member);
            self.pump(turn, member);
        }
    }

    /// The member of `session` that this very request seated, if it is a repetition.
    fn seated_by(&self, session: u32, asked: Asked<'_>) -> Option<u32> {
        let digest = transaction_digest(asked.message);
        self.sessions[session].occupants().find(|&member| {
            let member = &self.members[member];
            member.seated_by == digest && member.is_at(asked.origin)
        })
    }

    /// Answers a request from a source that has the seat `handle` already.
    pub(crate) fn handle_second_seating(
        &mut self,
        turn: &mut Turn<'_>,
        asked: Asked<'_>,
        handle: SeatHandle,
    ) {
        let repeated = self
            .by_code
            .get(&handle.code)
            .and_then(|&session| self.seated_by(session, asked));
        match repeated {
            Some(member) => {
                let session_part = asked.message.method() != method::HOST;
                self.answer_seat(turn, asked, member, session_part);
            }
            None => super::answer_error(turn, asked, code::SEATED),
        }
    }

    pub(super) fn create_session(
        &mut self,
        turn: &mut Turn<'_>,
        new: &NewSession<'_>,
    ) -> Result<u32, Reject> {
        if self.sessions.is_full() || self.members.is_full() {
            return Err(Reject(code::CAPACITY));
        }
        let code = new.code.unwrap_or_else(|| {
            loop {
                let code = JoinCode::random(turn.rng, self.shard, self.shard_count);
                if !self.by_code.contains_key(&code) {
                    return code;
                }
            }
        });
        let uid = self.uid();
        let expires_at = turn.now.plus_secs(self.config.session_lifetime_secs);
        let session = self
            .sessions
            .insert(Session {
                uid,
                code,
                application: new.application.into(),
                name: new.name.map(Into::into),
                password_key: new
                    .password_key
                    .unwrap_or_else(|| password_key(new.application, "")),
                has_password: new.password_key.is_some(),
                metadata: new.metadata.into(),
                max_members: new.max_members,
                flags: new.flags & session_flags::SETTABLE,
                forming: new.forming.clone(),
                host: 0,
                awaits_host: false,
                restored: false,
                expires_at,
                unseated_until: Millis(0),
                next_seat: 0,
                seats: Vec::new(),
                reserved: Vec::new(),
                banned: Vec::new(),
                log: std::collections::VecDeque::new(),
                log_base: 0,
            })
            .ok_or(Reject(code::CAPACITY))?;
        self.by_code.insert(code, session);
        if let Some(name) = new.name {
            self.by_name
                .insert(name_key(new.application, name), session);
        }
        if let Some(key) = &new.forming {
            self.forming.insert(key.clone(), session);
        }
        turn.counters.count(Counter::SessionsCreated);
        Ok(session)
    }

    /// Seats the source of a request; `id` is the seat a ticket names, else the lowest free one is taken.
    pub(super) fn add_member(
        &mut self,
        turn: &mut Turn<'_>,
        asked: Asked<'_>,
        session: u32,
        id: Option<SeatId>,
    ) -> Result<u32, Reject> {
        let by_ticket = id.is_some();
        let entry = &self.sessions[session];
        let id = match id {
            Some(id) => id,
            None => SeatId {
                seat: entry.free_seat().ok_or(Reject(code::FULL))?,
                generation: turn.rng.random::<u32>() >> 8,
            },
        };
        let handle = SeatHandle {
            code: entry.code,
            id,
        };
        let shown_to_others = entry.forming.is_none();
        // Whoever lost this very seat a moment ago and is back need not be told any more that it was removed.
        if let Some(&index) = self.departing.get(&handle) {
            self.forget_departed(index);
        }
        let uid = self.uid();
        let mut member = Member {
            uid,
            session,
            handle,
            token: turn.sealer.token(handle),
            source: asked.origin.addr,
            socket: asked.origin.socket,
            home: asked.origin.home,
            stream: asked.origin.stream,
            is_unplugged: false,
            seated_by: transaction_digest(asked.message),
            last_request: 0,
            last_outcome: 0,
            relay_only: false,
            departing: false,
            departure: None,
            last_heard: turn.now,
            changes_made_good_at: Millis(0),
            timer_at: Millis(u64::MAX),
            data: Box::default(),
            locals: Box::default(),
            nat: None,
            reachable_port: None,
            relayed: None,
            stream_wishes: Vec::new(),
            roster: Vec::new(),
            cursor: 0,
            introductions: Vec::new(),
            next_sequence: 1,
            in_flight: None::<Box<InFlight>>,
        };
        take_member_part(&mut member, asked.fields);
        let index = self.members.insert(member).ok_or(Reject(code::CAPACITY))?;
        let entry = &mut self.sessions[session];
        let behind = id.seat.saturating_add(1);
        entry.next_seat = if by_ticket {
            entry.next_seat.max(behind)
        } else {
            behind
        };
        entry.set_occupant(id.seat, Some(index));
        turn.counters.count(Counter::SeatsTaken);
        self.begin_pulse(turn);
        if shown_to_others {
            self.log(session, EventKind::MemberJoined, 0, id);
            self.members[index].roster = self.others(session, index);
        }
        self.members[index].cursor = self.sessions[session].log_end();
        self.trim_log(session);
        self.set_member_timer(turn, index);
        turn.out.mail.push((
            asked.origin.home,
            Mail::AddFlow {
                socket: asked.origin.socket,
                source: asked.origin.addr,
                stream: asked.origin.stream,
                handle,
            },
        ));
        if shown_to_others {
            self.announce_routes(turn, index);
        }
        Ok(index)
    }

    /// Tells every shard with members of the session where this member's seat leads, and its own shard all other seats.
    pub(super) fn announce_routes(&self, turn: &mut Turn<'_>, index: u32) {
        let member = &self.members[index];
        for home in self.homes(member.session) {
            let route = set_route(member, member.route());
            turn.out.mail.push((home, route));
        }
        for other in self.sessions[member.session].occupants() {
            let other = &self.members[other];
            if other.uid != member.uid {
                let route = set_route(other, other.route());
                turn.out.mail.push((member.home, route));
            }
        }
    }

    /// The shards that relay for members of a session, each once.
    pub(super) fn homes(&self, session: u32) -> impl Iterator<Item = u16> + use<> {
        let homes = self.sessions[session]
            .occupants()
            .fold(0u128, |homes, member| {
                homes | 1 << self.members[member].home
            });
        (0..self.shard_count).filter(move |home| homes & 1 << home != 0)
    }

    /// The session's other members.
    pub(super) fn others(&self, session: u32, member: u32) -> Vec<SeatId> {
        self.sessions[session]
            .occupants()
            .filter(|&other| other != member)
            .map(|other| self.members[other].handle.id)
            .collect()
    }

    /// After the answer: the newcomer hears of the others, the others of it.
    pub(super) fn welcome(&mut self, turn: &mut Turn<'_>, member: u32) {
        let session = self.members[member].session;
        if self.sessions[session].flags & session_flags::AUTO_INTRODUCE != 0 {
            self.introduce_to_all(turn, member);
        }
        self.pump_all(turn, session);
    }

    /// Answers a seating that made its session on the way, or removes a session that it left empty.
    pub(super) fn answer_or_undo(
        &mut self,
        turn: &mut Turn<'_>,
        asked: Asked<'_>,
        session: u32,
        seated: Result<u32, Reject>,
        session_part: bool,
    ) -> Outcome {
        match seated {
            Ok(member) => {
                self.answer_seat(turn, asked, member, session_part);
                Ok(())
            }
            Err(reject) => {
                let entry = &self.sessions[session];
                if entry.member_count() == 0 && entry.reserved.is_empty() {
                    self.drop_session(session);
                }
                Err(reject)
            }
        }
    }

    /// The success answer to whatever seated this member.
    pub(super) fn answer_seat(
        &self,
        turn: &mut Turn<'_>,
        asked: Asked<'_>,
        member: u32,
        session_part: bool,
    ) {
        let member = &self.members[member];
        let session = &self.sessions[member.session];
        let start = turn.out.bytes.len();
        let mut ticket = Vec::with_capacity(crate::ticket::TICKET_MAX);
        turn.sealer
            .seal(&self.ticket_of(turn, session, member.handle), &mut ticket);
        let mut code_text = [0; 16];
        let code_text = text_of(&mut code_text, session.code);
        let limits = self.config.limits;
        let mut limit_bytes = [0; 8];
        limit_bytes[..4].copy_from_slice(&limits.packets_per_sec.to_be_bytes());
        limit_bytes[4..].copy_from_slice(&limits.bytes_per_sec.to_be_bytes());
        let remaining_secs =
            u32::try_from(session.expires_at.since(turn.now) / 1000).unwrap_or(u32::MAX);
        let mut writer = MessageWriter::answer(&mut turn.out.bytes, asked.message, Class::Success);
        writer
            .attribute(attr::SEAT_HANDLE, &member.handle.to_bytes())
            .attribute(attr::JOIN_CODE, code_text)
            .attribute(attr::TOKEN, &member.token)
            .attribute(attr::TICKET, &ticket)
            .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, asked.origin.addr.addr())
            .u32(attr::KEEPALIVE_SECS, self.config.keepalive_secs)
            .u32(attr::SEAT_HOLD_SECS, self.config.seat_hold_secs)
            .u32(attr::SESSION_LIFETIME_SECS, remaining_secs)
            .attribute(attr::LIMITS, &limit_bytes)
            .u64(attr::SERVER_TIME, turn.wall.unix_ms(turn.now))
            .u32(attr::PROBE_PORT, u32::from(self.config.probe_port))
            .u32(attr::MAX_MEMBERS, u32::from(session.max_members))
            .u32(attr::SESSION_FLAGS, told_flags(session));
        if member.handle.id.seat == session.host {
            writer.u32(attr::MEMBER_FLAGS, member_flags::HOST);
        }
        if session_part {
            writer.attribute(attr::METADATA, &session.metadata);
            if let Some(name) = &session.name {
                writer.attribute(attr::SESSION_NAME, name.as_bytes());
            }
        }
        writer.finish();
        turn.out
            .transmit(asked.origin.socket, asked.origin.addr.addr(), start);
    }

    /// The ticket of one seat.
    pub(super) fn ticket_of(
        &self,
        turn: &Turn<'_>,
        session: &Session,
        handle: SeatHandle,
    ) -> Ticket {
        let remaining_secs = session.expires_at.since(turn.now) / 1000;
        let expires = turn.wall.unix_secs(turn.now) + remaining_secs;
        Ticket {
            handle,
            is_host: handle.id.seat == session.host,
            max_members: session.max_members,
            session_flags: session.flags,
            password_key: session.password_key,
            expires_unix_secs: u32::try_from(expires).unwrap_or(u32::MAX),
            application: session.application.to_string(),
        }
    }
}

/// SESSION-FLAGS as clients are told them.
pub(super) fn told_flags(session: &Session) -> u32 {
    let mut flags = session.flags;
    if session.has_password {
        flags |= session_flags::HAS_PASSWORD;
    }
    if session.forming.is_some() {
        flags |= session_flags::FORMING;
    }
    flags
}

/// A member's own attributes of a request.
pub(super) fn take_member_part(member: &mut Member, fields: &Fields<'_>) {
    if let Some(data) = fields.member_data {
        member.data = data.into();
    }
    if let Some(flags) = fields.member_flags {
        member.relay_only = flags & member_flags::RELAY_ONLY != 0;
    }
    if fields.locals.iter().any(Option::is_some) {
        let mapped = member.source.addr();
        let told = fields.locals.iter().flatten().copied();
        member.locals = told.filter(|local| local.may_be_local_to(mapped)).collect();
    }
    if fields.nat_mapping.is_some() {
        member.nat = fields.nat_mapping;
    }
    if let Some(port) = fields.reachable_port {
        member.reachable_port = may_be_reachable(port);
    }
}

/// A claimed port of the member's own public address: believed for ports that no service of somebody behind the same address
/// is likely to have.
pub(super) fn may_be_reachable(port: u16) -> Option<u16> {
    (port >= 1024).then_some(port)
}

pub(super) fn set_route(member: &Member, route: Option<crate::forwarding::Route>) -> Mail {
    Mail::SetRoute {
        code: member.handle.code,
        seat: member.handle.id.seat,
        route,
    }
}

/// A join code's text without a heap string.
pub(super) fn text_of(buffer: &mut [u8; 16], code: JoinCode) -> &[u8] {
    use std::io::Write;
    let mut rest = &mut buffer[..];
    write!(rest, "{code}").expect("a code is eleven bytes");
    let len = 16 - rest.len();
    &buffer[..len]
}
