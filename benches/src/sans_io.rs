//! A shard without sockets, filled with sessions of two and with TURN allocations, and the datagrams of their traffic: what
//! instruction counts are taken of. Everything random in it has a fixed seed, so that two runs do exactly the same.

use std::net::{IpAddr, SocketAddr};

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::agent::{Agent, Config, HostConfig, PathPolicy, Probing, Target};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::{RelayCommand, RelayIp, TurnConfig, TurnCredentials};
use waypost_proto::wire::channel_data::{self, ChannelNumber};
use waypost_proto::wire::stun::{
    Class, Integrity, Message, MessageWriter, TransactionId, attr, method,
};

use crate::turn_client::ACCOUNT;

/// The main socket.
pub const MAIN: SocketIndex = SocketIndex(0);
/// The time at which everything happens.
pub const NOW: Millis = Millis(1000);
/// Payload bytes of all data.
const PAYLOAD: [u8; 200] = [7; 200];
const CHANNEL: u16 = 0x4000;
const RELAY_IP: &str = "198.41.0.4";

/// A datagram, where it arrives, and from whom.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The socket.
    pub socket: SocketIndex,
    /// The source.
    pub source: ClientAddr,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

impl Arrival {
    fn at_main(source: Addr, bytes: Vec<u8>) -> Self {
        Self {
            socket: MAIN,
            source: ClientAddr(source),
            bytes,
        }
    }

    /// Hands it to the shard.
    pub fn deliver(&self, shard: &mut Shard) -> Verdict {
        shard.handle_datagram(NOW, self.socket, self.source, &self.bytes)
    }
}

/// A shard, and its traffic in all kinds, one datagram of each kind per session or allocation.
pub struct Filled {
    /// The shard.
    pub shard: Shard,
    /// ChannelData between members of sessions.
    pub session_data: Vec<Arrival>,
    /// ChannelData of TURN clients.
    pub channel_data: Vec<Arrival>,
    /// Send indications of TURN clients.
    pub send_indications: Vec<Arrival>,
    /// What peers send to relayed addresses.
    pub peer_data: Vec<Arrival>,
    /// Binding requests of strangers.
    pub bindings: Vec<Arrival>,
    /// A signed Allocate request.
    pub allocate: Vec<u8>,
}

impl std::fmt::Debug for Filled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Filled").finish_non_exhaustive()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

/// Address number `n` of a network `10.x.0.0/16`.
fn addr(network: u8, n: usize) -> Addr {
    let [high, low] = u16::try_from(n).expect("few ends").to_be_bytes();
    Addr::new(SocketAddr::from(([10, network, high, low], 4000)))
}

/// Number `n` of peers, whose addresses are public.
fn peer(n: usize) -> Addr {
    let [high, low] = u16::try_from(n).expect("few ends").to_be_bytes();
    Addr::new(SocketAddr::from(([9, 9, high, low], 5000)))
}

fn new_shard(entries: usize) -> Shard {
    let relay_ip = RelayIp {
        local: ip(RELAY_IP),
        external: ip(RELAY_IP),
    };
    let config = ShardConfig {
        index: 0,
        count: 1,
        sockets: vec![SocketRole::Main],
        discovery: Vec::new(),
        lobby: LobbyConfig {
            sessions_max: entries,
            members_max: 2 * entries,
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
                realm: ACCOUNT.realm.to_owned(),
                users: vec![(ACCOUNT.user.to_owned(), ACCOUNT.password.to_owned())],
                secrets: Vec::new(),
            },
            relay_ips: vec![relay_ip],
            allocations_max: entries,
            allocations_per_user: 0,
            allocations_per_prefix: 0,
            ..TurnConfig::default()
        },
        dialects: DialectConfig::default(),
    };
    Shard::new(config, Millis(0))
}

/// Carries datagrams between the shard and two members until nothing moves.
fn settle(shard: &mut Shard, members: &mut [(Addr, Agent); 2]) {
    loop {
        let mut moved = false;
        for (at, agent) in members.iter_mut() {
            agent.handle_timeout(NOW);
            while let Some(transmit) = agent.poll_transmit() {
                moved = true;
                shard.handle_datagram(NOW, MAIN, ClientAddr(*at), &transmit.bytes);
            }
        }
        shard.handle_timeout(NOW);
        let outbox = shard.outbox();
        for transmit in &outbox.transmits {
            moved = true;
            let bytes = &outbox.bytes[transmit.start..transmit.end];
            for (at, agent) in members.iter_mut() {
                if *at == transmit.to {
                    agent.handle_datagram(NOW, addr(0, 1), bytes);
                }
            }
        }
        outbox.clear();
        if !moved {
            return;
        }
    }
}

/// Sets up session `n`; returns data from its guest to its host.
fn session(shard: &mut Shard, n: usize) -> Arrival {
    let mut members = [2 * n, 2 * n + 1].map(|m| {
        let config = Config {
            policy: PathPolicy::RelayOnly,
            probing: Probing::Off,
            ..Config::new(addr(0, 1), "game")
        };
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&(m as u64).to_be_bytes());
        (addr(1, m), Agent::new(NOW, config, seed))
    });
    let host = members[0].1.host(NOW, HostConfig::default());
    host.expect("an agent without a seat may host");
    settle(shard, &mut members);
    let code = members[0].1.seat().expect("it hosts").handle.code;
    let join = members[1].1.join(NOW, Target::Code(code), "");
    join.expect("an agent without a seat may join");
    settle(shard, &mut members);
    let host = members[1].1.members().next().expect("they have met").id;
    let mut bytes = Vec::new();
    let framed = members[1].1.frame(NOW, host, &PAYLOAD, &mut bytes);
    framed.expect("there is a path");
    Arrival::at_main(members[1].0, bytes)
}

/// Sends a request and takes the answer; relay sockets open as asked.
fn ask(shard: &mut Shard, from: Addr, request: &[u8]) -> Vec<u8> {
    shard.handle_datagram(NOW, MAIN, ClientAddr(from), request);
    loop {
        let commands = std::mem::take(&mut shard.outbox().relay);
        if commands.is_empty() {
            break;
        }
        for command in commands {
            if let RelayCommand::Open { socket, .. } = command {
                shard.handle_relay_opened(NOW, socket, Ok(()));
            }
        }
    }
    let outbox = shard.outbox();
    let transmit = outbox.transmits.first().expect("an answer");
    let answer = outbox.bytes[transmit.start..transmit.end].to_vec();
    outbox.clear();
    answer
}

fn signed(
    number: u16,
    id: usize,
    nonce: &[u8],
    fill: impl FnOnce(&mut MessageWriter<'_>),
) -> Vec<u8> {
    let mut transaction = [0; 12];
    transaction[..8].copy_from_slice(&(id as u64).to_be_bytes());
    transaction[10..].copy_from_slice(&number.to_be_bytes());
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(
        &mut bytes,
        number,
        Class::Request,
        TransactionId(transaction),
    );
    fill(&mut writer);
    writer
        .attribute(attr::USERNAME, ACCOUNT.user.as_bytes())
        .attribute(attr::REALM, ACCOUNT.realm.as_bytes())
        .attribute(attr::NONCE, nonce)
        .integrity(Integrity::Sha1, ACCOUNT.key().as_bytes())
        .finish();
    bytes
}

/// Allocation number `n`: its traffic is added to `filled`. Its relay socket is the `n`th after the listener.
fn allocation(filled: &mut Filled, n: usize) {
    let client = addr(2, n);
    let transport = |w: &mut MessageWriter<'_>| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    };
    let mut first = Vec::new();
    let mut writer = MessageWriter::new(
        &mut first,
        method::ALLOCATE,
        Class::Request,
        TransactionId([1; 12]),
    );
    transport(&mut writer);
    writer.finish();
    let challenge = ask(&mut filled.shard, client, &first);
    let challenge = Message::parse(&challenge).expect("an answer");
    let nonce = challenge.find(attr::NONCE).expect("a nonce").to_vec();
    filled.allocate = signed(method::ALLOCATE, n, &nonce, transport);
    let request = filled.allocate.clone();
    let bind = signed(method::CHANNEL_BIND, n, &nonce, |w| {
        let [high, low] = CHANNEL.to_be_bytes();
        w.attribute(attr::CHANNEL_NUMBER, &[high, low, 0, 0])
            .xor_addr(attr::XOR_PEER_ADDRESS, peer(n));
    });
    for request in [request, bind] {
        let answer = ask(&mut filled.shard, client, &request);
        let answer = Message::parse(&answer).expect("an answer");
        assert_eq!(answer.class(), Class::Success, "{:?}", answer.error_code());
    }
    let channel = ChannelNumber::new(CHANNEL).expect("the first channel");
    let header = channel_data::header(channel, PAYLOAD.len());
    filled
        .channel_data
        .push(Arrival::at_main(client, [&header, &PAYLOAD[..]].concat()));
    let mut indication = Vec::new();
    MessageWriter::new(
        &mut indication,
        method::SEND,
        Class::Indication,
        TransactionId([2; 12]),
    )
    .xor_addr(attr::XOR_PEER_ADDRESS, peer(n))
    .attribute(attr::DATA, &PAYLOAD)
    .finish();
    filled
        .send_indications
        .push(Arrival::at_main(client, indication));
    filled.peer_data.push(Arrival {
        socket: SocketIndex(1 + u16::try_from(n).expect("few sockets")),
        source: ClientAddr(peer(n)),
        bytes: PAYLOAD.to_vec(),
    });
}

impl Filled {
    /// A shard with `entries` sessions and as many allocations.
    #[must_use]
    pub fn new(entries: usize) -> Self {
        let mut filled = Self {
            shard: new_shard(entries),
            session_data: Vec::new(),
            channel_data: Vec::new(),
            send_indications: Vec::new(),
            peer_data: Vec::new(),
            bindings: Vec::new(),
            allocate: Vec::new(),
        };
        for n in 0..entries {
            let data = session(&mut filled.shard, n);
            filled.session_data.push(data);
            allocation(&mut filled, n);
            let mut binding = Vec::new();
            let id = TransactionId([3; 12]);
            MessageWriter::new(&mut binding, method::BINDING, Class::Request, id).finish();
            filled.bindings.push(Arrival::at_main(addr(3, n), binding));
        }
        filled
    }
}
