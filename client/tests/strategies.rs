//! The ways to reach a member, against the real server, in one process, on ports of 127.0.0.1 that the kernel chose.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use waypost_client::{
    ConnectedStream, Error, HostConfig, JoinConfig, Link, Path, Player, Progress, Reason, Session,
    Strategies, Strategy, TurnServer, TurnTransport, nat_report,
};
use waypost_server::serve::Server;

const GAME: &str = "strategies";
/// Longer than anything here takes on the busiest machine: running into it is a failure.
const LONG: Duration = Duration::from_secs(30);

/// Host and guest, the sessions first and then their links.
fn pair(at: SocketAddr, host: Player, guest: Player) -> ([Session; 2], [Link; 2]) {
    let mut hosting = HostConfig::new(GAME);
    hosting.player = host;
    let mut joining = JoinConfig::new(GAME);
    joining.player = guest;
    let host = Session::host(at, hosting).unwrap();
    let code = host.code().unwrap().to_string();
    let guest = Session::join(at, &code, joining).unwrap();
    let links = [&host, &guest].map(|session| {
        let link = session
            .link(session.wait_member(Some(LONG)).unwrap())
            .unwrap();
        link.set_read_timeout(Some(LONG)).unwrap();
        link
    });
    ([host, guest], links)
}

fn player(strategies: Strategies) -> Player {
    Player {
        strategies,
        ..Player::new(GAME)
    }
}

fn progress(link: &Link, strategy: Strategy) -> Progress {
    let report = link.report();
    let attempt = report.iter().find(|entry| entry.strategy == strategy);
    attempt.unwrap().progress
}

fn connect_both(links: &[Link; 2]) -> [Result<ConnectedStream, Error>; 2] {
    thread::scope(|scope| {
        let threads =
            [&links[0], &links[1]].map(|link| scope.spawn(move || link.connect_stream(LONG)));
        threads.map(|thread| thread.join().unwrap())
    })
}

#[test]
fn a_stream_carries_what_is_said_right_after_it_is_there() {
    let server = Server::start_with(&[]).unwrap();
    let all = player(Strategies::ALL);
    let (_sessions, links) = pair(server.main_addr(), all.clone(), all);
    assert_eq!(
        progress(&links[0], Strategy::TcpPunch),
        Progress::NotTried(Reason::NotAsked)
    );
    let mut streams = connect_both(&links).map(Result::unwrap);
    for (from, to) in [(0, 1), (1, 0)] {
        streams[from].stream.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        streams[to].stream.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
    // Again, for the first wishes are fulfilled.
    let again = connect_both(&links);
    assert!(again.iter().all(Result::is_ok), "{again:?}");
}

#[test]
fn nobody_connects_streams_to_who_hides_and_one_alone_waits_in_vain() {
    let server = Server::start_with(&[]).unwrap();
    let hidden = player(Strategies::only(Strategy::Relay));
    let (_sessions, links) = pair(server.main_addr(), hidden, player(Strategies::ALL));
    assert!(matches!(
        links[0].connect_stream(LONG),
        Err(Error::Refused(_))
    ));
    let alone = links[1].connect_stream(Duration::from_millis(300));
    assert!(matches!(alone, Err(Error::NoStream(Reason::NotAsked))));
    assert!(matches!(
        progress(&links[1], Strategy::Relay),
        Progress::Connected { .. }
    ));
    for strategy in [Strategy::Direct, Strategy::Reverse, Strategy::UdpPunch] {
        for link in &links {
            assert_eq!(progress(link, strategy), Progress::NotTried(Reason::Hidden));
        }
    }
}

#[test]
fn each_way_says_what_became_of_it() {
    let server = Server::start_with(&[]).unwrap();
    let punching = player(Strategies::only(Strategy::UdpPunch));
    let (_sessions, links) = pair(server.main_addr(), punching.clone(), punching);
    assert!(links.iter().all(|link| link.wait_direct(LONG)));
    for link in &links {
        assert!(matches!(
            progress(link, Strategy::UdpPunch),
            Progress::Connected { .. }
        ));
        for other in [Strategy::Direct, Strategy::Relay] {
            assert_eq!(progress(link, other), Progress::NotTried(Reason::NotChosen));
        }
    }
}

fn turn(at: SocketAddr, transport: TurnTransport, password: &str) -> TurnServer {
    TurnServer {
        address: at,
        transport,
        username: "ann".to_owned(),
        password: password.to_owned(),
    }
}

/// A session of which one goes through this TURN server, and talks.
fn talk_through(turn: TurnServer) {
    let server = Server::start_with(&[]).unwrap();
    let through = Player {
        turn: Some(turn),
        ..Player::new(GAME)
    };
    let (sessions, links) = pair(server.main_addr(), through, Player::new(GAME));
    // The other is shown the relayed address.
    let seen = sessions[0].mapped_addr().unwrap().unwrap();
    assert_ne!(seen.port(), sessions[0].local_addr().unwrap().port());
    let mut buf = [0; 1500];
    for round in 0..2 {
        for (from, to) in [(0, 1), (1, 0)] {
            let data = vec![7; links[from].max_datagram()];
            links[from].send(&data).unwrap();
            let len = links[to].recv(&mut buf).unwrap();
            assert_eq!(buf[..len], data);
        }
        if round == 0 {
            assert!(links.iter().all(|link| link.wait_direct(LONG)));
        }
    }
    assert_eq!(links[0].path(), Path::Direct);
}

#[test]
fn a_session_goes_through_a_turn_server_over_udp_and_tcp() {
    let relay =
        Server::start_with(&["--user", "ann:sesame", "--allow-peer", "127.0.0.0/8"]).unwrap();
    for transport in [TurnTransport::Udp, TurnTransport::Tcp] {
        talk_through(turn(relay.main_addr(), transport, "sesame"));
    }
}

#[test]
fn an_address_on_a_turn_server_is_a_way_of_its_own() {
    let relay =
        Server::start_with(&["--user", "ann:sesame", "--allow-peer", "127.0.0.0/8"]).unwrap();
    let server = Server::start_with(&[]).unwrap();
    for transport in [TurnTransport::Udp, TurnTransport::Tcp] {
        let alone = player(Strategies::only(Strategy::Turn));
        let offers = Player {
            turn_candidate: Some(turn(relay.main_addr(), transport, "sesame")),
            ..alone.clone()
        };
        let (_sessions, links) = pair(server.main_addr(), offers, alone);
        for link in &links {
            assert!(link.wait_direct(LONG), "{:?}", link.report());
        }
        let mut buf = [0; 1500];
        for (from, to) in [(0, 1), (1, 0)] {
            let data = vec![7; links[from].max_datagram()];
            links[from].send(&data).unwrap();
            let len = links[to].recv(&mut buf).unwrap();
            assert_eq!(buf[..len], data);
        }
        for link in &links {
            let is_connected = matches!(progress(link, Strategy::Turn), Progress::Connected { .. });
            assert!(is_connected, "{:?}", link.report());
            for other in [Strategy::Relay, Strategy::UdpPunch] {
                assert_eq!(progress(link, other), Progress::NotTried(Reason::NotChosen));
            }
        }
    }
}

#[test]
fn a_turn_server_that_is_away_leaves_the_other_ways() {
    let server = Server::start_with(&[]).unwrap();
    // Nobody listens on a port that was given back.
    let away = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = away.local_addr().unwrap();
    let offers = Player {
        turn_candidate: Some(turn(away, TurnTransport::Tcp, "sesame")),
        ..Player::new(GAME)
    };
    let (_sessions, links) = pair(server.main_addr(), offers, Player::new(GAME));
    assert!(links.iter().all(|link| link.wait_direct(LONG)));
    assert_eq!(
        progress(&links[0], Strategy::Turn),
        Progress::NotTried(Reason::NoAddress)
    );
}

#[test]
fn a_turn_server_that_refuses_is_an_error_that_says_so() {
    let relay = Server::start_with(&["--user", "ann:sesame"]).unwrap();
    let wrong = Some(turn(relay.main_addr(), TurnTransport::Tcp, "wrong"));
    let (mut all, mut beside) = (HostConfig::new(GAME), HostConfig::new(GAME));
    all.player.turn.clone_from(&wrong);
    beside.player.turn_candidate = wrong;
    for config in [all, beside] {
        let Err(error) = Session::host(relay.main_addr(), config) else {
            panic!("it was allowed");
        };
        assert!(error.to_string().contains("password"), "{error}");
    }
}

#[cfg(feature = "tls")]
mod tls {
    use super::*;
    use waypost_client::ServerIdentity;

    /// A TURN server with a self-signed certificate of this name, where it listens, and the certificate.
    fn relay(name: &str) -> (Server, SocketAddr, String) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        let file = |what: &str| {
            let unique = format!("waypost-turn-tls-{}-{name}-{what}", std::process::id());
            std::env::temp_dir().join(unique)
        };
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        std::fs::write(&cert, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let server = Server::start_with(&[
            "--user",
            "ann:sesame",
            "--allow-peer",
            "127.0.0.0/8",
            "--tls-listen",
            "127.0.0.1:0",
            "--tls-cert",
            cert.to_str().unwrap(),
            "--tls-key",
            key.to_str().unwrap(),
        ])
        .unwrap();
        for file in [cert, key] {
            std::fs::remove_file(file).unwrap();
        }
        let at = server.tls_addrs()[0];
        (server, at, made.cert.pem())
    }

    fn by_tls(at: SocketAddr, name: &str, roots: &str) -> TurnServer {
        let identity = ServerIdentity {
            name: name.to_owned(),
            roots_pem: roots.as_bytes().to_vec(),
        };
        turn(at, TurnTransport::Tls(identity), "sesame")
    }

    #[test]
    fn a_session_goes_through_a_turn_server_over_tls() {
        let (_relay, at, cert) = relay("localhost");
        talk_through(by_tls(at, "localhost", &cert));
    }

    #[test]
    fn who_cannot_prove_to_be_the_turn_server_is_told_nothing() {
        let (_relay, at, cert) = relay("turn.example");
        let (_other, _, of_another) = relay("another.example");
        for (name, roots, says) in [
            ("localhost", &*cert, "invalid peer certificate"),
            ("turn.example", &*of_another, "invalid peer certificate"),
            ("turn.example", "", "no root"),
            ("turn.example", "-----BEGIN CERTIFICATE-----", "no PEM"),
            ("not a name", &*cert, "no host name"),
        ] {
            let mut config = HostConfig::new(GAME);
            config.player.turn = Some(by_tls(at, name, roots));
            let Err(error) = Session::host(at, config) else {
                panic!("{name} with {roots} was trusted");
            };
            assert!(error.to_string().contains(says), "{error}");
        }
    }
}

#[test]
fn a_server_with_one_address_tells_a_part() {
    let server = Server::start_with(&[]).unwrap();
    let report = nat_report(server.main_addr()).unwrap();
    assert!(report.is_public() && report.preserves_port && report.hairpins);
    assert_eq!(
        (report.mapping, report.filtering, report.step),
        (None, None, None)
    );
}
