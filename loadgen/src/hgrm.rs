//! A histogram's percentiles as text that the HdrHistogram plotters read (`.hgrm`), in microseconds.

use std::fmt::Write as _;

use hdrhistogram::Histogram;

/// Lines per halving of the distance to 100 %, as the original tool has it.
const TICKS_PER_HALF: u32 = 5;
const NS_PER_US: f64 = 1000.0;

/// The text of `times`, which are in nanoseconds.
pub fn render(times: &Histogram<u64>) -> String {
    let mut text = String::from("       Value     Percentile TotalCount 1/(1-Percentile)\n\n");
    let mut total = 0;
    for step in times.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let quantile = step.quantile_iterated_to();
        let value = step.value_iterated_to() as f64 / NS_PER_US;
        let _ = write!(text, "{value:12.3} {quantile:.12} {total:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let _ = write!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n\
         #[Max     = {:12.3}, Total count    = {:12}]\n\
         #[Buckets = {:12}, SubBuckets     = {:12}]\n",
        times.mean() / NS_PER_US,
        times.stdev() / NS_PER_US,
        times.max() as f64 / NS_PER_US,
        times.len(),
        times.buckets(),
        times.distinct_values(),
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::times::Times;

    #[test]
    fn the_last_line_counts_everything() {
        let mut times = Times::default();
        (1..=1000).for_each(|us| times.record(us * 1000));
        let text = render(times.histogram());
        let last = text.lines().rfind(|line| !line.starts_with('#')).unwrap();
        let columns: Vec<_> = last.split_whitespace().collect();
        assert_eq!(columns[1..], ["1.000000000000", "1000"]);
        assert!(text.contains("Total count    =         1000]"));
    }

    #[test]
    fn nothing_measured_is_still_a_file() {
        assert!(render(Times::default().histogram()).contains("Total count"));
    }
}
