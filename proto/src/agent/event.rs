//! What an agent tells its owner: [`Event`], one at a time by `poll_event`, and [`Delivery`] for data.

use std::ops::Range;

use super::failure::Failure;
use super::path::Path;
use crate::addr::Addr;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{LeaveReason, NatMapping, SeatId, session_flags};

/// Names an operation until its `Done`, `Listed` or `Failed` event.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RequestId(pub u32);

/// A datagram to send.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transmit {
    /// Where to.
    pub to: Addr,
    /// The IP TTL or hop limit to send it with, if not the usual one.
    pub ttl: Option<u8>,
    /// Whether it is to go through the owner's TURN server; never, unless [`super::Config::has_turn`].
    pub through_turn: bool,
    /// The payload.
    pub bytes: Vec<u8>,
}

impl Transmit {
    /// From the owner's socket, as usual.
    pub(super) const fn new(to: Addr, bytes: Vec<u8>) -> Self {
        Self {
            to,
            ttl: None,
            through_turn: false,
            bytes,
        }
    }
}

/// A way for datagrams: the address at the other end, and what they go through at this one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Way {
    pub(super) addr: Addr,
    pub(super) through_turn: bool,
}

impl Way {
    pub(super) const fn of(addr: Addr) -> Self {
        Self {
            addr,
            through_turn: false,
        }
    }

    pub(super) const fn through_turn(addr: Addr) -> Self {
        Self {
            addr,
            through_turn: true,
        }
    }

    pub(super) const fn send(self, bytes: Vec<u8>) -> Transmit {
        Transmit {
            to: self.addr,
            ttl: None,
            through_turn: self.through_turn,
            bytes,
        }
    }
}

/// Where in a datagram handed in the application's data are, and from whom.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Delivery {
    /// The sender.
    pub from: SeatId,
    /// Whether it came straight from the member.
    pub direct: bool,
    /// The data within the bytes given to `handle_datagram`.
    pub range: Range<usize>,
}

/// Something that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The operation succeeded. After hosting, joining, matching or resuming, the agent has a seat.
    Done {
        /// Which.
        request: RequestId,
    },
    /// The operation did not succeed.
    Failed {
        /// Which.
        request: RequestId,
        /// Why.
        failure: Failure,
    },
    /// A page of the listed sessions.
    Listed {
        /// Which.
        request: RequestId,
        /// The sessions; may be none although there is a next page.
        sessions: Vec<ListedSession>,
        /// Where the next page begins, if there is one.
        next: Option<[u8; 8]>,
    },
    /// Something happened in or to the session.
    Session(SessionEvent),
}

impl From<SessionEvent> for Event {
    fn from(event: SessionEvent) -> Self {
        Self::Session(event)
    }
}

/// Something that happened in or to the session of the seat.
///
/// ```
/// use waypost_proto::agent::{Path, SessionEvent, describe};
/// use waypost_proto::wire::native::{LeaveReason, SeatId};
///
/// fn tell(event: SessionEvent) -> String {
///     match event {
///         SessionEvent::MemberJoined(id) => format!("player {} is here", id.seat),
///         SessionEvent::MemberLeft(id, why) => format!("player {} {}", id.seat, describe(why)),
///         SessionEvent::PathChanged(_, Path::Direct) => "connected directly".to_owned(),
///         other => format!("{other:?}"),
///     }
/// }
///
/// let id = SeatId { seat: 3, generation: 0x12_3456 };
/// assert_eq!(tell(SessionEvent::MemberLeft(id, LeaveReason::Left)), "player 3 left");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SessionEvent {
    /// Somebody is in the session.
    MemberJoined(SeatId),
    /// Somebody is not any more.
    MemberLeft(SeatId, LeaveReason),
    /// Somebody is the host now; possibly the receiver.
    HostChanged(SeatId),
    /// Metadata, member limit or flags of the session have changed.
    SessionChanged,
    /// A member's data have changed.
    MemberChanged(SeatId),
    /// The match has all its players.
    Formed,
    /// Data to this member take another path from now on.
    PathChanged(SeatId, Path),
    /// This member wants a stream too, and both are to connect now.
    StreamIntroduced(SeatId),
    /// What the two vantage ports showed.
    NatMapped(NatMapping),
    /// The own address as the server sees it has changed, and the seat moved along.
    AddressChanged(Addr),
    /// The server does not answer; direct paths go on.
    ServerSilent,
    /// It answers again.
    ServerBack,
    /// The server had forgotten the seat and gave it back for the ticket; the code is the same.
    Resumed,
    /// The server had forgotten the session and this host made a new one. Everybody has to join again, by the new code.
    CodeChanged {
        /// The code that is void.
        old: JoinCode,
        /// The code to share.
        new: JoinCode,
    },
    /// The server had forgotten the seat and does not take the ticket any more.
    SeatLost,
    /// The host or the server has taken the seat away.
    Removed(LeaveReason),
    /// The server has been left, and the session goes on over direct paths.
    WithoutServer,
    /// This member has left the server and is reached directly only, as long as that path holds.
    MemberWithoutServer(SeatId),
}

/// A session in a list.
///
/// ```
/// use waypost_proto::agent::ListedSession;
/// use waypost_proto::wire::join_code::JoinCode;
/// use waypost_proto::wire::native::session_flags;
///
/// fn line(session: &ListedSession) -> String {
///     let name = session.name.clone().unwrap_or(session.code.to_string());
///     let key = if session.has_password() { ", with a password" } else { "" };
///     format!("{name}: {} of {}{key}", session.members, session.max_members)
/// }
///
/// let session = ListedSession {
///     code: JoinCode::parse(b"BAD-KIF-ROM").ok_or("no code")?,
///     name: None,
///     max_members: 8,
///     members: 3,
///     flags: session_flags::HAS_PASSWORD,
///     metadata: b"map=3".to_vec(),
/// };
/// assert_eq!(line(&session), "BAD-KIF-ROM: 3 of 8, with a password");
/// # Ok::<(), &str>(())
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedSession {
    /// Its join code.
    pub code: JoinCode,
    /// Its unique name, if it has one.
    pub name: Option<String>,
    /// Its seats.
    pub max_members: u8,
    /// Seats taken.
    pub members: u8,
    /// [`session_flags`].
    pub flags: u32,
    /// What its host wants known.
    pub metadata: Vec<u8>,
}

impl ListedSession {
    /// Whether joining needs a password.
    #[must_use]
    pub const fn has_password(&self) -> bool {
        self.flags & session_flags::HAS_PASSWORD != 0
    }

    /// Whether nobody may join now.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        self.flags & session_flags::LOCKED != 0
    }
}

/// What went on that deserves no event: for statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Counters {
    /// Datagrams that are none of this protocol, or malformed.
    pub malformed: u64,
    /// Messages that failed integrity, or answer nothing that was asked.
    pub unexpected: u64,
    /// Data from an address or on a channel that no member may use.
    pub refused_data: u64,
    /// Event batches left unanswered because the owner does not take its events.
    pub events_deferred: u64,
    /// Data accepted through the relay, datagrams.
    pub relayed_in: u64,
    /// Data accepted from members directly, datagrams.
    pub direct_in: u64,
}
