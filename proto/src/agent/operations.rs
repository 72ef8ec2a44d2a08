//! What the owner can ask the server for: a seat, and what can be done from it. Each call checks what it was given and begins a
//! request, which ends with an event. Never waits.

use super::event::{Event, RequestId};
use super::failure::Refused;
use super::request::{self, HostConfig, Introduce, ListFilter, Op, SessionUpdate, Target, length};
use super::{Agent, Probing, REQUESTS_MAX};
use crate::time::Millis;
use crate::wire::native::{self, SeatId, session_flags};

impl Agent {
    /// Makes a session and takes its first seat.
    ///
    /// # Errors
    /// [`Refused`] if there is a seat already, or a field breaks its limit.
    pub fn host(&mut self, now: Millis, host: HostConfig) -> Result<RequestId, Refused> {
        host.check()?;
        self.ask_for_seat(now, Op::Host(Box::new(host)))
    }

    /// Takes a seat in a session that exists. `password` is empty if there is none.
    ///
    /// # Errors
    /// As [`Agent::host`].
    pub fn join(
        &mut self,
        now: Millis,
        target: Target,
        password: &str,
    ) -> Result<RequestId, Refused> {
        if let Target::Name(name) = &target {
            length(
                "the session's name",
                name.len(),
                1,
                native::SESSION_NAME_MAX,
            )?;
        }
        let password = password.to_owned();
        self.ask_for_seat(now, Op::Join { target, password })
    }

    /// Waits for others who want a session of `players` with the same key of 1 to 64 bytes. The seat comes at once, the
    /// others with [`super::SessionEvent::Formed`].
    ///
    /// # Errors
    /// As [`Agent::host`].
    pub fn find_match(
        &mut self,
        now: Millis,
        key: &[u8],
        players: u8,
    ) -> Result<RequestId, Refused> {
        length("the match key", key.len(), 1, native::MATCH_KEY_MAX)?;
        request::members(players)?;
        let key = key.to_vec();
        self.ask_for_seat(now, Op::Match { key, players })
    }

    /// Comes back to the seat of a ticket. Name and metadata are what a host wants its session to have if the server has
    /// to make it anew.
    ///
    /// # Errors
    /// As [`Agent::host`].
    pub fn resume(
        &mut self,
        now: Millis,
        ticket: &[u8],
        name: Option<String>,
        metadata: Option<Vec<u8>>,
    ) -> Result<RequestId, Refused> {
        length("the ticket", ticket.len(), 1, native::METADATA_MAX)?;
        length(
            "the metadata",
            metadata.as_ref().map_or(0, Vec::len),
            0,
            native::METADATA_MAX,
        )?;
        let ticket = ticket.to_vec();
        self.ask_for_seat(
            now,
            Op::Resume {
                ticket,
                name,
                metadata,
            },
        )
    }

    /// Asks for a page of the listed sessions. No seat is needed.
    ///
    /// # Errors
    /// As [`Agent::host`].
    pub fn list(
        &mut self,
        now: Millis,
        filter: ListFilter,
        cursor: Option<[u8; 8]>,
    ) -> Result<RequestId, Refused> {
        if let Some(prefix) = &filter.name_prefix {
            length(
                "the name's beginning",
                prefix.len(),
                1,
                native::SESSION_NAME_MAX,
            )?;
        }
        self.ask(now, Op::List { filter, cursor })
    }

    /// Gives up the seat.
    ///
    /// # Errors
    /// [`Refused::NotSeated`], [`Refused::Busy`].
    pub fn leave(&mut self, now: Millis) -> Result<RequestId, Refused> {
        if self.is_without_server() && self.seat.is_some() {
            let request = RequestId(self.next_request);
            self.next_request = self.next_request.wrapping_add(1);
            self.unseat();
            self.tell(Event::Done { request });
            return Ok(request);
        }
        self.ask_seated(now, Op::Leave)
    }

    /// Removes a member for the session's life. Only the host may.
    ///
    /// # Errors
    /// [`Refused::NotSeated`], [`Refused::NoMember`], [`Refused::Busy`].
    pub fn kick(&mut self, now: Millis, member: SeatId) -> Result<RequestId, Refused> {
        self.ask_about(now, member, Op::Kick(member))
    }

    /// Makes another member the host. Only the host may.
    ///
    /// # Errors
    /// As [`Agent::kick`].
    pub fn transfer(&mut self, now: Millis, member: SeatId) -> Result<RequestId, Refused> {
        self.ask_about(now, member, Op::Transfer(member))
    }

    /// Changes the session. Only the host may.
    ///
    /// # Errors
    /// [`Refused`] without a seat, or if a field breaks its limit.
    pub fn update_session(
        &mut self,
        now: Millis,
        update: SessionUpdate,
    ) -> Result<RequestId, Refused> {
        let metadata = update.metadata.as_ref().map_or(0, Vec::len);
        length("the metadata", metadata, 0, native::METADATA_MAX)?;
        if let Some(max_members) = update.max_members {
            request::members(max_members)?;
        }
        self.ask_seated(now, Op::UpdateSession(update))
    }

    /// Changes one of the session's flags, the others staying as they are. Only the host may.
    ///
    /// # Errors
    /// As [`Agent::update_session`].
    pub fn set_session_flag(
        &mut self,
        now: Millis,
        flag: u32,
        on: bool,
    ) -> Result<RequestId, Refused> {
        let old = self.session.flags & session_flags::SETTABLE;
        let flags = if on { old | flag } else { old & !flag };
        self.update_session(
            now,
            SessionUpdate {
                flags: Some(flags),
                ..SessionUpdate::default()
            },
        )
    }

    /// Changes what the other members see of this one.
    ///
    /// # Errors
    /// As [`Agent::update_session`].
    pub fn update_member(&mut self, now: Millis, data: &[u8]) -> Result<RequestId, Refused> {
        length("the member's data", data.len(), 0, native::MEMBER_DATA_MAX)?;
        self.ask_seated(now, Op::UpdateMember(data.to_vec()))
    }

    /// Ends the session for everybody. Only the host may.
    ///
    /// # Errors
    /// As [`Agent::leave`].
    pub fn close(&mut self, now: Millis) -> Result<RequestId, Refused> {
        self.ask_seated(now, Op::Close)
    }

    /// Has members introduced to each other, after which they punch.
    ///
    /// # Errors
    /// As [`Agent::leave`].
    pub fn introduce(&mut self, now: Millis, whom: Introduce) -> Result<RequestId, Refused> {
        self.ask_seated(now, Op::Introduce(whom))
    }

    /// The port of the public address that leads here has become this one. The server is told at once, and tells the members.
    pub fn set_reachable_port(&mut self, now: Millis, port: u16) {
        if self.config.reachable_port == Some(port) {
            return;
        }
        self.config.reachable_port = Some(port);
        if self.keeps_alive() {
            self.keepalive(now);
        }
    }

    fn ask_for_seat(&mut self, now: Millis, op: Op) -> Result<RequestId, Refused> {
        let application = self.config.application.len();
        length(
            "the application id",
            application,
            1,
            native::APPLICATION_ID_MAX,
        )?;
        length(
            "the member's data",
            self.member_data.len(),
            0,
            native::MEMBER_DATA_MAX,
        )?;
        if self.seat.is_some() || self.requests.iter().any(|r| r.op.seats()) {
            return Err(Refused::AlreadySeated);
        }
        if let Probing::First(port) = self.config.probing {
            self.begin_probe(now, port);
        }
        self.ask(now, op)
    }

    fn ask_about(&mut self, now: Millis, member: SeatId, op: Op) -> Result<RequestId, Refused> {
        if self.seat.is_some() && self.roster.get(member).is_none() {
            return Err(Refused::NoMember);
        }
        self.ask_seated(now, op)
    }

    fn ask_seated(&mut self, now: Millis, op: Op) -> Result<RequestId, Refused> {
        if self.seat.is_none() || self.departure.is_some() {
            return Err(Refused::NotSeated);
        }
        self.ask(now, op)
    }

    fn ask(&mut self, now: Millis, op: Op) -> Result<RequestId, Refused> {
        if self.requests.iter().filter(|r| r.id.is_some()).count() >= REQUESTS_MAX {
            return Err(Refused::Busy);
        }
        let id = RequestId(self.next_request);
        self.next_request = self.next_request.wrapping_add(1);
        self.begin(now, Some(id), op);
        Ok(id)
    }
}
