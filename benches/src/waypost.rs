//! Waypost as a server to measure: sessions of two, set up by the client's own agent, with data through the relay.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use waypost_proto::agent::{Agent, Config, Event, HostConfig, PathPolicy, Probing, Target};
use waypost_proto::time::Millis;
use waypost_proto::wire::channel_data::{self, ChannelNumber};

use crate::clients::Clients;
use crate::process::ServerProcess;
use crate::relay::{Arriving, Endpoint, Flow, RelayServer, Running};

/// Sessions that are set up at the same time.
const AT_ONCE: usize = 256;
/// How long one such group may take.
const SET_UP_LIMIT: Duration = Duration::from_secs(20);
/// Silence that ends a set-up.
const QUIET: Duration = Duration::from_millis(300);

/// How Waypost is started and filled.
#[derive(Clone, Debug)]
pub struct Waypost {
    name: String,
    program: PathBuf,
    arguments: Vec<String>,
    sessions: Option<usize>,
}

impl Waypost {
    /// The server that lies beside the running program, on one shard, with more `arguments`, and with `sessions` in place of as many
    /// as the load has flows.
    ///
    /// # Errors
    ///
    /// When the running program's path is unknown.
    pub fn beside_us(name: &str, arguments: &[&str], sessions: Option<usize>) -> io::Result<Self> {
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
            "--max-sessions",
            "131072",
            "--member-packets-per-sec",
            "0",
            "--member-bytes-per-sec",
            "0",
        ];
        Ok(Self {
            name: name.to_owned(),
            program: std::env::current_exe()?.with_file_name("waypost-server"),
            arguments: usual
                .chunks(2)
                .filter(|option| !arguments.contains(&option[0]))
                .flatten()
                .chain(arguments)
                .map(|&text| text.to_owned())
                .collect(),
            sessions,
        })
    }

    /// Starts the server; the second value is its main address.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not say where it listens.
    pub fn spawn(&self, core: usize) -> io::Result<(ServerProcess, SocketAddr)> {
        let mut process =
            ServerProcess::spawn(&self.program, &self.arguments, core, Stdio::inherit())?;
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

/// The end of member `n`, counted over all sessions. Two members share an address, on different sockets.
#[must_use]
pub fn end(n: usize) -> Endpoint {
    let first = u32::from(Ipv4Addr::new(127, 2, 0, 0));
    Endpoint {
        socket: n % 2,
        ip: Ipv4Addr::from(first + u32::try_from(n / 2).unwrap_or(0)),
    }
}

/// Sessions to be set up.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Their numbers.
    pub range: std::ops::Range<usize>,
    /// Members of each.
    pub members: usize,
    /// Whether everybody is introduced to everybody.
    pub introduce: bool,
}

/// One session being set up.
struct Group {
    first: usize,
    agents: Vec<Agent>,
    joining: bool,
}

impl Group {
    fn new(i: usize, sessions: &Sessions, server: SocketAddr, now: Millis) -> Self {
        let first = i * sessions.members;
        let mut agents: Vec<Agent> = (first..first + sessions.members)
            .map(|n| {
                let config = Config {
                    policy: PathPolicy::RelayOnly,
                    probing: Probing::Off,
                    ..Config::new(server.into(), "bench")
                };
                let mut seed = [0; 32];
                seed[..8].copy_from_slice(&(n as u64).to_be_bytes());
                Agent::new(now, config, seed)
            })
            .collect();
        let host = HostConfig {
            introduce: sessions.introduce,
            ..HostConfig::default()
        };
        agents[0]
            .host(now, host)
            .expect("an agent without a seat may host");
        Self {
            first,
            agents,
            joining: false,
        }
    }

    /// Goes on to the next step if there is one; true when everybody knows everybody.
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
            for guest in &mut self.agents[1..] {
                guest
                    .join(now, Target::Code(code), "")
                    .expect("an agent without a seat may join");
            }
            self.joining = true;
        }
        let others = self.agents.len() - 1;
        self.agents
            .iter()
            .all(|agent| agent.members().count() == others)
    }
}

/// Sets sessions up and returns when the members of each know each other. `end` says where a member is; members are counted over
/// all sessions.
///
/// # Errors
///
/// When that takes too long.
pub fn set_up_sessions(
    clients: &mut Clients,
    server: SocketAddrV4,
    sessions: &Sessions,
    end: &dyn Fn(usize) -> Endpoint,
) -> io::Result<()> {
    let begin = Instant::now();
    let millis = || Millis(u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX));
    let all: Vec<usize> = sessions.range.clone().collect();
    for numbers in all.chunks(AT_ONCE) {
        let started = Instant::now();
        let mut groups: Vec<Group> = numbers
            .iter()
            .map(|&i| Group::new(i, sessions, server.into(), millis()))
            .collect();
        let index: HashMap<(usize, Ipv4Addr), (usize, usize)> = groups
            .iter()
            .enumerate()
            .flat_map(|(g, group)| {
                (0..sessions.members).map(move |m| {
                    let end = end(group.first + m);
                    ((end.socket, end.ip), (g, m))
                })
            })
            .collect();
        let mut missing = groups.len();
        while missing > 0 {
            if started.elapsed() > SET_UP_LIMIT {
                return Err(io::ErrorKind::TimedOut.into());
            }
            let now = millis();
            clients.receive(|arrived| {
                if let Some(&(g, m)) = index.get(&(arrived.at.socket, arrived.at.ip)) {
                    groups[g].agents[m].handle_datagram(now, arrived.from.into(), arrived.bytes);
                }
            });
            missing = 0;
            for group in &mut groups {
                missing += usize::from(!group.advance(now));
                for (m, agent) in group.agents.iter_mut().enumerate() {
                    agent.handle_timeout(now);
                    while let Some(transmit) = agent.poll_transmit() {
                        clients.stage(end(group.first + m), server, |out| {
                            out[..transmit.bytes.len()].copy_from_slice(&transmit.bytes);
                            transmit.bytes.len()
                        });
                    }
                }
            }
            clients.flush();
        }
    }
    Ok(())
}

/// Reads what still comes until nothing has come for a while, so that it is not taken for something else.
pub fn wait_for_quiet(clients: &mut Clients) {
    let mut quiet = Instant::now() + QUIET;
    while Instant::now() < quiet {
        if clients.receive(|_| ()) > 0 {
            quiet = Instant::now() + QUIET;
        }
    }
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
        self.start_between(
            clients,
            core,
            self.sessions.unwrap_or(flows),
            payload_bytes,
            &end,
        )
    }
}

impl Waypost {
    /// Starts it on `core`, with sessions of two members whose ends are `end(2 * i)` and `end(2 * i + 1)`.
    ///
    /// # Errors
    ///
    /// When it cannot be started or the set-up fails.
    pub fn start_between(
        &self,
        clients: &mut Clients,
        core: usize,
        sessions: usize,
        payload_bytes: usize,
        end: &dyn Fn(usize) -> Endpoint,
    ) -> io::Result<Running> {
        let (process, server) = self.spawn(core)?;
        let SocketAddr::V4(to) = server else {
            return Err(io::Error::other("the server does not listen on IPv4"));
        };
        let range = 0..sessions;
        let all = Sessions {
            range: range.clone(),
            members: 2,
            introduce: false,
        };
        set_up_sessions(clients, to, &all, end)?;
        wait_for_quiet(clients);
        let flow = |i| {
            let [from, arrives_at] = [end(2 * i), end(2 * i + 1)];
            let header = |seat| channel_data::header(ChannelNumber::of_seat(seat), payload_bytes);
            Flow {
                from,
                to: server,
                prefix: header(1).to_vec(),
                arrives_at,
                arrives_from: server,
                arriving: Arriving::Behind(header(0)),
                answered_by: None,
            }
        };
        Ok(Running {
            process,
            flows: range.map(flow).collect(),
        })
    }
}
