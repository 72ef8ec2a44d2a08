//! The client library for C: `waypost.h`. Handles are opaque, every result is a status, buffers are the caller's, and the
//! library calls nobody back; waiting is the caller's, on a file descriptor.
//!
//! Nothing here decides anything: each function checks its arguments and calls [`waypost_client`].
//!
//! In this crate only pointers that a caller of the C interface gave are followed. What they must point to is said at
//! each function, and below at each block: "the caller's" means that the caller owns the memory and lends it for the call.

#![allow(unsafe_code)]

mod buffer;
mod config;
mod event;
mod list;
mod session;
mod status;
mod ways;

pub use config::*;
pub use event::*;
pub use list::*;
pub use session::*;
pub use status::*;
pub use ways::*;

/// Counts changes of this interface after which a program has to be compiled anew.
pub const WAYPOST_ABI: u32 = 2;

/// The interface that the library has: compare it with `WAYPOST_ABI`.
#[unsafe(no_mangle)]
pub extern "C" fn waypost_abi() -> u32 {
    WAYPOST_ABI
}
