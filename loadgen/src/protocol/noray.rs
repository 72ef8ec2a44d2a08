//! The server talk of noray as netfox' client has it: a TCP connection of each player for as long as the session lives, `register-host`,
//! the secret id to the registrar every 100 ms until it says OK, then `connect-relay` (to load the introduction alone: `connect`)
//! for one pair after the other. The only talk with sockets of its own: connections are few and slow beside the load, so they are
//! looked at from time to time.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Protocol, Socket, Type};
use waypost_proto::time::Millis;

use super::introduced::{Talk, Told, Ways};
use super::{Outbox, Step};
use crate::clock::Now;

/// netfox shows its address this often, milliseconds.
const AGAIN_MS: u64 = 100;
/// Connections are looked at this often while something is awaited, and when nothing is.
const LOOK_MS: u64 = 2;
const LOOK_IDLE_MS: u64 = 1_000;
/// More than a player is ever told without having read it.
const LINES_MAX: usize = 16 * 1024;

#[derive(Default)]
struct Player {
    stream: Option<TcpStream>,
    inbox: Vec<u8>,
    outgoing: Vec<u8>,
    oid: String,
    pid: String,
    is_registered: bool,
    look: Millis,
    again: Millis,
}

/// The talk of one session's players.
pub struct NorayTalk {
    server: SocketAddr,
    registrar: SocketAddr,
    punches: bool,
    players: Vec<Player>,
    asked_ns: u64,
    /// Pairs to be introduced, the present one last.
    pairs: Vec<(usize, usize)>,
}

impl NorayTalk {
    /// A talk of so many players, who are introduced for punching or relayed.
    pub fn new(server: SocketAddr, registrar: SocketAddr, punches: bool, members: usize) -> Self {
        let pairs = (0..members).flat_map(|a| (a + 1..members).map(move |b| (a, b)));
        Self {
            server,
            registrar,
            punches,
            players: (0..members).map(|_| Player::default()).collect(),
            asked_ns: 0,
            pairs: pairs.collect(),
        }
    }

    /// Writes and reads what there is of player `m`.
    fn look(&mut self, m: usize, now: Now, ways: &mut Ways, out: &mut Outbox) {
        let player = &mut self.players[m];
        let Some(stream) = &mut player.stream else {
            return;
        };
        let is_idle = self.pairs.is_empty();
        player.look = now.millis() + if is_idle { LOOK_IDLE_MS } else { LOOK_MS };
        if let Err(error) = exchange(stream, &mut player.outgoing, &mut player.inbox) {
            player.stream = None;
            out.fail(format!("noray's connection: {error}"));
            return;
        }
        while let Some(line) = next_line(&mut self.players[m].inbox) {
            self.hear_line(m, &line, now, ways, out);
        }
    }

    fn hear_line(&mut self, m: usize, line: &str, now: Now, ways: &mut Ways, out: &mut Outbox) {
        let (command, data) = line.split_once(' ').unwrap_or((line, ""));
        let pair = self.pairs.last().copied();
        let other = pair.and_then(|(a, b)| match m {
            _ if m == a => Some(b),
            _ if m == b => Some(a),
            _ => None,
        });
        let shown = match command {
            "set-oid" => {
                self.players[m].oid = data.to_owned();
                return;
            }
            "set-pid" => {
                self.players[m].pid = data.to_owned();
                self.show_address(m, now, out);
                return;
            }
            "connect" => data.parse().ok(),
            "connect-relay" => {
                let port = data.parse().ok();
                port.map(|port| SocketAddr::new(self.server.ip(), port))
            }
            "error" => {
                out.fail(data);
                return;
            }
            // netfox ignores what it does not know.
            _ => return,
        };
        match (other, shown) {
            (Some(other), Some(at)) => ways.show(m, other, at),
            _ => out.fail("an introduction that nobody can read"),
        }
        if let Some((a, b)) = pair
            && ways.shown(a, b).is_some()
            && ways.shown(b, a).is_some()
        {
            self.pairs.pop();
            self.introduce(now, ways, out);
        }
    }

    /// The secret id, from the socket that plays.
    fn show_address(&mut self, m: usize, now: Now, out: &mut Outbox) {
        let player = &mut self.players[m];
        player.again = now.millis() + AGAIN_MS;
        out.send(m, self.registrar, player.pid.as_bytes());
    }

    /// Asks for the next pair.
    fn introduce(&mut self, now: Now, ways: &mut Ways, out: &mut Outbox) {
        let Some(&(a, b)) = self.pairs.last() else {
            return;
        };
        let command = if self.punches {
            "connect"
        } else {
            "connect-relay"
        };
        let line = format!("{command} {}\n", self.players[a].oid);
        self.players[b].outgoing.extend_from_slice(line.as_bytes());
        self.look(b, now, ways, out);
    }

    fn is_showing(&self, m: usize) -> bool {
        let player = &self.players[m];
        !player.pid.is_empty() && !player.is_registered
    }
}

impl Talk for NorayTalk {
    fn begin(&mut self, asked_ns: u64, now: Now, ways: &mut Ways, out: &mut Outbox) {
        self.asked_ns = asked_ns;
        for m in 0..self.players.len() {
            match connect(ways.member(m), self.server) {
                Ok(stream) => self.players[m].stream = Some(stream),
                Err(error) => {
                    out.fail(format!("noray's connection: {error}"));
                    return;
                }
            }
            self.players[m].outgoing = b"register-host\n".to_vec();
            self.look(m, now, ways, out);
        }
    }

    fn hear(&mut self, m: usize, now: Now, told: Told<'_>, ways: &mut Ways, out: &mut Outbox) {
        if told.from != self.registrar || self.players[m].is_registered {
            return;
        }
        if told.bytes != b"OK" {
            out.fail(String::from_utf8_lossy(told.bytes));
            return;
        }
        self.players[m].is_registered = true;
        out.step(match m {
            0 => Step::Hosted(self.asked_ns),
            _ => Step::Joined(self.asked_ns),
        });
        if self.players.iter().all(|player| player.is_registered) {
            self.introduce(now, ways, out);
        }
    }

    fn on_time(&mut self, m: usize, now: Now, ways: &mut Ways, out: &mut Outbox) {
        if now.millis() >= self.players[m].look {
            self.look(m, now, ways, out);
        }
        if self.is_showing(m) && now.millis() >= self.players[m].again {
            self.show_address(m, now, out);
        }
    }

    fn next_time(&self, m: usize, _: bool) -> Option<Millis> {
        let player = &self.players[m];
        let again = self.is_showing(m).then_some(player.again);
        let look = player.stream.as_ref().map(|_| player.look);
        look.into_iter().chain(again).min()
    }

    /// The server forgets a player whose connection ends.
    fn close(&mut self, _: Now, _: &mut Outbox) {
        for player in &mut self.players {
            player.stream = None;
        }
    }
}

/// A connection from the member's address, which need not be there yet when this returns (EINPROGRESS, connect(2)).
fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(EINPROGRESS) => Err(error),
        _ => Ok(socket.into()),
    }
}

const EINPROGRESS: i32 = rustix::io::Errno::INPROGRESS.raw_os_error();

/// Writes what the kernel takes and reads what it has.
fn exchange(stream: &mut TcpStream, outgoing: &mut Vec<u8>, inbox: &mut Vec<u8>) -> io::Result<()> {
    // A connection that is not there yet is one that would block.
    let is_later = |error: &io::Error| {
        matches!(
            error.kind(),
            ErrorKind::WouldBlock | ErrorKind::Interrupted | ErrorKind::NotConnected
        )
    };
    if !outgoing.is_empty() {
        match stream.write(outgoing) {
            Ok(len) => drop(outgoing.drain(..len)),
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    let mut piece = [0; 1024];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(len) if inbox.len() + len <= LINES_MAX => inbox.extend_from_slice(&piece[..len]),
            Ok(_) => return Err(io::Error::other("a line without an end")),
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

/// Takes the first line, if it is there to its end.
fn next_line(inbox: &mut Vec<u8>) -> Option<String> {
    let end = inbox.iter().position(|byte| *byte == b'\n')?;
    let line: Vec<u8> = inbox.drain(..=end).collect();
    Some(String::from_utf8_lossy(&line[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_when_they_are_whole() {
        let mut inbox = b"set-oid a\nset-pid b\nconn".to_vec();
        assert_eq!(next_line(&mut inbox).as_deref(), Some("set-oid a"));
        assert_eq!(next_line(&mut inbox).as_deref(), Some("set-pid b"));
        assert_eq!(next_line(&mut inbox), None);
        assert_eq!(inbox, b"conn");
    }
}
