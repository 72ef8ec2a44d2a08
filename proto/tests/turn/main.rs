//! What RFC 8656 and RFC 8489 ask of a TURN server, held by a real shard against a client written from the wire formats.
//! Each test names the sections it holds. Sockets are pretended, time is a number.

mod allocating;
mod authentication;
mod bad_input;
mod client;
mod hairpins;
mod lifetimes;
mod mobility;
mod peers;
#[path = "../relay_sockets/mod.rs"]
mod relay_sockets;
mod relaying;
mod reservations;
mod world;
