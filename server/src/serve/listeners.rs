//! The sockets of a server: every main and probe address, once per shard in a `SO_REUSEPORT` group, and every address of a
//! dialect, on the one shard that serves it.
//!
//! A wildcard address becomes one socket per local address where the host has several, so that an answer leaves from the
//! address that was asked. The sockets of all shards are bound here, in the order of their indexes in the protocol.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use waypost_proto::addr::Addr;
use waypost_proto::dialect::Dialect;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::shard::SocketRole;

use crate::control::config::{Config, ConfigError, listen_option};
use crate::packet_io::{UdpOptions, bind_udp};

/// The kernel may hold a dead server's ports for this long.
const RETRY_IN_USE: Duration = Duration::from_secs(3);
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The sockets of one shard in the order of their indexes; none where another shard has the only one.
pub(super) type ShardSockets = Vec<Option<UdpSocket>>;

/// The addresses a server listens on.
pub(super) struct Listeners {
    sockets: Vec<(SocketRole, SocketAddr)>,
    probe_port: u16,
    simple_public: Vec<(SocketIndex, Addr)>,
}

impl Listeners {
    /// Binds everything. The second value has the sockets of each shard.
    pub fn bind(config: &Config) -> Result<(Self, Vec<ShardSockets>), ConfigError> {
        let mut shards: Vec<ShardSockets> = (0..config.shard_count).map(|_| Vec::new()).collect();
        let mut sockets = Vec::new();
        let mut main_hosts = Vec::new();
        for &listen in &config.listen {
            let mut port = listen.port();
            for host in expand(listen.ip()) {
                let bound = bind_group(SocketAddr::new(host, port), &mut shards)
                    .map_err(|(at, error)| ConfigError::bind("UDP", at, "--listen", &error))?;
                port = bound.port();
                main_hosts.push(host);
                sockets.push((SocketRole::Main, bound));
            }
        }
        let mut probe_port = config.probe_port;
        for host in probe_hosts(main_hosts) {
            let bound = bind_group(SocketAddr::new(host, probe_port), &mut shards)
                .map_err(|(at, error)| ConfigError::bind("UDP", at, "--probe-port", &error))?;
            probe_port = bound.port();
            sockets.push((SocketRole::Probe, bound));
        }
        let mut simple_public = Vec::new();
        for listen in &config.dialect_listen {
            let mut port = listen.at.port();
            for host in expand(listen.at.ip()) {
                let at = SocketAddr::new(host, port);
                let owner = listen.dialect.shard(shards.len());
                let bound = bind_on_one(at, &mut shards, owner).map_err(|error| {
                    let option = format!("--{}", listen_option(listen.dialect));
                    ConfigError::bind("UDP", at, &option, &error)
                })?;
                port = bound.port();
                if listen.dialect == Dialect::Simple {
                    let index = u16::try_from(sockets.len()).expect("a server has few listeners");
                    let mut public = listen.public;
                    if public.port() == 0 {
                        public.set_port(port);
                    }
                    simple_public.push((SocketIndex(index), Addr::new(public)));
                }
                sockets.push((SocketRole::Dialect(listen.dialect), bound));
            }
        }
        Ok((
            Self {
                sockets,
                probe_port,
                simple_public,
            },
            shards,
        ))
    }

    pub fn roles(&self) -> Vec<SocketRole> {
        self.sockets.iter().map(|&(role, _)| role).collect()
    }

    pub const fn probe_port(&self) -> u16 {
        self.probe_port
    }

    /// Every address that is bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.sockets.iter().map(|&(_, at)| at).collect()
    }

    pub fn main_addrs(&self) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .filter(|(role, _)| *role == SocketRole::Main)
            .map(|&(_, at)| at)
            .collect()
    }

    /// What each listener of simple-hole-punch writes into session ids.
    pub fn simple_public(&self) -> Vec<(SocketIndex, Addr)> {
        self.simple_public.clone()
    }

    /// Where a dialect is served.
    pub fn dialect_addrs(&self, dialect: Dialect) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .filter(|(role, _)| *role == SocketRole::Dialect(dialect))
            .map(|&(_, at)| at)
            .collect()
    }

    /// One line for each address, as printed at start.
    pub fn lines(&self) -> Vec<String> {
        self.sockets
            .iter()
            .map(|(role, at)| match role {
                SocketRole::Main => format!("udp {at}"),
                SocketRole::Probe => format!("probe {at}"),
                SocketRole::Dialect(dialect) => format!("{} {at}", dialect.name()),
            })
            .collect()
    }
}

/// The hosts that need a probe socket: each once, and none that a wildcard among them covers.
fn probe_hosts(mut hosts: Vec<IpAddr>) -> Vec<IpAddr> {
    hosts.sort_unstable();
    hosts.dedup();
    let wildcards: Vec<IpAddr> = hosts
        .iter()
        .copied()
        .filter(IpAddr::is_unspecified)
        .collect();
    hosts.retain(|host| {
        host.is_unspecified()
            || !wildcards
                .iter()
                .any(|wildcard| wildcard.is_ipv4() == host.is_ipv4())
    });
    hosts
}

/// Binds one address for every shard; port 0 is chosen by the first.
fn bind_group(
    address: SocketAddr,
    shards: &mut [ShardSockets],
) -> Result<SocketAddr, (SocketAddr, io::Error)> {
    // Without SO_REUSEPORT first, so that another server on this port is an error and does not share it.
    drop(
        bind_udp(
            address,
            &UdpOptions {
                retry_in_use: RETRY_IN_USE,
                ..UdpOptions::default()
            },
        )
        .map_err(|error| (address, error))?,
    );
    let options = UdpOptions {
        reuse_port: true,
        recv_buffer_bytes: Some(RECEIVE_BUFFER_BYTES),
        send_buffer_bytes: Some(SEND_BUFFER_BYTES),
        retry_in_use: Duration::ZERO,
    };
    let mut bound = address;
    for sockets in shards {
        let socket = bind_udp(bound, &options).map_err(|error| (bound, error))?;
        bound = socket.local_addr().map_err(|error| (bound, error))?;
        sockets.push(Some(socket));
    }
    Ok(bound)
}

/// Binds one address for shard `owner` only.
fn bind_on_one(
    address: SocketAddr,
    shards: &mut [ShardSockets],
    owner: usize,
) -> io::Result<SocketAddr> {
    let options = UdpOptions {
        reuse_port: false,
        recv_buffer_bytes: Some(RECEIVE_BUFFER_BYTES),
        send_buffer_bytes: Some(SEND_BUFFER_BYTES),
        retry_in_use: RETRY_IN_USE,
    };
    let socket = bind_udp(address, &options)?;
    let bound = socket.local_addr()?;
    for sockets in &mut *shards {
        sockets.push(None);
    }
    if let Some(place) = shards[owner].last_mut() {
        *place = Some(socket);
    }
    Ok(bound)
}

/// The addresses to bind for one that was asked for.
fn expand(listen: IpAddr) -> Vec<IpAddr> {
    if !listen.is_unspecified() {
        return vec![listen];
    }
    let mut hosts: Vec<IpAddr> = if_addrs::get_if_addrs()
        .unwrap_or_default()
        .iter()
        .map(if_addrs::Interface::ip)
        .filter(|ip| ip.is_ipv4() == listen.is_ipv4() && !is_link_local(*ip))
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    let routable = hosts.iter().filter(|ip| !ip.is_loopback()).count();
    if routable <= 1 { vec![listen] } else { hosts }
}

/// Link-local addresses need a scope to be bound and lead to no player.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
