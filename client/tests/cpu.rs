//! What a relayed link of 60 datagrams a second costs its two clients. A measurement, so it runs only when asked for:
//!
//! ```text
//! cargo test --release -p waypost-client --test cpu -- --ignored --nocapture
//! ```

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use waypost_client::{HostConfig, JoinConfig, PathPolicy, Session};
use waypost_server::serve::Server;

const GAME: &str = "cpu";
const RATE: u32 = 60;
const SECONDS: u32 = 10;
/// What the clients' threads are called, those of this test included.
const THREADS: [&str; 4] = ["waypost", "sends", "receives", "bare"];

/// Time on a processor of the clients' threads by name, by the scheduler's own account (proc(5): schedstat), microseconds.
fn spent() -> [f64; 4] {
    let mut sums = [0.0; 4];
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let task = task.unwrap().path();
        // A thread may just have ended.
        let read = |file| fs::read_to_string(task.join(file)).unwrap_or_default();
        let (name, statistics) = (read("comm"), read("schedstat"));
        let nanos: Option<f64> = statistics.split(' ').next().and_then(|n| n.parse().ok());
        if let (Some(at), Some(nanos)) = (THREADS.iter().position(|t| *t == name.trim()), nanos) {
            sums[at] += nanos / 1e3;
        }
    }
    sums
}

#[test]
#[ignore = "takes twenty seconds and measures"]
fn a_relayed_link_at_60_hz() {
    let server = Server::start_with(&[]).unwrap();
    let mut hosting = HostConfig::new(GAME);
    hosting.player.policy = PathPolicy::RelayOnly;
    let mut joining = JoinConfig::new(GAME);
    joining.player = hosting.player.clone();
    let host = Session::host(server.main_addr(), hosting).unwrap();
    let code = host.code().unwrap().to_string();
    let guest = Session::join(server.main_addr(), &code, joining).unwrap();
    let up = guest.link(guest.wait_member(None).unwrap()).unwrap();
    let down = host.link(host.wait_member(None).unwrap()).unwrap();
    let period = Duration::from_secs(1) / RATE;
    let count = RATE * SECONDS;

    let before = spent();
    thread::sleep(Duration::from_secs(u64::from(SECONDS)));
    let idle = spent()[0] - before[0];

    let before = spent();
    let receiver = thread::Builder::new()
        .name("receives".to_owned())
        .spawn(move || {
            let mut buf = [0; 1500];
            for _ in 0..count {
                down.recv(&mut buf).unwrap();
            }
            spent()
        });
    let sender = thread::Builder::new()
        .name("sends".to_owned())
        .spawn(move || {
            let mut due = Instant::now();
            for _ in 0..count {
                up.send(&[7; 200]).unwrap();
                due += period;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        });
    // Threads that have ended are in no account any more: the receiver looks while the sender still lives, or all but.
    let after = receiver.unwrap().join().unwrap();
    sender.unwrap().join().unwrap();
    // The same from a bare socket: what the kernel takes for it, on loopback the server's side of the kernel included.
    let at = server.main_addr();
    let bare = thread::Builder::new()
        .name("bare".to_owned())
        .spawn(move || {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            let mut due = Instant::now();
            for _ in 0..count {
                socket.send_to(&[7; 204], at).unwrap();
                due += period;
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            spent()[3]
        });
    let bare = bare.unwrap().join().unwrap();
    let each = |micros: f64| micros / f64::from(count);
    let drives = after[0] - before[0] - idle;
    let [drives, sends, receives, bare] = [drives, after[1], after[2], bare].map(each);
    println!(
        "per datagram: sending {sends:.1} us, of which a bare socket and its timer take {bare:.1} us; receiving {drives:.1} us in the library's thread, {receives:.1} us in the caller's"
    );
}
