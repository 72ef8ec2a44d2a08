//! The rules, held from outside: by what is on the wire and in the players' hands, not by what the code under test thinks.

use std::collections::{HashMap, HashSet};

use waypost_proto::addr::Addr;
use waypost_proto::agent::{BUDGET_PER_ADDRESS, Path};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::native::SeatHandle;

use crate::Violation;
use crate::nat::{Nat, NatKind};
use crate::net::{LanId, Net};

const MAGIC: &[u8; 4] = b"sim!";
/// The budget of an address is renewed at most so often, milliseconds.
const RENEWAL_MS: u64 = 10_000;

/// One datagram of the application.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Datagram {
    /// Number of the sending host.
    pub from: u8,
    /// The seat it is for.
    pub to: SeatHandle,
    /// Counted by the sender.
    pub sequence: u32,
}

impl Datagram {
    /// Bytes that carry it.
    #[must_use]
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(self.from);
        bytes.extend_from_slice(&self.to.to_bytes());
        bytes.extend_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    /// Reads those.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(MAGIC)?;
        Some(Self {
            from: *rest.first()?,
            to: SeatHandle::from_bytes(rest.get(1..9)?)?,
            sequence: u32::from_be_bytes(rest.get(9..13)?.try_into().ok()?),
        })
    }

    /// The one in a frame on the wire.
    #[must_use]
    pub fn in_frame(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(channel_data::parse(bytes)?.data)
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Fate {
    copies_by_network: u32,
    delivered: u32,
}

/// What has been seen.
#[derive(Clone, Debug, Default)]
pub struct Checker {
    fates: HashMap<Datagram, Fate>,
    /// Addresses that the server has heard from.
    known_to_server: HashSet<Addr>,
    /// Packets sent to addresses that have never answered: by host and address, with the time of the first.
    unproven: HashMap<(usize, Addr), (u64, u32)>,
    proven: HashSet<(usize, Addr)>,
    /// Datagrams delivered.
    pub delivered: u64,
    /// Of those, directly.
    pub delivered_directly: u64,
}

impl Checker {
    /// The application of a host has sent this.
    pub fn sent(&mut self, datagram: Datagram) {
        self.fates.insert(datagram, Fate::default());
    }

    /// The network has made a copy of a packet.
    pub fn copied(&mut self, bytes: &[u8]) {
        if let Some(fate) =
            Datagram::in_frame(bytes).and_then(|datagram| self.fates.get_mut(&datagram))
        {
            fate.copies_by_network += 1;
        }
    }

    /// A packet has reached the server.
    pub fn server_heard(&mut self, from: Addr) {
        self.known_to_server.insert(from);
    }

    /// The server sends.
    ///
    /// # Errors
    /// To an address that has never sent it anything.
    pub fn server_sends(&self, to: Addr) -> Result<(), Violation> {
        if self.known_to_server.contains(&to) {
            Ok(())
        } else {
            Err(Violation(format!(
                "the server sends to {to}, which it has never heard from"
            )))
        }
    }

    /// A host sends a packet of the agent's own to somebody who is not the server.
    ///
    /// # Errors
    /// More than the budget to somebody who has never answered.
    pub fn host_sends(
        &mut self,
        now: u64,
        host: usize,
        peers: usize,
        to: Addr,
    ) -> Result<(), Violation> {
        if self.proven.contains(&(host, to)) {
            return Ok(());
        }
        let (since, count) = self.unproven.entry((host, to)).or_insert((now, 0));
        *count += 1;
        // Several peers behind one NAT may have the address in common.
        let budgets = (1 + (now - *since) / RENEWAL_MS) * peers as u64;
        if u64::from(*count) > u64::from(BUDGET_PER_ADDRESS) * budgets {
            return Err(Violation(format!(
                "host {host} has sent {count} packets in {} ms to {to}, which has never answered",
                now - *since
            )));
        }
        Ok(())
    }

    /// A host has got a packet.
    pub fn host_heard(&mut self, host: usize, from: Addr) {
        self.proven.insert((host, from));
    }

    /// Data have been delivered to the application of the host in seat `own`.
    ///
    /// # Errors
    /// They were for somebody else, or came more often than sent.
    pub fn delivered(
        &mut self,
        host: usize,
        own: SeatHandle,
        direct: bool,
        data: &[u8],
    ) -> Result<Datagram, Violation> {
        let datagram = Datagram::from_bytes(data)
            .ok_or_else(|| Violation(format!("host {host} was delivered what nobody sent")))?;
        if datagram.to != own {
            return Err(Violation(format!(
                "host {host} in {own:?} was delivered {datagram:?}"
            )));
        }
        let fate = self
            .fates
            .get_mut(&datagram)
            .ok_or_else(|| Violation(format!("{datagram:?} was delivered and never sent")))?;
        fate.delivered += 1;
        if fate.delivered > 1 + fate.copies_by_network {
            return Err(Violation(format!("{datagram:?} was doubled: {fate:?}")));
        }
        self.delivered += 1;
        self.delivered_directly += u64::from(direct);
        Ok(datagram)
    }
}

/// A host sends to where somebody is whose addresses are nobody's business.
///
/// # Errors
/// Always; for use where it happened.
pub fn leaked(host: usize, to: Addr) -> Result<(), Violation> {
    Err(Violation(format!(
        "host {host} sends to {to}, the address of a relay-only member"
    )))
}

/// What NAT theory says about a pair that uses this method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected {
    /// They reach each other directly.
    Direct,
    /// They cannot.
    Relayed,
    /// It depends on luck: on ports guessed right, on who was first.
    Either,
}

impl Expected {
    /// Whether a path is as expected.
    #[must_use]
    pub fn allows(self, path: Option<Path>) -> bool {
        match self {
            Self::Direct => path == Some(Path::Direct),
            Self::Relayed => path == Some(Path::Relayed),
            Self::Either => matches!(path, Some(Path::Direct | Path::Relayed)),
        }
    }
}

/// What is expected of hosts in these two networks.
#[must_use]
pub fn expected(net: &Net, a: LanId, b: LanId) -> Expected {
    if a == b {
        return Expected::Direct; // By local addresses, or without any NAT.
    }
    let above_a = net.lans_above(a);
    let above_b = net.lans_above(b);
    let meet = above_a
        .iter()
        .find(|lan| above_b.contains(lan))
        .copied()
        .unwrap_or(crate::net::PUBLIC);
    if meet != crate::net::PUBLIC {
        // Behind the same carrier's NAT. Only its hairpin leads from one home to the other, and whether that can be told
        // from the outside depends on both filters.
        let hairpin = net.nats_above(meet).iter().all(|nat| nat.hairpin);
        return if hairpin {
            Expected::Either
        } else {
            Expected::Relayed
        };
    }
    // From the outside, NATs in a row filter like the strictest of them and map like the wildest.
    strictest(net, a, b)
}

fn strictest(net: &Net, a: LanId, b: LanId) -> Expected {
    use NatKind::{
        AddressRestricted, FullCone, PortRestricted, RemembersStrangers, SymmetricRandom,
        SymmetricSequential,
    };
    let rank = |nat: &&Nat| match nat.kind {
        FullCone => 0,
        AddressRestricted => 1,
        PortRestricted => 2,
        RemembersStrangers => 3,
        SymmetricSequential => 4,
        SymmetricRandom => 5,
    };
    let worst = |lan| {
        let nats = net.nats_above(lan);
        let count = nats.len();
        let symmetric = |nat: &&&Nat| rank(nat) >= 4;
        // The ports that the world sees are those of the outermost NAT that chooses them anew for each destination.
        let visible = nats.iter().rev().find(symmetric).copied();
        let strictest = nats.iter().copied().max_by_key(rank);
        (visible.or(strictest).map(|nat| nat.kind), count)
    };
    let ((a, a_nats), (b, b_nats)) = (worst(a), worst(b));
    // Openers must die between the two: beyond the own NATs, before the peer's.
    let openers_work =
        |own_nats: usize| own_nats < 5 && usize::from(net.public_hops) + own_nats > 5;
    match (a, b) {
        (Some(SymmetricRandom), Some(PortRestricted | RemembersStrangers | SymmetricRandom))
        | (Some(PortRestricted | RemembersStrangers), Some(SymmetricRandom)) => Expected::Relayed,
        (
            Some(SymmetricSequential | RemembersStrangers),
            Some(SymmetricSequential | SymmetricRandom),
        )
        | (Some(SymmetricRandom | PortRestricted), Some(SymmetricSequential))
        | (Some(SymmetricSequential), Some(PortRestricted | RemembersStrangers)) => {
            Expected::Either
        }
        (Some(RemembersStrangers), _) | (_, Some(RemembersStrangers))
            if !openers_work(a_nats) || !openers_work(b_nats) =>
        {
            Expected::Either
        }
        _ => Expected::Direct,
    }
}
