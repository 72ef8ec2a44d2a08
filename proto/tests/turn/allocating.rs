//! Allocate (RFC 8656 section 7).

use waypost_proto::stats::Counter;
use waypost_proto::turn::{RelayIp, TurnConfig};
use waypost_proto::wire::native;
use waypost_proto::wire::stun::{Class, Message, MessageWriter, attr, decode_plain_addr, method};

use crate::client::{
    Client, MAIN, RELAY_V4, RELAY_V6, Server, addr, config, ip, stream_of, tls_of,
};

/// Kind and value.
type Attribute<'a> = (u16, &'a [u8]);

fn client(port: u16) -> Client {
    Client::ann(&format!("198.41.9.9:{port}"))
}

// RFC 8656 section 7.2: the answer tells the relayed address, the lifetime and the reflexive address.
#[test]
fn what_an_allocation_is() {
    let mut server = Server::new();
    let mut client = client(1);
    let answer = client.allocate_with(&mut server, &|_| ()).ok();
    let relayed = answer.relayed();
    assert_eq!(relayed.len(), 1);
    assert_eq!(relayed[0].ip(), ip(RELAY_V4));
    assert!((50_000..51_000).contains(&relayed[0].port()));
    assert_eq!(answer.u32(attr::LIFETIME), Some(600));
    let mapped = answer.message().find_xor_addr(attr::XOR_MAPPED_ADDRESS);
    assert_eq!(mapped, Some(client.addr));
    assert_eq!(
        server.relays.open.values().copied().collect::<Vec<_>>(),
        relayed
    );
}

// RFC 8656 section 7.2 step 2: a five-tuple has one allocation; a repetition of the request gets the same answer.
#[test]
fn repetitions_and_second_allocations() {
    let mut server = Server::new();
    let mut client = client(1);
    client.learn_nonce(&mut server);
    let request = client.signed(method::ALLOCATE, &|w| {
        w.attribute(attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    });
    let first = client.ask(&mut server, &request);
    let again = client.ask(&mut server, &request);
    assert_eq!(first.bytes, again.bytes);
    assert_eq!(client.allocate_with(&mut server, &|_| ()).code(), 437);
    assert_eq!(server.relays.open.len(), 1);
}

// RFC 8656 section 7.2 steps 3 to 9.
#[test]
fn what_is_wrong_with_requests() {
    let mut server = Server::new();
    let mut client = client(1);
    client.learn_nonce(&mut server);
    let transport: (u16, &[u8]) = (attr::REQUESTED_TRANSPORT, &[17, 0, 0, 0]);
    let token: (u16, &[u8]) = (attr::RESERVATION_TOKEN, &[1; 8]);
    let family = |value: &'static [u8]| (attr::REQUESTED_ADDRESS_FAMILY, value);
    let additional = |value: &'static [u8]| (attr::ADDITIONAL_ADDRESS_FAMILY, value);
    let even = |value: &'static [u8]| (attr::EVEN_PORT, value);
    let cases: &[(&[Attribute<'_>], u16)] = &[
        (&[], 400),
        (&[(attr::REQUESTED_TRANSPORT, &[17])], 400),
        (&[(attr::REQUESTED_TRANSPORT, &[6, 0, 0, 0])], 442),
        (&[transport, (attr::LIFETIME, &[1, 2])], 400),
        (&[transport, token, even(&[0])], 400),
        (&[transport, token, family(&[1, 0, 0, 0])], 400),
        (&[transport, token, additional(&[2, 0, 0, 0])], 400),
        (&[transport, (attr::RESERVATION_TOKEN, &[1; 7])], 400),
        (&[transport, token], 508),
        (&[transport, family(&[3, 0, 0, 0])], 440),
        (&[transport, family(&[1])], 400),
        (
            &[transport, family(&[1, 0, 0, 0]), additional(&[2, 0, 0, 0])],
            400,
        ),
        (&[transport, additional(&[1, 0, 0, 0])], 400),
        (&[transport, even(&[0x80]), additional(&[2, 0, 0, 0])], 400),
        (&[transport, even(&[])], 400),
    ];
    for (attributes, code) in cases {
        let answer = client.request(&mut server, method::ALLOCATE, &|w| {
            for (kind, value) in *attributes {
                w.attribute(*kind, value);
            }
        });
        assert_eq!(answer.code(), *code, "{attributes:?}");
        assert!(answer.message().find(attr::MESSAGE_INTEGRITY).is_some());
    }
    assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
}

// RFC 8489 section 6.3.1: what is not understood and must be is 420 with the list. DONT-FRAGMENT is understood.
#[test]
fn unknown_attributes() {
    let mut server = Server::new();
    let mut client = client(1);
    let answer = client.allocate_with(&mut server, &|w| {
        w.attribute(attr::DONT_FRAGMENT, &[])
            .attribute(0x7abc, b"x")
            .attribute(0x7abc, b"y")
            .attribute(0xfabc, b"z");
    });
    assert_eq!(answer.code(), 420);
    let list = answer.message().find(attr::UNKNOWN_ATTRIBUTES);
    assert_eq!(list, Some(&[0x7a, 0xbc][..]));
    let answer = client.allocate_with(&mut server, &|w| {
        for kind in 0..100 {
            w.attribute(0x5000 + kind, &[]);
        }
    });
    assert_eq!(answer.code(), 420);
    let list = answer.message().find(attr::UNKNOWN_ATTRIBUTES).unwrap();
    assert_eq!(list.len(), 200);
    assert_eq!(
        client
            .allocate_with(&mut server, &|w| {
                w.attribute(0x8abc, b"not required");
            })
            .code(),
        0
    );
}

// RFC 8656 section 7.2: lifetimes between ten minutes and an hour.
#[test]
fn lifetimes_granted() {
    let mut server = Server::new();
    for (port, (asked, granted)) in [
        (0, 600),
        (1, 600),
        (1800, 1800),
        (3600, 3600),
        (u32::MAX, 3600),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = client(port as u16 + 1).allocate_with(&mut server, &|w| {
            w.u32(attr::LIFETIME, asked);
        });
        assert_eq!(answer.ok().u32(attr::LIFETIME), Some(granted), "{asked}");
    }
}

// RFC 8656 section 7.2: one family or both; what fails of two is told in ADDRESS-ERROR-CODE (section 18.12).
#[test]
fn families() {
    let mut server = Server::new();
    let six = client(1).allocate_with(&mut server, &|w| {
        w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    assert_eq!(six.ok().relayed()[0].ip(), ip(RELAY_V6));
    let both = client(2).allocate_with(&mut server, &|w| {
        w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
    });
    let ips: Vec<_> = both.ok().relayed().iter().map(|addr| addr.ip()).collect();
    assert_eq!(ips, [ip(RELAY_V4), ip(RELAY_V6)]);
    let only = |text| TurnConfig {
        relay_ips: vec![RelayIp {
            local: ip(text),
            external: ip(text),
        }],
        ..config()
    };
    for (text, family, missing) in [(RELAY_V4, 1, 2), (RELAY_V6, 2, 1)] {
        let mut server = Server::with(only(text));
        let refused = client(1).allocate_with(&mut server, &|w| {
            w.attribute(attr::REQUESTED_ADDRESS_FAMILY, &[missing, 0, 0, 0]);
        });
        assert_eq!(refused.code(), 440);
        let partial = client(2).allocate_with(&mut server, &|w| {
            w.attribute(attr::ADDITIONAL_ADDRESS_FAMILY, &[2, 0, 0, 0]);
        });
        let partial = partial.ok();
        assert_eq!(partial.relayed().len(), 1);
        assert_eq!(partial.relayed()[0].is_ipv4(), family == 1);
        let error = partial.message().find(attr::ADDRESS_ERROR_CODE);
        assert_eq!(error, Some(&[missing, 0, 4, 40][..]));
    }
}

// RFC 8656 section 7.2: even ports, and a reserved next one for whoever shows the token.
#[test]
fn even_ports_and_reservations() {
    let mut server = Server::new();
    for port in 1..10 {
        let even = client(port).allocate_with(&mut server, &|w| {
            w.attribute(attr::EVEN_PORT, &[0]);
        });
        assert!(even.ok().relayed()[0].port().is_multiple_of(2));
    }
    let mut first = client(20);
    let pair = first
        .allocate_with(&mut server, &|w| {
            w.attribute(attr::EVEN_PORT, &[0x80]);
        })
        .ok();
    let token = pair
        .message()
        .find(attr::RESERVATION_TOKEN)
        .unwrap()
        .to_vec();
    let redeem = |server: &mut Server, client: &mut Client| {
        client.allocate_with(server, &|w| {
            w.attribute(attr::RESERVATION_TOKEN, &token);
        })
    };
    let mut stranger = Client::new("198.41.9.9:21", "bob", "bob's password");
    assert_eq!(redeem(&mut server, &mut stranger).code(), 508);
    let second = redeem(&mut server, &mut client(22)).ok();
    let (even, odd) = (pair.relayed()[0], second.relayed()[0]);
    assert!(even.port().is_multiple_of(2));
    assert_eq!(odd, even.with_port(even.port() + 1));
    assert_eq!(redeem(&mut server, &mut client(23)).code(), 508, "once");
    // The pair's first allocation may go; the second stays.
    first.refresh(&mut server, 0).ok();
    assert!(server.relays.open.values().any(|at| *at == odd));
    // A token that nobody shows lapses with its port after 30 seconds.
    let open = server.relays.open.len();
    client(24)
        .allocate_with(&mut server, &|w| {
            w.attribute(attr::EVEN_PORT, &[0x80]);
        })
        .ok();
    assert_eq!(server.relays.open.len(), open + 2);
    server.advance_secs(29);
    assert_eq!(server.relays.open.len(), open + 2);
    server.advance_secs(2);
    assert_eq!(server.relays.open.len(), open + 1);
}

// RFC 8656 section 7.2: quotas are 486, lack of room is 508, and what failed leaves nothing behind.
#[test]
fn quotas_and_room() {
    let mut server = Server::with(TurnConfig {
        allocations_max: 5,
        allocations_per_user: 3,
        allocations_per_prefix: 2,
        ..config()
    });
    let mut one = client(1);
    one.allocate(&mut server);
    client(2).allocate(&mut server);
    assert_eq!(client(3).allocate_with(&mut server, &|_| ()).code(), 486);
    Client::ann("198.41.9.10:1").allocate(&mut server);
    let fourth = &mut Client::ann("198.41.9.11:1");
    assert_eq!(fourth.allocate_with(&mut server, &|_| ()).code(), 486);
    for last in [12, 13] {
        let at = format!("198.41.9.{last}:1");
        Client::new(&at, "bob", "bob's password").allocate(&mut server);
    }
    let mut bob = Client::new("198.41.9.14:1", "bob", "bob's password");
    assert_eq!(bob.allocate_with(&mut server, &|_| ()).code(), 508);
    one.refresh(&mut server, 0).ok();
    bob.allocate(&mut server);
}

// A user and a source have their quotas once, not on every shard anew; and get them back when the allocation is gone.
#[test]
fn shards_count_quotas_together() {
    for (per_user, per_source) in [(1, 0), (0, 1)] {
        let turn = TurnConfig {
            allocations_per_user: per_user,
            allocations_per_prefix: per_source,
            ..config()
        };
        let mut shards = [0, 1].map(|shard| Server::shard_of(turn.clone(), shard, 2));
        let mut first = client(1);
        first.allocate(&mut shards[0]);
        for shard in &mut shards {
            let beyond = client(2).allocate_with(shard, &|_| ());
            assert_eq!(beyond.code(), 486);
        }
        Client::new("198.41.9.10:1", "bob", "bob's password").allocate(&mut shards[1]);
        first.refresh(&mut shards[0], 0).ok();
        client(2).allocate(&mut shards[1]);
    }
}

// RFC 8489 section 10 and RFC 8656 section 7.2 step 11: who cannot be served is sent elsewhere, in its own family, and is told so
// under integrity; who is served stays.
#[test]
fn clients_are_sent_elsewhere_when_there_is_no_room() {
    for is_draining in [false, true] {
        let mut server = Server::with(TurnConfig {
            allocations_max: 1,
            alternate_servers: vec![addr("[2600::77]:3478"), addr("198.41.0.77:3478")],
            ..config()
        });
        let mut served = client(1);
        served.allocate(&mut server);
        if is_draining {
            server.shard.drain();
        }
        for (at, alternate) in [
            ("198.41.9.9:2", "198.41.0.77:3478"),
            ("[2600::9]:2", "[2600::77]:3478"),
        ] {
            let answer = Client::ann(at).allocate_with(&mut server, &|_| ());
            assert_eq!(answer.code(), 300);
            let message = answer.message();
            let told = message.find(attr::ALTERNATE_SERVER);
            assert_eq!(told.and_then(decode_plain_addr), Some(addr(alternate)));
            assert!(message.find(attr::MESSAGE_INTEGRITY).is_some());
        }
        let unsigned = Client::ann("198.41.9.9:3").learn_nonce(&mut server);
        assert!(unsigned.message().find(attr::ALTERNATE_SERVER).is_none());
        assert_eq!(served.refresh(&mut server, 600).code(), 0);
        assert_eq!(server.count(Counter::Redirects), 2);
    }
    // Without an alternate in the client's family there is just no room.
    let mut server = Server::with(TurnConfig {
        alternate_servers: vec![addr("[2600::77]:3478")],
        ..config()
    });
    server.shard.drain();
    assert_eq!(client(1).allocate_with(&mut server, &|_| ()).code(), 508);
    // No room for a socket is no room.
    let mut server = Server::with(TurnConfig {
        alternate_servers: vec![addr("198.41.0.77:3478")],
        ..config()
    });
    server.relays.exhausted = true;
    assert_eq!(client(1).allocate_with(&mut server, &|_| ()).code(), 300);
    assert_eq!(server.allocations(), 0);
}

// RFC 8489 section 10: another port, and ALTERNATE-DOMAIN where the other server has another certificate.
#[test]
fn clients_of_tls_are_sent_to_servers_of_tls() {
    for domain in [None, Some("turn2.example.org")] {
        let mut server = Server::with(TurnConfig {
            alternate_servers: vec![addr("198.41.0.77:3478")],
            alternate_tls_servers: vec![addr("198.41.0.77:5349")],
            alternate_domain: domain.map(str::to_owned),
            ..config()
        });
        server.shard.drain();
        for (socket, alternate, domain) in [
            (stream_of(0), "198.41.0.77:3478", None),
            (tls_of(0, 1), "198.41.0.77:5349", domain),
        ] {
            let mut client = client(1);
            client.socket = socket;
            client.connect(&mut server);
            let answer = client.allocate_with(&mut server, &|_| ());
            assert_eq!(answer.code(), 300);
            let message = answer.message();
            let told = message.find(attr::ALTERNATE_SERVER);
            assert_eq!(told.and_then(decode_plain_addr), Some(addr(alternate)));
            let told = message.find(attr::ALTERNATE_DOMAIN);
            assert_eq!(told, domain.map(str::as_bytes));
        }
    }
    // A server that speaks no TLS is of no use to them.
    let mut server = Server::with(TurnConfig {
        alternate_servers: vec![addr("198.41.0.77:3478")],
        ..config()
    });
    server.shard.drain();
    let mut client = client(1);
    client.socket = tls_of(0, 1);
    client.connect(&mut server);
    assert_eq!(client.allocate_with(&mut server, &|_| ()).code(), 508);
}

#[test]
fn ports_of_strangers_and_hosts_without_room() {
    let mut server = Server::with(TurnConfig {
        relay_ports: 50_000..=50_003,
        ..config()
    });
    server.relays.in_use = vec![50_000, 50_001, 50_003];
    assert_eq!(client(1).allocate(&mut server).port(), 50_002);
    assert_eq!(client(2).allocate_with(&mut server, &|_| ()).code(), 508);
    let pair = client(3).allocate_with(&mut server, &|w| {
        w.attribute(attr::EVEN_PORT, &[0x80]);
    });
    assert_eq!(pair.code(), 508);
    server.relays.in_use.clear();
    server.relays.exhausted = true;
    let pair = client(4).allocate_with(&mut server, &|w| {
        w.attribute(attr::EVEN_PORT, &[0x80]);
    });
    assert_eq!(pair.code(), 508);
    assert_eq!((server.allocations(), server.relays.open.len()), (1, 1));
    server.relays.exhausted = false;
    for port in 5..8 {
        client(port).allocate(&mut server);
    }
    assert_eq!(client(9).allocate_with(&mut server, &|_| ()).code(), 508);
}

#[test]
fn half_a_pair_is_closed_again() {
    for taken in [50_000, 50_001] {
        let mut server = Server::with(TurnConfig {
            relay_ports: 50_000..=50_001,
            ..config()
        });
        server.relays.in_use = vec![taken];
        let pair = client(1).allocate_with(&mut server, &|w| {
            w.attribute(attr::EVEN_PORT, &[0x80]);
        });
        assert_eq!(pair.code(), 508);
        assert_eq!((server.allocations(), server.relays.open.len()), (0, 0));
    }
}

#[test]
fn another_pair_is_tried_when_a_stranger_has_a_port() {
    let mut server = Server::with(TurnConfig {
        relay_ports: 50_000..=50_007,
        ..config()
    });
    server.relays.in_use = vec![50_001, 50_002, 50_005];
    let pair = client(1).allocate_with(&mut server, &|w| {
        w.attribute(attr::EVEN_PORT, &[0x80]);
    });
    assert_eq!(pair.ok().relayed()[0].port(), 50_006);
    let mut open: Vec<u16> = server.relays.open.values().map(|at| at.port()).collect();
    open.sort_unstable();
    assert_eq!(open, [50_006, 50_007]);
}

/// Hosts a session from the address of a client; returns the code of the answer, 0 for success.
fn host(server: &mut Server, client: &mut Client) -> u16 {
    let mut nonce: Option<Vec<u8>> = None;
    loop {
        let mut out = Vec::new();
        let id = client.id();
        let mut writer = MessageWriter::new(&mut out, native::method::HOST, Class::Request, id);
        writer
            .attribute(native::attr::APPLICATION_ID, b"chess")
            .u32(native::attr::MAX_MEMBERS, 2)
            .attribute(native::attr::FILL, &[0; 64]);
        if let Some(nonce) = &nonce {
            writer.attribute(attr::NONCE, nonce);
        }
        writer.finish();
        server.sent.clear();
        server.deliver(MAIN, client.addr, &out);
        let bytes = server.sent.remove(0).2;
        let answer = Message::parse(&bytes).expect("an answer");
        match answer.error_code() {
            Some(401) => nonce = answer.find(attr::NONCE).map(Into::into),
            code => return code.unwrap_or(0),
        }
    }
}

// A five-tuple is a member's or a TURN client's, never both (437, RFC 8656 section 7.2 step 2).
#[test]
fn native_and_turn_exclude_each_other() {
    let mut server = Server::new();
    let mut turn = client(1);
    turn.allocate(&mut server);
    assert_eq!(host(&mut server, &mut turn), 437);
    assert!(!server.shard.has_flow(MAIN, turn.addr));
    let mut member = client(2);
    assert_eq!(host(&mut server, &mut member), 0);
    assert!(server.shard.has_flow(MAIN, member.addr));
    assert_eq!(member.allocate_with(&mut server, &|_| ()).code(), 437);
    turn.refresh(&mut server, 0).ok();
    assert_eq!(host(&mut server, &mut turn), 0);
}
