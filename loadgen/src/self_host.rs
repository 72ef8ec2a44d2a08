//! A server in this process, for runs without a target: how it is started and what its counters say afterwards.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use waypost_proto::dialect::Dialect;
use waypost_server::serve::Server;

use crate::cli::Plan;
use crate::failure::Failure;
use crate::protocol::Protocol;

/// How long the server may take to end the sessions that were left. It takes milliseconds, unless something is wrong or
/// the machine has no time for it.
const ENDED_WITHIN: Duration = Duration::from_secs(10);

/// More than a member can send.
const PACKETS_PER_SEC: &str = "10000000";
const BYTES_PER_SEC: &str = "4294967295";

/// More than by default, for more allocations than a server of that size would be given.
const RELAY_PORTS: &str = "10000-65535";

/// The first relay port of noray.
const NORAY_FIRST_PORT: u64 = 10_000;

/// A server on 127.0.0.1, on a port that the kernel chose.
pub struct SelfHosted {
    server: Server,
    address: SocketAddr,
    registrar: SocketAddr,
    shards: usize,
}

/// What a server that ran in this process was and counted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ServerReport {
    /// Its packet backend.
    pub io: String,
    /// Its event loops.
    pub shards: usize,
    /// All counters, by name and labels.
    pub counters: BTreeMap<String, u64>,
}

impl SelfHosted {
    /// Starts it on the cores that the generator leaves. Its limits are beyond what the load comes to.
    ///
    /// # Errors
    /// [`Failure`] with what the server said.
    pub fn start(plan: &Plan, cores: usize) -> Result<Self, Failure> {
        let shards = cores.saturating_sub(plan.threads).max(1);
        let sessions = (u64::from(plan.sessions) * 2).max(65_536).to_string();
        let members = (u64::from(plan.sessions) * u64::from(plan.members) * 2)
            .max(262_144)
            .to_string();
        let shard_option = shards.to_string();
        let pin = if cores > plan.threads {
            "true"
        } else {
            "false"
        };
        let mut options = vec![
            ("--shards", shard_option.as_str()),
            ("--pin", pin),
            ("--io", plan.io.name()),
            ("--max-sessions", &sessions),
            ("--max-members", &members),
            ("--member-packets-per-sec", PACKETS_PER_SEC),
            ("--member-bytes-per-sec", BYTES_PER_SEC),
        ];
        let user = plan.credential.as_ref();
        let user = user.map(|given| format!("{}:{}", given.username, given.password));
        if plan.protocol == Protocol::Turn {
            options.extend([
                ("--user", user.as_deref().unwrap_or_default()),
                ("--max-allocations", &members),
                ("--relay-ports", RELAY_PORTS),
                // The plain peers of `--turn-mode peer` are sockets of this host.
                ("--allow-peer", "127.0.0.0/8"),
            ]);
        }
        let pairs = u64::from(plan.sessions) * u64::from(plan.members) * u64::from(plan.members);
        let pairs = pairs.clamp(2048, 1 << 20).to_string();
        let dialect = match plan.protocol {
            Protocol::Native | Protocol::Turn => None,
            Protocol::Rabid => Some((Dialect::Rabid, "--rabid-listen")),
            Protocol::Simple => Some((Dialect::Simple, "--simple-listen")),
            Protocol::GodotP2p => Some((Dialect::GodotP2p, "--godot-p2p-listen")),
            Protocol::Noray => Some((Dialect::Noray, "--noray-registrar")),
        };
        if let Some((_, listen)) = dialect {
            // A storm is of introductions alone.
            let relay = if plan.storm.is_some() { "off" } else { "force" };
            options.extend([
                (listen, "127.0.0.1:0"),
                ("--dialect-relay", relay),
                ("--max-dialect-pairs", &pairs),
                ("--dialect-sessions-per-source", "0"),
                ("--dialect-bytes-per-sec", "0"),
                ("--relay-ports", RELAY_PORTS),
            ]);
        }
        let players = u64::from(plan.sessions) * u64::from(plan.members);
        // Twice as many, because the ports of sessions that were replaced come back late.
        let last_port = (NORAY_FIRST_PORT + players * 2 + 1_000).min(65_535);
        let streams = (players * 2).clamp(4_096, 1 << 18).to_string();
        let noray_ports = format!("{NORAY_FIRST_PORT}-{last_port}");
        if plan.protocol == Protocol::Noray {
            options.extend([
                ("--noray-listen", "127.0.0.1:0"),
                ("--streams", &streams),
                ("--noray-relay-ports", &noray_ports),
                ("--noray-relay-timeout", "1d"),
                ("--noray-relay-max-individual-traffic", "1tb"),
                ("--noray-relay-max-global-traffic", "1tb"),
                ("--noray-relay-max-lifetime-traffic", "1000tb"),
            ]);
        }
        let options: Vec<[&str; 2]> = options.into_iter().map(<[&str; 2]>::from).collect();
        let server = Server::start_with(options.as_flattened()).map_err(|error| {
            Failure::configuration(
                format!("no server can be hosted here ({error})"),
                "remove the cause, or name one with --target",
            )
        })?;
        let address = match dialect {
            Some((dialect, _)) => server.dialect_addrs(dialect).first().copied(),
            None => None,
        };
        let registrar = address.unwrap_or(server.main_addr());
        let address = match plan.protocol {
            Protocol::Noray => server.noray_addr(),
            _ => address,
        };
        Ok(Self {
            address: address.unwrap_or(server.main_addr()),
            registrar,
            server,
            shards,
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where noray's players show their addresses.
    pub const fn registrar(&self) -> SocketAddr {
        self.registrar
    }

    /// How many of the first cores it is pinned to.
    pub const fn shards(&self) -> usize {
        self.shards
    }

    /// Stops it when it has none of our sessions left, or does not get rid of them. Its counters are the last that it had.
    pub fn finish(self) -> ServerReport {
        let metrics = std::sync::Arc::clone(self.server.metrics());
        let give_up = Instant::now() + ENDED_WITHIN;
        let left = || metrics.total("waypost_sessions") + metrics.total("waypost_allocations");
        while left() > 0 && Instant::now() < give_up {
            std::thread::sleep(Duration::from_millis(20));
        }
        let io = self.server.backend().to_owned();
        self.server.stop();
        ServerReport {
            io,
            shards: self.shards,
            counters: metrics.totals(),
        }
    }
}
