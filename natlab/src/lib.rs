//! A laboratory of network namespaces: a public network with a server, and two players, each behind a NAT of the
//! kernel's own (nftables). Nothing is simulated: real processes, real sockets, real connection tracking.
//!
//! ```text
//!                      203.0.113.1 server
//!                          [public]
//!           198.51.100.1 /          \ 198.51.100.5
//!           198.51.100.2 \          / 198.51.100.6
//!                    [gateway a]  [gateway b]
//!                         |            |
//!                     [player a]   [player b]        192.168.1.2, 192.168.2.2
//! ```
//!
//! Names are unique to the process and the laboratory, and everything is removed when it is dropped.

mod meeting;
mod namespace;

pub use meeting::{ForeignMeeting, Meeting, Programs, examine, meet, meet_as, meet_foreign};
pub use namespace::{Lab, LabError, Nat, Side, can_run};
