//! The noray client against a stand-in that does the least noray's protocol asks, on ports of 127.0.0.1.

// What a test cannot set up fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use waypost_client::{Handshake, HandshakeTiming, Introduction, Noray, packet_handshake};

const LONG: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Players {
    /// By PID: the OID, the connection, the UDP address, and a socket that relays to it.
    by_pid: HashMap<String, Player>,
}

struct Player {
    oid: String,
    stream: TcpStream,
    seen: Option<SocketAddr>,
    relay: Option<Arc<UdpSocket>>,
}

/// Serves until the test is over: its threads end with the process.
fn stand_in() -> (SocketAddr, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let registrar = UdpSocket::bind("127.0.0.1:0").unwrap();
    let ports = (
        listener.local_addr().unwrap(),
        registrar.local_addr().unwrap().port(),
    );
    let players = Arc::new(Mutex::new(Players::default()));
    let known = Arc::clone(&players);
    thread::spawn(move || {
        let mut buf = [0; 256];
        loop {
            let (len, from) = registrar.recv_from(&mut buf).unwrap();
            let mut players = known.lock().unwrap();
            let player = players
                .by_pid
                .get_mut(std::str::from_utf8(&buf[..len]).unwrap());
            let answer: &[u8] = match player {
                Some(player) => {
                    player.seen.get_or_insert(from);
                    b"OK"
                }
                None => b"Unknown host pid!",
            };
            registrar.send_to(answer, from).unwrap();
        }
    });
    thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let players = Arc::clone(&players);
            thread::spawn(move || serve(number, &stream.unwrap(), &players));
        }
    });
    ports
}

fn serve(number: usize, stream: &TcpStream, players: &Arc<Mutex<Players>>) {
    let mut writer = stream.try_clone().unwrap();
    let (oid, pid) = (format!("oid-{number}_"), format!("pid-{number}"));
    for line in BufReader::new(stream).lines() {
        let line = line.unwrap();
        let (command, data) = line.split_once(' ').unwrap_or((&line, ""));
        let mut players_now = players.lock().unwrap();
        let ready = |players: &Players, oid: &str| {
            let found = players
                .by_pid
                .iter()
                .find(|(_, p)| p.oid == oid && p.seen.is_some());
            found.map(|(pid, _)| pid.clone())
        };
        match command {
            "register-host" => {
                let player = Player {
                    oid: oid.clone(),
                    stream: stream.try_clone().unwrap(),
                    seen: None,
                    relay: None,
                };
                players_now.by_pid.insert(pid.clone(), player);
                // In pieces, among other words.
                writer.write_all(b"hi \"noray v9\"\nset-oid ").unwrap();
                writer
                    .write_all(format!("{oid}\nset-pid {pid}\n").as_bytes())
                    .unwrap();
            }
            "connect" | "connect-relay" => {
                let (Some(target), Some(own)) =
                    (ready(&players_now, data), ready(&players_now, &oid))
                else {
                    continue;
                };
                let told: Vec<String> = [&target, &own]
                    .map(|pid| {
                        if command == "connect" {
                            players_now.by_pid[pid].seen.unwrap().to_string()
                        } else {
                            relay_port(&mut players_now, pid, players).to_string()
                        }
                    })
                    .into();
                writer
                    .write_all(format!("{command} {}\n", told[0]).as_bytes())
                    .unwrap();
                let mut other = &players_now.by_pid[&target].stream;
                other
                    .write_all(format!("{command} {}\n", told[1]).as_bytes())
                    .unwrap();
            }
            _ => {}
        }
    }
}

/// A port that passes on what comes from any player, from that player's own port.
fn relay_port(players: &mut Players, pid: &str, all: &Arc<Mutex<Players>>) -> u16 {
    let player = players.by_pid.get_mut(pid).unwrap();
    if let Some(relay) = &player.relay {
        return relay.local_addr().unwrap().port();
    }
    let relay = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    let port = relay.local_addr().unwrap().port();
    player.relay = Some(Arc::clone(&relay));
    let (to, all) = (player.seen.unwrap(), Arc::clone(all));
    thread::spawn(move || {
        let mut buf = [0; 2048];
        loop {
            let (len, from) = relay.recv_from(&mut buf).unwrap();
            let players = all.lock().unwrap();
            let sender = players
                .by_pid
                .values()
                .find(|player| player.seen == Some(from));
            if let Some(sender) = sender.and_then(|sender| sender.relay.as_ref()) {
                sender.send_to(&buf[..len], to).unwrap();
            }
        }
    });
    port
}

fn player(at: SocketAddr, registrar: u16) -> (Noray, UdpSocket) {
    let mut noray = Noray::connect(at, LONG).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    noray.register(LONG).unwrap();
    noray
        .register_remote(&socket, registrar, HandshakeTiming::default())
        .unwrap();
    (noray, socket)
}

#[test]
fn two_players_meet_directly_and_through_the_relay() {
    let (at, registrar) = stand_in();
    let (mut host, host_socket) = player(at, registrar);
    let (mut guest, guest_socket) = player(at, registrar);
    for relayed in [false, true] {
        if relayed {
            guest.connect_relay(host.oid()).unwrap();
        } else {
            guest.connect_nat(host.oid()).unwrap();
        }
        let to_host = guest.next_introduction(LONG).unwrap();
        let to_guest = host.next_introduction(LONG).unwrap();
        assert_eq!(matches!(to_host, Introduction::Relay(_)), relayed);
        if !relayed {
            assert_eq!(to_host.addr(), host_socket.local_addr().unwrap());
        }
        let timing = HandshakeTiming::default();
        let far = host_socket.try_clone().unwrap();
        let far = thread::spawn(move || packet_handshake(&far, to_guest.addr(), timing).unwrap());
        let near = packet_handshake(&guest_socket, to_host.addr(), timing).unwrap();
        assert_eq!(near, Handshake::Complete(to_host.addr()));
        assert_eq!(far.join().unwrap(), Handshake::Complete(to_guest.addr()));
        // The last packets of one handshake are none of the next.
        for socket in [&host_socket, &guest_socket] {
            socket.set_nonblocking(true).unwrap();
            while socket.recv(&mut [0; 16]).is_ok() {}
            socket.set_nonblocking(false).unwrap();
        }
    }
}

#[test]
fn failures_say_what_they_are() {
    let (at, registrar) = stand_in();
    let short = Duration::from_millis(50);
    let timing = HandshakeTiming {
        timeout: short,
        interval: short,
    };
    let mut noray = Noray::connect(at, LONG).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let kind = |result: std::io::Result<()>| result.unwrap_err().kind();
    assert_eq!(
        kind(noray.register_remote(&socket, registrar, timing)),
        ErrorKind::InvalidInput
    );
    noray.register(LONG).unwrap();
    let deaf = UdpSocket::bind("127.0.0.1:0").unwrap();
    let deaf_port = deaf.local_addr().unwrap().port();
    assert_eq!(
        kind(noray.register_remote(&socket, deaf_port, timing)),
        ErrorKind::TimedOut
    );
    assert_eq!(
        kind(noray.connect_nat("two words")),
        ErrorKind::InvalidInput
    );
    noray.connect_nat("nobody").unwrap();
    assert_eq!(
        noray.next_introduction(short).unwrap_err().kind(),
        ErrorKind::TimedOut
    );
}

#[test]
fn a_server_that_talks_nonsense_is_survived() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut noray = Noray::connect(listener.local_addr().unwrap(), LONG).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    server
        .write_all(b"connect\nconnect nonsense\nconnect 1.2.3.4:0\nconnect 255.255.255.255:9\nconnect-relay 70000\n\xff\xfe\n\n")
        .unwrap();
    server.write_all(b"connect 203.0.113.9:4000\r\n").unwrap();
    assert_eq!(
        noray.next_introduction(LONG).unwrap(),
        Introduction::Nat("203.0.113.9:4000".parse().unwrap())
    );
    server.write_all(&[b'a'; 10_000]).unwrap();
    assert_eq!(
        noray.next_introduction(LONG).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
    drop(server);
}
