//! The load generator: `waypost-loadgen`. Reads the command line, runs the load, prints the report.

mod cli;
mod clock;
mod environment;
mod expect;
mod failure;
mod find_max;
mod flood;
mod gate;
mod hgrm;
mod live;
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
mod series;
mod sockets;
mod tally;
mod times;
mod worker;

use std::path::Path;
use std::process::ExitCode;

use crate::cli::{Asked, Files};
use crate::failure::Failure;
use crate::report::compare::compare;
use crate::report::merge::merge;
use crate::report::{Report, csv, hlog};

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
        Asked::Compare(asked) => {
            let [before, after] = [&asked.before, &asked.after].map(|path| Report::read(path));
            let comparison = compare(&before?, &after?, asked.tolerance);
            print!("{}", comparison.text);
            return Ok(comparison.exit_code());
        }
        Asked::Merge(asked) => {
            let reports = asked.reports.iter().map(|path| Report::read(path));
            let report = merge(reports.collect::<Result<_, _>>()?)?;
            return finish(&report, &asked.files);
        }
    };
    if plan.find_max {
        let found = find_max::find(&plan)?;
        print!("{}", found.text());
        if let Some(path) = &plan.files.json {
            write(path, &json(found.json())?, "--json")?;
        }
        return Ok(found.exit_code);
    }
    finish(&run::run(&plan)?, &plan.files)
}

/// Prints a report, and writes it where it is wanted.
fn finish(report: &Report, files: &Files) -> Result<u8, Failure> {
    print!("{}", report.text());
    if let Some(path) = &files.json {
        write(path, &json(report.json())?, "--json")?;
    }
    if let Some(path) = &files.html {
        write(path, &report.html(), "--html")?;
    }
    if let Some(path) = &files.csv {
        write(path, &csv::render(report), "--csv")?;
    }
    if let Some(path) = &files.hgrm {
        write(path, &report.hgrm(), "--hgrm")?;
    }
    if let Some(path) = &files.hlog {
        write(path, &hlog::render(report), "--hlog")?;
    }
    Ok(report.exit_code())
}

fn json(text: Result<String, serde_json::Error>) -> Result<String, Failure> {
    text.map_err(|error| Failure::internal(error, "please report this"))
}

fn write(path: &Path, text: &str, option: &str) -> Result<(), Failure> {
    std::fs::write(path, text).map_err(|error| {
        Failure::configuration(
            format!("{} cannot be written: {error}", path.display()),
            format!("name another file with {option}"),
        )
    })
}
