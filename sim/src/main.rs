//! Runs seeded worlds, or prints the table of NATs.

use std::process::ExitCode;

use clap::Parser;
use waypost_sim::{promptness, scenario, table};

/// Runs the real shards and agents in seeded worlds, and says which seed broke a rule.
#[derive(Parser)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    start: u64,
    /// Print which path each kind of NAT gets with each other, and how long that takes, instead.
    #[arg(long)]
    table: bool,
    /// Count how many of so many joins are connected in five seconds while 30 % of all packets are lost, instead.
    #[arg(long)]
    joins: Option<u64>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.table {
        return match table::table(args.start) {
            Ok(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Err(violation) => {
                eprintln!("{violation}");
                ExitCode::FAILURE
            }
        };
    }
    if let Some(joins) = args.joins {
        let seeds = args.start..args.start.saturating_add(joins);
        let connected = seeds
            .filter(|&seed| promptness::joins_under_loss(seed).is_ok_and(|connected| connected))
            .count();
        println!("{connected} of {joins} joins were connected in time");
        // 99.9 %.
        return if u64::try_from(connected).unwrap_or(0) * 1000 >= joins * 999 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let mut broken = 0u64;
    let mut total = scenario::Report::default();
    for seed in args.start..args.start.saturating_add(args.seeds) {
        match scenario::run(seed) {
            Ok(report) => {
                total.pairs += report.pairs;
                total.direct += report.direct;
                total.delivered += report.delivered;
                total.delivered_directly += report.delivered_directly;
            }
            Err(violation) => {
                eprintln!("{violation}");
                broken += 1;
            }
        }
    }
    println!(
        "{} worlds, {broken} broken; {} pairs, {} of them direct; {} datagrams delivered, {} of them directly",
        args.seeds, total.pairs, total.direct, total.delivered, total.delivered_directly
    );
    if broken == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
