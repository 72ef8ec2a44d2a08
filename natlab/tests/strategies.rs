//! Each strategy alone connects a pair of players that none of the other ways without the server does.

use waypost_natlab::{Lab, Meeting, Nat, Programs, can_run, meet_as};

fn programs() -> Programs {
    Programs {
        server: env!("CARGO_BIN_EXE_natlab-server").into(),
        player: env!("CARGO_BIN_EXE_natlab-player").into(),
    }
}

/// What one player is told beside its strategies.
type Options = &'static [&'static str];

const FORWARDED: Options = &["--local-port", "7777", "--reachable-port", "7777"];
const STREAM: Options = &["--stream", "yes"];

/// Of the session's server and of the TURN server.
const NO_SERVER_OPTIONS: [&[&str]; 2] = [&[], &[]];

/// Whether laboratories can be made; says so where they cannot.
fn has_lab() -> bool {
    if let Err(why) = can_run() {
        assert!(
            std::env::var_os("WAYPOST_NATLAB_REQUIRED").is_none(),
            "this test must not be skipped here: {why}"
        );
        eprintln!("SKIPPED: {why}");
        return false;
    }
    true
}

/// Lets two players meet with only these strategies; `None` where laboratories cannot be made.
fn meet(nats: (Nat, Nat), strategies: [&str; 2], options: [&[Options]; 2]) -> Option<[Meeting; 2]> {
    assert_eq!(Lab::FORWARDED_PORT, 7777);
    if !has_lab() {
        return None;
    }
    let all: Vec<Vec<&str>> = strategies
        .iter()
        .zip(options)
        .map(|(strategies, options)| {
            let own = options.iter().flat_map(|options| options.iter().copied());
            ["--strategies", strategies, "--settle-ms", "7000"]
                .into_iter()
                .chain(own)
                .collect()
        })
        .collect();
    let meetings = meet_as(&programs(), nats, NO_SERVER_OPTIONS, [&all[0], &all[1]]);
    Some(meetings.unwrap_or_else(|error| panic!("{nats:?} by {strategies:?}: {error}")))
}

fn is_direct(meetings: &[Meeting; 2]) -> bool {
    for meeting in meetings {
        let flaws = (meeting.lost, meeting.duplicated, meeting.corrupted);
        assert!(
            meeting.path != "direct" || flaws == (0, 0, 0),
            "{meetings:?}"
        );
    }
    meetings.iter().all(|meeting| meeting.path == "direct")
}

fn worked(meeting: &Meeting, strategy: &str) -> bool {
    meeting.strategies[strategy].starts_with("connected")
}

/// The ways that lead nowhere for these two, each tried alone: datagrams first, then a stream.
fn assert_closed(nats: (Nat, Nat), options: [&[Options]; 2], datagrams: &[[&str; 2]], punch: bool) {
    for strategies in datagrams {
        let Some(meetings) = meet(nats, *strategies, options) else {
            return;
        };
        let closed = meetings.iter().all(|meeting| meeting.path == "unreachable");
        assert!(closed, "{nats:?} by {strategies:?}: {meetings:?}");
        if *strategies == ["udp-punch"; 2] {
            for meeting in &meetings {
                let said = &meeting.strategies["udp-punch"];
                let says = said.starts_with("failed after") && said.contains("use the relay");
                assert!(says, "{nats:?}: {said}");
            }
        }
    }
    if punch {
        let with_stream = options.map(|own| [own, &[STREAM]].concat());
        let with_stream = [&with_stream[0][..], &with_stream[1][..]];
        if let Some(meetings) = meet(nats, ["tcp-punch"; 2], with_stream) {
            let closed = meetings.iter().all(|meeting| meeting.stream.is_none());
            assert!(closed, "{nats:?} by tcp-punch: {meetings:?}");
        }
    }
}

#[test]
fn direct_reaches_a_forwarded_port_that_nobody_could_punch_to() {
    let nats = (Nat::Symmetric, Nat::Forwarded);
    let options: [&[Options]; 2] = [&[], &[FORWARDED]];
    let Some(meetings) = meet(nats, ["direct"; 2], options) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    assert!(worked(&meetings[0], "direct"), "{meetings:?}");
    // The other way round it would have to call somebody whom nobody can.
    let others = [["reverse", "direct"], ["udp-punch", "udp-punch"]];
    assert_closed(nats, options, &others, true);
}

#[test]
fn reverse_has_the_one_who_can_be_reached_called() {
    let nats = (Nat::Forwarded, Nat::SymmetricNoUdp);
    let options: [&[Options]; 2] = [&[FORWARDED, STREAM], &[STREAM]];
    let Some(meetings) = meet(nats, ["reverse", "direct"], options) else {
        return;
    };
    assert_eq!(
        meetings.each_ref().map(|meeting| meeting.stream.as_deref()),
        [Some("reverse"), Some("direct")],
        "{meetings:?}"
    );
    let options: [&[Options]; 2] = [&[FORWARDED], &[]];
    let others = [["udp-punch", "udp-punch"], ["direct", "reverse"]];
    assert_closed(nats, options, &others, true);
}

#[test]
fn udp_punching_connects_two_whose_firewalls_block_tcp() {
    let nats = (Nat::NoTcp, Nat::NoTcp);
    let Some(meetings) = meet(nats, ["udp-punch"; 2], [&[], &[]]) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    assert!(worked(&meetings[0], "udp-punch"), "{meetings:?}");
    let others = [["direct", "reverse"], ["reverse", "direct"]];
    assert_closed(nats, [&[], &[]], &others, true);
}

#[test]
fn tcp_punching_connects_two_whose_firewalls_block_udp() {
    let nats = (Nat::NoUdp, Nat::NoUdp);
    let Some(meetings) = meet(nats, ["tcp-punch"; 2], [&[STREAM], &[STREAM]]) else {
        return;
    };
    for meeting in &meetings {
        assert_eq!(meeting.stream.as_deref(), Some("tcp-punch"), "{meetings:?}");
    }
    let began = meetings.each_ref().map(|meeting| meeting.stream_began_us);
    if let [Some(a), Some(b)] = began {
        eprintln!("the two began {} us apart", a.abs_diff(b));
    }
    let others = [["udp-punch", "udp-punch"], ["direct", "reverse"]];
    assert_closed(nats, [&[], &[]], &others, false);
}

#[test]
fn guessing_finds_the_port_that_a_carrier_took_from_a_customers_block() {
    let nats = (Nat::PortBlock, Nat::PortRestricted);
    let guess: Options = &["--guess", "yes"];
    let Some(meetings) = meet(nats, ["udp-punch"; 2], [&[guess], &[guess]]) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    // Without guesses nothing goes to the port in question: it is never one that the server saw, nor one next to it.
    let others = [["udp-punch", "udp-punch"], ["direct", "reverse"]];
    assert_closed(nats, [&[], &[]], &others, true);
}

#[test]
fn the_relay_connects_two_for_whom_there_is_no_other_way() {
    let nats = (Nat::SymmetricNoUdp, Nat::SymmetricNoUdp);
    let Some(meetings) = meet(nats, ["relay"; 2], [&[], &[]]) else {
        return;
    };
    for meeting in &meetings {
        assert_eq!(meeting.path, "relayed", "{meetings:?}");
        assert!(
            meeting.sent > 0 && meeting.received == meeting.sent,
            "{meetings:?}"
        );
        for hidden in ["direct", "reverse", "udp-punch", "tcp-punch", "turn"] {
            assert!(meeting.strategies[hidden].starts_with("not tried"));
        }
    }
    let others = [["udp-punch", "udp-punch"], ["direct", "reverse"]];
    assert_closed(nats, [&[], &[]], &others, true);
}

#[test]
fn turn_over_tcp_connects_one_whose_network_has_no_udp() {
    let nats = (Nat::OnlyTcp, Nat::Symmetric);
    let turn: Options = &["--turn", "203.0.113.2:3478"];
    assert!(turn[1].starts_with(Lab::SECOND_SERVER_IP));
    // Not through the session's own relay: the TURN server's address is one that both can punch to.
    let Some(meetings) = meet(nats, ["udp-punch"; 2], [&[turn], &[]]) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    for meeting in &meetings {
        assert!(
            meeting.sent > 0 && meeting.received == meeting.sent,
            "{meetings:?}"
        );
    }
    // Whatever else is chosen, without TURN there is not even a seat.
    let all = ["--timeout-s", "5"];
    let without = meet_as(&programs(), nats, NO_SERVER_OPTIONS, [&all, &all]);
    assert!(without.is_err(), "{without:?}");
}

#[cfg(feature = "tls")]
mod tls {
    use super::*;
    use std::path::PathBuf;

    /// A file that goes with this.
    struct Pem(PathBuf);

    impl Pem {
        fn new(name: &str, text: &str) -> Self {
            let unique = format!("natlab-{}-{name}.pem", std::process::id());
            let path = std::env::temp_dir().join(unique);
            std::fs::write(&path, text).expect("a file in the directory for temporary ones");
            Self(path)
        }

        fn path(&self) -> &str {
            self.0.to_str().expect("a path in UTF-8")
        }
    }

    impl Drop for Pem {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn turn_over_tls_connects_one_whose_network_lets_out_https_only() {
        if !has_lab() {
            return;
        }
        let made = rcgen::generate_simple_self_signed(["turn.example".to_owned()]).expect("a pair");
        let cert = Pem::new("cert", &made.cert.pem());
        let key = Pem::new("key", &made.signing_key.serialize_pem());
        let at = format!("{}:{}", Lab::SECOND_SERVER_IP, Lab::HTTPS_PORT);
        let listen = ["--tls-listen", &at, "--tls-cert", cert.path()];
        let turn_server = [&listen[..], &["--tls-key", key.path()]].concat();
        let nats = (Nat::OnlyHttps, Nat::Symmetric);
        let punch = ["--strategies", "udp-punch", "--timeout-s", "5"];
        let meet = |turn: [&str; 2]| {
            let host = [&punch[..], &turn].concat();
            meet_as(&programs(), nats, [&[], &turn_server], [&host, &punch])
        };
        let by_tls = format!("{at}:{}", cert.path());
        let meetings = meet(["--turn-tls", &by_tls]).expect("TLS leads out");
        assert!(is_direct(&meetings), "{meetings:?}");
        for meeting in &meetings {
            let is_whole = meeting.sent > 0 && meeting.received == meeting.sent;
            assert!(is_whole, "{meetings:?}");
        }
        // Over TCP the same server cannot be reached: there is not even a seat.
        let by_tcp = meet(["--turn", "203.0.113.2:3478"]);
        assert!(by_tcp.is_err(), "{by_tcp:?}");
    }
}

#[test]
fn an_address_on_a_turn_server_connects_two_whom_nothing_else_does_without_the_session_relay() {
    let nats = (Nat::Symmetric, Nat::Symmetric);
    let candidate: Options = &["--turn-candidate", "203.0.113.2:3478"];
    let options: [&[Options]; 2] = [&[candidate], &[]];
    let Some(meetings) = meet(nats, ["turn"; 2], options) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    assert!(meetings.iter().all(|it| worked(it, "turn")), "{meetings:?}");
    // With everything chosen it is tried beside the others, which do not work.
    let Some(meetings) = meet(nats, ["direct,reverse,udp-punch,turn"; 2], options) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    let others = [["udp-punch", "udp-punch"], ["direct", "reverse"]];
    assert_closed(nats, [&[], &[]], &others, true);
}

#[test]
fn direct_reaches_a_port_that_the_router_was_asked_for() {
    let nats = (Nat::Symmetric, Nat::Forwarding);
    let asks: Options = &["--map-port", "yes"];
    let Some(meetings) = meet(nats, ["direct"; 2], [&[], &[asks]]) else {
        return;
    };
    assert!(is_direct(&meetings), "{meetings:?}");
    assert!(worked(&meetings[0], "direct"), "{meetings:?}");
    // Without asking nothing of that is so.
    let others = [["direct", "direct"], ["udp-punch", "udp-punch"]];
    assert_closed(nats, [&[], &[]], &others, true);
}

#[test]
fn tcp_punching_gets_past_nats_that_would_remember_a_stranger() {
    let nats = (Nat::Remembers, Nat::Remembers);
    let Some(meetings) = meet(nats, ["tcp-punch"; 2], [&[STREAM], &[STREAM]]) else {
        return;
    };
    for meeting in &meetings {
        assert_eq!(meeting.stream.as_deref(), Some("tcp-punch"), "{meetings:?}");
    }
}
