//! Dialects on a virtual clock: one shard, pretended sockets, datagrams as games send them.

// A test may not go on after what it needs has failed.
#![allow(clippy::unwrap_used)]

mod corpus;
mod godot_p2p;
mod noray;
mod rabid;
mod relay;
#[path = "../relay_sockets/mod.rs"]
mod relay_sockets;
mod simple;
mod world;
