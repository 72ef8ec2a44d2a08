//! Members and TURN clients that came by a stream: what ends with it, what outlives it, and what no later stream inherits.

#![allow(clippy::unwrap_used)]

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{
    Agent, Config, GREETING_LEN, HostConfig, Observation, PathPolicy, Refused, StreamEnd,
    StreamIntroduction, Target,
};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::{LobbyConfig, Mail};
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::{RelayCommand, RelayIp, TurnConfig, TurnCredentials};
use waypost_proto::wire::native::member_flags;
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};

const UDP: SocketIndex = SocketIndex(0);
/// The stream listener of the second of two shards.
const STREAM: SocketIndex = SocketIndex(2);
const SERVER: u16 = 1;

fn addr(port: u16) -> Addr {
    Addr::new(([192, 0, 2, 1], port).into())
}

fn shard(index: u16) -> Shard {
    let stream = |shard| SocketRole::Stream {
        shard,
        is_tls: false,
    };
    let ip = "198.41.0.4".parse().unwrap();
    let config = ShardConfig {
        index,
        count: 2,
        sockets: vec![SocketRole::Main, stream(0), stream(1)],
        discovery: Vec::new(),
        lobby: LobbyConfig {
            sessions_max: 16,
            members_max: 64,
            ..LobbyConfig::default()
        },
        access: RendezvousAccess::Open,
        secret: ServerSecret([1; 32]),
        wall: WallClock {
            unix_ms_at_zero: 1_700_000_000_000,
        },
        seed: [2 + index as u8; 32],
        placement_seeds: [3, 4],
        dialects: DialectConfig::default(),
        turn: TurnConfig {
            credentials: TurnCredentials {
                realm: "example".to_owned(),
                users: vec![("ann".to_owned(), "ann's password".to_owned())],
                secrets: Vec::new(),
            },
            relay_ips: vec![RelayIp {
                local: ip,
                external: ip,
            }],
            allocations_max: 4,
            ..TurnConfig::default()
        },
    };
    Shard::new(config, Millis(0))
}

/// One client. By datagrams it is at the first shard, by a stream at the second.
struct Player {
    agent: Agent,
    at: Addr,
    by_stream: bool,
    received: Vec<Vec<u8>>,
}

impl Player {
    fn new(port: u16, by_stream: bool) -> Self {
        let config = Config::new(addr(SERVER), "game");
        Self {
            agent: Agent::new(Millis(0), config, [port as u8; 32]),
            at: addr(port),
            by_stream,
            received: Vec::new(),
        }
    }
}

/// Two shards and their clients.
struct World {
    shards: [Shard; 2],
    players: Vec<Player>,
    now: Millis,
    /// Whether mail between shards stays where it is.
    holds_mail: bool,
    held: Vec<(u16, Mail)>,
    /// What came to addresses that are no player's own.
    strays: Vec<(Addr, Vec<u8>)>,
}

impl World {
    fn new(players: Vec<Player>) -> Self {
        Self {
            shards: [shard(0), shard(1)],
            players,
            now: Millis(0),
            holds_mail: false,
            held: Vec::new(),
            strays: Vec::new(),
        }
    }

    fn open(&mut self, player: usize) {
        let at = ClientAddr(self.players[player].at);
        self.shards[1].handle_stream_opened(self.now, STREAM, at);
    }

    fn close(&mut self, player: usize) {
        let at = ClientAddr(self.players[player].at);
        self.shards[1].handle_stream_closed(self.now, STREAM, at);
    }

    fn deliver(&mut self, to: Addr, bytes: &[u8]) {
        let player = self.players.iter_mut().find(|player| player.at == to);
        let Some(player) = player else {
            self.strays.push((to, bytes.to_vec()));
            return;
        };
        let delivery = player.agent.handle_datagram(self.now, addr(SERVER), bytes);
        player
            .received
            .extend(delivery.map(|delivery| bytes[delivery.range].to_vec()));
    }

    fn send(&mut self, player: usize, bytes: &[u8]) -> Verdict {
        let Player { at, by_stream, .. } = self.players[player];
        let (shard, socket) = if by_stream { (1, STREAM) } else { (0, UDP) };
        let source = ClientAddr(at);
        let verdict = self.shards[shard].handle_datagram(self.now, socket, source, bytes);
        if let Verdict::Forward(forward) = verdict {
            let payload = &bytes[forward.strip..forward.strip + forward.payload_len];
            let frame = [forward.frame().header(), payload].concat();
            let route = forward.route;
            let to = self.players.iter().find(|player| player.at == route.to);
            let expected = if to.unwrap().by_stream { STREAM } else { UDP };
            assert_eq!(route.egress, expected);
            self.deliver(route.to, &frame);
        }
        verdict
    }

    /// Carries everything until nothing moves.
    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for player in 0..self.players.len() {
                self.players[player].agent.handle_timeout(self.now);
                while let Some(transmit) = self.players[player].agent.poll_transmit() {
                    assert_eq!(transmit.to, addr(SERVER), "nobody punches");
                    moved = true;
                    self.send(player, &transmit.bytes);
                }
                while self.players[player].agent.poll_event().is_some() {}
            }
            if !self.holds_mail {
                for (shard, mail) in std::mem::take(&mut self.held) {
                    moved = true;
                    self.shards[usize::from(shard)].handle_mail(self.now, mail);
                }
            }
            for shard in 0..2 {
                self.shards[shard].handle_timeout(self.now);
                let outbox = self.shards[shard].outbox();
                let mut sent = Vec::new();
                for transmit in &outbox.transmits {
                    let bytes = outbox.bytes[transmit.start..transmit.end].to_vec();
                    sent.push((transmit.to, bytes));
                }
                self.held.append(&mut outbox.mail);
                outbox.clear();
                moved |= !sent.is_empty() || (!self.holds_mail && !self.held.is_empty());
                for (to, bytes) in sent {
                    self.deliver(to, &bytes);
                }
            }
            if !moved {
                let _ = self.shards.each_ref().map(Shard::inspect);
                return;
            }
        }
    }

    /// The first player hosts, the second joins.
    fn meet(&mut self) {
        let now = self.now;
        let host = &mut self.players[0].agent;
        host.host(now, HostConfig::default()).unwrap();
        self.settle();
        let code = self.players[0].agent.seat().unwrap().handle.code;
        let guest = &mut self.players[1].agent;
        guest.join(now, Target::Code(code), "").unwrap();
        self.settle();
        let members = |player: &Player| player.agent.members().count();
        assert!(self.players.iter().all(|player| members(player) == 1));
    }

    fn frame(&mut self, player: usize, data: &[u8]) -> Vec<u8> {
        let agent = &mut self.players[player].agent;
        let peer = agent.members().next().unwrap().id;
        let mut frame = Vec::new();
        agent.frame(self.now, peer, data, &mut frame).unwrap();
        frame
    }

    fn talk(&mut self) {
        for (from, to) in [(0, 1), (1, 0)] {
            let frame = self.frame(from, b"hello");
            self.send(from, &frame);
            let received = std::mem::take(&mut self.players[to].received);
            assert_eq!(received, [b"hello"]);
        }
    }
}

/// Both ways round, so that the seat of the stream's member is owned by either shard.
fn world(seed: u16) -> (World, usize) {
    let stream = usize::from(seed % 2);
    let port = |player: u16| 1000 + seed * 10 + player;
    let players = [0, 1].map(|player| Player::new(port(player), usize::from(player) == stream));
    let mut world = World::new(players.into());
    world.open(stream);
    world.meet();
    (world, stream)
}

#[test]
fn a_member_on_a_stream_is_relay_only_and_talks_to_one_on_udp() {
    for seed in 0..8 {
        let (mut world, stream) = world(seed);
        let other = &world.players[1 - stream].agent;
        let flags = other.members().next().unwrap().flags;
        assert_ne!(flags & member_flags::RELAY_ONLY, 0);
        world.talk();
    }
}

#[test]
fn a_seat_outlives_its_stream_and_a_later_stream_inherits_nothing() {
    for seed in 0..8 {
        let (mut world, stream) = world(seed);
        let to_other = world.frame(stream, b"mine");
        let to_stream = world.frame(1 - stream, b"anybody?");
        world.close(stream);
        world.settle();
        let gone = world.send(1 - stream, &to_stream);
        assert_eq!(gone, Verdict::Drop(Counter::DropNoRoute));
        // Somebody else connects from the same address and port.
        world.open(stream);
        let refused = world.send(stream, &to_other);
        assert_eq!(refused, Verdict::Drop(Counter::DropNoFlow));
        assert!(!world.shards[1].serves(world.now, STREAM, ClientAddr(world.players[stream].at)));
        let gone = world.send(1 - stream, &to_stream);
        assert_eq!(gone, Verdict::Drop(Counter::DropNoRoute));
        world.close(stream);
        // The member comes back to its seat by its ticket, on a stream from elsewhere.
        let ticket = world.players[stream].agent.seat().unwrap().ticket.clone();
        world.players[stream] = Player::new(3000, true);
        world.open(stream);
        let now = world.now;
        let agent = &mut world.players[stream].agent;
        agent.resume(now, &ticket, None, None).unwrap();
        world.settle();
        assert_eq!(world.players[stream].agent.members().count(), 1);
        world.talk();
    }
}

#[test]
fn a_seat_is_followed_from_a_stream_to_udp_by_its_token() {
    for seed in 0..4 {
        let (mut world, stream) = world(seed);
        world.close(stream);
        world.settle();
        world.players[stream].by_stream = false;
        // The next keepalive moves the seat.
        for _ in 0..20 {
            world.now = world.now + 1000;
            world.settle();
        }
        world.talk();
    }
}

#[test]
fn what_is_under_way_to_a_stream_that_has_ended_is_not_given_to_the_next() {
    for seed in 0..4 {
        let mut world = World::new(vec![Player::new(1000 + seed, true)]);
        world.open(0);
        let now = world.now;
        let host = HostConfig {
            // One that either shard may own.
            name: Some(format!("session {seed}")),
            ..HostConfig::default()
        };
        world.players[0].agent.host(now, host).unwrap();
        world.holds_mail = true;
        world.settle();
        world.close(0);
        world.open(0);
        world.holds_mail = false;
        world.settle();
        let at = ClientAddr(world.players[0].at);
        assert!(
            !world.shards[1].serves(world.now, STREAM, at),
            "session {seed}"
        );
        assert!(
            world
                .shards
                .iter()
                .all(|shard| shard.inspect().flows.is_empty())
        );
    }
}

#[test]
fn a_silent_stream_loses_its_seat_in_the_end() {
    let (mut world, stream) = world(1);
    world.close(stream);
    let at = world.players[stream].at;
    world.players.remove(stream);
    for _ in 0..60 {
        world.now = world.now + 1000;
        world.settle();
    }
    assert_eq!(world.players[0].agent.members().count(), 0);
    let seats: Vec<_> = world
        .shards
        .iter()
        .flat_map(|s| s.inspect().seats)
        .collect();
    assert!(seats.iter().all(|seat| seat.addr != at));
}

/// Asks the second shard by a stream; returns the answer, if there is one.
fn ask(shard: &mut Shard, nonce: &mut Vec<u8>, id: u8) -> Option<Vec<u8>> {
    let key = LongTermKey::md5("ann", "example", "ann's password");
    let mut bytes = Vec::new();
    let id = TransactionId([id; 12]);
    let mut writer = MessageWriter::new(&mut bytes, method::ALLOCATE, Class::Request, id);
    writer.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    if !nonce.is_empty() {
        writer
            .attribute(attr::USERNAME, b"ann")
            .attribute(attr::REALM, b"example")
            .attribute(attr::NONCE, nonce)
            .integrity(Integrity::Sha1, key.as_bytes());
    }
    writer.finish();
    shard.handle_datagram(Millis(0), STREAM, ClientAddr(addr(9)), &bytes);
    answer(shard, nonce)
}

fn answer(shard: &mut Shard, nonce: &mut Vec<u8>) -> Option<Vec<u8>> {
    let outbox = shard.outbox();
    let sent = outbox.transmits.drain(..).next()?;
    let bytes = outbox.bytes[sent.start..sent.end].to_vec();
    outbox.bytes.clear();
    let message = Message::parse(&bytes).unwrap();
    if let Some(told) = message.find(attr::NONCE) {
        *nonce = told.to_vec();
    }
    Some(bytes)
}

#[test]
fn an_allocation_ends_with_its_stream_also_while_it_is_being_opened() {
    let client = ClientAddr(addr(9));
    for is_opened_first in [true, false] {
        let mut shard = shard(1);
        let mut nonce = Vec::new();
        shard.handle_stream_opened(Millis(0), STREAM, client);
        ask(&mut shard, &mut nonce, 1).unwrap();
        assert_eq!(
            ask(&mut shard, &mut nonce, 2),
            None,
            "it waits for its socket"
        );
        let [RelayCommand::Open { socket, .. }] = shard.outbox().relay[..] else {
            panic!("{:?}", shard.outbox().relay);
        };
        shard.outbox().relay.clear();
        if is_opened_first {
            shard.handle_relay_opened(Millis(0), socket, Ok(()));
            assert!(answer(&mut shard, &mut nonce).is_some());
            assert!(shard.serves(Millis(0), STREAM, client));
        }
        shard.handle_stream_closed(Millis(0), STREAM, client);
        assert!(!shard.serves(Millis(0), STREAM, client));
        shard.handle_stream_opened(Millis(0), STREAM, client);
        if !is_opened_first {
            shard.handle_relay_opened(Millis(0), socket, Ok(()));
            assert_eq!(answer(&mut shard, &mut nonce), None);
        }
        assert_eq!(shard.outbox().relay, [RelayCommand::Close { socket }]);
        let inspection = shard.inspect();
        assert_eq!((inspection.allocations, inspection.relay_sockets), (0, 0));
        assert_eq!(inspection.relay_ports, 0);
        shard.outbox().relay.clear();
        // The next client of this address allocates anew.
        ask(&mut shard, &mut nonce, 3);
        assert_eq!(shard.outbox().relay.len(), 1);
    }
}

/// Two members who came by datagrams and are not introduced; the host is the first.
fn pair_on_udp(second: impl FnOnce(&mut Config)) -> World {
    let mut guest = Player::new(2000, false);
    let mut config = Config::new(addr(SERVER), "game");
    second(&mut config);
    guest.agent = Agent::new(Millis(0), config, [9; 32]);
    let mut world = World::new(vec![Player::new(1000, false), guest]);
    let host = HostConfig {
        introduce: false,
        ..HostConfig::default()
    };
    let now = world.now;
    world.players[0].agent.host(now, host).unwrap();
    world.settle();
    let code = world.players[0].agent.seat().unwrap().handle.code;
    let guest = &mut world.players[1].agent;
    guest.join(now, Target::Code(code), "").unwrap();
    world.settle();
    world
}

/// Has the address of a connection from `port` observed for a stream with the other player.
fn observe(world: &mut World, player: usize, port: u16, end: StreamEnd<'_>) -> Observation {
    let at = ClientAddr(addr(port));
    world.shards[1].handle_stream_opened(world.now, STREAM, at);
    let mut nonce: Option<Vec<u8>> = None;
    loop {
        let agent = &mut world.players[player].agent;
        let peer = agent.members().next().unwrap().id;
        let mut request = Vec::new();
        let id = agent
            .write_observe(peer, nonce.as_deref(), end, &mut request)
            .unwrap();
        world.shards[1].handle_datagram(world.now, STREAM, at, &request);
        world.settle();
        let strays = std::mem::take(&mut world.strays);
        let (_, answer) = strays.iter().find(|(to, _)| *to == at.0).unwrap();
        match world.players[player].agent.read_observed(id, answer) {
            Observation::Nonce(given) => nonce = Some(given),
            other => return other,
        }
    }
}

fn introduction(world: &mut World, player: usize) -> Option<StreamIntroduction> {
    let agent = &mut world.players[player].agent;
    let peer = agent.members().next().unwrap().id;
    agent.take_stream_introduction(peer)
}

#[test]
fn two_who_want_a_stream_are_told_where_and_when() {
    let mut world = pair_on_udp(|_| ());
    let locals = [
        "192.168.1.2:40001",
        "8.8.8.8:5353",
        "10.0.0.1:22",
        "127.0.0.1:6379",
    ]
    .map(|text| Addr::new(text.parse().unwrap()));
    let claims = StreamEnd {
        locals: &locals,
        reachable_port: Some(7777),
    };
    assert_eq!(
        observe(&mut world, 0, 5001, claims),
        Observation::Seen(addr(5001))
    );
    assert_eq!(introduction(&mut world, 0), None, "the other wants none");
    let service = StreamEnd {
        locals: &[],
        reachable_port: Some(22),
    };
    assert_eq!(
        observe(&mut world, 1, 5002, service),
        Observation::Seen(addr(5002))
    );
    let told = [0, 1].map(|player| introduction(&mut world, player).unwrap());
    assert_eq!(told[0].observed, Some(addr(5002)));
    assert_eq!(told[1].observed, Some(addr(5001)));
    // Claims are believed in private networks, and ports of the own public address that are not a service's.
    assert_eq!(told[0].reachable, []);
    assert_eq!(told[1].reachable, [addr(7777), locals[0]]);
    assert_eq!(told[0].start, told[1].start);
    assert!(told[0].decides && !told[1].decides);
    // Each proves to the other who it is, and not what the other has said to it.
    let greetings = [0, 1].map(|player| {
        let agent = &mut world.players[player].agent;
        agent.write_greeting(&told[player]).unwrap()
    });
    for player in [0, 1] {
        let agent = &world.players[player].agent;
        let peer = agent.members().next().unwrap().id;
        for (by, greeting) in greetings.iter().enumerate() {
            assert_eq!(greeting.len(), GREETING_LEN);
            let is_peers = agent.is_greeting_of(peer, &told[player], greeting);
            assert_eq!(is_peers, by != player);
        }
    }
    // The wishes are fulfilled: one more of one side is not enough. And the seats are where they were.
    observe(&mut world, 0, 5003, StreamEnd::default());
    assert_eq!(introduction(&mut world, 0), None);
    assert_eq!(introduction(&mut world, 1), None);
    for player in [0, 1] {
        assert!(world.shards[0].serves(world.now, UDP, ClientAddr(world.players[player].at)));
    }
    world.talk();
}

#[test]
fn an_address_is_observed_on_a_stream_only_and_not_of_who_hides() {
    let mut world = pair_on_udp(|config| config.policy = PathPolicy::RelayOnly);
    let agent = &mut world.players[1].agent;
    let host = agent.members().next().unwrap().id;
    let mut request = Vec::new();
    assert_eq!(
        agent.write_observe(host, None, StreamEnd::default(), &mut request),
        Err(Refused::Hidden)
    );
    // By datagram, from the seat itself.
    let agent = &mut world.players[0].agent;
    let guest = agent.members().next().unwrap().id;
    let mut nonce = None;
    for _ in 0..2 {
        let at = addr(6000);
        let agent = &mut world.players[0].agent;
        let id = agent
            .write_observe(guest, nonce.as_deref(), StreamEnd::default(), &mut request)
            .unwrap();
        world.shards[0].handle_datagram(world.now, UDP, ClientAddr(at), &request);
        world.settle();
        let answer = world.strays.pop().unwrap().1;
        match world.players[0].agent.read_observed(id, &answer) {
            Observation::Nonce(given) => nonce = Some(given),
            other => assert_eq!(other, Observation::Refused(400)),
        }
    }
    world.talk();
}
