//! TCP and TLS against the running server, on either backend.

#![allow(clippy::unwrap_used)]

#[path = "../account/mod.rs"]
mod account;
mod client;
mod hostile;
mod identity;
mod native;
mod turn;
