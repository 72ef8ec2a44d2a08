//! A seeded world in which the real shards serve the real agents through virtual NATs, on a virtual clock.
//!
//! A seed decides everything: who is behind which NAT, what the network loses, doubles and reorders, what goes wrong and
//! when. Checkers look from outside at every step and know nothing of the code under test. A run that breaks a rule ends
//! with a [`Violation`] that names its seed. Opens no socket and reads no clock.
//!
//! * [`nat`]: one NAT: mapping, filtering, hairpin.
//! * [`net`]: who is behind what, and the way of a packet with its TTL.
//! * [`world`]: server, players and time.
//! * [`check`]: the rules.
//! * [`scenario`]: what happens in a seeded run.
//! * [`table`]: every kind of NAT against every other.

#![forbid(unsafe_code)]

pub mod check;
pub mod nat;
pub mod net;
pub mod promptness;
pub mod scenario;
pub mod table;
pub mod world;

/// A rule that was broken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation(pub String);

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}
