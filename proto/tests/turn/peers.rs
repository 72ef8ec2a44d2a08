//! Whom a client may reach (RFC 8656 sections 10.2, 12.2 and 21.1.3): every denied range in every encoding, on every path.

use std::net::{IpAddr, Ipv4Addr};

use waypost_proto::addr::Addr;
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::turn::TurnConfig;
use waypost_proto::turn::peer_policy::{DENIED_BY_DEFAULT, PeerRules, encodings};
use waypost_proto::wire::stun::{AttributeWriter, attr, method};

use crate::client::{Client, Server, addr, config};

fn dual(server: &mut Server, is_stream: bool) -> Client {
    let mut client = Client::ann("198.41.9.9:4000");
    if is_stream {
        client = client.on_stream(0);
        client.connect(server);
    }
    client
        .allocate_with(server, &|w| {
            w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        })
        .ok();
    client
}

/// XOR-PEER-ADDRESS exactly as IPv6, so that the mapped form stays what it is on the wire.
fn six(ip: std::net::Ipv6Addr, port: u16, id: [u8; 12]) -> Vec<u8> {
    let mut mask = [0; 16];
    mask[..4].copy_from_slice(&[0x21, 0x12, 0xa4, 0x42]);
    mask[4..].copy_from_slice(&id);
    let mut value = vec![0, 2];
    value.extend_from_slice(&(port ^ 0x2112).to_be_bytes());
    value.extend(ip.octets().iter().zip(mask).map(|(byte, mask)| byte ^ mask));
    value
}

#[test]
fn denied_ranges_in_six_encodings_on_three_paths() {
    for is_stream in [false, true] {
        denied_ranges(is_stream);
    }
}

fn denied_ranges(is_stream: bool) {
    let mut server = Server::new();
    let mut client = dual(&mut server, is_stream);
    let mut denied = 0;
    for range in DENIED_BY_DEFAULT {
        let (IpAddr::V4(first), IpAddr::V4(last)) = (range.first(), range.last()) else {
            for ip in [range.first(), range.last()] {
                let peer = Addr::from_ip_port(ip, 4000);
                assert_eq!(client.permit(&mut server, &[peer]).code(), 403, "{peer}");
                assert_eq!(client.bind(&mut server, 0x4000, peer).code(), 403, "{peer}");
                let verdict = client.send(&mut server, peer, b"x");
                assert_eq!(verdict, Verdict::Drop(Counter::DropPeerDenied));
            }
            continue;
        };
        let (low, high) = (first.to_bits(), last.to_bits());
        for bits in [low, high, low + (high - low) / 2] {
            let ip = Ipv4Addr::from_bits(bits);
            let plain = Addr::from_ip_port(ip.into(), 4000);
            assert_eq!(client.permit(&mut server, &[plain]).code(), 403, "{plain}");
            assert_eq!(
                client.bind(&mut server, 0x4000, plain).code(),
                403,
                "{plain}"
            );
            let verdict = client.send(&mut server, plain, b"x");
            assert_eq!(verdict, Verdict::Drop(Counter::DropPeerDenied));
            for form in encodings(ip) {
                let write = |out: &mut Vec<u8>, id| {
                    AttributeWriter::new(out)
                        .attribute(attr::XOR_PEER_ADDRESS, &six(form, 4000, id));
                };
                for method in [method::CREATE_PERMISSION, method::CHANNEL_BIND] {
                    // The id is the client's next.
                    let id = client.clone().id().0;
                    let mut raw = Vec::new();
                    write(&mut raw, id);
                    let answer = client.request(&mut server, method, &|w| {
                        w.attribute(attr::XOR_PEER_ADDRESS, &raw[4..])
                            .attribute(attr::CHANNEL_NUMBER, &[0x40, 1, 0, 0]);
                    });
                    assert_eq!(answer.code(), 403, "{form}");
                }
                let verdict = client.send(&mut server, Addr::from_ip_port(form.into(), 4000), b"x");
                assert_eq!(verdict, Verdict::Drop(Counter::DropPeerDenied), "{form}");
                denied += 1;
            }
        }
    }
    assert_eq!(denied, 18 * 3 * 5);
}

// RFC 8656 section 9.1: the port of a permission does not matter; a channel and a datagram need one that is not 0.
#[test]
fn port_zero_and_own_services() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    let relayed = client.allocate(&mut server);
    let peer = addr("8.8.8.8:0");
    client.permit(&mut server, &[peer]).ok();
    assert_eq!(client.bind(&mut server, 0x4000, peer).code(), 403);
    let denied = Verdict::Drop(Counter::DropPeerDenied);
    assert_eq!(client.send(&mut server, peer, b"x"), denied);
    // The server's own relay address is a peer like any other, but its other ports are not.
    let mut neighbour = Client::ann("198.41.9.9:5");
    let other = neighbour.allocate(&mut server);
    client.permit(&mut server, &[other]).ok();
    neighbour.permit(&mut server, &[relayed]).ok();
    assert!(matches!(
        client.send(&mut server, other, b"x"),
        Verdict::Forward(_)
    ));
    for port in [3478, 22, 49_999, 51_000] {
        let service = other.with_port(port);
        assert_eq!(client.bind(&mut server, 0x4000, service).code(), 403);
        assert_eq!(client.send(&mut server, service, b"x"), denied);
    }
}

#[test]
fn rules_of_the_operator() {
    let mut server = Server::with(TurnConfig {
        peers: PeerRules {
            allow: vec!["10.0.0.0/8".parse().unwrap()],
            deny: vec!["10.9.0.0/16".parse().unwrap(), "8.8.8.8".parse().unwrap()],
            ..PeerRules::default()
        },
        ..config()
    });
    let mut client = dual(&mut server, false);
    for (text, code) in [
        ("10.1.2.3:1", 0),
        ("10.9.2.3:1", 403),
        ("8.8.8.8:1", 403),
        ("8.8.8.9:1", 0),
        ("[2002:a09:203::1]:1", 403),
    ] {
        assert_eq!(
            client.permit(&mut server, &[addr(text)]).code(),
            code,
            "{text}"
        );
    }
}

// RFC 8656 section 10.2: several peers in one request; all or none. No peer, or a malformed one, is 400; another family 443.
#[test]
fn create_permission_is_all_or_nothing() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    client.allocate(&mut server);
    let [a, b, private, six] = [
        addr("8.8.8.8:1"),
        addr("8.8.4.4:1"),
        addr("10.0.0.1:1"),
        addr("[2600::9]:1"),
    ];
    assert_eq!(client.permit(&mut server, &[]).code(), 400);
    assert_eq!(client.permit(&mut server, &[a, private]).code(), 403);
    assert_eq!(client.permit(&mut server, &[a, six]).code(), 443);
    assert_eq!(client.bind(&mut server, 0x4000, six).code(), 443);
    let malformed = client.request(&mut server, method::CREATE_PERMISSION, &|w| {
        w.xor_addr(attr::XOR_PEER_ADDRESS, a)
            .attribute(attr::XOR_PEER_ADDRESS, &[0, 1, 2]);
    });
    assert_eq!(malformed.code(), 400);
    let none = Verdict::Drop(Counter::DropNoPermission);
    assert_eq!(client.send(&mut server, a, b"x"), none);
    client.permit(&mut server, &[a, b]).ok();
    for peer in [a, b] {
        assert!(matches!(
            client.send(&mut server, peer, b"x"),
            Verdict::Forward(_)
        ));
    }
}

// RFC 8656 sections 10.2 and 12.2: no room is 508.
#[test]
fn permissions_and_channels_are_limited() {
    let mut server = Server::with(TurnConfig {
        permissions_max: 3,
        channels_max: 2,
        ..config()
    });
    let mut client = Client::ann("198.41.9.9:4000");
    client.allocate(&mut server);
    let peers: Vec<Addr> = (1..6)
        .map(|last| addr(&format!("8.8.8.{last}:1")))
        .collect();
    client.bind(&mut server, 0x4000, peers[0]).ok();
    client.bind(&mut server, 0x4001, peers[0].with_port(2)).ok();
    assert_eq!(client.bind(&mut server, 0x4002, peers[1]).code(), 508);
    assert_eq!(client.permit(&mut server, &peers).code(), 508);
    client.permit(&mut server, &peers[..3]).ok();
    assert_eq!(client.permit(&mut server, &peers[3..4]).code(), 508);
    client.permit(&mut server, &peers[..3]).ok();
}

// RFC 8656 section 12.2.
#[test]
fn what_is_wrong_with_channel_binds() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    client.allocate(&mut server);
    let (one, other) = (addr("8.8.8.8:1"), addr("8.8.8.8:2"));
    for number in [0, 0x3fff, 0x5000, 0x7fff, 0x8000, 0xffff] {
        assert_eq!(
            client.bind(&mut server, number, one).code(),
            400,
            "{number:#x}"
        );
    }
    let lacking = client.request(&mut server, method::CHANNEL_BIND, &|w| {
        w.xor_addr(attr::XOR_PEER_ADDRESS, one);
    });
    assert_eq!(lacking.code(), 400);
    let lacking = client.request(&mut server, method::CHANNEL_BIND, &|w| {
        w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0]);
    });
    assert_eq!(lacking.code(), 400);
    client.bind(&mut server, 0x4fff, one).ok();
    client.bind(&mut server, 0x4fff, one).ok();
    assert_eq!(client.bind(&mut server, 0x4fff, other).code(), 400);
    assert_eq!(client.bind(&mut server, 0x4000, one).code(), 400);
    // Of a repeated attribute the first counts (RFC 8489 section 14).
    let answer = client.request(&mut server, method::CHANNEL_BIND, &|w| {
        w.attribute(attr::CHANNEL_NUMBER, &[0x40, 7, 0, 0])
            .xor_addr(attr::XOR_PEER_ADDRESS, other)
            .xor_addr(attr::XOR_PEER_ADDRESS, addr("10.0.0.1:1"));
    });
    assert_eq!(answer.code(), 0);
    assert!(matches!(
        client.channel(&mut server, 0x4007, b"x"),
        Verdict::Forward(_)
    ));
    assert_eq!(server.take_one().1, other);
}
