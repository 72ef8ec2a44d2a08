//! Tests of the command line.

use clap::ValueEnum as _;

use super::*;

fn asked(arguments: &[&str]) -> Result<Plan, Failure> {
    let mut all = vec!["waypost-loadgen".to_owned()];
    all.extend(arguments.iter().map(|&text| text.to_owned()));
    match read(all, 2)? {
        Asked::Run(plan) => Ok(*plan),
        _ => panic!("no run"),
    }
}

#[test]
fn no_argument_is_a_useful_load() {
    let plan = asked(&[]).unwrap();
    assert_eq!(
        (plan.target, plan.sessions, plan.members, plan.threads),
        (None, 1000, 2, 1)
    );
    assert_eq!(plan.rate, 20_000);
}

#[test]
fn the_default_rate_is_a_games_and_bounded() {
    assert_eq!(asked(&["--sessions", "10"]).unwrap().rate, 400);
    let plan = asked(&["--sessions", "10", "--members", "4"]).unwrap();
    assert_eq!((plan.flows(), plan.rate), (120, 2400));
    assert_eq!(asked(&["--sessions", "5000"]).unwrap().rate, 20_000);
}

#[test]
fn every_option_and_profile_is_documented() {
    use clap::CommandFactory as _;
    let page = include_str!("../../../docs/loadgen.md");
    let command = Arguments::command();
    let subcommands = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments);
    for argument in command.get_arguments().chain(subcommands) {
        if let Some(long) = argument.get_long() {
            assert!(page.contains(&format!("`--{long}")), "--{long}");
        }
    }
    for value in Profile::value_variants() {
        let value = value.to_possible_value().unwrap();
        assert!(page.contains(value.get_name()), "{}", value.get_name());
    }
}

#[test]
fn profiles_are_games_and_their_parts_can_be_changed() {
    let plan = asked(&["--profile", "arena-128hz", "--sessions", "10"]).unwrap();
    assert_eq!((plan.members, plan.topology), (10, Topology::Star));
    assert_eq!(plan.rate, 10 * 18 * 128);
    assert_eq!((plan.sizes.host, plan.sizes.others), (1196, 80));
    let parts = ["--members", "3", "--host-size", "100", "--hz", "10"];
    let plan = asked(&[&["--profile", "arena-128hz"][..], &parts].concat()).unwrap();
    assert_eq!((plan.members, plan.rate), (3, 1000 * 4 * 10));
    assert_eq!((plan.sizes.host, plan.sizes.others), (100, 80));
    let turn = ["--profile", "arena-128hz", "--protocol", "turn"];
    assert_eq!(asked(&turn).unwrap().sizes.host, 1200);
    assert_eq!(asked(&["--size", "90"]).unwrap().sizes.host, 90);
}

#[test]
fn a_storm_sends_no_data() {
    let plan = asked(&["--storm", "join"]).unwrap();
    assert_eq!((plan.rate, plan.duration), (0, Duration::ZERO));
    assert!(asked(&["--storm", "join", "--rate", "5"]).is_err());
    assert!(asked(&["--storm", "punch", "--protocol", "turn"]).is_err());
}

#[test]
fn directions_follow_the_topology() {
    let directions = |arguments: &[&str]| asked(arguments).unwrap().directions();
    let star = ["--members", "3", "--topology", "star"];
    assert_eq!(directions(&star), [(0, 1), (0, 2), (1, 0), (2, 0)]);
    assert_eq!(directions(&star[..2]).len(), 6);
    let peers = [&star[..2], &["--protocol", "turn", "--turn-mode", "peer"]].concat();
    assert_eq!(directions(&peers).len(), 4);
}

#[test]
fn bad_values_end_in_one_line_that_names_the_remedy() {
    for (arguments, hint) in [
        (&["--sessions", "0"][..], "from 1 to"),
        (&["--members", "1"], "from 2 to 255"),
        (&["--size", "20"], "from 40 to 1196"),
        (&["--size", "5000"], "from 40 to 1196"),
        (&["--duration", "NaN"], "from 0.1"),
        (&["--rate", "0"], "from 1 to"),
        (&["--threads", "0"], "from 1 to"),
        (&["--protocol", "quic"], "see --help"),
        (&["--protocol", "turn", "--size", "1201"], "from 40 to 1200"),
        (
            &[
                "--protocol",
                "turn",
                "--turn-mode",
                "peer",
                "--members",
                "3",
                "--topology",
                "mesh",
            ],
            "only the host knows",
        ),
        (&["--target", "127.0.0.1"], "HOST:PORT"),
        (&["--target", "0.0.0.0:3478"], "listening udp"),
        (&["--user", "alice"], "expiry:user"),
        (&["--expect", "p99"], "operator"),
        (&["--lag-limit", "1"], "ns, us, ms or s"),
        (&["--io", "magic"], "--help"),
        (&["--nonsense"], "--help"),
        (&["--find-max", "--html", "a"], "only --json"),
        (&["compare", "one"], "--help"),
        (&["merge"], "--help"),
    ] {
        let failure = asked(arguments).err().expect("refused");
        let line = failure.to_string();
        assert!(line.contains(hint), "{arguments:?}: {line}");
        assert_eq!((line.lines().count(), failure.exit_code), (1, 78));
    }
}

#[test]
fn a_credential_is_split_at_the_last_colon_and_never_shown() {
    for arguments in [
        &["--user", "1700000000:alice:c2VjcmV0"][..],
        &["--user=1700000000:alice:c2VjcmV0"],
    ] {
        let plan = asked(arguments).unwrap();
        let credential = plan.credential.unwrap();
        assert_eq!(credential.username, "1700000000:alice");
        assert_eq!(credential.password, "c2VjcmV0");
        assert!(!plan.command_line.concat().contains("c2VjcmV0"));
    }
}
