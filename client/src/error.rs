//! What can go wrong, each with what to do about it.

use std::fmt;
use std::io;

use waypost_proto::agent::{Failure, NoPath, Reason, Refused, Rejected};
use waypost_proto::message::NotSent;
use waypost_proto::wire::native::LeaveReason;

/// Why an operation failed.
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let server = waypost_server::serve::Server::start_with(&[])?;
/// # let server = server.main_addr();
/// use waypost_client::{Error, JoinConfig, Session};
///
/// match Session::join(server, "no such table", JoinConfig::new("my-game")) {
///     Err(Error::Rejected(rejected)) => assert_eq!(rejected.code, 470),
///     Err(other) => return Err(other.into()),
///     Ok(_) => unreachable!("nobody hosts it"),
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a socket operation.
    Io(io::Error),
    /// The server's name has no address.
    NoAddress,
    /// The server answered with an error.
    Rejected(Rejected),
    /// The server did not answer.
    Silent,
    /// The operation was not even begun.
    Refused(Refused),
    /// Data cannot be sent to this member now.
    NoPath(NoPath),
    /// A message was not taken.
    NotSent(NotSent),
    /// The session was made without messages.
    NoMessages,
    /// No stream to the member came about.
    NoStream(Reason),
    /// This player left the session.
    Left,
    /// The host or the server has taken the seat away.
    Removed(LeaveReason),
    /// The server lost the seat and does not give it back.
    SeatLost,
    /// The other member is gone, and everything it sent has been received.
    MemberLeft,
    /// The time was over first.
    TimedOut,
    /// Nothing is there yet, and the link is set not to wait.
    WouldBlock,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // The library's own words, which say what to do.
            Self::Io(error) if error.get_ref().is_some() => error.fmt(f),
            Self::Io(error) => write!(
                f,
                "a socket operation failed: {error}; check that this machine is online and allowed to use UDP"
            ),
            Self::NoAddress => {
                f.write_str("the server's name has no address; check it, or give an IP address")
            }
            Self::Rejected(rejected) => rejected.fmt(f),
            Self::Silent => Failure::Silent.fmt(f),
            Self::Refused(refused) => refused.fmt(f),
            Self::NoPath(no_path) => no_path.fmt(f),
            Self::NotSent(not_sent) => not_sent.fmt(f),
            Self::NoMessages => f.write_str(
                "this session was made without messages; set Player::messages, for all members",
            ),
            Self::NoStream(reason) => write!(f, "no stream to the member: {reason}"),
            Self::Left => f.write_str("this player left the session; host or join again"),
            Self::Removed(reason) => write!(
                f,
                "the seat is gone: {}; host or join another session",
                match reason {
                    LeaveReason::Left => "this player left",
                    LeaveReason::Kicked => "the host removed this player",
                    LeaveReason::TimedOut => "the server did not hear from this player for too long",
                    LeaveReason::Closed => "the session was closed",
                    LeaveReason::Expired => "the session's lifetime is over",
                }
            ),
            Self::SeatLost => f.write_str(
                "the server was restarted and does not know this seat any more; ask the host for the new code and join again",
            ),
            Self::MemberLeft => {
                f.write_str("that member has left; drop this link and look at the member list")
            }
            Self::TimedOut => f.write_str("nothing happened in time; try again or wait longer"),
            Self::WouldBlock => f.write_str("nothing is there yet; try again later"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Refused> for Error {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl From<NoPath> for Error {
    fn from(no_path: NoPath) -> Self {
        Self::NoPath(no_path)
    }
}

impl From<NotSent> for Error {
    fn from(not_sent: NotSent) -> Self {
        match not_sent {
            NotSent::NoMember => Self::MemberLeft,
            other => Self::NotSent(other),
        }
    }
}

impl From<Error> for io::Error {
    /// The kind that [`std::net::UdpSocket`] would use, around the error itself.
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Io(_) => match error {
                Error::Io(inner) => return inner,
                _ => return Self::other(error),
            },
            Error::NoAddress | Error::Refused(_) | Error::NoMessages => io::ErrorKind::InvalidInput,
            Error::Rejected(_) => io::ErrorKind::PermissionDenied,
            Error::Silent | Error::TimedOut | Error::NoStream(_) => io::ErrorKind::TimedOut,
            Error::NoPath(NoPath::TooLong) | Error::NotSent(NotSent::TooLong) => {
                io::ErrorKind::InvalidInput
            }
            Error::NoPath(_) | Error::Left | Error::Removed(_) | Error::SeatLost => {
                io::ErrorKind::NotConnected
            }
            Error::MemberLeft => io::ErrorKind::ConnectionAborted,
            Error::WouldBlock | Error::NotSent(_) => io::ErrorKind::WouldBlock,
        };
        Self::new(kind, error)
    }
}
