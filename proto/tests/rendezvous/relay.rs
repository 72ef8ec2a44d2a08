//! Data between members: to whom it goes, and to whom not.

use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::wire::native::LeaveReason;

use crate::player::{Player, Wish, addr, hear_all, party};
use crate::world::{Setup, World, with_each_shard_count};

#[test]
fn everybody_reaches_everybody_across_shards_and_families() {
    with_each_shard_count(|world| {
        let mut players = party(world, 6, &Wish::default());
        assert!(players.iter().any(|player| player.addr.is_ipv4()));
        assert!(players.iter().any(|player| !player.addr.is_ipv4()));
        for from in 0..6 {
            for to in (0..6).filter(|&to| to != from) {
                let text = format!("{from} to {to}");
                let verdict = players[from].relay(world, to as u8, text.as_bytes());
                assert!(matches!(verdict, Verdict::Forward(_)));
                players[to].poll(world);
                let relayed = std::mem::take(&mut players[to].relayed);
                assert_eq!(relayed, [(from as u8, text.into_bytes())]);
            }
        }
        assert_eq!(world.count(Counter::RelayedPackets), 30);
    });
}

#[test]
fn routes_are_there_when_the_join_is_answered() {
    with_each_shard_count(|world| {
        let mut host = Player::new(0);
        host.host(world, &Wish::default());
        for i in 1..7 {
            let mut guest = Player::new(i);
            guest.join(world, host.code());
            let (to_host, to_guest) = (guest.seat(), host.seat());
            assert!(matches!(
                host.relay(world, to_host, b"hi"),
                Verdict::Forward(_)
            ));
            assert!(matches!(
                guest.relay(world, to_guest, b"ho"),
                Verdict::Forward(_)
            ));
        }
    });
}

#[test]
fn nobody_without_a_seat_relays_or_is_relayed_to() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        let stranger = Player::new(77);
        let drop = |reason| Verdict::Drop(reason);
        assert_eq!(stranger.relay(world, 0, b"x"), drop(Counter::DropNoFlow));
        assert_eq!(players[0].relay(world, 3, b"x"), drop(Counter::DropNoRoute));
        assert_eq!(
            players[0].relay(world, 255, b"x"),
            drop(Counter::DropNoRoute)
        );
        // Another session's members are strangers too.
        let mut host = Player::new(50);
        host.host(world, &Wish::default());
        assert_eq!(host.relay(world, 1, b"x"), drop(Counter::DropNoRoute));
        // A member who leaves stops at once, in both directions; so does one who is removed.
        let target = players[2].id();
        players[1].leave(world).ok();
        assert_eq!(players[1].relay(world, 0, b"x"), drop(Counter::DropNoFlow));
        assert_eq!(players[0].relay(world, 1, b"x"), drop(Counter::DropNoRoute));
        players[0].kick(world, target).ok();
        assert_eq!(players[2].relay(world, 0, b"x"), drop(Counter::DropNoFlow));
        assert_eq!(players[0].relay(world, 2, b"x"), drop(Counter::DropNoRoute));
        hear_all(world, &mut players);
        let reason = players[2].events.last().map(|event| event.reason);
        assert_eq!(reason, Some(LeaveReason::Kicked as u8));
        // The address of a member on the second vantage port is nobody's.
        let probe = waypost_proto::forwarding::SocketIndex(1);
        let verdict = world.send_to(probe, players[0].addr, &[0x40, 1, 0, 0]);
        assert_eq!(verdict, drop(Counter::DropParse));
        world.check();
    });
}

#[test]
fn a_members_rate_is_limited_and_others_are_not_touched() {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.lobby.limits.packets_per_sec = 100;
        let mut world = World::new(setup);
        let players = party(&mut world, 3, &Wish::default());
        let mut sent = 0;
        for _ in 0..1000 {
            sent += u32::from(matches!(
                players[0].relay(&mut world, 1, b"x"),
                Verdict::Forward(_)
            ));
        }
        assert_eq!(sent, 26);
        assert!(matches!(
            players[2].relay(&mut world, 1, b"x"),
            Verdict::Forward(_)
        ));
        assert_eq!(world.count(Counter::DropLimit), 974);
    }
}

#[test]
fn a_member_that_moves_keeps_its_seat_and_its_relay() {
    with_each_shard_count(|world| {
        let mut players = party(world, 4, &Wish::default());
        for (step, port) in [(0, 2001), (1, 2002), (2, 2003), (3, 2003)] {
            let old = players[1].addr;
            let new = if step % 2 == 0 {
                addr(&format!("192.0.2.9:{port}"))
            } else {
                addr(&format!("[2001:db8:9::{step}]:{port}"))
            };
            players[1].move_to(new);
            assert_eq!(
                players[1].relay(world, 0, b"x"),
                Verdict::Drop(Counter::DropNoFlow),
                "not before it has shown its token from there"
            );
            players[1].keepalive(world).ok();
            assert_eq!(world.count(Counter::Rebinds), step + 1);
            for other in [0, 2, 3usize] {
                players[other].relay(world, 1, b"to");
                players[1].relay(world, other as u8, b"from");
                players[other].poll(world);
                assert_eq!(players[other].relayed.pop(), Some((1, b"from".to_vec())));
                assert_eq!(players[other].relayed.len(), 0);
            }
            players[1].poll(world);
            assert_eq!(players[1].relayed.len(), 3);
            players[1].relayed.clear();
            assert!(world.take(old).is_none(), "the old address is dead");
            let ghost = Player::at(old);
            assert_eq!(
                ghost.relay(world, 0, b"x"),
                Verdict::Drop(Counter::DropNoFlow)
            );
            world.check();
            assert_eq!(world.members(), 4);
        }
        hear_all(world, &mut players);
        assert_eq!(players[0].kinds(world), [], "moving is no event");
    });
}
