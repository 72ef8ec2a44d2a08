//! A shard seen from outside, for tests and simulators that check it against the rules. Walks all tables; never used on
//! the packet path.

use super::Shard;
use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::lobby::SeatView;
use crate::wire::native::SeatHandle;

/// Everything a checker needs to know of one shard.
#[derive(Clone, Debug)]
pub struct Inspection {
    /// The seats of the sessions that this shard owns.
    pub seats: Vec<SeatView>,
    /// The sources that this shard relays for.
    pub flows: Vec<(SocketIndex, Addr, SeatHandle)>,
    /// Sessions that this shard owns.
    pub sessions: usize,
    /// Sessions that have routes here.
    pub routed_sessions: usize,
    /// Sessions, players and relayed pairs of dialects.
    pub dialects: [usize; 3],
    /// TURN allocations.
    pub allocations: usize,
    /// Relay sockets that are open or being opened.
    pub relay_sockets: usize,
    /// Relay ports that are taken.
    pub relay_ports: u32,
    /// Clients of other shards that clients of this one may send to directly.
    pub hairpin_partners: usize,
    /// Timers that are set, those included that will find nothing to do.
    pub timers: usize,
    /// Bytes that the outbox keeps room for.
    pub outbox_capacity: usize,
}

impl Shard {
    /// Looks at everything, and asserts that the tables of this shard agree with each other.
    #[must_use]
    pub fn inspect(&self) -> Inspection {
        self.lobby.assert_consistent();
        self.dialects.assert_consistent();
        let (relay_sockets, relay_ports) = self.turn.relay_sockets();
        Inspection {
            dialects: [
                self.dialects.session_count(),
                self.dialects.player_count(),
                self.dialects.pair_count(),
            ],
            allocations: self.turn.allocation_count(),
            relay_sockets,
            relay_ports,
            hairpin_partners: self.forwarding.partner_count(),
            seats: self.lobby.seats(),
            flows: self.forwarding.flows(),
            sessions: self.lobby.session_count(),
            routed_sessions: self.forwarding.session_count(),
            timers: self.wheel.len(),
            outbox_capacity: self.outbox.bytes.capacity(),
        }
    }
}
