//! Rabid Hole Punch, spoken from outside a running server.

#![allow(clippy::unwrap_used)]

mod wire;

use waypost_proto::dialect::Dialect;
use waypost_server::serve::Server;
use wire::Game;

fn start(options: &[&str]) -> (Server, impl Fn() -> Game) {
    let listen = ["--rabid-listen", "127.0.0.1:0", "--shards", "2"];
    let server = Server::start_with(&[&listen[..], options].concat()).unwrap();
    let at = server.dialect_addrs(Dialect::Rabid)[0];
    (server, move || Game::new(at))
}

/// A host and a second player in a session for `max`.
fn pair(game: &impl Fn() -> Game, max: u8) -> (Game, Game) {
    let (ann, bob) = (game(), game());
    assert_eq!(ann.ask(format!("h:Room:Ann:{max}")), "i:Ann");
    assert_eq!(bob.ask("c:Room:Bob"), "i:Ann:Bob");
    assert_eq!(ann.receive(), "i:Ann:Bob");
    (ann, bob)
}

fn start_message(own: &Game, others: &[(&str, &Game)]) -> String {
    let others: Vec<String> = others
        .iter()
        .map(|(name, game)| format!("{name}:{}", game.addr()))
        .collect();
    format!("s:{}:{}", own.addr().port(), others.join(";"))
}

#[test]
fn what_is_not_a_request_is_an_error_or_nothing() {
    let (_server, game) = start(&[]);
    let ann = game();
    assert_eq!(ann.ask("h:Room:Ann:2"), "i:Ann");
    for bad in [
        "no colon here",
        "h:Room:Ann:1",
        "h:Room:Ann:13",
        "h:Room:Ann:02",
        "h:NameTooLong:Ann:2",
        "h:Room:Ann:2:",
        "c:Room:Ann:pw:more",
        "p:Room:Name-bad",
    ] {
        assert_eq!(ann.ask(bad), "error:invalid_request", "{bad}");
    }
    for silent in [
        &b"z:Room:Ann"[..],
        b"hello:world:again",
        b"p:Room:\xff\xfe\xfd",
        // Their error would be more than three times as long.
        b"abc",
        b"",
        b"h:a:b",
    ] {
        ann.is_silent(silent, "p:Room:Ann", "i:Ann");
    }
    // A line feed at the end belongs to no field.
    assert_eq!(ann.ask("p:Room:Ann\n"), "i:Ann");
}

#[test]
fn hosting_is_idempotent_by_address() {
    let (_server, game) = start(&[]);
    let (ann, bob) = (game(), game());
    assert_eq!(ann.ask("h:Room:Ann:4"), "i:Ann");
    assert_eq!(
        ann.ask("h:Room:Other:9:pw"),
        "i:Ann",
        "other fields are ignored"
    );
    assert_eq!(bob.ask("h:Room:Ann:4"), "error:session_exists");
    assert_eq!(ann.ask("h:Second:Ann:4"), "i:Ann", "any number of sessions");
}

#[test]
fn joining_checks_in_order() {
    let (_server, game) = start(&[]);
    let (ann, bob, cid) = (game(), game(), game());
    assert_eq!(bob.ask("c:Room:Bob"), "error:session_non_existent");
    assert_eq!(ann.ask("h:Room:Ann:2:pw"), "i:Ann");
    assert_eq!(bob.ask("c:Room:Ann"), "error:password_mismatch");
    assert_eq!(bob.ask("c:Room:Ann:no"), "error:password_mismatch");
    assert_eq!(bob.ask("c:Room:Ann:pw"), "error:player_name_in_use");
    assert_eq!(bob.ask("c:Room:Bob:pw"), "i:Ann:Bob");
    assert_eq!(ann.receive(), "i:Ann:Bob", "everybody hears of it");
    assert_eq!(
        cid.ask("c:Room:Bob:pw"),
        "error:session_full",
        "before the name"
    );
    assert_eq!(
        cid.ask("c:Room:Cid:no"),
        "error:password_mismatch",
        "before that"
    );
    // A member that lost its list hears it again, although the session is full, and only it does.
    assert_eq!(bob.ask("c:Room:Bob:pw"), "i:Ann:Bob");
    ann.is_silent("z:", "p:Room:Ann", "i:Ann:Bob");
    // An open session takes any password.
    assert_eq!(ann.ask("h:Open:Ann:2"), "i:Ann");
    assert_eq!(bob.ask("c:Open:Bob:any"), "i:Ann:Bob");
}

#[test]
fn pings_count_from_the_players_address_only() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    let cid = game();
    assert_eq!(ann.ask("p:Room:Ann"), "i:Ann:Bob");
    assert_eq!(bob.ask("p:Room:Bob"), "i:Ann:Bob");
    assert_eq!(bob.ask("p:Room:Zoe"), "error:non_existent_player");
    assert_eq!(bob.ask("p:Nowhere:Bob"), "error:session_non_existent");
    assert_eq!(cid.ask("p:Room:Bob"), "error:non_existent_player");
}

#[test]
fn kicking_is_the_hosts() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    let cid = game();
    assert_eq!(cid.ask("c:Room:Cid"), "i:Ann:Bob:Cid");
    assert_eq!(
        (ann.receive(), bob.receive()),
        ("i:Ann:Bob:Cid".into(), "i:Ann:Bob:Cid".into())
    );
    assert_eq!(bob.ask("k:Nowhere:Ann"), "error:session_non_existent");
    assert_eq!(bob.ask("k:Room:Zoe"), "error:non_existent_player");
    assert_eq!(bob.ask("k:Room:Cid"), "error:non_host_player");
    ann.send("k:Room:Bob");
    assert_eq!(bob.receive(), "error:kicked_by_host");
    assert_eq!(
        (ann.receive(), cid.receive()),
        ("i:Ann:Cid".into(), "i:Ann:Cid".into())
    );
    assert_eq!(
        bob.ask("c:Room:Bob"),
        "i:Ann:Cid:Bob",
        "who was kicked may come back"
    );
    assert_eq!(
        (ann.receive(), cid.receive()),
        ("i:Ann:Cid:Bob".into(), "i:Ann:Cid:Bob".into())
    );
    // The host kicks itself; the next is host.
    assert_eq!(ann.ask("k:Room:Ann"), "error:kicked_by_host");
    assert_eq!(
        (bob.receive(), cid.receive()),
        ("i:Cid:Bob".into(), "i:Cid:Bob".into())
    );
    assert_eq!(cid.ask("k:Room:Bob"), "i:Cid");
    assert_eq!(bob.receive(), "error:kicked_by_host");
    assert_eq!(cid.ask("k:Room:Cid"), "error:kicked_by_host");
    assert_eq!(
        cid.ask("p:Room:Cid"),
        "error:session_non_existent",
        "the last one is out"
    );
}

#[test]
fn leaving_is_told_to_who_leaves() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    assert_eq!(bob.ask("x:Nowhere:Bob"), "error:session_non_existent");
    assert_eq!(bob.ask("x:Room:Zoe"), "error:non_existent_player");
    assert_eq!(
        bob.ask("x:Room:Ann"),
        "error:non_existent_player",
        "not for others"
    );
    assert_eq!(ann.ask("x:Room:Ann"), "error:player_exited_session");
    assert_eq!(bob.ask("p:Room:Bob"), "i:Bob");
    assert_eq!(
        bob.ask("s:Room:Whoever"),
        "error:only_one_player_in_session",
        "he is host now"
    );
}

#[test]
fn starting_tells_everybody_eight_times() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    let cid = game();
    assert_eq!(cid.ask("c:Room:Cid"), "i:Ann:Bob:Cid");
    assert_eq!(
        (ann.receive(), bob.receive()),
        ("i:Ann:Bob:Cid".into(), "i:Ann:Bob:Cid".into())
    );
    assert_eq!(ann.ask("s:Nowhere:Ann"), "error:session_non_existent");
    assert_eq!(bob.ask("s:Room:Ann"), "error:non_host_player");
    assert_eq!(bob.ask("y:Room:Bob"), "error:session_not_started");
    ann.send("s:Room:Whoever");
    let to_ann = start_message(&ann, &[("Bob", &bob), ("Cid", &cid)]);
    let to_bob = start_message(&bob, &[("Ann", &ann), ("Cid", &cid)]);
    let to_cid = start_message(&cid, &[("Ann", &ann), ("Bob", &bob)]);
    // Cid confirms: he hears no more, but stays in the lists.
    assert_eq!(cid.receive(), to_cid);
    cid.send("y:Room:Cid");
    for _ in 0..8 {
        assert_eq!(
            (ann.receive(), bob.receive()),
            (to_ann.clone(), to_bob.clone())
        );
    }
    let late: Vec<String> = {
        // The session is gone when its name is free; whoever asks meanwhile hears otherwise.
        let mut heard = Vec::new();
        loop {
            match ann.ask("p:Room:Ann").as_str() {
                "error:session_non_existent" => break heard,
                other => heard.push(other.to_owned()),
            }
        }
    };
    assert!(late.iter().all(|text| *text == to_ann), "{late:?}");
    assert_eq!(ann.ask("y:Room:Ann"), "error:session_not_started");
    assert_eq!(ann.ask("s:Room:Ann"), "error:session_non_existent");
    let dana = game();
    assert_eq!(dana.ask("h:Room:Dana:2"), "i:Dana");
    let mut heard = 0;
    loop {
        match cid.ask("p:Room:Cid").as_str() {
            "error:non_existent_player" => break,
            text => {
                assert_eq!(text, to_cid);
                heard += 1;
            }
        }
    }
    assert!(heard < 7, "no more after the confirmation");
}

#[test]
fn a_session_that_starts_is_closed_to_others() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    let cid = game();
    ann.send("s:Room:Ann");
    let to_bob = start_message(&bob, &[("Ann", &ann)]);
    assert_eq!(bob.receive(), to_bob);
    assert_eq!(cid.ask("h:Room:Cid:2"), "error:session_exists");
    assert_eq!(cid.ask("c:Room:Cid"), "error:session_non_existent");
    assert_eq!(cid.ask("p:Room:Bob"), "error:session_non_existent");
    assert_eq!(cid.ask("y:Room:Zoe"), "error:non_existent_player");
    assert_eq!(
        cid.ask("y:Room:Bob"),
        "error:non_existent_player",
        "not for others"
    );
    // A ping is answered with the addresses, beside the repetitions.
    for _ in 0..20 {
        bob.send("p:Room:Bob");
    }
    for _ in 0..20 {
        assert_eq!(bob.receive(), to_bob);
    }
}

#[test]
fn a_silent_player_is_removed_and_told_three_times() {
    let (_server, game) = start(&[]);
    let (ann, bob) = pair(&game, 3);
    // Ann goes on, Bob is silent.
    bob.socket.set_nonblocking(true).unwrap();
    let mut heard = Vec::new();
    let mut buffer = [0; 100];
    ann.socket
        .set_read_timeout(Some(std::time::Duration::from_millis(200)))
        .unwrap();
    while heard.len() < 3 {
        ann.send("p:Room:Ann");
        let _ = ann.socket.recv(&mut buffer);
        while let Ok(len) = bob.socket.recv(&mut buffer) {
            heard.push(String::from_utf8_lossy(&buffer[..len]).into_owned());
        }
    }
    assert_eq!(heard, ["error:player_timeout"; 3]);
    let mut text = ann.ask("p:Room:Ann");
    while text == "i:Ann:Bob" {
        text = ann.receive();
    }
    assert_eq!(text, "i:Ann");
}

#[test]
fn an_old_session_ends_and_everybody_is_told_three_times() {
    let listen = ["--rabid-listen", "127.0.0.1:0", "--shards", "2"];
    let server = Server::start_adjusted(&listen, |config| {
        config.dialect_times.rabid_session_ms = 2_000;
        config.dialect_times.rabid_sweep_ms = 500;
    });
    let server = server.unwrap();
    let at = server.dialect_addrs(Dialect::Rabid)[0];
    let (ann, bob) = pair(&move || Game::new(at), 3);
    for game in [&ann, &bob] {
        for _ in 0..3 {
            assert_eq!(game.receive(), "error:session_timeout");
        }
    }
    assert_eq!(ann.ask("p:Room:Ann"), "error:session_non_existent");
}
