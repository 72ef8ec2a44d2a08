//! The datagrams of `corpus/`, whole, cut at every length and with every byte changed in several ways. A line is a datagram;
//! `\n`, `\xHH` and `\\` stand for bytes.

use waypost_proto::dialect::{Dialect, DialectConfig, RelayMode};
use waypost_proto::shard::Verdict;

use crate::world::{World, addr, control, listener};

fn unescape(line: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = line.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match bytes.next() {
            Some(b'n') => out.push(b'\n'),
            Some(b'\\') => out.push(b'\\'),
            Some(b'x') => {
                let mut digit = || char::from(bytes.next().unwrap()).to_digit(16).unwrap();
                out.push((digit() * 16 + digit()) as u8);
            }
            other => panic!("{line}: {other:?} is no escape"),
        }
    }
    out
}

fn replay(dialect: Dialect, corpus: &str) {
    let mut world = World::new(DialectConfig {
        relay: RelayMode::Force,
        sessions_max: 500,
        ..DialectConfig::default()
    });
    let sources = [
        "198.51.100.1:4000",
        "198.51.100.2:4000",
        "198.51.100.3:4000",
    ]
    .map(addr);
    let mut sent = 0;
    let mut send = |world: &mut World, datagram: &[u8]| {
        sent += 1;
        let source = sources[sent % sources.len()];
        let verdict = world.deliver(source, listener(dialect), datagram);
        assert!(!matches!(verdict, Verdict::Forward(_)));
        let answered: usize = world
            .take_to(source)
            .iter()
            .map(|sent| sent.bytes.len())
            .sum();
        assert!(answered < 40_000);
        world.take();
        world.pass(7);
    };
    for line in corpus.lines() {
        let datagram = unescape(line);
        send(&mut world, &datagram);
        for len in 0..datagram.len() {
            send(&mut world, &datagram[..len]);
        }
        for place in 0..datagram.len() {
            for change in [
                1,
                0x20,
                0x80,
                datagram[place] ^ b':',
                datagram[place] ^ b'"',
            ] {
                let mut changed = datagram.clone();
                changed[place] ^= change;
                send(&mut world, &changed);
            }
        }
        let _ = world.inspect();
    }
    assert!(world.inspect().dialects[0] <= 500);
    world.pass(4_000_000);
    assert_eq!(world.inspect().dialects, [0; 3]);
    assert_eq!(world.inspect().timers, 0);
    assert_eq!(world.relays.open.len(), Dialect::ALL.len() + 1);
}

#[test]
fn rabid() {
    replay(Dialect::Rabid, include_str!("corpus/rabid.txt"));
}

#[test]
fn simple() {
    replay(Dialect::Simple, include_str!("corpus/simple.txt"));
}

#[test]
fn godot_p2p() {
    replay(Dialect::GodotP2p, include_str!("corpus/godot_p2p.txt"));
}

/// The lines of `corpus/noray.txt` on three connections, each as a whole, cut at every length, and with every byte changed;
/// the registrar and the relay ports get the same.
#[test]
fn noray() {
    let mut world = World::new(DialectConfig {
        sessions_max: 50,
        ..crate::noray::dialects()
    });
    let players = ["198.51.100.1:4000", "198.51.100.2:4000", "203.0.113.9:4000"].map(addr);
    for player in players {
        world.open_stream(player);
    }
    let mut sent = 0;
    let mut send = |world: &mut World, bytes: &[u8]| {
        sent += 1;
        let player = players[sent % players.len()];
        world.deliver(player, control(), bytes);
        let answered: usize = world.take().iter().map(|sent| sent.bytes.len()).sum();
        assert!(answered < 40_000);
        world.deliver(player, listener(Dialect::Noray), bytes);
        let ports: Vec<_> = world
            .relays
            .open
            .values()
            .filter(|at| at.port() > 50_000)
            .collect();
        if let Some(&&port) = ports.first() {
            world.deliver(player, port, bytes);
        }
        for sent in world.take() {
            assert!(sent.bytes.len() <= 3 * bytes.len());
        }
        world.pass(7);
    };
    for line in include_str!("corpus/noray.txt").lines() {
        let bytes = unescape(line);
        send(&mut world, &bytes);
        for len in 0..bytes.len() {
            send(&mut world, &bytes[..len]);
        }
        for place in 0..bytes.len() {
            for change in [1, 0x20, 0x80, bytes[place] ^ b'\n', bytes[place] ^ b'\r'] {
                let mut changed = bytes.clone();
                changed[place] ^= change;
                send(&mut world, &changed);
            }
        }
        let _ = world.inspect();
    }
    assert!(world.inspect().dialects[0] <= 50);
    for player in players {
        world.end_stream(player);
        world.close_stream(player);
    }
    world.pass(4_000_000);
    assert_eq!(world.inspect().dialects, [0; 3]);
    assert_eq!(world.inspect().timers, 0);
    assert_eq!(world.relays.open.len(), Dialect::ALL.len() + 1);
}
