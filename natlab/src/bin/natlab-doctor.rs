//! Reports on the NAT that it stands behind, one fact a line: `mapping`, `filtering`, `preserves`, `hairpins`.

use std::{env, process};

fn main() {
    let server = env::args().nth(1).unwrap_or_default();
    match waypost_client::nat_report(&*server) {
        Ok(report) => println!("{report}"),
        Err(error) => {
            eprintln!("natlab-doctor: {error}");
            process::exit(1);
        }
    }
}
