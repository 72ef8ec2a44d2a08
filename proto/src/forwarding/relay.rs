//! The routes of one TURN allocation, between its client and the peers that it has permissions for. The control side of an
//! allocation (who, how long) is kept elsewhere.

use super::hairpin::across::{Guest, Watcher};
use super::{
    Forward, ForwardingTable, Framing, Meter, NotForwarded, Rate, Route, Service, SocketIndex,
    Source, TransactionId,
};
use crate::addr::{Addr, ClientAddr};
use crate::time::Millis;
use crate::turn::channel::ChannelList;
use crate::turn::permission::PermissionList;
use crate::wire::channel_data::{self, ChannelData};

/// Longest payload from a peer that fits a datagram to the client with every framing.
pub(super) const PAYLOAD_MAX: usize = 65_507 - super::Frame::HEADER_MAX - 3;
/// ICMP errors that a client is told of.
const ICMP_PER_SEC: u32 = 10;

/// The packet path's view of an allocation.
#[derive(Debug)]
pub(crate) struct Relay {
    /// Where the client is reached.
    pub(super) client: Route,
    /// The socket of the relayed transport address of each family: IPv4, IPv6.
    sockets: [Option<SocketIndex>; 2],
    /// Their ports.
    pub(super) ports: [u16; 2],
    /// The IP addresses that may send and be sent to.
    pub permissions: PermissionList,
    /// The client's channels.
    pub channels: ChannelList,
    pub(super) rate: Rate,
    /// ICMP errors that the client was told of.
    icmp: Meter,
    /// Peers that are clients of other shards, in order of address.
    pub(super) guests: Vec<Guest>,
    /// Clients of other shards that this one is a guest to.
    pub(super) watchers: Vec<Watcher>,
}

impl Relay {
    /// Whether it relays for peers of this address's family.
    pub fn serves_family_of(&self, peer: Addr) -> bool {
        self.egress(peer).is_some()
    }

    fn egress(&self, peer: Addr) -> Option<SocketIndex> {
        self.sockets[usize::from(!peer.is_ipv4())]
    }
}

impl ForwardingTable {
    /// Lets the TURN client of [`ForwardingTable::reserve_source`] use its relay sockets, one per family; each with its port.
    pub(crate) fn add_relay(
        &mut self,
        allocation: u32,
        socket: SocketIndex,
        source: ClientAddr,
        relayed: [Option<(SocketIndex, u16)>; 2],
    ) {
        let sockets = relayed.map(|relayed| relayed.map(|(socket, _)| socket));
        let ports = relayed.map(|relayed| relayed.map_or(0, |(_, port)| port));
        let relay = Box::new(Relay {
            client: Route {
                egress: socket,
                to: source.0,
            },
            sockets,
            ports,
            permissions: PermissionList::default(),
            channels: ChannelList::default(),
            rate: Rate::default(),
            icmp: Meter::default(),
            guests: Vec::new(),
            watchers: Vec::new(),
        });
        let index = allocation as usize;
        if self.relays.len() <= index {
            self.relays.resize_with(index + 1, || None);
        }
        self.relays[index] = Some(relay);
        for socket in sockets.into_iter().flatten() {
            let place = usize::from(socket.0) - self.capacity.listeners;
            if self.by_socket.len() <= place {
                self.by_socket.resize(place + 1, None);
            }
            self.by_socket[place] = Some(allocation);
        }
        for (family, relayed) in relayed.into_iter().enumerate() {
            if let Some((_, port)) = relayed {
                self.hairpins.set_port(family, port, Some(allocation));
            }
        }
    }

    /// Makes a source that is nothing yet a TURN client, so that it becomes nothing else while its relay sockets are being
    /// opened.
    pub(crate) fn reserve_source(
        &mut self,
        allocation: u32,
        socket: SocketIndex,
        source: ClientAddr,
    ) {
        let before = self
            .by_source
            .insert((socket, source.0), Source::Client(allocation));
        debug_assert!(before.is_none(), "a source is one thing only");
    }

    /// Whether TURN serves a source, here or on another shard.
    pub(crate) fn is_turn(&self, socket: SocketIndex, source: ClientAddr) -> bool {
        let known = self.by_source.get(&(socket, source.0));
        matches!(
            known,
            Some(Source::Client(_) | Source::Moved(_) | Source::Guest(_))
        )
    }

    /// The shard that has the allocation of a source, if it is another.
    #[inline]
    pub(crate) fn owner_of_guest(&self, socket: SocketIndex, source: ClientAddr) -> Option<u16> {
        if self.guests == 0 {
            return None;
        }
        match *self.by_source.get(&(socket, source.0))? {
            Source::Guest(owner) => Some(owner),
            _ => None,
        }
    }

    /// Notes that the shard `owner` has the allocation of a source, unless it is something else here.
    pub(crate) fn add_guest(&mut self, socket: SocketIndex, source: ClientAddr, owner: u16) {
        match self.by_source.get(&(socket, source.0)) {
            None => self.guests += 1,
            Some(Source::Guest(_)) => {}
            Some(_) => return,
        }
        self.by_source
            .insert((socket, source.0), Source::Guest(owner));
    }

    /// Takes back what [`ForwardingTable::add_guest`] noted, unless another shard has the source by now.
    pub(crate) fn remove_guest(&mut self, socket: SocketIndex, source: ClientAddr, owner: u16) {
        if self.owner_of_guest(socket, source) == Some(owner) {
            self.by_source.remove(&(socket, source.0));
            self.guests -= 1;
        }
    }

    /// Lets a source that is nothing yet send for an allocation, whose client it becomes by that.
    pub(crate) fn add_moved(&mut self, allocation: u32, socket: SocketIndex, source: ClientAddr) {
        let before = self
            .by_source
            .insert((socket, source.0), Source::Moved(allocation));
        debug_assert!(before.is_none(), "a source is one thing only");
    }

    /// Makes where a client moved to its five-tuple: peers' data goes there from now on.
    pub(crate) fn arrive(
        &mut self,
        now: Millis,
        allocation: u32,
        socket: SocketIndex,
        source: ClientAddr,
    ) {
        self.by_source
            .insert((socket, source.0), Source::Client(allocation));
        if let Some(relay) = self.relay(allocation) {
            relay.client = Route {
                egress: socket,
                to: source.0,
            };
        }
        self.tell_watchers(now, allocation, None);
    }

    /// Makes the source of an allocation nothing again, if it still is its.
    pub(crate) fn remove_source(
        &mut self,
        allocation: u32,
        socket: SocketIndex,
        source: ClientAddr,
    ) {
        if self.allocation_of(socket, source) == Some(allocation) {
            self.by_source.remove(&(socket, source.0));
        }
    }

    /// The client of an allocation that outlives its stream is not reached any more, until it has moved.
    pub(crate) fn unplug(&mut self, allocation: u32) {
        if let Some(relay) = self.relay(allocation) {
            relay.client.to = Addr::default();
        }
    }

    /// Notes that a client sent from where it moved to.
    #[cold]
    pub(super) fn note_arrival(&mut self, allocation: u32) {
        if !self.arrivals.contains(&allocation) {
            self.arrivals.push(allocation);
        }
    }

    /// An allocation whose client has sent from where it moved to.
    pub(crate) fn next_arrival(&mut self) -> Option<u32> {
        self.arrivals.pop()
    }

    /// The allocation of a source that sends data.
    #[inline]
    pub(crate) fn sender(&mut self, socket: SocketIndex, source: ClientAddr) -> Option<u32> {
        match *self.by_source.get(&(socket, source.0))? {
            Source::Client(index) => Some(index),
            Source::Moved(index) => {
                self.note_arrival(index);
                Some(index)
            }
            Source::Member(_) | Source::Guest(_) => None,
        }
    }

    /// Closes the relay socket of one family.
    pub(crate) fn remove_family(&mut self, allocation: u32, family: usize) {
        if let Some(relay) = self.relay(allocation)
            && let Some(socket) = relay.sockets[family].take()
        {
            self.by_socket[usize::from(socket.0) - self.capacity.listeners] = None;
            self.end_hairpins(allocation, family);
        }
    }

    /// Takes away everything of an allocation but its sources.
    pub(crate) fn remove_relay(&mut self, allocation: u32) {
        for family in 0..2 {
            self.remove_family(allocation, family);
        }
        let relay = self.relays.get_mut(allocation as usize);
        relay.and_then(Option::take);
    }

    /// The routes of an allocation whose sockets are open.
    pub(crate) fn relay(&mut self, allocation: u32) -> Option<&mut Relay> {
        self.relays.get_mut(allocation as usize)?.as_deref_mut()
    }

    /// ChannelData from a client to a peer.
    #[inline]
    pub(super) fn forward_channel(
        &mut self,
        now: Millis,
        allocation: u32,
        message: ChannelData<'_>,
    ) -> Result<Forward, NotForwarded> {
        let relay = self.relays.get(allocation as usize);
        let relay = relay
            .and_then(Option::as_deref)
            .ok_or(NotForwarded::NoRoute)?;
        let peer = relay
            .channels
            .peer(now, message.channel)
            .ok_or(NotForwarded::NoRoute)?;
        self.forward_to_peer(
            now,
            allocation,
            peer,
            channel_data::HEADER_LEN,
            message.data.len(),
        )
    }

    /// ChannelData whose channel only RFC 5766 knows: from a client to a peer.
    pub(crate) fn forward_rfc5766(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> Result<Forward, NotForwarded> {
        let message = channel_data::parse_rfc5766(datagram).ok_or(NotForwarded::Malformed)?;
        let allocation = self.sender(socket, source).ok_or(NotForwarded::NoFlow)?;
        self.forward_channel(now, allocation, message)
    }

    /// Payload from a client, found at `strip` of its datagram, to a peer that policy allows.
    pub(crate) fn forward_to_peer(
        &mut self,
        now: Millis,
        allocation: u32,
        peer: Addr,
        strip: usize,
        payload_len: usize,
    ) -> Result<Forward, NotForwarded> {
        let limits = self.relay_limits;
        let relay = self.relay(allocation).ok_or(NotForwarded::NoRoute)?;
        if !relay.permissions.holds(now, peer) {
            return Err(NotForwarded::NoPermission);
        }
        let egress = relay.egress(peer).ok_or(NotForwarded::NoRoute)?;
        if let Some(composed) = self.compose(now, allocation, peer, payload_len) {
            let (route, framing) = composed?;
            return Ok(Forward {
                route,
                strip,
                payload_len,
                framing,
                dont_fragment: false,
                service: Service::Hairpin,
            });
        }
        let relay = self.relay(allocation).ok_or(NotForwarded::NoRoute)?;
        relay.rate.charge(now, limits, payload_len)?;
        Ok(Forward {
            route: Route { egress, to: peer },
            strip,
            payload_len,
            framing: Framing::Raw,
            dont_fragment: false,
            service: Service::Turn,
        })
    }

    /// An ICMP error about what was sent to `peer` by a relay socket: the client that is told of it, and the id of the
    /// indication, if the peer may send to it (RFC 8656 section 11.5) and it was not told of too many just now.
    pub(crate) fn icmp_from_peer(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        peer: Addr,
    ) -> Option<(Route, TransactionId)> {
        let relay = self.relay(self.allocation_of_relay(socket)?)?;
        let now_ns = now.0 * 1_000_000;
        if !relay.permissions.holds(now, peer) || !relay.icmp.fits(now_ns) {
            return None;
        }
        relay.icmp.spend(now_ns, 1, ICMP_PER_SEC);
        let client = relay.client;
        Some((client, next_indication(&mut self.indication)))
    }

    #[inline]
    fn allocation_of_relay(&self, socket: SocketIndex) -> Option<u32> {
        let place = usize::from(socket.0).checked_sub(self.capacity.listeners)?;
        *self.by_socket.get(place)?
    }

    /// What came to a relay socket, whatever it is, goes to the client if the peer may send (RFC 8656 section 11.3).
    ///
    /// # Errors
    /// [`NotForwarded`], to be counted; the peer is told nothing.
    #[inline]
    pub fn forward_from_peer(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        peer: Addr,
        payload_len: usize,
    ) -> Result<Forward, NotForwarded> {
        let limits = self.relay_limits;
        let allocation = self
            .allocation_of_relay(socket)
            .ok_or(NotForwarded::NoRoute)?;
        let relay = self.relays[allocation as usize]
            .as_deref_mut()
            .ok_or(NotForwarded::NoRoute)?;
        if !relay.permissions.holds(now, peer) {
            return Err(NotForwarded::NoPermission);
        }
        if payload_len > PAYLOAD_MAX {
            return Err(NotForwarded::Malformed);
        }
        relay.rate.charge(now, limits, payload_len)?;
        let framing = match relay.channels.number(now, peer) {
            Some(number) => Framing::Channel(number),
            None => Framing::DataIndication {
                peer,
                id: next_indication(&mut self.indication),
            },
        };
        Ok(Forward {
            route: relay.client,
            strip: 0,
            payload_len,
            framing,
            dont_fragment: false,
            service: Service::Turn,
        })
    }
}

/// The transaction id of the next indication.
#[inline]
pub(super) const fn next_indication(last: &mut u128) -> TransactionId {
    // A large odd step, so that ids in a row share no bytes and none comes again.
    *last = last.wrapping_add(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = last.to_be_bytes();
    TransactionId([a, b, c, d, e, f, g, h, i, j, k, l])
}
