//! Coming back by ticket: a restarted client, a restarted server, another number of shards.

use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{EventKind, attr, code, session_flags};

use crate::player::{Player, Where, Wish, addr, hear_all, party};
use crate::world::{Setup, World, with_each_shard_count};

fn talk(world: &mut World, players: &mut [Player]) {
    for player in &mut *players {
        player.poll(world);
        player.relayed.clear();
    }
    for from in 0..players.len() {
        for to in (0..players.len()).filter(|&to| to != from) {
            let seat = players[to].seat();
            let verdict = players[from].relay(world, seat, b"hello");
            assert!(matches!(verdict, Verdict::Forward(_)), "{from} to {to}");
        }
    }
    let others = players.len() - 1;
    for player in players {
        player.poll(world);
        assert_eq!(player.relayed.len(), others);
    }
}

#[test]
fn a_restarted_client_comes_back_to_its_seat() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        let handle = players[1].handle;
        players[1].forget();
        players[1].addr = addr("192.0.2.50:3051");
        let wish = Wish {
            data: b"back".to_vec(),
            ..Wish::default()
        };
        let reply = players[1].try_resume(world, &wish).ok();
        assert_eq!(players[1].handle, handle);
        assert!(reply.fields().metadata.is_some());
        hear_all(world, &mut players);
        let kinds = players[1].kinds(world);
        let roster = [(EventKind::MemberJoined, 0), (EventKind::MemberJoined, 2)];
        assert_eq!(kinds, roster, "it is told who is there, from batch 1 on");
        assert_eq!(world.members(), 3);
        talk(world, &mut players);
        // Repeating the request restarts nothing.
        let reply = players[1].repeat(world).ok();
        assert_eq!(reply.fields().handle, handle);
        assert_eq!(players[1].kinds(world), []);
        players[0]
            .update(world, &|w, _, _| {
                w.attribute(attr::METADATA, b"new");
            })
            .ok();
        assert_eq!(players[1].kinds(world), [(EventKind::SessionChanged, 0)]);
        world.check();
    });
}

#[test]
fn seats_and_codes_survive_the_server() {
    for before in 1..=3 {
        for after in 1..=3 {
            let mut world = World::new(Setup::new(before));
            let world = &mut world;
            let wish = Wish {
                password: Some("sesame"),
                session_flags: session_flags::LISTED,
                metadata: b"map".to_vec(),
                ..Wish::named("den")
            };
            let mut players = party(world, 4, &wish);
            let (code, handles) = (
                players[0].code(),
                players.iter().map(|p| p.handle).collect::<Vec<_>>(),
            );
            world.restart(|setup| setup.shards = after);
            // They notice by their keepalive, and come back in any order.
            let reply = players[2].keepalive(world);
            assert_eq!(reply.code(), code::SEAT_GONE);
            for i in [2, 3, 0, 1] {
                let host = Wish {
                    metadata: b"map".to_vec(),
                    ..Wish::named("den")
                };
                let wish = if i == 0 { host } else { Wish::default() };
                players[i].events.clear();
                players[i].try_resume(world, &wish).ok();
                world.check();
            }
            assert_eq!(players[0].code(), code);
            let resumed: Vec<_> = players.iter().map(|p| p.handle).collect();
            assert_eq!(resumed, handles);
            assert_eq!((world.sessions(), world.members()), (1, 4));
            assert_eq!(world.count(Counter::SessionsRestored), 1);
            hear_all(world, &mut players);
            let events = players[2].take_events(world);
            assert!(
                events
                    .iter()
                    .any(|e| e.kind == EventKind::HostChanged && e.seat.seat == 0),
                "the true host is the host again"
            );
            talk(world, &mut players);
            // The session is what it was: password, limit, code.
            let mut guest = Player::new(50);
            let reply = guest.try_join(world, &Where::Code(code), &Wish::default());
            assert_eq!(reply.code(), code::NO_SESSION, "the password still holds");
            let sesame = Wish {
                password: Some("sesame"),
                ..Wish::default()
            };
            guest.try_join(world, &Where::Code(code), &sesame).ok();
            assert!(guest.seat() >= 4, "not a seat of those who were there");
            let target = guest.id();
            players[0].kick(world, target).ok();
        }
    }
}

#[test]
fn names_and_metadata_come_back_with_the_host() {
    with_each_shard_count(|world| {
        let wish = Wish {
            metadata: b"map".to_vec(),
            ..Wish::named("den")
        };
        let mut host = Player::new(0);
        host.host(world, &wish);
        let code = host.code();
        world.restart(|_| ());
        let reply = host.try_resume(world, &wish).ok();
        assert_eq!(reply.fields().metadata, Some(&b"map"[..]));
        assert_eq!(host.code(), code);
        let mut guest = Player::new(1);
        let place = Where::Name("den".to_owned());
        guest.try_join(world, &place, &Wish::default()).ok();
        assert_eq!(guest.code(), code);
    });
}

#[test]
fn without_the_secret_tickets_are_void() {
    with_each_shard_count(|world| {
        let mut players = party(world, 2, &Wish::default());
        world.restart(|setup| setup.secret = [9; 32]);
        for player in &mut players {
            assert_eq!(player.keepalive(world).code(), code::SEAT_GONE);
            let reply = player.try_resume(world, &Wish::default());
            assert_eq!(reply.code(), code::SEAT_GONE);
        }
        world.check_empty();
        players[0].host(world, &Wish::default());
    });
}

#[test]
fn a_secret_that_is_rotated_drops_nobody() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        for shard in &mut world.shards {
            shard.rotate_secret(waypost_proto::nonce::ServerSecret([8; 32]));
        }
        for player in &mut players {
            player.keepalive(world).ok();
        }
        players[1].forget();
        players[1].try_resume(world, &Wish::default()).ok();
        hear_all(world, &mut players);
        talk(world, &mut players);
    });
}

#[test]
fn a_ticket_expires_with_its_session() {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.lobby.session_lifetime_secs = 100;
        let mut world = World::new(setup);
        let mut host = Player::new(0);
        host.host(&mut world, &Wish::default());
        world.restart(|_| ());
        world.advance_secs(99);
        let mut early = host.clone();
        early.move_to(addr("192.0.2.60:4060"));
        early.try_resume(&mut world, &Wish::default()).ok();
        world.restart(|_| ());
        world.advance_secs(2);
        let reply = host.try_resume(&mut world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
        world.check_empty();
    }
}

#[test]
fn a_tampered_ticket_or_a_guessed_token_takes_no_seat() {
    with_each_shard_count(|world| {
        let mut players = party(world, 2, &Wish::default());
        let mut thief = Player::new(66);
        thief.keepalive(world);
        for bit in 0..players[1].ticket.len() * 8 {
            thief.ticket = players[1].ticket.clone();
            thief.ticket[bit / 8] ^= 1 << (bit % 8);
            let reply = thief.try_resume(world, &Wish::default());
            assert_eq!(reply.code(), code::SEAT_GONE, "bit {bit}");
        }
        thief.handle = players[1].handle;
        for guess in 0..1000u32 {
            thief.token[..4].copy_from_slice(&guess.to_be_bytes());
            assert_eq!(thief.leave(world).code(), code::SEAT_GONE);
        }
        assert_eq!(world.count(Counter::Rebinds), 0);
        players[1].keepalive(world).ok();
        talk(world, &mut players);
        world.check();
    });
}

#[test]
fn a_seat_that_was_left_is_not_resumed() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::of(3));
        players[1].leave(world).ok();
        let reply = players[1].try_resume(world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
        // Nor one that somebody else has by now.
        let mut next = Player::new(7);
        next.join(world, players[0].code());
        assert_eq!(next.seat(), 1);
        let reply = players[1].try_resume(world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
        world.check();
    });
}

#[test]
fn the_kicked_do_not_come_back_to_a_restored_session() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        world.restart(|_| ());
        for player in &mut players {
            player.try_resume(world, &Wish::default()).ok();
        }
        let target = players[1].id();
        players[0].kick(world, target).ok();
        let mut elsewhere = players[1].clone();
        elsewhere.move_to(addr("192.0.2.70:5070"));
        let reply = elsewhere.try_resume(world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
    });
}
