//! What a session is to the generator, whatever its protocol: [`Session`], the [`Outbox`] into which it says what is to be done, and
//! the [`Kit`] that makes sessions. Nothing here has a socket for datagrams: sending and receiving is the worker's business.

mod godot_p2p;
mod greeting;
mod introduced;
mod native;
mod noray;
mod rabid;
mod simple;
mod turn;
mod turn_client;

use std::net::SocketAddr;
use std::ops::Range;

use rand::RngExt as _;
use rand::rngs::StdRng;
use waypost_proto::agent::{Config, Credential, PathPolicy, Probing};
use waypost_proto::time::Millis;

use self::introduced::{Introduced, Talk};
use crate::clock::Now;

/// A protocol that sessions can speak.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Protocol {
    /// Waypost's own.
    Native,
    /// TURN over UDP (RFC 8656).
    Turn,
    /// Rabid Hole Punch.
    Rabid,
    /// simple-hole-punch.
    Simple,
    /// GodotP2P.
    GodotP2p,
    /// noray.
    Noray,
}

impl Protocol {
    /// Most bytes of a payload: games stay below 1200, and so does what Waypost relays of its own protocol, header included.
    pub const fn payload_max(self) -> usize {
        match self {
            Self::Native => waypost_proto::agent::DATAGRAM_MAX,
            _ => 1200,
        }
    }

    /// Most members of a session.
    pub const fn members_max(self) -> u8 {
        match self {
            Self::Rabid => rabid::MEMBERS_MAX,
            _ => u8::MAX,
        }
    }

    /// Whether members other than the host get to know each other.
    pub const fn is_mesh(self) -> bool {
        !matches!(self, Self::Simple | Self::GodotP2p)
    }
}

/// Who is at the other end of a TURN client's load.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum TurnMode {
    /// Every member has an allocation; they send to each other's relayed addresses.
    Pairs,
    /// The first member has an allocation; the others are plain sockets of this generator.
    Peer,
}

/// How a TURN client wraps its data.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum TurnFraming {
    /// ChannelData (RFC 8656 section 12).
    Channel,
    /// Send and Data indications (RFC 8656 section 11).
    Indication,
}

/// One session: its members from asking for it until it is closed. Members are numbered; member 0 hosts.
///
/// The order of calls: [`Session::begin`] once; then `receive`, `on_time` and `frame` in any order; [`Session::close`] once, after
/// which `receive` and `on_time` go on until [`Step::Closed`] or [`Step::Failed`].
pub trait Session {
    /// Asks for the session. The time it takes counts from `asked_ns`, when it was to be asked for.
    fn begin(&mut self, asked_ns: u64, now: Now, out: &mut Outbox);

    /// Member `m` has received a datagram.
    fn receive(
        &mut self,
        m: usize,
        now: Now,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Outbox,
    ) -> Heard;

    /// The time that member `m` had named has come.
    fn on_time(&mut self, m: usize, now: Now, out: &mut Outbox);

    /// When member `m` has something to do next.
    fn next_time(&self, m: usize) -> Option<Millis>;

    /// Writes `data` of member `from` to member `to` into `frame`, in the place of what is there, and says where it is to be
    /// sent. `None` if there is no way at present. Allocates nothing if `frame` has room.
    fn frame(
        &mut self,
        now: Now,
        from: usize,
        to: usize,
        data: &[u8],
        frame: &mut Vec<u8>,
    ) -> Option<SocketAddr>;

    /// Closes the session.
    fn close(&mut self, now: Now, out: &mut Outbox);
}

/// What a datagram was.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Heard {
    /// Part of the protocol's talk: the outbox may hold something.
    Control,
    /// Data of the load.
    Data {
        /// Whom the relay names as the sender.
        from: usize,
        /// Where in the datagram they are.
        range: Range<usize>,
    },
    /// Data from nobody that the receiver knows.
    Refused,
}

/// How far a session has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// The host has what it asked for at that time, nanoseconds.
    Hosted(u64),
    /// Another member has.
    Joined(u64),
    /// All know each other: it can carry load.
    Open,
    /// It has ended as it was asked to.
    Closed,
    /// It has ended otherwise.
    Failed(String),
}

/// What a session wants done. Its memory is used again and again.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    transmits: Vec<Transmit>,
    steps: Vec<Step>,
    /// Whether the times of members other than the one called may have changed.
    pub touches_all: bool,
    /// What the server relays of one member, packets and bytes per second, if it said so.
    pub limits: Option<(u32, u32)>,
}

#[derive(Clone, Debug)]
struct Transmit {
    from: usize,
    to: SocketAddr,
    range: Range<usize>,
}

impl Outbox {
    /// A datagram of member `from`.
    pub fn send(&mut self, from: usize, to: SocketAddr, bytes: &[u8]) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        let range = start..self.bytes.len();
        self.transmits.push(Transmit { from, to, range });
    }

    /// The session has come further.
    pub fn step(&mut self, step: Step) {
        self.steps.push(step);
    }

    /// It has failed.
    pub fn fail(&mut self, reason: impl Into<String>) {
        self.step(Step::Failed(reason.into()));
    }

    /// The datagrams: who sends what to whom.
    pub fn transmits(&self) -> impl Iterator<Item = (usize, SocketAddr, &[u8])> {
        let each = self.transmits.iter();
        each.map(|one| (one.from, one.to, &self.bytes[one.range.clone()]))
    }

    /// The steps, in order.
    pub fn steps(&mut self) -> std::vec::Drain<'_, Step> {
        self.steps.drain(..)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.transmits.clear();
        self.steps.clear();
        self.touches_all = false;
        self.limits = None;
    }
}

/// What sessions are made from.
#[derive(Clone)]
pub struct Kit {
    /// Which kind.
    pub protocol: Protocol,
    /// The server.
    pub server: SocketAddr,
    /// Where noray's players show their addresses.
    pub registrar: SocketAddr,
    /// For servers that ask for one.
    pub credential: Option<Credential>,
    /// For TURN.
    pub turn_mode: TurnMode,
    /// For TURN.
    pub turn_framing: TurnFraming,
    /// Whether sessions are open only when their members have direct paths to each other.
    pub punches: bool,
}

impl Kit {
    /// A session whose members have sockets at these addresses.
    pub fn session(&self, members: &[SocketAddr], now: Now, rng: &mut StdRng) -> Box<dyn Session> {
        match self.protocol {
            Protocol::Native => {
                let config = Config {
                    policy: if self.punches {
                        PathPolicy::DirectFirst
                    } else {
                        PathPolicy::RelayOnly
                    },
                    probing: Probing::Off,
                    credential: self.credential.clone(),
                    ..Config::new(self.server.into(), "loadgen")
                };
                let seeds = members.iter().map(|_| rng.random());
                Box::new(native::NativeSession::new(config, self.punches, seeds, now))
            }
            Protocol::Turn => Box::new(turn::TurnSession::new(self, members, rng.random())),
            Protocol::Rabid => {
                let talk = rabid::RabidTalk::new(self.server, members.len(), rng.random());
                self.introduced(talk, members)
            }
            Protocol::Simple => {
                let talk = simple::SimpleTalk::new(self.server, members);
                self.introduced(talk, members)
            }
            Protocol::Noray => {
                let (server, registrar) = (self.server, self.registrar);
                let count = members.len();
                let talk = noray::NorayTalk::new(server, registrar, self.punches, count);
                self.introduced(talk, members)
            }
            Protocol::GodotP2p => {
                let talk = godot_p2p::GodotTalk::new(self.server, members.len(), rng.random());
                self.introduced(talk, members)
            }
        }
    }

    /// What a stranger at `members` says first, and to whom.
    pub fn first_request(
        &self,
        members: &[SocketAddr],
        rng: &mut StdRng,
    ) -> Option<(SocketAddr, Vec<u8>)> {
        if self.protocol == Protocol::Noray {
            // An id that nobody has, as long as those that players have.
            return Some((self.registrar, vec![b'?'; 128]));
        }
        let (now, mut outbox) = (Now { ns: 0 }, Outbox::default());
        let mut session = self.session(members, now, rng);
        session.begin(now.ns, now, &mut outbox);
        let first = outbox.transmits().next();
        first.map(|(_, to, bytes)| (to, bytes.to_vec()))
    }

    fn introduced(&self, talk: impl Talk + 'static, members: &[SocketAddr]) -> Box<dyn Session> {
        Box::new(Introduced::new(talk, members, self.protocol.is_mesh()))
    }
}

/// A name of so many letters and digits; different seeds have different ones as far as that goes.
fn name(seed: u64, len: usize) -> String {
    let mut rest = seed;
    let letters = std::iter::repeat_with(|| {
        let digit = (rest % 36) as u32;
        rest /= 36;
        char::from_digit(digit, 36).expect("below 36")
    });
    letters.take(len).collect()
}
