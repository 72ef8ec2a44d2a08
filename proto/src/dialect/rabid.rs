//! Rabid Hole Punch: sessions by name, joined by name and perhaps a password; the host starts, and everybody is told
//! everybody's address.
//!
//! It does what its own server does, checks in the same order and answers with the same words. What is different: a player's
//! requests count only if they come from the address it joined from; who joins twice hears the list although the session is
//! full; who has confirmed the start stays in the lists of the others; an error much longer than its request is not sent.

use std::collections::{HashMap, VecDeque};

use ahash::RandomState;
use subtle::ConstantTimeEq;

use super::house::House;
use super::relay::Shown;
use super::{Asked, Desk, Dialect, DialectTimer, DialectTimes, Seen};
use crate::addr::Addr;
use crate::lobby::Slab;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::rabid::{ErrorWord, NotRequest, Request, Word, write_list, write_start};

/// Between two looks for silent players.
const SWEEP_MS: u64 = 8_000;
/// A player who was silent for longer is removed at the next look.
const SILENCE_MS: u64 = 5_000;
/// Between two messages with the addresses, and how many there are.
const START_MS: u64 = 100;
const STARTS: u8 = 8;
/// Between two farewells, and how many there are.
const FAREWELL_MS: u64 = 50;
const FAREWELLS: u8 = 3;

struct Player {
    name: Word,
    seen: Seen,
    heard: Millis,
    /// It has the addresses.
    confirmed: bool,
}

enum Stage {
    /// Players come and go.
    Gathering,
    /// Nobody comes or goes; the addresses are being told.
    Starting {
        told: u8,
        /// Which address each player is shown of each other, in rows of the viewer.
        shown: Box<[Addr]>,
    },
}

struct Session {
    uid: u32,
    name: Word,
    password: Option<Word>,
    max: u8,
    /// Who is counted as having made it.
    owner: Addr,
    stage: Stage,
    /// In the order in which they joined: the first is the host.
    players: Vec<Player>,
}

impl Session {
    fn place(&self, name: Word) -> Option<usize> {
        self.players.iter().position(|player| player.name == name)
    }

    fn is_host(&self, addr: Addr) -> bool {
        let host = self.players.first();
        host.is_some_and(|host| host.seen.addr == addr)
    }
}

/// Something that a player who was removed is told again.
struct Farewell {
    due: Millis,
    to: Seen,
    word: ErrorWord,
    left: u8,
}

/// All sessions.
pub(super) struct Rabid {
    times: DialectTimes,
    sessions: Slab<Session>,
    by_name: HashMap<Word, u32, RandomState>,
    /// In the order in which they are due.
    farewells: VecDeque<Farewell>,
    has_farewell_timer: bool,
    /// Nobody counts as silent since before then.
    excused: Millis,
    next_uid: u32,
}

type Outcome = Result<(), ErrorWord>;

impl Rabid {
    pub fn new(sessions_max: usize, times: DialectTimes, hasher: &RandomState) -> Self {
        Self {
            times,
            sessions: Slab::new(sessions_max),
            by_name: HashMap::with_hasher(hasher.clone()),
            farewells: VecDeque::new(),
            has_farewell_timer: false,
            excused: Millis(0),
            next_uid: 0,
        }
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    pub const fn excuse_silence(&mut self, now: Millis) {
        self.excused = now;
    }

    /// Serves a datagram.
    pub fn handle(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
    ) -> Result<(), Counter> {
        let outcome = match Request::parse(asked.datagram) {
            Err(NotRequest::Unknown) => return Err(Counter::DropParse),
            Err(NotRequest::Invalid) => Err(ErrorWord::InvalidRequest),
            Ok(request) => self.serve(house, desk, asked, request)?,
        };
        if let Err(word) = outcome {
            let len = asked.datagram.len();
            House::error(desk, Dialect::Rabid, asked.seen(), len, |out| {
                out.extend_from_slice(word.datagram());
            });
        }
        Ok(())
    }

    fn serve(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        request: Request,
    ) -> Result<Outcome, Counter> {
        Ok(match request {
            Request::Host {
                session,
                player,
                max,
                password,
            } => return self.host(house, desk, asked, (session, player, max, password)),
            Request::Connect {
                session,
                player,
                password,
            } => return self.connect(house, desk, asked, (session, player, password)),
            Request::Ping(session, player) => self.ping(house, desk, asked, session, player),
            Request::Start(session) => self.start(house, desk, asked, session),
            Request::Confirm(session, player) => self.confirm(asked, session, player),
            Request::Kick(session, player) => self.kick(house, desk, asked, session, player),
            Request::Exit(session, player) => self.exit(house, asked, session, player),
        })
    }

    fn find(&self, name: Word) -> Option<u32> {
        self.by_name.get(&name).copied()
    }

    /// A session that players come to and go from.
    fn find_gathering(&self, name: Word) -> Result<u32, ErrorWord> {
        self.find(name)
            .filter(|&index| matches!(self.sessions[index].stage, Stage::Gathering))
            .ok_or(ErrorWord::SessionNonExistent)
    }

    fn host(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        (name, player, max, password): (Word, Word, u8, Option<Word>),
    ) -> Result<Outcome, Counter> {
        if let Some(index) = self.find(name) {
            let session = &self.sessions[index];
            let is_active = matches!(session.stage, Stage::Gathering);
            if !is_active || !session.is_host(asked.source) {
                return Ok(Err(ErrorWord::SessionExists));
            }
            self.answer_list(house, desk, asked, index);
            return Ok(Ok(()));
        }
        if self.sessions.is_full() {
            return Err(Counter::DropCapacity);
        }
        house.add_session(desk, asked.source)?;
        if let Err(full) = house.add_player(desk) {
            house.remove_session(asked.source);
            return Err(full);
        }
        self.next_uid = self.next_uid.wrapping_add(1);
        let uid = self.next_uid;
        let session = Session {
            uid,
            name,
            password,
            max,
            owner: asked.source,
            stage: Stage::Gathering,
            players: vec![Player {
                name: player,
                seen: asked.seen(),
                heard: desk.now,
                confirmed: false,
            }],
        };
        let index = self.sessions.insert(session).expect("there was room");
        self.by_name.insert(name, index);
        desk.set_timer(SWEEP_MS, DialectTimer::RabidSweep(index, uid));
        let DialectTimes {
            rabid_session_ms,
            rabid_sweep_ms,
            ..
        } = self.times;
        let expires = (desk.now.0 + rabid_session_ms) / rabid_sweep_ms * rabid_sweep_ms;
        let after = expires + rabid_sweep_ms - desk.now.0;
        desk.set_timer(after, DialectTimer::RabidExpiry(index, uid));
        self.answer_list(house, desk, asked, index);
        Ok(Ok(()))
    }

    fn connect(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        (name, player, password): (Word, Word, Option<Word>),
    ) -> Result<Outcome, Counter> {
        let index = match self.find_gathering(name) {
            Ok(index) => index,
            Err(word) => return Ok(Err(word)),
        };
        let session = &self.sessions[index];
        if let Some(wanted) = session.password {
            let prefix = asked.source.source_prefix();
            if !house.failures.may_try(desk.now, prefix, name) {
                return Err(Counter::RateLimited);
            }
            desk.counters.count(Counter::PasswordChecks);
            let given = password.map_or(Default::default(), Word::padded);
            if !bool::from(given.ct_eq(&wanted.padded())) {
                house.failures.note(desk.now, prefix, name);
                desk.counters.count(Counter::JoinFailures);
                return Ok(Err(ErrorWord::PasswordMismatch));
            }
        }
        let known = session.place(player);
        if known.is_some_and(|place| session.players[place].seen.addr == asked.source) {
            self.answer_list(house, desk, asked, index);
            return Ok(Ok(()));
        }
        if session.players.len() >= usize::from(session.max) {
            return Ok(Err(ErrorWord::SessionFull));
        }
        if known.is_some() {
            return Ok(Err(ErrorWord::PlayerNameInUse));
        }
        house.add_player(desk)?;
        self.sessions[index].players.push(Player {
            name: player,
            seen: asked.seen(),
            heard: desk.now,
            confirmed: false,
        });
        self.broadcast_list(house, desk, index);
        Ok(Ok(()))
    }

    fn ping(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        name: Word,
        player: Word,
    ) -> Outcome {
        let index = self.find(name).ok_or(ErrorWord::SessionNonExistent)?;
        let session = &mut self.sessions[index];
        let place = session.place(player);
        let place = place.filter(|&place| session.players[place].seen.addr == asked.source);
        if matches!(session.stage, Stage::Starting { .. }) {
            let place = place.ok_or(ErrorWord::SessionNonExistent)?;
            tell_addresses(house, desk, session, place, asked.datagram.len());
            return Ok(());
        }
        let place = place.ok_or(ErrorWord::NonExistentPlayer)?;
        session.players[place].heard = desk.now;
        self.answer_list(house, desk, asked, index);
        Ok(())
    }

    fn start(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        name: Word,
    ) -> Outcome {
        let index = self.find(name).ok_or(ErrorWord::SessionNonExistent)?;
        let session = &mut self.sessions[index];
        if matches!(session.stage, Stage::Starting { .. }) {
            return Ok(());
        }
        if !session.is_host(asked.source) {
            return Err(ErrorWord::NonHostPlayer);
        }
        let count = session.players.len();
        if count == 1 {
            return Err(ErrorWord::OnlyOnePlayerInSession);
        }
        let seen: Vec<Seen> = session.players.iter().map(|player| player.seen).collect();
        let mut shown: Vec<Addr> = seen
            .iter()
            .flat_map(|_| seen.iter().map(|seen| seen.addr))
            .collect();
        let mut is_later = false;
        for a in 0..count {
            for b in a + 1..count {
                let pair = (seen[a], seen[b]);
                let relays = &mut house.relays;
                match relays.arrange(desk, Dialect::Rabid, asked, pair) {
                    Shown::Direct => {}
                    Shown::Relayed(to_a, to_b) => {
                        shown[a * count + b] = to_a;
                        shown[b * count + a] = to_b;
                    }
                    Shown::Later => is_later = true,
                }
            }
        }
        if is_later {
            return Ok(());
        }
        session.stage = Stage::Starting {
            told: 0,
            shown: shown.into(),
        };
        let uid = session.uid;
        self.tell_all(house, desk, index, uid);
        Ok(())
    }

    fn confirm(&mut self, asked: Asked<'_>, name: Word, player: Word) -> Outcome {
        let index = self.find(name).ok_or(ErrorWord::SessionNotStarted)?;
        let session = &mut self.sessions[index];
        if matches!(session.stage, Stage::Gathering) {
            return Err(ErrorWord::SessionNotStarted);
        }
        let place = session.place(player).ok_or(ErrorWord::NonExistentPlayer)?;
        let player = &mut session.players[place];
        if player.seen.addr != asked.source {
            return Err(ErrorWord::NonExistentPlayer);
        }
        player.confirmed = true;
        Ok(())
    }

    fn kick(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        name: Word,
        player: Word,
    ) -> Outcome {
        let index = self.find_gathering(name)?;
        let session = &mut self.sessions[index];
        let place = session.place(player).ok_or(ErrorWord::NonExistentPlayer)?;
        if !session.is_host(asked.source) {
            return Err(ErrorWord::NonHostPlayer);
        }
        let kicked = session.players.remove(place).seen;
        house.remove_players(1);
        tell(house, desk, kicked, ErrorWord::KickedByHost);
        if !self.remove_if_empty(house, index) {
            self.broadcast_list(house, desk, index);
        }
        Ok(())
    }

    fn exit(&mut self, house: &mut House, asked: Asked<'_>, name: Word, player: Word) -> Outcome {
        let index = self.find_gathering(name)?;
        let session = &mut self.sessions[index];
        let place = session.place(player);
        let place = place.filter(|&place| session.players[place].seen.addr == asked.source);
        let place = place.ok_or(ErrorWord::NonExistentPlayer)?;
        session.players.remove(place);
        house.remove_players(1);
        self.remove_if_empty(house, index);
        // The word for success.
        Err(ErrorWord::PlayerExitedSession)
    }

    fn remove_if_empty(&mut self, house: &mut House, index: u32) -> bool {
        let is_empty = self.sessions[index].players.is_empty();
        if is_empty {
            self.remove(house, index);
        }
        is_empty
    }

    fn remove(&mut self, house: &mut House, index: u32) -> Session {
        let session = self.sessions.remove(index);
        self.by_name.remove(&session.name);
        house.remove_players(session.players.len());
        house.remove_session(session.owner);
        session
    }

    fn answer_list(&self, house: &mut House, desk: &mut Desk<'_>, asked: Asked<'_>, index: u32) {
        let players = &self.sessions[index].players;
        house.answer(desk, asked.seen(), asked.datagram.len(), |out| {
            write_list(out, players.iter().map(|player| player.name));
        });
    }

    fn broadcast_list(&self, house: &mut House, desk: &mut Desk<'_>, index: u32) {
        let players = &self.sessions[index].players;
        for to in players {
            house.answer(desk, to.seen, 0, |out| {
                write_list(out, players.iter().map(|player| player.name));
            });
        }
    }

    /// Tells the addresses to everybody who has not confirmed, and once more a little later; after the last time the
    /// session has done its work.
    fn tell_all(&mut self, house: &mut House, desk: &mut Desk<'_>, index: u32, uid: u32) {
        let session = &mut self.sessions[index];
        let Stage::Starting { told, .. } = &mut session.stage else {
            unreachable!("only a session that starts has this timer");
        };
        if *told == STARTS {
            self.remove(house, index);
            return;
        }
        *told += 1;
        for place in 0..session.players.len() {
            if !session.players[place].confirmed {
                tell_addresses(house, desk, session, place, 0);
            }
        }
        desk.set_timer(START_MS, DialectTimer::RabidStart(index, uid));
    }

    /// Lets time pass for one timer.
    pub fn handle_timer(&mut self, house: &mut House, desk: &mut Desk<'_>, timer: DialectTimer) {
        let is_current = |index: u32, uid: u32| {
            let session = self.sessions.get(index);
            session.is_some_and(|session| session.uid == uid)
        };
        match timer {
            DialectTimer::RabidStart(index, uid) if is_current(index, uid) => {
                self.tell_all(house, desk, index, uid);
            }
            DialectTimer::RabidSweep(index, uid) if is_current(index, uid) => {
                self.sweep(house, desk, index, uid);
            }
            DialectTimer::RabidExpiry(index, uid) if is_current(index, uid) => {
                if matches!(self.sessions[index].stage, Stage::Gathering) {
                    for player in self.remove(house, index).players {
                        self.take_leave(house, desk, player.seen, ErrorWord::SessionTimeout);
                    }
                }
            }
            DialectTimer::RabidFarewell => self.repeat_farewells(house, desk),
            _ => {}
        }
    }

    /// Removes those who were silent for too long.
    fn sweep(&mut self, house: &mut House, desk: &mut Desk<'_>, index: u32, uid: u32) {
        let session = &mut self.sessions[index];
        if matches!(session.stage, Stage::Starting { .. }) {
            return;
        }
        let (now, excused) = (desk.now, self.excused);
        let silent: Vec<Seen> = session
            .players
            .extract_if(.., |player| {
                now.since(player.heard.max(excused)) > SILENCE_MS
            })
            .map(|player| player.seen)
            .collect();
        if silent.is_empty() {
            desk.set_timer(SWEEP_MS, DialectTimer::RabidSweep(index, uid));
            return;
        }
        house.remove_players(silent.len());
        for &to in &silent {
            self.take_leave(house, desk, to, ErrorWord::PlayerTimeout);
        }
        if !self.remove_if_empty(house, index) {
            self.broadcast_list(house, desk, index);
            desk.set_timer(SWEEP_MS, DialectTimer::RabidSweep(index, uid));
        }
    }

    /// Tells somebody who was removed why, now and twice again.
    fn take_leave(&mut self, house: &mut House, desk: &mut Desk<'_>, to: Seen, word: ErrorWord) {
        tell(house, desk, to, word);
        self.farewells.push_back(Farewell {
            due: desk.now + FAREWELL_MS,
            to,
            word,
            left: FAREWELLS - 1,
        });
        self.set_farewell_timer(desk);
    }

    fn set_farewell_timer(&mut self, desk: &mut Desk<'_>) {
        if let Some(next) = self.farewells.front().filter(|_| !self.has_farewell_timer) {
            self.has_farewell_timer = true;
            let after = next.due.since(desk.now);
            desk.set_timer(after, DialectTimer::RabidFarewell);
        }
    }

    fn repeat_farewells(&mut self, house: &mut House, desk: &mut Desk<'_>) {
        self.has_farewell_timer = false;
        let now = desk.now;
        let is_due = |farewell: &Farewell| farewell.due <= now;
        while self.farewells.front().is_some_and(is_due) {
            let Some(farewell) = self.farewells.pop_front() else {
                break;
            };
            tell(house, desk, farewell.to, farewell.word);
            if farewell.left > 1 {
                self.farewells.push_back(Farewell {
                    due: desk.now + FAREWELL_MS,
                    left: farewell.left - 1,
                    ..farewell
                });
            }
        }
        self.set_farewell_timer(desk);
    }

    /// Asserts that the tables agree; returns how many sessions there are.
    pub fn assert_consistent(&self) -> usize {
        assert_eq!(self.by_name.len(), self.sessions.len());
        for (name, &index) in &self.by_name {
            let session = &self.sessions[index];
            assert_eq!(session.name, *name);
            assert!((1..=usize::from(session.max)).contains(&session.players.len()));
        }
        assert!(self.farewells.is_empty() || self.has_farewell_timer);
        self.sessions.len()
    }
}

/// Tells a player something that it did not ask for.
fn tell(house: &mut House, desk: &mut Desk<'_>, to: Seen, word: ErrorWord) {
    desk.counters.count(Counter::RabidErrors);
    house.answer(desk, to, 0, |out| out.extend_from_slice(word.datagram()));
}

/// Tells one player of a session that starts the addresses of the others.
fn tell_addresses(
    house: &mut House,
    desk: &mut Desk<'_>,
    session: &Session,
    place: usize,
    asked_len: usize,
) {
    let Stage::Starting { shown, .. } = &session.stage else {
        unreachable!("the addresses are known when a session starts");
    };
    let players = &session.players;
    let row = &shown[place * players.len()..][..players.len()];
    let others = players.iter().zip(row).enumerate();
    let others = others.filter(|&(other, _)| other != place);
    let to = players[place].seen;
    house.answer(desk, to, asked_len, |out| {
        let others = others.map(|(_, (player, &addr))| (player.name, addr));
        write_start(out, to.addr.port(), others);
    });
}
