//! The lobby of one shard: the sessions it owns, their members, match queues, events and introductions.
//!
//! It works with proved addresses and parsed fields only, and it never relays: it tells the shards, by [`Mail`], which
//! sources may send and where seats lead. Every table has a capacity.
//!
//! * `seating`: taking a seat: host, join, match. `returning`: coming back to one by ticket.
//! * `conduct`: what a member does from its seat, and losing it.
//! * `events`: telling members, in order and until they acknowledge.
//! * `listing`, [`door`]: lists for clients, the matchmaker's door for operators.

mod attempts;
mod conduct;
pub mod door;
mod events;
mod inspection;
mod listing;
mod returning;
mod seating;
mod session;

use std::collections::HashMap;

use ahash::RandomState;
use rand::rngs::StdRng;

pub(crate) use self::attempts::FailureBuckets;
pub use self::inspection::SeatView;
pub(crate) use self::listing::ListCursor;
pub(crate) use self::session::Slab;
use self::session::{Member, Session};
use crate::addr::{Addr, ClientAddr, ProvenAddr};
use crate::dialect::DialectTimer;
use crate::forwarding::{HalfRoute, RelayLimits, Route, SocketIndex};
use crate::stats::{Counter, Counters};
use crate::ticket::Sealer;
use crate::time::{Millis, WallClock};
use crate::timer_wheel::TimerWheel;
use crate::turn::RelayCommand;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{Fields, SeatHandle, attr, code, method};
use crate::wire::stun::{self, Class, Integrity, Message, MessageWriter, TransactionId};

/// What members are told and held to.
#[derive(Clone, Debug)]
pub struct LobbyConfig {
    /// Most sessions on this shard.
    pub sessions_max: usize,
    /// Most members on this shard.
    pub members_max: usize,
    /// Seconds between a member's keepalives.
    pub keepalive_secs: u32,
    /// Seconds of silence after which a seat is given up.
    pub seat_hold_secs: u32,
    /// Seconds that a session lives.
    pub session_lifetime_secs: u32,
    /// Seconds that a session made by the matchmaker's door waits while nobody is seated.
    pub unseated_hold_secs: u32,
    /// What a member may relay.
    pub limits: RelayLimits,
    /// The second vantage port, 0 if there is none.
    pub probe_port: u16,
}

impl Default for LobbyConfig {
    fn default() -> Self {
        Self {
            sessions_max: 65_536,
            members_max: 262_144,
            keepalive_secs: 15,
            seat_hold_secs: 40,
            session_lifetime_secs: 86_400,
            unseated_hold_secs: 600,
            limits: RelayLimits {
                packets_per_sec: 2000,
                bytes_per_sec: 1 << 20,
            },
            probe_port: 0,
        }
    }
}

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The source, proved by a nonce.
    pub addr: ProvenAddr,
    /// The socket it arrived on; answers leave by it.
    pub socket: SocketIndex,
    /// The shard whose socket that was: flows of this source live there.
    pub home: u16,
    /// The stream that it came on; none for a datagram.
    pub stream: Option<StreamSerial>,
}

/// Tells a stream from a later one between the same addresses: what was given to the one is not the other's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StreamSerial(pub(crate) u32);

/// A request whose source is proved.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Where it came from.
    pub origin: Origin,
    /// The message.
    pub message: &'a Message<'a>,
    /// Its attributes.
    pub fields: &'a Fields<'a>,
}

/// A message between shards.
#[derive(Debug)]
pub enum Mail {
    /// A request for the shard that owns what it is about. May be dropped: the client repeats it.
    Request {
        /// Where it came from.
        origin: Origin,
        /// The seat that this source has already, as its own shard knows.
        seated: Option<SeatHandle>,
        /// The message.
        bytes: Box<[u8]>,
    },
    /// An acknowledgement of events, from a source that has a flow.
    Acknowledgement {
        /// The message.
        bytes: Box<[u8]>,
    },
    /// Let a source send as this member. Never dropped, like all that follow.
    AddFlow {
        /// The socket it sends to.
        socket: SocketIndex,
        /// The source.
        source: ProvenAddr,
        /// The stream that this source was seated by; none for a source of datagrams.
        stream: Option<StreamSerial>,
        /// The member.
        handle: SeatHandle,
    },
    /// Take that back.
    RemoveFlow {
        /// The socket it sends to.
        socket: SocketIndex,
        /// The source.
        source: ProvenAddr,
        /// The member.
        handle: SeatHandle,
    },
    /// Make a seat lead somewhere, or nowhere.
    SetRoute {
        /// The session.
        code: JoinCode,
        /// The seat.
        seat: u8,
        /// Where to.
        route: Option<Route>,
    },
    /// A source took another seat, and the member that was there until now has nowhere to be reached.
    Displaced {
        /// The member that was displaced.
        handle: SeatHandle,
        /// The socket.
        socket: SocketIndex,
        /// The source.
        source: ProvenAddr,
    },
    /// What came from a TURN client that moved, or wants to, for the shard of its allocation. May be dropped, like any
    /// datagram.
    FromGuest {
        /// The socket it arrived on.
        socket: SocketIndex,
        /// Its source.
        source: ClientAddr,
        /// The shard that got it.
        home: u16,
        /// The datagram.
        bytes: Box<[u8]>,
    },
    /// Send the shard `owner` everything that comes from this TURN client, and send the client this.
    AddGuest {
        /// The socket it sends to.
        socket: SocketIndex,
        /// The source.
        source: ClientAddr,
        /// The shard of its allocation.
        owner: u16,
        /// The answer that tells the client that it moved.
        answer: Box<[u8]>,
    },
    /// A TURN client ended its allocation by this request, whose repetition will not come here any more.
    GuestLeft {
        /// The socket it arrived on.
        socket: SocketIndex,
        /// Its source.
        source: ClientAddr,
        /// Its transaction.
        id: TransactionId,
    },
    /// Take back [`Mail::AddGuest`].
    RemoveGuest {
        /// The socket it sends to.
        socket: SocketIndex,
        /// The source.
        source: ClientAddr,
        /// The shard that asked for it.
        owner: u16,
    },
    /// An allocation of shard `asker` with relayed address `from` sends to relayed address `to`: how is the client of that
    /// reached? May be dropped: it is asked again.
    HairpinWanted {
        /// Who asks.
        asker: u16,
        /// The relayed address that data come from.
        from: Addr,
        /// The relayed address that they go to.
        to: Addr,
    },
    /// How it is reached, or that it is not any more.
    HairpinRoute {
        /// The relayed address that data come from.
        from: Addr,
        /// The relayed address that they go to.
        to: Addr,
        /// The way to the client.
        route: Option<HalfRoute>,
    },
    /// Shard `asker` was shown a reservation token of the receiver (RFC 8656 section 7.2).
    PortWanted {
        /// Who asks.
        asker: u16,
        /// Its allocation that waits for the port.
        allocation: u32,
        /// The token.
        token: [u8; 8],
        /// The user, as all shards hash it.
        user: u64,
    },
    /// The answer: the port is the asker's until it returns it.
    PortLent {
        /// The allocation that waits for it.
        allocation: u32,
        /// The local relayed address; none if the token is not valid.
        at: Option<Addr>,
    },
    /// A port that was lent is not used any more.
    PortReturned {
        /// The local relayed address.
        at: Addr,
    },
    /// The stream that a member was reached by has ended.
    StreamEnded {
        /// The member.
        handle: SeatHandle,
        /// The stream's socket.
        socket: SocketIndex,
        /// The stream.
        stream: StreamSerial,
    },
    /// A request of the control thread.
    Door {
        /// Tells its answer.
        id: u64,
        /// What is asked.
        request: Box<door::DoorRequest>,
    },
}

impl Mail {
    /// Whether the sender copes with the loss of this message.
    #[must_use]
    pub const fn may_be_dropped(&self) -> bool {
        matches!(
            self,
            Self::Request { .. }
                | Self::Acknowledgement { .. }
                | Self::FromGuest { .. }
                | Self::HairpinWanted { .. }
        )
    }
}

/// A datagram of our own that is to be sent: a range of [`Outbox::bytes`].
#[derive(Clone, Copy, Debug)]
pub struct Transmit {
    /// The socket to send from.
    pub socket: SocketIndex,
    /// The destination.
    pub to: Addr,
    /// Where its bytes begin.
    pub start: usize,
    /// Where they end.
    pub end: usize,
}

/// What a turn produced: datagrams in one growing buffer that is reused, mail, commands about relay sockets, and answers for
/// the control thread.
#[derive(Debug, Default)]
pub struct Outbox {
    /// The bytes of all datagrams.
    pub bytes: Vec<u8>,
    /// The datagrams.
    pub transmits: Vec<Transmit>,
    /// Mail with the shard it is for.
    pub mail: Vec<(u16, Mail)>,
    /// Relay sockets to be opened and closed, in this order.
    pub relay: Vec<RelayCommand>,
    /// Answers to [`Mail::Door`].
    pub door: Vec<(u64, door::DoorAnswer)>,
}

impl Outbox {
    /// Queues what was written to [`Outbox::bytes`] since `start`.
    pub(crate) fn transmit(&mut self, socket: SocketIndex, to: Addr, start: usize) {
        self.transmits.push(Transmit {
            socket,
            to,
            start,
            end: self.bytes.len(),
        });
    }

    /// Forgets everything and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.transmits.clear();
        self.mail.clear();
        self.relay.clear();
        self.door.clear();
    }
}

/// What the lobby is lent for one call.
pub(crate) struct Turn<'a> {
    pub now: Millis,
    pub wall: WallClock,
    pub out: &'a mut Outbox,
    pub wheel: &'a mut TimerWheel<TimerKey>,
    pub rng: &'a mut StdRng,
    pub counters: &'a mut Counters,
    pub sealer: &'a Sealer,
}

/// Whose timer it is. The number tells an old occupant of a slot from a new one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TimerKey {
    Member(u32, u32),
    Session(u32, u32),
    /// Nobody's: as long as there are members, it comes so often that its lateness shows a standstill.
    Pulse,
    /// Not the lobby's: a place for a TURN allocation.
    Allocation(u32),
    /// Not the lobby's: a reserved relay port.
    Reservation(u32),
    /// Not the lobby's: an allocation whose relay port is another shard's, and not free yet.
    BorrowedPort(u32),
    /// Not the lobby's: something of a dialect.
    Dialect(DialectTimer),
}

/// Between two pulses.
const PULSE_MS: u64 = 1_000;

/// An error answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Reject(pub u16);

type Outcome = Result<(), Reject>;

/// The key of sessions that do not exist: nobody's password leads to it.
const NO_PASSWORD_FITS: [u8; 16] = [0; 16];

/// All sessions that one shard owns.
pub struct Lobby {
    config: LobbyConfig,
    shard: u16,
    shard_count: u16,
    sessions: Slab<Session>,
    members: Slab<Member>,
    by_code: HashMap<JoinCode, u32, RandomState>,
    by_name: HashMap<Box<[u8]>, u32, RandomState>,
    forming: HashMap<Box<[u8]>, u32, RandomState>,
    /// Members that were removed and have not acknowledged that yet.
    departing: HashMap<SeatHandle, u32, RandomState>,
    failures: FailureBuckets,
    /// The match that was completed last: a copy of the request that completed it may be right behind.
    last_formed: Option<JoinCode>,
    /// Until then nobody is held to have been silent: this shard itself stood still.
    excused_until: Millis,
    /// Whether the next pulse is set.
    has_pulse: bool,
    next_uid: u32,
}

impl Lobby {
    /// An empty lobby for `shard` of `shard_count`. `seeds` key its hashes.
    #[must_use]
    pub fn new(config: LobbyConfig, shard: u16, shard_count: u16, seeds: [u64; 4]) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        Self {
            sessions: Slab::new(config.sessions_max),
            members: Slab::new(config.members_max),
            by_code: HashMap::with_capacity_and_hasher(config.sessions_max, hasher.clone()),
            by_name: HashMap::with_hasher(hasher.clone()),
            forming: HashMap::with_hasher(hasher.clone()),
            departing: HashMap::with_hasher(hasher.clone()),
            failures: FailureBuckets::new(hasher),
            config,
            shard,
            shard_count,
            last_formed: None,
            excused_until: Millis(0),
            has_pulse: false,
            next_uid: 0,
        }
    }

    /// Sessions.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Members, those that are departing included.
    #[must_use]
    pub fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Serves a request that this shard owns. Draining servers seat nobody new.
    pub(crate) fn handle_request(&mut self, turn: &mut Turn<'_>, asked: Asked<'_>, draining: bool) {
        turn.counters.count(Counter::NativeRequests);
        let outcome = match asked.message.method() {
            method::HOST | method::JOIN | method::MATCH if draining => Err(Reject(code::CAPACITY)),
            method::HOST => self.handle_host(turn, asked),
            method::JOIN => self.handle_join(turn, asked),
            method::MATCH => self.handle_match(turn, asked),
            method::RESUME => self.handle_resume(turn, asked),
            method::LIST => self.handle_list(turn, asked),
            _ => self.handle_seated(turn, asked),
        };
        if let Err(Reject(error)) = outcome {
            answer_error(turn, asked, error);
        }
    }

    /// Lets time pass for one timer.
    pub(crate) fn handle_timer(&mut self, turn: &mut Turn<'_>, key: TimerKey) {
        match key {
            TimerKey::Member(index, uid) => self.handle_member_timer(turn, index, uid),
            TimerKey::Session(index, uid) => self.handle_session_timer(turn, index, uid),
            TimerKey::Pulse => {
                self.has_pulse = false;
                if self.members.len() > 0 {
                    self.begin_pulse(turn);
                }
            }
            TimerKey::Allocation(_)
            | TimerKey::Reservation(_)
            | TimerKey::BorrowedPort(_)
            | TimerKey::Dialect(_) => {
                unreachable!("the shard gives the lobby its own timers only")
            }
        }
    }

    /// This shard has stood still, so what members sent meanwhile may be lost, and what they will send comes at long
    /// intervals: they are taken for heard just now.
    pub(crate) fn excuse_silence(&mut self, now: Millis) {
        self.excused_until = now.plus_secs(self.config.seat_hold_secs);
    }

    fn begin_pulse(&mut self, turn: &mut Turn<'_>) {
        if !self.has_pulse {
            self.has_pulse = true;
            turn.wheel.schedule(turn.now + PULSE_MS, TimerKey::Pulse);
        }
    }

    fn uid(&mut self) -> u32 {
        self.next_uid = self.next_uid.wrapping_add(1);
        self.next_uid
    }
}

/// Answers with an error, without integrity.
pub(crate) fn answer_error(turn: &mut Turn<'_>, asked: Asked<'_>, error: u16) {
    turn.counters.count(Counter::NativeErrors);
    let start = turn.out.bytes.len();
    MessageWriter::answer(&mut turn.out.bytes, asked.message, Class::Error)
        .error_code(error)
        .finish();
    turn.out
        .transmit(asked.origin.socket, asked.origin.addr.addr(), start);
}

/// Answers a request from a seat: success with time and mapped address, under the seat's token.
fn answer_seated(turn: &mut Turn<'_>, asked: Asked<'_>, token: &[u8; 16]) {
    let start = turn.out.bytes.len();
    let server_time = turn.wall.unix_ms(turn.now);
    MessageWriter::answer(&mut turn.out.bytes, asked.message, Class::Success)
        .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, asked.origin.addr.addr())
        .u64(attr::SERVER_TIME, server_time)
        .integrity(Integrity::Sha256Truncated, token)
        .finish();
    turn.out
        .transmit(asked.origin.socket, asked.origin.addr.addr(), start);
}

/// Sixty-four bits that tell one request of a source from the next.
fn transaction_digest(message: &Message<'_>) -> u64 {
    let id = message.transaction_id().0;
    let (head, tail) = id.split_at(8);
    let head = u64::from_be_bytes(head.try_into().expect("eight bytes"));
    let tail = u32::from_be_bytes(tail.try_into().expect("four bytes"));
    head ^ u64::from(tail) << 32 ^ u64::from(message.method())
}
