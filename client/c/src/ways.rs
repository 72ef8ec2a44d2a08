//! The ways to a member: which are tried, what was prepared for them, what became of them, and the stream that two of them give.

use std::ffi::{c_char, c_int};
#[cfg(unix)]
use std::os::fd::IntoRawFd as _;
use std::time::Duration;

use waypost_client::{Session, Strategies, Strategy, TurnServer, TurnTransport, nat_report};

use crate::buffer::{bytes, put, text, write_text};
use crate::config::{WaypostConfig, change};
use crate::session::{WaypostSession, with};
use crate::status::{Failure, guarded, member_of};

/// Calling an address that lets anybody in.
pub const WAYPOST_STRATEGY_DIRECT: u32 = 1;
/// Being called at such an address of one's own.
pub const WAYPOST_STRATEGY_REVERSE: u32 = 2;
/// UDP from both sides through two NATs.
pub const WAYPOST_STRATEGY_UDP_PUNCH: u32 = 4;
/// TCP from both sides, for `waypost_connect_stream` only.
pub const WAYPOST_STRATEGY_TCP_PUNCH: u32 = 8;
/// Through the server.
pub const WAYPOST_STRATEGY_RELAY: u32 = 16;
/// Through a TURN server on which one of the two has an address.
pub const WAYPOST_STRATEGY_TURN: u32 = 32;

/// A TURN server is reached over UDP.
pub const WAYPOST_TURN_UDP: c_int = 0;
/// A TURN server is reached over TCP.
pub const WAYPOST_TURN_TCP: c_int = 1;
/// A TURN server is reached over TLS. `WAYPOST_INVALID` if the library was built without its feature `tls`.
pub const WAYPOST_TURN_TLS: c_int = 2;

/// Which ways are tried, in parallel: a sum of `WAYPOST_STRATEGY_DIRECT` and its like; all unless set. Without the relay the policy
/// is `WAYPOST_DIRECT_ONLY`, with the relay alone `WAYPOST_RELAY_ONLY`.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_strategies(
    config: *mut WaypostConfig,
    strategies: u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            let chosen = Strategy::ALL
                .into_iter()
                .filter(|strategy| strategies & *strategy as u32 != 0)
                .fold(Strategies::NONE, Strategies::with);
            let known = Strategy::ALL.into_iter().map(|strategy| strategy as u32);
            if chosen == Strategies::NONE || strategies & !known.sum::<u32>() != 0 {
                return Err(Failure::invalid("there are no such strategies"));
            }
            hosting.player.strategies = chosen;
            Ok(())
        })
    }
}

/// The port of this machine to use, 0 for any; the port of the public address that the router forwards to it, 0 for none; and whether
/// the router is asked for one, which takes up to some seconds. At first any, none, and not.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_ports(
    config: *mut WaypostConfig,
    local_port: u16,
    reachable_port: u16,
    maps_port: bool,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.local_port = local_port;
            hosting.player.reachable_port = (reachable_port != 0).then_some(reachable_port);
            hosting.player.maps_port = maps_port;
            Ok(())
        })
    }
}

/// Whether the ports of a member whose NAT gives them out at random are guessed, with at most 1,024 small packets; not unless set.
///
/// # Safety
/// `config` came from `waypost_config_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_guesses_ports(
    config: *mut WaypostConfig,
    guesses: bool,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.guesses_ports = guesses;
            Ok(())
        })
    }
}

/// A TURN server that everything of the session goes through; `address`, "203.0.113.9:3478", null for none, as at first. `transport` is
/// `WAYPOST_TURN_UDP` or its like. Only TLS needs `name`, which the server's certificate has to be made out to, and `roots_pem`, the
/// certificates in PEM that are trusted and no others.
///
/// # Safety
/// `config` came from `waypost_config_new`; `address` and `name` are null or texts, `username` and `password` texts unless `address` is
/// null; `roots_pem` points to `roots_length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_turn(
    config: *mut WaypostConfig,
    address: *const c_char,
    transport: c_int,
    username: *const c_char,
    password: *const c_char,
    name: *const c_char,
    roots_pem: *const u8,
    roots_length: usize,
) -> c_int {
    let identity = (name, roots_pem, roots_length);
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.turn = turn_server(address, transport, username, password, identity)?;
            Ok(())
        })
    }
}

/// A TURN server on which the player gets one more address that it can be reached at, `WAYPOST_STRATEGY_TURN`, tried beside the other
/// ways. The arguments are those of `waypost_config_set_turn`.
///
/// # Safety
/// As `waypost_config_set_turn`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_config_set_turn_candidate(
    config: *mut WaypostConfig,
    address: *const c_char,
    transport: c_int,
    username: *const c_char,
    password: *const c_char,
    name: *const c_char,
    roots_pem: *const u8,
    roots_length: usize,
) -> c_int {
    let identity = (name, roots_pem, roots_length);
    // SAFETY: as this function demands.
    unsafe {
        change(config, |hosting| {
            hosting.player.turn_candidate =
                turn_server(address, transport, username, password, identity)?;
            Ok(())
        })
    }
}

/// # Safety
/// As `waypost_config_set_turn`; the last argument is name and roots.
unsafe fn turn_server(
    address: *const c_char,
    transport: c_int,
    username: *const c_char,
    password: *const c_char,
    (name, roots_pem, roots_length): (*const c_char, *const u8, usize),
) -> Result<Option<TurnServer>, Failure> {
    if address.is_null() {
        return Ok(None);
    }
    // SAFETY: the caller's texts and bytes, as this function demands.
    unsafe {
        let address = text(address)?
            .parse()
            .map_err(|_| Failure::invalid("the TURN server is no IP address and port"))?;
        let transport = match transport {
            WAYPOST_TURN_UDP => TurnTransport::Udp,
            WAYPOST_TURN_TCP => TurnTransport::Tcp,
            WAYPOST_TURN_TLS => by_tls(text(name)?, bytes(roots_pem, roots_length)?)?,
            _ => return Err(Failure::invalid("there is no such transport")),
        };
        Ok(Some(TurnServer {
            address,
            transport,
            username: text(username)?.to_owned(),
            password: text(password)?.to_owned(),
        }))
    }
}

#[cfg(feature = "tls")]
fn by_tls(name: &str, roots_pem: &[u8]) -> Result<TurnTransport, Failure> {
    Ok(TurnTransport::Tls(waypost_client::ServerIdentity {
        name: name.to_owned(),
        roots_pem: roots_pem.to_vec(),
    }))
}

#[cfg(not(feature = "tls"))]
fn by_tls(_name: &str, _roots_pem: &[u8]) -> Result<TurnTransport, Failure> {
    Err(Failure::invalid(
        "this library was built without TLS; build it with --features tls",
    ))
}

/// Connects a TCP stream to a member, straight through both NATs, within `timeout_ms`. Both have to call this; who calls first waits for
/// the other, so it is for a thread of its own. `descriptor` gets a connected, blocking socket that is the caller's to close, `strategy`,
/// unless null, the way that led to it: `WAYPOST_STRATEGY_TCP_PUNCH` or its like. `WAYPOST_NO_PATH` if none came about.
///
/// # Safety
/// `session` came from this library and was not freed; `descriptor` points to writable memory, `strategy` too or is null.
#[cfg(unix)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_connect_stream(
    session: *const WaypostSession,
    member: u32,
    timeout_ms: u32,
    descriptor: *mut c_int,
    strategy: *mut u32,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session| {
            put(descriptor, -1)?;
            let timeout = Duration::from_millis(timeout_ms.into());
            let link = session.link(member_of(member)?)?;
            let connected = link.connect_stream(timeout)?;
            if !strategy.is_null() {
                put(strategy, connected.strategy as u32)?;
            }
            put(descriptor, connected.stream.into_raw_fd())
        })
    }
}

/// Writes what became of each way to a member, for people to read: a line for each, such as "udp-punch: connected after 48 ms". 1,024
/// bytes are enough.
///
/// # Safety
/// `session` came from this library and was not freed; `report` points to `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_report(
    session: *const WaypostSession,
    member: u32,
    report: *mut c_char,
    capacity: usize,
) -> c_int {
    // SAFETY: as this function demands.
    unsafe {
        with(session, |session: &Session| {
            let link = session.link(member_of(member)?)?;
            let lines: String = link
                .report()
                .iter()
                .map(|attempt| format!("{}: {}\n", attempt.strategy, attempt.progress))
                .collect();
            write_text(&lines, report, capacity)
        })
    }
}

/// Finds out how the NAT in front of this machine behaves and what to expect of it, and writes it down for people to read; 1,024 bytes
/// are enough. Takes up to some seconds. For all of it the server, "host:port", needs a second address.
///
/// # Safety
/// `server` is a text; `report` points to `capacity` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn waypost_nat_report(
    server: *const c_char,
    report: *mut c_char,
    capacity: usize,
) -> c_int {
    guarded(|| {
        // SAFETY: the caller's text, as this function demands.
        let found = nat_report(unsafe { text(server) }?)?;
        // SAFETY: the caller's `capacity` bytes, as this function demands.
        unsafe { write_text(&found.to_string(), report, capacity) }
    })
}
