//! The client's side of the native protocol: one seat in one session, over one UDP socket that somebody else owns.
//!
//! Datagrams and the time go in, datagrams and events come out, so the same agent runs in a game, in a load generator
//! and in a simulated world. It opens no socket, reads no clock, and every queue in it is bounded.
//!
//! The owner's loop: give every received datagram to [`Agent::handle_datagram`]; when [`Agent::poll_timeout`] has come,
//! call [`Agent::handle_timeout`]; after either, and after every operation, take all of [`Agent::poll_transmit`] and
//! [`Agent::poll_event`]. Data to a member are framed by [`Agent::frame`] into the owner's buffer and sent by the owner.

mod clock;
mod departure;
mod event;
mod failure;
mod inbound;
mod ledger;
mod operations;
mod outbound;
mod path;
mod probe;
mod punch;
mod recovery;
mod request;
mod roster;
mod session_events;
mod strategy;
mod streams;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transaction;
mod turn_offer;

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use event::{Counters, Delivery, Event, ListedSession, RequestId, SessionEvent, Transmit};
pub use failure::{Failure, NoPath, Refused, Rejected, describe};
pub use ledger::{BUDGET_PER_ADDRESS, BUDGET_PER_MINUTE, GUESSES_PER_MINUTE};
use path::DirectState;
pub use path::{Path, PathPolicy};
pub use punch::CANDIDATES_MAX;
pub use request::{HostConfig, Introduce, ListFilter, SessionUpdate, Target};
pub use roster::{Member, Seat, SessionInfo};
pub use strategy::{Attempt, Progress, Reason, Strategies, Strategy};
pub use streams::{GREETING_LEN, Observation, StreamEnd, StreamIntroduction};

use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::channel_data::{self, ChannelNumber};
use crate::wire::native::{self, NatMapping, SeatId};
use crate::wire::stun::TransactionId;
use clock::ServerClock;
use departure::Departure;
use ledger::Ledger;
use probe::NatProbe;
use request::{Context, Op, Request};
use roster::Roster;
use transaction::Repetition;
use turn_offer::TurnOffer;

/// Most bytes of data in one datagram: a frame then has [`native::MESSAGE_MAX`] bytes, which with IPv6 and UDP headers fits
/// the 1,280 bytes that every IPv6 path carries (RFC 8200 section 5), with room for a tunnel.
pub const DATAGRAM_MAX: usize = native::MESSAGE_MAX - channel_data::HEADER_LEN;

/// Requests of the owner that may wait for an answer at a time.
const REQUESTS_MAX: usize = 16;
/// Events that may wait for the owner. Beyond it batches stay unanswered, and the server repeats them.
const EVENTS_MAX: usize = 1_024;
/// Most events in one message of [`native::MESSAGE_MAX`] bytes.
const EVENTS_PER_MESSAGE: usize = native::MESSAGE_MAX / 12;
/// Datagrams that may wait for the owner to send them. What is due beyond stays due.
const TRANSMITS_MAX: usize = 256;
/// A nonce longer than this is not this protocol's.
const NONCE_MAX: usize = 128;

/// When to find out how the NAT maps.
///
/// ```
/// use waypost_proto::agent::{Config, Probing};
///
/// let server = "203.0.113.5:3478".parse::<std::net::SocketAddr>()?;
/// let mut config = Config::new(server.into(), "my-game");
/// // The server's second port is known, so that the first introduction is the best already.
/// config.probing = Probing::First(3_479);
/// assert_ne!(config.probing, Probing::default());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Probing {
    /// Never.
    Off,
    /// Once the server has told its second vantage port.
    #[default]
    WhenSeated,
    /// Before asking for a seat, with this port of the server: then the first introduction knows already. Waits for
    /// half a second at most.
    First(u16),
}

/// An operator's credential, made by a game's backend.
///
/// ```
/// use waypost_proto::agent::{Config, Credential};
///
/// let server = "203.0.113.5:3478".parse::<std::net::SocketAddr>()?;
/// let mut config = Config::new(server.into(), "my-game");
/// // As the game's backend handed it out.
/// config.credential = Some(Credential {
///     username: "1798761600:ann".to_owned(),
///     password: "MjM0NTY3ODkwYWJjZGVmZ2hpag==".to_owned(),
/// });
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Credential {
    /// `expiry:user`, expiry in Unix seconds.
    pub username: String,
    /// `base64(HMAC-SHA1(secret, username))`.
    pub password: String,
}

/// What an agent is made from.
#[derive(Clone)]
pub struct Config {
    /// The server's main address.
    pub server: Addr,
    /// Which game, 1 to 32 bytes: sessions of other games are out of sight.
    pub application: String,
    /// How data may travel.
    pub policy: PathPolicy,
    /// The ways that are tried.
    pub strategies: Strategies,
    /// Whether the ports of a peer whose NAT gives them out at random are guessed, with at most [`GUESSES_PER_MINUTE`] checks.
    pub guesses_ports: bool,
    /// A port of the own public address that leads to this socket, whoever sends: forwarded, or not behind a NAT.
    pub reachable_port: Option<u16>,
    /// Whether the owner has an allocation on a TURN server for the agent to use beside its socket: it sends through it what is
    /// marked so ([`Transmit::through_turn`], [`Agent::is_through_turn`]), and gives what comes through it to
    /// [`Agent::handle_turn_datagram`].
    pub has_turn: bool,
    /// Up to 64 bytes that the other members see.
    pub member_data: Vec<u8>,
    /// Addresses of the socket on local interfaces, at most four, told to members behind the same NAT.
    pub local_addresses: Vec<Addr>,
    /// When to find out how the NAT maps.
    pub probing: Probing,
    /// For servers that serve only whom their operator knows.
    pub credential: Option<Credential>,
    /// After so many milliseconds without an answer an operation fails.
    pub give_up_ms: u64,
}

impl Config {
    /// The usual configuration: direct first, no credential, 15 s of patience.
    #[must_use]
    pub fn new(server: Addr, application: &str) -> Self {
        Self {
            server,
            application: application.to_owned(),
            policy: PathPolicy::default(),
            strategies: Strategies::ALL,
            guesses_ports: false,
            reachable_port: None,
            has_turn: false,
            member_data: Vec::new(),
            local_addresses: Vec::new(),
            probing: Probing::default(),
            credential: None,
            give_up_ms: 15_000,
        }
    }
}

/// The client side of one seat.
pub struct Agent {
    config: Config,
    rng: StdRng,
    ledger: Ledger,
    nonce: Option<Vec<u8>>,
    requests: Vec<Request>,
    next_request: u32,
    /// The session as this agent made it, to make it again.
    hosted: Option<Box<HostConfig>>,
    member_data: Vec<u8>,
    seat: Option<Seat>,
    session: SessionInfo,
    roster: Roster,
    clock: ServerClock,
    probe: Option<NatProbe>,
    probed: bool,
    mapping: Option<NatMapping>,
    mapping_told: Option<Millis>,
    recovering: bool,
    departure: Option<Departure>,
    turn_offer: Option<TurnOffer>,
    keepalive_at: Millis,
    /// When the server was last heard from.
    heard: Millis,
    /// Whether data took the relay since the server was last asked whether it still knows this address.
    relay_active: bool,
    silent: bool,
    out: VecDeque<Transmit>,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Agent {
    /// An agent without a seat. `seed` must be random: transaction ids come out of it, and whoever can guess those can forge
    /// answers.
    #[must_use]
    pub fn new(now: Millis, config: Config, seed: [u8; 32]) -> Self {
        let rng = StdRng::from_seed(seed);
        Self {
            member_data: config.member_data.clone(),
            config,
            ledger: Ledger::new(now),
            rng,
            nonce: None,
            requests: Vec::new(),
            next_request: 0,
            hosted: None,
            seat: None,
            session: SessionInfo::default(),
            roster: Roster::default(),
            clock: ServerClock::default(),
            probe: None,
            probed: false,
            mapping: None,
            mapping_told: None,
            recovering: false,
            departure: None,
            turn_offer: None,
            keepalive_at: now,
            heard: now,
            relay_active: false,
            silent: false,
            out: VecDeque::new(),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// What it was made from.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// The own seat, if there is one.
    #[must_use]
    pub const fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// The session of the seat.
    #[must_use]
    pub const fn session(&self) -> &SessionInfo {
        &self.session
    }

    /// The other members, in the order of their seats.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.roster.iter()
    }

    /// One of the other members.
    #[must_use]
    pub fn member(&self, id: SeatId) -> Option<&Member> {
        self.roster.get(id)
    }

    /// Whether the server owes an answer for so long that it counts as gone.
    #[must_use]
    pub const fn is_server_silent(&self) -> bool {
        self.silent
    }

    /// Whether this agent's seat is the host's.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.seat
            .as_ref()
            .is_some_and(|seat| self.session.host == Some(seat.handle.id))
    }

    /// The way that data to a member takes now.
    #[must_use]
    pub fn path(&self, id: SeatId) -> Option<Path> {
        let member = self.roster.get(id)?;
        Some(self.path_to(member))
    }

    fn path_to(&self, member: &Member) -> Path {
        let direct = member.direct_state();
        match direct {
            DirectState::Proven if self.is_direct_only(member) => Path::Direct,
            _ if self.is_direct_only(member) => Path::Unreachable,
            _ => self.config.policy.choose(direct, self.silent),
        }
    }

    /// What became of each strategy towards a member; without one, nothing.
    #[must_use]
    pub fn report(&self, now: Millis, id: SeatId) -> Vec<Attempt> {
        let Some(member) = self.roster.get(id) else {
            return Vec::new();
        };
        let chosen = self.config.strategies;
        let hidden = !self.config.policy.allows_direct() || member.is_relay_only();
        let udp = member.punch.as_ref().map(|punch| punch.report(now));
        Strategy::ALL
            .into_iter()
            .map(|strategy| {
                let relays = strategy == Strategy::Relay;
                let allowed = match strategy {
                    Strategy::Relay => self.config.policy.allows_relay(),
                    _ => chosen.contains(strategy),
                };
                let progress = match strategy {
                    _ if hidden && !relays => Progress::NotTried(Reason::Hidden),
                    _ if !allowed => Progress::NotTried(Reason::NotChosen),
                    Strategy::Relay if self.is_direct_only(member) => {
                        Progress::NotTried(Reason::WithoutServer)
                    }
                    Strategy::Relay if self.silent => Progress::Failed {
                        after_ms: 0,
                        reason: Reason::ServerSilent,
                    },
                    Strategy::Relay => Progress::Connected { after_ms: 0 },
                    Strategy::TcpPunch => Progress::NotTried(Reason::NotAsked),
                    _ => udp
                        .iter()
                        .flatten()
                        .find(|attempt| attempt.strategy == strategy)
                        .map_or(Progress::NotTried(Reason::NotIntroduced), |attempt| {
                            attempt.progress
                        }),
                };
                Attempt { strategy, progress }
            })
            .collect()
    }

    /// Whether data may be exchanged with members directly.
    pub(super) const fn allows_direct(&self) -> bool {
        self.config.policy.allows_direct() && self.config.strategies.any_udp()
    }

    /// The server's clock, Unix milliseconds, once an answer has told it.
    #[must_use]
    pub fn server_unix_ms(&self, now: Millis) -> Option<u64> {
        self.clock.server_unix_ms(now)
    }

    /// The quickest round trip to the server seen lately, milliseconds.
    #[must_use]
    pub fn server_round_trip_ms(&self) -> Option<u64> {
        self.clock.round_trip_ms()
    }

    /// What the vantage ports showed, if they were asked and answered.
    #[must_use]
    pub const fn nat_mapping(&self) -> Option<NatMapping> {
        self.mapping
    }

    /// Statistics.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// Writes `data` as a frame for `to` into `out`, replacing what is there, and returns the address to send it to. Each
    /// frame is for one path only. Allocates nothing if `out` has room.
    ///
    /// # Errors
    /// [`NoPath`].
    pub fn frame(
        &mut self,
        now: Millis,
        to: SeatId,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Addr, NoPath> {
        self.frame_after(now, to, &[], data, out)
    }

    /// As [`Agent::frame`], of data in two pieces: `prefix`, then `data`.
    ///
    /// # Errors
    /// [`NoPath`].
    pub fn frame_after(
        &mut self,
        now: Millis,
        to: SeatId,
        prefix: &[u8],
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Addr, NoPath> {
        let len = prefix.len() + data.len();
        if len > DATAGRAM_MAX {
            return Err(NoPath::TooLong);
        }
        let own = self.seat.as_ref().ok_or(NoPath::NoMember)?.handle.id;
        let path = self.path(to).ok_or(NoPath::NoMember)?;
        let member = self.roster.get_mut(to).ok_or(NoPath::NoMember)?;
        let direct = match (path, &mut member.punch) {
            (Path::Direct, Some(punch)) => punch.send_data(now),
            _ => None,
        };
        // A member reads the sender's seat off the channel. The server puts it there; on the direct path the sender does.
        let (address, seat) = match direct {
            Some(address) => (address, own.seat),
            None if path != Path::Unreachable && self.config.policy.allows_relay() => {
                self.relay_active = true;
                (self.config.server, to.seat)
            }
            None => return Err(NoPath::NotDirect),
        };
        out.clear();
        let channel = ChannelNumber::of_seat(seat);
        out.extend_from_slice(&channel_data::header(channel, len));
        out.extend_from_slice(prefix);
        out.extend_from_slice(data);
        Ok(address)
    }

    /// Whether what [`Agent::frame`] has just framed for a member goes through the owner's TURN server.
    #[must_use]
    pub fn is_through_turn(&self, to: SeatId) -> bool {
        self.config.has_turn
            && self.path(to) == Some(Path::Direct)
            && self.roster.get(to).is_some_and(|member| {
                let way = member.punch.as_ref().and_then(|punch| punch.in_use());
                way.is_some_and(|way| way.through_turn)
            })
    }

    /// The next datagram to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.out.pop_front()
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Begins a request of the owner, or with no id one of the agent itself.
    fn begin(&mut self, now: Millis, id: Option<RequestId>, op: Op) {
        let parked = self.recovering && native::method::is_seated(op.method());
        self.requests.push(Request {
            id,
            op,
            transaction: TransactionId([0; 12]),
            bytes: Vec::new(),
            repetition: Repetition::new(now),
            began: now,
            renewals: 0,
            parked,
        });
        self.write_request(now, self.requests.len() - 1);
        self.send_requests(now);
    }

    /// Writes a request as things stand now; it is due at once.
    fn write_request(&mut self, now: Millis, at: usize) {
        let request = &mut self.requests[at];
        request.transaction = TransactionId(self.rng.random());
        request.repetition = Repetition::new(now);
        Context {
            config: &self.config,
            nonce: self.nonce.as_deref(),
            seat: self.seat.as_ref(),
            member_data: &self.member_data,
            mapping: self.mapping,
        }
        .write(&request.op, request.transaction, &mut request.bytes);
    }

    fn begin_probe(&mut self, now: Millis, port: u16) {
        if !self.probed && port != 0 {
            self.probed = true;
            let ids = [(); 2].map(|()| TransactionId(self.rng.random()));
            self.probe = Some(NatProbe::new(now, self.config.server, port, ids));
        }
    }

    /// Tells the owner, as long as it listens.
    fn tell(&mut self, event: impl Into<Event>) {
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event.into());
        }
    }

    /// Tells the owner the path to a member, if it has changed.
    fn tell_path(&mut self, id: SeatId) {
        let Some(path) = self.path(id) else {
            return;
        };
        if let Some(member) = self.roster.get_mut(id)
            && path != member.told
        {
            member.told = path;
            self.tell(SessionEvent::PathChanged(id, path));
        }
    }

    fn tell_all_paths(&mut self) {
        let ids: Vec<SeatId> = self.roster.iter().map(|member| member.id).collect();
        ids.into_iter().for_each(|id| self.tell_path(id));
    }
}
