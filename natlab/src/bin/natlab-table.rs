//! Prints the table of the README: which path two players get behind each pair of NAT kinds, and how long it takes.

use std::process::ExitCode;

use waypost_natlab::{LabError, Nat, Programs, can_run, meet};

fn main() -> ExitCode {
    if let Err(why) = can_run() {
        eprintln!("natlab-table: {why}");
        return ExitCode::FAILURE;
    }
    match table() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("natlab-table: {error}");
            ExitCode::FAILURE
        }
    }
}

fn table() -> Result<(), LabError> {
    let beside = |name: &str| {
        std::env::current_exe()
            .map(|path| path.with_file_name(name))
            .map_err(|error| LabError(error.to_string()))
    };
    let programs = Programs {
        server: beside("natlab-server")?,
        player: beside("natlab-player")?,
    };
    print!("| |");
    for b in Nat::ALL {
        print!(" {b} |");
    }
    println!("\n|---|{}", "---|".repeat(Nat::ALL.len()));
    for (i, a) in Nat::ALL.into_iter().enumerate() {
        print!("| **{a}** |");
        for (j, b) in Nat::ALL.into_iter().enumerate() {
            if j < i {
                print!(" |");
                continue;
            }
            let [host, guest] = meet(&programs, (a, b), &[], &[])?;
            let slower = host.connect_ms.max(guest.connect_ms);
            match (host.path.as_str(), slower) {
                ("direct", Some(slower)) => print!(" direct, {slower} ms |"),
                (path, _) => print!(" {path} |"),
            }
        }
        println!();
    }
    Ok(())
}
