//! Agents against a scripted server and each other, on a virtual clock.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use proptest::prelude::Strategy as _;
use proptest::prelude::*;

use super::testing::{World, addr};
use super::*;
use crate::wire::native::{EventHead, EventKind, LeaveReason, attr, code, method};
use crate::wire::stun::{Class, Integrity, Message, MessageWriter};

fn seeds() -> impl Iterator<Item = u64> {
    1..=20
}

fn has(world: &World, client: usize, wanted: impl Fn(&SessionEvent) -> bool) -> bool {
    world.clients[client]
        .events
        .iter()
        .any(|event| matches!(event, Event::Session(event) if wanted(event)))
}

fn failed(world: &World, client: usize, wanted: Failure) -> bool {
    world.clients[client]
        .events
        .iter()
        .any(|event| matches!(event, Event::Failed { failure, .. } if *failure == wanted))
}

#[test]
fn members_meet_and_go_direct() {
    let mut world = World::new(1);
    world.session(2, |n, config| config.member_data = vec![n as u8]);
    for n in 0..3 {
        let agent = &world.clients[n].agent;
        assert_eq!(agent.members().count(), 2);
        assert_eq!(agent.session().host, Some(world.clients[0].id()));
        assert_eq!(agent.is_host(), n == 0);
        for member in agent.members() {
            assert_eq!(member.data, [member.id.seat]);
        }
        for other in (0..3).filter(|other| *other != n) {
            assert_eq!(world.path(n, other), Path::Direct);
        }
    }
    assert!(
        world.clients[0]
            .agent
            .server_unix_ms(world.millis())
            .is_some()
    );
}

#[test]
fn everything_survives_loss_doubling_and_reordering() {
    for seed in seeds() {
        let mut world = World::new(seed);
        world.loss_percent = 20;
        world.double_percent = 20;
        world.jitter_ms = 60;
        world.session(2, |_, _| {});
        world.run_for(12_000);
        for n in 0..3 {
            let joined = world.clients[n]
                .events
                .iter()
                .filter(|event| matches!(event, Event::Session(SessionEvent::MemberJoined(_))))
                .count();
            assert_eq!(joined, 2, "each member once, seed {seed}");
            for other in (0..3).filter(|other| *other != n) {
                assert_eq!(world.path(n, other), Path::Direct, "seed {seed}");
            }
        }
        for kind in [method::HOST, method::JOIN] {
            let expected = if kind == method::HOST { 1 } else { 2 };
            assert_eq!(world.server.handled[&kind], expected, "seed {seed}");
        }
    }
}

/// Sixty datagrams a second in both directions from the moment the peer is known, through the upgrade.
#[test]
fn the_upgrade_neither_loses_nor_doubles() {
    for seed in seeds() {
        let mut world = World::new(seed);
        world.jitter_ms = 15;
        let host = world.add(|_| {});
        world.clients[host]
            .agent
            .host(Millis(world.now), HostConfig::default())
            .unwrap();
        world.run_for(500);
        let guest = world.add(|_| {});
        let target = Target::Code(world.code());
        let now = world.millis();
        world.clients[guest].agent.join(now, target, "").unwrap();
        while [host, guest]
            .iter()
            .any(|n| world.clients[*n].agent.members().count() == 0)
        {
            world.run_for(5);
        }
        let mut relayed = 0;
        let peers = [world.clients[guest].id(), world.clients[host].id()];
        for number in 0..600u32 {
            for (from, to) in [(host, peers[0]), (guest, peers[1])] {
                relayed += usize::from(world.clients[from].agent.path(to) != Some(Path::Direct));
                world.send(from, to, &number.to_be_bytes());
            }
            world.run_for(16);
        }
        world.run_for(1_000);
        assert!(relayed > 4, "the relay carried the beginning");
        for client in [host, guest] {
            let received = &world.clients[client].received;
            let mut times: HashMap<&[u8], u32> = HashMap::new();
            for (_, data, _) in received {
                *times.entry(data).or_default() += 1;
            }
            assert_eq!(times.len(), 600, "none lost, seed {seed}");
            assert!(times.values().all(|n| *n == 1), "none doubled, seed {seed}");
            assert!(received.last().unwrap().2, "direct at the end, seed {seed}");
            assert_eq!(world.clients[client].agent.counters().refused_data, 0);
        }
    }
}

#[test]
fn policies_choose_the_path() {
    for (policy, expected, direct) in [
        (PathPolicy::DirectFirst, Path::Direct, true),
        (PathPolicy::RelayFirst, Path::Relayed, false),
        (PathPolicy::RelayOnly, Path::Relayed, false),
        (PathPolicy::DirectOnly, Path::Direct, true),
    ] {
        let mut world = World::new(3);
        world.session(1, |n, config| {
            if n == 0 {
                config.policy = policy;
            }
        });
        world.run_for(2_000);
        assert_eq!(world.path(0, 1), expected, "{policy:?}");
        let guest = world.clients[1].id();
        world.send(0, guest, b"x");
        world.run_for(100);
        assert_eq!(world.clients[1].received[0].2, direct, "{policy:?}");
    }
}

#[test]
fn relay_only_tells_and_tries_nothing() {
    let mut world = World::new(4);
    let local = addr("192.168.1.7:40000");
    world.session(1, |n, config| {
        config.local_addresses = vec![local];
        if n == 1 {
            config.policy = PathPolicy::RelayOnly;
        }
    });
    world.run_for(20_000);
    let server = world.server.at;
    for client in &world.clients {
        assert!(client.control_to.keys().all(|to| *to == server));
    }
    assert!(world.clients[0].agent.members().all(Member::is_relay_only));
    // Even a true frame from the peer's address is refused: it was never proved.
    let frame = [0x40, 0, 0, 1, b'x'];
    let from = world.clients[0].at;
    let now = world.millis();
    assert_eq!(
        world.clients[1].agent.handle_datagram(now, from, &frame),
        None
    );
    assert_eq!(world.clients[1].agent.counters().refused_data, 1);
}

#[test]
fn direct_only_never_uses_the_relay() {
    let mut world = World::new(5);
    let server = world.server.at;
    world.drops = Box::new(move |from, to, _| from != server && to != server);
    world.session(1, |_, config| config.policy = PathPolicy::DirectOnly);
    let guest = world.clients[1].id();
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    assert_eq!(agent.path(guest), Some(Path::Punching));
    assert_eq!(
        agent.frame(now, guest, b"x", &mut Vec::new()),
        Err(NoPath::NotDirect)
    );
    world.run_for(20_000);
    assert_eq!(world.path(0, 1), Path::Unreachable);
    assert!(has(&world, 0, |e| matches!(
        e,
        SessionEvent::PathChanged(_, Path::Unreachable)
    )));
}

#[test]
fn what_cannot_be_punched_is_relayed_within_the_budget() {
    let mut world = World::new(6);
    let server = world.server.at;
    world.drops = Box::new(move |from, to, _| from != server && to != server);
    let claims: Vec<_> = [
        "192.168.1.7:40000",
        "127.0.0.1:4000",
        "224.0.0.1:4000",
        "10.0.0.1:80",
    ]
    .map(addr)
    .to_vec();
    world.session(1, |_, config| config.local_addresses.clone_from(&claims));
    assert_eq!(world.path(0, 1), Path::Punching);
    world.run_for(60_000);
    assert_eq!(world.path(0, 1), Path::Relayed);
    for client in &world.clients {
        for (to, (packets, longest)) in &client.control_to {
            if *to != server {
                assert!(*packets <= BUDGET_PER_ADDRESS as usize && *longest <= 100);
                assert!(*packets >= 20, "{packets} to {to}: the checks at least");
            }
        }
        let tried: Vec<_> = client
            .control_to
            .keys()
            .filter(|to| **to != server)
            .collect();
        assert_eq!(
            tried.len(),
            2,
            "observed and private, nothing else: {tried:?}"
        );
    }
    let guest = world.clients[1].id();
    world.send(0, guest, b"x");
    world.run_for(100);
    assert_eq!(world.clients[1].received.len(), 1);
}

#[test]
fn another_reachable_port_is_told_at_once() {
    let mut world = World::new(12);
    world.session(1, |_, config| config.reachable_port = Some(40_000));
    world.run_for(1_000);
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    agent.set_reachable_port(now, 40_000);
    assert_eq!(agent.poll_transmit(), None, "that is known");
    agent.set_reachable_port(now, 40_001);
    let sent = agent.poll_transmit().unwrap();
    let message = Message::parse(&sent.bytes).unwrap();
    assert_eq!(message.method(), native::method::KEEPALIVE);
    let fields = native::Fields::read(&message).unwrap();
    assert_eq!(fields.reachable_port, Some(40_001));
}

#[test]
fn checks_without_the_key_get_no_answer() {
    let mut world = World::new(7);
    world.session(1, |_, _| {});
    let handle = native::SeatHandle {
        code: world.code(),
        id: world.clients[1].id(),
    };
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    for n in 0..1_000u16 {
        let from = addr("203.0.113.99:5000").with_port(5_000 + n);
        let check = request::write_check(TransactionId([9; 12]), handle, &[0; 16]);
        agent.handle_datagram(now, from, &check);
        assert_eq!(agent.poll_transmit(), None);
    }
    assert_eq!(agent.counters().unexpected, 1_000);
}

#[test]
fn a_path_that_fails_falls_back_and_comes_back() {
    let mut world = World::new(8);
    world.session(1, |_, _| {});
    assert_eq!(world.path(0, 1), Path::Direct);
    let server = world.server.at;
    world.drops = Box::new(move |from, to, _| from != server && to != server);
    let guest = world.clients[1].id();
    for _ in 0..200 {
        world.send(0, guest, b"x");
        world.run_for(16);
    }
    assert_ne!(
        world.path(0, 1),
        Path::Direct,
        "three seconds of sending into the void suffice"
    );
    world.drops = Box::new(|_, _, _| false);
    world.run_for(20_000);
    assert_eq!(world.path(0, 1), Path::Direct);
    assert_eq!(world.path(1, 0), Path::Direct);
}

#[test]
fn a_quiet_path_is_kept() {
    let mut world = World::new(9);
    world.session(1, |_, _| {});
    let peer = world.clients[1].at;
    let before = world.clients[0].control_to[&peer].0;
    world.run_for(600_000);
    assert_eq!(world.path(0, 1), Path::Direct);
    let checks = world.clients[0].control_to[&peer].0 - before;
    assert!((60..=300).contains(&checks), "{checks} in ten minutes");
    assert!(!has(&world, 0, |e| matches!(e, SessionEvent::ServerSilent)));
}

#[test]
fn kick_leave_transfer_close_update() {
    let mut world = World::new(10);
    world.session(3, |_, _| {});
    let ids: Vec<_> = world
        .clients
        .iter()
        .map(super::testing::Client::id)
        .collect();
    let now = world.millis();
    world.clients[1].agent.kick(now, ids[2]).unwrap();
    world.clients[0].agent.kick(now, ids[3]).unwrap();
    world.clients[0]
        .agent
        .set_session_flag(now, native::session_flags::LOCKED, true)
        .unwrap();
    world.run_for(2_000);
    let not_host = Failure::Rejected(Rejected {
        code: code::NOT_HOST,
    });
    assert!(failed(&world, 1, not_host));
    assert!(has(&world, 3, |e| *e
        == SessionEvent::Removed(LeaveReason::Kicked)));
    assert!(world.clients[3].agent.seat().is_none());
    for n in 0..3 {
        assert!(has(&world, n, |e| *e
            == SessionEvent::MemberLeft(ids[3], LeaveReason::Kicked)));
        assert_ne!(
            world.clients[n].agent.session().flags & native::session_flags::LOCKED,
            0
        );
    }
    let now = world.millis();
    world.clients[0].agent.transfer(now, ids[1]).unwrap();
    world.run_for(1_000);
    assert!(world.clients[1].agent.is_host() && !world.clients[0].agent.is_host());
    let now = world.millis();
    world.clients[2].agent.leave(now).unwrap();
    world.run_for(1_000);
    assert!(world.clients[2].agent.seat().is_none());
    assert!(has(&world, 0, |e| *e
        == SessionEvent::MemberLeft(ids[2], LeaveReason::Left)));
    assert_eq!(
        world.clients[2].agent.kick(now, ids[0]),
        Err(Refused::NotSeated)
    );
}

#[test]
fn refusals_reach_the_owner() {
    let mut world = World::new(11);
    world.session(1, |_, _| {});
    let late = world.add(|_| {});
    let now = world.millis();
    let target = Target::Code(world.code());
    world.clients[late]
        .agent
        .join(now, target, "wrong")
        .unwrap();
    assert_eq!(
        world.clients[late].agent.host(now, HostConfig::default()),
        Err(Refused::AlreadySeated)
    );
    world.run_for(1_000);
    let wrong = Failure::Rejected(Rejected {
        code: code::NO_SESSION,
    });
    assert!(failed(&world, late, wrong));
    // A server that does not answer at all.
    world.drops = Box::new(|_, _, _| true);
    let now = world.millis();
    world.clients[late]
        .agent
        .list(now, ListFilter::default(), None)
        .unwrap();
    world.run_for(15_000);
    assert!(failed(&world, late, Failure::Silent));
    assert!(has(&world, late, |e| *e == SessionEvent::ServerSilent));
    assert_eq!(world.clients[late].agent.poll_timeout(), None);
}

#[test]
fn a_rebound_nat_costs_neither_seat_nor_relay() {
    let mut world = World::new(12);
    let server = world.server.at;
    world.drops = Box::new(move |from, to, _| from != server && to != server);
    world.session(1, |_, _| {});
    world.run_for(10_000);
    let (host, guest) = (world.clients[0].id(), world.clients[1].id());
    world.clients[1].at = addr("203.0.113.77:50000");
    for _ in 0..400 {
        world.send(0, guest, b"x");
        world.send(1, host, b"y");
        world.run_for(16);
    }
    assert!(has(&world, 1, |e| matches!(
        e,
        SessionEvent::AddressChanged(_)
    )));
    let received = world.clients[1].received.len();
    assert!(
        received > 200,
        "{received} of 400: found out within about two seconds"
    );
    assert_eq!(world.server.handled[&method::JOIN], 1);
}

#[test]
fn a_restarted_server_that_kept_its_secret_gives_the_seats_back() {
    let mut world = World::new(13);
    world.session(2, |_, _| {});
    let code = world.code();
    let ids: Vec<_> = world
        .clients
        .iter()
        .map(super::testing::Client::id)
        .collect();
    world.server.restart();
    world.run_for(25_000);
    assert_eq!(world.code(), code);
    for (n, id) in ids.into_iter().enumerate() {
        assert!(has(&world, n, |e| *e == SessionEvent::Resumed));
        assert_eq!(world.clients[n].id(), id);
        assert_eq!(world.clients[n].agent.members().count(), 2);
        assert!(!has(&world, n, |e| matches!(
            e,
            SessionEvent::MemberLeft(..)
        )));
        for other in (0..3).filter(|other| *other != n) {
            assert_eq!(world.path(n, other), Path::Direct);
        }
    }
    world.run_for(120_000);
    assert_eq!(
        world.clients[0].agent.members().count(),
        2,
        "confirmed by then"
    );
}

#[test]
fn a_member_that_does_not_resume_is_dropped_in_time() {
    let mut world = World::new(14);
    world.session(2, |_, _| {});
    let gone = world.clients[2].id();
    let at = world.clients[2].at;
    world.drops = Box::new(move |from, to, _| from == at || to == at);
    world.server.restart();
    world.run_for(90_000);
    assert!(has(&world, 0, |e| *e
        == SessionEvent::MemberLeft(gone, LeaveReason::TimedOut)));
    assert_eq!(world.clients[0].agent.members().count(), 1);
}

#[test]
fn without_the_secret_the_host_gets_a_new_code_and_guests_are_told() {
    let mut world = World::new(15);
    world.session(1, |_, _| {});
    let old = world.code();
    world.server.keeps_secret = false;
    world.server.restart();
    world.run_for(25_000);
    let new = world.code();
    assert!(has(&world, 0, |e| *e == SessionEvent::CodeChanged { old, new }));
    assert!(has(&world, 1, |e| *e == SessionEvent::SeatLost));
    assert_eq!(world.clients[0].agent.seat().unwrap().code(), new);
    assert!(world.clients[1].agent.seat().is_none());
    assert_eq!(world.clients[0].agent.members().count(), 0);
    let now = world.millis();
    world.clients[1]
        .agent
        .join(now, Target::Code(new), "")
        .unwrap();
    world.run_for(3_000);
    assert_eq!(world.path(0, 1), Path::Direct);
}

#[test]
fn the_nat_is_probed_before_or_after_seating() {
    for probing in [Probing::First(3479), Probing::WhenSeated] {
        let mut world = World::new(16);
        world.session(1, |_, config| config.probing = probing);
        let mapping = world.clients[1].agent.nat_mapping().unwrap();
        assert_eq!((mapping.step, mapping.random), (1, false));
        assert!(has(&world, 1, |e| matches!(e, SessionEvent::NatMapped(_))));
    }
    // A probe port that does not answer delays by no more than its head start.
    let mut world = World::new(17);
    let probe_port = addr("198.51.100.1:9");
    world.drops = Box::new(move |_, to, _| to == probe_port);
    let client = world.add(|config| config.probing = Probing::First(9));
    let now = world.millis();
    world.clients[client]
        .agent
        .host(now, HostConfig::default())
        .unwrap();
    world.run_for(400);
    assert!(world.clients[client].agent.seat().is_none());
    world.run_for(400);
    assert!(world.clients[client].agent.seat().is_some());
}

#[test]
fn a_late_probe_does_not_make_a_second_request() {
    let mut world = World::new(20);
    let server = world.server.at;
    let client = world.add(|config| config.probing = Probing::First(3479));
    let now = world.millis();
    world.clients[client]
        .agent
        .host(now, HostConfig::default())
        .unwrap();
    world.drops = Box::new(move |_, to, _| to == server.with_port(3479));
    world.run_for(555);
    // The nonce is there and HOST under way; its answer gets lost, and the probe's comes.
    world.drops = Box::new(move |from, _, bytes| from == server && bytes.len() > 60);
    world.run_for(600);
    assert!(world.clients[client].agent.nat_mapping().is_some());
    assert!(world.clients[client].agent.seat().is_none());
    world.drops = Box::new(|_, _, _| false);
    world.run_for(600);
    assert!(world.clients[client].agent.seat().is_some());
    assert_eq!(world.server.handled[&method::HOST], 1);
}

#[test]
fn an_owner_that_takes_no_events_defers_them() {
    let mut world = World::new(18);
    world.session(1, |_, _| {});
    let agent = &mut world.clients[0].agent;
    for _ in 0..EVENTS_MAX * 2 {
        agent.tell(SessionEvent::Formed);
    }
    assert_eq!(agent.events.len(), EVENTS_MAX);
}

proptest! {
    #[test]
    fn arbitrary_datagrams_never_panic(
        datagrams in proptest::collection::vec(
            (any::<bool>(), prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..80),
                (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..60)).prop_map(|(kind, rest)| {
                    let mut bytes = (kind & 0x3fff).to_be_bytes().to_vec();
                    bytes.extend_from_slice(&[0, (rest.len() / 4 * 4) as u8, 0x21, 0x12, 0xa4, 0x42]);
                    bytes.extend_from_slice(&[7; 12]);
                    bytes.extend_from_slice(&rest[..rest.len() / 4 * 4]);
                    bytes
                }),
            ], 0u64..10_000),
            1..60,
        )
    ) {
        let mut world = World::new(19);
        world.session(1, |_, _| {});
        let (server, peer) = (world.server.at, world.clients[1].at);
        let agent = &mut world.clients[0].agent;
        let mut now = world.now;
        for (from_server, bytes, wait) in datagrams {
            now += wait;
            let from = if from_server { server } else { peer };
            agent.handle_datagram(Millis(now), from, &bytes);
            agent.handle_timeout(Millis(now));
            while agent.poll_transmit().is_some() {}
            while agent.poll_event().is_some() {}
        }
    }

    /// What server and peer really send, with bits turned over, cut short, and out of turn.
    #[test]
    fn damaged_messages_never_panic(
        seed in 0u64..1_000,
        flips in proptest::collection::vec((any::<usize>(), any::<u8>(), any::<usize>()), 1..40),
    ) {
        let mut world = World::new(seed);
        let seen = Rc::new(RefCell::new(Vec::new()));
        let recorder = Rc::clone(&seen);
        world.drops = Box::new(move |from, _, bytes| {
            recorder.borrow_mut().push((from, bytes.to_vec()));
            false
        });
        world.session(1, |_, config| config.probing = Probing::WhenSeated);
        let seen = seen.borrow();
        let mut now = world.millis();
        for client in &mut world.clients {
            for (which, bit, at) in &flips {
                let (from, mut bytes) = seen[which % seen.len()].clone();
                let at = at % bytes.len();
                bytes[at] ^= bit;
                if bit % 3 == 0 {
                    bytes.truncate(at);
                }
                now = now + u64::from(*bit);
                client.agent.handle_datagram(now, from, &bytes);
                client.agent.handle_timeout(now);
                while client.agent.poll_transmit().is_some() {}
                while client.agent.poll_event().is_some() {}
            }
        }
    }
}

#[test]
fn members_go_on_without_the_server() {
    for (seed, loss) in seeds().zip([0, 20].into_iter().cycle()) {
        let mut world = World::new(seed);
        world.session(2, |_, _| {});
        world.run_for(3_000);
        world.loss_percent = loss;
        let ids: Vec<_> = world.clients.iter().map(|client| client.id()).collect();
        let now = world.millis();
        // One after the other, so that some are told of the others' leaving by the server.
        for n in 0..3 {
            world.clients[n].agent.leave_server(now).unwrap();
            world.run_for(if n == 1 { 6_000 } else { 10 });
        }
        world.run_for(6_000);
        // From now on whatever goes to the server is a mistake.
        let server = world.server.at;
        let talks = Rc::new(RefCell::new(0));
        let count = Rc::clone(&talks);
        world.drops = Box::new(move |_, to, _| {
            *count.borrow_mut() += usize::from(to == server);
            false
        });
        world.loss_percent = 0;
        world.run_for(120_000);
        assert_eq!(*talks.borrow(), 0, "seed {seed}");
        for n in 0..3 {
            assert!(
                has(&world, n, |e| *e == SessionEvent::WithoutServer),
                "seed {seed}"
            );
            assert!(
                !has(&world, n, |e| matches!(e, SessionEvent::MemberLeft(..))),
                "seed {seed}"
            );
            assert!(world.clients[n].agent.is_without_server());
            for other in (0..3).filter(|other| *other != n) {
                assert_eq!(world.path(n, other), Path::Direct, "seed {seed}");
                let report = world.clients[n].agent.report(world.millis(), ids[other]);
                let relay = report.iter().find(|a| a.strategy == super::Strategy::Relay);
                assert_eq!(
                    relay.map(|attempt| attempt.progress),
                    Some(Progress::NotTried(Reason::WithoutServer)),
                    "seed {seed}"
                );
                world.send(n, ids[other], b"still here");
            }
        }
        world.run_for(1_000);
        let now = world.millis();
        for n in 0..3 {
            let agent = &mut world.clients[n].agent;
            assert_eq!(agent.kick(now, ids[(n + 1) % 3]), Err(Refused::NotSeated));
            assert_eq!(world.clients[n].received.len(), 2, "seed {seed}");
        }
        // Whoever goes away for good is gone when its path fails.
        world.clients[2].agent.leave(now).unwrap();
        assert!(world.clients[2].agent.seat().is_none());
        world.run_for(40_000);
        assert!(has(
            &world,
            0,
            |e| matches!(e, SessionEvent::MemberLeft(id, _) if *id == ids[2])
        ));
        assert_eq!(world.clients[0].agent.members().count(), 1);
    }
}

#[test]
fn without_a_direct_path_the_server_is_not_left() {
    let mut world = World::new(1);
    world.session(1, |_, config| config.policy = PathPolicy::RelayOnly);
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    assert_eq!(agent.leave_server(now), Err(Refused::NoDirectPath));
    assert!(!agent.is_without_server());
}

/// The word that the old seat is gone comes while its host makes the session anew.
#[test]
fn a_late_removal_does_not_undo_hosting_anew() {
    let mut world = World::new(1);
    world.session(0, |_, _| {});
    let old = world.clients[0].agent.seat().unwrap().clone();
    let removal = event(&old, 1, u64::MAX, |head| {
        head.kind = EventKind::Removed;
        head.reason = 3;
    });
    world.server.keeps_secret = false;
    world.server.restart();
    let hosted = world.server.handled[&method::HOST];
    let server = world.server.at;
    // Until HOST is under way for the second time.
    while world.server.handled[&method::HOST] == hosted {
        world.run_for(5);
    }
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    assert!(agent.seat().is_some_and(|seat| seat.code() == old.code()));
    assert!(agent.handle_datagram(now, server, &removal).is_none());
    world.run_for(1_000);
    assert!(has(&world, 0, |e| matches!(
        e,
        SessionEvent::CodeChanged { .. }
    )));
    assert!(!has(&world, 0, |e| matches!(e, SessionEvent::Removed(_))));
    assert!(world.clients[0].agent.seat().is_some());
}

/// A batch of before a resumption comes after it, with the number that is next.
#[test]
fn a_batch_of_before_a_resumption_is_not_taken_for_one_after_it() {
    let mut world = World::new(1);
    world.session(0, |_, _| {});
    let seat = world.clients[0].agent.seat().unwrap().clone();
    let server = world.server.at;
    let joined = |sent_ms: u64| {
        event(&seat, 1, sent_ms, |head| {
            head.kind = EventKind::MemberJoined;
            head.seat.seat = 7;
        })
    };
    let now = world.millis();
    let agent = &mut world.clients[0].agent;
    agent.handle_datagram(now, server, &joined(seat.events_since_ms - 1));
    assert_eq!(agent.members().count(), 0);
    assert!(agent.poll_transmit().is_none(), "it is not answered either");
    agent.handle_datagram(now, server, &joined(seat.events_since_ms));
    assert_eq!(agent.members().count(), 1);
    assert!(agent.poll_transmit().is_some());
}

/// A batch of one event for a seat, sent at this time of the server.
fn event(seat: &Seat, sequence: u32, sent_ms: u64, change: impl Fn(&mut EventHead)) -> Vec<u8> {
    let mut head = EventHead {
        kind: EventKind::Formed,
        reason: 0,
        seat: seat.handle.id,
    };
    change(&mut head);
    let mut bytes = Vec::new();
    MessageWriter::new(
        &mut bytes,
        method::EVENT,
        Class::Request,
        TransactionId([9; 12]),
    )
    .attribute(attr::SEAT_HANDLE, &seat.handle.to_bytes())
    .u32(attr::EVENT_SEQUENCE, sequence)
    .u64(attr::SERVER_TIME, sent_ms)
    .list(attr::EVENT, |writer| head.write(writer))
    .integrity(Integrity::Sha256Truncated, &seat.token)
    .finish();
    bytes
}
