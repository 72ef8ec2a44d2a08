//! Says what stands between this machine and other players, and what to expect of it.
//!
//! ```text
//! cargo run -p waypost-client --example waypost-doctor -- 203.0.113.5:3478
//! ```
//!
//! For all of it the server has to have a second address (`--alternate-ip`).

use std::{env, process};

fn main() {
    let Some(server) = env::args().nth(1).filter(|server| !server.starts_with('-')) else {
        eprintln!("usage: waypost-doctor HOST:PORT");
        process::exit(2);
    };
    match waypost_client::nat_report(&*server) {
        Ok(report) => println!("{report}"),
        Err(error) => {
            eprintln!("waypost-doctor: {error}");
            process::exit(1);
        }
    }
}
