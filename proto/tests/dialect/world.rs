//! A server of one shard whose relay sockets are pretended.

use std::net::IpAddr;

use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::dialect::{Dialect, DialectConfig};
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{Inspection, RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::{RelayIp, TurnConfig};

use crate::relay_sockets::RelaySockets;

pub const SERVER: &str = "203.0.113.1";

pub fn addr(text: &str) -> Addr {
    Addr::new(text.parse().expect("an address"))
}

/// What the server sent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    pub at: u64,
    /// The listener's or relay socket's address.
    pub from: Addr,
    pub to: Addr,
    pub bytes: Vec<u8>,
}

impl Sent {
    pub fn text(&self) -> String {
        String::from_utf8(self.bytes.clone()).expect("text")
    }
}

pub struct World {
    pub shard: Shard,
    pub now: Millis,
    /// Listeners are among those that are open.
    pub relays: RelaySockets,
    pub sent: Vec<Sent>,
}

/// Every dialect on a socket of its own: 203.0.113.1, port 1000 and the dialect's number.
pub fn listener(dialect: Dialect) -> Addr {
    let place = Dialect::ALL.iter().position(|&other| other == dialect);
    let place = u16::try_from(place.unwrap()).unwrap();
    addr(&format!("{SERVER}:{}", 1000 + place))
}

/// Where noray's connections are accepted.
pub fn control() -> Addr {
    addr(&format!("{SERVER}:1100"))
}

/// The roles of all listeners, in the order of their indexes.
fn roles() -> [SocketRole; Dialect::ALL.len() + 1] {
    let mut roles = [SocketRole::DialectStream {
        dialect: Dialect::Noray,
        shard: 0,
    }; Dialect::ALL.len() + 1];
    for (role, dialect) in roles.iter_mut().zip(Dialect::ALL) {
        *role = SocketRole::Dialect(dialect);
    }
    roles
}

/// The index of [`control`].
const CONTROL: SocketIndex = SocketIndex(Dialect::ALL.len() as u16);

impl World {
    /// A client connects.
    pub fn open_stream(&mut self, client: Addr) {
        let client = ClientAddr(client);
        self.shard.handle_stream_opened(self.now, CONTROL, client);
        self.settle();
    }

    /// A client closes its half.
    pub fn end_stream(&mut self, client: Addr) {
        let client = ClientAddr(client);
        self.shard.handle_stream_ended(self.now, CONTROL, client);
        self.settle();
    }

    /// A connection is gone.
    pub fn close_stream(&mut self, client: Addr) {
        let client = ClientAddr(client);
        self.shard.handle_stream_closed(self.now, CONTROL, client);
        self.settle();
    }

    /// Whether a silent connection is kept.
    pub fn keeps_stream(&self, client: Addr) -> bool {
        self.shard.serves(self.now, CONTROL, ClientAddr(client))
    }

    pub fn new(dialects: DialectConfig) -> Self {
        let ip: IpAddr = SERVER.parse().unwrap();
        let place = |(_, dialect): &(usize, &Dialect)| **dialect == Dialect::Simple;
        let simple = Dialect::ALL.iter().enumerate().find(place).unwrap().0;
        let dialects = DialectConfig {
            simple_public: vec![(SocketIndex(simple as u16), listener(Dialect::Simple))],
            ..dialects
        };
        let config = ShardConfig {
            index: 0,
            count: 1,
            sockets: roles().to_vec(),
            discovery: Vec::new(),
            lobby: LobbyConfig::default(),
            turn: TurnConfig {
                relay_ips: vec![RelayIp {
                    local: ip,
                    external: ip,
                }],
                relay_ports: 50_000..=51_999,
                ..TurnConfig::default()
            },
            dialects,
            access: RendezvousAccess::Open,
            secret: ServerSecret([1; 32]),
            wall: WallClock {
                unix_ms_at_zero: 1_700_000_000_000,
            },
            seed: [2; 32],
            placement_seeds: [3, 4],
        };
        let open = Dialect::ALL.iter().enumerate();
        let open = open.map(|(place, &dialect)| (place as u16, listener(dialect)));
        let open = open.chain([(CONTROL.0, control())]);
        Self {
            shard: Shard::new(config, Millis(0)),
            now: Millis(0),
            relays: RelaySockets {
                open: open.collect(),
                ..RelaySockets::default()
            },
            sent: Vec::new(),
        }
    }

    /// One datagram comes to a socket that is open.
    pub fn deliver(&mut self, from: Addr, to: Addr, bytes: &[u8]) -> Verdict {
        let socket = self.relays.open.iter().find(|(_, at)| **at == to);
        let Some((&socket, _)) = socket else {
            return Verdict::Drop(Counter::DropNoRoute);
        };
        let verdict =
            self.shard
                .handle_datagram(self.now, SocketIndex(socket), ClientAddr(from), bytes);
        if let Verdict::Forward(forward) = verdict {
            let payload = &bytes[forward.strip..][..forward.payload_len];
            self.sent.push(Sent {
                at: self.now.0,
                from: self.relays.open[&forward.route.egress.0],
                to: forward.route.to,
                bytes: payload.to_vec(),
            });
        }
        self.settle();
        verdict
    }

    fn settle(&mut self) {
        self.shard.handle_timeout(self.now);
        self.relays.serve(&mut self.shard, self.now);
        let (at, outbox) = (self.now.0, self.shard.outbox());
        for transmit in &outbox.transmits {
            self.sent.push(Sent {
                at,
                from: self.relays.open[&transmit.socket.0],
                to: transmit.to,
                bytes: outbox.bytes[transmit.start..transmit.end].to_vec(),
            });
        }
        outbox.clear();
    }

    /// Lets time pass, timer by timer.
    pub fn pass(&mut self, ms: u64) {
        let end = self.now + ms;
        while let Some(next) = self.shard.poll_timeout().filter(|&next| next <= end) {
            self.now = next.max(self.now);
            self.settle();
        }
        self.now = end;
        self.settle();
    }

    /// What was sent since the last time.
    pub fn take(&mut self) -> Vec<Sent> {
        std::mem::take(&mut self.sent)
    }

    /// What was sent to `to` since the last time; the rest is kept.
    pub fn take_to(&mut self, to: Addr) -> Vec<Sent> {
        let (mine, rest) = self.take().into_iter().partition(|sent| sent.to == to);
        self.sent = rest;
        mine
    }

    pub fn counter(&mut self, counter: Counter) -> u64 {
        self.shard.counters().get(counter)
    }

    pub fn inspect(&self) -> Inspection {
        self.shard.inspect()
    }
}
