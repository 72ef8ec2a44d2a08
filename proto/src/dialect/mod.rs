//! Dialects: other systems' protocols, so that games made for them work unmodified.
//!
//! A front end translates datagrams into what its own server would have done, without I/O, clock or randomness of its own.
//! What all of them share is here once: capacity, quotas and byte budgets (`house`), relayed pairs of players (`relay`),
//! counters. All state of a dialect is on one shard, [`Dialect::shard`]: the datagrams of one session come from many
//! sources, which the kernel would spread over all of them.
//!
//! * `noray`: noray and netfox.
//! * `rabid`: Rabid Hole Punch.
//! * `simple`: simple-hole-punch.
//! * `godot_p2p`: GodotP2P.

mod godot_p2p;
mod house;
mod noray;
mod rabid;
mod relay;
mod simple;

use ahash::RandomState;
use rand::rngs::StdRng;

use self::godot_p2p::GodotP2p;
use self::house::House;
use self::noray::Noray;
pub use self::noray::{NameForm, NorayConfig, RelayRules, URL_SAFE};
use self::rabid::Rabid;
pub use self::relay::RelayMode;
use self::relay::Retry;
use self::simple::Simple;
use crate::addr::Addr;
use crate::forwarding::{ForwardingTable, SocketIndex};
use crate::lobby::{Outbox, TimerKey};
use crate::stats::{Counter, Counters};
use crate::time::Millis;
use crate::timer_wheel::TimerWheel;
use crate::turn::{RelayRefusal, TurnService};

/// A foreign protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Dialect {
    /// Rabid Hole Punch: text over UDP, sessions by name.
    Rabid,
    /// simple-hole-punch: text over UDP, sessions by an id that names the server.
    Simple,
    /// GodotP2P: tagged JSON over UDP, games by name.
    GodotP2p,
    /// noray: lines over TCP, players by random ids, relay ports.
    Noray,
}

/// What is counted of one dialect.
struct Tallies {
    requests: Counter,
    errors: Counter,
    sessions: Counter,
    packets: Counter,
    bytes: Counter,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Rabid, Self::Simple, Self::GodotP2p, Self::Noray];

    /// The name in options, metrics and the lines printed at start.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rabid => "rabid",
            Self::Simple => "simple",
            Self::GodotP2p => "godot-p2p",
            Self::Noray => "noray",
        }
    }

    /// The one of `count` shards that serves it.
    #[must_use]
    pub const fn shard(self, count: usize) -> usize {
        self as usize % count
    }

    const fn tallies(self) -> Tallies {
        match self {
            Self::Rabid => Tallies {
                requests: Counter::RabidRequests,
                errors: Counter::RabidErrors,
                sessions: Counter::RabidSessions,
                packets: Counter::RabidPackets,
                bytes: Counter::RabidBytes,
            },
            Self::Simple => Tallies {
                requests: Counter::SimpleRequests,
                errors: Counter::SimpleErrors,
                sessions: Counter::SimpleSessions,
                packets: Counter::SimplePackets,
                bytes: Counter::SimpleBytes,
            },
            Self::GodotP2p => Tallies {
                requests: Counter::GodotP2pRequests,
                errors: Counter::GodotP2pErrors,
                sessions: Counter::GodotP2pSessions,
                packets: Counter::GodotP2pPackets,
                bytes: Counter::GodotP2pBytes,
            },
            Self::Noray => Tallies {
                requests: Counter::NorayRequests,
                errors: Counter::NorayErrors,
                sessions: Counter::NoraySessions,
                packets: Counter::NorayPackets,
                bytes: Counter::NorayBytes,
            },
        }
    }

    /// What datagrams and bytes that are relayed for its players are counted as.
    pub(crate) const fn relayed(self) -> (Counter, Counter) {
        let tallies = self.tallies();
        (tallies.packets, tallies.bytes)
    }
}

/// Counts a small datagram of noray's players by its size, for the histogram that its own metrics have: its lowest bounds are 10
/// bytes and less, and everything else is beyond the highest.
#[inline]
pub(crate) fn count_small_of_noray(counters: &mut Counters, len: usize) {
    if len <= 10 {
        counters.count(match len {
            0 => Counter::NoraySmall0,
            1 => Counter::NoraySmall1,
            2 => Counter::NoraySmall2,
            3..=5 => Counter::NoraySmall5,
            _ => Counter::NoraySmall10,
        });
    }
}

/// Limits of all dialects of a shard together.
#[derive(Clone, Debug)]
pub struct DialectConfig {
    /// Most sessions, those of the lobby included.
    pub sessions_max: usize,
    /// Most players, members of the lobby's sessions included.
    pub players_max: usize,
    /// Most sessions of one source prefix; 0 is no limit. Loopback has none.
    pub sessions_per_source: u32,
    /// Bytes per second that one source prefix may draw by answers longer than what was asked, packet headers included;
    /// 0 is no limit. Loopback has none.
    pub bytes_per_sec: u32,
    /// Who is relayed.
    pub relay: RelayMode,
    /// Most pairs of players that are relayed.
    pub pairs_max: usize,
    /// The address that each listener of [`Dialect::Simple`] writes into ids: IPv4, the one that clients can reach.
    pub simple_public: Vec<(SocketIndex, Addr)>,
    /// How noray is served.
    pub noray: NorayConfig,
    /// How long sessions last.
    pub times: DialectTimes,
}

/// How long sessions of dialects last: what the games expect, unless a test has no time for it.
#[derive(Clone, Copy, Debug)]
pub struct DialectTimes {
    /// A session of rabid that is older ends at the next whole multiple of the next value, in milliseconds.
    pub rabid_session_ms: u64,
    /// Between two looks for such sessions, in milliseconds.
    pub rabid_sweep_ms: u64,
    /// A session of simple that its host has not shown for so long ends, in milliseconds.
    pub simple_session_ms: u64,
}

impl Default for DialectTimes {
    fn default() -> Self {
        Self {
            rabid_session_ms: 15 * 60_000,
            rabid_sweep_ms: 300_000,
            simple_session_ms: 20 * 60_000,
        }
    }
}

impl Default for DialectConfig {
    fn default() -> Self {
        Self {
            sessions_max: 65_536,
            players_max: 262_144,
            sessions_per_source: 64,
            bytes_per_sec: 8000,
            relay: RelayMode::Off,
            pairs_max: 2048,
            simple_public: Vec::new(),
            noray: NorayConfig::default(),
            times: DialectTimes::default(),
        }
    }
}

/// A timer of a dialect. The second number tells an old occupant of a slot from a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum DialectTimer {
    /// Silent players of a session are looked for.
    RabidSweep(u32, u32),
    /// A session has lived too long.
    RabidExpiry(u32, u32),
    /// The addresses are sent again.
    RabidStart(u32, u32),
    /// Those who were removed are told again.
    RabidFarewell,
    /// A session may not have been shown for too long.
    SimpleExpiry(u32, u32),
    /// Games may have expired.
    GodotTick,
    /// Relay ports of noray may be idle.
    NoraySweep,
    /// A relayed pair may be idle.
    Pair(u32, u32),
}

/// What a front end is lent for one call.
pub(crate) struct Desk<'a> {
    pub now: Millis,
    pub out: &'a mut Outbox,
    pub wheel: &'a mut TimerWheel<TimerKey>,
    pub rng: &'a mut StdRng,
    pub counters: &'a mut Counters,
    pub forwarding: &'a mut ForwardingTable,
    /// Who has the relay ports.
    pub ports: &'a mut TurnService,
    /// Sessions and members of the lobby.
    pub lobby: (usize, usize),
}

impl Desk<'_> {
    fn set_timer(&mut self, after_ms: u64, timer: DialectTimer) {
        self.wheel
            .schedule(self.now + after_ms, TimerKey::Dialect(timer));
    }
}

/// A datagram and where it came from.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The listener.
    pub socket: SocketIndex,
    /// The source, which nobody has proved.
    pub source: Addr,
    /// What it says.
    pub datagram: &'a [u8],
}

/// A player as a front end knows it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Seen {
    /// The listener that it spoke to; answers leave by it.
    socket: SocketIndex,
    /// Where it was seen.
    addr: Addr,
}

impl Asked<'_> {
    const fn seen(&self) -> Seen {
        Seen {
            socket: self.socket,
            addr: self.source,
        }
    }
}

/// All dialects of one shard.
pub(crate) struct Dialects {
    house: House,
    rabid: Rabid,
    simple: Simple,
    godot_p2p: GodotP2p,
    noray: Noray,
}

impl Dialects {
    /// The front ends of `served`; the others get no room. `seeds` key their hashes.
    pub fn new(
        config: DialectConfig,
        served: impl Fn(Dialect) -> bool,
        control: Option<SocketIndex>,
        seeds: [u64; 4],
    ) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        let room = |dialect| {
            if served(dialect) {
                config.sessions_max
            } else {
                0
            }
        };
        Self {
            rabid: Rabid::new(room(Dialect::Rabid), config.times, &hasher),
            simple: Simple::new(
                room(Dialect::Simple),
                &config.simple_public,
                config.times.simple_session_ms,
                &hasher,
            ),
            godot_p2p: GodotP2p::new(room(Dialect::GodotP2p), &hasher),
            noray: Noray::new(config.noray.clone(), control, room(Dialect::Noray), &hasher),
            house: House::new(config, hasher),
        }
    }

    /// Tells the routes what players may send.
    pub fn limit(&self, table: &mut ForwardingTable) {
        self.noray.limit(table);
    }

    /// Sessions of all dialects.
    pub const fn session_count(&self) -> usize {
        self.house.session_count()
    }

    /// Players that are kept.
    pub const fn player_count(&self) -> usize {
        self.house.player_count()
    }

    /// Pairs that are relayed, or will be when their ports are open.
    pub fn pair_count(&self) -> usize {
        self.house.relays.pair_count()
    }

    /// Makes no new sessions from now on.
    pub const fn drain(&mut self) {
        self.house.drain();
    }

    /// This shard has stood still: nobody is held to have been silent meanwhile.
    pub fn excuse_silence(&mut self, now: Millis, table: &mut ForwardingTable) {
        self.rabid.excuse_silence(now);
        self.godot_p2p.excuse_silence(now);
        table.excuse_player_ports(now);
    }

    /// Writes the gauges.
    pub fn count(&self, counters: &mut Counters) {
        for dialect in Dialect::ALL {
            let sessions = match dialect {
                Dialect::Rabid => self.rabid.session_count(),
                Dialect::Simple => self.simple.session_count(),
                Dialect::GodotP2p => self.godot_p2p.session_count(),
                Dialect::Noray => self.noray.session_count(),
            };
            counters.set(dialect.tallies().sessions, sessions);
        }
        counters.set(Counter::DialectPairs, self.pair_count());
        self.noray.count(counters);
    }

    /// Serves a datagram.
    ///
    /// # Errors
    /// Why it was dropped, to be counted.
    pub fn handle(
        &mut self,
        desk: &mut Desk<'_>,
        dialect: Dialect,
        asked: Asked<'_>,
    ) -> Result<(), Counter> {
        if asked.source.port() == 0 {
            return Err(Counter::DropSource);
        }
        match dialect {
            Dialect::Rabid => self.rabid.handle(&mut self.house, desk, asked)?,
            Dialect::Simple => self.simple.handle(&mut self.house, desk, asked)?,
            Dialect::GodotP2p => self.godot_p2p.handle(&mut self.house, desk, asked)?,
            // Several commands may come at once: it counts them itself.
            Dialect::Noray => return self.noray.handle(&mut self.house, desk, asked),
        }
        desk.counters.count(dialect.tallies().requests);
        Ok(())
    }

    /// Lets time pass for one timer.
    pub fn handle_timer(&mut self, desk: &mut Desk<'_>, timer: DialectTimer) {
        match timer {
            DialectTimer::RabidSweep(..)
            | DialectTimer::RabidExpiry(..)
            | DialectTimer::RabidStart(..)
            | DialectTimer::RabidFarewell => {
                self.rabid.handle_timer(&mut self.house, desk, timer);
            }
            DialectTimer::SimpleExpiry(index, uid) => {
                self.simple
                    .handle_timer(&mut self.house, desk, (index, uid));
            }
            DialectTimer::GodotTick => self.godot_p2p.handle_tick(&mut self.house, desk),
            DialectTimer::NoraySweep => self.noray.handle_sweep(desk),
            DialectTimer::Pair(index, uid) => self.house.relays.handle_timer(desk, index, uid),
        }
    }

    /// Whether a dialect asked for this relay socket to be opened.
    pub fn awaits(&self, socket: SocketIndex) -> bool {
        self.house.relays.awaits(socket) || self.noray.awaits(socket)
    }

    /// A connection was accepted.
    pub fn handle_stream_opened(&mut self, desk: &mut Desk<'_>, client: Addr) {
        self.noray.handle_stream_opened(desk, client);
    }

    /// A client closed its half of a connection.
    pub fn handle_stream_ended(&mut self, desk: &mut Desk<'_>, client: Addr) {
        self.noray
            .handle_stream_ended(&mut self.house, desk, client);
    }

    /// A connection is gone.
    pub fn handle_stream_closed(&mut self, client: Addr) {
        self.noray.handle_stream_closed(&mut self.house, client);
    }

    /// Whether a connection is to be kept although it is silent.
    pub fn serves(&self, now: Millis, client: Addr) -> bool {
        self.noray.serves(now, client)
    }

    /// A packet to a player's relay port from somebody who has none.
    ///
    /// # Errors
    /// Why it was dropped, to be counted.
    pub fn handle_stray(
        &mut self,
        desk: &mut Desk<'_>,
        target: SocketIndex,
        source: Addr,
        datagram: &[u8],
    ) -> Result<(), Counter> {
        self.noray.handle_stray(desk, target, source, datagram)
    }

    /// Takes in what became of a relay socket. What waited for it is served now.
    pub fn handle_opened(
        &mut self,
        desk: &mut Desk<'_>,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        if self.noray.awaits(socket) {
            self.noray.handle_opened(desk, socket, outcome);
            return;
        }
        let Some(retry) = self.house.relays.handle_opened(desk, socket, outcome) else {
            return;
        };
        let Retry {
            dialect,
            socket,
            source,
            datagram,
        } = retry;
        let asked = Asked {
            socket,
            source,
            datagram: &datagram,
        };
        if let Err(reason) = self.handle(desk, dialect, asked) {
            desk.counters.count(reason);
        }
    }

    /// Asserts that the tables agree with each other.
    pub fn assert_consistent(&self) {
        let sessions = self.rabid.assert_consistent()
            + self.simple.assert_consistent()
            + self.godot_p2p.assert_consistent()
            + self.noray.assert_consistent();
        self.house.assert_consistent(sessions);
    }
}
