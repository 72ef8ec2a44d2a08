//! GodotP2P: times, limits, any sequence of requests.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use waypost_proto::addr::Addr;
use waypost_proto::dialect::{Dialect, DialectConfig};
use waypost_proto::stats::Counter;

use crate::world::{Sent, World, addr, listener};

fn player(i: u16) -> Addr {
    addr(&format!("198.51.100.{}:{}", i % 250 + 1, 4000 + i))
}

/// A packet with the right tag.
pub fn packet(name: &str, kind: &str, password: &str, more: &Value) -> Vec<u8> {
    let mut packet = Map::new();
    packet.insert("__type".into(), kind.into());
    packet.insert("__sender-name".into(), name.into());
    packet.extend(more.as_object().unwrap().clone());
    let mut tagged = packet.clone();
    tagged.insert("password".into(), password.into());
    let mut keys: Vec<&str> = tagged.keys().map(String::as_str).collect();
    let mut values: Vec<&str> = tagged.values().filter_map(Value::as_str).collect();
    keys.sort_unstable();
    values.sort_unstable();
    let digest = Sha256::digest(keys.concat() + &values.concat());
    let tag: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    packet.insert("__hash-string".into(), tag.into());
    Value::Object(packet).to_string().into_bytes()
}

pub fn register(name: &str, secs: f64) -> Vec<u8> {
    let more = json!({"local-address": ["10.0.0.1", 1], "seconds-before-expiry": secs, "password": "pw", "password-required": true});
    packet(name, "registering-server", "pw", &more)
}

pub fn join(name: &str, server: &str) -> Vec<u8> {
    let more = json!({"server-name": server, "local-address": ["10.0.0.2", 2], "password": "pw"});
    packet(name, "requesting-to-join-server", "pw", &more)
}

fn refresh(name: &str, secs: f64) -> Vec<u8> {
    let more = json!({"seconds-before-expiry": secs});
    packet(name, "refreshing-server-registration", "pw", &more)
}

fn list() -> Vec<u8> {
    packet(
        "x",
        "requesting-server-list",
        "pw",
        &json!({"password": "pw"}),
    )
}

fn say(world: &mut World, from: Addr, datagram: &[u8]) -> Vec<String> {
    world.deliver(from, listener(Dialect::GodotP2p), datagram);
    world.take_to(from).iter().map(Sent::text).collect()
}

fn world() -> World {
    World::new(DialectConfig::default())
}

#[test]
fn expiry_counts_in_seconds() {
    for (secs, gone_after_ms) in [
        (60.0, 60_000),
        (0.0, 1000),
        (-5.0, 1000),
        (2.5, 3000),
        (1e300, 3_600_000),
    ] {
        let mut world = world();
        world.pass(300);
        assert_eq!(say(&mut world, player(1), &register("Ann", secs)).len(), 1);
        world.pass(gone_after_ms - 1000);
        if gone_after_ms > 1000 {
            assert_eq!(world.inspect().dialects[0], 1, "{secs}");
        }
        world.pass(1016);
        assert_eq!(world.inspect().dialects, [0; 3], "{secs}");
        assert!(say(&mut world, player(1), &refresh("Ann", 60.0)).is_empty());
        assert_eq!(world.inspect().timers, 0);
    }
}

#[test]
fn refreshing_keeps_a_game_and_sets_no_more_timers() {
    let mut world = world();
    let ann = player(1);
    say(&mut world, ann, &register("Ann", 60.0));
    for i in 0..1000 {
        assert_eq!(
            say(&mut world, ann, &refresh("Ann", f64::from(60 - i % 50))).len(),
            1
        );
        world.pass(100);
    }
    assert_eq!(world.inspect().timers, 1);
    world.pass(61_000);
    assert_eq!(world.inspect().dialects[0], 0);
}

#[test]
fn a_long_list_is_cut_and_drawn_from_a_budget() {
    let mut world = World::new(DialectConfig {
        sessions_per_source: 0,
        bytes_per_sec: 4000,
        ..DialectConfig::default()
    });
    for i in 0..1000 {
        say(
            &mut world,
            player(i),
            &register(&format!("a server called {i}"), 3600.0),
        );
    }
    let eve = addr("192.0.2.66:4000");
    let lists: Vec<usize> = (0..100)
        .flat_map(|_| say(&mut world, eve, &list()))
        .map(|text| text.len())
        .collect();
    assert!((1..=3).contains(&lists.len()), "{lists:?}");
    assert!(lists.iter().all(|&len| len < 33_000), "{lists:?}");
    assert!(world.counter(Counter::DropBudget) > 90);
}

fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let name = || prop::sample::select(vec!["Ann", "Bob", "Zo\u{eb}"]);
    let secs = || prop::sample::select(vec![0.0, 1.0, 2.0, 60.0, 1e9]);
    prop_oneof![
        (name(), secs()).prop_map(|(name, secs)| register(name, secs)),
        (name(), secs()).prop_map(|(name, secs)| refresh(name, secs)),
        (name(), name()).prop_map(|(name, server)| join(name, server)),
        Just(list()),
        (name(), name()).prop_map(|(name, whom)| packet(
            name,
            "drop-me",
            "pw",
            &json!({"name": whom})
        )),
        (register("Ann", 60.0).len() / 2..300, any::<u8>()).prop_map(|(at, byte)| {
            let mut bytes = register("Ann", 60.0);
            if let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes
        }),
    ]
}

proptest! {
    /// No sequence makes the tables disagree, and with time all is gone.
    #[test]
    fn any_sequence_is_served(
        steps in prop::collection::vec((0u16..4, datagram(), 0u64..3000), 1..60),
    ) {
        let mut world = world();
        for (who, datagram, ms) in steps {
            say(&mut world, player(who), &datagram);
            world.pass(ms);
            let _ = world.inspect();
        }
        world.pass(4_000_000);
        prop_assert_eq!(world.inspect().dialects, [0; 3]);
        prop_assert_eq!(world.inspect().timers, 0);
    }

    #[test]
    fn any_bytes_are_served(bytes in prop::collection::vec(any::<u8>(), 0..1500)) {
        let mut world = world();
        prop_assert!(say(&mut world, player(1), &bytes).is_empty());
    }
}
