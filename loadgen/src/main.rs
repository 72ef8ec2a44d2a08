//! The load generator: `waypost-loadgen`. Reads the command line, runs the load, prints the report.

mod cli;
mod clock;
mod environment;
mod expect;
mod failure;
mod flood;
mod gate;
mod hgrm;
mod payload;
mod place;
mod profile;
mod progress;
mod protocol;
mod report;
mod run;
mod schedule;
mod self_host;
mod sequence;
mod sockets;
mod tally;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use crate::cli::Asked;
use crate::failure::Failure;

fn main() -> ExitCode {
    match try_main() {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::from(failure.exit_code)
        }
    }
}

fn try_main() -> Result<u8, Failure> {
    let arguments = std::env::args_os().map(|a| a.to_string_lossy().into_owned());
    let plan = match cli::read(arguments.collect(), environment::cores().len())? {
        Asked::Print(text) => {
            print!("{text}");
            return Ok(0);
        }
        Asked::Run(plan) => *plan,
    };
    let (json, hgrm) = (plan.json.clone(), plan.hgrm.clone());
    let report = run::run(plan)?;
    print!("{}", report.text());
    if let Some(path) = json {
        let text = report
            .json()
            .map_err(|error| Failure::internal(error, "please report this"))?;
        write(&path, &text, "--json")?;
    }
    if let Some(path) = hgrm {
        write(&path, &report.hgrm(), "--hgrm")?;
    }
    Ok(report.exit_code())
}

fn write(path: &Path, text: &str, option: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        Failure::configuration(
            format!("{} cannot be written: {error}", path.display()),
            format!("name another file with {option}"),
        )
    })
}
