//! Coming back to a seat by ticket: RESUME, after a restart of the client, of the server, or for the first time with a ticket
//! of the matchmaker's door.

use super::seating::{NewSession, name_key, take_member_part};
use super::{Asked, Lobby, Outcome, Reject, Turn, transaction_digest};
use crate::stats::Counter;
use crate::ticket::Ticket;
use crate::wire::native::{EventKind, Fields, code, password_key};

impl Lobby {
    pub(super) fn handle_resume(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>) -> Outcome {
        let sealed = asked.fields.ticket.ok_or(Reject(code::BAD_REQUEST))?;
        let unix_secs = turn.wall.unix_secs(turn.now);
        let Some(ticket) = turn.sealer.open(sealed, unix_secs) else {
            turn.counters.count(Counter::SeatFailures);
            return Err(Reject(code::SEAT_GONE));
        };
        let id = ticket.handle.id;
        let session = match self.by_code.get(&ticket.handle.code) {
            Some(&session) => session,
            None => self.restore_session(turn, &ticket, asked.fields)?,
        };
        let entry = &self.sessions[session];
        let same_game = *entry.application == *ticket.application;
        match entry.occupant(id.seat) {
            Some(member) if same_game && self.members[member].handle.id == id => {
                let returned = self.return_to_seat(turn, asked, member);
                self.answer_seat(turn, asked, member, true);
                if returned {
                    self.welcome(turn, member);
                }
                return Ok(());
            }
            None if same_game && (entry.reserved.contains(&id) || entry.restored) => {}
            _ => {
                turn.counters.count(Counter::SeatFailures);
                return Err(Reject(code::SEAT_GONE));
            }
        }
        let prefix = asked.origin.addr.addr().source_prefix();
        if entry.banned.contains(&prefix) {
            return Err(Reject(code::KICKED));
        }
        let seated = self.add_member(turn, asked, session, Some(id));
        if seated.is_ok() && ticket.is_host && self.sessions[session].awaits_host {
            self.sessions[session].awaits_host = false;
            self.sessions[session].host = id.seat;
            // Told with the welcome: whoever came does not know its token before the answer.
            self.log(session, EventKind::HostChanged, 0, id);
        }
        self.answer_or_undo(turn, asked, session, seated, true)?;
        let member = self.sessions[session]
            .occupant(id.seat)
            .expect("the seat was just taken");
        self.welcome(turn, member);
        Ok(())
    }

    /// Brings back the session of a ticket that was sealed before this process, or by the matchmaker's door of another.
    fn restore_session(
        &mut self,
        turn: &mut Turn<'_>,
        ticket: &Ticket,
        fields: &Fields<'_>,
    ) -> Result<u32, Reject> {
        let no_password = password_key(&ticket.application, "");
        let name = fields.name.filter(|name| {
            ticket.is_host
                && !self
                    .by_name
                    .contains_key(&name_key(&ticket.application, name))
        });
        let session = self.create_session(
            turn,
            &NewSession {
                application: &ticket.application,
                name,
                password_key: Some(ticket.password_key).filter(|key| *key != no_password),
                metadata: fields
                    .metadata
                    .filter(|_| ticket.is_host)
                    .unwrap_or_default(),
                max_members: ticket.max_members,
                flags: ticket.session_flags,
                forming: None,
                code: Some(ticket.handle.code),
            },
        )?;
        let entry = &mut self.sessions[session];
        entry.restored = true;
        // Newcomers are kept off the lower seats, whose members are likely to be on their way back.
        entry.next_seat = ticket.max_members - ticket.max_members / 4;
        entry.awaits_host = true;
        entry.host = ticket.handle.id.seat;
        turn.counters.count(Counter::SessionsRestored);
        Ok(session)
    }

    /// A member shows its ticket while its seat is still held: a restarted client, or one on another network.
    /// False if this is a repetition of the request by which it came.
    fn return_to_seat(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>, member: u32) -> bool {
        let digest = transaction_digest(asked.message);
        self.rebind(turn, asked.origin, member);
        self.members[member].last_heard = turn.now;
        if self.members[member].seated_by == digest {
            return false;
        }
        let session = self.members[member].session;
        let roster = self.others(session, member);
        let log_end = self.sessions[session].log_end();
        let entry = &mut self.members[member];
        entry.seated_by = digest;
        take_member_part(entry, asked.fields);
        entry.roster = roster;
        entry.cursor = log_end;
        entry.next_sequence = 1;
        entry.in_flight = None;
        self.trim_log(session);
        true
    }
}
