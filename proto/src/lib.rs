//! The Waypost protocols without I/O.
//!
//! Bytes, addresses and the time come in; routes, replies and commands come out. This crate opens no socket, reads no
//! clock, starts no thread and draws no randomness of its own: everything it depends on is an argument, so a whole
//! deployment runs in a test on a virtual clock.
//!
//! * [`wire`]: byte formats (STUN, ChannelData, the native attributes).
//! * [`forwarding`]: the relay: one table from `(socket, source)` to routes.
//! * [`lobby`]: sessions, members, match queues, events, introductions.
//! * [`dialect`]: other systems' protocols, so that games made for them work unmodified.
//! * [`turn`]: TURN (RFC 8656): allocations, permissions, channels, credentials, peer policy.
//! * [`shard`]: one shard's whole state, driven by the server's event loop.
//!
//! Without the feature `server`, which is on unless it is turned off, there are only those below, with hardly any dependencies:
//!
//! * [`agent`]: the client's side of all that.
//! * [`message`]: messages between the members of a session, on top of its datagrams.

#![forbid(unsafe_code)]

pub mod addr;
pub mod agent;
#[cfg(feature = "server")]
pub mod dialect;
#[cfg(feature = "server")]
pub mod forwarding;
#[cfg(feature = "server")]
pub mod lobby;
pub mod message;
#[cfg(feature = "server")]
pub mod nonce;
#[cfg(feature = "server")]
pub mod shard;
#[cfg(feature = "server")]
pub mod shares;
#[cfg(feature = "server")]
pub mod stats;
#[cfg(feature = "server")]
pub mod ticket;
pub mod time;
#[cfg(feature = "server")]
pub mod timer_wheel;
#[cfg(feature = "server")]
pub mod turn;
#[cfg(feature = "server")]
mod unproven;
pub mod wire;
