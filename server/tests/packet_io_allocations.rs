//! The packet path does not touch the heap once it is warm, on either backend; nor do the decisions of the TURN relay.
#![allow(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::{RelayCommand, RelayIp, TurnConfig, TurnCredentials};
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{
    Class, Integrity, LongTermKey, Message, MessageWriter, TransactionId, attr, method,
};
use waypost_server::mmsg::Mmsg;
use waypost_server::packet_io::{IoConfig, PacketIo, UdpOptions, bind_udp};
use waypost_server::ring::Ring;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const BURST: usize = 50;

/// One burst there and on, with replies of our own, some of it in trains.
fn burst(
    io: &mut impl PacketIo,
    from: &UdpSocket,
    at: SocketAddr,
    to: &[UdpSocket],
    addresses: &[SocketAddr],
    received_per: &mut [usize],
) {
    let mut buffer = [0; 256];
    for i in 0..BURST {
        from.send_to(&buffer[..if i % 3 == 0 { 40 } else { 200 }], at)
            .unwrap();
    }
    let mut taken = 0;
    received_per.fill(0);
    while taken < BURST {
        io.turn(Some(Duration::from_secs(20))).unwrap();
        while let Some(received) = io.next() {
            let to = taken % addresses.len();
            received_per[to] += 2;
            io.send(received.socket, addresses[to], b"a reply of our own");
            let socket = received.socket;
            io.forward(received.buf, 4, &[0; 36], socket, addresses[to]);
            taken += 1;
        }
    }
    io.turn(Some(Duration::ZERO)).unwrap();
    for (socket, &expected) in to.iter().zip(received_per.iter()) {
        for _ in 0..expected {
            socket.recv(&mut buffer).unwrap();
        }
    }
}

fn allocates_nothing(mut io: impl PacketIo, is_wide: bool) {
    let local: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let options = UdpOptions::default();
    let socket = bind_udp(local, &options).unwrap();
    let at = socket.local_addr().unwrap();
    if is_wide {
        io.add_wide_socket(socket).unwrap();
    } else {
        io.add_socket(socket).unwrap();
    }
    let from = UdpSocket::bind(local).unwrap();
    let to: Vec<_> = (0..7).map(|_| UdpSocket::bind(local).unwrap()).collect();
    let addresses: Vec<_> = to
        .iter()
        .map(|socket| socket.local_addr().unwrap())
        .collect();
    for socket in &to {
        socket
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
    }
    let mut received_per = vec![0; to.len()];
    for _ in 0..20 {
        burst(&mut io, &from, at, &to, &addresses, &mut received_per);
    }
    let before = (ALLOCATIONS.get(), io.stats().datagrams_sent);
    for _ in 0..10_000 / BURST {
        burst(&mut io, &from, at, &to, &addresses, &mut received_per);
    }
    let after = (ALLOCATIONS.get(), io.stats().datagrams_sent);
    assert_eq!(after.1 - before.1, 20_000);
    assert_eq!(
        after.0 - before.0,
        0,
        "heap allocations in 10,000 forwards and replies"
    );
    assert!(io.stats().gso_trains > 0);
}

fn config() -> IoConfig {
    IoConfig {
        coalesce_us: 20,
        wide_slot_bytes: 9280,
        ..IoConfig::default()
    }
}

#[test]
fn the_ring_allocates_nothing() {
    allocates_nothing(Ring::new(&config()).unwrap(), false);
    allocates_nothing(Ring::new(&config()).unwrap(), true);
}

#[test]
fn mmsg_allocates_nothing() {
    allocates_nothing(Mmsg::new(&config()).unwrap(), false);
    allocates_nothing(Mmsg::new(&config()).unwrap(), true);
}

const MAIN: SocketIndex = SocketIndex(0);
const NOW: Millis = Millis(1000);

fn turn_shard() -> Shard {
    let ip = "198.41.0.4".parse().unwrap();
    let turn = TurnConfig {
        credentials: TurnCredentials {
            realm: "realm".to_owned(),
            users: vec![("ann".to_owned(), "password".to_owned())],
            secrets: Vec::new(),
        },
        relay_ips: vec![RelayIp {
            local: ip,
            external: ip,
        }],
        ..TurnConfig::default()
    };
    let config = ShardConfig {
        index: 0,
        count: 1,
        sockets: vec![SocketRole::Main],
        discovery: Vec::new(),
        lobby: LobbyConfig::default(),
        turn,
        dialects: DialectConfig::default(),
        access: RendezvousAccess::Open,
        secret: ServerSecret([1; 32]),
        wall: WallClock {
            unix_ms_at_zero: 1_700_000_000_000,
        },
        seed: [2; 32],
        placement_seeds: [3, 4],
    };
    Shard::new(config, NOW)
}

/// Makes an authenticated request; returns the relay socket if it opened one.
fn ask(
    shard: &mut Shard,
    client: Addr,
    method: u16,
    fill: &dyn Fn(&mut MessageWriter<'_>),
) -> Option<SocketIndex> {
    let key = LongTermKey::md5("ann", "realm", "password");
    let mut nonce: Option<Vec<u8>> = None;
    loop {
        let mut out = Vec::new();
        let id = TransactionId([5; 12]);
        let mut writer = MessageWriter::new(&mut out, method, Class::Request, id);
        fill(&mut writer);
        if let Some(nonce) = &nonce {
            writer
                .attribute(attr::USERNAME, b"ann")
                .attribute(attr::REALM, b"realm")
                .attribute(attr::NONCE, nonce)
                .integrity(Integrity::Sha1, key.as_bytes());
        }
        writer.finish();
        shard.handle_datagram(NOW, MAIN, ClientAddr(client), &out);
        let mut opened = None;
        for command in std::mem::take(&mut shard.outbox().relay) {
            if let RelayCommand::Open { socket, .. } = command {
                opened = Some(socket);
                shard.handle_relay_opened(NOW, socket, Ok(()));
            }
        }
        let bytes = shard.outbox().bytes.clone();
        shard.outbox().clear();
        let answer = Message::parse(&bytes).unwrap();
        match answer.error_code() {
            Some(401) => nonce = answer.find(attr::NONCE).map(Into::into),
            None => return opened,
            Some(code) => panic!("error {code}"),
        }
    }
}

#[test]
fn the_turn_relay_allocates_nothing() {
    let mut shard = turn_shard();
    let addr = |text: &str| Addr::new(text.parse().unwrap());
    let (client, bound, permitted) = (addr("198.41.9.9:1"), addr("8.8.8.8:1"), addr("8.8.4.4:1"));
    let relay = ask(&mut shard, client, method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    let relay = relay.unwrap();
    ask(&mut shard, client, method::CHANNEL_BIND, &|w| {
        w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0])
            .xor_addr(attr::XOR_PEER_ADDRESS, bound);
    });
    ask(&mut shard, client, method::CREATE_PERMISSION, &|w| {
        w.xor_addr(attr::XOR_PEER_ADDRESS, permitted);
    });
    let mut channel = channel_data::header(ChannelNumber::of_seat(0), 200).to_vec();
    channel.resize(204, 1);
    let mut indication = Vec::new();
    MessageWriter::new(
        &mut indication,
        method::SEND,
        Class::Indication,
        TransactionId([6; 12]),
    )
    .xor_addr(attr::XOR_PEER_ADDRESS, permitted)
    .attribute(attr::DATA, &channel)
    .finish();
    let before = ALLOCATIONS.get();
    let mut header_bytes = 0;
    for _ in 0..10_000 {
        for (socket, from, bytes) in [
            (MAIN, client, &channel),
            (MAIN, client, &indication),
            (relay, bound, &channel),
            (relay, permitted, &channel),
        ] {
            let verdict = shard.handle_datagram(NOW, socket, ClientAddr(from), bytes);
            let Verdict::Forward(forward) = verdict else {
                panic!("{verdict:?}");
            };
            header_bytes += forward.frame().header().len();
        }
    }
    assert_eq!(ALLOCATIONS.get() - before, 0);
    assert_eq!(header_bytes, 10_000 * (4 + 36));
}
