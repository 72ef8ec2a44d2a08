//! noray, and its games made with netfox: players register over TCP, show their address with one UDP datagram, and are told
//! each other's addresses, or relay ports that lead to each other.
//!
//! It does what its own server does. What is different: ids never collide; a packet beyond a limit is dropped, and costs
//! nobody else anything; a player who is relayed before he has a port gets one of the configured ones.
//!
//! * `names`: the ids of players.
//! * `relays`: relay ports.

mod names;
mod relays;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ahash::RandomState;

pub use self::names::{NameForm, URL_SAFE};
use self::relays::{Relays, Wish};
use super::house::House;
use super::{Asked, Desk, Dialect, Seen};
use crate::addr::Addr;
use crate::forwarding::{ForwardingTable, SocketIndex};
use crate::lobby::Slab;
use crate::stats::Counter;
use crate::time::Millis;
use crate::turn::RelayRefusal;
use crate::wire::noray::{Command, LineReader, write_quoted};

/// Names that are tried until one is free.
const NAME_TRIES: usize = 64;
/// A connection without an identity that has sent nothing for so long is of no use to anybody.
const UNREGISTERED_MS: u64 = 600_000;
/// What of an unknown id is repeated in an error.
const SHOWN_BYTES: usize = 64;

/// How noray is served.
#[derive(Clone, Debug)]
pub struct NorayConfig {
    /// Players' public ids, by which others ask for them.
    pub oid: NameForm,
    /// Players' secret ids, by which they show their addresses.
    pub pid: NameForm,
    /// Whether a connection is greeted.
    pub greets: bool,
    /// Whether failures are told, by a command `error` that games ignore.
    pub tells_errors: bool,
    /// Relay ports.
    pub relay: RelayRules,
}

/// Which relay ports there are and what may be sent by them.
#[derive(Clone, Debug)]
pub struct RelayRules {
    /// Where they are bound.
    pub ip: IpAddr,
    /// The ports.
    pub ports: Vec<u16>,
    /// A port that was not used for longer than this is taken back.
    pub idle_ms: u64,
    /// Between two looks for such ports.
    pub sweep_ms: u64,
    /// Bytes per second that one player may send, measured in slices.
    pub bytes_per_sec: u64,
    /// Bytes per second that all may send together.
    pub all_bytes_per_sec: u64,
    /// How long a slice is.
    pub slice_ms: u64,
    /// How long a port relays for its player.
    pub lifetime_ms: u64,
    /// How much a player may send in that time, in bytes.
    pub lifetime_bytes: u64,
}

impl Default for RelayRules {
    fn default() -> Self {
        Self {
            ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ports: (49_152..=51_200).collect(),
            idle_ms: 30_000,
            sweep_ms: 30_000,
            bytes_per_sec: 128 << 10,
            all_bytes_per_sec: 1 << 30,
            slice_ms: 100,
            lifetime_ms: 4 * 3_600_000,
            lifetime_bytes: 4 << 30,
        }
    }
}

impl Default for NorayConfig {
    fn default() -> Self {
        Self {
            oid: NameForm::url_safe(21),
            pid: NameForm::url_safe(128),
            greets: false,
            tells_errors: false,
            relay: RelayRules::default(),
        }
    }
}

/// A player under one of his ids.
struct Identity {
    oid: Box<str>,
    pid: Box<str>,
    /// The connection.
    client: Addr,
    /// Where his first datagram with the secret id came from.
    remote: Option<Addr>,
}

/// A player's connection.
#[derive(Default)]
struct Connection {
    reader: LineReader,
    /// The first is who he is.
    identities: Vec<u32>,
    heard: Millis,
}

/// A `connect-relay` that waits for ports.
struct Waiting {
    client: Addr,
    id: Option<Box<[u8]>>,
    oid: Box<[u8]>,
}

/// Why nobody was introduced.
#[derive(Clone, Copy)]
enum Failure {
    UnknownHost,
    HostHasNoAddress,
    UnknownClient,
    ClientHasNoAddress,
    NoPort,
}

/// The commands, as they are counted.
#[derive(Clone, Copy)]
enum Known {
    Register,
    Connect,
    ConnectRelay,
    Echo,
}

impl Known {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"register-host" => Self::Register,
            b"connect" => Self::Connect,
            b"connect-relay" => Self::ConnectRelay,
            b"echo" => Self::Echo,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Register => "register-host",
            Self::Connect => "connect",
            Self::ConnectRelay => "connect-relay",
            Self::Echo => "echo",
        }
    }

    const fn counters(self) -> (Counter, Counter) {
        match self {
            Self::Register => (Counter::NorayRegisters, Counter::NorayRegisterFailures),
            Self::Connect => (Counter::NorayConnects, Counter::NorayConnectFailures),
            Self::ConnectRelay => (Counter::NorayRelayConnects, Counter::NorayRelayFailures),
            Self::Echo => (Counter::NorayEchoes, Counter::NorayEchoFailures),
        }
    }
}

/// All of noray.
pub(super) struct Noray {
    config: NorayConfig,
    words: Vec<&'static str>,
    /// The listener of connections.
    control: Option<SocketIndex>,
    connections: HashMap<Addr, Connection, RandomState>,
    identities: Slab<Identity>,
    by_oid: HashMap<Box<str>, u32, RandomState>,
    by_pid: HashMap<Box<str>, u32, RandomState>,
    relays: Relays,
    waiting: Vec<Waiting>,
}

impl Noray {
    /// Room for `sessions_max` identities.
    pub fn new(
        config: NorayConfig,
        control: Option<SocketIndex>,
        sessions_max: usize,
        hasher: &RandomState,
    ) -> Self {
        Self {
            words: names::words(),
            control,
            connections: HashMap::with_hasher(hasher.clone()),
            identities: Slab::new(sessions_max),
            by_oid: HashMap::with_hasher(hasher.clone()),
            by_pid: HashMap::with_hasher(hasher.clone()),
            relays: Relays::new(config.relay.clone(), hasher),
            waiting: Vec::new(),
            config,
        }
    }

    pub fn session_count(&self) -> usize {
        self.identities.len()
    }

    /// Writes the gauges.
    pub fn count(&self, counters: &mut crate::stats::Counters) {
        counters.set(Counter::NorayConnections, self.connections.len());
        counters.set(Counter::NorayRelays, self.relays.count());
    }

    /// Limits what is relayed.
    pub fn limit(&self, table: &mut ForwardingTable) {
        table.limit_players(self.relays.limits());
    }

    /// Serves what came: a piece of a connection's bytes, or a datagram.
    pub fn handle(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
    ) -> Result<(), Counter> {
        if self.control == Some(asked.socket) {
            self.feed(house, desk, asked.source, Some(asked.datagram));
            return Ok(());
        }
        self.show(desk, asked);
        desk.counters.count(Counter::NorayRequests);
        Ok(())
    }

    /// A connection was accepted.
    pub fn handle_stream_opened(&mut self, desk: &mut Desk<'_>, client: Addr) {
        let connection = Connection {
            heard: desk.now,
            ..Connection::default()
        };
        self.connections.insert(client, connection);
        if self.config.greets {
            let version = env!("CARGO_PKG_VERSION");
            self.tell(desk, client, |out| {
                let _ = writeln!(out, "hi \"waypost v{version}\"");
            });
        }
    }

    /// A client sends nothing more, and may still read: a line without an end is served too.
    pub fn handle_stream_ended(&mut self, house: &mut House, desk: &mut Desk<'_>, client: Addr) {
        self.feed(house, desk, client, None);
    }

    /// A connection is gone, and with it all its identities. Relay ports stay until they are idle.
    pub fn handle_stream_closed(&mut self, house: &mut House, client: Addr) {
        let Some(connection) = self.connections.remove(&client) else {
            return;
        };
        for index in connection.identities {
            let identity = self.identities.remove(index);
            self.by_oid.remove(&identity.oid);
            self.by_pid.remove(&identity.pid);
            house.remove_session(client);
        }
        self.waiting.retain(|waiting| waiting.client != client);
    }

    /// Whether a connection is to be kept although it is silent.
    pub fn serves(&self, now: Millis, client: Addr) -> bool {
        self.connections.get(&client).is_some_and(|connection| {
            !connection.identities.is_empty() || now.since(connection.heard) < UNREGISTERED_MS
        })
    }

    /// Serves the commands in a piece of a connection's bytes, or what is left at its end.
    fn feed(&mut self, house: &mut House, desk: &mut Desk<'_>, client: Addr, piece: Option<&[u8]>) {
        let Some(connection) = self.connections.get_mut(&client) else {
            return;
        };
        connection.heard = desk.now;
        let mut reader = std::mem::take(&mut connection.reader);
        let each = |command: Command<'_>| self.execute(house, desk, client, command);
        match piece {
            Some(piece) => reader.feed(piece, each),
            None => reader.finish(each),
        }
        if let Some(connection) = self.connections.get_mut(&client) {
            connection.reader = reader;
        }
    }

    fn execute(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        client: Addr,
        command: Command<'_>,
    ) {
        let Some(known) = Known::of(command.name) else {
            desk.counters.count(Counter::NorayUnknown);
            return;
        };
        desk.counters.count(Counter::NorayRequests);
        desk.counters.count(known.counters().0);
        let outcome = match known {
            Known::Register => self.register(house, desk, client),
            Known::Connect => self.connect(desk, client, command),
            Known::ConnectRelay => {
                let waiting = Waiting {
                    client,
                    id: command.id.map(Into::into),
                    oid: self.oid_of(command).into(),
                };
                self.connect_relay(desk, waiting, true)
            }
            Known::Echo => {
                self.tell(desk, client, |out| {
                    out.extend_from_slice(b"echo ");
                    out.extend_from_slice(command.data);
                    out.push(b'\n');
                });
                Ok(())
            }
        };
        if let Err(failure) = outcome {
            let oid = command.unquoted();
            self.tell_failure(desk, client, known, command.id, &oid, failure);
        }
    }

    /// Who a command is about: as it stands, or else without its quotes.
    fn oid_of<'a>(&self, command: Command<'a>) -> std::borrow::Cow<'a, [u8]> {
        if self.find(command.data).is_some() {
            command.data.into()
        } else {
            command.unquoted()
        }
    }

    fn find(&self, oid: &[u8]) -> Option<u32> {
        let oid = std::str::from_utf8(oid).ok()?;
        self.by_oid.get(oid).copied()
    }

    /// Sends lines to a connection.
    fn tell(&self, desk: &mut Desk<'_>, client: Addr, write: impl FnOnce(&mut Vec<u8>)) {
        let Some(control) = self.control else {
            return;
        };
        let start = desk.out.bytes.len();
        write(&mut desk.out.bytes);
        desk.out.transmit(control, client, start);
    }

    fn tell_failure(
        &self,
        desk: &mut Desk<'_>,
        client: Addr,
        known: Known,
        id: Option<&[u8]>,
        oid: &[u8],
        failure: Failure,
    ) {
        desk.counters.count(known.counters().1);
        if id.is_none() && !self.config.tells_errors {
            return;
        }
        let mut text = match failure {
            Failure::UnknownHost => "Unknown host oid: ",
            Failure::HostHasNoAddress => "Host has no remote address registered!",
            Failure::UnknownClient => "Unknown client from address",
            Failure::ClientHasNoAddress => "Client has no remote address registered!",
            Failure::NoPort => "No relay port available!",
        }
        .as_bytes()
        .to_vec();
        if matches!(failure, Failure::UnknownHost) {
            text.extend_from_slice(&oid[..oid.len().min(SHOWN_BYTES)]);
        }
        desk.counters.count(Counter::NorayErrors);
        self.tell(desk, client, |out| {
            match id {
                Some(id) => {
                    out.extend_from_slice(known.name().as_bytes());
                    out.push(b'!');
                    out.extend_from_slice(id);
                }
                None => {
                    out.extend_from_slice(b"error ");
                    out.extend_from_slice(known.name().as_bytes());
                }
            }
            out.push(b' ');
            write_quoted(out, &text);
            out.push(b'\n');
        });
    }

    fn register(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        client: Addr,
    ) -> Result<(), Failure> {
        let oid = self.free_name(desk, &self.config.oid, &self.by_oid);
        let pid = self.free_name(desk, &self.config.pid, &self.by_pid);
        let (Some(oid), Some(pid)) = (oid, pid) else {
            desk.counters.count(Counter::DropCapacity);
            return Err(Failure::UnknownClient);
        };
        if self.identities.is_full() || house.add_session(desk, client).is_err() {
            desk.counters.count(Counter::DropCapacity);
            return Err(Failure::UnknownClient);
        }
        self.tell(desk, client, |out| {
            let _ = write!(out, "set-oid {oid}\nset-pid {pid}\n");
        });
        let identity = Identity {
            oid: oid.clone(),
            pid: pid.clone(),
            client,
            remote: None,
        };
        let index = self.identities.insert(identity).expect("there was room");
        self.by_oid.insert(oid, index);
        self.by_pid.insert(pid, index);
        let connection = self.connections.get_mut(&client);
        let connection = connection.expect("commands come by connections");
        connection.identities.push(index);
        Ok(())
    }

    fn free_name(
        &self,
        desk: &mut Desk<'_>,
        form: &NameForm,
        taken: &HashMap<Box<str>, u32, RandomState>,
    ) -> Option<Box<str>> {
        let mut names = (0..NAME_TRIES).map(|_| form.make(&self.words, desk.rng));
        let name = names.find(|name| !taken.contains_key(name.as_str()))?;
        Some(name.into_boxed_str())
    }

    /// Who `client` is.
    fn caller(&self, client: Addr) -> Option<&Identity> {
        let connection = self.connections.get(&client)?;
        Some(&self.identities[*connection.identities.first()?])
    }

    fn connect(
        &self,
        desk: &mut Desk<'_>,
        client: Addr,
        command: Command<'_>,
    ) -> Result<(), Failure> {
        let host = self.find(&self.oid_of(command));
        let host = &self.identities[host.ok_or(Failure::UnknownHost)?];
        let of_host = host.remote.ok_or(Failure::HostHasNoAddress)?;
        let caller = self.caller(client).ok_or(Failure::UnknownClient)?;
        let of_caller = caller.remote.ok_or(Failure::ClientHasNoAddress)?;
        for (to, about) in [(client, of_host), (host.client, of_caller)] {
            self.tell(desk, to, |out| {
                let _ = writeln!(out, "connect {}", about.to_socket_addr());
            });
        }
        Ok(())
    }

    /// Introduces two players by their relay ports. If `may_wait`, ports are opened first where there are none.
    fn connect_relay(
        &mut self,
        desk: &mut Desk<'_>,
        asked: Waiting,
        may_wait: bool,
    ) -> Result<(), Failure> {
        let host = self.find(&asked.oid).ok_or(Failure::UnknownHost)?;
        let host = &self.identities[host];
        let caller = self.caller(asked.client).ok_or(Failure::UnknownClient)?;
        let host_client = host.client;
        let of_host = host.remote.ok_or(Failure::HostHasNoAddress)?;
        let of_caller = caller.remote;
        let mut wish = |player| {
            if may_wait {
                self.relays.wish(desk, player)
            } else {
                self.relays.have(player)
            }
        };
        // As upstream does it, the host's is there even if the caller gets none.
        let host_port = wish(of_host);
        let caller_port = wish(of_caller.ok_or(Failure::ClientHasNoAddress)?);
        match (host_port, caller_port) {
            (Wish::Refused, _) | (_, Wish::Refused) => Err(Failure::NoPort),
            (Wish::Open(host_port), Wish::Open(caller_port)) => {
                for (to, port) in [(asked.client, host_port), (host_client, caller_port)] {
                    self.tell(desk, to, |out| {
                        let _ = writeln!(out, "connect-relay {port}");
                    });
                }
                Ok(())
            }
            _ => {
                self.waiting.push(asked);
                Ok(())
            }
        }
    }

    /// A datagram of a player who shows where he is.
    fn show(&mut self, desk: &mut Desk<'_>, asked: Asked<'_>) {
        let pid = std::str::from_utf8(asked.datagram).ok();
        let known = pid.and_then(|pid| self.by_pid.get(pid));
        let (to, len) = (asked.seen(), asked.datagram.len());
        let Some(&index) = known else {
            desk.counters.count(Counter::NorayShownFailures);
            House::error(desk, Dialect::Noray, to, len, |out| {
                out.extend_from_slice(b"Unknown host pid!");
            });
            return;
        };
        let remote = &mut self.identities[index].remote;
        desk.counters.count(if remote.is_some() {
            Counter::NorayShownAgain
        } else {
            Counter::NorayShown
        });
        remote.get_or_insert(asked.source);
        Self::confirm(desk, to);
    }

    fn confirm(desk: &mut Desk<'_>, to: Seen) {
        // Shorter than any secret id.
        let start = desk.out.bytes.len();
        desk.out.bytes.extend_from_slice(b"OK");
        desk.out.transmit(to.socket, to.addr, start);
    }

    /// A packet to a player's relay port from somebody who has none.
    pub fn handle_stray(
        &mut self,
        desk: &mut Desk<'_>,
        target: SocketIndex,
        source: Addr,
        datagram: &[u8],
    ) -> Result<(), Counter> {
        self.relays.handle_stray(desk, target, source, datagram)
    }

    pub fn awaits(&self, socket: SocketIndex) -> bool {
        self.relays.awaits(socket)
    }

    /// Takes in what became of a relay socket. Who waited for it is served now.
    pub fn handle_opened(
        &mut self,
        desk: &mut Desk<'_>,
        socket: SocketIndex,
        outcome: Result<(), RelayRefusal>,
    ) {
        self.relays.handle_opened(desk, socket, outcome);
        if self.relays.awaits_any() {
            return;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            let (client, id, oid) = (waiting.client, waiting.id.clone(), waiting.oid.clone());
            if let Err(failure) = self.connect_relay(desk, waiting, false) {
                let id = id.as_deref();
                self.tell_failure(desk, client, Known::ConnectRelay, id, &oid, failure);
            }
        }
    }

    pub fn handle_sweep(&mut self, desk: &mut Desk<'_>) {
        self.relays.sweep(desk);
    }

    /// Asserts that the tables agree; returns how many identities there are.
    pub fn assert_consistent(&self) -> usize {
        let count = self.identities.len();
        assert!(self.by_oid.len() == count && self.by_pid.len() == count);
        let mut of_connections = 0;
        for (client, connection) in &self.connections {
            for &index in &connection.identities {
                let identity = &self.identities[index];
                assert!(identity.client == *client && self.by_oid[&identity.oid] == index);
                assert_eq!(self.by_pid[&identity.pid], index);
            }
            of_connections += connection.identities.len();
        }
        assert_eq!(of_connections, count);
        assert!(self.waiting.is_empty() || self.relays.awaits_any());
        self.relays.assert_consistent();
        count
    }
}
