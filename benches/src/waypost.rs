//! Waypost as a server to measure: sessions of two, set up by the client's own agent, with data through the relay.
//!
//! Some sessions may be idle: they are set up like the others, and carry nothing.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use waypost_proto::agent::{Agent, Config, Event, HostConfig, PathPolicy, Probing, Target};
use waypost_proto::time::Millis;
use waypost_proto::wire::channel_data::{self, ChannelNumber};

use crate::clients::Clients;
use crate::process::ServerProcess;
use crate::relay::{Endpoint, Flow, RelayServer, Running};

/// Sessions that are set up at the same time.
const AT_ONCE: usize = 256;
/// How long one such group may take.
const SET_UP_LIMIT: Duration = Duration::from_secs(20);

/// How Waypost is started and filled.
#[derive(Clone, Debug)]
pub struct Waypost {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    idle_sessions: usize,
}

impl Waypost {
    /// The server that lies beside the running program, on one shard, with more `arguments` and `idle_sessions` more sessions
    /// than flows.
    ///
    /// # Errors
    ///
    /// When the running program's path is unknown.
    pub fn beside_us(name: &str, arguments: &[&str], idle_sessions: usize) -> io::Result<Self> {
        let usual = [
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
            "--keepalive-secs",
            "300",
            "--seat-hold-secs",
            "3600",
            "--member-packets-per-sec",
            "0",
            "--member-bytes-per-sec",
            "0",
        ];
        Ok(Self {
            name: name.to_owned(),
            program: std::env::current_exe()?.with_file_name("waypost-server"),
            arguments: usual
                .iter()
                .chain(arguments)
                .map(|&text| text.to_owned())
                .collect(),
            idle_sessions,
        })
    }

    /// Starts the server; the second value is its main address.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not say where it listens.
    pub fn spawn(&self, core: usize) -> io::Result<(ServerProcess, SocketAddr)> {
        let mut process = ServerProcess::spawn(&self.program, &self.arguments, core)?;
        let (_, output) = process.pipes()?;
        for line in BufReader::new(output).lines() {
            let line = line?;
            if let Some(address) = line.strip_prefix("listening udp ") {
                let address = address
                    .parse()
                    .map_err(|_| io::Error::other(line.clone()))?;
                return Ok((process, address));
            }
        }
        Err(io::Error::other(format!("{} did not start", self.name)))
    }
}

/// The two ends of session `i`.
#[must_use]
pub fn ends(i: usize) -> [Endpoint; 2] {
    let [_, high, middle, low] = u32::try_from(i).unwrap_or(0).to_be_bytes();
    [0, 1].map(|socket| Endpoint {
        socket,
        // No address twice, none that ends in 0, and none of the server's own.
        ip: Ipv4Addr::new(127, 2 + 2 * high + socket as u8, middle, low),
    })
}

/// One session being set up.
struct Pair {
    ends: [Endpoint; 2],
    agents: [Agent; 2],
    joining: bool,
}

impl Pair {
    fn new(i: usize, server: SocketAddr, now: Millis) -> Self {
        let agents = [0u8, 1].map(|side| {
            let config = Config {
                policy: PathPolicy::RelayOnly,
                probing: Probing::Off,
                ..Config::new(server.into(), "bench")
            };
            let mut seed = [side; 32];
            seed[..8].copy_from_slice(&(i as u64).to_be_bytes());
            Agent::new(now, config, seed)
        });
        let mut pair = Self {
            ends: ends(i),
            agents,
            joining: false,
        };
        pair.agents[0]
            .host(
                now,
                HostConfig {
                    introduce: false,
                    ..HostConfig::default()
                },
            )
            .expect("an agent without a seat may host");
        pair
    }

    /// Goes on to the next step if there is one; true when both know each other.
    fn advance(&mut self, now: Millis) -> bool {
        for agent in &mut self.agents {
            while let Some(event) = agent.poll_event() {
                assert!(
                    !matches!(event, Event::Failed { .. }),
                    "the set-up failed: {event:?}"
                );
            }
        }
        if !self.joining
            && let Some(seat) = self.agents[0].seat()
        {
            let code = seat.handle.code;
            self.agents[1]
                .join(now, Target::Code(code), "")
                .expect("an agent without a seat may join");
            self.joining = true;
        }
        self.agents.iter().all(|agent| agent.members().count() == 1)
    }
}

/// Sets up the sessions `range` of two members each and returns when both members of each know each other.
///
/// # Errors
///
/// When that takes too long.
pub fn set_up_sessions(
    clients: &mut Clients,
    server: SocketAddrV4,
    range: std::ops::Range<usize>,
) -> io::Result<()> {
    let begin = Instant::now();
    let millis = || Millis(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
    let all: Vec<usize> = range.collect();
    for group in all.chunks(AT_ONCE) {
        let started = Instant::now();
        let mut pairs: Vec<Pair> = group
            .iter()
            .map(|&i| Pair::new(i, server.into(), millis()))
            .collect();
        let index: HashMap<(usize, Ipv4Addr), (usize, usize)> = pairs
            .iter()
            .enumerate()
            .flat_map(|(p, pair)| {
                (0..2).map(move |side| ((pair.ends[side].socket, pair.ends[side].ip), (p, side)))
            })
            .collect();
        let mut missing = pairs.len();
        while missing > 0 {
            if started.elapsed() > SET_UP_LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let now = millis();
            clients.receive(|arrived| {
                if let Some(&(p, side)) = index.get(&(arrived.at.socket, arrived.at.ip)) {
                    pairs[p].agents[side].handle_datagram(now, arrived.from.into(), arrived.bytes);
                }
            });
            missing = 0;
            for pair in &mut pairs {
                missing += usize::from(!pair.advance(now));
                for (agent, end) in pair.agents.iter_mut().zip(pair.ends) {
                    agent.handle_timeout(now);
                    while let Some(transmit) = agent.poll_transmit() {
                        clients.stage(end, server, |out| {
                            out[..transmit.bytes.len()].copy_from_slice(&transmit.bytes);
                            transmit.bytes.len()
                        });
                    }
                }
            }
            clients.flush();
        }
    }
    // Repetitions that crossed the last acknowledgements are read before anything is measured.
    let quiet = Instant::now() + Duration::from_millis(300);
    while Instant::now() < quiet {
        clients.receive(|_| ());
    }
    Ok(())
}

impl RelayServer for Waypost {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        &self,
        clients: &mut Clients,
        core: usize,
        flows: usize,
        payload_bytes: usize,
    ) -> io::Result<Running> {
        let (process, server) = self.spawn(core)?;
        let SocketAddr::V4(to) = server else {
            return Err(io::Error::other("the server does not listen on IPv4"));
        };
        set_up_sessions(clients, to, 0..flows + self.idle_sessions)?;
        let flow = |i| {
            let [from, arrives_at] = ends(i);
            let header =
                |seat| channel_data::header(ChannelNumber::of_seat(seat), payload_bytes).to_vec();
            Flow {
                from,
                to: server,
                prefix: header(1),
                arrives_at,
                arrives_from: server,
                arriving_prefix: header(0),
            }
        };
        Ok(Running {
            process,
            flows: (0..flows).map(flow).collect(),
        })
    }
}
