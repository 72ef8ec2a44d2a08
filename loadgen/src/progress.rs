//! How far a run is, on standard error: a view that is drawn again and again on a terminal, a line now and then elsewhere. Never on
//! standard output, which is the report's.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::expect::show_ns;
use crate::live::{Live, TELL_MS};

/// Without a terminal, a line this often.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Columns of the small plot.
const HISTORY: usize = 60;
const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// Shows one phase after the other.
pub struct Progress {
    bar: Option<ProgressBar>,
    /// Since when `recent` is gathered.
    since: Instant,
    recent: Live,
    /// p99 of each of the last times, nanoseconds.
    history: VecDeque<u64>,
    is_one_of_many: bool,
    threads: usize,
    began: Instant,
    line_at: Instant,
    line: Live,
}

impl Progress {
    /// On standard error. One of many runs shows itself only on a terminal.
    pub fn new(is_one_of_many: bool) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = "{prefix:<30} {wide_bar} {pos}/{len} {elapsed}{msg}";
            bar.set_style(ProgressStyle::with_template(style).expect("a legal template"));
            bar
        });
        let now = Instant::now();
        Self {
            bar,
            since: now,
            recent: Live::default(),
            history: VecDeque::new(),
            is_one_of_many,
            threads: 1,
            began: now,
            line_at: now,
            line: Live::default(),
        }
    }

    /// Sessions begin to be set up.
    pub fn set_up(&self, sessions: u64) {
        self.begin(format!("setting up {sessions} sessions"), sessions);
    }

    /// So many are.
    pub fn sessions(&self, opened: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(opened.min(bar.length().unwrap_or(0)));
        }
    }

    /// The load begins.
    pub fn load(&mut self, rate: u64, all: Duration, threads: usize) {
        self.threads = threads;
        let secs = all.as_secs_f64().ceil() as u64;
        self.begin(format!("sending {rate} datagrams/s"), secs);
        let now = Instant::now();
        (self.since, self.began, self.line_at) = (now, now, now);
    }

    /// A thread tells what it has done.
    pub fn tell(&mut self, live: &Live) {
        self.recent.merge(live);
    }

    /// Time passes.
    pub fn look(&mut self) {
        let now = Instant::now();
        if now - self.since < Duration::from_millis(TELL_MS) {
            return;
        }
        self.since = now;
        match &self.bar {
            Some(bar) => {
                if self.history.len() == HISTORY {
                    self.history.pop_front();
                }
                self.history.push_back(self.recent.latency.quantile(0.99));
                bar.set_position((now - self.began).as_secs());
                bar.set_message(view(
                    &self.recent,
                    self.threads,
                    self.history.make_contiguous(),
                ));
            }
            None if self.is_one_of_many => {}
            None => {
                self.line.merge(&self.recent);
                if now - self.line_at >= LINE_EVERY {
                    let shown = figures(&self.line, self.threads);
                    eprintln!("{:>5} s: {shown}", (now - self.began).as_secs());
                    self.line_at = now;
                    self.line.clear();
                }
            }
        }
        self.recent.clear();
    }

    /// Sessions are closed.
    pub fn closing(&self) {
        self.begin("closing sessions".to_owned(), 1);
    }

    /// Clears the way for the report.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn begin(&self, message: String, length: u64) {
        match &self.bar {
            Some(bar) => {
                bar.reset();
                bar.set_length(length);
                bar.set_prefix(message);
                bar.set_message("");
            }
            None if self.is_one_of_many => {}
            None => eprintln!("{message}"),
        }
    }
}

/// A count as a rate of all threads together.
fn per_sec(live: &Live, threads: usize) -> impl Fn(u64) -> f64 {
    let secs = live.span_ns as f64 / 1e9 / threads.max(1) as f64;
    move |count| if secs > 0.0 { count as f64 / secs } else { 0.0 }
}

/// One line.
fn figures(live: &Live, threads: usize) -> String {
    let per_sec = per_sec(live, threads);
    format!(
        "{:.0}/s sent, {:.0}/s arrived, p50 {}, p99 {}, max {}, own lag p99 {}",
        per_sec(live.sent),
        per_sec(live.received),
        show_ns(live.latency.quantile(0.5)),
        show_ns(live.latency.quantile(0.99)),
        show_ns(live.latency.quantile(1.0)),
        show_ns(live.lag.quantile(0.99)),
    )
}

/// The lines below the bar.
fn view(live: &Live, threads: usize, history: &[u64]) -> String {
    let per_sec = per_sec(live, threads);
    format!(
        "\n  sent       {:>12.0}/s\n  arrived    {:>12.0}/s\n  latency    p50 {:>10}   p99 {:>10}   max {:>10}\n  \
         own lag    p50 {:>10}   p99 {:>10}   max {:>10}\n  p99        {} up to {}",
        per_sec(live.sent),
        per_sec(live.received),
        show_ns(live.latency.quantile(0.5)),
        show_ns(live.latency.quantile(0.99)),
        show_ns(live.latency.quantile(1.0)),
        show_ns(live.lag.quantile(0.5)),
        show_ns(live.lag.quantile(0.99)),
        show_ns(live.lag.quantile(1.0)),
        blocks(history),
        show_ns(history.iter().copied().max().unwrap_or(0)),
    )
}

/// A small plot from 0 to the largest.
fn blocks(values: &[u64]) -> String {
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let top = BLOCKS.len() as u64 - 1;
    let block =
        |value: &u64| BLOCKS[(u128::from(*value) * u128::from(top) / u128::from(most)) as usize];
    values.iter().map(block).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_small_plot_reaches_from_bottom_to_top() {
        assert_eq!(blocks(&[0, 50, 100]), "▁▄█");
        assert_eq!(blocks(&[u64::MAX, 0]), "█▁");
        assert_eq!((blocks(&[]), blocks(&[0])), (String::new(), "▁".to_owned()));
    }

    #[test]
    fn the_view_has_rates_and_quantiles() {
        let mut live = Live {
            span_ns: 1_000_000_000,
            sent: 1000,
            received: 900,
            ..Live::default()
        };
        live.latency.record(2_000_000);
        let shown = view(&live, 2, &[1, 2]);
        for part in ["2000/s", "1800/s", "ms", "▄█"] {
            assert!(shown.contains(part), "{part}: {shown}");
        }
        assert!(figures(&live, 2).starts_with("2000/s sent, 1800/s arrived"));
    }
}
