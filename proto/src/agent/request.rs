//! Requests to the server: what an operation is ([`Op`]) and how it becomes bytes. Never keeps a request or repeats one.

use super::Config;
use super::event::RequestId;
use super::failure::Refused;
use super::path::PathPolicy;
use super::roster::Seat;
use super::transaction::Repetition;
use crate::addr::Addr;
use crate::wire::join_code::JoinCode;
use crate::wire::native::{
    self, FIRST_ANSWER_LEN, LOCAL_ADDRESSES_MAX, NatMapping, SeatId, attr, list_filter,
    member_flags, method, session_flags,
};
use crate::wire::stun::{self, Class, Integrity, MessageWriter, TransactionId};

/// The session that a host makes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostConfig {
    /// A unique name to join by, 1 to 64 bytes, or none.
    pub name: Option<String>,
    /// What joining takes; empty for none.
    pub password: String,
    /// Seats, 2 to 255, the host's included.
    pub max_members: u8,
    /// Up to 512 bytes that lists and members show.
    pub metadata: Vec<u8>,
    /// Whether lists show the session.
    pub listed: bool,
    /// Whether the session begins locked.
    pub locked: bool,
    /// Whether everybody who joins is introduced to everybody, so that direct paths come by themselves.
    pub introduce: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            name: None,
            password: String::new(),
            max_members: 8,
            metadata: Vec::new(),
            listed: false,
            locked: false,
            introduce: true,
        }
    }
}

impl HostConfig {
    pub(super) fn flags(&self) -> u32 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.listed, session_flags::LISTED)
            | bit(self.locked, session_flags::LOCKED)
            | bit(self.introduce, session_flags::AUTO_INTRODUCE)
    }

    pub(super) fn check(&self) -> Result<(), Refused> {
        if let Some(name) = &self.name {
            length(
                "the session's name",
                name.len(),
                1,
                native::SESSION_NAME_MAX,
            )?;
        }
        length("the metadata", self.metadata.len(), 0, native::METADATA_MAX)?;
        members(self.max_members)
    }
}

/// Which session to join.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// The one with this code.
    Code(JoinCode),
    /// The one with this unique name.
    Name(String),
}

impl Target {
    /// A code if `text` reads as one, else a name.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        JoinCode::parse(text.as_bytes()).map_or_else(|| Self::Name(text.to_owned()), Self::Code)
    }
}

/// What to change about the session; `None` leaves a thing as it is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SessionUpdate {
    /// New metadata.
    pub metadata: Option<Vec<u8>>,
    /// A new password; empty for none.
    pub password: Option<String>,
    /// Another number of seats.
    pub max_members: Option<u8>,
    /// Other [`session_flags`], of those that a host may set.
    pub flags: Option<u32>,
}

/// Which sessions to list.
///
/// ```
/// use waypost_proto::agent::ListFilter;
///
/// // What a player without friends can join at once.
/// let filter = ListFilter {
///     has_room: true,
///     unlocked: true,
///     no_password: true,
///     ..ListFilter::default()
/// };
/// assert_eq!(filter.name_prefix, None);
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ListFilter {
    /// Only sessions whose name begins so.
    pub name_prefix: Option<String>,
    /// Only sessions with a free seat.
    pub has_room: bool,
    /// Only sessions that are not locked.
    pub unlocked: bool,
    /// Only sessions that need no password.
    pub no_password: bool,
}

impl ListFilter {
    fn bits(&self) -> u32 {
        let bit = |on, bit| if on { bit } else { 0 };
        bit(self.has_room, list_filter::HAS_ROOM)
            | bit(self.unlocked, list_filter::UNLOCKED)
            | bit(self.no_password, list_filter::NO_PASSWORD)
    }
}

/// Whom to introduce.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Introduce {
    /// Every pair of members. Only the host may.
    All,
    /// The sender and this member.
    With(SeatId),
    /// These two. Only the host may.
    Pair(SeatId, SeatId),
}

/// An operation, with all that is needed to write it again under another nonce or token.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Host(Box<HostConfig>),
    Join {
        target: Target,
        password: String,
    },
    Match {
        key: Vec<u8>,
        players: u8,
    },
    List {
        filter: ListFilter,
        cursor: Option<[u8; 8]>,
    },
    Resume {
        ticket: Vec<u8>,
        name: Option<String>,
        metadata: Option<Vec<u8>>,
    },
    Leave,
    Kick(SeatId),
    UpdateSession(SessionUpdate),
    UpdateMember(Vec<u8>),
    Transfer(SeatId),
    Close,
    Introduce(Introduce),
    Keepalive,
    /// Goes over a connection of its own for a stream with a peer, or through a TURN server; never over the agent's socket.
    Observe {
        peer: Option<SeatId>,
        locals: Vec<Addr>,
        reachable_port: Option<u16>,
    },
}

impl Op {
    pub(super) const fn method(&self) -> u16 {
        match self {
            Self::Host(_) => method::HOST,
            Self::Join { .. } => method::JOIN,
            Self::Match { .. } => method::MATCH,
            Self::List { .. } => method::LIST,
            Self::Resume { .. } => method::RESUME,
            Self::Leave => method::LEAVE,
            Self::Kick(_) => method::KICK,
            Self::UpdateSession(_) | Self::UpdateMember(_) => method::UPDATE,
            Self::Transfer(_) => method::TRANSFER,
            Self::Close => method::CLOSE,
            Self::Introduce(_) => method::INTRODUCE,
            Self::Keepalive => method::KEEPALIVE,
            Self::Observe { .. } => method::OBSERVE,
        }
    }

    /// Whether its success gives a seat.
    pub(super) const fn seats(&self) -> bool {
        matches!(
            self,
            Self::Host(_) | Self::Join { .. } | Self::Match { .. } | Self::Resume { .. }
        )
    }
}

/// A request under way.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// Whom to report to; `None` if the agent asks on its own account.
    pub(super) id: Option<RequestId>,
    pub(super) op: Op,
    pub(super) transaction: TransactionId,
    pub(super) bytes: Vec<u8>,
    pub(super) repetition: Repetition,
    /// When the operation was begun, whatever nonces it has used since.
    pub(super) began: crate::time::Millis,
    /// How often the server wanted another nonce.
    pub(super) renewals: u8,
    /// Waits until the seat is back.
    pub(super) parked: bool,
}

/// What requests are written from.
pub(super) struct Context<'a> {
    pub(super) config: &'a Config,
    pub(super) nonce: Option<&'a [u8]>,
    pub(super) seat: Option<&'a Seat>,
    pub(super) member_data: &'a [u8],
    pub(super) mapping: Option<NatMapping>,
}

impl Context<'_> {
    /// Writes `op` as one datagram into `out`. Without a nonce, only what asks for one: the server would read no more.
    pub(super) fn write(&self, op: &Op, id: TransactionId, out: &mut Vec<u8>) {
        out.clear();
        let mut message = MessageWriter::new(out, op.method(), Class::Request, id);
        let Some(nonce) = self.nonce else {
            let fill = [0; FIRST_ANSWER_LEN - stun::HEADER_LEN - 4];
            message.attribute(attr::FILL, &fill).finish();
            return;
        };
        message.attribute(stun::attr::NONCE, nonce);
        self.write_body(op, id, nonce, &mut message);
        let seated = native::method::is_seated(op.method());
        if let Some(seat) = self.seat
            && seated
        {
            message.integrity(Integrity::Sha256Truncated, &seat.token);
        } else if let Some(credential) = &self.config.credential
            && !matches!(op, Op::Resume { .. })
        {
            message
                .attribute(stun::attr::USERNAME, credential.username.as_bytes())
                .integrity(Integrity::Sha1, credential.password.as_bytes());
        }
        message.finish();
    }

    fn write_body(
        &self,
        op: &Op,
        id: TransactionId,
        nonce: &[u8],
        message: &mut MessageWriter<'_>,
    ) {
        let application = self.config.application.as_bytes();
        if let Some(seat) = self.seat
            && native::method::is_seated(op.method())
        {
            message.attribute(attr::SEAT_HANDLE, &seat.handle.to_bytes());
        }
        match op {
            Op::Host(host) => {
                message
                    .attribute(attr::APPLICATION_ID, application)
                    .u32(attr::MAX_MEMBERS, u32::from(host.max_members))
                    .u32(attr::SESSION_FLAGS, host.flags());
                if let Some(name) = &host.name {
                    message.attribute(attr::SESSION_NAME, name.as_bytes());
                }
                if !host.password.is_empty() {
                    message.attribute(attr::PASSWORD_KEY, &self.key_of(&host.password));
                }
                if !host.metadata.is_empty() {
                    message.attribute(attr::METADATA, &host.metadata);
                }
                self.write_member_part(message);
            }
            Op::Join { target, password } => {
                message.attribute(attr::APPLICATION_ID, application);
                match target {
                    Target::Code(code) => {
                        message.attribute(attr::JOIN_CODE, code.to_string().as_bytes())
                    }
                    Target::Name(name) => message.attribute(attr::SESSION_NAME, name.as_bytes()),
                };
                let proof = native::password_proof(&self.key_of(password), nonce, id);
                message.attribute(attr::PASSWORD_PROOF, &proof);
                self.write_member_part(message);
            }
            Op::Match { key, players } => {
                message
                    .attribute(attr::APPLICATION_ID, application)
                    .attribute(attr::MATCH_KEY, key)
                    .u32(attr::MAX_MEMBERS, u32::from(*players));
                self.write_member_part(message);
            }
            Op::List { filter, cursor } => {
                message
                    .attribute(attr::APPLICATION_ID, application)
                    .u32(attr::LIST_FILTER, filter.bits());
                if let Some(prefix) = &filter.name_prefix {
                    message.attribute(attr::SESSION_NAME, prefix.as_bytes());
                }
                if let Some(cursor) = cursor {
                    message.attribute(attr::LIST_CURSOR, cursor);
                }
            }
            Op::Resume {
                ticket,
                name,
                metadata,
            } => {
                message.attribute(attr::TICKET, ticket);
                if let Some(name) = name {
                    message.attribute(attr::SESSION_NAME, name.as_bytes());
                }
                if let Some(metadata) = metadata {
                    message.attribute(attr::METADATA, metadata);
                }
                self.write_member_part(message);
            }
            Op::Kick(target) | Op::Transfer(target) => {
                message.attribute(attr::TARGET_SEAT, &target.to_bytes());
            }
            Op::UpdateSession(update) => {
                if let Some(metadata) = &update.metadata {
                    message.attribute(attr::METADATA, metadata);
                }
                if let Some(password) = &update.password {
                    message.attribute(attr::PASSWORD_KEY, &self.key_of(password));
                }
                if let Some(max_members) = update.max_members {
                    message.u32(attr::MAX_MEMBERS, u32::from(max_members));
                }
                if let Some(flags) = update.flags {
                    message.u32(attr::SESSION_FLAGS, flags & session_flags::SETTABLE);
                }
            }
            Op::UpdateMember(data) => {
                message.attribute(attr::MEMBER_DATA, data);
            }
            Op::Introduce(introduce) => match introduce {
                Introduce::All => {}
                Introduce::With(peer) => {
                    message.attribute(attr::TARGET_SEAT, &peer.to_bytes());
                }
                Introduce::Pair(one, other) => {
                    message
                        .attribute(attr::TARGET_SEAT, &one.to_bytes())
                        .attribute(attr::OTHER_SEAT, &other.to_bytes());
                }
            },
            Op::Keepalive => self.write_addresses(message),
            Op::Observe {
                peer,
                locals,
                reachable_port,
            } => {
                if let Some(peer) = peer {
                    message.attribute(attr::TARGET_SEAT, &peer.to_bytes());
                }
                for local in locals.iter().take(LOCAL_ADDRESSES_MAX) {
                    message.xor_addr(attr::LOCAL_ADDRESS, *local);
                }
                if let Some(port) = reachable_port {
                    message.u32(attr::REACHABLE_PORT, u32::from(*port));
                }
            }
            Op::Leave | Op::Close => {}
        }
    }

    fn key_of(&self, password: &str) -> [u8; 16] {
        native::password_key(&self.config.application, password)
    }

    fn write_member_part(&self, message: &mut MessageWriter<'_>) {
        if !self.member_data.is_empty() {
            message.attribute(attr::MEMBER_DATA, self.member_data);
        }
        if self.config.policy == PathPolicy::RelayOnly {
            message.u32(attr::MEMBER_FLAGS, member_flags::RELAY_ONLY);
        }
        self.write_addresses(message);
    }

    /// Whoever wants the relay only tells no address.
    fn write_addresses(&self, message: &mut MessageWriter<'_>) {
        if self.config.policy == PathPolicy::RelayOnly {
            return;
        }
        let locals = self.config.local_addresses.iter();
        for local in locals.take(LOCAL_ADDRESSES_MAX) {
            message.xor_addr(attr::LOCAL_ADDRESS, *local);
        }
        if let Some(port) = self.config.reachable_port {
            message.u32(attr::REACHABLE_PORT, u32::from(port));
        }
        if let Some(mapping) = self.mapping {
            message.attribute(attr::NAT_MAPPING, &mapping.to_bytes());
        }
    }
}

/// A connectivity check, or with `answer_to` the answer to one.
pub(super) fn write_check(
    id: TransactionId,
    handle: native::SeatHandle,
    key: &[u8; 16],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(52);
    MessageWriter::new(&mut out, stun::method::BINDING, Class::Request, id)
        .attribute(attr::SEAT_HANDLE, &handle.to_bytes())
        .integrity(Integrity::Sha256Truncated, key)
        .finish();
    out
}

/// A connectivity check that says that its sender leaves the server and goes on directly.
pub(super) fn write_notice(
    id: TransactionId,
    handle: native::SeatHandle,
    key: &[u8; 16],
) -> Vec<u8> {
    let mut out = Vec::with_capacity(56);
    MessageWriter::new(&mut out, stun::method::BINDING, Class::Request, id)
        .attribute(attr::SEAT_HANDLE, &handle.to_bytes())
        .attribute(attr::LEAVES_SERVER, &[])
        .integrity(Integrity::Sha256Truncated, key)
        .finish();
    out
}

/// The answer to a connectivity check that came from `from`.
pub(super) fn write_check_answer(id: TransactionId, from: Addr, key: &[u8; 16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    MessageWriter::new(&mut out, stun::method::BINDING, Class::Success, id)
        .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, from)
        .integrity(Integrity::Sha256Truncated, key)
        .finish();
    out
}

pub(super) const fn length(
    what: &'static str,
    len: usize,
    min: usize,
    max: usize,
) -> Result<(), Refused> {
    if len >= min && len <= max {
        Ok(())
    } else {
        Err(Refused::Length(what, max))
    }
}

pub(super) const fn members(count: u8) -> Result<(), Refused> {
    if count >= 2 {
        Ok(())
    } else {
        Err(Refused::Members)
    }
}
