//! Measures how a relayed packet's CPU time grows with the number of sessions, on one shard and on two, with the members of a session
//! on one shard or each on another, and draws it. A bare forwarder with as many flows shows what the kernel and the caches cost anybody.
//!
//! The server has one core whatever the number of its shards, and the generator, which spins, another.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, Subcommand};
use waypost_benches::clients::Clients;
use waypost_benches::forwarder::Forwarder;
use waypost_benches::generator::{Load, Outcome, Shape, run};
use waypost_benches::process::pin_to_core;
use waypost_benches::relay::{RelayServer as _, Running};
use waypost_benches::shards::Sorted;
use waypost_benches::spread::{Spread, number};
use waypost_benches::waypost::{Waypost, end, wait_for_quiet};
use waypost_loadgen::plot::{Axis, Line, Plot, Scale};

/// Payload bytes.
const PAYLOAD_BYTES: usize = 200;
/// The first line of the file.
const HEAD: &str = "sessions,server,load,round,cpu_us,packets_per_sec,p50_us,p99_us,waiting,lost";

/// Cost per packet by number of sessions.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Measures, prints a Markdown table, and writes every round to a CSV file.
    Measure {
        /// The file.
        #[arg(long, default_value = "docs/plots/scaling.csv")]
        csv: PathBuf,
        /// Numbers of sessions.
        #[arg(long, value_delimiter = ',', default_value = "100,1000,10000,100000")]
        sessions: Vec<usize>,
        /// Loads, as relay-bench takes them.
        #[arg(long, value_delimiter = ',', default_value = "40000,max")]
        loads: Vec<Load>,
        /// Rounds over all servers.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
        /// Measured seconds of each run.
        #[arg(long, default_value_t = 1.0)]
        seconds: f64,
        /// The server's packet backend.
        #[arg(long, default_value = "uring")]
        io: String,
        /// The core of the server.
        #[arg(long, default_value_t = 0)]
        server_core: usize,
        /// The core of the generator.
        #[arg(long, default_value_t = 1)]
        generator_core: usize,
    },
    /// Draws such a file as SVG, one plot for each load.
    Plot {
        /// The file.
        #[arg(long, default_value = "docs/plots/scaling.csv")]
        csv: PathBuf,
        /// Where to write `scaling-LOAD.svg`.
        #[arg(long, default_value = "docs/plots")]
        into: PathBuf,
    },
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Server {
    Bare,
    OneShard,
    SameShard,
    OtherShard,
}

impl Server {
    const ALL: [Self; 4] = [
        Self::Bare,
        Self::OneShard,
        Self::SameShard,
        Self::OtherShard,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare-uring",
            Self::OneShard => "one shard",
            Self::SameShard => "two shards (same)",
            Self::OtherShard => "two shards (apart)",
        }
    }

    const fn colour(self) -> u8 {
        match self {
            Self::Bare => 3,
            Self::OneShard => 1,
            Self::SameShard => 4,
            Self::OtherShard => 2,
        }
    }

    fn start(
        self,
        clients: &mut Clients,
        core: usize,
        sessions: usize,
        io: &str,
    ) -> io::Result<Running> {
        wait_for_quiet(clients);
        let usual = ["--io", io, "--coalesce-us", "0"];
        match self {
            Self::Bare => Forwarder::beside_us(self.name(), "bare-uring", &[], false)?.start(
                clients,
                core,
                sessions,
                PAYLOAD_BYTES,
            ),
            Self::OneShard => Waypost::beside_us(self.name(), &usual, None)?.start_between(
                clients,
                core,
                sessions,
                PAYLOAD_BYTES,
                &end,
            ),
            Self::SameShard | Self::OtherShard => {
                let at = free_address()?;
                let sorted = Sorted::new(clients, at, sessions)?;
                let ends = sorted.ends(sessions, self == Self::OtherShard);
                let listen = at.to_string();
                let more = ["--shards", "2", "--listen", &listen];
                let server = Waypost::beside_us(self.name(), &[&usual[..], &more].concat(), None)?;
                server.start_between(clients, core, sessions, PAYLOAD_BYTES, &|n| ends[n])
            }
        }
    }
}

/// An address on which nobody listens.
fn free_address() -> io::Result<SocketAddrV4> {
    match UdpSocket::bind("127.0.0.1:0")?.local_addr()? {
        SocketAddr::V4(at) => Ok(at),
        SocketAddr::V6(_) => Err(io::Error::other("an IPv4 socket has an IPv6 address")),
    }
}

/// CPU microseconds per packet of all rounds, by load, server and number of sessions.
type Costs = BTreeMap<(String, String), BTreeMap<usize, Vec<f64>>>;

fn main() -> io::Result<()> {
    match Arguments::parse().what {
        What::Measure {
            csv,
            sessions,
            loads,
            rounds,
            seconds,
            io,
            server_core,
            generator_core,
        } => {
            pin_to_core(generator_core)?;
            let shape = Shape {
                payload_bytes: PAYLOAD_BYTES,
                warm_up: Duration::from_millis(300),
                measured: Duration::from_secs_f64(seconds),
            };
            let mut clients = Clients::open(2)?;
            let mut text = format!("{HEAD}\n");
            for round in 1..=rounds {
                for &sessions in &sessions {
                    for server in Server::ALL {
                        let running = server.start(&mut clients, server_core, sessions, &io)?;
                        for &load in &loads {
                            let outcome = run(&mut clients, &running, load, &shape)?;
                            check(server, &outcome)?;
                            write_row(&mut text, sessions, server, load, round, &outcome);
                        }
                    }
                }
                // What has been measured by now is kept, whatever comes.
                std::fs::write(&csv, &text)?;
            }
            print_table(&read(&csv)?);
            Ok(())
        }
        What::Plot { csv, into } => draw(&read(&csv)?, &into),
    }
}

/// A packet that came out wrong ends it: its cost is that of something else.
fn check(server: Server, outcome: &Outcome) -> io::Result<()> {
    let wrong = outcome.duplicated + outcome.reordered + outcome.misdelivered + outcome.corrupt;
    if wrong == 0 && outcome.relayed > 0 {
        return Ok(());
    }
    let text = format!("{}: {outcome:?}", server.name());
    Err(io::Error::other(text))
}

fn write_row(
    text: &mut String,
    sessions: usize,
    server: Server,
    load: Load,
    round: usize,
    outcome: &Outcome,
) {
    let _ = writeln!(
        text,
        "{sessions},{},{load},{round},{:.3},{:.0},{:.1},{:.1},{:.3},{}",
        server.name(),
        outcome.cpu_us_per_datagram(),
        outcome.per_second(),
        outcome.median_latency.as_secs_f64() * 1e6,
        outcome.p99_latency.as_secs_f64() * 1e6,
        outcome.waiting(),
        outcome.lost
    );
}

fn read(csv: &Path) -> io::Result<Costs> {
    let text = std::fs::read_to_string(csv)?;
    let mut lines = text.lines();
    if lines.next() != Some(HEAD) {
        return Err(io::Error::other(format!(
            "{} does not begin with {HEAD}",
            csv.display()
        )));
    }
    let mut costs = Costs::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let row = match fields[..] {
            [sessions, server, load, _, cpu, ..] => {
                let figures = sessions.parse().ok().zip(cpu.parse().ok());
                figures.map(|(sessions, cpu)| (sessions, server, load, cpu))
            }
            _ => None,
        };
        let Some((sessions, server, load, cpu)) = row else {
            return Err(io::Error::other(format!("{}: {line}", csv.display())));
        };
        let by_sessions = costs
            .entry((load.to_owned(), server.to_owned()))
            .or_default();
        by_sessions.entry(sessions).or_default().push(cpu);
    }
    Ok(costs)
}

/// The loads that were measured.
fn loads(costs: &Costs) -> Vec<&str> {
    let mut loads: Vec<&str> = costs.keys().map(|(load, _)| load.as_str()).collect();
    loads.dedup();
    loads
}

/// Of one load: each server with its costs by number of sessions.
fn of_load<'a>(
    costs: &'a Costs,
    load: &str,
) -> impl Iterator<Item = (Server, &'a BTreeMap<usize, Vec<f64>>)> {
    Server::ALL.into_iter().filter_map(move |server| {
        let found = costs.get(&(load.to_owned(), server.name().to_owned()))?;
        Some((server, found))
    })
}

fn print_table(costs: &Costs) {
    let counts: Vec<usize> = costs
        .values()
        .next()
        .into_iter()
        .flat_map(BTreeMap::keys)
        .copied()
        .collect();
    let head: Vec<String> = counts
        .iter()
        .map(|&count| number_of(count as f64))
        .collect();
    println!("| load | server | {} sessions |", head.join(" | "));
    println!("|---|---|{}", "--:|".repeat(counts.len()));
    for load in loads(costs) {
        for (server, by_sessions) in of_load(costs, load) {
            let cells: Vec<String> = by_sessions
                .values()
                .map(|rounds| Spread::of(rounds.iter().copied()).to_string())
                .collect();
            println!("| {load} | {} | {} |", server.name(), cells.join(" | "));
        }
    }
}

/// A count, without a fraction.
fn number_of(count: f64) -> String {
    if count < 100.0 {
        format!("{count}")
    } else {
        number(count)
    }
}

fn show_us(us: f64) -> String {
    format!("{us:.1} us")
}

fn tick_us(us: f64) -> String {
    format!("{us}")
}

fn draw(costs: &Costs, into: &Path) -> io::Result<()> {
    for load in loads(costs) {
        let lines = of_load(costs, load).map(|(server, by_sessions)| {
            let point = |(&sessions, rounds): (&usize, &Vec<f64>)| {
                (sessions as f64, Spread::of(rounds.iter().copied()).median)
            };
            Line {
                name: server.name(),
                colour: server.colour(),
                points: by_sessions.iter().map(point).collect(),
            }
        });
        let plot = Plot {
            x: Axis {
                name: "sessions",
                scale: Scale::Log,
                show: number_of,
                tick: number_of,
            },
            y: Axis {
                name: "CPU us per packet",
                scale: Scale::Linear,
                show: show_us,
                tick: tick_us,
            },
            lines: lines.collect(),
            limit: None,
        };
        let title = match load {
            "max" => "A relayed packet at saturation, by number of sessions".to_owned(),
            load => {
                let rate = load.parse().map_or_else(|_| load.to_owned(), number_of);
                format!("A relayed packet at {rate} packets per second, by number of sessions")
            }
        };
        let path = into.join(format!("scaling-{}.svg", load.replace(':', "-")));
        std::fs::write(&path, plot.file(&title))?;
        println!("{}", path.display());
    }
    Ok(())
}
