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
use std::str::FromStr;
use std::time::Duration;

use clap::Parser;
use waypost_benches::clients::Clients;
use waypost_benches::forwarder::{Forwarder, RELAY_SOCKETS};
use waypost_benches::generator::{Load, Outcome, Pattern, Shape, run};
use waypost_benches::noray::Noray;
use waypost_benches::process::pin_to_core;
use waypost_benches::relay::RelayServer;
use waypost_benches::spread::{Spread, number};
use waypost_benches::turn::{Mode, Topology, TurnCommand, TurnRelay};
use waypost_benches::waypost::Waypost;

/// Flows of the loads that send in bursts or trains.
const BURST_FLOWS: usize = 8;

/// Runs that waited for their cores less than this part of the time count for losses.
const UNDISTURBED: f64 = 0.05;

/// A load as it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offered {
    /// This one.
    Load(Load),
    /// Half of what the slowest of the servers took of this pattern at saturation.
    Half(Pattern),
}

impl FromStr for Offered {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match Pattern::split(text)? {
            (pattern, "half") => Ok(Self::Half(pattern)),
            _ => text.parse().map(Self::Load),
        }
    }
}

/// CPU time per relayed packet.
#[derive(Parser)]
struct Arguments {
    /// Servers, of: bare-uring, bare-mmsg (with +gro behind it: trains are received whole), ring, ring+50us, ring+100us, mmsg, mmsg+50us; waypost, with -mmsg, +50us, @N (N sessions,
    /// whatever --flows says) behind it. TURN servers are named with the load's shape in front: `peer:` (client to a peer that sends back; bare-uring, with a relay socket per flow, and bare-mmsg too),
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
    /// Packets per second, `max`, or, after that, `half`: half of what the slowest of the servers took; `burst:` in front for bursts of 16 on 8 flows, `train:` for the same handed over as
    /// UDP_SEGMENT trains, to receivers with UDP_GRO.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "5000,20000,40000,max,burst:40000,burst:max"
    )]
    loads: Vec<Offered>,
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
    /// Prints a Markdown table, with the spread of each figure.
    #[arg(long)]
    markdown: bool,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,
}

fn server(name: &str, arguments: &Arguments) -> io::Result<Box<dyn RelayServer>> {
    match name.split_once(':') {
        Some(("peer", bare)) if bare.starts_with("bare-") => {
            return Ok(Box::new(bare_forwarder(name, bare, true)?));
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
    if name.starts_with("bare-") {
        return Ok(Box::new(bare_forwarder(name, name, false)?));
    }
    let (program, arguments): (_, &[&str]) = match name {
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

/// `bare-uring`, which has a relay socket for each flow that is answered, or `bare-mmsg`; with `+gro` behind it, it receives
/// trains whole.
fn bare_forwarder(name: &str, bare: &str, is_answered: bool) -> io::Result<Forwarder> {
    let (program, mut arguments) = match bare.strip_suffix("+gro") {
        Some(program) => (program, vec!["--gro"]),
        None => (bare, vec![]),
    };
    if is_answered && program == "bare-uring" {
        arguments.push(RELAY_SOCKETS);
    }
    if !matches!(program, "bare-uring" | "bare-mmsg") {
        return Err(io::Error::other(format!("there is no server {name}")));
    }
    Forwarder::beside_us(name, program, &arguments, is_answered)
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

/// All rounds of one server under one load.
struct Row<'a> {
    load: String,
    server: &'a str,
    outcomes: Vec<Outcome>,
    /// The CPU time per packet by that of the first server in the same round.
    ratio: f64,
}

impl Row<'_> {
    fn of(&self, value: fn(&Outcome) -> f64) -> Spread {
        Spread::of(self.outcomes.iter().map(value))
    }

    fn sum(&self, count: fn(&Outcome) -> u64) -> u64 {
        self.outcomes.iter().map(count).sum()
    }

    fn lost(&self) -> u64 {
        self.sum(|outcome| outcome.lost)
    }

    /// Datagrams that came out wrong, whatever was wrong with them.
    fn wrong(&self) -> u64 {
        self.sum(|it| it.duplicated + it.reordered + it.misdelivered + it.corrupt)
    }

    /// Whether the server did something that it must not.
    fn is_faulty(&self, is_saturated: bool) -> bool {
        let undisturbed = |outcome: &&Outcome| outcome.waiting() < UNDISTURBED;
        let alone = self.outcomes.iter().filter(undisturbed);
        let lost_alone: u64 = alone.map(|outcome| outcome.lost).sum();
        self.wrong() > 0 || (lost_alone > 0 && !is_saturated)
    }

    /// Median, 99th and 99.9th percentile of the latency, microseconds.
    fn latencies(&self) -> [Spread; 3] {
        [
            self.of(|outcome| outcome.median_latency.as_secs_f64() * 1e6),
            self.of(|outcome| outcome.p99_latency.as_secs_f64() * 1e6),
            self.of(|outcome| outcome.p999_latency.as_secs_f64() * 1e6),
        ]
    }

    fn print(&self) {
        let cpu = self.of(Outcome::cpu_us_per_datagram);
        let [median, p99, p999] = self.latencies().map(|latency| latency.median);
        println!(
            "{:<16} {:<22} {:>9.2} {:>17} {:>6.2} {:>9.0} {:>6.2} {:>8.3} {:>9.0} {:>9.0} {:>9.0} {:>6} {:>6}",
            self.load,
            self.server,
            cpu.median,
            cpu.ends(),
            self.ratio,
            self.of(Outcome::per_second).median,
            self.of(Outcome::utilisation).median,
            self.of(Outcome::waiting).median,
            median,
            p99,
            p999,
            self.lost(),
            self.wrong(),
        );
    }

    fn print_markdown(&self) {
        let [median, p99, p999] = self.latencies();
        println!(
            "| {} | {} | {} | {:.2} | {} | {median} | {p99} | {p999} | {} | {} |",
            self.load,
            self.server,
            self.of(Outcome::cpu_us_per_datagram),
            self.ratio,
            self.of(Outcome::per_second),
            number(self.of(Outcome::waiting).median),
            self.lost(),
        );
    }

    fn tell_faults(&self) {
        if self.wrong() > 0 {
            let [doubled, late, elsewhere, changed] = [
                self.sum(|outcome| outcome.duplicated),
                self.sum(|outcome| outcome.reordered),
                self.sum(|outcome| outcome.misdelivered),
                self.sum(|outcome| outcome.corrupt),
            ];
            eprintln!(
                "{}: {doubled} doubled, {late} out of order, {elsewhere} at the wrong end, {changed} changed",
                self.server
            );
        }
    }
}

fn print_head(arguments: &Arguments) {
    if arguments.markdown {
        println!(
            "| load | server | CPU us per packet | of the first | packets/s | p50 us | p99 us | p99.9 us | waiting | lost |\n\
             |---|---|--:|--:|--:|--:|--:|--:|--:|--:|"
        );
        return;
    }
    println!(
        "{:<16} {:<22} {:>9} {:>17} {:>6} {:>9} {:>6} {:>8} {:>9} {:>9} {:>9} {:>6} {:>6}",
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
}

/// Puts a load through all servers, in turns.
fn rows<'a>(
    servers: &'a [Box<dyn RelayServer>],
    clients: &mut Clients,
    load: Load,
    arguments: &Arguments,
) -> io::Result<Vec<Row<'a>>> {
    let flows = match load.pattern {
        Pattern::Single => arguments.flows,
        Pattern::Burst | Pattern::Train => BURST_FLOWS,
    };
    let shape = Shape {
        payload_bytes: arguments.payload,
        warm_up: Duration::from_millis(300),
        measured: Duration::from_secs_f64(arguments.seconds),
    };
    let mut outcomes_of_all: Vec<Vec<Outcome>> = vec![Vec::new(); servers.len()];
    for _ in 0..arguments.rounds {
        for (server, outcomes) in servers.iter().zip(&mut outcomes_of_all) {
            let running = server.start(clients, arguments.server_core, flows, arguments.payload)?;
            outcomes.push(run(clients, &running, load, &shape)?);
        }
    }
    let of_first: Vec<f64> = outcomes_of_all[0]
        .iter()
        .map(Outcome::cpu_us_per_datagram)
        .collect();
    let row = |server: &'a dyn RelayServer, outcomes: Vec<Outcome>| {
        let own = outcomes.iter().map(Outcome::cpu_us_per_datagram);
        Row {
            load: load.to_string(),
            server: server.name(),
            ratio: Spread::of(own.zip(&of_first).map(|(own, first)| own / first)).median,
            outcomes,
        }
    };
    let all = servers.iter().zip(outcomes_of_all);
    Ok(all.map(|(server, it)| row(server.as_ref(), it)).collect())
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    let servers: Vec<_> = arguments
        .servers
        .iter()
        .map(|name| server(name, &arguments))
        .collect::<Result<_, _>>()?;
    if servers.is_empty() {
        return Err(io::Error::other("name a server"));
    }
    pin_to_core(arguments.generator_core)?;
    let mut clients = Clients::open(2)?;
    let mut faults = false;
    // By pattern: what the slowest server took.
    let mut saturation: Vec<(Pattern, f64)> = Vec::new();
    print_head(&arguments);
    for &offered in &arguments.loads {
        let load = match offered {
            Offered::Load(load) => load,
            Offered::Half(pattern) => {
                let found = saturation.iter().find(|(of, _)| *of == pattern);
                let (_, least) = found.ok_or_else(|| {
                    io::Error::other(format!(
                        "{0}half comes after {0}max in --loads",
                        pattern.prefix()
                    ))
                })?;
                Load {
                    per_second: Some((least / 2.0) as u64),
                    pattern,
                }
            }
        };
        let mut rows = rows(&servers, &mut clients, load, &arguments)?;
        if load.per_second.is_none() {
            let medians = rows.iter().map(|row| row.of(Outcome::per_second).median);
            saturation.push((load.pattern, medians.fold(f64::INFINITY, f64::min)));
        }
        for row in &mut rows {
            if offered != Offered::Load(load) {
                row.load = format!("{load} (half)");
            }
            row.tell_faults();
            faults |= row.is_faulty(load.per_second.is_none());
            if arguments.markdown {
                row.print_markdown();
            } else {
                row.print();
            }
        }
    }
    Ok(if faults {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
