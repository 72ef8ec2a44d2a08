//! The waypost server as a library: the pieces the binary is put together from.
//!
//! A datagram comes in at [`ring`] or [`mmsg`] (two backends of [`packet_io`]), is decided in `waypost_proto`, and goes
//! out the way it came; [`shard`] is the one file that knows both sides. [`control`] is everything slow.

pub mod control;
pub mod mailbox;
pub mod mmsg;
pub mod packet_io;
pub mod ring;
pub mod serve;
pub mod shard;
pub mod streams;
