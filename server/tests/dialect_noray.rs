//! noray, spoken from outside a running server: by hand, and by a script of what netfox does.

#![allow(clippy::unwrap_used)]

mod wire;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;

use waypost_proto::dialect::Dialect;
use waypost_server::serve::Server;
use wire::{Game, HANG};

/// The ports of one test, below those that the kernel gives out, and others for each process.
fn ports(first: u16, count: u16) -> RangeInclusive<u16> {
    let process = u16::try_from(std::process::id() % 40).unwrap();
    let first = 10_000 + process * 500 + first;
    first..=first + count - 1
}

fn text(ports: &RangeInclusive<u16>) -> String {
    format!("{}-{}", ports.start(), ports.end())
}

/// A server and how to reach it.
struct World {
    server: Server,
    control: SocketAddr,
    registrar: SocketAddr,
}

impl World {
    fn new(options: &[&str]) -> Self {
        let listen = [
            "--noray-listen",
            "127.0.0.1:0",
            "--noray-registrar",
            "127.0.0.1:0",
            "--shards",
            "2",
        ];
        let server = Server::start_with(&[&listen[..], options].concat()).unwrap();
        Self {
            control: server.noray_addr().unwrap(),
            registrar: server.dialect_addrs(Dialect::Noray)[0],
            server,
        }
    }

    fn connect(&self) -> Client {
        let stream = TcpStream::connect(self.control).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        stream.set_nodelay(true).unwrap();
        Client {
            stream,
            buffer: Vec::new(),
        }
    }

    /// A player who has registered and shown his address.
    fn player(&self) -> Player {
        let mut client = self.connect();
        let (oid, pid) = client.register();
        let game = Game::new(self.registrar);
        assert_eq!(game.ask(&pid), "OK");
        Player {
            client,
            oid,
            pid,
            game,
        }
    }

    /// Two players and their relay ports: the first's, the second's.
    fn relayed(&self) -> (Player, Player, SocketAddr, SocketAddr) {
        let (mut ann, mut bob) = (self.player(), self.player());
        bob.client.send(format!("connect-relay {}\n", ann.oid));
        let of_ann = relay_port(&bob.client.line());
        let of_bob = relay_port(&ann.client.line());
        (ann, bob, of_ann, of_bob)
    }
}

fn relay_port(line: &str) -> SocketAddr {
    let port = line.strip_prefix("connect-relay ").unwrap();
    SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()))
}

struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Client {
    fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).unwrap();
    }

    /// The next line, as it came; none at the end.
    fn raw_line(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                let rest = self.buffer.split_off(end + 1);
                let mut line = std::mem::replace(&mut self.buffer, rest);
                line.pop();
                return Some(line);
            }
            let mut piece = [0; 4096];
            match self.stream.read(&mut piece) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "lines end in LF");
                    return None;
                }
                Ok(len) => self.buffer.extend_from_slice(&piece[..len]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("waiting for a line: {error}"),
            }
        }
    }

    fn line(&mut self) -> String {
        String::from_utf8(self.raw_line().expect("a line")).unwrap()
    }

    /// Asserts that nothing was said before the answer to this.
    fn has_heard_nothing(&mut self) {
        self.send("echo probe\n");
        assert_eq!(self.line(), "echo probe");
    }

    fn is_silent(&mut self, text: impl AsRef<[u8]>) {
        self.send(text);
        self.has_heard_nothing();
    }

    fn register(&mut self) -> (String, String) {
        self.send("register-host\n");
        let [oid, pid] = ["set-oid ", "set-pid "].map(|name| {
            let line = self.line();
            line.strip_prefix(name).unwrap().to_owned()
        });
        (oid, pid)
    }
}

struct Player {
    client: Client,
    oid: String,
    pid: String,
    game: Game,
}

impl Player {
    fn connect_line(&self) -> String {
        format!("connect {}", self.game.addr())
    }

    /// Sends from the game's socket.
    fn send_to(&self, to: SocketAddr, bytes: &[u8]) {
        self.game.socket.send_to(bytes, to).unwrap();
    }

    fn receives(&self, bytes: &[u8], from: SocketAddr) {
        let (got, source) = self.game.receive_from();
        assert!(got == bytes, "{} bytes, not {}", got.len(), bytes.len());
        assert_eq!(source, from);
    }
}

#[test]
fn lines_end_in_any_way_and_answers_in_lf() {
    let world = World::new(&[]);
    let mut ann = world.connect();
    for text in [
        "echo a b \n",
        "echo a b \r\n",
        "echo a b \r",
        "\n\r\necho a b \n",
    ] {
        ann.send(text);
        assert_eq!(ann.line(), "echo a b ", "{text:?}");
    }
    // Several in one piece, and one in several.
    ann.send("echo 1\recho 2\r\necho 3\n");
    for number in 1..=3 {
        assert_eq!(ann.line(), format!("echo {number}"));
    }
    ann.send("ec");
    ann.send("ho  two spaces");
    ann.send("\n");
    assert_eq!(ann.line(), "echo  two spaces");
    ann.send("echo\n");
    assert_eq!(ann.line(), "echo ");
    for unknown in ["nonsense\n", "ECHO x\n", " echo x\n", "hi \"there\"\n"] {
        ann.is_silent(unknown);
    }
    let mut overlong = vec![b'x'; 20_000];
    overlong.push(b'\n');
    ann.is_silent(overlong);
    ann.is_silent(b"\xff\xfe \x00\n");
}

#[test]
fn the_last_line_is_served_when_a_client_closes_its_half() {
    let world = World::new(&[]);
    let mut ann = world.connect();
    ann.send("echo first\necho last");
    ann.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(ann.line(), "echo first");
    assert_eq!(ann.line(), "echo last");
    assert_eq!(ann.raw_line(), None);
}

#[test]
fn registering_makes_an_identity_each_time_and_the_first_counts() {
    let world = World::new(&[]);
    let mut ann = world.player();
    assert_eq!((ann.oid.len(), ann.pid.len()), (21, 128));
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    assert!(ann.oid.chars().all(is_plain) && ann.pid.chars().all(is_plain));
    let (second_oid, second_pid) = ann.client.register();
    assert_ne!(ann.oid, second_oid);
    let second = Game::new(world.registrar);
    assert_eq!(second.ask(&second_pid), "OK");
    let mut bob = world.player();
    // Whoever asks is the first, whoever is asked for is the one that was named.
    let asks = format!("connect {}\n", bob.oid);
    ann.client.send(asks);
    assert_eq!(ann.client.line(), bob.connect_line());
    assert_eq!(bob.client.line(), ann.connect_line());
    bob.client.send(format!("connect {second_oid}\n"));
    assert_eq!(bob.client.line(), format!("connect {}", second.addr()));
    assert_eq!(ann.client.line(), bob.connect_line());
}

#[test]
fn identities_end_with_the_connection() {
    let world = World::new(&[]);
    let (mut ann, bob) = (world.player(), world.player());
    let Player {
        mut client,
        oid,
        pid,
        game,
    } = bob;
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.raw_line(), None);
    ann.client.is_silent(format!("connect {oid}\n"));
    assert_eq!(game.ask(&pid), "Unknown host pid!");
}

#[test]
fn the_registrar_keeps_the_first_address() {
    let world = World::new(&[]);
    let mut ann = world.player();
    for bad in ["not a secret id", &format!("{}\n", ann.pid), &ann.oid] {
        assert_eq!(ann.game.ask(bad), "Unknown host pid!");
    }
    // Its error would be more than three times as long.
    ann.game.is_silent("", &ann.pid, "OK");
    let other = Game::new(world.registrar);
    assert_eq!(other.ask(&ann.pid), "OK");
    // To oneself: two lines.
    ann.client.send(format!("connect {}\n", ann.oid));
    assert_eq!(ann.client.line(), ann.connect_line());
    assert_eq!(ann.client.line(), ann.connect_line());
    ann.client.has_heard_nothing();
}

#[test]
fn who_is_not_known_is_not_introduced_and_hears_nothing() {
    let world = World::new(&[]);
    let mut ann = world.player();
    let mut unknown = world.connect();
    let mut unshown = world.connect();
    let (unshown_oid, _) = unshown.register();
    for command in ["connect", "connect-relay"] {
        ann.client.is_silent(format!("{command} nobody\n"));
        ann.client.is_silent(format!("{command}\n"));
        ann.client.is_silent(format!("{command}  {}\n", ann.oid));
        ann.client.is_silent(format!("{command} {unshown_oid}\n"));
        unknown.is_silent(format!("{command} {}\n", ann.oid));
        unshown.is_silent(format!("{command} {}\n", ann.oid));
    }
    ann.client.has_heard_nothing();
    unshown.has_heard_nothing();
}

#[test]
fn relayed_packets_leave_from_the_senders_port() {
    let range = ports(0, 50);
    let world = World::new(&["--noray-relay-ports", &text(&range)]);
    let (mut ann, mut bob, of_ann, of_bob) = world.relayed();
    assert!(range.contains(&of_ann.port()));
    assert_ne!(of_ann, of_bob);
    let large: Vec<u8> = (0..9000).map(|n| (n % 251) as u8).collect();
    for payload in [&b"hello"[..], b"", &large, b"\0\x01\x40\0 like others"] {
        bob.send_to(of_ann, payload);
        ann.receives(payload, of_bob);
        ann.send_to(of_bob, payload);
        bob.receives(payload, of_ann);
    }
    // To oneself.
    ann.send_to(of_ann, b"me");
    ann.receives(b"me", of_ann);
    // The same ports again, whoever asks.
    ann.client.send(format!("connect-relay {}\n", bob.oid));
    assert_eq!(relay_port(&ann.client.line()), of_bob);
    assert_eq!(relay_port(&bob.client.line()), of_ann);
    // The end of a connection is not the end of its port.
    drop(ann.client);
    bob.send_to(of_ann, b"still");
    ann.game.socket.set_read_timeout(Some(HANG)).unwrap();
    let (got, from) = ann.game.receive_from();
    assert_eq!((&got[..], from), (&b"still"[..], of_bob));
}

#[test]
fn a_stranger_gets_a_port_of_the_range_and_nothing_is_lost() {
    let range = ports(50, 50);
    let world = World::new(&["--noray-relay-ports", &text(&range)]);
    let (ann, _bob, of_ann, _) = world.relayed();
    let stranger = Game::new(of_ann);
    for number in 0..5_u8 {
        stranger.send([number]);
    }
    let mut own_port = None;
    for number in 0..5_u8 {
        let (got, from) = ann.game.receive_from();
        assert_eq!(got, [number]);
        assert!(range.contains(&from.port()), "{from}");
        assert_eq!(*own_port.get_or_insert(from), from);
    }
    ann.send_to(own_port.unwrap(), b"back");
    let (got, from) = stranger.receive_from();
    assert_eq!((&got[..], from), (&b"back"[..], of_ann));
}

#[test]
fn beyond_a_limit_packets_are_dropped_and_nothing_else() {
    // A slice that lasts for the whole test.
    let world = World::new(&[
        "--noray-relay-ports",
        &text(&ports(100, 50)),
        "--noray-relay-traffic-interval",
        "1h",
        "--noray-relay-max-individual-traffic",
        "3b",
    ]);
    // 3 bytes per second are 10,800 in an hour.
    let (ann, bob, of_ann, of_bob) = world.relayed();
    for number in 0..40_u8 {
        bob.send_to(of_ann, &[number; 1000]);
    }
    bob.send_to(of_ann, b"small");
    for number in 0..10_u8 {
        ann.receives(&[number; 1000], of_bob);
    }
    ann.receives(b"small", of_bob);
    ann.send_to(of_bob, b"the other's are his own");
    bob.receives(b"the other's are his own", of_ann);
}

#[test]
fn all_players_together_have_a_limit() {
    // 1 byte per second is 3,600 in an hour.
    let world = World::new(&[
        "--noray-relay-ports",
        &text(&ports(350, 20)),
        "--noray-relay-traffic-interval",
        "1h",
        "--noray-relay-max-global-traffic",
        "1b",
    ]);
    let (ann, bob, of_ann, of_bob) = world.relayed();
    bob.send_to(of_ann, &[1; 1000]);
    ann.receives(&[1; 1000], of_bob);
    ann.send_to(of_bob, &[2; 2000]);
    bob.receives(&[2; 2000], of_ann);
    // Both arrive by one port, in order: the first is dropped.
    bob.send_to(of_ann, &[3; 601]);
    ann.send_to(of_ann, &[4; 600]);
    ann.receives(&[4; 600], of_ann);
}

#[test]
fn a_port_carries_only_so_many_bytes_of_its_player() {
    let world = World::new(&[
        "--noray-relay-ports",
        &text(&ports(370, 20)),
        "--noray-relay-max-lifetime-traffic",
        "5001",
    ]);
    let (ann, bob, of_ann, of_bob) = world.relayed();
    for number in 0..5_u8 {
        bob.send_to(of_ann, &[number; 1000]);
        ann.receives(&[number; 1000], of_bob);
    }
    bob.send_to(of_ann, b"x");
    ann.send_to(of_ann, b"the other's are his own");
    ann.receives(b"the other's are his own", of_ann);
}

#[test]
fn a_port_serves_its_player_for_so_long() {
    let world = World::new(&[
        "--noray-relay-ports",
        &text(&ports(390, 20)),
        "--noray-relay-max-lifetime-duration",
        "300ms",
    ]);
    let (mut ann, bob, of_ann, _) = world.relayed();
    let drops = || {
        world
            .server
            .metrics()
            .total("waypost_noray_relay_drops_total")
    };
    let started = std::time::Instant::now();
    while drops() == 0 {
        assert!(started.elapsed() < HANG);
        bob.send_to(of_ann, b"x");
        std::thread::yield_now();
    }
    ann.client.has_heard_nothing();
}

#[test]
fn a_port_that_is_not_used_is_taken_back() {
    let range = ports(150, 2);
    let world = World::new(&[
        "--noray-relay-ports",
        &text(&range),
        "--noray-relay-timeout",
        "150ms",
        "--noray-relay-cleanup-interval",
        "50ms",
    ]);
    let (ann, bob, of_ann, of_bob) = world.relayed();
    assert_eq!(
        (of_ann.port(), of_bob.port()),
        (*range.end(), *range.start())
    );
    // When it is free, the kernel lets somebody else have it.
    let started = std::time::Instant::now();
    let _taken = loop {
        assert!(started.elapsed() < HANG);
        match UdpSocket::bind(of_ann) {
            Ok(socket) => break socket,
            Err(_) => std::thread::yield_now(),
        }
    };
    drop((ann, bob));
    // Another one's port is passed over.
    let (mut eve, mut max) = (world.player(), world.player());
    max.client.send(format!("connect-relay {}\n", eve.oid));
    max.client.has_heard_nothing();
    eve.client.has_heard_nothing();
}

#[test]
fn the_newer_framing_is_accepted_and_more_can_be_asked_for() {
    let world = World::new(&[
        "--noray-greeting",
        "true",
        "--noray-errors",
        "true",
        "--noray-oid-words",
        "2",
    ]);
    let mut client = world.connect();
    assert!(client.line().starts_with("hi \"waypost v"));
    let (oid, pid) = client.register();
    assert_eq!(oid.chars().filter(char::is_ascii_uppercase).count(), 2);
    let game = Game::new(world.registrar);
    assert_eq!(game.ask(&pid), "OK");
    client.send(format!("connect \"{oid}\"\n"));
    for _ in 0..2 {
        assert_eq!(client.line(), format!("connect {}", game.addr()));
    }
    client.send(format!("\rconnect {}\n{oid}\n", oid.len()));
    for _ in 0..2 {
        assert_eq!(client.line(), format!("connect {}", game.addr()));
    }
    client.send("connect no\n");
    assert_eq!(client.line(), r#"error connect "Unknown host oid: no""#);
    client.send("connect?5 no\n");
    assert_eq!(client.line(), r#"connect!5 "Unknown host oid: no""#);
    // A line end in quotes is a byte like others, and comes back escaped.
    client.send("\"connect?6\" \"no\nregister-host\n \\\" one\"\n");
    let told = r#"connect!6 "Unknown host oid: no\nregister-host\n \" one""#;
    assert_eq!(client.line(), told);
    client.send("echo \"two\nlines\"\n");
    assert_eq!(client.line(), "echo \"two");
    assert_eq!(client.line(), "lines\"");
    // A quote within a word is none.
    client.send(format!("connect a\"b\nconnect {oid}\n"));
    assert_eq!(client.line(), r#"error connect "Unknown host oid: a\"b""#);
    for _ in 0..2 {
        assert_eq!(client.line(), format!("connect {}", game.addr()));
    }
}

#[test]
fn ids_are_as_short_as_their_operator_likes() {
    let world = World::new(&["--noray-oid-length", "4", "--noray-oid-charset", "ABCDEF"]);
    let mut client = world.connect();
    let (oid, _) = client.register();
    assert!(oid.len() == 4 && oid.chars().all(|c| "ABCDEF".contains(c)));
    let refused = Server::start_with(&[
        "--noray-listen",
        "127.0.0.1:0",
        "--noray-registrar",
        "127.0.0.1:0",
        "--noray-pid-length",
        "8",
    ]);
    let error = refused.err().unwrap().to_string();
    assert!(error.contains("too easy to guess"), "{error}");
}

#[test]
fn what_is_counted_is_counted_by_dialect() {
    let world = World::new(&["--noray-relay-ports", &text(&ports(200, 50))]);
    let (ann, bob, of_ann, of_bob) = world.relayed();
    bob.send_to(of_ann, b"four");
    ann.receives(b"four", of_bob);
    let metrics = world.server.metrics();
    let started = std::time::Instant::now();
    let wanted = [
        ("waypost_dialect_sessions{dialect=\"noray\"}", 2),
        ("waypost_noray_connections", 2),
        ("waypost_noray_relays", 2),
        ("waypost_relayed_packets_total{proto=\"noray\"}", 1),
        ("waypost_relayed_bytes_total{proto=\"noray\"}", 4),
        ("waypost_noray_small_packets_total{bytes=\"5\"}", 1),
        ("waypost_noray_registrations_total{outcome=\"success\"}", 2),
        ("waypost_noray_commands_total{command=\"connect-relay\"}", 1),
    ];
    loop {
        let totals = metrics.totals();
        if wanted
            .iter()
            .all(|(series, value)| totals[*series] == *value)
        {
            break;
        }
        assert!(started.elapsed() < HANG, "{totals:?}");
        std::thread::yield_now();
    }
}

// What netfox does: its lines, its registration, its handshake.

/// As netfox parses a line: only words 1 and 2.
fn words(line: &str) -> (&str, &str) {
    let mut words = line.split(' ');
    (words.next().unwrap(), words.next().unwrap_or(""))
}

/// One side of a handshake over a socket that receives: `$` and what it knows.
struct Handshake<'a> {
    socket: &'a UdpSocket,
    to: SocketAddr,
    heard: bool,
    is_heard: bool,
}

impl Handshake<'_> {
    fn step(&mut self) {
        let flag = |known: bool, letter: u8| if known { letter } else { b'-' };
        let r = flag(self.heard, b'r');
        let x = flag(self.is_heard, b'x');
        self.socket.send_to(&[b'$', r, b'w', x], self.to).unwrap();
    }

    /// Takes one packet in; whether both sides know.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 2048];
        let (len, from) = self.socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, self.to, "where answers can be sent");
        let got = &buffer[..len];
        self.heard = true;
        self.is_heard |= got.contains(&b'r');
        self.is_heard && got.contains(&b'x')
    }
}

/// Shakes hands in lockstep, which is what 100 ms between packets amount to on loopback.
fn shake((a, to_a): (&UdpSocket, SocketAddr), (b, to_b): (&UdpSocket, SocketAddr)) {
    let side = |socket, to| Handshake {
        socket,
        to,
        heard: false,
        is_heard: false,
    };
    let (mut a, mut b) = (side(a, to_b), side(b, to_a));
    for _ in 0..10 {
        a.step();
        b.step();
        let done = [a.receive(), b.receive()];
        if done == [true, true] {
            return;
        }
    }
    panic!("no handshake");
}

#[test]
fn two_netfox_clients_meet_directly_and_by_relay() {
    let world = World::new(&["--noray-relay-ports", &text(&ports(250, 50))]);
    // The registration's socket is closed and its port bound again for the game.
    let rebind = |player: Player| {
        let local = player.game.addr();
        let (client, oid) = (player.client, player.oid);
        drop(player.game);
        // Another test may just start a program: until that is another program than this one, it has copies of all that is open.
        let started = std::time::Instant::now();
        let socket = loop {
            match UdpSocket::bind(local) {
                Ok(socket) => break socket,
                Err(error) => assert!(started.elapsed() < HANG, "{error}"),
            }
        };
        socket.set_read_timeout(Some(HANG)).unwrap();
        (client, oid, socket)
    };
    let (mut host, oid, host_socket) = rebind(world.player());
    let (mut guest, _, guest_socket) = rebind(world.player());
    guest.send(format!("connect {oid}\n"));
    let parse = |line: String| {
        let (word, data) = words(&line);
        assert_eq!(word, "connect");
        let (ip, port) = data.split_once(':').unwrap();
        SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap())
    };
    let (to_host, to_guest) = (parse(guest.line()), parse(host.line()));
    assert_eq!(to_host, host_socket.local_addr().unwrap());
    shake((&host_socket, to_host), (&guest_socket, to_guest));
    guest.send(format!("connect-relay {oid}\n"));
    let (to_host, to_guest) = (relay_port(&guest.line()), relay_port(&host.line()));
    shake((&host_socket, to_host), (&guest_socket, to_guest));
}

// The whole program, with its variables and metrics.

mod program {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    struct Guarded(Child);

    impl Drop for Guarded {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn get(at: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(at).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn norays_own_variables_and_metrics_work() {
        let low = *ports(300, 14).start();
        let [registrar, port] = [314, 315].map(|first| *ports(first, 1).start());
        let relay_ports = format!("{low}-{}, x, {}+3", low + 2, low + 10);
        let mut child = Guarded(
            Command::new(env!("CARGO_BIN_EXE_waypost-server"))
                .env_clear()
                .env("NORAY_SOCKET_HOST", "127.0.0.1")
                .env("NORAY_SOCKET_PORT", port.to_string())
                .env("NORAY_HTTP_HOST", "127.0.0.1")
                .env("NORAY_HTTP_PORT", "0")
                .env("NORAY_UDP_REGISTRAR_PORT", registrar.to_string())
                .env("NORAY_OID_LENGTH", "5")
                .env("NORAY_PID_LENGTH", "99")
                .env("NORAY_UDP_RELAY_PORTS", relay_ports)
                .env("NORAY_UDP_RELAY_MAX_GLOBAL_TRAFFIC", "2MB")
                .env("NORAY_UDP_RELAY_TIMEOUT", "45s")
                .env("NORAY_LOGLEVEL", "silent")
                .env("NORAY_PORT_8890_TCP", "set by an orchestrator")
                .args(["--listen", "127.0.0.1:0", "--probe-port", "0"])
                .args(["--admin", "127.0.0.1:0", "--shards", "1"])
                .args(["--state-dir", env!("CARGO_TARGET_TMPDIR")])
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
        );
        let output = BufReader::new(child.0.stdout.take().unwrap());
        let mut lines = Vec::new();
        for line in output.lines().map(Result::unwrap) {
            let is_last = line.starts_with("try: ");
            lines.push(line);
            if is_last {
                break;
            }
        }
        let address = |kind: &str| -> SocketAddr {
            let texts = lines
                .iter()
                .filter_map(|line| line.strip_prefix("listening "));
            let mut found = texts.filter_map(|line| line.split_once(' '));
            let found = found.find(|(first, _)| *first == kind);
            found
                .unwrap_or_else(|| panic!("{lines:?}"))
                .1
                .parse()
                .unwrap()
        };
        let control = address("noray-tcp");
        assert_eq!(control.port(), port);
        let stream = TcpStream::connect(control).unwrap();
        stream.set_read_timeout(Some(HANG)).unwrap();
        let mut client = Client {
            stream,
            buffer: Vec::new(),
        };
        let (oid, pid) = client.register();
        assert_eq!((oid.len(), pid.len()), (5, 99));
        let game = Game::new(SocketAddr::from(([127, 0, 0, 1], registrar)));
        assert_eq!(game.ask(&pid), "OK");
        client.send(format!("connect-relay {oid}\n"));
        assert_eq!(relay_port(&client.line()).port(), low + 13);
        client.line();

        let http = address("noray-http");
        let started = std::time::Instant::now();
        let text = loop {
            let text = get(http, "/metrics");
            if text.contains("\nnoray_relay_count 1\n") {
                break text;
            }
            assert!(started.elapsed() < HANG, "{text}");
            std::thread::yield_now();
        };
        assert!(text.starts_with("HTTP/1.1 200"));
        for name in [
            "noray_active_hosts 1",
            "noray_tcp_connections 1",
            "noray_command_duration_count{command=\"connect-relay\"} 1",
            "noray_command_exception{command=\"connect\"} 0",
            "noray_relay_duration_count 0",
            "noray_command_duration_bucket{le=\"+Inf\",command=\"register-host\"} 1",
            "noray_relay_duration_bucket{le=\"0.005\"} 0",
            "# TYPE process_resident_memory_bytes gauge",
            "noray_relay_size_count 0",
            "noray_remote_registrar_success 1",
            "noray_remote_registrar_fail 0",
            "noray_remote_registrar_repeat 0",
            "noray_relay_drop_count 0",
            "noray_relay_expired 0",
        ] {
            assert!(text.contains(&format!("\n{name}\n")), "{name} in {text}");
        }
        // Commands are timed: who reads a sum of 0 was told that nothing takes time.
        let sum = "\nnoray_command_duration_sum{command=\"register-host\"} ";
        let (_, sum) = text.split_once(sum).unwrap();
        let sum: f64 = sum.lines().next().unwrap().parse().unwrap();
        assert!(sum > 0.0, "{text}");
        let elsewhere = get(http, "/");
        assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
        assert!(elsewhere.ends_with("\r\n\r\n"), "its body is empty");
        let beside = get(address("admin"), "/metrics");
        assert!(beside.contains("\nnoray_active_hosts 1\n"));
        assert!(beside.trim_end().ends_with("# EOF"));
    }
}
