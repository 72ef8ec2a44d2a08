//! The waypost server as a library: the pieces the binary is put together from.

pub mod mmsg;
pub mod packet_io;
pub mod ring;
