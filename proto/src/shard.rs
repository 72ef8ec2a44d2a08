//! One shard's whole state. Datagrams, mail and time come in; routes, replies and mail come out.
//!
//! Call [`Shard::handle_datagram`] for each datagram and [`Shard::handle_mail`] for each message of another shard, then
//! [`Shard::handle_timeout`] once, all with the same `now`; then take what [`Shard::outbox`] holds and
//! [`Outbox::clear`] it; then wait until [`Shard::poll_timeout`]. A datagram whose verdict is [`Verdict::Forward`] is sent on by the
//! caller, who still holds its bytes.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use self::binding::BindingService;
use crate::addr::{Addr, ClientAddr};
use crate::dialect::{Dialect, DialectConfig, Dialects, count_small_of_noray};
use crate::forwarding::hairpin::HairpinPlan;
use crate::forwarding::{
    Forward, ForwardingCapacity, ForwardingTable, NotForwarded, NotRelayed, Service, SocketIndex,
};
use crate::lobby::{Lobby, LobbyConfig, Outbox, StreamSerial, TimerKey, Turn};
use crate::nonce::{NonceKeys, ServerSecret};
use crate::stats::{Counter, Counters};
use crate::ticket::Sealer;
use crate::time::{Millis, WallClock};
use crate::timer_wheel::TimerWheel;
use crate::turn::reservation::Seal;
use crate::turn::{IcmpError, RelayRefusal, Step, TurnConfig, TurnService};
use crate::wire::native;
use crate::wire::stun::{self, Class, Message};
use crate::wire::{self, Kind};

use self::streams::OpenStreams;

mod binding;
mod credential;
mod foreign;
mod guest;
mod inspection;
mod owner;

pub use binding::DiscoveryGroup;
pub use credential::{RendezvousAccess, time_limited_password};
pub use inspection::Inspection;
pub use owner::Placement;

/// A timer that is so late means that this shard stood still, milliseconds.
const STANDSTILL_MS: u64 = 2_000;

/// What a socket is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SocketRole {
    /// The main port: STUN, TURN, rendezvous, relay.
    Main,
    /// The second vantage port: Binding only.
    Probe,
    /// Accepts the streams of one shard, which serve all that the main port serves. Each has the number of its listener, so
    /// that every shard knows whose a stream is.
    Stream {
        /// The shard.
        shard: u16,
        /// Whether its clients speak TLS.
        is_tls: bool,
    },
    /// Another system's protocol, on the one shard that [`Dialect::shard`] says; the other shards have no such socket.
    Dialect(Dialect),
    /// Accepts the streams of another system's protocol, on that shard too.
    DialectStream {
        /// Which.
        dialect: Dialect,
        /// The shard.
        shard: u16,
    },
}

impl SocketRole {
    /// Whether everything is served there.
    const fn is_full(self) -> bool {
        matches!(self, Self::Main | Self::Stream { .. })
    }
}

/// What a shard is made with.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Which shard this is.
    pub index: u16,
    /// How many there are, at most 128.
    pub count: u16,
    /// The role of each listener by its index; the same on every shard. Relay sockets get the indexes behind them.
    pub sockets: Vec<SocketRole>,
    /// Listeners by which clients discover how their NATs behave, if there are two addresses: at most one group per family.
    pub discovery: Vec<DiscoveryGroup>,
    /// Limits and times of the lobby.
    pub lobby: LobbyConfig,
    /// Limits and credentials of TURN.
    pub turn: TurnConfig,
    /// Limits of dialects.
    pub dialects: DialectConfig,
    /// Who may host, join, match and list.
    pub access: RendezvousAccess,
    /// The server's secret; the same on every shard.
    pub secret: ServerSecret,
    /// Unix time at `Millis(0)`.
    pub wall: WallClock,
    /// Seed of everything random in this shard: from the system's generator in production.
    pub seed: [u8; 32],
    /// The key of the hash that finds the owner of a name: the same on every shard.
    pub placement_seeds: [u64; 2],
}

/// What is to become of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Send it on.
    Forward(Forward),
    /// It was consumed; answers, if any, are in the outbox.
    Handled,
    /// Nothing; the reason was counted.
    Drop(Counter),
}

/// Whether data of clients of such a socket goes to each other directly. Both ends must be reached by one datagram.
const fn may_compose(role: SocketRole) -> bool {
    matches!(role, SocketRole::Main)
}

/// Whether the clients of such a socket speak TLS.
const fn speaks_tls(role: SocketRole) -> bool {
    matches!(role, SocketRole::Stream { is_tls: true, .. })
}

/// How a Send indication begins (RFC 8656 section 17).
const SEND_INDICATION: [u8; 2] = [0x00, 0x16];

/// One shard.
pub struct Shard {
    index: u16,
    /// The shard that got what is being served: this one, unless it came by mail.
    home: u16,
    /// The stream by which that came, if it is a request that may move an allocation.
    by_stream: Option<StreamSerial>,
    count: u16,
    sockets: Vec<SocketRole>,
    streams: OpenStreams,
    access: RendezvousAccess,
    wall: WallClock,
    nonces: NonceKeys,
    sealer: Sealer,
    placement: Placement,
    forwarding: ForwardingTable,
    binding: BindingService,
    lobby: Lobby,
    turn: TurnService,
    software: Option<&'static str>,
    dialects: Dialects,
    wheel: TimerWheel<TimerKey>,
    rng: StdRng,
    counters: Counters,
    outbox: Outbox,
    fired: Vec<TimerKey>,
    draining: bool,
}

/// Lends the lobby everything of the shard that it needs.
macro_rules! turn {
    ($shard:ident, $now:expr) => {
        &mut Turn {
            now: $now,
            wall: $shard.wall,
            out: &mut $shard.outbox,
            wheel: &mut $shard.wheel,
            rng: &mut $shard.rng,
            counters: &mut $shard.counters,
            sealer: &$shard.sealer,
        }
    };
}

/// Lends the TURN side everything of the shard that it needs.
macro_rules! step {
    ($shard:ident, $now:expr) => {
        &mut Step {
            now: $now,
            unix_secs: $shard.wall.unix_secs($now),
            out: &mut $shard.outbox,
            wheel: &mut $shard.wheel,
            rng: &mut $shard.rng,
            counters: &mut $shard.counters,
            forwarding: &mut $shard.forwarding,
            nonces: &mut $shard.nonces,
            sealer: &$shard.sealer,
            software: $shard.software,
            home: $shard.home,
            by_stream: $shard.by_stream,
        }
    };
}

mod mail;
mod requests;
mod streams;

impl Shard {
    /// A shard without sessions.
    #[must_use]
    pub fn new(config: ShardConfig, now: Millis) -> Self {
        assert!(
            config.index < config.count && config.count <= 128,
            "shards are numbered below their count, of which there are at most 128"
        );
        let mut rng = StdRng::from_seed(config.seed);
        let mut seeds = || std::array::from_fn(|_| rng.random());
        let capacity = ForwardingCapacity {
            flows: config.lobby.members_max,
            relays: config.turn.allocations_max,
            listeners: config.sockets.len(),
        };
        let mut forwarding =
            ForwardingTable::new(capacity, config.lobby.limits, config.turn.limits, seeds());
        forwarding.plan_hairpins(HairpinPlan {
            relay_ips: config.turn.relay_ips.clone(),
            relay_ports: config.turn.relay_ports.clone(),
            shard: config.index,
            shards: config.count,
            composable: config.sockets.iter().copied().map(may_compose).collect(),
        });
        let lobby = Lobby::new(config.lobby, config.index, config.count, seeds());
        // A stream of its own, so that what the lobby draws does not depend on TURN.
        let mut turn_rng = StdRng::from_seed(config.seed.map(|byte| !byte));
        let binding = BindingService::new(
            &config.discovery,
            config.sockets.len(),
            config.turn.unproven_bytes_per_sec,
            config.turn.software,
            std::array::from_fn(|_| turn_rng.random()),
        );
        let software = config.turn.software;
        let turn = TurnService::new(
            config.turn,
            config.index,
            config.count,
            config.sockets.iter().copied().map(speaks_tls).collect(),
            std::array::from_fn(|_| turn_rng.random()),
            Seal::new(config.placement_seeds, config.index, config.count),
        );
        let dialects = Dialects::new(
            config.dialects,
            |dialect| config.sockets.contains(&SocketRole::Dialect(dialect)),
            config
                .sockets
                .iter()
                .position(|role| matches!(role, SocketRole::DialectStream { .. }))
                .and_then(|index| u16::try_from(index).ok())
                .map(SocketIndex),
            std::array::from_fn(|_| turn_rng.random()),
        );
        dialects.limit(&mut forwarding);
        Self {
            dialects,
            index: config.index,
            home: config.index,
            by_stream: None,
            count: config.count,
            streams: OpenStreams::new(std::array::from_fn(|_| turn_rng.random())),
            sockets: config.sockets,
            access: config.access,
            wall: config.wall,
            nonces: NonceKeys::new(config.secret.clone()),
            sealer: Sealer::new(config.secret),
            placement: Placement::new(config.placement_seeds, config.count),
            forwarding,
            binding,
            lobby,
            turn,
            software,
            wheel: TimerWheel::new(now),
            rng,
            counters: Counters::default(),
            outbox: Outbox::default(),
            fired: Vec::new(),
            draining: false,
        }
    }

    /// What was counted so far.
    pub fn counters(&mut self) -> &Counters {
        self.counters.set(Counter::Sessions, self.session_count());
        self.counters.set(Counter::Members, self.member_count());
        self.dialects.count(&mut self.counters);
        self.counters.set(Counter::Flows, self.forwarding.len());
        self.counters
            .set(Counter::Allocations, self.turn.allocation_count());
        &self.counters
    }

    /// How often one thing was counted so far; of gauges as they were when all were last asked for.
    #[must_use]
    pub const fn counted(&self, counter: Counter) -> u64 {
        self.counters.get(counter)
    }

    /// What is to be sent. The caller clears it when it has.
    pub const fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    /// Decides about one datagram.
    pub fn handle_datagram(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> Verdict {
        let Some(&role) = self.sockets.get(usize::from(socket.0)) else {
            let len = datagram.len();
            let table = &mut self.forwarding;
            let forwarded = match table.forward_from_peer(now, socket, source.0, len) {
                Err(NotForwarded::NoRoute) => {
                    match table.forward_between_players(now, socket, source.0, len) {
                        Ok(forward) => {
                            count_small_of_noray(&mut self.counters, len);
                            Ok(forward)
                        }
                        Err(NotRelayed::NoPort) => {
                            table.forward_between_ports(now, socket, source.0, len)
                        }
                        Err(refusal) => {
                            return self.handle_stray(now, socket, source, datagram, refusal);
                        }
                    }
                }
                of_turn => of_turn,
            };
            return self.relay(forwarded.map_err(NotForwarded::counter));
        };
        if let SocketRole::Dialect(dialect) | SocketRole::DialectStream { dialect, .. } = role {
            return self.handle_foreign(now, dialect, socket, source, datagram);
        }
        match (wire::kind(datagram), role) {
            (Kind::ChannelData, role) if role.is_full() => {
                let forwarded = self.forwarding.forward(now, socket, source, datagram);
                let forwarded = forwarded.map_err(NotForwarded::counter);
                self.relay_or_pass_on(forwarded, socket, source, datagram)
            }
            (Kind::Other, role) if role.is_full() && self.turn.serves_rfc5766() => {
                let table = &mut self.forwarding;
                let forwarded = table.forward_rfc5766(now, socket, source, datagram);
                let forwarded = forwarded.map_err(NotForwarded::counter);
                self.relay_or_pass_on(forwarded, socket, source, datagram)
            }
            (Kind::Stun, role) if role.is_full() && datagram.starts_with(&SEND_INDICATION) => {
                let forwarded = Message::parse(datagram)
                    .map_err(|_| Counter::DropParse)
                    .and_then(|message| {
                        let table = &mut self.forwarding;
                        self.turn.handle_send(now, table, socket, source, &message)
                    });
                self.relay_or_pass_on(forwarded, socket, source, datagram)
            }
            (Kind::Stun, _) => match self.handle_stun(now, socket, source, role, datagram) {
                Ok(()) => Verdict::Handled,
                Err(reason) => self.drop(reason),
            },
            _ => self.drop(Counter::DropParse),
        }
    }

    fn drop(&mut self, reason: Counter) -> Verdict {
        self.counters.count(reason);
        Verdict::Drop(reason)
    }

    fn relay(&mut self, forwarded: Result<Forward, Counter>) -> Verdict {
        match forwarded {
            Ok(forward) => {
                let (packets, bytes) = match forward.service {
                    Service::Session => (Counter::RelayedPackets, Counter::RelayedBytes),
                    Service::Turn | Service::Hairpin => (Counter::TurnPackets, Counter::TurnBytes),
                    Service::Dialect(dialect) => dialect.relayed(),
                };
                if forward.service == Service::Hairpin {
                    self.counters.count(Counter::HairpinPackets);
                }
                self.counters.count(packets);
                self.counters.add(bytes, forward.payload_len as u64);
                Verdict::Forward(forward)
            }
            Err(reason) => self.drop(reason),
        }
    }

    /// Relays, unless the sender is a TURN client whose allocation another shard has.
    fn relay_or_pass_on(
        &mut self,
        forwarded: Result<Forward, Counter>,
        socket: SocketIndex,
        source: ClientAddr,
        datagram: &[u8],
    ) -> Verdict {
        match forwarded {
            Err(Counter::DropNoFlow) if self.pass_on(socket, source, datagram) => Verdict::Handled,
            other => self.relay(other),
        }
    }

    fn handle_stun(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        source: ClientAddr,
        role: SocketRole,
        datagram: &[u8],
    ) -> Result<(), Counter> {
        if source.0.port() == 0 {
            return Err(Counter::DropSource);
        }
        let message = Message::parse(datagram).map_err(|_| Counter::DropParse)?;
        match (message.class(), message.method(), role) {
            (Class::Request, stun::method::BINDING, _) => {
                let (out, counters) = (&mut self.outbox, &mut self.counters);
                self.binding
                    .handle(now, out, counters, socket, source, &message)
            }
            (Class::Request, method, role)
                if role.is_full() && native::method::is_native(method) =>
            {
                self.handle_native(now, socket, source, role, &message)
            }
            (Class::Request, method, role) if role.is_full() && stun::method::is_turn(method) => {
                if self.pass_on(socket, source, datagram) {
                    return Ok(());
                }
                if self.home == self.index {
                    let is_stream = matches!(role, SocketRole::Stream { .. });
                    let serial = is_stream.then(|| self.streams.serial(socket, source));
                    self.by_stream = serial.flatten();
                }
                self.turn
                    .handle_request(step!(self, now), socket, source, &message)
            }
            (Class::Success, native::method::EVENT, role) if role.is_full() => {
                self.handle_acknowledgement(now, socket, source, &message)
            }
            _ => Err(Counter::DropMethod),
        }
    }

    /// Lets time pass. If that comes much later than [`Shard::poll_timeout`] asked, because the process or the machine stood
    /// still, nobody loses a seat by it.
    pub fn handle_timeout(&mut self, now: Millis) {
        let late_ms = self.wheel.next_timeout().map_or(0, |due| now.since(due));
        if late_ms > STANDSTILL_MS {
            self.lobby.excuse_silence(now);
            self.dialects.excuse_silence(now, &mut self.forwarding);
        }
        let mut fired = std::mem::take(&mut self.fired);
        self.wheel.advance(now, &mut fired);
        for key in fired.drain(..) {
            match key {
                TimerKey::Allocation(index) => {
                    let turn = &mut self.turn;
                    turn.handle_allocation_timer(step!(self, now), index);
                }
                TimerKey::Reservation(uid) => {
                    let turn = &mut self.turn;
                    turn.handle_reservation_timer(step!(self, now), uid);
                }
                TimerKey::BorrowedPort(allocation) => {
                    let turn = &mut self.turn;
                    turn.handle_borrowed_port_timer(step!(self, now), allocation);
                }
                TimerKey::Dialect(timer) => self.handle_foreign_timer(now, timer),
                key => self.lobby.handle_timer(turn!(self, now), key),
            }
        }
        self.fired = fired;
        while let Some(allocation) = self.forwarding.next_arrival() {
            self.turn.handle_arrival(step!(self, now), allocation);
        }
        self.outbox.mail.extend(self.forwarding.hairpin_mail());
        self.deliver_own_mail(now);
    }

    /// When [`Shard::handle_timeout`] has something to do next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Millis> {
        self.wheel.next_timeout()
    }

    /// Counts requests for other shards that found a full mailbox.
    pub fn count_lost_mail(&mut self, count: u64) {
        self.counters.add(Counter::DropMailbox, count);
    }

    /// Takes in what became of [`crate::turn::RelayCommand::Open`]. Every one is answered so, in any order. There may be answers
    /// and further commands in the outbox then.
    pub fn handle_relay_opened(
        &mut self,
        now: Millis,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        if self.dialects.awaits(socket) {
            self.handle_foreign_opened(now, socket, outcome);
        } else {
            self.turn.handle_opened(step!(self, now), socket, outcome);
        }
    }

    /// Takes in an ICMP error about what a relay socket sent to `peer`.
    pub fn handle_icmp(&mut self, now: Millis, socket: SocketIndex, peer: Addr, error: IcmpError) {
        self.turn.handle_icmp(step!(self, now), socket, peer, error);
    }

    /// Changes the secrets of TURN's time-limited credentials.
    pub fn set_turn_secrets(&mut self, secrets: Vec<Box<[u8]>>) {
        self.turn.set_secrets(secrets);
    }

    /// Changes who may host, join, match and list.
    pub fn set_access(&mut self, access: RendezvousAccess) {
        self.access = access;
    }

    /// From now on nobody new is seated, and nothing new allocated.
    pub const fn drain(&mut self) {
        self.draining = true;
        self.turn.drain();
        self.dialects.drain();
    }

    /// Signs with a new secret; the last one is still accepted.
    pub fn rotate_secret(&mut self, secret: ServerSecret) {
        self.nonces.rotate(secret.clone());
        self.sealer.rotate(secret);
    }

    /// Whether this shard relays for `source`.
    #[must_use]
    pub fn has_flow(&self, socket: SocketIndex, source: Addr) -> bool {
        self.forwarding
            .seat_of(socket, ClientAddr(source))
            .is_some()
    }
}
