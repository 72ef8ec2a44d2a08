//! A shard with pretended relay sockets, and a TURN client that speaks to it.

use std::net::IpAddr;

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::{LobbyConfig, Mail};
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::peer_policy::PeerRules;
use waypost_proto::turn::{RelayIp, TurnConfig, TurnCredentials};
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};

use crate::relay_sockets::RelaySockets;

pub const MAIN: SocketIndex = SocketIndex(0);

/// The listener of a shard's streams.
pub const fn stream_of(shard: u16) -> SocketIndex {
    SocketIndex(2 + shard)
}

/// The listener of its streams over TLS.
pub const fn tls_of(shard: u16, count: u16) -> SocketIndex {
    SocketIndex(2 + count + shard)
}

pub const REALM: &str = "example";
pub const RELAY_V4: &str = "198.41.0.4";
pub const RELAY_V6: &str = "2600::4";
/// Unix time at the start.
pub const EPOCH_SECS: u64 = 1_700_000_000;
pub const SECRETS: [&[u8]; 2] = [b"the new shared secret", b"the old shared secret"];

pub fn addr(text: &str) -> Addr {
    Addr::new(text.parse().expect("an address"))
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

pub fn config() -> TurnConfig {
    let same = |text| RelayIp {
        local: ip(text),
        external: ip(text),
    };
    TurnConfig {
        credentials: TurnCredentials {
            realm: REALM.to_owned(),
            users: vec![
                ("ann".to_owned(), "ann's password".to_owned()),
                ("bob".to_owned(), "bob's password".to_owned()),
            ],
            secrets: SECRETS.map(Into::into).to_vec(),
        },
        relay_ips: vec![same(RELAY_V4), same(RELAY_V6)],
        relay_ports: 50_000..=50_999,
        peers: PeerRules {
            own_services: vec![addr("198.41.0.4:3478")],
            own_ips: vec![ip(RELAY_V4), ip(RELAY_V6)],
            ..PeerRules::default()
        },
        allocations_max: 64,
        ..TurnConfig::default()
    }
}

/// A server of one shard, or one of several.
pub struct Server {
    pub shard: Shard,
    pub now: Millis,
    pub relays: RelaySockets,
    /// Mail for other shards.
    pub mail: Vec<(u16, Mail)>,
    /// What was sent: from which socket, to whom.
    pub sent: Vec<(SocketIndex, Addr, Vec<u8>)>,
}

impl Server {
    pub fn new() -> Self {
        Self::with(config())
    }

    pub fn with(turn: TurnConfig) -> Self {
        Self::shard_of(turn, 0, 1)
    }

    /// One shard of several.
    pub fn shard_of(turn: TurnConfig, index: u16, count: u16) -> Self {
        let now = Millis(1000);
        let config = ShardConfig {
            index,
            count,
            sockets: [SocketRole::Main, SocketRole::Probe]
                .into_iter()
                .chain([false, true].into_iter().flat_map(|is_tls| {
                    (0..count).map(move |shard| SocketRole::Stream { shard, is_tls })
                }))
                .collect(),
            discovery: Vec::new(),
            lobby: LobbyConfig {
                sessions_max: 16,
                members_max: 16,
                ..LobbyConfig::default()
            },
            turn,
            dialects: DialectConfig::default(),
            access: RendezvousAccess::Open,
            secret: ServerSecret([9; 32]),
            wall: WallClock {
                unix_ms_at_zero: EPOCH_SECS * 1000,
            },
            seed: [3 + index as u8; 32],
            placement_seeds: [1, 2],
        };
        Self {
            shard: Shard::new(config, now),
            now,
            relays: RelaySockets::default(),
            mail: Vec::new(),
            sent: Vec::new(),
        }
    }

    /// Carries out what the shard wants.
    pub fn settle(&mut self) {
        self.relays.serve(&mut self.shard, self.now);
        let outbox = self.shard.outbox();
        self.mail.append(&mut outbox.mail);
        for transmit in &outbox.transmits {
            let bytes = outbox.bytes[transmit.start..transmit.end].to_vec();
            self.sent.push((transmit.socket, transmit.to, bytes));
        }
        self.mail.append(&mut outbox.mail);
        outbox.clear();
        let inspection = self.shard.inspect();
        assert_eq!(inspection.relay_sockets, self.relays.open.len());
        assert_eq!(inspection.relay_ports as usize, self.relays.open.len());
    }

    /// A datagram arrives; what becomes of it is in [`Server::sent`].
    pub fn deliver(&mut self, socket: SocketIndex, from: Addr, datagram: &[u8]) -> Verdict {
        let verdict = self
            .shard
            .handle_datagram(self.now, socket, ClientAddr(from), datagram);
        if let Verdict::Forward(forward) = verdict {
            let frame = forward.frame();
            let payload = &datagram[forward.strip..forward.strip + forward.payload_len];
            let bytes = [frame.header(), payload, &vec![0; frame.padding()]].concat();
            self.sent
                .push((forward.route.egress, forward.route.to, bytes));
        }
        self.settle();
        verdict
    }

    /// A datagram arrives from a peer at a relayed address.
    pub fn peer_sends(&mut self, peer: Addr, relayed: Addr, payload: &[u8]) -> Verdict {
        let open = self.relays.open.iter().find(|(_, at)| **at == relayed);
        let socket = SocketIndex(*open.expect("the relayed address is open").0);
        self.deliver(socket, peer, payload)
    }

    /// The only datagram that was sent since the last look.
    pub fn take_one(&mut self) -> (SocketIndex, Addr, Vec<u8>) {
        assert_eq!(self.sent.len(), 1, "{:?}", self.sent);
        self.sent.remove(0)
    }

    pub fn advance_secs(&mut self, secs: u64) {
        let until = self.now + secs * 1000;
        while let Some(at) = self.shard.poll_timeout().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            self.shard.handle_timeout(self.now);
            self.settle();
        }
        self.now = until;
        self.shard.handle_timeout(until);
        self.settle();
    }

    pub fn count(&mut self, counter: Counter) -> u64 {
        self.shard.counters().get(counter)
    }

    pub fn allocations(&self) -> usize {
        self.shard.inspect().allocations
    }
}

/// How a client signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scheme {
    Md5,
    Sha256,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub bytes: Vec<u8>,
}

impl Answer {
    pub fn message(&self) -> Message<'_> {
        Message::parse(&self.bytes).expect("an answer is STUN")
    }

    /// 0 for success.
    pub fn code(&self) -> u16 {
        match self.message().class() {
            Class::Success => 0,
            Class::Error => self.message().error_code().expect("a code"),
            other => panic!("{other:?} is no answer"),
        }
    }

    pub fn ok(self) -> Self {
        assert_eq!(self.code(), 0);
        self
    }

    pub fn u32(&self, kind: u16) -> Option<u32> {
        let value = self.message().find(kind)?;
        Some(u32::from_be_bytes(value.try_into().expect("32 bits")))
    }

    /// All relayed addresses.
    pub fn relayed(&self) -> Vec<Addr> {
        let message = self.message();
        message
            .attributes()
            .filter(|attribute| attribute.kind == attr::XOR_RELAYED_ADDRESS)
            .map(|attribute| {
                let id = message.transaction_id();
                waypost_proto::wire::stun::decode_xor_addr(attribute.value, id).expect("an address")
            })
            .collect()
    }
}

pub type Fill<'a> = &'a dyn Fn(&mut MessageWriter<'_>);

/// A TURN client at one address.
#[derive(Clone, Debug)]
pub struct Client {
    pub addr: Addr,
    /// The listener that it speaks to.
    pub socket: SocketIndex,
    pub username: String,
    pub password: String,
    pub scheme: Scheme,
    pub nonce: Vec<u8>,
    pub next_id: u64,
}

impl Client {
    pub fn ann(at: &str) -> Self {
        Self::new(at, "ann", "ann's password")
    }

    pub fn new(at: &str, username: &str, password: &str) -> Self {
        Self {
            addr: addr(at),
            socket: MAIN,
            username: username.to_owned(),
            password: password.to_owned(),
            scheme: Scheme::Md5,
            nonce: Vec::new(),
            next_id: 1,
        }
    }

    pub fn key(&self) -> LongTermKey {
        match self.scheme {
            Scheme::Md5 => LongTermKey::md5(&self.username, REALM, &self.password),
            Scheme::Sha256 => LongTermKey::sha256(&self.username, REALM, &self.password),
        }
    }

    pub fn integrity(&self) -> Integrity {
        match self.scheme {
            Scheme::Md5 => Integrity::Sha1,
            Scheme::Sha256 => Integrity::Sha256,
        }
    }

    pub fn id(&mut self) -> TransactionId {
        self.next_id += 1;
        let mut id = [7; 12];
        id[..8].copy_from_slice(&self.next_id.to_be_bytes());
        id[10..].copy_from_slice(&self.addr.port().to_be_bytes());
        TransactionId(id)
    }

    /// A request without credentials.
    pub fn unsigned(&mut self, method: u16, fill: Fill<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let id = self.id();
        let mut writer = MessageWriter::new(&mut out, method, Class::Request, id);
        fill(&mut writer);
        writer.finish();
        out
    }

    /// A request with everything.
    pub fn signed(&mut self, method: u16, fill: Fill<'_>) -> Vec<u8> {
        let mut out = Vec::new();
        let id = self.id();
        let mut writer = MessageWriter::new(&mut out, method, Class::Request, id);
        fill(&mut writer);
        writer
            .attribute(attr::USERNAME, self.username.as_bytes())
            .attribute(attr::REALM, REALM.as_bytes())
            .attribute(attr::NONCE, &self.nonce);
        if self.scheme == Scheme::Sha256 {
            writer
                .attribute(attr::PASSWORD_ALGORITHMS, &[0, 2, 0, 0, 0, 1, 0, 0])
                .attribute(attr::PASSWORD_ALGORITHM, &[0, 2, 0, 0]);
        }
        writer
            .integrity(self.integrity(), self.key().as_bytes())
            .finish();
        out
    }

    /// Sends and takes the answer, whose integrity must be right if it has one; errors but 401, 438, 400 and 403 must.
    pub fn ask(&self, server: &mut Server, request: &[u8]) -> Answer {
        server.sent.clear();
        server.deliver(self.socket, self.addr, request);
        let (socket, to, bytes) = server.take_one();
        assert_eq!((socket, to), (self.socket, self.addr));
        let answer = Answer { bytes };
        let sent = Message::parse(request).expect("a request is STUN");
        assert_eq!(answer.message().transaction_id(), sent.transaction_id());
        assert_eq!(answer.message().method(), sent.method());
        let is_signed = answer.message().find(self.integrity().kind()).is_some();
        if is_signed {
            let key = self.key();
            let fits = answer
                .message()
                .verify_integrity(self.integrity(), key.as_bytes());
            assert!(fits, "the answer's integrity");
        } else {
            assert!([400, 401, 403, 438].contains(&answer.code()));
        }
        answer
    }

    /// The same client on a stream to a shard.
    pub fn on_stream(self, shard: u16) -> Self {
        Self {
            socket: stream_of(shard),
            ..self
        }
    }

    /// Connects, if it is one of streams.
    pub fn connect(&self, server: &mut Server) {
        server
            .shard
            .handle_stream_opened(server.now, self.socket, ClientAddr(self.addr));
    }

    /// Its stream ends.
    pub fn disconnect(&self, server: &mut Server) {
        let source = ClientAddr(self.addr);
        server
            .shard
            .handle_stream_closed(server.now, self.socket, source);
        server.settle();
    }

    /// Gets a nonce.
    pub fn learn_nonce(&mut self, server: &mut Server) -> Answer {
        let request = self.unsigned(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        });
        let answer = self.ask(server, &request);
        assert_eq!(answer.code(), 401);
        self.nonce = answer
            .message()
            .find(attr::NONCE)
            .expect("a nonce")
            .to_vec();
        answer
    }

    pub fn request(&mut self, server: &mut Server, method: u16, fill: Fill<'_>) -> Answer {
        if self.nonce.is_empty() {
            self.learn_nonce(server);
        }
        let request = self.signed(method, fill);
        self.ask(server, &request)
    }

    pub fn allocate_with(&mut self, server: &mut Server, fill: Fill<'_>) -> Answer {
        self.request(server, method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
            fill(w);
        })
    }

    /// Allocates; returns the relayed address.
    pub fn allocate(&mut self, server: &mut Server) -> Addr {
        self.allocate_with(server, &|_| ()).ok().relayed()[0]
    }

    pub fn refresh(&mut self, server: &mut Server, secs: u32) -> Answer {
        self.request(server, method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, secs);
        })
    }

    pub fn permit(&mut self, server: &mut Server, peers: &[Addr]) -> Answer {
        self.request(server, method::CREATE_PERMISSION, &|w| {
            for peer in peers {
                w.xor_addr(attr::XOR_PEER_ADDRESS, *peer);
            }
        })
    }

    pub fn bind(&mut self, server: &mut Server, number: u16, peer: Addr) -> Answer {
        self.request(server, method::CHANNEL_BIND, &|w| {
            let [high, low] = number.to_be_bytes();
            w.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        })
    }

    pub fn send_indication(&mut self, peer: Addr, data: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let id = self.id();
        MessageWriter::new(&mut out, method::SEND, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, peer)
            .attribute(attr::DATA, data)
            .finish();
        out
    }

    /// Sends data in a Send indication.
    pub fn send(&mut self, server: &mut Server, peer: Addr, data: &[u8]) -> Verdict {
        server.sent.clear();
        let bytes = self.send_indication(peer, data);
        server.deliver(self.socket, self.addr, &bytes)
    }

    /// Sends data on a channel.
    pub fn channel(&self, server: &mut Server, number: u16, data: &[u8]) -> Verdict {
        server.sent.clear();
        let number = ChannelNumber::new(number).expect("a channel number");
        let mut bytes = channel_data::header(number, data.len()).to_vec();
        bytes.extend_from_slice(data);
        server.deliver(self.socket, self.addr, &bytes)
    }
}
