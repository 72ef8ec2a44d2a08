//! Hairpins: a TURN client whose peer is another client's relayed transport address of this server. Its data goes straight to
//! that client, framed as if it had come to the relayed address, instead of through the kernel twice.
//!
//! On one shard nothing is kept for that: the peer's port leads to its allocation, and its permissions and channels are looked
//! at with each packet. Between shards see [`across`]. What cannot be composed goes through the kernel, to the same end.

use std::ops::RangeInclusive;

use super::{ForwardingTable, Framing, NotForwarded, Rate, Relay, Route, SocketIndex};
use crate::addr::Addr;
use crate::lobby::Mail;
use crate::time::Millis;
use crate::turn::{RelayIp, port_owner};
use crate::wire::channel_data::ChannelNumber;

pub(crate) mod across;

use across::Partners;

/// Where this server's relayed transport addresses are, and the listeners whose clients may be at the ends of a hairpin.
#[derive(Clone, Debug)]
pub(crate) struct HairpinPlan {
    /// The first address of each family counts.
    pub relay_ips: Vec<RelayIp>,
    /// The ports of all shards together.
    pub relay_ports: RangeInclusive<u16>,
    /// This shard, and how many there are.
    pub shard: u16,
    pub shards: u16,
    /// By the index of the listener.
    pub composable: Vec<bool>,
}

/// No allocation has the port.
const NOBODY: u32 = u32::MAX;

/// How clients name this server's relayed transport addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Name {
    /// Place of the family in arrays.
    family: usize,
    /// The IP address: the external one, or the local one, by which an address behind 1:1 NAT may be reached too.
    ip: Addr,
    /// The port's place in the range.
    offset: usize,
}

/// The hairpin side of a forwarding table.
#[derive(Debug)]
pub(super) struct Hairpins {
    /// By family: the external and the local address, with port 0.
    ips: [Option<[Addr; 2]>; 2],
    ports: RangeInclusive<u16>,
    shard: u16,
    shards: u16,
    composable: Vec<bool>,
    /// By family: this shard's allocations by port.
    by_port: [Vec<u32>; 2],
    partners: Partners,
    /// For other shards, or for this one; sent after each batch.
    pub(super) mail: Vec<(u16, Mail)>,
}

impl Hairpins {
    fn new(plan: HairpinPlan) -> Self {
        let ips = [true, false].map(|is_v4| {
            let mut ips = plan.relay_ips.iter();
            let ip = ips.find(|ip| ip.local.is_ipv4() == is_v4)?;
            Some([ip.external, ip.local].map(|ip| Addr::from_ip_port(ip, 0)))
        });
        Self {
            ips,
            ports: plan.relay_ports,
            shard: plan.shard,
            shards: plan.shards,
            composable: plan.composable,
            by_port: [Vec::new(), Vec::new()],
            partners: Partners::default(),
            mail: Vec::new(),
        }
    }

    /// The relayed transport address that `peer` is, by its IP address and the range of ports.
    #[inline]
    fn name(&self, peer: Addr) -> Option<Name> {
        let family = usize::from(!peer.is_ipv4());
        let ip = peer.with_port(0);
        let is_ours = self.ips[family]?.contains(&ip) && self.ports.contains(&peer.port());
        is_ours.then(|| Name {
            family,
            ip,
            offset: usize::from(peer.port() - self.ports.start()),
        })
    }

    /// This shard's allocation that has this relayed address.
    #[inline]
    fn allocation_at(&self, name: Name) -> Option<u32> {
        let allocation = *self.by_port[name.family].get(name.offset)?;
        (allocation != NOBODY).then_some(allocation)
    }

    /// Whether a client that speaks to this listener may be at either end of a hairpin.
    #[inline]
    fn may_compose(&self, listener: SocketIndex) -> bool {
        let listener = self.composable.get(usize::from(listener.0));
        listener.copied().unwrap_or(false)
    }

    /// Notes whose a relay port is.
    pub(super) fn set_port(&mut self, family: usize, port: u16, allocation: Option<u32>) {
        if !self.ports.contains(&port) {
            return;
        }
        let offset = usize::from(port - self.ports.start());
        let by_port = &mut self.by_port[family];
        if by_port.len() <= offset {
            by_port.resize(offset + 1, NOBODY);
        }
        by_port[offset] = allocation.unwrap_or(NOBODY);
    }

    /// The shard that gives out the port of a relayed address.
    fn owner(&self, name: Name) -> u16 {
        let port = usize::from(*self.ports.start()) + name.offset;
        let port = u16::try_from(port).expect("the offset of a port in the range");
        port_owner(&self.ports, port, self.shards)
    }
}

impl Default for Hairpins {
    /// There are none.
    fn default() -> Self {
        Self::new(HairpinPlan {
            relay_ips: Vec::new(),
            relay_ports: 1..=1,
            shard: 0,
            shards: 1,
            composable: Vec::new(),
        })
    }
}

/// The receiving end of a hairpin: where to, how framed, and whose limits it counts against.
struct End<'a> {
    client: Route,
    channel: Option<ChannelNumber>,
    rate: &'a mut Rate,
}

impl ForwardingTable {
    /// Lets hairpins be composed.
    pub(crate) fn plan_hairpins(&mut self, plan: HairpinPlan) {
        self.hairpins = Hairpins::new(plan);
    }

    /// Data from a client to a peer that it has a permission for. If that is another client's relayed transport address, says
    /// how it gets to that client, or why it does not. `None`: it leaves by the relay socket like any data.
    #[inline]
    pub(super) fn compose(
        &mut self,
        now: Millis,
        sender: u32,
        peer: Addr,
        payload_len: usize,
    ) -> Option<Result<(Route, Framing), NotForwarded>> {
        let name = self.hairpins.name(peer)?;
        let relay = self.relays[sender as usize].as_deref()?;
        if !self.hairpins.may_compose(relay.client.egress) {
            return None;
        }
        // Behind 1:1 NAT the peer sees the sender in the form in which the sender sees the peer.
        let seen = name.ip.with_port(relay.ports[name.family]);
        let Some(receiver) = self.hairpins.allocation_at(name) else {
            return self.compose_across(now, sender, peer, seen, payload_len);
        };
        let relay = self.relays[receiver as usize].as_deref()?;
        if !self.hairpins.may_compose(relay.client.egress) {
            return None;
        }
        if !relay.permissions.holds(now, seen) {
            return Some(Err(NotForwarded::NoPermission));
        }
        let (client, channel) = (relay.client, relay.channels.number(now, seen));
        Some(self.charge_both(
            now,
            sender,
            payload_len,
            |table| End {
                client,
                channel,
                rate: &mut table.relay_of(receiver).rate,
            },
            seen,
        ))
    }

    fn relay_of(&mut self, allocation: u32) -> &mut Relay {
        self.relays[allocation as usize]
            .as_deref_mut()
            .expect("an allocation that has a port is there")
    }

    /// Counts a packet against the limits of both ends; it is lost where the two trips through the kernel would lose it.
    #[inline]
    fn charge_both<'a>(
        &'a mut self,
        now: Millis,
        sender: u32,
        payload_len: usize,
        end: impl FnOnce(&'a mut Self) -> End<'a>,
        seen: Addr,
    ) -> Result<(Route, Framing), NotForwarded> {
        if payload_len > super::relay::PAYLOAD_MAX {
            return Err(NotForwarded::Malformed);
        }
        let limits = self.relay_limits;
        let sending = &mut self.relay_of(sender).rate;
        sending.charge(now, limits, payload_len)?;
        let id = super::relay::next_indication(&mut self.indication);
        let end = end(self);
        end.rate.charge(now, limits, payload_len)?;
        let framing = match end.channel {
            Some(number) => Framing::Channel(number),
            None => Framing::DataIndication { peer: seen, id },
        };
        Ok((end.client, framing))
    }
}
