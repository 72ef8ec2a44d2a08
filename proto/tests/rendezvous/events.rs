//! Events: in order, once, in spite of loss, and repeated until they are acknowledged.

use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{EventKind, LeaveReason, attr, code, method, session_flags};

use crate::player::{Player, Where, Wish, hear_all, party};
use crate::world::with_each_shard_count;

#[test]
fn changes_of_session_and_members_are_events() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::of(3));
        players[0]
            .update(world, &|w, _, _| {
                w.attribute(attr::METADATA, b"map 2")
                    .u32(attr::MAX_MEMBERS, 5)
                    .u32(attr::SESSION_FLAGS, session_flags::LISTED);
            })
            .ok();
        let key = waypost_proto::wire::native::password_key("game", "hush");
        players[0]
            .update(world, &|w, _, _| {
                w.attribute(attr::PASSWORD_KEY, &key);
            })
            .ok();
        players[1]
            .update(world, &|w, _, _| {
                w.attribute(attr::MEMBER_DATA, b"ready");
            })
            .ok();
        hear_all(world, &mut players);
        for player in &mut players {
            let events = player.take_events(world);
            let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.seat.seat)).collect();
            let expected = [
                (EventKind::SessionChanged, 0),
                (EventKind::SessionChanged, 0),
                (EventKind::MemberChanged, 1),
            ];
            assert_eq!(kinds, expected);
            assert_eq!(events[0].metadata.as_deref(), Some(&b"map 2"[..]));
            assert_eq!(events[0].max_members, Some(5));
            let flags = session_flags::LISTED | session_flags::HAS_PASSWORD;
            assert_eq!(events[1].session_flags, Some(flags));
            assert_eq!(events[2].data.as_deref(), Some(&b"ready"[..]));
        }
        // The new limit and password hold.
        let place = Where::Code(players[0].code());
        let mut guest = Player::new(9);
        let reply = guest.try_join(world, &place, &Wish::default());
        assert_eq!(reply.code(), code::NO_SESSION);
        let wish = Wish {
            password: Some("hush"),
            ..Wish::default()
        };
        guest.try_join(world, &place, &wish).ok();
        // The limit cannot go below the seats that are taken.
        let reply = players[0].update(world, &|w, _, _| {
            w.u32(attr::MAX_MEMBERS, 3);
        });
        assert_eq!(reply.code(), code::BAD_REQUEST);
        // Without a password again.
        let key = waypost_proto::wire::native::password_key("game", "");
        players[0]
            .update(world, &|w, _, _| {
                w.attribute(attr::PASSWORD_KEY, &key);
            })
            .ok();
        let event = players[2].take_events(world).pop().expect("an event");
        assert_eq!(event.session_flags, Some(session_flags::LISTED));
    });
}

#[test]
fn the_host_is_handed_over_and_succeeded() {
    with_each_shard_count(|world| {
        let mut players = party(world, 4, &Wish::default());
        let heir = players[2].id();
        players[0].on_target(world, method::TRANSFER, heir).ok();
        assert_eq!(
            players[0].on_target(world, method::TRANSFER, heir).code(),
            code::NOT_HOST
        );
        hear_all(world, &mut players);
        for player in &mut players {
            assert_eq!(player.kinds(world), [(EventKind::HostChanged, 2)]);
        }
        players[2].leave(world).ok();
        for i in [0, 1, 3] {
            let expected = [(EventKind::MemberLeft, 2), (EventKind::HostChanged, 0)];
            assert_eq!(players[i].kinds(world), expected);
        }
        let victim = players[3].id();
        players[0].kick(world, victim).ok();
        players[0].call(world, method::CLOSE, &|_, _, _| ()).ok();
        for player in [0, 1] {
            let event = players[player].take_events(world).pop().expect("an event");
            assert_eq!(event.kind, EventKind::Removed);
            assert_eq!(event.reason, LeaveReason::Closed as u8);
        }
        players[3].poll(world);
        world.advance_secs(41);
        world.check_empty();
    });
}

#[test]
fn a_batch_is_repeated_until_it_is_acknowledged() {
    with_each_shard_count(|world| {
        let mut players = party(world, 2, &Wish::default());
        players[0].deaf = true;
        players[1]
            .update(world, &|w, _, _| {
                w.attribute(attr::MEMBER_DATA, b"1");
            })
            .ok();
        players[1]
            .update(world, &|w, _, _| {
                w.attribute(attr::MEMBER_DATA, b"2");
            })
            .ok();
        players[0].batches_seen = 0;
        for _ in 0..20 {
            world.advance(150);
            players[0].poll(world);
        }
        let seen = players[0].batches_seen;
        assert!((18..=21).contains(&seen), "{seen} in three seconds");
        for _ in 0..20 {
            world.advance(1000);
            players[0].poll(world);
            players[1].keepalive(world).ok();
        }
        let seen = players[0].batches_seen - seen;
        assert!((25..=40).contains(&seen), "slower later: {seen}");
        players[0].deaf = false;
        world.advance(1000);
        let events = players[0].take_events(world);
        assert_eq!(events.len(), 2);
        assert_eq!(events[1].data.as_deref(), Some(&b"2"[..]));
        players[0].batches_seen = 0;
        world.advance_secs(5);
        players[0].poll(world);
        assert_eq!(players[0].batches_seen, 0, "silence after it");
    });
}

#[test]
fn only_the_receiver_can_acknowledge() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        players[0].deaf = true;
        players[1]
            .update(world, &|w, _, _| {
                w.attribute(attr::MEMBER_DATA, b"1");
            })
            .ok();
        let stale = world.count(Counter::DropStale);
        // Another member knows the batch's form, not the token; and a wrong transaction id acknowledges nothing.
        let bytes = loop {
            let bytes = world.take(players[0].addr).expect("the batch");
            if bytes[0] < 4 {
                break bytes;
            }
        };
        let message = waypost_proto::wire::stun::Message::parse(&bytes).unwrap();
        let mut thief = players[1].clone();
        thief.handle = players[0].handle;
        let forged = thief.acknowledgement(&message);
        world.send(thief.addr, &forged);
        let mut other_id = bytes.clone();
        other_id[19] ^= 1;
        let message = waypost_proto::wire::stun::Message::parse(&other_id).unwrap();
        let wrong = players[0].acknowledgement(&message);
        world.send(players[0].addr, &wrong);
        assert_eq!(world.count(Counter::DropStale), stale + 2);
        world.advance(150);
        players[0].poll(world);
        assert!(players[0].batches_seen >= 1, "still repeated");
    });
}

#[test]
fn a_removed_member_is_told_until_it_acknowledges() {
    with_each_shard_count(|world| {
        let mut players = party(world, 4, &Wish::default());
        for i in [1, 2, 3] {
            players[i].deaf = i != 2;
            let target = players[i].id();
            players[0].kick(world, target).ok();
        }
        players[2].poll(world);
        let last = players[2].kinds(world).pop();
        assert_eq!(last, Some((EventKind::Removed, 2)));
        assert_eq!(world.members(), 3, "the one who acknowledged is forgotten");
        players[2].batches_seen = 0;
        world.advance_secs(2);
        players[1].deaf = false;
        assert_eq!(players[1].kinds(world), [(EventKind::Removed, 1)]);
        world.advance_secs(4);
        players[2].poll(world);
        assert_eq!(players[2].batches_seen, 0);
        assert_eq!(world.members(), 1, "and the silent one after a while");
        players[0].leave(world).ok();
        world.advance_secs(41);
        world.check_empty();
    });
}

#[test]
fn events_arrive_in_order_and_once_in_spite_of_loss() {
    with_each_shard_count(|world| {
        let mut players = party(world, 5, &Wish::default());
        world.loss = 0.3;
        for round in 0..40u8 {
            let who = usize::from(round) % 5;
            players[who]
                .update(world, &|w, _, _| {
                    w.attribute(attr::MEMBER_DATA, &[round]);
                })
                .ok();
            world.advance(u64::from(round) * 5);
            for player in &mut players {
                player.poll(world);
            }
        }
        for _ in 0..30 {
            world.advance(200);
            hear_all(world, &mut players);
        }
        world.loss = 0.0;
        for player in &mut players {
            let events = player.take_events(world);
            let order: Vec<usize> = events.iter().map(|e| usize::from(e.seat.seat)).collect();
            let expected: Vec<usize> = (0..40).map(|round| round % 5).collect();
            assert_eq!(order, expected, "each once, in order");
            for seat in 0..5 {
                let last = events.iter().rev().find(|e| e.seat.seat == seat);
                let data = last.and_then(|e| e.data.clone());
                assert_eq!(data, Some(vec![35 + seat]), "the last word is right");
            }
        }
    });
}

#[test]
fn late_joiners_get_the_roster_of_a_large_session() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(world, &Wish::of(255));
        let code = host.code();
        let mut players = vec![host];
        for i in 1..255u16 {
            let mut player = Player::new(i);
            let wish = Wish {
                data: vec![i as u8; 64],
                ..Wish::default()
            };
            player.try_join(world, &Where::Code(code), &wish).ok();
            players.push(player);
        }
        let mut late = Player::new(300);
        let reply = late.try_join(world, &Where::Code(code), &Wish::default());
        assert_eq!(reply.code(), code::FULL);
        for _ in 0..40 {
            hear_all(world, &mut players);
            world.advance(20);
        }
        for (i, player) in players.iter_mut().enumerate() {
            let events = player.take_events(world);
            let mut seats: Vec<usize> = events
                .iter()
                .inspect(|event| {
                    assert_eq!(event.kind, EventKind::MemberJoined);
                    let seat = event.seat.seat;
                    if seat > 0 {
                        assert_eq!(event.data, Some(vec![seat; 64]));
                    }
                })
                .map(|event| usize::from(event.seat.seat))
                .collect();
            seats.sort_unstable();
            let expected: Vec<usize> = (0..255).filter(|&seat| seat != i).collect();
            assert_eq!(seats, expected, "everybody else once");
        }
        // From first to last seat.
        assert_eq!(players[254].seat(), 254);
        players[0].relay(world, 254, b"far");
        players[254].poll(world);
        assert_eq!(players[254].relayed, [(0, b"far".to_vec())]);
        world.check();
    });
}

#[test]
fn a_seat_that_changes_hands_while_the_roster_is_told_is_told_once() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(world, &Wish::of(101));
        let code = host.code();
        let mut players: Vec<Player> = (1..100).map(Player::new).collect();
        for player in &mut players {
            let wish = Wish {
                data: vec![7; 64],
                ..Wish::default()
            };
            player.try_join(world, &Where::Code(code), &wish).ok();
        }
        let mut late = Player::new(200);
        late.deaf = true;
        late.join(world, code);
        // While the first batch of its roster is under way, a seat at the end changes hands.
        let seat = players[90].seat();
        players[90].leave(world).ok();
        let mut other = Player::new(201);
        other.join(world, code);
        assert_eq!(other.seat(), seat);
        late.deaf = false;
        world.advance(200);
        let events = late.take_events(world);
        let joins = |id| {
            let join =
                |e: &&crate::player::Event| e.kind == EventKind::MemberJoined && e.seat == id;
            events.iter().filter(join).count()
        };
        assert_eq!(joins(other.id()), 1);
        assert_eq!(joins(players[90].id()), 0);
        assert_eq!(
            events
                .iter()
                .filter(|e| e.kind == EventKind::MemberJoined)
                .count(),
            100
        );
    });
}

#[test]
fn nobody_talks_others_out_of_their_seats() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        // One member is a slow reader; another one floods and reads at once.
        players[0].deaf = true;
        let mut refused = 0;
        for i in 0..3000u32 {
            let reply = players[1].update(world, &|w, _, _| {
                w.attribute(attr::MEMBER_DATA, &i.to_be_bytes());
            });
            refused += u32::from(reply.code() == code::TOO_MANY_ATTEMPTS);
            world.advance(1);
        }
        assert!((2800..3000).contains(&refused), "{refused}");
        players[0].deaf = false;
        world.advance(1000);
        players[0].poll(world);
        world.advance(200);
        assert_eq!(world.members(), 3);
        let events = players[0].take_events(world);
        assert_eq!(events.len(), 3000 - refused as usize);
    });
}
