//! The program itself, against the server that it hosts: sessions, load, churn, report and exit codes. Asserts counts that
//! hold on any machine, never times.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

/// However slow this machine is, it is not the generator's speed that is tested.
const PATIENT: [&str; 2] = ["--lag-limit", "60s"];

struct Load {
    output: Output,
    json: Value,
    hgrm: String,
    hlog: String,
}

fn scratch(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

fn program(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_waypost-loadgen"))
        .args(arguments)
        .output()
        .unwrap()
}

fn load(name: &str, arguments: &[&str]) -> Load {
    let [json, hgrm, hlog] =
        ["json", "hgrm", "hlog"].map(|kind| scratch(&format!("{name}.{kind}")));
    let files = [
        "--json",
        json.to_str().unwrap(),
        "--hgrm",
        hgrm.to_str().unwrap(),
        "--hlog",
        hlog.to_str().unwrap(),
    ];
    let output = program(&[&PATIENT[..], &files, arguments].concat());
    let text = String::from_utf8_lossy(&output.stdout);
    let error = String::from_utf8_lossy(&output.stderr);
    let read = |path: &PathBuf| {
        std::fs::read_to_string(path).unwrap_or_else(|_| panic!("no report: {text}{error}"))
    };
    Load {
        json: serde_json::from_str(&read(&json)).unwrap(),
        hgrm: read(&hgrm),
        hlog: read(&hlog),
        output,
    }
}

impl Load {
    fn count(&self, of: &str, name: &str) -> u64 {
        self.json[of][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {of}.{name}"))
    }

    fn text(&self) -> String {
        String::from_utf8(self.output.stdout.clone()).unwrap()
    }

    /// What no machine, however slow, may make happen.
    fn assert_faultless(&self) {
        for fault in ["misdelivered", "corrupted", "duplicated", "refused"] {
            assert_eq!(
                self.count("datagrams", fault),
                0,
                "{fault}: {}",
                self.text()
            );
        }
        assert_eq!(self.count("sessions", "failed"), 0, "{}", self.text());
        let received = self.count("datagrams", "received");
        assert!(received > 0 && received <= self.count("datagrams", "sent"));
    }
}

fn small_load(io: &str) {
    let load = load(
        io,
        &[
            "--io",
            io,
            "--sessions",
            "20",
            "--duration",
            "1",
            "--warm-up",
            "0.1",
            "--expect",
            "misdelivered==0",
            "--expect",
            "failed_sessions==0",
            "--expect",
            "sessions==20",
        ],
    );
    load.assert_faultless();
    assert_eq!(load.output.status.code(), Some(0), "{}", load.text());
    assert_eq!(load.count("sessions", "set_up"), 20);
    let slots = load.count("datagrams", "sent")
        + load.count("generator", "slots_missed")
        + load.count("generator", "slots_idle");
    assert_eq!(slots, 800, "20 sessions x 2 directions x 20 Hz x 1 s");
    let recorded = load.json["latency_ns"]["count"].as_u64().unwrap();
    assert_eq!(recorded, load.count("datagrams", "received"));
    assert!(
        load.hgrm
            .contains(&format!("Total count    = {recorded:12}"))
    );
    let lines = load.hlog.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(lines.count(), 2 * 10, "two for each 100 ms: {}", load.hlog);
    assert!(load.text().starts_with("VALID"));
    assert_eq!(load.json["server"]["io"], io);
    assert_eq!(load.json["load"]["io"], io);
    let relayed = r#"waypost_relayed_packets_total{proto="native"}"#;
    let relayed = load.json["server"]["counters"][relayed].as_u64().unwrap();
    assert!(
        relayed >= recorded,
        "{relayed} relayed, {recorded} received"
    );
}

#[test]
fn a_small_load_over_io_uring() {
    if let Err(error) = waypost_server::ring::probe() {
        println!("skipped: {error}");
        return;
    }
    small_load("uring");
}

#[test]
fn a_small_load_over_mmsg() {
    small_load("mmsg");
}

#[test]
fn sessions_of_four_come_and_go_on_two_threads() {
    let load = load(
        "churn",
        &[
            "--sessions",
            "12",
            "--members",
            "4",
            "--threads",
            "2",
            "--churn",
            "20",
            "--rate",
            "2000",
            "--duration",
            "2",
            "--warm-up",
            "0",
            "--size",
            "44",
        ],
    );
    load.assert_faultless();
    assert!(load.count("sessions", "replaced") > 0, "{}", load.text());
    let opened = load.count("sessions", "set_up");
    assert!(opened >= 12 && opened <= 12 + load.count("sessions", "replaced"));
    assert_eq!(
        load.json["sessions"]["join_ns"]["count"].as_u64().unwrap(),
        opened * 3
    );
    let created = r#"waypost_sessions_created_total{by="request"}"#;
    assert_eq!(
        load.json["server"]["counters"][created].as_u64(),
        Some(opened)
    );
    assert_eq!(
        load.json["server"]["counters"]["waypost_sessions"].as_u64(),
        Some(0),
        "all sessions were closed"
    );
}

fn turn_load(name: &str, arguments: &[&str]) -> Load {
    let turn = ["--protocol", "turn", "--sessions", "10", "--rate", "1000"];
    let short = ["--duration", "1", "--warm-up", "0", "--size", "40"];
    let load = load(name, &[&turn[..], &short, arguments].concat());
    load.assert_faultless();
    assert_eq!(load.output.status.code(), Some(0), "{}", load.text());
    assert_eq!(load.count("sessions", "set_up"), 10);
    assert_eq!(load.json["load"]["protocol"], "turn");
    load
}

#[test]
fn turn_clients_send_to_each_other() {
    for framing in ["channel", "indication"] {
        let name = format!("turn-{framing}");
        let load = turn_load(&name, &["--turn-framing", framing]);
        let times = |kind: &str| load.json["sessions"][kind]["count"].as_u64();
        assert_eq!((times("host_ns"), times("join_ns")), (Some(10), Some(10)));
        let gauge = load.json["server"]["counters"]["waypost_allocations"].as_u64();
        assert_eq!(gauge, Some(0), "all allocations were given back");
    }
}

#[test]
fn turn_clients_exchange_data_with_plain_peers() {
    for framing in ["channel", "indication"] {
        let peers = ["--turn-mode", "peer", "--members", "3"];
        let name = format!("turn-peer-{framing}");
        let load = turn_load(&name, &[&peers[..], &["--turn-framing", framing]].concat());
        assert_eq!(load.json["sessions"]["host_ns"]["count"], 10);
        assert_eq!(load.json["sessions"]["join_ns"]["count"], 0);
    }
}

#[test]
fn a_thousand_sessions_of_each_foreign_protocol_are_introduced_and_relayed() {
    for protocol in ["rabid", "simple", "godot-p2p", "noray"] {
        let load = load(
            protocol,
            &[
                "--protocol",
                protocol,
                "--sessions",
                "1000",
                "--rate",
                "2000",
                "--duration",
                "1",
                "--warm-up",
                "0",
            ],
        );
        load.assert_faultless();
        assert_eq!(load.output.status.code(), Some(0), "{}", load.text());
        assert_eq!(load.count("sessions", "set_up"), 1000, "{}", load.text());
        assert_eq!(load.json["load"]["protocol"], protocol);
    }
}

#[test]
fn foreign_sessions_of_four_come_and_go() {
    for protocol in ["rabid", "simple", "godot-p2p", "noray"] {
        let load = load(
            &format!("churn-{protocol}"),
            &[
                "--protocol",
                protocol,
                "--sessions",
                "10",
                "--members",
                "4",
                "--churn",
                "10",
                "--rate",
                "500",
                "--duration",
                "2",
                "--warm-up",
                "0",
            ],
        );
        load.assert_faultless();
        assert!(load.count("sessions", "replaced") > 0, "{}", load.text());
    }
}

#[test]
fn random_arrivals_a_ramp_and_unequal_sizes_lose_no_count() {
    let load = load(
        "shapes",
        &[
            "--sessions",
            "5",
            "--profile",
            "shooter-60hz",
            "--members",
            "4",
            "--arrivals",
            "poisson",
            "--ramp-from",
            "100",
            "--duration",
            "1",
            "--warm-up",
            "0.2",
        ],
    );
    load.assert_faultless();
    assert_eq!(load.json["load"]["size_bytes"], 60);
    assert_eq!(load.json["load"]["host_size_bytes"], 600);
    assert_eq!(load.json["load"]["rate_per_sec"], 5 * 6 * 60);
}

#[test]
fn storms_set_sessions_up_and_send_nothing() {
    let protocols = ["native", "rabid", "simple", "godot-p2p", "noray"];
    for (protocol, storm) in protocols
        .map(|p| ["join", "punch"].map(|s| (p, s)))
        .concat()
    {
        for rate in [&[][..], &["--setup-rate", "200"]] {
            let name = format!("storm-{protocol}-{storm}-{}", rate.len());
            let options = ["--storm", storm, "--sessions", "100", "--threads", "2"];
            let spoken = ["--protocol", protocol];
            let load = load(&name, &[&options[..], &spoken, rate].concat());
            assert_eq!(load.output.status.code(), Some(0), "{}", load.text());
            assert_eq!(load.count("sessions", "set_up"), 100, "{}", load.text());
            assert_eq!(load.count("datagrams", "sent"), 0);
            assert_eq!(load.json["sessions"]["meet_ns"]["count"], 100);
        }
    }
}

#[test]
fn strangers_are_answered_with_no_more_than_they_send() {
    for protocol in ["native", "turn", "noray"] {
        let load = load(
            &format!("flood-{protocol}"),
            &[
                "--protocol",
                protocol,
                "--sessions",
                "3",
                "--flood",
                "2000",
                "--duration",
                "1",
                "--warm-up",
                "0",
            ],
        );
        load.assert_faultless();
        let flood = |name: &str| load.json["flood"][name].as_u64().unwrap();
        assert!(
            flood("sent") > 0 && flood("answered") > 0,
            "{}",
            load.text()
        );
        assert!(flood("answered") <= flood("sent"));
        if protocol == "native" {
            assert!(flood("bytes_answered") <= flood("bytes_sent"));
        }
        assert_eq!(
            load.count("sessions", "set_up"),
            3,
            "nothing else came of it"
        );
    }
}

#[test]
fn an_expectation_that_fails_is_exit_code_99() {
    let load = load(
        "unexpected",
        &[
            "--sessions",
            "2",
            "--duration",
            "0.2",
            "--warm-up",
            "0",
            "--expect",
            "sessions==3",
            "--expect",
            "misdelivered==0",
        ],
    );
    assert_eq!(load.output.status.code(), Some(99));
    let text = load.text();
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines[1], "✗ sessions==3   (2)");
    assert_eq!(lines[2], "✓ misdelivered==0   (0)");
    assert_eq!(load.json["exit_code"], 99);
}

#[test]
fn a_generator_that_cannot_keep_its_schedule_is_exit_code_98() {
    // Nobody's lag is below a nanosecond.
    let output = program(&[
        "--sessions",
        "2",
        "--duration",
        "0.2",
        "--warm-up",
        "0",
        "--lag-limit",
        "1ns",
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.starts_with("INVALID: generator saturated"), "{text}");
    assert_eq!(output.status.code(), Some(98));
}

#[test]
fn bad_options_are_one_line_and_exit_code_78() {
    for arguments in [
        &["--protocol", "quic"][..],
        &["--sessions", "none"],
        &["--expect", "p99<5"],
        &["--nonsense"],
    ] {
        let output = program(arguments);
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(line.starts_with("waypost-loadgen: "), "{line}");
        assert_eq!(output.status.code(), Some(78));
    }
}
