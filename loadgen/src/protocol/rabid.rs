//! The server talk of Rabid Hole Punch as its Godot 3 plugin has it: the message of the moment every half second, an error ends the
//! session, and the host starts it when all are there.

use std::net::SocketAddr;

use waypost_proto::time::Millis;

use super::introduced::{Talk, Told, Ways};
use super::{Outbox, Step, name};
use crate::clock::Now;

/// Most members of a session.
pub const MEMBERS_MAX: u8 = 12;
/// The plugin repeats itself this often, milliseconds.
const AGAIN_MS: u64 = 500;
/// Characters of a session's name.
const NAME_LEN: usize = 10;

/// What a player is at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// It waits for the session to be there.
    Idle,
    /// It asks for a session or a seat.
    Asking,
    /// It is in the session.
    Pinging,
    /// The host wants the session to start.
    Starting,
    /// It was told of the others.
    Done,
}

struct Player {
    stage: Stage,
    asked_ns: u64,
    again: Millis,
}

/// The talk of one session's players.
pub struct RabidTalk {
    server: SocketAddr,
    session: String,
    players: Vec<Player>,
}

impl RabidTalk {
    /// A talk of so many players about a session of their own.
    pub fn new(server: SocketAddr, members: usize, seed: u64) -> Self {
        let player = |_| Player {
            stage: Stage::Idle,
            asked_ns: 0,
            again: Millis(u64::MAX),
        };
        Self {
            server,
            session: name(seed, NAME_LEN),
            players: (0..members).map(player).collect(),
        }
    }

    fn say(&mut self, m: usize, now: Now, out: &mut Outbox) {
        let (session, count) = (&self.session, self.players.len());
        let text = match self.players[m].stage {
            Stage::Asking if m == 0 => format!("h:{session}:P0:{count}"),
            Stage::Asking => format!("c:{session}:P{m}"),
            Stage::Pinging => format!("p:{session}:P{m}"),
            Stage::Starting => format!("s:{session}:P{m}"),
            Stage::Idle | Stage::Done => return,
        };
        out.send(m, self.server, text.as_bytes());
        self.players[m].again = now.millis() + AGAIN_MS;
    }

    fn ask(&mut self, m: usize, asked_ns: u64, now: Now, out: &mut Outbox) {
        self.players[m].stage = Stage::Asking;
        self.players[m].asked_ns = asked_ns;
        self.say(m, now, out);
    }

    /// The list of players has come.
    fn hear_list(&mut self, m: usize, text: &str, now: Now, out: &mut Outbox) {
        let player = &mut self.players[m];
        if player.stage == Stage::Asking {
            player.stage = Stage::Pinging;
            player.again = now.millis() + AGAIN_MS;
            let asked_ns = player.asked_ns;
            out.step(match m {
                0 => Step::Hosted(asked_ns),
                _ => Step::Joined(asked_ns),
            });
            if m == 0 {
                for m in 1..self.players.len() {
                    self.ask(m, now.ns, now, out);
                }
            }
        }
        let is_full = text.split(':').count() == self.players.len() + 1;
        if m == 0 && is_full && self.players[0].stage == Stage::Pinging {
            self.players[0].stage = Stage::Starting;
            self.say(0, now, out);
        }
    }

    /// `s:<own port>:<name>:<ip>:<port>;...`
    fn hear_start(&mut self, m: usize, text: &str, ways: &mut Ways) -> Option<()> {
        let (_, others) = text.strip_prefix("s:")?.split_once(':')?;
        for other in others.split(';') {
            let (name, address) = other.split_once(':')?;
            let number: usize = name.strip_prefix('P')?.parse().ok()?;
            if number < self.players.len() {
                ways.show(m, number, address.parse().ok()?);
            }
        }
        self.players[m].stage = Stage::Done;
        Some(())
    }
}

impl Talk for RabidTalk {
    fn begin(&mut self, asked_ns: u64, now: Now, _: &mut Ways, out: &mut Outbox) {
        self.ask(0, asked_ns, now, out);
    }

    fn hear(&mut self, m: usize, now: Now, told: Told<'_>, ways: &mut Ways, out: &mut Outbox) {
        let text = String::from_utf8_lossy(told.bytes);
        if told.from != self.server || self.players[m].stage == Stage::Done {
            return;
        }
        if text.starts_with("i:") {
            self.hear_list(m, &text, now, out);
        } else if text.starts_with("s:") {
            if self.hear_start(m, &text, ways).is_none() {
                out.fail("a start that nobody can read");
            }
        } else if let Some(error) = text.strip_prefix("error:") {
            match error {
                "non_host_player" | "only_one_player_in_session" => {
                    self.players[m].stage = Stage::Pinging;
                }
                _ => out.fail(error),
            }
        }
    }

    fn on_time(&mut self, m: usize, now: Now, _: &mut Ways, out: &mut Outbox) {
        if now.millis() >= self.players[m].again {
            self.say(m, now, out);
        }
    }

    fn next_time(&self, m: usize, _: bool) -> Option<Millis> {
        let player = &self.players[m];
        (!matches!(player.stage, Stage::Idle | Stage::Done)).then_some(player.again)
    }

    /// The server forgets a session that has started.
    fn close(&mut self, _: Now, _: &mut Outbox) {}
}
