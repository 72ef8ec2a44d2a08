//! TURN (RFC 8656) with relayed addresses of UDP, whatever the client speaks, and long-term credentials (RFC 8489 section 9.2).
//!
//! Nothing is kept of a source before its request is authenticated. What packets need of an allocation lives in
//! [`crate::forwarding`]; here is who, how long and how many. Relay sockets are opened by the caller, who is told by
//! [`RelayCommand`] and answers with [`crate::shard::Shard::handle_relay_opened`].
//!
//! * `authentication`: requests from the outside, and the answers to those that nobody can be held to.
//! * `allocate`: Allocate, and relayed transport addresses coming and going.
//! * `handlers`: everything else that clients do.
//! * `allocation`, `permission`, `channel`: what there is.
//! * `mobility`: five-tuples that change.
//! * `credential`, `peer_policy`: who may, and whom they may reach.
//! * `quota`: how many allocations each user and source has.
//! * `port_pool`: the ports of relayed transport addresses.
//! * `icmp`: errors on the way to peers.
//! * `reservation`: ports that are redeemed on another shard.
//! * `lent`: relay ports of others.

mod allocate;
mod allocation;
mod authentication;
pub mod channel;
pub mod credential;
mod ending;
mod handlers;
mod icmp;
mod lent;
mod mobility;
pub mod peer_policy;
pub mod permission;
mod port_pool;
mod quota;
pub(crate) mod reservation;

use std::collections::HashMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;

use ahash::RandomState;
use rand::rngs::StdRng;

use self::allocate::{Opening, RelayAddress, Reservation};
use self::allocation::{AllocationTable, Family};
use self::channel::CHANNEL_SECS;
use self::credential::Judge;
pub use self::credential::TurnCredentials;
pub use self::icmp::IcmpError;
use self::peer_policy::{PeerPolicy, PeerRules};
use self::permission::PERMISSION_SECS;
pub(crate) use self::port_pool::port_owner;
pub use self::quota::AllocationShares;
use self::reservation::{Loans, Seal};
use crate::addr::{Addr, ClientAddr};
use crate::forwarding::{ForwardingTable, RelayLimits, SocketIndex};
use crate::lobby::{Outbox, StreamSerial, TimerKey};
use crate::nonce::NonceKeys;
use crate::stats::{Counter, Counters};
use crate::ticket::Sealer;
use crate::time::Millis;
use crate::timer_wheel::TimerWheel;
use crate::unproven::ReplyBudget;
use crate::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr,
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
    /// Those of them that others than TURN have for their own.
    pub withheld_ports: Vec<u16>,
    /// Whom clients may reach.
    pub peers: PeerRules,
    /// Most allocations on this shard.
    pub allocations_max: usize,
    /// What is counted against the next two: the same of every shard of a server.
    pub shares: Arc<AllocationShares>,
    /// Most allocations of one user; 0 is no limit.
    pub allocations_per_user: u32,
    /// Most allocations of one source prefix; 0 is no limit.
    pub allocations_per_prefix: u32,
    /// Most permissions of one allocation.
    pub permissions_max: usize,
    /// Most channels of one allocation, those included that lapsed and are held.
    pub channels_max: usize,
    /// Whether to serve clients that know RFC 5766 only: channel numbers up to 0x7FFF, and permissions that last as long as
    /// channels because some refresh them late.
    pub serves_rfc5766: bool,
    /// Where clients are sent when this server is full or draining; the first of their own family counts.
    pub alternate_servers: Vec<Addr>,
    /// The same for clients that speak TLS.
    pub alternate_tls_servers: Vec<Addr>,
    /// Whom the certificates of those name, if not whom this server's names.
    pub alternate_domain: Option<String>,
    /// Whether clients may keep their allocations when their addresses change (RFC 8016).
    pub mobility: bool,
    /// What answers of TURN and Binding say of this server (SOFTWARE, RFC 8489 section 14.14: fewer than 128 characters); every
    /// answer to a stranger is longer by it.
    pub software: Option<&'static str>,
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
            withheld_ports: Vec::new(),
            peers: PeerRules::default(),
            allocations_max: 16_384,
            shares: Arc::default(),
            allocations_per_user: 0,
            allocations_per_prefix: 0,
            permissions_max: 256,
            channels_max: 256,
            serves_rfc5766: false,
            alternate_servers: Vec::new(),
            alternate_tls_servers: Vec::new(),
            alternate_domain: None,
            mobility: true,
            software: None,
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
        /// Whether datagrams larger than the path's usual MTU are to be expected.
        is_wide: bool,
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
    pub sealer: &'a Sealer,
    /// What answers say of this server.
    pub software: Option<&'static str>,
    /// The shard that got what is being served.
    pub home: u16,
    /// The stream there that it came by, if it did.
    pub by_stream: Option<StreamSerial>,
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
    /// Whether it carries FINGERPRINT, as the request did.
    has_fingerprint: bool,
}

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reply({} to {})", self.method, self.to)
    }
}

impl Reply {
    fn send(&self, step: &mut Step<'_>, class: Class, fill: impl FnOnce(&mut MessageWriter<'_>)) {
        let software = step.software;
        let out = &mut *step.out;
        let start = out.bytes.len();
        let mut writer = MessageWriter::new(&mut out.bytes, self.method, class, self.id);
        fill(&mut writer);
        writer
            .software(software)
            .integrity(self.integrity, &self.key);
        if self.has_fingerprint {
            writer.fingerprint();
        }
        writer.finish();
        out.transmit(self.socket, self.to, start);
    }

    fn success(&self, step: &mut Step<'_>, fill: impl FnOnce(&mut MessageWriter<'_>)) {
        self.send(step, Class::Success, fill);
    }

    fn error(&self, step: &mut Step<'_>, reject: Reject) {
        step.counters.count(Counter::TurnErrors);
        self.send(step, Class::Error, |writer| {
            writer.error_code(reject.0);
        });
    }

    /// Sends the client to another server (RFC 8489 section 10). Only who knows the key could have said so.
    fn redirect(
        &self,
        step: &mut Step<'_>,
        alternates: impl Iterator<Item = Addr>,
        domain: Option<&str>,
    ) {
        step.counters.count(Counter::Redirects);
        self.send(step, Class::Error, |writer| {
            writer.error_code(300);
            alternates.for_each(|at| {
                writer.plain_addr(attr::ALTERNATE_SERVER, at);
            });
            if let Some(domain) = domain {
                writer.attribute(attr::ALTERNATE_DOMAIN, domain.as_bytes());
            }
        });
    }
}

/// An authenticated request.
struct Request<'a> {
    message: &'a Message<'a>,
    source: ClientAddr,
    user: u64,
    /// Whom quotas are counted by.
    person: u64,
    reply: Reply,
}

/// The TURN side of one shard.
pub(crate) struct TurnService {
    shard: u16,
    shard_count: u16,
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
    /// Whether the clients of each listener speak TLS.
    speak_tls: Vec<bool>,
    reservations: Vec<Reservation>,
    next_reservation: u32,
    seal: Seal,
    loans: Loans,
    /// Requests that deleted an allocation lately, as keyed hashes: their repetitions get the same answer.
    deleted: Box<[u64]>,
    next_deleted: usize,
    unknown: Vec<u16>,
    draining: bool,
}

/// Deletions that are remembered.
const DELETED: usize = 512;

impl TurnService {
    /// The TURN side of shard `index` of `count`, with nothing allocated. `speak_tls` says of each listener whether its clients do;
    /// socket indexes behind those are its own.
    pub fn new(
        mut config: TurnConfig,
        index: u16,
        count: u16,
        speak_tls: Vec<bool>,
        seeds: [u64; 4],
        seal: Seal,
    ) -> Self {
        let hasher = RandomState::with_seeds(seeds[0], seeds[1], seeds[2], seeds[3]);
        let first = u16::try_from(speak_tls.len()).expect("a server has few listeners");
        let address = |family: Family| {
            let ips = config.relay_ips.iter();
            let is_v4 = family == Family::V4;
            let ip = ips.copied().find(|ip| ip.local.is_ipv4() == is_v4)?;
            let mut address = RelayAddress::new(ip, config.relay_ports.clone(), index, count);
            for &port in &config.withheld_ports {
                address.pool.withhold(port);
            }
            Some(address)
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
            shard: index,
            shard_count: count,
            judge: Judge::new(std::mem::take(&mut config.credentials)),
            policy: PeerPolicy::new(rules),
            budget: ReplyBudget::new(hasher.clone(), config.unproven_bytes_per_sec)
                .naming(config.software),
            allocations: AllocationTable::new(config.allocations_max),
            addresses,
            opening: HashMap::with_hasher(hasher.clone()),
            free_sockets: Vec::new(),
            unused_sockets: first..u16::MAX,
            sockets_max: u16::MAX - first,
            speak_tls,
            reservations: Vec::new(),
            next_reservation: 0,
            seal,
            loans: Loans::default(),
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
        (
            usize::from(self.sockets_max) - never_used,
            self.loans.ports_here(taken),
        )
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
