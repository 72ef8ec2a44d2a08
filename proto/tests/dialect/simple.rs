//! simple-hole-punch: times, limits, any sequence of requests.

use proptest::prelude::*;
use waypost_proto::addr::Addr;
use waypost_proto::dialect::{Dialect, DialectConfig};
use waypost_proto::stats::Counter;

use crate::world::{Sent, World, addr, listener};

fn player(i: u16) -> Addr {
    addr(&format!("198.51.100.{}:{}", i % 250 + 1, 4000 + i))
}

fn say(world: &mut World, from: Addr, text: impl AsRef<[u8]>) -> Vec<String> {
    world.deliver(from, listener(Dialect::Simple), text.as_ref());
    world.take_to(from).iter().map(Sent::text).collect()
}

fn world() -> World {
    World::new(DialectConfig::default())
}

fn host(world: &mut World, from: Addr) -> String {
    let answers = say(world, from, "HS:lan");
    answers[0].rsplit(':').next().unwrap().to_owned()
}

#[test]
fn a_session_lasts_twenty_minutes_after_its_host_was_heard() {
    for keepalives in [0u64, 3] {
        let mut world = world();
        let (ann, bob) = (player(1), player(2));
        let id = host(&mut world, ann);
        for _ in 0..keepalives {
            world.pass(1_000_000);
            assert!(
                say(&mut world, bob, format!("KA:{id}")).is_empty(),
                "not his"
            );
            assert!(say(&mut world, ann, format!("KA:{id}")).is_empty());
        }
        world.pass(1_199_000);
        assert!(say(&mut world, bob, format!("JS::{id}"))[0].starts_with("JR:"));
        world.pass(61_000);
        assert_eq!(
            say(&mut world, bob, format!("JS::{id}")),
            [format!("BK:{id}")]
        );
        assert_eq!(world.inspect().dialects, [0; 3]);
        assert_eq!(world.inspect().timers, 0);
    }
}

#[test]
fn all_ids_are_used_and_none_twice() {
    let mut world = World::new(DialectConfig {
        sessions_max: 100_000,
        sessions_per_source: 0,
        bytes_per_sec: 0,
        ..DialectConfig::default()
    });
    let ids: std::collections::BTreeSet<String> = (0..70_000u32)
        .filter_map(|i| {
            let from = addr(&format!("10.0.{}.{}:4000", i >> 8 & 255, i & 255))
                .with_port(4000 + (i >> 16) as u16);
            let answer = say(&mut world, from, "HS:lan").pop()?;
            Some(answer.rsplit(':').next().unwrap().to_owned())
        })
        .collect();
    assert_eq!(ids.len(), 65_536);
    assert_eq!(world.counter(Counter::DropCapacity), 70_000 - 65_536);
}

fn text() -> impl Strategy<Value = (String, usize)> {
    let kind = prop::sample::select(vec![
        "HS:lan", "HS", "RS:lan", "RS", "JS:lan:#", "JS:lan", "CS:#", "KA:#", "XX:#",
    ]);
    prop_oneof![
        9 => (kind, 0usize..6).prop_map(|(text, id)| (text.to_owned(), id)),
        1 => ("[A-Z:a-z]{0,20}", Just(0)),
    ]
}

proptest! {
    /// No sequence makes the tables disagree, and with time all is gone.
    #[test]
    fn any_sequence_is_served(
        steps in prop::collection::vec((0u16..6, text(), 0u64..400_000), 1..80),
    ) {
        let mut world = world();
        let mut ids = vec!["cyahcyahcyahcyah".to_owned()];
        for (who, (text, id), ms) in steps {
            let id = ids[id % ids.len()].clone();
            for answer in say(&mut world, player(who), text.replace('#', &id)) {
                if answer.starts_with("HR:") {
                    ids.push(answer.rsplit(':').next().unwrap().to_owned());
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
        world.deliver(player(1), listener(Dialect::Simple), &bytes);
        for kind in [b"HS:", b"JS:", b"RS:", b"CS:", b"KA:"] {
            world.deliver(player(1), listener(Dialect::Simple), &[kind, &bytes[..]].concat());
        }
        let _ = world.inspect();
    }
}
