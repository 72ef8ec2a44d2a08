//! Sessions whose members came by TCP, TLS and UDP, on one shard and on two.

use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use waypost_proto::addr::Addr;
use waypost_proto::agent::{Agent, Config, HostConfig, Target};
use waypost_proto::time::Millis;
use waypost_proto::wire::stream::padding;

use crate::client::{BACKENDS, HANG, Stream, server};
use crate::identity::Identity;

enum Link {
    Udp(UdpSocket),
    Stream(Stream),
}

/// A client of a session.
struct Player {
    agent: Agent,
    link: Link,
    server: Addr,
    epoch: Instant,
    received: Vec<Vec<u8>>,
}

impl Player {
    fn new(server: SocketAddr, mut link: Link, seed: u8) -> Self {
        // A look for what has come takes no longer than this.
        let timeout = Some(Duration::from_millis(2));
        match &mut link {
            Link::Udp(socket) => socket.set_read_timeout(timeout).unwrap(),
            Link::Stream(stream) => {
                // A handshake may take longer.
                stream.shake_hands();
                stream.socket().set_read_timeout(timeout).unwrap();
            }
        }
        let server = Addr::new(server);
        let config = Config::new(server, "game");
        Self {
            agent: Agent::new(Millis(0), config, [seed; 32]),
            link,
            server,
            epoch: Instant::now(),
            received: Vec::new(),
        }
    }

    fn udp(server: SocketAddr, seed: u8) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        Self::new(server, Link::Udp(socket), seed)
    }

    fn now(&self) -> Millis {
        Millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap())
    }

    fn send(&mut self, mut bytes: Vec<u8>) {
        match &mut self.link {
            Link::Udp(socket) => {
                socket
                    .send_to(&bytes, self.server.to_socket_addr())
                    .unwrap();
            }
            Link::Stream(stream) => {
                bytes.resize(bytes.len() + padding(bytes.len()), 0);
                stream.send(&bytes);
            }
        }
    }

    fn turn(&mut self) {
        let now = self.now();
        self.agent.handle_timeout(now);
        while let Some(transmit) = self.agent.poll_transmit() {
            let is_probe = transmit.to.port() != self.server.port();
            // Nobody punches to or from the address of a stream: only the server and its second port are sent to.
            assert_eq!(transmit.to.ip(), self.server.ip());
            if is_probe {
                assert!(transmit.bytes.starts_with(&[0, 1]), "{transmit:?}");
                continue;
            }
            self.send(transmit.bytes);
        }
        let bytes = match &mut self.link {
            Link::Udp(socket) => {
                let mut buffer = [0; 2048];
                match socket.recv_from(&mut buffer) {
                    Ok((len, _)) => buffer[..len].to_vec(),
                    Err(_) => return,
                }
            }
            Link::Stream(stream) => match stream.poll() {
                Some(bytes) => bytes,
                None => return,
            },
        };
        if let Some(delivery) = self.agent.handle_datagram(now, self.server, &bytes) {
            assert!(!delivery.direct);
            self.received.push(bytes[delivery.range].to_vec());
        }
        while self.agent.poll_event().is_some() {}
    }

    /// Sends data to the one other member.
    fn say(&mut self, data: &[u8]) {
        let now = self.now();
        let peer = self.agent.members().next().expect("one other member").id;
        let mut frame = Vec::new();
        self.agent.frame(now, peer, data, &mut frame).unwrap();
        self.send(frame);
    }
}

fn until(players: &mut [&mut Player], what: &str, is_so: impl Fn(&[&mut Player]) -> bool) {
    let give_up = Instant::now() + HANG;
    while !is_so(players) {
        assert!(Instant::now() < give_up, "{what} did not come");
        players.iter_mut().for_each(|player| player.turn());
    }
}

fn meet(host: &mut Player, guest: &mut Player) {
    let now = host.now();
    host.agent.host(now, HostConfig::default()).unwrap();
    until(&mut [host], "a seat", |players| {
        players[0].agent.seat().is_some()
    });
    let code = host.agent.seat().unwrap().handle.code;
    let now = guest.now();
    guest.agent.join(now, Target::Code(code), "").unwrap();
    until(&mut [host, guest], "each other", |players| {
        players.iter().all(|p| p.agent.members().count() == 1)
    });
}

/// Data of every length modulo four, both ways.
fn talk(a: &mut Player, b: &mut Player) {
    for len in [0, 1, 2, 3, 4, 5, 1100] {
        let data = vec![len as u8; len];
        a.say(&data);
        until(&mut [a, b], "data", |players| {
            !players[1].received.is_empty()
        });
        b.say(&data);
        until(&mut [a, b], "data back", |players| {
            !players[0].received.is_empty()
        });
        for player in [&mut *a, &mut *b] {
            assert_eq!(std::mem::take(&mut player.received), [&data[..]]);
        }
    }
}

#[test]
fn members_on_tcp_tls_and_udp_talk_across_shards() {
    let identity = Identity::new();
    for io in BACKENDS {
        let server = server(io, "2", &identity, &[]);
        let main = server.main_addr();
        let player = |kind: usize, seed: u8| match kind {
            0 => Player::udp(main, seed),
            1 => Player::new(main, Link::Stream(Stream::tcp(main)), seed),
            _ => {
                let stream = Stream::tls(server.tls_addrs()[0], &identity.client);
                Player::new(main, Link::Stream(stream), seed)
            }
        };
        let mut players = Vec::new();
        for round in 0..5 {
            for (host, guest) in [(1, 0), (0, 1), (2, 0), (1, 1), (1, 2)] {
                let seed = round * 10 + (host * 3 + guest) as u8;
                let (mut host, mut guest) = (player(host, seed), player(guest, seed + 100));
                meet(&mut host, &mut guest);
                talk(&mut host, &mut guest);
                players.extend([host, guest]);
            }
        }
        // Streams of either shard were among them, so some sessions were on one and some on both.
        for shard in 0..2 {
            crate::client::until("numbers", || {
                let numbers = server.metrics().of_shard(shard);
                numbers
                    .iter()
                    .any(|(name, &value)| name.contains("streams_served") && value > 0)
            });
        }
    }
}

#[test]
fn a_seat_outlives_its_stream_and_is_taken_up_again() {
    let identity = Identity::new();
    for io in BACKENDS {
        let server = server(io, "2", &identity, &[]);
        let main = server.main_addr();
        for round in 0..4 {
            let mut host = Player::new(main, Link::Stream(Stream::tcp(main)), round);
            let mut guest = Player::udp(main, round + 50);
            meet(&mut host, &mut guest);
            let ticket = host.agent.seat().unwrap().ticket.clone();
            drop(host);
            let mut host = Player::new(main, Link::Stream(Stream::tcp(main)), round + 100);
            let now = host.now();
            host.agent.resume(now, &ticket, None, None).unwrap();
            until(&mut [&mut host, &mut guest], "the seat", |players| {
                players[0].agent.members().count() == 1
            });
            assert!(host.agent.is_host());
            talk(&mut host, &mut guest);
        }
    }
}
