//! What happened, as numbers. Only translates.

use std::ffi::c_int;

use waypost_client::{LeaveReason, MessageEvent, Path, SessionEvent};

use crate::status::member_number;

/// Somebody is in the session: `member`.
pub const WAYPOST_MEMBER_JOINED: c_int = 1;
/// Somebody is not any more: `member`; `detail` is why, `WAYPOST_LEFT` and its like.
pub const WAYPOST_MEMBER_GONE: c_int = 2;
/// `member` is the host now; possibly this player.
pub const WAYPOST_HOST_CHANGED: c_int = 3;
/// Metadata, member limit or flags of the session have changed.
pub const WAYPOST_SESSION_CHANGED: c_int = 4;
/// The data of `member` have changed.
pub const WAYPOST_MEMBER_CHANGED: c_int = 5;
/// The match has all its players.
pub const WAYPOST_FORMED: c_int = 6;
/// Data to `member` take another path from now on: `detail`, `WAYPOST_PATH_DIRECT` and its like.
pub const WAYPOST_PATH_CHANGED: c_int = 7;
/// How the NAT maps has been found out.
pub const WAYPOST_NAT_MAPPED: c_int = 8;
/// The own address as the server sees it has changed, and the seat moved along.
pub const WAYPOST_ADDRESS_CHANGED: c_int = 9;
/// The server does not answer; direct paths go on.
pub const WAYPOST_SERVER_SILENT: c_int = 10;
/// It answers again.
pub const WAYPOST_SERVER_BACK: c_int = 11;
/// The server had forgotten the seat and gave it back.
pub const WAYPOST_RESUMED: c_int = 12;
/// The session had to be made anew: share the new code.
pub const WAYPOST_CODE_CHANGED: c_int = 13;
/// The server does not know the seat any more. The session is over for this player.
pub const WAYPOST_SEAT_LOST: c_int = 14;
/// The host or the server has taken the seat away; `detail` is why. The session is over for this player.
pub const WAYPOST_REMOVED: c_int = 15;
/// The server has been left, and the session goes on over direct paths.
pub const WAYPOST_WITHOUT_SERVER: c_int = 16;
/// `member` has left the server and is reached directly only, as long as that path holds.
pub const WAYPOST_MEMBER_WITHOUT_SERVER: c_int = 17;
/// `member` and this player have been told when and where to connect a stream.
pub const WAYPOST_STREAM_INTRODUCED: c_int = 18;
/// A message of `member`: its number is `message`, its `length` bytes are in the buffer, `detail` is 1 if it was reliable.
pub const WAYPOST_MESSAGE: c_int = 32;
/// The reliable message `message` has arrived at `member`.
pub const WAYPOST_ACKNOWLEDGED: c_int = 33;
/// The reliable message `message` was not acknowledged by `member` in its lifetime.
pub const WAYPOST_EXPIRED: c_int = 34;
/// Nothing has come from `member` for the dead time.
pub const WAYPOST_PEER_SILENT: c_int = 35;
/// Something has come from a silent `member`.
pub const WAYPOST_PEER_BACK: c_int = 36;
/// The program of `member` has begun anew and knows nothing of what was said before.
pub const WAYPOST_PEER_RESTARTED: c_int = 37;

/// Why: it left.
pub const WAYPOST_LEFT: c_int = 1;
/// Why: the host removed it.
pub const WAYPOST_KICKED: c_int = 2;
/// Why: it was silent for too long.
pub const WAYPOST_LOST: c_int = 3;
/// Why: the session was closed.
pub const WAYPOST_CLOSED: c_int = 4;
/// Why: the session's lifetime is over.
pub const WAYPOST_LIFETIME_OVER: c_int = 5;

/// Through the server.
pub const WAYPOST_PATH_RELAYED: c_int = 0;
/// Through the server, unless the policy forbids it, while a direct path is tried.
pub const WAYPOST_PATH_PUNCHING: c_int = 1;
/// Straight to the member.
pub const WAYPOST_PATH_DIRECT: c_int = 2;
/// None.
pub const WAYPOST_PATH_NONE: c_int = 3;

/// Something that happened.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct WaypostEvent {
    /// `WAYPOST_MEMBER_JOINED` and its like.
    pub kind: c_int,
    /// As the kind says.
    pub detail: c_int,
    /// The member that it is about, 0 if none.
    pub member: u32,
    /// The message that it is about, 0 if none.
    pub message: u32,
    /// Bytes of the message's content, 0 without one.
    pub length: usize,
}

const fn reason_number(reason: LeaveReason) -> c_int {
    match reason {
        LeaveReason::Left => WAYPOST_LEFT,
        LeaveReason::Kicked => WAYPOST_KICKED,
        LeaveReason::TimedOut => WAYPOST_LOST,
        LeaveReason::Closed => WAYPOST_CLOSED,
        LeaveReason::Expired => WAYPOST_LIFETIME_OVER,
    }
}

pub(crate) const fn path_number(path: Path) -> c_int {
    match path {
        Path::Relayed => WAYPOST_PATH_RELAYED,
        Path::Punching => WAYPOST_PATH_PUNCHING,
        Path::Direct => WAYPOST_PATH_DIRECT,
        Path::Unreachable => WAYPOST_PATH_NONE,
    }
}

pub(crate) fn of_session(event: SessionEvent) -> WaypostEvent {
    use SessionEvent as E;
    let (kind, member, detail) = match event {
        E::MemberJoined(id) => (WAYPOST_MEMBER_JOINED, Some(id), 0),
        E::MemberLeft(id, reason) => (WAYPOST_MEMBER_GONE, Some(id), reason_number(reason)),
        E::HostChanged(id) => (WAYPOST_HOST_CHANGED, Some(id), 0),
        E::SessionChanged => (WAYPOST_SESSION_CHANGED, None, 0),
        E::MemberChanged(id) => (WAYPOST_MEMBER_CHANGED, Some(id), 0),
        E::Formed => (WAYPOST_FORMED, None, 0),
        E::PathChanged(id, path) => (WAYPOST_PATH_CHANGED, Some(id), path_number(path)),
        E::StreamIntroduced(id) => (WAYPOST_STREAM_INTRODUCED, Some(id), 0),
        E::NatMapped(_) => (WAYPOST_NAT_MAPPED, None, 0),
        E::AddressChanged(_) => (WAYPOST_ADDRESS_CHANGED, None, 0),
        E::ServerSilent => (WAYPOST_SERVER_SILENT, None, 0),
        E::ServerBack => (WAYPOST_SERVER_BACK, None, 0),
        E::Resumed => (WAYPOST_RESUMED, None, 0),
        E::CodeChanged { .. } => (WAYPOST_CODE_CHANGED, None, 0),
        E::SeatLost => (WAYPOST_SEAT_LOST, None, 0),
        E::WithoutServer => (WAYPOST_WITHOUT_SERVER, None, 0),
        E::MemberWithoutServer(id) => (WAYPOST_MEMBER_WITHOUT_SERVER, Some(id), 0),
        E::Removed(reason) => (WAYPOST_REMOVED, None, reason_number(reason)),
    };
    WaypostEvent {
        kind,
        detail,
        member: member.map_or(0, member_number),
        ..WaypostEvent::default()
    }
}

pub(crate) fn of_message(event: &MessageEvent) -> WaypostEvent {
    use MessageEvent as E;
    let (kind, id, message) = match event {
        E::Received(message) => (WAYPOST_MESSAGE, message.from, message.number),
        E::Acknowledged(id, message) => (WAYPOST_ACKNOWLEDGED, *id, message.0),
        E::Expired(id, message) => (WAYPOST_EXPIRED, *id, message.0),
        E::PeerSilent(id) => (WAYPOST_PEER_SILENT, *id, 0),
        E::PeerBack(id) => (WAYPOST_PEER_BACK, *id, 0),
        E::PeerRestarted(id) => (WAYPOST_PEER_RESTARTED, *id, 0),
    };
    let (detail, length) = match event {
        E::Received(message) => (c_int::from(message.reliable), message.data.len()),
        _ => (0, 0),
    };
    WaypostEvent {
        kind,
        detail,
        member: member_number(id),
        message,
        length,
    }
}
