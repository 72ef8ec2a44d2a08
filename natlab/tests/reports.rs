//! The report on a NAT says what the kernel's NAT was told to do.

use waypost_natlab::{Nat, can_run, examine};

/// What the report of this NAT has to say on mapping, filtering and port preservation.
fn check(nat: Nat, facts: [&str; 3]) {
    if let Err(why) = can_run() {
        assert!(
            std::env::var_os("WAYPOST_NATLAB_REQUIRED").is_none(),
            "this test must not be skipped here: {why}"
        );
        eprintln!("SKIPPED: {why}");
        return;
    }
    let server = env!("CARGO_BIN_EXE_natlab-server").as_ref();
    let doctor = env!("CARGO_BIN_EXE_natlab-doctor").as_ref();
    let report = examine(server, doctor, nat).unwrap_or_else(|error| panic!("{nat}: {error}"));
    let fact = |name: &str| {
        let line = report.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("{nat}: no {name} in {report}"))
            .trim()
    };
    let found = [
        fact("mapping"),
        fact("filtering"),
        fact("port preservation"),
    ];
    assert_eq!(found, facts, "{nat}: {report}");
    assert_eq!(fact("hairpin"), "no", "{nat}: {report}");
}

#[test]
fn full_cone() {
    let facts = ["endpoint-independent", "endpoint-independent", "yes"];
    check(Nat::FullCone, facts);
}

#[test]
fn port_restricted() {
    let facts = ["endpoint-independent", "address- and port-dependent", "yes"];
    check(Nat::PortRestricted, facts);
}

#[test]
fn symmetric() {
    let dependent = "address- and port-dependent";
    check(Nat::Symmetric, [dependent, dependent, "no"]);
}
