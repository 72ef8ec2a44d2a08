//! A client that knows the wire formats and nothing else: it proves its address, asks, acknowledges events, and keeps what
//! it was told.

use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::shard::Verdict;
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::join_code::JoinCode;
use waypost_proto::wire::native::{
    EventHead, EventKind, Fields, NatMapping, SeatHandle, SeatId, attr, code, member_flags, method,
    password_key, password_proof,
};
use waypost_proto::wire::stun::{
    self, Attributes, Class, Integrity, Message, MessageWriter, TransactionId,
};
use waypost_proto::wire::{self, Kind};

use crate::world::World;

/// An answer, or the lack of one.
#[derive(Clone, Debug)]
pub struct Reply {
    pub bytes: Vec<u8>,
}

impl Reply {
    pub fn message(&self) -> Message<'_> {
        Message::parse(&self.bytes).expect("the server writes STUN")
    }

    /// The error code, 0 for success.
    pub fn code(&self) -> u16 {
        match self.message().class() {
            Class::Success => 0,
            _ => self.message().error_code().expect("an error has a code"),
        }
    }

    pub fn fields(&self) -> Fields<'_> {
        Fields::read(&self.message()).expect("the server writes its own attributes")
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code(), 0, "success was expected");
        self
    }
}

/// An event as its receiver sees it.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    pub kind: EventKind,
    pub reason: u8,
    pub seat: SeatId,
    pub data: Option<Vec<u8>>,
    pub member_flags: Option<u32>,
    pub metadata: Option<Vec<u8>>,
    pub max_members: Option<u8>,
    pub session_flags: Option<u32>,
    pub mapped: Option<Addr>,
    pub locals: Vec<Addr>,
    pub predicted: Vec<Addr>,
    pub turn_addr: Option<Addr>,
    pub reachable: Option<Addr>,
    pub key: Option<[u8; 16]>,
    pub start_ms: Option<u64>,
}

/// What a request for a seat says.
#[derive(Clone, Debug)]
pub struct Wish {
    pub application: &'static str,
    pub name: Option<String>,
    pub password: Option<&'static str>,
    pub max_members: u8,
    pub metadata: Vec<u8>,
    pub session_flags: u32,
    pub data: Vec<u8>,
    pub relay_only: bool,
    pub locals: Vec<Addr>,
    pub nat: Option<NatMapping>,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            application: "game",
            name: None,
            password: None,
            max_members: 8,
            metadata: Vec::new(),
            session_flags: 0,
            data: Vec::new(),
            relay_only: false,
            locals: Vec::new(),
            nat: None,
        }
    }
}

impl Wish {
    pub fn named(name: &str) -> Self {
        Self {
            name: Some(name.to_owned()),
            ..Self::default()
        }
    }

    pub fn of(max_members: u8) -> Self {
        Self {
            max_members,
            ..Self::default()
        }
    }

    fn member_part(&self, w: &mut MessageWriter<'_>) {
        w.attribute(attr::MEMBER_DATA, &self.data);
        if self.relay_only {
            w.u32(attr::MEMBER_FLAGS, member_flags::RELAY_ONLY);
        }
        for local in &self.locals {
            w.xor_addr(attr::LOCAL_ADDRESS, *local);
        }
        if let Some(nat) = self.nat {
            w.attribute(attr::NAT_MAPPING, &nat.to_bytes());
        }
    }
}

/// Where a session is looked for.
#[derive(Clone, Debug)]
pub enum Where {
    Code(JoinCode),
    Name(String),
}

/// What a request is built with beside its method.
pub type Build<'a> = &'a dyn Fn(&mut MessageWriter<'_>, &[u8], TransactionId);

#[derive(Clone, Debug)]
pub struct Player {
    pub addr: Addr,
    pub nonce: Option<Vec<u8>>,
    pub token: [u8; 16],
    pub handle: Option<SeatHandle>,
    pub ticket: Vec<u8>,
    pub credential: Option<(String, String)>,
    /// Whether it leaves events unacknowledged.
    pub deaf: bool,
    pub events: Vec<Event>,
    pub relayed: Vec<(u8, Vec<u8>)>,
    pub replies: Vec<Vec<u8>>,
    /// Event batches received, repetitions included.
    pub batches_seen: usize,
    next_sequence: u32,
    seated_by: Option<TransactionId>,
    next_id: u64,
    /// The bytes of the last request, for repeating it.
    pub last_request: Vec<u8>,
}

pub fn addr(text: &str) -> Addr {
    Addr::new(text.parse::<SocketAddr>().expect("an address"))
}

impl Player {
    pub fn at(addr: Addr) -> Self {
        Self {
            addr,
            nonce: None,
            token: [0; 16],
            handle: None,
            ticket: Vec::new(),
            credential: None,
            deaf: false,
            events: Vec::new(),
            relayed: Vec::new(),
            replies: Vec::new(),
            batches_seen: 0,
            next_sequence: 1,
            seated_by: None,
            next_id: u64::from(addr.port()) << 32,
            last_request: Vec::new(),
        }
    }

    /// The `i`th player. Every third one is on IPv6.
    pub fn new(i: u16) -> Self {
        let port = 40_000 + i;
        let [hi, lo] = i.to_be_bytes();
        Self::at(if i % 3 == 2 {
            addr(&format!("[2001:db8:{i:x}::1]:{port}"))
        } else {
            addr(&format!("198.{}.{hi}.{lo}:{port}", 18))
        })
    }

    pub fn code(&self) -> JoinCode {
        self.handle.expect("a seat").code
    }

    pub fn id(&self) -> SeatId {
        self.handle.expect("a seat").id
    }

    pub fn seat(&self) -> u8 {
        self.id().seat
    }

    pub fn encode(&mut self, request: u16, build: Build<'_>) -> Vec<u8> {
        self.next_id += 1;
        let mut id = [0; 12];
        id[4..].copy_from_slice(&self.next_id.to_be_bytes());
        let id = TransactionId(id);
        let mut out = Vec::new();
        let mut w = MessageWriter::new(&mut out, request, Class::Request, id);
        let nonce = self.nonce.clone().unwrap_or_default();
        if nonce.is_empty() {
            w.attribute(attr::FILL, &[0; 32]);
        } else {
            w.attribute(stun::attr::NONCE, &nonce);
        }
        if method::is_seated(request)
            && let Some(handle) = self.handle
        {
            w.attribute(attr::SEAT_HANDLE, &handle.to_bytes());
        }
        if let Some((username, _)) = &self.credential {
            w.attribute(stun::attr::USERNAME, username.as_bytes());
        }
        build(&mut w, &nonce, id);
        if method::is_seated(request) {
            w.integrity(Integrity::Sha256Truncated, &self.token);
        } else if let Some((_, password)) = &self.credential {
            w.integrity(Integrity::Sha1, password.as_bytes());
        }
        w.finish();
        out
    }

    /// Asks, proving the address first where that is needed.
    pub fn call(&mut self, world: &mut World, request: u16, build: Build<'_>) -> Reply {
        for _ in 0..3 {
            let bytes = self.encode(request, build);
            let reply = self.exchange(world, &bytes);
            let nonce = reply.fields().nonce.map(<[u8]>::to_vec);
            if matches!(reply.code(), code::UNAUTHENTICATED | code::STALE_NONCE)
                && nonce.is_some()
                && nonce != self.nonce
            {
                self.nonce = nonce;
                continue;
            }
            return reply;
        }
        panic!("a fresh nonce is refused");
    }

    /// Sends these bytes until they are answered.
    pub fn exchange(&mut self, world: &mut World, bytes: &[u8]) -> Reply {
        self.try_exchange(world, bytes, 60)
            .expect("the server answers")
    }

    pub fn try_exchange(&mut self, world: &mut World, bytes: &[u8], tries: usize) -> Option<Reply> {
        self.last_request = bytes.to_vec();
        for _ in 0..tries {
            world.send(self.addr, bytes);
            self.poll(world);
            let found = self
                .replies
                .iter()
                .position(|reply| reply[8..20] == bytes[8..20]);
            if let Some(found) = found {
                return Some(Reply {
                    bytes: self.replies.swap_remove(found),
                });
            }
            world.advance(150);
        }
        None
    }

    /// Sends the last request once more, byte for byte.
    pub fn repeat(&mut self, world: &mut World) -> Reply {
        let bytes = self.last_request.clone();
        self.exchange(world, &bytes)
    }

    /// Takes in what has arrived and acknowledges events.
    pub fn poll(&mut self, world: &mut World) {
        while let Some(bytes) = world.take(self.addr) {
            match wire::kind(&bytes) {
                Kind::ChannelData => {
                    let data = channel_data::parse(&bytes).expect("the relay writes ChannelData");
                    let seat = data.channel.seat().expect("a seat's channel");
                    self.relayed.push((seat, data.data.to_vec()));
                }
                Kind::Stun => self.take_stun(world, bytes),
                Kind::Other => panic!("the server sends nothing else"),
            }
        }
    }

    fn take_stun(&mut self, world: &mut World, bytes: Vec<u8>) {
        let message = Message::parse(&bytes).expect("the server writes STUN");
        if message.class() != Class::Request {
            self.take_seat(&message);
            self.replies.push(bytes);
            return;
        }
        assert_eq!(message.method(), method::EVENT);
        let fields = Fields::read(&message).expect("the server writes its own attributes");
        if fields.handle != self.handle
            || !message.verify_integrity(Integrity::Sha256Truncated, &self.token)
        {
            return;
        }
        self.batches_seen += 1;
        if self.deaf {
            return;
        }
        let acknowledgement = self.acknowledgement(&message);
        if fields.event_sequence == Some(self.next_sequence) {
            self.next_sequence += 1;
            for attribute in message.attributes() {
                if attribute.kind == attr::EVENT {
                    let (head, nested) = EventHead::parse(attribute.value).expect("an event");
                    self.events
                        .push(read_event(head, nested, message.transaction_id()));
                }
            }
        }
        world.send(self.addr, &acknowledgement);
    }

    pub fn acknowledgement(&self, event: &Message<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        MessageWriter::answer(&mut out, event, Class::Success)
            .attribute(attr::SEAT_HANDLE, &self.handle.expect("a seat").to_bytes())
            .integrity(Integrity::Sha256Truncated, &self.token)
            .finish();
        out
    }

    /// Forgets what a restarted client does not know any more.
    pub fn forget(&mut self) {
        let ticket = std::mem::take(&mut self.ticket);
        *self = Self {
            ticket,
            next_id: self.next_id + 1000,
            ..Self::at(self.addr)
        };
    }

    pub fn move_to(&mut self, addr: Addr) {
        self.addr = addr;
        self.nonce = None;
    }

    pub fn take_events(&mut self, world: &mut World) -> Vec<Event> {
        self.poll(world);
        std::mem::take(&mut self.events)
    }

    pub fn kinds(&mut self, world: &mut World) -> Vec<(EventKind, u8)> {
        self.take_events(world)
            .iter()
            .map(|event| (event.kind, event.seat.seat))
            .collect()
    }

    /// The success answer to whatever seats a client.
    fn take_seat(&mut self, message: &Message<'_>) {
        let fields = Fields::read(message).expect("the server writes its own attributes");
        let Some(token) = fields.token else {
            return;
        };
        self.token = token;
        self.handle = Some(fields.handle.expect("SEAT-HANDLE"));
        self.ticket = fields.ticket.expect("TICKET").to_vec();
        assert_eq!(fields.mapped, Some(self.addr));
        assert_eq!(fields.code, Some(self.code()));
        if self.seated_by.replace(message.transaction_id()) != Some(message.transaction_id()) {
            self.next_sequence = 1;
        }
    }

    pub fn try_host(&mut self, world: &mut World, wish: &Wish) -> Reply {
        self.call(world, method::HOST, &|w, _, _| host_part(w, wish))
    }

    pub fn host(&mut self, world: &mut World, wish: &Wish) -> Reply {
        self.try_host(world, wish).ok()
    }

    pub fn try_join(&mut self, world: &mut World, place: &Where, wish: &Wish) -> Reply {
        self.call(world, method::JOIN, &|w, nonce, id| {
            join_part(w, nonce, id, place, wish);
        })
    }

    pub fn join(&mut self, world: &mut World, code: JoinCode) -> Reply {
        self.try_join(world, &Where::Code(code), &Wish::default())
            .ok()
    }

    pub fn try_match(&mut self, world: &mut World, key: &[u8], wish: &Wish) -> Reply {
        self.call(world, method::MATCH, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, wish.application.as_bytes())
                .attribute(attr::MATCH_KEY, key)
                .u32(attr::MAX_MEMBERS, u32::from(wish.max_members));
            wish.member_part(w);
        })
    }

    pub fn try_resume(&mut self, world: &mut World, wish: &Wish) -> Reply {
        let ticket = self.ticket.clone();
        self.call(world, method::RESUME, &|w, _, _| {
            w.attribute(attr::TICKET, &ticket);
            if let Some(name) = &wish.name {
                w.attribute(attr::SESSION_NAME, name.as_bytes());
            }
            if !wish.metadata.is_empty() {
                w.attribute(attr::METADATA, &wish.metadata);
            }
            wish.member_part(w);
        })
    }

    pub fn leave(&mut self, world: &mut World) -> Reply {
        self.call(world, method::LEAVE, &|_, _, _| ())
    }

    pub fn keepalive(&mut self, world: &mut World) -> Reply {
        self.call(world, method::KEEPALIVE, &|_, _, _| ())
    }

    pub fn on_target(&mut self, world: &mut World, request: u16, target: SeatId) -> Reply {
        self.call(world, request, &|w, _, _| {
            w.attribute(attr::TARGET_SEAT, &target.to_bytes());
        })
    }

    pub fn kick(&mut self, world: &mut World, target: SeatId) -> Reply {
        self.on_target(world, method::KICK, target)
    }

    pub fn update(&mut self, world: &mut World, build: Build<'_>) -> Reply {
        self.call(world, method::UPDATE, build)
    }

    /// Sends data to the member in `seat`.
    pub fn relay(&self, world: &mut World, seat: u8, data: &[u8]) -> Verdict {
        let mut bytes = channel_data::header(ChannelNumber::of_seat(seat), data.len()).to_vec();
        bytes.extend_from_slice(data);
        world.send(self.addr, &bytes)
    }
}

pub fn host_part(w: &mut MessageWriter<'_>, wish: &Wish) {
    w.attribute(attr::APPLICATION_ID, wish.application.as_bytes())
        .u32(attr::MAX_MEMBERS, u32::from(wish.max_members))
        .attribute(attr::METADATA, &wish.metadata)
        .u32(attr::SESSION_FLAGS, wish.session_flags);
    if let Some(name) = &wish.name {
        w.attribute(attr::SESSION_NAME, name.as_bytes());
    }
    if let Some(password) = wish.password {
        w.attribute(
            attr::PASSWORD_KEY,
            &password_key(wish.application, password),
        );
    }
    wish.member_part(w);
}

pub fn join_part(
    w: &mut MessageWriter<'_>,
    nonce: &[u8],
    id: TransactionId,
    place: &Where,
    wish: &Wish,
) {
    w.attribute(attr::APPLICATION_ID, wish.application.as_bytes());
    match place {
        Where::Code(code) => w.attribute(attr::JOIN_CODE, code.to_string().as_bytes()),
        Where::Name(name) => w.attribute(attr::SESSION_NAME, name.as_bytes()),
    };
    let key = password_key(wish.application, wish.password.unwrap_or_default());
    w.attribute(attr::PASSWORD_PROOF, &password_proof(&key, nonce, id));
    wish.member_part(w);
}

pub fn read_event(head: EventHead, nested: Attributes<'_>, id: TransactionId) -> Event {
    let fields = Fields::read_list(nested, id).expect("the server writes its own attributes");
    Event {
        kind: head.kind,
        reason: head.reason,
        seat: head.seat,
        data: fields.member_data.map(<[u8]>::to_vec),
        member_flags: fields.member_flags,
        metadata: fields.metadata.map(<[u8]>::to_vec),
        max_members: fields.max_members,
        session_flags: fields.session_flags,
        mapped: fields.mapped,
        turn_addr: fields.relayed,
        reachable: fields.reachable,
        locals: fields.locals.iter().flatten().copied().collect(),
        predicted: fields.predicted.iter().flatten().copied().collect(),
        key: fields.check_key,
        start_ms: fields.start_time_ms,
    }
}

/// A session with its host and `members - 1` others, all events heard.
pub fn party(world: &mut World, members: u16, wish: &Wish) -> Vec<Player> {
    let mut host = Player::new(0);
    host.host(world, wish);
    let code = host.code();
    let mut players = vec![host];
    for i in 1..members {
        let mut player = Player::new(i);
        player.try_join(world, &Where::Code(code), wish).ok();
        players.push(player);
    }
    hear_all(world, &mut players);
    for player in &mut players {
        player.events.clear();
    }
    players
}

/// Everybody takes in what has arrived, until there is nothing left.
pub fn hear_all(world: &mut World, players: &mut [Player]) {
    for _ in 0..3 {
        for player in &mut *players {
            player.poll(world);
        }
    }
}
