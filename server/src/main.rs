//! The waypost server binary.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    ExitCode::from(waypost_server::serve::run(
        waypost_server::control::config::Sources::of_process(),
    ))
}
