//! What the agent knows of its seat, its session and the other members. Changes only by the server's word.

use super::path::{DirectState, Path};
use super::punch::Punch;
use super::streams::StreamIntroduction;
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{Fields, SeatHandle, SeatId, member_flags};

/// The own seat, as the server described it.
#[derive(Clone, Debug)]
pub struct Seat {
    /// Names the seat in requests.
    pub handle: SeatHandle,
    /// Restores the seat after a restart of the client or the server. Keep it as secret as a password.
    pub ticket: Vec<u8>,
    /// The own address as the server sees it.
    pub mapped: Option<Addr>,
    /// Seconds between keepalives.
    pub keepalive_secs: u32,
    /// Seconds of silence after which the seat is given up.
    pub hold_secs: u32,
    /// Seconds the session lasts, counted from when it was told; 0 if the server did not say.
    pub lifetime_secs: u32,
    /// Datagrams and bytes per second that may be relayed; 0 if the server did not say.
    pub limits: (u32, u32),
    /// The second vantage port.
    pub probe_port: Option<u16>,
    pub(super) token: [u8; 16],
    /// Number of the last event batch that was handled.
    pub(super) last_event: u32,
    /// The server's time, at the earliest, when the numbers of event batches began, Unix milliseconds: batches of before are
    /// of other numbers.
    pub(super) events_since_ms: u64,
}

/// Bounds of what a server may order, seconds between keepalives.
const KEEPALIVE_SECS_MIN: u32 = 1;
const KEEPALIVE_SECS_MAX: u32 = 3_600;
const KEEPALIVE_SECS_DEFAULT: u32 = 15;

impl Seat {
    /// Reads the seat part of an answer. `None` if it lacks what a seat cannot do without.
    pub(super) fn read(fields: &Fields<'_>, ticket_shown: Option<&[u8]>) -> Option<Self> {
        let ticket = fields.ticket.or(ticket_shown).unwrap_or_default();
        Some(Self {
            handle: fields.handle?,
            token: fields.token?,
            ticket: ticket.to_vec(),
            mapped: fields.mapped,
            keepalive_secs: fields
                .keepalive_secs
                .unwrap_or(KEEPALIVE_SECS_DEFAULT)
                .clamp(KEEPALIVE_SECS_MIN, KEEPALIVE_SECS_MAX),
            hold_secs: fields.seat_hold_secs.unwrap_or(0),
            lifetime_secs: fields.session_lifetime_secs.unwrap_or(0),
            limits: fields.limits.unwrap_or((0, 0)),
            probe_port: fields.probe_port.filter(|port| *port != 0),
            last_event: 0,
            events_since_ms: 0,
        })
    }

    /// The session's join code.
    #[must_use]
    pub const fn code(&self) -> JoinCode {
        self.handle.code
    }

    /// The own id.
    #[must_use]
    pub const fn id(&self) -> SeatId {
        self.handle.id
    }
}

/// The session as the server last described it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionInfo {
    /// Its unique name, where known.
    pub name: Option<String>,
    /// What the host wants known.
    pub metadata: Vec<u8>,
    /// Seats.
    pub max_members: u8,
    /// [`crate::wire::native::session_flags`].
    pub flags: u32,
    /// The host, once known.
    pub host: Option<SeatId>,
}

impl SessionInfo {
    /// Takes over what an answer or an event says.
    pub(super) fn update(&mut self, fields: &Fields<'_>) {
        if let Some(name) = fields.name {
            self.name = Some(name.to_owned());
        }
        if let Some(metadata) = fields.metadata {
            self.metadata = metadata.to_vec();
        }
        if let Some(max_members) = fields.max_members {
            self.max_members = max_members;
        }
        if let Some(flags) = fields.session_flags {
            self.flags = flags;
        }
    }
}

/// Another member.
#[derive(Clone, Debug)]
pub struct Member {
    /// Who.
    pub id: SeatId,
    /// Up to 64 bytes of its own.
    pub data: Vec<u8>,
    /// [`member_flags`] as of when it joined.
    pub flags: u32,
    pub(super) punch: Option<Box<Punch>>,
    pub(super) stream: Option<Box<StreamIntroduction>>,
    /// The path last told to the owner.
    pub(super) told: Path,
    /// When the agent last asked to be introduced again.
    pub(super) reintroduced: Option<Millis>,
    /// Known from before a resumption and not named by the server since: gone at this time.
    pub(super) unconfirmed_until: Option<Millis>,
    /// It has said that it leaves the server and goes on directly.
    pub(super) leaves_server: bool,
    /// It has left the server.
    pub(super) without_server: bool,
}

impl Member {
    pub(super) fn new(id: SeatId) -> Self {
        Self {
            id,
            data: Vec::new(),
            flags: 0,
            punch: None,
            stream: None,
            told: Path::default(),
            reintroduced: None,
            unconfirmed_until: None,
            leaves_server: false,
            without_server: false,
        }
    }

    /// Whether it is reached through the relay only, by its own wish.
    #[must_use]
    pub const fn is_relay_only(&self) -> bool {
        self.flags & member_flags::RELAY_ONLY != 0
    }

    pub(super) fn direct_state(&self) -> DirectState {
        self.punch
            .as_ref()
            .map_or(DirectState::None, |punch| punch.state())
    }
}

/// The other members, by seat. At most one for each of the 255 seats, so a server cannot make it grow.
#[derive(Clone, Debug, Default)]
pub(super) struct Roster {
    by_seat: Vec<Option<Box<Member>>>,
}

impl Roster {
    pub(super) fn in_seat(&mut self, seat: u8) -> Option<&mut Member> {
        self.by_seat.get_mut(usize::from(seat))?.as_deref_mut()
    }

    pub(super) fn get(&self, id: SeatId) -> Option<&Member> {
        let member = self.by_seat.get(usize::from(id.seat))?.as_deref()?;
        (member.id == id).then_some(member)
    }

    pub(super) fn get_mut(&mut self, id: SeatId) -> Option<&mut Member> {
        self.in_seat(id.seat).filter(|member| member.id == id)
    }

    /// Puts a member into its seat. Returns who was there.
    pub(super) fn insert(&mut self, member: Member) -> Option<Box<Member>> {
        let seat = usize::from(member.id.seat);
        if self.by_seat.len() <= seat {
            self.by_seat.resize_with(seat + 1, || None);
        }
        self.by_seat[seat].replace(Box::new(member))
    }

    pub(super) fn remove(&mut self, id: SeatId) -> Option<Box<Member>> {
        self.get(id)?;
        self.by_seat[usize::from(id.seat)].take()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.by_seat.iter().filter_map(Option::as_deref)
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.by_seat.iter_mut().filter_map(Option::as_deref_mut)
    }

    pub(super) fn clear(&mut self) {
        self.by_seat.clear();
    }
}
