//! Routes between players who have one relay port each: what a player sends to another's port leaves from the sender's own
//! port to the other's address. So each sees every other at one address, whoever they are and however many.
//!
//! Limits are the sender's: bytes in slices of time, for each port and for all together, bytes and time in a port's life.

use std::collections::HashMap;

use ahash::RandomState;

use super::{Forward, ForwardingTable, Framing, Route, Service, SocketIndex};
use crate::addr::Addr;
use crate::dialect::Dialect;
use crate::time::Millis;

/// What players may send.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PlayerLimits {
    /// Length of a slice.
    pub slice_ms: u64,
    /// Bytes that one player may send in a slice, whose first packet passes whatever its size.
    pub slice_bytes: u64,
    /// Bytes that all players may send in a slice.
    pub all_slice_bytes: u64,
    /// Age from which a port relays nothing more for its player.
    pub lifetime_ms: u64,
    /// Bytes that a player sends in a port's life stay below this.
    pub lifetime_bytes: u64,
}

/// Bytes in the present slice of time, which begins with a packet.
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    began: Option<Millis>,
    bytes: u64,
}

impl Slice {
    /// What the slice is after `len` more bytes; `None` if they are too many.
    fn after(self, now: Millis, len: u64, slice_ms: u64, budget: u64) -> Option<Self> {
        match self.began {
            Some(began) if now.since(began) < slice_ms => {
                let bytes = self.bytes + len;
                (bytes <= budget).then_some(Self { bytes, ..self })
            }
            _ => Some(Self {
                began: Some(now),
                bytes: len,
            }),
        }
    }
}

#[derive(Debug)]
struct PlayerPort {
    player: Addr,
    created: Millis,
    used: Millis,
    slice: Slice,
    bytes: u64,
}

/// Why nothing is relayed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum NotRelayed {
    /// The socket is no player's.
    NoPort,
    /// The sender has no port.
    NoSender,
    /// The sender has used up what it may send.
    Limit,
}

/// All ports of players, by the index of their sockets after the listeners.
#[derive(Debug, Default)]
pub(super) struct PlayerPorts {
    limits: PlayerLimits,
    ports: Vec<Option<Box<PlayerPort>>>,
    by_player: HashMap<Addr, SocketIndex, RandomState>,
    all: Slice,
}

impl PlayerPorts {
    pub fn new(hasher: RandomState) -> Self {
        Self {
            by_player: HashMap::with_hasher(hasher),
            ..Self::default()
        }
    }
}

impl ForwardingTable {
    fn port_place(&self, socket: SocketIndex) -> usize {
        usize::from(socket.0) - self.capacity.listeners
    }

    /// Sets what players may send.
    pub(crate) const fn limit_players(&mut self, limits: PlayerLimits) {
        self.player_ports.limits = limits;
    }

    /// Gives a player a port.
    pub(crate) fn add_player_port(&mut self, now: Millis, socket: SocketIndex, player: Addr) {
        let place = self.port_place(socket);
        let table = &mut self.player_ports;
        if table.ports.len() <= place {
            table.ports.resize_with(place + 1, || None);
        }
        debug_assert!(table.ports[place].is_none(), "a socket has one use");
        table.ports[place] = Some(Box::new(PlayerPort {
            player,
            created: now,
            used: now,
            slice: Slice::default(),
            bytes: 0,
        }));
        table.by_player.insert(player, socket);
    }

    /// Takes a port from its player.
    pub(crate) fn remove_player_port(&mut self, socket: SocketIndex) {
        let place = self.port_place(socket);
        if let Some(port) = self.player_ports.ports[place].take() {
            self.player_ports.by_player.remove(&port.player);
        }
    }

    /// When a port was last used by its player or for it.
    pub(crate) fn player_port_used(&self, socket: SocketIndex) -> Millis {
        let port = self.player_ports.ports.get(self.port_place(socket));
        let port = port.and_then(Option::as_ref);
        port.map(|port| port.used).unwrap_or_default()
    }

    /// Takes all ports for used just now.
    pub(crate) fn excuse_player_ports(&mut self, now: Millis) {
        let ports = self.player_ports.ports.iter_mut();
        ports.flatten().for_each(|port| port.used = now);
    }

    /// What came to a relay socket that may be a player's.
    ///
    /// # Errors
    /// [`NotRelayed`]; nobody is told.
    pub(crate) fn forward_between_players(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: Addr,
        payload_len: usize,
    ) -> Result<Forward, NotRelayed> {
        let place = self.port_place(socket);
        let table = &mut self.player_ports;
        let target = table.ports.get(place).and_then(Option::as_deref);
        let to = target.ok_or(NotRelayed::NoPort)?.player;
        let &egress = table.by_player.get(&source).ok_or(NotRelayed::NoSender)?;
        let limits = table.limits;
        let own_place = usize::from(egress.0) - self.capacity.listeners;
        let sender = table.ports[own_place].as_deref_mut();
        let sender = sender.ok_or(NotRelayed::NoSender)?;
        let len = payload_len as u64;
        let budgets = (limits.slice_bytes, limits.all_slice_bytes);
        let slice = sender.slice.after(now, len, limits.slice_ms, budgets.0);
        let all = table.all.after(now, len, limits.slice_ms, budgets.1);
        let (Some(slice), Some(all)) = (slice, all) else {
            return Err(NotRelayed::Limit);
        };
        let is_spent = sender.bytes + len >= limits.lifetime_bytes;
        if is_spent || now.since(sender.created) >= limits.lifetime_ms {
            return Err(NotRelayed::Limit);
        }
        sender.slice = slice;
        sender.bytes += len;
        sender.used = now;
        table.all = all;
        if let Some(target) = table.ports[place].as_deref_mut() {
            target.used = now;
        }
        Ok(Forward {
            route: Route { egress, to },
            strip: 0,
            payload_len,
            framing: Framing::Raw,
            dont_fragment: false,
            service: Service::Dialect(Dialect::Noray),
        })
    }
}
