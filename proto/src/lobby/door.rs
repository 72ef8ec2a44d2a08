//! The matchmaker's door: what the operator's side may ask of a shard. The requests come from the control thread, which has
//! checked who asks.

use rand::RngExt;

use super::seating::NewSession;
use super::session::Session;
use super::{Lobby, Turn};
use crate::wire::join_code::JoinCode;
use crate::wire::native::{LeaveReason, SeatHandle, SeatId, code, password_key};

/// A request.
#[derive(Clone, Debug)]
pub enum DoorRequest {
    /// Make a session and issue tickets for its seats.
    CreateSession {
        /// The application, 1 to 32 bytes.
        application: String,
        /// A unique name, 1 to 64 bytes; the shard that its hash names must be asked.
        name: Option<String>,
        /// A password for those who join without a ticket.
        password: Option<String>,
        /// 0 to 512 bytes.
        metadata: Vec<u8>,
        /// 2 to 255.
        max_members: u8,
        /// The settable SESSION-FLAGS.
        flags: u32,
        /// Tickets wanted, at most `max_members`.
        tickets: u8,
    },
    /// Describe sessions of this shard, in an order that does not change.
    List {
        /// Only this application.
        application: Option<String>,
        /// Only the session of this name.
        name: Option<String>,
        /// The slot to begin with.
        from_slot: u32,
        /// Most sessions to describe.
        limit: usize,
    },
    /// Close a session; ask the shard that owns its code.
    Close {
        /// The session.
        code: JoinCode,
    },
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DoorAnswer {
    /// A session was made.
    Created {
        /// Its code.
        code: JoinCode,
        /// Sealed tickets, for seat 0 and up. The first one's bearer is the host.
        tickets: Vec<Vec<u8>>,
        /// When session and tickets end: Unix seconds.
        expires_unix_secs: u64,
    },
    /// Sessions of this shard.
    Sessions {
        /// What was asked for.
        sessions: Vec<SessionSummary>,
        /// Where the next page begins; none on the last.
        next_slot: Option<u32>,
    },
    /// The session was closed.
    Closed,
    /// Refused, with the protocol's error code for the reason.
    Refused(u16),
}

/// One session for an operator's eyes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSummary {
    /// Its code.
    pub code: JoinCode,
    /// Its application.
    pub application: String,
    /// Its name.
    pub name: Option<String>,
    /// Members now.
    pub members: usize,
    /// Seats.
    pub max_members: u8,
    /// SESSION-FLAGS as clients are told them.
    pub flags: u32,
    /// When it ends at the latest: Unix seconds.
    pub expires_unix_secs: u64,
}

impl Lobby {
    /// Serves the control thread.
    pub(crate) fn handle_door(&mut self, turn: &mut Turn<'_>, request: DoorRequest) -> DoorAnswer {
        match request {
            DoorRequest::CreateSession {
                application,
                name,
                password,
                metadata,
                max_members,
                flags,
                tickets,
            } => {
                if let Some(name) = &name
                    && self
                        .by_name
                        .contains_key(&super::seating::name_key(&application, name))
                {
                    return DoorAnswer::Refused(code::NAME_TAKEN);
                }
                let created = self.create_session(
                    turn,
                    &NewSession {
                        application: &application,
                        name: name.as_deref(),
                        password_key: password.map(|text| password_key(&application, &text)),
                        metadata: &metadata,
                        max_members,
                        flags,
                        forming: None,
                        code: None,
                    },
                );
                match created {
                    Ok(session) => self.reserve_seats(turn, session, tickets.min(max_members)),
                    Err(reject) => DoorAnswer::Refused(reject.0),
                }
            }
            DoorRequest::List {
                application,
                name,
                from_slot,
                limit,
            } => {
                let wanted = |session: &Session| {
                    application
                        .as_deref()
                        .is_none_or(|wanted| *wanted == *session.application)
                        && (name.is_none() || name.as_deref() == session.name.as_deref())
                };
                self.summaries(turn, from_slot, limit, wanted)
            }
            DoorRequest::Close { code: target } => match self.by_code.get(&target) {
                Some(&session) => {
                    self.close_session(turn, session, LeaveReason::Closed);
                    DoorAnswer::Closed
                }
                None => DoorAnswer::Refused(code::NO_SESSION),
            },
        }
    }

    fn reserve_seats(&mut self, turn: &mut Turn<'_>, session: u32, count: u8) -> DoorAnswer {
        let reserved: Vec<SeatId> = (0..count)
            .map(|seat| SeatId {
                seat,
                generation: turn.rng.random::<u32>() >> 8,
            })
            .collect();
        let entry = &self.sessions[session];
        let tickets = reserved
            .iter()
            .map(|&id| {
                let handle = SeatHandle {
                    code: entry.code,
                    id,
                };
                let mut sealed = Vec::new();
                turn.sealer
                    .seal(&self.ticket_of(turn, entry, handle), &mut sealed);
                sealed
            })
            .collect();
        let answer = DoorAnswer::Created {
            code: entry.code,
            tickets,
            expires_unix_secs: turn.wall.unix_secs(entry.expires_at),
        };
        self.sessions[session].reserved = reserved;
        self.wait_unseated(turn, session);
        answer
    }

    fn summaries(
        &self,
        turn: &Turn<'_>,
        from_slot: u32,
        limit: usize,
        wanted: impl Fn(&Session) -> bool,
    ) -> DoorAnswer {
        let slots = u32::try_from(self.sessions.slots()).unwrap_or(u32::MAX);
        let mut sessions = Vec::new();
        for slot in from_slot..slots {
            let Some(session) = self.sessions.get(slot).filter(|session| wanted(session)) else {
                continue;
            };
            if sessions.len() == limit {
                return DoorAnswer::Sessions {
                    sessions,
                    next_slot: Some(slot),
                };
            }
            sessions.push(SessionSummary {
                code: session.code,
                application: session.application.to_string(),
                name: session.name.as_deref().map(str::to_owned),
                members: session.member_count(),
                max_members: session.max_members,
                flags: super::seating::told_flags(session),
                expires_unix_secs: turn.wall.unix_secs(session.expires_at),
            });
        }
        DoorAnswer::Sessions {
            sessions,
            next_slot: None,
        }
    }
}
