//! The sockets of a server: every main, probe and TLS address, once per shard in a `SO_REUSEPORT` group, and every address of a
//! dialect, on the one shard that serves it. A main address has one port for UDP and TCP.
//!
//! A wildcard address becomes one socket per local address where the host has several, so that an answer leaves from the
//! address that was asked. The sockets of all shards are bound here, in the order of their indexes in the protocol.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use waypost_proto::addr::Addr;
use waypost_proto::dialect::Dialect;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::shard::{DiscoveryGroup, SocketRole};

use super::relay::external_ip;
use crate::control::config::{Config, ConfigError, listen_option};
use crate::packet_io::{SocketId, StreamIo, TcpOptions, UdpOptions, bind_tcp_listener, bind_udp};
use crate::streams::StreamListener;

/// The kernel may hold a dead server's ports for this long.
const RETRY_IN_USE: Duration = Duration::from_secs(3);
/// Ports that are tried if strangers have the TCP port of the number that the kernel chose for UDP.
const PORT_TRIES: u32 = 16;
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// The UDP sockets of one shard in the order of their indexes; none where another shard has the only one.
type UdpSockets = Vec<Option<UdpSocket>>;

/// The addresses a server listens on.
pub(super) struct Listeners {
    sockets: Vec<(SocketRole, SocketAddr)>,
    streams: Vec<StreamAddress>,
    shard_count: u16,
    probe_port: u16,
    simple_public: Vec<(SocketIndex, Addr)>,
    /// Where noray's connections are accepted.
    noray: Option<SocketAddr>,
}

#[derive(Clone, Copy)]
struct StreamAddress {
    at: SocketAddr,
    is_tls: bool,
}

/// What is spoken on a stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum StreamKind {
    Tcp,
    Tls,
    Noray,
}

/// The sockets of one shard.
#[derive(Default)]
pub(super) struct ShardSockets {
    /// In the order of their indexes.
    udp: UdpSockets,
    /// In the order of their addresses.
    tcp: Vec<(SocketIndex, StreamKind, TcpListener)>,
}

impl ShardSockets {
    /// Gives everything to a backend. Returns its names of the UDP sockets, in the order of their indexes.
    pub fn add_to<P: StreamIo>(
        self,
        io: &mut P,
        listeners: &mut Vec<StreamListener>,
    ) -> io::Result<Vec<Option<SocketId>>> {
        let ids = self.udp.into_iter();
        let ids = ids.map(|socket| socket.map(|socket| io.add_socket(socket)).transpose());
        let ids: io::Result<Vec<_>> = ids.collect();
        for (socket, kind, listener) in self.tcp {
            let id = io.add_listener(listener)?;
            listeners.push(StreamListener {
                id,
                socket,
                is_tls: kind == StreamKind::Tls,
                is_raw: kind == StreamKind::Noray,
            });
        }
        ids
    }
}

impl Listeners {
    /// Binds everything. The second value has the sockets of each shard.
    pub fn bind(config: &Config) -> Result<(Self, Vec<ShardSockets>), ConfigError> {
        let mut shards: Vec<UdpSockets> = (0..config.shard_count).map(|_| Vec::new()).collect();
        let mut groups = Vec::new();
        let mut streams = Vec::new();
        let mut sockets = Vec::new();
        let mut main_hosts = Vec::new();
        for &listen in &config.listen {
            let mut port = listen.port();
            let alternate = config.alternate_ip.iter();
            let is_pair = alternate.clone().any(|ip| ip.is_ipv4() == listen.is_ipv4());
            for host in expand(listen.ip(), is_pair) {
                let (bound, group) =
                    bind_main(SocketAddr::new(host, port), config.tcp, &mut shards)?;
                port = bound.port();
                main_hosts.push(host);
                sockets.push((SocketRole::Main, bound));
                if let Some(group) = group {
                    let (at, is_tls) = (bound, false);
                    streams.push(StreamAddress { at, is_tls });
                    groups.push(group);
                }
            }
        }
        for (primary, alternate) in pairs(config, &sockets) {
            let second = SocketAddr::new(alternate, primary.port());
            if !sockets.iter().any(|&(_, at)| at == second) {
                let bound = bind_group(second, &mut shards).map_err(|(at, error)| {
                    ConfigError::bind("UDP", at, "--alternate-ip", &error)
                })?;
                main_hosts.push(alternate);
                sockets.push((SocketRole::Probe, bound));
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
            for host in expand(listen.at.ip(), false) {
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
        for &listen in &config.tls_listen {
            let group = bind_stream_group(listen, shards.len(), RETRY_IN_USE)
                .map_err(|(at, error)| ConfigError::bind("TCP", at, "--tls-listen", &error))?;
            let at = local_addr(&group)
                .map_err(|error| ConfigError::bind("TCP", listen, "--tls-listen", &error))?;
            streams.push(StreamAddress { at, is_tls: true });
            groups.push(group);
        }
        let mut listeners = Self {
            sockets,
            streams,
            shard_count: u16::try_from(shards.len()).expect("at most 128 shards"),
            probe_port,
            simple_public,
            noray: None,
        };
        let mut of_shards: Vec<_> = shards
            .into_iter()
            .map(|udp| ShardSockets {
                udp,
                tcp: Vec::new(),
            })
            .collect();
        for (place, group) in groups.into_iter().enumerate() {
            for (shard, listener) in group.into_iter().enumerate() {
                let socket = listeners.stream_index(place, shard);
                let kind = if listeners.streams[place].is_tls {
                    StreamKind::Tls
                } else {
                    StreamKind::Tcp
                };
                of_shards[shard].tcp.push((socket, kind, listener));
            }
        }
        if let Some(noray) = &config.noray {
            let listener = bind_lines(noray.listen).map_err(|error| {
                ConfigError::bind("TCP", noray.listen, "--noray-listen", &error)
            })?;
            let at = listener.local_addr().map_err(|error| {
                ConfigError::bind("TCP", noray.listen, "--noray-listen", &error)
            })?;
            listeners.noray = Some(at);
            let socket = listeners.stream_index(listeners.streams.len(), 0);
            let owner = Dialect::Noray.shard(of_shards.len());
            of_shards[owner]
                .tcp
                .push((socket, StreamKind::Noray, listener));
        }
        Ok((listeners, of_shards))
    }

    /// The role of each index: UDP sockets, then each address of streams once for every shard.
    pub fn roles(&self) -> Vec<SocketRole> {
        let udp = self.sockets.iter().map(|&(role, _)| role);
        let of_shards = |stream: &StreamAddress| {
            let is_tls = stream.is_tls;
            (0..self.shard_count).map(move |shard| SocketRole::Stream { shard, is_tls })
        };
        let dialect = Dialect::Noray;
        let shard = dialect.shard(usize::from(self.shard_count));
        let shard = u16::try_from(shard).expect("at most 128 shards");
        let noray = self
            .noray
            .map(|_| SocketRole::DialectStream { dialect, shard });
        udp.chain(self.streams.iter().flat_map(of_shards))
            .chain(noray)
            .collect()
    }

    fn stream_index(&self, place: usize, shard: usize) -> SocketIndex {
        let index = self.sockets.len() + place * usize::from(self.shard_count) + shard;
        SocketIndex(u16::try_from(index).expect("a server has few listeners"))
    }

    /// UDP sockets of each shard.
    pub const fn udp_count(&self) -> usize {
        self.sockets.len()
    }

    /// Stream listeners of each shard.
    pub fn stream_count(&self) -> usize {
        self.streams.len() + usize::from(self.noray.is_some())
    }

    /// Where noray's connections are accepted.
    pub const fn noray_addr(&self) -> Option<SocketAddr> {
        self.noray
    }

    /// The listeners by which clients discover how their NATs behave.
    pub fn discovery(&self, config: &Config) -> Vec<DiscoveryGroup> {
        let group = |(primary, alternate): (SocketAddr, IpAddr)| {
            let ports = [primary.port(), self.probe_port];
            let hosts = [primary.ip(), alternate];
            let place = |at: usize| SocketAddr::new(hosts[at >> 1], ports[at & 1]);
            let socket = |at: usize| {
                let mut bound = self.sockets.iter();
                let index = bound.position(|(_, addr)| *addr == place(at))?;
                u16::try_from(index).ok().map(SocketIndex)
            };
            Some(DiscoveryGroup {
                sockets: [socket(0)?, socket(1)?, socket(2)?, socket(3)?],
                addrs: std::array::from_fn(|at| {
                    let place = place(at);
                    Addr::from_ip_port(external_ip(config, place.ip()), place.port())
                }),
            })
        };
        let pairs = pairs(config, &self.sockets).into_iter();
        pairs.filter_map(group).collect()
    }

    pub const fn probe_port(&self) -> u16 {
        self.probe_port
    }

    /// Every address that is bound.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        let udp = self.sockets.iter().map(|&(_, at)| at);
        let streams = self.streams.iter().map(|stream| stream.at);
        let mut all: Vec<_> = udp.chain(streams).chain(self.noray).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    pub fn tls_addrs(&self) -> Vec<SocketAddr> {
        let tls = self.streams.iter().filter(|stream| stream.is_tls);
        tls.map(|stream| stream.at).collect()
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
        let udp = self.sockets.iter().map(|(role, at)| match role {
            SocketRole::Probe => format!("probe {at}"),
            SocketRole::Dialect(dialect) => format!("{} {at}", dialect.name()),
            SocketRole::Main | SocketRole::Stream { .. } | SocketRole::DialectStream { .. } => {
                format!("udp {at}")
            }
        });
        let streams = self.streams.iter().map(|stream| {
            let kind = if stream.is_tls { "tls" } else { "tcp" };
            format!("{kind} {}", stream.at)
        });
        let noray = self.noray.map(|at| format!("noray-tcp {at}"));
        udp.chain(streams).chain(noray).collect()
    }
}

/// Each alternate address with the main address that it is second to: one as near to this host as itself, if there is one.
fn pairs(config: &Config, sockets: &[(SocketRole, SocketAddr)]) -> Vec<(SocketAddr, IpAddr)> {
    let pair = |&alternate: &IpAddr| {
        let main =
            |(role, at): &(SocketRole, SocketAddr)| (*role == SocketRole::Main).then_some(*at);
        let primaries = sockets.iter().filter_map(main).filter(|at| {
            at.is_ipv4() == alternate.is_ipv4() && at.ip() != alternate && !at.ip().is_unspecified()
        });
        let primary = primaries.min_by_key(|at| at.ip().is_loopback() != alternate.is_loopback());
        primary.map(|primary| (primary, alternate))
    };
    config.alternate_ip.iter().filter_map(pair).collect()
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

/// Binds a main address for every shard: UDP, and TCP of the same number if it is wanted.
fn bind_main(
    address: SocketAddr,
    with_tcp: bool,
    shards: &mut [UdpSockets],
) -> Result<(SocketAddr, Option<Vec<TcpListener>>), ConfigError> {
    let (mut tries_left, retry_in_use) = match address.port() {
        0 => (PORT_TRIES, Duration::ZERO),
        _ => (1, RETRY_IN_USE),
    };
    loop {
        let bound = bind_group(address, shards)
            .map_err(|(at, error)| ConfigError::bind("UDP", at, "--listen", &error))?;
        if !with_tcp {
            return Ok((bound, None));
        }
        tries_left -= 1;
        match bind_stream_group(bound, shards.len(), retry_in_use) {
            Ok(group) => return Ok((bound, Some(group))),
            Err((_, error)) if error.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {
                shards.iter_mut().for_each(|sockets| {
                    sockets.pop();
                });
            }
            Err((at, error)) => return Err(ConfigError::bind("TCP", at, "--listen", &error)),
        }
    }
}

fn local_addr(group: &[TcpListener]) -> io::Result<SocketAddr> {
    group[0].local_addr()
}

/// Binds one TCP address for every shard; port 0 is chosen by the first.
fn bind_stream_group(
    address: SocketAddr,
    shard_count: usize,
    retry_in_use: Duration,
) -> Result<Vec<TcpListener>, (SocketAddr, io::Error)> {
    // As for UDP: alone first, so that another server on this port is an error.
    let alone = TcpOptions {
        reuse_port: false,
        retry_in_use,
    };
    drop(bind_tcp_listener(address, &alone).map_err(|error| (address, error))?);
    let options = TcpOptions {
        reuse_port: true,
        ..TcpOptions::default()
    };
    let mut bound = address;
    let mut group = Vec::with_capacity(shard_count);
    for _ in 0..shard_count {
        let listener = bind_tcp_listener(bound, &options).map_err(|error| (bound, error))?;
        bound = listener.local_addr().map_err(|error| (bound, error))?;
        group.push(listener);
    }
    Ok(group)
}

/// Binds one address for every shard. Port 0 is chosen without SO_REUSEPORT: with it the kernel may choose one that another
/// server shares out among its own shards.
fn bind_group(
    address: SocketAddr,
    shards: &mut [UdpSockets],
) -> Result<SocketAddr, (SocketAddr, io::Error)> {
    let mut tries_left = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        tries_left -= 1;
        // Alone first, so that another server on this port is an error and does not share it.
        let alone = UdpOptions {
            retry_in_use: RETRY_IN_USE,
            ..UdpOptions::default()
        };
        let bound = bind_udp(address, &alone)
            .and_then(|socket| socket.local_addr())
            .map_err(|error| (address, error))?;
        let options = UdpOptions {
            reuse_port: true,
            recv_buffer_bytes: Some(RECEIVE_BUFFER_BYTES),
            send_buffer_bytes: Some(SEND_BUFFER_BYTES),
            retry_in_use: Duration::ZERO,
        };
        let group: io::Result<Vec<_>> = shards.iter().map(|_| bind_udp(bound, &options)).collect();
        match group {
            Ok(group) => {
                for (sockets, socket) in shards.iter_mut().zip(group) {
                    sockets.push(Some(socket));
                }
                return Ok(bound);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries_left > 0 => {}
            Err(error) => return Err((bound, error)),
        }
    }
}

/// Binds an address of connections for one shard only. Their clients may be silent for long, so the kernel looks after them.
fn bind_lines(address: SocketAddr) -> io::Result<TcpListener> {
    let options = TcpOptions {
        reuse_port: false,
        retry_in_use: RETRY_IN_USE,
    };
    let listener = bind_tcp_listener(address, &options)?;
    // Accepted sockets inherit this, tcp(7).
    let keepalive = TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4);
    SockRef::from(&listener).set_tcp_keepalive(&keepalive)?;
    Ok(listener)
}

/// Binds one address for shard `owner` only.
fn bind_on_one(
    address: SocketAddr,
    shards: &mut [UdpSockets],
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

/// The addresses to bind for one that was asked for. Whoever needs to know them all has a wildcard resolved in any case.
fn expand(listen: IpAddr, needs_all: bool) -> Vec<IpAddr> {
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
    if hosts.is_empty() || (routable <= 1 && !needs_all) {
        vec![listen]
    } else {
        hosts
    }
}

/// Link-local addresses need a scope to be bound and lead to no player.
fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
