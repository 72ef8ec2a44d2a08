//! Dialects on a virtual clock: one shard, pretended sockets, datagrams as games send them.

// A test may not go on after what it needs has failed.
#![allow(clippy::unwrap_used)]

mod rabid;
mod world;
