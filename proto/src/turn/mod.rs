//! TURN over UDP (RFC 8656) with long-term credentials (RFC 8489 section 9.2).
//!
//! Nothing is kept of a source before its request is authenticated. What packets need of an allocation lives in
//! [`crate::forwarding`]; here is who, how long and how many. Relay sockets are opened by the caller, who is told by
//! [`RelayCommand`] and answers with [`crate::shard::Shard::handle_relay_opened`].
//!
//! * `allocate`: Allocate, and relayed transport addresses coming and going.
//! * `allocation`, `permission`, `channel`: what there is.
//! * `credential`, `peer_policy`: who may, and whom they may reach.
//! * `unproven`, `port_pool`: budgets of bytes and ports; `lent`: relay ports of others.

mod allocate;
mod allocation;
pub mod channel;
pub mod credential;
mod lent;
pub mod peer_policy;
pub mod permission;
mod port_pool;
mod unproven;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ahash::RandomState;
use rand::rngs::StdRng;

use self::allocate::{Opening, RelayAddress, Reservation};
use self::allocation::{AllocationTable, Family};
use self::channel::{CHANNEL_SECS, NotBound};
pub use self::credential::TurnCredentials;
use self::credential::{Judge, PASSWORD_ALGORITHMS, Refused};
use self::peer_policy::{PeerPolicy, PeerRules};
use self::permission::PERMISSION_SECS;
pub(crate) use self::unproven::ReplyBudget;
use crate::addr::{Addr, ClientAddr};
use crate::forwarding::{Forward, ForwardingTable, NotForwarded, RelayLimits, SocketIndex};
use crate::lobby::{Outbox, TimerKey};
use crate::nonce::NonceKeys;
use crate::stats::{Counter, Counters};
use crate::time::Millis;
use crate::timer_wheel::TimerWheel;
use crate::wire::channel_data::ChannelNumber;
use crate::wire::stun::{
    self, Class, HEADER_LEN, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr,
    method,
};

/// Seconds that an allocation lives unless more is asked for (RFC 8656 section 7.2).
pub const DEFAULT_LIFETIME_SECS: u32 = 600;
/// Seconds that an allocation may be granted at once (RFC 8656 section 7.2 recommends an hour).
pub const MAX_LIFETIME_SECS: u32 = 3600;

/// An address of relayed transport addresses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RelayIp {
    /// What sockets are bound to.
    pub local: IpAddr,
    /// What clients are told.
    pub external: IpAddr,
}

/// What a shard's TURN side is made with.
#[derive(Clone, Debug)]
pub struct TurnConfig {
    /// Who may allocate. With nobody, every Allocate is refused.
    pub credentials: TurnCredentials,
    /// Addresses of relayed transport addresses; the first of each family counts.
    pub relay_ips: Vec<RelayIp>,
    /// Their ports, of all shards together.
    pub relay_ports: RangeInclusive<u16>,
    /// Whom clients may reach.
    pub peers: PeerRules,
    /// Most allocations on this shard.
    pub allocations_max: usize,
    /// Most allocations of one user on this shard; 0 is no limit.
    pub allocations_per_user: u32,
    /// Most allocations of one source prefix on this shard; 0 is no limit.
    pub allocations_per_prefix: u32,
    /// Most permissions of one allocation.
    pub permissions_max: usize,
    /// Most channels of one allocation, those included that lapsed and are held.
    pub channels_max: usize,
    /// Whether to serve clients that know RFC 5766 only: channel numbers up to 0x7FFF, and permissions that last as long as
    /// channels because some refresh them late.
    pub serves_rfc5766: bool,
    /// What one allocation may relay, both directions together.
    pub limits: RelayLimits,
    /// Bytes per second that a source prefix may draw before it has proved its address, packet headers included; 0 is no
    /// limit.
    pub unproven_bytes_per_sec: u32,
}

impl Default for TurnConfig {
    /// Nobody may allocate.
    fn default() -> Self {
        Self {
            credentials: TurnCredentials::default(),
            relay_ips: Vec::new(),
            relay_ports: 49_152..=u16::MAX,
            peers: PeerRules::default(),
            allocations_max: 16_384,
            allocations_per_user: 0,
            allocations_per_prefix: 0,
            permissions_max: 256,
            channels_max: 256,
            serves_rfc5766: false,
            limits: RelayLimits::default(),
            unproven_bytes_per_sec: 1000,
        }
    }
}

/// What a shard wants done with relay sockets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayCommand {
    /// Open a socket at this address and tell the outcome.
    Open {
        /// The index that it gets.
        socket: SocketIndex,
        /// Where to bind it.
        at: Addr,
    },
    /// Close it.
    Close {
        /// Its index, which may be given to another at once.
        socket: SocketIndex,
    },
}

/// Why a relay socket was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayRefusal {
    /// Somebody has the port: another one will do.
    InUse,
    /// The host has no room for it, or no such address.
    Impossible,
}

/// What the handlers are lent for one call.
pub(crate) struct Step<'a> {
    pub now: Millis,
    pub unix_secs: u64,
    pub out: &'a mut Outbox,
    pub wheel: &'a mut TimerWheel<TimerKey>,
    pub rng: &'a mut StdRng,
    pub counters: &'a mut Counters,
    pub forwarding: &'a mut ForwardingTable,
    pub nonces: &'a mut NonceKeys,
}

/// An error answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Reject(u16);

type Outcome = Result<(), Reject>;

/// How an authenticated request is answered.
#[derive(Clone, PartialEq, Eq)]
struct Reply {
    socket: SocketIndex,
    to: Addr,
    id: TransactionId,
    method: u16,
    integrity: Integrity,
    key: LongTermKey,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({} to {})", self.method, self.to)
    }
}

impl Reply {
    fn send(&self, out: &mut Outbox, class: Class, fill: impl FnOnce(&mut MessageWriter<'_>)) {
        let start = out.bytes.len();
        let mut writer = MessageWriter::new(&mut out.bytes, self.method, class, self.id);
        fill(&mut writer);
        writer
            .integrity(self.integrity, self.key.as_bytes())
            .finish();
        out.transmit(self.socket, self.to, start);
    }

    fn success(&self, step: &mut Step<'_>, fill: impl FnOnce(&mut MessageWriter<'_>)) {
        self.send(step.out, Class::Success, fill);
    }

    fn error(&self, step: &mut Step<'_>, code: u16) {
        step.counters.count(Counter::TurnErrors);
        self.send(step.out, Class::Error, |writer| {
            writer.error_code(code);
        });
    }
}

/// An authenticated request.
struct Request<'a> {
    message: &'a Message<'a>,
    source: ClientAddr,
    user: u64,
    person: u64,
    reply: Reply,
}

/// The TURN side of one shard.
pub(crate) struct TurnService {
    config: TurnConfig,
    judge: Judge,
    policy: PeerPolicy,
    budget: ReplyBudget,
    hasher: RandomState,
    allocations: AllocationTable,
    addresses: [Option<RelayAddress>; 2],
    opening: HashMap<SocketIndex, Opening, RandomState>,
    /// Socket indexes that were used and are free.
    free_sockets: Vec<SocketIndex>,
    /// The lowest socket index that was never used, and the end of the range.
    unused_sockets: std::ops::Range<u16>,
    sockets_max: u16,
    reservations: Vec<Reservation>,
    next_reservation: u32,
    /// Requests that deleted an allocation lately, as keyed hashes: their repetitions get the same answer.
    deleted: Box<[u64]>,
    next_deleted: usize,
    unknown: Vec<u16>,
    draining: bool,
}

/// Deletions that are remembered.
const DELETED: usize = 512;

impl TurnService {
    /// The TURN side of shard `index` of `count`, with nothing allocated. Socket indexes from `listeners` on are its own.
    pub fn new(
        mut config: TurnConfig,
        index: u16,
        count: u16,
        listeners: usize,
        seeds: [u64; 4],
    ) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        let first = u16::try_from(listeners).expect("a server has few listeners");
        let address = |family: Family| {
            let ips = config.relay_ips.iter();
            let is_v4 = family == Family::V4;
            let ip = ips.copied().find(|ip| ip.local.is_ipv4() == is_v4)?;
            Some(RelayAddress::new(
                ip,
                config.relay_ports.clone(),
                index,
                count,
            ))
        };
        let addresses = Family::ALL.map(address);
        let mut rules = std::mem::take(&mut config.peers);
        rules.relay_ips = config
            .relay_ips
            .iter()
            .flat_map(|ip| [ip.local, ip.external])
            .collect();
        rules.relay_ports = Some(config.relay_ports.clone());
        Self {
            judge: Judge::new(std::mem::take(&mut config.credentials)),
            policy: PeerPolicy::new(rules),
            budget: ReplyBudget::new(hasher.clone(), config.unproven_bytes_per_sec),
            allocations: AllocationTable::new(config.allocations_max, hasher.clone()),
            addresses,
            opening: HashMap::with_hasher(hasher.clone()),
            free_sockets: Vec::new(),
            unused_sockets: first..u16::MAX,
            sockets_max: u16::MAX - first,
            reservations: Vec::new(),
            next_reservation: 0,
            deleted: vec![0; DELETED].into_boxed_slice(),
            next_deleted: 0,
            unknown: Vec::new(),
            draining: false,
            hasher,
            config,
        }
    }

    /// Allocations of this shard.
    pub const fn allocation_count(&self) -> usize {
        self.allocations.len()
    }

    /// Relay sockets that are open or being opened, and the ports that are taken for them.
    pub fn relay_sockets(&self) -> (usize, u32) {
        let never_used = self.unused_sockets.len() + self.free_sockets.len();
        let ports = self.addresses.iter().flatten();
        let taken = ports.map(RelayAddress::taken_count).sum();
        (usize::from(self.sockets_max) - never_used, taken)
    }

    /// Whether clients of RFC 5766's time are served in their way.
    pub const fn serves_rfc5766(&self) -> bool {
        self.config.serves_rfc5766
    }

    fn permission_until(&self, now: Millis) -> Millis {
        now.plus_secs(if self.config.serves_rfc5766 {
            CHANNEL_SECS
        } else {
            PERMISSION_SECS
        })
    }

    /// Grants nothing new from now on.
    pub const fn drain(&mut self) {
        self.draining = true;
    }

    /// Changes the secrets of time-limited credentials.
    pub fn set_secrets(&mut self, secrets: Vec<Box<[u8]>>) {
        self.judge.set_secrets(secrets);
    }

    /// Serves a request of one of TURN's methods.
    pub fn handle_request(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<(), Counter> {
        if !message.has_magic_cookie() {
            return Err(Counter::DropParse);
        }
        if self.judge.admits_nobody() {
            return self.refuse(step, socket, source, message, 403);
        }
        match self.judge.check_form(message) {
            Ok(()) => {}
            Err(Refused::BadRequest) => return self.refuse(step, socket, source, message, 400),
            Err(_) => return self.challenge(step, socket, source, message, 401),
        }
        let nonce = message.find(attr::NONCE).unwrap_or_default();
        if step
            .nonces
            .verify_turn(step.unix_secs, source, nonce)
            .is_err()
        {
            return self.challenge(step, socket, source, message, 438);
        }
        let authenticated = match self.judge.authenticate(step.unix_secs, message) {
            Ok(authenticated) => authenticated,
            Err(Refused::BadRequest) => return self.refuse(step, socket, source, message, 400),
            Err(_) => {
                step.counters.count(Counter::TurnCredentialFailures);
                return self.challenge(step, socket, source, message, 401);
            }
        };
        step.counters.count(Counter::TurnRequests);
        let request = Request {
            message,
            source,
            user: self.hasher.hash_one(authenticated.username),
            person: self.hasher.hash_one(authenticated.person),
            reply: Reply {
                socket,
                to: source.0,
                id: message.transaction_id(),
                method: message.method(),
                integrity: authenticated.integrity,
                key: authenticated.key,
            },
        };
        let mut unknown = std::mem::take(&mut self.unknown);
        if message.unknown_required(is_known, &mut unknown) > 0 {
            step.counters.count(Counter::TurnErrors);
            request.reply.send(step.out, Class::Error, |writer| {
                writer.error_code(420).unknown_attributes(&unknown);
            });
        } else if let Err(Reject(code)) = self.dispatch(step, &request) {
            request.reply.error(step, code);
        }
        self.unknown = unknown;
        Ok(())
    }

    fn dispatch(&mut self, step: &mut Step<'_>, request: &Request<'_>) -> Outcome {
        if request.message.method() == method::ALLOCATE {
            return self.handle_allocate(step, request);
        }
        let allocation = step
            .forwarding
            .allocation_of(request.reply.socket, request.source);
        let Some(index) = allocation else {
            if request.message.method() == method::REFRESH
                && self.deleted.contains(&self.deletion(request))
            {
                answer_lifetime(step, request, 0);
                return Ok(());
            }
            return Err(Reject(437));
        };
        let allocation = self
            .allocations
            .get(index)
            .expect("an indexed allocation is there");
        if allocation.user != request.user {
            return Err(Reject(441));
        }
        if allocation.opening.is_some() {
            // The client has not heard of it yet; it will repeat this.
            return Ok(());
        }
        match request.message.method() {
            method::REFRESH => self.handle_refresh(step, request, index),
            method::CREATE_PERMISSION => self.handle_create_permission(step, request, index),
            _ => self.handle_channel_bind(step, request, index),
        }
    }

    /// Asks for a credential under a new nonce (RFC 8489 section 9.2.4).
    fn challenge(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
        code: u16,
    ) -> Result<(), Counter> {
        let nonce = step.nonces.issue_turn(step.unix_secs, source);
        let realm = self.judge.realm();
        unproven_answer(&mut self.budget, step, socket, source, message, |writer| {
            writer
                .error_code(code)
                .attribute(attr::REALM, realm.as_bytes())
                .attribute(attr::NONCE, &nonce)
                .attribute(attr::PASSWORD_ALGORITHMS, &PASSWORD_ALGORITHMS);
        })
        .inspect(|()| step.counters.count(Counter::UnprovenReplies))
    }

    /// Answers a request that is not authenticated with an error and nothing else.
    fn refuse(
        &mut self,
        step: &mut Step<'_>,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
        code: u16,
    ) -> Result<(), Counter> {
        unproven_answer(&mut self.budget, step, socket, source, message, |writer| {
            writer.error_code(code);
        })
    }

    /// Refresh (RFC 8656 section 8.2).
    fn handle_refresh(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        let requested = lifetime(request.message)?;
        let family = requested_family(request.message, attr::REQUESTED_ADDRESS_FAMILY)?;
        let allocation = self.allocations.get(index).ok_or(Reject(437))?;
        if let Some(family) = family
            && allocation.relayed[family.place()].is_none()
        {
            return Err(Reject(443));
        }
        let families = Family::ALL
            .into_iter()
            .filter(|of| family.is_none_or(|family| family == *of));
        if requested == Some(0) {
            let deletion = self.deletion(request);
            self.deleted[self.next_deleted] = deletion;
            self.next_deleted = (self.next_deleted + 1) % DELETED;
            families.for_each(|family| self.close_family(step, index, family));
            answer_lifetime(step, request, 0);
            return Ok(());
        }
        let granted = granted_lifetime(requested);
        let until = step.now.plus_secs(granted);
        for family in families {
            if let Some(relayed) = &mut allocation.relayed[family.place()] {
                relayed.until = until;
            }
        }
        self.set_timer(step, index);
        answer_lifetime(step, request, granted);
        Ok(())
    }

    /// What tells a deletion from others.
    fn deletion(&self, request: &Request<'_>) -> u64 {
        self.hasher.hash_one((
            request.reply.socket,
            request.source,
            request.reply.id,
            request.user,
        ))
    }

    /// CreatePermission (RFC 8656 section 10.2).
    fn handle_create_permission(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        let id = request.message.transaction_id();
        let mut peers = Vec::new();
        for attribute in request.message.attributes() {
            if attribute.kind == attr::XOR_PEER_ADDRESS {
                peers.push(stun::decode_xor_addr(attribute.value, id).ok_or(Reject(400))?);
            }
        }
        if peers.is_empty() {
            return Err(Reject(400));
        }
        if !peers.iter().all(|peer| self.policy.may_permit(peer.ip())) {
            return Err(Reject(403));
        }
        let relay = step.forwarding.relay(index).ok_or(Reject(437))?;
        if !peers.iter().all(|peer| relay.serves_family_of(*peer)) {
            return Err(Reject(443));
        }
        let capacity = self.config.permissions_max;
        if !relay.permissions.has_room(step.now, &peers, capacity) {
            return Err(Reject(508));
        }
        let until = self.permission_until(step.now);
        for peer in peers {
            relay.permissions.grant(peer, until);
        }
        request.reply.success(step, |_| {});
        Ok(())
    }

    /// ChannelBind (RFC 8656 section 12.2).
    fn handle_channel_bind(
        &mut self,
        step: &mut Step<'_>,
        request: &Request<'_>,
        index: u32,
    ) -> Outcome {
        let number = match request.message.find(attr::CHANNEL_NUMBER) {
            Some(&[high, low, _, _]) => {
                let number = u16::from_be_bytes([high, low]);
                if self.config.serves_rfc5766 {
                    ChannelNumber::new_rfc5766(number)
                } else {
                    ChannelNumber::new(number)
                }
            }
            _ => None,
        }
        .ok_or(Reject(400))?;
        let peer = request
            .message
            .find_xor_addr(attr::XOR_PEER_ADDRESS)
            .ok_or(Reject(400))?;
        if !self.policy.may_relay_to(peer) {
            return Err(Reject(403));
        }
        let relay = step.forwarding.relay(index).ok_or(Reject(437))?;
        if !relay.serves_family_of(peer) {
            return Err(Reject(443));
        }
        let capacity = self.config.channels_max;
        match relay.channels.check(step.now, number, peer, capacity) {
            Ok(()) => {}
            Err(NotBound::Conflict) => return Err(Reject(400)),
            Err(NotBound::Full) => return Err(Reject(508)),
        }
        let capacity = self.config.permissions_max;
        if !relay.permissions.has_room(step.now, &[peer], capacity) {
            return Err(Reject(508));
        }
        relay
            .permissions
            .grant(peer, self.permission_until(step.now));
        relay
            .channels
            .bind(number, peer, step.now.plus_secs(CHANNEL_SECS));
        request.reply.success(step, |_| {});
        Ok(())
    }

    /// A Send indication (RFC 8656 section 11.2). What is wrong with one is never answered.
    pub fn handle_send(
        &mut self,
        now: Millis,
        forwarding: &mut ForwardingTable,
        socket: SocketIndex,
        source: ClientAddr,
        message: &Message<'_>,
    ) -> Result<Forward, Counter> {
        let allocation = forwarding
            .allocation_of(socket, source)
            .ok_or(Counter::DropNoFlow)?;
        let mut peer = None;
        let mut data = None;
        for attribute in message.attributes() {
            match attribute.kind {
                attr::XOR_PEER_ADDRESS if peer.is_none() => {
                    let id = message.transaction_id();
                    let decoded = stun::decode_xor_addr(attribute.value, id);
                    peer = Some(decoded.ok_or(Counter::DropParse)?);
                }
                attr::DATA if data.is_none() => data = Some(attribute),
                kind if kind < 0x8000 && !is_known(kind) => return Err(Counter::DropParse),
                _ => {}
            }
        }
        let (Some(peer), Some(data)) = (peer, data) else {
            return Err(Counter::DropParse);
        };
        if !self.policy.may_relay_to(peer) {
            return Err(Counter::DropPeerDenied);
        }
        let strip = HEADER_LEN + data.at + 4;
        forwarding
            .forward_to_peer(now, allocation, peer, strip, data.value.len())
            .map_err(NotForwarded::counter)
    }
}

/// Answers a request that is not authenticated, if its source may still draw that much.
fn unproven_answer(
    budget: &mut ReplyBudget,
    step: &mut Step<'_>,
    socket: SocketIndex,
    source: ClientAddr,
    message: &Message<'_>,
    fill: impl FnOnce(&mut MessageWriter<'_>),
) -> Result<(), Counter> {
    let out = &mut step.out;
    let start = out.bytes.len();
    let mut writer = MessageWriter::answer(&mut out.bytes, message, Class::Error);
    fill(&mut writer);
    writer.finish();
    if budget.draw(step.now, source.0, out.bytes.len() - start) {
        out.transmit(socket, source.0, start);
        Ok(())
    } else {
        out.bytes.truncate(start);
        Err(Counter::DropBudget)
    }
}

/// Tells the seconds that are left.
fn answer_lifetime(step: &mut Step<'_>, request: &Request<'_>, secs: u32) {
    request.reply.success(step, |writer| {
        writer.u32(attr::LIFETIME, secs);
    });
}

/// The comprehension-required attributes that this server understands. DONT-FRAGMENT is not among them: whether a datagram
/// is fragmented is decided per socket here, not per packet.
const fn is_known(kind: u16) -> bool {
    matches!(
        kind,
        attr::MAPPED_ADDRESS
            | attr::USERNAME
            | attr::MESSAGE_INTEGRITY
            | attr::ERROR_CODE
            | attr::UNKNOWN_ATTRIBUTES
            | attr::CHANNEL_NUMBER
            | attr::LIFETIME
            | attr::XOR_PEER_ADDRESS
            | attr::DATA
            | attr::REALM
            | attr::NONCE
            | attr::XOR_RELAYED_ADDRESS
            | attr::REQUESTED_ADDRESS_FAMILY
            | attr::EVEN_PORT
            | attr::REQUESTED_TRANSPORT
            | attr::MESSAGE_INTEGRITY_SHA256
            | attr::PASSWORD_ALGORITHM
            | attr::USERHASH
            | attr::XOR_MAPPED_ADDRESS
            | attr::RESERVATION_TOKEN
    )
}

/// LIFETIME, if there is one.
fn lifetime(message: &Message<'_>) -> Result<Option<u32>, Reject> {
    match message.find(attr::LIFETIME) {
        None => Ok(None),
        Some(value) => match value.try_into() {
            Ok(bytes) => Ok(Some(u32::from_be_bytes(bytes))),
            Err(_) => Err(Reject(400)),
        },
    }
}

/// RFC 8656 section 7.2: what is asked for up to the maximum, but not less than the default.
fn granted_lifetime(requested: Option<u32>) -> u32 {
    requested
        .unwrap_or(DEFAULT_LIFETIME_SECS)
        .clamp(DEFAULT_LIFETIME_SECS, MAX_LIFETIME_SECS)
}

/// An address family attribute, if there is one. An unsupported family is error 440.
fn requested_family(message: &Message<'_>, kind: u16) -> Result<Option<Family>, Reject> {
    match message.find(kind) {
        None => Ok(None),
        Some(&[family, _, _, _]) => Family::from_wire(family).map(Some).ok_or(Reject(440)),
        Some(_) => Err(Reject(400)),
    }
}
