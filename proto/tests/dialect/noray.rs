//! noray: what its own server would have done, and its timers.

use waypost_proto::addr::Addr;
use waypost_proto::dialect::{Dialect, DialectConfig, NameForm, NorayConfig, RelayRules};
use waypost_proto::shard::Verdict;
use waypost_proto::stats::Counter;

use crate::world::{SERVER, Sent, World, addr, control, listener};

/// Ten relay ports at the server's address.
pub fn dialects() -> DialectConfig {
    DialectConfig {
        noray: NorayConfig {
            relay: RelayRules {
                ip: SERVER.parse().unwrap(),
                ports: (52_000..=52_009).collect(),
                ..RelayRules::default()
            },
            ..NorayConfig::default()
        },
        ..DialectConfig::default()
    }
}

struct Player {
    client: Addr,
    game: Addr,
    oid: String,
    pid: String,
}

fn lines(sent: &[Sent]) -> Vec<String> {
    let text: String = sent.iter().map(Sent::text).collect();
    text.lines().map(str::to_owned).collect()
}

impl World {
    /// What a connection is told.
    fn say(&mut self, client: Addr, text: &str) -> Vec<String> {
        self.deliver(client, control(), text.as_bytes());
        lines(&self.take_to(client))
    }

    fn register(&mut self, number: u8) -> Player {
        let client = addr(&format!("198.51.100.{number}:4000"));
        let game = client.with_port(5000);
        self.open_stream(client);
        let said = self.say(client, "register-host\n");
        let value = |line: &String, name: &str| line.strip_prefix(name).unwrap().to_owned();
        assert_eq!(said.len(), 2);
        Player {
            client,
            game,
            oid: value(&said[0], "set-oid "),
            pid: value(&said[1], "set-pid "),
        }
    }

    fn show(&mut self, player: &Player) -> String {
        let at = listener(Dialect::Noray);
        self.deliver(player.game, at, player.pid.as_bytes());
        self.take_to(player.game)[0].text()
    }

    fn player(&mut self, number: u8) -> Player {
        let player = self.register(number);
        assert_eq!(self.show(&player), "OK");
        player
    }

    /// Two players with relay ports, which each knows of the other.
    fn relayed(&mut self) -> (Player, Player, Addr, Addr) {
        let (ann, bob) = (self.player(1), self.player(2));
        let to_bob = self.say(bob.client, &format!("connect-relay {}\n", ann.oid));
        let to_ann = lines(&self.take_to(ann.client));
        let port = |said: Vec<String>| {
            let port = said[0].strip_prefix("connect-relay ").unwrap();
            addr(&format!("{SERVER}:{port}"))
        };
        (ann, bob, port(to_bob), port(to_ann))
    }
}

#[test]
fn ports_are_given_from_the_top_and_reused() {
    let mut world = World::new(dialects());
    let (ann, bob, of_ann, of_bob) = world.relayed();
    assert_eq!((of_ann.port(), of_bob.port()), (52_009, 52_008));
    let again = world.say(bob.client, &format!("connect-relay {}\n", ann.oid));
    assert_eq!(again, ["connect-relay 52009"]);
    world.deliver(bob.game, of_ann, b"hello");
    let sent = world.take_to(ann.game);
    assert_eq!((sent[0].from, &sent[0].bytes[..]), (of_bob, &b"hello"[..]));
}

#[test]
fn idle_ports_are_taken_back_and_given_out_again() {
    let mut world = World::new(dialects());
    let (ann, bob, of_ann, _) = world.relayed();
    world.pass(20_000);
    world.deliver(bob.game, of_ann, b"x");
    // Used by the one and for the other.
    world.pass(25_000);
    assert_eq!(world.counter(Counter::NorayRelays), 2);
    world.close_stream(ann.client);
    assert_eq!(world.counter(Counter::NorayRelays), 2);
    world.pass(20_000);
    assert_eq!(world.counter(Counter::NorayRelays), 0);
    assert_eq!(world.counter(Counter::NorayRelaysExpired), 2);
    let verdict = world.deliver(bob.game, of_ann, b"late");
    assert_eq!(verdict, Verdict::Drop(Counter::DropNoRoute));
    let eve = world.player(3);
    let said = world.say(bob.client, &format!("connect-relay {}\n", eve.oid));
    assert_eq!(said, ["connect-relay 52009"]);
    world.close_stream(bob.client);
    world.close_stream(eve.client);
    world.pass(100_000);
    assert_eq!(world.inspect().timers, 0);
    assert_eq!(world.inspect().relay_sockets, 0);
}

#[test]
fn a_slice_begins_with_any_packet_and_ends_by_itself() {
    let mut world = World::new(dialects());
    let (ann, bob, of_ann, of_bob) = world.relayed();
    let passed = |world: &mut World, len: usize, count: usize| {
        for _ in 0..count {
            world.deliver(bob.game, of_ann, &vec![0; len]);
        }
        world.take_to(ann.game).len()
    };
    assert_eq!(passed(&mut world, 1000, 40), 13);
    world.pass(100);
    assert_eq!(passed(&mut world, 30_000, 2), 1);
    // The other direction is another sender's.
    world.deliver(ann.game, of_bob, b"x");
    assert_eq!(world.take_to(bob.game).len(), 1);
    assert_eq!(world.counter(Counter::NorayRelayDrops), 28);
    assert_eq!(world.counter(Counter::DropLimit), 28);
}

#[test]
fn all_together_and_each_life_are_limited() {
    let mut config = dialects();
    config.noray.relay.all_bytes_per_sec = 20_000;
    config.noray.relay.lifetime_ms = 50_000;
    config.noray.relay.lifetime_bytes = 5001;
    let mut world = World::new(config);
    let (ann, bob, of_ann, of_bob) = world.relayed();
    let send = |world: &mut World, len: usize| {
        world.deliver(bob.game, of_ann, &vec![0; len]);
        world.take_to(ann.game).len()
    };
    assert_eq!(send(&mut world, 1500), 1);
    assert_eq!(send(&mut world, 500), 1);
    world.deliver(ann.game, of_bob, b"x");
    assert_eq!(world.take_to(bob.game).len(), 0, "all of the slice is used");
    world.pass(100);
    assert_eq!(send(&mut world, 1500), 1);
    world.pass(100);
    assert_eq!(send(&mut world, 1501), 0, "a life's bytes stay below 5001");
    assert_eq!(send(&mut world, 1500), 1);
    world.pass(20_000);
    world.deliver(ann.game, of_bob, b"x");
    assert_eq!(world.take_to(bob.game).len(), 1);
    world.pass(29_000);
    world.deliver(ann.game, of_bob, b"x");
    assert_eq!(world.take_to(bob.game).len(), 1);
    world.pass(800);
    world.deliver(ann.game, of_bob, b"x");
    assert_eq!(world.take_to(bob.game).len(), 0, "its life is over");
    // Nothing keeps it any more.
    world.pass(70_000);
    assert_eq!(world.counter(Counter::NorayRelays), 0);
}

#[test]
fn strangers_ports_are_passed_over_and_a_full_host_is_silence() {
    let mut world = World::new(dialects());
    world.relays.in_use = vec![52_009, 52_007];
    let (_, bob, of_ann, of_bob) = world.relayed();
    assert_eq!((of_ann.port(), of_bob.port()), (52_006, 52_008));
    world.relays.exhausted = true;
    let eve = world.player(3);
    let said = world.say(bob.client, &format!("connect-relay {}\n", eve.oid));
    assert!(said.is_empty());
    assert_eq!(world.counter(Counter::NorayRelayFailures), 1);
    world.relays.exhausted = false;
    let said = world.say(bob.client, &format!("connect-relay {}\n", eve.oid));
    assert_eq!(said, ["connect-relay 52005"]);
    let _ = world.inspect();
}

#[test]
fn strangers_get_ports_within_the_range_until_it_is_empty() {
    let mut world = World::new(dialects());
    let (ann, _, of_ann, _) = world.relayed();
    for stranger in 0..20_u16 {
        let from = addr("192.0.2.7:1000").with_port(1000 + stranger);
        world.deliver(from, of_ann, b"first");
        world.deliver(from, of_ann, b"second");
        let sent = world.take_to(ann.game);
        if stranger < 8 {
            assert_eq!(sent.len(), 2);
            assert_eq!(sent[0].bytes, b"first");
            assert!((52_000..=52_009).contains(&sent[0].from.port()));
            assert_eq!(sent[0].from, sent[1].from);
        } else {
            assert!(sent.is_empty());
        }
    }
    assert_eq!(world.counter(Counter::DropCapacity), 24);
    let _ = world.inspect();
}

#[test]
fn who_never_registers_is_not_kept_for_ever() {
    let mut world = World::new(dialects());
    let ann = world.register(1);
    let silent = addr("198.51.100.9:4000");
    world.open_stream(silent);
    world.pass(500_000);
    assert!(world.keeps_stream(silent));
    world.pass(200_000);
    assert!(!world.keeps_stream(silent));
    assert!(world.keeps_stream(ann.client));
}

#[test]
fn short_ids_do_not_collide_and_words_are_run_together() {
    let mut config = dialects();
    config.noray.oid = NameForm::Characters(1, "ABCD".chars().collect());
    config.sessions_per_source = 3;
    let mut world = World::new(config);
    let mut oids: Vec<_> = (1..=4).map(|number| world.register(number).oid).collect();
    oids.sort_unstable();
    assert_eq!(oids, ["A", "B", "C", "D"]);
    let late = addr("198.51.100.9:4000");
    world.open_stream(late);
    assert!(world.say(late, "register-host\n").is_empty());
    assert_eq!(world.counter(Counter::NorayRegisterFailures), 1);

    let mut config = dialects();
    config.noray.oid = NameForm::Words(3);
    config.sessions_per_source = 3;
    let mut world = World::new(config);
    let ann = world.register(1);
    assert_eq!(ann.oid.chars().filter(char::is_ascii_uppercase).count(), 3);
    let said = world.say(ann.client, "register-host\nregister-host\nregister-host\n");
    assert_eq!(said.len(), 4, "a source has its share");
}

#[test]
fn a_greeting_and_errors_are_told_if_asked_for() {
    let mut config = dialects();
    config.noray.greets = true;
    config.noray.tells_errors = true;
    let mut world = World::new(config);
    let ann = addr("198.51.100.1:4000");
    world.open_stream(ann);
    let greeting = lines(&world.take_to(ann));
    assert!(greeting[0].starts_with("hi \"waypost v"));
    let said = world.say(ann, "connect a\"b\nconnect-relay x\nnonsense\n");
    assert_eq!(
        said,
        [
            r#"error connect "Unknown host oid: a\"b""#,
            r#"error connect-relay "Unknown host oid: x""#,
        ]
    );
}

#[test]
fn a_request_that_names_itself_is_told_of_its_failure() {
    let mut world = World::new(dialects());
    let (ann, bob) = (world.player(1), world.register(2));
    let ask = |world: &mut World, text: String| world.say(bob.client, &text);
    assert_eq!(
        ask(&mut world, format!("connect?7 \"{}\"\n", ann.oid)),
        [r#"connect!7 "Client has no remote address registered!""#]
    );
    assert_eq!(
        ask(&mut world, "\rconnect?8 3\nxyz\n".to_owned()),
        [r#"connect!8 "Unknown host oid: xyz""#]
    );
    assert!(ask(&mut world, format!("connect {}\n", ann.oid)).is_empty());
    assert_eq!(world.counter(Counter::NorayConnectFailures), 3);
}

#[test]
fn the_last_line_needs_no_end() {
    let mut world = World::new(dialects());
    let ann = world.player(1);
    assert!(world.say(ann.client, "echo last words").is_empty());
    world.end_stream(ann.client);
    assert_eq!(lines(&world.take_to(ann.client)), ["echo last words"]);
    world.close_stream(ann.client);
    assert_eq!(world.inspect().dialects[0], 0);
}
