//! Rabid Hole Punch: times, limits, any sequence of requests.

use proptest::prelude::*;
use waypost_proto::addr::Addr;
use waypost_proto::dialect::{Dialect, DialectConfig};
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;

use crate::world::{Sent, World, addr, listener};

fn player(i: u16) -> Addr {
    addr(&format!("198.51.100.{}:{}", i % 250 + 1, 4000 + i))
}

fn say(world: &mut World, from: Addr, text: &str) -> Vec<String> {
    world.deliver(from, listener(Dialect::Rabid), text.as_bytes());
    world.take_to(from).iter().map(Sent::text).collect()
}

fn world() -> World {
    World::new(DialectConfig::default())
}

#[test]
fn a_start_lasts_eight_tenths_of_a_second() {
    let mut world = world();
    let (ann, bob) = (player(1), player(2));
    assert_eq!(say(&mut world, ann, "h:Room:Ann:2"), ["i:Ann"]);
    assert_eq!(say(&mut world, bob, "c:Room:Bob"), ["i:Ann:Bob"]);
    world.take();
    let begin = world.now.0;
    world.deliver(ann, listener(Dialect::Rabid), b"s:Room:Ann");
    world.pass(10_000);
    let told: Vec<u64> = world
        .take_to(bob)
        .iter()
        .inspect(|sent| assert_eq!(sent.text(), "s:4002:Ann:198.51.100.2:4001"))
        .map(|sent| sent.at - begin)
        .collect();
    assert_eq!(told.len(), 8);
    for (i, at) in told.iter().enumerate() {
        let due = 100 * i as u64;
        assert!((due..due + 16 * 8 + 16).contains(at), "{told:?}");
    }
    assert_eq!(world.inspect().dialects, [0; 3]);
}

#[test]
fn silence_is_noticed_within_thirteen_seconds() {
    let mut world = world();
    let (ann, bob) = (player(1), player(2));
    say(&mut world, ann, "h:Room:Ann:3");
    world.pass(3_500);
    say(&mut world, ann, "p:Room:Ann");
    assert_eq!(say(&mut world, bob, "c:Room:Bob"), ["i:Ann:Bob"]);
    for _ in 0..20 {
        world.pass(1000);
        say(&mut world, ann, "p:Room:Ann");
    }
    let farewells = world.take_to(bob);
    let texts: Vec<_> = farewells.iter().map(Sent::text).collect();
    assert_eq!(texts, ["error:player_timeout"; 3]);
    let silent_ms = farewells[0].at - 3_500;
    assert!((5_000..=13_000).contains(&silent_ms), "{silent_ms}");
    for pair in farewells.windows(2) {
        assert!((50..=82).contains(&(pair[1].at - pair[0].at)));
    }
    assert_eq!(say(&mut world, ann, "p:Room:Ann"), ["i:Ann"]);
    world.take();
    // Nobody is left: no list, and the session is gone.
    world.pass(30_000);
    assert_eq!(world.take_to(ann).len(), 3);
    assert_eq!(world.inspect().dialects, [0; 3]);
    world.pass(3_600_000);
    assert_eq!(world.inspect().timers, 0);
}

#[test]
fn a_session_ends_after_fifteen_to_twenty_minutes() {
    for offset in [0, 100_000, 299_999] {
        let mut world = world();
        let (ann, bob) = (player(1), player(2));
        world.pass(offset);
        say(&mut world, ann, "h:Room:Ann:3");
        say(&mut world, bob, "c:Room:Bob");
        let mut ended = Vec::new();
        while ended.len() < 6 {
            world.pass(1000);
            for (who, ping) in [(ann, "p:Room:Ann"), (bob, "p:Room:Bob")] {
                world.deliver(who, listener(Dialect::Rabid), ping.as_bytes());
            }
            let sent = world.take();
            let ends = sent
                .iter()
                .filter(|sent| sent.text() == "error:session_timeout");
            ended.extend(ends.map(|sent| sent.at - offset));
            assert!(world.now.0 < 2_000_000, "three for each of two");
        }
        for at in ended {
            assert!((900_000..=1_201_000).contains(&at), "{at}");
        }
        assert_eq!(world.inspect().dialects, [0; 3]);
    }
}

#[test]
fn a_standstill_removes_nobody() {
    let mut world = world();
    let ann = player(1);
    say(&mut world, ann, "h:Room:Ann:3");
    // No timer is served for a minute.
    world.now = world.now + 60_000;
    assert_eq!(say(&mut world, ann, "p:Room:Ann"), ["i:Ann"]);
    assert_eq!(world.inspect().dialects, [1, 1, 0]);
}

#[test]
fn limits_hold() {
    let mut world = World::new(DialectConfig {
        sessions_max: 10,
        players_max: 12,
        sessions_per_source: 4,
        ..DialectConfig::default()
    });
    let from = |ip: u8, port: u16| addr(&format!("198.51.100.{ip}:{port}"));
    for i in 0..20 {
        say(&mut world, from(1, 5000 + i), &format!("h:A{i}:Ann:3"));
    }
    assert_eq!(world.inspect().dialects, [4, 4, 0], "one source's share");
    for i in 0..20 {
        say(&mut world, from(10 + i, 5000), &format!("h:B{i}:Ann:3"));
    }
    assert_eq!(world.inspect().dialects, [10, 10, 0]);
    for i in 0..20 {
        say(&mut world, from(40 + i, 5000), &format!("c:A{}:Bob", i % 4));
    }
    assert_eq!(world.inspect().dialects, [10, 12, 0]);
    assert_eq!(world.counter(Counter::Sessions), 10);
    assert_eq!(world.counter(Counter::RabidSessions), 10);
    world.pass(20_000);
    assert_eq!(world.inspect().dialects, [0; 3]);
}

#[test]
fn draining_makes_no_new_sessions() {
    let mut world = world();
    say(&mut world, player(1), "h:Room:Ann:3");
    world.shard.drain();
    assert!(say(&mut world, player(2), "h:Hall:Bob:3").is_empty());
    assert_eq!(say(&mut world, player(3), "c:Room:Cid"), ["i:Ann:Cid"]);
}

#[test]
fn a_source_draws_a_budget_of_bytes() {
    let mut world = World::new(DialectConfig {
        bytes_per_sec: 500,
        ..DialectConfig::default()
    });
    let ann = player(1);
    say(&mut world, ann, "h:Room:HostName1234:12");
    for i in 0..11u8 {
        let from = addr(&format!("192.0.2.{i}:4000"));
        say(&mut world, from, &format!("c:Room:LongerName{i}"));
    }
    world.take();
    let mut bytes = 0;
    for _ in 0..1000 {
        bytes += say(&mut world, ann, "p:Room:HostName1234")
            .iter()
            .map(|text| text.len() + 28)
            .sum::<usize>();
    }
    assert!((2_000..=4_300).contains(&bytes), "{bytes}");
    assert!(world.counter(Counter::DropBudget) > 900);
}

// A dozen friends behind one NAT who ping as the stock plugin does, and the longest names: the budget is for others.
#[test]
fn a_full_session_behind_one_address_hears_everything() {
    let mut world = world();
    let friends: Vec<Addr> = (0..12)
        .map(|i| addr(&format!("198.51.100.1:{}", 40_000 + i)))
        .collect();
    let name = |i: usize| format!("FriendNo{i:04}");
    say(
        &mut world,
        friends[0],
        &format!("h:TheLanRoom:{}:12", name(0)),
    );
    for (i, &friend) in friends.iter().enumerate().skip(1) {
        world.pass(100);
        let heard = say(&mut world, friend, &format!("c:TheLanRoom:{}", name(i)));
        assert_eq!(heard.len(), 1);
    }
    world.take();
    for _ in 0..240 {
        world.pass(500);
        for (i, &friend) in friends.iter().enumerate() {
            let heard = say(&mut world, friend, &format!("p:TheLanRoom:{}", name(i)));
            assert_eq!(heard.len(), 1, "{i}");
        }
        world.take();
    }
    let start = format!("s:TheLanRoom:{}", name(0));
    world.deliver(friends[0], listener(Dialect::Rabid), start.as_bytes());
    world.pass(800);
    for friend in friends {
        let heard = world.take_to(friend);
        assert_eq!(heard.len(), 8);
        assert!(heard.iter().all(|sent| sent.text().starts_with("s:4")));
    }
    assert_eq!(world.counter(Counter::DropBudget), 0);
}

#[test]
fn guessing_passwords_is_slow() {
    let mut world = world();
    let (ann, eve) = (player(1), player(2));
    say(&mut world, ann, "h:Room:Ann:3:secret");
    let answers: usize = (0..1000)
        .map(|i| say(&mut world, eve, &format!("c:Room:Eve:guess{i}")).len())
        .sum();
    assert!((5..=20).contains(&answers), "{answers}");
    assert_eq!(
        say(&mut world, player(3), "c:Room:Bob:secret"),
        ["i:Ann:Bob"]
    );
}

fn text() -> impl Strategy<Value = String> {
    let session = prop::sample::select(vec!["A", "B", "Room", "TenLetters"]);
    let name = prop::sample::select(vec!["Ann", "Bob", "Cid", "TwelveLetter"]);
    let kind = prop::sample::select(vec!["p", "s", "y", "k", "x", "z"]);
    let password = prop::sample::select(vec!["", ":pw", ":no", ":", "\n"]);
    prop_oneof![
        (session.clone(), name.clone(), 1u8..14, password.clone())
            .prop_map(|(s, n, max, p)| format!("h:{s}:{n}:{max}{p}")),
        (session.clone(), name.clone(), password).prop_map(|(s, n, p)| format!("c:{s}:{n}{p}")),
        (kind, session, name).prop_map(|(k, s, n)| format!("{k}:{s}:{n}")),
        "[a-z:\n]{0,12}",
    ]
}

proptest! {
    /// No sequence makes the tables disagree, and with time all is gone. Nothing is answered with more than what is allowed.
    #[test]
    fn any_sequence_is_served(
        steps in prop::collection::vec((0u16..5, text(), 0u64..4000), 1..80),
    ) {
        let mut world = world();
        for (who, text, ms) in steps {
            let from = player(who);
            world.take();
            world.deliver(from, listener(Dialect::Rabid), text.as_bytes());
            for sent in world.take_to(from) {
                let is_error = sent.text().starts_with("error:");
                // A host who kicks itself hears of that, which is no answer to a bad request.
                if is_error && !text.starts_with("k:") {
                    prop_assert!(sent.bytes.len() <= 3 * text.len());
                }
            }
            world.pass(ms);
            let _ = world.inspect();
        }
        world.pass(2_000_000);
        prop_assert_eq!(world.inspect().dialects, [0; 3]);
        prop_assert_eq!(world.inspect().timers, 0);
    }

    #[test]
    fn any_bytes_are_served(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let mut world = world();
        let verdict = world.deliver(player(1), listener(Dialect::Rabid), &bytes);
        prop_assert!(!matches!(verdict, Verdict::Forward(_)));
    }
}
