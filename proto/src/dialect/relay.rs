//! The invisible relay: where a protocol hands out a peer's address, a relay port of this server is handed out instead that
//! leads to the peer. There is one port for each viewer and peer.
//!
//! A front end asks [`Relays::arrange`] what a pair of players is to be shown. If ports must be opened first, the request
//! that asked is kept and served again when they are, which is before the turn ends.

use std::collections::HashMap;

use ahash::RandomState;

use super::{Asked, Desk, Dialect, DialectTimer, Seen};
use crate::addr::{Addr, SourcePrefix};
use crate::forwarding::{SocketIndex, ViewEnd};
use crate::lobby::Slab;
use crate::shares::Shares;
use crate::stats::Counter;
use crate::time::Millis;
use crate::turn::RelayRefusal;
use crate::turn::peer_policy::Cidr;

/// A pair on which nothing was sent for so long is given up.
const IDLE_MS: u64 = 90_000;
/// Between two looks at a pair.
const LOOK_MS: u64 = 30_000;
/// Introductions of one pair that follow each other faster are repetitions of one.
const SAME_TRY_MS: u64 = 3_000;
/// A pair that is introduced again within this has failed. A stock client takes up to half a minute to find that out, and may
/// come back within a minute of it.
const COME_BACK_MS: u64 = 90_000;
/// Pairs whose last introduction is remembered.
const TRIES: usize = 8192;
/// Pairs that one source prefix may have a part in. Loopback has no limit.
const PAIRS_PER_PREFIX: u32 = 128;
/// Ports that are tried for one view.
const PORT_TRIES: u8 = 16;

/// Who is relayed.
#[derive(Clone, Debug, Default)]
pub enum RelayMode {
    /// Nobody.
    #[default]
    Off,
    /// Pairs with a client in one of these networks, and pairs that come back after a failed try.
    On(Vec<Cidr>),
    /// All pairs.
    Force,
}

/// What two players are shown in place of each other.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Shown {
    /// Their own addresses.
    Direct,
    /// To the first this address for the second, and to the second that one for the first.
    Relayed(Addr, Addr),
    /// Nothing yet: the request is served again by itself.
    Later,
}

/// A request to be served again.
#[derive(Debug)]
pub(super) struct Retry {
    pub dialect: Dialect,
    pub socket: SocketIndex,
    pub source: Addr,
    pub datagram: Box<[u8]>,
}

/// A view of a pair.
#[derive(Clone, Copy, Debug)]
struct End {
    viewer: Addr,
    socket: SocketIndex,
    port: u16,
    is_open: bool,
    tries_left: u8,
}

#[derive(Debug)]
struct Pair {
    uid: u32,
    dialect: Dialect,
    /// In the order of their viewers.
    ends: [End; 2],
    /// Ports that are being opened.
    opening: u8,
    /// A port could not be had: the pair is direct for a while.
    failed: bool,
    waiting: Option<Retry>,
    introduced: Millis,
}

impl Pair {
    const fn sockets(&self) -> [SocketIndex; 2] {
        [self.ends[0].socket, self.ends[1].socket]
    }
}

/// The last introduction of a pair.
#[derive(Clone, Copy, Debug, Default)]
struct Try {
    digest: u64,
    at: Millis,
    came_back: bool,
}

type Ends = (Dialect, Addr, Addr);

/// All pairs that are relayed.
pub(super) struct Relays {
    mode: RelayMode,
    hasher: RandomState,
    pairs: Slab<Pair>,
    by_ends: HashMap<Ends, u32, RandomState>,
    opening: HashMap<SocketIndex, u32, RandomState>,
    by_prefix: Shares<SourcePrefix>,
    tries: Box<[Try]>,
    next_uid: u32,
}

impl Relays {
    pub fn new(mode: RelayMode, pairs_max: usize, hasher: RandomState) -> Self {
        let (pairs_max, tries) = match mode {
            RelayMode::Off => (0, 0),
            RelayMode::On(_) => (pairs_max, TRIES),
            RelayMode::Force => (pairs_max, 0),
        };
        Self {
            mode,
            pairs: Slab::new(pairs_max),
            by_ends: HashMap::with_hasher(hasher.clone()),
            opening: HashMap::with_hasher(hasher.clone()),
            by_prefix: Shares::with_capacity(0, hasher.clone()),
            tries: vec![Try::default(); tries].into_boxed_slice(),
            next_uid: 0,
            hasher,
        }
    }

    pub fn pair_count(&self) -> usize {
        self.pairs.len()
    }

    pub fn awaits(&self, socket: SocketIndex) -> bool {
        self.opening.contains_key(&socket)
    }

    /// Decides what `a` and `b` are shown of each other.
    pub fn arrange(
        &mut self,
        desk: &mut Desk<'_>,
        dialect: Dialect,
        asked: Asked<'_>,
        (a, b): (Seen, Seen),
    ) -> Shown {
        if matches!(self.mode, RelayMode::Off) || a.addr == b.addr {
            return Shown::Direct;
        }
        let (first, second) = (a.addr.min(b.addr), a.addr.max(b.addr));
        let ends = (dialect, first, second);
        let wants = self.wants(desk.now, ends);
        let index = match self.by_ends.get(&ends) {
            Some(&index) => index,
            None if !wants => return Shown::Direct,
            None => match self.open(desk, ends) {
                Some(index) => index,
                None => {
                    desk.counters.count(Counter::DialectRelayRefusals);
                    return Shown::Direct;
                }
            },
        };
        let pair = &mut self.pairs[index];
        if pair.failed {
            return Shown::Direct;
        }
        if pair.opening > 0 {
            pair.waiting.get_or_insert_with(|| Retry {
                dialect,
                socket: asked.socket,
                source: asked.source,
                datagram: asked.datagram.into(),
            });
            return Shown::Later;
        }
        if desk.now.since(pair.introduced) >= SAME_TRY_MS {
            desk.forwarding.forget_sources(pair.sockets());
        }
        pair.introduced = desk.now;
        let Some(ip) = desk.ports.lent_ip() else {
            return Shown::Direct;
        };
        let view_of = |viewer: Addr| {
            let end = pair.ends.iter().find(|end| end.viewer == viewer);
            Addr::from_ip_port(ip, end.expect("both have one").port)
        };
        Shown::Relayed(view_of(a.addr), view_of(b.addr))
    }

    fn wants(&mut self, now: Millis, (dialect, a, b): Ends) -> bool {
        let networks = match &self.mode {
            RelayMode::Off => return false,
            RelayMode::Force => return true,
            RelayMode::On(networks) => networks,
        };
        if networks
            .iter()
            .any(|network| network.contains_ip(a.ip()) || network.contains_ip(b.ip()))
        {
            return true;
        }
        let ips = [a.ip().min(b.ip()), a.ip().max(b.ip())];
        let digest = self.hasher.hash_one((dialect, ips)).max(1);
        let tried = &mut self.tries[digest as usize % TRIES];
        let gap = now.since(tried.at);
        if tried.digest != digest || gap > COME_BACK_MS {
            *tried = Try {
                digest,
                at: now,
                came_back: false,
            };
        }
        tried.came_back |= gap >= SAME_TRY_MS && tried.at != now;
        tried.at = now;
        tried.came_back
    }

    /// Takes two ports for a pair and asks for them to be opened.
    fn open(&mut self, desk: &mut Desk<'_>, ends: Ends) -> Option<u32> {
        let (dialect, a, b) = ends;
        let prefixes = prefixes(a, b);
        let is_full = |addr: &Addr| {
            let count = self.by_prefix.of(&addr.source_prefix());
            !addr.ip().is_loopback() && count >= PAIRS_PER_PREFIX
        };
        if self.pairs.is_full() || [a, b].iter().any(is_full) {
            return None;
        }
        let spacing = spacing_of(dialect);
        let first = desk.ports.lend_spaced(desk.rng, spacing)?;
        let Some(second) = desk.ports.lend_spaced(desk.rng, spacing) else {
            desk.ports.forget_port(first.0, first.1);
            return None;
        };
        for (socket, port) in [first, second] {
            desk.ports.open_lent(desk.out, socket, port);
        }
        let end = |viewer, (socket, port)| End {
            viewer,
            socket,
            port,
            is_open: false,
            tries_left: PORT_TRIES,
        };
        self.next_uid = self.next_uid.wrapping_add(1);
        let uid = self.next_uid;
        let pair = Pair {
            uid,
            dialect,
            ends: [end(a, first), end(b, second)],
            opening: 2,
            failed: false,
            waiting: None,
            introduced: desk.now,
        };
        let sockets = pair.sockets();
        let index = self.pairs.insert(pair).expect("there was room");
        for socket in sockets {
            self.opening.insert(socket, index);
        }
        for prefix in prefixes.into_iter().flatten() {
            self.by_prefix.take(prefix);
        }
        self.by_ends.insert(ends, index);
        desk.set_timer(LOOK_MS, DialectTimer::Pair(index, uid));
        Some(index)
    }

    /// Takes in what became of a port; returns the request that can go on when both are there, or cannot be had.
    pub fn handle_opened(
        &mut self,
        desk: &mut Desk<'_>,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) -> Option<Retry> {
        let index = self.opening.remove(&socket)?;
        let pair = &mut self.pairs[index];
        let end = pair.ends.iter_mut().find(|end| end.socket == socket);
        let end = end.expect("a port is one of the pair's");
        match outcome {
            Ok(()) => end.is_open = true,
            Err(refusal) => {
                desk.counters.count(Counter::RelayOpenFailures);
                let may_help = refusal == RelayRefusal::InUse && end.tries_left > 0;
                let port = end.port;
                let another = if may_help {
                    desk.ports.lend_spaced(desk.rng, spacing_of(pair.dialect))
                } else {
                    None
                };
                // Afterwards, so that it is not the same one again.
                desk.ports.forget_port(socket, port);
                if let Some((socket, port)) = another {
                    end.socket = socket;
                    end.port = port;
                    end.tries_left -= 1;
                    desk.ports.open_lent(desk.out, socket, port);
                    self.opening.insert(socket, index);
                    return None;
                }
                if !std::mem::replace(&mut pair.failed, true) {
                    desk.counters.count(Counter::DialectRelayRefusals);
                }
            }
        }
        pair.opening -= 1;
        if pair.opening > 0 {
            return None;
        }
        if pair.failed {
            for end in &mut pair.ends {
                if std::mem::take(&mut end.is_open) {
                    desk.ports.take_back_port(desk.out, end.socket, end.port);
                }
            }
        } else {
            let ends = pair.ends.map(|end| ViewEnd {
                socket: end.socket,
                viewer: end.viewer.ip(),
            });
            let dialect = pair.dialect;
            desk.forwarding.add_port_pair(desk.now, dialect, ends);
        }
        pair.waiting.take()
    }

    /// Gives a pair up if it is idle.
    pub fn handle_timer(&mut self, desk: &mut Desk<'_>, index: u32, uid: u32) {
        let Some(pair) = self.pairs.get(index).filter(|pair| pair.uid == uid) else {
            return;
        };
        let used = if pair.failed {
            Millis(0)
        } else {
            let used = desk.forwarding.port_pair_used(pair.sockets());
            used.max(pair.introduced)
        };
        if pair.opening > 0 || (!pair.failed && desk.now.since(used) < IDLE_MS) {
            desk.set_timer(LOOK_MS, DialectTimer::Pair(index, uid));
            return;
        }
        let pair = self.pairs.remove(index);
        let [a, b] = pair.ends.map(|end| end.viewer);
        self.by_ends.remove(&(pair.dialect, a, b));
        for prefix in prefixes(a, b).into_iter().flatten() {
            self.by_prefix.give_back(&prefix);
        }
        if !pair.failed {
            desk.forwarding.remove_port_pair(pair.sockets());
            for end in pair.ends {
                desk.ports.take_back_port(desk.out, end.socket, end.port);
            }
        }
    }

    /// Asserts that the tables agree with each other.
    pub fn assert_consistent(&self) {
        assert_eq!(self.by_ends.len(), self.pairs.len());
        for (ends, &index) in &self.by_ends {
            let pair = &self.pairs[index];
            let viewers = pair.ends.map(|end| end.viewer);
            assert_eq!((pair.dialect, viewers[0], viewers[1]), *ends);
            let opening = pair.sockets().map(|socket| self.opening.get(&socket));
            let opening = opening.iter().filter(|&&of| of == Some(&index)).count();
            assert_eq!(opening, usize::from(pair.opening));
        }
        assert!(self.by_prefix.is_tight());
    }
}

/// How far apart the relay ports of a dialect are at least. Rabid's clients try the eight ports on either side of the one
/// they were told.
const fn spacing_of(dialect: Dialect) -> u16 {
    match dialect {
        Dialect::Rabid => 18,
        Dialect::Simple | Dialect::GodotP2p | Dialect::Noray => 1,
    }
}

/// The prefixes of two players, each once.
fn prefixes(a: Addr, b: Addr) -> [Option<SourcePrefix>; 2] {
    let (a, b) = (a.source_prefix(), b.source_prefix());
    [Some(a), (a != b).then_some(b)]
}
