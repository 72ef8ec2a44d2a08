//! After start the packet path of a shard allocates nothing: relaying, Binding, keepalives, and what is dropped.

// A counting allocator is unsafe by its trait; a test may not go on after what it needs has failed.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{Agent, Config, HostConfig, PathPolicy, Probing, Target};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::{RelayLimits, SocketIndex};
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire::native::method;
use waypost_proto::wire::stun::{self, Class, Message, MessageWriter, TransactionId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of GlobalAlloc.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
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

fn shard() -> Shard {
    let config = ShardConfig {
        index: 0,
        count: 1,
        sockets: vec![SocketRole::Main],
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
        turn: TurnConfig::default(),
        dialects: DialectConfig::default(),
    };
    Shard::new(config, Millis(0))
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
    let mut shard = shard();
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

    let round = |shard: &mut Shard| {
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
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..10_000 {
        round(&mut shard);
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
}
