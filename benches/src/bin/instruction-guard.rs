//! Counts the instructions of the packet path under callgrind and compares them with the committed ones, so that a change
//! that makes it more expensive is seen whatever machine it is tested on.
//!
//! Without arguments it measures and compares: a count that differs by more than 5 % from the one of the same compiler is an
//! error; those of another compiler are only shown. `--accept REASON` commits the counts that differ so much, and the reason beside them;
//! the others stay, so that many small steps add up to one that is seen.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::io;
use std::process::{Command, ExitCode};

use clap::{Parser, ValueEnum};
use waypost_benches::sans_io::{Arrival, Filled, NOW};
use waypost_proto::shard::{Shard, Verdict};
use waypost_proto::wire::channel_data;
use waypost_proto::wire::stun::{Message, attr};

/// The committed counts: compiler, case, instructions and the reason for the last change on each line.
const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
/// Sessions and allocations in the shard.
const ENTRIES: usize = 1000;
/// Repetitions of a case. Those of an empty run are subtracted, which leaves what is measured.
const REPETITIONS: u64 = 20_000;
/// Datagrams of a turn.
const TURN: usize = 32;
/// By how much a count may differ.
const TOLERANCE: f64 = 0.05;

#[derive(Parser)]
struct Arguments {
    /// Replaces those committed counts of this compiler that differ too much, or adds them, for this reason
    #[arg(long, value_name = "REASON", value_parser = reason)]
    accept: Option<String>,
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
    /// Finding a source in the forwarding table.
    Lookup,
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
    /// A datagram of a turn of 32: data of members, of TURN clients and of peers and Binding requests, then what is due and what
    /// is to be sent.
    Turn,
    /// A turn of the shard without a datagram.
    EmptyTurn,
}

/// A reason is one line, and there is one.
fn reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() || text.contains('\n') {
        return Err("say in one line why the packet path costs what it costs now".into());
    }
    Ok(text.to_owned())
}

/// What ends a turn: timers, and what the shard has to send.
fn end_turn(shard: &mut Shard) {
    shard.handle_timeout(black_box(NOW));
    black_box(&shard.outbox().bytes);
    shard.outbox().clear();
    black_box(shard.poll_timeout());
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
        Case::Lookup => {
            for arrival in filled
                .session_data
                .iter()
                .cycle()
                .take(repetitions as usize)
            {
                let source = black_box(arrival.source.0);
                assert!(black_box(shard.has_flow(arrival.socket, source)));
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
        Case::Turn => {
            let kinds = [
                &filled.session_data,
                &filled.channel_data,
                &filled.peer_data,
                &filled.bindings,
            ];
            for n in 0..repetitions as usize {
                let kind = kinds[n % kinds.len()];
                black_box(kind[n / kinds.len() % kind.len()].deliver(shard));
                if n % TURN == TURN - 1 {
                    end_turn(shard);
                }
            }
        }
        Case::EmptyTurn => {
            for _ in 0..repetitions {
                end_turn(shard);
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

/// A committed count.
#[derive(Clone, Debug)]
struct Count {
    instructions: f64,
    reason: String,
}

/// Counts by compiler and case.
type Counts = BTreeMap<(String, String), Count>;

fn committed() -> io::Result<Counts> {
    let text = std::fs::read_to_string(COMMITTED)?;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                [compiler, case, count, reason] => count.parse().ok().map(|instructions| {
                    let reason = reason.to_owned();
                    let count = Count {
                        instructions,
                        reason,
                    };
                    ((compiler.to_owned(), case.to_owned()), count)
                }),
                _ => None,
            }
            .ok_or_else(|| io::Error::other(format!("{COMMITTED}: {line}")))
        })
        .collect()
}

fn write(counts: &Counts) -> io::Result<()> {
    let mut text = "# Instructions per operation under callgrind: compiler, case, count, and why it is so. `instruction-guard --accept REASON` changes them.\n".to_owned();
    for ((compiler, case), count) in counts {
        text += &format!(
            "{compiler} {case} {:.1} {}\n",
            count.instructions, count.reason
        );
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
    let mut changed = Vec::new();
    for case in Case::value_variants() {
        let value = case.to_possible_value().expect("every case has a name");
        let name = value.get_name();
        let empty = instructions(name, 0)?;
        let count = (instructions(name, REPETITIONS)? - empty) / REPETITIONS as f64;
        let key = (compiler.clone(), name.to_owned());
        let verdict = match counts.get(&key) {
            Some(before) => {
                let change = count / before.instructions - 1.0;
                let mark = if change.abs() > TOLERANCE {
                    changed.push((key, count));
                    "  <- too much"
                } else {
                    ""
                };
                format!(
                    "{:.1} committed, {:+.1} %{mark}",
                    before.instructions,
                    change * 100.0
                )
            }
            None => {
                changed.push((key, count));
                if knows_compiler {
                    "is new"
                } else {
                    "another compiler's counts are not compared"
                }
                .to_owned()
            }
        };
        println!("{name:<20} {count:>8.1} instructions, {verdict}");
    }
    if let Some(reason) = arguments.accept {
        counts.extend(changed.into_iter().map(|(key, instructions)| {
            let reason = reason.clone();
            (
                key,
                Count {
                    instructions,
                    reason,
                },
            )
        }));
        write(&counts)?;
    } else if knows_compiler && !changed.is_empty() {
        println!("If the change is meant: instruction-guard --accept 'why it is so'");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
