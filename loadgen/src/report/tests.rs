//! Tests of the judgement, and a report for the tests of all its forms.

use super::*;
use crate::cli::{Asked, read};
use crate::run::load_of;

/// A report of `tally` under these options.
pub fn report(options: &[&str], tally: Tally) -> Report {
    let arguments = ["waypost-loadgen", "--seed", "7"]
        .iter()
        .chain(options)
        .map(|&text| text.to_owned())
        .collect();
    let Ok(Asked::Run(plan)) = read(arguments, 2) else {
        panic!("a plan");
    };
    let target = "127.0.0.1:9".parse().unwrap();
    Report::new(Run {
        load: load_of(&plan, target, "mmsg", &tally),
        lag_limit_ns: u64::try_from(plan.lag_limit.as_nanos()).unwrap(),
        seed: plan.seed,
        processes: 1,
        environment: Environment::detect(2, plan.command_line.clone()),
        server: None,
        receive_buffer_errors: 0,
        tally,
        expectations: plan.expectations,
    })
}

/// What a run without trouble counts.
pub fn good() -> Tally {
    let mut tally = Tally {
        opened: 1000,
        sent: 1000,
        received: 998,
        ..Tally::default()
    };
    tally.series = crate::series::Series::new(std::time::Duration::from_secs(1));
    for n in 0..998 {
        tally.latency.record(250_000);
        tally.uncorrected.record(240_000);
        tally.lag.record(10_000);
        let interval = tally.series.at(n * 1_000_000).expect("a second");
        interval.sent += 1;
        interval.received += 1;
        interval.latency.record(250_000 + n % 7 * 1_000);
        interval.lag.record(10_000);
    }
    tally
}

#[test]
fn the_verdict_comes_first_and_the_expectations_next() {
    let report = report(&["--expect", "loss<1%", "--expect", "loss==0"], good());
    let text = report.text();
    let lines: Vec<_> = text.lines().collect();
    assert!(lines[0].starts_with("VALID"), "{text}");
    assert!(lines[1].starts_with("✓ loss<1%"), "{text}");
    assert!(lines[2].starts_with("✗ loss==0   (2)"), "{text}");
    assert_eq!(report.exit_code(), 99);
}

#[test]
fn a_saturated_generator_invalidates_times_but_not_counts() {
    let mut lagging = good();
    (0..100).for_each(|_| lagging.lag.record(2_000_000));
    let with = |options: &[&str], tally: &Tally| report(options, tally.clone());
    let plain = with(&[], &lagging);
    assert!(
        plain.text().starts_with("INVALID: generator saturated"),
        "{}",
        plain.text()
    );
    assert!(plain.text().contains("lower --rate"));
    assert_eq!(plain.exit_code(), 98);
    lagging.waited_ns = 600_000_000;
    let crowded = with(&[], &lagging).text();
    assert!(
        crowded.contains("kept it waiting for a core 10 % of the time"),
        "{crowded}"
    );
    let time = with(&["--expect", "p99<1us"], &lagging);
    assert!(time.text().contains("? p99<1us"));
    assert_eq!(time.exit_code(), 98);
    assert_eq!(with(&["--expect", "loss==0"], &lagging).exit_code(), 99);
    assert_eq!(with(&["--lag-limit", "5ms"], &lagging).exit_code(), 0);
}

#[test]
fn missed_slots_invalidate() {
    let missed = |missed, kernel_refused| Tally {
        missed,
        kernel_refused,
        ..good()
    };
    assert_eq!(report(&[], missed(1, 0)).exit_code(), 0);
    assert_eq!(report(&[], missed(2, 0)).exit_code(), 98);
    assert_eq!(report(&[], missed(0, 2)).exit_code(), 98);
}

#[test]
fn without_a_session_nothing_is_valid() {
    let mut tally = Tally::default();
    tally.fail("the server does not answer".into());
    let report = report(&[], tally);
    assert_eq!(report.exit_code(), 98);
    assert!(report.text().contains("1 x the server does not answer"));
}

#[test]
fn the_json_has_version_verdict_figures_and_environment() {
    let report = report(&["--user=1:a:c2VjcmV0", "--expect", "p99<1ms"], good());
    let text = report.json().unwrap();
    assert!(!text.contains("c2VjcmV0"));
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["version"], 1);
    assert_eq!(json["verdict"], "valid");
    assert_eq!(json["exit_code"], 0);
    assert_eq!(json["seed"], 7);
    assert_eq!(json["expectations"][0]["outcome"], "met");
    assert_eq!(json["datagrams"]["lost"], 2);
    assert_eq!(json["load"]["sessions"], 1000);
    let p99 = json["latency_ns"]["p99"].as_u64().unwrap();
    assert!((250_000..251_000).contains(&p99));
    for field in ["kernel", "cpu", "cores", "flags", "build"] {
        assert!(!json["environment"][field].is_null(), "{field}");
    }
}

#[test]
fn members_that_send_more_than_is_relayed_are_told() {
    let rate = ["--rate", "40000"];
    let mut tally = good();
    tally.limits = (10, 0);
    assert!(report(&rate, tally.clone()).text().contains("relays 10"));
    tally.limits = (20, 1_000_000);
    assert!(!report(&rate, tally).text().contains("\nnote "));
}
