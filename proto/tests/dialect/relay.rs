//! The invisible relay: which pairs are relayed, how packets go, what becomes of the ports.

use proptest::prelude::*;
use waypost_proto::addr::Addr;
use waypost_proto::dialect::{Dialect, DialectConfig, RelayMode};
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;
use waypost_proto::wire::simple;

use crate::godot_p2p;
use crate::world::{SERVER, Sent, World, addr, listener};

fn config(relay: RelayMode) -> DialectConfig {
    DialectConfig {
        relay,
        ..DialectConfig::default()
    }
}

fn ann() -> Addr {
    addr("198.51.100.1:4000")
}

fn bob() -> Addr {
    addr("198.51.100.2:5000")
}

/// What a player was told last.
fn told(world: &mut World, who: Addr) -> String {
    world
        .take_to(who)
        .last()
        .map(Sent::text)
        .unwrap_or_default()
}

/// Lets two players of Rabid Hole Punch start a session; returns what each was shown of the other.
fn rabid(world: &mut World, session: &str) -> (Addr, Addr) {
    rabid_of(world, session, (ann(), bob()))
}

fn rabid_of(world: &mut World, session: &str, (ann, bob): (Addr, Addr)) -> (Addr, Addr) {
    let at = listener(Dialect::Rabid);
    for (who, text) in [(ann, "h:#:Ann:2"), (bob, "c:#:Bob"), (ann, "s:#:Ann")] {
        world.deliver(who, at, text.replace('#', session).as_bytes());
    }
    let shown = |text: String, name: &str| {
        let (_, addr) = text.split_once(&format!(":{name}:")).expect(&text);
        crate::world::addr(addr)
    };
    let of_bob = shown(told(world, ann), "Bob");
    let of_ann = shown(told(world, bob), "Ann");
    (of_bob, of_ann)
}

fn simple_id(world: &mut World) -> String {
    world.deliver(ann(), listener(Dialect::Simple), b"HS:lan");
    told(world, ann()).rsplit(':').next().unwrap().to_owned()
}

fn simple_join(world: &mut World, id: &str) -> (Addr, Addr) {
    let join = format!("JS:lan:{id}");
    world.deliver(bob(), listener(Dialect::Simple), join.as_bytes());
    let field = |text: &str, i: usize| {
        let key = text.split(':').nth(i).unwrap().as_bytes().to_vec();
        simple::addr(&key).unwrap()
    };
    let news = told(world, ann());
    assert!(news.starts_with("NJ:"), "{news}");
    let answer = told(world, bob());
    assert_eq!(field(&answer, 1), bob(), "his own is his own");
    (field(&news, 1), field(&answer, 2))
}

fn godot_join(world: &mut World) -> (Addr, Addr) {
    let at = listener(Dialect::GodotP2p);
    world.deliver(bob(), at, &godot_p2p::join("Bob", "Ann"));
    let shown = |text: String| {
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        let pair = &value["global-address"];
        addr(&format!("{}:{}", pair[0].as_str().unwrap(), pair[1]))
    };
    (shown(told(world, ann())), shown(told(world, bob())))
}

/// Packets go both ways between ports that nobody knew before, and each comes from the address that its receiver was shown.
fn check_relayed(world: &mut World, (of_bob, of_ann): (Addr, Addr)) {
    for shown in [of_bob, of_ann] {
        assert_eq!(shown.ip().to_string(), SERVER);
        assert!((50_000..=51_999).contains(&shown.port()));
    }
    assert_ne!(of_bob, of_ann);
    // Symmetric NATs: other ports than the server knows.
    let (ann_now, bob_now) = (ann().with_port(40_001), bob().with_port(40_002));
    let lost = world.deliver(ann_now, of_bob, b"early");
    assert_eq!(
        lost,
        Verdict::Drop(Counter::DropNoRoute),
        "nobody is there yet"
    );
    world.deliver(bob_now, of_ann, b"hello");
    world.deliver(ann_now, of_bob, b"hi");
    world.deliver(bob_now, of_ann, b"");
    let at = world.now.0;
    let sent = |from, to, bytes: &[u8]| Sent {
        at,
        from,
        to,
        bytes: bytes.to_vec(),
    };
    let expected = [
        sent(of_bob, ann_now, b"hello"),
        sent(of_ann, bob_now, b"hi"),
        sent(of_bob, ann_now, b""),
    ];
    assert_eq!(world.take(), expected);
    // The first port of the viewer is the viewer; nobody else is.
    for stranger in [ann_now.with_port(40_009), addr("192.0.2.1:40001")] {
        let verdict = world.deliver(stranger, of_bob, b"strange");
        assert_eq!(verdict, Verdict::Drop(Counter::DropNoPermission));
    }
}

#[test]
fn force_relays_everybody() {
    let mut world = World::new(config(RelayMode::Force));
    let shown = rabid(&mut world, "Room");
    check_relayed(&mut world, shown);
    world.take();
    let id = simple_id(&mut world);
    let shown = simple_join(&mut world, &id);
    check_relayed(&mut world, shown);
    // A repetition is shown the same, and the way stays open.
    assert_eq!(simple_join(&mut world, &id), shown);
    world.deliver(ann().with_port(40_001), shown.0, b"still");
    assert_eq!(world.take().len(), 1);
    let register = godot_p2p::register("Ann", 60.0);
    world.deliver(ann(), listener(Dialect::GodotP2p), &register);
    world.take();
    let shown = godot_join(&mut world);
    check_relayed(&mut world, shown);
    assert_eq!(world.inspect().dialects[2], 3);
    assert_eq!(world.counter(Counter::DialectPairs), 3);
    let counted = [
        Counter::RabidPackets,
        Counter::SimplePackets,
        Counter::GodotP2pPackets,
    ];
    assert_eq!(counted.map(|counter| world.counter(counter)), [3, 4, 3]);
    // Idle ports are given back.
    world.pass(200_000);
    assert_eq!(world.inspect().dialects[2], 0);
    assert_eq!(world.inspect().relay_sockets, 0);
    assert_eq!(world.relays.open.len(), Dialect::ALL.len() + 1);
}

#[test]
fn a_pair_in_use_stays() {
    let mut world = World::new(config(RelayMode::Force));
    let (of_bob, of_ann) = rabid(&mut world, "Room");
    for i in 0..20 {
        world.pass(30_000);
        world.deliver(bob(), of_ann, b"x");
        world.deliver(ann(), of_bob, b"y");
        world.take();
        assert_eq!(world.inspect().dialects[2], 1, "after {i} half minutes");
    }
}

#[test]
fn on_relays_who_comes_back() {
    let mut world = World::new(config(RelayMode::On(Vec::new())));
    assert_eq!(
        rabid(&mut world, "Room"),
        (bob(), ann()),
        "directly at first"
    );
    world.pass(25_000);
    world.take();
    let shown = rabid(&mut world, "Again");
    check_relayed(&mut world, shown);
    let id = simple_id(&mut world);
    for _ in 0..3 {
        // Repetitions of one try.
        assert_eq!(simple_join(&mut world, &id), (bob(), ann()));
        world.pass(1_000);
    }
    world.pass(20_000);
    let shown = simple_join(&mut world, &id);
    check_relayed(&mut world, shown);
    // Much later it is tried directly again.
    world.pass(600_000);
    world.take();
    assert_eq!(rabid(&mut world, "Later"), (bob(), ann()));
    let register = godot_p2p::register("Ann", 3600.0);
    world.deliver(ann(), listener(Dialect::GodotP2p), &register);
    world.take();
    assert_eq!(godot_join(&mut world), (bob(), ann()));
    world.pass(10_000);
    let shown = godot_join(&mut world);
    check_relayed(&mut world, shown);
}

#[test]
fn on_relays_networks() {
    let network = |text: &str| RelayMode::On(vec![text.parse().unwrap()]);
    let mut world = World::new(config(network("198.51.100.2/32")));
    let shown = rabid(&mut world, "Room");
    check_relayed(&mut world, shown);
    let mut world = World::new(config(network("192.0.2.0/24")));
    assert_eq!(rabid(&mut world, "Room"), (bob(), ann()));
}

#[test]
fn a_new_try_may_come_from_new_ports() {
    let mut world = World::new(config(RelayMode::Force));
    let shown = rabid(&mut world, "Room");
    check_relayed(&mut world, shown);
    world.pass(20_000);
    world.take();
    let again = rabid(&mut world, "Again");
    assert_eq!(again, shown);
    world.deliver(ann().with_port(41_000), shown.0, b"x");
    world.deliver(bob().with_port(41_001), shown.1, b"y");
    assert_eq!(world.take().pop().unwrap().to, ann().with_port(41_000));
}

#[test]
fn ports_of_rabid_players_are_far_apart() {
    let mut world = World::new(config(RelayMode::Force));
    let at = listener(Dialect::Rabid);
    let player = |i: u8| addr(&format!("198.51.100.{i}:4000"));
    world.deliver(player(0), at, b"h:Room:P0:12");
    for i in 1..8 {
        world.deliver(player(i), at, format!("c:Room:P{i}").as_bytes());
    }
    world.take();
    world.deliver(player(0), at, b"s:Room:Whoever");
    for i in 0..8 {
        let text = told(&mut world, player(i));
        let (_, list) = text.strip_prefix("s:").unwrap().split_once(':').unwrap();
        let ports = list.split(';').map(|peer| peer.rsplit(':').next().unwrap());
        let mut ports: Vec<u16> = ports.map(|port| port.parse().unwrap()).collect();
        assert_eq!(ports.len(), 7);
        ports.sort_unstable();
        assert!(ports.windows(2).all(|pair| pair[1] - pair[0] > 17));
    }
    assert_eq!(world.inspect().relay_sockets, 56);
    // There are 112 that are far enough apart; then players see each other.
    let shown: Vec<_> = (0..60)
        .map(|i| {
            world.pass(1000);
            let session = format!("Room{i}");
            let ends = (ann().with_port(6000 + i), bob().with_port(6000 + i));
            (ends, rabid_of(&mut world, &session, ends))
        })
        .collect();
    let direct = shown
        .iter()
        .filter(|((ann, bob), shown)| *shown == (*bob, *ann));
    assert_eq!(direct.count(), 60 - 28);
}

#[test]
fn ports_that_cannot_be_had() {
    // Strangers have most of them.
    let mut world = World::new(config(RelayMode::Force));
    world.relays.in_use = (50_000..=51_999).filter(|port| port % 72 != 32).collect();
    let shown = rabid(&mut world, "Room");
    if shown != (bob(), ann()) {
        check_relayed(&mut world, shown);
    }
    // The host has no room: the players see each other.
    let mut world = World::new(config(RelayMode::Force));
    world.relays.exhausted = true;
    assert_eq!(rabid(&mut world, "Room"), (bob(), ann()));
    assert_eq!(world.counter(Counter::DialectRelayRefusals), 1);
    let id = simple_id(&mut world);
    assert_eq!(simple_join(&mut world, &id), (bob(), ann()));
    world.pass(100_000);
    assert_eq!(world.inspect().dialects[2], 0);
    assert_eq!(world.inspect().relay_sockets, 0);
    // So few pairs are allowed.
    let mut world = World::new(DialectConfig {
        pairs_max: 1,
        ..config(RelayMode::Force)
    });
    rabid(&mut world, "Room");
    let id = simple_id(&mut world);
    assert_eq!(simple_join(&mut world, &id), (bob(), ann()));
}

#[test]
fn one_source_has_its_share_of_pairs() {
    let mut world = World::new(DialectConfig {
        bytes_per_sec: 0,
        ..config(RelayMode::Force)
    });
    let id = simple_id(&mut world);
    for i in 0..200u8 {
        let from = addr(&format!("192.0.2.{i}:4000"));
        let join = format!("JS:lan:{id}");
        world.deliver(from, listener(Dialect::Simple), join.as_bytes());
    }
    assert_eq!(world.inspect().dialects[2], 128);
}

#[test]
fn a_player_relays_within_limits() {
    let mut world = World::new(config(RelayMode::Force));
    let (of_bob, of_ann) = rabid(&mut world, "Room");
    world.deliver(ann(), of_bob, b"x");
    world.deliver(bob(), of_ann, b"x");
    world.take();
    for _ in 0..10_000 {
        world.deliver(ann(), of_bob, b"x");
    }
    let sent = world.take().len();
    assert!(
        (400..=600).contains(&sent),
        "a quarter of a second's worth: {sent}"
    );
}

proptest! {
    /// Whatever comes to relay ports from whomever, a packet goes only to an address that has sent to the twin of the port that it came to,
    /// has its player's IP address, and leaves from that twin.
    #[test]
    fn packets_go_to_who_has_sent(
        packets in prop::collection::vec((any::<bool>(), 1u8..4, 0u16..3, 0u64..40_000), 1..60),
    ) {
        let mut world = World::new(config(RelayMode::Force));
        let (of_bob, of_ann) = rabid(&mut world, "Room");
        let mut latched = [None; 2];
        // The addresses are repeated meanwhile.
        world.pass(1000);
        world.take();
        for (to_bob, ip, port, ms) in packets {
            let from = addr(&format!("198.51.100.{ip}:{}", 40_000 + port));
            let (view, viewer, here, there) = match to_bob {
                true => (of_bob, ann(), 0, 1),
                false => (of_ann, bob(), 1, 0),
            };
            if !world.relays.open.values().any(|open| *open == view) {
                break;
            }
            world.deliver(from, view, b"x");
            if from.ip() == viewer.ip() && latched[here].is_none() {
                latched[here] = Some(from);
            }
            let twin = if to_bob { of_ann } else { of_bob };
            let went: Vec<_> = world.take().iter().map(|sent| (sent.from, sent.to)).collect();
            let goes = latched[here] == Some(from);
            let expected = latched[there].filter(|_| goes).map(|to| (twin, to));
            prop_assert_eq!(went, Vec::from_iter(expected));
            world.pass(ms);
            let _ = world.inspect();
        }
    }
}
