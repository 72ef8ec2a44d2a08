//! Options: raw text in, a checked [`Config`] out, or one line that says what to change.
//!
//! The text comes in four layers (default, TOML file, environment, flag; see [`Settings`]); its
//! meaning is decided once, in [`Config::from_settings`]. Nothing here binds, writes or starts
//! anything; only files that hold secrets are read.

mod dialects;
mod error;
mod host;
mod invocation;
mod layers;
mod noray;
mod options;
mod relay;
mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
};

pub use dialects::DialectListen;
pub(crate) use dialects::listen_option;
pub use error::{ConfigError, EXIT_CODE};
pub use host::Host;
pub use invocation::{Invocation, Sources};
pub use layers::{Origin, Setting, Settings};
pub use noray::NorayOptions;
pub use options::{OPTIONS, OptionSpec, Preset};

use waypost_proto::dialect::{DialectTimes, RelayMode};
use waypost_proto::turn::peer_policy::Cidr;

use super::secret::Secret;
use crate::streams::StreamTimes;
use options::option;

/// Shortest shared secret or token that is accepted without a warning, in bytes (128 bits in hex
/// are 32 characters; 16 random characters are still beyond a dictionary).
const SECRET_BYTES_ADVISED: usize = 16;

/// Which way packets go in and out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoChoice {
    /// io_uring where the host allows it, else `recvmmsg` and `sendmmsg`, with a warning.
    Auto,
    /// io_uring or no start.
    Uring,
    /// `recvmmsg` and `sendmmsg`.
    Mmsg,
}

/// How log records look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Pretty on a terminal, else JSON.
    Auto,
    /// One JSON object a line.
    Json,
    /// For eyes, one line a record.
    Pretty,
}

/// A public address of a host behind 1:1 NAT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExternalIp {
    /// What clients are told.
    pub external: IpAddr,
    /// The local address it stands for; none means every local address of its family.
    pub local: Option<IpAddr>,
}

/// A static TURN user.
#[derive(Clone, Debug)]
pub struct TurnUser {
    /// The user's name.
    pub name: String,
    /// The user's password, UTF-8.
    pub password: Secret,
}

impl TurnUser {
    /// The password as text, for the one place that makes keys of it.
    pub fn password_text(&self) -> String {
        String::from_utf8_lossy(self.password.expose()).into_owned()
    }
}

/// Everything the server was told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Main addresses; at least one. Port 0 takes one from the kernel.
    pub listen: Vec<SocketAddr>,
    /// Whether the main addresses are served over TCP too.
    pub tcp: bool,
    /// Addresses of TLS; may be none. Port 0 takes one from the kernel.
    pub tls_listen: Vec<SocketAddr>,
    /// Certificate and key of TLS; always there when it has an address.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// TCP and TLS connections at one time, over all shards.
    pub streams_max: u32,
    /// TCP and TLS connections of one source prefix over all shards; 0 is no limit.
    pub streams_per_source: u32,
    /// How patient the server is with them; not an option.
    pub stream_times: StreamTimes,
    /// Addresses that clients are told in place of local ones.
    pub external_ip: Vec<ExternalIp>,
    /// Second UDP port on every listen address; 0 takes one from the kernel.
    pub probe_port: u16,
    /// Second addresses for the discovery of NAT behaviour, at most one per family.
    pub alternate_ip: Vec<IpAddr>,
    /// Addresses of relayed ports, at most one per family; none: to be found.
    pub relay_ip: Vec<IpAddr>,
    /// Ports of TURN's relayed addresses.
    pub relay_ports: RangeInclusive<u16>,
    /// The realm of TURN credentials.
    pub realm: String,
    /// Static TURN users.
    pub users: Vec<TurnUser>,
    /// Peers that are allowed although they are denied by default.
    pub allow_peer: Vec<Cidr>,
    /// Peers that are denied.
    pub deny_peer: Vec<Cidr>,
    /// Whether TURN clients of RFC 5766's time are served in their way.
    pub turn_compat: bool,
    /// Where TURN clients are sent when this server is full or draining, at most one per family.
    pub alternate_servers: Vec<SocketAddr>,
    /// The same for those that came by TLS.
    pub alternate_tls_servers: Vec<SocketAddr>,
    /// Whom the certificates of those name, if not whom this server's names.
    pub alternate_domain: Option<String>,
    /// Name or address of this server in URLs of TURN servers; none: its addresses.
    pub turn_host: Option<String>,
    /// Whether TURN clients keep their allocations when their addresses change.
    pub mobility: bool,
    /// Whether answers of STUN and TURN name this server and its version.
    pub software: bool,
    /// TURN allocations at one time, over all shards.
    pub allocations_max: u32,
    /// TURN allocations of one user; 0 is no limit.
    pub allocations_per_user: u32,
    /// TURN allocations of one source prefix; 0 is no limit.
    pub allocations_per_source: u32,
    /// Permissions of one allocation.
    pub permissions_per_allocation: u32,
    /// Channels of one allocation.
    pub channels_per_allocation: u32,
    /// Packets per second that one allocation may relay; 0 is no limit.
    pub allocation_packets_per_sec: u32,
    /// Bytes per second that one allocation may relay; 0 is no limit.
    pub allocation_bytes_per_sec: u32,
    /// Bytes per second that TURN answers to an unproven source; 0 is no limit.
    pub unproven_bytes_per_sec: u32,
    /// Addresses on which other systems' protocols are served.
    pub dialect_listen: Vec<DialectListen>,
    /// How noray is served, if it is.
    pub noray: Option<NorayOptions>,
    /// Which players of dialects are relayed.
    pub dialect_relay: RelayMode,
    /// Pairs of players that are relayed on each shard that serves dialects.
    pub dialect_pairs_max: u32,
    /// Sessions of dialects that one source prefix may have; 0 is no limit.
    pub dialect_sessions_per_source: u32,
    /// Bytes per second that one source prefix may draw from dialects; 0 is no limit.
    pub dialect_bytes_per_sec: u32,
    /// How long sessions of dialects last; not an option.
    pub dialect_times: DialectTimes,
    /// Whether sessions need no credentials.
    pub open_rendezvous: bool,
    /// Secrets that sign `expiry:user` credentials, at most two.
    pub auth_secrets: Vec<Secret>,
    /// The file that holds the secret of tickets and nonces.
    pub secret_file: PathBuf,
    /// Whether the operator chose where that file is; if not, a place that cannot be written is
    /// no reason not to start.
    pub secret_file_chosen: bool,
    /// Directory for what survives a restart.
    pub state_dir: PathBuf,
    /// Longest adaptive wait under load, in microseconds; 0 means never.
    pub coalesce_us: u32,
    /// Event loops; at least one.
    pub shard_count: usize,
    /// Whether each shard is pinned to a core.
    pub pin: bool,
    /// Which way packets go in and out.
    pub io: IoChoice,
    /// Where the admin HTTP listens; none means it is off.
    pub admin: Option<SocketAddr>,
    /// Bearer token of `/v1`; always there when `admin` is not on loopback.
    pub admin_token: Option<Secret>,
    /// Sessions at one time, over all shards.
    pub sessions_max: u32,
    /// Members at one time, over all shards.
    pub members_max: u32,
    /// How often an idle member shows that it lives, in seconds.
    pub keepalive_secs: u32,
    /// How long the seat of a silent member is held, in seconds.
    pub seat_hold_secs: u32,
    /// Longest life of a session, in seconds.
    pub session_lifetime_secs: u32,
    /// Relayed packets per second that one member may send.
    pub member_packets_per_sec: u32,
    /// Relayed bytes per second that one member may send.
    pub member_bytes_per_sec: u32,
    /// How long a drain waits for sessions to end, in seconds.
    pub drain_secs: u32,
    /// How log records look.
    pub log_format: LogFormat,
    /// Least severe level that is logged.
    pub log_level: tracing::Level,
    /// The effective text behind all this, with its origins.
    pub settings: Settings,
    /// What is odd but no reason not to start; to be logged once.
    pub warnings: Vec<String>,
}

impl Config {
    /// Decides what the text means. Reads the files that hold secrets, and nothing else.
    pub fn from_settings(
        mut settings: Settings,
        warnings: Vec<String>,
    ) -> Result<Self, ConfigError> {
        let state_dir: PathBuf = Reader(&settings).required("state-dir")?.into();
        let secret_file = match Reader(&settings).optional("secret-file")? {
            Some(path) => PathBuf::from(path),
            None => {
                let path = state_dir.join("secret");
                let shown = vec![path.display().to_string()];
                settings.set(option("secret-file"), shown, Origin::Default)?;
                path
            }
        };
        let read = Reader(&settings);
        let chosen = |name| settings.get(name).origin != Origin::Default;
        let mut config = Self {
            listen: read.listen()?,
            tcp: read.truth("tcp")?,
            tls_listen: read.tls_listen()?,
            tls: read.tls()?,
            streams_max: read.number("streams", 1..=1 << 20)?,
            streams_per_source: read.number("streams-per-source", 0..=1 << 20)?,
            stream_times: StreamTimes::default(),
            external_ip: read.external_ip()?,
            probe_port: read.number("probe-port", 0..=u16::MAX)?,
            alternate_ip: read.ip_per_family("alternate-ip")?,
            relay_ip: read.ip_per_family("relay-ip")?,
            relay_ports: read.relay_ports()?,
            realm: read.realm()?,
            users: read.users()?,
            allow_peer: read.ranges("allow-peer")?,
            deny_peer: read.ranges("deny-peer")?,
            turn_compat: read.truth("turn-compat")?,
            alternate_servers: read.alternate_servers("alternate-server")?,
            alternate_tls_servers: read.alternate_servers("alternate-tls-server")?,
            alternate_domain: read.alternate_domain()?,
            turn_host: read.turn_host()?,
            mobility: read.truth("mobility")?,
            software: read.truth("software")?,
            allocations_max: read.number("max-allocations", 1..=1 << 20)?,
            allocations_per_user: read.number("allocations-per-user", 0..=1 << 20)?,
            allocations_per_source: read.number("allocations-per-source", 0..=1 << 20)?,
            permissions_per_allocation: read.number("permissions-per-allocation", 1..=4096)?,
            channels_per_allocation: read.number("channels-per-allocation", 1..=4096)?,
            allocation_packets_per_sec: read
                .number("allocation-packets-per-sec", 0..=10_000_000)?,
            allocation_bytes_per_sec: read.number("allocation-bytes-per-sec", 0..=u32::MAX)?,
            unproven_bytes_per_sec: read.number("unproven-bytes-per-sec", 0..=u32::MAX)?,
            dialect_listen: read.dialect_listen()?,
            noray: read.noray()?,
            dialect_relay: read.dialect_relay()?,
            dialect_pairs_max: read.number("max-dialect-pairs", 1..=1 << 14)?,
            dialect_sessions_per_source: read.number("dialect-sessions-per-source", 0..=1 << 20)?,
            dialect_bytes_per_sec: read.number("dialect-bytes-per-sec", 0..=u32::MAX)?,
            dialect_times: DialectTimes::default(),
            open_rendezvous: read.truth("open-rendezvous")?,
            auth_secrets: read.secrets("auth-secret", "auth-secret-file")?,
            secret_file_chosen: chosen("secret-file") || chosen("state-dir"),
            secret_file,
            state_dir,
            coalesce_us: read.number("coalesce-us", 0..=10_000)?,
            shard_count: read.number("shards", 1..=1024)?,
            pin: read.truth("pin")?,
            io: read.choice(
                "io",
                &[
                    ("auto", IoChoice::Auto),
                    ("uring", IoChoice::Uring),
                    ("mmsg", IoChoice::Mmsg),
                ],
            )?,
            admin: read.admin()?,
            admin_token: read.secrets("admin-token", "admin-token-file")?.pop(),
            sessions_max: read.number("max-sessions", 1..=1 << 24)?,
            members_max: read.number("max-members", 2..=1 << 26)?,
            keepalive_secs: read.number("keepalive-secs", 1..=600)?,
            seat_hold_secs: read.number("seat-hold-secs", 1..=86_400)?,
            session_lifetime_secs: read.number("session-lifetime-secs", 1..=31_536_000)?,
            member_packets_per_sec: read.number("member-packets-per-sec", 0..=10_000_000)?,
            member_bytes_per_sec: read.number("member-bytes-per-sec", 0..=u32::MAX)?,
            drain_secs: read.number("drain-secs", 0..=86_400)?,
            log_format: read.choice(
                "log-format",
                &[
                    ("auto", LogFormat::Auto),
                    ("json", LogFormat::Json),
                    ("pretty", LogFormat::Pretty),
                ],
            )?,
            log_level: read.choice(
                "log-level",
                &[
                    ("error", tracing::Level::ERROR),
                    ("warn", tracing::Level::WARN),
                    ("info", tracing::Level::INFO),
                    ("debug", tracing::Level::DEBUG),
                    ("trace", tracing::Level::TRACE),
                ],
            )?,
            warnings,
            settings: settings.clone(),
        };
        config.check_together()?;
        Ok(config)
    }

    /// Rules that concern more than one option.
    fn check_together(&mut self) -> Result<(), ConfigError> {
        let clash = self
            .listen
            .iter()
            .find(|at| self.probe_port != 0 && at.port() == self.probe_port);
        if let Some(address) = clash {
            return Err(ConfigError::new(
                format!(
                    "probe-port {} is the port of --listen {address} too",
                    self.probe_port
                ),
                "choose another port for one of them",
            ));
        }
        for alternate in &self.alternate_ip {
            let mut of_family = self.listen.iter().map(SocketAddr::ip);
            if !of_family.any(|ip| ip.is_ipv4() == alternate.is_ipv4() && ip != *alternate) {
                return Err(ConfigError::new(
                    format!("alternate-ip {alternate} is second to no address of --listen"),
                    "listen on another address of its family too",
                ));
            }
        }
        if self.alternate_domain.is_some() && self.alternate_tls_servers.is_empty() {
            return Err(ConfigError::new(
                "alternate-domain is given, but no server that has such a certificate",
                "give --alternate-tls-server too",
            ));
        }
        let clash = self.tls_listen.iter().find(|tls| {
            let is_same = |at: &SocketAddr| at.port() == tls.port() && at.ip() == tls.ip();
            tls.port() != 0 && self.tcp && self.listen.iter().any(is_same)
        });
        if let Some(address) = clash {
            return Err(ConfigError::new(
                format!(
                    "tls-listen {address} is a --listen address too, which serves TCP without TLS"
                ),
                "choose another port for one of them; 5349 is usual for TLS",
            ));
        }
        if let Some(address) = self.admin.filter(|at| !at.ip().is_loopback())
            && self.admin_token.is_none()
        {
            return Err(ConfigError::new(
                format!("admin {address} can be reached from other hosts and has no token"),
                "give --admin-token-file, or listen on 127.0.0.1",
            ));
        }
        if !self.open_rendezvous && self.auth_secrets.is_empty() && self.admin.is_none() {
            return Err(ConfigError::new(
                "open-rendezvous is false, but nothing can admit anybody",
                "give --auth-secret-file for credentials or --admin for tickets",
            ));
        }
        if self.seat_hold_secs < self.keepalive_secs {
            return Err(ConfigError::new(
                format!(
                    "seat-hold-secs {} is shorter than keepalive-secs {}, so idle members would lose their seats",
                    self.seat_hold_secs, self.keepalive_secs
                ),
                "hold seats for at least two keepalives",
            ));
        }
        let secrets = self
            .auth_secrets
            .iter()
            .map(|secret| ("auth-secret", secret));
        let tokens = self.admin_token.iter().map(|token| ("admin-token", token));
        for (name, secret) in secrets.chain(tokens) {
            if secret.expose().len() < SECRET_BYTES_ADVISED {
                self.warnings.push(format!(
                    "{name} is shorter than {SECRET_BYTES_ADVISED} bytes and can be guessed; `openssl rand -hex 32` makes a good one"
                ));
            }
        }
        Ok(())
    }

    /// What each shard may hold of `total`, rounded up so that the shards together hold all of it.
    pub fn per_shard(&self, total: u32) -> usize {
        (total as usize).div_ceil(self.shard_count)
    }
}

/// Reads typed values out of settings; each error names the option and the layer.
struct Reader<'a>(&'a Settings);

impl Reader<'_> {
    fn bad(&self, name: &str, value: &str, reason: &str, remedy: impl Into<String>) -> ConfigError {
        let option = option(name);
        let origin = self.0.get(name).origin.describe(option);
        let shown = if option.secret { "***" } else { value };
        ConfigError::new(
            format!("{} `{shown}` ({origin}) {reason}", option.key()),
            remedy,
        )
    }

    fn optional(&self, name: &str) -> Result<Option<&str>, ConfigError> {
        match self.0.get(name).values.first().map(String::as_str) {
            Some("") => Err(self.bad(name, "", "is empty", "give a value or leave it out")),
            value => Ok(value),
        }
    }

    fn required(&self, name: &str) -> Result<&str, ConfigError> {
        let absent = || self.bad(name, "", "has no value", "give one");
        self.optional(name)?.ok_or_else(absent)
    }

    fn number<N>(&self, name: &str, range: RangeInclusive<N>) -> Result<N, ConfigError>
    where
        N: FromStr + PartialOrd + std::fmt::Display,
    {
        let text = self.required(name)?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        match text.parse() {
            Ok(number) if digits && range.contains(&number) => Ok(number),
            _ => Err(self.bad(
                name,
                text,
                "is not a number in range",
                format!(
                    "give a whole number from {} to {}",
                    range.start(),
                    range.end()
                ),
            )),
        }
    }

    fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, ConfigError> {
        let text = self.required(name)?;
        if let Some((_, value)) = choices.iter().find(|(word, _)| *word == text) {
            return Ok(*value);
        }
        let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
        let remedy = match options::did_you_mean(text, &words) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("give one of {}", words.join(", ")),
        };
        Err(self.bad(name, text, "is not a choice", remedy))
    }

    fn truth(&self, name: &str) -> Result<bool, ConfigError> {
        self.choice(name, &[("true", true), ("false", false)])
    }

    fn address(&self, name: &str, text: &str) -> Result<SocketAddr, ConfigError> {
        let remedy = "write it as 203.0.113.5:3478 or [2001:db8::5]:3478, the port at most 65535";
        text.parse()
            .map_err(|_| self.bad(name, text, "is not an address and a port", remedy))
    }

    fn addresses(&self, name: &str) -> Result<Vec<SocketAddr>, ConfigError> {
        let mut addresses = Vec::new();
        for text in &self.0.get(name).values {
            let address = self.address(name, text)?;
            if address.port() != 0 && addresses.contains(&address) {
                return Err(self.bad(name, text, "is there twice", "remove one"));
            }
            addresses.push(address);
        }
        Ok(addresses)
    }

    fn listen(&self) -> Result<Vec<SocketAddr>, ConfigError> {
        let addresses = self.addresses("listen")?;
        match addresses.is_empty() {
            true => Err(self.bad(
                "listen",
                "",
                "names no address",
                "leave it out for the default",
            )),
            false => Ok(addresses),
        }
    }

    fn admin(&self) -> Result<Option<SocketAddr>, ConfigError> {
        match self.required("admin")? {
            "off" => Ok(None),
            text => self.address("admin", text).map(Some),
        }
    }

    fn external_ip(&self) -> Result<Vec<ExternalIp>, ConfigError> {
        let mut pairs: Vec<ExternalIp> = Vec::new();
        for text in &self.0.get("external-ip").values {
            let bad = |reason| {
                let remedy =
                    "write it as 203.0.113.5 or 203.0.113.5/10.0.0.5, one per local address";
                self.bad("external-ip", text, reason, remedy)
            };
            let parse = |part: &str| {
                part.parse::<IpAddr>()
                    .map_err(|_| bad("is not an IP address"))
            };
            let pair = match text.split_once('/') {
                Some((external, local)) => ExternalIp {
                    external: parse(external)?,
                    local: Some(parse(local)?),
                },
                None => ExternalIp {
                    external: parse(text)?,
                    local: None,
                },
            };
            if pair.external.is_unspecified() || pair.external.is_multicast() {
                return Err(bad("cannot be told to clients"));
            }
            if pair
                .local
                .is_some_and(|local| local.is_ipv4() != pair.external.is_ipv4())
            {
                return Err(bad("mixes IPv4 and IPv6"));
            }
            let same = |other: &&ExternalIp| {
                other.local == pair.local && other.external.is_ipv4() == pair.external.is_ipv4()
            };
            if pairs.iter().find(same).is_some() {
                return Err(bad("stands for a local address that has one already"));
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }

    /// The secrets of a pair of options, the text itself or a file that holds it. The stronger layer
    /// wins as for any option; in one layer the two add up, to what the first may hold.
    fn secrets(&self, text_name: &str, file_name: &str) -> Result<Vec<Secret>, ConfigError> {
        let (texts, files) = (self.0.get(text_name), self.0.get(file_name));
        let strongest = texts.origin.max(files.origin);
        let mut secrets = Vec::new();
        for text in texts.values.iter().filter(|_| texts.origin == strongest) {
            if text.is_empty() {
                return Err(self.bad(text_name, "", "is empty", "give a value or leave it out"));
            }
            secrets.push(Secret::new(text.as_bytes()));
        }
        for path in files.values.iter().filter(|_| files.origin == strongest) {
            let secret = Secret::from_file(path.as_ref()).map_err(|reason| {
                self.bad(
                    file_name,
                    path,
                    &reason,
                    "name a readable file that holds only the secret",
                )
            })?;
            secrets.push(secret);
        }
        if secrets.len() > option(text_name).values_max {
            return Err(ConfigError::new(
                format!(
                    "{text_name} and {file_name} together hold {} secrets",
                    secrets.len()
                ),
                format!("give at most {}", option(text_name).values_max),
            ));
        }
        Ok(secrets)
    }
}
