//! The matchmaker's door: sessions that an operator's backend makes, and the tickets it hands out.

use waypost_proto::lobby::door::{DoorAnswer, DoorRequest};
use waypost_proto::wire::join_code::JoinCode;
use waypost_proto::wire::native::{EventKind, code, member_flags, session_flags};

use crate::player::{Player, Where, Wish, addr, hear_all};
use crate::world::{Setup, World, with_each_shard_count};

fn create(world: &mut World, name: Option<&str>, max_members: u8, tickets: u8) -> DoorAnswer {
    let shard = name.map_or(0, |name| world.owner_of_name("game", name));
    world.door(
        shard,
        DoorRequest::CreateSession {
            application: "game".to_owned(),
            name: name.map(str::to_owned),
            password: Some("sesame".to_owned()),
            metadata: b"arena".to_vec(),
            max_members,
            flags: session_flags::LISTED,
            tickets,
        },
    )
}

fn created(answer: DoorAnswer) -> (JoinCode, Vec<Vec<u8>>) {
    match answer {
        DoorAnswer::Created { code, tickets, .. } => (code, tickets),
        other => panic!("{other:?}"),
    }
}

#[test]
fn tickets_seat_their_bearers() {
    with_each_shard_count(|world| {
        let (code, tickets) = created(create(world, Some("final"), 4, 3));
        assert_eq!(tickets.len(), 3);
        let mut players = Vec::new();
        // In any order; the first ticket's bearer is the host whenever it comes.
        for i in [2u16, 0, 1] {
            let mut player = Player::new(i);
            player.ticket = tickets[usize::from(i)].clone();
            let reply = player.try_resume(world, &Wish::default()).ok();
            assert_eq!((player.code(), u16::from(player.seat())), (code, i));
            assert_eq!(reply.fields().metadata, Some(&b"arena"[..]));
            let is_host = reply.fields().member_flags == Some(member_flags::HOST);
            assert_eq!(is_host, i == 0);
            players.push(player);
        }
        let mut guest = Player::new(9);
        let sesame = Wish {
            password: Some("sesame"),
            ..Wish::default()
        };
        let place = Where::Name("final".to_owned());
        guest.try_join(world, &place, &sesame).ok();
        assert_eq!(guest.seat(), 3, "beside the reserved seats");
        let mut late = Player::new(10);
        assert_eq!(late.try_join(world, &place, &sesame).code(), code::FULL);
        // A reserved seat that is left waits for its ticket.
        players[2].leave(world).ok();
        assert_eq!(late.try_join(world, &place, &sesame).code(), code::FULL);
        players[2].try_resume(world, &Wish::default()).ok();
        assert_eq!(players[2].seat(), 1);
        // Unless its bearer is kicked.
        let target = players[2].id();
        players[1].kick(world, target).ok();
        let mut elsewhere = players[2].clone();
        elsewhere.move_to(addr("192.0.2.200:2000"));
        let reply = elsewhere.try_resume(world, &Wish::default());
        assert_eq!(reply.code(), code::SEAT_GONE);
        late.try_join(world, &place, &sesame).ok();
        world.check();
    });
}

#[test]
fn a_name_is_given_once() {
    with_each_shard_count(|world| {
        created(create(world, Some("final"), 4, 2));
        let refused = DoorAnswer::Refused(code::NAME_TAKEN);
        assert_eq!(create(world, Some("final"), 4, 2), refused);
        let mut host = Player::new(0);
        let reply = host.try_host(world, &Wish::named("final"));
        assert_eq!(reply.code(), code::NAME_TAKEN);
        host.host(world, &Wish::named("taken"));
        assert_eq!(create(world, Some("taken"), 4, 2), refused);
    });
}

#[test]
fn a_session_that_nobody_comes_to_is_dropped() {
    with_each_shard_count(|world| {
        let (_, tickets) = created(create(world, None, 4, 2));
        world.advance_secs(599);
        assert_eq!(world.sessions(), 1);
        world.advance_secs(2);
        world.check_empty();
        // Its tickets still vouch for it, as after a restart.
        let mut player = Player::new(0);
        player.ticket = tickets[0].clone();
        player.try_resume(world, &Wish::default()).ok();
    });
}

#[test]
fn a_session_that_was_just_emptied_waits_its_full_time() {
    with_each_shard_count(|world| {
        let (code, tickets) = created(create(world, None, 4, 2));
        let mut player = Player::new(1);
        player.ticket = tickets[1].clone();
        player.try_resume(world, &Wish::default()).ok();
        for _ in 0..39 {
            world.advance_secs(15);
            player.keepalive(world).ok();
        }
        player.leave(world).ok();
        world.advance_secs(500);
        assert_eq!(world.sessions(), 1);
        // The host's ticket makes a host, whoever was there before.
        let mut host = Player::new(0);
        host.ticket = tickets[0].clone();
        let reply = host.try_resume(world, &Wish::default()).ok();
        assert_eq!(reply.fields().member_flags, Some(member_flags::HOST));
        assert_eq!(host.code(), code);
        host.leave(world).ok();
        world.advance_secs(601);
        world.check_empty();
    });
}

#[test]
fn a_seat_that_fails_does_not_take_the_session_with_it() {
    for shards in 1..=3 {
        let mut setup = Setup::new(shards);
        setup.lobby.members_max = 1;
        let mut world = World::new(setup);
        let (code, tickets) = created(create(&mut world, None, 4, 2));
        let mut blocker = Player::new(0);
        // Takes the only seat of the shard that owns the session.
        while blocker
            .handle
            .is_none_or(|h| h.code.owner(shards) != code.owner(shards))
        {
            blocker = Player::at(blocker.addr.with_port(blocker.addr.port() + 1));
            blocker.try_host(&mut world, &Wish::default());
        }
        let mut player = Player::new(500);
        player.ticket = tickets[1].clone();
        let reply = player.try_resume(&mut world, &Wish::default());
        assert_eq!(reply.code(), code::CAPACITY);
        blocker.leave(&mut world).ok();
        player.try_resume(&mut world, &Wish::default()).ok();
        world.check();
    }
}

#[test]
fn a_seat_lost_and_taken_again_works_at_once() {
    with_each_shard_count(|world| {
        let (_, tickets) = created(create(world, None, 4, 2));
        let mut players = [Player::new(0), Player::new(1)];
        for (player, ticket) in players.iter_mut().zip(&tickets) {
            player.ticket.clone_from(ticket);
            player.try_resume(world, &Wish::default()).ok();
        }
        hear_all(world, &mut players);
        world.advance_secs(30);
        players[0].keepalive(world).ok();
        world.advance_secs(11);
        // Player 1 has just lost its seat, and comes back while it is still being told.
        players[1].forget();
        players[1].try_resume(world, &Wish::default()).ok();
        hear_all(world, &mut players);
        let kinds = players[1].kinds(world);
        assert_eq!(kinds, [(EventKind::MemberJoined, 0)]);
        world.advance_secs(6);
        players[1].keepalive(world).ok();
        world.check();
        assert_eq!(world.members(), 2);
    });
}

#[test]
fn an_operator_lists_and_closes() {
    with_each_shard_count(|world| {
        let (code, tickets) = created(create(world, Some("final"), 4, 2));
        let mut player = Player::new(0);
        player.ticket = tickets[0].clone();
        player.try_resume(world, &Wish::default()).ok();
        let owner = code.owner(world.setup.shards);
        let list = DoorRequest::List {
            application: Some("game".to_owned()),
            name: None,
            from_slot: 0,
            limit: 10,
        };
        let DoorAnswer::Sessions {
            sessions,
            next_slot: None,
        } = world.door(owner, list)
        else {
            panic!("a list");
        };
        assert_eq!(sessions.len(), 1);
        assert_eq!(sessions[0].name.as_deref(), Some("final"));
        assert_eq!((sessions[0].members, sessions[0].max_members), (1, 4));
        let close = DoorRequest::Close { code };
        assert_eq!(world.door(owner, close.clone()), DoorAnswer::Closed);
        assert_eq!(player.kinds(world), [(EventKind::Removed, 0)]);
        assert_eq!(
            world.door(owner, close),
            DoorAnswer::Refused(code::NO_SESSION)
        );
        world.advance_secs(601);
        world.check_empty();
    });
}
