//! The real server as a process that dies and comes back, and the matchmaker's door over HTTP, with real clients.

// A test may not go on after what it needs has failed.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use waypost_client::{HostConfig, JoinConfig, Link, PathPolicy, Player, Session, SessionEvent};

const GAME: &str = "processes";
/// Longer than anything here takes on the busiest machine.
const LONG: Duration = Duration::from_secs(60);

/// A directory for what survives a server process; removed at the end.
struct State(PathBuf);

impl State {
    fn new(name: &str) -> Self {
        let unique = format!("{name}-{}", std::process::id());
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(unique);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server process.
struct ServerProcess {
    child: Child,
    udp: SocketAddr,
    admin: SocketAddr,
}

impl ServerProcess {
    fn start(state: &State, listen: &str, options: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_natlab-server"))
            .args(["--listen", listen, "--probe-port", "0", "--shards", "2"])
            .args(["--admin", "127.0.0.1:0", "--log-level", "error"])
            .args(["--pin", "false"])
            .arg("--state-dir")
            .arg(&state.0)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut udp = None;
        let mut admin = None;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if let Some(at) = line.strip_prefix("listening udp ") {
                udp = Some(at.parse().unwrap());
            }
            if let Some(at) = line.strip_prefix("listening admin ") {
                admin = Some(at.parse().unwrap());
                break;
            }
        }
        Self {
            child,
            udp: udp.unwrap(),
            admin: admin.unwrap(),
        }
    }

    /// `kill -9`, and the same command line again.
    fn crash_and_restart(mut self, state: &State, options: &[&str]) -> Self {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Self::start(state, &self.udp.to_string(), options)
    }

    fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.admin).unwrap();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.admin,
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn player() -> Player {
    Player {
        policy: PathPolicy::RelayOnly,
        ..Player::new(GAME)
    }
}

/// Sends until something comes through: seats may still be on their way back.
fn await_passage(from: &Link, to: &Link) {
    let mut buf = [0; 64];
    to.set_read_timeout(Some(Duration::from_millis(50)))
        .unwrap();
    let started = Instant::now();
    loop {
        from.send(b"hello").unwrap();
        if to.recv(&mut buf).is_ok() {
            return;
        }
        assert!(started.elapsed() < LONG, "nothing comes through");
    }
}

#[test]
fn clients_come_back_by_themselves_after_a_crash() {
    let options = ["--keepalive-secs", "1", "--seat-hold-secs", "30"];
    let state = State::new("crash");
    let server = ServerProcess::start(&state, "127.0.0.1:0", &options);
    let mut config = HostConfig::new(GAME);
    config.player = player();
    let host = Session::host(server.udp, config).unwrap();
    let code = host.code().unwrap();
    let mut config = JoinConfig::new(GAME);
    config.player = player();
    let guest = Session::join(server.udp, &code.to_string(), config).unwrap();
    let to_guest = host.link(host.wait_member(Some(LONG)).unwrap()).unwrap();
    let to_host = guest.link(guest.wait_member(Some(LONG)).unwrap()).unwrap();
    await_passage(&to_guest, &to_host);
    let server = server.crash_and_restart(&state, &options);
    for session in [&host, &guest] {
        while session.next_event(Some(LONG)).unwrap() != SessionEvent::Resumed {}
    }
    assert_eq!(host.code().unwrap(), code);
    await_passage(&to_guest, &to_host);
    await_passage(&to_host, &to_guest);
    drop(server);
}

#[test]
fn a_matchmaker_seats_players_who_know_no_code() {
    let closed = ["--open-rendezvous", "false"];
    let state = State::new("door");
    let server = ServerProcess::start(&state, "127.0.0.1:0", &closed);
    let (status, made) = server.post(
        "/v1/sessions",
        &json!({"app": GAME, "max_members": 2, "metadata": "arena", "seats": 2}),
    );
    assert_eq!(status, 201, "{made}");
    let tickets: Vec<Vec<u8>> = made["tickets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|ticket| STANDARD.decode(ticket.as_str().unwrap()).unwrap())
        .collect();
    assert_eq!(tickets.len(), 2);
    // Without a ticket or credential nobody gets in.
    assert!(Session::host(server.udp, HostConfig::new(GAME)).is_err());
    let guest = Session::resume(server.udp, &tickets[1], &player()).unwrap();
    let host = Session::resume(server.udp, &tickets[0], &player()).unwrap();
    assert_eq!(
        host.code().unwrap().to_string(),
        made["code"].as_str().unwrap()
    );
    assert_eq!(guest.metadata(), b"arena");
    assert!(host.is_host() && !guest.is_host());
    let to_guest = host.link(host.wait_member(Some(LONG)).unwrap()).unwrap();
    let to_host = guest.link(guest.wait_member(Some(LONG)).unwrap()).unwrap();
    await_passage(&to_guest, &to_host);
    // After a crash the tickets still bring back session and code.
    let (code, ticket) = (host.code().unwrap(), guest.ticket().unwrap());
    drop((to_guest, to_host, host, guest));
    let server = server.crash_and_restart(&state, &closed);
    let guest = Session::resume(server.udp, &ticket, &player()).unwrap();
    assert_eq!(guest.code().unwrap(), code);
}
