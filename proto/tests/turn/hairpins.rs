//! Clients whose peers are relayed transport addresses of the same server: one step instead of two, and never one more than
//! permissions allow (RFC 8656 sections 9 to 12).

use proptest::prelude::*;
use waypost_proto::addr::Addr;
use waypost_proto::forwarding::{Framing, RelayLimits, Service};
use waypost_proto::lobby::Mail;
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::{RelayIp, TurnConfig};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Message, attr, method};

use crate::client::{Answer, Client, MAIN, Server, config, ip};
use crate::world::World;

const NO_PERMISSION: Verdict = Verdict::Drop(Counter::DropNoPermission);

fn client(port: u16) -> Client {
    Client::ann(&format!("198.41.9.9:{port}"))
}

/// Whether it goes from client to client.
fn is_composed(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Forward(forward) if forward.service == Service::Hairpin)
}

/// Whether it leaves by a relay socket.
fn is_relayed(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Forward(forward) if forward.framing == Framing::Raw)
}

/// Two clients of one shard that permit each other.
fn pair(server: &mut Server) -> ([Client; 2], [Addr; 2]) {
    let mut clients = [client(1), client(2)];
    let relayed = [0, 1].map(|i| clients[i].allocate(server));
    clients[0].permit(server, &[relayed[1].with_port(1)]).ok();
    clients[1].permit(server, &[relayed[0]]).ok();
    (clients, relayed)
}

/// The peer and the data of what a client was sent.
fn opened(bytes: &[u8]) -> (Option<u16>, Option<Addr>, Vec<u8>) {
    if let Some(message) = channel_data::parse(bytes) {
        return (Some(message.channel.get()), None, message.data.to_vec());
    }
    let message = Message::parse(bytes).expect("well-formed");
    assert_eq!(message.method(), method::DATA);
    let data = message.find(attr::DATA).expect("data").to_vec();
    (None, message.find_xor_addr(attr::XOR_PEER_ADDRESS), data)
}

proptest! {
    // What arrives is what would arrive by way of both relay sockets, in every framing, whatever the length.
    #[test]
    fn the_same_arrives_as_through_the_kernel(
        data in proptest::collection::vec(any::<u8>(), 0..600),
        sends_channel: bool,
        receives_channel: bool,
        is_v6: bool,
    ) {
        let mut server = Server::new();
        let mut clients = [client(1), client(2)];
        let relayed = [0, 1].map(|i| {
            clients[i].allocate_with(&mut server, &|w| {
                w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1 + u8::from(is_v6), 0, 0, 0]);
            }).ok().relayed()[0]
        });
        clients[0].permit(&mut server, &[relayed[1]]).ok();
        clients[1].permit(&mut server, &[relayed[0]]).ok();
        if receives_channel {
            clients[1].bind(&mut server, 0x4007, relayed[0]).ok();
        }
        let verdict = if sends_channel {
            clients[0].bind(&mut server, 0x4003, relayed[1]).ok();
            clients[0].channel(&mut server, 0x4003, &data)
        } else {
            clients[0].send(&mut server, relayed[1], &data)
        };
        prop_assert!(is_composed(verdict));
        let direct = server.take_one();
        server.peer_sends(relayed[0], relayed[1], &data);
        let through = server.take_one();
        prop_assert_eq!((direct.0, direct.1), (MAIN, clients[1].addr));
        prop_assert_eq!((direct.0, direct.1), (through.0, through.1));
        prop_assert_eq!(opened(&direct.2), opened(&through.2));
        prop_assert_eq!(direct.2.len(), through.2.len());
        prop_assert_eq!(opened(&direct.2).2, data);
    }
}

#[test]
fn both_sides_need_permission() {
    let mut server = Server::new();
    let mut clients = [client(1), client(2)];
    let relayed = [0, 1].map(|i| clients[i].allocate(&mut server));
    assert_eq!(
        clients[0].send(&mut server, relayed[1], b"x"),
        NO_PERMISSION
    );
    clients[0].permit(&mut server, &[relayed[1]]).ok();
    assert_eq!(
        clients[0].send(&mut server, relayed[1], b"x"),
        NO_PERMISSION
    );
    assert!(server.sent.is_empty());
    clients[1]
        .permit(&mut server, &[relayed[0].with_port(9)])
        .ok();
    assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
    assert_eq!(server.count(Counter::HairpinPackets), 1);
    assert_eq!(
        server.count(Counter::TurnPackets),
        1,
        "once per packet that arrives"
    );
    assert_eq!(server.count(Counter::TurnBytes), 1);
    assert_eq!(server.count(Counter::DropNoPermission), 2);
}

#[test]
fn what_lapses_on_either_side_ends_it_at_once() {
    for lapsing in [0, 1] {
        let mut server = Server::new();
        let (mut clients, relayed) = pair(&mut server);
        server.advance_secs(200);
        clients[1 - lapsing]
            .permit(&mut server, &[relayed[lapsing]])
            .ok();
        server.advance_secs(99);
        assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
        server.advance_secs(1);
        assert_eq!(
            clients[0].send(&mut server, relayed[1], b"x"),
            NO_PERMISSION
        );
        // A channel does not stand in for a permission.
        clients[lapsing]
            .bind(&mut server, 0x4001, relayed[1 - lapsing])
            .ok();
        assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
    }
}

#[test]
fn an_allocation_that_ends_takes_no_more_and_its_port_starts_anew() {
    let mut server = Server::with(TurnConfig {
        relay_ports: 50_000..=50_001,
        ..config()
    });
    let (mut clients, relayed) = pair(&mut server);
    clients[1].refresh(&mut server, 0).ok();
    // Nobody of this server has the port: if another process has, that is its affair.
    assert!(is_relayed(clients[0].send(&mut server, relayed[1], b"x")));
    let mut next = client(3);
    assert_eq!(next.allocate(&mut server), relayed[1]);
    assert_eq!(
        clients[0].send(&mut server, relayed[1], b"x"),
        NO_PERMISSION
    );
    next.permit(&mut server, &[relayed[0]]).ok();
    assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
    assert_eq!(server.take_one().1, next.addr);
    clients[0].refresh(&mut server, 0).ok();
    let no_flow = Verdict::Drop(Counter::DropNoFlow);
    assert_eq!(clients[0].send(&mut server, relayed[1], b"x"), no_flow);
    // Expiry is an end like any other.
    clients[0].allocate(&mut server);
    clients[0].permit(&mut server, &[relayed[1]]).ok();
    server.advance_secs(590);
    for client in &mut clients {
        client.nonce.clear();
    }
    clients[0].refresh(&mut server, 600).ok();
    clients[0].permit(&mut server, &[relayed[1]]).ok();
    next.permit(&mut server, &[relayed[0]]).ok();
    assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
    server.advance_secs(11);
    assert!(is_relayed(clients[0].send(&mut server, relayed[1], b"x")));
}

#[test]
fn a_client_may_be_its_own_peer() {
    let mut server = Server::new();
    let mut client = client(1);
    let relayed = client.allocate(&mut server);
    client.permit(&mut server, &[relayed]).ok();
    assert!(is_composed(client.send(&mut server, relayed, b"x")));
    let (_, to, bytes) = server.take_one();
    assert_eq!((to, opened(&bytes).1), (client.addr, Some(relayed)));
}

#[test]
fn both_ends_are_charged() {
    let limits = RelayLimits {
        packets_per_sec: 100,
        bytes_per_sec: 0,
    };
    let mut server = Server::with(TurnConfig { limits, ..config() });
    let (mut clients, relayed) = pair(&mut server);
    let mut third = client(3);
    third.allocate(&mut server);
    third.permit(&mut server, &[relayed[1]]).ok();
    let passed = |server: &mut Server, from: &mut Client, to| {
        let sent = (0..100).filter(|_| is_composed(from.send(server, to, b"x")));
        sent.count()
    };
    assert_eq!(passed(&mut server, &mut clients[0], relayed[1]), 26);
    assert_eq!(passed(&mut server, &mut third, relayed[1]), 0);
    assert_eq!(passed(&mut server, &mut clients[1], relayed[0]), 0);
    assert_eq!(server.count(Counter::DropLimit), 74 + 100 + 100);
}

// Behind 1:1 NAT clients know each other's outer addresses; who names the inner one is seen by his own inner one.
#[test]
fn external_addresses_are_translated() {
    let mut server = Server::with(TurnConfig {
        relay_ips: vec![RelayIp {
            local: ip("10.0.0.5"),
            external: ip("198.41.0.77"),
        }],
        ..config()
    });
    let (mut clients, relayed) = pair(&mut server);
    assert_eq!(relayed[0].ip(), ip("198.41.0.77"));
    assert!(is_composed(clients[0].send(&mut server, relayed[1], b"x")));
    assert_eq!(opened(&server.take_one().2).1, Some(relayed[0]));
    let inner = relayed.map(|at| Addr::from_ip_port(ip("10.0.0.5"), at.port()));
    assert_eq!(clients[0].send(&mut server, inner[1], b"x"), NO_PERMISSION);
    clients[0].permit(&mut server, &[inner[1]]).ok();
    assert_eq!(clients[0].send(&mut server, inner[1], b"x"), NO_PERMISSION);
    clients[1].permit(&mut server, &[inner[0]]).ok();
    assert!(is_composed(clients[0].send(&mut server, inner[1], b"x")));
    assert_eq!(opened(&server.take_one().2).1, Some(inner[0]));
    // Other ports of the address are denied like any private address.
    let other = inner[1].with_port(80);
    let denied = Verdict::Drop(Counter::DropPeerDenied);
    assert_eq!(clients[0].send(&mut server, other, b"x"), denied);
}

impl World {
    fn partners(&self) -> [usize; 2] {
        [0, 1].map(|i| self.shards[i].shard.inspect().hairpin_partners)
    }

    /// A client on each shard; they permit each other.
    fn pair(&mut self) -> ([Client; 2], [Addr; 2]) {
        let mut clients = [client(1), client(2)];
        let relayed = [0, 1].map(|i| clients[i].allocate(&mut self.shards[i]));
        for i in [0, 1] {
            clients[i]
                .permit(&mut self.shards[i], &[relayed[1 - i]])
                .ok();
        }
        (clients, relayed)
    }

    /// Sends as the first of a pair, and lets what comes of it come.
    fn send(&mut self, client: &mut Client, to: Addr, data: &[u8]) -> Verdict {
        let verdict = client.send(&mut self.shards[0], to, data);
        self.settle();
        verdict
    }
}

#[test]
fn clients_of_two_shards() {
    let mut world = World::new();
    let (mut clients, relayed) = world.pair();
    let [mut one, mut two] = clients.clone();
    // The first packets take the long way; what is lost of the questions is asked again.
    world.lost = 1;
    assert!(is_relayed(world.send(&mut one, relayed[1], b"x")));
    assert!(is_relayed(world.send(&mut one, relayed[1], b"x")));
    assert_eq!(world.partners(), [0, 0]);
    world.advance_secs(1);
    assert!(is_relayed(world.send(&mut one, relayed[1], b"x")));
    assert!(is_composed(world.send(&mut one, relayed[1], b"direct")));
    let (socket, to, bytes) = world.shards[0].take_one();
    assert_eq!((socket, to), (MAIN, two.addr));
    assert_eq!(opened(&bytes), (None, Some(relayed[0]), b"direct".to_vec()));
    assert_eq!(world.partners(), [1, 0]);
    // A channel that is bound later is used at once.
    two.bind(&mut world.shards[1], 0x4005, relayed[0]).ok();
    world.settle();
    one.bind(&mut world.shards[0], 0x4001, relayed[1]).ok();
    assert!(is_composed(one.channel(&mut world.shards[0], 0x4001, b"y")));
    assert_eq!(opened(&world.shards[0].take_one().2).0, Some(0x4005));
    // The other direction has its own half.
    assert!(is_relayed(clients[1].send(
        &mut world.shards[1],
        relayed[0],
        b"z"
    )));
    world.settle();
    assert!(is_composed(clients[1].send(
        &mut world.shards[1],
        relayed[0],
        b"z"
    )));
    assert_eq!(opened(&world.shards[1].take_one().2).0, Some(0x4001));
    assert_eq!(world.partners(), [1, 1]);
    clients[0].refresh(&mut world.shards[0], 0).ok();
    world.settle();
    assert_eq!(world.partners(), [0, 0]);
}

#[test]
fn a_guest_never_outlives_the_permission() {
    let mut world = World::new();
    let (mut clients, relayed) = world.pair();
    let one = &mut clients[0];
    world.send(one, relayed[1], b"x");
    assert!(is_composed(world.send(one, relayed[1], b"x")));
    world.advance_secs(290);
    one.permit(&mut world.shards[0], &[relayed[1]]).ok();
    // There is nothing newer to be told.
    for _ in 0..9 {
        assert!(is_composed(world.send(one, relayed[1], b"x")));
        world.advance_secs(1);
    }
    world.advance_secs(1);
    assert!(is_relayed(world.send(one, relayed[1], b"x")));
    assert!(is_relayed(world.send(one, relayed[1], b"x")));
    // Permitted again, it is found again.
    clients[1].permit(&mut world.shards[1], &[relayed[0]]).ok();
    world.advance_secs(1);
    assert!(is_relayed(world.send(&mut clients[0], relayed[1], b"x")));
    assert!(is_composed(world.send(&mut clients[0], relayed[1], b"x")));
}

#[test]
fn a_permission_that_is_kept_up_never_sends_data_the_long_way_again() {
    let mut world = World::new();
    let (mut clients, relayed) = world.pair();
    world.send(&mut clients[0], relayed[1], b"x");
    clients[0]
        .bind(&mut world.shards[0], 0x4000, relayed[1])
        .ok();
    clients[1]
        .bind(&mut world.shards[1], 0x4000, relayed[0])
        .ok();
    world.settle();
    for second in 0..2000u64 {
        if second % 250 == 249 {
            for i in [0, 1] {
                clients[i].nonce.clear();
                clients[i]
                    .permit(&mut world.shards[i], &[relayed[1 - i]])
                    .ok();
                clients[i].refresh(&mut world.shards[i], 600).ok();
            }
        }
        let verdict = world.send(&mut clients[0], relayed[1], b"x");
        assert!(is_composed(verdict), "after {second} s");
        let channel = opened(&world.shards[0].take_one().2).0;
        assert_eq!(
            channel,
            (second < 600).then_some(0x4000),
            "after {second} s"
        );
        world.advance_secs(1);
    }
}

#[test]
fn the_end_of_the_peer_is_told_and_that_mail_is_never_dropped() {
    let mut world = World::with(TurnConfig {
        relay_ports: 50_000..=50_003,
        ..config()
    });
    let (mut clients, relayed) = world.pair();
    let one = &mut clients[0];
    world.send(one, relayed[1], b"x");
    assert!(is_composed(world.send(one, relayed[1], b"x")));
    clients[1].refresh(&mut world.shards[1], 0).ok();
    world.shards[1].shard.handle_timeout(world.shards[1].now);
    world.shards[1].settle();
    let told = &world.shards[1].mail;
    assert!(matches!(
        told[..],
        [(0, Mail::HairpinRoute { route: None, .. })]
    ));
    assert!(!told[0].1.may_be_dropped());
    world.settle();
    assert_eq!(world.partners(), [0, 0]);
    let one = &mut clients[0];
    assert!(is_relayed(world.send(one, relayed[1], b"x")));
    // Whoever gets the port next has promised nothing.
    for port in 10..12 {
        client(port).allocate(&mut world.shards[1]);
    }
    world.advance_secs(5);
    assert!(is_relayed(world.send(one, relayed[1], b"x")));
    assert!(is_relayed(world.send(one, relayed[1], b"x")));
}

#[test]
fn guests_are_bounded_and_forgotten_with_their_allocation() {
    let mut world = World::with(TurnConfig {
        allocations_max: 128,
        unproven_bytes_per_sec: 0,
        ..config()
    });
    let mut one = client(1);
    let from = one.allocate(&mut world.shards[0]);
    let peers: Vec<_> = (100..200)
        .map(|port| {
            let mut peer = client(port);
            let relayed = peer.allocate(&mut world.shards[1]);
            peer.permit(&mut world.shards[1], &[from]).ok();
            relayed
        })
        .collect();
    one.permit(&mut world.shards[0], &peers[..1]).ok();
    for _ in 0..2 {
        for peer in &peers {
            world.send(&mut one, *peer, b"x");
        }
    }
    assert_eq!(world.partners(), [64, 0]);
    one.refresh(&mut world.shards[0], 0).ok();
    assert_eq!(world.partners(), [0, 0]);
}

#[test]
fn partners_are_charged_by_each_shard() {
    let limits = RelayLimits {
        packets_per_sec: 100,
        bytes_per_sec: 0,
    };
    let mut world = World::with(TurnConfig { limits, ..config() });
    let (mut clients, relayed) = world.pair();
    let mut third = client(3);
    third.allocate(&mut world.shards[0]);
    third.permit(&mut world.shards[0], &[relayed[1]]).ok();
    for sender in [&mut clients[0], &mut third] {
        world.send(sender, relayed[1], b"x");
    }
    let mut passed = |from: &mut Client| {
        (0..100)
            .filter(|_| is_composed(world.send(from, relayed[1], b"x")))
            .count()
    };
    assert_eq!((passed(&mut clients[0]), passed(&mut third)), (25, 1));
}

/// Moves a client (RFC 8016) by its ticket, and shows that it is there. Returns the ticket for the next move.
fn move_to(moved: &mut Client, server: &mut Server, ticket: &[u8]) -> Vec<u8> {
    let answer = moved.request(server, method::REFRESH, &|w| {
        w.attribute(attr::MOBILITY_TICKET, ticket);
    });
    moved.refresh(server, 600).ok();
    ticket_in(&answer.ok())
}

fn ticket_in(answer: &Answer) -> Vec<u8> {
    let message = answer.message();
    message.find(attr::MOBILITY_TICKET).expect("one").to_vec()
}

// RFC 8016 beside hairpins: whoever sends directly sends to where the client is now, and to a stream nobody sends directly.
#[test]
fn a_hairpin_follows_its_client() {
    for receiver_shard in [0, 1] {
        let mut world = World::new();
        let mut one = client(1);
        let from = one.allocate(&mut world.shards[0]);
        let mut two = client(2);
        let answer = two.allocate_with(&mut world.shards[receiver_shard], &|w| {
            w.attribute(attr::MOBILITY_TICKET, &[]);
        });
        let answer = answer.ok();
        let (to, ticket) = (answer.relayed()[0], ticket_in(&answer));
        one.permit(&mut world.shards[0], &[to]).ok();
        two.permit(&mut world.shards[receiver_shard], &[from]).ok();
        let receiver = |world: &mut World, one: &mut Client| {
            let verdict = world.send(one, to, b"x");
            (is_composed(verdict), world.shards[0].take_one().1)
        };
        world.send(&mut one, to, b"x");
        assert_eq!(receiver(&mut world, &mut one), (true, two.addr));
        let mut moved = client(3);
        let ticket = move_to(&mut moved, &mut world.shards[receiver_shard], &ticket);
        world.settle();
        assert_eq!(receiver(&mut world, &mut one), (true, moved.addr));
        let mut by_stream = client(4).on_stream(receiver_shard as u16);
        by_stream.connect(&mut world.shards[receiver_shard]);
        let ticket = move_to(&mut by_stream, &mut world.shards[receiver_shard], &ticket);
        world.settle();
        for _ in 0..3 {
            assert_eq!(receiver(&mut world, &mut one), (false, to), "by the kernel");
            world.advance_secs(1);
        }
        world.shards[receiver_shard].sent.clear();
        world.shards[receiver_shard].peer_sends(from, to, b"x");
        let (socket, at, _) = world.shards[receiver_shard].take_one();
        assert_eq!((socket, at), (by_stream.socket, by_stream.addr));
        // And back.
        let mut back = client(5);
        move_to(&mut back, &mut world.shards[receiver_shard], &ticket);
        world.settle();
        world.send(&mut one, to, b"x");
        assert_eq!(receiver(&mut world, &mut one), (true, back.addr));
    }
}

// One datagram cannot reach both ends of a pair of which one has a stream: its data takes both relay sockets, either way.
#[test]
fn streams_are_at_no_end_of_a_hairpin() {
    let mut server = Server::new();
    let mut clients = [client(1), client(2).on_stream(0)];
    clients[1].connect(&mut server);
    let relayed = [0, 1].map(|i| clients[i].allocate(&mut server));
    for (i, peer) in [(0, relayed[1]), (1, relayed[0])] {
        clients[i].bind(&mut server, 0x4000, peer).ok();
    }
    for (from, to) in [(0, 1), (1, 0)] {
        assert!(is_relayed(clients[from].channel(
            &mut server,
            0x4000,
            b"data"
        )));
        let (socket, at, payload) = server.take_one();
        assert_eq!(
            (server.relays.open[&socket.0], at),
            (relayed[from], relayed[to])
        );
        server.peer_sends(relayed[from], relayed[to], &payload);
        let (socket, at, bytes) = server.take_one();
        assert_eq!((socket, at), (clients[to].socket, clients[to].addr));
        assert_eq!(opened(&bytes), (Some(0x4000), None, b"data".to_vec()));
    }
    assert_eq!(server.count(Counter::HairpinPackets), 0);
}
