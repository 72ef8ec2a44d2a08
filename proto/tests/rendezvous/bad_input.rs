//! Every truncation and every single flipped bit of every kind of message, and noise. Nothing panics, and nothing that
//! integrity covers changes anything.

use proptest::prelude::*;
use waypost_proto::forwarding::SocketIndex;
use waypost_proto::wire::native::{attr, method};
use waypost_proto::wire::stun::Message;

use crate::player::{Player, Where, Wish, addr, host_part, join_part, party};
use crate::world::{Setup, World, with_each_shard_count};

/// What a request may not change when it is refused.
fn state(world: &World) -> Vec<String> {
    world
        .inspect()
        .iter()
        .map(|i| {
            let mut seats: Vec<String> = i.seats.iter().map(|s| format!("{s:?}")).collect();
            seats.sort();
            let mut flows: Vec<String> = i.flows.iter().map(|f| format!("{f:?}")).collect();
            flows.sort();
            format!("{seats:?} {flows:?} {} {}", i.sessions, i.routed_sessions)
        })
        .collect()
}

/// One message of each kind that a seated member sends, each good and not yet sent.
fn seated_messages(world: &mut World, player: &mut Player, other: &Player) -> Vec<Vec<u8>> {
    let target = other.id().to_bytes();
    let mut messages: Vec<Vec<u8>> = [
        method::LEAVE,
        method::CLOSE,
        method::KEEPALIVE,
        method::INTRODUCE,
    ]
    .into_iter()
    .map(|request| player.encode(request, &|_, _, _| ()))
    .collect();
    for request in [method::KICK, method::TRANSFER, method::INTRODUCE] {
        messages.push(player.encode(request, &|w, _, _| {
            w.attribute(attr::TARGET_SEAT, &target);
        }));
    }
    messages.push(player.encode(method::UPDATE, &|w, _, _| {
        w.attribute(attr::METADATA, b"changed")
            .u32(attr::MAX_MEMBERS, 9)
            .attribute(attr::MEMBER_DATA, b"me");
    }));
    // The acknowledgement of a batch that is under way.
    player.deaf = true;
    let mut peer = other.clone();
    peer.update(world, &|w, _, _| {
        w.attribute(attr::MEMBER_DATA, b"x");
    })
    .ok();
    while let Some(bytes) = world.take(player.addr) {
        if bytes[0] < 4 {
            let message = Message::parse(&bytes).expect("STUN");
            messages.push(player.acknowledgement(&message));
        }
    }
    messages
}

#[test]
fn no_flipped_bit_passes_integrity() {
    for shards in [1, 2, 3] {
        let mut world = World::new(Setup::new(shards));
        let world = &mut world;
        let mut players = party(world, 3, &Wish::named("room"));
        let other = players[1].clone();
        let messages = seated_messages(world, &mut players[0], &other);
        assert!(messages.len() >= 9);
        let before = state(world);
        let source = players[0].addr;
        for (i, message) in messages.iter().enumerate() {
            for bit in 0..message.len() * 8 {
                let mut bad = message.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                world.send(source, &bad);
            }
            for len in 0..message.len() {
                world.send(source, &message[..len]);
            }
            assert_eq!(state(world), before, "message {i}");
        }
        world.take_all();
        // The good ones still work, so it was the flips that were refused.
        let reply = players[0].exchange(world, &messages[7]);
        assert_eq!(reply.code(), 0);
    }
}

#[test]
fn flipped_and_cut_requests_for_a_seat_do_no_harm() {
    with_each_shard_count(|world| {
        let players = party(world, 2, &Wish::named("room"));
        let ticket = players[1].ticket.clone();
        let mut newcomer = Player::new(9);
        newcomer.keepalive(world);
        let place = Where::Code(players[0].code());
        let wish = Wish {
            locals: vec![addr("10.0.0.1:1024"), addr("[fd00::1]:1024")],
            ..Wish::named("new room")
        };
        let messages = [
            newcomer.encode(method::HOST, &|w, _, _| host_part(w, &wish)),
            newcomer.encode(method::JOIN, &|w, nonce, id| {
                join_part(w, nonce, id, &place, &wish);
            }),
            newcomer.encode(method::MATCH, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, b"game")
                    .attribute(attr::MATCH_KEY, b"key")
                    .u32(attr::MAX_MEMBERS, 3);
            }),
            newcomer.encode(method::LIST, &|w, _, _| {
                w.attribute(attr::APPLICATION_ID, b"game")
                    .attribute(attr::SESSION_NAME, b"r")
                    .attribute(attr::LIST_CURSOR, &[0; 8])
                    .u32(attr::LIST_FILTER, 7);
            }),
            newcomer.encode(method::RESUME, &|w, _, _| {
                w.attribute(attr::TICKET, &ticket);
            }),
        ];
        for message in &messages {
            for bit in 0..message.len() * 8 {
                let mut bad = message.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                world.send(newcomer.addr, &bad);
                if bit % 64 == 0 {
                    world.take_all();
                    world.check();
                }
            }
            for len in 0..message.len() {
                world.send(newcomer.addr, &message[..len]);
            }
            world.advance_secs(15);
        }
        world.advance_secs(61);
        world.check_empty();
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn noise_does_no_harm(
        shards in 1u16..4,
        datagrams in proptest::collection::vec(
            (proptest::collection::vec(any::<u8>(), 0..80), any::<bool>(), 0u16..3), 0..40),
    ) {
        let mut world = World::new(Setup::new(shards));
        let players = party(&mut world, 2, &Wish::default());
        let before = state(&world);
        for (mut bytes, stun, from) in datagrams {
            if stun && bytes.len() >= 20 {
                // Past the first checks: the right type, length and cookie.
                bytes.truncate(bytes.len() / 4 * 4);
                bytes[0] = 2 + (bytes[0] & 1);
                let len = (bytes.len() as u16 - 20).to_be_bytes();
                bytes[2..4].copy_from_slice(&len);
                bytes[4..8].copy_from_slice(&0x2112_a442u32.to_be_bytes());
            }
            let source = match from {
                0 => players[0].addr,
                1 => players[1].addr,
                _ => addr("192.0.2.1:1"),
            };
            world.send_to(SocketIndex(from % 2), source, &bytes);
        }
        prop_assert_eq!(state(&world), before);
    }

    #[test]
    fn attribute_soup_from_a_proved_source_does_no_harm(
        shards in 1u16..4,
        requests in proptest::collection::vec(
            (
                method::HOST..=method::KEEPALIVE,
                proptest::collection::vec(
                    (
                        prop_oneof![0x4b00u16..0x4b18, 0xcb00u16..0xcb0d, Just(6u16), Just(8u16), Just(0x1c)],
                        prop_oneof![
                            proptest::collection::vec(any::<u8>(), 0..70),
                            Just(b"game".to_vec()),
                            Just(vec![0, 0, 0, 4]),
                            Just(vec![0; 16]),
                        ],
                    ),
                    0..10,
                ),
                0usize..3,
            ),
            1..30,
        ),
    ) {
        let mut world = World::new(Setup::new(shards));
        let mut players = party(&mut world, 2, &Wish::default());
        let mut newcomer = Player::new(9);
        newcomer.keepalive(&mut world);
        players.push(newcomer);
        for (request, attributes, who) in requests {
            let bytes = players[who].encode(request, &|w, _, _| {
                // The ingredients that let it get further than the first check.
                w.attribute(attr::APPLICATION_ID, b"game").u32(attr::MAX_MEMBERS, 4);
                for (kind, value) in &attributes {
                    w.attribute(*kind, value);
                }
            });
            world.send(players[who].addr, &bytes);
            world.take_all();
            world.check();
        }
        world.advance_secs(61);
        world.check_empty();
    }
}
