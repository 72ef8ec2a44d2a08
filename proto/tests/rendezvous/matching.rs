//! The match queue.

use waypost_proto::shard::Verdict;
use waypost_proto::wire::native::{EventKind, attr, code, method, session_flags};

use crate::player::{Player, Where, Wish, hear_all};
use crate::world::with_each_shard_count;

#[test]
fn as_many_as_wanted_are_brought_together() {
    with_each_shard_count(|world| {
        for wanted in 2..=5u16 {
            let wish = Wish::of(wanted as u8);
            let mut queues: Vec<Vec<Player>> = vec![Vec::new(), Vec::new()];
            for i in 0..wanted {
                for (q, key) in [b"ranked".as_slice(), b"casual"].into_iter().enumerate() {
                    let mut player = Player::new(wanted * 100 + i * 2 + q as u16);
                    let reply = player.try_match(world, key, &wish).ok();
                    let forming = reply.fields().session_flags.expect("SESSION-FLAGS")
                        & session_flags::FORMING;
                    assert_ne!(forming, 0, "not formed before everybody knows");
                    if i + 1 < wanted {
                        assert_eq!(player.kinds(world), [], "those who wait know nobody");
                        let to = player.relay(world, 0, b"x");
                        assert!(!matches!(to, Verdict::Forward(f) if f.route.to != player.addr));
                    }
                    queues[q].push(player);
                }
            }
            assert_ne!(queues[0][0].code(), queues[1][0].code());
            for players in &mut queues {
                let code = players[0].code();
                assert!(players.iter().all(|player| player.code() == code));
                hear_all(world, players);
                for i in 0..players.len() {
                    let events = players[i].take_events(world);
                    let of = |kind| events.iter().filter(move |e| e.kind == kind);
                    assert_eq!(of(EventKind::Formed).count(), 1);
                    let others = players.len() - 1;
                    assert_eq!(of(EventKind::MemberJoined).count(), others);
                    assert_eq!(of(EventKind::Introduction).count(), others);
                    assert_eq!(events.len(), 2 * others + 1, "and nothing else");
                    for to in (0..players.len()).filter(|&to| to != i) {
                        let seat = players[to].seat();
                        let verdict = players[i].relay(world, seat, b"go");
                        assert!(matches!(verdict, Verdict::Forward(_)));
                    }
                }
                for player in players.iter_mut() {
                    player.leave(world).ok();
                }
            }
            world.check();
            assert_eq!(world.members(), 0);
        }
    });
}

#[test]
fn other_wishes_are_other_queues() {
    with_each_shard_count(|world| {
        let mut players: Vec<Player> = (0..4).map(Player::new).collect();
        players[0].try_match(world, b"key", &Wish::of(2)).ok();
        players[1].try_match(world, b"key", &Wish::of(3)).ok();
        players[2].try_match(world, b"kez", &Wish::of(2)).ok();
        let other = Wish {
            application: "other",
            ..Wish::of(2)
        };
        players[3].try_match(world, b"key", &other).ok();
        hear_all(world, &mut players);
        assert_eq!(world.sessions(), 4);
        assert!(players.iter().all(|player| player.events.is_empty()));
        // A session that forms is neither listed nor joined, by code or otherwise.
        let mut guest = Player::new(9);
        let reply = guest.try_join(world, &Where::Code(players[0].code()), &Wish::default());
        assert_eq!(reply.code(), code::NO_SESSION);
    });
}

#[test]
fn whoever_stops_waiting_is_not_matched() {
    with_each_shard_count(|world| {
        let mut quitter = Player::new(0);
        quitter.try_match(world, b"key", &Wish::of(3)).ok();
        let mut silent = Player::new(1);
        silent.try_match(world, b"key", &Wish::of(3)).ok();
        quitter.leave(world).ok();
        let mut patient = Player::new(2);
        patient.try_match(world, b"key", &Wish::of(3)).ok();
        for _ in 0..5 {
            world.advance_secs(10);
            patient.keepalive(world).ok();
        }
        assert_eq!(world.members(), 1, "silence counts while waiting, too");
        let mut players = vec![patient, Player::new(3), Player::new(4)];
        for player in &mut players[1..] {
            player.try_match(world, b"key", &Wish::of(3)).ok();
        }
        hear_all(world, &mut players);
        for player in &mut players {
            let kinds = player.kinds(world);
            assert_eq!(kinds.len(), 5, "{kinds:?}");
            let formed = kinds.iter().find(|(kind, _)| *kind == EventKind::Formed);
            assert_eq!(formed.map(|(_, seat)| *seat), Some(2), "the host is there");
        }
        silent.poll(world);
        let last = silent.events.last().map(|event| event.kind);
        assert_eq!(last, Some(EventKind::Removed));
        for player in &mut players {
            player.leave(world).ok();
        }
        world.advance_secs(41);
        world.check_empty();
    });
}

#[test]
fn a_repeated_match_takes_no_second_seat() {
    with_each_shard_count(|world| {
        let mut first = Player::new(0);
        let reply = first.try_match(world, b"key", &Wish::of(2)).ok();
        assert_eq!(first.repeat(world).bytes, reply.bytes);
        let mut second = Player::new(1);
        let reply = second.try_match(world, b"key", &Wish::of(2)).ok();
        assert_eq!(second.repeat(world).code(), 0);
        // The one who waited repeats as well, after the match was formed.
        assert_eq!(first.repeat(world).code(), 0);
        assert_eq!((world.sessions(), world.members()), (1, 2));
        assert_eq!(reply.fields().handle, second.handle);

        // A copy that the network made arrives at the same moment as the original.
        let mut third = Player::new(3);
        let mut fourth = Player::new(4);
        third.try_match(world, b"key", &Wish::of(2)).ok();
        fourth.keepalive(world);
        let bytes = fourth.encode(method::MATCH, &|w, _, _| {
            w.attribute(attr::APPLICATION_ID, b"game")
                .attribute(attr::MATCH_KEY, b"key")
                .u32(attr::MAX_MEMBERS, 2);
        });
        let home = usize::from(world.home(fourth.addr));
        for _ in 0..2 {
            let source = waypost_proto::addr::ClientAddr(fourth.addr);
            let now = world.now;
            world.shards[home].handle_datagram(now, crate::world::MAIN, source, &bytes);
        }
        world.settle();
        assert_eq!((world.sessions(), world.members()), (2, 4));
    });
}

#[test]
fn nobody_rules_over_those_who_wait() {
    with_each_shard_count(|world| {
        let mut first = Player::new(0);
        first.try_match(world, b"key", &Wish::of(3)).ok();
        let mut second = Player::new(1);
        second.try_match(world, b"key", &Wish::of(3)).ok();
        let reply = first.call(world, method::CLOSE, &|_, _, _| ());
        assert_eq!(reply.code(), code::NOT_HOST);
        let reply = first.update(world, &|w, _, _| {
            w.u32(attr::MAX_MEMBERS, 2);
        });
        assert_eq!(reply.code(), code::NOT_HOST);
        let reply = first.call(world, method::INTRODUCE, &|_, _, _| ());
        assert_eq!(reply.code(), code::NOT_HOST);
        let mut third = Player::new(2);
        third.try_match(world, b"key", &Wish::of(3)).ok();
        world.advance(200);
        assert_eq!(first.kinds(world).len(), 5);
    });
}
