//! The invisible relay of a running server, on either backend: what one player sends to the address that it was shown comes to the
//! other from the address that that one was shown.

#![allow(clippy::unwrap_used)]

mod wire;

use std::net::SocketAddr;

use waypost_proto::addr::Addr;
use waypost_proto::dialect::Dialect;
use waypost_proto::wire::simple;
use waypost_server::serve::Server;
use wire::Game;

const BACKENDS: [&str; 2] = ["uring", "mmsg"];

fn start(io: &str, dialect: Dialect, relay: &[&str]) -> (Server, impl Fn() -> Game) {
    let listen = format!("--{}-listen", dialect.name());
    let options = ["--io", io, "--shards", "2", &listen, "127.0.0.1:0"];
    let server = Server::start_with(&[&options[..], relay].concat()).unwrap();
    let at = server.dialect_addrs(dialect)[0];
    (server, move || Game::new(at))
}

/// Both players send from sockets that the server has not seen, as behind symmetric NATs.
fn check(server: SocketAddr, of_bob: SocketAddr, of_ann: SocketAddr) {
    let (ann, bob) = (Game::new(of_bob), Game::new(of_ann));
    let large = vec![7; 1400];
    // The first packet opens the way; who has no peer yet is not heard.
    ann.send("lost");
    bob.send("first");
    assert_eq!(ann.receive_from(), (b"first".to_vec(), of_bob));
    ann.send(&large);
    assert_eq!(bob.receive_from(), (large, of_ann));
    bob.send("");
    assert_eq!(ann.receive_from(), (Vec::new(), of_bob));
    // A stranger is not heard, on either port.
    for shown in [of_bob, of_ann] {
        Game::new(shown).send("strange");
    }
    bob.send("last");
    assert_eq!(ann.receive_from(), (b"last".to_vec(), of_bob));
    assert!(of_bob != of_ann && of_bob.ip() == server.ip());
}

/// A pair of Rabid Hole Punch; what each is shown of the other.
fn rabid(game: &impl Fn() -> Game, session: &str) -> (Game, SocketAddr, Game, SocketAddr) {
    let (ann, bob) = (game(), game());
    assert_eq!(ann.ask(format!("h:{session}:Ann:2")), "i:Ann");
    assert_eq!(bob.ask(format!("c:{session}:Bob")), "i:Ann:Bob");
    assert_eq!(ann.receive(), "i:Ann:Bob");
    ann.send(format!("s:{session}:Ann"));
    let shown = |game: &Game, name: &str| {
        let text = game.receive();
        let begins = format!("s:{}:{name}:", game.addr().port());
        text.strip_prefix(&begins).expect(&text).parse().unwrap()
    };
    let (of_bob, of_ann) = (shown(&ann, "Bob"), shown(&bob, "Ann"));
    (ann, of_bob, bob, of_ann)
}

#[test]
fn rabid_players_are_relayed() {
    for io in BACKENDS {
        let (server, game) = start(io, Dialect::Rabid, &["--dialect-relay", "force"]);
        let (ann, of_bob, bob, of_ann) = rabid(&game, "Room");
        assert!(of_bob.port().abs_diff(of_ann.port()) > 17);
        // All repetitions say the same.
        for _ in 0..7 {
            assert!(ann.receive().ends_with(&of_bob.to_string()));
            assert!(bob.receive().ends_with(&of_ann.to_string()));
        }
        check(server.main_addr(), of_bob, of_ann);
    }
}

#[test]
fn simple_players_are_relayed() {
    for io in BACKENDS {
        let (server, game) = start(io, Dialect::Simple, &["--dialect-relay", "force"]);
        let (ann, bob) = (game(), game());
        let answer = ann.ask("HS:lan");
        let id = answer.rsplit(':').next().unwrap();
        let join = format!("JS::{id}");
        let joined = bob.ask(&join);
        let news = ann.receive();
        let addr = |text: &str, field: usize| {
            let key = text.split(':').nth(field).unwrap();
            simple::addr(key.as_bytes())
                .map(Addr::to_socket_addr)
                .unwrap()
        };
        assert_eq!(addr(&joined, 1), bob.addr());
        check(server.main_addr(), addr(&news, 1), addr(&joined, 2));
        assert_eq!(bob.ask(&join), joined, "a repetition says the same");
        assert_eq!(ann.receive(), news);
    }
}

#[test]
fn networks_are_relayed_and_others_are_not() {
    for (network, is_relayed) in [("127.0.0.0/8", true), ("198.51.100.0/24", false)] {
        let relay = ["--dialect-relay", "on", "--dialect-relay-net", network];
        let (server, game) = start("auto", Dialect::Rabid, &relay);
        let (ann, of_bob, bob, of_ann) = rabid(&game, "Room");
        if is_relayed {
            check(server.main_addr(), of_bob, of_ann);
        } else {
            assert_eq!((of_bob, of_ann), (bob.addr(), ann.addr()));
        }
    }
}

#[test]
fn a_network_without_a_relay_is_a_mistake() {
    let refused = Server::start_with(&["--dialect-relay-net", "127.0.0.0/8"]);
    assert!(
        refused
            .err()
            .unwrap()
            .to_string()
            .contains("--dialect-relay on")
    );
}
