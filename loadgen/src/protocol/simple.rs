//! The server talk of simple-hole-punch as its Godot 4 client has it: each request once a second until it is answered, keepalives of
//! the host until all have found each other.

use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::time::Millis;
use waypost_proto::wire::simple;

use super::introduced::{Talk, Told, Ways};
use super::{Outbox, Step};
use crate::clock::Now;

/// The client's state timer, milliseconds.
const AGAIN_MS: u64 = 1_000;

struct Player {
    asked_ns: u64,
    /// When it says its message again; `None` before it has any.
    again: Option<Millis>,
    is_answered: bool,
}

/// The talk of one session's players.
pub struct SimpleTalk {
    server: SocketAddr,
    id: String,
    players: Vec<Player>,
    /// LAN keys, by which the host is told who has come.
    keys: Vec<String>,
}

impl SimpleTalk {
    /// A talk of players whose sockets have these addresses.
    pub fn new(server: SocketAddr, members: &[SocketAddr]) -> Self {
        let key = |at: &SocketAddr| {
            let key = simple::key(Addr::new(*at)).unwrap_or_default();
            String::from_utf8_lossy(&key).into_owned()
        };
        let player = |_: &SocketAddr| Player {
            asked_ns: 0,
            again: None,
            is_answered: false,
        };
        Self {
            server,
            id: String::new(),
            players: members.iter().map(player).collect(),
            keys: members.iter().map(key).collect(),
        }
    }

    fn say(&mut self, m: usize, now: Now, ways: &Ways, out: &mut Outbox) {
        let (key, id) = (&self.keys[m], &self.id);
        let player = &mut self.players[m];
        player.again = Some(now.millis() + AGAIN_MS);
        let text = match (m, player.is_answered) {
            (0, false) => format!("HS:{key}"),
            (0, true) => format!("KA:{id}"),
            (_, false) => format!("JS:{key}:{id}"),
            // The host was not told. A request that comes again is told again.
            (_, true) if ways.shown(0, m).is_none() => format!("JS:{key}:{id}"),
            (_, true) => {
                player.again = None;
                return;
            }
        };
        out.send(m, self.server, text.as_bytes());
    }

    fn answered(&mut self, m: usize, out: &mut Outbox) -> bool {
        let player = &mut self.players[m];
        let is_first = !player.is_answered;
        player.is_answered = true;
        if is_first {
            let asked_ns = player.asked_ns;
            out.step(match m {
                0 => Step::Hosted(asked_ns),
                _ => Step::Joined(asked_ns),
            });
        }
        is_first
    }
}

impl Talk for SimpleTalk {
    fn begin(&mut self, asked_ns: u64, now: Now, ways: &mut Ways, out: &mut Outbox) {
        self.players[0].asked_ns = asked_ns;
        self.say(0, now, ways, out);
    }

    fn hear(&mut self, m: usize, now: Now, told: Told<'_>, ways: &mut Ways, out: &mut Outbox) {
        if told.from != self.server {
            return;
        }
        let text = String::from_utf8_lossy(told.bytes);
        let mut fields = text.split(':');
        let kind = fields.next().unwrap_or_default();
        let fields: Vec<&str> = fields.collect();
        let address = |key: &str| simple::addr(key.as_bytes()).map(Addr::to_socket_addr);
        match (kind, &fields[..]) {
            ("HR", [_, id]) if m == 0 => {
                self.id = (*id).to_owned();
                if self.answered(m, out) {
                    for m in 1..self.players.len() {
                        self.players[m].asked_ns = now.ns;
                        self.say(m, now, ways, out);
                    }
                }
            }
            ("JR", [_, host, _]) if m > 0 => {
                self.answered(m, out);
                match address(host) {
                    Some(host) => ways.show(m, 0, host),
                    None => out.fail("a key that nobody can read"),
                }
            }
            ("NJ", [joiner, lan]) if m == 0 => {
                let number = self.keys.iter().position(|key| key == lan);
                if let (Some(number), Some(joiner)) = (number, address(joiner)) {
                    ways.show(0, number, joiner);
                }
            }
            ("BK", _) => out.fail("BK"),
            _ => {}
        }
    }

    fn on_time(&mut self, m: usize, now: Now, ways: &mut Ways, out: &mut Outbox) {
        if self.players[m].again.is_some_and(|at| now.millis() >= at) {
            self.say(m, now, ways, out);
        }
    }

    fn next_time(&self, m: usize, is_open: bool) -> Option<Millis> {
        self.players[m].again.filter(|_| !is_open)
    }

    fn close(&mut self, _: Now, out: &mut Outbox) {
        out.send(0, self.server, format!("CS:{}", self.id).as_bytes());
    }
}
