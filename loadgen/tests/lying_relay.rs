//! The program against a relay that loses, doubles, spoils and misdelivers on purpose: each fault must be seen for what it
//! is, and by nobody else.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::thread::Scope;
use std::time::Duration;

use serde_json::Value;
use waypost_server::serve::Server;

/// What is done to the datagrams with data, one after the other.
#[derive(Default)]
struct Deeds {
    seen: AtomicU64,
    lost: AtomicU64,
    doubled: AtomicU64,
    spoiled: AtomicU64,
    misdelivered: AtomicU64,
}

/// A relay in front of a server. It passes everything on, but not always as it came.
struct LyingRelay {
    front: UdpSocket,
    server: SocketAddr,
    clients: Mutex<Vec<SocketAddr>>,
    deeds: Deeds,
    stopped: AtomicBool,
}

impl LyingRelay {
    fn before(server: SocketAddr) -> Self {
        Self {
            front: bound(),
            server,
            clients: Mutex::new(Vec::new()),
            deeds: Deeds::default(),
            stopped: AtomicBool::new(false),
        }
    }

    fn clients(&self) -> MutexGuard<'_, Vec<SocketAddr>> {
        self.clients.lock().unwrap()
    }

    /// From the clients to the server, each client by a socket of its own.
    fn run<'a>(&'a self, scope: &'a Scope<'a, '_>) {
        let mut upstream: HashMap<SocketAddr, UdpSocket> = HashMap::new();
        let mut buffer = [0; 2048];
        while !self.stopped.load(Relaxed) {
            let Some((len, client)) = received(self.front.recv_from(&mut buffer)) else {
                continue;
            };
            let socket = upstream.entry(client).or_insert_with(|| {
                let socket = bound();
                socket.connect(self.server).unwrap();
                let back = socket.try_clone().unwrap();
                scope.spawn(move || self.run_back(&back, client));
                self.clients().push(client);
                socket
            });
            let _ = socket.send(&buffer[..len]);
        }
    }

    /// From the server to one client.
    fn run_back(&self, socket: &UdpSocket, client: SocketAddr) {
        let mut buffer = [0; 2048];
        while !self.stopped.load(Relaxed) {
            let Some(len) = received(socket.recv(&mut buffer)) else {
                continue;
            };
            let bytes = &mut buffer[..len];
            let is_data = bytes[0] >> 6 == 1;
            if is_data {
                self.pass_data(bytes, client);
            } else {
                self.send(bytes, client);
            }
        }
    }

    fn pass_data(&self, bytes: &mut [u8], client: SocketAddr) {
        let deeds = &self.deeds;
        match deeds.seen.fetch_add(1, Relaxed) % 10 {
            2 => {
                deeds.lost.fetch_add(1, Relaxed);
            }
            4 => {
                deeds.doubled.fetch_add(1, Relaxed);
                self.send(bytes, client);
                self.send(bytes, client);
            }
            6 => {
                deeds.spoiled.fetch_add(1, Relaxed);
                bytes[100] ^= 0x10;
                self.send(bytes, client);
            }
            8 => {
                deeds.misdelivered.fetch_add(1, Relaxed);
                for other in self.clients().iter().filter(|other| **other != client) {
                    self.send(bytes, *other);
                }
            }
            _ => self.send(bytes, client),
        }
    }

    fn send(&self, bytes: &[u8], client: SocketAddr) {
        let _ = self.front.send_to(bytes, client);
    }
}

/// A socket on a port that the kernel chose, from which a read does not wait for ever.
fn bound() -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let wait = Duration::from_millis(50);
    socket.set_read_timeout(Some(wait)).unwrap();
    socket
}

fn received<T>(result: std::io::Result<T>) -> Option<T> {
    match result {
        Ok(received) => Some(received),
        Err(error) => {
            let harmless = [
                ErrorKind::WouldBlock,
                ErrorKind::TimedOut,
                ErrorKind::Interrupted,
                ErrorKind::ConnectionRefused,
            ];
            assert!(harmless.contains(&error.kind()), "{error}");
            None
        }
    }
}

#[test]
fn each_fault_is_seen_for_what_it_is() {
    let server = Server::start_with(&["--shards", "1", "--io", "mmsg"]).unwrap();
    let relay = LyingRelay::before(server.main_addr());
    let target = relay.front.local_addr().unwrap().to_string();
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("lying.json");
    let output = std::thread::scope(|scope| {
        scope.spawn(|| relay.run(scope));
        let output = Command::new(env!("CARGO_BIN_EXE_waypost-loadgen"))
            .args(["--target", &target, "--io", "mmsg", "--lag-limit", "60s"])
            .args(["--sessions", "2", "--rate", "200", "--size", "200"])
            .args(["--duration", "2", "--warm-up", "0", "--expect", "loss==0"])
            .args(["--json", file.to_str().unwrap()])
            .output();
        relay.stopped.store(true, Relaxed);
        output.unwrap()
    });
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(99), "{text}");
    assert_eq!(
        text.lines().nth(1).unwrap().split(':').next(),
        Some("FAULTY")
    );
    let json: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let counted = |name: &str| json["datagrams"][name].as_u64().unwrap();
    let done = |deed: &AtomicU64| deed.load(Relaxed);
    let deeds = &relay.deeds;
    assert!(done(&deeds.seen) > 50, "{text}");
    // What arrives after the last session is closed is done, but seen by nobody.
    let seen = |count: u64, deeds: u64| assert!(count > 0 && count <= deeds, "{text}");
    seen(counted("duplicated"), done(&deeds.doubled));
    seen(counted("corrupted"), done(&deeds.spoiled));
    // To three others: one of them has a member in the sender's seat, and finds that it is for somebody else.
    let misdelivered = counted("misdelivered") + counted("refused");
    seen(misdelivered, 3 * done(&deeds.misdelivered));
    seen(counted("misdelivered"), 2 * done(&deeds.misdelivered));
    let gone = done(&deeds.lost) + done(&deeds.spoiled) + done(&deeds.misdelivered);
    assert!(counted("lost") >= gone, "{text}");
    assert_eq!(json["sessions"]["failed"], 0, "{text}");
}
