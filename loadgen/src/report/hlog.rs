//! The run over time as an HdrHistogram interval log (`.hlog`, version 1.3 with compressed V2 histograms), which its viewers and processors
//! read. Values are nanoseconds, the largest of each line milliseconds.

use std::time::{Duration, UNIX_EPOCH};

use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriterBuilder, Tag};

use super::Report;

/// Two lines for each interval: the latency from the intended send time, and, tagged `lag`, the generator's own.
pub fn render(report: &Report) -> String {
    let series = &report.document.series;
    let interval = Duration::from_millis(series.interval_ms);
    let finished = Duration::from_secs(report.document.environment.finished_at);
    let measured = interval * u32::try_from(series.intervals.len()).unwrap_or(u32::MAX);
    let began = UNIX_EPOCH + finished.saturating_sub(measured);
    let mut bytes = b"#[Histogram log format version 1.3]\n".to_vec();
    let mut serializer = V2DeflateSerializer::new();
    let log = IntervalLogWriterBuilder::new()
        .add_comment("waypost-loadgen; nanoseconds, Interval_Max in milliseconds")
        .with_start_time(began)
        .with_base_time(began)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut bytes, &mut serializer);
    let mut log = log.expect("memory takes everything");
    let lag_tag = Tag::new("lag").expect("a legal tag");
    for (n, figures) in (0u32..).zip(&series.intervals) {
        let lines = [(None, &figures.latency), (Some(lag_tag), &figures.lag)];
        for (tag, times) in lines {
            log.write_histogram(times.histogram(), interval * n, interval, tag)
                .expect("memory takes everything");
        }
    }
    String::from_utf8(bytes).expect("the log is text")
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    use crate::report::tests::{good, report};
    use crate::times::from_text;

    #[test]
    fn the_log_is_read_back() {
        let report = report(&[], good());
        let text = super::render(&report);
        assert!(text.starts_with("#[Histogram log format version 1.3]\n"));
        let mut counts = [0, 0];
        let mut starts = Vec::new();
        for entry in IntervalLogIterator::new(text.as_bytes()) {
            if let LogEntry::Interval(line) = entry.expect("a legal line") {
                let times = from_text::<u64>(line.encoded_histogram()).expect("a histogram");
                counts[usize::from(line.tag().is_some())] += times.len();
                starts.push(line.start_timestamp().as_secs_f64());
            }
        }
        assert_eq!(counts, [998, 998]);
        assert_eq!(starts.len(), 2 * 10);
        assert_eq!((starts[0], starts[19]), (0.0, 0.9));
    }
}
