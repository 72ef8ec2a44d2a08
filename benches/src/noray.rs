//! Waypost as a server of noray: players who are registered over TCP, and their relay ports as flows.

use std::collections::HashMap;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::process::Stdio;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::clients::Clients;
use crate::process::ServerProcess;
use crate::relay::{Arriving, Endpoint, Flow, RelayServer, Running};
use crate::waypost::{end, wait_for_quiet};

/// How it is started.
#[derive(Clone, Debug)]
pub struct Noray {
    name: String,
    arguments: Vec<String>,
}

/// A server that runs, and where.
#[derive(Debug)]
pub struct Started {
    /// The process.
    pub process: ServerProcess,
    control: SocketAddr,
    /// Where secret ids are shown.
    pub registrar: SocketAddrV4,
}

/// A player's connection.
#[derive(Debug)]
pub struct Player {
    lines: BufReader<TcpStream>,
    /// The public id.
    pub oid: String,
    /// The secret id.
    pub pid: String,
}

impl Player {
    /// Sends commands.
    ///
    /// # Errors
    /// The connection's.
    pub fn send(&mut self, text: &[u8]) -> io::Result<()> {
        self.lines.get_mut().write_all(text)
    }

    /// The next line.
    ///
    /// # Errors
    /// The connection's.
    pub fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// The data of the next line, which is this command.
    fn data(&mut self, command: &str) -> io::Result<String> {
        let line = self.line()?;
        let data = line
            .strip_prefix(command)
            .and_then(|rest| rest.strip_prefix(' '));
        data.map(str::to_owned)
            .ok_or_else(|| io::Error::other(format!("`{line}` is not {command}")))
    }

    /// The relay port that the next line names.
    fn relay_port(&mut self) -> io::Result<SocketAddr> {
        let port = self.data("connect-relay")?;
        let port: u16 = port.parse().map_err(io::Error::other)?;
        Ok(SocketAddr::from(([127, 0, 0, 1], port)))
    }
}

impl Started {
    /// A new player, whose address is that of `at`.
    ///
    /// # Errors
    /// When the server does not answer as it should.
    pub fn player(&self, clients: &mut Clients, at: Endpoint) -> io::Result<Player> {
        let stream = TcpStream::connect(self.control)?;
        stream.set_nodelay(true)?;
        let mut player = Player {
            lines: BufReader::new(stream),
            oid: String::new(),
            pid: String::new(),
        };
        player.send(b"register-host\n")?;
        player.oid = player.data("set-oid")?;
        player.pid = player.data("set-pid")?;
        let answer = clients.request(at, self.registrar, player.pid.as_bytes())?;
        if answer == b"OK" {
            Ok(player)
        } else {
            Err(io::Error::other("the registrar does not know a player"))
        }
    }
}

impl Noray {
    /// The server that lies beside the running program, on one shard, without limits on what is relayed, with more `arguments`.
    #[must_use]
    pub fn new(name: &str, arguments: &[&str]) -> Self {
        let usual = "--listen 127.0.0.1:0 --probe-port 0 --admin off --shards 1 --log-level error \
             --noray-listen 127.0.0.1:0 --noray-registrar 127.0.0.1:0 \
             --noray-relay-max-individual-traffic 1pb --noray-relay-max-global-traffic 1pb \
             --noray-relay-max-lifetime-traffic 800pb --streams-per-source 0";
        Self {
            name: name.to_owned(),
            arguments: usual
                .split_whitespace()
                .chain(arguments.iter().copied())
                .map(str::to_owned)
                .collect(),
        }
    }

    /// Starts it.
    ///
    /// # Errors
    /// When it cannot be started or does not say where it listens.
    pub fn spawn(&self, core: usize) -> io::Result<Started> {
        let program = std::env::current_exe()?.with_file_name("waypost-server");
        // Other ports each time: what is still under way to those of a server before must not reach this one's.
        static STARTS: AtomicU16 = AtomicU16::new(0);
        let first = 10_000 + STARTS.fetch_add(1, Ordering::Relaxed) % 8 * 2500;
        let ports = format!("{first}-{}", first + 2499);
        let mut arguments = self.arguments.clone();
        arguments.extend(["--noray-relay-ports".to_owned(), ports]);
        let mut process = ServerProcess::spawn(&program, &arguments, core, Stdio::inherit())?;
        let (_, output) = process.pipes()?;
        let mut found = HashMap::new();
        for line in BufReader::new(output).lines() {
            let line = line?;
            let mut words = line.split(' ').skip(1);
            if let (Some(kind), Some(at)) = (words.next(), words.next()) {
                found.insert(kind.to_owned(), at.to_owned());
            }
            if let (Some(registrar), Some(control)) = (found.get("noray"), found.get("noray-tcp")) {
                let registrar = registrar.parse().map_err(io::Error::other)?;
                let control = control.parse().map_err(io::Error::other)?;
                return Ok(Started {
                    process,
                    control,
                    registrar,
                });
            }
        }
        Err(io::Error::other(format!("{} did not start", self.name)))
    }
}

impl RelayServer for Noray {
    fn name(&self) -> &str {
        &self.name
    }

    fn start(
        &self,
        clients: &mut Clients,
        core: usize,
        flows: usize,
        _payload_bytes: usize,
    ) -> io::Result<Running> {
        wait_for_quiet(clients);
        let started = self.spawn(core)?;
        let mut set_up = Vec::new();
        for pair in 0..flows.div_ceil(2) {
            let ends = [end(2 * pair), end(2 * pair + 1)];
            let mut host = started.player(clients, ends[0])?;
            let mut guest = started.player(clients, ends[1])?;
            let asks = format!("connect-relay {}\n", host.oid);
            guest.send(asks.as_bytes())?;
            let of_host = guest.relay_port()?;
            let of_guest = host.relay_port()?;
            let ways = [(0, of_guest, of_host), (1, of_host, of_guest)];
            set_up.extend(ways.map(|(side, to, arrives_from)| Flow {
                from: ends[side],
                to,
                prefix: Vec::new(),
                arrives_at: ends[1 - side],
                arrives_from,
                arriving: Arriving::Raw,
                answered_by: None,
            }));
        }
        set_up.truncate(flows);
        Ok(Running {
            process: started.process,
            flows: set_up,
        })
    }
}
