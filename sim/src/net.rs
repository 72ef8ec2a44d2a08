//! Who is behind what, and the way of a packet. Each router, NATs included, takes one from its TTL, so that an opener dies
//! where it would. Ways up are taken when the packet is sent, ways down when it arrives.

use std::collections::HashMap;

use waypost_proto::addr::Addr;

use crate::nat::Nat;

/// The network outside all NATs.
pub const PUBLIC: LanId = LanId(0);
/// The TTL that a packet has if its sender does not say otherwise.
pub const TTL: u8 = 64;

/// One network: the public one or one behind a NAT.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LanId(pub usize);

/// Who gets a packet in the end.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Endpoint {
    /// The server.
    Server,
    /// The host with this number.
    Host(usize),
}

/// A packet on its way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Its source as the network that it is in sees it.
    pub from: Addr,
    /// Its destination.
    pub to: Addr,
    /// Routers it may still pass.
    pub ttl: u8,
    /// What is in it.
    pub bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Lan {
    /// The way out: none from the public network.
    up: Option<(usize, LanId)>,
    endpoints: HashMap<Addr, Endpoint>,
}

/// The network.
#[derive(Debug)]
pub struct Net {
    lans: Vec<Lan>,
    nats: Vec<Nat>,
    /// The network that each NAT is the way out of.
    inside: Vec<LanId>,
    /// The network that each NAT's outer address is in.
    outside: Vec<LanId>,
    /// Routers between any two places of the public network.
    pub public_hops: u8,
}

impl Net {
    /// A public network with nothing in it.
    #[must_use]
    pub fn new(public_hops: u8) -> Self {
        Self {
            lans: vec![Lan {
                up: None,
                endpoints: HashMap::new(),
            }],
            nats: Vec::new(),
            inside: Vec::new(),
            outside: Vec::new(),
            public_hops,
        }
    }

    /// Puts a NAT into `outside`; returns the network behind it.
    pub fn add_nat(&mut self, outside: LanId, nat: Nat) -> LanId {
        let lan = LanId(self.lans.len());
        self.lans.push(Lan {
            up: Some((self.nats.len(), outside)),
            endpoints: HashMap::new(),
        });
        self.nats.push(nat);
        self.inside.push(lan);
        self.outside.push(outside);
        lan
    }

    /// The NATs from a network outwards.
    #[must_use]
    pub fn nats_above(&self, lan: LanId) -> Vec<&Nat> {
        let mut nats = Vec::new();
        let mut at = lan;
        while let Some((nat, outside)) = self.lans[at.0].up {
            nats.push(&self.nats[nat]);
            at = outside;
        }
        nats
    }

    /// The networks from one outwards, itself first.
    #[must_use]
    pub fn lans_above(&self, lan: LanId) -> Vec<LanId> {
        let mut lans = vec![lan];
        while let Some((_, outside)) = self.lans[lans[lans.len() - 1].0].up {
            lans.push(outside);
        }
        lans
    }

    /// Restarts the NAT in front of a network, if there is one.
    pub fn reboot_nat(&mut self, lan: LanId) {
        if let Some((nat, _)) = self.lans[lan.0].up {
            self.nats[nat].reboot();
        }
    }

    /// Puts a host into a network.
    pub fn add_endpoint(&mut self, lan: LanId, addr: Addr, endpoint: Endpoint) {
        self.lans[lan.0].endpoints.insert(addr, endpoint);
    }

    /// Takes a packet from its sender outwards as far as it has to go. Returns where it turns, or none if it dies.
    pub fn climb(&mut self, now: u64, from: LanId, packet: &mut Packet) -> Option<LanId> {
        let mut lan = from;
        loop {
            if self.is_in(lan, packet.to) {
                break;
            }
            let Some((nat, outside)) = self.lans[lan.0].up else {
                break;
            };
            if packet.ttl <= 1 {
                return None;
            }
            packet.ttl -= 1;
            packet.from = self.nats[nat].outbound(now, packet.from, packet.to);
            if packet.to.ip() == self.nats[nat].outer {
                return self.nats[nat].hairpin.then_some(outside);
            }
            lan = outside;
        }
        if lan == PUBLIC {
            if packet.ttl <= self.public_hops {
                return None;
            }
            packet.ttl -= self.public_hops;
        }
        Some(lan)
    }

    /// Takes a packet that has turned in `lan` to whom it is for, if anybody.
    pub fn descend(&mut self, now: u64, lan: LanId, packet: &mut Packet) -> Option<Endpoint> {
        let mut lan = lan;
        loop {
            if let Some(&endpoint) = self.lans[lan.0].endpoints.get(&packet.to) {
                return Some(endpoint);
            }
            let nat = (0..self.nats.len())
                .find(|&nat| self.outside[nat] == lan && self.nats[nat].outer == packet.to.ip())?;
            packet.to = self.nats[nat].inbound(now, packet.from, packet.to.port())?;
            if packet.ttl <= 1 {
                return None;
            }
            packet.ttl -= 1;
            lan = self.inside[nat];
        }
    }

    fn is_in(&self, lan: LanId, addr: Addr) -> bool {
        self.lans[lan.0].endpoints.contains_key(&addr)
            || (0..self.nats.len())
                .any(|nat| self.outside[nat] == lan && self.nats[nat].outer == addr.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nat::NatKind;

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    fn packet(from: &str, to: Addr, ttl: u8) -> Packet {
        Packet {
            from: addr(from),
            to,
            ttl,
            bytes: Vec::new(),
        }
    }

    fn nat(outer: &str, hairpin: bool) -> Nat {
        Nat::new(NatKind::PortRestricted, outer.parse().unwrap(), hairpin, 3)
    }

    #[test]
    fn out_and_back_through_two_nats() {
        let mut net = Net::new(4);
        let server = addr("198.51.100.1:3478");
        net.add_endpoint(PUBLIC, server, Endpoint::Server);
        let carrier = net.add_nat(PUBLIC, nat("203.0.113.1", false));
        let home = net.add_nat(carrier, nat("100.64.0.2", false));
        net.add_endpoint(home, addr("192.168.0.2:5000"), Endpoint::Host(0));
        let mut out = packet("192.168.0.2:5000", server, TTL);
        let lan = net.climb(0, home, &mut out);
        assert_eq!((lan, out.from), (Some(PUBLIC), addr("203.0.113.1:5000")));
        assert_eq!(net.descend(0, PUBLIC, &mut out), Some(Endpoint::Server));
        let mut back = packet("198.51.100.1:3478", out.from, TTL);
        assert_eq!(net.climb(0, PUBLIC, &mut back), Some(PUBLIC));
        assert_eq!(net.descend(0, PUBLIC, &mut back), Some(Endpoint::Host(0)));
        // An opener passes as many routers as its TTL says: two NATs, then the public ones.
        for (ttl, passes) in [(2, false), (3, false), (6, false), (7, true)] {
            let mut opener = packet("192.168.0.2:5000", addr("203.0.113.9:1"), ttl);
            assert_eq!(net.climb(0, home, &mut opener).is_some(), passes, "{ttl}");
        }
    }

    #[test]
    fn neighbours_meet_at_home_and_by_hairpin_only_where_there_is_one() {
        for hairpin in [false, true] {
            let mut net = Net::new(4);
            let home = net.add_nat(PUBLIC, nat("203.0.113.1", hairpin));
            for i in 0..2u16 {
                let inner = addr(&format!("192.168.0.{}:5000", i + 2));
                net.add_endpoint(home, inner, Endpoint::Host(usize::from(i)));
            }
            let mut local = packet("192.168.0.2:5000", addr("192.168.0.3:5000"), 1);
            let lan = net.climb(0, home, &mut local).expect("no router is passed");
            assert_eq!(net.descend(0, lan, &mut local), Some(Endpoint::Host(1)));
            let far = addr("198.51.100.1:9");
            let mut mapped = Vec::new();
            for from in ["192.168.0.2:5000", "192.168.0.3:5000"] {
                let mut out = packet(from, far, TTL);
                net.climb(0, home, &mut out);
                mapped.push(out.from);
            }
            let mut there = packet("192.168.0.2:5000", mapped[1], TTL);
            let mut back = packet("192.168.0.3:5000", mapped[0], TTL);
            net.climb(0, home, &mut there);
            let lan = net.climb(0, home, &mut back);
            assert_eq!(lan.is_some(), hairpin);
            let reached = lan.and_then(|lan| net.descend(0, lan, &mut back));
            assert_eq!(reached.is_some(), hairpin);
        }
    }
}
