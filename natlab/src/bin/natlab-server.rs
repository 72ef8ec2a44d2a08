//! The real server, as a program of this package so that its tests find it.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(waypost_server::serve::run(
        waypost_server::control::config::Sources::of_process(),
    ))
}
