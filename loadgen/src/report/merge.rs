//! Reports of several generators that loaded one server at the same time, as one: counts are added, histograms merged, and the
//! expectations held against the sum.

use super::{Report, Run};
use crate::expect::Expectation;
use crate::failure::Failure;

/// Merges at least one report.
///
/// # Errors
/// [`Failure`] if they are not of the same load.
pub fn merge(reports: Vec<Report>) -> Result<Report, Failure> {
    let mut reports = reports.into_iter();
    let Some(first) = reports.next() else {
        return Err(Failure::configuration(
            "there is nothing to merge",
            "name reports",
        ));
    };
    let mut sum = first.document;
    let mut tally = first.tally;
    for Report {
        document,
        tally: other,
    } in reports
    {
        let load = &mut sum.load;
        let more = document.load;
        for (what, is_same) in [
            ("protocol", load.protocol == more.protocol),
            ("target", load.target == more.target),
            ("members", load.members == more.members),
            ("topology", load.topology == more.topology),
            (
                "duration",
                (load.duration_secs, load.warm_up_secs) == (more.duration_secs, more.warm_up_secs),
            ),
            (
                "size",
                (load.size_bytes, load.host_size_bytes) == (more.size_bytes, more.host_size_bytes),
            ),
            ("storm", load.storm == more.storm),
            ("arrivals", load.arrivals == more.arrivals),
        ] {
            if !is_same {
                return Err(Failure::configuration(
                    format!("these reports cannot be merged, their {what} differs"),
                    "merge reports of one load that ran on several generators",
                ));
            }
        }
        load.sessions += more.sessions;
        load.rate_per_sec += more.rate_per_sec;
        load.ramp_from_per_sec = match (load.ramp_from_per_sec, more.ramp_from_per_sec) {
            (Some(one), Some(other)) => Some(one + other),
            _ => None,
        };
        load.churn_per_sec += more.churn_per_sec;
        load.flood_per_sec += more.flood_per_sec;
        load.threads += more.threads;
        sum.processes += document.processes;
        // On one host all see the same.
        sum.receive_buffer_errors = sum
            .receive_buffer_errors
            .max(document.receive_buffer_errors);
        sum.server = sum.server.or(document.server);
        let generator = &mut sum.generator;
        generator.lag_limit_ns = generator.lag_limit_ns.min(document.generator.lag_limit_ns);
        for judgement in document.expectations {
            let is_new =
                |known: &crate::expect::Judgement| known.expectation != judgement.expectation;
            if sum.expectations.iter().all(is_new) {
                sum.expectations.push(judgement);
            }
        }
        tally.merge(other);
    }
    let expectations = sum.expectations.iter().map(|judgement| {
        Expectation::parse(&judgement.expectation)
            .map_err(|wrong| Failure::configuration(&judgement.expectation, wrong))
    });
    Ok(Report::new(Run {
        expectations: expectations.collect::<Result<_, _>>()?,
        load: sum.load,
        lag_limit_ns: sum.generator.lag_limit_ns,
        seed: sum.seed,
        processes: sum.processes,
        tally,
        environment: sum.environment,
        server: sum.server,
        receive_buffer_errors: sum.receive_buffer_errors,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::{good, report};

    #[test]
    fn counts_are_added_and_expectations_judged_again() {
        let one = report(&["--expect", "loss<=2"], good());
        assert_eq!(one.exit_code(), 0);
        let both = merge(vec![one.clone(), one]).unwrap();
        assert_eq!((both.tally.sent, both.tally.lost()), (2000, 4));
        assert_eq!(both.document.load.sessions, 2000);
        assert_eq!((both.document.processes, both.exit_code()), (2, 99));
        assert_eq!(both.document.latency_ns.count, 2 * 998);
        assert_eq!(both.document.series.intervals[0].sent, 200);
    }

    #[test]
    fn other_loads_are_not_merged() {
        let other = report(&["--size", "300"], good());
        let failure = merge(vec![report(&[], good()), other]).err().unwrap();
        assert!(failure.to_string().contains("size differs"), "{failure}");
        assert!(merge(Vec::new()).is_err());
    }
}
