//! Two game players meet, connect directly if their networks allow it, and are relayed if not. Blocking, in the manner of
//! [`std::net`].
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use waypost_client::{HostConfig, JoinConfig, Session};
//!
//! // One player:
//! let host = Session::host("203.0.113.5:3478", HostConfig::new("my-game"))?;
//! println!("tell your friend: {}", host.code()?);
//!
//! // The other:
//! let guest = Session::join("203.0.113.5:3478", "BAD-KIF-ROM", JoinConfig::new("my-game"))?;
//! let link = guest.link(guest.wait_member(None)?)?;
//! link.send(b"hello")?;
//! link.set_read_timeout(Some(Duration::from_secs(1)))?;
//! let mut buf = [0; 1500];
//! let len = link.recv(&mut buf)?;
//! # Ok(()) }
//! ```
//!
//! A [`Session`] is a seat in a session; one thread of its own keeps it alive. A [`Link`] carries datagrams to and from one
//! other member: unreliable and unordered like UDP, through the relay at first and directly once that is proven,
//! without a datagram lost or doubled by the change. Nothing is encrypted: what needs secrecy must bring its own.
//!
//! Beside datagrams there are messages, if [`Player::messages`] says so: reliable or not, ordered or not, of up to 64 KiB,
//! delivered once, with word of what became of them; and checks that tell when a member is gone.
//!
//! Whoever wants to own socket and loop uses [`waypost_proto::agent`], which this library only drives.

mod conduit;
mod config;
mod driver;
mod error;
mod link;
mod list;
mod nat_opener;
mod nat_report;
mod noray;
mod packet_handshake;
mod port_mapping;
mod readiness;
mod session;
mod stream;
mod turn;
mod upnp;

pub use config::{HostConfig, JoinConfig, Player};
pub use error::Error;
pub use link::Link;
pub use list::list;
pub use nat_report::{Behaviour, NatReport, nat_report};
pub use noray::{Introduction, NORAY_PORT, NORAY_REGISTRAR_PORT, Noray};
pub use packet_handshake::{
    Handshake, HandshakePacket, HandshakeTiming, packet_handshake, packet_handshake_blind,
};
pub use session::{Member, Session};
pub use stream::ConnectedStream;
#[cfg(feature = "tls")]
pub use turn::ServerIdentity;
pub use turn::{TurnServer, TurnTransport};
pub use waypost_proto::agent::{
    Attempt, Credential, Failure, ListFilter, ListedSession, NoPath, Path, PathPolicy, Probing,
    Progress, Reason, Refused, Rejected, SessionEvent, Strategies, Strategy, describe,
};
pub use waypost_proto::message::{
    MESSAGE_MAX, Message, MessageEvent, MessageId, Messaging, NotSent, Service,
};
pub use waypost_proto::wire::join_code::JoinCode;
pub use waypost_proto::wire::native::{LeaveReason, NatMapping, SeatId};
