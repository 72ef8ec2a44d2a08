//! A player of a game that was made for Rabid Hole Punch, simple-hole-punch or GodotP2P: the plain steps of the stock client,
//! on plain sockets. It knows nothing of relays. When it cannot reach its peer it tries again from the beginning.
//!
//! `natlab-foreign host|join rabid|simple|godot-p2p SERVER --id-file FILE`; the last line that it prints is a report in JSON.

use std::error::Error;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use waypost_proto::addr::Addr;
use waypost_proto::wire::simple;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// How often the whole way is gone.
const TRIES: u32 = 3;
/// How long the server may take, the other player included.
const MEET: Duration = Duration::from_secs(30);
/// How long a player tries to reach his peer.
const PUNCH: Duration = Duration::from_secs(6);
/// Who has reached his peer goes on for so long, for the peer's sake.
const AFTER: Duration = Duration::from_secs(1);

struct Player<'a> {
    is_host: bool,
    server: SocketAddr,
    id_file: &'a Path,
}

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [role, dialect, server, option, file] = &arguments[..] else {
        return Err("host|join rabid|simple|godot-p2p SERVER --id-file FILE".into());
    };
    if option != "--id-file" {
        return Err(format!("{option} is not an option").into());
    }
    let player = Player {
        is_host: role == "host",
        server: server.parse()?,
        id_file: Path::new(file),
    };
    let socket = open(0)?;
    for tries in 1..=TRIES {
        let peer = match dialect.as_str() {
            "rabid" => player.rabid(tries)?,
            "simple" => player.simple(&socket, tries)?,
            "godot-p2p" => player.godot_p2p(&socket, tries)?,
            other => return Err(format!("{other} is not known here").into()),
        };
        if let Some(peer) = peer {
            println!("{}", json!({"tries": tries, "peer": peer.to_string()}));
            return Ok(());
        }
    }
    Err("the peer was not reached".into())
}

fn open(port: u16) -> Outcome<UdpSocket> {
    let socket = UdpSocket::bind(("0.0.0.0", port))?;
    socket.set_read_timeout(Some(Duration::from_millis(50)))?;
    Ok(socket)
}

/// What comes next, within the socket's patience.
fn receive(socket: &UdpSocket) -> Option<(String, SocketAddr)> {
    let mut buffer = [0; 2048];
    let (len, from) = socket.recv_from(&mut buffer).ok()?;
    Some((String::from_utf8_lossy(&buffer[..len]).into_owned(), from))
}

/// Repeats what `say` says every `pause` until `heard` makes something of what the server answers.
fn ask<T>(
    socket: &UdpSocket,
    server: SocketAddr,
    pause: Duration,
    mut say: impl FnMut() -> Vec<String>,
    mut heard: impl FnMut(&str) -> Option<T>,
) -> Outcome<T> {
    let begin = Instant::now();
    let mut next = begin;
    while begin.elapsed() < MEET {
        if Instant::now() >= next {
            next += pause;
            for datagram in say() {
                socket.send_to(datagram.as_bytes(), server)?;
            }
        }
        if let Some((text, from)) = receive(socket)
            && from == server
            && let Some(found) = heard(&text)
        {
            return Ok(found);
        }
    }
    Err("the server does not answer".into())
}

/// Speaks to `peers` every `pause`: `greeting` until something is heard, then data. Returns where data came from. Only
/// what comes from one of `peers` counts; with `anybody`, everything does.
fn reach(
    socket: &UdpSocket,
    peers: &[SocketAddr],
    pause: Duration,
    greeting: &str,
    anybody: bool,
) -> Outcome<Option<SocketAddr>> {
    const DATA: &str = "data of a game";
    let begin = Instant::now();
    let mut next = begin;
    let (mut path, mut reached) = (None, None);
    let mut turn = 0;
    while begin.elapsed() < PUNCH || reached.is_some() {
        if Instant::now() >= next {
            next += pause;
            match path {
                Some(path) => {
                    let _ = socket.send_to(greeting.as_bytes(), path);
                    let _ = socket.send_to(DATA.as_bytes(), path);
                }
                // One probe at a time where there are many.
                None if anybody => {
                    let _ = socket.send_to(greeting.as_bytes(), peers[turn % peers.len()]);
                    turn += 1;
                }
                None => {
                    for peer in peers {
                        let _ = socket.send_to(greeting.as_bytes(), peer);
                    }
                }
            }
        }
        if let Some((text, from)) = receive(socket)
            && (anybody || peers.contains(&from))
        {
            path.get_or_insert(from);
            if text == DATA && reached.is_none() {
                reached = Some((from, Instant::now()));
            }
        }
        if let Some((from, at)) = reached
            && at.elapsed() > AFTER
        {
            return Ok(Some(from));
        }
    }
    Ok(None)
}

impl Player<'_> {
    /// Rabid Hole Punch: the host starts when there are two; then a new socket on the port that the server saw, and probes of the
    /// ports around the one that was told.
    fn rabid(&self, tries: u32) -> Outcome<Option<SocketAddr>> {
        let session = format!("Room{tries}");
        let pause = Duration::from_millis(500);
        let socket = open(0)?;
        let name = if self.is_host { "Host" } else { "Guest" };
        let first = match self.is_host {
            true => format!("h:{session}:{name}:2"),
            false => format!("c:{session}:{name}"),
        };
        // Who joins before the session is there fails at once, and its player tries again.
        let (ping, start) = (format!("p:{session}:{name}"), format!("s:{session}:{name}"));
        let said = std::cell::RefCell::new(first);
        let (own, peer) = ask(
            &socket,
            self.server,
            pause,
            || vec![said.borrow().clone()],
            |text| {
                if let Some(list) = text.strip_prefix("i:") {
                    let all_here = list.contains(':');
                    let next = if self.is_host && all_here {
                        &start
                    } else {
                        &ping
                    };
                    said.replace(next.clone());
                    return None;
                }
                let (own, peer) = text.strip_prefix("s:")?.split_once(':')?;
                let (_, peer) = peer.split_once(':')?;
                Some((own.parse::<u16>().ok()?, peer.parse::<SocketAddr>().ok()?))
            },
        )?;
        drop(socket);
        std::thread::sleep(Duration::from_secs(2));
        let socket = open(own)?;
        let around = (peer.port() - 8..=peer.port() + 8).filter(|&port| port != peer.port());
        let ports: Vec<SocketAddr> = std::iter::once(peer.port())
            .chain(around)
            .map(|port| SocketAddr::new(peer.ip(), port))
            .collect();
        let greeting = format!("g:{name}:{own}:{}", peer.port());
        reach(&socket, &ports, Duration::from_millis(50), &greeting, true)
    }

    /// simple-hole-punch: one socket for everything; only the two keys of the peer count.
    fn simple(&self, socket: &UdpSocket, tries: u32) -> Outcome<Option<SocketAddr>> {
        let second = Duration::from_secs(1);
        let lan = own_key(self.server, socket)?;
        let address = |key: &str| simple::addr(key.as_bytes()).map(Addr::to_socket_addr);
        let peers = if self.is_host {
            let mut is_told = false;
            ask(
                socket,
                self.server,
                second,
                || vec![format!("HS:{lan}")],
                |text| {
                    if let Some((_, id)) = text
                        .strip_prefix("HR:")
                        .and_then(|text| text.split_once(':'))
                        && !is_told
                    {
                        is_told = self.is_hosting(tries, id).is_ok();
                    }
                    let (public, lan) = text.strip_prefix("NJ:")?.split_once(':')?;
                    Some(vec![address(public)?, address(lan)?])
                },
            )?
        } else {
            let id = self.await_host(tries)?;
            ask(
                socket,
                self.server,
                second,
                || vec![format!("JS:{lan}:{id}")],
                |text| {
                    let mut fields = text.strip_prefix("JR:")?.split(':').skip(1);
                    Some(vec![address(fields.next()?)?, address(fields.next()?)?])
                },
            )?
        };
        reach(socket, &peers, Duration::from_millis(200), "RD:me", false)
    }

    /// The file that says that the host waits for this try's guest, and under which id.
    fn file_of(&self, tries: u32) -> PathBuf {
        self.id_file.with_extension(tries.to_string())
    }

    /// Lets the guest begin this try. He must not sooner: a host who still tries to reach him would not hear that he has come.
    fn is_hosting(&self, tries: u32, id: &str) -> std::io::Result<()> {
        let draft = self.id_file.with_extension("draft");
        std::fs::write(&draft, id)?;
        std::fs::rename(&draft, self.file_of(tries))
    }

    fn await_host(&self, tries: u32) -> Outcome<String> {
        let begin = Instant::now();
        while begin.elapsed() < MEET {
            match std::fs::read_to_string(self.file_of(tries)) {
                Ok(id) => return Ok(id),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
        Err("the host does not wait".into())
    }

    /// GodotP2P: the server player registers, the other joins; both ask global and local address of the other.
    fn godot_p2p(&self, socket: &UdpSocket, tries: u32) -> Outcome<Option<SocketAddr>> {
        let second = Duration::from_secs(1);
        let local = socket.local_addr()?.port();
        let address = json!([own_ip(self.server)?, local]);
        let name = if self.is_host { "Host" } else { "Guest" };
        let (kind, more) = match self.is_host {
            true => (
                "registering-server",
                json!({"local-address": address, "seconds-before-expiry": 60, "password-required": false}),
            ),
            false => (
                "requesting-to-join-server",
                json!({"local-address": address, "server-name": "Host"}),
            ),
        };
        let packet = tagged(name, kind, more);
        if !self.is_host {
            self.await_host(tries)?;
        }
        let peers = ask(
            socket,
            self.server,
            second,
            || vec![packet.clone()],
            |text| {
                let answer: Value = serde_json::from_str(text).ok()?;
                if self.is_host && answer["__type"] == "confirming-registration" {
                    let _ = self.is_hosting(tries, name);
                }
                if answer["__type"] != "providing-peer-handshake-info" {
                    return None;
                }
                let read = |key: &str| {
                    let pair = &answer[key];
                    format!("{}:{}", pair[0].as_str()?, pair[1]).parse().ok()
                };
                Some(vec![read("global-address")?, read("local-address")?])
            },
        )?;
        let inquiry = json!({"__type": "address-inquiry", "__sender-name": name}).to_string();
        reach(socket, &peers, Duration::from_millis(200), &inquiry, false)
    }
}

fn own_ip(server: SocketAddr) -> Outcome<String> {
    let probe = UdpSocket::bind(("0.0.0.0", 0))?;
    probe.connect(server)?;
    Ok(probe.local_addr()?.ip().to_string())
}

fn own_key(server: SocketAddr, socket: &UdpSocket) -> Outcome<String> {
    let at = format!("{}:{}", own_ip(server)?, socket.local_addr()?.port());
    let key = simple::key(Addr::new(at.parse()?)).ok_or("no IPv4")?;
    Ok(String::from_utf8(key.to_vec())?)
}

/// A packet for the handshake server, with its tag.
fn tagged(name: &str, kind: &str, more: Value) -> String {
    let mut packet = Map::new();
    packet.insert("__type".into(), kind.into());
    packet.insert("__sender-name".into(), name.into());
    packet.insert("password".into(), "0123456789".into());
    if let Value::Object(more) = more {
        packet.extend(more);
    }
    let mut keys: Vec<&str> = packet.keys().map(String::as_str).collect();
    let mut values: Vec<&str> = packet.values().filter_map(Value::as_str).collect();
    keys.sort_unstable();
    values.sort_unstable();
    let digest = Sha256::digest(keys.concat() + &values.concat());
    let tag: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    packet.insert("__hash-string".into(), tag.into());
    Value::Object(packet).to_string()
}
