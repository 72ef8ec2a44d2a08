//! Putting a server together: sockets, shards, and the control plane's way to them. Everything here happens once, at start
//! or at stop.

mod listeners;
mod process;
mod relay;
mod rendezvous;

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use waypost_proto::dialect::{Dialect, DialectConfig, NorayConfig};
use waypost_proto::forwarding::RelayLimits;
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::lobby::door::DoorAnswer;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig};
use waypost_proto::time::{Millis, WallClock};

use self::listeners::{Listeners, ShardSockets};
pub use self::process::run;
use self::rendezvous::Shards;
use crate::control::admin::Rendezvous;
use crate::control::config::{Config, ConfigError, Host, Invocation, IoChoice, Sources};
use crate::control::counters;
use crate::control::metrics::{Metrics, ShardPublisher};
use crate::control::secret::Secret;
use crate::mailbox::{Mailbox, Post};
use crate::mmsg::Mmsg;
use crate::packet_io::{IoConfig, SetupError, StreamIo};
use crate::ring::{self, Ring};
use crate::shard::{EventLoop, NorayTimes, SocketMap};
use crate::streams::{Staged, StreamQuota, Streams, StreamsConfig};

/// Players of noray may send large datagrams: room for 9,216 bytes and what stands before them. The number of cache lines is
/// odd, so that the beginnings of slots are spread over all sets of a cache.
const NORAY_SLOT_BYTES: u32 = 145 * 64;
/// The exit code when something of our own fails; a service manager may start the server again (`EX_SOFTWARE` of sysexits).
const DIED: i32 = 70;
/// How long a shard may take to get ready.
const START_LIMIT: Duration = Duration::from_secs(10);

/// A server that serves. It stops when it is dropped.
pub struct Server {
    listeners: Listeners,
    mailboxes: Arc<[Mailbox]>,
    threads: Vec<JoinHandle<()>>,
    metrics: Arc<Metrics>,
    rendezvous: Arc<Shards>,
    backend: &'static str,
    warnings: Vec<String>,
}

impl Server {
    /// Starts the shards of `config` under `secret`. Signals, log and admin port are not its business.
    ///
    /// # Errors
    /// [`ConfigError`] if an address cannot be bound or the packet backend cannot be set up.
    pub fn start(config: &Config, secret: &Secret) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let use_ring = choose_backend(config.io, &mut warnings)?;
        let (listeners, sockets) = Listeners::bind(config)?;
        let (descriptors, warning) =
            relay::descriptors_per_shard(config, listeners.udp_count(), listeners.stream_count());
        warnings.extend(warning);
        let turn = relay::turn_config(config, &listeners.addresses());
        let mailboxes: Arc<[Mailbox]> = (0..config.shard_count)
            .map(|_| Mailbox::default())
            .collect();
        let metrics = Metrics::new(counters::TABLES, config.shard_count);
        let (answers_in, answers_out) = unbounded();
        let secret = server_secret(secret);
        let placement: [u8; 16] = secret.derive(&[b"placement"]);
        let placement_seeds = [&placement[..8], &placement[8..]]
            .map(|half| u64::from_be_bytes(half.try_into().expect("eight bytes")));
        let epoch = Instant::now();
        let wall = WallClock {
            unix_ms_at_zero: u64::try_from(
                SystemTime::UNIX_EPOCH
                    .elapsed()
                    .unwrap_or_default()
                    .as_millis(),
            )
            .unwrap_or(u64::MAX),
        };
        let (ready_in, ready_out) = bounded(config.shard_count);
        let cores = cores();
        let mut server = Self {
            rendezvous: Arc::new(Shards::new(
                Arc::clone(&mailboxes),
                answers_out,
                placement_seeds,
            )),
            listeners,
            mailboxes,
            threads: Vec::new(),
            metrics,
            backend: if use_ring { "uring" } else { "mmsg" },
            warnings,
        };
        let stream_quota = StreamQuota::new(config.streams_per_source);
        for (index, sockets) in sockets.into_iter().enumerate() {
            let birth = Birth {
                index,
                core: cores
                    .get(index % cores.len().max(1))
                    .copied()
                    .filter(|_| config.pin),
                io: IoConfig {
                    coalesce_us: config.coalesce_us,
                    max_sockets: descriptors.sockets,
                    max_streams: descriptors.streams,
                    wide_slot_bytes: wide_slot_bytes(config, index),
                    ..IoConfig::default()
                },
                shard: ShardConfig {
                    index: u16::try_from(index).expect("at most 128 shards"),
                    count: u16::try_from(config.shard_count).expect("at most 128 shards"),
                    sockets: server.listeners.roles(),
                    discovery: server.listeners.discovery(config),
                    lobby: lobby_config(config, server.listeners.probe_port()),
                    turn: turn.clone(),
                    dialects: dialect_config(config, &server.listeners),
                    access: access_of(config.open_rendezvous, &config.auth_secrets),
                    secret: secret.clone(),
                    wall,
                    seed: random_seed()?,
                    placement_seeds,
                },
                streams: StreamsConfig {
                    roles: server.listeners.roles(),
                    listeners: Vec::new(),
                    quota: stream_quota.clone(),
                    times: config.stream_times,
                    serves_rfc5766: config.turn_compat,
                    tls: config.tls.clone(),
                },
                sockets,
                mailboxes: Arc::clone(&server.mailboxes),
                answers: answers_in.clone(),
                publisher: server.metrics.publisher(index),
                ready: ready_in.clone(),
                epoch,
                serves_noray: serves_noray(config, index),
            };
            let thread = std::thread::Builder::new()
                .name(format!("shard-{index}"))
                .spawn(move || {
                    if use_ring {
                        birth.live(Ring::new);
                    } else {
                        birth.live(Mmsg::new);
                    }
                })
                .map_err(|error| {
                    ConfigError::new(
                        format!("a shard's thread cannot be started: {error}"),
                        "raise the limit of processes",
                    )
                })?;
            server.threads.push(thread);
        }
        for _ in 0..config.shard_count {
            match ready_out.recv_timeout(START_LIMIT) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    return Err(ConfigError::new(
                        "a shard did not get ready",
                        "look for an earlier error; with --io mmsg there is less to go wrong",
                    ));
                }
            }
        }
        Ok(server)
    }

    /// Starts a server for tests and load generators, from options as on the command line. Without others it listens
    /// on ports of 127.0.0.1 that the kernel chose, with a secret of its own and no admin port, and its shards are not pinned:
    /// what else runs in a test may keep one core busy for long. The environment counts for one thing, `WAYPOST_IO`, so that
    /// one test suite runs on either packet backend.
    ///
    /// # Errors
    /// As [`Server::start`], and for bad options.
    pub fn start_with(options: &[&str]) -> Result<Self, ConfigError> {
        Self::start_adjusted(options, |_| ())
    }

    /// As [`Server::start_with`], with a last word on what is not an option.
    ///
    /// # Errors
    /// As [`Server::start_with`].
    pub fn start_adjusted(
        options: &[&str],
        adjust: impl FnOnce(&mut Config),
    ) -> Result<Self, ConfigError> {
        let base = [
            "waypost-server",
            "--listen",
            "127.0.0.1:0",
            "--probe-port",
            "0",
            "--admin",
            "off",
            "--pin",
            "false",
        ];
        let given = |name: &str| options.contains(&name);
        let base = base[..1]
            .iter()
            .chain(base[1..].chunks(2).filter(|pair| !given(pair[0])).flatten());
        let sources = Sources {
            arguments: base.chain(options).map(Into::into).collect(),
            environment: std::env::vars_os()
                .filter(|(name, _)| name == "WAYPOST_IO")
                .collect(),
            host: Host::detect(|_| None),
        };
        match sources.invocation()? {
            Invocation::Serve(mut config) => {
                adjust(&mut config);
                Self::start(&config, &Secret::new(&random_seed()?))
            }
            _ => Err(ConfigError::new(
                "these options do not start a server",
                "leave out --help, --print-config and the like",
            )),
        }
    }

    /// The first main address.
    #[must_use]
    pub fn main_addr(&self) -> SocketAddr {
        self.listeners.main_addrs()[0]
    }

    /// All main addresses.
    #[must_use]
    pub fn main_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.main_addrs()
    }

    /// The addresses of TLS.
    #[must_use]
    pub fn tls_addrs(&self) -> Vec<SocketAddr> {
        self.listeners.tls_addrs()
    }

    /// Where a dialect is served; nowhere unless an option says so.
    #[must_use]
    pub fn dialect_addrs(&self, dialect: Dialect) -> Vec<SocketAddr> {
        self.listeners.dialect_addrs(dialect)
    }

    /// Where noray's connections are accepted.
    #[must_use]
    pub const fn noray_addr(&self) -> Option<SocketAddr> {
        self.listeners.noray_addr()
    }

    /// The second vantage port; 0 if there is none.
    #[must_use]
    pub const fn probe_port(&self) -> u16 {
        self.listeners.probe_port()
    }

    /// `uring` or `mmsg`.
    #[must_use]
    pub const fn backend(&self) -> &'static str {
        self.backend
    }

    /// The numbers of all shards.
    #[must_use]
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// What the admin port asks of the shards.
    #[must_use]
    pub fn rendezvous(&self) -> Arc<dyn Rendezvous> {
        Arc::clone(&self.rendezvous) as Arc<dyn Rendezvous>
    }

    /// Stops all shards and waits for them.
    pub fn stop(self) {}
}

impl Drop for Server {
    fn drop(&mut self) {
        for mailbox in self.mailboxes.iter() {
            let mut post = Post::Stop;
            while let Err(refused) = mailbox.post(post) {
                post = refused;
                std::thread::yield_now();
                if self.threads.iter().all(JoinHandle::is_finished) {
                    break;
                }
            }
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// What a shard's thread is born with.
struct Birth {
    index: usize,
    core: Option<usize>,
    io: IoConfig,
    shard: ShardConfig,
    streams: StreamsConfig,
    sockets: ShardSockets,
    mailboxes: Arc<[Mailbox]>,
    answers: Sender<(u64, DoorAnswer)>,
    publisher: ShardPublisher,
    ready: Sender<Result<(), ConfigError>>,
    epoch: Instant,
    serves_noray: bool,
}

impl Birth {
    /// Becomes a shard on this thread, and serves.
    fn live<P: StreamIo>(mut self, backend: impl FnOnce(&IoConfig) -> Result<P, SetupError>) {
        if let Some(core) = self.core {
            pin_to(core);
        }
        let mut io = match backend(&self.io) {
            Ok(io) => io,
            Err(error) => {
                let _ = self.ready.send(Err(setup_failed(&error)));
                return;
            }
        };
        let sockets = match self.sockets.add_to(&mut io, &mut self.streams.listeners) {
            Ok(sockets) => SocketMap::of_listeners(&sockets),
            Err(error) => {
                let failed = ConfigError::new(
                    format!("a socket cannot be served: {error}"),
                    "raise the limit of open files (LimitNOFILE, ulimit -n)",
                );
                let _ = self.ready.send(Err(failed));
                return;
            }
        };
        self.mailboxes[self.index].install_doorbell(io.doorbell());
        self.publisher.bound(io.backend());
        self.publisher.tick(Instant::now(), Duration::ZERO);
        let event_loop = EventLoop {
            io,
            shard: Shard::new(self.shard, Millis(0)),
            index: self.index,
            sockets,
            streams: Streams::new(self.streams, Millis(0)),
            staged: Staged::default(),
            for_streams: Vec::new(),
            mailboxes: self.mailboxes,
            answers: self.answers,
            publisher: self.publisher,
            epoch: self.epoch,
            noray_times: self.serves_noray.then(NorayTimes::default),
        };
        let _ = self.ready.send(Ok(()));
        if let Err(error) = event_loop.run() {
            tracing::error!(shard = self.index, %error, "a shard has died; the server ends");
            std::process::exit(DIED);
        }
    }
}

/// Whether noray is served, and by this shard.
fn serves_noray(config: &Config, shard: usize) -> bool {
    config.noray.is_some() && Dialect::Noray.shard(config.shard_count) == shard
}

/// How large the slots of relay ports of noray are; none where it is not served.
fn wide_slot_bytes(config: &Config, shard: usize) -> u32 {
    if serves_noray(config, shard) {
        NORAY_SLOT_BYTES
    } else {
        0
    }
}

/// Whether to use io_uring.
fn choose_backend(choice: IoChoice, warnings: &mut Vec<String>) -> Result<bool, ConfigError> {
    match (choice, ring::probe()) {
        (IoChoice::Mmsg, _) => Ok(false),
        (_, Ok(())) => Ok(true),
        (IoChoice::Auto, Err(error @ SetupError::Unavailable { .. })) => {
            warnings.push(format!(
                "{error}; serving with recvmmsg and sendmmsg, which costs more per packet. `waypost-server doctor` says how to allow io_uring"
            ));
            Ok(false)
        }
        (_, Err(error)) => Err(setup_failed(&error)),
    }
}

fn setup_failed(error: &SetupError) -> ConfigError {
    let remedy = match error {
        SetupError::Unavailable { .. } => {
            "allow io_uring (sysctl kernel.io_uring_disabled=0, a seccomp profile with the three io_uring calls) or use --io auto"
        }
        SetupError::Limit { .. } => "raise that limit",
        SetupError::Config { .. } => "choose a value in range",
    };
    ConfigError::new(format!("the packet backend: {error}"), remedy)
}

fn lobby_config(config: &Config, probe_port: u16) -> LobbyConfig {
    LobbyConfig {
        sessions_max: config.per_shard(config.sessions_max),
        members_max: config.per_shard(config.members_max),
        keepalive_secs: config.keepalive_secs,
        seat_hold_secs: config.seat_hold_secs,
        session_lifetime_secs: config.session_lifetime_secs,
        limits: RelayLimits {
            packets_per_sec: config.member_packets_per_sec,
            bytes_per_sec: config.member_bytes_per_sec,
        },
        probe_port,
        ..LobbyConfig::default()
    }
}

fn dialect_config(config: &Config, listeners: &Listeners) -> DialectConfig {
    DialectConfig {
        sessions_max: config.per_shard(config.sessions_max),
        players_max: config.per_shard(config.members_max),
        sessions_per_source: config.dialect_sessions_per_source,
        bytes_per_sec: config.dialect_bytes_per_sec,
        relay: config.dialect_relay.clone(),
        pairs_max: config.dialect_pairs_max as usize,
        simple_public: listeners.simple_public(),
        times: config.dialect_times,
        noray: config
            .noray
            .as_ref()
            .map_or_else(NorayConfig::default, |noray| noray.protocol.clone()),
    }
}

fn access_of(open: bool, secrets: &[Secret]) -> RendezvousAccess {
    if open {
        RendezvousAccess::Open
    } else {
        RendezvousAccess::Credential(secret_bytes(secrets))
    }
}

fn secret_bytes(secrets: &[Secret]) -> Vec<Box<[u8]>> {
    let bytes = secrets.iter().map(|secret| secret.expose().into());
    bytes.collect()
}

/// The protocol's secret; one that is not 32 bytes long is stretched to them.
fn server_secret(secret: &Secret) -> ServerSecret {
    let mut bytes = [0; 32];
    if secret.expose().len() == 32 {
        bytes.copy_from_slice(secret.expose());
    } else {
        let seed = ServerSecret(bytes);
        bytes[..16].copy_from_slice(&seed.derive(&[b"left", secret.expose()]));
        bytes[16..].copy_from_slice(&seed.derive(&[b"right", secret.expose()]));
    }
    ServerSecret(bytes)
}

fn random_seed() -> Result<[u8; 32], ConfigError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| {
        ConfigError::new(
            format!("the system has no random numbers: {error}"),
            "allow the getrandom system call",
        )
    })?;
    Ok(seed)
}

/// The cores that this process may use.
fn cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_else(|_| {
        let mut set = rustix::thread::CpuSet::new();
        set.set(0);
        set
    });
    (0..rustix::thread::CpuSet::MAX_CPU)
        .filter(|&core| set.is_set(core))
        .collect()
}

/// Keeps this thread on one core. A host that refuses loses nothing but speed.
fn pin_to(core: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(core);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(core, %error, "a shard cannot be pinned to its core");
    }
}

/// The receiving end of the shards' answers.
type Answers = Receiver<(u64, DoorAnswer)>;
