//! The run over time as a table for spreadsheets (RFC 4180, lines end in LF). Times are microseconds.

use std::fmt::Write as _;

use super::Report;

/// The table.
pub fn render(report: &Report) -> String {
    let series = &report.document.series;
    let mut text = String::from(
        "second,sent,received,lost,missed,p50_us,p90_us,p99_us,p999_us,max_us,lag_p50_us,lag_p99_us\n",
    );
    for (n, interval) in series.intervals.iter().enumerate() {
        let lost = interval.sent.saturating_sub(interval.received);
        let _ = write!(
            text,
            "{:.1},{},{},{lost},{}",
            series.end_secs(n),
            interval.sent,
            interval.received,
            interval.missed
        );
        let latency = [0.5, 0.9, 0.99, 0.999, 1.0].map(|q| interval.latency.quantile(q));
        let lag = [0.5, 0.99].map(|q| interval.lag.quantile(q));
        for ns in latency.into_iter().chain(lag) {
            let _ = write!(text, ",{:.1}", ns as f64 / 1000.0);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use crate::report::tests::{good, report};

    #[test]
    fn a_line_for_each_interval_and_as_many_columns_as_names() {
        let text = super::render(&report(&[], good()));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 10);
        assert!(lines[1].starts_with("0.1,100,100,0,0,25"), "{}", lines[1]);
        let columns = lines[0].split(',').count();
        assert!(lines.iter().all(|line| line.split(',').count() == columns));
    }
}
