//! simple-hole-punch: sessions by an id that names the server too, joined by it; and pairs of strangers.
//!
//! It does what its own server does. What is different: ids never collide; a host's keepalive extends the session's life;
//! whoever repeats a request for a random partner is answered again.

use std::collections::{BTreeMap, HashMap};

use ahash::RandomState;
use rand::RngExt;

use super::house::House;
use super::relay::Shown;
use super::{Asked, Desk, Dialect, DialectTimer, Seen};
use crate::addr::Addr;
use crate::forwarding::SocketIndex;
use crate::lobby::Slab;
use crate::stats::Counter;
use crate::time::Millis;
use crate::wire::simple::{KEY_LEN, Request, SessionId, key, write};

/// Whom a session is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Partner {
    /// Whoever knows its id.
    Any,
    /// The next one who asks for a random partner; the number is its place in the queue.
    Waiting(u64),
    /// This one, who asked.
    Matched(Seen),
}

struct Session {
    uid: u32,
    id: SessionId,
    number: u16,
    host: Seen,
    lan: Box<[u8]>,
    partner: Partner,
    /// The LAN key of the partner that was matched.
    partner_lan: Box<[u8]>,
    shown: Millis,
}

/// The ids of one listener.
struct Server {
    key: [u8; KEY_LEN],
    /// One bit for each number.
    taken: Box<[u64]>,
}

impl Server {
    /// A random number that is free.
    fn take(&mut self, random: u16) -> Option<u16> {
        let words = self.taken.len();
        let start = usize::from(random) / 64;
        let is_free = |number: u16| {
            let (word, bit) = (usize::from(number) / 64, number % 64);
            self.taken[word] & 1 << bit == 0
        };
        let number = if is_free(random) {
            random
        } else {
            let mut search = (0..words).map(|i| (start + i) % words);
            let word = search.find(|&word| self.taken[word] != u64::MAX)?;
            let bit = self.taken[word].trailing_ones() as usize;
            u16::try_from(word * 64 + bit).ok()?
        };
        self.taken[usize::from(number) / 64] |= 1 << (number % 64);
        Some(number)
    }

    fn give_back(&mut self, number: u16) {
        self.taken[usize::from(number) / 64] &= !(1 << (number % 64));
    }
}

/// All sessions.
pub(super) struct Simple {
    /// A session that its host has not shown for so long ends.
    session_ms: u64,
    servers: HashMap<SocketIndex, Server, RandomState>,
    sessions: Slab<Session>,
    by_id: HashMap<SessionId, u32, RandomState>,
    by_host: HashMap<Seen, u32, RandomState>,
    by_partner: HashMap<Seen, u32, RandomState>,
    /// Hosts who wait for a random partner, in order.
    waiting: BTreeMap<u64, u32>,
    next_place: u64,
    next_uid: u32,
}

impl Simple {
    /// Listeners with the addresses that their ids name.
    pub fn new(
        sessions_max: usize,
        public: &[(SocketIndex, Addr)],
        session_ms: u64,
        hasher: &RandomState,
    ) -> Self {
        let mut servers = HashMap::with_hasher(hasher.clone());
        for &(socket, addr) in public {
            let key = key(addr).expect("the listeners of this dialect are IPv4");
            let taken = vec![0; 1024].into_boxed_slice();
            servers.insert(socket, Server { key, taken });
        }
        Self {
            servers,
            session_ms,
            sessions: Slab::new(sessions_max),
            by_id: HashMap::with_hasher(hasher.clone()),
            by_host: HashMap::with_hasher(hasher.clone()),
            by_partner: HashMap::with_hasher(hasher.clone()),
            waiting: BTreeMap::new(),
            next_place: 0,
            next_uid: 0,
        }
    }

    pub fn session_count(&self) -> usize {
        self.sessions.len()
    }

    /// Serves a datagram.
    pub fn handle(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
    ) -> Result<(), Counter> {
        if !asked.source.is_ipv4() {
            return Err(Counter::DropParse);
        }
        match Request::parse(asked.datagram).ok_or(Counter::DropParse)? {
            Request::Host { lan } => self.host(house, desk, asked, lan, false),
            Request::Random { lan } => self.random(house, desk, asked, lan),
            Request::Join { lan, id } => {
                self.join(house, desk, asked, lan, id);
                Ok(())
            }
            Request::Close(id) => {
                if let Some(index) = self.hosted(asked.seen(), id) {
                    self.remove(house, index);
                }
                Ok(())
            }
            Request::Keepalive(id) => {
                if let Some(index) = self.hosted(asked.seen(), id) {
                    self.sessions[index].shown = desk.now;
                }
                Ok(())
            }
        }
    }

    fn find(&self, id: &[u8]) -> Option<u32> {
        let id = SessionId(id.try_into().ok()?);
        self.by_id.get(&id).copied()
    }

    /// The session with this id, if `host` is its host.
    fn hosted(&self, host: Seen, id: &[u8]) -> Option<u32> {
        let index = self.find(id)?;
        (self.sessions[index].host == host).then_some(index)
    }

    fn host(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        lan: &[u8],
        random: bool,
    ) -> Result<(), Counter> {
        let index = match self.by_host.get(&asked.seen()) {
            Some(&index) => {
                self.set_partner(index, Partner::Any);
                let session = &mut self.sessions[index];
                session.lan = lan.into();
                session.shown = desk.now;
                index
            }
            None => self.create(house, desk, asked, lan)?,
        };
        if random {
            self.next_place += 1;
            self.set_partner(index, Partner::Waiting(self.next_place));
        }
        self.answer_host(house, desk, asked, index);
        Ok(())
    }

    fn create(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        lan: &[u8],
    ) -> Result<u32, Counter> {
        let server = self.servers.get_mut(&asked.socket);
        let server = server.expect("every listener of this dialect has a key");
        if self.sessions.is_full() {
            return Err(Counter::DropCapacity);
        }
        house.add_session(desk, asked.source)?;
        let Some(number) = server.take(desk.rng.random()) else {
            house.remove_session(asked.source);
            return Err(Counter::DropCapacity);
        };
        let id = SessionId::new(server.key, number);
        self.next_uid = self.next_uid.wrapping_add(1);
        let uid = self.next_uid;
        let session = Session {
            uid,
            id,
            number,
            host: asked.seen(),
            lan: lan.into(),
            partner: Partner::Any,
            partner_lan: Box::default(),
            shown: desk.now,
        };
        let index = self.sessions.insert(session).expect("there was room");
        self.by_id.insert(id, index);
        self.by_host.insert(asked.seen(), index);
        desk.set_timer(self.session_ms, DialectTimer::SimpleExpiry(index, uid));
        Ok(index)
    }

    fn answer_host(&self, house: &mut House, desk: &mut Desk<'_>, asked: Asked<'_>, index: u32) {
        let id = self.sessions[index].id.0;
        let own = public_key(asked.source);
        house.answer(desk, asked.seen(), asked.datagram.len(), |out| {
            write(out, *b"HR", &[&own, &id]);
        });
    }

    /// Changes whom a session is for, and the tables that know it.
    fn set_partner(&mut self, index: u32, partner: Partner) {
        match std::mem::replace(&mut self.sessions[index].partner, partner) {
            Partner::Any => {}
            Partner::Waiting(place) => {
                self.waiting.remove(&place);
            }
            Partner::Matched(joiner) => {
                self.by_partner.remove(&joiner);
            }
        }
        match partner {
            Partner::Any => {}
            Partner::Waiting(place) => {
                self.waiting.insert(place, index);
            }
            Partner::Matched(joiner) => {
                self.by_partner.insert(joiner, index);
            }
        }
    }

    fn join(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        lan: &[u8],
        id: &[u8],
    ) {
        let open = self.find(id).filter(|&index| {
            let partner = self.sessions[index].partner;
            partner == Partner::Any || partner == Partner::Matched(asked.seen())
        });
        match open {
            Some(index) => {
                self.introduce(house, desk, asked, index, (asked.seen(), lan));
            }
            None => {
                House::error(
                    desk,
                    Dialect::Simple,
                    asked.seen(),
                    asked.datagram.len(),
                    |out| write(out, *b"BK", &[id]),
                );
            }
        }
    }

    fn random(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        lan: &[u8],
    ) -> Result<(), Counter> {
        let seen = asked.seen();
        if let Some(&index) = self.by_host.get(&seen) {
            match self.sessions[index].partner {
                // Upstream does not answer who hosts for others.
                Partner::Any => {}
                Partner::Waiting(_) => {
                    let session = &mut self.sessions[index];
                    session.lan = lan.into();
                    session.shown = desk.now;
                    self.answer_host(house, desk, asked, index);
                }
                Partner::Matched(joiner) => {
                    self.sessions[index].lan = lan.into();
                    let joiner_lan = &self.sessions[index].partner_lan;
                    self.introduce(house, desk, asked, index, (joiner, joiner_lan));
                }
            }
            return Ok(());
        }
        if let Some(&index) = self.by_partner.get(&seen) {
            self.sessions[index].partner_lan = lan.into();
            self.introduce(house, desk, asked, index, (seen, lan));
            return Ok(());
        }
        let Some(&index) = self.waiting.values().next() else {
            return self.host(house, desk, asked, lan, true);
        };
        if self.introduce(house, desk, asked, index, (seen, lan)) {
            self.set_partner(index, Partner::Matched(seen));
            self.sessions[index].partner_lan = lan.into();
        }
        Ok(())
    }

    /// Tells host and joiner of each other, the host first. Returns whether that has happened; else the request comes again.
    fn introduce(
        &self,
        house: &mut House,
        desk: &mut Desk<'_>,
        asked: Asked<'_>,
        index: u32,
        (joiner, lan): (Seen, &[u8]),
    ) -> bool {
        let session = &self.sessions[index];
        let host = session.host;
        let relays = &mut house.relays;
        let (to_host, to_joiner) =
            match relays.arrange(desk, Dialect::Simple, asked, (host, joiner)) {
                Shown::Direct => (joiner.addr, host.addr),
                Shown::Relayed(to_host, to_joiner) => (to_host, to_joiner),
                Shown::Later => return false,
            };
        // Nobody's address is proved here: what goes to others than the sender is always paid for.
        let asked_len = |to: Seen| {
            if to == asked.seen() {
                asked.datagram.len()
            } else {
                0
            }
        };
        house.answer(desk, host, asked_len(host), |out| {
            write(out, *b"NJ", &[&public_key(to_host), lan]);
        });
        house.answer(desk, joiner, asked_len(joiner), |out| {
            let own = public_key(joiner.addr);
            write(out, *b"JR", &[&own, &public_key(to_joiner), &session.lan]);
        });
        true
    }

    fn remove(&mut self, house: &mut House, index: u32) {
        self.set_partner(index, Partner::Any);
        let session = self.sessions.remove(index);
        self.by_id.remove(&session.id);
        self.by_host.remove(&session.host);
        house.remove_session(session.host.addr);
        if let Some(server) = self.servers.get_mut(&session.host.socket) {
            server.give_back(session.number);
        }
    }

    /// Ends a session that its host has not shown for too long.
    pub fn handle_timer(
        &mut self,
        house: &mut House,
        desk: &mut Desk<'_>,
        (index, uid): (u32, u32),
    ) {
        let session = self.sessions.get(index);
        let Some(session) = session.filter(|session| session.uid == uid) else {
            return;
        };
        let age = desk.now.since(session.shown);
        if age >= self.session_ms {
            self.remove(house, index);
        } else {
            desk.set_timer(
                self.session_ms - age,
                DialectTimer::SimpleExpiry(index, uid),
            );
        }
    }

    /// Asserts that the tables agree; returns how many sessions there are.
    pub fn assert_consistent(&self) -> usize {
        let count = self.sessions.len();
        assert!(self.by_id.len() == count && self.by_host.len() == count);
        let (mut waiting, mut matched) = (0, 0);
        for (id, &index) in &self.by_id {
            let session = &self.sessions[index];
            assert!(session.id == *id && self.by_host[&session.host] == index);
            match session.partner {
                Partner::Any => {}
                Partner::Waiting(place) => {
                    assert_eq!(self.waiting[&place], index);
                    waiting += 1;
                }
                Partner::Matched(joiner) => {
                    assert_eq!(self.by_partner[&joiner], index);
                    matched += 1;
                }
            }
        }
        assert_eq!(
            (self.waiting.len(), self.by_partner.len()),
            (waiting, matched)
        );
        let taken = self.servers.values().flat_map(|server| &*server.taken);
        let taken: u32 = taken.map(|word| word.count_ones()).sum();
        assert_eq!(taken as usize, count);
        count
    }
}

/// The key of a client, or of what it is shown in place of another.
fn public_key(addr: Addr) -> [u8; KEY_LEN] {
    key(addr).expect("clients of this dialect are IPv4")
}
