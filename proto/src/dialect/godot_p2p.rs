//! GodotP2P: games by the name of the player who serves them; who joins and who serves are told each other's addresses.
//!
//! It does what its own handshake server does, silence included. What is different: a player drops nobody but itself; a
//! game is not listed for longer than an hour without a refresh; names and addresses have a length.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ahash::RandomState;

use super::house::House;
use super::relay::Shown;
use super::{Asked, Desk, Dialect, DialectTimer, Seen};
use crate::lobby::Slab;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::godot_p2p::{Answer, Field, Listed, Packet};

/// Games are looked through this often for those that have expired.
const TICK_MS: u64 = 1_000;
/// Longest time that a game is listed without a refresh, in seconds.
const EXPIRY_SECS_MAX: f64 = 3_600.0;
/// How long nobody expires after this shard has stood still: players refresh every 15 s.
const EXCUSED_MS: u64 = 20_000;
/// Longest name, password and address.
const TEXT_LEN_MAX: usize = 128;
/// Longest list of games, in bytes of its datagram.
const LIST_LEN_MAX: usize = 32_768;

struct Game {
    name: Box<str>,
    password: Box<str>,
    player: Seen,
    /// Both as JSON.
    local_address: Box<str>,
    password_required: Box<str>,
    expires: Millis,
    /// Its place in the order of registration.
    place: u64,
}

/// All games.
pub(super) struct GodotP2p {
    games: Slab<Game>,
    by_name: HashMap<Box<str>, u32, RandomState>,
    by_expiry: BTreeSet<(Millis, u32)>,
    by_place: BTreeMap<u64, u32>,
    next_place: u64,
    has_tick: bool,
    excused_until: Millis,
}

impl GodotP2p {
    pub fn new(games_max: usize, hasher: &RandomState) -> Self {
        Self {
            games: Slab::new(games_max),
            by_name: HashMap::with_hasher(hasher.clone()),
            by_expiry: BTreeSet::new(),
            by_place: BTreeMap::new(),
            next_place: 0,
            has_tick: false,
            excused_until: Millis(0),
        }
    }

    pub fn session_count(&self) -> usize {
        self.games.len()
    }

    pub fn excuse_silence(&mut self, now: Millis) {
        self.excused_until = now + EXCUSED_MS;
    }

    /// Serves a datagram. Whatever is wrong with it, nothing is answered.
    pub fn handle(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
    ) -> Result<(), Counter> {
        let packet = Packet::parse(asked.datagram).ok_or(Counter::DropParse)?;
        match packet.kind() {
            "registering-server" => self.register(house, desk, asked, &packet),
            "refreshing-server-registration" => self.refresh(house, desk, asked, &packet),
            "requesting-server-list" => self.list(house, desk, asked, &packet),
            "requesting-to-join-server" => self.join(house, desk, asked, &packet),
            "drop-me" => self.drop(house, &packet, desk),
            _ => Err(Counter::DropMethod),
        }
    }

    fn find(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The game of the sender, if the tag proves that it is.
    fn own_game(&self, desk: &mut Desk<'_>, packet: &Packet<'_>) -> Result<u32, Counter> {
        let sender = packet.sender().ok_or(Counter::DropParse)?;
        let index = self.find(sender).ok_or(Counter::DropTag)?;
        if packet.verify(&self.games[index].password) {
            Ok(index)
        } else {
            desk.counters.count(Counter::SeatFailures);
            Err(Counter::DropTag)
        }
    }

    fn register(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let name = packet.sender().and_then(short).ok_or(Counter::DropParse)?;
        let password = password(packet)?;
        let local_address = json(packet, "local-address")?;
        let password_required = json(packet, "password-required")?;
        let expires = expiry(desk.now, packet)?;
        let index = match self.find(name) {
            Some(index) if self.games[index].player.addr != asked.source => {
                let to = (Some(name), asked.seen(), password);
                error(desk, asked, to, "server already exists");
                return Ok(());
            }
            Some(index) => index,
            None => self.create(house, desk, asked, name)?,
        };
        let game = &mut self.games[index];
        game.password = password.into();
        game.player = asked.seen();
        game.local_address = local_address.into();
        game.password_required = password_required.into();
        self.set_expiry(index, expires);
        self.set_tick(desk);
        answer(
            house,
            desk,
            (Some(name), asked.seen(), password),
            asked.datagram.len(),
            "confirming-registration",
            &[],
        );
        Ok(())
    }

    /// A game of which only the name is known yet.
    fn create(
        &mut self,
        house: &mut House,
        desk: &Desk<'_>,
        asked: Asked<'_>,
        name: &str,
    ) -> Result<u32, Counter> {
        if self.games.is_full() {
            return Err(Counter::DropCapacity);
        }
        house.add_session(desk, asked.source)?;
        self.next_place += 1;
        let game = Game {
            name: name.into(),
            password: Box::default(),
            player: asked.seen(),
            local_address: Box::default(),
            password_required: Box::default(),
            expires: desk.now,
            place: self.next_place,
        };
        let index = self.games.insert(game).expect("there was room");
        self.by_name.insert(name.into(), index);
        self.by_place.insert(self.next_place, index);
        Ok(index)
    }

    fn set_expiry(&mut self, index: u32, expires: Millis) {
        let game = &mut self.games[index];
        self.by_expiry.remove(&(game.expires, index));
        game.expires = expires;
        self.by_expiry.insert((expires, index));
    }

    fn refresh(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let index = self.own_game(desk, packet)?;
        let expires = expiry(desk.now, packet)?;
        self.set_expiry(index, expires);
        let game = &self.games[index];
        answer(
            house,
            desk,
            (Some(&game.name), asked.seen(), &game.password),
            asked.datagram.len(),
            "confirming-registration-refresh",
            &[],
        );
        Ok(())
    }

    fn list(
        &self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let password = password(packet)?;
        let mut len = 0;
        let games: Vec<Listed<'_>> = self
            .by_place
            .values()
            .map(|&index| &self.games[index])
            .map(|game| Listed {
                name: &game.name,
                password_required: &game.password_required,
            })
            .take_while(|game| {
                // A character is at most six bytes long when it is written.
                len += 6 * game.name.chars().count() + game.password_required.len() + 40;
                len <= LIST_LEN_MAX
            })
            .collect();
        answer(
            house,
            desk,
            (packet.sender(), asked.seen(), password),
            asked.datagram.len(),
            "providing-server-list",
            &[("servers", Field::Games(&games))],
        );
        Ok(())
    }

    fn join(
        &self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        packet: &Packet<'_>,
    ) -> Result<(), Counter> {
        let sender = packet.sender().and_then(short).ok_or(Counter::DropParse)?;
        let password = password(packet)?;
        let local_address = json(packet, "local-address")?;
        let wanted = packet.text("server-name").ok_or(Counter::DropParse)?;
        let joiner = (Some(sender), asked.seen(), password);
        let Some(index) = self.find(wanted) else {
            error(desk, asked, joiner, &format!("{wanted} not found"));
            return Ok(());
        };
        let game = &self.games[index];
        let relays = &mut house.relays;
        let pair = (game.player, asked.seen());
        let (to_server, to_joiner) = match relays.arrange(desk, Dialect::GodotP2p, asked, pair) {
            Shown::Direct => (asked.source, game.player.addr),
            Shown::Relayed(to_server, to_joiner) => (to_server, to_joiner),
            Shown::Later => return Ok(()),
        };
        let mut inform = |to, asked_len, name, global, local| {
            answer(
                house,
                desk,
                to,
                asked_len,
                "providing-peer-handshake-info",
                &[
                    ("peer-name", Field::Text(name)),
                    ("global-address", Field::Address(global)),
                    ("local-address", Field::Json(local)),
                ],
            );
        };
        let server = (Some(&*game.name), game.player, &*game.password);
        inform(server, 0, sender, to_server, local_address);
        let len = asked.datagram.len();
        inform(joiner, len, &game.name, to_joiner, &game.local_address);
        Ok(())
    }

    fn drop(
        &mut self,
        house: &mut House,
        packet: &Packet<'_>,
        desk: &mut Desk<'_>,
    ) -> Result<(), Counter> {
        let index = self.own_game(desk, packet)?;
        if packet.text("name") != packet.sender() {
            return Err(Counter::DropTag);
        }
        self.unlist(house, index);
        Ok(())
    }

    fn unlist(&mut self, house: &mut House, index: u32) {
        let game = self.games.remove(index);
        self.by_name.remove(&game.name);
        self.by_place.remove(&game.place);
        self.by_expiry.remove(&(game.expires, index));
        house.remove_session(game.player.addr);
    }

    fn set_tick(&mut self, desk: &mut Desk<'_>) {
        if !self.has_tick {
            self.has_tick = true;
            desk.set_timer(TICK_MS - desk.now.0 % TICK_MS, DialectTimer::GodotTick);
        }
    }

    /// Removes games that have expired.
    pub fn handle_tick(&mut self, house: &mut House, desk: &mut Desk<'_>) {
        self.has_tick = false;
        while let Some(&(expires, index)) = self.by_expiry.first() {
            if expires > desk.now || self.excused_until > desk.now {
                break;
            }
            self.unlist(house, index);
        }
        if !self.by_expiry.is_empty() {
            self.set_tick(desk);
        }
    }

    /// Asserts that the tables agree; returns how many games there are.
    pub fn assert_consistent(&self) -> usize {
        let count = self.games.len();
        assert_eq!(
            [
                self.by_name.len(),
                self.by_place.len(),
                self.by_expiry.len()
            ],
            [count; 3]
        );
        for (name, &index) in &self.by_name {
            let game = &self.games[index];
            assert!(game.name == *name && self.by_place[&game.place] == index);
            assert!(self.by_expiry.contains(&(game.expires, index)));
        }
        assert!(count == 0 || self.has_tick);
        count
    }
}

fn short(text: &str) -> Option<&str> {
    (text.len() <= TEXT_LEN_MAX).then_some(text)
}

/// The password in a packet, if its tag is right under it.
fn password<'a>(packet: &'a Packet<'_>) -> Result<&'a str, Counter> {
    let password = packet.text("password").and_then(short);
    let password = password.ok_or(Counter::DropParse)?;
    if packet.verify(password) {
        Ok(password)
    } else {
        Err(Counter::DropTag)
    }
}

/// A field that is handed on as it is.
fn json<'a>(packet: &Packet<'a>, key: &str) -> Result<&'a str, Counter> {
    let json = packet.json(key).and_then(short);
    json.ok_or(Counter::DropParse)
}

/// When a game expires that was registered or refreshed now. Upstream counts ticks: the first one comes within a second.
fn expiry(now: Millis, packet: &Packet<'_>) -> Result<Millis, Counter> {
    let secs = packet.number("seconds-before-expiry");
    let secs = secs.ok_or(Counter::DropParse)?;
    let ticks = secs.clamp(1.0, EXPIRY_SECS_MAX).ceil();
    Ok(now.plus_secs(ticks as u32 - 1))
}

type To<'a> = (Option<&'a str>, Seen, &'a str);

fn answer(
    house: &mut House,
    desk: &mut Desk<'_>,
    (to_name, to, password): To<'_>,
    asked_len: usize,
    kind: &str,
    fields: &[(&str, Field<'_>)],
) {
    house.answer(desk, to, asked_len, |out| {
        let answer = Answer {
            kind,
            to_name,
            to: to.addr,
            password,
            fields,
        };
        answer.write(out);
    });
}

fn error(desk: &mut Desk<'_>, asked: Asked<'_>, (to_name, to, password): To<'_>, message: &str) {
    House::error(desk, Dialect::GodotP2p, to, asked.datagram.len(), |out| {
        let answer = Answer {
            kind: "server-error",
            to_name,
            to: to.addr,
            password,
            fields: &[("message", Field::Text(message))],
        };
        answer.write(out);
    });
}
