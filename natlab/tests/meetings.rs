//! Every pairing of NAT kinds connects: directly where that is possible, else through the relay.

use waypost_natlab::{Nat, Programs, can_run, meet};

fn programs() -> Programs {
    Programs {
        server: env!("CARGO_BIN_EXE_natlab-server").into(),
        player: env!("CARGO_BIN_EXE_natlab-player").into(),
    }
}

/// Lets two players meet and checks which path they got and that every datagram came once and whole.
fn check(a: Nat, b: Nat, server_options: &[&str]) {
    if let Err(why) = can_run() {
        assert!(
            std::env::var_os("WAYPOST_NATLAB_REQUIRED").is_none(),
            "this test must not be skipped here: {why}"
        );
        eprintln!("SKIPPED: {why}");
        return;
    }
    let reports = meet(&programs(), (a, b), server_options, &[])
        .unwrap_or_else(|error| panic!("{a} and {b}: {error}"));
    let path = if a.can_punch(b) { "direct" } else { "relayed" };
    for report in reports {
        assert_eq!(report.path, path, "{a} and {b}: {report:?}");
        assert!(report.sent > 0, "{a} and {b}: {report:?}");
        let flaws = (report.lost, report.duplicated, report.corrupted);
        assert_eq!(flaws, (0, 0, 0), "{a} and {b}: {report:?}");
        assert_eq!(report.received, report.sent, "{a} and {b}: {report:?}");
    }
}

macro_rules! meetings {
    ($($name:ident: $a:ident, $b:ident, $options:expr;)*) => {
        $(#[test]
        fn $name() {
            check(Nat::$a, Nat::$b, $options);
        })*
    };
}

meetings! {
    full_cone_and_full_cone: FullCone, FullCone, &[];
    full_cone_and_port_restricted: FullCone, PortRestricted, &[];
    full_cone_and_remembers: FullCone, Remembers, &[];
    full_cone_and_symmetric: FullCone, Symmetric, &[];
    full_cone_and_double: FullCone, Double, &[];
    port_restricted_and_port_restricted: PortRestricted, PortRestricted, &[];
    port_restricted_and_remembers: PortRestricted, Remembers, &[];
    port_restricted_and_symmetric: PortRestricted, Symmetric, &[];
    port_restricted_and_double: PortRestricted, Double, &[];
    remembers_and_remembers: Remembers, Remembers, &[];
    remembers_and_symmetric: Remembers, Symmetric, &[];
    remembers_and_double: Remembers, Double, &[];
    symmetric_and_symmetric: Symmetric, Symmetric, &[];
    symmetric_and_double: Symmetric, Double, &[];
    double_and_double: Double, Double, &[];
    by_mmsg_directly: PortRestricted, PortRestricted, &["--io", "mmsg"];
    by_mmsg_through_the_relay: Symmetric, Symmetric, &["--io", "mmsg"];
}
