//! What the service manager is told (`sd_notify(3)`). Without a service manager nothing happens.

use std::time::Duration;

use sd_notify::NotifyState;

/// All sockets are bound: units that wait for this one may start.
pub fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The process is on its way out.
pub fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The process is well.
pub fn watchdog() {
    notify(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] has to be called: half of the time that `WatchdogSec=` allows.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// A service manager that does not listen is its own trouble, not a reason to stop serving.
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}
