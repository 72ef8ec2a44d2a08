//! A world for tests of the agent: a server that does the least the protocol asks for one session, and a network that
//! loses, doubles and reorders by a seed. The real server has tests of its own.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sha2::{Digest, Sha256};

use super::{Agent, Config, Event, Path};
use crate::addr::Addr;
use crate::time::Millis;
use crate::wire::channel_data::{self, ChannelNumber};
use crate::wire::join_code::JoinCode;
use crate::wire::native::{
    EventHead, EventKind, Fields, LeaveReason, SeatHandle, SeatId, attr, code, member_flags,
    method, password_key, password_proof, session_flags,
};
use crate::wire::stun::{self, AttributeWriter, Class, Integrity, Message, MessageWriter};

pub(super) fn addr(text: &str) -> Addr {
    Addr::new(text.parse().unwrap())
}

/// The server's Unix time at the test's zero.
const UNIX_AT_ZERO: u64 = 1_700_000_000_000;

struct ServerSeat {
    id: SeatId,
    token: [u8; 16],
    at: Addr,
    data: Vec<u8>,
    flags: u32,
    locals: Vec<Addr>,
    sequence: u32,
    waiting: VecDeque<Vec<u8>>,
    unanswered: Option<(Vec<u8>, stun::TransactionId, u64)>,
}

pub(super) struct Server {
    pub(super) at: Addr,
    pub(super) epoch: u64,
    now: u64,
    /// Whether a ticket is honoured although the seat is not known.
    pub(super) keeps_secret: bool,
    rng: StdRng,
    code: JoinCode,
    application: String,
    key: [u8; 16],
    max_members: u8,
    flags: u32,
    metadata: Vec<u8>,
    host: u8,
    seats: Vec<ServerSeat>,
    kicked: HashSet<Addr>,
    answered: HashMap<(Addr, [u8; 12]), Vec<u8>>,
    /// Requests by method, repetitions excluded.
    pub(super) handled: HashMap<u16, usize>,
}

type Out = Vec<(Addr, Vec<u8>)>;

impl Server {
    fn new(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed);
        Self {
            at: addr("198.51.100.1:3478"),
            epoch: 0,
            now: 0,
            keeps_secret: true,
            code: JoinCode::random(&mut rng, 0, 1),
            rng,
            application: String::new(),
            key: [0; 16],
            max_members: 0,
            flags: 0,
            metadata: Vec::new(),
            host: 0,
            seats: Vec::new(),
            kicked: HashSet::new(),
            answered: HashMap::new(),
            handled: HashMap::new(),
        }
    }

    /// Everything in memory is gone; with `keeps_secret` tickets still hold.
    pub(super) fn restart(&mut self) {
        self.epoch += 1;
        self.seats.clear();
        self.answered.clear();
        if !self.keeps_secret {
            self.code = JoinCode::random(&mut self.rng, 0, 1);
        }
    }

    fn nonce(&self, of: Addr) -> String {
        let mut hash = Sha256::new();
        hash.update(self.epoch.to_be_bytes());
        hash.update(of.to_string());
        hash.finalize()[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    fn handle(&mut self, now: u64, from: Addr, bytes: &[u8]) -> Out {
        self.now = now;
        match bytes.first() {
            Some(64..=79) => self.relay(from, bytes),
            Some(0..=3) => {
                let message = Message::parse(bytes).unwrap();
                if message.method() == method::EVENT {
                    self.acknowledge(now, from, &message)
                } else {
                    self.answer(now, from, &message)
                }
            }
            _ => panic!("the agent sent the server {bytes:?}"),
        }
    }

    fn relay(&self, from: Addr, bytes: &[u8]) -> Out {
        let frame = channel_data::parse(bytes).unwrap();
        let sender = self.seats.iter().find(|seat| seat.at == from);
        let target = self
            .seats
            .iter()
            .find(|seat| Some(seat.id.seat) == frame.channel.seat());
        match (sender, target) {
            (Some(sender), Some(target)) => {
                let channel = ChannelNumber::of_seat(sender.id.seat);
                let mut out = channel_data::header(channel, frame.data.len()).to_vec();
                out.extend_from_slice(frame.data);
                vec![(target.at, out)]
            }
            _ => Vec::new(),
        }
    }

    fn acknowledge(&mut self, now: u64, from: Addr, message: &Message<'_>) -> Out {
        for seat in &mut self.seats {
            if seat.at == from
                && seat
                    .unanswered
                    .as_ref()
                    .is_some_and(|(_, id, _)| *id == message.transaction_id())
            {
                assert!(message.verify_integrity(Integrity::Sha256Truncated, &seat.token));
                seat.unanswered = None;
            }
        }
        self.pump(now)
    }

    fn answer(&mut self, now: u64, from: Addr, message: &Message<'_>) -> Out {
        let cache = (from, message.transaction_id().0);
        if let Some(bytes) = self.answered.get(&cache) {
            return vec![(from, bytes.clone())];
        }
        let mut bytes = Vec::new();
        if message.method() == stun::method::BINDING {
            MessageWriter::answer(&mut bytes, message, Class::Success)
                .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, from)
                .finish();
            return vec![(from, bytes)];
        }
        let fields = Fields::read(message).unwrap();
        let nonce = self.nonce(from);
        if fields.nonce != Some(nonce.as_bytes()) {
            assert!(message.bytes().len() >= 56);
            let error = if fields.nonce.is_some() {
                code::STALE_NONCE
            } else {
                code::UNAUTHENTICATED
            };
            MessageWriter::answer(&mut bytes, message, Class::Error)
                .error_code(error)
                .attribute(stun::attr::NONCE, nonce.as_bytes())
                .finish();
            return vec![(from, bytes)];
        }
        *self.handled.entry(message.method()).or_default() += 1;
        match self.act(now, from, message, &fields) {
            Ok(body) => {
                let mut writer = MessageWriter::answer(&mut bytes, message, Class::Success);
                body(&mut writer);
                writer.finish();
            }
            Err(error) => {
                MessageWriter::answer(&mut bytes, message, Class::Error)
                    .error_code(error)
                    .finish();
            }
        }
        self.answered.insert(cache, bytes.clone());
        let mut out = vec![(from, bytes)];
        out.extend(self.pump(now));
        out
    }

    #[allow(clippy::type_complexity)]
    fn act(
        &mut self,
        now: u64,
        from: Addr,
        message: &Message<'_>,
        fields: &Fields<'_>,
    ) -> Result<Box<dyn FnOnce(&mut MessageWriter<'_>)>, u16> {
        if method::is_seated(message.method()) {
            let handle = fields.handle.ok_or(code::SEAT_GONE)?;
            let at = self
                .seats
                .iter()
                .position(|seat| seat.id == handle.id && handle.code == self.code)
                .ok_or(code::SEAT_GONE)?;
            let token = self.seats[at].token;
            if !message.verify_integrity(Integrity::Sha256Truncated, &token) {
                return Err(code::SEAT_GONE);
            }
            self.seats[at].at = from;
            self.act_seated(now, at, message.method(), fields)?;
            let is_keepalive = message.method() == method::KEEPALIVE;
            return Ok(Box::new(move |writer| {
                if is_keepalive {
                    writer
                        .u64(attr::SERVER_TIME, UNIX_AT_ZERO + now)
                        .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, from);
                }
                writer.integrity(Integrity::Sha256Truncated, &token);
            }));
        }
        match message.method() {
            method::HOST => {
                self.application = fields.application.unwrap().to_owned();
                self.key = fields
                    .password_key
                    .unwrap_or_else(|| password_key(&self.application, ""));
                self.max_members = fields.max_members.unwrap();
                self.flags = fields.session_flags.unwrap();
                self.metadata = fields.metadata.unwrap_or_default().to_vec();
                self.seats.clear();
            }
            method::JOIN => {
                if self.kicked.contains(&from) {
                    return Err(code::KICKED);
                }
                let proof =
                    password_proof(&self.key, fields.nonce.unwrap(), message.transaction_id());
                if fields.code != Some(self.code) || fields.password_proof != Some(proof) {
                    return Err(code::NO_SESSION);
                }
                if self.seats.len() >= usize::from(self.max_members) {
                    return Err(code::FULL);
                }
                if self.flags & session_flags::LOCKED != 0 {
                    return Err(code::LOCKED);
                }
            }
            method::RESUME => {
                let ticket = fields.ticket.unwrap();
                let id = SeatId::from_bytes(&ticket[..4]).unwrap();
                if !self.keeps_secret || ticket[4..] != self.code.bits().to_be_bytes() {
                    return Err(code::SEAT_GONE);
                }
                self.seats.retain(|seat| seat.id != id);
                return Ok(self.seat_member(now, from, id, fields));
            }
            _ => return Err(code::BAD_REQUEST),
        }
        let seat = (0..=254)
            .find(|n| self.seats.iter().all(|seat| seat.id.seat != *n))
            .unwrap();
        let id = SeatId {
            seat,
            generation: self.rng.random::<u32>() >> 8,
        };
        if message.method() == method::HOST {
            self.host = seat;
        }
        Ok(self.seat_member(now, from, id, fields))
    }

    fn seat_member(
        &mut self,
        now: u64,
        from: Addr,
        id: SeatId,
        fields: &Fields<'_>,
    ) -> Box<dyn FnOnce(&mut MessageWriter<'_>)> {
        let token: [u8; 16] = self.rng.random();
        let mut seat = ServerSeat {
            id,
            token,
            at: from,
            data: fields.member_data.unwrap_or_default().to_vec(),
            flags: fields.member_flags.unwrap_or(0),
            locals: fields.locals.iter().flatten().copied().collect(),
            sequence: 0,
            waiting: VecDeque::new(),
            unanswered: None,
        };
        if id.seat == self.host {
            seat.flags |= member_flags::HOST;
        }
        self.seats.push(seat);
        let new = self.seats.len() - 1;
        for other in 0..new {
            for (to, about) in [(other, new), (new, other)] {
                let (who, data, flags) = {
                    let about = &self.seats[about];
                    (about.id, about.data.clone(), about.flags)
                };
                self.post(to, EventKind::MemberJoined, 0, who, |writer, _| {
                    writer.attribute(attr::MEMBER_DATA, &data);
                    writer.u32(attr::MEMBER_FLAGS, flags);
                });
            }
            if self.flags & session_flags::AUTO_INTRODUCE != 0 {
                self.introduce(now, other, new);
            }
        }
        let handle = SeatHandle {
            code: self.code,
            id,
        };
        let (code, max_members, flags, metadata) = (
            self.code,
            self.max_members,
            self.flags,
            self.metadata.clone(),
        );
        Box::new(move |writer| {
            let mut ticket = id.to_bytes().to_vec();
            ticket.extend_from_slice(&code.bits().to_be_bytes());
            writer
                .attribute(attr::SEAT_HANDLE, &handle.to_bytes())
                .attribute(attr::JOIN_CODE, code.to_string().as_bytes())
                .attribute(attr::TOKEN, &token)
                .attribute(attr::TICKET, &ticket)
                .xor_addr(stun::attr::XOR_MAPPED_ADDRESS, from)
                .u32(attr::KEEPALIVE_SECS, 10)
                .u32(attr::SEAT_HOLD_SECS, 60)
                .u64(attr::SERVER_TIME, UNIX_AT_ZERO + now)
                .u32(attr::PROBE_PORT, 3479)
                .u32(attr::MAX_MEMBERS, u32::from(max_members))
                .u32(attr::SESSION_FLAGS, flags)
                .attribute(attr::METADATA, &metadata);
        })
    }

    fn act_seated(
        &mut self,
        now: u64,
        at: usize,
        method: u16,
        fields: &Fields<'_>,
    ) -> Result<(), u16> {
        let own = self.seats[at].id;
        let target = fields.target.map(|id| {
            self.seats
                .iter()
                .position(|seat| seat.id == id)
                .ok_or(code::NO_MEMBER)
        });
        let needs_host = matches!(method, method::KICK | method::TRANSFER | method::CLOSE)
            || method == method::INTRODUCE && target.is_none();
        if needs_host && own.seat != self.host {
            return Err(code::NOT_HOST);
        }
        match method {
            method::LEAVE => self.drop_seat(at, LeaveReason::Left),
            method::KICK => {
                let target = target.unwrap()?;
                self.kicked.insert(self.seats[target].at);
                let who = self.seats[target].id;
                self.post(target, EventKind::Removed, 2, who, |_, _| {});
                for other in (0..self.seats.len()).filter(|other| *other != target) {
                    self.post(other, EventKind::MemberLeft, 2, who, |_, _| {});
                }
            }
            method::TRANSFER => {
                let target = target.unwrap()?;
                let who = self.seats[target].id;
                self.host = who.seat;
                for to in 0..self.seats.len() {
                    self.post(to, EventKind::HostChanged, 0, who, |_, _| {});
                }
            }
            method::UPDATE => {
                if let Some(flags) = fields.session_flags {
                    self.flags = flags;
                }
                if let Some(metadata) = fields.metadata {
                    self.metadata = metadata.to_vec();
                }
                let (flags, metadata) = (self.flags, self.metadata.clone());
                for to in 0..self.seats.len() {
                    self.post(to, EventKind::SessionChanged, 0, own, |writer, _| {
                        writer
                            .attribute(attr::METADATA, &metadata)
                            .u32(attr::SESSION_FLAGS, flags);
                    });
                }
            }
            method::INTRODUCE => match target {
                Some(target) => self.introduce(now, at, target?),
                None => {
                    for one in 0..self.seats.len() {
                        for other in 0..one {
                            self.introduce(now, one, other);
                        }
                    }
                }
            },
            _ => {}
        }
        Ok(())
    }

    fn drop_seat(&mut self, at: usize, reason: LeaveReason) {
        let who = self.seats.remove(at).id;
        for to in 0..self.seats.len() {
            self.post(to, EventKind::MemberLeft, reason as u8, who, |_, _| {});
        }
    }

    fn introduce(&mut self, now: u64, one: usize, other: usize) {
        let key: [u8; 16] = self.rng.random();
        let hidden = [one, other]
            .iter()
            .any(|at| self.seats[*at].flags & member_flags::RELAY_ONLY != 0);
        for (to, about) in [(one, other), (other, one)] {
            let (who, at, locals) = {
                let about = &self.seats[about];
                (about.id, about.at, about.locals.clone())
            };
            self.post(to, EventKind::Introduction, 0, who, |writer, id| {
                if !hidden {
                    writer.xor_addr(stun::attr::XOR_MAPPED_ADDRESS, at, id);
                    for local in locals {
                        writer.xor_addr(attr::LOCAL_ADDRESS, local, id);
                    }
                }
                writer.attribute(attr::CHECK_KEY, &key);
                let start = UNIX_AT_ZERO + now + 300;
                writer.attribute(attr::START_TIME, &start.to_be_bytes());
            });
        }
    }

    /// One batch of one event. Its transaction id is a function of its number, so that addresses can be masked with it.
    fn post(
        &mut self,
        to: usize,
        kind: EventKind,
        reason: u8,
        about: SeatId,
        nested: impl FnOnce(&mut AttributeWriter<'_>, stun::TransactionId),
    ) {
        let seat = &mut self.seats[to];
        seat.sequence += 1;
        let mut id = [0xee; 12];
        id[..4].copy_from_slice(&seat.sequence.to_be_bytes());
        id[4..8].copy_from_slice(&seat.id.to_bytes());
        let id = stun::TransactionId(id);
        let handle = SeatHandle {
            code: self.code,
            id: seat.id,
        };
        let mut bytes = Vec::new();
        MessageWriter::new(&mut bytes, method::EVENT, Class::Request, id)
            .attribute(attr::SEAT_HANDLE, &handle.to_bytes())
            .u32(attr::EVENT_SEQUENCE, seat.sequence)
            .u64(attr::SERVER_TIME, UNIX_AT_ZERO + self.now)
            .list(attr::EVENT, |writer| {
                EventHead {
                    kind,
                    reason,
                    seat: about,
                }
                .write(writer);
                nested(writer, id);
            })
            .integrity(Integrity::Sha256Truncated, &seat.token)
            .finish();
        seat.waiting.push_back(bytes);
    }

    /// Sends the events whose turn it is.
    fn pump(&mut self, now: u64) -> Out {
        let mut out = Vec::new();
        for seat in &mut self.seats {
            if seat.unanswered.is_none()
                && let Some(bytes) = seat.waiting.pop_front()
            {
                let id = Message::parse(&bytes).unwrap().transaction_id();
                seat.unanswered = Some((bytes, id, now));
            }
            if let Some((bytes, _, next)) = &mut seat.unanswered
                && *next <= now
            {
                *next = now + 150;
                out.push((seat.at, bytes.clone()));
            }
        }
        out
    }
}

/// A client in the world.
pub(super) struct Client {
    pub(super) agent: Agent,
    pub(super) at: Addr,
    pub(super) events: Vec<Event>,
    pub(super) received: Vec<(SeatId, Vec<u8>, bool)>,
    /// Bytes and counts of all but relayed data sent, by destination.
    pub(super) control_to: HashMap<Addr, (usize, usize)>,
}

impl Client {
    pub(super) fn id(&self) -> SeatId {
        self.agent.seat().unwrap().id()
    }
}

/// Where a datagram may not get through.
pub(super) type Filter = Box<dyn FnMut(Addr, Addr, &[u8]) -> bool>;

pub(super) struct World {
    pub(super) now: u64,
    pub(super) server: Server,
    pub(super) clients: Vec<Client>,
    pub(super) loss_percent: u32,
    pub(super) double_percent: u32,
    pub(super) jitter_ms: u64,
    /// Returns whether the datagram is dropped.
    pub(super) drops: Filter,
    wire: BTreeMap<(u64, u64), (Addr, Addr, Vec<u8>)>,
    serial: u64,
    rng: StdRng,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        println!("seed {seed}");
        Self {
            now: 1_000,
            server: Server::new(seed),
            clients: Vec::new(),
            loss_percent: 0,
            double_percent: 0,
            jitter_ms: 0,
            drops: Box::new(|_, _, _| false),
            wire: BTreeMap::new(),
            serial: 0,
            rng: StdRng::seed_from_u64(seed),
        }
    }

    pub(super) fn add(&mut self, change: impl FnOnce(&mut Config)) -> usize {
        let mut config = Config::new(self.server.at, "game");
        config.probing = super::Probing::Off;
        change(&mut config);
        let n = self.clients.len();
        self.clients.push(Client {
            agent: Agent::new(Millis(self.now), config, self.rng.random()),
            at: addr(&format!("203.0.113.{}:{}", n + 1, 40_000 + n)),
            events: Vec::new(),
            received: Vec::new(),
            control_to: HashMap::new(),
        });
        n
    }

    pub(super) fn millis(&self) -> Millis {
        Millis(self.now)
    }

    fn post(&mut self, from: Addr, to: Addr, bytes: Vec<u8>) {
        if (self.drops)(from, to, &bytes) {
            return;
        }
        for copy in 0..2 {
            if copy == 1 && self.rng.random_range(0..100) >= self.double_percent {
                break;
            }
            if self.rng.random_range(0..100) < self.loss_percent {
                continue;
            }
            let at = self.now + 20 + self.rng.random_range(0..=self.jitter_ms);
            self.serial += 1;
            self.wire
                .insert((at, self.serial), (from, to, bytes.clone()));
        }
    }

    pub(super) fn send(&mut self, from: usize, to: SeatId, data: &[u8]) {
        let mut out = Vec::new();
        let now = self.millis();
        let client = &mut self.clients[from];
        let target = client.agent.frame(now, to, data, &mut out).unwrap();
        let at = client.at;
        self.post(at, target, out);
    }

    fn flush(&mut self) {
        for n in 0..self.clients.len() {
            loop {
                let client = &mut self.clients[n];
                while let Some(event) = client.agent.poll_event() {
                    client.events.push(event);
                }
                let Some(transmit) = client.agent.poll_transmit() else {
                    break;
                };
                let at = client.at;
                let sum = client.control_to.entry(transmit.to).or_default();
                sum.0 += 1;
                sum.1 = sum.1.max(transmit.bytes.len());
                if transmit.ttl.is_none() {
                    self.post(at, transmit.to, transmit.bytes);
                }
            }
        }
    }

    /// Goes on until `at`.
    pub(super) fn run_until(&mut self, at: u64) {
        let mut rounds = 0;
        loop {
            self.flush();
            let now = self.millis();
            let out = self.server.pump(self.now);
            let server = self.server.at;
            out.into_iter()
                .for_each(|(to, bytes)| self.post(server, to, bytes));
            let timer = self
                .clients
                .iter()
                .filter_map(|client| client.agent.poll_timeout())
                .min();
            let arrival = self.wire.keys().next().map(|key| key.0);
            let event = self
                .server
                .seats
                .iter()
                .filter_map(|seat| seat.unanswered.as_ref().map(|u| u.2))
                .min();
            let next = [timer.map(|t| t.0), arrival, event]
                .into_iter()
                .flatten()
                .min()
                .unwrap_or(u64::MAX);
            if next > at {
                self.now = at;
                return;
            }
            rounds = if next <= now.0 { rounds + 1 } else { 0 };
            assert!(rounds < 2_000, "time stands still at {now:?}");
            self.now = self.now.max(next);
            while let Some(entry) = self.wire.first_entry()
                && entry.key().0 <= self.now
            {
                let (from, to, bytes) = entry.remove();
                self.arrive(from, to, &bytes);
            }
            let now = self.millis();
            for client in &mut self.clients {
                if client.agent.poll_timeout().is_some_and(|at| at <= now) {
                    client.agent.handle_timeout(now);
                }
            }
        }
    }

    pub(super) fn run_for(&mut self, millis: u64) {
        self.run_until(self.now + millis);
    }

    fn arrive(&mut self, from: Addr, to: Addr, bytes: &[u8]) {
        if to == self.server.at {
            let out = self.server.handle(self.now, from, bytes);
            out.into_iter()
                .for_each(|(target, bytes)| self.post(to, target, bytes));
            return;
        }
        if to.ip() == self.server.at.ip() {
            let mut answer = Vec::new();
            MessageWriter::answer(&mut answer, &Message::parse(bytes).unwrap(), Class::Success)
                .xor_addr(
                    stun::attr::XOR_MAPPED_ADDRESS,
                    from.with_port(from.port() + 1),
                )
                .finish();
            self.post(to, from, answer);
            return;
        }
        let now = self.millis();
        if let Some(client) = self.clients.iter_mut().find(|client| client.at == to)
            && let Some(delivery) = client.agent.handle_datagram(now, from, bytes)
        {
            let data = bytes[delivery.range].to_vec();
            client.received.push((delivery.from, data, delivery.direct));
        }
    }

    /// A host and `joiners` others, all seated.
    pub(super) fn session(&mut self, joiners: usize, change: impl Fn(usize, &mut Config)) {
        for n in 0..=joiners {
            let client = self.add(|config| change(n, config));
            let now = self.millis();
            let agent = &mut self.clients[client].agent;
            if n == 0 {
                agent.host(now, super::HostConfig::default()).unwrap();
            } else {
                let target = super::Target::Code(self.server.code);
                agent.join(now, target, "").unwrap();
            }
            self.run_for(3_000);
            assert!(self.clients[client].agent.seat().is_some());
        }
    }

    pub(super) fn path(&self, from: usize, to: usize) -> Path {
        let to = self.clients[to].id();
        self.clients[from].agent.path(to).unwrap()
    }

    pub(super) fn code(&self) -> JoinCode {
        self.server.code
    }
}
