//! How far a run is, on standard error: a bar on a terminal, a line per phase elsewhere. Never on standard output, which is
//! the report's.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Shows one phase after the other.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// On standard error.
    pub fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::no_length();
            let style = "{msg:<28} {wide_bar} {pos}/{len} {elapsed}";
            bar.set_style(ProgressStyle::with_template(style).expect("a legal template"));
            bar
        });
        Self { bar }
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
    pub fn load(&self, rate: u64, all: Duration) {
        self.begin(
            format!("sending {rate} datagrams/s"),
            (all.as_secs_f64() * rate as f64) as u64,
        );
    }

    /// So many datagrams have left.
    pub fn sent(&self, sent: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(sent);
        }
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
                bar.set_message(message);
            }
            None => eprintln!("{message}"),
        }
    }
}
