//! The server talk of GodotP2P as its Godot 3 script has it: JSON with a tag, each packet up to five times at intervals of a second, a
//! registration that is refreshed every 15 seconds.

use std::net::SocketAddr;

use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use waypost_proto::time::Millis;

use super::introduced::{Talk, Told, Ways};
use super::{Outbox, Step, name};
use crate::clock::Now;

/// The script waits this long for a reply, milliseconds, and tries so many times.
const AGAIN_MS: u64 = 1_000;
const TRIES: u32 = 5;
/// A registration is valid for so many seconds, and refreshed this often, milliseconds.
const VALID_SECS: u32 = 60;
const REFRESH_MS: u64 = 15_000;
/// Characters of a password.
const PASSWORD_LEN: usize = 10;

struct Player {
    name: String,
    password: String,
    asked_ns: u64,
    tries: u32,
    /// When the packet is sent again.
    again: Option<Millis>,
    is_answered: bool,
}

/// The talk of one session's players.
pub struct GodotTalk {
    server: SocketAddr,
    players: Vec<Player>,
    refresh: Millis,
}

impl GodotTalk {
    /// A talk of so many players.
    pub fn new(server: SocketAddr, members: usize, seed: u64) -> Self {
        let player = |m: usize| Player {
            name: format!("{}-{m}", name(seed, PASSWORD_LEN)),
            password: name(seed.rotate_left(17) ^ m as u64, PASSWORD_LEN),
            asked_ns: 0,
            tries: 0,
            again: None,
            is_answered: false,
        };
        Self {
            server,
            players: (0..members).map(player).collect(),
            refresh: Millis(u64::MAX),
        }
    }

    fn say(&mut self, m: usize, now: Now, ways: &Ways, out: &mut Outbox) {
        let host = self.players[0].name.clone();
        let player = &mut self.players[m];
        if player.tries >= TRIES {
            player.again = None;
            out.fail("unable to communicate with handshake server");
            return;
        }
        player.tries += 1;
        player.again = Some(now.millis() + AGAIN_MS);
        let local = address(ways.member(m));
        let (kind, fields) = if m == 0 {
            let fields = json!({
                "local-address": local, "seconds-before-expiry": VALID_SECS,
                "password": player.password, "password-required": false,
            });
            ("registering-server", fields)
        } else {
            let fields = json!({
                "server-name": host, "local-address": local, "password": player.password,
            });
            ("requesting-to-join-server", fields)
        };
        out.send(m, self.server, &packet(player, self.server, kind, fields));
    }

    /// What a later packet of the host says: the server knows the password by now.
    fn say_later(&self, kind: &str, fields: Value, out: &mut Outbox) {
        let packet = packet(&self.players[0], self.server, kind, fields);
        out.send(0, self.server, &packet);
    }

    fn answered(&mut self, m: usize, out: &mut Outbox) -> bool {
        let player = &mut self.players[m];
        let is_first = !player.is_answered;
        player.is_answered = true;
        player.again = None;
        if is_first {
            let asked_ns = player.asked_ns;
            out.step(match m {
                0 => Step::Hosted(asked_ns),
                _ => Step::Joined(asked_ns),
            });
        }
        is_first
    }

    /// The host is listed: the others join.
    fn registered(&mut self, now: Now, ways: &Ways, out: &mut Outbox) {
        if !self.answered(0, out) {
            return;
        }
        self.refresh = now.millis() + REFRESH_MS;
        for m in 1..self.players.len() {
            self.players[m].asked_ns = now.ns;
            self.say(m, now, ways, out);
        }
    }

    /// `providing-peer-handshake-info`.
    fn show(&self, m: usize, packet: &Map<String, Value>, ways: &mut Ways) -> Option<()> {
        let peer = packet.get("peer-name")?.as_str()?;
        let at = packet.get("global-address")?.as_array()?;
        let (ip, port) = (at.first()?.as_str()?, at.get(1)?.as_f64()?);
        let other = self.players.iter().position(|other| other.name == peer)?;
        ways.show(m, other, SocketAddr::new(ip.parse().ok()?, port as u16));
        Some(())
    }
}

impl Talk for GodotTalk {
    fn begin(&mut self, asked_ns: u64, now: Now, ways: &mut Ways, out: &mut Outbox) {
        self.players[0].asked_ns = asked_ns;
        self.say(0, now, ways, out);
    }

    fn hear(&mut self, m: usize, now: Now, told: Told<'_>, ways: &mut Ways, out: &mut Outbox) {
        let packet: Option<Map<String, Value>> = serde_json::from_slice(told.bytes).ok();
        let Some(packet) = packet.filter(|_| told.from == self.server) else {
            return;
        };
        let text = |key: &str| packet.get(key).and_then(Value::as_str).unwrap_or_default();
        if text(TAG) != tag(&packet, &self.players[m].password) {
            out.fail("an answer with a wrong tag");
            return;
        }
        match text("__type") {
            "confirming-registration" if m == 0 => self.registered(now, ways, out),
            "providing-peer-handshake-info" => {
                if self.show(m, &packet, ways).is_none() {
                    out.fail("handshake info that nobody can read");
                } else if m > 0 {
                    self.answered(m, out);
                }
            }
            "server-error" => out.fail(text("message")),
            _ => {}
        }
    }

    fn on_time(&mut self, m: usize, now: Now, ways: &mut Ways, out: &mut Outbox) {
        if self.players[m].again.is_some_and(|at| now.millis() >= at) {
            self.say(m, now, ways, out);
        }
        let player = &mut self.players[m];
        if m > 0 && player.is_answered && player.again.is_none() && ways.shown(0, m).is_none() {
            // The host was not told. A request that comes again is told again.
            player.again = Some(now.millis() + AGAIN_MS);
        }
        if m == 0 && now.millis() >= self.refresh {
            self.refresh = now.millis() + REFRESH_MS;
            let fields = json!({ "seconds-before-expiry": VALID_SECS });
            self.say_later("refreshing-server-registration", fields, out);
        }
    }

    fn next_time(&self, m: usize, _: bool) -> Option<Millis> {
        let refresh = (m == 0).then_some(self.refresh);
        self.players[m].again.into_iter().chain(refresh).min()
    }

    fn close(&mut self, _: Now, out: &mut Outbox) {
        let own = json!({ "name": self.players[0].name });
        self.say_later("drop-me", own, out);
    }
}

const TAG: &str = "__hash-string";

fn address(at: SocketAddr) -> Value {
    json!([at.ip().to_string(), at.port()])
}

/// A packet of a player, compact and with sorted keys as Godot writes it.
fn packet(player: &Player, server: SocketAddr, kind: &str, fields: Value) -> Vec<u8> {
    let mut packet = match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    let envelope = [
        ("__type", kind.into()),
        ("__sender-name", player.name.as_str().into()),
        ("__destination-name", "_HANDSHAKE_SERVER".into()),
        ("__destination-address", address(server)),
    ];
    packet.extend(envelope.map(|(key, value)| (key.to_owned(), value)));
    let tag = tag(&packet, &player.password);
    packet.insert(TAG.to_owned(), tag.into());
    Value::Object(packet).to_string().into_bytes()
}

/// SHA-256 of the sorted keys and then the sorted string values, with the password and without the tag.
fn tag(packet: &Map<String, Value>, password: &str) -> String {
    let others = packet
        .iter()
        .filter(|(key, _)| !matches!(key.as_str(), TAG | "password"));
    let mut keys: Vec<&str> = others.clone().map(|(key, _)| key.as_str()).collect();
    let mut values: Vec<&str> = others.filter_map(|(_, value)| value.as_str()).collect();
    keys.push("password");
    values.push(password);
    keys.sort_unstable();
    values.sort_unstable();
    let digest = Sha256::digest(keys.concat() + &values.concat());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use waypost_proto::wire::godot_p2p::Packet;

    #[test]
    fn packets_have_the_tag_that_servers_check() {
        let talk = GodotTalk::new("127.0.0.1:5160".parse().unwrap(), 2, 7);
        let player = &talk.players[1];
        let fields = json!({ "server-name": "game", "password": player.password });
        let bytes = packet(player, talk.server, "requesting-to-join-server", fields);
        let read = Packet::parse(&bytes).unwrap();
        assert_eq!(read.sender(), Some(player.name.as_str()));
        assert!(read.verify(&player.password) && !read.verify("other"));
        assert_ne!(talk.players[0].password, player.password);
    }
}
