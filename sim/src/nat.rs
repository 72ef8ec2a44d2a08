//! One NAT: which outer port an inner address gets towards a destination (RFC 4787 section 4), and who may answer
//! (section 5). Knows nothing of the packets' contents or of what lies beyond it.

use std::net::IpAddr;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use waypost_proto::addr::Addr;

/// A mapping that is idle for longer is forgotten (RFC 4787 REQ-5), milliseconds.
const MAPPING_MS: u64 = 120_000;
/// A stranger is remembered for so long, milliseconds.
const STRANGER_MS: u64 = 30_000;

/// How a NAT maps and filters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NatKind {
    /// One port for all destinations; anybody may answer.
    FullCone,
    /// One port for all destinations; hosts that were sent to may answer from any port.
    AddressRestricted,
    /// One port for all destinations; only addresses that were sent to may answer.
    PortRestricted,
    /// The next port in steps of two for each destination, which alone may answer.
    SymmetricSequential,
    /// A random port for each destination, which alone may answer.
    SymmetricRandom,
    /// One port for all destinations if possible; but an unasked packet takes the way to its sender for a while, so that
    /// what is sent there gets another port. A masquerading Linux host without a drop rule does that.
    RemembersStrangers,
}

impl NatKind {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::FullCone,
        Self::AddressRestricted,
        Self::PortRestricted,
        Self::RemembersStrangers,
        Self::SymmetricSequential,
        Self::SymmetricRandom,
    ];

    /// A few words for tables.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FullCone => "full cone",
            Self::AddressRestricted => "address-restricted",
            Self::PortRestricted => "port-restricted",
            Self::SymmetricSequential => "symmetric, sequential",
            Self::SymmetricRandom => "symmetric, random",
            Self::RemembersStrangers => "remembers strangers",
        }
    }

    const fn maps_per_destination(self) -> bool {
        matches!(
            self,
            Self::SymmetricSequential | Self::SymmetricRandom | Self::RemembersStrangers
        )
    }
}

#[derive(Clone, Debug)]
struct Mapping {
    inner: Addr,
    /// The only destination, if it maps per destination.
    remote: Option<Addr>,
    port: u16,
    sent_to: Vec<Addr>,
    used: u64,
}

/// A NAT.
#[derive(Debug)]
pub struct Nat {
    /// How it maps and filters.
    pub kind: NatKind,
    /// Its address on the outside.
    pub outer: IpAddr,
    /// Whether hosts behind it reach each other by outer addresses.
    pub hairpin: bool,
    mappings: Vec<Mapping>,
    strangers: Vec<(Addr, u16, u64)>,
    last_port: u16,
    keeps_ports: bool,
    rng: StdRng,
}

impl Nat {
    /// A NAT without mappings.
    #[must_use]
    pub fn new(kind: NatKind, outer: IpAddr, hairpin: bool, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        Self {
            kind,
            outer,
            hairpin,
            mappings: Vec::new(),
            strangers: Vec::new(),
            last_port: rng.random_range(20_000..50_000),
            keeps_ports: true,
            rng,
        }
    }

    /// Forgets everything, as after a power cut; ports are other ones afterwards.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.strangers.clear();
        self.keeps_ports = false;
        self.last_port = self.rng.random_range(20_000..50_000);
    }

    fn forget_old(&mut self, now: u64) {
        self.mappings
            .retain(|mapping| mapping.used + MAPPING_MS > now);
        self.strangers.retain(|(.., until)| *until > now);
    }

    /// The outer source of a packet from `inner` to `remote`.
    pub fn outbound(&mut self, now: u64, inner: Addr, remote: Addr) -> Addr {
        self.forget_old(now);
        let per_destination = self.kind.maps_per_destination();
        let found = self.mappings.iter().position(|mapping| {
            mapping.inner == inner && (!per_destination || mapping.remote == Some(remote))
        });
        let at = found.unwrap_or_else(|| {
            let port = self.new_port(inner, remote);
            self.mappings.push(Mapping {
                inner,
                remote: per_destination.then_some(remote),
                port,
                sent_to: Vec::new(),
                used: now,
            });
            self.mappings.len() - 1
        });
        let mapping = &mut self.mappings[at];
        mapping.used = now;
        if !mapping.sent_to.contains(&remote) {
            mapping.sent_to.push(remote);
        }
        Addr::from_ip_port(self.outer, mapping.port)
    }

    fn new_port(&mut self, inner: Addr, remote: Addr) -> u16 {
        match self.kind {
            NatKind::SymmetricSequential => loop {
                self.last_port = self.last_port.checked_add(2).unwrap_or(1024);
                if self.is_free(self.last_port, remote) {
                    return self.last_port;
                }
            },
            NatKind::SymmetricRandom => self.random_port(remote),
            NatKind::RemembersStrangers => {
                // The port of the other flows of this socket, unless the way to this destination is taken.
                let usual = self
                    .mappings
                    .iter()
                    .find(|mapping| mapping.inner == inner)
                    .map(|mapping| mapping.port);
                let wanted = usual.unwrap_or_else(|| {
                    if self.keeps_ports {
                        inner.port()
                    } else {
                        self.random_port(remote)
                    }
                });
                let others = self
                    .mappings
                    .iter()
                    .any(|mapping| mapping.port == wanted && mapping.inner != inner);
                if !others && self.is_free(wanted, remote) {
                    wanted
                } else {
                    self.random_port(remote)
                }
            }
            _ if self.keeps_ports && self.is_unused(inner.port()) => inner.port(),
            _ => self.random_port(remote),
        }
    }

    fn random_port(&mut self, remote: Addr) -> u16 {
        loop {
            let port = self.rng.random_range(1024..=u16::MAX);
            if self.is_unused(port) && self.is_free(port, remote) {
                return port;
            }
        }
    }

    fn is_unused(&self, port: u16) -> bool {
        self.mappings.iter().all(|mapping| mapping.port != port)
    }

    fn is_free(&self, port: u16, remote: Addr) -> bool {
        let taken = |mapping: &Mapping| mapping.port == port && mapping.remote == Some(remote);
        let stranger = |(from, at, _): &(Addr, u16, u64)| *from == remote && *at == port;
        !self.mappings.iter().any(taken) && !self.strangers.iter().any(stranger)
    }

    /// The inner address that a packet from `from` to the outer `port` goes to, if it may.
    pub fn inbound(&mut self, now: u64, from: Addr, port: u16) -> Option<Addr> {
        self.forget_old(now);
        let kind = self.kind;
        let found = self.mappings.iter_mut().find(|mapping| {
            mapping.port == port
                && match kind {
                    NatKind::FullCone => true,
                    NatKind::AddressRestricted => {
                        mapping.sent_to.iter().any(|to| to.ip() == from.ip())
                    }
                    NatKind::PortRestricted => mapping.sent_to.contains(&from),
                    _ => mapping.remote == Some(from),
                }
        });
        if let Some(mapping) = found {
            mapping.used = now;
            return Some(mapping.inner);
        }
        if kind == NatKind::RemembersStrangers {
            self.strangers
                .retain(|(stranger, at, _)| (*stranger, *at) != (from, port));
            self.strangers.push((from, port, now + STRANGER_MS));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> Addr {
        Addr::new(text.parse().unwrap())
    }

    fn nat(kind: NatKind) -> Nat {
        Nat::new(kind, "203.0.113.1".parse().unwrap(), false, 1)
    }

    #[test]
    fn mapping_and_filtering_by_kind() {
        let (inner, server) = (addr("10.0.0.2:5000"), addr("198.51.100.1:3478"));
        let (peer, other_port) = (addr("203.0.113.9:6000"), addr("203.0.113.9:6001"));
        let stranger = addr("203.0.113.77:1");
        for (kind, same_port, admits_other_port, admits_stranger) in [
            (NatKind::FullCone, true, true, true),
            (NatKind::AddressRestricted, true, true, false),
            (NatKind::PortRestricted, true, false, false),
            (NatKind::RemembersStrangers, true, false, false),
            (NatKind::SymmetricSequential, false, false, false),
            (NatKind::SymmetricRandom, false, false, false),
        ] {
            let mut nat = nat(kind);
            let seen = nat.outbound(0, inner, server);
            let to_peer = nat.outbound(0, inner, peer);
            assert_eq!(seen == to_peer, same_port, "{kind:?}");
            assert_eq!(nat.outbound(1, inner, peer), to_peer);
            assert_eq!(nat.inbound(1, peer, to_peer.port()), Some(inner));
            let admitted = nat.inbound(1, other_port, to_peer.port());
            assert_eq!(admitted.is_some(), admits_other_port, "{kind:?}");
            let admitted = nat.inbound(1, stranger, to_peer.port());
            assert_eq!(admitted.is_some(), admits_stranger, "{kind:?}");
            assert_eq!(nat.inbound(MAPPING_MS + 2, peer, to_peer.port()), None);
        }
    }

    #[test]
    fn a_stranger_takes_the_way_unless_the_way_was_there_first() {
        let (inner, server) = (addr("10.0.0.2:5000"), addr("198.51.100.1:3478"));
        let peer = addr("203.0.113.9:6000");
        let mut late = nat(NatKind::RemembersStrangers);
        let seen = late.outbound(0, inner, server);
        assert_eq!(late.inbound(1, peer, seen.port()), None);
        assert_ne!(late.outbound(2, inner, peer), seen);
        let mut early = nat(NatKind::RemembersStrangers);
        let seen = early.outbound(0, inner, server);
        assert_eq!(early.outbound(1, inner, peer), seen);
        assert_eq!(early.inbound(2, peer, seen.port()), Some(inner));
    }

    #[test]
    fn a_sequential_nat_steps() {
        let mut nat = nat(NatKind::SymmetricSequential);
        let inner = addr("10.0.0.2:5000");
        let ports: Vec<u16> = (1..5)
            .map(|i| {
                nat.outbound(0, inner, addr(&format!("192.0.2.{i}:9")))
                    .port()
            })
            .collect();
        assert!(ports.windows(2).all(|w| w[1] == w[0] + 2), "{ports:?}");
    }
}
