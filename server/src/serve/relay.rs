//! What the TURN side of each shard is made with: the host's relay addresses, the services that no peer may be, and how many
//! sockets the process may have. Binds nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use waypost_proto::addr::Addr;
use waypost_proto::dialect::RelayMode;
use waypost_proto::forwarding::RelayLimits;
use waypost_proto::turn::peer_policy::PeerRules;
use waypost_proto::turn::{RelayIp, TurnConfig, TurnCredentials};

use super::secret_bytes;
use crate::control::config::Config;
use crate::packet_io::MAX_STREAMS;

/// Descriptors that the process needs beside sockets of shards.
const OTHER_FILES: u64 = 256;

/// What SOFTWARE says where it is wanted.
const SOFTWARE: &str = concat!("Waypost ", env!("CARGO_PKG_VERSION"));

/// The TURN side of each of the shards, to be cloned for them: what they count together is in it. `listeners` are the addresses really bound.
pub(super) fn turn_config(config: &Config, listeners: &[SocketAddr]) -> TurnConfig {
    let host_ips = host_ips();
    TurnConfig {
        credentials: TurnCredentials {
            realm: config.realm.clone(),
            users: config
                .users
                .iter()
                .map(|user| (user.name.clone(), user.password_text()))
                .collect(),
            secrets: secret_bytes(&config.auth_secrets),
        },
        relay_ips: relay_ips(config, &host_ips),
        relay_ports: config.relay_ports.clone(),
        withheld_ports: noray_ports(config).to_vec(),
        peers: PeerRules {
            allow: config.allow_peer.clone(),
            deny: config.deny_peer.clone(),
            own_services: own_services(config, listeners, &host_ips),
            own_ips: host_ips,
            ..PeerRules::default()
        },
        allocations_max: config.per_shard(config.allocations_max),
        allocations_per_user: config.allocations_per_user,
        allocations_per_prefix: config.allocations_per_source,
        permissions_max: config.permissions_per_allocation as usize,
        channels_max: config.channels_per_allocation as usize,
        serves_rfc5766: config.turn_compat,
        alternate_servers: addrs(&config.alternate_servers),
        alternate_tls_servers: addrs(&config.alternate_tls_servers),
        alternate_domain: config.alternate_domain.clone(),
        mobility: config.mobility,
        software: config.software.then_some(SOFTWARE),
        limits: RelayLimits {
            packets_per_sec: config.allocation_packets_per_sec,
            bytes_per_sec: config.allocation_bytes_per_sec,
        },
        unproven_bytes_per_sec: config.unproven_bytes_per_sec,
        shares: Arc::default(),
    }
}

fn addrs(of: &[SocketAddr]) -> Vec<Addr> {
    of.iter().copied().map(Addr::new).collect()
}

/// The addresses of this host.
fn host_ips() -> Vec<IpAddr> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut ips: Vec<IpAddr> = interfaces.iter().map(if_addrs::Interface::ip).collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

/// One relay address per family: what was chosen, else the listen address, else the most public one that the host has.
fn relay_ips(config: &Config, host_ips: &[IpAddr]) -> Vec<RelayIp> {
    let mut chosen = config.relay_ip.clone();
    if chosen.is_empty() {
        for wanted in config.listen.iter().map(SocketAddr::ip) {
            if chosen.iter().any(|ip| ip.is_ipv4() == wanted.is_ipv4()) {
                continue;
            }
            if wanted.is_unspecified() {
                chosen.extend(most_public(wanted.is_ipv4(), host_ips));
            } else {
                chosen.push(wanted);
            }
        }
    }
    let told = chosen.into_iter().map(|local| RelayIp {
        local,
        external: external_ip(config, local),
    });
    told.collect()
}

/// The URLs by which clients find TURN (RFC 7065), from what is listened on, as printed at start: a `udp` line makes
/// `turn:` with `transport=udp`, `tcp` one with `transport=tcp`, and `tls` makes `turns:`.
pub(super) fn turn_urls(config: &Config, lines: &[String]) -> Vec<String> {
    let host_ips = host_ips();
    let mut urls = Vec::new();
    for (kind, at) in lines.iter().filter_map(|line| line.split_once(' ')) {
        let (scheme, transport) = match kind {
            "udp" => ("turn", "udp"),
            "tcp" => ("turn", "tcp"),
            "tls" => ("turns", "tcp"),
            _ => continue,
        };
        let Ok(at) = at.parse::<SocketAddr>() else {
            continue;
        };
        let host = match &config.turn_host {
            Some(name) => name.clone(),
            None => {
                let ip = Some(at.ip()).filter(|ip| !ip.is_unspecified());
                let Some(ip) = ip.or_else(|| most_public(at.is_ipv4(), &host_ips)) else {
                    continue;
                };
                match external_ip(config, ip) {
                    IpAddr::V4(ip) => ip.to_string(),
                    IpAddr::V6(ip) => format!("[{ip}]"),
                }
            }
        };
        let url = format!("{scheme}:{host}:{}?transport={transport}", at.port());
        if !urls.contains(&url) {
            urls.push(url);
        }
    }
    urls
}

/// What clients are told in place of a local address.
pub(super) fn external_ip(config: &Config, local: IpAddr) -> IpAddr {
    let pairs = config.external_ip.iter();
    let of_family = pairs.filter(|pair| pair.external.is_ipv4() == local.is_ipv4());
    let exact = of_family.clone().find(|pair| pair.local == Some(local));
    exact
        .or_else(|| of_family.clone().find(|pair| pair.local.is_none()))
        .map_or(local, |pair| pair.external)
}

fn most_public(is_v4: bool, host_ips: &[IpAddr]) -> Option<IpAddr> {
    let privacy = |ip: &IpAddr| match ip {
        IpAddr::V4(ip) if ip.is_link_local() => 3,
        IpAddr::V4(ip) => u8::from(ip.is_private()) + 2 * u8::from(ip.is_loopback()),
        IpAddr::V6(ip) if ip.is_loopback() || ip.is_unicast_link_local() => 3,
        IpAddr::V6(ip) => u8::from(ip.is_unique_local()),
    };
    let of_family = host_ips.iter().filter(|ip| ip.is_ipv4() == is_v4);
    let usable = of_family.filter(|ip| privacy(ip) < 3);
    usable.min_by_key(|ip| privacy(ip)).copied()
}

/// Every address and port of this server's own services.
fn own_services(config: &Config, listeners: &[SocketAddr], host_ips: &[IpAddr]) -> Vec<Addr> {
    let all = listeners.iter().copied().chain(config.admin);
    let mut services = Vec::new();
    for at in all {
        services.push(Addr::new(at));
        if at.ip().is_unspecified() {
            services.extend(host_ips.iter().map(|&ip| Addr::from_ip_port(ip, at.port())));
        }
    }
    services
}

/// The relay ports that noray has for its own.
fn noray_ports(config: &Config) -> &[u16] {
    let noray = config.noray.as_ref();
    noray.map_or(&[], |noray| &noray.protocol.relay.ports)
}

/// Relay sockets that dialects may open on one shard.
fn dialect_relays(config: &Config) -> usize {
    noray_ports(config).len() + pair_relays(config)
}

fn pair_relays(config: &Config) -> usize {
    if config.dialect_listen.is_empty() || matches!(config.dialect_relay, RelayMode::Off) {
        0
    } else {
        2 * config.dialect_pairs_max as usize
    }
}

/// How many descriptors each shard may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Descriptors {
    /// UDP sockets.
    pub sockets: u32,
    /// TCP and TLS connections.
    pub streams: u32,
}

/// Raises the limit of open files as far as the sockets and streams of all shards need it and the host allows. Each shard has
/// `listeners` of UDP and `stream_listeners` of TCP. Returns what each may have, and a warning if that is less than wanted.
pub(super) fn descriptors_per_shard(
    config: &Config,
    listeners: usize,
    stream_listeners: usize,
) -> (Descriptors, Option<String>) {
    // Without a credential nobody gets an allocation; a client that does may have an address of each family.
    let relays = if config.users.is_empty() && config.auth_secrets.is_empty() {
        0
    } else {
        2 * config.per_shard(config.allocations_max)
    };
    let relays = relays + dialect_relays(config);
    let sockets = (listeners + relays).clamp(listeners + 1, usize::from(u16::MAX)) as u64;
    let streams = match stream_listeners {
        0 => 0,
        _ => config.per_shard(config.streams_max) as u64,
    };
    let fixed = stream_listeners as u64;
    let wanted = sockets + streams;
    let shards = config.shard_count as u64;
    let needed = (wanted + fixed) * shards + OTHER_FILES;
    let limit = getrlimit(Resource::Nofile);
    let ceiling = limit.maximum.unwrap_or(u64::MAX);
    let mut allowed = limit.current.unwrap_or(u64::MAX);
    if allowed < needed && allowed < ceiling {
        let raised = Rlimit {
            current: Some(needed.min(ceiling)),
            maximum: limit.maximum,
        };
        if setrlimit(Resource::Nofile, raised).is_ok() {
            allowed = needed.min(ceiling);
        }
    }
    let fits = (allowed.saturating_sub(OTHER_FILES) / shards).saturating_sub(fixed);
    // What is not there is missing from both in proportion.
    let shared = |want: u64, least: u64| {
        let share = want.min((u128::from(want) * u128::from(fits) / u128::from(wanted)) as u64);
        u32::try_from(if fits < wanted { share } else { want }.max(least)).unwrap_or(u32::MAX)
    };
    let given = Descriptors {
        sockets: shared(sockets, listeners as u64 + 1),
        streams: shared(streams, 1).min(MAX_STREAMS),
    };
    let warning = (fits < wanted).then(|| {
        format!(
            "the limit of open files ({allowed}) leaves room for {} sockets and {} streams per shard; --max-allocations {} and --streams {} need {needed} files (LimitNOFILE, ulimit -n)",
            given.sockets, given.streams, config.allocations_max, config.streams_max
        )
    });
    (given, warning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::{Host, Sources};

    fn config(arguments: &[&str]) -> Config {
        let sources = Sources {
            arguments: ["waypost-server"]
                .iter()
                .chain(arguments)
                .map(Into::into)
                .collect(),
            environment: Vec::new(),
            host: Host::detect(|_| None),
        };
        sources.reload().unwrap()
    }

    #[test]
    fn urls_name_what_is_listened_on() {
        let lines = [
            "udp 198.51.100.1:3478",
            "udp [2001:db8::1]:3478",
            "tcp 198.51.100.1:3478",
            "tls 198.51.100.1:5349",
            "probe 198.51.100.1:3479",
            "admin 127.0.0.1:9478",
        ]
        .map(str::to_owned);
        let urls = |arguments: &[&str]| turn_urls(&config(arguments), &lines);
        assert_eq!(
            urls(&[]),
            [
                "turn:198.51.100.1:3478?transport=udp",
                "turn:[2001:db8::1]:3478?transport=udp",
                "turn:198.51.100.1:3478?transport=tcp",
                "turns:198.51.100.1:5349?transport=tcp",
            ]
        );
        assert_eq!(
            urls(&["--turn-host=turn.example.org"]),
            [
                "turn:turn.example.org:3478?transport=udp",
                "turn:turn.example.org:3478?transport=tcp",
                "turns:turn.example.org:5349?transport=tcp",
            ]
        );
        let outside = urls(&["--external-ip=203.0.113.9/198.51.100.1"]);
        assert_eq!(outside[0], "turn:203.0.113.9:3478?transport=udp");
        assert_eq!(outside[1], "turn:[2001:db8::1]:3478?transport=udp");
    }
}
