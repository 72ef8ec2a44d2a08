//! How long things last: silence, keepalives, lifetimes, and that nothing is left afterwards.

use waypost_proto::stats::Counter;
use waypost_proto::wire::native::{EventKind, LeaveReason, attr, code};

use crate::player::{Player, Wish, hear_all, party};
use crate::world::{Setup, World, with_each_shard_count};

#[test]
fn the_silent_lose_their_seats_at_the_time_that_they_were_told() {
    with_each_shard_count(|world| {
        let mut players = party(world, 3, &Wish::default());
        players[1].keepalive(world).ok();
        for _ in 0..2 {
            world.advance(19_900);
            players[0].keepalive(world).ok();
            players[2].keepalive(world).ok();
        }
        assert_eq!(world.members(), 3, "39.8 seconds are not 40");
        world.advance(300);
        hear_all(world, &mut players);
        for i in [0, 2] {
            let events = players[i].take_events(world);
            assert_eq!(events.len(), 1);
            assert_eq!(events[0].kind, EventKind::MemberLeft);
            assert_eq!(events[0].reason, LeaveReason::TimedOut as u8);
        }
        let events = players[1].take_events(world);
        assert_eq!(events.last().map(|e| e.kind), Some(EventKind::Removed));
        assert_eq!(world.count(Counter::SeatsTimedOut), 1);
        assert_eq!(players[1].keepalive(world).code(), code::SEAT_GONE);
        // The host falls silent as well: the other one succeeds it.
        world.advance_secs(20);
        players[2].keepalive(world).ok();
        world.advance_secs(21);
        let kinds = players[2].kinds(world);
        let expected = [(EventKind::MemberLeft, 0), (EventKind::HostChanged, 2)];
        assert_eq!(kinds, expected);
        world.advance_secs(60);
        world.check_empty();
    });
}

#[test]
fn keepalives_keep_a_seat_as_long_as_the_session_lives() {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.lobby.session_lifetime_secs = 600;
        let mut world = World::new(setup);
        let mut players = party(&mut world, 3, &Wish::default());
        let end = 600;
        let mut elapsed = 0;
        while elapsed + 15 < end {
            world.advance_secs(15);
            elapsed += 15;
            for player in &mut players {
                player.keepalive(&mut world).ok();
            }
        }
        let mut late = Player::new(9);
        let reply = late.join(&mut world, players[0].code());
        assert_eq!(reply.fields().session_lifetime_secs, Some(15));
        late.events.clear();
        world.advance_secs(14);
        assert_eq!(world.members(), 4);
        world.advance(1_100);
        for player in players.iter_mut().chain([&mut late]) {
            let event = player.take_events(&mut world).pop().expect("an event");
            assert_eq!(event.kind, EventKind::Removed);
            assert_eq!(event.reason, LeaveReason::Expired as u8);
        }
        world.advance_secs(60);
        world.check_empty();
    }
}

#[test]
fn nothing_is_left_after_a_busy_time() {
    with_each_shard_count(|world| {
        let mut players = Vec::new();
        for round in 0..20u16 {
            let mut party = party_at(world, round * 10, 5);
            let target = party[2].id();
            party[0].kick(world, target).ok();
            party[1]
                .update(world, &|w, _, _| {
                    w.attribute(attr::MEMBER_DATA, b"x");
                })
                .ok();
            party[3].leave(world).ok();
            party[4].move_to(Player::new(1000 + round).addr);
            party[4].keepalive(world).ok();
            let mut waiter = Player::new(2000 + round);
            waiter.try_match(world, &[round as u8], &Wish::of(3)).ok();
            players.append(&mut party);
            world.check();
        }
        world.advance_secs(50);
        world.check_empty();
    });
}

fn party_at(world: &mut World, first: u16, members: u16) -> Vec<Player> {
    let mut host = Player::new(first);
    host.host(world, &Wish::named(&format!("party {first}")));
    let code = host.code();
    let mut players = vec![host];
    for i in 1..members {
        let mut player = Player::new(first + i);
        player.join(world, code);
        players.push(player);
    }
    players
}

#[test]
fn short_sessions_leave_no_timers_for_a_day() {
    with_each_shard_count(|world| {
        for round in 0..200 {
            let mut host = Player::new(round);
            host.host(world, &Wish::default());
            host.leave(world).ok();
        }
        world.advance_secs(41);
        world.check_empty();
    });
}

#[test]
fn nobody_loses_a_seat_because_the_server_stood_still() {
    with_each_shard_count(|world| {
        let mut players = party(world, 6, &Wish::default());
        for standstill_secs in [30, 3600] {
            world.advance_secs(14);
            // The whole machine stands still: nobody was heard for that long, and everything is due in one turn.
            world.now = world.now + standstill_secs * 1000;
            world.advance(16);
            assert_eq!(world.members(), 6);
            world.advance_secs(15);
            for player in &mut players[..5] {
                player.keepalive(world).ok();
            }
            assert_eq!(world.members(), 6);
            world.advance_secs(32);
            assert_eq!(
                world.members(),
                5,
                "{standstill_secs} s: who is still silent after it is gone"
            );
            for player in &mut players[..5] {
                player.keepalive(world).ok();
            }
            players[5] = Player::new(100 + standstill_secs as u16);
            let code = players[0].code();
            players[5].join(world, code);
        }
        hear_all(world, &mut players);
        world.advance_secs(60);
        world.check_empty();
    });
}
