//! Measures dialects: requests per second of server CPU, for each of a dialect's common requests.

use std::io::{self, BufRead as _, BufReader};
use std::net::SocketAddrV4;
use std::process::Stdio;
use std::time::{Duration, Instant};

use clap::Parser;
use sha2::{Digest, Sha256};
use waypost_benches::clients::{BATCH, Clients};
use waypost_benches::noray::{Noray, Player};
use waypost_benches::process::{ServerProcess, pin_to_core};
use waypost_benches::waypost::end;
use waypost_proto::dialect::Dialect;

/// Requests per second of server CPU.
#[derive(Parser)]
struct Arguments {
    /// Sessions, each with a host and a guest of their own addresses.
    #[arg(long, default_value_t = 1000)]
    sessions: usize,
    /// Requests of each kind and round.
    #[arg(long, default_value_t = 1_000_000)]
    requests: usize,
    /// Rounds, each with a server of its own.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// The core of the server.
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// The core of the generator.
    #[arg(long, default_value_t = 1)]
    generator_core: usize,
    /// `uring` or `mmsg`.
    #[arg(long, default_value = "uring")]
    io: String,
}

fn main() -> io::Result<()> {
    let arguments = Arguments::parse();
    pin_to_core(arguments.generator_core)?;
    for dialect in Dialect::ALL {
        let mut rates: Vec<(&str, Vec<f64>)> = Vec::new();
        for _ in 0..arguments.rounds {
            for (i, (kind, rate)) in round(&arguments, dialect)?.into_iter().enumerate() {
                match rates.get_mut(i) {
                    Some((_, all)) => all.push(rate),
                    None => rates.push((kind, vec![rate])),
                }
            }
        }
        for (kind, mut all) in rates {
            all.sort_by(f64::total_cmp);
            println!(
                "{:<10} {kind:<34} {:>8.0} requests per second of server CPU (median of {}; lowest {:.0})",
                dialect.name(),
                all[all.len() / 2],
                all.len(),
                all[0]
            );
        }
    }
    Ok(())
}

/// Commands in a piece.
const AT_ONCE: usize = 32;

/// noray: secret ids that are shown again by UDP, and commands on connections.
fn noray_round(arguments: &Arguments) -> io::Result<Vec<(&'static str, f64)>> {
    let started = Noray::new("noray", &["--io", &arguments.io, "--coalesce-us", "0"])
        .spawn(arguments.server_core)?;
    let mut clients = Clients::open(2)?;
    let players: io::Result<Vec<Player>> = (0..arguments.sessions)
        .map(|n| started.player(&mut clients, end(2 * n)))
        .collect();
    let mut players = players?;
    let pids = players.iter().map(|player| player.pid.clone().into_bytes());
    let pids: Requests = pids.collect();
    let server = started.registrar;
    let mut bench = Bench {
        process: started.process,
        server,
        clients,
        sessions: arguments.sessions,
    };
    let shown = bench.run(arguments.requests, &[(0, &pids)])?;
    let mut rates = vec![("secret id (UDP)", shown)];
    // One command of each connection at a time: two lines of answer, both to who asked.
    let asks = players
        .iter()
        .map(|player| format!("connect {}\n", player.oid));
    let asks: Vec<String> = asks.collect();
    let before = bench.process.cpu_time()?;
    let laps = (arguments.requests / arguments.sessions).max(1);
    for _ in 0..laps {
        for at_once in 0..arguments.sessions.div_ceil(BATCH) {
            let some = at_once * BATCH..((at_once + 1) * BATCH).min(arguments.sessions);
            for n in some.clone() {
                players[n].send(asks[n].as_bytes())?;
            }
            for n in some {
                players[n].line()?;
                players[n].line()?;
            }
        }
    }
    let cpu = bench.process.cpu_time()? - before;
    let asked = (laps * arguments.sessions) as f64;
    rates.push(("connect (TCP, two answers)", asked / cpu.as_secs_f64()));
    // Several at once, as whoever means to hurt does.
    let before = bench.process.cpu_time()?;
    for n in 0..arguments.requests / AT_ONCE {
        let n = n % arguments.sessions;
        players[n].send(asks[n].repeat(AT_ONCE).as_bytes())?;
        for _ in 0..2 * AT_ONCE {
            players[n].line()?;
        }
    }
    let cpu = bench.process.cpu_time()? - before;
    let asked = (arguments.requests / AT_ONCE * AT_ONCE) as f64;
    rates.push(("connect (TCP, 32 in a piece)", asked / cpu.as_secs_f64()));
    Ok(rates)
}

fn round(arguments: &Arguments, dialect: Dialect) -> io::Result<Vec<(&'static str, f64)>> {
    if dialect == Dialect::Noray {
        return noray_round(arguments);
    }
    let program = std::env::current_exe()?.with_file_name("waypost-server");
    let listen = format!("--{}-listen", dialect.name());
    let options = [
        "--listen",
        "127.0.0.1:0",
        "--probe-port",
        "0",
        "--admin",
        "off",
        "--shards",
        "1",
        "--log-level",
        "error",
        "--coalesce-us",
        "0",
        "--io",
        &arguments.io,
        &listen,
        "127.0.0.1:0",
    ];
    let mut process =
        ServerProcess::spawn(&program, &options, arguments.server_core, Stdio::inherit())?;
    let (_stdin, output) = process.pipes()?;
    let begins = format!("listening {} ", dialect.name());
    let mut lines = BufReader::new(output).lines();
    let server = loop {
        let line = lines
            .next()
            .ok_or_else(|| io::Error::other("it did not start"))??;
        if let Some(address) = line.strip_prefix(&begins) {
            break address.parse().map_err(io::Error::other)?;
        }
    };
    let mut bench = Bench {
        process,
        server,
        clients: Clients::open(2)?,
        sessions: arguments.sessions,
    };
    bench.measure(arguments.requests, dialect)
}

/// Requests of a host and a guest, by the number of their session.
type Requests = Vec<Vec<u8>>;

struct Bench {
    process: ServerProcess,
    server: SocketAddrV4,
    clients: Clients,
    sessions: usize,
}

impl Bench {
    fn measure(
        &mut self,
        requests: usize,
        dialect: Dialect,
    ) -> io::Result<Vec<(&'static str, f64)>> {
        let sessions = self.sessions;
        let all = |make: &dyn Fn(usize) -> String| -> Requests {
            (0..sessions).map(|n| make(n).into_bytes()).collect()
        };
        let (hosts, guests) = (0, 1);
        let mut rates = Vec::new();
        match dialect {
            Dialect::Rabid => {
                let host = all(&|n| format!("h:s{n}:Host:4"));
                let join = all(&|n| format!("c:s{n}:Guest"));
                let ping = all(&|n| format!("p:s{n}:Host"));
                let leave = all(&|n| format!("x:s{n}:Guest"));
                self.run(sessions, &[(hosts, &host)])?;
                rates.push(("p (ping)", self.run(requests, &[(hosts, &ping)])?));
                let both = [(guests, &join), (guests, &leave)];
                rates.push(("c, x (join and leave)", self.run(requests, &both)?));
            }
            Dialect::Simple => {
                let host = all(&|_| "HS:cyahwicycywi".to_owned());
                let mut ids = vec![String::new(); sessions];
                for (n, id) in ids.iter_mut().enumerate() {
                    let answer = self.clients.request(end(2 * n), self.server, &host[n])?;
                    let text = String::from_utf8_lossy(&answer).into_owned();
                    text.rsplit(':').next().unwrap_or_default().clone_into(id);
                }
                let join = all(&|n| format!("JS:cyahwicycywi:{}", ids[n]));
                rates.push(("HS (host, again)", self.run(requests, &[(hosts, &host)])?));
                rates.push((
                    "JS (join, two answers)",
                    self.run(requests, &[(guests, &join)])?,
                ));
            }
            Dialect::Noray => unreachable!("it has a measurement of its own"),
            Dialect::GodotP2p => {
                let local = r#""local-address":["192.168.1.2",5000],"#;
                let host = all(&|n| {
                    let more = format!(
                        r#"{local}"password":"0123456789","password-required":false,"seconds-before-expiry":3600,"#
                    );
                    packet(
                        &format!("Host{n}"),
                        "registering-server",
                        &more,
                        &[
                            "local-address",
                            "password-required",
                            "seconds-before-expiry",
                        ],
                        &[],
                    )
                });
                let refresh = all(&|n| {
                    packet(
                        &format!("Host{n}"),
                        "refreshing-server-registration",
                        r#""seconds-before-expiry":3600,"#,
                        &["seconds-before-expiry"],
                        &[],
                    )
                });
                let join = all(&|n| {
                    let server = format!("Host{n}");
                    let more =
                        format!(r#"{local}"password":"0123456789","server-name":"{server}","#);
                    packet(
                        &format!("Guest{n}"),
                        "requesting-to-join-server",
                        &more,
                        &["local-address", "server-name"],
                        &[&server],
                    )
                });
                self.run(sessions, &[(hosts, &host)])?;
                rates.push((
                    "refreshing-server-registration",
                    self.run(requests, &[(hosts, &refresh)])?,
                ));
                rates.push((
                    "requesting-to-join (two answers)",
                    self.run(requests, &[(guests, &join)])?,
                ));
            }
        }
        Ok(rates)
    }

    /// Sends this many requests, one after the other of each session in turn; returns how many the server would do in a second of
    /// its CPU time. Every request is answered, or it was not served.
    fn run(&mut self, requests: usize, kinds: &[(usize, &Requests)]) -> io::Result<f64> {
        let before = self.process.cpu_time()?;
        let mut answered = 0;
        let mut sent = 0;
        while sent < requests {
            let (side, of_kind) = kinds[sent / self.sessions % kinds.len()];
            let until = (sent + BATCH).min(requests);
            let until = until.min((sent / self.sessions + 1) * self.sessions);
            for i in sent..until {
                let n = i % self.sessions;
                let request = &of_kind[n];
                self.clients.stage(end(2 * n + side), self.server, |bytes| {
                    bytes[..request.len()].copy_from_slice(request);
                    request.len()
                });
            }
            self.clients.flush();
            // Half of these are under way at any time at least.
            answered += self.collect(sent.saturating_sub(BATCH), answered);
            sent = until;
        }
        let end = Instant::now() + Duration::from_secs(2);
        while answered < sent && Instant::now() < end {
            answered += self.clients.receive(|_| {});
        }
        let cpu = self.process.cpu_time()? - before;
        if answered < sent {
            return Err(io::Error::other(format!(
                "{answered} answers to {sent} requests"
            )));
        }
        Ok(sent as f64 / cpu.as_secs_f64())
    }

    /// Receives until at least `wanted` answers have come in all; gives up when nothing comes for a while.
    fn collect(&mut self, wanted: usize, had: usize) -> usize {
        let mut more = self.clients.receive(|_| {});
        let mut quiet = Instant::now();
        while had + more < wanted && quiet.elapsed() < Duration::from_millis(50) {
            let came = self.clients.receive(|_| {});
            if came > 0 {
                quiet = Instant::now();
            }
            more += came;
        }
        more
    }
}

/// A packet of GodotP2P as its client writes it, compact, `more` being fields with a comma behind them.
fn packet(name: &str, kind: &str, more: &str, keys: &[&str], values: &[&str]) -> String {
    let fixed = [
        "__destination-address",
        "__destination-name",
        "__sender-name",
        "__type",
        "password",
    ];
    let mut keys: Vec<&str> = fixed.iter().chain(keys).copied().collect();
    let mut values: Vec<&str> = ["_HANDSHAKE_SERVER", name, kind, "0123456789"]
        .iter()
        .chain(values)
        .copied()
        .collect();
    keys.sort_unstable();
    values.sort_unstable();
    let digest = Sha256::digest(keys.concat() + &values.concat());
    let tag: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!(
        r#"{{"__destination-address":["127.0.0.1",5160],"__destination-name":"_HANDSHAKE_SERVER",{more}"__sender-name":"{name}","__type":"{kind}","__hash-string":"{tag}"}}"#
    )
}
