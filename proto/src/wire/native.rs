//! The native protocol's methods, attributes and error codes: a STUN usage, specified in `docs/protocol.md`.
//!
//! [`Fields`] reads a message's attributes in one pass and checks every length there, so what follows works with typed
//! values only. Methods are in STUN's expert-review range (RFC 8489 section 18.2), attributes in the two expert-review
//! ranges (section 18.3).

use super::digest;
use super::join_code::JoinCode;
use super::stun::{self, AttributeWriter, Attributes, Message, TransactionId};
use crate::addr::Addr;

/// Methods. Client to server, except [`method::EVENT`].
pub mod method {
    /// Make a session and take its first seat.
    pub const HOST: u16 = 0x0b0;
    /// Take a seat in a session known by code or name.
    pub const JOIN: u16 = 0x0b1;
    /// Wait for others who want the same match.
    pub const MATCH: u16 = 0x0b2;
    /// Read a page of the listed sessions.
    pub const LIST: u16 = 0x0b3;
    /// Come back to a seat, by ticket.
    pub const RESUME: u16 = 0x0b4;
    /// Give up the seat.
    pub const LEAVE: u16 = 0x0b5;
    /// Remove a member for the session's life.
    pub const KICK: u16 = 0x0b6;
    /// Change the session's or the member's own properties.
    pub const UPDATE: u16 = 0x0b7;
    /// Make another member the host.
    pub const TRANSFER: u16 = 0x0b8;
    /// End the session.
    pub const CLOSE: u16 = 0x0b9;
    /// Have members introduced to each other.
    pub const INTRODUCE: u16 = 0x0ba;
    /// Keep the seat and the NAT binding alive.
    pub const KEEPALIVE: u16 = 0x0bb;
    /// Server to client: a batch of session events. The success response acknowledges it.
    pub const EVENT: u16 = 0x0bc;

    /// Over TCP: have the address of this connection told to a member that wants a stream too. Leaves the seat where it is.
    pub const OBSERVE: u16 = 0x0bd;

    /// Whether a method is the native protocol's and sent by clients.
    #[must_use]
    pub const fn is_native(method: u16) -> bool {
        method >= HOST && method <= OBSERVE && method != EVENT
    }

    /// Whether a request of this method is made from a seat: it carries SEAT-HANDLE and integrity under the token.
    #[must_use]
    pub const fn is_seated(method: u16) -> bool {
        method >= LEAVE && method <= OBSERVE && method != EVENT
    }
}

/// Attributes.
pub mod attr {
    /// UTF-8, 1 to 32 bytes: which game.
    pub const APPLICATION_ID: u16 = 0x4b00;
    /// A join code as text, with or without dashes.
    pub const JOIN_CODE: u16 = 0x4b01;
    /// UTF-8, 1 to 64 bytes: the session's unique name; in LIST a prefix.
    pub const SESSION_NAME: u16 = 0x4b02;
    /// 16 bytes: [`super::password_key`].
    pub const PASSWORD_KEY: u16 = 0x4b03;
    /// 16 bytes: [`super::password_proof`].
    pub const PASSWORD_PROOF: u16 = 0x4b04;
    /// 32 bits: seats in the session, 2 to 255.
    pub const MAX_MEMBERS: u16 = 0x4b05;
    /// 0 to 512 bytes that belong to the session.
    pub const METADATA: u16 = 0x4b06;
    /// 0 to 64 bytes that belong to a member.
    pub const MEMBER_DATA: u16 = 0x4b07;
    /// 32 bits: [`super::session_flags`].
    pub const SESSION_FLAGS: u16 = 0x4b08;
    /// 8 bytes: [`super::SeatHandle`], the sender's.
    pub const SEAT_HANDLE: u16 = 0x4b09;
    /// 4 bytes: [`super::SeatId`], the member a request is about.
    pub const TARGET_SEAT: u16 = 0x4b0a;
    /// 4 bytes: [`super::SeatId`], the second of a pair to introduce.
    pub const OTHER_SEAT: u16 = 0x4b0b;
    /// 1 to 64 bytes: what must be equal for players to be matched.
    pub const MATCH_KEY: u16 = 0x4b0c;
    /// Opaque: a sealed ticket.
    pub const TICKET: u16 = 0x4b0d;
    /// An event: 8 bytes and nested attributes, [`super::EventHead`].
    pub const EVENT: u16 = 0x4b0e;
    /// 32 bits: number of the event batch, counted per seat from 1.
    pub const EVENT_SEQUENCE: u16 = 0x4b0f;
    /// 8 bytes, opaque to clients: where the next page begins.
    pub const LIST_CURSOR: u16 = 0x4b10;
    /// 32 bits: [`super::list_filter`].
    pub const LIST_FILTER: u16 = 0x4b11;
    /// Nested attributes: one listed session.
    pub const LIST_ENTRY: u16 = 0x4b12;
    /// 16 bytes: the secret of the seat.
    pub const TOKEN: u16 = 0x4b13;
    /// 32 bits: [`super::member_flags`].
    pub const MEMBER_FLAGS: u16 = 0x4b14;
    /// 16 bytes: key of the connectivity checks of one pair.
    pub const CHECK_KEY: u16 = 0x4b15;

    /// An address in XOR form that the client has on a local interface.
    pub const LOCAL_ADDRESS: u16 = 0xcb00;
    /// 8 bytes: [`super::NatMapping`].
    pub const NAT_MAPPING: u16 = 0xcb01;
    /// 32 bits: seconds between keepalives.
    pub const KEEPALIVE_SECS: u16 = 0xcb02;
    /// 32 bits: seconds of silence after which a seat is given up.
    pub const SEAT_HOLD_SECS: u16 = 0xcb03;
    /// 32 bits: seconds until the session ends.
    pub const SESSION_LIFETIME_SECS: u16 = 0xcb04;
    /// 64 bits: Unix time in milliseconds on the server's clock.
    pub const SERVER_TIME: u16 = 0xcb05;
    /// 64 bits: when to begin punching, as SERVER-TIME.
    pub const START_TIME: u16 = 0xcb06;
    /// An address in XOR form that a NAT which steps is likely to use next.
    pub const PREDICTED_ADDRESS: u16 = 0xcb07;
    /// Bytes without meaning that make a request as long as its answer.
    pub const FILL: u16 = 0xcb08;
    /// Two 32-bit numbers: packets per second and bytes per second that a member may relay.
    pub const LIMITS: u16 = 0xcb09;
    /// 32 bits: the second vantage port, 0 if there is none.
    pub const PROBE_PORT: u16 = 0xcb0a;
    /// 32 bits: members in the session.
    pub const MEMBER_COUNT: u16 = 0xcb0b;
    /// In XOR form, the address from which the server saw a member's TCP connection.
    pub const TCP_ADDRESS: u16 = 0xcb0c;
    /// 32 bits: a port of the sender's public address that leads to it whoever sends, 0 for none.
    pub const REACHABLE_PORT: u16 = 0xcb0d;
    /// In XOR form, a member's public address with its REACHABLE-PORT.
    pub const REACHABLE_ADDRESS: u16 = 0xcb0e;
    /// In XOR form, an address on a TURN server that leads to a member, from which the server has seen it.
    pub const RELAYED_ADDRESS: u16 = 0xcb0f;
    /// Empty, in a connectivity check: its sender is about to leave the server and goes on directly.
    pub const LEAVES_SERVER: u16 = 0xcb20;
}

/// Error codes of the native protocol beside those of RFC 8489.
pub mod code {
    /// The request lacks something or holds a malformed value.
    pub const BAD_REQUEST: u16 = 400;
    /// No nonce, or no valid operator credential where one is needed.
    pub const UNAUTHENTICATED: u16 = 401;
    /// A comprehension-required attribute is unknown.
    pub const UNKNOWN_ATTRIBUTE: u16 = 420;
    /// This five-tuple is used for something else already.
    pub const MISMATCH: u16 = 437;
    /// The nonce is too old or was given to another address.
    pub const STALE_NONCE: u16 = 438;
    /// There is no such session, or the password is wrong: one code, so that codes and names cannot be probed.
    pub const NO_SESSION: u16 = 470;
    /// All seats are taken.
    pub const FULL: u16 = 471;
    /// The host has locked the session.
    pub const LOCKED: u16 = 472;
    /// Another session has this name.
    pub const NAME_TAKEN: u16 = 473;
    /// Only the host may do this.
    pub const NOT_HOST: u16 = 474;
    /// The host has removed this player for the session's life.
    pub const KICKED: u16 = 475;
    /// The seat is gone: timed out, or the server does not know it.
    pub const SEAT_GONE: u16 = 476;
    /// No member has the seat that was named.
    pub const NO_MEMBER: u16 = 477;
    /// Too many wrong codes or passwords from this source; wait.
    pub const TOO_MANY_ATTEMPTS: u16 = 478;
    /// This five-tuple has a seat already.
    pub const SEATED: u16 = 479;
    /// The server is full or draining.
    pub const CAPACITY: u16 = 508;
}

/// Bits of SESSION-FLAGS.
pub mod session_flags {
    /// The session appears in lists.
    pub const LISTED: u32 = 1;
    /// Nobody may join.
    pub const LOCKED: u32 = 2;
    /// Whoever joins is introduced to everybody at once.
    pub const AUTO_INTRODUCE: u32 = 4;
    /// Joining needs a password. Told by the server only.
    pub const HAS_PASSWORD: u32 = 8;
    /// A match that waits for players. Told by the server only.
    pub const FORMING: u32 = 16;
    /// The bits a host may set.
    pub const SETTABLE: u32 = LISTED | LOCKED | AUTO_INTRODUCE;
}

/// Bits of MEMBER-FLAGS.
pub mod member_flags {
    /// This member's addresses are told to nobody; it is reached through the relay only.
    pub const RELAY_ONLY: u32 = 1;
    /// This member is the host. Told by the server only.
    pub const HOST: u32 = 2;
}

/// Bits of LIST-FILTER. A session must satisfy each bit that is set.
pub mod list_filter {
    /// Has a free seat.
    pub const HAS_ROOM: u32 = 1;
    /// Is not locked.
    pub const UNLOCKED: u32 = 2;
    /// Needs no password.
    pub const NO_PASSWORD: u32 = 4;
}

/// Longest APPLICATION-ID, bytes.
pub const APPLICATION_ID_MAX: usize = 32;
/// Longest SESSION-NAME, bytes.
pub const SESSION_NAME_MAX: usize = 64;
/// Longest METADATA, bytes.
pub const METADATA_MAX: usize = 512;
/// Longest MEMBER-DATA, bytes.
pub const MEMBER_DATA_MAX: usize = 64;
/// Longest MATCH-KEY, bytes.
pub const MATCH_KEY_MAX: usize = 64;
/// Most LOCAL-ADDRESS attributes that are kept of a member.
pub const LOCAL_ADDRESSES_MAX: usize = 4;
/// Most PREDICTED-ADDRESS attributes in an introduction.
pub const PREDICTED_ADDRESSES_MAX: usize = 4;
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 24;
/// Bytes of the longest answer to a request without a valid nonce: header, ERROR-CODE, NONCE. A native request shorter
/// than this is not answered before its source is proved, so the answer is never larger than the request.
pub const FIRST_ANSWER_LEN: usize = stun::HEADER_LEN + 8 + 4 + NONCE_LEN;
/// Longest message that a server or client of this protocol sends, bytes: it fits the smallest IPv6 path.
pub const MESSAGE_MAX: usize = 1200;

/// Names one occupancy of one seat: a seat that is given to somebody else gets another generation.
///
/// ```
/// use waypost_proto::wire::native::SeatId;
///
/// let seat = SeatId { seat: 3, generation: 0x12_3456 };
/// assert_eq!(SeatId::from_bytes(&seat.to_bytes()), Some(seat));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeatId {
    /// The seat, 0 to 254.
    pub seat: u8,
    /// Which occupancy: 24 random bits.
    pub generation: u32,
}

impl SeatId {
    /// Wire form: seat, then generation in 24 bits.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 4] {
        ((self.seat as u32) << 24 | self.generation & 0x00ff_ffff).to_be_bytes()
    }

    /// Reads the wire form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let word = u32::from_be_bytes(bytes.try_into().ok()?);
        Some(Self {
            seat: (word >> 24) as u8,
            generation: word & 0x00ff_ffff,
        })
    }
}

/// Names a seat across all sessions: what a client shows with each request from its seat.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct SeatHandle {
    /// The session's join code, which tells the shard that owns it.
    pub code: JoinCode,
    /// The seat.
    pub id: SeatId,
}

impl SeatHandle {
    /// Wire form: the code's bits, then the seat.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&self.code.bits().to_be_bytes());
        bytes[4..].copy_from_slice(&self.id.to_bytes());
        bytes
    }

    /// Reads the wire form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (code, id) = bytes.split_first_chunk::<4>()?;
        Some(Self {
            code: JoinCode::from_bits(u32::from_be_bytes(*code))?,
            id: SeatId::from_bytes(id)?,
        })
    }
}

/// What a client found out about its NAT from two vantage ports of the server.
///
/// ```
/// use waypost_proto::wire::native::NatMapping;
///
/// let steps_by_two = NatMapping { step: 2, last_port: 5_000, random: false };
/// let next: Vec<u16> = steps_by_two.predicted_ports().take(2).collect();
/// assert_eq!(next, [5_002, 5_004]);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NatMapping {
    /// How the mapped port changes from one destination to the next: 0 if it does not.
    pub step: i16,
    /// The port that the last of the probes was seen from.
    pub last_port: u16,
    /// Whether mapped ports differ without a usable step.
    pub random: bool,
}

impl NatMapping {
    /// Wire form: a kind byte (0 same port, 1 steps, 2 random), zero, step, last port, two zeros.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let kind = if self.random {
            2
        } else {
            u8::from(self.step != 0)
        };
        let [s0, s1] = self.step.to_be_bytes();
        let [p0, p1] = self.last_port.to_be_bytes();
        [kind, 0, s0, s1, p0, p1, 0, 0]
    }

    /// Reads the wire form.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 8] = bytes.try_into().ok()?;
        Some(Self {
            step: i16::from_be_bytes([bytes[2], bytes[3]]),
            last_port: u16::from_be_bytes([bytes[4], bytes[5]]),
            random: bytes[0] == 2,
        })
    }

    /// The ports that this NAT will likely use next.
    pub fn predicted_ports(self) -> impl Iterator<Item = u16> {
        let count = if self.random || self.step == 0 {
            0
        } else {
            PREDICTED_ADDRESSES_MAX
        };
        (1..=count).filter_map(move |i| {
            let port = i32::from(self.last_port) + i32::from(self.step) * i32::try_from(i).ok()?;
            u16::try_from(port).ok().filter(|&port| port >= 1024)
        })
    }
}

/// What happened, in an EVENT attribute.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// Somebody has taken a seat. Nested: MEMBER-DATA, MEMBER-FLAGS.
    MemberJoined = 1,
    /// A seat is free again; the reason is a [`LeaveReason`].
    MemberLeft = 2,
    /// The named seat is the host's now.
    HostChanged = 3,
    /// Nested: METADATA, MAX-MEMBERS, SESSION-FLAGS as they are now.
    SessionChanged = 4,
    /// Nested: MEMBER-DATA as it is now.
    MemberChanged = 5,
    /// Begin punching. Nested: XOR-MAPPED-ADDRESS, LOCAL-ADDRESS, PREDICTED-ADDRESS, REACHABLE-ADDRESS, RELAYED-ADDRESS, CHECK-KEY,
    /// START-TIME.
    Introduction = 6,
    /// The receiver's own seat is gone; the reason is a [`LeaveReason`]. The last event.
    Removed = 7,
    /// A match has all its players.
    Formed = 8,
    /// Begin to connect by TCP. Nested: TCP-ADDRESS, LOCAL-ADDRESS, REACHABLE-ADDRESS, CHECK-KEY, START-TIME.
    StreamIntroduction = 9,
}

impl EventKind {
    /// Reads the wire form.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::MemberJoined,
            2 => Self::MemberLeft,
            3 => Self::HostChanged,
            4 => Self::SessionChanged,
            5 => Self::MemberChanged,
            6 => Self::Introduction,
            7 => Self::Removed,
            8 => Self::Formed,
            9 => Self::StreamIntroduction,
            _ => return None,
        })
    }
}

/// Why a member is gone.
///
/// ```
/// use waypost_proto::wire::native::LeaveReason;
///
/// assert_eq!(LeaveReason::from_byte(2), Some(LeaveReason::Kicked));
/// assert_eq!(LeaveReason::from_byte(99), None);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LeaveReason {
    /// It left.
    Left = 1,
    /// The host removed it.
    Kicked = 2,
    /// It was silent for longer than a seat is held.
    TimedOut = 3,
    /// The host, or the operator, closed the session.
    Closed = 4,
    /// The session's lifetime is over.
    Expired = 5,
}

impl LeaveReason {
    /// Reads the wire form.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Left,
            2 => Self::Kicked,
            3 => Self::TimedOut,
            4 => Self::Closed,
            5 => Self::Expired,
            _ => return None,
        })
    }
}

/// The fixed part of an EVENT attribute: kind, reason, two zeros, seat.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EventHead {
    /// What happened.
    pub kind: EventKind,
    /// Why; 0 where there is no reason to give.
    pub reason: u8,
    /// Whom it is about.
    pub seat: SeatId,
}

impl EventHead {
    /// Bytes before the nested attributes.
    pub const LEN: usize = 8;

    /// Writes the wire form.
    pub fn write(self, out: &mut AttributeWriter<'_>) {
        out.raw(&[self.kind as u8, self.reason, 0, 0]);
        out.raw(&self.seat.to_bytes());
    }

    /// Splits an EVENT value into its head and its nested attributes.
    #[must_use]
    pub fn parse(value: &[u8]) -> Option<(Self, Attributes<'_>)> {
        let (head, nested) = value.split_first_chunk::<{ Self::LEN }>()?;
        let head = Self {
            kind: EventKind::from_byte(head[0])?,
            reason: head[1],
            seat: SeatId::from_bytes(&head[4..])?,
        };
        Some((head, Attributes::nested(nested)))
    }
}

/// The key that stands for a password: SHA-256 of a label, the application and the password, cut to 16 bytes. A
/// session without a password has the key of the empty one.
#[must_use]
pub fn password_key(application: &str, password: &str) -> [u8; 16] {
    let label = b"waypost password\0";
    first_16(&digest::sha256(&[
        label,
        application.as_bytes(),
        b"\0",
        password.as_bytes(),
    ]))
}

/// Proves knowledge of a password for one request: HMAC-SHA256 under [`password_key`] over nonce and transaction id, cut
/// to 16 bytes.
#[must_use]
pub fn password_proof(key: &[u8; 16], nonce: &[u8], id: TransactionId) -> [u8; 16] {
    first_16(&digest::hmac_sha256(key, &[nonce, &id.0]))
}

pub(crate) fn first_16(bytes: &[u8]) -> [u8; 16] {
    *bytes.first_chunk().expect("a digest has 32 bytes")
}

/// The attributes of a native message, each checked for length and form.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)] // Each field is the attribute of its name.
pub struct Fields<'a> {
    pub username: Option<&'a str>,
    pub nonce: Option<&'a [u8]>,
    pub mapped: Option<Addr>,
    pub application: Option<&'a str>,
    pub code: Option<JoinCode>,
    pub name: Option<&'a str>,
    pub password_key: Option<[u8; 16]>,
    pub password_proof: Option<[u8; 16]>,
    pub max_members: Option<u8>,
    pub metadata: Option<&'a [u8]>,
    pub member_data: Option<&'a [u8]>,
    pub session_flags: Option<u32>,
    pub handle: Option<SeatHandle>,
    pub target: Option<SeatId>,
    pub other: Option<SeatId>,
    pub match_key: Option<&'a [u8]>,
    pub ticket: Option<&'a [u8]>,
    pub event_sequence: Option<u32>,
    pub list_cursor: Option<[u8; 8]>,
    pub list_filter: Option<u32>,
    pub token: Option<[u8; 16]>,
    pub member_flags: Option<u32>,
    pub check_key: Option<[u8; 16]>,
    pub locals: [Option<Addr>; LOCAL_ADDRESSES_MAX],
    pub nat_mapping: Option<NatMapping>,
    pub keepalive_secs: Option<u32>,
    pub seat_hold_secs: Option<u32>,
    pub session_lifetime_secs: Option<u32>,
    pub server_time_ms: Option<u64>,
    pub start_time_ms: Option<u64>,
    pub predicted: [Option<Addr>; PREDICTED_ADDRESSES_MAX],
    pub limits: Option<(u32, u32)>,
    pub probe_port: Option<u16>,
    pub member_count: Option<u8>,
    pub tcp_address: Option<Addr>,
    pub relayed: Option<Addr>,
    pub reachable_port: Option<u16>,
    pub reachable: Option<Addr>,
}

/// Why a message's attributes could not be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BadFields {
    /// An attribute's value is malformed: error 400.
    Malformed,
    /// A comprehension-required attribute is unknown: error 420.
    Unknown(u16),
}

impl<'a> Fields<'a> {
    /// Reads all attributes of `message`. The first of repeated ones counts (RFC 8489 section 14), but local and predicted
    /// addresses add up. EVENT and LIST-ENTRY are left to whoever iterates over them.
    ///
    /// # Errors
    /// [`BadFields`], with the answer that a request earns by it.
    pub fn read(message: &Message<'a>) -> Result<Self, BadFields> {
        Self::read_list(message.attributes(), message.transaction_id())
    }

    /// Reads a list of attributes in a message with transaction id `id`.
    ///
    /// # Errors
    /// As [`Fields::read`].
    pub fn read_list(list: Attributes<'a>, id: TransactionId) -> Result<Self, BadFields> {
        let mut fields = Self::default();
        for attribute in list {
            if !fields
                .take(attribute.kind, attribute.value, id)
                .ok_or(BadFields::Malformed)?
                && attribute.kind < 0x8000
            {
                return Err(BadFields::Unknown(attribute.kind));
            }
        }
        Ok(fields)
    }

    /// `None`: malformed. `Some(false)`: unknown.
    fn take(&mut self, kind: u16, value: &'a [u8], id: TransactionId) -> Option<bool> {
        match kind {
            stun::attr::USERNAME => set(&mut self.username, text(value, 513)?),
            stun::attr::NONCE => set(&mut self.nonce, value),
            stun::attr::XOR_MAPPED_ADDRESS => {
                set(&mut self.mapped, stun::decode_xor_addr(value, id)?);
            }
            stun::attr::MESSAGE_INTEGRITY
            | stun::attr::MESSAGE_INTEGRITY_SHA256
            | stun::attr::ERROR_CODE
            | stun::attr::UNKNOWN_ATTRIBUTES
            | attr::EVENT
            | attr::LIST_ENTRY => {}
            attr::APPLICATION_ID => set(&mut self.application, text(value, APPLICATION_ID_MAX)?),
            attr::JOIN_CODE => set(&mut self.code, JoinCode::parse(value)?),
            attr::SESSION_NAME => set(&mut self.name, text(value, SESSION_NAME_MAX)?),
            attr::PASSWORD_KEY => set(&mut self.password_key, value.try_into().ok()?),
            attr::PASSWORD_PROOF => set(&mut self.password_proof, value.try_into().ok()?),
            attr::MAX_MEMBERS => {
                let count = u8::try_from(word(value)?)
                    .ok()
                    .filter(|count| *count >= 2)?;
                set(&mut self.max_members, count);
            }
            attr::METADATA => set(&mut self.metadata, at_most(value, METADATA_MAX)?),
            attr::MEMBER_DATA => set(&mut self.member_data, at_most(value, MEMBER_DATA_MAX)?),
            attr::SESSION_FLAGS => set(&mut self.session_flags, word(value)?),
            attr::SEAT_HANDLE => set(&mut self.handle, SeatHandle::from_bytes(value)?),
            attr::TARGET_SEAT => set(&mut self.target, SeatId::from_bytes(value)?),
            attr::OTHER_SEAT => set(&mut self.other, SeatId::from_bytes(value)?),
            attr::MATCH_KEY => {
                let key = at_most(value, MATCH_KEY_MAX).filter(|key| !key.is_empty())?;
                set(&mut self.match_key, key);
            }
            attr::TICKET => set(&mut self.ticket, value),
            attr::EVENT_SEQUENCE => set(&mut self.event_sequence, word(value)?),
            attr::LIST_CURSOR => set(&mut self.list_cursor, value.try_into().ok()?),
            attr::LIST_FILTER => set(&mut self.list_filter, word(value)?),
            attr::TOKEN => set(&mut self.token, value.try_into().ok()?),
            attr::MEMBER_FLAGS => set(&mut self.member_flags, word(value)?),
            attr::CHECK_KEY => set(&mut self.check_key, value.try_into().ok()?),
            attr::LOCAL_ADDRESS => push(&mut self.locals, stun::decode_xor_addr(value, id)?),
            attr::NAT_MAPPING => set(&mut self.nat_mapping, NatMapping::from_bytes(value)?),
            attr::KEEPALIVE_SECS => set(&mut self.keepalive_secs, word(value)?),
            attr::SEAT_HOLD_SECS => set(&mut self.seat_hold_secs, word(value)?),
            attr::SESSION_LIFETIME_SECS => set(&mut self.session_lifetime_secs, word(value)?),
            attr::SERVER_TIME => set(&mut self.server_time_ms, long(value)?),
            attr::START_TIME => set(&mut self.start_time_ms, long(value)?),
            attr::PREDICTED_ADDRESS => {
                push(&mut self.predicted, stun::decode_xor_addr(value, id)?);
            }
            attr::FILL => {}
            attr::LIMITS => {
                let (packets, bytes) = value.split_first_chunk::<4>()?;
                set(
                    &mut self.limits,
                    (u32::from_be_bytes(*packets), word(bytes)?),
                );
            }
            attr::PROBE_PORT => set(&mut self.probe_port, u16::try_from(word(value)?).ok()?),
            attr::MEMBER_COUNT => set(&mut self.member_count, u8::try_from(word(value)?).ok()?),
            attr::TCP_ADDRESS => set(&mut self.tcp_address, stun::decode_xor_addr(value, id)?),
            attr::RELAYED_ADDRESS => set(&mut self.relayed, stun::decode_xor_addr(value, id)?),
            attr::REACHABLE_PORT => {
                set(&mut self.reachable_port, u16::try_from(word(value)?).ok()?);
            }
            attr::REACHABLE_ADDRESS => set(&mut self.reachable, stun::decode_xor_addr(value, id)?),
            _ => return Some(false),
        }
        Some(true)
    }
}

fn set<T>(slot: &mut Option<T>, value: T) {
    slot.get_or_insert(value);
}

fn push(slots: &mut [Option<Addr>], addr: Addr) {
    if let Some(slot) = slots.iter_mut().find(|slot| slot.is_none()) {
        *slot = Some(addr);
    }
}

fn word(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn long(value: &[u8]) -> Option<u64> {
    value.try_into().ok().map(u64::from_be_bytes)
}

fn at_most(value: &[u8], max: usize) -> Option<&[u8]> {
    (value.len() <= max).then_some(value)
}

fn text(value: &[u8], max: usize) -> Option<&str> {
    let text = std::str::from_utf8(at_most(value, max)?).ok()?;
    (!text.is_empty() && !text.chars().any(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::stun::{Class, MessageWriter};
    use proptest::prelude::*;

    #[test]
    fn handles_round_trip() {
        let handle = SeatHandle {
            code: JoinCode::from_bits(0x2abc_def0).unwrap(),
            id: SeatId {
                seat: 254,
                generation: 0x00ab_cdef,
            },
        };
        assert_eq!(SeatHandle::from_bytes(&handle.to_bytes()), Some(handle));
        assert_eq!(SeatHandle::from_bytes(&[0xff; 8]), None, "31 bits of code");
    }

    #[test]
    fn a_stepping_nat_is_predicted_within_the_port_range() {
        let mapping = NatMapping {
            step: 2,
            last_port: 65_531,
            random: false,
        };
        assert_eq!(
            mapping.predicted_ports().collect::<Vec<_>>(),
            [65_533, 65_535]
        );
        assert_eq!(NatMapping::from_bytes(&mapping.to_bytes()), Some(mapping));
        assert_eq!(NatMapping::default().predicted_ports().count(), 0);
    }

    #[test]
    fn limits_of_fields_are_kept() {
        let read = |kind: u16, value: &[u8]| {
            let mut out = Vec::new();
            MessageWriter::new(
                &mut out,
                method::HOST,
                Class::Request,
                TransactionId([0; 12]),
            )
            .attribute(kind, value)
            .finish();
            Fields::read(&Message::parse(&out).unwrap()).map(|_| ())
        };
        assert_eq!(read(attr::METADATA, &[0; 512]), Ok(()));
        assert_eq!(read(attr::METADATA, &[0; 513]), Err(BadFields::Malformed));
        assert_eq!(read(attr::APPLICATION_ID, b""), Err(BadFields::Malformed));
        assert_eq!(
            read(attr::APPLICATION_ID, b"a\nb"),
            Err(BadFields::Malformed)
        );
        assert_eq!(
            read(attr::MAX_MEMBERS, &1u32.to_be_bytes()),
            Err(BadFields::Malformed)
        );
        assert_eq!(
            read(attr::MAX_MEMBERS, &256u32.to_be_bytes()),
            Err(BadFields::Malformed)
        );
        assert_eq!(read(0x4bff, b""), Err(BadFields::Unknown(0x4bff)));
        assert_eq!(read(0xcbff, b""), Ok(()));
    }

    proptest! {
        #[test]
        fn arbitrary_attributes_never_panic(attributes in proptest::collection::vec((0x4b00u16..0x4b20, proptest::collection::vec(any::<u8>(), 0..24)), 0..12)) {
            let mut out = Vec::new();
            let mut writer = MessageWriter::new(&mut out, method::HOST, Class::Request, TransactionId([3; 12]));
            for (kind, value) in &attributes {
                writer.attribute(*kind, value);
            }
            writer.finish();
            let message = Message::parse(&out).unwrap();
            let _ = Fields::read(&message);
            for attribute in message.attributes() {
                let _ = EventHead::parse(attribute.value);
            }
        }
    }
}
