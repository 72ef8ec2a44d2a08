//! The relay ports of noray: who has which, which are free, what waits until one is open, and which have lain idle. Their
//! packets are forwarded by the routes of [`crate::forwarding`], without this.
//!
//! A port is opened when a player first needs it. Ports are given out from the highest downwards, and the one that came back
//! last is given out next.

use std::collections::{HashMap, HashSet};

use ahash::RandomState;

use super::RelayRules;
use crate::addr::{Addr, SourcePrefix};
use crate::dialect::{Desk, Dialect, DialectTimer, count_small_of_noray};
use crate::forwarding::{PlayerLimits, SocketIndex};
use crate::shares::Shares;
use crate::stats::Counter;
use crate::turn::{RelayCommand, RelayRefusal};

/// Ports that are tried for one player.
const PORT_TRIES: u8 = 16;
/// Ports that players of one source prefix may have. Loopback has no limit.
const PORTS_PER_PREFIX: u32 = 128;
/// Packets that wait until a port is open for their sender.
const STRAYS_MAX: usize = 512;

/// A player's port.
#[derive(Debug)]
struct Port {
    player: Addr,
    number: u16,
    is_open: bool,
    tries_left: u8,
}

/// A packet of a sender whose port is being opened.
#[derive(Debug)]
struct Stray {
    target: SocketIndex,
    source: Addr,
    bytes: Box<[u8]>,
}

/// What becomes of a wish for a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wish {
    /// It is there.
    Open(u16),
    /// It will be told when it is there, or cannot be had.
    Later,
    /// There is none.
    Refused,
}

/// All relay ports.
pub(super) struct Relays {
    rules: RelayRules,
    /// The next one last.
    free: Vec<u16>,
    ports: HashMap<SocketIndex, Port, RandomState>,
    by_player: HashMap<Addr, SocketIndex, RandomState>,
    opening: HashSet<SocketIndex, RandomState>,
    by_prefix: Shares<SourcePrefix>,
    strays: Vec<Stray>,
    is_sweeping: bool,
}

impl Relays {
    pub fn new(mut rules: RelayRules, hasher: &RandomState) -> Self {
        let mut free = std::mem::take(&mut rules.ports);
        free.sort_unstable();
        free.dedup();
        Self {
            rules,
            free,
            ports: HashMap::with_hasher(hasher.clone()),
            by_player: HashMap::with_hasher(hasher.clone()),
            opening: HashSet::with_hasher(hasher.clone()),
            by_prefix: Shares::with_capacity(0, hasher.clone()),
            strays: Vec::new(),
            is_sweeping: false,
        }
    }

    /// What the routes are to be limited to.
    pub fn limits(&self) -> PlayerLimits {
        let rules = &self.rules;
        let slice_bytes = |per_sec: u64| per_sec.saturating_mul(rules.slice_ms) / 1000;
        PlayerLimits {
            slice_ms: rules.slice_ms,
            slice_bytes: slice_bytes(rules.bytes_per_sec),
            all_slice_bytes: slice_bytes(rules.all_bytes_per_sec),
            lifetime_ms: rules.lifetime_ms,
            lifetime_bytes: rules.lifetime_bytes,
        }
    }

    /// Ports that players have.
    pub fn count(&self) -> usize {
        self.ports.len()
    }

    /// Whether this relay socket is being opened for a player.
    pub fn awaits(&self, socket: SocketIndex) -> bool {
        self.opening.contains(&socket)
    }

    /// Whether any port is being opened.
    pub fn awaits_any(&self) -> bool {
        !self.opening.is_empty()
    }

    /// The port of a player. If there is none, one is opened.
    pub fn wish(&mut self, desk: &mut Desk<'_>, player: Addr) -> Wish {
        match self.have(player) {
            Wish::Refused => self.open(desk, player),
            had => had,
        }
    }

    /// The port of a player, if there is one or will be.
    pub fn have(&self, player: Addr) -> Wish {
        let Some(socket) = self.by_player.get(&player) else {
            return Wish::Refused;
        };
        match &self.ports[socket] {
            port if port.is_open => Wish::Open(port.number),
            _ => Wish::Later,
        }
    }

    fn open(&mut self, desk: &mut Desk<'_>, player: Addr) -> Wish {
        let prefix = player.source_prefix();
        if self.by_prefix.of(&prefix) >= PORTS_PER_PREFIX && !player.is_loopback() {
            return Wish::Refused;
        }
        let Some(number) = self.free.pop() else {
            return Wish::Refused;
        };
        let Some(socket) = desk.ports.lend_socket() else {
            self.free.push(number);
            return Wish::Refused;
        };
        self.by_prefix.take(prefix);
        self.by_player.insert(player, socket);
        self.opening.insert(socket);
        let at = Addr::from_ip_port(self.rules.ip, number);
        desk.out.relay.push(RelayCommand::Open {
            socket,
            at,
            is_wide: true,
        });
        let port = Port {
            player,
            number,
            is_open: false,
            tries_left: PORT_TRIES,
        };
        self.ports.insert(socket, port);
        if !std::mem::replace(&mut self.is_sweeping, true) {
            desk.set_timer(self.rules.sweep_ms, DialectTimer::NoraySweep);
        }
        Wish::Later
    }

    /// Takes in what became of a socket.
    pub fn handle_opened(
        &mut self,
        desk: &mut Desk<'_>,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        let port = self.ports.get_mut(&socket);
        let port = port.expect("a socket is opened for a port that is kept");
        let player = port.player;
        if let Err(refusal) = outcome {
            desk.counters.count(Counter::RelayOpenFailures);
            let may_help = refusal == RelayRefusal::InUse && port.tries_left > 0;
            let next = if may_help { self.free.pop() } else { None };
            // A stranger's port is tried again after all others.
            let number = std::mem::replace(&mut port.number, next.unwrap_or(0));
            match refusal {
                RelayRefusal::InUse => self.free.insert(0, number),
                _ => self.free.push(number),
            }
            if let Some(number) = next {
                port.tries_left -= 1;
                let at = Addr::from_ip_port(self.rules.ip, number);
                desk.out.relay.push(RelayCommand::Open {
                    socket,
                    at,
                    is_wide: true,
                });
                return;
            }
            self.opening.remove(&socket);
            self.ports.remove(&socket);
            self.forget(player);
            desk.ports.return_socket(socket);
        } else {
            port.is_open = true;
            self.opening.remove(&socket);
            desk.forwarding.add_player_port(desk.now, socket, player);
        }
        self.flush_strays(desk, player);
    }

    fn forget(&mut self, player: Addr) {
        self.by_player.remove(&player);
        self.by_prefix.give_back(&player.source_prefix());
    }

    /// A packet to a player's port from a sender who has none. He gets one, and the packet leaves when it is open.
    pub fn handle_stray(
        &mut self,
        desk: &mut Desk<'_>,
        target: SocketIndex,
        source: Addr,
        datagram: &[u8],
    ) -> Result<(), Counter> {
        if source.port() == 0 {
            return Err(Counter::DropSource);
        }
        if self.strays.len() >= STRAYS_MAX || self.wish(desk, source) != Wish::Later {
            return Err(Counter::DropCapacity);
        }
        self.strays.push(Stray {
            target,
            source,
            bytes: datagram.into(),
        });
        Ok(())
    }

    /// Sends what waited for this sender's port, in order.
    fn flush_strays(&mut self, desk: &mut Desk<'_>, source: Addr) {
        let is_mine = |stray: &mut Stray| stray.source == source;
        for stray in self.strays.extract_if(.., is_mine) {
            let len = stray.bytes.len();
            let table = &mut *desk.forwarding;
            match table.forward_between_players(desk.now, stray.target, source, len) {
                Ok(forward) => {
                    count_small_of_noray(desk.counters, len);
                    let (packets, bytes) = Dialect::Noray.relayed();
                    desk.counters.count(packets);
                    desk.counters.add(bytes, len as u64);
                    let start = desk.out.bytes.len();
                    desk.out.bytes.extend_from_slice(&stray.bytes);
                    let route = forward.route;
                    desk.out.transmit(route.egress, route.to, start);
                }
                Err(_) => {
                    desk.counters.count(Counter::NorayRelayDrops);
                    desk.counters.count(Counter::DropLimit);
                }
            }
        }
    }

    /// Closes ports that have lain idle.
    pub fn sweep(&mut self, desk: &mut Desk<'_>) {
        let (now, idle_ms) = (desk.now, self.rules.idle_ms);
        let forwarding = &mut *desk.forwarding;
        let mut idle: Vec<_> = self
            .ports
            .iter()
            .filter(|(socket, port)| {
                port.is_open && now.since(forwarding.player_port_used(**socket)) > idle_ms
            })
            .map(|(&socket, port)| (port.number, socket))
            .collect();
        // So that the highest is given out first again.
        idle.sort_unstable_by_key(|&(number, _)| number);
        for (number, socket) in idle {
            forwarding.remove_player_port(socket);
            desk.out.relay.push(RelayCommand::Close { socket });
            desk.ports.return_socket(socket);
            if let Some(port) = self.ports.remove(&socket) {
                self.forget(port.player);
            }
            self.free.push(number);
            desk.counters.count(Counter::NorayRelaysExpired);
        }
        self.is_sweeping = !self.ports.is_empty();
        if self.is_sweeping {
            desk.set_timer(self.rules.sweep_ms, DialectTimer::NoraySweep);
        }
    }

    /// Asserts that the tables agree with each other.
    pub fn assert_consistent(&self) {
        assert_eq!(self.by_player.len(), self.ports.len());
        for (socket, port) in &self.ports {
            assert_eq!(self.by_player[&port.player], *socket);
            assert_eq!(port.is_open, !self.opening.contains(socket));
            assert!(!self.free.contains(&port.number));
        }
        assert_eq!(self.by_prefix.total() as usize, self.ports.len());
        let waits = |stray: &Stray| self.have(stray.source) == Wish::Later;
        assert!(self.strays.iter().all(waits));
    }
}
