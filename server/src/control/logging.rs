//! Log records on standard error, one a line. Never on the packet path.

use std::io::{self, IsTerminal, Write};

use tracing::{Level, level_filters::LevelFilter};
use tracing_subscriber::{
    Registry,
    fmt::{self, MakeWriter},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

use super::config::LogFormat;

/// Changes the level of a running log.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<LevelFilter, Registry>);

impl LogLevel {
    /// From now on logs this level and all more severe ones.
    pub fn set(&self, level: Level) {
        // It fails only when the subscriber is gone, and then nothing is logged anyway.
        let _ = self.0.reload(LevelFilter::from_level(level));
    }
}

/// Starts the log of the process. A second call leaves the first log in place; only the level it
/// returns has no effect then.
pub fn start(format: LogFormat, level: Level) -> LogLevel {
    let (filter, handle) = reload::Layer::new(LevelFilter::from_level(level));
    let on_terminal = io::stderr().is_terminal();
    let registry = tracing_subscriber::registry().with(filter);
    let pretty = match format {
        LogFormat::Auto => on_terminal,
        LogFormat::Json => false,
        LogFormat::Pretty => true,
    };
    let _ = if pretty {
        let layer = fmt::layer()
            .with_ansi(on_terminal)
            .with_target(false)
            .with_writer(OneLine(io::stderr));
        registry.with(layer).try_init()
    } else {
        let layer = fmt::layer()
            .json()
            .flatten_event(true)
            .with_writer(OneLine(io::stderr));
        registry.with(layer).try_init()
    };
    LogLevel(handle)
}

/// Folds the line breaks inside a record, so that what a stranger sent cannot forge another one.
/// The layer above writes each record whole.
#[derive(Clone, Copy)]
struct OneLine<M>(M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for OneLine<M> {
    type Writer = OneLine<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLine(self.0.make_writer())
    }
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let (text, end) = match record {
            [text @ .., b'\n'] => (text, &b"\n"[..]),
            text => (text, &b""[..]),
        };
        let folded = text.iter().map(|byte| {
            if matches!(byte, b'\n' | b'\r') {
                b' '
            } else {
                *byte
            }
        });
        let line: Vec<u8> = folded.chain(end.iter().copied()).collect();
        self.0.write_all(&line)?;
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(json: bool) -> String {
        let shared = Shared::default();
        let writer = {
            let shared = shared.clone();
            OneLine(move || shared.clone())
        };
        let record = || {
            tracing::info!(name = %"evil\nINFO forged", "one\r\ntwo");
            tracing::debug!("not at this level");
        };
        let registry = tracing_subscriber::registry().with(LevelFilter::INFO);
        if json {
            let layer = fmt::layer().json().flatten_event(true).with_writer(writer);
            tracing::subscriber::with_default(registry.with(layer), record);
        } else {
            let layer = fmt::layer().with_ansi(false).with_writer(writer);
            tracing::subscriber::with_default(registry.with(layer), record);
        }
        let bytes = shared.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn a_record_is_one_line_whatever_is_in_it() {
        for json in [false, true] {
            let text = logged(json);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.ends_with('\n') && text.contains("forged"), "{text}");
        }
    }

    #[test]
    fn json_is_json() {
        let record: serde_json::Value = serde_json::from_str(&logged(true)).unwrap();
        assert_eq!(record["level"], "INFO");
        assert_eq!(record["name"], "evil\nINFO forged");
    }
}
