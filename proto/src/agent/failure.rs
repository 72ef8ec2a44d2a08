//! What can go wrong, in sentences that say what to do. Never formats anything that came from the network but a number.

use std::error::Error;
use std::fmt;

use crate::wire::native::{LeaveReason, code};

/// The server's error answer.
///
/// ```
/// use waypost_proto::agent::Rejected;
///
/// let text = Rejected { code: 471 }.to_string();
/// assert!(text.contains("full") && text.ends_with("(error 471)"), "{text}");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rejected {
    /// The STUN error code: [`code`] or RFC 8489's.
    pub code: u16,
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.code {
            code::BAD_REQUEST => {
                "the server found the request malformed; check that client and server are of the same version"
            }
            code::UNAUTHENTICATED => {
                "the server wants an operator's credential, or the one given is wrong or expired; get a fresh one"
            }
            code::UNKNOWN_ATTRIBUTE => {
                "the server does not know a part of the request; it is older than this client, update it"
            }
            code::MISMATCH => {
                "this socket is used for TURN already; open another socket for the session"
            }
            code::STALE_NONCE => {
                "the server refused every nonce it gave; the network changes this socket's address all the time, try another network"
            }
            code::NO_SESSION => {
                "there is no such session, or the password is wrong; check both with the host"
            }
            code::FULL => "the session is full; wait for a free seat or choose another session",
            code::LOCKED => "the host has locked the session; ask the host to open it",
            code::NAME_TAKEN => {
                "another session has this name; choose another name, or host without one and share the code"
            }
            code::NOT_HOST => "only the session's host may do this; ask the host",
            code::KICKED => {
                "the host has removed this player from the session for good; choose another session"
            }
            code::SEAT_GONE => {
                "the seat is gone, its time ran out or the server forgot it; join again"
            }
            code::NO_MEMBER => {
                "that member is not in the session any more; look at the member list"
            }
            code::TOO_MANY_ATTEMPTS => {
                "too many wrong codes or passwords from here or at this session; wait a minute and try again"
            }
            code::SEATED => {
                "this socket has a seat already; leave first, or use another session object"
            }
            code::CAPACITY => {
                "the server is full or about to stop; try again later or use another server"
            }
            other => {
                return write!(
                    f,
                    "the server refused with error {other}; its documentation or log says why"
                );
            }
        };
        write!(f, "{text} (error {})", self.code)
    }
}

impl Error for Rejected {}

/// Why an operation that was begun did not succeed.
///
/// ```
/// use waypost_proto::agent::{Failure, Rejected};
///
/// let failure = Failure::Rejected(Rejected { code: 470 });
/// assert_ne!(failure, Failure::Silent);
/// assert!(Failure::Silent.to_string().contains("check its address and port"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The server answered with an error.
    Rejected(Rejected),
    /// The server did not answer at all.
    Silent,
    /// The seat is gone, so requests from it are void.
    Unseated,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Silent => f.write_str(
                "the server does not answer; check its address and port, and that UDP gets through to it",
            ),
            Self::Unseated => f.write_str("there is no seat any more; host or join again"),
        }
    }
}

impl Error for Failure {}

/// Why an operation was not even begun.
///
/// ```
/// use waypost_proto::agent::Refused;
///
/// let refused = Refused::Length("the match key", 64);
/// assert_eq!(refused.to_string(), "the match key must have 1 to 64 bytes; shorten it or leave it out");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refused {
    /// It needs a seat, and there is none.
    NotSeated,
    /// There is a seat already, or one is being asked for.
    AlreadySeated,
    /// Too many requests wait for an answer.
    Busy,
    /// Nobody with this id is in the session.
    NoMember,
    /// A text or a blob is too long (or empty where it must not be): what it is, and the most bytes it may have.
    Length(&'static str, usize),
    /// A session has 2 to 255 members.
    Members,
    /// There is a direct path to nobody, so the server cannot be done without.
    NoDirectPath,
    /// This player's addresses are told to nobody.
    Hidden,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSeated => f.write_str("this needs a seat; host or join first"),
            Self::AlreadySeated => f.write_str("there is a seat already; leave it first"),
            Self::Busy => {
                f.write_str("too many requests wait for the server; wait for their answers")
            }
            Self::NoMember => Rejected {
                code: code::NO_MEMBER,
            }
            .fmt(f),
            Self::Length(what, max) => {
                write!(
                    f,
                    "{what} must have 1 to {max} bytes; shorten it or leave it out"
                )
            }
            Self::NoDirectPath => f.write_str(
                "there is a direct path to nobody; wait for one, or stay with the server",
            ),
            Self::Hidden => f.write_str(
                "this player goes through the relay only; choose another path policy to connect directly",
            ),
            Self::Members => f.write_str("a session has 2 to 255 members; choose such a number"),
        }
    }
}

impl Error for Refused {}

/// Why data cannot be sent to a member now.
///
/// ```
/// use waypost_proto::agent::NoPath;
///
/// assert!(NoPath::NotDirect.to_string().contains("allow the relay"));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoPath {
    /// Nobody with this id is in the session.
    NoMember,
    /// The policy forbids the relay and there is no direct path (yet).
    NotDirect,
    /// The datagram is longer than [`super::DATAGRAM_MAX`].
    TooLong,
}

impl fmt::Display for NoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoMember => Refused::NoMember.fmt(f),
            Self::NotDirect => f.write_str(
                "there is no direct path to this member and the policy forbids the relay; wait for one, or allow the relay",
            ),
            Self::TooLong => write!(
                f,
                "a datagram carries at most {} bytes; split the message",
                super::DATAGRAM_MAX
            ),
        }
    }
}

impl Error for NoPath {}

/// Says why a member is gone.
#[must_use]
pub const fn describe(reason: LeaveReason) -> &'static str {
    match reason {
        LeaveReason::Left => "left",
        LeaveReason::Kicked => "was removed by the host",
        LeaveReason::TimedOut => "was silent for too long",
        LeaveReason::Closed => "the session was closed",
        LeaveReason::Expired => "the session's lifetime is over",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_says_what_to_do() {
        for code in (400..=600).filter(|&c| {
            c == 400
                || c == 401
                || c == 420
                || c == 437
                || c == 438
                || (470..=479).contains(&c)
                || c == 508
        }) {
            let text = Rejected { code }.to_string();
            assert!(
                text.contains(';') && text.ends_with(&format!("(error {code})")),
                "{text}"
            );
        }
        assert!(Rejected { code: 499 }.to_string().contains("499"));
    }
}
