//! Host, join, and every way in which a seat is refused; repetitions of requests.

use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{EventKind, attr, code, method, session_flags};

use crate::player::{Player, Where, Wish, addr, hear_all, party};
use crate::world::{Setup, World, with_each_shard_count};

#[test]
fn host_then_join_by_code_and_by_name() {
    with_each_shard_count(|world| {
        for i in 0..6 {
            let wish = Wish {
                name: Some(format!("room {i}")),
                metadata: vec![i as u8; 512],
                session_flags: session_flags::LISTED,
                ..Wish::default()
            };
            let mut host = Player::new(i * 10);
            let reply = host.host(world, &wish);
            let fields = reply.fields();
            assert_eq!(fields.keepalive_secs, Some(15));
            assert_eq!(fields.seat_hold_secs, Some(40));
            assert_eq!(fields.session_lifetime_secs, Some(86_400));
            assert_eq!(fields.limits, Some((2000, 1 << 20)));
            assert_eq!(host.seat(), 0);

            let mut by_code = Player::new(i * 10 + 1);
            let reply = by_code.join(world, host.code());
            assert_eq!(reply.fields().metadata, Some(&[i as u8; 512][..]));
            assert_eq!(reply.fields().name, Some(format!("room {i}").as_str()));
            assert_eq!(by_code.seat(), 1);

            let mut by_name = Player::new(i * 10 + 2);
            let place = Where::Name(format!("room {i}"));
            by_name.try_join(world, &place, &Wish::default()).ok();
            assert_eq!(by_name.code(), host.code());
            assert_eq!(by_name.seat(), 2);
            let mut players = [host, by_code, by_name];
            hear_all(world, &mut players);
            let kinds = players.each_mut().map(|player| player.kinds(world));
            let joined = |seats: &[u8]| -> Vec<_> {
                seats
                    .iter()
                    .map(|&seat| (EventKind::MemberJoined, seat))
                    .collect()
            };
            assert_eq!(kinds, [joined(&[1, 2]), joined(&[0, 2]), joined(&[0, 1])]);
        }
        assert_eq!((world.sessions(), world.members()), (6, 18));
        assert_eq!(world.flows(), 18);
        world.check();
    });
}

#[test]
fn games_do_not_see_each_other() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(world, &Wish::named("arena"));
        let other_game = Wish {
            application: "other",
            ..Wish::named("arena")
        };
        let mut stranger = Player::new(1);
        for place in [Where::Code(host.code()), Where::Name("arena".to_owned())] {
            let reply = stranger.try_join(world, &place, &other_game);
            assert_eq!(reply.code(), code::NO_SESSION);
        }
        stranger.host(world, &other_game);
        assert_ne!(stranger.code(), host.code());
    });
}

#[test]
fn wrong_password_and_missing_session_look_alike() {
    with_each_shard_count(|world| {
        let secret = Wish {
            password: Some("sesame"),
            ..Wish::named("vault")
        };
        let mut host = Player::new(0);
        host.host(world, &secret);
        let wrong = Wish {
            password: Some("open"),
            ..Wish::default()
        };
        let missing_code = (0..)
            .find_map(|bits| {
                waypost_proto::wire::join_code::JoinCode::from_bits(bits)
                    .filter(|code| *code != host.code())
            })
            .expect("there are many codes");
        let places = [
            Where::Code(host.code()),
            Where::Name("vault".to_owned()),
            Where::Code(missing_code),
            Where::Name("nowhere".to_owned()),
        ];
        let mut bodies = Vec::new();
        for (i, place) in places.iter().enumerate() {
            let mut guest = Player::new(10 + i as u16);
            guest.keepalive(world); // Gets a nonce.
            let before = world.count(Counter::PasswordChecks);
            let failures = world.count(Counter::JoinFailures);
            let reply = guest.try_join(world, place, &wrong);
            assert_eq!(reply.code(), code::NO_SESSION, "{place:?}");
            assert_eq!(world.count(Counter::PasswordChecks), before + 1);
            assert_eq!(world.count(Counter::JoinFailures), failures + 1);
            // All but the transaction id.
            bodies.push((reply.bytes[..8].to_vec(), reply.bytes[20..].to_vec()));
        }
        assert!(bodies.iter().all(|body| *body == bodies[0]));
        let mut guest = Player::new(30);
        let place = Where::Code(host.code());
        guest.try_join(world, &place, &secret).ok();
    });
}

#[test]
fn guessing_is_limited_per_source_for_real_and_missing_sessions_alike() {
    with_each_shard_count(|world| {
        let secret = Wish {
            password: Some("sesame"),
            ..Wish::named("vault")
        };
        let mut host = Player::new(0);
        host.host(world, &secret);
        for (source, name) in [(1u16, "vault"), (2, "nowhere")] {
            let place = Where::Name(name.to_owned());
            // Another port each time does not help. One of several addresses of a prefix would not either.
            let codes: Vec<u16> = (0..15)
                .map(|i| {
                    let mut guesser = Player::at(addr(&format!("203.0.113.{source}:{}", 5000 + i)));
                    guesser.try_join(world, &place, &Wish::default()).code()
                })
                .collect();
            let mut expected = vec![code::NO_SESSION; 10];
            expected.extend([code::TOO_MANY_ATTEMPTS; 5]);
            assert_eq!(codes, expected, "{name}");
            // Each shard counts for itself.
            let owner = |name| world.owner_of_name("game", name);
            if owner(name) != owner("vault") {
                continue;
            }
            // Not even with the right password, until time has passed.
            let mut guesser = Player::at(addr(&format!("203.0.113.{source}:6000")));
            let vault = Where::Name("vault".to_owned());
            let reply = guesser.try_join(world, &vault, &secret);
            assert_eq!(reply.code(), code::TOO_MANY_ATTEMPTS);
            world.advance_secs(30);
            host.keepalive(world).ok();
            world.advance_secs(31);
            host.keepalive(world).ok();
            guesser.try_join(world, &vault, &secret).ok();
        }
    });
}

#[test]
fn honest_players_join_a_session_that_is_under_attack() {
    with_each_shard_count(|world| {
        let secret = Wish {
            password: Some("sesame"),
            max_members: 255,
            ..Wish::named("vault")
        };
        let mut host = Player::new(0);
        host.host(world, &secret);
        let real = Where::Code(host.code());
        let missing = Where::Name("nowhere".to_owned());
        let mut honest_joins = 0;
        let mut refusals = [0, 0];
        for round in 0..100u16 {
            for (i, place) in [&real, &missing].into_iter().enumerate() {
                for again in 0..2 {
                    let source = format!("203.0.{}.{round}:{}", 100 + i, 7000 + again);
                    let mut attacker = Player::at(addr(&source));
                    let reply = attacker.try_join(world, place, &Wish::default());
                    if reply.code() == code::TOO_MANY_ATTEMPTS {
                        refusals[i] += 1;
                    } else {
                        assert_eq!(reply.code(), code::NO_SESSION);
                    }
                }
            }
            let mut honest = Player::new(100 + round);
            let reply = honest.try_join(world, &real, &secret);
            honest_joins += u32::from(reply.code() == 0);
        }
        assert!(honest_joins >= 99, "{honest_joins} of 100");
        assert!(refusals[0] > 50, "the attack is limited");
        assert!(refusals[1] > 50, "and so is guessing of what is not there");
    });
}

#[test]
fn full_locked_taken_and_not_host_are_told_apart() {
    with_each_shard_count(|world| {
        let mut players = party(world, 2, &Wish::of(2));
        let code = players[0].code();
        let place = Where::Code(code);
        let mut third = Player::new(9);
        let reply = third.try_join(world, &place, &Wish::default());
        assert_eq!(reply.code(), code::FULL);

        let mut named = Player::new(20);
        named.host(world, &Wish::named("one"));
        let mut second = Player::new(21);
        let reply = second.try_host(world, &Wish::named("one"));
        assert_eq!(reply.code(), code::NAME_TAKEN);
        named
            .update(world, &|w, _, _| {
                w.u32(attr::SESSION_FLAGS, session_flags::LOCKED);
            })
            .ok();
        let reply = second.try_join(world, &Where::Code(named.code()), &Wish::default());
        assert_eq!(reply.code(), code::LOCKED);

        let host = players[0].id();
        let guest = &mut players[1];
        for request in [method::KICK, method::TRANSFER] {
            let reply = guest.on_target(world, request, host);
            assert_eq!(reply.code(), code::NOT_HOST);
        }
        for request in [method::CLOSE, method::INTRODUCE] {
            let reply = guest.call(world, request, &|_, _, _| ());
            assert_eq!(reply.code(), code::NOT_HOST);
        }
        let reply = guest.update(world, &|w, _, _| {
            w.attribute(attr::METADATA, b"mine");
        });
        assert_eq!(reply.code(), code::NOT_HOST);
        assert_eq!(players[0].kinds(world), []);

        // Once a name's session is gone, the name is free.
        named.leave(world).ok();
        second.host(world, &Wish::named("one"));
        world.check();
    });
}

#[test]
fn the_kicked_stay_out() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        let target = players[1].id();
        let ticket = players[1].ticket.clone();
        players[0].kick(world, target).ok();
        let repeated = players[0].repeat(world);
        assert_eq!(repeated.code(), 0, "done once, answered twice");
        hear_all(world, &mut players);
        assert_eq!(players[1].kinds(world), [(EventKind::Removed, 1)]);
        for i in [0, 2] {
            assert_eq!(players[i].kinds(world), [(EventKind::MemberLeft, 1)]);
        }
        // Neither from another port nor by the ticket, nor from the old seat.
        let reply = players[1].keepalive(world);
        assert_eq!(reply.code(), code::SEAT_GONE);
        let mut again = Player::at(players[1].addr.with_port(50_001));
        let reply = again.try_join(world, &Where::Code(players[0].code()), &Wish::default());
        assert_eq!(reply.code(), code::KICKED);
        again.ticket = ticket;
        let reply = again.try_resume(world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
        // Others may have the seat when its turn comes, in another generation.
        let mut other = Player::new(40);
        while other.handle.is_none_or(|handle| handle.id.seat != 1) {
            if other.handle.is_some() {
                other.leave(world).ok();
            }
            other.join(world, players[0].code());
        }
        assert_ne!(other.id().generation, target.generation);
        let reply = players[0].kick(world, target);
        assert_eq!(reply.code(), code::NO_MEMBER, "that was somebody else");
        world.check();
    });
}

#[test]
fn one_seat_per_five_tuple() {
    with_each_shard_count(|world| {
        let mut other = Player::new(50);
        other.host(world, &Wish::named("elsewhere"));
        // Hosts at several homes, so that owner and home are sometimes different shards.
        for i in 0..6 {
            let mut player = Player::new(i);
            if i % 2 == 0 {
                player.host(world, &Wish::named(&format!("room {i}")));
            } else {
                player.join(world, other.code());
            }
            let (sessions, members) = (world.sessions(), world.members());
            let seat = player.handle;
            assert_eq!(
                player.try_host(world, &Wish::default()).code(),
                code::SEATED
            );
            let named = Wish::named(&format!("second {i}"));
            assert_eq!(player.try_host(world, &named).code(), code::SEATED);
            for place in [
                Where::Code(other.code()),
                Where::Name("elsewhere".to_owned()),
                Where::Name("nowhere".to_owned()),
            ] {
                let reply = player.try_join(world, &place, &Wish::default());
                assert_eq!(reply.code(), code::SEATED, "{place:?}");
            }
            let reply = player.try_match(world, b"key", &Wish::of(2));
            assert_eq!(reply.code(), code::SEATED);
            assert_eq!((world.sessions(), world.members()), (sessions, members));
            assert_eq!(player.handle, seat);
            player.keepalive(world).ok();
        }
        world.check();
    });
}

#[test]
fn a_full_server_says_so() {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.lobby.sessions_max = 2;
        setup.lobby.members_max = 5;
        let mut world = World::new(setup);
        let mut refused = 0;
        let mut hosts: Vec<Player> = (0..30).map(Player::new).collect();
        for host in &mut hosts {
            match host.try_host(&mut world, &Wish::default()).code() {
                0 => {}
                code::CAPACITY => refused += 1,
                other => panic!("{other}"),
            }
        }
        assert_eq!(refused, 30 - 2 * u32::from(shards));
        let host = hosts
            .iter()
            .find(|host| host.handle.is_some())
            .expect("one got in");
        let codes: Vec<u16> = (100..106)
            .map(|i| {
                let mut guest = Player::new(i);
                guest
                    .try_join(&mut world, &Where::Code(host.code()), &Wish::default())
                    .code()
            })
            .collect();
        assert_eq!(codes[..3], [0; 3]);
        assert_eq!(codes[3..], [code::CAPACITY; 3]);
        world.check();
        for host in &mut hosts {
            if host.handle.is_some() {
                host.leave(&mut world).ok();
            }
        }
        let mut next = Player::new(200);
        next.host(&mut world, &Wish::default());
    }
}

#[test]
fn a_draining_server_seats_nobody_new() {
    with_each_shard_count(|world| {
        let mut players = party(world, 2, &Wish::default());
        for shard in &mut world.shards {
            shard.drain();
        }
        let code = players[0].code();
        let mut late = Player::new(9);
        assert_eq!(
            late.try_host(world, &Wish::default()).code(),
            code::CAPACITY
        );
        let reply = late.try_join(world, &Where::Code(code), &Wish::default());
        assert_eq!(reply.code(), code::CAPACITY);
        let reply = late.try_match(world, b"k", &Wish::of(2));
        assert_eq!(reply.code(), code::CAPACITY);
        for player in &mut players {
            player.keepalive(world).ok();
        }
        // Whoever has a seat may come back to it.
        players[1].move_to(addr("192.0.2.77:1077"));
        players[1].try_resume(world, &Wish::default()).ok();
    });
}

#[test]
fn a_repeated_request_gets_the_same_answer_and_does_nothing_twice() {
    with_each_shard_count(|world| {
        for (i, name) in [(0, None), (100, Some("named"))] {
            let mut host = Player::new(i);
            let wish = Wish {
                name: name.map(str::to_owned),
                ..Wish::of(2)
            };
            let first = host.host(world, &wish);
            let again = host.repeat(world);
            assert_eq!(first.bytes, again.bytes, "HOST");
            let mut guest = Player::new(i + 1);
            let first = guest.join(world, host.code());
            assert_eq!(first.bytes, guest.repeat(world).bytes, "JOIN");
            let state = (world.sessions(), world.members());
            hear_all(world, &mut [host.clone(), guest.clone()]);
            assert_eq!(state, (world.sessions(), world.members()));
            world.advance_secs(1);

            let target = guest.id();
            let requests: [(u16, &[u8]); 3] = [
                (method::UPDATE, b"data"),
                (method::TRANSFER, b""),
                (method::LEAVE, b""),
            ];
            for (request, data) in requests {
                let first = host.call(world, request, &|w, _, _| {
                    match request {
                        method::UPDATE => w.attribute(attr::MEMBER_DATA, data),
                        method::TRANSFER => w.attribute(attr::TARGET_SEAT, &target.to_bytes()),
                        _ => w,
                    };
                });
                assert_eq!(first.code(), 0);
                // A leaving that was done leaves no seat to answer from, and says just that.
                let again = host.repeat(world);
                if request == method::LEAVE {
                    assert_eq!(again.code(), code::SEAT_GONE);
                } else {
                    assert_eq!(first.bytes, again.bytes);
                }
            }
            let kinds = guest.kinds(world);
            let expected = [
                (EventKind::MemberJoined, 0),
                (EventKind::MemberChanged, 0),
                (EventKind::HostChanged, 1),
                (EventKind::MemberLeft, 0),
            ];
            assert_eq!(kinds, expected, "each once");
        }
        world.check();
    });
}

#[test]
fn a_keepalive_in_between_does_not_make_a_repetition_count() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        let target = players[1].id();
        players[0].kick(world, target).ok();
        let kick = players[0].last_request.clone();
        players[0].keepalive(world).ok();
        let reply = players[0].exchange(world, &kick);
        assert_eq!(reply.code(), 0);
    });
}

#[test]
fn what_is_malformed_is_refused_with_the_right_code() {
    with_each_shard_count(|world| {
        let mut player = Player::new(0);
        let reply = player.call(world, method::HOST, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"game");
        });
        assert_eq!(reply.code(), code::BAD_REQUEST, "no MAX-MEMBERS");
        let reply = player.call(world, method::HOST, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"ga\nme")
                .u32(attr::MAX_MEMBERS, 4);
        });
        assert_eq!(reply.code(), code::BAD_REQUEST, "a control character");
        let reply = player.call(world, method::HOST, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"game")
                .u32(attr::MAX_MEMBERS, 4)
                .attribute(0x4bfe, b"");
        });
        assert_eq!(reply.code(), code::UNKNOWN_ATTRIBUTE);
        let unknown = waypost_proto::wire::stun::attr::UNKNOWN_ATTRIBUTES;
        assert_eq!(reply.message().find(unknown), Some(&[0x4b, 0xfe][..]));
        let reply = player.call(world, method::JOIN, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"game")
                .attribute(attr::PASSWORD_PROOF, &[0; 16]);
        });
        assert_eq!(reply.code(), code::BAD_REQUEST, "neither code nor name");
        for request in [method::MATCH, method::LIST, method::RESUME, method::LEAVE] {
            let reply = player.call(world, request, &|_, _, _| ());
            assert_eq!(reply.code(), code::BAD_REQUEST, "{request:#x}");
        }
        world.check_empty();
    });
}
