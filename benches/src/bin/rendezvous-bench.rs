//! Measures the rendezvous: server CPU time per whole cycle (prove address, host, join, introduce), resident memory per
//! idle member, and memory kept of sources that never prove themselves.

use std::io;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::Instant;

use clap::{Parser, Subcommand};
use waypost_benches::clients::Clients;
use waypost_benches::process::{ServerProcess, pin_to_core};
use waypost_benches::waypost::{Sessions, Waypost, end, set_up_sessions, wait_for_quiet};
use waypost_proto::wire::native;
use waypost_proto::wire::stun::{Class, MessageWriter, TransactionId};

/// Rendezvous figures.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
    /// The core of the server.
    #[arg(long, default_value_t = 0, global = true)]
    server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1, global = true)]
    generator_core: usize,
    /// `uring` or `mmsg`.
    #[arg(long, default_value = "uring", global = true)]
    io: String,
}

#[derive(Subcommand)]
enum What {
    /// Whole cycles per second of server CPU.
    Cycles {
        /// Cycles of each round.
        #[arg(long, default_value_t = 40_000)]
        cycles: usize,
        /// Rounds, each with a server of its own.
        #[arg(long, default_value_t = 3)]
        rounds: usize,
    },
    /// Resident bytes per idle member.
    Memory {
        /// Members in all.
        #[arg(long, default_value_t = 100_000)]
        members: usize,
        /// Members of each session.
        #[arg(long, default_value_t = 4)]
        per_session: usize,
    },
    /// Memory after first requests from sources that never answer.
    Spoofed {
        /// Sources.
        #[arg(long, default_value_t = 1_000_000)]
        sources: usize,
    },
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    pin_to_core(arguments.generator_core)?;
    let bench = Bench {
        core: arguments.server_core,
        io: arguments.io,
        clients: Clients::open(2)?,
    };
    match arguments.what {
        What::Cycles { cycles, rounds } => bench.cycles(cycles, rounds),
        What::Memory {
            members,
            per_session,
        } => bench.memory(members, per_session),
        What::Spoofed { sources } => bench.spoofed(sources),
    }
}

struct Bench {
    core: usize,
    io: String,
    clients: Clients,
}

impl Bench {
    fn start(&self, more: &[&str]) -> io::Result<(ServerProcess, SocketAddrV4)> {
        let arguments = [&["--io", &self.io, "--coalesce-us", "0"], more].concat();
        let (process, address) =
            Waypost::beside_us("waypost", &arguments, None)?.spawn(self.core)?;
        match address {
            SocketAddr::V4(address) => Ok((process, address)),
            SocketAddr::V6(_) => Err(io::Error::other("the server does not listen on IPv4")),
        }
    }

    fn cycles(mut self, cycles: usize, rounds: usize) -> io::Result<()> {
        let mut rates = Vec::new();
        for round in 0..rounds {
            let (process, server) = self.start(&[])?;
            let before = process.cpu_time()?;
            let begin = Instant::now();
            let sessions = Sessions {
                range: 0..cycles,
                members: 2,
                introduce: true,
            };
            set_up_sessions(&mut self.clients, server, &sessions, &end)?;
            let wall = begin.elapsed();
            let cpu = process.cpu_time()? - before;
            let rate = cycles as f64 / cpu.as_secs_f64();
            println!(
                "round {round}: {cycles} cycles, {:.1} us of server CPU each, {rate:.0} cycles per second of server CPU, {:.2} of a core in use",
                cpu.as_secs_f64() * 1e6 / cycles as f64,
                cpu.as_secs_f64() / wall.as_secs_f64(),
            );
            wait_for_quiet(&mut self.clients);
            rates.push(rate);
        }
        rates.sort_by(f64::total_cmp);
        println!(
            "median: {:.0} cycles per second of server CPU",
            rates[rates.len() / 2]
        );
        Ok(())
    }

    fn memory(mut self, members: usize, per_session: usize) -> io::Result<()> {
        let smallest = {
            let (process, _) = self.start(&["--max-sessions", "1", "--max-members", "2"])?;
            process.resident_bytes()?
        };
        let sessions = members / per_session;
        let room = [
            "--max-sessions",
            &sessions.to_string(),
            "--max-members",
            &members.to_string(),
        ];
        let (process, server) = self.start(&room)?;
        let empty = process.resident_bytes()?;
        let all = Sessions {
            range: 0..sessions,
            members: per_session,
            introduce: false,
        };
        set_up_sessions(&mut self.clients, server, &all, &end)?;
        wait_for_quiet(&mut self.clients);
        let full = process.resident_bytes()?;
        println!("resident at the smallest capacity: {smallest} bytes");
        println!("resident with room for {members} members and none: {empty} bytes");
        println!("resident with {members} members in sessions of {per_session}: {full} bytes");
        println!(
            "per idle member: {:.0} bytes",
            (full as f64 - smallest as f64) / members as f64
        );
        Ok(())
    }

    fn spoofed(mut self, sources: usize) -> io::Result<()> {
        let (process, server) = self.start(&[])?;
        let before = process.resident_bytes()?;
        let mut request = Vec::new();
        MessageWriter::new(
            &mut request,
            native::method::HOST,
            Class::Request,
            TransactionId([7; 12]),
        )
        .attribute(native::attr::APPLICATION_ID, b"bench")
        .u32(native::attr::MAX_MEMBERS, 8)
        .attribute(native::attr::FILL, &[0; 20])
        .finish();
        let mut answers = 0;
        for n in 0..sources {
            self.clients.stage(end(n), server, |out| {
                out[..request.len()].copy_from_slice(&request);
                request.len()
            });
            if n % 64 == 63 {
                self.clients.flush();
                answers += self.clients.receive(|arrived| {
                    assert!(
                        arrived.bytes.len() <= request.len(),
                        "an answer is too large"
                    );
                });
            }
        }
        self.clients.flush();
        wait_for_quiet(&mut self.clients);
        let after = process.resident_bytes()?;
        println!(
            "{sources} sources, at least {answers} answered: resident {before} bytes before, {after} after, {} more",
            after as i64 - before as i64
        );
        Ok(())
    }
}
