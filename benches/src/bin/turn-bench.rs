//! Measures the control side of TURN servers, rounds alternated: server CPU time per allocation that is made and given back,
//! resident memory per bound allocation, and the time until a new server answers.

use std::io;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Parser, Subcommand};
use waypost_benches::clients::Clients;
use waypost_benches::process::pin_to_core;
use waypost_benches::spread::Spread;
use waypost_benches::turn::{Started, TurnCommand, end};
use waypost_benches::turn_client::TurnClients;
use waypost_benches::waypost::wait_for_quiet;

/// Allocations of one end of the generator before its ends are used again.
const ENDS: usize = 1 << 20;

/// What allocations cost.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// Servers, of: waypost, waypost-mmsg, coturn, or a name given by --turn-server.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "waypost,coturn",
        global = true
    )]
    servers: Vec<String>,
    /// The program of coturn.
    #[arg(long, default_value = "turnserver", global = true)]
    coturn: PathBuf,
    /// Another TURN server, as relay-bench takes it.
    #[arg(long, value_parser = TurnCommand::parse, global = true)]
    turn_server: Vec<TurnCommand>,
    /// Rounds over all servers.
    #[arg(long, default_value_t = 3, global = true)]
    rounds: usize,
    /// Prints a Markdown table.
    #[arg(long, global = true)]
    markdown: bool,
    /// The core of the server.
    #[arg(long, default_value_t = 0, global = true)]
    server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1, global = true)]
    generator_core: usize,
}

#[derive(Subcommand)]
enum What {
    /// Challenge, Allocate and Refresh to 0, each from a new five-tuple.
    Cycles {
        /// Cycles of each round; fewer than relay ports, because a server may hold a port back for a while.
        #[arg(long, default_value_t = 8_000)]
        cycles: usize,
        /// Allocations that live at the same time.
        #[arg(long, default_value_t = 64)]
        at_once: usize,
    },
    /// Resident bytes per allocation with one channel.
    Memory {
        /// Allocations.
        #[arg(long, default_value_t = 5_000)]
        allocations: usize,
    },
    /// Milliseconds from the start of the process to its first answer.
    Start,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    pin_to_core(arguments.generator_core)?;
    let servers = arguments
        .servers
        .iter()
        .map(|name| command(name, &arguments))
        .collect::<io::Result<Vec<_>>>()?;
    let mut clients = Clients::open(2)?;
    let core = arguments.server_core;
    let units: &[&str] = match arguments.what {
        What::Cycles { .. } => &[
            "us of server CPU per cycle",
            "cycles per second",
            "of the core in use meanwhile",
        ],
        What::Memory { .. } => &["resident bytes per allocation"],
        What::Start => &["ms until the first answer"],
    };
    let mut rounds_of_all = vec![Vec::new(); servers.len()];
    for _ in 0..arguments.rounds {
        for (server, rounds) in servers.iter().zip(&mut rounds_of_all) {
            rounds.push(match arguments.what {
                What::Cycles { cycles, at_once } => {
                    cycle_cost(server, &mut clients, core, cycles, at_once)?.to_vec()
                }
                What::Memory { allocations } => {
                    vec![memory_cost(server, &mut clients, core, allocations)?]
                }
                What::Start => {
                    let started = server.spawn(&mut clients, core)?;
                    vec![started.ready_after.as_secs_f64() * 1e3]
                }
            });
        }
    }
    if arguments.markdown {
        println!("| server | {} |", units.join(" | "));
        println!("|---|{}", "--:|".repeat(units.len()));
    }
    for (server, rounds) in servers.iter().zip(&rounds_of_all) {
        let spreads = (0..units.len()).map(|n| Spread::of(rounds.iter().map(|round| round[n])));
        if arguments.markdown {
            let cells: Vec<String> = spreads.map(|spread| spread.to_string()).collect();
            println!("| {} | {} |", server.name, cells.join(" | "));
        } else {
            for (spread, unit) in spreads.zip(units) {
                println!("{:<16} {spread} {unit}", server.name);
            }
        }
    }
    Ok(())
}

fn command(name: &str, arguments: &Arguments) -> io::Result<TurnCommand> {
    if let Some(given) = arguments.turn_server.iter().find(|it| it.name == name) {
        return Ok(given.clone());
    }
    match name {
        "waypost" => TurnCommand::waypost(name, &["--io", "uring"]),
        "waypost-mmsg" => TurnCommand::waypost(name, &["--io", "mmsg"]),
        "coturn" => Ok(TurnCommand::coturn(name, &arguments.coturn)),
        _ => Err(io::Error::other(format!("there is no server {name}"))),
    }
}

/// CPU time per cycle in microseconds, cycles per second, and how much of its core the server used.
fn cycle_cost(
    server: &TurnCommand,
    clients: &mut Clients,
    core: usize,
    cycles: usize,
    at_once: usize,
) -> io::Result<[f64; 3]> {
    let Started { process, at, .. } = server.spawn(clients, core)?;
    let before = process.cpu_time()?;
    let begun = Instant::now();
    let mut done = 0;
    while done < cycles {
        let ends = (done..done + at_once).map(|n| end(0, n % ENDS)).collect();
        let mut turn = TurnClients::new(at, ends);
        turn.allocate(clients)?;
        turn.give_back(clients)?;
        done += at_once;
    }
    let cpu = (process.cpu_time()? - before).as_secs_f64();
    let elapsed = begun.elapsed().as_secs_f64();
    wait_for_quiet(clients);
    Ok([
        cpu * 1e6 / done as f64,
        done as f64 / elapsed,
        cpu / elapsed,
    ])
}

fn memory_cost(
    server: &TurnCommand,
    clients: &mut Clients,
    core: usize,
    allocations: usize,
) -> io::Result<f64> {
    let before = {
        let least = server.with_room_for(1).spawn(clients, core)?;
        least.warm_up(clients);
        least.process.resident_bytes()?
    };
    let sized = server.with_room_for(allocations);
    let Started { process, at, .. } = sized.spawn(clients, core)?;
    let mut turn = TurnClients::new(at, (0..allocations).map(|n| end(0, n)).collect());
    turn.allocate(clients)?;
    let peers: Vec<_> = (0..allocations)
        .map(|n| clients.address(end(1, n)))
        .collect();
    turn.bind(clients, 0x4000, &peers)?;
    wait_for_quiet(clients);
    let after = process.resident_bytes()?;
    Ok((after as f64 - before as f64) / allocations as f64)
}
