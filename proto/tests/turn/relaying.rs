//! Data in both directions (RFC 8656 sections 11 and 12).

use proptest::prelude::*;
use waypost_proto::forwarding::{RelayLimits, SocketIndex};
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::{IcmpError, RelayIp, TurnConfig};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Class, Message, MessageWriter, attr, method};

use crate::client::{Client, MAIN, Server, addr, config, ip};

const AT: &str = "198.41.9.9:4000";

fn drop(reason: Counter) -> Verdict {
    Verdict::Drop(reason)
}

proptest! {
    // RFC 8656 sections 11.2 and 11.4: the bytes arrive exactly, whatever their length, in a well-formed indication.
    #[test]
    fn indications_both_ways(data in proptest::collection::vec(any::<u8>(), 0..600), is_v6: bool) {
        let mut server = Server::new();
        let mut client = Client::ann(AT);
        let relayed = client.allocate_with(&mut server, &|w| {
            w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        }).ok().relayed()[usize::from(is_v6)];
        let peer = addr(if is_v6 { "[2600::9]:77" } else { "8.8.8.8:77" });
        client.permit(&mut server, &[peer.with_port(1)]).ok();
        client.send(&mut server, peer, &data);
        let (socket, to, bytes) = server.take_one();
        prop_assert_eq!(server.relays.open[&socket.0], relayed);
        prop_assert_eq!(to, peer);
        prop_assert_eq!(&bytes, &data);
        server.peer_sends(peer, relayed, &data);
        let (socket, to, bytes) = server.take_one();
        prop_assert_eq!((socket, to), (MAIN, client.addr));
        let message = Message::parse(&bytes).expect("well-formed");
        prop_assert_eq!((message.class(), message.method()), (Class::Indication, method::DATA));
        prop_assert_eq!(message.find_xor_addr(attr::XOR_PEER_ADDRESS), Some(peer));
        prop_assert_eq!(message.find(attr::DATA), Some(&data[..]));
    }

    // RFC 8656 sections 12.5 to 12.7.
    #[test]
    fn channels_both_ways(data in proptest::collection::vec(any::<u8>(), 0..600), padding in 0usize..4) {
        let mut server = Server::new();
        let mut client = Client::ann(AT);
        let relayed = client.allocate(&mut server);
        let peer = addr("8.8.8.8:77");
        client.bind(&mut server, 0x4123, peer).ok();
        server.sent.clear();
        let number = channel_data::ChannelNumber::new(0x4123).expect("in range");
        let mut bytes = channel_data::header(number, data.len()).to_vec();
        bytes.extend_from_slice(&data);
        let sent = bytes.clone();
        bytes.resize(bytes.len() + padding, 0xee);
        server.deliver(MAIN, client.addr, &bytes);
        let (_, to, bytes) = server.take_one();
        prop_assert_eq!((to, &bytes), (peer, &data));
        server.peer_sends(peer, relayed, &data);
        let (socket, to, bytes) = server.take_one();
        prop_assert_eq!((socket, to, bytes), (MAIN, client.addr, sent));
        // Another port of the peer is permitted, and has no channel.
        server.peer_sends(peer.with_port(78), relayed, &data);
        let (_, _, bytes) = server.take_one();
        let message = Message::parse(&bytes).expect("well-formed");
        prop_assert_eq!(message.find_xor_addr(attr::XOR_PEER_ADDRESS), Some(peer.with_port(78)));
    }
}

// RFC 8656 section 9: without a permission nothing passes, either way, and nobody is told.
#[test]
fn strangers_are_dropped() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let relayed = client.allocate(&mut server);
    let (peer, stranger) = (addr("8.8.8.8:1"), addr("8.8.4.4:1"));
    client.permit(&mut server, &[peer]).ok();
    server.sent.clear();
    let none = drop(Counter::DropNoPermission);
    assert_eq!(server.peer_sends(stranger, relayed, b"x"), none);
    assert_eq!(client.send(&mut server, stranger, b"x"), none);
    let nobody = Client::ann("198.41.9.9:4001");
    let no_flow = drop(Counter::DropNoFlow);
    assert_eq!(nobody.channel(&mut server, 0x4000, b"x"), no_flow);
    assert_eq!(nobody.clone().send(&mut server, peer, b"x"), no_flow);
    let no_route = drop(Counter::DropNoRoute);
    assert_eq!(client.channel(&mut server, 0x4000, b"x"), no_route);
    assert_eq!(server.deliver(SocketIndex(999), peer, b"x"), no_route);
    assert!(server.sent.is_empty());
    // What peers send is data, whatever it looks like.
    let request = client.clone().signed(method::REFRESH, &|w| {
        w.u32(attr::LIFETIME, 0);
    });
    server.peer_sends(peer, relayed, &request);
    assert_eq!(server.take_one().1, client.addr);
    assert_eq!(server.allocations(), 1);
}

// RFC 8656 section 11.2: a Send indication needs a peer and data, and nothing in it that must be understood and is not.
#[test]
fn malformed_send_indications() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    client.allocate(&mut server);
    let peer = addr("8.8.8.8:1");
    client.permit(&mut server, &[peer]).ok();
    server.sent.clear();
    for case in 0..4 {
        let mut out = Vec::new();
        let id = client.id();
        let mut writer = MessageWriter::new(&mut out, method::SEND, Class::Indication, id);
        match case {
            0 => writer.xor_addr(attr::XOR_PEER_ADDRESS, peer),
            1 => writer.attribute(attr::DATA, b"x"),
            2 => writer.attribute(attr::XOR_PEER_ADDRESS, &[0, 1]),
            _ => writer.attribute(0x7777, &[]),
        };
        if case > 1 {
            writer
                .xor_addr(attr::XOR_PEER_ADDRESS, peer)
                .attribute(attr::DATA, b"x");
        }
        writer.finish();
        let verdict = server.deliver(MAIN, client.addr, &out);
        assert_eq!(verdict, drop(Counter::DropParse), "{case}");
    }
    assert!(server.sent.is_empty());
}

// RFC 8656 section 14: DONT-FRAGMENT is about the datagram to the peer, and about no other.
#[test]
fn dont_fragment() {
    let mut server = Server::new();
    let mut clients = [Client::ann(AT), Client::ann("198.41.9.9:4001")];
    let relayed = [0, 1].map(|i| {
        let answer = clients[i].allocate_with(&mut server, &|w| {
            w.attribute(attr::DONT_FRAGMENT, &[]);
        });
        answer.ok().relayed()[0]
    });
    let [mut client, mut other] = clients;
    let peer = addr("8.8.8.8:1");
    client.permit(&mut server, &[peer, relayed[1]]).ok();
    other.permit(&mut server, &[relayed[0]]).ok();
    for (to, asked, expected) in [
        (peer, true, true),
        (peer, false, false),
        (relayed[1], true, false),
    ] {
        let mut out = Vec::new();
        let mut writer = MessageWriter::new(&mut out, method::SEND, Class::Indication, client.id());
        if asked {
            writer.attribute(attr::DONT_FRAGMENT, &[]);
        }
        writer
            .xor_addr(attr::XOR_PEER_ADDRESS, to)
            .attribute(attr::DATA, b"x")
            .finish();
        let Verdict::Forward(forward) = server.deliver(MAIN, client.addr, &out) else {
            panic!("not forwarded to {to}");
        };
        assert_eq!(forward.dont_fragment, expected, "{to} {asked}");
    }
}

// RFC 8656 sections 11.5 and 18.13: an indication with the peer and the ICMP attribute, and no data; for permitted peers only.
#[test]
fn icmp_errors_are_told() {
    let mut server = Server::new();
    let mut client = Client::ann(AT);
    let relayed = client.allocate(&mut server);
    let (peer, stranger) = (addr("8.8.8.8:77"), addr("8.8.4.4:77"));
    client.permit(&mut server, &[peer]).ok();
    server.sent.clear();
    let open = server.relays.open.iter().find(|(_, at)| **at == relayed);
    let socket = SocketIndex(*open.expect("it is open").0);
    let unreachable = IcmpError {
        kind: 3,
        code: 3,
        mtu: 0,
    };
    let tell = |server: &mut Server, socket, peer| {
        server
            .shard
            .handle_icmp(server.now, socket, peer, unreachable);
        server.settle();
    };
    tell(&mut server, socket, stranger);
    tell(&mut server, SocketIndex(socket.0 + 1), peer);
    assert!(server.sent.is_empty());
    tell(&mut server, socket, peer);
    let (from, to, bytes) = server.take_one();
    assert_eq!((from, to), (MAIN, client.addr));
    let message = Message::parse(&bytes).expect("well-formed");
    assert_eq!(message.class(), Class::Indication);
    assert_eq!(message.method(), method::DATA);
    assert_eq!(message.find_xor_addr(attr::XOR_PEER_ADDRESS), Some(peer));
    assert_eq!(message.find(attr::DATA), None);
    assert_eq!(
        message.find(attr::ICMP),
        Some(&[0, 0, 6, 3, 0, 0, 0, 0][..])
    );
    // A flood of them is not passed on, and not an end of anything.
    for _ in 0..1000 {
        tell(&mut server, socket, peer);
    }
    assert!(server.sent.len() < 10);
    assert!(matches!(
        client.send(&mut server, peer, b"x"),
        Verdict::Forward(_)
    ));
    assert_eq!(server.allocations(), 1);
}

#[test]
fn limits_count_both_directions() {
    let mut server = Server::with(TurnConfig {
        limits: RelayLimits {
            packets_per_sec: 100,
            bytes_per_sec: 0,
        },
        ..config()
    });
    let mut client = Client::ann(AT);
    let relayed = client.allocate(&mut server);
    let peer = addr("8.8.8.8:1");
    client.bind(&mut server, 0x4000, peer).ok();
    let passed = (0..100).filter(|i| {
        let verdict = if i % 2 == 0 {
            client.channel(&mut server, 0x4000, b"x")
        } else {
            server.peer_sends(peer, relayed, b"x")
        };
        matches!(verdict, Verdict::Forward(_))
    });
    assert_eq!(passed.count(), 26);
    assert_eq!(server.count(Counter::DropLimit), 74);
    assert_eq!(server.count(Counter::TurnPackets), 26);
}

// Behind 1:1 NAT clients are told the outer address, and sockets are bound to the inner one.
#[test]
fn the_external_address_is_told() {
    let mut server = Server::with(TurnConfig {
        relay_ips: vec![RelayIp {
            local: ip("10.0.0.5"),
            external: ip("198.41.0.77"),
        }],
        ..config()
    });
    let told = Client::ann(AT).allocate(&mut server);
    assert_eq!(told.ip(), ip("198.41.0.77"));
    let bound = *server.relays.open.values().next().unwrap();
    assert_eq!(bound.ip(), ip("10.0.0.5"));
    assert_eq!(bound.port(), told.port());
}

// Clients of RFC 5766's time: channels up to 0x7FFF, and permissions of ten minutes.
#[test]
fn the_compatibility_switch() {
    let mut server = Server::with(TurnConfig {
        serves_rfc5766: true,
        ..config()
    });
    let mut client = Client::ann(AT);
    client
        .allocate_with(&mut server, &|w| {
            w.u32(attr::LIFETIME, 3600);
        })
        .ok();
    let peer = addr("8.8.8.8:1");
    client.bind(&mut server, 0x7fff, peer).ok();
    assert_eq!(client.bind(&mut server, 0x8000, peer).code(), 400);
    server.advance_secs(599);
    server.sent.clear();
    let verdict = server.deliver(MAIN, client.addr, &[0x7f, 0xff, 0, 2, b'h', b'i', 0, 0]);
    assert!(matches!(verdict, Verdict::Forward(_)));
    assert_eq!(server.take_one().2, b"hi");
}
