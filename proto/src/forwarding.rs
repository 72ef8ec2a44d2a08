//! The relay: one lookup from where a datagram came to where it goes.
//!
//! A `Flow` is what a source address on one socket may do; its channels index a dense set of [`Route`]s that all flows
//! of a session on this shard share. So the packet path is one hash probe and one indexed read, and a session of N
//! members costs N routes per shard, not N squared. A TURN client is found by the same probe; its peers come to a socket of
//! its own, which needs none. A source is a member or a client, never both. Nothing here knows who is allowed what or why:
//! the lobby and the TURN handlers install and remove, and this table is complete without them.

use std::collections::HashMap;

use ahash::RandomState;

use crate::addr::{Addr, ClientAddr};
use crate::dialect::Dialect;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::channel_data::{self, ChannelNumber};
use crate::wire::join_code::JoinCode;
use crate::wire::native::SeatHandle;
use crate::wire::stun::TransactionId;

mod framing;
pub(crate) mod hairpin;
mod player_port;
mod port_pair;
pub(crate) mod relay;

pub use framing::{Frame, Framing};
use hairpin::Hairpins;
pub use hairpin::across::HalfRoute;
pub(crate) use player_port::{NotRelayed, PlayerLimits};
pub(crate) use port_pair::ViewEnd;
pub(crate) use relay::Relay;

/// One of a shard's sockets. Listeners come first and have the same number on every shard, so a route names one for all of
/// them; the sockets of relayed transport addresses follow and are the shard's own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SocketIndex(pub u16);

/// Where a datagram leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    /// The socket to send from.
    pub egress: SocketIndex,
    /// The destination.
    pub to: Addr,
}

/// How many packets and bytes per second a source may relay. Zero means no limit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RelayLimits {
    /// Packets per second.
    pub packets_per_sec: u32,
    /// Bytes per second of payload.
    pub bytes_per_sec: u32,
}

/// A rate limit in one number: the time at which everything spent so far will have been earned (the generic cell rate
/// algorithm). It allows bursts of a quarter of a second's worth.
#[derive(Clone, Copy, Debug, Default)]
struct Meter {
    earned_at_ns: u64,
}

impl Meter {
    const BURST_NS: u64 = 250_000_000;

    fn fits(self, now_ns: u64) -> bool {
        self.earned_at_ns <= now_ns + Self::BURST_NS
    }

    fn spend(&mut self, now_ns: u64, amount: u64, per_sec: u32) {
        self.earned_at_ns =
            self.earned_at_ns.max(now_ns) + amount * 1_000_000_000 / u64::from(per_sec);
    }
}

/// What a source has relayed lately.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    packets: Meter,
    bytes: Meter,
}

impl Rate {
    /// Notes one more packet, unless it is too much.
    #[inline]
    fn charge(
        &mut self,
        now: Millis,
        limits: RelayLimits,
        payload_len: usize,
    ) -> Result<(), NotForwarded> {
        let now_ns = now.0 * 1_000_000;
        if !self.packets.fits(now_ns) || !self.bytes.fits(now_ns) {
            return Err(NotForwarded::Limit);
        }
        if limits.packets_per_sec > 0 {
            self.packets.spend(now_ns, 1, limits.packets_per_sec);
        }
        if limits.bytes_per_sec > 0 {
            self.bytes
                .spend(now_ns, payload_len as u64, limits.bytes_per_sec);
        }
        Ok(())
    }
}

/// What one source may do.
#[derive(Debug)]
struct Flow {
    handle: SeatHandle,
    set: u32,
    rate: Rate,
}

/// The routes of one session on this shard, indexed by seat.
#[derive(Debug, Default)]
struct RouteSet {
    seats: Vec<Option<Route>>,
    flows: u16,
}

/// A flow was not added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// Why a datagram is not forwarded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotForwarded {
    /// It is not well-formed ChannelData.
    Malformed,
    /// Its source has no flow.
    NoFlow,
    /// Its channel leads to nobody.
    NoRoute,
    /// The client has no permission for the peer, or no longer.
    NoPermission,
    /// Its source is beyond its limits.
    Limit,
}

impl NotForwarded {
    /// What it is counted as.
    pub(crate) const fn counter(self) -> Counter {
        match self {
            Self::Malformed => Counter::DropParse,
            Self::NoFlow => Counter::DropNoFlow,
            Self::NoRoute => Counter::DropNoRoute,
            Self::NoPermission => Counter::DropNoPermission,
            Self::Limit => Counter::DropLimit,
        }
    }
}

/// Who is served by a forwarded datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Service {
    /// Members of a session.
    Session,
    /// A TURN client.
    Turn,
    /// Two TURN clients, by a hairpin.
    Hairpin,
    /// Players of another system's protocol.
    Dialect(Dialect),
}

/// A decision to forward a part of the datagram: it is framed anew and leaves by `route`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Where to.
    pub route: Route,
    /// Bytes to take off the front.
    pub strip: usize,
    /// Length of the payload behind them; what follows it is cut off.
    pub payload_len: usize,
    /// What is written around the payload.
    pub framing: Framing,
    /// Whether to drop it rather than to send it in fragments (DONT-FRAGMENT, RFC 8656 section 14).
    pub dont_fragment: bool,
    /// For whom.
    pub service: Service,
}

/// What a source on a listener is.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// A member of a session, by its flow.
    Member(u32),
    /// A TURN client, by its allocation.
    Client(u32),
    /// Where a TURN client moved to and has not sent from yet, by its allocation (RFC 8016).
    Moved(u32),
    /// A TURN client whose allocation another shard has.
    Guest(u16),
}

/// How large a forwarding table may become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForwardingCapacity {
    /// Members of sessions.
    pub flows: usize,
    /// TURN clients.
    pub relays: usize,
    /// Sockets of listeners: the indexes below this are theirs.
    pub listeners: usize,
}

/// The forwarding table of one shard.
#[derive(Debug)]
pub struct ForwardingTable {
    by_source: HashMap<(SocketIndex, Addr), Source, RandomState>,
    flow_count: usize,
    flows: Vec<Option<Flow>>,
    free_flows: Vec<u32>,
    by_code: HashMap<JoinCode, u32, RandomState>,
    sets: Vec<RouteSet>,
    free_sets: Vec<u32>,
    limits: RelayLimits,
    relay_limits: RelayLimits,
    /// By allocation.
    relays: Vec<Option<Box<Relay>>>,
    /// The allocation of each relay socket, by the socket's index after the listeners.
    by_socket: Vec<Option<u32>>,
    hairpins: Hairpins,
    port_pairs: port_pair::PortPairs,
    player_ports: player_port::PlayerPorts,
    capacity: ForwardingCapacity,
    /// Entries for clients whose allocations other shards have.
    guests: usize,
    /// Allocations whose clients sent data from where they moved to.
    arrivals: Vec<u32>,
    /// The transaction id of the next Data indication.
    indication: u128,
}

/// Sources that there is room for at first. The table grows with them, because one that is made for many more has each of them on
/// a page of its own, and its address to be looked up for each packet.
const FIRST_SOURCES: usize = 3500;

impl ForwardingTable {
    /// An empty table. `limits` are a member's, `relay_limits` a TURN client's. `seeds` key its hashes: random in
    /// production, so that nobody can aim sources at one bucket.
    #[must_use]
    pub fn new(
        capacity: ForwardingCapacity,
        limits: RelayLimits,
        relay_limits: RelayLimits,
        seeds: [u64; 4],
    ) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        let sources = (capacity.flows + capacity.relays).min(FIRST_SOURCES);
        Self {
            by_source: HashMap::with_capacity_and_hasher(sources, hasher.clone()),
            flow_count: 0,
            flows: Vec::with_capacity(capacity.flows),
            free_flows: Vec::new(),
            by_code: HashMap::with_hasher(hasher.clone()),
            sets: Vec::new(),
            free_sets: Vec::new(),
            limits,
            relay_limits,
            relays: Vec::new(),
            by_socket: Vec::new(),
            hairpins: Hairpins::default(),
            port_pairs: port_pair::PortPairs::default(),
            player_ports: player_port::PlayerPorts::new(hasher),
            capacity,
            guests: 0,
            arrivals: Vec::new(),
            indication: u128::from(seeds[0] ^ seeds[3]) << 64 | u128::from(seeds[1] ^ seeds[2]),
        }
    }

    /// Flows in the table.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.flow_count
    }

    /// Whether there is no flow.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.flow_count == 0
    }

    /// Sessions that have routes here.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.by_code.len()
    }

    /// All flows: where each comes to and from, and its seat. For tests and simulators.
    pub(crate) fn flows(&self) -> Vec<(SocketIndex, Addr, SeatHandle)> {
        let handle = |index: u32| self.flows[index as usize].as_ref().map(|flow| flow.handle);
        self.by_source
            .iter()
            .filter_map(|(&(socket, source), &kind)| match kind {
                Source::Member(index) => Some((socket, source, handle(index)?)),
                _ => None,
            })
            .collect()
    }

    /// The seat of a source, if it has one.
    #[must_use]
    pub fn seat_of(&self, socket: SocketIndex, source: ClientAddr) -> Option<SeatHandle> {
        match *self.by_source.get(&(socket, source.0))? {
            Source::Member(index) => self.flows[index as usize].as_ref().map(|flow| flow.handle),
            _ => None,
        }
    }

    /// Whether a source is a member or a TURN client.
    #[must_use]
    pub fn is_known(&self, socket: SocketIndex, source: ClientAddr) -> bool {
        self.by_source.contains_key(&(socket, source.0))
    }

    /// The allocation of a source, if it has one.
    #[must_use]
    pub fn allocation_of(&self, socket: SocketIndex, source: ClientAddr) -> Option<u32> {
        match *self.by_source.get(&(socket, source.0))? {
            Source::Client(index) | Source::Moved(index) => Some(index),
            Source::Member(_) | Source::Guest(_) => None,
        }
    }

    /// Decides about a ChannelData datagram. This is the packet path: it allocates nothing and reads no clock.
    ///
    /// # Errors
    /// [`NotForwarded`], to be counted; the sender is told nothing.
    pub fn forward(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> Result<Forward, NotForwarded> {
        let message = channel_data::parse(datagram).ok_or(NotForwarded::Malformed)?;
        let index = match *self
            .by_source
            .get(&(socket, source.0))
            .ok_or(NotForwarded::NoFlow)?
        {
            Source::Member(index) => index,
            Source::Client(index) => return self.forward_channel(now, index, message),
            Source::Moved(index) => {
                self.note_arrival(index);
                return self.forward_channel(now, index, message);
            }
            Source::Guest(_) => return Err(NotForwarded::NoFlow),
        };
        let flow = self.flows[index as usize]
            .as_mut()
            .expect("an indexed flow is there");
        let route = message
            .channel
            .seat()
            .and_then(|seat| *self.sets[flow.set as usize].seats.get(usize::from(seat))?)
            .ok_or(NotForwarded::NoRoute)?;
        flow.rate.charge(now, self.limits, message.data.len())?;
        let channel = ChannelNumber::of_seat(flow.handle.id.seat);
        Ok(Forward {
            route,
            strip: channel_data::HEADER_LEN,
            payload_len: message.data.len(),
            framing: Framing::Channel(channel),
            dont_fragment: false,
            service: Service::Session,
        })
    }

    /// Makes `seat` of session `code` lead to `route`, or nowhere. Routes are kept only for sessions that have a flow here.
    pub fn set_route(&mut self, code: JoinCode, seat: u8, route: Option<Route>) {
        let Some(&set) = self.by_code.get(&code) else {
            return;
        };
        let seats = &mut self.sets[set as usize].seats;
        let seat = usize::from(seat);
        match route {
            Some(_) => {
                if seats.len() <= seat {
                    seats.reserve_exact(seat + 1 - seats.len());
                    seats.resize(seat + 1, None);
                }
                seats[seat] = route;
            }
            None => {
                if let Some(slot) = seats.get_mut(seat) {
                    *slot = None;
                }
            }
        }
    }

    fn set_of(&mut self, code: JoinCode) -> u32 {
        if let Some(&set) = self.by_code.get(&code) {
            return set;
        }
        let set = self.free_sets.pop().unwrap_or_else(|| {
            self.sets.push(RouteSet::default());
            u32::try_from(self.sets.len() - 1).expect("fewer sets than codes")
        });
        self.by_code.insert(code, set);
        set
    }

    /// Lets `source` send as the member in `handle`. Returns the seat that the source had until now, if it was another.
    ///
    /// # Errors
    /// [`NoRoom`] if the table is full or the source has a TURN allocation.
    pub fn add_flow(
        &mut self,
        socket: SocketIndex,
        source: ClientAddr,
        handle: SeatHandle,
    ) -> Result<Option<SeatHandle>, NoRoom> {
        let displaced = self.seat_of(socket, source);
        match displaced {
            Some(old) if old == handle => return Ok(None),
            Some(old) => self.remove_flow(socket, source, old),
            None => {}
        }
        if self.flow_count >= self.capacity.flows || self.is_turn(socket, source) {
            return Err(NoRoom);
        }
        self.flow_count += 1;
        let set = self.set_of(handle.code);
        self.sets[set as usize].flows += 1;
        let flow = Some(Flow {
            handle,
            set,
            rate: Rate::default(),
        });
        let index = if let Some(index) = self.free_flows.pop() {
            self.flows[index as usize] = flow;
            index
        } else {
            self.flows.push(flow);
            u32::try_from(self.flows.len() - 1).expect("capacity is below 2^32")
        };
        self.by_source
            .insert((socket, source.0), Source::Member(index));
        Ok(displaced)
    }

    /// Takes away what [`ForwardingTable::add_flow`] gave, unless the source has another seat by now. The routes of a session go
    /// with its last flow.
    pub fn remove_flow(&mut self, socket: SocketIndex, source: ClientAddr, handle: SeatHandle) {
        if self.seat_of(socket, source) != Some(handle) {
            return;
        }
        let Some(Source::Member(index)) = self.by_source.remove(&(socket, source.0)) else {
            unreachable!("seat_of found it");
        };
        self.flow_count -= 1;
        let flow = self.flows[index as usize]
            .take()
            .expect("an indexed flow is there");
        self.free_flows.push(index);
        let set = &mut self.sets[flow.set as usize];
        set.flows -= 1;
        if set.flows == 0 {
            *set = RouteSet::default();
            self.by_code.remove(&handle.code);
            self.free_sets.push(flow.set);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::native::SeatId;

    const SOCKET: SocketIndex = SocketIndex(0);

    fn addr(port: u16) -> Addr {
        Addr::new(std::net::SocketAddr::from(([192, 0, 2, 1], port)))
    }

    fn handle(seat: u8) -> SeatHandle {
        SeatHandle {
            code: JoinCode::from_bits(77).unwrap(),
            id: SeatId {
                seat,
                generation: u32::from(seat) + 100,
            },
        }
    }

    fn table(limits: RelayLimits) -> ForwardingTable {
        let capacity = ForwardingCapacity {
            flows: 16,
            relays: 0,
            listeners: 2,
        };
        let mut table = ForwardingTable::new(capacity, limits, limits, [1, 2, 3, 4]);
        for seat in 0..3 {
            let port = 1000 + u16::from(seat);
            let route = Route {
                egress: SOCKET,
                to: addr(port),
            };
            let added = table.add_flow(SOCKET, ClientAddr(addr(port)), handle(seat));
            assert_eq!(added, Ok(None));
            table.set_route(handle(seat).code, seat, Some(route));
        }
        table
    }

    fn send(
        table: &mut ForwardingTable,
        now: u64,
        from: u16,
        seat: u8,
    ) -> Result<Forward, NotForwarded> {
        let mut datagram = channel_data::header(ChannelNumber::of_seat(seat), 5).to_vec();
        datagram.extend_from_slice(b"hello");
        table.forward(Millis(now), SOCKET, ClientAddr(addr(from)), &datagram)
    }

    #[test]
    fn members_reach_each_other_and_nobody_else() {
        let mut table = table(RelayLimits::default());
        let forward = send(&mut table, 0, 1000, 2).unwrap();
        assert_eq!(forward.route.to, addr(1002));
        assert_eq!(forward.frame().header(), [0x40, 0, 0, 5]);
        assert_eq!((forward.strip, forward.payload_len), (4, 5));
        assert_eq!(send(&mut table, 0, 1000, 3), Err(NotForwarded::NoRoute));
        assert_eq!(send(&mut table, 0, 1003, 0), Err(NotForwarded::NoFlow));
        let wrong_socket = table.forward(
            Millis(0),
            SocketIndex(1),
            ClientAddr(addr(1000)),
            &[0x40, 1, 0, 0],
        );
        assert_eq!(wrong_socket, Err(NotForwarded::NoFlow));
    }

    #[test]
    fn a_removed_member_neither_sends_nor_receives() {
        let mut table = table(RelayLimits::default());
        let code = handle(2).code;
        table.set_route(code, 2, None);
        table.remove_flow(SOCKET, ClientAddr(addr(1002)), handle(2));
        assert_eq!(send(&mut table, 0, 1000, 2), Err(NotForwarded::NoRoute));
        assert_eq!(send(&mut table, 0, 1002, 0), Err(NotForwarded::NoFlow));
        for seat in 0..2 {
            table.set_route(code, seat, None);
            table.remove_flow(
                SOCKET,
                ClientAddr(addr(1000 + u16::from(seat))),
                handle(seat),
            );
        }
        assert_eq!((table.len(), table.session_count()), (0, 0));
    }

    #[test]
    fn a_late_removal_does_not_touch_the_next_seat() {
        let mut table = table(RelayLimits::default());
        let next = SeatHandle {
            code: JoinCode::from_bits(78).unwrap(),
            id: SeatId {
                seat: 0,
                generation: 1,
            },
        };
        let added = table.add_flow(SOCKET, ClientAddr(addr(1002)), next);
        assert_eq!(added, Ok(Some(handle(2))));
        table.remove_flow(SOCKET, ClientAddr(addr(1002)), handle(2));
        assert_eq!(table.seat_of(SOCKET, ClientAddr(addr(1002))), Some(next));
    }

    #[test]
    fn limits_hold_and_refill() {
        let mut table = table(RelayLimits {
            packets_per_sec: 100,
            bytes_per_sec: 0,
        });
        let sent = (0..1000)
            .filter(|_| send(&mut table, 0, 1000, 1).is_ok())
            .count();
        assert_eq!(
            sent, 26,
            "a quarter of a second's worth, and the one in flight"
        );
        let later = (0..1000)
            .filter(|_| send(&mut table, 1000, 1000, 1).is_ok())
            .count();
        assert_eq!(later, 26);
        let steady = (0..10_000u64)
            .filter(|ms| send(&mut table, 2000 + ms, 1001, 0).is_ok())
            .count();
        assert!((1000..=1030).contains(&steady), "{steady} in ten seconds");
        let mut bytes = ForwardingTable {
            limits: RelayLimits {
                packets_per_sec: 0,
                bytes_per_sec: 50,
            },
            ..table
        };
        let sent = (0..100)
            .filter(|_| send(&mut bytes, 20_000, 1002, 0).is_ok())
            .count();
        assert_eq!(
            sent, 3,
            "12.5 bytes fit, then the one that crosses the line"
        );
    }

    #[test]
    fn full_means_refused() {
        let mut table = table(RelayLimits::default());
        let added = (0..100)
            .filter(|i| {
                let source = ClientAddr(addr(2000 + i));
                table.add_flow(SOCKET, source, handle(3)).is_ok()
            })
            .count();
        assert_eq!(added, 13);
    }
}
