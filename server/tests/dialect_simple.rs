//! simple-hole-punch, spoken from outside a running server.

#![allow(clippy::unwrap_used)]

mod wire;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::dialect::Dialect;
use waypost_proto::wire::simple;
use waypost_server::serve::Server;
use wire::Game;

fn start(options: &[&str]) -> (Server, impl Fn() -> Game) {
    let listen = ["--simple-listen", "127.0.0.1:0", "--shards", "2"];
    let server = Server::start_with(&[&listen[..], options].concat()).unwrap();
    let at = server.dialect_addrs(Dialect::Simple)[0];
    (server, move || Game::new(at))
}

fn key(addr: SocketAddr) -> String {
    let key = simple::key(Addr::new(addr)).unwrap();
    String::from_utf8(key.to_vec()).unwrap()
}

fn key_of(game: &Game) -> String {
    key(game.addr())
}

/// Hosts; returns the id.
fn host(game: &Game, lan: &str) -> String {
    let answer = game.ask(format!("HS:{lan}"));
    let id = answer.strip_prefix(&format!("HR:{}:", key_of(game)));
    id.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[test]
fn hosting_is_idempotent() {
    let (_server, game) = start(&[]);
    let ann = game();
    let id = host(&ann, "lankeyofann");
    assert_eq!(id.len(), 16);
    assert_eq!(id[..12], key(ann.server), "it names the server");
    assert_eq!(host(&ann, "otherlankey"), id);
    // The refreshed LAN key counts.
    let bob = game();
    let joined = format!("JR:{}:{}:otherlankey", key_of(&bob), key_of(&ann));
    assert_eq!(bob.ask(format!("JS:lanofbob:{id}")), joined);
}

#[test]
fn ids_do_not_collide() {
    let (_server, game) = start(&[]);
    let games: Vec<Game> = (0..200).map(|_| game()).collect();
    let ids: BTreeSet<String> = games.iter().map(|game| host(game, "")).collect();
    assert_eq!(ids.len(), games.len());
}

#[test]
fn joining_is_told_to_the_host_first_and_can_be_repeated() {
    let (_server, game) = start(&[]);
    let (ann, bob, cid) = (game(), game(), game());
    let id = host(&ann, "short");
    for (joiner, lan) in [(&bob, "lanofbob"), (&cid, ""), (&bob, "lanofbob")] {
        let joined = format!("JR:{}:{}:short", key_of(joiner), key_of(&ann));
        assert_eq!(joiner.ask(format!("JS:{lan}:{id}")), joined);
        assert_eq!(ann.receive(), format!("NJ:{}:{lan}", key_of(joiner)));
    }
    // Self-made sockets see the order: both messages go to one.
    ann.send(format!("JS:own:{id}"));
    assert_eq!(ann.receive(), format!("NJ:{}:own", key_of(&ann)));
    assert_eq!(
        ann.receive(),
        format!("JR:{}:{}:short", key_of(&ann), key_of(&ann))
    );
}

#[test]
fn unknown_ids_are_bad_keys() {
    let (_server, game) = start(&[]);
    let bob = game();
    for id in [
        "cyahcyahcyahcyah",
        "x",
        "",
        "muchlongerthananyidcouldeverbe",
    ] {
        assert_eq!(bob.ask(format!("JS:lan:{id}")), format!("BK:{id}"));
    }
}

#[test]
fn closing_is_for_the_host() {
    let (_server, game) = start(&[]);
    let (ann, bob) = (game(), game());
    let id = host(&ann, "lan");
    bob.send(format!("CS:{id}"));
    let joined = format!("JR:{}:{}:lan", key_of(&bob), key_of(&ann));
    assert_eq!(bob.ask(format!("JS::{id}")), joined);
    assert_eq!(ann.receive(), format!("NJ:{}:", key_of(&bob)));
    // No answer, nor to a keepalive: what comes next is the answer to the next request.
    ann.send(format!("KA:{id}"));
    ann.send(format!("CS:{id}"));
    let closed = format!("BK:{id}");
    assert_eq!(ann.ask(format!("JS::{id}")), closed);
    assert_eq!(bob.ask(format!("JS::{id}")), closed);
}

#[test]
fn odd_datagrams() {
    let (_server, game) = start(&[]);
    let ann = game();
    let answer = ann.ask("HS");
    let id = answer
        .strip_prefix(&format!("HR:{}:", key_of(&ann)))
        .unwrap();
    let bob = game();
    let joined = format!("JR:{}:{}:", key_of(&bob), key_of(&ann));
    assert_eq!(bob.ask(format!("JS::{id}")), joined, "an empty LAN key");
    let join = format!("JS::{id}");
    for silent in [
        &b""[..],
        b"J",
        b"JS:lan-but-no-id",
        b"js::x",
        b"XX:abc",
        b"RD:Ann",
        b"\xff\xfe:",
    ] {
        bob.is_silent(silent, &join, &joined);
    }
    // The third byte is not looked at, and anything may be a LAN key.
    assert_eq!(bob.ask(format!("JS\0\u{1}odd:{id}:more")), joined);
}

#[test]
fn strangers_are_paired_once() {
    let (_server, game) = start(&[]);
    let (ann, bob, cid) = (game(), game(), game());
    let waiting = ann.ask("RS:lanann");
    let id = waiting
        .strip_prefix(&format!("HR:{}:", key_of(&ann)))
        .unwrap()
        .to_owned();
    assert_eq!(ann.ask("RS:lanann"), waiting, "a repetition is answered");
    assert_eq!(
        cid.ask(format!("JS::{id}")),
        format!("BK:{id}"),
        "it waits for a stranger"
    );
    let joined = format!("JR:{}:{}:lanann", key_of(&bob), key_of(&ann));
    let news = format!("NJ:{}:lanbob", key_of(&bob));
    assert_eq!(bob.ask("RS:lanbob"), joined);
    assert_eq!(ann.receive(), news);
    // Either repeats: both hear again.
    assert_eq!(bob.ask("RS:lanbob"), joined);
    assert_eq!(ann.receive(), news);
    assert_eq!(ann.ask("RS:lanann"), news);
    assert_eq!(bob.receive(), joined);
    // The joiner may use the id now, others may not.
    assert_eq!(bob.ask(format!("JS:lanbob:{id}")), joined);
    assert_eq!(ann.receive(), news);
    assert_eq!(cid.ask(format!("JS:lancid:{id}")), format!("BK:{id}"));
    // The next one waits again.
    let other = cid.ask("RS:lancid");
    assert!(
        other.starts_with(&format!("HR:{}:", key_of(&cid))),
        "{other}"
    );
    // Hosting by name clears the marker.
    assert_eq!(ann.ask("HS:lanann"), waiting);
    let dan = game();
    assert_eq!(
        dan.ask(format!("JS::{id}")),
        format!("JR:{}:{}:lanann", key_of(&dan), key_of(&ann))
    );
}

#[test]
fn a_waiting_host_that_closes_is_not_matched() {
    let (_server, game) = start(&[]);
    let (ann, bob) = (game(), game());
    let answer = ann.ask("RS:lan");
    let id = answer.rsplit(':').next().unwrap();
    ann.send(format!("CS:{id}"));
    assert!(bob.ask("RS:lan").starts_with("HR:"));
    assert_eq!(
        ann.ask("RS:lan"),
        format!("JR:{}:{}:lan", key_of(&ann), key_of(&bob))
    );
}

#[test]
fn each_listener_names_its_public_address() {
    let second = ["--simple-listen", "127.0.0.1:0"];
    let public = [
        "--simple-public",
        "203.0.113.5:7777",
        "--simple-public",
        "203.0.113.6:0",
    ];
    let (server, _) = start(&[&second[..], &public].concat());
    let at = server.dialect_addrs(Dialect::Simple);
    let second_public = SocketAddr::new("203.0.113.6".parse().unwrap(), at[1].port());
    let publics = [key("203.0.113.5:7777".parse().unwrap()), key(second_public)];
    let hosts = [Game::new(at[0]), Game::new(at[1])];
    for (ann, public) in hosts.iter().zip(publics) {
        let id = host(ann, "lan");
        assert_eq!(id[..12], public);
        // Either listener knows it.
        for at in &at {
            let bob = Game::new(*at);
            assert!(bob.ask(format!("JS::{id}")).starts_with("JR:"));
        }
    }
}

#[test]
fn a_wildcard_needs_a_public_address() {
    let refused = Server::start_with(&["--simple-listen", "0.0.0.0:0"]);
    assert!(
        refused
            .err()
            .unwrap()
            .to_string()
            .contains("--simple-public")
    );
    let refused = Server::start_with(&["--simple-public", "203.0.113.5:1"]);
    assert!(refused.is_err());
    let refused = Server::start_with(&["--simple-listen", "[::1]:0"]);
    assert!(refused.err().unwrap().to_string().contains("IPv4"));
}

#[test]
fn a_session_ends_unless_its_host_is_heard() {
    let listen = ["--simple-listen", "127.0.0.1:0", "--shards", "2"];
    let server = Server::start_adjusted(&listen, |config| {
        config.dialect_times.simple_session_ms = 2_000;
    });
    let server = server.unwrap();
    let at = server.dialect_addrs(Dialect::Simple)[0];
    let [ann, bob, cid, dan] = std::array::from_fn(|_| Game::new(at));
    let (id, silent_id, strangers_id) = (host(&ann, "lan"), host(&bob, "lan"), host(&dan, "lan"));
    // Each request stands behind the keepalives in the same queue.
    while cid.ask(format!("JS::{silent_id}")).starts_with("JR:") {
        ann.send(format!("KA:{id}"));
        cid.send(format!("KA:{strangers_id}"));
    }
    ann.send(format!("KA:{id}"));
    let joined = format!("JR:{}:{}:lan", key_of(&cid), key_of(&ann));
    assert_eq!(cid.ask(format!("JS::{id}")), joined);
    // Others than the host do not extend it, so it ends like the silent one's, which was there before.
    while cid.ask(format!("JS::{strangers_id}")).starts_with("JR:") {
        cid.send(format!("KA:{strangers_id}"));
        ann.send(format!("KA:{id}"));
    }
}
