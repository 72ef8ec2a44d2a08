//! Measures servers' CPU time per relayed packet, one server at a time, rounds alternated, medians. The column `ratio` is the
//! median over the rounds of a server's CPU time per packet to that of the first server in the same round.
//!
//! The server runs on one core and the generator spins on another; every packet that comes out is
//! checked. A packet that is changed, doubled, out of order or at the wrong end, or lost below
//! saturation while both had their cores to themselves, makes the exit code 1. The column `waiting`
//! is the part of the time in which other processes had the cores: trust rows near 0.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use waypost_benches::clients::Clients;
use waypost_benches::forwarder::Forwarder;
use waypost_benches::generator::{Load, Outcome, Shape, run};
use waypost_benches::noray::Noray;
use waypost_benches::process::pin_to_core;
use waypost_benches::relay::RelayServer;
use waypost_benches::turn::{Mode, Topology, TurnCommand, TurnRelay};
use waypost_benches::waypost::Waypost;

/// Flows of the loads that send in bursts or trains.
const BURST_FLOWS: usize = 8;

/// Runs that waited for their cores less than this part of the time count for losses.
const UNDISTURBED: f64 = 0.05;

/// CPU time per relayed packet.
#[derive(Parser)]
struct Arguments {
    /// Servers, of: bare-uring, bare-mmsg, ring, ring+50us, ring+100us, mmsg, mmsg+50us; waypost, with -mmsg, +50us, @N (N sessions,
    /// whatever --flows says) behind it. TURN servers are named with the load's shape in front: `peer:` (client to a peer that sends back; bare-uring and bare-mmsg too),
    /// `pairs:` (client to client), `peer-ind:`, `pairs-ind:` (the same in indications); behind it waypost (with -mmsg, +50us), coturn,
    /// or a name given by --turn-server.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "bare-uring,bare-mmsg,ring,mmsg"
    )]
    servers: Vec<String>,
    /// The program of coturn.
    #[arg(long, default_value = "turnserver")]
    coturn: PathBuf,
    /// Another TURN server: `NAME=PROGRAM ARGUMENTS`, in which {ip}, {port}, {user}, {password}, {realm}, {low}, {high} (relay ports)
    /// are replaced.
    #[arg(long, value_parser = TurnCommand::parse)]
    turn_server: Vec<TurnCommand>,
    /// Packets per second, or `max`; `burst:` in front for bursts of 16 on 8 flows, `train:` for the same handed over as
    /// UDP_SEGMENT trains, to receivers with UDP_GRO.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "5000,20000,40000,max,burst:40000,burst:max"
    )]
    loads: Vec<Load>,
    /// Rounds over all servers.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measured seconds of each run.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Flows of the loads without bursts and trains.
    #[arg(long, default_value_t = 1000)]
    flows: usize,
    /// Payload bytes, without the server's header.
    #[arg(long, default_value_t = 200)]
    payload: usize,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,
}

fn server(name: &str, arguments: &Arguments) -> io::Result<Box<dyn RelayServer>> {
    match name.split_once(':') {
        Some(("peer", server @ ("bare-uring" | "bare-mmsg"))) => {
            return Ok(Box::new(Forwarder::beside_us(name, server, &[], true)?));
        }
        Some((shape, server)) => return turn_server(name, shape, server, arguments),
        None => {}
    }
    if let Some(variant) = name.strip_prefix("noray") {
        let unknown = || io::Error::other(format!("there is no server {name}"));
        let (io, wait) = backend_and_wait(variant).ok_or_else(unknown)?;
        return Ok(Box::new(Noray::new(
            name,
            &["--io", io, "--coalesce-us", wait],
        )));
    }
    if let Some(variant) = name.strip_prefix("waypost") {
        return waypost(name, variant);
    }
    let (program, arguments): (_, &[&str]) = match name {
        "bare-uring" | "bare-mmsg" => (name, &[]),
        "ring" => ("face-forwarder", &["--io", "ring"]),
        "ring+50us" => ("face-forwarder", &["--io", "ring", "--coalesce-us", "50"]),
        "ring+100us" => ("face-forwarder", &["--io", "ring", "--coalesce-us", "100"]),
        "mmsg" => ("face-forwarder", &["--io", "mmsg"]),
        "mmsg+50us" => ("face-forwarder", &["--io", "mmsg", "--coalesce-us", "50"]),
        _ => return Err(io::Error::other(format!("there is no server {name}"))),
    };
    Ok(Box::new(Forwarder::beside_us(
        name, program, arguments, false,
    )?))
}

/// A TURN server under the shape of load that stands before its name.
fn turn_server(
    name: &str,
    shape: &str,
    server: &str,
    arguments: &Arguments,
) -> io::Result<Box<dyn RelayServer>> {
    let unknown = || io::Error::other(format!("there is no server {name}"));
    let (topology, mode) = match shape {
        "peer" => (Topology::Peer, Mode::Channels),
        "pairs" => (Topology::Pairs, Mode::Channels),
        "peer-ind" => (Topology::Peer, Mode::Indications),
        "pairs-ind" => (Topology::Pairs, Mode::Indications),
        _ => return Err(unknown()),
    };
    let given = arguments.turn_server.iter().find(|it| it.name == server);
    let command = if let Some(command) = given {
        command.clone()
    } else if server == "coturn" {
        TurnCommand::coturn(name, &arguments.coturn)
    } else {
        let variant = server.strip_prefix("waypost").ok_or_else(unknown)?;
        let (io, wait) = backend_and_wait(variant).ok_or_else(unknown)?;
        TurnCommand::waypost(name, &["--io", io, "--coalesce-us", wait])?
    };
    Ok(Box::new(TurnRelay {
        command,
        topology,
        mode,
        name: name.to_owned(),
    }))
}

/// What `-mmsg` and `+50us` behind `waypost` mean.
fn backend_and_wait(variant: &str) -> Option<(&'static str, &str)> {
    let (backend, wait) = match variant.split_once('+') {
        Some((backend, wait)) => (backend, wait.strip_suffix("us")?),
        None => (variant, "0"),
    };
    match backend {
        "" => Some(("uring", wait)),
        "-mmsg" => Some(("mmsg", wait)),
        _ => None,
    }
}

/// `waypost`, with `-mmsg`, `+50us` (the longest adaptive wait) and `@100000` (that many sessions, whatever --flows says) behind it.
fn waypost(name: &str, variant: &str) -> io::Result<Box<dyn RelayServer>> {
    let unknown = || io::Error::other(format!("there is no server {name}"));
    let (variant, sessions) = match variant.split_once('@') {
        Some((variant, sessions)) => (variant, Some(sessions.parse().map_err(|_| unknown())?)),
        None => (variant, None),
    };
    let (io, wait) = backend_and_wait(variant).ok_or_else(unknown)?;
    let arguments = ["--io", io, "--coalesce-us", wait];
    let server = Waypost::beside_us(name, &arguments, sessions)?;
    Ok(Box::new(server))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let servers: Vec<_> = arguments
        .servers
        .iter()
        .map(|name| server(name, &arguments))
        .collect::<Result<_, _>>()?;
    pin_to_core(arguments.generator_core)?;
    let mut clients = Clients::open(2)?;
    let shape = Shape {
        payload_bytes: arguments.payload,
        warm_up: Duration::from_millis(300),
        measured: Duration::from_secs_f64(arguments.seconds),
    };
    let mut faults = false;
    println!(
        "{:<12} {:<22} {:>9} {:>17} {:>6} {:>9} {:>6} {:>8} {:>9} {:>9} {:>9} {:>6} {:>6}",
        "load",
        "server",
        "us/packet",
        "(least..most)",
        "ratio",
        "packets/s",
        "core",
        "waiting",
        "median us",
        "p99 us",
        "p99.9 us",
        "lost",
        "faults"
    );
    for &load in &arguments.loads {
        let flows = if load.pattern.burst() > 1 {
            BURST_FLOWS
        } else {
            arguments.flows
        };
        let mut outcomes_of_all: Vec<Vec<Outcome>> = vec![Vec::new(); servers.len()];
        for _ in 0..arguments.rounds {
            for (server, outcomes) in servers.iter().zip(&mut outcomes_of_all) {
                let running = server.start(
                    &mut clients,
                    arguments.server_core,
                    flows,
                    arguments.payload,
                )?;
                outcomes.push(run(&mut clients, &running, load, &shape)?);
            }
        }
        for (server, outcomes) in servers.iter().zip(&outcomes_of_all) {
            let of = |value: fn(&Outcome) -> f64| outcomes.iter().map(value).collect::<Vec<_>>();
            let cpu = of(Outcome::cpu_us_per_datagram);
            let first = outcomes_of_all[0].iter();
            let ratios = first
                .zip(outcomes)
                .map(|(first, own)| own.cpu_us_per_datagram() / first.cpu_us_per_datagram())
                .collect();
            let least = cpu.iter().copied().fold(f64::INFINITY, f64::min);
            let most = cpu.iter().copied().fold(0.0, f64::max);
            let sum = |count: fn(&Outcome) -> u64| outcomes.iter().map(count).sum::<u64>();
            let lost = sum(|outcome| outcome.lost);
            let wrong = sum(|outcome| {
                outcome.duplicated + outcome.reordered + outcome.misdelivered + outcome.corrupt
            });
            let undisturbed = |outcome: &&Outcome| outcome.waiting() < UNDISTURBED;
            let lost_alone: u64 = outcomes.iter().filter(undisturbed).map(|o| o.lost).sum();
            if wrong > 0 {
                let [doubled, late, elsewhere, changed] = [
                    sum(|outcome| outcome.duplicated),
                    sum(|outcome| outcome.reordered),
                    sum(|outcome| outcome.misdelivered),
                    sum(|outcome| outcome.corrupt),
                ];
                println!(
                    "{}: {doubled} doubled, {late} out of order, {elsewhere} at the wrong end, {changed} changed",
                    server.name()
                );
            }
            faults |= wrong > 0 || (lost_alone > 0 && load.per_second.is_some());
            println!(
                "{:<12} {:<22} {:>9.2} {:>17} {:>6.2} {:>9.0} {:>6.2} {:>8.3} {:>9.0} {:>9.0} {:>9.0} {:>6} {:>6}",
                load.to_string(),
                server.name(),
                median(cpu),
                format!("({least:.2}..{most:.2})"),
                median(ratios),
                median(of(Outcome::per_second)),
                median(of(Outcome::utilisation)),
                median(of(Outcome::waiting)),
                median(of(|outcome| outcome.median_latency.as_secs_f64() * 1e6)),
                median(of(|outcome| outcome.p99_latency.as_secs_f64() * 1e6)),
                median(of(|outcome| outcome.p999_latency.as_secs_f64() * 1e6)),
                lost,
                wrong,
            );
        }
    }
    Ok(if faults {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
