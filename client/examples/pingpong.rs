//! Sixty datagrams a second to another player and back: the path they take, and how long they are under way.
//!
//! ```text
//! cargo run -p waypost-client --example pingpong -- host
//! cargo run -p waypost-client --example pingpong -- join BAD-KIF-ROM
//! ```

mod options;

use std::error::Error;
use std::time::{Duration, Instant};
use std::{io, process, thread};

use waypost_client::{HostConfig, JoinConfig, Link, Session};

const USAGE: &str = "usage: pingpong host|join CODE [--server HOST:PORT] [--seconds N]";
const APPLICATION: &str = "waypost-pingpong";
const RATE: u32 = 60;
const PING: u8 = 1;
const PONG: u8 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let mut seconds = 10;
    let meeting = options::read(|option, value| {
        seconds = value.parse().ok().filter(|_| option == "--seconds")?;
        Some(())
    });
    let Some(meeting) = meeting else {
        eprintln!("{USAGE}");
        process::exit(2);
    };
    let session = match &meeting.code {
        None => Session::host(&meeting.server, HostConfig::new(APPLICATION))?,
        Some(code) => Session::join(&meeting.server, code, JoinConfig::new(APPLICATION))?,
    };
    println!("session {}; waiting for a player", session.code()?);
    let link = session.link(session.wait_member(None)?)?;
    let receiver = link.try_clone()?;
    let started = Instant::now();
    let times = thread::spawn(move || receive(&receiver, started));
    let period = Duration::from_secs(1) / RATE;
    let mut due = Instant::now();
    let mut sent = 0u64;
    while started.elapsed() < Duration::from_secs(seconds) {
        let mut ping = [PING; 9];
        ping[1..].copy_from_slice(&micros(started).to_be_bytes());
        match link.send(&ping) {
            Ok(_) => sent += 1,
            Err(error) => {
                println!("{error}");
                break;
            }
        }
        if sent.is_multiple_of(u64::from(RATE)) {
            println!(
                "{:>5.1} s  {:?}",
                started.elapsed().as_secs_f64(),
                link.path()
            );
        }
        due += period;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    println!("path at the end: {:?}", link.path());
    thread::sleep(Duration::from_millis(500));
    session.leave()?;
    let mut times = times.join().map_err(|_| "the receiving thread failed")?;
    times.sort_unstable();
    let Some(last) = times.len().checked_sub(1) else {
        println!("sent {sent}, none came back");
        return Ok(());
    };
    let percentile = |p: usize| times[last * p / 100] as f64 / 1000.0;
    println!(
        "sent {sent}, {} came back; round trip ms: p50 {:.2}, p90 {:.2}, p99 {:.2}, max {:.2}",
        times.len(),
        percentile(50),
        percentile(90),
        percentile(99),
        percentile(100),
    );
    Ok(())
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Answers the other's pings and notes the round trips of the own, in microseconds, until the session is over.
fn receive(link: &Link, started: Instant) -> Vec<u64> {
    let mut times = Vec::new();
    let mut buf = [0; 1500];
    loop {
        match link.recv(&mut buf) {
            Ok(9) if buf[0] == PING => {
                buf[0] = PONG;
                // The session may just be over, which the next receive tells.
                let _ = link.send(&buf[..9]);
            }
            Ok(9) if buf[0] == PONG => {
                let mut sent = [0; 8];
                sent.copy_from_slice(&buf[1..9]);
                times.push(micros(started).saturating_sub(u64::from_be_bytes(sent)));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {}
            Err(_) => return times,
        }
    }
}
