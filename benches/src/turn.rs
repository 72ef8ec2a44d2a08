//! TURN servers to measure, ours and others alike: started by a command line, filled by [`TurnClients`], with data from clients
//! to peers and back, or between clients.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{Class, MessageWriter, TransactionId, attr, method};

use crate::clients::{BATCH, Clients};
use crate::process::ServerProcess;
use crate::relay::{Arriving, Endpoint, Flow, RelayServer, Running};
use crate::turn_client::{ACCOUNT, TurnClients};
use crate::waypost::wait_for_quiet;

/// The channel that every client binds.
const CHANNEL: u16 = 0x4000;
/// Relay ports that servers are given.
const RELAY_PORTS: [u16; 2] = [20_000, 29_999];
/// How long a server may take to answer its first request.
const START_LIMIT: Duration = Duration::from_secs(10);
/// It is asked this often until then.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// Requests that use every receive buffer of a server.
const WARM_UP: usize = 16_384;
/// Who asks: an end that no load uses.
const ASKER: usize = (1 << 20) + 1;

/// A server that answers.
#[derive(Debug)]
pub struct Started {
    /// Its process.
    pub process: ServerProcess,
    /// Where it listens.
    pub at: SocketAddrV4,
    /// How long its first answer took, from before the process was made.
    pub ready_after: Duration,
}

/// How a TURN server is started: `{ip}`, `{port}`, `{user}`, `{password}`, `{realm}`, `{low}`, `{high}` in its arguments are
/// replaced.
#[derive(Clone, Debug)]
pub struct TurnCommand {
    /// Its name in the tables.
    pub name: String,
    program: PathBuf,
    arguments: Vec<String>,
    /// Whether its standard error is of interest.
    is_loud: bool,
}

impl TurnCommand {
    /// Waypost, with more arguments, on one shard.
    ///
    /// # Errors
    /// When the running program's path is unknown.
    pub fn waypost(name: &str, more: &[&str]) -> io::Result<Self> {
        let program = std::env::current_exe()?.with_file_name("waypost-server");
        let usual = "--listen {ip}:{port} --probe-port 0 --admin off --shards 1 --log-level error --user {user}:{password} \
             --realm {realm} --relay-ports {low}-{high} --allow-peer 127.0.0.0/8 --max-allocations 16384 --max-members 262144 \
             --allocation-packets-per-sec 0 --allocation-bytes-per-sec 0";
        let more = more.iter().map(|&text| text.to_owned());
        Ok(Self {
            name: name.to_owned(),
            program,
            arguments: words(usual).chain(more).collect(),
            is_loud: true,
        })
    }

    /// coturn, as baseline of all comparisons: one relay thread, no TLS, no log, no database.
    #[must_use]
    pub fn coturn(name: &str, program: &Path) -> Self {
        let arguments = "-n --listening-ip={ip} --relay-ip={ip} --listening-port={port} --min-port={low} --max-port={high} \
             --lt-cred-mech --user={user}:{password} --realm={realm} --allow-loopback-peers --no-cli --no-tls --no-dtls \
             --no-stdout-log --log-file=/dev/null --pidfile=/dev/null --userdb=/proc/none -m 1";
        Self {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: words(arguments).collect(),
            // It tells there of every protocol that the kernel has not.
            is_loud: false,
        }
    }

    /// Any other server, from `NAME=PROGRAM ARGUMENTS`.
    ///
    /// # Errors
    /// When the text has not that form.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, command) = text
            .split_once('=')
            .ok_or("give NAME=PROGRAM ARGUMENTS, with {ip}, {port}, {user}, {password}, {realm}, {low}, {high} where the program wants them")?;
        let mut words = words(command);
        Ok(Self {
            name: name.to_owned(),
            program: words.next().ok_or("the program is missing")?.into(),
            arguments: words.collect(),
            is_loud: true,
        })
    }

    /// Starts the server on a free port, and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be started or does not answer.
    pub fn spawn(&self, clients: &mut Clients, core: usize) -> io::Result<Started> {
        let free = free_port()?;
        let at = SocketAddrV4::new(Ipv4Addr::LOCALHOST, free);
        let values = [
            ("{ip}", at.ip().to_string()),
            ("{port}", free.to_string()),
            ("{user}", ACCOUNT.user.to_owned()),
            ("{password}", ACCOUNT.password.to_owned()),
            ("{realm}", ACCOUNT.realm.to_owned()),
            ("{low}", RELAY_PORTS[0].to_string()),
            ("{high}", RELAY_PORTS[1].to_string()),
        ];
        let arguments: Vec<String> = self
            .arguments
            .iter()
            .map(|argument| {
                let replace = |text: String, (from, to): &(&str, String)| text.replace(from, to);
                values.iter().fold(argument.clone(), replace)
            })
            .collect();
        let started = Instant::now();
        let errors = if self.is_loud {
            Stdio::inherit()
        } else {
            Stdio::null()
        };
        let process = ServerProcess::spawn(&self.program, &arguments, core, errors)?;
        let binding = binding_request();
        let asker = end(0, ASKER);
        let mut answered = false;
        while !answered {
            if started.elapsed() > START_LIMIT {
                let text = format!("{} does not answer", self.program.display());
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            clients.stage(asker, at, |out| {
                out[..binding.len()].copy_from_slice(&binding);
                binding.len()
            });
            clients.flush();
            let again = Instant::now() + ASK_EVERY;
            while !answered && Instant::now() < again {
                clients.receive(|arrived| answered |= arrived.at == asker);
            }
        }
        let ready_after = started.elapsed();
        wait_for_quiet(clients);
        Ok(Started {
            process,
            at,
            ready_after,
        })
    }

    /// The same with room for `allocations` and nothing else, if it has options that say so.
    #[must_use]
    pub fn with_room_for(&self, allocations: usize) -> Self {
        let mut sized = self.clone();
        for at in 1..sized.arguments.len() {
            match sized.arguments[at - 1].as_str() {
                "--max-allocations" => sized.arguments[at] = allocations.to_string(),
                "--max-members" => sized.arguments[at] = "2".to_owned(),
                _ => {}
            }
        }
        sized
    }
}

/// A port that is free for UDP and for TCP.
fn free_port() -> io::Result<u16> {
    let mut tries_left = 100;
    loop {
        let at = UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        match TcpListener::bind(at) {
            Err(error) if tries_left == 0 => return Err(error),
            Err(_) => tries_left -= 1,
            Ok(_) => return Ok(at.port()),
        }
    }
}

fn binding_request() -> Vec<u8> {
    let mut binding = Vec::new();
    let id = TransactionId(*b"are you here");
    MessageWriter::new(&mut binding, method::BINDING, Class::Request, id).finish();
    binding
}

impl Started {
    /// Sends many Binding requests, so that the server has used all of its receive buffers.
    pub fn warm_up(&self, clients: &mut Clients) {
        let binding = binding_request();
        for _ in 0..WARM_UP / BATCH {
            for _ in 0..BATCH {
                clients.stage(end(0, ASKER), self.at, |out| {
                    out[..binding.len()].copy_from_slice(&binding);
                    binding.len()
                });
            }
            clients.flush();
            let begun = Instant::now();
            let mut answers = 0;
            while answers < BATCH && begun.elapsed() < ASK_EVERY {
                answers += clients.receive(|_| {});
            }
        }
        wait_for_quiet(clients);
    }
}

fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split_whitespace().map(str::to_owned)
}

/// Where a client's data goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Topology {
    /// To a peer that is no client, which sends it back.
    Peer,
    /// To the relayed address of another client of the same server.
    Pairs,
}

/// How a client's data is framed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// ChannelData.
    Channels,
    /// Send and Data indications; payloads must be a multiple of four bytes.
    Indications,
}

/// A TURN server in one topology and mode.
#[derive(Clone, Debug)]
pub struct TurnRelay {
    /// How it is started.
    pub command: TurnCommand,
    /// Where data goes.
    pub topology: Topology,
    /// How it is framed.
    pub mode: Mode,
    /// Its name in the table.
    pub name: String,
}

/// End `n` of one socket of the generator.
#[must_use]
pub fn end(socket: usize, n: usize) -> Endpoint {
    let [.., high, middle, low] = (n as u32 + 1).to_be_bytes();
    Endpoint {
        socket,
        ip: Ipv4Addr::new(127, 10 + high, middle, low),
    }
}

/// The header of the channel that every client binds.
fn channel_header(payload_bytes: usize) -> [u8; 4] {
    let channel = ChannelNumber::new(CHANNEL).expect("the first channel number");
    channel_data::header(channel, payload_bytes)
}

impl TurnRelay {
    /// What precedes the payload on its way to the server.
    fn prefix(&self, peer: SocketAddr, payload_bytes: usize) -> Vec<u8> {
        match self.mode {
            Mode::Channels => channel_header(payload_bytes).to_vec(),
            Mode::Indications => {
                let mut bytes = Vec::new();
                let id = TransactionId([0; 12]);
                MessageWriter::new(&mut bytes, method::SEND, Class::Indication, id)
                    .xor_addr(attr::XOR_PEER_ADDRESS, Addr::new(peer))
                    .attribute(attr::DATA, &vec![0; payload_bytes])
                    .finish();
                bytes.truncate(bytes.len() - payload_bytes);
                bytes
            }
        }
    }

    /// How the payload must come to a client from its peer.
    fn arriving(&self, peer: SocketAddr, payload_bytes: usize) -> Arriving {
        match self.mode {
            Mode::Channels => Arriving::Behind(channel_header(payload_bytes)),
            Mode::Indications => Arriving::DataIndication(peer),
        }
    }
}

impl RelayServer for TurnRelay {
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
        let Started {
            process,
            at: server,
            ..
        } = self.command.spawn(clients, core)?;
        let ends: Vec<Endpoint> = (0..flows)
            .map(|n| match self.topology {
                Topology::Peer => end(0, n),
                Topology::Pairs => end(n % 2, n / 2),
            })
            .collect();
        let mut turn = TurnClients::new(server, ends);
        turn.allocate(clients)?;
        let peers: Vec<SocketAddr> = match self.topology {
            Topology::Peer => (0..flows).map(|n| clients.address(end(1, n))).collect(),
            Topology::Pairs => (0..flows)
                .map(|n| turn.relayed[(n ^ 1).min(flows - 1)])
                .collect(),
        };
        match self.mode {
            Mode::Channels => turn.bind(clients, CHANNEL, &peers)?,
            Mode::Indications => turn.permit(clients, &peers)?,
        }
        wait_for_quiet(clients);
        let at = SocketAddr::from(server);
        let mut all = Vec::new();
        for n in 0..flows {
            let from_server = |m: usize| self.arriving(peers[m], payload_bytes);
            let to_peer = Flow {
                from: turn.ends[n],
                to: at,
                prefix: self.prefix(peers[n], payload_bytes),
                arrives_at: end(1, n),
                arrives_from: turn.relayed[n],
                arriving: Arriving::Raw,
                answered_by: None,
            };
            match self.topology {
                Topology::Peer => {
                    all.push(Flow {
                        answered_by: Some(all.len() + 1),
                        ..to_peer
                    });
                    all.push(Flow {
                        from: end(1, n),
                        to: turn.relayed[n],
                        prefix: Vec::new(),
                        arrives_at: turn.ends[n],
                        arrives_from: at,
                        arriving: from_server(n),
                        answered_by: None,
                    });
                }
                Topology::Pairs if (n ^ 1) < flows => all.push(Flow {
                    arrives_at: turn.ends[n ^ 1],
                    arrives_from: at,
                    arriving: from_server(n ^ 1),
                    ..to_peer
                }),
                Topology::Pairs => {}
            }
        }
        Ok(Running {
            process,
            flows: all,
        })
    }
}
