//! Players of other systems' games, behind NATs that nobody can punch: the relay that they do not see lets them play.

use waypost_natlab::{Lab, Nat, Programs, can_run, meet_foreign};

fn check(dialect: &str, nats: (Nat, Nat), relay: &[&str], tries: u32) {
    if let Err(why) = can_run() {
        assert!(
            std::env::var_os("WAYPOST_NATLAB_REQUIRED").is_none(),
            "this test must not be skipped here: {why}"
        );
        eprintln!("SKIPPED: {why}");
        return;
    }
    let programs = Programs {
        server: env!("CARGO_BIN_EXE_natlab-server").into(),
        player: env!("CARGO_BIN_EXE_natlab-foreign").into(),
    };
    let reports = meet_foreign(&programs, nats, dialect, relay)
        .unwrap_or_else(|error| panic!("{dialect}: {error}"));
    for report in reports {
        assert_eq!(report.tries, tries, "{dialect}: {report:?}");
        let is_server = report.peer.starts_with(&format!("{}:", Lab::SERVER_IP));
        assert_eq!(is_server, !relay.is_empty(), "{dialect}: {report:?}");
    }
}

const FORCE: &[&str] = &["--dialect-relay", "force"];
const ON: &[&str] = &["--dialect-relay", "on"];
const SYMMETRIC: (Nat, Nat) = (Nat::Symmetric, Nat::Symmetric);
const FRIENDLY: (Nat, Nat) = (Nat::PortRestricted, Nat::PortRestricted);

macro_rules! meetings {
    ($($name:ident: $dialect:literal, $nats:ident, $relay:expr, $tries:literal;)*) => {
        $(#[test]
        fn $name() {
            check($dialect, $nats, $relay, $tries);
        })*
    };
}

meetings! {
    rabid_punches: "rabid", FRIENDLY, &[], 1;
    rabid_is_relayed: "rabid", SYMMETRIC, FORCE, 1;
    rabid_comes_back: "rabid", SYMMETRIC, ON, 2;
    simple_punches: "simple", FRIENDLY, &[], 1;
    simple_is_relayed: "simple", SYMMETRIC, FORCE, 1;
    simple_comes_back: "simple", SYMMETRIC, ON, 2;
    godot_p2p_punches: "godot-p2p", FRIENDLY, &[], 1;
    godot_p2p_is_relayed: "godot-p2p", SYMMETRIC, FORCE, 1;
    godot_p2p_comes_back: "godot-p2p", SYMMETRIC, ON, 2;
}
