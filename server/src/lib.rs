//! Server library.

pub mod control;
