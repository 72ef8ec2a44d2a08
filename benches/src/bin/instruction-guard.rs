//! Counts the instructions of the packet path under callgrind and compares them with the committed ones, so that a change
//! that makes it more expensive is seen whatever machine it is tested on.
//!
//! Without arguments it measures and compares: a count that differs by more than 5 % from the one of the same compiler is an
//! error; those of another compiler are only shown. `--write` replaces the counts of this compiler: say why in the commit.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use waypost_benches::sans_io::{Arrival, Filled, NOW};
use waypost_proto::shard::{Shard, Verdict};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Message, attr};

/// The committed counts: compiler, case and instructions on each line.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
/// Sessions and allocations in the shard.
const ENTRIES: usize = 1000;
/// Repetitions of a case. Those of an empty run are subtracted, which leaves what is measured.
const REPETITIONS: u64 = 20_000;
/// By how much a count may differ.
const TOLERANCE: f64 = 0.05;

#[derive(Parser)]
struct Arguments {
    /// Replaces the committed counts of this compiler.
    #[arg(long)]
    write: bool,
    /// Runs one case, for callgrind.
    #[arg(long, hide = true)]
    case: Option<Case>,
    /// How often.
    #[arg(long, hide = true, default_value_t = 0)]
    repetitions: u64,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Debug)]
enum Case {
    /// Parsing an Allocate request and finding its attributes.
    ParseStun,
    /// Parsing ChannelData.
    ParseChannelData,
    /// A datagram between members of a session, framed.
    ForwardSession,
    /// ChannelData from a TURN client to its peer.
    ForwardChannel,
    /// A Send indication.
    ForwardIndication,
    /// A datagram from a peer to a TURN client, framed as ChannelData.
    ForwardFromPeer,
    /// A Binding request and its answer.
    Binding,
    /// A turn of the shard without a datagram.
    EmptyTurn,
}

fn forward(shard: &mut Shard, arrivals: &[Arrival], repetitions: u64) {
    for arrival in arrivals.iter().cycle().take(repetitions as usize) {
        match arrival.deliver(shard) {
            Verdict::Forward(forward) => {
                black_box(forward.frame().header());
            }
            other => panic!("it was not forwarded: {other:?}"),
        }
    }
}

fn run(case: Case, repetitions: u64) {
    let mut filled = black_box(Filled::new(ENTRIES));
    let shard = &mut filled.shard;
    match case {
        Case::ParseStun => {
            for _ in 0..repetitions {
                let message = Message::parse(black_box(&filled.allocate)).expect("a request");
                black_box(message.find(attr::USERNAME));
                black_box(message.find(attr::NONCE));
                black_box(message.find(attr::MESSAGE_INTEGRITY));
            }
        }
        Case::ParseChannelData => {
            for arrival in filled
                .channel_data
                .iter()
                .cycle()
                .take(repetitions as usize)
            {
                black_box(channel_data::parse(black_box(&arrival.bytes)));
            }
        }
        Case::ForwardSession => forward(shard, &filled.session_data, repetitions),
        Case::ForwardChannel => forward(shard, &filled.channel_data, repetitions),
        Case::ForwardIndication => forward(shard, &filled.send_indications, repetitions),
        Case::ForwardFromPeer => forward(shard, &filled.peer_data, repetitions),
        Case::Binding => {
            for arrival in filled.bindings.iter().cycle().take(repetitions as usize) {
                assert_eq!(arrival.deliver(shard), Verdict::Handled);
                black_box(&shard.outbox().bytes);
                shard.outbox().clear();
            }
        }
        Case::EmptyTurn => {
            for _ in 0..repetitions {
                shard.handle_timeout(black_box(NOW));
                black_box(shard.poll_timeout());
                shard.outbox().clear();
            }
        }
    }
}

/// Instructions of a whole run.
fn instructions(case: &str, repetitions: u64) -> io::Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe()?)
        .args(["--case", case, "--repetitions", &repetitions.to_string()])
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("valgrind: {error}")))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let count = text
        .lines()
        .find_map(|line| line.split_once("Collected : ")?.1.trim().parse().ok());
    match count {
        Some(count) if output.status.success() => Ok(count),
        _ => Err(io::Error::other(format!("callgrind failed:\n{text}"))),
    }
}

fn compiler() -> io::Result<String> {
    let output = Command::new("rustc").arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().nth(1).unwrap_or("unknown");
    Ok(format!("rustc-{version}-{}", std::env::consts::ARCH))
}

/// Counts by compiler and case.
type Counts = BTreeMap<(String, String), f64>;

fn committed() -> io::Result<Counts> {
    let text = std::fs::read_to_string(COMMITTED)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                [compiler, case, count] => count
                    .parse()
                    .ok()
                    .map(|count| ((compiler.to_owned(), case.to_owned()), count)),
                _ => None,
            }
            .ok_or_else(|| io::Error::other(format!("{COMMITTED}: {line}")))
        })
        .collect()
}

fn write(counts: &Counts) -> io::Result<()> {
    let mut text = "# Instructions per operation under callgrind: compiler, case, count. `instruction-guard --write` makes them.\n".to_owned();
    for ((compiler, case), count) in counts {
        text += &format!("{compiler} {case} {count:.1}\n");
    }
    std::fs::write(COMMITTED, text)
}

fn main() -> io::Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(case) = arguments.case {
        run(case, arguments.repetitions);
        return Ok(ExitCode::SUCCESS);
    }
    let compiler = compiler()?;
    let mut counts = committed()?;
    let knows_compiler = counts.keys().any(|(of, _)| *of == compiler);
    let mut differs = false;
    for case in Case::value_variants() {
        let value = case.to_possible_value().expect("every case has a name");
        let name = value.get_name();
        let empty = instructions(name, 0)?;
        let count = (instructions(name, REPETITIONS)? - empty) / REPETITIONS as f64;
        let before = counts.insert((compiler.clone(), name.to_owned()), count);
        let verdict = match before {
            _ if !knows_compiler => "another compiler's counts are not compared".to_owned(),
            None => {
                differs = true;
                "is new".to_owned()
            }
            Some(before) => {
                let change = count / before - 1.0;
                let too_much = change.abs() > TOLERANCE;
                differs |= too_much;
                let mark = if too_much { "  <- too much" } else { "" };
                format!("{before:.1} committed, {:+.1} %{mark}", change * 100.0)
            }
        };
        println!("{name:<20} {count:>8.1} instructions, {verdict}");
    }
    if arguments.write {
        write(&counts)?;
    } else if differs {
        println!("If the change is meant: instruction-guard --write, and say in the commit why.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
