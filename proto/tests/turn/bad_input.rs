//! Every truncation and every flipped bit of every kind of message: nothing panics, and nothing that integrity covers changes
//! anything (RFC 8489 section 6.3, RFC 8656 section 21).

use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::wire::stun::{Class, Message, MessageWriter, attr, method};

use crate::client::{Client, MAIN, Scheme, Server, addr};

fn messages(client: &mut Client) -> Vec<Vec<u8>> {
    let peer = addr("8.8.4.4:9");
    vec![
        client.signed(method::ALLOCATE, &|w| {
            w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0])
                .attribute(attr::EVEN_PORT, &[0x80]);
        }),
        client.signed(method::REFRESH, &|w| {
            w.u32(attr::LIFETIME, 0);
        }),
        client.signed(method::CREATE_PERMISSION, &|w| {
            w.xor_addr(attr::XOR_PEER_ADDRESS, peer);
        }),
        client.signed(method::CHANNEL_BIND, &|w| {
            w.attribute(attr::CHANNEL_NUMBER, &[0x40, 1, 0, 0])
                .xor_addr(attr::XOR_PEER_ADDRESS, peer);
        }),
    ]
}

#[test]
fn truncations_and_flips_change_nothing() {
    for (scheme, is_stream) in [
        (Scheme::Md5, false),
        (Scheme::Sha256, false),
        (Scheme::Md5, true),
        (Scheme::Sha256, true),
    ] {
        let mut server = Server::new();
        let mut client = Client::ann("198.41.9.9:4000");
        if is_stream {
            client = client.on_stream(0);
            client.connect(&mut server);
        }
        client.scheme = scheme;
        let relayed = client.allocate(&mut server);
        let known = addr("8.8.8.8:9");
        client.bind(&mut server, 0x4000, known).ok();
        for message in messages(&mut client) {
            for len in 0..message.len() {
                server.deliver(client.socket, client.addr, &message[..len]);
            }
            for bit in 0..message.len() * 8 {
                let mut flipped = message.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                server.sent.clear();
                server.deliver(client.socket, client.addr, &flipped);
                for (socket, to, bytes) in &server.sent {
                    assert_eq!((*socket, *to), (client.socket, client.addr));
                    assert_eq!(bytes[0] & 0xfe, 0, "no data to anybody");
                    let is_binding = Message::parse(bytes)
                        .is_ok_and(|answer| answer.method() == method::BINDING);
                    assert!(is_binding || bytes[1] & 0x10 == 0x10, "bit {bit}");
                }
            }
        }
        assert_eq!(server.allocations(), 1);
        assert_eq!(
            server.relays.open.values().copied().collect::<Vec<_>>(),
            [relayed]
        );
        server.sent.clear();
        let stranger = server.peer_sends(addr("8.8.4.4:9"), relayed, b"x");
        assert!(
            matches!(stranger, Verdict::Drop(_)),
            "no permission came of it"
        );
        let still = client.channel(&mut server, 0x4000, b"x");
        assert!(matches!(still, Verdict::Forward(_)));
    }
}

#[test]
fn truncated_and_flipped_indications_do_not_panic() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    client.allocate(&mut server);
    let peer = addr("8.8.8.8:9");
    client.bind(&mut server, 0x4000, peer).ok();
    let indication = client.send_indication(peer, b"seven b");
    let channel_data = b"\x40\x00\x00\x07seven b".to_vec();
    for message in [indication, channel_data] {
        for len in 0..message.len() {
            server.sent.clear();
            let verdict = server.deliver(MAIN, client.addr, &message[..len]);
            assert!(matches!(verdict, Verdict::Drop(_)), "{len}");
        }
        for bit in 0..message.len() * 8 {
            let mut flipped = message.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            server.sent.clear();
            server.deliver(MAIN, client.addr, &flipped);
            for (_, to, _) in &server.sent {
                assert!(to.ip() == peer.ip() || *to == client.addr);
            }
        }
    }
}

// RFC 8656 section 12, table 3: what is neither STUN nor ChannelData is dropped.
#[test]
fn other_protocols_are_dropped() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    client.allocate(&mut server);
    for first in (4..64u8).chain(80..=255) {
        let verdict = server.deliver(MAIN, client.addr, &[first, 0, 0, 4, 1, 2, 3, 4]);
        assert_eq!(verdict, Verdict::Drop(Counter::DropParse), "{first}");
    }
}

// RFC 8656 sections 18.1, 18.6, 18.7 and 18.8: what is reserved is ignored.
#[test]
fn reserved_bits_are_ignored() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    let answer = client.request(&mut server, method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 1, 2, 3])
            .attribute(attr::REQUESTED_ADDRESS_FAMILY, &[1, 4, 5, 6])
            .attribute(attr::EVEN_PORT, &[0x7f]);
    });
    assert_eq!(answer.code(), 0);
    let bound = client.request(&mut server, method::CHANNEL_BIND, &|w| {
        w.attribute(attr::CHANNEL_NUMBER, &[0x40, 0, 7, 8])
            .xor_addr(attr::XOR_PEER_ADDRESS, addr("8.8.8.8:9"));
    });
    assert_eq!(bound.code(), 0);
}

// Answers, indications of other methods and requests without the magic cookie are never answered.
#[test]
fn what_is_never_answered() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    client.learn_nonce(&mut server);
    server.sent.clear();
    for mut message in messages(&mut client) {
        for class in [[0x00, 0x10], [0x01, 0x00], [0x01, 0x10]] {
            let mut other = message.clone();
            other[0] |= class[0];
            other[1] |= class[1];
            server.deliver(MAIN, client.addr, &other);
        }
        message[4] ^= 1;
        server.deliver(MAIN, client.addr, &message);
    }
    assert!(server.sent.is_empty(), "{:?}", server.sent);
}

// RFC 8489 sections 5 and 14, RFC 8656 section 7.2: of an attribute that may come once the first counts, so what is behind it
// neither adds anything nor gets around a check.
#[test]
fn the_first_of_several_counts() {
    let mut server = Server::new();
    let mut client = Client::ann("198.41.9.9:4000");
    let [allowed, denied] = [addr("8.8.8.8:9"), addr("10.0.0.1:9")];
    let twice = |kind: u16, first: &'static [u8], second: &'static [u8]| {
        move |w: &mut MessageWriter<'_>| {
            w.attribute(kind, first).attribute(kind, second);
        }
    };
    let transport = twice(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0], &[6, 0, 0, 0]);
    let answer = client.request(&mut server, method::ALLOCATE, &|w| {
        transport(w);
        twice(attr::LIFETIME, &[0, 0, 3, 0], &[0, 0, 2, 0x80])(w);
    });
    assert_eq!(answer.ok().u32(attr::LIFETIME), Some(768));
    let refused = Client::ann("198.41.9.9:4001").request(&mut server, method::ALLOCATE, &|w| {
        twice(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0], &[17, 0, 0, 0])(w);
    });
    assert_eq!(refused.code(), 442);
    for (first, second, code) in [(allowed, denied, 0), (denied, allowed, 403)] {
        let bound = client.request(&mut server, method::CHANNEL_BIND, &|w| {
            twice(attr::CHANNEL_NUMBER, &[0x40, 0, 0, 0], &[0x40, 1, 0, 0])(w);
            w.xor_addr(attr::XOR_PEER_ADDRESS, first)
                .xor_addr(attr::XOR_PEER_ADDRESS, second);
        });
        assert_eq!(bound.code(), code);
        let mut indication = Vec::new();
        let id = client.id();
        MessageWriter::new(&mut indication, method::SEND, Class::Indication, id)
            .xor_addr(attr::XOR_PEER_ADDRESS, first)
            .xor_addr(attr::XOR_PEER_ADDRESS, second)
            .attribute(attr::DATA, b"first")
            .attribute(attr::DATA, b"second")
            .finish();
        server.sent.clear();
        server.deliver(MAIN, client.addr, &indication);
        let sent = server.sent.iter().map(|(_, to, data)| (*to, &data[..]));
        let expected = (code == 0).then_some((allowed, &b"first"[..]));
        assert!(sent.eq(expected), "{:?}", server.sent);
    }
    let unbound = client.channel(&mut server, 0x4001, b"x");
    assert_eq!(unbound, Verdict::Drop(Counter::DropNoRoute));
}
