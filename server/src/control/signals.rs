//! Signals as requests, handed over a channel. What a request does is decided by the control thread.

use std::{io, thread};

use signal_hook::{
    consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2},
    iterator::Signals,
};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// What an operator asks by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Take no new sessions, wait for the old ones, then stop: the first `SIGTERM` or `SIGINT`.
    Drain,
    /// Stop at once: any later one.
    StopNow,
    /// Read the configuration again: `SIGHUP`.
    Reload,
    /// Take no new sessions, wait for the old ones, then give the process to a new binary: `SIGUSR2`.
    HandOver,
}

/// Starts to listen for signals. From here on none of them ends the process by itself.
///
/// A handler may run on any thread and so interrupt a system call of any (`EINTR`).
pub fn listen() -> io::Result<UnboundedReceiver<Request>> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR2])?;
    let (sender, receiver) = unbounded_channel();
    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut reading = Reading::default();
            for signal in signals.forever() {
                if sender.send(reading.request(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(receiver)
}

#[derive(Default)]
struct Reading {
    asked_to_end: bool,
}

impl Reading {
    fn request(&mut self, signal: i32) -> Request {
        match signal {
            SIGHUP => Request::Reload,
            SIGUSR2 => Request::HandOver,
            _ if self.asked_to_end => Request::StopNow,
            _ => {
                self.asked_to_end = true;
                Request::Drain
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_request_to_end_means_now() {
        let mut reading = Reading::default();
        let requests = [SIGHUP, SIGINT, SIGHUP, SIGTERM, SIGTERM, SIGUSR2]
            .map(|signal| reading.request(signal));
        use Request::*;
        assert_eq!(
            requests,
            [Reload, Drain, Reload, StopNow, StopNow, HandOver]
        );
    }

    #[test]
    fn a_signal_arrives_over_the_channel() {
        let mut requests = listen().unwrap();
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert_eq!(requests.blocking_recv(), Some(Request::Reload));
    }
}
