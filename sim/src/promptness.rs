//! How soon two players are connected: by the relay after joining, directly after the common start, and at all when the network
//! loses almost a third of everything. Measured on the virtual clock, so that limits are exact.

use rand::RngExt;
use waypost_proto::addr::Addr;
use waypost_proto::agent::{Agent, HostConfig, Path, Target};

use crate::Violation;
use crate::nat::{Nat, NatKind};
use crate::net::PUBLIC;
use crate::world::{Faults, World};

/// What a packet takes beside its sender's latency, and what one of the server's takes: milliseconds.
const HOP_MS: u64 = 1;
const SERVER_MS: u64 = 3;
/// Most that mail between two shards and the millisecond ticks add to a way through the server.
const SERVER_SLACK_MS: u64 = 8;
/// What ticks of a millisecond add to a direct exchange.
const SLACK_MS: u64 = 3;
/// How late packets may be that tell two of a stream, milliseconds.
const LATE_MS: u64 = 200;
/// Within this time a join has to lead to data in both directions, milliseconds.
pub const CONNECTED_MS: u64 = 5_000;

/// How long things took in one world, milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// From the guest's seat to the first datagram through the relay, and the round trip through the relay.
    pub relayed: (u64, u64),
    /// From the later of the two first checks to the direct path of both, and the round trip of that path.
    pub direct: (u64, u64),
}

fn pair(seed: u64, faults: Faults) -> Result<World, Violation> {
    let mut world = World::new(seed, 1, 7);
    let shards = world.rng.random_range(1..=3);
    world.restart_server(shards, true);
    world.faults = faults;
    world.talk_every(1);
    for player in 0..2 {
        let outer = [203, 0, 113, 10 + player].into();
        let nat = Nat::new(NatKind::PortRestricted, outer, false, seed);
        let lan = world.net.add_nat(PUBLIC, nat);
        let addr = Addr::from_ip_port([192, 168, 0, 2].into(), 40_000);
        world.add_host(lan, addr, |_| ());
    }
    world.with_agent(0, |agent, now| agent.host(now, HostConfig::default()))?;
    let seated = |world: &World| seat(world, 0);
    until(&mut world, 15_000, seated)?;
    Ok(world)
}

fn seat(world: &World, host: usize) -> bool {
    world
        .agent(host)
        .is_some_and(|agent| agent.seat().is_some())
}

/// Lets time pass until something is so. Returns how long that took.
fn until(
    world: &mut World,
    at_most_ms: u64,
    is_so: impl Fn(&World) -> bool,
) -> Result<u64, Violation> {
    let began = world.now;
    while !is_so(world) {
        if world.now - began >= at_most_ms {
            return Err(Violation(format!(
                "what was waited for is not so after {at_most_ms} ms"
            )));
        }
        world.advance(1)?;
    }
    Ok(world.now - began)
}

fn join(world: &mut World) -> Result<(), Violation> {
    let code = world
        .agent(0)
        .and_then(|agent| agent.seat())
        .map(|seat| seat.handle.code)
        .ok_or(Violation("the host has no seat".to_owned()))?;
    world.with_agent(1, |agent, now| agent.join(now, Target::Code(code), ""))?;
    Ok(())
}

fn hear_each_other(world: &World) -> bool {
    world.hosts[0].heard.contains_key(&1) && world.hosts[1].heard.contains_key(&0)
}

/// Two players whose NATs can be punched, on a network without faults.
///
/// # Errors
/// A limit was broken: two round trips through the relay, one of the direct path, a common start to a few milliseconds.
pub fn undisturbed(seed: u64) -> Result<Times, Violation> {
    let mut world = pair(seed, Faults::default())?;
    join(&mut world)?;
    until(&mut world, 15_000, |world| seat(world, 1))?;
    let ways = world.hosts[0].latency_ms + world.hosts[1].latency_ms + 2 * HOP_MS;
    let round_trip = ways + 2 * (SERVER_MS + HOP_MS);
    let relayed = until(&mut world, 15_000, hear_each_other)?;
    if relayed > 2 * round_trip + SERVER_SLACK_MS {
        return Err(Violation(format!(
            "seed {seed}: the first datagram took {relayed} ms after joining, of round trips of {round_trip} ms"
        )));
    }
    let is_direct = |world: &World| {
        [(0, 1), (1, 0)]
            .into_iter()
            .all(|(from, to)| world.path(from, to) == Some(Path::Direct))
    };
    until(&mut world, 15_000, is_direct)?;
    let checks = world.hosts.iter().filter_map(|host| host.first_check);
    let start = checks.clone().max().unwrap_or(world.now);
    let apart = start - checks.min().unwrap_or(start);
    check_together(seed, &world, apart)?;
    let direct = world.now - start;
    if direct > ways + SLACK_MS {
        return Err(Violation(format!(
            "seed {seed}: the direct path took {direct} ms after the start, of a round trip of {ways} ms"
        )));
    }
    Ok(Times {
        relayed: (relayed, round_trip),
        direct: (direct, ways),
    })
}

/// A clock set over a way that is slower in one direction is off by half of that; here a sender's latency counts one way only.
fn check_together(seed: u64, world: &World, apart: u64) -> Result<(), Violation> {
    let [one, other] = [0, 1].map(|host| world.hosts[host].latency_ms);
    if apart <= one.abs_diff(other) / 2 + SLACK_MS {
        return Ok(());
    }
    Err(Violation(format!(
        "seed {seed}: the two begin {apart} ms apart, of latencies of {one} and {other} ms"
    )))
}

/// Two players who want a stream over TCP: both are told in time, and begin together.
///
/// # Errors
/// One was told after its start, or they begin more than a few milliseconds apart.
pub fn streams(seed: u64) -> Result<(), Violation> {
    let mut world = pair(seed, Faults::default())?;
    join(&mut world)?;
    until(&mut world, 15_000, hear_each_other)?;
    let mut peers = Vec::new();
    for host in [1, 0] {
        let seat = world.agent(host).and_then(Agent::seat);
        let seat = seat.ok_or(Violation(format!("seed {seed}: host {host} has no seat")))?;
        peers.push(seat.handle.id);
    }
    // The clocks are set; what tells the two of each other may come at different times.
    world.faults.jitter_ms = LATE_MS;
    for (host, last) in [(0, 10), (1, 11)] {
        // The second asks when the first may be waiting, or still asking too.
        let pause_ms = world.rng.random_range(0..1_000);
        world.advance(pause_ms)?;
        let port = world.rng.random_range(50_000..60_000);
        let from = Addr::from_ip_port([203, 0, 113, last].into(), port);
        world.ask_for_stream(host, peers[host], from)?;
    }
    let mut starts = [None; 2];
    let asked = world.now;
    while world.now < asked + 15_000 && starts.contains(&None) {
        for (host, start) in starts.iter_mut().enumerate() {
            let peer = peers[host];
            let told = world.with_agent(host, |agent, _| agent.take_stream_introduction(peer))?;
            if let Some(told) = told.flatten() {
                let at = told.start.0 - world.hosts[host].clock_ahead_ms;
                if at <= world.now {
                    return Err(Violation(format!("seed {seed}: {host} is told too late")));
                }
                *start = Some(at);
            }
        }
        world.advance(1)?;
    }
    let [Some(one), Some(other)] = starts else {
        return Err(Violation(format!("seed {seed}: not both are told")));
    };
    check_together(seed, &world, one.abs_diff(other))
}

/// Whether a join led to data in both directions within [`CONNECTED_MS`] while the network lost 30 %.
///
/// # Errors
/// A rule was broken.
pub fn joins_under_loss(seed: u64) -> Result<bool, Violation> {
    let mut world = pair(
        seed,
        Faults {
            loss: 0.3,
            duplication: 0.0,
            jitter_ms: 10,
        },
    )?;
    join(&mut world)?;
    Ok(until(&mut world, CONNECTED_MS, hear_each_other).is_ok())
}
