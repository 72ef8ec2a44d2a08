//! What the TURN side of each shard is made with: the host's relay addresses, the services that no peer may be, and how many
//! sockets the process may have. Binds nothing.

use std::net::{IpAddr, SocketAddr};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use waypost_proto::addr::Addr;
use waypost_proto::dialect::RelayMode;
use waypost_proto::forwarding::RelayLimits;
use waypost_proto::turn::peer_policy::PeerRules;
use waypost_proto::turn::{RelayIp, TurnConfig, TurnCredentials};

use super::secret_bytes;
use crate::control::config::Config;

/// Descriptors that the process needs beside sockets of shards.
const OTHER_FILES: u64 = 256;

/// The TURN side of one of the shards. `listeners` are the addresses really bound.
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
        serves_rfc5766: config.turn_compat,
        limits: RelayLimits {
            packets_per_sec: config.allocation_packets_per_sec,
            bytes_per_sec: config.allocation_bytes_per_sec,
        },
        unproven_bytes_per_sec: config.unproven_bytes_per_sec,
        ..TurnConfig::default()
    }
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
    let external = |local: IpAddr| {
        let pairs = config.external_ip.iter();
        let of_family = pairs.filter(|pair| pair.external.is_ipv4() == local.is_ipv4());
        let exact = of_family.clone().find(|pair| pair.local == Some(local));
        exact
            .or_else(|| of_family.clone().find(|pair| pair.local.is_none()))
            .map_or(local, |pair| pair.external)
    };
    let told = chosen.into_iter().map(|local| RelayIp {
        local,
        external: external(local),
    });
    told.collect()
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

/// Relay sockets that dialects may open on one shard.
fn dialect_relays(config: &Config) -> usize {
    if config.dialect_listen.is_empty() || matches!(config.dialect_relay, RelayMode::Off) {
        0
    } else {
        2 * config.dialect_pairs_max as usize
    }
}

/// Raises the limit of open files as far as the sockets of all shards need it and the host allows. Returns how many sockets
/// each shard may have, and a warning if those are fewer.
pub(super) fn sockets_per_shard(config: &Config, listeners: usize) -> (u32, Option<String>) {
    // Without a credential nobody gets an allocation; a client that does may have an address of each family.
    let relays = if config.users.is_empty() && config.auth_secrets.is_empty() {
        0
    } else {
        2 * config.per_shard(config.allocations_max)
    };
    let relays = relays + dialect_relays(config);
    let wanted = (listeners + relays).clamp(listeners + 1, usize::from(u16::MAX)) as u64;
    let shards = config.shard_count as u64;
    let needed = wanted * shards + OTHER_FILES;
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
    let fits = (allowed.saturating_sub(OTHER_FILES) / shards).max(listeners as u64 + 1);
    let sockets = u32::try_from(wanted.min(fits)).unwrap_or(u32::MAX);
    let warning = (fits < wanted).then(|| {
        format!(
            "the limit of open files ({allowed}) leaves room for {sockets} sockets per shard; --max-allocations {} needs {needed} files (LimitNOFILE, ulimit -n)",
            config.allocations_max
        )
    });
    (sockets, warning)
}
