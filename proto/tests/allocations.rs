//! After start the packet path of a shard allocates nothing: relaying, Binding, keepalives, and what is dropped.

// A counting allocator is unsafe by its trait; a test may not go on after what it needs has failed.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{Agent, Config, HostConfig, PathPolicy, Probing, Target};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::{RelayLimits, Service, SocketIndex};
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::{RelayCommand, RelayIp, TurnConfig, TurnCredentials};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::native::method;
use waypost_proto::wire::stun::{
    self, Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr,
};

struct Counting;

thread_local! {
    /// Of this thread alone: the test harness allocates on its own threads whenever it likes.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count_allocation() {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
}

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count_allocation();
        // SAFETY: the caller keeps the contract of GlobalAlloc.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count_allocation();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const SOCKET: SocketIndex = SocketIndex(0);

fn addr(port: u16) -> Addr {
    Addr::new(([192, 0, 2, 1], port).into())
}

fn shard_of(index: u16, count: u16) -> Shard {
    let config = ShardConfig {
        index,
        count,
        sockets: vec![SocketRole::Main],
        discovery: Vec::new(),
        lobby: LobbyConfig {
            sessions_max: 16,
            members_max: 64,
            limits: RelayLimits::default(),
            ..LobbyConfig::default()
        },
        access: RendezvousAccess::Open,
        secret: ServerSecret([1; 32]),
        wall: WallClock {
            unix_ms_at_zero: 1_700_000_000_000,
        },
        seed: [2; 32],
        placement_seeds: [3, 4],
        turn: TurnConfig {
            credentials: TurnCredentials {
                realm: "r".to_owned(),
                users: vec![("ann".to_owned(), "pw".to_owned())],
                secrets: Vec::new(),
            },
            relay_ips: vec![RelayIp {
                local: RELAY.ip(),
                external: RELAY.ip(),
            }],
            // The budget is drawn on and never empty.
            unproven_bytes_per_sec: u32::MAX,
            ..TurnConfig::default()
        },
        dialects: DialectConfig::default(),
    };
    Shard::new(config, Millis(0))
}

const RELAY: std::net::SocketAddr = std::net::SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(198, 41, 0, 4)),
    0,
);

/// Asks as a TURN client; returns the relayed address that the answer tells.
fn turn_request(
    shard: &mut Shard,
    from: u16,
    request: u16,
    fill: &dyn Fn(&mut MessageWriter<'_>),
) -> Option<Addr> {
    let key = LongTermKey::md5("ann", "r", "pw");
    let mut nonce = Vec::new();
    loop {
        let mut out = Vec::new();
        let id = TransactionId([from as u8; 12]);
        let mut writer = MessageWriter::new(&mut out, request, Class::Request, id);
        fill(&mut writer);
        if !nonce.is_empty() {
            writer
                .attribute(attr::USERNAME, b"ann")
                .attribute(attr::REALM, b"r")
                .attribute(attr::NONCE, &nonce)
                .integrity(Integrity::Sha1, key.as_bytes());
        }
        writer.finish();
        shard.handle_datagram(Millis(0), SOCKET, ClientAddr(addr(from)), &out);
        for command in std::mem::take(&mut shard.outbox().relay) {
            if let RelayCommand::Open { socket, .. } = command {
                shard.handle_relay_opened(Millis(0), socket, Ok(()));
            }
        }
        let outbox = shard.outbox();
        let answer = &outbox.bytes[outbox.transmits[0].start..outbox.transmits[0].end];
        let answer = Message::parse(answer).unwrap();
        let relayed = answer.find_xor_addr(attr::XOR_RELAYED_ADDRESS);
        let is_done = answer.class() == Class::Success;
        nonce = answer.find(attr::NONCE).unwrap_or_default().to_vec();
        outbox.clear();
        if is_done {
            return relayed;
        }
    }
}

/// Data from one TURN client to another, which are on these shards: on a channel, and in a Send indication.
fn hairpin_data(shards: &mut [Shard], homes: [usize; 2]) -> [Vec<u8>; 2] {
    let relayed = [(2000, homes[0]), (2001, homes[1])].map(|(from, home)| {
        turn_request(&mut shards[home], from, stun::method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
        })
        .unwrap()
    });
    for (from, home, peer) in [(2000, homes[0], relayed[1]), (2001, homes[1], relayed[0])] {
        turn_request(&mut shards[home], from, stun::method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[0x40, 1, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        });
    }
    let number = channel_data::ChannelNumber::new(0x4001).unwrap();
    let mut on_channel = channel_data::header(number, 200).to_vec();
    on_channel.extend_from_slice(&[7; 200]);
    let mut indication = Vec::new();
    let id = TransactionId([1; 12]);
    MessageWriter::new(&mut indication, stun::method::SEND, Class::Indication, id)
        .xor_addr(attr::XOR_PEER_ADDRESS, relayed[1])
        .attribute(attr::DATA, &[7; 200])
        .finish();
    [on_channel, indication]
}

/// Carries datagrams between the shard and its clients until nothing moves; returns the keepalives that went by.
fn settle(shard: &mut Shard, agents: &mut [Agent; 2], now: Millis) -> Vec<(Addr, Vec<u8>)> {
    let mut keepalives = Vec::new();
    loop {
        let mut moved = false;
        for (i, agent) in agents.iter_mut().enumerate() {
            let from = addr(1000 + i as u16);
            agent.handle_timeout(now);
            while let Some(transmit) = agent.poll_transmit() {
                moved = true;
                if Message::parse(&transmit.bytes).is_ok_and(|m| m.method() == method::KEEPALIVE) {
                    keepalives.push((from, transmit.bytes.clone()));
                }
                shard.handle_datagram(now, SOCKET, ClientAddr(from), &transmit.bytes);
            }
        }
        shard.handle_timeout(now);
        let outbox = shard.outbox();
        for transmit in &outbox.transmits {
            moved = true;
            let bytes = &outbox.bytes[transmit.start..transmit.end];
            let agent = usize::from(transmit.to.port() - 1000);
            agents[agent].handle_datagram(now, addr(1), bytes);
        }
        outbox.clear();
        if !moved {
            return keepalives;
        }
    }
}

#[test]
fn the_packet_path_allocates_nothing() {
    let mut shard = shard_of(0, 1);
    let mut agents = [5, 6].map(|seed| {
        let config = Config {
            policy: PathPolicy::RelayOnly,
            probing: Probing::Off,
            ..Config::new(addr(1), "game")
        };
        Agent::new(Millis(0), config, [seed; 32])
    });
    agents[0].host(Millis(0), HostConfig::default()).unwrap();
    settle(&mut shard, &mut agents, Millis(0));
    let code = agents[0].seat().unwrap().handle.code;
    agents[1].join(Millis(0), Target::Code(code), "").unwrap();
    settle(&mut shard, &mut agents, Millis(0));
    let peer = agents[0].members().next().unwrap().id;
    let mut data = Vec::new();
    agents[0]
        .frame(Millis(0), peer, &[7; 200], &mut data)
        .unwrap();
    let mut now = Millis(0);
    let mut keepalives = Vec::new();
    while keepalives.is_empty() {
        now = now + 1000;
        keepalives = settle(&mut shard, &mut agents, now);
    }
    let (keeper, keepalive) = keepalives.remove(0);
    let mut binding = Vec::new();
    let id = TransactionId([9; 12]);
    MessageWriter::new(&mut binding, stun::method::BINDING, Class::Request, id).finish();

    let hairpins = hairpin_data(std::slice::from_mut(&mut shard), [0, 0]);
    let mut pair = [shard_of(0, 2), shard_of(1, 2)];
    let across = hairpin_data(&mut pair, [0, 1]);
    // The first shard asks the second, which answers.
    pair[0].handle_datagram(now, SOCKET, ClientAddr(addr(2000)), &across[0]);
    for (from, to) in [(0, 1), (1, 0)] {
        pair[from].handle_timeout(now);
        for (_, mail) in std::mem::take(&mut pair[from].outbox().mail) {
            pair[to].handle_mail(now, mail);
        }
    }

    let mut round = |shard: &mut Shard| {
        for (shard, both) in [(&mut *shard, &hairpins), (&mut pair[0], &across)] {
            for data in both {
                let forwarded = shard.handle_datagram(now, SOCKET, ClientAddr(addr(2000)), data);
                let is_hairpin =
                    matches!(forwarded, Verdict::Forward(f) if f.service == Service::Hairpin);
                assert!(is_hairpin);
            }
        }
        let forwarded = shard.handle_datagram(now, SOCKET, ClientAddr(addr(1000)), &data);
        assert!(matches!(forwarded, Verdict::Forward(_)));
        let stranger = ClientAddr(addr(5000));
        let dropped = shard.handle_datagram(now, SOCKET, stranger, &data);
        assert_eq!(dropped, Verdict::Drop(Counter::DropNoFlow));
        shard.handle_datagram(now, SOCKET, stranger, b"junk");
        shard.handle_datagram(now, SOCKET, stranger, &binding);
        shard.handle_datagram(now, SOCKET, ClientAddr(keeper), &keepalive);
        shard.handle_datagram(now, SOCKET, stranger, &keepalive);
        shard.handle_timeout(now);
        // Answers: to Binding, to the keepalive, and to the stranger's keepalive with somebody else's nonce.
        assert_eq!(shard.outbox().transmits.len(), 3);
        shard.outbox().clear();
    };
    for _ in 0..10 {
        round(&mut shard);
    }
    let before = ALLOCATIONS.get();
    for _ in 0..10_000 {
        round(&mut shard);
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
}
