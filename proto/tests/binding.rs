//! Binding (RFC 8489 sections 6.3.1 and 11) and the discovery of NAT behaviour (RFC 5780): what is answered, from where, and
//! how little of it.

use proptest::prelude::*;
use waypost_proto::addr::{Addr, ClientAddr};
use waypost_proto::dialect::DialectConfig;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::lobby::LobbyConfig;
use waypost_proto::nonce::ServerSecret;
use waypost_proto::shard::{
    DiscoveryGroup, RendezvousAccess, Shard, ShardConfig, SocketRole, Verdict,
};
use waypost_proto::stats::Counter;
use waypost_proto::time::{Millis, WallClock};
use waypost_proto::turn::TurnConfig;
use waypost_proto::wire::stun::{
    Class, Message, MessageWriter, TransactionId, attr, decode_plain_addr, method,
};

/// The listener of streams.
const STREAM: u16 = 8;
const CLIENT: &str = "198.41.9.9:4000";
const CLIENT_V6: &str = "[2600::9]:4000";

fn addr(text: &str) -> Addr {
    Addr::new(text.parse().expect("an address"))
}

/// Main and probe port of two addresses, for IPv4 and for IPv6.
fn addrs() -> [[Addr; 4]; 2] {
    [
        [
            "192.88.0.1:3478",
            "192.88.0.1:3479",
            "192.88.0.2:3478",
            "192.88.0.2:3479",
        ],
        [
            "[2600::1]:3478",
            "[2600::1]:3479",
            "[2600::2]:3478",
            "[2600::2]:3479",
        ],
    ]
    .map(|group| group.map(addr))
}

struct Server {
    shard: Shard,
    now: Millis,
}

/// An answer: from which socket, to whom.
type Answer = (SocketIndex, Addr, Vec<u8>);

impl Server {
    fn new(has_alternate: bool, bytes_per_sec: u32) -> Self {
        Self::naming(has_alternate, bytes_per_sec, None)
    }

    fn naming(has_alternate: bool, bytes_per_sec: u32, software: Option<&'static str>) -> Self {
        let groups = addrs().into_iter().zip([0u16, 4]).map(|(addrs, first)| {
            let sockets = [0, 1, 2, 3].map(|place| SocketIndex(first + place));
            DiscoveryGroup { sockets, addrs }
        });
        let config = ShardConfig {
            index: 0,
            count: 1,
            sockets: {
                let mut sockets = [SocketRole::Main, SocketRole::Probe].repeat(4);
                sockets.push(SocketRole::Stream {
                    shard: 0,
                    is_tls: false,
                });
                sockets
            },
            discovery: groups.filter(|_| has_alternate).collect(),
            lobby: LobbyConfig::default(),
            dialects: DialectConfig::default(),
            turn: TurnConfig {
                unproven_bytes_per_sec: bytes_per_sec,
                software,
                ..TurnConfig::default()
            },
            access: RendezvousAccess::Open,
            secret: ServerSecret([9; 32]),
            wall: WallClock {
                unix_ms_at_zero: 1_700_000_000_000,
            },
            seed: [3; 32],
            placement_seeds: [1, 2],
        };
        Self {
            shard: Shard::new(config, Millis(0)),
            now: Millis(0),
        }
    }

    fn send(&mut self, socket: u16, from: &str, request: &[u8]) -> Vec<Answer> {
        let from = ClientAddr(addr(from));
        let (now, socket) = (self.now, SocketIndex(socket));
        let verdict = self.shard.handle_datagram(now, socket, from, request);
        let outbox = self.shard.outbox();
        assert_eq!(verdict == Verdict::Handled, outbox.transmits.len() == 1);
        let transmits = outbox.transmits.iter();
        let answers = transmits
            .map(|t| (t.socket, t.to, outbox.bytes[t.start..t.end].to_vec()))
            .collect();
        outbox.clear();
        answers
    }

    fn ask(&mut self, socket: u16, from: &str, request: &[u8]) -> Answer {
        self.send(socket, from, request).pop().expect("an answer")
    }
}

fn request(fill: &dyn Fn(&mut MessageWriter<'_>)) -> Vec<u8> {
    let mut out = Vec::new();
    let id = TransactionId(*b"twelve bytes");
    let mut writer = MessageWriter::new(&mut out, method::BINDING, Class::Request, id);
    fill(&mut writer);
    writer.finish();
    out
}

fn change(flags: u8) -> Vec<u8> {
    request(&|w| {
        w.attribute(attr::CHANGE_REQUEST, &[0, 0, 0, flags]);
    })
}

fn code(answer: &Answer) -> u16 {
    Message::parse(&answer.2)
        .expect("STUN")
        .error_code()
        .unwrap_or(0)
}

fn kinds(bytes: &[u8]) -> Vec<u16> {
    let message = Message::parse(bytes).expect("STUN");
    message
        .attributes()
        .map(|attribute| attribute.kind)
        .collect()
}

// RFC 8489 section 6.3.1: the reflexive address, and the sizes that make a server useless to who forges sources.
#[test]
fn a_bare_request_gets_a_small_answer() {
    for (has_alternate, sizes) in [(false, [32, 44]), (true, [56, 92])] {
        let mut server = Server::new(has_alternate, 1000);
        for (socket, from, size) in [(0, CLIENT, sizes[0]), (5, CLIENT_V6, sizes[1])] {
            let (egress, to, bytes) = server.ask(socket, from, &request(&|_| ()));
            assert_eq!((egress.0, to, bytes.len()), (socket, addr(from), size));
            let message = Message::parse(&bytes).expect("STUN");
            assert_eq!(message.class(), Class::Success);
            assert_eq!(message.transaction_id().0, *b"twelve bytes");
            assert_eq!(message.find_xor_addr(attr::XOR_MAPPED_ADDRESS), Some(to));
        }
    }
}

// RFC 8489 section 11: a request without the cookie is RFC 3489's; its id, all 16 bytes of it, comes back.
#[test]
fn a_request_without_the_cookie_gets_a_plain_address() {
    for has_alternate in [false, true] {
        let mut server = Server::new(has_alternate, 1000);
        for mut old in [request(&|_| ()), change(0)] {
            old[4..8].copy_from_slice(b"old!");
            let (_, to, bytes) = server.ask(0, CLIENT, &old);
            assert_eq!(bytes[4..20], old[4..20]);
            assert_eq!(kinds(&bytes), [attr::MAPPED_ADDRESS]);
            let message = Message::parse(&bytes).expect("STUN");
            let mapped = message
                .find(attr::MAPPED_ADDRESS)
                .and_then(decode_plain_addr);
            assert_eq!(mapped, Some(to));
        }
        let mut old = change(6);
        old[4..8].copy_from_slice(b"old!");
        let answer = server.ask(0, CLIENT, &old);
        assert_eq!(
            (answer.0.0, code(&answer)),
            if has_alternate { (3, 0) } else { (0, 420) }
        );
    }
}

// RFC 8489 section 6.3.1: what must be understood and is not is told in UNKNOWN-ATTRIBUTES; RFC 5780 section 6.1: CHANGE-REQUEST
// is such on a server with one address.
#[test]
fn unknown_attributes_are_listed() {
    let mut server = Server::new(false, 1000);
    for kind in [
        attr::CHANGE_REQUEST,
        attr::RESPONSE_PORT,
        attr::PADDING,
        0x0024,
        0x7fff,
    ] {
        let answer = server.ask(
            0,
            CLIENT,
            &request(&|w| {
                w.attribute(kind, &[0; 4]).attribute(kind, &[1; 4]);
            }),
        );
        assert_eq!(code(&answer), 420);
        let message = Message::parse(&answer.2).expect("STUN");
        assert_eq!(
            message.find(attr::UNKNOWN_ATTRIBUTES),
            Some(&kind.to_be_bytes()[..])
        );
    }
    // What is optional, and what RFC 8489 has, changes nothing.
    let known = request(&|w| {
        w.attribute(attr::SOFTWARE, b"a client")
            .attribute(attr::USERNAME, b"ann")
            .fingerprint();
    });
    assert_eq!(
        kinds(&server.ask(0, CLIENT, &known).2),
        [attr::XOR_MAPPED_ADDRESS, attr::FINGERPRINT]
    );
    assert_eq!(server.shard.counters().get(Counter::BindingErrors), 5);
}

// RFC 5780 section 6.1, table 1: from where the answer comes and what it says of that.
#[test]
fn change_request_is_answered_from_the_other_socket() {
    let mut server = Server::new(true, 0);
    for (group, from, first) in [(0, CLIENT, 0u16), (1, CLIENT_V6, 4)] {
        for place in 0..4u16 {
            for flags in 0..4u16 {
                let answer = server.ask(first + place, from, &change((flags << 1) as u8));
                let (egress, to, bytes) = &answer;
                let origin = place ^ flags;
                assert_eq!((egress.0, *to), (first + origin, addr(from)));
                let message = Message::parse(bytes).expect("STUN");
                let plain = |kind| message.find(kind).and_then(decode_plain_addr);
                let addrs = addrs()[group];
                assert_eq!(
                    plain(attr::RESPONSE_ORIGIN),
                    Some(addrs[usize::from(origin)])
                );
                assert_eq!(
                    plain(attr::OTHER_ADDRESS),
                    Some(addrs[usize::from(place ^ 3)])
                );
                assert_eq!(plain(attr::MAPPED_ADDRESS), Some(*to));
                assert_eq!(message.find_xor_addr(attr::XOR_MAPPED_ADDRESS), Some(*to));
            }
        }
    }
    let malformed = request(&|w| {
        w.attribute(attr::CHANGE_REQUEST, &[6]);
    });
    assert_eq!(code(&server.ask(0, CLIENT, &malformed)), 400);
}

// RFC 5780 section 6: an answer leaves by the connection that the request came on, and there is no other to change to.
#[test]
fn on_a_stream_nothing_can_be_changed() {
    for has_alternate in [false, true] {
        let mut server = Server::new(has_alternate, 0);
        for from in [CLIENT, CLIENT_V6] {
            let source = ClientAddr(addr(from));
            server
                .shard
                .handle_stream_opened(server.now, SocketIndex(STREAM), source);
            let plain = server.ask(STREAM, from, &request(&|_| ()));
            assert_eq!((plain.0.0, plain.1), (STREAM, addr(from)));
            assert_eq!(kinds(&plain.2), [attr::XOR_MAPPED_ADDRESS]);
            for kind in [attr::CHANGE_REQUEST, attr::RESPONSE_PORT, attr::PADDING] {
                let wish = request(&|w| {
                    w.attribute(kind, &[0x1f, 0x90, 0, 6]);
                });
                let answer = server.ask(STREAM, from, &wish);
                assert_eq!((answer.0.0, answer.1), (STREAM, addr(from)));
                assert_eq!(code(&answer), 420);
                let message = Message::parse(&answer.2).expect("STUN");
                let unknown = message.find(attr::UNKNOWN_ATTRIBUTES);
                assert_eq!(unknown, Some(&kind.to_be_bytes()[..]));
            }
        }
    }
}

// RFC 5780 sections 7.5 and 10: the same host's other port; never with PADDING; not a service that did not ask.
#[test]
fn response_port_leads_to_the_same_host_only() {
    let mut server = Server::new(true, 0);
    let at = |value: &'static [u8]| {
        request(&move |w| {
            w.attribute(attr::RESPONSE_PORT, value);
        })
    };
    for value in [&[0x1f, 0x90][..], &[0x1f, 0x90, 0, 0]] {
        let (egress, to, bytes) = server.ask(0, CLIENT, &at(value));
        assert_eq!((egress.0, to), (0, addr(CLIENT).with_port(8080)));
        let message = Message::parse(&bytes).expect("STUN");
        let mapped = message.find_xor_addr(attr::XOR_MAPPED_ADDRESS);
        assert_eq!(mapped, Some(addr(CLIENT)), "who asked, not who is told");
    }
    for value in [&[0, 0][..], &[0, 53], &[3, 0xff], &[], &[1, 2, 3]] {
        let answer = server.ask(0, CLIENT, &at(value));
        assert_eq!((code(&answer), answer.1), (400, addr(CLIENT)));
    }
    assert_eq!(
        code(&server.ask(0, "198.41.9.9:53", &at(&[0, 53]))),
        0,
        "its own"
    );
    let both = request(&|w| {
        w.attribute(attr::RESPONSE_PORT, &[0x1f, 0x90])
            .attribute(attr::PADDING, &[0; 100]);
    });
    let answer = server.ask(0, CLIENT, &both);
    assert_eq!((code(&answer), answer.1), (400, addr(CLIENT)));
}

// RFC 5780 section 7.6, within what the request paid for.
#[test]
fn padding_is_answered_with_padding() {
    let mut server = Server::new(true, 0);
    for (asked, got) in [
        (0, 0),
        (1, 1),
        (800, 800),
        (1500, 1500),
        (65_000, 1500),
        (65_500, 1500),
    ] {
        let padded = request(&|w| {
            w.attribute(attr::PADDING, &vec![0xaa; asked]);
        });
        let (_, _, bytes) = server.ask(0, CLIENT_V6, &padded);
        let message = Message::parse(&bytes).expect("STUN");
        assert_eq!(message.find(attr::PADDING), Some(&vec![0; got][..]));
    }
}

proptest! {
    // Whatever is asked, the answer is at most 1.6 (IPv4) and 2.2 (IPv6) times as long; with a second address 2.8 and 4.6 times.
    #[test]
    fn amplification_is_bounded(
        attributes in proptest::collection::vec(
            (prop_oneof![
                Just(attr::CHANGE_REQUEST), Just(attr::RESPONSE_PORT), Just(attr::PADDING), Just(0x8022), any::<u16>(),
            ], proptest::collection::vec(any::<u8>(), 0..64)), 0..6),
        has_cookie: bool, is_v6: bool, has_alternate: bool, place in 0u16..4,
    ) {
        let mut server = Server::new(has_alternate, 0);
        let mut asked = request(&|w| {
            for (kind, value) in &attributes {
                w.attribute(*kind, value);
            }
        });
        if !has_cookie {
            asked[4] ^= 0xff;
        }
        let (socket, from) = if is_v6 { (4 + place, CLIENT_V6) } else { (place, CLIENT) };
        let most_tenths = [[16, 22], [28, 46]][usize::from(has_alternate)][usize::from(is_v6)];
        for (_, to, bytes) in server.send(socket, from, &asked) {
            prop_assert!(bytes.len() * 10 <= asked.len() * most_tenths, "{} of {}", bytes.len(), asked.len());
            prop_assert_eq!(to.ip(), addr(from).ip());
        }
    }
}

// RFC 8489 section 15.1.2 (and RFC 5780 section 10): a forged source is sent a bounded number of bytes.
#[test]
fn answers_draw_on_a_budget() {
    let mut server = Server::new(true, 1000);
    let mut drawn = 0;
    for port in 1024..20_000u16 {
        let from = format!("198.41.9.9:{port}");
        for (_, _, bytes) in server.send(0, &from, &change(6)) {
            drawn += bytes.len() + 28;
        }
    }
    assert!((7800..8400).contains(&drawn), "{drawn}");
    assert!(server.shard.counters().get(Counter::DropBudget) > 18_000);
    assert_eq!(
        server.send(0, "198.41.9.10:1024", &change(0)).len(),
        1,
        "others are served"
    );
    server.now = Millis(1000);
    assert_eq!(
        server.send(0, CLIENT, &change(0)).len(),
        1,
        "and so is it, later"
    );
    for _ in 0..1000 {
        assert_eq!(server.send(0, "127.0.0.1:9", &request(&|_| ())).len(), 1);
    }
}

// RFC 8489 section 6.3.2 and security: indications and answers are not answered, and port 0 cannot be.
#[test]
fn what_is_not_answered() {
    let mut server = Server::new(true, 0);
    for class in [[0x00, 0x10], [0x01, 0x00], [0x01, 0x10]] {
        let mut other = change(6);
        other[0] |= class[0];
        other[1] |= class[1];
        assert_eq!(server.send(0, CLIENT, &other), []);
    }
    assert_eq!(server.send(0, "198.41.9.9:0", &request(&|_| ())), []);
}

// RFC 8489 section 14.14.
#[test]
fn software_is_named_where_it_is_wanted() {
    let mut server = Server::naming(false, 1000, Some("Waypost test"));
    let (_, _, success) = server.ask(0, CLIENT, &request(&|_| ()));
    let (_, _, error) = server.ask(0, CLIENT, &change(6));
    for answer in [success, error] {
        let message = Message::parse(&answer).expect("STUN");
        assert_eq!(message.find(attr::SOFTWARE), Some(&b"Waypost test"[..]));
    }
}

// RFC 8489 section 7: who marks its messages, to tell them from others on its socket, gets marked ones; 8 bytes for 8.
#[test]
fn a_fingerprint_is_answered_with_one() {
    for has_alternate in [false, true] {
        let mut server = Server::new(has_alternate, 1000);
        let marked = |fill: &dyn Fn(&mut MessageWriter<'_>)| {
            request(&|w| {
                fill(w);
                w.fingerprint();
            })
        };
        for (socket, from, most) in [(0, CLIENT, 28), (5, CLIENT_V6, 46)] {
            let asked = marked(&|_| ());
            let (_, _, bytes) = server.ask(socket, from, &asked);
            assert_eq!(kinds(&bytes).last(), Some(&attr::FINGERPRINT));
            assert!(bytes.len() * 10 <= asked.len() * most, "{}", bytes.len());
        }
        let error = server.ask(
            0,
            CLIENT,
            &marked(&|w| {
                w.attribute(0x7fff, &[]);
            }),
        );
        assert_eq!(code(&error), 420);
        assert_eq!(kinds(&error.2).last(), Some(&attr::FINGERPRINT));
        // The look of one within another attribute is none.
        let looks = request(&|w| {
            w.attribute(0x8ffe, &[0, 0, 0, 0, 0x80, 0x28, 0, 4, 1, 2, 3, 4]);
        });
        let (_, _, bytes) = server.ask(0, CLIENT, &looks);
        assert!(!kinds(&bytes).contains(&attr::FINGERPRINT));
    }
}
